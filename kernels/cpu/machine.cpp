// The machine under cuda_on_cpu.h: runs a grid on one OS thread.
//
// Blocks run one after the other. Every CUDA thread is a fiber, that is a stack of its own; a fiber that has to wait
// (barrier, warp operation) hands over to the next one that can go on. Who is next is the scheduling order: forward,
// reverse, or shuffled anew in every pass, so that a test can show that the answer does not depend on it. When nobody
// can go on, that is a deadlock, and it is reported with the lines in which the threads wait.
#ifdef __APPLE__
#define _XOPEN_SOURCE 700  // for ucontext.h
#define _DARWIN_C_SOURCE
#endif
#include "machine.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "crash.h"
#include "fibers.h"
#include "image.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

extern cpu::Kernel cpu_kernels[];  // in the wrapper around the .cu

uint3 threadIdx, blockIdx;
dim3 gridDim, blockDim;

namespace cpu {

Fiber fibers[MAX_THREADS];
int threads;
Fiber *running;
unsigned block_number;
unsigned long long arguments[MAX_ARGUMENTS];
size_t argument_bytes[MAX_ARGUMENTS], argument_items[MAX_ARGUMENTS];
size_t dynamic_bytes;
char *shared_start, *shared_end, *dynamic_start;
uintptr_t image_start, image_end;

static void (*kernel)();
static void *launcher;  // where cpu_launch stopped to let the fibers run

// ---------------------------------------------------------------------------- failure

Failure failure;
static bool failed;

void fail(const char *kind, const char *file, int line, const void *pc, const char *text, ...) {
    snprintf(failure.kind, sizeof failure.kind, "%s", kind);
    snprintf(failure.file, sizeof failure.file, "%s", file);
    failure.line = line;
    failure.block = blockIdx;
    failure.thread = threadIdx;
    failure.pc = pc && !line ? (uintptr_t)pc - image_start : 0;
    va_list list;
    va_start(list, text);
    vsnprintf(failure.text, sizeof failure.text, text, list);
    va_end(list);
    failed = true;
    for (;;) switch_to(&running->context, launcher);
}

// ---------------------------------------------------------------------------- who runs next

enum { FORWARD, REVERSE, SHUFFLED };
static int scheduling;
static uint32_t random_state;
static int sequence[MAX_THREADS], position;
static bool somebody_ran;

static uint32_t random_below(uint32_t n) {
    random_state ^= random_state << 13, random_state ^= random_state >> 17, random_state ^= random_state << 5;
    return (uint64_t)random_state * n >> 32;
}

template <class T>
static void shuffle(T *items, uint32_t n) {
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = random_below(i);
        T item = items[i - 1];
        items[i - 1] = items[j], items[j] = item;
    }
}

static void begin_pass() {
    position = 0, somebody_ran = false;
    if (scheduling == SHUFFLED) shuffle(sequence, threads);
}

static Fiber *next() {
    for (;;) {
        while (position < threads) {
            Fiber &f = fibers[sequence[position++]];
            if (f.done || (f.door && *f.door == f.closed)) continue;
            somebody_ran = true;
            return &f;
        }
        if (!somebody_ran) return nullptr;
        begin_pass();
    }
}

[[noreturn]] static void deadlock() {
    char who[800] = "";
    const Fiber *first = nullptr;
    for (int i = 0; i < threads; i++) {  // one entry for each place in which threads wait
        const Fiber &f = fibers[i];
        int here = 0;
        for (int j = 0; j < threads && !f.done; j++) {
            const Fiber &g = fibers[j];
            if (g.done || g.line != f.line || strcmp(g.word, f.word) || strcmp(g.file, f.file)) continue;
            if (j < i) break;
            here++;
        }
        if (!here) continue;
        if (!first) first = &f;
        size_t used = strlen(who);
        const char *name = strrchr(f.file, '/');
        snprintf(who + used, sizeof who - used, "%s%d in %s (%s:%d)", used ? ", " : "", here, f.word,
                 name ? name + 1 : f.file, f.line);
    }
    threadIdx = first->thread;
    fail("deadlock", first->file, first->line, nullptr, "no thread of the block can go on: %s", who);
}

