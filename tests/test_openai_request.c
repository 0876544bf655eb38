/* Bodies of the OpenAI-compatible API, parsed without any connection. */
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "net/openai_request.h"
#include "tests/shim.h"

static struct request_params defaults;
static const struct openai_context context = {&defaults, "demo", 100};

static int parse(enum openai_kind kind, const char *body, struct openai_request *r,
                 struct field_error *e) {
    request_params_default(&defaults);
    defaults.max_tokens = 77;
    memset(r, 0, sizeof *r);
    return openai_parse(kind, body, strlen(body), &context, r, e);
}

/* ---- what is refused ------------------------------------------------------------------------- */

struct bad {
    enum openai_kind kind;
    const char *body;
    int code;
    const char *param, *words; /* of the message */
};

#define C   OPENAI_COMPLETION
#define M   OPENAI_CHAT
#define T   OPENAI_TOKENIZE
#define D   OPENAI_DETOKENIZE
#define INV ERR_INVALID_REQUEST
#define MSG "\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]"

static const struct bad bad[] = {
    {C, "", ERR_INVALID_JSON, "", "the body is empty"},
    {C, " ", ERR_INVALID_JSON, "", "not valid JSON"},
    {C, "{", ERR_INVALID_JSON, "", "not valid JSON"},
    {C, "{} {}", ERR_INVALID_JSON, "", "not valid JSON"},
    {C, "[]", INV, "", "must be a JSON object"},
    {C, "\"prompt\"", ERR_INVALID_JSON, "", "not valid JSON"},
    {C, "{}", INV, "prompt", "missing"},
    {C, "{\"prompt\":null}", INV, "prompt", "missing"},
    {C, "{\"prompt\":7}", INV, "prompt", "a string or an array of token ids"},
    {C, "{\"prompt\":[]}", INV, "prompt", "a string or an array of token ids"},
    {C, "{\"prompt\":[1,\"a\"]}", INV, "prompt[1]", "a token id from 0 to 99"},
    {C, "{\"prompt\":[100]}", INV, "prompt[0]", "a token id from 0 to 99"},
    {C, "{\"prompt\":[-1]}", INV, "prompt[0]", "a token id"},
    {C, "{\"prompt\":[[1],[]]}", INV, "prompt[1]", "a string or an array"},
    {C, "{\"prompt\":[[1],[2,1e3]]}", INV, "prompt[1][1]", "a token id"},
    {C, "{\"prompt\":[\"a\",3]}", INV, "prompt[1]", "a string or an array"},
    {C, "{\"prompt\":\"a\",\"prompt\":\"b\"}", INV, "", "given twice"},
    {C, "{\"prompt\":\"a\",\"model\":\"other\"}", ERR_NOT_FOUND, "model", "does not exist"},
    {C, "{\"prompt\":\"a\",\"model\":3}", INV, "model", "a string"},
    {C, "{\"prompt\":\"a\",\"temprature\":1}", INV, "temprature", "did you mean temperature?"},
    {C, "{\"prompt\":\"a\",\"messages\":[]}", INV, "messages", "not a field of a completion"},
    {M, "{" MSG ",\"prompt\":\"a\"}", INV, "prompt", "not a field of a chat completion"},
    {C, "{\"prompt\":\"a\",\"n\":0}", INV, "n", "from 1 to 128"},
    {C, "{\"prompt\":\"a\",\"n\":129}", INV, "n", "from 1 to 128"},
    {C, "{\"prompt\":[\"a\",\"b\"],\"n\":65}", INV, "n", "more than 128"},
    {C, "{\"prompt\":\"a\",\"n\":2,\"best_of\":3}", INV, "best_of", "not supported"},
    {C, "{\"prompt\":\"a\",\"suffix\":\"b\"}", INV, "suffix", "not supported"},
    {M, "{" MSG ",\"modalities\":[\"text\",\"audio\"]}", INV, "modalities", "other kinds"},
    {M, "{" MSG ",\"chat_template_kwargs\":{\"enable_thinkin\":true}}", INV,
     "chat_template_kwargs.enable_thinkin", "did you mean enable_thinking?"},
    {M, "{" MSG ",\"chat_template_kwargs\":{\"enable_thinking\":0}}", INV,
     "chat_template_kwargs.enable_thinking", "true or false"},
    {M, "{" MSG ",\"reasoning_effort\":\"low\"}", INV, "reasoning_effort", "unknown field"},
    {T, "{" MSG ",\"add_generation_prompt\":false}", INV, "add_generation_prompt", "true"},
    {C, "{\"prompt\":\"a\",\"max_tokens\":0}", INV, "max_tokens", "at least 1"},
    {C, "{\"prompt\":\"a\",\"max_tokens\":-1}", INV, "max_tokens", "from 0"},
    {C, "{\"prompt\":\"a\",\"max_tokens\":2.0}", INV, "max_tokens", "an integer"},
    {C, "{\"prompt\":\"a\",\"max_tokens\":99999999999}", INV, "max_tokens", "an integer"},
    {C, "{\"prompt\":\"a\",\"max_tokens\":123456789012345678901}", INV, "", "does not fit"},
    {C, "{\"prompt\":\"a\",\"max_tokens\":0,\"echo\":true,\"stream\":true}", INV, "max_tokens",
     "nothing to stream"},
    {C, "{\"prompt\":\"a\",\"min_tokens\":9,\"max_tokens\":8}", INV, "min_tokens", "more than"},
    {C, "{\"prompt\":\"a\",\"temperature\":-0.1}", INV, "temperature", "from 0 to 100"},
    {C, "{\"prompt\":\"a\",\"temperature\":\"1\"}", INV, "temperature", "a number"},
    {M, "{" MSG ",\"max_tokens\":0}", INV, "max_tokens", "expected at least 1"},
    {C, "{\"prompt\":\"a\",\"top_p\":-0.1}", INV, "top_p", "from 0 to 1"},
    {C, "{\"prompt\":\"a\",\"min_p\":1.1}", INV, "min_p", "from 0 to 1"},
    {C, "{\"prompt\":\"a\",\"presence_penalty\":3}", INV, "presence_penalty", "from -2 to 2"},
    {C, "{\"prompt\":\"a\",\"stop\":7}", INV, "stop", "a string or an array"},
    {C, "{\"prompt\":\"a\",\"stop\":\"\"}", INV, "stop", "1 to 256 bytes"},
    {C, "{\"prompt\":\"a\",\"stop\":[\"a\",7]}", INV, "stop[1]", "1 to 256 bytes"},
    {C, "{\"prompt\":\"a\",\"stop\":\"\\u0000\"}", INV, "stop", "without NUL"},
    {C, "{\"prompt\":\"a\",\"logprobs\":21}", INV, "logprobs", "from 0 to 20"},
    {C, "{\"prompt\":\"a\",\"logprobs\":true}", INV, "logprobs", "an integer"},
    {C, "{\"prompt\":\"a\",\"logprobs\":1,\"echo\":true,\"stream\":true}", INV, "echo", "streamed"},
    {M, "{" MSG ",\"logprobs\":1}", INV, "logprobs", "true or false"},
    {M, "{" MSG ",\"top_logprobs\":2}", INV, "top_logprobs", "only with"},
    {M, "{" MSG ",\"echo\":true}", INV, "echo", "not a field of a chat completion"},
    {M, "{" MSG ",\"max_completion_tokens\":0}", INV, "max_completion_tokens", "from 1"},
    {C, "{\"prompt\":\"a\",\"logit_bias\":[]}", INV, "logit_bias", "an object"},
    {C, "{\"prompt\":\"a\",\"logit_bias\":{\"100\":1}}", INV, "logit_bias.100", "from 0 to 99"},
    {C, "{\"prompt\":\"a\",\"logit_bias\":{\"-1\":1}}", INV, "logit_bias.-1", "a token id"},
    {C, "{\"prompt\":\"a\",\"logit_bias\":{\"01\":1}}", INV, "logit_bias.01", "a token id"},
    {C, "{\"prompt\":\"a\",\"logit_bias\":{\"1\":101}}", INV, "logit_bias.1", "-100 to 100"},
    {C, "{\"prompt\":\"a\",\"response_format\":3}", INV, "response_format.type", "json_schema"},
    {C, "{\"prompt\":\"a\",\"response_format\":{\"type\":\"xml\"}}", INV, "response_format.type",
     "json_schema"},
    {C, "{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_schema\"}}", INV,
     "response_format.json_schema", "an object"},
    {C,
     "{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":"
     "\"a\"}}}",
     INV, "response_format.json_schema.schema", "a JSON schema"},
    {C,
     "{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":"
     "\"a\",\"schema\":{\"not\":{}}}}}",
     INV, "response_format.json_schema.schema", "not"},
    {C, "{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_object\",\"schema\":{}}}", INV,
     "response_format.schema", "unknown field"},
    {C, "{\"prompt\":\"a\",\"response_format\":{\"type\":\"text\",\"json_schema\":{}}}", INV,
     "response_format.json_schema", "only with"},
    {C,
     "{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":"
     "5,\"schema\":{}}}}",
     INV, "response_format.json_schema.name", "a string"},
    {C,
     "{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"strict\":"
     "\"x\",\"schema\":{}}}}",
     INV, "response_format.json_schema.strict", "true or false"},
    {C,
     "{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"foo\":1,"
     "\"schema\":{}}}}",
     INV, "response_format.json_schema.foo", "foo"},
    {M, "{" MSG ",\"tools\":{}}", INV, "tools", "an array"},
    {M, "{" MSG ",\"tools\":[{}]}", INV, "tools[0]", "function"},
    {M, "{" MSG ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":1}}]}", INV,
     "tools[0].function.name", "a string"},
    {M, "{" MSG ",\"tools\":[{\"type\":5,\"function\":{\"name\":\"f\"}}]}", INV, "tools[0]",
     "function"},
    {M,
     "{" MSG
     ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parametres\":{}}}]}",
     INV, "tools[0].function.parametres", "did you mean parameters?"},
    {M,
     "{" MSG ",\"tools\":[{\"function\":{\"name\":\"f\"}}],\"tool_choice\":{\"type\":\"function\","
     "\"function\":{\"nam\":\"f\"}}}",
     INV, "tool_choice.function.nam", "did you mean name?"},
    {C, "{\"prompt\":\"a\",\"response_format\":{\"type\":\"text\",\"foo\":1}}", INV,
     "response_format.foo", "unknown field"},
    {C,
     "{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":"
     "\"a\",\"schema\":{},\"strikt\":true}}}",
     INV, "response_format.json_schema.strikt", "did you mean strict?"},
    {M, "{" MSG ",\"tool_choice\":\"required\"}", INV, "tool_choice", "there are no tools"},
    {M, "{" MSG ",\"tool_choice\":\"some\"}", INV, "tool_choice", "\"auto\""},
    {M, "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":1}]}]}", INV,
     "messages[0].tool_calls[0]", "function"},
    {C, "{\"prompt\":\"a\",\"stream\":1}", INV, "stream", "true or false"},
    {C, "{\"prompt\":\"a\",\"stream_options\":{\"include_usage\":true}}", INV, "stream_options",
     "only with"},
    {C, "{\"prompt\":\"a\",\"stream\":true,\"stream_options\":{\"include_usages\":true}}", INV,
     "stream_options.include_usages", "did you mean include_usage?"},
    {C, "{\"prompt\":\"a\",\"stream\":true,\"stream_options\":true}", INV, "stream_options",
     "an object"},
    {M, "{}", INV, "messages", "missing"},
    {M, "{\"messages\":[]}", INV, "messages", "an array of 1 to"},
    {M, "{\"messages\":{}}", INV, "messages", "an array of 1 to"},
    {M, "{\"messages\":[7]}", INV, "messages[0]", "an object"},
    {M, "{\"messages\":[{\"role\":\"user\"}]}", INV, "messages[0].content", "a string"},
    {M, "{\"messages\":[{\"content\":\"a\"}]}", INV, "messages[0].role", "a string"},
    {M, "{\"messages\":[{\"role\":3,\"content\":\"a\"}]}", INV, "messages[0].role", "name of a"},
    {M, "{\"messages\":[{\"role\":\"user\",\"content\":3}]}", INV, "messages[0].content",
     "a string or an array of parts"},
    {M, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}", INV,
     "messages[0].content[0]", "other kinds are not supported"},
    {M, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"colour\":1}]}", INV,
     "messages[0].colour", "unknown field"},
    {M, "{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\",\"audio\":{\"id\":\"x\"}}]}", INV,
     "messages[0].audio", "unknown field"},
    {T, "{}", INV, "prompt or messages", "exactly one"},
    {T, "{\"prompt\":\"a\"," MSG "}", INV, "prompt or messages", "exactly one"},
    {T, "{\"prompt\":[1]}", INV, "prompt", "a string"},
    {T, "{\"prompt\":[\"a\",\"b\"]}", INV, "prompt", "one string"},
    {D, "{}", INV, "tokens", "missing"},
    {D, "{\"tokens\":\"a\"}", INV, "tokens", "an array of token ids"},
    {D, "{\"tokens\":[1,100]}", INV, "tokens[1]", "a token id"},
};

