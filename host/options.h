/* options: one table of everything that can be said on the command line, in the environment or in
 * an INI file.
 *
 * The same table parses `--name value`, `--name=value`, `--flag` and `--no-flag`, reads variables
 * MOESERVE_<NAME> and the files given with --config, prints --help and `config --print`, and checks
 * ranges. Flags win over the environment, that over files, later ones over earlier ones, and all of
 * them over what the model suggests. Messages name the option, the value and what is allowed, on
 * one line; values of secrets stand in none.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "host/buffer.h"
#include "host/engine.h"
#include "host/error.h"
#include "net/server.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Commands that read this table, as bits. */
enum { CMD_SERVE = 1, CMD_GENERATE = 2, CMD_PLAN = 4 };

enum { MAX_OPTIONS = 160, MAX_OPTION_WARNINGS = 16 };

/* Where a value is from; of two the greater one counts. */
enum option_origin {
    ORIGIN_DEFAULT,
    ORIGIN_MODEL, /* its generation_config.json */
    ORIGIN_FILE,
    ORIGIN_ENVIRONMENT,
    ORIGIN_FLAG
};

struct option_source {
    enum option_origin origin;
    const char *name; /* of the file, or of the variable */
    int32_t line;     /* of the file, from 1 */
    int32_t order;    /* among all values in the order they were set, from 1 */
};

/* Of an option that may be repeated. */
struct option_list {
    const char **items; /* the array is owned by the options, as the strings are */
    int32_t count;
};

/* The values of all options. options_init fills in the defaults; strings given by the user are
 * owned by `strings`. */
struct options {
    struct engine_options engine;
    struct server_options server;
    struct request_params generation; /* serve: defaults of requests; generate: the request */
    const char *config;               /* file given last, or NULL */
    const char *gpus;                 /* as given, or NULL */
    const char *prompt;               /* generate; NULL: from standard input */
    bool chat;                        /* generate: the prompt is a user's message */
    const char *gpu_memory;           /* plan: as given, or NULL; in bytes, one a rank: */
    int64_t memory[MAX_GPUS];         /* plan: one stands for every rank */
    int32_t num_memory;
    bool layout; /* plan: draw it */
    bool seed_given;
    const char *generation_config; /* "auto" or "none" */
    struct keys_options keys;      /* of serve: who may use it */
    struct option_list api_keys;   /* keys refers to them */
    const char *log_format;        /* "text" or "json" */
    const char *log_level;         /* with what verbose and quiet say */
    bool verbose, quiet, log_requests;
    struct option_source source[MAX_OPTIONS];  /* by their place in the table */
    int32_t num_set;                           /* values so far */
    const char *warnings[MAX_OPTION_WARNINGS]; /* to be logged, a line each */
    int32_t num_warnings;
    bool help, version;
    char **strings; /* owned */
    int32_t num_strings;
};

void options_init(struct options *o);
void options_deinit(struct options *o);
/* Takes over a string from malloc, to be freed with the options. */
void options_keep(struct options *o, char *string);

/* Sets the options of a command, from files, the environment and its arguments (argv[0] is its
 * name), on top of the defaults. ERR_CONFIG with one line of text when something is wrong; --help,
 * --version and the warnings are left to the caller. */
int options_parse(struct options *o, unsigned command, int argc, char **argv, struct error *error);

/* Overwrites the secrets among the arguments, so that `ps` does not show them any longer. */
void options_hide_secrets(unsigned command, int argc, char **argv);

/* Reads one INI file: keys are option names without dashes, in any section. A key that
 * stands there twice is an error, unless it may be repeated. (Tests, --config.) */
int options_read_file(struct options *o, unsigned command, const char *path, struct error *error);

/* Takes temperature, top_k, top_p, min_p and repetition_penalty from the model's
 * generation_config.json, where the user has set no other value; nothing happens without that file
 * or with --generation-config none. What was taken is appended to `taken`, as "temperature 0.6,
 * ...". ERR_BAD_FILE or ERR_CONFIG for values that the options do not allow. */
int options_read_generation_config(struct options *o, const char *model_dir, struct buffer *taken,
                                   struct error *error);

/* The table as text for --help. */
void options_help(unsigned command, struct buffer *out);
/* The options of a command as an INI file that says where each value is from. Read by --config it
 * gives the same again: defaults are comments, and so are secrets, which are left out. */
void options_print(const struct options *o, unsigned command, struct buffer *out);

#ifdef __cplusplus
}
#endif
