/* cluster: see cluster.h. */
#include "tests/cluster.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/clock.h"
#include "tests/procs.h"
#include "tests/shim.h"

enum { READY_MS = 60000 };

/* ---- starting -------------------------------------------------------------------------------- */

static void error_path(const struct cluster *c, int32_t i, char *path, size_t size) {
    snprintf(path, size, "%s/cluster-%d-%d", shim_scratch_dir(), c->number, i);
}

/* The command of child i into argv. */
static void put_command(const struct cluster_options *o, int32_t i, const char **argv) {
    const char *program = o->program ? o->program : getenv("MOESERVE_BIN");
    int32_t n = 0;
    if (o->machine[i])
        for (const char *const *p =
                 (const char *const[]){"ip", "netns", "exec", o->machine[i], NULL};
             *p; p++)
            argv[n++] = *p;
    argv[n++] = o->mpi ? "tests/mpi_serve.sh" : program;
    for (const char *const *p = o->args; *p && n < CLUSTER_ARGS - 2; p++)
        argv[n++] = *p;
    if (!o->mpi && o->own[i])
        argv[n++] = o->own[i];
    argv[n] = NULL;
}

static void set_number(const char *name, int32_t number) {
    char text[32];
    snprintf(text, sizeof text, "%d", number);
    setenv(name, text, 1);
}

static void set_environment(const struct cluster_options *o, int32_t i, int32_t port) {
    procs_clear_environment();
    if (o->mpi) {
        set_number("PROCESSES", o->size);
    } else if (o->size > 1) {
        set_number("RANK", i);
        set_number("WORLD_SIZE", o->size);
        set_number("MASTER_PORT", port);
        setenv("MASTER_ADDR", o->address ? o->address : "127.0.0.1", 1);
    }
}

/* Only the first child's standard output is read. */
static pid_t start_child(const struct cluster *c, const struct cluster_options *o, int32_t i,
                         int32_t port, int out) {
    const char *argv[CLUSTER_ARGS];
    char path[256];
    error_path(c, i, path, sizeof path);
    put_command(o, i, argv);
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    int null = open("/dev/null", O_RDWR);
    set_environment(o, i, port);
    dup2(null, STDIN_FILENO);
    dup2(i == 0 ? out : null, STDOUT_FILENO);
    dup2(open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600), STDERR_FILENO);
    execvp(argv[0], (char *const *)argv);
    _exit(127);
}

bool cluster_start(struct cluster *c, const struct cluster_options *o) {
    static int32_t number;
    int fds[2];
    memset(c, 0, sizeof *c);
    c->number = number++;
    c->out = -1;
    if (!EXPECT_INT_EQ(pipe2(fds, O_CLOEXEC), 0))
        return false;
    c->out = fds[0];
    int32_t port = procs_free_port(), count = o->mpi ? 1 : o->size;
    for (int32_t i = count; i-- > 0;) /* the first one last, which must not matter */
        c->pid[i] = start_child(c, o, i, port, fds[1]);
    c->num_children = count;
    close(fds[1]);
    return true;
}

/* Enters the namespace of process 0, where it has one; returns what leads back, or -1. */
static int enter(const char *machine) {
    char path[128];
    if (!machine)
        return -1;
    snprintf(path, sizeof path, "/run/netns/%s", machine);
    int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    int there = open(path, O_RDONLY | O_CLOEXEC);
    EXPECT_INT_EQ(setns(there, CLONE_NEWNET), 0);
    close(there);
    return home;
}

static void go_home(int home) {
    if (home < 0)
        return;
    EXPECT_INT_EQ(setns(home, CLONE_NEWNET), 0);
    close(home);
}

bool cluster_serve(struct cluster *c, struct net_client *client, const struct cluster_options *o) {
    static const char head[] = "moeserve: ready line=";
    char line[256];
    size_t len = 0;
    memset(client, 0, sizeof *client);
    client->fd = -1;
    if (!cluster_start(c, o))
        return false;
    struct pollfd wait = {.fd = c->out, .events = POLLIN};
    while (len + 1 < sizeof line && poll(&wait, 1, READY_MS) == 1 &&
           read(c->out, line + len, 1) == 1 && line[len] != '\n')
        len++;
    line[len] = '\0';
    int home = enter(o->machine[0]);
    bool ok =
        !strncmp(line, head, sizeof head - 1) && net_client_open(client, line + sizeof head - 1, 0);
    go_home(home);
    if (ok)
        return true;
    cluster_end(c);
    for (int32_t i = 0; i < c->num_children; i++)
        FAIL("no ready line but '%s'; process %d said: %s", line, i, cluster_said(c, i));
    net_client_close(client);
    return false;
}

/* ---- ending ---------------------------------------------------------------------------------- */

static void look(struct cluster *c, int32_t i) {
    int status;
    if (c->ended[i] || waitpid(c->pid[i], &status, WNOHANG) != c->pid[i])
        return;
    c->ended[i] = true;
    c->ended_us[i] = clock_us();
    c->status[i] = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

bool cluster_wait(struct cluster *c, int32_t first, int32_t last, int32_t ms) {
    int64_t until_us = clock_us() + ms * (int64_t)1000;
    for (;;) {
        int32_t running = 0;
        for (int32_t i = first; i <= last; i++) {
            look(c, i);
            running += !c->ended[i];
        }
        if (running == 0)
            return true;
        if (clock_us() > until_us)
            return false;
        usleep(1000);
    }
}

void cluster_end(struct cluster *c) {
    for (int32_t i = 0; i < c->num_children; i++) {
        look(c, i);
        if (!c->ended[i])
            kill(c->pid[i], SIGKILL);
    }
    cluster_wait(c, 0, c->num_children - 1, 10000);
    if (c->out >= 0)
        close(c->out);
    c->out = -1;
}

const char *cluster_said(struct cluster *c, int32_t i) {
    char path[256];
    error_path(c, i, path, sizeof path);
    FILE *f = fopen(path, "r");
    size_t n = f ? fread(c->said, 1, sizeof c->said - 1, f) : 0;
    c->said[n] = '\0';
    if (f)
        fclose(f);
    return c->said;
}
