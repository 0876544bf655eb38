/* cuBLAS's stand-in against plain loops: odd sizes, all transposes, types and forms. */
#include <cublas_v2.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/dtype.h"
#include "tests/ptxvm/rt_fixture.h"

#define EXPECT_CUBLAS(call, code) EXPECT_STR_EQ(cublasGetStatusName(call), #code)

/* Values that every type holds exactly: multiples of 1/8 in [-1, 1]. */
static float value(uint32_t *seed) {
    *seed = *seed * 1664525 + 1013904223;
    return (float)((int)(*seed >> 16) % 9) / 8 * ((*seed >> 13) & 1 ? 1 : -1);
}

static size_t bytes_of(cudaDataType t) {
    return t == CUDA_R_32F ? 4 : 2;
}

static void write_as(void *p, cudaDataType t, size_t i, float v) {
    if (t == CUDA_R_32F)
        ((float *)p)[i] = v;
    else
        ((uint16_t *)p)[i] = t == CUDA_R_16F ? f16_from_f32(v) : bf16_from_f32(v);
}

static float read_as(const void *p, cudaDataType t, size_t i) {
    const uint16_t *half = p;
    return t == CUDA_R_32F   ? ((const float *)p)[i]
           : t == CUDA_R_16F ? f16_to_f32(half[i])
                             : bf16_to_f32(half[i]);
}

/* A matrix on both sides, with a margin after each column. */
struct matrix {
    cudaDataType type;
    int rows, cols, ld;
    void *host, *device;
};

