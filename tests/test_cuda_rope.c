/* QK norm, clipping, rotation and KV write of the CUDA backend against plain loops in double.
 *
 * Inputs are bf16; what is stored must lie within half a unit in the last place of the exact value
 * (2^-8, 2^-11 or 2^-4 of it), give or take the float32 roundings on the way (some 1e-6 of values
 * about 1). Every fourth token is padding: it has no slot, and nothing of it is written. KV blocks
 * are poisoned first, and what no token owns must stay so.
 */
#include "tests/gpu_fixture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/batch.h"
#include "host/mem.h"

struct rope_case {
    int32_t Hq, Hkv, D, T;
    enum dtype kv_dtype;
    enum qk_norm norm;
    float clip, amplitude;
};

static const struct rope_case cases[] = {
    {4, 2, 64, 7, DTYPE_BF16, QK_NORM_NONE, 0, 1},
    {9, 1, 128, 33, DTYPE_F8_E4M3, QK_NORM_HEAD, 0, 1},
    {5, 5, 14, 33, DTYPE_F16, QK_NORM_PROJECTION, 0.8f, 1},
    {3, 1, 12, 1, DTYPE_F8_E4M3, QK_NORM_NONE, 0, 900}, /* beyond what E4M3 holds */
    {7, 3, 6, 129, DTYPE_F8_E4M3, QK_NORM_PROJECTION, 0, 3},
    {2, 2, 256, 5, DTYPE_F16, QK_NORM_HEAD, 1.5f, 2},
    {1, 1, 2, 2, DTYPE_BF16, QK_NORM_NONE, 0.5f, 1},
    {0, 2, 20, 7, DTYPE_BF16, QK_NORM_HEAD, 0, 1},
};
enum { NUM_CASES = sizeof cases / sizeof cases[0], NUM_BLOCKS = 16, MAX_POSITION = 3000 };
static const float eps = 0.03f; /* large enough to be missed */

/* A test's arrays: host copies, and the device's in `a`. */
struct rope_test {
    struct rope_case c;
    struct rope_args a;
    int64_t ld;
    size_t kv_bytes;
    float *qkv, *rope, *q_norm, *k_norm, sums[2 * 256];
    int32_t positions[256], slots[256];
};

/* Tokens lie in slots that have no order; every fourth has none. */
static void place_tokens(struct rope_test *t, struct rng *r) {
    int32_t order[NUM_BLOCKS * KV_BLOCK_SIZE];
    for (int32_t i = 0; i < NUM_BLOCKS * KV_BLOCK_SIZE; i++)
        order[i] = i;
    for (int32_t i = 0; i < t->c.T; i++) {
        int32_t j = i + rng_below(r, NUM_BLOCKS * KV_BLOCK_SIZE - i), slot = order[j];
        order[j] = order[i];
        t->slots[i] = i % 4 == 3 ? -1 : slot;
        t->positions[i] = i == 0 ? MAX_POSITION - 1 : rng_below(r, MAX_POSITION);
    }
}

static float *rope_table(int32_t D) {
    float *rope = xcalloc(MAX_POSITION, (size_t)D * sizeof *rope);
    for (int32_t p = 0; p < MAX_POSITION; p++)
        for (int32_t i = 0; i < D / 2; i++) {
            double angle = p * pow(10000, -2.0 * i / D);
            rope[p * D + i] = (float)cos(angle);
            rope[p * D + D / 2 + i] = (float)sin(angle);
        }
    return rope;
}

/* The table ends where its allocation does, so that the PTX machine sees a read beyond it. */
static float *upload_table(const float *rope, int32_t D) {
    float *device;
    size_t bytes = MAX_POSITION * (size_t)D * sizeof *rope;
    CUDA_CHECK(cudaMalloc((void **)&device, bytes));
    gpu_write(device, rope, bytes);
    return device;
}

