/* The log: text and JSON lines, levels, and a standard error that takes no more. */
#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <regex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "host/log.h"
#include "tests/shim.h"

/* ---- a standard error of the test's own ---- */

static int real_stderr;

static void take_stderr(int fd) {
    real_stderr = dup(STDERR_FILENO);
    if (fd >= 0)
        dup2(fd, STDERR_FILENO);
    else
        close(STDERR_FILENO);
}

static void give_stderr_back(void) {
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    log_set_level(LOG_INFO);
    log_set_format(LOG_TEXT);
    log_set_requests(false);
}

/* What came through, at most 64 KiB. */
static const char *read_all(int fd) {
    static char text[65536];
    size_t len = 0;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    for (ssize_t n; len < sizeof text - 1 && (n = read(fd, text + len, sizeof text - 1 - len)) > 0;)
        len += (size_t)n;
    text[len] = '\0';
    return text;
}

/* ---- what a line holds ---- */

TEST(Log, TextLinesAreAsTheyAre) {
    int fds[2];
    ASSERT_INT_EQ(pipe(fds), 0);
    take_stderr(fds[1]);
    log_info("ready %d", 1);
    log_warn("careful");
    log_error("two\nlines");
    log_debug("unseen");
    log_set_level(LOG_DEBUG);
    log_debug("seen");
    log_request(LOG_INFO, "a\"b\nmoeserve: forged", "said");
    give_stderr_back();
    EXPECT_STR_EQ(read_all(fds[0]), "moeserve: ready 1\n"
                                    "moeserve: warning: careful\n"
                                    "moeserve: error: two\nlines\n"
                                    "moeserve: debug: seen\n"
                                    "moeserve: [a\\\"b\\nmoeserve: forged] said\n");
    close(fds[0]);
    close(fds[1]);
}

static void expect_member(const json_t *line, const char *name, const char *value) {
    const char *s = json_string_value(json_object_get(line, name));
    EXPECT_STR_EQ(s ? s : "(none)", value);
}

TEST(Log, JsonLinesAreObjectsWhateverIsLogged) {
    int fds[2];
    char text[4096], *save = NULL;
    static const char *const levels[] = {"error", "warn", "info", "info"};
    static const char *const messages[] = {"q\" b\\ \x01\n\x7f", "caf\xc3\xa9", "\xef\xbf\xbd(",
                                           "of one"};
    ASSERT_INT_EQ(pipe(fds), 0);
    take_stderr(fds[1]);
    log_set_format(LOG_JSON);
    log_error("%s", messages[0]);
    log_warn("%s", messages[1]);
    log_info("\xc3(");
    log_request(LOG_INFO, "id-\xff", "of one");
    give_stderr_back();
    snprintf(text, sizeof text, "%s", read_all(fds[0]));
    close(fds[0]);
    close(fds[1]);
    regex_t rfc3339;
    regcomp(&rfc3339, "^20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{6}Z$",
            REG_EXTENDED);
    int i = 0;
    for (char *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save), i++) {
        json_t *line = json_loads(l, 0, NULL);
        if (!EXPECT_TRUE(line && i < 4))
            break;
        expect_member(line, "level", levels[i]);
        expect_member(line, "msg", messages[i]);
        const char *ts = json_string_value(json_object_get(line, "ts"));
        EXPECT_INT_EQ(regexec(&rfc3339, ts ? ts : "", 0, NULL, 0), 0);
        if (i == 3)
            expect_member(line, "request", "id-\xef\xbf\xbd");
        json_decref(line);
    }
    EXPECT_INT_EQ(i, 4);
    regfree(&rfc3339);
}

TEST(Log, LongLinesAreCutAndStayWhole) {
    static char longest[9000];
    int fds[2];
    memset(longest, '"', sizeof longest - 1); /* each takes two bytes of JSON */
    ASSERT_INT_EQ(pipe(fds), 0);
    take_stderr(fds[1]);
    log_info("%s", longest);
    log_set_format(LOG_JSON);
    log_info("%s", longest);
    log_request(LOG_INFO, longest, "said");
    give_stderr_back();
    const char *text = read_all(fds[0]), *second = strchr(text, '\n');
    ASSERT_TRUE(second && second - text > 6000);
    for (const char *l = second + 1; *l; l = strchr(l, '\n') + 1) {
        json_error_t e;
        json_t *line = json_loads(l, JSON_DISABLE_EOF_CHECK, &e);
        if (!line)
            FAIL("%s", e.text);
        json_decref(line);
    }
    close(fds[0]);
    close(fds[1]);
}

TEST(Log, ARequestThatHasEndedHasALineOfItsOwn) {
    const struct log_finished f = {.id = "req-1",
                                   .key = "alice",
                                   .outcome = "stop",
                                   .status = 200,
                                   .prompt_tokens = 12,
                                   .completion_tokens = 30,
                                   .total_ms = 4.5};
    const struct log_finished plain = {.id = "7", .outcome = "overloaded"};
    int fds[2];
    ASSERT_INT_EQ(pipe(fds), 0);
    take_stderr(fds[1]);
    log_finished(&f);
    log_set_requests(true);
    log_finished(&f);
    log_finished(&plain);
    log_set_format(LOG_JSON);
    log_finished(&f);
    give_stderr_back();
    const char *text = read_all(fds[0]);
    static const char head[] = "moeserve: [req-1] 200 stop (alice), 12 + 30 tokens, 4.5 ms\n"
                               "moeserve: [7] overloaded, 0 + 0 tokens, 0.0 ms\n";
    EXPECT_INT_EQ(strncmp(text, head, sizeof head - 1), 0);
    EXPECT_TRUE(strstr(text, "\"level\":\"info\",\"request\":\"req-1\",\"key\":\"alice\","
                             "\"outcome\":\"stop\",\"status\":200,\"prompt_tokens\":12,"
                             "\"completion_tokens\":30,\"total_ms\":4.500,\"msg\":\"request\"}\n"));
    close(fds[0]);
    close(fds[1]);
}

