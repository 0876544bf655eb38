/* ini: files of `name = value` lines, for --config. Reads, and quotes what is to be read.
 *
 *   ; a comment, as is a line that begins with #
 *   [section]                 groups lines for people; names are the same in all of them
 *   name = value              ; a comment behind a blank. `:` stands for `=` too
 *   name = "a \"b\"; \x01"    \" \\ \n \r \t \xHH within quotes, in which a comment is no comment
 *
 * Of any line length, LF or CR LF, with or without a byte order mark. (Debian's inih reads lines of
 * 200 bytes and knows no quotes: a path or a key may be longer, and what `config --print` writes
 * has to be read again whatever it is.)
 */
#pragma once

#include <stdint.h>

#include "host/buffer.h"
#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Called for every value, which lives as long as the call. Anything but 0 ends the reading. */
typedef int (*ini_fn)(void *ctx, const char *name, const char *value, int32_t line,
                      struct error *error);

/* ERR_CONFIG when the file cannot be read or a line is none of the above, with "PATH:LINE: " before
 * what is wrong; what fn says gets the same. Values are never quoted in messages. */
int ini_read(const char *path, ini_fn fn, void *ctx, struct error *error);

/* Appends the value so that ini_read reads it again, in quotes where that takes some. */
void ini_put_value(struct buffer *out, const char *value);

#ifdef __cplusplus
}
#endif
