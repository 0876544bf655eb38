/* Groups of processes: collectives, commands and failures, over TCP and MPI on this machine. What
 * the processes do in each scenario stands in tests/group_process.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/group_internal.h"
#include "tests/procs.h"
#include "tests/shim.h"

enum { WAIT_MS = 60000, TIMEOUT_MS = 1500 };

#define TIMEOUT "timeout=1500"

enum engine { BY_TCP, BY_MPI };

#define NEEDS_MPI()                                                                                \
    if (!procs_has_mpi())                                                                          \
    SKIP("needs OpenMPI: libopenmpi-dev and openmpi-bin")

static void start(struct procs *p, enum engine engine, int32_t size, const char *const *arguments) {
    procs_open(p);
    if (engine == BY_MPI)
        procs_start_mpi(p, size, arguments);
    else
        procs_start_tcp(p, 0, size - 1, size, procs_free_port(), arguments);
}

/* Runs a scenario from start to end. */
static void run(struct procs *p, enum engine engine, int32_t size, const char *const *arguments) {
    start(p, engine, size, arguments);
    procs_finish(p, WAIT_MS);
}

#define RUN(p, engine, size, ...) run(p, engine, size, (const char *const[]){__VA_ARGS__, NULL})

/* Everybody ended by itself, in order. */
static void expect_in_order(const struct procs *p) {
    EXPECT_FALSE(p->stragglers);
    for (int32_t i = 0; i < p->num_children; i++)
        EXPECT_INT_EQ(p->status[i], 0);
    if (shim_failed())
        FAIL("%s", p->text);
}

/* ---- all is well ----------------------------------------------------------------------------- */

static void check_collectives(enum engine engine, int32_t size, const char *how) {
    struct procs p;
    char want[64];
    RUN(&p, engine, size, "collectives");
    expect_in_order(&p);
    EXPECT_INT_EQ(procs_count(&p, "ok"), size);
    snprintf(want, sizeof want, " %d process%s%s on 1 machine: ", size, size > 1 ? "es" : "", how);
    for (int32_t r = 0; r < size; r++) {
        const char *text = procs_line(&p, r, "ok");
        EXPECT_TRUE(text && strncmp(text, want, strlen(want)) == 0);
    }
}

TEST(Group, OneProcessNeedsNoNetwork) {
    check_collectives(BY_TCP, 1, "");
}
TEST(Group, TwoProcessesGetWhatTheySent) {
    check_collectives(BY_TCP, 2, " by TCP");
}
TEST(Group, ThreeProcessesGetWhatTheySent) {
    check_collectives(BY_TCP, 3, " by TCP");
}
TEST(Group, FiveProcessesGetWhatTheySent) {
    check_collectives(BY_TCP, 5, " by TCP");
}
TEST(GroupMpi, OneProcessNeedsNoNetwork) {
    NEEDS_MPI();
    check_collectives(BY_MPI, 1, "");
}
TEST(GroupMpi, TwoProcessesGetWhatTheySent) {
    NEEDS_MPI();
    check_collectives(BY_MPI, 2, " by MPI");
}
TEST(GroupMpi, FiveProcessesGetWhatTheySent) {
    NEEDS_MPI();
    check_collectives(BY_MPI, 5, " by MPI");
}

static void check_mixed(enum engine engine) {
    struct procs p;
    RUN(&p, engine, 3, "mixed");
    expect_in_order(&p);
    EXPECT_INT_EQ(procs_count(&p, "ok"), 3);
}

TEST(Group, AThousandMixedCallsKeepTheirOrder) {
    check_mixed(BY_TCP);
}
TEST(GroupMpi, AThousandMixedCallsKeepTheirOrder) {
    NEEDS_MPI();
    check_mixed(BY_MPI);
}

