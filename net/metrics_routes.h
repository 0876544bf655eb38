/* metrics_routes: GET /metrics and GET /stats as routes (http.h); ctx is a struct metrics_sources
 * that lives as long as they do. Loop thread only.
 */
#pragma once

#include "net/http.h"
#include "net/metrics_text.h"
#include "net/stats_json.h"

#ifdef __cplusplus
extern "C" {
#endif

static inline void metrics_route(void *ctx, struct http_exchange *x) {
    struct buffer text = {0};
    metrics_text(&text, (const struct metrics_sources *)ctx);
    http_answer(x, 200, METRICS_CONTENT_TYPE, text.data, text.len);
    buffer_deinit(&text);
}

static inline void stats_route(void *ctx, struct http_exchange *x) {
    struct buffer text = {0};
    stats_json(&text, (const struct metrics_sources *)ctx);
    http_answer(x, 200, "application/json", text.data, text.len);
    buffer_deinit(&text);
}

#ifdef __cplusplus
}
#endif
