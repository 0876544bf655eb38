/* http_counters: HTTP requests by path and status, for GET /metrics. Loop thread only.
 *
 * The session counts each answer once its status is known. Paths are those of routes: what else
 * clients ask for is counted as "other", so that they cannot make the server remember names.
 */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MAX_HTTP_COUNTERS = 256 };

/* Zeroed: nothing was counted. */
struct http_counters {
    struct http_counter {
        const char *path; /* borrowed: a route's, or "other" */
        int status;
        int64_t count;
    } entries[MAX_HTTP_COUNTERS];
    int32_t num_entries;
};

/* path: of the route that was found (it must live as long as the counters), NULL where there was
 * none. Paths and statuses that exceed the table are counted as "other" with status 0. */
void http_counters_add(struct http_counters *c, const char *path, int status);

#ifdef __cplusplus
}
#endif
