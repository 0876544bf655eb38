/* Loading, limits and robustness of tokenizers. The small tokenizers below are byte level with the
 * vocabulary a b c ab abc <s>(5) and the merges a+b, ab+c unless a test says otherwise.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/file.h"
#include "host/mem.h"
#include "host/tokenizer_internal.h"
#include "host/utf8.h"
#include "tests/shim.h"

#define VOCAB   "\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"abc\":4,\"<s>\":5}"
#define MERGES  "\"merges\":[\"a b\",[\"ab\",\"c\"]]"
#define MODEL   "\"model\":{\"type\":\"BPE\"," VOCAB "," MERGES "}"
#define BYTES   "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}"
#define SPECIAL "\"added_tokens\":[{\"id\":5,\"content\":\"<s>\",\"special\":true}]"

static int load_text(const char *json, struct tokenizer **t, struct error *error) {
    static const struct tokenizer_config none = {0};
    memset(error, 0, sizeof *error);
    return tokenizer_load_json_text(json, strlen(json), "test", &none, t, error);
}

static void check_ids(const struct tokenizer *t, const char *text, unsigned flags,
                      const char *expected) {
    struct token_list ids = {0};
    char got[256] = "";
    size_t n = 0;
    tokenizer_encode(t, text, strlen(text), flags, &ids);
    for (size_t i = 0; i < ids.len && n < sizeof got - 16; i++)
        n += (size_t)snprintf(got + n, sizeof got - n, i ? " %d" : "%d", (int)ids.ids[i]);
    EXPECT_STR_EQ(got, expected);
    free(ids.ids);
}

static void check_works(void) {
    struct tokenizer *t;
    struct error error;
    ASSERT_INT_EQ(load_text("{" MODEL "," BYTES "," SPECIAL "}", &t, &error), 0);
    check_ids(t, "abcab", 0, "4 3");
    tokenizer_free(t);
}

/* ---- bad files ---- */

