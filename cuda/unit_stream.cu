/* unit_stream: partials in exact sums over units of columns, for few tokens, by streaming weights once
 *
 *   y[t, r] = sum over units of (double)(float)(weight[t] * unit sum)        (units.cuh)
 *
 * Shapes   x [T, ldx] bf16, or xq as FP8 activations; W [rows, cols] BF16 in either layout, E4M3 with
 *          scales as FRAGMENTS; y [T, ldy] float64. Experts: act, down and pair_out of those that have
 *          up to stream_limit tokens.
 * Launch   persistent grid of 8-warp blocks over items of 16 weight rows. The warps of a block share
 *          the units, the later ones one more where they do not divide; their sums meet in shared
 *          memory. NT groups of 8 tokens go through the mma together; a larger product takes more
 *          passes over the weights.
 * Bytes    W once for each 32 tokens, bandwidth-bound; x from L2 for every item. In flight: 3 to 4 KB
 *          a warp, but only warps with units have any: a rank that holds few units of wide columns
 *          leaves warps idle.
 * Choice   1 block an SM for 32 tokens: a sum takes 4 registers.
 * Numerics units.cuh: independent of T and of where the columns were cut at units.
 * Requires a unit that is a multiple of 32 columns. Rows of x that are not aligned to 16 bytes, or
 *          cols % 8 != 0, take a slow path: 8 tokens at a time, element by element, the same sums.
 */
#include "cuda/cuda_check.h"
#include "cuda/units.cuh"

template <int NT> constexpr int UNIT_BLOCKS = NT == 1 ? 2 : 1; /* an SM */

/* Tiles that a warp keeps in flight. NARROW loads want registers for themselves. */
template <enum weight_kind KIND, bool NARROW, int NT> DEVICE constexpr int unit_depth() {
    int depth = (NARROW ? 32 : NT == 1 ? 48 : 80) / (4 * TILE_LOADS<KIND> + X_WORDS<KIND> * NT);
    return depth < 2 ? 2 : depth > 8 ? 8 : depth;
}

/* Exact sums of 16 rows over tiles [first, last), which are units, for the tokens of x. */
template <enum weight_kind KIND, enum weight_layout LAYOUT, bool NARROW, int NT>
DEVICE void units_sum(float total[NT][4][3], const struct dense_args &a, int group,
                      const struct token_rows<NT> &x,
                      const struct token_factors<KIND, NT * GROUP_TOKENS> &factors, int unit_tiles,
                      int first, int last) {
    constexpr int DEPTH = unit_depth<KIND, NARROW, NT>();
    struct stream_stage<KIND, 1, NT> stage[DEPTH];
    int tiles = (a.cols + FRAGMENT_COLS - 1) / FRAGMENT_COLS;
    int cut = a.block_col0 / FRAGMENT_COLS, in_unit = 0;
    float chain[NT][4], scale[2];
    struct stream_rows<1> rows = {};
    rows.w[0] = weight_rows_at<KIND, LAYOUT>(a.weight, group, a.rows, tiles);
    if (IS_F8_ROW<KIND>)
        chain_scales<KIND>(scale, a, group, tiles, 0);
    clear_sums<NT>(chain);
    clear_exact<NT>(total);
#pragma unroll
    for (int d = 0; d < DEPTH; d++)
        if (first + d < last)
            stage_load<KIND, LAYOUT, NARROW>(&stage[d], rows, x, first + d);

    for (int base = first; base < last; base += DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            int tile = base + d;
            if (tile >= last)
                continue;
            uint32_t w[TILE_MMAS<KIND>][4];
            weight_tile_operands<KIND>(w, stage[d].w[0]);
#pragma unroll
            for (int n = 0; n < NT; n++)
                if (group_used(x, n))
                    mma_tile<KIND>(chain[n], w, stage[d].x[n]);
            if (tile + DEPTH < last)
                stage_load<KIND, LAYOUT, NARROW>(&stage[d], rows, x, tile + DEPTH);
            if (chain_ends<KIND>(in_unit, unit_tiles, tile + cut, tile + 1 == last)) {
                if (!IS_F8_ROW<KIND>)
                    chain_scales<KIND>(scale, a, group, tiles, (tile + cut) / BLOCK_TILES);
                chain_add<KIND, NT>(total, chain, scale, factors, 0);
            }
            in_unit = in_unit + 1 == unit_tiles ? 0 : in_unit + 1;
        }
    }
}

