/* bench_cuda: what surrounds the large products: embedding, norm, rope and KV write, router,
 * sampling; and the layout of weights, which bounds loading.
 *
 * Activations lie in the L2 cache, as they do in a step, where the op before has just written them:
 * GB/s may exceed the copy's. These ops are short; the microseconds are what counts.
 */
#include <math.h>
#include <stdlib.h>

#include "host/mem.h"
#include "tests/bench_gpu.h"

enum { MAX_LEN = 4096 };

/* Runs one case whose buffers were just made, and frees them. */
static void run(struct bench *b, const char *name, double bytes, double operations,
                void (*launch)(void *context, int32_t set, cudaStream_t stream), void *context) {
    struct bench_case c = {name, bytes, operations, 1, launch, context};
    if (bench_ready(b, name))
        bench_run(b, &c);
    bench_release(b);
}

/* n integers start, start + step, ... modulo `below`, on the device. */
static int32_t *integers(struct bench *b, int32_t n, int32_t step, int32_t below) {
    int32_t *host = xcalloc((size_t)n, sizeof *host);
    for (int32_t i = 0; i < n; i++)
        host[i] = (int32_t)((int64_t)i * step % below);
    int32_t *device = bench_upload(b, host, (size_t)n * sizeof *host);
    free(host);
    return device;
}

/* ---- embedding and norm ---------------------------------------------------------------------- */

struct embed_case {
    float *hidden;
    const bf16 *table;
    const int32_t *tokens;
    int32_t T, H;
};

static void launch_embed(void *context, int32_t set, cudaStream_t stream) {
    const struct embed_case *c = context;
    (void)set;
    embed_launch(c->hidden, c->table, c->tokens, c->T, c->H, stream);
}

static void run_embed(struct bench *b, int32_t T, int32_t H, int32_t V) {
    char name[96];
    snprintf(name, sizeof name, "embed/H=%d T=%d", H, T);
    if (!bench_wanted(b, name))
        return;
    struct embed_case c = {bench_alloc(b, (size_t)T * (size_t)H * sizeof(float)),
                           bench_random_bf16(b, (int64_t)V * H, 1), integers(b, T, 7919, V), T, H};
    run(b, name, (double)T * H * (sizeof(bf16) + sizeof(float)), 0, launch_embed, &c);
}

static void launch_norm(void *context, int32_t set, cudaStream_t stream) {
    (void)set;
    norm_launch(context, stream);
}

static void run_norm(struct bench *b, int32_t T, int32_t H) {
    char name[96];
    int64_t n = (int64_t)T * H;
    snprintf(name, sizeof name, "norm/residual H=%d T=%d", H, T);
    if (!bench_wanted(b, name))
        return;
    struct norm_args a = {
        .x = bench_alloc(b, (size_t)n * sizeof(bf16)),
        .hidden = bench_random_floats(b, n, 1),
        .partial = bench_random_floats(b, n, 1e-6f), /* it is added again and again */
        .weight = bench_random_floats(b, H, 1),
        .eps = 1e-5f,
        .num_tokens = T,
        .hidden_size = H,
    };
    run(b, name, (double)n * (3 * sizeof(float) + sizeof(bf16)), 0, launch_norm, &a);
}

/* ---- rope ------------------------------------------------------------------------------------ */

/* Cosines and sines, as queries are rotated again and again and must stay as long as they are. */
static float *rotations(struct bench *b, int32_t D) {
    float *host = xcalloc((size_t)MAX_LEN * (size_t)D, sizeof *host);
    for (int32_t p = 0; p < MAX_LEN; p++)
        for (int32_t i = 0; i < D / 2; i++) {
            float angle = (float)p / (float)(i + 1);
            host[(int64_t)p * D + i] = cosf(angle);
            host[(int64_t)p * D + D / 2 + i] = sinf(angle);
        }
    float *device = bench_upload(b, host, (size_t)MAX_LEN * (size_t)D * sizeof *host);
    free(host);
    return device;
}

static void launch_rope(void *context, int32_t set, cudaStream_t stream) {
    (void)set;
    rope_kv_write_launch(context, stream);
}

static void run_rope(struct bench *b, int32_t T, int32_t Hq, int32_t Hkv, int32_t D,
                     enum qk_norm norm) {
    char name[96];
    int32_t blocks = (T + 15) / 16;
    snprintf(name, sizeof name, "rope/%d+%d heads of %d%s T=%d", Hq, Hkv, D,
             norm == QK_NORM_HEAD ? ", qk norm" : "", T);
    if (!bench_wanted(b, name))
        return;
    struct rope_args a = {
        .ld = (int64_t)(Hq + 2 * Hkv) * D,
        .num_tokens = T,
        .num_heads = Hq,
        .num_kv_heads = Hkv,
        .head_dim = D,
        .positions = integers(b, T, 1, MAX_LEN),
        .slot_mapping = integers(b, T, 1, blocks * 16),
        .rope = rotations(b, D),
        .norm = norm,
        .q_norm = bench_random_floats(b, D, 1),
        .k_norm = bench_random_floats(b, D, 1),
        .eps = 1e-6f,
        .kv = {bench_alloc(b, (size_t)blocks * gpu_kv_block_bytes(DTYPE_BF16, Hkv, D)), DTYPE_BF16},
    };
    a.qkv = bench_random_bf16(b, T * a.ld, 1);
    double bytes =
        (double)T * D * sizeof(bf16) * (2 * Hq + 4 * Hkv) + (double)T * D * sizeof(float);
    run(b, name, bytes, 0, launch_rope, &a);
}

