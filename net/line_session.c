#include "line_session.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/clock.h"
#include "host/mem.h"
#include "net/keys.h"
#include "net/line_answer.h"
#include "net/line_job.h"
#include "net/line_reader.h"
#include "net/prompt.h"
#include "net/request_log.h"

enum {
    /* A half-closed client looks like one that has gone. When nothing was written to it for this
     * long, a space is: it means nothing in front of a JSON line, and a host without the socket
     * answers it with a reset. */
    FIRST_PROBE_US = 200 * 1000,
    NEXT_PROBE_US = 1000 * 1000,
    /* Tokens of plain prompts that wait for their turn, of one client, before no more are read. */
    MAX_WAITING_TOKENS = 1 << 20,
};

static const char key_is_needed[] =
    "a valid API key is needed first: {\"op\":\"auth\",\"key\":\"...\"}";

/* One prompt of a client. */
struct client_request {
    struct ticket ticket; /* first: what the engine's events name */
    struct line_sessions *shared;
    struct line_session *session;               /* NULL once the client is gone */
    struct client_request *prev, *next;         /* in session->first..last, in order of arrival */
    struct client_request *all_prev, *all_next; /* in shared->requests, while submitted */
    uint64_t handle;                            /* the engine's, once submitted */
    bool submitted;
    bool plain; /* answered as text */
    bool begun; /* some of that text was sent */
    bool cancelled;
    bool stream;
    bool wants_logprobs;
    char *id;                                 /* owned JSON literal; NULL for plain */
    struct request_params params;             /* of a plain prompt that waits for its turn */
    struct api_key *asker;                    /* that was shown when it came; NULL: none was */
    struct api_key *key;                      /* the same, while it counts for its limits */
    int32_t prompt_tokens, completion_tokens; /* that were taken up, and generated */
    int64_t arrival_us;
    const char *outcome;          /* for the log: finish reason or error; NULL: not decided yet */
    struct field_error error;     /* code != 0: what its turn will say instead */
    struct buffer text, logprobs; /* collected for "stream":false */
};

struct line_session {
    struct line_sessions *shared;
    struct conn *conn; /* NULL once closed, while a job is still in the pool */
    struct line_reader reader;
    struct line_job *job; /* in the worker pool, or NULL */
    uv_work_t work;
    struct client_request *first, *last;
    int32_t num_requests, num_plain;
    int64_t waiting_tokens; /* of plain prompts that the engine does not have yet */
    uint64_t next_id;       /* for requests without one */
    struct api_key *key;    /* that the client has shown; NULL: none */
    int64_t line_since_us;  /* when the unfinished line in the reader began */
    int64_t last_probe_us;
    bool eof;
    bool begun;   /* a line has come */
    bool refused; /* no line is handled any more */
};

/* ---- requests ---- */

static void on_event(struct ticket *ticket, const struct engine_event *e);

static struct client_request *client_request_create(struct line_session *s, struct line_job *job) {
    struct client_request *r = xcalloc(1, sizeof *r);
    r->ticket.on_event = on_event;
    r->shared = s->shared;
    r->session = s;
    r->plain = job->request.kind == LINE_PLAIN;
    r->stream = job->request.stream;
    r->wants_logprobs = job->request.params.sampling.logprobs >= 0;
    r->id = job->request.id;
    r->params = job->request.params;
    r->arrival_us = job->arrival_us;
    r->error = job->error;
    r->asker = s->key;
    job->request.id = NULL;
    memset(&job->request.params, 0, sizeof job->request.params);
    r->prev = s->last;
    if (s->last)
        s->last->next = r;
    else
        s->first = r;
    s->last = r;
    s->num_requests++;
    s->num_plain += r->plain;
    s->waiting_tokens += r->params.num_tokens;
    return r;
}

static void unlink_from_session(struct client_request *r) {
    struct line_session *s = r->session;
    if (!s)
        return;
    if (r->prev)
        r->prev->next = r->next;
    else
        s->first = r->next;
    if (r->next)
        r->next->prev = r->prev;
    else
        s->last = r->prev;
    s->num_requests--;
    s->num_plain -= r->plain;
    s->waiting_tokens -= r->params.num_tokens;
    r->session = NULL;
}

