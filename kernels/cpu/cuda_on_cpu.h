// CUDA's words for a CPU. Included in front of an unmodified .cu, so that any C++17 compiler builds it and it runs.
//
//   a block       runs alone from start to end, then the next one
//   a thread      is a fiber: a stack of its own; one OS thread goes from fiber to fiber (machine.cpp)
//   a barrier     is a place where a fiber hands over until all the others have arrived
//   a warp word   is a rendezvous: every lane of the mask brings a value, and the last one to come opens the door
//   __shared__    is thread_local: a thread_local variable of a function is static, and `extern` may stand before it
//
// What a GPU does and this does not: weak memory order (__threadfence is empty), bank conflicts, coalescing, occupancy,
// the accuracy of __expf, fused multiply-add, tensor cores' order of summation. And blocks never overlap in time: a
// kernel that waits for another block hangs here.
#pragma once
#include <math.h>
#include <string.h>

#include <type_traits>
#include <utility>

#include "machine.h"

#define CUDA_ON_CPU 1

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ thread_local
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

// Dynamic shared memory goes by one name: extern __shared__ __align__(16) unsigned char smem_raw[];
extern "C" {
alignas(1024) thread_local unsigned char smem_raw[cpu::MAX_SHARED];
}
char *cpu::dynamic_shared() { return (char *)smem_raw; }

// ---------------------------------------------------------------------------- types and arithmetic

#define VECTOR(T, name)                            \
    struct __align__(2 * sizeof(T)) name##2 { T x, y; };       \
    struct __align__(4 * sizeof(T)) name##4 { T x, y, z, w; }; \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTOR(float, float)
VECTOR(int, int)
VECTOR(unsigned, uint)
#undef VECTOR

#define warpSize 32

