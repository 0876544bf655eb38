/* Layouts of the models that we know on machines of any memory, with figures checked by hand. */
#include <stdio.h>
#include <string.h>

#include "host/layout.h"
#include "tests/shim.h"

static const int64_t GIB = (int64_t)1 << 30, MIB = (int64_t)1 << 20;

/* dense: layers without experts, at the front. */
static struct model_config model(int32_t L, int32_t dense, int32_t H, int32_t Hq, int32_t Hkv,
                                 int32_t D, int32_t E, int32_t moe, int32_t ffn, int32_t V) {
    struct model_config c = {
        .num_hidden_layers = L,
        .hidden_size = H,
        .num_attention_heads = Hq,
        .num_key_value_heads = Hkv,
        .head_dim = D,
        .router.num_experts = E,
        .moe_intermediate_size = moe,
        .intermediate_size = ffn,
        .vocab_size = V,
    };
    for (int32_t i = dense; i < L && E > 0; i++)
        c.layer_is_moe[i] = 1;
    return c;
}

static struct model_config skywork_moe_fp8(void) {
    struct model_config c = model(52, 0, 4608, 36, 36, 128, 16, 12288, 0, 65532);
    c.fp8 = true;
    return c;
}

static struct layout_options equal_memory(const struct model_config *c, enum dtype kv,
                                          int64_t memory, int64_t fixed) {
    struct layout_options o = {.elements = layout_elements_of(c, kv)};
    for (int32_t r = 0; r < MAX_RANKS; r++) {
        o.memory[r] = memory;
        o.fixed[r] = fixed;
    }
    return o;
}

/* By hand: experts 16 x 12288 x 3 x 4608 x 52 bytes / 8 = 17.67 GB; a head 4 x 128 x 4608 x 52 =
 * 0.123 GB, five 0.613 GB; router 0.008 GB. The vocabulary's 0.604 GB go to the ranks with four
 * heads, as long as that keeps them below those with five. FP16 KV: 133,120 bytes a token on a rank
 * with five heads. 0.95 x 24564 MiB - 1 GiB - 18.29 GB are left for it: 5.1 GB. */
TEST(LayoutMemory, SkyworkOnEightCardsOf24GB) {
    struct model_config c = skywork_moe_fp8();
    struct layout_options o = equal_memory(&c, DTYPE_F16, 24564 * MIB * 95 / 100, GIB);
    struct layout l;
    struct error e = {0};
    o.kv_tokens = 64 * 8192;
    o.kv_tokens_min = 8192;
    ASSERT_INT_EQ(layout_make(&c, 8, &o, &l, &e), 0);
    for (int32_t r = 0; r < 8; r++) {
        struct layout_bytes b = layout_bytes(&l, r);
        EXPECT_INT_EQ(l.rank[r].q_heads.count, r < 4 ? 5 : 4);
        EXPECT_INT_EQ(l.rank[r].expert_columns.count, 1536);
        EXPECT_NEAR((double)b.experts, 17.67e9, 0.02e9);
        EXPECT_INT_EQ(b.kv_per_token, r < 4 ? 133120 : 106496);
        EXPECT_NEAR((double)b.attention, r < 4 ? 0.613e9 : 0.491e9, 0.001e9);
        EXPECT_INT_EQ(l.rank[r].vocab.count, r < 4 ? 0 : 65532 / 4);
        EXPECT_INT_LE(b.total, l.rank[r].memory);
    }
    EXPECT_NEAR(layout_kv_tokens(&l), 37700, 700);
    EXPECT_INT_EQ(layout_kv_tokens(&l), l.kv_tokens);
    o.elements.kv = 1;
    ASSERT_INT_EQ(layout_make(&c, 8, &o, &l, &e), 0);
    EXPECT_NEAR(layout_kv_tokens(&l), 75400, 1400);
}

/* Without a KV cache to make room for, the vocabulary evens the ranks out exactly. */
TEST(LayoutMemory, VocabularyEvensOutHeads) {
    struct model_config c = skywork_moe_fp8();
    struct layout_options o = equal_memory(&c, DTYPE_F16, 24 * GIB, 0);
    struct layout l;
    ASSERT_INT_EQ(layout_make(&c, 8, &o, &l, NULL), 0);
    /* (604 MB - 4 x 122.7 MB) / 8 more on the ranks with five heads. */
    EXPECT_NEAR(l.rank[0].vocab.count, (65532 - 4 * 13325) / 8.0, 60);
    EXPECT_INT_LE(layout_bytes(&l, 4).total - layout_bytes(&l, 0).total, 2 * 4608);
    EXPECT_INT_LE(layout_bytes(&l, 0).total - layout_bytes(&l, 4).total, 2 * 4608);
}

