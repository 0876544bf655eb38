/* bench_cuda: dense projections: the streaming kernel on BF16 and FP8 weights, and cuBLAS on BF16
 * ones as the backend calls it, by the number of tokens; and where cuBLAS becomes the faster one.
 *
 * Several copies of the weights take turns, so that they come from memory.
 */
#include <cublas_v2.h>

#include "cuda/cuda_check.h"
#include "tests/bench_gpu.h"

enum { MAX_SETS = 16, BLAS_WORKSPACE = 32 << 20 };

struct projection {
    const char *name;
    int32_t rows, cols;
    bool y_float;
    bool quick; /* run with --quick too */
};

static const struct projection projections[] = {
    {"mixtral-8x7b qkv", 6144, 4096, false, true},
    {"mixtral-8x7b o", 4096, 4096, true, true},
    {"mixtral-8x7b lm_head", 32000, 4096, true, true},
    {"skywork-moe qkv", 13824, 4608, false, false},
    {"qwen3-30b-a3b qkv", 5120, 2048, false, false},
    {"qwen3-30b-a3b lm_head", 151936, 2048, true, false},
};
static const struct projection tiny_projection = {"tiny", 48, 64, true, true};

enum way { STREAM_BF16, CUBLAS_BF16, STREAM_FP8, NUM_WAYS };
static const char *const way_names[NUM_WAYS] = {"stream bf16", "cublas bf16", "stream fp8"};

struct dense_case {
    struct dense_args args;
    const void *weights[MAX_SETS];
    cublasHandle_t blas;
};

static void launch_stream(void *context, int32_t set, cudaStream_t stream) {
    const struct dense_case *c = context;
    struct dense_args a = c->args;
    a.weight = c->weights[set];
    dense_launch(&a, stream);
}

/* As cuda/cuda_ops.c does it. */
static void launch_cublas(void *context, int32_t set, cudaStream_t stream) {
    const struct dense_case *c = context;
    const struct dense_args *a = &c->args;
    const float one = 1, zero = 0;
    (void)stream;
    cublasStatus_t rc =
        cublasGemmEx(c->blas, CUBLAS_OP_T, CUBLAS_OP_N, a->rows, a->num_tokens, a->cols, &one,
                     c->weights[set], CUDA_R_16BF, a->cols, a->x, CUDA_R_16BF, (int)a->ldx, &zero,
                     a->y, a->y_float ? CUDA_R_32F : CUDA_R_16BF, (int)a->ldy, CUBLAS_COMPUTE_32F,
                     CUBLAS_GEMM_DEFAULT);
    CHECK(rc == CUBLAS_STATUS_SUCCESS, "cublasGemmEx: %s", cublasGetStatusString(rc));
}

/* Microseconds, 0 when it did not run. The weights are there already. */
static double run_tokens(struct bench *b, struct dense_case *c, const struct projection *p,
                         enum way way, int32_t sets, int32_t T) {
    char name[96];
    double us = 0, element = p->y_float ? sizeof(float) : sizeof(bf16);
    bool fp8 = way == STREAM_FP8;
    snprintf(name, sizeof name, "dense/%s %s T=%d", p->name, way_names[way], T);
    if (!bench_wanted(b, name))
        return 0;
    int32_t first = b->num_buffers;
    c->args = (struct dense_args){
        .y = bench_alloc(b, (size_t)((double)T * p->rows * element)),
        .y_float = p->y_float,
        .ldy = p->rows,
        .x = bench_random_bf16(b, (int64_t)T * p->cols, 1),
        .ldx = p->cols,
        .layout = fp8 ? LAYOUT_FRAGMENTS : LAYOUT_ROWS,
        .dtype = fp8 ? DTYPE_F8_E4M3 : DTYPE_BF16,
        .weight_scale = fp8 ? bench_random_floats(b, p->rows, 2e-4f) : NULL,
        .scale = fp8 ? SCALE_ROW : SCALE_NONE,
        .rows = p->rows,
        .cols = p->cols,
        .num_tokens = T,
        .gpu = b->gpu,
    };
    struct bench_case run = {
        .name = name,
        .bytes = (double)p->rows * p->cols * (fp8 ? 1 : sizeof(bf16)) +
                 (double)T * p->cols * sizeof(bf16) + (double)T * p->rows * element,
        .operations = 2.0 * p->rows * p->cols * T,
        .sets = sets,
        .launch = way == CUBLAS_BF16 ? launch_cublas : launch_stream,
        .context = c,
    };
    if (bench_ready(b, name))
        us = bench_run(b, &run);
    bench_release_to(b, first);
    return us;
}

