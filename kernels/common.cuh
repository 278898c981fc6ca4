// What the kernels share: the type, rounding to it, 16-byte loads, a sum over a warp.
//
// T is the type in which numbers lie in memory: -DDTYPE=float, __half or __nv_bfloat16. Nothing is computed in it:
// every number is widened to float when it is read, and rounded when it is written.
//
// Host code has checked every plan before a launch (refimpl/checks.py): an id that is out of range here would read
// another tenant's weights, and nothing on a GPU would notice.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifndef DTYPE
#define DTYPE float
#endif
typedef DTYPE T;

// The KV cache may hold another type than the rest: real ones are fp8 at times, the reference's is always float.
#ifndef CACHE_DTYPE
#define CACHE_DTYPE DTYPE
#endif
typedef CACHE_DTYPE Cache;

template <class A, class B>
constexpr bool same = false;
template <class A>
constexpr bool same<A, A> = true;

#define FULL_WARP 0xffffffffu
#define MINUS_INFINITY __int_as_float(0xff800000)  // NVRTC has no INFINITY

// 16 bytes: the widest load that one thread can ask for. The address must be a multiple of 16.
constexpr int VEC = 16 / sizeof(T);
struct alignas(16) Vec {
    T e[VEC];
};

__device__ inline bool is_aligned(const T* p) { return (unsigned long long)p % 16 == 0; }

// v rounded to T if the flag is set: one of the points at which engines differ (refimpl/arrays.py, Precision).
__device__ inline float rounded(float v, int flag) { return flag ? (float)(T)v : v; }

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// The sum over `lanes` neighbouring lanes (a power of two), known to each of them. All 32 lanes must call it.
__device__ inline float lanes_sum(float v, int lanes) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(FULL_WARP, v, offset);
    return v;
}

__device__ inline float warp_sum(float v) { return lanes_sum(v, 32); }

// VEC numbers from p on, as floats; zeros in place of all after the first `count`. Never reads those.
__device__ inline void load(float* v, const T* p, int count) {
    if (count >= VEC && is_aligned(p)) {
        const Vec u = *(const Vec*)p;
        for (int e = 0; e < VEC; e++) v[e] = (float)u.e[e];
    } else {
        for (int e = 0; e < VEC; e++) v[e] = e < count ? (float)p[e] : 0.0f;
    }
}
