// Lab B: Ax[t][j] = A[a][j] . x[t], where a = adapter_ids[t]; the row Ax[t] is left as it is where a is -1.
//
//   Ax           [tokens, rank]           written by you
//   x            [tokens, d_in]
//   A            [adapters, rank, d_in]   adapter a begins at A + a * rank * d_in
//   adapter_ids  [tokens]                 -1: this token has no adapter
//
// Three kernels, three ways to share the work. `loracle learn check lab_b` tries them in this order.

// Step 1, map: one thread for each number of Ax.
// grid (tokens, rank / 32 rounded up), block 32
extern "C" __global__ void shrink_map(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    // your turn
}

// Step 2, a block for each number of Ax: its 64 threads share the row, and add up in shared memory.
// grid (tokens, rank), block 64
extern "C" __global__ void shrink_block(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    // your turn
}

// Step 3, a warp for each number of Ax: its 32 lanes share the row, and add up by shuffles. No shared memory, no barrier.
// grid (tokens, rank / 4 rounded up), block 128: four warps, four rows of A
extern "C" __global__ void shrink_warp(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    // your turn
}
