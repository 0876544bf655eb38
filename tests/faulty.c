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

/* How often, unless the environment says FAULT_TIMES. */
static int32_t rounds(int32_t times) {
    const char *asked = getenv("FAULT_TIMES");
    return asked ? atoi(asked) : times;
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
    int32_t step = 2 + answers_random(f->tokens - 2);
    snprintf(out, size, "%s@%d:%d:%d", kind, i % f->ranks, step, i % f->layers);
    return out;
}

bool faulty_reference(const struct faulty *f, struct answers *want) {
    struct program p;
    struct net_client c;
    if (!start(f, &p, &c, NULL, "10"))
        return false;
    answers_ask(&c, want, f->tokens);
    answers_finish(&c, want);
    end(&p, &c);
    return EXPECT_INT_EQ(answers_done(want), ANSWERS);
}

void faulty_check_unnoticed(const struct faulty *f, const char *fault, const char *timeout,
                            const struct answers *want) {
    struct program p;
    struct net_client c;
    struct answers got;
    if (!start(f, &p, &c, fault, timeout))
        return;
    for (int32_t i = 0; i < 2; i++) {
        answers_ask(&c, &got, f->tokens);
        answers_finish(&c, &got);
        answers_check(&got, want, fault ? fault : "no fault");
        answers_check_ended(&got, fault ? fault : "no fault");
        if (!EXPECT_INT_EQ(answers_done(&got), ANSWERS))
            FAIL("%s: %s", fault ? fault : "no fault", got.message);
        check_idle(&c, fault ? fault : "no fault");
    }
    end(&p, &c);
}

void faulty_check_kills(const struct faulty *f, int32_t times) {
    struct answers want;
    ASSERT_TRUE(faulty_reference(f, &want));
    for (int32_t i = 0; i < rounds(times) && !shim_failed(); i++) {
        char fault[64];
        faulty_check_unnoticed(f, fault_at(f, "kill", i, fault, sizeof fault), "10", &want);
    }
}

/* The server gives up, with `fault` or (NULL) because of the environment, within limit_us of being
 * asked. */
static void check_end(const struct faulty *f, const char *fault, const char *words,
                      const struct answers *want, int64_t limit_us) {
    struct program p;
    struct net_client c;
    struct answers got;
    const char *what = fault ? fault : words;
    if (!start(f, &p, &c, fault, f->timeout))
        return;
    int64_t start_us = clock_us();
    answers_ask(&c, &got, f->tokens);
    answers_finish(&c, &got);
    answers_check(&got, want, what);
    answers_check_ended(&got, what);
    EXPECT_INT_EQ(answers_done(&got), 0);
    if (!strstr(got.message, words))
        FAIL("%s: %s", what, got.message);
    EXPECT_INT_EQ(program_wait(&p), 1);
    EXPECT_INT_LE(clock_us() - start_us, limit_us);
    net_client_close(&c);
}

void faulty_check_stalls(const struct faulty *f, int32_t times, int64_t limit_us) {
    struct answers want;
    ASSERT_TRUE(faulty_reference(f, &want));
    for (int32_t i = 0; i < rounds(times) && !shim_failed(); i++) {
        char fault[64];
        check_end(f, fault_at(f, "stall", i, fault, sizeof fault), "rank", &want, limit_us);
    }
}

void faulty_check_given_up(const struct faulty *f, const char *words, const struct answers *want) {
    check_end(f, NULL, words, want, INT64_MAX);
}

void faulty_check_nans(const struct faulty *f, int32_t times) {
    struct answers want;
    ASSERT_TRUE(faulty_reference(f, &want));
    for (int32_t i = 0; i < rounds(times) && !shim_failed(); i++) {
        struct program p;
        struct net_client c;
        struct answers got;
        char fault[64];
        if (!start(f, &p, &c, fault_at(f, "nan", i, fault, sizeof fault), "10"))
            return;
        answers_ask(&c, &got, f->tokens);
        answers_finish(&c, &got);
        answers_check(&got, &want, fault);
        answers_check_ended(&got, fault);
        EXPECT_INT_LT(answers_done(&got), ANSWERS);
        if (!strstr(got.message, "not finite"))
            FAIL("%s: %s", fault, got.message);
        check_idle(&c, fault);
        answers_ask(&c, &got, f->tokens);
        answers_finish(&c, &got);
        answers_check(&got, &want, fault);
        answers_check_ended(&got, fault);
        EXPECT_INT_EQ(answers_done(&got), ANSWERS);
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
    struct answers asked;
    struct program p;
    struct net_client c;
    char fault[64];
    snprintf(fault, sizeof fault, "stall@1:%d", f->tokens / 4);
    ASSERT_TRUE(start(f, &p, &c, fault, "60"));
    bool healthy = true;
    answers_ask(&c, &asked, f->tokens);
    for (int32_t i = 0; i < 250 && healthy; i++) {
        usleep(100000);
        healthy = is_healthy(&c);
    }
    EXPECT_FALSE(healthy);
    kill(p.pid, SIGKILL); /* how it ends by itself is tested elsewhere */
    EXPECT_INT_EQ(program_wait(&p), 128 + SIGKILL);
    net_client_close(&c);
}
