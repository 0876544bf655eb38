/* What an HTTP server holds against clients that are slow, silent or too many, and how it ends. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/log.h"
#include "host/mem.h"
#include "net/conn.h"
#include "net/keys.h"
#include "tests/http_client.h"
#include "tests/shim.h"

#define HOST        "Host: h\r\n"
#define START(r, c) ASSERT_TRUE(http_rig_start(&(r), &(c)))

/* ---- timers ---- */

static struct http_timeouts short_timeouts(void) {
    return (struct http_timeouts){.first_byte_ms = 300,
                                  .head_ms = 300,
                                  .body_ms = 300,
                                  .idle_ms = 300,
                                  .ping_ms = 200,
                                  .stall_ms = 500};
}

TEST(HttpLimits, ASilentClientIsClosed) {
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    http_rig_init(&r);
    r.f.options.http_timeouts = short_timeouts();
    START(r, c);
    EXPECT_STR_EQ(net_client_rest(&c), ""); /* no byte at all: no answer */
    net_client_close(&c);
    ASSERT_TRUE(net_client_open(&c, net_fixture_http(&r.f), 0));
    http_client_ask(&c, "GET /version HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.status, 200);
    EXPECT_STR_EQ(net_client_rest(&c), ""); /* nothing after an answer */
    net_client_close(&c);
    http_answer_deinit(&a);
    http_rig_stop(&r);
}

TEST(HttpLimits, ASlowHeadOrBodyIs408) {
    static const char *const starts[] = {
        "GET /version HTTP/1.1\r\nHost:",
        "G",
        "\r\nG",
        "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\nhell",
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n5\r\nhell",
        "POST /echo HTTP/1.1\r\n" HOST "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"};
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    char value[256];
    http_rig_init(&r);
    r.f.options.http_timeouts = short_timeouts();
    START(r, c);
    net_client_close(&c);
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        ASSERT_TRUE(net_client_open(&c, net_fixture_http(&r.f), 0));
        http_client_ask(&c, starts[i], &a);
        if (a.status == 100)
            http_client_read(&c, true, &a);
        EXPECT_INT_EQ(a.status, 408);
        EXPECT_STR_EQ(http_answer_value(&a, "Connection", value), "close");
        EXPECT_STR_EQ(net_client_rest(&c), "");
        net_client_close(&c);
    }
    http_expect_well(&r.f);
    http_answer_deinit(&a);
    http_rig_stop(&r);
}

/* Some clients send one behind a request: it begins no other. */
TEST(HttpLimits, ABlankLineIsNoRequest) {
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    http_rig_init(&r);
    r.f.options.http_timeouts.first_byte_ms = 300;
    r.f.options.http_timeouts.head_ms = 300;
    r.f.options.http_timeouts.idle_ms = 1500;
    START(r, c);
    net_client_puts(&c, "\r");
    EXPECT_STR_EQ(net_client_rest(&c), ""); /* no answer to it */
    net_client_close(&c);
    ASSERT_TRUE(net_client_open(&c, net_fixture_http(&r.f), 0));
    http_client_ask(&c, "GET /version HTTP/1.1\r\n" HOST "\r\n\r\n", &a);
    /* The next head has its time from its own first byte on. */
    usleep(700 * 1000);
    http_client_ask(&c, "GET /version HTTP/1.1\r\n" HOST "\r\n\r\n", &a);
    EXPECT_INT_EQ(a.status, 200);
    server_stop(r.f.server);
    int64_t start_us = clock_us();
    EXPECT_STR_EQ(net_client_rest(&c), "");
    EXPECT_TRUE(clock_us() - start_us < 1000 * 1000); /* idle, so closed at once */
    http_answer_deinit(&a);
    net_client_close(&c);
    http_rig_stop(&r);
}

