// out[i] = the sum of x over the warp, for the first 16 lanes of each warp; 0 for the others.
//
// Wrong: the mask of the shuffle names 32 lanes, 16 come, and the other 16 wait at the barrier for those.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x, lane = threadIdx.x % 32;
    float sum = (float)x[i];
    if (lane < 16)
        for (int m = 16; m > 0; m /= 2) sum += __shfl_xor_sync(0xffffffff, sum, m);  // <-- deadlock
    __syncthreads();                                                                 // <-- deadlock
    out[i] = (DTYPE)(lane < 16 ? sum : 0.0f);
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x, lane = threadIdx.x % 32;
    float sum = (float)x[i];
    for (int m = 16; m > 0; m /= 2) sum += __shfl_xor_sync(0xffffffff, sum, m);
    __syncthreads();
    out[i] = (DTYPE)(lane < 16 ? sum : 0.0f);
}