static void open_test(struct rope_test *t, const struct rope_case *c, uint64_t salt) {
    struct rng r = rng_seeded(salt);
    int32_t heads = c->Hq + 2 * c->Hkv;
    *t = (struct rope_test){.c = *c, .ld = (int64_t)heads * c->D + 6};
    t->qkv = random_floats(&r, c->T * t->ld, c->amplitude);
    round_to_bf16(t->qkv, c->T * t->ld);
    t->rope = rope_table(c->D);
    t->q_norm = random_floats(&r, (int64_t)heads * c->D, 2);
    t->k_norm = random_floats(&r, (int64_t)heads * c->D, 2);
    for (int32_t i = 0; i < 2 * c->T; i++)
        t->sums[i] = 1 + rng_float(&r) / 2;
    place_tokens(t, &r);
    t->kv_bytes = NUM_BLOCKS * gpu_kv_block_bytes(c->kv_dtype, c->Hkv, c->D);
    t->a = (struct rope_args){
        .qkv = gpu_upload_bf16(t->qkv, c->T * t->ld),
        .ld = t->ld,
        .num_tokens = c->T,
        .num_heads = c->Hq,
        .num_kv_heads = c->Hkv,
        .head_dim = c->D,
        .positions = gpu_upload(t->positions, (size_t)c->T * 4),
        .slot_mapping = gpu_upload(t->slots, (size_t)c->T * 4),
        .rope = upload_table(t->rope, c->D),
        .clip = c->clip,
        .norm = c->norm,
        .q_norm = gpu_upload(t->q_norm, (size_t)heads * (size_t)c->D * 4),
        .k_norm = gpu_upload(t->k_norm, (size_t)heads * (size_t)c->D * 4),
        .eps = eps,
        .sum_squares = gpu_upload(t->sums, (size_t)c->T * 8),
        .q_width = 3 * c->D,
        .k_width = 2 * c->D,
        .kv = {gpu_alloc(t->kv_bytes), c->kv_dtype},
    };
}

static void close_test(struct rope_test *t) {
    gpu_free(t->a.qkv);
    gpu_free((void *)t->a.positions);
    gpu_free((void *)t->a.slot_mapping);
    CUDA_CHECK(cudaFree((void *)t->a.rope));
    gpu_free((void *)t->a.q_norm);
    gpu_free((void *)t->a.k_norm);
    gpu_free((void *)t->a.sum_squares);
    gpu_free(t->a.kv.data);
    free(t->qkv);
    free(t->rope);
    free(t->q_norm);
    free(t->k_norm);
}

/* ---- the reference --------------------------------------------------------------------------- */

static double clip(double x, double limit) {
    return limit <= 0 ? x : x > limit ? limit : x < -limit ? -limit : x;
}

/* Head `index` of a token's row, as it should be stored. */
static void expected_head(const struct rope_test *t, int32_t token, int32_t index, double *out) {
    int32_t D = t->c.D, Hq = t->c.Hq, head = index < Hq ? index : index - Hq;
    bool key = index >= Hq, value = index >= Hq + t->c.Hkv;
    const float *x = t->qkv + token * t->ld + (int64_t)index * D;
    const float *norm = key ? t->k_norm : t->q_norm;
    const float *cos_sin = t->rope + (int64_t)t->positions[token] * D;
    double sum = 0, rms = 1;
    for (int32_t d = 0; d < D; d++)
        sum += (double)x[d] * (double)x[d];
    if (t->c.norm == QK_NORM_HEAD)
        rms = 1 / sqrt(sum / D + (double)eps);
    if (t->c.norm == QK_NORM_PROJECTION) {
        rms = 1 / sqrt((double)t->sums[2 * token + key] / (key ? 2 * D : 3 * D) + (double)eps);
        norm += head * D;
    }
    for (int32_t d = 0; d < D; d++) {
        double v = (double)x[d];
        if (t->c.norm != QK_NORM_NONE && !value)
            v *= rms * (double)norm[d];
        out[d] = clip(v, (double)t->c.clip);
    }
    for (int32_t i = 0; i < D / 2 && !value; i++) {
        double c = (double)cos_sin[i], s = (double)cos_sin[D / 2 + i];
        double x0 = out[i], x1 = out[i + D / 2];
        out[i] = x0 * c - x1 * s;
        out[i + D / 2] = x1 * c + x0 * s;
    }
}

