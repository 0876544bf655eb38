/* attention_tile: what the two attention kernels share: the stream of KV tiles through shared
 * memory, and the products of 16 query rows with a tile of 64 keys.
 *
 * Both kernels compute a row in the same order, so that its bits do not depend on which of them it
 * is in: from the first tile to the last, with the same tiles of 64 keys at multiples of 64,
 *
 *   s = q k               a chain of mma over D in steps of 16
 *   m = max(m, s * scale) over the tile, in units of log2(e); alpha = 2^(m_old - m)
 *   p = 2^(s * scale - m) rounded to the operand type; 0 for keys that the row does not see
 *   sum = alpha * sum + p 1,  out = alpha * out + p v     chains over the keys in steps of 16
 *
 * and out / sum at the end. A tile of which a row sees nothing changes nothing: its alpha is 1 and
 * its p are 0 (or, before the row's first key, sum and out are 0 anyway).
 *
 * The rows are the A operand of mma.m16n8k16: 16 rows a warp, lane (g, t) holds rows g and g + 8
 * (ptx.cuh). BF16 KV takes bf16 products; F16 and F8 KV take f16 ones, with q and p in f16 and F8
 * widened exactly: a query of bf16 is an f16, unless it is beyond 65504.
 *
 * A slot of shared memory holds 64 rows of keys or values, padded to DP columns with zeros, in
 * chunks of 16 bytes that are swizzled so that neither copies nor ldmatrix meet bank conflicts.
 * Keys that no row of the block sees are zeros as well: they are not read, as what lies there may
 * be NaNs, and 0 times a NaN is a NaN. Keys that some rows see and others do not are the business
 * of the CAREFUL products.
 */
#pragma once

#include "cuda/device.cuh"
#include "cuda/kernels.h"
#include "host/batch.h"

constexpr int ATTENTION_WARPS = 4;
constexpr int ATTENTION_THREADS = ATTENTION_WARPS * WARP;
constexpr int TILE_KEYS = 64;
constexpr int WARP_ROWS = 16;
constexpr int KEY_STEPS = TILE_KEYS / 16; /* mma steps over the keys of a tile */

template <enum dtype KV> constexpr bool IS_F8 = KV == DTYPE_F8_E4M3;
template <enum dtype KV> constexpr int KV_BYTES = IS_F8<KV> ? 1 : 2;
/* A row of a slot, and a slot. */
template <enum dtype KV, int DP> constexpr int ROW_BYTES = DP *KV_BYTES<KV>;
template <enum dtype KV, int DP> constexpr int SLOT_BYTES = TILE_KEYS *ROW_BYTES<KV, DP>;

/* The launchers of the two kernels, for attention_launch. */
void attention_decode_launch(const struct attention_launch_args *a, cudaStream_t stream);
void attention_prefill_launch(const struct attention_launch_args *a, cudaStream_t stream);

/* ---- operands ----------------------------------------------------------------------------------
 */

template <enum dtype KV> DEVICE void mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    if (KV == DTYPE_BF16)
        mma_bf16(c, a, b);
    else
        mma_f16(c, a, b);
}
template <enum dtype KV> DEVICE uint32_t pack(float low, float high) {
    return KV == DTYPE_BF16 ? pack_bf16(low, high) : pack_f16(low, high);
}
/* A pair of ones. */
template <enum dtype KV> constexpr uint32_t ONES = KV == DTYPE_BF16 ? 0x3f803f80u : 0x3c003c00u;

/* All bits of the halves that are infinite or NaN. */
template <enum dtype KV> DEVICE uint32_t not_finite(uint32_t pair) {
    constexpr uint32_t exponent = KV == DTYPE_BF16 ? 0x7f807f80u : 0x7c007c00u;
    constexpr uint32_t lowest = KV == DTYPE_BF16 ? 0x00800080u : 0x04000400u;
    return (((pair & exponent) + lowest) >> 15 & 0x00010001u) * 0xffffu;
}

/* Byte offset of a chunk of 16 bytes of a row. Eight rows' chunks lie in different banks. */
template <int BYTES> DEVICE int swizzled(int row, int chunk) {
    if (BYTES >= 128)
        return row * BYTES + (chunk ^ (row & 7)) * 16;
    return row * BYTES + (chunk ^ (row >> 1 & 3)) * 16;
}

/* ---- the work of a block -----------------------------------------------------------------------
 */

