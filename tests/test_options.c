/* The option table: command lines, INI files, help; and the nearest-name search behind its
 * messages. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/buffer.h"
#include "host/demo_model.h"
#include "host/file.h"
#include "host/nearest.h"
#include "host/options_internal.h"
#include "tests/shim.h"

enum { MAX_ARGS = 24 };

/* Splits a line at spaces and parses it; "" among the words is an empty argument. */
static int parse(struct options *o, unsigned command, const char *line, struct error *e) {
    char text[512], *argv[MAX_ARGS], *save = NULL;
    int argc = 0;
    snprintf(text, sizeof text, "serve %s", line);
    for (char *w = strtok_r(text, " ", &save); w && argc < MAX_ARGS; w = strtok_r(NULL, " ", &save))
        argv[argc++] = strcmp(w, "\"\"") ? w : w + 2;
    memset(e, 0, sizeof *e);
    options_init(o);
    return options_parse(o, command, argc, argv, e);
}

static char *write_file(const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", shim_scratch_dir(), name);
    FILE *file = fopen(path, "w");
    fputs(text, file);
    fclose(file);
    return strdup(path);
}

TEST(Nearest, CountsEdits) {
    EXPECT_INT_EQ(edit_distance("", ""), 0);
    EXPECT_INT_EQ(edit_distance("abc", ""), 3);
    EXPECT_INT_EQ(edit_distance("abc", "abd"), 1);
    EXPECT_INT_EQ(edit_distance("abc", "acb"), 1);
    EXPECT_INT_EQ(edit_distance("kitten", "sitting"), 3);
    EXPECT_INT_EQ(edit_distance("max_tokens", "max_tokns"), 1);
    char longer[80];
    memset(longer, 'a', sizeof longer);
    longer[79] = '\0';
    EXPECT_INT_EQ(edit_distance(longer, "a"), 64);
}

TEST(Nearest, FindsWhatWasMeantAndNothingElse) {
    static const char *const names[] = {"model", "max-model-len", "top-k", "top-p"};
    EXPECT_STR_EQ(nearest_name(names, 4, "modle"), "model");
    EXPECT_STR_EQ(nearest_name(names, 4, "max-modellen"), "max-model-len");
    EXPECT_STR_EQ(nearest_name(names, 4, "topk"), "top-k");
    EXPECT_TRUE(nearest_name(names, 4, "listen") == NULL);
    EXPECT_TRUE(nearest_name(names, 0, "model") == NULL);
    EXPECT_TRUE(nearest_name(names, 4, "") == NULL);
}

TEST(Options, DefaultsAreThoseOfTheParts) {
    struct options o;
    struct error e;
    ASSERT_INT_EQ(parse(&o, CMD_SERVE, "", &e), 0);
    EXPECT_STR_EQ(o.server.listen, "127.0.0.1:7070");
    EXPECT_INT_EQ(o.server.max_line_bytes, 4 << 20);
    EXPECT_INT_EQ(o.server.drain_timeout_s, 30);
    EXPECT_INT_EQ(o.engine.max_queued_requests, 512);
    EXPECT_INT_EQ(o.engine.replicas, 1);
    EXPECT_INT_EQ(o.server.defaults.max_tokens, 256);
    EXPECT_TRUE(o.engine.model == NULL && o.engine.enable_prefix_caching && !o.seed_given);
    options_deinit(&o);
}

TEST(Options, BothFormsOfAValueAndOfAFlagWork) {
    struct options o;
    struct error e;
    ASSERT_INT_EQ(
        parse(&o, CMD_SERVE,
              "--model /a/b --ranks=3 --enable-expert-parallel --no-enable-prefix-caching "
              "--max-line-bytes 2MiB --temperature=0.5 --seed 18446744073709551615",
              &e),
        0);
    EXPECT_STR_EQ(o.engine.model, "/a/b");
    EXPECT_INT_EQ(o.engine.ranks, 3);
    EXPECT_TRUE(o.engine.enable_expert_parallel && !o.engine.enable_prefix_caching);
    EXPECT_INT_EQ(o.server.max_line_bytes, 2 << 20);
    EXPECT_NEAR(o.server.defaults.sampling.temperature, 0.5, 0);
    EXPECT_TRUE(o.engine.seed == UINT64_MAX && o.seed_given);
    options_deinit(&o);
    ASSERT_INT_EQ(parse(&o, CMD_SERVE, "--model=--a --served-model-name -b", &e), 0);
    EXPECT_STR_EQ(o.engine.model, "--a");
    EXPECT_STR_EQ(o.engine.served_model_name, "-b");
    options_deinit(&o);
    ASSERT_INT_EQ(parse(&o, CMD_SERVE, "--ranks 2 --ranks 5 --enable-prefix-caching=off", &e), 0);
    EXPECT_INT_EQ(o.engine.ranks, 5);
    EXPECT_FALSE(o.engine.enable_prefix_caching);
    options_deinit(&o);
}

