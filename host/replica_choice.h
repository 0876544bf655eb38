/* replica_choice: which of several replicas a request goes to, and what each has still to do.
 *
 * Pure logic: no engine, no thread, no clock. The rule: the replica with the lowest
 *
 *   cost = tokens that it has outstanding + tokens of the prompt that it would have to compute
 *
 * and of equal ones the next in turn. Outstanding are, over the requests that it has, the prompt
 * tokens not known to be computed, plus the tokens that each is expected to generate. Tokens, and
 * not requests, because a prompt of 30,000 tokens is not a prompt of 10; prompt and generated
 * tokens alike, because each takes one place of max_num_batched_tokens in one step. So a shared
 * prefix of 2,000 tokens keeps its requests together until their replica is 2,000 tokens of work
 * behind another one, and a prefix of one block is worth no detour.
 *
 * What is known, and what is guessed:
 *   - A prompt counts in full (less what the prefix cache should have) until the first token of its
 *     answer comes: how far its prefill has got is the engine's knowledge.
 *   - Nobody knows how long an answer will be. A request counts with the mean of the answers that
 *     ended of late, or its max_tokens if that is lower, until it ends. (The rest does not shrink
 * as it generates: an answer that is long already is not about to end for that.)
 *   - The blocks that a replica's prefix cache should have are those of the prompts that it was
 *     given (prefix_index.h). An answer's own blocks need not be noted: a conversation that goes on
 *     begins with its prompt.
 */
#pragma once

#include <stdint.h>

#include "host/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

struct replica_choice; /* opaque */

/* Where a request would go, and what it would cost there. */
struct replica_pick {
    int32_t replica;
    int32_t prompt_tokens;    /* to compute */
    int32_t generated_tokens; /* expected */
};

/* prefix_blocks [num_replicas]: blocks of each one's prefix cache, 0: it has none. num_replicas is
 * 1 to 32. */
struct replica_choice *replica_choice_create(int32_t num_replicas, const int32_t *prefix_blocks);
void replica_choice_destroy(struct replica_choice *c); /* NULL is fine */

/* Picks among the replicas whose bits are set in `open`, of which there is at least one. */
struct replica_pick replica_choice_pick(struct replica_choice *c, const struct request_params *p,
                                        uint32_t open);
/* The replica has accepted the request that was picked for last, under this handle. */
void replica_choice_add(struct replica_choice *c, const struct replica_pick *pick, uint64_t handle);
/* Something happened to a request; others than those added are ignored. */
void replica_choice_on_event(struct replica_choice *c, const struct engine_event *event);

/* Tokens that a replica has outstanding. */
int64_t replica_choice_load(const struct replica_choice *c, int32_t replica);

#ifdef __cplusplus
}
#endif