/* Rows of one sequence and KV head (kernels.h, attention_tile) and the keys that they see. */
struct block_rows {
    int32_t seq, kv_head;
    int32_t context, num_tokens, token0; /* of the sequence; its new tokens, the first one's row */
    int32_t group, head0;                /* query heads of the KV head */
    int32_t first_row, end_row;
    int32_t first_key, end_key; /* seen by any of the rows */
};

/* Keys [first, end). */
struct key_range {
    int32_t first, end;
};

/* What new token i of the sequence sees: nothing where the sequence is padding. */
DEVICE struct key_range seen_by_token(const struct attention_launch_args &a,
                                      const struct block_rows &b, int token) {
    struct key_range r;
    r.end = max(0, b.context - b.num_tokens + token + 1);
    r.first = a.window > 0 ? max(0, r.end - a.window) : 0;
    return r;
}
/* The same of a row; nothing where there is no such row. */
DEVICE struct key_range seen_by_row(const struct attention_launch_args &a,
                                    const struct block_rows &b, int row) {
    struct key_range none = {0, 0};
    return row < b.end_row ? seen_by_token(a, b, row / b.group) : none;
}

/* Up to max_rows rows of a tile. */
DEVICE struct block_rows block_rows_of(const struct attention_launch_args &a,
                                       const struct attention_tile &tile, int kv_head,
                                       int max_rows) {
    struct block_rows b = {};
    b.seq = tile.seq;
    b.kv_head = kv_head;
    b.context = __ldg(a.seq_lens + tile.seq);
    b.token0 = __ldg(a.cu_seqlens + tile.seq);
    b.num_tokens = __ldg(a.cu_seqlens + tile.seq + 1) - b.token0;
    b.head0 = __ldg(a.head_offsets + kv_head);
    b.group = __ldg(a.head_offsets + kv_head + 1) - b.head0;
    b.first_row = tile.first_row;
    b.end_row = min(tile.first_row + max_rows, b.num_tokens * b.group);
    if (b.first_row < b.end_row) {
        b.first_key = seen_by_row(a, b, b.first_row).first;
        b.end_key = seen_by_row(a, b, b.end_row - 1).end;
    }
    return b;
}

/* Where a row's token and head begin: elements into qkv (stride ld) or out (stride Hq * D). */
DEVICE int64_t row_offset(const struct attention_launch_args &a, const struct block_rows &b,
                          int row, int64_t stride) {
    return (b.token0 + row / b.group) * stride + (int64_t)(b.head0 + row % b.group) * a.head_dim;
}

/* What the 16 rows of a warp see. */
struct warp_view {
    struct key_range row[2];   /* the lane's rows, g and g + 8 */
    struct key_range any, all; /* seen by any, by all of the rows that exist */
};

DEVICE struct warp_view warp_view_of(const struct attention_launch_args &a,
                                     const struct block_rows &b, int first_row) {
    struct warp_view v = {};
    int g = threadIdx.x % WARP / 4, last_row = min(first_row + WARP_ROWS, b.end_row) - 1;
    if (last_row < first_row)
        return v;
    v.row[0] = seen_by_row(a, b, first_row + g);
    v.row[1] = seen_by_row(a, b, first_row + g + 8);
    struct key_range first = seen_by_row(a, b, first_row), last = seen_by_row(a, b, last_row);
    v.any.first = first.first;
    v.any.end = last.end;
    v.all.first = last.first;
    v.all.end = first.end;
    return v;
}
/* Does the warp see keys of the tile at key0? */
DEVICE bool sees_tile(const struct warp_view &v, int key0) {
    return key0 < v.any.end && key0 + TILE_KEYS > v.any.first;
}
/* Are there keys in it that some of its rows do not see? */
DEVICE bool sees_partly(const struct warp_view &v, int key0) {
    return key0 < v.all.first || key0 + TILE_KEYS > v.all.end;
}

/* ---- the stream of tiles -----------------------------------------------------------------------
 */

/* Items 2i and 2i + 1 of a stream are keys and values of its i-th tile. */
struct kv_stream {
    const char *data;      /* of the KV head in block 0 */
    const int32_t *blocks; /* of the sequence */
    int32_t block_bytes;   /* of all heads */
    int32_t value_offset;  /* from keys to values of a block */
    int32_t row_bytes;
    int32_t first_key, end_key; /* others are zeros */
    int32_t first_tile, num_tiles;
};

