// The checker: what compute-sanitizer's memcheck, racecheck and initcheck do, for the machine in machine.cpp.
//
// The .cu is compiled with -fsanitize=thread,bounds,alignment,..., which makes the compiler call a function before every
// access to memory and at every mistake in arithmetic. It is linked without the libraries that usually bring those
// functions: these here know what a block, a warp and a __syncthreads are.
//
// Every element of an argument and every byte of shared memory remembers who used it last (Cell). Two uses by different
// threads, at least one of them a plain write, are a race unless something orders them: a __syncthreads that both have
// passed between, or a __syncwarp if both are in one warp. Nothing orders two blocks. That depends on the barriers of
// the kernel and not on who happened to run first, so a race shows in every scheduling order.
//
// Not seen: an overrun that lands in the same array (row i into row i + 1); the fifth of five readers that nothing
// orders; a __syncwarp of half a warp counts as one of the whole warp; __device__ variables.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine.h"

namespace cpu {

enum Kind : unsigned { READ, WRITE, ATOMIC };

// ---------------------------------------------------------------------------- who came before whom

struct Stretch {  // what one thread does between two synchronisations
    unsigned block, barriers, warp_barriers;
    int thread;
};
static Stretch *stretches;  // number 0 stands for nobody
static unsigned stretch_count, stretch_room;

static unsigned this_stretch() {
    Fiber &me = *running;
    if (me.stretch) return me.stretch;
    if (stretch_count == stretch_room) {
        stretch_room = stretch_room ? 2 * stretch_room : 4096;
        stretches = (Stretch *)realloc(stretches, stretch_room * sizeof(Stretch));
    }
    stretches[stretch_count] = {block_number, me.barriers, me.warp_barriers, me.index};
    return me.stretch = stretch_count++;
}

static bool ordered(const Stretch &a, const Stretch &b) {
    if (a.block != b.block) return false;
    if (a.thread == b.thread || a.barriers != b.barriers) return true;
    return a.thread / WARP == b.thread / WARP && a.warp_barriers != b.warp_barriers;
}

// ---------------------------------------------------------------------------- what is remembered of each element

struct Cell {
    struct Use {
        unsigned stretch, kind : 2, pc : 30;  // pc: an offset into this library
    } uses[4];                                // a write takes the place of all others: they are ordered before it
    unsigned char touched;                    // 1: loaded in this launch, 2: stored
};

struct Region {
    uintptr_t start;
    size_t bytes, granule;  // bytes of one element
    Cell *cells;
    uint64_t traffic[4];    // bytes loaded, stored, distinct ones loaded, distinct ones stored
};
enum { SHARED = MAX_ARGUMENTS };
static Region regions[MAX_ARGUMENTS + 1];  // the arguments, then the shared memory of the block
static Region *present[MAX_ARGUMENTS + 1]; // those of this launch
static int present_count;

static void set_region(Region &r, const void *start, size_t bytes, size_t granule) {
    free(r.cells);
    r = {(uintptr_t)start, bytes, granule, nullptr, {}};
    if (!bytes) return;
    r.cells = (Cell *)calloc((bytes + granule - 1) / granule, sizeof(Cell));
    present[present_count++] = &r;
}

void check_launch() {
    stretch_count = 0;
    running = &fibers[0];
    fibers[0].stretch = 0, this_stretch();
    present_count = 0;
    for (int i = 0; i < MAX_ARGUMENTS; i++)
        set_region(regions[i], (void *)arguments[i], argument_bytes[i], argument_items[i] ? argument_items[i] : 1);
    set_region(regions[SHARED], shared_start, shared_end - shared_start, 1);
}

extern "C" __attribute__((visibility("default"))) const uint64_t *cpu_traffic(int argument) {
    return regions[argument < 0 ? SHARED : argument].traffic;
}

// ---------------------------------------------------------------------------- one access

static const char *const DOES[] = {"reads", "writes", "updates"}, *const DID[] = {"a read", "a write", "an atomic"};

// Where the access is reported: a place in the source, or a pc that Python turns into one.
struct Place {
    const char *file;
    int line;
    const void *pc;
};

[[noreturn]] static void out_of_bounds(uintptr_t p, size_t size, Kind kind, Place at) {
    char where[200];
    const Region *nearest = nullptr;
    intptr_t past = 0;
    for (int i = 0; i < MAX_ARGUMENTS; i++) {
        const Region &r = regions[i];
        intptr_t distance = p >= r.start ? p + size - r.start - r.bytes : p - r.start;
        if (r.bytes && (!nearest || labs(distance) < labs(past))) nearest = &r, past = distance;
    }
    uintptr_t in_dynamic = p - (uintptr_t)dynamic_start;
    if (p < 4096)
        snprintf(where, sizeof where, "through a null pointer");
    else if (in_dynamic < MAX_SHARED)
        snprintf(where, sizeof where, "at byte %zu of dynamic shared memory, which has %zu", (size_t)in_dynamic, dynamic_bytes);
    else if (nearest && labs(past) < 1 << 20)
        snprintf(where, sizeof where, "up to %ld bytes %s argument %d, which has %zu", labs(past),
                 past > 0 ? "past the end of" : "before the start of", (int)(nearest - regions), nearest->bytes);
    else
        snprintf(where, sizeof where, "at %#lx, which lies in no argument", (long)p);
    fail("out of bounds", at.file, at.line, at.pc, "%s %zu bytes %s", DOES[kind], size, where);
}

static void use(Region &region, Cell &cell, Kind kind, Place at) {
    bool shared = &region == &regions[SHARED], written = false, known = false;
    unsigned mine = this_stretch();
    Cell::Use *place = nullptr;
    for (Cell::Use &u : cell.uses) {
        if (u.stretch && shared && stretches[u.stretch].block != block_number) u.stretch = 0;  // a block that is over
        if (!u.stretch) {
            place = place ? place : &u;
            continue;
        }
        written |= u.kind != READ;
        known |= u.stretch == mine && u.kind == kind;
        if (u.stretch == mine) continue;
        const Stretch &other = stretches[u.stretch];
        bool before = ordered(other, stretches[mine]);
        if (!before && (kind != u.kind || kind == WRITE)) {
            failure.other_pc = u.pc;
            fail("race", at.file, at.line, at.pc, "%s %s here and %s by block %u, thread %d: nothing orders them",
                 shared ? "shared memory:" : "global memory:", DID[kind], DID[u.kind], other.block, other.thread);
        }
        if (before && u.kind == kind) place = &u;
    }
    if (shared && kind != WRITE && !written)
        fail("uninitialised", at.file, at.line, at.pc, "%s shared memory that no thread of this block has written", DOES[kind]);
    if (known) return;
    if (kind == WRITE) {
        memset(cell.uses, 0, sizeof cell.uses);
        place = cell.uses;
    }
    if (place) *place = {mine, kind, (unsigned)((uintptr_t)at.pc - image_start)};
}

static void access(const void *address, size_t size, Kind kind, Place at, size_t multiple = 1) {
    uintptr_t p = (uintptr_t)address;
    if (!running || p - (uintptr_t)running->stack < STACK) return;  // a thread's own variables
    if (p - image_start < image_end - image_start) return;          // threadIdx and the like
    for (int i = 0; i < present_count; i++) {
        Region &r = *present[i];
        if (p < r.start || p + size > r.start + r.bytes) continue;
        uintptr_t in_dynamic = p - (uintptr_t)dynamic_start;
        if (&r == &regions[SHARED] && in_dynamic < MAX_SHARED && in_dynamic + size > dynamic_bytes) break;
        if (p % multiple)
            fail("misaligned", at.file, at.line, at.pc, "%s %zu bytes at an address that is no multiple of %zu", DOES[kind], size, multiple);
        unsigned char flags = kind == READ ? 1 : kind == WRITE ? 2 : 3;
        for (size_t i = (p - r.start) / r.granule; i * r.granule < p - r.start + size; i++) {
            use(r, r.cells[i], kind, at);
            unsigned char fresh = flags & ~r.cells[i].touched;
            r.cells[i].touched |= flags;
            r.traffic[2] += fresh & 1 ? r.granule : 0, r.traffic[3] += fresh & 2 ? r.granule : 0;
        }
        r.traffic[0] += flags & 1 ? size : 0, r.traffic[1] += flags & 2 ? size : 0;
        return;
    }
    out_of_bounds(p, size, kind, at);
}

void atomic_read(const void *p, void *to, size_t size, const char *file, int line) {
    access(p, size, ATOMIC, {file, line, __builtin_return_address(0)});
    memcpy(to, p, size);
}
void atomic_write(void *p, const void *from, size_t size) { memcpy(p, from, size); }

}  // namespace cpu

