/* The engine with a fake model: refusals, broken steps, idleness, several callers. */
#include <math.h>
#include <pthread.h>
#include <string.h>
#include <sys/resource.h>

#include "host/clock.h"
#include "host/error.h"
#include "host/mem.h"
#include "tests/engine_rig.h"
#include "tests/shim.h"

/* --- refusals ------------------------------------------------------------------------------- */

TEST(Engine, AFullQueueRefusesAtOnce) {
    struct rig r;
    struct engine_options o;
    struct engine_stats s;
    int32_t refused = 0;
    rig_options(&o);
    o.max_num_seqs = 2;
    o.max_queued_requests = 5;
    rig_open_with(&r, &o, RIG_VOCAB, 32, -1, NULL);
    atomic_store(&r.model.hold, true);
    rig_submit(&r, rig_client(&r, 0, 4, 4));
    rig_submit(&r, rig_client(&r, 50, 4, 4));
    while (atomic_load(&r.model.num_steps) == 0)
        rig_sleep_ms(1);
    int64_t start = clock_us();
    for (int32_t i = 0; i < 20; i++)
        refused += rig_submit(&r, rig_client(&r, 100 + i, 4, 4)) == ERR_OVERLOADED;
    EXPECT_INT_LT(clock_us() - start, 500000);
    engine_stats(r.engine, &s);
    EXPECT_INT_EQ(s.waiting, 5);
    EXPECT_INT_GE(s.running, 1); /* what the held step admitted; the second may have come later */
    EXPECT_INT_EQ(refused, 20 + 2 - s.running - 5);
    atomic_store(&r.model.hold, false);
    rig_run(&r);
    struct client *c = rig_client(&r, 0, 4, 4);
    EXPECT_INT_EQ(rig_submit(&r, c), 0);
    rig_run(&r);
    rig_check_greedy(c, RIG_VOCAB);
    rig_check_idle(&r);
    rig_close(&r);
}

TEST(Engine, AfterStopAcceptingWhatIsQueuedStillFinishes) {
    struct rig r;
    rig_open(&r, 32);
    r.model.step_us = 1000;
    for (int32_t i = 0; i < 20; i++)
        rig_submit(&r, rig_client(&r, i, 10, 10));
    engine_stop_accepting(r.engine);
    EXPECT_INT_EQ(rig_submit(&r, rig_client(&r, 0, 4, 4)), ERR_SHUTTING_DOWN);
    rig_run(&r);
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
    case 0:
        c->prompt[2] = -1;
        break;
    case 1:
        c->prompt[0] = RIG_VOCAB;
        break;
    case 2:
        p->max_tokens = -1;
        break;
    case 3:
        p->min_tokens = 5;
        break; /* more than max_tokens */
    case 4:
        s->temperature = -0.1f;
        break;
    case 5:
        s->temperature = NAN;
        break;
    case 6:
        s->top_k = -2;
        break;
    case 7:
        s->top_p = 0;
        break;
    case 8:
        s->top_p = 1.5f;
        break;
    case 9:
        s->min_p = -0.1f;
        break;
    case 10:
        s->repetition_penalty = 0;
        break;
    case 11:
        s->presence_penalty = 2.1f;
        break;
    case 12:
        s->frequency_penalty = INFINITY;
        break;
    case 13:
        s->logprobs = 21;
        break;
    case 14:
        p->prompt_logprobs = -2;
        break;
    case 15:
        p->stop[0] = empty, p->num_stop = 1;
        break;
    case 16:
        p->stop[0] = longest, p->num_stop = 1;
        break;
    default:
        p->min_tokens = -1;
        break;
    }
}

TEST(Engine, EveryBadRequestIsRefusedAndAGoodOneFollows) {
    struct rig r;
    rig_open(&r, 32);
    for (int32_t how = 0; how < 18; how++) {
        struct client *bad = rig_client(&r, 0, 4, 4), *good = rig_client(&r, how, 4, 4);
        spoil(bad, how);
        EXPECT_INT_EQ(rig_submit(&r, bad), ERR_INVALID_REQUEST);
        EXPECT_INT_EQ(rig_submit(&r, good), 0);
        rig_run(&r);
        rig_check_greedy(good, RIG_VOCAB);
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
            struct client *c = rig_client(&r, 20 * i, 100, 20);
            if (i == 3)
                c->prompt[1] = 205;
            rig_submit(&r, c);
        }
        rig_run(&r);
        for (int32_t i = 0; i < 8; i++) {
            struct client *c = &r.clients[i];
            EXPECT_INT_EQ(c->error_code, i == 3 ? ERR_INTERNAL : 0);
            /* A good answer may wander into the token by itself; then it ends there too. */
            if (c->error_code == 0)
                EXPECT_INT_EQ(c->num_tokens, 20);
            rig_check_greedy(c, RIG_VOCAB);
        }
        struct client *again = rig_client(&r, 60, 100, 20);
        again->prompt[1] = 205;
        r.model.nan_token = r.model.inf_token = -1; /* the cause is gone: nothing of it was kept */
        rig_submit(&r, again);
        rig_run(&r);
        EXPECT_INT_EQ(again->num_tokens, 20);
        EXPECT_INT_EQ(again->done.cached_tokens, 0);
        rig_check_greedy(again, RIG_VOCAB);
        engine_stats(r.engine, &s);
        EXPECT_TRUE(s.healthy);
        rig_check_idle(&r);
        rig_close(&r);
    }
}

