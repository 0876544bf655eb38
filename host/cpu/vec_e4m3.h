/* vec_e4m3: E4M3 tiles widened through F16, in 256-bit registers for every instruction set.
 * Included by vec_<isa>.h after the intrinsics and VEC. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* E4M3 codes in the upper bytes of 16-bit lanes as F16, times 2^-8: the code is an F16 but for one
 * more exponent bit, which the sign fills and a mask clears. Exact, subnormals too; NaN codes come
 * out as 480 when all are said to be finite. */
VEC __m256i e4m3_to_f16(__m256i codes, bool finite) {
    __m256i w = _mm256_and_si256(_mm256_srai_epi16(codes, 1), _mm256_set1_epi16((short)0xbf80));
    if (finite)
        return w;
    __m256i magnitude = _mm256_and_si256(w, _mm256_set1_epi16(0x7fff));
    return _mm256_or_si256(w, _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x3f80)));
}

/* 16 codes in a row as F16, NaNs kept. */
VEC __m256i load_e4m3(const void *p) {
    return e4m3_to_f16(_mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128(p)), 8), false);
}

/* A pair of columns of an E4M3 tile as a pair of an F16 tile, times 2^-8. */
VEC void widen_e4m3_pair(const void *p, bool finite, uint16_t *out) {
    __m256i a = _mm256_loadu_si256(p);
    _mm256_storeu_si256((void *)out, e4m3_to_f16(_mm256_slli_epi16(a, 8), finite));
    _mm256_storeu_si256((void *)(out + 16), e4m3_to_f16(a, finite));
}
