/* Sampling on the GPU against the host's sampler: the same tokens, always, and the same logprobs
 * within 1e-5 (float32 sums of the GPU's own exponential). */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/error.h"
#include "host/mem.h"
#include "host/sampler.h"
#include "tests/gpu_fixture.h"

/* Rows to sample, and what the host makes of them. */
struct rows {
    int32_t V, num, num_counts, num_banned, num_biases, num_masks;
    float *logits; /* [num, V] */
    struct sample_row *rows;
    struct sample_count *counts;
    int32_t *banned;
    struct sample_bias *biases;
    uint32_t *masks; /* [num_masks, words] */
};

enum { MAX_LISTED = 40 }; /* counts, bans or biases of a row */

static struct rows rows_make(int32_t V, int32_t num) {
    struct rows s = {.V = V, .num = num};
    s.logits = xmalloc((size_t)num * (size_t)V * sizeof *s.logits);
    s.rows = xcalloc((size_t)num, sizeof *s.rows);
    s.counts = xcalloc((size_t)(num * MAX_LISTED), sizeof *s.counts);
    s.banned = xcalloc((size_t)(num * MAX_LISTED), sizeof *s.banned);
    s.biases = xcalloc((size_t)(num * MAX_LISTED), sizeof *s.biases);
    s.masks = xcalloc((size_t)num * sample_mask_words(V), sizeof *s.masks);
    for (int32_t i = 0; i < num; i++)
        s.rows[i] = (struct sample_row){.row = i,
                                        .token = -1,
                                        .num_top = -1,
                                        .temperature = 1,
                                        .top_p = 1,
                                        .repetition_penalty = 1};
    return s;
}

static void rows_free(struct rows *s) {
    free(s->logits);
    free(s->rows);
    free(s->counts);
    free(s->banned);
    free(s->biases);
    free(s->masks);
}

/* ---- both samplers --------------------------------------------------------------------------- */

static struct sample_result *on_gpu(const struct rows *s) {
    size_t results = (size_t)s->num * sizeof(struct sample_result);
    struct sample_launch_args args = {
        .logits = gpu_upload(s->logits, (size_t)s->num * (size_t)s->V * sizeof *s->logits),
        .vocab_size = s->V,
        .rows = gpu_upload(s->rows, (size_t)s->num * sizeof *s->rows),
        .num_rows = s->num,
        .counts = gpu_upload(s->counts, (size_t)s->num_counts * sizeof *s->counts),
        .banned = gpu_upload(s->banned, (size_t)s->num_banned * sizeof *s->banned),
        .biases = gpu_upload(s->biases, (size_t)s->num_biases * sizeof *s->biases),
        .masks =
            gpu_upload(s->masks, (size_t)s->num_masks * sample_mask_words(s->V) * sizeof *s->masks),
        .results = gpu_alloc(results),
        .workspace = gpu_alloc(sample_workspace_bytes(s->num, s->V))};
    sample_launch(&args, gpu_stream());
    struct sample_result *out = gpu_fetch(args.results, results);
    void *device[] = {(void *)args.logits, (void *)args.rows,   (void *)args.counts,
                      (void *)args.banned, (void *)args.biases, (void *)args.masks,
                      args.results,        args.workspace};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        gpu_free(device[i]);
    return out;
}

/* Row i by the host; false when it is one of which nothing can be made. */
static bool on_host(const struct rows *s, struct sampler *sampler, int32_t i, struct sample *out) {
    const struct sample_row *r = &s->rows[i];
    const float *logits = s->logits + (int64_t)r->row * s->V;
    const struct sampling_params p = {.temperature = r->temperature,
                                      .top_k = r->top_k,
                                      .top_p = r->top_p,
                                      .min_p = r->min_p,
                                      .repetition_penalty = r->repetition_penalty,
                                      .presence_penalty = r->presence_penalty,
                                      .frequency_penalty = r->frequency_penalty,
                                      .seed = r->seed,
                                      .logprobs = r->num_top};
    struct token_count entries[MAX_LISTED];
    struct token_counts counts = {.entries = entries, .num_entries = r->counts_num};
    for (int32_t c = 0; c < r->counts_num; c++)
        entries[c] = (struct token_count){s->counts[r->counts_first + c].token,
                                          s->counts[r->counts_first + c].generated};
    struct logit_bias biases[MAX_LISTED];
    for (int32_t b = 0; b < r->biases_num; b++)
        biases[b] = (struct logit_bias){s->biases[r->biases_first + b].token,
                                        s->biases[r->biases_first + b].bias};
    size_t words = sample_mask_words(s->V);
    const struct sample_args args = {.logits = logits,
                                     .params = &p,
                                     .biases = biases,
                                     .num_biases = r->biases_num,
                                     .mask =
                                         r->mask ? s->masks + (size_t)(r->mask - 1) * words : NULL,
                                     .counts = &counts,
                                     .banned = s->banned + r->banned_first,
                                     .num_banned = r->banned_num,
                                     .index = r->index};
    if (r->token >= 0)
        return sampler_logprobs(sampler, logits, r->token, r->num_top, out) == 0;
    return sampler_sample(sampler, &args, out) == 0;
}

