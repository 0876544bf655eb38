/* bench_cuda: attention over a paged cache, decode and prefill, for the heads of published models.
 *
 * A decode case has 33 MB (4 KV heads, FP8) to 4.8 GB of keys and values; where that could lie in
 * the L2 cache, several such caches take turns. Blocks are in random order.
 */
#include <math.h>
#include <stdlib.h>

#include "host/batch.h"
#include "host/mem.h"
#include "tests/bench_gpu.h"

enum { MAX_SETS = 8 };

struct heads {
    const char *name;
    int32_t Hq, Hkv, D;
};

static const struct heads models[] = {
    {"mixtral-8x7b", 32, 8, 128},
    {"skywork-moe", 36, 36, 128},
    {"qwen3-30b-a3b", 32, 4, 128},
};
static const struct heads tiny_heads = {"tiny", 6, 2, 64};

/* S sequences of `count` new tokens behind `context` old ones. */
struct step_shape {
    int32_t S, count, context;
    bool quick; /* run with --quick too */
};

static const struct step_shape steps[] = {
    {1, 1, 32767, true},   {1, 1, 131071, false}, {16, 1, 2047, false}, {64, 1, 1023, true},
    {32, 1, 8191, false},  {1, 512, 0, true},     {1, 2048, 0, true},   {1, 8192, 0, false},
    {1, 512, 8192, false}, {8, 512, 0, false},
};
static const struct step_shape tiny_steps[] = {{3, 1, 40, true}, {1, 70, 0, true}};

struct attention_case {
    struct attention_launch_args args;
    const int32_t *tables[MAX_SETS];
};

/* ---- arguments ------------------------------------------------------------------------------- */

static void launch(void *context, int32_t set, cudaStream_t stream) {
    const struct attention_case *c = context;
    struct attention_launch_args a = c->args;
    a.block_tables = c->tables[set];
    attention_launch(&a, stream);
}

/* A random order of n blocks. */
static int32_t *shuffled(int32_t n) {
    int32_t *order = xcalloc((size_t)n, sizeof *order);
    uint32_t state = 999;
    for (int32_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        int32_t j = (int32_t)((state >> 8) % (uint32_t)(i + 1));
        order[i] = order[j];
        order[j] = i;
    }
    return order;
}

/* The step's arrays and plan, and a cache with room for `sets` copies of its sequences. */
static void make_step(struct bench *b, struct attention_case *c, const struct heads *h,
                      const struct step_shape *s, enum dtype kv_dtype, int32_t sets) {
    int32_t len = s->context + s->count, T = s->S * s->count, group = h->Hq / h->Hkv;
    int32_t blocks = (len + KV_BLOCK_SIZE - 1) / KV_BLOCK_SIZE, all = blocks * s->S * sets;
    int32_t *cu = xcalloc((size_t)s->S + 1, sizeof *cu), *lens = xcalloc((size_t)s->S, sizeof *cu);
    int32_t *offsets = xcalloc((size_t)h->Hkv + 1, sizeof *offsets), *order = shuffled(all);
    int32_t max_tiles = attention_max_tiles(T, s->S, group);
    int64_t max_splits = attention_max_splits(s->S, (int64_t)s->S * len);
    struct attention_tile *tiles = xcalloc((size_t)max_tiles + 1, sizeof *tiles);
    for (int32_t i = 0; i < s->S; i++) {
        cu[i + 1] = cu[i] + s->count;
        lens[i] = len;
    }
    for (int32_t i = 0; i < h->Hkv; i++)
        offsets[i + 1] = (i + 1) * group;
    c->args = (struct attention_launch_args){
        .ld = (int64_t)(h->Hq + 2 * h->Hkv) * h->D,
        .out = bench_alloc(b, (size_t)T * (size_t)(h->Hq * h->D) * sizeof(bf16)),
        .num_heads = h->Hq,
        .num_kv_heads = h->Hkv,
        .head_dim = h->D,
        .head_offsets = bench_upload(b, offsets, ((size_t)h->Hkv + 1) * sizeof *offsets),
        .scale = 1 / sqrtf((float)h->D),
        .cu_seqlens = bench_upload(b, cu, ((size_t)s->S + 1) * sizeof *cu),
        .seq_lens = bench_upload(b, lens, (size_t)s->S * sizeof *lens),
        .max_blocks = blocks,
    };
    attention_make_plan(&c->args.plan, tiles, cu, lens, s->S, group, max_splits, false);
    c->args.tiles = bench_upload(b, tiles, (size_t)(max_tiles + 1) * sizeof *tiles);
    c->args.workspace =
        bench_alloc(b, attention_workspace_bytes(c->args.plan.total_splits, h->Hkv, h->D));
    c->args.qkv = bench_random_bf16(b, (int64_t)T * c->args.ld, 1);
    int64_t bytes = (int64_t)all * (int64_t)gpu_kv_block_bytes(kv_dtype, h->Hkv, h->D);
    c->args.kv = (struct gpu_kv){kv_dtype == DTYPE_BF16 ? (void *)bench_random_bf16(b, bytes / 2, 1)
                                                        : (void *)bench_random_e4m3(b, bytes),
                                 kv_dtype};
    for (int32_t i = 0; i < sets; i++)
        c->tables[i] = bench_upload(b, order + (int64_t)i * blocks * s->S,
                                    (size_t)(blocks * s->S) * sizeof *order);
    free(cu);
    free(lens);
    free(offsets);
    free(order);
    free(tiles);
}

/* ---- cases ----------------------------------------------------------------------------------- */

static void run_step(struct bench *b, const struct heads *h, const struct step_shape *s,
                     enum dtype kv_dtype) {
    struct attention_case c = {0};
    char name[96];
    bool decode = s->count == 1;
    if (decode)
        snprintf(name, sizeof name, "attention/%s kv %s decode S=%d context=%d", h->name,
                 dtype_name(kv_dtype), s->S, s->context + 1);
    else
        snprintf(name, sizeof name, "attention/%s kv %s prefill S=%d T=%d context=%d", h->name,
                 dtype_name(kv_dtype), s->S, s->count, s->context);
    if (!bench_wanted(b, name))
        return;
    double kv =
        (double)s->S * (s->context + s->count) * 2 * h->Hkv * h->D * (double)dtype_bytes(kv_dtype);
    int32_t sets = decode ? bench_sets(b, kv, MAX_SETS) : 1;
    make_step(b, &c, h, s, kv_dtype, sets);
    /* a new token sees the context, itself and the new ones before it */
    double keys = (double)s->S * s->count * (s->context + (s->count + 1) / 2.0);
    struct bench_case run = {
        .name = name,
        .bytes = kv + 2.0 * s->S * s->count * h->Hq * h->D * sizeof(bf16),
        .operations = 4.0 * h->Hq * h->D * keys,
        .sets = sets,
        .launch = launch,
        .context = &c,
    };
    if (bench_ready(b, name))
        bench_run(b, &run);
    bench_release(b);
}

void bench_attention(struct bench *b) {
    static const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_F8_E4M3};
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++) {
        for (size_t i = 0; b->tiny && i < sizeof tiny_steps / sizeof *tiny_steps; i++)
            run_step(b, &tiny_heads, &tiny_steps[i], dtypes[d]);
        for (size_t m = 0; !b->tiny && m < sizeof models / sizeof *models; m++)
            for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
                if (steps[i].quick || !b->quick)
                    run_step(b, &models[m], &steps[i], dtypes[d]);
    }
}
