/* cuda_backend: the backend object of the CUDA op table, shared by the files of the backend.
 *
 * Files: cuda_create.c (devices, create, memory), cuda_weights.c (weights, experts, embedding),
 * cuda_step.c (a step's arrays, CUDA graphs), cuda_ops.c (the ops), cuda_sample.c, cuda_ranks.c
 * (several GPUs), cuda_peek.c (what is read for metrics). Dense products are behind cuda_gemm.h,
 * sums over GPUs behind comm.h, the kernels behind kernels.h.
 *
 * One GPU, one stream. The thread of the rank drives it; only weight_put comes from other threads.
 * All memory is allocated by create (scratch), the model (weights, KV, activations) or embed_init;
 * a step allocates nothing and waits for nothing but the sampled tokens, or, among several GPUs,
 * for its own end.
 */
#pragma once

#include <pthread.h>

#include "cuda/comm.h"
#include "cuda/cuda_check.h"
#include "cuda/cuda_gemm.h"
#include "cuda/kernels.h"
#include "host/cuda.h"

enum {
    NUM_STAGES = 4,        /* pinned buffers that weights go through */
    STAGE_BYTES = 8 << 20, /* each */
    STAGE_SCALES = 65536,  /* scales that fit behind one: of as many rows, or their blocks */
    MAX_GRAPHS = 256,
    GRAPH_RESERVE_BYTES = 128 << 20, /* free device memory, without which none is recorded */
    MAX_SAMPLE_COUNTS = 1 << 20
};

/* A pinned buffer and what its last use waits for. */
struct stage {
    char *memory; /* [STAGE_BYTES + STAGE_SCALES floats], pinned */
    cudaEvent_t done;
    bool taken;
};

struct expert_table;

/* What reads the device's memory while steps go on (cuda_peek.c). */
struct peeker {
    pthread_mutex_t lock;
    cudaStream_t stream; /* since the first peek; owned, as is memory */
    void *memory;        /* pinned */
    bool pending;        /* a copy has been given up, and may still come */
};

/* The arrays of a step, once in pinned host memory and once on the device, at the same offsets. */
struct step_arrays {
    char *host, *device;
    size_t bytes;
    int32_t *tokens, *positions, *slot_mapping; /* [max_tokens] in host memory */
    int32_t *cu_seqlens, *seq_lens;             /* [max_seqs + 1], [max_seqs] */
    int32_t *logits_rows;                       /* [max_logits] */
    struct attention_tile *tiles;
    uint32_t *step;        /* [1] the step's number, for comm */
    int32_t *block_tables; /* [max_seqs, stride]; last, as a step often needs a part of it */
};

/* A recorded decode step. */
struct recorded {
    int32_t num_seqs, max_blocks; /* padded; row stride of block_tables, which bounds the context */
    bool warm;                    /* its kernels ran once without being recorded */
    bool refused;                 /* memory was too short to record it: it stays eager */
    cudaGraphExec_t graph;        /* NULL: not recorded yet */
};

struct backend {
    struct backend_config config; /* kv_head is NULL: was borrowed */
    struct gpu_info gpu;
    int32_t device;
    char description[256];
    cudaStream_t stream;
    struct gemm *gemm;
    struct comm *comm; /* NULL: this rank is alone */

    /* Weights. */
    cudaStream_t upload; /* of weights */
    struct stage stages[NUM_STAGES];
    pthread_mutex_t stages_lock;
    pthread_cond_t stage_free;
    void **tables; /* device memory of the expert tables; owned */
    int32_t num_tables;
    struct expert_table **expert_tables; /* owned */
    int32_t num_expert_tables;
    bf16 *embedding;     /* [V, H] device or mapped pinned memory */
    bool embedding_lent; /* it is the first rank's; else owned */

    /* Steps. */
    struct step_arrays arrays;
    cudaEvent_t arrays_read; /* the pinned copy may be written again */
    struct batch batch;      /* what the ops are given: device arrays */
    struct attention_plan plan;
    struct recorded recorded[MAX_GRAPHS];
    int32_t num_recorded;
    struct recorded *recording; /* this step's, when it is being recorded */
    bool said_unrecorded;       /* that steps of some sizes are not recorded */
    uint32_t num_steps;         /* since the last comm_reset */

    /* Scratch of the ops; device, one allocation. */
    void *scratch;
    int32_t *head_offsets; /* [Hkv + 1] */
    int32_t *slot;         /* [P] gpu_routing.slot */
    float *router_logits;  /* [T, E] */
    struct gpu_routing to_one;
    bf16 *act;      /* [P, I] */
    void *pair_out; /* [P, H] float or, with batch_invariant, double */
    /* FP8 activations; NULL without them. */
    uint8_t *xq; /* [max(T, R), f8_stride(H)] what the last norm made... */
    float *xq_scale;
    const void *xq_of; /* ... of this x, which only norms write */
    uint8_t *inputq;   /* [T, f8_stride(max_matmul_cols)] any other input of the product at hand */
    float *inputq_scale;
    uint8_t *actq; /* [P, f8_stride(I)] */
    float *actq_scale;
    void *moe_workspace, *sample_workspace, *gemm_workspace;
    float *attention_workspace;
    int64_t max_splits;
    int32_t max_group;

