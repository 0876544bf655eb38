/* attention_decode: attention of tiles of up to 16 rows, split over the context; then the merge.
 *
 * A block takes the rows of one sequence and KV head through one split: the keys of a partition of
 * 512 at a multiple of 512, or all keys where the tile is not split. Its 4 warps hold the same 16
 * rows. For each tile of 64 keys a warp makes the scores of its 16 keys, the maxima and p go round
 * through shared memory, and then a warp adds all 64 keys to its quarter of the output columns: so
 * the order of a row's sums is that of the prefill kernel (attention_tile.cuh).
 *
 *   warp            0      1      2      3
 *   scores, keys  0..15  16..31 32..47 48..63  of the tile
 *   output, D     first  second third  fourth  quarter
 *
 * Shapes   qkv [T, ld], out [T, Hq * D] bf16; KV blocks [num_blocks][2][Hkv][16][D] of bf16, f16
 *          or e4m3.
 * Launch   grid (decode tiles, Hkv, max_splits), 4 warps; 22 to 99 KB of shared memory. The merge:
 *          grid (decode tiles, Hkv, 4), a warp a row.
 * Bytes    2 * D * context a sequence and KV head, times the element size; bandwidth-bound. All
 *          slots of the ring but one are in flight: 48 KB a block at D 128 in 16 bits, 32 KB with
 *          F8 and at least two blocks an SM. An SM's share of a 4090's bandwidth is 3 B a clock, so
 *          that a latency of some 1,500 clocks wants 5 KB in flight, and a tile of 32 KB takes
 *          10,000 clocks, of which its 132 mma and three barriers are to take under 1,500.
 * Numerics float32 sums; p is rounded to bf16 (BF16 KV) or f16. A split row's order depends on its
 *          own context alone: partitions are merged first to last.
 * Requires D even, <= 256; 16-byte copies where rows are multiples of 16 bytes, else 2-byte ones.
 */
#include "cuda/attention_tile.cuh"
#include "cuda/cuda_check.h"

/* Slots of the ring: an item is 64 rows of keys or of values. As many as leave room for two blocks
 * an SM of 100 KB, or, where a slot has 16 KB or more, for one with at least two in flight. */
constexpr int decode_slots(int slot_bytes) {
    return slot_bytes >= 32768 ? 3 : slot_bytes == 16384 ? 4 : 5;
}

/* Shared memory: the ring, then p [16][64], then the maxima of each warp's keys. */
template <enum dtype KV, int DP> struct decode_layout {
    static constexpr int SLOTS = decode_slots(SLOT_BYTES<KV, DP>);
    static constexpr int P_ROW = TILE_KEYS * 2;
    static constexpr int P = SLOTS * SLOT_BYTES<KV, DP>;
    static constexpr int MAXIMA = P + WARP_ROWS * P_ROW;
    static constexpr int BYTES = MAXIMA + ATTENTION_WARPS * WARP_ROWS * (int)sizeof(float);
};

/* ---- splits ------------------------------------------------------------------------------------
 */

/* Splits of a tile that have keys; the first partition that they are. */
struct live_splits {
    int32_t count, first;
};

/* With a window the first partitions have none, and the splits begin behind them. */
DEVICE struct live_splits live_splits_of(const struct attention_tile &tile,
                                         const struct block_rows &b) {
    struct live_splits s = {1, 0};
    if (tile.num_splits > 1 && b.end_key > b.first_key) {
        s.first = b.first_key / PARTITION_TOKENS;
        s.count = (b.end_key - 1) / PARTITION_TOKENS - s.first + 1;
    }
    return s;
}

/* One row of one split in the workspace: its maximum and sum, then D outputs. */
DEVICE float *split_row(const struct attention_launch_args &a, const struct attention_tile &tile,
                        int split, int kv_head, int row) {
    int64_t at = ((int64_t)(tile.first_split + split) * a.num_kv_heads + kv_head) * DECODE_TILE;
    return a.workspace + (at + row) * (a.head_dim + 2);
}

template <enum dtype KV, int COLS>
DEVICE void store_split(const struct attention_launch_args &a, const struct attention_tile &tile,
                        const struct block_rows &b, const struct row_sums<COLS> &r, int split,
                        int col) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = threadIdx.x % WARP / 4 + 8 * i;
        if (row >= b.end_row)
            continue;
        float *out = split_row(a, tile, split, b.kv_head, row);
        if (threadIdx.x < WARP && threadIdx.x % 4 == 0)
            *(float2 *)out = make_float2(r.max[i], r.sum[2 * i]);
#pragma unroll
        for (int pair = 0; pair < COLS / 8; pair++) {
            int at = col + pair_column<KV, COLS>(pair);
            if (at < a.head_dim)
                *(float2 *)(out + 2 + at) = pair_values<KV, COLS>(r, pair, i);
        }
    }
}

