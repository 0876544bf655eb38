/* Rates of late, and when a refused client may come back; times are made up. */
#include <string.h>

#include "host/throughput.h"
#include "tests/shim.h"

enum { SECOND = 1000000 };

TEST(Throughput, RatesArePerSecondOfSteps) {
    struct throughput t = {0};
    /* Ten steps of 100 ms and 50 tokens within 5 s: busy for one second of them. */
    for (int64_t i = 0; i < 10; i++)
        throughput_count_step(&t, 100 * SECOND + i * SECOND / 2, SECOND / 10, 50);
    for (int64_t i = 0; i < 3; i++)
        throughput_count_end(&t, 104 * SECOND);
    struct throughput_rates r = throughput_rates(&t, 105 * SECOND);
    EXPECT_NEAR(r.tokens_per_s, 500, 1e-9);
    EXPECT_NEAR(r.ended_per_s, 3, 1e-9);
    EXPECT_INT_EQ(r.num_ended, 3);
}

TEST(Throughput, WhatIsOlderThanEightSecondsIsForgotten) {
    struct throughput t = {0};
    throughput_count_step(&t, 100 * SECOND, SECOND, 1000);
    throughput_count_step(&t, 104 * SECOND, SECOND, 10);
    EXPECT_NEAR(throughput_rates(&t, 107 * SECOND).tokens_per_s, 505, 1e-9);
    EXPECT_NEAR(throughput_rates(&t, 109 * SECOND).tokens_per_s, 10, 1e-9);
    EXPECT_NEAR(throughput_rates(&t, 200 * SECOND).tokens_per_s, 0, 0);
    throughput_count_step(&t, 108 * SECOND, SECOND, 20); /* takes the place of the first */
    EXPECT_NEAR(throughput_rates(&t, 109 * SECOND).tokens_per_s, 15, 1e-9);
}

TEST(Throughput, AllTimeHasWhatTheLastSecondsHaveForgotten) {
    struct throughput t = {0};
    EXPECT_NEAR(throughput_all_rates(&t).tokens_per_s, 0, 0);
    throughput_count_step(&t, 100 * SECOND, SECOND, 1000);
    throughput_count_step(&t, 104 * SECOND, SECOND, 10);
    for (int64_t i = 0; i < 6; i++)
        throughput_count_end(&t, 104 * SECOND);
    struct throughput_rates r = throughput_all_rates(&t);
    EXPECT_NEAR(throughput_rates(&t, 200 * SECOND).tokens_per_s, 0, 0);
    EXPECT_NEAR(r.tokens_per_s, 505, 1e-9);
    EXPECT_NEAR(r.ended_per_s, 3, 1e-9);
    EXPECT_INT_EQ(r.num_ended, 6);
}

static int32_t retry(double tokens_per_s, double ended_per_s, int32_t ended, int32_t waiting,
                     int64_t prompt_tokens, double mean_generated) {
    const struct throughput_rates r = {tokens_per_s, ended_per_s, ended};
    const struct waiting_work w = {
        .requests = waiting, .prompt_tokens = prompt_tokens, .mean_generated = mean_generated};
    return throughput_retry_after_s(&r, &w);
}

TEST(Throughput, RetryAfterIsHalfTheTimeThatTheQueueTakes) {
    EXPECT_INT_EQ(retry(1000, 10, 80, 200, 1, 1), 10);  /* 200 at 10 a second: 20 s */
    EXPECT_INT_EQ(retry(1000, 10, 80, 201, 1, 1), 11);  /* rounded up */
    EXPECT_INT_EQ(retry(1000, 1, 3, 10, 9000, 100), 5); /* 10,000 tokens at 1,000 a second */
    EXPECT_INT_EQ(retry(1000, 1, 4, 10, 9000, 100), 5); /* 10 at one a second */
    EXPECT_INT_EQ(retry(1000, 10, 80, 1, 1, 1), 1);     /* at least */
    EXPECT_INT_EQ(retry(1000, 0.1, 4, 500, 1, 1), 60);  /* at most */
    EXPECT_INT_EQ(retry(0, 0, 0, 5, 100, 0), 5);        /* nothing is known */
    EXPECT_INT_EQ(retry(0, 0, 0, 0, 0, 0), 1);          /* nobody waits */
}

TEST(Throughput, NothingDoneIsAMinuteOnlyWhenSomethingIsOverdue) {
    const struct throughput_rates none = {0}, some = {1000, 10, 80};
    const struct waiting_work w = {.stuck = true, .requests = 20, .prompt_tokens = 1};
    EXPECT_INT_EQ(throughput_retry_after_s(&none, &w), 60);
    EXPECT_INT_EQ(throughput_retry_after_s(&some, &w), 1);
}
