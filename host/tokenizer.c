/* tokenizer: loading from a folder, added tokens, and the path of a text to its ids. */
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "file.h"
#include "mem.h"
#include "spm.h"
#include "tokenizer_internal.h"
#include "utf8.h"

#define SPACE_MARK "\xE2\x96\x81" /* U+2581, a space in SentencePiece vocabularies */

void token_list_push(struct token_list *list, int32_t id) {
    if (list->len == list->cap) {
        list->cap = list->cap ? 2 * list->cap : 64;
        list->ids = xrealloc(list->ids, list->cap * sizeof *list->ids);
    }
    list->ids[list->len++] = id;
}

void id_list_push(struct id_list *l, int32_t id) {
    l->ids = xrealloc(l->ids, (size_t)(l->count + 1) * sizeof *l->ids);
    l->ids[l->count++] = id;
}

/* ---- building ---- */

int build_add_token(struct tokenizer_build *b, const struct added_token *token,
                    struct error *error) {
    struct added_token copy = *token;
    int32_t known = vocab_map_get(&b->strings, token->text, token->len);
    if (known >= 0)
        copy.id = known; /* the vocabulary decides, as in the reference */
    if (token->len == 0 || copy.id < 0)
        return 0;
    if (token->len > TOKENIZER_MAX_TOKEN_BYTES || b->added.count >= TOKENIZER_MAX_ADDED)
        return error_set(error, ERR_BAD_FILE,
                         "%s: added tokens: more than %d, or one longer than "
                         "%d bytes",
                         b->where, (int)TOKENIZER_MAX_ADDED, (int)TOKENIZER_MAX_TOKEN_BYTES);
    added_set_put(&b->added, &copy);
    return 0;
}

int32_t build_token_id(const struct tokenizer_build *b, const char *text, size_t len) {
    const struct added_token *token = added_set_find(&b->added, text, len);
    return token ? token->id : vocab_map_get(&b->strings, text, len);
}

static void finish_token(struct tokenizer_build *b, const struct added_token *token,
                         struct buffer work[2], pcre2_match_data *data) {
    struct tokenizer *t = b->t;
    struct token_text *shown;
    uint32_t cp;
    bool unknown = t->spm && spm_unk(t->spm) == token->id; /* keeps the library's text */
    if (!unknown)
        decoder_set(&t->decoder, &b->spec, token->id, token->text, token->len);
    shown = &t->decoder.tokens[token->id];
    shown->special = token->special;
    if (token->special && t->bpe.ignore_merges &&
        utf8_next(token->text, token->len, &cp) < token->len)
        vocab_map_hide(&t->bpe.vocab, token->text, token->len); /* no text may become it */
    if (token->special || !token->normalized) {
        added_set_put(&t->raw, token);
        return;
    }
    struct added_token copy = *token;
    struct str text = normalizer_run(&t->norm, (struct str){token->text, token->len}, work, data);
    copy.text = (char *)(uintptr_t)text.data;
    copy.len = text.len;
    if (text.len > 0)
        added_set_put(&t->normalized, &copy);
}

void build_finish(struct tokenizer_build *b) {
    struct buffer work[2] = {{0}};
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    if (!data)
        mem_exhausted(0);
    added_set_prepare(&b->added);
    for (size_t i = 0; i < b->added.count; i++)
        finish_token(b, &b->added.tokens[i], work, data);
    added_set_prepare(&b->t->raw);
    added_set_prepare(&b->t->normalized);
    pcre2_match_data_free(data);
    buffer_deinit(&work[0]);
    buffer_deinit(&work[1]);
}

void build_deinit(struct tokenizer_build *b) {
    vocab_map_deinit(&b->strings);
    added_set_deinit(&b->added);
}

/* ---- tokenizer.model ---- */

