/* Matrix products of every cpu variant against ref, at odd and boundary shapes, and their bits. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "tests/ops_fixture.h"

static const int32_t token_counts[] = {0, 1, 2, 5, 7, 16, 33, 129};
static const int32_t shapes[][2] = {{1, 1},    {16, 2},   {17, 33},   {50, 48},
                                    {64, 256}, {65, 257}, {100, 600}, {130, 513}};
static const struct {
    enum dtype dtype;
    enum fp8_scaling scaling;
} kinds[] = {{DTYPE_F32, FP8_TENSOR},     {DTYPE_F16, FP8_TENSOR},  {DTYPE_BF16, FP8_TENSOR},
             {DTYPE_F8_E4M3, FP8_TENSOR}, {DTYPE_F8_E4M3, FP8_ROW}, {DTYPE_F8_E4M3, FP8_BLOCK}};
enum { MAX_T = 129, NUM_T = 8, NUM_SHAPES = 8, NUM_KINDS = sizeof kinds / sizeof kinds[0] };

static struct matrix matrix_of_kind(struct rng *r, size_t kind, int32_t rows, int32_t cols) {
    return matrix_scaled(r, kinds[kind].dtype, kinds[kind].scaling, rows, cols);
}

/* One matrix, its input, and ref's answer. */
struct matmul_case {
    struct matrix m;
    float *x, *bias;
    int64_t ldx;
    float *magnitude;
    float *expected; /* [MAX_T, rows] */
    double *expected_partial;
    int32_t unit;
};

static struct matmul_case make_case(struct rng *r, size_t kind, int32_t rows, int32_t cols,
                                    int32_t unit) {
    struct matmul_case c = {.ldx = cols + 3, .unit = unit};
    struct backend_config config = test_config(1);
    struct backend *ref = test_backend(&ref_ops, &config);
    c.m = matrix_of_kind(r, kind, rows, cols);
    c.x = guarded_floats(MAX_T * c.ldx);
    c.bias = guarded_floats(rows);
    rng_fill(r, c.x, MAX_T * c.ldx);
    rng_fill(r, c.bias, rows);
    c.magnitude = dot_magnitudes(c.x, c.ldx, MAX_T, &c.m, 0.25f); /* + the bias */
    c.expected = guarded_floats((int64_t)MAX_T * rows);
    c.expected_partial = guarded_doubles((int64_t)MAX_T * rows);
    struct stored s = store_all(&ref_ops, &c.m);
    ref_ops.matmul(ref, c.expected, rows, c.x, c.ldx, &s.w, c.bias, MAX_T);
    ref_ops.matmul_partial(ref, c.expected_partial, c.x, c.ldx, &s.w, unit, MAX_T);
    stored_free(&s);
    ref_ops.destroy(ref);
    return c;
}

static void free_case(struct matmul_case *c) {
    matrix_free(&c->m);
    guarded_free(c->x);
    guarded_free(c->bias);
    free(c->magnitude);
    guarded_free(c->expected);
    guarded_free(c->expected_partial);
}

