/* estimate: what a GPU spends on a model besides weights and KV cache, before it is loaded. */
#pragma once

#include <stdint.h>

#include "host/model_config.h"

#ifdef __cplusplus
extern "C" {
#endif

struct estimate_sizes {
    int32_t max_tokens;    /* T of a step */
    int32_t max_logits;    /* R of a step */
    int32_t max_model_len; /* longest context */
    int32_t world_size;    /* ranks that heads and dense FFN columns are spread over */
    int32_t tp_size;       /* ranks that an expert's columns are spread over */
};

/* Activations and scratch of the rank that holds most, in bytes:
 *   T (14 H + 2 (2 heads + 2 KV heads) D + K (4 H + 2 I)) + 4 max_model_len D + R (6 H + 4 V)
 * with the rank's heads and columns I: residual, x, qkv, attention output and partials of a token,
 * pair outputs and expert activations of its K experts; rotation tables; rows of logits. */
int64_t estimate_activation_bytes(const struct model_config *c, const struct estimate_sizes *s);

#ifdef __cplusplus
}
#endif
