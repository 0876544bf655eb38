/* prompt: what a user asks, as the token ids that the engine takes, and texts as tokens and back.
 * Any thread. */
#pragma once

#include <stddef.h>

#include "host/chat_template.h"
#include "host/dispatch.h"
#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    /* Longer bodies and lines go to the worker pool: about a millisecond of tokenising. */
    PROMPT_INLINE_BYTES = 8 * 1024,
};

/* ERR_INVALID_REQUEST naming the field when there is no tokenizer (a dummy model). `error`
 * must not be NULL, here and below. */
int prompt_need_tokenizer(const struct dispatch *d, const char *field, struct error *error);

/* Encodes a prompt as the model asks (bos and the like are added; text that spells a special token
 * becomes that token, so that a prompt can hold a chat template written out by hand) into
 * p->tokens. A prompt of no tokens is ERR_INVALID_REQUEST. */
int prompt_encode_text(const struct dispatch *d, const char *text, size_t len,
                       struct request_params *p, struct error *error);

/* Encodes a conversation through the model's chat template into p->tokens, adds the template's stop
 * strings, and keeps the token that begins a call in the text where there are tools.
 * ERR_INVALID_REQUEST when there is no template, or it refuses the request, or no room is left for
 * its stop strings. */
int prompt_encode_chat(const struct dispatch *d, const struct chat_request *request,
                       struct request_params *p, struct error *error);

/* Appends the tokens of a text (flags: TOKENIZER_*). ERR_INVALID_REQUEST without a tokenizer. */
int prompt_tokenize(const struct dispatch *d, const char *field, const char *text, size_t len,
                    unsigned flags, struct token_list *out, struct error *error);
/* Appends the text of tokens, special ones too. The same, and for an id that has no token. */
int prompt_detokenize(const struct dispatch *d, const char *field, const int32_t *tokens,
                      int32_t num_tokens, struct buffer *out, struct error *error);

/* Once a request of so many bytes was read: gives memory back to the system where its document,
 * which takes many times its text, was large. */
void prompt_trim(size_t len);

#ifdef __cplusplus
}
#endif
