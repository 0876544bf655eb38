/* norm: hidden += partial; x = hidden / sqrt(mean(hidden^2) + eps) * weight; x as E4M3
 *
 * Shapes   hidden [*, H] float, in place; partial [*, H] float, double or none; weight [H] float; x [T, H]
 *          bf16; xq [T, f8_stride(H)] E4M3 and xq_scale [T], or none. With `rows`, row i of x comes from row
 *          rows[i] of hidden + partial, and hidden stays as it is.
 * Launch   grid T, one block a row; 256, 512 or 1024 threads by H, each with up to 4 (H > 16384: 6)
 *          units of 4 columns in registers, so that the row is read once. Thread i has units i,
 *          i + THREADS and so on: 16-byte loads, neighbours side by side. H % 4 != 0 (rows are not
 *          aligned then): 4-byte loads, unit u being 4 columns that are THREADS apart.
 * Bytes    4*T*H read + 2*T*H written (+ 8*T*H with a partial, 12 if it is double, + T*H with xq) + 4*H;
 *          bandwidth-bound for many rows; for few the two block-wide reductions take longest.
 * Numerics a row's sum of squares is float32: a thread's columns in ascending order, lanes by xor
 *          shuffles, warps in ascending order. The order depends on H alone. A partial of double is
 *          rounded to float32, and then added. One rounding of x to
 *          bf16; xq is made from the rounded x: E4M3(x / xq_scale), xq_scale = max |x| / 448.
 * Requires H <= 16384, or <= 24576 and a multiple of 4.
 */
#include "cuda/cuda_check.h"
#include "cuda/norm.cuh"

/* PARTIAL is the type of its elements. */
template <int THREADS, int UNITS, bool WIDE, class PARTIAL>
__global__ __launch_bounds__(THREADS, 1024 / THREADS) void norm_kernel(struct norm_args a) {
    constexpr struct norm_shape shape = {THREADS, WIDE};
    __shared__ float scratch[NORM_SCRATCH];
    int H = a.hidden_size, t = blockIdx.x;
    int64_t from = (int64_t)(a.rows ? a.rows[t] : t) * H;
    float h[UNITS][UNIT];
#pragma unroll
    for (int u = 0; u < UNITS; u++)
        load_unit(h[u], a.hidden + from, shape, u, H);
    if (a.partial) {
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            float p[UNIT];
            load_unit(p, (const PARTIAL *)a.partial + from, shape, u, H);
            if (UNITS > 4 && sizeof(PARTIAL) > sizeof(float))
                __syncwarp(); /* no unit's loads before this: there are no registers for them */
#pragma unroll
            for (int j = 0; j < UNIT; j++)
                h[u][j] += p[j];
            if (!a.rows)
                store_unit(a.hidden + from, h[u], shape, u, H);
        }
    }
    norm_row<UNITS>(a, t, h, shape, scratch);
}

template <int THREADS, int UNITS, bool WIDE>
static void launch_wide(const struct norm_args *a, cudaStream_t stream) {
    if (a->partial_double)
        norm_kernel<THREADS, UNITS, WIDE, double><<<a->num_tokens, THREADS, 0, stream>>>(*a);
    else
        norm_kernel<THREADS, UNITS, WIDE, float><<<a->num_tokens, THREADS, 0, stream>>>(*a);
}

template <int THREADS, int UNITS>
static void launch(const struct norm_args *a, cudaStream_t stream) {
    if (a->hidden_size % UNIT == 0)
        launch_wide<THREADS, UNITS, true>(a, stream);
    else
        launch_wide<THREADS, UNITS, false>(a, stream);
}

void norm_launch(const struct norm_args *a, cudaStream_t stream) {
    int32_t H = a->hidden_size;
    CHECK(H > 0 && (H <= 1024 * 4 * UNIT || (H <= 1024 * 6 * UNIT && H % UNIT == 0)),
          "hidden_size %d", H);
    if (a->num_tokens == 0)
        return;
    if (H <= 256 * UNIT)
        launch<256, 1>(a, stream);
    else if (H <= 256 * 4 * UNIT)
        launch<256, 4>(a, stream);
    else if (H <= 512 * 4 * UNIT)
        launch<512, 4>(a, stream);
    else if (H <= 1024 * 4 * UNIT)
        launch<1024, 4>(a, stream);
    else
        launch_wide<1024, 6, true>(a, stream);
    LAUNCH_CHECK();
}
