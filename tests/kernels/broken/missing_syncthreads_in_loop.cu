// Reverses one part of x after the other through the same shared memory.
//
// Wrong: a fast thread comes round the loop and overwrites what a slow one has yet to read. The barrier between
// writing and reading is there; the one between reading and the next writing is the one that is forgotten.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    __shared__ DTYPE part[64];
    if (blockIdx.x > 0) return;
    for (int start = 0; start < n; start += 64) {
        part[threadIdx.x] = x[start + threadIdx.x];          // <-- race
        __syncthreads();
        out[start + threadIdx.x] = part[63 - threadIdx.x];   // <-- race
    }
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    __shared__ DTYPE part[64];
    if (blockIdx.x > 0) return;
    for (int start = 0; start < n; start += 64) {
        part[threadIdx.x] = x[start + threadIdx.x];
        __syncthreads();
        out[start + threadIdx.x] = part[63 - threadIdx.x];
        __syncthreads();
    }
}
