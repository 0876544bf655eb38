/* tokenizer_internal: the parts of a tokenizer, shared by the tokenizer_*.c files and their tests
 * only.
 *
 * Encoding runs through the parts in this order, each knowing only the next:
 *
 *   tokenizer.c        text -> repaired UTF-8 -> gaps between added tokens (tokenizer_added.c)
 *   tokenizer_norm.c   gap -> normalised gap, searched once more for added tokens
 *   tokenizer_pre.c    gap -> pieces that no token crosses (tokenizer_regex.c)
 *   tokenizer_bpe.c    piece -> ids
 *
 * or, for a tokenizer.model, from the gaps straight to libsentencepiece (spm.h). Decoding is a
 * table of each token's bytes and a little state (tokenizer_decode.c). tokenizer_json.c fills all
 * parts from a tokenizer.json, tokenizer_config.c from the small files beside it.
 */
#pragma once

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "host/buffer.h"
#include "host/json.h"
#include "host/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Limits on what a file may ask for; all far above any published tokenizer. */
enum {
    TOKENIZER_MAX_FILE_BYTES = 64 << 20,
    TOKENIZER_MAX_ID = (1 << 20) - 1, /* ids are table indices, so a hole costs memory */
    TOKENIZER_MAX_MERGES = 1 << 21,
    TOKENIZER_MAX_TOKEN_BYTES = 1 << 16,
    TOKENIZER_MAX_ADDED = 1 << 16,
    TOKENIZER_MAX_STEPS = 16, /* normalisers, and pre-tokenizers */
    TOKENIZER_MAX_REGEX_BYTES = 8192,
};

/* A string in the file that owns it; not NUL-terminated, may hold NUL. */
struct str {
    const char *data;
    size_t len;
};

/* ---- vocabulary and merges (tokenizer_bpe.c) ---- */

/* Byte strings to ids. Open addressing; strings live in `pool`. */
struct vocab_map {
    struct vocab_slot {
        uint32_t hash;
        int32_t id; /* -1: free; -2: hidden */
        uint32_t offset, len;
    } * slots; /* owned; a power of two of them, at most half full */
    uint32_t mask;
    struct buffer pool;
};

void vocab_map_init(struct vocab_map *m, size_t count);
void vocab_map_deinit(struct vocab_map *m);
/* Adds a string, or changes the id that it has. At most `count` of them. */
void vocab_map_put(struct vocab_map *m, const char *s, size_t len, int32_t id);
int32_t vocab_map_get(const struct vocab_map *m, const char *s, size_t len); /* -1: absent */
/* Makes vocab_map_get forget a string. */
void vocab_map_hide(struct vocab_map *m, const char *s, size_t len);

/* Pairs of ids to the pair's rank and the id of the merged token. */
struct merge_map {
    struct merge_slot {
        int32_t left, right; /* left -1: free */
        int32_t rank, id;
    } * slots; /* owned; a power of two of them, at most half full */
    uint32_t mask;
};

void merge_map_init(struct merge_map *m, size_t count);
void merge_map_put(struct merge_map *m, int32_t left, int32_t right, int32_t rank, int32_t id);
const struct merge_slot *merge_map_get(const struct merge_map *m, int32_t left, int32_t right);

struct bpe {
    struct vocab_map vocab; /* byte level: keyed by the bytes, not by their printable stand-ins */
    struct merge_map merges;
    int32_t byte_ids[256]; /* byte level: the one-byte tokens; else the <0xNN> tokens; -1: none */
    int32_t unk;           /* -1: characters without a token vanish */
    bool byte_level;
    bool byte_fallback; /* characters without a token become <0xNN> tokens */
    bool fuse_unk;      /* a run of unknown characters is one unk */
    bool ignore_merges; /* a piece that is a token is that token */
};

/* Memory that bpe_encode reuses between the pieces of a text; start it zeroed. */
struct bpe_scratch {
    struct bpe_symbol *symbols;
    uint64_t *heap;
    size_t cap;
};

void bpe_deinit(struct bpe *b);
void bpe_scratch_deinit(struct bpe_scratch *s);
/* Appends the ids of one piece. O(n log n) in its length. */
void bpe_encode(const struct bpe *b, struct bpe_scratch *s, const char *piece, size_t len,
                struct token_list *out);

/* The printable stand-in of each byte in byte-level vocabularies (GPT-2): the byte of a stand-in,
 * or -1 for other characters. */
int byte_of_char(uint32_t cp);
/* Replaces each stand-in by its byte. False, with nothing appended, when s has other characters. */
bool bytes_of_chars(const char *s, size_t len, struct buffer *out);
/* The byte of "<0xNN>", or -1. */
int byte_of_fallback(const char *s, size_t len);

