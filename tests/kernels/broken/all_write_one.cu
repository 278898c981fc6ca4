// total = the largest |x|.
//
// Wrong: every thread that finds a larger number writes it, and the last one to write wins, not the largest.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, float *total, int n) {
    const float mine = fabsf((float)x[blockIdx.x * 64 + threadIdx.x]);
    if (mine > *total) *total = mine;  // <-- race
}

// There is no atomicMax for floats. The bits of those that are not negative are ordered as integers are.
extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, float *total, int n) {
    const float mine = fabsf((float)x[blockIdx.x * 64 + threadIdx.x]);
    atomicMax((int *)total, __float_as_int(mine));
}
