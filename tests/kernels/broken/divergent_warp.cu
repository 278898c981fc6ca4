// Reverses every 32 numbers of x: lanes of the lower half by shared memory, the others by a shuffle.
//
// Wrong: the lanes that a mask names must all call the same function. Here half of them are in __syncwarp and half in a
// shuffle, with a mask that names all.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    __shared__ float part[64];
    const int i = blockIdx.x * 64 + threadIdx.x, lane = threadIdx.x % 32, first = threadIdx.x - lane;
    float value = (float)x[i];
    part[threadIdx.x] = value;
    if (lane < 16) {
        __syncwarp();                                            // <-- divergent warp
        value = part[first + 31 - lane];
    } else {
        value = __shfl_sync(0xffffffff, value, 31 - lane);       // <-- divergent warp
    }
    out[i] = (DTYPE)value;
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    __shared__ float part[64];
    const int i = blockIdx.x * 64 + threadIdx.x, lane = threadIdx.x % 32, first = threadIdx.x - lane;
    float value = (float)x[i];
    part[threadIdx.x] = value;
    __syncwarp();
    const float other = __shfl_sync(0xffffffff, value, 31 - lane);
    out[i] = (DTYPE)(lane < 16 ? part[first + 31 - lane] : other);
}
