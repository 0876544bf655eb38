/* The engine with a fake model (tests/fake_model.h): every token must be the pure function of the
 * context, whatever else runs, is cancelled or preempted. Texts come from the demo model's tokenizer.
 */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "host/clock.h"
#include "host/engine_model.h"
#include "host/error.h"
#include "host/mem.h"
#include "host/sampler.h"
#include "tests/fake_model.h"
#include "tests/shim.h"

enum { VOCAB = 211, MAX_LEN = 256, TEXT_VOCAB = 1536, MAX_CLIENTS = 256, WAIT_MS = 30000 };

/* What a request is given, and what came of it. */
struct client {
    struct request_params params; /* as submitted, for comparison; owns nothing */
    int32_t prompt[MAX_LEN];
    int32_t num_prompt;
    uint64_t handle;
    int32_t tokens[MAX_LEN];
    struct logprob top[MAX_LEN][MAX_LOGPROBS];
    float logprobs[MAX_LEN];
    int32_t num_tokens, num_ends;
    struct buffer text;
    struct engine_event done; /* pointers are void after the drain */
    struct token_logprobs prompt_logprobs[MAX_LEN];
    struct logprob prompt_top[MAX_LEN][MAX_LOGPROBS];
    int32_t error_code;
};

struct rig {
    struct fake_model model;
    struct engine *engine;
    struct client *clients; /* [MAX_CLIENTS] */
    int32_t num_clients, num_ended;
    atomic_int wakes;
};

static void on_wake(void *ctx) {
    atomic_fetch_add(&((struct rig *)ctx)->wakes, 1);
}

static void test_options(struct engine_options *o) {
    engine_options_default(o);
    o->max_num_seqs = 8;
    o->max_num_batched_tokens = 64;
    o->max_queued_requests = MAX_CLIENTS;
}

static void rig_open_with(struct rig *r, const struct engine_options *o, int32_t vocab_size,
                          int32_t num_blocks, struct tokenizer *tokenizer) {
    struct engine_model model;
    struct error error = {0};
    memset(r, 0, sizeof *r);
    r->clients = xcalloc(MAX_CLIENTS, sizeof *r->clients);
    fake_model_init(&r->model, vocab_size, num_blocks, o->max_num_seqs + 8);
    fake_model_wrap(&r->model, MAX_LEN, &model);
    int rc = engine_create_with_model(o, &model, tokenizer, NULL, on_wake, r, &r->engine, &error);
    CHECK(rc == 0, "engine_create_with_model: %s", error.text);
}

static void rig_open(struct rig *r, int32_t num_blocks) {
    struct engine_options o;
    test_options(&o);
    rig_open_with(r, &o, VOCAB, num_blocks, NULL);
}

static void rig_close(struct rig *r) {
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
    if (e->kind == EVENT_ERROR) {
        c->error_code = e->error_code;
        EXPECT_TRUE(e->error_text && e->error_text[0]);
        return;
    }
    c->done = *e;
    EXPECT_INT_EQ(e->completion_tokens, c->num_tokens);
    EXPECT_INT_EQ(e->prompt_tokens, c->num_prompt);
    EXPECT_TRUE(e->total_ms >= e->ttft_ms && e->ttft_ms >= 0 && e->queue_ms >= 0);
    copy_prompt_logprobs(c, e);
}

/* A client with a prompt that counts up from base; the caller may change params before submit. */
static struct client *new_client(struct rig *r, int32_t base, int32_t num_prompt,
                                 int32_t max_tokens) {
    CHECK(r->num_clients < MAX_CLIENTS, "too many clients");
    struct client *c = &r->clients[r->num_clients++];
    request_params_default(&c->params);
    c->params.max_tokens = max_tokens;
    c->params.sampling.temperature = 0;
    c->num_prompt = num_prompt;
    for (int32_t i = 0; i < num_prompt && i < MAX_LEN; i++)
        c->prompt[i] = (base + i) % 200;
    return c;
}

