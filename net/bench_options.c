#include "bench_options.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "host/nearest.h"

enum option_type {
    OPT_FLAG,
    OPT_INT,
    OPT_SEED,
    OPT_NUMBER,
    OPT_RATE, /* a number above 0, or inf */
    OPT_RANGE,
    OPT_STRING,
    OPT_DATASET,
};

struct option {
    const char *name;        /* without dashes */
    const char *alias;       /* the same thing elsewhere, or "" */
    const char *placeholder; /* in --help */
    enum option_type type;
    size_t offset; /* in struct bench_options */
    double min, max;
    const char *help;
};

#define AT(member)  offsetof(struct bench_options, member)
#define SET(member) offsetof(struct bench_options, settings.member)

/* clang-format off */
static const struct option table[] = {
    {"server", "", "HOST:PORT", OPT_STRING, SET(server), 0, 0,
     "a running server's line protocol, without TLS; without it one is started, with the options after --"},
    {"api-key", "", "KEY", OPT_STRING, AT(api_key), 0, 0,
     "for servers with keys; without it the first one in MOESERVE_API_KEY, which `ps` does not show"},
    {"num-prompts", "", "N", OPT_INT, SET(num_prompts), 1, 1e7,
     "requests to send and to count [64]"},
    {"warmup", "num-warmups", "N", OPT_INT, SET(warmup), 0, 1e7,
     "requests before these, not counted [4]"},
    {"max-concurrency", "", "N", OPT_INT, SET(max_concurrency), 1, 1e6,
     "requests in flight at most; the next one starts when one ends [no bound]"},
    {"request-rate", "", "R", OPT_RATE, SET(request_rate), 1e-6, 1e6,
     "requests per second, as a Poisson process; inf: as soon as there is room [inf]"},
    {"dataset", "dataset-name", "NAME", OPT_DATASET, SET(dataset), 0, 0,
     "text: sentences, as routing depends on what is said; random: random token ids [text]"},
    {"random-input-len", "input-len", "A[:B]", OPT_RANGE, SET(input_len), 1, 0,
     "tokens of a prompt; A:B: each length from A to B equally often [128]"},
    {"random-output-len", "output-len", "A[:B]", OPT_RANGE, SET(output_len), 1, 0,
     "tokens to generate [128]"},
    {"prefix-len", "random-prefix-len", "N", OPT_INT, SET(prefix_len), 0, 1e7,
     "tokens that all prompts begin with, besides --random-input-len [0]"},
    {"temperature", "", "X", OPT_NUMBER, SET(temperature), 0, 100,
     "0: always the most likely token [0]"},
    {"ignore-eos", "", "", OPT_FLAG, SET(ignore_eos), 0, 0,
     "generate exactly the wanted number of tokens [on; --no-ignore-eos]"},
    {"seed", "", "N", OPT_SEED, SET(seed), 0, 0,
     "of prompts, lengths and arrivals; the same seed twice finds its prompts in the cache [0]"},
    {"timeout", "", "S", OPT_NUMBER, SET(timeout_s), 0.001, 1e6,
     "seconds without a line after which a request has failed [600]"},
    {"json", "", "FILE", OPT_STRING, AT(json), 0, 0,
     "write settings, figures and the times of every request to FILE"},
    {"help", "", "", OPT_FLAG, AT(help), 0, 0, "print this text"},
};
/* clang-format on */
enum { NUM_OPTIONS = sizeof table / sizeof *table };

static void set_defaults(struct bench_options *o) {
    memset(o, 0, sizeof *o);
    o->settings = (struct bench_settings){
        .dataset = "text",
        .num_prompts = 64,
        .warmup = 4,
        .request_rate = INFINITY,
        .input_len = {128, 128},
        .output_len = {128, 128},
        .ignore_eos = true,
        .timeout_s = 600,
    };
}

/* ---- values --------------------------------------------------------------------------------- */

static int set_number(void *at, const struct option *opt, const char *value, struct error *error) {
    char *end;
    double v = strtod(value, &end);
    bool ok = end != value && !*end && v >= opt->min && v <= opt->max;
    if (opt->type == OPT_RATE && !strcmp(value, "inf")) {
        v = INFINITY;
        ok = true;
    }
    if (opt->type == OPT_INT && ok)
        ok = v == floor(v);
    if (!ok)
        return error_set(error, ERR_CONFIG, "--%s %s: expected %s from %.10g to %.10g%s", opt->name,
                         value, opt->type == OPT_INT ? "a whole number" : "a number", opt->min,
                         opt->max, opt->type == OPT_RATE ? ", or inf" : "");
    if (opt->type == OPT_INT)
        *(int32_t *)at = (int32_t)v;
    else
        *(double *)at = v;
    return 0;
}

