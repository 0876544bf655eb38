/* bench_stats: what a load run measured, and the figures made from it.
 *
 * A record holds the raw times of one request, in microseconds of one clock (clock_us). The figures
 * are those of `vllm bench serve`, so that results can stand side by side:
 *
 *     TTFT  sending the request -> its first token line
 *     TPOT  (E2EL - TTFT) / (output_len - 1), for requests of two tokens or more
 *     ITL   gaps between token lines, over all requests
 *     E2EL  sending the request -> its done line
 *
 * Failed requests count in `failed` and nowhere else. Percentiles are numpy's default (linear
 * interpolation), std is numpy's (over n, not n - 1). Pure functions, any thread.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One request. Start it zeroed; bench_record_deinit in any state. */
struct bench_record {
    int32_t input_len;     /* prompt tokens */
    int32_t output_len;    /* generated tokens, by the done line; 0 when the request failed */
    int32_t cached_tokens; /* prompt tokens that the server took from its prefix cache */
    int64_t due_us;        /* when the request should be sent: its arrival time */
    int64_t start_us;      /* when it was sent; 0: never */
    int64_t end_us;        /* when its done line came, or when it failed */
    int64_t *token_us;     /* [num_tokens] owned: when each token line came */
    int32_t num_tokens;
    int32_t cap_tokens;
    char *error; /* owned: why it failed; NULL: it did not */
};

void bench_record_deinit(struct bench_record *r);
/* Notes one more token line. */
void bench_record_add_token(struct bench_record *r, int64_t now_us);

/* In seconds; 0 when there is nothing to measure. */
double bench_record_ttft(const struct bench_record *r);
double bench_record_e2el(const struct bench_record *r);

/* The value below which p percent (0..100) of n sorted values lie; 0 when n is 0. */
double bench_percentile(const double *sorted, size_t n, double p);

struct bench_spread {
    double mean, median, std, p99;
};

/* Sorts values. All zero when n is 0. */
void bench_spread_of(double *values, size_t n, struct bench_spread *out);

struct bench_summary {
    int32_t completed, failed;
    double duration_s;
    int64_t input_tokens, output_tokens, cached_tokens; /* of completed requests */
    double request_throughput;                          /* requests/s */
    double output_throughput, total_throughput;         /* tok/s; total counts prompts too */
    double peak_output_throughput; /* most token lines of one second, counted from the first send */
    int32_t peak_concurrency;      /* most requests between send and end at one time */
    struct bench_spread ttft_ms, tpot_ms, itl_ms, e2el_ms;
};

void bench_summarize(const struct bench_record *records, int32_t count, double duration_s,
                     struct bench_summary *out);

#ifdef __cplusplus
}
#endif
