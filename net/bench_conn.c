#include "bench_conn.h"

#include <stdlib.h>

#include "host/clock.h"
#include "host/mem.h"

/* An answer to tokenize is the longest line: some bytes for each token of a prompt. */
static const size_t MAX_LINE_BYTES = (size_t)256 << 20;

static void on_closed(uv_handle_t *handle) {
    struct bench_conn *c = handle->data;
    line_reader_deinit(&c->reader);
    --*c->open;
    free(c);
}

void bench_conn_close(struct bench_conn *c) {
    if (!c->events)
        return;
    c->events = NULL;
    uv_close((uv_handle_t *)&c->tcp, on_closed);
}

static void lose(struct bench_conn *c, const char *why) {
    const struct bench_conn_events *events = c->events;
    if (!events)
        return;
    bench_conn_close(c);
    events->on_lost(c, why);
}

/* ---- reading -------------------------------------------------------------------------------- */

/* libuv reads and calls on_read before it asks again, so that one buffer serves all connections. */
static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
    struct bench_conn *c = handle->data;
    (void)suggested;
    *buf = uv_buf_init(c->scratch, BENCH_READ_BYTES);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
    struct bench_conn *c = stream->data;
    int64_t now_us = clock_us();
    if (n == 0)
        return;
    if (n < 0) {
        lose(c, n == UV_EOF ? "the server closed the connection" : uv_strerror((int)n));
        return;
    }
    line_reader_feed(&c->reader, buf->base, (size_t)n);
    const char *line;
    size_t len;
    int rc = 0;
    while (c->events && (rc = line_reader_next(&c->reader, &line, &len)) == 1)
        c->events->on_line(c, line, len, now_us);
    if (rc < 0)
        lose(c, "the server sent a line without end");
}

/* ---- connecting and writing ----------------------------------------------------------------- */

static void on_connect(uv_connect_t *connect, int status) {
    struct bench_conn *c = connect->data;
    if (!c->events)
        return;
    if (status == 0)
        status = uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
    if (status == 0)
        c->events->on_ready(c);
    else
        lose(c, uv_strerror(status));
}

struct bench_conn *bench_conn_open(uv_loop_t *loop, const struct sockaddr *address,
                                   const struct bench_conn_events *events, char *scratch,
                                   int32_t *open, void *owner, int *status) {
    struct bench_conn *c = xcalloc(1, sizeof *c);
    c->events = events;
    c->scratch = scratch;
    c->open = open;
    c->owner = owner;
    c->request = -1;
    ++*open;
    line_reader_init(&c->reader, MAX_LINE_BYTES);
    uv_tcp_init(loop, &c->tcp);
    uv_tcp_nodelay(&c->tcp, 1);
    c->tcp.data = c->connect.data = c;
    *status = uv_tcp_connect(&c->connect, &c->tcp, address, on_connect);
    if (*status == 0)
        return c;
    bench_conn_close(c);
    return NULL;
}

/* A failed write is followed by a failed read, which tells the owner. */
static void on_written(uv_write_t *write, int status) {
    (void)status;
    free(write);
}

void bench_conn_send(struct bench_conn *c, const char *data, size_t len) {
    uv_write_t *write = xmalloc(sizeof *write);
    uv_buf_t buf = uv_buf_init((char *)(uintptr_t)data, (unsigned)len);
    if (uv_write(write, (uv_stream_t *)&c->tcp, &buf, 1, on_written) != 0)
        free(write);
}

bool bench_conn_is_sending(const struct bench_conn *c) {
    return uv_stream_get_write_queue_size((const uv_stream_t *)&c->tcp) > 0;
}
