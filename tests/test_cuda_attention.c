/* Paged attention of the CUDA backend: against a plain loop in double, and against itself.
 *
 * Keys and values are a function of (sequence, position), queries too, so that a row may be
 * computed in any step. KV blocks are NaNs wherever no sequence has written, table entries past a
 * context are no blocks at all, and the output is NaNs before each step: what is read or left out
 * by mistake shows. Scores have a standard deviation of about 3, so that a few keys matter in each
 * row and a wrong one shows as well.
 */
#include "tests/gpu_fixture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/batch.h"
#include "host/mem.h"

enum { MAX_SEQS = 8, MAX_CONTEXT = 1056, MAX_ROWS = 320, MAX_KV_HEADS = 40, PADDING = -1 };
enum { BLOCKS_PER_SEQ = MAX_CONTEXT / KV_BLOCK_SIZE, NUM_BLOCKS = MAX_SEQS * BLOCKS_PER_SEQ };

struct heads_case {
    int32_t Hq, Hkv, D, window;
    enum dtype kv_dtype;
    const int32_t *offsets; /* [Hkv + 1] of the query heads; NULL: Hq / Hkv each */
};

/* Rows [pos0, pos0 + n) of sequence seq, in one step; or n rows of padding. */
struct chunk {
    int32_t seq, pos0, n;
};

/* Blocks of a case's sequences, on the host and on the device. */
struct rig {
    struct heads_case c;
    int32_t offsets[MAX_KV_HEADS + 1], max_group;
    int32_t tables[MAX_SEQS * BLOCKS_PER_SEQ];
    size_t kv_bytes;
    unsigned char *kv;
    struct gpu_kv gpu_kv;
    int32_t nan_query;          /* position whose query has a NaN in each head; -1: none */
    struct attention_plan plan; /* of the last step */
};

/* ---- contexts -------------------------------------------------------------------------------- */

static struct rig *rig_open(const struct heads_case *c) {
    struct rig *g = xcalloc(1, sizeof *g);
    struct rng r = rng_seeded(70);
    g->c = *c;
    g->nan_query = -1;
    for (int32_t h = 0; h < c->Hkv; h++) {
        g->offsets[h + 1] = c->offsets ? c->offsets[h + 1] : (h + 1) * (c->Hq / c->Hkv);
        int32_t group = g->offsets[h + 1] - g->offsets[h];
        g->max_group = group > g->max_group ? group : g->max_group;
    }
    for (int32_t i = 0; i < NUM_BLOCKS; i++) { /* blocks in no order */
        int32_t j = rng_below(&r, i + 1);
        g->tables[i] = g->tables[j];
        g->tables[j] = i;
    }
    g->kv_bytes = NUM_BLOCKS * gpu_kv_block_bytes(c->kv_dtype, c->Hkv, c->D);
    g->kv = xmalloc(g->kv_bytes);
    memset(g->kv, 0xff, g->kv_bytes);
    g->gpu_kv = (struct gpu_kv){gpu_alloc(g->kv_bytes), c->kv_dtype};
    return g;
}

static void rig_close(struct rig *g) {
    gpu_free(g->gpu_kv.data);
    free(g->kv);
    free(g);
}

/* Element where the key (value 0) or value (1) of a position begins. */
static int64_t kv_at(const struct rig *g, int32_t seq, int32_t pos, int32_t head, int32_t value) {
    int64_t block = g->tables[seq * BLOCKS_PER_SEQ + pos / KV_BLOCK_SIZE];
    return (((block * 2 + value) * g->c.Hkv + head) * KV_BLOCK_SIZE + pos % KV_BLOCK_SIZE) * g->c.D;
}

static float kv_load(const struct rig *g, int64_t at) {
    return dtype_load(g->c.kv_dtype, g->kv, at);
}

