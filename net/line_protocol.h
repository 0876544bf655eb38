/* line_protocol: one line of the line protocol as a request (docs/PROTOCOL.md).
 *
 * A line that starts with '{' is a JSON request; any other is a prompt. Parsing is a pure function
 * of the bytes and the context; it never fails hard, so any bytes from a network may be given.
 * Answers are written by line_answer.h. It knows no socket, no engine and no model weights.
 *
 * Parsing takes a bounded stack (JSON deeper than FIELDS_MAX_DEPTH is refused before it is parsed)
 * and memory in proportion to the line.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/chat_template.h"
#include "host/dispatch.h"
#include "host/error.h"
#include "net/fields.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LINE_MAX_ID_BYTES = 256 }; /* of an id that is a string */

enum line_kind {
    LINE_PLAIN,      /* not JSON: `text` is a prompt, the answer is text */
    LINE_COMPLETION, /* no "op": prompt, tokens or messages */
    LINE_CANCEL,
    LINE_PING,
    LINE_STATS,
    LINE_MODEL,
    LINE_TOKENIZE,   /* `text` */
    LINE_DETOKENIZE, /* params.tokens */
    LINE_AUTH,       /* `text`: a key */
};

/* What parsing needs to know of the server; borrowed, may be shared between threads. */
struct line_context {
    const struct request_params *defaults; /* values of fields that a request leaves out */
    int32_t vocab_size;                    /* token ids are below it */
};

/* A parsed line. Start it zeroed; line_request_deinit in any state. */
struct line_request {
    enum line_kind kind;
    char *id;    /* owned: the id as a JSON literal ("7", "\"a\""), or NULL when none was given */
    bool stream; /* false: the whole text in the done line */
    const char *prompt_field; /* "prompt", "tokens" or "messages", as given; static */
    const char *text; /* prompt or text, UTF-8 that may hold NUL; borrowed from doc or the line */
    size_t text_len;
    struct chat_message *messages; /* owned array, strings borrowed from doc; NULL when not given */
    size_t num_messages;
    struct request_params params; /* tokens are set when the line gave token ids */
    json_t *doc;                  /* owned; NULL for a plain line */
};

void line_request_deinit(struct line_request *r);
/* Frees the parsed document early: text and messages are gone, the rest stays. */
void line_request_drop_text(struct line_request *r);

/* Parses one line (without its line end). The line must stay as it is while *out is used. Returns
 * 0, or error->code with *error filled; then out->id is still set when it could be read. */
int line_parse(const char *line, size_t len, const struct line_context *context,
               struct line_request *out, struct field_error *error);

/* "ping" of LINE_PING; "" for lines without "op". */
const char *line_kind_name(enum line_kind kind);

#ifdef __cplusplus
}
#endif