/* Tiles that keys [first, end) lie in. */
template <enum dtype KV>
DEVICE struct kv_stream kv_stream_of(const struct attention_launch_args &a,
                                     const struct block_rows &b, int first, int end) {
    struct kv_stream s;
    s.row_bytes = a.head_dim * KV_BYTES<KV>;
    int32_t head_bytes = KV_BLOCK_SIZE * s.row_bytes;
    s.value_offset = a.num_kv_heads * head_bytes;
    s.block_bytes = 2 * s.value_offset;
    s.data = (const char *)a.kv.data + (int64_t)b.kv_head * head_bytes;
    s.blocks = a.block_tables + (int64_t)b.seq * a.max_blocks;
    s.first_key = first;
    s.end_key = end;
    s.first_tile = first / TILE_KEYS;
    s.num_tiles = end > first ? (end - 1) / TILE_KEYS - s.first_tile + 1 : 0;
    return s;
}

/* Rows of which every chunk is aligned to 16 bytes. At most 8 copies of a thread at a time, which
 * wait for their block numbers together. */
template <enum dtype KV, int DP>
DEVICE void copy_chunks(char *slot, const struct kv_stream &s, const char *data, int key0) {
    constexpr int CHUNKS = ROW_BYTES<KV, DP> / 16, ROWS = ATTENTION_THREADS / CHUNKS;
    constexpr int PASSES = TILE_KEYS / ROWS < 8 ? TILE_KEYS / ROWS : 8;
    const int chunk = threadIdx.x % CHUNKS;
#pragma unroll 1
    for (int row0 = threadIdx.x / CHUNKS; row0 < TILE_KEYS; row0 += PASSES * ROWS) {
        int32_t block[PASSES];
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            int key = key0 + row0 + i * ROWS;
            bool seen = key >= s.first_key && key < s.end_key && chunk * 16 < s.row_bytes;
            block[i] = seen ? __ldg(s.blocks + key / KV_BLOCK_SIZE) : -1;
        }
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            int row = row0 + i * ROWS;
            int64_t at =
                (int64_t)block[i] * s.block_bytes + row % KV_BLOCK_SIZE * s.row_bytes + chunk * 16;
            cp_async16(slot + swizzled<ROW_BYTES<KV, DP>>(row, chunk),
                       block[i] >= 0 ? data + at : s.data, block[i] >= 0);
        }
    }
}

/* Any rows of an even number of bytes, two bytes at a time. */
template <enum dtype KV, int DP>
DEVICE void copy_pairs(char *slot, const struct kv_stream &s, const char *data, int key0) {
    constexpr int PAIRS = ROW_BYTES<KV, DP> / 2;
#pragma unroll 1
    for (int i = threadIdx.x; i < TILE_KEYS * PAIRS; i += ATTENTION_THREADS) {
        int row = i / PAIRS, pair = i % PAIRS, key = key0 + row;
        uint16_t v = 0;
        if (key >= s.first_key && key < s.end_key && pair * 2 < s.row_bytes) {
            int64_t block = __ldg(s.blocks + key / KV_BLOCK_SIZE);
            int64_t at = block * s.block_bytes + row % KV_BLOCK_SIZE * s.row_bytes + pair * 2;
            v = __ldg((const uint16_t *)(data + at));
        }
        *(uint16_t *)(slot + swizzled<ROW_BYTES<KV, DP>>(row, pair / 8) + pair % 8 * 2) = v;
    }
}

/* Starts the copy of an item into its slot of the ring, if there is such an item, as one group. */
template <enum dtype KV, int DP, int SLOTS>
DEVICE void stream_start(char *ring, const struct kv_stream &s, int item) {
    if (item < 2 * s.num_tiles) {
        char *slot = ring + item % SLOTS * SLOT_BYTES<KV, DP>;
        const char *data = s.data + item % 2 * s.value_offset;
        int key0 = (s.first_tile + item / 2) * TILE_KEYS;
        if (s.row_bytes % 16 == 0)
            copy_chunks<KV, DP>(slot, s, data, key0);
        else
            copy_pairs<KV, DP>(slot, s, data, key0);
    }
    cp_async_commit();
}

/* Fills the ring but for one slot. */
template <enum dtype KV, int DP, int SLOTS>
DEVICE void stream_begin(char *ring, const struct kv_stream &s) {
#pragma unroll 1
    for (int item = 0; item < SLOTS - 1; item++)
        stream_start<KV, DP, SLOTS>(ring, s, item);
}

