/* tile: what the tile kernels share (moe_tile.cu, dense_tile.cu): the shape of a block's tile, where a
 * stage keeps its tokens, and a warp's sums.
 *
 * A block of 8 warps, 4 x 2, multiplies 128 weight rows by 64 or 128 tokens, in stages of 64 columns. A
 * warp has MATS groups of 16 rows and NT groups of 8 tokens. A stage is the weights, W_STAGE_BYTES, and
 * behind them the tokens' rows.
 */
#pragma once

#include "cuda/mma_rows.cuh"

constexpr int WARPS_M = 4, WARPS_N = 2;
constexpr int TILE_THREADS = WARPS_M * WARPS_N * WARP;
constexpr int MATS = 2;                             /* groups of 16 rows of a warp */
constexpr int TILE_GROUPS = WARPS_M * MATS;         /* of a block */
constexpr int STAGE_TILES = 2;                      /* of 32 columns */
/* 16 bytes each, of a token's row in a stage. */
template <enum weight_kind KIND>
constexpr int X_CHUNKS = STAGE_TILES * FRAGMENT_COLS * (IS_XQ<KIND> ? 1 : 2) / 16;

/* NT groups of 8 tokens a warp. */
template <int NT> constexpr int TILE_TOKENS = WARPS_N * NT * GROUP_TOKENS;
template <enum weight_kind KIND>
constexpr int W_STAGE_BYTES = TILE_GROUPS * STAGE_TILES * TILE_BYTES<KIND>;
template <enum weight_kind KIND, int NT>
constexpr int STAGE_BYTES = W_STAGE_BYTES<KIND> + TILE_TOKENS<NT> * X_CHUNKS<KIND> * 16;
template <enum weight_kind KIND, int NT>
constexpr int STAGES = KIND == WEIGHT_BF16 && NT == 4 ? 2 : IS_XQ<KIND> ? 4 : 3;
template <enum weight_kind KIND, int NT>
constexpr int TILE_BLOCKS = NT == 8 || HAS_CHAINS<KIND> ? 1 : 2; /* an SM */

/* Where chunk c of a token's row lies in a stage: the token's chunks are swapped so that the lanes
 * of a phase of tile_multiply's loads cover all banks. Rows of 128 bytes: 2 tokens x 4 chunks of 16
 * bytes; FP8, of 64 bytes: 4 tokens x 4 half chunks. */
template <enum weight_kind KIND> DEVICE int x_chunk_at(int token, int c) {
    int swap = IS_XQ<KIND> ? (token & 2) : (token & 1) * 4;
    return token * X_CHUNKS<KIND> + (c ^ swap);
}

/* The lane's columns of tile t of a token that lies in shared memory. */
template <enum weight_kind KIND>
DEVICE struct token_piece<KIND> stage_piece(const char *x, int token, int t) {
    int lane = threadIdx.x % 4;
    if constexpr (IS_XQ<KIND>) {
        const char *chunk = x + x_chunk_at<KIND>(token, t * 2 + lane / 2) * 16;
        uint2 v = *(const uint2 *)(chunk + lane % 2 * 8);
        return {{v.x, v.y}};
    } else {
        uint4 v = *(const uint4 *)(x + x_chunk_at<KIND>(token, t * 4 + lane) * 16);
        return {{v.x, v.y, v.z, v.w}};
    }
}

/* A warp's sums. With chains of 128 columns there are three: of the chain, of the segment, and in
 * all. */
template <enum weight_kind KIND, int NT> struct tile_sums {
    float chain[MATS][NT][4];
    float segment[HAS_CHAINS<KIND> ? MATS : 0][NT][4];
    float total[MATS][NT][4];
};

/* The sums of a new tile. */
template <enum weight_kind KIND, int NT> DEVICE void clear_tile(struct tile_sums<KIND, NT> *s) {
#pragma unroll
    for (int m = 0; m < MATS; m++) {
        clear_sums<NT>(s->chain[m]);
        clear_sums<NT>(s->total[m]);
        if constexpr (HAS_CHAINS<KIND>)
            clear_sums<NT>(s->segment[m]);
    }
}

/* to += from; from = 0 */
template <int NT> DEVICE void move_sums(float to[NT][4], float from[NT][4]) {
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            to[n][c] += from[n][c];
            from[n][c] = 0;
        }
}
