/* The program itself, started as a user starts it: exit statuses, the ready line, signals.
 * MOESERVE_BIN names the binary; `make test` sets it. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/clock.h"
#include "tests/net_client.h"
#include "tests/shim.h"

enum { MAX_ARGS = 16, WAIT_S = 60 };

struct program {
    pid_t pid;
    int out; /* its standard output */
};

/* Starts the binary with these arguments, NULL-ended; its stderr is dropped, its stdin is empty. */
static bool start(struct program *p, const char *const *args) {
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
        dup2(null, STDERR_FILENO);
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

/* Reads standard output up to a LF or its end; false when nothing came in time. */
static bool read_line(struct program *p, char *line, size_t size) {
    size_t len = 0;
    struct pollfd wait = {.fd = p->out, .events = POLLIN};
    while (len + 1 < size && poll(&wait, 1, WAIT_S * 1000) == 1 &&
           read(p->out, line + len, 1) == 1 && line[len] != '\n')
        len++;
    line[len] = '\0';
    return len > 0;
}

/* The exit status, 128 + n for a signal, -1 when it did not end (it is killed then). */
static int wait_for_end(struct program *p) {
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

static int run(const char *const *args, char *line, size_t size) {
    struct program p;
    line[0] = '\0';
    if (!start(&p, args))
        return -1;
    read_line(&p, line, size);
    return wait_for_end(&p);
}

/* Starts a server on a free port and connects to it. */
static bool serve(struct program *p, struct net_client *c, const char *drain_timeout) {
    const char *args[] = {"--listen", "127.0.0.1:0", "--drain-timeout", drain_timeout, NULL};
    static const char head[] = "moeserve: ready line=";
    char line[256];
    return start(p, args) && EXPECT_TRUE(read_line(p, line, sizeof line)) &&
           EXPECT_INT_EQ(strncmp(line, head, sizeof head - 1), 0) &&
           net_client_open(c, line + sizeof head - 1, 0);
}

#define NEEDS_BINARY()                                                                             \
    if (!getenv("MOESERVE_BIN"))                                                                   \
    SKIP("MOESERVE_BIN does not name the program")

TEST(Program, ExitStatusesTellWhatWentWrong) {
    NEEDS_BINARY();
    static const struct {
        const char *args[6];
        int status;
        const char *prints; /* in the first line of standard output */
    } cases[] = {
        {{"version"}, 0, "moeserve "},
        {{"--version"}, 0, "moeserve "},
        {{"help"}, 0, "usage: moeserve"},
        {{"serve", "--help"}, 0, "usage: moeserve [serve]"},
        {{"generate", "--help"}, 0, "usage: moeserve generate"},
        {{"fly"}, 2, ""},
        {{"--modle", "x"}, 2, ""},
        {{"serve", "--ranks", "0"}, 2, ""},
        {{"--listen", "nowhere"}, 2, ""},
        {{"--model", "/no/such/model"}, 1, ""},
        {{"--gpus", "2"}, 1, ""},
        {{"generate", "-p", "x", "--model", "/no/such/model"}, 1, ""},
        {{"generate", "-p", "Once upon", "--max-tokens", "4"}, 0, ""},
        {{"generate", "--prompt=", "--max-tokens", "4"}, 1, ""},
    };
    char line[256];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        EXPECT_INT_EQ(run(cases[i].args, line, sizeof line), cases[i].status);
        if (!strstr(line, cases[i].prints))
            FAIL("%s: prints '%s'", cases[i].args[0], line);
    }
}

TEST(Program, SigtermDrainsAndExitsWithZero) {
    NEEDS_BINARY();
    static const int signals[] = {SIGTERM, SIGINT};
    for (int i = 0; i < 2; i++) {
        struct program p;
        struct net_client c;
        ASSERT_TRUE(serve(&p, &c, "30"));
        net_client_puts(&c,
                        "{\"id\":1,\"prompt\":\"Once\",\"max_tokens\":800,\"ignore_eos\":true}");
        json_decref(net_client_json(&c));
        kill(p.pid, signals[i]);
        json_t *done = net_client_until_done(&c, "1", NULL);
        json_t *usage = json_object_get(done, "usage");
        EXPECT_INT_EQ(json_integer_value(json_object_get(usage, "completion_tokens")), 800);
        json_decref(done);
        EXPECT_INT_EQ(wait_for_end(&p), 0);
        net_client_close(&c);
    }
}

TEST(Program, ASecondSignalEndsItAtOnce) {
    NEEDS_BINARY();
    struct program p;
    struct net_client c;
    ASSERT_TRUE(serve(&p, &c, "3600"));
    for (int i = 0; i < 16; i++) /* so much that it does not end by itself meanwhile */
        net_client_puts(&c, "{\"prompt\":\"Once\",\"max_tokens\":2000,\"ignore_eos\":true}");
    json_decref(net_client_json(&c));
    kill(p.pid, SIGTERM);
    usleep(50 * 1000);
    kill(p.pid, SIGTERM);
    EXPECT_INT_EQ(wait_for_end(&p), 128 + SIGTERM);
    net_client_close(&c);
}

TEST(Program, APortInUseEndsItWithOne) {
    NEEDS_BINARY();
    struct program p;
    struct net_client c;
    char line[256], address[64];
    ASSERT_TRUE(serve(&p, &c, "30"));
    net_client_puts(&c, "{\"op\":\"ping\"}");
    json_decref(net_client_json(&c));
    struct sockaddr_in a = {0};
    socklen_t len = sizeof a;
    getpeername(c.fd, (struct sockaddr *)&a, &len);
    snprintf(address, sizeof address, "127.0.0.1:%d", ntohs(a.sin_port));
    const char *const args[] = {"--listen", address, NULL};
    EXPECT_INT_EQ(run(args, line, sizeof line), 1);
    net_client_close(&c);
    kill(p.pid, SIGTERM);
    EXPECT_INT_EQ(wait_for_end(&p), 0);
}
