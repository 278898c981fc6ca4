// out[t] = x[ids[t]], and out[t] is left alone where ids[t] is -1.
//
// Wrong: -1 means that a token has no adapter. As an index it is the element before the first: another tenant's
// weights, if one lies there.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, const int *ids, int n) {
    const int t = blockIdx.x * 64 + threadIdx.x;
    if (t < n) out[t] = x[ids[t]];  // <-- out of bounds
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, const int *ids, int n) {
    const int t = blockIdx.x * 64 + threadIdx.x;
    if (t < n && ids[t] >= 0) out[t] = x[ids[t]];
}
