/* INI files, the environment, and `config --print`: what is written is read again, for every row of
 * the table. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/ini.h"
#include "host/options.h"
#include "host/options_internal.h"
#include "tests/program.h"
#include "tests/shim.h"

static const unsigned commands[] = {CMD_SERVE, CMD_GENERATE, CMD_PLAN};

/* ---- helpers ---- */

static const char *write_file(const char *text, size_t len) {
    static char path[256];
    snprintf(path, sizeof path, "%s/config.ini", shim_scratch_dir());
    FILE *f = fopen(path, "w");
    fwrite(text, 1, len, f);
    fclose(f);
    return path;
}

static int parse(struct options *o, unsigned command, const char *one, const char *two,
                 struct error *e) {
    char a[300], b[300], *argv[] = {"serve", a, b, NULL};
    memset(e, 0, sizeof *e);
    snprintf(a, sizeof a, "%s", one ? one : "");
    snprintf(b, sizeof b, "%s", two ? two : "");
    options_init(o);
    return options_parse(o, command, !one ? 1 : two ? 3 : 2, argv, e);
}

static int parse_file(struct options *o, unsigned command, const char *text, size_t len,
                      struct error *e) {
    return parse(o, command, "--config", write_file(text, len), e);
}

/* A value that is not the default, and is right beside the defaults of all others. */
static void another_value(const struct options *defaults, const struct option *opt, char *out,
                          size_t size) {
    struct buffer now = {0};
    const char *last = opt->choices ? strrchr(opt->choices, ' ') + 1 : NULL;
    option_format(defaults, opt, &now);
    buffer_putc(&now, '\0');
    if (!strcmp(opt->name, "gpus"))
        snprintf(out, size, "1,0,3");
    else if (!strcmp(opt->name, "gpu-memory"))
        snprintf(out, size, "24G,12.5G");
    else if (!strcmp(opt->name, "device"))
        snprintf(out, size, "ref");
    else if (!strcmp(opt->name, "min-tokens"))
        snprintf(out, size, "7");
    else if (opt->type == OPT_BOOL)
        snprintf(out, size, "%s", strcmp(now.data, "true") ? "true" : "false");
    else if (opt->type == OPT_CHOICE)
        snprintf(out, size, "%.*s", strcmp(now.data, last) ? 99 : (int)strcspn(opt->choices, " "),
                 strcmp(now.data, last) ? last : opt->choices);
    else if (opt->type == OPT_SEED)
        snprintf(out, size, "18446744073709551615");
    else if (opt->type == OPT_NUMBER)
        snprintf(out, size, "%.9g", (double)(float)(opt->min + (opt->max - opt->min) / 3));
    else if (opt->type == OPT_ORIGIN)
        snprintf(out, size, "https://a.example:8443");
    else if (opt->type == OPT_LISTEN)
        snprintf(out, size, "[::1]:9");
    else if (opt->type == OPT_STRING)
        snprintf(out, size, "%s", " a \"b\\n\" ;c\t\x01 # é\xff ");
    else
        snprintf(out, size, "%.0f", opt->max);
    buffer_deinit(&now);
}

static bool same_value(const struct options *a, const struct options *b, const struct option *opt) {
    struct buffer x = {0}, y = {0};
    bool has_x = option_format(a, opt, &x), has_y = option_format(b, opt, &y);
    bool same = has_x == has_y && x.len == y.len && (x.len == 0 || !memcmp(x.data, y.data, x.len));
    buffer_deinit(&x);
    buffer_deinit(&y);
    return same;
}

static void expect_same(const struct options *a, const struct options *b, unsigned command,
                        const char *what) {
    EXPECT_INT_EQ(a->seed_given, b->seed_given);
    EXPECT_INT_EQ(a->engine.num_gpus, b->engine.num_gpus);
    EXPECT_INT_EQ(a->num_memory, b->num_memory);
    for (int i = 0; i < num_options; i++) {
        const struct option *opt = &option_table[i];
        if (opt->name && (opt->commands & command) && !option_is_flag_only(opt) &&
            !same_value(a, b, opt))
            FAIL("%s: --%s is not the same", what, opt->name);
    }
}

static bool is_value(const struct option *opt, unsigned command) {
    return opt->name && (opt->commands & command) && !option_is_flag_only(opt) &&
           opt->type != OPT_SECRETS;
}

/* ---- round trips ---- */

