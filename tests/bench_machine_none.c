/* No GPU's limits, in a build without CUDA. */
#include "tests/bench_machine.h"

bool machine_gpu(bool tiny, struct gpu_limits *out) {
    (void)tiny;
    (void)out;
    return false;
}
