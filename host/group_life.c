/* group_life: signs of life, and what happens when they stop.
 *
 * Process 0 and each other process send each other a sign of life about once a second, from a
 * thread of their own, so that it does not matter what the rest of the process is doing. Silence,
 * a broken connection or a process that gives up is a failure of the whole group: who notices it
 * first tells process 0, and process 0 tells all. The first reason that a process hears stays.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/group_internal.h"

enum { SIGN_US = 1000000 };   /* between two signs of life, at most */
enum { VERDICT_US = 300000 }; /* how long the reason of a broken connection may be under way */

/* ---- names ----------------------------------------------------------------------------------- */

struct group_name group_name(const struct group *g, int32_t rank) {
    struct group_name n;
    const char *host = g->host[rank];
    snprintf(n.text, sizeof n.text, *host ? "process %d (%s)" : "process %d%s", rank, host);
    return n;
}

const char *group_call_name(enum group_call call) {
    switch (call) {
    case CALL_ALL_REDUCE:
        return "all-reduce";
    case CALL_ALL_GATHER:
        return "all-gather";
    case CALL_BROADCAST:
        return "broadcast";
    case CALL_GATHER:
        return "gather";
    case CALL_COMMAND:
        return "command";
    }
    return "unknown call";
}

/* ---- failure --------------------------------------------------------------------------------- */

/* The neighbours of process 0 are all others, of another process it is process 0. */
static bool is_neighbour(const struct group *g, int32_t rank) {
    return rank != g->rank && (g->rank == 0 || rank == 0);
}

/* With the lock held. Also to those that left: they may be waiting to. */
static void tell_neighbours(struct group *g, enum group_life_kind kind, const char *text) {
    struct group_life m = {.kind = kind, .from = g->rank};
    snprintf(m.text, sizeof m.text, "%s", text);
    for (int32_t r = 0; r < g->size; r++)
        if (is_neighbour(g, r) && (kind != LIFE_ALIVE || !atomic_load(&g->left[r])))
            g->engine->life_send(g, r, &m);
}

void group_fail(struct group *g, const char *fmt, ...) {
    char text[GROUP_TEXT_BYTES];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    pthread_mutex_lock(&g->lock);
    if (!atomic_load(&g->failed)) {
        memcpy(g->reason, text, sizeof text);
        atomic_store(&g->failed, true);
        if (g->engine) {
            tell_neighbours(g, LIFE_FAILED, text);
            g->engine->interrupt(g);
        }
    }
    pthread_mutex_unlock(&g->lock);
}

int group_failure(struct group *g, struct error *error) {
    pthread_mutex_lock(&g->lock);
    int rc = error_set(error, ERR_INTERNAL, "%s", g->reason);
    pthread_mutex_unlock(&g->lock);
    return rc;
}

bool group_failed(struct group *g, struct error *error) {
    if (!atomic_load_explicit(&g->failed, memory_order_acquire))
        return false;
    group_failure(g, error);
    return true;
}

void group_abort(struct group *g, const char *why) {
    group_fail(g, "%s: %s", group_name(g, g->rank).text, why);
}

int group_peer_left(struct group *g, enum group_call call, int32_t peer, struct error *error) {
    if (call == CALL_COMMAND && g->rank != 0)
        return error_set(error, ERR_SHUTTING_DOWN, "%s has left the group",
                         group_name(g, peer).text);
    group_fail(g, "%s has left the group, but %s needs it", group_name(g, peer).text,
               group_call_name(call));
    return group_failure(g, error);
}

int group_lost(struct group *g, enum group_call call, int32_t peer, struct error *error) {
    for (int64_t until = clock_us() + VERDICT_US; clock_us() < until; usleep(1000)) {
        if (atomic_load(&g->failed) || atomic_load(&g->left[peer]))
            break;
    }
    if (!atomic_load(&g->failed) && atomic_load(&g->left[peer]))
        return group_peer_left(g, call, peer, error);
    group_fail(g, "%s has gone: its connection is closed", group_name(g, peer).text);
    return group_failure(g, error);
}

