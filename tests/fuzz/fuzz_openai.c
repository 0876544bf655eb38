/* libFuzzer: any bytes as the body of a request of the OpenAI-compatible API, and as the text of
 * its answers. The first byte says which request, and in which form the answer is. What parses
 * keeps to its bounds, a refusal names a reason in an envelope that is JSON, and every event of a
 * stream is one line of JSON. */
#include <string.h>

#include "host/mem.h"
#include "host/utf8.h"
#include "net/http_error.h"
#include "net/openai_choice.h"
#include "net/openai_request.h"

enum { VOCAB_SIZE = 1536, MAX_PIECE = 64 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_json(const char *text, size_t len) {
    json_error_t e;
    json_t *doc = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    CHECK(doc, "%s: %.*s", e.text, (int)len, text);
    CHECK(!memchr(text, '\n', len) && !memchr(text, '\r', len), "%.*s", (int)len, text);
    json_decref(doc);
}

/* Takes the events apart again. */
static void check_stream(const struct buffer *b) {
    size_t at = 0;
    while (at < b->len) {
        const char *from = b->data + at;
        const char *end = memmem(from, b->len - at, "\n\n", 2);
        CHECK(end && !strncmp(from, "data: ", 6), "%.*s", (int)(b->len - at), from);
        check_json(from + 6, (size_t)(end - from) - 6);
        at = (size_t)(end - b->data) + 2;
    }
}

static void check_params(const struct openai_request *r) {
    const struct request_params *p = &r->params;
    const struct sampling_params *s = &p->sampling;
    CHECK(p->max_tokens >= 0 && p->min_tokens >= 0, "tokens");
    CHECK(r->n >= 1 && (int64_t)r->n * r->num_prompts <= OPENAI_MAX_CHOICES, "choices");
    CHECK(s->temperature >= 0 && s->top_p > 0 && s->top_p <= 1 && s->min_p >= 0 && s->min_p <= 1,
          "sampling");
    CHECK(s->logprobs >= -1 && s->logprobs <= MAX_LOGPROBS, "logprobs %d", s->logprobs);
    CHECK(p->num_logit_bias <= MAX_LOGIT_BIASES, "%d biases", p->num_logit_bias);
    for (int32_t i = 0; i < r->num_prompts; i++)
        for (int32_t k = 0; k < r->prompts[i].num_tokens; k++)
            CHECK(r->prompts[i].tokens[k] >= 0 && r->prompts[i].tokens[k] < VOCAB_SIZE, "token");
}

static void check_body(enum openai_kind kind, const char *body, size_t len) {
    static const struct openai_context context_of_demo = {.model = "demo",
                                                          .vocab_size = VOCAB_SIZE};
    struct openai_context context = context_of_demo;
    struct request_params defaults;
    struct openai_request r = {0};
    struct field_error e;
    struct buffer out = {0};
    request_params_default(&defaults);
    context.defaults = &defaults;
    int rc = openai_parse(kind, body, len, &context, &r, &e);
    CHECK(rc == e.code, "%d != %d", rc, e.code);
    if (rc != 0) {
        struct http_error envelope = http_error_of(rc);
        CHECK(envelope.status == 400 || envelope.status == 404, "status %d", envelope.status);
        http_error_body(&out, &envelope, e.param, e.message);
        check_json(out.data, out.len);
    } else {
        check_params(&r);
    }
    openai_request_deinit(&r);
    buffer_deinit(&out);
}

/* The bytes as what a model generates, in pieces, as a stream and whole, with and without tools. */
static void check_answer(bool chat, enum tool_format format, bool stream, const char *bytes,
                         size_t len, size_t piece) {
    static const struct chat_tool tool = {.name = "f"};
    struct openai_request request = {.n = 1,
                                     .stream = stream,
                                     .parallel_tool_calls = true,
                                     .tools = (struct chat_tool *)(uintptr_t)&tool,
                                     .num_tools = 1};
    struct openai_form form = {.head = {.chat = chat, .id = "x", .model = bytes ? "m" : ""},
                               .request = &request,
                               .tool_format = chat ? format : TOOL_FORMAT_NONE};
    struct openai_choice choice = {0};
    struct buffer out = {0};
    request.params.sampling.logprobs = request.params.prompt_logprobs = -1;
    openai_choice_init(&choice, &form, 0);
    if (!stream)
        openai_begin(&out, &form.head);
    for (size_t at = 0, end = 0; at <= len; at = end) {
        end = at + piece;
        while (end < len && ((unsigned char)bytes[end] & 0xc0) == 0x80)
            end++; /* the engine cuts no character */
        bool last = end > len;
        const struct engine_event e = {.kind = last ? EVENT_DONE : EVENT_TOKEN,
                                       .text = bytes + at,
                                       .text_len = last ? len - at : end - at,
                                       .finish_reason = FINISH_STOP};
        if (stream)
            openai_choice_stream(&choice, &e, &out);
        else
            openai_choice_collect(&choice, &e);
    }
    if (stream) {
        check_stream(&out);
    } else {
        const struct openai_usage usage = {1, 2, 3};
        openai_choice_put(&choice, &choice, &out);
        openai_end(&out, &usage);
        check_json(out.data, out.len);
    }
    openai_choice_deinit(&choice);
    buffer_deinit(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct buffer text = {0};
    if (size < 2)
        return 0;
    /* A copy of its own, so that reading past its end is found. */
    char *body = xmalloc(size - 1);
    memcpy(body, data + 1, size - 1);
    check_body((enum openai_kind)(data[0] % 4), body, size - 1);
    utf8_append_lossy(&text, body, size - 1);
    int form = data[0] / 16;
    check_answer(form & 1, (enum tool_format)(data[0] / 4 % 4), form & 2, text.data, text.len,
                 form & 4 ? text.len + 1 : (size_t)(data[0] % MAX_PIECE) + 1);
    free(body);
    buffer_deinit(&text);
    return 0;
}
