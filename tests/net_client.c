#include "tests/net_client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/log.h"
#include "tests/shim.h"

enum { WAIT_MS = 100 * 1000 };

bool net_client_open(struct net_client *c, const char *address, int receive_bytes) {
    struct sockaddr_in a = {.sin_family = AF_INET};
    int one = 1;
    memset(c, 0, sizeof *c);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_bytes > 0)
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    a.sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(c->fd, (struct sockaddr *)&a, sizeof a) == 0)
        return true;
    FAIL("connect to %s: %s", address, strerror(errno));
    return false;
}

void net_client_close(struct net_client *c) {
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    buffer_deinit(&c->in);
    buffer_deinit(&c->line);
}

bool net_client_send(struct net_client *c, const void *data, size_t len) {
    const char *p = data;
    while (len > 0) {
        struct pollfd wait = {.fd = c->fd, .events = POLLOUT};
        if (poll(&wait, 1, WAIT_MS) != 1)
            return false;
        ssize_t n = send(c->fd, p, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return false;
        p += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    return true;
}

bool net_client_puts(struct net_client *c, const char *line) {
    return net_client_send(c, line, strlen(line)) && net_client_send(c, "\n", 1);
}

void net_client_shut(struct net_client *c) {
    shutdown(c->fd, SHUT_WR);
}

/* Receives a piece: > 0 bytes, 0 at the end, -1 when nothing came in time. */
static int receive(struct net_client *c, int timeout_ms) {
    struct pollfd wait = {.fd = c->fd, .events = POLLIN};
    if (poll(&wait, 1, timeout_ms) != 1)
        return -1;
    buffer_reserve(&c->in, 1 << 16);
    ssize_t n = recv(c->fd, c->in.data + c->in.len, 1 << 16, 0);
    if (n <= 0)
        return 0;
    c->in.len += (size_t)n;
    return (int)n;
}

const char *net_client_line(struct net_client *c) {
    char *lf;
    while (!c->in.data || !(lf = memchr(c->in.data, '\n', c->in.len))) {
        int n = receive(c, WAIT_MS);
        if (n < 0)
            FAIL("no line within %d s; so far '%.*s'", WAIT_MS / 1000, (int)c->in.len, c->in.data);
        if (n <= 0)
            return NULL;
    }
    size_t len = (size_t)(lf - c->in.data);
    buffer_clear(&c->line);
    buffer_append(&c->line, c->in.data, len);
    buffer_putc(&c->line, '\0');
    buffer_consume(&c->in, len + 1);
    return c->line.data;
}

json_t *net_client_json(struct net_client *c) {
    const char *line = net_client_line(c);
    json_error_t e;
    if (!line)
        return NULL;
    json_t *doc = json_loads(line, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    if (!doc)
        FAIL("not JSON: %s (%s)", line, e.text);
    return doc;
}

const char *net_client_bytes(struct net_client *c, size_t n) {
    while (c->in.len < n) {
        int got = receive(c, WAIT_MS);
        if (got < 0)
            FAIL("no %zu bytes within %d s, but %zu", n, WAIT_MS / 1000, c->in.len);
        if (got <= 0)
            return NULL;
    }
    buffer_clear(&c->line);
    buffer_append(&c->line, c->in.data, n);
    buffer_putc(&c->line, '\0');
    buffer_consume(&c->in, n);
    return c->line.data;
}

const char *net_client_rest(struct net_client *c) {
    int n;
    while ((n = receive(c, WAIT_MS)) > 0)
        continue;
    if (n < 0)
        FAIL("the connection was not closed within %d s", WAIT_MS / 1000);
    buffer_clear(&c->line);
    buffer_append(&c->line, c->in.data, c->in.len);
    buffer_putc(&c->line, '\0');
    buffer_clear(&c->in);
    return c->line.data;
}

bool net_client_ended(struct net_client *c, int timeout_ms) {
    int64_t until_us = clock_us() + (int64_t)timeout_ms * 1000;
    int n = 1;
    while (n > 0 && clock_us() < until_us) {
        n = receive(c, (int)((until_us - clock_us()) / 1000) + 1);
        buffer_clear(&c->in);
    }
    return n == 0;
}

json_t *net_client_until_done(struct net_client *c, const char *id, struct buffer *text) {
    if (text)
        buffer_clear(text);
    json_t *wanted = json_loads(id, JSON_DECODE_ANY, NULL), *line;
    while ((line = net_client_json(c))) {
        bool ours = json_equal(json_object_get(line, "id"), wanted);
        bool last = json_object_get(line, "done") || json_object_get(line, "error");
        if (ours && text && !last) {
            json_t *piece = json_object_get(line, "text");
            buffer_append(text, json_string_value(piece), json_string_length(piece));
        }
        if (ours && last)
            break;
        json_decref(line);
    }
    if (text)
        buffer_putc(text, '\0');
    json_decref(wanted);
    if (!line)
        FAIL("the connection ended before %s was done", id);
    return line;
}

const char *net_error_code(const json_t *line) {
    const char *code = json_string_value(json_object_get(json_object_get(line, "error"), "code"));
    return code ? code : "";
}

bool net_client_ping(struct net_client *c) {
    net_client_puts(c, "{\"op\":\"ping\",\"id\":\"ping\"}");
    json_t *line = net_client_json(c);
    const char *id = json_string_value(json_object_get(line, "id"));
    bool ok = EXPECT_TRUE(id && !strcmp(id, "ping"));
    json_decref(line);
    return ok;
}

int64_t net_client_stat(struct net_client *c, const char *name) {
    net_client_puts(c, "{\"op\":\"stats\",\"id\":\"stats\"}");
    json_t *line = net_client_json(c);
    int64_t v = json_integer_value(json_object_get(line, name));
    json_decref(line);
    return v;
}

/* ---- server ---- */

void net_fixture_init(struct net_fixture *f) {
    memset(f, 0, sizeof *f);
    sem_init(&f->ready, 0, 0);
    log_set_level(LOG_ERROR); /* refusals and cut-offs are what the tests are about */
    server_options_default(&f->options);
    f->options.listen = "127.0.0.1:0";
    f->options.http = "off";
    f->options.defaults.sampling.temperature = 0;
    f->options.defaults.max_tokens = 16;
    engine_options_default(&f->engine_options);
    f->engine_options.model = MOESERVE_DEMO_MODEL;
    f->engine_options.threads = 2;
    f->engine_options.max_num_seqs = 16;
}

static void on_ready(void *ctx, const char *address) {
    struct net_fixture *f = ctx;
    (void)address;
    sem_post(&f->ready);
}

static void *run(void *arg) {
    struct net_fixture *f = arg;
    struct error e = {0};
    f->status = server_run(f->server, f->dispatch, &e);
    sem_post(&f->ready);
    return NULL;
}

bool net_fixture_start(struct net_fixture *f) {
    struct error e = {0};
    f->options.on_ready = on_ready;
    f->options.on_ready_ctx = f;
    int rc = server_create(&f->options, &f->server, &e);
    if (rc == 0 && f->routes)
        server_add_routes(f->server, f->routes);
    if (rc == 0)
        rc = dispatch_create(&f->engine_options, server_wake, f->server, &f->dispatch, &e);
    if (rc == 0)
        f->running = pthread_create(&f->thread, NULL, run, f) == 0;
    if (rc != 0)
        FAIL("start: %s", e.text);
    while (f->running && sem_wait(&f->ready) != 0)
        continue;
    return f->running;
}

const char *net_fixture_address(const struct net_fixture *f) {
    return server_address(f->server);
}

const char *net_fixture_http(const struct net_fixture *f) {
    return server_http_address(f->server);
}

void net_fixture_stop(struct net_fixture *f) {
    if (f->running) {
        server_stop(f->server);
        pthread_join(f->thread, NULL);
    }
    dispatch_destroy(f->dispatch);
    server_destroy(f->server);
    f->dispatch = NULL;
    f->server = NULL;
    f->running = false;
    sem_destroy(&f->ready);
    log_set_level(LOG_INFO);
}

void net_fixture_stats(struct net_fixture *f, struct engine_stats *out) {
    struct dispatch_stats stats;
    dispatch_stats(f->dispatch, &stats);
    *out = stats.total;
}

bool net_fixture_is_quiet(struct net_fixture *f) {
    struct engine_stats s;
    int64_t until_us = clock_us() + (int64_t)WAIT_MS * 1000;
    do {
        net_fixture_stats(f, &s);
        if (s.running == 0 && s.waiting == 0 && s.kv_blocks_used == s.kv_blocks_cached)
            return true;
        usleep(5000);
    } while (clock_us() < until_us);
    FAIL("%d running, %d waiting, %d KV blocks used, %d cached", s.running, s.waiting,
         s.kv_blocks_used, s.kv_blocks_cached);
    return false;
}
