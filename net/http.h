/* http: one HTTP request and its answer, as the routes see them.
 *
 * A route is a method and a path with a function. The session (http_session.h) reads the request
 * with its body, checks the key, finds the route and calls it; from then on the exchange is the
 * route's to answer, at once or later, whole or in pieces:
 *
 *   whole       http_answer(x, 200, "application/json", body, len)
 *   in pieces   http_will_stream(x), any number of http_stream_write(x, ...), http_stream_end(x)
 *
 * A stream is Server-Sent Events (text/event-stream). Its head, with status 200, goes out with the
 * first piece, so an error may still be answered whole instead as long as http_stream_begun says
 * no. Where no piece comes for HTTP_PING_S seconds the session sends a comment (and the head, if
 * need be), so that proxies keep the connection.
 *
 * A client that ends its side of the connection before its answer is complete is taken for gone
 * (on_gone). Requests of one connection are answered in their order, one at a time. After
 * http_answer or http_stream_end the exchange is gone. Everything runs on the loop's thread; a
 * route that works in the pool takes the body with it (http_take_body) and comes back to the loop
 * before it answers.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/buffer.h"

#ifdef __cplusplus
extern "C" {
#endif

struct api_key;       /* keys.h */
struct http_exchange; /* opaque, owned by its session */

enum { HTTP_PING_S = 15 };

enum http_method { HTTP_GET, HTTP_HEAD, HTTP_POST, HTTP_OPTIONS, HTTP_OTHER };

/* Borrowed, valid until the exchange is gone. */
struct http_request {
    enum http_method method;
    const char *path;  /* without the query, as it came */
    const char *query; /* behind '?', "" without one */
    const char *id;    /* of x-request-id, or one that was made; it is sent back, and logged */
    const char *body;  /* of any bytes, not NUL-terminated */
    size_t body_len;
    struct api_key *key; /* whose request it is; NULL when the server has no keys */
    int64_t arrival_us;  /* clock_us() when its head was complete */
};

const struct http_request *http_request_of(const struct http_exchange *x);
/* Value of a header, names in any case; NULL without it. */
const char *http_header(const struct http_exchange *x, const char *name);
/* Moves the body's memory to the caller; the request has none any more. */
void http_take_body(struct http_exchange *x, struct buffer *out);

/* What happens to an exchange that is not answered yet. Either may be NULL. */
struct http_watcher {
    /* The client is gone: the exchange is, when this returns. */
    void (*on_gone)(void *ctx);
    /* The server's time to drain is over: answer now (http_answer 503, or a last event and
     * http_stream_end). */
    void (*on_expired)(void *ctx);
    void *ctx;
};
void http_watch(struct http_exchange *x, const struct http_watcher *w);

/* Adds a header to the answer, before its head is sent. Both are valid header text. */
void http_add_header(struct http_exchange *x, const char *name, const char *value);
/* The whole answer. For HEAD the body is left out, its length stays. */
void http_answer(struct http_exchange *x, int status, const char *content_type, const char *body,
                 size_t len);

void http_will_stream(struct http_exchange *x);
bool http_stream_begun(const struct http_exchange *x);
void http_stream_write(struct http_exchange *x, const char *data, size_t len);
void http_stream_end(struct http_exchange *x);

/* An error in OpenAI's envelope, {"error":{"message","type","param","code"}}, as a whole answer.
 * `code` is an ERR_*, from which status, type and code follow (http_error.h), and of 503 and 401
 * the headers that belong to them; param may be NULL. */
void http_answer_error(struct http_exchange *x, int code, const char *param, const char *message);

/* The envelope alone, for streams. */
void http_put_error(struct buffer *out, int code, const char *param, const char *message);

typedef void (*http_route_fn)(void *ctx, struct http_exchange *x);

/* A table of these ends with one whose path is NULL. HEAD goes to the routes of GET. A path that
 * ends in an asterisk stands for all that have something in its place. */
struct http_route {
    enum http_method method;
    const char *path;
    bool open; /* needs no key */
    http_route_fn fn;
    void *ctx;
    bool always; /* is called while the model loads and while the server drains, too */
    /* Its requests have lines in the log (request_log.h): the session's where it refuses one in
     * place of the route, else the route's own. */
    bool logged;
};

#ifdef __cplusplus
}
#endif
