/* Servers with faults (faulty.h). */
#include "tests/faulty.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/clock.h"
#include "tests/shim.h"

enum { MAX_ARGS = 24 };

/* ---- requests and answers -------------------------------------------------------------------- */

static void take_line(struct faulty_answers *a, json_t *line) {
    int32_t id = (int32_t)json_integer_value(json_object_get(line, "id"));
    json_t *token = json_object_get(line, "token");
    if (id < 1 || id > FAULTY_CLIENTS) {
        FAIL("a line of request %d", id);
        return;
    }
    if (token && a->count[id - 1] < FAULTY_TOKENS)
        a->tokens[id - 1][a->count[id - 1]++] = (int32_t)json_integer_value(token);
    a->done[id - 1] |= json_object_get(line, "done") != NULL;
    if (json_object_get(line, "error")) {
        json_t *error = json_object_get(line, "error");
        a->error[id - 1] = true;
        EXPECT_STR_EQ(json_string_value(json_object_get(error, "code")), "internal");
        snprintf(a->message, sizeof a->message, "%s",
                 json_string_value(json_object_get(error, "message")));
    }
}

static void ask_all(const struct faulty *f, struct net_client *c) {
    for (int32_t i = 0; i < FAULTY_CLIENTS; i++) {
        char line[256];
        snprintf(line, sizeof line,
                 "{\"id\":%d,\"prompt\":\"%.*s\",\"max_tokens\":%d,\"ignore_eos\":true,"
                 "\"temperature\":0}",
                 i + 1, 4 + 9 * i, "Once upon a time there was a little cat that", f->tokens);
        net_client_puts(c, line);
    }
}

/* Until every request has ended, or the connection. */
static void collect(struct net_client *c, struct faulty_answers *a) {
    int32_t ended = 0;
    memset(a, 0, sizeof *a);
    while (ended < FAULTY_CLIENTS) {
        json_t *line = net_client_json(c);
        if (!line)
            return;
        take_line(a, line);
        json_decref(line);
        ended = 0;
        for (int32_t i = 0; i < FAULTY_CLIENTS; i++)
            ended += a->done[i] || a->error[i];
    }
}

/* Whatever was sent is a beginning of what is right. */
static void check_tokens(const struct faulty_answers *got, const struct faulty_answers *want,
                         const char *fault) {
    for (int32_t i = 0; i < FAULTY_CLIENTS; i++) {
        if (memcmp(got->tokens[i], want->tokens[i], (size_t)got->count[i] * sizeof(int32_t)) != 0)
            FAIL("%s: request %d got a wrong token", fault, i + 1);
        if (got->done[i] && got->count[i] != want->count[i])
            FAIL("%s: request %d ended after %d of %d tokens", fault, i + 1, got->count[i],
                 want->count[i]);
        if (!got->done[i] && !got->error[i])
            FAIL("%s: request %d was not answered", fault, i + 1);
    }
}

static int32_t ended_well(const struct faulty_answers *a) {
    int32_t n = 0;
    for (int32_t i = 0; i < FAULTY_CLIENTS; i++)
        n += a->done[i];
    return n;
}

/* Nothing runs, blocks are the prefix cache's alone, and the server is healthy. */
static void check_idle(struct net_client *c, const char *fault) {
    net_client_puts(c, "{\"op\":\"stats\"}");
    json_t *s = net_client_json(c);
    json_t *used = json_object_get(s, "kv_blocks_used");
    if (json_integer_value(used) != json_integer_value(json_object_get(s, "kv_blocks_cached")) ||
        json_integer_value(json_object_get(s, "running")) != 0 ||
        !json_is_true(json_object_get(s, "healthy"))) {
        char *text = json_dumps(s, JSON_COMPACT);
        FAIL("%s: %s", fault, text);
        free(text);
    }
    json_decref(s);
}

/* ---- servers --------------------------------------------------------------------------------- */

static bool start(const struct faulty *f, struct program *p, struct net_client *c,
                  const char *fault, const char *timeout) {
    const char *args[MAX_ARGS] = {"--listen", "127.0.0.1:0", "--comm-timeout", timeout};
    int n = 4;
    if (fault) {
        args[n++] = "--fault";
        args[n++] = fault;
    }
    for (const char *const *a = f->args; *a; a++) {
        CHECK(n + 1 < MAX_ARGS, "more than %d arguments", MAX_ARGS);
        args[n++] = *a;
    }
    return program_serve(p, c, args);
}

static void end(struct program *p, struct net_client *c) {
    net_client_close(c);
    kill(p->pid, SIGTERM);
    EXPECT_INT_EQ(program_wait(p), 0);
}

/* A fault of this kind at a step of the decoding; ranks and steps change from call to call. */
static const char *fault_at(const struct faulty *f, const char *kind, int32_t i, char *out,
                            size_t size) {
    int32_t step = 2 + (int32_t)((unsigned)rand() % (unsigned)(f->tokens - 2));
    snprintf(out, size, "%s@%d:%d:%d", kind, i % f->ranks, step, i % f->layers);
    return out;
}

