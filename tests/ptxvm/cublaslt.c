/* cuBLASLt over the CUDA runtime's stand-in: cublasLtMatmul for float32, FP16, BF16 and E4M3
 * matrices in column-major order, with scale pointers of E4M3 operands and bias or ReLU epilogues.
 *
 *     D = epilogue(alpha * scale_a * scale_b * op(A) * op(B) + beta * C)
 *
 * Descriptors are the structs below, reached through tables of attributes. What else the real
 * library can do is answered with CUBLAS_STATUS_NOT_SUPPORTED and a report.
 *
 * There is one algorithm for each combination of matrix types. A heuristic notes in it how the
 * matrices will be aligned; a product that breaks the promise is refused, as the real library's
 * kernels would fault. An algorithm wants a workspace as large as the result in float32, within the
 * preference's limit, and overwrites it.
 */
#include <cublasLt.h>
#include <string.h>

#include "tests/ptxvm/gemm.h"
#include "tests/ptxvm/rt_alloc.h"
#include "tests/ptxvm/rt_hooks.h"

struct layout {
    uint32_t type;
    int32_t order, batch;
    uint64_t rows, cols;
    int64_t ld, stride;
};

struct desc {
    int32_t compute, scale_type, pointer_mode, trans_a, trans_b, trans_c, fill, sm_count;
    uint32_t epilogue;
    int32_t bias_type; /* -1: that of D */
    const void *bias;
    const float *a_scale, *b_scale, *c_scale, *d_scale;
    int32_t a_scale_mode, b_scale_mode, c_scale_mode, d_scale_mode;
    int64_t bias_stride;
    int8_t fast_accum;
};

struct preference {
    uint32_t search, reduction, alignment[4];
    uint64_t workspace, impl;
    float waves;
};

/* What an algorithm was chosen for. */
struct algo {
    uint32_t types[3];     /* of A, B and D */
    uint32_t alignment[4]; /* of A, B, C, D and their leading dimensions; bytes */
    uint64_t most_workspace;
};

_Static_assert(sizeof(struct algo) <= sizeof(cublasLtMatmulAlgo_t), "algo");
_Static_assert(sizeof(struct layout) <= sizeof(cublasLtMatrixLayoutOpaque_t), "layout");
_Static_assert(sizeof(struct desc) <= sizeof(cublasLtMatmulDescOpaque_t), "desc");
_Static_assert(sizeof(struct preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t), "preference");

/* ---- attributes ------------------------------------------------------------------------------ */

struct attribute {
    int id;
    size_t offset, bytes;
};

#define FIELD(id, type, field)                                                                     \
    { id, offsetof(type, field), sizeof(((type *)0)->field) }

static const struct attribute layout_attributes[] = {
    FIELD(CUBLASLT_MATRIX_LAYOUT_TYPE, struct layout, type),
    FIELD(CUBLASLT_MATRIX_LAYOUT_ORDER, struct layout, order),
    FIELD(CUBLASLT_MATRIX_LAYOUT_ROWS, struct layout, rows),
    FIELD(CUBLASLT_MATRIX_LAYOUT_COLS, struct layout, cols),
    FIELD(CUBLASLT_MATRIX_LAYOUT_LD, struct layout, ld),
    FIELD(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, struct layout, batch),
    FIELD(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, struct layout, stride),
    {-1, 0, 0},
};

