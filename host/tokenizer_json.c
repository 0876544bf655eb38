/* tokenizer_json: reads a tokenizer.json into the parts of a tokenizer. */
#include "tokenizer_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem.h"
#include "utf8.h"

/* ---- model ---- */

static int check_model(json_t *model, const char *where, struct error *error) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    json_t *type = json_object_get(model, "type");
    json_t *dropout = json_object_get(model, "dropout");
    if (!json_is_object(model))
        return error_set(error, ERR_BAD_FILE, "%s: model: expected an object", where);
    if (type && (!json_is_string(type) || strcmp(json_string_value(type), "BPE") != 0))
        return error_set(error, ERR_UNSUPPORTED, "%s: model of type %.64s (only BPE)", where,
                         json_is_string(type) ? json_string_value(type) : "?");
    for (int i = 0; i < 2; i++)
        if (json_string_length(json_object_get(model, affixes[i])) > 0)
            return error_set(error, ERR_UNSUPPORTED, "%s: model: %s", where, affixes[i]);
    if (json_is_number(dropout) && json_number_value(dropout) != 0)
        return error_set(error, ERR_UNSUPPORTED, "%s: model: dropout", where);
    return 0;
}

static int read_vocab(struct tokenizer_build *b, json_t *vocab, struct error *error) {
    struct bpe *bpe = &b->t->bpe;
    struct buffer bytes = {0};
    const char *key;
    json_t *v;
    int rc = 0;
    if (!json_is_object(vocab) || json_object_size(vocab) == 0)
        return error_set(error, ERR_BAD_FILE, "%s: model.vocab: expected an object with tokens",
                         b->where);
    if (json_object_size(vocab) > TOKENIZER_MAX_ID)
        return error_set(error, ERR_BAD_FILE, "%s: model.vocab: %zu tokens, limit %d", b->where,
                         json_object_size(vocab), (int)TOKENIZER_MAX_ID);
    vocab_map_init(&b->strings, json_object_size(vocab));
    vocab_map_init(&bpe->vocab, json_object_size(vocab));
    json_object_foreach(vocab, key, v) {
        size_t len = strlen(key);
        json_int_t id = json_integer_value(v);
        if (!json_is_integer(v) || id < 0 || id > TOKENIZER_MAX_ID ||
            len > TOKENIZER_MAX_TOKEN_BYTES) {
            rc = error_set(error, ERR_BAD_FILE,
                           "%s: model.vocab: \"%.64s\": expected an id from 0 to %d", b->where, key,
                           (int)TOKENIZER_MAX_ID);
            break;
        }
        vocab_map_put(&b->strings, key, len, (int32_t)id);
        decoder_set(&b->t->decoder, &b->spec, (int32_t)id, key, len);
        buffer_clear(&bytes);
        if (!bpe->byte_level)
            vocab_map_put(&bpe->vocab, key, len, (int32_t)id);
        else if (bytes_of_chars(key, len, &bytes) && bytes.len > 0)
            vocab_map_put(&bpe->vocab, bytes.data, bytes.len, (int32_t)id);
    }
    buffer_deinit(&bytes);
    return rc;
}

/* A merge is written "left right" or ["left", "right"]. */
static bool merge_parts(json_t *v, struct str *left, struct str *right) {
    if (json_is_string(v)) {
        const char *s = json_string_value(v), *space = strchr(s, ' ');
        if (!space || strchr(space + 1, ' '))
            return false;
        *left = (struct str){s, (size_t)(space - s)};
        *right = (struct str){space + 1, strlen(space + 1)};
        return true;
    }
    json_t *a = json_array_get(v, 0), *b = json_array_get(v, 1);
    if (json_array_size(v) != 2 || !json_is_string(a) || !json_is_string(b))
        return false;
    *left = (struct str){json_string_value(a), json_string_length(a)};
    *right = (struct str){json_string_value(b), json_string_length(b)};
    return true;
}

static int read_merge(struct tokenizer_build *b, json_t *v, size_t index, int32_t rank,
                      struct buffer *joined, struct error *error) {
    struct str left, right;
    if (!merge_parts(v, &left, &right))
        return error_set(error, ERR_BAD_FILE, "%s: model.merges[%zu]: expected two tokens",
                         b->where, index);
    buffer_clear(joined);
    buffer_append(joined, left.data, left.len);
    buffer_append(joined, right.data, right.len);
    int32_t left_id = vocab_map_get(&b->strings, left.data, left.len);
    int32_t right_id = vocab_map_get(&b->strings, right.data, right.len);
    int32_t id = joined->len > 0 ? vocab_map_get(&b->strings, joined->data, joined->len) : -1;
    if (left_id < 0 || right_id < 0 || id < 0)
        return error_set(error, ERR_BAD_FILE,
                         "%s: model.merges[%zu]: \"%.*s\" is not in the vocabulary", b->where,
                         index, (int)(joined->len < 64 ? joined->len : 64),
                         joined->len > 0 ? joined->data : "");
    merge_map_put(&b->t->bpe.merges, left_id, right_id, rank, id);
    return 0;
}

