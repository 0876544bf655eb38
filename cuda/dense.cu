/* dense: y = x W^T + bias, by streaming the weights once for 64 tokens
 *
 * Shapes   x [T, ldx] bf16; W [rows, cols] bf16 or E4M3 with scales, ROWS or FRAGMENTS; y [T, ldy] bf16
 *          or float32; bias [rows] float32. FP8 activations: xq [T, f8_stride(cols)] is read instead
 *          of x, W is E4M3 in FRAGMENTS.
 * Launch   persistent grid of 8-warp blocks over items of 16 or 32 weight rows. The warps of a block
 *          cut the columns, so that even 60 items keep 60 * 8 warps * 3 to 4 KB in flight, which is
 *          more than a 4090 needs (about 1 MB).
 * Bytes    W once for each 64 tokens, bandwidth-bound up to there; x from L2 for every item.
 * Choice   registers of sm_89 with FP8 activations: 90 to 96 for up to 16 tokens (2 blocks an SM), 155
 *          for 32 and 210 for 64 (1 block).
 * Numerics one order of sums whatever T is (mma_rows.cuh), and for both layouts; scales, then bias
 *          added in float32, one rounding at the store. `invariant` is always true here.
 * Requires cols > 0; FP8 has scales and BF16 has none. An x whose rows are not aligned to 16 bytes, or
 *          cols % 8 != 0, takes a slow path: 8 tokens at a time, element by element, the same sums.
 *          FP8 activations have none, and want sm_89.
 */
#include "cuda/cuda_check.h"
#include "cuda/mma_rows.cuh"

/* Groups of 16 rows an item: 2 where x would be read, from L2, more than twice as much as the
 * weights; but two sets of sums (SCALE_BLOCK) for 64 tokens leave room for one. */
template <enum weight_kind KIND, int NT>
constexpr int MATS_OF =
    NT <= 2 || (NT == 4 && (KIND == WEIGHT_BF16 || IS_XQ<KIND>)) ||
            (NT == 8 && KIND == WEIGHT_F8_BLOCK)
        ? 1
        : 2;

/* One item for all tokens. */
template <enum weight_kind KIND, enum weight_layout LAYOUT, bool NARROW, int MATS, int NT>
DEVICE void dense_item(const struct dense_args &a, int item,
                       struct segment_parts<MATS, ADD_GROUPS<NT>> *parts) {
    constexpr int ROWS = MATS * FRAGMENT_ROWS;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int tiles = (a.cols + FRAGMENT_COLS - 1) / FRAGMENT_COLS;
    int last_group = (a.rows - 1) / FRAGMENT_ROWS;
    struct stream_rows<MATS> rows;
    rows.cut = a.block_col0 / FRAGMENT_COLS;
#pragma unroll
    for (int m = 0; m < MATS; m++) { /* the last item may have one group: it is read twice */
        int group = min(item * MATS + m, last_group);
        rows.w[m] = weight_rows_at<KIND, LAYOUT>(a.weight, group, a.rows, tiles);
        rows.block_scale[m] = block_scales<KIND>(a.weight_scale, group, tiles, rows.cut);
    }
    struct token_rows<NT> x;
    x.x = IS_XQ<KIND> ? (const void *)a.xq : a.x;
    x.ld = IS_XQ<KIND> ? tiles * FRAGMENT_COLS : (int32_t)a.ldx;
    x.cols = a.cols;

    for (int first = 0; first < a.num_tokens; first += NT * GROUP_TOKENS) {
        float sum[MATS][NT][4];
        x.groups = min(NT, (a.num_tokens - first + GROUP_TOKENS - 1) / GROUP_TOKENS);
#pragma unroll
        for (int n = 0; n < NT; n++)
            token_row_set<NARROW>(&x, n,
                                  min(first + n * GROUP_TOKENS + lane / 4, a.num_tokens - 1));
        segment_sum<KIND, LAYOUT, NARROW, MATS, NT>(sum, rows, x, segment_first<KIND>(warp, tiles),
                                                    segment_first<KIND>(warp + 1, tiles));
#pragma unroll
        for (int n = 0; n < NT; n += ADD_GROUPS<NT>) {
            if (n >= x.groups)
                break;
            segment_store(parts, sum, n);
            __syncthreads(); /* the segments of these groups are in shared memory */
            for (int i = threadIdx.x; i < ADD_GROUPS<NT> * GROUP_TOKENS * ROWS;
                 i += STREAM_THREADS) {
                int token = i / ROWS, row = item * ROWS + i % ROWS;
                int t = first + n * GROUP_TOKENS + token;
                if (row >= a.rows || t >= a.num_tokens)
                    continue;
                float y = scale_row<KIND>(segments_add(parts, token, i % ROWS), a.weight_scale, row,
                                          IS_XQ<KIND> ? a.xq_scale[t] : 1);
                if (a.bias)
                    y = __fadd_rn(y, __ldg(a.bias + row));
                if (a.y_float)
                    ((float *)a.y)[t * a.ldy + row] = y;
                else
                    ((bf16 *)a.y)[t * a.ldy + row] = float_bf16(y);
            }
            __syncthreads(); /* they have been read */
        }
    }
}

