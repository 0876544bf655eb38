#include "api.h"

#include <string.h>

#include "net/stats_json.h"

static void answer_metrics(void *ctx, struct http_exchange *x) {
    const struct api *a = ctx;
    struct buffer out = {0};
    metrics_text(&out, &a->sources);
    http_answer(x, 200, METRICS_CONTENT_TYPE, out.data, out.len);
    buffer_deinit(&out);
}

static void answer_stats(void *ctx, struct http_exchange *x) {
    const struct api *a = ctx;
    struct buffer out = {0};
    stats_json(&out, &a->sources);
    http_add_header(x, "Cache-Control", "no-store");
    http_answer(x, 200, "application/json", out.data, out.len);
    buffer_deinit(&out);
}

static int32_t count_connections(void *ctx, struct connection_count *out, int32_t max) {
    const struct api *a = ctx;
    int32_t http = server_num_http_connections(a->server), n = 0;
    const struct connection_count counts[] = {
        {"line", server_num_connections(a->server) - http},
        {"http", http},
    };
    for (; n < max && n < (int32_t)(sizeof counts / sizeof *counts); n++)
        out[n] = counts[n];
    return n;
}

void api_init(struct api *a, struct server *server, const struct server_options *options) {
    const struct http_route routes[API_NUM_ROUTES] = {
        {.method = HTTP_GET, .path = "/metrics", .fn = answer_metrics, .ctx = a},
        {.method = HTTP_GET, .path = "/stats", .fn = answer_stats, .ctx = a},
        {.method = HTTP_GET,
         .path = "/",
         .open = true,
         .fn = page_route,
         .ctx = &a->page,
         .always = true},
    };
    memset(a, 0, sizeof *a);
    a->server = server;
    memcpy(a->routes, routes, sizeof routes);
    page_init(&a->page);
    openai_init(&a->openai, server_loop(server), &options->defaults);
    server_add_routes(server, a->openai.routes);
    server_add_routes(server, a->routes);
}

void api_loaded(void *ctx, struct dispatch *dispatch) {
    struct api *a = ctx;
    openai_start(&a->openai, dispatch);
    a->sources = (struct metrics_sources){
        .dispatch = dispatch,
        .http = server_http_counters(a->server),
        .connections = count_connections,
        .ctx = a,
    };
}

void api_deinit(struct api *a) {
    openai_deinit(&a->openai);
}
