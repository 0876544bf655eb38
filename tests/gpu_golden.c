/* Golden models on GPUs (gpu_golden.h). */
#include "tests/gpu_golden.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/cuda_check.h"
#include "host/cuda.h"
#include "host/mem.h"
#include "tests/shim.h"

enum { MAX_ROWS = GOLDEN_PROMPT + GOLDEN_GREEDY };
/* In standard deviations of the router's logits: three times the error that a difference of two of
 * them was seen to have. */
static const double TIE = 0.1;

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
    static float logits[GOLDEN_PROMPT * 256];
    CHECK(num_tokens * E <= GOLDEN_PROMPT * 256, "%d x %d router logits", num_tokens, E);
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

/* The backend's streams do not wait for copies of others, nor they for it. */
void golden_fetch(void *to, const void *from, size_t bytes) {
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}

static bool open_gpus(struct golden *g, const char *name, const struct golden_options *options) {
    struct golden_options o = *options;
    struct error error = {0};
    int32_t gpus[MAX_RANKS];
    int devices = 0;
    memset(g, 0, sizeof *g);
    CUDA_CHECK(cudaGetDeviceCount(&devices));
    o.ranks = o.ranks ? o.ranks : 1;
    for (int32_t r = 0; r < o.ranks; r++)
        gpus[r] = o.gpus ? o.gpus[r] : r % devices;
    o.gpus = gpus;
    o.fetch = golden_fetch;
    o.ops = cuda_ops(gpus, o.ranks, o.batch_invariant, &error);
    if (o.ops)
        return golden_open(g, name, &o);
    FAIL("cuda_ops: %s", error.text);
    return false;
}

bool golden_pair_open(struct golden_pair *p, const char *name,
                      const struct golden_options *options) {
    static struct ops noting;
    const struct golden_options ref = {.ops = &noting, .ranks = 1, .kv_dtype = DTYPE_F32};
    memset(p, 0, sizeof *p);
    p->bound = GOLDEN_BOUND;
    noting = ref_ops;
    noting.router = tie_noting_router;
    return open_gpus(&p->gpu, name, options) && golden_open(&p->ref, name, &ref) &&
           EXPECT_INT_LE(p->ref.config.vocab_size, GOLDEN_VOCAB);
}

void golden_pair_close(struct golden_pair *p) {
    golden_close(&p->gpu);
    golden_close(&p->ref);
}

void golden_pair_run(struct golden_pair *p, const int32_t *tokens, int32_t first, int32_t count,
                     float *got, float *want) {
    memset(tie + first, 0, (size_t)count * sizeof *tie);
    ref_position = first;
    golden_run(&p->ref, tokens, first, count, 0, want);
    golden_run(&p->gpu, tokens, first, count, 0, got);
}

/* ---- comparisons ----------------------------------------------------------------------------- */

/* Has the sequence no tie up to this position? */
static bool sure(int32_t position) {
    for (int32_t i = 0; i <= position; i++)
        if (tie[i])
            return false;
    return true;
}

static void check_row(struct golden_pair *p, int32_t position, const float *got, const float *want,
                      const char *what) {
    int32_t V = p->gpu.config.vocab_size;
    double largest = golden_relative_error(got, want, V);
    bool right = golden_rows_off(got, want, 1, V, p->bound) == 0 && largest <= 4 * p->bound;
    p->num_rows++;
    p->num_right += right;
    if (!right && sure(position))
        FAIL("%s, %s, position %d: logits off by up to %.3g of their std", p->gpu.dir, what,
             position, largest);
}

void golden_pair_check_counts(const struct golden_pair *p) {
    if (p->num_right < 0.8 * p->num_rows)
        FAIL("%s: only %d of %d rows of logits are within the bound", p->gpu.dir, p->num_right,
             p->num_rows);
}

