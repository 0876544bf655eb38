#include "http_head.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "net/http_opinion.h"

enum state {
    BEFORE,    /* nothing yet, or blank lines, which are skipped */
    BEFORE_LF, /* CR of a blank line */
    REQUEST_LINE,
    REQUEST_LINE_LF,
    LINE_START,
    NAME,
    VALUE,
    VALUE_LF,
    LAST_LF,
    COMPLETE,
};

enum { MAX_BLANK_LINES = 4 }; /* in front of a request, which old clients send behind a body */

void http_head_init(struct http_head *h) {
    memset(h, 0, sizeof *h);
}

void http_head_deinit(struct http_head *h) {
    buffer_deinit(&h->bytes);
    buffer_deinit(&h->path_and_query);
}

bool http_head_begun(const struct http_head *h) {
    return h->state > BEFORE_LF;
}

const char *http_head_value(const struct http_head *h, const char *name) {
    for (int32_t i = 0; i < h->num_fields; i++)
        if (!strcasecmp(h->fields[i].name, name))
            return h->fields[i].value;
    return NULL;
}

static bool refuse(struct http_head *h, int status, const char *text) {
    h->problem = (struct http_problem){status, text};
    return false;
}

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

bool http_is_token(char c) {
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c && strchr("!#$%&'*+-.^_`|~", c));
}

/* ---- the request line ---- */

static bool check_version(struct http_head *h, const char *v, size_t len) {
    if (len != 8 || memcmp(v, "HTTP/", 5) || !is_digit(v[5]) || v[6] != '.' || !is_digit(v[7]))
        return refuse(h, 400, "the request line is not METHOD TARGET HTTP/1.1");
    if (v[5] != '1' || v[7] > '1')
        return refuse(h, 505, "only HTTP/1.0 and HTTP/1.1 are spoken here");
    h->version_minor = v[7] - '0';
    return true;
}

/* METHOD SP TARGET SP VERSION, each space exactly one; the line's end is cut off. */
static bool check_request_line(struct http_head *h) {
    const char *line = h->bytes.data, *end = line + h->bytes.len - 2;
    const char *target = line, *version;
    while (target < end && http_is_token(*target))
        target++;
    if (target == line || target == end || *target != ' ')
        return refuse(h, 400, "the request line is not METHOD TARGET HTTP/1.1");
    for (version = ++target; version<end && * version> ' ' && *version < 0x7f; version++)
        if (*version == '#')
            return refuse(h, 400, "a request's target has no fragment");
    if (version == target || version == end || *version != ' ')
        return refuse(h, 400, "the request line is not METHOD TARGET HTTP/1.1");
    return check_version(h, version + 1, (size_t)(end - version - 1));
}

/* ---- the headers ---- */

/* A host and perhaps a port; the brackets of IPv6 addresses are fine. */
static bool is_host(const char *s) {
    for (; *s; s++)
        if (*s <= ' ' || *s == 0x7f || strchr("/\\@,?#<>\"{}|^`", *s))
            return false;
    return true;
}

static bool check_length(struct http_head *h, const char *value) {
    enum { MAX_DIGITS = 18 };
    int64_t length = 0;
    size_t len = strlen(value);
    for (size_t i = 0; i < len && i < MAX_DIGITS; i++)
        if (is_digit(value[i]))
            length = length * 10 + (value[i] - '0');
        else
            return refuse(h, 400, "Content-Length is not a number");
    if (len == 0 || len > MAX_DIGITS)
        return refuse(h, 400, "Content-Length is not a number of 1 to 18 digits");
    h->content_length = length;
    return true;
}

static int32_t count(const struct http_head *h, const char *name, const char **value) {
    int32_t n = 0;
    *value = NULL;
    for (int32_t i = 0; i < h->num_fields; i++)
        if (!strcasecmp(h->fields[i].name, name)) {
            *value = h->fields[i].value;
            n++;
        }
    return n;
}

static bool check_host(struct http_head *h) {
    const char *host;
    int32_t n = count(h, "host", &host);
    if (n > 1 || (n == 0 && h->version_minor == 1))
        return refuse(h, 400, n ? "several Host headers" : "the Host header is missing");
    if (host && !is_host(host))
        return refuse(h, 400, "the Host header is not a host");
    return true;
}

