/* bench_server: a server as a child process, for the time of a load run.
 *
 * Starts a program, waits for its line "ready line=HOST:PORT" on standard output, and ends it with
 * SIGTERM. Its log goes to our standard error. It stays in our process group, so that what ends a
 * terminal's job ends both. Runs on the caller's loop.
 */
#pragma once

#include <stdbool.h>
#include <uv.h>

#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct bench_server; /* opaque */

/* args[0] is the program's path; args ends with NULL. Waits for the ready line as long as the child
 * lives and *stop is 0. */
int bench_server_start(uv_loop_t *loop, char **args, const int *stop, struct bench_server **out,
                       struct error *error);
/* HOST:PORT that it listens on. */
const char *bench_server_address(const struct bench_server *s);
/* Has it ended by itself? Then *status is as the shell would say it. */
bool bench_server_has_ended(const struct bench_server *s, int *status);
/* SIGTERM, after 30 s SIGKILL; returns when the child has ended. NULL is allowed. */
void bench_server_stop(struct bench_server *s);

/* Finds HOST:PORT in a ready line. Returns false when the line is none or the room is too small. */
bool bench_server_read_ready(const char *line, size_t len, char *address, size_t size);

#ifdef __cplusplus
}
#endif
