/* What a model on a GPU counts while it serves: by kernels, in recorded steps as in others, and
 * read while they run. (test_model_metrics.c has the same on CPUs, against brute force.) */
#include <string.h>

#include "host/model_metrics.h"
#include "tests/engine_fixture.h"
#include "tests/gpu_fixture.h"
#include "tests/shim.h"

enum { LAYERS = 4, EXPERTS = 8, TOP_K = 2, LENGTH = 6 }; /* of the demo model */

/* Serves two requests of LENGTH tokens; returns the tokens computed. */
static int32_t serve(bool eager, struct model_metrics *m) {
    struct fixture f;
    struct engine_options o;
    struct request_params p;
    int32_t computed = 0;
    fixture_options(&o);
    o.device = "cuda";
    o.num_gpus = 1;
    o.batch_invariant = true;
    o.enforce_eager = eager;
    o.expert_metrics = o.bandwidth_metrics = true;
    request_params_default(&p);
    p.max_tokens = LENGTH;
    p.ignore_eos = true;
    p.sampling.temperature = 0;
    if (!fixture_open(&f, &o))
        return 0;
    for (int32_t i = 0; i < 3; i++) /* alone and together: padded rows, steps of several sizes */
        fixture_submit(&f, i == 0 ? "Once" : "Once upon a time", &p);
    fixture_wait(&f);
    for (int32_t i = 0; i < 3; i++)
        computed += f.result[i].prompt_tokens - f.result[i].cached_tokens + LENGTH - 1;
    engine_model_metrics(f.engine, m);
    fixture_close(&f);
    return computed;
}

TEST(CudaMetrics, RecordedStepsCountTheTokensOfEveryExpert) {
    GPU_OR_SKIP();
    struct model_metrics recorded = {0}, eager = {0};
    int32_t tokens = serve(false, &recorded);
    EXPECT_INT_EQ(serve(true, &eager), tokens);
    ASSERT_TRUE(recorded.expert_tokens != NULL && eager.expert_tokens != NULL);
    EXPECT_INT_EQ(recorded.num_layers, LAYERS);
    EXPECT_INT_EQ(recorded.num_experts, EXPERTS);
    for (int32_t l = 0; l < LAYERS; l++) {
        int64_t sum = 0;
        for (int32_t e = 0; e < EXPERTS; e++)
            sum += recorded.expert_tokens[l * EXPERTS + e];
        EXPECT_INT_EQ(sum, (int64_t)TOP_K * tokens);
    }
    EXPECT_MEM_EQ(recorded.expert_tokens, eager.expert_tokens, LAYERS * EXPERTS * sizeof(int64_t));
    EXPECT_FALSE(recorded.rank[0].has_comm);
    EXPECT_TRUE(recorded.has_bandwidth && recorded.bandwidth_limit > 0);
    EXPECT_INT_GT(recorded.read_bytes, recorded.rank[0].weight_bytes);
    model_metrics_deinit(&recorded);
    model_metrics_deinit(&eager);
}
