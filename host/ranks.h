/* ranks: the ranks of one process and what they say to each other.
 *
 * Every rank is a thread (rank 0 too when there is more than one; with one rank the work runs on
 * the caller's thread). ranks_run hands all of them the same function and waits; inside it they
 * meet in collectives, which every rank must call in the same order. Waiting threads spin for some
 * microseconds and then sleep, so idle ranks cost nothing and more ranks than cores still progress.
 * Communication between processes and GPUs will stand behind the same calls.
 */
#pragma once

#include <stdint.h>

#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ranks; /* opaque */

int ranks_create(int32_t world_size, struct ranks **out, struct error *error);
void ranks_destroy(struct ranks *r);
int32_t ranks_world_size(const struct ranks *r);

/* Runs fn(ctx, rank) on every rank and returns when all have returned. */
void ranks_run(struct ranks *r, void (*fn)(void *ctx, int32_t rank), void *ctx);

/* Waits until every rank is here. Only inside ranks_run. */
void ranks_barrier(struct ranks *r);

/* data[0..count) of every rank becomes their sum, added in rank order. See ops.h on why the order
 * of these float64 sums does not matter for the result. Only inside ranks_run. */
void ranks_all_reduce(struct ranks *r, int32_t rank, double *data, int64_t count);

#ifdef __cplusplus
}
#endif
