/* server: see server.h.
 *
 * Threads
 *   loop thread (whoever calls server_run): owns every handle, connection, session, exchange and
 *     client request, and is the one draining thread of the dispatch.
 *   loading thread: makes the dispatch, and ends. The loop answers HTTP meanwhile.
 *   engine threads: call server_wake, which is uv_async_send and nothing else.
 *   libuv's worker pool: line_job_run on one long line; it sees the line, the job and the
 *     immutable tokenizer. Routes have jobs of their own kind.
 *   any thread: server_stop, which sets an atomic flag and wakes the loop.
 *
 * States: bound (server_create) -> loading (HTTP alone is accepted) -> serving -> draining (stop or
 * first signal: no listener, idle connections closed, requests refused) -> expired (drain_timeout_s
 * later: what still runs ends with shutting_down) -> aborted (a second later: what is still unsent
 * is lost) -> done. Each state is left early when the last connection is gone.
 */
#include "server.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "host/buffer.h"
#include "host/limits.h"
#include "host/log.h"
#include "host/mem.h"
#include "net/conn.h"
#include "net/http_error.h"
#include "net/http_health.h"
#include "net/http_session.h"
#include "net/keys.h"
#include "net/line_answer.h"
#include "net/line_session.h"
#include "net/listener.h"
#include "net/server_check.h"
#include "net/ticket.h"
#include "net/tls.h"

enum {
    PAUSE_UNSENT_BYTES = 256 * 1024, /* a client with more unsent is not read any more */
    LAST_WORDS_MS = 1000, /* for clients to take their error lines after the drain timeout */
    FAILURE_DRAIN_S = 1,  /* for the same when the engine has failed */
    SPARE_FILES = 64,     /* descriptors for everything that is not a client */
    SAMPLE_MS = 5000,     /* between looks at whether the engines go on */
};

const char server_default_http[] = "127.0.0.1:8000";

/* One of the protocols. */
struct service {
    struct listener *listener; /* NULL: off */
    struct conn_port port;
    struct buffer refusal; /* what a connection too many gets */
    char address[300];     /* that is bound, or was; "" when off */
};

struct server {
    struct server_options options;
    struct dispatch *dispatch; /* borrowed; NULL while the model loads */
    uv_loop_t loop;
    struct service line, http;
    uv_async_t wake; /* engine events, the model is loaded, or stop was asked for */
    uv_timer_t drain_timer, sample_timer;
    uv_signal_t sigterm, sigint;
    struct conn_set conns;
    struct tls_server *tls; /* NULL: plain */
    struct line_sessions line_sessions;
    struct http_sessions http_sessions;
    struct http_health health;
    atomic_bool stop_asked;
    bool running; /* between server_run's set-up and its end */
    bool draining;
    struct error failure; /* why the server ends by itself; code 0: it does not */

    bool loading;
    server_load_fn load;
    void *load_ctx;
    pthread_t load_thread;
    atomic_bool load_ended;
    /* Of the loading thread, until load_ended. */
    struct dispatch *loaded;
    struct error load_error;
};

void server_options_default(struct server_options *o) {
    memset(o, 0, sizeof *o);
    o->listen = "127.0.0.1:7070";
    o->http = server_default_http;
    o->max_line_bytes = 4 << 20;
    o->max_body_bytes = 4 << 20;
    o->max_connections = 10000;
    o->max_requests_per_connection = 256;
    o->max_unsent_bytes = 8 << 20;
    o->max_buffered_bytes = 1 << 30;
    o->line_timeout_s = 120;
    o->drain_timeout_s = 30;
    o->stall_timeout_s = 30;
    o->http_timeouts = (struct http_timeouts){.first_byte_ms = 10 * 1000,
                                              .head_ms = 10 * 1000,
                                              .body_ms = 30 * 1000,
                                              .idle_ms = 75 * 1000,
                                              .ping_ms = HTTP_PING_S * 1000,
                                              .stall_ms = 10 * 1000};
    request_params_default(&o->defaults);
}

/* ---- listening ---- */

/* Of the address that is bound, as a name may have several. */
static int check_exposure(const struct server *s, const struct listener *l, const char *option,
                          struct error *error) {
    bool local = listener_is_local(l), keyed = s->options.keys && keys_required(s->options.keys);
    int rc = server_check_exposure(&s->options, option, listener_address(l), local, error);
    if (rc == 0 && !local && !keyed)
        log_warn("everybody who reaches %s may use the server (%s, --insecure)",
                 listener_address(l), option);
    return rc;
}

