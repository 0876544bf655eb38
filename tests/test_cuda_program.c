/* The program itself on the golden models, on one GPU and on several: log-probabilities of the
 * prompts and greedy continuations over the line protocol, against the published implementations.
 * And the demo model on two GPUs, a replica on each, and on any number of them together.
 *
 * test_cuda_model.c compares whole rows of logits, strictly; here it is the binary, its server and
 * its sampler that are tried. The bounds are those of that file: a logit is off by at most
 * LOGIT_BOUND standard deviations, except in the one row of five that a tie of the router may have
 * changed; and a continuation may leave the reference only where two logits are within twice that.
 */
#include <cuda_runtime_api.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/golden.h"
#include "tests/golden_program.h"
#include "tests/gpu_fixture.h"
#include "tests/program.h"
#include "tests/shim.h"

enum { MAX_PROMPT = 64, MAX_GREEDY = 64, GREEDY = 32 };
static const double LOGIT_BOUND = 0.2;

/* ---- comparisons ----------------------------------------------------------------------------- */

struct reference {
    double std,
        log_sum; /* of a row of logits: its spread, and log of the sum of its exponentials */
};

static struct reference reference_of(const float *logits, int32_t V) {
    double sum = 0, max = (double)logits[golden_argmax(logits, V)];
    for (int32_t v = 0; v < V; v++)
        sum += exp((double)logits[v] - max);
    return (struct reference){.std = golden_std(logits, V), .log_sum = max + log(sum)};
}

/* Are the log-probabilities of a [id, value] list those of a row of logits? */
static bool row_agrees(json_t *top, const float *logits, int32_t V) {
    struct reference r = reference_of(logits, V);
    size_t i;
    json_t *pair;
    bool agrees = json_array_size(top) > 0;
    json_array_foreach(top, i, pair) {
        int32_t id = (int32_t)json_integer_value(json_array_get(pair, 0));
        double want = (double)logits[id] - r.log_sum;
        double d = fabs(json_number_value(json_array_get(pair, 1)) - want);
        agrees = agrees && d <= LOGIT_BOUND * r.std;
    }
    return agrees;
}

struct counts {
    int32_t rows, rows_right, tokens, tokens_compared;
};

static void check_prompt(json_t *done, const float *logits, int32_t V, struct counts *n) {
    json_t *rows = json_object_get(done, "prompt_logprobs"), *row;
    size_t i;
    json_array_foreach(rows, i, row) {
        if (i == 0)
            continue; /* nothing comes before the first token */
        n->rows++;
        n->rows_right +=
            row_agrees(json_object_get(row, "top_logprobs"), logits + (int64_t)(i - 1) * V, V);
    }
}

/* Token lines of the answer against the greedy continuation, which may be left where the best two
 * are not more than `margin` apart. */
static json_t *check_continuation(struct net_client *c, const int32_t *want, double margin,
                                  const char *name, struct counts *n) {
    bool together = true; /* the same tokens so far */
    for (int32_t i = 0;; i++) {
        json_t *line = net_client_json(c), *top = json_object_get(line, "top_logprobs");
        if (!line || json_object_get(line, "done") || json_object_get(line, "error"))
            return line;
        int32_t got = (int32_t)json_integer_value(json_object_get(line, "token"));
        double best = json_number_value(json_array_get(json_array_get(top, 0), 1));
        double second = json_number_value(json_array_get(json_array_get(top, 1), 1));
        if (!json_object_get(line, "token")) { /* text that was held back */
            json_decref(line);
            continue;
        }
        n->tokens++;
        n->tokens_compared += together;
        if (together && i < GREEDY && got != want[i]) {
            together = false;
            if (best - second > margin)
                FAIL("%s: token %d is %d instead of %d", name, i, got, want[i]);
        }
        json_decref(line);
    }
}

