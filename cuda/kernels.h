/* kernels: the launchers of all CUDA kernels, one op a file.
 *
 * Plain C, so that the backend and the tests call them alike. Every pointer is device memory unless
 * it says host; rows are aligned to 16 bytes. Launchers put work on `stream` and return at once;
 * they allocate nothing, never synchronise, and may be captured into a CUDA graph: what they launch
 * depends on the host values of their arguments alone. Requirements on shapes are CHECKed by the
 * launcher.
 *
 * Types: bf16 activations (uint16_t here), float32 residual stream, partials and logits. Shape
 * letters as in host/ops.h; P = T * K routed pairs.
 *
 * Padding. A decode step may be padded to a size that has a captured graph: padded token rows come
 * last and have slot_mapping -1, padded sequences have seq_len 0. Kernels compute harmless values
 * (finite ones) for them, write no KV, and route them to no expert.
 *
 * Weights. A matrix W [rows, cols] ([out, in]) is stored in one of two layouts, both without
 * change of the numbers:
 *
 *   ROWS        row-major; cols padded with zeros to a multiple of 32
 *   FRAGMENTS   tiles of 16 rows x 32 columns, [rows / 16][cols / 32], both padded with zeros; a
 *               tile is what the 32 lanes of a warp want for tensor-core products, 16 bytes a lane
 *               at a time, so that a warp's loads are contiguous. Lane l, g = l / 4, t = l % 4, has
 *               columns 8t .. 8t + 7 of the tile of rows g and g + 8:
 *                 BF16   [2][32 lanes][16 B]  half h: row g   cols 8t + 4h, + 1,
 *                                                     row g+8 the same two,
 *                                                     row g   cols 8t + 4h + 2, + 3,
 *                                                     row g+8 the same two
 *                 F8     [32 lanes][16 B]     row g   cols 8t .. 8t + 3,
 *                                             row g+8 the same four,
 *                                             row g   cols 8t + 4 .. 8t + 7,
 *                                             row g+8 the same four
 *
 * The 16 bytes are the A operand of an mma (m16n8k16 bf16; m16n8k32 e4m3) over a permutation of the
 * 32 columns: k index (2t, 2t+1, 2t+8, 2t+9) of half h stands for columns 8t + 4h + (0, 1, 2, 3). A
 * sum does not care, as long as the B operand is permuted alike: lane (g, t) takes columns
 * 8t .. 8t + 7 of token g, 16 contiguous bytes of a bf16 row. Both layouts, all kernels and both
 * dtypes use the same order, so that the same sums come out bit for bit.
 *
 * FP8 weights (E4M3) have scales: one a row (a scale per tensor is repeated), or those of blocks of
 * 128 x 128 elements, kept for every 16 rows of a block: so a matrix may be stacked from slices
 * that begin within blocks, at multiples of 16 rows. Slices of columns begin at multiples of 32:
 * block_col0 is where column 0 lies in its block.
 *
 * FP8 activations. A row x of bf16 as E4M3(x / scale) with scale = max |x| / 448 (1 for a row of
 * zeros). Such rows are f8_stride(cols) bytes apart, padded with zeros, so that every tile of 32
 * columns can be read whole, and pieces of 16 bytes are aligned, whatever the number of columns is.
 * They are multiplied with FP8 weights, in FRAGMENTS, on tensor cores that take E4M3: sm_89 and
 * newer.
 */
#pragma once

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/dtype.h"
#include "host/model_config.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef uint16_t bf16; /* the bits of a bfloat16 */

enum weight_layout { LAYOUT_ROWS, LAYOUT_FRAGMENTS };
enum weight_scale { SCALE_NONE, SCALE_ROW, SCALE_BLOCK };
enum { SCALE_BLOCK_SIZE = 128, FRAGMENT_ROWS = 16, FRAGMENT_COLS = 32 };
enum { MIN_F8_SM = 89 }; /* of FP8 activations */

/* Bytes between rows of FP8 activations. */
static inline __host__ __device__ int64_t f8_stride(int32_t cols) {
    return ((int64_t)cols + FRAGMENT_COLS - 1) / FRAGMENT_COLS * FRAGMENT_COLS;
}

/* Sizes that launches depend on, of the current device. */
struct gpu_info {
    int32_t sm; /* 10 * major + minor */
    int32_t num_sms;
    int32_t shared_per_block; /* bytes, with the opt-in */
    int64_t l2_bytes;
};