static void check_large(enum engine engine) {
    struct procs p;
    char first[32];
    RUN(&p, engine, 3, "large");
    expect_in_order(&p);
    const char *hash = procs_line(&p, 0, "hash ");
    ASSERT_TRUE(hash != NULL);
    snprintf(first, sizeof first, "%s", hash);
    for (int32_t r = 1; r < 3; r++)
        EXPECT_STR_EQ(procs_line(&p, r, "hash "), first);
    printf("all-reduce of 3 processes: 16 MB in %s, 36 KB in %s\n", procs_line(&p, 0, "time "),
           procs_line(&p, 0, "small "));
}

TEST(Group, SumsHaveTheSameBytesEverywhere) {
    check_large(BY_TCP);
}
TEST(GroupMpi, SumsHaveTheSameBytesEverywhere) {
    NEEDS_MPI();
    check_large(BY_MPI);
}

/* At most 2 % of a core while nothing comes, and awake within 1 ms while something does. */
static void check_idle(enum engine engine) {
    struct procs p;
    RUN(&p, engine, 2, "idle");
    expect_in_order(&p);
    const char *cpu = procs_line(&p, 1, "cpu "), *late = procs_line(&p, 1, "latency ");
    long long used = 0, of = 0;
    ASSERT_TRUE(cpu && late && sscanf(cpu, "%lld of %lld", &used, &of) == 2);
    EXPECT_INT_GT(of, 1900000);
    EXPECT_INT_LT(used * 100, of * 2);
    EXPECT_INT_LT(atoll(late), 1000);
    printf("a waiting process: %lld us of %lld us of CPU time, woken after %s\n", used, of, late);
}

TEST(Group, WaitingForCommandsIsIdle) {
    check_idle(BY_TCP);
}
TEST(GroupMpi, WaitingForCommandsIsIdle) {
    NEEDS_MPI();
    check_idle(BY_MPI);
}

static void check_quit(enum engine engine) {
    struct procs p;
    RUN(&p, engine, 3, "quit");
    expect_in_order(&p);
    for (int32_t r = 1; r < 3; r++) {
        const char *text = procs_line(&p, r, "end: ");
        EXPECT_TRUE(text && strstr(text, "process 0") && strstr(text, "has left the group"));
    }
}

TEST(Group, LeavingIsNoFailure) {
    check_quit(BY_TCP);
}
TEST(GroupMpi, LeavingIsNoFailure) {
    NEEDS_MPI();
    check_quit(BY_MPI);
}

TEST(Group, ProcessesMustAgree) {
    static const char *const others[] = {"layers 33", "layers 3", "layers 32 or so", "layers 32"};
    for (int i = 0; i < 4; i++) {
        struct procs p;
        RUN(&p, BY_TCP, 3, "agree", others[i]);
        expect_in_order(&p);
        if (i == 3) {
            EXPECT_INT_EQ(procs_count(&p, "agreed"), 3);
            continue;
        }
        EXPECT_INT_EQ(procs_count(&p, "process 1 ("), 3);
        for (int32_t r = 0; r < 3; r++) {
            const char *text = procs_line(&p, r, "process 1 (");
            EXPECT_TRUE(text && strstr(text, "config.json not the same as in process 0"));
            EXPECT_TRUE(text && !strstr(text, "process 2"));
        }
    }
}

/* ---- something goes wrong -------------------------------------------------------------------- */

/* All but the culprit fail within the timeout after it said that it dies, and name it. */
static void expect_failures(const struct procs *p, int32_t size, int32_t culprit, const char *why,
                            int64_t within_ms) {
    char name[32];
    const char *death = procs_line(p, culprit, "dies at ");
    ASSERT_TRUE(death != NULL);
    int64_t died_us = atoll(death);
    snprintf(name, sizeof name, "process %d (", culprit);
    for (int32_t r = 0; r < size; r++) {
        const char *text = r == culprit ? NULL : procs_line(p, r, "failed at ");
        if (r == culprit)
            continue;
        EXPECT_TRUE(text && strstr(text, name) && strstr(text, why));
        EXPECT_INT_LT(text ? atoll(text) - died_us : INT64_MAX, within_ms * 1000);
    }
    EXPECT_INT_EQ(procs_count(p, "wrong"), 0);
    if (shim_failed())
        FAIL("%s", p->text);
}

