/* dot_impl: dot products of rows of x with tiles of 16 matrix rows, the core of matmul, experts and
 * attention. Included by each kernels_<isa>.c after its vec_<isa>.h.
 *
 * A block of NT tiles x NX rows of x is kept in registers while the columns go by. Few rows
 * (decode): several tiles at once hide the latency of the additions. Many rows (prefill): one tile
 * and up to DOT_MAX_ROWS rows. Weights are widened in registers; E4M3, for which that is dear, is
 * first made F16 in `panel`, a tile in the cache. The additions, and so the bits, are the same in
 * all cases: element (row, lane) is one chain of fused multiply-adds over the columns.
 *
 * What a core gets from memory is limited by how many streams of addresses it reads at a time, and
 * a block walks through one or two tiles only. So what is needed after this call (`ahead`) is asked
 * for meanwhile, MAX_TILES streams in turn, and waits in the L2 cache when its call comes.
 */
#pragma once

#include <string.h>

#include "host/cpu/kernels.h"

/* X(0) .. X(n - 1) for a constant n <= 4 or 8. Written out, so that every array index is a constant
 * from the start and the sums live in registers; compilers differ in what they make of loops. */
#define REPEAT4(n, X)                                                                              \
    {                                                                                              \
        if ((n) > 0)                                                                               \
            X(0)                                                                                   \
        if ((n) > 1)                                                                               \
            X(1)                                                                                   \
        if ((n) > 2)                                                                               \
            X(2)                                                                                   \
        if ((n) > 3)                                                                               \
            X(3)                                                                                   \
    }
#define REPEAT8(n, X)                                                                              \
    {                                                                                              \
        REPEAT4(n, X)                                                                              \
        if ((n) > 4)                                                                               \
            X(4)                                                                                   \
        if ((n) > 5)                                                                               \
            X(5)                                                                                   \
        if ((n) > 6)                                                                               \
            X(6)                                                                                   \
        if ((n) > 7)                                                                               \
            X(7)                                                                                   \
    }
enum { MAX_BLOCK_ROWS = 8 };

static inline const float *dot_row(const struct dot_args *a, int32_t i) {
    return (const float *)a->x + (a->rows ? a->rows[i] : i) * a->ldx;
}

/* acc[i] += w * x[i][k] */
VEC void dot_column(const int NX, v16 w, const float *const *x, int64_t k, v16 *acc) {
#define DOT_FMA(i) acc[i] = v16_fma(w, v16_set1(x[i][k]), acc[i]);
    REPEAT8(NX, DOT_FMA)
#undef DOT_FMA
}

/* Columns k and k + 1 of x with the pair at w. */
VEC void dot_pair(const enum dtype dtype, const int NX, const char *w, const float *const *x,
                  int64_t k, v16 *acc) {
    v16 even, odd;
    v16_load_pair(dtype, w, &even, &odd);
    dot_column(NX, even, x, k, acc);
    if (DOT_PAIR_TWICE(NX)) {
        /* Registers are full: start on the second column only now, with the pair read again. */
        V16_AFTER(acc[NX - 1], w, k);
        v16_load_pair(dtype, w, &even, &odd);
    }
    dot_column(NX, odd, x, k + 1, acc);
}

/* Adds the sums of one block to memory, or stores them; times the tile's scales if it has any. */
VEC void dot_store(const int NX, const struct dot_args *a, int32_t tile, float *sums,
                   const v16 *acc) {
    float *s = sums + tile * TILE_ROWS;
    if (a->block_scales[0]) {
        v16 scale = v16_load(a->block_scales[tile]);
#define DOT_STORE(i) v16_store(s + i * a->lds, v16_mul(scale, acc[i]));
#define DOT_ADD(i)   v16_store(s + i * a->lds, v16_fma(scale, acc[i], v16_load(s + i * a->lds)));
        if (a->add)
            REPEAT8(NX, DOT_ADD)
        else
            REPEAT8(NX, DOT_STORE)
        return;
#undef DOT_STORE
#undef DOT_ADD
    }
#define DOT_STORE(i) v16_store(s + i * a->lds, acc[i]);
#define DOT_ADD(i)   v16_store(s + i * a->lds, v16_add(v16_load(s + i * a->lds), acc[i]));
    if (a->add)
        REPEAT8(NX, DOT_ADD)
    else
        REPEAT8(NX, DOT_STORE)
#undef DOT_STORE
#undef DOT_ADD
}

