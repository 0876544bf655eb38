/* http_session: HTTP/1.1 on one connection: bytes to exchanges, answers to bytes.
 *
 * A session reads one request at a time. While it is being answered what the client has sent behind
 * it waits, in a bounded buffer, so answers come in the order of the requests. What is refused
 * before its route is called: malformed requests (400, 413, 414, 417, 431, 501, 505; the connection
 * closes, as the next request's beginning is not certain), unknown paths and methods (404, 405),
 * web pages of others (403), missing keys (401), compressed bodies (415), and everything while the
 * model loads or the server drains (503), but routes that are `always` there.
 *
 * A client that ends its side while its request is being answered is taken for gone, as proxies
 * take it. Loop thread only.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "host/dispatch.h"
#include "net/conn.h"
#include "net/http.h"
#include "net/http_counters.h"
#include "net/keys.h"
#include "net/server.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { HTTP_MAX_TABLES = 8 };

/* What all HTTP sessions of a server share. Owned by the server. */
struct http_sessions {
    const struct server_options *options;             /* borrowed */
    struct dispatch *dispatch;                        /* borrowed; NULL while the model loads */
    const struct http_route *tables[HTTP_MAX_TABLES]; /* borrowed; the first match counts */
    int32_t num_tables;
    bool draining, expired;
    bool on_loopback;          /* clients come by TCP, and from this machine only */
    uint64_t id_base, next_id; /* of requests that bring none */
    struct http_counters counters;
    int64_t date_s; /* second that `date` says */
    char date[40];
};

void http_sessions_init(struct http_sessions *s, const struct server_options *options);
void http_sessions_add(struct http_sessions *s, const struct http_route *routes);

/* The handler for a conn_port; its context is a struct http_sessions. */
extern const struct conn_handler http_session_handler;

#ifdef __cplusplus
}
#endif
