/* procs: groups of processes for tests: starts them, reads what they say, ends them.
 *
 * Each process is this test program again, as tests/group_process.c. They share one pipe for
 * standard output; each line names the process that wrote it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { PROCS_MAX = 8 };

struct procs {
    int32_t num_children;
    pid_t pid[PROCS_MAX]; /* of the children: the processes, or mpirun */
    int out;              /* their standard output */
    bool stragglers;      /* some were still running at the end of the wait, and were killed */
    int status[PROCS_MAX];
    size_t len;
    char text[32768]; /* what they have said, NUL-terminated */
};

/* A port that nobody listens on. */
int32_t procs_free_port(void);

/* Forgets all variables that make a group. */
void procs_clear_environment(void);

void procs_open(struct procs *p);
/* Starts one process with these variables ("NAME=value", NULL-ended) and arguments: options and the
 * scenario. `in` is put before the program ("ip", "netns", ...), NULL for nothing. */
void procs_start(struct procs *p, const char *const *in, const char *const *variables,
                 const char *const *arguments);
/* Starts processes first..last of a group of `size` over TCP on this machine. */
void procs_start_tcp(struct procs *p, int32_t first, int32_t last, int32_t size, int32_t port,
                     const char *const *arguments);
/* Starts the whole group by mpirun. */
void procs_start_mpi(struct procs *p, int32_t size, const char *const *arguments);
/* Whether mpirun is there and this build has MPI. */
bool procs_has_mpi(void);

/* Reads until `lines` lines begin with this text after the process's number, for at most ms. */
bool procs_wait_for(struct procs *p, const char *text, int32_t lines, int32_t ms);
/* Reads until all have ended, at most ms; what still runs then is killed, stopped ones too. */
void procs_finish(struct procs *p, int32_t ms);

/* What process `rank` said last that begins with `head`: the rest of the line, or NULL. The result
 * is overwritten by the next but three calls. */
const char *procs_line(const struct procs *p, int32_t rank, const char *head);
/* How many lines begin with this text after the process's number. */
int32_t procs_count(const struct procs *p, const char *head);

#ifdef __cplusplus
}
#endif
