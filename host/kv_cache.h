/* kv_cache: which KV block belongs to whom, and which still holds a known prefix.
 *
 * Pure bookkeeping over block ids 0 .. num_blocks-1; the keys and values themselves live in the
 * model. A block holds KV_BLOCK_SIZE tokens and is in one of three states:
 *
 *   free        on the free list, content unknown
 *   referenced  in the block tables of one or more sequences
 *   cached      in no block table, but its content is registered: a later prompt may take it again,
 *               and until then it is the cache's to evict, least recently released first
 *
 * Prefix sharing is by content. A full block is registered under (identity of the block before it,
 * its tokens); the identity is a number given at registration and never used twice, so a block that
 * was evicted and filled anew is not taken for its old self. A lookup compares identity and tokens
 * in full: the hash only chooses the bucket.
 *
 * Owned and used by one thread. All arrays are allocated by kv_cache_create, nothing afterwards.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "host/batch.h"

#ifdef __cplusplus
extern "C" {
#endif

struct kv_cache; /* opaque */

enum { KV_NO_BLOCK = -1 };

struct kv_cache_options {
    int32_t num_blocks;         /* >= 1 */
    bool enable_prefix_caching; /* false: nothing is ever registered */
    int32_t num_buckets;        /* of the hash table; 0: enough. A power of two. */
};

struct kv_cache *kv_cache_create(const struct kv_cache_options *options);
void kv_cache_destroy(struct kv_cache *kv); /* NULL is fine */

/* Blocks in all; not free (cached ones included); cached; and those that kv_cache_alloc can still
 * hand out (free or cached). */
int32_t kv_cache_num_blocks(const struct kv_cache *kv);
int32_t kv_cache_num_used(const struct kv_cache *kv);
int32_t kv_cache_num_cached(const struct kv_cache *kv);
int32_t kv_cache_num_available(const struct kv_cache *kv);

/* A block with one reference: a free one, else the cached one that was released longest ago, which
 * is forgotten. KV_NO_BLOCK when all are referenced. */
int32_t kv_cache_alloc(struct kv_cache *kv);

/* Gives back one reference of each of blocks[0..count), the last one first, so that of equally old
 * cached blocks the ends of prefixes are evicted before their beginnings. */
void kv_cache_release(struct kv_cache *kv, const int32_t *blocks, int32_t count);

/* The longest registered prefix of tokens, in whole blocks, at most max_blocks. Writes the blocks
 * to `blocks`, takes one reference of each, and returns how many there are. */
int32_t kv_cache_match(struct kv_cache *kv, const int32_t *tokens, int32_t max_blocks,
                       int32_t *blocks);
/* How many of these blocks kv_cache_match would find, and (in *num_cached, may be NULL) how many of
 * them are cached, i.e. would no longer be available afterwards. Takes nothing. */
int32_t kv_cache_peek(const struct kv_cache *kv, const int32_t *tokens, int32_t max_blocks,
                      int32_t *num_cached);

/* Registers a referenced block that is now full. tokens are its KV_BLOCK_SIZE tokens, parent is the
 * block before it in the same sequence (KV_NO_BLOCK for the first). Returns the block to use from
 * now on: `block` itself, or, when the same content is registered already, that other block; then
 * its reference has moved there and `block` was released. A block whose parent is not registered
 * stays private. */
int32_t kv_cache_register(struct kv_cache *kv, int32_t block, int32_t parent,
                          const int32_t *tokens);

/* Makes sure that the content of these referenced blocks is never found again (their computation
 * failed). Sequences that hold them keep them. */
void kv_cache_forget(struct kv_cache *kv, const int32_t *blocks, int32_t count);

/* For tests: CHECKs that every block is in exactly one state, that lists, counts and hash table
 * agree, and that block b is referenced exactly refs[b] times. refs [num_blocks]. */
void kv_cache_check(const struct kv_cache *kv, const int32_t *refs);

#ifdef __cplusplus
}
#endif
