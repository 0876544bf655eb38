/* Ranks as threads: collectives give every rank the same sum, whatever the number of cores. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "host/mem.h"
#include "host/ranks.h"
#include "tests/shim.h"

enum { WORLD = 5, COUNT = 1003, ROUNDS = 200 };

struct job {
    struct ranks *ranks;
    double data[WORLD][COUNT];
    _Atomic int32_t visits;
};

static double value(int32_t rank, int32_t i, int32_t round) {
    return (double)((rank + 1) * (i % 17) + round);
}

static void reduce_rounds(void *ctx, int32_t rank) {
    struct job *j = ctx;
    atomic_fetch_add(&j->visits, 1);
    for (int32_t round = 0; round < ROUNDS; round++) {
        for (int32_t i = 0; i < COUNT; i++)
            j->data[rank][i] = value(rank, i, round);
        /* sizes below and above the number of ranks, zero too */
        int64_t count = round % 4 == 0 ? round % 8 : COUNT;
        ranks_all_reduce(j->ranks, rank, j->data[rank], count);
        for (int32_t i = 0; i < count; i++) {
            double want = 0;
            for (int32_t r = 0; r < WORLD; r++)
                want += value(r, i, round);
            CHECK(j->data[rank][i] == want, "round %d, rank %d, element %d", round, rank, i);
        }
        ranks_barrier(j->ranks);
    }
}

TEST(Ranks, AllReduceGivesEveryRankTheSum) {
    struct job *j = xcalloc(1, sizeof *j);
    ASSERT_INT_EQ(ranks_create(WORLD, &j->ranks, NULL), 0);
    EXPECT_INT_EQ(ranks_world_size(j->ranks), WORLD);
    for (int32_t i = 0; i < 3; i++)
        ranks_run(j->ranks, reduce_rounds, j);
    EXPECT_INT_EQ(atomic_load(&j->visits), 3 * WORLD);
    ranks_destroy(j->ranks);
    free(j);
}

static void count_visit(void *ctx, int32_t rank) {
    atomic_fetch_add((_Atomic int32_t *)ctx, rank + 1);
}

TEST(Ranks, OneRankRunsOnTheCallersThread) {
    struct ranks *r;
    _Atomic int32_t sum = 0;
    ASSERT_INT_EQ(ranks_create(1, &r, NULL), 0);
    ranks_run(r, count_visit, &sum);
    EXPECT_INT_EQ(atomic_load(&sum), 1);
    ranks_destroy(r);
}

TEST(Ranks, IdleRanksUseNoCpu) {
    struct ranks *r;
    struct rusage before, after;
    ASSERT_INT_EQ(ranks_create(8, &r, NULL), 0);
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
