/* The layout as pure arithmetic: every head, expert, column and vocabulary row is held as often as
 * it should be, for 1..16 ranks and the shapes of the supported models. */
#include <stdio.h>
#include <string.h>

#include "host/layout.h"
#include "tests/shim.h"

static struct model_config shape(int32_t Hq, int32_t Hkv, int32_t E, int32_t moe, int32_t ffn,
                                 int32_t V) {
    return (struct model_config){
        .num_attention_heads = Hq,
        .num_key_value_heads = Hkv,
        .head_dim = 128,
        .router.num_experts = E,
        .moe_intermediate_size = moe,
        .intermediate_size = ffn,
        .vocab_size = V,
    };
}

static int32_t end_of(struct range r) {
    return r.first + r.count;
}

TEST(Layout, SkyworkHeadsOnEightRanks) {
    static const int32_t heads[] = {5, 5, 5, 5, 4, 4, 4, 4};
    struct model_config c = shape(36, 36, 16, 12288, 0, 65532);
    struct layout_options o = {0};
    struct layout l;
    ASSERT_INT_EQ(layout_make(&c, 8, &o, &l, NULL), 0);
    for (int32_t r = 0; r < 8; r++) {
        EXPECT_INT_EQ(l.rank[r].q_heads.count, heads[r]);
        EXPECT_INT_EQ(l.rank[r].experts.count, 16);
        EXPECT_INT_EQ(l.rank[r].expert_columns.count, 1536);
    }
}

TEST(Layout, FewerKvHeadsThanRanksAreReplicated) {
    struct model_config c = shape(32, 4, 0, 0, 768, 1000);
    struct layout_options o = {0};
    struct layout l;
    ASSERT_INT_EQ(layout_make(&c, 8, &o, &l, NULL), 0);
    for (int32_t r = 0; r < 8; r++) {
        EXPECT_INT_EQ(l.rank[r].q_heads.count, 4);
        EXPECT_INT_EQ(l.rank[r].kv_heads.first, r / 2);
        EXPECT_INT_EQ(l.rank[r].kv_heads.count, 1);
        EXPECT_INT_EQ(l.rank[r].kv_counted.count, r % 2 == 0);
    }
}

TEST(Layout, ExpertParallelModes) {
    struct model_config c = shape(36, 36, 16, 12288, 0, 65532);
    struct layout l;
    struct layout_options ep = {.expert_parallel_size = 5}, grid = {.expert_parallel_size = 2};
    ASSERT_INT_EQ(layout_make(&c, 5, &ep, &l, NULL), 0);
    EXPECT_INT_EQ(l.rank[0].experts.count, 4);
    EXPECT_INT_EQ(l.rank[4].experts.count, 3);
    EXPECT_INT_EQ(l.rank[4].expert_columns.count, 12288);
    ASSERT_INT_EQ(layout_make(&c, 6, &grid, &l, NULL), 0);
    EXPECT_INT_EQ(l.rank[3].experts.first, 8);
    EXPECT_INT_EQ(l.rank[3].expert_columns.first, 0);
    EXPECT_INT_EQ(l.rank[3].expert_columns.count, 4096);
}

TEST(Layout, ImpossibleSizesAreRefused) {
    struct model_config c = shape(36, 36, 16, 12288, 0, 65532);
    struct layout_options o = {.expert_parallel_size = 3}, none = {0};
    struct layout l;
    struct error e = {0};
    EXPECT_INT_EQ(layout_make(&c, 8, &o, &l, &e), ERR_CONFIG);
    EXPECT_TRUE(strstr(e.text, "--expert-parallel-size 3") != NULL);
    EXPECT_INT_EQ(layout_make(&c, 0, &none, &l, &e), ERR_CONFIG);
    EXPECT_INT_EQ(layout_make(&c, MAX_RANKS + 1, &none, &l, &e), ERR_CONFIG);
    EXPECT_INT_EQ(layout_make(&c, 8, &none, &l, &e), 0);
}

TEST(Layout, UnitsSufficeForSixteenRanks) {
    static const int32_t columns[] = {12288, 14336, 768, 1408, 1024, 148, 128};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
        int32_t unit = layout_unit(columns[i]);
        EXPECT_INT_GE((columns[i] + unit - 1) / unit, MAX_RANKS);
        EXPECT_INT_EQ(unit & (unit - 1), 0);
    }
    EXPECT_INT_EQ(layout_unit(12288), 128);
    EXPECT_INT_EQ(layout_unit(40), 8);
}

