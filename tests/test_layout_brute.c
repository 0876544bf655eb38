/* The layout's choices against every possible one, on models and machines small enough to try all:
 * up to 4 ranks, 6 units of heads, 6 units of columns or experts.
 *
 * What is promised, and compared: a layout is found when there is one; heads are as even as memory
 * allows; given the heads, the largest share of a rank's memory is least, but for a vocabulary row.
 */
#include <stdio.h>
#include <string.h>

#include "host/layout.h"
#include "tests/shim.h"

enum { MOST = 4, CASES = 300 };

/* A number from 0 to n - 1, the same in every run. */
static int32_t draw(uint64_t *state, int32_t n) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((*state >> 33) % (uint64_t)n);
}

/* The next way to cut `total` things into n parts; starts from all in the first part. False after
 * the last. */
static bool next_split(int32_t *parts, int32_t n) {
    int32_t i = n - 2, last = parts[n - 1];
    while (i >= 0 && parts[i] == 0)
        i--;
    if (i < 0)
        return false;
    parts[n - 1] = 0;
    parts[i]--;
    parts[i + 1] = last + 1;
    return true;
}

static void first_split(int32_t *parts, int32_t n, int32_t total) {
    memset(parts, 0, (size_t)n * sizeof *parts);
    parts[0] = total;
}

/* One problem: a model, ranks, and what each unit weighs. */
struct problem {
    struct model_config config;
    struct layout_options options;
    int32_t n, ep, tp;
    int32_t head_units, heads_per_unit;
    int32_t column_units;
    struct layout_sizes sizes;
};

static int64_t rows_that_fit(const struct problem *p, int32_t rank, int64_t load) {
    int64_t room = p->options.memory[rank] - load;
    return room < 0 ? -1 : room / p->sizes.vocab_row;
}

static int64_t attention(const struct problem *p, int32_t first, int32_t units) {
    int32_t group = p->config.num_attention_heads / p->config.num_key_value_heads;
    int32_t q = first * p->heads_per_unit, count = units * p->heads_per_unit, kv = 0;
    for (int32_t h = 0; h < p->config.num_key_value_heads; h++) /* those that it reads */
        kv += q < (h + 1) * group && q + count > h * group && count > 0;
    return count * p->sizes.q_head +
           kv * (p->sizes.kv_head + p->options.kv_tokens * p->sizes.kv_head_token);
}

/* What the search over the rest finds, given heads. */
struct best {
    double share;       /* the least of the largest shares */
    int64_t spare_rows; /* the most vocabulary rows that fit beyond those there are; < 0: no fit */
};

/* The largest share when every vocabulary row has gone to the rank that is least full then. */
static double level(const struct problem *p, int64_t *load) {
    double most = 0;
    for (int32_t v = 0; v < p->config.vocab_size; v++) {
        int32_t to = 0;
        for (int32_t r = 1; r < p->n; r++)
            if ((double)(load[r] + p->sizes.vocab_row) / (double)p->options.memory[r] <
                (double)(load[to] + p->sizes.vocab_row) / (double)p->options.memory[to])
                to = r;
        load[to] += p->sizes.vocab_row;
    }
    for (int32_t r = 0; r < p->n; r++) {
        double share = (double)load[r] / (double)p->options.memory[r];
        most = share > most ? share : most;
    }
    return most;
}

static void weigh(const struct problem *p, const int64_t *heads, const int32_t *experts,
                  int32_t (*columns)[MOST], struct best *out) {
    int64_t load[MOST], rows = 0;
    bool over = false;
    for (int32_t r = 0; r < p->n; r++) {
        int32_t g = r / p->tp;
        load[r] =
            heads[r] + (int64_t)experts[g] * columns[g][r % p->tp] * 8 * p->sizes.expert_column;
        int64_t fit = rows_that_fit(p, r, load[r]);
        over |= fit < 0;
        rows += fit;
    }
    if (!over && rows - p->config.vocab_size > out->spare_rows)
        out->spare_rows = rows - p->config.vocab_size;
    double share = level(p, load);
    out->share = share < out->share ? share : out->share;
}

/* All column splits of all groups from `group` on. */
static void try_columns(const struct problem *p, const int64_t *heads, const int32_t *experts,
                        int32_t (*columns)[MOST], int32_t group, struct best *out) {
    if (group == p->ep) {
        weigh(p, heads, experts, columns, out);
        return;
    }
    first_split(columns[group], p->tp, p->column_units);
    do
        try_columns(p, heads, experts, columns, group + 1, out);
    while (next_split(columns[group], p->tp));
}

static struct best try_all(const struct problem *p, const int32_t *head_units) {
    struct best best = {.share = 1e300, .spare_rows = -1};
    int32_t experts[MOST], columns[MOST][MOST];
    int64_t heads[MOST];
    for (int32_t r = 0, at = 0; r < p->n; at += head_units[r++])
        heads[r] = attention(p, at, head_units[r]) + p->options.fixed[r] + p->sizes.replicated;
    first_split(experts, p->ep, p->config.router.num_experts);
    do
        try_columns(p, heads, experts, columns, 0, &best);
    while (next_split(experts, p->ep));
    return best;
}

static int32_t largest(const int32_t *parts, int32_t n) {
    int32_t most = 0;
    for (int32_t i = 0; i < n; i++)
        most = parts[i] > most ? parts[i] : most;
    return most;
}

