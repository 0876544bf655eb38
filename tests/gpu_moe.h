/* gpu_moe: random expert layers and batches for the tests of moe_launch, and one launch of them.
 */
#pragma once

#include "tests/gpu_weights.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- a layer's experts ----------------------------------------------------------------------- */

struct moe_layer {
    const struct gpu_weight_type *type;
    int32_t H, I, E, K, num_local;
    int32_t down_col0;                   /* block_col0 of `down` */
    int32_t unit;                        /* moe_launch_args.unit; 0 unless the test sets it */
    int32_t *slot;                       /* [E] */
    struct gpu_matrix *gate, *up, *down; /* [num_local] */
    struct gpu_expert *experts;          /* device */
    int32_t *device_slot;
};

/* Experts e with e % miss != miss - 1 are held here; miss 0: all are. */
struct moe_layer moe_layer_random(struct rng *r, const struct gpu_weight_type *type, int32_t H,
                                  int32_t I, int32_t E, int32_t K, int32_t miss);
/* What a rank holds that owns columns [col0, col0 + cols) of experts [expert0, expert0 + experts):
 * the same elements. col0 is a multiple of 32. */
struct moe_layer moe_layer_part(const struct moe_layer *whole, int32_t expert0, int32_t experts,
                                int32_t col0, int32_t cols);
void moe_layer_free(struct moe_layer *l);

/* ---- a batch and where its tokens go --------------------------------------------------------- */

enum moe_pattern {
    MOE_RANDOM, /* K different experts each */
    MOE_ONE,    /* the first choice is always expert 0: most of the tokens, with K = 1 all */
    MOE_SKEWED, /* low experts far more often; others stay empty */
    MOE_EVERY   /* experts 0 .. K - 1 */
};

struct moe_tokens {
    int32_t T, padded;           /* the last `padded` of T rows are padding */
    float *x;                    /* [T, H]; FP8 activations: what they stand for */
    struct gpu_f8_rows f8;       /* these, or NULLs */
    int32_t *topk_ids;           /* [T, K] */
    float *topk_weights;         /* [T, K] */
    int32_t *counts, *offsets;   /* [E], [E + 1] */
    int32_t *permutation, *slot; /* [P] */
};

struct moe_tokens moe_tokens_random(struct rng *r, const struct moe_layer *l, int32_t T,
                                    int32_t padded, enum moe_pattern pattern);
/* Token i of a batch as a batch of its own. */
struct moe_tokens moe_tokens_one(const struct moe_tokens *all, const struct moe_layer *l,
                                 int32_t i);
void moe_tokens_free(struct moe_tokens *t);

/* ---- one launch ------------------------------------------------------------------------------ */

struct moe_result {
    float *act;                /* [P, I]; owned, as are all */
    float *pair_out, *partial; /* [P, H], [T, H]; NULL with a unit */
    double *units, *sums;      /* the same with a unit, else NULL */
    struct gpu_f8_rows actq;   /* [P]: FP8 activations, or NULLs */
};

/* before: what partial holds and is added to, of its type; or NULL. */
struct moe_result moe_run(const struct moe_layer *l, const struct moe_tokens *t,
                          const void *before);
void moe_result_free(struct moe_result *r);

#ifdef __cplusplus
}
#endif
