/* cpu_weights: matrices and KV blocks in the tile layout of kernels.h. */
#include <math.h>
#include <string.h>

#include "host/cpu/cpu_backend.h"

static size_t align64(size_t n) {
    return (n + 63) / 64 * 64;
}

static size_t matrix_bytes(enum dtype dtype, int32_t rows, int32_t cols) {
    return align64((size_t)((rows + TILE_ROWS - 1) / TILE_ROWS) * tile_bytes(dtype, cols));
}

/* Scales of blocks of columns are kept for every row, so that any rows can be stacked to a matrix:
 * [tiles][blocks][16 rows], a vector for each block of a tile. It is 3% of what E4M3 tiles take. */
static int32_t scale_blocks(int32_t cols, int32_t block_col0) {
    return (cols + block_col0 + FP8_BLOCK_SIZE - 1) / FP8_BLOCK_SIZE;
}

/* How many scales there are; only FP8 weights carry any. */
static size_t num_scales(const struct weight_shape *s) {
    if (s->dtype != DTYPE_F8_E4M3)
        return 0;
    if (s->scaling != FP8_BLOCK)
        return (size_t)s->rows;
    return (size_t)((s->rows + TILE_ROWS - 1) / TILE_ROWS) * TILE_ROWS *
           (size_t)scale_blocks(s->cols, s->block_col0);
}

/* The scales of the tile of row0 for the first block of columns. */
static float *tile_scales(const struct weight *w, int32_t row0) {
    return w->block_scale +
           (size_t)(row0 / TILE_ROWS * scale_blocks(w->cols, w->block_col0)) * TILE_ROWS;
}

size_t cpu_weight_bytes(const struct weight_shape *s) {
    return matrix_bytes(s->dtype, s->rows, s->cols) + align64(num_scales(s) * sizeof(float));
}

void cpu_weight_init(struct backend *b, struct weight *w, const struct weight_shape *s,
                     void *memory) {
    int32_t rows = s->rows, cols = s->cols;
    size_t tile = tile_bytes(s->dtype, cols), pair = tile_pair_bytes(s->dtype);
    float *scales = (float *)(void *)((char *)memory + matrix_bytes(s->dtype, rows, cols));
    (void)b;
    *w = (struct weight){
        .dtype = s->dtype, .use = s->use, .rows = rows, .cols = cols, .data = memory};
    for (size_t i = 0; i < num_scales(s); i++)
        scales[i] = 1;
    if (s->dtype == DTYPE_F8_E4M3 && s->scaling == FP8_BLOCK) {
        CHECK(s->block_col0 % 2 == 0, "block_col0 %d: columns are stored in pairs", s->block_col0);
        w->block_scale = scales;
        w->block_col0 = s->block_col0;
    } else if (s->dtype == DTYPE_F8_E4M3) {
        w->row_scale = scales;
    }
    /* The padding: rows of the last tile, and the last columns. */
    if (rows % TILE_ROWS)
        memset((char *)memory + (size_t)(rows / TILE_ROWS) * tile, 0, tile);
    if (cols % 2)
        for (int32_t r = 0; r < rows; r += TILE_ROWS)
            memset((char *)memory + (size_t)(r / TILE_ROWS + 1) * tile - pair, 0, pair);
}

/* Copies `cols` columns of one row into a tile; `tile` points to the row's element in the first of
 * them. A constant size makes the copies single moves. */
static inline void scatter_row(char *tile, const char *from, enum dtype dtype, int32_t cols,
                               size_t size) {
    size_t next = tile_index(dtype, 0, 1) * size; /* from a pair's first column to its second */
    for (int32_t c = 0; c + 2 <= cols; c += 2) {
        if (next == size) {
            memcpy(tile, from, 2 * size);
        } else {
            memcpy(tile, from, size);
            memcpy(tile + next, from + size, size);
        }
        from += 2 * size;
        tile += 2 * TILE_ROWS * size;
    }
    if (cols % 2)
        memcpy(tile, from, size);
}

static void put_row(char *tile, enum dtype dtype, const char *from, int32_t cols) {
    if (dtype == DTYPE_F32)
        scatter_row(tile, from, DTYPE_F32, cols, 4);
    else if (dtype == DTYPE_F16)
        scatter_row(tile, from, DTYPE_F16, cols, 2);
    else if (dtype == DTYPE_BF16)
        scatter_row(tile, from, DTYPE_BF16, cols, 2);
    else
        scatter_row(tile, from, DTYPE_F8_E4M3, cols, 1);
}

/* Columns of 16 rows at a time: 16 KiB of a BF16 tile are written while they are in the cache. */
enum { PUT_COLS = 512 };

static bool holds_nan_code(const char *codes, int32_t n) {
    bool nan = false;
    for (int32_t i = 0; i < n; i++)
        nan |= (codes[i] & 0x7f) == 0x7f;
    return nan;
}