static int read_merges(struct tokenizer_build *b, json_t *merges, struct error *error) {
    struct buffer joined = {0};
    int32_t rank = 0;
    json_t *v;
    size_t i;
    int rc = 0;
    if (!json_is_array(merges))
        return error_set(error, ERR_BAD_FILE, "%s: model.merges: expected an array", b->where);
    if (json_array_size(merges) > TOKENIZER_MAX_MERGES)
        return error_set(error, ERR_BAD_FILE, "%s: model.merges: %zu of them, limit %d", b->where,
                         json_array_size(merges), (int)TOKENIZER_MAX_MERGES);
    merge_map_init(&b->t->bpe.merges, json_array_size(merges));
    json_array_foreach(merges, i, v) {
        if (json_is_string(v) && strncmp(json_string_value(v), "#version", 8) == 0)
            continue;
        if ((rc = read_merge(b, v, i, rank++, &joined, error)) != 0)
            break;
    }
    buffer_deinit(&joined);
    return rc;
}

static int read_model(struct tokenizer_build *b, json_t *model, struct error *error) {
    struct bpe *bpe = &b->t->bpe;
    const char *unk = json_string_value(json_object_get(model, "unk_token"));
    int rc;
    bpe->byte_level = b->t->pre.byte_level;
    bpe->byte_fallback = json_is_true(json_object_get(model, "byte_fallback"));
    bpe->fuse_unk = json_is_true(json_object_get(model, "fuse_unk"));
    bpe->ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    bpe->unk = -1;
    if ((rc = read_vocab(b, json_object_get(model, "vocab"), error)) != 0 ||
        (rc = read_merges(b, json_object_get(model, "merges"), error)) != 0)
        return rc;
    if (unk && (bpe->unk = vocab_map_get(&b->strings, unk, strlen(unk))) < 0)
        return error_set(error, ERR_BAD_FILE,
                         "%s: model.unk_token: \"%.64s\" is not in the "
                         "vocabulary",
                         b->where, unk);
    for (int i = 0; i < 256; i++) {
        char byte = (char)i, name[8];
        snprintf(name, sizeof name, "<0x%02X>", i);
        bpe->byte_ids[i] = bpe->byte_level ? vocab_map_get(&bpe->vocab, &byte, 1)
                                           : vocab_map_get(&b->strings, name, 6);
    }
    return 0;
}

/* ---- added tokens ---- */

