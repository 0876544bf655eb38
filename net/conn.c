#include "conn.h"

#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/log.h"
#include "host/mem.h"
#include "net/tls.h"

enum {
    KEEP_BYTES = 16 * 1024,       /* of an output buffer that has run empty */
    BIG_SHARE_BYTES = 256 * 1024, /* connections below this are never cut off for the total */
    STALL_US = 10 * 1000 * 1000, /* a closing connection that takes no bytes for so long is reset */
    LINGER_US = 1000 * 1000,     /* after the last byte, for the peer to read it */
    HURRY_LINGER_US = 200 * 1000, /* the same while the server shuts down */
    LINGER_BYTES = 16 << 20, /* input that is dropped meanwhile; a peer that sends more is reset */
    USER_TIMEOUT_MS =
        60 * 1000, /* bytes that the peer neither acknowledges nor takes for so long */
    KEEPALIVE_S = 60,
};

enum conn_state {
    CONN_OPEN,
    CONN_FINISHING, /* sending the rest; input is dropped */
    CONN_LINGERING, /* everything sent and our side shut down; waiting for the peer's end */
    CONN_CLOSED,    /* on_close was called; waiting for the handle */
};

struct conn {
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } io;
    struct conn_set *set;
    const struct conn_port *port;
    struct tls *tls; /* NULL: plain */
    void *session;
    struct conn *prev, *next; /* in set->all */
    struct conn *next_dirty;
    bool dirty;
    enum conn_state state;
    bool refused;          /* one too many */
    bool eof;              /* the peer sends no more */
    bool reading;          /* uv_read_start is in force */
    bool paused;           /* by the handler */
    bool congested;        /* too much is unsent */
    bool overrun;          /* far too much is unsent: cut off at the next service */
    bool broken;           /* the socket failed: the same */
    bool tls_ended;        /* the peer was told so */
    struct buffer out;     /* collected in this turn */
    struct buffer writing; /* being written by write_req */
    bool write_active;
    uv_write_t write_req;
    uv_shutdown_t shutdown_req;
    size_t dropped_bytes; /* input received since conn_finish */
    size_t charged_bytes; /* this connection's part of set->buffered_bytes */
    uint64_t written;     /* handed to the socket in all */
    uint64_t last_taken;  /* taken_bytes at the last tick */
    int64_t deadline_us;  /* of the state, once it is not CONN_OPEN */
    int64_t taken_us;     /* when the peer last took something, or was not congested */
    int64_t last_write_us;
    int64_t opened_us;
};

static void serve_dirty(struct conn_set *s);

static size_t unsent_bytes(const struct conn *c) {
    size_t encrypted = c->tls ? tls_output(c->tls)->len : 0;
    return c->out.len + encrypted + uv_stream_get_write_queue_size(&c->io.stream);
}

/* Bytes that the peer's side has acknowledged; of a Unix socket about those that it has read. That
 * our kernel takes some says less: once its buffer is full it waits until a third of it is free,
 * which a slow reader needs minutes for. */
static uint64_t taken_bytes(const struct conn *c) {
    uv_os_fd_t fd;
    int waiting = 0; /* in our kernel */
    if (uv_fileno(&c->io.handle, &fd) == 0)
        ioctl(fd, SIOCOUTQ, &waiting);
    return c->written - uv_stream_get_write_queue_size(&c->io.stream) - (uint64_t)waiting;
}

/* ---- closing ---- */

static void on_closed(uv_handle_t *handle) {
    struct conn *c = handle->data;
    struct conn_set *s = c->set;
    buffer_deinit(&c->out);
    buffer_deinit(&c->writing);
    tls_close(c->tls);
    s->count--;
    s->num_http -= c->port->http;
    s->num_refused -= c->refused;
    free(c);
    if (s->count == 0 && s->on_empty)
        s->on_empty(s->on_empty_ctx);
}

