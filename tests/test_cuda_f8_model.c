/* FP8 activations through the whole backend: the golden model with FP8 weights, against `ref` with
 * the same rounding, the published implementation's logits and bf16 activations.
 *
 * What to expect. A rounding to E4M3 is off by up to 2^-4 of an element, on average about 2.5 % of
 * it, either way, so that a sum of such products is off by about 2.5 % of its usual size; two
 * layers with four such products each, behind residual additions, make it some per cent of the
 * standard deviation of the logits. `ref` rounds at the same places, but float32 values where the
 * GPU has bf16 ones: about one element in ten then falls to the other side of a rounding, so that
 * ref and GPU differ by a fraction of that. As in test_cuda_model.c, a rounding may turn a near tie
 * of the router, which changes a row for good: errors are those of the better half of the rows.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/cuda.h"
#include "host/mem.h"
#include "tests/golden.h"
#include "tests/gpu_fixture.h"
#include "tests/shim.h"

enum { MAX_PROMPT = 64, MAX_ROWS = 3 * MAX_PROMPT };
static const char model_name[] = "skywork_moe_fp8";
static const int32_t gpu0[] = {0};

static void fetch(void *to, const void *from, size_t bytes) {
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}

/* The logits of all prompts, in chunks of `chunk` tokens, or the published ones (options NULL). */
struct run {
    float *logits; /* [rows, V] owned */
    int32_t rows, V;
};

static struct run run_model(const struct golden_options *o, int32_t chunk) {
    struct run r = {0};
    struct golden g;
    if (golden_open(&g, model_name, o ? o : &(struct golden_options){.ops = &ref_ops})) {
        r.V = g.config.vocab_size;
        r.logits = xcalloc((size_t)(MAX_ROWS * r.V), sizeof *r.logits);
        for (int32_t p = 0; p < golden_num_prompts(&g); p++) {
            int32_t tokens[MAX_PROMPT], n = golden_ids(&g, p, "tokens", tokens, MAX_PROMPT);
            float *out = r.logits + (int64_t)r.rows * r.V;
            CHECK(r.rows + n <= MAX_ROWS, "%d rows", r.rows + n);
            for (int32_t done = 0; o && done < n; done += chunk)
                golden_run(&g, tokens, done, n - done < chunk ? n - done : chunk, 0,
                           out + (int64_t)done * r.V);
            if (!o)
                memcpy(out, golden_logits(&g, p), (size_t)(n * r.V) * sizeof *out);
            r.rows += n;
        }
    }
    golden_close(&g);
    return r;
}

