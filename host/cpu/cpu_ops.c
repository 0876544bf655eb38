/* cpu_ops: the cpu filling of the op table: choice of the kernels, the backend object, the tables.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/cpu/cpu_backend.h"
#include "host/mem.h"

/* Below this many operations a second thread costs more than it saves. */
enum { MIN_PARALLEL_WORK = 20000, ACT_ROWS = 1024, MAX_SPLIT = 1024 };

/* ---- running tasks ------------------------------------------------------------------------------
 */

void cpu_run(struct backend *b, pool_fn *fn, void *arg, int32_t num_tasks, int64_t total_work) {
    if (total_work >= MIN_PARALLEL_WORK) {
        pool_run(b->pool, fn, arg, num_tasks);
        return;
    }
    for (int32_t task = 0; task < num_tasks; task++)
        fn(arg, task, 0);
}

struct rows_job {
    rows_fn *fn;
    void *arg;
    int32_t n, per_task;
};

static void rows_task(void *opaque, int32_t task, int32_t thread) {
    const struct rows_job *j = opaque;
    int32_t first = task * j->per_task;
    (void)thread;
    j->fn(j->arg, first, j->n - first < j->per_task ? j->n : first + j->per_task);
}

void cpu_for_rows(struct backend *b, int32_t n, int64_t work, rows_fn *fn, void *arg) {
    int32_t threads = b->config.threads;
    if (n == 0)
        return;
    if (threads == 1 || n == 1 || n * work < MIN_PARALLEL_WORK) {
        fn(arg, 0, n);
        return;
    }
    struct rows_job job = {fn, arg, n, (n + 4 * threads - 1) / (4 * threads)};
    pool_run(b->pool, rows_task, &job, (n + job.per_task - 1) / job.per_task);
}

/* ---- workspace ----------------------------------------------------------------------------------
 */

/* Hands out aligned pieces of a pool; with base NULL it only counts. */
struct carver {
    char *base;
    size_t used;
};

static void *carve(struct carver *c, size_t count, size_t size) {
    void *p = c->base ? c->base + c->used : NULL;
    c->used += (count * size + 127) / 128 * 128;
    return p;
}

static struct attend_sums carve_sums(struct carver *c, size_t width) {
    struct attend_sums s;
    s.max = carve(c, ATTENTION_ROWS, sizeof(float));
    s.sum = carve(c, ATTENTION_ROWS, sizeof(float));
    s.out = carve(c, ATTENTION_ROWS * width, sizeof(float));
    return s;
}

static void carve_scratch(struct carver *c, struct scratch *s, size_t head_dim) {
    size_t width = (size_t)attend_width((int32_t)head_dim);
    s->panel = carve(c, PANEL_SIZE, sizeof *s->panel);
    s->sums = carve(c, ROW_CHUNK * TILE_GROUP_ROWS, sizeof(float));
    s->product = carve(c, ROW_CHUNK * TILE_GROUP_ROWS, sizeof(double));
    s->act = carve(c, ROW_CHUNK * TILE_GROUP_ROWS / 2, sizeof(float));
    s->q = carve(c, ATTENTION_ROWS * head_dim, sizeof(float));
    s->scores = carve(c, ATTENTION_ROWS * PARTITION_KEYS, sizeof(float));
    s->first_key = carve(c, ATTENTION_ROWS, sizeof(int32_t));
    s->last_key = carve(c, ATTENTION_ROWS, sizeof(int32_t));
    s->total = carve_sums(c, width);
    s->partition = carve_sums(c, width);
}

