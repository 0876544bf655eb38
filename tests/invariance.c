#include "tests/invariance.h"

#include <stdio.h>
#include <string.h>

#include "tests/shim.h"

static const char prompt[] = "Once upon a time there was a little fox who lived in a green forest. "
                             "One day the fox found a red ball under a tree and";

static struct request_params request(const struct invariance *v, bool greedy) {
    struct request_params p;
    request_params_default(&p);
    p.max_tokens = v->length;
    p.ignore_eos = true;
    p.sampling.temperature = greedy ? 0 : 1;
    p.sampling.top_p = greedy ? 1 : 0.95f;
    p.sampling.seed = 12345;
    p.has_seed = true;
    return p;
}

static void submit_pair(struct fixture *f, const struct invariance *v) {
    for (int32_t i = 0; i < 2; i++) {
        struct request_params p = request(v, i == 0);
        fixture_submit(f, prompt, &p);
    }
}

/* Results first and first + 1 of the fixture are the pair. */
static void check_pair(const struct fixture *f, int32_t first, const struct invariance *v,
                       const char *what) {
    for (int32_t i = 0; i < 2; i++) {
        EXPECT_INT_EQ(f->result[first + i].num_tokens, v->length);
        if (memcmp(f->result[first + i].tokens, v->tokens[i],
                   (size_t)v->length * sizeof(int32_t)) != 0)
            FAIL("%s: the %s request gave other tokens", what, i == 0 ? "greedy" : "seeded");
    }
}

bool invariance_open(struct invariance *v) {
    struct fixture f;
    struct engine_options o;
    v->options(&o);
    o.enable_prefix_caching = false;
    if (!fixture_open(&f, &o))
        return false;
    for (int32_t i = 0; i < 2; i++) { /* one after the other: each alone */
        struct request_params p = request(v, i == 0);
        fixture_submit(&f, prompt, &p);
        fixture_wait(&f);
        memcpy(v->tokens[i], f.result[i].tokens, (size_t)v->length * sizeof(int32_t));
        EXPECT_INT_EQ(f.result[i].num_tokens, v->length);
    }
    EXPECT_TRUE(memcmp(v->tokens[0], v->tokens[1], (size_t)v->length * sizeof(int32_t)) != 0);
    fixture_close(&f);
    return !shim_failed();
}

/* Tokens of request i of the company: some end before the pair, some after. */
static int32_t company_length(const struct invariance *v, int32_t i) {
    return 5 + 2 * v->length * i / v->company;
}

static void submit_company(struct fixture *f, const struct invariance *v) {
    char text[256];
    for (int32_t i = 0; i < v->company; i++) {
        struct request_params p = request(v, i % 3 == 0);
        p.sampling.seed = (uint64_t)i;
        p.max_tokens = company_length(v, i);
        snprintf(text, sizeof text, "%d+%d=%.*s", i, 7 * i, 4 * i,
                 "the cat and the dog and the bird and the fish went to the big blue lake together "
                 "and they were very happy");
        fixture_submit(f, text, &p);
    }
}

void invariance_check(const struct invariance *v, const struct engine_options *o,
                      const char *what) {
    struct fixture f;
    if (!fixture_open(&f, o))
        return;
    submit_pair(&f, v);
    fixture_wait(&f);
    check_pair(&f, 0, v, what);
    fixture_reset(&f);
    submit_pair(&f, v);
    submit_company(&f, v);
    fixture_wait(&f);
    check_pair(&f, 0, v, what);
    for (int32_t i = 0; i < v->company; i++)
        EXPECT_INT_EQ(f.result[2 + i].num_tokens, company_length(v, i));
    fixture_close(&f);
}

void invariance_check_chunks(const struct invariance *v) {
    static const int32_t chunks[] = {1, 7, 64};
    struct engine_options o;
    char what[64];
    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
        v->options(&o);
        o.max_num_batched_tokens = chunks[i];
        o.max_num_seqs = chunks[i] < 8 ? chunks[i] : 8;
        snprintf(what, sizeof what, "chunks of %d", chunks[i]);
        invariance_check(v, &o, what);
    }
}

void invariance_check_prefix_hit(const struct invariance *v) {
    struct fixture f;
    struct engine_options o;
    v->options(&o);
    if (!fixture_open(&f, &o))
        return;
    submit_pair(&f, v);
    fixture_wait(&f);
    fixture_reset(&f);
    submit_pair(&f, v);
    fixture_wait(&f);
    EXPECT_INT_GT(f.result[0].cached_tokens, 0);
    check_pair(&f, 0, v, "prefix hit");
    fixture_close(&f);
}

void invariance_check_preemption(const struct invariance *v) {
    struct fixture f;
    struct engine_options o;
    struct engine_stats stats;
    v->options(&o);
    o.max_model_len = 128;
    o.num_kv_blocks = v->length / 2; /* 12 sequences of 32 tokens that grow by `length` want more */
    o.max_num_seqs = 16;
    if (!fixture_open(&f, &o))
        return;
    submit_pair(&f, v);
    for (int32_t i = 0; i < 8; i++) { /* others, so that the pair is preempted or preempts */
        struct request_params p = request(v, false);
        p.sampling.seed = (uint64_t)i;
        fixture_submit(&f, prompt, &p);
    }
    submit_pair(&f, v); /* the last admitted is the first preempted */
    fixture_wait(&f);
    engine_stats(f.engine, &stats);
    EXPECT_INT_GT(stats.preemptions_total, 0);
    check_pair(&f, 0, v, "first in a full cache");
    check_pair(&f, 10, v, "last in a full cache");
    EXPECT_INT_EQ(stats.kv_blocks_used, stats.kv_blocks_cached);
    fixture_close(&f);
}
