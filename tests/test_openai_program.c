/* The OpenAI-compatible API of the program itself, with the demo model. tests/clients has more,
 * with other people's clients. */
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/http_client.h"
#include "tests/program.h"
#include "tests/shim.h"

struct served {
    struct program program;
    char address[128]; /* of HTTP */
};

/* With up to three more options and their values, NULL-ended. */
static bool serve_with(struct served *s, const char *const *more) {
    const char *args[12] = {"-q", "--listen", "off", "--http", "127.0.0.1:0"};
    static const char head[] = "moeserve: ready http=";
    char line[256];
    for (int n = 5; more && *more;)
        args[n++] = *more++;
    if (!program_start(&s->program, args) ||
        !EXPECT_TRUE(program_read_line(&s->program, line, sizeof line)) ||
        !EXPECT_INT_EQ(strncmp(line, head, sizeof head - 1), 0))
        return false;
    snprintf(s->address, sizeof s->address, "%.*s", (int)strcspn(line + sizeof head - 1, " \n"),
             line + sizeof head - 1);
    return true;
}

static bool serve(struct served *s, const char *api_key) {
    const char *const more[] = {"--api-key", api_key, "--max-requests-per-key", "1", NULL};
    return serve_with(s, api_key ? more : NULL);
}

static void stop(struct served *s) {
    kill(s->program.pid, SIGTERM);
    EXPECT_INT_EQ(program_wait(&s->program), 0);
}

static void put_request(char *out, size_t size, const char *path, const char *body) {
    snprintf(out, size,
             "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\nX-Request-Id: same\r\n"
             "Content-Length: %zu\r\n\r\n%s",
             path, strlen(body), body);
}

/* Asks on a connection of its own; the answer is the caller's to deinit. */
static void ask(struct served *s, const char *path, const char *body, struct http_answer *a) {
    struct net_client c;
    char request[16384];
    memset(a, 0, sizeof *a);
    put_request(request, sizeof request, path, body);
    if (!net_client_open(&c, s->address, 0))
        return;
    EXPECT_TRUE(http_client_ask(&c, request, a));
    net_client_close(&c);
}

/* The string at choices[0].member, or choices[0].message.member; "" where there is none. */
static const char *choice_text(json_t *doc, const char *member, char out[1024]) {
    json_t *choice = json_array_get(json_object_get(doc, "choices"), 0);
    json_t *at = json_object_get(choice, "message");
    const char *text = json_string_value(json_object_get(at ? at : choice, member));
    snprintf(out, 1024, "%s", text ? text : "");
    return out;
}

TEST(OpenaiProgram, AStreamIsTheTextOfTheWholeAnswer) {
    NEEDS_BINARY();
    struct served s;
    struct http_answer a;
    char whole[1024], piece[1024], joined[4096] = "";
    bool done = false;
    ASSERT_TRUE(serve(&s, NULL));
    ask(&s, "/v1/completions",
        "{\"prompt\":\"Once\",\"max_tokens\":30,\"temperature\":0.9,\"seed\":5,\"top_k\":40}", &a);
    EXPECT_INT_EQ(a.status, 200);
    json_t *doc = json_loads(a.body.data ? a.body.data : "", 0, NULL);
    EXPECT_TRUE(strlen(choice_text(doc, "text", whole)) > 20);
    json_decref(doc);
    http_answer_deinit(&a);
    ask(&s, "/v1/completions",
        "{\"prompt\":\"Once\",\"max_tokens\":30,\"temperature\":0.9,\"seed\":5,\"top_k\":40,"
        "\"stream\":true}",
        &a);
    EXPECT_INT_EQ(a.status, 200);
    char *save = NULL;
    for (char *l = a.body.data ? strtok_r(a.body.data, "\n", &save) : NULL; l;
         l = strtok_r(NULL, "\n", &save)) {
        EXPECT_INT_EQ(strncmp(l, "data: ", 6), 0);
        done = !strcmp(l, "data: [DONE]");
        doc = done ? NULL : json_loads(l + 6, 0, NULL);
        EXPECT_TRUE(done || doc);
        strncat(joined, choice_text(doc, "text", piece), sizeof joined - strlen(joined) - 1);
        json_decref(doc);
    }
    EXPECT_TRUE(done);
    EXPECT_STR_EQ(joined, whole);
    http_answer_deinit(&a);
    stop(&s);
}

