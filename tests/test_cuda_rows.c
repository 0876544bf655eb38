/* The kernels that work on rows: embed, norm and quantise, against plain loops. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/dtype.h"
#include "host/mem.h"
#include "tests/gpu_fixture.h"

/* ---- embed ----------------------------------------------------------------------------------- */

/* Rows of a table, which lies `offset` elements behind a 256-byte boundary. */
static void check_embed(int32_t T, int32_t H, int32_t offset, bool in_host_memory) {
    enum { V = 57 };
    struct rng r = rng_seeded((uint64_t)(T * 100003 + H));
    float *values = random_floats(&r, V * H + offset, 3);
    int32_t *tokens = random_ints(&r, T, V);
    size_t bytes = (size_t)(V * H + offset) * sizeof(bf16);
    bf16 *table, *device_table = NULL, *host_table = NULL;
    round_to_bf16(values, V * H + offset);
    if (in_host_memory) {
        CUDA_CHECK(cudaHostAlloc((void **)&host_table, bytes, cudaHostAllocMapped));
        bf16_from_floats(host_table, values, V * H + offset);
    } else {
        device_table = gpu_upload_bf16(values, V * H + offset);
    }
    table = in_host_memory ? host_table : device_table;
    float *hidden = gpu_alloc((size_t)(T * H) * sizeof *hidden);
    int32_t *device_tokens = gpu_upload(tokens, (size_t)T * sizeof *tokens);
    embed_launch(hidden, table + offset, device_tokens, T, H, gpu_stream());
    float *got = gpu_fetch(hidden, (size_t)(T * H) * sizeof *got);
    for (int32_t t = 0; t < T; t++)
        if (!same_bits("hidden", got + t * H, values + offset + tokens[t] * H,
                       (size_t)H * sizeof *got))
            FAIL("T %d, H %d, offset %d", T, H, offset);
    gpu_free(hidden);
    gpu_free(device_tokens);
    gpu_free(device_table);
    CUDA_CHECK(cudaFreeHost(host_table));
    free(got);
    free(tokens);
    free(values);
}

TEST(CudaEmbed, GathersRows) {
    GPU_OR_SKIP();
    static const int32_t sizes[] = {1, 8, 76, 90, 2048, 2056, 4608}, counts[] = {0, 1, 2, 7, 33};
    for (int h = 0; h < 7; h++)
        for (int t = 0; t < 5; t++)
            check_embed(counts[t], sizes[h], 0, false);
}

TEST(CudaEmbed, ReadsTablesThatAreNotAligned) {
    GPU_OR_SKIP();
    check_embed(7, 2056, 1, false);
    check_embed(7, 2056, 8, false);
}

TEST(CudaEmbed, ReadsATableInHostMemory) {
    GPU_OR_SKIP();
    check_embed(7, 2056, 0, true);
    check_embed(2, 90, 0, true);
}

/* ---- gather ---------------------------------------------------------------------------------- */

/* R rows of T, some of them twice. */
static void check_gather(int32_t R, int32_t H, bool with_partial) {
    enum { T = 13 };
    struct rng r = rng_seeded((uint64_t)(R * 100019 + H));
    float *hidden = random_floats(&r, T * H, 3), *partial = random_floats(&r, T * H, 2);
    int32_t *rows = random_ints(&r, R, T);
    float *want = xmalloc((size_t)(R * H) * sizeof *want);
    for (int32_t i = 0; i < R * H; i++) {
        int32_t from = rows[i / H] * H + i % H;
        want[i] = hidden[from] + (with_partial ? partial[from] : 0);
    }
    float *device[] = {gpu_upload(hidden, (size_t)(T * H) * sizeof *hidden),
                       with_partial ? gpu_upload(partial, (size_t)(T * H) * sizeof *partial) : NULL,
                       gpu_alloc((size_t)(R * H) * sizeof *want)};
    int32_t *device_rows = gpu_upload(rows, (size_t)R * sizeof *rows);
    gather_rows_launch(device[2], device[0], device[1], false, device_rows, R, H, gpu_stream());
    float *got = gpu_fetch(device[2], (size_t)(R * H) * sizeof *got);
    if (!same_bits("out", got, want, (size_t)(R * H) * sizeof *got))
        FAIL("R %d, H %d, partial %d", R, H, with_partial);
    for (int i = 0; i < 3; i++)
        gpu_free(device[i]);
    gpu_free(device_rows);
    free(got);
    free(want);
    free(rows);
    free(partial);
    free(hidden);
}

