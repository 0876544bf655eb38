/* sample_job: what is wanted of the rows of logits of a step, and what came of it. Made by the
 * engine, done by the host's sampler (sampler.h) or, where the logits lie on a GPU, by its backend.
 */
#pragma once

#include "host/sampler.h"

enum sample_kind {
    SAMPLE_DRAW,  /* a token, with its logprobs when args.params asks for them */
    SAMPLE_SCORE, /* the logprobs of `token`, which is there already */
    SAMPLE_CHECK  /* only whether the row is usable */
};

struct sample_job {
    enum sample_kind kind;
    int32_t row;             /* of the step's logits */
    struct sample_args args; /* DRAW; args.logits is NULL */
    int32_t token, num_top;  /* SCORE */
};

struct sample_outcome {
    int rc; /* 0, or ERR_INTERNAL: the row holds a NaN, or no finite largest value */
    struct sample sample;
};
