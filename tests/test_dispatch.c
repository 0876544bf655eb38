/* Several engines behind one set of calls, with fake models (fake_model.h): a token is a pure
 * function of the context, whichever replica computes it. While all models hold their steps no
 * event comes, so loads are known to the token. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/batch.h"
#include "host/chat_template.h"
#include "host/clock.h"
#include "host/dispatch.h"
#include "host/engine_model.h"
#include "host/mem.h"
#include "tests/engine_rig.h"
#include "tests/net_client.h"
#include "tests/shim.h"

enum { MAX_FAKES = 3, VOCAB = RIG_VOCAB, MAX_ASKED = 128, MAX_LEN = RIG_MAX_LEN, WAIT_S = 30 };

/* One request and what came of it. */
struct asked {
    int32_t prompt[MAX_LEN], num_prompt;
    int32_t tokens[MAX_LEN], num_tokens;
    uint64_t handle;
    int32_t num_ends, error_code, cached_tokens;
    enum finish_reason reason;
};

struct group {
    struct engine_options options; /* set before group_open */
    int32_t num_blocks[MAX_FAKES];
    int32_t broken; /* the replica that does not start; -1: none */
    struct fake_model model[MAX_FAKES];
    struct dispatch *d;
    struct asked asked[MAX_ASKED];
    atomic_int num_asked;
    int32_t num_ended;
    atomic_int wakes;
};

/* The group whose engines are being started; start() is given no other context. */
static struct group *starting;

static int start(const struct engine_options *o, void (*wake)(void *), void *wake_ctx,
                 struct engine **out, struct error *error) {
    struct engine_model model;
    struct fake_model *fake = &starting->model[o->replica];
    if (o->replica == starting->broken)
        return error_set(error, ERR_NO_MEMORY, "replica %d is broken", o->replica);
    fake_model_wrap(fake, MAX_LEN, &model);
    model.ranks = 5;
    return engine_create_with_model(o, &model, NULL, NULL, wake, wake_ctx, out, error);
}

static void on_wake(void *ctx) {
    atomic_fetch_add(&((struct group *)ctx)->wakes, 1);
}

static void group_init(struct group *g, int32_t replicas) {
    memset(g, 0, sizeof *g);
    rig_options(&g->options);
    g->options.replicas = replicas;
    g->broken = -1;
    for (int32_t i = 0; i < replicas; i++)
        g->num_blocks[i] = 200;
}

static int try_open(struct group *g, struct error *error) {
    for (int32_t i = 0; i < g->options.replicas; i++) {
        fake_model_init(&g->model[i], VOCAB, g->num_blocks[i], g->options.max_num_seqs + 8);
        g->model[i].recovers = true;
    }
    starting = g;
    return dispatch_create_with(&g->options, start, on_wake, g, &g->d, error);
}

static void group_open(struct group *g) {
    struct error error = {0};
    int rc = try_open(g, &error);
    CHECK(rc == 0, "dispatch_create_with: %s", error.text);
}

static void group_close(struct group *g) {
    dispatch_destroy(g->d);
    for (int32_t i = 0; i < g->options.replicas; i++) {
        EXPECT_INT_EQ(g->model[i].num_errors, 0);
        fake_model_deinit(&g->model[i]);
    }
}

static void hold(struct group *g, bool yes) {
    for (int32_t i = 0; i < g->options.replicas; i++)
        atomic_store(&g->model[i].hold, yes);
}

/* ---- requests -------------------------------------------------------------------------------- */

/* A greedy request; its prompt counts up from base. */
static struct asked *prepare(struct group *g, int32_t base, int32_t num_prompt,
                             struct request_params *p, int32_t max_tokens) {
    int32_t n = atomic_fetch_add(&g->num_asked, 1);
    CHECK(n < MAX_ASKED, "too many requests");
    struct asked *a = &g->asked[n];
    request_params_default(p);
    p->sampling.temperature = 0;
    p->max_tokens = max_tokens;
    p->num_tokens = a->num_prompt = num_prompt;
    p->tokens = xcalloc((size_t)num_prompt, sizeof *p->tokens);
    for (int32_t i = 0; i < num_prompt && i < MAX_LEN; i++)
        a->prompt[i] = p->tokens[i] = (base + i) % VOCAB;
    return a;
}

