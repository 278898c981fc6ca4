// Reverses one part of x after the other through the same shared memory.
//
// grid 2, block 64, n 128
extern "C" __global__ void kernel(float *out, const float *x, int n) {
    __shared__ float part[64];
    if (blockIdx.x > 0) return;
    for (int start = 0; start < n; start += 64) {
        if (threadIdx.x < 32) {
            part[threadIdx.x] = x[start + threadIdx.x];
            __syncthreads();
        } else {
            part[threadIdx.x] = x[start + threadIdx.x];
            __syncthreads();
        }
        out[start + threadIdx.x] = part[63 - threadIdx.x];
        __syncthreads();
    }
}
