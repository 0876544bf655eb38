/* cpu_weights: matrices and KV blocks in the tile layout of kernels.h. */
#include <string.h>

#include "host/cpu/cpu_backend.h"

static size_t align64(size_t n) {
    return (n + 63) / 64 * 64;
}

static size_t matrix_bytes(enum dtype dtype, int32_t rows, int32_t cols) {
    return align64((size_t)((rows + TILE_ROWS - 1) / TILE_ROWS) * tile_bytes(dtype, cols));
}

/* Only FP8 weights carry scales. */
size_t cpu_weight_bytes(enum dtype dtype, int32_t rows, int32_t cols) {
    size_t scales = dtype == DTYPE_F8_E4M3 ? align64((size_t)rows * sizeof(float)) : 0;
    return matrix_bytes(dtype, rows, cols) + scales;
}

void cpu_weight_init(struct weight *w, enum dtype dtype, int32_t rows, int32_t cols, void *memory) {
    size_t tile = tile_bytes(dtype, cols), pair = tile_pair_bytes(dtype);
    *w = (struct weight){.dtype = dtype, .rows = rows, .cols = cols, .data = memory};
    if (dtype == DTYPE_F8_E4M3) {
        w->row_scale = (float *)(void *)((char *)memory + matrix_bytes(dtype, rows, cols));
        for (int32_t r = 0; r < rows; r++)
            w->row_scale[r] = 1;
    }
    /* The padding: rows of the last tile, and the last columns. */
    if (rows % TILE_ROWS)
        memset((char *)memory + (size_t)(rows / TILE_ROWS) * tile, 0, tile);
    if (cols % 2)
        for (int32_t r = 0; r < rows; r += TILE_ROWS)
            memset((char *)memory + (size_t)(r / TILE_ROWS + 1) * tile - pair, 0, pair);
}

/* Copies row `row` into a tile. The two columns of a pair are `next` elements apart; a constant size
 * makes the copies single moves. */
static inline void scatter_row(char *tile, const char *from, enum dtype dtype, int32_t row,
                               int32_t cols, size_t size) {
    size_t next = tile_index(dtype, 0, 1) * size;
    tile += tile_index(dtype, row, 0) * size;
    for (int32_t c = 0; c + 2 <= cols; c += 2) {
        memcpy(tile, from, size);
        memcpy(tile + next, from + size, size);
        from += 2 * size;
        tile += 2 * TILE_ROWS * size;
    }
    if (cols % 2)
        memcpy(tile, from, size);
}

static void put_row(char *tile, enum dtype dtype, const char *from, int32_t row, int32_t cols) {
    if (dtype == DTYPE_F32)
        scatter_row(tile, from, DTYPE_F32, row, cols, 4);
    else if (dtype == DTYPE_F16)
        scatter_row(tile, from, DTYPE_F16, row, cols, 2);
    else if (dtype == DTYPE_BF16)
        scatter_row(tile, from, DTYPE_BF16, row, cols, 2);
    else
        scatter_row(tile, from, DTYPE_F8_E4M3, row, cols, 1);
}

void cpu_weight_put(struct weight *w, int32_t row0, const struct tensor_slice *slice) {
    const struct tensor_source *source = slice->source;
    size_t tile = tile_bytes(w->dtype, w->cols), size = dtype_bytes(w->dtype);
    for (int32_t i = 0; i < slice->rows; i++) {
        int32_t r = row0 + i;
        int64_t at = (int64_t)(slice->row0 + i) * source->cols + slice->col0;
        char *out = (char *)w->data + (size_t)(r / TILE_ROWS) * tile;
        if (source->data)
            put_row(out, w->dtype, (const char *)source->data + (size_t)at * size, r % TILE_ROWS,
                    slice->cols);
        else
            for (int32_t c = 0; c < slice->cols; c++)
                dtype_store(w->dtype, out, (int64_t)tile_index(w->dtype, r % TILE_ROWS, c),
                            tensor_source_at(source, at + c));
        if (w->row_scale)
            w->row_scale[r] = source->scale;
    }
}

int32_t cpu_tiles(const struct weight *w, int32_t row0, int32_t max_tiles, const void **tiles) {
    size_t tile = tile_bytes(w->dtype, w->cols);
    int32_t n = (w->rows - row0 + TILE_ROWS - 1) / TILE_ROWS;
    n = n < max_tiles ? n : max_tiles;
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
