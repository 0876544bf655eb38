/* Embedding, norm, row gathering and routing of every cpu variant against ref. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "tests/ops_fixture.h"

static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_F8_E4M3};

/* Conversions are exact, so are the bits. The table starts at an odd address. */
TEST(OpsRows, EmbeddingIsExactAndMayBeUnaligned) {
    enum { V = 9, T = 5 };
    static const int32_t widths[] = {1, 15, 16, 17, 96}, tokens[T] = {8, 0, 3, 3, 7};
    struct rng r = rng_seeded(20);
    struct backend_config config = test_config(2);
    struct backend *ref = test_backend(&ref_ops, &config);
    int n;
    const struct variant *v = variants(&n);
    for (int d = 0; d < 5; d++)
        for (int w = 0; w < 5; w++) {
            struct matrix m = matrix_random(&r, d < 4 ? dtypes[d] : DTYPE_BF16, V, widths[w]);
            size_t bytes = (size_t)V * (size_t)widths[w] * dtype_bytes(m.source.dtype);
            char *odd = guarded_alloc(bytes + 1);
            memcpy(odd + 1, m.data, bytes);
            struct tensor_source table = m.source;
            table.data = d < 4 ? odd + 1 : NULL; /* or a dummy */
            table.seed = 5;
            float *expected = guarded_floats(T * widths[w]);
            ref_ops.embed_init(ref, &table, NULL, NULL);
            ref_ops.embed(ref, expected, tokens, T);
            for (int k = 0; k < n; k++) {
                struct backend *b = test_backend(v[k].ops, &config);
                float *out = guarded_floats(T * widths[w]);
                v[k].ops->embed_init(b, &table, NULL, NULL);
                v[k].ops->embed(b, out, tokens, 0);
                v[k].ops->embed(b, out, tokens, T);
                same_bits(v[k].ops->name, out, expected,
                          (size_t)T * (size_t)widths[w] * sizeof *out);
                guarded_free(out);
                v[k].ops->destroy(b);
            }
            guarded_free(expected);
            guarded_free(odd);
            matrix_free(&m);
        }
    ref_ops.destroy(ref);
}

static float *copy_floats(const float *x, int64_t n) {
    float *out = guarded_floats(n);
    memcpy(out, x, (size_t)n * sizeof *x);
    return out;
}

/* add_norm of one width: near ref, and the bits of a row alone. */
static void check_norm(const struct variant *v, struct backend *ref, int32_t T, int32_t H,
                       bool with_partial, struct rng *r) {
    struct backend_config config = test_config(2);
    struct backend *b = test_backend(v->ops, &config);
    int64_t n = (int64_t)T * H;
    float *hidden = guarded_floats(n), *norm = guarded_floats(H);
    double *partial = guarded_doubles(n);
    rng_fill(r, hidden, n);
    rng_fill(r, norm, H);
    for (int64_t i = 0; i < n; i++)
        partial[i] = (double)rng_float(r) / 3;
    double *p = with_partial ? partial : NULL;
    float *h1 = copy_floats(hidden, n), *h2 = copy_floats(hidden, n), *h3 = copy_floats(hidden, n);
    float *x1 = guarded_floats(n), *x2 = guarded_floats(n), *x3 = guarded_floats(n);
    ref_ops.add_norm(ref, x1, h1, p, norm, 1e-5f, T, H);
    v->ops->add_norm(b, x2, h2, p, norm, 1e-5f, T, H);
    same_bits("hidden", h2, h1, (size_t)n * sizeof *h1);
    /* x is about 1: 1/rms is off by few ulp */
    close_floats("add_norm", x2, x1, n, NULL, 0x1p-20f);
    for (int32_t t = 0; t < T; t++)
        v->ops->add_norm(b, x3 + (int64_t)t * H, h3 + (int64_t)t * H, p ? p + (int64_t)t * H : NULL,
                         norm, 1e-5f, 1, H);
    same_bits("rows alone", x3, x2, (size_t)n * sizeof *x2);
    guarded_free(hidden);
    guarded_free(norm);
    guarded_free(partial);
    guarded_free(h1);
    guarded_free(h2);
    guarded_free(h3);
    guarded_free(x1);
    guarded_free(x2);
    guarded_free(x3);
    v->ops->destroy(b);
}

