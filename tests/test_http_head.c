/* How bytes become requests, and which are refused: every case is also fed split at each byte, and
 * one byte at a time, with the same result. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "tests/http_transcript.h"
#include "tests/shim.h"

enum { MAX_BODY = 64 };

#define HOST "Host: h\r\n"

struct http_case {
    const char *bytes, *expected;
};

static void transcribe(const char *bytes, size_t size, size_t first, size_t piece,
                       struct buffer *out) {
    buffer_clear(out);
    http_transcribe(bytes, size, first, piece, MAX_BODY, out);
    buffer_putc(out, '\0');
}

/* However the bytes arrive. */
static void expect(const char *bytes, size_t size, const char *expected) {
    struct buffer out = {0};
    transcribe(bytes, size, size, 1, &out);
    EXPECT_STR_EQ(out.data, expected);
    for (size_t first = 0; first <= size; first++) {
        transcribe(bytes, size, first, size, &out);
        if (strcmp(out.data, expected) != 0)
            FAIL("split at %zu of '%s': %s", first, bytes, out.data);
    }
    transcribe(bytes, size, 1, 1, &out);
    EXPECT_STR_EQ(out.data, expected);
    buffer_deinit(&out);
}

static void expect_all(const struct http_case *cases, size_t num) {
    for (size_t i = 0; i < num; i++)
        expect(cases[i].bytes, strlen(cases[i].bytes), cases[i].expected);
}

#define EXPECT_ALL(cases) expect_all(cases, sizeof(cases) / sizeof *(cases))

TEST(HttpHead, RequestsAreTakenApart) {
    static const struct http_case cases[] = {
        {"", ""},
        {"GET / HTTP/1.1\r\n" HOST "\r\n", "GET / 1.1 keep [Host=h] ''\n"},
        {"GET / HTTP/1.0\r\n\r\n", "GET / 1.0  ''\n"},
        {"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
         "GET / 1.0 [Connection=keep-alive] ''\n"},
        {"GET / HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n",
         "GET / 1.1 [Host=h][Connection=close] ''\n"},
        {"HEAD /a/b?c=d&e HTTP/1.1\r\n" HOST "\r\n", "HEAD /a/b?c=d&e 1.1 keep [Host=h] ''\n"},
        {"DELETE /a HTTP/1.1\r\n" HOST "\r\n", "OTHER /a 1.1 keep [Host=h] ''\n"},
        {"OPTIONS * HTTP/1.1\r\n" HOST "\r\n", "OPTIONS * 1.1 keep [Host=h] ''\n"},
        {"GET http://h/x?y HTTP/1.1\r\n" HOST "\r\n", "GET /x?y 1.1 keep [Host=h] ''\n"},
        {"GET http://h HTTP/1.1\r\n" HOST "\r\n", "GET / 1.1 keep [Host=h] ''\n"},
        {"\r\n\r\nGET / HTTP/1.1\r\n" HOST "\r\n", "GET / 1.1 keep [Host=h] ''\n"},
        {"GET / HTTP/1.1\r\n" HOST "A:\r\nB: \t x y \t\r\nC:z\r\n\r\n",
         "GET / 1.1 keep [Host=h][A=][B=x y][C=z] ''\n"},
        {"GET / HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", "GET / 1.1 keep [Host=[::1]:8000] ''\n"},
        {"GET / HTTP/1.1\r\n" HOST "Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
         "GET / 1.1 keep [Host=h][Upgrade=h2c][Connection=Upgrade] ''\n"},
        {"GET / HTTP/1.1\r\n" HOST, "...\n"},
        {"G", "...\n"},
        {"\r", ""},
        {"\r\n\r\n", ""},
        {"\r\nG", "...\n"},
    };
    EXPECT_ALL(cases);
}