static int32_t token_counts(const struct bench *b, const int32_t **out) {
    static const int32_t all[] = {1,  2,  4,   8,   16,  24,  32,   48,
                                  64, 96, 128, 192, 256, 512, 1024, 4096};
    static const int32_t quick[] = {1, 8, 32, 64, 128, 512, 2048};
    static const int32_t tiny[] = {1, 9};
    *out = b->tiny ? tiny : b->quick ? quick : all;
    return (int32_t)((b->tiny ? sizeof tiny : b->quick ? sizeof quick : sizeof all) / sizeof *all);
}

/* All ways of one projection; says from which of the token counts on cuBLAS is faster. */
static void run_projection(struct bench *b, const struct projection *p, cublasHandle_t blas) {
    const int32_t *tokens;
    int32_t n = token_counts(b, &tokens), faster_from = 0;
    double us[NUM_WAYS][32] = {{0}};
    char name[96];
    snprintf(name, sizeof name, "dense/%s", p->name);
    for (enum way way = STREAM_BF16; way < NUM_WAYS; way++) {
        struct dense_case c = {.blas = blas};
        int64_t bytes = (int64_t)p->rows * p->cols * (way == STREAM_FP8 ? 1 : 2);
        int32_t sets = bench_sets(b, (double)bytes, MAX_SETS);
        for (int32_t i = 0; i < sets; i++)
            c.weights[i] = way == STREAM_FP8 ? (void *)bench_random_e4m3(b, bytes)
                                             : (void *)bench_random_bf16(b, bytes / 2, 0.02f);
        for (int32_t i = 0; bench_ready(b, name) && i < n; i++)
            us[way][i] = run_tokens(b, &c, p, way, sets, tokens[i]);
        bench_release(b);
    }
    for (int32_t i = n - 1; i >= 0 && us[CUBLAS_BF16][i] > 0; i--) {
        if (us[CUBLAS_BF16][i] >= us[STREAM_BF16][i])
            break;
        faster_from = tokens[i];
    }
    if (faster_from > 0)
        printf("%-56s cuBLAS is the faster one from T=%d on\n", name, faster_from);
}

void bench_dense(struct bench *b) {
    cublasHandle_t blas;
    void *workspace = NULL;
    CHECK(cublasCreate(&blas) == CUBLAS_STATUS_SUCCESS, "cublasCreate");
    CHECK(cublasSetStream(blas, b->stream) == CUBLAS_STATUS_SUCCESS, "cublasSetStream");
    CUDA_CHECK(cudaMalloc(&workspace, BLAS_WORKSPACE)); /* as it may allocate none when captured */
    CHECK(cublasSetWorkspace(blas, workspace, BLAS_WORKSPACE) == CUBLAS_STATUS_SUCCESS,
          "cublasSetWorkspace");
    if (b->tiny)
        run_projection(b, &tiny_projection, blas);
    for (size_t i = 0; !b->tiny && i < sizeof projections / sizeof *projections; i++)
        if (projections[i].quick || !b->quick)
            run_projection(b, &projections[i], blas);
    cublasDestroy(blas);
    CUDA_CHECK(cudaFree(workspace));
}
