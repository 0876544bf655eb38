/* json_text: JSON as text, byte by byte. Pure functions, any thread, no memory of their own.
 *
 * For what a tree of values does not do: JSON that arrives in pieces (tool_calls.c), and JSON that
 * must be spelled as the authors of a chat template spelled it (chat_tools.c), with every key where
 * it was and every integer whole. Nesting is bounded by JSON_TEXT_MAX_DEPTH.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/buffer.h"
#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    JSON_TEXT_MAX_DEPTH = 64,
    JSON_TEXT_MAX_GROWTH = 16, /* by indentation, beside 4 KiB */
};

/* What a byte turned out to be. */
enum json_step {
    JSON_STEP_ERROR, /* it cannot stand here; the scanner is as it was */
    JSON_STEP_SPACE, /* between tokens */
    JSON_STEP_OPEN,  /* { or [ */
    JSON_STEP_CLOSE, /* } or ] */
    JSON_STEP_COLON,
    JSON_STEP_COMMA,
    JSON_STEP_STRING_BEGIN, /* the quotes, and what is between them, escapes as they stand */
    JSON_STEP_STRING,
    JSON_STEP_STRING_END,
    JSON_STEP_SCALAR_BEGIN, /* a number, true, false or null */
    JSON_STEP_SCALAR,
};

/* A JSON value that is being read. Start it zeroed. */
struct json_scan {
    uint64_t arrays; /* bit d: the container at depth d + 1 is an array */
    int32_t depth;   /* containers that are open */
    uint8_t state, number;
    bool key;            /* the string that is being read, or was read last, is a key */
    bool ended;          /* the value is complete; only space may follow */
    uint8_t hex;         /* digits of a \u escape that are still to come */
    const char *literal; /* the rest of true, false or null */
};

/* Takes the next byte. */
enum json_step json_scan_byte(struct json_scan *s, char c);
/* Could the text end here? */
bool json_scan_complete(const struct json_scan *s);

/* Appends the text that stands between the quotes of a JSON string (as the scanner accepts it).
 * Halves of surrogate pairs become U+FFFD. */
void json_text_decode(struct buffer *out, const char *s, size_t len);

/* Appends s as Python's json.dumps(s, ensure_ascii=False) spells it. */
void json_text_put_string(struct buffer *out, const char *s, size_t len);

/* Appends a finite number as Python's repr has it: the fewest digits that read back as the same,
 * and without an exponent from 1e-4 up to 1e16. */
void json_text_put_real(struct buffer *out, double d);

/* Appends one JSON value as Python spells it once it has parsed it: json.dumps(value,
 * ensure_ascii=False, indent=indent), without line breaks for an indent of 0. Keys keep their
 * order; of a key that occurs twice, both stay. Returns 0, or ERR_INVALID_REQUEST, with `where` in
 * its message, for what is no JSON value, and for what indentation would make more than
 * JSON_TEXT_MAX_GROWTH times as long: a short list deep inside could be a prompt of any length. */
int json_text_format(struct buffer *out, const char *s, size_t len, int indent, const char *where,
                     struct error *error);

#ifdef __cplusplus
}
#endif
