/* mma_rows: products of 16 weight rows with groups of 8 tokens, in one order for all kernels.
 *
 * A warp multiplies tiles of 16 rows x 32 columns (kernels.h) by the same columns of NT groups of 8
 * tokens: weights are the A operand of mma.m16n8k16, tokens the B operand. FP8 weights are widened
 * to bf16, exactly, or multiplied with FP8 activations as they are, by mma.m16n8k32. The columns of
 * a row are cut into SEGMENTS ranges at places that depend on the number of columns alone; the order
 * of a sum is then
 *
 *   segment = one chain of mma over its tiles, first to last, from zero
 *             (SCALE_BLOCK: a chain for each block of columns, times its scale, added in that order;
 *             FP8 activations: a chain for every 128 columns, added in that order)
 *   sum     = segment 0 + segment 1 + ... + segment 7
 *
 * times the scale of the row, then that of the token, where there are such. Chains of FP8 products
 * are short because of what the tensor cores of Ada and Hopper add them with: 13 bits of mantissa.
 * A chain is 4 mma, so that its sum is off by a few 2^-13 of its largest term, and the 13 bits are
 * never those of the whole sum. (Hopper is said to have FP8 products for warpgroups alone, and to make
 * mma of conversions and f16 products: right, but hardly faster than bf16 activations.)
 *
 * The streaming kernels give a segment to each warp of a block and add through shared memory; the
 * tile kernel takes the segments one after the other. So both give the same bits for a token,
 * whatever other tokens there are.
 */
#pragma once

#include "cuda/device.cuh"
#include "cuda/kernels.h"

/* How weights are stored, and activations: XQ is FP8 ones. As a template argument. */
enum weight_kind {
    WEIGHT_BF16,
    WEIGHT_F8_ROW,
    WEIGHT_F8_BLOCK,
    WEIGHT_F8_ROW_XQ,
    WEIGHT_F8_BLOCK_XQ
};

constexpr int SEGMENTS = 8;
constexpr int GROUP_TOKENS = 8; /* the narrow side of the mma */
constexpr int BLOCK_TILES = SCALE_BLOCK_SIZE / FRAGMENT_COLS;

template <enum weight_kind KIND> constexpr bool IS_F8 = KIND != WEIGHT_BF16;
template <enum weight_kind KIND>
constexpr bool IS_F8_ROW = KIND == WEIGHT_F8_ROW || KIND == WEIGHT_F8_ROW_XQ;
template <enum weight_kind KIND>
constexpr bool IS_F8_BLOCK = KIND == WEIGHT_F8_BLOCK || KIND == WEIGHT_F8_BLOCK_XQ;
template <enum weight_kind KIND>
constexpr bool IS_XQ = KIND == WEIGHT_F8_ROW_XQ || KIND == WEIGHT_F8_BLOCK_XQ;
/* Is there a chain for every 128 columns, next to the sum? */
template <enum weight_kind KIND> constexpr bool HAS_CHAINS = IS_F8_BLOCK<KIND> || IS_XQ<KIND>;
/* Kernels with FP8 activations are empty where there is no mma for them; launchers refuse them. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
template <enum weight_kind KIND> constexpr bool RUNS_HERE = !IS_XQ<KIND>;
#else
template <enum weight_kind KIND> constexpr bool RUNS_HERE = true;
#endif

template <enum weight_kind KIND>
constexpr int TILE_BYTES = FRAGMENT_ROWS * FRAGMENT_COLS * (IS_F8<KIND> ? 1 : 2);
/* 16-byte loads of a lane for a tile. */
template <enum weight_kind KIND> constexpr int TILE_LOADS = TILE_BYTES<KIND> / (WARP * 16);
/* Products of a tile, and registers of a token's 8 columns of it. */
template <enum weight_kind KIND> constexpr int TILE_MMAS = IS_XQ<KIND> ? 1 : 2;
template <enum weight_kind KIND> constexpr int X_WORDS = IS_XQ<KIND> ? 2 : 4;

