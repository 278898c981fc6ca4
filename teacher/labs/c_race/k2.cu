// Reverses each block's part of x, of which there are n numbers; what is not there counts as 0.
//
// grid 2, block 64, n 100
extern "C" __global__ void kernel(float *out, const float *x, int n) {
    __shared__ float part[64];
    const int i = blockIdx.x * 64 + threadIdx.x;
    part[threadIdx.x] = i < n ? x[i] : 0.0f;
    __syncthreads();
    if (i < n) out[i] = part[63 - threadIdx.x];
}
