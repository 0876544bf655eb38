/* http_head: the head of a request, byte by byte, refused unless its framing is beyond doubt.
 *
 * What a proxy and a server understand differently can be used to smuggle requests, so nothing
 * ambiguous is taken: lines end in CR LF, no line is folded, no space stands before a colon, there
 * is one Host, at most one Content-Length of digits alone, and never one beside a
 * Transfer-Encoding, which must be "chunked". Heads that pass go through http_parser as well, which
 * knows the methods, takes the target apart, and must find the same body length.
 *
 * The first byte that breaks a rule decides, so the result does not depend on how the bytes
 * arrive. Plain data and pure functions; no I/O.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/buffer.h"
#include "net/http.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    HTTP_MAX_HEAD_BYTES = 32 * 1024, /* request line and headers */
    HTTP_MAX_LINE_BYTES = 8 * 1024,  /* one of them */
    HTTP_MAX_HEADERS = 100,
};

/* Why a request is refused: a status of 400 and above, 0 for none, and a text of ours. */
struct http_problem {
    int status;
    const char *text;
};

struct http_field {
    const char *name, *value; /* NUL-terminated; the value without spaces around it */
};

/* Fields are for reading, once http_head_feed has said that it is complete. Of a head that is not,
 * or that is refused, there may be no header yet (num_fields). */
struct http_head {
    enum http_method method;
    int32_t version_minor; /* HTTP/1.0 or 1.1 */
    const char *path, *query;
    struct http_field fields[HTTP_MAX_HEADERS];
    int32_t num_fields;
    bool chunked;
    int64_t content_length; /* 0 when chunked, and without a body */
    bool keep_alive;        /* as the client wants it */
    bool expects_continue;
    struct http_problem problem;
    /* private */
    struct buffer bytes;          /* owned; the strings above point into it */
    struct buffer path_and_query; /* owned, the same */
    int32_t state;
    size_t line_bytes;
    int32_t num_blank;
    int32_t num_places; /* num_fields follows when the head is complete */
    struct {
        uint32_t name, value, end; /* offsets in bytes */
    } places[HTTP_MAX_HEADERS];
};

/* May the character stand in a method or a header's name (RFC 9110, token)? */
bool http_is_token(char c);

enum http_head_result { HTTP_HEAD_MORE, HTTP_HEAD_COMPLETE, HTTP_HEAD_REFUSED };

void http_head_init(struct http_head *h);
void http_head_deinit(struct http_head *h);
/* Has any byte of the head come? Blank lines in front are none. */
bool http_head_begun(const struct http_head *h);
/* Takes bytes up to the head's end, or to the first that is refused (then `problem` says why), and
 * sets *used to how many. */
enum http_head_result http_head_feed(struct http_head *h, const char *data, size_t len,
                                     size_t *used);
/* The value of a header, names in any case; NULL without it, and while the head is not complete. */
const char *http_head_value(const struct http_head *h, const char *name);

#ifdef __cplusplus
}
#endif
