/* http_error: our error codes as HTTP knows them, in OpenAI's envelope. */
#pragma once

#include <stddef.h>

#include "host/buffer.h"
#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct http_error {
    int status;       /* 400 and above */
    const char *type; /* "invalid_request_error", "rate_limit_error", ... */
    const char *code; /* "context_length_exceeded", ...; NULL: null */
};

/* For an ERR_* code. Never fails: what clients have no word for is an internal error. */
struct http_error http_error_of(int code);
/* For a status that a request was refused with before any route saw it. */
struct http_error http_error_of_status(int status);
/* Appends {"error":{"message":...,"type":...,"param":...,"code":...}}. param may be NULL or
 * empty. */
void http_error_body(struct buffer *out, const struct http_error *e, const char *param,
                     const char *message);
/* "Not Found"; "Unknown" for a status that is not used here. */
const char *http_status_text(int status);

#ifdef __cplusplus
}
#endif
