// Semantics: y[t] += weight * scale * B (A x[t])      as in lora.cu, for runs of tokens that share an adapter
//
// version             who computes what                           what it buys
// v3  sgmv_shrink_v3  as sgmv_shrink_v2, but a warp multiplies    16 x 16 x 16 multiplications an instruction. What is
//                     tiles instead of a thread numbers           left is waiting for x: K is split over 4 warps, too
//     sgmv_expand_v3  as sgmv_expand_v2, likewise                 the same, at a price: Ax must be rounded to T
//
// Tensor cores take fp16 (from sm_70) and bf16 (from sm_80), and sum in float. There is no float32 build of this file.
#include "lora.cuh"

#include <mma.h>
using namespace nvcuda;

// A warp multiplies two 16 x 16 tiles of T and adds the result to a 16 x 16 tile of floats, in one instruction. Which
// lane holds which number is the hardware's own business, so tiles come from shared memory, where rows are complete:
// tokens, ranks and columns that are not there are zeros.
typedef wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> Left;
typedef wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::col_major> Right;  // col_major: the transpose of rows
typedef wmma::fragment<wmma::accumulator, 16, 16, 16, float> Sum;

#define STEP 256  // columns of x and A in shared memory at a time: each thread has 8 loads of 16 bytes under way
#define SKEW 8  // T a row: keeps rows 16-byte aligned, and moves each to other banks than the one above

// The numbers k to k + width of `height` rows of a matrix, as they are; zeros where there are none.
__device__ inline void stage_as_is(T* tile, int tile_stride, int height, int width, const T* matrix, const int* rows,
                                   int count, int matrix_width, int k, int to) {
    for (int i = threadIdx.x; i < height * (width / VEC); i += blockDim.x) {
        const int row = i / (width / VEC), at = i % (width / VEC) * VEC;
        const T* p = matrix + (long long)(rows && row < count ? rows[row] : row) * matrix_width + k + at;
        T* cell = tile + row * tile_stride + at;
        if (row < count && k + at + VEC <= to && is_aligned(p)) {
            *(Vec*)cell = *(const Vec*)p;
        } else {
            for (int e = 0; e < VEC; e++) cell[e] = row < count && k + at + e < to ? p[e] : (T)0.0f;
        }
    }
}

// grid (chunks, Ax_stride / 16, slices * splits), block 128: each warp takes a quarter of every step of K
extern "C" __global__ void sgmv_shrink_v3(float* Ax, const DTYPE* x, const DTYPE* weights, const long long* offsets,
                                          const int* ranks, const int* adapter_ids, const int* rows,
                                          const int* chunk_starts, int tokens, int adapters, int d_in, int Ax_stride,
                                          int splits) {
    const int s = blockIdx.z / splits, split = blockIdx.z % splits, warp = threadIdx.x / 32;
    const int* chunk = rows + chunk_starts[blockIdx.x];
    const int count = chunk_starts[blockIdx.x + 1] - chunk_starts[blockIdx.x];
    const Lora lora = lora_at(weights, offsets, ranks, s * adapters + adapter_ids[chunk[0]]);
    const int first = blockIdx.y * TILE;
    if (first >= lora.rank) return;  // the whole block

    __shared__ __align__(32) T x_tile[TILE][STEP + SKEW], a_tile[TILE][STEP + SKEW];
    __shared__ __align__(32) float sums[4][TILE][TILE];
    Sum sum;
    wmma::fill_fragment(sum, 0.0f);
    const int from = split_start(split, splits, d_in), to = split_start(split + 1, splits, d_in);
    for (int k = from; k < to; k += STEP) {
        stage_as_is(&x_tile[0][0], STEP + SKEW, TILE, STEP, x, chunk, count, d_in, k, to);
        stage_as_is(&a_tile[0][0], STEP + SKEW, TILE, STEP, lora.A + (long long)first * d_in, nullptr,
                    lora.rank - first, d_in, k, to);
        __syncthreads();  // the tiles are complete
        for (int at = 16 * warp; at < STEP; at += 16 * 4) {
            Left left;
            Right right;
            wmma::load_matrix_sync(left, &x_tile[0][at], STEP + SKEW);
            wmma::load_matrix_sync(right, &a_tile[0][at], STEP + SKEW);
            wmma::mma_sync(sum, left, right, sum);
        }
        __syncthreads();  // everyone has read them: they may be overwritten
    }
    wmma::store_matrix_sync(&sums[warp][0][0], sum, TILE, wmma::mem_row_major);
    __syncthreads();
    const long long slices = gridDim.z / splits;
    for (int cell = threadIdx.x; cell < TILE * TILE; cell += 128) {
        const int i = cell / TILE, j = cell % TILE;
        if (i < count && first + j < lora.rank)
            Ax[((split * slices + s) * tokens + chunk[i]) * Ax_stride + first + j] =
                sums[0][i][j] + sums[1][i][j] + sums[2][i][j] + sums[3][i][j];
    }
}

