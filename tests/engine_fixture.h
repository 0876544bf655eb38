/* engine_fixture: an engine on a real model, and requests run through it to their end.
 *
 * One fixture at a time drives its engine from the test's thread: submit some requests, then run
 * until all have ended, collecting tokens and text.
 */
#pragma once

#include "host/engine.h"

enum { FIXTURE_MAX_REQUESTS = 64, FIXTURE_MAX_TOKENS = 512 };

/* What became of one request. */
struct fixture_result {
    int32_t tokens[FIXTURE_MAX_TOKENS];
    int32_t num_tokens;
    struct buffer text; /* with a final NUL after fixture_wait */
    bool done;
    enum finish_reason finish_reason;
    int32_t prompt_tokens, cached_tokens;
    int error_code; /* of EVENT_ERROR */
};

struct fixture {
    struct engine *engine;
    struct fixture_result result[FIXTURE_MAX_REQUESTS];
    int32_t num_requests, num_ended;
};

/* The bundled demo model with these options (NULL: defaults of the tests: cpu, 2 threads). Records
 * a failure and returns false when the engine does not start. */
bool fixture_open(struct fixture *f, const struct engine_options *o);
/* Options to start from: the demo model on the CPU. */
void fixture_options(struct engine_options *o);
void fixture_close(struct fixture *f);

/* Queues a request for `text`; params may be NULL (greedy, 32 tokens). Returns its index. */
int32_t fixture_submit(struct fixture *f, const char *text, const struct request_params *params);
/* Runs until every request has ended. */
void fixture_wait(struct fixture *f);
/* Forgets all results, for the next round. */
void fixture_reset(struct fixture *f);
