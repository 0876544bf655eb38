/* comm_internal: what comm*.c share. Not for other modules. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "cuda/comm.h"
#include "cuda/nccl.h"
#include "cuda/staged.h"
#include "host/mem.h"

enum { NUM_COMM_SIZES = 24 }; /* by log2 of an array's rows */
enum comm_engine { ENGINE_STAGED, ENGINE_NCCL, NUM_ENGINES };

/* What an all-reduce with a norm behind took on the slowest rank, in microseconds; 0: not timed. */
struct comm_timing {
    int32_t rows;
    double us[NUM_ENGINES];
};

/* Of all ranks of this process. Written by the first rank's thread between barriers. */
struct comm_shared {
    int32_t num_ranks, devices[MAX_RANKS];
    struct staged *staged; /* owned; NULL: not in use */
    bool ready;            /* it could be created */
    char id[NCCL_ID_BYTES];
    _Atomic uint32_t num_attempts; /* to join NCCL, of all ranks */
    struct comm_timing timing[NUM_COMM_SIZES];
    int32_t num_timings;

    pthread_mutex_t lock; /* of what follows */
    int32_t users;
    struct buffer left_out; /* lines */
};

struct comm {
    struct comm_config config;
    struct comm_shared *shared;
    int32_t first_column[MAX_RANKS + 1]; /* of each rank's part of the vocabulary; the last is V */
    int32_t columns[MAX_RANKS];          /* of each rank's part */
    uint32_t num_attempts;               /* of this rank to join NCCL */
    enum comm_engine engine[NUM_COMM_SIZES];

    struct nccl *nccl; /* owned; NULL: not in use */
    char *packed;      /* [max(T, R)] rows as they travel by NCCL; device, owned */
    float *gathered;   /* rank 0 of the world: [R, V] parts by rank; device, owned */
    _Atomic bool aborted;
};

/* ---- comm_nccl.c: calls fail by guard_fail --------------------------------------------------- */

/* Joins and tests NCCL; on all ranks' threads at once. False: left out, `error` says why. */
bool comm_nccl_start(struct comm *c, struct error *error);
void comm_nccl_stop(struct comm *c);
/* The sum of an array's partials, and what happens to it (allreduce.h). */
void comm_nccl_sum(struct comm *c, const struct allreduce_array *a);
void comm_nccl_sum_plain(struct comm *c, void *data, int64_t count);
void comm_nccl_gather(struct comm *c, float *all, int32_t vocab_size, const float *mine,
                      int32_t num_rows);
/* 0, or ERR_INTERNAL: NCCL's error, or the stream has gone on for too long. */
int comm_nccl_status(struct comm *c, int64_t waited_us, struct error *error);

/* ---- comm_choose.c --------------------------------------------------------------------------- */

/* Times the engines for the sizes that occur and fills in c->engine; on all ranks' threads at once,
 * inside ranks_run. Both engines are there. ERR_NO_MEMORY, or on all ranks ERR_INTERNAL: NCCL is
 * aborted, and the built-in engine wants staged_reset. */
int comm_choose(struct comm *c, struct error *error);
int32_t comm_size_of(int32_t num_rows);

/* ---- comm.c ---------------------------------------------------------------------------------- */

/* The largest of what the ranks of the process have; negative when one of them is. On all their
 * threads at once. */
double comm_largest(struct comm *c, double mine);
/* Does every rank of the process say yes? On all its threads at once. */
bool comm_all_agree(struct comm *c, bool yes);
/* The sum through one engine. */
void comm_sum_by(struct comm *c, enum comm_engine engine, const struct allreduce_array *a);
/* Waits, for at most the time limit, until the stream is idle: 0 or ERR_INTERNAL. */
int comm_wait(struct comm *c, struct error *error);