/* Lays the workspace out at `base`; returns its size. */
static size_t carve_workspace(struct backend *b, char *base) {
    const struct backend_config *c = &b->config;
    size_t T = (size_t)c->max_tokens, K = (size_t)c->num_experts_per_tok;
    int32_t cols = c->max_matmul_cols > c->hidden_size ? c->max_matmul_cols : c->hidden_size;
    size_t heads = (size_t)c->num_heads, kv_heads = (size_t)c->num_kv_heads;
    size_t parts = ((size_t)c->max_model_len + PARTITION_KEYS - 1) / PARTITION_KEYS;
    struct carver carver = {.base = base};
    b->act_rows = c->max_tokens > ACT_ROWS ? c->max_tokens : ACT_ROWS;
    if ((size_t)b->act_rows > T * K)
        b->act_rows = (int32_t)(T * K);
    /* Every (sequence, KV head) has a last unit that may be short. */
    b->max_units = (int32_t)(T * heads / ATTENTION_ROWS + (size_t)c->max_seqs * kv_heads + 1);
    size_t split = (size_t)c->threads * parts;
    b->max_split = c->threads == 1 ? 0 : split < MAX_SPLIT ? (int32_t)split : MAX_SPLIT;

    b->scratch = carve(&carver, (size_t)c->threads, sizeof *b->scratch);
    b->packed = carve(&carver, T * packed_width(cols, false), sizeof(float));
    if (b->kernels->dot_pairs)
        b->packed_pairs = carve(&carver, T * packed_width(cols, true), sizeof(uint32_t));
    b->logits = carve(&carver, T * (size_t)c->num_experts, sizeof(float));
    b->act_width = packed_width(c->max_intermediate, false);
    b->act = carve(&carver, (size_t)b->act_rows * b->act_width, sizeof(float));
    b->pair_tokens = carve(&carver, T * K, sizeof(int32_t));
    b->pair_weights = carve(&carver, T * K, sizeof(float));
    b->moe_parts = carve(&carver, (size_t)c->num_experts, cpu_moe_part_bytes());
    b->units = carve(&carver, (size_t)b->max_units, cpu_attention_unit_bytes());
    b->head_list = carve(&carver, heads, sizeof(int32_t));
    b->head_offsets = carve(&carver, kv_heads + 1, sizeof(int32_t));
    b->split = carve(
        &carver, (size_t)b->max_split * ATTENTION_ROWS * (size_t)(attend_width(c->head_dim) + 2),
        sizeof(float));
    for (int32_t i = 0; i < c->threads; i++) {
        struct scratch counted;
        carve_scratch(&carver, base ? &b->scratch[i] : &counted, (size_t)c->head_dim);
    }
    return carver.used;
}

/* The rank's query heads grouped by the KV head that they read. */
static void group_heads(struct backend *b) {
    const struct backend_config *c = &b->config;
    int32_t at = 0;
    for (int32_t kv = 0; kv < c->num_kv_heads; kv++) {
        b->head_offsets[kv] = at;
        for (int32_t h = 0; h < c->num_heads; h++)
            if (c->kv_head[h] == kv)
                b->head_list[at++] = h;
    }
    b->head_offsets[c->num_kv_heads] = at;
}

/* ---- the backend object -------------------------------------------------------------------------
 */

static void cpu_destroy(struct backend *b) {
    if (!b)
        return;
    pool_destroy(b->pool);
    mem_pool_free(b->memory, b->memory_bytes);
    free(b);
}

int cpu_create(const struct cpu_kernels *kernels, const struct backend_config *config,
               struct backend **out, struct error *error) {
    if (config->fp8_activations)
        return error_set(error, ERR_UNSUPPORTED,
                         "--activation-dtype fp8: the CPU kernels have no FP8 products; --gpus has "
                         "them, and --device ref computes what they would");
    struct backend *b = xcalloc(1, sizeof *b);
    int rc;
    b->config = *config;
    b->kernels = kernels;
    snprintf(b->description, sizeof b->description, "%s, %d thread%s", kernels->description,
             config->threads, config->threads == 1 ? "" : "s");
    b->memory_bytes = carve_workspace(b, NULL);
    b->memory = mem_pool_alloc(b->memory_bytes);
    if (!b->memory) {
        rc = error_set(error, ERR_NO_MEMORY,
                       "%.1f MiB of scratch memory for the CPU kernels are missing; "
                       "--max-num-batched-tokens makes it smaller",
                       (double)b->memory_bytes / 1048576);
        goto fail;
    }
    carve_workspace(b, b->memory);
    group_heads(b);
    b->config.kv_head = NULL; /* was borrowed */
    b->pool = pool_create(config->threads);
    if (!b->pool) {
        rc = error_set(error, ERR_NO_MEMORY, "cannot start %d threads; --threads makes it fewer",
                       config->threads);
        goto fail;
    }
    *out = b;
    return 0;
fail:
    cpu_destroy(b);
    return rc;
}

