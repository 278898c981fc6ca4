// Semantics: cache[slot_mapping[t]] = k[t], v[t]
//
// That is write_kv in refimpl/kv_cache.py. A slot is block * block_size + offset, so that the paged cache
// [blocks, block_size, kv_heads, head_dim] is one long list of rows of kv_heads * head_dim numbers. Rows of v may be of
// another width than those of k (multi-head latent attention).
//
// version          who computes what                      what it buys
// v1  write_kv_v1  one thread per number                  nothing but clarity
// v2  write_kv_v2  one thread per 16 bytes of a row       a quarter (fp32) or an eighth of the loads and stores
//
// Slots are pairwise different (the host has checked it): no two threads write the same place. The cache may be of
// another type than k and v (-DCACHE_DTYPE): a number is rounded to T first and then widened, which changes nothing.
#include "common.cuh"

// grid (tokens, the greater width / 128), block 128
extern "C" __global__ void write_kv_v1(CACHE_DTYPE* k_cache, CACHE_DTYPE* v_cache, const DTYPE* k, const DTYPE* v,
                                       const int* slot_mapping, int k_width, int v_width) {
    const int t = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
    const long long slot = slot_mapping[t];
    if (i < k_width) k_cache[slot * k_width + i] = (Cache)(float)k[(long long)t * k_width + i];
    if (i < v_width) v_cache[slot * v_width + i] = (Cache)(float)v[(long long)t * v_width + i];
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

// grid (tokens, the greater width / VEC / 128), block 128
extern "C" __global__ void write_kv_v2(CACHE_DTYPE* k_cache, CACHE_DTYPE* v_cache, const DTYPE* k, const DTYPE* v,
                                       const int* slot_mapping, int k_width, int v_width) {
    const int t = blockIdx.x, i = (blockIdx.y * blockDim.x + threadIdx.x) * VEC;
    const long long slot = slot_mapping[t];
    store(k_cache + slot * k_width + i, k + (long long)t * k_width + i, k_width - i);
    store(v_cache + slot * v_width + i, v + (long long)t * v_width + i, v_width - i);
}