/* The culprit, who may be stopped for good, is ended as soon as the others are done. */
static void check_death(enum engine engine, int32_t size, const char *scenario, const char *how,
                        int32_t culprit, const char *why, int64_t within_ms) {
    struct procs p;
    start(&p, engine, size, (const char *const[]){TIMEOUT, scenario, how, NULL});
    EXPECT_TRUE(procs_wait_for(&p, "failed at", size - 1, WAIT_MS));
    procs_finish(&p, strcmp(how, "stop") == 0 ? 500 : 10000);
    EXPECT_INT_EQ(p.stragglers, strcmp(how, "stop") == 0);
    expect_failures(&p, size, culprit, why, within_ms);
}

TEST(Group, AKilledProcessIsNamedByAll) {
    check_death(BY_TCP, 3, "die", "kill", 2, "has gone", TIMEOUT_MS);
    check_death(BY_TCP, 2, "die", "kill", 1, "has gone", TIMEOUT_MS);
    check_death(BY_TCP, 3, "die_idle", "kill", 2, "has gone", TIMEOUT_MS);
    check_death(BY_TCP, 3, "die_first", "kill", 0, "has gone", TIMEOUT_MS);
}
TEST(Group, AStoppedProcessIsNamedByAll) {
    check_death(BY_TCP, 3, "die", "stop", 2, "silent for", TIMEOUT_MS);
    check_death(BY_TCP, 3, "die_idle", "stop", 2, "silent for", TIMEOUT_MS);
    check_death(BY_TCP, 3, "die_first", "stop", 0, "silent for", TIMEOUT_MS);
}
TEST(Group, AProcessThatGivesUpSaysWhy) {
    check_death(BY_TCP, 3, "die", "abort", 2, "out of \"memory\"", 500);
    check_death(BY_TCP, 3, "die_idle", "abort", 2, "out of \"memory\"", 500);
    check_death(BY_TCP, 3, "die_first", "abort", 0, "out of \"memory\"", 500);
}
TEST(Group, CallsThatNeedAProcessThatHasLeftFail) {
    check_death(BY_TCP, 3, "die", "leave", 2, "has left the group, but all-reduce needs it", 500);
}
TEST(Group, AProcessThatDoesNotTakePartIsNamed) {
    check_death(BY_TCP, 3, "absent", "", 1, "lives, but has not taken part in all-reduce", 1000);
}
TEST(GroupMpi, AKilledProcessIsNamedByAll) {
    NEEDS_MPI();
    check_death(BY_MPI, 3, "die", "kill", 2, "silent for", TIMEOUT_MS);
    check_death(BY_MPI, 3, "die_first", "kill", 0, "silent for", TIMEOUT_MS);
}
TEST(GroupMpi, AStoppedProcessIsNamedByAll) {
    NEEDS_MPI();
    check_death(BY_MPI, 3, "die", "stop", 2, "silent for", TIMEOUT_MS);
    check_death(BY_MPI, 3, "die_first", "stop", 0, "silent for", TIMEOUT_MS);
}
TEST(GroupMpi, AProcessThatGivesUpSaysWhy) {
    NEEDS_MPI();
    check_death(BY_MPI, 3, "die", "abort", 2, "out of \"memory\"", 500);
    check_death(BY_MPI, 3, "die_first", "abort", 0, "out of \"memory\"", 500);
}

TEST(Group, ProcessesThatCallDifferentThingsAreTold) {
    struct procs p;
    RUN(&p, BY_TCP, 3, TIMEOUT, "order");
    expect_in_order(&p);
    for (int32_t r = 0; r < 3; r++) {
        const char *text = procs_line(&p, r, "failed at ");
        if (!EXPECT_TRUE(text && strstr(text, "process 1 (") &&
                         strstr(text, "sent 24 bytes of gather where process 0 (") &&
                         strstr(text, "expects 16 bytes of all-reduce")))
            FAIL("process %d: %s", r, p.text);
    }
}
