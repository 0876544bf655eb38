/* The ways of a dense product against each other and against sums in float64, which one is chosen,
 * and products within CUDA graphs. (test_cuda_dense.c has the streaming kernel alone.) */
#include "cuda/cuda_gemm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "tests/gpu_weights.h"

enum { GAP = 3, MAX_T = 250 }; /* elements between rows of y, which nothing may write */

/* An RTX 4090. */
static const struct gpu_info ADA = {
    .sm = 89, .num_sms = 128, .shared_per_block = 99 << 10, .l2_bytes = 72 << 20};

struct rig {
    struct gemm *gemm;
    void *workspace;
    const struct gpu_weight_type *type;
    struct gpu_matrix w;
    int32_t T;
    float *x; /* [T, cols] */
    float *bias, *device_bias;
    struct dense_args args; /* y is set by run */
};

static struct rig rig_init(uint64_t salt, const struct gpu_weight_type *type,
                           enum weight_layout layout, int32_t rows, int32_t cols, int32_t T) {
    struct rng r = rng_seeded(salt);
    struct rig rig = {.type = type, .T = T, .workspace = gpu_alloc(GEMM_WORKSPACE_BYTES)};
    rig.gemm = gemm_create(rig.workspace);
    rig.w = gpu_matrix_random(&r, type, layout, rows, cols);
    rig.x = random_floats(&r, (int64_t)T * cols, 2);
    round_to_bf16(rig.x, (int64_t)T * cols);
    rig.bias = random_floats(&r, rows, 1);
    rig.device_bias = gpu_upload(rig.bias, (size_t)rows * sizeof(float));
    rig.args = (struct dense_args){
        .x = gpu_upload_bf16(rig.x, (int64_t)T * cols),
        .ldx = cols,
        .ldy = rows + GAP,
        .weight = rig.w.data,
        .layout = layout,
        .dtype = type->dtype,
        .weight_scale = rig.w.scale,
        .scale = type->scale,
        .block_col0 = type->block_col0,
        .rows = rows,
        .cols = cols,
        .gpu = gpu_test_info(),
    };
    if (type->xq) {
        struct gpu_f8_rows rows8 = gpu_f8_rows_of(rig.x, T, cols);
        rig.args.xq = gpu_upload(rows8.codes, (size_t)(T * f8_stride(cols)));
        rig.args.xq_scale = gpu_upload(rows8.scale, (size_t)T * sizeof(float));
        gpu_f8_rows_free(&rows8);
    }
    return rig;
}

static void rig_deinit(struct rig *r) {
    gemm_destroy(r->gemm);
    gpu_free(r->workspace);
    gpu_matrix_free(&r->w);
    gpu_free((void *)r->args.x);
    gpu_free((void *)r->args.xq);
    gpu_free((void *)r->args.xq_scale);
    gpu_free(r->device_bias);
    free(r->x);
    free(r->bias);
}

enum { CHOSEN = -1 };

/* y [T, ldy] as floats, fetched, of T tokens by a way or by the one that is chosen. NULL when it is
 * refused. y begins `shift` elements after an aligned address. */
static float *run_shifted(struct rig *r, int path, int32_t T, bool y_float, bool bias,
                          int32_t shift) {
    struct dense_args a = r->args;
    int64_t n = T * a.ldy + shift;
    size_t size = y_float ? sizeof(float) : sizeof(bf16);
    char *y = gpu_alloc((size_t)n * size);
    float *got = NULL;
    a.y = y + (size_t)shift * size;
    a.y_float = y_float;
    a.bias = bias ? r->device_bias : NULL;
    a.num_tokens = T;
    bool ran = true;
    if (path == CHOSEN)
        gemm_launch(r->gemm, &a, gpu_stream());
    else
        ran = gemm_launch_by(r->gemm, (enum gemm_path)path, &a, gpu_stream());
    if (ran)
        got = y_float ? gpu_fetch(y, (size_t)n * size) : gpu_fetch_bf16((void *)y, n);
    gpu_free(y);
    if (got && shift)
        memmove(got, got + shift, (size_t)(n - shift) * sizeof *got);
    return got;
}

static float *run(struct rig *r, int path, int32_t T, bool y_float, bool bias) {
    return run_shifted(r, path, T, y_float, bias, 0);
}

