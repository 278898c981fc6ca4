// Lab B: known wrong answers, for the grader. A learner's kernel that behaves like one of them gets its name; what each
// lacks is said in lab_b_shrink.py beside this file.

extern "C" __global__ void map_no_minus_one(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y * 32 + threadIdx.x, a = adapter_ids[t];
    if (j >= rank) return;
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = 0; k < d_in; k++) sum += row[k] * x[(long long)t * d_in + k];
    Ax[t * rank + j] = sum;
}

extern "C" __global__ void map_no_rank_test(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y * 32 + threadIdx.x, a = adapter_ids[t];
    if (a < 0) return;
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = 0; k < d_in; k++) sum += row[k] * x[(long long)t * d_in + k];
    Ax[t * rank + j] = sum;
}

extern "C" __global__ void map_adapters_one_row_apart(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y * 32 + threadIdx.x, a = adapter_ids[t];
    if (a < 0 || j >= rank) return;
    const float* row = A + ((long long)a + j) * d_in;
    float sum = 0;
    for (int k = 0; k < d_in; k++) sum += row[k] * x[(long long)t * d_in + k];
    Ax[t * rank + j] = sum;
}

extern "C" __global__ void map_adapter_ignored(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y * 32 + threadIdx.x, a = adapter_ids[t];
    if (a < 0 || j >= rank) return;
    const float* row = A + (long long)j * d_in;
    float sum = 0;
    for (int k = 0; k < d_in; k++) sum += row[k] * x[(long long)t * d_in + k];
    Ax[t * rank + j] = sum;
}

extern "C" __global__ void map_zero_where_none(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y * 32 + threadIdx.x, a = adapter_ids[t];
    if (j >= rank) return;
    if (a < 0) {
        Ax[t * rank + j] = 0;
        return;
    }
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = 0; k < d_in; k++) sum += row[k] * x[(long long)t * d_in + k];
    Ax[t * rank + j] = sum;
}

extern "C" __global__ void map_adds_to_what_lay_there(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y * 32 + threadIdx.x, a = adapter_ids[t];
    if (a < 0 || j >= rank) return;
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = 0; k < d_in; k++) sum += row[k] * x[(long long)t * d_in + k];
    Ax[t * rank + j] += sum;
}

extern "C" __global__ void block_no_minus_one(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    __shared__ float part[64];
    const int t = blockIdx.x, j = blockIdx.y, a = adapter_ids[t];
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

extern "C" __global__ void block_no_barrier(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    __shared__ float part[64];
    const int t = blockIdx.x, j = blockIdx.y, a = adapter_ids[t];
    if (a < 0) return;  // the whole block
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = threadIdx.x; k < d_in; k += 64) sum += row[k] * x[(long long)t * d_in + k];
    part[threadIdx.x] = sum;
    for (int half = 32; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    if (threadIdx.x == 0) Ax[t * rank + j] = part[0];
}

extern "C" __global__ void block_barrier_before_the_loop_only(
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
    }
    if (threadIdx.x == 0) Ax[t * rank + j] = part[0];
}

extern "C" __global__ void block_barrier_in_the_branch(
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
        if (threadIdx.x < half) {
            part[threadIdx.x] += part[threadIdx.x + half];
            __syncthreads();
        }
    }
    if (threadIdx.x == 0) Ax[t * rank + j] = part[0];
}

extern "C" __global__ void block_past_the_row(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    __shared__ float part[64];
    const int t = blockIdx.x, j = blockIdx.y, a = adapter_ids[t];
    if (a < 0) return;  // the whole block
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = threadIdx.x; k < d_in + 63; k += 64) sum += row[k] * x[(long long)t * d_in + k];
    part[threadIdx.x] = sum;
    __syncthreads();
    for (int half = 32; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) Ax[t * rank + j] = part[0];
}

extern "C" __global__ void block_first_64_only(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    __shared__ float part[64];
    const int t = blockIdx.x, j = blockIdx.y, a = adapter_ids[t];
    if (a < 0) return;  // the whole block
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    const int k = threadIdx.x;
    if (k < d_in) sum += row[k] * x[(long long)t * d_in + k];
    part[threadIdx.x] = sum;
    __syncthreads();
    for (int half = 32; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) Ax[t * rank + j] = part[0];
}

extern "C" __global__ void block_one_thread_does_it_all(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y, a = adapter_ids[t];
    if (a < 0 || threadIdx.x > 0) return;
    float sum = 0;
    for (int k = 0; k < d_in; k++) sum += A[((long long)a * rank + j) * d_in + k] * x[(long long)t * d_in + k];
    Ax[t * rank + j] = sum;
}

