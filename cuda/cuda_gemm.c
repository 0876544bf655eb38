/* cuda_gemm: the ways of a dense product, and cuBLASLt.
 *
 * Why the library is not taken for everything with many tokens:
 *   - It chooses tiles, and parts of K, by the number of tokens, so that a token's bits depend on
 *     the batch, even with one algorithm for each bucket of tokens. With dense_args.invariant the
 *     own kernels compute everything: both add in the order of mma_rows.cuh.
 *   - It has no product of FP8 weights and BF16 activations. Widening the weights first would, for
 *     each byte of weights, write 2 bytes and read them again, and need a scratch matrix (or one
 *     launch and one product for each piece of it); row scales would have to be rounded into the
 *     weights, as there is no epilogue that scales rows. The tiles widen in registers: 1 byte from
 *     L2, exact, with the scale on the float32 sum. FP8 activations, with a scale a token, it
 *     takes on Hopper and newer only; the tiles on all that have FP8 products.
 *   - Its bias epilogue wants a bias of y's type, which is BF16 for the only op with a bias, and
 *     ours is float32. The tiles add it in float32.
 *
 * An algorithm is asked for by bucket of tokens: T rounded up to a quarter of its power of two, so
 * at most a fifth of a bucket is empty. It is kept when it also takes the fewest tokens of the
 * bucket. Sums of parts of K are made in float32 only (REDUCTION_SCHEME_COMPUTE_TYPE).
 */
#include "cuda/cuda_gemm.h"

#include <cublasLt.h>
#include <stdlib.h>

#include "cuda/cuda_check.h"
#include "host/log.h"

enum { MAX_SHAPES = 512, MAX_ANSWERS = 8, MIN_BUCKET = 16 };

#define LT_CHECK(call)                                                                             \
    do {                                                                                           \
        cublasStatus_t lt_check_status = (call);                                                   \
        CHECK(lt_check_status == CUBLAS_STATUS_SUCCESS, "%s: %s", #call,                           \
              cublasLtGetStatusString(lt_check_status));                                           \
    } while (0)

/* What an algorithm depends on. */
struct shape {
    int64_t ldx, ldy;
    int32_t rows, cols;
    int32_t bucket;  /* most tokens */
    int32_t align_y; /* bytes that y and its rows are aligned to; 16 stands for more */
    bool y_float;
};

struct answer {
    struct shape shape;
    bool found;
    cublasLtMatmulAlgo_t algo;
};

struct gemm {
    cublasLtHandle_t handle;
    void *workspace;
    cublasLtMatmulDescOpaque_t desc; /* float32 sums, the weights transposed */
    cublasLtMatmulPreference_t preference;
    int32_t num_answers;
    struct answer answers[MAX_SHAPES];
};

/* Column-major, as the library sees them: y^T [rows, T] = W [cols, rows]^T x^T [cols, T]. */
struct layouts {
    cublasLtMatrixLayoutOpaque_t w, x, y;
};

/* ---- lifecycle ------------------------------------------------------------------------------- */

static void prefer(struct gemm *g, cublasLtMatmulPreferenceAttributes_t id, const void *value,
                   size_t bytes) {
    LT_CHECK(cublasLtMatmulPreferenceSetAttribute(g->preference, id, value, bytes));
}

