/* The program in several processes, one of which is killed, stopped, cut off or made to misbehave:
 * all others end within the timeout, with a failure, and every client of process 0 has by then got
 * an error or the right tokens so far.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/clock.h"
#include "tests/answers.h"
#include "tests/cable.h"
#include "tests/cluster.h"
#include "tests/program.h"
#include "tests/shim.h"

enum { SIZE = 3, TIMEOUT_MS = 1500, LEAVING_MS = 2000, LIMIT_MS = TIMEOUT_MS + LEAVING_MS };

static const char *const serving[] = {"serve",       "--listen=127.0.0.1:0", "--http=off",
                                      "--threads=1", "--comm-timeout=1.5",   NULL};
static const struct cluster_options three = {
    .size = SIZE, .args = serving, .own = {NULL, "--ranks=2", NULL}};

/* What is right: the same program in one process. Computed once. */
static const struct answers *reference(void) {
    static struct answers a;
    struct cluster c;
    struct net_client client;
    if (a.count[0] == 0 &&
        cluster_serve(&c, &client, &(struct cluster_options){.size = 1, .args = serving})) {
        answers_ask(&client, &a, ANSWER_TOKENS);
        answers_finish(&client, &a);
        net_client_close(&client);
        cluster_end(&c);
    }
    return &a;
}

/* Those from first to last end by themselves, in time, and with a failure. */
static void check_end(struct cluster *c, int32_t first, int32_t last, int64_t since_us,
                      int32_t limit_ms, const char *what) {
    cluster_wait(c, first, last, 2 * limit_ms);
    for (int32_t i = first; i <= last; i++) {
        int64_t ms = (c->ended_us[i] - since_us) / 1000;
        if (!c->ended[i])
            FAIL("%s: process %d did not end; it said: %s", what, i, cluster_said(c, i));
        else if (c->status[i] != 1 || ms > limit_ms)
            FAIL("%s: process %d ended with status %d after %lld ms; it said: %s", what, i,
                 c->status[i], (long long)ms, cluster_said(c, i));
    }
}

/* ---- real processes -------------------------------------------------------------------------- */

/* The signal reaches the culprit after so many tokens in all; before the first request when 0. A
 * stopped process that goes on after the others have ended ends too. */
static void check_loss(int32_t culprit, int sig, int32_t tokens) {
    struct cluster c;
    struct net_client client;
    struct answers got = {0};
    char what[96];
    bool stops = sig == SIGSTOP;
    snprintf(what, sizeof what, "process %d %s after %d tokens", culprit,
             stops ? "stopped" : "killed", tokens);
    if (!cluster_serve(&c, &client, &three))
        return;
    if (tokens > 0) {
        answers_ask(&client, &got, ANSWER_TOKENS);
        answers_read(&client, &got, tokens);
    }
    int64_t since_us = clock_us();
    kill(c.pid[culprit], sig);
    if (culprit > 0 && tokens > 0)
        answers_finish(&client, &got);
    for (int32_t i = 0; i < SIZE; i++)
        if (i != culprit)
            check_end(&c, i, i, since_us, LIMIT_MS, what);
    if (stops) {
        since_us = clock_us();
        kill(c.pid[culprit], SIGCONT);
        if (culprit == 0 && tokens > 0)
            answers_finish(&client, &got);
        check_end(&c, culprit, culprit, since_us, LIMIT_MS, what);
    } else if (culprit == 0) {
        answers_finish(&client, &got); /* what is left in the socket */
    }
    answers_check(&got, reference(), what);
    if (tokens > 0 && (culprit > 0 || stops))
        answers_check_ended(&got, what);
    EXPECT_INT_LT(answers_done(&got), ANSWERS);
    net_client_close(&client);
    cluster_end(&c);
}

/* Somewhere in the first half of all tokens. */
static int32_t some_tokens(void) {
    return 1 + answers_random(ANSWERS * ANSWER_TOKENS / 2);
}

TEST(ClusterFaults, AFollowerThatIsKilledEndsAll) {
    NEEDS_BINARY();
    for (int32_t i = 0; i < 6; i++)
        check_loss(1 + i % 2, SIGKILL, i < 5 ? some_tokens() : 0);
}

TEST(ClusterFaults, AFollowerThatIsStoppedEndsAll) {
    NEEDS_BINARY();
    for (int32_t i = 0; i < 5; i++)
        check_loss(1 + i % 2, SIGSTOP, i < 4 ? some_tokens() : 0);
}

TEST(ClusterFaults, TheFirstProcessThatIsKilledEndsAll) {
    NEEDS_BINARY();
    for (int32_t i = 0; i < 5; i++)
        check_loss(0, SIGKILL, i < 4 ? some_tokens() : 0);
}

TEST(ClusterFaults, TheFirstProcessThatIsStoppedEndsAll) {
    NEEDS_BINARY();
    for (int32_t i = 0; i < 4; i++)
        check_loss(0, SIGSTOP, i < 3 ? some_tokens() : 0);
}

/* ---- health ---------------------------------------------------------------------------------- */

static bool is_healthy(struct net_client *c) {
    net_client_puts(c, "{\"op\":\"stats\"}");
    for (json_t *line; (line = net_client_json(c));) {
        json_t *found = json_object_get(line, "healthy");
        bool healthy = json_is_true(found);
        json_decref(line);
        if (found)
            return healthy;
    }
    return false;
}