/* Half a unit in the last place, and where subnormal numbers begin to need more. */
static double half_ulp(enum dtype dtype, double x) {
    if (dtype == DTYPE_F8_E4M3)
        return fmax(fabs(x) * 0x1p-4, 0x1p-10);
    return fabs(x) * (dtype == DTYPE_F16 ? 0x1p-11 : 0x1p-8) + 0x1p-24;
}

static void check_head(const struct rope_test *t, const char *what, enum dtype dtype,
                       const void *got, int64_t at, int32_t token, int32_t index) {
    double want[256];
    expected_head(t, token, index, want);
    for (int32_t d = 0; d < t->c.D; d++) {
        double limit = dtype == DTYPE_F8_E4M3 ? 448 : INFINITY;
        double w = clip(want[d], limit), g = (double)dtype_load(dtype, got, at + d);
        if (!(fabs(g - w) <= half_ulp(dtype, w) + 2e-6 * (double)t->c.amplitude * (1 + fabs(w)))) {
            FAIL("%s, D %d, token %d, head %d, element %d: %g instead of %g", what, t->c.D, token,
                 index, d, g, w);
            return;
        }
    }
}

/* ---- tests ----------------------------------------------------------------------------------- */

/* Keys, then values of a block; returns the element where a head of a slot begins. */
static int64_t kv_at(const struct rope_test *t, int32_t slot, int32_t head, int32_t value) {
    int64_t group = ((int64_t)(slot / KV_BLOCK_SIZE) * 2 + value) * t->c.Hkv + head;
    return (group * KV_BLOCK_SIZE + slot % KV_BLOCK_SIZE) * t->c.D;
}

/* Every slot that no token has is still poisoned. */
static void check_unwritten(const struct rope_test *t, const unsigned char *kv) {
    size_t row = (size_t)t->c.D * dtype_bytes(t->c.kv_dtype);
    bool taken[NUM_BLOCKS * KV_BLOCK_SIZE] = {false};
    for (int32_t i = 0; i < t->c.T; i++)
        if (t->slots[i] >= 0)
            taken[t->slots[i]] = true;
    for (int32_t slot = 0; slot < NUM_BLOCKS * KV_BLOCK_SIZE; slot++)
        for (int32_t i = 0; i < 2 * t->c.Hkv && !taken[slot]; i++) {
            int64_t at = kv_at(t, slot, i / 2, i % 2) * (int64_t)dtype_bytes(t->c.kv_dtype);
            for (size_t b = 0; b < row; b++)
                if (kv[at + (int64_t)b] != 0xff) {
                    FAIL("slot %d was written, and no token has it", slot);
                    return;
                }
        }
}

TEST(CudaRope, QueriesKeysAndValuesMatchTheReference) {
    GPU_OR_SKIP();
    for (int i = 0; i < NUM_CASES; i++) {
        struct rope_test t;
        open_test(&t, &cases[i], 900 + (uint64_t)i);
        rope_kv_write_launch(&t.a, gpu_stream());
        bf16 *qkv = gpu_fetch(t.a.qkv, (size_t)(t.c.T * t.ld) * sizeof *qkv);
        unsigned char *kv = gpu_fetch(t.a.kv.data, t.kv_bytes);
        for (int32_t n = 0; n < t.c.T; n++) {
            for (int32_t h = 0; h < t.c.Hq; h++)
                check_head(&t, "query", DTYPE_BF16, qkv, n * t.ld + h * t.c.D, n, h);
            for (int64_t e = (int64_t)t.c.Hq * t.c.D; e < t.ld; e++)
                if (qkv[n * t.ld + e] != bf16_from_f32(t.qkv[n * t.ld + e]))
                    FAIL("token %d: element %d is no query and was changed", n, (int)e);
            for (int32_t h = 0; h < 2 * t.c.Hkv && t.slots[n] >= 0; h++)
                check_head(&t, h < t.c.Hkv ? "key" : "value", t.c.kv_dtype, kv,
                           kv_at(&t, t.slots[n], h % t.c.Hkv, h >= t.c.Hkv), n, t.c.Hq + h);
        }
        check_unwritten(&t, kv);
        free(qkv);
        free(kv);
        close_test(&t);
    }
}

