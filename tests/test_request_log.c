/* The lines that ended requests get (--log-requests), of the program, with the demo model. */
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/http_client.h"
#include "tests/program.h"
#include "tests/shim.h"

/* ---- a server whose log is kept ---- */

struct logged {
    struct program program;
    int log;
    char line[128], http[128]; /* addresses */
    char text[65536];
    char *rest; /* of it, behind the lines that expect_ended has taken */
};

/* The word behind `name` in the ready line. */
static void take_address(const char *ready, const char *name, char out[128]) {
    const char *at = strstr(ready, name);
    at = at ? at + strlen(name) : "";
    snprintf(out, 128, "%.*s", (int)strcspn(at, " \n"), at);
}

/* With up to 12 more arguments, NULL-ended. */
static bool serve(struct logged *s, const char *const *more) {
    const char *args[20] = {"--listen",       "127.0.0.1:0",  "--http", "127.0.0.1:0",
                            "--log-requests", "--log-format", "json"};
    int fds[2], n = 7;
    char ready[256];
    while (more && *more)
        args[n++] = *more++;
    if (!EXPECT_INT_EQ(pipe(fds), 0))
        return false;
    s->log = fds[0];
    bool ok = program_start_with(&s->program, args, fds[1]);
    close(fds[1]);
    if (!ok || !EXPECT_TRUE(program_read_line(&s->program, ready, sizeof ready)))
        return false;
    take_address(ready, "line=", s->line);
    take_address(ready, "http=", s->http);
    return true;
}

/* Stops it and reads its log. */
static void stop(struct logged *s) {
    size_t len = 0;
    kill(s->program.pid, SIGTERM);
    EXPECT_INT_EQ(program_wait(&s->program), 0);
    for (ssize_t n; len < sizeof s->text - 1 &&
                    (n = read(s->log, s->text + len, sizeof s->text - 1 - len)) > 0;)
        len += (size_t)n;
    s->text[len] = '\0';
    s->rest = s->text;
    close(s->log);
}

/* The next line of an ended request, to be released; NULL: there is none. */
static json_t *next_ended(struct logged *s) {
    for (char *l; (l = strtok_r(s->rest, "\n", &s->rest));) {
        json_t *line = json_loads(l, 0, NULL);
        if (json_object_get(line, "outcome"))
            return line;
        json_decref(line);
    }
    return NULL;
}

struct ended {
    const char *id, *outcome; /* NULL: any */
    int status;               /* 0: the line has none */
    int prompt, completion;   /* tokens; -1: more than none */
    const char *key;
};

static bool tokens_are(json_t *line, const char *name, int want) {
    json_int_t n = json_integer_value(json_object_get(line, name));
    return want < 0 ? n > 0 : n == want;
}

static const char *member(json_t *line, const char *name) {
    const char *s = json_string_value(json_object_get(line, name));
    return s ? s : "";
}

static void expect_ended(struct logged *s, const struct ended *want) {
    json_t *line = next_ended(s);
    bool same = line && !strcmp(member(line, "request"), want->id) &&
                (!want->outcome || !strcmp(member(line, "outcome"), want->outcome)) &&
                !strcmp(member(line, "key"), want->key ? want->key : "") &&
                json_integer_value(json_object_get(line, "status")) == want->status &&
                tokens_are(line, "prompt_tokens", want->prompt) &&
                tokens_are(line, "completion_tokens", want->completion) &&
                json_real_value(json_object_get(line, "total_ms")) >= 0;
    char *text = json_dumps(line, 0);
    if (!same)
        FAIL("%s: %s, not %s", want->id, text ? text : "no line",
             want->outcome ? want->outcome : "any");
    free(text);
    json_decref(line);
}

/* ---- HTTP ---- */