/* Writes positions [0, n) of a sequence. */
static void rig_fill(struct rig *g, int32_t seq, int32_t n) {
    for (int32_t p = 0; p < n; p++) {
        struct rng r = rng_seeded(1000003u * (uint64_t)(seq + 1) + (uint64_t)p);
        for (int32_t i = 0; i < 2 * g->c.Hkv; i++)
            for (int32_t d = 0; d < g->c.D; d++)
                dtype_store(g->c.kv_dtype, g->kv, kv_at(g, seq, p, i / 2, i % 2) + d,
                            rng_float(&r));
    }
    gpu_write(g->gpu_kv.data, g->kv, g->kv_bytes);
}

/* Makes one element of a position's key or value a NaN, in every head. */
static void rig_poison(struct rig *g, int32_t seq, int32_t pos, int32_t value) {
    for (int32_t h = 0; h < g->c.Hkv; h++)
        dtype_store(g->c.kv_dtype, g->kv, kv_at(g, seq, pos, h, value) + (h + 3) % g->c.D, NAN);
    gpu_write(g->gpu_kv.data, g->kv, g->kv_bytes);
}

static void make_queries(const struct rig *g, int32_t seq, int32_t pos, float *q) {
    struct rng r = rng_seeded(7000003u * (uint64_t)(seq + 1) + (uint64_t)pos);
    for (int32_t i = 0; i < g->c.Hq * g->c.D; i++)
        q[i] = bf16_to_f32(bf16_from_f32(9 * rng_float(&r)));
    for (int32_t h = 0; h < g->c.Hq && pos == g->nan_query; h++)
        q[h * g->c.D + h % g->c.D] = NAN;
}

/* ---- steps ----------------------------------------------------------------------------------- */

struct step_arrays {
    int32_t cu_seqlens[MAX_SEQS + 1], seq_lens[MAX_SEQS], tables[MAX_SEQS * BLOCKS_PER_SEQ];
    float *qkv;
    int64_t ld;
};

static void fill_step(const struct rig *g, const struct chunk *chunks, int32_t num,
                      struct step_arrays *s) {
    *s = (struct step_arrays){.ld = (int64_t)(g->c.Hq + 2 * g->c.Hkv) * g->c.D + 2};
    s->qkv = xcalloc(MAX_ROWS, (size_t)s->ld * sizeof *s->qkv);
    memset(s->tables, 0x7f, sizeof s->tables);
    for (int32_t i = 0; i < num; i++) {
        int32_t t = s->cu_seqlens[i], seq = chunks[i].seq;
        s->cu_seqlens[i + 1] = t + chunks[i].n;
        CHECK(s->cu_seqlens[i + 1] <= MAX_ROWS, "more than %d rows", MAX_ROWS);
        if (seq == PADDING)
            continue;
        s->seq_lens[i] = chunks[i].pos0 + chunks[i].n;
        for (int32_t b = 0; b * KV_BLOCK_SIZE < s->seq_lens[i]; b++)
            s->tables[i * BLOCKS_PER_SEQ + b] = g->tables[seq * BLOCKS_PER_SEQ + b];
        for (int32_t p = 0; p < chunks[i].n; p++)
            make_queries(g, seq, chunks[i].pos0 + p, s->qkv + (t + p) * s->ld);
    }
}