int group_waited(struct group *g, enum group_call call, const struct group_op *ops, int32_t num_ops,
                 int64_t wait_us, struct error *error) {
    const struct group_op *open = NULL;
    for (int32_t i = 0; i < num_ops; i++)
        if (!ops[i].complete && (!open || (open->send && !ops[i].send)))
            open = &ops[i]; /* rather one that sends nothing than one that does not listen */
    group_fail(g, "%s lives, but has not taken part in %s of %s for %.1f s",
               group_name(g, open->peer).text, group_call_name(call), group_name(g, g->rank).text,
               (double)wait_us * 1e-6);
    return group_failure(g, error);
}

/* ---- signs of life --------------------------------------------------------------------------- */

/* Short enough that a missing sign is noticed within the timeout. */
static int64_t sign_us(const struct group *g) {
    return g->timeout_us / 4 < SIGN_US ? g->timeout_us / 4 : SIGN_US;
}

static void hear(struct group *g, const struct group_life *m) {
    int32_t from = m->from;
    g->heard_us[from] = clock_us();
    switch (m->kind) {
    case LIFE_LEAVE:
        atomic_store(&g->left[from], true);
        break;
    case LIFE_FAILED:
        group_fail(g, "%s", m->text);
        break;
    case LIFE_GONE:
        if (!atomic_load(&g->left[from]))
            group_fail(g, "%s has gone: its connection is closed", group_name(g, from).text);
        break;
    }
}

/* The last sign was sent at most sign_us before the silence began, so that the timeout has not
 * quite passed when this is noticed. */
static void check_silence(struct group *g) {
    int64_t now = clock_us(), most = g->timeout_us - sign_us(g);
    for (int32_t r = 0; r < g->size; r++)
        if (is_neighbour(g, r) && !atomic_load(&g->left[r]) && now - g->heard_us[r] > most) {
            group_fail(g,
                       "%s has been silent for %.1f s: it was killed or stopped, or the network "
                       "is cut",
                       group_name(g, r).text, (double)(now - g->heard_us[r]) * 1e-6);
            return;
        }
}

static void hear_all(struct group *g) {
    for (int32_t r = 0; r < g->size; r++)
        g->heard_us[r] = clock_us();
}

static void *life_main(void *arg) {
    struct group *g = arg;
    struct group_life m;
    bool joined = false;
    int64_t next_us = 0;
    while (!atomic_load(&g->stop)) {
        /* While the last are awaited, nobody says anything, and only what ends is noticed. */
        if (!joined && atomic_load(&g->joined)) {
            joined = true;
            hear_all(g);
        }
        bool failed = atomic_load(&g->failed);
        if (joined && !failed && clock_us() >= next_us) {
            next_us = clock_us() + sign_us(g);
            pthread_mutex_lock(&g->lock);
            tell_neighbours(g, LIFE_ALIVE, "");
            pthread_mutex_unlock(&g->lock);
        }
        /* What has arrived is read before anybody is said to be silent: this process may have been
         * the one that was stopped. */
        if (g->engine->life_receive(g, &m))
            hear(g, &m);
        else if (joined && !failed)
            check_silence(g);
    }
    return NULL;
}

int group_life_start(struct group *g, struct error *error) {
    int rc = pthread_create(&g->life, NULL, life_main, g);
    if (rc != 0)
        return error_set(error, ERR_NO_MEMORY, "cannot start the group's thread: %s", strerror(rc));
    g->life_runs = true;
    return 0;
}

static bool all_left(const struct group *g) {
    for (int32_t r = 0; r < g->size; r++)
        if (is_neighbour(g, r) && !atomic_load(&g->left[r]))
            return false;
    return true;
}

bool group_life_end(struct group *g) {
    if (!g->life_runs)
        return false;
    if (!atomic_load(&g->failed)) {
        pthread_mutex_lock(&g->lock);
        tell_neighbours(g, LIFE_LEAVE, "");
        pthread_mutex_unlock(&g->lock);
    }
    int64_t until_us = clock_us() + g->timeout_us;
    while (g->engine->waits_to_leave && !all_left(g) && !atomic_load(&g->failed) &&
           clock_us() < until_us)
        usleep(1000);
    atomic_store(&g->stop, true);
    pthread_join(g->life, NULL);
    return all_left(g) && !atomic_load(&g->failed);
}
