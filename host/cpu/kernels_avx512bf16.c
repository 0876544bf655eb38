/* kernels_avx512bf16: as kernels_avx512, and BF16 weights are multiplied by pairs (vdpbf16ps), with
 * the activations rounded to BF16. The instruction flushes subnormals and rounds in an order of its
 * own, which is fixed: results are reproducible, but differ from the other kernels' by the rounding
 * of the activations. */
#include "host/cpu/vec_avx512.h"

#include "host/cpu/dot_impl.h"
#include "host/cpu/row_impl.h"
#include "host/cpu/kernels_impl.h"

VEC v16 v16_dot_pairs(v16 acc, const void *w, uint32_t x) {
#ifdef MOESERVE_SIMDE
    /* SIMDe's own version rounds differently for different compilers; this is the instruction's order:
     * the odd column, then the even one. */
    v16 even, odd;
    v16_load_pair(DTYPE_BF16, w, &even, &odd);
    acc = v16_fma(odd, v16_set1(f32_from_bits(x & 0xffff0000)), acc);
    return v16_fma(even, v16_set1(f32_from_bits(x << 16)), acc);
#else
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_loadu_si512(w),
                            (__m512bh)_mm512_set1_epi32((int)x));
#endif
}

VEC void pairs_block(const int NT, const int NX, const struct dot_args *a, int32_t tile0,
                     int32_t row0) {
    const size_t pair_bytes = tile_pair_bytes(DTYPE_BF16);
    const char *w[MAX_TILES];
    const uint32_t *x[DOT_MAX_ROWS];
    v16 acc[MAX_TILES][DOT_MAX_ROWS];
    int32_t pairs = (a->len + 1) / 2;
    for (int t = 0; t < NT; t++) {
        w[t] = (const char *)a->tiles[tile0 + t] + (size_t)(a->col0 / 2) * pair_bytes;
        for (int i = 0; i < NX; i++)
            acc[t][i] = v16_set1(0);
    }
    for (int i = 0; i < NX; i++)
        x[i] = (const uint32_t *)a->x + (a->rows ? a->rows[row0 + i] : row0 + i) * a->ldx;
    for (int32_t k = 0; k < pairs; k++)
        for (int t = 0; t < NT; t++) {
            _mm_prefetch(w[t] + PREFETCH_BYTES, _MM_HINT_T0);
            for (int i = 0; i < NX; i++)
                acc[t][i] = v16_dot_pairs(acc[t][i], w[t], x[i][k]);
            w[t] += pair_bytes;
        }
    DOT_STORE(NT, NX)
}

#define PAIRS_DEFINE(NT, NX)                                                                       \
    static void pairs_##NT##x##NX(const struct dot_args *a, int32_t tile0, int32_t row0) {         \
        pairs_block(NT, NX, a, tile0, row0);                                                       \
    }
#define PAIRS_ENTRY(NT, NX) [NT - 1][NX] = pairs_##NT##x##NX,
DOT_SHAPES(PAIRS_DEFINE)

static dot_table pairs_table = {DOT_SHAPES(PAIRS_ENTRY)};

static void dot_pairs(const struct dot_args *a) {
    dot_cover(pairs_table, a);
}

#ifdef MOESERVE_SIMDE
extern const struct cpu_kernels kernels_avx512bf16_simde;
const struct cpu_kernels kernels_avx512bf16_simde =
    KERNELS_TABLE("cpu-avx512bf16-simde", "AVX-512-BF16 by SIMDe", dot_pairs);
#else
const struct cpu_kernels kernels_avx512bf16 = KERNELS_TABLE(
    "cpu-avx512bf16", "AVX-512-BF16 (activations rounded to BF16 for BF16 weights)", dot_pairs);
#endif
