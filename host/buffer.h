/* buffer: a growable run of bytes. Caller's memory, one thread at a time.
 *
 * Used for JSON output, event queues and text. Capacity is kept by buffer_clear, so a buffer that
 * has grown to its working size no longer allocates.
 */
#pragma once

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct buffer {
    char *data; /* owned; NULL until the first byte. Not NUL-terminated unless you add one. */
    size_t len;
    size_t cap;
};

void buffer_deinit(struct buffer *b);
void buffer_clear(struct buffer *b);                 /* len = 0, capacity stays */
void buffer_reserve(struct buffer *b, size_t extra); /* room for len + extra bytes */
void buffer_append(struct buffer *b, const void *data, size_t len);
void buffer_puts(struct buffer *b, const char *s);
void buffer_putc(struct buffer *b, char c);
void buffer_printf(struct buffer *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buffer_consume(struct buffer *b, size_t n); /* drops the first n bytes */

/* Appends s as a JSON string literal, quotes included. s must be valid UTF-8; control characters,
 * quote and backslash are escaped, everything else is copied. */
void buffer_put_json_string(struct buffer *b, const char *s, size_t len);

#ifdef __cplusplus
}
#endif
