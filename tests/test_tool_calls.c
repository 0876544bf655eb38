/* The parser of answers with calls: a table of texts and what they are taken apart into, each
 * whole, byte by byte and cut in two at every place.
 *
 * What is expected is written as a line: content as it stands, a call as "@name(arguments)", "!" at
 * the end for a call that broke off.
 */
#include "host/tool_calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/utf8.h"
#include "tests/shim.h"

static const struct chat_tool tools[] = {{.name = "f"}, {.name = "get_weather"}};

struct sink {
    struct buffer text;
    int32_t calls;
    bool in_call;
};

static void end_call(struct sink *s) {
    if (s->in_call)
        buffer_putc(&s->text, ')');
    s->in_call = false;
}

static void on_event(void *ctx, const struct tool_event *e) {
    struct sink *s = ctx;
    if (e->kind == TOOL_EVENT_CALL) {
        char id[TOOL_CALL_ID_SIZE];
        end_call(s);
        buffer_printf(&s->text, "@%s(", e->name);
        s->in_call = true;
        tool_call_id(7, s->calls, id);
        EXPECT_STR_EQ(e->id, id);
        EXPECT_INT_EQ(e->index, s->calls);
        s->calls++;
        return;
    }
    EXPECT_TRUE(e->text_len > 0);
    EXPECT_INT_EQ(utf8_valid_prefix(e->text, e->text_len), e->text_len);
    if (e->kind == TOOL_EVENT_CONTENT)
        end_call(s);
    else
        EXPECT_TRUE(s->in_call && e->index == s->calls - 1);
    buffer_append(&s->text, e->text, e->text_len);
}

static const struct tool_calls_options hermes = {
    .format = TOOL_FORMAT_HERMES, .seed = 7, .tools = tools, .num_tools = 2, .on_event = on_event};

/* Feeds text[0, cut) and the rest; a cut of SIZE_MAX: character by character. */
static char *parse(const struct tool_calls_options *options, const char *text, size_t len,
                   size_t cut) {
    struct sink sink = {0};
    struct tool_calls p;
    struct tool_calls_options o = *options;
    o.ctx = &sink;
    tool_calls_init(&p, &o);
    for (size_t at = 0, n; at < len; at += n) {
        uint32_t cp;
        n = cut == SIZE_MAX ? utf8_next(text + at, len - at, &cp) : at < cut ? cut - at : len - at;
        tool_calls_push(&p, text + at, n);
    }
    tool_calls_finish(&p);
    end_call(&sink);
    EXPECT_INT_EQ(tool_calls_count(&p), sink.calls);
    buffer_puts(&sink.text, tool_calls_complete(&p) ? "" : "!");
    buffer_putc(&sink.text, '\0');
    tool_calls_deinit(&p);
    return sink.text.data;
}

static void check(const struct tool_calls_options *o, const char *text, const char *expected) {
    size_t len = strlen(text);
    for (size_t cut = 0; cut <= len + 1; cut++) {
        if (cut < len && ((unsigned char)text[cut] & 0xC0) == 0x80)
            continue; /* within a character */
        char *got = parse(o, text, len, cut > len ? SIZE_MAX : cut);
        if (strcmp(got, expected) != 0)
            FAIL("format %d, cut at %zu: %s\n got:      %s\n expected: %s", o->format, cut, text,
                 got, expected);
        free(got);
    }
}

struct parse_case {
    const char *text, *expected;
};

static void check_all(const struct tool_calls_options *o, const struct parse_case *cases,
                      size_t count) {
    for (size_t i = 0; i < count; i++)
        check(o, cases[i].text, cases[i].expected);
}

#define CHECK_ALL(o, cases) check_all((o), (cases), sizeof(cases) / sizeof *(cases))

#define CALL(name, arguments)                                                                      \
    "<tool_call>\n{\"name\": \"" name "\", \"arguments\": " arguments "}\n</tool_call>"