/* ---- arch.cu --------------------------------------------------------------------------------- */

/* *arch: what the kernels that run on the current device were compiled for (89: compute_89), at
 * most the device's own architecture. Fails where the program has none for the device. */
cudaError_t kernels_arch(int32_t *arch);

/* ---- layout.cu: weights into their device layout --------------------------------------------- */

/* Bytes of a matrix in a layout, padding included. */
size_t weight_layout_bytes(enum weight_layout layout, enum dtype dtype, int32_t rows, int32_t cols);
/* Rows [row0, row0 + rows) of a matrix with `cols` columns, row-major in `source` (device or pinned
 * memory, row stride `ld` elements), into `data`, in the layout. dtype is BF16 or F8_E4M3. Padding
 * is written as zeros with the rows that it adjoins; row0 is a multiple of 16 for FRAGMENTS, unless
 * it continues where another call ended within a tile. */
void weight_layout_launch(void *data, enum weight_layout layout, enum dtype dtype,
                          int32_t total_rows, int32_t cols, int32_t row0, int32_t rows,
                          const void *source, int64_t ld, cudaStream_t stream);

/* ---- embed.cu -------------------------------------------------------------------------------- */

/* hidden[t] = table[tokens[t]]. table [V, H] bf16 in device memory or mapped pinned host memory.
 * Tokens of padded rows are in the vocabulary too. */
void embed_launch(float *hidden, const bf16 *table, const int32_t *tokens, int32_t num_tokens,
                  int32_t hidden_size, cudaStream_t stream);

/* ---- norm.cu --------------------------------------------------------------------------------- */

struct norm_args {
    bf16 *x;             /* [T, H] out: hidden * rsqrt(mean(hidden^2) + eps) * weight */
    uint8_t *xq;         /* [T, f8_stride(H)] out, or NULL: x as FP8 activations */
    float *xq_scale;     /* [T] */
    float *hidden;       /* [T, H] in; += partial, in place, when there is one */
    const void *partial; /* [T, H] float, or NULL */
    bool partial_double; /* it is double: rounded, then added */
    const float *weight; /* [H] */
    const int32_t *rows; /* [T], or NULL. Row i of x is made from row rows[i] of hidden + partial,
                            and hidden is not written */
    float eps;
    int32_t num_tokens, hidden_size;
};
/* H <= 16384, or <= 24576 and a multiple of 4. */
void norm_launch(const struct norm_args *a, cudaStream_t stream);
/* out[i] = hidden[rows[i]] + partial[rows[i]] (partial may be NULL). [R, H] (gather.cu) */
void gather_rows_launch(float *out, const float *hidden, const void *partial, bool partial_double,
                        const int32_t *rows, int32_t num_rows, int32_t hidden_size,
                        cudaStream_t stream);

/* ---- quantise.cu ----------------------------------------------------------------------------- */

/* Rows of x [T, ldx] as FP8 activations xq [T, f8_stride(cols)], xq_scale [T]. */
void quantise_launch(uint8_t *xq, float *xq_scale, const bf16 *x, int64_t ldx, int32_t num_tokens,
                     int32_t cols, cudaStream_t stream);

/* ---- rope.cu: QK norm, rotation, KV write ---------------------------------------------------- */

/* A layer's KV blocks of 16 tokens: [num_blocks][2][Hkv][16][D], keys, then values. BF16, F16 or
 * F8_E4M3 (saturating, without a scale). */
struct gpu_kv {
    void *data;
    enum dtype dtype;
};
/* 0: not in this dtype. */
size_t gpu_kv_block_bytes(enum dtype dtype, int32_t num_kv_heads, int32_t head_dim);

