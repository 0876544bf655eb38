/* The program in several processes: answers are byte for byte those of one process with one rank,
 * the end comes in order, and processes that do not belong together say why. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "host/clock.h"
#include "tests/cluster.h"
#include "tests/procs.h"
#include "tests/program.h"
#include "tests/shim.h"

enum { REQUESTS = 9, END_MS = 20000 };

/* Chunks of at most 64 tokens, so that a long prompt takes several; answers that do not depend on
 * what is cached. */
static const char *const serving[] = {"serve",
                                      "--listen=127.0.0.1:0",
                                      "--http=off",
                                      "--threads=1",
                                      "--max-num-batched-tokens=64",
                                      "--no-enable-prefix-caching",
                                      "--comm-timeout=20",
                                      NULL};

/* ---- the same answers ------------------------------------------------------------------------ */

/* What each request was answered, its lines one after the other. */
struct record {
    struct buffer lines[REQUESTS];
};

static void record_deinit(struct record *r) {
    for (int32_t i = 0; i < REQUESTS; i++)
        buffer_deinit(&r->lines[i]);
}

/* Greedy, with a seed, with logprobs, with a prompt of 300 tokens: all at once. */
static void ask(struct net_client *c) {
    struct buffer line = {0};
    for (int32_t i = 0; i < REQUESTS; i++) {
        buffer_clear(&line);
        buffer_printf(&line, "{\"id\":%d,\"max_tokens\":%d,\"ignore_eos\":true,\"%s\":", i,
                      5 + 7 * i, i < 2 ? "tokens" : "prompt");
        if (i < 2) {
            buffer_puts(&line, "[1");
            for (int32_t t = 1; t < 300; t++)
                buffer_printf(&line, ",%d", 300 + (t * t + i) % 900);
            buffer_printf(&line, "],\"temperature\":0,\"prompt_logprobs\":%d}", 2 * i);
        } else {
            buffer_printf(&line, "\"%.*s\",\"logprobs\":%d,\"temperature\":%d,\"seed\":%d}", 4 * i,
                          "Once upon a time there was a little cat that", i, i % 2, i);
        }
        net_client_puts(c, (buffer_putc(&line, '\0'), line.data));
    }
    buffer_deinit(&line);
}

static void collect(struct net_client *c, struct record *r) {
    memset(r, 0, sizeof *r);
    for (int32_t done = 0; done < REQUESTS;) {
        json_t *line = net_client_json(c);
        if (!line) {
            FAIL("the connection ended after %d of %d answers", done, REQUESTS);
            return;
        }
        int32_t id = (int32_t)json_integer_value(json_object_get(line, "id"));
        json_object_del(line, "timing");
        char *text = json_dumps(line, JSON_SORT_KEYS | JSON_COMPACT);
        if (id >= 0 && id < REQUESTS)
            buffer_puts(&r->lines[id], text);
        done += json_object_get(line, "done") || json_object_get(line, "error");
        if (json_object_get(line, "error"))
            FAIL("%s", text);
        free(text);
        json_decref(line);
    }
}

static void compare(const struct record *got, const struct record *want, const char *what) {
    for (int32_t i = 0; i < REQUESTS; i++)
        if (got->lines[i].len != want->lines[i].len ||
            memcmp(got->lines[i].data, want->lines[i].data, want->lines[i].len) != 0)
            FAIL("%s: request %d was answered\n%.*s\nnot\n%.*s", what, i,
                 (int)got->lines[i].len % 600, got->lines[i].data, (int)want->lines[i].len % 600,
                 want->lines[i].data);
}

static void check_ranks(struct net_client *c, int32_t ranks) {
    net_client_puts(c, "{\"op\":\"model\"}");
    json_t *line = net_client_json(c);
    EXPECT_INT_EQ(json_integer_value(json_object_get(line, "ranks")), ranks);
    json_decref(line);
}

/* All end in order. */
static void check_end(struct cluster *c, const char *what) {
    EXPECT_TRUE(cluster_wait(c, 0, c->num_children - 1, END_MS));
    cluster_end(c);
    for (int32_t i = 0; i < c->num_children; i++)
        if (c->status[i] != 0)
            FAIL("%s: process %d: status %d: %s", what, i, c->status[i], cluster_said(c, i));
}

/* SIGTERM to the first process is for all of them. */
static void end_in_order(struct cluster *c, const char *what) {
    kill(c->pid[0], SIGTERM);
    check_end(c, what);
}

