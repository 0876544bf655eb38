/* The router against a plain one: who is chosen, with what weight, and who lies where.
 *
 * Float32 sums may order near-ties differently than the float64 ones here do. So a choice is right
 * when its probability is the k-th largest within a margin; ties that are exact have a test of
 * their own. The grouping follows from the chosen ids exactly. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/dtype.h"
#include "host/mem.h"
#include "tests/gpu_fixture.h"

struct shape {
    int32_t T, E, K, H;
    bool norm_topk_prob;
    float logits_std, factor;
    int32_t padded; /* rows at the end */
};

enum { TOTALS_BEFORE = 1000 };

/* A router's input on the host, and its result. */
struct run {
    struct shape s;
    float *x, *gate; /* [T, H], [E, H], rounded to bf16 */
    int32_t *slots;  /* [T] slot_mapping */
    int32_t *ids, *counts, *offsets, *permutation, *slot;
    int64_t *totals; /* [2, E], from TOTALS_BEFORE on */
    float *weights;
};

static struct run run_random(const struct shape *s, uint64_t salt) {
    struct rng r = rng_seeded(salt * 7919 + (uint64_t)(s->T * 31 + s->E));
    struct run run = {.s = *s};
    run.x = random_floats(&r, (int64_t)s->T * s->H, 1);
    run.gate = random_floats(&r, (int64_t)s->E * s->H, 5 / sqrtf((float)s->H));
    run.slots = random_ints(&r, s->T, 1000);
    for (int32_t t = s->T - s->padded; t < s->T; t++)
        run.slots[t] = -1;
    round_to_bf16(run.x, (int64_t)s->T * s->H);
    round_to_bf16(run.gate, (int64_t)s->E * s->H);
    return run;
}

static void run_free(struct run *run) {
    void *arrays[] = {run->x,       run->gate,        run->slots, run->ids,     run->counts,
                      run->offsets, run->permutation, run->slot,  run->weights, run->totals};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        free(arrays[i]);
}

/* The gate in ROWS: columns padded with zeros to a multiple of 32. */
static bf16 *upload_gate(const struct run *run) {
    int32_t ld = (run->s.H + 31) / 32 * 32;
    float *padded = xcalloc((size_t)(run->s.E * ld), sizeof *padded);
    for (int32_t e = 0; e < run->s.E; e++)
        memcpy(padded + e * ld, run->gate + e * run->s.H, (size_t)run->s.H * sizeof *padded);
    bf16 *gate = gpu_upload_bf16(padded, (int64_t)run->s.E * ld);
    free(padded);
    return gate;
}

static void route(struct run *run) {
    const struct shape *s = &run->s;
    size_t pairs = (size_t)(s->T * s->K), experts = (size_t)s->E;
    struct router_config config = {.num_experts = s->E,
                                   .num_experts_per_tok = s->K,
                                   .norm_topk_prob = s->norm_topk_prob,
                                   .logits_std = s->logits_std,
                                   .routed_scaling_factor = s->factor};
    struct gpu_routing out = {gpu_alloc(pairs * 4),   gpu_alloc(pairs * 4),
                              gpu_alloc(experts * 4), gpu_alloc((experts + 1) * 4),
                              gpu_alloc(pairs * 4),   gpu_alloc(pairs * 4)};
    int64_t *totals = xcalloc(2 * experts, sizeof *totals);
    for (size_t i = 0; i < 2 * experts; i++)
        totals[i] = TOTALS_BEFORE;
    struct router_args args = {.out = out,
                               .expert_totals = gpu_upload(totals, 2 * experts * 8),
                               .x = gpu_upload_bf16(run->x, (int64_t)s->T * s->H),
                               .gate = upload_gate(run),
                               .config = &config,
                               .slot_mapping = gpu_upload(run->slots, (size_t)s->T * 4),
                               .logits = gpu_alloc((size_t)s->T * experts * 4),
                               .num_tokens = s->T,
                               .hidden_size = s->H};
    router_launch(&args, gpu_stream());
    free(totals);
    run->totals = gpu_fetch(args.expert_totals, 2 * experts * 8);
    run->ids = gpu_fetch(out.topk_ids, pairs * 4);
    run->weights = gpu_fetch(out.topk_weights, pairs * 4);
    run->counts = gpu_fetch(out.expert_counts, experts * 4);
    run->offsets = gpu_fetch(out.expert_offsets, (experts + 1) * 4);
    run->permutation = gpu_fetch(out.permutation, pairs * 4);
    run->slot = gpu_fetch(out.slot, pairs * 4);
    void *device[] = {out.topk_ids,       out.topk_weights,  out.expert_counts,
                      out.expert_offsets, out.permutation,   out.slot,
                      (void *)args.x,     (void *)args.gate, (void *)args.slot_mapping,
                      args.logits,        args.expert_totals};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        gpu_free(device[i]);
}

