/* A real server on a free port with the demo model: what well-behaved clients see. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/bad_lines.h"
#include "tests/net_client.h"
#include "tests/shim.h"

/* Starts a server and connects one client; the test returns when that fails. */
#define START(f, c)                                                                                \
    do {                                                                                           \
        ASSERT_TRUE(net_fixture_start(&(f)));                                                      \
        ASSERT_TRUE(net_client_open(&(c), net_fixture_address(&(f)), 0));                          \
    } while (0)

static int64_t usage(const json_t *done, const char *name) {
    return json_integer_value(json_object_get(json_object_get(done, "usage"), name));
}

static const char *string_of(const json_t *line, const char *name) {
    const char *s = json_string_value(json_object_get(line, name));
    return s ? s : "";
}

TEST(Server, AJsonRequestStreamsThenFinishes) {
    struct net_fixture f;
    struct net_client c;
    struct buffer text = {0};
    net_fixture_init(&f);
    START(f, c);
    net_client_puts(&c, "{\"id\":1,\"prompt\":\"Once upon a time\",\"max_tokens\":12,"
                        "\"temperature\":0,\"ignore_eos\":true}");
    json_t *done = net_client_until_done(&c, "1", &text);
    EXPECT_STR_EQ(string_of(done, "finish_reason"), "length");
    EXPECT_INT_EQ(usage(done, "completion_tokens"), 12);
    EXPECT_INT_GT(usage(done, "prompt_tokens"), 0);
    json_decref(done);
    /* The whole text at once is the same text. */
    net_client_puts(&c, "{\"id\":2,\"prompt\":\"Once upon a time\",\"max_tokens\":12,"
                        "\"temperature\":0,\"ignore_eos\":true,\"stream\":false,\"logprobs\":1}");
    done = net_client_json(&c);
    EXPECT_STR_EQ(string_of(done, "text"), text.data);
    EXPECT_INT_EQ(json_array_size(json_object_get(done, "logprobs")), 12);
    json_decref(done);
    buffer_deinit(&text);
    net_client_close(&c);
    net_fixture_stop(&f);
    EXPECT_INT_EQ(f.status, 0);
}

TEST(Server, RequestsOfOneConnectionRunTogether) {
    struct net_fixture f;
    struct net_client c;
    char line[160];
    bool begun[8] = {false};
    int num_begun = 0, num_done = 0;
    net_fixture_init(&f);
    START(f, c);
    for (int i = 0; i < 8; i++) {
        snprintf(line, sizeof line,
                 "{\"id\":%d,\"prompt\":\"Once upon\",\"max_tokens\":40,\"ignore_eos\":true}", i);
        net_client_puts(&c, line);
    }
    while (num_done < 8) {
        json_t *o = net_client_json(&c);
        ASSERT_TRUE(o != NULL);
        int64_t id = json_integer_value(json_object_get(o, "id"));
        if (num_done == 0 && !begun[id]) {
            begun[id] = true;
            num_begun++;
        }
        num_done += json_object_get(o, "done") != NULL;
        json_decref(o);
    }
    EXPECT_INT_GT(num_begun, 1);
    net_client_close(&c);
    net_fixture_stop(&f);
}

TEST(Server, RequestsWithoutAnIdAreGivenOne) {
    struct net_fixture f;
    struct net_client c;
    net_fixture_init(&f);
    START(f, c);
    net_client_puts(&c, "{\"id\":\"auto-1\",\"prompt\":\"Once\",\"max_tokens\":400,"
                        "\"ignore_eos\":true}");
    net_client_puts(&c, "{\"prompt\":\"Once\",\"max_tokens\":1}");
    json_t *done = net_client_until_done(&c, "\"auto-2\"", NULL);
    EXPECT_INT_EQ(usage(done, "completion_tokens"), 1);
    json_decref(done);
    net_client_close(&c);
    net_fixture_stop(&f);
}

TEST(Server, PlainLinesAreAnsweredOneAfterAnother) {
    static const char *const prompts[] = {"Once upon a time", "2+3=", "The little fox"};
    struct net_fixture f;
    struct net_client c;
    struct buffer want = {0};
    net_fixture_init(&f);
    ASSERT_TRUE(net_fixture_start(&f));
    for (int i = 0; i < 3; i++) {
        ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
        net_client_puts(&c, prompts[i]);
        net_client_shut(&c);
        buffer_puts(&want, net_client_rest(&c));
        net_client_close(&c);
    }
    buffer_putc(&want, '\0');
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
    net_client_puts(&c, "Once upon a time\r\n\n2+3=\n\r\nThe little fox");
    net_client_shut(&c);
    EXPECT_STR_EQ(net_client_rest(&c), want.data);
    net_client_close(&c);
    /* The last line may lack its end. */
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
    net_client_send(&c, prompts[0], strlen(prompts[0]));
    net_client_shut(&c);
    const char *text = net_client_rest(&c);
    EXPECT_INT_EQ(strncmp(text, want.data, strlen(text)), 0);
    EXPECT_INT_GT(strlen(text), 1);
    net_client_close(&c);
    buffer_deinit(&want);
    net_fixture_stop(&f);
}

