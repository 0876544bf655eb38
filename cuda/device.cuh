/* device: what the kernels share: conversions of packed elements, and sums over a warp or a block.
 *
 * All functions that talk to other lanes are for whole warps: every lane calls them.
 */
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/ptx.cuh"

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int WARP = 32;

/* ---- packed elements --------------------------------------------------------------------------- */

/* Two bf16 in a register, low half first. */
DEVICE float bf16_low(uint32_t pair) {
    return __uint_as_float(pair << 16);
}
DEVICE float bf16_high(uint32_t pair) {
    return __uint_as_float(pair & 0xffff0000u);
}
DEVICE float bf16_float(uint16_t b) {
    return __uint_as_float((uint32_t)b << 16);
}
/* Rounds to nearest even. */
DEVICE uint16_t float_bf16(float f) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(f));
}
DEVICE uint32_t pack_bf16(float low, float high) {
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}
DEVICE uint32_t pack_f16(float low, float high) {
    __half2 v = __floats2half2_rn(low, high);
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}

/* Eight bf16 of 16 bytes. */
DEVICE void unpack_bf16(float out[8], uint4 v) {
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = bf16_low(w[i]);
        out[2 * i + 1] = bf16_high(w[i]);
    }
}
DEVICE uint4 pack8_bf16(const float in[8]) {
    return make_uint4(pack_bf16(in[0], in[1]), pack_bf16(in[2], in[3]), pack_bf16(in[4], in[5]),
                      pack_bf16(in[6], in[7]));
}

/* E4M3 bytes 0, 1 (half 0) or 2, 3 (half 1) of a register as a pair of bf16, exactly. The exponent
 * and mantissa bits keep their places relative to bf16's, whose bias is larger by 120; multiplying by
 * 2^120 corrects that, for subnormal numbers too. The codes of NaN come out as +-480: weights with
 * NaNs are marked when they are loaded. The same on every architecture: those with a conversion
 * instruction have it to f16 only. */
template <int half> DEVICE uint32_t e4m3_bf16(uint32_t bytes) {
    uint32_t spread = __byte_perm(bytes, 0, half ? 0x3424 : 0x1404); /* bytes in the high halves */
    uint32_t bits = (spread & 0x80008000u) | ((spread & 0x7f007f00u) >> 4);
    __nv_bfloat162 v, scale;
    const uint32_t two_to_120 = 0x7b807b80u;
    memcpy(&v, &bits, sizeof v);
    memcpy(&scale, &two_to_120, sizeof scale);
    v = __hmul2(v, scale);
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

/* Two E4M3 as a pair of f16, exactly; NaNs stay NaNs. Without the instruction: exponent and mantissa
 * bits keep their places relative to f16's, whose bias is larger by 8, and the code of NaN, which
 * would be 480, gets f16's exponent of NaNs. */
DEVICE uint32_t e4m3_f16(uint16_t pair) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    return convert_e4m3_f16(pair);
#else
    uint32_t spread = __byte_perm(pair, 0, 0x1404); /* bytes in the high halves */
    uint32_t bits = (spread & 0x80008000u) | ((spread & 0x7f007f00u) >> 1);
    uint32_t nan = ((spread & 0x7f007f00u) + 0x01000100u) & 0x80008000u;
    __half2 v, scale;
    const uint32_t two_to_8 = 0x5c005c00u;
    memcpy(&v, &bits, sizeof v);
    memcpy(&scale, &two_to_8, sizeof scale);
    v = __hmul2(v, scale);
    memcpy(&bits, &v, sizeof bits);
    return bits | (nan - (nan >> 5));
#endif
}

/* A float as E4M3, rounded to nearest even and saturating at +-448; NaN stays NaN. From 2^-6 on the
 * upper bits are rounded, below it, where E4M3 is subnormal, it is a multiple of 2^-9. The same on
 * every architecture. */
DEVICE uint8_t float_e4m3(float f) {
    uint32_t u = __float_as_uint(f), sign = u >> 24 & 0x80, bits = 0x7f;
    float a = fabsf(f);
    u &= 0x7fffffffu;
    if (a >= 0.015625f)
        bits = min(((u + 0x7ffff + (u >> 20 & 1)) >> 20) - (120 << 3), 0x7eu);
    else if (a == a)
        bits = (uint32_t)__float2int_rn(a * 512);
    return (uint8_t)(sign | bits);
}

/* ---- sums -------------------------------------------------------------------------------------- */

DEVICE float warp_sum(float v) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2)
        v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}
DEVICE float warp_max(float v) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2)
        v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, step));
    return v;
}

/* Over all threads of a block of THREADS; every thread gets the same result. `scratch` is shared
 * memory for THREADS / 32 floats, and may be used again after another barrier. */
template <int THREADS> DEVICE float block_sum(float v, float *scratch) {
    v = warp_sum(v);
    if (threadIdx.x % WARP == 0)
        scratch[threadIdx.x / WARP] = v;
    __syncthreads();
    v = 0;
#pragma unroll
    for (int i = 0; i < THREADS / WARP; i++)
        v += scratch[i];
    return v;
}

/* x / (1 + e^-x) */
DEVICE float silu(float x) {
    return x / (1 + __expf(-x));
}

static inline int ceil_div(int64_t a, int64_t b) {
    return (int)((a + b - 1) / b);
}