static int open_service(struct server *s, struct service *service, const char *address,
                        const char *option, struct error *error) {
    if (!strcmp(address, "off"))
        return 0;
    int rc = listener_open(&s->loop, address, option, &s->conns, &service->port, &service->listener,
                           error);
    if (rc != 0)
        return rc;
    snprintf(service->address, sizeof service->address, "%s", listener_address(service->listener));
    return check_exposure(s, service->listener, option, error);
}

/* HTTP accepts from the start, so its port must be ours from now on. */
static int open_http(struct server *s, struct error *error) {
    struct error why = {0};
    int rc = open_service(s, &s->http, s->options.http, "--http", &why);
    if (rc == 0 && s->http.listener) {
        s->http_sessions.on_loopback = listener_is_loopback(s->http.listener);
        rc = listener_listen(s->http.listener, &why);
    }
    if (rc == ERR_IO && s->options.http == server_default_http) {
        log_warn("%s; going on without HTTP", why.text);
        listener_close(s->http.listener);
        s->http.listener = NULL;
        s->http.address[0] = '\0';
        rc = 0;
    }
    return rc ? error_set(error, rc, "%s", why.text) : 0;
}

static int load_certificate(struct server *s, struct error *error) {
    const struct server_options *o = &s->options;
    if (!o->tls_cert)
        return 0;
    int rc = tls_server_create(o->tls_cert, o->tls_key, &s->tls, error);
    s->line.port.tls = s->http.port.tls = s->tls;
    return rc;
}

static int open_services(struct server *s, struct error *error) {
    int rc = open_service(s, &s->line, s->options.listen, "--listen", error);
    return rc ? rc : open_http(s, error);
}

/* Frees the listeners; their files are gone when this returns. */
static void close_services(struct server *s) {
    listener_close(s->line.listener);
    listener_close(s->http.listener);
    s->line.listener = s->http.listener = NULL;
}

/* ---- end ---- */

static void on_drained(void *ctx) {
    struct server *s = ctx;
    if (s->draining)
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
    s->line_sessions.expired = s->http_sessions.expired = true;
    conn_set_service_all(&s->conns);
    uv_timer_start(&s->drain_timer, on_last_words_over, LAST_WORDS_MS, 0);
}

static void start_draining(struct server *s) {
    if (s->draining)
        return;
    log_info("shutting down: %d connections, running requests may take %d s", s->conns.count,
             s->options.drain_timeout_s);
    s->draining = s->line_sessions.draining = s->http_sessions.draining = true;
    s->conns.hurry = true;
    if (s->options.on_draining)
        s->options.on_draining(s->options.on_ready_ctx);
    dispatch_stop_accepting(s->dispatch);
    close_services(s);
    conn_set_service_all(&s->conns);
    uv_timer_start(&s->drain_timer, on_drain_timeout, (uint64_t)s->options.drain_timeout_s * 1000,
                   0);
    if (s->conns.count == 0)
        uv_stop(&s->loop);
}

/* A model that loads cannot be stopped, so the process ends as if it had not heard the signal. */
static void leave_at_once(struct server *s, int signum) {
    log_info("stopped while the model was being loaded");
    listener_unlink(s->line.listener);
    listener_unlink(s->http.listener);
    fflush(NULL);
    signal(signum, SIG_DFL);
    raise(signum);
    _exit(128 + signum);
}

static void on_signal(uv_signal_t *handle, int signum) {
    struct server *s = handle->data;
    if (s->loading)
        leave_at_once(s, signum);
    if (s->draining) {
        log_warn("second signal: leaving at once");
        _exit(128 + signum);
    }
    start_draining(s);
}

/* ---- the model ---- */

/* Ends the loop before anything was served. */
static void give_up(struct server *s, int code, const char *text) {
    error_set(&s->failure, code, "%s", text);
    conn_set_abort_all(&s->conns);
    uv_stop(&s->loop);
}