TEST(Server, APlainLinesErrorComesInItsPlace) {
    struct net_fixture f;
    struct net_client c;
    struct buffer lines = {0};
    net_fixture_init(&f);
    f.engine_options.max_model_len = 64;
    START(f, c);
    buffer_puts(&lines, "Once upon a time\n");
    for (int i = 0; i < 5000; i++) /* long enough for the worker pool too */
        buffer_puts(&lines, "word ");
    buffer_puts(&lines, "\nOnce upon a time\n");
    net_client_send(&c, lines.data, lines.len);
    net_client_shut(&c);
    const char *text = net_client_rest(&c), *error = strstr(text, "error: ");
    ASSERT_TRUE(error != NULL && error > text && error[-1] == '\n');
    size_t answer = (size_t)(error - text);
    const char *second = strchr(error, '\n') + 1;
    EXPECT_INT_EQ(strlen(second), answer);
    EXPECT_INT_EQ(strncmp(second, text, answer), 0);
    buffer_deinit(&lines);
    net_client_close(&c);
    net_fixture_stop(&f);
}

TEST(Server, AHalfClosedClientGetsItsAnswers) {
    struct net_fixture f;
    struct net_client c;
    net_fixture_init(&f);
    START(f, c);
    net_client_puts(&c, "{\"id\":1,\"prompt\":\"Once\",\"max_tokens\":300,\"ignore_eos\":true}");
    net_client_puts(&c, "{\"id\":2,\"prompt\":\"Once\",\"max_tokens\":600,\"ignore_eos\":true,"
                        "\"stream\":false}");
    net_client_shut(&c);
    json_t *done = net_client_until_done(&c, "1", NULL);
    EXPECT_INT_EQ(usage(done, "completion_tokens"), 300);
    json_decref(done);
    done = net_client_until_done(&c, "2", NULL);
    EXPECT_INT_EQ(usage(done, "completion_tokens"), 600);
    json_decref(done);
    EXPECT_STR_EQ(net_client_rest(&c), "");
    net_client_close(&c);
    net_fixture_stop(&f);
}

TEST(Server, ARequestMayArriveByteByByte) {
    static const char line[] = "{\"op\":\"ping\",\"id\":\"slow\"}\r\n";
    struct net_fixture f;
    struct net_client c;
    net_fixture_init(&f);
    START(f, c);
    for (const char *p = line; *p; p++)
        net_client_send(&c, p, 1);
    json_t *o = net_client_json(&c);
    EXPECT_STR_EQ(string_of(o, "id"), "slow");
    json_decref(o);
    net_client_close(&c);
    net_fixture_stop(&f);
}

TEST(Server, EveryBadLineGetsItsErrorAndTheConnectionGoesOn) {
    struct net_fixture f;
    struct net_client c;
    net_fixture_init(&f);
    START(f, c);
    for (size_t i = 0; i < num_bad_lines; i++) {
        const struct bad_line *bad = &bad_lines[i];
        net_client_send(&c, bad->bytes, bad->len);
        net_client_send(&c, "\n", 1);
        json_t *o = net_client_json(&c);
        EXPECT_STR_EQ(net_error_code(o), error_name(bad->code));
        json_decref(o);
        ASSERT_TRUE(net_client_ping(&c));
    }
    net_client_close(&c);
    EXPECT_TRUE(net_fixture_is_quiet(&f));
    net_fixture_stop(&f);
}

TEST(Server, CancelEndsARequestAndOnlyThat) {
    struct net_fixture f;
    struct net_client c;
    net_fixture_init(&f);
    START(f, c);
    net_client_puts(&c,
                    "{\"id\":\"a\",\"prompt\":\"Once\",\"max_tokens\":1500,\"ignore_eos\":true}");
    net_client_puts(&c, "{\"id\":\"b\",\"prompt\":\"Once\",\"max_tokens\":30,\"ignore_eos\":true}");
    net_client_puts(&c, "{\"op\":\"cancel\",\"id\":\"a\"}");
    json_t *done = net_client_until_done(&c, "\"a\"", NULL);
    EXPECT_STR_EQ(string_of(done, "finish_reason"), "cancelled");
    EXPECT_INT_LT(usage(done, "completion_tokens"), 1500);
    json_decref(done);
    done = net_client_until_done(&c, "\"b\"", NULL);
    EXPECT_STR_EQ(string_of(done, "finish_reason"), "length");
    json_decref(done);
    /* Both ids are free again. */
    net_client_puts(&c, "{\"op\":\"cancel\",\"id\":\"a\"}");
    done = net_client_until_done(&c, "\"a\"", NULL);
    EXPECT_STR_EQ(net_error_code(done), "not_found");
    json_decref(done);
    net_client_puts(&c, "{\"id\":\"b\",\"prompt\":\"Once\",\"max_tokens\":1}");
    done = net_client_until_done(&c, "\"b\"", NULL);
    EXPECT_INT_EQ(usage(done, "completion_tokens"), 1);
    json_decref(done);
    net_client_close(&c);
    net_fixture_stop(&f);
}

