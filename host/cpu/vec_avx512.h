/* vec_avx512: v16 as one AVX-512 register (F, BW, VL, DQ); see vec_avx2.h. With MOESERVE_SIMDE the
 * intrinsics are SIMDe's, so that the kernels can be tested on machines without AVX-512. */
#pragma once

#ifdef MOESERVE_SIMDE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
#include <simde/x86/avx512.h>
#else
#include <immintrin.h>
#endif
#include <stdbool.h>
#include <stdint.h>

#include "host/dtype.h"

#define VEC static inline __attribute__((always_inline))

#include "host/cpu/vec_e4m3.h"

enum { DOT_MAX_ROWS = 8 }; /* see dot_impl.h */
/* clang-format off */
#define DOT_SHAPES(X)                                                                              \
    X(4, 1) X(4, 2)                                                                                \
    X(2, 1) X(2, 2) X(2, 3) X(2, 4) X(2, 5) X(2, 6) X(2, 7) X(2, 8)                                \
    X(1, 1) X(1, 2) X(1, 3) X(1, 4) X(1, 5) X(1, 6) X(1, 7) X(1, 8)
/* clang-format on */

typedef __m512 v16;

#define DOT_PAIR_TWICE(NX) false /* 32 registers are enough */
#define V16_AFTER(v, p, i) ((void)0)

VEC v16 v16_set1(float f) {
    return _mm512_set1_ps(f);
}
VEC v16 v16_load(const float *p) {
    return _mm512_loadu_ps(p);
}
VEC void v16_store(float *p, v16 a) {
    _mm512_storeu_ps(p, a);
}
VEC v16 v16_add(v16 a, v16 b) {
    return _mm512_add_ps(a, b);
}
VEC v16 v16_sub(v16 a, v16 b) {
    return _mm512_sub_ps(a, b);
}
VEC v16 v16_mul(v16 a, v16 b) {
    return _mm512_mul_ps(a, b);
}
VEC v16 v16_div(v16 a, v16 b) {
    return _mm512_div_ps(a, b);
}
VEC v16 v16_fma(v16 a, v16 b, v16 c) {
    return _mm512_fmadd_ps(a, b, c);
}
VEC v16 v16_max(v16 a, v16 b) {
    return _mm512_max_ps(a, b);
}
VEC v16 v16_min(v16 a, v16 b) {
    return _mm512_min_ps(a, b);
}

VEC v16 v16_select(int first, int last, v16 a, v16 b) {
    uint32_t below_first = (1u << first) - 1, below_last = (1u << last) - 1;
    return _mm512_mask_blend_ps((__mmask16)(below_last & ~below_first), b, a);
}

VEC v16 v16_zero_below(v16 a, v16 x, v16 limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), a);
}

VEC v16 v16_scale_by_power(v16 a, v16 n) {
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(a), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
}

VEC v16 widen_halves(__m256i h) {
#ifdef MOESERVE_SIMDE
    union {
        __m256 half[2];
        v16 v;
    } u;
    u.half[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(h));
    u.half[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1));
    return u.v;
#else
    return _mm512_cvtph_ps(h);
#endif
}

VEC v16 widen_bf16(__m256i b) {
#ifdef MOESERVE_SIMDE
    union {
        __m256i half[2];
        v16 v;
    } u;
    u.half[0] = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(b)), 16);
    u.half[1] = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(b, 1)), 16);
    return u.v;
#else
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
#endif
}

VEC v16 v16_load_dtype(enum dtype dtype, const void *p) {
    if (dtype == DTYPE_BF16)
        return widen_bf16(_mm256_loadu_si256(p));
    if (dtype == DTYPE_F16)
        return widen_halves(_mm256_loadu_si256(p));
    if (dtype == DTYPE_F8_E4M3)
        return widen_halves(load_e4m3(p));
    return v16_load(p);
}

VEC void v16_store_f16(void *p, v16 a) {
#ifdef MOESERVE_SIMDE
    union {
        v16 v;
        __m256 half[2];
    } u = {a};
    __m128i *q = p;
    _mm_storeu_si128(q, _mm256_cvtps_ph(u.half[0], _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(q + 1, _mm256_cvtps_ph(u.half[1], _MM_FROUND_TO_NEAREST_INT));
#else
    _mm256_storeu_si256(p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
#endif
}

VEC void v16_load_pair(enum dtype dtype, const void *p, v16 *even, v16 *odd) {
    if (dtype == DTYPE_BF16) {
        __m512i a = _mm512_loadu_si512(p);
        *even = _mm512_castsi512_ps(_mm512_slli_epi32(a, 16));
        *odd = _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32((int)0xffff0000)));
    } else {
        *even = v16_load_dtype(dtype, p);
        *odd = v16_load_dtype(dtype, (const char *)p + 16 * (dtype == DTYPE_F16 ? 2 : 4));
    }
}
