/* Where patterns written for Oniguruma and PCRE2 differ: the matches must be Oniguruma's. */
#include <stdlib.h>
#include <string.h>

#include "host/tokenizer_internal.h"
#include "tests/shim.h"

/* Matches are shown in brackets. */
static const struct {
    const char *pattern, *text, *matches;
} cases[] = {
    {"b", "abcb", "a[b]c[b]"},
    {"", "ab", "[]a[]b[]"},
    {"x*", "axxb", "[]a[xx]b[]"},
    {"x*|b", "axb", "[]a[x]b[]"},
    {"\\s+$", "a \n b \t", "a[ ]\n b[ \t]"}, /* $ stands before every \n, and . stops there only */
    {"\\s+$", "  \n\n\n x", "[  \n\n]\n x"},
    {"(\\s+)$", "  \n\n\n x", "[  \n\n]\n x"},
    {"^b", "b\nb\rb", "[b]\n[b]\rb"},
    {".", "\r\n\xE2\x80\xA8", "[\r]\n[\xE2\x80\xA8]"},
    {"\\s", "\xE1\xA0\x8E\xC2\xA0\xE2\x80\x8B\xE3\x80\x80\x1C\xC2\x85",
     "\xE1\xA0\x8E[\xC2\xA0]\xE2\x80\x8B[\xE3\x80\x80]\x1C[\xC2\x85]"}, /* U+180E is no space */
    {"[^\\s]", "\xE1\xA0\x8E ", "[\xE1\xA0\x8E] "},
    {"\\S", "\xE1\xA0\x8E ", "[\xE1\xA0\x8E] "},
    {"\\s+(?!\\S)", "a   b  ", "a[  ] b[  ]"},
    {"(?i:'s)", "'s'S'\xC5\xBF", "['s]['S]['\xC5\xBF]"}, /* U+017F folds to s */
    {"\\p{N}{1,3}", "12345\xC2\xBD", "[123][45\xC2\xBD]"},
    {"\\d", "1\xD9\xA3\xC2\xBD", "[1][\xD9\xA3]\xC2\xBD"},
    {"[\\u4e00-\\u9fa5]+", "a\xE4\xB8\xAD\xE6\x96\x87", "a[\xE4\xB8\xAD\xE6\x96\x87]"},
    {"\\v", "\n\x0B", "\n[\x0B]"},
    {"[]a]", NULL, NULL},
    {"[[:alpha:]]+", "ab1", "[ab]1"},
    {"[a-c&&b]", NULL, NULL},
    {"[a[b]]", NULL, NULL},
    {"\\h", NULL, NULL},
    {"\\w", NULL, NULL},
    {"\\1", NULL, NULL},
    {"\\R", NULL, NULL},
    {"a\\", NULL, NULL},
    {"\\u12", NULL, NULL},
    {"(?m:.)", NULL, NULL},
    {"(*UTF)a", NULL, NULL},
    {"a{2}+", NULL, NULL},
    {"a++", "aab", "[aa]b"},
};

static void show_matches(const struct regex *r, const char *text, struct buffer *out) {
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    struct regex_iter it = {
        .regex = r, .data = data, .text = text, .len = strlen(text), .last_end = SIZE_MAX};
    struct text_span match;
    size_t done = 0;
    while (regex_next(&it, &match)) {
        buffer_append(out, text + done, match.start - done);
        buffer_putc(out, '[');
        buffer_append(out, text + match.start, match.end - match.start);
        buffer_putc(out, ']');
        done = match.end;
    }
    EXPECT_FALSE(it.failed);
    buffer_puts(out, text + done);
    buffer_putc(out, 0);
    pcre2_match_data_free(data);
}

TEST(TokenizerRegex, MatchesAreOnigurumas) {
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct regex r;
        struct error error = {0};
        struct buffer shown = {0};
        int rc = regex_compile(&r, cases[i].pattern, strlen(cases[i].pattern), "test", &error);
        if (!cases[i].text) {
            if (rc != ERR_UNSUPPORTED)
                FAIL("%s is taken", cases[i].pattern);
        } else if (rc != 0) {
            FAIL("%s: %s", cases[i].pattern, error.text);
        } else {
            show_matches(&r, cases[i].text, &shown);
            EXPECT_STR_EQ(shown.data, cases[i].matches);
        }
        buffer_deinit(&shown);
        regex_deinit(&r);
    }
}

TEST(TokenizerRegex, LongPatternsAreRefused) {
    struct regex r;
    struct error error = {0};
    char *pattern = malloc(TOKENIZER_MAX_REGEX_BYTES + 1);
    memset(pattern, 'a', TOKENIZER_MAX_REGEX_BYTES + 1);
    EXPECT_INT_EQ(regex_compile(&r, pattern, TOKENIZER_MAX_REGEX_BYTES + 1, "test", &error),
                  ERR_UNSUPPORTED);
    EXPECT_INT_EQ(regex_compile(&r, pattern, TOKENIZER_MAX_REGEX_BYTES, "test", &error), 0);
    regex_deinit(&r);
    free(pattern);
}

/* A pattern that needs exponential time gives up, and its text stays. */
TEST(TokenizerRegex, TextIsKeptWhenALimitIsHit) {
    static const char text[] = "b aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac aab";
    struct regex r;
    struct error error = {0};
    struct text_span match;
    ASSERT_INT_EQ(regex_compile(&r, "(?:a|a|aa)+b|b", 14, "test", &error), 0);
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    struct regex_iter it = {
        .regex = &r, .data = data, .text = text, .len = sizeof text - 1, .last_end = SIZE_MAX};
    EXPECT_TRUE(regex_next(&it, &match) && match.start == 0 && match.end == 1);
    EXPECT_FALSE(regex_next(&it, &match));
    EXPECT_TRUE(it.failed);
    pcre2_match_data_free(data);
    regex_deinit(&r);
}
