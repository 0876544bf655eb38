/* engine_request: one request inside the engine, from engine_submit to its last event.
 *
 * Created and checked on the caller's thread, then the engine thread's alone. The sequence is the
 * first member: the scheduler hands sequences back, request_of makes them requests again.
 */
#pragma once

#include "host/engine.h"
#include "host/grammar_match.h"
#include "host/sampler.h"
#include "host/sequence.h"
#include "host/stop.h"

struct request {
    struct sequence seq;
    struct request *next; /* in the submission queue or a bucket of the table of handles */
    uint64_t handle;
    void *user;
    struct request_params params; /* tokens have moved to seq */
    int64_t submitted_us, first_token_us, last_token_us;

    /* Since request_prepare. */
    bool prepared;
    struct token_counts counts; /* when the request has penalties */
    struct detok detok;         /* when there is a tokenizer */
    struct stop_matcher stop;
    struct grammar_matcher *matcher;        /* when there is a grammar; owned */
    uint32_t *mask;                         /* of the next token, with the matcher; owned */
    struct token_logprobs *prompt_logprobs; /* [num_prompt] when asked for; owned */
    struct logprob *prompt_top;             /* [num_prompt, params.prompt_logprobs], owned */
};

/* What a request is checked against. */
struct request_limits {
    int32_t vocab_size, max_model_len;
    bool has_text; /* there is a tokenizer, as grammars need one */
};

/* ERR_INVALID_REQUEST or ERR_CONTEXT_LENGTH with a message. */
int request_params_check(const struct request_params *p, const struct request_limits *limits,
                         struct error *error);

/* Takes over what p owns; p has been checked. */
struct request *request_create(struct request_params *p, int32_t max_model_len);
void request_destroy(struct request *r);

/* Allocates what running takes. tokenizer may be NULL; scratch is overwritten. */
void request_prepare(struct request *r, int32_t vocab_size, const struct tokenizer *tokenizer,
                     struct buffer *scratch);

/* Stores the logprobs of prompt position `position`. Does not allocate. */
void request_put_prompt_logprobs(struct request *r, int32_t position, const struct sample *sample);

static inline struct request *request_of(struct sequence *seq) {
    return (struct request *)(void *)seq;
}
