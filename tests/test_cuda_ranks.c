/* The golden models on several GPUs: every family, however its heads, experts and columns fall on
 * the ranks, with each engine that adds over them (`--allreduce`).
 *
 * Bounds (gpu_golden.h), by what the sums travel as:
 *   f32   that of one GPU: float32 sums in another order.
 *   bf16  1.5 times that. Each rank's part and then the sum are rounded to bf16, so some fourteen
 *         roundings a layer instead of ten; parts are larger than their sum by up to the square
 *         root of their number.
 *   fp8   E4M3 has 3 bits of mantissa: 2^-4 a rounding, 32 times bf16's, of the four of a layer. A
 *         scale for each 64 columns keeps it from being more. Dense models only: a router would
 *         choose other experts all the time.
 * Rank r has GPU r % (number of GPUs), so that one GPU is enough; NCCL needs one for each rank.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/cuda_backend.h"
#include "cuda/nccl.h"
#include "host/cuda.h"
#include "host/mem.h"
#include "host/model_internal.h"
#include "tests/gpu_fixture.h"
#include "tests/gpu_golden.h"
#include "tests/shim.h"

#define BF16_BOUND (1.5 * GOLDEN_BOUND)
#define F8_BOUND   0.5
enum { TIMEOUT_US = 60 * 1000000 }; /* what waits may take on a busy machine */

static int32_t num_gpus(void) {
    int n = 0;
    return cudaGetDeviceCount(&n) == cudaSuccess ? n : 0;
}