TEST(Options, NamesOfOtherSystemsAreUnderstood) {
    struct options o;
    struct error e;
    ASSERT_INT_EQ(parse(&o, CMD_SERVE,
                        "-m /m -c 512 -np 7 -tp 2 -dp 3 -a name -b 99 --temp 0 --max_num_seqs 9",
                        &e),
                  0);
    EXPECT_INT_EQ(o.engine.replicas, 3);
    EXPECT_STR_EQ(o.engine.model, "/m");
    EXPECT_INT_EQ(o.engine.max_model_len, 512);
    EXPECT_INT_EQ(o.engine.max_num_seqs, 9);
    EXPECT_INT_EQ(o.engine.ranks, 2);
    EXPECT_STR_EQ(o.engine.served_model_name, "name");
    EXPECT_INT_EQ(o.engine.max_num_batched_tokens, 99);
    options_deinit(&o);
    ASSERT_INT_EQ(parse(&o, CMD_SERVE,
                        "--model-path /p --context-length 5 --max-running-requests 6 "
                        "--tensor-parallel-size 4 --chunked-prefill-size 8 --ep-size 2 "
                        "--data-parallel-size 16",
                        &e),
                  0);
    EXPECT_STR_EQ(o.engine.model, "/p");
    EXPECT_INT_EQ(o.engine.max_model_len, 5);
    EXPECT_INT_EQ(o.engine.max_num_seqs, 6);
    EXPECT_INT_EQ(o.engine.ranks, 4);
    EXPECT_INT_EQ(o.engine.expert_parallel_size, 2);
    EXPECT_INT_EQ(o.engine.replicas, 16);
    options_deinit(&o);
}