static const struct {
    const char *json;
    int code;
    const char *names; /* the message holds this */
} bad_files[] = {
    {"", ERR_BAD_FILE, "not valid JSON"},
    {"{", ERR_BAD_FILE, "not valid JSON"},
    {"[]", ERR_BAD_FILE, "expected an object"},
    {"null", ERR_BAD_FILE, "expected an object"},
    {"{}", ERR_BAD_FILE, "model"},
    {"{\"version\":\"2.0\"," MODEL "}", ERR_UNSUPPORTED, "version 2.0"},
    {"{\"model\":[]}", ERR_BAD_FILE, "model"},
    {"{\"model\":{\"type\":\"WordPiece\"}}", ERR_UNSUPPORTED, "WordPiece"},
    {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", ERR_UNSUPPORTED, "Unigram"},
    {"{\"model\":{\"type\":7}}", ERR_UNSUPPORTED, "model"},
    {"{" BYTES ",\"model\":{\"type\":\"BPE\"}}", ERR_BAD_FILE, "vocab"},
    {"{" BYTES ",\"model\":{\"vocab\":{}," MERGES "}}", ERR_BAD_FILE, "vocab"},
    {"{" BYTES ",\"model\":{\"vocab\":[1]," MERGES "}}", ERR_BAD_FILE, "vocab"},
    {"{" BYTES ",\"model\":{\"vocab\":{\"a\":-1}," MERGES "}}", ERR_BAD_FILE, "\"a\""},
    {"{" BYTES ",\"model\":{\"vocab\":{\"a\":2147483647}," MERGES "}}", ERR_BAD_FILE, "\"a\""},
    {"{" BYTES ",\"model\":{\"vocab\":{\"a\":\"0\"}," MERGES "}}", ERR_BAD_FILE, "\"a\""},
    {"{" BYTES ",\"model\":{\"vocab\":{\"a\":1.5}," MERGES "}}", ERR_BAD_FILE, "\"a\""},
    {"{" BYTES ",\"model\":{\"vocab\":{\"a\":0,\"a\":1}," MERGES "}}", ERR_BAD_FILE, "duplicate"},
    {"{" BYTES ",\"model\":{" VOCAB "}}", ERR_BAD_FILE, "merges"},
    {"{" BYTES ",\"model\":{" VOCAB ",\"merges\":{}}}", ERR_BAD_FILE, "merges"},
    {"{" BYTES ",\"model\":{" VOCAB ",\"merges\":[\"ab\"]}}", ERR_BAD_FILE, "merges[0]"},
    {"{" BYTES ",\"model\":{" VOCAB ",\"merges\":[\"a b c\"]}}", ERR_BAD_FILE, "merges[0]"},
    {"{" BYTES ",\"model\":{" VOCAB ",\"merges\":[\"a b\",\"a c\"]}}", ERR_BAD_FILE, "merges[1]"},
    {"{" BYTES ",\"model\":{" VOCAB ",\"merges\":[[\"a\"]]}}", ERR_BAD_FILE, "merges[0]"},
    {"{" BYTES ",\"model\":{" VOCAB ",\"merges\":[[\"a\",1]]}}", ERR_BAD_FILE, "merges[0]"},
    {"{" BYTES ",\"model\":{" VOCAB ",\"merges\":[[\"\",\"\"]]}}", ERR_BAD_FILE, "merges[0]"},
    {"{" BYTES ",\"model\":{" VOCAB ",\"merges\":[null]}}", ERR_BAD_FILE, "merges[0]"},
    {"{" BYTES ",\"model\":{\"unk_token\":\"?\"," VOCAB "," MERGES "}}", ERR_BAD_FILE, "unk_token"},
    {"{" BYTES ",\"model\":{\"dropout\":0.1," VOCAB "," MERGES "}}", ERR_UNSUPPORTED, "dropout"},
    {"{" BYTES ",\"model\":{\"end_of_word_suffix\":\"</w>\"," VOCAB "," MERGES "}}",
     ERR_UNSUPPORTED, "end_of_word_suffix"},
    {"{" MODEL "}", ERR_UNSUPPORTED, "decoder"},
    {"{" MODEL ",\"decoder\":{\"type\":\"CTC\"}}", ERR_UNSUPPORTED, "CTC"},
    {"{" MODEL ",\"decoder\":{\"type\":\"Sequence\"}}", ERR_BAD_FILE, "decoders"},
    {"{" MODEL ",\"decoder\":{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}}",
     ERR_UNSUPPORTED, "Strip"},
    {"{" MODEL
     ",\"decoder\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":\"\"}}",
     ERR_UNSUPPORTED, "Replace"},
    {"{" MODEL ",\"decoder\":{\"type\":\"Metaspace\"}}", ERR_BAD_FILE, "replacement"},
    {"{" MODEL ",\"decoder\":7}", ERR_BAD_FILE, "decoder"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Whitespace\"}}", ERR_UNSUPPORTED, "Whitespace"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Punctuation\"}}", ERR_UNSUPPORTED, "Punctuation"},
    {"{" MODEL ",\"pre_tokenizer\":{}}", ERR_BAD_FILE, "pre_tokenizer"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":7}}", ERR_BAD_FILE,
     "pretokenizers"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[7]}}", ERR_BAD_FILE,
     "pretokenizers"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
     "{\"type\":\"ByteLevel\"},{\"type\":\"Digits\"}]}}",
     ERR_UNSUPPORTED, "after ByteLevel"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\"}}", ERR_BAD_FILE,
     "pattern"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"}}}",
     ERR_BAD_FILE, "behavior"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":"
     "{\"Regex\":\"(a\"}}}",
     ERR_BAD_FILE, "regular expression"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":"
     "{\"Regex\":\"[a[bc]]\"}}}",
     ERR_UNSUPPORTED, "set"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":"
     "{\"Regex\":\"\\\\h+\"}}}",
     ERR_UNSUPPORTED, "escape"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":"
     "{\"Regex\":\"a{1,3}+\"}}}",
     ERR_UNSUPPORTED, "interval"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\","
     "\"prepend_scheme\":\"last\"}}",
     ERR_BAD_FILE, "prepend_scheme"},
    {"{" MODEL ",\"normalizer\":{\"type\":\"Lowercase\"}}", ERR_UNSUPPORTED, "Lowercase"},
    {"{" MODEL ",\"normalizer\":{\"type\":\"Precompiled\"}}", ERR_UNSUPPORTED, "Precompiled"},
    {"{" MODEL ",\"normalizer\":{\"type\":\"Prepend\"}}", ERR_BAD_FILE, "prepend"},
    {"{" MODEL ",\"normalizer\":{\"type\":\"Replace\",\"content\":\"a\"}}", ERR_BAD_FILE,
     "pattern"},
    {"{" MODEL ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Sequence\"}]}}",
     ERR_UNSUPPORTED, "Sequence in a Sequence"},
    {"{" MODEL "," BYTES ",\"added_tokens\":7}", ERR_BAD_FILE, "added_tokens"},
    {"{" MODEL "," BYTES ",\"added_tokens\":[7]}", ERR_BAD_FILE, "added_tokens[0]"},
    {"{" MODEL "," BYTES ",\"added_tokens\":[{\"content\":\"x\",\"id\":9999999}]}", ERR_BAD_FILE,
     "added_tokens[0]"},
    {"{" MODEL "," BYTES ",\"post_processor\":{\"type\":\"BertProcessing\"}}", ERR_UNSUPPORTED,
     "BertProcessing"},
    {"{" MODEL "," BYTES ",\"post_processor\":{\"type\":\"TemplateProcessing\"}}", ERR_BAD_FILE,
     "single"},
    {"{" MODEL "," BYTES ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":["
     "{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}]}}",
     ERR_BAD_FILE, "ids"},
    {"{" MODEL "," BYTES ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":["
     "{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{"
     "\"<s>\":{\"ids\":[6]}}}}",
     ERR_BAD_FILE, "id 6 has no token"},
};

