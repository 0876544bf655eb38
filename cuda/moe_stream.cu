/* moe_stream: gated expert FFNs for few tokens an expert, by streaming the weights once
 *
 *   gate_up   act[p, i] = silu(gate_i x) * up_i x     for each pair p of an expert, in bf16
 *   down      pair_out[p, h] = down_h act[p]          in float32
 *
 * Shapes   x [T, H] gathered by permutation[p] / K; act [P, I], pair_out [P, H] in permuted order;
 *          weights in FRAGMENTS. FP8 activations: xq [T, f8_stride(H)] and actq [P, f8_stride(I)] are
 *          read instead of x and act, with their scales.
 * Launch   persistent grid of 8-warp blocks over items of 32 weight rows of one expert (16 of gate
 *          and the same 16 of up; 32 of down). The warps of a block cut the columns; their sums meet
 *          in shared memory. NT groups of 8 tokens go through the mma together, so that a weight
 *          byte is read once for 8 NT tokens; NT follows from the expert's count, its largest
 *          value (a template argument, for the registers) from T.
 * Bytes    the weights of experts that have tokens, once; bandwidth-bound. In flight: 5 to 8 KB a
 *          warp for up to 8 tokens, 80 to 128 KB an SM at 2 blocks; 3 to 4 KB and 48 to 64 KB for 32
 *          tokens. A 4090 needs about 8 KB an SM to cover a latency of 1 us. The bytes are in
 *          registers, not in shared memory: weights have no reuse here.
 * Issue    a 4090 has 160 clocks an SM for 512 weight bytes. FP8 with 32 tokens uses about 64 clocks
 *          of tensor cores (half rate with float32 sums), 40 issue slots of conversion (of 640), and
 *          reads 2 bytes of x from L2 for each of weights; with 64 tokens it would be 128 clocks and 4
 *          bytes, hence the limit of moe.cu. FP8 activations are half of that, without conversions:
 *          64 tokens take 64 clocks of tensor cores for 512 weight bytes and 2 bytes of x for each.
 * Choice   registers of sm_89 with FP8 activations: 100 for up to 8 tokens (2 blocks an SM), 210 for
 *          32 and 64 (1 block: two sets of sums; for 64 only 2 tiles a warp are in flight).
 * Numerics one order of sums whatever T is (mma_rows.cuh); one rounding, at the store of act.
 * Requires cols > 0. Rows of x and act that are not multiples of 16 bytes take a slow path: 8 tokens
 *          at a time, element by element, the same sums. FP8 activations have none, and want sm_89.
 */
#include "cuda/cuda_check.h"
#include "cuda/moe.cuh"

constexpr int MATS = 2;

/* The tokens first .. first + 8 NT of an expert, the last one repeated where there are no more.
 * `divisor` is K to gather from x, 1 with no permutation to read act. */
template <bool NARROW, int NT>
DEVICE void token_rows_of(struct token_rows<NT> *x, const struct moe_item &item, int first,
                          const int32_t *permutation, int divisor) {
    x->groups = min(NT, (item.count - first + GROUP_TOKENS - 1) / GROUP_TOKENS);
#pragma unroll
    for (int n = 0; n < NT; n++) {
        int p = item.first + min(first + n * GROUP_TOKENS + (int)threadIdx.x % WARP / 4,
                                 item.count - 1);
        token_row_set<NARROW>(x, n, permutation ? permutation[p] / divisor : p);
    }
}