static json_t *ask_json(struct served *s, const char *body) {
    struct http_answer a;
    ask(s, "/v1/completions", body, &a);
    EXPECT_INT_EQ(a.status, 200);
    json_t *doc = json_loads(a.body.data ? a.body.data : "", 0, NULL);
    http_answer_deinit(&a);
    return doc;
}

static json_t *choice_of(json_t *doc, size_t i) {
    return json_array_get(json_object_get(doc, "choices"), i);
}

/* Every answer to a prompt has its logprobs, and none is a beginning that the text has not. */
TEST(OpenaiProgram, OffsetsOfLogprobsAreTheirPlacesInTheText) {
    NEEDS_BINARY();
    struct served s;
    ASSERT_TRUE(serve(&s, NULL));
    json_t *doc =
        ask_json(&s, "{\"prompt\":[\"27+15=\",\"1+1=\"],\"n\":3,\"max_tokens\":12,"
                     "\"temperature\":0,\"ignore_eos\":true,\"echo\":true,\"logprobs\":1}");
    int hidden = 0;
    for (size_t i = 0; i < 6; i++) {
        json_t *choice = choice_of(doc, i), *l = json_object_get(choice, "logprobs");
        json_t *tokens = json_object_get(l, "tokens"), *offsets = json_object_get(l, "text_offset");
        const char *text = json_string_value(json_object_get(choice, "text"));
        EXPECT_TRUE(json_is_null(json_array_get(json_object_get(l, "token_logprobs"), 0)));
        EXPECT_TRUE(json_array_size(tokens) > 12 && text);
        for (size_t k = 0; text && k < json_array_size(tokens); k++) {
            const char *token = json_string_value(json_array_get(tokens, k));
            size_t at = (size_t)json_integer_value(json_array_get(offsets, k));
            bool special = !strncmp(token, "<|", 2);
            hidden += special;
            if (at > strlen(text) || (!special && strncmp(text + at, token, strlen(token))))
                FAIL("choice %zu: token %zu, %s, at %zu of %s", i, k, token, at, text);
        }
    }
    EXPECT_TRUE(hidden >= 6);
    json_decref(doc);
    stop(&s);
}

/* Whatever the token would have been that is made for it. */
TEST(OpenaiProgram, APromptAloneEndsByItsLength) {
    NEEDS_BINARY();
    struct served s;
    char text[1024];
    ASSERT_TRUE(serve(&s, NULL));
    json_t *doc =
        ask_json(&s, "{\"prompt\":\"27+15=\",\"max_tokens\":0,\"echo\":true,\"stop\":\"4\"}");
    EXPECT_STR_EQ(choice_text(doc, "finish_reason", text), "length");
    EXPECT_STR_EQ(choice_text(doc, "text", text), "27+15=");
    json_decref(doc);
    stop(&s);
}

static void expect_refused(struct served *s, const char *body, const char *words) {
    struct http_answer a;
    ask(s, "/v1/completions", body, &a);
    if (a.status != 400 || !strstr(a.body.data ? a.body.data : "", words))
        FAIL("%d, %s", a.status, a.body.data);
    http_answer_deinit(&a);
}

TEST(OpenaiProgram, WhatCanNeverBeQueuedIsNotToldToComeAgain) {
    NEEDS_BINARY();
    const char *const more[] = {"--max-queued-requests", "4", "--max-queued-tokens", "30", NULL};
    struct served s;
    ASSERT_TRUE(serve_with(&s, more));
    expect_refused(
        &s, "{\"prompt\":\"a\",\"max_tokens\":1,\"n\":5}",
        "n: 5 requests at once are more than the queue holds, 4 (--max-queued-requests)");
    expect_refused(&s, "{\"prompt\":\"a b c d e f g h i j k l m n\",\"max_tokens\":1,\"n\":4}",
                   "30 tokens (--max-queued-tokens)");
    json_decref(ask_json(&s, "{\"prompt\":\"a\",\"max_tokens\":1,\"n\":4}"));
    stop(&s);
}

