/* cmd: the commands of the program. Each gets its arguments from its own name on (argv[0]) and
 * returns the exit status: 0; 1 when something failed; 2 when the arguments are wrong. */
#pragma once

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

struct options;

int cmd_serve(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_bench(int argc, char **argv);

/* What serve and generate do first: parses, then answers --help and --version, sets the log level,
 * and finds the model. Returns true when the command should go on; otherwise *status is its exit
 * status. */
bool cmd_start(struct options *o, unsigned command, int argc, char **argv, const char *usage,
               int *status);

#ifdef __cplusplus
}
#endif