TEST(Options, GpusAreANumberOrAList) {
    static const struct {
        const char *line, *device;
        int32_t num, first, last;
    } cases[] = {
        {"", "cpu", 0, 0, 0},
        {"--gpus 0", "cpu", 0, 0, 0},
        {"--gpus 8", "cuda", 8, 0, 7},
        {"--gpus 5,", "cuda", 1, 5, 5},
        {"--gpus 3,0", "cuda", 2, 3, 0},
        {"--gpus 2,0,2", "cuda", 3, 2, 2},
        {"--device cuda", "cuda", 1, 0, 0},
        {"--device cuda --gpus 2", "cuda", 2, 0, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct options o;
        struct error e;
        ASSERT_INT_EQ(parse(&o, CMD_SERVE, cases[i].line, &e), 0);
        EXPECT_STR_EQ(o.engine.device, cases[i].device);
        ASSERT_INT_EQ(o.engine.num_gpus, cases[i].num);
        if (cases[i].num > 0) {
            EXPECT_INT_EQ(o.engine.gpus[0], cases[i].first);
            EXPECT_INT_EQ(o.engine.gpus[cases[i].num - 1], cases[i].last);
        }
        options_deinit(&o);
    }
}

TEST(Options, WhatIsWrongIsSaidOnOneLine) {
    static const struct {
        const char *line, *says;
    } cases[] = {
        {"--modle x", "unknown option --modle (did you mean --model?)"},
        {"--frobnicate", "unknown option --frobnicate (see --help)"},
        {"-x", "unknown option -x (see --help)"},
        {"x", "unexpected argument 'x' (a command comes first; see --help)"},
        {"--model", "--model: a value is missing"},
        {"--model --ranks 2", "--model: a value is missing (one that begins with -- is given as"},
        {"--max-body-bytes --listen :1", "--max-body-bytes: a value is missing (one that"},
        {"-m --x", "(one that begins with -- is given as -m=VALUE)"},
        {"--ranks 0", "--ranks 0: expected an integer from 1 to 16"},
        {"--ranks 17", "--ranks 17: expected an integer from 1 to 16"},
        {"--replicas 17", "--replicas 17: expected an integer from 1 to 16"},
        {"--ranks two", "--ranks two: expected an integer from 1 to 16"},
        {"--ranks=", "--ranks : expected an integer from 1 to 16"},
        {"--ranks 1.5", "--ranks 1.5: expected an integer from 1 to 16"},
        {"--ranks 99999999999999999999", "expected an integer from 1 to 16"},
        {"--temperature -1", "--temperature -1: expected a number from 0 to 100"},
        {"--temperature nan", "--temperature nan: expected a number from 0 to 100"},
        {"--top-p 0", "--top-p 0: expected a number from"},
        {"--seed -1", "--seed -1: expected an integer from 0"},
        {"--device tpu", "--device tpu: expected one of: cpu cuda ref"},
        {"--device \"\"", "expected one of"},
        {"--max-line-bytes 1", "--max-line-bytes 1: expected a size from 1024"},
        {"--max-line-bytes 4x", "expected a size from"},
        {"--listen nowhere", "--listen: 'nowhere' is not HOST:PORT"},
        {"--listen a:70000", "the port must be 0 to 65535"},
        {"--enable-prefix-caching=maybe", "expected true or false"},
        {"--no-ranks", "unknown option --no-ranks"},
        {"--no-enable-prefix-caching=1", "takes no value"},
        {"--gpus x", "--gpus x: expected a number of GPUs or a list"},
        {"--gpus ,1", "--gpus ,1: expected a number of GPUs or a list"},
        {"--gpus 1,x", "--gpus 1,x: expected a number of GPUs or a list"},
        {"--gpus 17", "--gpus 17: up to 16 GPUs are possible"},
        {"--gpus 2,0,2 --replicas 3", "--gpus 2,0,2: GPU 2 twice, but --replicas 3 share none"},
        {"--gpus 1 --device ref", "--gpus 1: --device ref uses no GPU"},
        {"--gpus 0 --device cuda", "--device cuda: --gpus 0 leaves none"},
        {"--min-tokens 9 --max-tokens 8", "--min-tokens 9: more than --max-tokens 8"},
        {"--config /no/such/file.ini", "--config /no/such/file.ini: No such file"},
        {"--prompt x", "unknown option --prompt"}, /* an option of generate */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct options o;
        struct error e;
        EXPECT_INT_EQ(parse(&o, CMD_SERVE, cases[i].line, &e), ERR_CONFIG);
        EXPECT_TRUE(strchr(e.text, '\n') == NULL);
        if (!strstr(e.text, cases[i].says))
            FAIL("'%s' says '%s', not '%s'", cases[i].line, e.text, cases[i].says);
        options_deinit(&o);
    }
}

TEST(Options, AnOriginIsOneThatBrowsersSend) {
    static const char *const good[] = {"*",
                                       "null",
                                       "https://chat.example",
                                       "http://localhost:3000",
                                       "https://A.Example:80",
                                       "http://[::1]:8080",
                                       "chrome-extension://abcdef",
                                       "https://xn--bcher-kva.example"};
    static const char *const bad[] = {"foo",
                                      "x.org",
                                      "https://x/",
                                      "https://x/y",
                                      "https://",
                                      "://x",
                                      "https://x:",
                                      "https://x:port",
                                      "https://x:123456",
                                      "http://x:80",
                                      "https://x:443",
                                      "https://a@x",
                                      "https://x,y",
                                      "http://[::1",
                                      "https://b\xc3\xbc"
                                      "cher.example"};
    for (size_t i = 0; i < sizeof good / sizeof *good + sizeof bad / sizeof *bad; i++) {
        bool is_good = i < sizeof good / sizeof *good;
        const char *origin = is_good ? good[i] : bad[i - sizeof good / sizeof *good];
        struct options o;
        struct error e;
        char line[128];
        snprintf(line, sizeof line, "--cors-origin %s", origin);
        if (!EXPECT_INT_EQ(parse(&o, CMD_SERVE, line, &e), is_good ? 0 : ERR_CONFIG))
            FAIL("%s", origin);
        if (!is_good && !strstr(e.text, "--cors-origin"))
            FAIL("%s: %s", origin, e.text);
        options_deinit(&o);
    }
}

TEST(Options, AModelsNameCanBeShown) {
    static const char *const bad[] = {"", "two\nlines", "\x1b[1m", "\x7f"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *argv[] = {(char *)"moeserve", (char *)"--served-model-name", (char *)bad[i], NULL};
        struct options o;
        struct error e;
        options_init(&o);
        EXPECT_INT_EQ(options_parse(&o, CMD_SERVE, 3, argv, &e), ERR_CONFIG);
        EXPECT_STR_EQ(e.text,
                      "--served-model-name: expected a name: not empty, and without control "
                      "characters");
        options_deinit(&o);
    }
}

TEST(Options, AFileIsReadAndFlagsWin) {
    struct options o;
    struct error e;
    char line[300];
    char *path = write_file("a.ini", "; comment\nranks = 4\n[engine]\nmax_num_seqs = 12\n"
                                     "enable-prefix-caching = false\n[server]\n"
                                     "listen = 127.0.0.1:0 ; at the end\nprompt = of generate\n");
    snprintf(line, sizeof line, "--ranks 2 --config %s", path);
    if (EXPECT_INT_EQ(parse(&o, CMD_SERVE, line, &e), 0)) {
        EXPECT_INT_EQ(o.engine.ranks, 2);
        EXPECT_INT_EQ(o.engine.max_num_seqs, 12);
        EXPECT_FALSE(o.engine.enable_prefix_caching);
        EXPECT_STR_EQ(o.server.listen, "127.0.0.1:0");
    } else {
        FAIL("%s", e.text);
    }
    options_deinit(&o);
    free(path);
}

TEST(Options, AFilesMistakesAreNamedWithTheirLine) {
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"ranks = 1\nmodle = x\n", ":2: unknown option modle (did you mean model?)"},
        {"[a]\n\nranks = none\n", ":3: --ranks none: expected an integer"},
        {"config = b.ini\n", ":1: config: not allowed in a file"},
        {"ranks = 1\n\n[b]\nranks = 1\n", ":4: ranks: a second time, after line 1"},
        {"max-num-seqs = 3\nnp = 3\n", ":2: np: a second time, after line 1"},
        {"ranks\n", ":1: expected `name = value`"},
        {"[open\n", ":1: expected `name = value`"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct options o;
        struct error e = {0};
        char *path = write_file("bad.ini", cases[i].text);
        options_init(&o);
        EXPECT_INT_EQ(options_read_file(&o, CMD_SERVE, path, &e), ERR_CONFIG);
        if (!strstr(e.text, cases[i].says))
            FAIL("'%s' says '%s', not '%s'", cases[i].text, e.text, cases[i].says);
        options_deinit(&o);
        free(path);
    }
}

