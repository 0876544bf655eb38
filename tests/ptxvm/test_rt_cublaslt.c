/* cuBLASLt's stand-in against plain loops: FP8 with scales and a bias, BF16 batches, refusals. */
#include <cublasLt.h>
#include <math.h>
#include <string.h>

#include "tests/ptxvm/rt_fixture.h"

#define EXPECT_LT(call, code) EXPECT_INT_EQ(call, code)
#define ASSERT_LT_OK(call)    ASSERT_INT_EQ(call, CUBLAS_STATUS_SUCCESS)

enum { M = 32, N = 5, K = 48 };

struct rig {
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
};

static void rig_init(struct rig *r, cudaDataType in, cudaDataType out) {
    int32_t t = CUBLAS_OP_T;
    ASSERT_LT_OK(cublasLtCreate(&r->handle));
    ASSERT_LT_OK(cublasLtMatmulDescCreate(&r->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    ASSERT_LT_OK(
        cublasLtMatmulDescSetAttribute(r->desc, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t));
    ASSERT_LT_OK(cublasLtMatrixLayoutCreate(&r->a, in, K, M, K));
    ASSERT_LT_OK(cublasLtMatrixLayoutCreate(&r->b, in, K, N, K));
    ASSERT_LT_OK(cublasLtMatrixLayoutCreate(&r->d, out, M, N, M));
}

static void rig_deinit(struct rig *r) {
    cublasLtMatrixLayoutDestroy(r->a);
    cublasLtMatrixLayoutDestroy(r->b);
    cublasLtMatrixLayoutDestroy(r->d);
    cublasLtMatmulDescDestroy(r->desc);
    cublasLtDestroy(r->handle);
}

static void *upload(const void *host, size_t bytes) {
    void *p = NULL;
    EXPECT_CUDA(cudaMalloc(&p, bytes), cudaSuccess);
    EXPECT_CUDA(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return p;
}

static cublasStatus_t multiply(struct rig *r, const void *a, const void *b, void *d) {
    float one = 1, zero = 0;
    return cublasLtMatmul(r->handle, r->desc, &one, a, r->a, b, r->b, &zero, d, r->d, d, r->d, NULL,
                          NULL, 0, NULL);
}

/* A few E4M3 codes and what they mean, subnormals and the largest included. */
static const struct {
    uint8_t code;
    float value;
} E4M3[] = {{0x00, 0},  {0x01, 0x1p-9f}, {0x07, 7 * 0x1p-9f}, {0x08, 0x1p-6f},
            {0x38, 1},  {0x3c, 1.5f},    {0x40, 2},           {0x7e, 448},
            {0xb8, -1}, {0xbf, -1.875f}, {0x81, -0x1p-9f}};
enum { NUM_E4M3 = sizeof E4M3 / sizeof *E4M3 };

static void set_pointer(struct rig *r, cublasLtMatmulDescAttributes_t id, const void *p) {
    EXPECT_LT(cublasLtMatmulDescSetAttribute(r->desc, id, &p, sizeof p), CUBLAS_STATUS_SUCCESS);
}

TEST(RtCublasLt, Fp8WithScalesAndBias) {
    uint8_t a[M * K], b[N * K];
    uint16_t bias[M];
    float want[M * N], got[M * N] = {0}, scales[2] = {0.5f, 0.25f};
    uint32_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    for (int i = 0; i < M * K; i++)
        a[i] = E4M3[i * 7 % NUM_E4M3].code;
    for (int i = 0; i < N * K; i++)
        b[i] = E4M3[i * 5 % NUM_E4M3].code;
    for (int i = 0; i < M; i++)
        bias[i] = i % 2 ? 0x3f80 : 0xc000; /* 1, -2 */
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int p = 0; p < K; p++)
                sum += (double)E4M3[(i * K + p) * 7 % NUM_E4M3].value *
                       (double)E4M3[(j * K + p) * 5 % NUM_E4M3].value;
            want[j * M + i] = (float)(sum * 0.125 + (i % 2 ? 1 : -2));
        }
    struct rig r;
    rig_init(&r, CUDA_R_8F_E4M3, CUDA_R_32F);
    void *da = upload(a, sizeof a), *db = upload(b, sizeof b), *dbias = upload(bias, sizeof bias);
    float *ds = upload(scales, sizeof scales), *dd = upload(want, sizeof want);
    set_pointer(&r, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, ds);
    set_pointer(&r, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, ds + 1);
    set_pointer(&r, CUBLASLT_MATMUL_DESC_BIAS_POINTER, dbias);
    EXPECT_LT(cublasLtMatmulDescSetAttribute(r.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                             sizeof epilogue),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_CUDA(cudaMemset(dd, 0xff, sizeof want), cudaSuccess);
    EXPECT_LT(multiply(&r, da, db, dd), CUBLAS_STATUS_SUCCESS);
    EXPECT_CUDA(cudaMemcpy(got, dd, sizeof got, cudaMemcpyDeviceToHost), cudaSuccess);
    for (int i = 0; i < M * N && !shim_failed(); i++)
        EXPECT_NEAR(got[i], want[i], 1e-5 * (1 + fabsf(want[i])) + 0.02);
    EXPECT_LT(multiply(&r, (char *)da + 1, db, dd), CUBLAS_STATUS_INVALID_VALUE);
    rig_deinit(&r);
    cudaFree(da);
    cudaFree(db);
    cudaFree(dbias);
    cudaFree(ds);
    cudaFree(dd);
}

TEST(RtCublasLt, HeuristicsSayWhatIsSupported) {
    struct rig r;
    cublasLtMatmulPreference_t p;
    cublasLtMatmulHeuristicResult_t result;
    size_t workspace = 1 << 20, written = 0;
    int returned = -1;
    int32_t row = CUBLASLT_ORDER_ROW, none = CUBLAS_OP_N, wide = K + 1;
    rig_init(&r, CUDA_R_16BF, CUDA_R_16BF);
    ASSERT_LT_OK(cublasLtMatmulPreferenceCreate(&p));
    ASSERT_LT_OK(cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                      &workspace, sizeof workspace));
    ASSERT_LT_OK(
        cublasLtMatmulDescGetAttribute(r.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, NULL, 0, &written));
    EXPECT_INT_EQ(written, 4);
    EXPECT_LT(cublasLtMatmulAlgoGetHeuristic(r.handle, r.desc, r.a, r.b, r.d, r.d, p, 1, &result,
                                             &returned),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_INT_EQ(returned, 1);
    EXPECT_INT_EQ(result.state, CUBLAS_STATUS_SUCCESS);
    /* Shapes that do not fit, and what this library has not. */
    cublasLtMatmulDescSetAttribute(r.desc, CUBLASLT_MATMUL_DESC_TRANSA, &none, sizeof none);
    EXPECT_LT(cublasLtMatmulAlgoGetHeuristic(r.handle, r.desc, r.a, r.b, r.d, r.d, p, 1, &result,
                                             &returned),
              CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_LT(cublasLtMatrixLayoutSetAttribute(r.d, CUBLASLT_MATRIX_LAYOUT_ORDER, &row, 3),
              CUBLAS_STATUS_INVALID_VALUE);
    none = CUBLAS_OP_T;
    cublasLtMatmulDescSetAttribute(r.desc, CUBLASLT_MATMUL_DESC_TRANSA, &none, sizeof none);
    cublasLtMatrixLayoutSetAttribute(r.d, CUBLASLT_MATRIX_LAYOUT_ORDER, &row, sizeof row);
    EXPECT_LT(cublasLtMatmulAlgoGetHeuristic(r.handle, r.desc, r.a, r.b, r.d, r.d, p, 1, &result,
                                             &returned),
              CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_LT(cublasLtMatmulDescSetAttribute(r.desc, CUBLASLT_MATMUL_DESC_AMAX_D_POINTER, &wide, 8),
              CUBLAS_STATUS_NOT_SUPPORTED);
    cublasLtMatmulPreferenceDestroy(p);
    rig_deinit(&r);
}

static cublasStatus_t multiply_by(struct rig *r, const cublasLtMatmulAlgo_t *algo, const void *a,
                                  const void *b, void *d, void *workspace, size_t bytes) {
    float one = 1, zero = 0;
    return cublasLtMatmul(r->handle, r->desc, &one, a, r->a, b, r->b, &zero, d, r->d, d, r->d, algo,
                          workspace, bytes, NULL);
}

/* An algorithm for A at multiples of 64 bytes and the rest at multiples of 16, with a workspace of
 * at most 256 bytes. */
TEST(RtCublasLt, AlgorithmsHoldTheirUserToWhatWasPromised) {
    uint16_t ones[M * K + 8];
    float got[M * N] = {0};
    uint64_t most = 256;
    uint32_t a_bytes = 64, bytes = 16;
    int returned = 0;
    struct rig r;
    cublasLtMatmulPreference_t p;
    cublasLtMatmulHeuristicResult_t result, checked;
    cublasLtMatrixLayout_t other;
    for (int i = 0; i < M * K + 8; i++)
        ones[i] = 0x3f80;
    rig_init(&r, CUDA_R_16BF, CUDA_R_32F);
    ASSERT_LT_OK(cublasLtMatmulPreferenceCreate(&p));
    cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most,
                                         sizeof most);
    cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &a_bytes,
                                         sizeof a_bytes);
    cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &bytes,
                                         sizeof bytes);
    cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &bytes,
                                         sizeof bytes);
    ASSERT_LT_OK(cublasLtMatmulAlgoGetHeuristic(r.handle, r.desc, r.a, r.b, r.d, r.d, p, 1, &result,
                                                &returned));
    EXPECT_INT_EQ(result.workspaceSize, 256);
    char *a = upload(ones, sizeof ones), *b = upload(ones, sizeof ones);
    float *d = upload(got, sizeof got), *workspace = upload(got, 256);
    const cublasLtMatmulAlgo_t *algo = &result.algo;
    EXPECT_LT(multiply_by(&r, algo, a, b + 16, d, workspace, 256), CUBLAS_STATUS_SUCCESS);
    EXPECT_CUDA(cudaMemcpy(got, d, sizeof got, cudaMemcpyDeviceToHost), cudaSuccess);
    EXPECT_NEAR(got[M * N - 1], K, 0);
    EXPECT_CUDA(cudaMemcpy(got, workspace, 256, cudaMemcpyDeviceToHost), cudaSuccess);
    EXPECT_TRUE(isnan(got[63])); /* overwritten */
    EXPECT_LT(multiply_by(&r, algo, a + 16, b, d, workspace, 256), CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_LT(multiply_by(&r, algo, a, b + 2, d, workspace, 256), CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_TRUE(rt_reported("less aligned"));
    EXPECT_LT(multiply_by(&r, algo, a, b, d, workspace, 255), CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_LT(multiply_by(&r, algo, a, b, d, NULL, 256), CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_TRUE(rt_reported("more workspace"));
    /* A stride of 33 floats is not a multiple of 16 bytes. */
    ASSERT_LT_OK(cublasLtMatrixLayoutCreate(&other, CUDA_R_32F, M, N, M + 1));
    EXPECT_LT(cublasLtMatmulAlgoCheck(r.handle, r.desc, r.a, r.b, r.d, r.d, algo, &checked),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_LT(cublasLtMatmulAlgoCheck(r.handle, r.desc, r.a, r.b, other, other, algo, &checked),
              CUBLAS_STATUS_NOT_SUPPORTED);
    cublasLtMatrixLayoutDestroy(other);
    cublasLtMatmulPreferenceDestroy(p);
    rig_deinit(&r);
    cudaFree(a);
    cudaFree(b);
    cudaFree(d);
    cudaFree(workspace);
}

/* Two products of a batch, BF16 to float32, all ones: each result is K, then ReLU of -K. */
TEST(RtCublasLt, BatchesAndRelu) {
    uint16_t ones[2 * M * K];
    float got[2 * M * N] = {0};
    int32_t batch = 2;
    int64_t stride_a = M * K, stride_b = N * K, stride_d = M * N;
    uint32_t epilogue = CUBLASLT_EPILOGUE_RELU;
    for (int i = 0; i < 2 * M * K; i++)
        ones[i] = i < M * K ? 0x3f80 : 0xbf80;
    struct rig r;
    rig_init(&r, CUDA_R_16BF, CUDA_R_32F);
    const struct {
        cublasLtMatrixLayout_t layout;
        int64_t stride;
    } layouts[] = {{r.a, stride_a}, {r.b, stride_b}, {r.d, stride_d}};
    void *da = upload(ones, sizeof ones), *dd = upload(got, sizeof got);
    void *db = upload(ones, 2 * 2 * N * K);
    for (int i = 0; i < 3; i++) {
        cublasLtMatrixLayoutSetAttribute(layouts[i].layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                                         &batch, sizeof batch);
        cublasLtMatrixLayoutSetAttribute(layouts[i].layout,
                                         CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                         &layouts[i].stride, sizeof layouts[i].stride);
    }
    cublasLtMatmulDescSetAttribute(r.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                   sizeof epilogue);
    EXPECT_LT(multiply(&r, da, db, dd), CUBLAS_STATUS_SUCCESS);
    EXPECT_CUDA(cudaMemcpy(got, dd, sizeof got, cudaMemcpyDeviceToHost), cudaSuccess);
    EXPECT_NEAR(got[M * N - 1], K, 0);
    EXPECT_NEAR(got[2 * M * N - 1], 0, 0);
    rig_deinit(&r);
    cudaFree(da);
    cudaFree(db);
    cudaFree(dd);
}
