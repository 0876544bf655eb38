/* Masks of whole vocabularies against trying every token by itself, and what is kept and forgotten
 * between them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/clock.h"
#include "host/mem.h"
#include "host/tokenizer_internal.h"
#include "tests/fake_model.h"
#include "tests/grammar_fixture.h"
#include "tests/shim.h"

enum { MAX_DOCUMENT = 4096 };

static const char *const schemas[] = {
    "{'type':'object'}",
    "{'type':'object','properties':{'name':{'type':'string','maxLength':12},'age':{'type':"
    "'integer','minimum':0,'maximum':150},'tags':{'type':'array','items':{'enum':['red','green',"
    "'blue']},'maxItems':3}},'required':['name','age'],'additionalProperties':false}",
    "{'type':'string','pattern':'^(\xc3\xa9|[a-z]{1,8}) [0-9]+$'}",
    "{'type':'string'}",
    "{'$defs':{'t':{'type':'object','properties':{'kids':{'type':'array','items':{'$ref':"
    "'#/$defs/t'}},'v':{'type':'number','minimum':0,'maximum':1}}}},'$ref':'#/$defs/t'}",
    "{'type':'array','items':{'type':'string','minLength':30,'maxLength':90}}",
    "{'type':'string','pattern':'^(([a-z]{2}|Ã©) ?){1,60}$'}",
};
enum { NUM_SCHEMAS = sizeof schemas / sizeof *schemas };

static bool has(const uint32_t *mask, int32_t token) {
    return mask[token / 32] >> (token % 32) & 1;
}

/* Is a text allowed behind a document? By a pool of its own that knows bytes only. */
static bool allowed_alone(struct grammar_pool *bytes, struct grammar *g, const char *document,
                          size_t len, const char *text, size_t text_len) {
    struct grammar_matcher *m = grammar_matcher_create(bytes, g);
    bool ok = text_len > 0 && grammar_matcher_advance(m, document, len) &&
              grammar_matcher_advance(m, text, text_len);
    grammar_matcher_destroy(m);
    return ok;
}

static int32_t nth_allowed(const uint32_t *mask, int32_t n) {
    int32_t token = 0;
    while (!has(mask, token) || n-- > 0)
        token++;
    return token;
}

/* A document drawn at random from the masks, each of which is checked for every token. */
static void check_walk(const struct tokenizer *t, struct grammar_pool *pool,
                       struct grammar_pool *bytes, const char *schema, uint64_t seed) {
    const struct decoder *d = &t->decoder;
    int32_t V = d->vocab_size + 40; /* ids without a token, as models have them */
    struct grammar *g = grammar_from(schema);
    struct grammar_matcher *m = grammar_matcher_create(pool, g);
    uint32_t *mask = xmalloc(grammar_mask_words(V) * sizeof *mask);
    struct buffer document = {0};
    int32_t count;
    for (int step = 0; step < 25 && (count = grammar_matcher_mask(m, mask)) > 0; step++) {
        int32_t sum = 0;
        for (int32_t id = 0; id < V; id++) {
            const struct token_text *token = id < d->vocab_size ? &d->tokens[id] : NULL;
            bool want = token && token->exists && !token->special &&
                        allowed_alone(bytes, g, document.data, document.len,
                                      d->pool.data + token->offset, token->len);
            sum += want;
            if (want != has(mask, id))
                FAIL("%s: token %d is %s behind %.*s", schema, id, want ? "forbidden" : "allowed",
                     (int)document.len, document.data);
        }
        EXPECT_INT_EQ(count, sum);
        int32_t pick = nth_allowed(mask, fake_below(&seed, count));
        EXPECT_TRUE(grammar_matcher_advance_token(m, pick));
        tokenizer_token_bytes(t, pick, &document);
    }
    buffer_deinit(&document);
    free(mask);
    grammar_matcher_destroy(m);
    grammar_release(g);
}

TEST(GrammarMask, IsWhatEveryTokenByItselfSays) {
    struct tokenizer *t;
    struct error e = {0};
    ASSERT_INT_EQ(tokenizer_load("configs/demo-moe", &t, &e), 0);
    struct grammar_pool *pool = grammar_pool_create(t, t->decoder.vocab_size + 40, NULL, 0);
    struct grammar_pool *bytes = byte_pool();
    for (int i = 0; i < NUM_SCHEMAS; i++)
        for (uint64_t seed = 1; seed <= 3; seed++)
            check_walk(t, pool, bytes, schemas[i], seed);
    grammar_pool_destroy(pool);
    grammar_pool_destroy(bytes);
    tokenizer_free(t);
}

