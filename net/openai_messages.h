/* openai_messages: the conversation of a chat completion.
 *
 * A message has a role and a content: a string, or an array of parts of type "text", which are put
 * together. Other parts (images, audio) are refused.
 */
#pragma once

#include "net/openai_request.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Reads the array into out->messages. */
int openai_read_messages(struct openai_request *out, json_t *value, struct field_error *error);

#ifdef __cplusplus
}
#endif
