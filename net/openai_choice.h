/* openai_choice: one answer to one prompt, from the engine's events to chunks of a stream or to its
 * part of a whole object.
 *
 * Pure functions that append to a buffer. With tools, what the model generates is taken apart into
 * content and calls (tool_calls.h).
 */
#pragma once

#include "host/tool_calls.h"
#include "net/openai_answer.h"
#include "net/openai_request.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What is the same for all choices of a call; borrowed. */
struct openai_form {
    struct openai_head head;
    const struct openai_request *request;
    const struct buffer *echoes;  /* [num_prompts] texts to begin answers with, or NULL */
    enum tool_format tool_format; /* TOOL_FORMAT_NONE: without tools */
    uint64_t seed;                /* of the ids of calls */
};

/* Start it zeroed. */
struct openai_choice {
    const struct openai_form *form;
    int32_t index;
    const char *finish_reason; /* once it is done */
    /* Private. */
    bool begun; /* stream: its first chunk was made */
    struct buffer *out;
    struct buffer text, calls, arguments;
    struct openai_logprobs logprobs, prompt_logprobs;
    struct tool_calls parser;
    bool in_call;
};

void openai_choice_init(struct openai_choice *c, const struct openai_form *form, int32_t index);
void openai_choice_deinit(struct openai_choice *c);
/* The prompt that it answers. */
int32_t openai_choice_prompt(const struct openai_choice *c);

/* A stream: appends the chunks of a token, or of the end but for usage and [DONE]. */
void openai_choice_stream(struct openai_choice *c, const struct engine_event *e,
                          struct buffer *out);
/* A whole answer: keeps what a token, or the end, brings; then puts it. first: the first choice of
 * the same prompt, the only one whose logprobs of the prompt are asked for. */
void openai_choice_collect(struct openai_choice *c, const struct engine_event *e);
void openai_choice_put(const struct openai_choice *c, const struct openai_choice *first,
                       struct buffer *out);

#ifdef __cplusplus
}
#endif