/* One item of gate_up: rows 16 index .. of gate and up, all tokens of the expert. */
template <enum weight_kind KIND, bool NARROW, int NT>
DEVICE void gate_up_item(const struct moe_args_device &p, const struct moe_item &item,
                         struct segment_parts<MATS, ADD_GROUPS<NT>> *parts) {
    int I = p.a.intermediate, warp = threadIdx.x / WARP;
    int tiles = (p.a.hidden_size + FRAGMENT_COLS - 1) / FRAGMENT_COLS;
    const struct gpu_expert *e = p.a.experts + item.slot;
    struct stream_rows<MATS> rows;
    rows.w[0] = weight_rows_at<KIND, LAYOUT_FRAGMENTS>(e->gate, item.index, I, tiles);
    rows.w[1] = weight_rows_at<KIND, LAYOUT_FRAGMENTS>(e->up, item.index, I, tiles);
    rows.cut = 0;
    rows.block_scale[0] = block_scales<KIND>(e->gate_scale, item.index, tiles, 0);
    rows.block_scale[1] = block_scales<KIND>(e->up_scale, item.index, tiles, 0);
    struct token_rows<NT> x;
    x.x = IS_XQ<KIND> ? (const void *)p.a.xq : p.a.x;
    x.cols = p.a.hidden_size;
    x.ld = IS_XQ<KIND> ? tiles * FRAGMENT_COLS : x.cols;

    for (int first = 0; first < item.count; first += NT * GROUP_TOKENS) {
        float sum[MATS][NT][4];
        token_rows_of<NARROW>(&x, item, first, p.r.permutation, p.a.num_experts_per_tok);
        segment_sum<KIND, LAYOUT_FRAGMENTS, NARROW, MATS, NT>(
            sum, rows, x, segment_first<KIND>(warp, tiles), segment_first<KIND>(warp + 1, tiles));
#pragma unroll
        for (int n = 0; n < NT; n += ADD_GROUPS<NT>) {
            if (n >= x.groups)
                break;
            segment_store(parts, sum, n);
            __syncthreads(); /* the segments of these groups are in shared memory */
            for (int i = threadIdx.x; i < ADD_GROUPS<NT> * GROUP_TOKENS * FRAGMENT_ROWS;
                 i += STREAM_THREADS) {
                int token = i / FRAGMENT_ROWS, r = i % FRAGMENT_ROWS;
                int row = item.index * FRAGMENT_ROWS + r, at = first + n * GROUP_TOKENS + token;
                if (row >= I || at >= item.count)
                    continue;
                float gate = segments_add(parts, token, r), x_scale = 1;
                float up = segments_add(parts, token, FRAGMENT_ROWS + r);
                if constexpr (IS_XQ<KIND>)
                    x_scale = p.a.xq_scale[moe_token_of(p, item.first + at)];
                p.a.act[(int64_t)(item.first + at) * I + row] =
                    gated(scale_row<KIND>(gate, e->gate_scale, row, x_scale),
                          scale_row<KIND>(up, e->up_scale, row, x_scale));
            }
            __syncthreads(); /* they have been read */
        }
    }
}

/* One item of down: rows 32 index .. of down, all tokens of the expert. */
template <enum weight_kind KIND, bool NARROW, int NT>
DEVICE void down_item(const struct moe_args_device &p, const struct moe_item &item,
                      struct segment_parts<MATS, ADD_GROUPS<NT>> *parts) {
    constexpr int ROWS = MATS * FRAGMENT_ROWS;
    int H = p.a.hidden_size, I = p.a.intermediate, warp = threadIdx.x / WARP;
    int tiles = (I + FRAGMENT_COLS - 1) / FRAGMENT_COLS;
    int last_group = (H - 1) / FRAGMENT_ROWS;
    const struct gpu_expert *e = p.a.experts + item.slot;
    struct stream_rows<MATS> rows;
    rows.cut = p.a.down_col0 / FRAGMENT_COLS;
#pragma unroll
    for (int m = 0; m < MATS; m++) { /* the last item may have one group: it is read twice */
        int group = min(item.index * MATS + m, last_group);
        rows.w[m] = weight_rows_at<KIND, LAYOUT_FRAGMENTS>(e->down, group, H, tiles);
        rows.block_scale[m] = block_scales<KIND>(e->down_scale, group, tiles, rows.cut);
    }
    struct token_rows<NT> x;
    x.x = IS_XQ<KIND> ? (const void *)p.a.actq : p.a.act;
    x.cols = I;
    x.ld = IS_XQ<KIND> ? tiles * FRAGMENT_COLS : I;

    for (int first = 0; first < item.count; first += NT * GROUP_TOKENS) {
        float sum[MATS][NT][4];
        token_rows_of<NARROW>(&x, item, first, nullptr, 1);
        segment_sum<KIND, LAYOUT_FRAGMENTS, NARROW, MATS, NT>(
            sum, rows, x, segment_first<KIND>(warp, tiles), segment_first<KIND>(warp + 1, tiles));
#pragma unroll
        for (int n = 0; n < NT; n += ADD_GROUPS<NT>) {
            if (n >= x.groups)
                break;
            segment_store(parts, sum, n);
            __syncthreads(); /* the segments of these groups are in shared memory */
            for (int i = threadIdx.x; i < ADD_GROUPS<NT> * GROUP_TOKENS * ROWS;
                 i += STREAM_THREADS) {
                int token = i / ROWS, r = i % ROWS;
                int row = item.index * ROWS + r, at = first + n * GROUP_TOKENS + token;
                if (row >= H || at >= item.count)
                    continue;
                float x_scale = IS_XQ<KIND> ? p.a.actq_scale[item.first + at] : 1;
                ((float *)p.a.pair_out)[(int64_t)(item.first + at) * H + row] =
                    scale_row<KIND>(segments_add(parts, token, r), e->down_scale, row, x_scale);
            }
            __syncthreads(); /* they have been read */
        }
    }
}