/* NCCL and a GPU for each of so many ranks. */
#define NCCL_OR_SKIP(ranks)                                                                        \
    do {                                                                                           \
        static struct error error;                                                                 \
        if (nccl_open(&error) != 0)                                                                \
            SKIP(error.text);                                                                      \
        if (num_gpus() < (ranks))                                                                  \
            SKIP("NCCL takes a GPU for each rank, and there are fewer than " #ranks);              \
    } while (0)

static struct golden_options on_ranks(int32_t ranks, int32_t ep, const char *engine,
                                      const char *dtype) {
    return (struct golden_options){
        .ranks = ranks,
        .expert_parallel_size = ep,
        .allreduce = engine,
        .allreduce_dtype = dtype,
        .comm_timeout_us = TIMEOUT_US,
    };
}

/* One way to cut a model. */
struct cut {
    const char *model;
    int32_t ranks, ep;
};

/* Prompt and continuation with these options. */
static void check_cut(const char *name, const struct golden_options *o, double bound) {
    struct golden_pair p;
    if (golden_pair_open(&p, name, o)) {
        p.bound = bound;
        golden_pair_check_prompt(&p, 1, GOLDEN_PROMPT);
        golden_pair_check_prompt(&p, 2, 7);
        golden_pair_check_greedy(&p, 6);
        golden_pair_check_counts(&p);
    }
    if (shim_failed())
        FAIL("%s: %d ranks, expert parallel %d, %s, %s", name, o->ranks, o->expert_parallel_size,
             o->allreduce ? o->allreduce : "auto",
             o->allreduce_dtype ? o->allreduce_dtype : "auto");
    golden_pair_close(&p);
}

static void check_cuts(const struct cut *cuts, size_t n, const char *engine, const char *dtype,
                       double bound) {
    for (size_t i = 0; i < n && !shim_failed(); i++) {
        struct golden_options o = on_ranks(cuts[i].ranks, cuts[i].ep, engine, dtype);
        check_cut(cuts[i].model, &o, bound);
    }
}
#define CHECK_CUTS(cuts, engine, dtype, bound)                                                     \
    check_cuts(cuts, sizeof(cuts) / sizeof *(cuts), engine, dtype, bound)

/* ---- every family ---------------------------------------------------------------------------- */

/* Dense: heads and columns. In parentheses heads/KV heads. */
static const struct cut dense[] = {
    {"deepseek_67b", 7, 1}, /* (5/1): two ranks without heads, all others read the one KV head */
    {"llama2", 8, 1},       /* (7/7): one rank without heads */
    {"llama3", 5, 1},       /* (6/2): more ranks than KV heads */
    {"llama31", 2, 1},      /* (9/3) */
    {"qwen2", 3, 1},        /* (11/11): 4, 4, 3; biases */
    {"skywork_13b", 5, 1},  /* (9/9) */
};

/* Whole experts. */
static const struct cut whole[] = {
    {"qwen3_moe", 8, 8},        {"qwen3_moe_fp8_channel", 2, 2}, /* 9 experts on 2 */
    {"qwen3_moe_nonorm", 5, 5},                                  /* 13 on 5 */
    {"skywork_moe", 3, 3},                                       /* 7 on 3 */
    {"skywork_moe_fp8", 7, 7},                                   /* 5 on 7: two without experts */
};

/* Columns of every expert, and grids of both. */
static const struct cut cut_experts[] = {
    {"mixtral", 4, 2},   {"mixtral_sharded", 3, 1}, {"mixtral_swa", 2, 1},
    {"olmoe", 5, 1},     {"olmoe_clip", 8, 2},      {"qwen3_moe_fp8_block", 2, 1},
    {"qwen3_moe", 8, 4}, {"skywork_moe_std", 7, 1},
};

TEST(CudaModelRanks, DenseModelsInFloat32) {
    GPU_OR_SKIP();
    CHECK_CUTS(dense, "staged", "f32", GOLDEN_BOUND);
}

TEST(CudaModelRanks, ExpertParallelModelsInFloat32) {
    GPU_OR_SKIP();
    CHECK_CUTS(whole, "staged", "f32", GOLDEN_BOUND);
}

TEST(CudaModelRanks, ExpertsCutByColumnsAndGridsInFloat32) {
    GPU_OR_SKIP();
    CHECK_CUTS(cut_experts, "staged", "f32", GOLDEN_BOUND);
}

/* A few of them with the other payloads. */
TEST(CudaModelRanks, SumsInBf16) {
    GPU_OR_SKIP();
    static const struct cut cuts[] = {
        {"llama31", 7, 1}, {"mixtral", 4, 2}, {"qwen3_moe", 3, 3}, {"olmoe", 8, 1}};
    CHECK_CUTS(cuts, "staged", "bf16", BF16_BOUND);
}

TEST(CudaModelRanks, SumsInFp8) {
    GPU_OR_SKIP();
    static const struct cut cuts[] = {{"llama2", 3, 1}, {"qwen2", 8, 1}};
    CHECK_CUTS(cuts, "staged", "fp8", F8_BOUND);
}

TEST(CudaModelRanks, AddedByNccl) {
    GPU_OR_SKIP();
    NCCL_OR_SKIP(8);
    static const struct cut exact[] = {
        {"deepseek_67b", 7, 1}, {"qwen3_moe", 8, 8}, {"olmoe", 3, 1}};
    static const struct cut rounded[] = {{"llama3", 5, 1}, {"mixtral", 4, 2}};
    CHECK_CUTS(exact, "nccl", "f32", GOLDEN_BOUND);
    CHECK_CUTS(rounded, "nccl", "bf16", BF16_BOUND);
}

/* Whichever engines there are, chosen by timing. */
TEST(CudaModelRanks, AddedByWhatIsFaster) {
    GPU_OR_SKIP();
    static const struct cut cuts[] = {{"skywork_moe_std", 3, 3}, {"llama2", 2, 1}};
    CHECK_CUTS(cuts, NULL, NULL, BF16_BOUND);
}

/* ---- GPUs ------------------------------------------------------------------------------------ */

TEST(CudaModelRanks, TwoRanksOnOneGpu) {
    GPU_OR_SKIP();
    static const int32_t gpus[] = {0, 0};
    struct golden_options o = on_ranks(2, 2, "staged", "f32");
    o.gpus = gpus;
    check_cut("mixtral", &o, GOLDEN_BOUND);
}

TEST(CudaModelRanks, GpusInAnyOrder) {
    GPU_OR_SKIP();
    static const int32_t gpus[] = {5, 2, 3};
    if (num_gpus() < 6)
        SKIP("there are fewer than 6 GPUs");
    struct golden_options plain = on_ranks(3, 1, "staged", "bf16"), other = plain;
    other.gpus = gpus;
    golden_check_same("olmoe", "GPUs 5, 2, 3 and 0, 1, 2", &plain, 9, &other, 9);
}

/* ---- the same bits --------------------------------------------------------------------------- */

static void check_recorded(const char *name, int32_t ranks, int32_t ep, const char *engine) {
    struct golden_options recorded = on_ranks(ranks, ep, engine, "bf16"), eager = recorded;
    eager.enforce_eager = true;
    golden_check_same(name, "recorded and eager", &recorded, 1, &eager, 1);
}

TEST(CudaModelRanks, BitsOfOneGpuWhenBatchInvariant) {
    GPU_OR_SKIP();
    NCCL_OR_SKIP(8);
    static const struct {
        int32_t ranks, ep;
        const char *allreduce;
    } cases[] = {{2, 0, "staged"}, {3, 0, "nccl"}, {5, 5, "staged"}, {7, 0, "staged"},
                 {8, 2, "staged"}, {8, 8, "nccl"}, {4, 2, "auto"}};
    const struct golden_options one = {.ranks = 1, .batch_invariant = true};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct golden_options several = {
            .ranks = cases[i].ranks,
            .expert_parallel_size = cases[i].ep,
            .allreduce = cases[i].allreduce,
            .batch_invariant = true,
            .comm_timeout_us = 120000000,
        };
        golden_check_same("qwen3_moe_fp8_block", "one GPU and several", &one, GOLDEN_PROMPT,
                          &several, i % 2 ? 7 : GOLDEN_PROMPT);
    }
}