TEST(HttpHead, BodiesComeByLengthOrInChunks) {
    static const struct http_case cases[] = {
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n" HOST "\r\n",
         "POST / 1.1 keep [Host=h][Content-Length=3] 'abc'\nGET / 1.1 keep [Host=h] ''\n"},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 0\r\n\r\n",
         "POST / 1.1 keep [Host=h][Content-Length=0] ''\n"},
        {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: Chunked\r\n\r\n"
         "3\r\nabc\r\n00b;x=\"y\"\r\nhello world\r\n0\r\n\r\nGET /n HTTP/1.1\r\n" HOST "\r\n",
         "POST / 1.1 keep [Host=h][Transfer-Encoding=Chunked] 'abchello world'\n"
         "GET /n 1.1 keep [Host=h] ''\n"},
        {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n"
         "A\r\n0123456789\r\n0;e\r\nX-Trailer: 1\r\nB: \r\n\r\n",
         "POST / 1.1 keep [Host=h][Transfer-Encoding=chunked] '0123456789'\n"},
        {"POST / HTTP/1.1\r\n" HOST "Expect: 100-Continue\r\nContent-Length: 1\r\n\r\na",
         "POST / 1.1 keep expects [Host=h][Expect=100-Continue][Content-Length=1] 'a'\n"},
        {"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na",
         "POST / 1.0 [Expect=100-continue][Content-Length=1] 'a'\n"},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\nab", "...\n"},
    };
    EXPECT_ALL(cases);
}