/* All batch sizes of one case: near ref, and the bits of the largest batch. */
static void check_case(const struct variant *v, struct backend *b, const struct matmul_case *c) {
    int32_t rows = c->m.source.rows;
    int64_t ldy = rows + 5;
    struct stored s = store_all(v->ops, &c->m);
    float *whole = guarded_floats((int64_t)MAX_T * rows);
    double *whole_partial = guarded_doubles((int64_t)MAX_T * rows);
    float tolerance = dot_tolerance(v, c->m.source.dtype);
    char what[128];
    snprintf(what, sizeof what, "%s matmul %s scaling %d %dx%d unit %d", v->ops->name,
             dtype_name(c->m.source.dtype), (int)c->m.source.scaling, rows, c->m.source.cols,
             c->unit);
    v->ops->matmul(b, whole, rows, c->x, c->ldx, &s.w, c->bias, MAX_T);
    v->ops->matmul_partial(b, whole_partial, c->x, c->ldx, &s.w, c->unit, MAX_T);
    close_floats(what, whole, c->expected, (int64_t)MAX_T * rows, c->magnitude, tolerance);
    close_doubles(what, whole_partial, c->expected_partial, (int64_t)MAX_T * rows, c->magnitude,
                  tolerance);
    for (int i = 0; i < NUM_T; i++) {
        int32_t T = token_counts[i], first = MAX_T - T; /* another place in the batch */
        float *y = guarded_floats(T * ldy);
        double *partial = guarded_doubles((int64_t)T * rows);
        v->ops->matmul(b, y, ldy, c->x + first * c->ldx, c->ldx, &s.w, c->bias, T);
        v->ops->matmul_partial(b, partial, c->x + first * c->ldx, c->ldx, &s.w, c->unit, T);
        for (int32_t t = 0; t < T; t++) {
            same_bits(what, y + t * ldy, whole + (int64_t)(first + t) * rows,
                      (size_t)rows * sizeof *y);
            uint32_t gap;
            memcpy(&gap, y + t * ldy + rows, sizeof gap);
            EXPECT_INT_EQ(gap, 0x7fc0dead); /* between the rows of y */
        }
        same_bits(what, partial, whole_partial + (int64_t)first * rows,
                  (size_t)T * (size_t)rows * sizeof *partial);
        guarded_free(y);
        guarded_free(partial);
    }
    guarded_free(whole);
    guarded_free(whole_partial);
    stored_free(&s);
}

TEST(OpsMatmul, AllVariantsAgreeWithRefAtAllShapes) {
    static const int32_t units[NUM_SHAPES] = {2, 2, 6, 12, 64, 128, 300, 24};
    struct rng r = rng_seeded(1);
    struct backend_config config = test_config(2);
    int n;
    const struct variant *v = variants(&n);
    for (size_t d = 0; d < NUM_KINDS; d++)
        for (int i = 0; i < NUM_SHAPES; i++) {
            struct matmul_case c = make_case(&r, d, shapes[i][0], shapes[i][1], units[i]);
            for (int k = 0; k < n; k++) {
                struct backend *b = test_backend(v[k].ops, &config);
                check_case(&v[k], b, &c);
                v[k].ops->destroy(b);
            }
            free_case(&c);
        }
}

TEST(OpsMatmul, BatchesAboveOneChunkAreTheSameRows) {
    struct rng r = rng_seeded(2);
    struct backend_config config = test_config(3);
    enum { T = 300, ROWS = 70, COLS = 300 };
    struct matrix m = matrix_random(&r, DTYPE_BF16, ROWS, COLS);
    float *x = guarded_floats(T * COLS);
    rng_fill(&r, x, T * COLS);
    int n;
    const struct variant *v = variants(&n);
    for (int k = 0; k < n; k++) {
        struct backend *b = test_backend(v[k].ops, &config);
        struct stored s = store_all(v[k].ops, &m);
        float *y = guarded_floats(T * ROWS), *one = guarded_floats(ROWS);
        double *p = guarded_doubles(T * ROWS), *p_one = guarded_doubles(ROWS);
        v[k].ops->matmul(b, y, ROWS, x, COLS, &s.w, NULL, T);
        v[k].ops->matmul_partial(b, p, x, COLS, &s.w, 64, T);
        for (int32_t t = 0; t < T; t += 7) {
            v[k].ops->matmul(b, one, ROWS, x + t * COLS, COLS, &s.w, NULL, 1);
            v[k].ops->matmul_partial(b, p_one, x + t * COLS, COLS, &s.w, 64, 1);
            same_bits("row alone", one, y + t * ROWS, ROWS * sizeof *y);
            same_bits("partial row alone", p_one, p + t * ROWS, ROWS * sizeof *p);
        }
        guarded_free(y);
        guarded_free(one);
        guarded_free(p);
        guarded_free(p_one);
        stored_free(&s);
        v[k].ops->destroy(b);
    }
    guarded_free(x);
    matrix_free(&m);
}

