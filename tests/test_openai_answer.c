/* Answers of the OpenAI-compatible API, written without any connection. */
#include <jansson.h>
#include <string.h>

#include "net/openai_answer.h"
#include "tests/shim.h"

static const struct openai_head chat = {true, "chatcmpl-1", 5, "de\"mo", NULL};
static const struct openai_head text = {false, "cmpl-1", 5, "demo", NULL};

static const struct buffer none, x = {(char[]){'x'}, 1, 1};

static void check_json(const struct buffer *b, const char *want) {
    json_t *got = json_loadb(b->data, b->len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
    json_t *right = json_loads(want, JSON_ALLOW_NUL, NULL);
    if (!got || !right || !json_equal(got, right))
        FAIL("%.*s\ninstead of\n%s", (int)b->len, b->data, want);
    json_decref(got);
    json_decref(right);
}

/* Takes "data: {...}\n\n" off the front of b, the JSON to `event`. */
static bool next_event(struct buffer *b, struct buffer *event) {
    char *end = b->len ? memmem(b->data, b->len, "\n\n", 2) : NULL;
    buffer_clear(event);
    if (!end || strncmp(b->data, "data: ", 6))
        return false;
    buffer_append(event, b->data + 6, (size_t)(end - b->data) - 6);
    buffer_consume(b, (size_t)(end - b->data) + 2);
    return !memchr(event->data, '\n', event->len) && !memchr(event->data, '\r', event->len);
}

TEST(OpenaiAnswer, AWholeChatCompletion) {
    struct buffer out = {0};
    const struct openai_usage usage = {3, 4, 2};
    openai_begin(&out, &chat);
    const struct buffer odd = {(char[]){"a\n\"\0b"}, 5, 5};
    openai_put_choice(&out, &chat, 0, &odd, &none, NULL, "stop");
    openai_put_choice(&out, &chat, 1, &none, &none, NULL, "length");
    openai_end(&out, &usage);
    check_json(
        &out, "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":5,"
              "\"model\":\"de\\\"mo\",\"choices\":["
              "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"a\\n\\\"\\u0000b\","
              "\"refusal\":null},"
              "\"logprobs\":null,\"finish_reason\":\"stop\"},"
              "{\"index\":1,\"message\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null},"
              "\"logprobs\":null,\"finish_reason\":\"length\"}],"
              "\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4,\"total_tokens\":7,"
              "\"prompt_tokens_details\":{\"cached_tokens\":2}}}");
    buffer_deinit(&out);
}

TEST(OpenaiAnswer, AStreamOfEvents) {
    struct buffer out = {0}, event = {0};
    const struct openai_usage usage = {3, 4, 0};
#define HEAD                                                                                       \
    "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":5,\"model\":"         \
    "\"de\\\"mo\",\"choices\":["
    openai_chunk_role(&out, &chat, 2, true);
    openai_chunk_text(&out, &chat, 2, "a\r\n\n\xff", 5, NULL, true);
    openai_chunk_end(&out, &chat, 2, "stop", true);
    openai_chunk_usage(&out, &chat, &usage);
    openai_chunk_done(&out);
    ASSERT_TRUE(next_event(&out, &event));
    check_json(&event, HEAD "{\"index\":2,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                            "\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}");
    ASSERT_TRUE(next_event(&out, &event));
    check_json(&event, HEAD "{\"index\":2,\"delta\":{\"content\":\"a\\r\\n\\n\\ufffd\"},"
                            "\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}");
    ASSERT_TRUE(next_event(&out, &event));
    check_json(&event, HEAD "{\"index\":2,\"delta\":{},\"logprobs\":null,"
                            "\"finish_reason\":\"stop\"}],\"usage\":null}");
    ASSERT_TRUE(next_event(&out, &event));
    check_json(&event, HEAD "],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4,"
                            "\"total_tokens\":7,\"prompt_tokens_details\":{\"cached_tokens\":0}}}");
    ASSERT_TRUE(next_event(&out, &event));
    EXPECT_TRUE(event.len == 6 && !memcmp(event.data, "[DONE]", 6));
    EXPECT_INT_EQ((int)out.len, 0);
    buffer_deinit(&out);
    buffer_deinit(&event);
}

/* ---- logprobs: without a tokenizer a token's text is its id ---------------------------------- */

static const struct logprob tops[] = {{7, -0.5f}, {8, -1e9f}};
static const struct token_logprobs best = {-0.5f, 2, tops};

TEST(OpenaiAnswer, LogprobsOfAChat) {
    struct buffer out = {0};
    struct openai_logprobs l = {0};
    openai_logprobs_add(&l, &chat, 7, &best);
    openai_begin(&out, &chat);
    openai_put_choice(&out, &chat, 0, &x, &none, &l, NULL);
    buffer_puts(&out, "]}");
#define BYTES(digit) "\"bytes\":[116,111,107,101,110,95,105,100,58," digit "]"
    check_json(
        &out,
        "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":5,"
        "\"model\":\"de\\\"mo\",\"choices\":[{\"index\":0,\"message\":"
        "{\"role\":\"assistant\",\"content\":\"x\",\"refusal\":null},\"logprobs\":{\"content\":["
        "{\"token\":\"token_id:7\",\"logprob\":-0.5," BYTES(
            "55") ",\"top_logprobs\":["
                  "{\"token\":\"token_id:7\",\"logprob\":-0.5," BYTES(
                      "55") "},"
                            "{\"token\":\"token_id:8\",\"logprob\":-9999," BYTES(
                                "56") "}]}],"
                                      "\"refusal\":null},\"finish_reason\":null}]}");
    buffer_deinit(&out);
    openai_logprobs_deinit(&l);
}

TEST(OpenaiAnswer, LogprobsOfACompletionWithItsPrompt) {
    struct buffer out = {0};
    struct openai_logprobs l = {0}, answer = {.offset = 10};
    const int32_t prompt = 3;
    openai_logprobs_add(&l, &text, prompt, NULL);
    EXPECT_INT_EQ((int)openai_num_characters(&text, &prompt, 1), 10);
    openai_logprobs_add(&answer, &text, 7, &best);
    openai_logprobs_add(&answer, &text, 12, &best);
    openai_logprobs_join(&l, &answer);
    openai_begin(&out, &text);
    openai_put_choice(&out, &text, 0, &x, &none, &l, "stop");
    buffer_puts(&out, "]}");
    check_json(
        &out,
        "{\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"created\":5,\"model\":\"demo\","
        "\"choices\":[{\"index\":0,\"text\":\"x\",\"logprobs\":{\"tokens\":[\"token_id:3\","
        "\"token_id:7\",\"token_id:12\"],\"token_logprobs\":[null,-0.5,-0.5],"
        "\"top_logprobs\":[null,{\"token_id:7\":-0.5,\"token_id:8\":-9999},"
        "{\"token_id:7\":-0.5,\"token_id:8\":-9999,\"token_id:12\":-0.5}],\"text_offset\":[0,10,20]},"
        "\"finish_reason\":\"stop\"}]}");
    buffer_deinit(&out);
    openai_logprobs_deinit(&l);
    openai_logprobs_deinit(&answer);
}

TEST(OpenaiAnswer, TokensOfTheSameTextAreNamedOnce) {
    struct buffer out = {0};
    struct openai_logprobs l = {0};
    static const struct logprob same[] = {{7, -0.5f}, {7, -1}, {77, -2}};
    static const struct token_logprobs p = {-0.5f, 3, same};
    openai_logprobs_add(&l, &text, 7, &p);
    buffer_append(&out, l.top.data, l.top.len);
    check_json(&out, "{\"token_id:7\":-0.5,\"token_id:77\":-2}");
    buffer_deinit(&out);
    openai_logprobs_deinit(&l);
}

/* The token that was drawn is there whether it is likely or not, and with no alternatives at all.
 */
TEST(OpenaiAnswer, TheTopLogprobsOfACompletionHoldItsToken) {
    struct buffer out = {0};
    struct openai_logprobs l = {0};
    static const struct logprob two[] = {{7, -0.5f}, {77, -1}};
    openai_logprobs_add(&l, &text, 8, &(struct token_logprobs){-3, 2, two});
    openai_logprobs_add(&l, &text, 8, &(struct token_logprobs){-3, 0, two});
    buffer_putc(&out, '[');
    buffer_append(&out, l.top.data, l.top.len);
    buffer_putc(&out, ']');
    check_json(&out, "[{\"token_id:7\":-0.5,\"token_id:77\":-1,\"token_id:8\":-3},"
                     "{\"token_id:8\":-3}]");
    buffer_deinit(&out);
    openai_logprobs_deinit(&l);
}