TEST(OpenaiRequest, BadBodiesAreRefusedWithTheFieldAndWhatWasExpected) {
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct openai_request r;
        struct field_error e;
        int rc = parse(bad[i].kind, bad[i].body, &r, &e);
        if (rc != bad[i].code || e.code != rc || strcmp(e.param, bad[i].param) ||
            !strstr(e.message, bad[i].words))
            FAIL("%s: %d, param '%s', %s", bad[i].body, rc, e.param, e.message);
        openai_request_deinit(&r);
    }
}

TEST(OpenaiRequest, AMessageNamesAFieldOnlyWhereOneStands) {
    static const char *const cases[][2] = {
        {"messages[2].role: expected x", "messages[2].role"},
        {"tools.x: wrong", "tools.x"},
        {"n: too many", "n"},
        {"prompts of 3 tokens: too many", ""},
        {"no room", ""},
        {"prompt", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct field_error out = {0};
        struct error e = {0};
        error_set(&e, INV, "%s", cases[i][0]);
        EXPECT_INT_EQ(field_error_from(&out, INV, &e), INV);
        EXPECT_STR_EQ(out.param, cases[i][1]);
        EXPECT_STR_EQ(out.message, cases[i][0]);
    }
}

TEST(OpenaiRequest, DeepAndWideDocumentsAreRefusedBeforeTheyAreParsed) {
    enum { N = 100000 };
    char *body = xmalloc(2 * N);
    struct openai_request r;
    struct field_error e;
    memset(body, '[', N);
    body[N] = '\0';
    EXPECT_INT_EQ(parse(C, body, &r, &e), ERR_INVALID_JSON);
    openai_request_deinit(&r);
    for (int i = 0; i < N; i++)
        memcpy(body + i, i % 2 ? "]" : "[", 1);
    EXPECT_INT_EQ(parse(C, body, &r, &e), ERR_INVALID_JSON);
    openai_request_deinit(&r);
    free(body);
}

/* ---- what is taken --------------------------------------------------------------------------- */

TEST(OpenaiRequest, DefaultsAreTheServersOwn) {
    struct openai_request r;
    struct field_error e;
    ASSERT_INT_EQ(parse(C, "{\"prompt\":\"a\\u0000b\",\"user\":\"x\",\"metadata\":{}}", &r, &e), 0);
    EXPECT_INT_EQ(r.num_prompts, 1);
    EXPECT_INT_EQ((int)r.prompts[0].text_len, 3);
    EXPECT_INT_EQ(r.params.max_tokens, 77);
    EXPECT_INT_EQ(r.params.sampling.logprobs, -1);
    EXPECT_INT_EQ(r.n, 1);
    EXPECT_TRUE(!r.stream && !r.echo && !r.include_usage);
    openai_request_deinit(&r);
    ASSERT_INT_EQ(parse(M, "{" MSG ",\"model\":\"demo\"}", &r, &e), 0);
    EXPECT_INT_EQ(r.params.max_tokens, 0); /* what fits */
    EXPECT_INT_EQ((int)r.num_messages, 1);
    EXPECT_INT_EQ(r.num_prompts, 1);
    openai_request_deinit(&r);
}

TEST(OpenaiRequest, EveryFieldArrives) {
    struct openai_request r;
    struct field_error e;
    int rc =
        parse(C,
              "{\"prompt\":[\"a\",\"bc\"],\"n\":3,\"best_of\":3,\"max_tokens\":5,"
              "\"min_tokens\":2,\"temperature\":0.5,\"top_k\":7,\"top_p\":0.25,\"min_p\":0.125,"
              "\"repetition_penalty\":1.5,\"presence_penalty\":-1,\"frequency_penalty\":2,"
              "\"seed\":-3,\"stop\":[\"x\",\"yz\"],\"ignore_eos\":true,\"echo\":true,"
              "\"logprobs\":4}",
              &r, &e);
    const struct request_params *p = &r.params;
    if (rc != 0)
        return FAIL("%s", e.message);
    EXPECT_INT_EQ(r.num_prompts, 2);
    EXPECT_INT_EQ((int)r.prompts[1].text_len, 2);
    EXPECT_INT_EQ(r.n, 3);
    EXPECT_INT_EQ(p->max_tokens, 5);
    EXPECT_INT_EQ(p->min_tokens, 2);
    EXPECT_TRUE(p->sampling.temperature == 0.5f && p->sampling.top_k == 7);
    EXPECT_TRUE(p->sampling.top_p == 0.25f && p->sampling.min_p == 0.125f);
    EXPECT_TRUE(p->sampling.repetition_penalty == 1.5f && p->sampling.presence_penalty == -1);
    EXPECT_TRUE(p->sampling.frequency_penalty == 2 && p->has_seed);
    EXPECT_TRUE(p->sampling.seed == (uint64_t)-3);
    EXPECT_INT_EQ(p->num_stop, 2);
    EXPECT_STR_EQ(p->stop[1], "yz");
    EXPECT_TRUE(p->ignore_eos && r.echo);
    EXPECT_INT_EQ(p->sampling.logprobs, 4);
    EXPECT_INT_EQ(p->prompt_logprobs, 4);
    openai_request_deinit(&r);
}

TEST(OpenaiRequest, PromptsMayBeTokens) {
    struct openai_request r;
    struct field_error e;
    ASSERT_INT_EQ(parse(C, "{\"prompt\":[3,99]}", &r, &e), 0);
    EXPECT_INT_EQ(r.num_prompts, 1);
    EXPECT_INT_EQ(r.prompts[0].num_tokens, 2);
    EXPECT_INT_EQ(r.prompts[0].tokens[1], 99);
    openai_request_deinit(&r);
    ASSERT_INT_EQ(parse(C, "{\"prompt\":[[3],[4,5]]}", &r, &e), 0);
    EXPECT_INT_EQ(r.num_prompts, 2);
    EXPECT_INT_EQ(r.prompts[1].tokens[1], 5);
    openai_request_deinit(&r);
}

TEST(OpenaiRequest, ContentsInPartsArePutTogether) {
    struct openai_request r;
    struct field_error e;
    ASSERT_INT_EQ(parse(M,
                        "{\"messages\":[{\"role\":\"system\",\"content\":[]},{\"role\":\"user\","
                        "\"content\":[{\"type\":\"text\",\"text\":\"ab\"},{\"type\":\"text\","
                        "\"text\":\"c\"}],\"name\":\"me\"}]}",
                        &r, &e),
                  0);
    EXPECT_INT_EQ((int)r.messages[0].content_len, 0);
    EXPECT_INT_EQ((int)r.messages[1].content_len, 3);
    EXPECT_TRUE(!memcmp(r.messages[1].content, "abc", 3));
    openai_request_deinit(&r);
}

/* As servers answer and clients put the pieces of a stream together. */
TEST(OpenaiRequest, AnAnswerCanBeSentBackAsItCame) {
    struct openai_request r;
    struct field_error e;
    ASSERT_INT_EQ(
        parse(M,
              "{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\",\"refusal\":null,"
              "\"annotations\":[],\"audio\":null,\"function_call\":null,\"tool_calls\":null,"
              "\"reasoning\":\"r\",\"reasoning_content\":\"r\",\"parsed\":{\"a\":1}},"
              "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"index\":0,\"id\":\"i\","
              "\"type\":null,\"function\":{\"name\":\"f\",\"arguments\":null}}]}]}",
              &r, &e),
        0);
    EXPECT_INT_EQ((int)r.messages[0].content_len, 1);
    EXPECT_INT_EQ((int)r.messages[0].num_tool_calls, 0);
    EXPECT_STR_EQ(r.messages[1].tool_calls[0].name, "f");
    EXPECT_INT_EQ((int)r.messages[1].tool_calls[0].arguments_len, 0);
    openai_request_deinit(&r);
}

TEST(OpenaiRequest, LogprobsOfAChatAreItsTopLogprobs) {
    struct openai_request r;
    struct field_error e;
    ASSERT_INT_EQ(parse(M, "{" MSG ",\"logprobs\":true}", &r, &e), 0);
    EXPECT_INT_EQ(r.params.sampling.logprobs, 0);
    openai_request_deinit(&r);
    ASSERT_INT_EQ(parse(M, "{" MSG ",\"logprobs\":true,\"top_logprobs\":5}", &r, &e), 0);
    EXPECT_INT_EQ(r.params.sampling.logprobs, 5);
    openai_request_deinit(&r);
}

TEST(OpenaiRequest, FieldsThatChangeNothingAreTaken) {
    struct openai_request r;
    struct field_error e;
    ASSERT_INT_EQ(parse(M,
                        "{" MSG ",\"modalities\":[\"text\"],\"prompt_cache_retention\":\"24h\","
                        "\"stream\":true,\"stream_options\":{\"include_obfuscation\":false}}",
                        &r, &e),
                  0);
    EXPECT_TRUE(r.stream && !r.include_usage && r.enable_thinking);
    openai_request_deinit(&r);
    ASSERT_INT_EQ(parse(C, "{\"prompt\":\"a\",\"suffix\":\"\"}", &r, &e), 0);
    openai_request_deinit(&r);
    ASSERT_INT_EQ(
        parse(M, "{" MSG ",\"chat_template_kwargs\":{\"enable_thinking\":false}}", &r, &e), 0);
    EXPECT_TRUE(!r.enable_thinking);
    openai_request_deinit(&r);
    ASSERT_INT_EQ(
        parse(T, "{" MSG ",\"add_generation_prompt\":true,\"return_token_strs\":true}", &r, &e), 0);
    EXPECT_TRUE(r.return_token_strs);
    openai_request_deinit(&r);
}

/* As other servers take them. */
TEST(OpenaiRequest, NoTopLogprobsAndNoMassAreTaken) {
    struct openai_request r;
    struct field_error e;
    ASSERT_INT_EQ(parse(M, "{" MSG ",\"logprobs\":false,\"top_logprobs\":0}", &r, &e), 0);
    EXPECT_INT_EQ(r.params.sampling.logprobs, -1);
    openai_request_deinit(&r);
    ASSERT_INT_EQ(parse(C, "{\"prompt\":\"a\",\"top_p\":0,\"top_k\":9}", &r, &e), 0);
    EXPECT_INT_EQ(r.params.sampling.top_k, 1);
    EXPECT_TRUE(r.params.sampling.top_p == 1);
    openai_request_deinit(&r);
}

TEST(OpenaiRequest, TheNewNameOfMaxTokensWinsInAnyOrder) {
    static const char *const bodies[] = {
        "{" MSG ",\"max_tokens\":5,\"max_completion_tokens\":2}",
        "{" MSG ",\"max_completion_tokens\":2,\"max_tokens\":5}",
        "{" MSG ",\"max_completion_tokens\":2}",
    };
    struct openai_request r;
    struct field_error e;
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        ASSERT_INT_EQ(parse(M, bodies[i], &r, &e), 0);
        EXPECT_INT_EQ(r.params.max_tokens, 2);
        openai_request_deinit(&r);
    }
    ASSERT_INT_EQ(parse(M, "{" MSG ",\"max_tokens\":5}", &r, &e), 0);
    EXPECT_INT_EQ(r.params.max_tokens, 5);
    openai_request_deinit(&r);
}

TEST(OpenaiRequest, NoTokenAtAllIsOneThatIsNotShown) {
    struct openai_request r;
    struct field_error e;
    ASSERT_INT_EQ(parse(C, "{\"prompt\":\"a\",\"echo\":true,\"max_tokens\":0}", &r, &e), 0);
    EXPECT_TRUE(r.no_tokens);
    EXPECT_INT_EQ(r.params.max_tokens, 1);
    openai_request_deinit(&r);
}
