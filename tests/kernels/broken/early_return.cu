// Reverses each block's part of x, of which there are n numbers; what is not there counts as 0.
//
// Wrong: the threads without a number leave, and the others wait for the whole block.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    __shared__ DTYPE part[64];
    const int i = blockIdx.x * 64 + threadIdx.x;
    if (i >= n) return;
    part[threadIdx.x] = x[i];
    __syncthreads();  // <-- divergent barrier
    out[i] = part[63 - threadIdx.x];
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    __shared__ DTYPE part[64];
    const int i = blockIdx.x * 64 + threadIdx.x;
    part[threadIdx.x] = i < n ? x[i] : (DTYPE)0.0f;
    __syncthreads();
    if (i < n) out[i] = part[63 - threadIdx.x];
}
