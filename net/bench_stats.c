#include "bench_stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"

static const double US_PER_S = 1e6;
static const double US_PER_MS = 1e3;

void bench_record_deinit(struct bench_record *r) {
    free(r->token_us);
    free(r->error);
    memset(r, 0, sizeof *r);
}

void bench_record_add_token(struct bench_record *r, int64_t now_us) {
    if (r->num_tokens == r->cap_tokens) {
        r->cap_tokens = r->cap_tokens ? 2 * r->cap_tokens : 64;
        r->token_us = xrealloc(r->token_us, (size_t)r->cap_tokens * sizeof *r->token_us);
    }
    r->token_us[r->num_tokens++] = now_us;
}

/* A request that ended at once, without a token line, has its whole time as TTFT. */
static int64_t first_token_us(const struct bench_record *r) {
    return r->num_tokens ? r->token_us[0] : r->end_us;
}

double bench_record_ttft(const struct bench_record *r) {
    if (r->start_us == 0 || (r->error && r->num_tokens == 0))
        return 0;
    return (double)(first_token_us(r) - r->start_us) / US_PER_S;
}

double bench_record_e2el(const struct bench_record *r) {
    return r->start_us ? (double)(r->end_us - r->start_us) / US_PER_S : 0;
}

double bench_percentile(const double *sorted, size_t n, double p) {
    if (n == 0)
        return 0;
    double at = (double)(n - 1) * p / 100.0;
    size_t low = (size_t)floor(at);
    if (low + 1 >= n)
        return sorted[n - 1];
    double step = sorted[low + 1] - sorted[low], t = at - (double)low;
    /* From the nearer end, as numpy does, so that t = 1 gives the upper value exactly. */
    return t < 0.5 ? sorted[low] + step * t : sorted[low + 1] - step * (1 - t);
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void bench_spread_of(double *values, size_t n, struct bench_spread *out) {
    memset(out, 0, sizeof *out);
    if (n == 0)
        return;
    qsort(values, n, sizeof *values, compare_doubles);
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++)
        sum += values[i];
    out->mean = sum / (double)n;
    for (size_t i = 0; i < n; i++)
        squares += (values[i] - out->mean) * (values[i] - out->mean);
    out->std = sqrt(squares / (double)n);
    out->median = bench_percentile(values, n, 50);
    out->p99 = bench_percentile(values, n, 99);
}

/* ---- figures over time --------------------------------------------------------------------- */

/* Token lines of each second since the first send; the most of any second. */
static double peak_tokens_per_s(const struct bench_record *records, int32_t count, int64_t first_us,
                                int64_t last_us) {
    size_t seconds = (size_t)((last_us - first_us) / (int64_t)US_PER_S) + 1;
    int64_t *bucket = xcalloc(seconds, sizeof *bucket), peak = 0;
    for (int32_t i = 0; i < count; i++) {
        for (int32_t t = 0; !records[i].error && t < records[i].num_tokens; t++)
            bucket[(size_t)((records[i].token_us[t] - first_us) / (int64_t)US_PER_S)]++;
    }
    for (size_t s = 0; s < seconds; s++)
        peak = bucket[s] > peak ? bucket[s] : peak;
    free(bucket);
    return (double)peak;
}

struct edge {
    int64_t at_us;
    int32_t change; /* +1 a request was sent, -1 one ended */
};

/* Ends come before starts of the same time: a slot that is used again is not counted twice. */
static int compare_edges(const void *a, const void *b) {
    const struct edge *x = a, *y = b;
    if (x->at_us != y->at_us)
        return x->at_us < y->at_us ? -1 : 1;
    return x->change - y->change;
}

static int32_t peak_concurrency(const struct bench_record *records, int32_t count) {
    struct edge *edges = xcalloc((size_t)count * 2, sizeof *edges);
    size_t n = 0;
    for (int32_t i = 0; i < count; i++) {
        if (records[i].error)
            continue;
        edges[n++] = (struct edge){records[i].start_us, 1};
        edges[n++] = (struct edge){records[i].end_us, -1};
    }
    qsort(edges, n, sizeof *edges, compare_edges);
    int32_t now = 0, peak = 0;
    for (size_t i = 0; i < n; i++) {
        now += edges[i].change;
        peak = now > peak ? now : peak;
    }
    free(edges);
    return peak;
}

/* ---- summary ------------------------------------------------------------------------------- */

static void summarize_latencies(const struct bench_record *records, int32_t count,
                                struct bench_summary *out) {
    size_t gaps = 0, num_tpot = 0, num_itl = 0, n = 0;
    for (int32_t i = 0; i < count; i++)
        gaps += (size_t)records[i].num_tokens;
    double *ttft = xcalloc((size_t)count, sizeof *ttft),
           *e2el = xcalloc((size_t)count, sizeof *e2el);
    double *tpot = xcalloc((size_t)count, sizeof *tpot), *itl = xcalloc(gaps, sizeof *itl);
    for (int32_t i = 0; i < count; i++) {
        const struct bench_record *r = &records[i];
        if (r->error)
            continue;
        int64_t first = first_token_us(r);
        ttft[n] = (double)(first - r->start_us) / US_PER_MS;
        e2el[n++] = (double)(r->end_us - r->start_us) / US_PER_MS;
        if (r->output_len > 1)
            tpot[num_tpot++] = (double)(r->end_us - first) / US_PER_MS / (r->output_len - 1);
        for (int32_t t = 1; t < r->num_tokens; t++)
            itl[num_itl++] = (double)(r->token_us[t] - r->token_us[t - 1]) / US_PER_MS;
    }
    bench_spread_of(ttft, n, &out->ttft_ms);
    bench_spread_of(e2el, n, &out->e2el_ms);
    bench_spread_of(tpot, num_tpot, &out->tpot_ms);
    bench_spread_of(itl, num_itl, &out->itl_ms);
    free(ttft);
    free(e2el);
    free(tpot);
    free(itl);
}

void bench_summarize(const struct bench_record *records, int32_t count, double duration_s,
                     struct bench_summary *out) {
    memset(out, 0, sizeof *out);
    out->duration_s = duration_s;
    int64_t first_us = INT64_MAX, last_us = 0;
    for (int32_t i = 0; i < count; i++) {
        const struct bench_record *r = &records[i];
        if (r->error) {
            out->failed++;
            continue;
        }
        out->completed++;
        out->input_tokens += r->input_len;
        out->output_tokens += r->output_len;
        out->cached_tokens += r->cached_tokens;
        first_us = r->start_us < first_us ? r->start_us : first_us;
        last_us = r->end_us > last_us ? r->end_us : last_us;
    }
    if (out->completed == 0)
        return;
    double per_s = duration_s > 0 ? 1 / duration_s : 0;
    out->request_throughput = out->completed * per_s;
    out->output_throughput = (double)out->output_tokens * per_s;
    out->total_throughput = (double)(out->input_tokens + out->output_tokens) * per_s;
    out->peak_output_throughput = peak_tokens_per_s(records, count, first_us, last_us);
    out->peak_concurrency = peak_concurrency(records, count);
    summarize_latencies(records, count, out);
}
