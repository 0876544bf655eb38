/* Tokenizers against references: for each folder of tests/data/tokenizers (scripts/
 * make_tokenizer_cases.py says what is in them) every text of texts.json is encoded and decoded,
 * and compared with what the reference packages gave.
 */
#include "host/tokenizer_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/file.h"
#include "host/json.h"
#include "host/mem.h"
#include "host/utf8.h"
#include "tests/shim.h"

struct fixture {
    struct tokenizer *t;
    json_t *texts, *expected; /* owned: texts.json, expected.json */
    const char *kind;
};

static json_t *load_data(const char *kind, const char *name) {
    char path[512];
    struct error error = {0};
    if (kind)
        snprintf(path, sizeof path, "%s/tokenizers/%s/%s", shim_data_dir(), kind, name);
    else
        snprintf(path, sizeof path, "%s/tokenizers/%s", shim_data_dir(), name);
    json_t *doc = json_parse_file(path, 64 << 20, &error);
    if (!doc)
        FAIL("%s", error.text);
    return doc;
}

static bool fixture_open(struct fixture *f, const char *kind) {
    char dir[512];
    struct error error = {0};
    memset(f, 0, sizeof *f);
    f->kind = kind;
    snprintf(dir, sizeof dir, "%s/tokenizers/%s", shim_data_dir(), kind);
    if (tokenizer_load(dir, &f->t, &error) != 0)
        FAIL("%s", error.text);
    f->texts = load_data(NULL, "texts.json");
    f->expected = load_data(kind, "expected.json");
    return f->t && f->texts && f->expected;
}

static void fixture_close(struct fixture *f) {
    tokenizer_free(f->t);
    json_decref(f->texts);
    json_decref(f->expected);
}

/* ---- comparing ---- */

static void put_hex(struct buffer *out, const char *hex) {
    for (; hex[0] && hex[1]; hex += 2) {
        unsigned byte;
        sscanf(hex, "%2x", &byte);
        buffer_putc(out, (char)byte);
    }
}

static bool same_ids(const struct token_list *got, json_t *expected) {
    bool same = got->len == json_array_size(expected);
    for (size_t i = 0; same && i < got->len; i++)
        same = got->ids[i] == json_integer_value(json_array_get(expected, i));
    return same;
}

static void put_ids(struct buffer *out, const struct token_list *ids) {
    for (size_t i = 0; i < ids->len && i < 40; i++)
        buffer_printf(out, " %d", (int)ids->ids[i]);
}

static void check_ids(const struct fixture *f, const char *mode, size_t index, const char *hex,
                      const struct token_list *got, json_t *expected) {
    if (json_is_null(expected) || same_ids(got, expected)) {
        EXPECT_TRUE(true);
        return;
    }
    struct buffer b = {0};
    struct token_list want = {0};
    for (size_t i = 0; i < json_array_size(expected); i++)
        token_list_push(&want, (int32_t)json_integer_value(json_array_get(expected, i)));
    put_ids(&b, got);
    buffer_puts(&b, "\n  expected:");
    put_ids(&b, &want);
    buffer_putc(&b, 0);
    FAIL("%s: %s ids of text %zu (%.80s)\n  got:     %s", f->kind, mode, index, hex, b.data);
    buffer_deinit(&b);
    free(want.ids);
}

static bool same_text(const struct buffer *a, const struct buffer *b) {
    return a->len == b->len && (a->len == 0 || memcmp(a->data, b->data, a->len) == 0);
}

/* Pushes ids one by one, with the state copied before token `split`; every piece must be valid. */
static bool decode_in_pieces(const struct tokenizer *t, const struct token_list *ids, size_t split,
                             struct buffer *out) {
    struct detok d, copy;
    bool valid = true;
    detok_init(&d, t);
    for (size_t i = 0; i < ids->len; i++) {
        size_t before = out->len;
        if (i == split) {
            copy = d;
            memset(&d, 0xA5, sizeof d);
            d = copy;
        }
        detok_push(&d, ids->ids[i], out);
        valid =
            valid && utf8_valid_prefix(out->data + before, out->len - before) == out->len - before;
    }
    detok_flush(&d, out);
    return valid;
}

