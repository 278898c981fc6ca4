// out[i] = x[i] + 2 x[i] + 3 x[i] + 4 x[i].
//
// Wrong: the array of four has no element 4.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    float terms[4], sum = 0;
    for (int j = 0; j < n / 32; j++) terms[j] = (j + 1) * (float)x[i];
    for (int j = 1; j <= n / 32; j++) sum += terms[j];  // <-- out of bounds
    out[i] = (DTYPE)sum;
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    float terms[4], sum = 0;
    for (int j = 0; j < n / 32; j++) terms[j] = (j + 1) * (float)x[i];
    for (int j = 0; j < n / 32; j++) sum += terms[j];
    out[i] = (DTYPE)sum;
}