/* ---- added tokens (tokenizer_added.c) ---- */

struct added_token {
    char *text; /* owned by the set */
    size_t len;
    int32_t id;
    uint32_t order; /* set by added_set_put */
    bool special;
    bool lstrip, rstrip; /* white space on that side belongs to the token */
    bool single_word;    /* not within a word */
    bool normalized;     /* matches normalised text */
};

/* Finds added tokens in text: at the leftmost place, the longest. */
struct added_set {
    struct added_token *tokens; /* owned; sorted by text once prepared */
    size_t count, cap;
    uint32_t first[257]; /* tokens that begin with byte b: first[b] .. first[b + 1] */
};

/* Copies token->text. */
void added_set_put(struct added_set *s, const struct added_token *token);
/* Makes the set ready for searching. Of tokens with the same text the last put stays. */
void added_set_prepare(struct added_set *s);
void added_set_deinit(struct added_set *s);
/* In a prepared set: the token with this text, or NULL. */
struct added_token *added_set_find(const struct added_set *s, const char *text, size_t len);

/* What to leave alone while matching. */
struct added_rules {
    bool parse_special;
    const struct text_span *plain; /* no special token touches these */
    size_t num_plain;
};

/* The next match at or after *pos in text: fills *match with what it takes (white space included)
 * and *pos with where to go on. Text before `done` is already spoken for. NULL when there is none.
 */
const struct added_token *added_set_next(const struct added_set *s, const char *text, size_t len,
                                         const struct added_rules *rules, size_t done, size_t *pos,
                                         struct text_span *match);

/* ---- regular expressions (tokenizer_regex.c) ---- */

struct regex {
    pcre2_code *code;             /* owned */
    pcre2_match_context *context; /* owned; limits */
};

/* Compiles a pattern written for Oniguruma (Ruby syntax, as Hugging Face tokenizers uses it) so
 * that PCRE2 splits alike; what cannot be carried over is ERR_UNSUPPORTED. */
int regex_compile(struct regex *r, const char *pattern, size_t len, const char *where,
                  struct error *error);
void regex_deinit(struct regex *r);

/* An iteration over the matches in a text. */
struct regex_iter {
    const struct regex *regex;
    pcre2_match_data *data; /* owned by the caller of regex_next */
    const char *text;
    size_t len, pos;
    size_t last_end; /* end of the last match; SIZE_MAX before the first */
    bool failed;     /* a limit was hit: the rest was not searched */
};

bool regex_next(struct regex_iter *it, struct text_span *match);

/* ---- normalisers (tokenizer_norm.c) ---- */

struct norm_step {
    enum norm_type { NORM_UNICODE, NORM_PREPEND, NORM_REPLACE, NORM_STRIP } type;
    int form;             /* NORM_UNICODE: options for utf8proc */
    struct buffer text;   /* NORM_PREPEND: what; NORM_REPLACE: by what */
    struct buffer needle; /* NORM_REPLACE: of what, unless regex.code is set */
    struct regex regex;
    bool left, right; /* NORM_STRIP */
};

struct normalizer {
    struct norm_step steps[TOKENIZER_MAX_STEPS];
    int count;
};

int normalizer_parse(struct normalizer *n, json_t *spec, const char *where, struct error *error);
void normalizer_deinit(struct normalizer *n);
/* Runs all steps on text (valid UTF-8). The result lies in text itself or in one of `work`. */
struct str normalizer_run(const struct normalizer *n, struct str text, struct buffer work[2],
                          pcre2_match_data *data);
/* A pattern field, {"String": ...} or {"Regex": ...}, into needle or regex. */
int pattern_parse(json_t *spec, struct buffer *needle, struct regex *regex, const char *where,
                  struct error *error);

/* ---- pre-tokenizers (tokenizer_pre.c) ---- */

enum split_behavior {
    SPLIT_ISOLATED,
    SPLIT_REMOVED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS,
};

struct pre_step {
    enum pre_type { PRE_SPLIT, PRE_PREFIX_SPACE, PRE_METASPACE } type;
    struct regex regex;   /* PRE_SPLIT, unless needle is set */
    struct buffer needle; /* PRE_SPLIT: a plain string; PRE_METASPACE: what replaces a space */
    enum split_behavior behavior;
    bool invert;
    enum { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER } prepend; /* PRE_METASPACE */
};

struct pre_tokenizer {
    struct pre_step steps[TOKENIZER_MAX_STEPS];
    int count;
    bool byte_level; /* the pieces are byte strings for a byte-level vocabulary */
};

