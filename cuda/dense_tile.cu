/* dense_tile: y = x W^T + bias for many tokens, by tiles in shared memory
 *
 * Shapes   x [T, ldx] bf16, or xq as FP8 activations; W [rows, cols] BF16 as ROWS or FRAGMENTS, E4M3
 *          with scales as FRAGMENTS; y [T, ldy] bf16 or float32; bias [rows] float32.
 * Tile     128 weight rows x 64 or 128 tokens, by 8 warps, 4 x 2. A warp has 32 rows and 32 or 64
 *          tokens.
 * Launch   persistent grid over tiles, tokens within rows, so that blocks that run at the same time
 *          share weights and tokens in L2.
 * Stages   cp.async of 64 columns, 2 to 4 in flight (dense_tile.cuh).
 * Choice   tokens  kind       stage  stages  shared  blocks/SM
 *            64    BF16       24 KB    2     48 KB     2
 *            64    F8         16 KB    3     48 KB     2  (1 with SCALE_BLOCK: three sets of sums)
 *            64    F8 x F8    12 KB    4     48 KB     1  (three sets of sums)
 *           128    BF16       32 KB    3     96 KB     1
 *           128    F8         24 KB    3     72 KB     1
 *           128    F8 x F8    16 KB    4     64 KB     1  (not on sm_90: it would spill)
 *          128 tokens read the weights half as often, but a matrix of few rows may not have enough
 *          such tiles for all SMs: the size with fewer rounds of the SMs is taken.
 * Bytes    W once for each 64 or 128 tokens and x once for each 128 rows, most of it from L2; bound
 *          by the tensor cores.
 * Numerics the order of sums of mma_rows.cuh: the same bits as dense.cu, whatever T is.
 * Requires cols % 8 == 0, and rows of x aligned to 16 bytes (FP8 activations always are); FP8 weights
 *          are FRAGMENTS.
 */
#include "cuda/cuda_check.h"
#include "cuda/dense_tile.cuh"

/* As ptxas assigns registers for sm_90, F8 x F8 with a scale a row and 128 tokens spills: the code for
 * that architecture, which GPUs up to the next one we compile for run too, leaves it out. */
template <enum weight_kind KIND, int NT>
static __host__ __device__ __forceinline__ constexpr bool spills_on(int sm) {
    return KIND == WEIGHT_F8_ROW_XQ && NT == 8 && sm >= 90 && sm < 120;
}
#ifdef __CUDA_ARCH__
constexpr int PTX_SM = __CUDA_ARCH__ / 10;
#else
constexpr int PTX_SM = 0;
#endif

/* ---- sums ------------------------------------------------------------------------------------- */

/* After tile `tile`, the last of its segment or not: what mma_rows.cuh says of the order. */
template <enum weight_kind KIND, int NT>
DEVICE void tile_promote(struct tile_sums<KIND, NT> *s, const struct dense_args &a, int tiles,
                         int first_group, int tile, bool last_of_segment) {
    if constexpr (HAS_CHAINS<KIND>) {
        int cut = IS_F8_BLOCK<KIND> ? a.block_col0 / FRAGMENT_COLS : 0, at = tile + cut;
        if (at % BLOCK_TILES == BLOCK_TILES - 1 || last_of_segment) {
            int group = first_group + threadIdx.x / WARP / WARPS_N * MATS;
#pragma unroll
            for (int m = 0; m < MATS; m++) {
                float scale = 1;
                if constexpr (IS_F8_BLOCK<KIND>) {
                    int last = (a.rows - 1) / FRAGMENT_ROWS;
                    scale = __ldg(block_scales<KIND>(a.weight_scale, min(group + m, last), tiles,
                                                     cut) +
                                  at / BLOCK_TILES);
                }
                promote<NT>(s->segment[m], s->chain[m], scale);
            }
        }
    }
    if (!last_of_segment)
        return;
#pragma unroll
    for (int m = 0; m < MATS; m++) {
        if constexpr (HAS_CHAINS<KIND>)
            move_sums<NT>(s->total[m], s->segment[m]);
        else
            move_sums<NT>(s->total[m], s->chain[m]);
    }
}

