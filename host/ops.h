/* ops: the operations of the forward pass, as a table that each backend fills.
 *
 *   ref   scalar C, float32: the specification that the others are tested against
 *   cpu   AVX2 / AVX-512, chosen at run time, with its own threads
 *   cuda  one GPU; only where the CUDA Toolkit was there when moeserve was built
 *
 * A backend object belongs to one rank and is driven by that rank's thread alone. Everything that
 * ops read and write lives in memory from ops->alloc, which the host cannot look into when it
 * belongs to a GPU. Activations (`x`, qkv, attention output) have elements of act_bytes, partials
 * of partial_bytes; only ops know their types. Weights are stored in the backend's own layout by
 * weight_put. Ops return when their result may be read by the next op of the same backend.
 *
 * Ranks. What a rank computes of a sum over heads, columns or experts is a "partial": its share.
 * Ops that take or make partials for the whole model's sums (add_norm, gather_rows, qk_sum_squares)
 * meet the other ranks in it: all ranks call the same ones in the same order with the same sizes.
 * When a step has failed (ranks.h) they return at once, with values that nobody will use.
 *
 * Shape letters: T tokens in the batch, S sequences, R rows of logits, H hidden, I intermediate of
 * an expert or dense FFN (the rank's columns of it), E experts, K experts per token, Hq/Hkv heads
 * (of the rank), D head_dim, V vocabulary, L layers. [T, K] is row-major; ld is a row stride in
 * elements.
 *
 * Determinism. Every output element is computed in an order that depends on the op's shapes alone,
 * never on T, on the other rows, on the number of threads or on the number of ranks (cuda: with
 * `batch_invariant`). Sums that are cut across ranks (attention output, FFN down projection) are
 * "partials": float32 sums over fixed units of columns (the reduction unit: one head, or layout.h's
 * ffn_unit columns), each rounded to float32 and then added in float64. A sum of float32 values in
 * float64 is exact unless their magnitudes differ by more than 2^29, so the order of the additions,
 * and hence the number of ranks, does not matter, and 1 rank and 8 ranks give the same bits.
 * Without `batch_invariant` partials of cuda are float32 sums in any order. (Blocks of 128 columns
 * with a scale of their own are units within a wider one.)
 *
 * FP8 activations (fp8_activations, not on the CPU backend). What is multiplied with an FP8 matrix,
 * x of a projection or of experts and the a of moe, is first rounded row by row: x becomes E4M3(x /
 * scale) * scale with scale = max |x| / 448 over the row, as far as the rank holds it (so the
 * scales of inputs that are cut, and the logits, depend a little on the number of ranks). Other
 * products, and the router, see x as it is.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/batch.h"
#include "host/layout.h"
#include "host/model_config.h"
#include "host/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a backend has to make room for. */
struct backend_config {
    int32_t max_tokens;          /* largest T of a step */
    int32_t max_seqs;            /* largest S */
    int32_t max_model_len;       /* largest context */
    int32_t hidden_size;         /* H */
    int32_t max_intermediate;    /* largest I of the rank, dense or expert */
    int32_t max_matmul_cols;     /* largest K of any matmul: for scratch copies of rows */
    int32_t num_experts;         /* E (1 when dense) */
    int32_t num_experts_per_tok; /* K (1 when dense) */
    int32_t num_heads;           /* Hq of the rank */
    int32_t num_kv_heads;        /* Hkv of the rank */
    int32_t head_dim;            /* D */
    const int32_t *kv_head;      /* [Hq] the rank's KV head that each of its query heads reads,
                                    ascending; copied by create */
    int32_t threads;             /* CPU threads, the caller's included; >= 1 */
    bool fp8_activations;        /* products with FP8 weights: see above */
    struct ranks *ranks;         /* those of the model, borrowed; NULL: this one is alone */
    int32_t rank;                /* this one among them */

    /* GPUs only. */
    int32_t device;              /* its number */
    int32_t max_logits;          /* largest R */
    int32_t vocab_size;          /* V */
    float memory_utilization;    /* share of the card's memory that may be used, all told */
    bool batch_invariant;        /* orders of sums independent of batch and ranks */
    bool enforce_eager;          /* no recorded steps (CUDA graphs) */
    bool embedding_on_host;      /* the embedding table stays in pinned host memory */
    const struct range *vocab;   /* [world] rows of lm_head of every rank; borrowed */
    int64_t comm_timeout_us;     /* of a wait for another rank */
    const char *allreduce;       /* what adds over the ranks: "auto", "staged", "nccl" */
    const char *allreduce_dtype; /* in what partials travel: "auto", "bf16", "f32", "fp8" */
};