/* Memory for one run; start it zeroed. */
struct pre_scratch {
    struct buffer text[TOKENIZER_MAX_STEPS]; /* pieces that a step has rewritten */
    pcre2_match_data *data;                  /* borrowed */
};

int pre_tokenizer_parse(struct pre_tokenizer *p, json_t *spec, const char *where,
                        struct error *error);
void pre_tokenizer_deinit(struct pre_tokenizer *p);
/* Calls on_piece for each piece in order. at_start: the text begins the whole input. */
void pre_tokenizer_run(const struct pre_tokenizer *p, struct pre_scratch *scratch, const char *text,
                       size_t len, bool at_start,
                       void (*on_piece)(void *user, const char *piece, size_t len), void *user);

/* ---- decoding (tokenizer_decode.c) ---- */

struct token_text {
    uint32_t offset, len; /* into the pool */
    bool exists, special;
};

struct decoder {
    struct token_text *tokens; /* [vocab_size], owned */
    int32_t vocab_size, cap;
    struct buffer pool;
    int32_t strip;    /* leading spaces of a text to drop */
    bool first_token; /* all spaces of the first token are dropped (Metaspace) */
};

/* How the strings of a vocabulary become text, from the decoder of a tokenizer.json. */
struct decode_spec {
    bool byte_level, byte_fallback;
    struct {
        struct str from, to; /* borrowed from the JSON document */
    } replace[4];
    int num_replace;
    int32_t strip;
    bool first_token;
};

int decode_spec_parse(struct decode_spec *spec, json_t *json, bool byte_level, const char *where,
                      struct error *error);
void decoder_deinit(struct decoder *d);
/* Sets the text of an id from its string in the vocabulary, as the spec says. The table grows. */
void decoder_set(struct decoder *d, const struct decode_spec *spec, int32_t id, const char *s,
                 size_t len);

/* ---- the whole ---- */

struct id_list {
    int32_t *ids; /* owned */
    int32_t count;
};

void id_list_push(struct id_list *l, int32_t id);

struct tokenizer {
    struct added_set raw, normalized; /* added tokens by the text they match */
    struct normalizer norm;
    struct pre_tokenizer pre;
    struct bpe bpe;
    struct spm *spm;       /* tokenizer.model; then norm, pre and bpe are not used */
    struct spm *spm_plain; /* the same without the leading space, for text after a special token */
    struct decoder decoder;
    struct id_list prefix, suffix; /* what TOKENIZER_ADD_SPECIAL adds */
    struct id_list eos;
    int32_t bos;
};

/* A tokenizer that is being loaded, and what only loading needs. */
struct tokenizer_build {
    struct tokenizer *t;
    const char *where;        /* the file, for messages */
    struct vocab_map strings; /* the vocabulary as the file spells it */
    struct decode_spec spec;
    struct added_set added; /* added tokens by their own text */
};

/* Adds an added token; an id of -1 is looked up in the vocabulary, and the token left out if it is
 * not there. Empty texts are left out too. */
int build_add_token(struct tokenizer_build *b, const struct added_token *token,
                    struct error *error);
/* The id of a token of the vocabulary or of the (prepared) added tokens, or -1. */
int32_t build_token_id(const struct tokenizer_build *b, const char *text, size_t len);
/* Last: sorts the added tokens into t->raw and t->normalized and gives them their texts. */
void build_finish(struct tokenizer_build *b);
void build_deinit(struct tokenizer_build *b);

/* The small files beside a tokenizer; any of them may be NULL. */
struct tokenizer_config {
    json_t *config;      /* tokenizer_config.json */
    json_t *special_map; /* special_tokens_map.json */
    json_t *added;       /* added_tokens.json: {"text": id} */
    json_t *generation;  /* generation_config.json */
    json_t *model;       /* config.json */
};

int tokenizer_config_load(struct tokenizer_config *c, const char *dir, struct error *error);
void tokenizer_config_deinit(struct tokenizer_config *c);
/* For a tokenizer that has its vocabulary and its own added tokens: adds the tokens that these
 * files list, marks the named ones special, sets bos and eos, and what the Llama classes insert. */
int tokenizer_config_apply(const struct tokenizer_config *c, struct tokenizer_build *b,
                           struct error *error);
/* A flag of tokenizer_config.json. */
bool tokenizer_config_flag(const struct tokenizer_config *c, const char *key, bool otherwise);

/* Parses a tokenizer.json from memory. `where` names it in messages. */
int tokenizer_load_json_text(const char *text, size_t len, const char *where,
                             const struct tokenizer_config *c, struct tokenizer **out,
                             struct error *error);

#ifdef __cplusplus
}
#endif
