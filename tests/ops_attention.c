#include "tests/ops_attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"

enum { BLOCKS_PER_SEQ = MAX_CONTEXT / KV_BLOCK_SIZE, NUM_BLOCKS = MAX_SEQS * BLOCKS_PER_SEQ };
enum { MAX_ROWS = 300 };

struct session {
    const struct ops *ops;
    struct heads_case c;
    int32_t kv_head[64];
    struct backend *b;
    void *kv;
    size_t kv_bytes;
    int32_t tables[MAX_SEQS * BLOCKS_PER_SEQ];
    float *rope, *q_norm, *k_norm, *qkv;
    double *sums;
    int64_t ld;
    int32_t poison_position; /* -1: none */
    enum part poison_part;
    /* the batch of a step */
    int32_t tokens[MAX_ROWS], positions[MAX_ROWS], slots[MAX_ROWS];
    int32_t cu_seqlens[MAX_ROWS + 1], seq_lens[MAX_ROWS];
    int32_t step_tables[MAX_ROWS * BLOCKS_PER_SEQ];
};

/* Blocks in no order, none twice. */
static void shuffle_blocks(struct session *s) {
    struct rng r = rng_seeded(77);
    for (int32_t i = 0; i < NUM_BLOCKS; i++)
        s->tables[i] = i;
    for (int32_t i = NUM_BLOCKS - 1; i > 0; i--) {
        int32_t j = rng_below(&r, i + 1), t = s->tables[i];
        s->tables[i] = s->tables[j];
        s->tables[j] = t;
    }
}

struct session *session_open(const struct ops *ops, int32_t threads, const struct heads_case *c) {
    struct session *s = xcalloc(1, sizeof *s);
    struct backend_config config = test_config(threads);
    struct rng r = rng_seeded(78);
    config.head_dim = c->D;
    config.num_heads = c->Hq;
    config.num_kv_heads = c->Hkv;
    config.kv_head = s->kv_head;
    s->ops = ops;
    s->c = *c;
    s->poison_position = -1;
    for (int32_t h = 0; h < c->Hq; h++)
        s->kv_head[h] = c->kv_head ? c->kv_head[h] : h * c->Hkv / c->Hq;
    s->b = test_backend(ops, &config);
    s->kv_bytes = NUM_BLOCKS * ops->kv_block_bytes(c->kv_dtype, c->Hkv, c->D);
    s->kv = ops->alloc(s->b, s->kv_bytes);
    CHECK(s->kv, "no memory");
    memset(s->kv, 0xff, s->kv_bytes); /* NaN in every dtype */
    shuffle_blocks(s);
    s->ld = (int64_t)(c->Hq + 2 * c->Hkv) * c->D + 4;
    s->qkv = guarded_floats(MAX_ROWS * s->ld);
    s->sums = guarded_doubles(MAX_ROWS * 2);
    s->rope = guarded_floats((int64_t)MAX_CONTEXT * c->D);
    for (int32_t p = 0; p < MAX_CONTEXT; p++)
        for (int32_t i = 0; i < c->D / 2; i++) {
            double angle = p * pow(10000, -2.0 * i / c->D);
            s->rope[p * c->D + i] = (float)cos(angle);
            s->rope[p * c->D + c->D / 2 + i] = (float)sin(angle);
        }
    int64_t widest = (int64_t)(c->Hq + c->Hkv) * c->D;
    s->q_norm = guarded_floats(widest);
    s->k_norm = guarded_floats(widest);
    for (int64_t i = 0; i < widest; i++) {
        s->q_norm[i] = 1 + rng_float(&r) / 4;
        s->k_norm[i] = 1 + rng_float(&r) / 4;
    }
    return s;
}

void session_poison(struct session *s, enum part part, int32_t position) {
    s->poison_part = part;
    s->poison_position = position;
}

static void poison_row(struct session *s, float *row) {
    int32_t D = s->c.D, Hq = s->c.Hq, Hkv = s->c.Hkv;
    int32_t first = s->poison_part == PART_Q ? 0 : s->poison_part == PART_K ? Hq : Hq + Hkv;
    for (int32_t h = 0; h < (s->poison_part == PART_Q ? Hq : Hkv); h++)
        row[(first + h) * D + h % D] = NAN;
}

