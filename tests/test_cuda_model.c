/* The golden models on a GPU, through the whole backend: against the logits of the published
 * implementations, and against the CPU backend's greedy continuations.
 *
 * Bound. Activations are bf16 between ops (2^-9 a rounding, some ten roundings a layer, through 2
 * to 4 layers of random weights), and so are keys and values. The root mean square error of a row
 * of logits is at most ROW_BOUND of their standard deviation, and no element is off by more than
 * four times that; so two logits that differ by more than MARGIN are not swapped.
 *
 * Ties of the router. A rounding may turn a choice of experts whose logits nearly tie, which
 * changes that row, and the rows behind it that see its keys and values, for good. `ref` runs along
 * with a router that notes such ties: a row that is off must have one in it or before it, and four
 * rows of five must be within the bound all the same. TIE, in standard deviations of the router's
 * logits, is three times the error that a difference of two of them was seen to have.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/cuda_backend.h"
#include "host/mem.h"
#include "host/model_internal.h"
#include "tests/golden.h"
#include "tests/gpu_fixture.h"
#include "tests/shim.h"

enum { MAX_PROMPT = 64, GREEDY = 32, MAX_ROWS = MAX_PROMPT + GREEDY };
static const double ROW_BOUND = 0.05, MARGIN = 2 * 4 * 0.05, TIE = 0.1;
static const int32_t gpu0[] = {0};

/* ---- ref, which notes ties ------------------------------------------------------------------- */

/* By position: does the row have a tie in some layer? Of the sequence that runs. */
static bool tie[MAX_ROWS];
static int32_t ref_position; /* of the chunk that runs */

static int descending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

static void tie_noting_router(struct backend *b, struct routing *out, const void *x,
                              const struct weight *gate, const struct router_config *config,
                              int32_t num_tokens) {
    int32_t E = gate->rows, K = config->num_experts_per_tok;
    static float logits[MAX_PROMPT * 256];
    CHECK(num_tokens * E <= MAX_PROMPT * 256, "%d x %d router logits", num_tokens, E);
    ref_ops.matmul(b, logits, E, x, gate->cols, gate, NULL, num_tokens);
    for (int32_t t = 0; t < num_tokens && K < E; t++) {
        float *row = logits + (int64_t)t * E;
        double std = golden_std(row, E);
        qsort(row, (size_t)E, sizeof *row, descending);
        if ((double)(row[K - 1] - row[K]) < TIE * std)
            tie[ref_position + t] = true;
    }
    ref_ops.router(b, out, x, gate, config, num_tokens);
}

/* ---- a model on both ------------------------------------------------------------------------- */

struct pair {
    struct golden gpu, ref;
    int32_t num_rows, num_right; /* rows that were compared, and those within the bound */
};

/* The backend's stream does not wait for copies of others, nor they for it. */
static void fetch(void *to, const void *from, size_t bytes) {
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}

static bool pair_open(struct pair *p, const char *name, const struct golden_options *options) {
    static struct ops noting;
    struct golden_options gpu = *options, ref = {.ops = &noting, .ranks = 1, .kv_dtype = DTYPE_F32};
    struct error error = {0};
    memset(p, 0, sizeof *p);
    noting = ref_ops;
    noting.router = tie_noting_router;
    gpu.ranks = 1;
    gpu.gpus = gpu0;
    gpu.fetch = fetch;
    gpu.ops = cuda_ops(gpu0, 1, options->batch_invariant, &error);
    if (gpu.ops)
        return golden_open(&p->gpu, name, &gpu) && golden_open(&p->ref, name, &ref);
    FAIL("cuda_ops: %s", error.text);
    return false;
}

static void pair_close(struct pair *p) {
    golden_close(&p->gpu);
    golden_close(&p->ref);
}

/* The same tokens on both; got and want [count, V]. */
static void pair_run(struct pair *p, const int32_t *tokens, int32_t first, int32_t count,
                     float *got, float *want) {
    memset(tie + first, 0, (size_t)count * sizeof *tie);
    ref_position = first;
    golden_run(&p->ref, tokens, first, count, 0, want);
    golden_run(&p->gpu, tokens, first, count, 0, got);
}

/* Has the sequence no tie up to this position? */
static bool sure(int32_t position) {
    for (int32_t i = 0; i <= position; i++)
        if (tie[i])
            return false;
    return true;
}

static void check_row(struct pair *p, int32_t position, const float *got, const float *want,
                      const char *what) {
    int32_t V = p->gpu.config.vocab_size;
    double largest = golden_relative_error(got, want, V);
    bool right = golden_rows_off(got, want, 1, V, ROW_BOUND) == 0 && largest <= 4 * ROW_BOUND;
    p->num_rows++;
    p->num_right += right;
    if (!right && sure(position))
        FAIL("%s, %s, position %d: logits off by up to %.3g of their std", p->gpu.dir, what,
             position, largest);
}

