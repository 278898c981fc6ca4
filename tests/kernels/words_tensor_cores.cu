// 2 (a b + 1) by tensor cores, in each of their shapes and layouts. test_runner.py says what that must be.
#include <mma.h>

#include "common.cuh"

template <int m, int n, int k>
__device__ void multiply(float *out, const DTYPE *a, const DTYPE *b, int by_columns) {
    using namespace nvcuda::wmma;
    __shared__ __align__(32) DTYPE a_tile[512], b_tile[512];
    __shared__ __align__(32) float sums[256];
    for (int i = threadIdx.x; i < m * k; i += 32) a_tile[i] = a[i];
    for (int i = threadIdx.x; i < n * k; i += 32) b_tile[i] = b[i];
    __syncwarp();
    fragment<accumulator, m, n, k, float> sum;
    fill_fragment(sum, 1.0f);
    if (by_columns) {  // the arrays hold the transposes
        fragment<matrix_a, m, n, k, DTYPE, col_major> left;
        fragment<matrix_b, m, n, k, DTYPE, col_major> right;
        load_matrix_sync(left, a_tile, m);
        load_matrix_sync(right, b_tile, k);
        mma_sync(sum, left, right, sum);
        for (int e = 0; e < sum.num_elements; e++) sum.x[e] *= 2;
        store_matrix_sync(sums, sum, m, mem_col_major);
    } else {
        fragment<matrix_a, m, n, k, DTYPE, row_major> left;
        fragment<matrix_b, m, n, k, DTYPE, row_major> right;
        load_matrix_sync(left, a_tile, k);
        load_matrix_sync(right, b_tile, n);
        mma_sync(sum, left, right, sum);
        for (int e = 0; e < sum.num_elements; e++) sum.x[e] *= 2;
        store_matrix_sync(sums, sum, n, mem_row_major);
    }
    __syncwarp();
    for (int i = threadIdx.x; i < m * n; i += 32) out[i] = sums[i];
}
extern "C" __global__ void multiply_16_16(float *out, const DTYPE *a, const DTYPE *b, int by_columns) {
    multiply<16, 16, 16>(out, a, b, by_columns);
}
extern "C" __global__ void multiply_32_8(float *out, const DTYPE *a, const DTYPE *b, int by_columns) {
    multiply<32, 8, 16>(out, a, b, by_columns);
}
extern "C" __global__ void multiply_8_32(float *out, const DTYPE *a, const DTYPE *b, int by_columns) {
    multiply<8, 32, 16>(out, a, b, by_columns);
}
