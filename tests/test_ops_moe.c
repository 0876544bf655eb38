/* Experts of every cpu variant against ref, and their bits: alone or in a batch, with any number of
 * threads, and split over ranks by experts or by columns. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "tests/ops_fixture.h"

enum { MAX_T = 129, MAX_E = 8, MAX_PAIRS = MAX_T * MAX_E };

/* Who goes where. */
enum spread { RANDOM, ALL_TO_ONE, FEW, DENSE };

struct moe_shape {
    int32_t H, I, E, K, unit;
    enum dtype dtype;
    enum spread spread;
    enum fp8_scaling scaling;
};

/* A layer: matrices, tokens, and their routing. */
struct layer {
    struct moe_shape s;
    struct matrix gate[MAX_E], up[MAX_E], down[MAX_E];
    float *x;
    int32_t ids[MAX_PAIRS];
    float weights[MAX_PAIRS];
};

/* Routing of some consecutive tokens of the layer. */
struct grouped {
    int32_t ids[MAX_PAIRS], counts[MAX_E], offsets[MAX_E + 1], permutation[MAX_PAIRS];
    float weights[MAX_PAIRS];
    struct routing routing;
};

static struct layer layer_random(struct rng *r, const struct moe_shape *s) {
    struct layer l = {.s = *s, .x = guarded_floats(MAX_T * s->H)};
    rng_fill(r, l.x, MAX_T * s->H);
    for (int32_t e = 0; e < s->E; e++) {
        l.gate[e] = matrix_scaled(r, s->dtype, s->scaling, s->I, s->H);
        l.up[e] = matrix_scaled(r, s->dtype, s->scaling, s->I, s->H);
        l.down[e] = matrix_scaled(r, s->dtype, s->scaling, s->H, s->I);
    }
    for (int32_t t = 0; t < MAX_T; t++) {
        int32_t first = s->spread == RANDOM ? rng_below(r, s->E) : s->spread == FEW ? t % 2 : 0;
        for (int32_t k = 0; k < s->K; k++) { /* K different ones from `first` on */
            l.ids[t * s->K + k] = (first + k) % s->E;
            l.weights[t * s->K + k] = fabsf(rng_float(r)) + 0.01f;
        }
    }
    return l;
}

static void layer_free(struct layer *l) {
    guarded_free(l->x);
    for (int32_t e = 0; e < l->s.E; e++) {
        matrix_free(&l->gate[e]);
        matrix_free(&l->up[e]);
        matrix_free(&l->down[e]);
    }
}

static void group(const struct layer *l, int32_t first, int32_t T, struct grouped *g) {
    int32_t K = l->s.K, at = 0;
    memcpy(g->ids, l->ids + first * K, (size_t)(T * K) * sizeof *g->ids);
    memcpy(g->weights, l->weights + first * K, (size_t)(T * K) * sizeof *g->weights);
    for (int32_t e = 0; e < l->s.E; e++) {
        g->offsets[e] = at;
        for (int32_t p = 0; p < T * K; p++)
            if (g->ids[p] == e)
                g->permutation[at++] = p;
        g->counts[e] = at - g->offsets[e];
    }
    g->offsets[l->s.E] = at;
    g->routing = (struct routing){g->ids, g->weights, g->counts, g->offsets, g->permutation, NULL};
}

/* What a rank holds: every step-th expert from `first` on, columns [col0, col0 + cols) of I. */
struct share {
    int32_t first, step, col0, cols;
};

