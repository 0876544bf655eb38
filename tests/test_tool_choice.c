/* Requests with tools: what is refused, how prompts of forced calls end, and their schemas. */
#include "host/tool_choice.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/tokenizer_internal.h"
#include "tests/shim.h"

static const struct chat_message hello = {.role = "user", .content = "Hi", .content_len = 2};

#define PARAMETERS(s) .parameters = (s), .parameters_len = sizeof(s) - 1

static const struct chat_tool two[] = {
    {.name = "f",
     PARAMETERS(
         "{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#/$defs/A\"},"
         "\"properties\":{\"$ref\":\"#/$defs\"},\"default\":{\"$ref\":\"#\"}},\"$defs\":{\"A\":{\"type\":\"integer\"}},"
         "\"default\":{\"$ref\":\"#/x\"}}")},
    {.name = "quit"},
};

static struct chat_request request_of(const struct chat_tool *tools, size_t count,
                                      enum tool_choice choice, const char *name) {
    return (struct chat_request){.messages = &hello,
                                 .num_messages = 1,
                                 .tools = tools,
                                 .num_tools = count,
                                 .tool_choice = choice,
                                 .tool_name = name};
}

/* The prompt, NUL-terminated, or the message of the error; free it. */
static char *render(const char *template, const struct chat_request *request) {
    struct chat_prompt prompt = {0};
    struct error error = {0};
    int rc =
        chat_template_render(chat_template_find(template), "", "</s>", request, &prompt, &error);
    if (rc != 0) {
        EXPECT_INT_EQ(rc, ERR_INVALID_REQUEST);
        buffer_clear(&prompt.text);
        buffer_puts(&prompt.text, error.text);
    }
    buffer_putc(&prompt.text, '\0');
    free(prompt.contents);
    return prompt.text.data;
}

static void expect_render(const char *template, const struct chat_request *request,
                          const char *part) {
    char *got = render(template, request);
    if (!strstr(got, part))
        FAIL("%s: %s\n not in: %s", template, part, got);
    free(got);
}

static bool ends_in(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

TEST(ToolChoice, ThePromptOfAForcedCallEndsInItsBeginning) {
    static const char *const ends[][2] = {
        {"qwen2.5", "<|im_start|>assistant\n<tool_call>\n"},
        {"qwen3", "<|im_start|>assistant\n<tool_call>\n"},
        {"llama3.1", "<|start_header_id|>assistant<|end_header_id|>\n\n"},
        {"mistral-v3", "[INST] Hi[/INST][TOOL_CALLS] ["},
    };
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        struct chat_request r = request_of(two, 2, TOOL_CHOICE_REQUIRED, NULL);
        char *got = render(ends[i][0], &r);
        if (!ends_in(got, ends[i][1]))
            FAIL("%s: %s", ends[i][0], got);
        free(got);
        r = request_of(two, 2, TOOL_CHOICE_NAMED, "quit");
        got = render(ends[i][0], &r);
        EXPECT_TRUE(ends_in(got, ends[i][1]));
        free(got);
    }
}

TEST(ToolChoice, AnAnswerWithoutThoughtsBeginsBehindEmptyOnes) {
    static const char thoughts[] = "<|im_start|>assistant\n<think>\n\n</think>\n\n";
    struct chat_request r = request_of(NULL, 0, TOOL_CHOICE_NONE, NULL);
    r.no_thinking = true;
    char *got = render("qwen3", &r);
    EXPECT_TRUE(ends_in(got, thoughts));
    free(got);
    got = render("qwen3-2507", &r); /* which has none */
    EXPECT_TRUE(ends_in(got, "<|im_start|>assistant\n"));
    free(got);
    r = request_of(two, 2, TOOL_CHOICE_REQUIRED, NULL);
    r.no_thinking = true;
    got = render("qwen3", &r);
    EXPECT_TRUE(ends_in(got, "</think>\n\n<tool_call>\n"));
    free(got);
}

