/* program: the moeserve binary as a user starts it, for tests. MOESERVE_BIN names it. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "tests/net_client.h"

#define NEEDS_BINARY()                                                                             \
    if (!getenv("MOESERVE_BIN"))                                                                   \
    SKIP("MOESERVE_BIN does not name the program")

struct program {
    pid_t pid;
    int out; /* its standard output */
};

/* Starts it with these arguments, NULL-ended; its stderr is dropped, its stdin is empty. */
bool program_start(struct program *p, const char *const *args);
/* The same with its standard error in this descriptor; -1: it has none. */
bool program_start_with(struct program *p, const char *const *args, int err);
/* Reads standard output up to a LF or its end; false when nothing came in time. */
bool program_read_line(struct program *p, char *line, size_t size);
/* Starts a server with these arguments, waits for its ready line and connects to it. Without
 * "--http" among them it has no HTTP. */
bool program_serve(struct program *p, struct net_client *c, const char *const *args);
/* The exit status, 128 + n for a signal, -1 when it did not end (it is killed then). */
int program_wait(struct program *p);
/* Starts it, reads the first line of its standard output ("" if none) and waits for its end. */
int program_run(const char *const *args, char *line, size_t size);