template <enum weight_kind KIND, bool DOWN, bool NARROW, int NT>
__global__ void __launch_bounds__(STREAM_THREADS, STREAM_BLOCKS<KIND, NT>)
    moe_stream_kernel(const struct moe_args_device p, int parts_of_expert) {
    __shared__ struct segment_parts<MATS, ADD_GROUPS<NT>> parts;
    __shared__ struct moe_queue queue;
    if constexpr (RUNS_HERE<KIND>) {
        moe_queue_start(&queue);
        for (;;) {
            const struct moe_item *item =
                moe_queue_next(&queue, p, 0, p.stream_limit, parts_of_expert, p.stream_limit);
            if (!item)
                break;
            if constexpr (DOWN)
                down_item<KIND, NARROW, NT>(p, *item, &parts);
            else
                gate_up_item<KIND, NARROW, NT>(p, *item, &parts);
        }
    }
}

template <enum weight_kind KIND, bool DOWN, bool NARROW, int NT>
static void launch(const struct moe_args_device *p, int parts_of_expert, int most_items,
                   cudaStream_t stream) {
    int blocks = p->a.gpu.num_sms * STREAM_BLOCKS<KIND, NT>;
    blocks = most_items < blocks ? most_items : blocks;
    moe_stream_kernel<KIND, DOWN, NARROW, NT><<<blocks, STREAM_THREADS, 0, stream>>>(*p, parts_of_expert);
    LAUNCH_CHECK();
}

/* By the largest number of tokens that an expert may have. */
template <enum weight_kind KIND, bool DOWN>
static void launch_kind(const struct moe_args_device *p, cudaStream_t stream) {
    const struct moe_launch_args *a = &p->a;
    int rows = DOWN ? ceil_div(a->hidden_size, MATS * FRAGMENT_ROWS)
                    : ceil_div(a->intermediate, FRAGMENT_ROWS);
    int64_t pairs = (int64_t)a->num_tokens * a->num_experts_per_tok;
    int64_t active = pairs < a->num_local ? pairs : a->num_local;
    int64_t items = active * rows;
    int most = items < INT32_MAX ? (int)items : INT32_MAX;
    int tokens = a->num_tokens < p->stream_limit ? a->num_tokens : p->stream_limit;
    if (!IS_XQ<KIND> && (DOWN ? a->intermediate : a->hidden_size) % 8 != 0)
        launch<KIND, DOWN, !IS_XQ<KIND>, 1>(p, rows, most, stream);
    else if (tokens <= GROUP_TOKENS)
        launch<KIND, DOWN, false, 1>(p, rows, most, stream);
    else if (tokens <= 4 * GROUP_TOKENS)
        launch<KIND, DOWN, false, 4>(p, rows, most, stream);
    else /* FP8 times bf16 for more tokens is left to the tile kernels, but for odd shapes */
        launch<KIND, DOWN, false, KIND == WEIGHT_BF16 || IS_XQ<KIND> ? 8 : 4>(p, rows, most, stream);
}

template <bool DOWN>
static void launch_stream(const struct moe_args_device *p, cudaStream_t stream) {
    switch (weight_kind_of(p->a.dtype, p->a.scale, p->a.xq)) {
    case WEIGHT_BF16:
        return launch_kind<WEIGHT_BF16, DOWN>(p, stream);
    case WEIGHT_F8_ROW:
        return launch_kind<WEIGHT_F8_ROW, DOWN>(p, stream);
    case WEIGHT_F8_BLOCK:
        return launch_kind<WEIGHT_F8_BLOCK, DOWN>(p, stream);
    case WEIGHT_F8_ROW_XQ:
        return launch_kind<WEIGHT_F8_ROW_XQ, DOWN>(p, stream);
    case WEIGHT_F8_BLOCK_XQ:
        return launch_kind<WEIGHT_F8_BLOCK_XQ, DOWN>(p, stream);
    }
}

void moe_stream_gate_up_launch(const struct moe_args_device *p, cudaStream_t stream) {
    launch_stream<false>(p, stream);
}

void moe_stream_down_launch(const struct moe_args_device *p, cudaStream_t stream) {
    launch_stream<true>(p, stream);
}
