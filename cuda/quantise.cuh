/* quantise: a row of bf16 as FP8 activations (kernels.h), by one block; for quantise.cu and moe.cu.
 */
#pragma once

#include "cuda/device.cuh"
#include "cuda/kernels.h"

constexpr int QUANTISE_THREADS = 256;
constexpr int QUANTISE_COLS = 8; /* of a thread at a time: 16 bytes of bf16 */

/* Columns 8i .. 8i + 7, zeros past the end. WIDE: x is aligned to 16 bytes, cols a multiple of 8. */
template <bool WIDE> DEVICE void quantise_load(float v[QUANTISE_COLS], const bf16 *x, int i, int cols) {
    int c = i * QUANTISE_COLS;
    if (WIDE) {
        unpack_bf16(v, c < cols ? *(const uint4 *)(x + c) : make_uint4(0, 0, 0, 0));
    } else {
#pragma unroll
        for (int j = 0; j < QUANTISE_COLS; j++)
            v[j] = c + j < cols ? bf16_float(x[c + j]) : 0;
    }
}

/* xq [f8_stride(cols)] and *scale from x [cols]. For all threads of a block; the row is read twice,
 * the second time from L1. fmaxf passes NaNs by; their codes are NaN all the same. */
template <bool WIDE>
DEVICE void quantise_row(uint8_t *xq, float *scale, const bf16 *x, int cols) {
    __shared__ float maxima[QUANTISE_THREADS / WARP];
    int pieces = (int)f8_stride(cols) / QUANTISE_COLS;
    float v[QUANTISE_COLS], largest = 0;
#pragma unroll 2
    for (int i = threadIdx.x; i < pieces; i += QUANTISE_THREADS) {
        quantise_load<WIDE>(v, x, i, cols);
#pragma unroll
        for (int j = 0; j < QUANTISE_COLS; j++)
            largest = fmaxf(largest, fabsf(v[j]));
    }
    largest = warp_max(largest);
    if (threadIdx.x % WARP == 0)
        maxima[threadIdx.x / WARP] = largest;
    __syncthreads(); /* maxima of all warps are there */
#pragma unroll
    for (int w = 0; w < QUANTISE_THREADS / WARP; w++)
        largest = fmaxf(largest, maxima[w]);
    float unit = largest > 0 ? largest / 448 : 1;
    for (int i = threadIdx.x; i < pieces; i += QUANTISE_THREADS) {
        uint32_t codes[2] = {0, 0};
        quantise_load<WIDE>(v, x, i, cols);
#pragma unroll
        for (int j = 0; j < QUANTISE_COLS; j++)
            codes[j / 4] |= (uint32_t)float_e4m3(v[j] / unit) << 8 * (j % 4);
        *(uint2 *)(xq + i * QUANTISE_COLS) = make_uint2(codes[0], codes[1]);
    }
    if (threadIdx.x == 0)
        *scale = unit;
}
