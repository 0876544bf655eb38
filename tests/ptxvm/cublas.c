/* cuBLAS over the CUDA runtime's stand-in: the matrix products that a server uses.
 *
 * A call checks its arguments and enqueues a task; the task checks, once the stream gets there,
 * that the matrices lie in memory of its device, as a kernel would find out, and multiplies.
 */
#include <cublas_v2.h>
#include <limits.h>
#include <string.h>

#include "tests/ptxvm/gemm.h"
#include "tests/ptxvm/rt_alloc.h"
#include "tests/ptxvm/rt_hooks.h"

struct cublasContext {
    cudaStream_t stream;
    int device;
    cublasPointerMode_t pointer_mode;
    cublasMath_t math_mode;
    cublasAtomicsMode_t atomics_mode;
};

/* ---- handles --------------------------------------------------------------------------------- */

cublasStatus_t cublasCreate_v2(cublasHandle_t *handle) {
    int device;
    if (!handle)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (cudaGetDevice(&device) != cudaSuccess)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    *handle = rt_calloc(sizeof(struct cublasContext));
    (*handle)->device = device;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
    if (!handle)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    rt_free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
    if (!handle)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    handle->stream = stream;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetStream_v2(cublasHandle_t handle, cudaStream_t *stream) {
    if (!handle)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!stream)
        return CUBLAS_STATUS_INVALID_VALUE;
    *stream = handle->stream;
    return CUBLAS_STATUS_SUCCESS;
}

/* The workspace is not used, but it has to be one that could be. */
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void *workspace, size_t bytes) {
    if (!handle)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    if (workspace && ((size_t)workspace % 256 ||
                      !ptxvm_check_range("cublasSetWorkspace", handle->device, workspace, bytes)))
        return CUBLAS_STATUS_INVALID_VALUE;
    return CUBLAS_STATUS_SUCCESS;
}

#define MODE_FUNCTIONS(set, get, type, field)                                                      \
    cublasStatus_t set(cublasHandle_t handle, type mode) {                                         \
        if (!handle)                                                                               \
            return CUBLAS_STATUS_NOT_INITIALIZED;                                                  \
        handle->field = mode;                                                                      \
        return CUBLAS_STATUS_SUCCESS;                                                              \
    }                                                                                              \
    cublasStatus_t get(cublasHandle_t handle, type *mode) {                                        \
        if (!handle)                                                                               \
            return CUBLAS_STATUS_NOT_INITIALIZED;                                                  \
        if (!mode)                                                                                 \
            return CUBLAS_STATUS_INVALID_VALUE;                                                    \
        *mode = handle->field;                                                                     \
        return CUBLAS_STATUS_SUCCESS;                                                              \
    }
MODE_FUNCTIONS(cublasSetPointerMode_v2, cublasGetPointerMode_v2, cublasPointerMode_t, pointer_mode)
MODE_FUNCTIONS(cublasSetMathMode, cublasGetMathMode, cublasMath_t, math_mode)
MODE_FUNCTIONS(cublasSetAtomicsMode, cublasGetAtomicsMode, cublasAtomicsMode_t, atomics_mode)

cublasStatus_t cublasGetVersion_v2(cublasHandle_t handle, int *version) {
    (void)handle; /* may be NULL */
    if (!version)
        return CUBLAS_STATUS_INVALID_VALUE;
    *version = CUBLAS_VERSION;
    return CUBLAS_STATUS_SUCCESS;
}

#define STATUSES(X)                                                                                \
    X(CUBLAS_STATUS_SUCCESS, "the function completed successfully")                                \
    X(CUBLAS_STATUS_NOT_INITIALIZED, "the library was not initialized")                            \
    X(CUBLAS_STATUS_ALLOC_FAILED, "the resource allocation failed")                                \
    X(CUBLAS_STATUS_INVALID_VALUE, "an invalid value was used as an argument")                     \
    X(CUBLAS_STATUS_ARCH_MISMATCH, "the device lacks a required feature")                          \
    X(CUBLAS_STATUS_MAPPING_ERROR, "an access to GPU memory space failed")                         \
    X(CUBLAS_STATUS_EXECUTION_FAILED, "the function failed to launch on the GPU")                  \
    X(CUBLAS_STATUS_INTERNAL_ERROR, "an internal operation failed")                                \
    X(CUBLAS_STATUS_NOT_SUPPORTED, "the parameter combination is not supported")                   \
    X(CUBLAS_STATUS_LICENSE_ERROR, "an error occurred when checking the license")

