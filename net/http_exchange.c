/* Exchanges: how a request is answered. See http.h and http_session.h. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "host/clock.h"
#include "host/log.h"
#include "net/http_error.h"
#include "net/http_internal.h"
#include "net/request_log.h"

const struct http_request *http_request_of(const struct http_exchange *x) {
    return &x->request;
}

const char *http_header(const struct http_exchange *x, const char *name) {
    return http_head_value(&x->head, name);
}

void http_take_body(struct http_exchange *x, struct buffer *out) {
    buffer_deinit(out);
    *out = x->body.bytes;
    memset(&x->body.bytes, 0, sizeof x->body.bytes);
    x->request.body = "";
    x->request.body_len = 0;
}

void http_watch(struct http_exchange *x, const struct http_watcher *w) {
    x->watcher = *w;
}

void http_add_header(struct http_exchange *x, const char *name, const char *value) {
    buffer_printf(&x->headers, "%s: %s\r\n", name, value);
}

/* ---- the head of the answer ---- */

static const char *date(struct http_sessions *s) {
    time_t now = time(NULL);
    struct tm tm;
    if (now != (time_t)s->date_s && gmtime_r(&now, &tm)) {
        s->date_s = now;
        strftime(s->date, sizeof s->date, "%a, %d %b %Y %H:%M:%S GMT", &tm);
    }
    return s->date;
}

static void put_cors(const struct http_exchange *x, struct buffer *out) {
    const char *origin = x->session->shared->options->cors_origin;
    if (!origin)
        return;
    if (http_cors_allows(x))
        buffer_printf(out,
                      "Access-Control-Allow-Origin: %s\r\n"
                      "Access-Control-Expose-Headers: x-request-id, Retry-After\r\n",
                      origin);
    if (strcmp(origin, "*") != 0)
        buffer_puts(out, "Vary: Origin\r\n");
}

/* Everything but what says how long the body is, and the blank line. */
static void put_head(struct http_exchange *x, int status, const char *content_type,
                     struct buffer *out) {
    x->keep_alive = x->keep_alive && !x->session->shared->draining;
    buffer_printf(out,
                  "HTTP/1.1 %d %s\r\n"
                  "Date: %s\r\n"
                  "Server: moeserve\r\n"
                  "x-request-id: %s\r\n",
                  status, http_status_text(status), date(x->session->shared), x->id);
    if (!x->keep_alive)
        buffer_puts(out, "Connection: close\r\n");
    put_cors(x, out);
    buffer_append(out, x->headers.data, x->headers.len);
    if (content_type)
        buffer_printf(out, "Content-Type: %s\r\n", content_type);
    http_counters_add(&x->session->shared->counters, x->route ? x->route->path : NULL, status);
    log_request(LOG_DEBUG, x->id, "http: %d of %s", status, x->request.path);
}

/* ---- whole ---- */

void http_answer(struct http_exchange *x, int status, const char *content_type, const char *body,
                 size_t len) {
    struct buffer *out = conn_out(x->session->conn);
    put_head(x, status, content_type, out);
    if (status != 204)
        buffer_printf(out, "Content-Length: %zu\r\n", len);
    buffer_puts(out, "\r\n");
    if (x->request.method != HTTP_HEAD)
        buffer_append(out, body, len);
    http_exchange_end(x);
}

static void answer_envelope(struct http_exchange *x, const struct http_error *e, const char *param,
                            const char *message) {
    struct buffer body = {0};
    http_error_body(&body, e, param, message);
    http_answer(x, e->status, "application/json", body.data, body.len);
    buffer_deinit(&body);
}

/* A model that does not exist is more than a path that does not. */
static struct http_error error_of(int code, const char *param) {
    struct http_error e = http_error_of(code);
    if (code == ERR_NOT_FOUND && param && !strcmp(param, "model"))
        e.code = "model_not_found";
    return e;
}

void http_put_error(struct buffer *out, int code, const char *param, const char *message) {
    struct http_error e = error_of(code, param);
    http_error_body(out, &e, param, message);
}

