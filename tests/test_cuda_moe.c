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
#include "tests/gpu_weights.h"

/* ---- a layer's experts ----------------------------------------------------------------------- */

struct layer {
    const struct gpu_weight_type *type;
    int32_t H, I, E, K, num_local;
    int32_t *slot;                       /* [E] */
    struct gpu_matrix *gate, *up, *down; /* [num_local] */
    struct gpu_expert *experts;          /* device */
    int32_t *device_slot;
};

/* Experts e with e % miss != miss - 1 are held here; miss 0: all are. */
static struct layer make_layer(struct rng *r, const struct gpu_weight_type *type, int32_t H,
                               int32_t I, int32_t E, int32_t K, int32_t miss) {
    struct layer l = {.type = type, .H = H, .I = I, .E = E, .K = K};
    struct gpu_weight_type uncut = gpu_weight_type_uncut(type);
    size_t n = (size_t)E;
    l.slot = xcalloc(n, sizeof *l.slot);
    l.gate = xcalloc(n, sizeof *l.gate);
    l.up = xcalloc(n, sizeof *l.up);
    l.down = xcalloc(n, sizeof *l.down);
    struct gpu_expert *experts = xcalloc(n, sizeof *experts);
    for (int32_t e = 0; e < E; e++) {
        l.slot[e] = -1;
        if (miss > 0 && e % miss == miss - 1)
            continue;
        int32_t s = l.slot[e] = l.num_local++;
        l.gate[s] = gpu_matrix_random(r, &uncut, LAYOUT_FRAGMENTS, I, H);
        l.up[s] = gpu_matrix_random(r, &uncut, LAYOUT_FRAGMENTS, I, H);
        l.down[s] = gpu_matrix_random(r, type, LAYOUT_FRAGMENTS, H, I);
        experts[s] = (struct gpu_expert){l.gate[s].data,  l.up[s].data,  l.down[s].data,
                                         l.gate[s].scale, l.up[s].scale, l.down[s].scale};
    }
    l.experts = gpu_upload(experts, n * sizeof *experts);
    l.device_slot = gpu_upload(l.slot, n * sizeof *l.slot);
    free(experts);
    return l;
}

static void free_layer(struct layer *l) {
    for (int32_t s = 0; s < l->num_local; s++) {
        gpu_matrix_free(&l->gate[s]);
        gpu_matrix_free(&l->up[s]);
        gpu_matrix_free(&l->down[s]);
    }
    gpu_free(l->experts);
    gpu_free(l->device_slot);
    free(l->slot);
    free(l->gate);
    free(l->up);
    free(l->down);
}

/* ---- a batch and where its tokens go --------------------------------------------------------- */

enum pattern {
    RANDOM, /* K different experts each */
    ONE,    /* the first choice is always expert 0: most of the tokens, with K = 1 all */
    SKEWED, /* low experts far more often; others stay empty */
    EVERY   /* experts 0 .. K - 1 */
};

struct tokens {
    int32_t T, padded;           /* the last `padded` of T rows are padding */
    float *x;                    /* [T, H]; FP8 activations: what they stand for */
    struct gpu_f8_rows f8;       /* these, or NULLs */
    int32_t *topk_ids;           /* [T, K] */
    float *topk_weights;         /* [T, K] */
    int32_t *counts, *offsets;   /* [E], [E + 1] */
    int32_t *permutation, *slot; /* [P] */
};

static bool chosen_before(const int32_t *ids, int32_t k, int32_t id) {
    for (int32_t i = 0; i < k; i++)
        if (ids[i] == id)
            return true;
    return false;
}

static int32_t choose(struct rng *r, const struct layer *l, enum pattern pattern,
                      const int32_t *ids, int32_t k) {
    int32_t id;
    do {
        if (pattern == EVERY || (pattern == ONE && k == 0))
            id = k;
        else if (pattern == SKEWED)
            id = rng_below(r, 1 + rng_below(r, l->E));
        else
            id = rng_below(r, l->E);
    } while (chosen_before(ids, k, id));
    return id;
}

