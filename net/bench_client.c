#include "bench_client.h"

#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/buffer.h"
#include "host/clock.h"
#include "host/json.h"
#include "host/json_text.h"
#include "host/mem.h"
#include "net/bench_conn.h"
#include "net/bench_workload.h"
#include "net/address.h"

enum {
    TICK_MS = 50,          /* how often time-outs are looked for */
    MAX_OPEN_AHEAD = 1024, /* connections that are opened before the clock starts */
};

/* Values of bench_conn.request besides the index of an item. */
enum { REQUEST_NONE = -1, REQUEST_CALL = -2 };

struct bench_client {
    uv_loop_t *loop; /* borrowed */
    const int *stop; /* borrowed */
    struct sockaddr_storage address;
    struct buffer auth; /* the line that shows the key; empty: there is none */
    int64_t timeout_us;
    uv_timer_t tick;    /* runs while a call or a run waits */
    uv_timer_t arrival; /* the next arrival of an open loop */
    int32_t open;       /* handles whose memory is in use */
    char *scratch;      /* owned: what the connections read into */

    struct bench_conn **conns; /* [num_conns] owned, conns[i]->place == i */
    size_t num_conns, cap_conns;
    struct bench_conn *idle; /* ready, without a request; the one used last comes first */
    int32_t connecting;

    struct bench_load *load; /* borrowed; NULL: no run */
    int32_t next;            /* item to be sent next */
    int32_t in_flight, ended;
    int64_t start_us;

    struct {
        const char *line; /* borrowed; NULL: no call */
        json_t *answer;   /* owned until it is handed out */
        bool failed;
        char why[512];
    } call;
};

static const struct bench_conn_events conn_events;

static void start_due(struct bench_client *c);

/* ---- connections ---------------------------------------------------------------------------- */

static struct bench_conn *add_conn(struct bench_client *c, int32_t request, int *status) {
    struct bench_conn *conn = bench_conn_open(c->loop, (struct sockaddr *)&c->address, &conn_events,
                                              c->scratch, &c->open, c, status);
    if (!conn)
        return NULL;
    if (c->num_conns == c->cap_conns) {
        c->cap_conns = c->cap_conns ? 2 * c->cap_conns : 64;
        c->conns = xrealloc(c->conns, c->cap_conns * sizeof(struct bench_conn *));
    }
    conn->place = c->num_conns;
    conn->request = request;
    conn->heard_us = clock_us();
    c->conns[c->num_conns++] = conn;
    c->connecting++;
    return conn;
}

/* Takes a connection out of the books; it is closing or about to be closed. */
static void forget_conn(struct bench_client *c, struct bench_conn *conn) {
    c->conns[conn->place] = c->conns[--c->num_conns];
    c->conns[conn->place]->place = conn->place;
    c->connecting -= !conn->ready;
    for (struct bench_conn **at = &c->idle; *at; at = &(*at)->next_idle) {
        if (*at == conn) {
            *at = conn->next_idle;
            break;
        }
    }
}

static void drop_conn(struct bench_client *c, struct bench_conn *conn) {
    forget_conn(c, conn);
    bench_conn_close(conn);
}

static void drop_all(struct bench_client *c) {
    while (c->num_conns)
        drop_conn(c, c->conns[c->num_conns - 1]);
}

static void make_idle(struct bench_client *c, struct bench_conn *conn) {
    conn->request = REQUEST_NONE;
    conn->next_idle = c->idle;
    c->idle = conn;
}

static void send_request(struct bench_client *c, struct bench_conn *conn) {
    conn->heard_us = clock_us();
    if (conn->request == REQUEST_CALL) {
        bench_conn_send(conn, c->call.line, strlen(c->call.line));
        return;
    }
    const struct bench_item *item = &c->load->items[conn->request];
    c->load->records[conn->request].start_us = conn->heard_us;
    bench_conn_send(conn, item->line, item->len);
}

/* Sends a request on an idle connection, or on a new one as soon as it is ready. Returns 0 or
 * libuv's code when no connection could be made. */
static int begin(struct bench_client *c, int32_t request) {
    struct bench_conn *conn = c->idle;
    int status = 0;
    if (!conn) {
        add_conn(c, request, &status);
        return status;
    }
    c->idle = conn->next_idle;
    conn->request = request;
    send_request(c, conn);
    return 0;
}

/* ---- ends of requests ----------------------------------------------------------------------- */

