/* Rotation, KV write and attention of every cpu variant against ref, and their bits.
 *
 * The contexts: a decode at 1, 16, 17, 300 and 1000 tokens, prefill chunks of 15 (whole), 5 and 100
 * rows. Blocks are poisoned with NaNs first, so that a slot past a sequence's end must not be used.
 */
#include "tests/ops_attention.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct chunk mixed[] = {
    {0, 0, 1}, {1, 0, 15}, {2, 15, 1}, {3, 12, 5}, {4, 299, 1}, {5, 999, 1}, {6, 470, 100},
};
enum { NUM_CHUNKS = 7, MIXED_ROWS = 124 };

static const int32_t uneven[] = {0, 0, 0, 1, 1, 2, 2};

static const struct heads_case cases[] = {
    {1, 1, 12, NULL, 0, DTYPE_F32, QK_NORM_NONE, 0},
    {4, 1, 14, NULL, 0, DTYPE_BF16, QK_NORM_NONE, 0},
    {9, 1, 64, NULL, 0, DTYPE_F16, QK_NORM_NONE, 0.9f},
    {8, 2, 64, NULL, 7, DTYPE_F8_E4M3, QK_NORM_NONE, 0},
    {3, 3, 128, NULL, 256, DTYPE_BF16, QK_NORM_NONE, 0},
    {7, 3, 80, uneven, 300, DTYPE_F32, QK_NORM_NONE, 0},
    {2, 1, 256, NULL, 1, DTYPE_BF16, QK_NORM_NONE, 0},
    {36, 1, 14, NULL, 16, DTYPE_F16, QK_NORM_NONE, 0}, /* more heads than a unit has rows */
    {6, 2, 64, NULL, 0, DTYPE_F32, QK_NORM_HEAD, 0},
    {5, 5, 14, NULL, 100, DTYPE_F32, QK_NORM_PROJECTION, 0.8f},
};
enum { NUM_CASES = sizeof cases / sizeof cases[0] };

static void fill_contexts(struct session *s) {
    for (int i = 0; i < NUM_CHUNKS; i++)
        session_fill(s, mixed[i].seq, mixed[i].pos0);
}

static void case_name(char *out, size_t size, const struct ops *ops, const struct heads_case *c) {
    snprintf(out, size, "%s Hq %d Hkv %d D %d window %d kv %s", ops->name, c->Hq, c->Hkv, c->D,
             c->window, dtype_name(c->kv_dtype));
}

/* Softmax averages values of magnitude 1: errors are float32 roundings of the scores (about 4, so
 * 2^-20) and of the sums. */
static const float attention_error = 0x1p-17f;

TEST(OpsAttention, AllVariantsAgreeWithRef) {
    int n;
    const struct variant *v = variants(&n);
    for (int i = 0; i < NUM_CASES; i++) {
        const struct heads_case *c = &cases[i];
        struct session *ref = session_open(&ref_ops, 1, c);
        fill_contexts(ref);
        float *expected = session_step(ref, mixed, NUM_CHUNKS);
        int64_t count = (int64_t)MIXED_ROWS * c->Hq * c->D;
        int64_t ld = (int64_t)(c->Hq + 2 * c->Hkv) * c->D + 4;
        for (int k = 0; k < n; k++) {
            char what[128];
            case_name(what, sizeof what, v[k].ops, c);
            struct session *s = session_open(v[k].ops, 2, c);
            fill_contexts(s);
            float *out = session_step(s, mixed, NUM_CHUNKS);
            close_floats(what, out, expected, count, NULL, attention_error);
            for (int32_t t = 0; t < MIXED_ROWS; t++) /* the rotated queries, of magnitude 1 to 2 */
                close_floats("queries", session_qkv(s) + t * ld, session_qkv(ref) + t * ld,
                             c->Hq * c->D, NULL, 0x1p-20f);
            if (c->norm == QK_NORM_PROJECTION)
                close_doubles("sums of squares", session_sums(s), session_sums(ref), 2 * MIXED_ROWS,
                              NULL, 1e-4f);
            guarded_free(out);
            session_close(s);
        }
        guarded_free(expected);
        session_close(ref);
    }
}

/* A row's bits do not depend on the batch, the chunking or the threads: each row is computed once
 * in the mixed batch and once more as in decode, alone. 40 threads split units by partitions. */
