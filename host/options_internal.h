/* options_internal: the table and what its parts share. See options.h.
 *
 *   options.c          the table; defaults; finding a row by name
 *   options_value.c    a value as text, read and written, by type
 *   options_source.c   files, the environment, the model's generation_config.json
 *   options_parse.c    the command line, and what follows from several options together
 *   options_print.c    --help, config --print
 */
#pragma once

#include "host/options.h"

enum option_type {
    OPT_BOOL,
    OPT_INT,
    OPT_INT64,
    OPT_BYTES,
    OPT_NUMBER,
    OPT_SEED,
    OPT_STRING,
    OPT_CHOICE,
    OPT_LISTEN,
    OPT_NAME,   /* at least one character, no control characters */
    OPT_ORIGIN, /* as browsers send it: scheme://host[:port]; or "*" */
    OPT_SECRETS /* struct option_list; may be repeated; never shown anywhere */
};

enum { BOTH = CMD_SERVE | CMD_GENERATE, ALL = BOTH | CMD_PLAN };

struct option {
    const char *name;    /* without dashes; NULL: a heading of --help, in `help` */
    const char *aliases; /* with dashes, space-separated; other systems' names of the same thing */
    enum option_type type;
    unsigned commands;
    size_t offset;       /* in struct options */
    double min, max;     /* OPT_INT, OPT_INT64, OPT_BYTES, OPT_NUMBER */
    const char *choices; /* OPT_CHOICE: space-separated */
    const char *help;    /* NULL: not listed */
};

/* ---- options.c ---- */

extern const struct option option_table[];
extern const int num_options;

/* By name, or by alias: `name` has no dashes and may be NULL, `dashed` is as the user wrote it
 * ("-m", "--tp"). NULL: none of this command. */
const struct option *option_find(unsigned command, const char *name, const char *dashed);
/* By name or alias, both without dashes, whatever the command. */
const struct option *option_find_bare(const char *name);
/* The one that is known to be there. */
const struct option *option_named(const char *name);
/* The name that was probably meant, or NULL. */
const char *option_nearest(unsigned command, const char *name);
/* Is `word` one of the space-separated words of list? */
bool option_in_list(const char *list, const char *word);
/* Only on the command line: --config, --help, --version. */
bool option_is_flag_only(const struct option *opt);

/* Where its value is from. */
static inline struct option_source *option_source(struct options *o, const struct option *opt) {
    return &o->source[opt - option_table];
}

/* ---- options_value.c ---- */

/* Sets the value from text. A list is added to while `from` stays the same, and begun anew when
 * it changes. ERR_CONFIG with the option, what was given and what is allowed; a secret is not
 * said. */
int option_set(struct options *o, const struct option *opt, const char *value,
               const struct option_source *from, struct error *error);
/* The value as text that option_set reads; not of OPT_SECRETS. False: it has none (NULL). */
bool option_format(const struct options *o, const struct option *opt, struct buffer *out);
/* "512M" in bytes, at powers of 1,024. */
bool option_parse_bytes(const char *s, double *out);

/* ---- options_source.c ---- */

/* Every variable MOESERVE_<NAME> that is set and not empty. Those that no option has are warned of
 * in o->warnings. */
int options_read_environment(struct options *o, struct error *error);
/* Its name: "MOESERVE_MAX_NUM_SEQS". */
const char *option_variable(const struct option *opt, char name[96]);
