// out[i] = x[i] for i < n, where n is no multiple of the block.
//
// Wrong: the last block has threads to spare, and nobody told them.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    out[i] = x[i];  // <-- out of bounds
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    if (i < n) out[i] = x[i];
}
