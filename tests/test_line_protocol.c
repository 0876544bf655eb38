/* The line reader, the parser of lines and the writer of answers, without any socket. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "net/line_answer.h"
#include "net/line_protocol.h"
#include "net/line_reader.h"
#include "tests/bad_lines.h"
#include "tests/shim.h"

static struct request_params defaults;
static struct line_context context = {.defaults = &defaults, .vocab_size = BAD_LINES_VOCAB_SIZE};

/* Parses a C string. */
static int parse(const char *line, struct line_request *r, struct field_error *e) {
    request_params_default(&defaults);
    memset(r, 0, sizeof *r);
    return line_parse(line, strlen(line), &context, r, e);
}

/* ---- line reader ---- */

enum { MAX_LINE = 8, MAX_LINES = 16 };

/* What a stream turned into: lines joined by '|', then '!' when the framing was lost. */
struct reading {
    char text[512];
};

static void collect(struct line_reader *r, struct reading *out) {
    const char *line;
    size_t len;
    int rc;
    while ((rc = line_reader_next(r, &line, &len)) == 1) {
        strncat(out->text, line, len);
        strcat(out->text, "|");
    }
    if (rc < 0 && (!*out->text || out->text[strlen(out->text) - 1] != '!'))
        strcat(out->text, "!");
}

static void read_split(const char *bytes, size_t len, size_t split, struct reading *out) {
    struct line_reader r;
    const char *line;
    size_t n;
    out->text[0] = '\0';
    line_reader_init(&r, MAX_LINE);
    line_reader_feed(&r, bytes, split);
    collect(&r, out);
    line_reader_feed(&r, bytes + split, len - split);
    collect(&r, out);
    if (line_reader_next(&r, &line, &n) == 0 && line_reader_rest(&r, &line, &n) == 1) {
        strncat(out->text, line, n);
        strcat(out->text, ".");
    }
    line_reader_deinit(&r);
}

TEST(LineReader, LinesAreTheSameWhereverTheBytesAreSplit) {
    static const struct {
        const char *bytes, *want;
    } cases[] = {
        {"", ""},
        {"a\n", "a|"},
        {"a\r\n", "a|"},
        {"\n\n", "||"},
        {"\r\n", "|"},
        {"a\nb\r\nc", "a|b|c."},
        {"a\r", "a."},
        {"a\rb\n", "a\rb|"},
        {"a\r\r\n", "a\r|"},
        {"12345678\n", "12345678|"},
        {"12345678\r\nx\n", "12345678|x|"},
        {"123456789\n", "!"},
        {"12345678\rx\n", "!"},
        {"1\n123456789\n2\n", "1|!"},
        {"1\n1234567890123", "1|!"},
        {"12345678", "12345678."},
    };
    struct reading got;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t len = strlen(cases[i].bytes);
        for (size_t split = 0; split <= len; split++) {
            read_split(cases[i].bytes, len, split, &got);
            EXPECT_STR_EQ(got.text, cases[i].want);
        }
    }
}

TEST(LineReader, HoldsNoMoreThanOneLineAndAPiece) {
    struct line_reader r;
    const char *line;
    size_t len;
    char piece[64];
    memset(piece, 'x', sizeof piece);
    line_reader_init(&r, 100);
    line_reader_feed(&r, piece, sizeof piece);
    EXPECT_INT_EQ(line_reader_next(&r, &line, &len), 0);
    line_reader_feed(&r, piece, sizeof piece);
    EXPECT_INT_EQ(line_reader_next(&r, &line, &len), ERR_LINE_TOO_LONG);
    EXPECT_INT_EQ(line_reader_next(&r, &line, &len), ERR_LINE_TOO_LONG);
    EXPECT_INT_LE(line_reader_pending(&r), 128);
    line_reader_deinit(&r);
}

/* ---- requests ---- */

TEST(LineProtocol, AnyLineWithoutABraceIsAPrompt) {
    struct line_request r;
    struct field_error e;
    EXPECT_INT_EQ(parse("Once upon a time", &r, &e), 0);
    EXPECT_INT_EQ(r.kind, LINE_PLAIN);
    EXPECT_INT_EQ(r.text_len, 16);
    EXPECT_INT_EQ(r.params.max_tokens, 256);
    EXPECT_TRUE(r.id == NULL);
    line_request_deinit(&r);
    EXPECT_INT_EQ(parse(" {\"prompt\":7}", &r, &e), 0);
    EXPECT_INT_EQ(r.kind, LINE_PLAIN);
    line_request_deinit(&r);
    EXPECT_INT_EQ(parse("Zo\xc3\xab\xc3", &r, &e), ERR_INVALID_REQUEST);
    EXPECT_INT_EQ(r.kind, LINE_PLAIN);
    EXPECT_TRUE(strstr(e.message, "byte 4 ") != NULL);
    line_request_deinit(&r);
}