static int submit(struct rig *r, struct client *c) {
    struct request_params p = c->params;
    struct error error = {0};
    p.tokens = xcalloc((size_t)c->num_prompt, sizeof *p.tokens);
    p.num_tokens = c->num_prompt;
    for (int32_t i = 0; i < c->num_prompt && i < MAX_LEN; i++)
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

/* Drains until all clients have ended. */
static void run_all(struct rig *r) {
    int64_t until = clock_us() + (int64_t)WAIT_MS * 1000;
    while (r->num_ended < r->num_clients && clock_us() < until) {
        engine_wait(r->engine, 100);
        engine_drain(r->engine, on_event, r);
    }
    EXPECT_INT_EQ(r->num_ended, r->num_clients);
}

/* Every token is what the model says to the context before it. */
static void check_greedy(const struct client *c, int32_t vocab_size) {
    int32_t context[2 * MAX_LEN];
    memcpy(context, c->prompt, sizeof c->prompt);
    for (int32_t i = 0; i < c->num_tokens; i++) {
        int32_t n = c->num_prompt + i;
        if (!EXPECT_INT_EQ(c->tokens[i], fake_next(context, n, vocab_size)))
            return;
        context[n] = c->tokens[i];
    }
}

static void check_idle(struct rig *r) {
    struct engine_stats s;
    engine_stats(r->engine, &s);
    EXPECT_INT_EQ(s.running, 0);
    EXPECT_INT_EQ(s.waiting, 0);
    EXPECT_INT_EQ(s.kv_blocks_used, s.kv_blocks_cached);
    EXPECT_TRUE(s.healthy);
}

static void sleep_ms(int32_t ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000}, NULL);
}

/* --- generation ----------------------------------------------------------------------------- */

TEST(Engine, ARequestGetsItsTokensAndEnds) {
    struct rig r;
    rig_open(&r, 32);
    struct client *c = new_client(&r, 7, 5, 12);
    EXPECT_INT_EQ(submit(&r, c), 0);
    run_all(&r);
    EXPECT_INT_EQ(c->num_tokens, 12);
    EXPECT_INT_EQ(c->done.finish_reason, FINISH_LENGTH);
    EXPECT_INT_EQ(c->text.len, 0); /* there is no tokenizer */
    check_greedy(c, VOCAB);
    check_idle(&r);
    EXPECT_INT_GT(atomic_load(&r.wakes), 0);
    rig_close(&r);
}

TEST(Engine, ManyRequestsAtOnceWithTooFewBlocksAllGetTheirOwnTokens) {
    struct rig r;
    struct engine_stats s;
    uint64_t rng = 3;
    rig_open(&r, 20);
    for (int32_t i = 0; i < 120; i++) {
        struct client *c = new_client(&r, fake_below(&rng, 3) * 40, 1 + fake_below(&rng, 90),
                                      1 + fake_below(&rng, 60));
        c->params.prompt_logprobs = fake_below(&rng, 6) ? -1 : 2;
        EXPECT_INT_EQ(submit(&r, c), 0);
    }
    run_all(&r);
    for (int32_t i = 0; i < r.num_clients; i++) {
        EXPECT_INT_EQ(r.clients[i].num_tokens, r.clients[i].params.max_tokens);
        check_greedy(&r.clients[i], VOCAB);
    }
    engine_stats(r.engine, &s);
    EXPECT_INT_GT(s.preemptions_total, 0);
    EXPECT_INT_GT(s.prefix_hit_tokens_total, 0);
    EXPECT_INT_EQ(s.requests_total, 120);
    check_idle(&r);
    rig_close(&r);
}

TEST(Engine, ASeededSampleIsTheSameAloneAndInCompany) {
    int32_t alone[40];
    for (int32_t round = 0; round < 2; round++) {
        struct rig r;
        rig_open(&r, round ? 18 : 64);
        for (int32_t i = 0; round == 1 && i < 30; i++)
            submit(&r, new_client(&r, i, 3 * i + 1, 50));
        struct client *c = new_client(&r, 11, 30, 40);
        c->params.sampling.temperature = 1;
        c->params.sampling.frequency_penalty = 0.5f;
        c->params.sampling.repetition_penalty = 1.2f;
        c->params.sampling.top_p = 0.9f;
        c->params.sampling.seed = 77;
        c->params.has_seed = true;
        submit(&r, c);
        for (int32_t i = 0; round == 1 && i < 30; i++)
            submit(&r, new_client(&r, 3 * i, 2 * i + 1, 50));
        run_all(&r);
        EXPECT_INT_EQ(c->num_tokens, 40);
        if (round == 0)
            memcpy(alone, c->tokens, sizeof alone);
        else
            EXPECT_MEM_EQ(c->tokens, alone, sizeof alone);
        rig_close(&r);
    }
}

TEST(Engine, ASecondRequestFindsThePrefixOfTheFirst) {
    struct rig r;
    rig_open(&r, 32);
    struct client *a = new_client(&r, 0, 50, 4);
    submit(&r, a);
    run_all(&r);
    struct client *b = new_client(&r, 0, 50, 4);
    submit(&r, b);
    run_all(&r);
    EXPECT_INT_EQ(a->done.cached_tokens, 0);
    EXPECT_INT_EQ(b->done.cached_tokens, 48);
    EXPECT_MEM_EQ(a->tokens, b->tokens, 16);
    check_idle(&r);
    rig_close(&r);
}

