/* http_client: a blocking HTTP client over net_client, and routes to ask, for tests. */
#pragma once

#include <stdatomic.h>

#include "net/http.h"
#include "tests/net_client.h"

struct http_answer {
    int status;         /* 0: none came */
    struct buffer head; /* status line and headers, NUL-terminated */
    struct buffer body; /* without its framing, NUL-terminated */
    bool chunked;
};

void http_answer_deinit(struct http_answer *a);
/* Reads one answer. has_body: false for one to HEAD. False, with a failure, when it is malformed or
 * does not come. An answer without a length is read to the connection's end. */
bool http_client_read(struct net_client *c, bool has_body, struct http_answer *a);
/* Sends the bytes and reads one answer. */
bool http_client_ask(struct net_client *c, const char *bytes, struct http_answer *a);
/* The value of a header (names as they are sent), copied to out; "" without it. */
const char *http_answer_value(const struct http_answer *a, const char *name, char out[256]);
/* Opens a connection, asks, expects the status, closes it. */
void http_expect_status(struct net_fixture *f, const char *bytes, int status);
/* An answered GET /version on a connection of its own: the server is well. */
void http_expect_well(struct net_fixture *f);

/* Routes of a server under test:
 *
 *   POST /echo      the body, as text/plain
 *   GET /big?N      N times 'x'
 *   GET /later      "late" after 100 ms, not watched
 *   GET /stream?N   N pieces "data: I\n\n" at once, then the end
 *   GET /hold       one piece, then nothing until the client is gone, or the time to drain over
 *   GET /quiet      a stream of no pieces at all, the same
 *   GET /flood      pieces of 64 KiB every millisecond, until the client is gone
 *   GET /tree/...   the path
 *   GET /open       "open", without a key
 *   POST /error     the error whose name is the body
 */
struct http_rig {
    struct net_fixture f;
    struct http_route routes[16];
    atomic_int held, gone, expired, flooded; /* of /hold and /flood */
};

/* Set options, then start. HTTP is on, on a free port. */
void http_rig_init(struct http_rig *r);
bool http_rig_start(struct http_rig *r, struct net_client *c);
void http_rig_stop(struct http_rig *r);
/* Waits until the counter has this value. */
bool http_rig_wait(atomic_int *counter, int value);
