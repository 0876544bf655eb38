/* request_log: the line in the log that a request for a completion gets when it has ended, however
 * it has: done, cancelled, failed or refused (--log-requests). */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct api_key;

struct ended_request {
    const char *id;            /* as the client gave it, or as it was made; any bytes */
    const struct api_key *key; /* NULL: none */
    const char *outcome;       /* finish reason, or the error's protocol code */
    int32_t status;            /* of HTTP; 0: none was sent, or another protocol */
    int64_t prompt_tokens, completion_tokens;
    int64_t arrival_us; /* clock_us() */
};

void request_log_end(const struct ended_request *r);

#ifdef __cplusplus
}
#endif