static void ask(struct net_client *c, const struct golden *g, const char *name, int32_t prompt,
                struct counts *n) {
    int32_t tokens[MAX_PROMPT], want[MAX_GREEDY], V = g->config.vocab_size;
    int32_t count = golden_ids(g, prompt, "tokens", tokens, MAX_PROMPT);
    const float *logits = golden_logits(g, prompt);
    struct buffer line = {0};
    golden_ids(g, prompt, "greedy", want, MAX_GREEDY);
    buffer_puts(&line, "{\"id\":1,\"temperature\":0,\"ignore_eos\":true,\"logprobs\":2,"
                       "\"prompt_logprobs\":20,\"tokens\":[");
    for (int32_t i = 0; i < count; i++)
        buffer_printf(&line, "%s%d", i > 0 ? "," : "", tokens[i]);
    buffer_printf(&line, "],\"max_tokens\":%d}", GREEDY);
    buffer_append(&line, "", 1);
    net_client_puts(c, line.data);
    buffer_deinit(&line);
    double std = reference_of(logits + (int64_t)(count - 1) * V, V).std;
    double margin = g->config.router.num_experts > 0 ? INFINITY : 2 * LOGIT_BOUND * std;
    json_t *done = check_continuation(c, want, margin, name, n);
    if (!json_object_get(done, "done"))
        FAIL("%s, prompt %d: no answer", name, prompt);
    check_prompt(done, logits, V, n);
    json_decref(done);
}

/* Sums over several GPUs travel in float32, so that the bounds are those of one. */
static void check_model(const char *name, const char *gpus, bool expert_parallel) {
    char dir[320];
    struct golden g;
    struct program p;
    struct net_client c;
    struct counts n = {0};
    if (golden_open(&g, name, &(struct golden_options){.ops = &ref_ops, .ranks = 1})) {
        golden_program_dir(name, dir, sizeof dir);
        const char *const args[] = {"--listen",
                                    "127.0.0.1:0",
                                    "--model",
                                    dir,
                                    "--max-model-len",
                                    "128",
                                    "--gpus",
                                    gpus,
                                    "--allreduce-dtype",
                                    "f32",
                                    "--comm-timeout",
                                    "60",
                                    expert_parallel ? "--enable-expert-parallel" : NULL,
                                    NULL};
        if (program_serve(&p, &c, args)) {
            for (int32_t i = 0; i < golden_num_prompts(&g); i += 2)
                ask(&c, &g, name, i, &n);
            net_client_close(&c);
            kill(p.pid, SIGTERM);
            EXPECT_INT_EQ(program_wait(&p), 0);
        }
        if (n.rows == 0 || n.rows_right < 0.8 * n.rows)
            FAIL("%s: the log-probabilities of %d of %d prompt tokens agree", name, n.rows_right,
                 n.rows);
        if (n.tokens_compared < 0.5 * n.tokens || n.tokens != 2 * GREEDY)
            FAIL("%s: %d tokens, %d of them on the reference's path", name, n.tokens,
                 n.tokens_compared);
    }
    golden_close(&g);
}

TEST(CudaProgram, ServesTheGoldenModels) {
    GPU_OR_SKIP();
    NEEDS_BINARY();
    int32_t count;
    char **names = golden_names(&count);
    EXPECT_INT_GE(count, 15);
    for (int32_t i = 0; i < count; i++) {
        check_model(names[i], "1", false);
        free(names[i]);
    }
    free(names);
}

