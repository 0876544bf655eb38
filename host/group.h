/* group: the processes that serve one model together, usually one a machine.
 *
 * Process 0 owns port and scheduler and sends each batch to the others; all of them meet in
 * collectives. Two engines stand behind the same calls, chosen from the environment:
 *
 *   OMPI_COMM_WORLD_SIZE, PMI_SIZE or PMIX_RANK (mpirun, srun --mpi=...)             MPI
 *   RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT (torchrun's names; SLURM_PROCID
 *   and SLURM_NTASKS for the first two where MASTER_ADDR is set)                     TCP
 *   none of them                                                    a group of one, no network
 *
 * Over TCP process 0 listens on MASTER_ADDR:MASTER_PORT until all have joined, and nobody else
 * opens a port. Nothing is encrypted: that network must be trusted. With MOESERVE_GROUP_SECRET a
 * process must know the same secret to be let in.
 *
 * Threads: collectives and commands are called by one thread of each process at a time, in the
 * same order in all processes. group_failed and group_abort may be called by any thread at any
 * time. A small thread of the group's own sends a sign of life about once a second and listens for
 * those of the others.
 *
 * Failure: every call that can fail returns 0 or a negative ERR_* code with a text that names the
 * process at fault. Once a process has failed, gone or fallen silent for longer than the timeout,
 * the group has failed in all processes, and every later call returns the same text. Buffers of a
 * call that failed stay allocated until group_leave: the network may still hold them.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/buffer.h"
#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { GROUP_MAX = 64 }; /* processes */

struct group; /* opaque */

/* Joins the group that the environment describes. Blocks until all processes have joined, for at
 * most join_us (with MPI the launcher's own patience counts: MPI_Init waits for all). timeout_us
 * (at least 100 ms) is how long a process may be silent, and, until group_set_wait, how long a
 * call waits for one that lives but does not take part. ERR_CONFIG for variables that are wrong or
 * incomplete and for processes that do not belong together, ERR_UNSUPPORTED for MPI in a build
 * without it, ERR_INTERNAL when somebody is missing. With MPI a process joins at most once. */
int group_join(int64_t join_us, int64_t timeout_us, struct group **out, struct error *error);

/* Leaves; the others are not alarmed, but can no longer call anything that needs this process.
 * After a failure nothing is said to anyone. With MPI waits (at most the timeout) until process 0,
 * or in process 0 everybody, leaves too. g may be NULL. */
void group_leave(struct group *g);
/* Some thread does not come back, and may yet call something of the group: group_leave, behind it,
 * leaves memory and connections to the end of the process. Any thread. */
void group_keep(struct group *g);

int32_t group_rank(const struct group *g); /* 0 .. size - 1 */
int32_t group_size(const struct group *g);
/* The name of a process's machine, as it says itself. Owned by g. */
const char *group_host(const struct group *g, int32_t rank);
/* Appends "4 processes by TCP on 2 machines: a (0, 1), b (2, 3)". */
void group_describe(const struct group *g, struct buffer *out);

/* How long calls wait, from now on, for a process that lives but does not take part (it still
 * loads, say) before the group fails. All processes set the same. */
void group_set_wait(struct group *g, int64_t wait_us);

/* ---- collectives ----------------------------------------------------------------------------- */

/* data[0..count) of every process becomes their sum; all get identical bytes. The order of the
 * additions depends on size and count alone. */
int group_all_reduce(struct group *g, double *data, int64_t count, struct error *error);

/* all [size][bytes]: everybody's `mine` in order of rank. mine may be its own place in all. */
int group_all_gather(struct group *g, const void *mine, void *all, size_t bytes,
                     struct error *error);

/* data[0..bytes) of process 0 to all. */
int group_broadcast(struct group *g, void *data, size_t bytes, struct error *error);

/* Everybody's `mine` to process 0, which finds that of process r in into[r], of sizes[r] bytes.
 * into[0] may be NULL or mine. Others pass NULL for into and sizes. */
int group_gather(struct group *g, const void *mine, size_t bytes, void *const *into,
                 const size_t *sizes, struct error *error);

/* Returns when all processes have called it. */
int group_barrier(struct group *g, struct error *error);

/* All processes must have the same bytes ("config.json", "the options"), of process 0's length at
 * most 256 MiB: else ERR_CONFIG in all of them with a text that names `what` and who differs. The
 * group goes on. */
int group_agree(struct group *g, const char *what, const void *data, size_t bytes,
                struct error *error);

/* ---- commands from process 0 ----------------------------------------------------------------- */

/* Process 0 to all others, between collectives. bytes at most 1 GiB. */
int group_send(struct group *g, uint32_t kind, const void *data, size_t bytes, struct error *error);

/* The others: the next command; data is cleared and filled. Waits as long as process 0 lives,
 * asleep. ERR_SHUTTING_DOWN when process 0 has left in order, which is no failure. */
int group_receive(struct group *g, uint32_t *kind, struct buffer *data, struct error *error);

/* ---- failure --------------------------------------------------------------------------------- */

/* This process cannot go on: calls of all processes fail soon with "process 2 (host b): why". */
void group_abort(struct group *g, const char *why);

/* Has the group failed? Then error says why. Cheap: for loops that wait for something else. */
bool group_failed(struct group *g, struct error *error);

#ifdef __cplusplus
}
#endif