/* ---- router ---------------------------------------------------------------------------------- */

static void launch_router(void *context, int32_t set, cudaStream_t stream) {
    (void)set;
    router_launch(context, stream);
}

static void run_router(struct bench *b, int32_t T, int32_t H, int32_t E, int32_t K,
                       float logits_std) {
    char name[96];
    size_t P = (size_t)T * (size_t)K, i4 = sizeof(int32_t);
    int32_t stride = (H + FRAGMENT_COLS - 1) / FRAGMENT_COLS * FRAGMENT_COLS;
    struct router_config config = {E, K, true, logits_std, 1};
    snprintf(name, sizeof name, "router/H=%d E=%d K=%d T=%d", H, E, K, T);
    if (!bench_wanted(b, name))
        return;
    struct router_args a = {
        .out = {.topk_ids = bench_alloc(b, P * i4),
                .topk_weights = bench_alloc(b, P * sizeof(float)),
                .expert_counts = bench_alloc(b, (size_t)E * i4),
                .expert_offsets = bench_alloc(b, ((size_t)E + 1) * i4),
                .permutation = bench_alloc(b, P * i4),
                .slot = bench_alloc(b, P * i4)},
        .x = bench_random_bf16(b, (int64_t)T * H, 1),
        .gate = bench_random_bf16(b, (int64_t)E * stride, 0.02f),
        .config = &config,
        .logits = bench_alloc(b, (size_t)T * (size_t)E * sizeof(float)),
        .num_tokens = T,
        .hidden_size = H,
    };
    run(b, name, ((double)T + E) * H * sizeof(bf16), 2.0 * T * H * E, launch_router, &a);
}

/* ---- sampling -------------------------------------------------------------------------------- */

static void launch_sample(void *context, int32_t set, cudaStream_t stream) {
    (void)set;
    sample_launch(context, stream);
}

static void run_sample(struct bench *b, int32_t R, int32_t V, bool greedy) {
    char name[96];
    snprintf(name, sizeof name, "sample/%s V=%d R=%d",
             greedy ? "greedy" : "temperature 0.8, top-p 0.95", V, R);
    if (!bench_wanted(b, name))
        return;
    struct sample_row *rows = xcalloc((size_t)R, sizeof *rows);
    for (int32_t i = 0; i < R; i++)
        rows[i] = (struct sample_row){
            .row = i,
            .token = -1,
            .num_top = -1,
            .temperature = greedy ? 0 : 0.8f,
            .top_p = greedy ? 1 : 0.95f,
            .repetition_penalty = 1,
            .seed = 1234 + (uint64_t)i,
        };
    struct sample_launch_args a = {
        .logits = bench_random_floats(b, (int64_t)R * V, 12),
        .vocab_size = V,
        .rows = bench_upload(b, rows, (size_t)R * sizeof *rows),
        .num_rows = R,
        .results = bench_alloc(b, (size_t)R * sizeof *a.results),
        .workspace = bench_alloc(b, sample_workspace_bytes(R, V)),
    };
    free(rows);
    run(b, name, (double)R * V * sizeof(float), 0, launch_sample, &a);
}

/* ---- layout ---------------------------------------------------------------------------------- */

struct layout_case {
    void *data;
    const void *source;
    int32_t rows, cols;
};

static void launch_layout(void *context, int32_t set, cudaStream_t stream) {
    const struct layout_case *c = context;
    (void)set;
    weight_layout_launch(c->data, LAYOUT_FRAGMENTS, DTYPE_F8_E4M3, c->rows, c->cols, 0, c->rows,
                         c->source, c->cols, stream);
}

static void run_layout(struct bench *b, int32_t rows, int32_t cols) {
    char name[96];
    snprintf(name, sizeof name, "layout/fp8 fragments %d x %d", rows, cols);
    if (!bench_wanted(b, name))
        return;
    struct layout_case c = {
        bench_alloc(b, weight_layout_bytes(LAYOUT_FRAGMENTS, DTYPE_F8_E4M3, rows, cols)),
        bench_random_e4m3(b, (int64_t)rows * cols), rows, cols};
    run(b, name, 2.0 * rows * cols, 0, launch_layout, &c);
}

/* ---- all ------------------------------------------------------------------------------------- */

static void run_at(struct bench *b, int32_t T) {
    run_embed(b, T, 4096, 32000);
    run_norm(b, T, 4096);
    run_rope(b, T, 32, 8, 128, QK_NORM_NONE);
    run_rope(b, T, 32, 4, 128, QK_NORM_HEAD);
    run_router(b, T, 4096, 8, 2, 0);
    run_router(b, T, 4608, 16, 2, 1);
    run_router(b, T, 2048, 128, 8, 0);
    run_router(b, T, 5120, 160, 6, 0);
    run_sample(b, T, 32000, true);
    run_sample(b, T, 32000, false);
    run_sample(b, T, 151936, true);
    run_sample(b, T, 151936, false);
}

void bench_rows(struct bench *b) {
    if (b->tiny) {
        run_embed(b, 3, 96, 50);
        run_norm(b, 3, 96);
        run_rope(b, 3, 6, 2, 64, QK_NORM_HEAD);
        run_router(b, 3, 96, 8, 2, 1);
        run_sample(b, 2, 500, true);
        run_sample(b, 2, 500, false);
        run_layout(b, 48, 96);
        return;
    }
    run_at(b, 1);
    run_at(b, 64);
    run_at(b, 512);
    run_layout(b, 14336, 4096);
}
