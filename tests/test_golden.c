/* Every family against the logits and greedy continuations of the published implementations
 * (scripts/make_golden.py), on one rank and on many.
 *
 * Bounds, relative to the standard deviation of the reference logits:
 *   ref       2e-4: both sides compute in float32 from the same stored weights.
 *   cpu       2e-4 too, with a float32 KV cache and float32 activations (avx2, avx512): BF16 and
 * FP8 weights are widened exactly. cpu with BF16 keys and values, or with activations rounded to
 * BF16 (avx512bf16): the root mean square error of a row is at most 0.03 (roundings of 2^-9,
 * through 2 to 4 layers of random weights). A rounding can turn a near tie of the router, which
 * changes the rows that saw that expert for good, so one row in ten may be off by more.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "tests/golden.h"
#include "tests/shim.h"

enum { MAX_PROMPT = 64, MAX_GREEDY = 64 };

/* The greedy continuation of prompt p, each token run on its own; returns its first difference from
 * the reference, or -1. */
static int32_t greedy_difference(struct golden *g, int32_t p) {
    int32_t V = g->config.vocab_size, want[MAX_GREEDY], tokens[MAX_PROMPT + MAX_GREEDY];
    int32_t n = golden_ids(g, p, "tokens", tokens, MAX_PROMPT);
    int32_t m = golden_ids(g, p, "greedy", want, MAX_GREEDY), found = -1;
    float *logits = xmalloc((size_t)MAX_PROMPT * (size_t)V * sizeof *logits);
    golden_run(g, tokens, 0, n, 0, logits);
    int32_t next = golden_argmax(logits + (int64_t)(n - 1) * V, V);
    for (int32_t i = 0; i < m && found < 0; i++) {
        if (next != want[i])
            found = i;
        tokens[n + i] = want[i];
        golden_run(g, tokens, n + i, 1, 0, logits);
        next = golden_argmax(logits, V);
    }
    free(logits);
    return found;
}

/* Every prompt of one model; rounded: by the bound for rounded keys, values or activations. */
static void check_model(const char *name, const struct golden_options *o, bool rounded) {
    struct golden g;
    if (golden_open(&g, name, o)) {
        EXPECT_INT_EQ(golden_num_prompts(&g), 3);
        for (int32_t p = 0; p < golden_num_prompts(&g); p++) {
            int32_t tokens[MAX_PROMPT], n = golden_ids(&g, p, "tokens", tokens, MAX_PROMPT);
            size_t size = (size_t)n * (size_t)g.config.vocab_size;
            float *logits = xmalloc(size * sizeof *logits);
            golden_run(&g, tokens, 0, n, 0, logits);
            double e = golden_relative_error(logits, golden_logits(&g, p), (int64_t)size);
            double off =
                golden_rows_off(logits, golden_logits(&g, p), n, g.config.vocab_size, 0.03);
            if (rounded ? !(off <= 0.1) : !(e <= 2e-4))
                FAIL(
                    "%s on %s, %d ranks, prompt %d: logits off by up to %.3g of their std, %.0f%% of "
                    "the rows by more than 0.03",
                    name, o->ops->name, o->ranks, p, e, 100 * off);
            free(logits);
            int32_t at = rounded ? -1 : greedy_difference(&g, p);
            if (at >= 0)
                FAIL("%s on %s, %d ranks, prompt %d: continuation differs at token %d", name,
                     o->ops->name, o->ranks, p, at);
        }
    }
    golden_close(&g);
}

static void check_all(const struct golden_options *o, bool rounded) {
    int32_t count;
    char **names = golden_names(&count);
    EXPECT_INT_GE(count, 15);
    for (int32_t i = 0; i < count; i++) {
        check_model(names[i], o, rounded);
        free(names[i]);
    }
    free(names);
}

TEST(Golden, RefAgreesWithThePublishedImplementations) {
    check_all(&(struct golden_options){.ops = &ref_ops, .ranks = 1}, false);
}

/* Every way of cutting a model must give one rank's logits to the last bit (ops.h). */
static void check_ranks(const char *name, const struct ops *ops, int32_t ranks, int32_t ep,
                        const float *want, int32_t n, const int32_t *tokens) {
    struct golden g;
    struct golden_options o = {
        .ops = ops, .ranks = ranks, .threads = 2, .expert_parallel_size = ep};
    if (golden_open(&g, name, &o)) {
        size_t bytes = (size_t)n * (size_t)g.config.vocab_size * sizeof(float);
        float *got = xmalloc(bytes);
        golden_run(&g, tokens, 0, n, 0, got);
        if (memcmp(got, want, bytes) != 0)
            FAIL("%s on %s: %d ranks (expert parallel %d) differ from 1 rank by %.3g", name,
                 ops->name, ranks, ep,
                 golden_relative_error(got, want, (int64_t)(bytes / sizeof(float))));
        free(got);
    }
    golden_close(&g);
}