/* The outputs of one step, [T, Hq * D], to be freed. max_splits: room in the workspace. */
static float *rig_step(struct rig *g, const struct chunk *chunks, int32_t num, int64_t max_splits,
                       bool whole) {
    const struct heads_case *c = &g->c;
    struct step_arrays s;
    struct attention_tile *tiles;
    fill_step(g, chunks, num, &s);
    int32_t T = s.cu_seqlens[num], max_tiles = attention_max_tiles(T, num, g->max_group);
    tiles = xcalloc((size_t)max_tiles + 1, sizeof *tiles);
    attention_make_plan(&g->plan, tiles, s.cu_seqlens, s.seq_lens, num, g->max_group, max_splits,
                        whole);
    EXPECT_INT_LE(g->plan.num_decode_tiles + g->plan.num_prefill_tiles, max_tiles);
    EXPECT_INT_LE(g->plan.total_splits, max_splits);
    struct attention_launch_args a = {
        .qkv = gpu_upload_bf16(s.qkv, T * s.ld),
        .ld = s.ld,
        .out = gpu_alloc((size_t)T * (size_t)(c->Hq * c->D) * sizeof(bf16)),
        .num_heads = c->Hq,
        .num_kv_heads = c->Hkv,
        .head_dim = c->D,
        .head_offsets = gpu_upload(g->offsets, (size_t)(c->Hkv + 1) * 4),
        .scale = 1 / sqrtf((float)c->D),
        .window = c->window,
        .kv = g->gpu_kv,
        .cu_seqlens = gpu_upload(s.cu_seqlens, (size_t)(num + 1) * 4),
        .seq_lens = gpu_upload(s.seq_lens, (size_t)num * 4),
        .block_tables = gpu_upload(s.tables, (size_t)num * BLOCKS_PER_SEQ * 4),
        .max_blocks = BLOCKS_PER_SEQ,
        .plan = g->plan,
        .tiles = gpu_upload(tiles, (size_t)max_tiles * sizeof *tiles),
        .workspace = gpu_alloc(attention_workspace_bytes(g->plan.total_splits, c->Hkv, c->D)),
    };
    attention_launch(&a, gpu_stream());
    float *out = gpu_fetch_bf16(a.out, (int64_t)T * c->Hq * c->D);
    gpu_free((void *)a.qkv);
    gpu_free(a.out);
    gpu_free((void *)a.head_offsets);
    gpu_free((void *)a.cu_seqlens);
    gpu_free((void *)a.seq_lens);
    gpu_free((void *)a.block_tables);
    gpu_free((void *)a.tiles);
    gpu_free(a.workspace);
    free(tiles);
    free(s.qkv);
    return out;
}

/* ---- the reference --------------------------------------------------------------------------- */

static int32_t kv_head_of(const struct rig *g, int32_t head) {
    int32_t kv = 0;
    while (head >= g->offsets[kv + 1])
        kv++;
    return kv;
}

static void ref_head(const struct rig *g, int32_t seq, int32_t pos, int32_t head, const float *q,
                     float *out) {
    double scores[MAX_CONTEXT], max = -INFINITY, sum = 0, acc[256] = {0};
    int32_t D = g->c.D, kv = kv_head_of(g, head), window = g->c.window;
    int32_t first = window > 0 && pos + 1 > window ? pos + 1 - window : 0;
    for (int32_t j = first; j <= pos; j++) {
        int64_t at = kv_at(g, seq, j, kv, 0);
        scores[j] = 0;
        for (int32_t d = 0; d < D; d++)
            scores[j] += (double)q[d] * (double)kv_load(g, at + d);
        scores[j] /= sqrt(D);
        max = fmax(max, scores[j]);
    }
    for (int32_t j = first; j <= pos; j++) {
        int64_t at = kv_at(g, seq, j, kv, 1);
        double p = exp(scores[j] - max);
        sum += p;
        for (int32_t d = 0; d < D; d++)
            acc[d] += p * (double)kv_load(g, at + d);
    }
    for (int32_t d = 0; d < D; d++)
        out[d] = (float)(acc[d] / sum);
}

/* What a step should give; zeros for padding. */
static float *ref_step(const struct rig *g, const struct chunk *chunks, int32_t num) {
    int32_t D = g->c.D, row = g->c.Hq * D;
    float *out = xcalloc(MAX_ROWS, (size_t)row * sizeof *out), *to = out;
    float *q = xcalloc((size_t)row, sizeof *q);
    for (int32_t i = 0; i < num; i++)
        for (int32_t p = 0; p < chunks[i].n; p++, to += row) {
            if (chunks[i].seq == PADDING)
                continue;
            make_queries(g, chunks[i].seq, chunks[i].pos0 + p, q);
            for (int32_t h = 0; h < g->c.Hq; h++)
                ref_head(g, chunks[i].seq, chunks[i].pos0 + p, h, q + h * D, to + h * D);
        }
    free(q);
    return out;
}

