/* Whole runs of `moeserve bench` against a tiny server that speaks the line protocol and misbehaves
 * on request. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "host/buffer.h"
#include "host/cmd.h"
#include "host/file.h"
#include "host/json.h"
#include "host/mem.h"
#include "tests/shim.h"

/* ---- a small server that misbehaves --------------------------------------------------------- */

enum fake_mode {
    FAKE_GOOD,
    FAKE_REFUSES,   /* every third request: an error line */
    FAKE_CLOSES,    /* request 2: two tokens, then the connection ends */
    FAKE_SHORT,     /* request 1: one token too few */
    FAKE_SILENT,    /* request 1: one token, then nothing */
    FAKE_MUMBLES,   /* request 1: a line that is no JSON */
    FAKE_MIXES_IDS, /* request 1: answers to request 1000 */
};

enum { FAKE_MAX_CLIENTS = 64, FAKE_MAX_PROMPTS = 256, FAKE_KEPT_TOKENS = 64 };

/* Tokens are the bytes of the text, after a token 1; they come every delay_us. Measured requests
 * are counted and their prompts kept by id; those of the warm-up (the first `warmup`) are always
 * good. */
struct fake {
    enum fake_mode mode;
    int delay_us;
    int listener, port;
    atomic_int warmup; /* requests still to be answered without mischief */
    atomic_int in_flight, most_in_flight, requests;
    pthread_t acceptor, clients[FAKE_MAX_CLIENTS];
    FILE *streams[FAKE_MAX_CLIENTS];
    int num_clients;
    struct {
        int32_t count, first[FAKE_KEPT_TOKENS];
    } prompts[FAKE_MAX_PROMPTS];
};

struct fake_client {
    struct fake *fake;
    FILE *stream;
};

