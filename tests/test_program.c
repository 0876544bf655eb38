/* The program itself, started as a user starts it: exit statuses, the ready line, signals. */
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/file.h"
#include "tests/program.h"
#include "tests/shim.h"

/* Starts a server on a free port and connects to it. */
static bool serve(struct program *p, struct net_client *c, const char *drain_timeout) {
    const char *args[] = {"--listen", "127.0.0.1:0", "--drain-timeout", drain_timeout, NULL};
    return program_serve(p, c, args);
}

/* Of the server that it is connected to. */
static int port_of(const struct net_client *c) {
    struct sockaddr_in a = {0};
    socklen_t len = sizeof a;
    getpeername(c->fd, (struct sockaddr *)&a, &len);
    return ntohs(a.sin_port);
}

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
        {{"--gpus", "0,99"}, 1, ""},
        {{"--gpus", "4", "--replicas", "3"}, 2, ""},
        {{"--listen", "0.0.0.0:0", "--http", "off"}, 2, ""},
        {{"--listen", "off", "--http", "off"}, 2, ""},
        {{"--tls-cert", "/dev/null"}, 2, ""},
        {{"--api-key-file", "/no/such/keys"}, 2, ""},
        {{"generate", "-p", "x", "--max-model-len", "99999999"}, 2, ""},
        {{"--replicas", "0"}, 2, ""},
        {{"generate", "--replicas", "2"}, 2, ""},
        {{"generate", "-p", "x", "--model", "/no/such/model"}, 1, ""},
        {{"generate", "-p", "Once upon", "--max-tokens", "4"}, 0, ""},
        {{"generate", "--prompt=", "--max-tokens", "4"}, 1, ""},
    };
    char line[256];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        EXPECT_INT_EQ(program_run(cases[i].args, line, sizeof line), cases[i].status);
        if (!strstr(line, cases[i].prints))
            FAIL("%s: prints '%s'", cases[i].args[0], line);
    }
}

/* Starts it, reads a line of its standard output, ends it, and returns what it wrote to standard
 * error, to be freed. */
static char *log_of(const char *const *args) {
    char path[512], line[256], *text = NULL;
    size_t len;
    struct program p;
    struct error e = {0};
    snprintf(path, sizeof path, "%s/stderr.txt", shim_scratch_dir());
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    EXPECT_TRUE(program_start_with(&p, args, fd));
    close(fd);
    program_read_line(&p, line, sizeof line);
    kill(p.pid, SIGTERM);
    program_wait(&p);
    EXPECT_INT_EQ(file_read(path, 1 << 20, &text, &len, &e), 0);
    return text;
}

TEST(Program, NothingIsLoggedBelowTheLevelOrInAnotherFormat) {
    NEEDS_BINARY();
    static const struct {
        const char *args[14], *first; /* that each line begins with; NULL: there is none */
    } cases[] = {
        {{"generate", "-p", "1+1=", "--max-tokens", "1", "--log-format", "json"}, "{\"ts\":"},
        {{"generate", "-p", "1+1=", "--max-tokens", "1"}, "moeserve: "},
        {{"generate", "-p", "1+1=", "--max-tokens", "1", "--log-level", "error"}, NULL},
        {{"--listen", "127.0.0.1:0", "--http", "off", "-q"}, NULL},
        {{"--listen", "127.0.0.1:0", "--http", "off", "--log-format", "json"}, "{\"ts\":"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *first = cases[i].first;
        char *text = log_of(cases[i].args), *save = NULL;
        EXPECT_INT_EQ(*text != '\0', first != NULL);
        for (char *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save))
            if (!first || strncmp(l, first, strlen(first)))
                FAIL("case %zu: '%s'", i, l);
        free(text);
    }
}

