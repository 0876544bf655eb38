/* vec_avx2: v16, sixteen floats as two AVX2 registers. The same functions as vec_avx512.h, with the
 * same bits: kernels are written once, over v16. */
#pragma once

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#include "host/dtype.h"

#define VEC static inline __attribute__((always_inline))

#include "host/cpu/vec_e4m3.h"

enum { DOT_MAX_ROWS = 6 }; /* see dot_impl.h */
#define DOT_SHAPES(X) X(4, 1) X(2, 1) X(2, 2) X(1, 1) X(1, 2) X(1, 3) X(1, 4) X(1, 5) X(1, 6)

typedef struct {
    __m256 lo, hi;
} v16;

/* Is a pair of columns read twice, one after the other? 12 of the 16 registers hold sums then. */
#define DOT_PAIR_TWICE(NX) ((NX) == DOT_MAX_ROWS)

/* Makes what follows from pointer p and index i wait for v, for the compiler: it moves nothing
 * ahead. */
#define V16_AFTER(v, p, i) __asm__("" : "+r"(p), "+r"(i) : "x"((v).lo))

VEC v16 v16_set1(float f) {
    __m256 v = _mm256_set1_ps(f);
    return (v16){v, v};
}
VEC v16 v16_load(const float *p) {
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
VEC void v16_store(float *p, v16 a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
VEC v16 v16_add(v16 a, v16 b) {
    return (v16){_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
VEC v16 v16_sub(v16 a, v16 b) {
    return (v16){_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
VEC v16 v16_mul(v16 a, v16 b) {
    return (v16){_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
VEC v16 v16_div(v16 a, v16 b) {
    return (v16){_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
/* a * b + c, rounded once. */
VEC v16 v16_fma(v16 a, v16 b, v16 c) {
    return (v16){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
/* The larger; b where either is NaN. */
VEC v16 v16_max(v16 a, v16 b) {
    return (v16){_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
VEC v16 v16_min(v16 a, v16 b) {
    return (v16){_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}

/* a in lanes [first, last), b in the others. */
VEC v16 v16_select(int first, int last, v16 a, v16 b) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i f = _mm256_set1_epi32(first), l = _mm256_set1_epi32(last);
    __m256i up = _mm256_add_epi32(lane, _mm256_set1_epi32(8));
    __m256i lo = _mm256_andnot_si256(_mm256_cmpgt_epi32(f, lane), _mm256_cmpgt_epi32(l, lane));
    __m256i hi = _mm256_andnot_si256(_mm256_cmpgt_epi32(f, up), _mm256_cmpgt_epi32(l, up));
    return (v16){_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(lo)),
                 _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(hi))};
}

/* a, but 0 where x < limit. */
VEC v16 v16_zero_below(v16 a, v16 x, v16 limit) {
    return (v16){_mm256_and_ps(a.lo, _mm256_cmp_ps(x.lo, limit.lo, _CMP_NLT_UQ)),
                 _mm256_and_ps(a.hi, _mm256_cmp_ps(x.hi, limit.hi, _CMP_NLT_UQ))};
}

VEC __m256 scale_by_power(__m256 a, __m256 n) {
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
}
/* a * 2^n, with n in the low bits of the float that adding 1.5 * 2^23 made; a and the result
 * normal. */
VEC v16 v16_scale_by_power(v16 a, v16 n) {
    return (v16){scale_by_power(a.lo, n.lo), scale_by_power(a.hi, n.hi)};
}

/* 16 row-major elements, unaligned. E4M3 comes out times 2^-8 (tile_scale). */
VEC v16 v16_load_dtype(enum dtype dtype, const void *p) {
    const __m128i *q = p;
    if (dtype == DTYPE_BF16)
        return (v16){
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), 16)),
            _mm256_castsi256_ps(
                _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1)), 16))};
    if (dtype == DTYPE_F16)
        return (v16){_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
    if (dtype == DTYPE_F8_E4M3) {
        __m256i w = load_e4m3(p);
        return (v16){_mm256_cvtph_ps(_mm256_castsi256_si128(w)),
                     _mm256_cvtph_ps(_mm256_extracti128_si256(w, 1))};
    }
    return v16_load(p);
}

VEC void v16_store_f16(void *p, v16 a) {
    __m128i *q = p;
    _mm_storeu_si128(q, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(q + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}

/* A pair of columns of a tile; not E4M3. */
VEC void v16_load_pair(enum dtype dtype, const void *p, v16 *even, v16 *odd) {
    const __m256i *q = p;
    if (dtype == DTYPE_BF16) {
        /* The odd column keeps the upper halves; zeros come from the even one's lower halves, as a
         * mask would take a register that the sums need. */
        __m256i a = _mm256_loadu_si256(q), b = _mm256_loadu_si256(q + 1);
        __m256i even_a = _mm256_slli_epi32(a, 16), even_b = _mm256_slli_epi32(b, 16);
        *even = (v16){_mm256_castsi256_ps(even_a), _mm256_castsi256_ps(even_b)};
        *odd = (v16){_mm256_castsi256_ps(_mm256_blend_epi16(even_a, a, 0xaa)),
                     _mm256_castsi256_ps(_mm256_blend_epi16(even_b, b, 0xaa))};
    } else {
        *even = v16_load_dtype(dtype, p);
        *odd = v16_load_dtype(dtype, (const char *)p + 16 * (dtype == DTYPE_F16 ? 2 : 4));
    }
}