static void say(int fd, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(int fd, const char *fmt, ...) {
    char line[512];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    send(fd, line, (size_t)n, MSG_NOSIGNAL);
}

static void fake_tokenize(int fd, const char *text) {
    struct buffer out = {0};
    buffer_puts(&out, "{\"id\":0,\"tokens\":[1");
    for (; *text; text++)
        buffer_printf(&out, ",%d", (int)(unsigned char)*text);
    buffer_puts(&out, "]}\n");
    for (size_t sent = 0; sent < out.len;) {
        ssize_t n = send(fd, out.data + sent, out.len - sent, MSG_NOSIGNAL);
        if (n <= 0)
            break;
        sent += (size_t)n;
    }
    buffer_deinit(&out);
}

static void fake_keep_prompt(struct fake *f, int id, json_t *tokens) {
    if (id >= FAKE_MAX_PROMPTS)
        return;
    f->prompts[id].count = (int32_t)json_array_size(tokens);
    for (size_t i = 0; i < FAKE_KEPT_TOKENS && i < json_array_size(tokens); i++)
        f->prompts[id].first[i] = (int32_t)json_integer_value(json_array_get(tokens, i));
}

/* Returns false when the connection is to end. */
static bool fake_complete(struct fake *f, int fd, json_t *q, enum fake_mode mode) {
    int id = (int)json_integer_value(json_object_get(q, "id")), said = id;
    int n = (int)json_integer_value(json_object_get(q, "max_tokens")), send_n = n;
    int prompt = (int)json_array_size(json_object_get(q, "tokens"));
    if (mode == FAKE_REFUSES && id % 3 == 1) {
        say(fd,
            "{\"id\":%d,\"error\":{\"code\":\"overloaded\",\"message\":\"the queue is full\"}}\n",
            id);
        return true;
    }
    if (mode == FAKE_MUMBLES && id == 1) {
        say(fd, "mumble\n");
        return true;
    }
    if (mode == FAKE_MIXES_IDS && id == 1)
        said = 1000;
    if ((mode == FAKE_CLOSES && id == 2) || (mode == FAKE_SILENT && id == 1))
        send_n = mode == FAKE_CLOSES ? 2 : 1;
    if (mode == FAKE_SHORT && id == 1)
        send_n = --n;
    for (int i = 0; i < send_n; i++) {
        if (f->delay_us)
            usleep((unsigned)f->delay_us);
        say(fd, "{\"id\":%d,\"text\":\"x\",\"token\":%d}\n", said, i);
    }
    if (send_n < n)
        return mode == FAKE_SILENT;
    say(fd,
        "{\"id\":%d,\"done\":true,\"finish_reason\":\"length\",\"usage\":{\"prompt_tokens\":%d,"
        "\"completion_tokens\":%d,\"cached_tokens\":0}}\n",
        said, prompt, n);
    return true;
}

static bool fake_request(struct fake *f, int fd, json_t *q) {
    enum fake_mode mode = atomic_fetch_sub(&f->warmup, 1) > 0 ? FAKE_GOOD : f->mode;
    int now = atomic_fetch_add(&f->in_flight, 1) + 1, most = f->most_in_flight;
    while (now > most && !atomic_compare_exchange_weak(&f->most_in_flight, &most, now))
        continue;
    if (f->warmup < 0) {
        fake_keep_prompt(f, (int)json_integer_value(json_object_get(q, "id")),
                         json_object_get(q, "tokens"));
        atomic_fetch_add(&f->requests, 1);
    }
    bool go_on = fake_complete(f, fd, q, mode);
    atomic_fetch_sub(&f->in_flight, 1);
    return go_on;
}

static bool fake_line(struct fake *f, int fd, const char *line) {
    json_t *q = json_parse(line, strlen(line), "request", ERR_INVALID_JSON, NULL);
    const char *op = json_string_value(json_object_get(q, "op"));
    bool go_on = true;
    if (!q)
        say(fd, "{\"id\":null,\"error\":{\"code\":\"invalid_json\",\"message\":\"?\"}}\n");
    else if (op && !strcmp(op, "model"))
        say(fd,
            "{\"id\":0,\"name\":\"fake\",\"max_model_len\":4096,\"vocab_size\":300,\"ranks\":1}\n");
    else if (op && !strcmp(op, "tokenize"))
        fake_tokenize(fd, json_string_value(json_object_get(q, "text")));
    else
        go_on = fake_request(f, fd, q);
    json_decref(q);
    return go_on;
}

static void *fake_serve(void *arg) {
    struct fake_client c = *(struct fake_client *)arg;
    free(arg);
    char *line = NULL;
    size_t cap = 0;
    while (getline(&line, &cap, c.stream) > 0)
        if (!fake_line(c.fake, fileno(c.stream), line))
            break;
    shutdown(fileno(c.stream), SHUT_RDWR);
    free(line);
    return NULL;
}

static void *fake_accept(void *arg) {
    struct fake *f = arg;
    for (;;) {
        int fd = accept(f->listener, NULL, NULL), on = 1;
        if (fd < 0 || f->num_clients == FAKE_MAX_CLIENTS)
            return NULL;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct fake_client *c = xmalloc(sizeof *c);
        *c = (struct fake_client){f, fdopen(fd, "r")};
        f->streams[f->num_clients] = c->stream;
        pthread_create(&f->clients[f->num_clients++], NULL, fake_serve, c);
    }
}

static struct fake *fake_start(enum fake_mode mode, int delay_us, int warmup) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    struct fake *f = xcalloc(1, sizeof *f);
    f->mode = mode;
    f->delay_us = delay_us;
    f->warmup = warmup;
    f->listener = socket(AF_INET, SOCK_STREAM, 0);
    EXPECT_INT_EQ(bind(f->listener, (struct sockaddr *)&address, sizeof address), 0);
    EXPECT_INT_EQ(listen(f->listener, 64), 0);
    getsockname(f->listener, (struct sockaddr *)&address, &size);
    f->port = ntohs(address.sin_port);
    pthread_create(&f->acceptor, NULL, fake_accept, f);
    return f;
}

static void fake_stop(struct fake *f) {
    shutdown(f->listener, SHUT_RDWR);
    pthread_join(f->acceptor, NULL);
    for (int i = 0; i < f->num_clients; i++) {
        shutdown(fileno(f->streams[i]), SHUT_RDWR);
        pthread_join(f->clients[i], NULL);
        fclose(f->streams[i]);
    }
    close(f->listener);
    free(f);
}

/* ---- whole runs ----------------------------------------------------------------------------- */

enum { MAX_ARGS = 32 };

/* Splits at spaces into argv; "bench" comes first. */
static int split(char *words, char **argv) {
    static char name[] = "bench";
    char *save = NULL;
    int argc = 0;
    argv[argc++] = name;
    for (char *w = strtok_r(words, " ", &save); w && argc < MAX_ARGS;
         w = strtok_r(NULL, " ", &save))
        argv[argc++] = w;
    argv[argc] = NULL;
    return argc;
}

/* What a run left behind. */
struct run {
    int status;
    json_t *json; /* owned; NULL when none was written */
    char *text;   /* owned: standard output */
};

static void run_deinit(struct run *r) {
    json_decref(r->json);
    free(r->text);
}

