#include "http_health.h"

#include <stdio.h>
#include <string.h>

#include "host/clock.h"

static const char json[] = "application/json";

static void answer_version(void *ctx, struct http_exchange *x) {
    static const char body[] = "{\"version\":\"" MOESERVE_VERSION "\"}";
    (void)ctx;
    http_answer(x, 200, json, body, sizeof body - 1);
}

static void look_at(struct http_health *h, int32_t i, const struct engine_stats *e,
                    int64_t now_us) {
    bool busy = e->running + e->waiting > 0;
    if (!busy)
        h->seen[i].since_us = 0;
    else if (h->seen[i].since_us == 0 || h->seen[i].steps != e->steps_total)
        h->seen[i].since_us = now_us;
    h->seen[i].steps = e->steps_total;
}

static void look(struct http_health *h, struct dispatch_stats *stats) {
    int64_t now_us = clock_us();
    dispatch_stats(h->sessions->dispatch, stats);
    for (int32_t i = 0; i < stats->num_replicas; i++)
        look_at(h, i, &stats->replica[i], now_us);
}

void http_health_sample(struct http_health *h) {
    struct dispatch_stats stats;
    if (h->sessions->dispatch)
        look(h, &stats);
}

const char *http_health_status(struct http_health *h) {
    const struct http_sessions *s = h->sessions;
    int64_t timeout_us = (int64_t)s->options->stall_timeout_s * 1000000;
    struct dispatch_stats stats;
    if (s->draining)
        return "shutting_down";
    if (!s->dispatch)
        return "loading";
    look(h, &stats);
    if (stats.total.failed)
        return "failed";
    for (int32_t i = 0; i < stats.num_replicas; i++)
        if (h->seen[i].since_us && clock_us() - h->seen[i].since_us > timeout_us)
            return "stalled";
    return "ok";
}

static void answer_health(void *ctx, struct http_exchange *x) {
    struct http_health *h = ctx;
    char body[64];
    const char *status = http_health_status(h);
    int len = snprintf(body, sizeof body, "{\"status\":\"%s\"}", status);
    http_answer(x, strcmp(status, "ok") ? 503 : 200, json, body, (size_t)len);
}

void http_health_init(struct http_health *h, const struct http_sessions *sessions) {
    *h = (struct http_health){
        .sessions = sessions,
        .routes = {{HTTP_GET, "/version", true, answer_version, h, true},
                   {HTTP_GET, "/health", true, answer_health, h, true}},
    };
}
