#include "tests/ops_fixture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/cpu/cpu_backend.h"
#include "host/mem.h"

/* ---- variants -------------------------------------------------------------------------------- */

/* Absent where SIMDe is not installed. */
extern const struct cpu_kernels kernels_avx512_simde __attribute__((weak));
extern const struct cpu_kernels kernels_avx512bf16_simde __attribute__((weak));

static int create_avx512_simde(const struct backend_config *config, struct backend **out,
                               struct error *error) {
    return cpu_create(&kernels_avx512_simde, config, out, error);
}

static int create_avx512bf16_simde(const struct backend_config *config, struct backend **out,
                                   struct error *error) {
    return cpu_create(&kernels_avx512bf16_simde, config, out, error);
}

const struct variant *variants(int *n) {
    static struct variant all[8];
    static struct ops simde[2];
    static int count;
    static const char *const native[] = {"avx2", "avx512", "avx512bf16"};
    for (int i = 0; count == 0 && i < 3; i++) {
        const struct ops *ops = cpu_ops(native[i], NULL);
        if (ops)
            all[count++] = (struct variant){ops, i == 2, true};
    }
    if (count > 0 && !simde[0].name && &kernels_avx512_simde && &kernels_avx512bf16_simde) {
        simde[0] = cpu_table(&kernels_avx512_simde);
        simde[0].create = create_avx512_simde;
        simde[1] = cpu_table(&kernels_avx512bf16_simde);
        simde[1].create = create_avx512bf16_simde;
        all[count++] = (struct variant){&simde[0], false, true};
        all[count++] = (struct variant){&simde[1], true, true};
    }
    *n = count;
    return all;
}

/* ---- random numbers -------------------------------------------------------------------------- */

uint64_t ops_test_seed(void) {
    const char *s = getenv("OPS_TEST_SEED");
    return s ? strtoull(s, NULL, 10) : 20240601;
}

struct rng rng_seeded(uint64_t salt) {
    return (struct rng){ops_test_seed() * 0x9e3779b97f4a7c15u + salt * 0xbf58476d1ce4e5b9u};
}

uint32_t rng_next(struct rng *r) { /* splitmix64 */
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}

int32_t rng_below(struct rng *r, int32_t n) {
    return (int32_t)(rng_next(r) % (uint32_t)n);
}

float rng_float(struct rng *r) {
    return (float)((int32_t)rng_next(r) >> 8) * 0x1p-23f;
}

void rng_fill(struct rng *r, float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        x[i] = rng_float(r);
}

/* ---- memory ---------------------------------------------------------------------------------- */

enum { GUARD = 64 };

struct guard {
    size_t bytes;
    unsigned char canary[GUARD - sizeof(size_t)];
};

static unsigned char canary_byte(size_t i) {
    return (unsigned char)(0xa5 ^ i * 37);
}

void *guarded_alloc(size_t bytes) {
    unsigned char *p = xmalloc(bytes + 2 * GUARD);
    struct guard *g = (struct guard *)(void *)p;
    uint32_t poison = 0x7fc0dead; /* a NaN as float, and as the upper half of a double */
    g->bytes = bytes;
    for (size_t i = 0; i < sizeof g->canary; i++)
        g->canary[i] = canary_byte(i);
    for (size_t i = 0; i < bytes; i++)
        p[GUARD + i] = (unsigned char)(poison >> 8 * (i % 4));
    for (size_t i = 0; i < GUARD; i++)
        p[GUARD + bytes + i] = canary_byte(i);
    return p + GUARD;
}

bool guarded_intact(const void *q) {
    const unsigned char *p = (const unsigned char *)q - GUARD;
    const struct guard *g = (const struct guard *)(const void *)p;
    bool ok = true;
    for (size_t i = 0; i < sizeof g->canary; i++)
        ok &= g->canary[i] == canary_byte(i);
    for (size_t i = 0; i < GUARD; i++)
        ok &= p[GUARD + g->bytes + i] == canary_byte(i);
    return ok;
}

void guarded_free(void *p) {
    if (!p)
        return;
    EXPECT_TRUE(guarded_intact(p));
    free((unsigned char *)p - GUARD);
}

float *guarded_floats(int64_t n) {
    return guarded_alloc((size_t)n * sizeof(float));
}

double *guarded_doubles(int64_t n) {
    return guarded_alloc((size_t)n * sizeof(double));
}

/* ---- matrices -------------------------------------------------------------------------------- */

/* Scales for the source's rows or blocks, about as large as the one that it has. */
static float *random_scales(struct rng *r, const struct tensor_source *t) {
    int64_t n = t->rows;
    if (t->scaling == FP8_BLOCK)
        n = (int64_t)((t->rows + 127) / 128) * ((t->cols + 127) / 128);
    float *scales = xmalloc((size_t)n * sizeof *scales);
    for (int64_t i = 0; i < n; i++)
        scales[i] = t->scale * (1.5f + rng_float(r));
    return scales;
}

struct matrix matrix_random(struct rng *r, enum dtype dtype, int32_t rows, int32_t cols) {
    return matrix_scaled(r, dtype, FP8_TENSOR, rows, cols);
}

