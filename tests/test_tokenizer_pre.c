/* Pre-tokenizers: the behaviors of Split, and texts on which a pattern gives up. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/tokenizer_internal.h"
#include "tests/shim.h"

/* Split at "-"; the pieces as the reference package gives them. */
static const struct {
    const char *behavior, *invert, *text, *pieces;
} splits[] = {
    {"Isolated", "false", "the-final--countdown", "the|-|final|-|-|countdown"},
    {"Isolated", "true", "the-final--countdown", "the|-|final|-|-|countdown"},
    {"Removed", "false", "the-final--countdown", "the|final|countdown"},
    {"Removed", "true", "the-final--countdown", "-|-|-"},
    {"MergedWithPrevious", "false", "the-final--countdown", "the-|final-|-|countdown"},
    {"MergedWithPrevious", "true", "the-final--countdown", "the|-final|-|-countdown"},
    {"MergedWithNext", "false", "the-final--countdown", "the|-final|-|-countdown"},
    {"MergedWithNext", "true", "the-final--countdown", "the-|final-|-|countdown"},
    {"Contiguous", "false", "the-final--countdown", "the|-|final|--|countdown"},
    {"Contiguous", "true", "the-final--countdown", "the|-|final|--|countdown"},
    {"Isolated", "false", "--a-", "-|-|a|-"},
    {"Isolated", "true", "--a-", "-|-|a|-"},
    {"Removed", "false", "--a-", "a"},
    {"Removed", "true", "--a-", "-|-|-"},
    {"MergedWithPrevious", "false", "--a-", "-|-|a-"},
    {"MergedWithPrevious", "true", "--a-", "-|-a|-"},
    {"MergedWithNext", "false", "--a-", "-|-a|-"},
    {"MergedWithNext", "true", "--a-", "-|-|a-"},
    {"Contiguous", "false", "--a-", "--|a|-"},
    {"Contiguous", "true", "--a-", "--|a|-"},
};

static void append_piece(void *user, const char *piece, size_t len) {
    struct buffer *out = user;
    if (out->len > 0)
        buffer_putc(out, '|');
    buffer_append(out, piece, len);
}

/* Appends the pieces of text, with | between them and a final NUL. */
static void cut(const char *json, const char *text, struct buffer *out) {
    struct pre_tokenizer p = {0};
    struct pre_scratch scratch = {.data = pcre2_match_data_create(1, NULL)};
    struct error error = {0};
    json_t *spec = json_parse(json, strlen(json), "test", ERR_BAD_FILE, &error);
    if (pre_tokenizer_parse(&p, spec, "test", &error) != 0)
        FAIL("%s", error.text);
    pre_tokenizer_run(&p, &scratch, text, strlen(text), true, append_piece, out);
    buffer_putc(out, 0);
    pre_tokenizer_deinit(&p);
    pcre2_match_data_free(scratch.data);
    for (int i = 0; i < TOKENIZER_MAX_STEPS; i++)
        buffer_deinit(&scratch.text[i]);
    json_decref(spec);
}

TEST(TokenizerPre, SplitBehavesAsTheReference) {
    static const char *const patterns[] = {"{\"String\":\"-\"}", "{\"Regex\":\"[-]\"}"};
    for (size_t i = 0; i < sizeof splits / sizeof *splits; i++)
        for (int k = 0; k < 2; k++) {
            char json[256];
            struct buffer out = {0};
            snprintf(json, sizeof json,
                     "{\"type\":\"Split\",\"pattern\":%s,\"behavior\":\"%s\",\"invert\":%s}",
                     patterns[k], splits[i].behavior, splits[i].invert);
            cut(json, splits[i].text, &out);
            EXPECT_STR_EQ(out.data, splits[i].pieces);
            buffer_deinit(&out);
        }
}

/* The pattern needs exponential time at the first a: what is left stays, in one piece, although
 * text that does not match is removed. */
TEST(TokenizerPre, TheRestOfATextIsKeptWhereALimitIsHit) {
    static const char json[] = "{\"type\":\"Split\",\"behavior\":\"Removed\",\"invert\":true,"
                               "\"pattern\":{\"Regex\":\"(?:a|a|aa)+b|b\"}}";
    static const char rest[] = " aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac aab";
    char text[128], expected[128];
    struct buffer out = {0};
    snprintf(text, sizeof text, "b%s", rest);
    snprintf(expected, sizeof expected, "b|%s", rest);
    cut(json, text, &out);
    EXPECT_STR_EQ(out.data, expected);
    buffer_deinit(&out);
}

TEST(TokenizerPre, AnEmptyTextHasNoPieces) {
    struct buffer out = {0};
    cut("{\"type\":\"ByteLevel\",\"add_prefix_space\":true}", "", &out);
    EXPECT_STR_EQ(out.data, "");
    buffer_deinit(&out);
}
