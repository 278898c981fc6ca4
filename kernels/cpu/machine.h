// What the words of cuda_on_cpu.h, the machine that runs them (machine.cpp) and the checker know of each other.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
extern uint3 threadIdx, blockIdx;
extern dim3 gridDim, blockDim;

// The place in the source where a CUDA word is used: the compiler fills these two in at the call.
#define HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace cpu {

enum { MAX_THREADS = 1024, WARP = 32, MAX_SHARED = 227 * 1024, MAX_ARGUMENTS = 48, LANE_BYTES = 64, STACK = 256 * 1024 };

struct Lanes {  // what the lanes of a warp brought to a rendezvous, and which lanes came
    unsigned char value[WARP][LANE_BYTES];
    unsigned came;
};

struct Kernel {  // one row of the table that the wrapper around a .cu exports
    const char *name, *signature;
    void (*call)();
};

struct Fiber {  // one CUDA thread
    char *stack;             // its own, STACK bytes
    void *context;           // where it stopped
    uint3 thread;            // its threadIdx
    int index;               // the same as one number
    bool done;
    const unsigned *door;    // it waits until *door is no longer `closed`; null: it can run
    unsigned closed;
    const char *word, *file; // the CUDA word that it waits in, and where: for the message when nobody can go on
    int line;
    unsigned barriers, warp_barriers;  // how many __syncthreads and __syncwarp lie behind it: the checker's clock
    unsigned stretch;        // the checker's number for the code since the last of them; 0: none yet
};

extern Fiber fibers[MAX_THREADS];
extern int threads;                                   // of the block
extern Fiber *running;
extern unsigned block_number;                         // blockIdx as one number
extern unsigned long long arguments[MAX_ARGUMENTS];   // the kernel's, 8 bytes each
extern size_t argument_bytes[MAX_ARGUMENTS], argument_items[MAX_ARGUMENTS];  // of each array, and of one element of it
extern size_t dynamic_bytes;                          // of smem_raw, in this launch
extern char *shared_start, *shared_end;               // the __shared__ variables,
extern char *dynamic_start;                           // smem_raw among them
extern uintptr_t image_start, image_end;              // this library

extern struct Failure {  // what Python reads: refimpl/cuda/runner/cpu.py has the same layout
    char kind[32], file[512], text[1024];
    int line;
    uint3 block, thread;
    uint64_t pc, other_pc;  // offsets into this library, where the compiler did not say the line; 0: none
} failure;

void barrier(const char *file, int line);
const Lanes &meet(const char *word, unsigned mask, const void *value, size_t size, const char *file, int line);
void check_lane(const Lanes &lanes, int lane, const char *word, const char *file, int line);
void atomic_read(const void *p, void *to, size_t size, const char *file, int line);
void atomic_write(void *p, const void *from, size_t size);

// Ends the launch with an error; the fiber that calls it never goes on.
[[noreturn]] void fail(const char *kind, const char *file, int line, const void *pc, const char *text, ...)
    __attribute__((format(printf, 5, 6)));

char *dynamic_shared();  // smem_raw, which only the .cu can name
void check_launch();  // before a launch; only in the checking build

}  // namespace cpu
