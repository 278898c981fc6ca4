// out[i] = x[i] + x[i + 8] for the first 16 lanes of each warp, x[i] for the others.
//
// Wrong: lanes 8 to 15 ask lanes 16 to 23, which take no part. What they get is undefined.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    float sum = (float)x[i];
    if (threadIdx.x % 32 < 16) sum += __shfl_down_sync(0x0000ffff, sum, 8);  // <-- undefined lane
    out[i] = (DTYPE)sum;
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    const float mine = (float)x[i], other = __shfl_down_sync(0xffffffff, mine, 8);
    out[i] = (DTYPE)(threadIdx.x % 32 < 16 ? mine + other : mine);
}
