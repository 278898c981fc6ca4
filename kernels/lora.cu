// Semantics: y[t] += weight * scale * B (A x[t])      for each adapter that token t's request asked for
//
// That is the line above refimpl/lora.py, and lora_delta_per_token there is the same thing in ten lines of Python.
// It takes two launches: *shrink* makes Ax[t] = A x[t] (d_in -> rank), *expand* adds scale * B Ax[t] (rank -> d_out).
//
// version             who computes what                           what it buys
// v1  lora_shrink_v1  one thread per number of Ax                nothing but clarity
//     lora_expand_v1  one thread per number of y
// v2  bgmv_shrink_v2  one warp per number of Ax, 16-byte loads,  every byte of A comes in a wide, coalesced load;
//                     K split over blocks                         one token alone still fills the GPU
//     bgmv_expand_v2  one block per 128 columns of one token;     rows of B are as short as the rank: the lanes of a
//                     just enough lanes share a row of B          warp read several of them at once
// v2  sgmv_shrink_v2  one block per 16 tokens of one adapter and  A is read once per 16 tokens, not once per token
//                     16 ranks; both through shared memory
//     sgmv_expand_v2  one thread per column, 16 tokens at once    B is read once per 16 tokens, not once per token
// v3  (lora_tensor_cores.cu)  as SGMV v2, the products by wmma    16 x 16 x 16 multiplications an instruction
//
// BGMV (decode: every token has its own adapter) and SGMV (prefill: runs of tokens share one) are Punica's words (Chen
// et al. 2023). refimpl/cuda/launch/lora.py (choose) picks by (tokens, adapters, rank). Where things lie: lora.cuh.
#include "lora.cuh"

// ---- v1: one thread per output ----------------------------------------------------------------------------------

// grid (tokens, Ax_stride / 32, slices), block 32
extern "C" __global__ void lora_shrink_v1(float* Ax, const DTYPE* x, const DTYPE* weights, const long long* offsets,
                                          const int* ranks, const int* adapter_ids, int tokens, int adapters, int d_in,
                                          int Ax_stride) {
    const int t = blockIdx.x, s = blockIdx.z, j = blockIdx.y * blockDim.x + threadIdx.x;
    const int a = adapter_ids[t];
    if (a < 0) return;
    const Lora lora = lora_at(weights, offsets, ranks, s * adapters + a);
    if (j >= lora.rank) return;
    float sum = 0;
    for (int k = 0; k < d_in; k++) sum += (float)lora.A[(long long)j * d_in + k] * (float)x[(long long)t * d_in + k];
    Ax[((long long)s * tokens + t) * Ax_stride + j] = sum;
}

// The same where x is a token id, which stands for a one-hot row: A x is a column of A.
// grid (tokens, Ax_stride / 32, slices), block 32
extern "C" __global__ void lora_lookup(float* Ax, const int* token_ids, const DTYPE* weights, const long long* offsets,
                                       const int* ranks, const int* adapter_ids, int tokens, int adapters, int d_in,
                                       int Ax_stride) {
    const int t = blockIdx.x, s = blockIdx.z, j = blockIdx.y * blockDim.x + threadIdx.x;
    const int a = adapter_ids[t];
    if (a < 0) return;
    const Lora lora = lora_at(weights, offsets, ranks, s * adapters + a);
    if (j >= lora.rank) return;
    Ax[((long long)s * tokens + t) * Ax_stride + j] = (float)lora.A[(long long)j * d_in + token_ids[t]];
}

// grid (tokens, widest slice / 128, slices), block 128
extern "C" __global__ void lora_expand_v1(DTYPE* y, const float* Ax, const DTYPE* weights, const long long* offsets,
                                          const int* ranks, const float* scales, const float* gains,
                                          const long long* gain_starts, const int* adapter_ids,
                                          const float* adapter_weights, const int* slice_starts, int tokens,
                                          int adapters, int y_stride, int Ax_stride, int splits, int round_rank,
                                          int round_delta) {
    const int t = blockIdx.x, s = blockIdx.z, slices = gridDim.z;
    const int c = blockIdx.y * blockDim.x + threadIdx.x, d_out = slice_starts[s + 1] - slice_starts[s];
    const int a = adapter_ids[t];
    if (a < 0 || c >= d_out) return;
    const Lora lora = lora_at(weights, offsets, ranks, s * adapters + a);
    if (lora.rank == 0) return;
    const long long row = ((long long)s * tokens + t) * Ax_stride;
    const long long split_stride = (long long)slices * tokens * Ax_stride;
    float sum = 0;
    for (int j = 0; j < lora.rank; j++)
        sum += (float)lora.B[(long long)c * lora.rank + j] * sum_splits(Ax, row + j, split_stride, splits, round_rank);
    if (lora.bias) sum += (float)lora.bias[c];
    T* cell = y + (long long)t * y_stride + slice_starts[s] + c;
    *cell = scaled_add((float)*cell, sum, scales[s * adapters + a] * adapter_weights[t],
                       gain_at(gains, gain_starts, s * adapters + a), c, d_out, round_delta);
}