static inline enum weight_kind weight_kind_of(enum dtype dtype, enum weight_scale scale, bool xq) {
    if (dtype == DTYPE_BF16)
        return WEIGHT_BF16;
    if (xq)
        return scale == SCALE_BLOCK ? WEIGHT_F8_BLOCK_XQ : WEIGHT_F8_ROW_XQ;
    return scale == SCALE_BLOCK ? WEIGHT_F8_BLOCK : WEIGHT_F8_ROW;
}

/* First tile of a segment of a row of `tiles` tiles; segment SEGMENTS begins at the end. Segments
 * start at multiples of 128 columns where blocks of 128 columns share a scale: with blocks, unless
 * the first one is cut. */
template <enum weight_kind KIND>
static __host__ __device__ __forceinline__ int segment_first(int segment, int tiles) {
    constexpr int unit = IS_F8_BLOCK<KIND> ? BLOCK_TILES : 1;
    int first = (tiles + unit - 1) / unit * segment / SEGMENTS * unit;
    return first < tiles ? first : tiles;
}

/* ---- weights ----------------------------------------------------------------------------------- */

/* Where a lane finds its part of 16 rows. */
struct weight_rows {
    const char *low;  /* FRAGMENTS: the lane's 16 bytes of tile 0. ROWS: columns 8t of row g */
    const char *high; /* ROWS: of row g + 8 */
};

/* Rows [16 group, 16 group + 16) of a matrix. ROWS matrices have no padded rows: there the last row
 * stands for those that do not exist. */
template <enum weight_kind KIND, enum weight_layout LAYOUT>
DEVICE struct weight_rows weight_rows_at(const void *data, int group, int rows, int tiles) {
    const char *p = (const char *)data;
    int lane = threadIdx.x % WARP;
    struct weight_rows w;
    if constexpr (LAYOUT == LAYOUT_FRAGMENTS) {
        w.low = w.high = p + (int64_t)group * tiles * TILE_BYTES<KIND> + lane * 16;
    } else {
        constexpr int tile_row_bytes = TILE_BYTES<KIND> / FRAGMENT_ROWS;
        int low = min(group * FRAGMENT_ROWS + lane / 4, rows - 1);
        int high = min(group * FRAGMENT_ROWS + lane / 4 + 8, rows - 1);
        int at = lane % 4 * (tile_row_bytes / 4);
        w.low = p + (int64_t)low * tiles * tile_row_bytes + at;
        w.high = p + (int64_t)high * tiles * tile_row_bytes + at;
    }
    return w;
}

/* The lane's registers of a tile, in the order of FRAGMENTS from either layout. */
template <enum weight_kind KIND, enum weight_layout LAYOUT>
DEVICE void weight_tile_load(uint4 v[TILE_LOADS<KIND>], const struct weight_rows &w, int tile) {
    int64_t at = (int64_t)tile * (TILE_BYTES<KIND> / FRAGMENT_ROWS); /* in a row of ROWS */
    if constexpr (LAYOUT == LAYOUT_FRAGMENTS) {
#pragma unroll
        for (int h = 0; h < TILE_LOADS<KIND>; h++)
            v[h] = load_stream16(w.low + (int64_t)tile * TILE_BYTES<KIND> + h * (WARP * 16));
    } else if constexpr (IS_F8<KIND>) {
        uint2 low = load_stream8(w.low + at), high = load_stream8(w.high + at);
        v[0] = make_uint4(low.x, high.x, low.y, high.y);
    } else {
        uint4 low = load_stream16(w.low + at), high = load_stream16(w.high + at);
        v[0] = make_uint4(low.x, high.x, low.y, high.y);
        v[1] = make_uint4(low.z, high.z, low.w, high.w);
    }
}