TEST(LineProtocol, EveryFieldArrives) {
    struct line_request r;
    struct field_error e;
    int rc = parse("{\"id\":\"a\\\"b\\u00e9\",\"prompt\":\"x\\u0000y\",\"max_tokens\":2147483647,"
                   "\"min_tokens\":3,\"temperature\":0.5,\"top_k\":-1,\"top_p\":0.25,\"min_p\":1,"
                   "\"repetition_penalty\":1.5,\"presence_penalty\":-2,\"frequency_penalty\":2,"
                   "\"seed\":-1,\"stop\":[\"a\",\"bc\"],\"ignore_eos\":true,\"logprobs\":20,"
                   "\"prompt_logprobs\":0,\"stream\":false}",
                   &r, &e);
    ASSERT_INT_EQ(rc, 0);
    EXPECT_INT_EQ(r.kind, LINE_COMPLETION);
    EXPECT_STR_EQ(r.id, "\"a\\\"b\303\251\"");
    EXPECT_INT_EQ(r.text_len, 3);
    EXPECT_MEM_EQ(r.text, "x\0y", 3);
    EXPECT_INT_EQ(r.params.max_tokens, INT32_MAX);
    EXPECT_INT_EQ(r.params.min_tokens, 3);
    EXPECT_NEAR(r.params.sampling.temperature, 0.5, 0);
    EXPECT_INT_EQ(r.params.sampling.top_k, -1);
    EXPECT_NEAR(r.params.sampling.top_p, 0.25, 0);
    EXPECT_NEAR(r.params.sampling.min_p, 1, 0);
    EXPECT_NEAR(r.params.sampling.repetition_penalty, 1.5, 0);
    EXPECT_NEAR(r.params.sampling.presence_penalty, -2, 0);
    EXPECT_NEAR(r.params.sampling.frequency_penalty, 2, 0);
    EXPECT_TRUE(r.params.has_seed && r.params.sampling.seed == UINT64_MAX);
    EXPECT_INT_EQ(r.params.num_stop, 2);
    EXPECT_STR_EQ(r.params.stop[1], "bc");
    EXPECT_TRUE(r.params.ignore_eos);
    EXPECT_INT_EQ(r.params.sampling.logprobs, 20);
    EXPECT_INT_EQ(r.params.prompt_logprobs, 0);
    EXPECT_FALSE(r.stream);
    line_request_deinit(&r);
}

TEST(LineProtocol, FieldsLeftOutOrNullHaveTheDefaults) {
    struct line_request r;
    struct field_error e;
    int rc = parse("{\"id\":null,\"op\":null,\"prompt\":\"\",\"tokens\":null,\"seed\":null,"
                   "\"stop\":null,\"max_tokens\":null,\"stream\":null,\"logprobs\":null}",
                   &r, &e);
    ASSERT_INT_EQ(rc, 0);
    EXPECT_TRUE(r.id == NULL && r.stream && !r.params.has_seed);
    EXPECT_INT_EQ(r.params.num_stop, 0);
    EXPECT_INT_EQ(r.params.max_tokens, 256);
    EXPECT_INT_EQ(r.params.sampling.logprobs, -1);
    EXPECT_INT_EQ(r.params.prompt_logprobs, -1);
    EXPECT_NEAR(r.params.sampling.temperature, 1, 0);
    line_request_deinit(&r);
}

TEST(LineProtocol, TokensAndMessagesArrive) {
    struct line_request r;
    struct field_error e;
    ASSERT_INT_EQ(parse("{\"id\":-9007199254740993,\"tokens\":[0,1535,7]}", &r, &e), 0);
    EXPECT_STR_EQ(r.id, "-9007199254740993");
    EXPECT_INT_EQ(r.params.num_tokens, 3);
    EXPECT_INT_EQ(r.params.tokens[1], 1535);
    line_request_deinit(&r);
    ASSERT_INT_EQ(parse("{\"messages\":[{\"role\":\"system\",\"content\":\"\"},"
                        "{\"content\":\"hi\",\"role\":\"user\"}]}",
                        &r, &e),
                  0);
    EXPECT_INT_EQ(r.num_messages, 2);
    EXPECT_STR_EQ(r.messages[1].role, "user");
    EXPECT_INT_EQ(r.messages[1].content_len, 2);
    EXPECT_INT_EQ(r.messages[0].content_len, 0);
    line_request_deinit(&r);
}

