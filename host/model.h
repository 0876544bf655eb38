/* model: the weights of all ranks, their KV pools, and one forward pass for every family.
 *
 * model_forward is written once, in C, against the op table; ranks differ only in the layout they
 * hold. With one rank it runs on the caller's thread, with more on the rank threads (ranks.h).
 * Everything is allocated by model_create, nothing by model_run.
 */
#pragma once

#include "host/batch.h"
#include "host/buffer.h"
#include "host/fault.h"
#include "host/layout.h"
#include "host/model_config.h"
#include "host/model_metrics.h"
#include "host/ops.h"
#include "host/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

struct model; /* opaque */

/* As layout.expert_parallel_size: as many as there are ranks. */
enum { EXPERT_PARALLEL_ALL = -1 };

struct model_options {
    const struct ops *ops;
    int32_t num_ranks;   /* of this process, >= 1 */
    struct group *group; /* the processes that serve it together, borrowed; NULL: this one alone */
    int32_t threads;     /* CPU threads over all ranks, >= 1 */
    struct layout_options layout; /* what it knows of memory is filled in for several GPUs */
    int32_t max_tokens;           /* largest T of a batch */
    int32_t max_seqs;             /* largest S */
    int32_t max_logits;           /* largest R */
    int32_t max_model_len;
    enum dtype kv_dtype;     /* DTYPE_NONE: what the backend prefers */
    int32_t num_kv_blocks;   /* 0: from kv_bytes */
    int64_t kv_bytes;        /* over all ranks; 0: what max_seqs x max_model_len needs, capped */
    int32_t kv_sharers;      /* ranks, of all models, that find the same free memory; 0: those that
                                share a GPU */
    bool fp8_activations;    /* ops.h, backend_config */
    int64_t comm_timeout_us; /* in which a lost rank is noticed and dealt with; 0: 10 s */
    struct fault fault;      /* for tests */
    bool count_experts;      /* tokens of every layer's experts */
    bool measure_bandwidth;  /* of memory: its limit, now, and what steps take of it */
    bool progress;

    /* GPUs: ops.h, backend_config. */
    const int32_t *gpus; /* [num_ranks] or NULL; borrowed until model_create returns */
    float gpu_memory_utilization;
    const char *allreduce, *allreduce_dtype; /* NULL: "auto" */
    bool batch_invariant, enforce_eager, embedding_on_host;
};

/* Copies the weights into the backend's layout (in parallel over ranks). config and weights are
 * borrowed; the embedding table inside weights is read by every step. */
int model_create(const struct model_config *config, const struct weights *weights,
                 const struct model_options *options, struct model **out, struct error *error);
/* Leaves everything as it is when ranks are lost that may touch it. */
void model_destroy(struct model *m);
/* After a failure that model_recover could not mend. */
bool model_lost(const struct model *m);

/* Runs one batch. On return logits [R, V] (float32, row stride V, owned by the model, valid until
 * the next run) hold the rows that the batch asked for. 0, or ERR_INTERNAL when a rank failed: what
 * the batch's KV slots hold is then undefined, and model_recover says whether the model can go on.
 */
int model_run(struct model *m, const struct batch *batch, float **logits, struct error *error);
/* The processes of a group but 0, instead: runs what process 0 runs, until it leaves. 0, or
 * ERR_INTERNAL when a rank or process has failed. */
int model_follow(struct model *m, struct error *error);
/* Do the logits of the last run lie where only the backend can read them? Then model_sample does
 * the jobs on them (else they are for the host's sampler). 0 or ERR_INTERNAL. */
bool model_samples(const struct model *m);
int model_sample(struct model *m, const struct sample_job *jobs, int32_t num_jobs,
                 struct sample_outcome *outcomes, struct error *error);
/* After a failure: makes the ranks ready for another run, with the KV of earlier ones in place. 0,
 * or ERR_INTERNAL: the model cannot be used any more, nor be freed (model_destroy leaves all that
 * a stuck rank may touch). */
int model_recover(struct model *m, struct error *error);

/* What it has done so far. Any thread; *out is zeroed or of an earlier call. */
void model_measure(struct model *m, struct model_metrics *out);

int32_t model_num_kv_blocks(const struct model *m);
int32_t model_num_ranks(const struct model *m); /* of this process */
const struct layout *model_layout(const struct model *m);

/* Lines of the start-up table: layout per rank, bytes of weights and KV, kernels, load speed. */
void model_describe(const struct model *m, struct buffer *out);

#ifdef __cplusplus
}
#endif