template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }
template <class T> inline T __ldg(const T *p) { return *p; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline int __float_as_int(float x) { int i; memcpy(&i, &x, 4); return i; }
inline float __int_as_float(int i) { float x; memcpy(&x, &i, 4); return x; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }

// ---------------------------------------------------------------------------- the block

inline void __syncthreads(HERE) { cpu::barrier(file, line); }
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---------------------------------------------------------------------------- the warp

unsigned __activemask() = delete;  // says which lanes happen to be together, which no kernel may rely on

namespace cpu {
const unsigned EVERYONE = 0xFFFFFFFF;

// What lane `from` brought. If it lies outside this lane's part of the warp, `from` is the lane itself.
template <class T> T shuffled(const char *word, unsigned mask, T value, int from, const char *file, int line) {
    static_assert(sizeof(T) <= LANE_BYTES, "too large for a shuffle");
    const Lanes &lanes = meet(word, mask, &value, sizeof value, file, line);
    check_lane(lanes, from, word, file, line);
    memcpy(&value, lanes.value[from], sizeof value);
    return value;
}

inline int my_lane() { return running->index % WARP; }

inline unsigned votes(const char *word, unsigned mask, int mine, const char *file, int line) {
    const Lanes &lanes = meet(word, mask, &mine, sizeof mine, file, line);
    unsigned yes = 0;
    for (int i = 0, vote; i < WARP; i++) {
        memcpy(&vote, lanes.value[i], sizeof vote);
        yes |= (unsigned)(vote == 1) << i;  // a missing lane brings -1
    }
    return yes;
}
}  // namespace cpu

template <class T> T __shfl_sync(unsigned mask, T value, int lane, int width = 32, HERE) {
    int first = cpu::my_lane() & -width;
    return cpu::shuffled("__shfl_sync", mask, value, first + (lane & (width - 1)), file, line);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, HERE) {
    int me = cpu::my_lane(), from = me ^ bits;
    return cpu::shuffled("__shfl_xor_sync", mask, value, from < (me & -width) + width ? from : me, file, line);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, HERE) {
    int me = cpu::my_lane(), from = me + (int)delta;
    return cpu::shuffled("__shfl_down_sync", mask, value, from < (me & -width) + width ? from : me, file, line);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, HERE) {
    int me = cpu::my_lane(), from = me - (int)delta;
    return cpu::shuffled("__shfl_up_sync", mask, value, from >= (me & -width) ? from : me, file, line);
}
inline unsigned __ballot_sync(unsigned mask, int yes, HERE) {
    return cpu::votes("__ballot_sync", mask, yes != 0, file, line);
}
inline int __any_sync(unsigned mask, int yes, HERE) {
    return cpu::votes("__any_sync", mask, yes != 0, file, line) != 0;
}
inline int __all_sync(unsigned mask, int yes, HERE) {
    return cpu::votes("__all_sync", mask, yes == 0, file, line) == 0;
}
inline void __syncwarp(unsigned mask = cpu::EVERYONE, HERE) {
    // The only warp word that orders memory: a shuffle hands over its value and nothing else.
    cpu::votes("__syncwarp", mask, 0, file, line);
    cpu::running->warp_barriers++, cpu::running->stretch = 0;
}

// ---------------------------------------------------------------------------- atomics

namespace cpu {
// One fiber runs at a time and none hands over in here, so reading and writing are one step.
template <class T, class Change> T atomically(T *p, Change change, const char *file, int line) {
    T old, changed;
    atomic_read(p, &old, sizeof old, file, line);
    changed = change(old);
    atomic_write(p, &changed, sizeof changed);
    return old;
}
template <class T> struct Same { typedef T type; };  // so that atomicAdd(float *, 1) knows its T from the pointer alone
}  // namespace cpu

#define ATOMIC(name, allowed, result)                                                            \
    template <class T> T name(T *p, typename cpu::Same<T>::type value, HERE) {                   \
        static_assert(allowed, "CUDA has no " #name " for this type");                           \
        return cpu::atomically(p, [=](T old) { return (T)(result); }, file, line);               \
    }
#define IS(U) (std::is_same_v<T, U>)
#define IS_INTEGER (IS(int) || IS(unsigned) || IS(unsigned long long))
ATOMIC(atomicAdd, IS_INTEGER || IS(float) || IS(double), old + value)
ATOMIC(atomicExch, IS_INTEGER || IS(float), value)
ATOMIC(atomicMax, IS_INTEGER || IS(long long), old < value ? value : old)
ATOMIC(atomicMin, IS_INTEGER || IS(long long), value < old ? value : old)
ATOMIC(atomicAnd, IS_INTEGER, old & value)
ATOMIC(atomicOr, IS_INTEGER, old | value)
template <class T>
T atomicCAS(T *p, typename cpu::Same<T>::type expected, typename cpu::Same<T>::type value, HERE) {
    static_assert(IS_INTEGER, "CUDA has no atomicCAS for this type");
    return cpu::atomically(p, [=](T old) { return old == expected ? value : old; }, file, line);
}
#undef ATOMIC
#undef IS_INTEGER
#undef IS

// ---------------------------------------------------------------------------- the table of kernels

#include "cuda_bf16.h"
#include "cuda_fp16.h"

#define CPU_KERNEL(f) {#f, cpu::Row<decltype(&f), &f>::signature(), cpu::Row<decltype(&f), &f>::call}

namespace cpu {
// A letter for each type that a kernel may take, as in Python's struct module (and b for bfloat16); * is a pointer.
template <class T> struct Letter;
#define LETTER(T, letter) \
    template <> struct Letter<T> { static constexpr char value = letter; };
LETTER(float, 'f')
LETTER(double, 'd')
LETTER(__half, 'e')
LETTER(__nv_bfloat16, 'b')
LETTER(int, 'i')
LETTER(unsigned, 'I')
LETTER(long long, 'q')
LETTER(unsigned long long, 'Q')
LETTER(short, 'h')
LETTER(unsigned short, 'H')
LETTER(signed char, 'c')
LETTER(unsigned char, 'B')
#undef LETTER
template <class T> struct Letters { static constexpr char value[] = {Letter<T>::value, 0}; };
template <class T> struct Letters<T *> { static constexpr char value[] = {'*', Letter<T>::value, 0}; };
template <class T> struct Letters<const T *> { static constexpr char value[] = {'*', Letter<T>::value, 0}; };

template <class F, F f> struct Row;
template <class... A, void (*f)(A...)> struct Row<void (*)(A...), f> {
    static_assert(sizeof...(A) <= MAX_ARGUMENTS, "too many arguments");
    template <size_t... i> static void unpack(std::index_sequence<i...>) { f(*(A *)&arguments[i]...); }
    static void call() { unpack(std::index_sequence_for<A...>()); }
    static const char *signature() {
        static char text[3 * MAX_ARGUMENTS + 1];
        text[0] = 0;
        (strcat(text, Letters<A>::value), ...);
        return text;
    }
};
}  // namespace cpu
