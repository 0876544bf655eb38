/* unit_tile: partials in exact sums over units of columns, for many tokens, by tiles in shared memory
 *
 *   y[t, r] = sum over units of (double)(float)(weight[t] * unit sum)        (units.cuh)
 *
 * Shapes   as unit_stream.cu; experts that have more than stream_limit tokens.
 * Tile     128 weight rows x 64 tokens, by 8 warps, 4 x 2. A warp has 32 rows and 32 tokens: a sum
 *          takes 4 registers, and twice as many tokens would want more than there are.
 * Launch   persistent grid over tiles, tokens within rows, 1 block an SM.
 * Stages   cp.async of 64 columns (dense_tile.cuh): BF16 3 of 24 KB, F8 4 of 16 KB, F8 x F8 4 of 12 KB.
 * Issue    a unit of 128 columns is 32 mma of BF16 a warp and group of rows and tokens, which a 4090
 *          takes 4,096 clocks an SM for, and 15 float32 operations for each of 8,192 sums, 960 clocks.
 * Numerics units.cuh: the same bits as unit_stream.cu.
 * Requires cols % 8 == 0, and rows of x aligned to 16 bytes (FP8 activations always are); FP8 weights
 *          are FRAGMENTS.
 */
#include "cuda/cuda_check.h"
#include "cuda/dense_tile.cuh"
#include "cuda/units.cuh"

constexpr int NT = 4;
template <enum weight_kind KIND> constexpr int UNIT_STAGES = KIND == WEIGHT_BF16 ? 3 : 4;

/* A warp's sums: MATS groups of 16 rows, NT of 8 tokens. */
struct unit_sums {
    float chain[MATS][NT][4], total[MATS][NT][4][3];
};

/* After tile `tile`, which ends the chains. */
template <enum weight_kind KIND>
DEVICE void chains_add(struct unit_sums *s, const struct dense_args &a, int tiles, int first_group,
                       int tile, const struct token_factors<KIND, TILE_TOKENS<NT>> &factors) {
    int warp = threadIdx.x / WARP, at = tile + a.block_col0 / FRAGMENT_COLS;
#pragma unroll
    for (int m = 0; m < MATS; m++) {
        float scale[2];
        chain_scales<KIND>(scale, a, first_group + warp / WARPS_N * MATS + m, tiles,
                           at / BLOCK_TILES);
        chain_add<KIND, NT>(s->total[m], s->chain[m], scale, factors, warp % WARPS_N * NT);
    }
}

/* The sums of a tile. */
template <enum weight_kind KIND, enum weight_layout LAYOUT>
DEVICE void unit_tile_sum(struct unit_sums *s, char *stages, const struct dense_args &a,
                          int unit_tiles, int first_group, int first_token,
                          const struct token_factors<KIND, TILE_TOKENS<NT>> &factors) {
    constexpr int N = UNIT_STAGES<KIND>, BYTES = STAGE_BYTES<KIND, NT>;
    int tiles = (a.cols + FRAGMENT_COLS - 1) / FRAGMENT_COLS, in_unit = 0, slot = 0;
    int steps = (tiles + STAGE_TILES - 1) / STAGE_TILES, cut = a.block_col0 / FRAGMENT_COLS;
#pragma unroll
    for (int m = 0; m < MATS; m++) {
        clear_sums<NT>(s->chain[m]);
        clear_exact<NT>(s->total[m]);
    }
#pragma unroll
    for (int i = 0; i < N - 1; i++) {
        if (i < steps)
            copy_stage<KIND, LAYOUT, NT>(stages + i * BYTES, a, tiles, first_group, first_token,
                                         i * STAGE_TILES);
        cp_async_commit();
    }
    for (int step = 0; step < steps; step++) {
        cp_async_wait<N - 2>();
        __syncthreads(); /* the stage is there for all, and nobody reads the one before any more */
        int ahead = step + N - 1, ahead_slot = slot == 0 ? N - 1 : slot - 1;
        if (ahead < steps)
            copy_stage<KIND, LAYOUT, NT>(stages + ahead_slot * BYTES, a, tiles, first_group,
                                         first_token, ahead * STAGE_TILES);
        cp_async_commit();
#pragma unroll 1
        for (int t = 0; t < STAGE_TILES; t++) {
            int tile = step * STAGE_TILES + t;
            if (tile >= tiles)
                continue;
            tile_multiply<KIND, LAYOUT, NT>(s->chain, stages + slot * BYTES, t);
            if (chain_ends<KIND>(in_unit, unit_tiles, tile + cut, tile + 1 == tiles))
                chains_add<KIND>(s, a, tiles, first_group, tile, factors);
            in_unit = in_unit + 1 == unit_tiles ? 0 : in_unit + 1;
        }
        slot = slot + 1 == N ? 0 : slot + 1;
    }
}

