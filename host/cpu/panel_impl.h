/* panel_impl: dot products of many rows of x with tiles (prefill), and those with E4M3 tiles; and
 * `dot`, which chooses. Included by each kernels_<isa>.c after dot_impl.h.
 *
 * Two tiles x PANEL_COLS columns are widened to float once, into a panel that stays in the L1 cache
 * ([column][tile][lane]), then all rows of x go by in groups of up to PANEL_ROWS. What limits this
 * is how many instructions a core takes per cycle, more so when another thread shares it: per
 * column and tile pair a group of 3 rows costs 17 (AVX2), of which 12 are the multiplications.
 */
#pragma once

#include "host/cpu/dot_impl.h"

struct panel_job {
    struct dot_args a;
    const float *panel;
    int32_t tile0, num_tiles; /* in the panel */
    int32_t col, cols;        /* of the segment */
    float *chain;             /* [num_rows, PANEL_TILES, TILE_ROWS] sums between two panels */
};

/* Bytes per column and stream, of the MAX_TILES streams to come: PANEL_TILES tiles here, as many
 * bytes there. */
VEC int64_t panel_ahead(const struct panel_job *j, int32_t column) {
    int32_t slots = PANEL_TILES * TILE_ROWS / MAX_TILES;
    return ((int64_t)j->tile0 / PANEL_TILES * j->a.len + j->col + column) * slots *
           (int64_t)dtype_bytes(j->a.dtype);
}

VEC void panel_block(const int NX, const struct panel_job *j, int32_t group, int32_t row0) {
    const struct dot_args *a = &j->a;
    const float *w = j->panel, *x[MAX_BLOCK_ROWS];
    float *chain = j->chain + row0 * PANEL_TILES * TILE_ROWS;
    v16 acc[PANEL_TILES][MAX_BLOCK_ROWS];
    bool end = j->col + j->cols == a->len;
    const char *ahead = group < MAX_TILES ? a->ahead[group] : NULL;
    int64_t k = 0, step = panel_ahead(j, 4) - panel_ahead(j, 0);
    if (ahead)
        ahead += panel_ahead(j, 0);
#define PANEL_ROW(i)   x[i] = dot_row(a, row0 + i) + j->col;
#define PANEL_CLEAR(i) acc[0][i] = acc[1][i] = v16_set1(0);
#define PANEL_LOAD(i)                                                                              \
    {                                                                                              \
        acc[0][i] = v16_load(chain + 2 * i * TILE_ROWS);                                           \
        acc[1][i] = v16_load(chain + (2 * i + 1) * TILE_ROWS);                                     \
    }
#define PANEL_STORE(i)                                                                             \
    {                                                                                              \
        v16_store(chain + 2 * i * TILE_ROWS, acc[0][i]);                                           \
        v16_store(chain + (2 * i + 1) * TILE_ROWS, acc[1][i]);                                     \
    }
#define PANEL_COLUMN(at, i) panel_column(NX, w + at * PANEL_TILES * TILE_ROWS, x, k + i, acc);
    REPEAT8(NX, PANEL_ROW)
    if (j->col == 0)
        REPEAT8(NX, PANEL_CLEAR)
    else
        REPEAT8(NX, PANEL_LOAD)
    w += PANEL_TILES * TILE_ROWS; /* the middle of two columns: short displacements */
    while (k + 2 <= j->cols) {
        int64_t stop = k + TILE_ROWS < j->cols ? k + TILE_ROWS : j->cols;
        for (int64_t i = k; ahead && i < stop; i += 4, ahead += step)
            _mm_prefetch(ahead, _MM_HINT_T1);
        for (; k + 2 <= stop; k += 2, w += 2 * PANEL_TILES * TILE_ROWS) {
            PANEL_COLUMN(-1, 0)
            PANEL_COLUMN(0, 1)
        }
    }
    if (k < j->cols)
        PANEL_COLUMN(-1, 0)
    if (!end) {
        REPEAT8(NX, PANEL_STORE)
        return;
    }
    dot_store(NX, a, j->tile0, row0, acc[0]);
    if (j->num_tiles > 1)
        dot_store(NX, a, j->tile0 + 1, row0, acc[1]);
#undef PANEL_ROW
#undef PANEL_CLEAR
#undef PANEL_LOAD
#undef PANEL_STORE
#undef PANEL_COLUMN
}