void golden_pair_check_prompt(struct golden_pair *p, int32_t prompt, int32_t chunk) {
    static float got[GOLDEN_PROMPT * GOLDEN_VOCAB], ref[GOLDEN_PROMPT * GOLDEN_VOCAB];
    int32_t V = p->gpu.config.vocab_size, tokens[GOLDEN_PROMPT];
    int32_t n = golden_ids(&p->gpu, prompt, "tokens", tokens, GOLDEN_PROMPT);
    const float *want = golden_logits(&p->gpu, prompt);
    for (int32_t done = 0; done < n; done += chunk)
        golden_pair_run(p, tokens, done, n - done < chunk ? n - done : chunk,
                        got + (int64_t)done * V, ref + (int64_t)done * V);
    for (int32_t t = 0; t < n; t++)
        check_row(p, t, got + (int64_t)t * V, want + (int64_t)t * V, "prompt");
}

/* How far the best logit is above the second, in standard deviations of the row. */
static double margin_of(const float *x, int32_t best, int32_t V) {
    int32_t second = best == 0;
    for (int32_t v = 0; v < V; v++)
        if (v != best && x[v] > x[second])
            second = v;
    return (double)(x[best] - x[second]) / golden_std(x, V);
}

void golden_pair_check_greedy(struct golden_pair *p, int32_t num_tokens) {
    static float got[GOLDEN_PROMPT * GOLDEN_VOCAB], ref[GOLDEN_PROMPT * GOLDEN_VOCAB];
    int32_t V = p->gpu.config.vocab_size, tokens[MAX_ROWS + 1];
    int32_t n = golden_ids(&p->gpu, 0, "tokens", tokens, GOLDEN_PROMPT);
    CHECK(num_tokens <= GOLDEN_GREEDY, "a continuation of %d tokens", num_tokens);
    golden_pair_run(p, tokens, 0, n, got, ref);
    tokens[n] = golden_argmax(ref + (int64_t)(n - 1) * V, V);
    for (int32_t i = n; i < n + num_tokens; i++) {
        golden_pair_run(p, tokens, i, 1, got, ref);
        check_row(p, i, got, ref, "continuation");
        int32_t best = golden_argmax(ref, V), chosen = golden_argmax(got, V);
        if (chosen != best && sure(i) && margin_of(ref, best, V) > 2 * 4 * p->bound)
            FAIL("%s, position %d: token %d instead of %d", p->gpu.dir, i, chosen, best);
        tokens[i + 1] = best;
    }
}

/* ---- the same bits --------------------------------------------------------------------------- */

float *golden_gpu_logits(const char *name, const struct golden_options *options, int32_t chunk,
                         int64_t *num) {
    struct golden g;
    float *logits = NULL;
    if (open_gpus(&g, name, options)) {
        int32_t tokens[GOLDEN_PROMPT], n = golden_ids(&g, 2, "tokens", tokens, GOLDEN_PROMPT);
        int32_t V = g.config.vocab_size;
        logits = xmalloc((size_t)n * (size_t)V * sizeof *logits);
        for (int32_t done = 0; done < n; done += chunk)
            golden_run(&g, tokens, done, n - done < chunk ? n - done : chunk, 0,
                       logits + (int64_t)done * V);
        *num = (int64_t)n * V;
    }
    golden_close(&g);
    return logits;
}

void golden_check_same(const char *name, const char *what, const struct golden_options *a,
                       int32_t chunk_a, const struct golden_options *b, int32_t chunk_b) {
    int64_t n = 0, m = 0;
    float *x = golden_gpu_logits(name, a, chunk_a, &n),
          *y = golden_gpu_logits(name, b, chunk_b, &m);
    if (!x || !y || n != m || memcmp(x, y, (size_t)n * sizeof *x) != 0)
        FAIL("%s, %s: other bits, by up to %.3g", name, what,
             x && y && n == m ? golden_relative_error(x, y, n) : NAN);
    free(x);
    free(y);
}
