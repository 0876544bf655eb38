/* pool: the threads of one CPU rank: the rank's own thread and num_threads - 1 workers.
 *
 * pool_run hands numbered tasks to whichever thread is free next; the calling thread takes its
 * share and returns when all are done. Idle workers spin for a few tens of microseconds, because
 * the next op of a step usually follows at once, then sleep on a futex and cost nothing. When the
 * pools of the process have more threads than the process has cores, nobody spins: a spinning
 * thread would hold the core that another one needs. A worker that is late or asleep is never
 * waited for: only the tasks that it took are.
 *
 * Thread: created, run and destroyed by one thread (the rank's); runs do not nest.
 */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct pool; /* opaque */

/* `task` is 0 .. num_tasks - 1, each exactly once; `thread` is 0 (the caller) .. num_threads - 1.
 */
typedef void pool_fn(void *arg, int32_t task, int32_t thread);

/* num_threads >= 1. NULL when the system has no thread left. */
struct pool *pool_create(int32_t num_threads);
void pool_destroy(struct pool *p); /* NULL is fine */

int32_t pool_num_threads(const struct pool *p);

/* Runs the tasks and returns when all are done; what they wrote is visible to the caller. Workers
 * count as inside a step when the caller is. Allocates nothing. */
void pool_run(struct pool *p, pool_fn *fn, void *arg, int32_t num_tasks);

#ifdef __cplusplus
}
#endif
