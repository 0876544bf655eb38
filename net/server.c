/* server: see server.h.
 *
 * Threads
 *   loop thread (whoever calls server_run): owns every handle, connection, session and client
 *     request, and is the one draining thread of the dispatch.
 *   engine threads: call server_wake, which is uv_async_send and nothing else.
 *   libuv's worker pool: line_job_run on one long line; it sees the line, the job and the
 *     immutable tokenizer.
 *   any thread: server_stop, which sets an atomic flag and wakes the loop.
 *
 * States: bound (server_create) -> serving -> draining (stop or first signal: no listener, idle
 * connections closed, requests refused) -> expired (drain_timeout_s later: what still runs ends
 * with shutting_down) -> aborted (a second later: what is still unsent is lost) -> done. Each state
 * is left early when the last connection is gone.
 */
#include "server.h"

#include <netdb.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <uv.h>

#include "host/buffer.h"
#include "host/log.h"
#include "host/mem.h"
#include "net/conn.h"
#include "net/line_answer.h"
#include "net/line_session.h"

enum {
    PAUSE_UNSENT_BYTES = 256 * 1024, /* a client with more unsent is not read any more */
    LISTEN_BACKLOG = 1024,
    LAST_WORDS_MS = 1000, /* for clients to take their error lines after the drain timeout */
    FAILURE_DRAIN_S = 1,  /* for the same when the engine has failed */
    SPARE_FILES = 64,     /* descriptors for everything that is not a client */
};

struct server {
    struct server_options options;
    struct dispatch *dispatch; /* borrowed, while running */
    uv_loop_t loop;
    uv_tcp_t listener;
    uv_async_t wake; /* engine events, or stop was asked for */
    uv_timer_t drain_timer;
    uv_signal_t sigterm, sigint;
    struct conn_set conns;
    struct line_sessions sessions;
    struct buffer refusal; /* the line that a connection too many gets */
    char address[300];
    atomic_bool stop_asked;
    bool running;         /* between server_run's set-up and its end */
    struct error failure; /* the engine's, that ended the server; code 0: none */
};

void server_options_default(struct server_options *o) {
    memset(o, 0, sizeof *o);
    o->listen = "127.0.0.1:7070";
    o->max_line_bytes = 4 << 20;
    o->max_connections = 10000;
    o->max_requests_per_connection = 256;
    o->max_unsent_bytes = 8 << 20;
    o->max_buffered_bytes = 1 << 30;
    o->line_timeout_s = 120;
    o->drain_timeout_s = 30;
    request_params_default(&o->defaults);
}

/* ---- address ---- */

int server_parse_address(const char *text, char host[256], char port[6], struct error *error) {
    const char *colon = strrchr(text, ':');
    const char *from = text, *to = colon;
    char *end;
    if (!colon)
        return error_set(error, ERR_CONFIG, "'%.100s' is not HOST:PORT", text);
    if (*from == '[' && to > from && to[-1] == ']') {
        from++;
        to--;
    } else if (memchr(from, ':', (size_t)(to - from))) {
        return error_set(error, ERR_CONFIG, "'%.100s': write an IPv6 address as [ADDRESS]:PORT",
                         text);
    }
    unsigned long number = strtoul(colon + 1, &end, 10);
    if (colon[1] < '0' || colon[1] > '9' || *end || number > 65535)
        return error_set(error, ERR_CONFIG, "'%.100s': the port must be 0 to 65535", text);
    if (to - from > 255)
        return error_set(error, ERR_CONFIG, "the host name is longer than 255 bytes");
    snprintf(host, 256, "%.*s", (int)(to - from), from);
    snprintf(port, 6, "%u", (unsigned)number & 0xffff);
    return 0;
}

static int resolve(struct server *s, struct sockaddr_storage *out, struct error *error) {
    char host[256], port[6];
    int rc = server_parse_address(s->options.listen, host, port, error);
    if (rc != 0)
        return rc;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list = NULL;
    int any = *host == '\0' || !strcmp(host, "*");
    int gai = getaddrinfo(any ? "0.0.0.0" : host, port, &hints, &list);
    if (gai != 0)
        return error_set(error, ERR_CONFIG, "--listen %s: %s", s->options.listen,
                         gai_strerror(gai));
    memcpy(out, list->ai_addr, list->ai_addrlen);
    freeaddrinfo(list);
    return 0;
}