/* failure NULL: it succeeded. */
static void end_item(struct bench_client *c, int32_t request, int64_t now_us, const char *failure) {
    struct bench_record *r = &c->load->records[request];
    r->end_us = now_us;
    if (failure) {
        r->error = xstrdup(failure);
        r->output_len = 0;
    }
    c->in_flight--;
    c->ended++;
}

static void end_call(struct bench_client *c, json_t *answer, const char *failure) {
    c->call.answer = answer;
    c->call.failed = failure != NULL;
    snprintf(c->call.why, sizeof c->call.why, "%.*s", (int)sizeof c->call.why - 1,
             failure ? failure : "");
    c->call.line = NULL;
}

static void fail_request(struct bench_client *c, int32_t request, const char *why) {
    if (request == REQUEST_CALL)
        end_call(c, NULL, why);
    else if (request >= 0)
        end_item(c, request, clock_us(), why);
}

/* The request failed and its connection cannot be trusted any more. */
static void fail_conn(struct bench_client *c, struct bench_conn *conn, const char *why) {
    int32_t request = conn->request;
    drop_conn(c, conn);
    fail_request(c, request, why);
}

/* ---- answers -------------------------------------------------------------------------------- */

/* What a server said instead of an answer; borrowed from it. */
static const char *failure_text(const struct bench_client *c, const json_t *failure) {
    const char *code = json_string_value(json_object_get(failure, "code"));
    const char *message = json_string_value(json_object_get(failure, "message"));
    if (code && !strcmp(code, "unauthorized"))
        return c->auth.len ? "the server does not know this key (--api-key, MOESERVE_API_KEY)"
                           : "the server asks for a key: give it with --api-key";
    return message ? message : "error";
}

static void on_call_line(struct bench_client *c, struct bench_conn *conn, const char *line,
                         size_t len) {
    struct error error = {0};
    json_t *answer = json_parse(line, len, "answer", ERR_INVALID_JSON, &error);
    if (!answer) {
        fail_conn(c, conn, error.text);
        return;
    }
    make_idle(c, conn);
    json_t *failure = json_object_get(answer, "error");
    if (!failure) {
        end_call(c, answer, NULL);
        return;
    }
    end_call(c, NULL, failure_text(c, failure));
    json_decref(answer);
}

/* What is wrong with a request that has ended, or "". */
static void check_done(const struct bench_load *load, int32_t request, const struct bench_answer *a,
                       char *why, size_t size) {
    const struct bench_item *item = &load->items[request];
    const struct bench_record *r = &load->records[request];
    why[0] = '\0';
    if (a->cancelled)
        snprintf(why, size, "cancelled by the server");
    else if (a->prompt_tokens != item->input_len)
        snprintf(why, size, "%d prompt tokens were counted, %d were sent", (int)a->prompt_tokens,
                 (int)item->input_len);
    else if (load->exact_len && a->completion_tokens != item->max_tokens)
        snprintf(why, size, "%d tokens were generated, %d were asked for",
                 (int)a->completion_tokens, (int)item->max_tokens);
    else if (r->num_tokens > a->completion_tokens ||
             (load->exact_len && r->num_tokens != a->completion_tokens))
        snprintf(why, size, "%d token lines came for %d generated tokens", (int)r->num_tokens,
                 (int)a->completion_tokens);
}

static void on_done(struct bench_client *c, struct bench_conn *conn, const struct bench_answer *a,
                    int64_t now_us) {
    struct bench_record *r = &c->load->records[conn->request];
    char why[128];
    r->output_len = a->completion_tokens;
    r->cached_tokens = a->cached_tokens;
    check_done(c->load, conn->request, a, why, sizeof why);
    end_item(c, conn->request, now_us, why[0] ? why : NULL);
    make_idle(c, conn);
}

static void on_item_line(struct bench_client *c, struct bench_conn *conn, const char *line,
                         size_t len, int64_t now_us) {
    struct bench_answer a;
    struct error error = {0};
    if (bench_answer_parse(line, len, &a, &error) != 0) {
        fail_conn(c, conn, error.text);
    } else if (a.kind == BENCH_ANSWER_ERROR) {
        int32_t request = conn->request;
        if (bench_conn_is_sending(conn))
            drop_conn(c, conn);
        else
            make_idle(c, conn);
        fail_request(c, request, a.error);
    } else if (a.id != conn->request) {
        fail_conn(c, conn, "an answer carried the id of another request");
    } else if (a.kind == BENCH_ANSWER_TOKEN) {
        bench_record_add_token(&c->load->records[conn->request], now_us);
    } else if (a.kind == BENCH_ANSWER_DONE) {
        on_done(c, conn, &a, now_us);
    }
}