TEST(LineProtocol, OperationsArrive) {
    static const struct {
        const char *line;
        enum line_kind kind;
    } cases[] = {
        {"{\"op\":\"ping\"}", LINE_PING},
        {"{\"op\":\"stats\",\"id\":1}", LINE_STATS},
        {"{\"id\":\"m\",\"op\":\"model\"}", LINE_MODEL},
        {"{\"op\":\"cancel\",\"id\":0}", LINE_CANCEL},
        {"{\"op\":\"tokenize\",\"text\":\"\"}", LINE_TOKENIZE},
        {"{\"op\":\"detokenize\",\"tokens\":[]}", LINE_DETOKENIZE},
        {"{\"op\":\"detokenize\",\"tokens\":[1,2]}", LINE_DETOKENIZE},
    };
    struct line_request r;
    struct field_error e;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        EXPECT_INT_EQ(parse(cases[i].line, &r, &e), 0);
        EXPECT_INT_EQ(r.kind, cases[i].kind);
        line_request_deinit(&r);
    }
}

TEST(LineProtocol, NestingUpToTheLimitIsParsed) {
    char line[256] = "{\"prompt\":";
    struct line_request r;
    struct field_error e;
    for (int i = 0; i < FIELDS_MAX_DEPTH - 1; i++)
        strcat(line, "[");
    for (int i = 0; i < FIELDS_MAX_DEPTH - 1; i++)
        strcat(line, "]");
    strcat(line, "}");
    EXPECT_INT_EQ(parse(line, &r, &e), ERR_INVALID_REQUEST);
    line_request_deinit(&r);
    /* Brackets inside strings do not count, escaped quotes do not end them. */
    ASSERT_INT_EQ(parse("{\"prompt\":\"\\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["
                        "[[[[[[[[[[[[[[[[[[\\\\\"}",
                        &r, &e),
                  0);
    line_request_deinit(&r);
}

/* ---- refusals ---- */

static bool check_bad(const struct bad_line *bad, const char *bytes, size_t len) {
    struct line_request r = {0};
    struct field_error e;
    int rc = line_parse(bytes, len, &context, &r, &e);
    line_request_deinit(&r);
    bool ok = rc == bad->code && e.code == bad->code && !strcmp(e.param, bad->param) && *e.message;
    if (!ok)
        FAIL("%.*s: got %s for '%s' (%s)", (int)bad->len, bad->bytes, error_name(rc), e.param,
             e.message);
    return ok;
}

TEST(LineProtocol, EveryBadLineIsRefusedAndTheNextOneIsNot) {
    struct line_request r;
    struct field_error e;
    request_params_default(&defaults);
    EXPECT_INT_GE(num_bad_lines, 150);
    for (size_t i = 0; i < num_bad_lines; i++) {
        check_bad(&bad_lines[i], bad_lines[i].bytes, bad_lines[i].len);
        EXPECT_INT_EQ(parse("{\"prompt\":\"good\"}", &r, &e), 0);
        line_request_deinit(&r);
    }
}

/* Feeds bad line, good line split in two and checks both verdicts. */
static bool check_split(const struct bad_line *bad, const struct buffer *stream, size_t split) {
    struct line_reader reader;
    struct line_request r = {0};
    struct field_error e;
    const char *line;
    const size_t ends[3] = {0, split, stream->len};
    size_t len;
    int lines = 0, rc = 0;
    line_reader_init(&reader, 4096);
    for (int part = 0; part < 2; part++) {
        line_reader_feed(&reader, stream->data + ends[part], ends[part + 1] - ends[part]);
        while ((rc = line_reader_next(&reader, &line, &len)) == 1) {
            if (lines++ == 0) {
                if (!check_bad(bad, line, len))
                    rc = -1;
            } else if (line_parse(line, len, &context, &r, &e) != 0) {
                FAIL("the line after %.*s: %s", (int)bad->len, bad->bytes, e.message);
            }
            line_request_deinit(&r);
        }
    }
    line_reader_deinit(&reader);
    return rc == 0 && lines == 2;
}

