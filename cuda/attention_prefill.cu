/* attention_prefill: attention of tiles of 64 rows over the whole context that they see.
 *
 * A block takes 64 rows (new token, query head) of one sequence and KV head, 16 a warp, from the
 * first tile of 64 keys that any of them sees to the last. Tiles past the diagonal, or before all
 * windows, are not read; a warp skips tiles of which its own rows see nothing. Two barriers a tile:
 * keys and values are items of one ring of three slots, so that a copy of 64 rows is under way
 * during each product.
 *
 * Shapes   qkv [T, ld], out [T, Hq * D] bf16; KV blocks [num_blocks][2][Hkv][16][D] of bf16, f16
 *          or e4m3.
 * Launch   grid (prefill tiles, Hkv, 2 beyond D 128), 4 warps; 48 KB of shared memory at D 128 with
 *          16-bit KV, so that an SM of 100 KB holds two blocks. Tiles run last to first: the
 *          longest come first.
 * Bytes    keys and values once for 64 rows, mostly from L2, as the blocks of a sequence run side
 *          by side; bound by mma: a warp makes D + 4 of them for 64 keys.
 * Numerics as the decode kernel's unsplit rows, to the bit (attention_tile.cuh).
 * Requires D even, <= 256; 16-byte copies where rows are multiples of 16 bytes, else 2-byte ones.
 */
#include "cuda/attention_tile.cuh"
#include "cuda/cuda_check.h"

/* A ring of three slots, and the output columns of a block: beyond D 128, two blocks share them and
 * both make the scores, as one has not the registers for more. */
template <enum dtype KV, int DP> struct prefill_layout {
    static constexpr int SLOTS = 3;
    static constexpr int COLS = DP < 128 ? DP : 128;
    static constexpr int BYTES = SLOTS * SLOT_BYTES<KV, DP>;
};

/* s = q k for the 64 keys of a slot. */
template <enum dtype KV, int DP>
DEVICE void tile_scores(float s[TILE_KEYS / 8][4], const uint32_t q[DP / 16][4], const char *keys) {
#pragma unroll
    for (int n = 0; n < TILE_KEYS / 8; n++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            s[n][c] = 0;
#pragma unroll
    for (int step = 0; step < DP / 16; step += SCORE_STEPS<KV>)
        score_columns<KV, DP, TILE_KEYS / 8>(s, q + step, keys, 0, step);
}

/* The A operands of p: the accumulators of two groups of 8 keys are one step of 16. */
template <enum dtype KV>
DEVICE void p_operands(uint32_t p[KEY_STEPS][4], const float s[TILE_KEYS / 8][4]) {
#pragma unroll
    for (int step = 0; step < KEY_STEPS; step++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float *pair = s[2 * step + i / 2] + i % 2 * 2;
            p[step][i] = pack<KV>(pair[0], pair[1]);
        }
}

template <enum dtype KV, int DP>
__global__ void __launch_bounds__(ATTENTION_THREADS, 1)
    attention_prefill_kernel(const struct attention_launch_args a) {
    using layout = prefill_layout<KV, DP>;
    constexpr int SLOTS = layout::SLOTS, COLS = layout::COLS;
    extern __shared__ __align__(128) char shared[];
    __shared__ struct kv_stream stream; /* not in registers, which are short */
    const int warp = threadIdx.x / WARP, col = blockIdx.z * COLS;

    const struct attention_tile tile =
        a.tiles[a.plan.num_decode_tiles + gridDim.x - 1 - blockIdx.x];
    const struct block_rows b = block_rows_of(a, tile, blockIdx.y, PREFILL_TILE);
    if (b.end_row <= b.first_row) /* a KV head with fewer query heads than others */
        return;
    const int first_row = b.first_row + warp * WARP_ROWS;
    const struct warp_view view = warp_view_of(a, b, first_row);
    const float scale_log2 = a.scale * 1.44269504f;

    if (threadIdx.x == 0)
        stream = kv_stream_of<KV>(a, b, b.first_key, b.end_key);
    __syncthreads(); /* the stream is there */
    stream_begin<KV, DP, SLOTS>(shared, stream);
    uint32_t q[DP / 16][4];
#pragma unroll
    for (int step = 0; step < DP / 16; step++)
        query_load<KV>(q[step], a, b, first_row, step);
    struct row_sums<COLS> sums;
    row_sums_clear(&sums);

#pragma unroll 1
    for (int i = 0; i < stream.num_tiles; i++) {
        const int key0 = (stream.first_tile + i) * TILE_KEYS;
        const bool sees = sees_tile(view, key0), partly = sees_partly(view, key0);
        uint32_t p[KEY_STEPS][4];

        /* The tile's keys are there, and all are done with the last tile's values. */
        const char *keys = stream_next<KV, DP, SLOTS>(shared, stream, 2 * i);
        if (sees) {
            float s[TILE_KEYS / 8][4], m[2];
            tile_scores<KV, DP>(s, q, keys);
            if (partly)
                mask_scores<TILE_KEYS / 8>(s, view, key0);
            row_maxima<TILE_KEYS / 8>(m, s);
            row_sums_rescale(&sums, m, scale_log2);
            exponentials<TILE_KEYS / 8>(s, sums.max, scale_log2);
            p_operands<KV>(p, s);
        }

        /* The values are there, and all are done with the keys. */
        const char *values = stream_next<KV, DP, SLOTS>(shared, stream, 2 * i + 1);
        if (sees && partly)
            add_values<KV, DP, COLS, true>(&sums, p, values, col, view, key0);
        else if (sees)
            add_values<KV, DP, COLS, false>(&sums, p, values, col, view, key0);
    }
    cp_async_wait<0>();
    store_rows<KV, COLS>(a, b, sums, first_row, col);
}

/* ---- launch ------------------------------------------------------------------------------------
 */

template <enum dtype KV, int DP>
static void launch_prefill(const struct attention_launch_args *a, cudaStream_t stream) {
    constexpr int bytes = prefill_layout<KV, DP>::BYTES;
    dim3 grid(a->plan.num_prefill_tiles, a->num_kv_heads, DP / prefill_layout<KV, DP>::COLS);
    CUDA_CHECK(cudaFuncSetAttribute(attention_prefill_kernel<KV, DP>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    attention_prefill_kernel<KV, DP><<<grid, ATTENTION_THREADS, bytes, stream>>>(*a);
    LAUNCH_CHECK();
}

template <enum dtype KV>
static void launch_prefill_dim(const struct attention_launch_args *a, cudaStream_t stream) {
    if (a->head_dim <= 64)
        launch_prefill<KV, 64>(a, stream);
    else if (a->head_dim <= 128)
        launch_prefill<KV, 128>(a, stream);
    else
        launch_prefill<KV, 256>(a, stream);
}

void attention_prefill_launch(const struct attention_launch_args *a, cudaStream_t stream) {
    if (a->kv.dtype == DTYPE_BF16)
        launch_prefill_dim<DTYPE_BF16>(a, stream);
    else if (a->kv.dtype == DTYPE_F16)
        launch_prefill_dim<DTYPE_F16>(a, stream);
    else
        launch_prefill_dim<DTYPE_F8_E4M3>(a, stream);
}