static void check_rank_counts(const char *name, const struct ops *ops) {
    static const int32_t grid[][2] = {{2, 1}, {3, 1}, {5, 1}, {7, 1},
                                      {8, 1}, {3, 3}, {8, 8}, {4, 2}};
    struct golden g;
    struct golden_options o = {.ops = ops, .ranks = 1};
    int32_t tokens[MAX_PROMPT], n = 0;
    float *want = NULL;
    if (golden_open(&g, name, &o)) {
        n = golden_ids(&g, 2, "tokens", tokens, MAX_PROMPT);
        want = xmalloc((size_t)n * (size_t)g.config.vocab_size * sizeof *want);
        golden_run(&g, tokens, 0, n, 0, want);
    }
    golden_close(&g);
    for (size_t i = 0; want && i < sizeof grid / sizeof *grid; i++)
        check_ranks(name, ops, grid[i][0], grid[i][1], want, n, tokens);
    free(want);
}

static void check_all_ranks(const struct ops *ops) {
    int32_t count;
    char **names = golden_names(&count);
    for (int32_t i = 0; i < count; i++) {
        check_rank_counts(names[i], ops);
        free(names[i]);
    }
    free(names);
}

TEST(Golden, RefOnManyRanksIsBitwiseOneRank) {
    check_all_ranks(&ref_ops);
}

/* Ranks of unequal memory, down to one that holds next to nothing. */
static void check_unequal(const struct ops *ops) {
    static const int32_t five[] = {24, 24, 12, 8, 48}, four[] = {30, 1, 9, 2};
    static const struct {
        const char *name;
        int32_t ranks, ep;
        const int32_t *memory;
    } cases[] = {
        {"skywork_moe", 5, 1, five}, {"qwen3_moe", 5, 1, five},
        {"qwen3_moe", 5, 5, five},   {"qwen3_moe", 4, 2, four},
        {"skywork_moe", 4, 1, four}, {"qwen3_moe_fp8_block", 4, 1, four},
        {"llama3", 4, 1, four},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct golden_options o = {.ops = ops, .ranks = 1, .threads = 2};
        int32_t tokens[MAX_PROMPT], n = 0, V = 0;
        float *logits[2] = {0};
        for (int j = 0; j < 2; j++) {
            struct golden g;
            if (golden_open(&g, cases[i].name, &o)) {
                V = g.config.vocab_size;
                n = golden_ids(&g, 2, "tokens", tokens, MAX_PROMPT);
                logits[j] = xcalloc((size_t)n * (size_t)V, sizeof *logits[j]);
                golden_run(&g, tokens, 0, n, 0, logits[j]);
                EXPECT_INT_EQ(layout_check(model_layout(g.model), &g.config, NULL), 0);
                const struct rank_layout *r = model_layout(g.model)->rank;
                if (j == 1) /* it is no even split */
                    EXPECT_INT_GT(
                        r[0].ffn_columns.count + r[0].expert_columns.count * r[0].experts.count,
                        r[3].ffn_columns.count + r[3].expert_columns.count * r[3].experts.count);
            }
            golden_close(&g);
            o.ranks = cases[i].ranks;
            o.expert_parallel_size = cases[i].ep;
            o.memory = cases[i].memory;
        }
        if (logits[0] && logits[1])
            EXPECT_MEM_EQ(logits[1], logits[0], (size_t)n * (size_t)V * sizeof(float));
        free(logits[0]);
        free(logits[1]);
    }
}

TEST(Golden, RefOnRanksOfUnequalMemoryIsBitwiseOneRank) {
    check_unequal(&ref_ops);
}

/* Runs fn for every CPU instruction set of this machine. */
static void for_each_isa(void (*fn)(const struct ops *ops)) {
    static const char *const isas[] = {"avx2", "avx512", "avx512bf16"};
    int32_t ran = 0;
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        struct error error = {0};
        const struct ops *ops = cpu_ops(isas[i], &error);
        if (!ops) {
            printf("    not on this machine: %s\n", error.text);
            continue;
        }
        fn(ops);
        ran++;
    }
    if (ran == 0)
        SKIP("this machine has no instruction set that the cpu backend knows");
}

static void check_cpu(const struct ops *ops) {
    bool rounds_activations = strstr(ops->name, "bf16") != NULL;
    struct golden_options exact = {.ops = ops, .ranks = 1, .threads = 2, .kv_dtype = DTYPE_F32};
    struct golden_options usual = {.ops = ops, .ranks = 1, .threads = 2};
    check_all(&exact, rounds_activations);
    check_all(&usual, true);
}

TEST(Golden, CpuAgreesWithThePublishedImplementations) {
    for_each_isa(check_cpu);
}

TEST(Golden, CpuOnManyRanksIsBitwiseOneRank) {
    for_each_isa(check_all_ranks);
}

TEST(Golden, CpuOnRanksOfUnequalMemoryIsBitwiseOneRank) {
    for_each_isa(check_unequal);
}