/* partial [T, H] (+)= the share's experts for tokens [t0, t0 + T). */
static void run_share(const struct ops *ops, int32_t threads, const struct layer *l,
                      const struct share *share, int32_t t0, int32_t T, bool accumulate,
                      double *partial) {
    struct backend_config config = test_config(threads);
    struct expert_weights experts[MAX_E];
    struct stored stored[3 * MAX_E];
    struct grouped g;
    int32_t n = 0;
    config.hidden_size = l->s.H;
    config.num_experts = l->s.E;
    config.num_experts_per_tok = l->s.K;
    struct backend *b = test_backend(ops, &config);
    for (int32_t e = share->first; e < l->s.E; e += share->step, n++) {
        struct stored *s = stored + 3 * n;
        s[0] = store_matrix(ops, &l->gate[e], share->col0, share->cols, 0, l->s.H);
        s[1] = store_matrix(ops, &l->up[e], share->col0, share->cols, 0, l->s.H);
        s[2] = store_matrix(ops, &l->down[e], 0, l->s.H, share->col0, share->cols);
        experts[n] = (struct expert_weights){e, s[0].w, s[1].w, s[2].w};
    }
    group(l, t0, T, &g);
    struct moe_args a = {
        .num_tokens = T,
        .x = l->x + t0 * l->s.H,
        .routing = l->s.spread == DENSE ? NULL : &g.routing,
        .experts = experts,
        .num_experts = n,
        .num_experts_per_tok = l->s.K,
        .unit = l->s.unit,
        .accumulate = accumulate,
        .partial = partial,
    };
    ops->moe(b, &a);
    for (int32_t i = 0; i < 3 * n; i++)
        stored_free(&stored[i]);
    ops->destroy(b);
}

static void run_all(const struct ops *ops, int32_t threads, const struct layer *l, int32_t t0,
                    int32_t T, double *partial) {
    struct share all = {0, 1, 0, l->s.I};
    run_share(ops, threads, l, &all, t0, T, false, partial);
}

static const struct moe_shape shapes[] = {
    {40, 24, 5, 2, 8, DTYPE_BF16, RANDOM, FP8_TENSOR},
    {96, 70, 8, 3, 16, DTYPE_F8_E4M3, RANDOM, FP8_TENSOR},
    {33, 17, 4, 4, 8, DTYPE_F32, RANDOM, FP8_TENSOR},
    {64, 300, 1, 1, 64, DTYPE_BF16, DENSE, FP8_TENSOR},
    {65, 129, 6, 1, 128, DTYPE_F16, ALL_TO_ONE, FP8_TENSOR},
    {96, 48, 8, 2, 16, DTYPE_BF16, FEW, FP8_TENSOR},
    {50, 33, 8, 8, 6, DTYPE_BF16, RANDOM, FP8_TENSOR}, /* more pairs than one pass takes */
    {96, 256, 1, 1, 128, DTYPE_F8_E4M3, DENSE, FP8_TENSOR},
    {52, 70, 4, 2, 8, DTYPE_F8_E4M3, RANDOM, FP8_ROW},
    {150, 200, 3, 2, 32, DTYPE_F8_E4M3, RANDOM, FP8_BLOCK},
    {130, 300, 1, 1, 20, DTYPE_F8_E4M3, DENSE, FP8_BLOCK}, /* units across blocks */
};
enum { NUM_SHAPES = sizeof shapes / sizeof shapes[0] };

static float largest(const double *x, int64_t n) {
    double m = 1e-6;
    for (int64_t i = 0; i < n; i++)
        m = fabs(x[i]) > m ? fabs(x[i]) : m;
    return (float)m;
}

TEST(OpsMoe, AllVariantsAgreeWithRef) {
    static const int32_t counts[] = {0, 1, 2, 7, 33, 129};
    struct rng r = rng_seeded(30);
    int n;
    const struct variant *v = variants(&n);
    for (int i = 0; i < NUM_SHAPES; i++) {
        struct layer l = layer_random(&r, &shapes[i]);
        int64_t H = l.s.H;
        double *expected = guarded_doubles(MAX_T * H), *out = guarded_doubles(MAX_T * H);
        run_all(&ref_ops, 1, &l, 0, MAX_T, expected);
        /* Errors of three products in a row, relative to the largest output. */
        float scale = largest(expected, MAX_T * H);
        for (int k = 0; k < n; k++)
            for (int c = 0; c < 6; c++) {
                char what[128];
                int32_t T = counts[c], t0 = MAX_T - T;
                snprintf(what, sizeof what, "%s moe shape %d T %d", v[k].ops->name, i, T);
                run_all(v[k].ops, 2, &l, t0, T, out);
                close_doubles(what, out, expected + t0 * H, T * H, NULL,
                              scale * 8 * dot_tolerance(&v[k], l.s.dtype));
            }
        guarded_free(expected);
        guarded_free(out);
        layer_free(&l);
    }
}

