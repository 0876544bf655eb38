/* Counters and histograms: by themselves, and of an engine with a fake model. Every request has a
 * known number of tokens, so what is counted is known exactly; times are only bounded, by how long
 * the fake model's steps sleep. */
#include <string.h>

#include "host/clock.h"
#include "host/error.h"
#include "host/metrics.h"
#include "host/process.h"
#include "tests/engine_rig.h"
#include "tests/shim.h"

static int64_t count_of(const struct metrics *m, enum histogram_id id) {
    return histogram_count(&m->histogram[id]);
}

static double sum_of(const struct metrics *m, enum histogram_id id) {
    return m->histogram[id].sum;
}

/* ---- by themselves --------------------------------------------------------------------------- */

TEST(Metrics, AValueOnABoundIsInTheBucketThatEndsThere) {
    struct metrics m = {0};
    const struct histogram *h = &m.histogram[HIST_TTFT];
    metrics_observe(&m, HIST_TTFT, 0);      /* <= 0.001 */
    metrics_observe(&m, HIST_TTFT, 0.001);  /* <= 0.001 */
    metrics_observe(&m, HIST_TTFT, 0.0011); /* <= 0.005 */
    metrics_observe(&m, HIST_TTFT, 2560);   /* <= 2560, the last bound */
    metrics_observe(&m, HIST_TTFT, 2561);   /* above */
    EXPECT_INT_EQ(histogram_info(HIST_TTFT)->num_bounds, 22);
    EXPECT_INT_EQ(h->counts[0], 2);
    EXPECT_INT_EQ(h->counts[1], 1);
    EXPECT_INT_EQ(h->counts[21], 1);
    EXPECT_INT_EQ(h->counts[22], 1);
    EXPECT_INT_EQ(histogram_count(h), 5);
    EXPECT_NEAR(h->sum, 5121.0021, 1e-9);
}

TEST(Metrics, BoundsAscend) {
    for (int32_t id = 0; id < NUM_HISTOGRAMS; id++) {
        const struct histogram_info *info = histogram_info(id);
        EXPECT_TRUE(info->name && info->help && info->num_bounds > 0);
        for (int32_t i = 1; i < info->num_bounds; i++)
            if (!EXPECT_TRUE(info->bounds[i - 1] < info->bounds[i]))
                FAIL("%s: bound %d", info->name, i);
    }
}

TEST(Metrics, CountsOfTokensShowNoBoundsAboveTheContext) {
    EXPECT_INT_EQ(histogram_num_bounds(HIST_PROMPT_TOKENS, 2048), 11); /* 1 2 5 ... 2000 */
    EXPECT_INT_EQ(histogram_num_bounds(HIST_PROMPT_TOKENS, 2000), 11);
    EXPECT_INT_EQ(histogram_num_bounds(HIST_PROMPT_TOKENS, 1999), 10);
    EXPECT_INT_EQ(histogram_num_bounds(HIST_PROMPT_TOKENS, 1), 1);
    EXPECT_INT_EQ(histogram_num_bounds(HIST_TTFT, 1), 22);
}

TEST(Metrics, SumsAddEveryCounter) {
    struct metrics a = {0}, b = {0};
    metrics_observe(&a, HIST_STEP, 0.3);
    metrics_observe(&b, HIST_STEP, 0.4);
    metrics_observe(&b, HIST_STEP, 100);
    a.finished[FINISH_STOP] = 2;
    b.finished[FINISH_STOP] = 3;
    metrics_count_failure(&b, ERR_TIMEOUT);
    metrics_add(&a, &b);
    EXPECT_INT_EQ(count_of(&a, HIST_STEP), 3);
    EXPECT_NEAR(sum_of(&a, HIST_STEP), 100.7, 1e-9);
    EXPECT_INT_EQ(a.finished[FINISH_STOP], 5);
    EXPECT_INT_EQ(a.failures[-ERR_TIMEOUT], 1);
}

TEST(Metrics, TheProcessIsKnown) {
    struct process_info p;
    process_info(&p);
    EXPECT_INT_GT(p.resident_bytes, 1 << 20);
    EXPECT_INT_GE(p.virtual_bytes, p.resident_bytes);
    EXPECT_INT_GE(p.open_fds, 3);
    EXPECT_INT_GE(p.max_fds, p.open_fds);
    EXPECT_INT_GE(p.major_faults, 0);
    EXPECT_TRUE(p.cpu_seconds > 0);
    EXPECT_TRUE(p.start_time > 1.6e9);
}