// ---------------------------------------------------------------------------- what the compiler calls

using namespace cpu;
#define PC {"", 0, __builtin_return_address(0)}

extern "C" {
#define SIZE(n)                                                        \
    void __tsan_read##n(void *p) { access(p, n, READ, PC, n); }        \
    void __tsan_write##n(void *p) { access(p, n, WRITE, PC, n); }      \
    void __tsan_unaligned_read##n(void *p) { access(p, n, READ, PC); } \
    void __tsan_unaligned_write##n(void *p) { access(p, n, WRITE, PC); }
SIZE(1) SIZE(2) SIZE(4) SIZE(8) SIZE(16)
void __tsan_read_range(void *p, size_t n) { access(p, n, READ, PC); }
void __tsan_write_range(void *p, size_t n) { access(p, n, WRITE, PC); }
void *__tsan_memcpy(void *to, const void *from, size_t n) {
    size_t multiple = n == 16 ? 16 : 1;  // clang copies a vector this way, and does not say that it must be aligned
    access(from, n, READ, PC, multiple), access(to, n, WRITE, PC, multiple);
    return memcpy(to, from, n);
}
void *__tsan_memmove(void *to, const void *from, size_t n) {
    access(from, n, READ, PC), access(to, n, WRITE, PC);
    return memmove(to, from, n);
}
void *__tsan_memset(void *to, int c, size_t n) {
    access(to, n, WRITE, PC);
    return memset(to, c, n);
}
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}

