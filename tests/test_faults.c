/* The program with a rank that is killed, stalled or poisoned in the middle of decoding (--fault):
 * nobody waits longer than the deadline, no token that is wrong is ever sent, every client is
 * answered, and blocks are free again.
 *
 * The reference is the same program without a fault: greedy answers are the same bytes whatever
 * happens beside them.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/buffer.h"
#include "host/clock.h"
#include "tests/program.h"
#include "tests/shim.h"

enum { CLIENTS = 4, TOKENS = 40, RANKS = 3 };

/* What the requests of a run were answered. */
struct answers {
    int32_t tokens[CLIENTS][TOKENS];
    int32_t count[CLIENTS]; /* of token lines */
    bool done[CLIENTS], error[CLIENTS];
    char message[512];
};

static void take_line(struct answers *a, json_t *line) {
    int32_t id = (int32_t)json_integer_value(json_object_get(line, "id"));
    json_t *token = json_object_get(line, "token");
    if (id < 1 || id > CLIENTS) {
        FAIL("a line of request %d", id);
        return;
    }
    if (token && a->count[id - 1] < TOKENS)
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

static void ask_all(struct net_client *c) {
    for (int32_t i = 0; i < CLIENTS; i++) {
        char line[256];
        snprintf(line, sizeof line,
                 "{\"id\":%d,\"prompt\":\"%.*s\",\"max_tokens\":%d,\"ignore_eos\":true,"
                 "\"temperature\":0}",
                 i + 1, 4 + 9 * i, "Once upon a time there was a little cat that", TOKENS);
        net_client_puts(c, line);
    }
}

/* Until every request has ended, or the connection. */
static void collect(struct net_client *c, struct answers *a) {
    int32_t ended = 0;
    memset(a, 0, sizeof *a);
    while (ended < CLIENTS) {
        json_t *line = net_client_json(c);
        if (!line)
            return;
        take_line(a, line);
        json_decref(line);
        ended = 0;
        for (int32_t i = 0; i < CLIENTS; i++)
            ended += a->done[i] || a->error[i];
    }
}

static bool start(struct program *p, struct net_client *c, const char *fault, const char *timeout) {
    const char *args[] = {"--listen",       "127.0.0.1:0", "--ranks", "3",   "--threads", "3",
                          "--comm-timeout", timeout,       "--fault", fault, NULL};
    if (!fault)
        args[8] = NULL;
    return program_serve(p, c, args);
}

static bool reference(struct answers *a) {
    struct program p;
    struct net_client c;
    if (!start(&p, &c, NULL, "10"))
        return false;
    ask_all(&c);
    collect(&c, a);
    net_client_close(&c);
    kill(p.pid, SIGTERM);
    return EXPECT_INT_EQ(program_wait(&p), 0);
}

/* Whatever was sent is a beginning of what is right. */
static void check_tokens(const struct answers *got, const struct answers *want, const char *fault) {
    for (int32_t i = 0; i < CLIENTS; i++) {
        if (memcmp(got->tokens[i], want->tokens[i], (size_t)got->count[i] * sizeof(int32_t)) != 0)
            FAIL("%s: request %d got a wrong token", fault, i + 1);
        if (got->done[i] && got->count[i] != want->count[i])
            FAIL("%s: request %d ended after %d of %d tokens", fault, i + 1, got->count[i],
                 want->count[i]);
        if (!got->done[i] && !got->error[i])
            FAIL("%s: request %d was not answered", fault, i + 1);
    }
}

static int32_t ended_well(const struct answers *a) {
    int32_t n = 0;
    for (int32_t i = 0; i < CLIENTS; i++)
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

/* A fault of this kind at a step of the decoding; ranks and steps change from call to call. */
static const char *fault_at(const char *kind, int32_t i, char *out, size_t size) {
    snprintf(out, size, "%s@%d:%d:%d", kind, i % RANKS, 2 + (int)((unsigned)rand() % 38), i % 4);
    return out;
}

TEST(Faults, ARankThatIsKilledIsStartedAnewAndNobodyNotices) {
    NEEDS_BINARY();
    struct answers want;
    ASSERT_TRUE(reference(&want));
    for (int32_t i = 0; i < 20; i++) {
        struct program p;
        struct net_client c;
        struct answers got;
        char fault[64];
        if (!start(&p, &c, fault_at("kill", i, fault, sizeof fault), "10"))
            return;
        ask_all(&c);
        collect(&c, &got);
        check_tokens(&got, &want, fault);
        EXPECT_INT_EQ(ended_well(&got), CLIENTS);
        check_idle(&c, fault);
        ask_all(&c);
        collect(&c, &got);
        check_tokens(&got, &want, fault);
        net_client_close(&c);
        kill(p.pid, SIGTERM);
        EXPECT_INT_EQ(program_wait(&p), 0);
    }
}

TEST(Faults, ARankThatStallsEndsTheServerAfterAnAnswerToEveryone) {
    NEEDS_BINARY();
    struct answers want;
    ASSERT_TRUE(reference(&want));
    for (int32_t i = 0; i < 20; i++) {
        struct program p;
        struct net_client c;
        struct answers got;
        char fault[64];
        if (!start(&p, &c, fault_at("stall", i, fault, sizeof fault), "0.5"))
            return;
        int64_t start_us = clock_us();
        ask_all(&c);
        collect(&c, &got);
        check_tokens(&got, &want, fault);
        EXPECT_INT_EQ(ended_well(&got), 0);
        if (!strstr(got.message, "rank"))
            FAIL("%s: %s", fault, got.message);
        EXPECT_INT_EQ(program_wait(&p), 1);
        /* The deadline twice (who waits for the rank, and who waits for its thread), and what the
         * steps before took. */
        EXPECT_INT_LE(clock_us() - start_us, 6000000);
        net_client_close(&c);
    }
}

TEST(Faults, ARankThatReturnsNansFailsTheRequestsOfTheStepAndNoOthers) {
    NEEDS_BINARY();
    struct answers want;
    ASSERT_TRUE(reference(&want));
    for (int32_t i = 0; i < 20; i++) {
        struct program p;
        struct net_client c;
        struct answers got;
        char fault[64];
        if (!start(&p, &c, fault_at("nan", i, fault, sizeof fault), "10"))
            return;
        ask_all(&c);
        collect(&c, &got);
        check_tokens(&got, &want, fault);
        EXPECT_INT_LT(ended_well(&got), CLIENTS);
        if (!strstr(got.message, "not finite"))
            FAIL("%s: %s", fault, got.message);
        check_idle(&c, fault);
        ask_all(&c);
        collect(&c, &got);
        check_tokens(&got, &want, fault);
        EXPECT_INT_EQ(ended_well(&got), CLIENTS);
        net_client_close(&c);
        kill(p.pid, SIGTERM);
        EXPECT_INT_EQ(program_wait(&p), 0);
    }
}

TEST(Faults, TheServerIsUnhealthyWhileARankIsStalled) {
    NEEDS_BINARY();
    struct program p;
    struct net_client c;
    ASSERT_TRUE(start(&p, &c, "stall@1:10", "4"));
    bool healthy = true;
    ask_all(&c);
    for (int32_t i = 0; i < 30 && healthy; i++) {
        usleep(100000);
        net_client_puts(&c, "{\"op\":\"stats\"}");
        for (json_t *line; (line = net_client_json(&c));) {
            json_t *h = json_object_get(line, "healthy");
            bool found = h != NULL;
            healthy &= !found || json_is_true(h);
            json_decref(line);
            if (found)
                break;
        }
    }
    EXPECT_FALSE(healthy);
    EXPECT_INT_EQ(program_wait(&p), 1);
    net_client_close(&c);
}

TEST(Faults, AFaultThatIsNoneIsRefused) {
    NEEDS_BINARY();
    static const char *const bad[] = {"",          "stall",      "stall@",     "fall@1:2",
                                      "stall@1:0", "stall@-1:3", "stall@1:2:", "stall@1:2:3x"};
    char line[256];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *const args[] = {"generate", "-p", "1", "--fault", bad[i], NULL};
        if (!EXPECT_INT_EQ(program_run(args, line, sizeof line), 1))
            FAIL("%s", bad[i]);
    }
}
