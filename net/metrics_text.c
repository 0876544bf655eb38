#include "net/metrics_text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "host/error.h"
#include "host/process.h"
#include "host/utf8.h"

struct writer {
    struct buffer *out;
    struct buffer model; /* the label that all series have: model_name="..." */
    const struct dispatch_metrics *m;
    const char *name, *type, *help; /* of the family at hand, until its first sample; else NULL */
};

/* ---- the format ------------------------------------------------------------------------------ */

/* As label values want it: valid UTF-8, with backslash, quote and newline escaped. */
static void put_escaped(struct buffer *out, const char *s) {
    struct buffer text = {0};
    utf8_append_lossy(&text, s, strlen(s));
    for (size_t i = 0; i < text.len; i++) {
        char c = text.data[i];
        if (c == '\\' || c == '"')
            buffer_putc(out, '\\');
        if (c == '\n')
            buffer_puts(out, "\\n");
        else
            buffer_putc(out, c);
    }
    buffer_deinit(&text);
}

/* The samples that follow are of moeserve_<name>. Without any there is no such family. */
static void put_family(struct writer *w, const char *name, const char *type, const char *help) {
    w->name = name;
    w->type = type;
    w->help = help;
}

/* HELP and TYPE. None of our texts has a backslash or newline. */
static void put_head(struct writer *w) {
    if (w->name)
        buffer_printf(w->out, "# HELP moeserve_%s %s\n# TYPE moeserve_%s %s\n", w->name, w->help,
                      w->name, w->type);
    w->name = NULL;
}

/* The name with its labels; fmt makes those beside the model's, "" for none. */
static void put_labels(struct writer *w, const char *name, const char *fmt, va_list args) {
    char labels[256];
    put_head(w);
    vsnprintf(labels, sizeof labels, fmt, args);
    buffer_printf(w->out, "moeserve_%s{%.*s%s%s} ", name, (int)w->model.len, w->model.data,
                  labels[0] ? "," : "", labels);
}

__attribute__((format(printf, 4, 5))) static void put_int(struct writer *w, const char *name,
                                                          int64_t value, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    put_labels(w, name, fmt, args);
    va_end(args);
    buffer_printf(w->out, "%lld\n", (long long)value);
}

/* 17 digits read back as the same number: sums that grow by little do grow. */
__attribute__((format(printf, 4, 5))) static void put_number(struct writer *w, const char *name,
                                                             double value, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    put_labels(w, name, fmt, args);
    va_end(args);
    buffer_printf(w->out, "%.17g\n", value);
}

static void put_counter(struct writer *w, const char *name, const char *help, int64_t value) {
    put_family(w, name, "counter", help);
    put_int(w, name, value, "%s", "");
}

static void put_gauge(struct writer *w, const char *name, const char *help, double value) {
    put_family(w, name, "gauge", help);
    put_number(w, name, value, "%s", "");
}

/* A bound as other exporters write it: 0.5, 1.0, 1e+06. */
static void format_bound(double bound, char out[32]) {
    int n = snprintf(out, 32, "%g", bound);
    if (!strpbrk(out, ".e"))
        snprintf(out + n, 32 - (size_t)n, ".0");
}

static void put_histogram(struct writer *w, enum histogram_id id) {
    const struct histogram_info *info = histogram_info(id);
    const struct histogram *h = &w->m->total.histogram[id];
    int32_t bounds = histogram_num_bounds(id, w->m->model.max_model_len);
    int64_t total = histogram_count(h), below = 0;
    char name[64], le[32];
    put_family(w, info->name, "histogram", info->help);
    snprintf(name, sizeof name, "%s_bucket", info->name);
    for (int32_t i = 0; i < bounds; i++) {
        below += h->counts[i];
        format_bound(info->bounds[i], le);
        put_int(w, name, below, "le=\"%s\"", le);
    }
    put_int(w, name, total, "le=\"+Inf\"");
    snprintf(name, sizeof name, "%s_sum", info->name);
    put_number(w, name, h->sum, "%s", "");
    snprintf(name, sizeof name, "%s_count", info->name);
    put_int(w, name, total, "%s", "");
}

/* ---- requests and tokens --------------------------------------------------------------------- */