const char *cublasGetStatusName(cublasStatus_t status) {
    switch (status) {
#define NAME(code, text)                                                                           \
    case code:                                                                                     \
        return #code;
        STATUSES(NAME)
    }
    return "unknown cuBLAS status";
}

const char *cublasGetStatusString(cublasStatus_t status) {
    switch (status) {
#define TEXT(code, text)                                                                           \
    case code:                                                                                     \
        return text;
        STATUSES(TEXT)
    }
    return "unknown cuBLAS status";
}

/* ---- one product and its batch --------------------------------------------------------------- */

/* Where the matrices of a batch are: at a stride, or listed in arrays on the device. */
struct batch {
    const char *call;
    struct gemm g; /* of the first; a, b, d are arrays of pointers when listed */
    bool listed, scalars_on_device;
    const void *alpha, *beta;               /* read by the task when they are on the device */
    long long stride_a, stride_b, stride_d; /* elements */
    int32_t count;
    int device;
};

static bool check_operand(const struct batch *t, const char *operand, const void *p, size_t bytes) {
    char name[96] = "";
    strncat(name, t->call, 60);
    strncat(name, operand, 30);
    return !bytes || ptxvm_check_range(name, t->device, p, bytes);
}

static bool check_matrices(const struct batch *t, const struct gemm *g) {
    int64_t k = g->alpha == 0 ? 0 : g->k;
    size_t a = k ? gemm_extent(g->a_type, g->trans_a ? k : g->m, g->trans_a ? g->m : k, g->lda) : 0;
    size_t b = k ? gemm_extent(g->b_type, g->trans_b ? g->n : k, g->trans_b ? k : g->n, g->ldb) : 0;
    return check_operand(t, ": matrix A", g->a, a) && check_operand(t, ": matrix B", g->b, b) &&
           check_operand(t, ": matrix C", g->d, gemm_extent(g->d_type, g->m, g->n, g->ldd));
}

static const char *step(const void *p, long long elements, cudaDataType t) {
    return (const char *)p + elements * (long long)gemm_type_bytes(t);
}

/* The i-th product of the batch. */
static struct gemm product(const struct batch *t, int32_t i) {
    struct gemm g = t->g;
    if (t->listed) {
        g.a = ((const void *const *)t->g.a)[i];
        g.b = ((const void *const *)t->g.b)[i];
        g.d = ((void *const *)t->g.d)[i];
    } else {
        g.a = step(t->g.a, i * t->stride_a, g.a_type);
        g.b = step(t->g.b, i * t->stride_b, g.b_type);
        g.d = (void *)step(t->g.d, i * t->stride_d, g.d_type);
    }
    g.c = g.d;
    return g;
}

static bool run_batch(struct batch *t) {
    size_t list = t->listed ? sizeof(void *) * (size_t)t->count : 0;
    if (!check_operand(t, ": array of A", t->g.a, list) ||
        !check_operand(t, ": array of B", t->g.b, list) ||
        !check_operand(t, ": array of C", t->g.d, list))
        return false;
    if (t->scalars_on_device) {
        if (!check_operand(t, ": alpha", t->alpha, sizeof(float)) ||
            !check_operand(t, ": beta", t->beta, sizeof(float)))
            return false;
        t->g.alpha = *(const float *)t->alpha;
        t->g.beta = *(const float *)t->beta;
    }
    for (int32_t i = 0; i < t->count; i++) {
        struct gemm g = product(t, i);
        if (!check_matrices(t, &g))
            return false;
        gemm_run(&g);
    }
    return true;
}

