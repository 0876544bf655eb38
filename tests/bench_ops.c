/* bench_ops: speed of the CPU kernels beside this machine's limits, one line a case.
 *
 *     bench_ops [--threads N] [--isa avx2|avx512|avx512bf16] [--seconds S]
 *
 * Decode cases are measured in GB/s of weights (or KV) against a plain read loop, prefill cases in
 * GFLOP/s against independent FMAs, all with the same threads in the same run. Each figure is the
 * median of the runs that fit in S seconds; weights are walked through 128 MiB so that no cache
 * helps. Sizes are those of a small MoE: hidden 1024, expert FFN 1408, 16 experts, top 2.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/clock.h"
#include "host/mem.h"
#include "host/ops.h"
#include "tests/bench_machine.h"

enum { H = 1024, I = 1408, E = 16, K = 2, MAX_T = 512, MAX_RUNS = 400, LIMIT_PASSES = 9 };
enum { WEIGHT_BYTES = 128 << 20, MAX_MATRICES = 128 };

static const struct ops *ops;
static struct backend *backend;
static int32_t threads = 2;
static double seconds_per_case = 1;

/* ---- measuring ------------------------------------------------------------------------------- */

/* Median seconds of fn(arg, run). */
static double measure(void (*fn)(void *arg, int32_t run), void *arg) {
    double times[MAX_RUNS];
    int32_t n = 0;
    fn(arg, 0);
    int64_t begin = clock_us();
    while (n < MAX_RUNS && (n < 5 || (double)(clock_us() - begin) < seconds_per_case * 1e6)) {
        int64_t start = clock_us();
        fn(arg, n);
        times[n++] = (double)(clock_us() - start) / 1e6;
    }
    return machine_median(times, n);
}

/* The limits move with what else the host does: they are measured before and after each case. */
static void report_bytes(const char *name, double bytes, void (*fn)(void *, int32_t), void *arg) {
    double before = machine_read_gbps(threads, LIMIT_PASSES);
    double s = measure(fn, arg), gbps = bytes / s / 1e9;
    double limit = (before + machine_read_gbps(threads, LIMIT_PASSES)) / 2;
    printf("%-34s %10.3f ms  %7.2f GB/s      %3.0f%% of %.1f GB/s read\n", name, s * 1e3, gbps,
           100 * gbps / limit, limit);
    fflush(stdout);
}

static void report_flops(const char *name, double flops, void (*fn)(void *, int32_t), void *arg) {
    double before = machine_fma_gflops(threads, LIMIT_PASSES);
    double s = measure(fn, arg), gflops = flops / s / 1e9;
    double limit = (before + machine_fma_gflops(threads, LIMIT_PASSES)) / 2;
    printf("%-34s %10.3f ms  %7.1f GFLOP/s   %3.0f%% of %.0f GFLOP/s FMA\n", name, s * 1e3, gflops,
           100 * gflops / limit, limit);
    fflush(stdout);
}

/* ---- weights --------------------------------------------------------------------------------- */

static void *pool(size_t bytes) {
    void *p = ops->alloc(backend, bytes);
    CHECK(p, "%zu bytes", bytes);
    return p;
}

static float *random_floats(int64_t n) {
    float *x = pool((size_t)n * sizeof *x);
    uint32_t r = 1;
    for (int64_t i = 0; i < n; i++) {
        r = r * 1664525 + 1013904223;
        x[i] = (float)((int32_t)r >> 8) * 0x1p-23f;
    }
    return x;
}

/* How the weights of a case are stored. */
struct kind {
    enum dtype dtype;
    enum fp8_scaling scaling;
};

static const char *kind_name(struct kind k) {
    return k.scaling == FP8_BLOCK ? "F8_E4M3 blocks" : dtype_name(k.dtype);
}

static struct weight random_weight(struct kind kind, int32_t rows, int32_t cols) {
    enum dtype dtype = kind.dtype;
    int64_t n = (int64_t)rows * cols;
    char *data = xmalloc((size_t)n * dtype_bytes(dtype));
    uint32_t r = 7;
    for (int64_t i = 0; i < n; i++) {
        r = r * 1664525 + 1013904223;
        dtype_store(dtype, data, i, (float)((int32_t)r >> 8) * 0x1p-23f);
    }
    struct tensor_source source = {.data = data,
                                   .dtype = dtype,
                                   .rows = rows,
                                   .cols = cols,
                                   .scale = 1,
                                   .scaling = kind.scaling,
                                   .name = "bench"};
    struct tensor_slice slice = {&source, 0, rows, 0, cols};
    struct weight w;
    const struct weight_shape shape = {
        .dtype = dtype, .rows = rows, .cols = cols, .scaling = kind.scaling};
    ops->weight_init(backend, &w, &shape, pool(ops->weight_bytes(&shape)));
    ops->weight_put(backend, &w, 0, &slice);
    free(data);
    return w;
}

static void free_weight(struct weight *w) {
    const struct weight_shape shape = {.dtype = w->dtype,
                                       .rows = w->rows,
                                       .cols = w->cols,
                                       .scaling = w->block_scale ? FP8_BLOCK : FP8_TENSOR};
    ops->free(backend, w->data, ops->weight_bytes(&shape));
}