static bool near_logprob(float got, float want) {
    return fabsf(got - want) <= 1e-5f + 1e-6f * fabsf(want);
}

static bool check_row(const struct rows *s, const struct sample_result *got, bool usable,
                      const struct sample *want, int32_t i) {
    const struct sample_row *r = &s->rows[i];
    if (!usable)
        return EXPECT_INT_EQ(got->token, -1) && EXPECT_INT_EQ(got->num_top, 0);
    bool ok = EXPECT_INT_EQ(got->token, want->token);
    if (r->num_top < 0)
        return ok && EXPECT_INT_EQ(got->num_top, 0);
    ok &= EXPECT_TRUE(near_logprob(got->logprob, want->logprob));
    ok = EXPECT_INT_EQ(got->num_top, want->num_top) && ok;
    for (int32_t n = 0; ok && n < want->num_top; n++) {
        ok &= EXPECT_INT_EQ(got->top_tokens[n], want->top_tokens[n]);
        ok &= EXPECT_TRUE(near_logprob(got->top_logprobs[n], want->top_logprobs[n]));
    }
    return ok;
}

/* Samples all rows both ways. */
static void compare(const struct rows *s) {
    struct sample_result *got = on_gpu(s);
    struct sampler *sampler = sampler_create(s->V);
    for (int32_t i = 0; i < s->num; i++) {
        const struct sample_row *r = &s->rows[i];
        struct sample want = {0};
        bool usable = on_host(s, sampler, i, &want);
        if (check_row(s, &got[i], usable, &want, i))
            continue;
        FAIL("row %d of V %d: T %g, top_k %d, top_p %g, min_p %g, %d counts, %d banned, token %d, "
             "num_top %d; seed %llu",
             i, s->V, (double)r->temperature, r->top_k, (double)r->top_p, (double)r->min_p,
             r->counts_num, r->banned_num, r->token, r->num_top,
             (unsigned long long)ops_test_seed());
        break;
    }
    sampler_destroy(sampler);
    free(got);
}

/* ---- random rows ----------------------------------------------------------------------------- */

/* Smooth, peaked, with many ties, with -inf, all the same, nearly flat, huge. */
static void random_logits(struct rng *r, float *row, int32_t n) {
    int32_t kind = rng_below(r, 7);
    float spread = (float)(1 + rng_below(r, 12));
    for (int32_t i = 0; i < n; i++) {
        float u = rng_float(r);
        row[i] = u * spread;
        if (kind == 1)
            row[i] = u * u * u * spread * 2;
        if (kind == 2)
            row[i] = floorf(u * 4);
        if (kind == 3 && rng_below(r, 3) == 0)
            row[i] = -INFINITY;
        if (kind == 4)
            row[i] = spread;
        if (kind == 5)
            row[i] = spread + u * 0x1p-18f;
        if (kind == 6)
            row[i] = u * 1e30f;
    }
    if (kind < 4)
        row[rng_below(r, n)] = spread;
}

static void random_lists(struct rng *r, struct rows *s, struct sample_row *row) {
    int32_t most = s->V < MAX_LISTED ? s->V : MAX_LISTED, step = s->V / most;
    if (rng_below(r, 4) == 0) {
        static const float repetitions[] = {1, 1.3f, 0.7f, 1e-6f};
        row->repetition_penalty = repetitions[rng_below(r, 4)];
        row->presence_penalty = rng_float(r) * 2;
        row->frequency_penalty = rng_float(r);
        row->counts_first = s->num_counts;
        row->counts_num = rng_below(r, most + 1);
        for (int32_t i = 0; i < row->counts_num; i++) /* different tokens */
            s->counts[s->num_counts++] =
                (struct sample_count){i * step + rng_below(r, step), rng_below(r, 3)};
    }
    if (rng_below(r, 4) == 0) {
        row->banned_first = s->num_banned;
        row->banned_num = rng_below(r, most + 1);
        for (int32_t i = row->banned_num; i-- > 0;) /* another thread's than in the counts */
            s->banned[s->num_banned++] = i * step + rng_below(r, step);
    }
    if (rng_below(r, 4) == 0) {
        row->biases_first = s->num_biases;
        row->biases_num = rng_below(r, most + 1);
        for (int32_t i = 0; i < row->biases_num; i++)
            s->biases[s->num_biases++] =
                (struct sample_bias){i * step + rng_below(r, step), rng_float(r) * 100};
    }
}