/* The A operands of the two halves of a tile; with FP8 activations, of the whole. */
template <enum weight_kind KIND>
DEVICE void weight_tile_operands(uint32_t a[TILE_MMAS<KIND>][4], const uint4 v[TILE_LOADS<KIND>]) {
#pragma unroll
    for (int h = 0; h < TILE_MMAS<KIND>; h++) {
        if constexpr (IS_F8<KIND> && !IS_XQ<KIND>) {
            uint32_t low = h ? v[0].z : v[0].x, high = h ? v[0].w : v[0].y;
            a[h][0] = e4m3_bf16<0>(low);
            a[h][1] = e4m3_bf16<0>(high);
            a[h][2] = e4m3_bf16<1>(low);
            a[h][3] = e4m3_bf16<1>(high);
        } else {
            a[h][0] = v[h].x;
            a[h][1] = v[h].y;
            a[h][2] = v[h].z;
            a[h][3] = v[h].w;
        }
    }
}

/* A lane's columns 8t .. 8t + 7 of a token: the B operands of a tile. */
template <enum weight_kind KIND> struct token_piece {
    uint32_t w[X_WORDS<KIND>];
};

/* sum += A B of one tile. */
template <enum weight_kind KIND>
DEVICE void mma_tile(float sum[4], const uint32_t a[TILE_MMAS<KIND>][4],
                     const struct token_piece<KIND> &x) {
    if constexpr (IS_XQ<KIND>) {
        mma_e4m3(sum, a[0], x.w);
    } else {
        mma_bf16(sum, a[0], x.w);
        mma_bf16(sum, a[1], x.w + 2);
    }
}

/* ---- tokens ------------------------------------------------------------------------------------ */

/* The rows of x that a lane reads: token g of each group. The last of the NT groups may be unused:
 * one kernel serves experts of few and of more tokens, and skips the products of unused groups. */
template <int NT> struct token_rows {
    const void *x; /* bf16 or, padded to whole tiles, E4M3 */
    int32_t ld, cols;
    int32_t groups; /* used; at least 1 */
    uint32_t row[NT]; /* where it starts, in pieces of 8 elements; NARROW: its number */
};
template <bool NARROW, int NT> DEVICE void token_row_set(struct token_rows<NT> *x, int n, int row) {
    x->row[n] = NARROW ? row : (uint32_t)((int64_t)row * x->ld / 8) + threadIdx.x % 4;
}
template <int NT> DEVICE bool group_used(const struct token_rows<NT> &x, int n) {
    return n == 0 || n < x.groups;
}

/* Columns 8t .. 8t + 7 of a tile, zeros past the end of the row. NARROW: rows of bf16 that are not
 * aligned to 16 bytes, or do not end at a multiple of 8. */
template <enum weight_kind KIND, bool NARROW, int NT>
DEVICE struct token_piece<KIND> token_tile_load(const struct token_rows<NT> &x, int n, int tile) {
    int col = tile * FRAGMENT_COLS + threadIdx.x % 4 * 8;
    uint32_t at = x.row[n] + (uint32_t)tile * (FRAGMENT_COLS / 8);
    if constexpr (IS_XQ<KIND>) {
        uint2 v = __ldg((const uint2 *)x.x + at);
        return {{v.x, v.y}};
    } else if constexpr (!NARROW) {
        uint4 v = col < x.cols ? __ldg((const uint4 *)x.x + at) : make_uint4(0, 0, 0, 0);
        return {{v.x, v.y, v.z, v.w}};
    } else {
        const bf16 *p = (const bf16 *)x.x + (int64_t)x.row[n] * x.ld + col;
        uint32_t w[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t low = col + 2 * i < x.cols ? p[2 * i] : 0;
            uint32_t high = col + 2 * i + 1 < x.cols ? p[2 * i + 1] : 0;
            w[i] = low | high << 16;
        }
        return {{w[0], w[1], w[2], w[3]}};
    }
}

/* ---- one segment, by one warp ------------------------------------------------------------------ */

