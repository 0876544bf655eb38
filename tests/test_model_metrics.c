/* What a model counts while it serves, on the demo model: 4 layers of 8 experts, 2 for a token,
 * hidden 192, I 192, 2 KV heads of 64.
 *
 * The brute force is the ref backend with a router that notes every choice, run over the same
 * tokens as one batch. */
#include <stdlib.h>
#include <string.h>

#include "host/bandwidth.h"
#include "host/mem.h"
#include "host/model.h"
#include "host/model_metrics.h"
#include "tests/engine_fixture.h"
#include "tests/shim.h"

enum { L = 4, E = 8, K = 2, H = 192, I = 192, MAX_TOKENS = 256 };

static const char prompt[] = "Once upon a time there was a little fox who lived in a green forest.";

/* ---- brute force ----------------------------------------------------------------------------- */

static int64_t noted[L][E];
static int32_t noted_calls;

static void noting_router(struct backend *b, struct routing *out, const void *x,
                          const struct weight *gate, const struct router_config *config,
                          int32_t num_tokens) {
    ref_ops.router(b, out, x, gate, config, num_tokens);
    for (int32_t i = 0; i < num_tokens * K; i++)
        noted[noted_calls % L][out->topk_ids[i]]++;
    noted_calls++;
}

/* A model without an engine. */
struct bare {
    struct model_config config;
    struct weights weights;
    struct model *m;
};

/* more: what else the options say. */
static void bare_open(struct bare *b, const struct ops *ops, const struct model_options *more) {
    struct error error = {0};
    struct model_options options = *more;
    options.ops = ops;
    options.num_ranks = more->num_ranks ? more->num_ranks : 1;
    options.threads = options.num_ranks;
    options.max_tokens = options.max_model_len = MAX_TOKENS;
    options.max_seqs = 1;
    options.max_logits = 2;
    options.num_kv_blocks = MAX_TOKENS / KV_BLOCK_SIZE;
    CHECK(model_config_load("configs/demo-moe", &b->config, &error) == 0 &&
              weights_open("configs/demo-moe", &b->config, &b->weights, &error) == 0 &&
              model_create(&b->config, &b->weights, &options, &b->m, &error) == 0,
          "%s", error.text);
}

static void bare_close(struct bare *b) {
    model_destroy(b->m);
    weights_close(&b->weights);
}

/* One step of one sequence of n tokens. */
static int bare_run(struct bare *b, const int32_t *tokens, int32_t n) {
    struct error error = {0};
    int32_t positions[MAX_TOKENS], slots[MAX_TOKENS], table[MAX_TOKENS / KV_BLOCK_SIZE];
    int32_t bounds[] = {0, n}, last = n - 1;
    float *logits;
    for (int32_t i = 0; i < n; i++)
        positions[i] = slots[i] = i;
    for (int32_t i = 0; i < MAX_TOKENS / KV_BLOCK_SIZE; i++)
        table[i] = i;
    const struct batch batch = {.num_tokens = n,
                                .num_seqs = 1,
                                .tokens = tokens,
                                .positions = positions,
                                .cu_seqlens = bounds,
                                .seq_lens = &n,
                                .block_tables = table,
                                .max_blocks = MAX_TOKENS / KV_BLOCK_SIZE,
                                .slot_mapping = slots,
                                .num_logits = 1,
                                .logits_rows = &last};
    return model_run(b->m, &batch, &logits, &error);
}

/* The routing of one sequence of n tokens, into `noted`. */
static void note_routing(const int32_t *tokens, int32_t n) {
    static struct ops noting;
    const struct model_options plain = {0};
    struct bare b;
    noting = ref_ops;
    noting.router = noting_router;
    memset(noted, 0, sizeof noted);
    noted_calls = 0;
    bare_open(&b, &noting, &plain);
    EXPECT_INT_EQ(bare_run(&b, tokens, n), 0);
    EXPECT_INT_EQ(noted_calls, L);
    bare_close(&b);
}

/* ---- an engine that counts ------------------------------------------------------------------- */

static void counting_options(struct engine_options *o) {
    fixture_options(o);
    o->cpu_isa = "avx2"; /* in float32, as ref */
    o->kv_cache_dtype = "f32";
    o->expert_metrics = true;
    o->max_model_len = MAX_TOKENS;
    o->num_kv_blocks = 64;
}

/* Generates `length` tokens; returns how many were computed, which are in `tokens`: all but the
 * last. */
static int32_t generate(struct fixture *f, int32_t length, int32_t tokens[MAX_TOKENS]) {
    struct request_params p;
    struct token_list ids = {0};
    request_params_default(&p);
    p.max_tokens = length;
    p.ignore_eos = true;
    p.sampling.temperature = 0;
    fixture_submit(f, prompt, &p);
    fixture_wait(f);
    tokenizer_encode(engine_tokenizer(f->engine), prompt, strlen(prompt),
                     TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL, &ids);
    int32_t n = (int32_t)ids.len;
    memcpy(tokens, ids.ids, ids.len * sizeof *tokens);
    free(ids.ids);
    EXPECT_INT_EQ(f->result[0].num_tokens, length);
    memcpy(tokens + n, f->result[0].tokens, (size_t)(length - 1) * sizeof *tokens);
    return n + length - 1;
}