TEST(Server, ADuplicateIdIsRefusedAndTheFirstGoesOn) {
    struct net_fixture f;
    struct net_client c, d;
    net_fixture_init(&f);
    START(f, c);
    ASSERT_TRUE(net_client_open(&d, net_fixture_address(&f), 0));
    net_client_puts(&c, "{\"id\":1,\"prompt\":\"Once\",\"max_tokens\":200,\"ignore_eos\":true}");
    net_client_puts(&c, "{\"id\":1,\"prompt\":\"Once\",\"max_tokens\":1}");
    net_client_puts(&c, "{\"id\":\"1\",\"prompt\":\"Once\",\"max_tokens\":1}");
    json_t *o = net_client_until_done(&c, "1", NULL);
    EXPECT_STR_EQ(net_error_code(o), "duplicate_id");
    json_decref(o);
    o = net_client_until_done(&c, "1", NULL);
    EXPECT_INT_EQ(usage(o, "completion_tokens"), 200);
    json_decref(o);
    /* Ids belong to a connection. */
    net_client_puts(&d, "{\"id\":1,\"prompt\":\"Once\",\"max_tokens\":1}");
    o = net_client_until_done(&d, "1", NULL);
    EXPECT_STR_EQ(net_error_code(o), "");
    json_decref(o);
    net_client_close(&c);
    net_client_close(&d);
    net_fixture_stop(&f);
}

/* A prompt of 1 MB of words, as a JSON request with this id. */
static void put_long_request(struct buffer *out, const char *id) {
    buffer_printf(out, "{\"id\":%s,\"prompt\":\"", id);
    for (int i = 0; i < 200000; i++)
        buffer_puts(out, "word ");
    buffer_puts(out, "\"}\n");
}

TEST(Server, LinesBehindALongOneKeepTheirOrder) {
    struct net_fixture f;
    struct net_client c, d;
    struct buffer lines = {0};
    net_fixture_init(&f);
    START(f, c);
    ASSERT_TRUE(net_client_open(&d, net_fixture_address(&f), 0));
    put_long_request(&lines, "1");
    buffer_puts(&lines, "{\"op\":\"ping\",\"id\":2}\n{\"op\":\"cancel\",\"id\":1}\n");
    net_client_send(&c, lines.data, lines.len);
    EXPECT_TRUE(net_client_ping(&d));
    static const char *const want[] = {"context_length_exceeded", "", "not_found"};
    for (int i = 0; i < 3; i++) {
        json_t *o = net_client_json(&c);
        EXPECT_STR_EQ(net_error_code(o), want[i]);
        json_decref(o);
    }
    buffer_clear(&lines);
    buffer_puts(&lines, "{\"op\":\"tokenize\",\"id\":3,\"text\":\"");
    for (int i = 0; i < 20000; i++)
        buffer_puts(&lines, "word ");
    buffer_puts(&lines, "\"}\n");
    net_client_send(&c, lines.data, lines.len);
    json_t *o = net_client_json(&c);
    EXPECT_INT_GE(json_array_size(json_object_get(o, "tokens")), 20000);
    json_decref(o);
    buffer_deinit(&lines);
    net_client_close(&c);
    net_client_close(&d);
    net_fixture_stop(&f);
}

TEST(Server, AClientMayLeaveWhileItsLineIsTokenised) {
    struct net_fixture f;
    struct net_client c;
    struct buffer lines = {0};
    net_fixture_init(&f);
    ASSERT_TRUE(net_fixture_start(&f));
    put_long_request(&lines, "1");
    for (int i = 0; i < 8; i++) {
        ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
        net_client_send(&c, lines.data, lines.len);
        net_client_close(&c);
    }
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
    EXPECT_TRUE(net_client_ping(&c));
    buffer_deinit(&lines);
    net_client_close(&c);
    EXPECT_TRUE(net_fixture_is_quiet(&f));
    net_fixture_stop(&f); /* some lines may still be in the pool: stop waits for them */
}

