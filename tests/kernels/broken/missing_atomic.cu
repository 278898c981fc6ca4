// total += the sum of x: each block adds its part.
//
// Wrong: += is a read, an addition and a write, and two blocks that read before either has written lose one of the
// parts. Blocks run one after the other on the CPU runner, so no scheduling order shows a wrong number; the checker
// does, because nothing orders the two blocks.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, float *total, int n) {
    float sum = (float)x[blockIdx.x * 64 + threadIdx.x];
    for (int m = 16; m > 0; m /= 2) sum += __shfl_xor_sync(0xffffffff, sum, m);
    if (threadIdx.x == 0) *total += sum;  // <-- race
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, float *total, int n) {
    float sum = (float)x[blockIdx.x * 64 + threadIdx.x];
    for (int m = 16; m > 0; m /= 2) sum += __shfl_xor_sync(0xffffffff, sum, m);
    if (threadIdx.x % 32 == 0) atomicAdd(total, sum);
}
