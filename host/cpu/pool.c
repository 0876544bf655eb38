#include "host/cpu/pool.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "host/error.h"
#include "host/mem.h"

enum { SPIN_NS = 30000, YIELD_NS = 200000, CACHE_LINE = 64 };

/* A run is published as one word, `tickets`: its number in the upper half, the tasks that nobody
 * has taken yet in the lower. Whoever lowers it by one owns a task, and the run cannot end before
 * that task is counted in `done`, so that the plain fields of the run are stable while it works. */
struct pool {
    int32_t num_threads;
    pthread_t *workers;  /* [num_threads - 1], owned */
    int32_t num_workers; /* started */
    pool_fn *fn;         /* of the run in progress; written before `tickets` is published */
    void *arg;
    int32_t num_tasks;
    bool in_step;
    uint32_t run; /* number of the last run */
    _Alignas(CACHE_LINE) _Atomic uint64_t tickets;
    _Alignas(CACHE_LINE) _Atomic uint32_t done; /* tasks finished; the caller's futex */
    _Atomic bool caller_sleeps;
    _Alignas(CACHE_LINE) _Atomic uint32_t wakeups; /* the workers' futex */
    _Atomic int32_t sleepers;
    _Atomic bool stop;
};

struct worker_args {
    struct pool *pool;
    int32_t thread;
};

static _Atomic int32_t all_threads; /* of all pools of the process */

static void futex_wait(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int32_t count) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static int32_t num_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return CPU_COUNT(&set);
    return (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Spins until ready(p) or the time is up; says which. */
static bool spin(struct pool *p, bool (*ready)(struct pool *p), bool may_spin) {
    if (ready(p))
        return true;
    if (!may_spin)
        return false;
    for (int64_t end = now_ns() + SPIN_NS; now_ns() < end;)
        for (int i = 0; i < 16; i++) {
            if (ready(p))
                return true;
            __builtin_ia32_pause();
        }
    return false;
}

static _Atomic int32_t cores; /* of the process; set by the first pool_create */

static bool may_spin(void) {
    return atomic_load_explicit(&all_threads, memory_order_relaxed) <=
           atomic_load_explicit(&cores, memory_order_relaxed);
}

static bool take_task(struct pool *p, int32_t *task) {
    uint64_t t = atomic_load_explicit(&p->tickets, memory_order_acquire);
    while ((uint32_t)t != 0)
        if (atomic_compare_exchange_weak_explicit(&p->tickets, &t, t - 1, memory_order_acq_rel,
                                                  memory_order_acquire)) {
            *task = p->num_tasks - (int32_t)(uint32_t)t;
            return true;
        }
    return false;
}

static void run_task(struct pool *p, int32_t task, int32_t thread) {
    uint32_t num_tasks = (uint32_t)p->num_tasks; /* the run may be over once `done` is raised */
    p->fn(p->arg, task, thread);
    if (atomic_fetch_add(&p->done, 1) + 1 == num_tasks && atomic_load(&p->caller_sleeps))
        futex_wake(&p->done, 1);
}

static bool has_work(struct pool *p) {
    return (uint32_t)atomic_load(&p->tickets) != 0 || atomic_load(&p->stop);
}

static bool all_done(struct pool *p) {
    return atomic_load(&p->done) == (uint32_t)p->num_tasks;
}

/* Between two runs, at most every YIELD_NS: a worker that computes and spins may not enter the
 * kernel for a whole time slice (milliseconds), and then a thread that woke on its core, to read a
 * request or to send a token, would wait for as long. *yielded: when this thread did so last. */
static void let_others_in(int64_t *yielded) {
    int64_t now = now_ns();
    if (now - *yielded < YIELD_NS)
        return;
    sched_yield();
    *yielded = now;
}

static void *worker_main(void *opaque) {
    struct worker_args args = *(struct worker_args *)opaque;
    struct pool *p = args.pool;
    int64_t yielded = 0;
    int32_t task;
    free(opaque);
    while (!atomic_load(&p->stop)) {
        while (take_task(p, &task)) {
            bool in_step = p->in_step;
            if (in_step)
                mem_step_begin();
            run_task(p, task, args.thread);
            if (in_step)
                mem_step_end();
        }
        let_others_in(&yielded);
        if (spin(p, has_work, may_spin()))
            continue;
        /* Either the caller sees this sleeper and changes `wakeups`, or has_work sees its tasks. */
        uint32_t seen = atomic_load(&p->wakeups);
        atomic_fetch_add(&p->sleepers, 1);
        if (!has_work(p))
            futex_wait(&p->wakeups, seen);
        atomic_fetch_sub(&p->sleepers, 1);
    }
    return NULL;
}

struct pool *pool_create(int32_t num_threads) {
    CHECK(num_threads >= 1, "num_threads %d", num_threads);
    /* aligned_alloc: the atomics of different threads live on lines of their own. */
    struct pool *p = aligned_alloc(CACHE_LINE, sizeof *p);
    if (!p)
        mem_exhausted(sizeof *p);
    *p = (struct pool){.num_threads = num_threads};
    p->workers = xcalloc((size_t)num_threads, sizeof *p->workers);
    atomic_store(&cores, num_cores());
    atomic_fetch_add(&all_threads, num_threads);
    for (; p->num_workers < num_threads - 1; p->num_workers++) {
        struct worker_args *args = xmalloc(sizeof *args);
        *args = (struct worker_args){p, p->num_workers + 1};
        if (pthread_create(&p->workers[p->num_workers], NULL, worker_main, args) != 0) {
            free(args);
            pool_destroy(p);
            return NULL;
        }
    }
    return p;
}

void pool_destroy(struct pool *p) {
    if (!p)
        return;
    atomic_store(&p->stop, true);
    atomic_fetch_add(&p->wakeups, 1);
    futex_wake(&p->wakeups, p->num_threads);
    for (int32_t i = 0; i < p->num_workers; i++)
        pthread_join(p->workers[i], NULL);
    atomic_fetch_sub(&all_threads, p->num_threads);
    free(p->workers);
    free(p);
}

int32_t pool_num_threads(const struct pool *p) {
    return p->num_threads;
}

static void wake_workers(struct pool *p, int32_t num_tasks) {
    int32_t asleep = atomic_load(&p->sleepers);
    if (asleep == 0)
        return;
    atomic_fetch_add(&p->wakeups, 1);
    futex_wake(&p->wakeups, asleep < num_tasks - 1 ? asleep : num_tasks - 1);
}

void pool_run(struct pool *p, pool_fn *fn, void *arg, int32_t num_tasks) {
    int32_t task;
    if (num_tasks <= 1 || p->num_workers == 0) {
        for (task = 0; task < num_tasks; task++)
            fn(arg, task, 0);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    p->num_tasks = num_tasks;
    p->in_step = mem_in_step();
    p->run++;
    atomic_store_explicit(&p->done, 0, memory_order_relaxed);
    atomic_store(&p->tickets, (uint64_t)p->run << 32 | (uint32_t)num_tasks);
    wake_workers(p, num_tasks);
    while (take_task(p, &task))
        run_task(p, task, 0);
    if (spin(p, all_done, may_spin()))
        return;
    atomic_store(&p->caller_sleeps, true);
    while (!all_done(p)) {
        uint32_t done = atomic_load(&p->done);
        if (done != (uint32_t)num_tasks)
            futex_wait(&p->done, done);
    }
    atomic_store(&p->caller_sleeps, false);
}