/* Tokens that begin and end anywhere: pieces of a document, within characters too. */
TEST(GrammarMask, TokensMaySplitADocumentAnywhere) {
    static const char document[] =
        "{\"name\":\"\xc3\xa9\xf0\x9f\x98\x80 \\u00e9\",\"age\": 7,\"tags\":[\"red\", \"blue\"]}";
    enum { LEN = sizeof document - 1 };
    struct trie_text texts[LEN * 6];
    for (int i = 0; i < LEN * 6; i++) {
        uint32_t len = (uint32_t)(i % 6) + 1, left = (uint32_t)(LEN - i / 6);
        texts[i] = (struct trie_text){document + i / 6, len < left ? len : left};
    }
    struct grammar_pool *pool = grammar_pool_create_with_texts(texts, LEN * 6);
    struct grammar *g = grammar_from(schemas[1]);
    uint32_t mask[LEN * 6 / 32 + 1];
    for (uint64_t seed = 1; seed < 200; seed++) {
        struct grammar_matcher *m = grammar_matcher_create(pool, g);
        uint64_t state = seed;
        for (size_t at = 0; at < LEN && !shim_failed();) {
            int32_t token = (int32_t)at * 6 + fake_below(&state, 6);
            grammar_matcher_mask(m, mask);
            EXPECT_TRUE(has(mask, token));
            EXPECT_TRUE(grammar_matcher_advance_token(m, token));
            at += texts[token].len;
        }
        EXPECT_TRUE(grammar_matcher_can_end(m));
        EXPECT_INT_EQ(grammar_matcher_mask(m, mask), 0);
        EXPECT_FALSE(grammar_matcher_advance_token(m, 0));
        EXPECT_FALSE(grammar_matcher_advance_token(m, -1));
        EXPECT_FALSE(grammar_matcher_advance_token(m, LEN * 6));
        EXPECT_TRUE(grammar_matcher_can_end(m));
        grammar_matcher_destroy(m);
    }
    grammar_release(g);
    grammar_pool_destroy(pool);
}

/* Tokens longer than what is left of a counted string, from all places within it: those far from
 * its bounds share what is known of short tokens. */
TEST(GrammarMask, CountedStringsEndWhereTheyMust) {
    enum { V = 256 + 4 * 60, LENGTH = 70, MINIMUM = 40 };
    static char bytes[256], run[64];
    static const char *const kinds[] = {"", "\"", "\",", "\\n"};
    struct trie_text texts[V];
    struct buffer text = {0};
    uint32_t mask[V / 32 + 1];
    memset(run, 'a', sizeof run);
    for (int i = 0; i < 256; i++) {
        bytes[i] = (char)i;
        texts[i] = (struct trie_text){&bytes[i], 1};
    }
    for (int i = 0; i < 4 * 60; i++) { /* 0 to 59 letters, then the end of the string or not */
        buffer_append(&text, run, (size_t)(i / 4));
        buffer_puts(&text, kinds[i % 4]);
        texts[256 + i].len = (uint32_t)((size_t)(i / 4) + strlen(kinds[i % 4]));
    }
    const char *at = text.data;
    for (int i = 256; i < V; at += texts[i++].len)
        texts[i].data = at;
    struct grammar_pool *pool = grammar_pool_create_with_texts(texts, V), *alone = byte_pool();
    struct grammar *g = grammar_from(
        "{'type':'array','minItems':2,'items':{'type':'string','minLength':40,'maxLength':70}}");
    struct grammar_matcher *m = grammar_matcher_create(pool, g);
    char document[2 + LENGTH] = "[\"";
    EXPECT_TRUE(grammar_matcher_advance(m, document, 2));
    for (size_t len = 0; len <= LENGTH && !shim_failed(); len++) {
        EXPECT_INT_GT(grammar_matcher_mask(m, mask), 0);
        for (int32_t id = 0; id < V; id++)
            if (has(mask, id) !=
                allowed_alone(alone, g, document, 2 + len, texts[id].data, texts[id].len))
                FAIL("token %d is %s behind %zu letters", id, has(mask, id) ? "allowed" : "missing",
                     len);
        EXPECT_INT_EQ(has(mask, '"'), len >= MINIMUM);
        EXPECT_INT_EQ(grammar_matcher_advance(m, "a", 1), len < LENGTH);
        if (len < LENGTH)
            document[2 + len] = 'a';
    }
    grammar_matcher_destroy(m);
    grammar_release(g);
    grammar_pool_destroy(pool);
    grammar_pool_destroy(alone);
    buffer_deinit(&text);
}

/* Patterns side by side that each remember where a letter stood: every token leads somewhere else.
 */