/* Counts, offsets, permutation and slots from topk_ids. */
static void group_by_expert(struct tokens *t, const struct layer *l) {
    int32_t P = t->T * l->K, at = 0;
    for (int32_t p = 0; p < P; p++)
        t->slot[p] = t->permutation[p] = -1;
    for (int32_t e = 0; e < l->E; e++) {
        t->offsets[e] = at;
        for (int32_t p = 0; p < P; p++)
            if (t->topk_ids[p] == e) {
                t->slot[p] = at;
                t->permutation[at++] = p;
            }
        t->counts[e] = at - t->offsets[e];
    }
    t->offsets[l->E] = at;
}

static void allocate_tokens(struct tokens *t, const struct layer *l) {
    size_t P = (size_t)(t->T * l->K), E = (size_t)l->E;
    t->topk_ids = xcalloc(P, sizeof *t->topk_ids);
    t->topk_weights = xcalloc(P, sizeof *t->topk_weights);
    t->counts = xcalloc(E, sizeof *t->counts);
    t->offsets = xcalloc(E + 1, sizeof *t->offsets);
    t->permutation = xcalloc(P, sizeof *t->permutation);
    t->slot = xcalloc(P, sizeof *t->slot);
}

static struct tokens make_tokens(struct rng *r, const struct layer *l, int32_t T, int32_t padded,
                                 enum pattern pattern) {
    struct tokens t = {.T = T, .padded = padded};
    int32_t K = l->K;
    allocate_tokens(&t, l);
    t.x = random_floats(r, (int64_t)T * l->H, 2);
    round_to_bf16(t.x, (int64_t)T * l->H);
    if (l->type->xq)
        t.f8 = gpu_f8_rows_of(t.x, T, l->H);
    for (int32_t i = 0; i < T; i++)
        for (int32_t k = 0; k < K; k++) {
            bool real = i < T - padded;
            t.topk_ids[i * K + k] = real ? choose(r, l, pattern, t.topk_ids + i * K, k) : -1;
            t.topk_weights[i * K + k] = real ? (rng_float(r) + 1.5f) / (float)K : 0;
        }
    group_by_expert(&t, l);
    return t;
}

/* Token i of a batch as a batch of its own. */
static struct tokens one_token(const struct tokens *all, const struct layer *l, int32_t i) {
    struct tokens t = {.T = 1};
    allocate_tokens(&t, l);
    t.x = xcalloc((size_t)l->H, sizeof *t.x);
    memcpy(t.x, all->x + (int64_t)i * l->H, (size_t)l->H * sizeof *t.x);
    if (l->type->xq) {
        int64_t stride = f8_stride(l->H);
        t.f8.codes = xcalloc((size_t)stride, 1);
        t.f8.scale = xcalloc(1, sizeof *t.f8.scale);
        memcpy(t.f8.codes, all->f8.codes + i * stride, (size_t)stride);
        *t.f8.scale = all->f8.scale[i];
    }
    memcpy(t.topk_ids, all->topk_ids + i * l->K, (size_t)l->K * sizeof *t.topk_ids);
    memcpy(t.topk_weights, all->topk_weights + i * l->K, (size_t)l->K * sizeof *t.topk_weights);
    group_by_expert(&t, l);
    return t;
}

static void free_tokens(struct tokens *t) {
    free(t->x);
    gpu_f8_rows_free(&t->f8);
    free(t->topk_ids);
    free(t->topk_weights);
    free(t->counts);
    free(t->offsets);
    free(t->permutation);
    free(t->slot);
}

/* ---- one launch ------------------------------------------------------------------------------ */

struct result {
    float *act, *pair_out, *partial; /* [P, I], [P, H], [T, H]; owned */
    struct gpu_f8_rows actq;         /* [P]: FP8 activations, or NULLs */
};