TEST(ToolChoice, NoneShowsNoTools) {
    static const char *const names[] = {"qwen2.5", "qwen3", "llama3.1", "mistral-v3", "chatml"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct chat_request r = request_of(two, 2, TOOL_CHOICE_NONE, NULL);
        char *with = render(names[i], &r);
        r.num_tools = 0;
        char *without = render(names[i], &r);
        EXPECT_STR_EQ(with, without);
        free(with);
        free(without);
    }
}

TEST(ToolChoice, RequestsThatCannotBeAreRefused) {
    static const struct chat_tool bad_name[] = {{.name = "f"}, {.name = "a b"}};
    static const struct chat_tool bad_json = {.name = "f", PARAMETERS("{\"a\":}")};
    static const struct chat_tool cut_json = {.name = "f", PARAMETERS("{\"a\":1")};
    struct chat_request r = request_of(two, 2, TOOL_CHOICE_AUTO, NULL);
    expect_render("chatml", &r,
                  "tools: the model's chat template, chatml, has no place for tools "
                  "(those that have: qwen2.5, qwen3, qwen3-2507, llama3.1, "
                  "mistral-v3)");
    r = request_of(two, 0, TOOL_CHOICE_REQUIRED, NULL);
    expect_render("qwen3", &r, "tool_choice: required, but there are no tools");
    r = request_of(two, 2, TOOL_CHOICE_NAMED, "g");
    expect_render("qwen3", &r, "tool_choice: g is not the name of one of the 2 tools");
    r.tool_name = NULL;
    expect_render("qwen3", &r, "tool_choice: nothing is not the name");
    r = request_of(bad_name, 2, TOOL_CHOICE_AUTO, NULL);
    expect_render("qwen3", &r, "tools[1].function.name: expected");
    r = request_of(&bad_json, 1, TOOL_CHOICE_AUTO, NULL);
    expect_render("mistral-v3", &r, "tools[0].function.parameters: not valid JSON at byte 5 of 6");
    r = request_of(&cut_json, 1, TOOL_CHOICE_AUTO, NULL);
    expect_render("llama3.1", &r, "tools[0].function.parameters: JSON that ends within a value");
}

TEST(ToolChoice, CallsAndResultsThatCannotBeAreRefused) {
    static const struct chat_tool_call call = {
        .id = "short", .name = "f", .arguments = "[1]", .arguments_len = 3};
    static const struct chat_tool_call two_calls[] = {{.id = "123456789", .name = "f"},
                                                      {.id = "12345678-", .name = "f"}};
    struct chat_message m[3] = {hello,
                                {.role = "assistant", .tool_calls = &call, .num_tool_calls = 1},
                                {.role = "tool", .content = "x", .content_len = 1}};
    struct chat_request r = {.messages = m, .num_messages = 3};
    expect_render("chatml", &r, "messages[1].tool_calls: the model's chat template, chatml, has");
    expect_render("qwen3", &r,
                  "messages[1].tool_calls[0].function.arguments: expected the text of a JSON");
    m[1].tool_calls = two_calls;
    m[1].num_tool_calls = 2;
    expect_render("llama3.1", &r, "messages[1].tool_calls: this model's chat template takes one");
    expect_render("mistral-v3", &r, "messages[1].tool_calls[1].id: expected an id that ends in 9");
    m[1].num_tool_calls = 1;
    expect_render("mistral-v3", &r, "messages[2].tool_call_id: expected an id");
    m[2].tool_call_id = "call_123456789";
    expect_render("mistral-v3", &r, "[TOOL_RESULTS] {\"content\": x, \"call_id\": \"123456789\"}");
    r.num_messages = 2;
    expect_render("mistral-v3", &r, "messages: the last one must be the user's or a tool's");
    m[0].num_tool_calls = 1;
    m[0].tool_calls = two_calls;
    expect_render("qwen3", &r, "messages[0].tool_calls: only an assistant's");
    m[0].num_tool_calls = 0;
    m[0].content = NULL;
    expect_render("qwen3", &r, "messages[0].content: expected a string");
    m[0] = (struct chat_message){.role = "tool", .content = "x", .content_len = 1};
    expect_render("olmoe", &r, "messages[0].role: the model's chat template, olmoe, has no place");
    m[0].role = "developer";
    expect_render("qwen3", &r, "<|im_start|>system\nx<|im_end|>\n");
    expect_render("chatml", &(struct chat_request){.messages = m, .num_messages = 1},
                  "<|im_start|>system\nx<|im_end|>\n");
}