/* All products with row r become NaN. */
static void spoil_row(struct weight *w, int32_t r) {
    if (w->row_scale)
        w->row_scale[r] = NAN;
    else
        tile_scales(w, r)[r % TILE_ROWS] = NAN;
}

/* Columns [col, col + cols) of rows [i, i + rows) of the slice, which lie in one tile. */
static void put_piece(struct weight *w, int32_t row0, const struct tensor_slice *slice, int32_t i,
                      int32_t rows, int32_t col, int32_t cols) {
    const struct tensor_source *source = slice->source;
    size_t size = dtype_bytes(w->dtype);
    _Alignas(float) char made[PUT_COLS * sizeof(float)];
    for (int32_t k = i; k < i + rows; k++) {
        int32_t r = row0 + k;
        char *tile = (char *)w->data + (size_t)(r / TILE_ROWS) * tile_bytes(w->dtype, w->cols) +
                     tile_index(w->dtype, r % TILE_ROWS, col) * size;
        int64_t at = (int64_t)(slice->row0 + k) * source->cols + slice->col0 + col;
        const char *from = made;
        if (source->data)
            from = (const char *)source->data + (size_t)at * size;
        else
            weights_dummy_fill(source, slice->row0 + k, 1, slice->col0 + col, cols, w->dtype, made);
        put_row(tile, w->dtype, from, cols);
        if (w->dtype == DTYPE_F8_E4M3 && holds_nan_code(from, cols))
            spoil_row(w, r); /* as the codes are widened as if all were finite */
    }
}

/* The scales of row row0 + i of the matrix, row i of the slice. */
static void put_scales(struct weight *w, int32_t row0, const struct tensor_slice *slice,
                       int32_t i) {
    const struct tensor_source *source = slice->source;
    int32_t r = row0 + i, from = slice->row0 + i;
    if (w->row_scale) {
        w->row_scale[r] = tensor_source_scale(source, from, 0);
        return;
    }
    float *scale = tile_scales(w, r) + r % TILE_ROWS;
    for (int32_t c = 0; c < slice->cols; scale += TILE_ROWS) {
        *scale = tensor_source_scale(source, from, slice->col0 + c);
        c += FP8_BLOCK_SIZE - (c + w->block_col0) % FP8_BLOCK_SIZE;
    }
}

void cpu_weight_put(struct backend *b, struct weight *w, int32_t row0,
                    const struct tensor_slice *slice) {
    (void)b;
    for (int32_t i = 0; w->dtype == DTYPE_F8_E4M3 && i < slice->rows; i++)
        put_scales(w, row0, slice, i);
    for (int32_t i = 0, rows; i < slice->rows; i += rows) {
        rows = TILE_ROWS - (row0 + i) % TILE_ROWS;
        rows = rows < slice->rows - i ? rows : slice->rows - i;
        for (int32_t c = 0; c < slice->cols; c += PUT_COLS)
            put_piece(w, row0, slice, i, rows, c,
                      slice->cols - c < PUT_COLS ? slice->cols - c : PUT_COLS);
    }
}

void cpu_tile_scales(const struct weight *w, int32_t row0, int32_t num_tiles,
                     const float **scales) {
    for (int32_t i = 0; i < num_tiles; i++)
        scales[i] = w->block_scale ? tile_scales(w, row0 + i * TILE_ROWS) : NULL;
}

int32_t cpu_tiles(const struct weight *w, int32_t row0, int32_t max_tiles, const void **tiles) {
    size_t tile = tile_bytes(w->dtype, w->cols);
    int32_t n = (w->rows - row0 + TILE_ROWS - 1) / TILE_ROWS;
    n = n < 0 ? 0 : n < max_tiles ? n : max_tiles;
    for (int32_t i = 0; i < n; i++)
        tiles[i] = (const char *)w->data + (size_t)(row0 / TILE_ROWS + i) * tile;
    return n;
}

/* A block holds its KV heads one after the other, each with its keys, then its values. */
static size_t value_bytes(enum dtype dtype, int32_t head_dim) {
    return (size_t)(attend_width(head_dim) / TILE_ROWS) * tile_bytes(dtype, KV_BLOCK_SIZE);
}

size_t cpu_keys_offset(enum dtype dtype, int32_t head, int32_t head_dim) {
    return (size_t)head * (tile_bytes(dtype, head_dim) + value_bytes(dtype, head_dim));
}

size_t cpu_values_offset(enum dtype dtype, int32_t head, int32_t head_dim) {
    return cpu_keys_offset(dtype, head, head_dim) + tile_bytes(dtype, head_dim);
}

size_t cpu_kv_block_bytes(enum dtype dtype, int32_t num_kv_heads, int32_t head_dim) {
    return cpu_keys_offset(dtype, num_kv_heads, head_dim);
}