bool faulty_reference(const struct faulty *f, struct faulty_answers *want) {
    struct program p;
    struct net_client c;
    if (!start(f, &p, &c, NULL, "10"))
        return false;
    ask_all(f, &c);
    collect(&c, want);
    end(&p, &c);
    return EXPECT_INT_EQ(ended_well(want), FAULTY_CLIENTS);
}

void faulty_check_unnoticed(const struct faulty *f, const char *fault, const char *timeout,
                            const struct faulty_answers *want) {
    struct program p;
    struct net_client c;
    struct faulty_answers got;
    if (!start(f, &p, &c, fault, timeout))
        return;
    for (int32_t i = 0; i < 2; i++) {
        ask_all(f, &c);
        collect(&c, &got);
        check_tokens(&got, want, fault ? fault : "no fault");
        if (!EXPECT_INT_EQ(ended_well(&got), FAULTY_CLIENTS))
            FAIL("%s: %s", fault ? fault : "no fault", got.message);
        check_idle(&c, fault ? fault : "no fault");
    }
    end(&p, &c);
}

void faulty_check_kills(const struct faulty *f, int32_t times) {
    struct faulty_answers want;
    ASSERT_TRUE(faulty_reference(f, &want));
    for (int32_t i = 0; i < times && !shim_failed(); i++) {
        char fault[64];
        faulty_check_unnoticed(f, fault_at(f, "kill", i, fault, sizeof fault), "10", &want);
    }
}

/* The server gives up: with `fault`, or (NULL) because of the environment. */
static void check_end(const struct faulty *f, const char *fault, const char *words,
                      const struct faulty_answers *want) {
    struct program p;
    struct net_client c;
    struct faulty_answers got;
    const char *what = fault ? fault : words;
    if (!start(f, &p, &c, fault, f->timeout))
        return;
    ask_all(f, &c);
    collect(&c, &got);
    check_tokens(&got, want, what);
    EXPECT_INT_EQ(ended_well(&got), 0);
    if (!strstr(got.message, words))
        FAIL("%s: %s", what, got.message);
    EXPECT_INT_EQ(program_wait(&p), 1);
    net_client_close(&c);
}

void faulty_check_stalls(const struct faulty *f, int32_t times, int64_t limit_us) {
    struct faulty_answers want;
    ASSERT_TRUE(faulty_reference(f, &want));
    for (int32_t i = 0; i < times && !shim_failed(); i++) {
        char fault[64];
        int64_t start_us = clock_us();
        check_end(f, fault_at(f, "stall", i, fault, sizeof fault), "rank", &want);
        EXPECT_INT_LE(clock_us() - start_us, limit_us);
    }
}

void faulty_check_given_up(const struct faulty *f, const char *words,
                           const struct faulty_answers *want) {
    check_end(f, NULL, words, want);
}

void faulty_check_nans(const struct faulty *f, int32_t times) {
    struct faulty_answers want;
    ASSERT_TRUE(faulty_reference(f, &want));
    for (int32_t i = 0; i < times && !shim_failed(); i++) {
        struct program p;
        struct net_client c;
        struct faulty_answers got;
        char fault[64];
        if (!start(f, &p, &c, fault_at(f, "nan", i, fault, sizeof fault), "10"))
            return;
        ask_all(f, &c);
        collect(&c, &got);
        check_tokens(&got, &want, fault);
        EXPECT_INT_LT(ended_well(&got), FAULTY_CLIENTS);
        if (!strstr(got.message, "not finite"))
            FAIL("%s: %s", fault, got.message);
        check_idle(&c, fault);
        ask_all(f, &c);
        collect(&c, &got);
        check_tokens(&got, &want, fault);
        EXPECT_INT_EQ(ended_well(&got), FAULTY_CLIENTS);
        end(&p, &c);
    }
}

/* The next answer to stats. */
static bool is_healthy(struct net_client *c) {
    net_client_puts(c, "{\"op\":\"stats\"}");
    for (json_t *line; (line = net_client_json(c));) {
        json_t *h = json_object_get(line, "healthy");
        bool found = h != NULL, healthy = json_is_true(h);
        json_decref(line);
        if (found)
            return healthy;
    }
    return true; /* it is not said */
}

void faulty_check_health(const struct faulty *f) {
    struct program p;
    struct net_client c;
    char fault[64];
    snprintf(fault, sizeof fault, "stall@1:%d", f->tokens / 4);
    ASSERT_TRUE(start(f, &p, &c, fault, "6"));
    bool healthy = true;
    ask_all(f, &c);
    for (int32_t i = 0; i < 60 && healthy; i++) {
        usleep(100000);
        healthy = is_healthy(&c);
    }
    EXPECT_FALSE(healthy);
    EXPECT_INT_EQ(program_wait(&p), 1);
    net_client_close(&c);
}