/* Runs cmd_bench with these options, its standard output going to a file. Standard error stays. */
static void run_command(struct run *r, char *words) {
    char *argv[MAX_ARGS + 1], path[256];
    struct error e = {0};
    size_t len;
    int argc = split(words, argv);
    snprintf(path, sizeof path, "%s/bench.txt", shim_scratch_dir());
    fflush(stdout);
    int saved = dup(1), file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(file, 1);
    r->status = cmd_bench(argc, argv);
    fflush(stdout);
    dup2(saved, 1);
    close(saved);
    close(file);
    EXPECT_INT_EQ(file_read(path, 1 << 20, &r->text, &len, &e), 0);
}

/* The same against a fake server. */
static struct run run_bench(struct fake *f, const char *options) {
    struct run r = {0};
    char words[1024], json[256];
    snprintf(json, sizeof json, "%s/bench.json", shim_scratch_dir());
    unlink(json);
    snprintf(words, sizeof words, "--server 127.0.0.1:%d --json %s %s", f->port, json, options);
    run_command(&r, words);
    if (file_exists(json))
        r.json = json_parse_file(json, 1 << 20, NULL);
    return r;
}

static int64_t run_int(const struct run *r, const char *key) {
    return json_integer_value(json_object_get(r->json, key));
}

static double run_number(const struct run *r, const char *key) {
    return json_number_value(json_object_get(r->json, key));
}

static const char *run_error(const struct run *r, size_t request) {
    const char *s = json_string_value(json_array_get(json_object_get(r->json, "errors"), request));
    return s ? s : "(none)";
}

TEST(BenchRun, AGoodRunCountsEveryRequestAndToken) {
    struct fake *f = fake_start(FAKE_GOOD, 1000, 3);
    struct run r = run_bench(f, "--num-prompts 20 --warmup 3 --max-concurrency 4 "
                                "--random-input-len 30:60 --random-output-len 5");
    EXPECT_INT_EQ(r.status, 0);
    EXPECT_INT_EQ(run_int(&r, "completed"), 20);
    EXPECT_INT_EQ(run_int(&r, "total_output_tokens"), 100);
    EXPECT_INT_EQ(f->requests, 20);
    EXPECT_INT_LE(f->most_in_flight, 4);
    EXPECT_INT_GE(f->most_in_flight, 2);
    EXPECT_INT_EQ(run_int(&r, "max_concurrency"), 4);
    int64_t prompt_tokens = 0;
    for (int i = 0; i < 20; i++) {
        EXPECT_TRUE(f->prompts[i].count >= 30 && f->prompts[i].count <= 60);
        EXPECT_INT_EQ(f->prompts[i].first[0], 1); /* the tokenizer's own first token */
        for (int k = 0; k < i; k++)
            EXPECT_TRUE(memcmp(f->prompts[i].first, f->prompts[k].first, 16 * 4) != 0);
        prompt_tokens += f->prompts[i].count;
    }
    EXPECT_INT_EQ(run_int(&r, "total_input_tokens"), prompt_tokens);
    EXPECT_TRUE(strstr(r.text, "============ Serving Benchmark Result ============\n") == r.text);
    run_deinit(&r);
    fake_stop(f);
}

TEST(BenchRun, ASlowServersTimesAreMeasured) {
    enum { DELAY_MS = 20 };
    struct fake *f = fake_start(FAKE_GOOD, DELAY_MS * 1000, 0);
    struct run r = run_bench(f, "--num-prompts 4 --warmup 0 --random-input-len 8 "
                                "--random-output-len 6 --dataset random");
    /* A sleep never ends early; how late it ends depends on what else the machine does. */
    EXPECT_INT_EQ(r.status, 0);
    EXPECT_INT_EQ(f->requests, 4);
    EXPECT_TRUE(run_number(&r, "median_ttft_ms") >= DELAY_MS - 1);
    EXPECT_TRUE(run_number(&r, "mean_itl_ms") >= DELAY_MS - 2);
    EXPECT_TRUE(run_number(&r, "mean_itl_ms") < 10 * DELAY_MS);
    EXPECT_NEAR(run_number(&r, "mean_tpot_ms"), run_number(&r, "mean_itl_ms"), 5);
    EXPECT_TRUE(run_number(&r, "duration") >= 6 * DELAY_MS / 1000.0);
    for (int i = 0; i < 4; i++)
        for (int t = 1; t < 8; t++)
            EXPECT_TRUE(f->prompts[i].first[t] >= 0 && f->prompts[i].first[t] < 300);
    run_deinit(&r);
    fake_stop(f);
}