static void check_counts(const struct pair *p) {
    if (p->num_right < 0.8 * p->num_rows)
        FAIL("%s: only %d of %d rows of logits are within the bound", p->gpu.dir, p->num_right,
             p->num_rows);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void for_all_models(void (*fn)(const char *name, const struct golden_options *o),
                           const struct golden_options *o) {
    int32_t count;
    char **names = golden_names(&count);
    EXPECT_INT_GE(count, 15);
    for (int32_t i = 0; i < count; i++) {
        fn(names[i], o);
        free(names[i]);
    }
    free(names);
}

/* Prompts as the published implementations gave them, prefilled at once. */
static void check_prompts(const char *name, const struct golden_options *o) {
    static float got[MAX_PROMPT * 1024], ref[MAX_PROMPT * 1024];
    struct pair p;
    if (pair_open(&p, name, o)) {
        int32_t V = p.gpu.config.vocab_size;
        CHECK(V <= 1024, "a vocabulary of %d", V);
        for (int32_t i = 0; i < golden_num_prompts(&p.gpu); i++) {
            int32_t tokens[MAX_PROMPT], n = golden_ids(&p.gpu, i, "tokens", tokens, MAX_PROMPT);
            const float *want = golden_logits(&p.gpu, i);
            pair_run(&p, tokens, 0, n, got, ref);
            for (int32_t t = 0; t < n; t++)
                check_row(&p, t, got + (int64_t)t * V, want + (int64_t)t * V, "prompt");
        }
        check_counts(&p);
    }
    pair_close(&p);
}

TEST(CudaModel, AgreesWithThePublishedImplementations) {
    GPU_OR_SKIP();
    for_all_models(check_prompts, &(struct golden_options){0});
}

TEST(CudaModel, AgreesWithThePublishedImplementationsWhenBatchInvariant) {
    GPU_OR_SKIP();
    for_all_models(check_prompts, &(struct golden_options){.batch_invariant = true});
}

/* How far the best logit is above the second, in standard deviations of the row. */
static double margin_of(const float *x, int32_t best, int32_t V) {
    int32_t second = best == 0;
    for (int32_t v = 0; v < V; v++)
        if (v != best && x[v] > x[second])
            second = v;
    return (double)(x[best] - x[second]) / golden_std(x, V);
}

/* The greedy continuation, in decode steps, on the tokens that `ref` chooses. */
static void check_greedy(const char *name, const struct golden_options *o) {
    static float got[MAX_PROMPT * 1024], ref[MAX_PROMPT * 1024];
    struct pair p;
    if (pair_open(&p, name, o)) {
        int32_t V = p.gpu.config.vocab_size, tokens[MAX_ROWS];
        int32_t n = golden_ids(&p.gpu, 0, "tokens", tokens, MAX_PROMPT);
        pair_run(&p, tokens, 0, n, got, ref);
        tokens[n] = golden_argmax(ref + (int64_t)(n - 1) * V, V);
        for (int32_t i = n; i < n + GREEDY; i++) {
            pair_run(&p, tokens, i, 1, got, ref);
            check_row(&p, i, got, ref, "continuation");
            int32_t best = golden_argmax(ref, V), chosen = golden_argmax(got, V);
            if (chosen != best && sure(i) && margin_of(ref, best, V) > MARGIN)
                FAIL("%s, position %d: token %d instead of %d", p.gpu.dir, i, chosen, best);
            if (i + 1 < n + GREEDY)
                tokens[i + 1] = best;
        }
        check_counts(&p);
    }
    pair_close(&p);
}

TEST(CudaModel, ContinuesAsRefDoes) {
    GPU_OR_SKIP();
    for_all_models(check_greedy, &(struct golden_options){0});
}

/* ---- the same bits --------------------------------------------------------------------------- */

/* The logits of prompt 2, in chunks, with these options; to be freed. NULL after a failure. */
static float *logits_of(const char *name, const struct golden_options *options, int32_t chunk,
                        int64_t *num) {
    struct pair p;
    float *logits = NULL;
    if (pair_open(&p, name, options)) {
        int32_t tokens[MAX_PROMPT], n = golden_ids(&p.gpu, 2, "tokens", tokens, MAX_PROMPT);
        int32_t V = p.gpu.config.vocab_size;
        logits = xmalloc((size_t)n * (size_t)V * sizeof *logits);
        for (int32_t done = 0; done < n; done += chunk)
            golden_run(&p.gpu, tokens, done, n - done < chunk ? n - done : chunk, 0,
                       logits + (int64_t)done * V);
        *num = (int64_t)n * V;
    }
    pair_close(&p);
    return logits;
}

/* Compares two ways of running a model. */
static void check_same(const char *name, const char *what, const struct golden_options *a,
                       int32_t chunk_a, const struct golden_options *b, int32_t chunk_b) {
    int64_t n = 0, m = 0;
    float *x = logits_of(name, a, chunk_a, &n), *y = logits_of(name, b, chunk_b, &m);
    if (!x || !y || n != m || memcmp(x, y, (size_t)n * sizeof *x) != 0)
        FAIL("%s, %s: other bits, by up to %.3g", name, what,
             x && y && n == m ? golden_relative_error(x, y, n) : NAN);
    free(x);
    free(y);
}

TEST(CudaModel, RecordedStepsGiveTheBitsOfEagerOnes) {
    GPU_OR_SKIP();
    check_same("mixtral", "recorded and eager", &(struct golden_options){0}, 1,
               &(struct golden_options){.enforce_eager = true}, 1);
    check_same("llama3", "recorded and eager", &(struct golden_options){0}, 1,
               &(struct golden_options){.enforce_eager = true}, 1);
}

/* Steps of one token, of which the second would be recorded; is it? */
enum { STEPS = 3 };
static bool is_recorded_after_steps(struct golden *g, const int32_t *tokens, float *out) {
    const struct backend *b = g->model->rank[0].backend;
    for (int32_t i = 0; i < STEPS; i++)
        golden_run(g, tokens, i, 1, 0, out);
    return b->num_recorded == 1 && b->recorded[0].graph != NULL;
}

TEST(CudaModel, StepsAreRecordedOnlyWhereMemoryIsLeft) {
    GPU_OR_SKIP();
    static struct gpu_hogs hogs;
    static float out[2][1024];
    for (int short_of_memory = 0; short_of_memory < 2; short_of_memory++) {
        struct golden_options o = {.ranks = 1, .gpus = gpu0, .fetch = fetch};
        struct golden g;
        int32_t tokens[MAX_PROMPT];
        o.ops = cuda_ops(gpu0, 1, false, NULL);
        ASSERT_TRUE(golden_open(&g, "llama2", &o) && g.config.vocab_size <= 1024);
        ASSERT_TRUE(golden_ids(&g, 2, "tokens", tokens, MAX_PROMPT) >= STEPS);
        if (short_of_memory)
            gpu_take_memory(&hogs, GRAPH_RESERVE_BYTES / 2);
        bool recorded = is_recorded_after_steps(&g, tokens, out[short_of_memory]);
        EXPECT_INT_EQ(recorded, !short_of_memory);
        gpu_give_memory(&hogs);
        golden_close(&g);
    }
    EXPECT_INT_EQ(memcmp(out[0], out[1], sizeof out[0]), 0);
}

TEST(CudaModel, BitsDoNotDependOnChunksWhenBatchInvariant) {
    GPU_OR_SKIP();
    static const char *const names[] = {"deepseek_67b", "qwen3_moe", "skywork_moe_fp8",
                                        "qwen3_moe_fp8_block"};
    const struct golden_options o = {.batch_invariant = true};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        check_same(names[i], "in chunks of 1 and at once", &o, 1, &o, MAX_PROMPT);
        check_same(names[i], "in chunks of 7 and at once", &o, 7, &o, MAX_PROMPT);
    }
}