/* The bits of a case from one variant with some threads. */
static void run_case(const struct ops *ops, int32_t threads, const struct matmul_case *c, float *y,
                     double *partial) {
    struct backend_config config = test_config(threads);
    struct backend *b = test_backend(ops, &config);
    struct stored s = store_all(ops, &c->m);
    ops->matmul(b, y, c->m.source.rows, c->x, c->ldx, &s.w, c->bias, MAX_T);
    ops->matmul_partial(b, partial, c->x, c->ldx, &s.w, c->unit, MAX_T);
    stored_free(&s);
    ops->destroy(b);
}

TEST(OpsMatmul, ThreadsAndVectorWidthDoNotChangeTheBits) {
    struct rng r = rng_seeded(3);
    int n;
    const struct variant *v = variants(&n);
    for (size_t d = 0; d < NUM_KINDS; d++) {
        struct matmul_case c = make_case(&r, d, 150, 333, 40);
        size_t count = (size_t)MAX_T * 150;
        float *y = guarded_floats((int64_t)count), *first = guarded_floats((int64_t)count);
        double *p = guarded_doubles((int64_t)count), *first_p = guarded_doubles((int64_t)count);
        run_case(v[0].ops, 1, &c, first, first_p);
        for (int k = 0; k < n; k++) {
            run_case(v[k].ops, 3, &c, y, p);
            if (v[k].rounds &&
                kinds[d].dtype == DTYPE_BF16) { /* its own bits, whatever the threads */
                float *alone = guarded_floats((int64_t)count);
                double *alone_p = guarded_doubles((int64_t)count);
                run_case(v[k].ops, 1, &c, alone, alone_p);
                same_bits(v[k].ops->name, y, alone, count * sizeof *y);
                same_bits(v[k].ops->name, p, alone_p, count * sizeof *p);
                guarded_free(alone);
                guarded_free(alone_p);
                continue;
            }
            same_bits(v[k].ops->name, y, first, count * sizeof *y);
            same_bits(v[k].ops->name, p, first_p, count * sizeof *p);
        }
        guarded_free(y);
        guarded_free(first);
        guarded_free(p);
        guarded_free(first_p);
        free_case(&c);
    }
}

/* One matrix whole, and in three column ranges from the last on. */
static void check_column_ranges(const struct variant *v, const struct matrix *m, const float *x,
                                int32_t unit, int32_t T) {
    const int32_t rows = m->source.rows, cols = m->source.cols;
    const int32_t cuts[] = {0, 3 * unit, 8 * unit, cols};
    struct backend_config config = test_config(2);
    struct backend *b = test_backend(v->ops, &config);
    struct stored s = store_all(v->ops, m);
    double *whole = guarded_doubles(T * rows), *sum = guarded_doubles(T * rows);
    double *part = guarded_doubles(T * rows);
    v->ops->matmul_partial(b, whole, x, cols, &s.w, unit, T);
    memset(sum, 0, (size_t)(T * rows) * sizeof *sum);
    for (int i = 2; i >= 0; i--) {
        struct stored p = store_matrix(v->ops, m, 0, rows, cuts[i], cuts[i + 1] - cuts[i]);
        v->ops->matmul_partial(b, part, x + cuts[i], cols, &p.w, unit, T);
        for (int j = 0; j < T * rows; j++)
            sum[j] += part[j];
        stored_free(&p);
    }
    same_bits(v->ops->name, sum, whole, (size_t)(T * rows) * sizeof *sum);
    guarded_free(whole);
    guarded_free(sum);
    guarded_free(part);
    stored_free(&s);
    v->ops->destroy(b);
}

/* Ranks hold column ranges that start at multiples of the unit; their partials may be added in any
 * order and give the bits of the whole. Blocks with scales begin and end within them, and within
 * units. */