static void ask(struct logged *s, const char *id, const char *key, const char *body, int status) {
    struct net_client c;
    struct http_answer a = {0};
    char request[2048];
    snprintf(request, sizeof request,
             "POST /v1/completions HTTP/1.1\r\nHost: x\r\nx-request-id: %s\r\n"
             "Authorization: Bearer %s\r\nContent-Length: %zu\r\n\r\n%s",
             id, key, strlen(body), body);
    ASSERT_TRUE(net_client_open(&c, s->http, 0));
    EXPECT_TRUE(http_client_ask(&c, request, &a));
    EXPECT_INT_EQ(a.status, status);
    http_answer_deinit(&a);
    net_client_close(&c);
}

TEST(RequestLog, EveryRequestOfHttpHasOneLineUnderItsOwnId) {
    NEEDS_BINARY();
    static const char *const more[] = {"--api-key", "k", "--max-body-bytes", "1024", "-v", NULL};
    static const struct ended want[] = {
        {"one", "length", 200, 3, 3, "key-1"},
        {"three", "length", 200, 3, 12, "key-1"},
        {"stream", "length", 200, 5, 8, "key-1"},
        {"wrong", "invalid_request", 400, 0, 0, "key-1"},
        {"stranger", "unauthorized", 401, 0, 0, NULL},
        {"large", "body_too_large", 413, 0, 0, "key-1"},
    };
    static char large[1200];
    struct logged s;
    memset(large, ' ', sizeof large - 1);
    ASSERT_TRUE(serve(&s, more));
    ask(&s, "one", "k", "{\"prompt\":[5,6,7],\"max_tokens\":3,\"ignore_eos\":true}", 200);
    ask(&s, "three", "k", "{\"prompt\":[5,6,7],\"max_tokens\":4,\"ignore_eos\":true,\"n\":3}", 200);
    ask(&s, "stream", "k",
        "{\"prompt\":[[5,6,7],[8,9]],\"max_tokens\":4,\"ignore_eos\":true,\"stream\":true}", 200);
    ask(&s, "wrong", "k", "{\"prompt\":[5],\"max_tokens\":-3}", 400);
    ask(&s, "stranger", "other", "{\"prompt\":[5]}", 401);
    ask(&s, "large", "k", large, 413);
    stop(&s);
    EXPECT_TRUE(strstr(s.text, "\"level\":\"debug\",\"request\":\"one\","
                               "\"msg\":\"http: 200 of /v1/completions\"}\n") != NULL);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        expect_ended(&s, &want[i]);
    EXPECT_TRUE(next_ended(&s) == NULL);
}

/* 64 answers of 1,900 tokens take many times half a second. */
static const char endless[] =
    "{\"prompt\":[5,6,7],\"max_tokens\":1900,\"ignore_eos\":true,\"n\":64}";

TEST(RequestLog, ALateRequestSaysWhatItTookAndIsChargedForIt) {
    NEEDS_BINARY();
    char path[256];
    const char *const more[] = {"--api-key-file", path, "--request-timeout", "0.5", NULL};
    static const struct ended want[] = {
        {"late", "timeout", 504, 3, -1, "alice"},
        {"next", "overloaded", 429, 0, 0, "alice"},
    };
    struct logged s;
    snprintf(path, sizeof path, "%s/log-keys", shim_scratch_dir());
    FILE *f = fopen(path, "w");
    fputs("k name=alice tokens-per-minute=10\n", f);
    fclose(f);
    ASSERT_TRUE(serve(&s, more));
    ask(&s, "late", "k", endless, 504);
    ask(&s, "next", "k", "{\"prompt\":[5],\"max_tokens\":1}", 429);
    stop(&s);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        expect_ended(&s, &want[i]);
}

TEST(RequestLog, AClientThatGoesHasALineWithoutAStatus) {
    NEEDS_BINARY();
    static const struct ended after = {"after", NULL, 200, 1, 1, NULL};
    static const struct ended want = {"gone", "cancelled", 0, -1, -1, NULL};
    struct net_client c;
    struct logged s;
    char request[512];
    ASSERT_TRUE(serve(&s, NULL));
    snprintf(request, sizeof request,
             "POST /v1/completions HTTP/1.1\r\nHost: x\r\nx-request-id: gone\r\n"
             "Content-Length: %zu\r\n\r\n%s",
             strlen(endless), endless);
    ASSERT_TRUE(net_client_open(&c, s.http, 0));
    net_client_send(&c, request, strlen(request));
    usleep(300000); /* it has begun */
    net_client_close(&c);
    usleep(100000); /* that is known by now; the engine ends it before it takes up another */
    ask(&s, "after", "", "{\"prompt\":[5],\"max_tokens\":1}", 200);
    stop(&s);
    expect_ended(&s, &want);
    expect_ended(&s, &after);
    EXPECT_TRUE(next_ended(&s) == NULL);
}

