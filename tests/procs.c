/* procs: see procs.h. */
#include "tests/procs.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/group_internal.h"
#include "tests/shim.h"

enum { MAX_PREFIX = 24, MAX_ARGS = 40 };

static const char *const group_variables[] = {
    "OMPI_COMM_WORLD_SIZE", "PMI_SIZE",    "PMIX_RANK",    "RANK",         "WORLD_SIZE",
    "MASTER_ADDR",          "MASTER_PORT", "SLURM_PROCID", "SLURM_NTASKS", "MOESERVE_GROUP_SECRET"};

void procs_clear_environment(void) {
    for (size_t i = 0; i < sizeof group_variables / sizeof group_variables[0]; i++)
        unsetenv(group_variables[i]);
}

int32_t procs_free_port(void) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    EXPECT_INT_EQ(bind(fd, (struct sockaddr *)&a, len), 0);
    getsockname(fd, (struct sockaddr *)&a, &len);
    close(fd);
    return ntohs(a.sin_port);
}

/* ---- starting -------------------------------------------------------------------------------- */

void procs_open(struct procs *p) {
    *p = (struct procs){.out = -1};
}

static const char *own_program(void) {
    static char path[512];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    path[n > 0 ? n : 0] = '\0';
    return path;
}

void procs_start(struct procs *p, const char *const *in, const char *const *variables,
                 const char *const *arguments) {
    const char *argv[MAX_ARGS + 3] = {NULL};
    int n = 0, fds[2];
    for (; in && *in; in++) {
        ASSERT_TRUE(n < MAX_PREFIX);
        argv[n++] = *in;
    }
    argv[n++] = own_program();
    argv[n++] = "--program=group";
    for (; *arguments && n < MAX_ARGS; arguments++)
        argv[n++] = *arguments;
    ASSERT_TRUE(p->num_children < PROCS_MAX);
    if (p->out < 0) {
        ASSERT_INT_EQ(pipe2(fds, O_CLOEXEC), 0);
        p->out = fds[0];
    } else {
        /* One more writer of the pipe that is read from. */
        char path[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", p->out);
        fds[1] = open(path, O_WRONLY | O_CLOEXEC);
        ASSERT_TRUE(fds[1] >= 0);
    }
    pid_t pid = fork();
    if (pid == 0) {
        procs_clear_environment();
        for (; variables && *variables; variables++)
            putenv((char *)*variables);
        dup2(fds[1], STDOUT_FILENO);
        if (!getenv("PROCS_STDERR")) /* to see what goes wrong */
            dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
        execvp(argv[0], (char *const *)argv);
        _exit(127);
    }
    close(fds[1]);
    ASSERT_INT_GT(pid, 0);
    p->pid[p->num_children++] = pid;
}

void procs_start_tcp(struct procs *p, int32_t first, int32_t last, int32_t size, int32_t port,
                     const char *const *arguments) {
    char rank_text[32], size_text[32], port_text[32];
    const char *variables[] = {rank_text, size_text, port_text, "MASTER_ADDR=127.0.0.1", NULL};
    snprintf(size_text, sizeof size_text, "WORLD_SIZE=%d", size);
    snprintf(port_text, sizeof port_text, "MASTER_PORT=%d", port);
    for (int32_t r = first; r <= last; r++) {
        snprintf(rank_text, sizeof rank_text, "RANK=%d", r);
        procs_start(p, NULL, variables, arguments);
    }
}

bool procs_has_mpi(void) {
    return group_mpi_engine() && system("mpirun --version >/dev/null 2>&1") == 0;
}

void procs_start_mpi(struct procs *p, int32_t size, const char *const *arguments) {
    char n[16];
    /* Without ssh; a process that dies must be noticed by us, not by mpirun. */
    const char *const in[] = {"mpirun",
                              "--allow-run-as-root",
                              "--oversubscribe",
                              "--mca",
                              "plm",
                              "isolated",
                              "--enable-recovery",
                              "-n",
                              n,
                              NULL};
    snprintf(n, sizeof n, "%d", size);
    procs_start(p, in, NULL, arguments);
}

/* ---- reading --------------------------------------------------------------------------------- */

/* Reads once, waiting at most ms; false at the end of the pipe or of the time. */
static bool read_some(struct procs *p, int64_t ms) {
    struct pollfd wait = {.fd = p->out, .events = POLLIN};
    size_t room = sizeof p->text - 1 - p->len;
    if (room == 0 || poll(&wait, 1, ms > 0 ? (int)ms : 0) != 1)
        return false;
    ssize_t n = read(p->out, p->text + p->len, room);
    if (n <= 0)
        return false;
    p->len += (size_t)n;
    p->text[p->len] = '\0';
    return true;
}

bool procs_wait_for(struct procs *p, const char *text, int32_t lines, int32_t ms) {
    int64_t until_us = clock_us() + ms * (int64_t)1000;
    while (procs_count(p, text) < lines)
        if (!read_some(p, (until_us - clock_us()) / 1000 + 1))
            return false;
    return true;
}

/* mpirun's processes, which it leaves behind when they are stopped. */
static void kill_players(const struct procs *p) {
    for (int32_t r = 0; r < PROCS_MAX; r++) {
        const char *pid = procs_line(p, r, "pid ");
        if (pid)
            kill(atoi(pid), SIGKILL);
    }
}

void procs_finish(struct procs *p, int32_t ms) {
    int64_t until_us = clock_us() + ms * (int64_t)1000;
    int32_t running = p->num_children;
    bool ended[PROCS_MAX] = {false};
    while (running > 0 && clock_us() < until_us) {
        if (!read_some(p, 20))
            usleep(2000); /* nothing to read, or nobody left to write */
        for (int32_t i = 0; i < p->num_children; i++)
            if (!ended[i] && waitpid(p->pid[i], &p->status[i], WNOHANG) == p->pid[i]) {
                ended[i] = true;
                running--;
            }
    }
    p->stragglers = running > 0;
    if (p->stragglers)
        kill_players(p);
    for (int32_t i = 0; i < p->num_children; i++)
        if (!ended[i]) {
            kill(p->pid[i], SIGKILL);
            waitpid(p->pid[i], &p->status[i], 0);
        }
    while (read_some(p, 100))
        continue;
    if (p->out >= 0)
        close(p->out);
    p->out = -1;
}

/* The text of a line after "RANK: head", and whose it is; NULL when it does not begin so. */
static const char *match(const char *line, const char *head, int32_t *rank) {
    char *end;
    *rank = (int32_t)strtol(line, &end, 10);
    if (end == line || strncmp(end, ": ", 2) != 0 || strncmp(end + 2, head, strlen(head)) != 0)
        return NULL;
    return end + 2 + strlen(head);
}

static const char *next_line(const char *line) {
    const char *end = strchr(line, '\n');
    return end ? end + 1 : "";
}

const char *procs_line(const struct procs *p, int32_t rank, const char *head) {
    static char results[4][4200];
    static int turn;
    const char *found = NULL;
    int32_t whose;
    for (const char *line = p->text; *line; line = next_line(line)) {
        const char *rest = match(line, head, &whose);
        if (rest && whose == rank)
            found = rest;
    }
    if (!found)
        return NULL;
    char *result = results[turn++ % 4];
    snprintf(result, sizeof results[0], "%.*s", (int)strcspn(found, "\n"), found);
    return result;
}

int32_t procs_count(const struct procs *p, const char *head) {
    int32_t count = 0, whose;
    for (const char *line = p->text; *line; line = next_line(line))
        count += match(line, head, &whose) != NULL;
    return count;
}
