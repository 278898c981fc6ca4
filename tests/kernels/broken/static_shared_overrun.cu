// out[i] = the sum of x over the warp of thread i.
//
// Wrong: there are two warps, and the array has room for one. What lies behind it is another array of the kernel, so
// the address is valid and the numbers are not.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    __shared__ float sums[1], others[32];
    const int i = blockIdx.x * 64 + threadIdx.x, warp = threadIdx.x / 32;
    float sum = (float)x[i];
    for (int m = 16; m > 0; m /= 2) sum += __shfl_xor_sync(0xffffffff, sum, m);
    if (threadIdx.x % 32 == 0) sums[warp] = sum;  // <-- out of bounds
    others[threadIdx.x % 32] = 0;
    __syncthreads();
    out[i] = (DTYPE)sums[warp];
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    __shared__ float sums[2];
    const int i = blockIdx.x * 64 + threadIdx.x, warp = threadIdx.x / 32;
    float sum = (float)x[i];
    for (int m = 16; m > 0; m /= 2) sum += __shfl_xor_sync(0xffffffff, sum, m);
    if (threadIdx.x % 32 == 0) sums[warp] = sum;
    __syncthreads();
    out[i] = (DTYPE)sums[warp];
}
