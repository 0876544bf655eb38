#include "net/request_log.h"

#include "host/log.h"
#include "net/keys.h"

void request_log_end(const char *id, const struct api_key *key, int32_t status,
                     const struct engine_event *e) {
    bool done = e->kind == EVENT_DONE;
    log_finished(&(struct log_finished){
        .id = id,
        .key = key ? api_key_name(key) : NULL,
        .outcome = done ? finish_reason_name(e->finish_reason) : error_name(e->error_code),
        .status = status,
        .prompt_tokens = e->prompt_tokens,
        .completion_tokens = e->completion_tokens,
        .total_ms = e->total_ms,
    });
}
