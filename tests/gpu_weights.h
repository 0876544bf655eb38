/* gpu_weights: random weight matrices in device memory, for the tests of the expert and dense
 * kernels, with their values on the host.
 */
#pragma once

#include "tests/gpu_fixture.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The ways a matrix may be stored: what a test runs through. */
struct gpu_weight_type {
    const char *name;
    enum dtype dtype;
    enum weight_scale scale;
};
extern const struct gpu_weight_type gpu_weight_types[];
enum { NUM_GPU_WEIGHT_TYPES = 3 };

struct gpu_matrix {
    int32_t rows, cols;
    float *values; /* [rows, cols] scales included; owned */
    void *data;    /* device, in the layout */
    float *scale;  /* device, NULL for BF16 */
};

/* Elements of about 1 / sqrt(cols); FP8 scales differ by row or block. */
struct gpu_matrix gpu_matrix_random(struct rng *r, const struct gpu_weight_type *type,
                                    enum weight_layout layout, int32_t rows, int32_t cols);
void gpu_matrix_free(struct gpu_matrix *m);

/* y[r] = sum of values[r, c] x[c] in float64, and magnitude[r] the sum of the terms' magnitudes:
 * what rounding errors are relative to. */
void gpu_matrix_times(const struct gpu_matrix *m, const float *x, double *y, double *magnitude);

/* Error that a sum of up to 1,200 columns may have, relative to its magnitude: a step of the tensor
 * cores truncates to 24 bits or so, and 1,200 columns are 75 steps. */
#define GPU_SUM_ERROR (1.0 / (1 << 16))

#ifdef __cplusplus
}
#endif