static const struct attribute desc_attributes[] = {
    FIELD(CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, struct desc, compute),
    FIELD(CUBLASLT_MATMUL_DESC_SCALE_TYPE, struct desc, scale_type),
    FIELD(CUBLASLT_MATMUL_DESC_POINTER_MODE, struct desc, pointer_mode),
    FIELD(CUBLASLT_MATMUL_DESC_TRANSA, struct desc, trans_a),
    FIELD(CUBLASLT_MATMUL_DESC_TRANSB, struct desc, trans_b),
    FIELD(CUBLASLT_MATMUL_DESC_TRANSC, struct desc, trans_c),
    FIELD(CUBLASLT_MATMUL_DESC_FILL_MODE, struct desc, fill),
    FIELD(CUBLASLT_MATMUL_DESC_EPILOGUE, struct desc, epilogue),
    FIELD(CUBLASLT_MATMUL_DESC_BIAS_POINTER, struct desc, bias),
    FIELD(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, struct desc, bias_type),
    FIELD(CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, struct desc, bias_stride),
    FIELD(CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, struct desc, sm_count),
    FIELD(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, struct desc, a_scale),
    FIELD(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, struct desc, b_scale),
    FIELD(CUBLASLT_MATMUL_DESC_C_SCALE_POINTER, struct desc, c_scale),
    FIELD(CUBLASLT_MATMUL_DESC_D_SCALE_POINTER, struct desc, d_scale),
    FIELD(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, struct desc, a_scale_mode),
    FIELD(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, struct desc, b_scale_mode),
    FIELD(CUBLASLT_MATMUL_DESC_C_SCALE_MODE, struct desc, c_scale_mode),
    FIELD(CUBLASLT_MATMUL_DESC_D_SCALE_MODE, struct desc, d_scale_mode),
    FIELD(CUBLASLT_MATMUL_DESC_FAST_ACCUM, struct desc, fast_accum),
    {-1, 0, 0},
};

static const struct attribute preference_attributes[] = {
    FIELD(CUBLASLT_MATMUL_PREF_SEARCH_MODE, struct preference, search),
    FIELD(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, struct preference, workspace),
    FIELD(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, struct preference, reduction),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, struct preference, alignment[0]),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, struct preference, alignment[1]),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, struct preference, alignment[2]),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, struct preference, alignment[3]),
    FIELD(CUBLASLT_MATMUL_PREF_MAX_WAVES_COUNT, struct preference, waves),
    FIELD(CUBLASLT_MATMUL_PREF_IMPL_MASK, struct preference, impl),
    {-1, 0, 0},
};

static const struct attribute *find_attribute(const struct attribute *table, int id) {
    while (table->id >= 0 && table->id != id)
        table++;
    if (table->id >= 0)
        return table;
    ptxvm_write_report("cublasLt: attribute %d is not supported", id);
    return NULL;
}

static cublasStatus_t set_attribute(const struct attribute *table, void *object, int id,
                                    const void *value, size_t bytes) {
    const struct attribute *a = find_attribute(table, id);
    if (!a)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!object || !value || bytes != a->bytes)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy((char *)object + a->offset, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

/* With room for nothing only the size is told. */
static cublasStatus_t get_attribute(const struct attribute *table, const void *object, int id,
                                    void *value, size_t bytes, size_t *written) {
    const struct attribute *a = find_attribute(table, id);
    if (!a)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!object || (bytes ? !value || bytes < a->bytes : !written))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (written)
        *written = a->bytes;
    if (bytes)
        memcpy(value, (const char *)object + a->offset, a->bytes);
    return CUBLAS_STATUS_SUCCESS;
}

#define ATTRIBUTE_FUNCTIONS(name, handle, id_type, table)                                          \
    cublasStatus_t cublasLt##name##SetAttribute(handle object, id_type id, const void *value,      \
                                                size_t bytes) {                                    \
        return set_attribute(table, object, (int)id, value, bytes);                                \
    }                                                                                              \
    cublasStatus_t cublasLt##name##GetAttribute(handle object, id_type id, void *value,            \
                                                size_t bytes, size_t *written) {                   \
        return get_attribute(table, object, (int)id, value, bytes, written);                       \
    }                                                                                              \
    cublasStatus_t cublasLt##name##Destroy(handle object) {                                        \
        rt_free(object);                                                                           \
        return CUBLAS_STATUS_SUCCESS;                                                              \
    }
ATTRIBUTE_FUNCTIONS(MatrixLayout, cublasLtMatrixLayout_t, cublasLtMatrixLayoutAttribute_t,
                    layout_attributes)
ATTRIBUTE_FUNCTIONS(MatmulDesc, cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t,
                    desc_attributes)
ATTRIBUTE_FUNCTIONS(MatmulPreference, cublasLtMatmulPreference_t,
                    cublasLtMatmulPreferenceAttributes_t, preference_attributes)