static int read_pieces(struct tokenizer_build *b, struct error *error) {
    static const struct str mark = {SPACE_MARK, 3}, space = {" ", 1};
    struct tokenizer *t = b->t;
    int32_t n = spm_vocab_size(t->spm);
    if (n < 1 || n > TOKENIZER_MAX_ID)
        return error_set(error, ERR_BAD_FILE, "%s: %d pieces, limit %d", b->where, (int)n,
                         (int)TOKENIZER_MAX_ID);
    vocab_map_init(&b->strings, (size_t)n);
    b->spec.replace[0].from = mark;
    b->spec.replace[0].to = space;
    b->spec.num_replace = 1;
    for (int32_t id = 0; id < n; id++) {
        size_t len;
        const char *piece = spm_piece(t->spm, id, &len);
        enum spm_type type = spm_type(t->spm, id);
        bool unknown = type == SPM_UNKNOWN;
        vocab_map_put(&b->strings, piece, len, id);
        b->spec.byte_fallback = type == SPM_BYTE;
        decoder_set(&t->decoder, &b->spec, id, unknown ? " \xE2\x81\x87 " : piece,
                    unknown ? 5 : len);
        if (type == SPM_CONTROL) {
            struct added_token token = {
                .text = (char *)(uintptr_t)piece, .len = len, .id = id, .special = true};
            int rc = build_add_token(b, &token, error);
            if (rc != 0)
                return rc;
        }
    }
    b->spec.byte_fallback = false;
    return 0;
}

static int load_model(const char *path, const struct tokenizer_config *c, struct tokenizer **out,
                      struct error *error) {
    struct tokenizer_build b = {.where = path};
    struct file_map file = {0};
    int rc = file_map_open(&file, path, error);
    if (rc != 0)
        return rc;
    if (file.size > TOKENIZER_MAX_FILE_BYTES) {
        rc = error_set(error, ERR_BAD_FILE, "%s: %zu bytes, limit %d", path, file.size,
                       (int)TOKENIZER_MAX_FILE_BYTES);
        goto out;
    }
    b.t = xcalloc(1, sizeof *b.t);
    if ((rc = spm_load(file.data, file.size, false, path, &b.t->spm, error)) != 0)
        goto out;
    /* legacy: false asks for no space after a special token within a text. */
    if (!tokenizer_config_flag(c, "legacy", true) &&
        (rc = spm_load(file.data, file.size, true, path, &b.t->spm_plain, error)) != 0)
        goto out;
    b.t->bos = spm_bos(b.t->spm);
    if (spm_eos(b.t->spm) >= 0)
        id_list_push(&b.t->eos, spm_eos(b.t->spm));
    b.t->decoder.strip = spm_strips_leading_space(b.t->spm) ? 1 : 0;
    if ((rc = read_pieces(&b, error)) != 0 || (rc = tokenizer_config_apply(c, &b, error)) != 0)
        goto out;
    build_finish(&b);
    *out = b.t;
    b.t = NULL;
out:
    tokenizer_free(b.t);
    build_deinit(&b);
    file_map_close(&file);
    return rc;
}

/* ---- loading and freeing ---- */

static int load_json(const char *path, const struct tokenizer_config *c, struct tokenizer **out,
                     struct error *error) {
    char *text;
    size_t len;
    int rc = file_read(path, TOKENIZER_MAX_FILE_BYTES, &text, &len, error);
    if (rc == 0)
        rc = tokenizer_load_json_text(text, len, path, c, out, error);
    free(text);
    return rc;
}

int tokenizer_load(const char *model_dir, struct tokenizer **out, struct error *error) {
    struct tokenizer_config config;
    char *json = path_join(model_dir, "tokenizer.json");
    char *model = path_join(model_dir, "tokenizer.model");
    *out = NULL;
    int rc = tokenizer_config_load(&config, model_dir, error);
    if (rc == 0 && file_exists(json))
        rc = load_json(json, &config, out, error);
    else if (rc == 0 && file_exists(model))
        rc = load_model(model, &config, out, error);
    else if (rc == 0)
        rc = error_set(error, ERR_NOT_FOUND, "%s: no tokenizer.json and no tokenizer.model",
                       model_dir);
    tokenizer_config_deinit(&config);
    free(json);
    free(model);
    return rc;
}

void tokenizer_free(struct tokenizer *t) {
    if (!t)
        return;
    added_set_deinit(&t->raw);
    added_set_deinit(&t->normalized);
    normalizer_deinit(&t->norm);
    pre_tokenizer_deinit(&t->pre);
    bpe_deinit(&t->bpe);
    spm_free(t->spm);
    spm_free(t->spm_plain);
    decoder_deinit(&t->decoder);
    free(t->prefix.ids);
    free(t->suffix.ids);
    free(t->eos.ids);
    free(t);
}

