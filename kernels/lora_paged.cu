// Semantics: y[t] += weight * scale * B (A x[t])      as in lora.cu, with A and B read through a page table
//
// Adapters lie in blocks of the KV cache (refimpl/paged_slots.py): number n of an adapter is in row
// page_table[page_starts[a] + n / page_width] of `pages`, at n % page_width. Each kernel is the one of lora.cu (v2) with
// another way to read a number: the same blocks, the same sums in the same order, so that every bit is the same.
//
// version             who computes what     what it costs
// lookup_paged        as lora_lookup        one look-up in the page table for each number
// bgmv_shrink_paged   as bgmv_shrink_v2     one for each 16 bytes, and a page's end may cut these in two
// bgmv_expand_paged   as bgmv_expand_v2     the same
// sgmv_shrink_paged   as sgmv_shrink_v2     the same, once for 16 tokens
// sgmv_expand_paged   as sgmv_expand_v2     the same
//
// Punica's and S-LoRA's kernels read a row of hidden_size numbers at a time, and a page there is one row. Here rows are
// of any length (down_proj's are longer, B's are as short as the rank), and begin anywhere in a page.
#include "lora.cuh"

// One adapter's part in one slice: where its arrays begin among the adapter's numbers, and how these are found.
struct Paged {
    const Cache* pages;
    const int* table;
    int width;
    long long A, B, bias;
    int rank;
};

// Number n of an adapter.
__device__ inline float number(const Paged& lora, long long n) {
    return (float)lora.pages[(long long)lora.table[n / lora.width] * lora.width + n % lora.width];
}

// VEC numbers from n on; zeros in place of all after the first `count`. Never reads those.
__device__ inline void load(float* v, const Paged& lora, long long n, int count) {
    const int within = n % lora.width;
    if (within + VEC <= lora.width) {  // one page has them all
        const Cache* p = lora.pages + (long long)lora.table[n / lora.width] * lora.width + within;
        for (int e = 0; e < VEC; e++) v[e] = e < count ? (float)p[e] : 0.0f;
    } else {
        for (int e = 0; e < VEC; e++) v[e] = e < count ? number(lora, n + e) : 0.0f;
    }
}

__device__ inline Paged paged_at(const Cache* pages, const int* page_table, const int* page_starts, int page_width,
                                 const long long* offsets, const int* ranks, int entry, int a) {
    const long long* begin = offsets + 3LL * entry;
    return {pages, page_table + page_starts[a], page_width, begin[0], begin[1], begin[2], ranks[entry]};
}

// grid (tokens, Ax_stride / 32, slices), block 32
extern "C" __global__ void lookup_paged(float* Ax, const int* token_ids, const CACHE_DTYPE* pages,
                                        const int* page_table, const int* page_starts, int page_width,
                                        const long long* offsets, const int* ranks, const int* adapter_ids, int tokens,
                                        int adapters, int d_in, int Ax_stride) {
    const int t = blockIdx.x, s = blockIdx.z, j = blockIdx.y * blockDim.x + threadIdx.x;
    const int a = adapter_ids[t];
    if (a < 0) return;
    const Paged lora = paged_at(pages, page_table, page_starts, page_width, offsets, ranks, s * adapters + a, a);
    if (j >= lora.rank) return;
    Ax[((long long)s * tokens + t) * Ax_stride + j] = number(lora, lora.A + (long long)j * d_in + token_ids[t]);
}

// The share of one lane in the sum of A's row from number n on times x, over from <= k < to: lane_dot of lora.cu.
__device__ inline float lane_dot(const Paged& lora, long long n, const T* x, int from, int to, int lane) {
    float sum = 0;
    int done = from;
    if ((n + from) % VEC == 0 && is_aligned(x + from)) {
        done = from + (to - from) / VEC * VEC;
        for (int k = from + lane * VEC; k < done; k += 32 * VEC) {
            float u[VEC];
            load(u, lora, n + k, VEC);
            const Vec v = *(const Vec*)(x + k);
            for (int e = 0; e < VEC; e++) sum += u[e] * (float)v.e[e];
        }
    }
    for (int k = done + lane; k < to; k += 32) sum += number(lora, n + k) * (float)x[k];
    return sum;
}

