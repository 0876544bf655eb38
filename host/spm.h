/* spm: a SentencePiece model (tokenizer.model) behind C functions.
 *
 * The only file that knows libsentencepiece's C++ interface. A loaded model is immutable; any
 * thread may encode with it. Exceptions of the library become error codes here.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/error.h"
#include "host/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

struct spm; /* opaque, owned by its creator */

/* Makes all of C++ end the process by mem_exhausted when memory is out; once, at its start. */
void spm_set_new_handler(void);

/* Loads a serialised model from memory. With no_prefix the model does not put a space before a
 * text, whatever the file says. `where` names the source in messages. */
int spm_load(const char *data, size_t len, bool no_prefix, const char *where, struct spm **out,
             struct error *error);
void spm_free(struct spm *s);

int32_t spm_vocab_size(const struct spm *s);
int32_t spm_unk(const struct spm *s); /* -1 when there is none, as for the next two */
int32_t spm_bos(const struct spm *s);
int32_t spm_eos(const struct spm *s);

/* Does encoding put a space before a text or trim it, so that decoding drops one leading space? */
bool spm_strips_leading_space(const struct spm *s);

/* The piece of an id as the model spells it ("▁the"); borrowed. */
const char *spm_piece(const struct spm *s, int32_t id, size_t *len);
/* The id of a piece, or -1. */
int32_t spm_piece_id(const struct spm *s, const char *piece, size_t len);

enum spm_type { SPM_NORMAL, SPM_UNKNOWN, SPM_CONTROL, SPM_UNUSED, SPM_BYTE };
enum spm_type spm_type(const struct spm *s, int32_t id);

/* Appends the ids of text (valid UTF-8). Nothing is appended if the library fails. */
void spm_encode(const struct spm *s, const char *text, size_t len, struct token_list *out);

#ifdef __cplusplus
}
#endif
