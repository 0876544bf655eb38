/* moe_tile: gated expert FFNs for many tokens an expert, by tiles in shared memory
 *
 *   gate_up   act[p, i] = silu(gate_i x) * up_i x     for each pair p of an expert, in bf16
 *   down      pair_out[p, h] = down_h act[p]          in float32
 *
 * Shapes   x [T, H] gathered by permutation[p] / K; act [P, I], pair_out [P, H] in permuted order;
 *          weights in FRAGMENTS. FP8 activations: xq [T, f8_stride(H)] and actq [P, f8_stride(I)] are
 *          read instead of x and act, with their scales.
 * Tile     128 weight rows (64 of gate and the same 64 of up; 128 of down) x 64 or 128 tokens, by 8
 *          warps, 4 x 2. A warp has 32 rows (16 of gate and of up, so that the activation needs no
 *          exchange) and 32 or 64 tokens.
 * Launch   persistent grid over tiles of experts, tokens within rows, so that blocks that run at the
 *          same time share weights and tokens in L2.
 * Stages   cp.async of 64 columns, 2 or 3 in flight: weights as they lie, so that a lane's A operand is
 *          one 16-byte load and a warp's loads are contiguous; tokens in rows of 128 bytes, the
 *          halves of odd rows swapped, so that the 8 lanes of a phase (2 rows x 4 chunks) cover all
 *          banks. FP8 activations: 4 in flight, rows of 64 bytes, the halves of every second pair of
 *          rows swapped, for phases of 16 lanes (4 rows x 4 half chunks).
 * Choice   tokens  kind       stage  stages  shared  blocks/SM
 *            64    BF16       24 KB    2     48 KB     2
 *            64    F8         16 KB    3     48 KB     2  (1 with SCALE_BLOCK: three sets of sums)
 *           128    BF16       32 KB    3     96 KB     1
 *           128    F8         24 KB    3     72 KB     1
 *            64    F8 x F8    12 KB    4     48 KB     1  (three sets of sums: 150 registers of sm_89)
 *           128    F8 x F8    16 KB    4     64 KB     1  (253 registers)
 *          128 tokens read the weights half as often and give each A operand twice the products; they
 *          waste more of a last tile. So: 128 where an expert has at least 96 tokens on average.
 * Issue    a warp's 32 columns of 32 x 64: 32 mma, which a 4090 (half rate with float32 sums) takes
 *          256 clocks of an SM for, against 12 shared loads of 4 clocks and, FP8, 80 instructions of
 *          conversion. L2 traffic: 256 + 128 columns' bytes a column (F8, 128 tokens) for 64 clocks.
 *          FP8 activations: 16 mma, 128 clocks, against 10 shared loads of 24 clocks, no conversion,
 *          and 32 instructions to add and clear the chains. L2 traffic: 8 KB for 1,024 clocks.
 * Numerics the order of sums of mma_rows.cuh: the same bits as the streaming kernels.
 * Requires H and I multiples of 8 (moe.cu sees to it); nothing of FP8 activations, whose rows are
 *          padded.
 */
#include "cuda/cuda_check.h"
#include "cuda/moe.cuh"
#include "cuda/tile.cuh"

/* Pieces of tokens' rows that a thread copies for a stage. */
template <enum weight_kind KIND, int NT>
constexpr int X_COPIES = TILE_TOKENS<NT> * X_CHUNKS<KIND> / TILE_THREADS;

/* What a block multiplies: TILE_GROUPS groups of 16 rows, TILE_TOKENS tokens. */
template <enum weight_kind KIND, int NT> struct tile_work {
    const char *w[MATS];         /* the matrix of a warp's m-th group */
    const float *scale[MATS];
    int32_t first_group;         /* group_of says which a warp has */
    int32_t num_groups, tiles;   /* of the matrix */
    int32_t cut;                 /* as in stream_rows */
    const uint4 *x;
    int32_t row_chunks;              /* of 16 bytes, of x */
    int32_t row[X_COPIES<KIND, NT>]; /* first chunks of the tokens that this thread copies, or -1 */
};

/* Row group of warp row r and matrix m: of gate and of up the same, of down the next. */
template <bool DOWN> DEVICE int group_of(int first_group, int r, int m) {
    return DOWN ? first_group + r * MATS + m : first_group + r;
}

/* Starts the copies of a stage: tiles [tile, tile + STAGE_TILES). Tiles past the last column are not
 * copied, and not read. */
