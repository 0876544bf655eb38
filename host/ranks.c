#include "ranks.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "host/layout.h"
#include "host/mem.h"

enum { SPINS = 2000 }; /* about 20 us of pauses before a thread sleeps */

/* A barrier whose waiters sleep on the generation number. */
struct barrier {
    _Atomic uint32_t arrived, generation;
    uint32_t size;
    int32_t spins;
};

struct ranks {
    int32_t world_size;
    struct barrier start, done; /* ranks and the caller: around one ranks_run */
    struct barrier meet;        /* ranks only: collectives */
    void (*fn)(void *ctx, int32_t rank);
    void *ctx;
    bool stop;
    double *slot[MAX_RANKS]; /* each rank's data of the collective in progress */
    struct member {
        struct ranks *ranks;
        int32_t rank;
        pthread_t thread;
    } member[MAX_RANKS];
    int32_t num_threads; /* started */
};

static void futex_wait(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word) {
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void barrier_wait(struct barrier *b) {
    uint32_t generation = atomic_load(&b->generation);
    if (atomic_fetch_add(&b->arrived, 1) + 1 == b->size) {
        atomic_store(&b->arrived, 0);
        atomic_fetch_add(&b->generation, 1);
        futex_wake_all(&b->generation);
        return;
    }
    for (int32_t i = 0; i < b->spins; i++) {
        if (atomic_load(&b->generation) != generation)
            return;
        __builtin_ia32_pause();
    }
    while (atomic_load(&b->generation) == generation)
        futex_wait(&b->generation, generation);
}

static void *rank_main(void *arg) {
    struct member *m = arg;
    struct ranks *r = m->ranks;
    for (;;) {
        barrier_wait(&r->start);
        if (r->stop)
            return NULL;
        r->fn(r->ctx, m->rank);
        barrier_wait(&r->done);
    }
}

int ranks_create(int32_t world_size, struct ranks **out, struct error *error) {
    CHECK(world_size >= 1 && world_size <= MAX_RANKS, "world size %d", world_size);
    struct ranks *r = xcalloc(1, sizeof *r);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int32_t spins = world_size <= cores ? SPINS : 0;
    r->world_size = world_size;
    r->start = r->done = (struct barrier){.size = (uint32_t)world_size + 1, .spins = spins};
    r->meet = (struct barrier){.size = (uint32_t)world_size, .spins = spins};
    for (int32_t i = 0; i < world_size && world_size > 1; i++) {
        r->member[i] = (struct member){.ranks = r, .rank = i};
        int rc = pthread_create(&r->member[i].thread, NULL, rank_main, &r->member[i]);
        if (rc != 0) {
            r->start.size = (uint32_t)r->num_threads + 1; /* those that wait there can be let go */
            ranks_destroy(r);
            return error_set(error, ERR_NO_MEMORY, "cannot start the thread of rank %d of %d: %s",
                             i, world_size, strerror(rc));
        }
        r->num_threads++;
    }
    *out = r;
    return 0;
}

void ranks_destroy(struct ranks *r) {
    if (!r)
        return;
    if (r->num_threads > 0) {
        r->stop = true;
        barrier_wait(&r->start);
        for (int32_t i = 0; i < r->num_threads; i++)
            pthread_join(r->member[i].thread, NULL);
    }
    free(r);
}

int32_t ranks_world_size(const struct ranks *r) {
    return r->world_size;
}

void ranks_run(struct ranks *r, void (*fn)(void *ctx, int32_t rank), void *ctx) {
    if (r->world_size == 1) {
        fn(ctx, 0);
        return;
    }
    r->fn = fn;
    r->ctx = ctx;
    barrier_wait(&r->start);
    barrier_wait(&r->done);
}

void ranks_barrier(struct ranks *r) {
    if (r->world_size > 1)
        barrier_wait(&r->meet);
}

void ranks_all_reduce(struct ranks *r, int32_t rank, double *data, int64_t count) {
    int32_t n = r->world_size;
    if (n == 1)
        return;
    r->slot[rank] = data;
    barrier_wait(&r->meet);
    /* Everyone's data is in place: this rank sums one slice and hands the sums to all. */
    int64_t first = count * rank / n, last = count * (rank + 1) / n;
    for (int64_t i = first; i < last; i++) {
        double sum = 0;
        for (int32_t k = 0; k < n; k++)
            sum += r->slot[k][i];
        for (int32_t k = 0; k < n; k++)
            r->slot[k][i] = sum;
    }
    barrier_wait(&r->meet);
    /* All slices are summed; slot may be reused by the next collective. */
}
