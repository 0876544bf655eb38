/* gpu_world: the ranks of a test of cuda/staged.h: a thread, a stream and random numbers each, and
 * what their sums come to.
 *
 * Rank r has GPU r % (number of GPUs), so that several may share one, unless the config says which.
 */
#pragma once

#include "cuda/staged.h"
#include "tests/gpu_fixture.h"

#ifdef __cplusplus
extern "C" {
#endif

struct world {
    struct staged *staged;
    int32_t num_ranks, devices[ALLREDUCE_MAX_RANKS];
    cudaStream_t streams[ALLREDUCE_MAX_RANKS];
    uint32_t *steps[ALLREDUCE_MAX_RANKS]; /* device memory */
    enum allreduce_payload payload;
};

/* lines, flags, piece: the limits of staged_config in bytes. CHECKs that all went well. */
struct world world_open(int32_t num_ranks, enum allreduce_payload payload, int64_t lines,
                        int64_t flags, int64_t piece, bool peers);
/* The same with a config; num_ranks and payload are filled in, and devices where it has none. */
struct world world_open_config(int32_t num_ranks, enum allreduce_payload payload,
                               struct staged_config config);
void world_close(struct world *w);

/* fn(world, rank, arg) on a thread for each rank, with its GPU current; waits for all. */
typedef void (*rank_fn)(struct world *w, int32_t rank, void *arg);
void world_run(struct world *w, rank_fn fn, void *arg);
/* On a rank's thread: a new step with its number; waits for the stream. */
void world_set_step(struct world *w, int32_t rank, uint32_t number);

/* Rounds a [rows, row_len] array as the payload does, in place. */
void payload_round(enum allreduce_payload payload, double *x, int32_t rows, int32_t row_len);
/* The sum in rank order of parts [n][rows * row_len] as all ranks are to get it. */
void payload_sum(double *sum, double *const *parts, int32_t n, enum allreduce_payload payload,
                 int32_t rows, int32_t row_len);

#ifdef __cplusplus
}
#endif
