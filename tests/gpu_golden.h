/* gpu_golden: a golden model on one or more GPUs, beside `ref`, for tests of whole steps.
 *
 * What is compared. Activations are bf16 between ops (2^-9 a rounding, some ten roundings a layer,
 * through 2 to 4 layers of random weights), and so are keys and values. The root mean square error
 * of a row of logits is at most a bound, in standard deviations of the reference's, and no element
 * is off by more than four times that; so two logits that differ by more than eight times that are
 * not swapped. GOLDEN_BOUND holds for one GPU, and for several that add in float32.
 *
 * Ties of the router. A rounding may turn a choice of experts whose logits nearly tie, which
 * changes that row, and the rows behind it that see its keys and values, for good. `ref` runs along
 * with a router that notes such ties: a row that is off must have one in it or before it, and four
 * rows of five must be within the bound all the same.
 */
#pragma once

#include "tests/golden.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { GOLDEN_PROMPT = 64, GOLDEN_GREEDY = 32, GOLDEN_VOCAB = 1024 };
#define GOLDEN_BOUND 0.05

struct golden_pair {
    struct golden gpu, ref;
    double bound;
    int32_t num_rows, num_right; /* rows that were compared, and those within the bound */
};

/* Copies logits from the device, after all that it does; for golden_options.fetch. */
void golden_fetch(void *to, const void *from, size_t bytes);

/* The options' ranks (0: one) on their gpus (NULL: rank r on GPU r % number of GPUs). One pair may
 * be open at a time. */
bool golden_pair_open(struct golden_pair *p, const char *name,
                      const struct golden_options *options);
void golden_pair_close(struct golden_pair *p);

/* The same tokens on both; got and want [count, V]. */
void golden_pair_run(struct golden_pair *p, const int32_t *tokens, int32_t first, int32_t count,
                     float *got, float *want);

/* Prompt `prompt` in chunks, against the logits of the published implementation. */
void golden_pair_check_prompt(struct golden_pair *p, int32_t prompt, int32_t chunk);
/* The first num_tokens of the greedy continuation of prompt 0, in decode steps on the tokens that
 * `ref` chooses. */
void golden_pair_check_greedy(struct golden_pair *p, int32_t num_tokens);
/* Of all rows so far, enough are within the bound. */
void golden_pair_check_counts(const struct golden_pair *p);

/* The logits [n, V] of prompt 2, in chunks, with these options; to be freed. NULL after a failure.
 */
float *golden_gpu_logits(const char *name, const struct golden_options *options, int32_t chunk,
                         int64_t *num);
/* Two ways of running a model must give the same bits. */
void golden_check_same(const char *name, const char *what, const struct golden_options *a,
                       int32_t chunk_a, const struct golden_options *b, int32_t chunk_b);

#ifdef __cplusplus
}
#endif