TEST(Config, WhatIsPrintedIsReadAgainForEveryOption) {
    for (size_t c = 0; c < sizeof commands / sizeof *commands; c++)
        for (int i = 0; i < num_options; i++) {
            const struct option *opt = &option_table[i];
            struct options defaults, a, b;
            struct error e;
            struct buffer text = {0};
            char value[64], flag[128];
            if (!is_value(opt, commands[c]))
                continue;
            options_init(&defaults);
            another_value(&defaults, opt, value, sizeof value);
            snprintf(flag, sizeof flag, "--%s=%s", opt->name, value);
            EXPECT_INT_EQ(parse(&a, commands[c], flag, NULL, &e), 0);
            if (e.code)
                FAIL("%s: %s", flag, e.text);
            EXPECT_FALSE(same_value(&a, &defaults, opt));
            options_print(&a, commands[c], &text);
            if (parse_file(&b, commands[c], text.data, text.len, &e) != 0)
                FAIL("%s: %s", flag, e.text);
            expect_same(&a, &b, commands[c], flag);
            EXPECT_INT_EQ(b.source[i].origin, ORIGIN_FILE);
            buffer_deinit(&text);
            options_deinit(&a);
            options_deinit(&b);
            options_deinit(&defaults);
        }
}

/* Defaults are printed as comments; without their ';' they are what they were. */
TEST(Config, PrintedDefaultsAreDefaults) {
    for (size_t c = 0; c < sizeof commands / sizeof *commands; c++) {
        struct options a, b;
        struct error e;
        struct buffer text = {0}, live = {0};
        char *save = NULL;
        int lines = 0, values = 0;
        ASSERT_INT_EQ(parse(&a, commands[c], NULL, NULL, &e), 0);
        options_print(&a, commands[c], &text);
        buffer_putc(&text, '\0');
        EXPECT_TRUE(strstr(text.data, "help") == NULL);
        for (char *l = strtok_r(text.data, "\n", &save); l; l = strtok_r(NULL, "\n", &save)) {
            EXPECT_INT_EQ(*l, ';');
            if (strstr(l, "  ; default") && ++lines)
                buffer_printf(&live, "%s\n", l + 1);
        }
        for (int i = 0; i < num_options; i++) {
            struct buffer unused = {0};
            values += is_value(&option_table[i], commands[c]) && option_table[i].help &&
                      option_format(&a, &option_table[i], &unused);
            buffer_deinit(&unused);
        }
        EXPECT_INT_EQ(lines, values);
        if (!EXPECT_INT_EQ(parse_file(&b, commands[c], live.data, live.len, &e), 0))
            FAIL("%s", e.text);
        b.seed_given = false;
        expect_same(&a, &b, commands[c], "defaults");
        buffer_deinit(&text);
        buffer_deinit(&live);
        options_deinit(&a);
        options_deinit(&b);
    }
}

/* What --device, --min-tokens or --quiet of the same file rule out. */
static bool is_ruled_out(const struct option *opt) {
    return option_in_list("gpus max-tokens verbose", opt->name);
}

/* Every option of serve at once, so that each has a line in one file. */
TEST(Config, OneFileCoversEveryOption) {
    struct options defaults, o;
    struct error e;
    struct buffer text = {0};
    char value[64];
    options_init(&defaults);
    for (int i = 0; i < num_options; i++)
        if (is_value(&option_table[i], CMD_SERVE) && !is_ruled_out(&option_table[i])) {
            another_value(&defaults, &option_table[i], value, sizeof value);
            buffer_printf(&text, "%s = ", option_table[i].name);
            ini_put_value(&text, value);
            buffer_putc(&text, '\n');
        }
    if (!EXPECT_INT_EQ(parse_file(&o, CMD_SERVE, text.data, text.len, &e), 0))
        FAIL("%s", e.text);
    for (int i = 0; i < num_options; i++)
        if (is_value(&option_table[i], CMD_SERVE) && !is_ruled_out(&option_table[i]) &&
            same_value(&o, &defaults, &option_table[i]))
            FAIL("--%s was not set", option_table[i].name);
    buffer_deinit(&text);
    options_deinit(&o);
    options_deinit(&defaults);
}

/* ---- INI files ---- */

static int collect(void *ctx, const char *name, const char *value, int32_t line, struct error *e) {
    (void)e;
    buffer_printf(ctx, "%d[%s][%s]", line, name, value);
    return 0;
}