TEST(GrammarMask, TooMuchWorkIsGivenUp) {
    enum { V = 40000, LEN = 10 };
    static char text[V * LEN];
    static struct trie_text texts[V];
    uint32_t mask[V / 32];
    uint64_t seed = 5;
    struct buffer schema = {0};
    for (int i = 0; i < V; i++) {
        for (int k = 0; k < LEN; k++)
            text[i * LEN + k] = (char)('a' + fake_below(&seed, 26));
        texts[i] = (struct trie_text){text + (size_t)i * LEN, LEN};
    }
    buffer_puts(&schema, "{'anyOf':[{'pattern':'^[a-z]*a[a-z]{8}$'}");
    for (char c = 'b'; c <= 'z'; c++)
        buffer_printf(&schema, ",{'pattern':'^[a-z]*%c[a-z]{8}$'}", c);
    buffer_puts(&schema, "]}");
    buffer_putc(&schema, 0);
    struct grammar_pool *pool = grammar_pool_create_with_texts(texts, V);
    struct grammar *costly = grammar_from(schema.data);
    struct grammar *plain = grammar_from("{'type':'string','pattern':'^[a-z]*a[a-z]{8}$'}");
    struct grammar_matcher *m = grammar_matcher_create(pool, costly);
    EXPECT_TRUE(grammar_matcher_advance(m, "\"", 1));
    EXPECT_INT_LT(grammar_matcher_mask(m, mask), 0);
    grammar_matcher_destroy(m);
    m = grammar_matcher_create(pool, plain);
    EXPECT_TRUE(grammar_matcher_advance(m, "\"", 1));
    EXPECT_INT_EQ(grammar_matcher_mask(m, mask), V);
    grammar_matcher_destroy(m);
    grammar_release(costly);
    grammar_release(plain);
    grammar_pool_destroy(pool);
    buffer_deinit(&schema);
}

/* A list of one of ten kinds of objects that all begin with the same field, as Pydantic writes it:
 * each kind counts the characters of its own title. */
TEST(GrammarMask, ManyCountedStringsAtOnceAreNotTooMuch) {
    enum { V = 60000, LEN = 100, TITLE = 300 };
    static char text[V * LEN];
    static struct trie_text texts[V];
    static uint32_t mask[(V + 31) / 32];
    uint64_t seed = 6;
    struct buffer schema = {0};
    for (int i = 0; i < V; i++) {
        size_t len = 1 + fake_below(&seed, i % 100 ? 8 : LEN); /* a few are long, as in real ones */
        for (size_t k = 0; k < len; k++)
            text[i * LEN + (int)k] = (char)(' ' + fake_below(&seed, 95));
        texts[i] = (struct trie_text){text + (size_t)i * LEN, len};
    }
    buffer_puts(&schema, "{'type':'array','items':{'anyOf':[");
    for (int i = 0; i < 10; i++)
        buffer_printf(&schema,
                      "%s{'type':'object','properties':{'title':{'type':'string','maxLength':500},"
                      "'of_%d':{'type':'integer'}},'required':['title','of_%d']}",
                      i ? "," : "", i, i);
    buffer_puts(&schema, "]}}");
    buffer_putc(&schema, 0);
    struct grammar_pool *pool = grammar_pool_create_with_texts(texts, V);
    struct grammar *g = grammar_from(schema.data);
    struct grammar_matcher *m = grammar_matcher_create(pool, g);
    EXPECT_TRUE(grammar_matcher_advance(m, "[{\"title\":\"", 11));
    for (int i = 0; i < TITLE; i++) {
        ASSERT_INT_GT(grammar_matcher_mask(m, mask), V / 2);
        EXPECT_TRUE(grammar_matcher_advance(m, "a", 1));
    }
    EXPECT_TRUE(grammar_matcher_advance(m, "\",\"of_7\":1}]", 12));
    grammar_matcher_destroy(m);
    grammar_release(g);
    grammar_pool_destroy(pool);
    buffer_deinit(&schema);
}

/* Long walks through ever new stacks, beyond what is kept, while another matcher stands still. */
TEST(GrammarMask, ForgettingChangesNothing) {
    struct grammar_pool *pool = byte_pool();
    struct grammar *g = grammar_from("{}"), *same = grammar_from("true");
    struct grammar_matcher *still = grammar_matcher_create(pool, g);
    uint32_t before[8], mask[8], fresh[8];
    uint64_t seed = 9;
    ASSERT_TRUE(grammar_matcher_advance(still, "[[{\"a\":[\"x", 10));
    grammar_matcher_mask(still, before);
    for (int walk = 0; walk < 600; walk++) {
        struct grammar_matcher *m = grammar_matcher_create(pool, same);
        char document[2 * 512];
        size_t len = 0;
        for (int depth = 0; depth < 100; depth++) {
            const char *open = fake_below(&seed, 2) ? "[" : "{\"a\":";
            memcpy(document + len, open, strlen(open));
            len += strlen(open);
        }
        EXPECT_TRUE(grammar_matcher_advance(m, document, len));
        grammar_matcher_mask(m, mask);
        struct grammar_pool *other = walk % 100 ? NULL : byte_pool();
        if (other) {
            struct grammar_matcher *again = grammar_matcher_create(other, g);
            EXPECT_TRUE(grammar_matcher_advance(again, document, len));
            grammar_matcher_mask(again, fresh);
            EXPECT_MEM_EQ(mask, fresh, sizeof mask);
            grammar_matcher_destroy(again);
            grammar_pool_destroy(other);
        }
        grammar_matcher_destroy(m);
        grammar_matcher_mask(still, mask);
        EXPECT_MEM_EQ(mask, before, sizeof mask);
    }
    EXPECT_TRUE(grammar_matcher_advance(still, "\"]}]]", 5));
    EXPECT_TRUE(grammar_matcher_can_end(still));
    grammar_matcher_destroy(still);
    grammar_release(g);
    grammar_release(same);
    grammar_pool_destroy(pool);
}