TEST(OpenaiProgram, LogprobsOfPromptsAreBoundedInAll) {
    NEEDS_BINARY();
    char body[8192] = "{\"n\":128,\"echo\":true,\"logprobs\":20,\"max_tokens\":0,\"prompt\":[1";
    struct served s;
    for (int i = 1; i < 1700; i++)
        strcat(body, ",1");
    strcat(body, "]}");
    ASSERT_TRUE(serve(&s, NULL));
    expect_refused(&s, body, "\"param\":\"echo\"");
    json_decref(ask_json(&s, "{\"prompt\":\"a\",\"max_tokens\":1}"));
    stop(&s);
}

/* The id of the first call that a chat is held to make. */
static void ask_for_a_call(struct served *s, char id[1024]) {
    struct http_answer a;
    json_t *doc, *message;
    ask(s, "/v1/chat/completions",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],\"tools\":[{\"type\":"
        "\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\","
        "\"properties\":{},\"additionalProperties\":false}}}],\"tool_choice\":\"required\"}",
        &a);
    EXPECT_INT_EQ(a.status, 200);
    doc = json_loads(a.body.data ? a.body.data : "", 0, NULL);
    message = json_object_get(json_array_get(json_object_get(doc, "choices"), 0), "message");
    const char *text = json_string_value(
        json_object_get(json_array_get(json_object_get(message, "tool_calls"), 0), "id"));
    snprintf(id, 1024, "%s", text ? text : "");
    json_decref(doc);
    http_answer_deinit(&a);
}

/* Proxies give the requests of a conversation one id, and clients find results by their call's. */
TEST(OpenaiProgram, CallsOfRequestsWithTheSameIdAreToldApart) {
    NEEDS_BINARY();
    const char *const more[] = {"--chat-template", "qwen2.5", NULL};
    struct served s;
    char one[1024], other[1024];
    ASSERT_TRUE(serve_with(&s, more));
    ask_for_a_call(&s, one);
    ask_for_a_call(&s, other);
    EXPECT_TRUE(*one && *other && strcmp(one, other));
    stop(&s);
}

TEST(OpenaiProgram, AnAnswerFitsItsSchema) {
    NEEDS_BINARY();
    struct served s;
    ASSERT_TRUE(serve(&s, NULL));
    for (int seed = 0; seed < 8; seed++) {
        struct http_answer a;
        char body[1024], text[1024];
        snprintf(body, sizeof body,
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],\"temperature\":1.5,"
                 "\"seed\":%d,\"response_format\":{\"type\":\"json_schema\",\"json_schema\":"
                 "{\"name\":\"s\",\"schema\":{\"type\":\"object\",\"required\":[\"n\",\"k\"],"
                 "\"additionalProperties\":false,\"properties\":{\"n\":{\"type\":\"integer\","
                 "\"minimum\":3,\"maximum\":44},\"k\":{\"enum\":[\"a\",null]}}}}}}",
                 seed);
        ask(&s, "/v1/chat/completions", body, &a);
        EXPECT_INT_EQ(a.status, 200);
        json_t *doc = json_loads(a.body.data ? a.body.data : "", 0, NULL);
        json_t *value = json_loads(choice_text(doc, "content", text), 0, NULL);
        json_int_t n = json_integer_value(json_object_get(value, "n"));
        json_t *k = json_object_get(value, "k");
        if (json_object_size(value) != 2 || n < 3 || n > 44 ||
            !(json_is_null(k) || !strcmp(json_string_value(k) ? json_string_value(k) : "", "a")))
            FAIL("seed %d: %s", seed, text);
        json_decref(value);
        json_decref(doc);
        http_answer_deinit(&a);
    }
    stop(&s);
}

