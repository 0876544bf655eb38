#include "tests/fake_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/engine_model.h"
#include "host/error.h"
#include "host/mem.h"

uint32_t fake_rand(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

int32_t fake_below(uint64_t *state, int32_t n) {
    return (int32_t)(fake_rand(state) % (uint32_t)n);
}

void fake_model_init(struct fake_model *m, int32_t vocab_size, int32_t num_blocks,
                     int32_t max_logits) {
    size_t slots = (size_t)num_blocks * KV_BLOCK_SIZE;
    memset(m, 0, sizeof *m);
    m->vocab_size = vocab_size;
    m->num_blocks = num_blocks;
    m->max_logits = max_logits;
    m->nan_token = m->inf_token = m->fail_token = -1;
    m->slot_tokens = xcalloc(slots, sizeof(int32_t));
    m->slot_positions = xcalloc(slots, sizeof(int32_t));
    m->logits = xcalloc((size_t)max_logits * (size_t)vocab_size, sizeof(float));
}

void fake_model_deinit(struct fake_model *m) {
    free(m->slot_tokens);
    free(m->slot_positions);
    free(m->logits);
}

static uint64_t hash_step(uint64_t h, int32_t token) {
    h = (h ^ (uint32_t)token) * 0x9e3779b97f4a7c15u;
    return h ^ (h >> 29);
}

static void logits_of(uint64_t h, int32_t vocab_size, float *row) {
    for (int32_t i = 0; i < vocab_size; i++)
        row[i] = (float)(fake_rand(&h) & 0xffffff) * 0x1p-21f - 4;
}

static int32_t argmax_of(const float *row, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (row[i] > row[best])
            best = i;
    return best;
}

void fake_logits(const int32_t *tokens, int32_t num_tokens, int32_t vocab_size, float *row) {
    uint64_t h = 1;
    for (int32_t i = 0; i < num_tokens; i++)
        h = hash_step(h, tokens[i]);
    logits_of(h, vocab_size, row);
}

int32_t fake_next(const int32_t *tokens, int32_t num_tokens, int32_t vocab_size) {
    float row[4096];
    CHECK(vocab_size <= 4096, "vocab_size %d", vocab_size);
    fake_logits(tokens, num_tokens, vocab_size, row);
    return argmax_of(row, vocab_size);
}

static void expect(struct fake_model *m, bool ok, const char *what) {
    if (!ok) {
        m->num_errors++;
        m->last_error = what;
    }
}

/* Checks sequence s of the batch and writes its rows to their slots. */
static void write_rows(struct fake_model *m, const struct batch *b, int32_t s) {
    int32_t first = b->cu_seqlens[s], end = b->cu_seqlens[s + 1];
    const int32_t *table = b->block_tables + (int64_t)s * b->max_blocks;
    expect(m, end > first, "a sequence without rows");
    expect(m, b->seq_lens[s] == b->positions[end - 1] + 1, "seq_lens and positions disagree");
    for (int32_t row = first; row < end; row++) {
        int32_t position = b->positions[row], slot = b->slot_mapping[row];
        expect(m, row == first || position == b->positions[row - 1] + 1, "a gap in the positions");
        expect(m, b->tokens[row] >= 0 && b->tokens[row] < m->vocab_size, "a token out of range");
        expect(m, slot >= 0 && slot < m->num_blocks * KV_BLOCK_SIZE, "a slot out of range");
        expect(m,
               slot == table[position / KV_BLOCK_SIZE] * KV_BLOCK_SIZE + position % KV_BLOCK_SIZE,
               "slot_mapping and block table disagree");
        m->slot_tokens[slot] = b->tokens[row];
        m->slot_positions[slot] = position;
    }
}

/* The logits of one row, from what lies in the slots of its context. */
static void compute_row(struct fake_model *m, const struct batch *b, int32_t s, int32_t row,
                        float *out) {
    const int32_t *table = b->block_tables + (int64_t)s * b->max_blocks;
    uint64_t h = 1;
    bool nan = false, inf = false;
    for (int32_t p = 0; p <= b->positions[row]; p++) {
        int32_t slot = table[p / KV_BLOCK_SIZE] * KV_BLOCK_SIZE + p % KV_BLOCK_SIZE;
        int32_t token = m->slot_tokens[slot];
        expect(m, m->slot_positions[slot] == p, "a block in the wrong place");
        nan |= token == m->nan_token;
        inf |= token == m->inf_token;
        h = hash_step(h, token);
    }
    logits_of(h, m->vocab_size, out);
    if (nan)
        out[m->vocab_size / 2] = NAN;
    if (inf)
        out[m->vocab_size / 2] = INFINITY;
}

int fake_model_run(struct fake_model *m, const struct batch *b, float **logits) {
    int32_t s = 0;
    atomic_fetch_add(&m->num_steps, 1);
    if (m->step_us > 0)
        nanosleep(&(struct timespec){.tv_nsec = (long)m->step_us * 1000}, NULL);
    while (atomic_load(&m->hold))
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    if (atomic_load(&m->fail_steps) > 0) {
        atomic_fetch_sub(&m->fail_steps, 1);
        return ERR_INTERNAL;
    }
    for (int32_t i = 0; i < b->num_tokens; i++)
        if (b->tokens[i] == m->fail_token)
            return ERR_INTERNAL;
    expect(m, b->cu_seqlens[0] == 0 && b->cu_seqlens[b->num_seqs] == b->num_tokens, "cu_seqlens");
    expect(m, b->num_logits <= m->max_logits, "too many rows of logits");
    for (int32_t i = 0; i < b->num_seqs; i++)
        write_rows(m, b, i);
    for (int32_t i = 0; i < b->num_logits; i++) {
        int32_t row = b->logits_rows[i];
        float *out = m->logits + (int64_t)i * m->vocab_size;
        expect(m, i == 0 || row > b->logits_rows[i - 1], "logits_rows are not ascending");
        while (s < b->num_seqs - 1 && row >= b->cu_seqlens[s + 1])
            s++;
        compute_row(m, b, s, row, out);
        if (i < 64)
            m->next[i] = argmax_of(out, m->vocab_size);
    }
    *logits = m->logits;
    return 0;
}

static int run_wrapped(void *ctx, const struct batch *b, float **logits, struct error *error) {
    int rc = fake_model_run(ctx, b, logits);
    return rc ? error_set(error, rc, "the fake model failed") : 0;
}

static int recover_wrapped(void *ctx, struct error *error) {
    struct fake_model *m = ctx;
    m->num_recoveries++;
    return m->lost ? error_set(error, ERR_INTERNAL, "the fake model is lost") : 0;
}

void fake_model_wrap(struct fake_model *m, int32_t max_model_len, struct engine_model *out) {
    *out = (struct engine_model){
        .ctx = m,
        .run = run_wrapped,
        .recover = m->recovers ? recover_wrapped : NULL,
        .name = "fake",
        .ranks = 1,
        .vocab_size = m->vocab_size,
        .num_kv_blocks = m->num_blocks,
        .max_model_len = max_model_len,
        .max_logits = m->max_logits,
    };
}
