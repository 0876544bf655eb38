/* The page at `/`: its headers here, what it does in a browser (tests/page). */
#include <stdio.h>
#include <string.h>

#include "net/page.h"
#include "tests/shim.h"

/* The page as an HTTP server sends it: headers, an empty line, the file. For tests/page. */
PROGRAM(page) {
    struct page p;
    (void)argc;
    (void)argv;
    page_init(&p);
    printf("Content-Type: %s\n", p.content_type);
    for (int i = 0; i < PAGE_HEADERS; i++)
        printf("%s: %s\n", p.headers[i].name, p.headers[i].value);
    putchar('\n');
    return fwrite(p.html, 1, p.len, stdout) == p.len ? 0 : 1;
}
