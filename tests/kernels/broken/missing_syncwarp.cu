// Reverses every 32 numbers of x through shared memory; each warp uses its own part.
//
// Wrong: the lanes of a warp have not run in step since Volta (2017). Between writing and reading, a warp needs a
// __syncwarp just as a block needs a __syncthreads.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    __shared__ DTYPE part[64];
    const int i = blockIdx.x * 64 + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    part[threadIdx.x] = x[i];             // <-- race
    out[i] = part[warp * 32 + 31 - lane]; // <-- race, uninitialised
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    __shared__ DTYPE part[64];
    const int i = blockIdx.x * 64 + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    part[threadIdx.x] = x[i];
    __syncwarp();
    out[i] = part[warp * 32 + 31 - lane];
}