TEST(LayoutMemory, WhatDoesNotFitIsRefusedWithFigures) {
    struct model_config c = skywork_moe_fp8();
    struct layout_options o = equal_memory(&c, DTYPE_F16, 16 * GIB, GIB);
    struct layout l;
    struct error e = {0};
    EXPECT_INT_EQ(layout_make(&c, 8, &o, &l, &e), ERR_NO_MEMORY);
    EXPECT_TRUE(strstr(e.text, "ranks 0 to 7 need 19.") != NULL);
    EXPECT_TRUE(strstr(e.text, "may use 17.18, 2.") != NULL);
    EXPECT_TRUE(strstr(e.text, "too few; in all ") != NULL);
    EXPECT_TRUE(strstr(e.text, "KV cache") == NULL);
    o = equal_memory(&c, DTYPE_F16, 20 * GIB, GIB);
    o.kv_tokens = 32768;
    EXPECT_INT_EQ(layout_make(&c, 8, &o, &l, &e), ERR_NO_MEMORY);
    EXPECT_TRUE(strstr(e.text, "a KV cache of less than 32768 tokens (--max-model-len") != NULL);
    o.kv_tokens_min = 1024;
    EXPECT_INT_EQ(layout_make(&c, 8, &o, &l, &e), 0);
    EXPECT_INT_LT(l.kv_tokens, 32768);
    EXPECT_INT_GE(l.kv_tokens, 1024);
    o.memory[5] = 0;
    EXPECT_INT_EQ(layout_make(&c, 8, &o, &l, &e), ERR_CONFIG);
    EXPECT_STR_EQ(e.text, "the memory of 7 of 8 ranks is known, not of all");
}

/* Seven ranks: 96 units of columns are 14,14,14,14,14,13,13, 1.47 GB apart. Heads stay
 * 6,5,5,5,5,5,5 while everything fits, and move to the ranks with fewer columns when that makes it
 * fit. */
TEST(LayoutMemory, HeadsAreEvenUntilMemoryIsShort) {
    struct model_config c = skywork_moe_fp8();
    struct layout_options o = equal_memory(&c, DTYPE_F16, 21 * GIB, 0);
    struct layout l;
    struct error e = {0};
    int32_t most = 0;
    o.kv_tokens = 8192;
    ASSERT_INT_EQ(layout_make(&c, 7, &o, &l, &e), 0);
    for (int32_t r = 0; r < 7; r++)
        EXPECT_INT_EQ(l.rank[r].q_heads.count, r == 0 ? 6 : 5);
    o.kv_tokens = 11264;
    ASSERT_INT_EQ(layout_make(&c, 7, &o, &l, &e), 0);
    for (int32_t r = 0; r < 7; r++) {
        EXPECT_INT_LE(layout_bytes(&l, r).total, o.memory[r]);
        for (int32_t s = 0; s < 7; s++)
            if (l.rank[s].expert_columns.count > l.rank[r].expert_columns.count)
                EXPECT_INT_LE(l.rank[s].q_heads.count, l.rank[r].q_heads.count);
        most = l.rank[r].q_heads.count > most ? l.rank[r].q_heads.count : most;
    }
    EXPECT_INT_EQ(most, 8);
    EXPECT_INT_EQ(layout_check(&l, &c, &e), 0);
}

/* The first of eight cards has half a gigabyte less: it becomes one of those with four heads, and
 * all else stays as it was. */
TEST(LayoutMemory, ACardWithADisplayHasAHeadLess) {
    struct model_config c = skywork_moe_fp8();
    struct layout_options o = equal_memory(&c, DTYPE_F16, 23 * GIB, GIB);
    struct layout l;
    o.memory[0] -= 500 * MIB;
    o.kv_tokens = 64 * 8192;
    o.kv_tokens_min = 8192;
    ASSERT_INT_EQ(layout_make(&c, 8, &o, &l, NULL), 0);
    for (int32_t r = 0; r < 8; r++) {
        EXPECT_INT_EQ(l.rank[r].q_heads.count, r > 0 && r < 5 ? 5 : 4);
        EXPECT_INT_EQ(l.rank[r].expert_columns.count, 1536);
    }
}

/* A card of 8 GB among larger ones holds less of everything but heads, and no card is over. */
TEST(LayoutMemory, MixedCardsAreFilledToOneShare) {
    struct model_config c = model(32, 0, 4096, 32, 8, 128, 8, 14336, 0, 32000);
    struct layout_options o = equal_memory(&c, DTYPE_NONE, 0, GIB);
    static const int64_t gib[] = {24, 24, 12, 8, 48};
    struct layout l;
    struct error e = {0};
    c.fp8 = true;
    o.elements = layout_elements_of(&c, DTYPE_NONE);
    for (int32_t r = 0; r < 5; r++)
        o.memory[r] = gib[r] * GIB;
    o.kv_tokens = 32768;
    ASSERT_INT_EQ(layout_make(&c, 5, &o, &l, &e), 0);
    EXPECT_INT_EQ(layout_check(&l, &c, &e), 0);
    double least = 1, most = 0;
    for (int32_t r = 0; r < 5; r++) {
        double share = (double)layout_bytes(&l, r).total / (double)o.memory[r];
        least = share < least ? share : least;
        most = share > most ? share : most;
        EXPECT_INT_EQ(l.rank[r].kv_heads.count, r < 3 ? 2 : 1);
    }
    EXPECT_INT_LT(l.rank[3].expert_columns.count, l.rank[2].expert_columns.count);
    EXPECT_NEAR(most, least, 0.06); /* a unit of columns is 0.4 GB, 0.05 of the smallest card */
    EXPECT_TRUE(most <= 1);
}

