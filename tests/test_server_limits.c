/* A real server and clients that are hostile, clumsy or gone; and the end of the server. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/clock.h"
#include "net/address.h"
#include "tests/net_client.h"
#include "tests/shim.h"

static void put_request(struct net_client *c, int id, int max_tokens, const char *more) {
    char line[256];
    snprintf(line, sizeof line,
             "{\"id\":%d,\"prompt\":\"Once upon a time\",\"max_tokens\":%d,\"ignore_eos\":true%s}",
             id, max_tokens, more);
    net_client_puts(c, line);
}

static int64_t completion_tokens(const json_t *done) {
    return json_integer_value(json_object_get(json_object_get(done, "usage"), "completion_tokens"));
}

/* ---- limits ---- */

TEST(ServerLimits, AnEndlessLineIsCutOffAfterAnError) {
    struct net_fixture f;
    struct net_client c, d;
    char piece[4096];
    net_fixture_init(&f);
    f.options.max_line_bytes = 10000;
    ASSERT_TRUE(net_fixture_start(&f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
    ASSERT_TRUE(net_client_open(&d, net_fixture_address(&f), 0));
    memset(piece, 'x', sizeof piece);
    for (int i = 0; i < 4; i++)
        net_client_send(&c, piece, sizeof piece);
    json_t *o = net_client_json(&c);
    EXPECT_STR_EQ(net_error_code(o), "line_too_long");
    json_decref(o);
    int64_t sent = 0;
    while (sent < (64 << 20) && net_client_send(&c, piece, sizeof piece))
        sent += (int64_t)sizeof piece;
    EXPECT_INT_LT(sent, 64 << 20);
    EXPECT_TRUE(net_client_ping(&d));
    net_client_close(&c);
    net_client_close(&d);
    net_fixture_stop(&f);
}

TEST(ServerLimits, DepthBombsAreRefused) {
    enum { DEPTH = 1000000 };
    struct net_fixture f;
    struct net_client c;
    struct buffer bomb = {0};
    net_fixture_init(&f);
    ASSERT_TRUE(net_fixture_start(&f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
    static const char *const openings[] = {"[", "{\"a\":", "[[\"\\\"\"],"};
    for (int k = 0; k < 3; k++) {
        buffer_clear(&bomb);
        buffer_puts(&bomb, "{\"prompt\":");
        while (bomb.len < DEPTH)
            buffer_puts(&bomb, openings[k]);
        buffer_putc(&bomb, '\n');
        net_client_send(&c, bomb.data, bomb.len);
        json_t *o = net_client_json(&c);
        EXPECT_STR_EQ(net_error_code(o), "invalid_json");
        json_decref(o);
        EXPECT_TRUE(net_client_ping(&c));
    }
    buffer_deinit(&bomb);
    net_client_close(&c);
    net_fixture_stop(&f);
}

TEST(ServerLimits, OneConnectionTooManyIsToldSo) {
    enum { MOST = 5 };
    struct net_fixture f;
    struct net_client c[MOST], extra;
    net_fixture_init(&f);
    f.options.max_connections = MOST;
    ASSERT_TRUE(net_fixture_start(&f));
    for (int i = 0; i < MOST; i++) {
        ASSERT_TRUE(net_client_open(&c[i], net_fixture_address(&f), 0));
        EXPECT_TRUE(net_client_ping(&c[i]));
    }
    ASSERT_TRUE(net_client_open(&extra, net_fixture_address(&f), 0));
    json_t *o = net_client_json(&extra);
    EXPECT_STR_EQ(net_error_code(o), "overloaded");
    json_decref(o);
    EXPECT_TRUE(net_client_ended(&extra, 10000));
    net_client_close(&extra);
    /* A place that becomes free can be taken. */
    net_client_close(&c[0]);
    while (net_client_stat(&c[1], "connections") >= MOST) /* with the refused one while it reads */
        usleep(1000);
    ASSERT_TRUE(net_client_open(&c[0], net_fixture_address(&f), 0));
    EXPECT_TRUE(net_client_ping(&c[0]));
    for (int i = 0; i < MOST; i++)
        net_client_close(&c[i]);
    net_fixture_stop(&f);
}

/* Reads until `count` requests have ended; returns how many were refused as overloaded. */
static int count_overloaded(struct net_client *c, int count) {
    int ended = 0, overloaded = 0;
    while (ended < count) {
        json_t *o = net_client_json(c);
        if (!o)
            return -1;
        bool refused = !strcmp(net_error_code(o), "overloaded");
        overloaded += refused;
        ended += refused || json_object_get(o, "done");
        json_decref(o);
    }
    return overloaded;
}

TEST(ServerLimits, AFloodIsRefusedAtOnceAndNothingHangs) {
    enum { REQUESTS = 500 };
    struct net_fixture f;
    struct net_client c;
    net_fixture_init(&f);
    f.engine_options.max_num_seqs = 4;
    f.engine_options.max_queued_requests = 8;
    ASSERT_TRUE(net_fixture_start(&f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
    for (int i = 0; i < REQUESTS; i++)
        put_request(&c, i, 64, "");
    int overloaded = count_overloaded(&c, REQUESTS);
    EXPECT_INT_GT(overloaded, 0);
    EXPECT_INT_LE(overloaded, REQUESTS - 8);
    EXPECT_TRUE(net_client_ping(&c));
    net_client_close(&c);
    EXPECT_TRUE(net_fixture_is_quiet(&f));
    net_fixture_stop(&f);
}

TEST(ServerLimits, OneConnectionHasALimitOfRequests) {
    struct net_fixture f;
    struct net_client c;
    net_fixture_init(&f);
    f.options.max_requests_per_connection = 3;
    ASSERT_TRUE(net_fixture_start(&f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
    for (int i = 0; i < 6; i++)
        put_request(&c, i, 200, "");
    EXPECT_INT_EQ(count_overloaded(&c, 6), 3);
    net_client_close(&c);
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
    /* Plain lines wait instead, and the lines behind them. */
    for (int i = 0; i < 20; i++)
        net_client_puts(&c, "2+2=");
    net_client_puts(&c, "{\"op\":\"ping\",\"id\":\"last\"}");
    net_client_shut(&c);
    const char *text = net_client_rest(&c);
    EXPECT_TRUE(strstr(text, "error: ") == NULL && strstr(text, "{\"id\":\"last\"") != NULL);
    net_client_close(&c);
    net_fixture_stop(&f);
}

TEST(ServerLimits, AClientThatNeverReadsIsCutOffAndCancelled) {
    struct net_fixture f;
    struct net_client c, d;
    net_fixture_init(&f);
    f.options.max_unsent_bytes = 32 * 1024;
    ASSERT_TRUE(net_fixture_start(&f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 4096));
    ASSERT_TRUE(net_client_open(&d, net_fixture_address(&f), 0));
    /* About 700 bytes a token, 16 x 2,000 of them: far more than the kernel keeps for a peer that
     * does not read. */
    for (int i = 0; i < 16; i++)
        put_request(&c, i, 2000, ",\"logprobs\":20");
    while (net_client_stat(&d, "connections") == 2)
        usleep(10000);
    EXPECT_TRUE(net_fixture_is_quiet(&f));
    struct engine_stats s;
    net_fixture_stats(&f, &s);
    EXPECT_INT_LT(s.completion_tokens_total, 16 * 2000);
    net_client_close(&c);
    net_client_close(&d);
    net_fixture_stop(&f);
}

TEST(ServerLimits, ASlowReaderGetsEverything) {
    struct net_fixture f;
    struct net_client c;
    net_fixture_init(&f);
    f.options.max_unsent_bytes = 1 << 20;
    ASSERT_TRUE(net_fixture_start(&f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 4096));
    for (int i = 0; i < 40; i++)
        net_client_puts(&c, "{\"op\":\"stats\",\"id\":0}");
    put_request(&c, 1, 200, ",\"logprobs\":5");
    usleep(300 * 1000);
    json_t *done = net_client_until_done(&c, "1", NULL);
    EXPECT_INT_EQ(completion_tokens(done), 200);
    json_decref(done);
    net_client_close(&c);
    net_fixture_stop(&f);
}

/* Sends while the test's thread reads. */
struct sender {
    struct net_client *client;
    struct buffer bytes;
};

static void *send_all(void *arg) {
    struct sender *s = arg;
    net_client_send(s->client, s->bytes.data, s->bytes.len);
    return NULL;
}

TEST(ServerLimits, AFloodOfOpsUnreadIsHeldBackNotCutOff) {
    enum { OPS = 20000 };
    struct net_fixture f;
    struct net_client c;
    struct sender sender = {.client = &c};
    pthread_t thread;
    int lines = 0;
    net_fixture_init(&f);
    f.options.max_unsent_bytes = 4 << 20;
    ASSERT_TRUE(net_fixture_start(&f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 4096));
    for (int i = 0; i < OPS; i++)
        buffer_puts(&sender.bytes, "{\"op\":\"stats\"}\n");
    ASSERT_INT_EQ(pthread_create(&thread, NULL, send_all, &sender), 0);
    usleep(200 * 1000);
    while (lines < OPS && net_client_line(&c))
        lines++;
    EXPECT_INT_EQ(lines, OPS);
    pthread_join(thread, NULL);
    buffer_deinit(&sender.bytes);
    net_client_close(&c);
    net_fixture_stop(&f);
}

TEST(ServerLimits, UnfinishedLinesOfAllClientsHaveALimit) {
    enum { CLIENTS = 8, PIECE = 400 * 1024 };
    struct net_fixture f;
    struct net_client c[CLIENTS];
    struct buffer piece = {0};
    net_fixture_init(&f);
    f.options.max_buffered_bytes = 1 << 20;
    ASSERT_TRUE(net_fixture_start(&f));
    while (piece.len < PIECE)
        buffer_putc(&piece, 'x');
    int ended = 0;
    for (int i = 0; i < CLIENTS; i++) {
        ASSERT_TRUE(net_client_open(&c[i], net_fixture_address(&f), 0));
        net_client_send(&c[i], piece.data, piece.len);
    }
    for (int i = 0; i < CLIENTS; i++)
        ended += net_client_ended(&c[i], 300);
    EXPECT_INT_GE(ended, CLIENTS - 3);
    EXPECT_INT_LT(ended, CLIENTS);
    for (int i = 0; i < CLIENTS; i++)
        net_client_close(&c[i]);
    ASSERT_TRUE(net_client_open(&c[0], net_fixture_address(&f), 0));
    EXPECT_TRUE(net_client_ping(&c[0]));
    net_client_close(&c[0]);
    buffer_deinit(&piece);
    net_fixture_stop(&f);
}

/* A request of a browser, which any web page can cause, is one error and not a dozen prompts. */
TEST(ServerLimits, HttpIsRefused) {
    static const char *const requests[] = {
        "POST /v1/completions HTTP/1.1\r\nHost: localhost:7070\r\n"
        "Content-Type: text/plain\r\n\r\n{\"id\":1,\"prompt\":\"Once\"}\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    };
    struct net_fixture f;
    struct net_client c;
    net_fixture_init(&f);
    ASSERT_TRUE(net_fixture_start(&f));
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
        net_client_send(&c, requests[i], strlen(requests[i]));
        const char *answer = net_client_rest(&c);
        EXPECT_TRUE(!strncmp(answer, "HTTP/1.1 400 ", 13) && strstr(answer, "not HTTP"));
        EXPECT_TRUE(!strstr(answer, "\"id\""));
        net_client_close(&c);
    }
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
    EXPECT_INT_EQ(net_client_stat(&c, "requests_total"), 0);
    net_client_close(&c);
    net_fixture_stop(&f);
}

/* Plain prompts that can never run take no memory while they wait, and those that can are read only
 * so far ahead. */
TEST(ServerLimits, WaitingPlainPromptsAreBounded) {
    enum { LINES = 300, WORDS = 30000 };
    struct net_fixture f;
    struct net_client c;
    struct buffer line = {0};
    net_fixture_init(&f);
    f.options.max_buffered_bytes = 4 << 20;
    ASSERT_TRUE(net_fixture_start(&f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
    for (int i = 0; i < WORDS; i++)
        buffer_puts(&line, "7 ");
    buffer_putc(&line, '\n');
    net_client_puts(&c, "Once upon a time");
    for (int i = 0; i < LINES; i++) /* 18 MB of them: 18 M tokens, 72 MB if they were all kept */
        net_client_send(&c, line.data, line.len);
    net_client_shut(&c);
    const char *answer = net_client_rest(&c);
    int refused = 0;
    for (const char *p = answer; (p = strstr(p, "the context holds")); p++)
        refused++;
    EXPECT_INT_EQ(refused, LINES);
    net_client_close(&c);
    buffer_deinit(&line);
    EXPECT_TRUE(net_fixture_is_quiet(&f));
    net_fixture_stop(&f);
}

TEST(ServerLimits, AnUnfinishedLineHasATimeLimit) {
    struct net_fixture f;
    struct net_client c, d;
    net_fixture_init(&f);
    f.options.line_timeout_s = 1;
    ASSERT_TRUE(net_fixture_start(&f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
    ASSERT_TRUE(net_client_open(&d, net_fixture_address(&f), 0));
    net_client_send(&c, "{\"op\":", 6);
    json_t *o = net_client_json(&c);
    EXPECT_STR_EQ(net_error_code(o), "invalid_request");
    json_decref(o);
    EXPECT_TRUE(net_client_ended(&c, 10000));
    EXPECT_TRUE(net_client_ping(&d)); /* silence is no unfinished line */
    net_client_close(&c);
    net_client_close(&d);
    net_fixture_stop(&f);
}

TEST(ServerLimits, IdleConnectionsCostNobodyAnything) {
    enum { CLIENTS = 500 };
    static struct net_client c[CLIENTS];
    struct net_fixture f;
    struct net_client d;
    net_fixture_init(&f);
    ASSERT_TRUE(net_fixture_start(&f));
    for (int i = 0; i < CLIENTS; i++) {
        ASSERT_TRUE(net_client_open(&c[i], net_fixture_address(&f), 0));
        net_client_send(&c[i], "{\"op", 4);
    }
    ASSERT_TRUE(net_client_open(&d, net_fixture_address(&f), 0));
    put_request(&d, 1, 50, "");
    json_t *done = net_client_until_done(&d, "1", NULL);
    EXPECT_INT_EQ(completion_tokens(done), 50);
    json_decref(done);
    EXPECT_INT_EQ(net_client_stat(&d, "connections"), CLIENTS + 1);
    for (int i = 0; i < CLIENTS; i++)
        net_client_close(&c[i]);
    net_client_close(&d);
    net_fixture_stop(&f);
}

/* ---- clients that go away ---- */

TEST(ServerClientsGone, DisconnectsAtRandomMomentsLeaveNothingBehind) {
    enum { CLIENTS = 200 };
    struct net_fixture f;
    struct net_client c;
    unsigned seed = 1;
    net_fixture_init(&f);
    f.engine_options.max_num_seqs = 4;
    ASSERT_TRUE(net_fixture_start(&f));
    for (int i = 0; i < CLIENTS; i++) {
        ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
        int requests = 1 + (int)(rand_r(&seed) % 4);
        for (int k = 0; k < requests; k++)
            put_request(&c, k, 400, rand_r(&seed) % 2 ? ",\"stream\":false" : "");
        if (rand_r(&seed) % 8 == 0)
            net_client_puts(&c, "Once upon a time");
        if (rand_r(&seed) % 2)
            usleep(rand_r(&seed) % 5000);
        if (rand_r(&seed) % 4 == 0)
            net_client_shut(&c);
        net_client_close(&c);
    }
    EXPECT_TRUE(net_fixture_is_quiet(&f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
    EXPECT_TRUE(net_client_ping(&c));
    net_client_close(&c);
    net_fixture_stop(&f);
}

TEST(ServerClientsGone, AWaitingRequestOfAClientThatLeftIsNotRun) {
    struct net_fixture f;
    struct net_client busy, gone;
    struct engine_stats s;
    net_fixture_init(&f);
    f.engine_options.max_num_seqs = 1;
    f.engine_options.device = "ref"; /* slow: the first request must not end too soon */
    ASSERT_TRUE(net_fixture_start(&f));
    ASSERT_TRUE(net_client_open(&busy, net_fixture_address(&f), 0));
    ASSERT_TRUE(net_client_open(&gone, net_fixture_address(&f), 0));
    put_request(&busy, 1, 2000, "");
    put_request(&gone, 1, 2000, ",\"stream\":false");
    do
        net_fixture_stats(&f, &s);
    while (s.waiting == 0 || s.running == 0);
    net_client_close(&gone); /* an orderly end: nothing was unread */
    int64_t since_us = clock_us();
    do
        net_fixture_stats(&f, &s);
    while (s.waiting > 0 && clock_us() - since_us < 10 * 1000000);
    EXPECT_INT_EQ(s.waiting, 0);
    EXPECT_INT_EQ(s.running, 1);
    net_client_close(&busy);
    EXPECT_TRUE(net_fixture_is_quiet(&f));
    net_fixture_stop(&f);
}

/* ---- the end ---- */

TEST(ServerStop, RunningRequestsFinishAndNewOnesAreRefused) {
    struct net_fixture f;
    struct net_client c, idle;
    net_fixture_init(&f);
    f.options.drain_timeout_s = 100;
    ASSERT_TRUE(net_fixture_start(&f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
    ASSERT_TRUE(net_client_open(&idle, net_fixture_address(&f), 0));
    put_request(&c, 1, 1000, "");
    json_decref(net_client_json(&c));
    EXPECT_TRUE(net_client_ping(&idle));
    server_stop(f.server);
    EXPECT_TRUE(net_client_ended(&idle, 10000));
    put_request(&c, 2, 10, "");
    json_t *o = net_client_until_done(&c, "2", NULL);
    EXPECT_STR_EQ(net_error_code(o), "shutting_down");
    json_decref(o);
    o = net_client_until_done(&c, "1", NULL);
    EXPECT_INT_EQ(completion_tokens(o), 1000);
    json_decref(o);
    EXPECT_TRUE(net_client_ended(&c, 10000));
    net_client_close(&c);
    net_client_close(&idle);
    net_fixture_stop(&f);
    EXPECT_INT_EQ(f.status, 0);
}

TEST(ServerStop, AfterTheDrainTimeoutRequestsEndWithAnError) {
    struct net_fixture f;
    struct net_client c, plain;
    net_fixture_init(&f);
    f.options.drain_timeout_s = 0;
    f.engine_options.device = "ref";
    f.options.defaults.max_tokens = 2000;
    f.options.defaults.ignore_eos = true;
    ASSERT_TRUE(net_fixture_start(&f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
    ASSERT_TRUE(net_client_open(&plain, net_fixture_address(&f), 0));
    put_request(&c, 1, 2000, "");
    put_request(&c, 2, 2000, ",\"stream\":false");
    net_client_puts(&plain, "Once upon a time");
    json_decref(net_client_json(&c));
    while (net_client_stat(&c, "running") < 3)
        usleep(1000);
    int64_t since_us = clock_us();
    server_stop(f.server);
    int refused = 0;
    json_t *o;
    while ((o = net_client_json(&c))) {
        refused += !strcmp(net_error_code(o), "shutting_down");
        json_decref(o);
    }
    EXPECT_INT_EQ(refused, 2);
    EXPECT_TRUE(strstr(net_client_rest(&plain), "error: ") != NULL);
    net_client_close(&c);
    net_client_close(&plain);
    net_fixture_stop(&f);
    EXPECT_INT_LT(clock_us() - since_us, 20 * 1000000);
    EXPECT_INT_EQ(f.status, 0);
}

TEST(ServerStop, AClientThatNeverReadsDoesNotHoldUpTheEnd) {
    struct net_fixture f;
    struct net_client c;
    net_fixture_init(&f);
    f.options.drain_timeout_s = 1;
    ASSERT_TRUE(net_fixture_start(&f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 4096));
    for (int i = 0; i < 8; i++)
        put_request(&c, i, 1900, ",\"logprobs\":20");
    while (f.running) {
        struct engine_stats s;
        net_fixture_stats(&f, &s);
        if (s.completion_tokens_total > 1000)
            break;
        usleep(1000);
    }
    int64_t since_us = clock_us();
    net_fixture_stop(&f);
    EXPECT_INT_LT(clock_us() - since_us, 20 * 1000000);
    net_client_close(&c);
}

TEST(ServerStop, StopBeforeRunIsKept) {
    struct net_fixture f;
    struct error e = {0};
    net_fixture_init(&f);
    ASSERT_INT_EQ(server_create(&f.options, &f.server, &e), 0);
    ASSERT_INT_EQ(dispatch_create(&f.engine_options, server_wake, f.server, &f.dispatch, &e), 0);
    server_stop(f.server);
    EXPECT_INT_EQ(server_run(f.server, f.dispatch, &e), 0);
    net_fixture_stop(&f);
}

/* ---- the address ---- */

TEST(ServerAddress, IsTakenApart) {
    static const struct {
        const char *text, *host, *port; /* host NULL: refused */
    } cases[] = {
        {"127.0.0.1:7070", "127.0.0.1", "7070"},
        {"localhost:0", "localhost", "0"},
        {"[::1]:65535", "::1", "65535"},
        {":80", "", "80"},
        {"*:80", "*", "80"},
        {"", NULL, NULL},
        {"localhost", NULL, NULL},
        {"7070", NULL, NULL},
        {"a:", NULL, NULL},
        {"a:65536", NULL, NULL},
        {"a:-1", NULL, NULL},
        {"a: 1", NULL, NULL},
        {"a:1x", NULL, NULL},
        {"::1:80", NULL, NULL},
        {"a:99999999999999999999", NULL, NULL},
    };
    char host[256], port[6];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error e = {0};
        int rc = address_split(cases[i].text, host, port, &e);
        EXPECT_INT_EQ(rc, cases[i].host ? 0 : ERR_CONFIG);
        if (rc == 0) {
            EXPECT_STR_EQ(host, cases[i].host);
            EXPECT_STR_EQ(port, cases[i].port);
        }
    }
}

TEST(ServerAddress, APortInUseIsFoundBeforeAnythingIsLoaded) {
    struct net_fixture f;
    struct server *second;
    struct error e = {0};
    net_fixture_init(&f);
    ASSERT_TRUE(net_fixture_start(&f));
    struct server_options o = f.options;
    o.listen = net_fixture_address(&f);
    EXPECT_INT_EQ(server_create(&o, &second, &e), ERR_IO);
    EXPECT_TRUE(strstr(e.text, "--listen") != NULL);
    o.listen = "no.such.host.invalid:1";
    EXPECT_INT_EQ(server_create(&o, &second, &e), ERR_CONFIG);
    net_fixture_stop(&f);
}

TEST(ServerAddress, Ipv6IsServed) {
    struct server_options o;
    struct server *s;
    struct error e = {0};
    server_options_default(&o);
    o.listen = "[::1]:0";
    if (server_create(&o, &s, &e) != 0)
        SKIP("this machine has no IPv6 loopback");
    EXPECT_INT_EQ(strncmp(server_address(s), "[::1]:", 6), 0);
    server_destroy(s);
}