/* Counts of the engine against brute force; leaves both for more. */
static void check_counts(const struct engine_options *o, struct model_metrics *m) {
    struct fixture f;
    int32_t tokens[MAX_TOKENS];
    ASSERT_TRUE(fixture_open(&f, o));
    int32_t n = generate(&f, 40, tokens);
    engine_model_metrics(f.engine, m);
    fixture_close(&f);
    note_routing(tokens, n);
    EXPECT_INT_EQ(m->num_layers, L);
    EXPECT_INT_EQ(m->num_experts, E);
    ASSERT_TRUE(m->expert_tokens != NULL);
    for (int32_t l = 0; l < L; l++)
        for (int32_t e = 0; e < E; e++)
            if (!EXPECT_INT_EQ(m->expert_tokens[l * E + e], noted[l][e]))
                FAIL("layer %d, expert %d", l, e);
    int64_t sum = 0;
    for (int32_t i = 0; i < L * E; i++)
        sum += m->expert_tokens[i];
    EXPECT_INT_EQ(sum, (int64_t)L * K * n);
}

TEST(ModelMetrics, ExpertsHaveTheTokensThatRefRoutesToThem) {
    struct engine_options o;
    struct model_metrics m = {0};
    counting_options(&o);
    check_counts(&o, &m);
    EXPECT_INT_EQ(m.num_ranks, 1);
    EXPECT_FALSE(m.rank[0].has_comm);
    EXPECT_NEAR(model_metrics_token_imbalance(&m), 1, 0);
    EXPECT_FALSE(m.has_bandwidth);
    model_metrics_deinit(&m);
}

TEST(ModelMetrics, RefCountsToo) {
    struct engine_options o;
    struct model_metrics m = {0};
    counting_options(&o);
    o.device = "ref";
    check_counts(&o, &m);
    model_metrics_deinit(&m);
}

/* Whole experts: ranks 0 and 1 hold four each. */
TEST(ModelMetrics, RanksHaveTheTokensOfTheirExperts) {
    struct engine_options o;
    struct model_metrics m = {0};
    double half[2] = {0};
    counting_options(&o);
    o.ranks = 2;
    o.enable_expert_parallel = true;
    check_counts(&o, &m);
    EXPECT_INT_EQ(m.num_ranks, 2);
    for (int32_t l = 0; l < L; l++)
        for (int32_t e = 0; e < E; e++)
            half[e / 4] += (double)noted[l][e];
    EXPECT_NEAR(m.rank[0].expert_tokens, half[0], 1e-9);
    EXPECT_NEAR(m.rank[1].expert_tokens, half[1], 1e-9);
    double most = half[0] > half[1] ? half[0] : half[1];
    EXPECT_NEAR(model_metrics_token_imbalance(&m), 2 * most / (half[0] + half[1]), 1e-9);
    EXPECT_TRUE(model_metrics_byte_imbalance(&m) >= 1 && model_metrics_byte_imbalance(&m) < 1.2);
    for (int32_t r = 0; r < 2; r++) {
        EXPECT_TRUE(m.rank[r].has_comm);
        EXPECT_INT_GT(m.rank[r].comm_us[COMM_ALL_REDUCE], 0);
        EXPECT_INT_EQ(m.rank[r].comm_us[COMM_GATHER_LOGITS], 0); /* one process */
        EXPECT_INT_GT(m.rank[r].weight_bytes, 0);
    }
    model_metrics_deinit(&m);
}

/* Columns: 192 in units of 16 or so on 3 ranks, all of which see every token. */
TEST(ModelMetrics, RanksThatShareExpertsHaveTheirShareOfTheTokens) {
    struct engine_options o;
    struct model_metrics m = {0};
    double sum = 0, all = 0;
    counting_options(&o);
    o.ranks = 3;
    check_counts(&o, &m);
    for (int32_t r = 0; r < 3; r++)
        sum += m.rank[r].expert_tokens;
    for (int32_t i = 0; i < L * E; i++)
        all += (double)m.expert_tokens[i];
    EXPECT_NEAR(sum, all, 1e-6);
    EXPECT_NEAR(m.rank[0].expert_tokens, all / 3, all * 0.1);
    model_metrics_deinit(&m);
}

