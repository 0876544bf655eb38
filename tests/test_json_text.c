/* JSON as text: what the scanner takes, against jansson, and how values are spelled, as Python
 * does. (What Python makes of more of it is in the prompts of test_chat_template.c.) */
#include "host/json_text.h"

#include <stdlib.h>
#include <string.h>

#include "host/json.h"
#include "tests/shim.h"

static bool accepts(const char *s, size_t len) {
    struct json_scan scan = {0};
    for (size_t i = 0; i < len; i++)
        if (json_scan_byte(&scan, s[i]) == JSON_STEP_ERROR)
            return false;
    return json_scan_complete(&scan);
}

static const char *const valid[] = {
    "{}",
    "[]",
    " [ ] ",
    "1",
    "-0",
    "0",
    "-1.5e+10",
    "0.5E-3",
    "1e5",
    "\"\"",
    "\"a\\n\\u00e9\\\"\"",
    "true",
    "false",
    "null",
    "[1,2,[3]]",
    "{\"a\":{\"b\":[{}]},\"c\":null}",
    "\r\n\t[\t1 ,\n2 ]\r",
    "[true,false,null,0,-1,\"x\"]",
    "{\"\":\"\"}",
    "12345678901234567",
    "[0.0]",
    "\"\x7f\"",
};
static const char *const invalid[] = {
    "",
    " ",
    "{",
    "[",
    "}",
    "]",
    "[}",
    "{]",
    "[1,]",
    "{,}",
    "[,1]",
    "{\"a\"}",
    "{\"a\":}",
    "{a:1}",
    "{\"a\":1,}",
    "01",
    "-",
    "+1",
    ".5",
    "1.",
    "1e",
    "1e+",
    "1.e5",
    "0x1",
    "--1",
    "1 2",
    "[1 2]",
    "tru",
    "truex",
    "nul",
    "True",
    "\"",
    "\"\\",
    "\"\\x\"",
    "\"\\u12\"",
    "\"\\u12g4\"",
    "\"\n\"",
    "\"a\"b",
    "{}{}",
    "[]]",
    "'a'",
    "[1]]",
    "{\"a\":1 \"b\":2}",
    "{1:2}",
    "nan",
    "\"\\u00\"",
    "[-]",
};

TEST(JsonText, TheScannerTakesWhatIsJson) {
    for (size_t i = 0; i < sizeof valid / sizeof *valid; i++)
        if (!accepts(valid[i], strlen(valid[i])))
            FAIL("refused: %s", valid[i]);
    for (size_t i = 0; i < sizeof invalid / sizeof *invalid; i++)
        if (accepts(invalid[i], strlen(invalid[i])))
            FAIL("taken: %s", invalid[i]);
}

/* Random changes of valid texts: both parsers agree. */
TEST(JsonText, TheScannerAgreesWithJansson) {
    static const char bytes[] = "{}[]:,\"\\u0n1-+.eE truefalsn\x01";
    uint64_t rng = 5;
    int taken = 0;
    for (int round = 0; round < 200000; round++) {
        char s[64];
        size_t len;
        const char *from = valid[(rng >> 33) % (sizeof valid / sizeof *valid)];
        len = strlen(from);
        memcpy(s, from, len);
        for (int k = 0; k < 3 && len > 0; k++) {
            rng = rng * 6364136223846793005u + 1442695040888963407u;
            size_t at = (rng >> 20) % len;
            char c = bytes[(rng >> 40) % (sizeof bytes - 1)];
            if (rng >> 63)
                s[at] = c;
            else if (rng >> 62 & 1 && len < sizeof s)
                memmove(s + at + 1, s + at, len++ - at), s[at] = c;
            else
                memmove(s + at, s + at + 1, --len - at);
        }
        json_error_t e;
        json_t *doc =
            json_loadb(s, len, JSON_DECODE_ANY | JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &e);
        /* jansson knows more of numbers and of surrogates, and less of single scalars. */
        bool limit = !doc && (strstr(e.text, "too big") || strstr(e.text, "real number overflow") ||
                              strstr(e.text, "invalid Unicode"));
        if (!limit && accepts(s, len) != (doc != NULL))
            FAIL("%.*s: %s", (int)len, s, doc ? "taken by jansson" : e.text);
        taken += doc != NULL;
        json_decref(doc);
    }
    EXPECT_INT_GT(taken, 5000);
}

TEST(JsonText, NestingIsBounded) {
    char s[2 * JSON_TEXT_MAX_DEPTH + 2];
    for (size_t depth = JSON_TEXT_MAX_DEPTH; depth <= JSON_TEXT_MAX_DEPTH + 1; depth++) {
        memset(s, '[', depth);
        memset(s + depth, ']', depth);
        EXPECT_INT_EQ(accepts(s, 2 * depth), depth == JSON_TEXT_MAX_DEPTH);
    }
}

