/* options_source: values that do not stand on the command line: files, the environment, and what
 * the model's authors suggest. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/file.h"
#include "host/ini.h"
#include "host/json.h"
#include "host/mem.h"
#include "host/options_internal.h"

enum { MAX_GENERATION_CONFIG_BYTES = 1 << 20 };

/* ---- files ---- */

struct file_reader {
    struct options *o;
    unsigned command;
    const char *path; /* kept by the options */
};

static int on_ini_value(void *ctx, const char *name, const char *value, int32_t line,
                        struct error *error) {
    struct file_reader *r = ctx;
    const struct option *opt = option_find_bare(name);
    const struct option_source here = {.origin = ORIGIN_FILE, .name = r->path, .line = line};
    if (!opt) {
        const char *near = option_nearest(r->command, name);
        return near ? error_set(error, ERR_CONFIG, "unknown option %s (did you mean %s?)", name,
                                near)
                    : error_set(error, ERR_CONFIG, "unknown option %s (see --help)", name);
    }
    if (option_is_flag_only(opt))
        return error_set(error, ERR_CONFIG, "%s: not allowed in a file", name);
    const struct option_source *before = option_source(r->o, opt);
    if (opt->type != OPT_SECRETS && before->origin == ORIGIN_FILE && before->name == r->path)
        return error_set(error, ERR_CONFIG, "%s: a second time, after line %d", name, before->line);
    /* A file may serve several commands: options of another one are checked, then left alone. */
    return option_set(r->o, opt, value, &here, error);
}

int options_read_file(struct options *o, unsigned command, const char *path, struct error *error) {
    struct error inner = {0};
    char *kept = xstrdup(path);
    options_keep(o, kept);
    struct file_reader r = {.o = o, .command = command, .path = kept};
    if (ini_read(path, on_ini_value, &r, &inner) != 0)
        return error_set(error, ERR_CONFIG, "--config %.4000s", inner.text);
    return 0;
}

/* ---- the environment ---- */

static const char PREFIX[] = "MOESERVE_";

const char *option_variable(const struct option *opt, char name[96]) {
    int len = snprintf(name, 96, "%s%s", PREFIX, opt->name);
    for (int i = 0; i < len; i++) {
        if (name[i] == '-')
            name[i] = '_';
        else if (name[i] >= 'a' && name[i] <= 'z')
            name[i] -= 'a' - 'A';
    }
    return name;
}

/* Sets every word of the variable: only keys may be several, and they hold no blanks. */
static int set_secrets(struct options *o, const struct option *opt, const char *words,
                       const struct option_source *from, struct error *error) {
    char *copy = xstrdup(words), *save = NULL;
    int rc = 0;
    for (char *w = strtok_r(copy, " \t\r\n", &save); w && rc == 0;
         w = strtok_r(NULL, " \t\r\n", &save))
        rc = option_set(o, opt, w, from, error);
    explicit_bzero(copy, strlen(words));
    free(copy);
    return rc;
}

static int read_variable(struct options *o, const struct option *opt, struct error *error) {
    char name[96];
    struct error inner = {0};
    const char *value = getenv(option_variable(opt, name));
    if (!value || !*value)
        return 0;
    char *kept = xstrdup(name);
    options_keep(o, kept);
    const struct option_source from = {.origin = ORIGIN_ENVIRONMENT, .name = kept};
    int rc = opt->type == OPT_SECRETS ? set_secrets(o, opt, value, &from, &inner)
                                      : option_set(o, opt, value, &from, &inner);
    return rc ? error_set(error, ERR_CONFIG, "environment %s: %.4000s", name, inner.text) : 0;
}

/* Is this variable, "NAME=value", none of ours? MOESERVE_PORT... and MOESERVE_SERVICE_... are what
 * Kubernetes sets for a service of our name. */
static bool is_unknown_variable(const char *variable, char name[96]) {
    static const char others[] = "MOESERVE_BIN MOESERVE_GROUP_SECRET MOESERVE_CONFIG";
    char bare[96];
    int len = (int)strcspn(variable, "=");
    if (strncmp(variable, PREFIX, sizeof PREFIX - 1) || len >= 96 ||
        !strncmp(variable, "MOESERVE_PORT", 13) || !strncmp(variable, "MOESERVE_SERVICE_", 17))
        return false;
    snprintf(name, 96, "%.*s", len, variable);
    for (int i = 0; i < num_options; i++)
        if (option_table[i].name && !option_is_flag_only(&option_table[i]) &&
            !strcmp(option_variable(&option_table[i], bare), name))
            return false;
    return !option_in_list(others, name);
}

static void warn_of_variable(struct options *o, const char *name) {
    char bare[96], meant[96];
    struct buffer text = {0};
    size_t n = 0;
    for (const char *p = name + sizeof PREFIX - 1; *p; p++)
        bare[n++] = *p == '_' ? '-' : *p >= 'A' && *p <= 'Z' ? (char)(*p + 'a' - 'A') : *p;
    bare[n] = '\0';
    const char *near = option_nearest(ALL, bare);
    buffer_printf(&text, "environment %s: no option has this name", name);
    if (near && !option_is_flag_only(option_named(near)))
        buffer_printf(&text, " (did you mean %s?)", option_variable(option_named(near), meant));
    buffer_putc(&text, '\0');
    options_keep(o, text.data);
    if (o->num_warnings < MAX_OPTION_WARNINGS)
        o->warnings[o->num_warnings++] = text.data;
}

int options_read_environment(struct options *o, struct error *error) {
    char name[96];
    int rc = 0;
    for (int i = 0; i < num_options && rc == 0; i++)
        if (option_table[i].name && !option_is_flag_only(&option_table[i]))
            rc = read_variable(o, &option_table[i], error);
    for (char **v = environ; *v && rc == 0; v++)
        if (is_unknown_variable(*v, name))
            warn_of_variable(o, name);
    return rc;
}

/* ---- the model's suggestions ---- */

int options_read_generation_config(struct options *o, const char *model_dir, struct buffer *taken,
                                   struct error *error) {
    static const char *const names[] = {"temperature", "top_k", "top_p", "min_p",
                                        "repetition_penalty"};
    static const struct option_source from = {.origin = ORIGIN_MODEL};
    struct error inner = {0};
    char *path = path_join(model_dir, "generation_config.json");
    json_t *root = NULL;
    int rc = 0;
    if (!strcmp(o->generation_config, "auto") && file_exists(path) &&
        !(root = json_parse_file(path, MAX_GENERATION_CONFIG_BYTES, error)))
        rc = ERR_BAD_FILE;
    for (size_t i = 0; rc == 0 && i < sizeof names / sizeof *names; i++) {
        const struct option *opt = option_named(names[i]);
        json_t *v = json_object_get(root, names[i]);
        char value[32];
        if (!v || json_is_null(v) || option_source(o, opt)->origin > ORIGIN_MODEL)
            continue;
        snprintf(value, sizeof value, "%.9g", json_number_value(v));
        if (!json_is_number(v))
            rc = error_set(error, ERR_BAD_FILE, "%s: %s: expected a number", path, names[i]);
        else if (option_set(o, opt, value, &from, &inner) != 0)
            rc = error_set(error, ERR_CONFIG, "%s: %s (--generation-config none leaves it out)",
                           path, inner.text);
        else
            buffer_printf(taken, "%s%s %s", taken->len ? ", " : "", names[i], value);
    }
    o->server.defaults = o->generation;
    json_decref(root);
    free(path);
    return rc;
}
