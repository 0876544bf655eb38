#include "tests/http_client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "host/clock.h"
#include "host/mem.h"
#include "tests/shim.h"

/* ---- answers ---- */

void http_answer_deinit(struct http_answer *a) {
    buffer_deinit(&a->head);
    buffer_deinit(&a->body);
    a->status = 0;
}

const char *http_answer_value(const struct http_answer *a, const char *name, char out[256]) {
    char key[80];
    snprintf(key, sizeof key, "\r\n%s: ", name);
    const char *at = a->head.data ? strstr(a->head.data, key) : NULL;
    out[0] = '\0';
    if (at)
        snprintf(out, 256, "%.*s", (int)strcspn(at + strlen(key), "\r"), at + strlen(key));
    return out;
}

static bool read_head(struct net_client *c, struct http_answer *a) {
    const char *line;
    do {
        if (!(line = net_client_line(c)))
            return false;
        buffer_puts(&a->head, line);
        buffer_putc(&a->head, '\n');
    } while (strcmp(line, "\r") != 0);
    buffer_putc(&a->head, '\0');
    return EXPECT_INT_EQ(sscanf(a->head.data, "HTTP/1.1 %d", &a->status), 1);
}

static bool read_chunks(struct net_client *c, struct http_answer *a) {
    unsigned long size;
    do {
        const char *line = net_client_line(c);
        if (!line)
            return false;
        size = strtoul(line, NULL, 16);
        const char *data = net_client_bytes(c, size + 2);
        if (!data || !EXPECT_INT_EQ(memcmp(data + size, "\r\n", 2), 0))
            return false;
        buffer_append(&a->body, data, size);
    } while (size > 0);
    return true;
}

static bool read_body(struct net_client *c, struct http_answer *a) {
    char value[256];
    a->chunked = *http_answer_value(a, "Transfer-Encoding", value);
    if (a->chunked)
        return read_chunks(c, a);
    if (!*http_answer_value(a, "Content-Length", value)) {
        const char *rest = a->status == 204 || a->status == 100 ? "" : net_client_rest(c);
        buffer_puts(&a->body, rest);
        return true;
    }
    size_t size = strtoul(value, NULL, 10);
    const char *data = net_client_bytes(c, size);
    if (data)
        buffer_append(&a->body, data, size);
    return data != NULL;
}

bool http_client_read(struct net_client *c, bool has_body, struct http_answer *a) {
    http_answer_deinit(a);
    bool ok = read_head(c, a) && (!has_body || read_body(c, a));
    buffer_putc(&a->body, '\0');
    return ok;
}

bool http_client_ask(struct net_client *c, const char *bytes, struct http_answer *a) {
    net_client_send(c, bytes, strlen(bytes));
    return http_client_read(c, true, a);
}

void http_expect_status(struct net_fixture *f, const char *bytes, int status) {
    struct net_client c;
    struct http_answer a = {0};
    if (!net_client_open(&c, net_fixture_http(f), 0))
        return;
    http_client_ask(&c, bytes, &a);
    if (!EXPECT_INT_EQ(a.status, status))
        FAIL("of '%.200s': %s", bytes, a.body.data);
    http_answer_deinit(&a);
    net_client_close(&c);
}

void http_expect_well(struct net_fixture *f) {
    http_expect_status(f, "GET /version HTTP/1.1\r\nHost: h\r\n\r\n", 200);
}

/* ---- routes ---- */

enum { FLOOD_BYTES = 64 * 1024 };

/* An exchange that is not answered at once. */
struct pending {
    struct http_rig *rig;
    struct http_exchange *x;
    uv_timer_t timer;
};

static void on_closed(uv_handle_t *handle) {
    free(handle->data);
}

static void drop(struct pending *p) {
    uv_close((uv_handle_t *)&p->timer, on_closed);
}

static void on_gone(void *ctx) {
    struct pending *p = ctx;
    atomic_fetch_add(&p->rig->gone, 1);
    drop(p);
}

static void on_expired(void *ctx) {
    struct pending *p = ctx;
    atomic_fetch_add(&p->rig->expired, 1);
    http_stream_write(p->x, "data: expired\n\n", 15);
    http_stream_end(p->x);
    drop(p);
}

static struct pending *wait_for(struct http_rig *rig, struct http_exchange *x, bool watch) {
    struct pending *p = xcalloc(1, sizeof *p);
    p->rig = rig;
    p->x = x;
    uv_timer_init(server_loop(rig->f.server), &p->timer);
    p->timer.data = p;
    if (watch)
        http_watch(x, &(struct http_watcher){on_gone, on_expired, p});
    return p;
}

