/* dense_tile: what the tile kernels of dense products share (dense_tile.cu, unit_tile.cu): copies of
 * a stage's weights and tokens, and its products. tile.cuh has the shape of a tile.
 *
 * FRAGMENTS lie in a stage as they do in memory. Rows, of weights and of tokens, have 128 bytes
 * (BF16), the halves of odd rows swapped, so that the 8 lanes of a phase (2 rows x 4 chunks) cover
 * all banks; rows of FP8 tokens have 64, the halves of every second pair of rows swapped (4 rows x 4
 * half chunks).
 */
#pragma once

#include "cuda/tile.cuh"

constexpr int TILE_ROWS = TILE_GROUPS * FRAGMENT_ROWS;

/* ---- stages ------------------------------------------------------------------------------------ */

/* Where chunk c of weight row r lies in a stage of ROWS: as BF16 tokens do. */
DEVICE int row_chunk(int r, int c) {
    return x_chunk_at<WEIGHT_BF16>(r, c) * 16;
}

/* Starts the copies of weights: TILE_GROUPS groups from first_group on, tiles [tile, tile +
 * STAGE_TILES). Rows past the last are copied from the last one, or its group; tiles past the last
 * are not copied, and not read. */
template <enum weight_kind KIND, enum weight_layout LAYOUT>
DEVICE void copy_weights(char *stage, const struct dense_args &a, int tiles, int first_group,
                         int tile) {
    const char *w = (const char *)a.weight;
    constexpr int tile_chunks = LAYOUT == LAYOUT_ROWS ? FRAGMENT_COLS / 8 : TILE_BYTES<KIND> / 16;
    constexpr int line_chunks = STAGE_TILES * tile_chunks; /* of a row, or of a group */
    constexpr int lines = LAYOUT == LAYOUT_ROWS ? TILE_ROWS : TILE_GROUPS;
    int last = LAYOUT == LAYOUT_ROWS ? a.rows - 1 : (a.rows - 1) / FRAGMENT_ROWS;
    int first = LAYOUT == LAYOUT_ROWS ? first_group * FRAGMENT_ROWS : first_group;
#pragma unroll
    for (int i = 0; i < lines * line_chunks / TILE_THREADS; i++) {
        int chunk = i * TILE_THREADS + threadIdx.x;
        int r = chunk / line_chunks, c = chunk % line_chunks;
        int64_t line = min(first + r, last);
        if (tile + c / tile_chunks < tiles)
            cp_async16(stage + (LAYOUT == LAYOUT_ROWS ? row_chunk(r, c) : chunk * 16),
                       w + ((line * tiles + tile) * tile_chunks + c) * 16, true);
    }
}

/* Starts the copies of the same columns of TILE_TOKENS tokens; zeros past the last token or column. */
template <enum weight_kind KIND, int NT>
DEVICE void copy_tokens(char *stage, const struct dense_args &a, int tiles, int first_token,
                        int tile) {
    constexpr int tile_chunks = X_CHUNKS<KIND> / STAGE_TILES;
    const uint4 *x = (const uint4 *)(IS_XQ<KIND> ? (const void *)a.xq : a.x);
    int64_t row_chunks = IS_XQ<KIND> ? tiles * tile_chunks : a.ldx / 8;
    int last = IS_XQ<KIND> ? tiles * tile_chunks : a.cols / 8; /* chunk of a row */
    int c = threadIdx.x % X_CHUNKS<KIND>, at = tile * tile_chunks + c;
#pragma unroll
    for (int i = 0; i < TILE_TOKENS<NT> * X_CHUNKS<KIND> / TILE_THREADS; i++) {
        int r = (i * TILE_THREADS + threadIdx.x) / X_CHUNKS<KIND>;
        bool valid = first_token + r < a.num_tokens && at < last;
        const uint4 *from = x + (valid ? (first_token + r) * row_chunks + at : 0);
        cp_async16(stage + x_chunk_at<KIND>(r, c) * 16, from, valid);
    }
}

template <enum weight_kind KIND, enum weight_layout LAYOUT, int NT>
DEVICE void copy_stage(char *stage, const struct dense_args &a, int tiles, int first_group,
                       int first_token, int tile) {
    copy_weights<KIND, LAYOUT>(stage, a, tiles, first_group, tile);
    copy_tokens<KIND, NT>(stage + W_STAGE_BYTES<KIND>, a, tiles, first_token, tile);
}

/* ---- products ---------------------------------------------------------------------------------- */

/* The lane's registers of group r of the block, tile t of the stage: as weight_tile_load. */
template <enum weight_kind KIND, enum weight_layout LAYOUT>
DEVICE void stage_weights(uint4 v[TILE_LOADS<KIND>], const char *stage, int r, int t) {
    int lane = threadIdx.x % WARP;
    if constexpr (LAYOUT == LAYOUT_FRAGMENTS) {
        const char *w = stage + (r * STAGE_TILES + t) * TILE_BYTES<KIND> + lane * 16;
#pragma unroll
        for (int h = 0; h < TILE_LOADS<KIND>; h++)
            v[h] = *(const uint4 *)(w + h * (WARP * 16));
    } else {
        int row = r * FRAGMENT_ROWS + lane / 4, c = t * 4 + lane % 4;
        uint4 low = *(const uint4 *)(stage + row_chunk(row, c));
        uint4 high = *(const uint4 *)(stage + row_chunk(row + 8, c));
        v[0] = make_uint4(low.x, high.x, low.y, high.y);
        v[1] = make_uint4(low.z, high.z, low.w, high.w);
    }
}

/* chain += the products of one tile of 32 columns that lies in shared memory. */
template <enum weight_kind KIND, enum weight_layout LAYOUT, int NT>
DEVICE void tile_multiply(float chain[MATS][NT][4], const char *stage, int t) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int warp_m = warp / WARPS_N, warp_n = warp % WARPS_N;
    uint32_t w[MATS][TILE_MMAS<KIND>][4];
#pragma unroll
    for (int m = 0; m < MATS; m++) {
        uint4 v[TILE_LOADS<KIND>];
        stage_weights<KIND, LAYOUT>(v, stage, warp_m * MATS + m, t);
        weight_tile_operands<KIND>(w[m], v);
    }
    const char *x = stage + W_STAGE_BYTES<KIND>;
#pragma unroll
    for (int n = 0; n < NT; n++) {
        int token = (warp_n * NT + n) * GROUP_TOKENS + lane / 4;
        struct token_piece<KIND> b = stage_piece<KIND>(x, token, t);
#pragma unroll
        for (int m = 0; m < MATS; m++)
            mma_tile<KIND>(chain[m][n], w[m], b);
    }
}