/* Writes the address that the socket really has into s->address. */
static int name_address(struct server *s) {
    struct sockaddr_storage a = {0};
    int len = sizeof a;
    char ip[INET6_ADDRSTRLEN];
    int rc = uv_tcp_getsockname(&s->listener, (struct sockaddr *)&a, &len);
    if (rc != 0)
        return rc;
    if (a.ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&a;
        uv_ip6_name(in6, ip, sizeof ip);
        snprintf(s->address, sizeof s->address, "[%s]:%d", ip, ntohs(in6->sin6_port));
    } else {
        const struct sockaddr_in *in4 = (const struct sockaddr_in *)&a;
        uv_ip4_name(in4, ip, sizeof ip);
        snprintf(s->address, sizeof s->address, "%s:%d", ip, ntohs(in4->sin_port));
    }
    return 0;
}

static void warn_if_open_to_all(const struct sockaddr_storage *a) {
    bool loopback;
    if (a->ss_family == AF_INET6)
        loopback = IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr);
    else
        loopback = ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24 == 127;
    if (!loopback)
        log_warn("the line protocol has no authentication: everybody who reaches this address may "
                 "use it (--listen)");
}

static int bind_listener(struct server *s, struct error *error) {
    struct sockaddr_storage a = {0};
    int rc = resolve(s, &a, error);
    if (rc != 0)
        return rc;
    rc = uv_tcp_bind(&s->listener, (struct sockaddr *)&a, 0);
    if (rc == 0)
        rc = name_address(s);
    if (rc != 0)
        return error_set(error, ERR_IO, "cannot listen on %s: %s (choose another with --listen)",
                         s->options.listen, uv_strerror(rc));
    warn_if_open_to_all(&a);
    return 0;
}

/* ---- end ---- */

static void on_drained(void *ctx) {
    struct server *s = ctx;
    if (s->sessions.draining)
        uv_stop(&s->loop);
}

static void on_last_words_over(uv_timer_t *timer) {
    struct server *s = timer->data;
    conn_set_abort_all(&s->conns);
}

static void on_drain_timeout(uv_timer_t *timer) {
    struct server *s = timer->data;
    log_warn("%d connections were not finished within %d s (--drain-timeout)", s->conns.count,
             s->options.drain_timeout_s);
    s->sessions.expired = true;
    conn_set_service_all(&s->conns);
    uv_timer_start(&s->drain_timer, on_last_words_over, LAST_WORDS_MS, 0);
}

static void start_draining(struct server *s) {
    if (s->sessions.draining)
        return;
    log_info("shutting down: %d connections, running requests may take %d s", s->conns.count,
             s->options.drain_timeout_s);
    s->sessions.draining = true;
    s->conns.hurry = true;
    dispatch_stop_accepting(s->dispatch);
    uv_close((uv_handle_t *)&s->listener, NULL);
    conn_set_service_all(&s->conns);
    uv_timer_start(&s->drain_timer, on_drain_timeout, (uint64_t)s->options.drain_timeout_s * 1000,
                   0);
    if (s->conns.count == 0)
        uv_stop(&s->loop);
}

static void on_signal(uv_signal_t *handle, int signum) {
    struct server *s = handle->data;
    if (s->sessions.draining) {
        log_warn("second signal: leaving at once");
        _exit(128 + signum);
    }
    start_draining(s);
}

/* ---- run ---- */

static void on_wake(uv_async_t *handle) {
    struct server *s = handle->data;
    if (!s->running)
        return;
    dispatch_drain(s->dispatch, line_session_on_event, NULL);
    if (!s->failure.code && dispatch_failure(s->dispatch, &s->failure)) {
        s->options.drain_timeout_s = FAILURE_DRAIN_S;
        start_draining(s);
    }
    if (atomic_load(&s->stop_asked))
        start_draining(s);
}

static void on_connection(uv_stream_t *listener, int status) {
    struct server *s = listener->data;
    if (status < 0)
        log_warn("accept: %s", uv_strerror(status));
    else
        conn_accept(&s->conns, listener, &s->refusal);
}

/* One descriptor a client: asks the system for as many as the limit on connections promises. */
static void raise_file_limit(struct server *s) {
    struct rlimit r;
    rlim_t need = (rlim_t)s->options.max_connections + SPARE_FILES;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0 || r.rlim_cur >= need)
        return;
    r.rlim_cur = r.rlim_max < need ? r.rlim_max : need;
    if (setrlimit(RLIMIT_NOFILE, &r) != 0 || r.rlim_cur < need)
        log_warn("only %llu files may be open: fewer than the %d clients of --max-connections",
                 (unsigned long long)r.rlim_cur, s->options.max_connections);
}

