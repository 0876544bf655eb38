#include "host/sequence.h"

#include <stdlib.h>
#include <string.h>

#include "host/batch.h"
#include "host/error.h"
#include "host/mem.h"

void sequence_init(struct sequence *seq, int32_t *tokens, int32_t num_prompt, int32_t capacity,
                   bool prompt_logits) {
    CHECK(num_prompt >= 1 && capacity > num_prompt, "%d prompt tokens, capacity %d", num_prompt,
          capacity);
    memset(seq, 0, sizeof *seq);
    seq->tokens = tokens;
    seq->num_prompt = num_prompt;
    seq->num_tokens = num_prompt;
    seq->capacity = capacity;
    seq->prompt_logits = prompt_logits;
    seq->admitted_us = -1;
}

void sequence_prepare(struct sequence *seq) {
    if (seq->blocks)
        return;
    size_t max_blocks = ((size_t)seq->capacity + KV_BLOCK_SIZE - 1) / KV_BLOCK_SIZE;
    seq->tokens = xrealloc(seq->tokens, (size_t)seq->capacity * sizeof *seq->tokens);
    seq->blocks = xmalloc(max_blocks * sizeof *seq->blocks);
}

void sequence_deinit(struct sequence *seq) {
    CHECK(seq->state == SEQUENCE_IDLE, "freeing a sequence that the scheduler still holds");
    free(seq->tokens);
    free(seq->blocks);
    memset(seq, 0, sizeof *seq);
}
