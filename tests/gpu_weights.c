#include "tests/gpu_weights.h"

#include <math.h>
#include <stdlib.h>

#include "host/mem.h"

const struct gpu_weight_type gpu_weight_types[] = {
    {"BF16", DTYPE_BF16, SCALE_NONE},
    {"F8 with row scales", DTYPE_F8_E4M3, SCALE_ROW},
    {"F8 with block scales", DTYPE_F8_E4M3, SCALE_BLOCK},
};

static int32_t blocks(int32_t n) {
    return (n + SCALE_BLOCK_SIZE - 1) / SCALE_BLOCK_SIZE;
}

/* Uploads the matrix' elements, before scales, and puts them into the layout. */
static void *store(const struct gpu_matrix *m, enum dtype dtype, enum weight_layout layout) {
    int64_t n = (int64_t)m->rows * m->cols;
    uint8_t *bytes = xmalloc((size_t)n * dtype_bytes(dtype));
    for (int64_t i = 0; i < n; i++)
        dtype_store(dtype, bytes, i, m->values[i]);
    void *source = gpu_upload(bytes, (size_t)n * dtype_bytes(dtype));
    void *data = gpu_alloc(weight_layout_bytes(layout, dtype, m->rows, m->cols));
    weight_layout_launch(data, layout, dtype, m->rows, m->cols, 0, m->rows, source, m->cols,
                         gpu_stream());
    gpu_free(source);
    free(bytes);
    return data;
}

struct gpu_matrix gpu_matrix_random(struct rng *r, const struct gpu_weight_type *type,
                                    enum weight_layout layout, int32_t rows, int32_t cols) {
    struct gpu_matrix m = {.rows = rows, .cols = cols};
    int64_t n = (int64_t)rows * cols;
    float amplitude = 2 / sqrtf((float)cols);
    m.values = random_floats(r, n, type->scale == SCALE_NONE ? amplitude : 2);
    if (type->scale == SCALE_NONE)
        round_to_bf16(m.values, n);
    else
        round_to_e4m3(m.values, n);
    m.data = store(&m, type->dtype, layout);
    if (type->scale == SCALE_NONE)
        return m;
    int64_t num = type->scale == SCALE_ROW ? rows : (int64_t)blocks(rows) * blocks(cols);
    float *scale = random_floats(r, num, amplitude);
    for (int64_t i = 0; i < n; i++) {
        int32_t row = (int32_t)(i / cols), col = (int32_t)(i % cols);
        m.values[i] *= type->scale == SCALE_ROW
                           ? scale[row]
                           : scale[row / SCALE_BLOCK_SIZE * blocks(cols) + col / SCALE_BLOCK_SIZE];
    }
    m.scale = gpu_upload(scale, (size_t)num * sizeof *scale);
    free(scale);
    return m;
}

void gpu_matrix_free(struct gpu_matrix *m) {
    gpu_free(m->data);
    gpu_free(m->scale);
    free(m->values);
}

void gpu_matrix_times(const struct gpu_matrix *m, const float *x, double *y, double *magnitude) {
    for (int32_t row = 0; row < m->rows; row++) {
        const float *w = m->values + (int64_t)row * m->cols;
        y[row] = magnitude[row] = 0;
        for (int32_t c = 0; c < m->cols; c++) {
            double term = (double)w[c] * (double)x[c];
            y[row] += term;
            magnitude[row] += fabs(term);
        }
    }
}
