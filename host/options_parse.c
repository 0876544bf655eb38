/* options_parse: the command line, and what follows from several options together. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/options_internal.h"

#define AT(member) offsetof(struct options, member)

/* ---- the command line ---- */

/* One argument taken apart. */
struct argument {
    const struct option *option; /* NULL: not known */
    const char *value;           /* after '=', or the next argument; NULL: none */
    bool before_option;          /* it takes a value, but what follows looks like an option */
    bool negated;                /* --no-... */
    int used;                    /* arguments taken: 1 or 2 */
};

static void take_apart(unsigned command, char **argv, int left, struct argument *a) {
    const char *arg = argv[0], *eq = strchr(arg, '=');
    char dashed[80];
    snprintf(dashed, sizeof dashed, "%.*s", (int)(eq ? eq - arg : (long)strlen(arg)), arg);
    bool is_long = !strncmp(dashed, "--", 2);
    memset(a, 0, sizeof *a);
    a->used = 1;
    a->option = option_find(command, is_long ? dashed + 2 : NULL, dashed);
    if (!a->option && is_long && !strncmp(dashed, "--no-", 5)) {
        a->option = option_find(command, dashed + 5, "");
        a->negated = true;
        if (a->option && a->option->type != OPT_BOOL)
            a->option = NULL;
    }
    if (!a->option)
        return;
    if (eq) {
        a->value = eq + 1;
    } else if (a->option->type != OPT_BOOL && left > 1) {
        a->before_option = !strncmp(argv[1], "--", 2);
        a->value = a->before_option ? NULL : argv[1];
        a->used = a->before_option ? 1 : 2;
    }
}

static int apply(struct options *o, const char *arg, const struct argument *a,
                 struct error *error) {
    static const struct option_source here = {.origin = ORIGIN_FLAG};
    int name_len = (int)strcspn(arg, "=");
    if (a->option->type == OPT_BOOL && !a->value)
        return option_set(o, a->option, a->negated ? "false" : "true", &here, error);
    if (a->negated)
        return error_set(error, ERR_CONFIG, "%.*s: takes no value", name_len, arg);
    if (!a->value)
        return error_set(error, ERR_CONFIG, "%s: a value is missing%s%s%s", arg,
                         a->before_option ? " (one that begins with -- is given as " : "",
                         a->before_option ? arg : "", a->before_option ? "=VALUE)" : "");
    return option_set(o, a->option, a->value, &here, error);
}

/* before: the option of the argument before this one, or NULL. What stands behind a secret may be
 * more of it. */
static int unknown_argument(unsigned command, const char *arg, const struct option *before,
                            struct error *error) {
    char shown[80], bare[80];
    if (arg[0] != '-' && before && before->type == OPT_SECRETS)
        return error_set(error, ERR_CONFIG, "unexpected argument behind --%s", before->name);
    if (arg[0] != '-')
        return error_set(error, ERR_CONFIG,
                         "unexpected argument '%s' (a command comes first; see --help)", arg);
    const char *name = arg + strspn(arg, "-");
    snprintf(shown, sizeof shown, "%.*s", (int)strcspn(arg, "="), arg);
    snprintf(bare, sizeof bare, "%.*s", (int)strcspn(name, "="), name);
    const char *near = option_nearest(command, bare);
    if (near)
        return error_set(error, ERR_CONFIG, "unknown option %s (did you mean --%s?)", shown, near);
    return error_set(error, ERR_CONFIG, "unknown option %s (see --help)", shown);
}

static int set_flags(struct options *o, unsigned command, int argc, char **argv,
                     struct error *error) {
    struct argument a = {0};
    int rc = 0;
    for (int i = 1; i < argc && rc == 0; i += a.used) {
        const struct option *before = a.option;
        take_apart(command, argv + i, argc - i, &a);
        rc = a.option ? apply(o, argv[i], &a, error)
                      : unknown_argument(command, argv[i], before, error);
    }
    return rc;
}

/* The files of --config, or else the one that MOESERVE_CONFIG names. */
static int read_files(struct options *o, unsigned command, int argc, char **argv,
                      struct error *error) {
    const char *path = getenv("MOESERVE_CONFIG");
    struct argument a;
    bool any = false;
    int rc = 0;
    for (int i = 1; i < argc && rc == 0; i += a.used) {
        take_apart(command, argv + i, argc - i, &a);
        if (a.option && a.option->offset == AT(config) && a.value) {
            rc = options_read_file(o, command, a.value, error);
            any = true;
        }
    }
    if (rc == 0 && !any && path && *path)
        rc = options_read_file(o, command, path, error);
    return rc;
}

void options_hide_secrets(unsigned command, int argc, char **argv) {
    struct argument a;
    for (int i = 1; i < argc; i += a.used) {
        take_apart(command, argv + i, argc - i, &a);
        if (a.option && a.option->type == OPT_SECRETS && a.value) {
            char *value = a.used == 2 ? argv[i + 1] : argv[i] + (a.value - argv[i]);
            memset(value, '*', strlen(value));
        }
    }
}

/* ---- what follows from several options ---- */

