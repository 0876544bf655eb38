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
    /* SIMDe's own version rounds differently for different compilers; this is the instruction's
     * order: the odd column, then the even one. */
    v16 even, odd;
    v16_load_pair(DTYPE_BF16, w, &even, &odd);
    acc = v16_fma(odd, v16_set1(f32_from_bits(x & 0xffff0000)), acc);
    return v16_fma(even, v16_set1(f32_from_bits(x << 16)), acc);
#else
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_loadu_si512(w),
                            (__m512bh)_mm512_set1_epi32((int)x));
#endif
}

/* acc[i] += pair at w * pair x[i][k] */
VEC void pairs_column(const int NX, const void *w, const uint32_t *const *x, int32_t k, v16 *acc) {
#define PAIRS_DOT(i) acc[i] = v16_dot_pairs(acc[i], w, x[i][k]);
    REPEAT8(NX, PAIRS_DOT)
#undef PAIRS_DOT
}

VEC void pairs_block(const int NT, const int NX, const struct dot_args *a, int32_t tile0,
                     int32_t row0) {
    const size_t pair_bytes = 2 * TILE_ROWS * 2;
    const char *w[MAX_TILES];
    const uint32_t *x[MAX_BLOCK_ROWS];
    v16 acc[MAX_TILES][MAX_BLOCK_ROWS];
    int32_t pairs = (a->len + 1) / 2, num_units = dot_num_units(a);
    bool ahead = a->ahead[0] && row0 == 0;
#define PAIRS_ROW(i) x[i] = (const uint32_t *)dot_row(a, row0 + i) + u * a->x_step;
#define PAIRS_TILE(t)                                                                              \
    w[t] = (const char *)a->tiles[tile0 + t] + (size_t)(a->col0 / 2 + u * pairs) * pair_bytes;
#define PAIRS_CLEAR(i) acc[0][i] = acc[1][i] = acc[2][i] = acc[3][i] = v16_set1(0);
#define PAIRS_STEP(t)                                                                              \
    {                                                                                              \
        pairs_column(NX, w[t], x, k, acc[t]);                                                      \
        w[t] += pair_bytes;                                                                        \
    }
#define PAIRS_SUMS(t)                                                                              \
    dot_store(NX, a, tile0 + t, a->sums + row0 * a->lds + u * a->sums_step, acc[t]);
    for (int32_t u = 0; u < num_units; u++) {
        int32_t k = 0;
        REPEAT8(NX, PAIRS_ROW)
        REPEAT4(NT, PAIRS_TILE)
        REPEAT8(NX, PAIRS_CLEAR)
        while (ahead && k + 4 / NT <= pairs) {
            dot_ahead(a, (tile0 * num_units * pairs + (u * pairs + k) * NT) *
                             (int64_t)(pair_bytes / MAX_TILES));
            for (int i = 0; i < 4 / NT; i++, k++)
                REPEAT4(NT, PAIRS_STEP)
        }
        for (; k < pairs; k++)
            REPEAT4(NT, PAIRS_STEP)
        REPEAT4(NT, PAIRS_SUMS)
    }
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
