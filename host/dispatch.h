/* dispatch: one or several independent engines behind one set of calls.
 *
 * A replica is an engine with its own copy of the weights, its own ranks, KV cache and queue. A
 * request goes to one of them (replica_choice.h says which) and stays there; what it answers does
 * not depend on which. This is what the net layer and the commands talk to: the calls are those of
 * engine.h and keep its contracts, the types are engine.h's. With one replica each of them is that
 * call and no more.
 *
 * Threads: any thread may submit and cancel; one at a time drains. `lock` guards the choice; it is
 * held while an engine's lock is taken, never the other way round, and never while a callback runs.
 *
 * Who gets new requests: replicas that have not failed for good, are healthy or idle, and have room
 * in their queue. When all but the unhealthy are full, a request is refused as overloaded; when
 * none is well, all are asked, as one engine alone would be. Handles hold the number of the replica
 * in their top byte.
 */
#pragma once

#include <stdint.h>

#include "host/buffer.h"
#include "host/engine.h"
#include "host/metrics.h"
#include "host/model_metrics.h"

#ifdef __cplusplus
extern "C" {
#endif

struct dispatch; /* opaque */

/* The replicas together, and each of them. */
struct dispatch_stats {
    /* Sums; last_step_age_us is that of the latest step of all; healthy, failed: all of them. */
    struct engine_stats total;
    int32_t num_replicas;
    struct engine_stats replica[MAX_REPLICAS];
};

/* For /metrics and /stats. Ranks are each replica's own, numbered from 0. */
struct dispatch_metrics {
    struct dispatch_stats stats;
    struct metrics total;           /* of all replicas */
    struct engine_model_info model; /* strings are the dispatch's */
    bool prefix_caching;
    int64_t uptime_us;                        /* since all replicas were loaded */
    struct model_metrics parts[MAX_REPLICAS]; /* [stats.num_replicas] */
    /* [L, E] of all replicas; owned; NULL: not counted, or not told by one of them. */
    int64_t *expert_tokens;
};

/* The options of one replica out of o->replicas: its part of o->gpus, in their order. ERR_CONFIG
 * when they cannot be divided. Limits (max_num_seqs, kv_cache_memory_bytes, ...) are each
 * replica's own; engine_create gives it its part of the CPU threads and of free host memory. */
int dispatch_share(const struct engine_options *o, int32_t replica, struct engine_options *out,
                   struct error *error);

/* Loads o->replicas engines, all at the same time. Errors are engine_create's; the first replica's
 * that has one. `wake` may be called from several threads at once. */
int dispatch_create(const struct engine_options *o, void (*wake)(void *), void *wake_ctx,
                    struct dispatch **out, struct error *error);
/* Waits for the steps that run, drops all requests without events and frees everything. */
void dispatch_destroy(struct dispatch *d); /* NULL is fine */

/* How a replica comes to be; engine_create is one of these. */
typedef int (*dispatch_start_fn)(const struct engine_options *o, void (*wake)(void *),
                                 void *wake_ctx, struct engine **out, struct error *error);
/* dispatch_create with engines of one's own (tests): start is called once for each replica, with
 * its options and in a thread of its own when there are several. */
int dispatch_create_with(const struct engine_options *o, dispatch_start_fn start,
                         void (*wake)(void *), void *wake_ctx, struct dispatch **out,
                         struct error *error);

/* As engine_submit. A request without a seed gets one by the number of requests accepted before it,
 * whichever replica it goes to. */
int dispatch_submit(struct dispatch *d, struct request_params *p, void *user, uint64_t *handle,
                    struct error *error);
void dispatch_cancel(struct dispatch *d, uint64_t handle);
void dispatch_stop_accepting(struct dispatch *d);

/* Events of one request come in order, those of different replicas in any. */
void dispatch_drain(struct dispatch *d, engine_event_fn fn, void *ctx);
/* May return early, without an event. */
void dispatch_wait(struct dispatch *d, int32_t timeout_ms);

/* Have all replicas failed for good? Then the error says why the last one did (engine_failure). */
bool dispatch_failure(struct dispatch *d, struct error *error);
void dispatch_stats(struct dispatch *d, struct dispatch_stats *out);
/* dispatch_metrics_deinit frees what *out holds. */
void dispatch_metrics(struct dispatch *d, struct dispatch_metrics *out);
void dispatch_metrics_deinit(struct dispatch_metrics *m);
/* Seconds after which a request refused as overloaded may be tried again, 1 to 60: those of the
 * replica that has room first (engine_retry_after_s), of those that may be given requests. */
int32_t dispatch_retry_after_s(struct dispatch *d);
const struct tokenizer *dispatch_tokenizer(const struct dispatch *d);
const struct chat_template *dispatch_chat_template(const struct dispatch *d);
/* max_model_len is what every replica can take; ranks are those of one replica. */
void dispatch_model_info(const struct dispatch *d, struct engine_model_info *out);
int dispatch_check(const struct dispatch *d, const struct request_params *p, struct error *error);
/* Could so many requests wait together, had nothing else come, with prompts of num_tokens in all
 * and at most `longest` each? 0, or ERR_INVALID_REQUEST with what the queues of all replicas take.
 */
int dispatch_check_together(const struct dispatch *d, int32_t num_requests, int64_t num_tokens,
                            int32_t longest, struct error *error);
/* The table of the first replica, and of the others what differs from it. */
void dispatch_describe(struct dispatch *d, struct buffer *out);

#ifdef __cplusplus
}
#endif