/* Waits until an item is there and every thread is done with the one before, whose slot is filled
 * anew. A barrier. */
template <enum dtype KV, int DP, int SLOTS>
DEVICE const char *stream_next(char *ring, const struct kv_stream &s, int item) {
    cp_async_wait<SLOTS - 2>();
    __syncthreads();
    stream_start<KV, DP, SLOTS>(ring, s, item - 1 + SLOTS);
    return ring + item % SLOTS * SLOT_BYTES<KV, DP>;
}

/* ---- queries -----------------------------------------------------------------------------------
 */

/* Which columns of a step of 16 a lane's two pairs of k indices stand for: in order for 16-bit
 * keys; for F8, whose rows ldmatrix hands out four bytes a lane, 4t .. 4t + 3. */
template <enum dtype KV> DEVICE int query_column(int step, int pair) {
    int t = threadIdx.x % 4;
    return step * 16 + (IS_F8<KV> ? 4 * t + 2 * pair : 2 * t + 8 * pair);
}

/* The A operand of columns [16 step, + 16) of the warp's rows; zeros where there are none. */
template <enum dtype KV>
DEVICE void query_load(uint32_t q[4], const struct attention_launch_args &a,
                       const struct block_rows &b, int first_row, int step) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int row = first_row + threadIdx.x % WARP / 4 + i % 2 * 8;
        int col = query_column<KV>(step, i / 2);
        q[i] = 0;
        if (row < b.end_row && col < a.head_dim)
            q[i] = __ldg((const uint32_t *)(a.qkv + row_offset(a, b, row, a.ld) + col));
        if (KV != DTYPE_BF16)
            q[i] = pack_f16(bf16_low(q[i]), bf16_high(q[i]));
    }
}

/* ---- scores ------------------------------------------------------------------------------------
 */

/* Steps of 16 columns that one ldmatrix of F8 keys brings; 16-bit ones bring more keys instead. */
template <enum dtype KV> constexpr int SCORE_STEPS = IS_F8<KV> ? 4 : 1;

/* s += q k for the NT groups of 8 keys from `key` of a slot on, over SCORE_STEPS steps of columns
 * from `step` on. */
template <enum dtype KV, int DP, int NT>
DEVICE void score_columns(float s[NT][4], const uint32_t q[SCORE_STEPS<KV>][4], const char *slot,
                          int key, int step) {
    constexpr int BYTES = ROW_BYTES<KV, DP>;
    const int lane = threadIdx.x % WARP;
    if constexpr (IS_F8<KV>) { /* matrices: 8 keys x 16 columns, four steps */
#pragma unroll
        for (int n = 0; n < NT; n++) {
            uint32_t bytes[4];
            ldmatrix_x4(bytes, slot + swizzled<BYTES>(key + 8 * n + lane % 8, step + lane / 8));
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t k[2] = {e4m3_f16((uint16_t)bytes[i]),
                                       e4m3_f16((uint16_t)(bytes[i] >> 16))};
                mma<KV>(s[n], q[i], k);
            }
        }
    } else {
#pragma unroll
        for (int n = 0; n < NT; n += 2) { /* matrices: keys 0-7, two chunks; keys 8-15 */
            uint32_t k[4];
            int row = key + 8 * n + lane / 16 * 8 + lane % 8, chunk = 2 * step + lane / 8 % 2;
            ldmatrix_x4(k, slot + swizzled<BYTES>(row, chunk));
            mma<KV>(s[n], q[0], k);
            mma<KV>(s[n + 1], q[0], k + 2);
        }
    }
}

/* -inf for the keys that a row does not see. key: position of the first one. */
template <int NT> DEVICE void mask_scores(float s[NT][4], const struct warp_view &v, int key) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            int at = key + 8 * n + 2 * t + c % 2;
            struct key_range seen = v.row[c / 2];
            s[n][c] = at >= seen.first && at < seen.end ? s[n][c] : -INFINITY;
        }
}

/* The largest score of the lane's rows. NaNs are passed over: they come out of p. */
template <int NT> DEVICE void row_maxima(float m[2], const float s[NT][4]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        m[r] = -INFINITY;
#pragma unroll
        for (int n = 0; n < NT; n++)
            m[r] = fmaxf(m[r], fmaxf(s[n][2 * r], s[n][2 * r + 1]));
        m[r] = fmaxf(m[r], __shfl_xor_sync(ALL_LANES, m[r], 1));
        m[r] = fmaxf(m[r], __shfl_xor_sync(ALL_LANES, m[r], 2));
    }
}