/* What a proxy may understand in another way than we would. */
TEST(HttpHead, AmbiguousRequestsAreRefused) {
    static const struct {
        const char *bytes;
        int status;
    } cases[] = {
        {"GET / HTTP/1.1\n" HOST "\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: h\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: h\rX: y\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n" HOST "\n", 400},
        {"GET / HTTP/1.1\r\n" HOST "A: b\r\n c\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n Host: h\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n" HOST "A : b\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n" HOST ": b\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n" HOST "A\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n" HOST "A(b): c\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n" HOST "A: \x01\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n" HOST "A: \x7f\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n" HOST HOST "\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", 400},
        {"GET  / HTTP/1.1\r\n" HOST "\r\n", 400},
        {"GET /  HTTP/1.1\r\n" HOST "\r\n", 400},
        {"GET / HTTP/1.1 \r\n" HOST "\r\n", 400},
        {" GET / HTTP/1.1\r\n" HOST "\r\n", 400},
        {"GET\t/ HTTP/1.1\r\n" HOST "\r\n", 400},
        {"GET /\r\n" HOST "\r\n", 400},
        {"GET / http/1.1\r\n" HOST "\r\n", 400},
        {"GET / HTTP/1.10\r\n" HOST "\r\n", 400},
        {"GET / HTTP/1\r\n" HOST "\r\n", 400},
        {"GET nowhere HTTP/1.1\r\n" HOST "\r\n", 400},
        {"GET /#f HTTP/1.1\r\n" HOST "\r\n", 400},
        {"GET /\xc3\xa9 HTTP/1.1\r\n" HOST "\r\n", 400},
        {"\r\n\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\n" HOST "\r\n", 400},
        {"GET / HTTP/1.2\r\n" HOST "\r\n", 505},
        {"GET / HTTP/2.0\r\n" HOST "\r\n", 505},
        {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
        {"GET / HTTP/0.9\r\n" HOST "\r\n", 505},
        {"get / HTTP/1.1\r\n" HOST "\r\n", 501},
        {"BREW / HTTP/1.1\r\n" HOST "\r\n", 501},
        {"\x16\x03\x01", 400},
        /* lengths */
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1\r\nContent-Length: 1\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1, 1\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: +1\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: -1\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 0x1\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1 2\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length:\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 18446744073709551617\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 65\r\n\r\n", 413},
        {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: gzip, chunked\r\n\r\n", 501},
        {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked, chunked\r\n\r\n", 501},
        {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: identity\r\n\r\n", 501},
        {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: xchunked\r\n\r\n", 501},
        {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding:\r\n\r\n", 501},
        {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n",
         400},
        {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n" HOST "Expect: 200-ok\r\n\r\n", 417},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct buffer out = {0};
        char start[32];
        transcribe(cases[i].bytes, strlen(cases[i].bytes), SIZE_MAX, 1, &out);
        snprintf(start, sizeof start, "refused %d: ", cases[i].status);
        if (strncmp(out.data, start, strlen(start)) != 0)
            FAIL("'%s': %s", cases[i].bytes, out.data);
        char *expected = xstrdup(out.data);
        expect(cases[i].bytes, strlen(cases[i].bytes), expected);
        free(expected);
        buffer_deinit(&out);
    }
    /* NUL bytes, anywhere. */
    static const char good[] = "GET /a HTTP/1.1\r\nHost: h\r\nX: y\r\n\r\n";
    for (size_t at = 0; at < sizeof good - 1; at++) {
        char bad[sizeof good];
        struct buffer out = {0};
        memcpy(bad, good, sizeof good);
        bad[at] = '\0';
        transcribe(bad, sizeof bad - 1, SIZE_MAX, 1, &out);
        if (strncmp(out.data, "refused 400: ", 13) != 0)
            FAIL("NUL at %zu: %s", at, out.data);
        buffer_deinit(&out);
    }
}

TEST(HttpHead, BadChunksAreRefused) {
    static const char head[] = "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n";
    static const struct {
        const char *body;
        int status;
    } cases[] = {
        {"\r\n", 400},
        {"x\r\n", 400},
        {"0x1\r\na\r\n0\r\n\r\n", 400},
        {" 1\r\na\r\n0\r\n\r\n", 400},
        {"1 \r\na\r\n0\r\n\r\n", 400},
        {"-1\r\na\r\n0\r\n\r\n", 400},
        {"+1\r\na\r\n0\r\n\r\n", 400},
        {"1\na\n0\n\n", 400},
        {"1\r\nab\r\n0\r\n\r\n", 400},
        {"1\r\na\n0\r\n\r\n", 400},
        {"1\r\na0\r\n\r\n", 400},
        {"1\rXa\r\n0\r\n\r\n", 400},
        {"1;a\nb\r\na\r\n0\r\n\r\n", 400},
        {"1;\x01\r\na\r\n0\r\n\r\n", 400},
        {"000000001\r\na\r\n0\r\n\r\n", 400},
        {"FFFFFFFFFFFFFFFFF\r\n", 400},
        {"41\r\n", 413},
        {"FFFFFFFF\r\n", 413},
        {"40\r\n0123456789012345678901234567890123456789012345678901234567890123\r\n1\r\n", 413},
        {"0\r\nGET / HTTP/1.1\r\n\r\n", 400},
        {"0\r\nA b: c\r\n\r\n", 400},
        {"0\r\n A: c\r\n\r\n", 400},
        {"0\r\nA: b\n\r\n", 400},
        {"0\r\n\n", 400},
        {"0\n\n", 400},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct buffer bytes = {0}, out = {0};
        char start[32];
        buffer_puts(&bytes, head);
        buffer_puts(&bytes, cases[i].body);
        buffer_putc(&bytes, '\0');
        transcribe(bytes.data, bytes.len - 1, SIZE_MAX, 1, &out);
        snprintf(start, sizeof start, "refused %d: ", cases[i].status);
        if (strncmp(out.data, start, strlen(start)) != 0)
            FAIL("'%s': %s", cases[i].body, out.data);
        char *expected = xstrdup(out.data);
        expect(bytes.data, bytes.len - 1, expected);
        free(expected);
        buffer_deinit(&bytes);
        buffer_deinit(&out);
    }
}

/* An answer to what is refused, or comes too late, asks for headers too. */
TEST(HttpHead, BeforeItIsCompleteAHeadHasNoHeaders) {
    static const char *const starts[] = {
        "GET / HTTP/1.1\r\n" HOST,
        "GET / HTTP/1.1\r\n" HOST "A: b\r",
        "GET / HTTP/1.1\r\n" HOST "bad header",
        "GET / HTTP/1.1\r\n" HOST "A: b\r\n\r",
    };
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        struct http_head h;
        size_t used;
        http_head_init(&h);
        EXPECT_TRUE(http_head_feed(&h, starts[i], strlen(starts[i]), &used) != HTTP_HEAD_COMPLETE);
        EXPECT_TRUE(http_head_value(&h, "Host") == NULL);
        http_head_deinit(&h);
    }
}

/* `n` times a character, between two texts; returns how it is understood. */
static int status_of(const char *before, char c, size_t n, const char *after) {
    struct buffer bytes = {0}, out = {0};
    int status = 0;
    buffer_puts(&bytes, before);
    for (size_t i = 0; i < n; i++)
        buffer_putc(&bytes, c);
    buffer_puts(&bytes, after);
    transcribe(bytes.data, bytes.len, SIZE_MAX, 1, &out);
    if (sscanf(out.data, "refused %d", &status) != 1)
        status = strncmp(out.data, "...", 3) ? 200 : 0;
    buffer_deinit(&bytes);
    buffer_deinit(&out);
    return status;
}

TEST(HttpHead, LimitsHoldToTheByte) {
    static const char end[] = " HTTP/1.1\r\n" HOST "\r\n";
    const size_t line = HTTP_MAX_LINE_BYTES;
    EXPECT_INT_EQ(status_of("GET /", 'a', line - strlen("GET / HTTP/1.1\r\n"), end), 200);
    EXPECT_INT_EQ(status_of("GET /", 'a', line - strlen("GET / HTTP/1.1\r\n") + 1, end), 414);
    EXPECT_INT_EQ(status_of("GET /", 'a', line, end), 414);
    EXPECT_INT_EQ(status_of("GET / HTTP/1.1\r\nHost: h\r\nA: ", 'a', line - 5, "\r\n\r\n"), 200);
    EXPECT_INT_EQ(status_of("GET / HTTP/1.1\r\nHost: h\r\nA: ", 'a', line - 2, "\r\n\r\n"), 431);
    EXPECT_INT_EQ(status_of("GET / HTTP/1.1\r\n", 'a', line + 1, ""), 431);
    for (int n = 98; n <= 101; n++) {
        struct buffer bytes = {0};
        buffer_puts(&bytes, "GET / HTTP/1.1\r\n" HOST);
        for (int i = 1; i < n; i++)
            buffer_puts(&bytes, "A: b\r\n");
        buffer_puts(&bytes, "\r\n");
        buffer_putc(&bytes, '\0');
        EXPECT_INT_EQ(status_of(bytes.data, ' ', 0, ""), n <= 100 ? 200 : 431);
        buffer_deinit(&bytes);
    }
    /* Five headers of 7 KiB: each is fine, all together are not. */
    struct buffer bytes = {0};
    buffer_puts(&bytes, "GET / HTTP/1.1\r\n" HOST);
    for (int i = 0; i < 5; i++) {
        buffer_puts(&bytes, "A: ");
        for (int k = 0; k < 7 * 1024; k++)
            buffer_putc(&bytes, 'a');
        buffer_puts(&bytes, "\r\n");
    }
    buffer_puts(&bytes, "\r\n");
    buffer_putc(&bytes, '\0');
    EXPECT_INT_EQ(status_of(bytes.data, ' ', 0, ""), 431);
    buffer_deinit(&bytes);
    static const char chunked[] = "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n";
    struct buffer b = {0};
    buffer_printf(&b, "%s1;", chunked);
    buffer_putc(&b, '\0');
    EXPECT_INT_EQ(status_of(b.data, 'a', 8000, "\r\na\r\n0\r\n\r\n"), 200);
    EXPECT_INT_EQ(status_of(b.data, 'a', HTTP_MAX_CHUNK_EXTRA_BYTES, "\r\na\r\n0\r\n\r\n"), 431);
    buffer_clear(&b);
    buffer_printf(&b, "%s0\r\nX: ", chunked);
    buffer_putc(&b, '\0');
    EXPECT_INT_EQ(status_of(b.data, 'a', HTTP_MAX_CHUNK_EXTRA_BYTES, "\r\n\r\n"), 431);
    buffer_deinit(&b);
}