#define GPUS_OR_SKIP(n)                                                                            \
    do {                                                                                           \
        int devices = 0;                                                                           \
        GPU_OR_SKIP();                                                                             \
        NEEDS_BINARY();                                                                            \
        CUDA_CHECK(cudaGetDeviceCount(&devices));                                                  \
        if (devices < (n))                                                                         \
            SKIP("there are fewer than " #n " GPUs");                                              \
    } while (0)

TEST(CudaProgram, ServesGoldenModelsOnSeveralGpus) {
    GPUS_OR_SKIP(8);
    check_model("llama3", "2", false);
    check_model("qwen3_moe", "8", true);
    check_model("mixtral", "5,2,7", false);
}

/* A program that was built for other architectures than the GPU's says so. Which it was built for
 * is up to the builder; on the stand-ins sm_80 may be one that it was not. */
TEST(CudaProgram, RunsOrSaysThatItHasNoKernels) {
    GPU_OR_SKIP();
    NEEDS_BINARY();
    static const char *const args[] = {
        "generate", "--gpus", "1", "-p", "1+1=", "--max-tokens", "1", "--temperature", "0", NULL};
    const char *kept = getenv("PTXVM_ARCH");
    char line[256], arch[16] = "";
    snprintf(arch, sizeof arch, "%s", kept ? kept : "");
    setenv("PTXVM_ARCH", "80", 1);
    int status = program_run(args, line, sizeof line);
    if (kept)
        setenv("PTXVM_ARCH", arch, 1);
    else
        unsetenv("PTXVM_ARCH");
    EXPECT_TRUE(status == 0 || status == 1); /* 1: with a message; a broken CHECK is 134 */
}

/* Answers of the demo model to a few prompts sent at once, one a line, in the prompts' order. */
static void ask_demo(struct net_client *c, struct buffer *out) {
    enum { PROMPTS = 6 };
    json_t *answers[PROMPTS] = {0};
    char line[160];
    for (int i = 0; i < PROMPTS; i++) {
        snprintf(line, sizeof line,
                 "{\"id\":%d,\"prompt\":\"%d+%d=\",\"max_tokens\":4,\"temperature\":0,"
                 "\"stream\":false}",
                 i, 20 + 7 * i, 15 + i);
        net_client_puts(c, line);
    }
    for (int i = 0; i < PROMPTS; i++) {
        json_t *done = net_client_json(c);
        json_int_t n = json_integer_value(json_object_get(done, "id"));
        ASSERT_TRUE(json_object_get(done, "done") && n >= 0 && n < PROMPTS && !answers[n]);
        answers[n] = done;
    }
    for (int i = 0; i < PROMPTS; i++) {
        buffer_puts(out, json_string_value(json_object_get(answers[i], "text")));
        json_decref(answers[i]);
    }
    buffer_putc(out, 0);
}

/* The demo model's answers with these arguments; to be deinitialised. */
static struct buffer answers_of(const char *const *args) {
    struct buffer text = {0};
    struct program p;
    struct net_client c;
    if (program_serve(&p, &c, args)) {
        ask_demo(&c, &text);
        net_client_close(&c);
        kill(p.pid, SIGTERM);
        EXPECT_INT_EQ(program_wait(&p), 0);
    }
    return text;
}

enum { MACHINES = 6 };

/* Also where GPUs have access to each other's memory, and where they have unequal memory, of which
 * the demo model takes 14 MB. (The switches are the stand-ins'; elsewhere it is once more the
 * same.) */
TEST(CudaProgram, SeveralGpusAnswerAsOneDoes) {
    GPUS_OR_SKIP(8);
    static const char *const gpus[MACHINES] = {"1", "2", "8", "3", "3", "8"};
    static const char *const peers[MACHINES] = {"0", "0", "0", "1", "0", "0"};
    static const char *const memory[MACHINES] = {"2G", "2G",           "2G",
                                                 "2G", "2G,150M,400M", "200M,160M,2G,150M,300M"};
    struct buffer text[MACHINES];
    for (int i = 0; i < MACHINES; i++) {
        setenv("PTXVM_P2P", peers[i], 1);
        setenv("PTXVM_MEMORY", memory[i], 1);
        const char *const args[] = {"--gpus",         gpus[i], "--listen", "127.0.0.1:0",
                                    "--comm-timeout", "60",    NULL};
        text[i] = answers_of(args);
        EXPECT_STR_EQ(text[i].data, text[0].data);
    }
    unsetenv("PTXVM_P2P");
    unsetenv("PTXVM_MEMORY");
    EXPECT_TRUE(text[0].len > 2 && !strncmp(text[0].data, "35", 2));
    for (int i = 0; i < MACHINES; i++)
        buffer_deinit(&text[i]);
}

/* What the demo model says of a prompt, with its log-probabilities to the last digit. */
static char *scores_of(const char *gpus, const char *option) {
    const char *const args[] = {"--gpus",   gpus,          "--batch-invariant",
                                "--listen", "127.0.0.1:0", "--comm-timeout",
                                "60",       option,        NULL};
    struct program p;
    struct net_client c;
    json_t *tokens = json_array();
    if (program_serve(&p, &c, args)) {
        net_client_puts(&c, "{\"id\":1,\"prompt\":\"Once upon a time\",\"max_tokens\":6,"
                            "\"temperature\":0,\"ignore_eos\":true,\"logprobs\":5,"
                            "\"prompt_logprobs\":5}");
        for (json_t *line; (line = net_client_json(&c));) {
            bool done = json_object_get(line, "done") != NULL;
            json_array_append(tokens, json_object_get(line, "top_logprobs"));
            json_array_append(tokens, json_object_get(line, "prompt_logprobs"));
            json_decref(line);
            if (done)
                break;
        }
        net_client_close(&c);
        kill(p.pid, SIGTERM);
        EXPECT_INT_EQ(program_wait(&p), 0);
    }
    EXPECT_INT_EQ(json_array_size(tokens), 7);
    char *text = json_dumps(tokens, JSON_COMPACT);
    json_decref(tokens);
    return text;
}

TEST(CudaProgram, AnyNumberOfGpusGivesTheSameBitsWhenBatchInvariant) {
    GPUS_OR_SKIP(8);
    char *want = scores_of("1", NULL);
    static const char *const gpus[] = {"2", "3", "8"};
    for (int i = 0; i < 3; i++) {
        char *got = scores_of(gpus[i], i == 1 ? "--enable-expert-parallel" : NULL);
        EXPECT_STR_EQ(got, want);
        free(got);
    }
    free(want);
}

TEST(CudaProgram, RefusesGpusThatItDoesNotHave) {
    GPUS_OR_SKIP(1);
    int devices = 0;
    char more[16], line[256];
    CUDA_CHECK(cudaGetDeviceCount(&devices));
    snprintf(more, sizeof more, "%d", devices + 1);
    const char *const args[] = {"generate", "--gpus", more, "-p", "1+1=", NULL};
    EXPECT_INT_EQ(program_run(args, line, sizeof line), 1);
}

TEST(CudaProgram, ReplicasOnTwoGpusAnswerAsOneDoes) {
    GPUS_OR_SKIP(2);
    static const char *const args[2][10] = {
        {"--gpus", "1", "--batch-invariant", "--listen", "127.0.0.1:0", NULL},
        {"--gpus", "1,0", "--replicas", "2", "--batch-invariant", "--listen", "127.0.0.1:0", NULL},
    };
    struct buffer text[2] = {{0}, {0}};
    for (int i = 0; i < 2; i++) {
        struct program p;
        struct net_client c;
        ASSERT_TRUE(program_serve(&p, &c, args[i]));
        ask_demo(&c, &text[i]);
        net_client_puts(&c, "{\"op\":\"stats\"}");
        json_t *stats = net_client_json(&c);
        EXPECT_INT_EQ(json_array_size(json_object_get(stats, "replicas")), i ? 2 : 0);
        EXPECT_TRUE(json_is_true(json_object_get(stats, "healthy")));
        json_decref(stats);
        net_client_close(&c);
        kill(p.pid, SIGTERM);
        EXPECT_INT_EQ(program_wait(&p), 0);
    }
    EXPECT_STR_EQ(text[0].data, text[1].data);
    EXPECT_TRUE(text[0].len > 2 && !strncmp(text[0].data, "35", 2));
    buffer_deinit(&text[0]);
    buffer_deinit(&text[1]);
}
