// The steps between the large products, so that a decode step stays on the device. Each is one launch and one idea;
// the formulas are those of refimpl/layers.py. All of them move more bytes than they compute on: one pass, no more.
#include "common.cuh"

// Semantics: y[t] = table[token_ids[t]]
// grid (tokens, d_model / 128), block 128
extern "C" __global__ void embed(DTYPE* y, const DTYPE* table, const int* token_ids, int d_model) {
    const int t = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i < d_model) y[(long long)t * d_model + i] = table[(long long)token_ids[t] * d_model + i];
}

// Semantics: y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight
// grid (tokens), block 128: all threads of a block sum the squares of one row. The weight is float whatever T is: it
// is read once per token, from cache, and is exact so.
extern "C" __global__ void rms_norm(DTYPE* y, const DTYPE* x, const float* weight, int d_model, float eps,
                                    int round_inner) {
    const long long row = (long long)blockIdx.x * d_model;
    float sum = 0;
    for (int i = threadIdx.x; i < d_model; i += 128) sum += (float)x[row + i] * (float)x[row + i];
    sum = warp_sum(sum);  // five shuffles, no barrier

    __shared__ float of_warp[4];
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    const float mean = (of_warp[0] + of_warp[1] + of_warp[2] + of_warp[3]) / d_model, rms = sqrtf(mean + eps);
    for (int i = threadIdx.x; i < d_model; i += 128)
        y[row + i] = (T)(rounded((float)x[row + i] / rms, round_inner) * weight[i]);
}

// Semantics: y[i] = x[i] cos[i] - x[i + half] sin[i],  y[i + half] = x[i + half] cos[i] + x[i] sin[i]
// with half = head_dim / 2: the half-split layout of Hugging Face checkpoints
// grid (tokens, heads * half / 128), block 128: one thread per pair
extern "C" __global__ void rope(DTYPE* y, const DTYPE* x, const float* cos, const float* sin, int heads, int head_dim,
                                int round_product) {
    const int t = blockIdx.x, pair = blockIdx.y * blockDim.x + threadIdx.x, half = head_dim / 2;
    if (pair >= heads * half) return;
    const int h = pair / half, i = pair % half;
    const long long at = ((long long)t * heads + h) * head_dim + i;
    const float a = (float)x[at], b = (float)x[at + half];
    const float c = cos[(long long)t * half + i], s = sin[(long long)t * half + i];
    y[at] = (T)(rounded(a * c, round_product) - rounded(b * s, round_product));
    y[at + half] = (T)(rounded(b * c, round_product) + rounded(a * s, round_product));
}

// Semantics: y = silu(gate) * up,  silu(g) = g / (1 + e^-g)
// grid (count / 128), block 128
extern "C" __global__ void mlp_activation(DTYPE* y, const DTYPE* gate, const DTYPE* up, int count, int round_inner) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float g = (float)gate[i];
    y[i] = (T)(rounded(g / (1 + expf(-g)), round_inner) * (float)up[i]);
}
