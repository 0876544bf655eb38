/* cuda_none: stands in for the CUDA backend in builds without it. */
#include "host/cuda.h"

const struct ops *cuda_ops(const int32_t *devices, int32_t num_devices, bool batch_invariant,
                           struct error *error) {
    (void)devices;
    (void)num_devices;
    (void)batch_invariant;
    error_set(
        error, ERR_UNSUPPORTED,
        "--gpus, --device cuda: this build has no CUDA backend; without these options it serves "
        "on the CPU");
    return NULL;
}