template <enum weight_kind KIND, bool DOWN, int NT>
DEVICE void stage_copy(char *stage, const struct tile_work<KIND, NT> &k, int tile) {
    constexpr int tile_chunks = TILE_BYTES<KIND> / 16;
    constexpr int group_chunks = STAGE_TILES * tile_chunks;
#pragma unroll
    for (int i = 0; i < TILE_GROUPS * group_chunks / TILE_THREADS; i++) {
        int chunk = i * TILE_THREADS + threadIdx.x;
        int index = chunk / group_chunks, r = index / MATS, m = index % MATS;
        int group = min(group_of<DOWN>(k.first_group, r, m), k.num_groups - 1);
        int c = chunk % group_chunks;
        const char *w = m ? k.w[1] : k.w[0];
        if (tile + c / tile_chunks < k.tiles)
            cp_async16(stage + chunk * 16,
                       w + ((int64_t)group * k.tiles + tile) * TILE_BYTES<KIND> + c * 16, true);
    }
    char *x = stage + W_STAGE_BYTES<KIND>;
    int c = threadIdx.x % X_CHUNKS<KIND>, at = tile * (X_CHUNKS<KIND> / STAGE_TILES) + c;
#pragma unroll
    for (int i = 0; i < X_COPIES<KIND, NT>; i++) {
        int token = (i * TILE_THREADS + threadIdx.x) / X_CHUNKS<KIND>;
        bool valid = k.row[i] >= 0 && at < k.row_chunks;
        cp_async16(x + x_chunk_at<KIND>(token, c) * 16, k.x + (valid ? k.row[i] + at : 0), valid);
    }
}

/* chain += the products of one tile of 32 columns that lies in shared memory. */
template <enum weight_kind KIND, int NT>
DEVICE void tile_multiply(struct tile_sums<KIND, NT> *s, const char *stage, int t) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int warp_m = warp / WARPS_N, warp_n = warp % WARPS_N;
    uint32_t a[MATS][TILE_MMAS<KIND>][4];
#pragma unroll
    for (int m = 0; m < MATS; m++) {
        uint4 v[TILE_LOADS<KIND>];
        const char *w =
            stage + ((warp_m * MATS + m) * STAGE_TILES + t) * TILE_BYTES<KIND> + lane * 16;
#pragma unroll
        for (int h = 0; h < TILE_LOADS<KIND>; h++)
            v[h] = *(const uint4 *)(w + h * (WARP * 16));
        weight_tile_operands<KIND>(a[m], v);
    }
    const char *x = stage + W_STAGE_BYTES<KIND>;
#pragma unroll
    for (int n = 0; n < NT; n++) {
        int token = (warp_n * NT + n) * GROUP_TOKENS + lane / 4;
        struct token_piece<KIND> b = stage_piece<KIND>(x, token, t);
#pragma unroll
        for (int m = 0; m < MATS; m++)
            mma_tile<KIND>(s->chain[m][n], a[m], b);
    }
}

