/* Weights on their way from a checkpoint into the layouts and scale tables of the CUDA backend: any
 * slices that a rank may hold, through the op table, against sums in float64.
 *
 * Slices begin and end at multiples of block_cut within blocks of scales, as ranks cut them; the
 * last rows and columns of a matrix may end anywhere.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/cuda.h"
#include "host/mem.h"
#include "tests/gpu_fixture.h"
#include "tests/gpu_weights.h"
#include "tests/shim.h"

enum { H = 296, I = 300, T = 5 };

static const struct kind {
    enum dtype dtype;
    enum fp8_scaling scaling;
} kinds[] = {{DTYPE_BF16, FP8_TENSOR},
             {DTYPE_F16, FP8_TENSOR},
             {DTYPE_F8_E4M3, FP8_TENSOR},
             {DTYPE_F8_E4M3, FP8_ROW},
             {DTYPE_F8_E4M3, FP8_BLOCK}};
enum { NUM_KINDS = sizeof kinds / sizeof kinds[0] };

static const struct ops *ops;

static struct backend *open_backend(void) {
    static const int32_t gpu0[] = {0};
    struct backend_config config = test_config(1);
    struct error error = {0};
    ops = cuda_ops(gpu0, 1, false, &error);
    CHECK(ops, "%s", error.text);
    config.max_tokens = T;
    config.max_seqs = 1;
    config.hidden_size = H;
    config.max_intermediate = I;
    config.max_logits = 1;
    config.vocab_size = 32;
    config.memory_utilization = 0.9f;
    return test_backend(ops, &config);
}

/* Slices of equal columns, stacked by rows, in device memory. */
static struct weight store(struct backend *b, enum weight_use use, const struct tensor_slice *s,
                           int32_t n) {
    struct weight_shape shape = {.use = use,
                                 .dtype = s->source->dtype,
                                 .cols = s->cols,
                                 .scaling = s->source->scaling,
                                 .block_col0 = s->col0 % FP8_BLOCK_SIZE};
    struct weight w;
    for (int32_t i = 0; i < n; i++)
        shape.rows += s[i].rows;
    size_t bytes = ops->weight_bytes(&shape);
    ops->weight_init(b, &w, &shape, gpu_alloc(bytes));
    for (int32_t i = 0, row = 0; i < n; row += s[i++].rows)
        ops->weight_put(b, &w, row, &s[i]);
    CUDA_CHECK(cudaDeviceSynchronize()); /* uploads have a stream of their own */
    return w;
}

/* y[t, r] of a stack of slices, and the sum of its terms' magnitudes. */
static void expect(const struct tensor_slice *s, int32_t n, const float *x, double *y,
                   double *magnitude) {
    int32_t cols = s->cols;
    for (int32_t t = 0; t < T; t++)
        for (int32_t i = 0; i < n; i++)
            for (int32_t r = 0; r < s[i].rows; r++, y++, magnitude++) {
                *y = *magnitude = 0;
                for (int32_t c = 0; c < cols; c++) {
                    int32_t row = s[i].row0 + r, col = s[i].col0 + c;
                    const struct tensor_source *m = s[i].source;
                    double term = (double)tensor_source_at(m, (int64_t)row * m->cols + col) *
                                  (double)tensor_source_scale(m, row, col) *
                                  (double)x[t * cols + c];
                    *y += term;
                    *magnitude += fabs(term);
                }
            }
}

static float *random_bf16(struct rng *r, int64_t n) {
    float *x = random_floats(r, n, 1);
    round_to_bf16(x, n);
    return x;
}

/* F16 weights are rounded to BF16, 2^-9 each; all others are exact. */
static double error_of(enum dtype dtype) {
    return dtype == DTYPE_F16 ? 1.0 / (1 << 9) : gpu_sum_error(&gpu_weight_types[0]);
}

/* The product of a stack of slices with columns [col0, col0 + cols). */
static void check_stack(struct backend *b, const struct matrix *m, int32_t col0, int32_t cols) {
    struct rng r = rng_seeded(701);
    const struct tensor_slice s[] = {{&m[0].source, 64, 160, col0, cols},
                                     {&m[1].source, 32, 96, col0, cols},
                                     {&m[1].source, 224, 72, col0, cols}};
    enum { ROWS = 160 + 96 + 72 };
    static double want[T * ROWS], magnitude[T * ROWS];
    float *x = random_bf16(&r, T * cols);
    bf16 *device_x = gpu_upload_bf16(x, T * cols);
    float *device_y = gpu_alloc(T * ROWS * sizeof *device_y);
    struct weight w = store(b, WEIGHT_DENSE, s, 3);
    ops->matmul_partial(b, device_y, device_x, cols, &w, 32, T);
    CUDA_CHECK(cudaDeviceSynchronize());
    float *y = gpu_fetch(device_y, T * ROWS * sizeof *y);
    expect(s, 3, x, want, magnitude);
    for (int32_t i = 0; i < T * ROWS; i++)
        if (!(fabs((double)y[i] - want[i]) <= error_of(m->source.dtype) * magnitude[i])) {
            FAIL("%s, scaling %d, columns from %d: row %d of token %d is %g, not %g (seed %llu)",
                 dtype_name(m->source.dtype), (int)m->source.scaling, col0, i % ROWS, i / ROWS,
                 (double)y[i], want[i], (unsigned long long)ops_test_seed());
            break;
        }
    gpu_free(w.data);
    gpu_free(device_x);
    gpu_free(device_y);
    free(x);
    free(y);
}

