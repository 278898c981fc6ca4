// out[i] = the sum of x over the block.
//
// Wrong: 64 threads fill 64 of the 128 numbers, and the sum goes over all of them. Shared memory is not zero at the
// start of a block: it holds what the block before has left there.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    __shared__ float part[128];
    const int i = blockIdx.x * 64 + threadIdx.x;
    part[threadIdx.x] = (float)x[i];
    __syncthreads();
    float sum = 0;
    for (int j = 0; j < 128; j++) sum += part[j];  // <-- uninitialised
    out[i] = (DTYPE)sum;
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    __shared__ float part[128];
    const int i = blockIdx.x * 64 + threadIdx.x;
    part[threadIdx.x] = (float)x[i];
    part[64 + threadIdx.x] = 0;
    __syncthreads();
    float sum = 0;
    for (int j = 0; j < 128; j++) sum += part[j];
    out[i] = (DTYPE)sum;
}
