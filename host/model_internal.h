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
    const void *expert_table; /* what the backend made of them */
    int32_t unit;             /* reduction unit of the down projections */
    struct kv_layer kv;
    int64_t *expert_totals; /* ops.h, routing; of rank 0 alone, or NULL */
};

/* Everything one rank owns. */
struct rank {
    struct model *model; /* borrowed */
    struct rank_layout layout;
    int32_t index;           /* in this process */
    int32_t world_index;     /* in the layout */
    struct backend *backend; /* owned */
    struct layer *layers;    /* [L], owned */
    float *norm;             /* [H] */
    struct weight lm_head;   /* [V of the rank, H] */

    void *weights_memory; /* owned; one arena */
    size_t weights_bytes;
    void *kv_memory; /* owned; all layers' blocks */
    size_t kv_bytes;
    void *act_memory; /* owned; what follows points into it */
    size_t act_bytes;
    float *hidden;      /* [T, H] the residual stream */
    void *x;            /* [T, H] */
    void *qkv;          /* [T, (Hq + 2 Hkv) D] */
    void *attn;         /* [T, Hq D] */
    void *partial;      /* [T, H] */
    void *sums;         /* [T, 2] partials */
    float *last_hidden; /* [R, H] rows whose logits are wanted */
    void *last_x;       /* [R, H] */
    float *logits;      /* [R, V of the rank], row stride logits_ld: its columns of model.logits, or
                           memory of its own, of which they are gathered */
    int64_t logits_ld;
    float *own_logits; /* NULL, or that memory; owned */
    size_t own_logits_bytes;
    float *rope; /* [max_model_len, D] cosines, sines */
    struct routing routing;
};

struct model {
    const struct model_config *config; /* borrowed */
    const struct weights *weights;     /* borrowed */
    const struct ops *ops;
    struct model_options options;
    struct layout layout;
    struct range vocab[MAX_RANKS]; /* of layout.rank */
    struct ranks *ranks;           /* owned */
    struct model_group *group;     /* owned; NULL: this process is alone */
    int32_t num_ranks;             /* of this process */
    struct rank rank[MAX_RANKS];
    enum dtype kv_dtype;
    int32_t num_kv_blocks;
    float attention_scale; /* 1 / sqrt(D) */
    float *logits; /* [R, V] in memory of rank 0's backend; owned. In a process but the first [R, V
                      of its ranks], or nothing */
    size_t logits_bytes;
    double load_seconds;
    int64_t load_bytes;              /* read from the checkpoint, over all ranks */
    const struct batch *batch;       /* of the step in progress */
    int64_t step;                    /* its number, from 1 */
    struct model_counters *counters; /* owned */
    bool lost;                       /* after a failure: it cannot be used any more */
};

/* Hands out aligned pieces of an arena; with memory == NULL it only adds up the sizes. */
enum { CARVE_ALIGN = 256 }; /* bytes: what GPUs like, and a multiple of a cache line */
struct carver {
    char *memory;
    size_t used;
};
void *carve(struct carver *c, size_t bytes);

/* ERR_NO_MEMORY: `bytes` of `what` that the rank's backend did not have, how many are missing, and
 * what the user may change. */
int model_no_memory(const struct model *m, const struct rank *r, const char *what, size_t bytes,
                    const char *remedy, struct error *error);

/* Sizes, allocates and fills one rank's weights. */
int model_load_weights(struct model *m, struct error *error);

/* model_layout.c: fills in m->layout. */
int model_make_layout(struct model *m, struct error *error);
/* Ranks of this process that share rank i's GPU, or the CPU with it; itself included. */
int32_t model_ranks_of_device(const struct model *m, int32_t i);

/* model_group.c: nothing happens in a process alone. */
int model_group_create(struct model *m, struct error *error);
void model_group_destroy(struct model *m);
/* Rows of lm_head that the ranks of this process hold. */
struct range model_group_vocab(const struct model *m);
/* *value becomes the least of all processes. */
int model_group_min(struct model *m, int32_t *value, struct error *error);
int model_group_send(struct model *m, const struct batch *batch, struct error *error);
/* On each rank's thread: host memory's columns of all processes meet in process 0's logits. */
int model_group_gather_logits(struct model *m, struct rank *r, int32_t num_rows,
                              struct error *error);

/* model_measure.c. Counters of what steps do, when the options want some and this is process 0;
 * once everything else is allocated. */
int model_counters_create(struct model *m, struct error *error);
void model_counters_destroy(struct model *m);
/* A step has run. */
void model_count_step(struct model *m, const struct batch *batch);

/* The forward pass of one rank, a rank_fn; ctx is the model. */
int model_forward(void *ctx, int32_t rank);
