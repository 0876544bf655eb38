/* conn: one connection, of TCP or a Unix socket, as bytes in and bytes out, with its limits.
 *
 * Owns the socket, TLS if there is any, the bytes not sent yet and the decisions of when to read,
 * write and close. What the bytes mean is the business of a handler (line_session.h,
 * http_session.h). All of it runs on the loop's thread.
 *
 * Output is collected and written once per turn of the loop, from a prepare handle: a step of the
 * engine that posts a token to each of 64 requests costs one write per connection. In the same turn
 * the handler's on_service is called, the one place from where a handler may start something new;
 * so nothing re-enters a handler, and what it writes closes nothing under its feet.
 *
 * Flow control
 *   unsent > pause_unsent_bytes   the peer is not read any more (conn_congested), until half is
 * sent; where the port asks for it, a peer that then takes nothing for long is cut off
 *   unsent > max_unsent_bytes     the peer is cut off (reset); a last line may pass the limit once
 *   held and unsent bytes of all connections > max_buffered_bytes: connections that hold a large
 *     part of it are cut off
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "host/buffer.h"

#ifdef __cplusplus
extern "C" {
#endif

struct tls_server;
struct conn; /* opaque, owned by its conn_set; gone after on_close */

/* How the bytes of a connection are understood. */
struct conn_handler {
    /* A new connection: returns the session that the other calls get. */
    void *(*open)(void *ctx, struct conn *c);
    /* Received bytes, valid during the call only. Not called while reading is paused. */
    void (*on_read)(void *session, const char *data, size_t len);
    /* The peer sends no more; it may still read. */
    void (*on_eof)(void *session);
    /* Once per turn of the loop in which anything happened to this connection. */
    void (*on_service)(void *session);
    /* Every CONN_TICK_MS while conn_set_watch asks for it; returns whether to go on ticking. */
    bool (*on_tick)(void *session, int64_t now_us);
    /* Received bytes that the session holds, for the limit over all connections. */
    size_t (*held_bytes)(void *session);
    /* The connection is gone: the session must not touch it again. Called exactly once. */
    void (*on_close)(void *session);
};

enum {
    CONN_TICK_MS = 100,
    CONN_MAX_REFUSED = 32, /* connections too many that are given time to read so */
};

/* What the connections of one listener have in common. Borrowed; outlives them. */
struct conn_port {
    const struct conn_handler *handler;
    void *handler_ctx;
    const struct buffer *refusal; /* what a connection too many is sent before it is closed */
    int64_t stall_us; /* a congested peer that takes no byte for so long is cut off; 0: never */
    struct tls_server *tls;   /* NULL: plain */
    bool http;                /* what ALPN is told, and conn_set counts */
    int64_t handshake_us;     /* in which TLS must be agreed upon */
    const char *plain_answer; /* for a peer that does not speak TLS; NULL: none */
};

struct conn_limits {
    int32_t max_connections;
    size_t pause_unsent_bytes, max_unsent_bytes;
    size_t max_buffered_bytes;
};

/* All connections of one loop. Caller's memory; fields are for reading only. */
struct conn_set {
    uv_loop_t *loop;
    struct conn_limits limits;
    void (*on_empty)(void *ctx); /* the last connection is gone; may be NULL */
    void *on_empty_ctx;
    struct conn *all, *dirty;
    int32_t count, num_http; /* all; those of ports of HTTP */
    int32_t num_refused;     /* of all, those beyond max_connections */
    size_t buffered_bytes;
    bool hurry; /* shutting down: do not wait for slow peers when closing */
    uv_prepare_t prepare;
    uv_timer_t tick;
    struct buffer discarded; /* output for connections that are as good as gone */
    struct buffer plain;     /* what TLS makes of a read, during it */
    char chunk[64 * 1024];   /* every read goes here first */
};

/* Fill loop, limits, on_empty* before. */
void conn_set_init(struct conn_set *s);
/* Starts the ticks, until no session wants them any more. */
void conn_set_watch(struct conn_set *s);
/* Calls on_service of every connection in this turn. */
void conn_set_service_all(struct conn_set *s);
/* Resets every connection. */
void conn_set_abort_all(struct conn_set *s);
/* Closes the set's own handles; only when count is 0. */
void conn_set_close(struct conn_set *s);

/* Takes over an accepted socket that does not block. Beyond max_connections the port's refusal is
 * sent and the connection finished (conn_finish); beyond CONN_MAX_REFUSED of these, conn_refuse. */
void conn_accept(struct conn_set *s, const struct conn_port *port, int fd);
/* Sends the port's refusal, as far as the socket takes it at once, and closes it. */
void conn_refuse(const struct conn_port *port, int fd);

/* Where to append one line of output; call conn_touch afterwards, and conn_out again for the next.
 */
struct buffer *conn_out(struct conn *c);
/* Has this connection serviced and its output sent in this turn of the loop. */
void conn_touch(struct conn *c);
/* The peer does not take what it is sent: make no more output for it than must be. */
bool conn_congested(const struct conn *c);
/* Stops and restarts on_read, for handlers that cannot take more. */
void conn_pause(struct conn *c, bool pause);
/* Sends what is there, then closes; input is dropped from now on. The peer is given a moment to
 * read the last lines even if it is still sending. */
void conn_finish(struct conn *c);
/* Is the peer gone altogether, after an on_eof that could have been a half-close? */
bool conn_peer_is_gone(const struct conn *c);
/* Has the peer ended its side, seen also while reading is paused? */
bool conn_peer_has_ended(const struct conn *c);
/* Closes at once, with a reset: what is unsent is lost. on_close is called before it returns. */
void conn_abort(struct conn *c);
/* When bytes were last handed to the socket. */
int64_t conn_last_write_us(const struct conn *c);
struct conn_set *conn_set_of(const struct conn *c);

#ifdef __cplusplus
}
#endif
