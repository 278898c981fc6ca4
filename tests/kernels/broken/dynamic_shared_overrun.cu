// out[i] = x[i] + x[i + 1] within a block, 0 after its last.
//
// Wrong: the launch asks for one number per thread, and the kernel uses one more.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    extern __shared__ __align__(16) unsigned char smem_raw[];
    float *part = (float *)smem_raw;
    const int i = blockIdx.x * 64 + threadIdx.x;
    part[threadIdx.x] = (float)x[i];
    if (threadIdx.x == 0) part[64] = 0;  // <-- out of bounds
    __syncthreads();
    out[i] = (DTYPE)(part[threadIdx.x] + part[threadIdx.x + 1]);
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    extern __shared__ __align__(16) unsigned char smem_raw[];
    float *part = (float *)smem_raw;
    const int i = blockIdx.x * 64 + threadIdx.x;
    part[threadIdx.x] = (float)x[i];
    __syncthreads();
    out[i] = (DTYPE)(part[threadIdx.x] + (threadIdx.x < 63 ? part[threadIdx.x + 1] : 0.0f));
}