struct rope_args {
    bf16 *qkv;  /* [T, ld] Hq query, Hkv key, Hkv value heads; queries are changed in place */
    int64_t ld; /* even */
    int32_t num_tokens, num_heads, num_kv_heads, head_dim; /* D even, <= 256 */
    const int32_t *positions, *slot_mapping;               /* [T]; slot -1: no KV write */
    const float *rope; /* [max_model_len, D] cosines of D/2 frequencies, sines */
    float clip;        /* clamp to +-clip after the norm and before rope; 0: off */
    enum qk_norm norm;
    const float *q_norm, *k_norm; /* as host/ops.h, qkv_args */
    float eps;
    const void *sum_squares; /* [T, 2] float, PROJECTION only */
    bool sums_double;        /* they are double */
    int32_t q_width, k_width;
    struct gpu_kv kv;
};
void rope_kv_write_launch(const struct rope_args *a, cudaStream_t stream);
/* sums[t] = {sum of q^2, sum of k^2 over KV heads [first, first + count)}: PROJECTION norms. With
 * sums_double they are double, and sums of a float for each head. */
void qk_sum_squares_launch(void *sums, const struct rope_args *a, int32_t first_kv_head,
                           int32_t num_counted, cudaStream_t stream);

/* ---- attention.cu ---------------------------------------------------------------------------- */

enum {
    DECODE_TILE = 16,      /* (token, head) rows of a tile of the split kernel */
    PREFILL_TILE = 64,     /* of the other one */
    PARTITION_TOKENS = 512 /* keys of one split, at multiples of this position */
};

/* Rows of one sequence and KV head that share a pass over its keys: row r of a sequence is its new
 * token r / G, query head r % G of the G heads of the KV head. */
struct attention_tile {
    int32_t seq, first_row;
    int32_t first_split; /* decode: where its splits lie in the workspace, in splits */
    int32_t num_splits;  /* decode: of its context; 1: not split, uses no workspace */
};

/* The tiles of a step, in host memory: made once, used by every layer. */
struct attention_plan {
    int32_t num_decode_tiles, num_prefill_tiles;
    int32_t max_splits;   /* of a decode tile: launch size */
    int32_t total_splits; /* workspace that they need, in splits */
};
/* Upper bounds for a plan's tiles and splits: for allocating. kv_tokens is a sum of context
 * lengths: a prefix that sequences share counts for each of them. */
int32_t attention_max_tiles(int32_t max_tokens, int32_t max_seqs, int32_t max_group);
int64_t attention_max_splits(int32_t max_seqs, int64_t kv_tokens);
size_t attention_workspace_bytes(int64_t max_splits, int32_t num_kv_heads, int32_t head_dim);
/* Fills tiles (host, decode tiles first) from the step's host arrays. max_group is the largest
 * number of query heads that share a KV head. Sequences whose rows fit into one decode tile are
 * split over their context, in order, as long as the workspace has room (max_splits), unless
 * `whole` says that none shall be (batch invariance: then the order of a row's sums is the same in
 * both kernels). A row's bits depend on whether its sequence is split, on nothing else of the
 * batch. */
void attention_make_plan(struct attention_plan *plan, struct attention_tile *tiles,
                         const int32_t *cu_seqlens, const int32_t *seq_lens, int32_t num_seqs,
                         int32_t max_group, int64_t max_splits, bool whole);

struct attention_launch_args {
    const bf16 *qkv; /* [T, ld], rotated queries in the first Hq * D columns */
    int64_t ld;      /* even */
    bf16 *out;       /* [T, Hq * D]; zeros for padded rows */
    int32_t num_heads, num_kv_heads, head_dim; /* D even, <= 256; 64 and 128 are fast */
    const int32_t *head_offsets; /* [Hkv + 1] query heads of KV head h: [offsets[h], [h + 1]) */
    float scale;                 /* > 0 */
    int32_t window;              /* as host/ops.h */
    struct gpu_kv kv;
    const int32_t *cu_seqlens, *seq_lens, *block_tables; /* device */
    int32_t max_blocks;                                  /* row stride of block_tables */
    struct attention_plan plan;
    const struct attention_tile *tiles; /* device: the plan's, decode first */
    float *workspace;
};
void attention_launch(const struct attention_launch_args *a, cudaStream_t stream);

/* ---- router.cu ------------------------------------------------------------------------------- */

struct gpu_routing {
    int32_t *topk_ids;       /* [T, K] best first, ties: the lower expert; -1 in padded rows */
    float *topk_weights;     /* [T, K]; 0 in padded rows */
    int32_t *expert_counts;  /* [E] */
    int32_t *expert_offsets; /* [E + 1] */
    int32_t *permutation;    /* [P] pairs t * K + k grouped by expert, ascending within one; what
                                lies behind expert_offsets[E] is not written */
    int32_t *slot;           /* [P] where in the permutation a pair lies; -1 in padded rows */
};

