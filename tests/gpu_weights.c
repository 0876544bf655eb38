#include "tests/gpu_weights.h"

#include <math.h>
#include <stdlib.h>

#include "host/dtype.h"
#include "host/mem.h"
#include "tests/cuda_ptx_kernels.h"

const struct gpu_weight_type gpu_weight_types[] = {
    {"BF16", DTYPE_BF16, SCALE_NONE, 0, false},
    {"F8 with row scales", DTYPE_F8_E4M3, SCALE_ROW, 0, false},
    {"F8 with block scales", DTYPE_F8_E4M3, SCALE_BLOCK, 0, false},
    {"F8 with block scales, cut by columns", DTYPE_F8_E4M3, SCALE_BLOCK, 96, false},
    {"F8 with row scales times F8", DTYPE_F8_E4M3, SCALE_ROW, 0, true},
    {"F8 with block scales, cut by columns, times F8", DTYPE_F8_E4M3, SCALE_BLOCK, 96, true},
};

int gpu_num_weight_types(void) {
    return gpu_test_info().sm < MIN_F8_SM ? 4 : 6;
}

struct gpu_weight_type gpu_weight_type_uncut(const struct gpu_weight_type *type) {
    struct gpu_weight_type t = *type;
    t.block_col0 = 0;
    return t;
}

/* Where in the scales the one of an element stands. */
static int64_t scale_index(const struct gpu_weight_type *type, int32_t row, int32_t col,
                           int32_t cols) {
    int32_t blocks = (type->block_col0 + cols + SCALE_BLOCK_SIZE - 1) / SCALE_BLOCK_SIZE;
    if (type->scale == SCALE_ROW)
        return row;
    return (int64_t)(row / FRAGMENT_ROWS) * blocks + (type->block_col0 + col) / SCALE_BLOCK_SIZE;
}

static int64_t num_scales(const struct gpu_matrix *m) {
    return m->type.scale == SCALE_NONE
               ? 0
               : scale_index(&m->type, m->rows - 1, m->cols - 1, m->cols) + 1;
}

/* Elements and scales to the device, the elements in the layout; and their products. */
static void store(struct gpu_matrix *m, enum weight_layout layout) {
    int64_t n = (int64_t)m->rows * m->cols, scales = num_scales(m);
    enum dtype dtype = m->type.dtype;
    uint8_t *bytes = xmalloc((size_t)n * dtype_bytes(dtype));
    m->values = xmalloc((size_t)n * sizeof *m->values);
    for (int64_t i = 0; i < n; i++) {
        dtype_store(dtype, bytes, i, m->elements[i]);
        m->values[i] = m->elements[i];
        if (scales)
            m->values[i] *= m->host_scale[scale_index(&m->type, (int32_t)(i / m->cols),
                                                      (int32_t)(i % m->cols), m->cols)];
    }
    void *source = gpu_upload(bytes, (size_t)n * dtype_bytes(dtype));
    m->data = gpu_alloc(weight_layout_bytes(layout, dtype, m->rows, m->cols));
    weight_layout_launch(m->data, layout, dtype, m->rows, m->cols, 0, m->rows, source, m->cols,
                         gpu_stream());
    if (scales)
        m->scale = gpu_upload(m->host_scale, (size_t)scales * sizeof(float));
    gpu_free(source);
    free(bytes);
}

struct gpu_matrix gpu_matrix_random(struct rng *r, const struct gpu_weight_type *type,
                                    enum weight_layout layout, int32_t rows, int32_t cols) {
    struct gpu_matrix m = {.type = *type, .rows = rows, .cols = cols};
    int64_t n = (int64_t)rows * cols;
    float amplitude = 2 / sqrtf((float)cols);
    m.elements = random_floats(r, n, type->scale == SCALE_NONE ? amplitude : 2);
    if (type->scale == SCALE_NONE)
        round_to_bf16(m.elements, n);
    else
        round_to_e4m3(m.elements, n);
    if (type->scale != SCALE_NONE)
        m.host_scale = random_floats(r, num_scales(&m), amplitude);
    store(&m, layout);
    return m;
}