/* A schema of many parts, as each of several requests at once, leaves the server answering. */
TEST(OpenaiProgram, ASchemaThatIsTooMuchWorkIsRefusedBesideOtherRequests) {
    NEEDS_BINARY();
    enum { NUM_CLIENTS = 8, NUM_NAMES = 20000, NUM_PARTS = 100, ROOM = 256 * 1024 };
    struct served s;
    struct net_client clients[NUM_CLIENTS];
    struct http_answer a;
    ASSERT_TRUE(serve(&s, NULL));
    char *body = malloc(ROOM), *request = malloc(ROOM + 256);
    int len = snprintf(body, ROOM,
                       "{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_schema\","
                       "\"json_schema\":{\"name\":\"s\",\"schema\":{\"$defs\":{\"a\":{"
                       "\"required\":[\"a\"");
    for (int i = 0; i < NUM_NAMES; i++)
        len += snprintf(body + len, (size_t)(ROOM - len), ",\"a\"");
    len += snprintf(body + len, (size_t)(ROOM - len), "]}},\"allOf\":[{}");
    for (int i = 0; i < NUM_PARTS; i++)
        len += snprintf(body + len, (size_t)(ROOM - len), ",{\"$ref\":\"#/$defs/a\"}");
    snprintf(body + len, (size_t)(ROOM - len), "]}}}}");
    put_request(request, ROOM + 256, "/v1/completions", body);
    for (int i = 0; i < NUM_CLIENTS; i++)
        EXPECT_TRUE(net_client_open(&clients[i], s.address, 0) &&
                    net_client_send(&clients[i], request, strlen(request)));
    ask(&s, "/v1/completions", "{\"prompt\":\"a\",\"max_tokens\":1}", &a);
    EXPECT_INT_EQ(a.status, 200);
    http_answer_deinit(&a);
    for (int i = 0; i < NUM_CLIENTS; i++) {
        EXPECT_TRUE(http_client_read(&clients[i], true, &a));
        EXPECT_INT_EQ(a.status, 400);
        EXPECT_TRUE(strstr(a.body.data ? a.body.data : "", "too much work") != NULL);
        http_answer_deinit(&a);
        net_client_close(&clients[i]);
    }
    free(request);
    free(body);
    stop(&s);
}

TEST(OpenaiProgram, ErrorsHaveTheirStatusAndParam) {
    NEEDS_BINARY();
    static const struct {
        const char *body;
        int status;
        const char *words;
    } cases[] = {
        {"{\"prompt\":\"a\",\"temperature\":-1}", 400, "\"param\":\"temperature\""},
        {"{\"prompt\":\"a\",\"stream\":true,\"n\":0}", 400, "\"param\":\"n\""},
        {"{\"prompt\":\"a\",\"model\":\"b\"}", 404, "\"code\":\"model_not_found\""},
        {"{", 400, "\"code\":\"invalid_json\""},
    };
    struct served s;
    ASSERT_TRUE(serve(&s, NULL));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct http_answer a;
        ask(&s, "/v1/completions", cases[i].body, &a);
        if (a.status != cases[i].status || !strstr(a.body.data, cases[i].words))
            FAIL("%s: %d, %s", cases[i].body, a.status, a.body.data);
        http_answer_deinit(&a);
    }
    stop(&s);
}

TEST(OpenaiProgram, AKeyHasItsRequestsAtOnce) {
    NEEDS_BINARY();
    struct served s;
    struct net_client c;
    struct http_answer a;
    char request[2048], value[256];
    ASSERT_TRUE(serve(&s, "k"));
    put_request(request, sizeof request, "/v1/completions",
                "{\"prompt\":\"Once\",\"max_tokens\":1500,\"ignore_eos\":true,\"stream\":true}");
    ASSERT_TRUE(net_client_open(&c, s.address, 0));
    net_client_send(&c, request, strlen(request));
    EXPECT_TRUE(net_client_line(&c)); /* its head: it runs */
    ask(&s, "/v1/completions", "{\"prompt\":\"a\",\"max_tokens\":1}", &a);
    EXPECT_INT_EQ(a.status, 429);
    EXPECT_INT_GE(atoi(http_answer_value(&a, "Retry-After", value)), 1);
    http_answer_deinit(&a);
    ask(&s, "/v1/completions", "{\"prompt\":\"a\",\"max_tokens\":1,\"n\":2}", &a);
    EXPECT_INT_EQ(a.status, 400); /* it never could */
    EXPECT_TRUE(strstr(a.body.data ? a.body.data : "", "\"param\":\"n\"") != NULL);
    http_answer_deinit(&a);
    net_client_close(&c); /* which cancels it */
    int status = 0;
    for (int tries = 0; tries < 200 && status != 200; tries++) {
        ask(&s, "/v1/completions", "{\"prompt\":\"a\",\"max_tokens\":1}", &a);
        status = a.status;
        http_answer_deinit(&a);
    }
    EXPECT_INT_EQ(status, 200);
    stop(&s);
}

