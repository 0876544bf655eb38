/* cluster: one model in several processes on this machine, for tests: starts them over TCP or by
 * mpirun, keeps what each says on its standard error, and sees how and when they end.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "tests/net_client.h"

enum { CLUSTER_MAX = 4, CLUSTER_ARGS = 40 };

struct cluster_options {
    int32_t size;                 /* processes */
    const char *program;          /* NULL: what MOESERVE_BIN names */
    const char *const *args;      /* of all, NULL-ended */
    const char *own[CLUSTER_MAX]; /* one more of each process, as "--ranks=2"; NULL: none */
    bool mpi;                     /* by mpirun, where own is not looked at */
    /* Network namespaces that processes run in, and process 0's address there; NULL: this one. */
    const char *machine[CLUSTER_MAX];
    const char *address;
};

struct cluster {
    int32_t num_children; /* the processes, or the one that has mpirun */
    pid_t pid[CLUSTER_MAX];
    bool ended[CLUSTER_MAX];
    int status[CLUSTER_MAX];       /* as program_wait's */
    int64_t ended_us[CLUSTER_MAX]; /* of clock_us */
    int out;                       /* the standard output of process 0, or of mpirun */
    int32_t number;                /* which cluster of this run of the tests it is */
    char said[8192];               /* by cluster_said */
};

/* False after a failure, with nothing running. */
bool cluster_start(struct cluster *c, const struct cluster_options *o);
/* The same, and waits for the ready line of process 0 and connects to it. When that fails all are
 * killed, and what they said is in the failure. */
bool cluster_serve(struct cluster *c, struct net_client *client, const struct cluster_options *o);
/* Until children first .. last have ended, for at most ms; false: some have not. */
bool cluster_wait(struct cluster *c, int32_t first, int32_t last, int32_t ms);
/* Kills what still runs, stopped or not, and releases everything; c->status stays. */
void cluster_end(struct cluster *c);
/* What child i has written on its standard error so far; overwritten by the next call. */
const char *cluster_said(struct cluster *c, int32_t i);
