/* Ranks as threads: collectives give every rank the same sum, whatever the number of cores, and a
 * rank that fails, dies or does not come holds nobody up. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/mem.h"
#include "host/ranks.h"
#include "tests/shim.h"

enum { WORLD = 5, COUNT = 1003, ROUNDS = 200 };
#define TIMEOUT_US ((int64_t)10000000)

static int create(int32_t local_size, int64_t timeout_us, struct ranks **out) {
    const struct ranks_options o = {.local_size = local_size, .timeout_us = timeout_us};
    return ranks_create(&o, out, NULL);
}

struct job {
    struct ranks *ranks;
    double data[WORLD][COUNT];
    _Atomic int32_t visits;
};

static double value(int32_t rank, int32_t i, int32_t round) {
    return (double)((rank + 1) * (i % 17) + round);
}

static int reduce_rounds(void *ctx, int32_t rank) {
    struct job *j = ctx;
    atomic_fetch_add(&j->visits, 1);
    for (int32_t round = 0; round < ROUNDS; round++) {
        for (int32_t i = 0; i < COUNT; i++)
            j->data[rank][i] = value(rank, i, round);
        /* sizes below and above the number of ranks, zero too */
        int64_t count = round % 4 == 0 ? round % 8 : COUNT;
        CHECK(ranks_all_reduce(j->ranks, rank, j->data[rank], count) == 0, "round %d", round);
        for (int32_t i = 0; i < count; i++) {
            double want = 0;
            for (int32_t r = 0; r < WORLD; r++)
                want += value(r, i, round);
            CHECK(j->data[rank][i] == want, "round %d, rank %d, element %d", round, rank, i);
        }
        CHECK(ranks_barrier(j->ranks, rank) == 0, "round %d", round);
    }
    return 0;
}

TEST(Ranks, AllReduceGivesEveryRankTheSum) {
    struct job *j = xcalloc(1, sizeof *j);
    ASSERT_INT_EQ(create(WORLD, TIMEOUT_US, &j->ranks), 0);
    EXPECT_INT_EQ(ranks_world_size(j->ranks), WORLD);
    for (int32_t i = 0; i < 3; i++)
        EXPECT_INT_EQ(ranks_run(j->ranks, reduce_rounds, j, NULL), 0);
    EXPECT_INT_EQ(atomic_load(&j->visits), 3 * WORLD);
    ranks_destroy(j->ranks);
    free(j);
}

static int count_visit(void *ctx, int32_t rank) {
    atomic_fetch_add((_Atomic int32_t *)ctx, rank + 1);
    return 0;
}

TEST(Ranks, OneRankRunsOnTheCallersThread) {
    struct ranks *r;
    _Atomic int32_t sum = 0;
    ASSERT_INT_EQ(create(1, TIMEOUT_US, &r), 0);
    EXPECT_INT_EQ(ranks_run(r, count_visit, &sum, NULL), 0);
    EXPECT_INT_EQ(atomic_load(&sum), 1);
    ranks_destroy(r);
}

TEST(Ranks, IdleRanksUseNoCpu) {
    struct ranks *r;
    struct rusage before, after;
    ASSERT_INT_EQ(create(8, TIMEOUT_US, &r), 0);
    usleep(50000);
    getrusage(RUSAGE_SELF, &before);
    usleep(300000);
    getrusage(RUSAGE_SELF, &after);
    int64_t us = (after.ru_utime.tv_sec - before.ru_utime.tv_sec) * 1000000 +
                 (after.ru_utime.tv_usec - before.ru_utime.tv_usec) +
                 (after.ru_stime.tv_sec - before.ru_stime.tv_sec) * 1000000 +
                 (after.ru_stime.tv_usec - before.ru_stime.tv_usec);
    EXPECT_INT_LE(us, 20000);
    ranks_destroy(r);
}

/* ---- ranks that misbehave -------------------------------------------------------------------- */

enum mishap { FINE, FAILS, DIES, LATE };

struct trouble {
    struct ranks *ranks;
    enum mishap mishap;
    int32_t rank, round; /* who, and before which of its collectives */
    int32_t late_ms;
    _Atomic int32_t returned; /* ranks that are done with this struct */
    _Atomic int32_t rounds;   /* of all ranks that went well */
    int32_t gathered[WORLD][WORLD];
};

static int meet(struct trouble *t, int32_t rank) {
    double data[7] = {0};
    for (int32_t round = 0; round < 20; round++) {
        if (rank == t->rank && round == t->round && t->mishap == FAILS)
            return ERR_INTERNAL;
        if (rank == t->rank && round == t->round && t->mishap == DIES)
            return RANK_DIED;
        if (rank == t->rank && round == t->round && t->mishap == LATE)
            usleep((useconds_t)t->late_ms * 1000);
        for (int32_t i = 0; i < 7; i++)
            data[i] = rank + i;
        if (ranks_all_reduce(t->ranks, rank, data, 7) != 0)
            continue; /* as the forward pass does: to the end, through collectives that are none */
        CHECK(data[3] == WORLD * (WORLD - 1) / 2 + 3 * WORLD, "%g", data[3]);
        atomic_fetch_add(&t->rounds, 1);
    }
    return 0;
}