static void echo(void *ctx, struct http_exchange *x) {
    const struct http_request *r = http_request_of(x);
    struct buffer body = {0};
    (void)ctx, (void)r;
    http_take_body(x, &body);
    http_answer(x, 200, "text/plain", body.data, body.len);
    buffer_deinit(&body);
}

static void big(void *ctx, struct http_exchange *x) {
    size_t size = strtoul(http_request_of(x)->query, NULL, 10);
    char *body = xmalloc(size + 1);
    (void)ctx;
    memset(body, 'x', size);
    http_answer(x, 200, "text/plain", body, size);
    free(body);
}

static void on_late(uv_timer_t *timer) {
    struct pending *p = timer->data;
    http_answer(p->x, 200, "text/plain", "late", 4);
    drop(p);
}

static void later(void *ctx, struct http_exchange *x) {
    struct pending *p = wait_for(ctx, x, false);
    http_watch(x, &(struct http_watcher){on_gone, NULL, p});
    uv_timer_start(&p->timer, on_late, 100, 0);
}

static void stream(void *ctx, struct http_exchange *x) {
    unsigned long pieces = strtoul(http_request_of(x)->query, NULL, 10);
    char piece[32];
    (void)ctx;
    http_will_stream(x);
    for (unsigned long i = 0; i < pieces; i++) {
        int len = snprintf(piece, sizeof piece, "data: %lu\n\n", i);
        http_stream_write(x, piece, (size_t)len);
    }
    http_stream_end(x);
}

static void hold(void *ctx, struct http_exchange *x) {
    struct http_rig *rig = ctx;
    wait_for(rig, x, true);
    http_will_stream(x);
    if (!strcmp(http_request_of(x)->path, "/hold"))
        http_stream_write(x, "data: held\n\n", 12);
    atomic_fetch_add(&rig->held, 1);
}

static void on_flood(uv_timer_t *timer) {
    static char piece[FLOOD_BYTES];
    struct pending *p = timer->data;
    atomic_fetch_add(&p->rig->flooded, 1);
    http_stream_write(p->x, piece, sizeof piece);
}

static void flood(void *ctx, struct http_exchange *x) {
    struct pending *p = wait_for(ctx, x, true);
    http_will_stream(x);
    uv_timer_start(&p->timer, on_flood, 1, 1);
}

static void tree(void *ctx, struct http_exchange *x) {
    const char *path = http_request_of(x)->path;
    (void)ctx;
    http_add_header(x, "X-Found", "yes");
    http_answer(x, 200, "text/plain", path, strlen(path));
}

static void fail(void *ctx, struct http_exchange *x) {
    const struct http_request *r = http_request_of(x);
    (void)ctx;
    for (int code = -1; code > -32; code--)
        if (strlen(error_name(code)) == r->body_len &&
            !memcmp(error_name(code), r->body, r->body_len)) {
            http_answer_error(x, code, "field", "a \"message\"");
            return;
        }
    http_answer_error(x, ERR_INTERNAL, NULL, "no such error");
}

/* ---- the server ---- */

void http_rig_init(struct http_rig *r) {
    memset(r, 0, sizeof *r);
    net_fixture_init(&r->f);
    r->f.options.http = "127.0.0.1:0";
    const struct http_route routes[] = {
        {HTTP_POST, "/echo", false, echo, r, false, false},
        {HTTP_GET, "/big", false, big, r, false, false},
        {HTTP_GET, "/later", false, later, r, false, false},
        {HTTP_GET, "/stream", false, stream, r, false, false},
        {HTTP_GET, "/hold", false, hold, r, false, false},
        {HTTP_GET, "/quiet", false, hold, r, false, false},
        {HTTP_GET, "/flood", false, flood, r, false, false},
        {HTTP_GET, "/tree/*", false, tree, r, false, false},
        {HTTP_GET, "/open", true, tree, r, false, false},
        {HTTP_POST, "/error", false, fail, r, false, false},
    };
    memcpy(r->routes, routes, sizeof routes);
    r->f.routes = r->routes;
}

bool http_rig_start(struct http_rig *r, struct net_client *c) {
    return EXPECT_TRUE(net_fixture_start(&r->f)) && net_client_open(c, net_fixture_http(&r->f), 0);
}

void http_rig_stop(struct http_rig *r) {
    net_fixture_stop(&r->f);
}

bool http_rig_wait(atomic_int *counter, int value) {
    int64_t until_us = clock_us() + 20 * 1000000;
    while (atomic_load(counter) != value && clock_us() < until_us)
        usleep(2000);
    return EXPECT_INT_EQ(atomic_load(counter), value);
}
