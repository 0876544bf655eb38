/* quantise: rows of bf16 as FP8 activations, for products whose input no norm has made
 *
 * Shapes   x [T, ldx] bf16, cols of them; xq [T, f8_stride(cols)] E4M3; xq_scale [T].
 * Launch   grid T, a block of 256 threads a row, 16 B a thread per load. Rows that are not aligned
 *          to 16 bytes, or cols % 8 != 0: element by element.
 * Bytes    2*T*cols read, once more from L1, + T*cols written; bandwidth-bound for many rows, about
 *          as long as a launch takes for few.
 * Numerics xq_scale = max |x| / 448, xq = E4M3(x / xq_scale): a function of the row alone, and the
 *          codes that norm.cu writes for the same x. The error of an element is at most 2^-4 of it,
 *          or 2^-10 of the scale where that is more (below 2^-6 of it: E4M3 is subnormal).
 * Requires cols > 0.
 */
#include "cuda/cuda_check.h"
#include "cuda/quantise.cuh"

template <bool WIDE>
__global__ void __launch_bounds__(QUANTISE_THREADS)
    quantise_kernel(uint8_t *xq, float *xq_scale, const bf16 *x, int64_t ldx, int cols) {
    int64_t t = blockIdx.x;
    quantise_row<WIDE>(xq + t * f8_stride(cols), xq_scale + t, x + t * ldx, cols);
}

void quantise_launch(uint8_t *xq, float *xq_scale, const bf16 *x, int64_t ldx, int32_t num_tokens,
                     int32_t cols, cudaStream_t stream) {
    CHECK(cols > 0 && ldx >= cols, "cols %d, ldx %lld", cols, (long long)ldx);
    if (num_tokens <= 0)
        return;
    if (cols % 8 == 0 && ldx % 8 == 0 && (uintptr_t)x % 16 == 0)
        quantise_kernel<true><<<num_tokens, QUANTISE_THREADS, 0, stream>>>(xq, xq_scale, x, ldx, cols);
    else
        quantise_kernel<false>
            <<<num_tokens, QUANTISE_THREADS, 0, stream>>>(xq, xq_scale, x, ldx, cols);
    LAUNCH_CHECK();
}
