/* cmd: the commands of the program. Each gets its arguments from its own name on (argv[0]) and
 * returns the exit status: 0; 1 when something failed; 2 when the arguments are wrong. */
#pragma once

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

struct options;
struct error;

int cmd_serve(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_config(int argc, char **argv);

/* What serve, generate and plan do first: parses, then answers --help and --version, sets the log
 * level, and finds the model. Returns true when the command should go on; otherwise *status is its
 * exit status. */
bool cmd_start(struct options *o, unsigned command, int argc, char **argv, const char *usage,
               int *status);

/* Logs why a command ends; its exit status: 2 for wrong options (ERR_CONFIG), which no new start
 * makes right, else 1. */
int cmd_fail(const struct error *e);

/* The demo model stands in for --model. Its path lives as long as the options. */
int cmd_choose_model(struct options *o, struct error *e);
/* ERR_NOT_FOUND where the model's folder has no config.json. */
int cmd_check_model(const struct options *o, struct error *e);

/* Level and format of the log as the options say, and the options' own warnings. */
void cmd_set_up_log(const struct options *o);

/* Joins the processes that were started together, if any (group.h), and checks that each has the
 * model, for `lead` in the first of them and for engine_follow in the others; returns what that
 * returned. */
int cmd_in_group(struct options *o, int (*lead)(void *ctx, struct error *e), void *ctx,
                 struct error *e);

#ifdef __cplusplus
}
#endif