/* ---- creation -------------------------------------------------------------------------------- */

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    if (!handle)
        return CUBLAS_STATUS_INVALID_VALUE;
    *handle = rt_calloc(1);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    rt_free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion(void) {
    return CUBLAS_VERSION;
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, size_t bytes,
                                                 cudaDataType type, uint64_t rows, uint64_t cols,
                                                 int64_t ld) {
    if (!layout || bytes < sizeof(struct layout))
        return CUBLAS_STATUS_INVALID_VALUE;
    struct layout l = {.type = type,
                       .order = CUBLASLT_ORDER_COL,
                       .batch = 1,
                       .rows = rows,
                       .cols = cols,
                       .ld = ld};
    memset(layout, 0, bytes);
    memcpy(layout, &l, sizeof l);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
    if (!layout)
        return CUBLAS_STATUS_INVALID_VALUE;
    *layout = rt_calloc(sizeof **layout);
    return cublasLtMatrixLayoutInit_internal(*layout, sizeof **layout, type, rows, cols, ld);
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t desc, size_t bytes,
                                               cublasComputeType_t compute,
                                               cudaDataType_t scale_type) {
    if (!desc || bytes < sizeof(struct desc))
        return CUBLAS_STATUS_INVALID_VALUE;
    struct desc d = {.compute = compute,
                     .scale_type = scale_type,
                     .fill = CUBLAS_FILL_MODE_FULL,
                     .epilogue = CUBLASLT_EPILOGUE_DEFAULT,
                     .bias_type = -1};
    memset(desc, 0, bytes);
    memcpy(desc, &d, sizeof d);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                        cudaDataType_t scale_type) {
    if (!desc)
        return CUBLAS_STATUS_INVALID_VALUE;
    *desc = rt_calloc(sizeof **desc);
    return cublasLtMatmulDescInit_internal(*desc, sizeof **desc, compute, scale_type);
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t preference,
                                                     size_t bytes) {
    if (!preference || bytes < sizeof(struct preference))
        return CUBLAS_STATUS_INVALID_VALUE;
    struct preference p = {.reduction = CUBLASLT_REDUCTION_SCHEME_MASK,
                           .alignment = {256, 256, 256, 256}};
    memset(preference, 0, bytes);
    memcpy(preference, &p, sizeof p);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    if (!preference)
        return CUBLAS_STATUS_INVALID_VALUE;
    *preference = rt_calloc(sizeof **preference);
    return cublasLtMatmulPreferenceInit_internal(*preference, sizeof **preference);
}

/* ---- checks ---------------------------------------------------------------------------------- */

struct matmul {
    struct gemm g;
    struct layout a, b, c, d;
    struct desc desc;
    const float *alpha, *beta; /* on the device, when the pointer mode says so */
    void *workspace;
    size_t workspace_bytes; /* that the algorithm wants */
    int device;
};

static bool refuse(const char *what) {
    ptxvm_write_report("cublasLtMatmul: %s", what);
    return false;
}

/* FP8 matrices as the tensor cores of sm_89 and later take them. */
static bool is_fp8_form(const struct matmul *t) {
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, t->device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, t->device);
    if (major * 10 + minor < 89)
        return refuse("FP8 needs sm_89 or later");
    if (!t->g.trans_a || t->g.trans_b)
        return refuse("FP8 needs A transposed and B not");
    if (t->g.k % 16 || t->g.m % 16 || t->a.ld % 16 || t->b.ld % 16)
        return refuse("FP8 needs m, k and leading dimensions that are multiples of 16");
    return true;
}

