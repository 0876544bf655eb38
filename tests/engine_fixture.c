#include "tests/engine_fixture.h"

#include <stdlib.h>
#include <string.h>

#include "host/grammar.h"
#include "host/mem.h"
#include "tests/shim.h"

void fixture_options(struct engine_options *o) {
    engine_options_default(o);
    o->model = "configs/demo-moe";
    o->threads = 2;
}

bool fixture_open(struct fixture *f, const struct engine_options *o) {
    struct engine_options defaults;
    struct error error = {0};
    memset(f, 0, sizeof *f);
    fixture_options(&defaults);
    if (engine_create(o ? o : &defaults, NULL, NULL, &f->engine, &error) == 0)
        return true;
    FAIL("engine_create: %s", error.text);
    return false;
}

void fixture_reset(struct fixture *f) {
    for (int32_t i = 0; i < f->num_requests; i++)
        buffer_deinit(&f->result[i].text);
    memset(f->result, 0, sizeof f->result);
    f->num_requests = f->num_ended = 0;
}

void fixture_close(struct fixture *f) {
    fixture_reset(f);
    engine_destroy(f->engine);
    f->engine = NULL;
}

int32_t fixture_submit(struct fixture *f, const char *text, const struct request_params *params) {
    struct request_params p;
    struct token_list ids = {0};
    struct error error = {0};
    uint64_t handle;
    if (params) {
        p = *params;
    } else {
        request_params_default(&p);
        p.max_tokens = 32;
        p.sampling.temperature = 0;
    }
    CHECK(f->num_requests < FIXTURE_MAX_REQUESTS, "too many requests");
    CHECK(p.num_stop == 0 || p.stop[0], "stop strings");
    for (int32_t i = 0; i < p.num_stop; i++)
        p.stop[i] = xstrdup(p.stop[i]); /* the caller keeps its own */
    grammar_retain(p.grammar);
    if (p.logit_bias) {
        size_t bytes = (size_t)p.num_logit_bias * sizeof *p.logit_bias;
        p.logit_bias = memcpy(xmalloc(bytes), p.logit_bias, bytes);
    }
    tokenizer_encode(engine_tokenizer(f->engine), text, strlen(text),
                     TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL, &ids);
    p.tokens = ids.ids;
    p.num_tokens = (int32_t)ids.len;
    struct fixture_result *r = &f->result[f->num_requests];
    if (engine_submit(f->engine, &p, r, &handle, &error) != 0) {
        FAIL("engine_submit: %s", error.text);
        r->done = true;
        f->num_ended++;
    }
    return f->num_requests++;
}

static void on_event(void *ctx, const struct engine_event *e) {
    struct fixture *f = ctx;
    struct fixture_result *r = e->user;
    buffer_append(&r->text, e->text, e->text_len);
    switch (e->kind) {
    case EVENT_TOKEN:
        if (r->num_tokens < FIXTURE_MAX_TOKENS)
            r->tokens[r->num_tokens++] = e->token;
        return;
    case EVENT_DONE:
        r->finish_reason = e->finish_reason;
        r->prompt_tokens = e->prompt_tokens;
        r->cached_tokens = e->cached_tokens;
        break;
    case EVENT_ERROR:
        r->error_code = e->error_code;
        break;
    }
    buffer_putc(&r->text, 0);
    r->done = true;
    f->num_ended++;
}

void fixture_wait(struct fixture *f) {
    while (f->num_ended < f->num_requests) {
        engine_wait(f->engine, 1000);
        engine_drain(f->engine, on_event, f);
    }
}