TEST(CudaWeights, StackedSlicesKeepTheirScales) {
    GPU_OR_SKIP();
    struct rng r = rng_seeded(700);
    struct backend *b = open_backend();
    for (int k = 0; k < NUM_KINDS; k++) {
        struct matrix m[] = {matrix_scaled(&r, kinds[k].dtype, kinds[k].scaling, 290, 296),
                             matrix_scaled(&r, kinds[k].dtype, kinds[k].scaling, 296, 296)};
        check_stack(b, m, 0, 296);
        check_stack(b, m, 96, 200);
        check_stack(b, m, 160, 64);
        matrix_free(&m[0]);
        matrix_free(&m[1]);
    }
    ops->destroy(b);
}

/* One expert that every token visits, columns [col0, col0 + cols) of I, by ref from the same
 * weights and the same rounded x. */
static void expect_ffn(const struct matrix *gate, const struct matrix *up,
                       const struct matrix *down, int32_t col0, int32_t cols, float *x,
                       double *partial) {
    struct backend_config config = test_config(1);
    config.hidden_size = H;
    struct backend *b = test_backend(&ref_ops, &config);
    struct stored s[] = {store_matrix(&ref_ops, gate, col0, cols, 0, H),
                         store_matrix(&ref_ops, up, col0, cols, 0, H),
                         store_matrix(&ref_ops, down, 0, H, col0, cols)};
    const struct expert_weights e = {0, s[0].w, s[1].w, s[2].w};
    ref_ops.moe(b, &(struct moe_args){.num_tokens = T,
                                      .x = x,
                                      .experts = &e,
                                      .num_experts = 1,
                                      .unit = 32,
                                      .partial = partial});
    for (int i = 0; i < 3; i++)
        stored_free(&s[i]);
    ref_ops.destroy(b);
}

static void check_ffn(struct backend *b, const struct matrix *m, int32_t col0, int32_t cols) {
    struct rng r = rng_seeded(711);
    const struct tensor_slice slice[] = {{&m[0].source, col0, cols, 0, H},
                                         {&m[1].source, col0, cols, 0, H},
                                         {&m[2].source, 0, H, col0, cols}};
    static double want[T * H];
    double largest = 0;
    float *x = random_bf16(&r, T * H);
    bf16 *device_x = gpu_upload_bf16(x, T * H);
    float *partial = gpu_alloc(T * H * sizeof *partial);
    struct expert_weights e = {.gate = store(b, WEIGHT_EXPERT, &slice[0], 1),
                               .up = store(b, WEIGHT_EXPERT, &slice[1], 1),
                               .down = store(b, WEIGHT_EXPERT, &slice[2], 1)};
    struct moe_args a = {
        .num_tokens = T, .x = device_x, .experts = &e, .num_experts = 1, .unit = 32};
    a.partial = partial;
    ASSERT_INT_EQ(ops->experts_init(b, &e, 1, &a.table, NULL), 0);
    ops->moe(b, &a);
    CUDA_CHECK(cudaDeviceSynchronize());
    float *got = gpu_fetch(partial, T * H * sizeof *got);
    expect_ffn(&m[0], &m[1], &m[2], col0, cols, x, want);
    for (int32_t i = 0; i < T * H; i++)
        largest = fabs(want[i]) > largest ? fabs(want[i]) : largest;
    /* The activations in between are rounded to bf16, 2^-9 each of up to 300 terms. */
    for (int32_t i = 0; i < T * H; i++)
        if (!(fabs((double)got[i] - want[i]) <= largest / 64)) {
            FAIL("%s, scaling %d, FFN columns from %d: column %d of token %d is %g, not %g",
                 dtype_name(m->source.dtype), (int)m->source.scaling, col0, i % H, i / H,
                 (double)got[i], want[i]);
            break;
        }
    gpu_free(e.gate.data);
    gpu_free(e.up.data);
    gpu_free(e.down.data);
    gpu_free(device_x);
    gpu_free(partial);
    free(got);
    free(x);
}

TEST(CudaWeights, SlicesOfAnFfnKeepTheirScales) {
    GPU_OR_SKIP();
    struct rng r = rng_seeded(710);
    struct backend *b = open_backend();
    for (int k = 0; k < NUM_KINDS; k++) {
        const struct kind *kind = &kinds[k];
        struct matrix m[] = {matrix_scaled(&r, kind->dtype, kind->scaling, I, H),
                             matrix_scaled(&r, kind->dtype, kind->scaling, I, H),
                             matrix_scaled(&r, kind->dtype, kind->scaling, H, I)};
        check_ffn(b, m, 0, I);
        check_ffn(b, m, 96, 96);
        check_ffn(b, m, 192, 108);
        for (int i = 0; i < 3; i++)
            matrix_free(&m[i]);
    }
    ops->destroy(b);
}

/* ---- errors ---------------------------------------------------------------------------------- */

TEST(CudaWeights, SaysThatATableOfExpertsDoesNotFit) {
    GPU_OR_SKIP();
    static struct gpu_hogs hogs;
    struct backend *b = open_backend();
    struct expert_weights e = {0};
    struct error error = {0};
    const void *table = NULL;
    e.gate.dtype = e.up.dtype = e.down.dtype = DTYPE_BF16;
    gpu_take_memory(&hogs, 0);
    EXPECT_INT_EQ(ops->experts_init(b, &e, 1, &table, &error), ERR_NO_MEMORY);
    EXPECT_TRUE(strstr(error.text, "table of 1 experts") != NULL);
    gpu_give_memory(&hogs);
    EXPECT_INT_EQ(ops->experts_init(b, &e, 1, &table, &error), 0);
    ops->destroy(b);
}
