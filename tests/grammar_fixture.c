#include "tests/grammar_fixture.h"

#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "tests/shim.h"

static json_t *parse(const char *schema) {
    char *text = xstrdup(schema);
    struct error e = {0};
    for (char *p = text; *p; p++)
        if (*p == '\'')
            *p = '"';
    json_t *json = json_parse(text, strlen(text), "schema", ERR_INVALID_JSON, &e);
    if (!json)
        FAIL("%s", e.text);
    free(text);
    return json;
}

struct grammar *grammar_from(const char *schema) {
    json_t *json = parse(schema);
    struct grammar *g = NULL;
    struct error e = {0};
    if (grammar_create_json_schema(json, &g, &e))
        FAIL("%s: %s", schema, e.text);
    json_decref(json);
    return g;
}

const char *grammar_refusal(const char *schema) {
    static struct error e;
    json_t *json = parse(schema);
    struct grammar *g = NULL;
    e = (struct error){0};
    int rc = grammar_create_json_schema(json, &g, &e);
    EXPECT_INT_EQ(rc, e.code);
    EXPECT_INT_EQ(rc == 0, g != NULL);
    grammar_release(g);
    json_decref(json);
    return e.text;
}

struct grammar_pool *byte_pool(void) {
    static char bytes[256];
    struct trie_text texts[256];
    for (int i = 0; i < 256; i++) {
        bytes[i] = (char)i;
        texts[i] = (struct trie_text){&bytes[i], 1};
    }
    return grammar_pool_create_with_texts(texts, 256);
}

int64_t grammar_take(struct grammar_pool *p, struct grammar *g, const char *text, size_t len) {
    struct grammar_matcher *m = grammar_matcher_create(p, g);
    int64_t n = 0;
    while (n < (int64_t)len && grammar_matcher_advance(m, text + n, 1))
        n++;
    if (n == (int64_t)len && grammar_matcher_can_end(m))
        n = -1;
    grammar_matcher_destroy(m);
    return n;
}