static void start_serving(struct server *s, struct dispatch *dispatch) {
    struct error e = {0};
    s->dispatch = s->http_sessions.dispatch = dispatch;
    line_sessions_init(&s->line_sessions, &s->options, dispatch);
    if (s->options.on_loaded)
        s->options.on_loaded(s->options.on_loaded_ctx, dispatch);
    if (s->line.listener && listener_start(s->line.listener, &e) != 0) {
        give_up(s, e.code, e.text);
        return;
    }
    if (s->options.on_ready)
        s->options.on_ready(s->options.on_ready_ctx, server_address(s));
    if (atomic_load(&s->stop_asked))
        start_draining(s);
}

static void *load_model(void *server) {
    struct server *s = server;
    s->load_error.code = s->load(s->load_ctx, &s->loaded, &s->load_error);
    atomic_store(&s->load_ended, true);
    server_wake(s);
    return NULL;
}

static void start_loading(struct server *s) {
    int rc = pthread_create(&s->load_thread, NULL, load_model, s);
    if (rc == 0) {
        s->loading = true;
        return;
    }
    char text[128];
    snprintf(text, sizeof text, "cannot start the thread that loads: %s", strerror(rc));
    give_up(s, ERR_NO_MEMORY, text);
}

static void finish_loading(struct server *s) {
    pthread_join(s->load_thread, NULL);
    s->loading = false;
    if (s->load_error.code)
        give_up(s, s->load_error.code, s->load_error.text);
    else
        start_serving(s, s->loaded);
}

/* ---- run ---- */

static void on_wake(uv_async_t *handle) {
    struct server *s = handle->data;
    if (!s->running)
        return;
    if (s->loading && atomic_load(&s->load_ended))
        finish_loading(s);
    if (!s->dispatch)
        return;
    dispatch_drain(s->dispatch, ticket_deliver, NULL);
    if (!s->failure.code && dispatch_failure(s->dispatch, &s->failure)) {
        s->options.drain_timeout_s = FAILURE_DRAIN_S;
        start_draining(s);
    }
    if (atomic_load(&s->stop_asked))
        start_draining(s);
}

static void on_sample(uv_timer_t *timer) {
    struct server *s = timer->data;
    http_health_sample(&s->health);
}

static void set_up(struct server *s) {
    uint64_t sample_ms = (uint64_t)s->options.stall_timeout_s * 250;
    /* One descriptor a client. */
    limits_raise_files((uint64_t)s->options.max_connections + CONN_MAX_REFUSED + SPARE_FILES,
                       "--max-connections");
    conn_set_init(&s->conns);
    uv_timer_init(&s->loop, &s->drain_timer);
    uv_timer_init(&s->loop, &s->sample_timer);
    s->drain_timer.data = s->sample_timer.data = s;
    sample_ms = sample_ms < SAMPLE_MS ? sample_ms : SAMPLE_MS;
    if (s->http.listener)
        uv_timer_start(&s->sample_timer, on_sample, sample_ms, sample_ms);
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
    close_services(s);
    while (s->conns.count > 0) /* only where the model could not be loaded */
        uv_run(&s->loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&s->drain_timer, NULL);
    uv_close((uv_handle_t *)&s->sample_timer, NULL);
    uv_close((uv_handle_t *)&s->sigterm, NULL);
    uv_close((uv_handle_t *)&s->sigint, NULL);
    conn_set_close(&s->conns);
    /* Until nothing is left but the wake handle: a line may still be in the worker pool. */
    uv_unref((uv_handle_t *)&s->wake);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    uv_ref((uv_handle_t *)&s->wake);
    line_sessions_deinit(&s->line_sessions);
}

static int run(struct server *s, struct dispatch *dispatch, struct error *error) {
    struct error e = {0};
    set_up(s);
    if (s->http.listener && listener_start(s->http.listener, &e) != 0)
        give_up(s, e.code, e.text);
    else if (dispatch)
        start_serving(s, dispatch);
    else
        start_loading(s);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    tear_down(s);
    if (s->failure.code)
        return error_set(error, s->failure.code, "%s", s->failure.text);
    return 0;
}

int server_load_and_run(struct server *s, server_load_fn load, void *ctx, struct error *error) {
    s->load = load;
    s->load_ctx = ctx;
    return run(s, NULL, error);
}

int server_run(struct server *s, struct dispatch *dispatch, struct error *error) {
    return run(s, dispatch, error);
}

int32_t server_num_connections(const struct server *s) {
    return s->conns.count;
}

int32_t server_num_http_connections(const struct server *s) {
    return s->conns.num_http;
}