TEST(Log, LevelsStopAtTheirEnds) {
    int fds[2];
    ASSERT_INT_EQ(pipe(fds), 0);
    take_stderr(fds[1]);
    log_set_level(LOG_ERROR);
    log_step_level(-1, "test");
    EXPECT_INT_EQ(log_get_level(), LOG_ERROR);
    for (int i = 0; i < 5; i++)
        log_step_level(1, "test");
    EXPECT_INT_EQ(log_get_level(), LOG_DEBUG);
    give_stderr_back();
    EXPECT_TRUE(strstr(read_all(fds[0]), "moeserve: test: log level is now error\n"
                                         "moeserve: test: log level is now warn\n"));
    close(fds[0]);
    close(fds[1]);
}

/* ---- a standard error that takes no more ---- */

/* Logs through fds[1] until it takes no more, then has fds[0] read. */
static void fill_and_empty(int fds[2]) {
    static char text[700];
    memset(text, 'x', sizeof text - 1);
    take_stderr(fds[1]);
    for (int i = 0; i < 2000; i++) /* far more than a pipe holds: this would block for ever */
        log_info("%d %s", i, text);
    int received = 0;
    char head[32];
    const char *got = read_all(fds[0]);
    for (; *got; got = strchr(got, '\n') + 1) {
        snprintf(head, sizeof head, "moeserve: %d x", received++);
        if (strncmp(got, head, strlen(head)) || !strchr(got, '\n'))
            break;
    }
    EXPECT_INT_GT(received, 1);
    log_info("again");
    log_info("and again");
    give_stderr_back();
    got = read_all(fds[0]);
    const char *warning = strstr(got, "moeserve: warning: ");
    ASSERT_TRUE(warning != NULL);
    int lost = atoi(warning + strlen("moeserve: warning: "));
    EXPECT_TRUE(lost > 100 && lost < 2000);
    EXPECT_INT_EQ(lost, 2000 - received);
    EXPECT_TRUE(strstr(warning, " log lines before this one could not be written\n"
                                "moeserve: again\nmoeserve: and again\n") != NULL);
}

TEST(Log, AFullPipeNeitherBlocksNorLosesCount) {
    int fds[2];
    ASSERT_INT_EQ(pipe(fds), 0);
    fcntl(fds[1], F_SETPIPE_SZ, 16384);
    fill_and_empty(fds);
    close(fds[0]);
    close(fds[1]);
}

TEST(Log, NorDoesANonBlockingOne) {
    int fds[2];
    ASSERT_INT_EQ(pipe2(fds, O_NONBLOCK), 0);
    fcntl(fds[1], F_SETPIPE_SZ, 16384);
    fill_and_empty(fds);
    close(fds[0]);
    close(fds[1]);
}

TEST(Log, NorDoesASocketAsOfTheJournal) {
    int fds[2], size = 4096;
    ASSERT_INT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    fill_and_empty(fds);
    close(fds[0]);
    close(fds[1]);
}

TEST(Log, WithoutAReaderNothingHappens) {
    int fds[2];
    void (*old)(int) = signal(SIGPIPE, SIG_DFL); /* it would end the tests */
    ASSERT_INT_EQ(pipe(fds), 0);
    close(fds[0]);
    take_stderr(fds[1]);
    log_info("to nobody");
    give_stderr_back();
    close(fds[1]);
    take_stderr(-1);
    log_info("to nowhere");
    give_stderr_back();
    int full = open("/dev/full", O_WRONLY);
    take_stderr(full);
    log_info("to a full disk");
    give_stderr_back();
    close(full);
    signal(SIGPIPE, old);
    ASSERT_INT_EQ(pipe(fds), 0);
    take_stderr(fds[1]);
    log_info("at last");
    give_stderr_back();
    EXPECT_STR_EQ(read_all(fds[0]),
                  "moeserve: warning: 3 log lines before this one could not be written\n"
                  "moeserve: at last\n");
    close(fds[0]);
    close(fds[1]);
}

static void *log_many(void *name) {
    for (int i = 0; i < 50; i++)
        log_info("%s %d", (const char *)name, i);
    return NULL;
}

TEST(Log, LinesOfSeveralThreadsDoNotMix) {
    static const char *const names[] = {"aaaa", "bbbb", "cccc", "dddd"};
    pthread_t threads[4];
    int fds[2], next[4] = {0}, lines = 0;
    ASSERT_INT_EQ(pipe(fds), 0);
    take_stderr(fds[1]);
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, log_many, (void *)names[i]);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    give_stderr_back();
    for (const char *l = read_all(fds[0]); *l; l = strchr(l, '\n') + 1) {
        char name[8];
        int number;
        if (!EXPECT_INT_EQ(sscanf(l, "moeserve: %4s %d\n", name, &number), 2))
            break;
        EXPECT_INT_EQ(number, next[name[0] - 'a']++);
        lines++;
    }
    EXPECT_INT_EQ(lines, 200);
    close(fds[0]);
    close(fds[1]);
}