/* ---- the plain router ------------------------------------------------------------------------ */

/* p[E] of token t. */
static void probabilities(const struct run *run, int32_t t, double *p) {
    const struct shape *s = &run->s;
    double max = -INFINITY, sum = 0, mean = 0, var = 0;
    for (int32_t e = 0; e < s->E; e++) {
        p[e] = 0;
        for (int32_t i = 0; i < s->H; i++)
            p[e] += (double)run->x[t * s->H + i] * (double)run->gate[e * s->H + i];
        mean += p[e] / s->E;
    }
    for (int32_t e = 0; e < s->E; e++)
        var += (p[e] - mean) * (p[e] - mean) / (s->E - 1);
    for (int32_t e = 0; e < s->E; e++) {
        if (s->logits_std > 0)
            p[e] /= sqrt(var) / (double)s->logits_std;
        max = fmax(max, p[e]);
    }
    for (int32_t e = 0; e < s->E; e++)
        sum += p[e] = exp(p[e] - max);
    for (int32_t e = 0; e < s->E; e++)
        p[e] /= sum;
}

static int descending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

static void check_choice(const struct run *run, int32_t t) {
    const struct shape *s = &run->s;
    const int32_t *ids = run->ids + t * s->K;
    double p[1024], sorted[1024], chosen = 0;
    bool seen[1024] = {false};
    probabilities(run, t, p);
    memcpy(sorted, p, (size_t)s->E * sizeof *p);
    qsort(sorted, (size_t)s->E, sizeof *sorted, descending);
    for (int32_t k = 0; k < s->K; k++) {
        ASSERT_TRUE(ids[k] >= 0 && ids[k] < s->E && !seen[ids[k]]);
        seen[ids[k]] = true;
        /* Logits up to 20 with float32 sums of up to 1000 terms: off by 1e-5 at most. */
        EXPECT_NEAR(p[ids[k]], sorted[k], 1e-4 * sorted[k] + 1e-12);
        chosen += p[ids[k]];
    }
    for (int32_t k = 0; k < s->K; k++) {
        double want = p[ids[k]] / (s->norm_topk_prob ? chosen : 1) * (double)s->factor;
        EXPECT_NEAR(run->weights[t * s->K + k], want, 1e-4 * want + 1e-12);
    }
}

/* Every expert's pairs were added, and one step for those that have some. */
static void check_totals(const struct run *run) {
    int32_t E = run->s.E;
    for (int32_t e = 0; e < E; e++) {
        ASSERT_INT_EQ(run->totals[e], TOTALS_BEFORE + run->counts[e]);
        ASSERT_INT_EQ(run->totals[E + e], TOTALS_BEFORE + (run->counts[e] > 0));
    }
}

/* counts, offsets, permutation and slot follow from the ids. */
static void check_grouping(const struct run *run) {
    int32_t P = run->s.T * run->s.K, at = 0;
    for (int32_t e = 0; e < run->s.E; e++) {
        ASSERT_INT_EQ(run->offsets[e], at);
        for (int32_t p = 0; p < P; p++)
            if (run->ids[p] == e) {
                ASSERT_INT_EQ(run->permutation[at], p);
                ASSERT_INT_EQ(run->slot[p], at);
                at++;
            }
        ASSERT_INT_EQ(run->counts[e], at - run->offsets[e]);
    }
    ASSERT_INT_EQ(run->offsets[run->s.E], at);
    ASSERT_INT_EQ(at, P - run->s.padded * run->s.K);
}