TEST(Engine, TheContextEndsARequestWithLength) {
    struct rig r;
    rig_open(&r, 64);
    struct client *clipped = new_client(&r, 0, MAX_LEN - 5, 100);
    struct client *unbounded = new_client(&r, 9, MAX_LEN - 3, 0);
    struct client *last = new_client(&r, 20, MAX_LEN - 1, 100);
    struct client *too_long = new_client(&r, 30, MAX_LEN, 1);
    EXPECT_INT_EQ(submit(&r, clipped), 0);
    EXPECT_INT_EQ(submit(&r, unbounded), 0);
    EXPECT_INT_EQ(submit(&r, last), 0);
    EXPECT_INT_EQ(submit(&r, too_long), ERR_CONTEXT_LENGTH);
    run_all(&r);
    EXPECT_INT_EQ(clipped->num_tokens, 5);
    EXPECT_INT_EQ(unbounded->num_tokens, 3);
    EXPECT_INT_EQ(last->num_tokens, 1);
    EXPECT_INT_EQ(last->done.finish_reason, FINISH_LENGTH);
    rig_close(&r);
}

TEST(Engine, TheContextIsWhatTheBlocksHold) {
    struct rig r;
    struct engine_model_info info;
    rig_open(&r, 3);
    engine_model_info(r.engine, &info);
    EXPECT_INT_EQ(info.max_model_len, 48);
    EXPECT_INT_EQ(info.vocab_size, VOCAB);
    EXPECT_STR_EQ(info.name, "fake");
    struct client *c = new_client(&r, 0, 40, 100);
    submit(&r, c);
    run_all(&r);
    EXPECT_INT_EQ(c->num_tokens, 8);
    rig_close(&r);
}

TEST(Engine, OptionsThatCannotWorkAreRefused) {
    static const struct {
        int32_t seqs, tokens, queued, len;
    } cases[] = {{0, 64, 8, 0}, {8, 4, 8, 0}, {8, 64, 0, 0}, {8, 64, 8, MAX_LEN + 1}, {8, 64, 8, 200}};
    struct fake_model fake;
    struct engine_model model;
    struct engine_options o;
    struct engine *engine;
    fake_model_init(&fake, VOCAB, 8, 16);
    fake_model_wrap(&fake, MAX_LEN, &model);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error error = {0};
        test_options(&o);
        o.max_num_seqs = cases[i].seqs;
        o.max_num_batched_tokens = cases[i].tokens;
        o.max_queued_requests = cases[i].queued;
        o.max_model_len = cases[i].len;
        EXPECT_INT_EQ(engine_create_with_model(&o, &model, NULL, NULL, NULL, NULL, &engine, &error),
                      ERR_CONFIG);
        EXPECT_TRUE(error.text[0] != 0);
    }
    fake_model_deinit(&fake);
}

/* --- logprobs ------------------------------------------------------------------------------- */

TEST(Engine, LogprobsAreThoseOfTheModel) {
    struct rig r;
    float row[VOCAB];
    struct sample want;
    struct sampler *sampler = sampler_create(VOCAB);
    rig_open(&r, 32);
    struct client *c = new_client(&r, 3, 10, 6);
    c->params.sampling.logprobs = 5;
    submit(&r, c);
    run_all(&r);
    int32_t context[MAX_LEN];
    memcpy(context, c->prompt, sizeof context);
    for (int32_t i = 0; i < 6; i++) {
        fake_logits(context, 10 + i, VOCAB, row);
        sampler_logprobs(sampler, row, c->tokens[i], 5, &want);
        EXPECT_TRUE(c->logprobs[i] == want.logprob);
        EXPECT_INT_EQ(c->top[i][0].token, c->tokens[i]);
        for (int32_t j = 0; j < 5; j++)
            EXPECT_TRUE(c->top[i][j].token == want.top_tokens[j] &&
                        c->top[i][j].logprob == want.top_logprobs[j]);
        context[10 + i] = c->tokens[i];
    }
    sampler_destroy(sampler);
    rig_close(&r);
}

TEST(Engine, PromptLogprobsCoverThePromptAlsoThroughChunksAndPreemption) {
    struct rig r;
    float row[VOCAB];
    struct sample want;
    struct sampler *sampler = sampler_create(VOCAB);
    rig_open(&r, 18);
    for (int32_t i = 0; i < 24; i++) {
        struct client *c = new_client(&r, (i % 2) * 50, 1 + 4 * i, 40);
        c->params.prompt_logprobs = i % 4;
        submit(&r, c);
    }
    run_all(&r);
    for (int32_t i = 0; i < 24; i++) {
        const struct client *c = &r.clients[i];
        EXPECT_INT_EQ(c->done.num_prompt_logprobs, c->num_prompt);
        EXPECT_INT_EQ(c->prompt_logprobs[0].num_top, 0);
        for (int32_t p = 1; p < c->num_prompt; p++) {
            fake_logits(c->prompt, p, VOCAB, row);
            sampler_logprobs(sampler, row, c->prompt[p], i % 4, &want);
            EXPECT_TRUE(c->prompt_logprobs[p].logprob == want.logprob);
            EXPECT_INT_EQ(c->prompt_logprobs[p].num_top, i % 4);
            for (int32_t j = 0; j < i % 4; j++)
                EXPECT_INT_EQ(c->prompt_top[p][j].token, want.top_tokens[j]);
        }
        check_greedy(c, VOCAB);
    }
    sampler_destroy(sampler);
    rig_close(&r);
}