constexpr int STREAM_THREADS = SEGMENTS * WARP;
/* Blocks an SM, that is 128 registers a thread or 255: many sums, or two sets of them, want more. */
template <enum weight_kind KIND, int NT>
constexpr int STREAM_BLOCKS = NT == 8 || (NT == 4 && HAS_CHAINS<KIND>) ? 1 : 2;

/* Tiles that a warp keeps in flight: as many as fit into the registers that the sums leave. */
template <enum weight_kind KIND, int MATS, int NT> DEVICE constexpr int stream_depth() {
    int registers = STREAM_BLOCKS<KIND, NT> == 1 ? 96 : KIND == WEIGHT_F8_BLOCK ? 48 : 64;
    if (IS_XQ<KIND> && NT == 8) /* two sets of 64 sums */
        registers = 48;
    int depth = registers / (4 * MATS * TILE_LOADS<KIND> + X_WORDS<KIND> * NT);
    return depth < 2 ? 2 : depth > 8 ? 8 : depth;
}

/* What a warp has in flight of one tile: MATS groups of 16 rows, NT groups of 8 tokens. */
template <enum weight_kind KIND, int MATS, int NT> struct stream_stage {
    uint4 w[MATS][TILE_LOADS<KIND>];
    struct token_piece<KIND> x[NT];
};

/* What a warp multiplies: MATS times 16 rows, each with the scales of its blocks of columns, the
 * first of which begins `cut` tiles before tile 0 (SCALE_BLOCK only). */
template <int MATS> struct stream_rows {
    struct weight_rows w[MATS];
    const float *block_scale[MATS];
    int cut;
};

template <enum weight_kind KIND, enum weight_layout LAYOUT, bool NARROW, int MATS, int NT>
DEVICE void stage_load(struct stream_stage<KIND, MATS, NT> *s, const struct stream_rows<MATS> &rows,
                       const struct token_rows<NT> &x, int tile) {
#pragma unroll
    for (int m = 0; m < MATS; m++)
        weight_tile_load<KIND, LAYOUT>(s->w[m], rows.w[m], tile);
#pragma unroll
    for (int n = 0; n < NT; n++)
        if (group_used(x, n))
            s->x[n] = token_tile_load<KIND, NARROW, NT>(x, n, tile);
}

template <int NT> DEVICE void clear_sums(float sum[NT][4]) {
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            sum[n][c] = 0;
}
/* sum += scale * chain; chain = 0. Without SCALE_BLOCK scale is 1. */
template <int NT> DEVICE void promote(float sum[NT][4], float chain[NT][4], float scale) {
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            sum[n][c] = fmaf(scale, chain[n][c], sum[n][c]);
            chain[n][c] = 0;
        }
}

/* Sums of MATS x 16 rows over tiles [first, last) for the tokens of x. */
template <enum weight_kind KIND, enum weight_layout LAYOUT, bool NARROW, int MATS, int NT>
DEVICE void segment_sum(float sum[MATS][NT][4], const struct stream_rows<MATS> &rows,
                        const struct token_rows<NT> &x, int first, int last) {
    constexpr int DEPTH = stream_depth<KIND, MATS, NT>();
    constexpr bool BLOCK = IS_F8_BLOCK<KIND>, CHAINS = HAS_CHAINS<KIND>;
    struct stream_stage<KIND, MATS, NT> stage[DEPTH];
    float chain[MATS][NT][4], scale[MATS]; /* of the block of 128 columns at hand */

#pragma unroll
    for (int m = 0; m < MATS; m++) {
        clear_sums<NT>(sum[m]);
        clear_sums<NT>(chain[m]);
        scale[m] =
            BLOCK && first < last ? __ldg(rows.block_scale[m] + (first + rows.cut) / BLOCK_TILES) : 1;
    }
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
            int at = BLOCK ? tile + rows.cut : tile; /* from the start of the first block */
            bool last_of_block = at % BLOCK_TILES == BLOCK_TILES - 1 || tile + 1 == last;
#pragma unroll
            for (int m = 0; m < MATS; m++) {
                uint32_t a[TILE_MMAS<KIND>][4];
                weight_tile_operands<KIND>(a, stage[d].w[m]);
#pragma unroll
                for (int n = 0; n < NT; n++)
                    if (group_used(x, n))
                        mma_tile<KIND>(CHAINS ? chain[m][n] : sum[m][n], a, stage[d].x[n]);
                if (CHAINS && last_of_block) {
                    promote<NT>(sum[m], chain[m], scale[m]);
                    if (BLOCK && tile + 1 < last)
                        scale[m] = __ldg(rows.block_scale[m] + at / BLOCK_TILES + 1);
                }
            }
            if (tile + DEPTH < last)
                stage_load<KIND, LAYOUT, NARROW>(&stage[d], rows, x, tile + DEPTH);
        }
    }
}

