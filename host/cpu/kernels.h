/* kernels: what each SIMD file of host/cpu exports, and the layouts that they share.
 *
 * Tiles. A matrix [rows, cols] is cut into tiles of 16 rows; a tile stores its columns one after
 * the other, the 16 rows of a column side by side, so that a vector lane is a row and a dot product
 * is one chain of fused multiply-adds in column order: no horizontal sums, and the same bits for
 * any vector width, batch or number of threads. Columns come in pairs (an odd last one is padded
 * with zeros):
 *
 *   F32, F16     [cols/2][2][16]   column k, then column k + 1
 *   BF16, F8     [cols/2][16][2]   the two columns of a row side by side, for widening by shifts
 *
 * Rows are padded with zeros to a multiple of 16. A KV block stores, for each KV head, its keys as
 * one tile (rows are the 16 tokens, columns are D) and its values as ceil(D / 16) tiles (rows are
 * D, columns are the 16 tokens), so that attention is made of the same dot products.
 *
 * Segments. Sums over columns are cut at multiples of the reduction unit, and inside a unit every
 * SEGMENT_COLS columns, or at the end of a block of columns that has scales of its own; a segment
 * is one chain, and the segments of a unit, times their scales, are added in order.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    TILE_ROWS = 16,
    SEGMENT_COLS = 256,
    MAX_TILES = 4, /* of one call: four streams of weights keep a core's loads busy */
    TILE_GROUP_ROWS = MAX_TILES * TILE_ROWS,
    SCALE_COLS = 128, /* of a block of columns that has scales of its own */
    PANEL_SIZE = MAX_TILES * SEGMENT_COLS * TILE_ROWS,
    ATTENTION_ROWS = 24,  /* (token, head) rows that share a pass over keys and values */
    PARTITION_KEYS = 256, /* keys of one softmax, at multiples of this position */
};

/* Bytes of a pair of columns of a tile, and of a whole tile. */
static inline size_t tile_pair_bytes(enum dtype dtype) {
    return 2 * TILE_ROWS * dtype_bytes(dtype);
}

static inline size_t tile_bytes(enum dtype dtype, int32_t cols) {
    return (size_t)(cols + 1) / 2 * tile_pair_bytes(dtype);
}

/* Index of element (row, col) in its tile. */
static inline size_t tile_index(enum dtype dtype, int32_t row, int32_t col) {
    if (dtype == DTYPE_BF16 || dtype == DTYPE_F8_E4M3)
        return ((size_t)(col / 2) * TILE_ROWS + (size_t)row) * 2 + (size_t)(col % 2);
    return (size_t)col * TILE_ROWS + (size_t)row;
}

/* What sums over a tile have to be multiplied by: E4M3 is widened through F16, whose exponent bias
 * is larger by 8. Exact. */
static inline float tile_scale(enum dtype dtype) {
    return dtype == DTYPE_F8_E4M3 ? 256.0f : 1.0f;
}

/* sums[i][16 * tile + lane] (+)= scale * sum over k < len of tile[lane, col0 + k] * x[row i][k], i
 * < num_rows. Row i of x is x + rows[i] * ldx, or x + i * ldx when rows is NULL. len <=
 * SEGMENT_COLS. With `runs` the columns of a tile lie in pieces, as the values of a paged context
 * do. */
struct dot_args {
    enum dtype dtype;
    int32_t num_tiles;            /* 1 .. MAX_TILES */
    const void *tiles[MAX_TILES]; /* their first columns */
    int32_t col0, len;            /* col0 is even */
    bool finite;                  /* E4M3 tiles hold no NaN: widening them is cheaper */
    const size_t *runs; /* or NULL: every 16 columns start at the tile + runs[column / 16] */
    const void *x;      /* float; pairs of BF16 in a uint32_t for dot_pairs */
    int64_t ldx;        /* in elements of 4 bytes */
    const int32_t *rows;
    int32_t num_rows;
    /* E4M3: scales of blocks of SCALE_COLS columns, or block_scales[0] NULL: all are 1.
     * [blocks][16] for each tile, whose column 0 is column block_col0 of the first block. The
     * columns of a call lie in one block. */
    const float *block_scales[MAX_TILES];
    int32_t block_col0; /* even */
    float *sums;        /* [num_rows, lds] */
    int64_t lds;
    bool add; /* to what is there, else overwrite */
    /* 0, or how often the same is done for the `len` columns that follow (num_units * len <=
     * SEGMENT_COLS, no runs): x and sums go on by so many elements. */
    int32_t num_units;
    int64_t x_step, sums_step;
    uint16_t *panel; /* [PANEL_SIZE] scratch of the thread */
    /* What will be read next, as many bytes of each as this call reads of a tile: it is brought to
     * the L2 cache meanwhile. Any address will do; ahead[0] NULL: nothing. */
    const char *ahead[MAX_TILES];
};

