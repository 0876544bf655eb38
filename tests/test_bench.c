/* The load generator's pure parts: figures, workload, lines, report, command line; and the child
 * process that plays the server. Whole runs are in test_bench_run.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/buffer.h"
#include "host/json.h"
#include "host/mem.h"
#include "net/bench_options.h"
#include "net/bench_report.h"
#include "net/bench_server.h"
#include "net/bench_stats.h"
#include "net/bench_workload.h"
#include "tests/shim.h"

/* ---- figures -------------------------------------------------------------------------------- */

TEST(BenchStats, PercentilesInterpolateAsNumpyDoes) {
    const double four[] = {1, 2, 3, 4}, five[] = {10, 20, 30, 40, 50}, one[] = {7};
    EXPECT_NEAR(bench_percentile(four, 4, 50), 2.5, 1e-12);
    EXPECT_NEAR(bench_percentile(four, 4, 99), 3.97, 1e-12);
    EXPECT_NEAR(bench_percentile(five, 5, 25), 20, 1e-12);
    EXPECT_NEAR(bench_percentile(five, 5, 90), 46, 1e-12);
    EXPECT_NEAR(bench_percentile(five, 5, 0), 10, 0);
    EXPECT_NEAR(bench_percentile(five, 5, 100), 50, 0);
    EXPECT_NEAR(bench_percentile(one, 1, 99), 7, 0);
    EXPECT_NEAR(bench_percentile(one, 0, 50), 0, 0);
    double hundred[100];
    for (int i = 0; i < 100; i++)
        hundred[i] = i + 1;
    EXPECT_NEAR(bench_percentile(hundred, 100, 99), 99.01, 1e-9);
}

TEST(BenchStats, SpreadSortsAndUsesThePopulationsDeviation) {
    double values[] = {9, 2, 5, 4, 4, 5, 7, 4};
    struct bench_spread s;
    bench_spread_of(values, 8, &s);
    EXPECT_NEAR(s.mean, 5, 1e-12);
    EXPECT_NEAR(s.std, 2, 1e-12);
    EXPECT_NEAR(s.median, 4.5, 1e-12);
    EXPECT_NEAR(s.p99, 8.86, 1e-9);
    bench_spread_of(values, 0, &s);
    EXPECT_NEAR(s.mean + s.std + s.median + s.p99, 0, 0);
}

static struct bench_record make_record(int64_t start_us, int32_t input_len,
                                       const int64_t *tokens_us, int32_t n) {
    struct bench_record r = {.input_len = input_len, .output_len = n, .start_us = start_us};
    for (int32_t i = 0; i < n; i++)
        bench_record_add_token(&r, tokens_us[i]);
    r.end_us = tokens_us[n - 1];
    return r;
}

/* Three requests of 10 prompt tokens; times in ms from 1 s on:
 *   A sent 0, tokens 10 30 60      TTFT 10  TPOT 25  gaps 20 30
 *   B sent 20, token 60            TTFT 40  no TPOT
 *   C sent 60 (as A and B end), tokens 70 1075   TTFT 10  TPOT 1005
 * and one that failed. Second 0 (20 ms .. is counted from A's send) has 5 tokens, second 1 has one.
 */
static void make_records(struct bench_record r[4]) {
    const int64_t a[] = {1010000, 1030000, 1060000}, b[] = {1060000}, c[] = {1070000, 2075000};
    r[0] = make_record(1000000, 10, a, 3);
    r[1] = make_record(1020000, 10, b, 1);
    r[2] = make_record(1060000, 10, c, 2);
    r[3] = make_record(1000000, 10, a, 3);
    r[3].error = xstrdup("connection lost");
    r[2].cached_tokens = 4;
}

