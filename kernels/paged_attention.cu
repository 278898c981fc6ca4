// Semantics: out[t, h] = softmax(q[t, h] . k[j] / sqrt(head_dim)) v[j]      over the keys j that token t sees
//
// That is attention_per_token in refimpl/attention.py. Key j of a request lies in block block_tables[r, j / block_size]
// at row j % block_size. Prefill, chunked prefill and decode are one thing: a request's tokens are the last of its
// context, and each sees itself and what is before it, or as much of that as the sliding window shows.
//
// version              who computes what                           what it buys
// v1  attention_v1     one block per (token, head), three passes:  nothing but clarity. All scores must fit in shared
//                      the scores and their maximum, the sum of    memory. It is the only one that can round the
//                      exp, the weighted sum of v                  probabilities: it knows their sum before it uses v
// v2  attention_v2     the same block; each of its 4 warps takes   one pass over any length of context, no barrier
//                      every fourth key and keeps up its softmax   until the 4 warps compare notes at the end
//                      online (Milakov & Gimelshein 2018)
// v3  attention_v3     the keys are split over blocks, too; a      in decode one long request fills the GPU, where
//     attention_merge  second launch adds up the parts             tokens x heads alone are few (flash decoding)
//
// GQA: query head h reads key head h / (heads / kv_heads). window 0: none. Values may be narrower than keys (value_dim).
// softcap c > 0: a score becomes c tanh(score / c) (Gemma 2). sinks, where they are not null: a score of each head that
// takes its part of the sum and has no value (gpt-oss).
#include "common.cuh"

#define THREADS 128
#define WARPS (THREADS / 32)
#define MAX_HEAD_DIM 256
#define CHANNELS (MAX_HEAD_DIM / 32)  // channels of one lane: lane, lane + 32, ...

// The keys first <= j < past that one token sees, and where its request's blocks are.
struct Seen {
    int first, past;
    const int* blocks;
};

__device__ inline Seen seen_by(int t, const int* requests, const int* query_start_loc, const int* context_lens,
                               const int* block_tables, int table, int window) {
    const int r = requests[t], position = context_lens[r] - query_start_loc[r + 1] + t;
    return {window > 0 ? max(0, position - window + 1) : 0, position + 1, block_tables + (long long)r * table};
}

// Where the row of key j, key head g, begins in the cache [blocks, block_size, kv_heads, head_dim].
__device__ inline long long cache_row(const int* blocks, int j, int block_size, int kv_heads, int g, int head_dim) {
    const long long slot = (long long)blocks[j / block_size] * block_size + j % block_size;
    return (slot * kv_heads + g) * head_dim;
}

// A dot product as a score: scaled and, with a cap, bent to stay below it; rounded after each operation.
__device__ inline float scored(float dot, float scale, float softcap, int round_scores) {
    const float score = rounded(rounded(dot, round_scores) * scale, round_scores);
    if (softcap == 0) return score;
    return rounded(softcap * rounded(tanhf(rounded(score / softcap, round_scores)), round_scores), round_scores);
}

// The sink of a head; no sink is one that takes nothing.
__device__ inline float sink_of(const float* sinks, int h) { return sinks ? sinks[h] : MINUS_INFINITY; }

// ---- v1: three passes -------------------------------------------------------------------------------------------

// The maximum or the sum of one number per thread, known to all of them: halves of the block meet until one is left.
__device__ inline float block_reduce(float v, float* scratch, bool maximum) {
    scratch[threadIdx.x] = v;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            const float other = scratch[threadIdx.x + half];
            scratch[threadIdx.x] = maximum ? fmaxf(scratch[threadIdx.x], other) : scratch[threadIdx.x] + other;
        }
        __syncthreads();
    }
    const float all = scratch[0];
    __syncthreads();  // everyone has read it: the scratch may be used again
    return all;
}

