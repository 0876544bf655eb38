/* Where a server listens: Unix sockets, ports that are taken, who may reach it, and keys on both
 * protocols. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "host/log.h"
#include "net/address.h"
#include "net/keys.h"
#include "tests/http_client.h"
#include "tests/program.h"
#include "tests/shim.h"

#define HOST "Host: h\r\n"

/* ---- addresses ---- */

TEST(Address, IsCheckedAsItIsWritten) {
    static const struct {
        const char *text;
        bool ok;
    } cases[] = {
        {"127.0.0.1:7070", true}, {":0", true},     {"[::1]:1", true}, {"off", true},
        {"unix:/a/b", true},      {"unix:a", true}, {"unix:", false},  {"127.0.0.1", false},
        {"a:70000", false},       {"OFF", false},   {"", false},       {"::1:80", false},
    };
    char longest[200];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error e = {0};
        EXPECT_INT_EQ(address_check(cases[i].text, &e), cases[i].ok ? 0 : ERR_CONFIG);
    }
    memset(longest, 'a', sizeof longest);
    memcpy(longest, "unix:", 5);
    longest[5 + 107] = '\0';
    EXPECT_INT_EQ(address_check(longest, NULL), 0);
    longest[5 + 107] = 'a';
    longest[5 + 108] = '\0';
    EXPECT_INT_EQ(address_check(longest, NULL), ERR_CONFIG);
}

/* Whichever of its addresses comes first in /etc/hosts. */
TEST(Address, LocalhostIsThatOfIPv4) {
    struct address a;
    char text[300];
    ASSERT_INT_EQ(address_resolve("LocalHost:81", &a, NULL), 0);
    address_print(&a, text);
    EXPECT_STR_EQ(text, "127.0.0.1:81");
}

/* ---- Unix sockets ---- */

static bool unix_open(struct net_client *c, const char *address) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    memset(c, 0, sizeof *c);
    snprintf(a.sun_path, sizeof a.sun_path, "%s", address + strlen("unix:"));
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return EXPECT_INT_EQ(connect(c->fd, (struct sockaddr *)&a, sizeof a), 0);
}

/* "unix:" and a short path: the scratch folder's may be too long for a socket. */
static const char *unix_address(const char *name) {
    static char out[2][100];
    static int next;
    char *text = out[next++ % 2];
    snprintf(text, sizeof out[0], "unix:/tmp/moeserve-test-%d-%s", (int)getpid(), name);
    return text;
}