/* ---- the sums of a block's warps, added -------------------------------------------------------- */

template <int NT> constexpr int UNIT_ADD_GROUPS = NT < 2 ? NT : 2;

/* Shared memory: [warp][part of the exact sum][token][row], for some groups of tokens. */
template <int NT> struct unit_parts {
    float sum[SEGMENTS][3][UNIT_ADD_GROUPS<NT> * GROUP_TOKENS * ADD_STRIDE<1>];
};

/* Writes groups [first, first + UNIT_ADD_GROUPS) of the calling warp's sums. */
template <int NT>
DEVICE void unit_parts_store(struct unit_parts<NT> *parts, const float total[NT][4][3], int first) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int n = 0; n < NT; n++) {
        if (n < first || n >= first + UNIT_ADD_GROUPS<NT>)
            continue;
#pragma unroll
        for (int c = 0; c < 4; c++) {
            int token = (n - first) * GROUP_TOKENS + 2 * t + c % 2;
#pragma unroll
            for (int i = 0; i < 3; i++)
                parts->sum[threadIdx.x / WARP][i][token * ADD_STRIDE<1> + g + c / 2 * 8] =
                    total[n][c][i];
        }
    }
}

template <int NT> DEVICE double unit_parts_add(const struct unit_parts<NT> &parts, int at) {
    float sum[3] = {};
#pragma unroll
    for (int s = 0; s < SEGMENTS; s++)
#pragma unroll
        for (int i = 0; i < 3; i++)
            exact_add(sum, parts.sum[s][i][at]);
    return exact_double(sum);
}

/* ---- kernel and launch ------------------------------------------------------------------------- */

template <enum weight_kind KIND, int NT> struct unit_shared {
    struct unit_parts<NT> parts;
    struct token_factors<KIND, NT * GROUP_TOKENS> factors;
    struct moe_queue queue;
};

/* 16 rows for all tokens of an item. */
template <enum weight_kind KIND, enum weight_layout LAYOUT, bool NARROW, int NT>
DEVICE void unit_stream_item(const struct unit_args &u, const struct unit_item &item,
                             struct unit_shared<KIND, NT> *shared) {
    const struct dense_args &a = item.a;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int tiles = (a.cols + FRAGMENT_COLS - 1) / FRAGMENT_COLS;
    int units = (tiles + u.unit_tiles - 1) / u.unit_tiles;
    int first_tile = units * warp / SEGMENTS * u.unit_tiles;
    int last_tile = min(units * (warp + 1) / SEGMENTS * u.unit_tiles, tiles);
    struct token_rows<NT> x;
    x.x = IS_XQ<KIND> ? (const void *)a.xq : a.x;
    x.ld = IS_XQ<KIND> ? tiles * FRAGMENT_COLS : (int32_t)a.ldx;
    x.cols = a.cols;
    for (int first = 0; first < a.num_tokens; first += NT * GROUP_TOKENS) {
        float total[NT][4][3];
        token_factors_load(&shared->factors, item, u, first);
        x.groups = min(NT, (a.num_tokens - first + GROUP_TOKENS - 1) / GROUP_TOKENS);
#pragma unroll
        for (int n = 0; n < NT; n++)
            token_row_set<NARROW>(&x, n,
                                  min(first + n * GROUP_TOKENS + lane / 4, a.num_tokens - 1));
        units_sum<KIND, LAYOUT, NARROW, NT>(total, a, item.index, x, shared->factors, u.unit_tiles,
                                            first_tile, last_tile);
#pragma unroll
        for (int n = 0; n < NT; n += UNIT_ADD_GROUPS<NT>) {
            if (n >= x.groups)
                break;
            unit_parts_store<NT>(&shared->parts, total, n);
            __syncthreads(); /* the sums of these groups are in shared memory */
            for (int i = threadIdx.x; i < UNIT_ADD_GROUPS<NT> * GROUP_TOKENS * FRAGMENT_ROWS;
                 i += STREAM_THREADS) {
                int token = i / FRAGMENT_ROWS, r = i % FRAGMENT_ROWS;
                int row = item.index * FRAGMENT_ROWS + r, t = first + n * GROUP_TOKENS + token;
                if (row < a.rows && t < a.num_tokens)
                    item.y[t * a.ldy + row] =
                        unit_parts_add(shared->parts, token * ADD_STRIDE<1> + r);
            }
            __syncthreads(); /* they have been read */
        }
    }
}

