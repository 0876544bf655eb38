/* units: partials that do not depend on the number of ranks (host/ops.h, Determinism).
 *
 *   y[t, r] = sum over units u of columns of (double)(float)(weight[t] * sum over c in u of x w)
 *
 * A unit is so many columns, a multiple of 32 (unit_odd.cu has others), that every rank's part
 * begins at one; its sum is a
 * chain of mma over its own tiles, first to last, from zero, and so the same bits on whichever rank
 * it is made. With SCALE_BLOCK each block of 128 columns in it has a chain, with FP8 activations
 * every 128 columns of it: they count as units, for there are no other places where a rank may begin
 * that such a chain could straddle. A chain becomes a unit's float32 number by
 *
 *   chain * scale of the row or block * scale of the token (FP8 activations) * weight of the token
 *
 * each product rounded; a dense product has weight 1, that of an expert topk_weights of the pair.
 *
 * The sum over units is exact, so its order does not matter: neither how warps share the units of a
 * rank nor how ranks share those of the matrix. It is held as three float32 numbers (exact_add)
 * rather than as a float64: consumer GPUs do two float64 additions a clock and SM, which for units of
 * 128 columns would take twice as long as the products themselves, and 64 times as many of float32.
 * The three hold 72 bits, more than the 53 of the float64 that is made of them at the end.
 *
 * An expert's down projection is a dense product of rows of act that lie one after the other: one
 * kernel does both.
 */
#pragma once

#include "cuda/moe.cuh"

/* ---- exact sums -------------------------------------------------------------------------------- */

/* *sum += x; returns what the rounding lost, exactly (Knuth's two-sum). */
DEVICE float two_sum(float *sum, float x) {
    float old = *sum, rounded = __fadd_rn(old, x), added = __fsub_rn(rounded, old);
    *sum = rounded;
    return __fadd_rn(__fsub_rn(old, __fsub_rn(rounded, added)), __fsub_rn(x, added));
}

/* sum[0] + sum[1] + sum[2] += x. Infinities come out as NaNs. */
DEVICE void exact_add(float sum[3], float x) {
    float lost = two_sum(&sum[0], x);
    lost = two_sum(&sum[1], lost);
    sum[2] = __fadd_rn(sum[2], lost);
}
DEVICE double exact_double(const float sum[3]) {
    return (double)sum[0] + ((double)sum[1] + (double)sum[2]);
}

template <int NT> DEVICE void clear_exact(float sum[NT][4][3]) {
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            sum[n][c][0] = sum[n][c][1] = sum[n][c][2] = 0;
}

/* ---- work -------------------------------------------------------------------------------------- */

/* The argument of the kernels. */
struct unit_args {
    struct dense_args a; /* but for y; of experts: what they have in common, x is act */
    double *y;           /* [T, a.ldy]; of experts: pair_out [P, H] */
    int32_t unit_tiles;  /* tiles of a unit */
    bool experts;
    struct moe_args_device moe; /* stream_limit; the rest of experts only */
};

/* A part of the work: all or some tokens of a product. */
struct unit_item {
    struct dense_args a; /* of the item's matrix; row 0 of x is the first token; y is not set */
    double *y;
    const int32_t *pairs; /* the tokens' pairs, or NULL: they have weight 1 */
    int32_t index;
};

/* What of the product the kernels look at, or what is the same for all experts. Member by member:
 * what is changed in a copy of the whole argument is lost in places (nvcc 13.0). */
DEVICE void unit_item_start(struct unit_item *item, const struct unit_args &u) {
    item->a.x = u.a.x;
    item->a.ldx = u.a.ldx;
    item->a.ldy = u.a.ldy;
    item->a.xq = u.a.xq;
    item->a.xq_scale = u.a.xq_scale;
    item->a.weight = u.a.weight;
    item->a.weight_scale = u.a.weight_scale;
    item->a.block_col0 = u.a.block_col0;
    item->a.rows = u.a.rows;
    item->a.cols = u.a.cols;
    item->a.num_tokens = u.a.num_tokens;
    item->y = u.y;
    item->pairs = nullptr;
}

/* The block's item number `number` of a dense product, or its next of experts with low < tokens <=
 * high; there are `parts` items for each `tokens` tokens. False at the end. For all threads of a
 * block; there is a barrier between any two calls. */
