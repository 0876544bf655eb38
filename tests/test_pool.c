/* The CPU thread pool: each task once, results visible, any number of pools on any number of cores.
 */
#include "host/cpu/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/mem.h"
#include "tests/shim.h"

enum { MAX_TASKS = 1000 };

struct counting {
    int32_t times[MAX_TASKS]; /* plain: each task has one writer, and pool_run orders them */
    int32_t threads;
    _Atomic int32_t wrong_thread;
};

static void count_task(void *arg, int32_t task, int32_t thread) {
    struct counting *c = arg;
    c->times[task]++;
    if (thread < 0 || thread >= c->threads)
        atomic_fetch_add(&c->wrong_thread, 1);
}

static void expect_each_once(struct pool *p, int32_t num_tasks) {
    struct counting c = {.threads = pool_num_threads(p)};
    pool_run(p, count_task, &c, num_tasks);
    int32_t wrong = 0;
    for (int32_t i = 0; i < MAX_TASKS; i++)
        wrong += c.times[i] != (i < num_tasks);
    EXPECT_INT_EQ(wrong, 0);
    EXPECT_INT_EQ(c.wrong_thread, 0);
}

TEST(Pool, RunsEachTaskOnce) {
    for (int32_t threads = 1; threads <= 5; threads++) {
        struct pool *p = pool_create(threads);
        ASSERT_TRUE(p != NULL);
        for (int32_t n = 0; n <= 7; n++)
            expect_each_once(p, n);
        expect_each_once(p, MAX_TASKS);
        pool_destroy(p);
    }
    pool_destroy(NULL);
}

TEST(Pool, ManyShortRunsInARow) {
    struct pool *p = pool_create(4);
    for (int i = 0; i < 20000 && !shim_failed(); i++) {
        int32_t sum[4] = {0};
        struct counting c = {.threads = 4};
        pool_run(p, count_task, &c, 2 + i % 3);
        for (int k = 0; k < 4; k++)
            sum[k] = c.times[k];
        EXPECT_INT_EQ(sum[0] + sum[1] + sum[2] + sum[3], 2 + i % 3);
    }
    pool_destroy(p);
}

TEST(Pool, SleepingWorkersWakeUp) {
    struct pool *p = pool_create(3);
    for (int i = 0; i < 20; i++) {
        struct timespec pause = {.tv_nsec = 2000000}; /* far longer than a worker spins */
        nanosleep(&pause, NULL);
        expect_each_once(p, 50);
    }
    pool_destroy(p);
}

static void *own_pool(void *arg) {
    (void)arg;
    struct pool *p = pool_create(3);
    for (int i = 0; i < 500; i++)
        expect_each_once(p, 1 + i % 40);
    pool_destroy(p);
    return NULL;
}

/* Ranks of one process on few cores: nobody may wait for a thread that does not run. */
TEST(Pool, SeveralPoolsShareTheCores) {
    pthread_t rank[6];
    for (int i = 0; i < 6; i++)
        ASSERT_INT_EQ(pthread_create(&rank[i], NULL, own_pool, NULL), 0);
    for (int i = 0; i < 6; i++)
        pthread_join(rank[i], NULL);
}

static double process_cpu_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

TEST(Pool, IdleWorkersUseNoTime) {
    struct pool *p = pool_create(4);
    struct timespec settle = {.tv_nsec = 50000000}, idle = {.tv_nsec = 300000000};
    expect_each_once(p, 100);
    nanosleep(&settle, NULL);
    double before = process_cpu_s();
    nanosleep(&idle, NULL);
    EXPECT_TRUE(process_cpu_s() - before < 0.02);
    pool_destroy(p);
}

static void see_step(void *arg, int32_t task, int32_t thread) {
    struct counting *c = arg;
    (void)thread;
    c->times[task] = mem_in_step();
}

TEST(Pool, WorkersAreInsideTheCallersStep) {
    struct pool *p = pool_create(3);
    for (int in_step = 0; in_step < 2; in_step++) {
        struct counting c = {0};
        int32_t sum = 0;
        if (in_step)
            mem_step_begin();
        pool_run(p, see_step, &c, MAX_TASKS);
        if (in_step)
            mem_step_end();
        for (int i = 0; i < MAX_TASKS; i++)
            sum += c.times[i];
        EXPECT_INT_EQ(sum, in_step ? MAX_TASKS : 0);
    }
    pool_destroy(p);
}
