/* bench_report: the figures of a load run as text and as JSON.
 *
 * The text is the block of `vllm bench serve`, line for line, and the JSON has the keys of its
 * --save-result file where they exist, so that both can be read by the tools that people have. A
 * run in which a request failed is marked INVALID in the block's first and last line
 * ("valid":false). Pure functions that append to a buffer.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "host/buffer.h"
#include "net/bench_stats.h"
#include "net/bench_workload.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What was asked for. Strings are borrowed. */
struct bench_settings {
    const char *model;        /* name that the server gives */
    const char *server;       /* HOST:PORT that was measured */
    char *const *server_args; /* of a server started for the run, ends with NULL; NULL: none */
    const char *dataset;      /* "text" or "random" */
    int32_t num_prompts;      /* >= 1 */
    int32_t warmup;           /* requests before these, not counted */
    int32_t max_concurrency;  /* 0: no bound */
    double request_rate;      /* requests/s; INFINITY: all at once */
    struct bench_range input_len, output_len; /* tokens */
    int32_t prefix_len;                       /* tokens that all prompts share, before input_len */
    double temperature;
    bool ignore_eos;
    double timeout_s; /* a request that hears nothing for so long has failed */
    uint64_t seed;
};

/* Is the run a measurement: did everything that was asked for happen? */
bool bench_is_valid(const struct bench_summary *s);

void bench_report_block(struct buffer *out, const struct bench_settings *settings,
                        const struct bench_summary *summary);

/* One JSON object, LF included. `date` is written as it is. Per-request arrays are in the order of
 * the prompts, times in seconds of the monotonic clock. */
void bench_report_json(struct buffer *out, const char *date, const struct bench_settings *settings,
                       const struct bench_summary *summary, const struct bench_record *records);

#ifdef __cplusplus
}
#endif