/* --- ends ----------------------------------------------------------------------------------- */

/* An engine whose eos is the k-th token of the greedy answer to the prompt 5, 6, 7, 8. */
static int32_t open_with_eos(struct rig *r, int32_t k) {
    struct engine_model model;
    struct engine_options o;
    struct error error = {0};
    int32_t context[16] = {5, 6, 7, 8};
    for (int32_t i = 0; i <= k; i++)
        context[4 + i] = fake_next(context, 4 + i, VOCAB);
    test_options(&o);
    memset(r, 0, sizeof *r);
    r->clients = xcalloc(MAX_CLIENTS, sizeof *r->clients);
    fake_model_init(&r->model, VOCAB, 32, o.max_num_seqs + 8);
    fake_model_wrap(&r->model, MAX_LEN, &model);
    model.eos_ids[0] = context[4 + k];
    model.num_eos_ids = 1;
    int rc = engine_create_with_model(&o, &model, NULL, NULL, on_wake, r, &r->engine, &error);
    CHECK(rc == 0, "%s", error.text);
    return context[4 + k];
}

TEST(Engine, EosEndsUnlessIgnoredOrTooEarly) {
    struct rig r;
    int32_t eos = open_with_eos(&r, 3);
    struct client *plain = new_client(&r, 5, 4, 20), *ignoring = new_client(&r, 5, 4, 20),
                  *patient = new_client(&r, 5, 4, 20);
    ignoring->params.ignore_eos = true;
    patient->params.min_tokens = 10;
    submit(&r, plain);
    submit(&r, ignoring);
    submit(&r, patient);
    run_all(&r);
    EXPECT_INT_EQ(plain->num_tokens, 4);
    EXPECT_INT_EQ(plain->tokens[3], eos);
    EXPECT_INT_EQ(plain->done.finish_reason, FINISH_STOP);
    EXPECT_INT_EQ(ignoring->num_tokens, 20);
    EXPECT_INT_EQ(ignoring->tokens[3], eos);
    EXPECT_INT_EQ(ignoring->done.finish_reason, FINISH_LENGTH);
    EXPECT_INT_GE(patient->num_tokens, 10);
    for (int32_t i = 0; i < 10; i++)
        EXPECT_INT_NE(patient->tokens[i], eos);
    rig_close(&r);
}

TEST(Engine, ACancelledRequestEndsOnceAndReturnsItsBlocks) {
    struct rig r;
    rig_open(&r, 64);
    r.model.step_us = 1000;
    struct client *running = new_client(&r, 0, 20, 200);
    submit(&r, running);
    while (running->num_tokens < 3) {
        engine_wait(r.engine, 100);
        engine_drain(r.engine, on_event, &r);
    }
    int64_t start = clock_us();
    engine_cancel(r.engine, running->handle);
    engine_cancel(r.engine, running->handle);
    engine_cancel(r.engine, 123456);
    run_all(&r);
    EXPECT_INT_LT(clock_us() - start, 1000000);
    EXPECT_INT_EQ(running->done.finish_reason, FINISH_CANCELLED);
    EXPECT_STR_EQ(finish_reason_name(running->done.finish_reason), "cancelled");
    check_greedy(running, VOCAB);
    check_idle(&r);
    engine_cancel(r.engine, running->handle);
    struct client *next = new_client(&r, 0, 20, 4);
    submit(&r, next);
    run_all(&r);
    EXPECT_INT_EQ(next->num_tokens, 4);
    rig_close(&r);
}