TEST(Metrics, TheProcessHasStartedOnce) {
    struct process_info first, p;
    process_info(&first);
    for (int32_t i = 0; i < 1000; i++) {
        process_info(&p);
        if (!EXPECT_TRUE(p.start_time == first.start_time))
            break;
    }
}

/* ---- of an engine ---------------------------------------------------------------------------- */

/* Three requests of 10, 20 and 40 prompt tokens and 1, 5 and 8 generated; steps of 2 ms. */
TEST(Metrics, KnownRequestsAreCountedExactly) {
    struct rig r;
    struct metrics m;
    enum { STEP_MS = 2 };
    rig_open(&r, 64);
    r.model.step_us = STEP_MS * 1000;
    rig_submit(&r, rig_client(&r, 0, 10, 1));
    rig_submit(&r, rig_client(&r, 50, 20, 5));
    rig_submit(&r, rig_client(&r, 100, 40, 8));
    int64_t start_us = clock_us();
    rig_run(&r);
    double elapsed = (double)(clock_us() - start_us + 1000) / 1e6;
    engine_metrics(r.engine, &m);
    EXPECT_INT_EQ(m.finished[FINISH_LENGTH], 3);
    EXPECT_INT_EQ(m.finished[FINISH_STOP], 0);
    EXPECT_INT_EQ(count_of(&m, HIST_TTFT), 3);
    EXPECT_INT_EQ(count_of(&m, HIST_ITL), 0 + 4 + 7);
    EXPECT_INT_EQ(count_of(&m, HIST_E2E), 3);
    EXPECT_INT_EQ(count_of(&m, HIST_QUEUE), 3);
    EXPECT_INT_EQ(count_of(&m, HIST_PREFILL), 3);
    EXPECT_INT_EQ(count_of(&m, HIST_DECODE), 3);
    EXPECT_INT_EQ(count_of(&m, HIST_INFERENCE), 3);
    EXPECT_NEAR(sum_of(&m, HIST_PROMPT_TOKENS), 70, 0);
    EXPECT_INT_EQ(m.histogram[HIST_PROMPT_TOKENS].counts[3], 1); /* 10 */
    EXPECT_INT_EQ(m.histogram[HIST_PROMPT_TOKENS].counts[4], 1); /* 20 */
    EXPECT_INT_EQ(m.histogram[HIST_PROMPT_TOKENS].counts[5], 1); /* 40, up to 50 */
    EXPECT_NEAR(sum_of(&m, HIST_GENERATION_TOKENS), 14, 0);
    /* All prompt tokens, and every generated one but each request's last, are computed. */
    EXPECT_NEAR(sum_of(&m, HIST_ITERATION_TOKENS), 70 + 14 - 3, 0);
    EXPECT_INT_EQ(count_of(&m, HIST_STEP), atomic_load(&r.model.num_steps));
    EXPECT_INT_EQ(count_of(&m, HIST_ITERATION_TOKENS), atomic_load(&r.model.num_steps));
    EXPECT_TRUE(sum_of(&m, HIST_STEP) >= STEP_MS * 1e-3 * atomic_load(&r.model.num_steps));
    EXPECT_TRUE(sum_of(&m, HIST_STEP) <= elapsed);
    EXPECT_TRUE(sum_of(&m, HIST_ITL) >= STEP_MS * 1e-3 * 11);
    EXPECT_TRUE(sum_of(&m, HIST_TTFT) >= STEP_MS * 1e-3 * 3);
    /* Parts of each request's time add up. */
    EXPECT_NEAR(sum_of(&m, HIST_PREFILL) + sum_of(&m, HIST_DECODE), sum_of(&m, HIST_INFERENCE),
                1e-9);
    EXPECT_NEAR(sum_of(&m, HIST_QUEUE) + sum_of(&m, HIST_PREFILL), sum_of(&m, HIST_TTFT), 1e-9);
    EXPECT_NEAR(sum_of(&m, HIST_DECODE), sum_of(&m, HIST_ITL), 1e-9);
    EXPECT_TRUE(sum_of(&m, HIST_E2E) >= sum_of(&m, HIST_QUEUE) + sum_of(&m, HIST_INFERENCE));
    rig_close(&r);
}

