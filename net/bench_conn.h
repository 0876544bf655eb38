/* bench_conn: one client connection of the load generator, in lines.
 *
 * Owned by bench_client; lives on its loop. A connection is opened, carries lines both ways, and
 * ends either because the owner closes it (no event) or because it was lost (on_lost, once). In
 * both cases the memory is freed by the loop afterwards, so the owner must drop its pointer at
 * once. Lines are handed out with the time at which their bytes were read.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <uv.h>

#include "net/line_reader.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { BENCH_READ_BYTES = 256 * 1024 };

struct bench_conn;

/* Called on the loop. A handler may close the connection, but not run the loop. */
struct bench_conn_events {
    void (*on_ready)(struct bench_conn *c); /* connected: lines may be sent */
    void (*on_line)(struct bench_conn *c, const char *line, size_t len, int64_t now_us);
    void (*on_lost)(struct bench_conn *c, const char *why);
};

struct bench_conn {
    uv_tcp_t tcp;
    uv_connect_t connect;
    struct line_reader reader;
    const struct bench_conn_events *events; /* borrowed; NULL once it is closing */
    char *scratch; /* [BENCH_READ_BYTES] borrowed: what a read fills; all connections share one */
    int32_t *open; /* borrowed: connections whose memory is still in use */
    /* The owner's. */
    void *owner;
    struct bench_conn *next_idle;
    size_t place;     /* where the owner keeps it */
    int32_t request;  /* index of the request in flight, negative: none */
    bool ready;       /* connected, and the key is accepted */
    int64_t heard_us; /* when a line last came, or the request was sent */
};

/* Starts connecting; later failures come by on_lost. NULL when the system refuses a socket, with
 * libuv's code in *status. */
struct bench_conn *bench_conn_open(uv_loop_t *loop, const struct sockaddr *address,
                                   const struct bench_conn_events *events, char *scratch,
                                   int32_t *open, void *owner, int *status);
/* Sends bytes that must stay as they are until they are all sent or the connection is closed. */
void bench_conn_send(struct bench_conn *c, const char *data, size_t len);
/* Are there bytes that the system has not taken yet? */
bool bench_conn_is_sending(const struct bench_conn *c);
void bench_conn_close(struct bench_conn *c);

#ifdef __cplusplus
}
#endif
