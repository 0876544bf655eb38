/* invariance: a greedy and a seeded request that must give the same bytes whatever an engine does
 * beside and around them, on any backend.
 */
#pragma once

#include "tests/engine_fixture.h"

enum { INVARIANCE_MAX_LENGTH = 48 };

/* The engines that are compared, and the requests that keep the pair company. */
struct invariance {
    void (*options)(struct engine_options *o); /* what they have in common */
    int32_t company;                           /* requests beside the pair, <= 32 */
    int32_t length;                            /* tokens of the pair, <= INVARIANCE_MAX_LENGTH */
    int32_t tokens[2][INVARIANCE_MAX_LENGTH];  /* what the pair must give */
};

/* Runs the pair, each request alone, and keeps its tokens. */
bool invariance_open(struct invariance *v);
/* The pair on an engine with other options, alone and among others. */
void invariance_check(const struct invariance *v, const struct engine_options *o, const char *what);
/* The pair in chunks of the prefill of 1, 7 and 64 tokens. */
void invariance_check_chunks(const struct invariance *v);
/* The pair again, with its prompt in the prefix cache. */
void invariance_check_prefix_hit(const struct invariance *v);
/* The pair first and last in a cache that is too small for all. */
void invariance_check_preemption(const struct invariance *v);
