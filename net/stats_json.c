#include "net/stats_json.h"

#include <string.h>

#include "net/json_out.h"

static void put_model(struct buffer *out, const struct dispatch_metrics *m) {
    const struct engine_model_info *info = &m->model;
    buffer_puts(out, "{\"model\":{\"name\":");
    json_out_text(out, info->name, strlen(info->name));
    buffer_printf(out,
                  ",\"max_model_len\":%d,\"vocab_size\":%d,\"ranks\":%d,\"num_layers\":%d,"
                  "\"num_experts\":%d},",
                  info->max_model_len, info->vocab_size, info->ranks, m->parts[0].num_layers,
                  m->parts[0].num_experts);
}

/* Members of the whole server, and of each replica. */
static void put_counters(struct buffer *out, const struct engine_stats *s) {
    buffer_printf(out, "\"running\":%d,\"waiting\":%d,\"waiting_tokens\":%lld", s->running,
                  s->waiting, (long long)s->waiting_tokens);
    json_out_counters(out, s);
}

static void put_connections(struct buffer *out, const struct metrics_sources *s) {
    struct connection_count counts[MAX_CONNECTION_COUNTS];
    int32_t n = s->connections ? s->connections(s->ctx, counts, MAX_CONNECTION_COUNTS) : 0;
    int64_t sum = 0;
    for (int32_t i = 0; i < n; i++)
        sum += counts[i].open;
    if (s->connections)
        buffer_printf(out, ",\"connections\":%lld", (long long)sum);
    else
        buffer_puts(out, ",\"connections\":null");
}

static void put_replicas(struct buffer *out, const struct dispatch_stats *stats) {
    buffer_puts(out, ",\"replicas\":[");
    for (int32_t i = 0; i < stats->num_replicas; i++) {
        buffer_puts(out, i ? ",{" : "{");
        put_counters(out, &stats->replica[i]);
        buffer_putc(out, '}');
    }
    buffer_putc(out, ']');
}

static void put_rank(struct buffer *out, const struct model_metrics *m, int32_t replica,
                     int32_t r) {
    const struct rank_metrics *rank = &m->rank[r];
    int64_t bytes = rank->weight_bytes + rank->kv_bytes;
    buffer_printf(out, "{\"replica\":%d,\"rank\":%d,\"expert_tokens\":", replica, r);
    if (m->expert_tokens)
        buffer_printf(out, "%.0f", rank->expert_tokens);
    else
        buffer_puts(out, "null");
    if (bytes > 0)
        buffer_printf(out, ",\"bytes\":%lld}", (long long)bytes);
    else
        buffer_puts(out, ",\"bytes\":null}");
}

static void put_ranks(struct buffer *out, const struct dispatch_metrics *m) {
    const char *comma = "";
    buffer_puts(out, ",\"ranks\":[");
    for (int32_t i = 0; i < m->stats.num_replicas; i++)
        for (int32_t r = 0; r < m->parts[i].num_ranks; r++) {
            buffer_puts(out, comma);
            put_rank(out, &m->parts[i], i, r);
            comma = ",";
        }
    buffer_putc(out, ']');
}

static void put_experts(struct buffer *out, const struct dispatch_metrics *m) {
    int32_t L = m->expert_tokens ? m->parts[0].num_layers : 0, E = m->parts[0].num_experts;
    buffer_printf(out, ",\"experts\":{\"enabled\":%s,\"counts\":[",
                  m->expert_tokens ? "true" : "false");
    for (int32_t l = 0; l < L; l++) {
        buffer_puts(out, l ? ",[" : "[");
        for (int32_t e = 0; e < E; e++)
            buffer_printf(out, "%s%lld", e ? "," : "",
                          (long long)m->expert_tokens[(int64_t)l * E + e]);
        buffer_putc(out, ']');
    }
    buffer_puts(out, "]}");
}

void stats_json(struct buffer *out, const struct metrics_sources *s) {
    struct dispatch_metrics m;
    dispatch_metrics(s->dispatch, &m);
    put_model(out, &m);
    put_counters(out, &m.stats.total);
    put_connections(out, s);
    buffer_printf(out, ",\"uptime_s\":%.3f", (double)m.uptime_us / 1e6);
    put_replicas(out, &m.stats);
    put_ranks(out, &m);
    put_experts(out, &m);
    buffer_putc(out, '}');
    dispatch_metrics_deinit(&m);
}
