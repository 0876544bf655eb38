/* answers: several greedy requests at once on one connection and what came back, for tests of
 * servers that are disturbed meanwhile: whatever was sent must be a beginning of what is right. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "tests/net_client.h"

enum { ANSWERS = 4, ANSWER_TOKENS = 160 };

struct answers {
    int32_t max_tokens; /* of each request */
    int32_t tokens[ANSWERS][ANSWER_TOKENS];
    int32_t count[ANSWERS]; /* of token lines */
    bool done[ANSWERS], error[ANSWERS];
    char message[512]; /* of the last error */
};

/* Sends the requests. max_tokens at most ANSWER_TOKENS. */
void answers_ask(struct net_client *c, struct answers *a, int32_t max_tokens);
/* Reads until there are `tokens` tokens in all, every request has ended, or the connection has. */
void answers_read(struct net_client *c, struct answers *a, int32_t tokens);
/* Reads until every request has ended, or the connection has. */
void answers_finish(struct net_client *c, struct answers *a);

/* Fails, naming `what`, unless tokens are a beginning of those in want, all of them where a request
 * was done. */
void answers_check(const struct answers *got, const struct answers *want, const char *what);
/* Fails unless every request was done or got an error. */
void answers_check_ended(const struct answers *got, const char *what);
/* How many requests were done. */
int32_t answers_done(const struct answers *a);

/* In [0, n), for the moment of a disturbance: anew in each run, or as OPS_TEST_SEED says. */
int32_t answers_random(int32_t n);
