/* The engine with a fake model: generation, logprobs, the ends of a request. */
#include <string.h>

#include "host/clock.h"
#include "host/error.h"
#include "host/sampler.h"
#include "tests/engine_rig.h"
#include "tests/shim.h"

/* --- generation ----------------------------------------------------------------------------- */

TEST(Engine, ARequestGetsItsTokensAndEnds) {
    struct rig r;
    rig_open(&r, 32);
    struct client *c = rig_client(&r, 7, 5, 12);
    EXPECT_INT_EQ(rig_submit(&r, c), 0);
    rig_run(&r);
    EXPECT_INT_EQ(c->num_tokens, 12);
    EXPECT_INT_EQ(c->done.finish_reason, FINISH_LENGTH);
    EXPECT_INT_EQ(c->text.len, 0); /* there is no tokenizer */
    rig_check_greedy(c, RIG_VOCAB);
    rig_check_idle(&r);
    EXPECT_INT_GT(atomic_load(&r.wakes), 0);
    rig_close(&r);
}

TEST(Engine, WakesOnlyWhenThereAreEvents) {
    struct rig r;
    struct engine_stats s;
    rig_open(&r, 32);
    rig_submit(&r, rig_client(&r, 7, 200, 1)); /* four steps, events only after the last */
    rig_run(&r);
    engine_stats(r.engine, &s);
    EXPECT_INT_EQ(s.steps_total, 4);
    engine_destroy(r.engine); /* the wake follows the events, so it may still be on its way */
    r.engine = NULL;
    EXPECT_INT_EQ(atomic_load(&r.wakes), 1);
    rig_close(&r);
}

TEST(Engine, ManyRequestsAtOnceWithTooFewBlocksAllGetTheirOwnTokens) {
    struct rig r;
    struct engine_stats s;
    uint64_t rng = 3;
    rig_open(&r, 20);
    for (int32_t i = 0; i < 120; i++) {
        struct client *c = rig_client(&r, fake_below(&rng, 3) * 40, 1 + fake_below(&rng, 90),
                                      1 + fake_below(&rng, 60));
        c->params.prompt_logprobs = fake_below(&rng, 6) ? -1 : 2;
        EXPECT_INT_EQ(rig_submit(&r, c), 0);
    }
    rig_run(&r);
    for (int32_t i = 0; i < r.num_clients; i++) {
        EXPECT_INT_EQ(r.clients[i].num_tokens, r.clients[i].params.max_tokens);
        rig_check_greedy(&r.clients[i], RIG_VOCAB);
    }
    engine_stats(r.engine, &s);
    EXPECT_INT_GT(s.preemptions_total, 0);
    EXPECT_INT_GT(s.prefix_hit_tokens_total, 0);
    EXPECT_INT_EQ(s.requests_total, 120);
    rig_check_idle(&r);
    rig_close(&r);
}

TEST(Engine, ASeededSampleIsTheSameAloneAndInCompany) {
    int32_t alone[40];
    for (int32_t round = 0; round < 2; round++) {
        struct rig r;
        rig_open(&r, round ? 18 : 64);
        for (int32_t i = 0; round == 1 && i < 30; i++)
            rig_submit(&r, rig_client(&r, i, 3 * i + 1, 50));
        struct client *c = rig_client(&r, 11, 30, 40);
        c->params.sampling.temperature = 1;
        c->params.sampling.frequency_penalty = 0.5f;
        c->params.sampling.repetition_penalty = 1.2f;
        c->params.sampling.top_p = 0.9f;
        c->params.sampling.seed = 77;
        c->params.has_seed = true;
        rig_submit(&r, c);
        for (int32_t i = 0; round == 1 && i < 30; i++)
            rig_submit(&r, rig_client(&r, 3 * i, 2 * i + 1, 50));
        rig_run(&r);
        EXPECT_INT_EQ(c->num_tokens, 40);
        if (round == 0)
            memcpy(alone, c->tokens, sizeof alone);
        else
            EXPECT_MEM_EQ(c->tokens, alone, sizeof alone);
        rig_close(&r);
    }
}