// grid (tokens, Ax_stride / 4, slices * splits), block 128: four warps, four rows of A
extern "C" __global__ void bgmv_shrink_paged(float* Ax, const DTYPE* x, const CACHE_DTYPE* pages, const int* page_table,
                                             const int* page_starts, int page_width, const long long* offsets,
                                             const int* ranks, const int* adapter_ids, int tokens, int adapters,
                                             int d_in, int Ax_stride, int splits) {
    const int t = blockIdx.x, s = blockIdx.z / splits, split = blockIdx.z % splits;
    const int j = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    const int a = adapter_ids[t];
    if (a < 0) return;
    const Paged lora = paged_at(pages, page_table, page_starts, page_width, offsets, ranks, s * adapters + a, a);
    if (j >= lora.rank) return;  // a whole warp leaves, and no barrier waits for it
    const int from = split_start(split, splits, d_in), to = split_start(split + 1, splits, d_in);
    const float part = lane_dot(lora, lora.A + (long long)j * d_in, x + (long long)t * d_in, from, to, lane);
    const float sum = warp_sum(part);
    const long long slices = gridDim.z / splits;
    if (lane == 0) Ax[((split * slices + s) * tokens + t) * Ax_stride + j] = sum;
}

// grid (tokens, at most widest slice / 128, slices), block 128: 128 columns, then those gridDim.y * 128 further on
extern "C" __global__ void bgmv_expand_paged(DTYPE* y, const float* Ax, const CACHE_DTYPE* pages, const int* page_table,
                                             const int* page_starts, int page_width, const long long* offsets,
                                             const int* ranks, const float* scales, const float* gains,
                                             const long long* gain_starts, const int* adapter_ids,
                                             const float* adapter_weights, const int* slice_starts, int tokens,
                                             int adapters, int y_stride, int Ax_stride, int splits, int round_rank,
                                             int round_delta) {
    const int t = blockIdx.x, s = blockIdx.z, slices = gridDim.z;
    const int d_out = slice_starts[s + 1] - slice_starts[s];
    const int a = adapter_ids[t];
    if (a < 0) return;  // the whole block
    const Paged lora = paged_at(pages, page_table, page_starts, page_width, offsets, ranks, s * adapters + a, a);
    const int rank = lora.rank;
    if (rank == 0) return;

    __shared__ float v[MAX_RANK];  // Ax[t], and zeros up to a whole vector: they meet the zeros of a row's end
    const long long row = ((long long)s * tokens + t) * Ax_stride;
    const long long split_stride = (long long)slices * tokens * Ax_stride;
    for (int j = threadIdx.x; j < ceil_div(rank, VEC) * VEC; j += 128)
        v[j] = j < rank ? sum_splits(Ax, row + j, split_stride, splits, round_rank) : 0.0f;
    __syncthreads();

    int lanes = 1;  // that share one row of B, VEC numbers each
    while (lanes < 32 && lanes * VEC < rank) lanes *= 2;
    const int lane = threadIdx.x % lanes;
    const float scale = scales[s * adapters + a] * adapter_weights[t];
    const float* gain = gain_at(gains, gain_starts, s * adapters + a);
    for (int first = blockIdx.y * 128; first < d_out; first += gridDim.y * 128) {
        for (int pass = 0; pass < lanes; pass++) {  // 128 / lanes columns a pass
            const int c = first + pass * (128 / lanes) + threadIdx.x / lanes;
            float sum = 0;
            if (c < d_out) {
                for (int j = lane * VEC; j < rank; j += lanes * VEC) {
                    float b[VEC];
                    load(b, lora, lora.B + (long long)c * rank + j, rank - j);
                    for (int e = 0; e < VEC; e++) sum += b[e] * v[j + e];
                }
            }
            sum = lanes_sum(sum, lanes);
            if (c < d_out && lane == 0) {
                if (lora.bias >= 0) sum += number(lora, lora.bias + c);
                T* cell = y + (long long)t * y_stride + slice_starts[s] + c;
                *cell = scaled_add((float)*cell, sum, scale, gain, c, d_out, round_delta);
            }
        }
    }
}

#define STEP 64  // columns of x and A that are in shared memory at a time
#define PAD 1    // one more number a row: else the 16 rows of A that a warp reads at once would all lie in one bank