/* ---- against the reference ------------------------------------------------------------------- */

/* Decodes at 1, 16, 17 and 1000 tokens, padding, and chunks of 15 (whole), 5 and 100 rows. */
static const struct chunk mixed[] = {
    {0, 0, 1},  {1, 0, 15}, {2, 15, 1},  {PADDING, 0, 1},
    {3, 12, 5}, {4, 16, 1}, {5, 999, 1}, {6, 470, 100},
};
enum { NUM_MIXED = 8, MIXED_ROWS = 125 };

static const int32_t uneven[] = {0, 3, 5, 5, 7}, large[] = {0, 36};

static const struct heads_case cases[] = {
    {4, 4, 128, 0, DTYPE_BF16, NULL},   {8, 2, 64, 0, DTYPE_F8_E4M3, NULL},
    {9, 1, 64, 300, DTYPE_F16, NULL},   {7, 4, 20, 0, DTYPE_BF16, uneven},
    {2, 2, 14, 7, DTYPE_F8_E4M3, NULL}, {3, 1, 128, 130, DTYPE_F8_E4M3, NULL},
    {2, 1, 256, 0, DTYPE_BF16, NULL},   {2, 1, 192, 0, DTYPE_F8_E4M3, NULL},
    {4, 2, 80, 1, DTYPE_F16, NULL},     {36, 1, 12, 0, DTYPE_F16, large},
    {16, 1, 128, 0, DTYPE_F16, NULL},   {3, 3, 72, 600, DTYPE_F8_E4M3, NULL},
};
enum { NUM_CASES = sizeof cases / sizeof cases[0] };

static void case_name(char *out, size_t size, const struct heads_case *c) {
    snprintf(out, size, "Hq %d Hkv %d D %d window %d kv %s", c->Hq, c->Hkv, c->D, c->window,
             dtype_name(c->kv_dtype));
}

static struct rig *open_filled(const struct heads_case *c, const struct chunk *chunks,
                               int32_t num) {
    struct rig *g = rig_open(c);
    for (int32_t i = 0; i < num; i++)
        if (chunks[i].seq != PADDING)
            rig_fill(g, chunks[i].seq, chunks[i].pos0 + chunks[i].n);
    return g;
}

/* The output is rounded to bf16: 2^-8 of it at most. The weights p are rounded to 8 bits (bf16) or
 * 11 (f16), of values below 1: 2^-9 or 2^-12 of the sum of |p v| / sum of p, once each way. */
static void check_case(const struct heads_case *c, bool whole) {
    char what[128];
    case_name(what, sizeof what, c);
    struct rig *g = open_filled(c, mixed, NUM_MIXED);
    float *want = ref_step(g, mixed, NUM_MIXED), *got = rig_step(g, mixed, NUM_MIXED, 40, whole);
    if (g->max_group <= DECODE_TILE)
        EXPECT_INT_EQ(g->plan.max_splits, whole ? 1 : 2);
    float absolute = c->kv_dtype == DTYPE_BF16 ? 0x1p-8f : 0x1p-11f;
    close_rows(what, got, want, (int64_t)MIXED_ROWS * c->Hq * c->D, (int64_t)c->Hq * c->D, 0x1p-8f,
               absolute);
    free(want);
    free(got);
    rig_close(g);
}

TEST(CudaAttention, MixedBatchesMatchTheReference) {
    GPU_OR_SKIP();
    for (int i = 0; i < NUM_CASES; i++)
        check_case(&cases[i], false);
}

TEST(CudaAttention, UnsplitContextsMatchTheReference) {
    GPU_OR_SKIP();
    for (int i = 0; i < NUM_CASES; i += 3)
        check_case(&cases[i], true);
}

/* ---- bits ------------------------------------------------------------------------------------ */