/* "3" is GPUs 0, 1 and 2; "3," or "0,3" are lists; a GPU that is named twice has two ranks. */
static int parse_gpus(struct engine_options *e, const char *text, struct error *error) {
    bool list = strchr(text, ',') != NULL;
    const char *p = text;
    e->num_gpus = 0;
    while (*p >= '0' && *p <= '9') {
        char *end;
        long n = strtol(p, &end, 10);
        if (list ? n > 1023 || e->num_gpus == MAX_GPUS : n > MAX_GPUS)
            return error_set(error, ERR_CONFIG, "--gpus %s: up to %d GPUs are possible", text,
                             MAX_GPUS);
        if (!list) {
            for (; e->num_gpus < n; e->num_gpus++)
                e->gpus[e->num_gpus] = e->num_gpus;
        } else {
            e->gpus[e->num_gpus++] = (int32_t)n;
        }
        p = end + (*end == ',');
        if (*end != ',')
            break;
    }
    if (*p || p == text)
        return error_set(error, ERR_CONFIG,
                         "--gpus %s: expected a number of GPUs or a list such as 0,2,3", text);
    return 0;
}

/* "24G", or "24G,24G,12G": sizes of at least a MiB. */
static int parse_gpu_memory(struct options *o, struct error *error) {
    const double least = 1 << 20, most = (double)(1LL << 50);
    o->num_memory = 0;
    for (const char *p = o->gpu_memory; p;) {
        char size[32];
        int len = (int)strcspn(p, ",");
        double bytes = 0;
        snprintf(size, sizeof size, "%.*s", len, p);
        if (len >= (int)sizeof size || !option_parse_bytes(size, &bytes) || bytes < least ||
            bytes > most)
            return error_set(error, ERR_CONFIG,
                             "--gpu-memory %s: expected sizes such as 24G or 24G,24G,12G",
                             o->gpu_memory);
        if (o->num_memory == MAX_GPUS)
            return error_set(error, ERR_CONFIG, "--gpu-memory %s: up to %d sizes are possible",
                             o->gpu_memory, MAX_GPUS);
        o->memory[o->num_memory++] = (int64_t)bytes;
        p = p[len] ? p + len + 1 : NULL;
    }
    return 0;
}

/* Ranks of one model share a GPU's memory by agreement; replicas know nothing of each other. */
static int check_shared_gpus(const struct options *o, struct error *error) {
    const struct engine_options *e = &o->engine;
    for (int32_t i = 0; i < e->num_gpus && e->replicas > 1; i++)
        for (int32_t k = 0; k < i; k++)
            if (e->gpus[k] == e->gpus[i])
                return error_set(error, ERR_CONFIG,
                                 "--gpus %s: GPU %d twice, but --replicas %d share none", o->gpus,
                                 e->gpus[i], e->replicas);
    return 0;
}

/* --gpus and --device say the same thing twice. */
static int choose_device(struct options *o, struct error *error) {
    struct engine_options *e = &o->engine;
    struct option_source *device = option_source(o, option_named("device"));
    bool cuda = !strcmp(e->device, "cuda");
    int rc = parse_gpus(e, o->gpus ? o->gpus : cuda ? "1" : "0", error);
    if (rc)
        return rc;
    if (cuda && e->num_gpus == 0)
        return error_set(error, ERR_CONFIG, "--device cuda: --gpus 0 leaves none");
    if (!cuda && e->num_gpus > 0) {
        if (device->origin != ORIGIN_DEFAULT)
            return error_set(error, ERR_CONFIG, "--gpus %s: --device %s uses no GPU", o->gpus,
                             e->device);
        e->device = "cuda";
        *device = *option_source(o, option_named("gpus"));
    }
    return 0;
}

/* --verbose and --quiet are short for a level; of the three the one that was set last counts, and
 * those that do not are as if they had not been given. */
static void choose_log_level(struct options *o) {
    struct option_source *level = option_source(o, option_named("log-level"));
    const struct {
        bool *on;
        struct option_source *source;
        const char *level;
    } shorts[] = {{&o->verbose, option_source(o, option_named("verbose")), "debug"},
                  {&o->quiet, option_source(o, option_named("quiet")), "warn"}};
    for (int i = 0; i < 2; i++)
        if (*shorts[i].on && shorts[i].source->order > level->order) {
            o->log_level = shorts[i].level;
            *level = *shorts[i].source;
        }
    for (int i = 0; i < 2; i++)
        if (*shorts[i].on && shorts[i].source->order < level->order) {
            *shorts[i].on = false;
            *shorts[i].source = (struct option_source){0};
        }
}

static int check_together(struct options *o, struct error *error) {
    int rc = choose_device(o, error);
    if (rc == 0)
        rc = check_shared_gpus(o, error);
    if (rc == 0)
        rc = parse_gpu_memory(o, error);
    if (rc == 0 && o->generation.min_tokens > o->generation.max_tokens)
        rc = error_set(error, ERR_CONFIG, "--min-tokens %d: more than --max-tokens %d",
                       o->generation.min_tokens, o->generation.max_tokens);
    return rc;
}

int options_parse(struct options *o, unsigned command, int argc, char **argv, struct error *error) {
    int rc = read_files(o, command, argc, argv, error);
    if (rc == 0)
        rc = options_read_environment(o, error);
    if (rc == 0)
        rc = set_flags(o, command, argc, argv, error);
    choose_log_level(o);
    if (rc == 0)
        rc = check_together(o, error);
    o->keys.texts = o->api_keys.items;
    o->keys.num_texts = o->api_keys.count;
    o->server.defaults = o->generation;
    return rc;
}
