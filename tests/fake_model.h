/* fake_model: a model that is a pure function of the context, read back through the KV blocks.
 *
 * Its "keys and values" are the token and position of each slot. For every row of logits it
 * collects the context through the block table and hashes it: the logits are pseudo-random numbers
 * in [-4, 4) drawn from that hash. A wrong slot, block table or order therefore changes the output.
 * Besides it checks each batch by itself and counts what is wrong in it.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "host/batch.h"

struct engine_model;

struct fake_model {
    int32_t vocab_size, num_blocks, max_logits;
    int32_t *slot_tokens, *slot_positions; /* [num_blocks * KV_BLOCK_SIZE] */
    float *logits;                         /* [max_logits, vocab_size] */
    int32_t nan_token;                     /* a context that holds it has NaN logits; -1: none */
    int32_t inf_token;                     /* likewise +Inf */
    int32_t fail_token;                    /* a batch that computes it fails; -1: none */
    atomic_int fail_steps;                 /* so many steps fail from now on */
    bool recovers, lost;                   /* can it be made ready again; is that in vain */
    int32_t num_recoveries;
    int32_t step_us;  /* how long a step sleeps */
    atomic_bool hold; /* steps do not end while set */
    atomic_int num_steps;
    int32_t num_errors; /* things wrong with batches */
    const char *last_error;
    int32_t next[64]; /* [num_logits] argmax of each row of the last run, as far as it fits */
};

void fake_model_init(struct fake_model *m, int32_t vocab_size, int32_t num_blocks,
                     int32_t max_logits);
void fake_model_deinit(struct fake_model *m);

int fake_model_run(struct fake_model *m, const struct batch *b, float **logits);

/* What the model answers to a context: a row of logits, and the largest one's id. */
void fake_logits(const int32_t *tokens, int32_t num_tokens, int32_t vocab_size, float *row);
int32_t fake_next(const int32_t *tokens, int32_t num_tokens, int32_t vocab_size);

/* The model as the engine takes it; m stays with the caller. */
void fake_model_wrap(struct fake_model *m, int32_t max_model_len, struct engine_model *out);

/* A small deterministic generator for tests. */
uint32_t fake_rand(uint64_t *state);
/* In [0, n). */
int32_t fake_below(uint64_t *state, int32_t n);