/* Fails unless every element is what it should be, and the gaps are as they were. */
static void check_values(const struct rig *r, const char *what, const float *y, int32_t T,
                         bool y_float, bool bias) {
    int32_t rows = r->args.rows, ld = rows + GAP;
    double *want = xcalloc((size_t)rows, sizeof *want), *size = xcalloc((size_t)rows, sizeof *size);
    for (int32_t t = 0; t < T && !shim_failed(); t++) {
        gpu_matrix_times(&r->w, r->x + (int64_t)t * r->args.cols, want, size);
        for (int32_t i = 0; i < ld && !shim_failed(); i++) {
            double got = (double)y[(int64_t)t * ld + i];
            if (i >= rows) {
                EXPECT_TRUE(isnan(got)); /* poison */
                continue;
            }
            double right = want[i] + (bias ? (double)r->bias[i] : 0);
            /* bf16 has 8 bits: rounding is half of 2^-7 at most */
            double limit =
                (size[i] + 1) * gpu_sum_error(r->type) + (y_float ? 0 : fabs(right) / 256);
            if (!(fabs(got - right) <= limit))
                FAIL("%s, %s %d x %d: y[%d, %d] is %g, not %g +- %g (seed %llu)", what,
                     r->type->name, rows, r->args.cols, t, i, got, right, limit,
                     (unsigned long long)ops_test_seed());
        }
    }
    free(want);
    free(size);
}

static void check_same(const struct rig *r, const char *what, const float *a, const float *b,
                       int32_t T) {
    if (memcmp(a, b, (size_t)(T * r->args.ldy) * sizeof *a) != 0)
        FAIL("%s: %s %d x %d, %d tokens: other bits", what, r->type->name, r->args.rows,
             r->args.cols, T);
}

/* ---- values ---------------------------------------------------------------------------------- */

/* Columns that end within a tile of 32, rows that no tile divides. */
static const int32_t shapes[][2] = {{1, 8}, {50, 48}, {130, 264}, {170, 616}};
enum { NUM_SHAPES = sizeof shapes / sizeof *shapes };

TEST(CudaGemm, LibraryAgreesWithSumsInFloat64) {
    GPU_OR_SKIP();
    static const int32_t tokens[] = {1, 7, 65, 130};
    for (int s = 0; s < NUM_SHAPES; s++) {
        struct rig r = rig_init(400 + (uint64_t)s, &gpu_weight_types[0], LAYOUT_ROWS, shapes[s][0],
                                shapes[s][1], 130);
        for (int i = 0; i < 4; i++)
            for (int y_float = 0; y_float < 2; y_float++) {
                float *y = run(&r, GEMM_LIBRARY, tokens[i], y_float, false);
                ASSERT_TRUE(y != NULL);
                check_values(&r, "library", y, tokens[i], y_float, false);
                free(y);
            }
        rig_deinit(&r);
    }
}

/* Tiles of 64 tokens with many SMs, of 128 with one, in both layouts. */
TEST(CudaGemm, TilesGiveTheBitsOfTheStreamingKernel) {
    GPU_OR_SKIP();
    static const int32_t tokens[] = {0, 1, 63, 65, 127, MAX_T};
    bool seen[2] = {false, false};
    for (int k = 0; k <= gpu_num_weight_types(); k++)
        for (int s = 0; s < NUM_SHAPES; s++) {
            bool fragments = k > 0; /* BF16 comes in both layouts */
            struct rig r = rig_init(500 + (uint64_t)s, &gpu_weight_types[k > 0 ? k - 1 : 0],
                                    fragments ? LAYOUT_FRAGMENTS : LAYOUT_ROWS, shapes[s][0],
                                    shapes[s][1], MAX_T);
            for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
                bool y_float = (i + (size_t)s) % 2, bias = i % 4 < 2;
                float *want = run(&r, GEMM_STREAM, tokens[i], y_float, bias);
                int32_t num_sms = r.args.gpu.num_sms;
                for (int wide = 0; wide < 2; wide++) {
                    r.args.gpu.num_sms = wide ? 1 : 128;
                    r.args.num_tokens = tokens[i];
                    seen[dense_tile_tokens(&r.args) == 128] = true;
                    float *y = run(&r, GEMM_TILE, tokens[i], y_float, bias);
                    check_same(&r, "tiles", y, want, tokens[i]);
                    free(y);
                }
                r.args.gpu.num_sms = num_sms;
                free(want);
            }
            rig_deinit(&r);
        }
    EXPECT_TRUE(seen[0] && seen[1]);
}

/* Tokens from which on the library is chosen for the rig's matrix. */
static int32_t library_tokens(const struct rig *r) {
    struct dense_args a = r->args;
    a.num_tokens = 1;
    while (a.num_tokens < 1 << 16 && gemm_choose(&a) != GEMM_LIBRARY)
        a.num_tokens++;
    return a.num_tokens;
}

/* On either side of where the chosen way changes, and with a bias or invariance, which forbid the
 * library. */
