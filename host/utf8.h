/* utf8: decoding, validation and lossy repair of UTF-8. Pure functions, any thread.
 *
 * Ill-formed input is repaired as the Unicode standard recommends (and as Rust's from_utf8_lossy
 * and Python's errors="replace" do): each maximal subpart, the longest prefix of bytes that could
 * have begun a character, becomes one U+FFFD. Surrogates and overlong forms are ill-formed.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/buffer.h"

#ifdef __cplusplus
extern "C" {
#endif

#define UTF8_INVALID    UINT32_MAX       /* a maximal subpart of an ill-formed sequence */
#define UTF8_INCOMPLETE (UINT32_MAX - 1) /* a proper prefix of a character, cut by the end */

/* Reads what stands at s (len >= 1) and returns how many bytes it takes: a character of 1 to 4
 * bytes, with its scalar value in *cp; 1 to 3 bytes that become one U+FFFD (UTF8_INVALID); or all
 * the remaining 1 to 3 bytes when more of them could still complete a character (UTF8_INCOMPLETE).
 */
size_t utf8_next(const char *s, size_t len, uint32_t *cp);

/* Bytes of the longest prefix of s that is valid; equals len when all of it is. */
size_t utf8_valid_prefix(const char *s, size_t len);

/* Appends s with each ill-formed part replaced by U+FFFD. */
void utf8_append_lossy(struct buffer *out, const char *s, size_t len);

/* Writes the character cp (a scalar value) and returns its length. */
size_t utf8_put(char out[4], uint32_t cp);

/* Has the character the Unicode property White_Space? */
bool utf8_is_space(uint32_t cp);

/* Drops white space from both ends (ill-formed bytes are none), as Python's str.strip does
 * (White_Space and the separators U+001C to U+001F). */
void utf8_strip(const char **s, size_t *len);

#ifdef __cplusplus
}
#endif
