/* openai_tools: the functions that a chat completion offers to the model, and which of them it is
 * to call. */
#pragma once

#include "net/openai_request.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Reads [{"type":"function","function":{"name","description","parameters","strict"}}, ...] into
 * out->tools, which outlive the document. */
int openai_read_tools(struct openai_request *out, json_t *value, struct field_error *error);
/* Reads "none", "auto", "required" or {"type":"function","function":{"name":...}} once the tools
 * have been read; value may be NULL. */
int openai_read_tool_choice(struct openai_request *out, json_t *value, struct field_error *error);
void openai_free_tools(struct openai_request *out);

#ifdef __cplusplus
}
#endif
