/* sampler: from a row of logits to a token, and to logprobs.
 *
 * The order is that of vLLM (vllm/v1/sample/sampler.py; the formulas of the penalties are those of
 * apply_penalties in vllm/model_executor/layers/utils.py):
 *
 *   1. x += logit_bias of the token; then x = -inf for tokens that the request's grammar does not
 *      allow here, and for eos tokens below min_tokens
 *   2. repetition_penalty r on tokens of prompt or output: x > 0 ? x / r : x * r
 *   3. frequency_penalty, presence_penalty on tokens of the output: x -= f * count, x -= p
 *   4. temperature < 1e-5: the largest x, ties to the lower id. Else x /= temperature, and
 *   5. min_p: p(x) >= min_p * p(best)     (p renormalised after each of 5 to 7)
 *   6. top_k: the k largest, ties to the lower id
 *   7. top_p: the shortest head of (x descending, id ascending) with probability >= top_p
 *   8. draw by inverse CDF in order of ids with u = sampler_uniform(seed, index)
 *
 * logprobs are those of the model: log-softmax of the logits as they came, before 1.
 *
 * The outcome is a function of row, params, counts and index alone: not of the batch, of preemption
 * or of time. No libm function is involved in choosing a token, so not of the C library either.
 * Nothing is sorted: thresholds are found by radix selection on the bits of x, in time linear in V.
 *
 * Probabilities are handled as weights exp((x - max) / temperature) in float32, with one rounding
 * for every operation written down in sampler.c, none fused. Where they are added they are
 * integers, in units of 2^-41 and rounded down, so that a sum is exact and the same in any order: a
 * GPU that adds in another order (cuda/sample.cu) picks the same tokens. A weight below 2^-41
 * counts as none: such a token is never drawn. Shares of a sum (top_p, u) are exact products,
 * rounded down:
 *
 *   top_p   keeps the shortest head whose sum is >= max(1, top_p * sum)
 *   draw    takes the first token, in order of ids, at which the running sum is > u * sum
 *
 * A sampler is scratch memory for one thread; nothing is allocated after sampler_create.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "host/sampling.h"

#ifdef __cplusplus
extern "C" {
#endif

struct sampler; /* opaque */

/* Weights exp((x - max) / temperature) are float32, and fixed-point numbers of this many bits
 * behind the point where they are added: see above. */
enum { SAMPLER_WEIGHT_BITS = 41 };
#define SAMPLER_MIN_WEIGHT 0x1p-41f
/* vLLM's _SAMPLING_EPS: cooler than this is greedy. */
#define GREEDY_TEMPERATURE 1e-5f

/* Logprobs below this (of masked tokens, -inf) are given as this, as JSON knows no infinity. */
#define LOGPROB_MIN (-9999.0f)

struct token_count {
    int32_t token;
    int32_t generated; /* 0: only in the prompt */
};

/* The distinct tokens of one sequence with how often each was generated, for the penalties. */
struct token_counts {
    struct token_count *entries; /* [num_entries], owned */
    int32_t num_entries, max_entries;
    int32_t *slots; /* open hash table of indices into entries, -1 empty; owned */
    uint32_t slot_mask;
};

/* Room for max_entries distinct tokens; adding does not allocate. */
void token_counts_init(struct token_counts *c, int32_t max_entries);
void token_counts_deinit(struct token_counts *c);
void token_counts_add(struct token_counts *c, int32_t token, bool generated);

struct sample_args {
    const float *logits; /* [V]; not changed */
    const struct sampling_params *params;
    const struct token_counts *counts; /* NULL: nothing was seen */
    const struct logit_bias *biases;   /* [num_biases] a token once */
    const uint32_t *mask;              /* [(V + 31) / 32] bits: may be drawn; NULL: all may */
    const int32_t *banned;             /* [num_banned] ids that must not be drawn */
    int32_t num_biases, num_banned;
    int64_t index; /* of the token among the generated ones, from 0 */
};

struct sample {
    int32_t token;
    float logprob; /* of token; when logprobs were asked for */
    int32_t num_top;
    int32_t top_tokens[MAX_LOGPROBS]; /* the most likely, descending, ties to the lower id */
    float top_logprobs[MAX_LOGPROBS];
};

struct sampler *sampler_create(int32_t vocab_size);
void sampler_destroy(struct sampler *s); /* NULL is fine */

/* Draws a token. ERR_INTERNAL when the row holds a NaN, or no finite largest value. */
int sampler_sample(struct sampler *s, const struct sample_args *args, struct sample *out);

/* 0 when sampler_sample could draw from this row, else ERR_INTERNAL. */
int sampler_check(const struct sampler *s, const float *logits);

/* Fills out with `token`, its logprob and the num_top best of the row. Errors as above. */
int sampler_logprobs(struct sampler *s, const float *logits, int32_t token, int32_t num_top,
                     struct sample *out);

/* Does this request change logits by what was seen before, i.e. need token_counts? */
bool sampling_has_penalties(const struct sampling_params *p);

/* In [0, 1), 53 bits, a pure function: splitmix64 (https://prng.di.unimi.it/splitmix64.c) as a
 * counter-based generator, started at a hash of the seed. */
double sampler_uniform(uint64_t seed, int64_t index);
/* One round of splitmix64's output function. */
uint64_t sampler_mix64(uint64_t x);

#ifdef __cplusplus
}
#endif
