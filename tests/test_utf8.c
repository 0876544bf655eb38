#include "host/utf8.h"

#include <string.h>

#include "tests/shim.h"

#define REPLACED "\xEF\xBF\xBD"

/* The examples of the Unicode standard (chapter 3, U+FFFD substitution of maximal subparts) and the
 * boundaries of table 3-7. */
static const struct {
    const char *in, *out;
} lossy_cases[] = {
    {"", ""},
    {"abc", "abc"},
    {"\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80", "\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80"},
    {"a\xF1\x80\x80\xE1\x80\xC2"
     "b\x80"
     "c\x80\xBF"
     "d",
     "a" REPLACED REPLACED REPLACED "b" REPLACED "c" REPLACED REPLACED "d"},
    {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82"
     "A",
     REPLACED REPLACED REPLACED REPLACED REPLACED REPLACED REPLACED REPLACED "A"},
    {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF"
     "A",
     REPLACED REPLACED REPLACED REPLACED REPLACED REPLACED REPLACED REPLACED "A"},
    {"\xF4\x91\x92\x93\xFF"
     "A\x80\xBF"
     "B",
     REPLACED REPLACED REPLACED REPLACED REPLACED "A" REPLACED REPLACED "B"},
    {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
     "A",
     REPLACED REPLACED REPLACED REPLACED "A"},
    {"\xC3", REPLACED},
    {"\xE4\xB8", REPLACED},
    {"\xF0\x9F\x98", REPLACED},
    {"\xC2\x80\xDF\xBF\xE0\xA0\x80\xEF\xBF\xBF\xF0\x90\x80\x80\xF4\x8F\xBF\xBF",
     "\xC2\x80\xDF\xBF\xE0\xA0\x80\xEF\xBF\xBF\xF0\x90\x80\x80\xF4\x8F\xBF\xBF"},
    {"\xF5\x80\x80\x80", REPLACED REPLACED REPLACED REPLACED},
};

TEST(Utf8, IllFormedPartsBecomeOneReplacementEach) {
    for (size_t i = 0; i < sizeof lossy_cases / sizeof *lossy_cases; i++) {
        struct buffer b = {0};
        utf8_append_lossy(&b, lossy_cases[i].in, strlen(lossy_cases[i].in));
        buffer_putc(&b, 0);
        EXPECT_STR_EQ(b.data, lossy_cases[i].out);
        EXPECT_INT_EQ(utf8_valid_prefix(b.data, b.len), b.len);
        buffer_deinit(&b);
    }
}

TEST(Utf8, EveryScalarValueRoundTripsAndEveryPrefixIsIncomplete) {
    for (uint32_t cp = 0; cp <= 0x10FFFF; cp++) {
        char c[4];
        uint32_t back;
        if (cp >= 0xD800 && cp <= 0xDFFF)
            continue;
        size_t n = utf8_put(c, cp);
        bool ok = utf8_next(c, n, &back) == n && back == cp && utf8_valid_prefix(c, n) == n;
        for (size_t k = 1; k < n; k++)
            ok = ok && utf8_next(c, k, &back) == k && back == UTF8_INCOMPLETE &&
                 utf8_valid_prefix(c, k) == 0;
        if (!ok) {
            FAIL("U+%04X", (unsigned)cp);
            return;
        }
    }
}

TEST(Utf8, ValidPrefixEndsBeforeTheFirstBadByteAtEveryOffset) {
    char text[64];
    for (size_t at = 0; at < sizeof text; at++) {
        memset(text, 'a', sizeof text);
        text[at] = (char)0xFF;
        EXPECT_INT_EQ(utf8_valid_prefix(text, sizeof text), at);
        EXPECT_INT_EQ(utf8_valid_prefix(text, at), at);
    }
}

TEST(Utf8, StripDropsWhiteSpaceAtBothEndsOnly) {
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"", ""},
        {" \t\r\n\x1c ", ""},
        {" a b ", "a b"},
        {"\xE3\x80\x80x\xC2\xA0\xC2\x85\xE2\x80\xA8", "x"}, /* U+3000, U+00A0, U+0085, U+2028 */
        {"\xE2\x80\x8Bx\xE1\xA0\x8E", "\xE2\x80\x8Bx\xE1\xA0\x8E"}, /* U+200B, U+180E: not spaces */
        {"\xFF x \x80", "\xFF x \x80"},
        {" \x80\x80", "\x80\x80"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *s = cases[i].in;
        size_t len = strlen(s);
        utf8_strip(&s, &len);
        EXPECT_INT_EQ(len, strlen(cases[i].out));
        EXPECT_MEM_EQ(s, cases[i].out, len);
    }
}