/* With more patience than a step is late after. */
TEST(ClusterFaults, TheServerIsUnhealthyWhileAFollowerIsStopped) {
    NEEDS_BINARY();
    struct cluster c;
    struct net_client client;
    struct answers got;
    bool healthy = true;
    struct cluster_options o = {.size = 2,
                                .args = (const char *const[]){"serve", "--listen=127.0.0.1:0",
                                                              "--http=off", "--threads=1",
                                                              "--comm-timeout=6", NULL}};
    ASSERT_TRUE(cluster_serve(&c, &client, &o));
    EXPECT_TRUE(is_healthy(&client));
    answers_ask(&client, &got, ANSWER_TOKENS);
    answers_read(&client, &got, 40);
    kill(c.pid[1], SIGSTOP);
    for (int32_t i = 0; i < 30 && healthy; i++) {
        usleep(100000);
        healthy = is_healthy(&client);
    }
    EXPECT_FALSE(healthy);
    EXPECT_FALSE(cluster_wait(&c, 0, 0, 0)); /* it still serves */
    net_client_close(&client);
    cluster_end(&c);
}

/* ---- ranks that misbehave (fault.h) ---------------------------------------------------------- */

/* Ranks 0; 1 and 2; 3 in processes 0, 1, 2. */
static void check_fault(const char *fault, const char *why) {
    struct cluster c;
    struct net_client client;
    struct answers got;
    char option[64];
    struct cluster_options o = three;
    const char *args[] = {serving[0], serving[1], serving[2], "--comm-timeout=0.8", option, NULL};
    snprintf(option, sizeof option, "--fault=%s", fault);
    o.args = args;
    if (!cluster_serve(&c, &client, &o))
        return;
    int64_t since_us = clock_us();
    answers_ask(&client, &got, ANSWER_TOKENS);
    answers_finish(&client, &got);
    answers_check(&got, reference(), fault);
    answers_check_ended(&got, fault);
    EXPECT_INT_EQ(answers_done(&got), 0);
    if (!strstr(got.message, why))
        FAIL("%s: %s", fault, got.message);
    check_end(&c, 0, SIZE - 1, since_us, LIMIT_MS, fault);
    net_client_close(&client);
    cluster_end(&c);
}

TEST(ClusterFaults, ARankThatDiesInAnyProcessEndsAll) {
    NEEDS_BINARY();
    check_fault("kill@0:21", "rank 0 died");
    check_fault("kill@2:22", "rank 2 died");
    check_fault("kill@3:23", "rank 3 died");
}

/* Also one that has no other rank beside it to see that it is stuck. The timeout comes twice: for
 * the others to notice, and for the rank's own process to give its thread up. */
TEST(ClusterFaults, ARankThatStallsInAnyProcessEndsAll) {
    NEEDS_BINARY();
    check_fault("stall@0:24", "process 0");
    check_fault("stall@1:25", "process 1");
    check_fault("stall@2:26", "process 1");
    check_fault("stall@3:27", "process 2");
}

TEST(ClusterFaults, NansOfAnotherProcessFailTheirStepAlone) {
    NEEDS_BINARY();
    struct cluster c;
    struct net_client client;
    struct answers got;
    struct cluster_options o = three;
    const char *args[] = {serving[0], serving[1], serving[2], serving[3], "--fault=nan@3:20", NULL};
    o.args = args;
    ASSERT_TRUE(cluster_serve(&c, &client, &o));
    answers_ask(&client, &got, ANSWER_TOKENS);
    answers_finish(&client, &got);
    answers_check(&got, reference(), "nan");
    answers_check_ended(&got, "nan");
    EXPECT_INT_LT(answers_done(&got), ANSWERS);
    EXPECT_TRUE(strstr(got.message, "not finite") != NULL);
    answers_ask(&client, &got, ANSWER_TOKENS);
    answers_finish(&client, &got);
    answers_check(&got, reference(), "after the nan");
    EXPECT_INT_EQ(answers_done(&got), ANSWERS);
    EXPECT_TRUE(is_healthy(&client));
    net_client_close(&client);
    kill(c.pid[0], SIGTERM);
    EXPECT_TRUE(cluster_wait(&c, 0, SIZE - 1, 10000));
    cluster_end(&c);
    for (int32_t i = 0; i < SIZE; i++)
        EXPECT_INT_EQ(c.status[i], 0);
}

/* ---- two machines ---------------------------------------------------------------------------- */

/* Both ends notice that the other is gone, and both end. */
TEST(ClusterFaults, ACutNetworkEndsBothMachines) {
    NEEDS_BINARY();
    struct cable cable;
    struct cluster c;
    struct net_client client;
    struct answers got;
    NEEDS_CABLE(&cable);
    struct cluster_options o = {.size = SIZE,
                                .args = serving,
                                .machine = {cable.a, cable.b, cable.b},
                                .address = CABLE_ADDRESS};
    if (cluster_serve(&c, &client, &o)) {
        answers_ask(&client, &got, 7);
        answers_finish(&client, &got);
        answers_check(&got, reference(), "two machines");
        EXPECT_INT_EQ(answers_done(&got), ANSWERS);
        answers_ask(&client, &got, ANSWER_TOKENS);
        answers_read(&client, &got, some_tokens());
        int64_t since_us = clock_us();
        EXPECT_TRUE(cable_pull(&cable));
        answers_finish(&client, &got);
        answers_check(&got, reference(), "a cut network");
        answers_check_ended(&got, "a cut network");
        EXPECT_INT_LT(answers_done(&got), ANSWERS);
        check_end(&c, 0, SIZE - 1, since_us, LIMIT_MS, "a cut network");
        net_client_close(&client);
        cluster_end(&c);
    }
    cable_remove(&cable);
}