static int submit(struct group *g, struct asked *a, struct request_params *p) {
    struct error error = {0};
    int rc = dispatch_submit(g->d, p, a, &a->handle, &error);
    if (rc) {
        EXPECT_TRUE(error.text[0] != 0);
        a->num_ends++;
        g->num_ended++;
    }
    return rc;
}

static struct asked *ask(struct group *g, int32_t base, int32_t num_prompt, int32_t max_tokens) {
    struct request_params p;
    struct asked *a = prepare(g, base, num_prompt, &p, max_tokens);
    EXPECT_INT_EQ(submit(g, a, &p), 0);
    return a;
}

static int32_t replica_of(const struct asked *a) {
    return (int32_t)(a->handle >> HANDLE_REPLICA_SHIFT);
}

static void on_event(void *ctx, const struct engine_event *e) {
    struct group *g = ctx;
    struct asked *a = e->user;
    EXPECT_TRUE(e->request == a->handle);
    EXPECT_INT_EQ(a->num_ends, 0); /* nothing follows the end */
    if (e->kind == EVENT_TOKEN) {
        a->tokens[a->num_tokens++] = e->token;
        return;
    }
    a->num_ends++;
    g->num_ended++;
    a->reason = e->finish_reason;
    a->error_code = e->kind == EVENT_ERROR ? e->error_code : 0;
    a->cached_tokens = e->cached_tokens;
    if (e->kind == EVENT_DONE)
        EXPECT_INT_EQ(e->completion_tokens, a->num_tokens);
}

/* Until so many have ended; each token must be the model's. */
static void run_until(struct group *g, int32_t num_ended) {
    int64_t until_us = clock_us() + (int64_t)WAIT_S * 1000000;
    while (g->num_ended < num_ended && clock_us() < until_us) {
        dispatch_wait(g->d, 100);
        dispatch_drain(g->d, on_event, g);
    }
    EXPECT_INT_GE(g->num_ended, num_ended);
}

static void check_greedy(const struct asked *a) {
    int32_t context[2 * MAX_LEN];
    memcpy(context, a->prompt, sizeof a->prompt);
    for (int32_t i = 0; i < a->num_tokens; i++) {
        if (!EXPECT_INT_EQ(a->tokens[i], fake_next(context, a->num_prompt + i, VOCAB)))
            return;
        context[a->num_prompt + i] = a->tokens[i];
    }
}

static void run_all(struct group *g) {
    run_until(g, g->num_asked);
    for (int32_t i = 0; i < g->num_asked; i++)
        check_greedy(&g->asked[i]);
}

static void count_replicas(const struct group *g, int32_t *counts) {
    memset(counts, 0, MAX_FAKES * sizeof *counts);
    for (int32_t i = 0; i < g->num_asked; i++)
        counts[replica_of(&g->asked[i])]++;
}

static void wait_for_running(struct group *g, int32_t replica, int32_t running) {
    struct dispatch_stats s;
    int64_t until_us = clock_us() + (int64_t)WAIT_S * 1000000;
    do {
        dispatch_stats(g->d, &s);
        rig_sleep_ms(1);
    } while (s.replica[replica].running < running && clock_us() < until_us);
    EXPECT_INT_GE(s.replica[replica].running, running);
}

/* ---- who gets what --------------------------------------------------------------------------- */

TEST(Dispatch, EqualLoadSpreadsEvenly) {
    for (int32_t replicas = 1; replicas <= MAX_FAKES; replicas++) {
        static struct group g;
        int32_t counts[MAX_FAKES];
        group_init(&g, replicas);
        group_open(&g);
        hold(&g, true);
        for (int32_t i = 0; i < 24; i++)
            ask(&g, 20 * i, 17, 6);
        count_replicas(&g, counts);
        for (int32_t i = 0; i < replicas; i++)
            EXPECT_INT_EQ(counts[i], 24 / replicas);
        hold(&g, false);
        run_all(&g);
        EXPECT_INT_EQ(g.asked[23].num_tokens, 6);
        group_close(&g);
    }
}