/* Asks for a line of each stream of what comes next, `at` bytes into each. */
VEC void dot_ahead(const struct dot_args *a, int64_t at) {
#define DOT_AHEAD(t) _mm_prefetch(a->ahead[t] + at, _MM_HINT_T1);
    REPEAT4(MAX_TILES, DOT_AHEAD)
#undef DOT_AHEAD
}

VEC void dot_block(const enum dtype dtype, const int NT, const int NX, const struct dot_args *a,
                   int32_t tile0, int32_t row0) {
    const size_t pair_bytes = 2 * TILE_ROWS * (dtype == DTYPE_F32 ? 4 : 2);
    const char *w[MAX_TILES];
    const float *x[MAX_BLOCK_ROWS];
    v16 acc[MAX_TILES][MAX_BLOCK_ROWS], even, odd;
    int32_t num_units = dot_num_units(a);
    int64_t len = a->len, whole = num_units * len;
    bool ahead = a->ahead[0] && row0 == 0; /* each weight is asked for by the first rows only */
    int64_t ahead_bytes = TILE_ROWS / MAX_TILES * (a->dtype == DTYPE_F8_E4M3 ? 1 : pair_bytes / 32);
#define DOT_ROW(i)   x[i] = dot_row(a, row0 + i) + u * a->x_step;
#define DOT_CLEAR(i) acc[0][i] = acc[1][i] = acc[2][i] = acc[3][i] = v16_set1(0);
#define DOT_TILE(t)                                                                                \
    w[t] = (const char *)a->tiles[tile0 + t] + start +                                             \
           (size_t)((a->col0 + u * len) / 2) * pair_bytes;
#define DOT_PAIR(t)                                                                                \
    {                                                                                              \
        dot_pair(dtype, NX, w[t], x, k, acc[t]);                                                   \
        w[t] += pair_bytes;                                                                        \
    }
#define DOT_HALF(t)                                                                                \
    {                                                                                              \
        v16_load_pair(dtype, w[t], &even, &odd);                                                   \
        dot_column(NX, even, x, k, acc[t]);                                                        \
    }
#define DOT_SUMS(t) dot_store(NX, a, tile0 + t, a->sums + row0 * a->lds + u * a->sums_step, acc[t]);
    for (int32_t u = 0; u < num_units; u++) {
        REPEAT8(NX, DOT_ROW)
        REPEAT8(NX, DOT_CLEAR)
        int64_t k = 0;
        for (int64_t run = 0; k < len; run++) {
            size_t start = a->runs ? a->runs[run] : 0;
            int64_t end = a->runs && k + TILE_ROWS < len ? k + TILE_ROWS : len;
            REPEAT4(NT, DOT_TILE)
            while (ahead && k + 8 / NT <= end) { /* four pairs of columns here, four lines there */
                dot_ahead(a, (tile0 * whole + (u * len + k) * NT) * ahead_bytes);
                for (int i = 0; i < 4 / NT; i++, k += 2)
                    REPEAT4(NT, DOT_PAIR)
            }
            for (; k + 2 <= end; k += 2)
                REPEAT4(NT, DOT_PAIR)
            if (k < end) {
                REPEAT4(NT, DOT_HALF)
                k++;
            }
        }
        REPEAT4(NT, DOT_SUMS)
    }
}

typedef void dot_fn(const struct dot_args *a, int32_t tile0, int32_t row0);

#define DOT_DEFINE(dtype, NT, NX)                                                                  \
    static void dot_##dtype##_##NT##x##NX(const struct dot_args *a, int32_t tile0, int32_t row0) { \
        dot_block(DTYPE_##dtype, NT, NX, a, tile0, row0);                                          \
    }