static struct run run_gpu(bool fp8, bool batch_invariant, int32_t chunk) {
    struct error error = {0};
    struct golden_options o = {.ops = cuda_ops(gpu0, 1, &error),
                               .gpus = gpu0,
                               .fetch = fetch,
                               .fp8_activations = fp8,
                               .batch_invariant = batch_invariant};
    CHECK(o.ops != NULL, "cuda_ops: %s", error.text);
    return run_model(&o, chunk);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median over rows of the root mean square of a - b, in standard deviations of b's logits. */
static double median_error(const struct run *a, const struct run *b) {
    double errors[MAX_ROWS], mean = 0, var = 0, n = (double)b->rows * b->V;
    EXPECT_INT_EQ(a->rows, b->rows);
    for (int64_t i = 0; i < (int64_t)b->rows * b->V; i++)
        mean += (double)b->logits[i] / n;
    for (int64_t i = 0; i < (int64_t)b->rows * b->V; i++)
        var += ((double)b->logits[i] - mean) * ((double)b->logits[i] - mean) / n;
    for (int32_t row = 0; row < b->rows; row++) {
        double sum = 0;
        for (int64_t i = (int64_t)row * b->V; i < (int64_t)(row + 1) * b->V; i++) {
            double d = (double)a->logits[i] - (double)b->logits[i];
            sum += d * d;
        }
        errors[row] = sqrt(sum / b->V / var);
    }
    qsort(errors, (size_t)b->rows, sizeof *errors, ascending);
    return errors[b->rows / 2];
}

TEST(CudaF8Model, IsWhatRefMakesOfFp8Activations) {
    GPU_OR_SKIP();
    F8_OR_SKIP();
    struct run published = run_model(NULL, 0), bf16 = run_gpu(false, false, MAX_PROMPT);
    struct run fp8 = run_gpu(true, false, MAX_PROMPT);
    struct run ref =
        run_model(&(struct golden_options){.ops = &ref_ops, .fp8_activations = true}, MAX_PROMPT);
    double rounding = median_error(&bf16, &published), noise = median_error(&fp8, &published);
    double ref_noise = median_error(&ref, &published), apart = median_error(&fp8, &ref);
    printf("    of the std of logits, median row: bf16 off by %.4f, FP8 by %.4f (ref %.4f), FP8 on "
           "GPU and ref apart by %.4f\n",
           rounding, noise, ref_noise, apart);
    EXPECT_TRUE(noise > 2 * rounding);                     /* it is FP8 that was computed, */
    EXPECT_TRUE(noise < 0.1);                              /* with no more noise than expected, */
    EXPECT_TRUE(noise < 1.5 * ref_noise && apart < noise); /* of which ref has the same */
    free(published.logits);
    free(bf16.logits);
    free(fp8.logits);
    free(ref.logits);
}

TEST(CudaF8Model, BitsDoNotDependOnChunksWhenBatchInvariant) {
    GPU_OR_SKIP();
    F8_OR_SKIP();
    static const int32_t chunks[] = {1, 7};
    struct run whole = run_gpu(true, true, MAX_PROMPT);
    for (int i = 0; i < 2; i++) {
        struct run parts = run_gpu(true, true, chunks[i]);
        if (memcmp(parts.logits, whole.logits, (size_t)(whole.rows * whole.V) * sizeof(float)) != 0)
            FAIL("chunks of %d give other bits than prompts at once, by up to %.3g", chunks[i],
                 golden_relative_error(parts.logits, whole.logits, (int64_t)whole.rows * whole.V));
        free(parts.logits);
    }
    free(whole.logits);
}

/* On a GPU without FP8 products, and on the CPU, the model is refused with what to change. */
static void check_refused(const struct ops *ops, const char *hint) {
    struct model_config config;
    struct weights weights;
    struct error error = {0};
    struct model *m = NULL;
    char dir[256];
    snprintf(dir, sizeof dir, "%s/golden/%s", shim_data_dir(), model_name);
    ASSERT_INT_EQ(model_config_load(dir, &config, &error), 0);
    ASSERT_INT_EQ(weights_open(dir, &config, &weights, &error), 0);
    const struct model_options o = {.ops = ops,
                                    .world_size = 1,
                                    .threads = 1,
                                    .max_tokens = 8,
                                    .max_seqs = 2,
                                    .max_logits = 8,
                                    .max_model_len = 32,
                                    .num_kv_blocks = 4,
                                    .fp8_activations = true,
                                    .gpus = gpu0,
                                    .gpu_memory_utilization = 0.9f};
    EXPECT_INT_EQ(model_create(&config, &weights, &o, &m, &error), ERR_UNSUPPORTED);
    EXPECT_TRUE(strstr(error.text, hint) != NULL);
    weights_close(&weights);
}

TEST(CudaF8Model, IsRefusedWhereThereAreNoF8Products) {
    GPU_OR_SKIP();
    struct error error = {0};
    const struct ops *cpu = cpu_ops("auto", &error);
    if (cpu)
        check_refused(cpu, "--activation-dtype fp8: the CPU");
    if (gpu_test_info().sm < MIN_F8_SM)
        check_refused(cuda_ops(gpu0, 1, &error), "compute capability 8");
}
