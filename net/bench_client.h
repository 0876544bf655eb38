/* bench_client: sends a load of requests to a server and takes the times of the answers.
 *
 * One libuv loop, on the calling thread. Each request in flight has a connection of its own, which
 * is used again by a later request: a lost connection fails exactly one request, a token's time is
 * the time at which its bytes were read, and the server sees what it sees in service: many clients.
 * Request lines are built before the run, so that the loop only sends, reads and notes.
 *
 * Lifecycle: create (resolves the address), call and run as often as wanted, destroy. While one of
 * them waits it runs the loop; a non-zero *stop (set by a callback on the same loop) ends the wait
 * with ERR_SHUTTING_DOWN.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "host/error.h"
#include "net/bench_stats.h"

#ifdef __cplusplus
extern "C" {
#endif

struct bench_client; /* opaque */

/* A request to be sent. Its id in the line is its index in the load. */
struct bench_item {
    const char *line; /* borrowed, LF included */
    size_t len;
    int32_t input_len;  /* prompt tokens in the line */
    int32_t max_tokens; /* wanted */
    int64_t arrival_us; /* since the start of the run; never decreasing */
};

struct bench_load {
    const struct bench_item *items; /* [count] */
    struct bench_record *records;   /* [count] zeroed; filled in */
    int32_t count;
    int32_t max_concurrency; /* requests in flight at most; 0: no bound */
    bool exact_len;          /* max_tokens tokens must come, or the request has failed */
    double duration_s;       /* out: from the start to the last end */
};

/* `address` is HOST:PORT. api_key is shown on every connection, before anything else; NULL: none;
 * it is copied. timeout_us: a request (or a connection) that hears nothing for so long has failed.
 * `stop` is borrowed. */
int bench_client_create(uv_loop_t *loop, const char *address, const char *api_key,
                        int64_t timeout_us, const int *stop, struct bench_client **out,
                        struct error *error);
/* Closes all connections; the loop must still exist. */
void bench_client_destroy(struct bench_client *c);

/* Sends one line (LF included) and waits for one line, which is the caller's (json_decref). An
 * error answer is ERR_INVALID_REQUEST with the server's message. */
int bench_client_call(struct bench_client *c, const char *line, json_t **answer,
                      struct error *error);

/* Sends the load and returns when all requests have ended. Failed requests are no error of the run:
 * their records say why. */
int bench_client_run(struct bench_client *c, struct bench_load *load, struct error *error);

#ifdef __cplusplus
}
#endif