int32_t tokenizer_bos(const struct tokenizer *t) {
    return t->bos;
}

const int32_t *tokenizer_eos(const struct tokenizer *t, int32_t *count) {
    *count = t->eos.count;
    return t->eos.ids;
}

/* ---- encoding ---- */

struct encoder {
    const struct tokenizer *t;
    struct token_list *out;
    struct pre_scratch pre;
    struct bpe_scratch bpe;
    struct buffer work[2]; /* normalised text */
};

static void encode_piece(void *user, const char *piece, size_t len) {
    struct encoder *e = user;
    bpe_encode(&e->t->bpe, &e->bpe, piece, len, e->out);
}

/* Encodes normalised text without added tokens. */
static void encode_plain(struct encoder *e, const char *text, size_t len, bool at_start) {
    pre_tokenizer_run(&e->t->pre, &e->pre, text, len, at_start, encode_piece, e);
}

/* Encodes what stands between two added tokens of the original text. */
static void encode_gap(struct encoder *e, const char *text, size_t len, bool at_start) {
    static const struct added_rules any = {.parse_special = true};
    const struct tokenizer *t = e->t;
    const struct added_token *token;
    struct text_span match;
    size_t done = 0, pos = 0;
    if (len == 0)
        return;
    if (t->spm) {
        spm_encode(at_start || !t->spm_plain ? t->spm : t->spm_plain, text, len, e->out);
        return;
    }
    struct str s = normalizer_run(&t->norm, (struct str){text, len}, e->work, e->pre.data);
    while ((token = added_set_next(&t->normalized, s.data, s.len, &any, done, &pos, &match))) {
        encode_plain(e, s.data + done, match.start - done, at_start && done == 0);
        token_list_push(e->out, token->id);
        done = match.end;
    }
    encode_plain(e, s.data + done, s.len - done, at_start && done == 0);
}

static void encode(const struct tokenizer *t, const char *text, size_t len,
                   const struct added_rules *rules, unsigned flags, struct token_list *out) {
    struct encoder e = {.t = t, .out = out};
    const struct added_token *token;
    struct text_span match;
    size_t done = 0, pos = 0;
    e.pre.data = pcre2_match_data_create(1, NULL);
    if (!e.pre.data)
        mem_exhausted(0);
    for (int32_t i = 0; (flags & TOKENIZER_ADD_SPECIAL) && i < t->prefix.count; i++)
        token_list_push(out, t->prefix.ids[i]);
    while ((token = added_set_next(&t->raw, text, len, rules, done, &pos, &match))) {
        encode_gap(&e, text + done, match.start - done, done == 0);
        token_list_push(out, token->id);
        done = match.end;
    }
    encode_gap(&e, text + done, len - done, done == 0);
    for (int32_t i = 0; (flags & TOKENIZER_ADD_SPECIAL) && i < t->suffix.count; i++)
        token_list_push(out, t->suffix.ids[i]);
    pcre2_match_data_free(e.pre.data);
    for (int i = 0; i < TOKENIZER_MAX_STEPS; i++)
        buffer_deinit(&e.pre.text[i]);
    bpe_scratch_deinit(&e.bpe);
    buffer_deinit(&e.work[0]);
    buffer_deinit(&e.work[1]);
}

void tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, unsigned flags,
                      struct token_list *out) {
    struct added_rules rules = {.parse_special = (flags & TOKENIZER_PARSE_SPECIAL) != 0};
    struct buffer repaired = {0};
    if (utf8_valid_prefix(text, len) != len) {
        utf8_append_lossy(&repaired, text, len);
        text = repaired.data;
        len = repaired.len;
    }
    encode(t, text, len, &rules, flags, out);
    buffer_deinit(&repaired);
}

void tokenizer_encode_mixed(const struct tokenizer *t, const char *text, size_t len,
                            const struct text_span *plain, size_t num_plain, unsigned flags,
                            struct token_list *out) {
    struct added_rules rules = {.parse_special = true, .plain = plain, .num_plain = num_plain};
    if (utf8_valid_prefix(text, len) == len)
        encode(t, text, len, &rules, flags, out);
    else
        tokenizer_encode(t, text, len, flags & ~(unsigned)TOKENIZER_PARSE_SPECIAL, out);
}
