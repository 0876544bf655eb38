/* ranks: the threads that run a model's ranks, and what they say to each other.
 *
 * Every rank is a thread (one rank alone runs on the caller's thread). ranks_run hands all of them
 * the same function and waits; inside it they meet in collectives, which every rank must call in
 * the same order. Waiting threads spin for some microseconds and then sleep, so idle ranks cost
 * nothing and more ranks than cores still progress.
 *
 * With a group (group.h) the ranks of all its processes are numbered together: this process has
 * ranks first .. first + local_size - 1 of the world. Functions are given local numbers, messages
 * name those of the world. Each process calls ranks_run for the same runs; collectives say so where
 * they are of this process alone.
 *
 * Failure. No wait is without end: a rank that waits longer than the timeout for another, and a
 * rank whose function returns an error, end the run (ranks_abort). From then on collectives return
 * at once, so that the others come back soon, with results that are thrown away. When all are back
 * the next run starts afresh; threads that died are started anew by ranks_revive. A thread that
 * does not come back within the timeout is stuck: nothing can be run any more, the memory that it
 * may touch must stay, and the process had better end. An aborted run of one process aborts the
 * group, for good.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ranks; /* opaque */
struct group;

struct ranks_options {
    int32_t local_size;  /* ranks of this process, 1 .. MAX_RANKS; MAX_RANKS in all processes */
    int64_t timeout_us;  /* bounds every wait of a rank for another one; a rank that does not come
                            back after that is stuck after half as much again */
    struct group *group; /* borrowed; NULL: this process is alone */
};

/* What ranks of this process spend time in together, waiting for each other included. */
enum comm_op { COMM_ALL_REDUCE, COMM_GATHER_LOGITS, NUM_COMM_OPS };
/* "all_reduce", "gather_logits" (from other processes). */
const char *comm_op_name(enum comm_op op);

/* What a rank does in a run: 0, an error code, or RANK_DIED, after which its thread ends. */
typedef int (*rank_fn)(void *ctx, int32_t rank);
enum { RANK_DIED = 1 };

/* What one wait may take, where a lost rank is to be noticed and dealt with within comm_timeout_us:
 * the rest is for stuck ranks to come back (half as much again) and for the server to leave. */
int64_t ranks_wait_us(int64_t comm_timeout_us);

/* With a group: all its processes at the same time. */
int ranks_create(const struct ranks_options *options, struct ranks **out, struct error *error);
/* With stuck threads nothing is freed. */
void ranks_destroy(struct ranks *r);
int32_t ranks_world_size(const struct ranks *r);
int32_t ranks_local_size(const struct ranks *r);
int32_t ranks_first(const struct ranks *r); /* the world's number of local rank 0 */
/* NULL when the process, or the rank (r may be NULL), is alone. */
struct group *ranks_group(const struct ranks *r);

/* Runs fn(ctx, rank) on every rank and returns when all have returned: 0, or ERR_INTERNAL with what
 * happened first. */
int ranks_run(struct ranks *r, rank_fn fn, void *ctx, struct error *error);

/* Ends the run in progress, from any thread, because of `why`; the first reason stays. */
void ranks_abort(struct ranks *r, const char *why, ...) __attribute__((format(printf, 2, 3)));
/* fn(ctx) is called once for an abort, on the thread that aborts. Set while nothing runs. */
void ranks_on_abort(struct ranks *r, void (*fn)(void *ctx), void *ctx);
/* Is the run over, as far as its result goes? */
bool ranks_aborted(const struct ranks *r);
/* Threads that did not come back. */
bool ranks_stuck(const struct ranks *r);
/* Starts threads anew that have died. ERR_INTERNAL when that is not possible. */
int ranks_revive(struct ranks *r, struct error *error);

/* Waits until every rank of this process is here. Only inside ranks_run, as are the next ones; 0 or
 * ERR_INTERNAL. r may be NULL: a rank alone. */
int ranks_barrier(struct ranks *r, int32_t rank);

/* data[0..count) of every rank becomes their sum, added in rank order. See ops.h on why the order
 * of these float64 sums does not matter for the result. */
int ranks_all_reduce(struct ranks *r, int32_t rank, double *data, int64_t count);

/* Row i of data [.., width] becomes the sum over the ranks of row rows[i], for i in [0, num_rows);
 * rows ascends. */
int ranks_reduce_rows(struct ranks *r, int32_t rank, double *data, const int32_t *rows,
                      int32_t num_rows, int32_t width);

/* Adds to the time that a rank has spent in an op, on its thread; ranks_all_reduce and
 * ranks_reduce_rows do so themselves. ranks_comm_us: any thread. */
void ranks_count_comm(struct ranks *r, int32_t rank, enum comm_op op, int64_t us);
int64_t ranks_comm_us(const struct ranks *r, int32_t rank, enum comm_op op);

/* data[0..bytes) of the world's rank 0 to all. */
int ranks_broadcast(struct ranks *r, int32_t rank, void *data, size_t bytes);

/* all[k] on every rank of this process becomes what its rank k passed. */
int ranks_exchange(struct ranks *r, int32_t rank, void *mine, void **all);

#ifdef __cplusplus
}
#endif
