/* dense_launch against sums in float64, and the bits of every batch size and layout. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/mem.h"
#include "tests/gpu_weights.h"

/* A last partial row group, one group, more than one block of 128; columns of one tile and less,
 * not a multiple of 8 (the slow path), of 32, of 128, and more than 8 segments' worth. */
static const int32_t shapes[][2] = {{1, 8}, {16, 32}, {50, 48}, {35, 90}, {76, 264}, {144, 1152}};
static const int32_t token_counts[] = {0, 1, 2, 7, 9, 17, 33, 64};
enum { MAX_T = 70 };

struct dense_case {
    const struct gpu_weight_type *type;
    struct gpu_matrix w, rows_w; /* FRAGMENTS and ROWS, of the same values */
    float *x;                    /* [MAX_T, ldx]; FP8 activations: what they stand for */
    int64_t ldx;
    bf16 *device_x;
    uint8_t *device_xq; /* FP8 activations; NULL without them */
    float *device_xq_scale;
    float *bias, *device_bias;
};

/* y [T, ldy] of rows first .. first + T of x, as floats, fetched. */
static float *run_dense(const struct dense_case *c, enum weight_layout layout, int32_t first,
                        int32_t T, bool y_float, bool bias) {
    const struct gpu_matrix *w = layout == LAYOUT_ROWS ? &c->rows_w : &c->w;
    int64_t ldy = w->rows + 3;
    size_t size = y_float ? sizeof(float) : sizeof(bf16);
    void *y = gpu_alloc((size_t)(T * ldy) * size);
    dense_launch(
        &(struct dense_args){
            .y = y,
            .y_float = y_float,
            .ldy = ldy,
            .x = c->device_x + first * c->ldx,
            .ldx = c->ldx,
            .xq = c->type->xq ? c->device_xq + first * f8_stride(w->cols) : NULL,
            .xq_scale = c->type->xq ? c->device_xq_scale + first : NULL,
            .weight = w->data,
            .layout = layout,
            .dtype = c->type->dtype,
            .weight_scale = w->scale,
            .scale = c->type->scale,
            .block_col0 = c->type->block_col0,
            .rows = w->rows,
            .cols = w->cols,
            .bias = bias ? c->device_bias : NULL,
            .num_tokens = T,
            .invariant = true,
            .gpu = gpu_test_info(),
        },
        gpu_stream());
    float *got = y_float ? gpu_fetch(y, (size_t)(T * ldy) * size) : gpu_fetch_bf16(y, T * ldy);
    gpu_free(y);
    return got;
}

static struct dense_case make_case(uint64_t salt, const struct gpu_weight_type *type, int32_t rows,
                                   int32_t cols, int32_t extra) {
    struct rng r = rng_seeded(salt), again = r;
    struct dense_case c = {.type = type, .ldx = cols + extra};
    c.w = gpu_matrix_random(&again, type, LAYOUT_FRAGMENTS, rows, cols);
    c.rows_w = gpu_matrix_random(&r, type, LAYOUT_ROWS, rows, cols);
    c.x = random_floats(&r, MAX_T * c.ldx, 2);
    round_to_bf16(c.x, MAX_T * c.ldx);
    c.device_x = gpu_upload_bf16(c.x, MAX_T * c.ldx);
    if (type->xq) {
        CHECK(extra == 0, "FP8 activations have a stride of their own");
        struct gpu_f8_rows rows8 = gpu_f8_rows_of(c.x, MAX_T, cols);
        c.device_xq = gpu_upload(rows8.codes, (size_t)(MAX_T * f8_stride(cols)));
        c.device_xq_scale = gpu_upload(rows8.scale, MAX_T * sizeof(float));
        gpu_f8_rows_free(&rows8);
    }
    c.bias = random_floats(&r, rows, 1);
    c.device_bias = gpu_upload(c.bias, (size_t)rows * sizeof(float));
    return c;
}

static void free_case(struct dense_case *c) {
    gpu_matrix_free(&c->w);
    gpu_matrix_free(&c->rows_w);
    gpu_free(c->device_x);
    gpu_free(c->device_xq);
    gpu_free(c->device_xq_scale);
    gpu_free(c->device_bias);
    free(c->x);
    free(c->bias);
}