TEST(LineProtocol, TheVerdictDoesNotDependOnHowTheBytesArrive) {
    static const char good[] = "\r\n{\"prompt\":\"good\"}\n";
    struct buffer stream = {0};
    request_params_default(&defaults);
    for (size_t i = 0; i < num_bad_lines; i++) {
        buffer_clear(&stream);
        buffer_append(&stream, bad_lines[i].bytes, bad_lines[i].len);
        buffer_puts(&stream, good);
        for (size_t split = 0; split <= stream.len; split++)
            if (!check_split(&bad_lines[i], &stream, split)) {
                FAIL("line %zu split at %zu", i, split);
                break;
            }
    }
    buffer_deinit(&stream);
}

TEST(LineProtocol, TruncatedRequestsNeverParse) {
    static const char line[] =
        "{\"id\":\"x\",\"prompt\":\"a\\u00e9\\n\",\"stop\":[\"b\"],\"temperature\":0.5,\"seed\":12}";
    struct line_request r = {0};
    struct field_error e;
    request_params_default(&defaults);
    for (size_t len = 1; len < sizeof line - 1; len++) {
        EXPECT_INT_EQ(line_parse(line, len, &context, &r, &e), ERR_INVALID_JSON);
        line_request_deinit(&r);
    }
}

TEST(LineProtocol, ErrorsCarryTheIdWhateverElseIsWrong) {
    struct line_request r;
    struct field_error e;
    EXPECT_INT_EQ(parse("{\"max_tokns\":1,\"prompt\":\"a\",\"id\":7}", &r, &e),
                  ERR_INVALID_REQUEST);
    EXPECT_STR_EQ(r.id, "7");
    EXPECT_STR_EQ(e.message, "max_tokns: unknown field (did you mean max_tokens?)");
    line_request_deinit(&r);
    EXPECT_INT_EQ(parse("{\"op\":\"fly\",\"id\":\"z\"}", &r, &e), ERR_INVALID_REQUEST);
    EXPECT_STR_EQ(r.id, "\"z\"");
    line_request_deinit(&r);
    /* Also where a number does not fit. */
    EXPECT_INT_EQ(parse("{\"id\":12,\"prompt\":\"a\",\"seed\":18446744073709551615}", &r, &e),
                  ERR_INVALID_REQUEST);
    EXPECT_STR_EQ(r.id, "12");
    line_request_deinit(&r);
}

TEST(LineProtocol, ArraysAndObjectsHaveALimitInAll) {
    struct line_request r;
    struct field_error e;
    struct buffer line = {0};
    for (int32_t n = FIELDS_MAX_CONTAINERS - 2; n <= FIELDS_MAX_CONTAINERS - 1; n++) {
        buffer_clear(&line);
        buffer_puts(&line, "{\"tokens\":[");
        for (int32_t i = 0; i < n; i++)
            buffer_puts(&line, i ? ",{}" : "{}");
        buffer_puts(&line, "]}");
        buffer_putc(&line, '\0');
        EXPECT_TRUE(parse(line.data, &r, &e) != 0);
        EXPECT_INT_EQ(e.code,
                      n == FIELDS_MAX_CONTAINERS - 2 ? ERR_INVALID_REQUEST : ERR_INVALID_JSON);
        line_request_deinit(&r);
    }
    buffer_deinit(&line);
}

TEST(LineProtocol, AnInheritedMinimumGivesWayToAShortRequest) {
    struct request_params own;
    struct line_context with_minimum = {&own, 100};
    struct line_request r = {0};
    struct field_error e;
    static const char ask[] = "{\"prompt\":\"a\",\"max_tokens\":5}";
    request_params_default(&own);
    own.min_tokens = 10;
    EXPECT_INT_EQ(line_parse(ask, sizeof ask - 1, &with_minimum, &r, &e), 0);
    EXPECT_INT_EQ(r.params.min_tokens, 5);
    line_request_deinit(&r);
}

/* ---- answers ---- */