TEST(BenchStats, SummaryFollowsTheDefinitions) {
    struct bench_record r[4];
    struct bench_summary s;
    make_records(r);
    bench_summarize(r, 4, 2.0, &s);
    EXPECT_INT_EQ(s.completed, 3);
    EXPECT_INT_EQ(s.failed, 1);
    EXPECT_INT_EQ(s.input_tokens, 30);
    EXPECT_INT_EQ(s.output_tokens, 6);
    EXPECT_INT_EQ(s.cached_tokens, 4);
    EXPECT_NEAR(s.request_throughput, 1.5, 1e-12);
    EXPECT_NEAR(s.output_throughput, 3, 1e-12);
    EXPECT_NEAR(s.total_throughput, 18, 1e-12);
    EXPECT_NEAR(s.peak_output_throughput, 5, 0);
    EXPECT_INT_EQ(s.peak_concurrency, 2);
    EXPECT_NEAR(s.ttft_ms.mean, 20, 1e-9);
    EXPECT_NEAR(s.ttft_ms.median, 10, 1e-9);
    EXPECT_NEAR(s.tpot_ms.mean, (25 + 1005) / 2.0, 1e-9);
    EXPECT_NEAR(s.itl_ms.mean, (20 + 30 + 1005) / 3.0, 1e-9);
    EXPECT_NEAR(s.itl_ms.median, 30, 1e-9);
    EXPECT_NEAR(s.e2el_ms.mean, (60 + 40 + 1015) / 3.0, 1e-9);
    for (int i = 0; i < 4; i++)
        bench_record_deinit(&r[i]);
}

TEST(BenchStats, ARunInWhichAllFailedHasNoFigures) {
    struct bench_record r = {.error = xstrdup("cannot connect")};
    struct bench_summary s;
    bench_summarize(&r, 1, 0, &s);
    EXPECT_INT_EQ(s.failed, 1);
    EXPECT_NEAR(s.output_throughput + s.ttft_ms.p99 + s.peak_output_throughput, 0, 0);
    EXPECT_FALSE(bench_is_valid(&s));
    bench_record_deinit(&r);
}

/* ---- workload ------------------------------------------------------------------------------- */

TEST(BenchWorkload, ArrivalsAreAPoissonProcessOfTheWantedRate) {
    enum { N = 20000 };
    double *at = xcalloc(N, sizeof *at), squares = 0;
    bench_arrivals(50, 1, at, N);
    EXPECT_NEAR(at[N - 1], N / 50.0, 1e-6);
    for (int i = 0; i < N; i++) {
        double gap = at[i] - (i ? at[i - 1] : 0);
        EXPECT_TRUE(gap >= 0);
        squares += (gap - 0.02) * (gap - 0.02);
    }
    /* The deviation of exponential gaps is their mean; 3% is over four deviations of it here. */
    EXPECT_NEAR(sqrt(squares / N), 0.02, 0.0006);
    double other[3], again[3];
    bench_arrivals(50, 2, other, 3);
    bench_arrivals(50, 2, again, 3);
    EXPECT_MEM_EQ(other, again, sizeof other);
    EXPECT_TRUE(other[0] != at[0]);
    bench_arrivals(INFINITY, 1, other, 3);
    EXPECT_NEAR(other[2], 0, 0);
    free(at);
}

TEST(BenchWorkload, RandomNumbersFillTheirRangeAndFollowTheSeed) {
    struct bench_rng a, b;
    int32_t seen[4] = {0};
    bench_rng_init(&a, 3, 0);
    for (int i = 0; i < 400; i++)
        seen[bench_rng_range(&a, 5, 8) - 5]++;
    for (int i = 0; i < 4; i++)
        EXPECT_INT_GT(seen[i], 60);
    bench_rng_init(&a, 3, 0);
    bench_rng_init(&b, 3, 1);
    EXPECT_TRUE(bench_rng_next(&a) != bench_rng_next(&b));
    bench_rng_init(&b, 3, 0);
    bench_rng_next(&b);
    EXPECT_TRUE(bench_rng_next(&a) == bench_rng_next(&b));
    EXPECT_INT_EQ(bench_rng_range(&a, 7, 7), 7);
}