struct gemm *gemm_create(void *workspace) {
    struct gemm *g = xcalloc(1, sizeof *g);
    const int32_t transposed = CUBLAS_OP_T;
    const uint64_t bytes = GEMM_WORKSPACE_BYTES;
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, aligned = 16;
    g->workspace = workspace;
    if (cublasLtCreate(&g->handle) != CUBLAS_STATUS_SUCCESS) {
        free(g);
        return NULL;
    }
    LT_CHECK(cublasLtMatmulDescInit(&g->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    LT_CHECK(cublasLtMatmulDescSetAttribute(&g->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                            sizeof transposed));
    LT_CHECK(cublasLtMatmulPreferenceCreate(&g->preference));
    prefer(g, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
    prefer(g, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction);
    prefer(g, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &aligned, sizeof aligned);
    prefer(g, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &aligned, sizeof aligned);
    return g;
}

void gemm_destroy(struct gemm *g) {
    if (!g)
        return;
    cublasLtMatmulPreferenceDestroy(g->preference);
    cublasLtDestroy(g->handle);
    free(g);
}

int32_t gemm_num_shapes(const struct gemm *g) {
    return g->num_answers;
}

/* ---- algorithms ------------------------------------------------------------------------------ */

static int32_t bucket_of(int32_t tokens) {
    int32_t power = MIN_BUCKET;
    while (power < tokens)
        power *= 2;
    int32_t unit = power / 8 > MIN_BUCKET ? power / 8 : MIN_BUCKET; /* a quarter of power / 2 */
    return (tokens + unit - 1) / unit * unit;
}

/* The fewest tokens of a bucket. */
static int32_t bucket_first(int32_t bucket) {
    int32_t first = bucket;
    while (first > 1 && bucket_of(first - 1) == bucket)
        first--;
    return first;
}

static struct shape shape_of(const struct dense_args *a) {
    uint64_t bits = (uintptr_t)a->y | (uint64_t)a->ldy * (a->y_float ? 4 : 2) | 16;
    return (struct shape){
        .ldx = a->ldx,
        .ldy = a->ldy,
        .rows = a->rows,
        .cols = a->cols,
        .bucket = bucket_of(a->num_tokens),
        .align_y = (int32_t)(bits & -bits),
        .y_float = a->y_float,
    };
}

static bool same_shape(const struct shape *a, const struct shape *b) {
    return a->rows == b->rows && a->cols == b->cols && a->bucket == b->bucket && a->ldx == b->ldx &&
           a->ldy == b->ldy && a->align_y == b->align_y && a->y_float == b->y_float;
}

static void layouts_init(struct layouts *l, const struct shape *s, int32_t tokens) {
    uint64_t rows = (uint64_t)s->rows, cols = (uint64_t)s->cols, T = (uint64_t)tokens;
    int64_t ldw = (s->cols + FRAGMENT_COLS - 1) / FRAGMENT_COLS * FRAGMENT_COLS;
    LT_CHECK(cublasLtMatrixLayoutInit(&l->w, CUDA_R_16BF, cols, rows, ldw));
    LT_CHECK(cublasLtMatrixLayoutInit(&l->x, CUDA_R_16BF, cols, T, s->ldx));
    LT_CHECK(
        cublasLtMatrixLayoutInit(&l->y, s->y_float ? CUDA_R_32F : CUDA_R_16BF, rows, T, s->ldy));
}

/* Does an algorithm for the most tokens of a bucket also take the fewest? */
static bool takes_fewest(struct gemm *g, const struct shape *s, const cublasLtMatmulAlgo_t *algo) {
    struct layouts l;
    cublasLtMatmulHeuristicResult_t result;
    layouts_init(&l, s, bucket_first(s->bucket));
    return cublasLtMatmulAlgoCheck(g->handle, &g->desc, &l.w, &l.x, &l.y, &l.y, algo, &result) ==
               CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= GEMM_WORKSPACE_BYTES;
}

/* Asks the library about a shape. */
static void ask(struct gemm *g, struct answer *answer) {
    const struct shape *s = &answer->shape;
    const uint32_t aligned = (uint32_t)s->align_y;
    cublasLtMatmulHeuristicResult_t results[MAX_ANSWERS];
    struct layouts l;
    int num = 0;
    layouts_init(&l, s, s->bucket);
    prefer(g, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &aligned, sizeof aligned);
    prefer(g, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &aligned, sizeof aligned);
    cublasStatus_t rc = cublasLtMatmulAlgoGetHeuristic(g->handle, &g->desc, &l.w, &l.x, &l.y, &l.y,
                                                       g->preference, MAX_ANSWERS, results, &num);
    for (int i = 0; rc == CUBLAS_STATUS_SUCCESS && i < num && !answer->found; i++) {
        if (results[i].state != CUBLAS_STATUS_SUCCESS || !takes_fewest(g, s, &results[i].algo))
            continue;
        answer->found = true;
        answer->algo = results[i].algo;
    }
    if (!answer->found)
        log_warn("cuBLASLt has no algorithm for %d x %d by %d tokens (%s): own kernels compute it",
                 s->rows, s->cols, s->bucket, cublasLtGetStatusString(rc));
}

static bool is_capturing(cudaStream_t stream) {
    enum cudaStreamCaptureStatus status;
    CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
    return status != cudaStreamCaptureStatusNone;
}

/* The algorithm for a product; NULL where the library has none, or the table has no room. */
static const cublasLtMatmulAlgo_t *algorithm(struct gemm *g, const struct dense_args *a,
                                             cudaStream_t stream) {
    const struct shape s = shape_of(a);
    for (int32_t i = 0; i < g->num_answers; i++)
        if (same_shape(&g->answers[i].shape, &s))
            return g->answers[i].found ? &g->answers[i].algo : NULL;
    if (g->num_answers == MAX_SHAPES)
        return NULL;
    CHECK(!is_capturing(stream), "a product of %d x %d by %d tokens is recorded but was never run",
          a->rows, a->cols, a->num_tokens);
    struct answer *answer = &g->answers[g->num_answers++];
    *answer = (struct answer){.shape = s};
    ask(g, answer);
    if (g->num_answers == MAX_SHAPES)
        log_warn("the table of %d products for cuBLASLt is full: own kernels compute all others",
                 MAX_SHAPES);
    return answer->found ? &answer->algo : NULL;
}

/* ---- launches -------------------------------------------------------------------------------- */

static bool launch_library(struct gemm *g, const struct dense_args *a, cudaStream_t stream) {
    const float one = 1, zero = 0;
    const cublasLtMatmulAlgo_t *algo = algorithm(g, a, stream);
    const struct shape s = shape_of(a);
    struct layouts l;
    if (!algo)
        return false;
    layouts_init(&l, &s, a->num_tokens);
    LT_CHECK(cublasLtMatmul(g->handle, &g->desc, &one, a->weight, &l.w, a->x, &l.x, &zero, a->y,
                            &l.y, a->y, &l.y, algo, g->workspace, GEMM_WORKSPACE_BYTES, stream));
    return true;
}

/* The library's BF16 kernels load 16 bytes at a time, as the tiles do: padded rows of weights are
 * aligned to 64 bytes, x to what dense_tile_takes asks for, and y may be aligned to its elements
 * only. */
bool gemm_takes(enum gemm_path path, const struct dense_args *a) {
    bool tile = dense_tile_takes(a);
    if (path == GEMM_LIBRARY)
        return tile && a->dtype == DTYPE_BF16 && a->layout == LAYOUT_ROWS && !a->bias &&
               !a->invariant;
    return path == GEMM_STREAM || tile;
}

enum gemm_path gemm_choose(const struct dense_args *a) {
    enum gemm_path best = GEMM_STREAM;
    double least = gemm_cost_us(GEMM_STREAM, a);
    for (enum gemm_path path = GEMM_TILE; path <= GEMM_LIBRARY; path++) {
        if (!gemm_takes(path, a) || gemm_cost_us(path, a) >= least)
            continue;
        best = path;
        least = gemm_cost_us(path, a);
    }
    return best;
}

int32_t gemm_crossover_tokens(const struct gpu_info *gpu, enum dtype dtype, int32_t rows,
                              int32_t cols) {
    struct dense_args a = {
        .ldy = rows,
        .ldx = cols,
        .layout = dtype == DTYPE_BF16 ? LAYOUT_ROWS : LAYOUT_FRAGMENTS,
        .dtype = dtype,
        .scale = dtype == DTYPE_BF16 ? SCALE_NONE : SCALE_ROW,
        .rows = rows,
        .cols = cols,
        .num_tokens = 1,
        .gpu = *gpu,
    };
    while (a.num_tokens < INT32_MAX / 2 && gemm_choose(&a) == GEMM_STREAM)
        a.num_tokens++;
    return a.num_tokens;
}

bool gemm_launch_by(struct gemm *g, enum gemm_path path, const struct dense_args *a,
                    cudaStream_t stream) {
    if (!gemm_takes(path, a))
        return false;
    if (a->num_tokens == 0 || a->rows == 0)
        return true;
    if (path == GEMM_LIBRARY)
        return launch_library(g, a, stream);
    if (path == GEMM_TILE)
        dense_tile_launch(a, stream);
    else
        dense_launch(a, stream);
    return true;
}

void gemm_launch(struct gemm *g, const struct dense_args *a, cudaStream_t stream) {
    if (gemm_launch_by(g, gemm_choose(a), a, stream))
        return;
    bool tile =
        gemm_takes(GEMM_TILE, a) && gemm_cost_us(GEMM_TILE, a) < gemm_cost_us(GEMM_STREAM, a);
    gemm_launch_by(g, tile ? GEMM_TILE : GEMM_STREAM, a, stream);
}

void gemm_units_launch(double *y, const struct dense_args *a, int32_t unit, cudaStream_t stream) {
    if (a->num_tokens == 0 || a->rows == 0)
        return;
    if (unit % FRAGMENT_COLS == 0 && gemm_takes(GEMM_TILE, a) &&
        gemm_cost_us(GEMM_TILE, a) < gemm_cost_us(GEMM_STREAM, a))
        dense_units_tile_launch(y, a, unit, stream);
    else
        dense_units_launch(y, a, unit, stream);
}
