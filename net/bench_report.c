#include "bench_report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "net/json_out.h"

enum { BLOCK_WIDTH = 50 };

bool bench_is_valid(const struct bench_summary *s) {
    return s->failed == 0 && s->completed > 0;
}

/* ---- block ---------------------------------------------------------------------------------- */

/* The title in the middle of a line of `fill`; the odd one goes to the right. */
static void put_title(struct buffer *out, const char *title, char fill) {
    int space = BLOCK_WIDTH - (int)strlen(title), left = space > 0 ? space / 2 : 0;
    for (int i = 0; i < left; i++)
        buffer_putc(out, fill);
    buffer_puts(out, title);
    for (int i = left; i < space; i++)
        buffer_putc(out, fill);
    buffer_putc(out, '\n');
}

static void put_count(struct buffer *out, const char *label, int64_t value) {
    buffer_printf(out, "%-40s %-10lld\n", label, (long long)value);
}

static void put_figure(struct buffer *out, const char *label, double value) {
    buffer_printf(out, "%-40s %-10.2f\n", label, value);
}

static void put_spread(struct buffer *out, const char *title, const char *name,
                       const struct bench_spread *s) {
    char label[64];
    put_title(out, title, '-');
    snprintf(label, sizeof label, "Mean %s (ms):", name);
    put_figure(out, label, s->mean);
    snprintf(label, sizeof label, "Median %s (ms):", name);
    put_figure(out, label, s->median);
    snprintf(label, sizeof label, "P99 %s (ms):", name);
    put_figure(out, label, s->p99);
}

void bench_report_block(struct buffer *out, const struct bench_settings *settings,
                        const struct bench_summary *s) {
    char last[64] = "";
    bool valid = bench_is_valid(s);
    if (!valid)
        snprintf(last, sizeof last, " INVALID: %d of %d requests failed ", (int)s->failed,
                 (int)(s->failed + s->completed));
    put_title(out, valid ? " Serving Benchmark Result " : " Serving Benchmark Result: INVALID ",
              '=');
    put_count(out, "Successful requests:", s->completed);
    put_count(out, "Failed requests:", s->failed);
    if (settings->max_concurrency)
        put_count(out, "Maximum request concurrency:", settings->max_concurrency);
    if (!isinf(settings->request_rate))
        put_figure(out, "Request rate configured (RPS):", settings->request_rate);
    put_figure(out, "Benchmark duration (s):", s->duration_s);
    put_count(out, "Total input tokens:", s->input_tokens);
    put_count(out, "Total generated tokens:", s->output_tokens);
    put_figure(out, "Request throughput (req/s):", s->request_throughput);
    put_figure(out, "Output token throughput (tok/s):", s->output_throughput);
    put_figure(out, "Peak output token throughput (tok/s):", s->peak_output_throughput);
    put_figure(out, "Peak concurrent requests:", s->peak_concurrency);
    put_figure(out, "Total token throughput (tok/s):", s->total_throughput);
    put_spread(out, "Time to First Token", "TTFT", &s->ttft_ms);
    put_spread(out, "Time per Output Token (excl. 1st token)", "TPOT", &s->tpot_ms);
    put_spread(out, "Inter-token Latency", "ITL", &s->itl_ms);
    put_title(out, last, '=');
}

/* ---- JSON ----------------------------------------------------------------------------------- */

/* Arguments and messages need not be UTF-8; JSON has to be. */
static void put_text(struct buffer *out, const char *s) {
    json_out_text(out, s, strlen(s));
}

/* Keys begin with a comma: the first one is "date". */
static void put_number(struct buffer *out, const char *key, double value) {
    buffer_printf(out, ",\n \"%s\": %.9g", key, value);
}

static void put_int(struct buffer *out, const char *key, int64_t value) {
    buffer_printf(out, ",\n \"%s\": %lld", key, (long long)value);
}

static void put_string(struct buffer *out, const char *key, const char *value) {
    buffer_printf(out, ",\n \"%s\": ", key);
    if (value)
        put_text(out, value);
    else
        buffer_puts(out, "null");
}

static void put_key(struct buffer *out, const char *key) {
    buffer_printf(out, ",\n \"%s\": [", key);
}