static int read_added_tokens(struct tokenizer_build *b, json_t *list, struct error *error) {
    size_t i;
    json_t *v;
    if (list && !json_is_null(list) && !json_is_array(list))
        return error_set(error, ERR_BAD_FILE, "%s: added_tokens: expected an array", b->where);
    json_array_foreach(list, i, v) {
        json_t *content = json_object_get(v, "content"), *id = json_object_get(v, "id");
        if (!json_is_string(content) || !json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > TOKENIZER_MAX_ID)
            return error_set(error, ERR_BAD_FILE,
                             "%s: added_tokens[%zu]: expected a content and an id from 0 to %d",
                             b->where, i, (int)TOKENIZER_MAX_ID);
        struct added_token token = {
            .text = (char *)(uintptr_t)json_string_value(content),
            .len = json_string_length(content),
            .id = (int32_t)json_integer_value(id),
            .special = json_is_true(json_object_get(v, "special")),
            .lstrip = json_is_true(json_object_get(v, "lstrip")),
            .rstrip = json_is_true(json_object_get(v, "rstrip")),
            .single_word = json_is_true(json_object_get(v, "single_word")),
            .normalized = json_is_true(json_object_get(v, "normalized")),
        };
        int rc = build_add_token(b, &token, error);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* ---- post-processor ---- */

static int push_template_token(struct id_list *list, json_t *spec, json_t *item, const char *where,
                               struct error *error) {
    const char *name =
        json_string_value(json_object_get(json_object_get(item, "SpecialToken"), "id"));
    json_t *known = json_object_get(spec, "special_tokens");
    json_t *ids = name ? json_object_get(json_object_get(known, name), "ids") : NULL, *id;
    size_t i;
    if (!json_is_array(ids) || json_array_size(ids) > 16)
        return error_set(error, ERR_BAD_FILE,
                         "%s: TemplateProcessing: single: expected special tokens with ids", where);
    json_array_foreach(ids, i, id) {
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > TOKENIZER_MAX_ID)
            return error_set(error, ERR_BAD_FILE, "%s: TemplateProcessing: ids: expected ids",
                             where);
        id_list_push(list, (int32_t)json_integer_value(id));
    }
    return 0;
}

static int read_template(struct tokenizer *t, json_t *spec, const char *where,
                         struct error *error) {
    json_t *single = json_object_get(spec, "single"), *item;
    bool text_seen = false;
    size_t i;
    if (json_array_size(single) > 64)
        return error_set(error, ERR_UNSUPPORTED, "%s: TemplateProcessing: %zu items", where,
                         json_array_size(single));
    json_array_foreach(single, i, item) {
        if (json_object_get(item, "Sequence")) {
            if (text_seen)
                return error_set(error, ERR_UNSUPPORTED,
                                 "%s: TemplateProcessing: single: the text twice", where);
            text_seen = true;
            continue;
        }
        int rc = push_template_token(text_seen ? &t->suffix : &t->prefix, spec, item, where, error);
        if (rc != 0)
            return rc;
    }
    return text_seen ? 0
                     : error_set(error, ERR_BAD_FILE,
                                 "%s: TemplateProcessing: single: no place for the text", where);
}

static int read_post_processor(struct tokenizer *t, json_t *spec, bool nested, const char *where,
                               struct error *error) {
    if (!spec || json_is_null(spec))
        return 0;
    const char *type = json_string_value(json_object_get(spec, "type"));
    if (type && strcmp(type, "ByteLevel") == 0)
        return 0; /* concerns offsets only */
    if (type && strcmp(type, "TemplateProcessing") == 0)
        return read_template(t, spec, where, error);
    if (!type || strcmp(type, "Sequence") != 0 || nested)
        return error_set(error, ERR_UNSUPPORTED, "%s: post_processor of type %.64s", where,
                         type ? type : "?");
    json_t *list = json_object_get(spec, "processors"), *item;
    size_t i;
    json_array_foreach(list, i, item) {
        int rc = read_post_processor(t, item, true, where, error);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* What the post-processor inserts must be tokens, since the model looks them up. */
static int check_inserted(const struct tokenizer_build *b, struct error *error) {
    const struct id_list *const lists[] = {&b->t->prefix, &b->t->suffix};
    const struct decoder *d = &b->t->decoder;
    for (int k = 0; k < 2; k++)
        for (int32_t i = 0; i < lists[k]->count; i++) {
            int32_t id = lists[k]->ids[i];
            if (id >= d->vocab_size || !d->tokens[id].exists)
                return error_set(error, ERR_BAD_FILE, "%s: TemplateProcessing: id %d has no token",
                                 b->where, (int)id);
        }
    return 0;
}

/* ---- the whole ---- */

static int read_all(struct tokenizer_build *b, json_t *doc, struct error *error) {
    struct tokenizer *t = b->t;
    const char *version = json_string_value(json_object_get(doc, "version"));
    int rc;
    if (!json_is_object(doc))
        return error_set(error, ERR_BAD_FILE, "%s: expected an object", b->where);
    if (version && strcmp(version, "1.0") != 0)
        return error_set(error, ERR_UNSUPPORTED, "%s: version %.16s", b->where, version);
    if ((rc = check_model(json_object_get(doc, "model"), b->where, error)) != 0 ||
        (rc = normalizer_parse(&t->norm, json_object_get(doc, "normalizer"), b->where, error)) !=
            0 ||
        (rc = pre_tokenizer_parse(&t->pre, json_object_get(doc, "pre_tokenizer"), b->where,
                                  error)) != 0 ||
        (rc = decode_spec_parse(&b->spec, json_object_get(doc, "decoder"), t->pre.byte_level,
                                b->where, error)) != 0)
        return rc;
    t->decoder.strip = b->spec.strip;
    t->decoder.first_token = b->spec.first_token;
    if ((rc = read_model(b, json_object_get(doc, "model"), error)) != 0 ||
        (rc = read_added_tokens(b, json_object_get(doc, "added_tokens"), error)) != 0)
        return rc;
    return read_post_processor(t, json_object_get(doc, "post_processor"), false, b->where, error);
}

int tokenizer_load_json_text(const char *text, size_t len, const char *where,
                             const struct tokenizer_config *c, struct tokenizer **out,
                             struct error *error) {
    struct tokenizer_build b = {.where = where};
    *out = NULL;
    if (len > TOKENIZER_MAX_FILE_BYTES)
        return error_set(error, ERR_BAD_FILE, "%s: %zu bytes, limit %d", where, len,
                         (int)TOKENIZER_MAX_FILE_BYTES);
    json_t *doc = json_parse(text, len, where, ERR_BAD_FILE, error);
    if (!doc)
        return ERR_BAD_FILE;
    b.t = xcalloc(1, sizeof *b.t);
    b.t->bos = -1;
    int rc = read_all(&b, doc, error);
    if (rc == 0)
        rc = tokenizer_config_apply(c, &b, error);
    if (rc == 0) {
        build_finish(&b);
        rc = check_inserted(&b, error);
    }
    if (rc == 0)
        *out = b.t;
    else
        tokenizer_free(b.t);
    build_deinit(&b);
    json_decref(doc);
    return rc;
}
