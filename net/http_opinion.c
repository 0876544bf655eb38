#include "http_opinion.h"

#include <http_parser.h>
#include <string.h>

static int on_headers_complete(http_parser *p) {
    struct http_opinion *o = p->data;
    o->complete = true;
    o->keep_alive = http_should_keep_alive(p);
    o->chunked = p->flags & F_CHUNKED;
    o->content_length = p->flags & F_CONTENTLENGTH ? (int64_t)p->content_length : -1;
    return 0;
}

/* The target comes in one piece, as the head does. */
static int on_url(http_parser *p, const char *at, size_t len) {
    struct http_opinion *o = p->data;
    struct http_parser_url url;
    http_parser_url_init(&url);
    if (http_parser_parse_url(at, len, p->method == HTTP_CONNECT, &url) != 0)
        return 1;
    if (url.field_set & (1 << UF_PATH)) {
        o->path = at + url.field_data[UF_PATH].off;
        o->path_len = url.field_data[UF_PATH].len;
    }
    if (url.field_set & (1 << UF_QUERY)) {
        o->query = at + url.field_data[UF_QUERY].off;
        o->query_len = url.field_data[UF_QUERY].len;
    }
    return 0;
}

void http_opinion_get(const char *head, size_t len, struct http_opinion *out) {
    http_parser parser;
    http_parser_settings settings;
    memset(out, 0, sizeof *out);
    http_parser_settings_init(&settings);
    settings.on_url = on_url;
    settings.on_headers_complete = on_headers_complete;
    http_parser_init(&parser, HTTP_REQUEST);
    parser.data = out;
    http_parser_execute(&parser, &settings, head, len);
    out->known_method = HTTP_PARSER_ERRNO(&parser) != HPE_INVALID_METHOD;
}