/* The sums of a tile, into s->total. */
template <enum weight_kind KIND, enum weight_layout LAYOUT, int NT>
DEVICE void tile_sum(struct tile_sums<KIND, NT> *s, char *shared, const struct dense_args &a,
                     int tiles, int first_group, int first_token) {
    constexpr int N = STAGES<KIND, NT>;
    constexpr int UNROLLED = IS_F8<KIND> ? STAGE_TILES : 1; /* for fewer registers */
    int steps = (tiles + STAGE_TILES - 1) / STAGE_TILES;
    clear_tile(s);
#pragma unroll
    for (int i = 0; i < N - 1; i++) {
        if (i < steps)
            copy_stage<KIND, LAYOUT, NT>(shared + i * STAGE_BYTES<KIND, NT>, a, tiles, first_group,
                                         first_token, i * STAGE_TILES);
        cp_async_commit();
    }
    int segment = 0, slot = 0, segment_end = segment_first<KIND>(1, tiles);
    for (int step = 0; step < steps; step++) {
        cp_async_wait<N - 2>();
        __syncthreads(); /* the stage is there for all, and nobody reads the one before any more */
        int ahead = step + N - 1, ahead_slot = slot == 0 ? N - 1 : slot - 1;
        if (ahead < steps)
            copy_stage<KIND, LAYOUT, NT>(shared + ahead_slot * STAGE_BYTES<KIND, NT>, a, tiles,
                                         first_group, first_token, ahead * STAGE_TILES);
        cp_async_commit();
#pragma unroll UNROLLED
        for (int t = 0; t < STAGE_TILES; t++) {
            int tile = step * STAGE_TILES + t;
            if (tile >= tiles)
                continue;
            while (segment_end <= tile) /* past empty segments too */
                segment_end = segment_first<KIND>(++segment + 1, tiles);
            tile_multiply<KIND, LAYOUT, NT>(s->chain, shared + slot * STAGE_BYTES<KIND, NT>, t);
            tile_promote<KIND, NT>(s, a, tiles, first_group, tile, tile + 1 == segment_end);
        }
        slot = slot + 1 == N ? 0 : slot + 1;
    }
}

/* What a lane holds, scaled and with the bias, to y. */
template <enum weight_kind KIND, int NT>
DEVICE void tile_store(const struct tile_sums<KIND, NT> &s, const struct dense_args &a,
                       int first_group, int first_token) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int first_row = (first_group + warp / WARPS_N * MATS) * FRAGMENT_ROWS + lane / 4;
    first_token += warp % WARPS_N * NT * GROUP_TOKENS + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < MATS; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first_row + m * FRAGMENT_ROWS + half * 8;
            if (row >= a.rows)
                continue;
#pragma unroll
            for (int i = 0; i < NT * 2; i++) {
                int t = first_token + i / 2 * GROUP_TOKENS + i % 2;
                if (t >= a.num_tokens)
                    continue;
                float y = scale_row<KIND>(s.total[m][i / 2][half * 2 + i % 2], a.weight_scale, row,
                                          IS_XQ<KIND> ? a.xq_scale[t] : 1);
                if (a.bias)
                    y = __fadd_rn(y, __ldg(a.bias + row));
                if (a.y_float)
                    ((float *)a.y)[t * a.ldy + row] = y;
                else
                    ((bf16 *)a.y)[t * a.ldy + row] = float_bf16(y);
            }
        }
}

/* ---- kernel and launch ------------------------------------------------------------------------- */

template <enum weight_kind KIND, enum weight_layout LAYOUT, int NT>
__global__ void __launch_bounds__(TILE_THREADS, TILE_BLOCKS<KIND, NT>)
    dense_tile_kernel(const struct dense_args a) {
    extern __shared__ __align__(128) char shared[];
    int tiles = (a.cols + FRAGMENT_COLS - 1) / FRAGMENT_COLS;
    int token_tiles = (a.num_tokens - 1) / TILE_TOKENS<NT> + 1;
    int items = ((a.rows - 1) / TILE_ROWS + 1) * token_tiles;
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
        int first_group = item / token_tiles * TILE_GROUPS;
        int first_token = item % token_tiles * TILE_TOKENS<NT>;
        if constexpr (RUNS_HERE<KIND> && !spills_on<KIND, NT>(PTX_SM)) {
            struct tile_sums<KIND, NT> sums;
            tile_sum<KIND, LAYOUT, NT>(&sums, shared, a, tiles, first_group, first_token);
            tile_store<KIND, NT>(sums, a, first_group, first_token);
        }
        __syncthreads(); /* nobody reads the stages any more */
    }
}

