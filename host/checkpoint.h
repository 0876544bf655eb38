/* checkpoint: all tensors of a model folder: model.safetensors, or the shards that
 * model.safetensors.index.json lists. Opened once, read by every rank's loader thread (immutable).
 *
 * The file without an index wins where both exist, as in transformers. Of a sharded checkpoint just
 * the tensors that the index lists are seen, each in the shard that the index names for it.
 */
#pragma once

#include "host/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

struct checkpoint; /* opaque */

/* Opens every file. Missing or malformed shards, and tensors that are not where the index says, are
 * all added to `error`. A shard must be a plain file name inside the folder (a link is fine). On
 * failure *out is NULL. ERR_NOT_FOUND, ERR_IO, ERR_BAD_FILE, ERR_UNSUPPORTED. */
int checkpoint_open(const char *model_dir, struct checkpoint **out, struct error *error);
void checkpoint_close(struct checkpoint *c); /* NULL is fine */

/* NULL when there is no such tensor. */
const struct tensor_view *checkpoint_find(const struct checkpoint *c, const char *name);
/* Tensor i, sorted by name; the tensors are one array, so a pointer from find minus
 * checkpoint_at(c, 0) is its index. */
const struct tensor_view *checkpoint_at(const struct checkpoint *c, size_t i);
size_t checkpoint_num_tensors(const struct checkpoint *c);
size_t checkpoint_bytes(const struct checkpoint *c); /* of all files */

#ifdef __cplusplus
}
#endif