TEST(ToolCalls, HermesCallsStandBetweenText) {
    static const struct parse_case cases[] = {
        {"", ""},
        {" hello 多 < world\n\n", " hello 多 < world\n\n"},
        {CALL("f", "{\"a\": [1, {\"b\": \"}\\\"\"}]}"), "@f({\"a\": [1, {\"b\": \"}\\\"\"}]})"},
        {"Let me see.\n" CALL("f", "{}"), "Let me see.@f({})"},
        {"two\n\n" CALL("f", "{}"), "two\n@f({})"},
        {CALL("f", "{}") "\n" CALL("get_weather", "{\"city\":\"München\"}") "\n",
         "@f({})@get_weather({\"city\":\"München\"})"},
        {CALL("f", "{}") CALL("f", "{}"), "@f({})@f({})"},
        {CALL("f", "{}") "\n\n and then", "@f({})\n\n and then"},
        {CALL("any \\u00e9\\\"x", "{}"), "@any é\"x({})"}, /* behind a marker, any name */
        {"<tool_call>{\"arguments\":{\"x\":1},\"name\":\"f\"}</tool_call>", "@f({\"x\":1})"},
        {"<tool_call>{\"id\":[{}],\"name\":\"f\",\"parameters\":{},\"z\":-1.5e3}</tool_call>",
         "@f({})"},
        {"<tool_call>{\"arguments\":{\"x\":1},\"o\":{\"name\":2},\"name\":\"f\"}</tool_call>",
         "@f({\"x\":1})"},
        {"<tool_call>{\"name\":\"f\"}</tool_call>", "@f({})"},
        {"<tool_call>{\"name\":\"f\",\"arguments\":null }</tool_call>x", "@f({})x"},
        /* Without the closing marker, or with half of it. */
        {"<tool_call>{\"name\":\"f\",\"arguments\":{}}", "@f({})"},
        {"<tool_call>{\"name\":\"f\",\"arguments\":{}}\n</tool_", "@f({})"},
        {"<tool_call>{\"name\":\"f\",\"arguments\":{}}\n" CALL("f", "{}"), "@f({})@f({})"},
        {"<tool_call>{\"name\":\"f\",\"arguments\":{}}\n</tool_x", "@f({})\n</tool_x"},
        {"<tool_call>{\"name\":\"f\",\"arguments\":{}}}\n</tool_call>", "@f({})}\n</tool_call>"},
    };
    CHECK_ALL(&hermes, cases);
}

TEST(ToolCalls, WhatIsNoCallIsContent) {
    static const struct parse_case cases[] = {
        {"<", "<"},
        {"a\n<tool_cal", "a\n<tool_cal"},
        {"<tool_calls>", "<tool_calls>"},
        {"<<tool_call>x", "<<tool_call>x"},
        {"\n\n<tool_call>\n", "\n\n<tool_call>\n"},
        {"<tool_call>[{\"name\":\"f\"}]</tool_call>", "<tool_call>[{\"name\":\"f\"}]</tool_call>"},
        {"<tool_call>\n<tool_call>{\"name\":\"f\"}", "<tool_call>\n@f({})"},
        {"<tool_call>{\"name\":\"f\"", "<tool_call>{\"name\":\"f\""},
        {"<tool_call>{}</tool_call>", "<tool_call>{}</tool_call>"},
        {"<tool_call>{\"name\":3}", "<tool_call>{\"name\":3}"},
        {"<tool_call>{\"name\":{}}", "<tool_call>{\"name\":{}}"},
        {"<tool_call>{\"name\":\"\"}", "<tool_call>{\"name\":\"\"}"},
        {"<tool_call>{\"name\":\"f\\u0000\"}", "<tool_call>{\"name\":\"f\\u0000\"}"},
        {"<tool_call>{\"name\":\"f\",\"name\":\"f\"}",
         "<tool_call>{\"name\":\"f\",\"name\":\"f\"}"},
        {"<tool_call>{\"name\":\"f\",\"arguments\":[]}",
         "<tool_call>{\"name\":\"f\",\"arguments\":[]}"},
        {"<tool_call>{\"name\":\"f\",\"arguments\":\"{}\"}",
         "<tool_call>{\"name\":\"f\",\"arguments\":\"{}\"}"},
        {"<tool_call>{\"name\":\"多\xF0\x9F\x98\x80\"x",
         "<tool_call>{\"name\":\"多\xF0\x9F\x98\x80\"x"},
        {"{\"name\":\"f\",\"arguments\":{}}", "{\"name\":\"f\",\"arguments\":{}}"},
    };
    CHECK_ALL(&hermes, cases);
}

/* Once reported, a call cannot be taken back; the parser says that it is broken. Reported whole
 * only, it is content. */