TEST(Engine, CancelsAtRandomTimesLeaveTheOthersAlone) {
    struct rig r;
    uint64_t rng = 17;
    int32_t num_cancelled = 0;
    rig_open(&r, 24);
    r.model.step_us = 50;
    for (int32_t i = 0; i < 200; i++) {
        struct client *c =
            new_client(&r, fake_below(&rng, 4) * 30, 1 + fake_below(&rng, 100), 1 + fake_below(&rng, 40));
        EXPECT_INT_EQ(submit(&r, c), 0);
        if (fake_below(&rng, 2)) {
            struct client *victim = &r.clients[fake_below(&rng, r.num_clients)];
            engine_cancel(r.engine, victim->handle);
        }
        if (fake_below(&rng, 4) == 0)
            sleep_ms(1);
        engine_drain(r.engine, on_event, &r);
    }
    run_all(&r);
    for (int32_t i = 0; i < r.num_clients; i++) {
        const struct client *c = &r.clients[i];
        EXPECT_INT_EQ(c->num_ends, 1);
        check_greedy(c, VOCAB);
        if (c->done.finish_reason == FINISH_CANCELLED)
            num_cancelled++;
        else
            EXPECT_INT_EQ(c->num_tokens, c->params.max_tokens);
    }
    EXPECT_INT_GT(num_cancelled, 10);
    check_idle(&r);
    rig_close(&r);
}

TEST(Engine, IsDestroyedWithRequestsInEveryState) {
    struct rig r;
    rig_open(&r, 24);
    r.model.step_us = 2000;
    for (int32_t i = 0; i < 30; i++) {
        struct client *c = new_client(&r, i, 1 + 3 * i, 100);
        c->params.sampling.presence_penalty = 1;
        c->params.prompt_logprobs = 1;
        submit(&r, c);
    }
    sleep_ms(10);
    submit(&r, new_client(&r, 0, 5, 5));
    rig_close(&r);
}

/* --- refusals ------------------------------------------------------------------------------- */

TEST(Engine, AFullQueueRefusesAtOnce) {
    struct rig r;
    struct engine_options o;
    struct engine_stats s;
    int32_t refused = 0;
    test_options(&o);
    o.max_num_seqs = 2;
    o.max_queued_requests = 5;
    rig_open_with(&r, &o, VOCAB, 32, NULL);
    atomic_store(&r.model.hold, true);
    submit(&r, new_client(&r, 0, 4, 4));
    submit(&r, new_client(&r, 50, 4, 4));
    while (atomic_load(&r.model.num_steps) == 0)
        sleep_ms(1);
    int64_t start = clock_us();
    for (int32_t i = 0; i < 20; i++)
        refused += submit(&r, new_client(&r, 100 + i, 4, 4)) == ERR_OVERLOADED;
    EXPECT_INT_LT(clock_us() - start, 500000);
    EXPECT_INT_GE(refused, 13); /* 5 are queued; perhaps the first two still count as waiting */
    EXPECT_INT_LE(refused, 17);
    engine_stats(r.engine, &s);
    EXPECT_INT_EQ(s.waiting, 5);
    atomic_store(&r.model.hold, false);
    run_all(&r);
    struct client *c = new_client(&r, 0, 4, 4);
    EXPECT_INT_EQ(submit(&r, c), 0);
    run_all(&r);
    check_greedy(c, VOCAB);
    check_idle(&r);
    rig_close(&r);
}

TEST(Engine, AfterStopAcceptingWhatIsQueuedStillFinishes) {
    struct rig r;
    rig_open(&r, 32);
    r.model.step_us = 1000;
    for (int32_t i = 0; i < 20; i++)
        submit(&r, new_client(&r, i, 10, 10));
    engine_stop_accepting(r.engine);
    EXPECT_INT_EQ(submit(&r, new_client(&r, 0, 4, 4)), ERR_SHUTTING_DOWN);
    run_all(&r);
    for (int32_t i = 0; i < 20; i++)
        EXPECT_INT_EQ(r.clients[i].num_tokens, 10);
    rig_close(&r);
}

static void spoil(struct client *c, int32_t how) {
    struct request_params *p = &c->params;
    struct sampling_params *s = &p->sampling;
    static char empty[1], longest[MAX_STOP_BYTES + 2];
    memset(longest, 'x', MAX_STOP_BYTES + 1);
    switch (how) {
    case 0: c->prompt[2] = -1; break;
    case 1: c->prompt[0] = VOCAB; break;
    case 2: p->max_tokens = -1; break;
    case 3: p->min_tokens = 5; break; /* more than max_tokens */
    case 4: s->temperature = -0.1f; break;
    case 5: s->temperature = NAN; break;
    case 6: s->top_k = -2; break;
    case 7: s->top_p = 0; break;
    case 8: s->top_p = 1.5f; break;
    case 9: s->min_p = -0.1f; break;
    case 10: s->repetition_penalty = 0; break;
    case 11: s->presence_penalty = 2.1f; break;
    case 12: s->frequency_penalty = INFINITY; break;
    case 13: s->logprobs = 21; break;
    case 14: p->prompt_logprobs = -2; break;
    case 15: p->stop[0] = empty, p->num_stop = 1; break;
    case 16: p->stop[0] = longest, p->num_stop = 1; break;
    default: p->min_tokens = -1; break;
    }
}