static void check_routing(const struct shape *s) {
    struct run run = run_random(s, 1);
    int32_t used = s->T - s->padded;
    route(&run);
    for (int32_t t = 0; t < used && !shim_failed(); t += s->T > 100 ? 7 : 1)
        check_choice(&run, t);
    for (int32_t p = used * s->K; p < s->T * s->K; p++)
        EXPECT_TRUE(run.ids[p] == -1 && run.weights[p] == 0 && run.slot[p] == -1);
    check_grouping(&run);
    check_totals(&run);
    if (shim_failed())
        FAIL("T %d, E %d, K %d, H %d, std %g", s->T, s->E, s->K, s->H, (double)s->logits_std);
    run_free(&run);
}

/* ---- tests ----------------------------------------------------------------------------------- */

TEST(CudaRouter, AgreesWithThePlainOne) {
    GPU_OR_SKIP();
    static const struct shape shapes[] = {
        {0, 16, 2, 64, true, 0, 1, 0},      {1, 16, 2, 96, true, 1, 1, 0},
        {1, 1, 1, 40, false, 0, 1, 0},      {2, 8, 2, 76, true, 0, 1, 0},
        {7, 60, 4, 90, false, 0, 1, 0},     {8, 33, 33 - 1, 64, true, 0, 2.5f, 3},
        {9, 32, 32, 64, false, 0, 1, 0},    {33, 128, 8, 264, true, 0, 1, 1},
        {64, 5, 5, 33, true, 0, 1, 10},     {129, 16, 2, 520, true, 1, 1, 0},
        {33, 1000, 6, 32, false, 0, 16, 2}, {5, 256, 8, 1000, true, 0, 1, 5},
        {40, 200, 32, 48, true, 2, 1, 0},   {300, 130, 8, 96, true, 0, 1, 17},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes && !shim_failed(); i++)
        check_routing(&shapes[i]);
}

TEST(CudaRouter, ManyPairsAreGroupedByManyBlocks) {
    GPU_OR_SKIP();
    static const struct shape shapes[] = {
        {256, 64, 8, 8, true, 0, 1, 0}, /* 2048 pairs: the last that one block takes */
        {257, 64, 8, 8, true, 0, 1, 0},
        {700, 40, 32, 8, true, 0, 1, 200}, /* whole blocks of padded rows */
        {2200, 3, 1, 8, true, 0, 1, 1},
        {300, 1024, 7, 8, true, 0, 1, 0},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes && !shim_failed(); i++)
        check_routing(&shapes[i]);
}

TEST(CudaRouter, TiesGoToTheLowerExpert) {
    GPU_OR_SKIP();
    const struct shape s = {9, 70, 12, 64, true, 0, 1, 0};
    struct run run = run_random(&s, 2);
    for (int32_t e = 0; e < s.E; e++) /* four different rows, in turn */
        memcpy(run.gate + e * s.H, run.gate + e % 4 * s.H, (size_t)s.H * sizeof(float));
    route(&run);
    for (int32_t t = 0; t < s.T; t++)
        for (int32_t k = 1; k < s.K; k++)
            EXPECT_INT_EQ(run.ids[t * s.K + k], run.ids[t * s.K + k - 1] + 4);
    check_grouping(&run);
    run_free(&run);
}

TEST(CudaRouter, AllTokensMayWantTheSameExperts) {
    GPU_OR_SKIP();
    const struct shape s = {300, 64, 8, 8, true, 0, 1, 0};
    struct run run = run_random(&s, 3);
    for (int32_t t = 1; t < s.T; t++)
        memcpy(run.x + t * s.H, run.x, (size_t)s.H * sizeof(float));
    route(&run);
    check_choice(&run, 0);
    for (int32_t p = s.K; p < s.T * s.K; p++)
        EXPECT_INT_EQ(run.ids[p], run.ids[p % s.K]);
    check_grouping(&run);
    run_free(&run);
}