struct sample_job;
struct sample_outcome;
struct backend; /* opaque; each backend has its own */

/* What a matrix is multiplied with: backends may arrange it accordingly. */
enum weight_use { WEIGHT_DENSE, WEIGHT_EXPERT };

/* What a backend must know to store a matrix [rows, cols] ([out, in]). */
struct weight_shape {
    enum weight_use use;
    enum dtype dtype;
    int32_t rows, cols;
    enum fp8_scaling scaling; /* of FP8: BLOCK, or else one scale a row */
    /* BLOCK: where column 0 lies in its block of 128 columns: not 0 where the columns were cut out
     * of a wider matrix. Rows may be those of any slices. */
    int32_t block_col0;
};

/* A matrix in the backend's layout. The weight is element * scale, with the scale of the row or of
 * the block of columns [128 b - block_col0, 128 (b + 1) - block_col0) of the row, b = 0, 1, .. */
struct weight {
    enum dtype dtype; /* as stored */
    enum weight_use use;
    int32_t rows, cols;
    void *data;         /* in memory given to weight_init; borrowed, as are the scales */
    float *row_scale;   /* [rows] multiplies output row r (FP8); NULL when all are 1 */
    float *block_scale; /* FP8 with scales of blocks, arranged as the backend likes; or NULL */
    int32_t block_col0;
};

/* Part of a checkpoint tensor: rows [row0, row0+rows) x columns [col0, col0+cols). */
struct tensor_slice {
    const struct tensor_source *source;
    int32_t row0, rows, col0, cols;
};

/* One expert's share on this rank; a dense FFN is one expert that every token visits. */
struct expert_weights {
    int32_t expert;         /* its number in the model */
    struct weight gate, up; /* [I, H] */
    struct weight down;     /* [H, I]; I starts and is cut at multiples of the reduction unit */
};

/* Where the router put the tokens. Pair p = t*K + k is token t's k-th choice. */
struct routing {
    int32_t *topk_ids;       /* [T, K] best first; ties: the lower expert */
    float *topk_weights;     /* [T, K] */
    int32_t *expert_counts;  /* [E] pairs of each expert */
    int32_t *expert_offsets; /* [E + 1] exclusive sum of the counts */
    int32_t *permutation;    /* [T*K] pairs grouped by expert, ascending within one */
    /* [2, E] running totals, which `router` adds to: each expert's pairs, then 1 for each expert
     * that has some. Memory from alloc; read by other threads meanwhile (expert_totals.h). NULL:
     * not wanted. */
    int64_t *expert_totals;
};

/* One layer's KV blocks: keys and values of KV_BLOCK_SIZE tokens x Hkv heads x D a block, laid out
 * as the backend likes. What lies past a sequence's length in its last block is undefined: ops
 * never read it. */
struct kv_layer {
    void *data;       /* [num_blocks] blocks of kv_block_bytes; borrowed */
    enum dtype dtype; /* F32, BF16, F16 or F8_E4M3 */
};

struct qkv_args {
    const struct batch *batch;
    void *qkv; /* [T, ld]: Hq query heads, then Hkv key heads, then Hkv value heads */
    int64_t ld;
    int32_t num_heads, num_kv_heads, head_dim; /* of the rank */
    float clip; /* clamp q, k, v to +-clip, after the norm and before rope; 0: off */
    enum qk_norm norm;
    const float *q_norm; /* HEAD: [D]; PROJECTION: [Hq*D] of the rank */
    const float *k_norm; /* HEAD: [D]; PROJECTION: [Hkv*D] of the rank */
    float eps;
    const void *sum_squares;  /* [T, 2] partials: of the whole q and k rows, PROJECTION only */
    int32_t q_width, k_width; /* columns of the whole q and k projections, PROJECTION only */
    const float *rope;        /* [max_model_len, D] cosines of D/2 frequencies, then sines */
    struct kv_layer kv;
};

struct attention_args {
    const struct batch *batch;
    const void *qkv; /* [T, ld], query heads in the first Hq*D columns, rotated */
    int64_t ld;
    void *out;                                 /* [T, Hq*D] */
    int32_t num_heads, num_kv_heads, head_dim; /* of the rank */
    float scale;                               /* of q.k, normally 1/sqrt(D) */
    int32_t window; /* keys at position <= own - window are not seen; 0: all are */
    struct kv_layer kv;
};

