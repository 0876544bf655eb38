#include "ranks.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/group.h"
#include "host/layout.h"
#include "host/mem.h"

enum { SPINS = 2000 }; /* about 20 us of pauses before a thread sleeps */

struct member {
    struct ranks *ranks;
    int32_t rank;
    pthread_t thread;
    bool started, died;
    uint32_t seen;                         /* the last value of ranks.run that it has taken up */
    _Atomic uint32_t arrivals;             /* at collectives, in this run */
    _Atomic bool back;                     /* from this run */
    void *slot;                            /* its data of the collective in progress */
    _Atomic int64_t comm_us[NUM_COMM_OPS]; /* written by its thread alone */
};

struct ranks {
    int32_t local_size, world_size, first, spins;
    int64_t timeout_us;
    struct group *group; /* NULL: this process is alone */

    /* A run: threads wait on `run`, the caller on `returned`. */
    _Atomic uint32_t run, returned;
    rank_fn fn;
    void *ctx;
    bool stop, stuck;

    /* A collective: waiters sleep on the generation number, which an abort changes too. */
    _Atomic uint32_t arrived, generation;

    _Atomic bool aborted;
    pthread_mutex_t why_lock;
    char why[512]; /* the first reason; "" before there is one */
    void (*on_abort)(void *ctx);
    void *on_abort_ctx;

    struct member member[MAX_RANKS];
};

/* ---- waiting --------------------------------------------------------------------------------- */