static void check_values(const struct dense_case *c, const float *y, bool bias, double rounding) {
    int32_t rows = c->w.rows;
    double *want = xcalloc((size_t)rows, sizeof *want), *size = xcalloc((size_t)rows, sizeof *size);
    for (int32_t t = 0; t < MAX_T; t++) {
        gpu_matrix_times(&c->w, c->x + t * c->ldx, want, size);
        for (int32_t i = 0; i < rows; i++) {
            double got = (double)y[t * (rows + 3) + i];
            double right = want[i] + (bias ? (double)c->bias[i] : 0);
            double limit = (size[i] + 1) * gpu_sum_error(c->type) + fabs(right) * rounding;
            if (!(fabs(got - right) <= limit)) {
                FAIL("%s %d x %d: y[%d, %d] is %g, not %g +- %g (seed %llu)", c->type->name, rows,
                     c->w.cols, t, i, got, right, limit, (unsigned long long)ops_test_seed());
                goto out;
            }
        }
    }
out:
    free(want);
    free(size);
}

TEST(CudaDense, AgreesWithSumsInFloat64) {
    GPU_OR_SKIP();
    for (int k = 0; k < gpu_num_weight_types(); k++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            struct dense_case c =
                make_case(100 + s, &gpu_weight_types[k], shapes[s][0], shapes[s][1], 0);
            float *y = run_dense(&c, LAYOUT_FRAGMENTS, 0, MAX_T, true, false);
            check_values(&c, y, false, 0);
            free(y);
            y = run_dense(&c, LAYOUT_FRAGMENTS, 0, MAX_T, false, true);
            check_values(&c, y, true, 1.0 / 256); /* rounded to bf16: half of 2^-8 */
            free(y);
            free_case(&c);
        }
}

/* Rows of both results, each [T, rows + 3], that must be the same bits; gaps must be untouched. */
static void same_rows(const struct dense_case *c, const char *what, const float *a, int32_t first_a,
                      const float *b, int32_t T) {
    int32_t rows = c->w.rows, ld = rows + 3;
    for (int32_t t = 0; t < T; t++) {
        const float *row_a = a + (int64_t)(first_a + t) * ld, *row_b = b + (int64_t)t * ld;
        if (memcmp(row_a, row_b, (size_t)rows * sizeof(float)) != 0)
            return FAIL("%s %d x %d, %s: row %d of %d has other bits", c->type->name, rows,
                        c->w.cols, what, t, T);
        for (int32_t i = rows; i < ld; i++)
            if (f32_bits(row_b[i]) != 0xffffffff)
                return FAIL("%s: row %d is written past its end", what, t);
    }
}

TEST(CudaDense, BitsDependNeitherOnTheBatchNorOnTheLayout) {
    GPU_OR_SKIP();
    for (int k = 0; k < gpu_num_weight_types(); k++)
        for (size_t s = 2; s < sizeof shapes / sizeof *shapes; s++) {
            struct dense_case c =
                make_case(200 + s, &gpu_weight_types[k], shapes[s][0], shapes[s][1], 0);
            float *whole = run_dense(&c, LAYOUT_FRAGMENTS, 0, MAX_T, true, true);
            for (size_t i = 0; i < sizeof token_counts / sizeof *token_counts; i++) {
                int32_t T = token_counts[i], first = MAX_T - T;
                float *y = run_dense(&c, LAYOUT_FRAGMENTS, first, T, true, true);
                same_rows(&c, "batch", whole, first, y, T);
                free(y);
                if (c.type->xq) /* in FRAGMENTS only */
                    continue;
                y = run_dense(&c, LAYOUT_ROWS, first, T, true, true);
                same_rows(&c, "ROWS", whole, first, y, T);
                free(y);
            }
            free(whole);
            free_case(&c);
        }
}

