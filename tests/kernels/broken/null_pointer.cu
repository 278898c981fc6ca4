// out[i] = x[i] + bias[i], where bias may be null.
//
// Wrong: nobody asked whether there is a bias.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, const float *bias, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    if (i < n) out[i] = (DTYPE)((float)x[i] + bias[i]);  // <-- out of bounds
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, const float *bias, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    if (i < n) out[i] = (DTYPE)((float)x[i] + (bias ? bias[i] : 0.0f));
}
