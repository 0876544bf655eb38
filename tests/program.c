#include "tests/program.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/clock.h"
#include "tests/shim.h"

enum { MAX_ARGS = 32, WAIT_S = 60 };

bool program_start(struct program *p, const char *const *args) {
    int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    bool ok = program_start_with(p, args, null);
    close(null);
    return ok;
}

bool program_start_with(struct program *p, const char *const *args, int err) {
    const char *argv[MAX_ARGS] = {getenv("MOESERVE_BIN")};
    int fds[2];
    for (int i = 0; args[i] && i + 2 < MAX_ARGS; i++)
        argv[i + 1] = args[i];
    if (!EXPECT_INT_EQ(pipe(fds), 0))
        return false;
    p->pid = fork();
    if (p->pid == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, STDIN_FILENO);
        if (err >= 0)
            dup2(err, STDERR_FILENO);
        else
            close(STDERR_FILENO);
        dup2(fds[1], STDOUT_FILENO);
        close(fds[0]);
        close(fds[1]);
        execv(argv[0], (char *const *)argv);
        _exit(127);
    }
    close(fds[1]);
    p->out = fds[0];
    return EXPECT_INT_GT(p->pid, 0);
}

bool program_read_line(struct program *p, char *line, size_t size) {
    size_t len = 0;
    struct pollfd wait = {.fd = p->out, .events = POLLIN};
    while (len + 1 < size && poll(&wait, 1, WAIT_S * 1000) == 1 &&
           read(p->out, line + len, 1) == 1 && line[len] != '\n')
        len++;
    line[len] = '\0';
    return len > 0;
}

int program_wait(struct program *p) {
    int status = 0;
    int64_t until_us = clock_us() + WAIT_S * (int64_t)1000000;
    close(p->out);
    while (waitpid(p->pid, &status, WNOHANG) == 0) {
        if (clock_us() > until_us) {
            kill(p->pid, SIGKILL);
            waitpid(p->pid, &status, 0);
            return -1;
        }
        usleep(2000);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int program_run(const char *const *args, char *line, size_t size) {
    struct program p;
    line[0] = '\0';
    if (!program_start(&p, args))
        return -1;
    program_read_line(&p, line, size);
    return program_wait(&p);
}

/* The same arguments, without HTTP where they do not say otherwise: many servers run at once. */
static void without_http(const char *const *args, const char **out) {
    bool said = false;
    int n = 0;
    for (; args[n] && n + 4 < MAX_ARGS; n++) {
        out[n] = args[n];
        said = said || !strcmp(args[n], "--http");
    }
    if (!said) {
        out[n++] = "--http";
        out[n++] = "off";
    }
    out[n] = NULL;
}

bool program_serve(struct program *p, struct net_client *c, const char *const *args) {
    static const char head[] = "moeserve: ready line=";
    const char *own[MAX_ARGS];
    char line[256];
    without_http(args, own);
    if (!program_start(p, own) || !EXPECT_TRUE(program_read_line(p, line, sizeof line)) ||
        !EXPECT_INT_EQ(strncmp(line, head, sizeof head - 1), 0))
        return false;
    char *address = line + sizeof head - 1, *end = strchr(address, ' ');
    if (end)
        *end = '\0'; /* what follows is HTTP's */
    return net_client_open(c, address, 0);
}