struct matrix matrix_scaled(struct rng *r, enum dtype dtype, enum fp8_scaling scaling, int32_t rows,
                            int32_t cols) {
    int64_t n = (int64_t)rows * cols;
    float amplitude = 1 / sqrtf((float)(cols ? cols : 1));
    struct matrix m = {.data = xmalloc((size_t)n * dtype_bytes(dtype)),
                       .values = xmalloc((size_t)n * sizeof(float))};
    m.source = (struct tensor_source){
        .data = m.data, .dtype = dtype, .rows = rows, .cols = cols, .scale = 1, .name = "random"};
    if (dtype == DTYPE_F8_E4M3)
        m.source.scale = amplitude / 300;
    for (int64_t i = 0; i < n; i++) {
        float f = rng_float(r) * amplitude / m.source.scale;
        if (rng_below(r, 16) == 0)
            f *= 0x1p-10f; /* some small ones: subnormals of E4M3 */
        dtype_store(dtype, m.data, i, f);
        m.values[i] = dtype_load(dtype, m.data, i);
    }
    if (dtype == DTYPE_F8_E4M3 && scaling != FP8_TENSOR) {
        m.source.scaling = scaling;
        m.scales = random_scales(r, &m.source);
        m.source.scales = m.scales;
        m.source.scales_dtype = DTYPE_F32;
    }
    return m;
}

void matrix_free(struct matrix *m) {
    free(m->data);
    free(m->values);
    free(m->scales);
    *m = (struct matrix){0};
}

struct stored store_matrix(const struct ops *ops, const struct matrix *m, int32_t row0,
                           int32_t rows, int32_t col0, int32_t cols) {
    struct stored s;
    const struct weight_shape shape = {
        .dtype = m->source.dtype,
        .rows = rows,
        .cols = cols,
        .scaling = m->source.scaling,
        .block_col0 = col0 % FP8_BLOCK_SIZE,
    };
    size_t bytes = ops->weight_bytes(&shape);
    int32_t half = rows / 3;
    s.memory = xmalloc(bytes + 64 + 64);
    memset(s.memory, 0xff, bytes + 64 + 64); /* NaNs in whatever the layout pads */
    void *aligned = (void *)(((uintptr_t)s.memory + 63) / 64 * 64);
    ops->weight_init(NULL, &s.w, &shape, aligned);
    struct tensor_slice a = {&m->source, row0, half, col0, cols};
    struct tensor_slice b = {&m->source, row0 + half, rows - half, col0, cols};
    ops->weight_put(NULL, &s.w, 0, &a);
    ops->weight_put(NULL, &s.w, half, &b);
    return s;
}

struct stored store_all(const struct ops *ops, const struct matrix *m) {
    return store_matrix(ops, m, 0, m->source.rows, 0, m->source.cols);
}

void stored_free(struct stored *s) {
    free(s->memory);
    *s = (struct stored){0};
}

/* ---- backends -------------------------------------------------------------------------------- */

struct backend_config test_config(int32_t threads) {
    static const int32_t kv_head[36]; /* every query head reads KV head 0 */
    return (struct backend_config){
        .max_tokens = 300,
        .max_seqs = 40,
        .max_model_len = 2048,
        .hidden_size = 96,
        .max_intermediate = 300,
        .max_matmul_cols = 640,
        .num_experts = 16,
        .num_experts_per_tok = 16,
        .num_heads = 36,
        .num_kv_heads = 36,
        .head_dim = 128,
        .kv_head = kv_head,
        .threads = threads,
    };
}

struct backend *test_backend(const struct ops *ops, const struct backend_config *config) {
    struct backend *b = NULL;
    struct error error = {0};
    int rc = ops->create(config, &b, &error);
    CHECK(rc == 0, "%s: %s", ops->name, error.text);
    return b;
}

/* ---- comparisons ----------------------------------------------------------------------------- */

bool close_doubles(const char *what, const double *a, const double *b, int64_t n,
                   const float *limits, float limit) {
    for (int64_t i = 0; i < n; i++) {
        float allowed = limits ? limits[i] * limit : limit;
        if (!(fabs(a[i] - b[i]) <= (double)allowed)) {
            FAIL("%s: element %lld is %.9g, should be %.9g; off by %.3g, allowed %.3g (seed %llu)",
                 what, (long long)i, a[i], b[i], fabs(a[i] - b[i]), (double)allowed,
                 (unsigned long long)ops_test_seed());
            return false;
        }
    }
    return true;
}

bool close_floats(const char *what, const float *a, const float *b, int64_t n, const float *limits,
                  float limit) {
    for (int64_t i = 0; i < n; i++) {
        double x = (double)a[i], y = (double)b[i];
        float one = limits ? limits[i] : 1;
        char where[192];
        if (fabs(x - y) <= (double)(one * limit))
            continue;
        snprintf(where, sizeof where, "%s at %lld", what, (long long)i);
        return close_doubles(where, &x, &y, 1, &one, limit);
    }
    return true;
}

bool same_bits(const char *what, const void *a, const void *b, size_t bytes) {
    const unsigned char *x = a, *y = b;
    for (size_t i = 0; i < bytes; i++)
        if (x[i] != y[i]) {
            FAIL("%s: bits differ at byte %zu of %zu (seed %llu)", what, i, bytes,
                 (unsigned long long)ops_test_seed());
            return false;
        }
    return true;
}

float *dot_magnitudes(const float *x, int64_t ldx, int32_t num_tokens, const struct matrix *m,
                      float floor) {
    int32_t rows = m->source.rows, cols = m->source.cols;
    float *out = xmalloc((size_t)num_tokens * (size_t)rows * sizeof *out);
    for (int32_t t = 0; t < num_tokens; t++)
        for (int32_t r = 0; r < rows; r++) {
            float sum = 0;
            for (int32_t c = 0; c < cols; c++)
                sum += fabsf(x[t * ldx + c] * m->values[(int64_t)r * cols + c]) *
                       tensor_source_scale(&m->source, r, c);
            out[(int64_t)t * rows + r] = sum + floor;
        }
    return out;
}

float dot_tolerance(const struct variant *v, enum dtype dtype) {
    return v->rounds && dtype == DTYPE_BF16 ? 0x1p-8f : 0x1p-20f;
}
