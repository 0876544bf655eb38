/* Takes the input for a tokenizer.json; if it is accepted, encodes and decodes a short text with
 * it. Asserts that decoding gives valid UTF-8, whole and in pieces alike.
 */
#include <stdlib.h>
#include <string.h>

#include "host/tokenizer_internal.h"
#include "host/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_decode(const struct tokenizer *t, const struct token_list *ids) {
    struct buffer whole = {0}, pieces = {0};
    struct detok d;
    CHECK(tokenizer_decode(t, ids->ids, ids->len, false, &whole) == 0, "an id out of range");
    detok_init(&d, t);
    for (size_t i = 0; i < ids->len; i++)
        detok_push(&d, ids->ids[i], &pieces);
    detok_flush(&d, &pieces);
    CHECK(whole.len == pieces.len &&
              (whole.len == 0 || memcmp(whole.data, pieces.data, whole.len) == 0),
          "pieces differ from the whole");
    CHECK(whole.len == 0 || utf8_valid_prefix(whole.data, whole.len) == whole.len,
          "decoded text is not UTF-8");
    buffer_deinit(&whole);
    buffer_deinit(&pieces);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char text[] = " Hi 12  e\xCC\x81 <s>ab\n\xE4\xB8\xAD\xFF";
    static const struct tokenizer_config none;
    static const struct text_span plain[] = {{2, 5}, {13, 14}};
    struct token_list ids = {0};
    struct error error = {0};
    struct tokenizer *t;
    if (tokenizer_load_json_text((const char *)data, size, "input", &none, &t, &error) != 0)
        return 0;
    for (unsigned flags = 0; flags < 4; flags++)
        tokenizer_encode(t, text, sizeof text - 1, flags, &ids);
    tokenizer_encode_mixed(t, text, sizeof text - 2, plain, 2, 0, &ids);
    check_decode(t, &ids);
    free(ids.ids);
    tokenizer_free(t);
    return 0;
}