/* s = 2^(s * scale - m) */
template <int NT>
DEVICE void exponentials(float s[NT][4], const float scaled_max[2], float scale_log2) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float m = scaled_max[r] == -INFINITY ? 0 : scaled_max[r]; /* nothing seen yet: all are 0 */
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int c = 2 * r; c < 2 * r + 2; c++)
                s[n][c] = exp2_approx(fmaf(s[n][c], scale_log2, -m));
    }
}

/* ---- sums --------------------------------------------------------------------------------------
 */

/* The lane's part of 16 rows' state: maxima in log2 units, and chains of mma for the sums of p
 * (columns are alike) and for COLS columns of the output. */
template <int COLS> struct row_sums {
    float max[2];
    float sum[4];
    float out[COLS / 8][4];
};

template <int COLS> DEVICE void row_sums_clear(struct row_sums<COLS> *r) {
    r->max[0] = r->max[1] = -INFINITY;
#pragma unroll
    for (int c = 0; c < 4; c++) {
        r->sum[c] = 0;
#pragma unroll
        for (int n = 0; n < COLS / 8; n++)
            r->out[n][c] = 0;
    }
}

/* Takes the maxima of a tile in, and scales what was summed so far. */
template <int COLS>
DEVICE void row_sums_rescale(struct row_sums<COLS> *r, const float tile_max[2], float scale_log2) {
    float alpha[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float m = fmaxf(r->max[i], tile_max[i] * scale_log2);
        alpha[i] = m == r->max[i] ? 1 : exp2_approx(r->max[i] - m);
        r->max[i] = m;
    }
    if (!__any_sync(ALL_LANES, alpha[0] != 1 || alpha[1] != 1))
        return;
#pragma unroll
    for (int c = 0; c < 4; c++) {
        r->sum[c] *= alpha[c / 2];
#pragma unroll
        for (int n = 0; n < COLS / 8; n++)
            r->out[n][c] *= alpha[c / 2];
    }
}

/* Ones as an A operand where the row sees the key. key: position of the step's first one. */
template <enum dtype KV>
DEVICE void seen_operand(uint32_t a[4], const struct warp_view &v, int key) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        struct key_range seen = v.row[i % 2];
        int at = key + threadIdx.x % 4 * 2 + i / 2 * 8;
        uint32_t low = at >= seen.first && at < seen.end ? 0xffffu : 0;
        uint32_t high = at + 1 >= seen.first && at + 1 < seen.end ? 0xffff0000u : 0;
        a[i] = ONES<KV> & (low | high);
    }
}

/* out += p v for one step of keys. CAREFUL: some rows do not see some of the keys, and must not get
 * 0 * NaN of them, while those that see a NaN (or an infinity) get a NaN. Then v's values that are
 * not finite are left out of the product, and a second product counts those that a row sees. */
template <enum dtype KV, bool CAREFUL>
DEVICE void add_product(float out[4], const uint32_t p[4], const uint32_t v[2],
                        const struct warp_view &view, int key) {
    if (CAREFUL) {
        const uint32_t bad[2] = {not_finite<KV>(v[0]), not_finite<KV>(v[1])};
        if (__any_sync(ALL_LANES, (bad[0] | bad[1]) != 0)) {
            const uint32_t good[2] = {v[0] & ~bad[0], v[1] & ~bad[1]};
            const uint32_t ones[2] = {ONES<KV> & bad[0], ONES<KV> & bad[1]};
            uint32_t seen[4];
            float count[4] = {0, 0, 0, 0};
            seen_operand<KV>(seen, view, key);
            mma<KV>(out, p, good);
            mma<KV>(count, seen, ones);
#pragma unroll
            for (int c = 0; c < 4; c++)
                out[c] = count[c] > 0 ? NAN : out[c];
            return;
        }
    }
    mma<KV>(out, p, v);
}

/* Sums of p, and out += p v over a slot of values for COLS columns from column `col` on. key0:
 * position of the first key. */
