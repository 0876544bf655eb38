/* tokenizer_config: the small files beside a tokenizer, as transformers' tokenizer classes read
 * them.
 */
#include "tokenizer_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"
#include "mem.h"

static const char *const named_tokens[] = {
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
};

static int load_optional(const char *dir, const char *name, json_t **out, struct error *error) {
    char *path = path_join(dir, name);
    int rc = 0;
    if (file_exists(path)) {
        *out = json_parse_file(path, TOKENIZER_MAX_FILE_BYTES, error);
        if (!*out)
            rc = error && error->code ? error->code : ERR_BAD_FILE;
        else if (!json_is_object(*out))
            rc = error_set(error, ERR_BAD_FILE, "%s: expected an object", path);
    }
    free(path);
    return rc;
}

int tokenizer_config_load(struct tokenizer_config *c, const char *dir, struct error *error) {
    int rc;
    memset(c, 0, sizeof *c);
    if ((rc = load_optional(dir, "tokenizer_config.json", &c->config, error)) != 0 ||
        (rc = load_optional(dir, "special_tokens_map.json", &c->special_map, error)) != 0 ||
        (rc = load_optional(dir, "added_tokens.json", &c->added, error)) != 0 ||
        (rc = load_optional(dir, "generation_config.json", &c->generation, error)) != 0 ||
        (rc = load_optional(dir, "config.json", &c->model, error)) != 0)
        tokenizer_config_deinit(c);
    return rc;
}

void tokenizer_config_deinit(struct tokenizer_config *c) {
    json_decref(c->config);
    json_decref(c->special_map);
    json_decref(c->added);
    json_decref(c->generation);
    json_decref(c->model);
    memset(c, 0, sizeof *c);
}

bool tokenizer_config_flag(const struct tokenizer_config *c, const char *key, bool otherwise) {
    json_t *v = json_object_get(c->config, key);
    return json_is_boolean(v) ? json_is_true(v) : otherwise;
}

/* A token is written as a string or as an object with its content. */
static const char *content_of(json_t *v) {
    return json_string_value(json_is_object(v) ? json_object_get(v, "content") : v);
}

/* The text of a named token; null in tokenizer_config.json means that there is none. */
static const char *named_token(const struct tokenizer_config *c, const char *key) {
    json_t *v = json_object_get(c->config, key);
    return content_of(v ? v : json_object_get(c->special_map, key));
}

static int32_t named_id(const struct tokenizer_config *c, const struct tokenizer_build *b,
                        const char *key) {
    const char *text = named_token(c, key);
    return text ? build_token_id(b, text, strlen(text)) : -1;
}

/* ---- added tokens ---- */

static int add_listed(const struct tokenizer_config *c, struct tokenizer_build *b,
                      struct error *error) {
    json_t *list = json_object_get(c->config, "added_tokens_decoder"), *v;
    const char *key;
    int rc;
    json_object_foreach(c->added, key, v) {
        struct added_token token = {.text = (char *)(uintptr_t)key, .len = strlen(key)};
        if (!json_is_integer(v) || json_integer_value(v) < 0 ||
            json_integer_value(v) > TOKENIZER_MAX_ID)
            return error_set(error, ERR_BAD_FILE, "added_tokens.json: %.64s: expected an id", key);
        token.id = (int32_t)json_integer_value(v);
        token.normalized = b->t->spm == NULL;
        if ((rc = build_add_token(b, &token, error)) != 0)
            return rc;
    }
    json_object_foreach(list, key, v) {
        const char *text = content_of(v);
        char *end;
        errno = 0;
        long id = strtol(key, &end, 10);
        if (!text || !json_is_object(v) || *end || end == key || errno || id < 0 ||
            id > TOKENIZER_MAX_ID)
            return error_set(error, ERR_BAD_FILE,
                             "tokenizer_config.json: added_tokens_decoder: %.64s: expected an id "
                             "with an object that has a content",
                             key);
        struct added_token token = {
            .text = (char *)(uintptr_t)text,
            .len = strlen(text),
            .id = (int32_t)id,
            .special = json_is_true(json_object_get(v, "special")),
            .lstrip = json_is_true(json_object_get(v, "lstrip")),
            .rstrip = json_is_true(json_object_get(v, "rstrip")),
            .single_word = json_is_true(json_object_get(v, "single_word")),
            .normalized = json_is_true(json_object_get(v, "normalized")),
        };
        if ((rc = build_add_token(b, &token, error)) != 0)
            return rc;
    }
    return 0;
}

