// The machine without Python: for processors that this test suite can only emulate (test_runner.py). Exit 0: all is right.
#include "cuda_on_cpu.h"

#include <stdio.h>

extern "C" __global__ void sums(int *out, const int *x) {  // registers, and floating-point ones, survive a switch
    int sum = x[threadIdx.x];
    double steps = sum;
    for (int m = 16; m > 0; m /= 2) sum += __shfl_xor_sync(0xffffffff, sum, m), steps += 1;
    out[threadIdx.x] = steps - x[threadIdx.x] == 5 ? sum : -1;
}
extern "C" __global__ void reverse(int *out, const int *x) {
    __shared__ int part[64];
    part[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = part[63 - threadIdx.x];
}
extern "C" __global__ void crash(int *out, const int *x) {
    if (threadIdx.x == 9) out[100000000000ll] = x[0];
}
cpu::Kernel cpu_kernels[] = {CPU_KERNEL(sums), CPU_KERNEL(reverse), CPU_KERNEL(crash)};

extern "C" int cpu_launch(int, const unsigned long long (*)[3], int, const unsigned *, const unsigned *, size_t, int, unsigned);

int main() {
    static int x[64], out[64];
    for (int i = 0; i < 64; i++) x[i] = i * 7 % 31;
    int totals[2] = {};
    for (int i = 0; i < 64; i++) totals[i / 32] += x[i];
    unsigned long long args[2][3] = {{(unsigned long long)out, sizeof out, 4}, {(unsigned long long)x, sizeof x, 4}};
    const unsigned grid[3] = {1, 1, 1}, shape[3] = {64, 1, 1};
    int wrong = 0;
    for (int order = 0; order < 3; order++) {
        wrong += cpu_launch(0, args, 2, grid, shape, 0, order, 5);
        for (int i = 0; i < 64; i++) wrong += out[i] != totals[i / 32];
        wrong += !cpu_launch(2, args, 2, grid, shape, 0, order, 5);
        wrong += strcmp(cpu::failure.kind, "crash") || cpu::failure.thread.x != 9 || !cpu::failure.pc;
        wrong += cpu_launch(1, args, 2, grid, shape, 0, order, 5);
        for (int i = 0; i < 64; i++) wrong += out[i] != x[63 - i];
    }
    printf("%d wrong\n", wrong);
    return wrong != 0;
}
