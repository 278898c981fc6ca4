// out[i] = x[reversed i within the warp] + x[i ^ 1], the first through shared memory, the second by a shuffle.
//
// Wrong: the shuffle makes the lanes meet, so it looks as if it also published part. It hands over its own value and
// nothing else: the CUDA guide says that a shuffle does not imply a memory barrier.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    __shared__ DTYPE part[64];
    const int i = blockIdx.x * 64 + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    part[threadIdx.x] = x[i];                                             // <-- race
    const float neighbour = __shfl_xor_sync(0xffffffff, (float)x[i], 1);
    out[i] = (DTYPE)((float)part[warp * 32 + 31 - lane] + neighbour);     // <-- race
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    __shared__ DTYPE part[64];
    const int i = blockIdx.x * 64 + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    part[threadIdx.x] = x[i];
    const float neighbour = __shfl_xor_sync(0xffffffff, (float)x[i], 1);
    __syncwarp();
    out[i] = (DTYPE)((float)part[warp * 32 + 31 - lane] + neighbour);
}
