#include "openai_call.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/clock.h"
#include "host/grammar.h"
#include "host/mem.h"
#include "net/http_error.h"
#include "net/keys.h"
#include "net/openai_choice.h"
#include "net/openai_job.h"
#include "net/prompt.h"
#include "net/request_log.h"
#include "net/ticket.h"

/* One answer to one prompt. */
struct choice {
    struct ticket ticket;
    struct openai_call *call;
    uint64_t handle; /* the engine's */
    bool open;       /* an event is still to come */
    struct openai_choice answer;
};

struct openai_call {
    struct openai *api;
    struct openai_call *prev, *next;
    struct http_exchange *x; /* NULL: nobody waits for the answer any more */
    struct api_key *key;
    int32_t charged; /* choices that api_key_begin let in */
    bool working;    /* the job is in the pool */
    uv_work_t work;
    struct openai_job job;
    struct openai_form form;
    struct choice *choices; /* owned */
    int32_t num_choices, num_open;
    struct openai_usage usage;
    int64_t generated;   /* tokens, shown or not */
    const char *outcome; /* for the log; NULL: not decided yet */
    int32_t status;      /* that the client has, with it */
    int64_t arrival_us;
    struct buffer scratch;
};

static bool is_stream(const struct openai_call *c) {
    return c->job.request.stream;
}

/* ---- the log --------------------------------------------------------------------------------- */

static bool is_completion(const struct openai_call *c) {
    return c->job.kind == OPENAI_COMPLETION || c->job.kind == OPENAI_CHAT;
}

/* What comes first is what became of the call; how its other choices end follows from that. */
static void decide(struct openai_call *c, const char *outcome, int32_t status) {
    if (c->outcome)
        return;
    c->outcome = outcome;
    c->status = http_stream_begun(c->x) ? 200 : status;
}

static void decide_error(struct openai_call *c, int code) {
    decide(c, error_name(code), http_error_of(code).status);
}

static void log_end(const struct openai_call *c) {
    if (!c->outcome || !is_completion(c))
        return;
    request_log_end(&(struct ended_request){
        .id = strchr(c->form.head.id, '-') + 1, /* the request's, behind "chatcmpl" */
        .key = c->key,
        .outcome = c->outcome,
        .status = c->status,
        .prompt_tokens = c->usage.prompt_tokens,
        .completion_tokens = c->generated,
        .arrival_us = c->arrival_us,
    });
}

/* ---- life ------------------------------------------------------------------------------------ */

void openai_call_destroy(struct openai_call *c) {
    if (c->prev)
        c->prev->next = c->next;
    else
        c->api->calls = c->next;
    if (c->next)
        c->next->prev = c->prev;
    if (c->charged)
        api_key_end(c->key, c->charged, c->generated, clock_us());
    log_end(c);
    for (int32_t i = 0; i < c->num_choices; i++)
        openai_choice_deinit(&c->choices[i].answer);
    free(c->choices);
    openai_job_deinit(&c->job);
    buffer_deinit(&c->scratch);
    free(c);
}

static void destroy_if_over(struct openai_call *c) {
    if (!c->x && !c->working && c->num_open == 0)
        openai_call_destroy(c);
}

/* Nobody waits any more: what runs is cancelled. The call may be gone afterwards. */
static void abandon(struct openai_call *c) {
    c->x = NULL;
    for (int32_t i = 0; i < c->num_choices; i++)
        if (c->choices[i].open)
            dispatch_cancel(c->api->dispatch, c->choices[i].handle);
    destroy_if_over(c);
}

/* When to come again. */
static void tell_retry(struct openai_call *c, int64_t seconds) {
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)seconds);
    http_add_header(c->x, "Retry-After", text);
}

/* Answers with an error, in the place where one can still be. The call may be gone afterwards. */
static void fail(struct openai_call *c, int code, const char *param, const char *message) {
    decide_error(c, code);
    if (!http_stream_begun(c->x)) {
        if (code == ERR_OVERLOADED)
            tell_retry(c, dispatch_retry_after_s(c->api->dispatch));
        http_answer_error(c->x, code, param, message);
    } else {
        struct buffer envelope = {0};
        buffer_clear(&c->scratch);
        http_put_error(&envelope, code, param, message);
        openai_chunk_error(&c->scratch, &envelope);
        openai_chunk_done(&c->scratch);
        http_stream_write(c->x, c->scratch.data, c->scratch.len);
        http_stream_end(c->x);
        buffer_deinit(&envelope);
    }
    abandon(c);
}

static void on_gone(void *ctx) {
    decide(ctx, finish_reason_name(FINISH_CANCELLED), 0);
    abandon(ctx);
}

static void on_expired(void *ctx) {
    fail(ctx, ERR_SHUTTING_DOWN, NULL, error_text(ERR_SHUTTING_DOWN));
}

/* ---- answers --------------------------------------------------------------------------------- */

static void send_scratch(struct openai_call *c) {
    if (c->scratch.len)
        http_stream_write(c->x, c->scratch.data, c->scratch.len);
    buffer_clear(&c->scratch);
}

