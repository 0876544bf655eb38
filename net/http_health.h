/* http_health: GET /health and /version, for load balancers and people.
 *
 *   GET /version   {"version":"0.1.0"}
 *   GET /health    200 {"status":"ok"}, or 503 {"status":REASON} with REASON one of
 *                  loading, shutting_down, failed, stalled
 *
 * Stalled: requests wait or run, and no step has ended for --stall-timeout seconds. A step that
 * ended long ago says nothing of a server that was idle since, so the server looks at its replicas
 * from time to time. Neither route needs a key, and both are answered while the model loads.
 */
#pragma once

#include "net/http_session.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { HTTP_HEALTH_ROUTES = 2 };

struct http_health {
    const struct http_sessions *sessions; /* borrowed */
    struct {
        int64_t steps;    /* that had ended when it was last seen to go on */
        int64_t since_us; /* when that was; 0: it was idle */
    } seen[MAX_REPLICAS];
    struct http_route routes[HTTP_HEALTH_ROUTES + 1];
};

/* Caller's memory. */
void http_health_init(struct http_health *h, const struct http_sessions *sessions);
/* Looks at the replicas; to be called several times within --stall-timeout. */
void http_health_sample(struct http_health *h);
/* "ok", or one of the reasons above. */
const char *http_health_status(struct http_health *h);

#ifdef __cplusplus
}
#endif
