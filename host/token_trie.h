/* token_trie: the bytes of all tokens of a vocabulary as a tree, laid out in the order in which it
 * is walked: a node, then all that is below it. So a walk is one pass over an array that skips what
 * it need not look at. Immutable once made.
 *
 *   tokens "a" "ab" "b"     nodes  a(skip 2) b(skip 2) b(skip 3)
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "host/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { TRIE_MAX_DEPTH = 256 }; /* longer tokens are left out */

struct trie_node {
    uint32_t skip;        /* the first node that is not below this one */
    uint32_t first_token; /* of `tokens`, up to the next node's: those that end here */
    uint16_t depth;       /* bytes before this one */
    uint8_t byte;
};

struct token_trie {
    struct trie_node *nodes; /* [num_nodes + 1], owned */
    int32_t *tokens;         /* [num_tokens], owned */
    int32_t num_nodes, num_tokens;
};

/* Bytes of token `id`; NULL to leave it out. */
struct trie_text {
    const char *data;
    uint32_t len;
};

void token_trie_init(struct token_trie *t, const struct trie_text *texts, int32_t vocab_size);
void token_trie_deinit(struct token_trie *t);

#ifdef __cplusplus
}
#endif