TEST(OpsRows, AddNormAgreesWithRef) {
    static const int32_t widths[] = {1, 15, 16, 17, 96, 600}, counts[] = {0, 1, 5, 129};
    struct rng r = rng_seeded(21);
    struct backend_config config = test_config(1);
    struct backend *ref = test_backend(&ref_ops, &config);
    int n;
    const struct variant *v = variants(&n);
    for (int k = 0; k < n; k++)
        for (int w = 0; w < 6; w++)
            for (int t = 0; t < 4; t++)
                check_norm(&v[k], ref, counts[t], widths[w], (w + t) % 2 == 0, &r);
    ref_ops.destroy(ref);
}

TEST(OpsRows, GatherRowsIsExact) {
    enum { T = 7, H = 19, R = 3 };
    static const int32_t rows[R] = {0, 4, 6};
    struct rng r = rng_seeded(22);
    struct backend_config config = test_config(2);
    float hidden[T * H], expected[R * H];
    double partial[T * H], scratch[T * H];
    rng_fill(&r, hidden, T * H);
    for (int i = 0; i < T * H; i++)
        partial[i] = (double)rng_float(&r) / 3;
    int n;
    const struct variant *v = variants(&n);
    for (int k = -1; k < n; k++)
        for (int with = 0; with < 2; with++) {
            const struct ops *ops = k < 0 ? &ref_ops : v[k].ops;
            struct backend *b = test_backend(ops, &config);
            float *out = guarded_floats(R * H);
            for (int i = 0; i < R * H; i++) {
                int32_t from = rows[i / H] * H + i % H;
                expected[i] = hidden[from] + (with ? (float)partial[from] : 0);
            }
            memcpy(scratch, partial, sizeof partial); /* it is the op's to change */
            ops->gather_rows(b, out, hidden, with ? scratch : NULL, rows, 0, H);
            ops->gather_rows(b, out, hidden, with ? scratch : NULL, rows, R, H);
            same_bits(ops->name, out, expected, sizeof expected);
            guarded_free(out);
            ops->destroy(b);
        }
}

/* ---- router ---------------------------------------------------------------------------------- */

static struct routing routing_alloc(int32_t T, int32_t E, int32_t K) {
    return (struct routing){
        .topk_ids = guarded_alloc((size_t)(T * K) * sizeof(int32_t)),
        .topk_weights = guarded_floats(T * K),
        .expert_counts = guarded_alloc((size_t)E * sizeof(int32_t)),
        .expert_offsets = guarded_alloc((size_t)(E + 1) * sizeof(int32_t)),
        .permutation = guarded_alloc((size_t)(T * K) * sizeof(int32_t)),
    };
}

static void routing_free(struct routing *r) {
    guarded_free(r->topk_ids);
    guarded_free(r->topk_weights);
    guarded_free(r->expert_counts);
    guarded_free(r->expert_offsets);
    guarded_free(r->permutation);
}

/* counts, offsets and permutation are what topk_ids say. */
static void check_grouping(const struct routing *r, int32_t T, int32_t E, int32_t K) {
    int32_t at = 0;
    for (int32_t e = 0; e < E; e++) {
        EXPECT_INT_EQ(r->expert_offsets[e], at);
        for (int32_t p = 0; p < T * K; p++)
            if (r->topk_ids[p] == e)
                EXPECT_INT_EQ(r->permutation[at++], p);
        EXPECT_INT_EQ(r->expert_counts[e], at - r->expert_offsets[e]);
    }
    EXPECT_INT_EQ(r->expert_offsets[E], T * K);
    EXPECT_INT_EQ(at, T * K);
}

/* The k-th weights are close. The ids are the same: with this seed no choice is within rounding. */
static void check_routing(const struct variant *v, const struct routing *got,
                          const struct routing *expected, int32_t pairs) {
    close_floats(v->ops->name, got->topk_weights, expected->topk_weights, pairs, NULL, 4e-6f);
    for (int32_t p = 0; p < pairs; p++)
        if (got->topk_ids[p] != expected->topk_ids[p])
            FAIL("%s: pair %d goes to expert %d, should be %d (seed %llu)", v->ops->name, p,
                 got->topk_ids[p], expected->topk_ids[p], (unsigned long long)ops_test_seed());
}

