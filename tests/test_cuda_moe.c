/* moe_launch: the streaming and the tile kernels stage by stage against float64, and bit for bit
 * against each other and every batch size.
 *
 * A stage is checked with what the stage before really gave (act in bf16, pair_out), so that its
 * bound is that of its own sums.
 */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "tests/gpu_moe.h"

/* ---- checks ---------------------------------------------------------------------------------- */

static void describe(char out[160], const struct moe_layer *l, const struct moe_tokens *t) {
    snprintf(out, 160, "%s H %d I %d E %d K %d, T %d (seed %llu)", l->type->name, l->H, l->I, l->E,
             l->K, t->T, (unsigned long long)ops_test_seed());
}

/* |got - want| <= limit, else a failure; false after one. */
static bool near(const char *stage, const struct moe_layer *l, const struct moe_tokens *t,
                 int64_t row, int32_t col, double got, double want, double limit) {
    if (fabs(got - want) <= limit)
        return true;
    char what[160];
    describe(what, l, t);
    FAIL("%s: %s[%lld, %d] is %g, not %g +- %g", what, stage, (long long)row, col, got, want,
         limit);
    return false;
}

/* act of pair at `at` of the permutation. d silu(g) / dg is at most 1.1. */
static bool check_act(const struct moe_layer *l, const struct moe_tokens *t, int32_t slot,
                      int64_t at, const float *got, double *scratch) {
    double *g = scratch, *u = g + l->I, *g_size = u + l->I, *u_size = g_size + l->I;
    const float *x = t->x + (int64_t)(t->permutation[at] / l->K) * l->H;
    gpu_matrix_times(&l->gate[slot], x, g, g_size);
    gpu_matrix_times(&l->up[slot], x, u, u_size);
    for (int32_t i = 0; i < l->I; i++) {
        double silu = g[i] / (1 + exp(-g[i])), want = silu * u[i];
        double limit =
            fabs(want) / 256 + 1e-6 +
            gpu_sum_error(l->type) * (1.1 * g_size[i] * fabs(u[i]) + fabs(silu) * u_size[i]);
        if (!near("act", l, t, at, i, (double)got[i], want, limit))
            return false;
    }
    return true;
}

static bool check_down(const struct moe_layer *l, const struct moe_tokens *t, int32_t slot,
                       int64_t at, const float *act, const float *got, double *scratch) {
    double *y = scratch, *size = y + l->H;
    gpu_matrix_times(&l->down[slot], act, y, size);
    for (int32_t h = 0; h < l->H; h++)
        if (!near("pair_out", l, t, at, h, (double)got[h], y[h],
                  size[h] * gpu_sum_error(l->type) + 1e-9))
            return false;
    return true;
}

static bool check_combine(const struct moe_layer *l, const struct moe_tokens *t,
                          const struct moe_result *r, const float *before) {
    for (int32_t i = 0; i < t->T; i++)
        for (int32_t h = 0; h < l->H; h++) {
            double sum = before ? (double)before[(int64_t)i * l->H + h] : 0, size = fabs(sum);
            for (int32_t k = 0; k < l->K; k++) {
                int32_t p = i * l->K + k, e = t->topk_ids[p];
                if (e < 0 || l->slot[e] < 0)
                    continue;
                double term = (double)t->topk_weights[p] *
                              (double)r->pair_out[(int64_t)t->slot[p] * l->H + h];
                sum += term;
                size += fabs(term);
            }
            if (!near("partial", l, t, i, h, (double)r->partial[(int64_t)i * l->H + h], sum,
                      size * (l->K + 1) / (1 << 23)))
                return false;
        }
    return true;
}

/* actq of a pair is a function of its act, bit for bit; act [I] becomes what it stands for. */
static bool check_actq(const struct moe_layer *l, const struct moe_tokens *t,
                       const struct moe_result *r, int64_t at, float *act) {
    size_t stride = (size_t)f8_stride(l->I);
    struct gpu_f8_rows want = gpu_f8_rows_of(act, 1, l->I);
    bool ok = r->actq.scale[at] == want.scale[0] &&
              memcmp(r->actq.codes + (size_t)at * stride, want.codes, stride) == 0;
    char what[160];
    describe(what, l, t);
    if (!ok)
        FAIL("%s: actq[%lld] is not its act", what, (long long)at);
    gpu_f8_rows_free(&want);
    return ok;
}

