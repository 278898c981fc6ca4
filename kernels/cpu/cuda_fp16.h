// __half for a CPU: the bits of an IEEE half, converted as the GPU does (to nearest, ties to even).
#pragma once
#include <string.h>

struct __half {
    unsigned short bits;

    constexpr __half() : bits(0) {}  // constexpr: a __shared__ array of them needs no code to run before its first use
    __half(float f) {
        unsigned x;
        memcpy(&x, &f, 4);
        unsigned short sign = x >> 16 & 0x8000;
        x &= 0x7FFFFFFF;
        if (x >= 0x47800000) {  // 65536 and more
            x = x > 0x7F800000 ? 0x7FFF : 0x7C00;
        } else if (x < 0x38800000) {  // below 2^-14: the addition rounds at the right bit, the last one of 0.5f
            memcpy(&f, &x, 4);
            f += 0.5f;
            memcpy(&x, &f, 4);
            x -= 0x3F000000;
        } else {
            x = (x - 0x38000000 + 0xFFF + (x >> 13 & 1)) >> 13;
        }
        bits = sign | x;
    }
    operator float() const {
        unsigned x = (bits & 0x7FFFu) << 13;
        float f;
        memcpy(&f, &x, 4);
        f *= 0x1p112f;  // the exponent's bias: 127 - 15
        memcpy(&x, &f, 4);
        if ((bits & 0x7C00) == 0x7C00) x |= 0x7F800000;
        x |= (bits & 0x8000u) << 16;
        memcpy(&f, &x, 4);
        return f;
    }
};

// A GPU would round each result to a half. Our kernels compute in float: (float)a * (float)b.
float operator+(__half, __half) = delete;
float operator-(__half, __half) = delete;
float operator*(__half, __half) = delete;
float operator/(__half, __half) = delete;

inline float __half2float(__half h) { return h; }
inline __half __float2half(float f) { return f; }
inline __half __float2half_rn(float f) { return f; }