TEST(Dispatch, ASharedPrefixStaysTogetherUntilItsReplicaIsOverloaded) {
    enum { SHARED = 8 * KV_BLOCK_SIZE, ANSWER = 4, TOGETHER = SHARED / (1 + ANSWER) };
    static struct group g;
    group_init(&g, 2);
    g.options.max_queued_requests = 64;
    group_open(&g);
    ask(&g, 7, 40, 1); /* so that the prefix is not the first one's */
    int32_t home = replica_of(ask(&g, 0, SHARED + 1, ANSWER));
    run_all(&g);
    hold(&g, true);
    for (int32_t i = 0; i <= TOGETHER; i++) {
        struct asked *a = ask(&g, 0, SHARED + 1, ANSWER);
        EXPECT_INT_EQ(replica_of(a), home); /* 5 tokens each: 26 of them are 130 behind */
    }
    EXPECT_INT_NE(replica_of(ask(&g, 0, SHARED + 1, ANSWER)), home);
    hold(&g, false);
    run_all(&g);
    for (int32_t i = 2; i < g.num_asked - 1; i++)
        EXPECT_INT_EQ(g.asked[i].cached_tokens, SHARED); /* the guess was right */
    EXPECT_INT_EQ(g.asked[g.num_asked - 1].cached_tokens, 0);
    group_close(&g);
}

TEST(Dispatch, WithoutPrefixCachingPrefixesAreNotFollowed) {
    static struct group g;
    int32_t counts[MAX_FAKES];
    group_init(&g, 2);
    g.options.enable_prefix_caching = false;
    group_open(&g);
    for (int32_t i = 0; i < 6; i++) {
        ask(&g, 0, 100, 2);
        run_all(&g);
    }
    count_replicas(&g, counts);
    EXPECT_INT_EQ(counts[0], 3);
    group_close(&g);
}

TEST(Dispatch, AFullQueueGoesToAnotherAndAllFullAreOverloaded) {
    static struct group g;
    struct request_params p;
    struct dispatch_stats s;
    group_init(&g, 2);
    g.options.max_num_seqs = 1;
    g.options.max_queued_requests = 2;
    group_open(&g);
    int32_t home = replica_of(ask(&g, 0, 129, 1));
    run_all(&g);
    hold(&g, true);
    ask(&g, 0, 129, 1);
    wait_for_running(&g, home, 1);
    for (int32_t i = 0; i < 2; i++)
        EXPECT_INT_EQ(replica_of(ask(&g, 0, 129, 1)), home); /* 2 tokens against 129 */
    struct asked *other = ask(&g, 0, 129, 1);
    EXPECT_INT_EQ(replica_of(other), 1 - home); /* for want of room */
    wait_for_running(&g, 1 - home, 1);
    for (int32_t i = 0; i < 2; i++)
        EXPECT_INT_EQ(replica_of(ask(&g, 0, 129, 1)), 1 - home);
    for (int32_t i = 0; i < 3; i++) {
        struct asked *refused = prepare(&g, 0, 129, &p, 1);
        EXPECT_INT_EQ(submit(&g, refused, &p), ERR_OVERLOADED);
    }
    dispatch_stats(g.d, &s);
    EXPECT_INT_EQ(s.total.running, 2);
    EXPECT_INT_EQ(s.total.waiting, 4);
    hold(&g, false);
    run_all(&g);
    ask(&g, 50, 10, 3);
    run_all(&g);
    group_close(&g);
}

/* Makes the replica that gets the next request fail for good with it. */
static int32_t lose_next(struct group *g) {
    for (int32_t i = 0; i < g->options.replicas; i++) {
        g->model[i].lost = true;
        atomic_store(&g->model[i].fail_steps, 1);
    }
    struct asked *fatal = ask(g, 150, 3, 4);
    run_until(g, g->num_asked);
    EXPECT_INT_EQ(fatal->error_code, ERR_INTERNAL);
    for (int32_t i = 0; i < g->options.replicas; i++)
        atomic_store(&g->model[i].fail_steps, 0);
    return replica_of(fatal);
}