struct router_args {
    struct gpu_routing out;
    const bf16 *x;                      /* [T, H] */
    const bf16 *gate;                   /* [E, H] ROWS */
    const struct router_config *config; /* host; flags as in host/model_config.h */
    const int32_t *slot_mapping;        /* [T] -1: padding; NULL: no padding */
    float *logits;                      /* [T, E] scratch */
    int32_t num_tokens, hidden_size;
    int64_t *expert_totals; /* [2, E] as routing's of host/ops.h, or NULL */
};
/* K <= 32, E <= 1024. A token whose logits hold a NaN, or have a std of 0 where they are divided by
 * it, goes to experts 0 .. K - 1 with NaN weights. */
void router_launch(const struct router_args *a, cudaStream_t stream);
/* Everything to expert 0 with weight 1: a dense FFN. K = E = 1. */
void route_to_one_launch(const struct gpu_routing *out, const int32_t *slot_mapping,
                         int32_t num_tokens, cudaStream_t stream);

/* ---- moe_stream.cu, moe_tile.cu, moe.cu ------------------------------------------------------ */

/* One expert held here; a table of them lies in device memory. Weights in FRAGMENTS. */
struct gpu_expert {
    const void *gate, *up;              /* [I, H] */
    const void *down;                   /* [H, I] */
    const float *gate_scale, *up_scale; /* SCALE_ROW [I]; SCALE_BLOCK [I/16, H/128] rounded up */
    const float *down_scale;            /* [H]; [H/16, (down_col0 + I)/128] rounded up */
};

struct moe_launch_args {
    const bf16 *x;         /* [T, H]; not read when there is xq */
    const uint8_t *xq;     /* [T, f8_stride(H)] FP8 activations, or NULL; F8 weights only */
    const float *xq_scale; /* [T] */
    const struct gpu_routing *routing; /* host struct of device arrays */
    const struct gpu_expert *experts;  /* [num_local] */
    const int32_t *expert_slot;        /* [E] index into experts, -1: not held here */
    int32_t num_tokens, hidden_size, intermediate, num_experts, num_experts_per_tok, num_local;
    enum dtype dtype;        /* of the weights: BF16 or F8_E4M3 */
    enum weight_scale scale; /* NONE for BF16 */
    int32_t down_col0;       /* SCALE_BLOCK: block_col0 of `down` */
    bool invariant;          /* reduction orders independent of T */
    int32_t unit;      /* 0: pair_out and partial are float. Or the reduction unit of `down` in
                          columns, a multiple of 32: they are double, and sums over units as
                          host/ops.h words them, the same bits for any number of ranks */
    bool accumulate;   /* add to partial */
    bf16 *act;         /* [P, I] scratch, in permuted order: silu(gate x) * up x */
    uint8_t *actq;     /* [P, f8_stride(I)] scratch, with xq only: act as FP8 activations */
    float *actq_scale; /* [P] */
    void *pair_out;    /* [P, H] scratch, in permuted order: down act; with `unit` its units
                          times topk_weights */
    void *partial;     /* [T, H]: sum over k, in order of k, of topk_weights * pair_out; with
                          `unit` of pair_out */
    void *workspace;   /* [moe_workspace_bytes] */
    struct gpu_info gpu;
};
size_t moe_workspace_bytes(int32_t max_tokens, int32_t num_experts, int32_t num_experts_per_tok);
void moe_launch(const struct moe_launch_args *a, cudaStream_t stream);

/* ---- dense.cu -------------------------------------------------------------------------------- */

struct dense_args {
    void *y; /* [T, ldy] bf16 or, with y_float, float */
    bool y_float;
    int64_t ldy;
    const bf16 *x; /* [T, ldx]; not read when there is xq */
    int64_t ldx;
    const uint8_t *xq;     /* [T, f8_stride(cols)] FP8 activations, or NULL; F8 in FRAGMENTS only */
    const float *xq_scale; /* [T] */
    const void *weight;    /* [rows, cols] */
    enum weight_layout layout;
    enum dtype dtype;
    const float
        *weight_scale; /* SCALE_ROW [rows]; SCALE_BLOCK [rows/16, (block_col0 + cols)/128] */
    enum weight_scale scale;
    int32_t block_col0; /* a multiple of 32 below 128; 0 but for SCALE_BLOCK */
    int32_t rows, cols;
    const float *bias; /* [rows] or NULL */
    int32_t num_tokens;
    bool invariant;
    struct gpu_info gpu;
};
/* y = x W^T + bias, by streaming the weights: for few tokens, and right for any number. */
void dense_launch(const struct dense_args *a, cudaStream_t stream);

