/* ops_fixture: what the tests of the op table share: the fillings to test, random matrices, guarded
 * buffers, comparisons.
 *
 * Every filling that can run here is a variant: the native cpu tables, and the AVX-512 kernels
 * through SIMDe, which run on any machine. All are compared with ref. Random numbers come from one
 * seed that failures print; OPS_TEST_SEED sets another.
 */
#pragma once

#include "host/ops.h"
#include "tests/shim.h"

struct variant {
    const struct ops *ops;
    bool rounds;    /* rounds the activations of BF16 weights to BF16 */
    bool same_bits; /* is meant to give the bits of the first variant, when !rounds */
};

/* All variants that can run; *n of them, AVX2 first. */
const struct variant *variants(int *n);

/* ---- random numbers -------------------------------------------------------------------------- */

struct rng {
    uint64_t state;
};

struct rng rng_seeded(uint64_t salt); /* from the seed of the run and the test's own number */
uint64_t ops_test_seed(void);
uint32_t rng_next(struct rng *r);
int32_t rng_below(struct rng *r, int32_t n);
float rng_float(struct rng *r); /* [-1, 1) */
void rng_fill(struct rng *r, float *x, int64_t n);

/* ---- memory ---------------------------------------------------------------------------------- */

/* A buffer poisoned with NaNs, between canaries. guarded_free checks them. */
void *guarded_alloc(size_t bytes);
bool guarded_intact(const void *p);
void guarded_free(void *p);
float *guarded_floats(int64_t n);
double *guarded_doubles(int64_t n);

/* ---- matrices -------------------------------------------------------------------------------- */

/* A random checkpoint tensor and its values as floats (without the scales). */
struct matrix {
    struct tensor_source source;
    void *data;    /* owned */
    float *values; /* owned, [rows, cols] */
    float *scales; /* owned; of rows or blocks, all different */
};

/* Values in about +-1/sqrt(cols) * amplitude, rounded to the dtype; F8 with a scale. */
struct matrix matrix_random(struct rng *r, enum dtype dtype, int32_t rows, int32_t cols);
/* The same; F8 with scales as told. */
struct matrix matrix_scaled(struct rng *r, enum dtype dtype, enum fp8_scaling scaling, int32_t rows,
                            int32_t cols);
void matrix_free(struct matrix *m);

struct stored {
    struct weight w;
    void *memory;
};

/* Rows and columns of a matrix in a filling's layout, put there in two slices. */
struct stored store_matrix(const struct ops *ops, const struct matrix *m, int32_t row0,
                           int32_t rows, int32_t col0, int32_t cols);
struct stored store_all(const struct ops *ops, const struct matrix *m);
void stored_free(struct stored *s);

/* ---- backends -------------------------------------------------------------------------------- */

/* Room for the tests' shapes. */
struct backend_config test_config(int32_t threads);
/* CHECKs that it was created. */
struct backend *test_backend(const struct ops *ops, const struct backend_config *config);

/* ---- comparisons ----------------------------------------------------------------------------- */

/* |a - b| <= limit[i], or <= limit where limits is NULL; says where and by how much not. */
bool close_floats(const char *what, const float *a, const float *b, int64_t n, const float *limits,
                  float limit);
bool close_doubles(const char *what, const double *a, const double *b, int64_t n,
                   const float *limits, float limit);
bool same_bits(const char *what, const void *a, const void *b, size_t bytes);

/* sum_c |x[t, c] w[r, c]| scale: what rounding errors of a dot product are relative to. [T, rows]
 */
float *dot_magnitudes(const float *x, int64_t ldx, int32_t num_tokens, const struct matrix *m,
                      float floor);
/* The relative error that a variant's dot products may have: float32 chains of at most 256 terms
 * err by about sqrt(256) / 2 ulp at random, 2^-20 is ample; rounding activations to BF16 costs
 * 2^-9. */
float dot_tolerance(const struct variant *v, enum dtype dtype);