TEST(CudaRope, NansPassNormClippingAndEveryType) {
    static const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F8_E4M3};
    GPU_OR_SKIP();
    for (int i = 0; i < 3; i++) {
        struct rope_case c = {1, 1, 8, 2, dtypes[i], QK_NORM_NONE, 0.5f, 1};
        struct rope_test t;
        open_test(&t, &c, 950);
        bf16 nan = 0x7fc0;
        for (int32_t h = 0; h < 3; h++) /* element 5 of each head of token 1 */
            gpu_write(t.a.qkv + t.ld + h * c.D + 5, &nan, sizeof nan);
        rope_kv_write_launch(&t.a, gpu_stream());
        float *qkv = gpu_fetch_bf16(t.a.qkv, 2 * t.ld);
        unsigned char *kv = gpu_fetch(t.a.kv.data, t.kv_bytes);
        EXPECT_TRUE(isnan(qkv[t.ld + 5]) && isnan(qkv[t.ld + 1]) && !isnan(qkv[t.ld + 2]));
        int64_t key = kv_at(&t, t.slots[1], 0, 0), value = kv_at(&t, t.slots[1], 0, 1);
        EXPECT_TRUE(isnan(dtype_load(dtypes[i], kv, key + 5)));
        EXPECT_TRUE(isnan(dtype_load(dtypes[i], kv, key + 1)));
        EXPECT_TRUE(isnan(dtype_load(dtypes[i], kv, value + 5)));
        EXPECT_FALSE(isnan(dtype_load(dtypes[i], kv, value + 1)));
        free(qkv);
        free(kv);
        close_test(&t);
    }
}

TEST(CudaRope, NoTokensAreNoWork) {
    GPU_OR_SKIP();
    struct rope_case c = {4, 2, 64, 0, DTYPE_BF16, QK_NORM_NONE, 0, 1};
    struct rope_test t;
    open_test(&t, &c, 951);
    rope_kv_write_launch(&t.a, gpu_stream());
    qk_sum_squares_launch(NULL, &t.a, 0, 2, gpu_stream());
    unsigned char *kv = gpu_fetch(t.a.kv.data, t.kv_bytes);
    check_unwritten(&t, kv);
    free(kv);
    close_test(&t);
}

/* Float32 sums of up to 700 squares: each chain has at most 8, then 8 additions; 2^-20 is ample. */
TEST(CudaRope, SumsOfSquaresCountTheHeadsAskedFor) {
    GPU_OR_SKIP();
    struct rope_case c = {7, 5, 90, 33, DTYPE_BF16, QK_NORM_PROJECTION, 0, 1};
    struct rope_test t;
    open_test(&t, &c, 952);
    for (int32_t first = 0; first < 4; first += 3)
        for (int32_t count = 0; count < 3; count++) {
            float want[2 * 33], *sums = gpu_alloc(sizeof want);
            for (int32_t n = 0; n < c.T; n++)
                for (int32_t k = 0; k < 2; k++) {
                    int32_t from = k ? c.Hq + first : 0, heads = k ? count : c.Hq;
                    double sum = 0;
                    for (int32_t e = from * c.D; e < (from + heads) * c.D; e++)
                        sum += (double)t.qkv[n * t.ld + e] * (double)t.qkv[n * t.ld + e];
                    want[2 * n + k] = (float)sum;
                }
            qk_sum_squares_launch(sums, &t.a, first, count, gpu_stream());
            float *got = gpu_fetch(sums, sizeof want);
            close_rows("sums of squares", got, want, 2 * c.T, 2, 0x1p-20f, 0);
            free(got);
            gpu_free(sums);
        }
    close_test(&t);
}
