// The steps between the large products, so that a decode step stays on the device. Each is one launch and one idea;
// the formulas are those of refimpl/layers.py. All of them move more bytes than they compute on: one pass, no more.
#include "common.cuh"

// Semantics: y[t] = table[token_ids[t]]
// grid (tokens, d_model / 128), block 128
extern "C" __global__ void embed(DTYPE* y, const DTYPE* table, const int* token_ids, int d_model) {
    const int t = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i < d_model) y[(long long)t * d_model + i] = table[(long long)token_ids[t] * d_model + i];
}

// The sum of one number of each of 128 threads, known to all of them: five shuffles, then four numbers.
__device__ inline float block_sum(float v, float* of_warp) {
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
    __syncthreads();
    return of_warp[0] + of_warp[1] + of_warp[2] + of_warp[3];
}

// Semantics: y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight
// grid (tokens), block 128: all threads of a block sum the squares of one row. The weight is float whatever T is: it
// is read once per token, from cache, and is exact so.
extern "C" __global__ void rms_norm(DTYPE* y, const DTYPE* x, const float* weight, int d_model, float eps,
                                    int round_inner) {
    const long long row = (long long)blockIdx.x * d_model;
    float sum = 0;
    for (int i = threadIdx.x; i < d_model; i += 128) sum += (float)x[row + i] * (float)x[row + i];
    __shared__ float of_warp[4];
    const float rms = sqrtf(block_sum(sum, of_warp) / d_model + eps);
    for (int i = threadIdx.x; i < d_model; i += 128)
        y[row + i] = (T)(rounded((float)x[row + i] / rms, round_inner) * weight[i]);
}

// Semantics: y[t] = (x[t] - mean) / sqrt(mean((x[t] - mean)^2) + eps) * weight + bias; without a bias it is null
// grid (tokens), block 128: two sums over one row, since the squares of what is left after the mean are what is wanted;
// E(x^2) - mean^2 would lose them where a row lies far from 0.
extern "C" __global__ void layer_norm(DTYPE* y, const DTYPE* x, const float* weight, const float* bias, int d_model,
                                      float eps, int round_inner) {
    const long long row = (long long)blockIdx.x * d_model;
    __shared__ float of_warp[2][4];  // one row for each sum: nobody waits until the first has been read
    float mean = 0, variance = 0;
    for (int i = threadIdx.x; i < d_model; i += 128) mean += (float)x[row + i];
    mean = block_sum(mean, of_warp[0]) / d_model;
    for (int i = threadIdx.x; i < d_model; i += 128) {
        const float centred = (float)x[row + i] - mean;
        variance += centred * centred;
    }
    variance = block_sum(variance, of_warp[1]) / d_model;
    const float deviation = sqrtf(variance + eps);
    for (int i = threadIdx.x; i < d_model; i += 128) {
        const float normed = rounded(((float)x[row + i] - mean) / deviation, round_inner) * weight[i];
        y[row + i] = (T)(bias ? normed + bias[i] : normed);
    }
}

// Semantics: y[i] = x[i] cos[i] - x[j] sin[i],  y[j] = x[j] cos[i] + x[i] sin[i] for each pair (i, j) of a head
// j is i + half, the half-split layout of Hugging Face checkpoints, or (i, j) are (2i, 2i + 1) where interleaved.
// Channels after the `half` pairs pass as they are.
// grid (tokens, heads * ceil(head_dim / 2) / 128), block 128: one thread per two channels
extern "C" __global__ void rope(DTYPE* y, const DTYPE* x, const float* cos, const float* sin, int heads, int head_dim,
                                int half, int interleaved, int round_product) {
    const int twos = ceil_div(head_dim, 2), t = blockIdx.x, two = blockIdx.y * blockDim.x + threadIdx.x;
    if (two >= heads * twos) return;
    const int h = two / twos, i = two % twos;
    const long long head = ((long long)t * heads + h) * head_dim;
    if (i >= half) {
        y[head + 2 * i] = x[head + 2 * i];
        if (2 * i + 1 < head_dim) y[head + 2 * i + 1] = x[head + 2 * i + 1];
        return;
    }
    const long long first = head + (interleaved ? 2 * i : i), second = first + (interleaved ? 1 : half);
    const float a = (float)x[first], b = (float)x[second];
    const float c = cos[(long long)t * half + i], s = sin[(long long)t * half + i];
    y[first] = (T)(rounded(a * c, round_product) - rounded(b * s, round_product));
    y[second] = (T)(rounded(b * c, round_product) + rounded(a * s, round_product));
}

// The activations that mlp_activation has, by their number in refimpl/cuda/launch/layers.py.
__device__ inline float activation(float g, int kind) {
    if (kind == 0) return g / (1 + expf(-g));  // silu
    if (kind == 1) return g < 0 ? 0 : g * g;   // relu2; a NaN stays one
    // gelu_tanh: 0.5 * g * (1 + tanh(sqrt(2 / pi) * (g + 0.044715 g^3)))
    return 0.5f * g * (1 + tanhf(0.79788456080286536f * (g + 0.044715f * g * g * g)));
}

// Semantics: y = act(gate) * up, or act(gate) alone where up is null
// grid (count / 128), block 128
extern "C" __global__ void mlp_activation(DTYPE* y, const DTYPE* gate, const DTYPE* up, int count, int kind,
                                          int round_inner) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float active = rounded(activation((float)gate[i], kind), round_inner);
    y[i] = (T)(up ? active * (float)up[i] : active);
}

// Semantics: y = (u + 1) * g * sigmoid(alpha g),  g = min(gate, limit),  u = up between -limit and limit
// gpt-oss's own, rounded after each operation as modeling_gpt_oss.py is. grid (count / 128), block 128
extern "C" __global__ void clamped_gate(DTYPE* y, const DTYPE* gate, const DTYPE* up, int count, float alpha,
                                        float limit, int round_inner) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float g = (float)gate[i], u = (float)up[i];
    if (g > limit) g = limit;  // a NaN stays one: fminf would make it the limit
    if (u > limit) u = limit;
    if (u < -limit) u = -limit;
    const float sigmoid = rounded(1 / (1 + expf(-rounded(alpha * g, round_inner))), round_inner);
    y[i] = (T)(rounded(u + 1, round_inner) * rounded(g * sigmoid, round_inner));
}
