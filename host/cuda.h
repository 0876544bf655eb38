/* cuda: the door to the CUDA backend (cuda/), or to the statement that this build has none. */
#pragma once

#include "host/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The op table for these GPUs (numbers as the CUDA runtime counts them), after a look at each, for
 * backends with or without backend_config.batch_invariant: their partials differ in type. NULL
 * with ERR_UNSUPPORTED: the build has no CUDA, no driver, no such device, or one too old. */
const struct ops *cuda_ops(const int32_t *devices, int32_t num_devices, bool batch_invariant,
                           struct error *error);

#ifdef __cplusplus
}
#endif