/* ---- every family, 1 to 16 ranks ------------------------------------------------------------- */

/* Bytes of everything, once, the fixed ones of each rank included. */
static int64_t all_bytes(const struct model_config *c, const struct layout_options *o, int32_t n) {
    struct layout_sizes s = layout_sizes_of(c, &o->elements);
    int64_t copies =
        c->num_key_value_heads >= n ? c->num_key_value_heads : c->num_key_value_heads + n;
    return c->num_attention_heads * s.q_head +
           copies * (s.kv_head + o->kv_tokens * s.kv_head_token) +
           (int64_t)c->router.num_experts * c->moe_intermediate_size * s.expert_column +
           c->intermediate_size * s.ffn_column + c->vocab_size * s.vocab_row + n * s.replicated;
}

static void check_family(const struct model_config *c, int32_t n, int32_t ep, bool mixed) {
    static const int64_t weights[] = {24, 24, 12, 8, 48};
    struct layout_options o = equal_memory(c, DTYPE_NONE, 0, 0);
    struct layout l;
    struct error e = {0};
    int64_t sum = 0;
    o.expert_parallel_size = ep;
    o.kv_tokens = 4096;
    for (int32_t r = 0; r < n; r++)
        sum += mixed ? weights[r % 5] : 1;
    for (int32_t r = 0; r < n; r++)
        o.memory[r] = 2 * all_bytes(c, &o, n) / sum * (mixed ? weights[r % 5] : 1);
    int rc = layout_make(c, n, &o, &l, &e);
    if (layout_check(&l, c, &e) != 0)
        FAIL("%d heads, %d ranks: %s", c->num_attention_heads, n, e.text);
    /* Whole experts are few on some models: then twice the memory need not be enough. */
    if (rc != 0 && (ep == 1 || c->router.num_experts >= 8 * n))
        FAIL("%d heads, %d ranks, %d groups: %s", c->num_attention_heads, n, ep, e.text);
    int32_t fewest = INT32_MAX, most = 0;
    for (int32_t r = 0; r < n; r++) {
        int32_t heads = l.rank[r].q_heads.count;
        fewest = heads < fewest ? heads : fewest;
        most = heads > most ? heads : most;
        if (rc == 0)
            EXPECT_INT_LE(layout_bytes(&l, r).total, o.memory[r]);
    }
    int32_t unit =
        c->num_key_value_heads >= n ? c->num_attention_heads / c->num_key_value_heads : 1;
    if (!mixed && rc == 0)
        EXPECT_INT_LE(most - fewest, unit);
}

TEST(LayoutMemory, EveryFamilyOnOneToSixteenRanks) {
    const struct model_config models[] = {
        skywork_moe_fp8(),
        model(32, 0, 4096, 32, 8, 128, 8, 14336, 0, 32000),          /* Mixtral 8x7B */
        model(56, 0, 6144, 48, 8, 128, 8, 16384, 0, 32768),          /* Mixtral 8x22B */
        model(64, 0, 6144, 48, 8, 128, 8, 32768, 0, 131072),         /* Grok-1 */
        model(40, 0, 6144, 48, 8, 128, 16, 10752, 0, 100352),        /* DBRX */
        model(60, 1, 5120, 128, 128, 192, 160, 1536, 12288, 102400), /* DeepSeek-V2, expanded KV */
        model(27, 1, 2048, 16, 16, 192, 64, 1408, 10944, 102400),    /* DeepSeek-V2-Lite */
        model(48, 0, 2048, 32, 4, 128, 128, 768, 6144, 151936),      /* Qwen3-30B-A3B */
        model(24, 0, 2880, 64, 8, 64, 32, 2880, 0, 201088),          /* gpt-oss-20b */
        model(36, 0, 2880, 64, 8, 64, 128, 2880, 0, 201088),         /* gpt-oss-120b */
        model(16, 0, 2048, 16, 16, 128, 64, 1024, 0, 50304),         /* OLMoE */
        model(95, 95, 8192, 64, 8, 128, 0, 0, 22016, 102400),        /* DeepSeek-67B */
        model(80, 80, 8192, 64, 64, 128, 0, 0, 24576, 152064),       /* Qwen1.5-72B */
        model(80, 80, 8192, 64, 8, 128, 0, 0, 28672, 128256),        /* Llama-3-70B */
        model(52, 52, 4608, 36, 36, 128, 0, 0, 12288, 65519),        /* Skywork-13B */
    };
    for (size_t i = 0; i < sizeof models / sizeof *models && !shim_failed(); i++)
        for (int32_t n = 1; n <= MAX_RANKS; n++)
            for (int32_t ep = 1; ep <= n; ep++)
                if (n % ep == 0 && (ep == 1 || models[i].router.num_experts > 0)) {
                    check_family(&models[i], n, ep, false);
                    check_family(&models[i], n, ep, true);
                }
}