TEST(CudaGather, AddsWhatIsPartial) {
    GPU_OR_SKIP();
    static const int32_t sizes[] = {1, 76, 255, 1024, 2057}, counts[] = {0, 1, 7};
    for (int h = 0; h < 5; h++)
        for (int n = 0; n < 3; n++) {
            check_gather(counts[n], sizes[h], false);
            check_gather(counts[n], sizes[h], true);
        }
}

/* ---- norm ------------------------------------------------------------------------------------ */

enum { WITH_PARTIAL = 1, WITH_ROWS = 2, WITH_XQ = 4 };

struct norm_case {
    int32_t T, H, N; /* N rows of hidden */
    int flags;
    float *hidden, *partial, *weight; /* [N, H], [N, H], [H] */
    int32_t *rows;                    /* [T] */
};

static struct norm_case norm_case_random(int32_t T, int32_t H, int flags) {
    struct rng r = rng_seeded((uint64_t)(T * 1009 + H * 8 + flags));
    struct norm_case c = {T, H, flags & WITH_ROWS ? T + 3 : T, flags, NULL, NULL, NULL, NULL};
    c.hidden = random_floats(&r, (int64_t)c.N * H, 4);
    c.partial = random_floats(&r, (int64_t)c.N * H, 1);
    c.weight = random_floats(&r, H, 2);
    c.rows = random_ints(&r, T, c.N);
    for (int64_t i = 0; i < (int64_t)c.N * H; i++) /* a wide range, for the subnormals of E4M3 */
        if (rng_below(&r, 4) == 0) {
            c.hidden[i] = ldexpf(c.hidden[i], -rng_below(&r, 24));
            c.partial[i] = 0;
        }
    return c;
}

static void norm_case_free(struct norm_case *c) {
    free(c->hidden);
    free(c->partial);
    free(c->weight);
    free(c->rows);
}

/* x of the case, from float64 sums; hidden is changed as the op does. */
static float *norm_reference(struct norm_case *c, float eps) {
    float *x = xmalloc((size_t)(c->T * c->H) * sizeof *x);
    if (c->flags & WITH_PARTIAL)
        for (int64_t i = 0; i < (int64_t)c->N * c->H; i++)
            c->hidden[i] += c->partial[i];
    for (int32_t t = 0; t < c->T; t++) {
        const float *h = c->hidden + (int64_t)(c->flags & WITH_ROWS ? c->rows[t] : t) * c->H;
        double sum = 0;
        for (int32_t i = 0; i < c->H; i++)
            sum += (double)h[i] * (double)h[i];
        float scale = (float)(1 / sqrt(sum / c->H + (double)eps));
        for (int32_t i = 0; i < c->H; i++)
            x[t * c->H + i] = h[i] * scale * c->weight[i];
    }
    return x;
}

/* xq and its scale are a function of the x that was stored, bit for bit; rows are padded. */
static void check_quantised(const float *x, const uint8_t *xq, const float *scales, int32_t T,
                            int32_t H) {
    int32_t stride = (int32_t)f8_stride(H);
    for (int32_t t = 0; t < T; t++, xq += stride) {
        float largest = 0;
        for (int32_t i = 0; i < H; i++)
            largest = fmaxf(largest, fabsf(x[t * H + i]));
        float scale = largest > 0 ? largest / 448 : 1;
        if (!EXPECT_TRUE(scales[t] == scale))
            return;
        for (int32_t i = 0; i < H; i++)
            if (!EXPECT_INT_EQ(xq[i], e4m3_from_f32(x[t * H + i] / scale))) {
                FAIL("token %d, column %d: %g / %g", t, i, (double)x[t * H + i], (double)scale);
                return;
            }
        for (int32_t i = H; i < stride; i++)
            if (!EXPECT_INT_EQ(xq[i], 0))
                return;
    }
}