TEST(CudaGemm, BothSidesOfTheCrossoversAreRight) {
    GPU_OR_SKIP();
    enum { ROWS = 130, COLS = 264, MOST = 4096 };
    struct gpu_info gpu = gpu_test_info();
    struct rig r = rig_init(600, &gpu_weight_types[0], LAYOUT_ROWS, ROWS, COLS, MOST);
    int32_t own = gemm_crossover_tokens(&gpu, DTYPE_BF16, ROWS, COLS), library = library_tokens(&r);
    const int32_t tokens[] = {own - 1, own, library - 1, library};
    bool asked = false;
    ASSERT_TRUE(own > 1 && own <= library && library <= MOST);
    for (int i = 0; i < 4; i++) {
        float *y = run(&r, CHOSEN, tokens[i], false, false);
        check_values(&r, "chosen", y, tokens[i], false, false);
        free(y);
        asked |= tokens[i] >= library;
        EXPECT_INT_EQ(gemm_num_shapes(r.gemm), asked);
    }
    float *y = run(&r, CHOSEN, library, true, true);
    check_values(&r, "with a bias", y, library, true, true);
    free(y);
    r.args.invariant = true;
    y = run(&r, CHOSEN, library, true, false);
    float *streamed = run(&r, GEMM_STREAM, library, true, false);
    check_same(&r, "invariant", y, streamed, library);
    EXPECT_INT_EQ(gemm_num_shapes(r.gemm), 1); /* neither asked the library */
    free(streamed);
    free(y);
    rig_deinit(&r);
}

/* ---- choice ---------------------------------------------------------------------------------- */

static struct dense_args product_of(const struct gpu_info *gpu, enum dtype dtype, int32_t rows,
                                    int32_t cols, int32_t T) {
    bool f8 = dtype == DTYPE_F8_E4M3;
    return (struct dense_args){
        .ldx = cols,
        .ldy = rows,
        .layout = f8 ? LAYOUT_FRAGMENTS : LAYOUT_ROWS,
        .dtype = dtype,
        .scale = f8 ? SCALE_ROW : SCALE_NONE,
        .rows = rows,
        .cols = cols,
        .num_tokens = T,
        .gpu = *gpu,
    };
}

TEST(CudaGemm, FewTokensAreStreamedAndManyGoToTheLibraryOrToTiles) {
    struct dense_args a = product_of(&ADA, DTYPE_BF16, 8192, 4608, 1);
    int32_t T = gemm_crossover_tokens(&ADA, DTYPE_BF16, 8192, 4608);
    EXPECT_TRUE(T > 64 && T <= 80); /* a second pass over the weights is what streaming loses by */
    a.num_tokens = T - 1;
    EXPECT_INT_EQ(gemm_choose(&a), GEMM_STREAM);
    a.num_tokens = 2048;
    EXPECT_INT_EQ(gemm_choose(&a), GEMM_LIBRARY);
    a = product_of(&ADA, DTYPE_F8_E4M3, 8192, 4608, 2048);
    EXPECT_INT_EQ(gemm_choose(&a), GEMM_TILE);
    a.num_tokens = 16;
    EXPECT_INT_EQ(gemm_choose(&a), GEMM_STREAM);
}

TEST(CudaGemm, TheLibraryIsNotTakenForWhatItCannotOrMayNotDo) {
    float bias;
    const struct dense_args a = product_of(&ADA, DTYPE_BF16, 8192, 4608, 2048);
    struct dense_args b = a;
    b.invariant = true;
    EXPECT_INT_EQ(gemm_choose(&b), GEMM_TILE);
    b = a;
    b.bias = &bias;
    EXPECT_INT_EQ(gemm_choose(&b), GEMM_TILE);
    b = a;
    b.layout = LAYOUT_FRAGMENTS;
    EXPECT_INT_EQ(gemm_choose(&b), GEMM_TILE);
    b = a;
    b.ldx = 4609; /* rows of x are not aligned to 16 bytes */
    EXPECT_INT_EQ(gemm_choose(&b), GEMM_STREAM);
    b = a;
    b.cols = 4604; /* and these end within 16 bytes */
    EXPECT_INT_EQ(gemm_choose(&b), GEMM_STREAM);
}

TEST(CudaGemm, NewerGpusOfAFamilyAreModelledAsTheLastKnown) {
    struct gpu_info known = {.sm = 120, .num_sms = 170, .l2_bytes = 96 << 20}, newer = known;
    newer.sm = 121;
    struct dense_args a = product_of(&known, DTYPE_BF16, 4096, 4096, 64);
    struct dense_args b = product_of(&newer, DTYPE_BF16, 4096, 4096, 64);
    for (int path = GEMM_STREAM; path <= GEMM_LIBRARY; path++) {
        EXPECT_TRUE(gemm_cost_us((enum gemm_path)path, &a) > 0);
        EXPECT_TRUE(gemm_cost_us((enum gemm_path)path, &a) ==
                    gemm_cost_us((enum gemm_path)path, &b));
    }
}