static void check_decode(const struct fixture *f, const struct token_list *ids,
                         const struct buffer *expected, const char *what, size_t index) {
    struct buffer whole = {0}, pieces = {0};
    EXPECT_INT_EQ(tokenizer_decode(f->t, ids->ids, ids->len, false, &whole), 0);
    if (!same_text(&whole, expected))
        FAIL("%s: decoding %s %zu:\n  got      \"%.*s\"\n  expected \"%.*s\"", f->kind, what, index,
             (int)whole.len, whole.data ? whole.data : "", (int)expected->len,
             expected->data ? expected->data : "");
    for (size_t split = 0; split<ids->len; split += ids->len> 64 ? 17 : 1) {
        buffer_clear(&pieces);
        buffer_reserve(&pieces, 1);
        if (!decode_in_pieces(f->t, ids, split, &pieces) || !same_text(&pieces, expected))
            FAIL("%s: decoding %s %zu in pieces gives \"%.*s\"", f->kind, what, index,
                 (int)pieces.len, pieces.data ? pieces.data : "");
    }
    buffer_deinit(&whole);
    buffer_deinit(&pieces);
}

/* ---- pieces ---- */

static void push_length(void *user, const char *piece, size_t len) {
    (void)piece;
    token_list_push(user, (int32_t)len);
}

/* Appends the lengths of the pieces of text, as the pre-tokenizer alone cuts it. */
static void piece_lengths(const struct tokenizer *t, const char *text, size_t len,
                          struct token_list *out) {
    struct pre_scratch scratch = {.data = pcre2_match_data_create(1, NULL)};
    pre_tokenizer_run(&t->pre, &scratch, text, len, true, push_length, out);
    pcre2_match_data_free(scratch.data);
    for (int i = 0; i < TOKENIZER_MAX_STEPS; i++)
        buffer_deinit(&scratch.text[i]);
}

static void check_pieces(const struct fixture *f, size_t i, const char *hex,
                         const struct buffer *text) {
    json_t *expected = json_array_get(json_object_get(f->expected, "pieces"), i);
    struct buffer repaired = {0};
    struct token_list lengths = {0};
    if (!expected)
        return; /* a tokenizer.model has no pre-tokenizer */
    utf8_append_lossy(&repaired, text->data, text->len);
    piece_lengths(f->t, repaired.data, repaired.len, &lengths);
    check_ids(f, "piece", i, hex, &lengths, expected);
    buffer_deinit(&repaired);
    free(lengths.ids);
}

/* ---- all texts of one kind ---- */

static void check_text(const struct fixture *f, size_t i) {
    const char *hex = json_string_value(json_array_get(json_object_get(f->texts, "texts"), i));
    json_t *decoded = json_array_get(json_object_get(f->expected, "decoded"), i);
    json_t *full = json_array_get(json_object_get(f->expected, "full"), i);
    struct buffer text = {0}, expected = {0};
    struct token_list ids = {0};
    put_hex(&text, hex);
    buffer_reserve(&text, 1);
    check_pieces(f, i, hex, &text);

    tokenizer_encode(f->t, text.data, text.len, 0, &ids);
    check_ids(f, "plain", i, hex, &ids, json_array_get(json_object_get(f->expected, "plain"), i));
    ids.len = 0;
    tokenizer_encode(f->t, text.data, text.len, TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL,
                     &ids);
    check_ids(f, "full", i, hex, &ids, full);
    if (!json_is_null(full)) {
        if (json_is_null(decoded))
            buffer_append(&expected, text.data, text.len);
        else
            put_hex(&expected, json_string_value(decoded));
        check_decode(f, &ids, &expected, "text", i);
    }
    buffer_deinit(&text);
    buffer_deinit(&expected);
    free(ids.ids);
}

static void check_random(const struct fixture *f) {
    json_t *list = json_object_get(f->expected, "random"), *pair;
    size_t i;
    EXPECT_INT_GE(json_array_size(list), 60);
    json_array_foreach(list, i, pair) {
        struct token_list ids = {0};
        struct buffer expected = {0};
        json_t *v;
        size_t k;
        json_array_foreach(json_array_get(pair, 0), k, v)
            token_list_push(&ids, (int32_t)json_integer_value(v));
        put_hex(&expected, json_string_value(json_array_get(pair, 1)));
        check_decode(f, &ids, &expected, "random ids", i);
        buffer_deinit(&expected);
        free(ids.ids);
    }
}