static int run_into_trouble(void *ctx, int32_t rank) {
    struct trouble *t = ctx;
    int rc = meet(t, rank);
    atomic_fetch_add(&t->returned, 1);
    return rc;
}

static void check_fine(struct trouble *t) {
    t->mishap = FINE;
    atomic_store(&t->rounds, 0);
    EXPECT_INT_EQ(ranks_run(t->ranks, run_into_trouble, t, NULL), 0);
    EXPECT_INT_EQ(atomic_load(&t->rounds), 20 * WORLD);
}

TEST(Ranks, AFailedOrDeadRankEndsTheRunAndTheNextOneGoesWell) {
    struct trouble t = {0};
    ASSERT_INT_EQ(create(WORLD, TIMEOUT_US, &t.ranks), 0);
    for (int32_t i = 0; i < 40; i++) {
        struct error e = {0};
        char name[16];
        t.mishap = i % 2 ? DIES : FAILS;
        t.rank = i % WORLD;
        t.round = i % 20;
        snprintf(name, sizeof name, "rank %d", t.rank);
        EXPECT_INT_EQ(ranks_run(t.ranks, run_into_trouble, &t, &e), ERR_INTERNAL);
        if (!strstr(e.text, name) || !strstr(e.text, i % 2 ? "died" : "failed"))
            FAIL("%d: %s", i, e.text);
        EXPECT_INT_EQ(ranks_revive(t.ranks, &e), 0);
        check_fine(&t);
    }
    ranks_destroy(t.ranks);
}

TEST(Ranks, ALateRankIsNamedAndTheNextRunGoesWell) {
    struct trouble t = {.mishap = LATE, .rank = 3, .round = 11, .late_ms = 1100};
    struct error e = {0};
    ASSERT_INT_EQ(create(WORLD, 900000, &t.ranks), 0);
    EXPECT_INT_EQ(ranks_run(t.ranks, run_into_trouble, &t, &e), ERR_INTERNAL);
    EXPECT_TRUE(strstr(e.text, "for rank 3") != NULL);
    EXPECT_FALSE(ranks_stuck(t.ranks));
    EXPECT_INT_EQ(ranks_revive(t.ranks, &e), 0);
    check_fine(&t);
    ranks_destroy(t.ranks);
}

TEST(Ranks, AStuckRankIsGivenUp) {
    struct trouble t = {.mishap = LATE, .rank = 2, .round = 4, .late_ms = 2000};
    struct error e = {0};
    ASSERT_INT_EQ(create(WORLD, 100000, &t.ranks), 0);
    int64_t start_us = clock_us();
    EXPECT_INT_EQ(ranks_run(t.ranks, run_into_trouble, &t, &e), ERR_INTERNAL);
    EXPECT_INT_LE(clock_us() - start_us, 1500000);
    EXPECT_TRUE(strstr(e.text, "for rank 2") != NULL);
    EXPECT_TRUE(ranks_stuck(t.ranks));
    EXPECT_INT_EQ(ranks_run(t.ranks, run_into_trouble, &t, &e), ERR_INTERNAL);
    EXPECT_INT_EQ(ranks_revive(t.ranks, &e), ERR_INTERNAL);
    ranks_destroy(t.ranks);                  /* leaves all as it is */
    while (atomic_load(&t.returned) < WORLD) /* the late one still has t */
        usleep(10000);
}

static int exchange_all(void *ctx, int32_t rank) {
    struct trouble *t = ctx;
    int32_t mine = 100 + rank;
    void *all[WORLD];
    CHECK(ranks_exchange(t->ranks, rank, &mine, all) == 0, "exchange");
    for (int32_t i = 0; i < WORLD; i++)
        t->gathered[rank][i] = *(int32_t *)all[i];
    return ranks_barrier(t->ranks, rank); /* `mine` is read by all */
}

TEST(Ranks, ExchangeTellsEveryoneWhatEveryoneHas) {
    struct trouble t = {0};
    ASSERT_INT_EQ(create(WORLD, TIMEOUT_US, &t.ranks), 0);
    EXPECT_INT_EQ(ranks_run(t.ranks, exchange_all, &t, NULL), 0);
    for (int32_t i = 0; i < WORLD * WORLD; i++)
        EXPECT_INT_EQ(t.gathered[i / WORLD][i % WORLD], 100 + i % WORLD);
    ranks_destroy(t.ranks);
}