/* ---- matmul ---------------------------------------------------------------------------------- */

struct matmul_bench {
    struct weight w[MAX_MATRICES];
    int32_t n, T;
    float *x, *y;
};

static void matmul_run(void *arg, int32_t run) {
    struct matmul_bench *m = arg;
    ops->matmul(backend, m->y, I, m->x, H, &m->w[run % m->n], NULL, m->T);
}

static void bench_matmul(struct kind kind) {
    enum dtype dtype = kind.dtype;
    static const int32_t batches[] = {1, 2, 4, 8, 16, 32};
    struct matmul_bench m = {.x = random_floats(MAX_T * H), .y = random_floats(MAX_T * I)};
    double bytes = (double)I * H * (double)dtype_bytes(dtype);
    char name[64];
    m.n = (int32_t)(WEIGHT_BYTES / bytes);
    m.n = m.n > MAX_MATRICES ? MAX_MATRICES : m.n;
    for (int32_t i = 0; i < m.n; i++)
        m.w[i] = random_weight(kind, I, H);
    for (int32_t b = 0; b < (dtype == DTYPE_BF16 || dtype == DTYPE_F8_E4M3 ? 6 : 1); b++) {
        m.T = batches[b];
        snprintf(name, sizeof name, "matmul %s [%d, %d] T=%d", kind_name(kind), I, H, m.T);
        report_bytes(name, bytes, matmul_run, &m);
    }
    m.T = MAX_T;
    snprintf(name, sizeof name, "matmul %s [%d, %d] T=%d", kind_name(kind), I, H, m.T);
    report_flops(name, 2.0 * I * H * m.T, matmul_run, &m);
    for (int32_t i = 0; i < m.n; i++)
        free_weight(&m.w[i]);
    ops->free(backend, m.x, (size_t)MAX_T * H * sizeof *m.x);
    ops->free(backend, m.y, (size_t)MAX_T * I * sizeof *m.y);
}

/* ---- experts --------------------------------------------------------------------------------- */

struct moe_bench {
    struct expert_weights experts[E];
    struct moe_args a;
    struct routing routing;
    int32_t ids[MAX_T * K], counts[E], offsets[E + 1], permutation[MAX_T * K];
    float weights[MAX_T * K];
};

/* Token t of run r goes to experts that change from run to run. */
static void moe_run(void *arg, int32_t run) {
    struct moe_bench *m = arg;
    int32_t at = 0, T = m->a.num_tokens;
    for (int32_t p = 0; p < T * K; p++) {
        m->ids[p] = (run * T * K + p) * 5 % E;
        m->weights[p] = 0.5f;
    }
    for (int32_t e = 0; e < E; e++) {
        m->offsets[e] = at;
        for (int32_t p = 0; p < T * K; p++)
            if (m->ids[p] == e)
                m->permutation[at++] = p;
        m->counts[e] = at - m->offsets[e];
    }
    m->offsets[E] = at;
    ops->moe(backend, &m->a);
}

static void bench_moe(struct kind kind) {
    static const int32_t batches[] = {1, 4, 16, 32};
    struct moe_bench *m = xcalloc(1, sizeof *m);
    float *x = random_floats(MAX_T * H);
    double *partial = pool(MAX_T * H * sizeof *partial), per_expert;
    char name[64];
    for (int32_t e = 0; e < E; e++)
        m->experts[e] = (struct expert_weights){
            e, random_weight(kind, I, H), random_weight(kind, I, H), random_weight(kind, H, I)};
    m->routing = (struct routing){m->ids, m->weights, m->counts, m->offsets, m->permutation, NULL};
    m->a = (struct moe_args){.x = x,
                             .routing = &m->routing,
                             .experts = m->experts,
                             .num_experts = E,
                             .num_experts_per_tok = K,
                             .unit = 128,
                             .partial = partial};
    per_expert = 3.0 * H * I * (double)dtype_bytes(kind.dtype);
    for (int32_t b = 0; b < 4; b++) {
        int32_t T = m->a.num_tokens = batches[b];
        snprintf(name, sizeof name, "moe %s %dx%dx%d top %d T=%d", kind_name(kind), E, H, I, K, T);
        report_bytes(name, per_expert * (T * K < E ? T * K : E), moe_run, m);
    }
    m->a.num_tokens = MAX_T;
    snprintf(name, sizeof name, "moe %s %dx%dx%d top %d T=%d", kind_name(kind), E, H, I, K, MAX_T);
    report_flops(name, 6.0 * H * I * MAX_T * K, moe_run, m);
    for (int32_t e = 0; e < E; e++) {
        free_weight(&m->experts[e].gate);
        free_weight(&m->experts[e].up);
        free_weight(&m->experts[e].down);
    }
    ops->free(backend, x, MAX_T * H * sizeof *x);
    ops->free(backend, partial, MAX_T * H * sizeof *partial);
    free(m);
}

/* ---- attention ------------------------------------------------------------------------------- */

