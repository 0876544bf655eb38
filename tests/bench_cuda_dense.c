/* bench_cuda: dense projections by the ways of cuda_gemm.h: streaming and tiles on BF16 and FP8
 * weights, cuBLASLt on BF16 ones, by the number of tokens; from how many tokens on streaming is not
 * the fastest any more, and what the model of gemm_cost.c says of that.
 *
 * Several copies of the weights take turns, so that they come from memory.
 */
#include "cuda/cuda_check.h"
#include "cuda/cuda_gemm.h"
#include "tests/bench_gpu.h"

enum { MAX_SETS = 16, MAX_COUNTS = 32 };

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

struct way {
    const char *name;
    enum gemm_path path;
    bool fp8;
};
static const struct way ways[] = {
    {"stream bf16", GEMM_STREAM, false},    {"tiles bf16", GEMM_TILE, false},
    {"cublaslt bf16", GEMM_LIBRARY, false}, {"stream fp8", GEMM_STREAM, true},
    {"tiles fp8", GEMM_TILE, true},
};
enum { NUM_WAYS = sizeof ways / sizeof *ways };

struct dense_case {
    struct dense_args args;
    const void *weights[MAX_SETS];
    struct gemm *gemm;
    enum gemm_path path;
};

static void launch_dense(void *context, int32_t set, cudaStream_t stream) {
    const struct dense_case *c = context;
    struct dense_args a = c->args;
    a.weight = c->weights[set];
    bool taken = gemm_launch_by(c->gemm, c->path, &a, stream);
    CHECK(taken, "path %d does not take the product", (int)c->path);
}

/* Microseconds, 0 when it did not run. The weights are there already. */
static double run_tokens(struct bench *b, struct dense_case *c, const struct projection *p,
                         const struct way *way, int32_t sets, int32_t T) {
    char name[96];
    double us = 0, element = p->y_float ? sizeof(float) : sizeof(bf16);
    bool fp8 = way->fp8;
    snprintf(name, sizeof name, "dense/%s %s T=%d", p->name, way->name, T);
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
        .launch = launch_dense,
        .context = c,
    };
    c->path = way->path;
    if (gemm_takes(way->path, &c->args) && bench_ready(b, name)) {
        launch_dense(c, 0, b->stream); /* the library chooses an algorithm, before any recording */
        us = bench_run(b, &run);
    }
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

/* The first of the token counts from which on one of ways [1, n) of us is faster than us[0]; 0:
 * none. */
static int32_t crossover(double us[][MAX_COUNTS], int32_t num_ways, const int32_t *tokens,
                         int32_t n) {
    int32_t from = 0;
    for (int32_t i = n - 1; i >= 0 && us[0][i] > 0; i--) {
        bool faster = false;
        for (int32_t w = 1; w < num_ways; w++)
            faster = faster || (us[w][i] > 0 && us[w][i] < us[0][i]);
        if (!faster)
            break;
        from = tokens[i];
    }
    return from;
}

/* All ways of one projection. */
static void run_projection(struct bench *b, const struct projection *p, struct gemm *gemm) {
    const int32_t *tokens;
    int32_t n = token_counts(b, &tokens);
    double us[NUM_WAYS][MAX_COUNTS] = {{0}};
    char name[96];
    snprintf(name, sizeof name, "dense/%s", p->name);
    for (int32_t w = 0; w < NUM_WAYS; w++) {
        struct dense_case c = {.gemm = gemm};
        int64_t bytes = (int64_t)p->rows * p->cols * (ways[w].fp8 ? 1 : 2);
        int32_t sets = bench_sets(b, (double)bytes, MAX_SETS);
        for (int32_t i = 0; i < sets; i++)
            c.weights[i] = ways[w].fp8 ? (void *)bench_random_e4m3(b, bytes)
                                       : (void *)bench_random_bf16(b, bytes / 2, 0.02f);
        for (int32_t i = 0; bench_ready(b, name) && i < n; i++)
            us[w][i] = run_tokens(b, &c, p, &ways[w], sets, tokens[i]);
        bench_release(b);
    }
    int32_t bf16_from = crossover(us, 3, tokens, n), fp8_from = crossover(us + 3, 2, tokens, n);
    if (bf16_from > 0 || fp8_from > 0)
        printf("%-56s streaming is not the fastest from T=%d (BF16), %d (FP8); modelled: %d, %d\n",
               name, bf16_from, fp8_from,
               gemm_crossover_tokens(&b->gpu, DTYPE_BF16, p->rows, p->cols),
               gemm_crossover_tokens(&b->gpu, DTYPE_F8_E4M3, p->rows, p->cols));
}

void bench_dense(struct bench *b) {
    void *workspace = NULL;
    CUDA_CHECK(cudaMalloc(&workspace, GEMM_WORKSPACE_BYTES));
    struct gemm *gemm = gemm_create(workspace);
    if (b->tiny)
        run_projection(b, &tiny_projection, gemm);
    for (size_t i = 0; !b->tiny && i < sizeof projections / sizeof *projections; i++)
        if (projections[i].quick || !b->quick)
            run_projection(b, &projections[i], gemm);
    gemm_destroy(gemm);
    CUDA_CHECK(cudaFree(workspace));
}