static bool is_supported(const struct matmul *t) {
    const struct desc *d = &t->desc;
    bool fp8 = t->a.type == CUDA_R_8F_E4M3, f32 = t->a.type == CUDA_R_32F;
    bool half = t->a.type == CUDA_R_16F || t->a.type == CUDA_R_16BF;
    if ((d->compute != CUBLAS_COMPUTE_32F && d->compute != CUBLAS_COMPUTE_32F_FAST_TF32) ||
        d->scale_type != CUDA_R_32F || d->pointer_mode > CUBLASLT_POINTER_MODE_DEVICE)
        return refuse("only float32 compute and scale types are supported");
    if (!(fp8 || half || f32) || t->b.type != t->a.type || t->c.type != t->d.type ||
        !(t->d.type == CUDA_R_32F || (!fp8 && t->d.type == t->a.type) ||
          (fp8 && (t->d.type == CUDA_R_16BF || t->d.type == CUDA_R_16F))))
        return refuse("this combination of matrix types is not supported");
    if (t->a.order != CUBLASLT_ORDER_COL || t->b.order != CUBLASLT_ORDER_COL ||
        t->c.order != CUBLASLT_ORDER_COL || t->d.order != CUBLASLT_ORDER_COL)
        return refuse("only column-major matrices are supported");
    if (d->trans_c || d->fill != CUBLAS_FILL_MODE_FULL || d->c_scale || d->d_scale ||
        d->a_scale_mode || d->b_scale_mode || d->c_scale_mode || d->d_scale_mode ||
        (!fp8 && (d->a_scale || d->b_scale)))
        return refuse("only one float32 scale for each FP8 operand is supported");
    if (d->epilogue & ~(unsigned)(CUBLASLT_EPILOGUE_DEFAULT | CUBLASLT_EPILOGUE_RELU_BIAS))
        return refuse("only bias and ReLU epilogues are supported");
    return !fp8 || is_fp8_form(t);
}

static bool is_shaped(const struct layout *l, int64_t rows, int64_t cols, int32_t batch) {
    return (int64_t)l->rows == rows && (int64_t)l->cols == cols && l->ld >= rows &&
           l->batch == batch;
}

/* Fills in the product that the descriptors mean. */
static cublasStatus_t describe(struct matmul *t, cublasLtMatmulDesc_t desc,
                               cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                               cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d) {
    if (!desc || !a || !b || !c || !d || cudaGetDevice(&t->device) != cudaSuccess)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&t->desc, desc, sizeof t->desc);
    memcpy(&t->a, a, sizeof t->a);
    memcpy(&t->b, b, sizeof t->b);
    memcpy(&t->c, c, sizeof t->c);
    memcpy(&t->d, d, sizeof t->d);
    bool ta = t->desc.trans_a != CUBLAS_OP_N, tb = t->desc.trans_b != CUBLAS_OP_N;
    int64_t m = (int64_t)t->d.rows, n = (int64_t)t->d.cols;
    int64_t k = (int64_t)(ta ? t->a.rows : t->a.cols);
    int32_t batch = t->d.batch;
    bool same_bias = t->desc.bias_type < 0;
    bool fp8_to_f32 = t->a.type == CUDA_R_8F_E4M3 && t->d.type == CUDA_R_32F;
    t->g = (struct gemm){.trans_a = ta,
                         .trans_b = tb,
                         .m = m,
                         .n = n,
                         .k = k,
                         .a_type = t->a.type,
                         .b_type = t->b.type,
                         .c_type = t->c.type,
                         .d_type = t->d.type,
                         .lda = t->a.ld,
                         .ldb = t->b.ld,
                         .ldc = t->c.ld,
                         .ldd = t->d.ld,
                         .bias_type = !same_bias   ? (cudaDataType)t->desc.bias_type
                                      : fp8_to_f32 ? CUDA_R_16BF
                                                   : (cudaDataType)t->d.type,
                         .relu = t->desc.epilogue & CUBLASLT_EPILOGUE_RELU};
    if (!is_shaped(&t->a, ta ? k : m, ta ? m : k, batch) ||
        !is_shaped(&t->b, tb ? n : k, tb ? k : n, batch) || !is_shaped(&t->c, m, n, batch) ||
        !is_shaped(&t->d, m, n, batch) || m <= 0 || n <= 0 || k <= 0 || batch < 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!is_supported(t) || !gemm_type_bytes(t->g.bias_type))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- execution ------------------------------------------------------------------------------- */

static bool check(const struct matmul *t, const char *name, const void *p, size_t bytes) {
    return ptxvm_check_range(name, t->device, p, bytes);
}

static bool read_scalar(const struct matmul *t, const char *name, const float *p, float *value) {
    if (!check(t, name, p, sizeof *p))
        return false;
    *value = *p;
    return true;
}

