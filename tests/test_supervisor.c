/* The program as a service: what it tells systemd, signals, limits, and where its log goes. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/limits.h"
#include "host/notify.h"
#include "tests/program.h"
#include "tests/shim.h"

enum { WAIT_MS = 30000 };

/* ---- a server with its log in a pipe ---- */

struct service {
    struct program program;
    int log; /* its standard error */
    size_t len;
    char text[32768]; /* what it has said, NUL-terminated */
};

static bool start(struct service *s, const char *const *more) {
    const char *args[16] = {"--listen", "127.0.0.1:0", "--http", "off"};
    int fds[2], n = 4;
    while (more && *more)
        args[n++] = *more++;
    if (!EXPECT_INT_EQ(pipe2(fds, O_CLOEXEC), 0))
        return false;
    s->len = 0;
    s->log = fds[0];
    bool ok = program_start_with(&s->program, args, fds[1]);
    close(fds[1]);
    return ok;
}

/* Reads the log until this stands in it. */
static bool says(struct service *s, const char *text) {
    struct pollfd wait = {.fd = s->log, .events = POLLIN};
    s->text[s->len] = '\0';
    while (!strstr(s->text, text)) {
        ssize_t n = 0;
        if (poll(&wait, 1, WAIT_MS) == 1)
            n = read(s->log, s->text + s->len, sizeof s->text - 1 - s->len);
        if (n <= 0) {
            FAIL("'%s' was not said, but: %s", text, s->text);
            return false;
        }
        s->len += (size_t)n;
        s->text[s->len] = '\0';
    }
    return true;
}

static bool is_ready(struct service *s) {
    char line[256];
    return program_read_line(&s->program, line, sizeof line) &&
           EXPECT_INT_EQ(strncmp(line, "moeserve: ready line=", 21), 0);
}

static void stop(struct service *s) {
    kill(s->program.pid, SIGTERM);
    EXPECT_INT_EQ(program_wait(&s->program), 0);
    close(s->log);
}

/* ---- systemd ---- */

/* A socket as systemd has it, and NOTIFY_SOCKET naming it: '@' for an abstract one. */
static int open_notify(char kind) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    char name[100];
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    snprintf(name, sizeof name, "%s/notify-%d", shim_scratch_dir(), (int)getpid());
    if (kind == '@')
        name[0] = '@';
    unlink(name);
    memcpy(a.sun_path, name, strlen(name));
    if (kind == '@')
        a.sun_path[0] = '\0';
    socklen_t len =
        (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name) + (kind == '/'));
    EXPECT_INT_EQ(bind(fd, (struct sockaddr *)&a, len), 0);
    setenv("NOTIFY_SOCKET", name, 1);
    return fd;
}

/* The next message that does not begin with `skip`; "" when none comes. */
static const char *next_message(int fd, const char *skip) {
    static char text[1024];
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    do {
        ssize_t n = poll(&wait, 1, WAIT_MS) == 1 ? recv(fd, text, sizeof text - 1, 0) : 0;
        text[n > 0 ? n : 0] = '\0';
    } while (*text && skip && !strncmp(text, skip, strlen(skip)));
    return text;
}

static void expect_message(int fd, const char *skip, const char *head) {
    const char *text = next_message(fd, skip);
    if (strncmp(text, head, strlen(head)))
        FAIL("'%s' came instead of '%s'", text, head);
}

static void tell_systemd(char kind) {
    static const char *const quiet[] = {"--quiet", NULL};
    struct service s;
    int fd = open_notify(kind);
    setenv("WATCHDOG_USEC", "100000", 1);
    int64_t before_us = clock_us();
    ASSERT_TRUE(start(&s, quiet));
    expect_message(fd, NULL, "STATUS=loading");
    expect_message(fd, NULL, "READY=1\nSTATUS=serving line=127.0.0.1:");
    for (int i = 0; i < 5; i++)
        expect_message(fd, NULL, "WATCHDOG=1");
    kill(s.program.pid, SIGHUP);
    const char *text = next_message(fd, "WATCHDOG"), *time = strstr(text, "\nMONOTONIC_USEC=");
    EXPECT_INT_EQ(strncmp(text, "RELOADING=1\n", 12), 0);
    if (EXPECT_TRUE(time != NULL)) {
        int64_t at_us = atoll(time + strlen("\nMONOTONIC_USEC="));
        EXPECT_TRUE(at_us > before_us && at_us <= clock_us());
    }
    expect_message(fd, "WATCHDOG", "READY=1\nSTATUS=serving line=127.0.0.1:");
    expect_message(fd, NULL, "WATCHDOG=1");
    kill(s.program.pid, SIGTERM);
    expect_message(fd, "WATCHDOG", "STOPPING=1\n");
    EXPECT_INT_EQ(program_wait(&s.program), 0);
    close(s.log);
    close(fd);
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
}