static int mark_special(struct tokenizer_build *b, const char *text, struct error *error) {
    struct added_token *known = text ? added_set_find(&b->added, text, strlen(text)) : NULL;
    if (known)
        known->special = true;
    if (!text || known)
        return 0;
    struct added_token token = {
        .text = (char *)(uintptr_t)text, .len = strlen(text), .id = -1, .special = true};
    return build_add_token(b, &token, error);
}

static int mark_all_special(const struct tokenizer_config *c, struct tokenizer_build *b,
                            struct error *error) {
    json_t *const files[] = {c->config, c->special_map};
    json_t *v;
    size_t k;
    int rc;
    added_set_prepare(&b->added);
    for (size_t i = 0; i < sizeof named_tokens / sizeof *named_tokens; i++) {
        if ((rc = mark_special(b, named_token(c, named_tokens[i]), error)) != 0)
            return rc;
        added_set_prepare(&b->added);
    }
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        json_array_foreach(json_object_get(files[i], "additional_special_tokens"), k, v) {
            if ((rc = mark_special(b, content_of(v), error)) != 0)
                return rc;
            added_set_prepare(&b->added);
        }
    return 0;
}

/* ---- bos, eos, and what is inserted ---- */

static void add_eos(struct tokenizer *t, json_t *v) {
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX)
        return;
    int32_t id = (int32_t)json_integer_value(v);
    for (int32_t i = 0; i < t->eos.count; i++)
        if (t->eos.ids[i] == id)
            return;
    id_list_push(&t->eos, id);
}

static void add_all_eos(struct tokenizer *t, json_t *file) {
    json_t *v = json_object_get(file, "eos_token_id"), *item;
    size_t i;
    add_eos(t, v);
    json_array_foreach(v, i, item) add_eos(t, item);
}

/* The classes that replace the post-processor of a tokenizer.json by add_bos_token and
 * add_eos_token; a tokenizer.model knows nothing else. */
static bool inserts_by_flags(const struct tokenizer_config *c, const struct tokenizer *t) {
    static const char *const classes[] = {"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer"};
    const char *class = json_string_value(json_object_get(c->config, "tokenizer_class"));
    for (size_t i = 0; class && i < sizeof classes / sizeof *classes; i++) {
        size_t n = strlen(classes[i]);
        if (strncmp(class, classes[i], n) == 0 && (!class[n] || strcmp(class + n, "Fast") == 0))
            return true;
    }
    return t->spm != NULL;
}

int tokenizer_config_apply(const struct tokenizer_config *c, struct tokenizer_build *b,
                           struct error *error) {
    struct tokenizer *t = b->t;
    int rc;
    if ((rc = add_listed(c, b, error)) != 0 || (rc = mark_all_special(c, b, error)) != 0)
        return rc;
    int32_t bos = named_id(c, b, "bos_token"), eos = named_id(c, b, "eos_token");
    bool bos_given = json_object_get(c->config, "bos_token") != NULL;
    bool eos_given = json_object_get(c->config, "eos_token") != NULL;
    if (bos >= 0 || bos_given)
        t->bos = bos;
    if (eos >= 0 || eos_given)
        t->eos.count = 0;
    if (eos >= 0)
        id_list_push(&t->eos, eos);
    eos = t->eos.count > 0 ? t->eos.ids[0] : -1;
    add_all_eos(t, c->generation);
    if (t->eos.count == 0)
        add_all_eos(t, c->model);
    if (inserts_by_flags(c, t)) {
        t->prefix.count = t->suffix.count = 0;
        if (t->bos >= 0 && tokenizer_config_flag(c, "add_bos_token", true))
            id_list_push(&t->prefix, t->bos);
        if (eos >= 0 && tokenizer_config_flag(c, "add_eos_token", false))
            id_list_push(&t->suffix, eos);
    }
    return 0;
}
