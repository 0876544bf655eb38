/* The sampler against a slow, obvious one, and by hand. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/clock.h"
#include "host/error.h"
#include "host/mem.h"
#include "host/sampler.h"
#include "tests/fake_model.h"
#include "tests/shim.h"

static const struct sampling_params plain = {
    .temperature = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = -1};

static int32_t sample_row(const float *logits, int32_t n, const struct sampling_params *p,
                          int64_t index) {
    struct sampler *s = sampler_create(n);
    struct sample out = {.token = -1};
    const struct sample_args args = {.logits = logits, .params = p, .index = index};
    EXPECT_INT_EQ(sampler_sample(s, &args, &out), 0);
    sampler_destroy(s);
    return out.token;
}

/* --- the obvious sampler -------------------------------------------------------------------- */

struct item {
    int32_t id;
    double x, weight;
};

static int by_logit(const void *a, const void *b) {
    const struct item *p = a, *q = b;
    if (p->x != q->x)
        return p->x < q->x ? 1 : -1;
    return p->id < q->id ? -1 : 1;
}

static int by_id(const void *a, const void *b) {
    return ((const struct item *)a)->id - ((const struct item *)b)->id;
}

static double sum_of(const struct item *items, int32_t n) {
    double sum = 0;
    for (int32_t i = 0; i < n; i++)
        sum += items[i].weight;
    return sum;
}

static int32_t obvious_sample(const float *logits, int32_t n, const struct sampling_params *p,
                              int64_t index) {
    struct item *items = xmalloc((size_t)n * sizeof *items);
    for (int32_t i = 0; i < n; i++)
        items[i] = (struct item){i, (double)logits[i], 0};
    qsort(items, (size_t)n, sizeof *items, by_logit);
    int32_t token = items[0].id, kept = n;
    if (p->temperature > 0) {
        double max = items[0].x;
        for (int32_t i = 0; i < n; i++)
            items[i].weight = exp((items[i].x - max) / (double)p->temperature);
        while (items[kept - 1].weight < (double)p->min_p)
            kept--;
        if (p->top_k > 0 && p->top_k < kept)
            kept = p->top_k;
        double target = (double)p->top_p * sum_of(items, kept), sum = 0;
        for (int32_t i = 0; p->top_p < 1 && i < kept; i++) {
            sum += items[i].weight;
            if (sum >= target)
                kept = i + 1;
        }
        qsort(items, (size_t)kept, sizeof *items, by_id);
        target = sampler_uniform(p->seed, index) * sum_of(items, kept);
        sum = 0;
        for (int32_t i = 0; i < kept && sum <= target; i++) {
            sum += items[i].weight;
            token = items[i].id;
        }
    }
    free(items);
    return token;
}

/* Rows of several kinds: smooth, peaked, with many ties, with -inf. */
static void random_row(float *row, int32_t n, uint64_t *rng) {
    int32_t kind = fake_below(rng, 4);
    float spread = (float)(1 + fake_below(rng, 12));
    for (int32_t i = 0; i < n; i++) {
        float u = (float)fake_rand(rng) * 0x1p-31f * 2 - 1;
        row[i] = u * spread;
        if (kind == 1)
            row[i] = u * u * u * spread * 2;
        if (kind == 2)
            row[i] = floorf(u * 4);
        if (kind == 3 && fake_below(rng, 3) == 0)
            row[i] = -INFINITY;
    }
    row[fake_below(rng, n)] = spread;
}

