/* engine: continuous batching of requests over one model.
 *
 * Threads
 *   caller (net thread, a command, a test): engine_submit, engine_cancel, engine_drain, ...
 *   engine thread (created here): owns scheduler, KV blocks, sequences, sampler and the model; it
 *     runs steps while there is work and sleeps on a condition variable when there is none.
 *   rank threads (ranks.h): run the forward pass of a step when there is more than one rank.
 * Callers and engine thread share two queues under one lock each: submissions (requests, cancels;
 * bounded, a full queue refuses at once) and events (tokens, ends). `wake` is called from the
 * engine thread after events were posted to an empty event queue; it must only signal
 * (uv_async_send).
 *
 * The engine knows no connection and no JSON.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/error.h"
#include "host/sampling.h"
#include "host/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

struct engine; /* opaque */
struct chat_template;
struct metrics;
struct model_metrics;
struct grammar;
struct group;

enum {
    MAX_REQUEST_STOPS = 16, /* that a client may give */
    MAX_STOP_STRINGS = 20,  /* with those of the chat template */
    MAX_STOP_BYTES = 256,
    MAX_GPUS = 16,
    MAX_REPLICAS = 16,
    HANDLE_REPLICA_SHIFT = 56, /* a handle's top byte is the number of the replica */
};

/* Everything that can be said on the command line about model, memory and scheduling. Strings are
 * borrowed and must outlive the engine. engine_options_default fills in what the text says. */
struct engine_options {
    const char *model;             /* folder of the checkpoint */
    const char *served_model_name; /* default: the folder's last component */
    const char *device;            /* "cpu" (default), "ref"; "cuda" where it is built in */
    int32_t gpus[MAX_GPUS];        /* numbers of the GPUs of "cuda", one a rank */
    int32_t num_gpus;              /* 0: not "cuda" */
    const char *cpu_isa;           /* "auto", "avx2", "avx512", "avx512bf16" */
    const char *load_format;       /* "auto" or "dummy" */
    const char *kv_cache_dtype;    /* "auto", "f32", "bf16", "f16", "fp8" */
    const char *activation_dtype;  /* "bf16" (default; float32 on the CPU), "fp8" */
    const char *chat_template;     /* name, or NULL: as recognised */
    int32_t ranks;                 /* CPU ranks, default 1 */
    int32_t threads;               /* CPU threads over all ranks and replicas; 0: all cores */
    int32_t replicas;              /* engines that share this machine, default 1 (dispatch.h) */
    int32_t replica;               /* which of them this one is */
    int32_t expert_parallel_size;  /* 0: as the layout likes; else forced (design: ep, tp, grids) */
    bool enable_expert_parallel;   /* whole experts per rank */
    int32_t max_model_len;         /* 0: what the model and the KV cache hold, the lower of both */
    int32_t max_num_seqs;          /* sequences that run at once, default 64 */
    int32_t max_num_batched_tokens; /* tokens of a step, default 512, >= max_num_seqs */
    int32_t max_queued_requests;    /* waiting requests, default 512 */
    int32_t max_queued_tokens;      /* prompt tokens of them, default 1,048,576; 0: any number */
    float request_timeout_s;        /* from a request's arrival to its end; 0 (default): none */
    int64_t kv_cache_memory_bytes;  /* 0: max_num_seqs x max_model_len, within 40% of free memory */
    int32_t num_kv_blocks;          /* 0: from kv_cache_memory_bytes; else exactly this many */
    float gpu_memory_utilization;   /* share of each GPU's memory that may be used, default 0.9 */
    const char *embedding;          /* where GPUs read the embedding table: "device", "host" */
    const char *allreduce;          /* what adds over GPUs: "auto" (default), "staged", "nccl" */
    const char *allreduce_dtype;    /* in what sums travel: "auto" (bf16), "bf16", "f32", "fp8" */
    bool enforce_eager;             /* no CUDA graphs */
    bool batch_invariant;           /* GPUs: orders of sums independent of the batch */
    bool enable_prefix_caching;     /* default true */
    uint64_t seed;                  /* for requests without a seed */
    struct group *group;            /* processes that serve together, borrowed; NULL: this alone */
    float join_timeout_s;           /* for all processes to join, default 300 */
    float comm_timeout_s;           /* in which a lost rank is noticed and dealt with, default 10 */
    const char *fault;              /* fault.h, for tests; NULL: none */
    bool expert_metrics;            /* count the tokens of every layer's experts */
    bool bandwidth_metrics;         /* measure the memory's limit at start, and count its use */
    bool progress;                  /* draw a progress bar on stderr while loading */
};

