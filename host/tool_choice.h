/* tool_choice: what an answer must look like that has to be a call (tool_choice "required", or a
 * function by name). Pure functions, any thread.
 *
 * The prompt of such a request ends in what stands before a call in its template
 * (chat_template_render); the answer then is one JSON object that this schema describes, as a
 * grammar has it (grammar.h), and the end of the text. The parser is told by `opened`
 * (tool_calls.h), and misses neither what stood before the object nor what would follow it.
 */
#pragma once

#include <jansson.h>

#include "host/chat_template.h"
#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The schema of a call of the named tool, or of any of them, in the template's spelling; a new
 * reference. Every call has "name" and "arguments" ("parameters" in Llama's), in that order;
 * references within a tool's parameters are made to point to their new place. A tool without
 * parameters takes none.
 * ERR_INVALID_REQUEST, naming tools[i], for parameters that are no JSON schema of an object, and
 * for a template without tools, a choice that forces no call, and a name that no tool has. */
int tool_choice_schema(const struct chat_template *c, const struct chat_request *request,
                       json_t **out, struct error *error);

#ifdef __cplusplus
}
#endif
