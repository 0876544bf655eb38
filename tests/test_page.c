/* The page at `/`: what it is served as, and what it does in a browser (tests/page). */
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

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

static const char *header(const struct page *p, const char *name) {
    for (int i = 0; i < PAGE_HEADERS; i++)
        if (strcmp(p->headers[i].name, name) == 0)
            return p->headers[i].value;
    return "";
}

/* The page as a string, to be freed. */
static char *text_of(const struct page *p) {
    char *text = malloc(p->len + 1);
    memcpy(text, p->html, p->len);
    text[p->len] = '\0';
    return text;
}

/* The policy has `directive 'sha256-...'` of what stands between these tags, of which there is one
 * pair. */
static void expect_hash(const struct page *p, const char *open, const char *close,
                        const char *directive) {
    unsigned char digest[SHA256_DIGEST_LENGTH], base64[64];
    char expected[128], *html = text_of(p);
    const char *from = strstr(html, open), *to = strstr(html, close);
    if (!from || !to || strstr(from + 1, open) || strstr(to + 1, close)) {
        FAIL("expected one pair of %s and %s", open, close);
    } else {
        from += strlen(open);
        SHA256((const unsigned char *)from, (size_t)(to - from), digest);
        EVP_EncodeBlock(base64, digest, sizeof digest);
        snprintf(expected, sizeof expected, "%s 'sha256-%s';", directive, (const char *)base64);
        if (!strstr(p->policy, expected))
            FAIL("expected \"%s\" in: %s", expected, p->policy);
    }
    free(html);
}

TEST(Page, ThePolicyNamesScriptAndStyleByTheirHashes) {
    struct page p;
    page_init(&p);
    expect_hash(&p, "<script>", "</script>", "script-src");
    expect_hash(&p, "<style>", "</style>", "style-src");
    EXPECT_STR_EQ(header(&p, "Content-Security-Policy"), p.policy);
}

TEST(Page, TheHeadersAreStrict) {
    struct page p;
    page_init(&p);
    EXPECT_INT_EQ(strncmp(p.policy, "default-src 'none'; ", 20), 0);
    EXPECT_TRUE(strstr(p.policy, "frame-ancestors 'none'") != NULL);
    EXPECT_TRUE(strstr(p.policy, "connect-src 'self'") != NULL);
    EXPECT_TRUE(strstr(p.policy, "unsafe") == NULL);
    EXPECT_STR_EQ(header(&p, "X-Content-Type-Options"), "nosniff");
    EXPECT_STR_EQ(header(&p, "Referrer-Policy"), "no-referrer");
    EXPECT_STR_EQ(p.content_type, "text/html; charset=utf-8");
}

/* No address but the namespaces of SVG, no way to make markup or code out of a string. */
TEST(Page, ItIsOneFileAndMakesNoMarkupOfText) {
    static const char *const refused[] = {"https://",       "src=",    "innerHTML",
                                          "outerHTML",      "eval(",   "Function(",
                                          "document.write", "import(", "insertAdjacentHTML"};
    struct page p;
    page_init(&p);
    char *html = text_of(&p);
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        if (strstr(html, refused[i]))
            FAIL("the page has %s", refused[i]);
    for (const char *at = html; (at = strstr(at, "http://")) != NULL; at++)
        EXPECT_INT_EQ(strncmp(at, "http://www.w3.org/2000/svg", 26), 0);
    EXPECT_INT_EQ(strncmp(html, "<!doctype html>", 15), 0);
    EXPECT_INT_EQ(strlen(html), p.len);
    EXPECT_INT_LT(p.len, 100000);
    free(html);
}

/* Runs one group of tests/page/check.py, which needs Python and a browser. */
static void check_in_browser(const char *group) {
    char self[512], command[1024], line[1024], output[16384] = "";
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    ASSERT_TRUE(n > 0);
    self[n] = '\0';
    snprintf(command, sizeof command, "python3 tests/page/check.py --program %s %s 2>&1", self,
             group);
    FILE *f = popen(command, "r");
    ASSERT_TRUE(f != NULL);
    size_t len = 0;
    while (fgets(line, sizeof line, f))
        if (strncmp(line, "ok ", 3) != 0 && len + strlen(line) < sizeof output)
            len += (size_t)snprintf(output + len, sizeof output - len, "%s", line);
    int status = WEXITSTATUS(pclose(f));
    if (status == 77)
        SKIP(output);
    if (status == 127)
        SKIP("there is no python3");
    if (status != 0)
        FAIL("%s", output);
}

TEST(Page, ChatsInABrowser) {
    check_in_browser("chat");
}

TEST(Page, SaysWhatIsWrongInABrowser) {
    check_in_browser("trouble");
}

TEST(Page, SendsItsSettingsInABrowser) {
    check_in_browser("settings");
}

TEST(Page, ShowsTheServerInABrowser) {
    check_in_browser("server");
}

TEST(Page, CanBeUsedByEverybodyInABrowser) {
    check_in_browser("access");
}

TEST(Page, FitsEveryScreenInABrowser) {
    check_in_browser("look");
}
