// out[i] = x[i] + x[i ^ 1].
//
// Wrong: the mask names the lower 16 lanes, and all 32 call. A lane must be in the mask that it names.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    out[i] = (DTYPE)((float)x[i] + __shfl_xor_sync(0x0000ffff, (float)x[i], 1));  // <-- wrong mask
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    out[i] = (DTYPE)((float)x[i] + __shfl_xor_sync(0xffffffff, (float)x[i], 1));
}