/* ---- one split ---------------------------------------------------------------------------------
 */

/* Scores of the warp's 16 keys of a tile, whose first has position `key`, and their maxima. */
template <enum dtype KV, int DP>
DEVICE void warp_scores(float s[2][4], float *maxima, const uint32_t q[DP / 16][4],
                        const char *keys, const struct warp_view &view, int key) {
    const int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4;
    float m[2];
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            s[n][c] = 0;
#pragma unroll
    for (int step = 0; step < DP / 16; step += SCORE_STEPS<KV>)
        score_columns<KV, DP, 2>(s, q + step, keys, 16 * warp, step);
    if (sees_partly(view, key / TILE_KEYS * TILE_KEYS))
        mask_scores<2>(s, view, key);
    row_maxima<2>(m, s);
    if (threadIdx.x % 4 == 0) {
        maxima[warp * WARP_ROWS + g] = m[0];
        maxima[warp * WARP_ROWS + g + 8] = m[1];
    }
}

/* The tile's maxima of the lane's rows, from those of the warps. */
DEVICE void tile_maxima(float m[2], const float *maxima) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float *row = maxima + threadIdx.x % WARP / 4 + 8 * i;
        m[i] = row[0];
#pragma unroll
        for (int w = 1; w < ATTENTION_WARPS; w++)
            m[i] = fmaxf(m[i], row[w * WARP_ROWS]);
    }
}

/* p of the warp's 16 keys into the rows of the block's p; rows of 128 bytes, swizzled. */
template <enum dtype KV> DEVICE void share_p(char *p, const float s[2][4]) {
    const int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            *(uint32_t *)(p + swizzled<TILE_KEYS * 2>(g + 8 * i, 2 * warp + n) + 4 * t) =
                pack<KV>(s[n][2 * i], s[n][2 * i + 1]);
}

template <enum dtype KV, int DP>
__global__ void __launch_bounds__(ATTENTION_THREADS, 1)
    attention_decode_kernel(const struct attention_launch_args a) {
    using layout = decode_layout<KV, DP>;
    constexpr int SLOTS = layout::SLOTS, COLS = DP / ATTENTION_WARPS;
    extern __shared__ __align__(128) char shared[];
    char *p_shared = shared + layout::P;
    float *maxima = (float *)(shared + layout::MAXIMA);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, col = warp * COLS;
    const int split = blockIdx.z;

    const struct attention_tile tile = a.tiles[blockIdx.x];
    if (split >= tile.num_splits) /* most blocks of a short context beside a long one */
        return;
    const struct block_rows b = block_rows_of(a, tile, blockIdx.y, DECODE_TILE);
    const struct live_splits live = live_splits_of(tile, b);
    if (split >= live.count || b.end_row == 0)
        return;
    int first = b.first_key, end = b.end_key;
    if (live.count > 1) {
        first = max(first, (live.first + split) * PARTITION_TOKENS);
        end = min(end, (live.first + split + 1) * PARTITION_TOKENS);
    }
    const struct kv_stream stream = kv_stream_of<KV>(a, b, first, end);
    const struct warp_view view = warp_view_of(a, b, 0);
    const float scale_log2 = a.scale * 1.44269504f;

    stream_begin<KV, DP, SLOTS>(shared, stream);
    uint32_t q[DP / 16][4];
#pragma unroll
    for (int step = 0; step < DP / 16; step++)
        query_load<KV>(q[step], a, b, 0, step);
    struct row_sums<COLS> sums;
    row_sums_clear(&sums);

#pragma unroll 1
    for (int i = 0; i < stream.num_tiles; i++) {
        const int key0 = (stream.first_tile + i) * TILE_KEYS;
        float s[2][4], m[2];
        uint32_t p[KEY_STEPS][4];

        /* The tile's keys are there, and all are done with the last tile's values and p. */
        const char *keys = stream_next<KV, DP, SLOTS>(shared, stream, 2 * i);
        warp_scores<KV, DP>(s, maxima, q, keys, view, key0 + 16 * warp);

        __syncthreads(); /* all warps' maxima are there */
        tile_maxima(m, maxima);
        row_sums_rescale(&sums, m, scale_log2);
        exponentials<2>(s, sums.max, scale_log2);
        share_p<KV>(p_shared, s);

        /* The values and all warps' p are there, and all are done with the keys. */
        const char *values = stream_next<KV, DP, SLOTS>(shared, stream, 2 * i + 1);
#pragma unroll
        for (int step = 0; step < KEY_STEPS; step++)
            ldmatrix_x4(p[step],
                        p_shared + swizzled<layout::P_ROW>(lane % 16, 2 * step + lane / 16));
        if (sees_partly(view, key0))
            add_values<KV, DP, COLS, true>(&sums, p, values, col, view, key0);
        else
            add_values<KV, DP, COLS, false>(&sums, p, values, col, view, key0);
    }
    cp_async_wait<0>();

    if (live.count > 1)
        store_split<KV, COLS>(a, tile, b, sums, split, col);
    else
        store_rows<KV, COLS>(a, b, sums, 0, col);
}