TEST(ModelMetrics, NothingIsCountedUnlessAskedFor) {
    struct engine_options o;
    struct model_metrics m = {0};
    struct fixture f;
    int32_t tokens[MAX_TOKENS];
    counting_options(&o);
    o.expert_metrics = false;
    ASSERT_TRUE(fixture_open(&f, &o));
    generate(&f, 4, tokens);
    engine_model_metrics(f.engine, &m);
    EXPECT_TRUE(m.expert_tokens == NULL);
    EXPECT_FALSE(m.has_bandwidth);
    EXPECT_INT_GT(m.rank[0].weight_bytes, 0);
    fixture_close(&f);
    model_metrics_deinit(&m);
}

/* ---- memory bandwidth ------------------------------------------------------------------------ */

TEST(ModelMetrics, MemoryHasALimit) {
    double limit = bandwidth_measure(2);
    EXPECT_TRUE(limit > 1e8 && limit < 1e13);
}

/* One step of n tokens reads all weights but the experts that no token went to, and the keys and
 * values of n tokens: in float32, 2 heads x 64 x 2, of 4 layers. Experts are bfloat16. */
TEST(ModelMetrics, AStepReadsTheExpertsThatItRoutesTo) {
    enum { EXPERT_BYTES = 3 * I * H * 2, KV_TOKEN_BYTES = L * 2 * 64 * 2 * 4 };
    struct engine_options o;
    struct model_metrics m = {0};
    struct fixture f;
    int32_t tokens[MAX_TOKENS], untouched = 0;
    counting_options(&o);
    o.expert_metrics = false;
    o.bandwidth_metrics = true;
    ASSERT_TRUE(fixture_open(&f, &o));
    int32_t n = generate(&f, 1, tokens);
    engine_model_metrics(f.engine, &m);
    fixture_close(&f);
    note_routing(tokens, n);
    for (int32_t i = 0; i < L * E; i++)
        untouched += noted[i / E][i % E] == 0;
    EXPECT_TRUE(m.expert_tokens == NULL);
    EXPECT_TRUE(m.has_bandwidth);
    EXPECT_TRUE(m.bandwidth_limit > 1e8);
    EXPECT_TRUE(m.bandwidth_utilization > 0);
    EXPECT_INT_EQ(m.read_bytes, m.rank[0].weight_bytes - (int64_t)untouched * EXPERT_BYTES +
                                    (int64_t)n * KV_TOKEN_BYTES);
    model_metrics_deinit(&m);
}

static bool device_answers;

static bool peek(struct backend *b, void *to, const void *from, size_t bytes) {
    (void)b;
    if (device_answers)
        memcpy(to, from, bytes);
    return device_answers;
}

/* A device that is too busy to give its counters: what they are part of is missing, not lower. */
TEST(ModelMetrics, WhatTheDeviceDoesNotTellIsMissing) {
    static const int32_t tokens[] = {5, 6, 7, 8};
    static struct ops busy;
    const struct model_options counting = {.count_experts = true, .measure_bandwidth = true};
    struct model_metrics m = {0};
    struct bare b;
    busy = ref_ops;
    busy.peek = peek;
    bare_open(&b, &busy, &counting);
    EXPECT_INT_EQ(bare_run(&b, tokens, 4), 0);
    device_answers = true;
    model_measure(b.m, &m);
    int64_t bytes = m.read_bytes;
    EXPECT_TRUE(m.has_bandwidth && m.expert_tokens);
    EXPECT_INT_GT(bytes, 0);
    device_answers = false;
    model_measure(b.m, &m);
    EXPECT_FALSE(m.has_bandwidth);
    EXPECT_TRUE(m.expert_tokens == NULL);
    EXPECT_NEAR(m.rank[0].expert_tokens, 0, 0);
    EXPECT_INT_GT(m.rank[0].weight_bytes, 0);
    device_answers = true;
    model_measure(b.m, &m);
    EXPECT_TRUE(m.has_bandwidth);
    EXPECT_INT_EQ(m.read_bytes, bytes);
    model_metrics_deinit(&m);
    bare_close(&b);
}

/* Routers have counted experts when a step fails; all else is counted when it has not.
 * One token takes two experts of each layer, whichever they are. */
TEST(ModelMetrics, AStepThatFailedCountsExpertsOnly) {
    static const int32_t token = 5;
    const struct model_options failing = {.num_ranks = 2,
                                          .measure_bandwidth = true,
                                          .fault = {.kind = FAULT_KILL, .rank = 1, .step = 1}};
    struct model_metrics m = {0};
    struct error error = {0};
    struct bare b;
    bare_open(&b, &ref_ops, &failing);
    EXPECT_INT_EQ(bare_run(&b, &token, 1), ERR_INTERNAL);
    EXPECT_INT_EQ(model_recover(b.m, &error), 0);
    model_measure(b.m, &m);
    int64_t failed = m.read_bytes;
    EXPECT_INT_EQ(bare_run(&b, &token, 1), 0);
    model_measure(b.m, &m);
    EXPECT_INT_GT(m.read_bytes - failed, failed);
    model_metrics_deinit(&m);
    bare_close(&b);
}