static void write_key(const char *path, const char *key) {
    FILE *f = fopen(path, "w");
    fprintf(f, "%s\n", key);
    fclose(f);
}

static int status_of(struct served *s, const char *path) {
    struct net_client c;
    struct http_answer a = {0};
    char request[512];
    snprintf(request, sizeof request,
             "GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n\r\n", path);
    if (net_client_open(&c, s->address, 0)) {
        EXPECT_TRUE(http_client_ask(&c, request, &a));
        net_client_close(&c);
    }
    int status = a.status;
    http_answer_deinit(&a);
    return status;
}

static int status_of_models(struct served *s) {
    return status_of(s, "/v1/models");
}

TEST(OpenaiProgram, AModelIsFoundByItsNameAsPathsSpellIt) {
    NEEDS_BINARY();
    static const char *const found[] = {"org/a%20b", "org%2Fa%20b", "%6frg%2fa%20b"};
    static const char *const missing[] = {"org", "org/a%20b/", "org/a%2", "org/a%20b%00",
                                          "org/a%b"};
    const char *const more[] = {"--served-model-name", "org/a b", NULL};
    struct served s;
    char path[128];
    ASSERT_TRUE(serve_with(&s, more));
    for (size_t i = 0; i < sizeof found / sizeof *found; i++) {
        snprintf(path, sizeof path, "/v1/models/%s", found[i]);
        EXPECT_INT_EQ(status_of(&s, path), 200);
    }
    for (size_t i = 0; i < sizeof missing / sizeof *missing; i++) {
        snprintf(path, sizeof path, "/v1/models/%s", missing[i]);
        EXPECT_INT_EQ(status_of(&s, path), 404);
    }
    stop(&s);
}

/* The key is looked at when the head is there, and again when the request would begin. */
TEST(OpenaiProgram, AKeyThatIsTakenAwayBeforeTheBodyCameIsNoLongerGood) {
    NEEDS_BINARY();
    struct served s;
    struct net_client c;
    struct http_answer a = {0};
    char path[256], request[512], value[256];
    static const char body[] = "{\"prompt\":\"x\"}";
    const char *const more[] = {"--api-key-file", path, NULL};
    snprintf(path, sizeof path, "%s/keys", shim_scratch_dir());
    write_key(path, "k");
    ASSERT_TRUE(serve_with(&s, more) && net_client_open(&c, s.address, 0));
    put_request(request, sizeof request, "/v1/completions", body);
    size_t cut = strlen(request) - 3;
    EXPECT_TRUE(net_client_send(&c, request, cut));
    EXPECT_INT_EQ(status_of_models(&s), 200); /* by now the head has been read */
    write_key(path, "another");
    kill(s.program.pid, SIGHUP);
    for (int i = 0; i < 3000 && status_of_models(&s) == 200; i++)
        usleep(10000);
    EXPECT_TRUE(http_client_ask(&c, request + cut, &a));
    EXPECT_INT_EQ(a.status, 401);
    EXPECT_STR_EQ(http_answer_value(&a, "Retry-After", value), "");
    EXPECT_TRUE(strstr(a.body.data ? a.body.data : "", "no longer valid") != NULL);
    http_answer_deinit(&a);
    net_client_close(&c);
    stop(&s);
}