static struct matrix create(cudaDataType t, int rows, int cols, uint32_t *seed) {
    struct matrix m = {t, rows, cols, rows + 3, NULL, NULL};
    size_t count = (size_t)m.ld * (size_t)cols, bytes = count * bytes_of(t);
    m.host = malloc(bytes + 1);
    for (size_t i = 0; i < count; i++)
        write_as(m.host, t, i, value(seed));
    EXPECT_CUDA(cudaMalloc(&m.device, bytes), cudaSuccess);
    EXPECT_CUDA(cudaMemcpy(m.device, m.host, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_CUDA(cudaDeviceSynchronize(), cudaSuccess);
    return m;
}

static void destroy(struct matrix *m) {
    free(m->host);
    cudaFree(m->device);
}

static float at(const struct matrix *m, bool trans, int row, int col) {
    size_t i = trans ? (size_t)row * (size_t)m->ld + (size_t)col
                     : (size_t)col * (size_t)m->ld + (size_t)row;
    return read_as(m->host, m->type, i);
}

struct sizes {
    int m, n, k;
};

/* Compares C, margins included, with plain loops in double precision. */
static void compare(const struct matrix *a, const struct matrix *b, struct matrix *c, bool ta,
                    bool tb, int k, float alpha, float beta) {
    size_t bytes = (size_t)c->ld * (size_t)c->cols * bytes_of(c->type);
    void *got = malloc(bytes);
    EXPECT_CUDA(cudaMemcpy(got, c->device, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    double worst = 0, step = c->type == CUDA_R_32F ? 1e-5 : c->type == CUDA_R_16F ? 1e-3 : 8e-3;
    for (int j = 0; j < c->cols; j++)
        for (int i = 0; i < c->ld; i++) {
            size_t index = (size_t)j * (size_t)c->ld + (size_t)i;
            double sum = 0, old = read_as(c->host, c->type, index);
            for (int p = 0; p < k && i < c->rows; p++)
                sum += (double)at(a, ta, i, p) * (double)at(b, tb, p, j);
            double v = i < c->rows ? (double)alpha * sum + (double)beta * old : old;
            double diff = fabs(v - (double)read_as(got, c->type, index)) / (1 + fabs(v));
            worst = diff > worst || diff != diff ? diff : worst;
        }
    EXPECT_TRUE(worst <= step);
    free(got);
}

static void check_gemm(cublasHandle_t h, struct sizes s, int transposes, cudaDataType in,
                       cudaDataType out, float alpha, float beta) {
    bool ta = transposes & 1, tb = transposes & 2;
    uint32_t seed = (uint32_t)(s.m * 31 + s.n * 7 + s.k);
    struct matrix a = create(in, ta ? s.k : s.m, ta ? s.m : s.k, &seed);
    struct matrix b = create(in, tb ? s.n : s.k, tb ? s.k : s.n, &seed);
    struct matrix c = create(out, s.m, s.n, &seed);
    EXPECT_CUBLAS(cublasGemmEx(h, ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb ? CUBLAS_OP_C : CUBLAS_OP_N,
                               s.m, s.n, s.k, &alpha, a.device, in, a.ld, b.device, in, b.ld, &beta,
                               c.device, out, c.ld, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                  CUBLAS_STATUS_SUCCESS);
    compare(&a, &b, &c, ta, tb, s.k, alpha, beta);
    destroy(&a);
    destroy(&b);
    destroy(&c);
}

TEST(RtCublas, ProductsMatchPlainLoops) {
    static const struct sizes sizes[] = {{1, 1, 1},    {16, 4, 8}, {17, 5, 33},   {33, 1, 64},
                                         {1, 35, 100}, {64, 9, 1}, {100, 31, 257}};
    static const cudaDataType types[][2] = {{CUDA_R_32F, CUDA_R_32F},
                                            {CUDA_R_16F, CUDA_R_16F},
                                            {CUDA_R_16F, CUDA_R_32F},
                                            {CUDA_R_16BF, CUDA_R_16BF},
                                            {CUDA_R_16BF, CUDA_R_32F}};
    cublasHandle_t h;
    ASSERT_INT_EQ(cublasCreate(&h), CUBLAS_STATUS_SUCCESS);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t t = 0; t < sizeof types / sizeof *types; t++)
            for (int transposes = 0; transposes < 4 && !shim_failed(); transposes++) {
                check_gemm(h, sizes[i], transposes, types[t][0], types[t][1], 1, 0);
                check_gemm(h, sizes[i], transposes, types[t][0], types[t][1], -0.5f, 2);
            }
    EXPECT_CUBLAS(cublasDestroy(h), CUBLAS_STATUS_SUCCESS);
}

/* Beta 0 does not read C, where fresh memory is NaN; k = 0 leaves beta * C. */
TEST(RtCublas, ZeroFactorsDoNotRead) {
    cublasHandle_t h;
    float one = 1, zero = 0, two = 2, host[4] = {1, 2, 3, 4}, *a, *c;
    ASSERT_INT_EQ(cublasCreate(&h), CUBLAS_STATUS_SUCCESS);
    ASSERT_CUDA(cudaMalloc((void **)&a, sizeof host));
    ASSERT_CUDA(cudaMalloc((void **)&c, sizeof host));
    ASSERT_CUDA(cudaMemcpy(a, host, sizeof host, cudaMemcpyHostToDevice));
    EXPECT_CUBLAS(cublasSgemm(h, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, 2, &one, a, 2, a, 2, &zero, c, 2),
                  CUBLAS_STATUS_SUCCESS);
    ASSERT_CUDA(cudaMemcpy(host, c, sizeof host, cudaMemcpyDeviceToHost));
    EXPECT_NEAR(host[0], 7, 0);
    EXPECT_NEAR(host[3], 22, 0);
    EXPECT_CUBLAS(cublasSgemm(h, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, 0, &one, a, 2, a, 1, &two, c, 2),
                  CUBLAS_STATUS_SUCCESS);
    ASSERT_CUDA(cudaMemcpy(host, c, sizeof host, cudaMemcpyDeviceToHost));
    EXPECT_NEAR(host[3], 44, 0);
    cudaFree(a);
    cudaFree(c);
    cublasDestroy(h);
}

enum { BATCH = 3, M = 5, NN = 7, K = 11 };

static void check_batch(bool listed, bool scalars_on_device) {
    cublasHandle_t h;
    uint32_t seed = 9;
    float alpha = 2, beta = 1, *scalars;
    struct matrix a[BATCH], b[BATCH], c[BATCH];
    void *lists[3][BATCH], **device_lists;
    ASSERT_INT_EQ(cublasCreate(&h), CUBLAS_STATUS_SUCCESS);
    for (int i = 0; i < BATCH; i++) {
        a[i] = create(CUDA_R_16BF, M, K, &seed);
        b[i] = create(CUDA_R_16BF, K, NN, &seed);
        c[i] = create(CUDA_R_32F, M, NN, &seed);
        lists[0][i] = a[i].device;
        lists[1][i] = b[i].device;
        lists[2][i] = c[i].device;
    }
    ASSERT_CUDA(cudaMalloc((void **)&device_lists, sizeof lists));
    ASSERT_CUDA(cudaMemcpy(device_lists, lists, sizeof lists, cudaMemcpyHostToDevice));
    ASSERT_CUDA(cudaMalloc((void **)&scalars, 8));
    ASSERT_CUDA(cudaMemcpy(scalars, &alpha, 4, cudaMemcpyHostToDevice));
    ASSERT_CUDA(cudaMemcpy(scalars + 1, &beta, 4, cudaMemcpyHostToDevice));
    cublasSetPointerMode(h,
                         scalars_on_device ? CUBLAS_POINTER_MODE_DEVICE : CUBLAS_POINTER_MODE_HOST);
    const float *x = scalars_on_device ? scalars : &alpha;
    const float *y = scalars_on_device ? scalars + 1 : &beta;
    if (listed)
        EXPECT_CUBLAS(cublasGemmBatchedEx(h, CUBLAS_OP_N, CUBLAS_OP_N, M, NN, K, x,
                                          (const void *const *)device_lists, CUDA_R_16BF, a[0].ld,
                                          (const void *const *)device_lists + BATCH, CUDA_R_16BF,
                                          b[0].ld, y, device_lists + 2 * BATCH, CUDA_R_32F, c[0].ld,
                                          BATCH, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                      CUBLAS_STATUS_SUCCESS);
    else /* a stride of 0: one product, twice */
        EXPECT_CUBLAS(cublasGemmStridedBatchedEx(
                          h, CUBLAS_OP_N, CUBLAS_OP_N, M, NN, K, x, a[0].device, CUDA_R_16BF,
                          a[0].ld, 0, b[0].device, CUDA_R_16BF, b[0].ld, 0, y, c[0].device,
                          CUDA_R_32F, c[0].ld, 0, 2, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                      CUBLAS_STATUS_SUCCESS);
    compare(&a[0], &b[0], &c[0], false, false, K, listed ? alpha : 2 * alpha, beta);
    for (int i = 1; i < BATCH && listed; i++)
        compare(&a[i], &b[i], &c[i], false, false, K, alpha, beta);
    for (int i = 0; i < BATCH; i++) {
        destroy(&a[i]);
        destroy(&b[i]);
        destroy(&c[i]);
    }
    cudaFree(device_lists);
    cudaFree(scalars);
    cublasDestroy(h);
}

TEST(RtCublas, BatchesAndScalarsOnTheDevice) {
    for (int i = 0; i < 4; i++)
        check_batch(i & 1, i & 2);
}

static cublasStatus_t try_gemm(cublasHandle_t h, int op, int m, int n, int k, int lda, int ldb,
                               int ldc, cudaDataType type, cublasComputeType_t compute) {
    float one = 1;
    return cublasGemmEx(h, (cublasOperation_t)op, CUBLAS_OP_N, m, n, k, &one, NULL, type, lda, NULL,
                        type, ldb, &one, NULL, type, ldc, compute, CUBLAS_GEMM_DEFAULT);
}

TEST(RtCublas, ArgumentsAreChecked) {
    cublasHandle_t h;
    ASSERT_INT_EQ(cublasCreate(&h), CUBLAS_STATUS_SUCCESS);
    const struct {
        int op, m, n, k, lda, ldb, ldc;
        cudaDataType type;
        cublasComputeType_t compute;
        const char *status;
    } cases[] = {
        {CUBLAS_OP_N, 0, 4, 4, 1, 4, 1, CUDA_R_32F, CUBLAS_COMPUTE_32F, "CUBLAS_STATUS_SUCCESS"},
        {CUBLAS_OP_N, -1, 4, 4, 4, 4, 4, CUDA_R_32F, CUBLAS_COMPUTE_32F,
         "CUBLAS_STATUS_INVALID_VALUE"},
        {CUBLAS_OP_N, 4, 0, 4, 3, 4, 4, CUDA_R_32F, CUBLAS_COMPUTE_32F,
         "CUBLAS_STATUS_INVALID_VALUE"},
        {CUBLAS_OP_T, 4, 0, 8, 7, 8, 4, CUDA_R_32F, CUBLAS_COMPUTE_32F,
         "CUBLAS_STATUS_INVALID_VALUE"},
        {CUBLAS_OP_N, 4, 0, 4, 4, 3, 4, CUDA_R_32F, CUBLAS_COMPUTE_32F,
         "CUBLAS_STATUS_INVALID_VALUE"},
        {CUBLAS_OP_N, 4, 0, 4, 4, 4, 3, CUDA_R_32F, CUBLAS_COMPUTE_32F,
         "CUBLAS_STATUS_INVALID_VALUE"},
        {9, 4, 0, 4, 4, 4, 4, CUDA_R_32F, CUBLAS_COMPUTE_32F, "CUBLAS_STATUS_INVALID_VALUE"},
        {CUBLAS_OP_N, 4, 0, 4, 4, 4, 4, CUDA_R_64F, CUBLAS_COMPUTE_32F,
         "CUBLAS_STATUS_NOT_SUPPORTED"},
        {CUBLAS_OP_N, 4, 0, 4, 4, 4, 4, CUDA_R_16F, CUBLAS_COMPUTE_16F,
         "CUBLAS_STATUS_NOT_SUPPORTED"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        EXPECT_STR_EQ(cublasGetStatusName(try_gemm(h, cases[i].op, cases[i].m, cases[i].n,
                                                   cases[i].k, cases[i].lda, cases[i].ldb,
                                                   cases[i].ldc, cases[i].type, cases[i].compute)),
                      cases[i].status);
    EXPECT_CUBLAS(try_gemm(NULL, 0, 1, 1, 1, 1, 1, 1, CUDA_R_32F, CUBLAS_COMPUTE_32F),
                  CUBLAS_STATUS_NOT_INITIALIZED);
    cublasDestroy(h);
}

/* A matrix that ends too early, or on the host, is a fault of the device. */
TEST(RtCublas, WrongPointersAreFaults) {
    float one = 1, zero = 0, host[16] = {0};
    for (int i = 0; i < 3; i++) {
        cublasHandle_t h;
        float *p;
        ASSERT_CUDA(cudaMalloc((void **)&p, sizeof host));
        ASSERT_CUDA(cudaMemset(p, 0, sizeof host));
        ASSERT_INT_EQ(cublasCreate(&h), CUBLAS_STATUS_SUCCESS);
        const float *a = i == 0 ? host : i == 1 ? p + 1 : p;
        float *c = i == 2 ? p + 13 : p;
        cublasSgemm(h, CUBLAS_OP_N, CUBLAS_OP_N, 4, 1, 4, &one, a, 4, p, 4, &zero, c, 4);
        EXPECT_CUDA(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
        EXPECT_TRUE(rt_reported(i == 2 ? "matrix C" : "matrix A"));
        cublasDestroy(h);
        ASSERT_CUDA(cudaDeviceReset());
    }
}

TEST(RtCublas, ProductsAreCapturedAndOrdered) {
    cublasHandle_t h;
    cudaStream_t s, found;
    cudaGraph_t g;
    cudaGraphExec_t x;
    float one = 1, host[4] = {2, 0, 0, 3}, *a, *c;
    ASSERT_INT_EQ(cublasCreate(&h), CUBLAS_STATUS_SUCCESS);
    ASSERT_CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    EXPECT_CUBLAS(cublasSetStream(h, s), CUBLAS_STATUS_SUCCESS);
    EXPECT_CUBLAS(cublasGetStream(h, &found), CUBLAS_STATUS_SUCCESS);
    EXPECT_TRUE(found == s);
    ASSERT_CUDA(cudaMalloc((void **)&a, sizeof host));
    ASSERT_CUDA(cudaMalloc((void **)&c, sizeof host));
    ASSERT_CUDA(cudaMemcpyAsync(a, host, sizeof host, cudaMemcpyHostToDevice, s));
    ASSERT_CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    EXPECT_CUDA(cudaMemsetAsync(c, 0, sizeof host, s), cudaSuccess);
    for (int i = 0; i < 2; i++) /* c += a * a */
        EXPECT_CUBLAS(
            cublasSgemm(h, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, 2, &one, a, 2, a, 2, &one, c, 2),
            CUBLAS_STATUS_SUCCESS);
    ASSERT_CUDA(cudaStreamEndCapture(s, &g));
    ASSERT_CUDA(cudaGraphInstantiate(&x, g, 0));
    EXPECT_CUDA(cudaGraphLaunch(x, s), cudaSuccess);
    EXPECT_CUDA(cudaGraphLaunch(x, s), cudaSuccess);
    EXPECT_CUDA(cudaMemcpyAsync(host, c, sizeof host, cudaMemcpyDeviceToHost, s), cudaSuccess);
    EXPECT_NEAR(host[0], 8, 0);
    EXPECT_NEAR(host[3], 18, 0);
    cudaGraphExecDestroy(x);
    cudaGraphDestroy(g);
    cudaStreamDestroy(s);
    cudaFree(a);
    cudaFree(c);
    cublasDestroy(h);
}
