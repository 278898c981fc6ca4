// Lab B, solved.

extern "C" __global__ void shrink_map(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y * 32 + threadIdx.x, a = adapter_ids[t];
    if (a < 0 || j >= rank) return;
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = 0; k < d_in; k++) sum += row[k] * x[(long long)t * d_in + k];
    Ax[t * rank + j] = sum;
}

extern "C" __global__ void shrink_block(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    __shared__ float part[64];
    const int t = blockIdx.x, j = blockIdx.y, a = adapter_ids[t];
    if (a < 0) return;  // the whole block
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = threadIdx.x; k < d_in; k += 64) sum += row[k] * x[(long long)t * d_in + k];
    part[threadIdx.x] = sum;
    __syncthreads();
    for (int half = 32; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) Ax[t * rank + j] = part[0];
}

extern "C" __global__ void shrink_warp(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, a = adapter_ids[t];
    if (a < 0 || j >= rank) return;  // the whole warp
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = lane; k < d_in; k += 32) sum += row[k] * x[(long long)t * d_in + k];
    for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffff, sum, other);
    if (lane == 0) Ax[t * rank + j] = sum;
}