/* In the log, of plain prompts and of objects without an id. */
static const char plain_id[] = "\"plain\"", no_id[] = "null";

/* An id that is a string without its quotes and escapes, which the log has its own of. */
static void log_ended(const char *id, struct ended_request *ended) {
    json_t *value = json_loads(id, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    const char *string = json_string_value(value);
    bool whole = string && strlen(string) == json_string_length(value); /* without U+0000 */
    ended->id = whole ? string : id;
    request_log_end(ended);
    json_decref(value);
}

static void log_end(const struct client_request *r) {
    struct ended_request ended = {
        .key = r->asker,
        .outcome = r->outcome ? r->outcome : finish_reason_name(FINISH_CANCELLED),
        .prompt_tokens = r->prompt_tokens,
        .completion_tokens = r->completion_tokens,
        .arrival_us = r->arrival_us,
    };
    log_ended(r->id ? r->id : plain_id, &ended);
}

static void client_request_destroy(struct client_request *r) {
    log_end(r);
    unlink_from_session(r);
    if (r->submitted) {
        if (r->all_prev)
            r->all_prev->all_next = r->all_next;
        else
            r->shared->requests = r->all_next;
        if (r->all_next)
            r->all_next->all_prev = r->all_prev;
    }
    api_key_end(r->key, 1, r->completion_tokens, clock_us());
    free(r->id);
    request_params_deinit(&r->params);
    buffer_deinit(&r->text);
    buffer_deinit(&r->logprobs);
    free(r);
}

/* Counts the request for its key. On failure r->error says why. */
static int count_for_key(struct client_request *r) {
    struct error e = {0};
    double retry_s;
    int rc = api_key_begin(r->asker, 1, r->params.num_tokens, clock_us(), &retry_s, &e);
    if (rc != 0)
        return field_error_set(&r->error, rc, NULL, "%s", e.text);
    r->key = r->asker;
    return 0;
}

/* Gives the request to the engine. On failure r->error says why. */
static int client_request_submit(struct client_request *r) {
    struct line_sessions *shared = r->shared;
    struct error e = {0};
    if (count_for_key(r) != 0)
        return r->error.code;
    int32_t num_tokens = r->params.num_tokens;
    r->session->waiting_tokens -= num_tokens;
    int rc = dispatch_submit(shared->dispatch, &r->params, &r->ticket, &r->handle, &e);
    memset(&r->params, 0, sizeof r->params); /* the engine's, also on failure */
    if (rc != 0) {
        api_key_refund(r->key, num_tokens);
        return field_error_set(&r->error, rc, NULL, "%s", *e.text ? e.text : error_text(rc));
    }
    r->submitted = true;
    r->all_next = shared->requests;
    if (shared->requests)
        shared->requests->all_prev = r;
    shared->requests = r;
    return 0;
}

/* The client does not want it any more. The engine's last event frees it. */
static void client_request_abandon(struct client_request *r) {
    if (!r->submitted) {
        client_request_destroy(r);
        return;
    }
    unlink_from_session(r);
    dispatch_cancel(r->shared->dispatch, r->handle);
}

static struct client_request *find_request(struct line_session *s, const char *id) {
    for (struct client_request *r = s->first; r; r = r->next)
        if (r->id && !strcmp(r->id, id))
            return r;
    return NULL;
}

/* ---- answers ---- */

static void send_error(struct line_session *s, const char *id, const struct field_error *e) {
    answer_error(conn_out(s->conn), id, e->code, e->param, e->message);
    conn_touch(s->conn);
}

static void on_token(struct client_request *r, const struct engine_event *e) {
    struct conn *c = r->session->conn;
    if (r->plain) {
        buffer_append(conn_out(c), e->text, e->text_len);
        r->begun = r->begun || e->text_len > 0;
    } else if (r->stream) {
        answer_token(conn_out(c), r->id, e);
    } else {
        buffer_append(&r->text, e->text, e->text_len);
        if (!e->has_logprobs)
            return;
        if (r->logprobs.len)
            buffer_putc(&r->logprobs, ',');
        answer_position(&r->logprobs, e->token, &e->logprobs);
        return;
    }
    conn_touch(c);
}

static void on_done(struct client_request *r, const struct engine_event *e) {
    struct conn *c = r->session->conn;
    if (r->plain) {
        struct buffer *out = conn_out(c);
        buffer_append(out, e->text, e->text_len);
        buffer_putc(out, '\n');
    } else if (r->stream) {
        if (e->text_len)
            answer_held_text(conn_out(c), r->id, e->text, e->text_len);
        answer_done(conn_out(c), r->id, e, NULL, NULL);
    } else {
        buffer_append(&r->text, e->text, e->text_len);
        answer_done(conn_out(c), r->id, e, &r->text, r->wants_logprobs ? &r->logprobs : NULL);
    }
    conn_touch(c);
}

/* An error as the last line of a request, in the form of its kind. */
static void send_failure(struct client_request *r, int code, const char *param, const char *text) {
    struct conn *c = r->session->conn;
    r->outcome = error_name(code);
    if (r->plain) {
        if (r->begun)
            buffer_putc(conn_out(c), '\n');
        answer_plain_error(conn_out(c), text);
    } else {
        answer_error(conn_out(c), r->id, code, param, text);
    }
    conn_touch(c);
}

static void on_failed(struct client_request *r, const struct engine_event *e) {
    send_failure(r, e->error_code, NULL, e->error_text ? e->error_text : error_text(e->error_code));
}

/* What the client was told stays. */
static void decide(struct client_request *r, const struct engine_event *e) {
    bool done = e->kind == EVENT_DONE;
    r->prompt_tokens = e->prompt_tokens;
    if (!r->outcome)
        r->outcome = done ? finish_reason_name(e->finish_reason) : error_name(e->error_code);
}

static void on_event(struct ticket *ticket, const struct engine_event *e) {
    struct client_request *r = (struct client_request *)ticket;
    if (e->kind == EVENT_TOKEN)
        r->completion_tokens++;
    if (r->session) {
        if (e->kind == EVENT_TOKEN)
            on_token(r, e);
        else if (e->kind == EVENT_DONE)
            on_done(r, e);
        else
            on_failed(r, e);
    }
    if (e->kind != EVENT_TOKEN) {
        decide(r, e);
        client_request_destroy(r);
    }
}

/* ---- lines ---- */

static void make_id(struct line_session *s, struct line_request *request) {
    struct buffer b = {0};
    do {
        buffer_clear(&b);
        buffer_printf(&b, "\"auto-%llu\"", (unsigned long long)++s->next_id);
        buffer_putc(&b, '\0');
    } while (find_request(s, b.data));
    request->id = b.data;
}

static bool too_many_requests(struct line_session *s, struct field_error *e) {
    int32_t max = s->shared->options->max_requests_per_connection;
    if (s->num_requests < max)
        return false;
    field_error_set(e, ERR_OVERLOADED, NULL, "%d requests are in flight on this connection", max);
    return true;
}

static void log_refusal(const struct line_session *s, const char *id, const struct line_job *job,
                        int code) {
    struct ended_request ended = {
        .key = s->key, .outcome = error_name(code), .arrival_us = job->arrival_us};
    log_ended(id, &ended);
}

/* A completion that is refused before it is a request of the session. */
static void refuse(struct line_session *s, const struct line_job *job,
                   const struct field_error *e) {
    log_refusal(s, job->request.id ? job->request.id : no_id, job, e->code);
    send_error(s, job->request.id, e);
}

static void start_completion(struct line_session *s, struct line_job *job) {
    struct field_error e = {0};
    if (!job->request.id)
        make_id(s, &job->request);
    if (find_request(s, job->request.id))
        field_error_set(&e, ERR_DUPLICATE_ID, "id", "%s", error_text(ERR_DUPLICATE_ID));
    if (e.code || too_many_requests(s, &e)) {
        refuse(s, job, &e);
        return;
    }
    struct client_request *r = client_request_create(s, job);
    if (client_request_submit(r) != 0) {
        send_failure(r, r->error.code, r->error.param, r->error.message);
        client_request_destroy(r);
    }
}

/* Plain prompts are never refused for their number or size: whoever pipes a file of them into the
 * server waits, and so do the lines behind them. */
static bool plain_queue_is_full(const struct line_session *s) {
    return s->num_plain > 0 &&
           (s->num_requests >= s->shared->options->max_requests_per_connection ||
            s->waiting_tokens > MAX_WAITING_TOKENS);
}

/* Must the lines that are there stay where they are for now? */
static bool must_wait(const struct line_session *s) {
    return s->job || s->refused || conn_congested(s->conn) || plain_queue_is_full(s);
}

/* The done line of the request that ends, with finish_reason "cancelled", is the answer. */
static void cancel(struct line_session *s, const char *id) {
    struct client_request *r = find_request(s, id);
    struct field_error e = {0};
    if (r) {
        if (!r->cancelled)
            dispatch_cancel(s->shared->dispatch, r->handle);
        r->cancelled = true;
        return;
    }
    field_error_set(&e, ERR_NOT_FOUND, "id", "no request with this id is in flight");
    send_error(s, id, &e);
}

static bool needs_key(const struct line_session *s) {
    struct keys *keys = s->shared->options->keys;
    return keys && keys_required(keys) && !(s->key && api_key_is_valid(s->key));
}

/* A key holds for the lines behind it, until another one is shown. */
static void authenticate(struct line_session *s, const struct line_job *job) {
    struct keys *keys = s->shared->options->keys;
    struct field_error e = {0};
    s->key = keys ? keys_find(keys, job->answer.data, job->answer.len) : NULL;
    if (needs_key(s)) {
        field_error_set(&e, ERR_UNAUTHORIZED, "key", "this key is not known");
        send_error(s, job->request.id, &e);
    } else {
        answer_ping(conn_out(s->conn), job->request.id);
        conn_touch(s->conn);
    }
}

static void answer_op(struct line_session *s, struct line_job *job) {
    const char *id = job->request.id;
    struct dispatch_stats stats;
    struct buffer *out = conn_out(s->conn);
    switch (job->request.kind) {
    case LINE_PING:
        answer_ping(out, id);
        break;
    case LINE_STATS:
        dispatch_stats(s->shared->dispatch, &stats);
        answer_stats(out, id, &stats, conn_set_of(s->conn)->count);
        break;
    case LINE_MODEL:
        answer_model(out, id, &s->shared->model);
        break;
    default:
        buffer_append(out, job->answer.data, job->answer.len);
    }
    conn_touch(s->conn);
}

/* Acts on a line that line_job_run has been through. A plain prompt waits in the session's list for
 * its turn (start_next_plain), a refused one too, so that its error comes in its place. */
static void finish_line(struct line_session *s, struct line_job *job) {
    if (needs_key(s) && job->request.kind != LINE_AUTH)
        field_error_set(&job->error, ERR_UNAUTHORIZED, NULL, "%s", key_is_needed);
    if (job->request.kind == LINE_PLAIN)
        client_request_create(s, job);
    else if (job->error.code && job->request.kind == LINE_COMPLETION)
        refuse(s, job, &job->error);
    else if (job->error.code)
        send_error(s, job->request.id, &job->error);
    else if (job->request.kind == LINE_COMPLETION)
        start_completion(s, job);
    else if (job->request.kind == LINE_CANCEL)
        cancel(s, job->request.id);
    else if (job->request.kind == LINE_AUTH)
        authenticate(s, job);
    else
        answer_op(s, job);
}

static void session_destroy(struct line_session *s) {
    line_reader_deinit(&s->reader);
    free(s);
}

static void on_work(uv_work_t *work) {
    struct line_session *s = work->data;
    line_job_run(s->job);
}

static void on_work_done(uv_work_t *work, int status) {
    struct line_session *s = work->data;
    struct line_job *job = s->job;
    (void)status;
    s->job = NULL;
    s->line_since_us = clock_us(); /* nothing was read meanwhile */
    if (s->conn) {
        finish_line(s, job);
        conn_touch(s->conn); /* for the lines behind it */
    }
    line_job_deinit(job);
    free(job);
    if (!s->conn)
        session_destroy(s);
}

/* "GET / HTTP/1.1": a browser or curl. Its headers would be prompts, its body a request that any
 * web page could make the user's browser send. */
static bool is_http(const char *line, size_t len) {
    size_t i = 0;
    while (i < len && line[i] >= 'A' && line[i] <= 'Z')
        i++;
    return i >= 3 && i < len && line[i] == ' ' && len >= i + 10 &&
           !memcmp(line + len - 9, " HTTP/", 6) && line[len - 2] == '.';
}

static void refuse_http(struct line_session *s) {
    buffer_puts(conn_out(s->conn),
                "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
                "This port speaks a line protocol, not HTTP: send a line of text, or of JSON.\n");
    s->refused = true;
    conn_finish(s->conn);
}

/* No work is done for strangers: a long line of theirs is not even parsed, of a short one no more
 * is read than whether it shows a key. */
static void refuse_unread(struct line_session *s, const struct line_job *job) {
    struct buffer *out = conn_out(s->conn);
    bool json = *job->line == '{';
    log_refusal(s, json ? no_id : plain_id, job, ERR_UNAUTHORIZED);
    if (json)
        answer_error(out, NULL, ERR_UNAUTHORIZED, NULL, key_is_needed);
    else
        answer_plain_error(out, key_is_needed);
    conn_touch(s->conn);
}

static void handle_line(struct line_session *s, const char *line, size_t len) {
    struct line_job job = {
        .line = line,
        .len = len,
        .dispatch = s->shared->dispatch,
        .context = &s->shared->context,
        .arrival_us = clock_us(),
        .only_auth = needs_key(s),
    };
    bool first = !s->begun;
    if (len == 0)
        return;
    s->begun = true;
    if (first && is_http(line, len)) {
        refuse_http(s);
        return;
    }
    if (needs_key(s) && len > PROMPT_INLINE_BYTES) {
        refuse_unread(s, &job);
        return;
    }
    if (len <= PROMPT_INLINE_BYTES) {
        line_job_run(&job);
        finish_line(s, &job);
        line_job_deinit(&job);
        return;
    }
    s->job = xmalloc(sizeof *s->job);
    *s->job = job;
    s->work.data = s;
    int rc = uv_queue_work(conn_set_of(s->conn)->loop, &s->work, on_work, on_work_done);
    CHECK(rc == 0, "uv_queue_work: %s", uv_strerror(rc));
}

/* The line that is being received cannot be finished: without its end there is no next line. */
static void lose_framing(struct line_session *s, int code, const char *message) {
    struct field_error e = {0};
    field_error_set(&e, code, NULL, "%s", message);
    while (s->first)
        client_request_abandon(s->first);
    send_error(s, NULL, &e);
    conn_finish(s->conn);
}

static void too_long(struct line_session *s) {
    char message[96];
    snprintf(message, sizeof message, "a line is longer than %lld bytes (--max-line-bytes)",
             (long long)s->shared->options->max_line_bytes);
    lose_framing(s, ERR_LINE_TOO_LONG, message);
}

/* Handles the lines that are there, as far as must_wait allows. While lines wait in the reader
 * nothing more is read, which also keeps the line that the pool works on in its place. */
static void handle_lines(struct line_session *s) {
    const char *line;
    size_t len;
    int rc = 0;
    size_t before = line_reader_pending(&s->reader);
    while (!must_wait(s) && (rc = line_reader_next(&s->reader, &line, &len)) == 1)
        handle_line(s, line, len);
    if (rc == 0 && s->eof && !must_wait(s) && (rc = line_reader_rest(&s->reader, &line, &len)) == 1)
        handle_line(s, line, len);
    if (rc < 0) {
        too_long(s);
        return;
    }
    if (line_reader_pending(&s->reader) != before)
        s->line_since_us = clock_us();
    conn_pause(s->conn, must_wait(s));
}

/* ---- the connection's events ---- */

static void *on_open(void *ctx, struct conn *c) {
    struct line_session *s = xcalloc(1, sizeof *s);
    s->shared = ctx;
    s->conn = c;
    line_reader_init(&s->reader, (size_t)s->shared->options->max_line_bytes);
    return s;
}

static void on_read(void *session, const char *data, size_t len) {
    struct line_session *s = session;
    if (line_reader_pending(&s->reader) == 0)
        s->line_since_us = clock_us();
    line_reader_feed(&s->reader, data, len);
    handle_lines(s);
    conn_touch(s->conn);
    if (line_reader_pending(&s->reader) && s->shared->options->line_timeout_s > 0)
        conn_set_watch(conn_set_of(s->conn));
}

static void on_eof(void *session) {
    struct line_session *s = session;
    s->eof = true;
    s->last_probe_us = clock_us() + FIRST_PROBE_US - NEXT_PROBE_US;
    conn_touch(s->conn);
    conn_set_watch(conn_set_of(s->conn));
}

/* The first plain prompt is answered: submits the next, or says what was wrong with it. */
static void start_next_plain(struct line_session *s) {
    struct client_request *r = s->first;
    while (s->num_plain > 0 && !conn_congested(s->conn)) {
        while (r && !r->plain)
            r = r->next;
        if (!r || r->submitted)
            return;
        struct client_request *next = r->next;
        if (r->error.code == 0 && client_request_submit(r) == 0)
            return;
        send_failure(r, r->error.code, r->error.param, r->error.message);
        client_request_destroy(r);
        r = next;
    }
}

/* The time for draining is over: what still runs ends with an error. */
static void refuse_all(struct line_session *s) {
    while (s->first) {
        send_failure(s->first, ERR_SHUTTING_DOWN, NULL, error_text(ERR_SHUTTING_DOWN));
        client_request_abandon(s->first);
    }
    conn_finish(s->conn);
}

static void on_service(void *session) {
    struct line_session *s = session;
    if (s->shared->expired) {
        refuse_all(s);
        return;
    }
    handle_lines(s);
    start_next_plain(s);
    bool idle = s->num_requests == 0 && !s->job && !conn_congested(s->conn);
    if (idle && (s->shared->draining || (s->eof && line_reader_pending(&s->reader) == 0)))
        conn_finish(s->conn);
}

static bool on_tick(void *session, int64_t now_us) {
    struct line_session *s = session;
    int64_t timeout_us = (int64_t)s->shared->options->line_timeout_s * 1000000;
    if (!s->eof && timeout_us > 0 && line_reader_pending(&s->reader)) {
        if (must_wait(s))
            s->line_since_us = now_us; /* the client is not the one who waits */
        else if (now_us - s->line_since_us > timeout_us)
            lose_framing(s, ERR_INVALID_REQUEST,
                         "the line was not completed in time (--line-timeout)");
        return true;
    }
    if (!s->eof || s->num_requests == 0)
        return s->eof;
    if (conn_peer_is_gone(s->conn)) {
        conn_abort(s->conn);
        return true;
    }
    int64_t quiet_since = conn_last_write_us(s->conn) > s->last_probe_us
                              ? conn_last_write_us(s->conn)
                              : s->last_probe_us;
    if (s->num_plain == 0 && now_us - quiet_since >= NEXT_PROBE_US) {
        s->last_probe_us = now_us;
        buffer_putc(conn_out(s->conn), ' ');
        conn_touch(s->conn);
    }
    return true;
}

static size_t held_bytes(void *session) {
    struct line_session *s = session;
    return line_reader_pending(&s->reader) + (size_t)s->waiting_tokens * sizeof(int32_t);
}

static void on_close(void *session) {
    struct line_session *s = session;
    while (s->first)
        client_request_abandon(s->first);
    s->conn = NULL;
    if (!s->job)
        session_destroy(s);
}

const struct conn_handler line_session_handler = {
    .open = on_open,
    .on_read = on_read,
    .on_eof = on_eof,
    .on_service = on_service,
    .on_tick = on_tick,
    .held_bytes = held_bytes,
    .on_close = on_close,
};

/* ---- all sessions ---- */

void line_sessions_init(struct line_sessions *s, const struct server_options *options,
                        struct dispatch *dispatch) {
    memset(s, 0, sizeof *s);
    s->options = options;
    s->dispatch = dispatch;
    dispatch_model_info(dispatch, &s->model);
    s->context.defaults = &options->defaults;
    s->context.vocab_size = s->model.vocab_size;
}

void line_sessions_deinit(struct line_sessions *s) {
    while (s->requests)
        client_request_destroy(s->requests);
}
