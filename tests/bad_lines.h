/* bad_lines: request lines that must be refused, with the verdict. Used on the parser alone, split
 * at every byte, and against a running server. */
#pragma once

#include <stddef.h>

struct bad_line {
    const char *bytes; /* without the line's end; may hold NUL and invalid UTF-8 */
    size_t len;
    int code;          /* ERR_* */
    const char *param; /* "" when no field is to blame */
};

extern const struct bad_line bad_lines[];
extern const size_t num_bad_lines;

/* What the verdicts assume of the model. */
enum { BAD_LINES_VOCAB_SIZE = 1536 };