TEST(Metrics, CancelledRequestsHaveNoTimesOfWhatTheyDidNotReach) {
    struct rig r;
    struct engine_options o;
    struct metrics m;
    rig_options(&o);
    o.max_num_seqs = 1;
    rig_open_with(&r, &o, RIG_VOCAB, 64, -1, NULL);
    atomic_store(&r.model.hold, true);
    rig_submit(&r, rig_client(&r, 0, 10, 100));
    while (atomic_load(&r.model.num_steps) == 0)
        rig_sleep_ms(1);
    struct client *queued = rig_client(&r, 50, 10, 100);
    rig_submit(&r, queued);
    engine_cancel(r.engine, queued->handle);
    engine_cancel(r.engine, r.clients[0].handle);
    atomic_store(&r.model.hold, false);
    rig_run(&r);
    engine_metrics(r.engine, &m);
    EXPECT_INT_EQ(m.finished[FINISH_CANCELLED], 2);
    EXPECT_INT_EQ(count_of(&m, HIST_E2E), 2);
    EXPECT_INT_EQ(count_of(&m, HIST_QUEUE), 1);
    EXPECT_INT_LE(count_of(&m, HIST_TTFT), 1);
    EXPECT_INT_EQ(count_of(&m, HIST_PREFILL), count_of(&m, HIST_TTFT));
    rig_close(&r);
}

TEST(Metrics, RefusalsAndFailedStepsAreCountedByCode) {
    struct rig r;
    struct metrics m;
    rig_open(&r, 64);
    r.model.fail_token = 199;
    EXPECT_INT_EQ(rig_submit(&r, rig_client(&r, 0, 0, 4)), ERR_INVALID_REQUEST);
    EXPECT_INT_EQ(rig_submit(&r, rig_client(&r, 0, RIG_MAX_LEN, 4)), ERR_CONTEXT_LENGTH);
    EXPECT_INT_EQ(rig_submit(&r, rig_client(&r, 199, 1, 4)), 0); /* its step fails */
    rig_run(&r);
    EXPECT_INT_EQ(rig_submit(&r, rig_client(&r, 0, 4, 4)), 0);
    rig_run(&r);
    engine_stop_accepting(r.engine);
    EXPECT_INT_EQ(rig_submit(&r, rig_client(&r, 0, 4, 4)), ERR_SHUTTING_DOWN);
    engine_metrics(r.engine, &m);
    EXPECT_INT_EQ(m.failures[-ERR_INVALID_REQUEST], 1);
    EXPECT_INT_EQ(m.failures[-ERR_CONTEXT_LENGTH], 1);
    EXPECT_INT_EQ(m.failures[-ERR_SHUTTING_DOWN], 1);
    EXPECT_INT_EQ(m.failures[-ERR_INTERNAL], 1);
    EXPECT_INT_EQ(m.finished[FINISH_LENGTH], 1);
    EXPECT_INT_EQ(count_of(&m, HIST_E2E), 1); /* failures have no latency */
    rig_close(&r);
}

/* ---- time limits of requests ----------------------------------------------------------------- */

