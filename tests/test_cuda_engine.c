/* The engine on a GPU: with --batch-invariant the same bytes for a request whatever happens around
 * it, as on the CPU; and what it says when it cannot serve a model. */
#include <cuda_runtime_api.h>
#include <string.h>

#include "host/cuda.h"
#include "host/grammar.h"
#include "host/mem.h"
#include "tests/engine_fixture.h"
#include "tests/gpu_fixture.h"
#include "tests/invariance.h"
#include "tests/shim.h"

static void gpu_options(struct engine_options *o) {
    fixture_options(o);
    o->device = "cuda";
    o->gpus[0] = 0;
    o->num_gpus = 1;
    o->batch_invariant = true;
}

static struct invariance on_gpu(void) {
    return (struct invariance){.options = gpu_options, .company = 3, .length = 16};
}

TEST(CudaEngine, SameBytesWhateverTheCompanyAndChunking) {
    GPU_OR_SKIP();
    struct invariance v = on_gpu();
    struct engine_options o;
    ASSERT_TRUE(invariance_open(&v));
    gpu_options(&o);
    invariance_check(&v, &o, "default options");
    o.enforce_eager = true;
    invariance_check(&v, &o, "eager");
    invariance_check_chunks(&v);
}

TEST(CudaEngine, SameBytesOnAPrefixHit) {
    GPU_OR_SKIP();
    struct invariance v = on_gpu();
    ASSERT_TRUE(invariance_open(&v));
    invariance_check_prefix_hit(&v);
}

TEST(CudaEngine, SameBytesAfterPreemption) {
    GPU_OR_SKIP();
    struct invariance v = on_gpu();
    v.length = 32; /* so that the cache fills up */
    ASSERT_TRUE(invariance_open(&v));
    invariance_check_preemption(&v);
}

/* ---- grammars -------------------------------------------------------------------------------- */

/* Masks and biases reach the device, each row its own. */
TEST(CudaEngine, GrammarsAndBiasesHoldOnTheDevice) {
    GPU_OR_SKIP();
    struct fixture f;
    struct engine_options o;
    struct grammar *g = NULL;
    struct error error = {0};
    struct logit_bias bias = {'A', 100};
    json_t *schema = json_loads("{\"enum\":[\"red\",\"green\",12]}", 0, NULL);
    ASSERT_INT_EQ(grammar_create_json_schema(schema, &g, &error), 0);
    gpu_options(&o);
    if (fixture_open(&f, &o)) {
        for (int32_t i = 0; i < 6; i++) {
            struct request_params p;
            request_params_default(&p);
            p.max_tokens = 24;
            p.sampling.temperature = i == 0 ? 0 : 1.5f;
            p.sampling.seed = (uint64_t)i;
            p.has_seed = true;
            p.grammar = i % 2 ? NULL : g;
            p.logit_bias = &bias;
            p.num_logit_bias = 1;
            if (i % 2) {
                p.max_tokens = 3;
                p.ignore_eos = true;
            }
            fixture_submit(&f, "27+15=", &p);
        }
        fixture_wait(&f);
        for (int32_t i = 0; i < 6; i++) {
            const char *text = f.result[i].text.data;
            for (int32_t k = 0; i % 2 && k < 3; k++)
                EXPECT_INT_EQ(f.result[i].tokens[k], bias.token);
            if (i % 2 == 0 && strcmp(text, "\"red\"") != 0 && strcmp(text, "\"green\"") != 0)
                EXPECT_STR_EQ(text, "12");
        }
        fixture_close(&f);
    }
    grammar_release(g);
    json_decref(schema);
}

/* ---- errors ---------------------------------------------------------------------------------- */

/* The engine does not start, and its message has these words. */
static void check_refused(const struct engine_options *o, const char *a, const char *b) {
    struct engine *engine = NULL;
    struct error error = {0};
    EXPECT_INT_NE(engine_create(o, NULL, NULL, &engine, &error), 0);
    if (!strstr(error.text, a) || !strstr(error.text, b))
        FAIL("expected \"%s\" and \"%s\" in: %s", a, b, error.text);
    engine_destroy(engine);
}

TEST(CudaEngine, RefusesWhatItDoesNotHave) {
    GPU_OR_SKIP();
    struct engine_options o;
    gpu_options(&o);
    o.gpus[0] = 99;
    check_refused(&o, "no GPU 99", "--gpus");
    gpu_options(&o);
    o.kv_cache_dtype = "f32";
    check_refused(&o, "--kv-cache-dtype", "BF16");
}

TEST(CudaEngine, SaysWhatDoesNotFit) {
    GPU_OR_SKIP();
    struct engine_options o;
    static struct gpu_hogs hogs;
    gpu_options(&o);
    gpu_take_memory(&hogs, 8 << 20);
    check_refused(&o, "bytes", "--max-num-batched-tokens");
    gpu_give_memory(&hogs);
    gpu_options(&o);
    o.gpu_memory_utilization = 0.001f; /* the weights alone take more */
    check_refused(&o, "too few", "--gpu-memory-utilization");
}
