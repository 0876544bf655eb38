/* options: one table of everything that can be said on the command line or in an INI file.
 *
 * The same table parses `--name value`, `--name=value`, `--flag` and `--no-flag`, reads the files
 * given with --config, prints --help, and checks ranges. Flags win over files, later flags over
 * earlier ones. Messages name the option, the value and what is allowed, on one line.
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

enum { MAX_OPTIONS = 128 };

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
    bool given[MAX_OPTIONS];       /* by their place in the table: those that the user set */
    bool verbose, quiet;
    bool help, version;
    char **strings; /* owned */
    int32_t num_strings;
};

void options_init(struct options *o);
void options_deinit(struct options *o);
/* Takes over a string from malloc, to be freed with the options. */
void options_keep(struct options *o, char *string);

/* Parses the arguments of a command (argv[0] is its name) on top of the defaults. ERR_CONFIG with
 * one line of text when something is wrong; --help and --version are left to the caller. */
int options_parse(struct options *o, unsigned command, int argc, char **argv, struct error *error);

/* Reads one INI file: keys are option names without dashes, in any section. (Tests, --config.) */
int options_read_file(struct options *o, unsigned command, const char *path, struct error *error);

/* Takes temperature, top_k, top_p, min_p and repetition_penalty from the model's
 * generation_config.json, where the user has set no other value; nothing happens without that file
 * or with --generation-config none. What was taken is appended to `taken`, as "temperature 0.6,
 * ...". ERR_BAD_FILE or ERR_CONFIG for values that the options do not allow. */
int options_read_generation_config(struct options *o, const char *model_dir, struct buffer *taken,
                                   struct error *error);

/* The table as text for --help. */
void options_help(unsigned command, struct buffer *out);

#ifdef __cplusplus
}
#endif