// grid (tokens, heads), block 128, shared memory: 4 bytes for each key that a token can see
// With sinks a score less the highest is rounded once more, as modeling_gpt_oss.py does: no other version could.
extern "C" __global__ void attention_v1(DTYPE* out, const DTYPE* q, const CACHE_DTYPE* k_cache,
                                        const CACHE_DTYPE* v_cache, const int* requests, const int* query_start_loc,
                                        const int* context_lens, const int* block_tables, int table, int block_size,
                                        int heads, int kv_heads, int head_dim, int value_dim, int window,
                                        float scale, float softcap, const float* sinks, int round_scores,
                                        int round_probabilities) {
    const int t = blockIdx.x, h = blockIdx.y, g = h / (heads / kv_heads);
    const Seen seen = seen_by(t, requests, query_start_loc, context_lens, block_tables, table, window);
    const T* query = q + ((long long)t * heads + h) * head_dim;
    extern __shared__ __align__(16) unsigned char smem_raw[];
    float* scores = (float*)smem_raw;
    __shared__ float scratch[THREADS];

    float highest = MINUS_INFINITY;
    for (int j = seen.first + threadIdx.x; j < seen.past; j += THREADS) {
        const Cache* key = k_cache + cache_row(seen.blocks, j, block_size, kv_heads, g, head_dim);
        float dot = 0;
        for (int c = 0; c < head_dim; c++) dot += (float)query[c] * (float)key[c];
        const float score = scored(dot, scale, softcap, round_scores);
        scores[j - seen.first] = score;
        highest = fmaxf(highest, score);
    }
    highest = fmaxf(block_reduce(highest, scratch, true), sink_of(sinks, h));

    float total = 0;
    for (int j = seen.first + threadIdx.x; j < seen.past; j += THREADS) {
        const float e = expf(rounded(scores[j - seen.first] - highest, sinks && round_scores));
        scores[j - seen.first] = e;
        total += e;
    }
    total = block_reduce(total, scratch, false);  // its barriers also publish the scores to all threads
    if (sinks) total += expf(rounded(sinks[h] - highest, round_scores));

    for (int c = threadIdx.x; c < value_dim; c += THREADS) {
        float sum = 0;
        for (int j = seen.first; j < seen.past; j++) {
            const float p = rounded(scores[j - seen.first] / total, round_probabilities);
            sum += p * (float)v_cache[cache_row(seen.blocks, j, block_size, kv_heads, g, value_dim) + c];
        }
        out[((long long)t * heads + h) * value_dim + c] = (T)sum;
    }
}

// ---- v2: softmax online -----------------------------------------------------------------------------------------

// What is known after some of the keys: their highest score, sum of exp(score - highest), and for each channel the sum
// of exp(score - highest) * v. Two of these make a third: both are scaled to the higher maximum and added.
struct Softmax {
    float highest, total;
};

// 0 for keys that are not there: their maximum is -inf, and so may the common one be.
__device__ inline float rescale(float highest, float common) {
    return highest == MINUS_INFINITY ? 0.0f : expf(highest - common);
}

// One block goes through the keys from <= j < to of one head. Thread i ends with the sums of channels i and i + 128.
__device__ inline Softmax attend_range(float* sums, const T* query, const Cache* k_cache, const Cache* v_cache,
                                       const int* blocks, int from, int to, int block_size, int kv_heads, int g,
                                       int head_dim, int value_dim, float scale, float softcap, int round_scores) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float q[CHANNELS], acc[CHANNELS];
#pragma unroll
    for (int i = 0; i < CHANNELS; i++) {
        const int c = lane + 32 * i;
        q[i] = c < head_dim ? (float)query[c] : 0.0f;
        acc[i] = 0;
    }
    float highest = MINUS_INFINITY, total = 0;
    for (int j = from + warp; j < to; j += WARPS) {
        const Cache* key = k_cache + cache_row(blocks, j, block_size, kv_heads, g, head_dim);
        const Cache* value = v_cache + cache_row(blocks, j, block_size, kv_heads, g, value_dim);
        float dot = 0;
#pragma unroll
        for (int i = 0; i < CHANNELS; i++) {
            const int c = lane + 32 * i;
            if (c < head_dim) dot += q[i] * (float)key[c];
        }
        const float score = scored(warp_sum(dot), scale, softcap, round_scores);
        const float higher = fmaxf(highest, score);
        const float old = rescale(highest, higher), e = expf(score - higher);
        total = total * old + e;
#pragma unroll
        for (int i = 0; i < CHANNELS; i++) {
            const int c = lane + 32 * i;
            if (c < value_dim) acc[i] = acc[i] * old + e * (float)value[c];
        }
        highest = higher;
    }

    __shared__ float warp_highest[WARPS], warp_total[WARPS], warp_acc[WARPS][MAX_HEAD_DIM];
    if (lane == 0) {
        warp_highest[warp] = highest;
        warp_total[warp] = total;
    }
#pragma unroll
    for (int i = 0; i < CHANNELS; i++)
        if (lane + 32 * i < value_dim) warp_acc[warp][lane + 32 * i] = acc[i];
    __syncthreads();

    Softmax all = {MINUS_INFINITY, 0};
    for (int w = 0; w < WARPS; w++) all.highest = fmaxf(all.highest, warp_highest[w]);
    for (int i = 0; i < MAX_HEAD_DIM / THREADS; i++) sums[i] = 0;
    for (int w = 0; w < WARPS; w++) {
        const float part = rescale(warp_highest[w], all.highest);
        all.total += part * warp_total[w];
        for (int i = 0; i < MAX_HEAD_DIM / THREADS; i++) {
            const int c = threadIdx.x + THREADS * i;
            if (c < value_dim) sums[i] += part * warp_acc[w][c];
        }
    }
    return all;
}