/* A long prompt's first chunk is not finite: the request ends there, and nothing of it is shared,
 * although no token of it was to be sampled yet. */
TEST(Engine, ANanInAnEarlyChunkIsFoundBeforeItsBlocksAreShared) {
    struct rig r;
    rig_open(&r, 64);
    r.model.nan_token = 205;
    struct client *bad = rig_client(&r, 0, 200, 5); /* 64 tokens a step */
    bad->prompt[10] = 205;
    rig_submit(&r, bad);
    rig_run(&r);
    EXPECT_INT_EQ(bad->error_code, ERR_INTERNAL);
    EXPECT_INT_EQ(atomic_load(&r.model.num_steps), 1);
    rig_check_idle(&r);
    rig_close(&r);
}

TEST(Engine, AFailedStepEndsItsRequestsAndTheEngineGoesOn) {
    struct rig r;
    struct engine_stats s;
    rig_open(&r, 64);
    r.model.fail_token = 205;
    struct client *bad = rig_client(&r, 0, 10, 5);
    bad->prompt[5] = 205;
    rig_submit(&r, bad);
    rig_run(&r);
    EXPECT_INT_EQ(bad->error_code, ERR_INTERNAL);
    engine_stats(r.engine, &s);
    EXPECT_FALSE(s.healthy);
    EXPECT_INT_EQ(s.kv_blocks_used, s.kv_blocks_cached);
    r.model.fail_token = -1;
    struct client *good = rig_client(&r, 40, 10, 5);
    rig_submit(&r, good);
    rig_run(&r);
    EXPECT_INT_EQ(good->num_tokens, 5);
    rig_check_greedy(good, RIG_VOCAB);
    rig_check_idle(&r);
    rig_close(&r);
}

/* Steps that fail are repeated, and clients notice nothing but the time. */
TEST(Engine, FailedStepsAreComputedAnewWhereTheModelRecovers) {
    struct rig r;
    struct engine_stats s;
    rig_open_recovering(&r, 64);
    r.model.step_us = 500;
    for (int32_t i = 0; i < 8; i++)
        rig_submit(&r, rig_client(&r, 7 * i, 5 + 9 * i, 40));
    for (int32_t i = 0, steps = 0; i < 4; i++) {
        while (atomic_load(&r.model.num_steps) < steps + 5)
            rig_sleep_ms(1);
        atomic_store(&r.model.fail_steps, 1 + i % 2);
        steps = atomic_load(&r.model.num_steps) + 2;
    }
    rig_run(&r);
    for (int32_t i = 0; i < 8; i++) {
        EXPECT_INT_EQ(r.clients[i].num_tokens, 40);
        rig_check_greedy(&r.clients[i], RIG_VOCAB);
    }
    EXPECT_INT_GE(r.model.num_recoveries, 3);
    engine_stats(r.engine, &s);
    EXPECT_FALSE(s.failed);
    rig_close(&r);
}

static void check_the_end(struct rig *r) {
    struct engine_stats s;
    struct error e = {0};
    atomic_store(&r->model.hold, true); /* until all are there: later ones would be refused */
    rig_submit(r, rig_client(r, 0, 10, 30));
    rig_submit(r, rig_client(r, 50, 70, 30));
    for (int32_t i = 0; i < 20; i++) /* some wait */
        rig_submit(r, rig_client(r, i, 4, 30));
    atomic_store(&r->model.hold, false);
    rig_run(r);
    for (int32_t i = 0; i < r->num_clients; i++)
        EXPECT_INT_EQ(r->clients[i].error_code, ERR_INTERNAL);
    engine_stats(r->engine, &s);
    EXPECT_TRUE(s.failed && !s.healthy);
    EXPECT_INT_EQ(s.running + s.waiting, 0);
    EXPECT_INT_EQ(s.kv_blocks_used, s.kv_blocks_cached);
    EXPECT_TRUE(engine_failure(r->engine, &e));
    EXPECT_TRUE(strstr(e.text, "the fake model") != NULL);
    EXPECT_INT_EQ(rig_submit(r, rig_client(r, 0, 4, 4)), ERR_INTERNAL);
}

TEST(Engine, AModelThatIsLostEndsTheEngineWithAnAnswerToEveryone) {
    struct rig r;
    rig_open_recovering(&r, 64);
    r.model.lost = true;
    r.model.step_us = 2000;
    atomic_store(&r.model.fail_steps, 1);
    check_the_end(&r);
    EXPECT_INT_EQ(r.model.num_recoveries, 1);
    rig_close(&r);
}

TEST(Engine, ItGivesUpWhenStepAfterStepFails) {
    struct rig r;
    rig_open_recovering(&r, 64);
    atomic_store(&r.model.fail_steps, 1000);
    check_the_end(&r);
    EXPECT_INT_EQ(atomic_load(&r.model.num_steps), 3);
    rig_close(&r);
}