/* One runs, one waits for its place; both are late long before 200 tokens of 5 ms each. */
TEST(Metrics, LateRequestsEndQueuedOrRunningAndFreeTheirBlocks) {
    struct rig r;
    struct engine_options o;
    struct engine_stats s;
    struct metrics m;
    rig_options(&o);
    o.max_num_seqs = 1;
    o.request_timeout_s = 0.1f;
    rig_open_with(&r, &o, RIG_VOCAB, 64, -1, NULL);
    r.model.step_us = 5000;
    int64_t start_us = clock_us();
    struct client *running = rig_client(&r, 0, 10, 200), *queued = rig_client(&r, 50, 10, 200);
    running->params.arrival_us = queued->params.arrival_us = start_us; /* late at the same time */
    EXPECT_INT_EQ(rig_submit(&r, running), 0);
    EXPECT_INT_EQ(rig_submit(&r, queued), 0);
    rig_run(&r);
    int64_t took_us = clock_us() - start_us;
    EXPECT_INT_EQ(running->error_code, ERR_TIMEOUT);
    EXPECT_INT_EQ(queued->error_code, ERR_TIMEOUT);
    EXPECT_INT_GT(running->num_tokens, 0);
    EXPECT_INT_LT(running->num_tokens, 200);
    EXPECT_INT_EQ(queued->num_tokens, 0);
    /* Their last events say what they took, as those of requests that are done do. */
    EXPECT_INT_EQ(running->done.prompt_tokens, 10);
    EXPECT_INT_EQ(running->done.completion_tokens, running->num_tokens);
    EXPECT_TRUE(running->done.ttft_ms > 0 && running->done.total_ms >= 100);
    EXPECT_INT_EQ(queued->done.completion_tokens, 0);
    EXPECT_TRUE(queued->done.ttft_ms == 0 && queued->done.total_ms >= 100);
    EXPECT_INT_GE(took_us, 100000);
    EXPECT_INT_LT(took_us, 900000); /* 200 tokens take a second */
    engine_stats(r.engine, &s);
    EXPECT_INT_EQ(s.kv_blocks_used, s.kv_blocks_cached);
    EXPECT_INT_EQ(s.waiting_tokens, 0);
    engine_metrics(r.engine, &m);
    EXPECT_INT_EQ(m.failures[-ERR_TIMEOUT], 2);
    EXPECT_INT_EQ(count_of(&m, HIST_E2E), 0);

    struct client *quick = rig_client(&r, 100, 10, 3);
    EXPECT_INT_EQ(rig_submit(&r, quick), 0);
    rig_run(&r);
    EXPECT_INT_EQ(quick->error_code, 0);
    rig_check_greedy(quick, RIG_VOCAB);
    rig_check_idle(&r);
    rig_close(&r);
}

/* Time counts from when the request arrived, not from when it was submitted. */
TEST(Metrics, TheLimitCountsFromTheArrival) {
    struct rig r;
    struct engine_options o;
    rig_options(&o);
    o.request_timeout_s = 3600;
    rig_open_with(&r, &o, RIG_VOCAB, 64, -1, NULL);
    struct client *late = rig_client(&r, 0, 10, 50), *fine = rig_client(&r, 50, 10, 50);
    late->params.arrival_us = clock_us() - (int64_t)3601 * 1000000;
    EXPECT_INT_EQ(rig_submit(&r, fine), 0);
    EXPECT_INT_EQ(rig_submit(&r, late), 0);
    rig_run(&r);
    EXPECT_INT_EQ(late->error_code, ERR_TIMEOUT);
    EXPECT_INT_EQ(fine->error_code, 0);
    rig_check_greedy(fine, RIG_VOCAB);
    rig_close(&r);
}

/* ---- prompt tokens that wait ----------------------------------------------------------------- */

TEST(Metrics, PromptTokensThatWaitAreBounded) {
    struct rig r;
    struct engine_options o;
    struct engine_stats s;
    rig_options(&o);
    o.max_num_seqs = 1;
    o.max_queued_tokens = 100;
    rig_open_with(&r, &o, RIG_VOCAB, 64, -1, NULL);
    atomic_store(&r.model.hold, true);
    EXPECT_INT_EQ(rig_submit(&r, rig_client(&r, 0, 10, 4)), 0);
    while (atomic_load(&r.model.num_steps) == 0)
        rig_sleep_ms(1);
    /* With nobody waiting a prompt may be longer than the limit. */
    EXPECT_INT_EQ(rig_submit(&r, rig_client(&r, 20, 120, 4)), 0);
    EXPECT_INT_EQ(rig_submit(&r, rig_client(&r, 30, 1, 4)), ERR_OVERLOADED);
    engine_stats(r.engine, &s);
    EXPECT_INT_EQ(s.waiting, 1);
    EXPECT_INT_EQ(s.waiting_tokens, 120);
    atomic_store(&r.model.hold, false);
    rig_run(&r);
    atomic_store(&r.model.hold, true);
    int32_t steps = atomic_load(&r.model.num_steps);
    EXPECT_INT_EQ(rig_submit(&r, rig_client(&r, 0, 10, 4)), 0);
    while (atomic_load(&r.model.num_steps) == steps)
        rig_sleep_ms(1);
    EXPECT_INT_EQ(rig_submit(&r, rig_client(&r, 40, 60, 4)), 0);
    EXPECT_INT_EQ(rig_submit(&r, rig_client(&r, 50, 41, 4)), ERR_OVERLOADED);
    EXPECT_INT_EQ(rig_submit(&r, rig_client(&r, 60, 40, 4)), 0);
    atomic_store(&r.model.hold, false);
    rig_run(&r);
    rig_check_idle(&r);
    rig_close(&r);
}