/* One byte every 100 ms, for three times as long as a head may take. */
TEST(HttpLimits, ATricklingHeadIsNotWaitedFor) {
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    http_rig_init(&r);
    r.f.options.http_timeouts = short_timeouts();
    START(r, c);
    for (int i = 0; i < 10; i++) {
        net_client_send(&c, "GET /version HTTP/1.1\r\n" + i, 1);
        usleep(100 * 1000);
    }
    http_client_read(&c, true, &a);
    EXPECT_INT_EQ(a.status, 408);
    /* A body may take its time as long as it goes on. */
    net_client_close(&c);
    ASSERT_TRUE(net_client_open(&c, net_fixture_http(&r.f), 0));
    net_client_puts(&c, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 10\r\n\r");
    for (int i = 0; i < 10; i++) {
        usleep(100 * 1000);
        net_client_send(&c, "0123456789" + i, 1);
    }
    http_client_read(&c, true, &a);
    EXPECT_STR_EQ(a.body.data, "0123456789");
    http_answer_deinit(&a);
    net_client_close(&c);
    http_rig_stop(&r);
}

TEST(HttpLimits, AQuietStreamIsKeptAliveByComments) {
    struct http_rig r;
    struct net_client c;
    http_rig_init(&r);
    r.f.options.http_timeouts = short_timeouts();
    START(r, c);
    net_client_puts(&c, "GET /quiet HTTP/1.1\r\n" HOST "\r");
    EXPECT_STR_EQ(net_client_line(&c), "HTTP/1.1 200 OK\r"); /* with the first comment */
    while (!shim_failed() && strcmp(net_client_line(&c), "\r") != 0)
        continue;
    for (int i = 0; i < 2; i++) {
        EXPECT_STR_EQ(net_client_line(&c), "8\r");
        EXPECT_STR_EQ(net_client_line(&c), ": ping");
        EXPECT_STR_EQ(net_client_line(&c), "");
        EXPECT_STR_EQ(net_client_line(&c), "\r");
    }
    net_client_close(&c);
    http_rig_wait(&r.gone, 1);
    http_rig_stop(&r);
}

/* ---- clients that do not read ---- */

TEST(HttpLimits, AClientThatReadsNothingIsCutOff) {
    for (int stalled = 0; stalled < 2; stalled++) {
        struct http_rig r;
        struct net_client c;
        http_rig_init(&r);
        r.f.options.http_timeouts = short_timeouts();
        /* Either by the bytes, or, where they are allowed, by the time. */
        r.f.options.max_unsent_bytes = stalled ? (int64_t)1 << 40 : 4 << 20;
        if (!stalled)
            r.f.options.http_timeouts.stall_ms = 1000 * 1000;
        ASSERT_TRUE(net_fixture_start(&r.f));
        ASSERT_TRUE(net_client_open(&c, net_fixture_http(&r.f), 4096));
        net_client_puts(&c, "GET /flood HTTP/1.1\r\n" HOST "\r");
        http_rig_wait(&r.gone, 1);
        http_expect_well(&r.f);
        net_client_close(&c);
        http_rig_stop(&r);
    }
}

TEST(HttpLimits, ASlowReaderGetsEverything) {
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    enum { ANSWERS = 40, BYTES = 300000 };
    char ask[64];
    http_rig_init(&r);
    r.f.options.max_unsent_bytes = 1 << 20; /* less than all answers together */
    ASSERT_TRUE(net_fixture_start(&r.f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_http(&r.f), 4096));
    snprintf(ask, sizeof ask, "GET /big?%d HTTP/1.1\r\n" HOST "\r", BYTES);
    for (int i = 0; i < ANSWERS; i++)
        net_client_puts(&c, ask);
    usleep(300 * 1000);
    for (int i = 0; i < ANSWERS && !shim_failed(); i++) {
        http_client_read(&c, true, &a);
        EXPECT_INT_EQ(a.body.len, BYTES + 1);
    }
    http_answer_deinit(&a);
    net_client_close(&c);
    http_rig_stop(&r);
}

/* The kernel takes nothing more for long, as it waits for a good part of its buffer to be free:
 * what counts is what the client reads. */
TEST(HttpLimits, ASlowButSteadyReaderIsNotCutOff) {
    enum { BYTES = 12000000, READS = 150, STALL_MS = 700 };
    struct http_rig r;
    struct net_client c;
    char piece[2048], ask[64];
    size_t got = 0;
    ssize_t n = 1;
    http_rig_init(&r);
    r.f.options.http_timeouts.stall_ms = STALL_MS;
    r.f.options.max_unsent_bytes = 2 * BYTES;
    ASSERT_TRUE(net_fixture_start(&r.f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_http(&r.f), 4096));
    snprintf(ask, sizeof ask, "GET /big?%d HTTP/1.1\r\n" HOST "\r", BYTES);
    net_client_puts(&c, ask);
    for (int i = 0; i < READS && n > 0; i++) { /* five times as long as it may stall */
        usleep(5 * STALL_MS * 1000 / READS);
        n = recv(c.fd, piece, sizeof piece, 0);
        got += n > 0 ? (size_t)n : 0;
    }
    net_client_puts(&c, "GET /version HTTP/1.1\r\n" HOST "Connection: close\r\n\r");
    while ((n = recv(c.fd, piece, sizeof piece, 0)) > 0)
        got += (size_t)n;
    EXPECT_INT_EQ(n, 0); /* no reset */
    EXPECT_INT_GT(got, BYTES);
    net_client_close(&c);
    http_rig_stop(&r);
}

/* A client that sends a body of 12 MB before it reads that it is too large. */
TEST(HttpLimits, ARefusedBodyIsReadPastSoThatTheAnswerArrives) {
    enum { PIECE = 1 << 20, PIECES = 12 };
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    char *piece = xcalloc(1, PIECE), head[128];
    http_rig_init(&r);
    START(r, c);
    snprintf(head, sizeof head, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: %d\r\n\r",
             PIECES * PIECE);
    net_client_puts(&c, head);
    for (int i = 0; i < PIECES && !shim_failed(); i++)
        EXPECT_TRUE(net_client_send(&c, piece, PIECE));
    http_client_read(&c, true, &a);
    EXPECT_INT_EQ(a.status, 413);
    EXPECT_STR_EQ(net_client_rest(&c), "");
    net_client_close(&c);
    free(piece);
    http_answer_deinit(&a);
    http_rig_stop(&r);
}

/* ---- too many ---- */

TEST(HttpLimits, OneConnectionTooManyIsToldSo) {
    struct http_rig r;
    struct net_client c[3];
    struct http_answer a = {0};
    static char body[200000];
    char value[256];
    http_rig_init(&r);
    r.f.options.max_connections = 2;
    START(r, c[0]);
    ASSERT_TRUE(net_client_open(&c[1], net_fixture_http(&r.f), 0));
    http_client_ask(&c[1], "GET /version HTTP/1.1\r\n" HOST "\r\n", &a);
    ASSERT_TRUE(net_client_open(&c[2], net_fixture_http(&r.f), 0));
    http_client_read(&c[2], true, &a);
    EXPECT_INT_EQ(a.status, 503);
    EXPECT_TRUE(strstr(a.body.data, "--max-connections") != NULL);
    EXPECT_TRUE(*http_answer_value(&a, "Content-Length", value));
    net_client_close(&c[2]);
    /* Clients that send their whole request before they read are told so, too. */
    memset(body, 'x', sizeof body);
    for (int i = 0; i < 20; i++) {
        ASSERT_TRUE(net_client_open(&c[2], net_fixture_http(&r.f), 0));
        usleep(5 * 1000); /* the server has had its say */
        net_client_puts(&c[2], "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 200000\r\n\r");
        EXPECT_TRUE(net_client_send(&c[2], body, sizeof body));
        http_client_read(&c[2], true, &a);
        EXPECT_INT_EQ(a.status, 503);
        net_client_close(&c[2]);
    }
    http_client_ask(&c[0], "GET /version HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.status, 200);
    net_client_close(&c[0]);
    net_client_close(&c[1]);
    http_answer_deinit(&a);
    http_rig_stop(&r);
}

/* More refused clients than are given time; then there is room at once, although they are not gone.
 */
TEST(HttpLimits, RefusedClientsTakeNobodysPlace) {
    enum { REFUSED = 2 * CONN_MAX_REFUSED };
    struct http_rig r;
    struct net_client c, refused[REFUSED];
    struct http_answer a = {0};
    http_rig_init(&r);
    r.f.options.max_connections = 1;
    START(r, c);
    for (int i = 0; i < REFUSED; i++) {
        ASSERT_TRUE(net_client_open(&refused[i], net_fixture_http(&r.f), 0));
        http_client_read(&refused[i], true, &a);
        EXPECT_INT_EQ(a.status, 503);
    }
    http_client_ask(&c, "GET /version HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n", &a);
    EXPECT_STR_EQ(net_client_rest(&c), "");
    net_client_close(&c);
    usleep(20 * 1000);
    http_expect_well(&r.f);
    for (int i = 0; i < REFUSED; i++)
        net_client_close(&refused[i]);
    http_answer_deinit(&a);
    http_rig_stop(&r);
}

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The process has no descriptor left: clients are refused, nothing spins, and when there are some
 * again the next client is served. */
TEST(HttpLimits, WithoutDescriptorsClientsAreRefused) {
    enum { CLIENTS = 20 };
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    struct rlimit old, none;
    struct net_client refused[CLIENTS] = {0};
    int lowest;
    struct sockaddr_storage address;
    socklen_t len = sizeof address;
    http_rig_init(&r);
    START(r, c);
    http_client_ask(&c, "GET /version HTTP/1.1\r\n" HOST "\r\n", &a);
    getpeername(c.fd, (struct sockaddr *)&address, &len);
    for (int i = 0; i < CLIENTS; i++)
        refused[i].fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    getrlimit(RLIMIT_NOFILE, &old);
    lowest = open("/dev/null", O_RDONLY);
    close(lowest);
    none = old;
    none.rlim_cur = (rlim_t)lowest;
    setrlimit(RLIMIT_NOFILE, &none);
    double cpu = cpu_seconds();
    for (int i = 0; i < CLIENTS; i++)
        EXPECT_INT_EQ(connect(refused[i].fd, (struct sockaddr *)&address, len), 0);
    for (int i = 0; i < CLIENTS; i++) {
        const char *text = net_client_rest(&refused[i]);
        EXPECT_INT_EQ(strncmp(text, "HTTP/1.1 503 ", 13), 0);
    }
    /* Who is there already is served as ever. */
    http_client_ask(&c, "GET /version HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.status, 200);
    usleep(300 * 1000);
    EXPECT_TRUE(cpu_seconds() - cpu < 0.25);
    setrlimit(RLIMIT_NOFILE, &old);
    for (int i = 0; i < CLIENTS; i++)
        net_client_close(&refused[i]); /* before, this would have made room */
    http_expect_well(&r.f);
    http_answer_deinit(&a);
    net_client_close(&c);
    http_rig_stop(&r);
}

/* ---- the end ---- */

TEST(HttpLimits, DrainingLetsAnswersEndAndRefusesNewRequests) {
    struct http_rig r;
    struct net_client idle, begun, busy, c;
    struct http_answer a = {0};
    char value[256];
    http_rig_init(&r);
    r.f.options.drain_timeout_s = 2;
    START(r, c);
    ASSERT_TRUE(net_client_open(&idle, net_fixture_http(&r.f), 0));
    ASSERT_TRUE(net_client_open(&begun, net_fixture_http(&r.f), 0));
    ASSERT_TRUE(net_client_open(&busy, net_fixture_http(&r.f), 0));
    http_client_ask(&idle, "GET /version HTTP/1.1\r\n" HOST "\r\n", &a);
    net_client_puts(&begun, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 1\r");
    net_client_puts(&busy, "GET /hold HTTP/1.1\r\n" HOST "\r");
    http_rig_wait(&r.held, 1);
    net_client_puts(&c, "GET /later HTTP/1.1\r\n" HOST "\r");
    usleep(50 * 1000);
    server_stop(r.f.server);
    EXPECT_STR_EQ(net_client_rest(&idle), ""); /* closed at once */
    http_client_read(&c, true, &a);
    EXPECT_INT_EQ(a.status, 200);
    EXPECT_STR_EQ(a.body.data, "late");
    EXPECT_STR_EQ(http_answer_value(&a, "Connection", value), "close");
    net_client_puts(&begun, "\r\nx\r");
    http_client_read(&begun, true, &a);
    EXPECT_INT_EQ(a.status, 503);
    EXPECT_TRUE(strstr(a.body.data, "shutting_down") != NULL);
    EXPECT_STR_EQ(http_answer_value(&a, "Retry-After", value), "1");
    /* What does not end is ended when the time is over. */
    http_client_read(&busy, true, &a);
    EXPECT_STR_EQ(a.body.data, "data: held\n\ndata: expired\n\n");
    EXPECT_INT_EQ(r.expired, 1);
    EXPECT_INT_EQ(r.gone, 0);
    net_client_close(&c);
    net_client_close(&idle);
    net_client_close(&begun);
    net_client_close(&busy);
    http_answer_deinit(&a);
    http_rig_stop(&r);
    EXPECT_INT_EQ(r.f.status, 0);
}

/* ---- the beginning ---- */

struct loading {
    struct http_rig rig;
    sem_t go;
    int rc;
    struct error error;
};

static int slow_load(void *ctx, struct dispatch **out, struct error *error) {
    struct loading *l = ctx;
    while (sem_wait(&l->go) != 0)
        continue;
    if (l->rc != 0)
        return error_set(error, l->rc, "the disk is gone");
    int rc = dispatch_create(&l->rig.f.engine_options, server_wake, l->rig.f.server,
                             &l->rig.f.dispatch, error);
    *out = l->rig.f.dispatch;
    return rc;
}

static void *serve(void *ctx) {
    struct loading *l = ctx;
    l->rig.f.status = server_load_and_run(l->rig.f.server, slow_load, l, &l->error);
    return NULL;
}

static bool start_loading(struct loading *l, pthread_t *thread) {
    struct error e = {0};
    sem_init(&l->go, 0, 0);
    if (!EXPECT_INT_EQ(server_create(&l->rig.f.options, &l->rig.f.server, &e), 0))
        return false;
    server_add_routes(l->rig.f.server, l->rig.routes);
    return EXPECT_INT_EQ(pthread_create(thread, NULL, serve, l), 0);
}

static void end_loading(struct loading *l, pthread_t thread) {
    pthread_join(thread, NULL);
    sem_destroy(&l->go);
    http_rig_stop(&l->rig);
}

TEST(HttpLimits, WhileTheModelLoadsHttpSaysSo) {
    struct loading l = {0};
    struct net_client c;
    struct http_answer a = {0};
    char value[256];
    pthread_t thread;
    http_rig_init(&l.rig);
    ASSERT_TRUE(start_loading(&l, &thread));
    ASSERT_TRUE(net_client_open(&c, net_fixture_http(&l.rig.f), 0));
    http_client_ask(&c, "GET /health HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.status, 503);
    EXPECT_STR_EQ(a.body.data, "{\"status\":\"loading\"}");
    http_client_ask(&c, "GET /version HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.status, 200);
    http_client_ask(&c, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 1\r\n\r\nx", &a);
    EXPECT_INT_EQ(a.status, 503);
    EXPECT_TRUE(strstr(a.body.data, "\"code\":\"loading\"") != NULL);
    EXPECT_TRUE(*http_answer_value(&a, "Retry-After", value));
    sem_post(&l.go);
    for (int i = 0; i < 1000 && a.status != 200; i++) {
        usleep(20 * 1000);
        http_client_ask(&c, "GET /health HTTP/1.1\r\n" HOST "\r\n", &a);
    }
    EXPECT_STR_EQ(a.body.data, "{\"status\":\"ok\"}");
    http_client_ask(&c, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 1\r\n\r\nx", &a);
    EXPECT_INT_EQ(a.status, 200);
    net_client_close(&c);
    server_stop(l.rig.f.server);
    http_answer_deinit(&a);
    end_loading(&l, thread);
    EXPECT_INT_EQ(l.rig.f.status, 0);
}

TEST(HttpLimits, AFailedLoadEndsTheServerWithItsReason) {
    struct loading l = {.rc = ERR_IO};
    struct net_client c;
    pthread_t thread;
    http_rig_init(&l.rig);
    ASSERT_TRUE(start_loading(&l, &thread));
    ASSERT_TRUE(net_client_open(&c, net_fixture_http(&l.rig.f), 0));
    net_client_puts(&c, "GET /health HTTP/1.1\r\n" HOST "\r");
    EXPECT_STR_EQ(net_client_line(&c), "HTTP/1.1 503 Service Unavailable\r");
    sem_post(&l.go);
    EXPECT_TRUE(net_client_ended(&c, 20 * 1000));
    net_client_close(&c);
    end_loading(&l, thread);
    EXPECT_INT_EQ(l.rig.f.status, ERR_IO);
    EXPECT_STR_EQ(l.error.text, "the disk is gone");
}