DEVICE bool unit_item_next(struct unit_item *item, struct moe_queue *queue,
                           const struct unit_args &u, int number, int low, int high, int parts,
                           int tokens) {
    unit_item_start(item, u);
    item->index = number;
    if (!u.experts)
        return number < ((u.a.num_tokens - 1) / tokens + 1) * parts;
    const struct moe_item *next = moe_queue_next(queue, u.moe, low, high, parts, tokens);
    if (!next)
        return false;
    const struct gpu_expert *e = u.moe.a.experts + next->slot;
    int64_t first = next->first;
    item->a.weight = e->down;
    item->a.weight_scale = e->down_scale;
    item->a.num_tokens = next->count;
    item->a.x += first * u.a.ldx;
    if (u.a.xq) {
        item->a.xq += first * f8_stride(u.a.cols);
        item->a.xq_scale += first;
    }
    item->y += first * u.a.ldy;
    item->pairs = u.moe.r.permutation + first;
    item->index = next->index;
    return true;
}

/* ---- from chains to units ---------------------------------------------------------------------- */

/* What the chains of a block's tokens are multiplied with; in shared memory. */
template <enum weight_kind KIND, int TOKENS> struct token_factors {
    float weight[TOKENS];
    float x_scale[IS_XQ<KIND> ? TOKENS : 1];
};

/* Of tokens [first, first + TOKENS); for all threads of a block, with a barrier behind. */
template <enum weight_kind KIND, int TOKENS>
DEVICE void token_factors_load(struct token_factors<KIND, TOKENS> *f, const struct unit_item &item,
                               const struct unit_args &u, int first) {
    if ((int)threadIdx.x < TOKENS) {
        int t = min(first + (int)threadIdx.x, item.a.num_tokens - 1);
        f->weight[threadIdx.x] = item.pairs ? u.moe.r.topk_weights[item.pairs[t]] : 1;
        if constexpr (IS_XQ<KIND>)
            f->x_scale[threadIdx.x] = item.a.xq_scale[t];
    }
    __syncthreads(); /* the factors are there */
}

/* Does the chain end with this tile? `in_unit` is its number in the unit, `at` in the blocks of
 * columns; the last tile of a matrix ends a unit that is short. */
template <enum weight_kind KIND>
DEVICE bool chain_ends(int in_unit, int unit_tiles, int at, bool last) {
    bool ends = in_unit + 1 == unit_tiles || last;
    if (IS_F8_BLOCK<KIND>)
        return ends || at % BLOCK_TILES == BLOCK_TILES - 1;
    return ends || (IS_XQ<KIND> && in_unit % BLOCK_TILES == BLOCK_TILES - 1);
}

/* total += what the chains come to; chain = 0. `scale` is that of rows g and g + 8, `group` the
 * first of the chains' groups of 8 tokens among those of `f`. */
template <enum weight_kind KIND, int NT, int TOKENS>
DEVICE void chain_add(float total[NT][4][3], float chain[NT][4], const float scale[2],
                      const struct token_factors<KIND, TOKENS> &f, int group) {
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            int token = (group + n) * GROUP_TOKENS + threadIdx.x % 4 * 2 + c % 2;
            float v = chain[n][c];
            if constexpr (IS_F8<KIND>)
                v = __fmul_rn(v, scale[c / 2]);
            if constexpr (IS_XQ<KIND>)
                v = __fmul_rn(v, f.x_scale[token]);
            exact_add(total[n][c], __fmul_rn(v, f.weight[token]));
            chain[n][c] = 0;
        }
}

/* The scales of a group of 16 rows for chain_add: of rows g and g + 8, or of block `block` of the
 * columns for both. The last row stands for those that do not exist. */
template <enum weight_kind KIND>
DEVICE void chain_scales(float scale[2], const struct dense_args &a, int group, int tiles,
                         int block) {
    int row = group * FRAGMENT_ROWS + threadIdx.x % WARP / 4;
    scale[0] = scale[1] = 1;
    if constexpr (IS_F8_ROW<KIND>) {
        scale[0] = __ldg(a.weight_scale + min(row, a.rows - 1));
        scale[1] = __ldg(a.weight_scale + min(row + 8, a.rows - 1));
    }
    if constexpr (IS_F8_BLOCK<KIND>) {
        group = min(group, (a.rows - 1) / FRAGMENT_ROWS);
        scale[0] = scale[1] = __ldg(block_scales<KIND>(a.weight_scale, group, tiles,
                                                       a.block_col0 / FRAGMENT_COLS) +
                                    block);
    }
}

/* ---- launchers --------------------------------------------------------------------------------- */

/* The items with up to stream_limit tokens, and those with more. */
void unit_stream_launch(const struct unit_args *u, cudaStream_t stream);
void unit_tile_launch(const struct unit_args *u, cudaStream_t stream);
/* A dense product in units of any width, without FP8 activations. */
void unit_odd_launch(double *y, const struct dense_args *a, int32_t unit, cudaStream_t stream);
/* Tokens up to which streaming pays, where the tiles take x. */
constexpr int UNIT_STREAM_LIMIT = 32;
