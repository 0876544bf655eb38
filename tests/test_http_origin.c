/* A real server: which web pages may use it. */
#include <string.h>

#include "net/keys.h"
#include "tests/http_client.h"
#include "tests/shim.h"

#define HOST "Host: h\r\n"
#define TREE "GET /tree/x HTTP/1.1\r\n"
#define PAGE "https://chat.example.com"

/* Without keys a page of another site could use the server through its visitor's browser. */
TEST(HttpOrigin, PagesOfOtherSitesMayNotUseAServerWithoutKeys) {
    static const struct {
        const char *cors_origin, *bytes;
        int status;
    } cases[] = {
        /* The server's own page, also behind proxies, and programs. */
        {NULL, TREE "Host: 127.0.0.1:8000\r\nOrigin: http://127.0.0.1:8000\r\n\r\n", 200},
        {NULL, TREE "Host: [::1]:8000\r\nOrigin: HTTP://[::1]:8000\r\n\r\n", 200},
        {NULL, TREE HOST "Origin: https://h\r\n\r\n", 200},
        {NULL, TREE HOST "Origin: " PAGE "\r\nSec-Fetch-Site: same-origin\r\n\r\n", 200},
        {NULL, TREE HOST "Sec-Fetch-Site: cross-site\r\n\r\n", 200},
        {NULL, TREE "Host: localhost.\r\n\r\n", 200},
        {NULL, TREE "Host: a.b.localhost:8000\r\n\r\n", 200},
        {NULL, TREE "Host: box.LOCAL\r\n\r\n", 200},
        {NULL, TREE "Host: host.docker.internal:8000\r\n\r\n", 200},
        {NULL, "GET /tree/x HTTP/1.0\r\n\r\n", 200},
        /* Pages of others: a form's request, a sandbox, another port, another's name for us. */
        {NULL, TREE HOST "Origin: http://evil.example\r\nSec-Fetch-Site: cross-site\r\n\r\n", 403},
        {NULL, TREE HOST "Origin: null\r\n\r\n", 403},
        {NULL, TREE HOST "Origin: http://h:81\r\nSec-Fetch-Site: same-site\r\n\r\n", 403},
        {NULL, TREE HOST "Origin: ftp://h\r\n\r\n", 403},
        {NULL, "GET /tree/x HTTP/1.0\r\nOrigin: http://\r\n\r\n", 403},
        {NULL, TREE "Host: evil.example:8000\r\n\r\n", 403},
        {NULL, TREE "Host: evil.example:8000\r\nOrigin: http://evil.example:8000\r\n\r\n", 403},
        {NULL, TREE "Host: evil.example.\r\nSec-Fetch-Site: same-origin\r\n\r\n", 403},
        {NULL, TREE "Host: 127.0.0.1.evil.example\r\n\r\n", 403},
        {NULL, TREE "Host: .local\r\n\r\n", 403},
        {NULL, "POST /echo HTTP/1.1\r\n" HOST "Origin: http://e\r\nContent-Length: 1\r\n\r\nx",
         403},
        {NULL,
         "POST /echo HTTP/1.1\r\n" HOST "Origin: http://e\r\nContent-Length: 1\r\n"
         "Expect: 100-continue\r\n\r\n",
         403},
        /* Open paths are for everybody. */
        {NULL, "GET /open HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://e\r\n\r\n", 200},
        {NULL, "GET /nowhere HTTP/1.1\r\nHost: evil.example\r\n\r\n", 404},
        /* Pages that are let in. */
        {PAGE, TREE HOST "Origin: " PAGE "\r\n\r\n", 200},
        {PAGE, TREE "Host: chat.example.com\r\n\r\n", 200},
        {PAGE, TREE "Host: Chat.example.com:443\r\nOrigin: http://h\r\n\r\n", 403},
        {PAGE, TREE "Host: achat.example.com\r\n\r\n", 403},
        {"null", TREE HOST "Origin: null\r\n\r\n", 200},
        {"*", TREE "Host: evil.example\r\nOrigin: http://a.example\r\n\r\n", 200},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct http_rig r;
        http_rig_init(&r);
        r.f.options.cors_origin = cases[i].cors_origin;
        ASSERT_TRUE(net_fixture_start(&r.f));
        http_expect_status(&r.f, cases[i].bytes, cases[i].status);
        http_rig_stop(&r);
    }
}

/* A key is what a page of another site does not have. */
TEST(HttpOrigin, WhereThereAreKeysTheyDecide) {
    static const char *const texts[] = {"a-key-0123456789"};
    const struct keys_options with = {.texts = texts, .num_texts = 1};
    struct http_rig r;
    http_rig_init(&r);
    ASSERT_INT_EQ(keys_create(&with, &r.f.options.keys, NULL), 0);
    ASSERT_TRUE(net_fixture_start(&r.f));
    http_expect_status(&r.f, TREE "Host: a.example\r\nOrigin: http://b\r\n\r\n", 401);
    http_expect_status(&r.f,
                       TREE "Host: a.example\r\nOrigin: http://b\r\n"
                            "Authorization: Bearer a-key-0123456789\r\n\r\n",
                       200);
    http_rig_stop(&r);
    keys_destroy(r.f.options.keys);
}

TEST(HttpOrigin, ARefusalSaysWhatAllowsIt) {
    static const char *const asks[] = {TREE HOST "Origin: http://b.example\r\n\r\n",
                                       TREE "Host: b.example\r\n\r\n"};
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    http_rig_init(&r);
    ASSERT_TRUE(http_rig_start(&r, &c));
    for (size_t i = 0; i < sizeof asks / sizeof *asks; i++) {
        http_client_ask(&c, asks[i], &a);
        EXPECT_INT_EQ(a.status, 403);
        EXPECT_TRUE(strstr(a.body.data, "\"code\":\"origin_not_allowed\"") != NULL);
        EXPECT_TRUE(strstr(a.body.data, "--cors-origin") && strstr(a.body.data, "--api-key-file"));
    }
    http_answer_deinit(&a);
    net_client_close(&c);
    http_rig_stop(&r);
}
