/* engine_model: the little that the engine has to know of a model, so that tests can bring their
 * own.
 */
#pragma once

#include "host/batch.h"
#include "host/buffer.h"
#include "host/engine.h"
#include "host/sample_job.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MAX_MODEL_EOS_IDS = 16 };

struct engine_model {
    void *ctx;
    /* One forward pass; as model_run. */
    int (*run)(void *ctx, const struct batch *batch, float **logits, struct error *error);
    /* What is wanted of its logits; NULL: they are in host memory, and the engine does it. */
    int (*sample)(void *ctx, const struct sample_job *jobs, int32_t num_jobs,
                  struct sample_outcome *outcomes, struct error *error);
    /* After a failure of either, as model_recover: 0, and the running requests are computed again
     * from their prompts; or the engine ends. NULL: a failure ends the requests of the batch. */
    int (*recover)(void *ctx, struct error *error);
    /* Four times a second while nothing runs: 0, or ERR_INTERNAL when a rank elsewhere is lost, and
     * the engine ends. NULL: nothing is to be looked after. */
    int (*check)(void *ctx, struct error *error);
    void (*describe)(void *ctx, struct buffer *out); /* lines of the start-up table; may be NULL */
    /* Any thread, at any time; *out is zeroed or of an earlier call. May be NULL. */
    void (*measure)(void *ctx, struct model_metrics *out);
    void (*destroy)(void *ctx); /* may be NULL */
    const char *name;           /* copied */
    int32_t ranks;
    int32_t vocab_size; /* V, the row stride of the logits */
    int32_t num_kv_blocks;
    int32_t max_model_len;              /* what the model can take */
    int32_t max_logits;                 /* R of a batch, > max_num_seqs */
    int32_t eos_ids[MAX_MODEL_EOS_IDS]; /* beside those of the tokenizer */
    int32_t num_eos_ids;
};

/* What can be said of the options before a model is loaded that takes at most model_max_len tokens:
 * 0 or ERR_CONFIG. */
int engine_check_options(const struct engine_options *o, int32_t model_max_len,
                         struct error *error);

/* engine_create for a model that is loaded already. On success the engine owns model->ctx and the
 * tokenizer (NULL: requests by token ids only, all texts are empty); on failure the caller keeps
 * them. chat_template is borrowed and may be NULL. */
int engine_create_with_model(const struct engine_options *o, const struct engine_model *model,
                             struct tokenizer *tokenizer, const struct chat_template *chat_template,
                             void (*wake)(void *), void *wake_ctx, struct engine **out,
                             struct error *error);

#ifdef __cplusplus
}
#endif