struct gpu_matrix gpu_matrix_part(const struct gpu_matrix *whole, enum weight_layout layout,
                                  int32_t row0, int32_t rows, int32_t col0, int32_t cols) {
    struct gpu_matrix m = {.type = whole->type, .rows = rows, .cols = cols};
    bool block = m.type.scale == SCALE_BLOCK;
    CHECK(row0 % FRAGMENT_ROWS == 0 && (!block || col0 % FRAGMENT_COLS == 0), "a part at %d, %d",
          row0, col0);
    if (block)
        m.type.block_col0 = (m.type.block_col0 + col0) % SCALE_BLOCK_SIZE;
    m.elements = xmalloc((size_t)rows * (size_t)cols * sizeof *m.elements);
    if (num_scales(&m))
        m.host_scale = xmalloc((size_t)num_scales(&m) * sizeof *m.host_scale);
    for (int32_t i = 0; i < rows; i++)
        for (int32_t c = 0; c < cols; c++) {
            m.elements[(int64_t)i * cols + c] =
                whole->elements[(int64_t)(row0 + i) * whole->cols + col0 + c];
            if (m.host_scale)
                m.host_scale[scale_index(&m.type, i, c, cols)] =
                    whole->host_scale[scale_index(&whole->type, row0 + i, col0 + c, whole->cols)];
        }
    store(&m, layout);
    return m;
}

void gpu_matrix_free(struct gpu_matrix *m) {
    gpu_free(m->data);
    gpu_free(m->scale);
    free(m->values);
    free(m->elements);
    free(m->host_scale);
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

/* ---- FP8 activations ------------------------------------------------------------------------- */

struct gpu_f8_rows gpu_f8_rows_of(float *x, int64_t n, int32_t cols) {
    int64_t stride = f8_stride(cols);
    struct gpu_f8_rows r = {xcalloc((size_t)(n * stride) + 1, 1),
                            xcalloc((size_t)n + 1, sizeof(float))};
    for (int64_t i = 0; i < n; i++) {
        float *row = x + i * cols, largest = 0;
        for (int32_t c = 0; c < cols; c++)
            largest = fmaxf(largest, fabsf(row[c]));
        r.scale[i] = largest > 0 ? largest / 448 : 1;
        for (int32_t c = 0; c < cols; c++) {
            r.codes[i * stride + c] = e4m3_from_f32(row[c] / r.scale[i]);
            row[c] = e4m3_to_f32(r.codes[i * stride + c]) * r.scale[i];
        }
    }
    return r;
}

void gpu_f8_rows_free(struct gpu_f8_rows *r) {
    free(r->codes);
    free(r->scale);
}

/* The most bits, up to 18, such that the device computes 1 + 2^-bits as more than 1: row 0 and
 * column 0 of a product, elements 0 and 1, which lane 0 holds. */
static int f8_bits(void) {
    int found = 0;
    for (int bits = 1; bits <= 18; bits++) {
        int i = bits < 9 ? bits : 9;
        uint32_t a[32 * 4] = {0}, b[32 * 2] = {0};
        float c[32 * 4] = {0};
        a[0] = e4m3_from_f32(1) | (uint32_t)e4m3_from_f32(ldexpf(1, -i)) << 8;
        b[0] = e4m3_from_f32(1) | (uint32_t)e4m3_from_f32(ldexpf(1, i - bits)) << 8;
        uint32_t *da = gpu_upload(a, sizeof a), *db = gpu_upload(b, sizeof b);
        float *dc = gpu_upload(c, sizeof c);
        ptx_mma_e4m3(dc, da, db, dc, gpu_stream());
        gpu_download(c, dc, sizeof c);
        if (c[0] > 1)
            found = bits;
        gpu_free(da);
        gpu_free(db);
        gpu_free(dc);
    }
    return found;
}

double gpu_sum_error(const struct gpu_weight_type *type) {
    static int bits;
    if (!type->xq)
        return 0x1p-16;
    if (bits == 0)
        bits = f8_bits();
    return bits < 18 ? ldexp(8, -bits) : 0x1p-16;
}