static cudaError_t run_task(const void *args) {
    struct batch t = *(const struct batch *)args;
    ptxvm_access_begin();
    bool ok = run_batch(&t);
    ptxvm_access_end();
    return ok ? cudaSuccess : cudaErrorIllegalAddress;
}

/* ---- checks ---------------------------------------------------------------------------------- */

static bool is_operation(cublasOperation_t op) {
    return op == CUBLAS_OP_N || op == CUBLAS_OP_T || op == CUBLAS_OP_C;
}

static bool is_supported(const struct gemm *g, cublasComputeType_t compute) {
    bool f32_compute = compute == CUBLAS_COMPUTE_32F || compute == CUBLAS_COMPUTE_32F_PEDANTIC ||
                       compute == CUBLAS_COMPUTE_32F_FAST_TF32 ||
                       compute == CUBLAS_COMPUTE_32F_FAST_16F ||
                       compute == CUBLAS_COMPUTE_32F_FAST_16BF;
    bool input = g->a_type == CUDA_R_32F || g->a_type == CUDA_R_16F || g->a_type == CUDA_R_16BF;
    return f32_compute && input && g->a_type == g->b_type &&
           (g->d_type == g->a_type || g->d_type == CUDA_R_32F);
}

static int64_t at_least_1(int64_t v) {
    return v > 1 ? v : 1;
}

static cublasStatus_t check(const struct batch *t, cublasOperation_t op_a, cublasOperation_t op_b,
                            cublasComputeType_t compute) {
    const struct gemm *g = &t->g;
    if (!is_operation(op_a) || !is_operation(op_b) || g->m < 0 || g->n < 0 || g->k < 0 ||
        t->count < 0 || !t->alpha || !t->beta || g->lda < at_least_1(g->trans_a ? g->k : g->m) ||
        g->ldb < at_least_1(g->trans_b ? g->n : g->k) || g->ldd < at_least_1(g->m))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!is_supported(g, compute)) {
        ptxvm_write_report("%s: types %d x %d -> %d with compute type %d are not supported",
                           t->call, (int)g->a_type, (int)g->b_type, (int)g->d_type, (int)compute);
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    return CUBLAS_STATUS_SUCCESS;
}

/* The device of the handle must be the current one, and its stream's. */
static bool is_on_device(const struct cublasContext *handle, const char *call) {
    int current = -1, stream = ptxvm_stream_device(handle->stream);
    cudaGetDevice(&current);
    if (current == handle->device && stream == handle->device)
        return true;
    ptxvm_write_report("%s: the handle belongs to device %d, the stream to %d, and %d is current",
                       call, handle->device, stream, current);
    return false;
}

/* Fills in what all forms share, checks, and enqueues. */
static cublasStatus_t submit(cublasHandle_t handle, struct batch t, cublasOperation_t op_a,
                             cublasOperation_t op_b, cublasComputeType_t compute) {
    if (!handle)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    t.g.trans_a = op_a != CUBLAS_OP_N;
    t.g.trans_b = op_b != CUBLAS_OP_N;
    t.g.c_type = t.g.d_type;
    t.g.ldc = t.g.ldd;
    cublasStatus_t status = check(&t, op_a, op_b, compute);
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    if (!t.g.m || !t.g.n || !t.count)
        return CUBLAS_STATUS_SUCCESS;
    if (!is_on_device(handle, t.call))
        return CUBLAS_STATUS_EXECUTION_FAILED;
    t.device = handle->device;
    t.scalars_on_device = handle->pointer_mode == CUBLAS_POINTER_MODE_DEVICE;
    if (!t.scalars_on_device) {
        t.g.alpha = *(const float *)t.alpha;
        t.g.beta = *(const float *)t.beta;
    }
    struct ptxvm_task task = {.run = run_task, .args = &t, .bytes = sizeof t};
    return ptxvm_enqueue(handle->stream, &task) == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                                               : CUBLAS_STATUS_EXECUTION_FAILED;
}