template <enum dtype KV, int DP, int COLS, bool CAREFUL>
DEVICE void add_values(struct row_sums<COLS> *r, const uint32_t p[KEY_STEPS][4], const char *slot,
                       int col, const struct warp_view &view, int key0) {
    constexpr int BYTES = ROW_BYTES<KV, DP>;
    const int lane = threadIdx.x % WARP;
    const uint32_t ones[2] = {ONES<KV>, ONES<KV>};
#pragma unroll
    for (int step = 0; step < KEY_STEPS; step++)
        mma<KV>(r->sum, p[step], ones);
    if constexpr (IS_F8<KV>) { /* matrices: 4 times 8 keys x 16 columns; a lane gets 2 keys x 2
                                  columns */
#pragma unroll
        for (int half = 0; half < KEY_STEPS / 2; half++)
#pragma unroll
            for (int n = 0; n < COLS / 16; n++) {
                uint32_t bytes[4];
                ldmatrix_x4_trans(bytes, slot + swizzled<BYTES>(32 * half + lane, col / 16 + n));
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int step = 2 * half + i;
                    uint32_t low = __byte_perm(bytes[2 * i], 0, 0x3120); /* columns apart */
                    uint32_t high = __byte_perm(bytes[2 * i + 1], 0, 0x3120);
                    const uint32_t even[2] = {e4m3_f16((uint16_t)low), e4m3_f16((uint16_t)high)};
                    const uint32_t odd[2] = {e4m3_f16((uint16_t)(low >> 16)),
                                             e4m3_f16((uint16_t)(high >> 16))};
                    add_product<KV, CAREFUL>(r->out[2 * n], p[step], even, view, key0 + 16 * step);
                    add_product<KV, CAREFUL>(r->out[2 * n + 1], p[step], odd, view,
                                             key0 + 16 * step);
                }
            }
    } else {
#pragma unroll
        for (int step = 0; step < KEY_STEPS; step++)
#pragma unroll
            for (int n = 0; n < COLS / 8; n += 2) { /* matrices: keys 0-7, 8-15; of two chunks */
                uint32_t v[4];
                ldmatrix_x4_trans(
                    v, slot + swizzled<BYTES>(16 * step + lane % 16, col / 8 + n + lane / 16));
                add_product<KV, CAREFUL>(r->out[n], p[step], v, view, key0 + 16 * step);
                add_product<KV, CAREFUL>(r->out[n + 1], p[step], v + 2, view, key0 + 16 * step);
            }
    }
}

/* ---- results -----------------------------------------------------------------------------------
 */

/* What a sum of p divides by: 0 stands for a row that sees nothing. */
DEVICE float inverse_sum(float sum) {
    return sum == 0 ? 0 : 1 / sum;
}

/* Pair `pair` of the lane's columns among COLS: the column that it begins at, and its two values
 * in row g + 8 r. */
template <enum dtype KV, int COLS> DEVICE int pair_column(int pair) {
    int t = threadIdx.x % 4;
    return IS_F8<KV> ? pair / 2 * 16 + 4 * t + pair % 2 * 2 : pair * 8 + 2 * t;
}
template <enum dtype KV, int COLS>
DEVICE float2 pair_values(const struct row_sums<COLS> &r, int pair, int row) {
    if (IS_F8<KV>) { /* even columns in one group, odd ones in the next */
        int n = pair / 2 * 2, c = 2 * row + pair % 2;
        return make_float2(r.out[n][c], r.out[n + 1][c]);
    }
    return make_float2(r.out[pair][2 * row], r.out[pair][2 * row + 1]);
}

/* out = sums / sum for columns [col, col + COLS) of the warp's rows. */
template <enum dtype KV, int COLS>
DEVICE void store_rows(const struct attention_launch_args &a, const struct block_rows &b,
                       const struct row_sums<COLS> &r, int first_row, int col) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = first_row + threadIdx.x % WARP / 4 + 8 * i;
        if (row >= b.end_row)
            continue;
        bf16 *out = a.out + row_offset(a, b, row, (int64_t)a.num_heads * a.head_dim);
        float inverse = inverse_sum(r.sum[2 * i]);
#pragma unroll
        for (int pair = 0; pair < COLS / 8; pair++) {
            int at = col + pair_column<KV, COLS>(pair);
            float2 v = pair_values<KV, COLS>(r, pair, i);
            if (at < a.head_dim)
                *(uint32_t *)(out + at) = pack_bf16(v.x * inverse, v.y * inverse);
        }
    }
}