// ---- v2, BGMV: every token its own adapter ----------------------------------------------------------------------

// The share of one lane in the sum of a[k] * b[k] over from <= k < to. 16 bytes at a time where both are aligned: then
// 32 lanes read 512 bytes that lie together. The rest, or all of it, one by one.
__device__ inline float lane_dot(const T* a, const T* b, int from, int to, int lane) {
    float sum = 0;
    int done = from;
    if (is_aligned(a + from) && is_aligned(b + from)) {
        done = from + (to - from) / VEC * VEC;
        for (int k = from + lane * VEC; k < done; k += 32 * VEC) {
            const Vec u = *(const Vec*)(a + k), v = *(const Vec*)(b + k);
            for (int e = 0; e < VEC; e++) sum += (float)u.e[e] * (float)v.e[e];
        }
    }
    for (int k = done + lane; k < to; k += 32) sum += (float)a[k] * (float)b[k];
    return sum;
}

// grid (tokens, Ax_stride / 4, slices * splits), block 128: four warps, four rows of A
extern "C" __global__ void bgmv_shrink_v2(float* Ax, const DTYPE* x, const DTYPE* weights, const long long* offsets,
                                          const int* ranks, const int* adapter_ids, int tokens, int adapters, int d_in,
                                          int Ax_stride, int splits) {
    const int t = blockIdx.x, s = blockIdx.z / splits, split = blockIdx.z % splits;
    const int j = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    const int a = adapter_ids[t];
    if (a < 0) return;
    const Lora lora = lora_at(weights, offsets, ranks, s * adapters + a);
    if (j >= lora.rank) return;  // a whole warp leaves, and no barrier waits for it
    const int from = split_start(split, splits, d_in), to = split_start(split + 1, splits, d_in);
    const float sum = warp_sum(lane_dot(lora.A + (long long)j * d_in, x + (long long)t * d_in, from, to, lane));
    const long long slices = gridDim.z / splits;
    if (lane == 0) Ax[((split * slices + s) * tokens + t) * Ax_stride + j] = sum;
}

// grid (tokens, at most widest slice / 128, slices), block 128: 128 columns, then those gridDim.y * 128 further on, so
// that with many tokens a block reads its plan and its Ax once for several of them
extern "C" __global__ void bgmv_expand_v2(DTYPE* y, const float* Ax, const DTYPE* weights, const long long* offsets,
                                          const int* ranks, const float* scales, const float* gains,
                                          const long long* gain_starts, const int* adapter_ids,
                                          const float* adapter_weights, const int* slice_starts, int tokens,
                                          int adapters, int y_stride, int Ax_stride, int splits, int round_rank,
                                          int round_delta) {
    const int t = blockIdx.x, s = blockIdx.z, slices = gridDim.z;
    const int d_out = slice_starts[s + 1] - slice_starts[s];
    const int a = adapter_ids[t];
    if (a < 0 || blockIdx.y * 128 >= d_out) return;  // the whole block
    const Lora lora = lora_at(weights, offsets, ranks, s * adapters + a);
    const int rank = lora.rank;
    if (rank == 0) return;

    __shared__ float v[MAX_RANK];  // Ax[t], and zeros up to a whole vector: they meet the zeros of a row's end
    const long long row = ((long long)s * tokens + t) * Ax_stride;
    const long long split_stride = (long long)slices * tokens * Ax_stride;
    for (int j = threadIdx.x; j < ceil_div(rank, VEC) * VEC; j += 128)
        v[j] = j < rank ? sum_splits(Ax, row + j, split_stride, splits, round_rank) : 0.0f;
    __syncthreads();

    int lanes = 1;  // that share one row of B, 16 bytes each: rank 16 in fp16 takes 2, rank 64 takes 8
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
                    load(b, lora.B + (long long)c * rank + j, rank - j);
                    for (int e = 0; e < VEC; e++) sum += b[e] * v[j + e];
                }
            }
            sum = lanes_sum(sum, lanes);
            if (c < d_out && lane == 0) {
                if (lora.bias) sum += (float)lora.bias[c];
                T* cell = y + (long long)t * y_stride + slice_starts[s] + c;
                *cell = scaled_add((float)*cell, sum, scale, gain, c, d_out, round_delta);
            }
        }
    }
}