TEST(OpsMoe, TokensAloneThreadsAndVectorWidthDoNotChangeTheBits) {
    struct rng r = rng_seeded(31);
    int n;
    const struct variant *v = variants(&n);
    for (int i = 0; i < NUM_SHAPES; i++) {
        struct layer l = layer_random(&r, &shapes[i]);
        size_t H = (size_t)l.s.H;
        double *first = guarded_doubles((int64_t)(MAX_T * H)), *one = guarded_doubles((int64_t)H);
        double *all = guarded_doubles((int64_t)(MAX_T * H));
        run_all(v[0].ops, 1, &l, 0, MAX_T, first);
        for (int k = 0; k < n; k++) {
            run_all(v[k].ops, 3, &l, 0, MAX_T, all);
            if (!(v[k].rounds && l.s.dtype == DTYPE_BF16))
                same_bits(v[k].ops->name, all, first, MAX_T * H * sizeof *all);
            for (int32_t t = 0; t < MAX_T; t += 16) {
                run_all(v[k].ops, 1, &l, t, 1, one);
                same_bits("token alone", one, all + (size_t)t * H, H * sizeof *one);
            }
        }
        guarded_free(first);
        guarded_free(one);
        guarded_free(all);
        layer_free(&l);
    }
}

/* Experts on two ranks, and columns on three ranks, add up to the bits of one rank. */
TEST(OpsMoe, RanksAddUpToTheWhole) {
    struct rng r = rng_seeded(32);
    int n;
    const struct variant *v = variants(&n);
    for (int i = 0; i < NUM_SHAPES; i++) {
        struct layer l = layer_random(&r, &shapes[i]);
        int32_t u = l.s.unit, cut1 = l.s.I / u / 3 * u, cut2 = l.s.I / u / 2 * u, T = 33;
        struct share by_expert[] = {{1, 2, 0, l.s.I}, {0, 2, 0, l.s.I}};
        struct share by_column[] = {
            {0, 1, cut2, l.s.I - cut2}, {0, 1, 0, cut1}, {0, 1, cut1, cut2 - cut1}};
        size_t bytes = (size_t)T * (size_t)l.s.H * sizeof(double);
        double *whole = guarded_alloc(bytes), *sum = guarded_alloc(bytes);
        for (int k = 0; k < n; k++) {
            run_all(v[k].ops, 2, &l, 5, T, whole);
            for (int j = 0; j < 2 && l.s.spread != DENSE; j++)
                run_share(v[k].ops, 2, &l, &by_expert[j], 5, T, j > 0, sum);
            if (l.s.spread != DENSE)
                same_bits("by expert", sum, whole, bytes);
            for (int j = 0; j < 3; j++) /* `accumulate` from the second on */
                run_share(v[k].ops, 2, &l, &by_column[j], 5, T, j > 0, sum);
            same_bits("by column", sum, whole, bytes);
        }
        guarded_free(whole);
        guarded_free(sum);
        layer_free(&l);
    }
}

/* A rank whose experts nobody chose, or without experts, leaves zeros, or what was there. */
TEST(OpsMoe, RanksWithoutTokensLeaveZeros) {
    /* Experts 0 and 1 have all tokens. */
    struct moe_shape shape = {40, 24, 5, 2, 8, DTYPE_BF16, ALL_TO_ONE, FP8_TENSOR};
    struct rng r = rng_seeded(33);
    struct layer l = layer_random(&r, &shape);
    struct share unused = {2, 1, 0, 24}, nothing = {5, 1, 0, 24};
    double out[3 * 40], before[3 * 40];
    int n;
    const struct variant *v = variants(&n);
    for (int k = 0; k < n; k++)
        for (int accumulate = 0; accumulate < 2; accumulate++)
            for (int j = 0; j < 2; j++) {
                for (int i = 0; i < 3 * 40; i++)
                    out[i] = before[i] = i + 0.5;
                run_share(v[k].ops, 2, &l, j ? &nothing : &unused, 0, 3, accumulate, out);
                if (!accumulate)
                    memset(before, 0, sizeof before);
                same_bits(v[k].ops->name, out, before, sizeof out);
            }
    layer_free(&l);
}