void engine_options_default(struct engine_options *o);

enum finish_reason {
    FINISH_NONE,
    FINISH_STOP,   /* eos, a stop string, or the end of what the grammar allows */
    FINISH_LENGTH, /* max_tokens, or the end of the context */
    FINISH_CANCELLED,
};
/* "stop", "length", "cancelled". */
const char *finish_reason_name(enum finish_reason r);

struct request_params {
    int32_t *tokens;    /* prompt; owned by the struct, taken over by engine_submit */
    int32_t num_tokens; /* >= 1 */
    int32_t max_tokens; /* >= 1; 0: as many as fit in the context */
    int32_t min_tokens; /* no eos and no stop string before this many, unless the grammar ends */
    bool ignore_eos;
    struct sampling_params sampling;
    bool has_seed;                /* sampling.seed was given; else the engine draws one */
    int32_t prompt_logprobs;      /* -1: none; 0..20 */
    char *stop[MAX_STOP_STRINGS]; /* owned, NUL-terminated, non-empty */
    int32_t num_stop;
    int32_t kept_token;            /* special token that the text shows nevertheless; -1: none */
    struct grammar *grammar;       /* what the answer must be (grammar.h); a reference, or NULL */
    struct logit_bias *logit_bias; /* [num_logit_bias] a token once, owned; NULL: none */
    int32_t num_logit_bias;        /* at most MAX_LOGIT_BIASES */
    int64_t arrival_us;            /* clock_us() from which times are counted; 0: engine_submit */
};

/* temperature 1, top_p 1, everything else off, max_tokens 256. */
void request_params_default(struct request_params *p);
void request_params_deinit(struct request_params *p);

enum event_kind { EVENT_TOKEN, EVENT_DONE, EVENT_ERROR };

struct logprob {
    int32_t token;
    float logprob;
};

/* Logprobs of one position: the token's own and the num_top best, descending. */
struct token_logprobs {
    float logprob;
    int32_t num_top;
    const struct logprob *top;
};

/* One thing that happened to a request. Pointers are valid only inside the drain callback. */
struct engine_event {
    enum event_kind kind;
    void *user;       /* as given to engine_submit */
    uint64_t request; /* handle */
    /* EVENT_TOKEN: one for every generated token, in order; text may be empty while a character or
     * a possible stop string is incomplete. EVENT_DONE: text that was still held back. */
    const char *text;
    size_t text_len;
    int32_t token;
    bool has_logprobs;
    struct token_logprobs logprobs;
    enum finish_reason finish_reason; /* EVENT_DONE */
    /* EVENT_DONE, EVENT_ERROR: what the request took. queue_ms is 0 when it never ran, ttft_ms when
     * it has no token. */
    int32_t prompt_tokens, completion_tokens, cached_tokens;
    double queue_ms, ttft_ms, total_ms;
    /* EVENT_DONE */
    const int32_t *prompt_logprob_tokens;         /* [num_prompt_logprobs] or NULL */
    const struct token_logprobs *prompt_logprobs; /* [num_prompt_logprobs]; the first is empty */
    int32_t num_prompt_logprobs;
    /* EVENT_ERROR: the request has ended without a DONE */
    int error_code;
    const char *error_text;
};

typedef void (*engine_event_fn)(void *ctx, const struct engine_event *event);

