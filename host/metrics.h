/* metrics: counters and histograms of one engine.
 *
 * Plain data. The engine thread counts into a copy of its own, at the steps of the engine and not
 * when clients are written to, and publishes it after each step (engine_metrics); replicas are
 * added up (dispatch_metrics). Counting allocates nothing and takes some nanoseconds.
 *
 * Names, and the boundaries of the buckets, are vLLM's where it has the same histogram, so that
 * dashboards move over by their prefix. docs/METRICS.md says what exactly is counted.
 */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* X(id, name, boundaries, help) */
#define HISTOGRAM_TABLE(X)                                                                         \
    X(HIST_TTFT, "time_to_first_token_seconds", FIRST_TOKEN_BOUNDS,                                \
      "Time from a request's arrival to the step that gave its first token.")                      \
    X(HIST_ITL, "inter_token_latency_seconds", TOKEN_BOUNDS,                                       \
      "Time between the steps that gave consecutive tokens of a request.")                         \
    X(HIST_E2E, "e2e_request_latency_seconds", REQUEST_BOUNDS,                                     \
      "Time from a request's arrival to its end.")                                                 \
    X(HIST_QUEUE, "request_queue_time_seconds", REQUEST_BOUNDS,                                    \
      "Time from a request's arrival to its first admission to a step.")                           \
    X(HIST_PREFILL, "request_prefill_time_seconds", REQUEST_BOUNDS,                                \
      "Time from a request's first admission to its first token.")                                 \
    X(HIST_DECODE, "request_decode_time_seconds", REQUEST_BOUNDS,                                  \
      "Time from a request's first token to its last.")                                            \
    X(HIST_INFERENCE, "request_inference_time_seconds", REQUEST_BOUNDS,                            \
      "Time from a request's first admission to its last token.")                                  \
    X(HIST_PROMPT_TOKENS, "request_prompt_tokens", COUNT_BOUNDS,                                   \
      "Prompt tokens of requests that ended.")                                                     \
    X(HIST_GENERATION_TOKENS, "request_generation_tokens", COUNT_BOUNDS,                           \
      "Generated tokens of requests that ended.")                                                  \
    X(HIST_ITERATION_TOKENS, "iteration_tokens_total", STEP_TOKENS_BOUNDS,                         \
      "Tokens computed in a step, of prompts and generated.")                                      \
    X(HIST_STEP, "step_seconds", STEP_BOUNDS, "Duration of a step, sampling included.")

enum histogram_id {
#define X(id, name, bounds, help) id,
    HISTOGRAM_TABLE(X)
#undef X
        NUM_HISTOGRAMS
};

enum { MAX_HISTOGRAM_BOUNDS = 24 };

struct histogram {
    int64_t counts[MAX_HISTOGRAM_BOUNDS + 1]; /* [i]: values in (bounds[i-1], bounds[i]]; the one
                                                 behind the last bound: values above it */
    double sum;
};

/* What a histogram is called, and where its buckets end. Static. */
struct histogram_info {
    const char *name, *help;
    const double *bounds; /* [num_bounds], ascending */
    int32_t num_bounds;
};
const struct histogram_info *histogram_info(enum histogram_id id);
/* How many of the bounds are worth showing: tokens of a request stay below the context length. */
int32_t histogram_num_bounds(enum histogram_id id, int32_t max_model_len);

enum { MAX_FINISH_REASONS = 4, MAX_ERROR_CODES = 32 };

struct metrics {
    struct histogram histogram[NUM_HISTOGRAMS];
    int64_t finished[MAX_FINISH_REASONS]; /* requests, by enum finish_reason */
    int64_t failures[MAX_ERROR_CODES];    /* requests refused or ended by an error, by -code */
};

void metrics_observe(struct metrics *m, enum histogram_id id, double value);
/* A request was refused, or ended with an error: a negative ERR_*. */
void metrics_count_failure(struct metrics *m, int code);
void metrics_add(struct metrics *sum, const struct metrics *m);
int64_t histogram_count(const struct histogram *h);

#ifdef __cplusplus
}
#endif