// ---- v2, SGMV: chunks of up to 16 tokens that share an adapter --------------------------------------------------

#define STEP 64  // columns of x and A that are in shared memory at a time
#define PAD 1    // one more number a row: else the 16 rows of A that a warp reads at once would all lie in one bank

// The numbers k to k + STEP of up to 16 rows of a matrix, as floats in shared memory; zeros where there are none.
// `rows` says which rows (null: the first ones).
__device__ inline void stage(float (*tile)[STEP + PAD], const T* matrix, const int* rows, int count, int width, int k,
                             int to) {
    for (int i = threadIdx.x; i < TILE * STEP / VEC; i += blockDim.x) {
        const int row = i / (STEP / VEC), at = i % (STEP / VEC) * VEC;
        float v[VEC] = {};
        if (row < count && k + at < to)
            load(v, matrix + (long long)(rows ? rows[row] : row) * width + k + at, to - k - at);
        for (int e = 0; e < VEC; e++) tile[row][at + e] = v[e];
    }
}

// grid (chunks, Ax_stride / 16, slices * splits), block 256: one thread per (token, rank) of the tile
extern "C" __global__ void sgmv_shrink_v2(float* Ax, const DTYPE* x, const DTYPE* weights, const long long* offsets,
                                          const int* ranks, const int* adapter_ids, const int* rows,
                                          const int* chunk_starts, int tokens, int adapters, int d_in, int Ax_stride,
                                          int splits) {
    const int s = blockIdx.z / splits, split = blockIdx.z % splits;
    const int* chunk = rows + chunk_starts[blockIdx.x];
    const int count = chunk_starts[blockIdx.x + 1] - chunk_starts[blockIdx.x];
    const Lora lora = lora_at(weights, offsets, ranks, s * adapters + adapter_ids[chunk[0]]);
    const int first = blockIdx.y * TILE;
    if (first >= lora.rank) return;  // the whole block
    const int i = threadIdx.x / TILE, j = threadIdx.x % TILE;

    __shared__ float x_tile[TILE][STEP + PAD], a_tile[TILE][STEP + PAD];
    const int from = split_start(split, splits, d_in), to = split_start(split + 1, splits, d_in);
    float sum = 0;
    for (int k = from; k < to; k += STEP) {
        stage(x_tile, x, chunk, count, d_in, k, to);
        stage(a_tile, lora.A + (long long)first * d_in, nullptr, lora.rank - first, d_in, k, to);
        __syncthreads();  // the tiles are complete
        for (int e = 0; e < STEP; e++) sum += x_tile[i][e] * a_tile[j][e];
        __syncthreads();  // everyone has read them: they may be overwritten
    }
    const long long slices = gridDim.z / splits;
    if (i < count && first + j < lora.rank)
        Ax[((split * slices + s) * tokens + chunk[i]) * Ax_stride + first + j] = sum;
}

// grid (chunks, at most widest slice / 128, slices), block 128: one thread per column, and those gridDim.y * 128 on
extern "C" __global__ void sgmv_expand_v2(DTYPE* y, const float* Ax, const DTYPE* weights, const long long* offsets,
                                          const int* ranks, const float* scales, const float* gains,
                                          const long long* gain_starts, const int* adapter_ids,
                                          const float* adapter_weights, const int* slice_starts, const int* rows,
                                          const int* chunk_starts, int tokens, int adapters, int y_stride,
                                          int Ax_stride, int splits, int round_rank, int round_delta) {
    const int s = blockIdx.z, slices = gridDim.z, d_out = slice_starts[s + 1] - slice_starts[s];
    if (blockIdx.y * 128 >= d_out) return;  // the whole block
    const int* chunk = rows + chunk_starts[blockIdx.x];
    const int count = chunk_starts[blockIdx.x + 1] - chunk_starts[blockIdx.x];
    const int entry = s * adapters + adapter_ids[chunk[0]];
    const Lora lora = lora_at(weights, offsets, ranks, entry);
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
            load(b, lora.B + (long long)c * rank + j, rank - j);
            for (int e = 0; e < VEC; e++)
                for (int i = 0; i < TILE; i++) sum[i] += b[e] * v[i][j + e];  // the same v for all: a broadcast
        }
        const float bias = lora.bias ? (float)lora.bias[c] : 0.0f;
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