TEST(Engine, PenaltiesSeePromptAndAnswer) {
    struct rig r;
    float row[RIG_VOCAB];
    int32_t context[RIG_MAX_LEN], differ = 0;
    struct token_counts counts;
    struct sample want;
    struct sampler *sampler = sampler_create(RIG_VOCAB);
    rig_open(&r, 32);
    struct client *c = rig_client(&r, 3, 150, 60);
    c->params.sampling.repetition_penalty = 1.5f;
    c->params.sampling.frequency_penalty = 0.5f;
    c->params.sampling.presence_penalty = 0.5f;
    rig_submit(&r, c);
    rig_run(&r);
    memcpy(context, c->prompt, sizeof context);
    token_counts_init(&counts, RIG_VOCAB);
    for (int32_t i = 0; i < 150; i++)
        token_counts_add(&counts, c->prompt[i], false);
    for (int32_t i = 0; i < 60; i++) {
        struct sample_args args = {
            .logits = row, .params = &c->params.sampling, .counts = &counts, .index = i};
        fake_logits(context, 150 + i, RIG_VOCAB, row);
        sampler_sample(sampler, &args, &want);
        EXPECT_INT_EQ(c->tokens[i], want.token);
        differ += want.token != fake_next(context, 150 + i, RIG_VOCAB);
        token_counts_add(&counts, want.token, true);
        context[150 + i] = c->tokens[i];
    }
    EXPECT_INT_GT(differ, 5);
    token_counts_deinit(&counts);
    sampler_destroy(sampler);
    rig_close(&r);
}

TEST(Engine, ASecondRequestFindsThePrefixOfTheFirst) {
    struct rig r;
    rig_open(&r, 32);
    struct client *a = rig_client(&r, 0, 50, 4);
    rig_submit(&r, a);
    rig_run(&r);
    struct client *b = rig_client(&r, 0, 50, 4);
    rig_submit(&r, b);
    rig_run(&r);
    EXPECT_INT_EQ(a->done.cached_tokens, 0);
    EXPECT_INT_EQ(b->done.cached_tokens, 48);
    EXPECT_MEM_EQ(a->tokens, b->tokens, 16);
    rig_check_idle(&r);
    rig_close(&r);
}

TEST(Engine, TheContextEndsARequestWithLength) {
    struct rig r;
    rig_open(&r, 64);
    struct client *clipped = rig_client(&r, 0, RIG_MAX_LEN - 5, 100);
    struct client *unbounded = rig_client(&r, 9, RIG_MAX_LEN - 3, 0);
    struct client *last = rig_client(&r, 20, RIG_MAX_LEN - 1, 100);
    struct client *too_long = rig_client(&r, 30, RIG_MAX_LEN, 1);
    EXPECT_INT_EQ(rig_submit(&r, clipped), 0);
    EXPECT_INT_EQ(rig_submit(&r, unbounded), 0);
    EXPECT_INT_EQ(rig_submit(&r, last), 0);
    EXPECT_INT_EQ(rig_submit(&r, too_long), ERR_CONTEXT_LENGTH);
    rig_run(&r);
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
    EXPECT_INT_EQ(info.vocab_size, RIG_VOCAB);
    EXPECT_STR_EQ(info.name, "fake");
    struct client *c = rig_client(&r, 0, 40, 100);
    rig_submit(&r, c);
    rig_run(&r);
    EXPECT_INT_EQ(c->num_tokens, 8);
    rig_close(&r);
}

