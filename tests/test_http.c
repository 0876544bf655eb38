/* A real server: what HTTP clients that keep to the rules see, and some that do not. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/clock.h"
#include "tests/http_client.h"
#include "tests/shim.h"

#define HOST "Host: h\r\n"

/* A server and a connection to it; the test returns when either fails. */
#define START(r, c) ASSERT_TRUE(http_rig_start(&(r), &(c)))

TEST(Http, AnAnswerSaysWhoWhenAndHowMuch) {
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    char value[256], first[256];
    http_rig_init(&r);
    START(r, c);
    http_client_ask(&c, "GET /version HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.status, 200);
    EXPECT_STR_EQ(a.body.data, "{\"version\":\"" MOESERVE_VERSION "\"}");
    EXPECT_STR_EQ(http_answer_value(&a, "Server", value), "moeserve");
    EXPECT_STR_EQ(http_answer_value(&a, "Content-Type", value), "application/json");
    EXPECT_STR_EQ(http_answer_value(&a, "Connection", value), "");
    EXPECT_INT_EQ(strlen(http_answer_value(&a, "Date", value)),
                  strlen("Sun, 06 Nov 1994 08:49:37 GMT"));
    http_answer_value(&a, "x-request-id", first);
    EXPECT_INT_GT(strlen(first), 8);
    /* The connection goes on; another request has another id, or its own. */
    http_client_ask(&c, "GET /health HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_STR_EQ(a.body.data, "{\"status\":\"ok\"}");
    EXPECT_TRUE(strcmp(http_answer_value(&a, "x-request-id", value), first) != 0);
    http_client_ask(&c, "GET /health HTTP/1.1\r\n" HOST "X-Request-Id: abc-1.2:3\r\n\r\n", &a);
    EXPECT_STR_EQ(http_answer_value(&a, "x-request-id", value), "abc-1.2:3");
    static const char *const bad[] = {
        "a\"b", "a b",       "a\\b",
        "",     "a\xc3\xa9", "12345678901234567890123456789012345678901234567890123456789012345"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char bytes[256];
        snprintf(bytes, sizeof bytes, "GET /health HTTP/1.1\r\n" HOST "X-Request-Id: %s\r\n\r\n",
                 bad[i]);
        http_client_ask(&c, bytes, &a);
        EXPECT_INT_EQ(strncmp(http_answer_value(&a, "x-request-id", value), "req-", 4), 0);
    }
    http_answer_deinit(&a);
    net_client_close(&c);
    http_rig_stop(&r);
    EXPECT_INT_EQ(r.f.status, 0);
}

TEST(Http, BodiesArriveByLengthAndInChunks) {
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    http_rig_init(&r);
    START(r, c);
    http_client_ask(&c, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\nhello", &a);
    EXPECT_STR_EQ(a.body.data, "hello");
    http_client_ask(&c,
                    "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n"
                    "3\r\nabc\r\n2;x\r\nde\r\n0\r\nT: 1\r\n\r\n",
                    &a);
    EXPECT_STR_EQ(a.body.data, "abcde");
    http_client_ask(&c, "POST /echo HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.status, 200);
    EXPECT_STR_EQ(a.body.data, "");
    http_answer_deinit(&a);
    net_client_close(&c);
    http_rig_stop(&r);
}

TEST(Http, PipelinedRequestsAreAnsweredInOrder) {
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    struct buffer bytes = {0};
    enum { REQUESTS = 3000 };
    http_rig_init(&r);
    START(r, c);
    /* The first takes its time; the others wait for it. */
    buffer_puts(&bytes, "GET /later HTTP/1.1\r\n" HOST "\r\n");
    for (int i = 0; i < REQUESTS; i++)
        buffer_printf(&bytes, "GET /tree/%d HTTP/1.1\r\n" HOST "\r\n", i);
    buffer_puts(&bytes, "GET /later HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n"
                        "GET /tree/never HTTP/1.1\r\n" HOST "\r\n");
    EXPECT_TRUE(net_client_send(&c, bytes.data, bytes.len));
    ASSERT_TRUE(http_client_read(&c, true, &a));
    EXPECT_STR_EQ(a.body.data, "late");
    for (int i = 0; i < REQUESTS && !shim_failed(); i++) {
        char path[32];
        snprintf(path, sizeof path, "/tree/%d", i);
        http_client_read(&c, true, &a);
        EXPECT_STR_EQ(a.body.data, path);
    }
    http_client_read(&c, true, &a);
    EXPECT_STR_EQ(a.body.data, "late");
    EXPECT_STR_EQ(net_client_rest(&c), "");
    buffer_deinit(&bytes);
    http_answer_deinit(&a);
    net_client_close(&c);
    http_rig_stop(&r);
}

/* What can be answered at once is, although the client says that it sends no more. */
TEST(Http, RequestsBeforeTheEndOfInputAreAnswered) {
    struct http_rig r;
    struct net_client c;
    http_rig_init(&r);
    START(r, c);
    net_client_puts(&c, "GET /tree/1 HTTP/1.1\r\n" HOST "\r\nGET /tree/2 HTTP/1.1\r\n" HOST "\r");
    net_client_shut(&c);
    const char *all = net_client_rest(&c);
    EXPECT_TRUE(strstr(all, "\r\n/tree/1HTTP/1.1 200") && strstr(all, "\r\n/tree/2"));
    net_client_close(&c);
    http_rig_stop(&r);
}

TEST(Http, HeadHasTheLengthButNoBody) {
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    char value[256];
    http_rig_init(&r);
    START(r, c);
    net_client_puts(&c, "HEAD /big?1000 HTTP/1.1\r\n" HOST "\r");
    ASSERT_TRUE(http_client_read(&c, false, &a));
    EXPECT_INT_EQ(a.status, 200);
    EXPECT_STR_EQ(http_answer_value(&a, "Content-Length", value), "1000");
    net_client_puts(&c, "HEAD /stream?5 HTTP/1.1\r\n" HOST "\r");
    ASSERT_TRUE(http_client_read(&c, false, &a));
    EXPECT_STR_EQ(http_answer_value(&a, "Content-Type", value), "text/event-stream");
    net_client_puts(&c, "HEAD /nowhere HTTP/1.1\r\n" HOST "\r");
    ASSERT_TRUE(http_client_read(&c, false, &a));
    EXPECT_INT_EQ(a.status, 404);
    http_client_ask(&c, "GET /version HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.status, 200);
    http_answer_deinit(&a);
    net_client_close(&c);
    http_rig_stop(&r);
}

TEST(Http, UnknownPathsAndMethodsAreToldWhatThereIs) {
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    char value[256];
    http_rig_init(&r);
    START(r, c);
    http_client_ask(&c, "GET /nowhere HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.status, 404);
    EXPECT_STR_EQ(a.body.data, "{\"error\":{\"message\":\"there is nothing at this path\",\"type\":"
                               "\"invalid_request_error\",\"param\":null,\"code\":\"not_found\"}}");
    /* A body that nobody wants is read past. */
    http_client_ask(&c, "POST /tree/x HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\nhello", &a);
    EXPECT_INT_EQ(a.status, 405);
    EXPECT_STR_EQ(http_answer_value(&a, "Allow", value), "GET, HEAD, OPTIONS");
    http_client_ask(&c, "DELETE /echo HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.status, 405);
    EXPECT_STR_EQ(http_answer_value(&a, "Allow", value), "POST, OPTIONS");
    http_client_ask(&c, "OPTIONS /echo HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.status, 204);
    EXPECT_STR_EQ(http_answer_value(&a, "Allow", value), "POST, OPTIONS");
    EXPECT_STR_EQ(http_answer_value(&a, "Content-Length", value), "");
    EXPECT_STR_EQ(http_answer_value(&a, "Access-Control-Allow-Origin", value), "");
    http_client_ask(&c, "OPTIONS * HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.status, 204);
    http_client_ask(&c, "OPTIONS /nowhere HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.status, 404);
    http_client_ask(&c, "GET /tree/a%20b?q HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_STR_EQ(a.body.data, "/tree/a%20b");
    EXPECT_STR_EQ(http_answer_value(&a, "X-Found", value), "yes");
    http_client_ask(&c, "GET /tree/ HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.status, 404);
    http_answer_deinit(&a);
    net_client_close(&c);
    http_rig_stop(&r);
}

TEST(Http, ErrorsHaveStatusTypeAndCode) {
    static const struct {
        const char *name;
        int status;
        const char *type, *code;
    } cases[] = {
        {"invalid_json", 400, "invalid_request_error", "invalid_json"},
        {"invalid_request", 400, "invalid_request_error", "invalid_request"},
        {"context_length_exceeded", 400, "invalid_request_error", "context_length_exceeded"},
        {"unauthorized", 401, "authentication_error", "invalid_api_key"},
        {"not_found", 404, "invalid_request_error", "not_found"},
        {"line_too_long", 413, "invalid_request_error", "body_too_large"},
        {"overloaded", 429, "rate_limit_error", "overloaded"},
        {"internal", 500, "internal_error", "internal"},
        {"bad_file", 500, "internal_error", "internal"},
        {"shutting_down", 503, "unavailable_error", "shutting_down"},
        {"loading", 503, "unavailable_error", "loading"},
        {"timeout", 504, "timeout_error", "timeout"},
    };
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    http_rig_init(&r);
    START(r, c);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char bytes[256], body[256], value[256];
        snprintf(bytes, sizeof bytes,
                 "POST /error HTTP/1.1\r\n" HOST "Content-Length: %zu\r\n\r\n%s",
                 strlen(cases[i].name), cases[i].name);
        snprintf(body, sizeof body,
                 "{\"error\":{\"message\":\"a \\\"message\\\"\",\"type\":\"%s\",\"param\":"
                 "\"field\",\"code\":\"%s\"}}",
                 cases[i].type, cases[i].code);
        http_client_ask(&c, bytes, &a);
        EXPECT_INT_EQ(a.status, cases[i].status);
        EXPECT_STR_EQ(a.body.data, body);
        EXPECT_INT_EQ(*http_answer_value(&a, "Retry-After", value) != '\0', a.status == 503);
    }
    http_answer_deinit(&a);
    net_client_close(&c);
    http_rig_stop(&r);
}

TEST(Http, PagesOfOtherOriginsAreLetInOnlyWhenAsked) {
    static const char preflight[] =
        "OPTIONS /echo HTTP/1.1\r\n" HOST "Origin: https://a.example\r\n"
        "Access-Control-Request-Method: POST\r\n"
        "Access-Control-Request-Headers: authorization, x-stainless-os\r\n\r\n";
    static const char *const origins[] = {NULL, "*", "https://a.example", "https://b.example"};
    for (int i = 0; i < 4; i++) {
        struct http_rig r;
        struct net_client c;
        struct http_answer a = {0};
        char value[256];
        const char *expected = i == 1 || i == 2 ? origins[i] : "";
        http_rig_init(&r);
        r.f.options.cors_origin = origins[i];
        START(r, c);
        http_client_ask(&c, preflight, &a);
        EXPECT_INT_EQ(a.status, 204);
        EXPECT_STR_EQ(http_answer_value(&a, "Access-Control-Allow-Origin", value), expected);
        EXPECT_STR_EQ(http_answer_value(&a, "Access-Control-Allow-Methods", value),
                      *expected ? "POST, OPTIONS" : "");
        EXPECT_STR_EQ(http_answer_value(&a, "Access-Control-Allow-Headers", value),
                      *expected ? "authorization, x-stainless-os" : "");
        http_client_ask(&c, "GET /version HTTP/1.1\r\n" HOST "Origin: https://a.example\r\n\r\n",
                        &a);
        EXPECT_STR_EQ(http_answer_value(&a, "Access-Control-Allow-Origin", value), expected);
        EXPECT_STR_EQ(http_answer_value(&a, "Vary", value), i >= 2 ? "Origin" : "");
        http_client_ask(&c, "GET /version HTTP/1.1\r\n" HOST "\r\n", &a);
        EXPECT_STR_EQ(http_answer_value(&a, "Access-Control-Allow-Origin", value), "");
        http_answer_deinit(&a);
        net_client_close(&c);
        http_rig_stop(&r);
    }
}

/* Whether the answer names an origin is decided without the headers, where there are none yet. */
TEST(Http, RefusedHeadsAreAnsweredWhereOtherOriginsAreLetIn) {
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    http_rig_init(&r);
    r.f.options.cors_origin = "*";
    r.f.options.http_timeouts.head_ms = 200;
    START(r, c);
    http_client_ask(&c, "GET /version HTTP/1.1\r\n" HOST "bad header\r\n\r\n", &a);
    EXPECT_INT_EQ(a.status, 400);
    net_client_close(&c);
    ASSERT_TRUE(net_client_open(&c, net_fixture_http(&r.f), 0));
    http_client_ask(&c, "GET /version HTTP/1.1\r\n" HOST "Origin: http://a\r\n", &a);
    EXPECT_INT_EQ(a.status, 408);
    net_client_close(&c);
    http_expect_well(&r.f);
    http_answer_deinit(&a);
    http_rig_stop(&r);
}

TEST(Http, AContinueComesOnlyWhenTheBodyIsWanted) {
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    http_rig_init(&r);
    r.f.options.max_body_bytes = 1024;
    START(r, c);
    http_client_ask(&c,
                    "POST /echo HTTP/1.1\r\n" HOST "Expect: 100-continue\r\n"
                    "Content-Length: 5\r\n\r\n",
                    &a);
    EXPECT_INT_EQ(a.status, 100);
    http_client_ask(&c, "hello", &a);
    EXPECT_INT_EQ(a.status, 200);
    EXPECT_STR_EQ(a.body.data, "hello");
    static const struct {
        const char *path, *headers;
        int status;
    } refused[] = {
        {"/nowhere", "Expect: 100-continue\r\nContent-Length: 5\r\n", 404},
        {"/big", "Expect: 100-continue\r\nContent-Length: 5\r\n", 405},
        {"/echo", "Expect: 100-continue\r\nContent-Length: 1025\r\n", 413},
        {"/echo", "Content-Length: 1025\r\n", 413},
        {"/echo", "Expect: something\r\nContent-Length: 5\r\n", 417},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct net_client other;
        char bytes[256], value[256];
        ASSERT_TRUE(net_client_open(&other, net_fixture_http(&r.f), 0));
        snprintf(bytes, sizeof bytes, "POST %s HTTP/1.1\r\n" HOST "%s\r\n", refused[i].path,
                 refused[i].headers);
        http_client_ask(&other, bytes, &a);
        EXPECT_INT_EQ(a.status, refused[i].status);
        EXPECT_STR_EQ(http_answer_value(&a, "Connection", value), "close");
        EXPECT_STR_EQ(net_client_rest(&other), "");
        net_client_close(&other);
    }
    /* Nothing to wait for: no 100. */
    http_client_ask(&c, "POST /echo HTTP/1.1\r\n" HOST "Expect: 100-continue\r\n\r\n", &a);
    EXPECT_INT_EQ(a.status, 200);
    http_answer_deinit(&a);
    net_client_close(&c);
    http_rig_stop(&r);
}

TEST(Http, ACompressedBodyIsRefusedAsSuch) {
    static const struct {
        const char *coding;
        int status;
    } cases[] = {{"gzip", 415}, {"identity", 200}, {"Identity", 200}, {"", 200}, {"br, gzip", 415}};
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    http_rig_init(&r);
    START(r, c);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char bytes[256], value[256];
        snprintf(bytes, sizeof bytes,
                 "POST /echo HTTP/1.1\r\n" HOST "Content-Encoding: %s\r\n"
                 "Content-Length: 5\r\n\r\nhello",
                 cases[i].coding);
        http_client_ask(&c, bytes, &a); /* the connection goes on */
        EXPECT_INT_EQ(a.status, cases[i].status);
        EXPECT_STR_EQ(http_answer_value(&a, "Accept-Encoding", value),
                      a.status == 415 ? "identity" : "");
    }
    http_answer_deinit(&a);
    net_client_close(&c);
    http_rig_stop(&r);
}

TEST(Http, AnHttp10ClientGetsNoChunksAndTheEnd) {
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    char value[256];
    http_rig_init(&r);
    START(r, c);
    http_client_ask(&c, "GET /stream?3 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &a);
    EXPECT_STR_EQ(a.body.data, "data: 0\n\ndata: 1\n\ndata: 2\n\n");
    EXPECT_STR_EQ(http_answer_value(&a, "Connection", value), "close");
    EXPECT_FALSE(a.chunked);
    net_client_close(&c);
    http_answer_deinit(&a);
    http_rig_stop(&r);
}

TEST(Http, AStreamComesInPiecesAndTheConnectionGoesOn) {
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    char value[256];
    http_rig_init(&r);
    START(r, c);
    http_client_ask(&c, "GET /stream?3 HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_TRUE(a.chunked);
    EXPECT_STR_EQ(a.body.data, "data: 0\n\ndata: 1\n\ndata: 2\n\n");
    EXPECT_STR_EQ(http_answer_value(&a, "Content-Type", value), "text/event-stream");
    EXPECT_STR_EQ(http_answer_value(&a, "Cache-Control", value), "no-store");
    EXPECT_STR_EQ(http_answer_value(&a, "X-Accel-Buffering", value), "no");
    http_client_ask(&c, "GET /stream?0 HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_STR_EQ(a.body.data, "");
    http_client_ask(&c, "GET /big?3000000 HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.body.len, 3000001);
    http_answer_deinit(&a);
    net_client_close(&c);
    http_rig_stop(&r);
}

/* Each breaks the framing: it is answered, the connection closes, and others are served. */
TEST(Http, AttacksOnTheFramingEndTheirConnectionOnly) {
    static const struct {
        const char *bytes;
        int status;
    } attacks[] = {
        {"POST /echo HTTP/1.1\r\n" HOST "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n"
         "0\r\n\r\nGET /hold HTTP/1.1\r\n" HOST "\r\n",
         400},
        {"POST /echo HTTP/1.1\r\n" HOST
         "Transfer-Encoding: xchunked\r\n\r\nGET /hold HTTP/1.1\r\n" HOST "\r\n",
         501},
        {"POST /echo HTTP/1.1\r\n" HOST "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400},
        {"POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\nZ\r\n", 400},
        {"GET /version HTTP/1.1\r\n" HOST " folded\r\n\r\n", 400},
        {"GET /version HTTP/1.1\nHost: h\n\n", 400},
        {"GET /version HTTP/1.1\r\n\r\n", 400},
        {"GET /version HTTP/3.0\r\n" HOST "\r\n", 505},
        {"\x16\x03\x01\x02", 400},
        {"hello\r\n\r\n", 400},
    };
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    char value[256];
    http_rig_init(&r);
    START(r, c);
    net_client_close(&c);
    for (size_t i = 0; i < sizeof attacks / sizeof *attacks; i++) {
        ASSERT_TRUE(net_client_open(&c, net_fixture_http(&r.f), 0));
        http_client_ask(&c, attacks[i].bytes, &a);
        EXPECT_INT_EQ(a.status, attacks[i].status);
        EXPECT_STR_EQ(http_answer_value(&a, "Connection", value), "close");
        EXPECT_STR_EQ(net_client_rest(&c), "");
        net_client_close(&c);
        http_expect_well(&r.f);
    }
    EXPECT_INT_EQ(r.held, 0); /* nothing was smuggled */
    http_answer_deinit(&a);
    http_rig_stop(&r);
}

TEST(Http, AClientThatLeavesIsNoticed) {
    struct http_rig r;
    struct net_client c;
    http_rig_init(&r);
    START(r, c);
    for (int i = 0; i < 3; i++) {
        net_client_puts(&c, "GET /hold HTTP/1.1\r\n" HOST "\r");
        EXPECT_TRUE(net_client_line(&c) != NULL);
        if (i == 0)
            net_client_close(&c);
        else
            net_client_shut(&c); /* no half-closed clients here, as with proxies */
        http_rig_wait(&r.gone, i + 1);
        if (i > 0)
            EXPECT_TRUE(net_client_ended(&c, 5000));
        net_client_close(&c);
        ASSERT_TRUE(net_client_open(&c, net_fixture_http(&r.f), 0));
    }
    /* Also with more requests behind it than are read ahead (the kernel holds the rest). */
    struct buffer bytes = {0};
    buffer_puts(&bytes, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
    for (int i = 0; i < 2500; i++)
        buffer_puts(&bytes, "GET /version HTTP/1.1\r\n" HOST "\r\n");
    net_client_send(&c, bytes.data, bytes.len);
    http_rig_wait(&r.held, 4);
    net_client_shut(&c);
    http_rig_wait(&r.gone, 4);
    buffer_deinit(&bytes);
    net_client_close(&c);
    http_expect_well(&r.f);
    http_rig_stop(&r);
}