static const struct heads_case bit_cases[] = {
    {6, 2, 64, 0, DTYPE_BF16, NULL},
    {2, 2, 128, 70, DTYPE_F8_E4M3, NULL},
    {4, 1, 20, 0, DTYPE_F16, NULL},
    {1, 1, 256, 100, DTYPE_BF16, NULL},
};
enum { NUM_BIT_CASES = sizeof bit_cases / sizeof bit_cases[0], BIT_LENGTH = 150 };

/* A chunk of sequence 0, with others around it or not, against the rows of the whole prompt. */
static void check_bits(struct rig *g, int32_t pos0, int32_t n, bool others, const float *want) {
    const struct chunk chunks[] = {{1, 40, 3}, {2, 99, 1}, {0, pos0, n}, {3, 0, 70}};
    size_t row = (size_t)(g->c.Hq * g->c.D);
    float *got = others ? rig_step(g, chunks, 4, 0, true) : rig_step(g, chunks + 2, 1, 0, true);
    char what[160];
    case_name(what, sizeof what, &g->c);
    snprintf(what + strlen(what), sizeof what - strlen(what), ", rows %d + %d%s", pos0, n,
             others ? " among others" : "");
    same_bits(what, got + (others ? 4 * row : 0), want + (size_t)pos0 * row,
              (size_t)n * row * sizeof *got);
    free(got);
}

TEST(CudaAttention, WithWholePlansARowHasTheSameBitsInEveryBatch) {
    static const int32_t lengths[] = {64, 7, 5, 1};
    GPU_OR_SKIP();
    for (int i = 0; i < NUM_BIT_CASES; i++) {
        struct chunk prompt = {0, 0, BIT_LENGTH};
        const struct chunk filled[] = {{0, 0, BIT_LENGTH}, {1, 0, 43}, {2, 0, 100}, {3, 0, 70}};
        struct rig *g = open_filled(&bit_cases[i], filled, 4);
        float *want = rig_step(g, &prompt, 1, 0, true);
        for (int k = 0; k < 4; k++)
            for (int32_t p = 0; p < BIT_LENGTH; p += lengths[k] == 1 ? 21 : lengths[k]) {
                int32_t n = BIT_LENGTH - p < lengths[k] ? BIT_LENGTH - p : lengths[k];
                check_bits(g, p, n, (p + k) % 3 == 0, want);
            }
        free(want);
        rig_close(g);
    }
}

TEST(CudaAttention, ASplitRowHasTheSameBitsAloneAndInABatch) {
    GPU_OR_SKIP();
    const struct heads_case c = {6, 3, 64, 0, DTYPE_F8_E4M3, NULL};
    struct rig *g = open_filled(&c, mixed, NUM_MIXED);
    float *batch = rig_step(g, mixed, NUM_MIXED, 40, false);
    float *alone = rig_step(g, &mixed[6], 1, 2, false);
    size_t row = (size_t)(c.Hq * c.D);
    EXPECT_INT_EQ(g->plan.max_splits, 2);
    same_bits("split row", alone, batch + 24 * row, row * sizeof *batch);
    free(batch);
    free(alone);
    rig_close(g);
}

/* ---- NaNs ------------------------------------------------------------------------------------ */

/* Rows of a chunk must have NaNs in every head where they see position `at`, and none elsewhere. */
static void check_nans(struct rig *g, const struct chunk *chunk, int32_t at, bool query, bool whole,
                       const char *what) {
    int32_t D = g->c.D;
    float *out = rig_step(g, chunk, 1, 8, whole);
    for (int32_t i = 0; i < chunk->n; i++) {
        int32_t pos = chunk->pos0 + i;
        bool sees = query ? pos == at : at <= pos && (g->c.window == 0 || at > pos - g->c.window);
        for (int32_t h = 0; h < g->c.Hq; h++) {
            int32_t nans = 0;
            for (int32_t d = 0; d < D; d++)
                nans += isnan(out[((int64_t)i * g->c.Hq + h) * D + d]) != 0;
            if ((nans > 0) != sees) {
                FAIL("%s at %d: position %d, head %d has %d NaNs", what, at, pos, h, nans);
                free(out);
                return;
            }
        }
    }
    free(out);
}