/* From here on requests may be sent. */
static void enter(struct bench_client *c, struct bench_conn *conn) {
    conn->ready = true;
    c->connecting--;
    if (conn->request == REQUEST_NONE)
        make_idle(c, conn);
    else
        send_request(c, conn);
}

/* The answer to the key. */
static void on_auth_line(struct bench_client *c, struct bench_conn *conn, const char *line,
                         size_t len) {
    struct error error = {0};
    json_t *answer = json_parse(line, len, "answer", ERR_INVALID_JSON, &error);
    json_t *failure = json_object_get(answer, "error");
    if (!answer || failure)
        fail_conn(c, conn, answer ? failure_text(c, failure) : error.text);
    else
        enter(c, conn);
    json_decref(answer);
}

static void on_line(struct bench_conn *conn, const char *line, size_t len, int64_t now_us) {
    struct bench_client *c = conn->owner;
    conn->heard_us = now_us;
    if (!conn->ready)
        on_auth_line(c, conn, line, len);
    else if (conn->request == REQUEST_CALL)
        on_call_line(c, conn, line, len);
    else if (conn->request >= 0)
        on_item_line(c, conn, line, len, now_us);
    else
        drop_conn(c, conn); /* an answer that nobody asked for */
    start_due(c);
}

static void on_ready(struct bench_conn *conn) {
    struct bench_client *c = conn->owner;
    if (c->auth.len)
        bench_conn_send(conn, c->auth.data, c->auth.len);
    else
        enter(c, conn);
}

static void on_lost(struct bench_conn *conn, const char *why) {
    struct bench_client *c = conn->owner;
    char text[256];
    snprintf(text, sizeof text, "%s: %s", conn->ready ? "connection lost" : "cannot connect", why);
    forget_conn(c, conn);
    fail_request(c, conn->request, text);
    start_due(c);
}

static const struct bench_conn_events conn_events = {on_ready, on_line, on_lost};

/* ---- waiting -------------------------------------------------------------------------------- */

static void on_tick(uv_timer_t *timer) {
    struct bench_client *c = timer->data;
    int64_t now_us = clock_us();
    char why[64];
    snprintf(why, sizeof why, "no answer for %g s", (double)c->timeout_us / 1e6);
    for (size_t i = c->num_conns; i-- > 0;) {
        struct bench_conn *conn = c->conns[i];
        bool waits = conn->request != REQUEST_NONE || !conn->ready;
        if (waits && now_us - conn->heard_us > c->timeout_us)
            fail_conn(c, conn, why);
    }
    start_due(c);
}

/* Runs the loop until done(c). */
static int wait_for(struct bench_client *c, bool (*done)(const struct bench_client *c),
                    struct error *error) {
    uv_timer_start(&c->tick, on_tick, TICK_MS, TICK_MS);
    while (!done(c) && !*c->stop)
        uv_run(c->loop, UV_RUN_ONCE);
    uv_timer_stop(&c->tick);
    return *c->stop ? error_set(error, ERR_SHUTTING_DOWN, "interrupted") : 0;
}

/* ---- calls ---------------------------------------------------------------------------------- */

static bool call_is_over(const struct bench_client *c) {
    return !c->call.line;
}

int bench_client_call(struct bench_client *c, const char *line, json_t **answer,
                      struct error *error) {
    *answer = NULL;
    c->call.line = line;
    c->call.failed = false;
    int status = begin(c, REQUEST_CALL);
    if (status != 0)
        end_call(c, NULL, uv_strerror(status));
    int rc = wait_for(c, call_is_over, error);
    if (rc != 0) {
        drop_all(c);
        c->call.line = NULL;
        return rc;
    }
    if (c->call.failed)
        return error_set(error, ERR_INVALID_REQUEST, "%s", c->call.why);
    *answer = c->call.answer;
    c->call.answer = NULL;
    return 0;
}

/* ---- runs ----------------------------------------------------------------------------------- */

static bool all_are_connected(const struct bench_client *c) {
    return c->connecting == 0;
}

static bool run_is_over(const struct bench_client *c) {
    return c->ended == c->load->count;
}