/* The bits of a token's weights do not depend on the batch: tiles, kernels and blocks differ. */
TEST(CudaRouter, ATokenDoesNotDependOnTheOthers) {
    GPU_OR_SKIP();
    const struct shape many = {300, 130, 8, 328, true, 1, 1, 0};
    struct shape few = many;
    struct run all = run_random(&many, 4);
    static const int32_t sizes[] = {1, 7, 40};
    route(&all);
    for (int i = 0; i < 3; i++) {
        few.T = sizes[i];
        int32_t first = 299 - few.T, K = many.K;
        struct run part = run_random(&few, 4);
        memcpy(part.gate, all.gate, (size_t)(many.E * many.H) * sizeof(float));
        memcpy(part.x, all.x + first * many.H, (size_t)(few.T * many.H) * sizeof(float));
        route(&part);
        same_ints("ids", part.ids, all.ids + first * K, (int64_t)few.T * K, K);
        same_bits("weights", part.weights, all.weights + first * K,
                  (size_t)(few.T * K) * sizeof(float));
        run_free(&part);
    }
    run_free(&all);
}

TEST(CudaRouter, BrokenRowsHaveNaNWeightsAndValidExperts) {
    GPU_OR_SKIP();
    struct shape s = {3, 16, 4, 64, true, 1, 1, 0};
    struct run run = run_random(&s, 5);
    run.x[5] = NAN;
    for (int32_t i = 0; i < s.H; i++)
        run.x[s.H + i] = 0; /* all logits 0: their std is 0 */
    route(&run);
    for (int32_t t = 0; t < 2; t++)
        for (int32_t k = 0; k < s.K; k++) {
            EXPECT_INT_EQ(run.ids[t * s.K + k], k);
            EXPECT_TRUE(isnan(run.weights[t * s.K + k]));
        }
    check_choice(&run, 2);
    check_grouping(&run);
    run_free(&run);
}

/* ---- dense layers ---------------------------------------------------------------------------- */

TEST(CudaRouter, DenseLayersRouteToOneExpert) {
    GPU_OR_SKIP();
    static const int32_t counts[] = {0, 1, 33, 256, 700};
    for (int i = 0; i < 5; i++) {
        int32_t T = counts[i], used = T - T / 3;
        size_t bytes = (size_t)T * 4;
        struct run run = {.s = {T, 1, 1, 0, false, 0, 1, T - used}};
        run.slots = xcalloc((size_t)T, 4);
        for (int32_t t = used; t < T; t++)
            run.slots[t] = -1;
        struct gpu_routing out = {gpu_alloc(bytes), gpu_alloc(bytes), gpu_alloc(4),
                                  gpu_alloc(8),     gpu_alloc(bytes), gpu_alloc(bytes)};
        int32_t *slots = gpu_upload(run.slots, bytes);
        route_to_one_launch(&out, slots, T, gpu_stream());
        run.ids = gpu_fetch(out.topk_ids, bytes);
        run.weights = gpu_fetch(out.topk_weights, bytes);
        run.counts = gpu_fetch(out.expert_counts, 4);
        run.offsets = gpu_fetch(out.expert_offsets, 8);
        run.permutation = gpu_fetch(out.permutation, bytes);
        run.slot = gpu_fetch(out.slot, bytes);
        for (int32_t t = 0; t < T; t++) {
            EXPECT_INT_EQ(run.ids[t], t < used ? 0 : -1);
            EXPECT_TRUE(run.weights[t] == (t < used ? 1 : 0));
            EXPECT_INT_EQ(run.slot[t], t < used ? t : -1);
        }
        check_grouping(&run);
        void *device[] = {out.topk_ids,
                          out.topk_weights,
                          out.expert_counts,
                          out.expert_offsets,
                          out.permutation,
                          out.slot,
                          slots};
        for (size_t j = 0; j < sizeof device / sizeof *device; j++)
            gpu_free(device[j]);
        run_free(&run);
    }
}
