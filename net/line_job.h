/* line_job: all the work on one line that needs no connection: parse it, tokenise its prompt,
 * answer tokenize and detokenize.
 *
 * Pure but for the immutable tokenizer and template, so it runs on the loop for short
 * lines and in libuv's worker pool for long ones (PROMPT_INLINE_BYTES), where a prompt of
 * megabytes stalls nobody else.
 */
#pragma once

#include "host/buffer.h"
#include "host/dispatch.h"
#include "net/line_protocol.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Fill the first group, zero the rest. */
struct line_job {
    const char *line; /* borrowed; must stay until line_job_deinit */
    size_t len;
    const struct dispatch *dispatch;    /* borrowed */
    const struct line_context *context; /* borrowed */
    int64_t arrival_us;                 /* clock_us() of the line, from which its times count */
    bool only_auth;                     /* of a stranger: any other line is parsed, no more */

    struct line_request request; /* prompts are tokenised: params is ready for dispatch_submit */
    struct field_error error;    /* code 0: none */
    struct buffer answer;        /* of tokenize and detokenize; the key of auth */
};

void line_job_run(struct line_job *job);
void line_job_deinit(struct line_job *job);

#ifdef __cplusplus
}
#endif