    /* Sampling: pinned, mapped. */
    struct sample_row *sample_rows;       /* [max_logits] */
    struct sample_result *sample_results; /* [max_logits] */
    struct sample_count *sample_counts;   /* [max_sample_counts] */
    int32_t *sample_banned;               /* [max_logits * MAX_BANNED] */
    struct sample_bias *sample_biases;    /* [max_logits * MAX_LOGIT_BIASES] */
    uint32_t *sample_masks;               /* [max_logits, sample_mask_words] */
    int32_t max_sample_counts;

    struct peeker peeker;
};

enum { MAX_BANNED = 32 };

/* What experts_init returns: a table in device memory and what the experts have in common. */
struct expert_table {
    struct gpu_expert *experts; /* device [num_local] */
    int32_t *slot;              /* device [E] */
    int32_t num_local;
    enum dtype dtype;
    enum weight_scale scale;
    int32_t down_col0; /* block_col0 of all down projections */
};

/* ---- cuda_weights.c -------------------------------------------------------------------------- */
size_t cuda_weight_bytes(const struct weight_shape *shape);
void cuda_weight_init(struct backend *b, struct weight *w, const struct weight_shape *shape,
                      void *memory);
void cuda_weight_put(struct backend *b, struct weight *w, int32_t row0,
                     const struct tensor_slice *slice);
int cuda_experts_init(struct backend *b, const struct expert_weights *experts, int32_t n,
                      const void **table, struct error *error);
int cuda_embed_init(struct backend *b, const struct tensor_source *table, struct backend *first,
                    struct error *error);
/* Dense BF16 matrices are kept as rows, for cuBLASLt; all others as fragments. */
enum weight_layout cuda_layout(const struct weight *w);
enum weight_scale cuda_scale(const struct weight *w);

/* ---- cuda_step.c ----------------------------------------------------------------------------- */
/* Lays the arrays out; memory NULL: only counts. Returns their bytes. */
size_t cuda_step_arrays(const struct backend_config *c, int32_t max_group, char *memory,
                        struct step_arrays *out);
const struct batch *cuda_begin_step(struct backend *b, const struct batch *batch, bool eager);
int cuda_end_step(struct backend *b, struct error *error);
void cuda_drop_recorded(struct backend *b);

/* ---- cuda_ranks.c ---------------------------------------------------------------------------- */
int cuda_connect(struct backend *b, struct error *error);
void cuda_describe_ranks(struct backend *b, struct buffer *out);
/* Until the stream is idle: 0, or ERR_INTERNAL when the step has failed. */
int cuda_wait_for_step(struct backend *b, struct error *error);
void cuda_abort(struct backend *b);
int cuda_recover(struct backend *b, struct error *error);

/* ---- cuda_peek.c ----------------------------------------------------------------------------- */
void cuda_peeker_init(struct peeker *p);
void cuda_peeker_deinit(struct peeker *p);
bool cuda_peek(struct backend *b, void *to, const void *from, size_t bytes);
double cuda_memory_bandwidth(struct backend *b);

/* ---- cuda_sample.c --------------------------------------------------------------------------- */
int cuda_sample(struct backend *b, const float *logits, const struct sample_job *jobs,
                int32_t num_jobs, struct sample_outcome *outcomes, struct error *error);

/* ---- cuda_ops.c ------------------------------------------------------------------------------ */
void cuda_embed(struct backend *b, float *hidden, const int32_t *tokens, int32_t num_tokens);
void cuda_add_norm(struct backend *b, void *x, float *hidden, void *partial, const float *norm,
                   float eps, int32_t num_tokens, int32_t hidden_size);
void cuda_gather_logits(struct backend *b, float *all, int32_t vocab_size, const float *mine,
                        struct range vocab, int32_t num_rows);
void cuda_gather_rows(struct backend *b, float *out, const float *hidden, void *partial,
                      const int32_t *rows, int32_t num_rows, int32_t hidden_size);
void cuda_matmul(struct backend *b, void *y, int64_t ldy, const void *x, int64_t ldx,
                 const struct weight *w, const float *bias, int32_t num_tokens);
void cuda_logits(struct backend *b, float *y, int64_t ldy, const void *x, int64_t ldx,
                 const struct weight *w, int32_t num_rows);
void cuda_matmul_partial(struct backend *b, void *partial, const void *x, int64_t ldx,
                         const struct weight *w, int32_t unit, int32_t num_tokens);
void cuda_qk_sum_squares(struct backend *b, void *sums, const struct qkv_args *a,
                         int32_t first_kv_head, int32_t num_counted);
void cuda_qk_rope_kv_write(struct backend *b, const struct qkv_args *a);
void cuda_attention(struct backend *b, const struct attention_args *a);
void cuda_router(struct backend *b, struct routing *out, const void *x, const struct weight *gate,
                 const struct router_config *config, int32_t num_tokens);
void cuda_moe(struct backend *b, const struct moe_args *a);