/* The slow path for rows that are not aligned gives the bits of the fast one. */
TEST(CudaDense, BitsDoNotDependOnTheAlignmentOfX) {
    GPU_OR_SKIP();
    for (int k = 0; k < gpu_num_weight_types() && !gpu_weight_types[k].xq; k++) {
        struct dense_case c = make_case(300, &gpu_weight_types[k], 40, 176, 0);
        struct dense_case odd = make_case(300, &gpu_weight_types[k], 40, 176, 3);
        for (int32_t t = 0; t < MAX_T; t++)
            CUDA_CHECK(cudaMemcpyAsync(odd.device_x + t * odd.ldx, c.device_x + t * c.ldx,
                                       176 * sizeof(bf16), cudaMemcpyDeviceToDevice, gpu_stream()));
        float *fast = run_dense(&c, LAYOUT_FRAGMENTS, 0, 19, true, false);
        float *slow = run_dense(&odd, LAYOUT_FRAGMENTS, 0, 19, true, false);
        same_rows(&c, "unaligned x", fast, 0, slow, 19);
        free(slow);
        free(fast);
        free_case(&c);
        free_case(&odd);
    }
}

/* One row of 131,072 columns, all products positive. A sum in 13 bits throughout would lose the
 * last half bit 512 times in each of 8 segments, which is 2^-6 of it or more; chains of 4 mma lose
 * at most 2^-9. */
TEST(CudaDense, LongSumsOfF8ProductsKeepTheirBits) {
    GPU_OR_SKIP();
    F8_OR_SKIP();
    enum { COLS = 131072 };
    struct rng r = rng_seeded(310);
    uint8_t *codes = xmalloc(COLS), *xq = xmalloc(COLS);
    float one = 1, got;
    double want = 0;
    for (int32_t i = 0; i < COLS; i++) {
        codes[i] = e4m3_from_f32(0.5f + 0.25f * (float)rng_below(&r, 3));
        xq[i] = e4m3_from_f32(0.5f + 0.25f * (float)rng_below(&r, 3));
        want += (double)e4m3_to_f32(codes[i]) * (double)e4m3_to_f32(xq[i]);
    }
    void *source = gpu_upload(codes, COLS), *device_xq = gpu_upload(xq, COLS);
    void *data = gpu_alloc(weight_layout_bytes(LAYOUT_FRAGMENTS, DTYPE_F8_E4M3, 1, COLS));
    float *scale = gpu_upload(&one, sizeof one), *y = gpu_alloc(sizeof *y);
    weight_layout_launch(data, LAYOUT_FRAGMENTS, DTYPE_F8_E4M3, 1, COLS, 0, 1, source, COLS,
                         gpu_stream());
    dense_launch(&(struct dense_args){.y = y,
                                      .y_float = true,
                                      .ldy = 1,
                                      .ldx = COLS,
                                      .xq = device_xq,
                                      .xq_scale = scale,
                                      .weight = data,
                                      .layout = LAYOUT_FRAGMENTS,
                                      .dtype = DTYPE_F8_E4M3,
                                      .weight_scale = scale,
                                      .scale = SCALE_ROW,
                                      .rows = 1,
                                      .cols = COLS,
                                      .num_tokens = 1,
                                      .gpu = gpu_test_info()},
                 gpu_stream());
    gpu_download(&got, y, sizeof got);
    EXPECT_NEAR((double)got, want, want * 0x1p-8);
    void *device[] = {source, device_xq, data, scale, y};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        gpu_free(device[i]);
    free(codes);
    free(xq);
}

/* The test above on the PTX machine with sums of 13 bits, as Ada has them: it reads its settings
 * once, hence another process. On a GPU it is the same test again. */
TEST(CudaDense, LongSumsOfF8ProductsKeepTheirBitsIn13Bits) {
    GPU_OR_SKIP();
    F8_OR_SKIP();
    EXPECT_INT_EQ(setenv("PTXVM_FP8_BITS", "13", 1), 0);
    char self[256] = "", command[512];
    EXPECT_TRUE(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    snprintf(command, sizeof command,
             "'%s' --gtest_brief=1 --gtest_filter=CudaDense.LongSumsOfF8ProductsKeepTheirBits "
             "> '%s/long_sums.txt' 2>&1",
             self, shim_scratch_dir());
    if (!EXPECT_INT_EQ(system(command), 0))
        FAIL("%s", command);
    EXPECT_INT_EQ(unsetenv("PTXVM_FP8_BITS"), 0);
}
