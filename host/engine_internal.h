/* engine_internal: the engine's state, for engine*.c only.
 *
 * Three parts by owner: set at creation and read by any thread; the engine thread's; and what both
 * sides touch, under `lock`. (The events have a lock of their own: engine_events.h.) The two locks
 * are never held together.
 */
#pragma once

#include <pthread.h>

#include "host/engine_events.h"
#include "host/engine_model.h"
#include "host/engine_request.h"
#include "host/kv_cache.h"
#include "host/metrics.h"
#include "host/scheduler.h"
#include "host/throughput.h"

enum { NUM_HANDLE_BUCKETS = 1024, MAX_EOS = 2 * MAX_MODEL_EOS_IDS };

enum { NUM_STEP_SIZES = 24 };

struct engine {
    /* Set at creation. */
    struct engine_options options; /* as given, max_model_len resolved */
    struct engine_model model;     /* owned */
    struct tokenizer *tokenizer;   /* owned; may be NULL */
    const struct chat_template *chat_template;
    char *name; /* owned */
    int32_t eos_ids[MAX_EOS];
    int32_t num_eos_ids;
    struct request_limits limits;
    void (*wake)(void *);
    void *wake_ctx;
    pthread_t thread;

    /* The engine thread's. */
    struct kv_cache *kv;
    struct scheduler *scheduler;
    struct sampler *sampler;
    struct grammar_pool *grammars;   /* owned; NULL without a tokenizer */
    struct sample_job *jobs;         /* [max_logits] of a step, owned */
    struct sample_outcome *outcomes; /* [max_logits], owned */
    struct step_result {
        int rc;                                  /* 0, or ERR_INTERNAL: a row was not usable */
        const struct sample *sample;             /* the new token, when one was drawn */
    } * results;                                 /* [max_num_seqs], owned */
    struct request *handles[NUM_HANDLE_BUCKETS]; /* chains of requests with the scheduler */
    struct buffer staged;                        /* events of this step */
    struct buffer text, released;                /* scratch: new text, and what of it is let out */
    int64_t slowest_us[NUM_STEP_SIZES]; /* by log2 of a step's tokens: slowest of late; 0: none */
    int64_t steps_total, requests_total, completion_tokens_total;
    int32_t failed_steps;     /* in a row */
    int64_t step_end_us;      /* when the latest step ended */
    int64_t next_deadline_us; /* no request is late before this; INT64_MAX: none ever */
    struct metrics metrics;
    struct throughput throughput;

    /* Under lock. */
    pthread_mutex_t lock;
    pthread_cond_t work_cond; /* there is something to take, or it is time to stop */
    struct request *submitted, **submitted_end; /* FIFO through request.next */
    int32_t num_submitted;
    int64_t submitted_tokens;   /* of their prompts */
    int64_t submitted_since_us; /* when the first of them came; 0 when there are none */
    uint64_t *cancels;          /* handles, owned */
    size_t num_cancels, max_cancels;
    int32_t num_waiting; /* in the scheduler's queue, as far as the callers know */
    int64_t waiting_tokens;
    uint64_t last_handle;
    bool refusing, stopping;
    bool failed;               /* set once; the engine thread reads it, and failure, without lock */
    char failure[1024];        /* why */
    int64_t step_deadline_us;  /* the running step is late after this; 0 between steps */
    int64_t last_step_us;      /* when a step last finished; 0: never */
    struct engine_stats stats; /* as published after the last step; so too the next two: */
    struct metrics shown_metrics;
    struct throughput shown_throughput;
    struct metrics refusals;  /* failures counted by callers */
    struct bandwidth_window { /* between two of engine_model_metrics, a second apart at least */
        int64_t start_us, read_bytes;
        double step_s, utilization;
    } bandwidth;

    struct event_queue events;
};

/* What the engine thread takes over in one go. */
struct intake {
    struct request *requests;
    uint64_t *handles; /* to cancel; owned */
    size_t num_handles;
};

/* engine.c: is the engine thread getting on with what it has to do? Under the lock. */
bool engine_is_live(const struct engine *e, int64_t now_us);
/* engine_step.c: takes in new requests and cancels; runs one step, if there is anything to compute.
 * Both stage events. */
void engine_take_in(struct engine *e, struct intake *in);
void engine_step(struct engine *e);
/* Ends a request with an error; nothing that it computed is shared any more. */
void engine_fail_request(struct engine *e, struct request *r, int code, const char *text);
/* Ends those that are late (options.request_timeout_s). */
void engine_end_late_requests(struct engine *e);
/* engine_metrics.c: what happened is counted. A step has computed num_tokens; a request has got a
 * token, in the step that has just ended; it ends now. */
void engine_count_step(struct engine *e, int64_t start_us, int32_t num_tokens);
void engine_count_token(struct engine *e, struct request *r);
void engine_count_end(struct engine *e, const struct request *r, enum finish_reason reason,
                      int64_t now_us);
/* Under the lock: for callers to see. */
void engine_show_metrics(struct engine *e);
/* engine_grammar.c: gives a request with a grammar its matcher and its first mask. */
void engine_constrain(struct engine *e, struct request *r);
/* What is left to a request once a token was drawn. */
enum grammar_outlook {
    GRAMMAR_GOES_ON, /* or there is none */
    GRAMMAR_AT_END,  /* nothing but the end may follow */
    GRAMMAR_STUCK,   /* no token of the vocabulary may follow, and it may not end */
    GRAMMAR_COSTLY,  /* to find out would take longer than the other requests shall wait */
};
/* Moves the matcher behind a token (-1: none yet) and makes the next mask. */
enum grammar_outlook engine_follow_grammar(struct engine *e, struct request *r, int32_t token);
/* Ends a request that is STUCK or COSTLY. */
void engine_fail_grammar(struct engine *e, struct request *r, enum grammar_outlook outlook);
/* engine_failure.c: a step has failed. */
void engine_step_failed(struct engine *e, const struct step *step, const struct error *why);
/* Between steps: has the model failed meanwhile? Ends what was submitted before callers knew. */
void engine_look_after_model(struct engine *e);
/* Publishes the statistics, then posts what was staged. */
void engine_publish(struct engine *e);