TEST(ToolCalls, ABrokenCallIsSeenToBeBroken) {
    static const struct parse_case pieces[] = {
        {"<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":tru", "@f({\"a\":tru)!"},
        {"<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":}}", "@f({\"a\":)}}!"},
        {"<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"\n\"}}", "@f({\"a\":\")\n\"}}!"},
        {"<tool_call>{\"name\":\"f\",\"arguments\":{}", "@f({})"},
        {"<tool_call>{\"name\":\"f\",\"arguments\":{},\"name\":\"g\"}", "@f({})\":\"g\"}"},
    };
    struct tool_calls_options whole = hermes;
    whole.whole = true;
    CHECK_ALL(&hermes, pieces);
    for (size_t i = 0; i < 5; i++)
        check(&whole, pieces[i].text, pieces[i].text);
    check(&whole, "a" CALL("f", "{\"a\": {}}") CALL("g", "{}"), "a@f({\"a\": {}})@g({})");
}

TEST(ToolCalls, ThoughtsHoldNoCalls) {
    static const struct parse_case cases[] = {
        {"<think>\n" CALL("f", "{}") "\n</think>\n\n" CALL("f", "{}"),
         "<think>\n" CALL("f", "{}") "\n</think>\n@f({})"},
        {"\n\n <think>" CALL("f", "{}"), "\n\n <think>" CALL("f", "{}")},
        {"<think></think" CALL("f", "{}"), "<think></think" CALL("f", "{}")},
        {"no <think>" CALL("f", "{}"), "no <think>@f({})"}, /* not at the beginning */
        {"<thin" CALL("f", "{}"), "<thin@f({})"},
    };
    CHECK_ALL(&hermes, cases);
}

TEST(ToolCalls, LlamaAnswersWithTheCallAlone) {
    static const struct parse_case cases[] = {
        {"{\"name\": \"f\", \"parameters\": {\"a\": \"b\"}}", "@f({\"a\": \"b\"})"},
        {" \n{\"type\":\"function\",\"name\":\"f\",\"parameters\":{}}\n", "@f({})"},
        {"<|python_tag|>{\"name\": \"unknown\", \"parameters\": {}}", "@unknown({})"},
        {"<|python_tag|>{\"name\": \"f\"}", "@f({})"},
        /* JSON that is no call of a function that was offered. */
        {"{\"name\": \"Bob\", \"parameters\": {}}", "{\"name\": \"Bob\", \"parameters\": {}}"},
        {"{\"name\": \"f\"}", "{\"name\": \"f\"}"},
        {"{\"name\": \"f\", \"parameters\": 3}", "{\"name\": \"f\", \"parameters\": 3}"},
        {"  {}", "  {}"},
        {" \n", " \n"},
        {"{", "{"},
        {"text {\"name\": \"f\", \"parameters\": {}}",
         "text {\"name\": \"f\", \"parameters\": {}}"},
        {"<|python_tag|>f.call(a=\"b\")", "<|python_tag|>f.call(a=\"b\")"},
        {"<|python_", "<|python_"},
        {"<tool_call>", "<tool_call>"},
        /* The template takes one call an answer. */
        {"{\"name\":\"f\",\"parameters\":{}}; {\"name\":\"f\",\"parameters\":{}}",
         "@f({}); {\"name\":\"f\",\"parameters\":{}}"},
    };
    struct tool_calls_options o = hermes;
    o.format = TOOL_FORMAT_LLAMA;
    CHECK_ALL(&o, cases);
}

TEST(ToolCalls, MistralListsItsCalls) {
    static const struct parse_case cases[] = {
        {"[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": 1}}]", "@f({\"a\": 1})"},
        {"[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}, \"id\": \"123456789\"},\n"
         "{\"name\": \"g\", \"arguments\": {}} ] ",
         "@f({})@g({})"},
        {"Sure: [TOOL_CALLS] {\"name\": \"f\", \"arguments\": {}}", "Sure: @f({})"},
        {"[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}}] done", "@f({}) done"},
        {"[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}}, ", "@f({})"},
        {"[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}}, x", "@f({}), x"},
        {"[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}} x]", "@f({}) x]"},
        {"[TOOL_CALLS] [", "[TOOL_CALLS] ["},
        {"[TOOL_CALLS] []", "[TOOL_CALLS] []"},
        {"[TOOL_CALLS] [[{", "[TOOL_CALLS] [[{"},
        {"[TOOL_CAL", "[TOOL_CAL"},
        {"[[TOOL_CALLS]{\"name\":\"f\"}", "[@f({})"},
        {"[1, 2]", "[1, 2]"},
    };
    struct tool_calls_options o = hermes;
    o.format = TOOL_FORMAT_MISTRAL;
    CHECK_ALL(&o, cases);
}

TEST(ToolCalls, AnswersThatBeginWithinACallAreRead) {
    struct tool_calls_options o = hermes;
    o.opened = true;
    check(&o, "{\"name\": \"f\", \"arguments\": {}}", "@f({})");
    check(&o, "{\"name\": \"f\", \"arguments\": {}}\n</tool_call>", "@f({})");
    check(&o, "sorry", "sorry");
    o.format = TOOL_FORMAT_MISTRAL;
    check(&o, "{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\", \"arguments\": {}}]",
          "@f({})@g({})");
    o.format = TOOL_FORMAT_LLAMA;
    check(&o, "{\"name\": \"f\", \"parameters\": {}}", "@f({})");
    o.format = TOOL_FORMAT_NONE;
    check(&o, CALL("f", "{}"), CALL("f", "{}"));
}

/* ---- limits ---- */

static void put_nested(struct buffer *b, int32_t depth) {
    buffer_puts(b, "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":");
    for (int32_t i = 0; i < depth; i++)
        buffer_putc(b, '[');
    for (int32_t i = 0; i < depth; i++)
        buffer_putc(b, ']');
    buffer_puts(b, "}}</tool_call>");
}

TEST(ToolCalls, NestingIsBounded) {
    struct buffer text = {0};
    struct tool_calls_options whole = hermes;
    whole.whole = true;
    put_nested(&text, JSON_TEXT_MAX_DEPTH - 2);
    char *got = parse(&whole, text.data, text.len, 0);
    EXPECT_TRUE(got[0] == '@');
    free(got);
    buffer_clear(&text);
    put_nested(&text, 100000);
    got = parse(&whole, text.data, text.len, 0);
    EXPECT_INT_EQ(strlen(got), text.len);
    EXPECT_MEM_EQ(got, text.data, text.len);
    free(got);
    buffer_deinit(&text);
}

TEST(ToolCalls, WhatIsHeldBackIsBounded) {
    struct buffer text = {0};
    buffer_puts(&text, "<tool_call>{\"arguments\":{\"a\":\"");
    for (int i = 0; i < TOOL_CALL_MAX_BYTES + 100; i++)
        buffer_putc(&text, "é"[i % 2]);
    buffer_puts(&text, "\"},\"name\":\"f\"}</tool_call>");
    char *got = parse(&hermes, text.data, text.len, 0);
    EXPECT_INT_EQ(strlen(got), text.len);
    EXPECT_MEM_EQ(got, text.data, text.len);
    free(got);
    buffer_deinit(&text);
}

TEST(ToolCalls, CallsAreCounted) {
    struct buffer text = {0};
    for (int i = 0; i < TOOL_CALLS_MAX + 2; i++)
        buffer_puts(&text, CALL("f", "{}"));
    char *got = parse(&hermes, text.data, text.len, 0);
    EXPECT_INT_EQ(strlen(got), TOOL_CALLS_MAX * strlen("@f({})") + 2 * strlen(CALL("f", "{}")));
    free(got);
    buffer_deinit(&text);
}

TEST(ToolCalls, IdsAreOfTheSeedAlone) {
    char a[TOOL_CALL_ID_SIZE], b[TOOL_CALL_ID_SIZE];
    tool_call_id(1, 0, a);
    tool_call_id(1, 0, b);
    EXPECT_STR_EQ(a, b);
    EXPECT_INT_EQ(strlen(a), 29);
    EXPECT_TRUE(strncmp(a, "call_", 5) == 0);
    EXPECT_INT_EQ(strspn(a + 5, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"),
                  24);
    tool_call_id(1, 1, b);
    EXPECT_TRUE(strcmp(a + 20, b + 20) != 0); /* the last nine, which Mistral sees */
    tool_call_id(2, 0, b);
    EXPECT_TRUE(strcmp(a + 20, b + 20) != 0);
}
