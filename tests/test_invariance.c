/* A greedy and a seeded request give the same bytes alone, in company, with any chunking of the
 * prefill, on a prefix-cache hit, after preemption, on one rank and on three, and with one thread
 * and with three. */
#include <stdio.h>
#include <string.h>

#include "tests/engine_fixture.h"
#include "tests/shim.h"

static const char prompt[] = "Once upon a time there was a little fox who lived in a green forest. "
                             "One day the fox found a red ball under a tree and";

enum { COMPANY = 32, LENGTH = 48 };

static struct request_params request(bool greedy) {
    struct request_params p;
    request_params_default(&p);
    p.max_tokens = LENGTH;
    p.ignore_eos = true;
    p.sampling.temperature = greedy ? 0 : 1;
    p.sampling.top_p = greedy ? 1 : 0.95f;
    p.sampling.seed = 12345;
    p.has_seed = true;
    return p;
}

/* The two continuations that every variant must reproduce. */
struct expected {
    int32_t tokens[2][LENGTH];
};

static void submit_pair(struct fixture *f) {
    for (int32_t i = 0; i < 2; i++) {
        struct request_params p = request(i == 0);
        fixture_submit(f, prompt, &p);
    }
}

/* Results 0 and 1 of the fixture are the pair. */
static void check_pair(const struct fixture *f, const struct expected *want, const char *what) {
    for (int32_t i = 0; i < 2; i++) {
        EXPECT_INT_EQ(f->result[i].num_tokens, LENGTH);
        if (memcmp(f->result[i].tokens, want->tokens[i], sizeof want->tokens[i]) != 0)
            FAIL("%s: the %s request gave other tokens", what, i == 0 ? "greedy" : "seeded");
    }
}

static bool make_expected(struct expected *want) {
    struct fixture f;
    struct engine_options o;
    fixture_options(&o);
    o.enable_prefix_caching = false;
    if (!fixture_open(&f, &o))
        return false;
    for (int32_t i = 0; i < 2; i++) { /* one after the other: each alone */
        struct request_params p = request(i == 0);
        fixture_submit(&f, prompt, &p);
        fixture_wait(&f);
        memcpy(want->tokens[i], f.result[i].tokens, sizeof want->tokens[i]);
        EXPECT_INT_EQ(f.result[i].num_tokens, LENGTH);
    }
    EXPECT_TRUE(memcmp(want->tokens[0], want->tokens[1], sizeof want->tokens[0]) != 0);
    fixture_close(&f);
    return !shim_failed();
}

/* The pair on an engine with other options, alone and among others. */
static void check_options(const struct engine_options *o, const struct expected *want,
                          const char *what) {
    struct fixture f;
    char text[256];
    if (!fixture_open(&f, o))
        return;
    submit_pair(&f);
    fixture_wait(&f);
    check_pair(&f, want, what);
    fixture_reset(&f);
    submit_pair(&f);
    for (int32_t i = 0; i < COMPANY; i++) {
        struct request_params p = request(i % 3 == 0);
        p.sampling.seed = (uint64_t)i;
        p.max_tokens = 5 + 3 * i;
        snprintf(text, sizeof text, "%d+%d=%.*s", i, 7 * i, 4 * i,
                 "the cat and the dog and the bird and the fish went to the big blue lake together "
                 "and they were very happy");
        fixture_submit(&f, text, &p);
    }
    fixture_wait(&f);
    check_pair(&f, want, what);
    for (int32_t i = 0; i < COMPANY; i++)
        EXPECT_INT_EQ(f.result[2 + i].num_tokens, 5 + 3 * i);
    fixture_close(&f);
}

TEST(Invariance, SameBytesWhateverTheCompanyChunkingRanksAndThreads) {
    static const int32_t chunks[] = {1, 7, 64};
    struct expected want;
    struct engine_options o;
    char what[64];
    ASSERT_TRUE(make_expected(&want));
    fixture_options(&o);
    check_options(&o, &want, "default options");
    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
        fixture_options(&o);
        o.max_num_batched_tokens = chunks[i];
        o.max_num_seqs = chunks[i] < 8 ? chunks[i] : 8;
        snprintf(what, sizeof what, "chunks of %d", chunks[i]);
        check_options(&o, &want, what);
    }
    fixture_options(&o);
    o.ranks = 3;
    check_options(&o, &want, "3 ranks");
    o.enable_expert_parallel = true;
    check_options(&o, &want, "3 ranks, whole experts");
    fixture_options(&o);
    o.threads = 1;
    check_options(&o, &want, "1 thread");
    o.threads = 3;
    check_options(&o, &want, "3 threads");
}

TEST(Invariance, SameBytesOnAPrefixHit) {
    struct fixture f;
    struct expected want;
    ASSERT_TRUE(make_expected(&want));
    if (!fixture_open(&f, NULL))
        return;
    submit_pair(&f);
    fixture_wait(&f);
    fixture_reset(&f);
    submit_pair(&f);
    fixture_wait(&f);
    EXPECT_INT_GT(f.result[0].cached_tokens, 0);
    check_pair(&f, &want, "prefix hit");
    fixture_close(&f);
}

TEST(Invariance, SameBytesAfterPreemption) {
    struct fixture f;
    struct expected want;
    struct engine_options o;
    struct engine_stats stats;
    ASSERT_TRUE(make_expected(&want));
    fixture_options(&o);
    o.max_model_len = 256;
    o.num_kv_blocks = 24; /* 384 tokens for 10 sequences that grow to about 80 each */
    o.max_num_seqs = 16;
    if (!fixture_open(&f, &o))
        return;
    submit_pair(&f);
    for (int32_t i = 0; i < 8; i++) { /* others, so that the pair is preempted or preempts */
        struct request_params p = request(false);
        p.sampling.seed = (uint64_t)i;
        fixture_submit(&f, prompt, &p);
    }
    submit_pair(&f); /* the last admitted is the first preempted */
    fixture_wait(&f);
    engine_stats(f.engine, &stats);
    EXPECT_INT_GT(stats.preemptions_total, 0);
    check_pair(&f, &want, "first in a full cache");
    for (int32_t i = 0; i < 2; i++)
        EXPECT_MEM_EQ(f.result[10 + i].tokens, want.tokens[i], sizeof want.tokens[0]);
    EXPECT_INT_EQ(stats.kv_blocks_used, stats.kv_blocks_cached);
    fixture_close(&f);
}

TEST(Invariance, SameBytesOnRefRanks) {
    struct engine_options o;
    struct fixture f;
    int32_t first[LENGTH];
    for (int32_t ranks = 1; ranks <= 3; ranks += 2) {
        fixture_options(&o);
        o.device = "ref";
        o.ranks = ranks;
        if (!fixture_open(&f, &o))
            return;
        struct request_params p = request(true);
        p.max_tokens = 12;
        fixture_submit(&f, "27+15=", &p);
        fixture_wait(&f);
        if (ranks == 1)
            memcpy(first, f.result[0].tokens, sizeof first);
        EXPECT_INT_EQ(f.result[0].num_tokens, 12);
        EXPECT_MEM_EQ(f.result[0].tokens, first, 12 * sizeof *first);
        fixture_close(&f);
    }
}
