/* bench_workload: what a load run sends and when, and what the answers say.
 *
 * Everything here is a pure function of its arguments: lengths, arrival times and prompts come from
 * a seed, request and answer lines are those of the line protocol (docs/PROTOCOL.md). It knows no
 * socket. Prompts are sent as token ids, so that their lengths are exact.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/buffer.h"
#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- random numbers: splitmix64, one stream for each (seed, stream) ------------------------- */

struct bench_rng {
    uint64_t state;
};

void bench_rng_init(struct bench_rng *r, uint64_t seed, uint64_t stream);
uint64_t bench_rng_next(struct bench_rng *r);
/* Uniform in [0, 1). */
double bench_rng_unit(struct bench_rng *r);
/* Uniform in min..max, both included. */
int32_t bench_rng_range(struct bench_rng *r, int32_t min, int32_t max);

/* ---- what is sent --------------------------------------------------------------------------- */

struct bench_range {
    int32_t min, max; /* both included */
};

/* "128" or "64:256", each number from least to 10,000,000. ERR_CONFIG else. */
int bench_range_parse(const char *text, int32_t least, struct bench_range *out,
                      struct error *error);

/* Arrival times in seconds since the start. rate is in requests/s; INFINITY: all at 0. The gaps are
 * exponential (a Poisson process), then scaled so that the last request arrives at count / rate:
 * the offered load is the configured one for every seed, as in vLLM. */
void bench_arrivals(double rate, uint64_t seed, double *arrival_s, int32_t count);

/* Appends the label, then at least `bytes` of English and some code: sentences drawn from r, with
 * numbers in them drawn too. The label keeps prompts apart from their first tokens on, so that the
 * prefix cache finds nothing shared. */
void bench_text(struct buffer *out, struct bench_rng *r, const char *label, size_t bytes);

void bench_random_tokens(struct bench_rng *r, int32_t vocab_size, int32_t *tokens, int32_t count);

struct bench_request {
    int64_t id;
    const int32_t *tokens; /* prompt */
    int32_t num_tokens;
    int32_t max_tokens;
    double temperature;
    uint64_t seed;
    bool ignore_eos;
};

/* Appends the request as one line, LF included. */
void bench_request_line(struct buffer *out, const struct bench_request *q);

/* ---- what comes back ------------------------------------------------------------------------ */

enum bench_answer_kind {
    BENCH_ANSWER_TOKEN,
    BENCH_ANSWER_TEXT, /* text without a token of its own */
    BENCH_ANSWER_DONE,
    BENCH_ANSWER_ERROR,
};

struct bench_answer {
    enum bench_answer_kind kind;
    int64_t id; /* -1: null or not an integer */
    /* BENCH_ANSWER_DONE */
    int32_t prompt_tokens, completion_tokens, cached_tokens;
    bool cancelled;
    char error[256]; /* BENCH_ANSWER_ERROR: "overloaded: the request queue is full" */
};

/* Reads one answer line (without its line end). ERR_INVALID_JSON or ERR_INVALID_REQUEST when the
 * line is no answer of the protocol. */
int bench_answer_parse(const char *line, size_t len, struct bench_answer *out, struct error *error);

#ifdef __cplusplus
}
#endif