static void *cpu_alloc(struct backend *b, size_t bytes) {
    (void)b;
    return mem_pool_alloc(bytes);
}

static void cpu_free(struct backend *b, void *p, size_t bytes) {
    (void)b;
    mem_pool_free(p, bytes);
}

static void cpu_write(struct backend *b, void *to, const void *from, size_t bytes) {
    (void)b;
    memcpy(to, from, bytes);
}

static int64_t cpu_free_bytes(struct backend *b) {
    (void)b;
    return mem_available_bytes();
}

/* The rest is for the page cache of the checkpoint's files and for other programs. */
static int64_t cpu_kv_budget(struct backend *b) {
    (void)b;
    return (int64_t)((double)mem_available_bytes() * 0.4);
}

static const char *cpu_describe(struct backend *b) {
    return b->description;
}

/* ---- tables -------------------------------------------------------------------------------------
 */

#define CPU_TABLE(isa_name, create_fn)                                                             \
    {                                                                                              \
        .name = isa_name, .kv_dtype = DTYPE_BF16, .act_bytes = sizeof(float),                      \
        .partial_bytes = sizeof(double), .block_cut = 2, .create = create_fn,                      \
        .destroy = cpu_destroy, .alloc = cpu_alloc, .free = cpu_free, .write = cpu_write,          \
        .free_bytes = cpu_free_bytes, .kv_budget = cpu_kv_budget,                                  \
        .weight_bytes = cpu_weight_bytes, .weight_init = cpu_weight_init,                          \
        .weight_put = cpu_weight_put, .kv_block_bytes = cpu_kv_block_bytes,                        \
        .embed_init = cpu_embed_init, .embed = cpu_embed, .add_norm = cpu_add_norm,                \
        .gather_rows = cpu_gather_rows, .matmul = cpu_matmul, .logits = cpu_logits,                \
        .matmul_partial = cpu_matmul_partial, .qk_sum_squares = cpu_qk_sum_squares,                \
        .qk_rope_kv_write = cpu_qk_rope_kv_write, .attention = cpu_attention,                      \
        .router = cpu_router, .moe = cpu_moe, .describe = cpu_describe,                            \
    }

struct ops cpu_table(const struct cpu_kernels *kernels) {
    return (struct ops)CPU_TABLE(kernels->name, NULL);
}

#define CPU_VARIANT(isa)                                                                           \
    static int create_##isa(const struct backend_config *config, struct backend **out,             \
                            struct error *error) {                                                 \
        return cpu_create(&kernels_##isa, config, out, error);                                     \
    }                                                                                              \
    static const struct ops ops_##isa = CPU_TABLE("cpu-" #isa, create_##isa);
CPU_VARIANT(avx2)
CPU_VARIANT(avx512)
CPU_VARIANT(avx512bf16)

/* Every CPU with AVX2 has F16C, which clang's builtin does not know. */
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

static bool has_avx512bf16(void) {
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}

/* Best first. */
static const struct {
    const char *isa;
    const struct ops *ops;
    bool (*supported)(void);
} variants[] = {
    {"avx512bf16", &ops_avx512bf16, has_avx512bf16},
    {"avx512", &ops_avx512, has_avx512},
    {"avx2", &ops_avx2, has_avx2},
};

const struct ops *cpu_ops(const char *isa, struct error *error) {
    bool any = !isa || strcmp(isa, "auto") == 0, known = any;
    for (size_t i = 0; i < sizeof variants / sizeof variants[0]; i++) {
        if (!any && strcmp(isa, variants[i].isa) != 0)
            continue;
        known = true;
        if (variants[i].supported())
            return variants[i].ops;
    }
    if (any)
        error_set(error, ERR_UNSUPPORTED,
                  "this machine's CPU has no AVX2 and FMA; --device ref runs anywhere, slowly");
    else if (known)
        error_set(error, ERR_UNSUPPORTED, "--cpu-isa %s: this machine's CPU does not have it", isa);
    else
        error_set(error, ERR_CONFIG,
                  "--cpu-isa %s: unknown, there are auto, avx2, avx512 or avx512bf16", isa);
    return NULL;
}
