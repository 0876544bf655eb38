/* tokenizer: text to token ids and back, for the tokenizers that the supported checkpoints ship.
 *
 * Two kinds behind one interface: byte-level BPE and SentencePiece-style BPE from tokenizer.json,
 * and SentencePiece models from tokenizer.model (through libsentencepiece). A tokenizer is
 * immutable after loading, so any thread may use it; encode keeps its scratch on the heap of the
 * calling thread. Token ids are int32_t. It knows nothing of requests or models.
 *
 * Ids and texts equal those of the reference implementations (Hugging Face tokenizers,
 * libsentencepiece) with three exceptions: byte tokens that do not form valid UTF-8 are repaired
 * like any other text (see utf8.h), not one U+FFFD a byte; special tokens always match the text as
 * it was written, never its normalised form; and text never becomes a special token except where a
 * flag allows it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/buffer.h"
#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct tokenizer; /* opaque, owned by its creator */

/* Token ids; start it zeroed, free ids with free(). */
struct token_list {
    int32_t *ids; /* owned */
    size_t len, cap;
};

void token_list_push(struct token_list *list, int32_t id);

/* Loads tokenizer.json (preferred) or tokenizer.model from a model folder, with
 * tokenizer_config.json, special_tokens_map.json and generation_config.json where present.
 * ERR_NOT_FOUND, ERR_BAD_FILE or ERR_UNSUPPORTED with a message that names file and field. */
int tokenizer_load(const char *model_dir, struct tokenizer **out, struct error *error);
void tokenizer_free(struct tokenizer *t);

/* Number of ids that have a token (ids are below it; there may be holes). */
int32_t tokenizer_vocab_size(const struct tokenizer *t);
/* -1 when the model has none. */
int32_t tokenizer_bos(const struct tokenizer *t);
/* Ids that end a text: eos_token, and eos_token_id of generation_config.json (one or many). The
 * first is eos_token where there is one. */
const int32_t *tokenizer_eos(const struct tokenizer *t, int32_t *count);

enum tokenizer_flags {
    TOKENIZER_ADD_SPECIAL = 1,   /* add bos (and what the post-processor adds) as the model asks */
    TOKENIZER_PARSE_SPECIAL = 2, /* text that spells a special token becomes that token */
};

/* Appends the ids of text (UTF-8; invalid bytes are replaced by U+FFFD first, as the reference
 * implementations do). Never fails on any input. */
void tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, unsigned flags,
                      struct token_list *out);

/* A range of bytes [start, end) of a text. */
struct text_span {
    size_t start, end;
};

/* As tokenizer_encode with TOKENIZER_PARSE_SPECIAL, except that no special token that touches one
 * of the plain spans (ascending, disjoint) is recognised: a prompt made of trusted markup and of
 * contents that must stay text. The text must be valid UTF-8; if it is not, all of it is plain. */
void tokenizer_encode_mixed(const struct tokenizer *t, const char *text, size_t len,
                            const struct text_span *plain, size_t num_plain, unsigned flags,
                            struct token_list *out);

/* Appends the text of all ids to `out`, as one string. Special tokens are left out unless
 * keep_special. The result may hold U+FFFD where ids do not form valid UTF-8. Ids out of range are
 * ERR_INVALID_REQUEST. */
int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t count, bool keep_special,
                     struct buffer *out);

/* Incremental detokenisation: the concatenation of all that detok_push and detok_flush append
 * equals tokenizer_decode of the ids (without special tokens), and no piece ever ends within a
 * UTF-8 character. Allocation-free once `out` has capacity. Copyable plain data. */
struct detok {
    const struct tokenizer *t; /* borrowed */
    char tail[4];              /* bytes of a character that is not complete yet */
    int32_t tail_len;
    int32_t strip;     /* leading spaces that are still to be dropped (SentencePiece adds one) */
    bool started;      /* has a token with text come (Metaspace treats the first one differently) */
    bool keep_special; /* false after detok_init */
    int32_t
        kept_token; /* a special token that is kept nevertheless; -1 (no token) after detok_init */
};

void detok_init(struct detok *d, const struct tokenizer *t);
/* An id without a token appends nothing. */
void detok_push(struct detok *d, int32_t id, struct buffer *out);
void detok_flush(struct detok *d, struct buffer *out); /* an incomplete tail becomes U+FFFD */

/* The bytes of one token alone, for logprobs displays; may be an incomplete character. */
void tokenizer_token_bytes(const struct tokenizer *t, int32_t id, struct buffer *out);
/* Is it a special token, which decoding leaves out? */
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);

#ifdef __cplusplus
}
#endif
