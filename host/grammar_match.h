/* grammar_match: where a document stands in its grammar, and which tokens may come next.
 *
 * A pool belongs to one thread (the engine's) and one vocabulary. It holds the tree of the tokens'
 * bytes and, for each grammar in use and some that were, what was found out so far: sets of places
 * in the automaton that are reached together (made as they are reached, each with its way on for
 * every byte), and masks of tokens. Matchers of grammars that are equal share all that. What is
 * kept has a bound of some MiB a grammar; beyond it everything is forgotten but where matchers
 * stand.
 *
 * What a matcher answers is a function of the grammar and the tokens alone. Of more than 8,192
 * places at once only as many are followed, which leaves out documents but allows no wrong one. A
 * schema that leaves so many ways open at its beginning, or where a value or a name begins, is
 * refused.
 *
 * A mask takes one pass over the tree of tokens, some milliseconds for 150,000 of them, and for
 * each position that it meets the making of those that follow. Of the latter a matcher may do so
 * much: 8 million edges looked at, some 80 ms, and 50,000 more for each mask; what is known
 * already costs nothing, so of two with the same grammar one may come further. What is known is
 * bounded, by 2 MiB and 512 KiB for each matcher; beyond, all that no matcher stands in is
 * forgotten. Masks that were made are copied, and so are those within strings that are counted, far
 * from their bounds.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "host/grammar.h"
#include "host/token_trie.h"

#ifdef __cplusplus
extern "C" {
#endif

struct grammar_pool;
struct grammar_matcher;

/* Tokens without text, special ones and the banned (those that end a text) are never allowed. Masks
 * have vocab_size bits. */
struct grammar_pool *grammar_pool_create(const struct tokenizer *tokenizer, int32_t vocab_size,
                                         const int32_t *banned, int32_t num_banned);
/* The same over given texts, which must live as long. */
struct grammar_pool *grammar_pool_create_with_texts(const struct trie_text *texts,
                                                    int32_t vocab_size);
/* After all its matchers; NULL is fine. */
void grammar_pool_destroy(struct grammar_pool *p);

/* At the beginning of a document. Retains the grammar. */
struct grammar_matcher *grammar_matcher_create(struct grammar_pool *p, struct grammar *g);
void grammar_matcher_destroy(struct grammar_matcher *m); /* NULL is fine */

/* Goes on behind these bytes. False, and nothing has changed: they are not allowed. */
bool grammar_matcher_advance(struct grammar_matcher *m, const char *bytes, size_t len);
/* The same by a token's text. */
bool grammar_matcher_advance_token(struct grammar_matcher *m, int32_t token);
/* May the document end here? */
bool grammar_matcher_can_end(const struct grammar_matcher *m);
/* Sets the bits of the tokens that may come next, 32 to a word, token 0 the lowest of the first,
 * and clears the others; returns how many may. Negative: its work is used up, and the mask
 * is not to be used. */
int32_t grammar_matcher_mask(struct grammar_matcher *m, uint32_t *mask);

/* Words of a mask. */
static inline size_t grammar_mask_words(int32_t vocab_size) {
    return ((size_t)vocab_size + 31) / 32;
}

#ifdef __cplusplus
}
#endif