/* Sleeps while *word == value, until it is woken or `us` have passed. */
static void futex_wait(_Atomic uint32_t *word, uint32_t value, int64_t us) {
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, value, us < 0 ? NULL : &t, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word) {
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Waits for another value than this one; false: the deadline (of clock_us; -1: none) came first. */
static bool wait_for_change(const struct ranks *r, _Atomic uint32_t *word, uint32_t value,
                            int64_t deadline_us) {
    for (int32_t i = 0; i < r->spins; i++) {
        if (atomic_load(word) != value)
            return true;
        __builtin_ia32_pause();
    }
    while (atomic_load(word) == value) {
        int64_t left = deadline_us < 0 ? -1 : deadline_us - clock_us();
        if (deadline_us >= 0 && left <= 0)
            return false;
        futex_wait(word, value, left);
    }
    return true;
}

/* ---- failure --------------------------------------------------------------------------------- */

void ranks_abort(struct ranks *r, const char *why, ...) {
    va_list args;
    va_start(args, why);
    pthread_mutex_lock(&r->why_lock);
    if (!r->why[0])
        vsnprintf(r->why, sizeof r->why, why, args);
    pthread_mutex_unlock(&r->why_lock);
    va_end(args);
    bool first = !atomic_exchange(&r->aborted, true);
    atomic_fetch_add(&r->generation, 1);
    futex_wake_all(&r->generation);
    if (first && r->on_abort)
        r->on_abort(r->on_abort_ctx);
    if (first && r->group)
        group_abort(r->group, r->why);
}

void ranks_on_abort(struct ranks *r, void (*fn)(void *ctx), void *ctx) {
    r->on_abort = fn;
    r->on_abort_ctx = ctx;
}

bool ranks_aborted(const struct ranks *r) {
    return r && atomic_load(&r->aborted);
}

bool ranks_stuck(const struct ranks *r) {
    return r->stuck;
}

/* "rank 3", "ranks 1, 4 and 5": those that have not come as often as `rank` has. */
static void name_missing(const struct ranks *r, int32_t rank, char *out, size_t size) {
    uint32_t here = atomic_load(&r->member[rank].arrivals);
    int32_t missing[MAX_RANKS], n = 0;
    for (int32_t i = 0; i < r->local_size; i++)
        if (atomic_load(&r->member[i].arrivals) < here)
            missing[n++] = i;
    size_t used = (size_t)snprintf(out, size, n == 1 ? "rank" : "ranks");
    for (int32_t i = 0; i < n; i++)
        used += (size_t)snprintf(out + used, size - used, "%s %d",
                                 i == 0       ? ""
                                 : i == n - 1 ? " and"
                                              : ",",
                                 r->first + missing[i]);
}

/* ---- collectives ----------------------------------------------------------------------------- */

/* With a group a little longer than the first rank waits for other processes, so that it is they
 * who are named. */
static int64_t patience_us(const struct ranks *r) {
    return r->timeout_us + (r->group ? 1000000 : 0);
}

int ranks_barrier(struct ranks *r, int32_t rank) {
    if (!r || ranks_aborted(r))
        return r ? ERR_INTERNAL : 0;
    if (r->local_size == 1)
        return 0;
    uint32_t generation = atomic_load(&r->generation);
    if (atomic_load(&r->aborted)) /* after the generation was read: an abort changes it */
        return ERR_INTERNAL;
    atomic_fetch_add(&r->member[rank].arrivals, 1);
    if (atomic_fetch_add(&r->arrived, 1) + 1 == (uint32_t)r->local_size) {
        atomic_store(&r->arrived, 0);
        atomic_fetch_add(&r->generation, 1);
        futex_wake_all(&r->generation);
    } else if (!wait_for_change(r, &r->generation, generation, clock_us() + patience_us(r))) {
        char missing[128];
        name_missing(r, rank, missing, sizeof missing);
        ranks_abort(r, "rank %d waited %.1f s for %s", r->first + rank, (double)r->timeout_us / 1e6,
                    missing);
    }
    return atomic_load(&r->aborted) ? ERR_INTERNAL : 0;
}

/* This rank's slice of the sum over the ranks of this process, for all of them or for the first. */
static void sum_slice(const struct ranks *r, int32_t rank, int64_t count, bool for_all) {
    int32_t n = r->local_size;
    int64_t first = count * rank / n, last = count * (rank + 1) / n;
    for (int64_t i = first; i < last; i++) {
        double sum = 0;
        for (int32_t k = 0; k < n; k++)
            sum += ((double *)r->member[k].slot)[i];
        for (int32_t k = 0; k < (for_all ? n : 1); k++)
            ((double *)r->member[k].slot)[i] = sum;
    }
}

/* The first rank adds up the sums of the processes, and the others take them from it. */
static int sum_over_processes(struct ranks *r, int32_t rank, double *data, int64_t count) {
    struct error error = {0};
    if (rank == 0 && group_all_reduce(r->group, data, count, &error) != 0)
        ranks_abort(r, "%s", error.text);
    if (ranks_barrier(r, rank) != 0)
        return ERR_INTERNAL;
    if (rank != 0)
        memcpy(data, r->member[0].slot, (size_t)count * sizeof *data);
    return ranks_barrier(r, rank);
}

static int all_reduce(struct ranks *r, int32_t rank, double *data, int64_t count) {
    r->member[rank].slot = data;
    if (ranks_barrier(r, rank) != 0)
        return ERR_INTERNAL;
    /* Everyone's data is in place. */
    if (r->local_size > 1)
        sum_slice(r, rank, count, !r->group);
    if (ranks_barrier(r, rank) != 0)
        return ERR_INTERNAL;
    /* All slices are summed; without a group slots may be reused by the next collective. */
    return r->group ? sum_over_processes(r, rank, data, count) : 0;
}

int ranks_all_reduce(struct ranks *r, int32_t rank, double *data, int64_t count) {
    if (!r || r->world_size == 1)
        return 0;
    int64_t start_us = clock_us();
    int rc = all_reduce(r, rank, data, count);
    ranks_count_comm(r, rank, COMM_ALL_REDUCE, clock_us() - start_us);
    return rc;
}

const char *comm_op_name(enum comm_op op) {
    static const char *const names[NUM_COMM_OPS] = {"all_reduce", "gather_logits"};
    return names[op];
}

void ranks_count_comm(struct ranks *r, int32_t rank, enum comm_op op, int64_t us) {
    _Atomic int64_t *sum = &r->member[rank].comm_us[op];
    atomic_store_explicit(sum, atomic_load_explicit(sum, memory_order_relaxed) + us,
                          memory_order_relaxed);
}

int64_t ranks_comm_us(const struct ranks *r, int32_t rank, enum comm_op op) {
    return atomic_load_explicit(&r->member[rank].comm_us[op], memory_order_relaxed);
}

int ranks_broadcast(struct ranks *r, int32_t rank, void *data, size_t bytes) {
    struct error error = {0};
    if (!r || r->world_size == 1)
        return 0;
    r->member[rank].slot = data;
    if (rank == 0 && r->group && group_broadcast(r->group, data, bytes, &error) != 0)
        ranks_abort(r, "%s", error.text);
    if (ranks_barrier(r, rank) != 0)
        return ERR_INTERNAL;
    if (rank != 0)
        memcpy(data, r->member[0].slot, bytes);
    return ranks_barrier(r, rank);
}

int ranks_reduce_rows(struct ranks *r, int32_t rank, double *data, const int32_t *rows,
                      int32_t num_rows, int32_t width) {
    for (int32_t i = 0; i < num_rows; i++) /* rows[i] >= i */
        memmove(data + (int64_t)i * width, data + (int64_t)rows[i] * width,
                (size_t)width * sizeof *data);
    return ranks_all_reduce(r, rank, data, (int64_t)num_rows * width);
}

int ranks_exchange(struct ranks *r, int32_t rank, void *mine, void **all) {
    if (!r || r->local_size == 1) {
        all[0] = mine;
        return 0;
    }
    r->member[rank].slot = mine;
    if (ranks_barrier(r, rank) != 0)
        return ERR_INTERNAL;
    for (int32_t k = 0; k < r->local_size; k++)
        all[k] = r->member[k].slot;
    return ranks_barrier(r, rank);
}

/* ---- threads --------------------------------------------------------------------------------- */

static void run_member(struct ranks *r, struct member *m) {
    int rc = r->fn(r->ctx, m->rank);
    if (rc == RANK_DIED) {
        m->died = true;
        ranks_abort(r, "rank %d died", r->first + m->rank);
    } else if (rc != 0) {
        ranks_abort(r, "rank %d failed", r->first + m->rank);
    }
    atomic_store(&m->back, true);
    atomic_fetch_add(&r->returned, 1);
    futex_wake_all(&r->returned);
}

static void *rank_main(void *arg) {
    struct member *m = arg;
    struct ranks *r = m->ranks;
    while (!m->died) {
        wait_for_change(r, &r->run, m->seen, -1);
        if (r->stop)
            return NULL;
        m->seen = atomic_load(&r->run);
        run_member(r, m);
    }
    return NULL;
}

static int start_thread(struct ranks *r, int32_t rank, struct error *error) {
    struct member *m = &r->member[rank];
    m->ranks = r;
    m->rank = rank;
    m->seen = atomic_load(&r->run);
    m->died = false;
    int rc = pthread_create(&m->thread, NULL, rank_main, m);
    if (rc != 0)
        return error_set(error, ERR_NO_MEMORY, "cannot start the thread of rank %d of %d: %s",
                         r->first + rank, r->world_size, strerror(rc));
    m->started = true;
    return 0;
}

/* A rank alone runs on the caller's thread. (That of one of several processes does not: somebody
 * has to see that it is stuck.) */
static bool has_threads(const struct ranks *r) {
    return r->local_size > 1 || r->group;
}

/* Numbers of the world from the sizes of all processes. */
static int count_world(struct ranks *r, struct error *error) {
    int32_t size = group_size(r->group), me = group_rank(r->group);
    int32_t *sizes = xcalloc((size_t)size, sizeof *sizes);
    int rc = group_all_gather(r->group, &r->local_size, sizes, sizeof *sizes, error);
    r->world_size = 0;
    for (int32_t i = 0; i < size && rc == 0; i++) {
        if (i == me)
            r->first = r->world_size;
        r->world_size += sizes[i];
    }
    free(sizes);
    if (rc == 0 && r->world_size > MAX_RANKS)
        rc = error_set(error, ERR_CONFIG, "%d ranks in %d processes: at most %d are possible",
                       r->world_size, size, MAX_RANKS);
    return rc;
}

int ranks_create(const struct ranks_options *o, struct ranks **out, struct error *error) {
    CHECK(o->local_size >= 1 && o->local_size <= MAX_RANKS, "%d ranks", o->local_size);
    struct ranks *r = xcalloc(1, sizeof *r);
    int rc = 0;
    r->local_size = r->world_size = o->local_size;
    r->timeout_us = o->timeout_us;
    r->spins = o->local_size <= sysconf(_SC_NPROCESSORS_ONLN) ? SPINS : 0;
    pthread_mutex_init(&r->why_lock, NULL);
    if (o->group && group_size(o->group) > 1) {
        r->group = o->group;
        rc = count_world(r, error);
    }
    for (int32_t i = 0; i < r->local_size && has_threads(r) && rc == 0; i++)
        rc = start_thread(r, i, error);
    if (rc != 0) {
        ranks_destroy(r);
        return rc;
    }
    *out = r;
    return 0;
}

void ranks_destroy(struct ranks *r) {
    if (!r || r->stuck)
        return;
    r->stop = true;
    atomic_fetch_add(&r->run, 1);
    futex_wake_all(&r->run);
    for (int32_t i = 0; i < r->local_size; i++)
        if (r->member[i].started)
            pthread_join(r->member[i].thread, NULL);
    pthread_mutex_destroy(&r->why_lock);
    free(r);
}

int64_t ranks_wait_us(int64_t comm_timeout_us) {
    return comm_timeout_us * 6 / 10;
}

int32_t ranks_world_size(const struct ranks *r) {
    return r->world_size;
}

int32_t ranks_local_size(const struct ranks *r) {
    return r->local_size;
}

int32_t ranks_first(const struct ranks *r) {
    return r->first;
}

struct group *ranks_group(const struct ranks *r) {
    return r ? r->group : NULL;
}

int ranks_revive(struct ranks *r, struct error *error) {
    int rc = 0;
    if (r->stuck)
        return error_set(error, ERR_INTERNAL, "%s", r->why);
    for (int32_t i = 0; i < r->local_size && rc == 0; i++) {
        struct member *m = &r->member[i];
        if (!m->died)
            continue;
        if (m->started)
            pthread_join(m->thread, NULL);
        m->started = false;
        m->died = false;
        if (has_threads(r))
            rc = start_thread(r, i, error);
    }
    if (rc == 0 && r->group && group_failed(r->group, error))
        rc = ERR_INTERNAL;
    return rc;
}

/* ---- a run ----------------------------------------------------------------------------------- */

/* Nobody is running: what the last run left is cleared. */
static void begin_run(struct ranks *r, rank_fn fn, void *ctx) {
    r->fn = fn;
    r->ctx = ctx;
    r->why[0] = 0;
    atomic_store(&r->arrived, 0);
    atomic_store(&r->returned, 0);
    for (int32_t i = 0; i < r->local_size; i++) {
        atomic_store(&r->member[i].arrivals, 0);
        atomic_store(&r->member[i].back, false);
    }
    atomic_store(&r->aborted, false);
}

/* Ranks that take part in no collective do not hear that the group has failed. */
static void end_with_group(struct ranks *r) {
    struct error error = {0};
    if (r->group && group_failed(r->group, &error))
        ranks_abort(r, "%s", error.text);
}

/* As soon as one rank is back, the others have the timeout to come back, and half of it more: those
 * among them that wait for each other find it out first. After an abort, which they notice at once
 * unless they compute, they have that half alone. */
static void wait_for_return(struct ranks *r) {
    enum { SLICE_US = 20000 };
    int64_t grace_us = r->timeout_us / 2, back_us = -1, aborted_us = -1;
    for (uint32_t n; (n = atomic_load(&r->returned)) < (uint32_t)r->local_size;) {
        int64_t now_us = clock_us();
        end_with_group(r);
        if (back_us < 0 && n > 0)
            back_us = now_us;
        if (aborted_us < 0 && atomic_load(&r->aborted))
            aborted_us = now_us;
        if ((back_us >= 0 && now_us > back_us + r->timeout_us + grace_us) ||
            (aborted_us >= 0 && now_us > aborted_us + grace_us)) {
            r->stuck = true;
            break;
        }
        wait_for_change(r, &r->returned, n, now_us + SLICE_US);
    }
    if (r->stuck && r->group)
        group_keep(r->group);
    for (int32_t i = 0; r->stuck && i < r->local_size; i++)
        if (!atomic_load(&r->member[i].back))
            ranks_abort(r, "rank %d has not come back for %.1f s", r->first + i,
                        (double)(r->timeout_us + grace_us) / 1e6);
}

int ranks_run(struct ranks *r, rank_fn fn, void *ctx, struct error *error) {
    if (r->stuck)
        return error_set(error, ERR_INTERNAL, "%s", r->why);
    begin_run(r, fn, ctx);
    if (!has_threads(r)) {
        run_member(r, &r->member[0]);
    } else {
        atomic_fetch_add(&r->run, 1);
        futex_wake_all(&r->run);
        wait_for_return(r);
    }
    return atomic_load(&r->aborted) ? error_set(error, ERR_INTERNAL, "%s", r->why) : 0;
}
