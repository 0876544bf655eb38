/* layout_check finds each way in which a table can be wrong; replicas of experts and shared
 * experts, which it understands; and the drawing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/layout.h"
#include "tests/shim.h"

/* 10 query heads on 5 KV heads, 6 experts of 70 columns (units of 8), one dense layer of 90. */
static struct model_config small_model(void) {
    return (struct model_config){
        .num_hidden_layers = 3,
        .hidden_size = 52,
        .num_attention_heads = 10,
        .num_key_value_heads = 5,
        .head_dim = 14,
        .router.num_experts = 6,
        .router.num_experts_per_tok = 2,
        .layer_is_moe = {0, 1, 1},
        .moe_intermediate_size = 70,
        .intermediate_size = 90,
        .vocab_size = 301,
    };
}

static const struct layout_options shared = {.shared_intermediate_size = 44};

static bool make(struct layout *l, const struct model_config *c, int32_t n) {
    struct error e = {0};
    return EXPECT_INT_EQ(layout_make(c, n, &shared, l, &e), 0) &&
           EXPECT_INT_EQ(layout_check(l, c, &e), 0);
}

static void expect_wrong(const struct layout *l, const struct model_config *c, const char *text) {
    struct error e = {0};
    EXPECT_INT_EQ(layout_check(l, c, &e), ERR_INTERNAL);
    if (!strstr(e.text, text))
        FAIL("expected '%s' in: %s", text, e.text);
}

TEST(LayoutCheck, EveryKindOfMistakeIsFound) {
    struct model_config c = small_model();
    struct layout good, l;
    ASSERT_TRUE(make(&good, &c, 3));
    l = good;
    l.rank[1].q_heads.count--;
    expect_wrong(&l, &c, "query head 7 is held 0 times");
    l = good;
    l.rank[1].kv_heads.first++;
    expect_wrong(&l, &c, "rank 1 has 4 query heads from 4, 2 KV heads from 3");
    l = good;
    l.rank[0].kv_counted.count = 1;
    expect_wrong(&l, &c, "counted KV head 1 is held 0 times");
    l = good;
    l.rank[2].ffn_columns = l.rank[1].ffn_columns;
    expect_wrong(&l, &c, "is held 2 times");
    l = good;
    l.rank[2].vocab.count++;
    expect_wrong(&l, &c, "rank 2 holds vocabulary row");
    l = good;
    l.rank[1].shared_columns.count = 0;
    expect_wrong(&l, &c, "shared expert column 16 is held 0 times");
    l = good;
    l.rank[0].expert_columns.count += 1;
    expect_wrong(&l, &c, "not whole units of 8");
    l = good;
    l.rank[2].experts.count = 5;
    expect_wrong(&l, &c, "part 0 of expert 5, column");
    l = good;
    l.rank[2].experts.count = 7;
    expect_wrong(&l, &c, "expert 6 of 6");
    l = good;
    l.tp_size = 2;
    expect_wrong(&l, &c, "3 ranks as 1 x 2");
}

/* Expert 4 is busy: ranks 0 and 2 hold its second part, half its columns each. */
TEST(LayoutCheck, ReplicasAreSharesOfTheirOwnParts) {
    struct model_config c = small_model();
    struct layout l, wrong;
    struct error e = {0};
    ASSERT_TRUE(make(&l, &c, 3));
    l.rank[0].replicas[l.rank[0].num_replicas++] =
        (struct expert_share){.expert = 4, .columns = {0, 32}, .part = 1, .parts = 2};
    l.rank[2].replicas[l.rank[2].num_replicas++] =
        (struct expert_share){.expert = 4, .columns = {32, 38}, .part = 1, .parts = 2};
    EXPECT_INT_EQ(layout_check(&l, &c, &e), 0);
    EXPECT_INT_EQ(layout_num_expert_shares(&l, 0), 7);
    EXPECT_INT_EQ(layout_expert_share(&l, 1, 4).parts, 2);
    EXPECT_INT_EQ(layout_expert_share(&l, 1, 3).parts, 1);
    EXPECT_INT_EQ(layout_expert_share(&l, 2, 6).part, 1);

    wrong = l;
    wrong.rank[2].replicas[0].columns.count = 8;
    expect_wrong(&wrong, &c, "part 1 of expert 4, column 40 is held 0 times");
    wrong = l;
    wrong.rank[2].replicas[0].part = 0;
    expect_wrong(&wrong, &c, "rank 2 has part 0 of 2 of expert 4");
    wrong = l;
    wrong.rank[2].replicas[0].parts = 3;
    expect_wrong(&wrong, &c, "rank 2 has part 1 of 3 of expert 4");
    wrong = l;
    wrong.rank[2].replicas[0].expert = 9;
    expect_wrong(&wrong, &c, "expert 9 of 6");
}

