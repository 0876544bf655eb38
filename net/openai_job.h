/* openai_job: all the work on the body of a request that needs no connection: parse it, encode its
 * prompts and check them, answer tokenize and detokenize.
 *
 * Pure but for the immutable tokenizer and template, so it runs on the loop for short bodies and in
 * libuv's worker pool for long ones and those with schemas (openai_job_is_short).
 */
#pragma once

#include "host/buffer.h"
#include "host/dispatch.h"
#include "net/openai_request.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Logprobs of prompts in one answer, about 40 bytes each: those of 200,000 tokens with 20
 * alternatives. */
enum { OPENAI_MAX_ECHOED_LOGPROBS = 4 * 1024 * 1024 };

/* Fill the first group, zero the rest. */
struct openai_job {
    enum openai_kind kind;
    struct buffer body;                   /* owned */
    const struct dispatch *dispatch;      /* borrowed */
    const struct openai_context *context; /* borrowed */
    int32_t max_model_len;

    struct openai_request request; /* every prompt has tokens; texts are gone */
    struct buffer *echoes;         /* [num_prompts] texts to begin answers with, or NULL; owned */
    struct field_error error;      /* code 0: none */
    struct buffer answer;          /* of tokenize and detokenize */
};

/* Is it done within about a millisecond, for sure? */
bool openai_job_is_short(const struct openai_job *job);
void openai_job_run(struct openai_job *job);
void openai_job_deinit(struct openai_job *job);

#ifdef __cplusplus
}
#endif