/* ---- the calls ------------------------------------------------------------------------------- */

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t op_a,
                                          cublasOperation_t op_b, int m, int n, int k,
                                          const void *alpha, const void *a, cudaDataType a_type,
                                          int lda, long long stride_a, const void *b,
                                          cudaDataType b_type, int ldb, long long stride_b,
                                          const void *beta, void *c, cudaDataType c_type, int ldc,
                                          long long stride_c, int count,
                                          cublasComputeType_t compute, cublasGemmAlgo_t algo) {
    (void)algo; /* one algorithm for all */
    struct batch t = {.call = "cublasGemmStridedBatchedEx",
                      .alpha = alpha,
                      .beta = beta,
                      .stride_a = stride_a,
                      .stride_b = stride_b,
                      .stride_d = stride_c,
                      .count = count,
                      .g = {.m = m,
                            .n = n,
                            .k = k,
                            .a_type = a_type,
                            .b_type = b_type,
                            .d_type = c_type,
                            .a = a,
                            .b = b,
                            .d = c,
                            .lda = lda,
                            .ldb = ldb,
                            .ldd = ldc}};
    return submit(handle, t, op_a, op_b, compute);
}

cublasStatus_t cublasGemmBatchedEx(cublasHandle_t handle, cublasOperation_t op_a,
                                   cublasOperation_t op_b, int m, int n, int k, const void *alpha,
                                   const void *const a[], cudaDataType a_type, int lda,
                                   const void *const b[], cudaDataType b_type, int ldb,
                                   const void *beta, void *const c[], cudaDataType c_type, int ldc,
                                   int count, cublasComputeType_t compute, cublasGemmAlgo_t algo) {
    (void)algo;
    struct batch t = {.call = "cublasGemmBatchedEx",
                      .alpha = alpha,
                      .beta = beta,
                      .count = count,
                      .listed = true,
                      .g = {.m = m,
                            .n = n,
                            .k = k,
                            .a_type = a_type,
                            .b_type = b_type,
                            .d_type = c_type,
                            .a = (const void *)a,
                            .b = (const void *)b,
                            .d = (void *)c,
                            .lda = lda,
                            .ldb = ldb,
                            .ldd = ldc}};
    return submit(handle, t, op_a, op_b, compute);
}

static cublasStatus_t one_product(const char *call, cublasHandle_t handle, cublasOperation_t op_a,
                                  cublasOperation_t op_b, const struct gemm *g, const void *alpha,
                                  const void *beta, cublasComputeType_t compute) {
    struct batch t = {.call = call, .alpha = alpha, .beta = beta, .count = 1, .g = *g};
    return submit(handle, t, op_a, op_b, compute);
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                            int m, int n, int k, const void *alpha, const void *a,
                            cudaDataType a_type, int lda, const void *b, cudaDataType b_type,
                            int ldb, const void *beta, void *c, cudaDataType c_type, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algo) {
    (void)algo;
    struct gemm g = {.m = m,
                     .n = n,
                     .k = k,
                     .a_type = a_type,
                     .b_type = b_type,
                     .d_type = c_type,
                     .a = a,
                     .b = b,
                     .d = c,
                     .lda = lda,
                     .ldb = ldb,
                     .ldd = ldc};
    return one_product("cublasGemmEx", handle, op_a, op_b, &g, alpha, beta, compute);
}

cublasStatus_t cublasSgemm_v2(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                              int m, int n, int k, const float *alpha, const float *a, int lda,
                              const float *b, int ldb, const float *beta, float *c, int ldc) {
    struct gemm g = {.m = m,
                     .n = n,
                     .k = k,
                     .a_type = CUDA_R_32F,
                     .b_type = CUDA_R_32F,
                     .d_type = CUDA_R_32F,
                     .a = a,
                     .b = b,
                     .d = c,
                     .lda = lda,
                     .ldb = ldb,
                     .ldd = ldc};
    return one_product("cublasSgemm", handle, op_a, op_b, &g, alpha, beta, CUBLAS_COMPUTE_32F);
}
