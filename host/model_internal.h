/* model_internal: what model.c, model_load.c and model_forward.c share. Not for other modules. */
#pragma once

#include "host/model.h"
#include "host/ranks.h"

/* One layer of one rank. Norms and biases are float32, everything points into the rank's arena. */
struct layer {
    float *attn_norm, *ffn_norm;    /* [H] */
    float *qkv_bias;                /* [(Hq + 2 Hkv) D] of the rank, or NULL */
    float *q_norm, *k_norm;         /* see qkv_args, or NULL */
    struct weight qkv;              /* [(Hq + 2 Hkv) D, H] */
    struct weight o;                /* [H, Hq D] */
    struct weight router;           /* [E, H]; rows == 0 in a dense layer */
    struct expert_weights *experts; /* [num_experts], owned; one in a dense layer */
    int32_t num_experts;
    int32_t unit; /* reduction unit of the down projections */
    struct kv_layer kv;
};

/* Everything one rank owns. */
struct rank {
    struct model *model; /* borrowed */
    struct rank_layout layout;
    int32_t index;
    struct backend *backend; /* owned */
    struct layer *layers;    /* [L], owned */
    float *norm;             /* [H] */
    struct weight lm_head;   /* [V of the rank, H] */
    int32_t *kv_head;        /* [Hq] local KV head of each query head; owned */

    void *weights_memory; /* owned; one arena */
    size_t weights_bytes;
    void *kv_memory; /* owned; all layers' blocks */
    size_t kv_bytes;
    void *act_memory; /* owned; what follows points into it */
    size_t act_bytes;
    float *hidden, *x;           /* [T, H] */
    float *qkv;                  /* [T, (Hq + 2 Hkv) D] */
    float *attn;                 /* [T, Hq D] */
    double *partial;             /* [T, H] */
    double *sums;                /* [T, 2] */
    float *last_hidden, *last_x; /* [R, H] rows whose logits are wanted */
    struct routing routing;
};

struct model {
    const struct model_config *config; /* borrowed */
    const struct weights *weights;     /* borrowed */
    const struct ops *ops;
    struct model_options options;
    struct layout layout;
    struct ranks *ranks; /* owned */
    struct rank rank[MAX_RANKS];
    enum dtype kv_dtype;
    int32_t num_kv_blocks;
    float attention_scale; /* 1 / sqrt(D) */
    float *rope;           /* [max_model_len, D] cosines, sines; owned */
    size_t rope_bytes;
    float *logits; /* [R, V]; owned */
    size_t logits_bytes;
    double load_seconds;
    int64_t load_bytes;        /* read from the checkpoint, over all ranks */
    const struct batch *batch; /* of the step in progress */
};

/* Hands out 64-byte aligned pieces of an arena; with memory == NULL it only adds up the sizes. */
struct carver {
    char *memory;
    size_t used;
};
void *carve(struct carver *c, size_t bytes);

/* Sizes, allocates and fills one rank's weights. */
int model_load_weights(struct model *m, struct error *error);

/* The forward pass of one rank; ctx is the model. */
void model_forward(void *ctx, int32_t rank);
