/* Routes: which function a request is for, and whether the client may call it. See
 * http_session.h. */
#include <string.h>
#include <strings.h>

#include "net/http_internal.h"
#include "net/keys.h"

/* "/v1/models/" followed by an asterisk stands for everything below. */
static bool path_matches(const char *pattern, const char *path) {
    size_t len = strlen(pattern);
    if (len > 1 && pattern[len - 1] == '*')
        return !strncmp(pattern, path, len - 1) && path[len - 1] != '\0';
    return !strcmp(pattern, path);
}

/* The next route of this path behind `after`, over all tables; NULL: none. */
static const struct http_route *next_route(const struct http_sessions *s, const char *path,
                                           const struct http_route *after) {
    bool seen = after == NULL;
    for (int32_t t = 0; t < s->num_tables; t++) {
        for (const struct http_route *r = s->tables[t]; r->path; r++) {
            if (seen && path_matches(r->path, path))
                return r;
            seen = seen || r == after;
        }
    }
    return NULL;
}

void http_route_methods(const struct http_sessions *s, const char *path, struct buffer *out) {
    static const struct {
        enum http_method method;
        const char *names;
    } methods[] = {{HTTP_GET, "GET, HEAD, "}, {HTTP_POST, "POST, "}};
    for (size_t m = 0; m < sizeof methods / sizeof *methods; m++) {
        const struct http_route *r = NULL;
        while ((r = next_route(s, path, r)) && r->method != methods[m].method)
            continue;
        if (r)
            buffer_puts(out, methods[m].names);
    }
    buffer_puts(out, "OPTIONS");
}

/* ---- keys ---- */

/* The key that the client shows; NULL: none. */
static const char *shown_key(const struct http_exchange *x) {
    static const char scheme[] = "Bearer ";
    const char *value = http_head_value(&x->head, "authorization");
    if (value) {
        if (strncasecmp(value, scheme, sizeof scheme - 1) != 0)
            return NULL;
        return value + sizeof scheme - 1 + strspn(value + sizeof scheme - 1, " ");
    }
    value = http_head_value(&x->head, "api-key");
    return value ? value : http_head_value(&x->head, "x-api-key");
}

/* Finds the request's key. False when it needs one and has none that is valid. */
static bool find_key(struct http_exchange *x, bool open) {
    struct keys *keys = x->session->shared->options->keys;
    if (!keys || !keys_required(keys))
        return true;
    const char *text = shown_key(x);
    if (text)
        x->request.key = keys_find(keys, text, strlen(text));
    return x->request.key || open;
}

/* ---- finding ---- */

/* A body that is compressed would be taken for malformed JSON. */
static bool is_encoded(const struct http_exchange *x) {
    const char *coding = http_head_value(&x->head, "content-encoding");
    return coding && *coding && strcasecmp(coding, "identity") != 0;
}

static int refusal(struct http_exchange *x, const struct http_route *any,
                   const struct http_route *r) {
    const struct http_sessions *s = x->session->shared;
    if (!any)
        return 404;
    if (!r)
        return 405;
    if (!r->open && (x->refusal_text = http_foreign_page(x)))
        return 403;
    if (!find_key(x, r->open))
        return 401;
    if (r->method == HTTP_POST && is_encoded(x))
        return 415;
    return !r->always && (s->draining || !s->dispatch) ? 503 : 0;
}

void http_route_find(struct http_exchange *x) {
    const struct http_sessions *s = x->session->shared;
    enum http_method method = x->request.method == HTTP_HEAD ? HTTP_GET : x->request.method;
    const struct http_route *any = next_route(s, x->request.path, NULL), *r = any;
    if (method == HTTP_OPTIONS && (any || !strcmp(x->request.path, "*")))
        return;
    while (r && r->method != method)
        r = next_route(s, x->request.path, r);
    x->refusal = refusal(x, any, r);
    x->route = r;
}

/* ---- OPTIONS ---- */

void http_route_options(struct http_exchange *x) {
    struct buffer methods = {0};
    const char *wanted = http_head_value(&x->head, "access-control-request-headers");
    http_route_methods(x->session->shared, x->request.path, &methods);
    buffer_putc(&methods, '\0');
    http_add_header(x, "Allow", methods.data);
    if (http_cors_allows(x) && http_head_value(&x->head, "access-control-request-method")) {
        http_add_header(x, "Access-Control-Allow-Methods", methods.data);
        if (wanted)
            http_add_header(x, "Access-Control-Allow-Headers", wanted);
        http_add_header(x, "Access-Control-Max-Age", "600");
    }
    http_answer(x, 204, NULL, NULL, 0);
    buffer_deinit(&methods);
}
