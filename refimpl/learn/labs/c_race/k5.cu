// out[i] = the sum of x over the warp, for the first 16 lanes of each warp; 0 for the others.
//
// grid 2, block 64, n 128
extern "C" __global__ void kernel(float *out, const float *x, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x, lane = threadIdx.x % 32;
    float sum = x[i];
    if (lane < 16)
        for (int m = 16; m > 0; m /= 2) sum += __shfl_xor_sync(0xffffffff, sum, m);
    __syncthreads();
    out[i] = lane < 16 ? sum : 0.0f;
}