/* The line that was written, as JSON. */
static json_t *answer(struct buffer *b) {
    json_error_t e;
    json_t *doc = NULL;
    if (EXPECT_TRUE(b->len > 0 && b->data[b->len - 1] == '\n') &&
        EXPECT_TRUE(memchr(b->data, '\n', b->len - 1) == NULL)) {
        doc = json_loadb(b->data, b->len - 1, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
        if (!doc)
            FAIL("%.*s: %s", (int)b->len, b->data, e.text);
    }
    buffer_clear(b);
    return doc;
}

TEST(LineAnswer, ATokenLineIsAsTheProtocolShows) {
    struct buffer b = {0};
    struct engine_event e = {.kind = EVENT_TOKEN, .text = "5", .text_len = 1, .token = 53};
    answer_token(&b, "1", &e);
    buffer_putc(&b, '\0');
    EXPECT_STR_EQ(b.data, "{\"id\":1,\"text\":\"5\",\"token\":53}\n");
    buffer_clear(&b);
    answer_error(&b, "2", ERR_INVALID_REQUEST, "prompt", "prompt: expected a string");
    buffer_putc(&b, '\0');
    EXPECT_STR_EQ(b.data, "{\"id\":2,\"error\":{\"code\":\"invalid_request\",\"message\":\"prompt: "
                          "expected a string\",\"param\":\"prompt\"}}\n");
    buffer_deinit(&b);
}

TEST(LineAnswer, LogprobsReadBackAsTheSameFloats) {
    const float values[] = {-0.0f, -1e-7f, -0.333333343f, -FLT_MIN, -12.3456789f, -9998.5f};
    struct logprob top[6];
    struct buffer b = {0};
    for (int i = 0; i < 6; i++)
        top[i] = (struct logprob){i, values[i]};
    struct engine_event e = {.kind = EVENT_TOKEN,
                             .text = "",
                             .has_logprobs = true,
                             .logprobs = {.logprob = values[2], .num_top = 6, .top = top}};
    answer_token(&b, "1", &e);
    json_t *doc = answer(&b);
    for (size_t i = 0; i < 6; i++) {
        json_t *pair = json_array_get(json_object_get(doc, "top_logprobs"), i);
        EXPECT_TRUE((float)json_number_value(json_array_get(pair, 1)) == values[i]);
    }
    json_decref(doc);
    buffer_deinit(&b);
}

TEST(LineAnswer, WhatJsonCannotSayIsReplaced) {
    struct logprob top = {3, -INFINITY};
    struct buffer b = {0}, text = {0};
    struct engine_event e = {.kind = EVENT_TOKEN,
                             .text = "\xff\"\n\x01\\",
                             .text_len = 5,
                             .has_logprobs = true,
                             .logprobs = {.logprob = NAN, .num_top = 1, .top = &top}};
    answer_token(&b, "\"a\"", &e);
    json_t *doc = answer(&b);
    EXPECT_STR_EQ(json_string_value(json_object_get(doc, "text")), "\357\277\275\"\n\x01\\");
    EXPECT_NEAR(json_number_value(json_object_get(doc, "logprob")), -9999, 0);
    json_decref(doc);
    struct engine_event done = {.kind = EVENT_DONE,
                                .finish_reason = FINISH_CANCELLED,
                                .queue_ms = NAN,
                                .ttft_ms = -1,
                                .total_ms = INFINITY};
    buffer_append(&text, "a\xe4\xbd", 3);
    answer_done(&b, NULL, &done, &text, NULL);
    doc = answer(&b);
    EXPECT_TRUE(json_is_null(json_object_get(doc, "id")));
    EXPECT_STR_EQ(json_string_value(json_object_get(doc, "finish_reason")), "cancelled");
    EXPECT_STR_EQ(json_string_value(json_object_get(doc, "text")), "a\357\277\275");
    json_decref(doc);
    answer_error(&b, NULL, ERR_IO, "\xc3", "cut \xe4\xbd");
    doc = answer(&b);
    EXPECT_STR_EQ(json_string_value(json_object_get(json_object_get(doc, "error"), "code")),
                  "internal");
    json_decref(doc);
    answer_plain_error(&b, "two\nlines \xff");
    buffer_putc(&b, '\0');
    EXPECT_STR_EQ(b.data, "error: two lines \357\277\275\n");
    buffer_deinit(&b);
    buffer_deinit(&text);
}

TEST(LineAnswer, PromptLogprobsBeginWithNull) {
    int32_t tokens[3] = {5, 6, 7};
    struct logprob top[2] = {{8, -0.5f}, {6, -1.5f}};
    struct token_logprobs positions[3] = {{0}, {-1.5f, 2, top}, {-2, 0, NULL}};
    struct engine_event e = {.kind = EVENT_DONE,
                             .finish_reason = FINISH_LENGTH,
                             .text = "",
                             .prompt_tokens = 3,
                             .prompt_logprob_tokens = tokens,
                             .prompt_logprobs = positions,
                             .num_prompt_logprobs = 3};
    struct buffer b = {0};
    answer_done(&b, "1", &e, NULL, NULL);
    json_t *doc = answer(&b);
    json_t *list = json_object_get(doc, "prompt_logprobs");
    EXPECT_INT_EQ(json_array_size(list), 3);
    EXPECT_TRUE(json_is_null(json_array_get(list, 0)));
    json_t *second = json_array_get(list, 1);
    EXPECT_INT_EQ(json_integer_value(json_object_get(second, "token")), 6);
    EXPECT_INT_EQ(json_array_size(json_object_get(second, "top_logprobs")), 2);
    EXPECT_INT_EQ(
        json_integer_value(json_object_get(json_object_get(doc, "usage"), "prompt_tokens")), 3);
    json_decref(doc);
    buffer_deinit(&b);
}

TEST(LineAnswer, OperationsAnswerWhatTheProtocolPromises) {
    static const char *const promised[] = {"running",
                                           "waiting",
                                           "kv_blocks_used",
                                           "kv_blocks_cached",
                                           "kv_blocks_total",
                                           "prompt_tokens_total",
                                           "completion_tokens_total"};
    struct buffer b = {0};
    struct dispatch_stats stats = {
        .total = {.running = 3, .last_step_age_us = -1, .healthy = true},
        .num_replicas = 1,
    };
    struct engine_model_info model = {"a \"name\"", 2048, 1536, 3};
    int32_t ids[2] = {4, 5};
    answer_stats(&b, "1", &stats, 9);
    json_t *doc = answer(&b);
    for (size_t i = 0; i < sizeof promised / sizeof *promised; i++)
        EXPECT_TRUE(json_is_integer(json_object_get(doc, promised[i])));
    EXPECT_TRUE(json_is_true(json_object_get(doc, "healthy")));
    EXPECT_TRUE(json_object_get(doc, "replicas") == NULL);
    json_decref(doc);
    answer_model(&b, "1", &model);
    doc = answer(&b);
    EXPECT_STR_EQ(json_string_value(json_object_get(doc, "name")), "a \"name\"");
    EXPECT_INT_EQ(json_integer_value(json_object_get(doc, "max_model_len")), 2048);
    EXPECT_INT_EQ(json_integer_value(json_object_get(doc, "vocab_size")), 1536);
    EXPECT_INT_EQ(json_integer_value(json_object_get(doc, "ranks")), 3);
    json_decref(doc);
    answer_tokenize(&b, "1", ids, 2);
    doc = answer(&b);
    EXPECT_INT_EQ(json_array_size(json_object_get(doc, "tokens")), 2);
    json_decref(doc);
    answer_detokenize(&b, "1", NULL, 0);
    json_decref(answer(&b));
    answer_ping(&b, "\"p\"");
    json_decref(answer(&b));
    buffer_deinit(&b);
}

TEST(LineAnswer, StatsListSeveralReplicas) {
    struct buffer b = {0};
    const struct dispatch_stats stats = {
        .total = {.running = 8, .waiting = 5},
        .num_replicas = 3,
        .replica = {{.running = 7, .healthy = true}, {.waiting = 5}, {.running = 1}},
    };
    answer_stats(&b, "1", &stats, 9);
    json_t *doc = answer(&b), *replicas = json_object_get(doc, "replicas"), *r;
    size_t i;
    EXPECT_INT_EQ(json_array_size(replicas), 3);
    EXPECT_INT_EQ(json_integer_value(json_object_get(doc, "running")), 8);
    EXPECT_TRUE(json_is_false(json_object_get(doc, "healthy")));
    json_array_foreach(replicas, i, r) {
        EXPECT_INT_EQ(json_integer_value(json_object_get(r, "running")), stats.replica[i].running);
        EXPECT_INT_EQ(json_integer_value(json_object_get(r, "waiting")), stats.replica[i].waiting);
        EXPECT_INT_EQ(json_is_true(json_object_get(r, "healthy")), i == 0);
    }
    json_decref(doc);
    buffer_deinit(&b);
}
