/* Answers with calls of tools, from events to chunks and whole objects, without any engine. */
#include "net/openai_choice.h"

#include <jansson.h>
#include <string.h>

#include "tests/shim.h"

static struct chat_tool tools[] = {{.name = "f"}, {.name = "g"}};
static struct openai_prompt prompt;
static struct openai_request request;
static struct openai_form form;

/* A chat for n answers, with tools in Qwen's format. */
static void begin(int32_t n, bool stream, bool parallel, int32_t logprobs) {
    memset(&request, 0, sizeof request);
    request.kind = OPENAI_CHAT;
    request.prompts = &prompt;
    request.num_prompts = 1;
    request.n = n;
    request.stream = stream;
    request.tools = tools;
    request.num_tools = 2;
    request.parallel_tool_calls = parallel;
    request.params.sampling.logprobs = logprobs;
    request.params.prompt_logprobs = -1;
    form = (struct openai_form){
        .head = {.chat = true, .id = "chatcmpl-1", .created = 5, .model = "demo"},
        .request = &request,
        .tool_format = TOOL_FORMAT_HERMES,
        .seed = 7,
    };
}

static const char answer[] = "Well.<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"x\"}}\n"
                             "</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n"
                             "</tool_call>";

/* Piece i of the answer, of `size` bytes; false: it was the last one. */
static bool event_of(struct engine_event *e, size_t i, size_t size, bool logprobs) {
    size_t len = sizeof answer - 1, from = i * size;
    memset(e, 0, sizeof *e);
    e->kind = from + size < len ? EVENT_TOKEN : EVENT_DONE;
    e->text = answer + from;
    e->text_len = from + size < len ? size : len - from;
    e->finish_reason = FINISH_STOP;
    e->token = (int32_t)i;
    e->has_logprobs = logprobs && e->kind == EVENT_TOKEN;
    e->logprobs.logprob = -0.5f;
    return e->kind == EVENT_TOKEN;
}

static json_t *load(const char *s, size_t len) {
    json_t *doc = json_loadb(s, len, JSON_REJECT_DUPLICATES, NULL);
    if (!doc)
        FAIL("no JSON: %.*s", (int)len, s);
    return doc;
}

/* What chunks or an object say of one choice. */
struct said {
    char content[256], names[64], arguments[2][256], ids[2][64], reason[32];
    int calls, logprobs;
};

static void add(char *to, size_t size, json_t *text) {
    const char *s = json_string_value(text);
    strncat(to, s ? s : "", size - strlen(to) - 1);
}

static void take_calls(struct said *s, json_t *calls) {
    size_t i;
    json_t *call;
    json_array_foreach(calls, i, call) {
        json_t *function = json_object_get(call, "function"), *name, *index;
        index = json_object_get(call, "index");
        size_t k = index ? (size_t)json_integer_value(index) : i;
        if (!EXPECT_TRUE(k < 2))
            return;
        if ((name = json_object_get(function, "name"))) {
            add(s->names, sizeof s->names, name);
            add(s->ids[k], sizeof s->ids[k], json_object_get(call, "id"));
            s->calls++;
        }
        add(s->arguments[k], sizeof s->arguments[k], json_object_get(function, "arguments"));
    }
}

/* A choice of a chunk or of an object, to what was said of its index. */
static void take_choice(struct said *all, json_t *choice) {
    json_t *message = json_object_get(choice, "message");
    json_t *at = message ? message : json_object_get(choice, "delta");
    struct said *s = &all[json_integer_value(json_object_get(choice, "index"))];
    add(s->content, sizeof s->content, json_object_get(at, "content"));
    take_calls(s, json_object_get(at, "tool_calls"));
    json_t *logprobs = json_object_get(choice, "logprobs");
    s->logprobs += (int)json_array_size(json_object_get(logprobs, "content"));
    add(s->reason, sizeof s->reason, json_object_get(choice, "finish_reason"));
}

static void take_chunks(struct said *all, struct buffer *out) {
    for (char *end; out->len && (end = memmem(out->data, out->len, "\n\n", 2));) {
        size_t len = (size_t)(end - out->data);
        json_t *doc = load(out->data + 6, len - 6);
        take_choice(all, json_array_get(json_object_get(doc, "choices"), 0));
        json_decref(doc);
        buffer_consume(out, len + 2);
    }
    EXPECT_INT_EQ((int)out->len, 0);
}

