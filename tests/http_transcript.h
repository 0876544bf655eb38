/* http_transcript: what a run of bytes is understood as, as text: for tests and the fuzz target.
 *
 *   POST /a?b 1.1 keep [host=h][content-length=2] 'ok'
 *   refused 400: a CR without LF
 *   ... (the bytes end within a request)
 */
#pragma once

#include "net/http_body.h"
#include "net/http_head.h"

struct http_transcript {
    struct http_head head;
    struct http_body body;
    bool in_body, refused;
    size_t max_body_bytes;
    struct buffer *out;
};

static inline void transcript_refuse(struct http_transcript *t, const struct http_problem *p) {
    buffer_printf(t->out, "refused %d: %s\n", p->status, p->text);
    t->refused = true;
}

static inline void transcript_request(struct http_transcript *t) {
    static const char *const methods[] = {"GET", "HEAD", "POST", "OPTIONS", "OTHER"};
    const struct http_head *h = &t->head;
    buffer_printf(t->out, "%s %s%s%s 1.%d%s%s ", methods[h->method], h->path, *h->query ? "?" : "",
                  h->query, h->version_minor, h->keep_alive ? " keep" : "",
                  h->expects_continue ? " expects" : "");
    for (int32_t i = 0; i < h->num_fields; i++)
        buffer_printf(t->out, "[%s=%s]", h->fields[i].name, h->fields[i].value);
    buffer_puts(t->out, " '");
    buffer_append(t->out, t->body.bytes.data, t->body.bytes.len);
    buffer_puts(t->out, "'\n");
    http_head_deinit(&t->head);
    http_body_deinit(&t->body);
    http_head_init(&t->head);
    t->in_body = false;
}

/* Reads up to the end of the head or the body, or of the bytes; returns how many were used. */
static inline size_t transcript_step(struct http_transcript *t, const char *bytes, size_t size) {
    size_t used = 0;
    if (t->in_body) {
        enum http_body_result rc = http_body_feed(&t->body, bytes, size, &used);
        if (rc == HTTP_BODY_REFUSED)
            transcript_refuse(t, &t->body.problem);
        else if (rc == HTTP_BODY_COMPLETE)
            transcript_request(t);
        return used;
    }
    enum http_head_result rc = http_head_feed(&t->head, bytes, size, &used);
    if (rc == HTTP_HEAD_REFUSED)
        transcript_refuse(t, &t->head.problem);
    if (rc != HTTP_HEAD_COMPLETE)
        return used;
    enum http_body_result body = http_body_begin(&t->body, &t->head, t->max_body_bytes);
    t->in_body = true;
    if (body == HTTP_BODY_REFUSED)
        transcript_refuse(t, &t->body.problem);
    else if (body == HTTP_BODY_COMPLETE)
        transcript_request(t);
    return used;
}

/* Feeds the bytes in pieces: the first of `first` bytes, then of `piece`. Appends to out. */
static inline void http_transcribe(const char *bytes, size_t size, size_t first, size_t piece,
                                   size_t max_body_bytes, struct buffer *out) {
    struct http_transcript t = {.max_body_bytes = max_body_bytes, .out = out};
    size_t end = first < size ? first : size;
    http_head_init(&t.head);
    for (size_t at = 0; at < size && !t.refused;) {
        while (at < end && !t.refused)
            at += transcript_step(&t, bytes + at, end - at);
        end = size - end < piece ? size : end + piece;
    }
    if (!t.refused && (t.in_body || http_head_begun(&t.head)))
        buffer_puts(out, "...\n");
    http_head_deinit(&t.head);
    http_body_deinit(&t.body);
}
