/* The ceilings that kernels are measured against: copies and reads of memory, and large products by
 * cuBLASLt. */
#include <cublasLt.h>
#include <stdlib.h>

#include "cuda/cuda_check.h"
#include "tests/bench_gpu.h"
#include "tests/bench_kernels.h"

enum { LT_WORKSPACE = 64 << 20 };

/* ---- memory ---------------------------------------------------------------------------------- */

struct memory_case {
    char *from, *to;
    size_t bytes;
    int32_t num_sms;
};

static void copy_own(void *context, int32_t set, cudaStream_t stream) {
    const struct memory_case *m = context;
    (void)set;
    bench_copy_launch(m->to, m->from, m->bytes, m->num_sms, stream);
}

static void copy_runtime(void *context, int32_t set, cudaStream_t stream) {
    const struct memory_case *m = context;
    (void)set;
    CUDA_CHECK(cudaMemcpyAsync(m->to, m->from, m->bytes, cudaMemcpyDeviceToDevice, stream));
}

static void read_own(void *context, int32_t set, cudaStream_t stream) {
    const struct memory_case *m = context;
    (void)set;
    bench_read_launch((uint32_t *)(void *)m->to, m->from, m->bytes, m->num_sms, stream);
}

static double memory_gbps(struct bench *b, const struct memory_case *m, const char *name,
                          double bytes,
                          void (*launch)(void *context, int32_t set, cudaStream_t stream)) {
    struct bench_case c = {name, bytes, 0, 1, launch, (void *)(uintptr_t)m};
    return bytes / 1e3 / bench_run(b, &c);
}

static void measure_memory(struct bench *b) {
    struct memory_case m = {.bytes = b->tiny ? 1 << 16 : 1 << 30, .num_sms = b->gpu.num_sms};
    m.from = (char *)bench_random_floats(b, (int64_t)m.bytes / 4, 1);
    m.to = bench_alloc(b, m.bytes);
    if (bench_ready(b, "ceiling/memory")) {
        double n = (double)m.bytes;
        struct bench_ceilings c = {0};
        c.copy_gbps = memory_gbps(b, &m, "ceiling/copy, own kernel", 2 * n, copy_own);
        c.memcpy_gbps = memory_gbps(b, &m, "ceiling/cudaMemcpyDeviceToDevice", 2 * n, copy_runtime);
        c.read_gbps = memory_gbps(b, &m, "ceiling/read, own kernel", n, read_own);
        b->ceilings = c;
    }
    bench_release(b);
}

/* ---- products -------------------------------------------------------------------------------- */

/* D = A^T B, column-major, n x n x n. */
struct product {
    cublasLtHandle_t lt;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t layout, layout_out;
    cublasLtMatmulAlgo_t algo;
    void *a, *b, *d, *workspace;
};

#define LT_CHECK(call)                                                                             \
    do {                                                                                           \
        cublasStatus_t lt_status = (call);                                                         \
        CHECK(lt_status == CUBLAS_STATUS_SUCCESS, "%s: status %d", #call, (int)lt_status);         \
    } while (0)

static void product_launch(void *context, int32_t set, cudaStream_t stream) {
    const struct product *p = context;
    const float one = 1, zero = 0;
    (void)set;
    LT_CHECK(cublasLtMatmul(p->lt, p->desc, &one, p->a, p->layout, p->b, p->layout, &zero, p->d,
                            p->layout_out, p->d, p->layout_out, &p->algo, p->workspace,
                            LT_WORKSPACE, stream));
}

/* The library's first choice; false when it has none. */
static bool choose_algorithm(struct product *p) {
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t result;
    size_t workspace = LT_WORKSPACE;
    int found = 0;
    LT_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    LT_CHECK(cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace));
    cublasStatus_t rc =
        cublasLtMatmulAlgoGetHeuristic(p->lt, p->desc, p->layout, p->layout, p->layout_out,
                                       p->layout_out, preference, 1, &result, &found);
    LT_CHECK(cublasLtMatmulPreferenceDestroy(preference));
    if (rc != CUBLAS_STATUS_SUCCESS || found == 0)
        return false;
    p->algo = result.algo;
    return true;
}

static void describe_product(struct product *p, bool fp8, int64_t n, const float *one) {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    LT_CHECK(cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    LT_CHECK(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                            sizeof transposed));
    if (fp8) {
        LT_CHECK(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &one,
                                                sizeof one));
        LT_CHECK(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &one,
                                                sizeof one));
    }
    LT_CHECK(cublasLtMatrixLayoutCreate(&p->layout, fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF, (uint64_t)n,
                                        (uint64_t)n, n));
    LT_CHECK(cublasLtMatrixLayoutCreate(&p->layout_out, CUDA_R_16BF, (uint64_t)n, (uint64_t)n, n));
}

/* TFLOP/s of the product, or 0 when it cannot be had. */
static double product_tflops(struct bench *b, bool fp8) {
    const char *name = fp8 ? "ceiling/cuBLASLt E4M3" : "ceiling/cuBLASLt bf16";
    int64_t n = b->tiny ? 64 : 8192;
    const float one = 1;
    double tflops = 0;
    struct product p = {0};
    p.a = fp8 ? (void *)bench_random_e4m3(b, n * n) : (void *)bench_random_bf16(b, n * n, 1);
    p.b = fp8 ? (void *)bench_random_e4m3(b, n * n) : (void *)bench_random_bf16(b, n * n, 1);
    p.d = bench_alloc(b, (size_t)(n * n) * sizeof(bf16));
    p.workspace = bench_alloc(b, LT_WORKSPACE);
    const float *scale = bench_upload(b, &one, sizeof one);
    if (bench_ready(b, name)) {
        LT_CHECK(cublasLtCreate(&p.lt));
        describe_product(&p, fp8, n, scale);
        double operations = 2.0 * (double)n * (double)n * (double)n;
        struct bench_case c = {name, 0, operations, 1, product_launch, &p};
        if (choose_algorithm(&p))
            tflops = operations / 1e6 / bench_run(b, &c);
        else
            printf("%-56s cuBLASLt has no algorithm for it on this GPU\n", name);
        bench_release(b); /* waits for the products, too */
        LT_CHECK(cublasLtMatrixLayoutDestroy(p.layout));
        LT_CHECK(cublasLtMatrixLayoutDestroy(p.layout_out));
        LT_CHECK(cublasLtMatmulDescDestroy(p.desc));
        LT_CHECK(cublasLtDestroy(p.lt));
    }
    bench_release(b);
    return tflops;
}

void bench_measure_ceilings(struct bench *b) {
    measure_memory(b);
    b->ceilings.bf16_tflops = product_tflops(b, false);
    if (b->gpu.sm >= 89)
        b->ceilings.fp8_tflops = product_tflops(b, true);
}
