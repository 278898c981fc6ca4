// Lab B, right in other ways: the grader must pass them.

extern "C" __global__ void shrink_map(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, a = adapter_ids[t];
    for (int j = blockIdx.y * 32 + threadIdx.x; a >= 0 && j < rank; j += gridDim.y * 32) {
        float sum = 0;
        for (int k = d_in - 1; k >= 0; k--) sum += A[((long long)a * rank + j) * d_in + k] * x[(long long)t * d_in + k];
        Ax[t * rank + j] = sum;
    }
}

extern "C" __global__ void shrink_block(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    __shared__ float halves[2];
    const int t = blockIdx.x, j = blockIdx.y, a = adapter_ids[t];
    float sum = 0;
    for (int k = threadIdx.x; a >= 0 && k < d_in; k += 64)
        sum += A[((long long)a * rank + j) * d_in + k] * x[(long long)t * d_in + k];
    for (int other = 16; other > 0; other /= 2) sum += __shfl_down_sync(0xffffffff, sum, other);
    if (threadIdx.x % 32 == 0) halves[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0 && a >= 0) Ax[t * rank + j] = halves[0] + halves[1];
}

extern "C" __global__ void shrink_warp(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, a = adapter_ids[t];
    if (a < 0 || j >= rank) return;  // the whole warp
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = lane; k < d_in; k += 32) sum += row[k] * x[(long long)t * d_in + k];
    for (int other = 16; other > 0; other /= 2) sum += __shfl_down_sync(0xffffffff, sum, other);
    if (lane == 0) Ax[t * rank + j] = sum;
}