TEST(TokenizerLoad, BadFilesAreRefusedWithAMessageThatNamesTheField) {
    for (size_t i = 0; i < sizeof bad_files / sizeof *bad_files; i++) {
        struct tokenizer *t;
        struct error error;
        int rc = load_text(bad_files[i].json, &t, &error);
        EXPECT_TRUE(t == NULL);
        if (rc != bad_files[i].code || strncmp(error.text, "test: ", 6) != 0 ||
            !strstr(error.text, bad_files[i].names))
            FAIL("%s\n  gives %d, \"%s\"", bad_files[i].json, rc, error.text);
        tokenizer_free(t);
    }
    check_works();
}

TEST(TokenizerLoad, EveryTruncationOfAFileIsRefused) {
    static const char json[] = "{" MODEL "," BYTES "," SPECIAL "}";
    static const struct tokenizer_config none = {0};
    for (size_t len = 0; len < sizeof json - 1; len++) {
        struct tokenizer *t;
        struct error error = {0};
        EXPECT_INT_EQ(tokenizer_load_json_text(json, len, "test", &none, &t, &error), ERR_BAD_FILE);
    }
    check_works();
}

TEST(TokenizerLoad, TooManyStepsAreRefused) {
    struct buffer b = {0};
    struct tokenizer *t;
    struct error error;
    buffer_puts(&b, "{" MODEL ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[");
    for (int i = 0; i < 40; i++)
        buffer_puts(&b, "{\"type\":\"Digits\"},");
    buffer_puts(&b, "{\"type\":\"ByteLevel\"}]}}");
    buffer_putc(&b, 0);
    EXPECT_INT_EQ(load_text(b.data, &t, &error), ERR_UNSUPPORTED);
    buffer_deinit(&b);
    check_works();
}

/* ---- folders ---- */

static void write_file(const char *name, const char *text) {
    char *path = path_join(shim_scratch_dir(), name);
    FILE *f = fopen(path, "w");
    ASSERT_TRUE(f != NULL);
    fputs(text, f);
    fclose(f);
    free(path);
}

static void remove_file(const char *name) {
    char *path = path_join(shim_scratch_dir(), name);
    remove(path);
    free(path);
}

static void remove_files(void) {
    remove_file("tokenizer.json");
    remove_file("tokenizer.model");
    remove_file("tokenizer_config.json");
    remove_file("special_tokens_map.json");
    remove_file("generation_config.json");
    remove_file("added_tokens.json");
    remove_file("config.json");
}

TEST(TokenizerLoad, AFolderWithoutATokenizerIsNotFound) {
    struct tokenizer *t;
    struct error error = {0};
    remove_files();
    EXPECT_INT_EQ(tokenizer_load(shim_scratch_dir(), &t, &error), ERR_NOT_FOUND);
    EXPECT_TRUE(strstr(error.text, shim_scratch_dir()) != NULL);
    memset(&error, 0, sizeof error);
    EXPECT_INT_EQ(tokenizer_load("/nonexistent", &t, &error), ERR_NOT_FOUND);
}

TEST(TokenizerLoad, BadModelAndConfigFilesNameTheFile) {
    struct tokenizer *t;
    struct error error = {0};
    remove_files();
    write_file("tokenizer.model", "not a model");
    EXPECT_INT_EQ(tokenizer_load(shim_scratch_dir(), &t, &error), ERR_BAD_FILE);
    EXPECT_TRUE(strstr(error.text, "tokenizer.model") != NULL);
    memset(&error, 0, sizeof error);
    write_file("tokenizer.model", "");
    EXPECT_INT_EQ(tokenizer_load(shim_scratch_dir(), &t, &error), ERR_BAD_FILE);
    write_file("tokenizer.json", "{" MODEL "," BYTES "}");
    write_file("tokenizer_config.json", "{");
    memset(&error, 0, sizeof error);
    EXPECT_INT_EQ(tokenizer_load(shim_scratch_dir(), &t, &error), ERR_BAD_FILE);
    EXPECT_TRUE(strstr(error.text, "tokenizer_config.json") != NULL);
    write_file("tokenizer_config.json", "{\"added_tokens_decoder\":{\"x\":{\"content\":\"a\"}}}");
    memset(&error, 0, sizeof error);
    EXPECT_INT_EQ(tokenizer_load(shim_scratch_dir(), &t, &error), ERR_BAD_FILE);
    EXPECT_TRUE(strstr(error.text, "added_tokens_decoder") != NULL);
    write_file("tokenizer_config.json", "{}");
    EXPECT_INT_EQ(tokenizer_load(shim_scratch_dir(), &t, &error), 0);
    EXPECT_INT_EQ(tokenizer_bos(t), -1);
    tokenizer_free(t);
    remove_files();
}

TEST(TokenizerLoad, EosIdsComeFromAllFiles) {
    struct tokenizer *t;
    struct error error = {0};
    int32_t count;
    remove_files();
    write_file("tokenizer.json", "{" MODEL "," BYTES "}");
    write_file("tokenizer_config.json", "{\"eos_token\":{\"content\":\"abc\"}}");
    write_file("special_tokens_map.json", "{\"eos_token\":\"a\",\"bos_token\":\"<s>\"}");
    write_file("generation_config.json", "{\"eos_token_id\":[2,4,-1,\"x\"]}");
    write_file("config.json", "{\"eos_token_id\":1}");
    ASSERT_INT_EQ(tokenizer_load(shim_scratch_dir(), &t, &error), 0);
    const int32_t *eos = tokenizer_eos(t, &count);
    ASSERT_INT_EQ(count, 2); /* config.json counts only where nothing else does */
    EXPECT_INT_EQ(eos[0], 4);
    EXPECT_INT_EQ(eos[1], 2);
    EXPECT_INT_EQ(tokenizer_bos(t), 5);
    tokenizer_free(t);
    write_file("tokenizer_config.json", "{\"eos_token\":null,\"bos_token\":null}");
    remove_file("generation_config.json");
    ASSERT_INT_EQ(tokenizer_load(shim_scratch_dir(), &t, &error), 0);
    eos = tokenizer_eos(t, &count);
    ASSERT_INT_EQ(count, 1);
    EXPECT_INT_EQ(eos[0], 1);
    EXPECT_INT_EQ(tokenizer_bos(t), -1);
    tokenizer_free(t);
    remove_files();
}

TEST(TokenizerLoad, LlamaClassesInsertByTheirFlags) {
    static const struct {
        const char *config, *ids;
    } cases[] = {
        {"{\"tokenizer_class\":\"LlamaTokenizerFast\",\"bos_token\":\"<s>\"}", "5 0"},
        {"{\"tokenizer_class\":\"LlamaTokenizer\",\"bos_token\":\"<s>\",\"add_bos_token\":false}",
         "0"},
        {"{\"tokenizer_class\":\"LlamaTokenizer\",\"bos_token\":\"<s>\",\"eos_token\":\"abc\","
         "\"add_eos_token\":true}",
         "5 0 4"},
        {"{\"tokenizer_class\":\"PreTrainedTokenizerFast\",\"bos_token\":\"<s>\"}", "0"},
        {"{\"tokenizer_class\":\"LlamaTokenizerFast\"}", "0"},
    };
    remove_files();
    write_file("tokenizer.json", "{" MODEL "," BYTES "," SPECIAL "}");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tokenizer *t;
        struct error error = {0};
        write_file("tokenizer_config.json", cases[i].config);
        ASSERT_INT_EQ(tokenizer_load(shim_scratch_dir(), &t, &error), 0);
        check_ids(t, "a", TOKENIZER_ADD_SPECIAL, cases[i].ids);
        check_ids(t, "a", 0, "0");
        tokenizer_free(t);
    }
    remove_files();
}

/* ---- behaviour ---- */

TEST(Tokenizer, SpecialTokensAreParsedOnlyWhereAllowed) {
    struct tokenizer *t;
    struct error error;
    static const char text[] = "a<s>b<s>c";
    static const struct text_span plain[] = {{0, 1}, {1, 1}, {4, 6}};
    struct token_list ids = {0};
    ASSERT_INT_EQ(load_text("{" MODEL "," BYTES "," SPECIAL "}", &t, &error), 0);
    check_ids(t, text, 0, "0 1 2"); /* characters without a token vanish */
    check_ids(t, text, TOKENIZER_PARSE_SPECIAL, "0 5 1 5 2");
    tokenizer_encode_mixed(t, text, sizeof text - 1, plain, 3, 0, &ids);
    ASSERT_INT_EQ(ids.len, 4); /* the second <s> begins in a plain span */
    EXPECT_INT_EQ(ids.ids[1], 5);
    EXPECT_INT_EQ(ids.ids[2], 1);
    ids.len = 0;
    tokenizer_encode_mixed(t, "<s>\xFF", 4, NULL, 0, 0, &ids);
    EXPECT_INT_EQ(ids.len, 0); /* not UTF-8: nothing is trusted */
    free(ids.ids);
    tokenizer_free(t);
}

/* "<s>" is markup; with the content "b" it spells another special token, "<s>b", which is longer.
 */
TEST(Tokenizer, ContentCannotTakeASpecialTokenAwayFromTheMarkup) {
    struct tokenizer *t;
    struct error error;
    static const struct text_span plain[] = {{3, 4}};
    struct token_list ids = {0};
    ASSERT_INT_EQ(load_text("{" MODEL "," BYTES ",\"added_tokens\":["
                            "{\"id\":5,\"content\":\"<s>\",\"special\":true},"
                            "{\"id\":6,\"content\":\"<s>b\",\"special\":true}]}",
                            &t, &error),
                  0);
    check_ids(t, "<s>b", TOKENIZER_PARSE_SPECIAL, "6");
    tokenizer_encode_mixed(t, "<s>b", 4, plain, 1, 0, &ids);
    ASSERT_INT_EQ(ids.len, 2);
    EXPECT_INT_EQ(ids.ids[0], 5);
    EXPECT_INT_EQ(ids.ids[1], 1);
    free(ids.ids);
    tokenizer_free(t);
}

TEST(Tokenizer, IgnoreMergesTakesAPieceThatIsATokenButNeverASpecialOne) {
    struct tokenizer *t;
    struct error error;
    static const char json[] =
        "{\"model\":{\"ignore_merges\":true,\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ca\":3,\"<s>\":5},"
        "\"merges\":[]},\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
        "\"use_regex\":false}," SPECIAL "}";
    ASSERT_INT_EQ(load_text(json, &t, &error), 0);
    check_ids(t, "ca", 0, "3"); /* no merge makes it */
    check_ids(t, "cab", 0, "2 0 1");
    check_ids(t, "<s>", 0, "");
    check_ids(t, "<s>", TOKENIZER_PARSE_SPECIAL, "5");
    tokenizer_free(t);
}

TEST(Tokenizer, DecodeRefusesIdsOutOfRangeAndSkipsHoles) {
    struct tokenizer *t;
    struct error error;
    struct buffer out = {0};
    static const int32_t bad[][2] = {{0, -1}, {0, 10}, {INT32_MAX, 0}, {INT32_MIN, 0}};
    static const int32_t hole[] = {0, 7, 9, 4};
    ASSERT_INT_EQ(load_text("{" MODEL "," BYTES ",\"added_tokens\":[{\"id\":9,\"content\":\"x\"}]}",
                            &t, &error),
                  0);
    EXPECT_INT_EQ(tokenizer_vocab_size(t), 10);
    for (int i = 0; i < 4; i++) {
        EXPECT_INT_EQ(tokenizer_decode(t, bad[i], 2, false, &out), ERR_INVALID_REQUEST);
        EXPECT_INT_EQ(out.len, 0);
    }
    EXPECT_INT_EQ(tokenizer_decode(t, hole, 4, false, &out), 0);
    buffer_putc(&out, 0);
    EXPECT_STR_EQ(out.data, "axabc");
    struct detok d;
    detok_init(&d, t);
    detok_push(&d, INT32_MAX, &out);
    detok_push(&d, -5, &out);
    tokenizer_token_bytes(t, 1000, &out);
    EXPECT_INT_EQ(out.len, 6);
    buffer_deinit(&out);
    tokenizer_free(t);
}

TEST(Tokenizer, SpecialTokensAreShownOnlyOnRequest) {
    struct tokenizer *t;
    struct error error;
    struct buffer out = {0};
    static const int32_t ids[] = {5, 0, 5};
    ASSERT_INT_EQ(load_text("{" MODEL "," BYTES "," SPECIAL "}", &t, &error), 0);
    EXPECT_INT_EQ(tokenizer_decode(t, ids, 3, true, &out), 0);
    EXPECT_INT_EQ(tokenizer_decode(t, ids, 3, false, &out), 0);
    tokenizer_token_bytes(t, 5, &out);
    buffer_putc(&out, 0);
    EXPECT_STR_EQ(out.data, "<s>a<s>a<s>");
    buffer_deinit(&out);
    tokenizer_free(t);
}

/* ---- bytes ---- */

static const char *const byte_kinds[] = {"gpt2", "llama3", "o200k", "llama2", "spm_llama"};

static struct tokenizer *load_kind(const char *kind) {
    char dir[512];
    struct error error = {0};
    struct tokenizer *t;
    snprintf(dir, sizeof dir, "%s/tokenizers/%s", shim_data_dir(), kind);
    if (tokenizer_load(dir, &t, &error) != 0)
        FAIL("%s", error.text);
    return t;
}

static void check_round_trip(const struct tokenizer *t, const char *text, size_t len) {
    struct token_list ids = {0};
    struct buffer repaired = {0}, out = {0};
    utf8_append_lossy(&repaired, text, len);
    tokenizer_encode(t, text, len, 0, &ids);
    EXPECT_INT_EQ(tokenizer_decode(t, ids.ids, ids.len, true, &out), 0);
    EXPECT_INT_EQ(out.len, repaired.len);
    if (out.len == repaired.len)
        EXPECT_MEM_EQ(out.data, repaired.data, out.len);
    buffer_deinit(&repaired);
    buffer_deinit(&out);
    free(ids.ids);
}

TEST(Tokenizer, RandomBytesRoundTripThroughByteTokens) {
    uint32_t seed = 12345;
    for (size_t k = 0; k < sizeof byte_kinds / sizeof *byte_kinds; k++) {
        struct tokenizer *t = load_kind(byte_kinds[k]);
        ASSERT_TRUE(t != NULL);
        for (int i = 0; i < 400 && !shim_failed(); i++) {
            char text[64];
            size_t len = 0;
            text[len++] = 'a'; /* a leading space is SentencePiece's own */
            for (size_t n = (seed = seed * 1664525 + 1013904223) >> 26; len <= n && len < 64;)
                text[len++] = (char)((seed = seed * 1664525 + 1013904223) >> 24);
            check_round_trip(t, text, len);
        }
        tokenizer_free(t);
    }
}

/* Pushes the bytes of `text` as one-byte tokens and checks each piece that comes out. */
static void check_byte_tokens(const struct tokenizer *t, const int32_t *byte_ids, const char *text,
                              size_t len) {
    struct buffer out = {0}, expected = {0};
    struct detok d;
    detok_init(&d, t);
    buffer_reserve(&out, 64);
    utf8_append_lossy(&expected, text, len);
    for (size_t i = 0; i < len; i++) {
        size_t before = out.len;
        detok_push(&d, byte_ids[(unsigned char)text[i]], &out);
        if (utf8_valid_prefix(out.data + before, out.len - before) != out.len - before)
            FAIL("a piece ends within a character");
    }
    detok_flush(&d, &out);
    if (out.len != expected.len || memcmp(out.data, expected.data, out.len) != 0)
        FAIL("bytes %02x %02x.. decode to %zu bytes, expected %zu", (unsigned char)text[0],
             (unsigned char)text[1], out.len, expected.len);
    buffer_deinit(&out);
    buffer_deinit(&expected);
}

TEST(Detok, CharactersSplitAtEveryByteComeOutWhole) {
    static const uint32_t interesting[] = {
        0,      0x7F,   0x80,    0x7FF,   0x800,   0xFFF,   0x1000,  0xD7FF,   0xE000,  0xFEFF,
        0xFFFD, 0xFFFF, 0x10000, 0x1F600, 0x3FFFF, 0x40000, 0xFFFFF, 0x100000, 0x10FFFF};
    size_t n = sizeof interesting / sizeof *interesting;
    for (size_t k = 0; k < 2; k++) {
        struct tokenizer *t = load_kind(k ? "llama2" : "gpt2");
        ASSERT_TRUE(t != NULL);
        for (size_t a = 0; a < n; a++)
            for (size_t b = 0; b < n && !shim_failed(); b++) {
                char text[16] = "x"; /* llama2 would drop a leading space */
                size_t len = 1 + utf8_put(text + 1, interesting[a]);
                size_t first = len;
                len += utf8_put(text + len, interesting[b]);
                for (size_t cut = 1; cut < first; cut++) { /* drops the end of the first */
                    char part[16];
                    memcpy(part, text, cut);
                    memcpy(part + cut, text + first, len - first);
                    check_byte_tokens(t, t->bpe.byte_ids, part, cut + len - first);
                }
                check_byte_tokens(t, t->bpe.byte_ids, text, len);
                check_byte_tokens(t, t->bpe.byte_ids, text, len - 1);
            }
        tokenizer_free(t);
    }
}

TEST(Detok, EverySequenceOfThreeLeadAndTailBytesIsRepairedLikeTheWhole) {
    static const unsigned char bytes[] = {0x41, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF,
                                          0xC0, 0xC2, 0xDF, 0xE0, 0xE1, 0xED, 0xEF,
                                          0xF0, 0xF1, 0xF4, 0xF5, 0xFF};
    size_t n = sizeof bytes;
    struct tokenizer *t = load_kind("gpt2");
    ASSERT_TRUE(t != NULL);
    for (size_t i = 0; i < n * n * n * n && !shim_failed(); i++) {
        char text[5] = {(char)bytes[i % n], (char)bytes[i / n % n], (char)bytes[i / n / n % n],
                        (char)bytes[i / n / n / n], 'z'};
        check_byte_tokens(t, t->bpe.byte_ids, text, 4);
        check_byte_tokens(t, t->bpe.byte_ids, text, 5);
    }
    tokenizer_free(t);
}

TEST(ByteLevel, TheAlphabetIsABijection) {
    bool seen[256] = {false};
    int count = 0;
    for (uint32_t cp = 0; cp < 0x400; cp++) {
        int b = byte_of_char(cp);
        if (b >= 0) {
            EXPECT_FALSE(seen[b]);
            seen[b] = true;
            count++;
        }
    }
    EXPECT_INT_EQ(count, 256);
    EXPECT_INT_EQ(byte_of_char(0x120), ' ');
    EXPECT_INT_EQ(byte_of_char(0x10A), '\n');
    EXPECT_INT_EQ(byte_of_char(0x143), 0xAD);
}

/* ---- time ---- */

static double seconds(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static double time_encode(const struct tokenizer *t, const char *unit, const char *last,
                          size_t bytes) {
    struct buffer text = {0};
    struct token_list ids = {0};
    while (text.len < bytes)
        buffer_puts(&text, unit);
    buffer_puts(&text, last);
    double start = seconds();
    tokenizer_encode(t, text.data, text.len, TOKENIZER_PARSE_SPECIAL, &ids);
    double took = seconds() - start;
    EXPECT_INT_GE(ids.len, bytes / 64);
    buffer_deinit(&text);
    free(ids.ids);
    return took;
}

TEST(Tokenizer, OneWordOfAMillionBytesTakesLittleTime) {
#if defined(__SANITIZE_THREAD__)
    SKIP("a sanitizer's times mean nothing");
#endif
    static const char *const kinds[] = {"gpt2", "llama2", "spm_llama"};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        struct tokenizer *t = load_kind(kinds[k]);
        ASSERT_TRUE(t != NULL);
        double took = time_encode(t, "a", "", 1000000);
        if (took > 10) /* about 0.1 s, 1 s for libsentencepiece; checked builds are slower */
            FAIL("%s: %.1f s", kinds[k], took);
        tokenizer_free(t);
    }
}

/* Texts that are quadratic for a careless implementation: 0.03 s here, minutes there. */
TEST(Tokenizer, RepetitiveTextsTakeLittleTime) {
#if defined(__SANITIZE_THREAD__)
    SKIP("ThreadSanitizer checks whole ranges where memcmp looks at a byte");
#endif
    static const struct {
        const char *unit, *last;
    } texts[] = {
        {"a", ""},
        {" ", ""},
        {" ", "x"},
        {" ", "1"},
        {"\n", "x"},
        {" \n", "x"},
        {"\t ", "x"},
        {"1", ""},
        {"!", ""},
        {"'", ""},
        {"<", ""},
        {"<|im_", ""},
        {"\xE4\xB8\xAD", ""},
        {"\xCC\x81\xCC\xA3", ""},
        {"\xFF", ""},
        {"\xF0\x9F\x98\x80", "x"},
        {"ab ", ""},
        {"\xE2\x96\x81", ""},
        {"\xC2\xA0", "x"},
        {"x\xCC\x81", ""},
    };
    static const char *const kinds[] = {"gpt2",     "llama3", "qwen2",  "deepseek",
                                        "neox",     "o200k",  "llama2", "metaspace_always",
                                        "spm_llama"};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        struct tokenizer *t = load_kind(kinds[k]);
        ASSERT_TRUE(t != NULL);
        for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
            double took = time_encode(t, texts[i].unit, texts[i].last, 200000);
            if (took > 10)
                FAIL("%s: 200 kB of '%s' took %.1f s", kinds[k], texts[i].unit, took);
        }
        tokenizer_free(t);
    }
}