TEST(LayoutCheck, ReplicasCountInBytes) {
    struct model_config c = small_model();
    struct layout_options o = {.elements = layout_elements_of(&c, DTYPE_NONE)};
    struct layout l;
    ASSERT_INT_EQ(layout_make(&c, 3, &o, &l, NULL), 0);
    int64_t before = layout_bytes(&l, 1).experts;
    l.rank[1].replicas[l.rank[1].num_replicas++] =
        (struct expert_share){.expert = 0, .columns = {0, 70}, .part = 1, .parts = 2};
    /* Two layers of three matrices with 52 rows or columns of two bytes. */
    EXPECT_INT_EQ(layout_bytes(&l, 1).experts - before, 70 * 2 * 3 * 52 * 2);
}

/* ---- the drawing ----------------------------------------------------------------------------- */

static char *draw(const struct layout *l, const struct model_config *c) {
    struct buffer b = {0};
    layout_draw(l, c, &b);
    buffer_putc(&b, '\0');
    return b.data;
}

TEST(LayoutDraw, WithoutBytesThereIsNoBar) {
    struct model_config c = small_model();
    struct layout l;
    ASSERT_TRUE(make(&l, &c, 3));
    char *text = draw(&l, &c);
    EXPECT_STR_EQ(text, "  rank  heads  KV    experts  columns  shared  FFN     vocabulary\n"
                        "     0  0..3   0..1  0..5     0..23    0..15   0..31   0..100\n"
                        "     1  4..7   2..3  0..5     24..47   16..31  32..63  101..200\n"
                        "     2  8..9   4..4  0..5     48..69   32..43  64..89  201..300\n");
    free(text);
}

/* The bar of a row: its first word that has a letter in it. */
static void copy_bar(const char *text, int row, char *out) {
    for (; row > 0; row--)
        text = strchr(text, '\n') + 1;
    text += strspn(text, " 0123456789");
    size_t len = strspn(text, "aEsFvoK.");
    snprintf(out, 64, "%.*s", (int)len, text);
}

static int letters(const char *bar, char letter) {
    int n = 0;
    for (; *bar; bar++)
        n += *bar == letter;
    return n;
}

TEST(LayoutDraw, BarsAreMemoryToScale) {
    struct model_config c = small_model();
    struct layout_options o = {.elements = layout_elements_of(&c, DTYPE_NONE),
                               .memory = {400000, 200000},
                               .fixed = {20000, 20000},
                               .kv_tokens = 64};
    struct layout l;
    struct error e = {0};
    char wide[64], narrow[64];
    ASSERT_INT_EQ(layout_make(&c, 2, &o, &l, &e), 0);
    char *text = draw(&l, &c);
    copy_bar(text, 1, wide);
    copy_bar(text, 2, narrow);
    struct layout_bytes b = layout_bytes(&l, 0);
    double scale = (double)strlen(wide) / 400000;
    EXPECT_INT_GE(strlen(wide), 24);
    EXPECT_NEAR(strlen(narrow), strlen(wide) / 2.0, 0.5);
    EXPECT_NEAR(letters(wide, 'a'), (double)b.attention * scale, 1);
    EXPECT_NEAR(letters(wide, 'E'), (double)b.experts * scale, 1);
    EXPECT_NEAR(letters(wide, 'F'), (double)b.ffn * scale, 1);
    EXPECT_NEAR(letters(wide, 'v'), (double)b.vocabulary * scale, 1);
    EXPECT_NEAR(letters(wide, 'o'), (double)(b.replicated + b.fixed) * scale, 1);
    EXPECT_NEAR(letters(wide, 'K'), (double)b.kv * scale, 1);
    EXPECT_NEAR(letters(wide, '.'), (double)(400000 - b.total) * scale, 1);
    EXPECT_TRUE(strstr(text, "E experts, F FFN, v vocabulary, o other, K KV cache, . free") !=
                NULL);
    free(text);
}

TEST(LayoutDraw, LinesAreAtMostAHundredColumns) {
    struct model_config c = small_model();
    c.num_attention_heads = c.num_key_value_heads = MAX_HEADS;
    c.router.num_experts = MAX_EXPERTS;
    c.moe_intermediate_size = c.intermediate_size = MAX_INTERMEDIATE;
    c.vocab_size = MAX_VOCAB;
    struct layout_options o = {.elements = layout_elements_of(&c, DTYPE_NONE)};
    struct layout l;
    for (int32_t n = 1; n <= MAX_RANKS; n++) {
        ASSERT_INT_EQ(layout_make(&c, n, &o, &l, NULL), 0);
        char *text = draw(&l, &c), *save = NULL;
        for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
            EXPECT_INT_LE(strlen(line), 100);
        free(text);
    }
}
