/* checkpoint: all tensors of a model folder: model.safetensors, or the shards that
 * model.safetensors.index.json lists. Opened once, read by every rank's loader thread (immutable).
 */
#pragma once

#include "host/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

struct checkpoint; /* opaque */

/* Opens every file; missing or malformed shards are all reported at once. A shard name that leaves
 * the folder is refused. */
int checkpoint_open(const char *model_dir, struct checkpoint **out, struct error *error);
void checkpoint_close(struct checkpoint *c);

/* NULL when there is no such tensor. */
const struct tensor_view *checkpoint_find(const struct checkpoint *c, const char *name);
size_t checkpoint_num_tensors(const struct checkpoint *c);
size_t checkpoint_bytes(const struct checkpoint *c);

#ifdef __cplusplus
}
#endif