static void hand_over() {
    Fiber &me = *running;
    Fiber *other = next();
    if (!other) deadlock();
    running = other;
    switch_to(&me.context, other->context);
    running = &me;
    threadIdx = me.thread;
}

static void wait_at(const unsigned &door, const char *word, const char *file, int line) {
    Fiber &me = *running;
    me.door = &door, me.closed = door;
    me.word = word, me.file = file, me.line = line;
    hand_over();
    me.door = nullptr;
}

// ---------------------------------------------------------------------------- __syncthreads

static struct {
    int arrived, returned;  // threads that wait in it; threads that have left the kernel
    unsigned passed;
    const char *file;
    int line;
} block;

void barrier(const char *file, int line) {
    if (block.returned)
        fail("divergent barrier", file, line, nullptr, "%d threads of the block returned before this __syncthreads",
             block.returned);
    if (block.arrived && (block.line != line || strcmp(block.file, file)))
        fail("divergent barrier", file, line, nullptr,
             "this thread is in __syncthreads at line %d, %d others are in the one at line %d", line, block.arrived,
             block.line);
    block.file = file, block.line = line;
    if (++block.arrived == threads)
        block.arrived = 0, block.passed++;
    else
        wait_at(block.passed, "__syncthreads", file, line);
    running->barriers++, running->stretch = 0;
}

// ---------------------------------------------------------------------------- warp operations

// Lanes that name the same mask meet at one gate. The last to arrive opens it, and each takes what it wants from what
// the others brought. Two sets of lanes, used in turn: nobody can be two rendezvous ahead of somebody who still reads.
struct Gate {
    unsigned mask, arrived, openings;
    int inside;  // arrived, or on the way out: until then the gate belongs to its mask
    const char *word;
    Lanes lanes[2];
};
static struct {
    Gate gates[4];
    unsigned returned;  // lanes that have left the kernel; nobody waits for them
} warps[MAX_THREADS / WARP];

static bool open_if_complete(Gate &gate, unsigned returned) {
    if (!gate.arrived || (gate.mask & ~returned & ~gate.arrived)) return false;
    gate.lanes[gate.openings & 1].came = gate.arrived;
    gate.openings++, gate.arrived = 0;
    memset(&gate.lanes[gate.openings & 1], 0xFF, sizeof(Lanes));  // what a missing lane brings: NaN, or -1
    return true;
}

const Lanes &meet(const char *word, unsigned mask, const void *value, size_t size, const char *file, int line) {
    Fiber &me = *running;
    auto &warp = warps[me.index / WARP];
    unsigned lane = me.index % WARP;
    if (!(mask >> lane & 1))
        fail("wrong mask", file, line, nullptr, "lane %u calls %s with mask %#x, which does not name it", lane, word, mask);
    Gate *gate = nullptr;
    for (Gate &g : warp.gates)
        if (g.inside && g.mask == mask) gate = &g;
    for (Gate &g : warp.gates)
        if (!gate && !g.inside) gate = &g;
    if (!gate) fail("wrong mask", file, line, nullptr, "more than 4 masks at a time in one warp");
    if (gate->arrived && strcmp(gate->word, word))
        fail("divergent warp", file, line, nullptr, "lane %u calls %s while lanes %#x of its mask are in %s", lane, word,
             gate->arrived, gate->word);
    gate->mask = mask, gate->word = word;
    unsigned round = gate->openings;
    memcpy(gate->lanes[round & 1].value[lane], value, size);
    gate->arrived |= 1u << lane, gate->inside++;
    if (!open_if_complete(*gate, warp.returned)) wait_at(gate->openings, word, file, line);
    gate->inside--;
    return gate->lanes[round & 1];
}

void check_lane(const Lanes &lanes, int from, const char *word, const char *file, int line) {
#ifdef CPU_CHECK
    if (!(lanes.came >> from & 1))
        fail("undefined lane", file, line, nullptr, "%s reads lane %d, which takes no part: its value is undefined", word, from);
#endif
}