TEST(Program, MessagesNameTheOptionToChange) {
    NEEDS_BINARY();
    static const struct {
        const char *args[10], *says;
    } cases[] = {
        {{"--model", "/no/such"}, "--model /no/such: expected the folder of a checkpoint"},
        {{"plan", "--model", "/no/such"}, "--model /no/such: expected the folder of a checkpoint"},
        {{"--max-model-len", "99999"}, "--max-model-len 99999: the model takes at most"},
        {{"--max-model-len", "99", "--num-kv-blocks", "2"},
         "--max-model-len 99: the KV cache holds 32 tokens; lower it or raise --kv-cache-memory"},
        {{"--max-num-seqs", "9", "--max-num-batched-tokens", "8"},
         "--max-num-batched-tokens 8 is below --max-num-seqs 9"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *args[16] = {"--listen", "127.0.0.1:0", "--http", "off"};
        bool serves = cases[i].args[0][0] == '-';
        memcpy(args + (serves ? 4 : 0), cases[i].args, sizeof cases[i].args);
        char *text = log_of(args);
        if (!strstr(text, cases[i].says))
            FAIL("'%s', not '%s'", text, cases[i].says);
        free(text);
    }
}

/* A configuration for a server, with which generate runs on all that is there. */
TEST(Program, GenerateIsOneReplica) {
    NEEDS_BINARY();
    char path[512], line[256];
    snprintf(path, sizeof path, "%s/replicas.ini", shim_scratch_dir());
    FILE *f = fopen(path, "w");
    ASSERT_TRUE(f != NULL);
    fputs("replicas = 3\nthreads = 1\n", f);
    fclose(f);
    const char *const args[] = {"generate", "--config",      path, "-p", "27+15=", "--max-tokens",
                                "2",        "--temperature", "0",  NULL};
    EXPECT_INT_EQ(program_run(args, line, sizeof line), 0);
    EXPECT_STR_EQ(line, "42");
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
        EXPECT_INT_EQ(program_wait(&p), 0);
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
    EXPECT_INT_EQ(program_wait(&p), 128 + SIGTERM);
    net_client_close(&c);
}

TEST(Program, BenchShowsItsKey) {
    NEEDS_BINARY();
    static const char *const common[] = {"bench", "--num-prompts=3", "--warmup=1",
                                         "--random-output-len=2"};
    static const struct {
        const char *key, *variable;
        bool own_server;
        int status;
    } cases[] = {{NULL, NULL, false, 1},
                 {"wrong", NULL, false, 1},
                 {"sk-two", NULL, false, 0},
                 {NULL, "sk-two", false, 0},
                 {NULL, "sk-x sk-y", true, 0}};
    const char *args[] = {"--listen",  "127.0.0.1:0", "--api-key", "sk-one",
                          "--api-key", "sk-two",      NULL};
    struct program p;
    struct net_client c;
    char line[256], server[64];
    ASSERT_TRUE(program_serve(&p, &c, args));
    snprintf(server, sizeof server, "--server=127.0.0.1:%d", port_of(&c));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *run[9] = {NULL};
        int n = 4;
        memcpy(run, common, sizeof common);
        if (!cases[i].own_server)
            run[n++] = server;
        if (cases[i].key) {
            run[n++] = "--api-key";
            run[n++] = cases[i].key;
        }
        if (cases[i].variable)
            setenv("MOESERVE_API_KEY", cases[i].variable, 1);
        if (!EXPECT_INT_EQ(program_run(run, line, sizeof line), cases[i].status))
            FAIL("case %zu: %s", i, line);
        unsetenv("MOESERVE_API_KEY");
    }
    net_client_close(&c);
    kill(p.pid, SIGTERM);
    EXPECT_INT_EQ(program_wait(&p), 0);
}

TEST(Program, BenchWritesNoKey) {
    NEEDS_BINARY();
    char path[512], line[256], *text = NULL;
    size_t len;
    struct error e = {0};
    snprintf(path, sizeof path, "%s/bench.json", shim_scratch_dir());
    const char *args[] = {"bench",     "--num-prompts=2", "--warmup=0", "--json",
                          path,        "--api-key",       "sk-own",     "--",
                          "--ranks=1", "--api-key",       "sk-own",     NULL};
    EXPECT_INT_EQ(program_run(args, line, sizeof line), 0);
    ASSERT_INT_EQ(file_read(path, 1 << 20, &text, &len, &e), 0);
    EXPECT_TRUE(strstr(text, "--ranks=1") && !strstr(text, "sk-own"));
    free(text);
}

TEST(Program, APortInUseEndsItWithOne) {
    NEEDS_BINARY();
    struct program p;
    struct net_client c;
    char line[256], address[64];
    ASSERT_TRUE(serve(&p, &c, "30"));
    net_client_puts(&c, "{\"op\":\"ping\"}");
    json_decref(net_client_json(&c));
    snprintf(address, sizeof address, "127.0.0.1:%d", port_of(&c));
    const char *const args[] = {"--listen", address, "--http", "off", NULL};
    EXPECT_INT_EQ(program_run(args, line, sizeof line), 1);
    net_client_close(&c);
    kill(p.pid, SIGTERM);
    EXPECT_INT_EQ(program_wait(&p), 0);
}