static void check_norm(int32_t T, int32_t H, int flags) {
    const float eps = 1e-5f;
    struct norm_case c = norm_case_random(T, H, flags);
    size_t n = (size_t)T * (size_t)H, all = (size_t)c.N * (size_t)H;
    float *hidden = gpu_upload(c.hidden, all * sizeof(float));
    float *partial = gpu_upload(c.partial, all * sizeof(float));
    float *weight = gpu_upload(c.weight, (size_t)H * sizeof(float));
    int32_t *rows = gpu_upload(c.rows, (size_t)T * sizeof(int32_t));
    bf16 *x = gpu_alloc(n * sizeof *x);
    size_t n8 = (size_t)T * (size_t)f8_stride(H);
    uint8_t *xq = gpu_alloc(n8);
    float *xq_scale = gpu_alloc((size_t)T * sizeof *xq_scale);
    const struct norm_args args = {.x = x,
                                   .xq = flags & WITH_XQ ? xq : NULL,
                                   .xq_scale = flags & WITH_XQ ? xq_scale : NULL,
                                   .hidden = hidden,
                                   .partial = flags & WITH_PARTIAL ? partial : NULL,
                                   .weight = weight,
                                   .rows = flags & WITH_ROWS ? rows : NULL,
                                   .eps = eps,
                                   .num_tokens = T,
                                   .hidden_size = H};
    norm_launch(&args, gpu_stream());

    float *before = xmalloc(all * sizeof *before);
    memcpy(before, c.hidden, all * sizeof *before);
    float *want = norm_reference(&c, eps), *got = gpu_fetch_bf16(x, (int64_t)n);
    /* Half an ulp of bf16 is up to 2^-8; float32 sums of squares, all positive, lose less than
     * 2^-16. */
    close_rows("x", got, want, (int64_t)n, H, 0x1.01p-8f, 1e-30f);
    float *hidden_got = gpu_fetch(hidden, all * sizeof *hidden_got);
    same_bits("hidden", hidden_got, flags & WITH_ROWS ? before : c.hidden, all * sizeof(float));
    if (flags & WITH_XQ) {
        uint8_t *codes = gpu_fetch(xq, n8);
        float *scales = gpu_fetch(xq_scale, (size_t)T * sizeof *scales);
        check_quantised(got, codes, scales, T, H);
        free(codes);
        free(scales);
    }
    if (shim_failed())
        FAIL("T %d, H %d, flags %d", T, H, flags);
    void *device[] = {hidden, partial, weight, rows, x, xq, xq_scale};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        gpu_free(device[i]);
    free(before);
    free(want);
    free(got);
    free(hidden_got);
    norm_case_free(&c);
}

TEST(CudaNorm, AllOptionsAtOddSizes) {
    GPU_OR_SKIP();
    static const int32_t sizes[] = {1, 3, 76, 90, 1000, 1024, 1030};
    static const int32_t counts[] = {0, 1, 7, 33};
    for (int h = 0; h < 7; h++)
        for (int t = 0; t < 4; t++)
            for (int flags = 0; flags < 8 && !shim_failed(); flags++)
                check_norm(counts[t], sizes[h], flags);
}

TEST(CudaNorm, EveryBlockSizeAndItsBoundaries) {
    GPU_OR_SKIP();
    static const int32_t sizes[] = {4095,  4096,  4097,  4608,  8191,  8192,
                                    12289, 12292, 16383, 16384, 16388, 24576};
    for (int h = 0; h < 12 && !shim_failed(); h++) {
        check_norm(2, sizes[h], WITH_PARTIAL | WITH_XQ);
        check_norm(1, sizes[h], WITH_PARTIAL | WITH_ROWS);
    }
}