/* Masks that leave most tokens, few, or exactly one. */
static void random_mask(struct rng *r, struct rows *s, struct sample_row *row) {
    int32_t kind = rng_below(r, 3), one = rng_below(r, s->V);
    uint32_t *mask = s->masks + (size_t)s->num_masks * sample_mask_words(s->V);
    for (int32_t i = 0; i < s->V; i++)
        if (i == one || (kind == 0 && rng_below(r, 8) > 0) || (kind == 1 && rng_below(r, 50) == 0))
            mask[i / 32] |= 1u << (i % 32);
    row->mask = ++s->num_masks;
}

static void random_row(struct rng *r, struct rows *s, int32_t i) {
    static const float temperatures[] = {0, 0.3f, 1, 1.7f, 50, 1e-4f};
    static const float top_ps[] = {1, 1, 0.9f, 0.5f, 0.999f, 1e-4f};
    static const float min_ps[] = {0, 0, 0, 0.05f, 0.7f, 1};
    static const int32_t top_ks[] = {0, 0, -1, 1, 7, 40, 5000};
    struct sample_row *row = &s->rows[i];
    random_logits(r, s->logits + (int64_t)i * s->V, s->V);
    row->temperature = temperatures[rng_below(r, 6)];
    row->top_p = top_ps[rng_below(r, 6)];
    row->min_p = min_ps[rng_below(r, 6)];
    row->top_k = top_ks[rng_below(r, 7)];
    row->seed = rng_next(r);
    row->index = rng_below(r, 1000);
    row->num_top = rng_below(r, 3) == 0 ? rng_below(r, 21) : rng_below(r, 2) - 1;
    if (rng_below(r, 10) == 0) {
        row->token = rng_below(r, s->V); /* a prompt's */
        row->num_top = rng_below(r, 21);
    } else {
        random_lists(r, s, row);
        if (rng_below(r, 3) == 0)
            random_mask(r, s, row);
    }
}

/* CUDA_TEST_ROUNDS=n: n times as many; a GPU does in a moment what an interpreter takes minutes
 * for.
 */
static void compare_random(int32_t V, int32_t num) {
    const char *text = getenv("CUDA_TEST_ROUNDS");
    int32_t rounds = text ? atoi(text) : 1;
    struct rng r = rng_seeded((uint64_t)V);
    for (int32_t round = 0; round < rounds && !shim_failed(); round++) {
        struct rows s = rows_make(V, num);
        for (int32_t i = 0; i < num; i++)
            random_row(&r, &s, i);
        compare(&s);
        rows_free(&s);
    }
}

TEST(CudaSample, TinyVocabularies) {
    GPU_OR_SKIP();
    compare_random(1, 10);
    compare_random(2, 30);
    compare_random(33, 60);
}

TEST(CudaSample, AThousandTokens) {
    GPU_OR_SKIP();
    compare_random(1000, 100);
}

TEST(CudaSample, SeveralChunks) {
    GPU_OR_SKIP();
    compare_random(8193, 40);
    compare_random(32003, 24);
}

/* ---- by hand --------------------------------------------------------------------------------- */

/* The same distribution with many draws: every part of the row is hit. */
TEST(CudaSample, ManyDrawsOfOneRow) {
    GPU_OR_SKIP();
    enum { V = 9001, NUM = 60 };
    struct rng r = rng_seeded(77);
    struct rows s = rows_make(V, NUM);
    for (int32_t i = 0; i < V; i++)
        s.logits[i] = rng_float(&r);
    for (int32_t i = 0; i < NUM; i++) {
        s.rows[i].row = 0;
        s.rows[i].index = i;
        s.rows[i].top_p = i % 3 == 1 ? 0.7f : 1;
        s.rows[i].top_k = i % 3 == 2 ? 3000 : 0;
    }
    compare(&s);
    rows_free(&s);
}

/* More ties at the threshold than the list of a bin has room for, in both amounts. */
TEST(CudaSample, ManyTiesAtTheThreshold) {
    GPU_OR_SKIP();
    enum { V = 9001, NUM = 12 };
    struct rng r = rng_seeded(78);
    struct rows s = rows_make(V, NUM);
    for (int32_t i = 0; i < NUM; i++) {
        for (int32_t t = 0; t < V; t++)
            s.logits[i * V + t] = rng_below(&r, 3) == 0 ? 2 + rng_float(&r) * 0x1p-12f : 2;
        s.rows[i].index = i;
        if (i % 3 != 1)
            s.rows[i].top_p = 0.05f + (float)i * 0.07f;
        if (i % 3 != 0)
            s.rows[i].top_k = 1 + rng_below(&r, V);
    }
    compare(&s);
    rows_free(&s);
}

