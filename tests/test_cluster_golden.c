/* Golden models in several processes: logits are, to the last bit, those of one process with one
 * rank, whatever ranks each process has. The processes are this program again, as `golden`. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/group.h"
#include "host/mem.h"
#include "tests/cluster.h"
#include "tests/golden.h"
#include "tests/shim.h"

enum { MAX_TOKENS = 64, SINGLES = 3 };

/* Logits of the second golden prompt, its last tokens one by one, as [count, V]; owned by the
 * caller, NULL after a failure. */
static float *run_prompt(struct golden *g, int32_t *count) {
    int32_t tokens[MAX_TOKENS], V = g->config.vocab_size;
    int32_t n = golden_ids(g, 1, "tokens", tokens, MAX_TOKENS), most = n - SINGLES;
    float *logits = xmalloc((size_t)n * (size_t)V * sizeof *logits);
    golden_run(g, tokens, 0, most, 0, logits);
    for (int32_t i = most; i < n; i++)
        golden_run(g, tokens, i, 1, 0, logits + (int64_t)i * V);
    *count = n;
    return logits;
}

/* Process 0: the model in the group against the model alone. */
static void compare(struct golden *g, const char *name, const struct ops *ops) {
    struct golden alone;
    int32_t n, m;
    if (!golden_open(&alone, name, &(struct golden_options){.ops = ops, .ranks = 1}))
        return;
    float *want = run_prompt(&alone, &n), *got = run_prompt(g, &m);
    if (n != m || memcmp(got, want, (size_t)n * (size_t)g->config.vocab_size * sizeof *want) != 0)
        FAIL("%s: logits differ from those of one process", name);
    free(want);
    free(got);
    golden_close(&alone);
}

/* One model; a group of its own, since those that follow do so until process 0 leaves. */
static void check_model(const char *name, int32_t ranks, int32_t expert_parallel) {
    struct error error = {0};
    struct group *group = NULL;
    struct golden g;
    struct golden_options o = {
        .ops = cpu_ops("auto", &error), .ranks = ranks, .expert_parallel_size = expert_parallel};
    if (!o.ops || group_join(20000000, 10000000, &group, &error) != 0) {
        FAIL("%s", error.text);
        return;
    }
    o.group = group;
    if (golden_open(&g, name, &o)) {
        if (group_rank(group) == 0)
            compare(&g, name, o.ops);
        else if (model_follow(g.model, &error) != 0)
            FAIL("%s: %s", name, error.text);
    }
    golden_close(&g);
    group_leave(group);
}

/* golden EXPERT_PARALLEL RANKS: failures on standard error, and in the exit status. */
PROGRAM(golden) {
    int32_t count, expert_parallel = argc == 3 ? atoi(argv[1]) : 0;
    char **names = golden_names(&count);
    if (argc != 3)
        return 2;
    dup2(STDERR_FILENO, STDOUT_FILENO); /* where failures go */
    for (int32_t i = 0; i < count; i++) {
        check_model(names[i], atoi(argv[2]), expert_parallel);
        free(names[i]);
    }
    free(names);
    return shim_failed();
}

static void check(const char *expert_parallel, int32_t size, const char *const *ranks) {
    struct cluster c;
    struct cluster_options o = {
        .size = size,
        .program = "/proc/self/exe",
        .args = (const char *const[]){"--program=golden", expert_parallel, NULL}};
    for (int32_t i = 0; i < size; i++)
        o.own[i] = ranks[i];
    if (!cluster_start(&c, &o))
        return;
    EXPECT_TRUE(cluster_wait(&c, 0, size - 1, 60000));
    cluster_end(&c);
    for (int32_t i = 0; i < size; i++)
        if (c.status[i] != 0)
            FAIL("process %d of %d: status %d: %s", i, size, c.status[i], cluster_said(&c, i));
}

TEST(ClusterGolden, ProcessesOfOneRankAreBitwiseOneProcess) {
    check("1", 2, (const char *const[]){"1", "1"});
    check("1", 4, (const char *const[]){"1", "1", "1", "1"});
}

TEST(ClusterGolden, ProcessesOfManyRanksAreBitwiseOneProcess) {
    check("1", 2, (const char *const[]){"2", "2"});
    check("1", 3, (const char *const[]){"2", "1", "1"});
    check("1", 3, (const char *const[]){"1", "3", "2"});
}

TEST(ClusterGolden, ProcessesOfWholeExpertsAreBitwiseOneProcess) {
    check("2", 2, (const char *const[]){"1", "1"});
    check("3", 3, (const char *const[]){"1", "1", "1"});
}