/* Takes c out of the lists and tells the session. The handle must be closed right after. */
static void detach(struct conn *c) {
    struct conn_set *s = c->set;
    c->state = CONN_CLOSED;
    if (c->prev)
        c->prev->next = c->next;
    else
        s->all = c->next;
    if (c->next)
        c->next->prev = c->prev;
    if (c->dirty) {
        struct conn **p = &s->dirty;
        while (*p != c)
            p = &(*p)->next_dirty;
        *p = c->next_dirty;
        c->dirty = false;
    }
    s->buffered_bytes -= c->charged_bytes;
    c->port->handler->on_close(c->session);
    c->session = NULL;
}

void conn_abort(struct conn *c) {
    if (c->state == CONN_CLOSED)
        return;
    bool shut = c->state == CONN_LINGERING;
    detach(c);
    /* A reset frees the kernel's unsent bytes too, which a plain close would keep for minutes. */
    if (shut || c->io.handle.type != UV_TCP || uv_tcp_close_reset(&c->io.tcp, on_closed) != 0)
        uv_close(&c->io.handle, on_closed);
}

static void close_gracefully(struct conn *c) {
    detach(c);
    uv_close(&c->io.handle, on_closed);
}

static void on_shutdown(uv_shutdown_t *req, int status) {
    (void)req, (void)status; /* the linger deadline or the peer's end closes */
}

/* Everything is sent: says so to the peer and waits for its end. */
static void linger(struct conn *c) {
    if (c->eof) {
        close_gracefully(c);
        return;
    }
    c->state = CONN_LINGERING;
    c->deadline_us = clock_us() + (c->set->hurry ? HURRY_LINGER_US : LINGER_US);
    if (uv_shutdown(&c->shutdown_req, &c->io.stream, on_shutdown) != 0)
        close_gracefully(c);
}

void conn_finish(struct conn *c) {
    if (c->state != CONN_OPEN)
        return;
    c->state = CONN_FINISHING;
    c->deadline_us = clock_us() + STALL_US;
    c->last_taken = taken_bytes(c);
    conn_set_watch(c->set);
    conn_touch(c);
}

/* ---- reading ---- */

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
    struct conn *c = handle->data;
    (void)suggested;
    *buf = uv_buf_init(c->set->chunk, sizeof c->set->chunk);
}

/* Keeps the sum over all connections, and cuts this one off when the sum is too large and a good
 * part of it is its own. */
static void charge(struct conn *c) {
    struct conn_set *s = c->set;
    size_t bytes = c->port->handler->held_bytes(c->session) + unsent_bytes(c);
    s->buffered_bytes += bytes - c->charged_bytes;
    c->charged_bytes = bytes;
    if (s->buffered_bytes > s->limits.max_buffered_bytes && bytes > BIG_SHARE_BYTES) {
        log_warn("cut off a connection: all connections together hold %zu bytes, it %zu",
                 s->buffered_bytes, bytes);
        conn_abort(c);
    }
}

/* The peer sends no more. */
static void end_input(struct conn *c) {
    c->eof = true;
    c->reading = false;
    uv_read_stop(&c->io.stream);
    if (c->state == CONN_LINGERING)
        close_gracefully(c);
    else if (c->state == CONN_OPEN)
        c->port->handler->on_eof(c->session);
}

/* TLS cannot go on. What it has to say about that is sent, then the connection ends. */
static void refuse_tls(struct conn *c, bool not_tls) {
    log_debug("TLS: %s", tls_problem(c->tls));
    if (not_tls) {
        tls_close(c->tls);
        c->tls = NULL;
        buffer_clear(&c->out);
        if (c->port->plain_answer)
            buffer_puts(&c->out, c->port->plain_answer);
    }
    conn_finish(c);
}

static void receive_tls(struct conn *c, const char *data, size_t len) {
    struct buffer *plain = &c->set->plain;
    buffer_clear(plain);
    enum tls_result result = tls_receive(c->tls, data, len, plain);
    if (plain->len)
        c->port->handler->on_read(c->session, plain->data, plain->len);
    if (tls_output(c->tls)->len)
        conn_touch(c);
    if (c->state != CONN_OPEN)
        return;
    if (result == TLS_ENDED)
        end_input(c);
    else if (result != TLS_OPEN)
        refuse_tls(c, result == TLS_NOT_TLS);
}

