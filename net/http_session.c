#include "http_session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "host/clock.h"
#include "host/mem.h"
#include "net/http_internal.h"

enum {
    /* What a client sends ahead of its answer is read up to here. */
    MAX_AHEAD_BYTES = 64 * 1024,
};

/* ---- exchanges ---- */

static void exchange_destroy(struct http_exchange *x) {
    http_head_deinit(&x->head);
    http_body_deinit(&x->body);
    buffer_deinit(&x->headers);
    free(x);
}

void http_exchange_end(struct http_exchange *x) {
    struct http_session *s = x->session;
    bool keep_alive = x->keep_alive;
    s->exchange = NULL;
    s->since_us = clock_us();
    s->used = true;
    exchange_destroy(x);
    if (keep_alive) {
        conn_touch(s->conn); /* for the request behind it */
    } else {
        s->closing = true;
        conn_finish(s->conn);
    }
}

static void make_id(struct http_exchange *x) {
    struct http_sessions *shared = x->session->shared;
    snprintf(x->id, sizeof x->id, "req-%016llx%08llx", (unsigned long long)shared->id_base,
             (unsigned long long)++shared->next_id);
}

static struct http_exchange *exchange_create(struct http_session *s) {
    struct http_exchange *x = xcalloc(1, sizeof *x);
    x->session = s;
    http_head_init(&x->head);
    x->request.path = x->request.query = x->request.body = "";
    x->request.id = x->id;
    x->request.arrival_us = clock_us();
    make_id(x);
    return x;
}

/* The client will not see an answer. */
static void drop_exchange(struct http_session *s) {
    struct http_exchange *x = s->exchange;
    if (!x)
        return;
    s->exchange = NULL;
    if (x->phase == ANSWERING && x->watcher.on_gone)
        x->watcher.on_gone(x->watcher.ctx);
    exchange_destroy(x);
}

/* ---- reading a request ---- */

static void refuse_and_close(struct http_exchange *x, int status, const char *text) {
    x->keep_alive = false;
    http_refuse(x, status, text);
}

/* 1 to 64 printable ASCII characters that need no quoting anywhere. */
static bool is_good_id(const char *id) {
    size_t len = strlen(id);
    for (size_t i = 0; i < len; i++)
        if (id[i] <= ' ' || id[i] >= 0x7f || strchr("\"'\\", id[i]))
            return false;
    return len >= 1 && len <= MAX_REQUEST_ID;
}

static void fill_request(struct http_exchange *x) {
    const char *id = http_head_value(&x->head, "x-request-id");
    if (id && is_good_id(id))
        snprintf(x->id, sizeof x->id, "%s", id);
    x->request.method = x->head.method;
    x->request.path = x->head.path;
    x->request.query = x->head.query;
    x->request.arrival_us = clock_us();
    x->keep_alive = x->head.keep_alive;
}

static void on_request(struct http_exchange *x) {
    x->phase = ANSWERING;
    x->request.body = x->body.bytes.data ? x->body.bytes.data : "";
    x->request.body_len = x->body.bytes.len;
    if (x->refusal)
        http_refuse(x, x->refusal, x->refusal_text);
    else if (x->route)
        x->route->fn(x->route->ctx, x);
    else
        http_route_options(x);
}

/* The head is fine: decides what the request is for, and whether its body is wanted. */
static void on_head(struct http_exchange *x) {
    struct http_session *s = x->session;
    fill_request(x);
    http_route_find(x);
    enum http_body_result rc =
        http_body_begin(&x->body, &x->head, (size_t)s->shared->options->max_body_bytes);
    x->phase = READING_BODY;
    if (rc == HTTP_BODY_REFUSED)
        refuse_and_close(x, x->body.problem.status, x->body.problem.text);
    else if (rc == HTTP_BODY_COMPLETE)
        on_request(x);
    else if (x->refusal && x->head.expects_continue)
        refuse_and_close(x, x->refusal, x->refusal_text); /* the body may come or not */
    else if (x->head.expects_continue)
        buffer_puts(conn_out(s->conn), "HTTP/1.1 100 Continue\r\n\r\n");
    else
        x->body.drop = x->refusal != 0;
}

static void read_head(struct http_exchange *x, const char *data, size_t len, size_t *used) {
    bool begun = http_head_begun(&x->head);
    enum http_head_result rc = http_head_feed(&x->head, data, len, used);
    if (!begun && http_head_begun(&x->head))
        x->session->since_us = clock_us();
    if (rc == HTTP_HEAD_REFUSED)
        refuse_and_close(x, x->head.problem.status, x->head.problem.text);
    else if (rc == HTTP_HEAD_COMPLETE)
        on_head(x);
}

static void read_body(struct http_exchange *x, const char *data, size_t len, size_t *used) {
    enum http_body_result rc = http_body_feed(&x->body, data, len, used);
    if (rc == HTTP_BODY_REFUSED)
        refuse_and_close(x, x->body.problem.status, x->body.problem.text);
    else if (rc == HTTP_BODY_COMPLETE)
        on_request(x);
}

static bool is_answering(const struct http_session *s) {
    return s->exchange && s->exchange->phase == ANSWERING;
}

