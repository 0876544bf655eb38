/* A greedy and a seeded request give the same bytes alone, in company, with any chunking of the
 * prefill, on a prefix-cache hit, after preemption, on one rank and on three, and with one thread
 * and with three. */
#include <string.h>

#include "tests/invariance.h"
#include "tests/shim.h"

static struct invariance on_cpu(void) {
    return (struct invariance){.options = fixture_options, .company = 32, .length = 48};
}

TEST(Invariance, SameBytesWhateverTheCompanyChunkingRanksAndThreads) {
    struct invariance v = on_cpu();
    struct engine_options o;
    ASSERT_TRUE(invariance_open(&v));
    fixture_options(&o);
    invariance_check(&v, &o, "default options");
    invariance_check_chunks(&v);
    fixture_options(&o);
    o.ranks = 3;
    invariance_check(&v, &o, "3 ranks");
    o.enable_expert_parallel = true;
    invariance_check(&v, &o, "3 ranks, whole experts");
    fixture_options(&o);
    o.threads = 1;
    invariance_check(&v, &o, "1 thread");
    o.threads = 3;
    invariance_check(&v, &o, "3 threads");
}

TEST(Invariance, SameBytesOnAPrefixHit) {
    struct invariance v = on_cpu();
    ASSERT_TRUE(invariance_open(&v));
    invariance_check_prefix_hit(&v);
}

TEST(Invariance, SameBytesAfterPreemption) {
    struct invariance v = on_cpu();
    ASSERT_TRUE(invariance_open(&v));
    invariance_check_preemption(&v);
}

TEST(Invariance, SameBytesOnRefRanks) {
    struct engine_options o;
    struct fixture f;
    int32_t first[12];
    for (int32_t ranks = 1; ranks <= 3; ranks += 2) {
        fixture_options(&o);
        o.device = "ref";
        o.ranks = ranks;
        if (!fixture_open(&f, &o))
            return;
        struct request_params p;
        request_params_default(&p);
        p.sampling.temperature = 0;
        p.ignore_eos = true;
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
