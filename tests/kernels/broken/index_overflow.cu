// out[i] = x[(i * stride) % n] with a stride of 2^30.
//
// Wrong: the product does not fit into an int. With 1,000 adapters of 4 million numbers each that happens in every
// lookup, on the one machine that is large enough for them.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int stride, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    out[i] = x[i * stride % n];  // <-- arithmetic
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int stride, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    out[i] = x[(long long)i * stride % n];
}