TEST(Server, MessagesMayComeWithAsManyStopStringsAsPrompts) {
    struct net_fixture f;
    struct net_client c;
    net_fixture_init(&f);
    START(f, c);
    net_client_puts(&c,
                    "{\"id\":1,\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"stop\":["
                    "\"q1\",\"q2\",\"q3\",\"q4\",\"q5\",\"q6\",\"q7\",\"q8\",\"q9\",\"qa\",\"qb\","
                    "\"qc\",\"qd\",\"qe\",\"qf\",\"qg\"],\"max_tokens\":3,\"stream\":false}");
    json_t *done = net_client_until_done(&c, "1", NULL);
    EXPECT_TRUE(json_is_true(json_object_get(done, "done")));
    json_decref(done);
    /* An error names the part of the field that is wrong. */
    net_client_puts(&c, "{\"id\":2,\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}");
    json_t *line = net_client_json(&c);
    EXPECT_STR_EQ(string_of(json_object_get(line, "error"), "param"), "messages[0].role");
    json_decref(line);
    net_client_close(&c);
    net_fixture_stop(&f);
}

TEST(Server, ARequestCancelledBeforeItsFirstTokenHasEmptyLogprobs) {
    struct net_fixture f;
    struct net_client c;
    net_fixture_init(&f);
    START(f, c);
    net_client_puts(&c, "{\"id\":1,\"prompt\":\"Once\",\"logprobs\":2,\"stream\":false,"
                        "\"max_tokens\":500,\"ignore_eos\":true}\n{\"op\":\"cancel\",\"id\":1}");
    json_t *done = net_client_until_done(&c, "1", NULL);
    EXPECT_STR_EQ(string_of(done, "finish_reason"), "cancelled");
    EXPECT_TRUE(json_is_array(json_object_get(done, "logprobs")));
    EXPECT_INT_EQ(json_array_size(json_object_get(done, "logprobs")),
                  usage(done, "completion_tokens"));
    json_decref(done);
    net_client_close(&c);
    net_fixture_stop(&f);
}

TEST(Server, AModelWithoutATokenizerTakesTokenIdsOnly) {
    static const char *const refused[] = {
        "{\"id\":1,\"prompt\":\"Once\"}",
        "{\"id\":1,\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}",
        "{\"op\":\"tokenize\",\"id\":1,\"text\":\"Once\"}",
        "{\"op\":\"detokenize\",\"id\":1,\"tokens\":[1]}",
    };
    struct net_fixture f;
    struct net_client c;
    char model[512];
    snprintf(model, sizeof model, "%s/golden/mixtral", shim_data_dir());
    net_fixture_init(&f);
    f.engine_options.model = model;
    f.engine_options.load_format = "dummy"; /* the only way to start without one */
    START(f, c);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        net_client_puts(&c, refused[i]);
        json_t *line = net_client_json(&c);
        const char *message = string_of(json_object_get(line, "error"), "message");
        EXPECT_STR_EQ(net_error_code(line), "invalid_request");
        EXPECT_TRUE(strstr(message, "without a tokenizer"));
        json_decref(line);
    }
    net_client_puts(&c, "{\"id\":2,\"tokens\":[3,4,5],\"max_tokens\":6,\"ignore_eos\":true}");
    json_t *done = net_client_until_done(&c, "2", NULL);
    EXPECT_INT_EQ(usage(done, "completion_tokens"), 6);
    json_decref(done);
    net_client_puts(&c, "Once upon a time");
    EXPECT_TRUE(strstr(net_client_line(&c), "without a tokenizer"));
    net_client_close(&c);
    net_fixture_stop(&f);
    EXPECT_INT_EQ(f.status, 0);
}

TEST(Server, ManyClientsGetTheirOwnAnswers) {
    enum { CLIENTS = 24 };
    struct net_fixture f;
    struct net_client c[CLIENTS];
    struct buffer alone = {0}, text = {0};
    static const char line[] = "{\"id\":\"%d\",\"prompt\":\"Once upon %d\",\"max_tokens\":24,"
                               "\"temperature\":0,\"ignore_eos\":true}";
    char request[160], id[16];
    net_fixture_init(&f);
    ASSERT_TRUE(net_fixture_start(&f));
    for (int i = 0; i < CLIENTS; i++) {
        ASSERT_TRUE(net_client_open(&c[i], net_fixture_address(&f), 0));
        snprintf(request, sizeof request, line, i, i);
        net_client_puts(&c[i], request);
    }
    for (int i = 0; i < CLIENTS; i++) {
        snprintf(id, sizeof id, "\"%d\"", i);
        json_decref(net_client_until_done(&c[i], id, &text));
        snprintf(request, sizeof request, line, i, i);
        net_client_puts(&c[i], request);
        json_decref(net_client_until_done(&c[i], id, &alone));
        EXPECT_STR_EQ(text.data, alone.data);
        net_client_close(&c[i]);
    }
    buffer_deinit(&alone);
    buffer_deinit(&text);
    net_fixture_stop(&f);
}