TEST(Options, LinesOfAFileAreNeverCutOrJoined) {
    struct options o;
    struct error e = {0};
    char text[1200] = "model = /", *path;
    for (int i = 0; i < 100; i++)
        strcat(text, "x");
    strcat(text, "\n  ranks = 3\n\t[a]\n");
    path = write_file("indented.ini", text);
    options_init(&o);
    EXPECT_INT_EQ(options_read_file(&o, CMD_SERVE, path, &e), 0);
    EXPECT_INT_EQ(o.engine.model ? strlen(o.engine.model) : 0, 101);
    EXPECT_INT_EQ(o.engine.ranks, 3);
    options_deinit(&o);
    free(path);
    strcpy(text, "model = /");
    for (int i = 0; i < 1000; i++)
        strcat(text, i % 2 ? "x" : " ");
    path = write_file("long.ini", text);
    options_init(&o);
    EXPECT_INT_EQ(options_read_file(&o, CMD_SERVE, path, &e), 0);
    EXPECT_INT_EQ(o.engine.model ? strlen(o.engine.model) : 0, 1001);
    options_deinit(&o);
    free(path);
}

TEST(Options, HelpNamesEveryOptionOfItsCommandOnly) {
    struct buffer serve = {0}, generate = {0};
    options_help(CMD_SERVE, &serve);
    options_help(CMD_GENERATE, &generate);
    buffer_putc(&serve, '\0');
    buffer_putc(&generate, '\0');
    EXPECT_TRUE(strstr(serve.data, "--listen HOST:PORT") && strstr(serve.data, "[127.0.0.1:7070]"));
    EXPECT_TRUE(strstr(serve.data, "--max-num-seqs N") && strstr(serve.data, "[64]"));
    EXPECT_TRUE(strstr(serve.data, "--prompt") == NULL);
    EXPECT_TRUE(strstr(generate.data, "--prompt TEXT") && !strstr(generate.data, "--listen"));
    buffer_deinit(&serve);
    buffer_deinit(&generate);
}