TEST(Engine, EveryBadRequestIsRefusedAndAGoodOneFollows) {
    struct rig r;
    rig_open(&r, 32);
    for (int32_t how = 0; how < 18; how++) {
        struct client *bad = new_client(&r, 0, 4, 4), *good = new_client(&r, how, 4, 4);
        spoil(bad, how);
        EXPECT_INT_EQ(submit(&r, bad), ERR_INVALID_REQUEST);
        EXPECT_INT_EQ(submit(&r, good), 0);
        run_all(&r);
        check_greedy(good, VOCAB);
    }
    rig_close(&r);
}

/* --- trouble -------------------------------------------------------------------------------- */

TEST(Engine, ANanEndsItsOwnRequestOnlyAndIsNotShared) {
    for (int32_t inf = 0; inf < 2; inf++) {
        struct rig r;
        struct engine_stats s;
        rig_open(&r, 64);
        *(inf ? &r.model.inf_token : &r.model.nan_token) = 205; /* in no prompt but the bad ones */
        for (int32_t i = 0; i < 8; i++) {
            struct client *c = new_client(&r, 20 * i, 100, 20);
            if (i == 3)
                c->prompt[1] = 205;
            submit(&r, c);
        }
        run_all(&r);
        for (int32_t i = 0; i < 8; i++) {
            struct client *c = &r.clients[i];
            EXPECT_INT_EQ(c->error_code, i == 3 ? ERR_INTERNAL : 0);
            /* A good answer may wander into the token by itself; then it ends there too. */
            if (c->error_code == 0)
                EXPECT_INT_EQ(c->num_tokens, 20);
            check_greedy(c, VOCAB);
        }
        struct client *again = new_client(&r, 60, 100, 20);
        again->prompt[1] = 205;
        r.model.nan_token = r.model.inf_token = -1; /* the cause is gone: nothing of it was kept */
        submit(&r, again);
        run_all(&r);
        EXPECT_INT_EQ(again->num_tokens, 20);
        EXPECT_INT_EQ(again->done.cached_tokens, 0);
        check_greedy(again, VOCAB);
        engine_stats(r.engine, &s);
        EXPECT_TRUE(s.healthy);
        check_idle(&r);
        rig_close(&r);
    }
}

TEST(Engine, AFailedStepEndsItsRequestsAndTheEngineGoesOn) {
    struct rig r;
    struct engine_stats s;
    rig_open(&r, 64);
    r.model.fail_token = 205;
    struct client *bad = new_client(&r, 0, 10, 5);
    bad->prompt[5] = 205;
    submit(&r, bad);
    run_all(&r);
    EXPECT_INT_EQ(bad->error_code, ERR_INTERNAL);
    engine_stats(r.engine, &s);
    EXPECT_FALSE(s.healthy);
    EXPECT_INT_EQ(s.kv_blocks_used, s.kv_blocks_cached);
    r.model.fail_token = -1;
    struct client *good = new_client(&r, 40, 10, 5);
    submit(&r, good);
    run_all(&r);
    EXPECT_INT_EQ(good->num_tokens, 5);
    check_greedy(good, VOCAB);
    check_idle(&r);
    rig_close(&r);
}

TEST(Engine, AFrozenStepIsReportedAsUnhealthyAndIsForgivenAfterwards) {
    struct rig r;
    struct engine_stats s;
    rig_open(&r, 64);
    submit(&r, new_client(&r, 0, 4, 2)); /* so that the engine knows what a step takes */
    run_all(&r);
    check_idle(&r);
    atomic_store(&r.model.hold, true);
    struct client *c = new_client(&r, 0, 4, 2);
    submit(&r, c);
    sleep_ms(200);
    engine_stats(r.engine, &s);
    EXPECT_TRUE(s.healthy);
    sleep_ms(1300);
    engine_stats(r.engine, &s);
    EXPECT_FALSE(s.healthy);
    EXPECT_INT_GT(s.last_step_age_us, 1000000);
    atomic_store(&r.model.hold, false);
    run_all(&r);
    check_idle(&r);
    rig_close(&r);
}

TEST(Engine, AnIdleEngineUsesNoCpu) {
    struct rig r;
    struct rusage before, after;
    rig_open(&r, 64);
    submit(&r, new_client(&r, 0, 4, 20));
    run_all(&r);
    sleep_ms(20);
    getrusage(RUSAGE_SELF, &before);
    sleep_ms(500);
    getrusage(RUSAGE_SELF, &after);
    int64_t us = (after.ru_utime.tv_sec - before.ru_utime.tv_sec) * 1000000 +
                 after.ru_utime.tv_usec - before.ru_utime.tv_usec +
                 (after.ru_stime.tv_sec - before.ru_stime.tv_sec) * 1000000 +
                 after.ru_stime.tv_usec - before.ru_stime.tv_usec;
    EXPECT_INT_LT(us, 20000);
    rig_close(&r);
}