/* All but one of the best twenty lie where 19 threads look, so that their list overflows. */
TEST(CudaSample, TopTokensInFewPlaces) {
    GPU_OR_SKIP();
    enum { V = 100003 };
    struct rng r = rng_seeded(79);
    struct rows s = rows_make(V, 1);
    for (int32_t t = 0; t < V; t++)
        s.logits[t] = rng_float(&r) + (t % 1024 < 19 ? 5 : 0);
    s.rows[0].num_top = 20;
    s.rows[0].temperature = 0;
    compare(&s);
    rows_free(&s);
}

TEST(CudaSample, RowsThatAreNotFiniteAreErrors) {
    GPU_OR_SKIP();
    static const float cases[][4] = {
        {1, NAN, 2, 3},
        {NAN, 1, 2, 3},
        {1, 2, -NAN, 3},
        {1, INFINITY, 2, 3},
        {-INFINITY, -INFINITY, -INFINITY, -INFINITY},
        {-INFINITY, 1, -INFINITY, 0},
        {FLT_MAX, -FLT_MAX, 3e38f, 0},
        {1, 2, INFINITY, -INFINITY},
        {-0.0f, 0, -0.0f, -1},
    };
    enum { CASES = sizeof cases / sizeof *cases, KINDS = 7 };
    struct rows s = rows_make(4, CASES * KINDS);
    s.banned[s.num_banned++] = 2;
    s.counts[s.num_counts++] = (struct sample_count){1, 2};
    s.biases[s.num_biases++] = (struct sample_bias){1, 3.5f};
    s.masks[s.num_masks++] = 5; /* tokens 0 and 2 */
    for (int32_t i = 0; i < CASES * KINDS; i++) {
        struct sample_row *r = &s.rows[i];
        memcpy(s.logits + i * 4, cases[i / KINDS], sizeof *cases);
        r->temperature = i % KINDS == 0 ? 0 : 1;
        r->banned_num = i % KINDS == 2 || i % KINDS == 3;
        r->num_top = i % KINDS == 2 ? 2 : -1;
        r->top_k = i % KINDS == 3 ? 2 : 0;
        r->counts_num = i % KINDS == 3;
        r->repetition_penalty = 1.5f;
        if (i % KINDS == 4) {
            r->token = 3;
            r->num_top = 4;
        }
        r->mask = i % KINDS >= 5;
        r->biases_num = i % KINDS == 6;
    }
    compare(&s);
    rows_free(&s);
}

/* Is token 0 of the row drawn? By the host. */
static bool draws_first(const struct rows *s, struct sampler *sampler, float min_p) {
    struct sample out;
    s->rows[0].min_p = min_p;
    EXPECT_TRUE(on_host(s, sampler, 0, &out));
    return out.token == 0;
}

/* Two tokens, weights w and 1, and a u so small that the first is drawn whenever min_p leaves it:
 * up to the very float that its weight is. */
TEST(CudaSample, WeightsAreTheHostsBitForBit) {
    GPU_OR_SKIP();
    enum { NUM = 60 };
    struct rng r = rng_seeded(80);
    struct rows s = rows_make(2, 2 * NUM), one = rows_make(2, 1);
    struct sampler *sampler = sampler_create(2);
    int64_t index = 0;
    while (sampler_uniform(5, index) > 1e-5)
        index++;
    for (int32_t i = 0; i < NUM; i++) {
        float temperature = 0.1f + fabsf(rng_float(&r)), max = rng_float(&r) * 20;
        float x = max - fabsf(rng_float(&r)) * 10 * temperature;
        one.rows[0].temperature = temperature;
        one.rows[0].seed = 5;
        one.rows[0].index = index;
        one.logits[0] = x;
        one.logits[1] = max;
        float weight = expf((x - max) / temperature) * 1.00001f;
        while (!draws_first(&one, sampler, weight))
            weight = nextafterf(weight, 0);
        for (int32_t above = 0; above < 2; above++) {
            int32_t row = 2 * i + above;
            memcpy(s.logits + row * 2, one.logits, 2 * sizeof(float));
            s.rows[row] = one.rows[0];
            s.rows[row].row = row;
            s.rows[row].min_p = above ? nextafterf(weight, 2) : weight;
        }
    }
    compare(&s);
    sampler_destroy(sampler);
    rows_free(&one);
    rows_free(&s);
}

TEST(CudaSample, NoRowsIsNoWork) {
    GPU_OR_SKIP();
    const struct sample_launch_args args = {.vocab_size = 100};
    sample_launch(&args, gpu_stream());
    CUDA_CHECK(cudaStreamSynchronize(gpu_stream()));
}
