/* engine_events: the queue of events between the engine thread and whoever drains it.
 *
 * Events are copied, with everything they point to, as records into one run of bytes. The engine
 * thread stages the events of a step in a buffer of its own and posts them in one go; a drain swaps
 * the posted bytes out, so the lock is never held while a callback runs. Buffers keep their
 * capacity (up to a bound), so a steady stream of events does not allocate.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>

#include "host/buffer.h"
#include "host/engine.h"

struct event_queue {
    pthread_mutex_t lock;
    pthread_cond_t posted_cond;
    struct buffer posted;   /* under the lock */
    struct buffer draining; /* the draining thread's */
};

void event_queue_init(struct event_queue *q);
void event_queue_deinit(struct event_queue *q);

/* Appends a copy of the event to the staging buffer. */
void event_stage(struct buffer *staged, const struct engine_event *event);

/* Posts what was staged and empties the buffer. Returns whether the queue had been empty. */
bool event_queue_post(struct event_queue *q, struct buffer *staged);

void event_queue_drain(struct event_queue *q, engine_event_fn fn, void *ctx);
void event_queue_wait(struct event_queue *q, int32_t timeout_ms);