/* ---- schemas ---- */

static void expect_schema(const char *template, const struct chat_request *request,
                          const char *expected) {
    struct error error = {0};
    json_t *schema = NULL;
    int rc = tool_choice_schema(chat_template_find(template), request, &schema, &error);
    char *text = rc == 0 ? json_dumps(schema, JSON_COMPACT) : strdup(error.text);
    EXPECT_INT_EQ(rc, rc == 0 ? 0 : ERR_INVALID_REQUEST);
    EXPECT_STR_EQ(text, expected);
    json_decref(schema);
    free(text);
}

#define CALL_OF(name, key, arguments)                                                              \
    "{\"type\":\"object\",\"properties\":{\"name\":{\"const\":\"" name "\"},\"" key                \
    "\":" arguments "},\"required\":[\"name\",\"" key "\"],\"additionalProperties\":false}"
#define NO_ARGUMENTS "{\"type\":\"object\",\"properties\":{},\"additionalProperties\":false}"
#define ARGUMENTS_AT(place)                                                                        \
    "{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#" place "/$defs/A\"},\"properties\":" \
    "{\"$ref\":\"#" place "/$defs\"},\"default\":{\"$ref\":\"#" place "\"}},\"$defs\":{\"A\":"     \
    "{\"type\":\"integer\"}},\"default\":{\"$ref\":\"#/x\"}}"

TEST(ToolChoice, SchemasDescribeTheCallOfATool) {
    struct chat_request r = request_of(two, 2, TOOL_CHOICE_NAMED, "quit");
    expect_schema("qwen3", &r, CALL_OF("quit", "arguments", NO_ARGUMENTS));
    expect_schema("mistral-v3", &r, CALL_OF("quit", "arguments", NO_ARGUMENTS));
    expect_schema("llama3.1", &r, CALL_OF("quit", "parameters", NO_ARGUMENTS));
    r.tool_name = "f";
    expect_schema("qwen3", &r, CALL_OF("f", "arguments", ARGUMENTS_AT("/properties/arguments")));
    r = request_of(two, 1, TOOL_CHOICE_REQUIRED, NULL);
    expect_schema("qwen3", &r, CALL_OF("f", "arguments", ARGUMENTS_AT("/properties/arguments")));
    r.num_tools = 2;
    expect_schema(
        "llama3.1", &r,
        "{\"anyOf\":[" CALL_OF(
            "f", "parameters",
            ARGUMENTS_AT("/anyOf/0/properties/parameters")) "," CALL_OF("quit", "parameters",
                                                                        NO_ARGUMENTS) "]}");
}

TEST(ToolChoice, SchemasOfWhatIsNoObjectAreRefused) {
    static const struct chat_tool tools[] = {
        {.name = "a", PARAMETERS("{}")},
        {.name = "b", PARAMETERS("true")},
        {.name = "c", PARAMETERS("{\"type\":\"string\"}")},
        {.name = "d", PARAMETERS("{\"type\":")},
    };
    struct chat_request r = request_of(tools, 4, TOOL_CHOICE_NAMED, "a");
    expect_schema("qwen3", &r, CALL_OF("a", "arguments", "{\"type\":\"object\"}"));
    r.tool_name = "b";
    expect_schema("qwen3", &r,
                  "tools[1].function.parameters: expected a JSON schema of type object");
    r.tool_name = "c";
    expect_schema("qwen3", &r,
                  "tools[2].function.parameters: expected a JSON schema of type object");
    r.tool_name = "d";
    expect_schema("qwen3", &r,
                  "tools[3].function.parameters: not valid JSON: unexpected token near end of file "
                  "(line 1, column 8)");
    r.tool_name = "e";
    expect_schema("qwen3", &r, "tool_choice: none of the 4 tools");
    r.tool_name = NULL;
    expect_schema("qwen3", &r, "tool_choice: none of the 4 tools");
    r.tool_name = "a";
    expect_schema("chatml", &r, "tool_choice: no call is required");
    r.tool_choice = TOOL_CHOICE_AUTO;
    expect_schema("qwen3", &r, "tool_choice: no call is required");
}