static uint64_t fnv(uint64_t h, int32_t v) {
    return (h ^ (uint32_t)v) * 0x100000001B3u;
}

/* Encodes "a{c}1 {c}b {c}". */
static uint64_t hash_scalar(const struct fixture *f, uint32_t cp, uint64_t h,
                            struct token_list *ids) {
    char c[5] = {0}, text[32];
    size_t n = utf8_put(c, cp);
    int len = snprintf(text, sizeof text, "a%.*s1 %.*sb %.*s", (int)n, c, (int)n, c, (int)n, c);
    if (cp == 0) { /* printf stops there */
        memcpy(text, "a\0001 \0b \0", 8);
        len = 8;
    }
    ids->len = 0;
    tokenizer_encode(f->t, text, (size_t)len, 0, ids);
    if (json_object_get(f->expected, "pieces"))
        piece_lengths(f->t, text, (size_t)len, ids);
    for (size_t i = 0; i < ids->len; i++)
        h = fnv(h, ids->ids[i]);
    return fnv(h, -1);
}

static void check_scalars(const struct fixture *f) {
    if (json_array_size(json_object_get(f->expected, "scalars")) == 0)
        return; /* spm_llama_new differs from spm_llama in special tokens only */
    uint64_t *hashes = xcalloc(0x110, sizeof *hashes);
    json_t *ranges = json_object_get(f->texts, "scalars"), *range, *block;
    struct token_list ids = {0};
    size_t i;
    json_array_foreach(ranges, i, range) {
        uint32_t start = (uint32_t)json_integer_value(json_array_get(range, 0));
        uint32_t end = (uint32_t)json_integer_value(json_array_get(range, 1));
        for (uint32_t cp = start; cp <= end; cp++) {
            uint64_t *h = &hashes[cp >> 12];
            *h = hash_scalar(f, cp, *h ? *h : 0xCBF29CE484222325u, &ids);
        }
    }
    json_array_foreach(json_object_get(f->expected, "scalars"), i, block) {
        char hex[20];
        int64_t b = json_integer_value(json_array_get(block, 0));
        snprintf(hex, sizeof hex, "%016llx", (unsigned long long)hashes[b]);
        if (strcmp(hex, json_string_value(json_array_get(block, 1))) != 0)
            FAIL("%s: some character from U+%04llX to U+%04llX is encoded differently", f->kind,
                 (unsigned long long)b << 12, ((unsigned long long)b << 12) + 0xFFF);
    }
    free(hashes);
    free(ids.ids);
}

static void check_kind(const char *kind) {
    struct fixture f;
    if (fixture_open(&f, kind)) {
        size_t n = json_array_size(json_object_get(f.texts, "texts"));
        EXPECT_INT_GE(n, 100);
        EXPECT_INT_EQ(json_array_size(json_object_get(f.expected, "plain")), n);
        for (size_t i = 0; i < n && !shim_failed(); i++)
            check_text(&f, i);
        check_random(&f);
        check_scalars(&f);
    }
    fixture_close(&f);
}

#define KIND_TEST(name, folder)                                                                    \
    TEST(TokenizerReference, name) {                                                               \
        check_kind(folder);                                                                        \
    }

KIND_TEST(Gpt2, "gpt2")
KIND_TEST(Llama3, "llama3")
KIND_TEST(Qwen2, "qwen2")
KIND_TEST(DeepSeek, "deepseek")
KIND_TEST(NeoX, "neox")
KIND_TEST(PrefixSpace, "prefix_space")
KIND_TEST(O200k, "o200k")
KIND_TEST(SplitRemoved, "split_removed")
KIND_TEST(SplitMergedWithPrevious, "split_previous")
KIND_TEST(SplitMergedWithNext, "split_next")
KIND_TEST(SplitContiguous, "split_contiguous")
KIND_TEST(SplitString, "split_string")
KIND_TEST(Llama2Json, "llama2")
KIND_TEST(MetaspaceFirst, "metaspace_first")
KIND_TEST(MetaspaceAlways, "metaspace_always")
KIND_TEST(MetaspaceNever, "metaspace_never")
KIND_TEST(SentencePieceBpe, "spm_llama")
KIND_TEST(SentencePieceBpeNotLegacy, "spm_llama_new")
KIND_TEST(SentencePieceUnigram, "spm_unigram")