const struct http_counters *server_http_counters(const struct server *s) {
    return &s->http_sessions.counters;
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
    return s->line.address;
}

const char *server_http_address(const struct server *s) {
    return s->http.address;
}

const char *server_status(struct server *s) {
    return http_health_status(&s->health);
}

void server_add_routes(struct server *s, const struct http_route *routes) {
    http_sessions_add(&s->http_sessions, routes);
}

int server_reload_tls(struct server *s, struct error *error) {
    return s->tls ? tls_server_reload(s->tls, error) : 0;
}

struct uv_loop_s *server_loop(struct server *s) {
    return &s->loop;
}

/* ---- create and destroy ---- */

static void prepare_conns(struct server *s) {
    const struct server_options *o = &s->options;
    s->conns.loop = &s->loop;
    s->conns.on_empty = on_drained;
    s->conns.on_empty_ctx = s;
    s->conns.limits.max_connections = o->max_connections;
    s->conns.limits.max_unsent_bytes = (size_t)o->max_unsent_bytes;
    s->conns.limits.pause_unsent_bytes = PAUSE_UNSENT_BYTES < o->max_unsent_bytes / 4
                                             ? (size_t)PAUSE_UNSENT_BYTES
                                             : (size_t)o->max_unsent_bytes / 4;
    s->conns.limits.max_buffered_bytes = (size_t)o->max_buffered_bytes;
}

static void prepare_services(struct server *s) {
    static const char full[] = "the server has as many connections as it takes (--max-connections)";
    struct http_error e = {503, "unavailable_error", "overloaded"};
    struct buffer body = {0};
    answer_error(&s->line.refusal, NULL, ERR_OVERLOADED, NULL, full);
    http_error_body(&body, &e, NULL, full);
    buffer_printf(&s->http.refusal,
                  "HTTP/1.1 503 Service Unavailable\r\n"
                  "Content-Type: application/json\r\n"
                  "Content-Length: %zu\r\n"
                  "Retry-After: 1\r\nConnection: close\r\n\r\n",
                  body.len);
    buffer_append(&s->http.refusal, body.data, body.len);
    buffer_deinit(&body);
    http_sessions_init(&s->http_sessions, &s->options);
    http_health_init(&s->health, &s->http_sessions);
    http_sessions_add(&s->http_sessions, s->health.routes);
    s->line.port = (struct conn_port){.handler = &line_session_handler,
                                      .handler_ctx = &s->line_sessions,
                                      .refusal = &s->line.refusal,
                                      .handshake_us = s->options.http_timeouts.first_byte_ms * 1000,
                                      .plain_answer = "error: this port speaks TLS\n"};
    s->http.port = (struct conn_port){.handler = &http_session_handler,
                                      .handler_ctx = &s->http_sessions,
                                      .refusal = &s->http.refusal,
                                      .stall_us = s->options.http_timeouts.stall_ms * 1000,
                                      .handshake_us = s->options.http_timeouts.first_byte_ms * 1000,
                                      .http = true,
                                      .plain_answer = "HTTP/1.1 400 Bad Request\r\n"
                                                      "Content-Type: text/plain\r\n"
                                                      "Connection: close\r\n\r\n"
                                                      "This port speaks TLS: use https.\n"};
}

int server_create(const struct server_options *o, struct server **out, struct error *error) {
    struct server *s = xcalloc(1, sizeof *s);
    *out = NULL;
    s->options = *o;
    atomic_init(&s->stop_asked, false);
    atomic_init(&s->load_ended, false);
    int rc = uv_loop_init(&s->loop);
    if (rc != 0) {
        free(s);
        return error_set(error, ERR_IO, "cannot create an event loop: %s", uv_strerror(rc));
    }
    uv_async_init(&s->loop, &s->wake, on_wake);
    s->wake.data = s;
    prepare_conns(s);
    prepare_services(s);
    rc = server_check_options(o, error);
    if (rc == 0)
        rc = load_certificate(s, error);
    if (rc == 0)
        rc = open_services(s, error);
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
    close_services(s);
    uv_close((uv_handle_t *)&s->wake, NULL);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    int rc = uv_loop_close(&s->loop);
    CHECK(rc == 0, "uv_loop_close: %s", uv_strerror(rc));
    buffer_deinit(&s->line.refusal);
    buffer_deinit(&s->http.refusal);
    tls_server_destroy(s->tls);
    free(s);
}