/* ---- the tokens of markers ---- */

static struct tokenizer *load_tokenizer(const char *kind) {
    char dir[512];
    struct error error = {0};
    struct tokenizer *t = NULL;
    snprintf(dir, sizeof dir, "%s/tokenizers/%s", shim_data_dir(), kind);
    if (tokenizer_load(dir, &t, &error) != 0)
        FAIL("%s", error.text);
    return t;
}

/* Marks as published: special in Llama's tokenizer and Mistral's, not in Qwen's. */
TEST(ToolChoice, TheMarkOfACallIsFoundWhereItIsSpecial) {
    static const char *const json[] = {
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"decoder\":{\"type\":"
        "\"ByteLevel\"},\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
        "\"added_tokens\":[{\"id\":1,\"content\":\"[TOOL_CALLS]\",\"special\":true},"
        "{\"id\":2,\"content\":\"<|python_tag|>\",\"special\":true},"
        "{\"id\":3,\"content\":\"<tool_call>\",\"special\":false}]}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"decoder\":{\"type\":"
        "\"ByteLevel\"},\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
        "\"added_tokens\":[{\"id\":1,\"content\":\"[TOOL_CALLS]\",\"special\":false}]}"};
    static const struct tokenizer_config none = {0};
    for (int i = 0; i < 2; i++) {
        struct tokenizer *t;
        struct error e = {0};
        struct buffer text = {0};
        struct detok d;
        ASSERT_INT_EQ(tokenizer_load_json_text(json[i], strlen(json[i]), "test", &none, &t, &e), 0);
        int32_t mistral = chat_template_kept_token(chat_template_find("mistral-v3"), t);
        EXPECT_INT_EQ(mistral, i == 0 ? 1 : -1);
        EXPECT_INT_EQ(chat_template_kept_token(chat_template_find("llama3.1"), t), i == 0 ? 2 : -1);
        EXPECT_INT_EQ(chat_template_kept_token(chat_template_find("qwen3"), t), -1);
        detok_init(&d, t);
        d.kept_token = mistral;
        detok_push(&d, 1, &text);
        detok_push(&d, i == 0 ? 2 : 0, &text);
        buffer_putc(&text, '\0');
        EXPECT_STR_EQ(text.data, i == 0 ? "[TOOL_CALLS]" : "[TOOL_CALLS]a");
        buffer_deinit(&text);
        tokenizer_free(t);
    }
}

/* A special token is left out of the text unless it is the one to keep; others (as Qwen's
 * <tool_call>, here <think>) are shown anyway. */
TEST(ToolChoice, OneSpecialTokenCanBeKept) {
    struct tokenizer *t = load_tokenizer("qwen2");
    struct token_list ids = {0};
    struct detok d;
    struct buffer text = {0};
    ASSERT_TRUE(t != NULL);
    tokenizer_encode(t, "<|im_start|>a<think><|im_end|>", 30, TOKENIZER_PARSE_SPECIAL, &ids);
    for (int keep = 0; keep < 2; keep++) {
        buffer_clear(&text);
        detok_init(&d, t);
        if (keep)
            d.kept_token = ids.ids[0];
        for (size_t i = 0; i < ids.len; i++)
            detok_push(&d, ids.ids[i], &text);
        detok_flush(&d, &text);
        buffer_putc(&text, '\0');
        EXPECT_STR_EQ(text.data, keep ? "<|im_start|>a<think>" : "a<think>");
    }
    /* No token, or none that is special: nothing to keep. */
    EXPECT_INT_EQ(chat_template_kept_token(chat_template_find("qwen3"), t), -1);
    EXPECT_INT_EQ(chat_template_kept_token(chat_template_find("mistral-v3"), t), -1);
    EXPECT_INT_EQ(chat_template_kept_token(chat_template_find("chatml"), t), -1);
    free(ids.ids);
    buffer_deinit(&text);
    tokenizer_free(t);
}