static void free_result(struct result *r) {
    free(r->act);
    free(r->pair_out);
    free(r->partial);
    gpu_f8_rows_free(&r->actq);
}

static struct gpu_routing upload_routing(const struct tokens *t, const struct layer *l) {
    size_t P = (size_t)(t->T * l->K), E = (size_t)l->E;
    return (struct gpu_routing){
        .topk_ids = gpu_upload(t->topk_ids, P * sizeof(int32_t)),
        .topk_weights = gpu_upload(t->topk_weights, P * sizeof(float)),
        .expert_counts = gpu_upload(t->counts, E * sizeof(int32_t)),
        .expert_offsets = gpu_upload(t->offsets, (E + 1) * sizeof(int32_t)),
        .permutation = gpu_upload(t->permutation, P * sizeof(int32_t)),
        .slot = gpu_upload(t->slot, P * sizeof(int32_t)),
    };
}

static void free_routing(struct gpu_routing *r) {
    gpu_free(r->topk_ids);
    gpu_free(r->topk_weights);
    gpu_free(r->expert_counts);
    gpu_free(r->expert_offsets);
    gpu_free(r->permutation);
    gpu_free(r->slot);
}

/* before: what partial holds and is added to, or NULL. */
static struct result run_moe(const struct layer *l, const struct tokens *t, const float *before) {
    int64_t P = (int64_t)t->T * l->K, n = (int64_t)t->T * l->H;
    size_t actq_bytes = l->type->xq ? (size_t)(P * f8_stride(l->I)) : 0;
    struct gpu_routing routing = upload_routing(t, l);
    struct moe_launch_args a = {
        .x = l->type->xq ? NULL : gpu_upload_bf16(t->x, n),
        .xq = l->type->xq ? gpu_upload(t->f8.codes, (size_t)(t->T * f8_stride(l->H))) : NULL,
        .xq_scale = l->type->xq ? gpu_upload(t->f8.scale, (size_t)t->T * sizeof(float)) : NULL,
        .routing = &routing,
        .experts = l->experts,
        .expert_slot = l->device_slot,
        .num_tokens = t->T,
        .hidden_size = l->H,
        .intermediate = l->I,
        .num_experts = l->E,
        .num_experts_per_tok = l->K,
        .num_local = l->num_local,
        .dtype = l->type->dtype,
        .scale = l->type->scale,
        .down_col0 = l->type->block_col0,
        .accumulate = before != NULL,
        .invariant = true,
        .act = gpu_alloc((size_t)(P * l->I) * sizeof(bf16)),
        .actq = gpu_alloc(actq_bytes),
        .actq_scale = gpu_alloc((size_t)P * sizeof(float)),
        .pair_out = gpu_alloc((size_t)(P * l->H) * sizeof(float)),
        .partial = gpu_alloc((size_t)n * sizeof(float)),
        .workspace = gpu_alloc(moe_workspace_bytes(t->T, l->E, l->K)),
        .gpu = gpu_test_info(),
    };
    if (before)
        gpu_write(a.partial, before, (size_t)n * sizeof(float));
    moe_launch(&a, gpu_stream());
    struct result r = {
        gpu_fetch_bf16(a.act, P * l->I),
        gpu_fetch(a.pair_out, (size_t)(P * l->H) * sizeof(float)),
        gpu_fetch(a.partial, (size_t)n * sizeof(float)),
        {gpu_fetch(a.actq, actq_bytes), gpu_fetch(a.actq_scale, (size_t)P * sizeof(float))}};
    gpu_free((void *)(uintptr_t)a.x);
    gpu_free((void *)(uintptr_t)a.xq);
    gpu_free((void *)(uintptr_t)a.xq_scale);
    gpu_free(a.act);
    gpu_free(a.actq);
    gpu_free(a.actq_scale);
    gpu_free(a.pair_out);
    gpu_free(a.partial);
    gpu_free(a.workspace);
    free_routing(&routing);
    return r;
}

/* ---- checks ---------------------------------------------------------------------------------- */

