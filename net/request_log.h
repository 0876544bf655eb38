/* request_log: the line in the log that a request which has ended gets (--log-requests). */
#pragma once

#include "host/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

struct api_key;

/* e is EVENT_DONE or EVENT_ERROR. id: the request's own; key: NULL without keys; status: of HTTP,
 * 0 in another protocol. */
void request_log_end(const char *id, const struct api_key *key, int32_t status,
                     const struct engine_event *e);

#ifdef __cplusplus
}
#endif