TEST(CudaGemm, AWayThatDoesNotTakeAProductSaysSo) {
    GPU_OR_SKIP();
    struct rig r = rig_init(700, &gpu_weight_types[1], LAYOUT_FRAGMENTS, 33, 72, 5);
    EXPECT_TRUE(run(&r, GEMM_LIBRARY, 5, true, false) == NULL);
    rig_deinit(&r);
    r = rig_init(700, &gpu_weight_types[1], LAYOUT_FRAGMENTS, 33, 70, 5);
    EXPECT_TRUE(run(&r, GEMM_TILE, 5, true, false) == NULL);
    rig_deinit(&r);
}

/* ---- algorithms ------------------------------------------------------------------------------ */

/* 65 to 80 tokens are one bucket. Another output type, alignment or stride is another shape. */
TEST(CudaGemm, TheLibraryIsAskedOnceAShape) {
    GPU_OR_SKIP();
    struct rig r = rig_init(800, &gpu_weight_types[0], LAYOUT_ROWS, 40, 48, 81);
    const struct {
        int32_t T, ldy, shift;
        bool y_float;
        int32_t shapes; /* known afterwards */
    } runs[] = {
        {65, 48, 0, true, 1},  {80, 48, 0, true, 1},  {81, 48, 0, true, 2}, {80, 48, 1, true, 3},
        {70, 48, 0, false, 4}, {70, 43, 0, false, 5}, {65, 48, 2, true, 6}, {66, 48, 1, true, 6},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        r.args.ldy = runs[i].ldy;
        float *y = run_shifted(&r, GEMM_LIBRARY, runs[i].T, runs[i].y_float, false, runs[i].shift);
        EXPECT_INT_EQ(gemm_num_shapes(r.gemm), runs[i].shapes);
        double *want = xcalloc(40, sizeof *want), *size = xcalloc(40, sizeof *size);
        gpu_matrix_times(&r.w, r.x + (runs[i].T - 1) * 48, want, size);
        EXPECT_NEAR(y[(runs[i].T - 1) * runs[i].ldy + 39], want[39],
                    fabs(want[39]) / 256 + size[39] * gpu_sum_error(r.type));
        free(want);
        free(size);
        free(y);
    }
    rig_deinit(&r);
}

/* ---- graphs ---------------------------------------------------------------------------------- */

static cudaGraphExec_t record(struct rig *r, enum gemm_path path) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA_CHECK(cudaStreamBeginCapture(gpu_stream(), cudaStreamCaptureModeThreadLocal));
    EXPECT_TRUE(gemm_launch_by(r->gemm, path, &r->args, gpu_stream()));
    CUDA_CHECK(cudaStreamEndCapture(gpu_stream(), &graph));
    CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
    return exec;
}

/* A graph is recorded after a first run, and computes with what lies in x when it is launched. */
TEST(CudaGemm, RecordedProductsReadXWhenTheyRun) {
    GPU_OR_SKIP();
    enum { ROWS = 56, COLS = 104, T = 96 };
    for (int path = GEMM_STREAM; path <= GEMM_LIBRARY; path++) {
        struct rig r = rig_init(900, &gpu_weight_types[0], LAYOUT_ROWS, ROWS, COLS, T);
        size_t bytes = (size_t)(T * r.args.ldy) * sizeof(float);
        r.args.num_tokens = T;
        r.args.y_float = true;
        r.args.y = gpu_alloc(bytes);
        EXPECT_TRUE(gemm_launch_by(r.gemm, (enum gemm_path)path, &r.args, gpu_stream()));
        cudaGraphExec_t exec = record(&r, (enum gemm_path)path);
        for (int again = 0; again < 2; again++) {
            bf16 *x = xmalloc(T * COLS * sizeof *x);
            for (int32_t i = 0; i < T * COLS; i++)
                r.x[i] = (float)((i * 7 + again * 5) % 17 - 8);
            bf16_from_floats(x, r.x, T * COLS);
            gpu_write((void *)r.args.x, x, T * COLS * sizeof *x);
            CUDA_CHECK(cudaMemsetAsync(r.args.y, 0xff, bytes, gpu_stream()));
            CUDA_CHECK(cudaGraphLaunch(exec, gpu_stream()));
            float *y = gpu_fetch(r.args.y, bytes);
            check_values(&r, "recorded", y, T, true, false);
            free(y);
            free(x);
        }
        CUDA_CHECK(cudaGraphExecDestroy(exec));
        gpu_free(r.args.y);
        rig_deinit(&r);
    }
}
