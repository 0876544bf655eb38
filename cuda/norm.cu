/* norm: hidden += partial; x = hidden / sqrt(mean(hidden^2) + eps) * weight; x as E4M3
 *
 * Shapes   hidden [*, H] float, in place; partial [*, H] float or none; weight [H] float; x [T, H]
 *          bf16; xq [T, f8_stride(H)] E4M3 and xq_scale [T], or none. With `rows`, row i of x comes from row
 *          rows[i] of hidden + partial, and hidden stays as it is.
 * Launch   grid T, one block a row; 256, 512 or 1024 threads by H, each with up to 4 (H > 16384: 6)
 *          units of 4 columns in registers, so that the row is read once. Thread i has units i,
 *          i + THREADS and so on: 16-byte loads, neighbours side by side. H % 4 != 0 (rows are not
 *          aligned then): 4-byte loads, unit u being 4 columns that are THREADS apart.
 * Bytes    4*T*H read + 2*T*H written (+ 8*T*H with a partial, + T*H with xq) + 4*H;
 *          bandwidth-bound for many rows; for few the two block-wide reductions take longest.
 * Numerics a row's sum of squares is float32: a thread's columns in ascending order, lanes by xor
 *          shuffles, warps in ascending order. The order depends on H alone. One rounding of x to
 *          bf16; xq is made from the rounded x: E4M3(x / xq_scale), xq_scale = max |x| / 448.
 * Requires H <= 16384, or <= 24576 and a multiple of 4.
 */
#include "cuda/cuda_check.h"
#include "cuda/device.cuh"
#include "cuda/kernels.h"

constexpr int UNIT = 4; /* columns */

/* The column of element j of a thread's unit u. */
template <int THREADS, bool WIDE> DEVICE int column(int u, int j) {
    return WIDE ? (u * THREADS + (int)threadIdx.x) * UNIT + j
                : (u * UNIT + j) * THREADS + (int)threadIdx.x;
}

template <int THREADS, bool WIDE>
DEVICE void load_unit(float v[UNIT], const float *row, int u, int H) {
    if (WIDE) {
        int c = column<THREADS, WIDE>(u, 0);
        float4 f = c < H ? *(const float4 *)(row + c) : make_float4(0, 0, 0, 0);
        v[0] = f.x;
        v[1] = f.y;
        v[2] = f.z;
        v[3] = f.w;
    } else {
#pragma unroll
        for (int j = 0; j < UNIT; j++) {
            int c = column<THREADS, WIDE>(u, j);
            v[j] = c < H ? row[c] : 0;
        }
    }
}

template <int THREADS, bool WIDE>
DEVICE void store_unit(float *row, const float v[UNIT], int u, int H) {
    if (WIDE) {
        int c = column<THREADS, WIDE>(u, 0);
        if (c < H)
            *(float4 *)(row + c) = make_float4(v[0], v[1], v[2], v[3]);
    } else {
#pragma unroll
        for (int j = 0; j < UNIT; j++) {
            int c = column<THREADS, WIDE>(u, j);
            if (c < H)
                row[c] = v[j];
        }
    }
}

template <int THREADS, bool WIDE>
DEVICE void store_unit_bf16(bf16 *row, const float v[UNIT], int u, int H) {
    if (WIDE) {
        int c = column<THREADS, WIDE>(u, 0);
        if (c < H)
            *(uint2 *)(row + c) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
    } else {
#pragma unroll
        for (int j = 0; j < UNIT; j++) {
            int c = column<THREADS, WIDE>(u, j);
            if (c < H)
                row[c] = float_bf16(v[j]);
        }
    }
}

template <int THREADS, bool WIDE>
DEVICE void store_unit_e4m3(uint8_t *row, const float v[UNIT], float scale, int u, int H) {
    uint32_t packed = 0;
#pragma unroll
    for (int j = 0; j < UNIT; j++) {
        int c = column<THREADS, WIDE>(u, j);
        uint8_t q = float_e4m3(v[j] / scale);
        packed |= (uint32_t)q << 8 * j;
        if (!WIDE && c < H)
            row[c] = q;
    }
    int c = column<THREADS, WIDE>(u, 0);
    if (WIDE && c < H)
        *(uint32_t *)(row + c) = packed;
}

template <int THREADS, int UNITS, bool WIDE>
__global__ __launch_bounds__(THREADS, 1024 / THREADS) void norm_kernel(struct norm_args a) {
    __shared__ float sums[THREADS / WARP], maxima[THREADS / WARP];
    int H = a.hidden_size, t = blockIdx.x;
    int64_t from = (int64_t)(a.rows ? a.rows[t] : t) * H, to = (int64_t)t * H;
    float h[UNITS][UNIT], sum = 0;

    /* The row and its sum of squares. */
#pragma unroll
    for (int u = 0; u < UNITS; u++)
        load_unit<THREADS, WIDE>(h[u], a.hidden + from, u, H);
    if (a.partial) {
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            float p[UNIT];
            load_unit<THREADS, WIDE>(p, a.partial + from, u, H);
#pragma unroll
            for (int j = 0; j < UNIT; j++)
                h[u][j] += p[j];
            if (!a.rows)
                store_unit<THREADS, WIDE>(a.hidden + from, h[u], u, H);
        }
    }
#pragma unroll
    for (int u = 0; u < UNITS; u++)
#pragma unroll
        for (int j = 0; j < UNIT; j++)
            sum += h[u][j] * h[u][j];
    sum = block_sum<THREADS>(sum, sums);

    /* x, rounded as it is stored, and its largest magnitude. fmaxf passes NaNs by; their codes in
     * xq are NaN all the same. */
    float scale = rsqrtf(sum / (float)H + a.eps), largest = 0;
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        float w[UNIT];
        load_unit<THREADS, WIDE>(w, a.weight, u, H);
#pragma unroll
        for (int j = 0; j < UNIT; j++) {
            h[u][j] = bf16_float(float_bf16(h[u][j] * scale * w[j]));
            largest = fmaxf(largest, fabsf(h[u][j]));
        }
        store_unit_bf16<THREADS, WIDE>(a.x + to, h[u], u, H);
    }
    if (!a.xq)
        return;

    /* The quantised row. */
    largest = warp_max(largest);
    if (threadIdx.x % WARP == 0)
        maxima[threadIdx.x / WARP] = largest;
    __syncthreads(); /* maxima of all warps are there */
#pragma unroll
    for (int i = 0; i < THREADS / WARP; i++)
        largest = fmaxf(largest, maxima[i]);
    float xq_scale = largest > 0 ? largest / 448 : 1;
    uint8_t *xq = a.xq + t * f8_stride(H);
#pragma unroll
    for (int u = 0; u < UNITS; u++)
        store_unit_e4m3<THREADS, WIDE>(xq, h[u], xq_scale, u, H);
    if (threadIdx.x < f8_stride(H) - H)
        xq[H + threadIdx.x] = 0;
    if (threadIdx.x == 0)
        a.xq_scale[t] = xq_scale;
}

template <int THREADS, int UNITS>
static void launch(const struct norm_args *a, cudaStream_t stream) {
    if (a->hidden_size % UNIT == 0)
        norm_kernel<THREADS, UNITS, true><<<a->num_tokens, THREADS, 0, stream>>>(*a);
    else
        norm_kernel<THREADS, UNITS, false><<<a->num_tokens, THREADS, 0, stream>>>(*a);
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
        norm_kernel<1024, 6, true><<<a->num_tokens, 1024, 0, stream>>>(*a);
    LAUNCH_CHECK();
}