template <enum weight_kind KIND, enum weight_layout LAYOUT, bool NARROW, int NT>
__global__ void __launch_bounds__(STREAM_THREADS, UNIT_BLOCKS<NT>)
    unit_stream_kernel(const struct unit_args u) {
    __shared__ struct unit_shared<KIND, NT> shared;
    int groups = (u.a.rows - 1) / FRAGMENT_ROWS + 1, limit = u.moe.stream_limit;
    if constexpr (RUNS_HERE<KIND>) {
        moe_queue_start(&shared.queue);
        for (int number = blockIdx.x;; number += gridDim.x) {
            struct unit_item item;
            if (!unit_item_next(&item, &shared.queue, u, number, 0, limit, groups, limit))
                break;
            unit_stream_item<KIND, LAYOUT, NARROW, NT>(u, item, &shared);
        }
    }
}

/* Items that there may be: of experts that may have tokens. */
static int64_t most_items(const struct unit_args *u) {
    int64_t groups = ceil_div(u->a.rows, FRAGMENT_ROWS);
    if (!u->experts)
        return groups;
    const struct moe_launch_args *a = &u->moe.a;
    int64_t pairs = (int64_t)a->num_tokens * a->num_experts_per_tok;
    return (pairs < a->num_local ? pairs : a->num_local) * groups;
}

template <enum weight_kind KIND, enum weight_layout LAYOUT, bool NARROW, int NT>
static void launch(const struct unit_args *u, cudaStream_t stream) {
    int64_t items = most_items(u), blocks = u->a.gpu.num_sms * UNIT_BLOCKS<NT>;
    blocks = items < blocks ? items : blocks;
    unit_stream_kernel<KIND, LAYOUT, NARROW, NT><<<(int)blocks, STREAM_THREADS, 0, stream>>>(*u);
    LAUNCH_CHECK();
}

/* By the most tokens of an item. */
template <enum weight_kind KIND, enum weight_layout LAYOUT>
static void launch_tokens(const struct unit_args *u, cudaStream_t stream) {
    const struct dense_args *a = &u->a;
    if (!IS_XQ<KIND> && (a->cols % 8 != 0 || a->ldx % 8 != 0 || (uintptr_t)a->x % 16 != 0))
        launch<KIND, LAYOUT, !IS_XQ<KIND>, 1>(u, stream);
    else if (a->num_tokens <= GROUP_TOKENS)
        launch<KIND, LAYOUT, false, 1>(u, stream);
    else
        launch<KIND, LAYOUT, false, 4>(u, stream);
}

void unit_stream_launch(const struct unit_args *u, cudaStream_t stream) {
    switch (weight_kind_of(u->a.dtype, u->a.scale, u->a.xq)) {
    case WEIGHT_BF16:
        return u->a.layout == LAYOUT_ROWS
                   ? launch_tokens<WEIGHT_BF16, LAYOUT_ROWS>(u, stream)
                   : launch_tokens<WEIGHT_BF16, LAYOUT_FRAGMENTS>(u, stream);
    case WEIGHT_F8_ROW:
        return launch_tokens<WEIGHT_F8_ROW, LAYOUT_FRAGMENTS>(u, stream);
    case WEIGHT_F8_BLOCK:
        return launch_tokens<WEIGHT_F8_BLOCK, LAYOUT_FRAGMENTS>(u, stream);
    case WEIGHT_F8_ROW_XQ:
        return launch_tokens<WEIGHT_F8_ROW_XQ, LAYOUT_FRAGMENTS>(u, stream);
    case WEIGHT_F8_BLOCK_XQ:
        return launch_tokens<WEIGHT_F8_BLOCK_XQ, LAYOUT_FRAGMENTS>(u, stream);
    }
}