TEST(OpsAttention, RowsAloneHaveTheBitsOfTheBatch) {
    static const int32_t threads[] = {1, 3, 40};
    int n;
    const struct variant *v = variants(&n);
    for (int i = 0; i < NUM_CASES; i++) {
        const struct heads_case *c = &cases[i];
        size_t row = (size_t)c->Hq * (size_t)c->D;
        float *first = NULL;
        for (int k = 0; k < n; k++) {
            struct session *s = session_open(v[k].ops, threads[(i + k) % 3], c);
            fill_contexts(s);
            float *batch = session_step(s, mixed, NUM_CHUNKS);
            if (first) /* the same bits as the first variant's */
                same_bits(v[k].ops->name, batch, first, MIXED_ROWS * row * sizeof *batch);
            for (int j = 0, at = 0; j < NUM_CHUNKS; at += mixed[j++].n)
                for (int32_t p = 0; p < mixed[j].n; p += p % 3 + 1) {
                    struct chunk alone = {mixed[j].seq, mixed[j].pos0 + p, 1};
                    float *out = session_step(s, &alone, 1);
                    same_bits("row alone", out, batch + (size_t)(at + p) * row, row * sizeof *out);
                    guarded_free(out);
                }
            for (int j = 0, at = 0; j < NUM_CHUNKS; at += mixed[j++].n) {
                float *out = session_step(s, &mixed[j], 1);
                same_bits("chunk alone", out, batch + (size_t)at * row,
                          (size_t)mixed[j].n * row * sizeof *out);
                guarded_free(out);
            }
            session_close(s);
            if (first)
                guarded_free(batch);
            else
                first = batch;
        }
        guarded_free(first);
    }
}

static bool holds_nan(const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (isnan(x[i]))
            return true;
    return false;
}

/* A NaN in a query, or in a key or value that a row sees, must come out of that row: were it lost
 * among the keys that are not seen, a broken request would look well. As decode, at every length
 * around a block's and with the context split by partitions. */
TEST(OpsAttention, ANanIsNeverLost) {
    static const struct heads_case nan_cases[] = {
        {2, 1, 12, NULL, 0, DTYPE_F32, QK_NORM_NONE, 0},
        {3, 3, 64, NULL, 0, DTYPE_BF16, QK_NORM_NONE, 0},
        {4, 2, 64, NULL, 0, DTYPE_F16, QK_NORM_NONE, 0},
        {8, 2, 64, NULL, 0, DTYPE_F8_E4M3, QK_NORM_NONE, 0},
    };
    static const int32_t lengths[] = {1, 2, 15, 16, 17, 31, 32, 33, 47, 255, 256, 257, 300, 530};
    int n;
    const struct variant *v = variants(&n);
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < n; k++)
            for (int32_t threads = 1; threads <= 4; threads += 3)
                for (size_t j = 0; j < sizeof lengths / sizeof *lengths; j++)
                    for (enum part part = PART_Q; part <= PART_V; part++) {
                        const struct heads_case *c = &nan_cases[i];
                        struct chunk last = {0, lengths[j] - 1, 1};
                        int32_t at = part == PART_Q ? last.pos0 : last.pos0 / 2;
                        struct session *s = session_open(v[k].ops, threads, c);
                        /* A good row first, whose numbers a bad one must not get. */
                        struct chunk good = {1, 299, 1};
                        session_fill(s, 1, good.pos0);
                        guarded_free(session_step(s, &good, 1));
                        session_poison(s, part, at);
                        session_fill(s, 0, last.pos0);
                        float *out = session_step(s, &last, 1);
                        for (int32_t h = 0; h < c->Hq; h++)
                            if (!holds_nan(out + h * c->D, c->D))
                                FAIL("%s kv %s, length %d: the NaN of part %d is lost in head %d",
                                     v[k].ops->name, dtype_name(c->kv_dtype), lengths[j], part, h);
                        guarded_free(out);
                        session_close(s);
                    }
}

TEST(OpsAttention, EmptyBatchesAndRanksWithoutHeadsWork) {
    static const struct heads_case none = {0, 0, 64, NULL, 0, DTYPE_BF16, QK_NORM_PROJECTION, 0};
    int n;
    const struct variant *v = variants(&n);
    for (int k = 0; k < n; k++) {
        struct session *s = session_open(v[k].ops, 2, &cases[0]);
        guarded_free(session_step(s, NULL, 0));
        session_close(s);
        s = session_open(v[k].ops, 2, &none);
        guarded_free(session_step(s, mixed, NUM_CHUNKS));
        EXPECT_TRUE(session_sums(s)[0] == 0 && session_sums(s)[1] == 0);
        session_close(s);
    }
}
