/* line_reader: cuts a stream of bytes into lines, however the bytes arrive.
 *
 * Owns the bytes that have come but do not end in a newline yet, never more than max_line + 1 of
 * them besides the last piece fed. Lines end with LF or CR LF; neither is part of the line. The
 * same bytes give the same lines wherever they are split. Caller's memory, one thread at a time; it
 * knows no socket and no JSON.
 *
 *     line_reader_feed(&r, data, len);
 *     while ((rc = line_reader_next(&r, &line, &line_len)) == 1)
 *         handle(line, line_len);
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "host/buffer.h"
#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct line_reader {
    struct buffer bytes; /* everything from the current line on, after `start` handed-out bytes */
    size_t start;        /* first byte of the current line */
    size_t scanned;      /* bytes before this one hold no LF */
    size_t max_line;     /* most bytes of a line, its end not counted */
};

void line_reader_init(struct line_reader *r, size_t max_line);
void line_reader_deinit(struct line_reader *r);

/* Appends received bytes. Invalidates lines handed out before. */
void line_reader_feed(struct line_reader *r, const char *data, size_t len);

/* 1 and the next line (borrowed until the next feed, not NUL-terminated); 0 when more bytes are
 * needed; ERR_LINE_TOO_LONG, now and from then on, when a line is longer than max_line. */
int line_reader_next(struct line_reader *r, const char **line, size_t *len);

/* At the end of the input, after line_reader_next has answered 0: 1 and the unfinished last line,
 * or 0 when there is none. */
int line_reader_rest(struct line_reader *r, const char **line, size_t *len);

/* Bytes held that belong to lines not handed out yet. */
size_t line_reader_pending(const struct line_reader *r);

#ifdef __cplusplus
}
#endif
