/* group: joining, leaving and describing. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/group_internal.h"
#include "host/mem.h"

/* Everybody's host name to all: the first collective, in which those that joined early wait for
 * the last. */
static int tell_hosts(struct group *g, int64_t deadline_us, struct error *error) {
    struct error why = {0};
    char mine[GROUP_HOST_BYTES] = "";
    if (gethostname(mine, sizeof mine - 1) != 0)
        strcpy(mine, "unknown host");
    memcpy(g->host[g->rank], mine, sizeof mine);
    if (g->size == 1)
        return 0;
    int64_t left_us = deadline_us - clock_us();
    g->wait_us = left_us > g->timeout_us ? left_us : g->timeout_us;
    int rc = group_all_gather(g, mine, g->host, sizeof mine, &why);
    g->wait_us = g->timeout_us;
    for (int32_t i = 0; i < g->size; i++)
        g->host[i][sizeof mine - 1] = '\0';
    if (rc != 0)
        error_set(error, rc, "joining a group of %d processes: %s", g->size, why.text);
    return rc;
}

static int join_engine(struct group *g, const struct group_env *env, int64_t deadline_us,
                       struct error *error) {
    g->engine = env->kind == GROUP_MPI ? group_mpi_engine() : group_tcp_engine();
    if (!g->engine)
        return error_set(error, ERR_UNSUPPORTED,
                         "started by MPI (%s is set), but this build has no MPI: build it where "
                         "libopenmpi-dev is installed, or start it with RANK, WORLD_SIZE, "
                         "MASTER_ADDR and MASTER_PORT instead",
                         env->launcher);
    int rc = g->engine->join(g, env, deadline_us, error);
    if (rc != 0)
        return rc;
    if (g->size == 1) { /* an MPI that does not say its size before it is started */
        g->engine->close(g, true);
        g->engine = NULL;
        return 0;
    }
    g->stage = xcalloc((size_t)(g->size - 1) * GROUP_PIECE, sizeof *g->stage);
    return group_life_start(g, error);
}

int group_join(int64_t join_us, int64_t timeout_us, struct group **out, struct error *error) {
    struct group_env env;
    CHECK(timeout_us >= 100000, "timeout %lld us", (long long)timeout_us);
    int rc = group_env_read(&env, error);
    if (rc != 0)
        return rc;
    int64_t deadline_us = clock_us() + join_us;
    struct group *g = xcalloc(1, sizeof *g);
    pthread_mutex_init(&g->lock, NULL);
    g->size = 1;
    g->timeout_us = g->wait_us = timeout_us;
    if (env.kind != GROUP_ALONE)
        rc = join_engine(g, &env, deadline_us, error);
    if (rc == 0)
        rc = tell_hosts(g, deadline_us, error);
    if (rc != 0) {
        group_leave(g);
        return rc;
    }
    atomic_store(&g->joined, true);
    *out = g;
    return 0;
}

void group_leave(struct group *g) {
    if (!g)
        return;
    bool in_order = group_life_end(g);
    if (atomic_load(&g->kept))
        return;
    if (g->engine)
        g->engine->close(g, in_order);
    pthread_mutex_destroy(&g->lock);
    free(g->stage);
    buffer_deinit(&g->agreed);
    free(g);
}

void group_keep(struct group *g) {
    atomic_store(&g->kept, true);
}

int32_t group_rank(const struct group *g) {
    return g->rank;
}

int32_t group_size(const struct group *g) {
    return g->size;
}

const char *group_host(const struct group *g, int32_t rank) {
    CHECK(rank >= 0 && rank < g->size, "process %d of %d", rank, g->size);
    return g->host[rank];
}

void group_set_wait(struct group *g, int64_t wait_us) {
    CHECK(wait_us > 0, "wait %lld us", (long long)wait_us);
    g->wait_us = wait_us;
}

/* The first process of the same machine: rank itself where it is the first. */
static int32_t first_there(const struct group *g, int32_t rank) {
    int32_t first = 0;
    while (strcmp(g->host[first], g->host[rank]) != 0)
        first++;
    return first;
}

void group_describe(const struct group *g, struct buffer *out) {
    int32_t machines = 0;
    for (int32_t r = 0; r < g->size; r++)
        machines += first_there(g, r) == r;
    buffer_printf(out, "%d process%s", g->size, g->size > 1 ? "es" : "");
    if (g->engine)
        buffer_printf(out, " by %s", g->engine->name);
    buffer_printf(out, " on %d machine%s:", machines, machines > 1 ? "s" : "");
    const char *between = " ";
    for (int32_t first = 0; first < g->size; first++) {
        if (first_there(g, first) != first)
            continue;
        buffer_printf(out, "%s%s (%d", between, g->host[first], first);
        for (int32_t r = first + 1; r < g->size; r++)
            if (first_there(g, r) == first)
                buffer_printf(out, ", %d", r);
        buffer_putc(out, ')');
        between = ", ";
    }
}