// ---------------------------------------------------------------------------- atomics

#ifndef CPU_CHECK  // the checker has its own
void atomic_read(const void *p, void *to, size_t size, const char *, int) { memcpy(to, p, size); }
void atomic_write(void *p, const void *from, size_t size) { memcpy(p, from, size); }
#endif

// ---------------------------------------------------------------------------- one launch

static void fiber_main() {
    threadIdx = running->thread;
    kernel();
    Fiber &me = *running;
    me.done = true, block.returned++;
    if (block.arrived)
        fail("divergent barrier", block.file, block.line, nullptr,
             "this thread returns while %d threads of its block wait in __syncthreads", block.arrived);
    auto &warp = warps[me.index / WARP];
    warp.returned |= 1u << me.index % WARP;
    for (Gate &gate : warp.gates) open_if_complete(gate, warp.returned);
    if (block.returned < threads) hand_over();
    switch_to(&me.context, launcher);
}

static void make_stack(Fiber &f) {
    const size_t page = sysconf(_SC_PAGESIZE);  // 16 kB on a Mac
    char *guard = (char *)mmap(nullptr, page + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (guard == MAP_FAILED || mprotect(guard, page, PROT_NONE)) abort();
    f.stack = guard + page;  // below it lies a page that nobody may touch
}

static bool run_block() {
    begin_pass();
    block = {};
    for (int w = 0; w * WARP < threads; w++) warps[w].returned = 0;
    poison_shared();
    for (int i = 0; i < threads; i++) {
        Fiber &f = fibers[i];
        if (!f.stack) make_stack(f);
        unsigned x = blockDim.x, y = blockDim.y, n = i;
        char *stack = f.stack;
        f = {};
        f.stack = stack, f.index = i, f.thread = {n % x, n / x % y, n / x / y};
        prepare(f);
    }
    running = next();
    switch_to(&launcher, running->context);
    return !failed;
}

EXPORT const Kernel *cpu_kernel(int i) { return &cpu_kernels[i]; }
EXPORT const void *cpu_failure() { return &failure; }

// args: per argument the word that is passed, and for an array its bytes and those of one element.
EXPORT int cpu_launch(int which, const unsigned long long (*args)[3], int count, const unsigned grid[3],
                      const unsigned shape[3], size_t shared, int order, unsigned seed) {
    gridDim = {grid[0], grid[1], grid[2]}, blockDim = {shape[0], shape[1], shape[2]};
    for (int i = 0; i < MAX_ARGUMENTS; i++) {
        bool there = i < count;
        arguments[i] = there ? args[i][0] : 0;
        argument_bytes[i] = there ? args[i][1] : 0, argument_items[i] = there ? args[i][2] : 0;
    }
    kernel = cpu_kernels[which].call;
    threads = shape[0] * shape[1] * shape[2];
    dynamic_bytes = shared, scheduling = order, random_state = seed * 2654435761u | 1, failed = false;
    find_memory();
    memset(&failure, 0, sizeof failure);
#ifdef CPU_CHECK
    check_launch();
#endif
    for (int i = 0; i < threads; i++) sequence[i] = order == REVERSE ? threads - 1 - i : i;
    for (int w = 0; w * WARP < threads; w++)
        for (Gate &gate : warps[w].gates) memset(&gate, 0, sizeof gate), memset(gate.lanes, 0xFF, sizeof gate.lanes);

    unsigned blocks = grid[0] * grid[1] * grid[2];
    unsigned *turn = (unsigned *)malloc(blocks * sizeof(unsigned));
    for (unsigned i = 0; i < blocks; i++) turn[i] = order == REVERSE ? blocks - 1 - i : i;
    if (order == SHUFFLED) shuffle(turn, blocks);
    catch_crashes();
    for (unsigned i = 0; i < blocks; i++) {
        block_number = turn[i];
        blockIdx = {turn[i] % grid[0], turn[i] / grid[0] % grid[1], turn[i] / grid[0] / grid[1]};
        if (!run_block()) break;
    }
    forget_crashes();
    free(turn);
    return failed;
}

}  // namespace cpu