/* In a decode (whole or split), in a decode of several tokens, and in a prefill; the NaN before, at
 * and behind the rows, in a window and out of it. */
TEST(CudaAttention, ANanComesOutOfTheRowsThatSeeItAndOfNoOthers) {
    static const struct heads_case nan_cases[] = {
        {2, 1, 12, 0, DTYPE_BF16, NULL},     {3, 3, 64, 40, DTYPE_F16, NULL},
        {4, 2, 128, 0, DTYPE_F8_E4M3, NULL}, {2, 2, 64, 25, DTYPE_BF16, NULL},
        {2, 1, 64, 9, DTYPE_F8_E4M3, NULL},
    };
    static const struct chunk chunks[] = {{0, 590, 1}, {0, 587, 4}, {0, 530, 65}};
    static const int32_t at[] = {3, 511, 530, 560, 588, 590, 594};
    GPU_OR_SKIP();
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 3; k++)
            for (int j = (i + k) % 2; j < 7; j += 2) {
                char what[160];
                case_name(what, sizeof what, &nan_cases[i]);
                for (int part = 0; part < 3; part++) { /* key, value, query */
                    struct rig *g = rig_open(&nan_cases[i]);
                    rig_fill(g, 0, 600);
                    if (part < 2)
                        rig_poison(g, 0, at[j], part);
                    else
                        g->nan_query = at[j];
                    check_nans(g, &chunks[k], at[j], part == 2, (i + j) % 2 == 0, what);
                    rig_close(g);
                }
            }
}

/* ---- plans ----------------------------------------------------------------------------------- */

TEST(CudaAttention, PlansSplitContextsAtFixedPlacesWhileThereIsRoom) {
    static const int32_t cu_seqlens[] = {0, 1, 1, 5, 105, 106, 107, 108};
    static const int32_t seq_lens[] = {1025, 0, 512, 300, 0, 513, 2000};
    struct attention_tile tiles[16];
    struct attention_plan plan;
    attention_make_plan(&plan, tiles, cu_seqlens, seq_lens, 7, 4, 6, false);
    EXPECT_INT_EQ(plan.num_decode_tiles, 5); /* sequence 1 has no rows; 3 has 400 */
    EXPECT_INT_EQ(plan.num_prefill_tiles, 7);
    static const struct attention_tile want[] = {
        {0, 0, 0, 3}, {2, 0, 3, 1},  {4, 0, 3, 1}, {5, 0, 3, 2}, {6, 0, 5, 1}, /* 4 do not fit */
        {3, 0, 0, 1}, {3, 64, 0, 1},
    };
    EXPECT_MEM_EQ(tiles, want, sizeof want);
    EXPECT_INT_EQ(tiles[11].first_row, 384);
    EXPECT_INT_EQ(plan.max_splits, 3);
    EXPECT_INT_EQ(plan.total_splits, 5);
    EXPECT_INT_LE(12, attention_max_tiles(108, 7, 4));
    attention_make_plan(&plan, tiles, cu_seqlens, seq_lens, 7, 4, 100, false);
    EXPECT_INT_EQ(plan.total_splits, 9);
    EXPECT_INT_LE(9, attention_max_splits(7, 1025 + 512 + 300 + 513 + 2000));
    attention_make_plan(&plan, tiles, cu_seqlens, seq_lens, 7, 4, 100, true);
    EXPECT_INT_EQ(plan.total_splits, 0);
    EXPECT_INT_EQ(plan.max_splits, 1);
    EXPECT_INT_EQ(attention_workspace_bytes(3, 5, 126), 3 * 5 * 16 * 128 * 4);
}

TEST(CudaAttention, AnEmptyStepIsNoWork) {
    GPU_OR_SKIP();
    struct rig *g = rig_open(&cases[0]);
    float *out = rig_step(g, NULL, 0, 0, false);
    EXPECT_INT_EQ(g->plan.num_decode_tiles + g->plan.num_prefill_tiles, 0);
    free(out);
    rig_close(g);
}
