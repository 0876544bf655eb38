#include "line_reader.h"

#include <string.h>

enum { KEEP_BYTES = 16 * 1024 }; /* an idle reader holds no more memory than this */

void line_reader_init(struct line_reader *r, size_t max_line) {
    memset(r, 0, sizeof *r);
    r->max_line = max_line;
}

void line_reader_deinit(struct line_reader *r) {
    buffer_deinit(&r->bytes);
}

void line_reader_feed(struct line_reader *r, const char *data, size_t len) {
    if (r->start > 0) {
        buffer_consume(&r->bytes, r->start);
        r->scanned -= r->start;
        r->start = 0;
        if (r->bytes.len == 0 && r->bytes.cap > KEEP_BYTES)
            buffer_deinit(&r->bytes);
    }
    buffer_append(&r->bytes, data, len);
}

/* Hands out the `size` bytes at start, less a final CR. */
static int take(struct line_reader *r, size_t size, size_t next, const char **line, size_t *len) {
    const char *p = r->bytes.data + r->start;
    if (size > 0 && p[size - 1] == '\r')
        size--;
    if (size > r->max_line)
        return ERR_LINE_TOO_LONG;
    *line = p;
    *len = size;
    r->start = r->scanned = next;
    return 1;
}

int line_reader_next(struct line_reader *r, const char **line, size_t *len) {
    if (r->scanned < r->bytes.len) {
        const char *from = r->bytes.data + r->scanned;
        const char *lf = memchr(from, '\n', r->bytes.len - r->scanned);
        if (lf) {
            size_t at = (size_t)(lf - r->bytes.data);
            return take(r, at - r->start, at + 1, line, len);
        }
        r->scanned = r->bytes.len;
    }
    /* One byte more than the limit may still turn out to be the CR of CR LF. */
    size_t pending = line_reader_pending(r);
    if (pending > r->max_line &&
        (pending > r->max_line + 1 || r->bytes.data[r->bytes.len - 1] != '\r'))
        return ERR_LINE_TOO_LONG;
    return 0;
}

int line_reader_rest(struct line_reader *r, const char **line, size_t *len) {
    size_t pending = line_reader_pending(r);
    if (pending == 0)
        return 0;
    return take(r, pending, r->bytes.len, line, len);
}

size_t line_reader_pending(const struct line_reader *r) {
    return r->bytes.len - r->start;
}