// grid (tokens, heads), block 128
extern "C" __global__ void attention_v2(DTYPE* out, const DTYPE* q, const CACHE_DTYPE* k_cache,
                                        const CACHE_DTYPE* v_cache, const int* requests, const int* query_start_loc,
                                        const int* context_lens, const int* block_tables, int table, int block_size,
                                        int heads, int kv_heads, int head_dim, int value_dim, int window,
                                        float scale, float softcap, const float* sinks, int round_scores) {
    const int t = blockIdx.x, h = blockIdx.y;
    const Seen seen = seen_by(t, requests, query_start_loc, context_lens, block_tables, table, window);
    const long long row = (long long)t * heads + h;
    float sums[MAX_HEAD_DIM / THREADS];
    const Softmax all = attend_range(sums, q + row * head_dim, k_cache, v_cache, seen.blocks, seen.first, seen.past,
                                     block_size, kv_heads, h / (heads / kv_heads), head_dim, value_dim, scale, softcap,
                                     round_scores);
    const float sink = sink_of(sinks, h), highest = fmaxf(all.highest, sink), keys = rescale(all.highest, highest);
    const float total = all.total * keys + rescale(sink, highest);
    for (int i = 0; i < MAX_HEAD_DIM / THREADS; i++) {
        const int c = threadIdx.x + THREADS * i;
        if (c < value_dim) out[row * value_dim + c] = (T)(sums[i] * keys / total);
    }
}

// ---- v3: split over the sequence --------------------------------------------------------------------------------

// parts [splits, tokens, heads, value_dim + 2]: highest, total, and the sums of one split.
// grid (tokens, heads, splits), block 128
extern "C" __global__ void attention_v3(float* parts, const DTYPE* q, const CACHE_DTYPE* k_cache,
                                        const CACHE_DTYPE* v_cache, const int* requests, const int* query_start_loc,
                                        const int* context_lens, const int* block_tables, int table, int block_size,
                                        int heads, int kv_heads, int head_dim, int value_dim, int window,
                                        float scale, float softcap, int round_scores) {
    const int t = blockIdx.x, h = blockIdx.y, split = blockIdx.z, splits = gridDim.z;
    const Seen seen = seen_by(t, requests, query_start_loc, context_lens, block_tables, table, window);
    const int share = ceil_div(seen.past - seen.first, splits);
    const int from = min(seen.past, seen.first + split * share), to = min(seen.past, from + share);
    float sums[MAX_HEAD_DIM / THREADS];
    const Softmax all = attend_range(sums, q + ((long long)t * heads + h) * head_dim, k_cache, v_cache, seen.blocks,
                                     from, to, block_size, kv_heads, h / (heads / kv_heads), head_dim, value_dim,
                                     scale, softcap, round_scores);
    float* part = parts + (((long long)split * gridDim.x + t) * heads + h) * (value_dim + 2);
    if (threadIdx.x == 0) {
        part[0] = all.highest;
        part[1] = all.total;
    }
    for (int i = 0; i < MAX_HEAD_DIM / THREADS; i++) {
        const int c = threadIdx.x + THREADS * i;
        if (c < value_dim) part[2 + c] = sums[i];
    }
}

// grid (tokens, heads), block 128. A sink is one part more, of one key whose value is 0.
extern "C" __global__ void attention_merge(DTYPE* out, const float* parts, const float* sinks, int heads, int value_dim,
                                           int splits) {
    const long long row = (long long)blockIdx.x * heads + blockIdx.y;
    const long long split_stride = (long long)gridDim.x * heads * (value_dim + 2);
    const float* part = parts + row * (value_dim + 2);
    const float sink = sink_of(sinks, blockIdx.y);
    float highest = sink;
    for (int i = 0; i < splits; i++) highest = fmaxf(highest, part[i * split_stride]);
    float total = rescale(sink, highest);
    for (int i = 0; i < splits; i++)
        total += rescale(part[i * split_stride], highest) * part[i * split_stride + 1];
    for (int c = threadIdx.x; c < value_dim; c += THREADS) {
        float sum = 0;
        for (int i = 0; i < splits; i++)
            sum += rescale(part[i * split_stride], highest) * part[i * split_stride + 2 + c];
        out[row * value_dim + c] = (T)(sum / total);
    }
}
