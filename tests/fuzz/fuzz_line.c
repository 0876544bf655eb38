/* libFuzzer: any bytes as what a client sends: cut into lines, parsed, answered. The first byte
 * says in which pieces they arrive; the lines must not depend on it, and every answer must be a
 * JSON line. */
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "net/line_answer.h"
#include "net/line_protocol.h"
#include "net/line_reader.h"

enum { MAX_LINE = 2048, VOCAB_SIZE = 1536 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_answer(struct buffer *b) {
    json_error_t e;
    CHECK(b->len > 0 && memchr(b->data, '\n', b->len) == b->data + b->len - 1, "not one line");
    json_t *doc = json_loadb(b->data, b->len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    CHECK(doc, "%s: %.*s", e.text, (int)b->len, b->data);
    json_decref(doc);
    buffer_clear(b);
}

static void check_params(const struct request_params *p) {
    const struct sampling_params *s = &p->sampling;
    CHECK(p->max_tokens >= 1 && p->min_tokens >= 0 && p->min_tokens <= p->max_tokens, "tokens");
    CHECK(s->temperature >= 0 && s->top_p > 0 && s->top_p <= 1 && s->min_p >= 0 && s->min_p <= 1,
          "sampling");
    CHECK(s->top_k >= -1 && s->repetition_penalty > 0, "sampling");
    CHECK(s->logprobs >= -1 && s->logprobs <= MAX_LOGPROBS, "logprobs %d", s->logprobs);
    CHECK(p->prompt_logprobs >= -1 && p->prompt_logprobs <= MAX_LOGPROBS, "prompt_logprobs");
    for (int32_t i = 0; i < p->num_tokens; i++)
        CHECK(p->tokens[i] >= 0 && p->tokens[i] < VOCAB_SIZE, "token %d", p->tokens[i]);
    for (int32_t i = 0; i < p->num_stop; i++)
        CHECK(*p->stop[i] && strlen(p->stop[i]) <= MAX_STOP_BYTES, "stop %d", i);
}

/* Parses the line and answers in every way that it allows. */
static void check_line(const char *line, size_t len, struct buffer *out) {
    struct request_params defaults;
    struct line_request r = {0};
    struct field_error e;
    request_params_default(&defaults);
    const struct line_context context = {.defaults = &defaults, .vocab_size = VOCAB_SIZE};
    /* A copy of its own, so that reading past its end is found. */
    char *copy = xmalloc(len);
    if (len)
        memcpy(copy, line, len);
    int rc = line_parse(copy, len, &context, &r, &e);
    CHECK(rc == e.code, "%d != %d", rc, e.code);
    if (rc != 0) {
        CHECK(rc == ERR_INVALID_JSON || rc == ERR_INVALID_REQUEST, "code %d", rc);
        answer_error(out, r.id, rc, e.param, e.message);
    } else {
        const struct engine_event event = {
            .kind = EVENT_TOKEN, .text = r.text_len ? r.text : "", .text_len = r.text_len};
        check_params(&r.params);
        answer_token(out, r.id, &event);
    }
    check_answer(out);
    line_request_deinit(&r);
    free(copy);
}

/* Feeds the bytes in pieces and appends every line, NUL, and how it ended, to `lines`. */
static void read_lines(const char *bytes, size_t size, size_t piece, struct buffer *lines) {
    struct line_reader reader;
    const char *line;
    size_t len;
    int rc = 0;
    line_reader_init(&reader, MAX_LINE);
    for (size_t at = 0; at < size && rc == 0; at += piece) {
        line_reader_feed(&reader, bytes + at, size - at < piece ? size - at : piece);
        while ((rc = line_reader_next(&reader, &line, &len)) == 1) {
            CHECK(len <= MAX_LINE, "%zu bytes", len);
            buffer_append(lines, line, len);
            buffer_append(lines, "\0\n", 2);
        }
    }
    buffer_printf(lines, "%d", rc < 0 ? rc : line_reader_rest(&reader, &line, &len));
    line_reader_deinit(&reader);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct buffer whole = {0}, pieces = {0}, out = {0};
    struct line_reader reader;
    const char *line;
    size_t len;
    if (size < 1)
        return 0;
    const char *bytes = (const char *)data + 1;
    size--;
    read_lines(bytes, size, size ? size : 1, &whole);
    read_lines(bytes, size, (size_t)data[0] + 1, &pieces);
    CHECK(whole.len == pieces.len && !memcmp(whole.data, pieces.data, whole.len),
          "lines depend on pieces of %d bytes", data[0] + 1);
    line_reader_init(&reader, MAX_LINE);
    line_reader_feed(&reader, bytes, size);
    while (line_reader_next(&reader, &line, &len) == 1)
        check_line(line, len, &out);
    if (line_reader_rest(&reader, &line, &len) == 1)
        check_line(line, len, &out);
    line_reader_deinit(&reader);
    buffer_deinit(&whole);
    buffer_deinit(&pieces);
    buffer_deinit(&out);
    return 0;
}
