/* tokenizer_decode: ids to text, whole or as they come.
 *
 * The decoder of a tokenizer.json is applied to each string of the vocabulary while loading, so
 * that decoding appends table entries. What is left for run time is the start of a text (a leading
 * space that encoding had added) and characters that are spread over several tokens.
 */
#include "tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#include "mem.h"
#include "utf8.h"

/* ---- the decoder field of a tokenizer.json ---- */

static int unsupported(const char *where, const char *what, struct error *error) {
    return error_set(error, ERR_UNSUPPORTED, "%s: decoder: %.64s", where, what);
}

static int parse_replace(struct decode_spec *spec, struct str from, json_t *to, const char *where,
                         struct error *error) {
    if (from.len == 0 || !json_is_string(to))
        return error_set(error, ERR_BAD_FILE,
                         "%s: decoder: Replace: expected a pattern String and a content", where);
    if (spec->num_replace == (int)(sizeof spec->replace / sizeof *spec->replace))
        return unsupported(where, "too many Replace steps", error);
    spec->replace[spec->num_replace].from = from;
    spec->replace[spec->num_replace++].to =
        (struct str){json_string_value(to), json_string_length(to)};
    return 0;
}

static struct str string_of(json_t *v) {
    return (struct str){json_string_value(v), json_string_length(v)};
}

static int parse_one(struct decode_spec *spec, json_t *json, bool *fused, const char *where,
                     struct error *error) {
    const char *type = json_string_value(json_object_get(json, "type"));
    if (!type)
        return error_set(error, ERR_BAD_FILE, "%s: decoder: expected an object with a type", where);
    if (strcmp(type, "Fuse") == 0) {
        *fused = true;
    } else if (strcmp(type, "ByteLevel") == 0) {
        spec->byte_level = true;
    } else if (strcmp(type, "ByteFallback") == 0) {
        spec->byte_fallback = true;
    } else if (strcmp(type, "Replace") == 0) {
        json_t *pattern = json_object_get(json_object_get(json, "pattern"), "String");
        if (!pattern)
            return unsupported(where, "Replace of a regular expression", error);
        return parse_replace(spec, string_of(pattern), json_object_get(json, "content"), where,
                             error);
    } else if (strcmp(type, "Metaspace") == 0) {
        static const struct str space = {" ", 1};
        const char *scheme = json_string_value(json_object_get(json, "prepend_scheme"));
        struct str mark = string_of(json_object_get(json, "replacement"));
        bool never = json_is_false(json_object_get(json, "add_prefix_space")) ||
                     (scheme && strcmp(scheme, "never") == 0);
        if (mark.len == 0)
            return error_set(error, ERR_BAD_FILE,
                             "%s: decoder: Metaspace: replacement: expected a string", where);
        if (spec->num_replace > 0)
            return unsupported(where, "Metaspace after Replace", error);
        spec->replace[0].from = mark;
        spec->replace[0].to = space;
        spec->num_replace = 1;
        spec->first_token = !never;
    } else if (strcmp(type, "Strip") == 0) {
        struct str content = string_of(json_object_get(json, "content"));
        int64_t start = json_integer_value(json_object_get(json, "start"));
        int64_t stop = json_integer_value(json_object_get(json, "stop"));
        if (!*fused || stop != 0 || start < 0 || start > 1024 || content.len != 1 ||
            content.data[0] != ' ')
            return unsupported(where, "Strip, except of leading spaces after Fuse", error);
        spec->strip = (int32_t)start;
    } else {
        return unsupported(where, type, error);
    }
    return 0;
}