TEST(Sampler, AgreesWithTheObviousOne) {
    static const int32_t sizes[] = {1, 2, 5, 64, 1000, 4099};
    static const float temperatures[] = {0, 0.3f, 1, 1.7f},
                       top_ps[] = {1, 0.9f, 0.5f, 0.999f, 1e-4f}, min_ps[] = {0, 0, 0.05f, 0.7f};
    static const int32_t top_ks[] = {0, -1, 1, 7, 40, 5000};
    static float row[4099];
    uint64_t rng = 7;
    for (int32_t size = 0; size < 6; size++) {
        struct sampler *s = sampler_create(sizes[size]);
        int32_t rounds = sizes[size] <= 64 ? 10000 : 1000;
        for (int32_t i = 0; i < rounds && !shim_failed(); i++) {
            struct sampling_params p = plain;
            random_row(row, sizes[size], &rng);
            p.temperature = temperatures[fake_below(&rng, 4)];
            p.top_p = top_ps[fake_below(&rng, 5)];
            p.min_p = min_ps[fake_below(&rng, 4)];
            p.top_k = top_ks[fake_below(&rng, 6)];
            p.seed = fake_rand(&rng);
            struct sample out;
            const struct sample_args args = {.logits = row, .params = &p, .index = i};
            EXPECT_INT_EQ(sampler_sample(s, &args, &out), 0);
            if (!EXPECT_INT_EQ(out.token, obvious_sample(row, sizes[size], &p, i)))
                FAIL("V %d, T %g, top_k %d, top_p %g, min_p %g", sizes[size], (double)p.temperature,
                     p.top_k, (double)p.top_p, (double)p.min_p);
        }
        sampler_destroy(s);
    }
}

TEST(Sampler, GreedyTakesTheLargestAndOfEqualsTheLowerId) {
    const float row[] = {1, 3, 2, 3, -1};
    struct sampling_params p = plain;
    p.temperature = 0;
    EXPECT_INT_EQ(sample_row(row, 5, &p, 0), 1);
    p.temperature = 1;
    p.top_k = 1;
    EXPECT_INT_EQ(sample_row(row, 5, &p, 0), 1);
    p.top_k = 0;
    p.top_p = 1e-6f;
    EXPECT_INT_EQ(sample_row(row, 5, &p, 0), 1);
}

TEST(Sampler, ADrawDependsOnSeedAndIndexAlone) {
    float row[100];
    uint64_t rng = 3;
    random_row(row, 100, &rng);
    struct sampling_params p = plain;
    p.seed = 42;
    int32_t first = sample_row(row, 100, &p, 5), differ = 0;
    EXPECT_INT_EQ(sample_row(row, 100, &p, 5), first);
    for (int32_t i = 0; i < 20; i++)
        differ += sample_row(row, 100, &p, i) != first;
    EXPECT_INT_GT(differ, 5);
}

TEST(Sampler, UniformNumbersAreUniformAlongIndexAndSeed) {
    int32_t by_index[10] = {0}, by_seed[10] = {0};
    for (int32_t i = 0; i < 10000; i++) {
        double a = sampler_uniform(1, i), b = sampler_uniform((uint64_t)i, 1);
        EXPECT_TRUE(a >= 0 && a < 1 && b >= 0 && b < 1);
        by_index[(int32_t)(a * 10)]++;
        by_seed[(int32_t)(b * 10)]++;
    }
    for (int32_t i = 0; i < 10; i++) { /* 1000 expected, std 30 */
        EXPECT_NEAR(by_index[i], 1000, 120);
        EXPECT_NEAR(by_seed[i], 1000, 120);
    }
    /* Seeds that are a step of the generator apart do not give shifted copies of one sequence. */
    EXPECT_TRUE(sampler_uniform(5, 1) != sampler_uniform(5 + 0x9e3779b97f4a7c15u, 0));
}

/* Draws 40,000 times and compares the counts with n probabilities (those of 0 must not occur). */
static void check_distribution(const float *row, int32_t n, const struct sampling_params *p,
                               const double *expected, double limit) {
    enum { DRAWS = 40000 };
    int32_t counts[16] = {0};
    double chi2 = 0;
    for (int32_t i = 0; i < DRAWS; i++)
        counts[sample_row(row, n, p, i)]++;
    for (int32_t i = 0; i < n; i++) {
        double e = expected[i] * DRAWS;
        if (e > 0)
            chi2 += (counts[i] - e) * (counts[i] - e) / e;
        else
            EXPECT_INT_EQ(counts[i], 0);
    }
    EXPECT_NEAR(chi2, 0, limit);
}