static void put_state(struct writer *w) {
    const struct engine_stats *s = &w->m->stats.total;
    int32_t held = s->kv_blocks_used - s->kv_blocks_cached, total = s->kv_blocks_total;
    put_gauge(w, "num_requests_running", "Requests that steps compute.", s->running);
    put_gauge(w, "num_requests_waiting", "Requests that wait to be admitted.", s->waiting);
    put_gauge(w, "num_tokens_waiting", "Prompt tokens of the requests that wait.",
              (double)s->waiting_tokens);
    put_gauge(w, "kv_cache_usage_perc", "KV blocks that requests hold, of all: 1 is full.",
              total > 0 ? (double)held / total : 0);
    put_family(w, "kv_blocks", "gauge",
               "KV blocks that requests hold, that only the prefix cache holds, and others.");
    put_int(w, "kv_blocks", held, "state=\"held\"");
    put_int(w, "kv_blocks", s->kv_blocks_cached, "state=\"cached\"");
    put_int(w, "kv_blocks", total - s->kv_blocks_used, "state=\"free\"");
    put_gauge(w, "healthy", "1 while every replica gets on with its work.", s->healthy);
    if (s->last_step_age_us >= 0)
        put_gauge(w, "last_step_age_seconds", "Time since a step last ended.",
                  (double)s->last_step_age_us / 1e6);
    put_gauge(w, "uptime_seconds", "Time since the model was loaded.",
              (double)w->m->uptime_us / 1e6);
}

static void put_requests(struct writer *w) {
    static const struct {
        enum finish_reason reason;
        const char *name; /* vLLM's */
    } reasons[] = {{FINISH_STOP, "stop"}, {FINISH_LENGTH, "length"}, {FINISH_CANCELLED, "abort"}};
    static const char success[] = "request_success_total", failures[] = "request_failures_total";
    const struct metrics *m = &w->m->total;
    put_family(w, success, "counter", "Requests that ended without an error, by why.");
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++)
        put_int(w, success, m->finished[reasons[i].reason], "finished_reason=\"%s\"",
                reasons[i].name);
    put_family(w, failures, "counter", "Requests that were refused or ended by an error.");
    for (int code = ERR_INVALID_REQUEST; code >= ERR_INTERNAL; code--)
        put_int(w, failures, m->failures[-code], "code=\"%s\"", error_name(code));
}

static void put_tokens(struct writer *w) {
    const struct engine_stats *s = &w->m->stats.total;
    bool caches = w->m->prefix_caching;
    put_counter(w, "prompt_tokens_total", "Prompt tokens of admitted requests.",
                s->prompt_tokens_total);
    put_counter(w, "generation_tokens_total", "Tokens generated.", s->completion_tokens_total);
    put_counter(w, "prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.",
                caches ? s->prompt_tokens_total : 0);
    put_counter(w, "prefix_cache_hits_total", "Prompt tokens found in the prefix cache.",
                s->prefix_hit_tokens_total);
    put_counter(w, "num_preemptions_total", "Requests preempted because KV blocks ran out.",
                s->preemptions_total);
    put_counter(w, "steps_total", "Steps, failed ones included.", s->steps_total);
}

/* ---- experts, ranks, memory ------------------------------------------------------------------ */

/* Layers that routed nothing (dense ones) are left out. */
static void put_experts(struct writer *w) {
    static const char name[] = "expert_tokens_total";
    const struct model_metrics *p = &w->m->parts[0];
    if (!w->m->expert_tokens)
        return;
    put_family(w, name, "counter", "Tokens routed to an expert of a layer.");
    for (int32_t l = 0; l < p->num_layers; l++) {
        const int64_t *counts = w->m->expert_tokens + (int64_t)l * p->num_experts;
        int64_t any = 0;
        for (int32_t e = 0; e < p->num_experts; e++)
            any |= counts[e];
        for (int32_t e = 0; e < p->num_experts && any; e++)
            put_int(w, name, counts[e], "layer=\"%d\",expert=\"%d\"", l, e);
    }
}

static void put_rank_bytes(struct writer *w) {
    static const char name[] = "rank_memory_bytes";
    put_family(w, name, "gauge", "Memory that a rank of this process holds.");
    for (int32_t i = 0; i < w->m->stats.num_replicas; i++)
        for (int32_t r = 0; r < w->m->parts[i].num_ranks; r++) {
            const struct rank_metrics *rank = &w->m->parts[i].rank[r];
            if (rank->weight_bytes + rank->kv_bytes == 0)
                continue;
            put_int(w, name, rank->weight_bytes, "replica=\"%d\",rank=\"%d\",kind=\"weights\"", i,
                    r);
            put_int(w, name, rank->kv_bytes, "replica=\"%d\",rank=\"%d\",kind=\"kv_cache\"", i, r);
        }
}

static void put_imbalance(struct writer *w) {
    static const char name[] = "rank_imbalance_ratio";
    put_family(w, name, "gauge", "The fullest rank over the mean of all: 1 is even.");
    for (int32_t i = 0; i < w->m->stats.num_replicas; i++) {
        double tokens = model_metrics_token_imbalance(&w->m->parts[i]);
        double bytes = model_metrics_byte_imbalance(&w->m->parts[i]);
        if (tokens > 0)
            put_number(w, name, tokens, "replica=\"%d\",of=\"expert_tokens\"", i);
        if (bytes > 0)
            put_number(w, name, bytes, "replica=\"%d\",of=\"bytes\"", i);
    }
}