TEST(Supervisor, SystemdIsToldHowTheServerStands) {
    NEEDS_BINARY();
    tell_systemd('/');
}

TEST(Supervisor, AlsoThroughAnAbstractSocket) {
    NEEDS_BINARY();
    tell_systemd('@');
}

/* A step that hangs (for longer than --stall-timeout) ends the pings, and so the server. */
TEST(Supervisor, AStalledServerIsNotCalledHealthy) {
    NEEDS_BINARY();
    static const char *const args[] = {
        "--stall-timeout", "1",         "--ranks", "2", "--comm-timeout", "3600",
        "--fault",         "stall@1:9", NULL};
    static const char request[] = "{\"prompt\":\"a\",\"max_tokens\":200,\"ignore_eos\":true}";
    struct net_client client;
    struct service s;
    char line[256];
    int fd = open_notify('/');
    setenv("WATCHDOG_USEC", "200000", 1);
    ASSERT_TRUE(start(&s, args));
    ASSERT_TRUE(program_read_line(&s.program, line, sizeof line));
    ASSERT_TRUE(net_client_open(&client, line + strlen("moeserve: ready line="), 0));
    net_client_puts(&client, request);
    expect_message(fd, "STATUS=loading", "READY=1\n");
    expect_message(fd, "WATCHDOG", "STATUS=stalled");
    kill(s.program.pid, SIGKILL);
    EXPECT_INT_EQ(program_wait(&s.program), 128 + SIGKILL);
    net_client_close(&client);
    close(s.log);
    close(fd);
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
}

/* One step over a long prompt, in the reference's slow code, takes longer than --stall-timeout. */
TEST(Supervisor, AServerThatGetsOnAgainIsCalledServingAgain) {
    NEEDS_BINARY();
    static const char *const args[] = {"--stall-timeout",          "1",    "--device", "ref",
                                       "--max-num-batched-tokens", "4096", NULL};
#if defined(__SANITIZE_THREAD__)
    enum { PROMPT = 60 }; /* A step of seconds all the same. */
#else
    enum { PROMPT = 500 };
#endif
    struct buffer request = {0};
    struct net_client client;
    struct service s;
    char line[256];
    int fd = open_notify('/');
    setenv("WATCHDOG_USEC", "200000", 1);
    ASSERT_TRUE(start(&s, args));
    ASSERT_TRUE(program_read_line(&s.program, line, sizeof line));
    ASSERT_TRUE(net_client_open(&client, line + strlen("moeserve: ready line="), 0));
    buffer_puts(&request, "{\"max_tokens\":1,\"tokens\":[5");
    for (int i = 1; i < PROMPT; i++)
        buffer_puts(&request, ",6");
    buffer_puts(&request, "]}\n");
    net_client_send(&client, request.data, request.len);
    buffer_deinit(&request);
    expect_message(fd, "STATUS=loading", "READY=1\n");
    expect_message(fd, "WATCHDOG", "STATUS=stalled");
    expect_message(fd, "WATCHDOG", "STATUS=serving line=127.0.0.1:");
    expect_message(fd, NULL, "WATCHDOG=1");
    net_client_close(&client);
    stop(&s);
    close(fd);
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
}

/* systemd expects READY=1 behind RELOADING=1, which a server that loads has yet to say. */
TEST(Supervisor, AReloadWhileTheModelLoadsIsNotTold) {
    NEEDS_BINARY();
    struct service s;
    int fd = open_notify('/');
    ASSERT_TRUE(start(&s, NULL));
    expect_message(fd, NULL, "STATUS=loading");
    kill(s.program.pid, SIGHUP);
    expect_message(fd, NULL, "READY=1\nSTATUS=serving line=127.0.0.1:");
    EXPECT_TRUE(says(&s, "moeserve: SIGHUP: keys and certificates were read again\n"));
    EXPECT_TRUE(is_ready(&s));
    stop(&s);
    close(fd);
    unsetenv("NOTIFY_SOCKET");
}