static void put_settings(struct buffer *out, const struct bench_settings *s) {
    put_string(out, "backend", "moeserve");
    put_string(out, "model_id", s->model);
    put_string(out, "server", s->server);
    put_key(out, "server_args");
    for (int i = 0; s->server_args && s->server_args[i]; i++) {
        buffer_puts(out, i ? ", " : "");
        put_text(out, s->server_args[i]);
    }
    buffer_putc(out, ']');
    put_string(out, "dataset", s->dataset);
    put_int(out, "num_prompts", s->num_prompts);
    put_int(out, "warmup", s->warmup);
    if (isinf(s->request_rate))
        put_string(out, "request_rate", "inf");
    else
        put_number(out, "request_rate", s->request_rate);
    put_number(out, "burstiness", 1);
    if (s->max_concurrency)
        put_int(out, "max_concurrency", s->max_concurrency);
    else
        put_string(out, "max_concurrency", NULL);
    buffer_printf(out, ",\n \"random_input_len\": [%d, %d],\n \"random_output_len\": [%d, %d]",
                  (int)s->input_len.min, (int)s->input_len.max, (int)s->output_len.min,
                  (int)s->output_len.max);
    put_int(out, "prefix_len", s->prefix_len);
    put_number(out, "temperature", s->temperature);
    buffer_printf(out, ",\n \"ignore_eos\": %s", s->ignore_eos ? "true" : "false");
    put_number(out, "timeout_s", s->timeout_s);
    buffer_printf(out, ",\n \"seed\": %llu", (unsigned long long)s->seed);
}

static void put_spread_json(struct buffer *out, const char *name, const struct bench_spread *s) {
    buffer_printf(out, ",\n \"mean_%s_ms\": %.9g,\n \"median_%s_ms\": %.9g", name, s->mean, name,
                  s->median);
    buffer_printf(out, ",\n \"std_%s_ms\": %.9g,\n \"p99_%s_ms\": %.9g", name, s->std, name,
                  s->p99);
}

static void put_summary(struct buffer *out, const struct bench_summary *s) {
    buffer_printf(out, ",\n \"valid\": %s", bench_is_valid(s) ? "true" : "false");
    put_number(out, "duration", s->duration_s);
    put_int(out, "completed", s->completed);
    put_int(out, "failed", s->failed);
    put_int(out, "total_input_tokens", s->input_tokens);
    put_int(out, "total_output_tokens", s->output_tokens);
    put_int(out, "total_cached_tokens", s->cached_tokens);
    put_number(out, "request_throughput", s->request_throughput);
    put_number(out, "output_throughput", s->output_throughput);
    put_number(out, "total_token_throughput", s->total_throughput);
    put_number(out, "max_output_tokens_per_s", s->peak_output_throughput);
    put_int(out, "max_concurrent_requests", s->peak_concurrency);
    put_spread_json(out, "ttft", &s->ttft_ms);
    put_spread_json(out, "tpot", &s->tpot_ms);
    put_spread_json(out, "itl", &s->itl_ms);
    put_spread_json(out, "e2el", &s->e2el_ms);
}

/* ---- per-request arrays --------------------------------------------------------------------- */

static double input_len(const struct bench_record *r) {
    return r->input_len;
}

static double output_len(const struct bench_record *r) {
    return r->output_len;
}

static double cached_tokens(const struct bench_record *r) {
    return r->cached_tokens;
}

static double start_s(const struct bench_record *r) {
    return (double)r->start_us / 1e6;
}

static double queue_s(const struct bench_record *r) {
    return r->start_us ? (double)(r->start_us - r->due_us) / 1e6 : 0;
}

static void put_array(struct buffer *out, const char *key, const struct bench_record *records,
                      int32_t count, double (*value)(const struct bench_record *)) {
    put_key(out, key);
    for (int32_t i = 0; i < count; i++)
        buffer_printf(out, i ? ", %.13g" : "%.13g", value(&records[i]));
    buffer_putc(out, ']');
}

static void put_itls(struct buffer *out, const struct bench_record *r) {
    buffer_putc(out, '[');
    for (int32_t t = 1; t < r->num_tokens; t++)
        buffer_printf(out, t > 1 ? ", %.9g" : "%.9g",
                      (double)(r->token_us[t] - r->token_us[t - 1]) / 1e6);
    buffer_putc(out, ']');
}

static void put_records(struct buffer *out, const struct bench_record *records, int32_t count) {
    put_array(out, "input_lens", records, count, input_len);
    put_array(out, "output_lens", records, count, output_len);
    put_array(out, "cached_tokens", records, count, cached_tokens);
    put_array(out, "ttfts", records, count, bench_record_ttft);
    put_array(out, "latencies", records, count, bench_record_e2el);
    put_array(out, "start_times", records, count, start_s);
    put_array(out, "queue_times", records, count, queue_s);
    put_key(out, "itls");
    for (int32_t i = 0; i < count; i++) {
        buffer_puts(out, i ? ", " : "");
        put_itls(out, &records[i]);
    }
    buffer_putc(out, ']');
    put_key(out, "errors");
    for (int32_t i = 0; i < count; i++) {
        buffer_puts(out, i ? ", " : "");
        put_text(out, records[i].error ? records[i].error : "");
    }
    buffer_putc(out, ']');
}

void bench_report_json(struct buffer *out, const char *date, const struct bench_settings *settings,
                       const struct bench_summary *summary, const struct bench_record *records) {
    buffer_puts(out, "{\"date\": ");
    put_text(out, date);
    put_settings(out, settings);
    put_summary(out, summary);
    put_records(out, records, settings->num_prompts);
    buffer_puts(out, "\n}\n");
}