static void end_stream(struct openai_call *c) {
    if (c->job.request.include_usage)
        openai_chunk_usage(&c->scratch, &c->form.head, &c->usage);
    openai_chunk_done(&c->scratch);
    send_scratch(c);
    http_stream_end(c->x);
    c->x = NULL;
}

static void answer_whole(struct openai_call *c) {
    struct buffer out = {0};
    int32_t n = c->job.request.n;
    openai_begin(&out, &c->form.head);
    for (int32_t i = 0; i < c->num_choices; i++)
        openai_choice_put(&c->choices[i].answer, &c->choices[i - i % n].answer, &out);
    openai_end(&out, &c->usage);
    http_answer(c->x, 200, "application/json", out.data, out.len);
    buffer_deinit(&out);
    c->x = NULL;
}

/* A token, or the end of a choice. */
static void take_event(struct openai_call *c, struct choice *ch, const struct engine_event *e) {
    if (is_stream(c)) {
        openai_choice_stream(&ch->answer, e, &c->scratch);
        if (e->kind == EVENT_DONE && c->num_open == 0)
            end_stream(c);
        else
            send_scratch(c);
    } else {
        openai_choice_collect(&ch->answer, e);
        if (e->kind == EVENT_DONE && c->num_open == 0)
            answer_whole(c);
    }
}

/* ---- events ---------------------------------------------------------------------------------- */

static void add_usage(struct openai_call *c, const struct choice *ch,
                      const struct engine_event *e) {
    c->generated += e->completion_tokens;
    if (!c->job.request.no_tokens)
        c->usage.completion_tokens += e->completion_tokens;
    if (ch->answer.index % c->job.request.n == 0) { /* a prompt counts once */
        c->usage.prompt_tokens += e->prompt_tokens;
        c->usage.cached_tokens += e->cached_tokens;
    }
}

static void on_event(struct ticket *t, const struct engine_event *e) {
    struct choice *ch = (struct choice *)(void *)t;
    struct openai_call *c = ch->call;
    if (e->kind == EVENT_TOKEN) {
        if (c->x)
            take_event(c, ch, e);
        return;
    }
    ch->open = false;
    c->num_open--;
    add_usage(c, ch, e);
    if (e->kind == EVENT_ERROR && c->x) {
        fail(c, e->error_code, NULL, e->error_text ? e->error_text : error_text(e->error_code));
        return;
    }
    if (c->x) {
        if (c->num_open == 0)
            decide(c, finish_reason_name(e->finish_reason), 200);
        take_event(c, ch, e);
    }
    destroy_if_over(c);
}

/* ---- submission ------------------------------------------------------------------------------ */

/* The parameters of one choice; what they own is a copy. */
static void params_of(const struct openai_call *c, const struct choice *ch,
                      struct request_params *out) {
    const struct openai_request *r = &c->job.request;
    const struct openai_prompt *p = &r->prompts[openai_choice_prompt(&ch->answer)];
    *out = r->params;
    for (int32_t i = 0; i < out->num_stop; i++)
        out->stop[i] = xstrdup(out->stop[i]);
    out->grammar = grammar_retain(out->grammar);
    if (out->logit_bias) {
        size_t bytes = (size_t)out->num_logit_bias * sizeof *out->logit_bias;
        out->logit_bias = xmalloc(bytes + 1);
        memcpy(out->logit_bias, r->params.logit_bias, bytes);
    }
    out->num_tokens = p->num_tokens;
    out->tokens = xmalloc((size_t)p->num_tokens * sizeof *out->tokens);
    memcpy(out->tokens, p->tokens, (size_t)p->num_tokens * sizeof *out->tokens);
    out->arrival_us = http_request_of(c->x)->arrival_us;
    if (ch->answer.index % r->n) /* they are the same for all answers to a prompt */
        out->prompt_logprobs = -1;
    if (out->has_seed) /* n answers to one prompt are different ones */
        out->sampling.seed += (uint64_t)(ch->answer.index % r->n);
}

/* What the job found out: the prompts to begin with, and whether calls may come. */
static void finish_form(struct openai_call *c) {
    const struct openai_request *r = &c->job.request;
    const struct chat_template *template = dispatch_chat_template(c->api->dispatch);
    c->form.echoes = c->job.echoes;
    if (r->num_tools && r->tool_choice != TOOL_CHOICE_NONE && template)
        c->form.tool_format = chat_template_tool_format(template);
}

static void init_choices(struct openai_call *c) {
    const struct openai_request *r = &c->job.request;
    c->num_choices = r->num_prompts * r->n;
    c->choices = xcalloc((size_t)c->num_choices, sizeof *c->choices);
    for (int32_t i = 0; i < c->num_choices; i++) {
        struct choice *ch = &c->choices[i];
        ch->ticket.on_event = on_event;
        ch->call = c;
        openai_choice_init(&ch->answer, &c->form, i);
    }
}

/* Of the prompts from the `first` on. */
static int64_t count_prompt_tokens(const struct openai_request *r, int32_t first) {
    int64_t tokens = 0;
    for (int32_t i = first; i < r->num_prompts; i++)
        tokens += r->prompts[i].num_tokens;
    return tokens;
}