static void put_comm(struct writer *w) {
    static const char name[] = "comm_seconds_total";
    put_family(w, name, "counter", "Time of a rank in collectives, waiting for others included.");
    for (int32_t i = 0; i < w->m->stats.num_replicas; i++)
        for (int32_t r = 0; r < w->m->parts[i].num_ranks; r++) {
            const struct rank_metrics *rank = &w->m->parts[i].rank[r];
            for (int32_t op = 0; op < NUM_COMM_OPS && rank->has_comm; op++)
                put_number(w, name, (double)rank->comm_us[op] / 1e6,
                           "replica=\"%d\",rank=\"%d\",op=\"%s\"", i, r, comm_op_name(op));
        }
}

/* Of the replicas together: they have the machine's memory, or GPUs of their own. */
static void put_bandwidth(struct writer *w) {
    const struct model_metrics *parts = w->m->parts;
    double limit = 0, used = 0;
    int64_t bytes = 0;
    for (int32_t i = 0; i < w->m->stats.num_replicas; i++) {
        if (!parts[i].has_bandwidth)
            return;
        limit += parts[i].bandwidth_limit;
        used += parts[i].bandwidth_limit * parts[i].bandwidth_utilization;
        bytes += parts[i].read_bytes;
    }
    put_counter(w, "memory_read_bytes_total", "Weights and keys and values that steps had to read.",
                bytes);
    put_gauge(w, "memory_bandwidth_limit_bytes_per_second",
              "What this machine's memory was measured to give at start.", limit);
    put_gauge(w, "memory_bandwidth_utilization",
              "Bytes that the latest steps had to read per second of them, over the limit.",
              limit > 0 ? used / limit : 0);
}

/* ---- the server ------------------------------------------------------------------------------ */

static void put_connections(struct writer *w, const struct metrics_sources *s) {
    struct connection_count counts[MAX_CONNECTION_COUNTS];
    if (!s->connections)
        return;
    int32_t n = s->connections(s->ctx, counts, MAX_CONNECTION_COUNTS);
    put_family(w, "connections", "gauge", "Clients that are connected.");
    for (int32_t i = 0; i < n; i++)
        put_int(w, "connections", counts[i].open, "protocol=\"%s\"", counts[i].protocol);
}

static void put_http(struct writer *w, const struct http_counters *http) {
    static const char name[] = "http_requests_total";
    if (!http)
        return;
    put_family(w, name, "counter", "HTTP requests answered, by route and status.");
    for (int32_t i = 0; i < http->num_entries; i++)
        put_int(w, name, http->entries[i].count, "path=\"%s\",status=\"%d\"", http->entries[i].path,
                http->entries[i].status);
}

/* The names that Prometheus' own clients give these; what is not known is left out. */
static void put_process(struct buffer *out) {
    struct process_info p;
    process_info(&p);
    const struct {
        const char *name, *type, *help;
        double value;
    } series[] = {
        {"resident_memory_bytes", "gauge", "Resident memory.", (double)p.resident_bytes},
        {"virtual_memory_bytes", "gauge", "Virtual memory.", (double)p.virtual_bytes},
        {"open_fds", "gauge", "Open file descriptors.", (double)p.open_fds},
        {"max_fds", "gauge", "Limit of open file descriptors.", (double)p.max_fds},
        {"start_time_seconds", "gauge", "Start of the process, since 1970.", p.start_time},
        {"cpu_seconds_total", "counter", "CPU time of all threads.", p.cpu_seconds},
        {"major_page_faults_total", "counter", "Pages that had to be read from a disk.",
         (double)p.major_faults},
    };
    for (size_t i = 0; i < sizeof series / sizeof *series; i++)
        if (series[i].value >= 0)
            buffer_printf(out, "# HELP process_%s %s\n# TYPE process_%s %s\nprocess_%s %.17g\n",
                          series[i].name, series[i].help, series[i].name, series[i].type,
                          series[i].name, series[i].value);
}

void metrics_text(struct buffer *out, const struct metrics_sources *s) {
    struct dispatch_metrics m;
    struct writer w = {.out = out, .m = &m};
    dispatch_metrics(s->dispatch, &m);
    buffer_puts(&w.model, "model_name=\"");
    put_escaped(&w.model, m.model.name);
    buffer_putc(&w.model, '"');

    put_state(&w);
    put_requests(&w);
    put_tokens(&w);
    for (int32_t id = 0; id < NUM_HISTOGRAMS; id++)
        put_histogram(&w, id);
    put_experts(&w);
    put_rank_bytes(&w);
    put_imbalance(&w);
    put_comm(&w);
    put_bandwidth(&w);
    put_connections(&w, s);
    put_http(&w, s->http);
    put_process(out);
    buffer_deinit(&w.model);
    dispatch_metrics_deinit(&m);
}
