/* scheduler: which tokens of which sequences the next step computes.
 *
 * Pure logic: no thread, no model, no clock (time is passed in). One thread owns it together with
 * its KV cache. The cycle is
 *
 *   scheduler_schedule -> run step->batch -> for each of step->seqs: sample, scheduler_commit
 *
 * and between two cycles sequences are added and removed at will.
 *
 * Policy
 *   - Every decoding sequence gets its one token in every step; what is left of
 *     max_num_batched_tokens goes to prefills, oldest first, in chunks (so a long prompt never
 *     holds up decoding).
 *   - Admission is strictly first come, first served: the head of the queue is admitted when the
 *     blocks for all its tokens are available, beside what running sequences are known to need.
 *     What the prefix cache holds is taken from there; at least one token is always computed.
 *   - When blocks run out, sequences take them from the most recently admitted one: that one is
 *     preempted (its blocks are released, it goes back to the front of the queue and is computed
 *     again later). The most recently admitted sequence itself just sits out the step. The oldest
 *     sequence therefore always advances, and as a single one always fits, every one finishes.
 *   - Each running sequence has a row of logits reserved for sampling. Rows of prompt_logits
 *     sequences share the remaining max_logits - max_num_seqs, which bounds their chunks; such a
 *     sequence takes nothing from the prefix cache while prompt rows are outstanding.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "host/batch.h"
#include "host/kv_cache.h"
#include "host/sequence.h"

#ifdef __cplusplus
extern "C" {
#endif

struct scheduler; /* opaque */

struct scheduler_options {
    int32_t max_num_seqs;           /* running sequences, >= 1 */
    int32_t max_num_batched_tokens; /* T of a step, >= max_num_seqs */
    int32_t max_logits;             /* R of a step, > max_num_seqs */
    int32_t max_model_len;          /* tokens of a sequence; its blocks must fit in the KV cache */
};

/* One sequence's part of a step. Its logits are rows first_logit .. first_logit + num_logits - 1 of
 * the model's answer: first those of prompt rows (positions prompt_row, prompt_row + 1, ...; each
 * predicts the token after it), then, when `samples`, the one to sample from, or, when `checks`,
 * that of the last token, which tells whether what was computed is finite before others may share
 * it. */
struct step_seq {
    struct sequence *seq;
    int32_t num_tokens; /* computed by this step */
    int32_t first_logit, num_logits;
    int32_t prompt_row;
    bool samples, checks;
};

struct step {
    struct batch batch;          /* arrays owned by the scheduler, valid until the next schedule */
    const struct step_seq *seqs; /* [batch.num_seqs] in the batch's order, decodes first */
};

struct scheduler_counters {
    int64_t preemptions, prefix_hit_tokens, prompt_tokens; /* the latter two at first admissions */
};

/* kv is borrowed and must hold a sequence of max_model_len tokens (CHECKed). */
struct scheduler *scheduler_create(const struct scheduler_options *options, struct kv_cache *kv);
void scheduler_destroy(struct scheduler *s); /* NULL is fine; sequences are left alone */

/* Puts a sequence at the end of the queue; it is borrowed until scheduler_remove. Sequences that
 * could be admitted by the next step must have been prepared (sequence_prepare) before it. */
void scheduler_add(struct scheduler *s, struct sequence *seq);
/* Takes a finished or cancelled sequence out, in whatever state; its blocks return to the cache. */
void scheduler_remove(struct scheduler *s, struct sequence *seq);
/* The same for one whose computation failed: nothing that it computed will be shared. */
void scheduler_discard(struct scheduler *s, struct sequence *seq);

/* Puts all running sequences back to the front of the queue, in their order, to be computed anew
 * from their tokens: the last step failed. What earlier steps computed may still be shared. */
void scheduler_restart(struct scheduler *s);

int32_t scheduler_num_waiting(const struct scheduler *s);
int32_t scheduler_num_running(const struct scheduler *s);
/* Tokens of those that wait: of their prompts, and of preempted ones what they generated too. */
int64_t scheduler_waiting_tokens(const struct scheduler *s);
/* Heads of the lists in order (follow ->next), NULL when empty. */
struct sequence *scheduler_first_waiting(const struct scheduler *s);
struct sequence *scheduler_first_running(const struct scheduler *s);

/* Plans a step. NULL when there is nothing to compute, which implies that no sequence is held. */
const struct step *scheduler_schedule(struct scheduler *s, int64_t now_us);
/* One sequence of the step has been computed: advances it, registers its full blocks and, if it
 * samples, appends the token (ignored otherwise). */
void scheduler_commit(struct scheduler *s, const struct step_seq *part, int32_t token);

void scheduler_counters(const struct scheduler *s, struct scheduler_counters *out);

/* For tests: CHECKs lists, block tables and kv_cache_check with the references that they hold. */
void scheduler_check(const struct scheduler *s);

#ifdef __cplusplus
}
#endif
