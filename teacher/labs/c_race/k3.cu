// out[i] = x[reversed i within the warp] + x[i ^ 1], the first through shared memory, the second by a shuffle.
//
// grid 2, block 64, n 128
extern "C" __global__ void kernel(float *out, const float *x, int n) {
    __shared__ float part[64];
    const int i = blockIdx.x * 64 + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    part[threadIdx.x] = x[i];
    const float neighbour = __shfl_xor_sync(0xffffffff, x[i], 1);
    __syncwarp();
    out[i] = part[warp * 32 + 31 - lane] + neighbour;
}
