/* exec_real: what the handlers of floating-point instructions share.
 *
 * Results that are not a number become the canonical NaN of their width, as on GPUs; double
 * precision keeps payloads. min and max order -0 below +0 and skip NaN unless told otherwise.
 */
#pragma once

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "tests/ptxvm/vm.h"

enum { VM_NAN_F16 = 0x7fff, VM_NAN_BF16 = 0x7fff };
#define VM_NAN_F32 __builtin_nanf("0x3fffff") /* 0x7fffffff */

static inline uint32_t vm_f32_bits(float v) {
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}
static inline float vm_f32_from(uint32_t u) {
    float v;
    memcpy(&v, &u, sizeof v);
    return v;
}
static inline uint64_t vm_f64_bits(double v) {
    uint64_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}
static inline double vm_f64_from(uint64_t u) {
    double v;
    memcpy(&v, &u, sizeof v);
    return v;
}

static inline float vm_canonical(float v) {
    return v == v ? v : VM_NAN_F32;
}
/* Subnormal values become zeros of their sign. */
static inline uint32_t vm_flush_f32(uint32_t u) {
    return u & 0x7f800000u ? u : u & 0x80000000u;
}
static inline uint64_t vm_flush_f64(uint64_t u) {
    return u & 0x7ff0000000000000u ? u : u & 0x8000000000000000u;
}

/* min and max work on bits: signed integers order as the numbers do once the magnitude of negative
 * ones is inverted. */
static inline int32_t vm_rank_f32(uint32_t u) {
    return (int32_t)(u ^ ((uint32_t)((int32_t)u >> 31) & 0x7fffffffu));
}
static inline bool vm_is_nan_f32(uint32_t u) {
    return (u & 0x7fffffffu) > 0x7f800000u;
}
static inline uint32_t vm_pick_f32(uint32_t a, uint32_t b, bool max, bool keep_nan) {
    uint32_t nan = 0x7fffffffu, na = vm_is_nan_f32(a), nb = vm_is_nan_f32(b);
    uint32_t r = (vm_rank_f32(a) < vm_rank_f32(b)) != max ? a : b;
    uint32_t other = na ? nb ? nan : b : a;
    return !(na | nb) ? r : keep_nan ? nan : other;
}

/* ---- halves: f16 and bf16
 * --------------------------------------------------------------------------- */

/* n is a multiple of 8. */
static inline void vm_load_halves(float *out, const uint16_t *in, int n, bool is_bf16) {
    if (is_bf16) {
        for (int k = 0; k < n; k++)
            out[k] = vm_f32_from((uint32_t)in[k] << 16);
        return;
    }
    for (int k = 0; k < n; k += 8)
        _mm256_storeu_ps(out + k, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(in + k))));
}

static inline uint16_t vm_bf16_from(float v) {
    uint32_t u = vm_f32_bits(v);
    uint32_t r = (u + 0x7fffu + (u >> 16 & 1)) >> 16;
    return vm_is_nan_f32(u) ? VM_NAN_BF16 : (uint16_t)r;
}

/* Rounds to nearest, ties to even. */
static inline void vm_to_halves(uint16_t *out, const float *in, int n, bool is_bf16) {
    if (is_bf16) {
        for (int k = 0; k < n; k++)
            out[k] = vm_bf16_from(in[k]);
        return;
    }
    for (int k = 0; k < n; k += 8)
        _mm_storeu_si128((__m128i *)(out + k),
                         _mm256_cvtps_ph(_mm256_loadu_ps(in + k), _MM_FROUND_TO_NEAREST_INT));
    for (int k = 0; k < n; k++)
        out[k] = (out[k] & 0x7fff) > 0x7c00 ? VM_NAN_F16 : out[k];
}