/* ---- spelling ---- */

static void expect_format(const char *s, int indent, const char *expected) {
    struct buffer out = {0};
    struct error error = {0};
    EXPECT_INT_EQ(json_text_format(&out, s, strlen(s), indent, "x", &error), 0);
    buffer_putc(&out, '\0');
    EXPECT_STR_EQ(out.data, expected);
    buffer_deinit(&out);
}

TEST(JsonText, ValuesAreSpelledAsPythonDoes) {
    static const char *const cases[][2] = {
        {" {\"b\" :1,\"a\":[ ]  , \"b\":{ } } ", "{\"b\": 1, \"a\": [], \"b\": {}}"},
        {"\"\\u00e9\\/\\ud83d\\ude00\\\"\\\\\\u0007\\b\\f\\n\\r\\t\x7f\"",
         "\"é/😀\\\"\\\\\\u0007\\b\\f\\n\\r\\t\x7f\""},
        {"\"\\ud83d\"", "\"\xEF\xBF\xBD\""}, /* half of a pair */
        {"\"\\ude00\\ud83d\\u0041\"", "\"\xEF\xBF\xBD\xEF\xBF\xBD"
                                      "A\""},
        {"123456789012345678901234567890", "123456789012345678901234567890"},
        {"-0", "0"},
        {"-0.0", "-0.0"},
        {"1.0", "1.0"},
        {"1.50", "1.5"},
        {"1e5", "100000.0"},
        {"1E15", "1000000000000000.0"},
        {"1e16", "1e+16"},
        {"123e-7", "1.23e-05"},
        {"0.0001", "0.0001"},
        {"0.00012345", "0.00012345"},
        {"1e-100", "1e-100"},
        {"0.1", "0.1"},
        {"0.30000000000000004", "0.30000000000000004"},
        {"5e-324", "5e-324"},
        {"1.7976931348623157e308", "1.7976931348623157e+308"},
        {"12.25", "12.25"},
        {"2e400", "2e400"},
        {"[1.5 , 2]", "[1.5, 2]"},
        {"null", "null"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_format(cases[i][0], 0, cases[i][1]);
    expect_format(
        "{\"a\":[1,{\"b\":[]}],\"c\":{},\"d\":[[2.0]]}", 4,
        "{\n    \"a\": [\n        1,\n        {\n            \"b\": []\n        }\n    ],\n"
        "    \"c\": {},\n    \"d\": [\n        [\n            2.0\n        ]\n    ]\n}");
}

TEST(JsonText, WhatIsNoJsonIsRefusedWithItsPlace) {
    struct buffer out = {0};
    struct error error = {0};
    EXPECT_INT_EQ(json_text_format(&out, "[1,]", 4, 0, "tools", &error), ERR_INVALID_REQUEST);
    EXPECT_TRUE(strstr(error.text, "tools: not valid JSON at byte 3 of 4") != NULL);
    EXPECT_INT_EQ(json_text_format(&out, "[1", 2, 0, "tools", &error), ERR_INVALID_REQUEST);
    EXPECT_TRUE(strstr(error.text, "tools: JSON that ends within a value") != NULL);
    EXPECT_INT_EQ(json_text_format(&out, "", 0, 0, "tools", &error), ERR_INVALID_REQUEST);
    buffer_deinit(&out);
}

/* 200 bytes for each two: a tool's enum deep inside would fill the memory with spaces. */
TEST(JsonText, IndentationIsBounded) {
    enum { LEVELS = 50, VALUES = 10000 };
    struct buffer in = {0}, out = {0};
    struct error error = {0};
    for (int i = 0; i < LEVELS; i++)
        buffer_putc(&in, '[');
    for (int i = 0; i < VALUES; i++)
        buffer_puts(&in, i ? ",1" : "1");
    for (int i = 0; i < LEVELS; i++)
        buffer_putc(&in, ']');
    EXPECT_INT_EQ(json_text_format(&out, in.data, in.len, 4, "tools", &error), ERR_INVALID_REQUEST);
    EXPECT_STR_EQ(error.text, "tools: many values are nested deep, and 4 spaces a level make them "
                              "more than 16 times as long");
    EXPECT_TRUE(out.len < JSON_TEXT_MAX_GROWTH * in.len + 8192);
    buffer_clear(&out);
    EXPECT_INT_EQ(json_text_format(&out, in.data, in.len, 0, "tools", &error), 0);
    buffer_clear(&out);
    EXPECT_INT_EQ(json_text_format(&out, "[[[[[[[[[[1]]]]]]]]]]", 21, 4, "tools", &error), 0);
    buffer_deinit(&in);
    buffer_deinit(&out);
}