struct engine_stats {
    int32_t running, waiting;
    int64_t waiting_tokens; /* of the prompts of those that wait */
    /* Cached blocks (held by the prefix cache only) are counted in used. */
    int32_t kv_blocks_used, kv_blocks_cached, kv_blocks_total;
    int64_t prompt_tokens_total, completion_tokens_total;
    int64_t prefix_hit_tokens_total, preemptions_total, requests_total, steps_total;
    int64_t last_step_age_us; /* since a step last finished; -1: never */
    /* False while the running step takes far longer than its tokens ever did (and over a second),
     * submissions are not taken up, or the last step failed. */
    bool healthy;
    bool failed; /* for good: engine_failure says why */
};

struct engine_model_info {
    const char *name;
    int32_t max_model_len, vocab_size, ranks;
};

/* Loads tokenizer and model and starts the engine thread. wake(wake_ctx) may be NULL for callers
 * that use engine_wait. With load_format "dummy" the folder may hold nothing but config.json: then
 * there is no tokenizer, only token ids can be asked for, and the texts of all events are empty. */
int engine_create(const struct engine_options *o, void (*wake)(void *), void *wake_ctx,
                  struct engine **out, struct error *error);
/* In the processes of a group but the first, instead: loads the model and runs what process 0 runs,
 * until it leaves. */
int engine_follow(const struct engine_options *o, struct error *error);
/* Stops the engine thread (running requests are dropped without events) and frees everything. */
void engine_destroy(struct engine *e);

/* Queues a request and takes over what p owns, also on failure. The handle is never reused. Errors:
 * ERR_CONTEXT_LENGTH, ERR_OVERLOADED, ERR_SHUTTING_DOWN, ERR_INVALID_REQUEST (token ids out of
 * range, ...), each with a message. No event follows a refused request. One that has not ended
 * request_timeout_s after it arrived, queued or running, ends within a step with EVENT_ERROR and
 * ERR_TIMEOUT. */
int engine_submit(struct engine *e, struct request_params *p, void *user, uint64_t *handle,
                  struct error *error);
/* Ends a request within one step, with EVENT_DONE and FINISH_CANCELLED. Unknown or ended handles
 * are ignored. */
void engine_cancel(struct engine *e, uint64_t handle);
/* From now on engine_submit answers ERR_SHUTTING_DOWN; what is queued or running goes on. */
void engine_stop_accepting(struct engine *e);

/* Calls fn for every event posted so far, in order. One draining thread at a time. */
void engine_drain(struct engine *e, engine_event_fn fn, void *ctx);
/* Blocks until there is an event or timeout_ms have passed (for commands without a loop). */
void engine_wait(struct engine *e, int32_t timeout_ms);

void engine_stats(struct engine *e, struct engine_stats *out);
/* As published after the last step, with all refusals so far. Any thread. */
void engine_metrics(struct engine *e, struct metrics *out);
/* What the model tells of itself; zeros when it tells nothing. Any thread; *out is zeroed or of an
 * earlier call. */
void engine_model_metrics(struct engine *e, struct model_metrics *out);
/* Counts a refusal that the engine has not made itself (of engine_check, by a dispatch). */
void engine_count_refusal(struct engine *e, int code);
/* Seconds after which a request that was refused as overloaded may be tried again, 1 to 60: see
 * throughput.h. Any thread. */
int32_t engine_retry_after_s(struct engine *e);
/* Has the engine ended for good, its ranks being lost or stuck? Then every request was answered
 * with an error, and the text says what happened. Any thread. */
bool engine_failure(struct engine *e, struct error *error);
const struct tokenizer *engine_tokenizer(const struct engine *e);
/* NULL when the model has none and none was chosen. */
const struct chat_template *engine_chat_template(const struct engine *e);
void engine_model_info(const struct engine *e, struct engine_model_info *out);
/* Would engine_submit take these parameters, were there room? Any thread; 0, or ERR_CONTEXT_LENGTH
 * or ERR_INVALID_REQUEST. */
int engine_check(const struct engine *e, const struct request_params *p, struct error *error);
/* The start-up table: model, layout per rank, memory, KV tokens, kernels. */
void engine_describe(struct engine *e, struct buffer *out);

#ifdef __cplusplus
}
#endif
