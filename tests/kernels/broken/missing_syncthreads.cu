// Reverses each block's part of x through shared memory.
//
// Wrong: thread i reads what thread 63 - i writes, and nothing makes it wait until that has happened. On a GPU the two
// warps often finish in the lucky order, so that it passes for months.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    __shared__ DTYPE part[64];
    const int i = blockIdx.x * 64 + threadIdx.x;
    part[threadIdx.x] = x[i];            // <-- race
    out[i] = part[63 - threadIdx.x];     // <-- race, uninitialised
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    __shared__ DTYPE part[64];
    const int i = blockIdx.x * 64 + threadIdx.x;
    part[threadIdx.x] = x[i];
    __syncthreads();
    out[i] = part[63 - threadIdx.x];
}