enum { HQ = 16, HKV = 4, D = 64, CONTEXT = 4096, SEQS = 16, BLOCKS = CONTEXT / KV_BLOCK_SIZE };

struct attention_bench {
    struct attention_args a;
    struct batch batch;
    int32_t tables[SEQS * BLOCKS], cu_seqlens[SEQS + 1], seq_lens[SEQS], positions[MAX_T];
};

static void attention_run(void *arg, int32_t run) {
    (void)run;
    ops->attention(backend, &((struct attention_bench *)arg)->a);
}

static void bench_attention(enum dtype dtype) {
    struct attention_bench *m = xcalloc(1, sizeof *m);
    size_t block = ops->kv_block_bytes(dtype, HKV, D), bytes = block * SEQS * BLOCKS;
    float *q = random_floats(MAX_T * (HQ + 2 * HKV) * D), *out = random_floats(MAX_T * HQ * D);
    char *kv = pool(bytes), name[64];
    for (size_t i = 0; i < bytes; i++)
        kv[i] = (char)(i % 64 * 0x9d & 0x3f); /* small positive numbers in every dtype */
    for (int32_t i = 0; i < SEQS * BLOCKS; i++)
        m->tables[i] = i;
    m->batch = (struct batch){.num_tokens = SEQS,
                              .num_seqs = SEQS,
                              .positions = m->positions,
                              .cu_seqlens = m->cu_seqlens,
                              .seq_lens = m->seq_lens,
                              .block_tables = m->tables,
                              .max_blocks = BLOCKS};
    m->a = (struct attention_args){.batch = &m->batch,
                                   .qkv = q,
                                   .ld = (HQ + 2 * HKV) * D,
                                   .out = out,
                                   .num_heads = HQ,
                                   .num_kv_heads = HKV,
                                   .head_dim = D,
                                   .scale = 0.125f,
                                   .kv = {kv, dtype}};
    for (int32_t s = 0; s < SEQS; s++) {
        m->positions[s] = CONTEXT - 1;
        m->cu_seqlens[s + 1] = s + 1;
        m->seq_lens[s] = CONTEXT;
    }
    snprintf(name, sizeof name, "attention %s decode %dx%d", dtype_name(dtype), SEQS, CONTEXT);
    report_bytes(name, (double)bytes, attention_run, m);
    m->batch.num_tokens = MAX_T;
    m->batch.num_seqs = 1;
    m->cu_seqlens[1] = MAX_T;
    for (int32_t t = 0; t < MAX_T; t++)
        m->positions[t] = 1024 + t;
    snprintf(name, sizeof name, "attention %s prefill %d at 1024", dtype_name(dtype), MAX_T);
    report_flops(name, 4.0 * HQ * D * MAX_T * (1024 + MAX_T / 2), attention_run, m);
    ops->free(backend, q, MAX_T * (HQ + 2 * HKV) * D * sizeof *q);
    ops->free(backend, out, MAX_T * HQ * D * sizeof *out);
    ops->free(backend, kv, bytes);
    free(m);
}

int main(int argc, char **argv) {
    const char *isa = NULL;
    struct error error = {0};
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--threads") == 0)
            threads = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--isa") == 0)
            isa = argv[i + 1];
        else if (strcmp(argv[i], "--seconds") == 0)
            seconds_per_case = atof(argv[i + 1]);
    }
    ops = cpu_ops(isa, &error);
    if (!ops || threads < 1) {
        fprintf(stderr, "bench_ops: %s\n", ops ? "--threads wants 1 or more" : error.text);
        return 1;
    }
    int32_t kv_head[HQ];
    struct backend_config config = {
        .max_tokens = MAX_T,
        .max_seqs = SEQS,
        .max_model_len = CONTEXT,
        .hidden_size = H,
        .max_intermediate = I,
        .max_matmul_cols = I,
        .num_experts = E,
        .num_experts_per_tok = K,
        .num_heads = HQ,
        .num_kv_heads = HKV,
        .head_dim = D,
        .kv_head = kv_head,
        .threads = threads,
    };
    for (int32_t h = 0; h < HQ; h++)
        kv_head[h] = h * HKV / HQ;
    if (ops->create(&config, &backend, &error) != 0) {
        fprintf(stderr, "bench_ops: %s\n", error.text);
        return 1;
    }
    printf("%s; reads %.1f GB/s, FMA %.0f GFLOP/s\n", ops->describe(backend),
           machine_read_gbps(threads, LIMIT_PASSES), machine_fma_gflops(threads, LIMIT_PASSES));
    static const struct kind kinds[] = {{DTYPE_BF16, FP8_TENSOR},
                                        {DTYPE_F8_E4M3, FP8_TENSOR},
                                        {DTYPE_F8_E4M3, FP8_BLOCK},
                                        {DTYPE_F16, FP8_TENSOR},
                                        {DTYPE_F32, FP8_TENSOR}};
    for (int i = 0; i < 5; i++)
        bench_matmul(kinds[i]);
    for (int i = 0; i < 3; i++)
        bench_moe(kinds[i]);
    bench_attention(DTYPE_BF16);
    bench_attention(DTYPE_F8_E4M3);
    ops->destroy(backend);
    return 0;
}
