// out[i] = x[i] + x[i - 1], where x[-1] is 0.
//
// Wrong: the first pass writes out, the second reads what a neighbour wrote. Inside a block the barrier orders the two;
// nothing orders two blocks within one launch, and the first thread of block 1 reads what block 0 writes. Either
// launch twice, or read what no block writes.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    out[i] = x[i];                                         // <-- race
    __syncthreads();
    const float before = i > 0 ? (float)out[i - 1] : 0.0f; // <-- race
    __syncthreads();
    out[i] = (DTYPE)((float)x[i] + before);                // <-- race
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    const float before = i > 0 ? (float)x[i - 1] : 0.0f;
    out[i] = (DTYPE)((float)x[i] + before);
}
