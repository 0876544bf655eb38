/* openai_answer: answers in the shapes of the OpenAI API: whole objects, and the chunks of a
 * stream.
 *
 * Pure functions that append to a buffer. What they write is valid UTF-8 and valid JSON whatever
 * they are given. A chunk comes as an event of Server-Sent Events, "data: {...}" and an empty line:
 * JSON has no line ends outside of strings, and in them they are escaped.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "host/buffer.h"
#include "host/engine.h"
#include "host/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What all objects of one answer begin with. */
struct openai_head {
    bool chat;
    char id[96];                       /* of printable ASCII without quotes */
    int64_t created;                   /* seconds since 1970 */
    const char *model;                 /* borrowed */
    const struct tokenizer *tokenizer; /* borrowed; NULL: tokens are shown by their ids */
};

struct openai_usage {
    int64_t prompt_tokens, completion_tokens, cached_tokens;
};

/* Logprobs of the tokens of a choice, or of one chunk of it. Start it zeroed. */
struct openai_logprobs {
    struct buffer tokens; /* chat: whole entries */
    struct buffer values, top, offsets;
    int64_t offset; /* in characters, of the next token (below 0: what the text has not of it is at
                     * its front); kept by openai_logprobs_clear */
    bool of_prompt; /* special tokens take room in the text, as they do in no answer */
};

void openai_logprobs_deinit(struct openai_logprobs *l);
void openai_logprobs_clear(struct openai_logprobs *l);
/* A token with its logprobs; NULL: the first one of a prompt, which has none. */
void openai_logprobs_add(struct openai_logprobs *l, const struct openai_head *head, int32_t token,
                         const struct token_logprobs *logprobs);

/* Appends b's tokens to a's. */
void openai_logprobs_join(struct openai_logprobs *a, const struct openai_logprobs *b);
/* Characters of a text and of these tokens, as offsets count them. */
int64_t openai_text_characters(const struct buffer *text);
int64_t openai_num_characters(const struct openai_head *head, const int32_t *tokens, int32_t n);

/* {"id":...,"object":...,"created":...,"model":...,"choices":[ */
void openai_begin(struct buffer *out, const struct openai_head *head);
/* One choice of a whole answer. calls: a chat's calls of tools, comma-separated; empty for none.
 * logprobs may be NULL. */
void openai_put_choice(struct buffer *out, const struct openai_head *head, int32_t index,
                       const struct buffer *text, const struct buffer *calls,
                       const struct openai_logprobs *logprobs, const char *finish_reason);
/* ],"usage":{...}} */
void openai_end(struct buffer *out, const struct openai_usage *usage);

/* Chunks. With `usage_later` they say "usage":null, as there is a chunk with it at the end. */
void openai_chunk_role(struct buffer *out, const struct openai_head *head, int32_t index,
                       bool usage_later);
void openai_chunk_text(struct buffer *out, const struct openai_head *head, int32_t index,
                       const char *text, size_t len, const struct openai_logprobs *logprobs,
                       bool usage_later);
/* A call of a tool, the `call`th of its choice, begins; then pieces of its arguments. */
void openai_chunk_call(struct buffer *out, const struct openai_head *head, int32_t index,
                       int32_t call, const char *id, const char *name, bool usage_later);
void openai_chunk_arguments(struct buffer *out, const struct openai_head *head, int32_t index,
                            int32_t call, const char *text, size_t len, bool usage_later);
void openai_chunk_end(struct buffer *out, const struct openai_head *head, int32_t index,
                      const char *finish_reason, bool usage_later);
void openai_chunk_usage(struct buffer *out, const struct openai_head *head,
                        const struct openai_usage *usage);
/* data: {"error":...}: what `envelope` holds. */
void openai_chunk_error(struct buffer *out, const struct buffer *envelope);
/* data: [DONE] */
void openai_chunk_done(struct buffer *out);

#ifdef __cplusplus
}
#endif