struct moe_args {
    int32_t num_tokens;            /* T */
    const void *x;                 /* [T, H] normalised hidden states */
    const struct routing *routing; /* NULL: dense, experts[0] takes every token with weight 1 */
    const struct expert_weights *experts; /* [num_experts] of the rank, ascending by number */
    int32_t num_experts;
    const void *table;           /* what experts_init made of them */
    int32_t num_experts_per_tok; /* K; ignored when dense */
    int32_t unit;                /* reduction unit of the down projection, in columns of I */
    bool accumulate;             /* add to `partial` instead of overwriting it */
    void *partial;               /* [T, H] */
};

struct ops {
    const char *name;     /* "ref", "cpu-avx2", "cpu-avx512", "cpu-avx512bf16", "cuda" */
    enum dtype kv_dtype;  /* what `--kv-cache-dtype auto` means */
    size_t act_bytes;     /* of an element of an activation: float32 4, bf16 2 */
    size_t partial_bytes; /* of a partial: float64 8; float32 4 (cuda without batch_invariant) */
    int32_t block_cut;    /* matrices with scales of blocks may be cut, and stacked, at multiples of
                             this many rows and columns */

    int (*create)(const struct backend_config *config, struct backend **out, struct error *error);
    void (*destroy)(struct backend *b); /* NULL is fine */

    /* Once, on each rank's thread at the same time, when all backends are there: they get to know
     * each other. NULL: there is nothing to do. */
    int (*connect)(struct backend *b, struct error *error);

    /* Large zeroed memory of the device, NULL when there is none left; free takes the same size. */
    void *(*alloc)(struct backend *b, size_t bytes);
    void (*free)(struct backend *b, void *p, size_t bytes);
    /* Copies host memory to memory from alloc. */
    void (*write)(struct backend *b, void *to, const void *from, size_t bytes);
    /* Any thread, while steps go on: copies memory from alloc to the host, as it is at the moment.
     * False when the device does not answer soon. NULL: memory is the host's. */
    bool (*peek)(struct backend *b, void *to, const void *from, size_t bytes);
    /* Bytes a second that the device's memory can be read at. NULL: it is the host's. */
    double (*memory_bandwidth)(struct backend *b);
    /* Bytes that alloc may still find, and those that a KV cache may take now, when nothing else
     * was said. */
    int64_t (*free_bytes)(struct backend *b);
    int64_t (*kv_budget)(struct backend *b);
    /* Bytes that a backend on this device may take, before there is one. NULL: not known. */
    int64_t (*device_budget)(int32_t device, float memory_utilization);

    /* Storing weights. weight_bytes says how much memory (64-byte aligned) weight_init wants for a
     * matrix; weight_put fills rows row0.. from a slice of the checkpoint (or its dummy), scales
     * included. Slices of one matrix share their dtype, and have scales of blocks all or none.
     * weight_put may be called from several threads for different matrices. */
    size_t (*weight_bytes)(const struct weight_shape *shape);
    void (*weight_init)(struct backend *b, struct weight *w, const struct weight_shape *shape,
                        void *memory);
    void (*weight_put)(struct backend *b, struct weight *w, int32_t row0,
                       const struct tensor_slice *slice);
    /* Once for each layer, when all weights are there: a table of its experts for moe_args, owned
     * by the backend. ERR_UNSUPPORTED when it cannot run them. NULL function: moe wants none. */
    int (*experts_init)(struct backend *b, const struct expert_weights *experts, int32_t n,
                        const void **table, struct error *error);
    /* The embedding table, for `embed`. It may stay where it is, row-major in host memory, maybe
     * unaligned: it is borrowed. `first` has it already, and may lend what it made of it (it is
     * destroyed last); NULL: b is the first. */
    int (*embed_init)(struct backend *b, const struct tensor_source *table, struct backend *first,
                      struct error *error);

    /* Bytes of one KV block of one layer, for Hkv heads; 0: not in this dtype. */
    size_t (*kv_block_bytes)(enum dtype dtype, int32_t num_kv_heads, int32_t head_dim);

    /* A step begins. Returns the batch that its ops are to be given: on a GPU its arrays lie in
     * device memory, and it may be padded with rows that come to nothing (slot -1). NULL: the step
     * was recorded before and runs already; not with `eager`. end_step follows in either case. A
     * rank that is not alone waits in it until all of the step's work is done: 0, or ERR_INTERNAL
     * when the step has failed. NULL functions: the batch is taken as it is. */
    const struct batch *(*begin_step)(struct backend *b, const struct batch *batch, bool eager);
    int (*end_step)(struct backend *b, struct error *error);
    /* A step has failed. abort: makes those that run end soon; called by any thread. recover: on
     * each rank's thread, when nobody runs a step any more: makes the backend ready for another
     * one, or ERR_INTERNAL. NULL functions: there is nothing to do. */
    void (*abort)(struct backend *b);
    int (*recover)(struct backend *b, struct error *error);