/* Every golden model, cut in one of several ways each. */
TEST(CudaModelRanks, BitsOfOneGpuForEveryModelWhenBatchInvariant) {
    GPU_OR_SKIP();
    static const int32_t ranks[] = {2, 3, 5, 7, 8};
    const struct golden_options one = {.ranks = 1, .batch_invariant = true};
    int32_t num;
    char **names = golden_names(&num);
    EXPECT_INT_GE(num, 15);
    for (int32_t i = 0; i < num; i++) {
        const struct golden_options several = {
            .ranks = ranks[i % (int32_t)(sizeof ranks / sizeof *ranks)],
            .allreduce = "staged",
            .batch_invariant = true,
            .comm_timeout_us = 120000000,
        };
        golden_check_same(names[i], "one GPU and several", &one, GOLDEN_PROMPT, &several,
                          i % 2 ? 7 : GOLDEN_PROMPT);
        free(names[i]);
    }
    free(names);
}

TEST(CudaModelRanks, RecordedStepsGiveTheBitsOfEagerOnes) {
    GPU_OR_SKIP();
    check_recorded("mixtral", 4, 2, "staged");
    check_recorded("llama3", 5, 1, "staged");
}

TEST(CudaModelRanks, RecordedStepsOfNcclGiveTheBitsOfEagerOnes) {
    GPU_OR_SKIP();
    NCCL_OR_SKIP(3);
    check_recorded("qwen3_moe", 3, 3, "nccl");
}

/* After steps of one token, of which the second is recorded: what the ranks hold of the last one,
 * before their parts of the logits, is the same. */
static void check_agreement(struct golden *g, const int32_t *tokens, int32_t n, bool recorded) {
    static float out[GOLDEN_VOCAB];
    size_t bytes = (size_t)g->config.hidden_size * sizeof(float);
    float *of[MAX_RANKS] = {0};
    for (int32_t i = 0; i < n; i++)
        golden_run(g, tokens, i, 1, 0, out);
    for (int32_t r = 0; r < g->model->num_ranks; r++) {
        const struct rank *rank = &g->model->rank[r];
        const struct backend *b = rank->backend;
        EXPECT_INT_EQ(b->num_recorded == 1 && b->recorded[0].graph, recorded);
        CUDA_CHECK(cudaSetDevice(b->device));
        of[r] = xmalloc(bytes);
        golden_fetch(of[r], rank->last_hidden, bytes);
        if (memcmp(of[r], of[0], bytes) != 0)
            FAIL("rank %d has other hidden states than rank 0, by up to %.3g", r,
                 golden_relative_error(of[r], of[0], g->config.hidden_size));
    }
    EXPECT_TRUE(of[0] && isfinite(of[0][0]));
    for (int32_t r = 0; r < g->model->num_ranks; r++)
        free(of[r]);
    CUDA_CHECK(cudaSetDevice(0));
}

static void check_ranks_agree(const char *engine, const char *dtype, bool eager) {
    struct golden_options o = on_ranks(5, 5, engine, dtype);
    struct golden_pair p;
    int32_t tokens[GOLDEN_PROMPT];
    o.enforce_eager = eager;
    if (golden_pair_open(&p, "qwen3_moe", &o)) {
        golden_ids(&p.gpu, 2, "tokens", tokens, GOLDEN_PROMPT);
        check_agreement(&p.gpu, tokens, 4, !eager);
    }
    golden_pair_close(&p);
}

TEST(CudaModelRanks, AllRanksHaveTheSameHiddenStates) {
    GPU_OR_SKIP();
    check_ranks_agree("staged", "bf16", false);
    check_ranks_agree("staged", "fp8", true);
    check_ranks_agree("staged", "f32", false);
}

TEST(CudaModelRanks, AllRanksHaveTheSameHiddenStatesByNccl) {
    GPU_OR_SKIP();
    NCCL_OR_SKIP(5);
    check_ranks_agree("nccl", "bf16", false);
    check_ranks_agree("nccl", "f32", true);
}