/* After tile `tile`, the last of its segment or not: what mma_rows.cuh says of the order. */
template <enum weight_kind KIND, bool DOWN, int NT>
DEVICE void tile_promote(struct tile_sums<KIND, NT> *s, const struct tile_work<KIND, NT> &k, int tile,
                         bool last_of_segment) {
    if constexpr (HAS_CHAINS<KIND>) {
        int at = IS_F8_BLOCK<KIND> ? tile + k.cut : tile;
        if (at % BLOCK_TILES == BLOCK_TILES - 1 || last_of_segment) {
            int warp_m = threadIdx.x / WARP / WARPS_N;
#pragma unroll
            for (int m = 0; m < MATS; m++) {
                int group = min(group_of<DOWN>(k.first_group, warp_m, m), k.num_groups - 1);
                float scale = 1;
                if constexpr (IS_F8_BLOCK<KIND>)
                    scale = __ldg(block_scales<KIND>(k.scale[m], group, k.tiles, k.cut) +
                                  at / BLOCK_TILES);
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
template <enum weight_kind KIND, bool DOWN, int NT>
DEVICE void tile_sum(struct tile_sums<KIND, NT> *s, char *shared, const struct tile_work<KIND, NT> &k) {
    constexpr int N = STAGES<KIND, NT>;
    int steps = (k.tiles + STAGE_TILES - 1) / STAGE_TILES;
    clear_tile(s);
#pragma unroll
    for (int i = 0; i < N - 1; i++) {
        if (i < steps)
            stage_copy<KIND, DOWN, NT>(shared + i * STAGE_BYTES<KIND, NT>, k, i * STAGE_TILES);
        cp_async_commit();
    }
    int segment = 0, slot = 0, segment_end = segment_first<KIND>(1, k.tiles);
    for (int step = 0; step < steps; step++) {
        cp_async_wait<N - 2>();
        __syncthreads(); /* the stage is there for all, and nobody reads the one before any more */
        int ahead = step + N - 1, ahead_slot = slot == 0 ? N - 1 : slot - 1;
        if (ahead < steps)
            stage_copy<KIND, DOWN, NT>(shared + ahead_slot * STAGE_BYTES<KIND, NT>, k,
                                       ahead * STAGE_TILES);
        cp_async_commit();
#pragma unroll
        for (int t = 0; t < STAGE_TILES; t++) {
            int tile = step * STAGE_TILES + t;
            if (tile >= k.tiles)
                continue;
            while (segment_end <= tile) /* past empty segments too */
                segment_end = segment_first<KIND>(++segment + 1, k.tiles);
            tile_multiply<KIND, NT>(s, shared + slot * STAGE_BYTES<KIND, NT>, t);
            tile_promote<KIND, DOWN, NT>(s, k, tile, tile + 1 == segment_end);
        }
        slot = slot + 1 == N ? 0 : slot + 1;
    }
}

/* What a lane holds, scaled and gated, to act, or scaled to pair_out. */
template <enum weight_kind KIND, bool DOWN, int NT>
DEVICE void tile_store(const struct tile_sums<KIND, NT> &s, const struct moe_args_device &p,
                       const struct moe_item &item, const struct tile_work<KIND, NT> &k,
                       int first_token) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int H = p.a.hidden_size, I = p.a.intermediate;
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            int token = ((warp % WARPS_N) * NT + n) * GROUP_TOKENS + lane % 4 * 2 + c % 2;
            int r = lane / 4 + c / 2 * 8;
            if (first_token + token >= item.count)
                continue;
            int64_t at = item.first + first_token + token;
            float x_scale = 1;
            if constexpr (IS_XQ<KIND>)
                x_scale = DOWN ? p.a.actq_scale[at] : p.a.xq_scale[moe_token_of(p, (int)at)];
            if constexpr (DOWN) {
#pragma unroll
                for (int m = 0; m < MATS; m++) {
                    int row = group_of<true>(k.first_group, warp / WARPS_N, m) * FRAGMENT_ROWS + r;
                    if (row < H)
                        ((float *)p.a.pair_out)[at * H + row] =
                            scale_row<KIND>(s.total[m][n][c], k.scale[m], row, x_scale);
                }
            } else {
                int row = group_of<false>(k.first_group, warp / WARPS_N, 0) * FRAGMENT_ROWS + r;
                if (row < I)
                    p.a.act[at * I + row] =
                        gated(scale_row<KIND>(s.total[0][n][c], k.scale[0], row, x_scale),
                              scale_row<KIND>(s.total[1][n][c], k.scale[1], row, x_scale));
            }
        }
}

/* Sets the parts of a tile's work that all items share. */
template <enum weight_kind KIND, bool DOWN, int NT>
DEVICE void work_start(struct tile_work<KIND, NT> *k, const struct moe_args_device &p) {
    int cols = DOWN ? p.a.intermediate : p.a.hidden_size;
    k->tiles = (cols + FRAGMENT_COLS - 1) / FRAGMENT_COLS;
    k->cut = DOWN ? p.a.down_col0 / FRAGMENT_COLS : 0;
    k->num_groups = ((DOWN ? p.a.hidden_size : p.a.intermediate) - 1) / FRAGMENT_ROWS + 1;
    if constexpr (IS_XQ<KIND>) {
        k->x = (const uint4 *)(DOWN ? p.a.actq : p.a.xq);
        k->row_chunks = k->tiles * FRAGMENT_COLS / 16;
    } else {
        k->x = (const uint4 *)(DOWN ? p.a.act : p.a.x);
        k->row_chunks = cols / 8;
    }
}

template <enum weight_kind KIND, bool DOWN, int NT>
__global__ void __launch_bounds__(TILE_THREADS, TILE_BLOCKS<KIND, NT>)
    moe_tile_kernel(const struct moe_args_device p, int row_tiles) {
    extern __shared__ __align__(128) char shared[];
    __shared__ struct moe_queue queue;
    constexpr int tile_rows = (DOWN ? MATS : 1) * WARPS_M; /* groups of 16 rows */
    struct tile_work<KIND, NT> k;
    work_start<KIND, DOWN, NT>(&k, p);
    moe_queue_start(&queue);
    for (;;) {
        const struct moe_item *item = moe_queue_next(&queue, p, p.stream_limit, INT32_MAX,
                                                     row_tiles, TILE_TOKENS<NT>);
        if (!item)
            break;
        int token_tiles = (item->count - 1) / TILE_TOKENS<NT> + 1;
        int first_token = item->index % token_tiles * TILE_TOKENS<NT>;
        const struct gpu_expert *e = p.a.experts + item->slot;
        k.first_group = item->index / token_tiles * tile_rows;
        k.w[0] = (const char *)(DOWN ? e->down : e->gate);
        k.w[1] = (const char *)(DOWN ? e->down : e->up);
        k.scale[0] = DOWN ? e->down_scale : e->gate_scale;
        k.scale[1] = DOWN ? e->down_scale : e->up_scale;
#pragma unroll
        for (int i = 0; i < X_COPIES<KIND, NT>; i++) {
            int token = first_token + (i * TILE_THREADS + (int)threadIdx.x) / X_CHUNKS<KIND>;
            int at = item->first + token;
            k.row[i] = token >= item->count ? -1
                       : (DOWN ? at : moe_token_of(p, at)) * k.row_chunks;
        }
        if constexpr (RUNS_HERE<KIND>) {
            struct tile_sums<KIND, NT> sums;
            tile_sum<KIND, DOWN, NT>(&sums, shared, k);
            tile_store<KIND, DOWN, NT>(sums, p, *item, k, first_token);
        }
        __syncthreads(); /* nobody reads the stages or the item any more */
    }
}

template <enum weight_kind KIND, bool DOWN, int NT>
static void launch(const struct moe_args_device *p, cudaStream_t stream) {
    constexpr int bytes = STAGES<KIND, NT> * STAGE_BYTES<KIND, NT>;
    const struct moe_launch_args *a = &p->a;
    int groups = ceil_div(DOWN ? a->hidden_size : a->intermediate, FRAGMENT_ROWS);
    int row_tiles = ceil_div(groups, (DOWN ? MATS : 1) * WARPS_M);
    int64_t pairs = (int64_t)a->num_tokens * a->num_experts_per_tok;
    int64_t most = (pairs / TILE_TOKENS<NT> + a->num_local) * row_tiles;
    int blocks = a->gpu.num_sms * TILE_BLOCKS<KIND, NT>;
    blocks = most < blocks ? (int)most : blocks;
    CUDA_CHECK(cudaFuncSetAttribute(moe_tile_kernel<KIND, DOWN, NT>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    moe_tile_kernel<KIND, DOWN, NT><<<blocks, TILE_THREADS, bytes, stream>>>(*p, row_tiles);
    LAUNCH_CHECK();
}

template <bool DOWN>
static void launch_tile(const struct moe_args_device *p, int average, cudaStream_t stream) {
    bool wide = average >= 96;
    switch (weight_kind_of(p->a.dtype, p->a.scale, p->a.xq)) {
    case WEIGHT_BF16:
        return wide ? launch<WEIGHT_BF16, DOWN, 8>(p, stream)
                    : launch<WEIGHT_BF16, DOWN, 4>(p, stream);
    case WEIGHT_F8_ROW:
        return wide ? launch<WEIGHT_F8_ROW, DOWN, 8>(p, stream)
                    : launch<WEIGHT_F8_ROW, DOWN, 4>(p, stream);
    case WEIGHT_F8_BLOCK:
        return launch<WEIGHT_F8_BLOCK, DOWN, 4>(p, stream);
    case WEIGHT_F8_ROW_XQ:
        return wide ? launch<WEIGHT_F8_ROW_XQ, DOWN, 8>(p, stream)
                    : launch<WEIGHT_F8_ROW_XQ, DOWN, 4>(p, stream);
    case WEIGHT_F8_BLOCK_XQ:
        return wide ? launch<WEIGHT_F8_BLOCK_XQ, DOWN, 8>(p, stream)
                    : launch<WEIGHT_F8_BLOCK_XQ, DOWN, 4>(p, stream);
    }
}

void moe_tile_gate_up_launch(const struct moe_args_device *p, int average, cudaStream_t stream) {
    launch_tile<false>(p, average, stream);
}

void moe_tile_down_launch(const struct moe_args_device *p, int average, cudaStream_t stream) {
    launch_tile<true>(p, average, stream);
}