TEST(Dispatch, AFailedReplicaGetsNothingMore) {
    static struct group g;
    struct dispatch_stats s;
    struct request_params p;
    struct error error = {0};
    group_init(&g, 2);
    group_open(&g);
    int32_t bad = lose_next(&g);
    dispatch_stats(g.d, &s);
    EXPECT_TRUE(!s.total.healthy && !s.total.failed);
    EXPECT_TRUE(!s.replica[bad].healthy && s.replica[bad].failed);
    EXPECT_TRUE(s.replica[1 - bad].healthy && !s.replica[1 - bad].failed);
    EXPECT_FALSE(dispatch_failure(g.d, &error));
    EXPECT_INT_EQ(error.code, 0);     /* the others go on */
    for (int32_t i = 0; i < 8; i++) { /* far more than the failed one has */
        struct asked *a = ask(&g, 10 * i, 30, 5);
        EXPECT_INT_EQ(replica_of(a), 1 - bad);
    }
    run_all(&g);
    EXPECT_INT_EQ(g.asked[8].num_tokens, 5);
    EXPECT_INT_EQ(lose_next(&g), 1 - bad);
    dispatch_stats(g.d, &s);
    EXPECT_TRUE(s.total.failed);
    EXPECT_TRUE(dispatch_failure(g.d, &error));
    EXPECT_TRUE(strstr(error.text, "the fake model") != NULL);
    struct asked *last = prepare(&g, 0, 30, &p, 5);
    EXPECT_INT_EQ(submit(&g, last, &p), ERR_INTERNAL);
    group_close(&g);
}

/* Its clients leave while it recovers: it is idle then, and not known to be well. */
TEST(Dispatch, AReplicaWhoseLastStepFailedIsTriedAgain) {
    static struct group g;
    struct dispatch_stats s;
    group_init(&g, 2);
    group_open(&g);
    struct asked *gone = ask(&g, 0, 30, 5);
    int32_t shaken = replica_of(gone);
    run_all(&g);
    hold(&g, true);
    atomic_store(&g.model[shaken].fail_steps, 1);
    gone = ask(&g, 0, 30, 5); /* to its prefix */
    EXPECT_INT_EQ(replica_of(gone), shaken);
    wait_for_running(&g, shaken, 1);
    dispatch_cancel(g.d, gone->handle);
    hold(&g, false);
    run_until(&g, 2);
    dispatch_stats(g.d, &s);
    EXPECT_INT_EQ(gone->reason, FINISH_CANCELLED);
    EXPECT_TRUE(!s.replica[shaken].healthy && !s.replica[shaken].failed);
    struct asked *again = ask(&g, 0, 30, 5);
    EXPECT_INT_EQ(replica_of(again), shaken);
    run_all(&g);
    dispatch_stats(g.d, &s);
    EXPECT_TRUE(s.total.healthy);
    group_close(&g);
}

TEST(Dispatch, ABusyReplicaThatIsNotHealthyIsAvoided) {
    static struct group g;
    struct dispatch_stats s;
    group_init(&g, 2);
    group_open(&g);
    int32_t stuck = replica_of(ask(&g, 0, 130, 1));
    run_all(&g);
    atomic_store(&g.model[stuck].hold, true);
    ask(&g, 0, 130, 1); /* to its prefix */
    int64_t until_us = clock_us() + (int64_t)WAIT_S * 1000000;
    do {
        rig_sleep_ms(20);
        dispatch_stats(g.d, &s);
    } while (s.replica[stuck].healthy && clock_us() < until_us);
    EXPECT_INT_EQ(replica_of(ask(&g, 0, 130, 1)), 1 - stuck);
    atomic_store(&g.model[stuck].hold, false);
    run_all(&g);
    EXPECT_INT_EQ(replica_of(ask(&g, 0, 150, 1)), stuck); /* well again */
    run_all(&g);
    group_close(&g);
}

/* ---- the calls of an engine ------------------------------------------------------------------ */

TEST(Dispatch, CancelEndsTheRequestItNames) {
    static struct group g;
    group_init(&g, 3);
    group_open(&g);
    for (int32_t i = 0; i < MAX_FAKES; i++)
        g.model[i].step_us = 1000;
    for (int32_t i = 0; i < 9; i++)
        ask(&g, 30 * i, 10, 200);
    dispatch_cancel(g.d, g.asked[4].handle);
    dispatch_cancel(g.d, g.asked[8].handle);
    dispatch_cancel(g.d, 0);
    dispatch_cancel(g.d, UINT64_MAX);
    dispatch_cancel(g.d, (UINT64_C(3) << HANDLE_REPLICA_SHIFT) + 1); /* there is no replica 3 */
    run_all(&g);
    for (int32_t i = 0; i < 9; i++) {
        EXPECT_INT_EQ(g.asked[i].reason, i == 4 || i == 8 ? FINISH_CANCELLED : FINISH_LENGTH);
        EXPECT_TRUE(i == 4 || i == 8 || g.asked[i].num_tokens == 200);
    }
    group_close(&g);
}