TEST(Sampler, DrawsFollowTheDistribution) {
    /* Weights 1 2 4 8, log 2 apart. Limit: chi-square of 3 degrees of freedom at 0.001. */
    const float l2 = 0.69314718f, row[] = {0, l2, 2 * l2, 3 * l2};
    struct sampling_params p = plain;
    check_distribution(row, 4, &p, (double[]){1 / 15., 2 / 15., 4 / 15., 8 / 15.}, 16.3);
    p.temperature = 0.5f; /* 1 4 16 64 */
    check_distribution(row, 4, &p, (double[]){1 / 85., 4 / 85., 16 / 85., 64 / 85.}, 16.3);
    p.temperature = 1;
    p.top_k = 2;
    check_distribution(row, 4, &p, (double[]){0, 0, 1 / 3., 2 / 3.}, 10.9);
    p.top_k = 0;
    p.top_p = 0.6f; /* 8/15 is not enough, 12/15 is */
    check_distribution(row, 4, &p, (double[]){0, 0, 1 / 3., 2 / 3.}, 10.9);
    p.top_p = 1;
    p.min_p = 0.2f; /* 1/8 is below, 2/8 is not */
    check_distribution(row, 4, &p, (double[]){0, 1 / 7., 2 / 7., 4 / 7.}, 13.9);
    p.min_p = 0.2f; /* top_p counts what min_p left: 4/7 < 0.8 <= 6/7 */
    p.top_p = 0.8f;
    check_distribution(row, 4, &p, (double[]){0, 0, 1 / 3., 2 / 3.}, 10.9);
}

/* --- penalties ------------------------------------------------------------------------------ */

TEST(Sampler, PenaltiesByHand) {
    /* Token 0 only in the prompt, token 1 generated once, token 2 twice, token 3 never seen.
     * r = 2: 4 -> 2, -1 -> -2, 6 -> 3, 1.5 stays.  f = 0.5, p = 0.25 on generated ones:
     * 2, -2.75, 1.75, 1.5. */
    const float row[] = {4, -1, 6, 1.5f};
    struct sampling_params p = plain;
    struct token_counts counts;
    struct sampler *s = sampler_create(4);
    struct sample out;
    struct sample_args args = {.logits = row, .params = &p, .counts = &counts};
    p.temperature = 0;
    p.repetition_penalty = 2;
    p.frequency_penalty = 0.5f;
    p.presence_penalty = 0.25f;
    token_counts_init(&counts, 3);
    token_counts_add(&counts, 0, false);
    token_counts_add(&counts, 1, true);
    token_counts_add(&counts, 2, false);
    token_counts_add(&counts, 2, true);
    token_counts_add(&counts, 2, true);
    EXPECT_INT_EQ(counts.num_entries, 3);
    EXPECT_INT_EQ(sampler_sample(s, &args, &out), 0);
    EXPECT_INT_EQ(out.token, 0);
    /* Order: with min_p the distances are seen. 2 - 1.75 = 0.25 < -ln(min_p) = 0.3567 keeps token
     * 2, 2 - 1.5 = 0.5 drops token 3. */
    p.temperature = 1;
    p.min_p = 0.7f;
    int32_t drawn[4] = {0};
    for (args.index = 0; args.index < 400; args.index++) {
        EXPECT_INT_EQ(sampler_sample(s, &args, &out), 0);
        drawn[out.token]++;
    }
    EXPECT_INT_EQ(drawn[1] + drawn[3], 0);
    EXPECT_INT_GT(drawn[0], drawn[2] / 2);
    EXPECT_INT_GT(drawn[2], 100);
    p.frequency_penalty = 0.3f; /* token 2: 3 - 0.6 - 0.25 = 2.15 */
    p.temperature = 0;
    EXPECT_INT_EQ(sampler_sample(s, &args, &out), 0);
    EXPECT_INT_EQ(out.token, 2);
    EXPECT_NEAR(row[2], 6, 0); /* the logits are as they were */
    token_counts_deinit(&counts);
    sampler_destroy(s);
}

