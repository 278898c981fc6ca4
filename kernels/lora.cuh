// What the kernels of lora.cu and lora_tensor_cores.cu share.
//
// Where things lie
//   weights      every A [rank, d_in], B [d_out, rank] and bias [d_out] of every adapter, in one buffer
//   offsets      [slices, adapters, 3]: where A, B and the bias begin in it; -1: no bias
//   ranks        [slices, adapters]: each adapter has its own rank, nothing is padded; 0: it leaves this slice alone
//   scales       [slices, adapters]: alpha / r
//   gains, gain_starts   for DoRA: gain_starts [slices, adapters] says where in gains an adapter's part of a slice begins,
//                -1: it is none. There lie its gain [d_out] and, after it, the base's bias [d_out], as floats
//   adapter_ids  [tokens]: -1 is a token without an adapter, and its row of y is not touched
//   adapter_weights [tokens]: what the request multiplied its adapter by
//   Ax          [splits, slices, tokens, Ax_stride] float: the parts of A x[t], one per split of K. Expand adds the
//                parts up in order. An atomicAdd would need no room for them, but somebody would have to write zeros
//                first, and the last bits of the sum would change from run to run with the order in which blocks end.
//   slices       layers that read the same x and lie side by side in y (q, k, v; or gate, up), all in one launch:
//                slice s owns the columns slice_starts[s] to slice_starts[s + 1] of y
//   rows, chunk_starts   for SGMV: the tokens sorted by adapter, cut into chunks of at most 16 that share one
#pragma once
#include "common.cuh"

#define MAX_RANK 256
#define TILE 16  // tokens of a chunk, and ranks of a block

// One adapter's part in one slice.
struct Lora {
    const T *A, *B, *bias;
    int rank;
};

__device__ inline Lora lora_at(const T* weights, const long long* offsets, const int* ranks, int entry) {
    const long long* at = offsets + 3LL * entry;
    return {weights + at[0], weights + at[1], at[2] < 0 ? nullptr : weights + at[2], ranks[entry]};
}

// Ax[t][j]: the sum of its parts, rounded to T if the flag is set.
__device__ inline float sum_splits(const float* Ax, long long at, long long split_stride, int splits, int round_rank) {
    float sum = Ax[at];
    for (int split = 1; split < splits; split++) sum += Ax[at + split * split_stride];
    return rounded(sum, round_rank);
}

// What DoRA does with the columns of a slice (refimpl/dora.py): gain[c], and gain[d_out + c], the base's bias, which is
// in y already and is not stretched. Null for plain LoRA.
__device__ inline const float* gain_at(const float* gains, const long long* gain_starts, int entry) {
    return gain_starts && gain_starts[entry] >= 0 ? gains + gain_starts[entry] : nullptr;
}

// The last line of every expand: column c of d_out.
__device__ inline T scaled_add(float y, float delta, float scale, const float* gain, int c, int d_out,
                               int round_delta) {
    delta *= scale;
    if (gain) delta = gain[c] * delta + (gain[c] - 1) * (float)(T)(y - gain[d_out + c]);
    return (T)(y + rounded(delta, round_delta));
}

// Where split number `split` of K = d_in begins. A multiple of VEC, so that an aligned row stays aligned.
__device__ inline int split_start(int split, int splits, int d_in) {
    return min(d_in, split * (ceil_div(ceil_div(d_in, splits), VEC) * VEC));
}