static bool run(const struct cluster_options *o, int32_t ranks, struct record *r,
                const char *what) {
    struct cluster c;
    struct net_client client;
    if (!cluster_serve(&c, &client, o))
        return false;
    check_ranks(&client, ranks);
    ask(&client);
    collect(&client, r);
    net_client_close(&client);
    end_in_order(&c, what);
    return true;
}

/* Answers of one process with one rank, computed once. */
static const struct record *reference(void) {
    static struct record r;
    if (!r.lines[0].len)
        run(&(struct cluster_options){.size = 1, .args = serving}, 1, &r, "one process");
    return &r;
}

static void check_answers(const struct cluster_options *o, int32_t ranks, const char *what) {
    const struct record *want = reference();
    struct record got = {0};
    if (run(o, ranks, &got, what))
        compare(&got, want, what);
    record_deinit(&got);
}

#define ONE "--ranks=1"
#define TWO "--ranks=2"

TEST(Cluster, AnswersAreThoseOfOneProcess) {
    NEEDS_BINARY();
    static const struct {
        int32_t size, ranks;
        const char *own[CLUSTER_MAX];
    } cases[] = {
        {2, 2, {ONE, ONE}},           {3, 3, {ONE, ONE, ONE}}, {4, 4, {ONE, ONE, ONE, ONE}},
        {2, 4, {TWO, TWO}},           {3, 4, {TWO, ONE, ONE}}, {3, 6, {ONE, "--ranks=3", TWO}},
        {4, 6, {ONE, TWO, TWO, ONE}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct cluster_options o = {.size = cases[i].size, .args = serving};
        char what[64];
        memcpy(o.own, cases[i].own, sizeof o.own);
        snprintf(what, sizeof what, "%d ranks in %d processes", cases[i].ranks, cases[i].size);
        check_answers(&o, cases[i].ranks, what);
    }
}

/* `serving` and one or two options more. */
static const char *const *serving_with(const char *a, const char *b) {
    static const char *args[sizeof serving / sizeof *serving + 2];
    size_t n = sizeof serving / sizeof *serving - 1;
    memcpy(args, serving, n * sizeof *args);
    args[n] = a;
    args[n + 1] = b;
    args[n + 2] = NULL;
    return args;
}

TEST(Cluster, AnswersOfWholeExpertsAreThoseOfOneProcess) {
    NEEDS_BINARY();
    struct cluster_options o = {
        .size = 3, .args = serving_with("--enable-expert-parallel", NULL), .own = {TWO, ONE, ONE}};
    check_answers(&o, 4, "whole experts");
}

TEST(Cluster, AnswersByMpiAreThoseOfOneProcess) {
    NEEDS_BINARY();
    if (!procs_has_mpi())
        SKIP("needs OpenMPI: libopenmpi-dev and openmpi-bin");
    check_answers(&(struct cluster_options){.size = 4, .args = serving, .mpi = true}, 4,
                  "4 processes by MPI");
    check_answers(
        &(struct cluster_options){.size = 2, .args = serving_with(TWO, NULL), .mpi = true}, 4,
        "2 processes of 2 ranks by MPI");
    check_answers(&(struct cluster_options){.size = 3, .args = serving, .mpi = true}, 3,
                  "3 processes by MPI");
}

/* ---- the end --------------------------------------------------------------------------------- */

/* Running requests end first; the others ignore a signal that is meant for all. */
TEST(Cluster, ASignalToAllDrainsBeforeTheEnd) {
    NEEDS_BINARY();
    struct cluster c;
    struct net_client client;
    struct cluster_options o = {.size = 3, .args = serving, .own = {ONE, TWO, ONE}};
    ASSERT_TRUE(cluster_serve(&c, &client, &o));
    net_client_puts(&client, "{\"id\":1,\"prompt\":\"Once\",\"max_tokens\":150,\"ignore_eos\":true,"
                             "\"temperature\":0}");
    json_decref(net_client_json(&client)); /* it runs */
    for (int32_t i = 2; i >= 0; i--)
        kill(c.pid[i], SIGTERM);
    json_t *done = net_client_until_done(&client, "1", NULL);
    EXPECT_STR_EQ(json_string_value(json_object_get(done, "finish_reason")), "length");
    json_decref(done);
    net_client_close(&client);
    check_end(&c, "a signal to all");
}

/* ---- processes that do not belong together --------------------------------------------------- */

/* All end soon, with a failure (2 where the options are wrong), and each says `why`. */
static void check_refused(const struct cluster_options *o, const char *why) {
    struct cluster c;
    if (!cluster_start(&c, o))
        return;
    EXPECT_TRUE(cluster_wait(&c, 0, o->size - 1, END_MS));
    cluster_end(&c);
    for (int32_t i = 0; i < o->size; i++) {
        EXPECT_TRUE(c.status[i] == 1 || c.status[i] == 2);
        if (!strstr(cluster_said(&c, i), why))
            FAIL("process %d does not say '%s' but: %s", i, why, c.said);
    }
}

TEST(Cluster, ProcessesThatDifferSayInWhat) {
    NEEDS_BINARY();
    static const char *const options[][2] = {
        {"--max-num-seqs=3", "--max-num-seqs not the same"},
        {"--max-num-batched-tokens=65", "--max-num-batched-tokens not the same"},
        {"--kv-cache-dtype=f32", "--kv-cache-dtype not the same"},
        {"--enable-expert-parallel", "--enable-expert-parallel not the same"},
        {"--device=ref", "--device not the same"},
    };
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        check_refused(&(struct cluster_options){.size = 3,
                                                .args = serving,
                                                .own = {NULL, NULL, options[i][0]}},
                      options[i][1]);
}

TEST(Cluster, AnotherConfigJsonIsNamed) {
    NEEDS_BINARY();
    char dir[256], command[1024], option[300];
    snprintf(dir, sizeof dir, "%s/other-model", shim_scratch_dir());
    snprintf(command, sizeof command, "mkdir '%s' && cp '%s'/* '%s' && echo >>'%s/config.json'",
             dir, MOESERVE_DEMO_MODEL, dir, dir);
    ASSERT_INT_EQ(system(command), 0);
    snprintf(option, sizeof option, "--model=%s", dir);
    check_refused(&(struct cluster_options){.size = 2,
                                            .args = serving,
                                            .own = {"--model=" MOESERVE_DEMO_MODEL, option}},
                  "config.json not the same");
}

TEST(Cluster, AProcessThatCannotServeEndsAllWithItsReason) {
    NEEDS_BINARY();
    static const struct {
        const char *own[CLUSTER_MAX], *why;
    } cases[] = {
        {{NULL, "--model=/no/such/model"}, "/no/such/model"},
        {{"--model=/no/such/model"}, "/no/such/model"},
        {{NULL, "--fault=fall@1:2"}, "--fault fall@1:2"},
        {{"--listen=256.0.0.1:0"}, "--listen 256.0.0.1:0"},
        {{NULL, "--replicas=2"}, "--replicas 2: replicas are of one process"},
        {{"--ranks=9", "--ranks=8"}, "17 ranks in 2 processes: at most 16 are possible"},
        {{NULL, "--num-kv-blocks=99999999"}, "--num-kv-blocks not the same"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct cluster_options o = {.size = 2, .args = serving};
        memcpy(o.own, cases[i].own, sizeof o.own);
        check_refused(&o, cases[i].why);
    }
}

/* ---- idleness -------------------------------------------------------------------------------- */

static int64_t cpu_us(pid_t pid) {
    clockid_t clock;
    struct timespec t = {0};
    EXPECT_INT_EQ(clock_getcpuclockid(pid, &clock), 0);
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

TEST(Cluster, NobodyBurnsCpuWhileIdle) {
    NEEDS_BINARY();
    struct cluster c;
    struct net_client client;
    int64_t before_us[3];
    struct cluster_options o = {.size = 3, .args = serving, .own = {ONE, TWO, ONE}};
    ASSERT_TRUE(cluster_serve(&c, &client, &o));
    net_client_puts(&client, "{\"id\":1,\"prompt\":\"Once\",\"max_tokens\":9}");
    json_decref(net_client_until_done(&client, "1", NULL));
    usleep(200000);
    for (int32_t i = 0; i < 3; i++)
        before_us[i] = cpu_us(c.pid[i]);
    int64_t start_us = clock_us();
    usleep(1000000);
    for (int32_t i = 0; i < 3; i++)
        EXPECT_INT_LT((cpu_us(c.pid[i]) - before_us[i]) * 100, (clock_us() - start_us) * 3);
    net_client_close(&client);
    end_in_order(&c, "idle");
}
