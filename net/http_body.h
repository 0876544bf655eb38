/* http_body: the body of a request, by its Content-Length or in chunks, with its limit.
 *
 * Chunks are taken apart here rather than by a library, because libraries forgive: a size is 1 to 8
 * hexadecimal digits, lines end in CR LF, chunk extensions and trailers are bounded and dropped.
 * The first byte that breaks a rule decides, however the bytes arrive. No I/O.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/buffer.h"
#include "net/http_head.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { HTTP_MAX_CHUNK_EXTRA_BYTES = 16 * 1024 }; /* extensions and trailers, together */

/* Fields but `bytes` and `problem` are private. */
struct http_body {
    struct buffer bytes; /* owned: the body so far; empty when it is dropped */
    struct http_problem problem;
    size_t max_bytes;
    bool drop; /* the body is not wanted: it is counted only */
    int64_t received;
    int64_t left; /* of the body or the chunk */
    int32_t state, digits;
    size_t extra_bytes;
};

enum http_body_result { HTTP_BODY_MORE, HTTP_BODY_COMPLETE, HTTP_BODY_REFUSED };

/* For the body that the head announces; it may be complete at once. A Content-Length above
 * max_bytes is refused with 413 before anything is read. */
enum http_body_result http_body_begin(struct http_body *b, const struct http_head *head,
                                      size_t max_bytes);
void http_body_deinit(struct http_body *b);
/* Takes bytes up to the body's end or the first that is refused, and sets *used to how many. */
enum http_body_result http_body_feed(struct http_body *b, const char *data, size_t len,
                                     size_t *used);

#ifdef __cplusplus
}
#endif
