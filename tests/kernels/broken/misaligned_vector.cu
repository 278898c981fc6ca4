// Thread t copies 16 bytes of x to out; the first number of x is left out.
//
// Wrong: a 16-byte load wants an address that is a multiple of 16. A GPU stops with "misaligned address", long after the
// launch and without saying where.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    const int width = VEC, t = blockIdx.x * 64 + threadIdx.x;
    if (1 + (t + 1) * width > n) return;
    *((Vec *)out + t) = *((const Vec *)(x + 1) + t);  // <-- misaligned
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    const int width = VEC, t = blockIdx.x * 64 + threadIdx.x;
    if (1 + (t + 1) * width > n) return;
    Vec v;
    for (int e = 0; e < width; e++) v.e[e] = x[1 + t * width + e];
    *((Vec *)out + t) = v;
}