TEST(OpsMatmul, PartialsOfColumnRangesAddUpToTheWhole) {
    static const int32_t units[] = {32, 36, 22};
    enum { ROWS = 50, COLS = 500, T = 9 };
    struct rng r = rng_seeded(4);
    int n;
    const struct variant *v = variants(&n);
    for (size_t d = 0; d < NUM_KINDS; d++) {
        struct matrix m = matrix_of_kind(&r, d, ROWS, COLS);
        float *x = guarded_floats(T * COLS);
        rng_fill(&r, x, T * COLS);
        for (int k = 0; k < n; k++)
            for (int u = 0; u < 3; u++)
                check_column_ranges(&v[k], &m, x, units[u], T);
        guarded_free(x);
        matrix_free(&m);
    }
}

/* Rows 37 .. 36 + n of one matrix, then rows 90 .. of another, as one matrix. */
static struct stored stack(const struct ops *ops, const struct matrix *a, const struct matrix *b,
                           int32_t n, int32_t m) {
    const struct weight_shape shape = {.dtype = a->source.dtype,
                                       .rows = n + m,
                                       .cols = a->source.cols,
                                       .scaling = a->source.scaling};
    struct tensor_slice upper = {&a->source, 37, n, 0, shape.cols};
    struct tensor_slice lower = {&b->source, 90, m, 0, shape.cols};
    struct stored s = {.memory = xmalloc(ops->weight_bytes(&shape) + 64)};
    ops->weight_init(NULL, &s.w, &shape, (void *)(((uintptr_t)s.memory + 63) / 64 * 64));
    ops->weight_put(NULL, &s.w, 0, &upper);
    ops->weight_put(NULL, &s.w, n, &lower);
    return s;
}

/* Query, key and value rows of a rank are one matrix; each keeps the scales that it had. */
TEST(OpsMatmul, RowsOfStackedSlicesAreThoseOfTheirMatrices) {
    enum { ROWS = 300, COLS = 200, N = 101, M = 157, T = 5 };
    struct rng r = rng_seeded(7);
    struct backend_config config = test_config(2);
    int n;
    const struct variant *v = variants(&n);
    for (size_t d = 0; d < NUM_KINDS; d++) {
        struct matrix a = matrix_of_kind(&r, d, ROWS, COLS), b = matrix_of_kind(&r, d, ROWS, COLS);
        float *x = guarded_floats(T * COLS), *y = guarded_floats(T * (N + M));
        float *ya = guarded_floats(T * ROWS), *yb = guarded_floats(T * ROWS);
        rng_fill(&r, x, T * COLS);
        for (int k = -1; k < n; k++) {
            const struct ops *ops = k < 0 ? &ref_ops : v[k].ops;
            struct backend *backend = test_backend(ops, &config);
            struct stored sa = store_all(ops, &a), sb = store_all(ops, &b);
            struct stored s = stack(ops, &a, &b, N, M);
            ops->matmul(backend, ya, ROWS, x, COLS, &sa.w, NULL, T);
            ops->matmul(backend, yb, ROWS, x, COLS, &sb.w, NULL, T);
            ops->matmul(backend, y, N + M, x, COLS, &s.w, NULL, T);
            for (int t = 0; t < T; t++) {
                same_bits(ops->name, y + t * (N + M), ya + t * ROWS + 37, N * sizeof *y);
                same_bits(ops->name, y + t * (N + M) + N, yb + t * ROWS + 90, M * sizeof *y);
            }
            stored_free(&sa);
            stored_free(&sb);
            stored_free(&s);
            ops->destroy(backend);
        }
        guarded_free(x);
        guarded_free(y);
        guarded_free(ya);
        guarded_free(yb);
        matrix_free(&a);
        matrix_free(&b);
    }
}

/* A rank without heads has no columns of the output projection, one without a vocabulary share no
 * rows of the head. */