#define COLUMNS 64  // of a block at a time, 16 for each warp

// Ax is rounded to T here whatever a flag would say: tensor cores multiply T by T. Where the rank-r intermediate is to
// stay float, v2 is the one to use.
// grid (chunks, at most widest slice / 64, slices), block 128: 64 columns, then those gridDim.y * 64 further on
// shared memory: (16 + 64) * (rank up to a multiple of 16, + 8) numbers of type T
extern "C" __global__ void sgmv_expand_v3(DTYPE* y, const float* Ax, const DTYPE* weights, const long long* offsets,
                                          const int* ranks, const float* scales, const float* gains,
                                          const long long* gain_starts, const int* adapter_ids,
                                          const float* adapter_weights, const int* slice_starts, const int* rows,
                                          const int* chunk_starts, int tokens, int adapters, int y_stride,
                                          int Ax_stride, int splits, int round_delta) {
    const int s = blockIdx.z, slices = gridDim.z, warp = threadIdx.x / 32;
    const int d_out = slice_starts[s + 1] - slice_starts[s];
    if (blockIdx.y * COLUMNS >= d_out) return;  // the whole block
    const int* chunk = rows + chunk_starts[blockIdx.x];
    const int count = chunk_starts[blockIdx.x + 1] - chunk_starts[blockIdx.x];
    const int entry = s * adapters + adapter_ids[chunk[0]];
    const Lora lora = lora_at(weights, offsets, ranks, entry);
    const int rank = lora.rank;
    if (rank == 0) return;

    extern __shared__ __align__(32) unsigned char smem_raw[];
    const int width = ceil_div(rank, 16) * 16, stride = width + SKEW;
    T* v = (T*)smem_raw;            // [16, stride]: Ax of each token
    T* b_tile = v + TILE * stride;  // [64, stride]: 64 rows of B
    __shared__ __align__(32) float sums[TILE][COLUMNS];
    const long long split_stride = (long long)slices * tokens * Ax_stride;
    for (int i = threadIdx.x; i < TILE * width; i += 128) {
        const int row = i / width, j = i % width;
        const bool there = row < count && j < rank;
        const long long at = ((long long)s * tokens + chunk[there ? row : 0]) * Ax_stride + j;
        v[row * stride + j] = (T)(there ? sum_splits(Ax, at, split_stride, splits, 0) : 0.0f);
    }

    const int i = threadIdx.x / (COLUMNS / VEC), token = chunk[i < count ? i : 0];  // of 16 tokens, whose VEC columns
    const float scale = scales[entry] * adapter_weights[token];                     // of y this thread will write
    const float* gain = gain_at(gains, gain_starts, entry);
    for (int first = blockIdx.y * COLUMNS; first < d_out; first += gridDim.y * COLUMNS) {
        const int c = first + threadIdx.x % (COLUMNS / VEC) * VEC, columns = i < count ? d_out - c : 0;
        T* cell = y + (long long)token * y_stride + slice_starts[s] + c;
        float old[VEC];
        load(old, cell, columns);  // on its way while the tiles are multiplied
        stage_as_is(b_tile, stride, COLUMNS, width, lora.B + (long long)first * rank, nullptr, d_out - first, rank, 0,
                    rank);
        __syncthreads();  // the tiles are complete, and everyone has read the sums of the columns before

        Sum sum;
        wmma::fill_fragment(sum, 0.0f);
        for (int k = 0; k < width; k += 16) {
            Left left;
            Right right;
            wmma::load_matrix_sync(left, v + k, stride);
            wmma::load_matrix_sync(right, b_tile + 16 * warp * stride + k, stride);
            wmma::mma_sync(sum, left, right, sum);
        }
        wmma::store_matrix_sync(&sums[0][16 * warp], sum, COLUMNS, wmma::mem_row_major);
        __syncthreads();  // the sums are complete, and everyone has read b_tile: it may be overwritten

        Vec out;
        for (int e = 0; e < VEC && e < columns; e++) {
            const float bias = lora.bias ? (float)lora.bias[c + e] : 0.0f;
            out.e[e] = scaled_add(old[e], sums[i][c - first + e] + bias, scale, gain, c + e, d_out, round_delta);
        }
        if (columns >= VEC && is_aligned(cell)) {
            *(Vec*)cell = out;
        } else {
            for (int e = 0; e < VEC && e < columns; e++) cell[e] = out.e[e];
        }
    }
}
