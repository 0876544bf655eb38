/* The golden models on a GPU, through the whole backend: against the logits of the published
 * implementations, and against the CPU backend's greedy continuations (gpu_golden.h says how). */
#include <stdlib.h>
#include <string.h>

#include "cuda/cuda_backend.h"
#include "host/model_internal.h"
#include "tests/gpu_fixture.h"
#include "tests/gpu_golden.h"
#include "tests/shim.h"

static const int32_t gpu0[] = {0};

static void for_all_models(void (*fn)(struct golden_pair *p), const struct golden_options *o) {
    int32_t count;
    char **names = golden_names(&count);
    EXPECT_INT_GE(count, 15);
    for (int32_t i = 0; i < count; i++) {
        struct golden_pair p;
        if (golden_pair_open(&p, names[i], o)) {
            fn(&p);
            golden_pair_check_counts(&p);
        }
        golden_pair_close(&p);
        free(names[i]);
    }
    free(names);
}

/* Prompts as the published implementations gave them, prefilled at once. */
static void check_prompts(struct golden_pair *p) {
    for (int32_t i = 0; i < golden_num_prompts(&p->gpu); i++)
        golden_pair_check_prompt(p, i, GOLDEN_PROMPT);
}

TEST(CudaModel, AgreesWithThePublishedImplementations) {
    GPU_OR_SKIP();
    for_all_models(check_prompts, &(struct golden_options){0});
}

TEST(CudaModel, AgreesWithThePublishedImplementationsWhenBatchInvariant) {
    GPU_OR_SKIP();
    for_all_models(check_prompts, &(struct golden_options){.batch_invariant = true});
}

static void check_continuation(struct golden_pair *p) {
    golden_pair_check_greedy(p, GOLDEN_GREEDY);
}

TEST(CudaModel, ContinuesAsRefDoes) {
    GPU_OR_SKIP();
    for_all_models(check_continuation, &(struct golden_options){0});
}

/* ---- the same bits --------------------------------------------------------------------------- */

TEST(CudaModel, RecordedStepsGiveTheBitsOfEagerOnes) {
    GPU_OR_SKIP();
    golden_check_same("mixtral", "recorded and eager", &(struct golden_options){0}, 1,
                      &(struct golden_options){.enforce_eager = true}, 1);
    golden_check_same("llama3", "recorded and eager", &(struct golden_options){0}, 1,
                      &(struct golden_options){.enforce_eager = true}, 1);
}

/* Steps of one token, of which the second would be recorded; is it? */
enum { STEPS = 3 };
static bool is_recorded_after_steps(struct golden *g, const int32_t *tokens, float *out) {
    const struct backend *b = g->model->rank[0].backend;
    for (int32_t i = 0; i < STEPS; i++)
        golden_run(g, tokens, i, 1, 0, out);
    return b->num_recorded == 1 && b->recorded[0].graph != NULL;
}

TEST(CudaModel, StepsAreRecordedOnlyWhereMemoryIsLeft) {
    GPU_OR_SKIP();
    static struct gpu_hogs hogs;
    static float out[2][1024];
    for (int short_of_memory = 0; short_of_memory < 2; short_of_memory++) {
        struct golden_options o = {.ranks = 1, .gpus = gpu0, .fetch = golden_fetch};
        struct golden g;
        int32_t tokens[GOLDEN_PROMPT];
        o.ops = cuda_ops(gpu0, 1, false, NULL);
        ASSERT_TRUE(golden_open(&g, "llama2", &o) && g.config.vocab_size <= 1024);
        ASSERT_TRUE(golden_ids(&g, 2, "tokens", tokens, GOLDEN_PROMPT) >= STEPS);
        if (short_of_memory)
            gpu_take_memory(&hogs, GRAPH_RESERVE_BYTES / 2);
        bool recorded = is_recorded_after_steps(&g, tokens, out[short_of_memory]);
        EXPECT_INT_EQ(recorded, !short_of_memory);
        gpu_give_memory(&hogs);
        golden_close(&g);
    }
    EXPECT_INT_EQ(memcmp(out[0], out[1], sizeof out[0]), 0);
}

TEST(CudaModel, BitsDoNotDependOnChunksWhenBatchInvariant) {
    GPU_OR_SKIP();
    static const char *const names[] = {"deepseek_67b", "qwen3_moe", "skywork_moe_fp8",
                                        "qwen3_moe_fp8_block"};
    const struct golden_options o = {.batch_invariant = true};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        golden_check_same(names[i], "in chunks of 1 and at once", &o, 1, &o, GOLDEN_PROMPT);
        golden_check_same(names[i], "in chunks of 7 and at once", &o, 7, &o, GOLDEN_PROMPT);
    }
}

TEST(CudaModel, TheEmbeddingMayLieInHostMemory) {
    GPU_OR_SKIP();
    golden_check_same("olmoe", "embedding on the host", &(struct golden_options){0}, GOLDEN_PROMPT,
                      &(struct golden_options){.embedding_on_host = true}, GOLDEN_PROMPT);
}

/* Other dtypes of the KV cache: the F16 one rounds less than BF16. E4M3 has 3 bits of mantissa
 * (2^-4 a rounding, 32 times BF16's): a root mean square error of half a standard deviation would
 * be noise rather than rounding. */
static void check_kv(const char *name, enum dtype dtype, double bound) {
    const struct golden_options other = {.kv_dtype = dtype}, usual = {0};
    int64_t n = 0, m = 0;
    float *got = golden_gpu_logits(name, &other, GOLDEN_PROMPT, &n);
    float *want = golden_gpu_logits(name, &usual, GOLDEN_PROMPT, &m);
    EXPECT_INT_EQ(n, m);
    if (got && want) {
        double off = golden_rows_off(got, want, 1, (int32_t)n, bound);
        if (off > 0 || memcmp(got, want, (size_t)n * sizeof *got) == 0)
            FAIL("%s with a KV cache of dtype %d: off by more than %g, or not at all", name,
                 (int)dtype, bound);
    }
    free(got);
    free(want);
}

TEST(CudaModel, KvCacheOfOtherDtypes) {
    GPU_OR_SKIP();
    check_kv("llama2", DTYPE_F16, 0.05);
    check_kv("qwen2", DTYPE_F8_E4M3, 0.5);
}