TEST(Dispatch, HandlesAreUniqueAndHoldTheReplica) {
    static struct group g;
    group_init(&g, 3);
    group_open(&g);
    for (int32_t i = 0; i < 12; i++)
        ask(&g, i, 10, 1);
    for (int32_t i = 0; i < 12; i++) {
        EXPECT_INT_LT(replica_of(&g.asked[i]), 3);
        for (int32_t j = 0; j < i; j++)
            EXPECT_TRUE(g.asked[i].handle != g.asked[j].handle);
    }
    run_all(&g);
    group_close(&g);
}

TEST(Dispatch, StatsAreSumsAndEachReplicasOwn) {
    static struct group g;
    struct dispatch_stats s;
    group_init(&g, 2);
    g.num_blocks[1] = 150;
    g.options.max_num_seqs = 2;
    group_open(&g);
    dispatch_stats(g.d, &s);
    EXPECT_INT_EQ(s.num_replicas, 2);
    EXPECT_INT_EQ(s.total.last_step_age_us, -1);
    EXPECT_INT_EQ(s.total.kv_blocks_total, 350);
    EXPECT_INT_EQ(s.replica[1].kv_blocks_total, 150);
    EXPECT_TRUE(s.total.healthy);
    hold(&g, true);
    ask(&g, 0, 20, 3);
    wait_for_running(&g, 0, 1);
    for (int32_t i = 1; i < 6; i++)
        ask(&g, 40 * i, 20, 3);
    wait_for_running(&g, 1, 1);
    dispatch_stats(g.d, &s);
    EXPECT_INT_EQ(s.replica[0].running + s.replica[0].waiting, 3);
    EXPECT_INT_EQ(s.replica[1].running + s.replica[1].waiting, 3);
    EXPECT_INT_EQ(s.total.running, s.replica[0].running + s.replica[1].running);
    EXPECT_INT_EQ(s.total.waiting, 6 - s.total.running);
    hold(&g, false);
    run_all(&g);
    dispatch_stats(g.d, &s);
    EXPECT_INT_EQ(s.total.running + s.total.waiting, 0);
    EXPECT_INT_EQ(s.total.requests_total, 6);
    EXPECT_INT_EQ(s.total.prompt_tokens_total, 6 * 20);
    EXPECT_INT_EQ(s.total.completion_tokens_total, 6 * 3);
    EXPECT_INT_EQ(s.total.steps_total, s.replica[0].steps_total + s.replica[1].steps_total);
    EXPECT_INT_EQ(s.total.kv_blocks_used,
                  s.replica[0].kv_blocks_used + s.replica[1].kv_blocks_used);
    EXPECT_TRUE(s.total.last_step_age_us >= 0 &&
                s.total.last_step_age_us <= s.replica[0].last_step_age_us &&
                s.total.last_step_age_us <= s.replica[1].last_step_age_us);
    group_close(&g);
}

TEST(Dispatch, EachReplicaWakesAndIsDrained) {
    static struct group g;
    group_init(&g, 2);
    group_open(&g);
    for (int32_t i = 0; i < 2; i++) {
        int32_t wakes = atomic_load(&g.wakes);
        struct asked *a = ask(&g, 90 * i, 10, 1);
        int64_t since_us = clock_us();
        EXPECT_INT_EQ(replica_of(a), i);
        dispatch_wait(g.d, 20000);
        EXPECT_INT_LT(clock_us() - since_us, 10 * 1000000);
        run_all(&g);
        for (int32_t ms = 0; atomic_load(&g.wakes) == wakes && ms < 1000 * WAIT_S; ms++)
            rig_sleep_ms(1); /* the caller is told after dispatch_wait is */
        EXPECT_INT_GT(atomic_load(&g.wakes), wakes);
        dispatch_drain(g.d, on_event, &g);
        since_us = clock_us();
        dispatch_wait(g.d, 30); /* nothing comes any more */
        EXPECT_INT_GE(clock_us() - since_us, 20000);
    }
    group_close(&g);
}