/* Feeds the answer in pieces of `size` bytes to two choices in turn. */
static void stream_two(struct said said[2], size_t size, bool logprobs) {
    struct openai_choice choices[2] = {0};
    struct buffer out = {0};
    struct engine_event e;
    for (int32_t i = 0; i < 2; i++)
        openai_choice_init(&choices[i], &form, i);
    for (size_t k = 0, more = 1; more; k++) {
        more = event_of(&e, k, size, logprobs);
        for (int32_t i = 0; i < 2; i++)
            openai_choice_stream(&choices[i], &e, &out);
    }
    take_chunks(said, &out);
    for (int32_t i = 0; i < 2; i++)
        openai_choice_deinit(&choices[i]);
    buffer_deinit(&out);
}

static void collect_two(struct said said[2], size_t size, bool logprobs) {
    struct openai_choice choices[2] = {0};
    struct buffer out = {0};
    struct engine_event e;
    for (int32_t i = 0; i < 2; i++)
        openai_choice_init(&choices[i], &form, i);
    for (size_t k = 0, more = 1; more; k++) {
        more = event_of(&e, k, size, logprobs);
        for (int32_t i = 0; i < 2; i++)
            openai_choice_collect(&choices[i], &e);
    }
    openai_begin(&out, &form.head);
    for (int32_t i = 0; i < 2; i++)
        openai_choice_put(&choices[i], &choices[0], &out);
    buffer_puts(&out, "]}");
    json_t *doc = load(out.data, out.len);
    for (size_t i = 0; i < 2; i++)
        take_choice(said, json_array_get(json_object_get(doc, "choices"), i));
    json_decref(doc);
    for (int32_t i = 0; i < 2; i++)
        openai_choice_deinit(&choices[i]);
    buffer_deinit(&out);
}

static void expect_said(const struct said *s, int calls, int logprobs) {
    EXPECT_STR_EQ(s->content, "Well.");
    EXPECT_STR_EQ(s->reason, "tool_calls");
    EXPECT_STR_EQ(s->names, calls == 2 ? "fg" : "f");
    EXPECT_STR_EQ(s->arguments[0], "{\"a\": \"x\"}");
    EXPECT_STR_EQ(s->arguments[1], calls == 2 ? "{}" : "");
    EXPECT_INT_EQ(s->calls, calls);
    EXPECT_INT_EQ(s->logprobs, logprobs);
    EXPECT_TRUE(*s->ids[0] && strcmp(s->ids[0], s->ids[1]));
}

TEST(OpenaiChoice, CallsAreTheSameWholeAndInChunksOfAnySize) {
    for (size_t size = 1; size <= sizeof answer; size += 3) {
        struct said streamed[2] = {0}, whole[2] = {0};
        begin(2, true, true, -1);
        stream_two(streamed, size, false);
        begin(2, false, true, -1);
        collect_two(whole, size, false);
        for (int i = 0; i < 2; i++) {
            expect_said(&streamed[i], 2, 0);
            expect_said(&whole[i], 2, 0);
            EXPECT_STR_EQ(streamed[i].ids[1], whole[i].ids[1]);
        }
        EXPECT_TRUE(strcmp(whole[0].ids[0], whole[1].ids[0]));
    }
}

TEST(OpenaiChoice, OnlyTheFirstOfSeveralCallsIsGivenWhereOneIsWanted) {
    struct said streamed[2] = {0}, whole[2] = {0};
    begin(2, true, false, -1);
    stream_two(streamed, 5, false);
    begin(2, false, false, -1);
    collect_two(whole, 5, false);
    expect_said(&streamed[1], 1, 0);
    expect_said(&whole[1], 1, 0);
}

/* They belong to tokens, whatever those turn out to be: one for each event but the end. */
TEST(OpenaiChoice, EveryTokenOfACallHasItsLogprobs) {
    struct said streamed[2] = {0}, whole[2] = {0};
    int tokens = (int)((sizeof answer - 1 + 4) / 5) - 1;
    begin(2, true, true, 0);
    stream_two(streamed, 5, true);
    begin(2, false, true, 0);
    collect_two(whole, 5, true);
    expect_said(&streamed[0], 2, tokens);
    expect_said(&whole[0], 2, tokens);
}
