/* group_env: reads from the environment how this process was started. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/group_internal.h"

enum { SECRET_MAX = 255 };

/* A variable that is set and not empty, or NULL. */
static const char *variable(const char *name) {
    const char *s = getenv(name);
    return s && *s ? s : NULL;
}

static int read_number(const char *name, int64_t least, int64_t most, int64_t *out,
                       struct error *error) {
    const char *s = variable(name);
    char *end = NULL;
    errno = 0;
    long long v = s ? strtoll(s, &end, 10) : 0;
    if (!s || *end || errno || v < least || v > most)
        return error_set(error, ERR_CONFIG,
                         "environment variable %s=%.64s: expected a number from %lld to %lld", name,
                         s ? s : "", (long long)least, (long long)most);
    *out = v;
    return 0;
}

/* Adds the names of those that are not set to text, with commas; returns how many. */
static int list_missing(const char *const *names, int num_names, char *text, size_t size) {
    int missing = 0;
    text[0] = '\0';
    for (int i = 0; i < num_names; i++)
        if (!variable(names[i])) {
            size_t len = strlen(text);
            snprintf(text + len, size - len, "%s%s", missing ? ", " : "", names[i]);
            missing++;
        }
    return missing;
}

static int read_tcp(struct group_env *e, const char *rank_name, const char *size_name,
                    struct error *error) {
    const char *names[] = {rank_name, size_name, "MASTER_ADDR", "MASTER_PORT"};
    enum { NUM_NAMES = sizeof names / sizeof names[0] };
    char missing[128];
    int64_t rank, size, port;
    int rc;
    int num_missing = list_missing(names, 2, missing, sizeof missing);
    if (num_missing == 0) {
        if ((rc = read_number(size_name, 1, GROUP_MAX, &size, error)) ||
            (rc = read_number(rank_name, 0, size - 1, &rank, error)))
            return rc;
        e->rank = (int32_t)rank;
        e->size = (int32_t)size;
        if (size == 1)
            return 0;
    }
    if (list_missing(names, NUM_NAMES, missing, sizeof missing) > 0)
        return error_set(error, ERR_CONFIG,
                         "environment: %s not set, but others of %s, %s, MASTER_ADDR and "
                         "MASTER_PORT are; set all of them for several processes, none for one",
                         missing, rank_name, size_name);
    if ((rc = read_number("MASTER_PORT", 1, 65535, &port, error)))
        return rc;
    e->kind = GROUP_TCP;
    e->addr = variable("MASTER_ADDR");
    e->port = variable("MASTER_PORT");
    if (strlen(e->secret) > SECRET_MAX)
        return error_set(error, ERR_CONFIG,
                         "environment variable MOESERVE_GROUP_SECRET: %zu bytes, at most %d",
                         strlen(e->secret), SECRET_MAX);
    return 0;
}

/* mpirun says how many there are, and so one process needs no MPI. */
static int read_mpi(struct group_env *e, const char *name, struct error *error) {
    int64_t size = 0;
    int rc;
    snprintf(e->launcher, sizeof e->launcher, "%s", name);
    if (strcmp(name, "PMIX_RANK") != 0) {
        if ((rc = read_number(name, 1, INT32_MAX, &size, error)))
            return rc;
        if (size > GROUP_MAX)
            return error_set(error, ERR_CONFIG, "%s=%lld processes, at most %d", name,
                             (long long)size, GROUP_MAX);
    }
    if (size != 1)
        e->kind = GROUP_MPI;
    return 0;
}

int group_env_read(struct group_env *out, struct error *error) {
    static const char *const mpi[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"};
    const char *secret = variable("MOESERVE_GROUP_SECRET");
    *out = (struct group_env){.kind = GROUP_ALONE, .size = 1, .secret = secret ? secret : ""};
    for (size_t i = 0; i < sizeof mpi / sizeof mpi[0]; i++)
        if (variable(mpi[i]))
            return read_mpi(out, mpi[i], error);
    bool named = variable("RANK") || variable("WORLD_SIZE");
    if (!named && variable("MASTER_ADDR") && variable("SLURM_PROCID"))
        return read_tcp(out, "SLURM_PROCID", "SLURM_NTASKS", error);
    if (named || variable("MASTER_ADDR") || variable("MASTER_PORT"))
        return read_tcp(out, "RANK", "WORLD_SIZE", error);
    return 0;
}
