/* sampling: how the next token is picked from a row of logits. Plain data of one request. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { MAX_LOGPROBS = 20, MAX_LOGIT_BIASES = 300 };
#define MAX_LOGIT_BIAS 100.0f

/* Added to a token's logit. */
struct logit_bias {
    int32_t token;
    float bias; /* [-MAX_LOGIT_BIAS, MAX_LOGIT_BIAS] */
};

struct sampling_params {
    float temperature;        /* >= 0; 0: greedy, the most likely token (ties: the lower id) */
    int32_t top_k;            /* keep the k most likely; 0 or -1: all */
    float top_p;              /* (0, 1]: keep the smallest set with this much probability */
    float min_p;              /* [0, 1]: drop tokens below min_p x the best one's probability */
    float repetition_penalty; /* > 0: divides positive, multiplies negative logits of seen tokens */
    float presence_penalty;   /* [-2, 2]: subtracted once from tokens generated before */
    float frequency_penalty;  /* [-2, 2]: subtracted for every time a token was generated before */
    uint64_t seed;            /* output is a function of the request and this number */
    int32_t logprobs;         /* -1: none; 0..20: logprob of the token and of the n best */
};