static bool check_body_length(struct http_head *h) {
    const char *length, *coding;
    int32_t lengths = count(h, "content-length", &length);
    int32_t codings = count(h, "transfer-encoding", &coding);
    if (lengths > 1)
        return refuse(h, 400, "several Content-Length headers");
    if (codings > 1)
        return refuse(h, 400, "several Transfer-Encoding headers");
    if (lengths && codings)
        return refuse(h, 400, "both Content-Length and Transfer-Encoding");
    if (codings && h->version_minor == 0)
        return refuse(h, 400, "Transfer-Encoding in HTTP/1.0");
    if (codings && strcasecmp(coding, "chunked"))
        return refuse(h, 501, "the only Transfer-Encoding that is known here is chunked");
    h->chunked = codings > 0;
    return !lengths || check_length(h, length);
}

static bool check_expectation(struct http_head *h) {
    const char *value;
    if (count(h, "expect", &value) == 0 || h->version_minor == 0)
        return true;
    if (strcasecmp(value, "100-continue"))
        return refuse(h, 417, "the only expectation that is known here is 100-continue");
    h->expects_continue = true;
    return true;
}

/* ---- the whole head ---- */

static enum http_method method_of(const char *line) {
    static const struct {
        const char *name;
        enum http_method method;
    } methods[] = {
        {"GET ", HTTP_GET}, {"HEAD ", HTTP_HEAD}, {"POST ", HTTP_POST}, {"OPTIONS ", HTTP_OPTIONS}};
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (!strncmp(line, methods[i].name, strlen(methods[i].name)))
            return methods[i].method;
    return HTTP_OTHER;
}

/* Copies path and query, which lie side by side in the request line. */
static void keep_target(struct http_head *h, const struct http_opinion *o) {
    struct buffer *b = &h->path_and_query;
    buffer_append(b, o->path ? o->path : "/", o->path ? o->path_len : 1);
    buffer_putc(b, '\0');
    size_t query = b->len;
    buffer_append(b, o->query ? o->query : "", o->query ? o->query_len : 0);
    buffer_putc(b, '\0');
    h->path = b->data;
    h->query = b->data + query;
}

/* http_parser, given the head as it came, must come to the same end. */
static bool ask_http_parser(struct http_head *h, const struct buffer *whole) {
    struct http_opinion o;
    http_opinion_get(whole->data, whole->len, &o);
    if (!o.known_method)
        return refuse(h, 501, "the method is not known");
    if (!o.complete)
        return refuse(h, 400, "the request's target or headers are malformed");
    int64_t length = o.content_length < 0 ? 0 : o.content_length;
    if (o.chunked != h->chunked || length != h->content_length)
        return refuse(h, 400, "the length of the request's body is ambiguous");
    h->keep_alive = o.keep_alive && h->version_minor == 1;
    keep_target(h, &o);
    return true;
}

/* Makes strings of the fields, in place: what follows a name or a value is no part of either. */
static void cut_fields(struct http_head *h) {
    char *bytes = h->bytes.data;
    for (int32_t i = 0; i < h->num_places; i++) {
        uint32_t value = h->places[i].value, end = h->places[i].end;
        bytes[value - 1] = '\0'; /* the colon */
        while (value < end && (bytes[value] == ' ' || bytes[value] == '\t'))
            value++;
        while (end > value && (bytes[end - 1] == ' ' || bytes[end - 1] == '\t'))
            end--;
        bytes[end] = '\0';
        h->fields[i] = (struct http_field){bytes + h->places[i].name, bytes + value};
    }
    h->num_fields = h->num_places;
}

static bool finish(struct http_head *h) {
    struct buffer whole = {0};
    h->method = method_of(h->bytes.data);
    buffer_append(&whole, h->bytes.data, h->bytes.len);
    cut_fields(h);
    bool ok = check_host(h) && check_body_length(h) && check_expectation(h);
    if (ok)
        ok = ask_http_parser(h, &whole);
    buffer_deinit(&whole);
    return ok;
}

/* ---- byte by byte ---- */