TEST(Listeners, UnixSocketsServeBothProtocols) {
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    struct stat st;
    const char *line = unix_address("line"), *http = unix_address("http");
    http_rig_init(&r);
    r.f.options.listen = line;
    r.f.options.http = http;
    ASSERT_TRUE(net_fixture_start(&r.f));
    EXPECT_STR_EQ(net_fixture_address(&r.f), line);
    EXPECT_STR_EQ(net_fixture_http(&r.f), http);
    EXPECT_INT_EQ(stat(line + 5, &st), 0);
    EXPECT_INT_EQ(st.st_mode & 0777, 0660);
    ASSERT_TRUE(unix_open(&c, line));
    EXPECT_TRUE(net_client_ping(&c));
    net_client_close(&c);
    ASSERT_TRUE(unix_open(&c, http));
    http_client_ask(&c, "GET /version HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.status, 200);
    /* Only this machine's programs have the file, whatever they call the server. */
    http_client_ask(&c, "GET /tree/x HTTP/1.1\r\nHost: any.example\r\n\r\n", &a);
    EXPECT_INT_EQ(a.status, 200);
    /* Gone clients are noticed here, too. */
    net_client_puts(&c, "GET /hold HTTP/1.1\r\n" HOST "\r");
    http_rig_wait(&r.held, 1);
    net_client_close(&c);
    http_rig_wait(&r.gone, 1);
    http_answer_deinit(&a);
    http_rig_stop(&r);
    EXPECT_INT_EQ(stat(line + 5, &st), -1);
    EXPECT_INT_EQ(stat(http + 5, &st), -1);
}

TEST(Listeners, OnlyASocketThatNobodyListensOnIsReplaced) {
    struct server_options o;
    struct server *first, *second;
    struct error e = {0};
    const char *address = unix_address("stale"), *path = address + 5;
    server_options_default(&o);
    o.listen = address;
    o.http = "off";
    ASSERT_INT_EQ(server_create(&o, &first, &e), 0);
    EXPECT_INT_EQ(server_create(&o, &second, &e), ERR_IO); /* although it does not accept yet */
    EXPECT_TRUE(strstr(e.text, "another process does") && strstr(e.text, "--listen"));
    server_destroy(first);
    EXPECT_INT_EQ(access(path, F_OK), -1);
    /* A socket file that was left behind. */
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    ASSERT_INT_EQ(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    close(fd);
    EXPECT_INT_EQ(server_create(&o, &first, &e), 0);
    server_destroy(first);
    /* A file of another kind stays. */
    FILE *f = fopen(path, "w");
    fputs("precious", f);
    fclose(f);
    EXPECT_INT_EQ(server_create(&o, &first, &e), ERR_CONFIG);
    EXPECT_TRUE(strstr(e.text, "not a socket") != NULL);
    EXPECT_INT_EQ(unlink(path), 0);
}

/* ---- TCP ---- */

TEST(Listeners, ATakenHttpPortMattersOnlyWhenItWasAskedFor) {
    struct server_options o;
    struct server *first, *second;
    struct error e = {0};
    char taken[300];
    log_set_level(LOG_ERROR);
    server_options_default(&o);
    o.listen = "127.0.0.1:0";
    o.http = "127.0.0.1:0";
    ASSERT_INT_EQ(server_create(&o, &first, &e), 0);
    snprintf(taken, sizeof taken, "%s", server_http_address(first));
    o.http = taken;
    EXPECT_INT_EQ(server_create(&o, &second, &e), ERR_IO);
    EXPECT_TRUE(strstr(e.text, "--http") != NULL);
    server_destroy(first);
    /* The default port: whoever holds it, one of these two finds it taken. */
    o.http = server_default_http;
    ASSERT_INT_EQ(server_create(&o, &first, &e), 0);
    ASSERT_INT_EQ(server_create(&o, &second, &e), 0);
    EXPECT_STR_EQ(server_http_address(second), "");
    server_destroy(second);
    server_destroy(first);
    o.listen = "off";
    o.http = "off";
    EXPECT_INT_EQ(server_create(&o, &first, &e), ERR_CONFIG);
    EXPECT_TRUE(strstr(e.text, "hear nobody") != NULL);
    log_set_level(LOG_INFO);
}

TEST(Listeners, OtherMachinesNeedAKeyOrInsecure) {
    struct server_options o;
    struct server *s;
    const char *const texts[] = {"secret-secret-secret"};
    const struct keys_options with = {.texts = texts, .num_texts = 1};
    struct keys *keys;
    log_set_level(LOG_ERROR);
    ASSERT_INT_EQ(keys_create(&with, &keys, NULL), 0);
    for (int http = 0; http < 2; http++) {
        struct error e = {0};
        server_options_default(&o);
        o.listen = http ? "off" : "0.0.0.0:0";
        o.http = http ? "0.0.0.0:0" : "off";
        EXPECT_INT_EQ(server_create(&o, &s, &e), ERR_CONFIG);
        EXPECT_TRUE(strstr(e.text, "--api-key") && strstr(e.text, "--insecure"));
        EXPECT_TRUE(strstr(e.text, http ? "--http" : "--listen") != NULL);
        o.insecure = true;
        EXPECT_INT_EQ(server_create(&o, &s, &e), 0);
        server_destroy(s);
        o.insecure = false;
        o.keys = keys;
        EXPECT_INT_EQ(server_create(&o, &s, &e), 0);
        server_destroy(s);
    }
    keys_destroy(keys);
    log_set_level(LOG_INFO);
}

/* ---- keys ---- */

static struct keys *two_keys(void) {
    static const char *const texts[] = {"first-key-0123456789", "second-key-0123456789"};
    const struct keys_options o = {.texts = texts, .num_texts = 2, .max_requests = 1};
    struct keys *keys;
    EXPECT_INT_EQ(keys_create(&o, &keys, NULL), 0);
    return keys;
}

TEST(HttpKeys, AreAskedForWhereTheRouteIsNotOpen) {
    static const struct {
        const char *header;
        int status;
    } cases[] = {
        {"", 401},
        {"Authorization: Bearer first-key-0123456789\r\n", 200},
        {"authorization: bearer  second-key-0123456789\r\n", 200},
        {"api-key: first-key-0123456789\r\n", 200},
        {"X-API-Key: first-key-0123456789\r\n", 200},
        {"Authorization: Bearer first-key-012345678\r\n", 401},
        {"Authorization: Bearer first-key-01234567890\r\n", 401},
        {"Authorization: Bearer\r\n", 401},
        {"Authorization: Bearer \r\n", 401},
        {"Authorization: Basic first-key-0123456789\r\n", 401},
        {"Authorization: first-key-0123456789\r\n", 401},
        {"api-key:\r\n", 401},
        {"Authorization: Bearer wrong\r\napi-key: first-key-0123456789\r\n", 401},
    };
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    char bytes[300], value[256];
    http_rig_init(&r);
    struct keys *keys = two_keys();
    r.f.options.keys = keys;
    ASSERT_TRUE(http_rig_start(&r, &c));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(bytes, sizeof bytes,
                 "POST /echo HTTP/1.1\r\n" HOST "%sContent-Length: 2\r\n\r\nhi", cases[i].header);
        http_client_ask(&c, bytes, &a);
        if (!EXPECT_INT_EQ(a.status, cases[i].status))
            FAIL("of '%s'", cases[i].header);
        bool refused = cases[i].status == 401;
        EXPECT_STR_EQ(http_answer_value(&a, "WWW-Authenticate", value), refused ? "Bearer" : "");
        if (refused)
            EXPECT_TRUE(strstr(a.body.data, "\"code\":\"invalid_api_key\"") != NULL);
    }
    /* Open routes, and what a browser asks first, need none. */
    static const char *const open[] = {"GET /open", "GET /health", "GET /version", "OPTIONS /echo"};
    for (size_t i = 0; i < sizeof open / sizeof *open; i++) {
        snprintf(bytes, sizeof bytes, "%s HTTP/1.1\r\n" HOST "\r\n", open[i]);
        http_client_ask(&c, bytes, &a);
        EXPECT_INT_EQ(a.status / 100, 2);
    }
    /* A body is not asked for without a key. */
    http_client_ask(&c,
                    "POST /echo HTTP/1.1\r\n" HOST "Expect: 100-continue\r\n"
                    "Content-Length: 2\r\n\r\n",
                    &a);
    EXPECT_INT_EQ(a.status, 401);
    net_client_close(&c);
    http_answer_deinit(&a);
    http_rig_stop(&r);
    keys_destroy(keys);
}

static void expect_error(struct net_client *c, const char *line, const char *code) {
    net_client_puts(c, line);
    json_t *answer = net_client_json(c);
    if (!EXPECT_STR_EQ(net_error_code(answer), code))
        FAIL("of %.80s", line);
    json_decref(answer);
}

TEST(LineKeys, AreAskedForBeforeAnythingElse) {
    struct net_fixture f;
    struct net_client c;
    net_fixture_init(&f);
    struct keys *keys = two_keys();
    f.options.keys = keys;
    ASSERT_TRUE(net_fixture_start(&f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
    static const char *const lines[] = {"{\"op\":\"ping\"}",
                                        "{\"prompt\":\"a\"}",
                                        "{\"op\":\"stats\"}",
                                        "{\"op\":\"model\"}",
                                        "{not json",
                                        "{\"op\":\"cancel\",\"id\":1}",
                                        "{\"op\":\"tokenize\",\"text\":\"a\"}",
                                        "{\"op\":\"auth\",\"key\":\"first-key\"}",
                                        "{\"op\":\"auth\",\"key\":\"\"}"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        expect_error(&c, lines[i], "unauthorized");
    struct buffer big = {0};
    buffer_puts(&big, "{\"prompt\":\"");
    for (int i = 0; i < 100000; i++)
        buffer_putc(&big, 'a');
    buffer_puts(&big, "\"}");
    buffer_putc(&big, '\0');
    expect_error(&c, big.data, "unauthorized");
    net_client_puts(&c, "Once upon a time");
    EXPECT_INT_EQ(strncmp(net_client_line(&c), "error: ", 7), 0);
    net_client_puts(&c, big.data + 1);
    EXPECT_INT_EQ(strncmp(net_client_line(&c), "error: ", 7), 0);
    expect_error(&c, "{\"op\":\"auth\"}", "invalid_request");
    expect_error(&c, "{\"op\":\"auth\",\"key\":7}", "invalid_request");
    /* With a key everything is as without keys, on this connection alone. */
    net_client_puts(&c, "{\"op\":\"auth\",\"key\":\"first-key-0123456789\",\"id\":9}");
    EXPECT_STR_EQ(net_client_line(&c), "{\"id\":9,\"ok\":true}");
    EXPECT_TRUE(net_client_ping(&c));
    net_client_puts(&c, "Once upon a time");
    EXPECT_TRUE(strncmp(net_client_line(&c), "error: ", 7) != 0);
    struct net_client other;
    ASSERT_TRUE(net_client_open(&other, net_fixture_address(&f), 0));
    expect_error(&other, "{\"op\":\"ping\"}", "unauthorized");
    net_client_close(&other);
    net_client_close(&c);
    buffer_deinit(&big);
    net_fixture_stop(&f);
    keys_destroy(keys);
}

/* A key that may run one request at a time, on two connections. */
TEST(LineKeys, CountTheRequestsOfAKey) {
    static const char auth[] = "{\"op\":\"auth\",\"key\":\"first-key-0123456789\",\"id\":0}";
    struct net_fixture f;
    struct net_client c[2];
    net_fixture_init(&f);
    struct keys *keys = two_keys();
    f.options.keys = keys;
    ASSERT_TRUE(net_fixture_start(&f));
    for (int i = 0; i < 2; i++) {
        ASSERT_TRUE(net_client_open(&c[i], net_fixture_address(&f), 0));
        net_client_puts(&c[i], auth);
        EXPECT_STR_EQ(net_client_line(&c[i]), "{\"id\":0,\"ok\":true}");
    }
    net_client_puts(&c[0], "{\"id\":1,\"prompt\":\"a\",\"max_tokens\":1500,\"ignore_eos\":true}");
    EXPECT_TRUE(net_client_line(&c[0]) != NULL);
    expect_error(&c[1], "{\"prompt\":\"a\",\"max_tokens\":1}", "overloaded");
    net_client_close(&c[0]); /* its request ends, and with it the count */
    EXPECT_TRUE(net_fixture_is_quiet(&f));
    usleep(50 * 1000);
    net_client_puts(&c[1], "{\"id\":2,\"prompt\":\"a\",\"max_tokens\":1}");
    json_t *done = net_client_until_done(&c[1], "2", NULL);
    EXPECT_TRUE(json_object_get(done, "done") != NULL);
    json_decref(done);
    net_client_close(&c[1]);
    net_fixture_stop(&f);
    keys_destroy(keys);
}

/* ---- the program ---- */

/* Starts it, waits for its ready line, and opens a connection to each of its addresses. */
static bool start_both(struct program *p, const char *const *args, struct net_client *line,
                       struct net_client *http) {
    char text[256] = "";
    size_t len = 0;
    if (!program_start(p, args))
        return false;
    while (len + 1 < sizeof text && read(p->out, text + len, 1) == 1 && text[len] != '\n')
        len++;
    text[len] = '\0';
    char *second = strstr(text, " http=127.0.0.1:");
    if (!EXPECT_INT_EQ(strncmp(text, "moeserve: ready line=127.0.0.1:", 31), 0) ||
        !EXPECT_TRUE(second != NULL))
        return false;
    *second = '\0';
    return net_client_open(line, text + strlen("moeserve: ready line="), 0) &&
           net_client_open(http, second + strlen(" http="), 0);
}

TEST(Program, TheReadyLineNamesBothAddresses) {
    NEEDS_BINARY();
    const char *args[] = {"--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", NULL};
    struct program p;
    struct net_client line, http;
    struct http_answer a = {0};
    ASSERT_TRUE(start_both(&p, args, &line, &http));
    EXPECT_TRUE(net_client_ping(&line));
    http_client_ask(&http, "GET /health HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.status, 200);
    kill(p.pid, SIGTERM);
    EXPECT_STR_EQ(net_client_rest(&http), "");
    EXPECT_INT_EQ(program_wait(&p), 0);
    http_answer_deinit(&a);
    net_client_close(&line);
    net_client_close(&http);
}

/* A rank never comes back from a step. Neither being idle for long nor a first step is a stall. */
TEST(Program, HealthSaysThatNoStepEnds) {
    NEEDS_BINARY();
    const char *args[] = {
        "--listen",  "127.0.0.1:0",     "--http", "127.0.0.1:0",    "--ranks", "2", "--fault",
        "stall@1:5", "--stall-timeout", "1",      "--comm-timeout", "30",      NULL};
    struct program p;
    struct net_client line, http;
    struct http_answer a = {0};
    static const char ask[] = "GET /health HTTP/1.1\r\n" HOST "\r\n";
    ASSERT_TRUE(start_both(&p, args, &line, &http));
    net_client_puts(&line, "{\"id\":1,\"prompt\":\"Once\",\"max_tokens\":3,\"ignore_eos\":true}");
    json_decref(net_client_until_done(&line, "1", NULL));
    usleep(1500 * 1000);
    http_client_ask(&http, ask, &a);
    EXPECT_STR_EQ(a.body.data, "{\"status\":\"ok\"}");
    net_client_puts(&line, "{\"prompt\":\"Once\",\"max_tokens\":100,\"ignore_eos\":true}");
    EXPECT_TRUE(net_client_line(&line) != NULL);
    http_client_ask(&http, ask, &a);
    EXPECT_STR_EQ(a.body.data, "{\"status\":\"ok\"}");
    for (int i = 0; i < 100 && a.status == 200; i++) {
        usleep(100 * 1000);
        http_client_ask(&http, ask, &a);
    }
    EXPECT_INT_EQ(a.status, 503);
    EXPECT_STR_EQ(a.body.data, "{\"status\":\"stalled\"}");
    kill(p.pid, SIGKILL);
    program_wait(&p);
    http_answer_deinit(&a);
    net_client_close(&line);
    net_client_close(&http);
}