TEST(CudaModel, TheEmbeddingMayLieInHostMemory) {
    GPU_OR_SKIP();
    check_same("olmoe", "embedding on the host", &(struct golden_options){0}, MAX_PROMPT,
               &(struct golden_options){.embedding_on_host = true}, MAX_PROMPT);
}

/* Other dtypes of the KV cache: the F16 one rounds less than BF16. E4M3 has 3 bits of mantissa
 * (2^-4 a rounding, 32 times BF16's): a root mean square error of half a standard deviation would
 * be noise rather than rounding. */
static void check_kv(const char *name, enum dtype dtype, double bound) {
    const struct golden_options other = {.kv_dtype = dtype}, usual = {0};
    int64_t n = 0, m = 0;
    float *got = logits_of(name, &other, MAX_PROMPT, &n);
    float *want = logits_of(name, &usual, MAX_PROMPT, &m);
    EXPECT_INT_EQ(n, m);
    if (got && want) {
        double off = golden_rows_off(got, want, 1, (int32_t)n, bound);
        if (off > 0 || memcmp(got, want, (size_t)n * sizeof *got) == 0)
            FAIL("%s with a KV cache of dtype %d: off by more than %g, or not at all", name,
                 (int)dtype, bound);
    }
    free(got);
    free(want);
}

TEST(CudaModel, KvCacheOfOtherDtypes) {
    GPU_OR_SKIP();
    check_kv("llama2", DTYPE_F16, 0.05);
    check_kv("qwen2", DTYPE_F8_E4M3, 0.5);
}
