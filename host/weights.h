/* weights: which tensor of a checkpoint is what, found and checked in one walk over a table.
 *
 * Nothing is copied or allocated for the model before every tensor's presence, shape and dtype has
 * been checked; all problems are reported together. The result holds views into the mapped files;
 * model.c slices them for its rank and hands them to the backend. With --load-format dummy there is
 * no checkpoint: the same table with data == NULL, which the backend fills from a seeded generator.
 */
#pragma once

#include "host/checkpoint.h"
#include "host/model_config.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One stored matrix [rows, cols] ([out, in]) or vector [rows] (cols = 1). The weight is
 * element * scale, wherever the element comes from: `data` or, for a dummy, weights_dummy_value.
 * Which scale: tensor_source_scale. */
struct tensor_source {
    const void *data; /* row-major, perhaps not aligned to the element; NULL: absent if rows == 0,
                         else a dummy to be generated */
    enum dtype dtype; /* F8_E4M3 only for projections, experts and dense FFNs */
    int32_t rows, cols;
    float scale; /* of FP8 weights (per tensor, or a dummy's), finite and > 0; 1 otherwise */
    enum fp8_scaling scaling; /* of FP8 weights */
    const void *scales;       /* ROW [rows], BLOCK [rows / 128, cols / 128] rounded up: row-major,
                                 perhaps unaligned, finite and >= 0; NULL: all are `scale` */
    enum dtype scales_dtype;
    uint64_t seed;    /* for a dummy: a hash of the tensor's name; 0: every element is 1 */
    const char *name; /* owned by the table or the file, for messages */
};

struct expert_source {
    struct tensor_source gate, up, down; /* [I, H], [I, H], [H, I] */
};

struct layer_source {
    struct tensor_source attn_norm, ffn_norm;    /* [H] */
    struct tensor_source q, k, v, o;             /* [Hq*D, H], [Hkv*D, H], same, [H, Hq*D] */
    struct tensor_source q_bias, k_bias, v_bias; /* rows == 0 when the family has none */
    struct tensor_source q_norm, k_norm;         /* likewise */
    struct tensor_source router;                 /* [E, H]; rows == 0 in a dense layer */
    struct expert_source *experts;               /* [E], or [1] with the dense FFN; owned */
    int32_t num_experts;                         /* E, or 1 in a dense layer */
};

struct weights {
    struct tensor_source embed, norm, lm_head; /* [V, H], [H], [V, H] (== embed when tied) */
    struct layer_source *layers;               /* [L], owned */
    int32_t num_layers;
    int64_t total_bytes;           /* of all tensors as stored */
    struct checkpoint *checkpoint; /* owned; NULL for a dummy */
    char *name_pool;               /* owned; generated names of a dummy */
};

/* Opens the checkpoint of model_dir and checks every tensor against the config: presence, shape,
 * dtype and, for FP8, the scales. All problems are added to `error`, each with file and tensor;
 * tensors that the model does not use are named in one log line. Codes as checkpoint_open. */
int weights_open(const char *model_dir, const struct model_config *config, struct weights *out,
                 struct error *error);

/* A table of dummies: BF16, or FP8 experts, dense FFNs and projections when config->fp8, with
 * scales that are stored as the config says but are all equal. */
void weights_dummy(const struct model_config *config, struct weights *out);

void weights_close(struct weights *w); /* also after a failed open */

/* Element i (row-major) of a tensor as stored, before the scale; a dummy's too. The data may be
 * unaligned. */
float tensor_source_at(const struct tensor_source *t, int64_t i);

/* The scale of element (row, col): 1 unless the tensor is FP8. */
float tensor_source_scale(const struct tensor_source *t, int32_t row, int32_t col);

/* Element i of a dummy, as stored (FP8: before the scale). Norms are 1; a matrix is uniform with a
 * std of 0.6 to 1.2 / sqrt(cols) after the scale, so that activations stay finite; biases are
 * uniform within +-1/8. A pure function of the source: every rank makes the same weights. Each
 * value is exact in BF16 and F32, and in FP8 if the source is FP8. */
float weights_dummy_value(const struct tensor_source *t, int64_t i);

/* Elements [row0, row0 + rows) x [col0, col0 + cols) of a dummy, row-major without padding, as
 * stored, rounded to dst (any but NONE). `out` is aligned to the element. Equal to dtype_store of
 * weights_dummy_value, at over 200 M elements/s; best called for many elements at once. */
void weights_dummy_fill(const struct tensor_source *t, int64_t row0, int32_t rows, int64_t col0,
                        int32_t cols, enum dtype dst, void *out);

#ifdef __cplusplus
}
#endif