/* Handles what was received, as far as one request at a time allows. */
static void read_requests(struct http_session *s) {
    size_t at = 0, used;
    while (at < s->in.len && !s->closing && !is_answering(s) && !conn_congested(s->conn)) {
        if (!s->exchange)
            s->exchange = exchange_create(s);
        if (s->exchange->phase == READING_HEAD)
            read_head(s->exchange, s->in.data + at, s->in.len - at, &used);
        else
            read_body(s->exchange, s->in.data + at, s->in.len - at, &used);
        at += used;
    }
    if (s->closing || at == s->in.len)
        buffer_deinit(&s->in); /* idle connections hold nothing */
    else if (at > 0)
        buffer_consume(&s->in, at);
}

/* ---- the end ---- */

static void finish(struct http_session *s) {
    drop_exchange(s);
    s->closing = true;
    conn_finish(s->conn);
}

/* The time for draining is over: what still runs ends with an error. */
static void expire(struct http_session *s) {
    struct http_exchange *x = s->exchange;
    if (!is_answering(s)) {
        finish(s);
        return;
    }
    if (x->told_expired)
        return;
    x->told_expired = true;
    if (x->watcher.on_expired)
        x->watcher.on_expired(x->watcher.ctx);
    else if (x->begun)
        http_stream_end(x);
    else
        http_answer_error(x, ERR_SHUTTING_DOWN, NULL, error_text(ERR_SHUTTING_DOWN));
}

/* Is there any part of a request? Some clients send a blank line behind one. */
static bool has_begun(const struct http_session *s) {
    return s->exchange && http_head_begun(&s->exchange->head);
}

/* Too slow with the head or the body, or silent for too long. */
static void time_out(struct http_session *s) {
    if (has_begun(s))
        refuse_and_close(s->exchange, 408, "the request was not completed in time");
    else
        finish(s);
}

static int64_t limit_ms(const struct http_session *s) {
    const struct http_timeouts *t = &s->shared->options->http_timeouts;
    if (has_begun(s))
        return s->exchange->phase == READING_HEAD ? t->head_ms : t->body_ms;
    return s->used ? t->idle_ms : t->first_byte_ms;
}

/* ---- the connection's events ---- */

static void *on_open(void *ctx, struct conn *c) {
    struct http_session *s = xcalloc(1, sizeof *s);
    s->shared = ctx;
    s->conn = c;
    s->since_us = clock_us();
    conn_set_watch(conn_set_of(c));
    return s;
}

static void on_read(void *session, const char *data, size_t len) {
    struct http_session *s = session;
    if (s->closing)
        return;
    buffer_append(&s->in, data, len);
    if (s->exchange && s->exchange->phase == READING_BODY)
        s->since_us = clock_us();
    conn_pause(s->conn, is_answering(s) && s->in.len >= MAX_AHEAD_BYTES);
    conn_touch(s->conn);
}

static void on_eof(void *session) {
    struct http_session *s = session;
    s->eof = true;
    conn_touch(s->conn);
}

static void on_service(void *session) {
    struct http_session *s = session;
    if (s->closing)
        return;
    if (s->shared->expired) {
        expire(s);
        return;
    }
    read_requests(s);
    if (s->closing)
        return;
    bool idle = !has_begun(s) && s->in.len == 0;
    bool cut_short = s->eof && (s->exchange || idle);
    if (cut_short || (idle && s->shared->draining))
        finish(s);
    else
        conn_pause(s->conn, is_answering(s) && s->in.len >= MAX_AHEAD_BYTES);
}

static void tick_answering(struct http_session *s, int64_t now_us) {
    struct http_exchange *x = s->exchange;
    const struct http_timeouts *t = &s->shared->options->http_timeouts;
    if (s->in.len >= MAX_AHEAD_BYTES && conn_peer_has_ended(s->conn))
        finish(s); /* it is not read, so its end is not heard of otherwise */
    else if (x->streaming && now_us - x->last_piece_us >= t->ping_ms * 1000)
        http_stream_ping(x);
}

static bool on_tick(void *session, int64_t now_us) {
    struct http_session *s = session;
    if (s->closing)
        return false;
    if (is_answering(s))
        tick_answering(s, now_us);
    else if (conn_congested(s->conn))
        s->since_us = now_us; /* it is not read */
    else if (now_us - s->since_us > limit_ms(s) * 1000)
        time_out(s);
    return true;
}

static size_t held_bytes(void *session) {
    struct http_session *s = session;
    struct http_exchange *x = s->exchange;
    return s->in.len + (x ? x->head.bytes.len + x->body.bytes.len : 0);
}

static void on_close(void *session) {
    struct http_session *s = session;
    drop_exchange(s);
    buffer_deinit(&s->in);
    free(s);
}

const struct conn_handler http_session_handler = {
    .open = on_open,
    .on_read = on_read,
    .on_eof = on_eof,
    .on_service = on_service,
    .on_tick = on_tick,
    .held_bytes = held_bytes,
    .on_close = on_close,
};

/* ---- all sessions ---- */

void http_sessions_init(struct http_sessions *s, const struct server_options *options) {
    memset(s, 0, sizeof *s);
    s->options = options;
    s->date_s = -1;
    if (getrandom(&s->id_base, sizeof s->id_base, 0) != sizeof s->id_base)
        s->id_base = (uint64_t)clock_us();
}

void http_sessions_add(struct http_sessions *s, const struct http_route *routes) {
    CHECK(s->num_tables < HTTP_MAX_TABLES, "%d tables of routes", s->num_tables);
    s->tables[s->num_tables++] = routes;
}