static int set_seed(uint64_t *at, const char *value, struct error *error) {
    char *end;
    errno = 0;
    long long v = strtoll(value, &end, 10);
    if (end == value || *end || errno || v < 0)
        return error_set(error, ERR_CONFIG, "--seed %s: expected a whole number from 0 to %lld",
                         value, (long long)INT64_MAX);
    *at = (uint64_t)v;
    return 0;
}

static int set_value(struct bench_options *o, const struct option *opt, const char *value,
                     struct error *error) {
    struct error inner = {0};
    void *at = (char *)o + opt->offset;
    switch (opt->type) {
    case OPT_INT:
    case OPT_NUMBER:
    case OPT_RATE:
        return set_number(at, opt, value, error);
    case OPT_SEED:
        return set_seed(at, value, error);
    case OPT_RANGE:
        if (bench_range_parse(value, (int32_t)opt->min, at, &inner) != 0)
            return error_set(error, ERR_CONFIG, "--%s %s", opt->name, inner.text);
        return 0;
    case OPT_DATASET:
        if (strcmp(value, "text") && strcmp(value, "random"))
            return error_set(error, ERR_CONFIG, "--%s %s: expected text or random", opt->name,
                             value);
        break;
    case OPT_STRING:
    case OPT_FLAG:
        break;
    }
    *(const char **)at = value;
    return 0;
}

/* ---- the command line ----------------------------------------------------------------------- */

/* name is len bytes, without dashes. */
static const struct option *find(const char *name, size_t len) {
    for (int i = 0; i < NUM_OPTIONS; i++) {
        const char *names[] = {table[i].name, table[i].alias};
        for (int n = 0; n < 2; n++)
            if (len && strlen(names[n]) == len && !memcmp(names[n], name, len))
                return &table[i];
    }
    return NULL;
}

static int unknown(const char *name, struct error *error) {
    const char *names[NUM_OPTIONS];
    for (int i = 0; i < NUM_OPTIONS; i++)
        names[i] = table[i].name;
    const char *near = nearest_name(names, NUM_OPTIONS, name);
    if (near)
        return error_set(error, ERR_CONFIG, "unknown option --%s (did you mean --%s?)", name, near);
    return error_set(error, ERR_CONFIG,
                     "unknown option --%s (options of the server stand after --)", name);
}

/* One option at argv[0]; `left` arguments from there on. Returns how many it took or ERR_CONFIG. */
static int take(struct bench_options *o, int left, char **argv, struct error *error) {
    const char *name = argv[0] + 2, *eq = strchr(name, '=');
    size_t len = eq ? (size_t)(eq - name) : strlen(name);
    bool negated = !strncmp(name, "no-", 3);
    const struct option *opt = negated ? find(name + 3, len - 3) : find(name, len);
    if (!opt || (negated && opt->type != OPT_FLAG))
        return unknown(name, error);
    if (opt->type == OPT_FLAG) {
        if (eq)
            return error_set(error, ERR_CONFIG, "--%s: takes no value", opt->name);
        *(bool *)((char *)o + opt->offset) = !negated;
        return 1;
    }
    if (!eq && (left < 2 || !strncmp(argv[1], "--", 2)))
        return error_set(error, ERR_CONFIG, "--%s: a value is missing", opt->name);
    int rc = set_value(o, opt, eq ? eq + 1 : argv[1], error);
    return rc != 0 ? rc : eq ? 1 : 2;
}

int bench_options_parse(struct bench_options *out, int argc, char **argv, struct error *error) {
    set_defaults(out);
    for (int i = 1; i < argc;) {
        if (!strcmp(argv[i], "--")) {
            out->settings.server_args = argv + i + 1;
            break;
        }
        if (!strcmp(argv[i], "-h")) {
            out->help = true;
            i++;
            continue;
        }
        if (strncmp(argv[i], "--", 2) != 0)
            return error_set(error, ERR_CONFIG, "unexpected argument '%s' (see bench --help)",
                             argv[i]);
        int took = take(out, argc - i, argv + i, error);
        if (took < 0)
            return took;
        i += took;
    }
    if (out->settings.server && out->settings.server_args)
        return error_set(error, ERR_CONFIG,
                         "--server %s: a running server takes no options after --",
                         out->settings.server);
    return 0;
}

void bench_options_help(struct buffer *out) {
    buffer_puts(out, "usage: moeserve bench [OPTION ...] [-- SERVER OPTION ...]\n\n");
    for (int i = 0; i < NUM_OPTIONS; i++) {
        const struct option *opt = &table[i];
        buffer_printf(out, "  --%s%s%s", opt->name, *opt->placeholder ? " " : "", opt->placeholder);
        if (*opt->alias)
            buffer_printf(out, "  (--%s)", opt->alias);
        buffer_printf(out, "\n        %s\n", opt->help);
    }
    buffer_puts(out,
                "\nExit status: 0; 1 when a request failed (the figures are marked INVALID) or "
                "the run could\nnot be made; 2 when the arguments are wrong.\n");
}