template <enum weight_kind KIND, enum weight_layout LAYOUT, bool NARROW, int NT>
__global__ void __launch_bounds__(STREAM_THREADS, STREAM_BLOCKS<KIND, NT>)
    dense_kernel(const struct dense_args a) {
    constexpr int MATS = MATS_OF<KIND, NT>;
    __shared__ struct segment_parts<MATS, ADD_GROUPS<NT>> parts;
    int items = (a.rows + MATS * FRAGMENT_ROWS - 1) / (MATS * FRAGMENT_ROWS);
    if constexpr (RUNS_HERE<KIND>)
        for (int item = blockIdx.x; item < items; item += gridDim.x)
            dense_item<KIND, LAYOUT, NARROW, MATS, NT>(a, item, &parts);
}

template <enum weight_kind KIND, enum weight_layout LAYOUT, bool NARROW, int NT>
static void launch(const struct dense_args *a, cudaStream_t stream) {
    int items = ceil_div(a->rows, MATS_OF<KIND, NT> * FRAGMENT_ROWS);
    int blocks = a->gpu.num_sms * STREAM_BLOCKS<KIND, NT>;
    blocks = items < blocks ? items : blocks;
    dense_kernel<KIND, LAYOUT, NARROW, NT><<<blocks, STREAM_THREADS, 0, stream>>>(*a);
    LAUNCH_CHECK();
}

template <enum weight_kind KIND, enum weight_layout LAYOUT>
static void launch_tokens(const struct dense_args *a, cudaStream_t stream) {
    if (!IS_XQ<KIND> && (a->cols % 8 != 0 || a->ldx % 8 != 0 || (uintptr_t)a->x % 16 != 0))
        launch<KIND, LAYOUT, !IS_XQ<KIND>, 1>(a, stream);
    else if (a->num_tokens <= GROUP_TOKENS)
        launch<KIND, LAYOUT, false, 1>(a, stream);
    else if (a->num_tokens <= 2 * GROUP_TOKENS)
        launch<KIND, LAYOUT, false, 2>(a, stream);
    else if (a->num_tokens <= 4 * GROUP_TOKENS)
        launch<KIND, LAYOUT, false, 4>(a, stream);
    else
        launch<KIND, LAYOUT, false, 8>(a, stream);
}

template <enum weight_kind KIND>
static void launch_layout(const struct dense_args *a, cudaStream_t stream) {
    if (a->layout == LAYOUT_FRAGMENTS)
        launch_tokens<KIND, LAYOUT_FRAGMENTS>(a, stream);
    else
        launch_tokens<KIND, LAYOUT_ROWS>(a, stream);
}

void dense_launch(const struct dense_args *a, cudaStream_t stream) {
    CHECK(a->dtype == DTYPE_BF16 ? a->scale == SCALE_NONE
                                 : a->dtype == DTYPE_F8_E4M3 && a->scale != SCALE_NONE,
          "dtype %d with scale %d", a->dtype, a->scale);
    CHECK(a->block_col0 >= 0 && a->block_col0 < SCALE_BLOCK_SIZE &&
              a->block_col0 % FRAGMENT_COLS == 0,
          "block_col0 %d", a->block_col0);
    CHECK(a->rows > 0 && a->cols > 0 && a->ldx >= a->cols && a->ldx <= INT32_MAX && a->ldy >= a->rows,
          "rows %d, cols %d, ldx %lld, ldy %lld", a->rows, a->cols, (long long)a->ldx,
          (long long)a->ldy);
    CHECK(!a->xq || (a->dtype == DTYPE_F8_E4M3 && a->layout == LAYOUT_FRAGMENTS &&
                     a->gpu.sm >= MIN_F8_SM),
          "FP8 activations with dtype %d, layout %d on sm_%d", a->dtype, a->layout, a->gpu.sm);
    if (a->num_tokens <= 0)
        return;
    switch (weight_kind_of(a->dtype, a->scale, a->xq)) {
    case WEIGHT_BF16:
        return launch_layout<WEIGHT_BF16>(a, stream);
    case WEIGHT_F8_ROW:
        return launch_layout<WEIGHT_F8_ROW>(a, stream);
    case WEIGHT_F8_BLOCK:
        return launch_layout<WEIGHT_F8_BLOCK>(a, stream);
    case WEIGHT_F8_ROW_XQ:
        return launch_tokens<WEIGHT_F8_ROW_XQ, LAYOUT_FRAGMENTS>(a, stream);
    case WEIGHT_F8_BLOCK_XQ:
        return launch_tokens<WEIGHT_F8_BLOCK_XQ, LAYOUT_FRAGMENTS>(a, stream);
    }
}