extern "C" __global__ void block_every_thread_does_it_all(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    __shared__ float part[64];
    const int t = blockIdx.x, j = blockIdx.y, a = adapter_ids[t];
    if (a < 0) return;  // the whole block
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = 0; k < d_in; k++) sum += row[k] * x[(long long)t * d_in + k];
    part[threadIdx.x] = threadIdx.x == 0 ? sum : 0;
    __syncthreads();
    for (int half = 32; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) Ax[t * rank + j] = part[0];
}

extern "C" __global__ void block_half_of_the_sum(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    __shared__ float part[64];
    const int t = blockIdx.x, j = blockIdx.y, a = adapter_ids[t];
    if (a < 0) return;  // the whole block
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = threadIdx.x; k < d_in; k += 64) sum += row[k] * x[(long long)t * d_in + k];
    part[threadIdx.x] = sum;
    __syncthreads();
    for (int half = 16; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) Ax[t * rank + j] = part[0];
}

extern "C" __global__ void warp_no_minus_one(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, a = adapter_ids[t];
    if (j >= rank) return;  // the whole warp
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = lane; k < d_in; k += 32) sum += row[k] * x[(long long)t * d_in + k];
    for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffff, sum, other);
    if (lane == 0) Ax[t * rank + j] = sum;
}

extern "C" __global__ void warp_no_rank_test(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, a = adapter_ids[t];
    if (a < 0) return;  // the whole warp
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = lane; k < d_in; k += 32) sum += row[k] * x[(long long)t * d_in + k];
    for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffff, sum, other);
    if (lane == 0) Ax[t * rank + j] = sum;
}

extern "C" __global__ void warp_mask_of_half_a_warp(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, a = adapter_ids[t];
    if (a < 0 || j >= rank) return;  // the whole warp
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = lane; k < d_in; k += 32) sum += row[k] * x[(long long)t * d_in + k];
    for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0x0000ffff, sum, other);
    if (lane == 0) Ax[t * rank + j] = sum;
}

extern "C" __global__ void warp_idle_lanes_leave(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, a = adapter_ids[t];
    if (a < 0 || j >= rank || lane >= d_in) return;  // the whole warp
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = lane; k < d_in; k += 32) sum += row[k] * x[(long long)t * d_in + k];
    for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffff, sum, other);
    if (lane == 0) Ax[t * rank + j] = sum;
}

extern "C" __global__ void warp_every_lane_writes(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, a = adapter_ids[t];
    if (a < 0 || j >= rank) return;  // the whole warp
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = lane; k < d_in; k += 32) sum += row[k] * x[(long long)t * d_in + k];
    for (int other = 16; other > 0; other /= 2) sum += __shfl_down_sync(0xffffffff, sum, other);
    Ax[t * rank + j] = sum;
}

extern "C" __global__ void warp_one_step_short(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, a = adapter_ids[t];
    if (a < 0 || j >= rank) return;  // the whole warp
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = lane; k < d_in; k += 32) sum += row[k] * x[(long long)t * d_in + k];
    for (int other = 8; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffff, sum, other);
    if (lane == 0) Ax[t * rank + j] = sum;
}

extern "C" __global__ void warp_first_32_only(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, a = adapter_ids[t];
    if (a < 0 || j >= rank) return;  // the whole warp
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    const int k = lane;
    if (k < d_in) sum += row[k] * x[(long long)t * d_in + k];
    for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffff, sum, other);
    if (lane == 0) Ax[t * rank + j] = sum;
}

extern "C" __global__ void warp_one_lane_does_it_all(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    const int t = blockIdx.x, j = blockIdx.y * 4 + threadIdx.x / 32, a = adapter_ids[t];
    if (a < 0 || j >= rank || threadIdx.x % 32 > 0) return;
    float sum = 0;
    for (int k = 0; k < d_in; k++) sum += A[((long long)a * rank + j) * d_in + k] * x[(long long)t * d_in + k];
    Ax[t * rank + j] = sum;
}

extern "C" __global__ void warp_shares_by_shared_memory(
    float* Ax, const float* x, const float* A, const int* adapter_ids, int rank, int d_in) {
    __shared__ float part[128];
    const int t = blockIdx.x, j = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, a = adapter_ids[t];
    if (a < 0 || j >= rank) return;
    const float* row = A + ((long long)a * rank + j) * d_in;
    float sum = 0;
    for (int k = lane; k < d_in; k += 32) sum += row[k] * x[(long long)t * d_in + k];
    part[threadIdx.x] = sum;
    __syncwarp();
    for (int half = 16; half > 0; half /= 2) {
        if (lane < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncwarp();
    }
    if (lane == 0) Ax[t * rank + j] = part[threadIdx.x];
}
