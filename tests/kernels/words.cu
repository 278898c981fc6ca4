// One kernel for each word of CUDA that the CPU runner knows: test_runner.py says what each must write.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(1024) axpy(const DTYPE *__restrict__ x, DTYPE *y, float s, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = (DTYPE)((float)y[i] + s * (float)x[i]);
}

extern "C" __global__ void narrow(DTYPE *out, const float *x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = (DTYPE)x[i];
}

extern "C" __global__ void widen(float *out, const DTYPE *x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = (float)x[i];
}

extern "C" __global__ void scalars(float *out, int i, long long l, float f, unsigned u, const float *nothing) {
    out[0] = i, out[1] = (float)(l >> 32), out[2] = f, out[3] = (float)(u >> 16), out[4] = nothing == nullptr;
}

// Each thread's place in the grid, and the turn in which its block came.
extern "C" __global__ void places(int *out, int *turns, int *ticket) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const int threads = blockDim.x * blockDim.y * blockDim.z;
    out[block * threads + thread] = block * threads + thread;
    if (thread == 0) turns[block] = atomicAdd(ticket, 1);
}

// Which thread of the block came first.
extern "C" __global__ void first_thread(int *out) {
    atomicCAS(out, -1, (int)threadIdx.x);
}

extern "C" __global__ void shuffles(int *out, const int *x, int argument, int width) {
    const int i = threadIdx.x, n = blockDim.x;
    out[0 * n + i] = __shfl_sync(FULL_WARP, x[i], argument, width);
    out[1 * n + i] = __shfl_xor_sync(FULL_WARP, x[i], argument, width);
    out[2 * n + i] = __shfl_up_sync(FULL_WARP, x[i], argument, width);
    out[3 * n + i] = __shfl_down_sync(FULL_WARP, x[i], argument, width);
}

extern "C" __global__ void votes(unsigned *out, const int *x) {
    const int i = threadIdx.x, n = blockDim.x;
    out[0 * n + i] = __ballot_sync(FULL_WARP, x[i]);
    out[1 * n + i] = __any_sync(FULL_WARP, x[i]);
    out[2 * n + i] = __all_sync(FULL_WARP, x[i]);
}

// Two halves of each warp go their own ways, each with a mask of its own, and meet again.
extern "C" __global__ void halves(int *out, const int *x) {
    const int i = threadIdx.x;
    int sum = x[i];
    if (i % 32 < 16) {
        for (int m = 8; m > 0; m /= 2) sum += __shfl_xor_sync(0x0000ffffu, sum, m);
    } else {
        for (int m = 8; m > 0; m /= 2) sum += __shfl_xor_sync(0xffff0000u, sum, m);
    }
    out[i] = sum + __shfl_xor_sync(FULL_WARP, sum, 16);
}

extern "C" __global__ void atomics(int *out, float *sum, const int *x) {
    const int v = x[blockIdx.x * blockDim.x + threadIdx.x];
    atomicAdd(sum, (float)v);
    atomicAdd(out + 0, v);
    atomicMax(out + 1, v);
    atomicMin(out + 2, v);
    atomicOr(out + 3, v);
    atomicAnd(out + 4, v);
}

// Every number is read twice, and written once for each block.
extern "C" __global__ void read_twice(float *out, const DTYPE *x) {
    __shared__ float part[32];
    part[threadIdx.x] = (float)x[threadIdx.x];
    __syncwarp();
    out[blockIdx.x * 32 + threadIdx.x] = part[31 - threadIdx.x] + (float)x[31 - threadIdx.x];
}