/* ---- the line protocol ---- */

static void answer_to(struct net_client *c, const char *line) {
    json_t *o = NULL;
    net_client_puts(c, line);
    do {
        json_decref(o);
        o = net_client_json(c);
    } while (o && !json_object_get(o, "done") && !json_object_get(o, "error"));
    EXPECT_TRUE(o != NULL);
    json_decref(o);
}

TEST(RequestLog, LinesAreLoggedUnderTheirIdsWithoutQuotesAndEscapes) {
    NEEDS_BINARY();
    char line[512], long_id[257];
    memset(long_id, 'x', sizeof long_id - 1);
    long_id[sizeof long_id - 1] = '\0';
    const struct ended want[] = {
        {"caf\xc3\xa9 \"7\"", "length", 0, 2, 3, NULL},
        {"12", "length", 0, 2, 3, NULL},
        {long_id, "length", 0, 2, 3, NULL},
        {"a", "invalid_request", 0, 0, 0, NULL},
        {"null", "invalid_json", 0, 0, 0, NULL},
        {"plain", NULL, 0, -1, -1, NULL},
    };
    struct net_client c;
    struct logged s;
    ASSERT_TRUE(serve(&s, NULL));
    ASSERT_TRUE(net_client_open(&c, s.line, 0));
    answer_to(&c, "{\"id\":\"caf\\u00e9 \\\"7\\\"\",\"tokens\":[5,6],\"max_tokens\":3,"
                  "\"ignore_eos\":true}");
    answer_to(&c, "{\"id\":12,\"tokens\":[5,6],\"max_tokens\":3,\"ignore_eos\":true}");
    snprintf(line, sizeof line,
             "{\"id\":\"%s\",\"tokens\":[5,6],\"max_tokens\":3,\"ignore_eos\":true}", long_id);
    answer_to(&c, line);
    answer_to(&c, "{\"id\":\"a\",\"tokens\":[5,6],\"max_tokens\":-1}");
    answer_to(&c, "{\"id\":");
    net_client_puts(&c, "Once");
    net_client_shut(&c);
    EXPECT_TRUE(net_client_rest(&c) != NULL);
    net_client_close(&c);
    stop(&s);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        expect_ended(&s, &want[i]);
    EXPECT_TRUE(next_ended(&s) == NULL);
}

TEST(RequestLog, RefusalsForAKeyNameIt) {
    NEEDS_BINARY();
    static const char *const more[] = {"--api-key", "k", "--tokens-per-minute-per-key", "2", NULL};
    static const struct ended want[] = {
        {"0", "unauthorized", 0, 0, 0, NULL},
        {"1", "length", 0, 2, 3, "key-1"},
        {"2", "overloaded", 0, 0, 0, "key-1"},
    };
    struct net_client c;
    struct logged s;
    ASSERT_TRUE(serve(&s, more));
    ASSERT_TRUE(net_client_open(&c, s.line, 0));
    answer_to(&c, "{\"id\":0,\"tokens\":[5,6]}");
    net_client_puts(&c, "{\"op\":\"auth\",\"key\":\"k\"}");
    EXPECT_TRUE(net_client_line(&c) != NULL);
    answer_to(&c, "{\"id\":1,\"tokens\":[5,6],\"max_tokens\":3,\"ignore_eos\":true}");
    answer_to(&c, "{\"id\":2,\"tokens\":[5,6],\"max_tokens\":3}");
    net_client_close(&c);
    stop(&s);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        expect_ended(&s, &want[i]);
}