TEST(Engine, AFrozenStepIsReportedAsUnhealthyAndIsForgivenAfterwards) {
    struct rig r;
    struct engine_stats s;
    rig_open(&r, 64);
    rig_submit(&r, rig_client(&r, 0, 4, 2)); /* so that the engine knows what a step takes */
    rig_run(&r);
    rig_check_idle(&r);
    atomic_store(&r.model.hold, true);
    struct client *c = rig_client(&r, 0, 4, 2);
    rig_submit(&r, c);
    rig_sleep_ms(200);
    engine_stats(r.engine, &s);
    EXPECT_TRUE(s.healthy);
    rig_sleep_ms(1300);
    engine_stats(r.engine, &s);
    EXPECT_FALSE(s.healthy);
    EXPECT_INT_GT(s.last_step_age_us, 1000000);
    atomic_store(&r.model.hold, false);
    rig_run(&r);
    rig_check_idle(&r);
    rig_close(&r);
}

TEST(Engine, AnIdleEngineUsesNoCpu) {
    struct rig r;
    struct rusage before, after;
    rig_open(&r, 64);
    rig_submit(&r, rig_client(&r, 0, 4, 20));
    rig_run(&r);
    rig_sleep_ms(20);
    getrusage(RUSAGE_SELF, &before);
    rig_sleep_ms(500);
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
        rig_client(&r, i, 1 + i % 60, 1 + i % 20);
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
    rig_check_idle(&r);
    rig_close(&r);
}

/* --- engine_create -------------------------------------------------------------------------- */

TEST(Engine, CreateSaysWhatIsWrongWithItsOptions) {
    static const struct {
        const char *device, *load_format, *kv_cache_dtype, *chat_template, *model;
        int32_t ranks;
        int rc;
    } cases[] = {
        {"cuda", "auto", "auto", NULL, "configs/demo-moe", 1, ERR_CONFIG}, /* and no GPU */
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

TEST(Engine, CreateRefusesFp8ActivationsThatCannotBe) {
    static const struct {
        const char *device, *model, *load_format, *activation_dtype;
        int rc;
    } cases[] = {
        {"ref", "configs/demo-moe", "auto", "int8", ERR_CONFIG},
        {"ref", "configs/demo-moe", "auto", "fp8", ERR_CONFIG}, /* no FP8 weights */
        {"cpu", "tests/data/golden/skywork_moe_fp8", "dummy", "fp8", ERR_UNSUPPORTED},
        {"ref", "tests/data/golden/skywork_moe_fp8", "dummy", "fp8", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct engine_options o;
        struct engine *e = NULL;
        struct error error = {0};
        engine_options_default(&o);
        o.device = cases[i].device;
        o.model = cases[i].model;
        o.load_format = cases[i].load_format;
        o.activation_dtype = cases[i].activation_dtype;
        o.max_num_seqs = 2;
        o.threads = 1;
        if (!EXPECT_INT_EQ(engine_create(&o, NULL, NULL, &e, &error), cases[i].rc))
            FAIL("case %zu: %s", i, error.text);
        EXPECT_TRUE((cases[i].rc != 0) == (strstr(error.text, "--activation-dtype") != NULL));
        engine_destroy(e);
    }
}

static void collect_events(void *ctx, const struct engine_event *e) {
    int32_t *seen = ctx; /* tokens, ends, bytes of text */
    seen[0] += e->kind == EVENT_TOKEN;
    seen[1] += e->kind == EVENT_DONE;
    seen[2] += (int32_t)e->text_len;
}

TEST(Engine, ADummyModelWithoutATokenizerServesTokenIds) {
    struct engine_options o;
    struct engine *e = NULL;
    struct error error = {0};
    struct request_params p;
    uint64_t handle;
    int32_t seen[3] = {0};
    engine_options_default(&o);
    o.model = "tests/data/golden/qwen3_moe"; /* config.json and weights, no tokenizer */
    o.device = "ref";
    o.threads = 1;
    o.max_num_seqs = 2;
    EXPECT_INT_EQ(engine_create(&o, NULL, NULL, &e, &error), ERR_NOT_FOUND);
    o.load_format = "dummy";
    ASSERT_INT_EQ(engine_create(&o, NULL, NULL, &e, &error), 0);
    EXPECT_TRUE(engine_tokenizer(e) == NULL);
    request_params_default(&p);
    p.tokens = xcalloc(5, sizeof *p.tokens);
    p.num_tokens = 5;
    p.max_tokens = 4;
    p.ignore_eos = true;
    EXPECT_INT_EQ(engine_submit(e, &p, NULL, &handle, &error), 0);
    for (int32_t i = 0; i < 100 && seen[1] == 0; i++) {
        engine_wait(e, 100);
        engine_drain(e, collect_events, seen);
    }
    EXPECT_INT_EQ(seen[0], 4);
    EXPECT_INT_EQ(seen[1], 1);
    EXPECT_INT_EQ(seen[2], 0);
    engine_destroy(e);
}
