/* ticket: whom the engine's events are for.
 *
 * Several protocols submit requests to one dispatch, and its events come back through one
 * callback. What each of them gives to dispatch_submit as `user` begins with a ticket, which says
 * who takes the event. Loop thread only.
 */
#pragma once

#include "host/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The first member of whatever waits for events. It must live until it has been given EVENT_DONE
 * or EVENT_ERROR, after which nothing refers to it any more. */
struct ticket {
    void (*on_event)(struct ticket *t, const struct engine_event *event);
};

/* For dispatch_drain; ctx is not used. */
static inline void ticket_deliver(void *ctx, const struct engine_event *event) {
    struct ticket *t = event->user;
    (void)ctx;
    t->on_event(t, event);
}

#ifdef __cplusplus
}
#endif