/* More grammars than are remembered, some of them in use. */
TEST(GrammarMask, ManyGrammarsAtOnce) {
    enum { NUM = 40 };
    struct grammar_pool *pool = byte_pool();
    struct grammar_matcher *m[NUM];
    for (int i = 0; i < NUM; i++) {
        char schema[64];
        snprintf(schema, sizeof schema, "{'const':'%d'}", 1000 + i / 2);
        struct grammar *g = grammar_from(schema);
        m[i] = grammar_matcher_create(pool, g);
        grammar_release(g); /* the pool holds on to it */
        if (i % 3 == 0) {
            grammar_matcher_destroy(m[i]);
            m[i] = NULL;
        }
    }
    for (int i = 0; i < NUM; i++) {
        char text[16];
        snprintf(text, sizeof text, "\"%d\"", 1000 + i / 2);
        EXPECT_TRUE(!m[i] ||
                    (grammar_matcher_advance(m[i], text, 6) && grammar_matcher_can_end(m[i])));
        grammar_matcher_destroy(m[i]);
    }
    grammar_pool_destroy(pool);
}

/* Figures, not limits: compiling, and masks of a vocabulary of 150,000 tokens. */
TEST(GrammarMask, TakesLittleTime) {
    enum { V = 150000 };
    struct buffer text = {0};
    struct trie_text *texts = xcalloc(V, sizeof *texts);
    uint64_t seed = 3;
    for (int i = 0; i < V; i++) {
        char word[16];
        uint32_t len = i < 256 ? 1 : 2 + (uint32_t)fake_below(&seed, 10);
        word[0] = i < 256 ? (char)i : " _\"{:,[0"[fake_below(&seed, 8)];
        for (uint32_t k = 1; k < len; k++)
            word[k] = (char)('a' + fake_below(&seed, 3) * fake_below(&seed, 9));
        buffer_append(&text, word, len);
        texts[i].len = len;
    }
    const char *at = text.data;
    for (int i = 0; i < V; at += texts[i++].len)
        texts[i].data = at;
    int64_t t0 = clock_us();
    struct grammar_pool *pool = grammar_pool_create_with_texts(texts, V);
    int64_t t1 = clock_us();
    struct grammar *g = grammar_from(schemas[1]);
    int64_t t2 = clock_us();
    struct grammar_matcher *m = grammar_matcher_create(pool, g);
    uint32_t *mask = xmalloc(grammar_mask_words(V) * sizeof *mask);
    grammar_matcher_advance(m, "{\"name\":\"", 9);
    int64_t t3 = clock_us();
    int32_t first = grammar_matcher_mask(m, mask);
    int64_t t4 = clock_us();
    int32_t second = grammar_matcher_mask(m, mask);
    int64_t t5 = clock_us();
    EXPECT_INT_EQ(first, second);
    EXPECT_INT_GT(first, V / 4);
    struct grammar *counted = grammar_from("{'type':'string','maxLength':2000}");
    struct grammar_matcher *in = grammar_matcher_create(pool, counted);
    grammar_matcher_advance(in, "\"", 1);
    int64_t t6 = clock_us();
    for (int i = 0; i < 300; i++) {
        EXPECT_INT_GT(grammar_matcher_mask(in, mask), V / 4);
        EXPECT_TRUE(grammar_matcher_advance(in, "aaaaa", 5));
    }
    int64_t t7 = clock_us();
    grammar_matcher_destroy(in);
    grammar_release(counted);
    printf("    300 masks of a string of at most 2,000 characters %lld us\n", (long long)(t7 - t6));
    printf("    tree of %d tokens %lld us, schema %lld us, mask %lld us, again %lld us\n", V,
           (long long)(t1 - t0), (long long)(t2 - t1), (long long)(t4 - t3), (long long)(t5 - t4));
    grammar_matcher_destroy(m);
    grammar_release(g);
    grammar_pool_destroy(pool);
    buffer_deinit(&text);
    free(texts);
    free(mask);
}
