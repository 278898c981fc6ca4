// out[i] = x[i] for i < n.
//
// Wrong: <= for <. The thread with i == n reads and writes one past the end: on a GPU mostly somebody else's memory,
// so that nothing happens here and something is wrong there.
#include "common.cuh"

extern "C" __global__ void broken(DTYPE *out, const DTYPE *x, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    if (i <= n) out[i] = x[i];  // <-- out of bounds
}

extern "C" __global__ void correct(DTYPE *out, const DTYPE *x, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    if (i < n) out[i] = x[i];
}