// The compiler hands over the place in the source, and the types by name.
struct Source {
    const char *file;
    unsigned line, column;
};
struct Type {
    short kind, info;
    char name[];
};
struct Bounds {
    Source at;
    const Type *array, *index;
};
struct Mismatch {
    Source at;
    const Type *type;
    unsigned char log_alignment, kind;
};
void __ubsan_handle_out_of_bounds(Bounds *d, size_t index) {
    fail("out of bounds", d->at.file, d->at.line, nullptr, "index %d of an array %s", (int)index, d->array->name);
}
void __ubsan_handle_type_mismatch_v1(Mismatch *d, size_t p) {
    size_t multiple = (size_t)1 << d->log_alignment;
    if (p % multiple)
        fail("misaligned", d->at.file, d->at.line, nullptr, "%s wants an address that is a multiple of %zu; this one is %zu more",
             d->type->name, multiple, p % multiple);
}
#define ARITHMETIC(name, text) \
    void __ubsan_handle_##name(Source *at) { fail("arithmetic", at->file, at->line, nullptr, text); }
ARITHMETIC(add_overflow, "integer overflow in an addition")
ARITHMETIC(sub_overflow, "integer overflow in a subtraction")
ARITHMETIC(mul_overflow, "integer overflow in a multiplication")
ARITHMETIC(negate_overflow, "integer overflow in a negation")
ARITHMETIC(divrem_overflow, "division by zero, or of the smallest integer by -1")
ARITHMETIC(shift_out_of_bounds, "a shift by more bits than the type has, or of a negative number")
}
