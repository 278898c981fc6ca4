// Semantics: cache[slot_mapping[t]] = k[t], v[t]
//
// That is write_kv in refimpl/kv_cache.py. A slot is block * block_size + offset, so that the paged cache
// [blocks, block_size, kv_heads, head_dim] is one long list of rows of kv_heads * head_dim numbers.
//
// version          who computes what                      what it buys
// v1  write_kv_v1  one thread per number                  nothing but clarity
// v2  write_kv_v2  one thread per 16 bytes of a row       a quarter (fp32) or an eighth of the loads and stores
//
// Slots are pairwise different (the host has checked it): no two threads write the same place. The cache may be of
// another type than k and v (-DCACHE_DTYPE): a number is rounded to T first and then widened, which changes nothing.
#include "common.cuh"

// grid (tokens, width / 128), block 128
extern "C" __global__ void write_kv_v1(CACHE_DTYPE* k_cache, CACHE_DTYPE* v_cache, const DTYPE* k, const DTYPE* v,
                                       const int* slot_mapping, int width) {
    const int t = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= width) return;
    const long long from = (long long)t * width + i, to = (long long)slot_mapping[t] * width + i;
    k_cache[to] = (Cache)(float)k[from];
    v_cache[to] = (Cache)(float)v[from];
}

// Up to VEC numbers of a row that has `count` left (past its end: 0 or less). Whole if they can be moved as they are,
// else one by one.
__device__ inline void store(Cache* to, const T* from, int count) {
    if (same<Cache, T> && count >= VEC && is_aligned(from) && (unsigned long long)to % 16 == 0) {
        *(Vec*)to = *(const Vec*)from;
    } else {
        for (int e = 0; e < VEC && e < count; e++) to[e] = (Cache)(float)from[e];
    }
}

// grid (tokens, width / VEC / 128), block 128
extern "C" __global__ void write_kv_v2(CACHE_DTYPE* k_cache, CACHE_DTYPE* v_cache, const DTYPE* k, const DTYPE* v,
                                       const int* slot_mapping, int width) {
    const int t = blockIdx.x, i = (blockIdx.y * blockDim.x + threadIdx.x) * VEC;
    const long long from = (long long)t * width + i, to = (long long)slot_mapping[t] * width + i;
    store(k_cache + to, k + from, width - i);
    store(v_cache + to, v + from, width - i);
}