int decode_spec_parse(struct decode_spec *spec, json_t *json, bool byte_level, const char *where,
                      struct error *error) {
    bool fused = false;
    memset(spec, 0, sizeof *spec);
    if (!json || json_is_null(json)) {
        spec->byte_level = byte_level;
        return byte_level ? 0 : unsupported(where, "there is none", error);
    }
    const char *type = json_string_value(json_object_get(json, "type"));
    if (!type || strcmp(type, "Sequence") != 0)
        return parse_one(spec, json, &fused, where, error);
    json_t *list = json_object_get(json, "decoders"), *item;
    size_t i;
    if (!json_is_array(list))
        return error_set(error, ERR_BAD_FILE, "%s: decoders: expected an array", where);
    json_array_foreach(list, i, item) {
        int rc = parse_one(spec, item, &fused, where, error);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* ---- the table ---- */

void decoder_deinit(struct decoder *d) {
    free(d->tokens);
    buffer_deinit(&d->pool);
    memset(d, 0, sizeof *d);
}

/* Appends s with the spec's replacements, each over the result of the one before. */
static void append_replaced(struct buffer *out, const struct decode_spec *spec, const char *s,
                            size_t len) {
    struct buffer work[2] = {{0}};
    struct str text = {s, len};
    for (int i = 0; i < spec->num_replace; i++) {
        const struct str from = spec->replace[i].from, to = spec->replace[i].to;
        struct buffer *next = &work[i % 2];
        if (!memmem(text.data, text.len, from.data, from.len))
            continue;
        next->len = 0;
        for (size_t k = 0; k < text.len;) {
            if (text.len - k >= from.len && memcmp(text.data + k, from.data, from.len) == 0) {
                buffer_append(next, to.data, to.len);
                k += from.len;
            } else {
                buffer_putc(next, text.data[k++]);
            }
        }
        text = (struct str){next->data, next->len};
    }
    buffer_append(out, text.data, text.len);
    buffer_deinit(&work[0]);
    buffer_deinit(&work[1]);
}

void decoder_set(struct decoder *d, const struct decode_spec *spec, int32_t id, const char *s,
                 size_t len) {
    if (id >= d->cap) {
        int32_t cap = d->cap ? d->cap : 1024;
        while (cap <= id)
            cap *= 2;
        d->tokens = xrealloc(d->tokens, (size_t)cap * sizeof *d->tokens);
        memset(d->tokens + d->cap, 0, (size_t)(cap - d->cap) * sizeof *d->tokens);
        d->cap = cap;
    }
    if (id >= d->vocab_size)
        d->vocab_size = id + 1;
    struct token_text *token = &d->tokens[id];
    int byte = spec->byte_fallback ? byte_of_fallback(s, len) : -1;
    token->exists = true;
    token->offset = (uint32_t)d->pool.len;
    if (byte >= 0)
        buffer_putc(&d->pool, (char)byte);
    else if (!spec->byte_level || !bytes_of_chars(s, len, &d->pool))
        append_replaced(&d->pool, spec, s, len);
    token->len = (uint32_t)(d->pool.len - token->offset);
}

/* ---- decoding ---- */

void detok_init(struct detok *d, const struct tokenizer *t) {
    memset(d, 0, sizeof *d);
    d->t = t;
    d->strip = t->decoder.strip;
    d->kept_token = -1;
}

/* Appends text, holding an incomplete character at its end back in d->tail. */
static void append_text(struct detok *d, const char *s, size_t len, struct buffer *out) {
    while (d->tail_len > 0 && len > 0) {
        uint32_t cp;
        char joined[4];
        size_t have = (size_t)d->tail_len, more = 4 - have < len ? 4 - have : len;
        memcpy(joined, d->tail, have);
        memcpy(joined + have, s, more);
        size_t n = utf8_next(joined, have + more, &cp);
        if (cp == UTF8_INCOMPLETE) {
            memcpy(d->tail, joined, n);
            d->tail_len = (int32_t)n;
            return;
        }
        utf8_append_lossy(out, joined, n);
        d->tail_len = 0;
        s += n - have; /* n >= have: the tail is a proper prefix of some character */
        len -= n - have;
    }
    while (len > 0) {
        uint32_t cp;
        size_t n = utf8_valid_prefix(s, len);
        buffer_append(out, s, n);
        s += n;
        len -= n;
        if (len == 0)
            break;
        n = utf8_next(s, len, &cp);
        if (cp == UTF8_INCOMPLETE) {
            memcpy(d->tail, s, n);
            d->tail_len = (int32_t)n;
            return;
        }
        utf8_append_lossy(out, s, n);
        s += n;
        len -= n;
    }
}

void detok_push(struct detok *d, int32_t id, struct buffer *out) {
    const struct decoder *dec = &d->t->decoder;
    if (id < 0 || id >= dec->vocab_size)
        return;
    const struct token_text *token = &dec->tokens[id];
    if (!token->exists || (token->special && !d->keep_special && id != d->kept_token))
        return;
    const char *s = dec->pool.data + token->offset;
    size_t len = token->len;
    if (dec->first_token && !d->started) {
        d->started = true;
        for (size_t i = 0; i < len; i++)
            if (s[i] != ' ')
                append_text(d, s + i, 1, out);
        return;
    }
    while (d->strip > 0 && len > 0) {
        if (s[0] != ' ') {
            d->strip = 0;
            break;
        }
        s++;
        len--;
        d->strip--;
    }
    append_text(d, s, len, out);
}

void detok_flush(struct detok *d, struct buffer *out) {
    utf8_append_lossy(out, d->tail, (size_t)d->tail_len);
    d->tail_len = 0;
}

int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t count, bool keep_special,
                     struct buffer *out) {
    struct detok d;
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= t->decoder.vocab_size)
            return ERR_INVALID_REQUEST;
    detok_init(&d, t);
    d.keep_special = keep_special;
    for (size_t i = 0; i < count; i++)
        detok_push(&d, ids[i], out);
    detok_flush(&d, out);
    return 0;
}

void tokenizer_token_bytes(const struct tokenizer *t, int32_t id, struct buffer *out) {
    if (id >= 0 && id < t->decoder.vocab_size && t->decoder.tokens[id].exists) {
        const struct token_text *token = &t->decoder.tokens[id];
        buffer_append(out, t->decoder.pool.data + token->offset, token->len);
    }
}

int32_t tokenizer_vocab_size(const struct tokenizer *t) {
    return t->decoder.vocab_size;
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id) {
    return id >= 0 && id < t->decoder.vocab_size && t->decoder.tokens[id].special;
}