void http_answer_error(struct http_exchange *x, int code, const char *param, const char *message) {
    struct http_error e = error_of(code, param);
    if (e.status == 401)
        http_add_header(x, "WWW-Authenticate", "Bearer");
    if (e.status == 503)
        http_add_header(x, "Retry-After", code == ERR_LOADING ? "5" : "1");
    answer_envelope(x, &e, param, message);
}

static void refuse_method(struct http_exchange *x, const struct http_error *e) {
    struct buffer methods = {0};
    http_route_methods(x->session->shared, x->request.path, &methods);
    buffer_putc(&methods, '\0');
    http_add_header(x, "Allow", methods.data);
    answer_envelope(x, e, NULL, "this path has no such method");
    buffer_deinit(&methods);
}

static void refuse_encoding(struct http_exchange *x, const struct http_error *e) {
    http_add_header(x, "Accept-Encoding", "identity");
    answer_envelope(x, e, NULL, "the body has a Content-Encoding: only plain bodies are read here");
}

/* There is no model yet, or none any more. */
static int unavailable_code(const struct http_exchange *x) {
    return x->session->shared->draining ? ERR_SHUTTING_DOWN : ERR_LOADING;
}

static void refuse_unavailable(struct http_exchange *x) {
    int code = unavailable_code(x);
    http_answer_error(x, code, NULL, error_text(code));
}

static void log_refusal(const struct http_exchange *x, int status) {
    const char *outcome = http_error_of_status(status).code;
    if (status == 401)
        outcome = error_name(ERR_UNAUTHORIZED);
    else if (status == 503)
        outcome = error_name(unavailable_code(x));
    request_log_end(&(struct ended_request){
        .id = x->id,
        .key = x->request.key,
        .outcome = outcome,
        .status = status,
        .arrival_us = x->request.arrival_us,
    });
}

void http_refuse(struct http_exchange *x, int status, const char *text) {
    struct http_error e = http_error_of_status(status);
    if (x->route && x->route->logged)
        log_refusal(x, status);
    if (status == 401)
        http_answer_error(x, ERR_UNAUTHORIZED, NULL,
                          "a valid API key is needed: Authorization: Bearer KEY");
    else if (status == 405)
        refuse_method(x, &e);
    else if (status == 415)
        refuse_encoding(x, &e);
    else if (status == 503)
        refuse_unavailable(x);
    else
        answer_envelope(x, &e, NULL, text ? text : "there is nothing at this path");
}

/* ---- in pieces ---- */

void http_will_stream(struct http_exchange *x) {
    x->streaming = true;
    x->last_piece_us = clock_us();
}

bool http_stream_begun(const struct http_exchange *x) {
    return x->begun;
}

/* HTTP/1.0 has no chunks: there the end of the connection is the end of the stream. */
static bool in_chunks(const struct http_exchange *x) {
    return x->head.version_minor == 1;
}

static void begin_stream(struct http_exchange *x) {
    struct buffer *out = conn_out(x->session->conn);
    x->begun = true;
    put_head(x, 200, "text/event-stream", out);
    buffer_puts(out, "Cache-Control: no-store\r\nX-Accel-Buffering: no\r\n");
    buffer_puts(out, in_chunks(x) ? "Transfer-Encoding: chunked\r\n\r\n" : "\r\n");
}

void http_stream_write(struct http_exchange *x, const char *data, size_t len) {
    if (!x->begun)
        begin_stream(x);
    x->last_piece_us = clock_us();
    conn_touch(x->session->conn);
    if (len == 0 || x->request.method == HTTP_HEAD)
        return;
    struct buffer *out = conn_out(x->session->conn);
    if (in_chunks(x))
        buffer_printf(out, "%zx\r\n", len);
    buffer_append(out, data, len);
    if (in_chunks(x))
        buffer_puts(out, "\r\n");
}

void http_stream_end(struct http_exchange *x) {
    if (!x->begun)
        begin_stream(x);
    if (in_chunks(x) && x->request.method != HTTP_HEAD)
        buffer_puts(conn_out(x->session->conn), "0\r\n\r\n");
    http_exchange_end(x);
}

void http_stream_ping(struct http_exchange *x) {
    static const char comment[] = ": ping\n\n";
    http_stream_write(x, comment, sizeof comment - 1);
}