/* Alpha and beta, with the scales of the operands in alpha. */
static bool read_scalars(const struct matmul *t, struct gemm *g) {
    float a = 1, b = 1;
    if (t->desc.pointer_mode == CUBLASLT_POINTER_MODE_DEVICE &&
        (!read_scalar(t, "cublasLtMatmul: alpha", t->alpha, &g->alpha) ||
         !read_scalar(t, "cublasLtMatmul: beta", t->beta, &g->beta)))
        return false;
    if ((t->desc.a_scale && !read_scalar(t, "cublasLtMatmul: scale of A", t->desc.a_scale, &a)) ||
        (t->desc.b_scale && !read_scalar(t, "cublasLtMatmul: scale of B", t->desc.b_scale, &b)))
        return false;
    g->alpha *= a * b;
    return true;
}

static const void *step(const void *p, int64_t elements, cudaDataType t) {
    return (const char *)p + elements * (int64_t)gemm_type_bytes(t);
}

static bool check_matrix(const struct matmul *t, const char *name, const void *p,
                         const struct layout *l) {
    return check(t, name, p,
                 gemm_extent((cudaDataType)l->type, (int64_t)l->rows, (int64_t)l->cols, l->ld));
}

static bool run_one(const struct matmul *t, struct gemm g, int32_t i) {
    g.a = step(g.a, i * t->a.stride, g.a_type);
    g.b = step(g.b, i * t->b.stride, g.b_type);
    g.c = step(g.c, i * t->c.stride, g.c_type);
    g.d = (void *)step(g.d, i * t->d.stride, g.d_type);
    if (t->desc.epilogue & CUBLASLT_EPILOGUE_BIAS)
        g.bias = step(t->desc.bias, i * t->desc.bias_stride, g.bias_type);
    if (!check_matrix(t, "cublasLtMatmul: matrix A", g.a, &t->a) ||
        !check_matrix(t, "cublasLtMatmul: matrix B", g.b, &t->b) ||
        (g.beta != 0 && !check_matrix(t, "cublasLtMatmul: matrix C", g.c, &t->c)) ||
        !check_matrix(t, "cublasLtMatmul: matrix D", g.d, &t->d) ||
        (g.bias &&
         !check(t, "cublasLtMatmul: bias", g.bias, (size_t)g.m * gemm_type_bytes(g.bias_type))))
        return false;
    gemm_run(&g);
    return true;
}

static cudaError_t run_task(const void *args) {
    const struct matmul *t = args;
    struct gemm g = t->g;
    ptxvm_access_begin();
    bool ok = read_scalars(t, &g);
    if (ok && t->workspace_bytes) {
        ok = check(t, "cublasLtMatmul: workspace", t->workspace, t->workspace_bytes);
        if (ok)
            memset(t->workspace, 0xff, t->workspace_bytes);
    }
    for (int32_t i = 0; i < t->d.batch && ok; i++)
        ok = run_one(t, g, i);
    ptxvm_access_end();
    return ok ? cudaSuccess : cudaErrorIllegalAddress;
}

/* FP8 loads 16 bytes at a time. */
static bool is_aligned(const struct matmul *t, const void *a, const void *b, const void *d) {
    uintptr_t all = (uintptr_t)a | (uintptr_t)b | (uintptr_t)d;
    return t->a.type != CUDA_R_8F_E4M3 || all % 16 == 0 ||
           refuse("FP8 needs matrices at multiples of 16 bytes");
}

/* ---- algorithms ------------------------------------------------------------------------------ */

static size_t workspace_of(const struct matmul *t, const struct algo *algo) {
    size_t wanted = t->d.rows * t->d.cols * sizeof(float);
    return wanted < algo->most_workspace ? wanted : algo->most_workspace;
}

static const struct layout *nth_layout(const struct matmul *t, int i) {
    const struct layout *all[] = {&t->a, &t->b, &t->c, &t->d};
    return all[i];
}

/* Can the algorithm compute a product of these layouts? */
static bool algo_fits(const struct matmul *t, const struct algo *algo) {
    if (algo->types[0] != t->a.type || algo->types[1] != t->b.type || algo->types[2] != t->d.type)
        return refuse("the algorithm is for other matrix types");
    for (int i = 0; i < 4; i++) {
        const struct layout *l = nth_layout(t, i);
        if ((uint64_t)l->ld * gemm_type_bytes((cudaDataType)l->type) % algo->alignment[i])
            return refuse("a leading dimension is less aligned than the algorithm was promised");
    }
    return true;
}

