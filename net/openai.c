#include "openai.h"

#include <string.h>
#include <time.h>

#include "host/mem.h"
#include "net/json_out.h"
#include "net/openai_call.h"

/* ---- models ---------------------------------------------------------------------------------- */

static void put_model(const struct openai *o, struct buffer *out) {
    const char *name = o->model.name;
    buffer_puts(out, "{\"id\":");
    json_out_text(out, name, strlen(name));
    buffer_printf(out, ",\"object\":\"model\",\"created\":%lld", (long long)o->created);
    buffer_puts(out, ",\"owned_by\":\"moeserve\",\"root\":");
    json_out_text(out, name, strlen(name));
    buffer_printf(out, ",\"parent\":null,\"max_model_len\":%d}", o->model.max_model_len);
}

/* /v1/models/NAME */
static void answer_model(void *ctx, struct http_exchange *x) {
    const struct openai *o = ctx;
    struct buffer out = {0};
    if (strcmp(http_request_of(x)->path + strlen("/v1/models/"), o->model.name) != 0) {
        http_answer_error(x, ERR_NOT_FOUND, "model", "there is no such model");
        return;
    }
    put_model(ctx, &out);
    http_answer(x, 200, "application/json", out.data, out.len);
    buffer_deinit(&out);
}

static void answer_models(void *ctx, struct http_exchange *x) {
    struct buffer out = {0};
    buffer_puts(&out, "{\"object\":\"list\",\"data\":[");
    put_model(ctx, &out);
    buffer_puts(&out, "]}");
    http_answer(x, 200, "application/json", out.data, out.len);
    buffer_deinit(&out);
}

/* ---- requests -------------------------------------------------------------------------------- */

static void completions(void *ctx, struct http_exchange *x) {
    openai_call_start(ctx, OPENAI_COMPLETION, x);
}
static void chat_completions(void *ctx, struct http_exchange *x) {
    openai_call_start(ctx, OPENAI_CHAT, x);
}
static void tokenize(void *ctx, struct http_exchange *x) {
    openai_call_start(ctx, OPENAI_TOKENIZE, x);
}
static void detokenize(void *ctx, struct http_exchange *x) {
    openai_call_start(ctx, OPENAI_DETOKENIZE, x);
}

/* ---- life ------------------------------------------------------------------------------------ */

void openai_init(struct openai *o, uv_loop_t *loop, const struct request_params *defaults) {
    const struct http_route routes[OPENAI_NUM_ROUTES] = {
        {.method = HTTP_POST, .path = "/v1/completions", .fn = completions, .ctx = o},
        {.method = HTTP_POST, .path = "/v1/chat/completions", .fn = chat_completions, .ctx = o},
        {.method = HTTP_GET, .path = "/v1/models", .fn = answer_models, .ctx = o},
        {.method = HTTP_GET, .path = "/v1/models/*", .fn = answer_model, .ctx = o},
        {.method = HTTP_POST, .path = "/tokenize", .fn = tokenize, .ctx = o},
        {.method = HTTP_POST, .path = "/detokenize", .fn = detokenize, .ctx = o},
    };
    memset(o, 0, sizeof *o);
    o->loop = loop;
    o->context.defaults = defaults;
    memcpy(o->routes, routes, sizeof routes);
}

void openai_start(struct openai *o, struct dispatch *dispatch) {
    o->dispatch = dispatch;
    o->created = (int64_t)time(NULL);
    dispatch_model_info(dispatch, &o->model);
    o->context.model = o->model.name;
    o->context.vocab_size = o->model.vocab_size;
}

void openai_deinit(struct openai *o) {
    while (o->calls)
        openai_call_destroy(o->calls);
}