// grid (chunks, Ax_stride / 16, slices * splits), block 256: one thread per (token, rank) of the tile
extern "C" __global__ void sgmv_shrink_paged(float* Ax, const DTYPE* x, const CACHE_DTYPE* pages, const int* page_table,
                                             const int* page_starts, int page_width, const long long* offsets,
                                             const int* ranks, const int* adapter_ids, const int* rows,
                                             const int* chunk_starts, int tokens, int adapters, int d_in, int Ax_stride,
                                             int splits) {
    const int s = blockIdx.z / splits, split = blockIdx.z % splits;
    const int* chunk = rows + chunk_starts[blockIdx.x];
    const int count = chunk_starts[blockIdx.x + 1] - chunk_starts[blockIdx.x];
    const int a = adapter_ids[chunk[0]], first = blockIdx.y * TILE;
    const Paged lora = paged_at(pages, page_table, page_starts, page_width, offsets, ranks, s * adapters + a, a);
    if (first >= lora.rank) return;  // the whole block
    const int i = threadIdx.x / TILE, j = threadIdx.x % TILE;

    __shared__ float x_tile[TILE][STEP + PAD], a_tile[TILE][STEP + PAD];
    const int from = split_start(split, splits, d_in), to = split_start(split + 1, splits, d_in);
    float sum = 0;
    for (int k = from; k < to; k += STEP) {
        for (int cell = threadIdx.x; cell < TILE * STEP / VEC; cell += blockDim.x) {
            const int row = cell / (STEP / VEC), at = cell % (STEP / VEC) * VEC;
            float u[VEC] = {}, v[VEC] = {};  // zeros where there are no more ranks, tokens or columns
            if (row < lora.rank - first && k + at < to)
                load(u, lora, lora.A + (long long)(first + row) * d_in + k + at, to - k - at);
            if (row < count) load(v, x + (long long)chunk[row] * d_in + k + at, to - k - at);
            for (int e = 0; e < VEC; e++) {
                a_tile[row][at + e] = u[e];
                x_tile[row][at + e] = v[e];
            }
        }
        __syncthreads();  // the tiles are complete
        for (int e = 0; e < STEP; e++) sum += x_tile[i][e] * a_tile[j][e];
        __syncthreads();  // everyone has read them: they may be overwritten
    }
    const long long slices = gridDim.z / splits;
    if (i < count && first + j < lora.rank)
        Ax[((split * slices + s) * tokens + chunk[i]) * Ax_stride + first + j] = sum;
}

// grid (chunks, at most widest slice / 128, slices), block 128: one thread per column, and those gridDim.y * 128 on
extern "C" __global__ void sgmv_expand_paged(DTYPE* y, const float* Ax, const CACHE_DTYPE* pages, const int* page_table,
                                             const int* page_starts, int page_width, const long long* offsets,
                                             const int* ranks, const float* scales, const float* gains,
                                             const long long* gain_starts, const int* adapter_ids,
                                             const float* adapter_weights, const int* slice_starts, const int* rows,
                                             const int* chunk_starts, int tokens, int adapters, int y_stride,
                                             int Ax_stride, int splits, int round_rank, int round_delta) {
    const int s = blockIdx.z, slices = gridDim.z, d_out = slice_starts[s + 1] - slice_starts[s];
    const int* chunk = rows + chunk_starts[blockIdx.x];
    const int count = chunk_starts[blockIdx.x + 1] - chunk_starts[blockIdx.x];
    const int a = adapter_ids[chunk[0]], entry = s * adapters + a;
    const Paged lora = paged_at(pages, page_table, page_starts, page_width, offsets, ranks, entry, a);
    const int rank = lora.rank;
    if (rank == 0) return;

    __shared__ float v[TILE][MAX_RANK];  // Ax of each token; zeros beyond the tokens and beyond the rank
    const int width = ceil_div(rank, VEC) * VEC;
    const long long split_stride = (long long)slices * tokens * Ax_stride;
    for (int i = threadIdx.x; i < TILE * width; i += 128) {
        const int row = i / width, j = i % width;
        const bool there = row < count && j < rank;
        v[row][j] = there ? sum_splits(Ax, ((long long)s * tokens + chunk[row]) * Ax_stride + j, split_stride, splits,
                                       round_rank)
                          : 0.0f;
    }
    __syncthreads();

    const float* gain = gain_at(gains, gain_starts, entry);
    for (int c = blockIdx.y * 128 + threadIdx.x; c < d_out; c += gridDim.y * 128) {
        float sum[TILE] = {};
        for (int j = 0; j < rank; j += VEC) {
            float b[VEC];
            load(b, lora, lora.B + (long long)c * rank + j, rank - j);
            for (int e = 0; e < VEC; e++)
                for (int i = 0; i < TILE; i++) sum[i] += b[e] * v[i][j + e];  // the same v for all: a broadcast
        }
        const float bias = lora.bias >= 0 ? number(lora, lora.bias + c) : 0.0f;
#pragma unroll
        for (int i = 0; i < TILE; i++) {
            if (i < count) {
                T* cell = y + (long long)chunk[i] * y_stride + slice_starts[s] + c;
                const float scale = scales[entry] * adapter_weights[chunk[i]];
                *cell = scaled_add((float)*cell, sum[i] + bias, scale, gain, c, d_out, round_delta);
            }
        }
    }
}