static void on_arrival(uv_timer_t *timer) {
    start_due(timer->data);
}

/* Starts every request whose time has come and for which there is room. */
static void start_due(struct bench_client *c) {
    struct bench_load *load = c->load;
    while (load && c->next < load->count &&
           (load->max_concurrency == 0 || c->in_flight < load->max_concurrency)) {
        int64_t due_us = c->start_us + load->items[c->next].arrival_us, now_us = clock_us();
        if (due_us > now_us) {
            uv_update_time(c->loop);
            uv_timer_start(&c->arrival, on_arrival, (uint64_t)(due_us - now_us + 999) / 1000, 0);
            return;
        }
        int32_t i = c->next++;
        load->records[i].due_us = due_us;
        load->records[i].input_len = load->items[i].input_len;
        c->in_flight++;
        int status = begin(c, i);
        if (status != 0)
            end_item(c, i, now_us, uv_strerror(status));
    }
}

/* Connecting costs the server work that is no part of what is measured. */
static int open_ahead(struct bench_client *c, const struct bench_load *load, struct error *error) {
    int32_t wanted = load->count, status = 0;
    if (load->max_concurrency && load->max_concurrency < wanted)
        wanted = load->max_concurrency;
    if (wanted > MAX_OPEN_AHEAD)
        wanted = MAX_OPEN_AHEAD;
    while (c->num_conns < (size_t)wanted)
        if (!add_conn(c, REQUEST_NONE, &status))
            break;
    return wait_for(c, all_are_connected, error);
}

int bench_client_run(struct bench_client *c, struct bench_load *load, struct error *error) {
    int rc = open_ahead(c, load, error);
    if (rc != 0)
        return rc;
    c->next = c->in_flight = c->ended = 0;
    c->start_us = clock_us();
    c->load = load;
    start_due(c);
    rc = wait_for(c, run_is_over, error);
    uv_timer_stop(&c->arrival);
    if (rc != 0)
        drop_all(c);
    c->load = NULL;
    int64_t end_us = c->start_us;
    for (int32_t i = 0; i < load->count; i++)
        if (load->records[i].end_us > end_us)
            end_us = load->records[i].end_us;
    load->duration_s = (double)(end_us - c->start_us) / 1e6;
    return rc;
}

/* ---- lifecycle ------------------------------------------------------------------------------ */

static int resolve(struct bench_client *c, const char *address, struct error *error) {
    char host[256], port[6];
    int rc = address_split(address, host, port, error);
    if (rc != 0)
        return rc;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found;
    int status = getaddrinfo(host[0] ? host : "127.0.0.1", port, &hints, &found);
    if (status != 0)
        return error_set(error, ERR_CONFIG, "%s: %s", address, gai_strerror(status));
    memcpy(&c->address, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return 0;
}

static void put_auth(struct buffer *out, const char *api_key) {
    buffer_puts(out, "{\"id\":0,\"op\":\"auth\",\"key\":");
    json_text_put_string(out, api_key, strlen(api_key));
    buffer_puts(out, "}\n");
}

int bench_client_create(uv_loop_t *loop, const char *address, const char *api_key,
                        int64_t timeout_us, const int *stop, struct bench_client **out,
                        struct error *error) {
    struct bench_client *c = xcalloc(1, sizeof *c);
    int rc = resolve(c, address, error);
    if (rc != 0) {
        free(c);
        return rc;
    }
    c->loop = loop;
    c->stop = stop;
    c->timeout_us = timeout_us;
    if (api_key)
        put_auth(&c->auth, api_key);
    c->scratch = xmalloc(BENCH_READ_BYTES);
    uv_timer_init(loop, &c->tick);
    uv_timer_init(loop, &c->arrival);
    c->tick.data = c->arrival.data = c;
    c->open = 2;
    *out = c;
    return 0;
}

static void on_timer_closed(uv_handle_t *handle) {
    struct bench_client *c = handle->data;
    c->open--;
}

void bench_client_destroy(struct bench_client *c) {
    if (!c)
        return;
    drop_all(c);
    uv_close((uv_handle_t *)&c->tick, on_timer_closed);
    uv_close((uv_handle_t *)&c->arrival, on_timer_closed);
    while (c->open)
        uv_run(c->loop, UV_RUN_ONCE);
    buffer_deinit(&c->auth);
    free(c->conns);
    free(c->scratch);
    free(c);
}