#define DOT_ENTRY(dtype, NT, NX) [NT - 1][NX] = dot_##dtype##_##NT##x##NX,
#define DOT_DEFINE_ALL(NT, NX)                                                                     \
    DOT_DEFINE(F32, NT, NX) DOT_DEFINE(F16, NT, NX) DOT_DEFINE(BF16, NT, NX)
#define DOT_F32(NT, NX)  DOT_ENTRY(F32, NT, NX)
#define DOT_F16(NT, NX)  DOT_ENTRY(F16, NT, NX)
#define DOT_BF16(NT, NX) DOT_ENTRY(BF16, NT, NX)
DOT_SHAPES(DOT_DEFINE_ALL)

typedef dot_fn *const dot_table[MAX_TILES][DOT_MAX_ROWS + 1]; /* [tiles - 1][rows] */

static dot_table dot_tables[] = {
    [DTYPE_F32] = {DOT_SHAPES(DOT_F32)},
    [DTYPE_F16] = {DOT_SHAPES(DOT_F16)},
    [DTYPE_BF16] = {DOT_SHAPES(DOT_BF16)},
};

/* Covers the tiles and rows of a call with blocks, the rows in groups of nearly equal size. Two
 * tiles of 16-bit weights fit into the L1 cache beside a group of rows: the group is read once for
 * both. */
static void dot_cover(dot_table table, const struct dot_args *a) {
    int32_t n = a->num_rows, groups = (n + DOT_MAX_ROWS - 1) / DOT_MAX_ROWS;
    if (n == 0)
        return;
    int32_t most = (n + groups - 1) / groups, nt = MAX_TILES;
    while (nt > a->num_tiles || !table[nt - 1][most])
        nt--;
    int32_t together = a->dtype == DTYPE_F32 || nt > 2 ? nt : 2;
    for (int32_t tile0 = 0; tile0 < a->num_tiles; tile0 += together)
        for (int32_t g = 0, row = 0; g < groups; g++) {
            int32_t nx = (n - row + groups - g - 1) / (groups - g);
            for (int32_t tile = tile0, now; tile < tile0 + together && tile < a->num_tiles;
                 tile += now) {
                now = nt;
                while (now > a->num_tiles - tile || !table[now - 1][nx])
                    now--;
                table[now - 1][nx](a, tile, row);
            }
            row += nx;
        }
}

/* Makes columns [col0, col0 + len) of E4M3 tiles F16 tiles in the panel, times 2^-8 (tile_scale).
 */
static void widen_tiles(const struct dot_args *a) {
    const size_t pair_bytes = 2 * TILE_ROWS;
    int32_t whole = a->len * dot_num_units(a);
    for (int32_t t = 0; t < a->num_tiles; t++) {
        const char *tile = (const char *)a->tiles[t] + (size_t)(a->col0 / 2) * pair_bytes;
        uint16_t *out = a->panel + t * SEGMENT_COLS * TILE_ROWS;
        for (int32_t k = 0, run = 0; k < whole; run++) {
            const char *w = tile + (a->runs ? a->runs[run] : 0);
            int32_t end = a->runs && k + TILE_ROWS < whole ? k + TILE_ROWS : whole;
            for (; k < end; k += 2, w += pair_bytes)
                widen_e4m3_pair(w, a->finite, out + k * TILE_ROWS);
        }
    }
}

static void dot(const struct dot_args *a) {
    if (a->dtype != DTYPE_F8_E4M3) {
        dot_cover(dot_tables[a->dtype], a);
        return;
    }
    struct dot_args wide = *a;
    widen_tiles(a);
    wide.col0 = 0;
    wide.runs = NULL;
    int32_t block = (a->col0 + a->block_col0) / SCALE_COLS;
    for (int32_t t = 0; t < a->num_tiles && a->block_scales[0]; t++)
        wide.block_scales[t] += block * TILE_ROWS;
    for (int32_t t = 0; t < a->num_tiles; t++)
        wide.tiles[t] = a->panel + t * SEGMENT_COLS * TILE_ROWS;
    dot_cover(dot_tables[DTYPE_F16], &wide);
}