    /* hidden[t] = table[tokens[t]] */
    void (*embed)(struct backend *b, float *hidden, const int32_t *tokens, int32_t num_tokens);

    /* hidden += the sum of all ranks' partials (unless NULL; rounded to float32 first), then
     * x = hidden / sqrt(mean(hidden^2) + eps) * norm. All [T, H]; norm [H]. x != hidden. What
     * partial holds afterwards is undefined. */
    void (*add_norm)(struct backend *b, void *x, float *hidden, void *partial, const float *norm,
                     float eps, int32_t num_tokens, int32_t hidden_size);

    /* out[r] = hidden[rows[r]] + the sum of all ranks' partial[rows[r]]: the rows whose logits are
     * wanted, ascending. [R, H] */
    void (*gather_rows)(struct backend *b, float *out, const float *hidden, void *partial,
                        const int32_t *rows, int32_t num_rows, int32_t hidden_size);

    /* y[t, r] = sum_c x[t, c] w[r, c] * scale + bias[r], with the scale of the row or the block. y
     * has stride ldy, x stride ldx; bias [rows] or NULL. */
    void (*matmul)(struct backend *b, void *y, int64_t ldy, const void *x, int64_t ldx,
                   const struct weight *w, const float *bias, int32_t num_tokens);
    /* The same without bias, in float32: y [R, rows]. */
    void (*logits)(struct backend *b, float *y, int64_t ldy, const void *x, int64_t ldx,
                   const struct weight *w, int32_t num_rows);

    /* all [R, V] of rank 0 gets every rank's columns of the vocabulary, which are `mine`
     * [R, vocab.count]. NULL: ranks share their memory, and logits writes into `all`. */
    void (*gather_logits)(struct backend *b, float *all, int32_t vocab_size, const float *mine,
                          struct range vocab, int32_t num_rows);

    /* The same as a partial over units of `unit` columns (the last may be short), without bias:
     * partial[t, r] = sum over units u of (double)(float)(sum_{c in u} x w * scale). [T, rows] */
    void (*matmul_partial)(struct backend *b, void *partial, const void *x, int64_t ldx,
                           const struct weight *w, int32_t unit, int32_t num_tokens);

    /* sums[t] = {sum of q^2 over the rank's heads, sum of k^2 over KV heads [first, first+count)},
     * with one head a unit, summed over all ranks. [T, 2] partials (QK_NORM_PROJECTION only) */
    void (*qk_sum_squares)(struct backend *b, void *sums, const struct qkv_args *a,
                           int32_t first_kv_head, int32_t num_counted);

    /* Normalises, clips and rotates q (in place) and k, and writes k and v to their KV slots.
     * Rope is the half-split form: (x[i], x[i + D/2]) is rotated by the angle of frequency i. */
    void (*qk_rope_kv_write)(struct backend *b, const struct qkv_args *a);

    /* out = softmax(scale * q k^T, causal and windowed) v over the paged context. */
    void (*attention)(struct backend *b, const struct attention_args *a);

    /* Scores, top-k, weights (see router_config) and the permutation. gate is [E, H]. */
    void (*router)(struct backend *b, struct routing *out, const void *x, const struct weight *gate,
                   const struct router_config *config, int32_t num_tokens);

    /* For the rank's experts e and their pairs (t, k):
     *   a = silu(gate x_t) * (up x_t);   partial[t] += topk_weights[t, k] * (down a)
     * each unit's contribution (float)(weight * unit sum) added in float64. Experts of other ranks
     * are left to them. Each weight byte is read once. */
    void (*moe)(struct backend *b, const struct moe_args *a);

    /* Does the jobs on the step's logits [R, V]; the outcomes are there on return. 0, or
     * ERR_INTERNAL when the step has failed. NULL: the logits lie in host memory, for the host's
     * sampler. */
    int (*sample)(struct backend *b, const float *logits, const struct sample_job *jobs,
                  int32_t num_jobs, struct sample_outcome *outcomes, struct error *error);

    /* A line about the chosen kernels for the start-up table ("AVX2, 2 threads"). Static or owned
     * by the backend. */
    const char *(*describe)(struct backend *b);
    /* Lines about how it reaches the other ranks. NULL: nothing is to be said. */
    void (*describe_ranks)(struct backend *b, struct buffer *out);
};

extern const struct ops ref_ops;

/* The best of this machine's CPU kernels; NULL with a message when it has not even AVX2. `isa`
 * forces one ("avx2", "avx512", "avx512bf16"), NULL or "auto" lets the machine decide. */
const struct ops *cpu_ops(const char *isa, struct error *error);

#ifdef __cplusplus
}
#endif
