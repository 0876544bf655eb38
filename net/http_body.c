#include "http_body.h"

#include <string.h>

enum state {
    BY_LENGTH,
    SIZE,
    EXTENSION,
    SIZE_LF,
    DATA,
    DATA_CR,
    DATA_LF,
    TRAILER_START,
    TRAILER_NAME,
    TRAILER,
    TRAILER_LF,
    LAST_LF,
    COMPLETE,
};

enum { MAX_SIZE_DIGITS = 8 };

static bool refuse(struct http_body *b, int status, const char *text) {
    b->problem = (struct http_problem){status, text};
    return false;
}

static bool refuse_size(struct http_body *b) {
    return refuse(b, 413, "the request's body is too large (--max-body-bytes)");
}

enum http_body_result http_body_begin(struct http_body *b, const struct http_head *head,
                                      size_t max_bytes) {
    memset(b, 0, sizeof *b);
    b->max_bytes = max_bytes;
    b->left = head->content_length;
    b->state = head->chunked ? SIZE : BY_LENGTH;
    if (head->chunked)
        return HTTP_BODY_MORE;
    if ((uint64_t)b->left > max_bytes) {
        refuse_size(b);
        return HTTP_BODY_REFUSED;
    }
    return b->left ? HTTP_BODY_MORE : HTTP_BODY_COMPLETE;
}

void http_body_deinit(struct http_body *b) {
    buffer_deinit(&b->bytes);
}

/* ---- chunks ---- */

static int digit_of(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Text that is dropped: extensions and trailers. */
static bool on_extra(struct http_body *b, char c, enum state lf) {
    if (++b->extra_bytes > HTTP_MAX_CHUNK_EXTRA_BYTES)
        return refuse(b, 431, "chunk extensions and trailers are longer than 16 KiB");
    if (c == '\r')
        b->state = lf;
    else if (c != '\t' && ((unsigned char)c < ' ' || c == 0x7f))
        return refuse(b, 400, "a control character between chunks");
    return true;
}

static bool on_size(struct http_body *b, char c) {
    int digit = digit_of(c);
    if (digit >= 0) {
        b->left = b->left * 16 + digit;
        return ++b->digits <= MAX_SIZE_DIGITS || refuse(b, 400, "a chunk's size is too long");
    }
    if (b->digits == 0 || (c != '\r' && c != ';'))
        return refuse(b, 400, "a chunk's size is not a hexadecimal number");
    if (b->received + b->left > (int64_t)b->max_bytes)
        return refuse_size(b);
    b->state = c == ';' ? EXTENSION : SIZE_LF;
    return true;
}

static bool expect(struct http_body *b, char c, char wanted, enum state next) {
    if (c != wanted)
        return refuse(b, 400, "a chunk does not end in CR LF");
    b->state = next;
    return true;
}

static bool on_size_lf(struct http_body *b, char c) {
    bool last = b->left == 0;
    b->digits = 0;
    return expect(b, c, '\n', last ? TRAILER_START : DATA);
}

/* A trailer is not looked at, but it must be a header: "GET / HTTP/1.1" would be a request that
 * somebody else sees and we do not. */
static bool on_trailer_start(struct http_body *b, char c) {
    if (c == '\r') {
        b->state = LAST_LF;
        return true;
    }
    if (!http_is_token(c))
        return refuse(b, 400, "a trailer is malformed");
    b->state = TRAILER_NAME;
    return on_extra(b, c, TRAILER_LF);
}

static bool on_trailer_name(struct http_body *b, char c) {
    if (c == ':')
        b->state = TRAILER;
    else if (!http_is_token(c))
        return refuse(b, 400, "a trailer is malformed");
    return on_extra(b, c, TRAILER_LF);
}

static bool on_byte(struct http_body *b, char c) {
    switch ((enum state)b->state) {
    case SIZE:
        return on_size(b, c);
    case EXTENSION:
        return on_extra(b, c, SIZE_LF);
    case SIZE_LF:
        return on_size_lf(b, c);
    case DATA_CR:
        return expect(b, c, '\r', DATA_LF);
    case DATA_LF:
        return expect(b, c, '\n', SIZE);
    case TRAILER_START:
        return on_trailer_start(b, c);
    case TRAILER_NAME:
        return on_trailer_name(b, c);
    case TRAILER:
        return on_extra(b, c, TRAILER_LF);
    case TRAILER_LF:
        return expect(b, c, '\n', TRAILER_START);
    case LAST_LF:
        return expect(b, c, '\n', COMPLETE);
    case BY_LENGTH:
    case DATA:
    case COMPLETE:
        break;
    }
    return true;
}

/* ---- both ---- */

/* Takes what there is of the body or the chunk. */
static size_t take(struct http_body *b, const char *data, size_t len) {
    size_t n = (size_t)b->left < len ? (size_t)b->left : len;
    if (!b->drop)
        buffer_append(&b->bytes, data, n);
    b->left -= (int64_t)n;
    b->received += (int64_t)n;
    if (b->left == 0)
        b->state = b->state == DATA ? DATA_CR : COMPLETE;
    return n;
}

enum http_body_result http_body_feed(struct http_body *b, const char *data, size_t len,
                                     size_t *used) {
    for (*used = 0; *used < len && b->state != COMPLETE;) {
        if (b->state == BY_LENGTH || b->state == DATA)
            *used += take(b, data + *used, len - *used);
        else if (!on_byte(b, data[(*used)++]))
            return HTTP_BODY_REFUSED;
    }
    return b->state == COMPLETE ? HTTP_BODY_COMPLETE : HTTP_BODY_MORE;
}