TEST(BenchRun, AnOpenLoopSendsAtTheWantedRate) {
    struct fake *f = fake_start(FAKE_GOOD, 0, 0);
    struct run r = run_bench(f, "--num-prompts 40 --warmup 0 --random-input-len 8 "
                                "--random-output-len 1 --request-rate 100 --prefix-len 20");
    EXPECT_INT_EQ(r.status, 0);
    EXPECT_INT_EQ(run_int(&r, "completed"), 40);
    EXPECT_INT_EQ(f->requests, 40);
    /* The last of 40 arrives at 0.4 s. */
    EXPECT_TRUE(run_number(&r, "duration") >= 0.39);
    for (int i = 0; i < 40; i++) {
        EXPECT_INT_EQ(f->prompts[i].count, 28);
        EXPECT_MEM_EQ(f->prompts[i].first, f->prompts[0].first, 20 * 4);
        if (i)
            EXPECT_TRUE(memcmp(f->prompts[i].first + 20, f->prompts[0].first + 20, 8 * 4) != 0);
    }
    run_deinit(&r);
    fake_stop(f);
}

TEST(BenchRun, RefusedRequestsMakeTheRunInvalid) {
    struct fake *f = fake_start(FAKE_REFUSES, 0, 2);
    struct run r = run_bench(f, "--num-prompts 9 --warmup 2 --max-concurrency 2 "
                                "--random-input-len 8 --random-output-len 3");
    EXPECT_INT_EQ(r.status, 1);
    EXPECT_INT_EQ(run_int(&r, "completed"), 6);
    EXPECT_INT_EQ(run_int(&r, "failed"), 3);
    EXPECT_STR_EQ(run_error(&r, 4), "overloaded: the queue is full");
    EXPECT_STR_EQ(run_error(&r, 5), "");
    EXPECT_TRUE(strstr(r.text, "Result: INVALID =") != NULL);
    EXPECT_TRUE(strstr(r.text, "= INVALID: 3 of 9 requests failed =") != NULL);
    run_deinit(&r);
    fake_stop(f);
}

TEST(BenchRun, OneBadAnswerFailsOneRequestAndSaysWhy) {
    static const struct {
        enum fake_mode mode;
        size_t request;
        const char *why;
    } cases[] = {
        {FAKE_CLOSES, 2, "connection lost: the server closed the connection"},
        {FAKE_SHORT, 1, "3 tokens were generated, 4 were asked for"},
        {FAKE_SILENT, 1, "no answer for 0.4 s"},
        {FAKE_MUMBLES, 1, "answer: not valid JSON: invalid token near 'mumble' (line 1, column 6)"},
        {FAKE_MIXES_IDS, 1, "an answer carried the id of another request"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fake *f = fake_start(cases[i].mode, 0, 0);
        struct run r = run_bench(f, "--num-prompts 6 --warmup 0 --max-concurrency 2 --timeout 0.4 "
                                    "--random-input-len 8 --random-output-len 4");
        EXPECT_INT_EQ(r.status, 1);
        EXPECT_INT_EQ(run_int(&r, "completed"), 5);
        EXPECT_STR_EQ(run_error(&r, cases[i].request), cases[i].why);
        EXPECT_INT_EQ(f->requests, 6);
        run_deinit(&r);
        fake_stop(f);
    }
}

TEST(BenchRun, AFailedWarmUpEndsTheRunBeforeItCounts) {
    struct fake *f = fake_start(FAKE_SHORT, 0, 0);
    struct run r = run_bench(f, "--num-prompts 4 --warmup 2 --random-input-len 8");
    EXPECT_INT_EQ(r.status, 1);
    EXPECT_STR_EQ(r.text, "");
    EXPECT_TRUE(r.json == NULL);
    run_deinit(&r);
    fake_stop(f);
}

TEST(BenchRun, WithoutAServerNothingIsMeasured) {
    struct fake *f = fake_start(FAKE_GOOD, 0, 0);
    char words[64];
    snprintf(words, sizeof words, "--server 127.0.0.1:%d", f->port);
    fake_stop(f);
    struct run r = {0};
    run_command(&r, words);
    EXPECT_INT_EQ(r.status, 1);
    EXPECT_STR_EQ(r.text, "");
    run_deinit(&r);
}

TEST(BenchRun, PromptsLongerThanTheContextAreRefusedAtOnce) {
    struct fake *f = fake_start(FAKE_GOOD, 0, 0);
    struct run r = run_bench(f, "--num-prompts 2 --random-input-len 4000 --random-output-len 100");
    EXPECT_INT_EQ(r.status, 1);
    EXPECT_INT_EQ(f->requests, 0);
    EXPECT_TRUE(r.json == NULL);
    run_deinit(&r);
    fake_stop(f);
}