template <enum weight_kind KIND, enum weight_layout LAYOUT, int NT>
static void launch(const struct dense_args *a, cudaStream_t stream) {
    constexpr int bytes = STAGES<KIND, NT> * STAGE_BYTES<KIND, NT>;
    int64_t items =
        (int64_t)ceil_div(a->rows, TILE_ROWS) * ceil_div(a->num_tokens, TILE_TOKENS<NT>);
    CHECK(items <= INT32_MAX, "rows %d, %d tokens", a->rows, a->num_tokens);
    int blocks = a->gpu.num_sms * TILE_BLOCKS<KIND, NT>;
    blocks = items < blocks ? (int)items : blocks;
    CUDA_CHECK(cudaFuncSetAttribute(dense_tile_kernel<KIND, LAYOUT, NT>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    dense_tile_kernel<KIND, LAYOUT, NT><<<blocks, TILE_THREADS, bytes, stream>>>(*a);
    LAUNCH_CHECK();
}

/* Rounds that the SMs need for all tiles, in units of 64 tokens. */
static int64_t rounds(const struct dense_args *a, int tokens) {
    int64_t tiles = (int64_t)ceil_div(a->rows, TILE_ROWS) * ceil_div(a->num_tokens, tokens);
    return (tiles + a->gpu.num_sms - 1) / a->gpu.num_sms * (tokens / TILE_TOKENS<4>);
}

int32_t dense_tile_tokens(const struct dense_args *a) {
    enum weight_kind kind = weight_kind_of(a->dtype, a->scale, a->xq);
    bool narrow = kind == WEIGHT_F8_BLOCK ||
                  (kind == WEIGHT_F8_ROW_XQ && spills_on<WEIGHT_F8_ROW_XQ, 8>(a->gpu.sm)) ||
                  rounds(a, TILE_TOKENS<4>) < rounds(a, TILE_TOKENS<8>);
    return narrow ? TILE_TOKENS<4> : TILE_TOKENS<8>;
}

template <enum weight_kind KIND, enum weight_layout LAYOUT>
static void launch_tokens(const struct dense_args *a, cudaStream_t stream) {
    if (dense_tile_tokens(a) == TILE_TOKENS<8>)
        launch<KIND, LAYOUT, 8>(a, stream);
    else
        launch<KIND, LAYOUT, 4>(a, stream);
}

bool dense_tile_takes(const struct dense_args *a) {
    bool aligned = a->xq || (a->cols % 8 == 0 && a->ldx % 8 == 0 && (uintptr_t)a->x % 16 == 0);
    return aligned && (a->dtype == DTYPE_BF16 || a->layout == LAYOUT_FRAGMENTS);
}

void dense_tile_launch(const struct dense_args *a, cudaStream_t stream) {
    CHECK(dense_tile_takes(a), "cols %d, ldx %lld, dtype %d in layout %d", a->cols,
          (long long)a->ldx, a->dtype, a->layout);
    CHECK(a->dtype == DTYPE_BF16 ? a->scale == SCALE_NONE
                                 : a->dtype == DTYPE_F8_E4M3 && a->scale != SCALE_NONE,
          "dtype %d with scale %d", a->dtype, a->scale);
    CHECK(!a->xq || (a->dtype == DTYPE_F8_E4M3 && a->gpu.sm >= MIN_F8_SM),
          "FP8 activations with dtype %d on sm_%d", a->dtype, a->gpu.sm);
    CHECK(a->block_col0 >= 0 && a->block_col0 < SCALE_BLOCK_SIZE &&
              a->block_col0 % FRAGMENT_COLS == 0,
          "block_col0 %d", a->block_col0);
    CHECK(a->rows > 0 && a->cols > 0 && a->ldx >= a->cols && a->ldy >= a->rows,
          "rows %d, cols %d, ldx %lld, ldy %lld", a->rows, a->cols, (long long)a->ldx,
          (long long)a->ldy);
    if (a->num_tokens <= 0)
        return;
    switch (weight_kind_of(a->dtype, a->scale, a->xq)) {
    case WEIGHT_BF16:
        return a->layout == LAYOUT_ROWS ? launch_tokens<WEIGHT_BF16, LAYOUT_ROWS>(a, stream)
                                        : launch_tokens<WEIGHT_BF16, LAYOUT_FRAGMENTS>(a, stream);
    case WEIGHT_F8_ROW:
        return launch_tokens<WEIGHT_F8_ROW, LAYOUT_FRAGMENTS>(a, stream);
    case WEIGHT_F8_BLOCK:
        return launch<WEIGHT_F8_BLOCK, LAYOUT_FRAGMENTS, 4>(a, stream);
    case WEIGHT_F8_ROW_XQ:
        return launch_tokens<WEIGHT_F8_ROW_XQ, LAYOUT_FRAGMENTS>(a, stream);
    case WEIGHT_F8_BLOCK_XQ:
        return launch_tokens<WEIGHT_F8_BLOCK_XQ, LAYOUT_FRAGMENTS>(a, stream);
    }
}