/* Where a reader would look it up, besides --help. */
TEST(Options, EveryOptionStandsInADocument) {
    static const char *const paths[] = {
        "README.md",       "docs/OPERATIONS.md", "docs/PROTOCOL.md", "docs/METRICS.md",
        "docs/CLUSTER.md", "docs/GPU.md",        "docs/HTTP.md",     "docs/ARCHITECTURE.md"};
    struct buffer docs = {0};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        struct error e = {0};
        char *text;
        size_t len;
        ASSERT_INT_EQ(file_read(paths[i], 1 << 20, &text, &len, &e), 0);
        buffer_append(&docs, text, len);
        free(text);
    }
    buffer_putc(&docs, '\0');
    for (int i = 0; i < num_options; i++) {
        const struct option *opt = &option_table[i];
        char name[80];
        if (!opt->name || !opt->help || option_is_flag_only(opt)) /* without help: for tests */
            continue;
        int len = snprintf(name, sizeof name, "--%s", opt->name);
        const char *at = strstr(docs.data, name);
        while (at && (at[len] == '-' || (at[len] >= 'a' && at[len] <= 'z'))) /* a longer one's */
            at = strstr(at + len, name);
        if (!at)
            FAIL("%s stands in no document", name);
    }
    buffer_deinit(&docs);
}

/* Parses the line, then reads a generation_config.json with that text. */
static int suggest(struct options *o, const char *line, const char *json, struct buffer *taken,
                   struct error *e) {
    free(write_file("generation_config.json", json));
    int rc = parse(o, CMD_SERVE, line, e);
    return rc ? rc : options_read_generation_config(o, shim_scratch_dir(), taken, e);
}

TEST(Options, TheModelsGenerationConfigGivesWayToTheUser) {
    static const char *json = "{\"do_sample\":true,\"temperature\":0.6,\"top_k\":20,\"top_p\":0.95,"
                              "\"min_p\":null,\"repetition_penalty\":1.05}";
    struct options o;
    struct error e;
    struct buffer taken = {0};
    ASSERT_INT_EQ(suggest(&o, "--top-k 7", json, &taken, &e), 0);
    EXPECT_NEAR(o.server.defaults.sampling.temperature, 0.6f, 0);
    EXPECT_INT_EQ(o.server.defaults.sampling.top_k, 7);
    EXPECT_NEAR(o.server.defaults.sampling.top_p, 0.95f, 0);
    EXPECT_NEAR(o.generation.sampling.repetition_penalty, 1.05f, 0);
    buffer_putc(&taken, '\0');
    EXPECT_STR_EQ(taken.data, "temperature 0.6, top_p 0.95, repetition_penalty 1.05");
    options_deinit(&o);

    taken.len = 0;
    ASSERT_INT_EQ(suggest(&o, "--generation-config none", json, &taken, &e), 0);
    EXPECT_NEAR(o.server.defaults.sampling.temperature, 1, 0);
    EXPECT_INT_EQ((int)taken.len, 0);
    options_deinit(&o);
    buffer_deinit(&taken);
}

TEST(Options, AWrongGenerationConfigIsNamed) {
    static const struct {
        const char *json, *says;
    } cases[] = {
        {"{\"temperature\":\"hot\"}", "temperature: expected a number"},
        {"{\"top_p\":1.5}", "--top-p 1.5: expected a number from 1e-06 to 1"},
        {"{\"top_k\":2.5}", "--top-k 2.5: expected an integer"},
        {"{\"temperature\":", "generation_config.json"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct options o;
        struct error e;
        struct buffer taken = {0};
        EXPECT_TRUE(suggest(&o, "", cases[i].json, &taken, &e) != 0);
        EXPECT_TRUE(strstr(e.text, cases[i].says) && strstr(e.text, "generation_config.json"));
        options_deinit(&o);
        buffer_deinit(&taken);
    }
}

TEST(Options, TheDemoModelIsFound) {
    char *dir = demo_model_find();
    EXPECT_TRUE(dir && strstr(dir, "demo-moe"));
    free(dir);
}