void session_close(struct session *s) {
    s->ops->free(s->b, s->kv, s->kv_bytes);
    s->ops->destroy(s->b);
    guarded_free(s->qkv);
    guarded_free(s->sums);
    guarded_free(s->rope);
    guarded_free(s->q_norm);
    guarded_free(s->k_norm);
    free(s);
}

static struct batch make_batch(struct session *s, const struct chunk *chunks, int32_t num_chunks) {
    struct batch batch = {
        .num_seqs = num_chunks,
        .tokens = s->tokens,
        .positions = s->positions,
        .cu_seqlens = s->cu_seqlens,
        .seq_lens = s->seq_lens,
        .block_tables = s->step_tables,
        .max_blocks = BLOCKS_PER_SEQ,
        .slot_mapping = s->slots,
    };
    int32_t T = 0;
    for (int32_t i = 0; i < num_chunks; i++) {
        const int32_t *table = s->tables + chunks[i].seq * BLOCKS_PER_SEQ;
        memcpy(s->step_tables + i * BLOCKS_PER_SEQ, table, BLOCKS_PER_SEQ * sizeof *table);
        s->cu_seqlens[i] = T;
        s->seq_lens[i] = chunks[i].pos0 + chunks[i].n;
        for (int32_t p = chunks[i].pos0; p < s->seq_lens[i]; p++, T++) {
            struct rng r = rng_seeded(1000003u * (uint64_t)(chunks[i].seq + 1) + (uint64_t)p);
            CHECK(T < MAX_ROWS, "more than %d rows", MAX_ROWS);
            rng_fill(&r, s->qkv + T * s->ld, s->ld);
            if (p == s->poison_position)
                poison_row(s, s->qkv + T * s->ld);
            s->positions[T] = p;
            s->slots[T] = table[p / KV_BLOCK_SIZE] * KV_BLOCK_SIZE + p % KV_BLOCK_SIZE;
        }
    }
    s->cu_seqlens[num_chunks] = T;
    batch.num_tokens = T;
    return batch;
}

static void write_rows(struct session *s, const struct batch *batch) {
    struct qkv_args a = {
        .batch = batch,
        .qkv = s->qkv,
        .ld = s->ld,
        .num_heads = s->c.Hq,
        .num_kv_heads = s->c.Hkv,
        .head_dim = s->c.D,
        .clip = s->c.clip,
        .norm = s->c.norm,
        .q_norm = s->c.norm == QK_NORM_NONE ? NULL : s->q_norm,
        .k_norm = s->c.norm == QK_NORM_NONE ? NULL : s->k_norm,
        .eps = 1e-5f,
        .sum_squares = s->sums,
        .q_width = s->c.Hq * s->c.D,
        .k_width = s->c.Hkv * s->c.D,
        .rope = s->rope,
        .kv = {s->kv, s->c.kv_dtype},
    };
    if (s->c.norm == QK_NORM_PROJECTION)
        s->ops->qk_sum_squares(s->b, s->sums, &a, 0, s->c.Hkv);
    s->ops->qk_rope_kv_write(s->b, &a);
}

void session_fill(struct session *s, int32_t seq, int32_t n) {
    for (int32_t p = 0; p < n; p += MAX_ROWS) {
        struct chunk chunk = {seq, p, n - p < MAX_ROWS ? n - p : MAX_ROWS};
        struct batch batch = make_batch(s, &chunk, 1);
        write_rows(s, &batch);
    }
}

float *session_step(struct session *s, const struct chunk *chunks, int32_t num_chunks) {
    struct batch batch = make_batch(s, chunks, num_chunks);
    float *out = guarded_floats((int64_t)batch.num_tokens * s->c.Hq * s->c.D);
    struct attention_args a = {
        .batch = &batch,
        .qkv = s->qkv,
        .ld = s->ld,
        .out = out,
        .num_heads = s->c.Hq,
        .num_kv_heads = s->c.Hkv,
        .head_dim = s->c.D,
        .scale = 3 / sqrtf((float)s->c.D), /* sharper than usual */
        .window = s->c.window,
        .kv = {s->kv, s->c.kv_dtype},
    };
    write_rows(s, &batch);
    s->ops->attention(s->b, &a);
    return out;
}

const float *session_qkv(const struct session *s) {
    return s->qkv;
}

const double *session_sums(const struct session *s) {
    return s->sums;
}
