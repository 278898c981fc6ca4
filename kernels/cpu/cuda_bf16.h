// __nv_bfloat16 for a CPU: the upper half of a float, rounded as the GPU does (to nearest, ties to even).
#pragma once
#include <string.h>

struct __nv_bfloat16 {
    unsigned short bits;

    constexpr __nv_bfloat16() : bits(0) {}  // constexpr: see cuda_fp16.h
    __nv_bfloat16(float f) {
        unsigned x;
        memcpy(&x, &f, 4);
        bits = f != f ? 0x7FFF : (x + 0x7FFF + (x >> 16 & 1)) >> 16;
    }
    operator float() const {
        unsigned x = (unsigned)bits << 16;
        float f;
        memcpy(&f, &x, 4);
        return f;
    }
};

// A GPU would round each result to bfloat16. Our kernels compute in float: (float)a * (float)b.
float operator+(__nv_bfloat16, __nv_bfloat16) = delete;
float operator-(__nv_bfloat16, __nv_bfloat16) = delete;
float operator*(__nv_bfloat16, __nv_bfloat16) = delete;
float operator/(__nv_bfloat16, __nv_bfloat16) = delete;

inline float __bfloat162float(__nv_bfloat16 h) { return h; }
inline __nv_bfloat16 __float2bfloat16(float f) { return f; }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return f; }