/* What a lane holds, to y. */
DEVICE void unit_tile_store(const struct unit_sums &s, const struct unit_item &item,
                            int first_group, int first_token) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int first_row = (first_group + warp / WARPS_N * MATS) * FRAGMENT_ROWS + lane / 4;
    first_token += warp % WARPS_N * NT * GROUP_TOKENS + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < MATS; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int row = first_row + m * FRAGMENT_ROWS + c / 2 * 8;
                int t = first_token + n * GROUP_TOKENS + c % 2;
                if (row < item.a.rows && t < item.a.num_tokens)
                    item.y[t * item.a.ldy + row] = exact_double(s.total[m][n][c]);
            }
}

template <enum weight_kind KIND, enum weight_layout LAYOUT>
__global__ void __launch_bounds__(TILE_THREADS, 1) unit_tile_kernel(const struct unit_args u) {
    extern __shared__ __align__(128) char stages[];
    __shared__ struct moe_queue queue;
    __shared__ struct token_factors<KIND, TILE_TOKENS<NT>> factors;
    int row_tiles = (u.a.rows - 1) / TILE_ROWS + 1;
    if constexpr (RUNS_HERE<KIND>) {
        moe_queue_start(&queue);
        for (int number = blockIdx.x;; number += gridDim.x) {
            struct unit_item item;
            if (!unit_item_next(&item, &queue, u, number, u.moe.stream_limit, INT32_MAX, row_tiles,
                                TILE_TOKENS<NT>))
                break;
            int token_tiles = (item.a.num_tokens - 1) / TILE_TOKENS<NT> + 1;
            int first_group = item.index / token_tiles * TILE_GROUPS;
            int first_token = item.index % token_tiles * TILE_TOKENS<NT>;
            struct unit_sums sums;
            token_factors_load(&factors, item, u, first_token);
            unit_tile_sum<KIND, LAYOUT>(&sums, stages, item.a, u.unit_tiles, first_group,
                                        first_token, factors);
            unit_tile_store(sums, item, first_group, first_token);
            __syncthreads(); /* nobody reads the stages, the factors or the item any more */
        }
    }
}

/* Tiles that there may be. */
static int64_t most_tiles(const struct unit_args *u) {
    int64_t tokens = u->a.num_tokens, rows = ceil_div(u->a.rows, TILE_ROWS);
    if (!u->experts)
        return ceil_div(tokens, TILE_TOKENS<NT>) * rows;
    const struct moe_launch_args *a = &u->moe.a;
    int64_t pairs = (int64_t)a->num_tokens * a->num_experts_per_tok;
    return (pairs / TILE_TOKENS<NT> + a->num_local) * rows;
}

template <enum weight_kind KIND, enum weight_layout LAYOUT>
static void launch(const struct unit_args *u, cudaStream_t stream) {
    constexpr int bytes = UNIT_STAGES<KIND> * STAGE_BYTES<KIND, NT>;
    int64_t items = most_tiles(u), blocks = u->a.gpu.num_sms;
    CHECK(items <= INT32_MAX, "rows %d, %d tokens", u->a.rows, u->a.num_tokens);
    blocks = items < blocks ? items : blocks;
    CUDA_CHECK(cudaFuncSetAttribute(unit_tile_kernel<KIND, LAYOUT>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    unit_tile_kernel<KIND, LAYOUT><<<(int)blocks, TILE_THREADS, bytes, stream>>>(*u);
    LAUNCH_CHECK();
}

void unit_tile_launch(const struct unit_args *u, cudaStream_t stream) {
    switch (weight_kind_of(u->a.dtype, u->a.scale, u->a.xq)) {
    case WEIGHT_BF16:
        return u->a.layout == LAYOUT_ROWS ? launch<WEIGHT_BF16, LAYOUT_ROWS>(u, stream)
                                          : launch<WEIGHT_BF16, LAYOUT_FRAGMENTS>(u, stream);
    case WEIGHT_F8_ROW:
        return launch<WEIGHT_F8_ROW, LAYOUT_FRAGMENTS>(u, stream);
    case WEIGHT_F8_BLOCK:
        return launch<WEIGHT_F8_BLOCK, LAYOUT_FRAGMENTS>(u, stream);
    case WEIGHT_F8_ROW_XQ:
        return launch<WEIGHT_F8_ROW_XQ, LAYOUT_FRAGMENTS>(u, stream);
    case WEIGHT_F8_BLOCK_XQ:
        return launch<WEIGHT_F8_BLOCK_XQ, LAYOUT_FRAGMENTS>(u, stream);
    }
}
