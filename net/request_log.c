#include "net/request_log.h"

#include <stddef.h>

#include "host/clock.h"
#include "host/log.h"
#include "net/keys.h"

void request_log_end(const struct ended_request *r) {
    log_finished(&(struct log_finished){
        .id = r->id,
        .key = r->key ? api_key_name(r->key) : NULL,
        .outcome = r->outcome,
        .status = r->status,
        .prompt_tokens = r->prompt_tokens,
        .completion_tokens = r->completion_tokens,
        .total_ms = (double)(clock_us() - r->arrival_us) / 1000,
    });
}