/* ---- the segments of a block's warps, added ---------------------------------------------------- */

/* Groups of tokens that are added at a time; more would want more than 48 KB. */
template <int NT> constexpr int ADD_GROUPS = NT < 4 ? NT : 4;
/* Floats between tokens: 4 modulo 16, so that the tokens 2t of the lanes lie 8 banks apart and a
 * warp's stores fall into different banks. */
template <int MATS> constexpr int ADD_STRIDE = MATS * FRAGMENT_ROWS + 4;

/* Shared memory: [segment][token][matrix, row], for up to GROUPS groups of tokens. */
template <int MATS, int GROUPS> struct segment_parts {
    float sum[SEGMENTS][GROUPS * GROUP_TOKENS * ADD_STRIDE<MATS>];
};

/* Writes groups [first, first + ADD_GROUPS<NT>) of the calling warp's sums, as its segment. */
template <int MATS, int GROUPS, int NT>
DEVICE void segment_store(struct segment_parts<MATS, GROUPS> *parts, const float sum[MATS][NT][4],
                          int first) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    float *out = parts->sum[threadIdx.x / WARP];
#pragma unroll
    for (int n = 0; n < NT; n++) {
        if (n < first || n >= first + ADD_GROUPS<NT>)
            continue;
#pragma unroll
        for (int m = 0; m < MATS; m++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int token = (n - first) * GROUP_TOKENS + 2 * t + c % 2;
                out[token * ADD_STRIDE<MATS> + m * FRAGMENT_ROWS + g + c / 2 * 8] = sum[m][n][c];
            }
    }
}

/* Row r of matrix m (row = 16 m + r) for a token of the stored groups. */
template <int MATS, int GROUPS>
DEVICE float segments_add(const struct segment_parts<MATS, GROUPS> *parts, int token, int row) {
    float sum = parts->sum[0][token * ADD_STRIDE<MATS> + row];
#pragma unroll
    for (int s = 1; s < SEGMENTS; s++)
        sum += parts->sum[s][token * ADD_STRIDE<MATS> + row];
    return sum;
}

/* ---- what becomes of a sum --------------------------------------------------------------------- */

/* A sum times the scale of its row (SCALE_ROW), and that of its token (FP8 activations). */
template <enum weight_kind KIND>
DEVICE float scale_row(float sum, const float *scale, int row, float x_scale) {
    if (IS_F8_ROW<KIND>)
        sum = __fmul_rn(sum, __ldg(scale + row));
    return IS_XQ<KIND> ? __fmul_rn(sum, x_scale) : sum;
}
/* Scales of the blocks of columns of a group of 16 rows; `cut` as in stream_rows. */
template <enum weight_kind KIND>
DEVICE const float *block_scales(const float *scale, int group, int tiles, int cut) {
    int blocks = (tiles + cut + BLOCK_TILES - 1) / BLOCK_TILES;
    if (!IS_F8_BLOCK<KIND>)
        return nullptr;
    return scale + (int64_t)group * blocks;
}
/* The activation of an expert: silu(gate) * up. */
DEVICE bf16 gated(float gate, float up) {
    return float_bf16(__fmul_rn(silu(gate), up));
}
