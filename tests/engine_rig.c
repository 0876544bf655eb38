#include "tests/engine_rig.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/clock.h"
#include "host/error.h"
#include "host/mem.h"
#include "tests/shim.h"

enum { WAIT_MS = 30000 };

static void on_wake(void *ctx) {
    atomic_fetch_add(&((struct rig *)ctx)->wakes, 1);
}

void rig_options(struct engine_options *o) {
    engine_options_default(o);
    o->max_num_seqs = 8;
    o->max_num_batched_tokens = 64;
    o->max_queued_requests = RIG_MAX_CLIENTS;
}

static void open_rig(struct rig *r, const struct engine_options *o, int32_t vocab_size,
                     int32_t num_blocks, int32_t eos, struct tokenizer *tokenizer, bool recovers) {
    struct engine_model model;
    struct error error = {0};
    memset(r, 0, sizeof *r);
    r->clients = xcalloc(RIG_MAX_CLIENTS, sizeof *r->clients);
    fake_model_init(&r->model, vocab_size, num_blocks, o->max_num_seqs + 8);
    r->model.recovers = recovers;
    fake_model_wrap(&r->model, RIG_MAX_LEN, &model);
    model.eos_ids[0] = eos;
    model.num_eos_ids = eos >= 0;
    int rc = engine_create_with_model(o, &model, tokenizer, NULL, on_wake, r, &r->engine, &error);
    CHECK(rc == 0, "engine_create_with_model: %s", error.text);
}

void rig_open_with(struct rig *r, const struct engine_options *o, int32_t vocab_size,
                   int32_t num_blocks, int32_t eos, struct tokenizer *tokenizer) {
    open_rig(r, o, vocab_size, num_blocks, eos, tokenizer, false);
}

void rig_open(struct rig *r, int32_t num_blocks) {
    struct engine_options o;
    rig_options(&o);
    open_rig(r, &o, RIG_VOCAB, num_blocks, -1, NULL, false);
}

void rig_open_recovering(struct rig *r, int32_t num_blocks) {
    struct engine_options o;
    rig_options(&o);
    open_rig(r, &o, RIG_VOCAB, num_blocks, -1, NULL, true);
}

void rig_close(struct rig *r) {
    engine_destroy(r->engine);
    EXPECT_INT_EQ(r->model.num_errors, 0);
    if (r->model.num_errors)
        FAIL("last error of the batches: %s", r->model.last_error);
    fake_model_deinit(&r->model);
    for (int32_t i = 0; i < r->num_clients; i++)
        buffer_deinit(&r->clients[i].text);
    free(r->clients);
}

static void copy_prompt_logprobs(struct client *c, const struct engine_event *e) {
    for (int32_t i = 0; i < e->num_prompt_logprobs; i++) {
        EXPECT_INT_EQ(e->prompt_logprob_tokens[i], c->prompt[i]);
        c->prompt_logprobs[i] = e->prompt_logprobs[i];
        for (int32_t j = 0; j < e->prompt_logprobs[i].num_top; j++)
            c->prompt_top[i][j] = e->prompt_logprobs[i].top[j];
    }
}

static void on_event(void *ctx, const struct engine_event *e) {
    struct rig *r = ctx;
    struct client *c = e->user;
    EXPECT_INT_EQ(e->request, c->handle);
    EXPECT_INT_EQ(c->num_ends, 0); /* nothing follows the end */
    buffer_append(&c->text, e->text, e->text_len);
    if (e->kind == EVENT_TOKEN) {
        int32_t n = c->num_tokens++;
        c->tokens[n] = e->token;
        EXPECT_INT_EQ(e->has_logprobs, c->params.sampling.logprobs >= 0);
        c->logprobs[n] = e->logprobs.logprob;
        for (int32_t i = 0; i < e->logprobs.num_top; i++)
            c->top[n][i] = e->logprobs.top[i];
        return;
    }
    c->num_ends++;
    r->num_ended++;
    c->done = *e;
    EXPECT_INT_EQ(e->completion_tokens, c->num_tokens);
    EXPECT_INT_EQ(e->prompt_tokens, c->num_prompt);
    EXPECT_TRUE(e->total_ms >= e->ttft_ms && e->ttft_ms >= 0 && e->queue_ms >= 0);
    if (e->kind == EVENT_ERROR) {
        c->error_code = e->error_code;
        EXPECT_TRUE(e->error_text && e->error_text[0]);
        return;
    }
    copy_prompt_logprobs(c, e);
}

struct client *rig_client(struct rig *r, int32_t base, int32_t num_prompt, int32_t max_tokens) {
    CHECK(r->num_clients < RIG_MAX_CLIENTS, "too many clients");
    struct client *c = &r->clients[r->num_clients++];
    request_params_default(&c->params);
    c->params.max_tokens = max_tokens;
    c->params.sampling.temperature = 0;
    c->num_prompt = num_prompt;
    for (int32_t i = 0; i < num_prompt && i < RIG_MAX_LEN; i++)
        c->prompt[i] = (base + i) % 200;
    return c;
}

int rig_submit(struct rig *r, struct client *c) {
    struct request_params p = c->params;
    struct error error = {0};
    p.tokens = xcalloc((size_t)c->num_prompt, sizeof *p.tokens);
    p.num_tokens = c->num_prompt;
    for (int32_t i = 0; i < c->num_prompt && i < RIG_MAX_LEN; i++)
        p.tokens[i] = c->prompt[i];
    for (int32_t i = 0; i < p.num_stop; i++)
        p.stop[i] = xstrdup(p.stop[i]);
    int rc = engine_submit(r->engine, &p, c, &c->handle, &error);
    if (rc) {
        EXPECT_TRUE(error.text[0] != 0);
        c->num_ends++;
        r->num_ended++;
    }
    return rc;
}

void rig_drain(struct rig *r) {
    engine_drain(r->engine, on_event, r);
}

void rig_run(struct rig *r) {
    int64_t until = clock_us() + (int64_t)WAIT_MS * 1000;
    while (r->num_ended < r->num_clients && clock_us() < until) {
        engine_wait(r->engine, 100);
        rig_drain(r);
    }
    EXPECT_INT_EQ(r->num_ended, r->num_clients);
}

void rig_check_greedy(const struct client *c, int32_t vocab_size) {
    int32_t context[2 * RIG_MAX_LEN];
    memcpy(context, c->prompt, sizeof c->prompt);
    for (int32_t i = 0; i < c->num_tokens; i++) {
        int32_t n = c->num_prompt + i;
        if (!EXPECT_INT_EQ(c->tokens[i], fake_next(context, n, vocab_size)))
            return;
        context[n] = c->tokens[i];
    }
}

void rig_check_idle(struct rig *r) {
    struct engine_stats s;
    engine_stats(r->engine, &s);
    EXPECT_INT_EQ(s.running, 0);
    EXPECT_INT_EQ(s.waiting, 0);
    EXPECT_INT_EQ(s.kv_blocks_used, s.kv_blocks_cached);
    EXPECT_TRUE(s.healthy);
}

void rig_sleep_ms(int32_t ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000},
              NULL);
}