TEST(Dispatch, AfterStopAcceptingWhatIsQueuedStillFinishes) {
    static struct group g;
    struct request_params p;
    group_init(&g, 2);
    group_open(&g);
    g.model[0].step_us = g.model[1].step_us = 1000;
    for (int32_t i = 0; i < 20; i++)
        ask(&g, i, 10, 10);
    dispatch_stop_accepting(g.d);
    for (int32_t i = 0; i < 2; i++) {
        struct asked *a = prepare(&g, 0, 4, &p, 4);
        EXPECT_INT_EQ(submit(&g, a, &p), ERR_SHUTTING_DOWN);
    }
    run_all(&g);
    for (int32_t i = 0; i < 20; i++)
        EXPECT_INT_EQ(g.asked[i].num_tokens, 10);
    group_close(&g);
}

TEST(Dispatch, IsDestroyedWhileAllAreBusy) {
    static struct group g;
    group_init(&g, 3);
    group_open(&g);
    for (int32_t i = 0; i < MAX_FAKES; i++)
        g.model[i].step_us = 2000;
    for (int32_t i = 0; i < 60; i++)
        ask(&g, 3 * i, 20, 200);
    rig_sleep_ms(10);
    dispatch_drain(g.d, on_event, &g);
    int64_t since_us = clock_us();
    group_close(&g);
    EXPECT_INT_LT(clock_us() - since_us, 5 * 1000000);
}

/* Several threads submit while this one drains. */
static void *submit_many(void *arg) {
    struct group *g = arg;
    for (int32_t i = 0; i < 25; i++) {
        struct request_params p;
        struct error error = {0};
        struct asked *a = prepare(g, 13 * i, 5 + i, &p, 3);
        EXPECT_INT_EQ(dispatch_submit(g->d, &p, a, &a->handle, &error), 0);
    }
    return NULL;
}

static void on_count(void *ctx, const struct engine_event *e) {
    *(int32_t *)ctx += e->kind == EVENT_DONE;
}

TEST(Dispatch, AnyThreadMaySubmit) {
    static struct group g;
    pthread_t threads[4];
    struct dispatch_stats s;
    int32_t done = 0;
    group_init(&g, 2);
    group_open(&g);
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, submit_many, &g);
    int64_t until_us = clock_us() + (int64_t)WAIT_S * 1000000;
    while (done < 100 && clock_us() < until_us) {
        dispatch_wait(g.d, 100);
        dispatch_drain(g.d, on_count, &done);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    EXPECT_INT_EQ(done, 100);
    dispatch_stats(g.d, &s);
    EXPECT_INT_EQ(s.total.completion_tokens_total, 300);
    group_close(&g);
}

/* ---- one result, wherever it is computed ----------------------------------------------------- */

/* Ten requests without a seed, drawn at random. */
static void draw(struct group *g, int32_t replicas) {
    group_init(g, replicas);
    g->options.seed = 77;
    group_open(g);
    for (int32_t i = 0; i < 10; i++) {
        struct request_params p;
        struct asked *a = prepare(g, 9 * i, 12, &p, 20);
        p.sampling.temperature = 2;
        EXPECT_INT_EQ(submit(g, a, &p), 0);
    }
    run_until(g, 10);
    group_close(g);
}

TEST(Dispatch, SeedsAreDrawnByTheOrderOfRequests) {
    static struct group one, several;
    draw(&one, 1);
    for (int32_t replicas = 2; replicas <= MAX_FAKES; replicas++) {
        draw(&several, replicas);
        for (int32_t i = 0; i < 10; i++) {
            EXPECT_INT_EQ(several.asked[i].num_tokens, 20);
            EXPECT_MEM_EQ(one.asked[i].tokens, several.asked[i].tokens, 20 * sizeof(int32_t));
        }
    }
}

TEST(Dispatch, TheShortestContextHoldsForAll) {
    static struct group g;
    struct engine_model_info info;
    struct request_params p;
    group_init(&g, 2);
    g.num_blocks[1] = 5;
    group_open(&g);
    dispatch_model_info(g.d, &info);
    EXPECT_INT_EQ(info.max_model_len, 5 * KV_BLOCK_SIZE);
    EXPECT_INT_EQ(info.vocab_size, VOCAB);
    EXPECT_INT_EQ(info.ranks, 5);
    struct asked *a = ask(&g, 0, 50, 0), *b = ask(&g, 60, 50, 100);
    EXPECT_INT_NE(replica_of(a), replica_of(b));
    run_all(&g);
    EXPECT_INT_EQ(a->num_tokens, 30);
    EXPECT_INT_EQ(b->num_tokens, 30);
    struct asked *c = prepare(&g, 0, 50, &p, 100);
    p.min_tokens = 90; /* more than there is room for: as many as there is */
    EXPECT_INT_EQ(submit(&g, c, &p), 0);
    run_all(&g);
    EXPECT_INT_EQ(c->num_tokens, 30);
    for (int32_t i = 0; i < 2; i++) {
        struct asked *refused = prepare(&g, 0, 80, &p, 1);
        EXPECT_INT_EQ(dispatch_check(g.d, &p, NULL), ERR_CONTEXT_LENGTH);
        EXPECT_INT_EQ(submit(&g, refused, &p), ERR_CONTEXT_LENGTH);
    }
    group_close(&g);
}