/* A row alone and in a batch has the same bits. */
TEST(CudaNorm, ARowDoesNotDependOnTheOthers) {
    GPU_OR_SKIP();
    enum { T = 9, H = 2050 };
    struct norm_case c = norm_case_random(T, H, 0);
    float *hidden = gpu_upload(c.hidden, T * H * sizeof(float));
    float *weight = gpu_upload(c.weight, H * sizeof(float));
    bf16 *x = gpu_alloc(T * H * sizeof *x), *alone = gpu_alloc(H * sizeof *alone);
    struct norm_args args = {.x = x,
                             .hidden = hidden,
                             .weight = weight,
                             .eps = 1e-6f,
                             .num_tokens = T,
                             .hidden_size = H};
    norm_launch(&args, gpu_stream());
    bf16 *batch = gpu_fetch(x, T * H * sizeof *batch);
    args.num_tokens = 1;
    args.x = alone;
    for (int t = 0; t < T; t++) {
        gpu_write(hidden, c.hidden + t * H, H * sizeof(float));
        norm_launch(&args, gpu_stream());
        bf16 *one = gpu_fetch(alone, H * sizeof *one);
        same_bits("x", one, batch + t * H, H * sizeof *one);
        free(one);
    }
    gpu_free(hidden);
    gpu_free(weight);
    gpu_free(x);
    gpu_free(alone);
    free(batch);
    norm_case_free(&c);
}

TEST(CudaNorm, RowsOfZerosAndOfNaNsAreWhatTheySay) {
    GPU_OR_SKIP();
    enum { H = 76, STRIDE = 96 };
    float hidden[3 * H] = {0}, weight[H];
    for (int i = 0; i < H; i++) {
        weight[i] = 1;
        hidden[2 * H + i] = (float)i;
    }
    hidden[H + 5] = NAN;
    float *device_hidden = gpu_upload(hidden, sizeof hidden);
    float *device_weight = gpu_upload(weight, sizeof weight), *xq_scale = gpu_alloc(3 * 4);
    bf16 *x = gpu_alloc(3 * H * sizeof *x);
    uint8_t *xq = gpu_alloc(3 * STRIDE), codes[3 * STRIDE];
    const struct norm_args args = {.x = x,
                                   .xq = xq,
                                   .xq_scale = xq_scale,
                                   .hidden = device_hidden,
                                   .weight = device_weight,
                                   .eps = 1e-6f,
                                   .num_tokens = 3,
                                   .hidden_size = H};
    norm_launch(&args, gpu_stream());
    float *got = gpu_fetch_bf16(x, 3 * H), scales[3];
    gpu_download(codes, xq, sizeof codes);
    gpu_download(scales, xq_scale, sizeof scales);
    EXPECT_NEAR(scales[0], 1, 0);
    for (int i = 0; i < H; i++) {
        EXPECT_TRUE(got[i] == 0 && codes[i] == 0);
        EXPECT_TRUE(isnan(got[H + i]) && (codes[STRIDE + i] & 0x7f) == 0x7f);
        EXPECT_TRUE(isfinite(got[2 * H + i]) && codes[2 * STRIDE + i] <= 0x7e);
    }
    gpu_free(device_hidden);
    gpu_free(device_weight);
    gpu_free(xq_scale);
    gpu_free(x);
    gpu_free(xq);
    free(got);
}

/* ---- quantise -------------------------------------------------------------------------------- */