/* Takes the algorithm for a product that is about to run. */
static cublasStatus_t take_algo(struct matmul *t, const struct algo *algo, void *workspace,
                                size_t workspace_bytes) {
    const void *matrices[] = {t->g.a, t->g.b, t->g.c, t->g.d};
    if (!algo_fits(t, algo))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)matrices[i] % algo->alignment[i] && !(i == 2 && t->g.beta == 0)) {
            refuse("a matrix is less aligned than the algorithm was promised");
            return CUBLAS_STATUS_INVALID_VALUE;
        }
    t->workspace_bytes = workspace_of(t, algo);
    t->workspace = workspace;
    if (t->workspace_bytes > workspace_bytes || (t->workspace_bytes && !workspace)) {
        refuse("the algorithm wants more workspace");
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algo,
                                       cublasLtMatmulHeuristicResult_t *result) {
    struct matmul t = {0};
    if (!handle)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!algo || !result)
        return CUBLAS_STATUS_INVALID_VALUE;
    struct algo known;
    memcpy(&known, algo, sizeof known);
    cublasStatus_t status = describe(&t, desc, a, b, c, d);
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    if (!algo_fits(&t, &known))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    result->workspaceSize = workspace_of(&t, &known);
    result->state = CUBLAS_STATUS_SUCCESS;
    result->wavesCount = 1;
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasLtGetStatusString(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "no handle";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "an argument has a value that it must not have";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "not supported";
    case CUBLAS_STATUS_EXECUTION_FAILED:
        return "a launch failed";
    default:
        return "another status";
    }
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream) {
    struct matmul t = {0};
    struct algo known;
    if (!handle)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    cublasStatus_t status = describe(&t, desc, a_layout, b_layout, c_layout, d_layout);
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    if (!alpha || !beta || !a || !b || !d || !is_aligned(&t, a, b, d) ||
        ((t.desc.epilogue & CUBLASLT_EPILOGUE_BIAS) && !t.desc.bias))
        return CUBLAS_STATUS_INVALID_VALUE;
    t.g.a = a;
    t.g.b = b;
    t.g.c = c;
    t.g.d = d;
    t.alpha = alpha;
    t.beta = beta;
    if (t.desc.pointer_mode == CUBLASLT_POINTER_MODE_HOST) {
        t.g.alpha = *(const float *)alpha;
        t.g.beta = *(const float *)beta;
    }
    if (algo) { /* without one, no promises were made and no workspace is wanted */
        memcpy(&known, algo, sizeof known);
        status = take_algo(&t, &known, workspace, workspace_bytes);
        if (status != CUBLAS_STATUS_SUCCESS)
            return status;
    }
    if (ptxvm_stream_device(stream) != t.device) {
        refuse("the stream belongs to another device than the current one");
        return CUBLAS_STATUS_EXECUTION_FAILED;
    }
    struct ptxvm_task task = {.run = run_task, .args = &t, .bytes = sizeof t};
    return ptxvm_enqueue(stream, &task) == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                                       : CUBLAS_STATUS_EXECUTION_FAILED;
}

/* One result, when the product is supported at all. */
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int *returned) {
    struct matmul t = {0};
    if (!handle)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!preference || requested < 1 || !results || !returned)
        return CUBLAS_STATUS_INVALID_VALUE;
    *returned = 0;
    cublasStatus_t status = describe(&t, desc, a, b, c, d);
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    struct preference p;
    memcpy(&p, preference, sizeof p);
    struct algo algo = {.types = {t.a.type, t.b.type, t.d.type}, .most_workspace = p.workspace};
    for (int i = 0; i < 4; i++) {
        const struct layout *l = nth_layout(&t, i);
        uint64_t bits = (uint64_t)l->ld * gemm_type_bytes((cudaDataType)l->type) | p.alignment[i];
        algo.alignment[i] = (uint32_t)(bits & -bits);
    }
    memset(&results[0], 0, sizeof results[0]);
    memcpy(&results[0].algo, &algo, sizeof algo);
    results[0].workspaceSize = workspace_of(&t, &algo);
    results[0].state = CUBLAS_STATUS_SUCCESS;
    results[0].wavesCount = 1;
    *returned = 1;
    return CUBLAS_STATUS_SUCCESS;
}