TEST(Engine, OptionsThatCannotWorkAreRefused) {
    static const struct {
        int32_t seqs, tokens, queued, len;
    } cases[] = {
        {0, 64, 8, 0}, {8, 4, 8, 0}, {8, 64, 0, 0}, {8, 64, 8, RIG_MAX_LEN + 1}, {8, 64, 8, 200}};
    struct fake_model fake;
    struct engine_model model;
    struct engine_options o;
    struct engine *engine;
    fake_model_init(&fake, RIG_VOCAB, 8, 16);
    fake_model_wrap(&fake, RIG_MAX_LEN, &model);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error error = {0};
        rig_options(&o);
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
    float row[RIG_VOCAB];
    struct sample want;
    struct sampler *sampler = sampler_create(RIG_VOCAB);
    rig_open(&r, 32);
    struct client *c = rig_client(&r, 3, 10, 6);
    c->params.sampling.logprobs = 5;
    rig_submit(&r, c);
    rig_run(&r);
    int32_t context[RIG_MAX_LEN];
    memcpy(context, c->prompt, sizeof context);
    for (int32_t i = 0; i < 6; i++) {
        fake_logits(context, 10 + i, RIG_VOCAB, row);
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
    float row[RIG_VOCAB];
    struct sample want;
    struct sampler *sampler = sampler_create(RIG_VOCAB);
    rig_open(&r, 18);
    for (int32_t i = 0; i < 24; i++) {
        struct client *c = rig_client(&r, (i % 2) * 50, 1 + 4 * i, 40);
        c->params.prompt_logprobs = i % 4;
        rig_submit(&r, c);
    }
    rig_run(&r);
    for (int32_t i = 0; i < 24; i++) {
        const struct client *c = &r.clients[i];
        EXPECT_INT_EQ(c->done.num_prompt_logprobs, c->num_prompt);
        EXPECT_INT_EQ(c->prompt_logprobs[0].num_top, 0);
        for (int32_t p = 1; p < c->num_prompt; p++) {
            fake_logits(c->prompt, p, RIG_VOCAB, row);
            sampler_logprobs(sampler, row, c->prompt[p], i % 4, &want);
            EXPECT_TRUE(c->prompt_logprobs[p].logprob == want.logprob);
            EXPECT_INT_EQ(c->prompt_logprobs[p].num_top, i % 4);
            for (int32_t j = 0; j < i % 4; j++)
                EXPECT_INT_EQ(c->prompt_top[p][j].token, want.top_tokens[j]);
        }
        rig_check_greedy(c, RIG_VOCAB);
    }
    sampler_destroy(sampler);
    rig_close(&r);
}

/* --- ends ----------------------------------------------------------------------------------- */

/* An engine whose eos is the k-th token of the greedy answer to the prompt 5, 6, 7, 8. */
static int32_t open_with_eos(struct rig *r, int32_t k) {
    struct engine_options o;
    int32_t context[16] = {5, 6, 7, 8};
    for (int32_t i = 0; i <= k; i++)
        context[4 + i] = fake_next(context, 4 + i, RIG_VOCAB);
    rig_options(&o);
    rig_open_with(r, &o, RIG_VOCAB, 32, context[4 + k], NULL);
    return context[4 + k];
}

TEST(Engine, EosEndsUnlessIgnoredOrTooEarly) {
    struct rig r;
    int32_t eos = open_with_eos(&r, 3);
    struct client *plain = rig_client(&r, 5, 4, 20), *ignoring = rig_client(&r, 5, 4, 20),
                  *patient = rig_client(&r, 5, 4, 20);
    ignoring->params.ignore_eos = true;
    patient->params.min_tokens = 10;
    rig_submit(&r, plain);
    rig_submit(&r, ignoring);
    rig_submit(&r, patient);
    rig_run(&r);
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
    struct client *running = rig_client(&r, 0, 20, 200);
    rig_submit(&r, running);
    while (running->num_tokens < 3) {
        engine_wait(r.engine, 100);
        rig_drain(&r);
    }
    int64_t start = clock_us();
    engine_cancel(r.engine, running->handle);
    engine_cancel(r.engine, running->handle);
    engine_cancel(r.engine, 123456);
    rig_run(&r);
    EXPECT_INT_LT(clock_us() - start, 1000000);
    EXPECT_INT_EQ(running->done.finish_reason, FINISH_CANCELLED);
    EXPECT_STR_EQ(finish_reason_name(running->done.finish_reason), "cancelled");
    rig_check_greedy(running, RIG_VOCAB);
    rig_check_idle(&r);
    engine_cancel(r.engine, running->handle);
    struct client *next = rig_client(&r, 0, 20, 4);
    rig_submit(&r, next);
    rig_run(&r);
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
        struct client *c = rig_client(&r, fake_below(&rng, 4) * 30, 1 + fake_below(&rng, 100),
                                      1 + fake_below(&rng, 40));
        EXPECT_INT_EQ(rig_submit(&r, c), 0);
        if (fake_below(&rng, 2)) {
            struct client *victim = &r.clients[fake_below(&rng, r.num_clients)];
            engine_cancel(r.engine, victim->handle);
        }
        if (fake_below(&rng, 4) == 0)
            rig_sleep_ms(1);
        rig_drain(&r);
    }
    rig_run(&r);
    for (int32_t i = 0; i < r.num_clients; i++) {
        const struct client *c = &r.clients[i];
        EXPECT_INT_EQ(c->num_ends, 1);
        rig_check_greedy(c, RIG_VOCAB);
        if (c->done.finish_reason == FINISH_CANCELLED)
            num_cancelled++;
        else
            EXPECT_INT_EQ(c->num_tokens, c->params.max_tokens);
    }
    EXPECT_INT_GT(num_cancelled, 10);
    rig_check_idle(&r);
    rig_close(&r);
}

TEST(Engine, IsDestroyedWithRequestsInEveryState) {
    struct rig r;
    rig_open(&r, 24);
    r.model.step_us = 2000;
    for (int32_t i = 0; i < 30; i++) {
        struct client *c = rig_client(&r, i, 1 + 3 * i, 100);
        c->params.sampling.presence_penalty = 1;
        c->params.prompt_logprobs = 1;
        rig_submit(&r, c);
    }
    rig_sleep_ms(10);
    rig_submit(&r, rig_client(&r, 0, 5, 5));
    rig_close(&r);
}