static void *read_late(void *fd) {
    char text[64];
    usleep(200000);
    while (recv(*(int *)fd, text, sizeof text, 0) > 0 && strncmp(text, "READY", 5) != 0)
        continue;
    return NULL;
}

/* A manager that has more messages to read than it keeps misses none that it has to act on. */
TEST(Supervisor, WhatTheManagerActsOnWaitsForRoom) {
    const struct timeval longest = {.tv_sec = 10};
    pthread_t reader;
    int fd = open_notify('/');
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &longest, sizeof longest);
    for (int i = 0; i < 100000 && notify_send("STATUS=%d", i); i++)
        continue;
    EXPECT_FALSE(notify_send("STATUS=one more"));
    pthread_create(&reader, NULL, read_late, &fd);
    EXPECT_TRUE(notify_state("READY=1"));
    pthread_join(reader, NULL);
    close(fd);
    unsetenv("NOTIFY_SOCKET");
}

TEST(Supervisor, ANotifySocketThatIsWrongIsNoReasonToFail) {
    static const char *const wrong[] = {"", "/", "relative", "/no/such/socket", "@"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        setenv("NOTIFY_SOCKET", wrong[i], 1);
        EXPECT_FALSE(notify_send("READY=1"));
    }
    char longer[300];
    memset(longer, '/', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    setenv("NOTIFY_SOCKET", longer, 1);
    EXPECT_FALSE(notify_send("READY=1"));
    unsetenv("NOTIFY_SOCKET");
    EXPECT_FALSE(notify_send("READY=1"));
}

TEST(Supervisor, TheWatchdogIsThisProcessesOwn) {
    char pid[16];
    EXPECT_INT_EQ(notify_watchdog_us(), 0);
    setenv("WATCHDOG_USEC", "5000000", 1);
    EXPECT_INT_EQ(notify_watchdog_us(), 5000000);
    setenv("WATCHDOG_PID", "1", 1);
    EXPECT_INT_EQ(notify_watchdog_us(), 0);
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    setenv("WATCHDOG_PID", pid, 1);
    EXPECT_INT_EQ(notify_watchdog_us(), 5000000);
    setenv("WATCHDOG_USEC", "soon", 1);
    EXPECT_INT_EQ(notify_watchdog_us(), 0);
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
}

/* ---- signals ---- */

TEST(Supervisor, SignalsChangeTheLogLevel) {
    NEEDS_BINARY();
    struct service s;
    ASSERT_TRUE(start(&s, NULL) && is_ready(&s));
    kill(s.program.pid, SIGUSR1);
    EXPECT_TRUE(says(&s, "SIGUSR1: log level is now debug\n"));
    kill(s.program.pid, SIGUSR2);
    EXPECT_TRUE(says(&s, "SIGUSR2: log level is now info\n"));
    kill(s.program.pid, SIGUSR2);
    EXPECT_TRUE(says(&s, "SIGUSR2: log level is now warn\n"));
    kill(s.program.pid, SIGUSR2);
    EXPECT_TRUE(says(&s, "SIGUSR2: log level is now error\n"));
    stop(&s);
}

static void write_keys(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    fputs(text, f);
    fclose(f);
}

TEST(Supervisor, SighupReadsTheKeysAgain) {
    NEEDS_BINARY();
    char path[256];
    struct service s;
    const char *const args[] = {"--api-key-file", path, NULL};
    snprintf(path, sizeof path, "%s/service-keys", shim_scratch_dir());
    write_keys(path, "sk-1\n");
    ASSERT_TRUE(start(&s, args) && is_ready(&s));
    write_keys(path, "sk-1\nsk-2 oops\n");
    kill(s.program.pid, SIGHUP);
    EXPECT_TRUE(says(&s, "service-keys:2: behind the key, only name="));
    EXPECT_TRUE(says(&s, "the keys stay as they were\n"));
    write_keys(path, "sk-1\nsk-2\n");
    kill(s.program.pid, SIGHUP);
    EXPECT_TRUE(says(&s, "moeserve: SIGHUP: keys and certificates were read again\n"));
    EXPECT_TRUE(strstr(s.text, "sk-") == NULL);
    stop(&s);
}

/* While a model loads these signals must not end the process, which is their default. */
TEST(Supervisor, SignalsAtAnyMomentOfTheStartDoNoHarm) {
    NEEDS_BINARY();
    struct service s;
    for (int i = 0; i < 10; i++) {
        ASSERT_TRUE(start(&s, NULL) && says(&s, "moeserve: "));
        usleep((unsigned)i * 3000);
        kill(s.program.pid, SIGHUP);
        kill(s.program.pid, SIGUSR1);
        kill(s.program.pid, SIGUSR2);
        ASSERT_TRUE(is_ready(&s));
        stop(&s);
    }
}

/* A server that was started in a terminal ends with it. */
TEST(Supervisor, ASessionThatHangsUpStopsTheServer) {
    NEEDS_BINARY();
    int terminal, status = -1;
    char text[16384] = "";
    size_t len = 0;
    pid_t pid = forkpty(&terminal, NULL, NULL, NULL);
    if (pid == 0) {
        execl(getenv("MOESERVE_BIN"), "moeserve", "--listen", "127.0.0.1:0", "--http", "off", NULL);
        _exit(127);
    }
    if (pid < 0 && (errno == ENOENT || errno == ENODEV))
        SKIP("there are no pseudo-terminals here: /dev/pts is not mounted");
    ASSERT_INT_GT(pid, 0);
    while (!strstr(text, "moeserve: ready ") && len < sizeof text - 1) {
        ssize_t n = read(terminal, text + len, sizeof text - 1 - len);
        if (!EXPECT_INT_GT(n, 0))
            break;
        len += (size_t)n;
        text[len] = '\0';
    }
    close(terminal);
    int64_t until_us = clock_us() + WAIT_MS * 1000LL;
    while (waitpid(pid, &status, WNOHANG) == 0 && clock_us() < until_us)
        usleep(5000);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    kill(pid, SIGKILL);
}

/* ---- the log ---- */

TEST(Supervisor, AWholeRunLogsInJson) {
    NEEDS_BINARY();
    static const char *const args[] = {"--log-format", "json", "--log-requests", NULL};
    static const char request[] = "{\"id\":\"r1\",\"prompt\":\"a\",\"max_tokens\":3}";
    struct net_client client;
    struct service s;
    char line[256], *save = NULL;
    int lines = 0;
    ASSERT_TRUE(start(&s, args));
    ASSERT_TRUE(program_read_line(&s.program, line, sizeof line));
    ASSERT_TRUE(net_client_open(&client, line + strlen("moeserve: ready line="), 0));
    net_client_puts(&client, request);
    EXPECT_TRUE(says(&s, "\"request\":\"r1\""));
    EXPECT_TRUE(says(&s, "\"completion_tokens\":3,\"total_ms\":"));
    net_client_close(&client);
    kill(s.program.pid, SIGTERM);
    EXPECT_TRUE(says(&s, "shutting down"));
    EXPECT_INT_EQ(program_wait(&s.program), 0);
    for (char *l = strtok_r(s.text, "\n", &save); l; l = strtok_r(NULL, "\n", &save), lines++) {
        json_t *json = json_loads(l, 0, NULL);
        if (!json_is_string(json_object_get(json, "msg")) ||
            !json_is_string(json_object_get(json, "ts")) ||
            !json_is_string(json_object_get(json, "level")))
            FAIL("not a line of the log: %s", l);
        json_decref(json);
    }
    EXPECT_INT_GT(lines, 5);
    close(s.log);
}

/* Ten requests with a standard error that is closed, full, or read by nobody. */
TEST(Supervisor, ServesWhateverBecomesOfItsLog) {
    NEEDS_BINARY();
    static const char *const args[] = {"--listen", "127.0.0.1:0",    "--http", "off",
                                       "-v",       "--log-requests", NULL};
    static const char request[] = "{\"id\":1,\"prompt\":\"a\",\"max_tokens\":3}";
    int unread[2], gone[2], full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    ASSERT_INT_EQ(pipe2(unread, O_CLOEXEC), 0);
    ASSERT_INT_EQ(pipe2(gone, O_CLOEXEC), 0);
    fcntl(unread[1], F_SETPIPE_SZ, 4096);
    close(gone[0]);
    const int errs[] = {-1, full, unread[1], gone[1]};
    for (int i = 0; i < 4; i++) {
        struct program p;
        struct net_client client;
        char line[256];
        ASSERT_TRUE(program_start_with(&p, args, errs[i]));
        ASSERT_TRUE(program_read_line(&p, line, sizeof line));
        ASSERT_TRUE(net_client_open(&client, line + strlen("moeserve: ready line="), 0));
        for (int r = 0; r < 10; r++) {
            net_client_puts(&client, request);
            json_decref(net_client_until_done(&client, "1", NULL));
        }
        net_client_close(&client);
        kill(p.pid, SIGTERM);
        EXPECT_INT_EQ(program_wait(&p), 0);
    }
    close(unread[0]);
    close(unread[1]);
    close(gone[1]);
    close(full);
}

/* ---- limits ---- */

/* What limits_raise_files(need) says in a process with these limits on open files. */
static const char *said_of_limits(rlim_t soft, rlim_t hard, uint64_t need) {
    static char text[1024];
    int fds[2], status;
    if (!EXPECT_INT_EQ(pipe(fds), 0))
        return "";
    pid_t pid = fork();
    if (pid == 0) {
        struct rlimit r = {soft, hard};
        dup2(fds[1], STDERR_FILENO);
        if (setrlimit(RLIMIT_NOFILE, &r) != 0)
            _exit(1);
        limits_raise_files(need, "--max-connections");
        _exit(getrlimit(RLIMIT_NOFILE, &r) != 0 || r.rlim_cur < (hard < need ? hard : need));
    }
    close(fds[1]);
    waitpid(pid, &status, 0);
    ssize_t n = read(fds[0], text, sizeof text - 1);
    text[n > 0 ? n : 0] = '\0';
    close(fds[0]);
    EXPECT_INT_EQ(status, 0);
    return text;
}

TEST(Supervisor, LimitsAreRaisedWithAMessage) {
    EXPECT_STR_EQ(said_of_limits(200, 300, 200), "");
    EXPECT_STR_EQ(said_of_limits(100, 300, 200),
                  "moeserve: raised the limit on open files from 100 to 200 (--max-connections)\n");
    EXPECT_STR_EQ(said_of_limits(100, 150, 200),
                  "moeserve: raised the limit on open files from 100 to 150 (--max-connections)\n"
                  "moeserve: warning: only 150 files may be open, 200 are wanted for "
                  "--max-connections: raise the hard limit (LimitNOFILE= in a systemd unit, ulimit "
                  "-n, /etc/security/limits.conf)\n");
}

/* ---- the unit file ---- */

/* The unit with the program's own path; the number behind `name` in it, -1 when it is not there. */
static int32_t copy_unit(const char *path, const char *name) {
    static const char installed[] = "/usr/local/bin/moeserve";
    FILE *in = fopen("configs/moeserve.service", "r"), *out = fopen(path, "w");
    char line[512], bin[4096];
    int32_t number = -1;
    while (in && out && realpath(getenv("MOESERVE_BIN"), bin) && fgets(line, sizeof line, in)) {
        char *at = strstr(line, installed);
        if (at && *line != '#')
            fprintf(out, "%.*s%s%s", (int)(at - line), line, bin, at + sizeof installed - 1);
        else
            fputs(line, out);
        if (!strncmp(line, name, strlen(name)))
            number = atoi(line + strlen(name));
    }
    if (in)
        fclose(in);
    if (out)
        fclose(out);
    return number;
}

TEST(Supervisor, TheUnitFileIsRightAndLeavesTimeToDrain) {
    NEEDS_BINARY();
    char path[256], command[400], said[1024] = "";
    struct server_options o;
    server_options_default(&o);
    snprintf(path, sizeof path, "%s/moeserve.service", shim_scratch_dir());
    EXPECT_INT_GT(copy_unit(path, "TimeoutStopSec="), o.drain_timeout_s);
    EXPECT_INT_GT(copy_unit(path, "WatchdogSec="), o.stall_timeout_s);
    EXPECT_INT_GT(copy_unit(path, "LimitNOFILE="), o.max_connections);
    if (system("command -v systemd-analyze >/dev/null 2>&1") != 0)
        SKIP("there is no systemd-analyze, which checks the rest");
    snprintf(command, sizeof command, "systemd-analyze verify %s 2>&1", path);
    FILE *f = popen(command, "r");
    size_t n = f ? fread(said, 1, sizeof said - 1, f) : 0;
    said[n] = '\0';
    if (!EXPECT_TRUE(f && pclose(f) == 0))
        FAIL("%s", said);
}