TEST(OpsRouter, AgreesWithRefAndGroupsTokens) {
    static const struct router_config configs[] = {
        {8, 2, true, 0, 1},  {5, 5, false, 0, 1},  {16, 3, false, 1.5f, 2.5f},
        {60, 4, true, 0, 1}, {64, 8, false, 0, 1}, {3, 1, true, 1, 0.5f},
    };
    static const int32_t counts[] = {0, 1, 2, 33, 129};
    enum { H = 96 };
    struct rng r = rng_seeded(23);
    int n;
    const struct variant *v = variants(&n);
    for (int c = 0; c < 6; c++)
        for (int i = 0; i < 5; i++) {
            int32_t E = configs[c].num_experts, K = configs[c].num_experts_per_tok, T = counts[i];
            struct backend_config config = test_config(2);
            config.num_experts = E;
            struct backend *ref = test_backend(&ref_ops, &config);
            struct matrix m = matrix_random(&r, dtypes[c % 4], E, H);
            float *x = guarded_floats(T * H);
            rng_fill(&r, x, T * H);
            struct routing expected = routing_alloc(T, E, K);
            struct stored gate = store_all(&ref_ops, &m);
            ref_ops.router(ref, &expected, x, &gate.w, &configs[c], T);
            stored_free(&gate);
            for (int k = 0; k < n; k++) {
                struct backend *b = test_backend(v[k].ops, &config);
                struct routing got = routing_alloc(T, E, K);
                gate = store_all(v[k].ops, &m);
                v[k].ops->router(b, &got, x, &gate.w, &configs[c], T);
                check_routing(&v[k], &got, &expected, T * K);
                check_grouping(&got, T, E, K);
                routing_free(&got);
                stored_free(&gate);
                v[k].ops->destroy(b);
            }
            routing_free(&expected);
            guarded_free(x);
            matrix_free(&m);
            ref_ops.destroy(ref);
        }
}

/* Experts 1, 2 and 4 have the same row, so the same score for every token. */
TEST(OpsRouter, TiesGoToTheLowerExpert) {
    enum { E = 5, H = 8, T = 2 };
    static const struct router_config config = {E, 3, false, 0, 1};
    float w[E * H] = {0}, x[T * H];
    for (int i = 0; i < H; i++) {
        w[1 * H + i] = w[2 * H + i] = w[4 * H + i] = 1;
        x[i] = x[H + i] = 0.5f;
    }
    struct matrix m = {
        .source = {.data = w, .dtype = DTYPE_F32, .rows = E, .cols = H, .scale = 1, .name = "tie"}};
    struct backend_config bc = test_config(2);
    int n;
    const struct variant *v = variants(&n);
    for (int k = 0; k < n; k++) {
        struct backend *b = test_backend(v[k].ops, &bc);
        struct stored gate = store_all(v[k].ops, &m);
        struct routing got = routing_alloc(T, E, 3);
        v[k].ops->router(b, &got, x, &gate.w, &config, T);
        for (int t = 0; t < T; t++) {
            EXPECT_INT_EQ(got.topk_ids[3 * t], 1);
            EXPECT_INT_EQ(got.topk_ids[3 * t + 1], 2);
            EXPECT_INT_EQ(got.topk_ids[3 * t + 2], 4);
        }
        x[0] = NAN; /* a broken token still goes to three different experts */
        v[k].ops->router(b, &got, x, &gate.w, &config, 1);
        EXPECT_INT_EQ(got.expert_offsets[E], 3);
        for (int e = 0; e < E; e++)
            EXPECT_INT_LE(got.expert_counts[e], 1);
        x[0] = 0.5f;
        routing_free(&got);
        stored_free(&gate);
        v[k].ops->destroy(b);
    }
}

/* ---- the choice of kernels ------------------------------------------------------------------- */

TEST(CpuOps, ChoosesTheBestKernelsOrSaysWhatIsMissing) {
    struct error error = {0};
    struct backend_config config = test_config(2);
    const struct ops *ops = cpu_ops(NULL, &error);
    ASSERT_TRUE(ops != NULL);
    EXPECT_TRUE(cpu_ops("auto", &error) == ops);
    struct backend *b = test_backend(ops, &config);
    EXPECT_TRUE(strstr(ops->describe(b), "2 threads") != NULL);
    ops->destroy(b);
    EXPECT_TRUE(cpu_ops("mmx", &error) == NULL);
    EXPECT_INT_EQ(error.code, ERR_CONFIG);
    EXPECT_TRUE(strstr(error.text, "avx512bf16") != NULL); /* names the choices */
    ops->destroy(NULL);
}

TEST(CpuOps, Avx512KernelsAreTestedHere) {
    int n, wide = 0;
    const struct variant *v = variants(&n);
    for (int i = 0; i < n; i++)
        wide += strncmp(v[i].ops->name, "cpu-avx512", 10) == 0;
    if (wide == 0)
        SKIP("neither AVX-512 nor SIMDe here: only the AVX2 kernels were tested");
    EXPECT_TRUE(wide >= 2); /* with and without BF16 pairs */
}
