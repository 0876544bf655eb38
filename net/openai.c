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

static int hex_digit(char c) {
    return c >= '0' && c <= '9'                 ? c - '0'
           : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                : -1;
}

/* Appends the end of a path with its percent escapes read; "%" without two digits is itself. */
static void put_unescaped(struct buffer *out, const char *s) {
    for (; *s; s++) {
        int high = *s == '%' ? hex_digit(s[1]) : -1;
        int low = high >= 0 ? hex_digit(s[2]) : -1;
        buffer_putc(out, low >= 0 ? (char)(high << 4 | low) : *s);
        s += low >= 0 ? 2 : 0;
    }
}

/* /v1/models/NAME, where NAME may have slashes, escaped or not. */
static void answer_model(void *ctx, struct http_exchange *x) {
    const struct openai *o = ctx;
    struct buffer out = {0};
    put_unescaped(&out, http_request_of(x)->path + strlen("/v1/models/"));
    bool same = out.len == strlen(o->model.name) && !memcmp(out.data, o->model.name, out.len);
    buffer_clear(&out);
    if (!same) {
        buffer_deinit(&out);
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
        {.method = HTTP_POST,
         .path = "/v1/completions",
         .fn = completions,
         .ctx = o,
         .logged = true},
        {.method = HTTP_POST,
         .path = "/v1/chat/completions",
         .fn = chat_completions,
         .ctx = o,
         .logged = true},
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
