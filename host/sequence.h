/* sequence: the tokens of one request and how far the model has got with them.
 *
 *   tokens     p p p p p p g g g          prompt, then generated; num_tokens = 9, num_prompt = 6
 *   computed   x x x x x x x x .          num_computed = 8: keys and values are in the KV blocks
 *   blocks     [ 12 ][ 3 ]                block_size 4 in this picture
 *
 * A sequence whose num_computed is one less than its num_tokens decodes; one that lacks more is in
 * prefill. A preempted sequence loses its blocks, and its generated tokens are computed again as if
 * they were prompt. Embedded in the engine's request; the scheduler links sequences into its lists
 * and owns the second half of the fields from scheduler_add to scheduler_remove.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum sequence_state {
    SEQUENCE_IDLE, /* not with the scheduler */
    SEQUENCE_WAITING,
    SEQUENCE_RUNNING,
};

struct sequence {
    /* Set by sequence_init. */
    int32_t *tokens;    /* [num_tokens], [capacity] once prepared; owned */
    int32_t num_prompt; /* >= 1 */
    int32_t num_tokens; /* prompt and generated */
    int32_t capacity;   /* most tokens that it will ever have */
    bool prompt_logits; /* logits of every prompt row are wanted, not only of the last */

    /* The scheduler's. */
    enum sequence_state state;
    struct sequence *prev, *next; /* in the waiting or the running list */
    int32_t *blocks;              /* [blocks of capacity] block table, owned; NULL until prepared */
    int32_t num_blocks;
    int32_t num_registered;     /* leading blocks offered to the prefix cache */
    int32_t num_computed;       /* tokens whose keys and values are in the blocks */
    int32_t prompt_logits_done; /* prompt rows whose logits were given out; survives preemption */
    int32_t cached_tokens; /* prompt tokens that the prefix cache gave at the first admission */
    int64_t admitted_us;   /* first admission; -1 before */
};

/* Takes over tokens (from the malloc family). capacity > num_prompt: prompt plus the most tokens
 * that may be generated. */
void sequence_init(struct sequence *seq, int32_t *tokens, int32_t num_prompt, int32_t capacity,
                   bool prompt_logits);
/* Allocates what running takes, so that no step has to; again is fine. */
void sequence_prepare(struct sequence *seq);
void sequence_deinit(struct sequence *seq);

static inline int32_t sequence_num_generated(const struct sequence *seq) {
    return seq->num_tokens - seq->num_prompt;
}

#ifdef __cplusplus
}
#endif