static void on_read(uv_stream_t *stream, ssize_t nread, const uv_buf_t *buf) {
    struct conn *c = stream->data;
    if (c->state == CONN_CLOSED || nread == 0)
        return;
    if (nread == UV_EOF) {
        end_input(c);
        return;
    }
    if (nread < 0) {
        conn_abort(c);
        return;
    }
    if (c->state != CONN_OPEN) {
        c->dropped_bytes += (size_t)nread;
        if (c->dropped_bytes > LINGER_BYTES)
            conn_abort(c);
        return;
    }
    if (c->tls)
        receive_tls(c, buf->base, (size_t)nread);
    else
        c->port->handler->on_read(c->session, buf->base, (size_t)nread);
    if (c->state == CONN_OPEN)
        charge(c);
}

/* Starts or stops reading as the state asks. A finishing connection reads to drop the bytes,
 * because closing with unread bytes would reset it and lose the last lines. */
static void update_reading(struct conn *c) {
    bool want = !c->eof && (c->state != CONN_OPEN || (!c->paused && !c->congested));
    if (c->state == CONN_CLOSED || want == c->reading)
        return;
    c->reading = want;
    if (!want)
        uv_read_stop(&c->io.stream);
    else if (uv_read_start(&c->io.stream, on_alloc, on_read) != 0) {
        c->broken = true; /* closing here would pull the session from under its caller */
        conn_touch(c);
    }
}

void conn_pause(struct conn *c, bool pause) {
    c->paused = pause;
    update_reading(c);
}

/* ---- writing ---- */

static void trim(struct buffer *b) {
    if (b->cap > KEEP_BYTES)
        buffer_deinit(b);
    else
        buffer_clear(b);
}

static void on_write(uv_write_t *req, int status) {
    struct conn *c = req->data;
    c->write_active = false;
    trim(&c->writing);
    if (c->state == CONN_CLOSED)
        return;
    if (status < 0)
        conn_abort(c);
    else
        conn_touch(c);
}

/* Makes the collected output c->writing. Returns whether there is any. */
static bool collect(struct conn *c) {
    struct buffer *from = &c->out;
    if (c->tls) {
        from = tls_output(c->tls);
        if (c->out.len && tls_is_ready(c->tls)) {
            c->broken = !tls_send(c->tls, c->out.data, c->out.len) || c->broken;
            if (c->broken)
                conn_touch(c);
            trim(&c->out);
        }
    }
    struct buffer empty = c->writing;
    if (from->len == 0)
        return false;
    c->writing = *from;
    *from = empty;
    buffer_clear(from);
    return true;
}

/* Hands the collected output to the socket, one write at a time. */
static void flush(struct conn *c) {
    if (c->write_active || !collect(c))
        return;
    uv_buf_t buf = {.base = c->writing.data, .len = c->writing.len}; /* may pass 4 GiB */
    c->last_write_us = clock_us();
    c->write_active = true;
    c->written += c->writing.len;
    if (uv_write(&c->write_req, &c->io.stream, &buf, 1, on_write) != 0) {
        c->write_active = false;
        conn_abort(c);
    }
}

/* Before the end of a connection whose output is all sent: has TLS said so too? */
static bool is_tls_over(struct conn *c) {
    if (!c->tls || c->tls_ended)
        return true;
    c->tls_ended = true;
    tls_end(c->tls);
    flush(c);
    return !c->write_active;
}

struct buffer *conn_out(struct conn *c) {
    size_t unsent = unsent_bytes(c);
    if (unsent > c->set->limits.max_unsent_bytes)
        c->overrun = true;
    if (!c->overrun && c->state == CONN_OPEN)
        return &c->out;
    buffer_clear(&c->set->discarded); /* nobody will read it */
    return &c->set->discarded;
}

void conn_touch(struct conn *c) {
    if (c->dirty || c->state == CONN_CLOSED)
        return;
    c->dirty = true;
    c->next_dirty = c->set->dirty;
    c->set->dirty = c;
}

/* Looks at the bytes too: several reads may come before the next service. */
bool conn_congested(const struct conn *c) {
    return c->congested || unsent_bytes(c) > c->set->limits.pause_unsent_bytes;
}