/* May the key begin a request for each choice? Answers where it may not. A prompt's tokens count
 * once however many answers it gets, as in the usage. */
static bool charge_key(struct openai_call *c) {
    const struct openai_request *r = &c->job.request;
    struct error e = {0};
    int64_t tokens = count_prompt_tokens(r, 0);
    double retry_s = 0;
    int32_t num_choices = r->num_prompts * r->n;
    int rc = api_key_begin(c->key, num_choices, tokens, clock_us(), &retry_s, &e);
    if (rc == 0) {
        c->charged = num_choices;
        return true;
    }
    if (rc == ERR_OVERLOADED)
        tell_retry(c, (int64_t)ceil(retry_s));
    decide_error(c, rc);
    http_answer_error(c->x, rc,
                      rc != ERR_INVALID_REQUEST ? NULL
                      : r->n > 1                ? "n"
                                                : "prompt",
                      e.text);
    abandon(c);
    return false;
}

static void submit(struct openai_call *c) {
    if (!charge_key(c))
        return;
    finish_form(c);
    init_choices(c);
    if (is_stream(c))
        http_will_stream(c->x);
    for (int32_t i = 0; i < c->num_choices; i++) {
        struct choice *ch = &c->choices[i];
        struct request_params params;
        struct error e = {0};
        params_of(c, ch, &params);
        int rc = dispatch_submit(c->api->dispatch, &params, &ch->ticket, &ch->handle, &e);
        if (rc != 0) { /* prompts of which the engine has no choice yet are not computed */
            int32_t n = c->job.request.n;
            api_key_refund(c->key, count_prompt_tokens(&c->job.request, (i + n - 1) / n));
            fail(c, rc, NULL, *e.text ? e.text : error_text(rc));
            return;
        }
        ch->open = true;
        c->num_open++;
    }
}

/* ---- the job --------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t hash, const void *data, size_t len) { /* FNV-1a */
    for (const unsigned char *p = data; len--; p++)
        hash = (hash ^ *p) * 1099511628211u;
    return hash;
}

/* Calls of tools in different answers are told apart, also where a client gives all requests of a
 * conversation one id, and the server was started anew between two of them. */
static uint64_t new_seed(struct openai *o, const char *id) {
    struct timespec now;
    uint64_t hash = mix(14695981039346656037u, id, strlen(id));
    clock_gettime(CLOCK_REALTIME, &now);
    o->num_calls++;
    hash = mix(hash, &now.tv_sec, sizeof now.tv_sec);
    hash = mix(hash, &now.tv_nsec, sizeof now.tv_nsec);
    return mix(hash, &o->num_calls, sizeof o->num_calls);
}

static void start_form(struct openai_call *c) {
    struct openai_head *h = &c->form.head;
    const char *id = http_request_of(c->x)->id;
    h->chat = c->job.kind == OPENAI_CHAT;
    h->created = (int64_t)time(NULL);
    h->model = c->api->model.name;
    h->tokenizer = dispatch_tokenizer(c->api->dispatch);
    snprintf(h->id, sizeof h->id, "%s-%s", h->chat ? "chatcmpl" : "cmpl", id);
    c->form.request = &c->job.request;
    c->form.seed = new_seed(c->api, id);
}

static void finish_job(struct openai_call *c) {
    if (!c->x) {
        destroy_if_over(c);
    } else if (c->job.error.code) {
        fail(c, c->job.error.code, c->job.error.param, c->job.error.message);
    } else if (is_completion(c)) {
        submit(c);
    } else {
        http_answer(c->x, 200, "application/json", c->job.answer.data, c->job.answer.len);
        abandon(c);
    }
}

static void work(uv_work_t *w) {
    struct openai_call *c = w->data;
    openai_job_run(&c->job);
}

static void after_work(uv_work_t *w, int status) {
    struct openai_call *c = w->data;
    (void)status; /* nothing cancels it */
    c->working = false;
    finish_job(c);
}

void openai_call_start(struct openai *o, enum openai_kind kind, struct http_exchange *x) {
    struct openai_call *c = xcalloc(1, sizeof *c);
    const struct http_watcher watcher = {on_gone, on_expired, c};
    c->api = o;
    c->x = x;
    c->key = http_request_of(x)->key;
    c->arrival_us = http_request_of(x)->arrival_us;
    c->next = o->calls;
    if (o->calls)
        o->calls->prev = c;
    o->calls = c;
    c->job.kind = kind;
    c->job.dispatch = o->dispatch;
    c->job.context = &o->context;
    c->job.max_model_len = o->model.max_model_len;
    start_form(c);
    http_take_body(x, &c->job.body);
    http_watch(x, &watcher);
    c->work.data = c;
    c->working = !openai_job_is_short(&c->job);
    if (c->working && uv_queue_work(o->loop, &c->work, work, after_work) == 0)
        return;
    c->working = false;
    openai_job_run(&c->job);
    finish_job(c);
}