/* Rows of x with stride ldx, from `offset` elements behind a 256-byte boundary on. */
static void check_quantise(int32_t T, int32_t cols, int64_t ldx, int32_t offset) {
    struct rng r = rng_seeded((uint64_t)(T * 1013 + cols * 8 + offset));
    int64_t n = T * ldx + offset;
    float *x = random_floats(&r, n, 3), *rows = xmalloc((size_t)(T * cols + 1) * sizeof *rows);
    for (int64_t i = 0; i < n; i++) /* a wide range, for the subnormals of E4M3 */
        x[i] = ldexpf(x[i], -rng_below(&r, 24));
    for (int64_t i = 0; T > 1 && i < cols; i++) /* and a row of zeros */
        x[ldx + offset + i] = 0;
    round_to_bf16(x, n);
    for (int32_t t = 0; t < T; t++)
        memcpy(rows + (int64_t)t * cols, x + t * ldx + offset, (size_t)cols * sizeof *rows);
    bf16 *device_x = gpu_upload_bf16(x, n);
    size_t n8 = (size_t)T * (size_t)f8_stride(cols);
    uint8_t *xq = gpu_alloc(n8);
    float *xq_scale = gpu_alloc((size_t)T * sizeof *xq_scale);
    quantise_launch(xq, xq_scale, device_x + offset, ldx, T, cols, gpu_stream());
    uint8_t *codes = gpu_fetch(xq, n8);
    float *scales = gpu_fetch(xq_scale, (size_t)T * sizeof *scales);
    check_quantised(rows, codes, scales, T, cols);
    if (shim_failed())
        FAIL("T %d, %d columns, ldx %lld, offset %d", T, cols, (long long)ldx, offset);
    gpu_free(device_x);
    gpu_free(xq);
    gpu_free(xq_scale);
    free(codes);
    free(scales);
    free(rows);
    free(x);
}

TEST(CudaQuantise, RowsOfAllSizes) {
    GPU_OR_SKIP();
    static const int32_t sizes[] = {1, 3, 8, 76, 90, 256, 1000, 1030, 2048, 4608, 12296};
    static const int32_t counts[] = {0, 1, 7};
    for (int s = 0; s < 11; s++)
        for (int t = 0; t < 3 && !shim_failed(); t++)
            check_quantise(counts[t], sizes[s], sizes[s], 0);
}

TEST(CudaQuantise, RowsOfAnyAlignmentAndStride) {
    GPU_OR_SKIP();
    check_quantise(33, 72, 80, 0);
    check_quantise(5, 72, 83, 0);
    check_quantise(5, 72, 80, 1);
    check_quantise(129, 90, 91, 8);
}

/* What the norm writes and what quantise makes of the norm's x are the same. */
TEST(CudaQuantise, AgreesWithTheNorm) {
    GPU_OR_SKIP();
    enum { T = 5, H = 1032, STRIDE = 1056 };
    struct norm_case c = norm_case_random(T, H, 0);
    float *hidden = gpu_upload(c.hidden, T * H * sizeof(float));
    float *weight = gpu_upload(c.weight, H * sizeof(float));
    bf16 *x = gpu_alloc(T * H * sizeof *x);
    uint8_t *xq = gpu_alloc(T * STRIDE), *again = gpu_alloc(T * STRIDE);
    float *scale = gpu_alloc(T * sizeof *scale), *scale_again = gpu_alloc(T * sizeof *scale);
    norm_launch(&(struct norm_args){.x = x,
                                    .xq = xq,
                                    .xq_scale = scale,
                                    .hidden = hidden,
                                    .weight = weight,
                                    .eps = 1e-6f,
                                    .num_tokens = T,
                                    .hidden_size = H},
                gpu_stream());
    quantise_launch(again, scale_again, x, H, T, H, gpu_stream());
    uint8_t codes[2][T * STRIDE];
    float scales[2][T];
    gpu_download(codes[0], xq, sizeof codes[0]);
    gpu_download(codes[1], again, sizeof codes[1]);
    gpu_download(scales[0], scale, sizeof scales[0]);
    gpu_download(scales[1], scale_again, sizeof scales[1]);
    EXPECT_TRUE(memcmp(codes[0], codes[1], sizeof codes[0]) == 0);
    EXPECT_TRUE(memcmp(scales[0], scales[1], sizeof scales[0]) == 0);
    void *device[] = {hidden, weight, x, xq, again, scale, scale_again};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        gpu_free(device[i]);
    norm_case_free(&c);
}