typedef void panel_fn(const struct panel_job *j, int32_t group, int32_t row0);

#define PANEL_DEFINE(NX)                                                                           \
    static void panel_block_##NX(const struct panel_job *j, int32_t group, int32_t row0) {         \
        panel_block(NX, j, group, row0);                                                           \
    }
#define PANEL_ENTRY(NX) [NX] = panel_block_##NX,
PANEL_SHAPES(PANEL_DEFINE)

static panel_fn *const panel_table[PANEL_ROWS + 1] = {PANEL_SHAPES(PANEL_ENTRY)};

/* The columns of one tile, in its lanes of the panel. What no group of rows asks for ahead is asked
 * for here: streams [first_stream, MAX_TILES). */
VEC void panel_fill(const enum dtype dtype, const struct panel_job *j, int32_t t, float *panel,
                    int32_t first_stream) {
    const struct dot_args *a = &j->a;
    const char *tile = a->tiles[j->tile0 + t];
    const size_t pair_bytes = tile_pair_bytes(dtype);
    for (int32_t k = 0; k < j->cols;) {
        int32_t col = j->col + k, run = a->runs ? TILE_ROWS : j->cols;
        int32_t end = run < j->cols - k ? k + run : j->cols;
        const char *w =
            tile + (a->runs ? a->runs[col / TILE_ROWS] + (size_t)(col % TILE_ROWS / 2) * pair_bytes
                            : (size_t)((a->col0 + col) / 2) * pair_bytes);
        for (; k < end; k += 2, w += pair_bytes) {
            float *out = panel + (k * PANEL_TILES + t) * TILE_ROWS;
            v16 even, odd;
            if (first_stream < MAX_TILES && k % 4 == 0)
                for (int32_t s = first_stream + t; s < MAX_TILES; s += j->num_tiles)
                    _mm_prefetch(a->ahead[s] + panel_ahead(j, k), _MM_HINT_T1);
            v16_load_pair(dtype, w, &even, &odd);
            v16_store(out, even);
            v16_store(out + PANEL_TILES * TILE_ROWS, odd);
        }
    }
}

static void panel_fill_any(const struct panel_job *j, int32_t t, float *panel,
                           int32_t first_stream) {
    if (j->a.dtype == DTYPE_BF16)
        panel_fill(DTYPE_BF16, j, t, panel, first_stream);
    else if (j->a.dtype == DTYPE_F16)
        panel_fill(DTYPE_F16, j, t, panel, first_stream);
    else if (j->a.dtype == DTYPE_F8_E4M3)
        panel_fill(DTYPE_F8_E4M3, j, t, panel, first_stream);
    else
        panel_fill(DTYPE_F32, j, t, panel, first_stream);
}

static void dot_panels(const struct dot_args *a) {
    struct panel_job j = {.a = *a, .panel = a->panel, .chain = a->panel + PANEL_SIZE};
    int32_t n = a->num_rows, groups = (n + PANEL_ROWS - 1) / PANEL_ROWS;
    int32_t first_stream = a->ahead[0] ? groups : MAX_TILES;
    for (; j.tile0 < a->num_tiles; j.tile0 += PANEL_TILES)
        for (j.col = 0; j.col < a->len; j.col += j.cols) {
            j.cols = a->len - j.col < PANEL_COLS ? a->len - j.col : PANEL_COLS;
            j.num_tiles = a->num_tiles - j.tile0 < PANEL_TILES ? 1 : PANEL_TILES;
            for (int32_t t = 0; t < j.num_tiles; t++)
                panel_fill_any(&j, t, a->panel, first_stream);
            for (int32_t g = 0, row = 0, nx; g < groups; g++, row += nx) {
                nx = (n - row + groups - g - 1) / (groups - g);
                panel_table[nx](&j, g, row);
            }
        }
}

static void dot(const struct dot_args *a) {
    if (a->num_rows > DOT_MAX_ROWS || a->dtype == DTYPE_F8_E4M3)
        dot_panels(a);
    else
        dot_cover(dot_tables[a->dtype], a);
}