TEST(Config, IniLinesAreTakenApart) {
    static const struct {
        const char *text, *says;
        size_t len; /* 0: to the NUL */
    } cases[] = {
        {"a=1", "1[a][1]", 0},
        {"\xef\xbb\xbf a : 1 \r\n\r\n", "1[a][1]", 0},
        {"; c\n# c\n  ; c\n[s] x\nb = 2 ; c\nb = 2;c\n", "5[b][2]6[b][2;c]", 0},
        {"a = b = c : d\n", "1[a][b = c : d]", 0},
        {"a =\nb = ; c\nc =;d", "1[a][]2[b][]3[c][;d]", 0},
        {"a = x # y\n", "1[a][x # y]", 0},
        {"a = \" x ; \\\"y\\\\\\x41\\n\" ; c\n", "1[a][ x ; \"y\\A\n]", 0},
        {"a = \"\"\nb = x\"y\"", "1[a][]2[b][x\"y\"]", 0},
        {"a = \"x", "config.ini:1: a quote is not closed", 0},
        {"a = \"x\\\"", "config.ini:1: a quote is not closed", 0},
        {"a = \"x\" y", "config.ini:1: something follows the closing quote", 0},
        {"a = \"\\q\"", "config.ini:1: within quotes, a backslash", 0},
        {"a = \"\\x0", "config.ini:1: within quotes, a backslash", 0},
        {"a = \"\\x00\"", "config.ini:1: within quotes, a backslash", 0},
        {"a = \"\\", "config.ini:1: within quotes, a backslash", 0},
        {"a = 1\n= 2", "config.ini:2: expected `name = value`", 0},
        {"a", "config.ini:1: expected `name = value`", 0},
        {"[a", "config.ini:1: expected `name = value`", 0},
        {"a = b\0c\n", "config.ini:1: a NUL byte", 8},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct buffer got = {0};
        struct error e = {0};
        size_t len = cases[i].len ? cases[i].len : strlen(cases[i].text);
        int rc = ini_read(write_file(cases[i].text, len), collect, &got, &e);
        buffer_putc(&got, '\0');
        if (!strstr(rc ? e.text : got.data, cases[i].says))
            FAIL("'%s' gives '%s', not '%s'", cases[i].text, rc ? e.text : got.data, cases[i].says);
        buffer_deinit(&got);
    }
}

TEST(Config, IniFilesThatCannotBeReadSayWhy) {
    struct error e = {0};
    EXPECT_INT_EQ(ini_read("/no/such.ini", collect, NULL, &e), ERR_CONFIG);
    EXPECT_STR_EQ(e.text, "/no/such.ini: No such file or directory");
    EXPECT_INT_EQ(ini_read("/", collect, NULL, &e), ERR_CONFIG);
    EXPECT_STR_EQ(e.text, "/: Is a directory");
}

/* ---- the environment ---- */

TEST(Config, FlagsWinOverTheEnvironmentAndThatOverFiles) {
    static const char text[] = "ranks = 2\nmax-num-seqs = 2\nmax-queued-requests = 2\n";
    struct options o;
    struct error e;
    char *argv[] = {"serve", "--config", (char *)write_file(text, sizeof text - 1), "--ranks=4"};
    memset(&e, 0, sizeof e);
    setenv("MOESERVE_RANKS", "3", 1);
    setenv("MOESERVE_MAX_NUM_SEQS", "3", 1);
    setenv("MOESERVE_LISTEN", "", 1); /* as if it were not set */
    setenv("MOESERVE_PROMPT", "of generate", 1);
    options_init(&o);
    EXPECT_INT_EQ(options_parse(&o, CMD_SERVE, 4, argv, &e), 0);
    EXPECT_INT_EQ(o.engine.ranks, 4);
    EXPECT_INT_EQ(o.engine.max_num_seqs, 3);
    EXPECT_INT_EQ(o.engine.max_queued_requests, 2);
    EXPECT_STR_EQ(o.server.listen, "127.0.0.1:7070");
    EXPECT_INT_EQ(o.num_warnings, 0);
    struct buffer out = {0};
    options_print(&o, CMD_SERVE, &out);
    buffer_putc(&out, '\0');
    EXPECT_TRUE(strstr(out.data, "\nranks = 4  ; command line\n") != NULL);
    EXPECT_TRUE(strstr(out.data, "\nmax-num-seqs = 3  ; environment MOESERVE_MAX_NUM_SEQS\n"));
    EXPECT_TRUE(strstr(out.data, "\nmax-queued-requests = 2  ; /") != NULL);
    EXPECT_TRUE(strstr(out.data, "config.ini:3\n") != NULL);
    EXPECT_TRUE(strstr(out.data, "\n;threads = 0  ; default\n") != NULL);
    buffer_deinit(&out);
    options_deinit(&o);
    unsetenv("MOESERVE_RANKS");
    unsetenv("MOESERVE_MAX_NUM_SEQS");
    unsetenv("MOESERVE_LISTEN");
    unsetenv("MOESERVE_PROMPT");
}

