/* metrics_text: the answer of GET /metrics, in Prometheus' text format (version 0.0.4).
 *
 * Every series is moeserve_<name>{model_name="..."} but those of the process, whose names are
 * Prometheus' own. docs/METRICS.md lists them. Loop thread; the functions below allocate and take
 * some hundred microseconds.
 */
#pragma once

#include "host/buffer.h"
#include "host/dispatch.h"
#include "net/http_counters.h"

#ifdef __cplusplus
extern "C" {
#endif

#define METRICS_CONTENT_TYPE "text/plain; version=0.0.4; charset=utf-8"

struct connection_count {
    const char *protocol; /* "line", "http" */
    int32_t open;
};

/* Where the figures come from; everything is borrowed. */
struct metrics_sources {
    struct dispatch *dispatch;
    const struct http_counters *http; /* NULL: there is no HTTP */
    /* Fills in at most `max` and returns how many protocols there are. NULL: not known. */
    int32_t (*connections)(void *ctx, struct connection_count *out, int32_t max);
    void *ctx;
};

enum { MAX_CONNECTION_COUNTS = 4 };

/* Appends the whole text. */
void metrics_text(struct buffer *out, const struct metrics_sources *s);

#ifdef __cplusplus
}
#endif