/* Every pair of experts held here, and that no other was touched (0xff bytes). */
static void check_result(const struct moe_layer *l, const struct moe_tokens *t,
                         const struct moe_result *r, const float *before) {
    double *scratch = xcalloc((size_t)(4 * (l->H + l->I)), sizeof *scratch);
    bool ok = true;
    for (int32_t e = 0; e < l->E && ok; e++)
        for (int64_t at = t->offsets[e]; at < t->offsets[e + 1] && ok; at++) {
            float *act = r->act + at * l->I, *out = r->pair_out + at * l->H;
            if (l->slot[e] >= 0)
                ok = check_act(l, t, l->slot[e], at, act, scratch) &&
                     (!l->type->xq || check_actq(l, t, r, at, act)) &&
                     check_down(l, t, l->slot[e], at, act, out, scratch);
            else
                ok = EXPECT_TRUE(isnan(act[0]) && isnan(out[l->H - 1]));
        }
    if (ok)
        check_combine(l, t, r, before);
    free(scratch);
}

static void check_case(uint64_t salt, const struct gpu_weight_type *type, const int32_t shape[5],
                       int32_t miss, int32_t padded, enum moe_pattern pattern) {
    struct rng r = rng_seeded(salt);
    struct moe_layer l = moe_layer_random(&r, type, shape[1], shape[2], shape[3], shape[4], miss);
    struct moe_tokens t = moe_tokens_random(&r, &l, shape[0], padded, pattern);
    struct moe_result result = moe_run(&l, &t, NULL);
    check_result(&l, &t, &result, NULL);
    moe_result_free(&result);
    moe_tokens_free(&t);
    moe_layer_free(&l);
}

/* ---- tests ----------------------------------------------------------------------------------- */

/* {T, H, I, E, K} */
static const int32_t few[][5] = {{1, 96, 40, 5, 2},   {2, 152, 88, 7, 3}, {7, 64, 24, 3, 3},
                                 {33, 136, 56, 6, 2}, {9, 76, 90, 4, 2},  {12, 1, 3, 2, 1}};

TEST(CudaMoe, FewTokensAnExpert) {
    GPU_OR_SKIP();
    for (int k = 0; k < gpu_num_weight_types(); k++)
        for (size_t s = 0; s < sizeof few / sizeof *few; s++)
            check_case(400 + s, &gpu_weight_types[k], few[s], 0, 0, MOE_RANDOM);
}

TEST(CudaMoe, ManyColumnsAndRows) {
    GPU_OR_SKIP();
    static const int32_t shape[5] = {3, 1160, 392, 2, 1};
    for (int k = 0; k < gpu_num_weight_types(); k++)
        check_case(420, &gpu_weight_types[k], shape, 0, 0, MOE_RANDOM);
}