static void describe(char out[160], const struct layer *l, const struct tokens *t) {
    snprintf(out, 160, "%s H %d I %d E %d K %d, T %d (seed %llu)", l->type->name, l->H, l->I, l->E,
             l->K, t->T, (unsigned long long)ops_test_seed());
}

/* |got - want| <= limit, else a failure; false after one. */
static bool near(const char *stage, const struct layer *l, const struct tokens *t, int64_t row,
                 int32_t col, double got, double want, double limit) {
    if (fabs(got - want) <= limit)
        return true;
    char what[160];
    describe(what, l, t);
    FAIL("%s: %s[%lld, %d] is %g, not %g +- %g", what, stage, (long long)row, col, got, want,
         limit);
    return false;
}

/* act of pair at `at` of the permutation. d silu(g) / dg is at most 1.1. */
static bool check_act(const struct layer *l, const struct tokens *t, int32_t slot, int64_t at,
                      const float *got, double *scratch) {
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

static bool check_down(const struct layer *l, const struct tokens *t, int32_t slot, int64_t at,
                       const float *act, const float *got, double *scratch) {
    double *y = scratch, *size = y + l->H;
    gpu_matrix_times(&l->down[slot], act, y, size);
    for (int32_t h = 0; h < l->H; h++)
        if (!near("pair_out", l, t, at, h, (double)got[h], y[h],
                  size[h] * gpu_sum_error(l->type) + 1e-9))
            return false;
    return true;
}

static bool check_combine(const struct layer *l, const struct tokens *t, const struct result *r,
                          const float *before) {
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
static bool check_actq(const struct layer *l, const struct tokens *t, const struct result *r,
                       int64_t at, float *act) {
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
static void check_result(const struct layer *l, const struct tokens *t, const struct result *r,
                         const float *before) {
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
                       int32_t miss, int32_t padded, enum pattern pattern) {
    struct rng r = rng_seeded(salt);
    struct layer l = make_layer(&r, type, shape[1], shape[2], shape[3], shape[4], miss);
    struct tokens t = make_tokens(&r, &l, shape[0], padded, pattern);
    struct result result = run_moe(&l, &t, NULL);
    check_result(&l, &t, &result, NULL);
    free_result(&result);
    free_tokens(&t);
    free_layer(&l);
}

/* ---- tests ----------------------------------------------------------------------------------- */

/* {T, H, I, E, K} */
static const int32_t few[][5] = {{1, 96, 40, 5, 2},   {2, 152, 88, 7, 3}, {7, 64, 24, 3, 3},
                                 {33, 136, 56, 6, 2}, {9, 76, 90, 4, 2},  {12, 1, 3, 2, 1}};

TEST(CudaMoe, FewTokensAnExpert) {
    GPU_OR_SKIP();
    for (int k = 0; k < gpu_num_weight_types(); k++)
        for (size_t s = 0; s < sizeof few / sizeof *few; s++)
            check_case(400 + s, &gpu_weight_types[k], few[s], 0, 0, RANDOM);
}

TEST(CudaMoe, ManyColumnsAndRows) {
    GPU_OR_SKIP();
    static const int32_t shape[5] = {3, 1160, 392, 2, 1};
    for (int k = 0; k < gpu_num_weight_types(); k++)
        check_case(420, &gpu_weight_types[k], shape, 0, 0, RANDOM);
}

TEST(CudaMoe, ManyTokensAnExpert) {
    GPU_OR_SKIP();
    static const int32_t shapes[][5] = {
        {129, 136, 72, 1, 1}, {129, 264, 200, 3, 2}, {70, 40, 144, 2, 2}, {70, 8, 8, 1, 1}};
    for (int k = 0; k < gpu_num_weight_types(); k++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            check_case(430 + s, &gpu_weight_types[k], shapes[s], 0, 0, RANDOM);
}

/* Some experts belong to the streaming kernels, others to the tile kernels, and some have no token;
 * more experts than a warp has lanes. */
TEST(CudaMoe, ExpertsOfAllSizes) {
    GPU_OR_SKIP();
    static const int32_t skewed[5] = {110, 72, 48, 40, 3}, one[5] = {80, 48, 72, 9, 2};
    for (int k = 0; k < gpu_num_weight_types(); k++) {
        check_case(440, &gpu_weight_types[k], skewed, 0, 0, SKEWED);
        check_case(441, &gpu_weight_types[k], one, 0, 0, ONE);
    }
}

TEST(CudaMoe, EveryTokenToEveryExpert) {
    GPU_OR_SKIP();
    static const int32_t shape[5] = {19, 56, 40, 3, 3};
    for (int k = 0; k < gpu_num_weight_types(); k++)
        check_case(450, &gpu_weight_types[k], shape, 0, 0, EVERY);
}

TEST(CudaMoe, ExpertsOfOtherRanksAreLeftToThem) {
    GPU_OR_SKIP();
    static const int32_t few_tokens[5] = {17, 48, 24, 7, 3}, many[5] = {90, 48, 24, 3, 2};
    for (int k = 0; k < gpu_num_weight_types(); k++) {
        check_case(460, &gpu_weight_types[k], few_tokens, 2, 0, RANDOM);
        check_case(461, &gpu_weight_types[k], many, 3, 0, RANDOM);
    }
}

TEST(CudaMoe, ARankWithoutExpertsGivesZeros) {
    GPU_OR_SKIP();
    static const int32_t shape[5] = {5, 48, 24, 4, 2};
    check_case(465, &gpu_weight_types[0], shape, 1, 0, RANDOM);
}

TEST(CudaMoe, PaddedRowsGiveZeros) {
    GPU_OR_SKIP();
    static const int32_t shape[5] = {16, 48, 24, 5, 2}, all[5] = {4, 50, 24, 5, 2};
    for (int k = 0; k < gpu_num_weight_types(); k++) {
        check_case(470, &gpu_weight_types[k], shape, 0, 5, RANDOM);
        check_case(471, &gpu_weight_types[k], all, 0, 4, RANDOM);
    }
}

TEST(CudaMoe, NoTokensIsNoWork) {
    GPU_OR_SKIP();
    static const int32_t shape[5] = {0, 48, 24, 5, 2};
    for (int k = 0; k < gpu_num_weight_types(); k++)
        check_case(475, &gpu_weight_types[k], shape, 0, 0, RANDOM);
}

TEST(CudaMoe, AddsToPartial) {
    GPU_OR_SKIP();
    static const int32_t widths[] = {48, 50};
    for (int i = 0; i < 2; i++) {
        struct rng r = rng_seeded(480);
        struct layer l = make_layer(&r, &gpu_weight_types[0], widths[i], 24, 5, 2, 2);
        struct tokens t = make_tokens(&r, &l, 6, 1, RANDOM);
        float *before = random_floats(&r, t.T * l.H, 1);
        struct result result = run_moe(&l, &t, before);
        check_result(&l, &t, &result, before);
        free_result(&result);
        free(before);
        free_tokens(&t);
        free_layer(&l);
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
            struct layer l =
                make_layer(&r, &gpu_weight_types[k], shape[1], shape[2], shape[3], shape[4], 0);
            struct tokens all = make_tokens(&r, &l, shape[0], 0, RANDOM);
            struct result whole = run_moe(&l, &all, NULL);
            for (int32_t i = 0; i < all.T; i += 1 + all.T / 4) {
                struct tokens one = one_token(&all, &l, i);
                struct result alone = run_moe(&l, &one, NULL);
                char what[160];
                describe(what, &l, &all);
                same_bits(what, alone.partial, whole.partial + (int64_t)i * l.H,
                          (size_t)l.H * sizeof(float));
                free_result(&alone);
                free_tokens(&one);
            }
            free_result(&whole);
            free_tokens(&all);
            free_layer(&l);
        }
}
