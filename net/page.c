#include "net/page.h"

#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>

#include "host/error.h"

/* The page, put together by the assembler from the files of net/page. */
#define LABEL(name) ".hidden " name "\n.global " name "\n" name ":\n"
#define TEXT(text)  ".ascii \"" text "\"\n"
#define PART(file)  ".incbin \"net/page/" file "\"\n"
/* clang-format off */
__asm__(".section .rodata\n"
        LABEL("page_begin")
        PART("head.html")
        TEXT("<style>")
        LABEL("page_style")
        PART("style.css")
        LABEL("page_style_end")
        TEXT("</style>")
        PART("body.html")
        TEXT("<script>")
        LABEL("page_script")
        PART("basics.js")
        PART("api.js")
        PART("stream.js")
        PART("key.js")
        PART("markdown.js")
        PART("settings.js")
        PART("chat.js")
        PART("answer.js")
        PART("server.js")
        PART("experts.js")
        PART("poll.js")
        PART("main.js")
        LABEL("page_script_end")
        TEXT("</script>")
        LABEL("page_end")
        ".previous\n");
/* clang-format on */
extern const char page_begin[], page_style[], page_style_end[], page_script[], page_script_end[],
    page_end[];

/* SHA-256 in base64. */
enum { HASH_SIZE = 4 * ((SHA256_DIGEST_LENGTH + 2) / 3) + 1 };

static void hash_of(const char *from, const char *to, char out[HASH_SIZE]) {
    unsigned char digest[SHA256_DIGEST_LENGTH];
    SHA256((const unsigned char *)from, (size_t)(to - from), digest);
    EVP_EncodeBlock((unsigned char *)out, digest, sizeof digest);
}

void page_init(struct page *p) {
    char script[HASH_SIZE], style[HASH_SIZE];
    hash_of(page_script, page_script_end, script);
    hash_of(page_style, page_style_end, style);
    /* Trusted types: the browser also refuses to make markup out of a string. */
    int n = snprintf(p->policy, sizeof p->policy,
                     "default-src 'none'; script-src 'sha256-%s'; style-src 'sha256-%s'; "
                     "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                     "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types "
                     "'none'",
                     script, style);
    CHECK(n > 0 && (size_t)n < sizeof p->policy, "policy of %d bytes", n);
    p->content_type = "text/html; charset=utf-8";
    p->html = page_begin;
    p->len = (size_t)(page_end - page_begin);
    const struct page_header headers[PAGE_HEADERS] = {
        {"Content-Security-Policy", p->policy},
        {"X-Content-Type-Options", "nosniff"},
        {"Referrer-Policy", "no-referrer"},
        {"Cross-Origin-Opener-Policy", "same-origin"},
        {"Cross-Origin-Resource-Policy", "same-origin"},
        {"Cache-Control", "no-cache"}, /* a new version of the program has a new page */
    };
    memcpy(p->headers, headers, sizeof headers);
}
