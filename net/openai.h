/* openai: the routes of the OpenAI-compatible API, and of vLLM's tokenize and detokenize.
 *
 *   POST /v1/completions, /v1/chat/completions      GET /v1/models, /v1/models/NAME
 *   POST /tokenize, /detokenize
 *
 * Shapes and fields are in docs/HTTP.md. Loop thread only. The routes may be registered before
 * there is a model; they must not be called before openai_start.
 */
#pragma once

#include <uv.h>

#include "host/dispatch.h"
#include "net/http.h"
#include "net/openai_request.h"

#ifdef __cplusplus
extern "C" {
#endif

struct openai_call;

enum { OPENAI_NUM_ROUTES = 6 };

/* Caller's memory; for openai*.c only. */
struct openai {
    uv_loop_t *loop;
    struct dispatch *dispatch; /* borrowed */
    struct openai_context context;
    struct engine_model_info model;
    int64_t created;           /* seconds since 1970: when the model came */
    struct openai_call *calls; /* that are under way */
    uint64_t num_calls;        /* so far */
    struct http_route routes[OPENAI_NUM_ROUTES + 1];
};

/* defaults: values of fields that a request leaves out; borrowed. */
void openai_init(struct openai *o, uv_loop_t *loop, const struct request_params *defaults);
void openai_start(struct openai *o, struct dispatch *dispatch);
/* Frees calls whose last event never came. No exchange may be left. */
void openai_deinit(struct openai *o);

#ifdef __cplusplus
}
#endif
