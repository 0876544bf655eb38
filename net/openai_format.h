/* openai_format: what an answer is held to: response_format, logit_bias, and calls that must come.
 */
#pragma once

#include "net/openai_request.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Reads {"type":"text"|"json_object"|"json_schema","json_schema":{"name","schema","strict"}} into
 * out->params.grammar. */
int openai_read_response_format(struct openai_request *out, json_t *value,
                                struct field_error *error);
/* Reads {"TOKEN ID": bias, ...} into out->params. */
int openai_read_logit_bias(struct openai_request *out, json_t *value, int32_t vocab_size,
                           struct field_error *error);
/* Holds a chat with tool_choice "required" or a function's name to a call in this template's
 * spelling. */
int openai_force_call(struct openai_request *out, const struct chat_template *c,
                      const struct chat_request *chat, struct error *error);

#ifdef __cplusplus
}
#endif