static void set_up(struct server *s) {
    line_sessions_init(&s->sessions, &s->options, s->dispatch);
    conn_set_init(&s->conns);
    uv_timer_init(&s->loop, &s->drain_timer);
    s->drain_timer.data = s;
    uv_signal_init(&s->loop, &s->sigterm);
    uv_signal_init(&s->loop, &s->sigint);
    s->sigterm.data = s->sigint.data = s;
    if (s->options.handle_signals) {
        uv_signal_start(&s->sigterm, on_signal, SIGTERM);
        uv_signal_start(&s->sigint, on_signal, SIGINT);
    }
    s->running = true;
}

static void tear_down(struct server *s) {
    s->running = false;
    uv_close((uv_handle_t *)&s->drain_timer, NULL);
    uv_close((uv_handle_t *)&s->sigterm, NULL);
    uv_close((uv_handle_t *)&s->sigint, NULL);
    conn_set_close(&s->conns);
    /* Until nothing is left but the wake handle: a line may still be in the worker pool. */
    uv_unref((uv_handle_t *)&s->wake);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    uv_ref((uv_handle_t *)&s->wake);
    line_sessions_deinit(&s->sessions);
}

int server_run(struct server *s, struct dispatch *dispatch, struct error *error) {
    s->dispatch = dispatch;
    raise_file_limit(s);
    int rc = uv_listen((uv_stream_t *)&s->listener, LISTEN_BACKLOG, on_connection);
    if (rc != 0)
        return error_set(error, ERR_IO, "cannot listen on %s: %s (choose another with --listen)",
                         s->address, uv_strerror(rc));
    set_up(s);
    if (s->options.on_ready)
        s->options.on_ready(s->options.on_ready_ctx, s->address);
    if (atomic_load(&s->stop_asked))
        start_draining(s);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    tear_down(s);
    if (s->failure.code)
        return error_set(error, s->failure.code, "%s", s->failure.text);
    return 0;
}

void server_wake(void *server) {
    struct server *s = server;
    uv_async_send(&s->wake);
}

void server_stop(struct server *s) {
    atomic_store(&s->stop_asked, true);
    uv_async_send(&s->wake);
}

const char *server_address(const struct server *s) {
    return s->address;
}

/* ---- create and destroy ---- */

static void prepare_conns(struct server *s) {
    const struct server_options *o = &s->options;
    s->conns.loop = &s->loop;
    s->conns.handler = &line_session_handler;
    s->conns.handler_ctx = &s->sessions;
    s->conns.on_empty = on_drained;
    s->conns.on_empty_ctx = s;
    s->conns.limits.max_connections = o->max_connections;
    s->conns.limits.max_unsent_bytes = (size_t)o->max_unsent_bytes;
    s->conns.limits.pause_unsent_bytes = PAUSE_UNSENT_BYTES < o->max_unsent_bytes / 4
                                             ? (size_t)PAUSE_UNSENT_BYTES
                                             : (size_t)o->max_unsent_bytes / 4;
    s->conns.limits.max_buffered_bytes = (size_t)o->max_buffered_bytes;
    answer_error(&s->refusal, NULL, ERR_OVERLOADED, NULL,
                 "the server has as many connections as it takes (--max-connections)");
}

int server_create(const struct server_options *o, struct server **out, struct error *error) {
    struct server *s = xcalloc(1, sizeof *s);
    *out = NULL;
    s->options = *o;
    atomic_init(&s->stop_asked, false);
    int rc = uv_loop_init(&s->loop);
    if (rc != 0) {
        free(s);
        return error_set(error, ERR_IO, "cannot create an event loop: %s", uv_strerror(rc));
    }
    uv_async_init(&s->loop, &s->wake, on_wake);
    uv_tcp_init(&s->loop, &s->listener);
    s->wake.data = s->listener.data = s;
    prepare_conns(s);
    rc = bind_listener(s, error);
    if (rc != 0) {
        server_destroy(s);
        return rc;
    }
    *out = s;
    return 0;
}

void server_destroy(struct server *s) {
    if (!s)
        return;
    if (!uv_is_closing((uv_handle_t *)&s->listener))
        uv_close((uv_handle_t *)&s->listener, NULL);
    uv_close((uv_handle_t *)&s->wake, NULL);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    int rc = uv_loop_close(&s->loop);
    CHECK(rc == 0, "uv_loop_close: %s", uv_strerror(rc));
    buffer_deinit(&s->refusal);
    free(s);
}