TEST(Sampler, ExtremePenaltiesStayFinite) {
    const float row[] = {3e38f, -3e38f, 1};
    struct sampling_params p = plain;
    struct token_counts counts;
    struct sampler *s = sampler_create(3);
    struct sample out;
    const struct sample_args args = {.logits = row, .params = &p, .counts = &counts};
    p.repetition_penalty = 1e-6f;
    token_counts_init(&counts, 3);
    token_counts_add(&counts, 0, true);
    token_counts_add(&counts, 1, true);
    EXPECT_INT_EQ(sampler_sample(s, &args, &out), 0);
    EXPECT_INT_EQ(out.token, 0);
    token_counts_deinit(&counts);
    sampler_destroy(s);
}

TEST(Sampler, ManyDistinctTokensAreCounted) {
    struct token_counts c;
    token_counts_init(&c, 1000);
    for (int32_t round = 0; round < 3; round++)
        for (int32_t i = 0; i < 1000; i++)
            token_counts_add(&c, i * 150, true);
    EXPECT_INT_EQ(c.num_entries, 1000);
    for (int32_t i = 0; i < 1000; i++)
        EXPECT_INT_EQ(c.entries[i].generated, 3);
    token_counts_deinit(&c);
}

TEST(Sampler, BannedTokensAreNeverDrawn) {
    const float row[] = {1, 9, 8, 2};
    const int32_t banned[] = {1, 2};
    struct sampling_params p = plain;
    struct sampler *s = sampler_create(4);
    struct sample out;
    struct sample_args args = {.logits = row, .params = &p, .banned = banned, .num_banned = 2};
    for (args.index = 0; args.index < 200; args.index++) {
        EXPECT_INT_EQ(sampler_sample(s, &args, &out), 0);
        EXPECT_TRUE(out.token == 0 || out.token == 3);
    }
    p.temperature = 0;
    EXPECT_INT_EQ(sampler_sample(s, &args, &out), 0);
    EXPECT_INT_EQ(out.token, 3);
    sampler_destroy(s);
}

TEST(Sampler, WhatAMaskLeavesOutIsNeverDrawn) {
    const float row[] = {1, 9, 8, 2};
    const uint32_t mask = 9; /* tokens 0 and 3 */
    struct sampling_params p = plain;
    struct sampler *s = sampler_create(4);
    struct sample out;
    struct sample_args args = {.logits = row, .params = &p, .mask = &mask};
    int32_t drawn[4] = {0};
    for (args.index = 0; args.index < 200; args.index++) {
        EXPECT_INT_EQ(sampler_sample(s, &args, &out), 0);
        drawn[out.token]++;
    }
    EXPECT_INT_EQ(drawn[1] + drawn[2], 0);
    EXPECT_TRUE(drawn[0] > 20 && drawn[3] > drawn[0]); /* 1 to e */
    p.temperature = 0;
    p.logprobs = 1; /* of the model, which prefers another token */
    EXPECT_INT_EQ(sampler_sample(s, &args, &out), 0);
    EXPECT_INT_EQ(out.token, 3);
    EXPECT_INT_EQ(out.top_tokens[0], 1);
    p.logprobs = -1;
    const uint32_t none = 0;
    args.mask = &none;
    EXPECT_INT_EQ(sampler_sample(s, &args, &out), ERR_INTERNAL);
    const float hidden[] = {1, NAN, 2, 3};
    args.mask = &mask;
    args.logits = hidden;
    EXPECT_INT_EQ(sampler_sample(s, &args, &out), ERR_INTERNAL);
    sampler_destroy(s);
}

