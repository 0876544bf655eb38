/* http_opinion: what http_parser says of a head that http_head has passed.
 *
 * A module of its own because the library's header has names that are http.h's too.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct http_opinion {
    bool known_method;
    bool complete; /* the head was understood to its end */
    bool keep_alive, chunked;
    int64_t content_length;   /* -1: none given */
    const char *path, *query; /* in the head; NULL when empty */
    size_t path_len, query_len;
};

/* A whole head, blank line included. */
void http_opinion_get(const char *head, size_t len, struct http_opinion *out);

#ifdef __cplusplus
}
#endif