/* --- several callers ------------------------------------------------------------------------ */

struct submitter {
    struct rig *r;
    int32_t first, count;
};

static void *submit_many(void *arg) {
    struct submitter *s = arg;
    for (int32_t i = s->first; i < s->first + s->count; i++) {
        struct client *c = &s->r->clients[i];
        struct request_params p = c->params;
        struct engine_stats stats;
        p.tokens = xcalloc((size_t)c->num_prompt, sizeof *p.tokens);
        p.num_tokens = c->num_prompt;
        memcpy(p.tokens, c->prompt, (size_t)c->num_prompt * sizeof *p.tokens);
        CHECK(engine_submit(s->r->engine, &p, c, &c->handle, NULL) == 0, "refused");
        if (i % 5 == 0)
            engine_cancel(s->r->engine, c->handle);
        engine_stats(s->r->engine, &stats);
    }
    return NULL;
}

static void count_end(void *ctx, const struct engine_event *e) {
    int32_t *ended = ctx;
    *ended += e->kind != EVENT_TOKEN;
}

TEST(Engine, RequestsMayComeFromSeveralThreads) {
    enum { THREADS = 4, EACH = 40 };
    struct rig r;
    struct submitter args[THREADS];
    pthread_t threads[THREADS];
    int32_t ended = 0;
    rig_open(&r, 32);
    for (int32_t i = 0; i < THREADS * EACH; i++)
        new_client(&r, i, 1 + i % 60, 1 + i % 20);
    for (int32_t i = 0; i < THREADS; i++) {
        args[i] = (struct submitter){&r, i * EACH, EACH};
        pthread_create(&threads[i], NULL, submit_many, &args[i]);
    }
    for (int32_t i = 0; i < 300 && ended < THREADS * EACH; i++) {
        engine_wait(r.engine, 100);
        engine_drain(r.engine, count_end, &ended);
    }
    for (int32_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    EXPECT_INT_EQ(ended, THREADS * EACH);
    check_idle(&r);
    rig_close(&r);
}

/* --- text ----------------------------------------------------------------------------------- */

static struct tokenizer *demo_tokenizer(void) {
    struct tokenizer *t = NULL;
    struct error error = {0};
    if (tokenizer_load("configs/demo-moe", &t, &error) != 0)
        FAIL("tokenizer: %s", error.text);
    return t;
}

/* The full text of a client's tokens, NUL-terminated. */
static void decode(const struct tokenizer *t, const struct client *c, struct buffer *out) {
    buffer_clear(out);
    tokenizer_decode(t, c->tokens, (size_t)c->num_tokens, false, out);
    buffer_putc(out, 0);
}

TEST(Engine, TheTextOfAllEventsIsTheDecodedAnswer) {
    struct rig r;
    struct engine_options o;
    struct buffer want = {0};
    struct tokenizer *t = demo_tokenizer();
    ASSERT_TRUE(t != NULL);
    test_options(&o);
    rig_open_with(&r, &o, TEXT_VOCAB, 64, t);
    for (int32_t i = 0; i < 24; i++) {
        struct client *c = new_client(&r, 30 * i, 10, 60);
        c->params.ignore_eos = true;
        submit(&r, c);
    }
    run_all(&r);
    for (int32_t i = 0; i < 24; i++) {
        decode(t, &r.clients[i], &want);
        EXPECT_INT_EQ(r.clients[i].text.len, want.len - 1);
        EXPECT_MEM_EQ(r.clients[i].text.data, want.data, want.len - 1);
    }
    buffer_deinit(&want);
    rig_close(&r);
}

/* Where the text is cut: before the stop string whose end comes first. */
static size_t cut_at(const char *text, char *const *stops, int32_t num_stops) {
    size_t best_end = SIZE_MAX, best = strlen(text);
    for (int32_t i = 0; i < num_stops; i++) {
        const char *at = strstr(text, stops[i]);
        if (!at)
            continue;
        size_t start = (size_t)(at - text), end = start + strlen(stops[i]);
        if (end < best_end || (end == best_end && start < best)) {
            best_end = end;
            best = start;
        }
    }
    return best;
}

TEST(Engine, StopStringsCutTheTextWhereverTheTokensEnd) {
    /* Stop strings are pieces of 1 to 12 bytes of the answer without them, so that they begin and end
     * within tokens; and some that never occur, which hold text back in vain. */
    static char stops[100][2][16];
    struct rig r;
    struct engine_options o;
    struct buffer full = {0};
    uint64_t rng = 23;
    int32_t stopped = 0, never = 0;
    struct tokenizer *t = demo_tokenizer();
    ASSERT_TRUE(t != NULL);
    test_options(&o);
    rig_open_with(&r, &o, TEXT_VOCAB, 64, t);
    struct client *reference = new_client(&r, 3, 10, 80);
    reference->params.ignore_eos = true;
    submit(&r, reference);
    run_all(&r);
    decode(t, reference, &full);
    for (int32_t i = 0; i < 100; i++) {
        struct client *c = new_client(&r, 3, 10, 80);
        c->params.ignore_eos = true;
        c->params.num_stop = 2;
        for (int32_t j = 0; j < 2; j++) {
            int32_t len = 1 + fake_below(&rng, 12), at = fake_below(&rng, (int32_t)full.len - 13);
            memcpy(stops[i][j], full.data + at, (size_t)len);
            if (fake_below(&rng, 3) == 0)
                stops[i][j][len - 1] = '\1';
            c->params.stop[j] = stops[i][j];
        }
        submit(&r, c);
    }
    run_all(&r);
    for (int32_t i = 1; i < r.num_clients; i++) {
        struct client *c = &r.clients[i];
        size_t cut = cut_at(full.data, c->params.stop, 2);
        EXPECT_INT_EQ(c->text.len, cut);
        EXPECT_MEM_EQ(c->text.data, full.data, cut);
        bool found = cut < full.len - 1;
        EXPECT_INT_EQ(c->done.finish_reason, found ? FINISH_STOP : FINISH_LENGTH);
        stopped += found;
        never += !found;
    }
    EXPECT_INT_GT(stopped, 20);
    EXPECT_INT_GT(never, 5);
    buffer_deinit(&full);
    rig_close(&r);
}

TEST(Engine, NoStopStringIsSeenBeforeMinTokens) {
    struct rig r;
    struct engine_options o;
    struct tokenizer *t = demo_tokenizer();
    char stop[8] = {0};
    ASSERT_TRUE(t != NULL);
    test_options(&o);
    rig_open_with(&r, &o, TEXT_VOCAB, 64, t);
    struct client *reference = new_client(&r, 3, 10, 40);
    reference->params.ignore_eos = true;
    submit(&r, reference);
    run_all(&r);
    stop[0] = reference->text.data[0];
    struct client *early = new_client(&r, 3, 10, 40), *late = new_client(&r, 3, 10, 40);
    early->params.ignore_eos = late->params.ignore_eos = true;
    early->params.num_stop = late->params.num_stop = 1;
    early->params.stop[0] = late->params.stop[0] = stop;
    late->params.min_tokens = 40;
    submit(&r, early);
    submit(&r, late);
    run_all(&r);
    EXPECT_INT_EQ(early->text.len, 0);
    EXPECT_INT_EQ(early->done.finish_reason, FINISH_STOP);
    EXPECT_INT_EQ(late->num_tokens, 40);
    EXPECT_INT_EQ(late->text.len, reference->text.len);
    rig_close(&r);
}

/* --- engine_create -------------------------------------------------------------------------- */

TEST(Engine, CreateSaysWhatIsWrongWithItsOptions) {
    static const struct {
        const char *device, *load_format, *kv_cache_dtype, *chat_template, *model;
        int32_t ranks;
        int rc;
    } cases[] = {
        {"cuda", "auto", "auto", NULL, "configs/demo-moe", 1, ERR_UNSUPPORTED},
        {"tpu", "auto", "auto", NULL, "configs/demo-moe", 1, ERR_CONFIG},
        {"ref", "gguf", "auto", NULL, "configs/demo-moe", 1, ERR_CONFIG},
        {"ref", "auto", "int3", NULL, "configs/demo-moe", 1, ERR_CONFIG},
        {"ref", "auto", "auto", "nonsense", "configs/demo-moe", 1, ERR_CONFIG},
        {"ref", "auto", "auto", NULL, "configs/demo-moe", 99, ERR_CONFIG},
        {"ref", "auto", "auto", NULL, "no/such/folder", 1, ERR_NOT_FOUND},
        {"ref", "auto", "auto", NULL, NULL, 1, ERR_CONFIG},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct engine_options o;
        struct engine *e = NULL;
        struct error error = {0};
        engine_options_default(&o);
        o.device = cases[i].device;
        o.load_format = cases[i].load_format;
        o.kv_cache_dtype = cases[i].kv_cache_dtype;
        o.chat_template = cases[i].chat_template;
        o.model = cases[i].model;
        o.ranks = cases[i].ranks;
        EXPECT_INT_EQ(engine_create(&o, NULL, NULL, &e, &error), cases[i].rc);
        EXPECT_TRUE(error.text[0] != 0);
    }
}