TEST(Layout, ColumnsWithScalesOfBlocksAreCutAtQuartersOfABlock) {
    struct model_config c = shape(6, 2, 4, 200, 300, 101);
    struct layout_options none = {0};
    struct layout l;
    ASSERT_INT_EQ(layout_make(&c, 3, &none, &l, NULL), 0);
    EXPECT_INT_EQ(l.expert_unit, 8);
    EXPECT_INT_EQ(l.ffn_unit, 16);
    c.fp8 = true;
    c.fp8_scaling = FP8_BLOCK;
    ASSERT_INT_EQ(layout_make(&c, 3, &none, &l, NULL), 0);
    EXPECT_INT_EQ(l.expert_unit, 32);
    EXPECT_INT_EQ(l.ffn_unit, 32);
    EXPECT_INT_EQ(l.rank[1].expert_columns.first, 96);
    EXPECT_INT_EQ(l.rank[2].expert_columns.first, 160);
    EXPECT_INT_EQ(l.rank[2].expert_columns.count, 40);
    c.moe_intermediate_size = 768;
    ASSERT_INT_EQ(layout_make(&c, 8, &none, &l, NULL), 0);
    EXPECT_INT_EQ(l.rank[5].expert_columns.count, 96);
    c.moe_intermediate_size = 12288;
    ASSERT_INT_EQ(layout_make(&c, 8, &none, &l, NULL), 0);
    EXPECT_INT_EQ(l.expert_unit, 128);
}

/* Ranges of consecutive ranks follow each other without gap or overlap and end at `total`. */
static void check_partition(const struct range *ranges, int32_t n, int32_t total,
                            const char *what) {
    int32_t at = 0, least = total, most = 0;
    for (int32_t i = 0; i < n; i++) {
        if (ranges[i].count > 0 && ranges[i].first != at)
            FAIL("%s: part %d of %d starts at %d, expected %d", what, i, n, ranges[i].first, at);
        at += ranges[i].count;
        least = ranges[i].count < least ? ranges[i].count : least;
        most = ranges[i].count > most ? ranges[i].count : most;
    }
    if (at != total)
        FAIL("%s: %d parts cover %d of %d", what, n, at, total);
    if (most - least > 128)
        FAIL("%s: parts from %d to %d", what, least, most);
}

static void check_shape(const struct model_config *c, int32_t n, int32_t ep) {
    struct layout_options o = {.expert_parallel_size = ep};
    struct layout l;
    struct range q[MAX_RANKS], v[MAX_RANKS], f[MAX_RANKS], kv[MAX_RANKS];
    struct error e = {0};
    ASSERT_INT_EQ(layout_make(c, n, &o, &l, NULL), 0);
    if (layout_check(&l, c, &e) != 0)
        FAIL("%d ranks, %d groups: %s", n, ep, e.text);
    int32_t group = c->num_attention_heads / c->num_key_value_heads;
    int64_t held = 0;
    for (int32_t r = 0; r < n; r++) {
        const struct rank_layout *k = &l.rank[r];
        q[r] = k->q_heads;
        v[r] = k->vocab;
        f[r] = k->ffn_columns;
        kv[r] = k->kv_counted;
        held += (int64_t)k->experts.count * k->expert_columns.count;
        for (int32_t h = k->q_heads.first; h < end_of(k->q_heads); h++) {
            EXPECT_INT_GE(h / group, k->kv_heads.first);
            EXPECT_INT_LT(h / group, end_of(k->kv_heads));
        }
        EXPECT_INT_EQ(k->expert_columns.first % l.expert_unit, 0);
        EXPECT_INT_EQ(k->ffn_columns.first % l.ffn_unit, 0);
    }
    check_partition(q, n, c->num_attention_heads, "query heads");
    check_partition(kv, n, c->num_key_value_heads, "counted KV heads");
    check_partition(v, n, c->vocab_size, "vocabulary");
    check_partition(f, n, c->intermediate_size, "FFN columns");
    EXPECT_INT_EQ(held, (int64_t)c->router.num_experts * c->moe_intermediate_size);
}

TEST(Layout, EverythingIsHeldExactlyOnceOnAnyNumberOfRanks) {
    struct model_config shapes[] = {
        shape(36, 36, 16, 12288, 0, 65532),   /* Skywork-MoE */
        shape(32, 8, 8, 14336, 0, 32000),     /* Mixtral 8x7B */
        shape(48, 8, 8, 16384, 0, 32768),     /* Mixtral 8x22B */
        shape(32, 4, 128, 768, 6144, 151936), /* Qwen3-30B-A3B */
        shape(16, 16, 64, 1024, 0, 50304),    /* OLMoE */
        shape(64, 8, 0, 0, 28672, 128256),    /* Llama-3-70B */
        shape(64, 64, 0, 0, 24576, 152064),   /* Qwen1.5-72B */
        shape(9, 9, 7, 38, 70, 301),          /* a test model: fewer heads and columns than ranks */
        shape(5, 1, 3, 14, 20, 11),
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int32_t n = 1; n <= MAX_RANKS; n++)
            for (int32_t ep = 1; ep <= n; ep++)
                if (n % ep == 0)
                    check_shape(&shapes[i], n, ep);
}