TEST(OpsMatmul, EmptyMatricesWork) {
    struct rng r = rng_seeded(5);
    struct backend_config config = test_config(2);
    config.num_heads = config.num_kv_heads = 0;
    config.max_intermediate = 0;
    struct matrix no_cols = matrix_random(&r, DTYPE_BF16, 20, 0);
    struct matrix no_rows = matrix_random(&r, DTYPE_BF16, 0, 20);
    float x[20] = {0}, y[20];
    double partial[20];
    int n;
    const struct variant *v = variants(&n);
    for (int k = 0; k < n; k++) {
        struct backend *b = test_backend(v[k].ops, &config);
        struct stored a = store_all(v[k].ops, &no_cols), c = store_all(v[k].ops, &no_rows);
        for (int i = 0; i < 20; i++)
            partial[i] = 7;
        v[k].ops->matmul_partial(b, partial, x, 0, &a.w, 64, 1);
        for (int i = 0; i < 20; i++)
            EXPECT_TRUE(partial[i] == 0);
        v[k].ops->matmul(b, y, 20, x, 20, &c.w, NULL, 1);
        v[k].ops->matmul_partial(b, partial, x, 20, &c.w, 64, 1);
        stored_free(&a);
        stored_free(&c);
        v[k].ops->destroy(b);
    }
    matrix_free(&no_cols);
    matrix_free(&no_rows);
}

/* A NaN among FP8 weights shows in its row, and only there. */
TEST(OpsMatmul, ANanWeightIsNotTakenForANumber) {
    enum { ROWS = 37, COLS = 170 };
    struct rng r = rng_seeded(6);
    struct backend_config config = test_config(2);
    float x[3 * COLS], y[3 * ROWS];
    int n;
    const struct variant *v = variants(&n);
    rng_fill(&r, x, 3 * COLS);
    for (int scaling = FP8_TENSOR; scaling <= FP8_BLOCK; scaling++) {
        struct matrix m = matrix_scaled(&r, DTYPE_F8_E4M3, scaling, ROWS, COLS);
        ((unsigned char *)m.data)[20 * COLS + 169] = 0xff;
        for (int k = -1; k < n; k++) {
            const struct ops *ops = k < 0 ? &ref_ops : v[k].ops;
            struct backend *b = test_backend(ops, &config);
            struct stored w = store_all(ops, &m);
            ops->matmul(b, y, ROWS, x, COLS, &w.w, NULL, 3);
            for (int i = 0; i < 3 * ROWS; i++)
                if (isnan(y[i]) != (i % ROWS == 20))
                    FAIL("%s, scaling %d: row %d is %g", ops->name, scaling, i % ROWS,
                         (double)y[i]);
            stored_free(&w);
            ops->destroy(b);
        }
        matrix_free(&m);
    }
}

/* FP8 activations as ref words them. Row 0: the largest element gives the scale 1, 1.03 is nearest
 * to 1, and 0.001 to the smallest subnormal, 2^-9. Row 1 has a scale of its own. */
TEST(OpsMatmul, RefRoundsWhatMeetsFp8Weights) {
    static const float x[] = {448, 1.03f, 0.001f, -56, 0.13f, 0};
    struct backend_config config = test_config(1);
    config.fp8_activations = true;
    struct backend *b = test_backend(&ref_ops, &config);
    for (int k = 0; k < 2; k++) {
        enum dtype dtype = k == 0 ? DTYPE_F8_E4M3 : DTYPE_BF16;
        struct rng r = rng_seeded(7);
        struct matrix m = matrix_random(&r, dtype, 1, 3);
        float y[2];
        double partial[2];
        m.source.scale = 1;
        for (int i = 0; i < 3; i++)
            dtype_store(dtype, m.data, i, 1);
        struct stored w = store_all(&ref_ops, &m);
        ref_ops.matmul(b, y, 1, x, 3, &w.w, NULL, 2);
        ref_ops.matmul_partial(b, partial, x, 3, &w.w, 8, 2);
        EXPECT_NEAR(y[0], k == 0 ? 449 + 0x1p-9 : 449.031f, k == 0 ? 0 : 1e-4);
        EXPECT_NEAR(y[1], k == 0 ? -56 + 1.0 / 8 : -55.87f, k == 0 ? 0 : 1e-4);
        EXPECT_NEAR(partial[0], y[0], 0);
        EXPECT_NEAR(partial[1], y[1], 0);
        stored_free(&w);
        matrix_free(&m);
    }
    ref_ops.destroy(b);
}