TEST(Config, EveryOptionHasAVariable) {
    for (int i = 0; i < num_options; i++) {
        const struct option *opt = &option_table[i];
        struct options defaults, o;
        struct error e;
        char name[96], value[64];
        if (!is_value(opt, ALL))
            continue;
        options_init(&defaults);
        another_value(&defaults, opt, value, sizeof value);
        setenv(option_variable(opt, name), value, 1);
        if (!EXPECT_INT_EQ(parse(&o, CMD_SERVE, NULL, NULL, &e), 0))
            FAIL("%s: %s", name, e.text);
        if (same_value(&o, &defaults, opt))
            FAIL("%s was not taken", name);
        EXPECT_INT_EQ(o.num_warnings, 0);
        unsetenv(name);
        options_deinit(&o);
        options_deinit(&defaults);
    }
}

TEST(Config, MistakesOfTheEnvironmentAreNamed) {
    struct options o;
    struct error e;
    setenv("MOESERVE_RANKS", "many", 1);
    EXPECT_INT_EQ(parse(&o, CMD_SERVE, NULL, NULL, &e), ERR_CONFIG);
    EXPECT_STR_EQ(e.text,
                  "environment MOESERVE_RANKS: --ranks many: expected an integer from 1 to 16");
    options_deinit(&o);
    unsetenv("MOESERVE_RANKS");
    setenv("MOESERVE_RANSK", "2", 1);
    setenv("MOESERVE_PORT_7070_TCP", "tcp://10.0.0.1:7070", 1);
    setenv("MOESERVE_SERVICE_HOST", "10.0.0.1", 1);
    EXPECT_INT_EQ(parse(&o, CMD_SERVE, NULL, NULL, &e), 0);
    ASSERT_INT_EQ(o.num_warnings, 1);
    EXPECT_STR_EQ(o.warnings[0], "environment MOESERVE_RANSK: no option has this name (did you "
                                 "mean MOESERVE_RANKS?)");
    options_deinit(&o);
    unsetenv("MOESERVE_RANSK");
    setenv("MOESERVE_HELP", "1", 1); /* an option, but none that is set there */
    EXPECT_INT_EQ(parse(&o, CMD_SERVE, NULL, NULL, &e), 0);
    ASSERT_INT_EQ(o.num_warnings, 1);
    EXPECT_STR_EQ(o.warnings[0], "environment MOESERVE_HELP: no option has this name");
    options_deinit(&o);
    unsetenv("MOESERVE_HELP");
    unsetenv("MOESERVE_PORT_7070_TCP");
    unsetenv("MOESERVE_SERVICE_HOST");
}

TEST(Config, TheEnvironmentMayNameTheFile) {
    struct options o;
    struct error e;
    setenv("MOESERVE_CONFIG", write_file("ranks = 7\n", 10), 1);
    EXPECT_INT_EQ(parse(&o, CMD_SERVE, NULL, NULL, &e), 0);
    EXPECT_INT_EQ(o.engine.ranks, 7);
    EXPECT_INT_EQ(o.num_warnings, 0);
    options_deinit(&o);
    EXPECT_INT_EQ(parse(&o, CMD_SERVE, "--config", "/dev/null", &e), 0);
    EXPECT_INT_EQ(o.engine.ranks, 1);
    options_deinit(&o);
    unsetenv("MOESERVE_CONFIG");
}

TEST(Config, AFlagBesideAnotherSourceDecidesTheLogLevel) {
    struct options o;
    struct error e;
    static const struct {
        const char *variable, *flag, *level;
    } cases[] = {
        {"debug", NULL, "debug"},
        {"debug", "--quiet", "warn"},
        {"error", "-v", "debug"},
        {"info", "--verbose", "debug"},
        {"debug", "--log-level=error", "error"},
        {NULL, "-q", "warn"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cases[i].variable)
            setenv("MOESERVE_LOG_LEVEL", cases[i].variable, 1);
        else
            unsetenv("MOESERVE_LOG_LEVEL");
        EXPECT_INT_EQ(parse(&o, CMD_SERVE, cases[i].flag, NULL, &e), 0);
        EXPECT_STR_EQ(o.log_level, cases[i].level);
        options_deinit(&o);
    }
}

