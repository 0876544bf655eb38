/* page: the web page at `/`, a chat and a live view of the server.
 *
 * One HTML file, made of the files of net/page, is part of the program. It loads nothing from
 * elsewhere and speaks to the API of its own server only, which its Content-Security-Policy makes
 * sure of: its script and its style are named there by their hashes, so nothing else can run. The
 * page is open to everybody; it asks for a key when the API does.
 *
 *   struct page page;
 *   page_init(&page);
 *   {HTTP_GET, "/", true, page_route, &page}
 *
 * It does not change after page_init and holds no resources.
 */
#pragma once

#include "net/http.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { PAGE_HEADERS = 6 };

struct page_header {
    const char *name;
    const char *value;
};

struct page {
    const char *content_type; /* static */
    const char *html;         /* static, not NUL-terminated */
    size_t len;
    struct page_header headers[PAGE_HEADERS]; /* beside Content-Type and Content-Length */
    char policy[512];                         /* the value of Content-Security-Policy */
};

/* The page's own memory must stay where it is: a header points into it. */
void page_init(struct page *p);

/* A route; ctx is a struct page. */
static inline void page_route(void *ctx, struct http_exchange *x) {
    const struct page *p = (const struct page *)ctx;
    for (int i = 0; i < PAGE_HEADERS; i++)
        http_add_header(x, p->headers[i].name, p->headers[i].value);
    http_answer(x, 200, p->content_type, p->html, p->len);
}

#ifdef __cplusplus
}
#endif
