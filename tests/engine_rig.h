/* engine_rig: an engine with a fake model (fake_model.h), and clients that collect their events.
 *
 * Every token must be the pure function of the context, whatever else runs, is cancelled or
 * preempted. One thread drives a rig: make clients, change their params, submit, run.
 */
#pragma once

#include <stdatomic.h>

#include "host/buffer.h"
#include "host/engine_model.h"
#include "tests/fake_model.h"

enum {
    RIG_VOCAB = 211,
    RIG_TEXT_VOCAB = 1536, /* that of the demo tokenizer */
    RIG_MAX_LEN = 256,
    RIG_MAX_CLIENTS = 256,
};

/* What a request is given, and what came of it. */
struct client {
    struct request_params params; /* as submitted, for comparison; owns nothing */
    int32_t prompt[RIG_MAX_LEN];
    int32_t num_prompt;
    uint64_t handle;
    int32_t tokens[RIG_MAX_LEN];
    struct logprob top[RIG_MAX_LEN][MAX_LOGPROBS];
    float logprobs[RIG_MAX_LEN];
    int32_t num_tokens, num_ends;
    struct buffer text;
    struct engine_event done; /* the last event; pointers are void after the drain */
    struct token_logprobs prompt_logprobs[RIG_MAX_LEN];
    struct logprob prompt_top[RIG_MAX_LEN][MAX_LOGPROBS];
    int32_t error_code;
};

struct rig {
    struct fake_model model;
    struct engine *engine;
    struct client *clients; /* [RIG_MAX_CLIENTS] */
    int32_t num_clients, num_ended;
    atomic_int wakes;
};

/* 8 sequences, 64 tokens a step, a queue for all clients. */
void rig_options(struct engine_options *o);
void rig_open(struct rig *r, int32_t num_blocks);
/* With a model that can be made ready again after a failed step. */
void rig_open_recovering(struct rig *r, int32_t num_blocks);
/* eos: an id that ends answers, -1 for none; tokenizer: owned by the engine, may be NULL. */
void rig_open_with(struct rig *r, const struct engine_options *o, int32_t vocab_size,
                   int32_t num_blocks, int32_t eos, struct tokenizer *tokenizer);
/* Stops the engine; a batch that was wrong in itself fails the test. */
void rig_close(struct rig *r);

/* A greedy client with a prompt that counts up from base; params may be changed before it is
 * submitted. */
struct client *rig_client(struct rig *r, int32_t base, int32_t num_prompt, int32_t max_tokens);
int rig_submit(struct rig *r, struct client *c);
/* Hands out the events that are there. */
void rig_drain(struct rig *r);
/* Drains until all clients have ended. */
void rig_run(struct rig *r);

/* Every token is what the model says to the context before it. */
void rig_check_greedy(const struct client *c, int32_t vocab_size);
/* Nothing runs or waits, only the prefix cache holds blocks, and the engine is healthy. */
void rig_check_idle(struct rig *r);
void rig_sleep_ms(int32_t ms);
