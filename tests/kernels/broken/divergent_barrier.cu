// Reverses each block's part of x, and negates what comes from its second half.
//
// Wrong: each half of the block has a barrier of its own. __syncthreads is one barrier for all threads of the block:
// in conditional code only if all of them take the same way.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    __shared__ DTYPE part[64];
    const int i = blockIdx.x * 64 + threadIdx.x;
    if (threadIdx.x < 32) {
        part[threadIdx.x] = x[i];
        __syncthreads();  // <-- divergent barrier
    } else {
        part[threadIdx.x] = (DTYPE)-(float)x[i];
        __syncthreads();  // <-- divergent barrier
    }
    out[i] = part[63 - threadIdx.x];
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    __shared__ DTYPE part[64];
    const int i = blockIdx.x * 64 + threadIdx.x;
    part[threadIdx.x] = (DTYPE)(threadIdx.x < 32 ? (float)x[i] : -(float)x[i]);
    __syncthreads();
    out[i] = part[63 - threadIdx.x];
}
