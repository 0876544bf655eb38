/* libFuzzer: any bytes as a JSON schema, and the bytes behind a NUL as choices for a walk through
 * what it allows. What compiles must have a way on from everywhere, and what comes out must be
 * JSON. No schema may take long to compile or to refuse. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/grammar.h"
#include "host/grammar_match.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    MAX_DOCUMENT = 200,
    MAX_COMPILE_S = 3, /* of processor time; 65 ms without the sanitisers */
};

static struct grammar_pool *byte_pool(void) {
    static struct grammar_pool *pool;
    static char bytes[256];
    struct trie_text texts[256];
    if (pool)
        return pool;
    for (int i = 0; i < 256; i++) {
        bytes[i] = (char)i;
        texts[i] = (struct trie_text){&bytes[i], 1};
    }
    pool = grammar_pool_create_with_texts(texts, 256);
    return pool;
}

/* Draws a document byte by byte; `choices` run out into zeros. */
static void walk(struct grammar *g, const uint8_t *choices, size_t num_choices) {
    struct grammar_matcher *m = grammar_matcher_create(byte_pool(), g);
    char document[MAX_DOCUMENT];
    uint32_t mask[8];
    size_t len = 0;
    int32_t count = 0;
    for (; len < MAX_DOCUMENT && (count = grammar_matcher_mask(m, mask)) > 0; len++) {
        int32_t skip = len < num_choices ? choices[len] % count : 0, byte = 0;
        while (!(mask[byte / 32] >> (byte % 32) & 1) || skip-- > 0)
            byte++;
        document[len] = (char)byte;
        CHECK(grammar_matcher_advance(m, &document[len], 1), "a byte of the mask is refused");
    }
    CHECK(count > 0 || grammar_matcher_can_end(m), "no way on behind %.*s", (int)len, document);
    if (grammar_matcher_can_end(m)) {
        json_t *json = json_loadb(document, len, JSON_DECODE_ANY, NULL);
        CHECK(json, "not JSON: %.*s", (int)len, document);
        json_decref(json);
    }
    grammar_matcher_destroy(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *end = memchr(data, 0, size);
    size_t len = end ? (size_t)(end - data) : size;
    struct error e = {0};
    struct grammar *g = NULL;
    json_t *schema = json_parse((const char *)data, len, "fuzz", ERR_INVALID_JSON, &e);
    if (!schema)
        return 0;
    clock_t began = clock();
    int rc = grammar_create_json_schema(schema, &g, &e);
    CHECK(clock() - began < (clock_t)MAX_COMPILE_S * CLOCKS_PER_SEC, "compiled for too long");
    CHECK(rc == e.code && (rc == 0) == (g != NULL) && (rc == 0) == (e.text[0] == 0),
          "code %d, message \"%s\"", rc, e.text);
    if (rc == 0)
        walk(g, end ? end + 1 : data, end ? size - len - 1 : size);
    grammar_release(g);
    json_decref(schema);
    return 0;
}
