/* http_internal: what http_session.c (reading), http_exchange.c (answering), http_route.c
 * (finding the route) and http_origin.c (web pages) share. */
#pragma once

#include "net/http_body.h"
#include "net/http_head.h"
#include "net/http_session.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MAX_REQUEST_ID = 64 };

enum exchange_phase {
    READING_HEAD,
    READING_BODY,
    ANSWERING, /* the route has it */
};

struct http_exchange {
    struct http_session *session; /* borrowed */
    enum exchange_phase phase;
    struct http_head head;
    struct http_body body;
    struct http_request request;
    char id[MAX_REQUEST_ID + 1];
    const struct http_route *route; /* NULL: the request is answered without one */
    int refusal;                    /* status to answer with in place of the route; 0: none */
    const char *refusal_text;       /* that says more, static; NULL: none */
    struct http_watcher watcher;
    struct buffer headers; /* added by the route */
    bool keep_alive;       /* the connection goes on behind the answer */
    bool streaming, begun;
    bool told_expired;
    int64_t last_piece_us; /* when something of the stream was last written */
};

struct http_session {
    struct http_sessions *shared;
    struct conn *conn;
    struct buffer in;               /* received, not looked at yet */
    struct http_exchange *exchange; /* owned; NULL between requests */
    int64_t since_us;               /* when the client last began or went on with something */
    bool used;                      /* a request has been answered */
    bool eof, closing;
};

/* http_session.c: the exchange is answered; frees it. */
void http_exchange_end(struct http_exchange *x);

/* http_exchange.c */
/* Answers with the error of a status in place of a route, and a text that says more or NULL. */
void http_refuse(struct http_exchange *x, int status, const char *text);
/* Keeps a stream alive, as http.h says. */
void http_stream_ping(struct http_exchange *x);

/* http_route.c */
/* Finds the route of a complete head and whether the client may use it: sets x->route or
 * x->refusal with its text, and the request's key. */
void http_route_find(struct http_exchange *x);
/* Answers OPTIONS, of a browser before a request to another origin among them. */
void http_route_options(struct http_exchange *x);
/* Appends the methods of a path, as "GET, HEAD, OPTIONS". */
void http_route_methods(const struct http_sessions *s, const char *path, struct buffer *out);

/* http_origin.c */
/* Is the request of a page of the origin that --cors-origin allows? */
bool http_cors_allows(const struct http_exchange *x);
/* Why the request may be of a web page that may not use the server; NULL when it may. Its head is
 * complete. */
const char *http_foreign_page(const struct http_exchange *x);

#ifdef __cplusplus
}
#endif