static void update_congestion(struct conn *c) {
    size_t limit = c->set->limits.pause_unsent_bytes;
    bool was = c->congested;
    c->congested = unsent_bytes(c) > (was ? limit / 2 : limit);
    if (c->congested && !was && c->port->stall_us > 0) {
        c->taken_us = clock_us();
        conn_set_watch(c->set);
    }
}

/* Congestion is looked at before the handler, which does what it held back when there is none any
 * more, and after it. What ends it is always the end of a write, which calls for a service. */
static void service(struct conn *c) {
    if (c->overrun || c->broken) {
        if (c->overrun)
            log_warn("cut off a connection that does not read: %zu bytes unsent", unsent_bytes(c));
        conn_abort(c);
        return;
    }
    update_congestion(c);
    if (c->state == CONN_OPEN)
        c->port->handler->on_service(c->session);
    if (c->state != CONN_CLOSED)
        flush(c);
    if (c->state == CONN_CLOSED)
        return;
    update_congestion(c);
    if (c->state == CONN_FINISHING && c->tls && !tls_is_ready(c->tls))
        buffer_clear(&c->out); /* it cannot be sent any more */
    if (c->state == CONN_FINISHING && unsent_bytes(c) == 0 && !c->write_active && is_tls_over(c)) {
        if (c->state != CONN_CLOSED)
            linger(c);
        if (c->state == CONN_CLOSED)
            return;
    }
    update_reading(c);
    if (c->state == CONN_OPEN)
        charge(c);
}

/* Serves what is dirty now; what becomes dirty meanwhile is served in the same turn. */
static void serve_dirty(struct conn_set *s) {
    while (s->dirty) {
        struct conn *c = s->dirty;
        s->dirty = c->next_dirty;
        c->dirty = false;
        service(c);
    }
}

static void on_prepare(uv_prepare_t *handle) {
    serve_dirty(handle->data);
}

/* ---- ticks ---- */

/* Has the peer taken anything since the last tick? */
static bool has_taken(struct conn *c) {
    uint64_t taken = taken_bytes(c);
    bool more = taken != c->last_taken;
    c->last_taken = taken;
    return more;
}

/* The deadlines of a connection that is being closed: as long as the peer takes bytes it may go on.
 */
static void tick_closing(struct conn *c, int64_t now_us) {
    if (has_taken(c) && c->state == CONN_FINISHING)
        c->deadline_us = now_us + STALL_US;
    if (now_us >= c->deadline_us)
        conn_abort(c);
}

/* Cuts off a peer that does not read. Returns whether to go on looking. */
static bool tick_stalled(struct conn *c, int64_t now_us) {
    if (has_taken(c) || !c->congested)
        c->taken_us = now_us;
    if (now_us - c->taken_us > c->port->stall_us) {
        log_warn("cut off a connection that has read nothing for %.1f s: %zu bytes unsent",
                 (double)(now_us - c->taken_us) / 1e6, unsent_bytes(c));
        conn_abort(c);
    }
    return c->congested;
}

/* Returns whether the connection wants more ticks. */
static bool tick(struct conn *c, int64_t now_us) {
    bool stalled = false;
    if (c->state != CONN_OPEN) {
        tick_closing(c, now_us);
        return true;
    }
    bool handshake = c->tls && !tls_is_ready(c->tls);
    if (handshake && now_us - c->opened_us > c->port->handshake_us) {
        conn_abort(c);
        return true;
    }
    if (c->port->stall_us > 0 && c->congested)
        stalled = tick_stalled(c, now_us);
    if (c->state != CONN_OPEN)
        return true;
    return c->port->handler->on_tick(c->session, now_us) || stalled || handshake;
}

static void on_tick(uv_timer_t *timer) {
    struct conn_set *s = timer->data;
    int64_t now_us = clock_us();
    bool go_on = false;
    for (struct conn *c = s->all, *next; c; c = next) {
        next = c->next;
        go_on = tick(c, now_us) || go_on;
    }
    if (!go_on)
        uv_timer_stop(timer);
}

void conn_set_watch(struct conn_set *s) {
    if (!uv_is_active((uv_handle_t *)&s->tick))
        uv_timer_start(&s->tick, on_tick, CONN_TICK_MS, CONN_TICK_MS);
}