/* ---- dense_tile.cu --------------------------------------------------------------------------- */

/* The same bits for many tokens, by tiles. Takes whole pieces of 16 bytes: cols and ldx multiples
 * of 8 and x aligned to 16 bytes, unless there is xq; and FP8 weights as FRAGMENTS only. */
bool dense_tile_takes(const struct dense_args *a);
/* Tokens of a tile of 128 rows, as dense_tile_launch chooses it: 64 or 128. */
int32_t dense_tile_tokens(const struct dense_args *a);
void dense_tile_launch(const struct dense_args *a, cudaStream_t stream);

/* ---- units.cu, unit_stream.cu, unit_tile.cu, unit_odd.cu ------------------------------------- */

/* y [T, a->ldy] = x W^T as a partial over units of `unit` columns (host/ops.h): the same bits
 * however the columns are cut at units, once the parts are added. a->y, y_float and bias are not
 * used. By streaming: for few tokens, and right for any number. A unit that is no multiple of 32
 * columns takes a slow path, and no FP8 activations. */
void dense_units_launch(double *y, const struct dense_args *a, int32_t unit, cudaStream_t stream);
/* The same bits for many tokens; takes what dense_tile_takes. */
void dense_units_tile_launch(double *y, const struct dense_args *a, int32_t unit,
                             cudaStream_t stream);

/* ---- sample.cu ------------------------------------------------------------------------------- */

/* What one row of logits is wanted for; host/sampler.h says what each step does. */
struct sample_row {
    int32_t row;     /* of logits */
    int32_t token;   /* -1: draw one; else give this token's logprob only (a prompt's) */
    int32_t num_top; /* -1: no logprobs; else the token's, and those of the 0 .. 20 most likely */
    float temperature, top_p, min_p;
    int32_t top_k; /* 0: all */
    float repetition_penalty, presence_penalty, frequency_penalty;
    int32_t counts_first, counts_num; /* its slice of `counts`, a token once; 0: none */
    int32_t banned_first, banned_num; /* its slice of `banned` */
    int32_t biases_first, biases_num; /* its slice of `biases`, a token once */
    int32_t mask;                     /* 1 + number of its mask among `masks`; 0: none */
    uint64_t seed;
    int64_t index; /* of the token among the generated ones */
};
struct sample_count {
    int32_t token, generated;
};
struct sample_bias {
    int32_t token;
    float bias;
};
enum { SAMPLE_MAX_TOP = 20 };
struct sample_result {
    int32_t token;   /* -1: the row holds a NaN, or no finite largest value */
    float logprob;   /* of token, log-softmax of the logits as they came; 0 when none are wanted */
    int32_t num_top; /* as wanted, at most V; 0 when none are */
    int32_t top_tokens[SAMPLE_MAX_TOP]; /* descending, ties to the lower id */
    float top_logprobs[SAMPLE_MAX_TOP];
};
struct sample_launch_args {
    const float *logits; /* [R, V] */
    int32_t vocab_size;
    const struct sample_row *rows; /* [num_rows] device or mapped pinned memory */
    int32_t num_rows;
    const struct sample_count *counts;
    const int32_t *banned;
    const struct sample_bias *biases;
    const uint32_t *masks;         /* [masks, sample_mask_words] bits: may be drawn */
    struct sample_result *results; /* [num_rows] device or mapped pinned memory */
    void *workspace;               /* [sample_workspace_bytes] */
};
/* Words of a mask: 32 tokens each, the lowest bit the first. */
static inline size_t sample_mask_words(int32_t vocab_size) {
    return ((size_t)vocab_size + 31) / 32;
}
size_t sample_workspace_bytes(int32_t max_rows, int32_t vocab_size);
/* The tokens of host/sampler.h, bit for bit. A job that only checks a row is a greedy one without
 * logprobs. V <= 2^22. */
void sample_launch(const struct sample_launch_args *a, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