static bool start_field(struct http_head *h) {
    if (h->num_places == HTTP_MAX_HEADERS)
        return refuse(h, 431, "more than 100 headers");
    h->places[h->num_places].name = (uint32_t)h->bytes.len - 1;
    h->state = NAME;
    return true;
}

static bool on_line_start(struct http_head *h, char c) {
    h->line_bytes = 1;
    if (c == '\r') {
        h->state = LAST_LF;
        return true;
    }
    if (c == ' ' || c == '\t')
        return refuse(h, 400, "a header is folded over several lines");
    if (!http_is_token(c))
        return refuse(h, 400, "a header's name has a character that is not allowed");
    return start_field(h);
}

static bool on_name(struct http_head *h, char c) {
    if (c == ':') {
        h->places[h->num_places].value = (uint32_t)h->bytes.len;
        h->state = VALUE;
        return true;
    }
    if (c == ' ' || c == '\t')
        return refuse(h, 400, "there is a space in front of a header's colon");
    return http_is_token(c) ||
           refuse(h, 400, "a header's name has a character that is not allowed");
}

static bool on_value(struct http_head *h, char c) {
    if (c == '\r') {
        h->places[h->num_places++].end = (uint32_t)h->bytes.len - 1;
        h->state = VALUE_LF;
        return true;
    }
    if (c == '\n')
        return refuse(h, 400, "a line ends in LF without CR");
    return c == '\t' || ((unsigned char)c >= ' ' && c != 0x7f) ||
           refuse(h, 400, "a header has a control character");
}

static bool on_request_line(struct http_head *h, char c) {
    if (c == '\r') {
        h->state = REQUEST_LINE_LF;
        return true;
    }
    if (c == '\n')
        return refuse(h, 400, "a line ends in LF without CR");
    return (c >= ' ' && c < 0x7f) ||
           refuse(h, 400, "the request line has a character that is not allowed");
}

/* Behind a CR. */
static bool expect_lf(struct http_head *h, char c, enum state next) {
    if (c != '\n')
        return refuse(h, 400, "a CR without LF");
    h->state = next;
    h->line_bytes = 0;
    return true;
}

static bool on_blank(struct http_head *h, char c) {
    if (c != '\r') {
        h->state = REQUEST_LINE;
        return on_request_line(h, c);
    }
    h->state = BEFORE_LF;
    return h->num_blank++ < MAX_BLANK_LINES || refuse(h, 400, "blank lines in place of a request");
}

static bool on_byte(struct http_head *h, char c) {
    switch ((enum state)h->state) {
    case BEFORE:
        return on_blank(h, c);
    case BEFORE_LF:
        h->bytes.len = 0; /* blank lines are no part of the head */
        return expect_lf(h, c, BEFORE);
    case REQUEST_LINE:
        return on_request_line(h, c);
    case REQUEST_LINE_LF:
        return expect_lf(h, c, LINE_START) && check_request_line(h);
    case LINE_START:
        return on_line_start(h, c);
    case NAME:
        return on_name(h, c);
    case VALUE:
        return on_value(h, c);
    case VALUE_LF:
        return expect_lf(h, c, LINE_START);
    case LAST_LF:
        return expect_lf(h, c, COMPLETE) && finish(h);
    case COMPLETE:
        break;
    }
    return true;
}

static bool within_limits(struct http_head *h) {
    if (h->bytes.len > HTTP_MAX_HEAD_BYTES)
        return refuse(h, 431, "the request's head is larger than 32 KiB");
    if (++h->line_bytes <= HTTP_MAX_LINE_BYTES)
        return true;
    return h->state <= REQUEST_LINE_LF ? refuse(h, 414, "the request line is longer than 8 KiB")
                                       : refuse(h, 431, "a header is longer than 8 KiB");
}

enum http_head_result http_head_feed(struct http_head *h, const char *data, size_t len,
                                     size_t *used) {
    for (*used = 0; *used < len;) {
        char c = data[(*used)++];
        buffer_putc(&h->bytes, c);
        if (!within_limits(h) || !on_byte(h, c))
            return HTTP_HEAD_REFUSED;
        if (h->state == COMPLETE)
            return HTTP_HEAD_COMPLETE;
    }
    return HTTP_HEAD_MORE;
}
