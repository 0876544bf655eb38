/* prefix_index: which prefixes of prompts a replica has been given of late, as block hashes.
 *
 * A guess at what the replica's KV cache holds, kept outside of its engine: blocks of KV_BLOCK_SIZE
 * tokens, each known by a hash of all tokens up to its end, at most as many as the cache has, the
 * least recently used forgotten first. A wrong guess (a hash that collides, a block that the cache
 * has evicted already) costs time, never a wrong result: the engine's own cache compares tokens.
 *
 * One thread at a time. Memory is taken by prefix_index_create alone.
 */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct prefix_index; /* opaque */

/* Room for max_blocks >= 1 blocks. */
struct prefix_index *prefix_index_create(int32_t max_blocks);
void prefix_index_destroy(struct prefix_index *x); /* NULL is fine */

/* hashes[b] stands for tokens[0 .. (b + 1) * KV_BLOCK_SIZE), for b < num_blocks. */
void prefix_hashes(const int32_t *tokens, int32_t num_blocks, uint64_t *hashes);

/* How many of the first hashes are known, up to the first that is not. */
int32_t prefix_index_match(const struct prefix_index *x, const uint64_t *hashes, int32_t count);

/* The replica has been given these blocks, the beginning of one prompt: they are the most recently
 * used now, the first one last of all. Of more than max_blocks the first are kept. */
void prefix_index_note(struct prefix_index *x, const uint64_t *hashes, int32_t count);

#ifdef __cplusplus
}
#endif