/* ---- the merge ---------------------------------------------------------------------------------
 */

constexpr int MERGE_WARPS = 4;
constexpr int MERGE_PAIRS = 4; /* of columns a lane: D <= 256 */

/* out = sum over splits of 2^(m_i - m) out_i / sum over splits of 2^(m_i - m) sum_i, in the order
 * of the splits. A warp takes a row; NaNs stay, as weights are never skipped. */
__global__ void __launch_bounds__(MERGE_WARPS *WARP)
    attention_merge_kernel(const struct attention_launch_args a) {
    const struct attention_tile tile = a.tiles[blockIdx.x];
    if (tile.num_splits == 1)
        return;
    const struct block_rows b = block_rows_of(a, tile, blockIdx.y, DECODE_TILE);
    const struct live_splits live = live_splits_of(tile, b);
    const int row = blockIdx.z * MERGE_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (live.count == 1 || row >= b.end_row)
        return;
    const float *part = split_row(a, tile, 0, b.kv_head, row);
    const int64_t stride = (int64_t)a.num_kv_heads * DECODE_TILE * (a.head_dim + 2);

    float max = -INFINITY;
    for (int i = lane; i < live.count; i += WARP)
        max = fmaxf(max, part[i * stride]);
    max = warp_max(max);
    if (max == -INFINITY)
        max = 0;

    float sum = 0;
    float2 out[MERGE_PAIRS] = {};
#pragma unroll 4
    for (int i = 0; i < live.count; i++) {
        const float2 head = *(const float2 *)(part + i * stride);
        float weight = exp2_approx(head.x - max);
        sum = fmaf(weight, head.y, sum);
#pragma unroll
        for (int j = 0; j < MERGE_PAIRS; j++) {
            int d = 2 * (lane + WARP * j);
            if (d < a.head_dim) {
                float2 v = *(const float2 *)(part + i * stride + 2 + d);
                out[j].x = fmaf(weight, v.x, out[j].x);
                out[j].y = fmaf(weight, v.y, out[j].y);
            }
        }
    }
    bf16 *to = a.out + row_offset(a, b, row, (int64_t)a.num_heads * a.head_dim);
    float inverse = inverse_sum(sum);
#pragma unroll
    for (int j = 0; j < MERGE_PAIRS; j++) {
        int d = 2 * (lane + WARP * j);
        if (d < a.head_dim)
            *(uint32_t *)(to + d) = pack_bf16(out[j].x * inverse, out[j].y * inverse);
    }
}

/* ---- launch ------------------------------------------------------------------------------------
 */

template <enum dtype KV, int DP>
static void launch_decode(const struct attention_launch_args *a, cudaStream_t stream) {
    constexpr int bytes = decode_layout<KV, DP>::BYTES;
    dim3 grid(a->plan.num_decode_tiles, a->num_kv_heads, a->plan.max_splits);
    CUDA_CHECK(cudaFuncSetAttribute(attention_decode_kernel<KV, DP>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    attention_decode_kernel<KV, DP><<<grid, ATTENTION_THREADS, bytes, stream>>>(*a);
    LAUNCH_CHECK();
}

template <enum dtype KV>
static void launch_decode_dim(const struct attention_launch_args *a, cudaStream_t stream) {
    if (a->head_dim <= 64)
        launch_decode<KV, 64>(a, stream);
    else if (a->head_dim <= 128)
        launch_decode<KV, 128>(a, stream);
    else
        launch_decode<KV, 256>(a, stream);
}

void attention_decode_launch(const struct attention_launch_args *a, cudaStream_t stream) {
    if (a->kv.dtype == DTYPE_BF16)
        launch_decode_dim<DTYPE_BF16>(a, stream);
    else if (a->kv.dtype == DTYPE_F16)
        launch_decode_dim<DTYPE_F16>(a, stream);
    else
        launch_decode_dim<DTYPE_F8_E4M3>(a, stream);
    if (a->plan.max_splits == 1)
        return;
    dim3 grid(a->plan.num_decode_tiles, a->num_kv_heads, DECODE_TILE / MERGE_WARPS);
    attention_merge_kernel<<<grid, MERGE_WARPS * WARP, 0, stream>>>(*a);
    LAUNCH_CHECK();
}