TEST(BenchWorkload, RangesAreANumberOrTwo) {
    static const struct {
        const char *text;
        int32_t min, max; /* 0: refused */
    } cases[] = {{"128", 128, 128}, {"1:4", 1, 4}, {"7:7", 7, 7},   {"", 0, 0},
                 {"0", 0, 0},       {"4:1", 0, 0}, {"4:", 0, 0},    {":4", 0, 0},
                 {"4x", 0, 0},      {"-1", 0, 0},  {"1:2:3", 0, 0}, {"99999999999999999999", 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct bench_range r = {0};
        struct error e = {0};
        int rc = bench_range_parse(cases[i].text, 1, &r, &e);
        EXPECT_INT_EQ(rc, cases[i].min ? 0 : ERR_CONFIG);
        EXPECT_INT_EQ(r.min, cases[i].min);
        EXPECT_INT_EQ(r.max, cases[i].max);
    }
}

TEST(BenchWorkload, TextFollowsTheSeedAndBeginsWithItsLabel) {
    struct buffer a = {0}, b = {0};
    struct bench_rng r;
    bench_rng_init(&r, 9, 1);
    bench_text(&a, &r, "7/9: ", 4000);
    EXPECT_INT_GE(a.len, 4005);
    EXPECT_MEM_EQ(a.data, "7/9: ", 5);
    EXPECT_TRUE(memchr(a.data, '#', a.len) == NULL);
    bench_rng_init(&r, 9, 1);
    bench_text(&b, &r, "7/9: ", 4000);
    EXPECT_INT_EQ(a.len, b.len);
    EXPECT_MEM_EQ(a.data, b.data, a.len);
    buffer_clear(&b);
    bench_text(&b, &r, "7/9: ", 4000);
    EXPECT_FALSE(a.len == b.len && !memcmp(a.data, b.data, a.len));
    buffer_deinit(&a);
    buffer_deinit(&b);
}

TEST(BenchWorkload, RequestLinesHoldWhatTheProtocolAsksFor) {
    const int32_t tokens[] = {5, 0, 31999};
    struct bench_request q = {.id = 12,
                              .tokens = tokens,
                              .num_tokens = 3,
                              .max_tokens = 4,
                              .ignore_eos = true,
                              .seed = 99};
    struct buffer line = {0};
    bench_request_line(&line, &q);
    buffer_putc(&line, '\0');
    EXPECT_STR_EQ(line.data, "{\"id\":12,\"max_tokens\":4,\"temperature\":0,\"ignore_eos\":true,"
                             "\"tokens\":[5,0,31999]}\n");
    buffer_clear(&line);
    q.temperature = 0.7;
    q.ignore_eos = false;
    bench_request_line(&line, &q);
    buffer_putc(&line, '\0');
    EXPECT_STR_EQ(line.data, "{\"id\":12,\"max_tokens\":4,\"temperature\":0.7,\"ignore_eos\":false,"
                             "\"seed\":99,\"tokens\":[5,0,31999]}\n");
    buffer_deinit(&line);
}

TEST(BenchWorkload, AnswerLinesAreToldApart) {
    static const struct {
        const char *line;
        int kind; /* -1: refused */
        int64_t id;
    } cases[] = {
        {"{\"id\":3,\"text\":\"a\",\"token\":53}", BENCH_ANSWER_TOKEN, 3},
        {"{\"id\":3,\"text\":\"\",\"token\":0}", BENCH_ANSWER_TOKEN, 3},
        {"{\"id\":\"x\",\"text\":\"tail\"}", BENCH_ANSWER_TEXT, -1},
        {"{\"id\":4,\"done\":true,\"finish_reason\":\"length\",\"usage\":"
         "{\"prompt_tokens\":4,\"completion_tokens\":2,\"cached_tokens\":1}}",
         BENCH_ANSWER_DONE, 4},
        {"{\"id\":null,\"error\":{\"code\":\"overloaded\",\"message\":\"full\"}}",
         BENCH_ANSWER_ERROR, -1},
        {"{\"id\":4,\"done\":true}", -1, 0},
        {"{\"id\":4,\"done\":true,\"usage\":{\"completion_tokens\":\"2\"}}", -1, 0},
        {"{\"id\":4}", -1, 0},
        {"[]", -1, 0},
        {"hello", -1, 0},
        {"", -1, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct bench_answer a;
        struct error e = {0};
        int rc = bench_answer_parse(cases[i].line, strlen(cases[i].line), &a, &e);
        EXPECT_TRUE((rc == 0) == (cases[i].kind >= 0));
        if (rc != 0) {
            EXPECT_TRUE(e.text[0] != '\0');
            continue;
        }
        EXPECT_INT_EQ(a.kind, cases[i].kind);
        EXPECT_INT_EQ(a.id, cases[i].id);
        if (a.kind == BENCH_ANSWER_ERROR)
            EXPECT_STR_EQ(a.error, "overloaded: full");
        if (a.kind == BENCH_ANSWER_DONE)
            EXPECT_INT_EQ(a.prompt_tokens * 100 + a.completion_tokens * 10 + a.cached_tokens, 421);
    }
}

/* ---- report --------------------------------------------------------------------------------- */

/* Printed with the format strings of vllm/benchmarks/serve.py for make_records' figures. */
static const char expected_block[] = "============ Serving Benchmark Result ============\n"
                                     "Successful requests:                     3         \n"
                                     "Failed requests:                         0         \n"
                                     "Maximum request concurrency:             8         \n"
                                     "Request rate configured (RPS):           2.50      \n"
                                     "Benchmark duration (s):                  2.00      \n"
                                     "Total input tokens:                      30        \n"
                                     "Total generated tokens:                  6         \n"
                                     "Request throughput (req/s):              1.50      \n"
                                     "Output token throughput (tok/s):         3.00      \n"
                                     "Peak output token throughput (tok/s):    5.00      \n"
                                     "Peak concurrent requests:                2.00      \n"
                                     "Total token throughput (tok/s):          18.00     \n"
                                     "---------------Time to First Token----------------\n"
                                     "Mean TTFT (ms):                          20.00     \n"
                                     "Median TTFT (ms):                        10.00     \n"
                                     "P99 TTFT (ms):                           39.40     \n"
                                     "-----Time per Output Token (excl. 1st token)------\n"
                                     "Mean TPOT (ms):                          515.00    \n"
                                     "Median TPOT (ms):                        515.00    \n"
                                     "P99 TPOT (ms):                           995.20    \n"
                                     "---------------Inter-token Latency----------------\n"
                                     "Mean ITL (ms):                           351.67    \n"
                                     "Median ITL (ms):                         30.00     \n"
                                     "P99 ITL (ms):                            985.50    \n"
                                     "==================================================\n";

static struct bench_settings report_settings(void) {
    return (struct bench_settings){.model = "demo",
                                   .server = "127.0.0.1:7070",
                                   .dataset = "text",
                                   .num_prompts = 4,
                                   .max_concurrency = 8,
                                   .request_rate = 2.5,
                                   .input_len = {10, 10},
                                   .output_len = {1, 3},
                                   .ignore_eos = true};
}

TEST(BenchReport, BlockIsThatOfVllm) {
    struct bench_record r[4];
    struct bench_summary s;
    struct bench_settings settings = report_settings();
    struct buffer out = {0};
    make_records(r);
    bench_summarize(r, 3, 2.0, &s);
    bench_report_block(&out, &settings, &s);
    buffer_putc(&out, '\0');
    EXPECT_STR_EQ(out.data, expected_block);
    for (int i = 0; i < 4; i++)
        bench_record_deinit(&r[i]);
    buffer_deinit(&out);
}

TEST(BenchReport, ARunWithAFailedRequestIsMarkedInvalid) {
    struct bench_summary s = {.completed = 61, .failed = 3};
    struct bench_settings settings = report_settings();
    struct buffer out = {0};
    settings.request_rate = INFINITY;
    settings.max_concurrency = 0;
    bench_report_block(&out, &settings, &s);
    buffer_putc(&out, '\0');
    static const char head[] = "======= Serving Benchmark Result: INVALID ========\n"
                               "Successful requests:                     61        \n"
                               "Failed requests:                         3         \n"
                               "Benchmark duration (s):                  0.00      \n";
    static const char tail[] = "\n======== INVALID: 3 of 64 requests failed ========\n";
    EXPECT_MEM_EQ(out.data, head, sizeof head - 1);
    EXPECT_STR_EQ(out.data + out.len - sizeof tail, tail);
    buffer_deinit(&out);
}

TEST(BenchReport, JsonHasTheKeysOfVllmAndEveryRequest) {
    static const char *const keys[] = {"date",
                                       "backend",
                                       "model_id",
                                       "num_prompts",
                                       "request_rate",
                                       "burstiness",
                                       "max_concurrency",
                                       "duration",
                                       "completed",
                                       "failed",
                                       "total_input_tokens",
                                       "total_output_tokens",
                                       "request_throughput",
                                       "output_throughput",
                                       "total_token_throughput",
                                       "input_lens",
                                       "output_lens",
                                       "ttfts",
                                       "itls",
                                       "latencies",
                                       "start_times",
                                       "queue_times",
                                       "errors",
                                       "max_output_tokens_per_s",
                                       "max_concurrent_requests",
                                       "mean_ttft_ms",
                                       "median_tpot_ms",
                                       "std_itl_ms",
                                       "p99_e2el_ms"};
    static char arg[] = "--threads\xff";
    char *args[] = {arg, NULL};
    struct bench_record r[4];
    struct bench_summary s;
    struct bench_settings settings = report_settings();
    struct buffer out = {0};
    struct error e = {0};
    settings.request_rate = INFINITY;
    settings.server_args = args;
    make_records(r);
    bench_summarize(r, 4, 2.0, &s);
    bench_report_json(&out, "2024-01-01T00:00:00Z", &settings, &s, r);
    json_t *doc = json_parse(out.data, out.len, "report", ERR_BAD_FILE, &e);
    EXPECT_STR_EQ(e.text, "");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!json_object_get(doc, keys[i]))
            FAIL("no key %s", keys[i]);
    EXPECT_STR_EQ(json_string_value(json_object_get(doc, "request_rate")), "inf");
    EXPECT_TRUE(json_is_false(json_object_get(doc, "valid")));
    EXPECT_INT_EQ(json_array_size(json_object_get(doc, "itls")), 4);
    json_t *itls = json_array_get(json_object_get(doc, "itls"), 0);
    EXPECT_NEAR(json_number_value(json_array_get(itls, 1)), 0.03, 1e-12);
    EXPECT_STR_EQ(json_string_value(json_array_get(json_object_get(doc, "errors"), 3)),
                  "connection lost");
    json_decref(doc);
    for (int i = 0; i < 4; i++)
        bench_record_deinit(&r[i]);
    buffer_deinit(&out);
}

/* ---- command line --------------------------------------------------------------------------- */

enum { MAX_ARGS = 32 };

/* Splits at spaces into argv; "bench" comes first. */
static int split(char *words, char **argv) {
    static char name[] = "bench";
    char *save = NULL;
    int argc = 0;
    argv[argc++] = name;
    for (char *w = strtok_r(words, " ", &save); w && argc < MAX_ARGS;
         w = strtok_r(NULL, " ", &save))
        argv[argc++] = w;
    argv[argc] = NULL;
    return argc;
}

static int parse(const char *line, struct bench_options *o, struct error *e) {
    static char words[512];
    static char *argv[MAX_ARGS + 1];
    snprintf(words, sizeof words, "%s", line);
    int argc = split(words, argv);
    return bench_options_parse(o, argc, argv, e);
}

TEST(BenchOptions, AreReadWithTheirAliasesAndTheServersAfterTwoDashes) {
    struct bench_options o;
    struct error e = {0};
    ASSERT_INT_EQ(parse("", &o, &e), 0);
    EXPECT_STR_EQ(o.settings.dataset, "text");
    EXPECT_TRUE(o.settings.ignore_eos && isinf(o.settings.request_rate));
    ASSERT_INT_EQ(parse("--num-prompts 7 --request-rate=2.5 --random-input-len 3:9 --seed 11 "
                        "--no-ignore-eos --dataset-name random --random-prefix-len 5 --json x "
                        "-- --model DIR --threads 2",
                        &o, &e),
                  0);
    EXPECT_INT_EQ(o.settings.num_prompts, 7);
    EXPECT_NEAR(o.settings.request_rate, 2.5, 0);
    EXPECT_INT_EQ(o.settings.input_len.max, 9);
    EXPECT_FALSE(o.settings.ignore_eos);
    EXPECT_STR_EQ(o.settings.dataset, "random");
    EXPECT_INT_EQ(o.settings.prefix_len, 5);
    EXPECT_STR_EQ(o.json, "x");
    EXPECT_STR_EQ(o.settings.server_args[1], "DIR");
    EXPECT_TRUE(o.settings.server_args[4] == NULL);
    ASSERT_INT_EQ(parse("--request-rate inf", &o, &e), 0);
}

TEST(BenchOptions, MistakesAreNamed) {
    static const char *const cases[][2] = {
        {"--num-promts 3", "unknown option --num-promts (did you mean --num-prompts?)"},
        {"--num-prompts", "--num-prompts: a value is missing"},
        {"--json --num-prompts=3", "--json: a value is missing"},
        {"--json -- --ranks=2", "--json: a value is missing"},
        {"--num-prompts 0", "--num-prompts 0: expected a whole number from 1 to 10000000"},
        {"--num-prompts 1.5", "--num-prompts 1.5: expected a whole number from 1 to 10000000"},
        {"--request-rate nan",
         "--request-rate nan: expected a number from 1e-06 to 1000000, or inf"},
        {"--random-input-len 9:3",
         "--random-input-len '9:3': expected a length or MIN:MAX, each from 1 to 10000000"},
        {"--dataset images", "--dataset images: expected text or random"},
        {"--seed -1", "--seed -1: expected a whole number from 0 to 9223372036854775807"},
        {"--no-seed", "unknown option --no-seed (options of the server stand after --)"},
        {"--help=1", "--help: takes no value"},
        {"run", "unexpected argument 'run' (see bench --help)"},
        {"--server a:1 -- --model x", "--server a:1: a running server takes no options after --"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct bench_options o;
        struct error e = {0};
        EXPECT_INT_EQ(parse(cases[i][0], &o, &e), ERR_CONFIG);
        EXPECT_STR_EQ(e.text, cases[i][1]);
    }
}

/* ---- a server of our own -------------------------------------------------------------------- */

TEST(BenchServer, ReadyLinesAreFound) {
    static const char *const cases[][2] = {
        {"moeserve: ready line=127.0.0.1:7070", "127.0.0.1:7070"},
        {"moeserve: ready http=127.0.0.1:8000 line=[::1]:90 more", "[::1]:90"},
        {"moeserve: loading line=3", ""},
        {"ready line=", ""},
        {"ready line=host", ""},
        {"", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char address[64] = "";
        bool found = bench_server_read_ready(cases[i][0], strlen(cases[i][0]), address, 64);
        EXPECT_TRUE(found == (cases[i][1][0] != '\0'));
        EXPECT_STR_EQ(address, cases[i][1]);
    }
    char tiny[8];
    EXPECT_FALSE(bench_server_read_ready("ready line=127.0.0.1:7070", 25, tiny, sizeof tiny));
}

/* Starts a shell that plays the server. */
static int start_script(uv_loop_t *loop, const char *script, struct bench_server **s,
                        struct error *e) {
    static char shell[] = "/bin/sh", c[] = "-c";
    static const int never = 0;
    char *text = xstrdup(script), *args[] = {shell, c, text, NULL};
    uv_loop_init(loop);
    int rc = bench_server_start(loop, args, &never, s, e);
    free(text);
    return rc;
}

TEST(BenchServer, IsStartedAndToldToStop) {
    uv_loop_t loop;
    struct bench_server *s = NULL;
    struct error e = {0};
    int status;
    ASSERT_INT_EQ(start_script(&loop,
                               "echo loading; echo moeserve: ready line=127.0.0.1:5; "
                               "exec sleep 100",
                               &s, &e),
                  0);
    EXPECT_STR_EQ(bench_server_address(s), "127.0.0.1:5");
    EXPECT_FALSE(bench_server_has_ended(s, &status));
    bench_server_stop(s);
    EXPECT_INT_EQ(uv_loop_close(&loop), 0);
}

TEST(BenchServer, OneThatEndsBeforeItIsReadyIsAnError) {
    uv_loop_t loop;
    struct bench_server *s = NULL;
    struct error e = {0};
    EXPECT_INT_EQ(start_script(&loop, "echo no memory; exit 3", &s, &e), ERR_IO);
    EXPECT_STR_EQ(e.text, "the server ended with status 3 before it was ready");
    EXPECT_TRUE(s == NULL);
    EXPECT_INT_EQ(uv_loop_close(&loop), 0);
}
