/* server: the line protocol and HTTP, in front of a dispatch of engines.
 *
 * Lifecycle: server_create binds the addresses (so that one in use is found before a model is
 * loaded), server_load_and_run loads the model in a thread of its own and serves until server_stop
 * or a signal, dispatch_destroy, server_destroy. While the model loads HTTP answers that it does
 * (and /health, /version); the line protocol is there when the model is. server_load_and_run and
 * everything behind it run on the thread that calls it; server_wake and server_stop may be called
 * from any thread. See server.c for the threads.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "host/dispatch.h"
#include "host/error.h"
#include "net/keys.h"

#ifdef __cplusplus
extern "C" {
#endif

struct server; /* opaque */
struct http_counters;
struct http_route;

/* The address of HTTP when nothing is said. This string, not its text, is what makes a port that is
 * taken a warning instead of an error: nobody has asked for it. */
extern const char server_default_http[];

struct http_timeouts {
    int64_t first_byte_ms; /* of a new connection, default 10,000 */
    int64_t head_ms;       /* of a request's head from its first byte, default 10,000 */
    int64_t body_ms;       /* of a body without progress, default 30,000 */
    int64_t idle_ms;       /* between requests, default 75,000 */
    int64_t ping_ms;       /* between pieces of a stream: default HTTP_PING_S */
    int64_t stall_ms;      /* of a client that has too much unread and reads nothing, 10,000 */
};

/* server_options_default fills in what the text says. Strings are borrowed. */
struct server_options {
    const char *listen;             /* line protocol, as address.h has it; default 127.0.0.1:7070 */
    const char *http;               /* default server_default_http; one of the two may be "off" */
    struct keys *keys;              /* who may use the server; NULL: everybody */
    bool insecure;                  /* other machines may use the server without a key */
    const char *tls_cert, *tls_key; /* PEM files, both or none: TLS on both listeners */
    const char *cors_origin;        /* whose pages may use HTTP, or "*"; NULL: no other's */
    int64_t max_body_bytes;         /* of an HTTP request, default 4 MiB */
    int32_t stall_timeout_s;        /* without a step before /health says so, default 30 */
    struct http_timeouts http_timeouts;
    int64_t max_line_bytes;              /* of a request, default 4 MiB */
    int32_t max_connections;             /* default 10,000 */
    int32_t max_requests_per_connection; /* in flight, default 256 */
    int64_t max_unsent_bytes;            /* of one client before it is cut off, default 8 MiB */
    int64_t max_buffered_bytes;          /* held and unsent, all clients together, default 1 GiB */
    int32_t line_timeout_s;              /* for a line to be completed, default 120; 0: none */
    int32_t drain_timeout_s;             /* for running requests at shutdown, default 30 */
    bool handle_signals;                 /* SIGTERM and SIGINT stop the server; default false */
    struct request_params defaults;      /* of fields that a request leaves out; owns nothing */
    /* The model is there, on the loop's thread; may be NULL. Then routes may be called that are not
     * `always` there, and connections are accepted. */
    void (*on_loaded)(void *ctx, struct dispatch *dispatch);
    void *on_loaded_ctx;
    void (*on_ready)(void *ctx, const char *address); /* called when listening; may be NULL */
    /* It has begun to stop, and lets requests end; with on_ready_ctx; may be NULL. */
    void (*on_draining)(void *ctx);
    void *on_ready_ctx;
};

void server_options_default(struct server_options *o);

/* Binds the addresses. ERR_CONFIG for options that server_check.h refuses; ERR_IO for an address
 * that cannot be bound. */
int server_create(const struct server_options *o, struct server **out, struct error *error);
/* Before server_run. The table is borrowed; routes of tables that were added earlier win. */
void server_add_routes(struct server *s, const struct http_route *routes);
/* Reads certificate and key again, for new connections; on an error the old ones stay. Loop thread.
 */
int server_reload_tls(struct server *s, struct error *error);
struct uv_loop_s *server_loop(struct server *s);
/* Open connections, of both protocols and of HTTP; answers of HTTP by path and status, which live
 * as long as the server. Loop thread. */
int32_t server_num_connections(const struct server *s);
int32_t server_num_http_connections(const struct server *s);
const struct http_counters *server_http_counters(const struct server *s);
/* Signals the server's thread that there are events; for dispatch_create. */
void server_wake(void *server);
/* The addresses that are bound: "127.0.0.1:7070", "[::1]:7070", "unix:/path"; "" for one that is
 * off. */
const char *server_address(const struct server *s);
const char *server_http_address(const struct server *s);
/* What /health says: "ok", "loading", "stalled", "failed", "shutting_down". */
const char *server_status(struct server *s);

/* Makes the dispatch, with server_wake, in a thread of its own. */
typedef int (*server_load_fn)(void *ctx, struct dispatch **out, struct error *error);
/* Loads, then serves until it has been stopped and has drained. The dispatch is the caller's to
 * destroy, after this has returned and before server_destroy. Returns 0, load's error, ERR_IO when
 * it cannot listen, or ERR_INTERNAL after every engine has failed for good and its clients were
 * told. A signal while the model loads ends the process. */
int server_load_and_run(struct server *s, server_load_fn load, void *ctx, struct error *error);
/* The same with a dispatch that is there. */
int server_run(struct server *s, struct dispatch *dispatch, struct error *error);
/* Stops accepting, lets running requests end (drain_timeout_s), then makes server_run return. */
void server_stop(struct server *s);
void server_destroy(struct server *s);

#ifdef __cplusplus
}
#endif
