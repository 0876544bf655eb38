/* gather: out[i] = hidden[rows[i]] + partial[rows[i]], the rows whose logits are wanted
 *
 * Shapes   hidden, partial [T, H], out [R, H] float32; partial may be absent, or float64.
 * Launch   grid (R, H / 1024), block 256; four elements a thread.
 * Bytes    8, 12 or 16 an element; a few rows of a step.
 * Numerics exact addition in float32, to which a partial of float64 is rounded first.
 */
#include "cuda/cuda_check.h"
#include "cuda/device.cuh"
#include "cuda/kernels.h"

constexpr int GATHER_THREADS = 256, GATHER_EACH = 4;

template <class REAL>
__global__ void __launch_bounds__(GATHER_THREADS)
    gather_rows_kernel(float *out, const float *hidden, const REAL *partial, const int32_t *rows,
                       int hidden_size) {
    int64_t to = (int64_t)blockIdx.x * hidden_size, from = (int64_t)rows[blockIdx.x] * hidden_size;
    int first = blockIdx.y * GATHER_THREADS * GATHER_EACH + threadIdx.x;
#pragma unroll
    for (int e = 0; e < GATHER_EACH; e++) {
        int i = first + e * GATHER_THREADS;
        if (i < hidden_size)
            out[to + i] = hidden[from + i] + (partial ? (float)partial[from + i] : 0);
    }
}

void gather_rows_launch(float *out, const float *hidden, const void *partial, bool partial_double,
                        const int32_t *rows, int32_t num_rows, int32_t hidden_size,
                        cudaStream_t stream) {
    if (num_rows == 0 || hidden_size == 0)
        return;
    dim3 grid(num_rows, ceil_div(hidden_size, GATHER_THREADS * GATHER_EACH));
    if (partial_double)
        gather_rows_kernel<<<grid, GATHER_THREADS, 0, stream>>>(
            out, hidden, (const double *)partial, rows, hidden_size);
    else
        gather_rows_kernel<<<grid, GATHER_THREADS, 0, stream>>>(
            out, hidden, (const float *)partial, rows, hidden_size);
    LAUNCH_CHECK();
}