TEST(CudaMoe, ManyTokensAnExpert) {
    GPU_OR_SKIP();
    static const int32_t shapes[][5] = {
        {129, 136, 72, 1, 1}, {129, 264, 200, 3, 2}, {70, 40, 144, 2, 2}, {70, 8, 8, 1, 1}};
    for (int k = 0; k < gpu_num_weight_types(); k++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            check_case(430 + s, &gpu_weight_types[k], shapes[s], 0, 0, MOE_RANDOM);
}

/* Some experts belong to the streaming kernels, others to the tile kernels, and some have no token;
 * more experts than a warp has lanes. */
TEST(CudaMoe, ExpertsOfAllSizes) {
    GPU_OR_SKIP();
    static const int32_t skewed[5] = {110, 72, 48, 40, 3}, one[5] = {80, 48, 72, 9, 2};
    for (int k = 0; k < gpu_num_weight_types(); k++) {
        check_case(440, &gpu_weight_types[k], skewed, 0, 0, MOE_SKEWED);
        check_case(441, &gpu_weight_types[k], one, 0, 0, MOE_ONE);
    }
}

TEST(CudaMoe, EveryTokenToEveryExpert) {
    GPU_OR_SKIP();
    static const int32_t shape[5] = {19, 56, 40, 3, 3};
    for (int k = 0; k < gpu_num_weight_types(); k++)
        check_case(450, &gpu_weight_types[k], shape, 0, 0, MOE_EVERY);
}

TEST(CudaMoe, ExpertsOfOtherRanksAreLeftToThem) {
    GPU_OR_SKIP();
    static const int32_t few_tokens[5] = {17, 48, 24, 7, 3}, many[5] = {90, 48, 24, 3, 2};
    for (int k = 0; k < gpu_num_weight_types(); k++) {
        check_case(460, &gpu_weight_types[k], few_tokens, 2, 0, MOE_RANDOM);
        check_case(461, &gpu_weight_types[k], many, 3, 0, MOE_RANDOM);
    }
}

TEST(CudaMoe, ARankWithoutExpertsGivesZeros) {
    GPU_OR_SKIP();
    static const int32_t shape[5] = {5, 48, 24, 4, 2};
    check_case(465, &gpu_weight_types[0], shape, 1, 0, MOE_RANDOM);
}

TEST(CudaMoe, PaddedRowsGiveZeros) {
    GPU_OR_SKIP();
    static const int32_t shape[5] = {16, 48, 24, 5, 2}, all[5] = {4, 50, 24, 5, 2};
    for (int k = 0; k < gpu_num_weight_types(); k++) {
        check_case(470, &gpu_weight_types[k], shape, 0, 5, MOE_RANDOM);
        check_case(471, &gpu_weight_types[k], all, 0, 4, MOE_RANDOM);
    }
}

TEST(CudaMoe, NoTokensIsNoWork) {
    GPU_OR_SKIP();
    static const int32_t shape[5] = {0, 48, 24, 5, 2};
    for (int k = 0; k < gpu_num_weight_types(); k++)
        check_case(475, &gpu_weight_types[k], shape, 0, 0, MOE_RANDOM);
}

TEST(CudaMoe, AddsToPartial) {
    GPU_OR_SKIP();
    static const int32_t widths[] = {48, 50};
    for (int i = 0; i < 2; i++) {
        struct rng r = rng_seeded(480);
        struct moe_layer l = moe_layer_random(&r, &gpu_weight_types[0], widths[i], 24, 5, 2, 2);
        struct moe_tokens t = moe_tokens_random(&r, &l, 6, 1, MOE_RANDOM);
        float *before = random_floats(&r, t.T * l.H, 1);
        struct moe_result result = moe_run(&l, &t, before);
        check_result(&l, &t, &result, before);
        moe_result_free(&result);
        free(before);
        moe_tokens_free(&t);
        moe_layer_free(&l);
    }
}

/* A token's result is the same bits in a batch, where its experts have many tokens and the tile
 * kernels compute them, and alone, by streaming. */
TEST(CudaMoe, BitsDoNotDependOnTheBatch) {
    GPU_OR_SKIP();
    static const int32_t shapes[][5] = {
        {129, 648, 424, 1, 1}, {90, 264, 136, 3, 2}, {130, 40, 200, 1, 1}, {21, 76, 90, 3, 2}};
    for (int k = 0; k < gpu_num_weight_types(); k++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            const int32_t *shape = shapes[s];
            struct rng r = rng_seeded(490 + s);
            struct moe_layer l = moe_layer_random(&r, &gpu_weight_types[k], shape[1], shape[2],
                                                  shape[3], shape[4], 0);
            struct moe_tokens all = moe_tokens_random(&r, &l, shape[0], 0, MOE_RANDOM);
            struct moe_result whole = moe_run(&l, &all, NULL);
            for (int32_t i = 0; i < all.T; i += 1 + all.T / 4) {
                struct moe_tokens one = moe_tokens_one(&all, &l, i);
                struct moe_result alone = moe_run(&l, &one, NULL);
                char what[160];
                describe(what, &l, &all);
                same_bits(what, alone.partial, whole.partial + (int64_t)i * l.H,
                          (size_t)l.H * sizeof(float));
                moe_result_free(&alone);
                moe_tokens_free(&one);
            }
            moe_result_free(&whole);
            moe_tokens_free(&all);
            moe_layer_free(&l);
        }
}