TEST(Dispatch, DescribesTheFirstAndWhatDiffers) {
    static struct group g;
    struct buffer table = {0};
    group_init(&g, 3);
    g.num_blocks[2] = 150;
    group_open(&g);
    dispatch_describe(g.d, &table);
    buffer_putc(&table, 0);
    const char *others = strstr(table.data, "replicas    3");
    ASSERT_TRUE(others != NULL);
    EXPECT_STR_EQ(strchr(others, '\n') + 1,
                  "replica 1\nreplica 2\n"
                  "context     256 tokens, KV cache 150 blocks of 16 tokens, shared prefixes\n");
    EXPECT_TRUE(strstr(table.data, "model       fake") == table.data);
    buffer_deinit(&table);
    group_close(&g);
}

/* ---- the demo model behind a port ------------------------------------------------------------ */

enum { NUM_PROMPTS = 12 };

/* Sends all of them at once, every third one greedy, seeded, and without a seed; appends the
 * answers to `out` in order. */
static void serve_all(int32_t replicas, int32_t ranks, struct buffer *out) {
    static const char *const kinds[] = {"\"temperature\":0", "\"temperature\":1,\"seed\":7",
                                        "\"temperature\":1"};
    struct net_fixture f;
    struct net_client c;
    struct dispatch_stats s;
    char line[256], id[16];
    net_fixture_init(&f);
    f.engine_options.replicas = replicas;
    f.engine_options.ranks = ranks;
    f.engine_options.seed = 5;
    ASSERT_TRUE(net_fixture_start(&f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
    for (int i = 0; i < NUM_PROMPTS; i++) {
        snprintf(line, sizeof line,
                 "{\"id\":%d,\"prompt\":\"%d of them went\",\"max_tokens\":12,"
                 "\"stream\":false,%s}",
                 i, 7 * i, kinds[i % 3]);
        net_client_puts(&c, line);
    }
    json_t *answers[NUM_PROMPTS] = {0};
    for (int i = 0; i < NUM_PROMPTS; i++) {
        json_t *done = net_client_json(&c);
        json_int_t n = json_integer_value(json_object_get(done, "id"));
        ASSERT_TRUE(json_object_get(done, "done") && n >= 0 && n < NUM_PROMPTS && !answers[n]);
        answers[n] = done;
    }
    for (int i = 0; i < NUM_PROMPTS; i++) {
        snprintf(id, sizeof id, "%d: ", i);
        buffer_puts(out, id);
        buffer_puts(out, json_string_value(json_object_get(answers[i], "text")));
        buffer_putc(out, '\n');
        json_decref(answers[i]);
    }
    buffer_putc(out, 0);
    dispatch_stats(f.dispatch, &s);
    for (int32_t i = 0; i < replicas; i++)
        EXPECT_INT_GT(s.replica[i].requests_total, 0);
    net_client_puts(&c, "{\"op\":\"stats\"}");
    json_t *stats = net_client_json(&c);
    EXPECT_INT_EQ(json_array_size(json_object_get(stats, "replicas")), replicas > 1 ? replicas : 0);
    json_decref(stats);
    net_client_close(&c);
    net_fixture_stop(&f);
}

TEST(Dispatch, AnswersAreTheSameBytesWithAnyNumberOfReplicas) {
    struct buffer one = {0}, several = {0};
    serve_all(1, 1, &one);
    EXPECT_INT_GT(one.len, NUM_PROMPTS * 20);
    for (int32_t replicas = 2; replicas <= 3; replicas++) {
        serve_all(replicas, replicas - 1, &several);
        EXPECT_STR_EQ(one.data, several.data);
        buffer_clear(&several);
    }
    buffer_deinit(&one);
    buffer_deinit(&several);
}

TEST(Dispatch, ThreadsAreDividedAndEachHasOne) {
    static const char *const words[3] = {"AVX2, 2 threads", "AVX2, 1 thread", "AVX2, 1 thread"};
    struct engine_options o, part;
    struct error error = {0};
    engine_options_default(&o);
    o.model = MOESERVE_DEMO_MODEL;
    o.cpu_isa = "avx2";
    o.threads = 4;
    o.replicas = 3;
    for (int32_t i = 0; i < 3; i++) {
        struct buffer table = {0};
        struct engine *engine = NULL;
        ASSERT_INT_EQ(dispatch_share(&o, i, &part, &error), 0);
        ASSERT_INT_EQ(engine_create(&part, NULL, NULL, &engine, &error), 0);
        engine_describe(engine, &table);
        buffer_putc(&table, 0);
        if (!strstr(table.data, words[i]))
            FAIL("replica %d: no '%s' in %s", i, words[i], table.data);
        buffer_deinit(&table);
        engine_destroy(engine);
    }
}

/* A KV cache that would take more than there is: 40% of free memory, for all together. */
TEST(Dispatch, ReplicasAndRanksShareFreeMemory) {
    struct engine_options o;
    struct error error = {0};
    struct dispatch_stats one, four;
    struct dispatch *d = NULL;
    engine_options_default(&o);
    o.model = MOESERVE_DEMO_MODEL;
    o.threads = 1;
    o.max_num_seqs = o.max_num_batched_tokens = 16384; /* 66 GB */
    for (int32_t i = 0; i < 2; i++) {
        ASSERT_INT_EQ(dispatch_create(&o, NULL, NULL, &d, &error), 0);
        dispatch_stats(d, i ? &four : &one);
        dispatch_destroy(d);
        o.ranks = o.replicas = 2;
    }
    if (one.total.kv_blocks_total == 16384 * 128)
        SKIP("there is memory for all that the sequences can want");
    double ratio = (double)four.total.kv_blocks_total / one.total.kv_blocks_total;
    EXPECT_NEAR(ratio, 1, 0.25); /* other programs come and go */
}

/* ---- starting -------------------------------------------------------------------------------- */

TEST(Dispatch, GpusAreSharedInTheirOrder) {
    struct engine_options o, part;
    struct error error = {0};
    engine_options_default(&o);
    o.device = "cuda";
    o.progress = true;
    o.num_gpus = 6;
    for (int32_t i = 0; i < 6; i++)
        o.gpus[i] = 10 - i;
    o.replicas = 3;
    for (int32_t r = 0; r < 3; r++) {
        ASSERT_INT_EQ(dispatch_share(&o, r, &part, &error), 0);
        EXPECT_INT_EQ(part.num_gpus, 2);
        EXPECT_INT_EQ(part.gpus[0], 10 - 2 * r);
        EXPECT_INT_EQ(part.gpus[1], 9 - 2 * r);
        EXPECT_INT_EQ(part.replica, r);
        EXPECT_INT_EQ(part.progress, r == 0); /* one bar */
    }
    o.replicas = 4;
    EXPECT_INT_EQ(dispatch_share(&o, 0, &part, &error), ERR_CONFIG);
    EXPECT_TRUE(strstr(error.text, "--replicas 4") && strstr(error.text, "GPUs, 6") &&
                strstr(error.text, "1, 2, 3, 6"));
    o.replicas = MAX_REPLICAS + 1;
    EXPECT_INT_EQ(dispatch_share(&o, 0, &part, &error), ERR_CONFIG);
    EXPECT_TRUE(strstr(error.text, "1 to 16") != NULL);
    EXPECT_INT_EQ(dispatch_create(&o, NULL, NULL, &(struct dispatch *){NULL}, &error), ERR_CONFIG);
}

TEST(Dispatch, OneThatDoesNotStartEndsThemAll) {
    for (int32_t broken = 0; broken < MAX_FAKES; broken++) {
        static struct group g;
        struct error error = {0};
        group_init(&g, MAX_FAKES);
        g.broken = broken;
        EXPECT_INT_EQ(try_open(&g, &error), ERR_NO_MEMORY);
        EXPECT_TRUE(strstr(error.text, "is broken") && error.text[8] == (char)('0' + broken));
        EXPECT_TRUE(g.d == NULL);
        group_close(&g);
    }
}
