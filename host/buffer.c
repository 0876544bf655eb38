#include "buffer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "mem.h"

void buffer_deinit(struct buffer *b) {
    free(b->data);
    memset(b, 0, sizeof *b);
}

void buffer_clear(struct buffer *b) {
    b->len = 0;
}

void buffer_reserve(struct buffer *b, size_t extra) {
    if (b->cap - b->len >= extra)
        return;
    size_t cap = b->cap ? b->cap : 256;
    while (cap - b->len < extra)
        cap *= 2;
    b->data = xrealloc(b->data, cap);
    b->cap = cap;
}

void buffer_append(struct buffer *b, const void *data, size_t len) {
    if (len == 0)
        return;
    buffer_reserve(b, len);
    memcpy(b->data + b->len, data, len);
    b->len += len;
}

void buffer_puts(struct buffer *b, const char *s) {
    buffer_append(b, s, strlen(s));
}

void buffer_putc(struct buffer *b, char c) {
    buffer_append(b, &c, 1);
}

void buffer_printf(struct buffer *b, const char *fmt, ...) {
    va_list ap;
    buffer_reserve(b, 128);
    va_start(ap, fmt);
    int n = vsnprintf(b->data + b->len, b->cap - b->len, fmt, ap);
    va_end(ap);
    CHECK(n >= 0, "format '%s'", fmt);
    if ((size_t)n >= b->cap - b->len) {
        buffer_reserve(b, (size_t)n + 1);
        va_start(ap, fmt);
        vsnprintf(b->data + b->len, b->cap - b->len, fmt, ap);
        va_end(ap);
    }
    b->len += (size_t)n;
}

void buffer_consume(struct buffer *b, size_t n) {
    CHECK(n <= b->len, "consuming %zu of %zu bytes", n, b->len);
    memmove(b->data, b->data + n, b->len - n);
    b->len -= n;
}

void buffer_put_json_string(struct buffer *b, const char *s, size_t len) {
    static const char hex[] = "0123456789abcdef";
    buffer_reserve(b, len + 2);
    buffer_putc(b, '"');
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];
        switch (c) {
        case '"':
            buffer_append(b, "\\\"", 2);
            break;
        case '\\':
            buffer_append(b, "\\\\", 2);
            break;
        case '\n':
            buffer_append(b, "\\n", 2);
            break;
        case '\t':
            buffer_append(b, "\\t", 2);
            break;
        case '\r':
            buffer_append(b, "\\r", 2);
            break;
        default:
            if (c < 0x20) {
                char esc[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
                buffer_append(b, esc, 6);
            } else {
                buffer_putc(b, (char)c);
            }
        }
    }
    buffer_putc(b, '"');
}