TEST(Sampler, BiasesAreAddedBeforeThePenalties) {
    const float row[] = {1, 2, -INFINITY, 3};
    const struct logit_bias biases[] = {{1, 4}, {2, 100}, {3, -2.5f}};
    struct token_count seen[] = {{1, 0}};
    struct token_counts counts = {.entries = seen, .num_entries = 1};
    struct sampling_params p = plain;
    struct sampler *s = sampler_create(4);
    struct sample out;
    struct sample_args args = {
        .logits = row, .params = &p, .biases = biases, .num_biases = 3, .counts = &counts};
    p.temperature = 0;
    EXPECT_INT_EQ(sampler_sample(s, &args, &out), 0);
    EXPECT_INT_EQ(out.token, 1); /* 1, 6, -inf, 0.5 */
    p.repetition_penalty = 5.9f; /* 1, 6 / 5.9: were the bias added after it, 2 / 5.9 + 4 */
    EXPECT_INT_EQ(sampler_sample(s, &args, &out), 0);
    EXPECT_INT_EQ(out.token, 1);
    p.repetition_penalty = 6.1f;
    EXPECT_INT_EQ(sampler_sample(s, &args, &out), 0);
    EXPECT_INT_EQ(out.token, 0);
    args.num_biases = 0;
    EXPECT_INT_EQ(sampler_sample(s, &args, &out), 0);
    EXPECT_INT_EQ(out.token, 3);
    sampler_destroy(s);
}

/* --- logprobs ------------------------------------------------------------------------------- */

TEST(Sampler, LogprobsAreThoseOfTheModelWhateverTheSamplingIs) {
    /* Weights 1 2 4 1 of 8. */
    const float l2 = 0.69314718f, row[] = {0, l2, 2 * l2, 0};
    struct sampling_params p = plain;
    struct sampler *s = sampler_create(4);
    struct sample out;
    const struct sample_args args = {.logits = row, .params = &p};
    p.temperature = 0.1f;
    p.top_k = 1;
    p.logprobs = 4;
    EXPECT_INT_EQ(sampler_sample(s, &args, &out), 0);
    EXPECT_INT_EQ(out.token, 2);
    EXPECT_NEAR(out.logprob, log(4 / 8.), 1e-6);
    EXPECT_INT_EQ(out.num_top, 4);
    EXPECT_MEM_EQ(out.top_tokens, ((int32_t[]){2, 1, 0, 3}), 16);
    EXPECT_NEAR(out.top_logprobs[1], log(2 / 8.), 1e-6);
    EXPECT_TRUE(out.top_logprobs[2] == out.top_logprobs[3]);
    EXPECT_TRUE(out.top_logprobs[0] == out.logprob);
    p.logprobs = 0;
    EXPECT_INT_EQ(sampler_sample(s, &args, &out), 0);
    EXPECT_INT_EQ(out.num_top, 0);
    EXPECT_NEAR(out.logprob, log(4 / 8.), 1e-6);
    sampler_destroy(s);
}

TEST(Sampler, LogprobsOfRandomRowsMatchLongDoubles) {
    static float row[5003];
    uint64_t rng = 11;
    struct sampler *s = sampler_create(5003);
    struct sample out;
    for (int32_t round = 0; round < 50; round++) {
        random_row(row, 5003, &rng);
        int32_t token = fake_below(&rng, 5003);
        long double max = -INFINITY, sum = 0;
        for (int32_t i = 0; i < 5003; i++)
            max = (long double)row[i] > max ? (long double)row[i] : max;
        for (int32_t i = 0; i < 5003; i++)
            sum += expl((long double)row[i] - max);
        long double want = (long double)row[token] - max - logl(sum);
        EXPECT_INT_EQ(sampler_logprobs(s, row, token, 20, &out), 0);
        EXPECT_NEAR(out.logprob, isinf(row[token]) ? (double)LOGPROB_MIN : (double)want, 2e-6);
        for (int32_t i = 1; i < 20; i++)
            EXPECT_TRUE(out.top_logprobs[i - 1] > out.top_logprobs[i] ||
                        (out.top_logprobs[i - 1] == out.top_logprobs[i] &&
                         out.top_tokens[i - 1] < out.top_tokens[i]));
        EXPECT_INT_LE((int64_t)(out.top_logprobs[0] * 1000), 0);
    }
    sampler_destroy(s);
}

