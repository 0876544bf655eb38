/* gpu_weights: random weight matrices in device memory, for the tests of the expert and dense
 * kernels, with their values on the host.
 */
#pragma once

#include "tests/gpu_fixture.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The ways a matrix may be stored, and its input: what a test runs through. */
struct gpu_weight_type {
    const char *name;
    enum dtype dtype;
    enum weight_scale scale;
    int32_t block_col0; /* of matrices that are cut by columns */
    bool xq;            /* with FP8 activations; these come last */
};
extern const struct gpu_weight_type gpu_weight_types[];
/* How many of them this GPU takes: sm_80 and sm_86 have no FP8 products. */
int gpu_num_weight_types(void);
/* For matrices that are not cut by columns. */
struct gpu_weight_type gpu_weight_type_uncut(const struct gpu_weight_type *type);

struct gpu_matrix {
    struct gpu_weight_type type;
    int32_t rows, cols;
    float *values;     /* [rows, cols] scales included; owned */
    float *elements;   /* [rows, cols] without; owned */
    float *host_scale; /* NULL for BF16; owned */
    void *data;        /* device, in the layout */
    float *scale;      /* device, NULL for BF16 */
};

/* Elements of about 1 / sqrt(cols); FP8 scales differ by row or block. */
struct gpu_matrix gpu_matrix_random(struct rng *r, const struct gpu_weight_type *type,
                                    enum weight_layout layout, int32_t rows, int32_t cols);
/* Rows [row0, row0 + rows), columns [col0, col0 + cols) of another one: the same elements and
 * scales. row0 is a multiple of 16, with SCALE_BLOCK col0 is one of 32. */
struct gpu_matrix gpu_matrix_part(const struct gpu_matrix *whole, enum weight_layout layout,
                                  int32_t row0, int32_t rows, int32_t col0, int32_t cols);
void gpu_matrix_free(struct gpu_matrix *m);

/* y[r] = sum of values[r, c] x[c] in float64, and magnitude[r] the sum of the terms' magnitudes:
 * what rounding errors are relative to. */
void gpu_matrix_times(const struct gpu_matrix *m, const float *x, double *y, double *magnitude);

/* FP8 activations of rows [n, cols], as kernels.h words them, in host memory: codes
 * [n, f8_stride(cols)] and scales [n] are to be freed with free(), and x becomes what they stand
 * for. */
struct gpu_f8_rows {
    uint8_t *codes;
    float *scale;
};
struct gpu_f8_rows gpu_f8_rows_of(float *x, int64_t n, int32_t cols);
void gpu_f8_rows_free(struct gpu_f8_rows *r);

/* Error that a sum of up to 1,200 columns may have, relative to its magnitude. A step of the tensor
 * cores truncates to 24 bits or so, and 1,200 columns are 75 steps: 2^-16. FP8 products are
 * truncated to as many bits as the device is found to keep (13 on Ada and Hopper), in chains of 4
 * steps of 32 terms; their errors have either sign, so that 8 times the last bit is far outside of
 * what happens. */
double gpu_sum_error(const struct gpu_weight_type *type);

#ifdef __cplusplus
}
#endif