/* Of --log-level, --verbose and --quiet the last one counts, and what is printed says that alone.
 */
TEST(Config, TheLastOfSeveralDecidesTheLogLevel) {
    static const struct {
        const char *file, *one, *two, *level;
    } cases[] = {
        {"", "--log-level=debug", "-q", "warn"},
        {"", "-q", "--log-level=debug", "debug"},
        {"", "-v", "-q", "warn"},
        {"", "-q", "-v", "debug"},
        {"", "--log-level=error", "--no-quiet", "error"},
        {"log-level = info\nquiet = true\n", NULL, NULL, "warn"},
        {"quiet = true\nlog-level = info\n", NULL, NULL, "info"},
        {"verbose = true\n", "-q", NULL, "warn"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct options o, again;
        struct error e = {0};
        struct buffer text = {0};
        char path[256], one[32], two[32], *argv[] = {"serve", "--config", path, one, two, NULL};
        snprintf(path, sizeof path, "%s", write_file(cases[i].file, strlen(cases[i].file)));
        snprintf(one, sizeof one, "%s", cases[i].one ? cases[i].one : "");
        snprintf(two, sizeof two, "%s", cases[i].two ? cases[i].two : "");
        options_init(&o);
        EXPECT_INT_EQ(options_parse(&o, CMD_SERVE, 3 + (*one != 0) + (*two != 0), argv, &e), 0);
        if (!EXPECT_STR_EQ(o.log_level, cases[i].level))
            FAIL("case %zu", i);
        options_print(&o, CMD_SERVE, &text);
        EXPECT_INT_EQ(parse_file(&again, CMD_SERVE, text.data, text.len, &e), 0);
        EXPECT_STR_EQ(again.log_level, cases[i].level);
        buffer_deinit(&text);
        options_deinit(&o);
        options_deinit(&again);
    }
}

/* ---- secrets ---- */

TEST(Config, KeysComeFromOneSourceAndAreNeverShown) {
    static const char text[] = "api-key = SECRET-a\napi-key = \"SECRET-b\"\n";
    struct options o;
    struct error e;
    struct buffer out = {0};
    ASSERT_INT_EQ(parse_file(&o, CMD_SERVE, text, sizeof text - 1, &e), 0);
    ASSERT_INT_EQ(o.keys.num_texts, 2);
    EXPECT_STR_EQ(o.keys.texts[0], "SECRET-a");
    EXPECT_STR_EQ(o.keys.texts[1], "SECRET-b");
    options_print(&o, CMD_SERVE, &out);
    buffer_putc(&out, '\0');
    EXPECT_TRUE(strstr(out.data, "; api-key is set (2 of them, from /") != NULL);
    EXPECT_TRUE(strstr(out.data, "SECRET") == NULL);
    options_deinit(&o);

    setenv("MOESERVE_API_KEY", " SECRET-c\tSECRET-d\nSECRET-e ", 1);
    ASSERT_INT_EQ(parse_file(&o, CMD_SERVE, text, sizeof text - 1, &e), 0);
    ASSERT_INT_EQ(o.keys.num_texts, 3);
    EXPECT_STR_EQ(o.keys.texts[0], "SECRET-c");
    EXPECT_STR_EQ(o.keys.texts[2], "SECRET-e");
    options_deinit(&o);

    ASSERT_INT_EQ(parse(&o, CMD_SERVE, "--api-key=SECRET-f", "--api-key=SECRET-g", &e), 0);
    ASSERT_INT_EQ(o.keys.num_texts, 2);
    EXPECT_STR_EQ(o.keys.texts[1], "SECRET-g");
    options_deinit(&o);
    unsetenv("MOESERVE_API_KEY");
    ASSERT_INT_EQ(parse(&o, CMD_SERVE, NULL, NULL, &e), 0);
    EXPECT_INT_EQ(o.keys.num_texts, 0);
    options_deinit(&o);
    buffer_clear(&out);
    options_help(CMD_SERVE, &out);
    buffer_putc(&out, '\0');
    EXPECT_TRUE(strstr(out.data, "--api-key KEY") != NULL);
    buffer_deinit(&out);
}

TEST(Config, NoMessageQuotesASecret) {
    static const struct {
        const char *one, *two, *says;
    } cases[] = {
        {"--api-key=", NULL, "--api-key: expected a value"},
        {"--api-key", NULL, "--api-key: a value is missing"},
        {"--api-key", "--SECRET",
         "--api-key: a value is missing (one that begins with -- is given as --api-key=VALUE)"},
        {"--apikey=SECRET", NULL, "unknown option --apikey (did you mean --api-key?)"},
        {"--no-api-key=SECRET", NULL, "unknown option --no-api-key (see --help)"},
        {"--api-key=x", "SECRET", "unexpected argument behind --api-key"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct options o;
        struct error e;
        EXPECT_INT_EQ(parse(&o, CMD_SERVE, cases[i].one, cases[i].two, &e), ERR_CONFIG);
        EXPECT_STR_EQ(e.text, cases[i].says);
        options_deinit(&o);
    }
    static const char *const files[] = {"apikey = SECRET", "api-key SECRET", "api-key = \"SECRET",
                                        "api-key =\napi-key = \"SECRET\" SECRET"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        struct options o;
        struct error e;
        EXPECT_INT_EQ(parse_file(&o, CMD_SERVE, files[i], strlen(files[i]), &e), ERR_CONFIG);
        EXPECT_TRUE(strstr(e.text, "SECRET") == NULL);
        options_deinit(&o);
    }
}

TEST(Config, SecretsAreTakenOffTheCommandLine) {
    char a[] = "--api-key", b[] = "SECRET", c[] = "--api-key=SECRET", d[] = "--api-key-file",
         f[] = "path";
    char *argv[] = {"serve", a, b, c, d, f, NULL};
    options_hide_secrets(CMD_SERVE, 6, argv);
    EXPECT_STR_EQ(a, "--api-key");
    EXPECT_STR_EQ(b, "******");
    EXPECT_STR_EQ(c, "--api-key=******");
    EXPECT_STR_EQ(f, "path");
}

/* ---- the command ---- */

TEST(Config, TheCommandPrintsAndChecks) {
    NEEDS_BINARY();
    char line[256];
    const char *help[] = {"config", "--help", NULL};
    EXPECT_INT_EQ(program_run(help, line, sizeof line), 0);
    EXPECT_TRUE(strstr(line, "usage: moeserve config") != NULL);
    const char *print[] = {"config", "--for", "plan", "--ranks=3", NULL};
    EXPECT_INT_EQ(program_run(print, line, sizeof line), 0);
    EXPECT_STR_EQ(line, "; What stands behind a ';' alone is a default, and how it is called.");
    const char *good[] = {"config", "--check", "--ranks", "3", NULL};
    EXPECT_INT_EQ(program_run(good, line, sizeof line), 0);
    EXPECT_STR_EQ(line, "");
    const char *bad[] = {"config", "--check", "--ranks", "0", NULL};
    EXPECT_INT_EQ(program_run(bad, line, sizeof line), 2);
    static const char *const refused[][4] = {
        {"--api-key-file", "/no/such"},
        {"--model", "/no/such"},
        {"--listen", "0.0.0.0:7070"},
        {"--http", "[::]:8000"},
        {"--listen", "off", "--http", "off"},
        {"--tls-cert", "/dev/null"},
        {"--tls-cert", "/dev/null", "--tls-key", "/dev/null"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        const char *const *r = refused[i];
        const char *args[] = {"config", "--check", r[0], r[1], r[2], r[3], NULL};
        if (!EXPECT_INT_EQ(program_run(args, line, sizeof line), 2))
            FAIL("%s %s", r[0], r[1]);
        /* What they come to can be looked at nevertheless. */
        args[1] = "--print";
        if (i >= 2 && !EXPECT_INT_EQ(program_run(args, line, sizeof line), 0))
            FAIL("--print %s %s", r[0], r[1]);
    }
    const char *exposed[] = {"config", "--check", "--listen", "0.0.0.0:7070", "--insecure", NULL};
    EXPECT_INT_EQ(program_run(exposed, line, sizeof line), 0);
    const char *no_command[] = {"config", "--for=bench", NULL};
    EXPECT_INT_EQ(program_run(no_command, line, sizeof line), 2);
}