/* What poll says of the socket at this moment; POLLERR when there is none. */
static short poll_events(const struct conn *c) {
    uv_os_fd_t fd;
    if (uv_fileno(&c->io.handle, &fd) != 0)
        return POLLERR;
    struct pollfd p = {.fd = fd, .events = POLLRDHUP};
    return poll(&p, 1, 0) > 0 ? p.revents : 0;
}

bool conn_peer_is_gone(const struct conn *c) {
    return poll_events(c) & (POLLERR | POLLHUP);
}

bool conn_peer_has_ended(const struct conn *c) {
    return c->eof || poll_events(c) & (POLLERR | POLLHUP | POLLRDHUP);
}

int64_t conn_last_write_us(const struct conn *c) {
    return c->last_write_us;
}

struct conn_set *conn_set_of(const struct conn *c) {
    return c->set;
}

/* ---- opening ---- */

static void set_socket_options(struct conn *c, int fd) {
    unsigned timeout_ms = USER_TIMEOUT_MS;
    uv_tcp_nodelay(&c->io.tcp, 1);
    uv_tcp_keepalive(&c->io.tcp, 1, KEEPALIVE_S);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof timeout_ms);
}

static bool is_unix_socket(int fd) {
    int domain = 0;
    socklen_t len = sizeof domain;
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX;
}

/* Gives the socket to the handle. Returns 0 or libuv's error. */
static int take_socket(struct conn *c, int fd) {
    int rc;
    if (is_unix_socket(fd)) {
        uv_pipe_init(c->set->loop, &c->io.pipe, 0);
        rc = uv_pipe_open(&c->io.pipe, fd);
    } else {
        uv_tcp_init(c->set->loop, &c->io.tcp);
        rc = uv_tcp_open(&c->io.tcp, fd);
        if (rc == 0)
            set_socket_options(c, fd);
    }
    c->io.handle.data = c;
    return rc;
}

void conn_refuse(const struct conn_port *port, int fd) {
    if (!port->tls) {
        ssize_t unused =
            send(fd, port->refusal->data, port->refusal->len, MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)unused;
    }
    close(fd);
}

/* Closing at once would reset the connection, because of what the client has sent or sends next: it
 * would not read why. */
static void refuse_and_finish(struct conn *c) {
    c->refused = true;
    c->set->num_refused++;
    buffer_append(conn_out(c), c->port->refusal->data, c->port->refusal->len);
    conn_finish(c);
}

void conn_accept(struct conn_set *s, const struct conn_port *port, int fd) {
    bool full = s->count - s->num_refused >= s->limits.max_connections;
    if (full && s->num_refused >= CONN_MAX_REFUSED) {
        conn_refuse(port, fd);
        return;
    }
    struct conn *c = xcalloc(1, sizeof *c);
    c->set = s;
    c->port = port;
    c->write_req.data = c;
    c->last_write_us = c->opened_us = clock_us();
    if (port->tls) {
        c->tls = tls_open(port->tls, port->http);
        conn_set_watch(s);
    }
    s->count++;
    s->num_http += port->http;
    c->next = s->all;
    if (s->all)
        s->all->prev = c;
    s->all = c;
    c->session = port->handler->open(port->handler_ctx, c);
    if (take_socket(c, fd) != 0) {
        close(fd);
        conn_abort(c);
        return;
    }
    if (full)
        refuse_and_finish(c);
    update_reading(c);
}

/* ---- the set ---- */

void conn_set_init(struct conn_set *s) {
    uv_prepare_init(s->loop, &s->prepare);
    uv_timer_init(s->loop, &s->tick);
    s->prepare.data = s->tick.data = s;
    uv_prepare_start(&s->prepare, on_prepare);
}

void conn_set_service_all(struct conn_set *s) {
    for (struct conn *c = s->all; c; c = c->next)
        conn_touch(c);
}

void conn_set_abort_all(struct conn_set *s) {
    while (s->all)
        conn_abort(s->all);
}

void conn_set_close(struct conn_set *s) {
    uv_close((uv_handle_t *)&s->prepare, NULL);
    uv_close((uv_handle_t *)&s->tick, NULL);
    buffer_deinit(&s->discarded);
    buffer_deinit(&s->plain);
}