TEST(Sampler, ATopOfOneTokenHasLogprobZero) {
    const float row[] = {0};
    struct sampler *s = sampler_create(1);
    struct sample out;
    EXPECT_INT_EQ(sampler_logprobs(s, row, 0, 5, &out), 0);
    EXPECT_INT_EQ(out.num_top, 1);
    EXPECT_FALSE(signbit(out.logprob));
    sampler_destroy(s);
}

/* --- broken rows ---------------------------------------------------------------------------- */

TEST(Sampler, RowsThatAreNotFiniteAreErrors) {
    const int32_t banned[] = {2};
    static const struct {
        float row[4];
        int rc;
    } cases[] = {
        {{1, NAN, 2, 3}, ERR_INTERNAL},
        {{NAN, 1, 2, 3}, ERR_INTERNAL},
        {{1, 2, 3, NAN}, ERR_INTERNAL},
        {{NAN, NAN, NAN, NAN}, ERR_INTERNAL},
        {{1, INFINITY, 2, 3}, ERR_INTERNAL},
        {{-INFINITY, -INFINITY, -INFINITY, -INFINITY}, ERR_INTERNAL},
        {{1, 2, NAN, 3}, ERR_INTERNAL},
        {{-INFINITY, 1, -INFINITY, 0}, 0},
        {{1e38f, -1e38f, 3e38f, 0}, 0},
        {{1, 2, 3, 4}, 0},
    };
    static const float temperatures[] = {0, 1};
    struct sampler *s = sampler_create(4);
    struct sampling_params p = plain;
    struct sample out;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int32_t t = 0; t < 2; t++)
            for (int32_t num_banned = 0; num_banned < 2; num_banned++) {
                p.temperature = temperatures[t];
                const struct sample_args args = {.logits = cases[i].row,
                                                 .params = &p,
                                                 .banned = banned,
                                                 .num_banned = num_banned};
                EXPECT_INT_EQ(sampler_sample(s, &args, &out), cases[i].rc);
                EXPECT_INT_EQ(sampler_logprobs(s, cases[i].row, 0, 2, &out), cases[i].rc);
            }
    sampler_destroy(s);
}

TEST(Sampler, ALargeVocabularyIsSampledInMilliseconds) {
    /* Generous, as the machine may be busy; a sort of the row would take longer. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    SKIP("a sanitizer's times mean nothing");
#endif
    enum { V = 151936, ROUNDS = 20 };
    float *row = xmalloc(V * sizeof *row);
    struct sampler *s = sampler_create(V);
    struct sampling_params p = plain;
    struct sample out;
    struct sample_args args = {.logits = row, .params = &p};
    uint64_t rng = 5;
    int64_t best = INT64_MAX;
    for (int32_t i = 0; i < V; i++) /* near a bell, of logits with a std of 2 */
        row[i] =
            ((float)fake_rand(&rng) + (float)fake_rand(&rng) + (float)fake_rand(&rng)) * 0x1p-29f;
    p.top_p = 0.95f;
    for (args.index = 0; args.index < ROUNDS; args.index++) {
        int64_t start = clock_us();
        EXPECT_INT_EQ(sampler_sample(s, &args, &out), 0);
        int64_t us = clock_us() - start;
        best = us < best ? us : best;
    }
    EXPECT_INT_LT(best, 10000);
    sampler_destroy(s);
    free(row);
}
