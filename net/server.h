/* server: the line protocol on a TCP port, in front of a dispatch of engines.
 *
 * Lifecycle: server_create binds the port (so that a port in use is found before a model is
 * loaded), dispatch_create is given server_wake, server_run listens and serves until server_stop or
 * a signal, dispatch_destroy, server_destroy. server_run and everything behind it run on the thread
 * that calls it; server_wake and server_stop may be called from any thread. See server.c for the
 * threads.
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

/* server_options_default fills in what the text says. Strings are borrowed. */
struct server_options {
    const char *listen;      /* HOST:PORT, default 127.0.0.1:7070; port 0: any free one */
    int64_t max_line_bytes;  /* of a request, default 4 MiB */
    int32_t max_connections; /* default 10,000 */
    int32_t max_requests_per_connection; /* in flight, default 256 */
    int64_t max_unsent_bytes;            /* of one client before it is cut off, default 8 MiB */
    int64_t max_buffered_bytes;          /* held and unsent, all clients together, default 1 GiB */
    int32_t line_timeout_s;              /* for a line to be completed, default 120; 0: none */
    int32_t drain_timeout_s;             /* for running requests at shutdown, default 30 */
    struct keys_options keys;            /* who may use it; default: everybody */
    bool insecure;                       /* so also on addresses that other machines reach */
    bool handle_signals;                 /* SIGTERM and SIGINT stop the server; default false */
    struct request_params defaults;      /* of fields that a request leaves out; owns nothing */
    void (*on_ready)(void *ctx, const char *address); /* called when listening; may be NULL */
    void *on_ready_ctx;
};

void server_options_default(struct server_options *o);

/* Splits "HOST:PORT", "[V6]:PORT" or ":PORT" (any interface). Returns ERR_CONFIG with a message
 * when it is none of them. host gets at most 255 bytes, port is 0..65535 in digits. */
int server_parse_address(const char *text, char host[256], char port[6], struct error *error);

/* Binds the address. ERR_CONFIG for an address that does not parse or resolve, ERR_IO for one that
 * cannot be bound. */
int server_create(const struct server_options *o, struct server **out, struct error *error);
/* Signals the server's thread that there are events; for dispatch_create. */
void server_wake(void *server);
/* The address that is bound, "127.0.0.1:7070" or "[::1]:7070". */
const char *server_address(const struct server *s);
/* Serves until it has been stopped and has drained. Returns 0, ERR_IO when it cannot listen, or
 * ERR_INTERNAL after every engine has failed for good and its clients were told. */
int server_run(struct server *s, struct dispatch *dispatch, struct error *error);
/* Stops accepting, lets running requests end (drain_timeout_s), then makes server_run return. */
void server_stop(struct server *s);
void server_destroy(struct server *s);

#ifdef __cplusplus
}
#endif
