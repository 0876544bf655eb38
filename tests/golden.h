/* golden: the small models of tests/data/golden and what the reference implementations say of them.
 *
 * A fixture loads one model into the engine's model layer on a given backend and number of ranks,
 * and runs token sequences through it, prompt chunks and single tokens alike, as the scheduler
 * would.
 */
#pragma once

#include "host/json.h"
#include "host/model.h"

struct golden {
    char dir[256];
    struct model_config config;
    struct weights weights;
    struct model *model;
    void (*fetch)(void *to, const void *from, size_t bytes);
    json_t *doc;                /* golden.json */
    struct safetensors *logits; /* golden.safetensors */
};

struct golden_options {
    const struct ops *ops;
    int32_t ranks, threads, expert_parallel_size;
    const int32_t *memory; /* [ranks] proportions of 2.5 times the model; NULL: equal */
    enum dtype kv_dtype;   /* DTYPE_NONE: the backend's choice */
    bool fp8_activations;
    struct group *group; /* borrowed; the ranks are those of this process; NULL: it is alone */

    /* GPUs only. */
    const int32_t *gpus;                     /* [ranks] their numbers */
    const char *allreduce, *allreduce_dtype; /* NULL: "auto" */
    int64_t comm_timeout_us;                 /* 0: the model's default */
    bool batch_invariant, enforce_eager, embedding_on_host;
    void (*fetch)(void *to, const void *from, size_t bytes); /* logits to the host; NULL: memcpy */
};

/* Names of the folders, sorted; free each and the array. */
char **golden_names(int32_t *count);

/* False, with a failure of the test, when the model cannot be opened or created. */
bool golden_open(struct golden *g, const char *name, const struct golden_options *o);
/* The same without a failure: 0 or what model_create says. */
int golden_try(struct golden *g, const char *name, const struct golden_options *o,
               struct error *error);
void golden_close(struct golden *g);

int32_t golden_num_prompts(const struct golden *g);
/* Ids of "tokens" or "greedy" of prompt i into out[max]; returns how many. */
int32_t golden_ids(const struct golden *g, int32_t prompt, const char *key, int32_t *out,
                   int32_t max);
/* [T, V] reference logits of prompt i. */
const float *golden_logits(const struct golden *g, int32_t prompt);

/* Runs tokens [first, first + count) of one sequence (context = tokens[0..first) already run) and
 * copies the logits of every new row to out [count, V]. The sequence owns KV blocks
 * block0, block0 + 1, ... */
void golden_run(struct golden *g, const int32_t *tokens, int32_t first, int32_t count,
                int32_t block0, float *out);

/* The id of the largest of n values, the lower one on ties. */
int32_t golden_argmax(const float *x, int32_t n);

/* The standard deviation of n values. */
double golden_std(const float *x, int64_t n);

/* The share of rows of [rows, V] whose root mean square error is above `bound` times the standard
 * deviation of all of b. */
double golden_rows_off(const float *a, const float *b, int32_t rows, int32_t V, double bound);

/* Largest |a - b| over the standard deviation of b. */
double golden_relative_error(const float *a, const float *b, int64_t n);