/* Heads of KV groups when there are enough, else single query heads. */
static struct problem draw_problem(uint64_t *state, int32_t n, int32_t ep) {
    struct problem p = {.n = n, .ep = ep, .tp = n / ep};
    int32_t group = 1 + draw(state, 2), kv = 1 + draw(state, 6 / group);
    p.column_units = ep == n ? 1 : 1 + draw(state, ep == 1 ? 6 : 3);
    p.config = (struct model_config){
        .num_hidden_layers = 3,
        .hidden_size = 20,
        .num_attention_heads = kv * group,
        .num_key_value_heads = kv,
        .head_dim = 2 * (1 + draw(state, 12)),
        .router.num_experts = 1 + draw(state, 6),
        .router.num_experts_per_tok = 1,
        .layer_is_moe = {1, 1, 1},
        .moe_intermediate_size = 8 * p.column_units,
        .vocab_size = 23 + draw(state, 60),
    };
    bool whole = kv >= n;
    p.heads_per_unit = whole ? group : 1;
    p.head_units = p.config.num_attention_heads / p.heads_per_unit;
    p.options.elements = layout_elements_of(&p.config, DTYPE_NONE);
    p.options.expert_parallel_size = ep;
    p.options.kv_tokens = 16 * draw(state, 4);
    p.sizes = layout_sizes_of(&p.config, &p.options.elements);
    return p;
}

/* Memory for all of it times 0.9 to 1.5, cut into unequal shares. */
static void draw_memory(uint64_t *state, struct problem *p) {
    int64_t all = attention(p, 0, p->head_units) + p->config.vocab_size * p->sizes.vocab_row +
                  (int64_t)p->config.router.num_experts * p->config.moe_intermediate_size *
                      p->sizes.expert_column;
    int32_t weight[MOST], sum = 0, factor = 90 + draw(state, 60);
    bool equal = draw(state, 4) == 0;
    for (int32_t r = 0; r < p->n; r++)
        sum += weight[r] = equal ? 1 : 1 + draw(state, 6);
    for (int32_t r = 0; r < p->n; r++) {
        p->options.fixed[r] = draw(state, 500);
        p->options.memory[r] =
            all * factor / 100 * weight[r] / sum + p->options.fixed[r] + p->sizes.replicated;
    }
}

/* Over all splits of heads: the least of the largest numbers of units with which everything fits,
 * and the same when each rank is to keep a vocabulary row's room. A large number: none does. */
static void search_heads(const struct problem *p, int32_t *least, int32_t *least_roomy) {
    int32_t parts[MOST];
    *least = *least_roomy = 1000;
    first_split(parts, p->n, p->head_units);
    do {
        struct best b = try_all(p, parts);
        int32_t most = largest(parts, p->n);
        if (b.spare_rows >= 0 && most < *least)
            *least = most;
        if (b.spare_rows >= p->n && most < *least_roomy)
            *least_roomy = most;
    } while (next_split(parts, p->n));
}

static void units_of(const struct problem *p, const struct layout *l, int32_t *out) {
    for (int32_t r = 0; r < p->n; r++)
        out[r] = l->rank[r].q_heads.count / p->heads_per_unit;
}

static double largest_share(const struct problem *p, const struct layout *l) {
    double most = 0;
    for (int32_t r = 0; r < p->n; r++) {
        double share = (double)layout_bytes(l, r).total / (double)p->options.memory[r];
        most = share > most ? share : most;
    }
    return most;
}

/* One row in the smallest rank. */
static double row_share(const struct problem *p) {
    double most = 0;
    for (int32_t r = 0; r < p->n; r++) {
        double share = (double)p->sizes.vocab_row / (double)p->options.memory[r];
        most = share > most ? share : most;
    }
    return most;
}

/* Returns whether there was a layout. */
static bool compare(const struct problem *p, bool exact_heads, int number) {
    struct layout l;
    struct error e = {0};
    int32_t units[MOST] = {0}, least, least_roomy;
    int rc = layout_make(&p->config, p->n, &p->options, &l, &e);
    if (!EXPECT_INT_EQ(layout_check(&l, &p->config, NULL), 0))
        return false;
    units_of(p, &l, units);
    double share = largest_share(p, &l), best = try_all(p, units).share;
    if (share > best + row_share(p))
        FAIL("case %d: the largest share is %.4f, not %.4f", number, share, best);
    if (exact_heads) {
        search_heads(p, &least, &least_roomy);
        if (rc != 0 && least_roomy < 1000)
            FAIL("case %d: there is a layout with up to %d heads: %s", number, least_roomy, e.text);
        if (rc == 0 && (largest(units, p->n) > least_roomy || largest(units, p->n) < least))
            FAIL("case %d: up to %d units of heads, %d are enough", number, largest(units, p->n),
                 least_roomy);
    }
    if ((rc == 0) != (share <= 1))
        FAIL("case %d: %d with a share of %.6f: %s", number, rc, share, e.text);
    return rc == 0;
}

static void compare_many(int32_t ep_of(int32_t), bool exact_heads) {
    uint64_t state = 12345;
    int found = 0;
    for (int i = 0; i < CASES && !shim_failed(); i++) {
        int32_t n = exact_heads ? 1 + draw(&state, MOST) : 4;
        struct problem p = draw_problem(&state, n, ep_of(n));
        draw_memory(&state, &p);
        found += compare(&p, exact_heads, i);
    }
    /* Both outcomes are met often. */
    EXPECT_INT_GT(found, CASES / 4);
    EXPECT_INT_LT(found, CASES * 9 / 10);
}

static int32_t one(int32_t n) {
    (void)n;
    return 1;
}
static int32_t all(int32_t n) {
    return n;
}
static int32_t two(int32_t n) {
    (void)n;
    return 2;
}

TEST(LayoutBrute, ColumnsOnUnequalRanks) {
    compare_many(one, true);
}

TEST(LayoutBrute, WholeExpertsOnUnequalRanks) {
    compare_many(all, true);
}

TEST(LayoutBrute, GridsOnUnequalRanks) {
    compare_many(two, false);
}
