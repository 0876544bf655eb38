/* norm: one row of norm.cu, for the kernels that have the row in registers: norm.cu itself, and the
 * all-reduce with the norm behind it (allreduce.cuh). They get the same bits for the same row.
 *
 * A block has the row in units of 4 columns. Thread i has units i, i + threads and so on: 16-byte
 * loads, neighbours side by side. Where H % 4 != 0 rows are not aligned, and unit u is 4 columns
 * that are `threads` apart.
 */
#pragma once

#include "cuda/device.cuh"
#include "cuda/kernels.h"

constexpr int UNIT = 4; /* columns */
constexpr int NORM_MAX_UNITS = 4;
constexpr int NORM_SCRATCH = 2 * 1024 / WARP; /* floats of shared memory */

/* How a block holds a row. Where both are constants, as in norm.cu, so are all indices. */
struct norm_shape {
    int threads; /* of the block: a multiple of 32, at most 1024 */
    bool wide;   /* H % 4 == 0 */
};

/* Threads for a row of up to 16384 columns in NORM_MAX_UNITS units. */
static inline int norm_threads(int H) {
    return H <= 256 * NORM_MAX_UNITS * UNIT ? 256 : H <= 512 * NORM_MAX_UNITS * UNIT ? 512 : 1024;
}

/* The column of element j of a thread's unit u. */
DEVICE int unit_column(struct norm_shape s, int u, int j) {
    return s.wide ? (u * s.threads + (int)threadIdx.x) * UNIT + j
                  : (u * UNIT + j) * s.threads + (int)threadIdx.x;
}

DEVICE void load_unit(float v[UNIT], const float *row, struct norm_shape s, int u, int H) {
    if (s.wide) {
        int c = unit_column(s, u, 0);
        float4 f = c < H ? *(const float4 *)(row + c) : make_float4(0, 0, 0, 0);
        v[0] = f.x;
        v[1] = f.y;
        v[2] = f.z;
        v[3] = f.w;
    } else {
#pragma unroll
        for (int j = 0; j < UNIT; j++) {
            int c = unit_column(s, u, j);
            v[j] = c < H ? row[c] : 0;
        }
    }
}

/* The same of doubles, rounded. */
DEVICE void load_unit(float v[UNIT], const double *row, struct norm_shape s, int u, int H) {
#pragma unroll
    for (int j = 0; j < UNIT; j += s.wide ? 2 : 1) {
        int c = unit_column(s, u, j);
        if (s.wide) {
            double2 d = c < H ? *(const double2 *)(row + c) : make_double2(0, 0);
            v[j] = __double2float_rn(d.x);
            v[j + 1] = __double2float_rn(d.y);
        } else {
            v[j] = c < H ? __double2float_rn(row[c]) : 0;
        }
    }
}

DEVICE void store_unit(float *row, const float v[UNIT], struct norm_shape s, int u, int H) {
    if (s.wide) {
        int c = unit_column(s, u, 0);
        if (c < H)
            *(float4 *)(row + c) = make_float4(v[0], v[1], v[2], v[3]);
    } else {
#pragma unroll
        for (int j = 0; j < UNIT; j++) {
            int c = unit_column(s, u, j);
            if (c < H)
                row[c] = v[j];
        }
    }
}

DEVICE void store_unit_bf16(bf16 *row, const float v[UNIT], struct norm_shape s, int u, int H) {
    if (s.wide) {
        int c = unit_column(s, u, 0);
        if (c < H)
            *(uint2 *)(row + c) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
    } else {
#pragma unroll
        for (int j = 0; j < UNIT; j++) {
            int c = unit_column(s, u, j);
            if (c < H)
                row[c] = float_bf16(v[j]);
        }
    }
}

DEVICE void store_unit_e4m3(uint8_t *row, const float v[UNIT], float scale, struct norm_shape s,
                            int u, int H) {
    uint32_t packed = 0;
#pragma unroll
    for (int j = 0; j < UNIT; j++) {
        int c = unit_column(s, u, j);
        uint8_t q = float_e4m3(v[j] / scale);
        packed |= (uint32_t)q << 8 * j;
        if (!s.wide && c < H)
            row[c] = q;
    }
    int c = unit_column(s, u, 0);
    if (s.wide && c < H)
        *(uint32_t *)(row + c) = packed;
}

/* Row t of x, and of xq where there is one, from the row h; columns past H are zeros. All threads
 * of the block; h is overwritten. `scratch` is shared memory of NORM_SCRATCH floats, which the
 * block may use again after a barrier. */
template <int UNITS>
DEVICE void norm_row(const struct norm_args &a, int t, float h[UNITS][UNIT], struct norm_shape s,
                     float *scratch) {
    float *sums = scratch, *maxima = scratch + NORM_SCRATCH / 2, sum = 0, largest = 0;
    int H = a.hidden_size, warps = s.threads / WARP;
    int64_t to = (int64_t)t * H;

    /* The sum of squares. */
#pragma unroll
    for (int u = 0; u < UNITS; u++)
#pragma unroll
        for (int j = 0; j < UNIT; j++)
            sum += h[u][j] * h[u][j];
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0)
        sums[threadIdx.x / WARP] = sum;
    __syncthreads(); /* sums of all warps are there */
    sum = 0;
#pragma unroll
    for (int i = 0; i < warps; i++)
        sum += sums[i];

    /* x, rounded as it is stored, and its largest magnitude. fmaxf passes NaNs by; their codes in
     * xq are NaN all the same. */
    float scale = rsqrtf(sum / (float)H + a.eps);
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        float w[UNIT];
        load_unit(w, a.weight, s, u, H);
#pragma unroll
        for (int j = 0; j < UNIT; j++) {
            h[u][j] = bf16_float(float_bf16(h[u][j] * scale * w[j]));
            largest = fmaxf(largest, fabsf(h[u][j]));
        }
        store_unit_bf16(a.x + to, h[u], s, u, H);
    }
    if (!a.xq)
        return;

    /* The quantised row. */
    largest = warp_max(largest);
    if (threadIdx.x % WARP == 0)
        maxima[threadIdx.x / WARP] = largest;
    __syncthreads(); /* maxima of all warps are there */
#pragma unroll
    for (int i = 0; i < warps; i++)
        largest = fmaxf(largest, maxima[i]);
    float xq_scale = largest > 0 ? largest / 448 : 1;
    uint8_t *xq = a.xq + t * f8_stride(H);
#pragma unroll
    for (int u = 0; u < UNITS; u++)
        store_unit_e4m3(xq, h[u], xq_scale, s, u, H);
    if (threadIdx.x < f8_stride(H) - H)
        xq[H + threadIdx.x] = 0;
    if (threadIdx.x == 0)
        a.xq_scale[t] = xq_scale;
}