static inline int32_t dot_num_units(const struct dot_args *a) {
    return a->num_units > 1 ? a->num_units : 1;
}

/* The sums of up to MAX_TILES tiles, with what is needed to store them. */
struct store_args {
    const float *sums; /* [num_rows, TILE_GROUP_ROWS] */
    int32_t num_rows;  /* rows of x */
    int32_t num_units; /* add_units: [num_units, num_rows, TILE_GROUP_ROWS], added in order; 0: 1 */
    int32_t count;     /* columns to store: rows of the matrix */
    const float *scale; /* [count] or NULL */
    float factor;       /* multiplies too; a power of two */
};

/* Rows (token, query head) of one KV head of one sequence, and their keys. */
struct attend_args {
    enum dtype dtype;
    int32_t head_dim;
    const char *keys, *values; /* the head's tiles in block 0 */
    size_t block_bytes;
    const int32_t *blocks;       /* the sequence's block table */
    int32_t num_rows;            /* <= ATTENTION_ROWS */
    const int32_t *first, *last; /* [num_rows] keys [first, last) are seen */
    const float *q;              /* [num_rows, D] */
    float scale;
    float *scores;   /* [ATTENTION_ROWS, PARTITION_KEYS] scratch */
    uint16_t *panel; /* [PANEL_SIZE] scratch */
};

/* Unnormalised softmax sums of some keys, per row: max of the scores, sum of exp(score - max), and
 * that sum weighted by the values. max is -INFINITY where no key was seen. */
struct attend_sums {
    float *max, *sum; /* [num_rows] */
    float *out;       /* [num_rows, attend_width(D)] */
};

static inline int32_t attend_width(int32_t head_dim) {
    return (head_dim + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
}

struct cpu_kernels {
    const char *name;        /* of the op table: "cpu-avx2" */
    const char *description; /* "AVX2" */

    void (*dot)(const struct dot_args *a);
    /* The same for BF16 tiles with x rounded to BF16 pairs, when the machine multiplies those; NULL
     * otherwise. An odd last pair of x is padded with a zero; no runs. */
    void (*dot_pairs)(const struct dot_args *a);
    void (*round_to_pairs)(uint32_t *pairs, const float *x, int32_t n); /* writes (n + 1) / 2 */

    /* y[i][j] = sum * scale + bias */
    void (*store_rows)(const struct store_args *s, float *y, int64_t ldy, const float *bias);
    /* total[i][j] += (double)(float)(weight[i] * (sum * scale)), unit by unit; weight NULL: 1.
     * total: [num_rows, TILE_GROUP_ROWS] */
    void (*add_units)(const struct store_args *s, double *total, const float *weight);
    /* partial[rows ? rows[i] : i][j] += total[i][j], j < count */
    void (*add_rows)(double *partial, int64_t ld, const int32_t *rows, const double *total,
                     int32_t num_rows, int32_t count);
    /* act[i][j] = silu(gate) * up: gate in sums' first columns, up from TILE_GROUP_ROWS / 2 on. */
    void (*silu_mul)(const struct store_args *s, const float *up_scale, float up_factor, float *act,
                     int64_t ld);

    void (*load_row)(float *out, enum dtype dtype, const void *data, int32_t n); /* unaligned */
    void (*store_row)(void *out, enum dtype dtype, const float *x, int32_t n);
    /* x[d] * rms * norm[d] (norm NULL: x[d]), clamped to +-clip (0: not), then the pairs
     * (d, d + D/2) rotated. */
    void (*norm_rotate)(float *x, const float *norm, float rms, float clip, const float *cos_sin,
                        int32_t D);
    void (*add_norm)(float *x, float *hidden, const double *partial, const float *norm, float eps,
                     int32_t n);
    float (*sum_squares)(const float *x, int32_t n);
    void (*softmax)(float *z, int32_t n);

    /* keys [PARTITION_KEYS * p, ...) of the rows; then into += from, as one softmax. */
    void (*attend_partition)(const struct attend_args *a, int32_t p, struct attend_sums *out);
    void (*attend_merge)(struct attend_sums *into, const struct attend_sums *from, int32_t num_rows,
                         int32_t head_dim);
};

extern const struct cpu_kernels kernels_avx2, kernels_avx512, kernels_avx512bf16;

#ifdef __cplusplus
}
#endif
