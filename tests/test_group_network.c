/* Groups across two machines (tests/cable.h). Needs root and iproute2. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/group_internal.h"
#include "tests/cable.h"
#include "tests/procs.h"
#include "tests/shim.h"

enum { WAIT_MS = 30000, PORT = 29517 };

#define TIMEOUT_US 1500000
#define TIMEOUT    "timeout=1500"

static void start_on(struct procs *p, const char *machine, int32_t rank, int32_t size,
                     const char *const *arguments) {
    const char *in[] = {"ip", "netns", "exec", machine, NULL};
    char rank_text[32], size_text[32], port_text[32];
    const char *variables[] = {rank_text, size_text, port_text, "MASTER_ADDR=" CABLE_ADDRESS, NULL};
    snprintf(rank_text, sizeof rank_text, "RANK=%d", rank);
    snprintf(size_text, sizeof size_text, "WORLD_SIZE=%d", size);
    snprintf(port_text, sizeof port_text, "MASTER_PORT=%d", PORT);
    procs_start(p, in, variables, arguments);
}

static void end_in_order(struct procs *p) {
    procs_finish(p, WAIT_MS);
    EXPECT_FALSE(p->stragglers);
    EXPECT_INT_EQ(procs_count(p, "wrong"), 0);
    if (shim_failed())
        FAIL("%s", p->text);
}

TEST(GroupNetwork, TwoMachinesGetWhatTheySent) {
    struct cable c;
    struct procs p;
    NEEDS_CABLE(&c);
    procs_open(&p);
    start_on(&p, c.b, 1, 3, (const char *const[]){"collectives", NULL});
    start_on(&p, c.b, 2, 3, (const char *const[]){"collectives", NULL});
    start_on(&p, c.a, 0, 3, (const char *const[]){"collectives", NULL});
    end_in_order(&p);
    EXPECT_INT_EQ(procs_count(&p, "ok"), 3);
    cable_remove(&c);
}

/* Each end notices within the timeout, and names the process at the other end. */
TEST(GroupNetwork, APulledCableIsNoticedInACollective) {
    struct cable c;
    struct procs p;
    NEEDS_CABLE(&c);
    procs_open(&p);
    for (int32_t r = 0; r < 3; r++)
        start_on(&p, r == 2 ? c.b : c.a, r, 3, (const char *const[]){TIMEOUT, "forever", NULL});
    EXPECT_TRUE(procs_wait_for(&p, "runs", 3, WAIT_MS));
    usleep(300000);
    int64_t pulled_us = clock_us();
    EXPECT_TRUE(cable_pull(&c));
    end_in_order(&p);
    for (int32_t r = 0; r < 3; r++) {
        const char *text = procs_line(&p, r, "failed at ");
        EXPECT_TRUE(text && strstr(text, r < 2 ? "process 2 (" : "process 0 ("));
        EXPECT_TRUE(text && strstr(text, "silent for"));
        EXPECT_INT_LT(text ? atoll(text) - pulled_us : INT64_MAX, TIMEOUT_US);
    }
    if (shim_failed())
        FAIL("%s", p.text);
    cable_remove(&c);
}

/* mpirun starts its helper on the other machine by this script, as if it were ssh: "script MACHINE
 * COMMAND". */
static void write_remote_shell(const char *path, const struct cable *c) {
    FILE *f = fopen(path, "w");
    ASSERT_TRUE(f != NULL);
    fprintf(f,
            "#!/bin/sh\n"
            "shift\n"
            "exec ip netns exec %s sh -c \"$*\"\n",
            c->b);
    fclose(f);
    chmod(path, 0755);
}

/* Processes 0 and 1 on machine a, process 2 on b. */
static void start_mpi_on_both(struct procs *p, const struct cable *c,
                              const char *const *arguments) {
    char agent[256];
    snprintf(agent, sizeof agent, "%s/remote-shell", shim_scratch_dir());
    write_remote_shell(agent, c);
    const char *const in[] = {"ip",
                              "netns",
                              "exec",
                              c->a,
                              "mpirun",
                              "--allow-run-as-root",
                              "--oversubscribe",
                              "--enable-recovery",
                              "--mca",
                              "plm_rsh_agent",
                              agent,
                              "--mca",
                              "btl",
                              "tcp,self",
                              "--host",
                              "10.99.77.1:2,10.99.77.2:1",
                              "-n",
                              "3",
                              NULL};
    procs_open(p);
    procs_start(p, in, NULL, arguments);
}

TEST(GroupNetwork, MpiRunsOnTwoMachines) {
    struct cable c;
    struct procs p;
    if (!procs_has_mpi())
        SKIP("needs OpenMPI: libopenmpi-dev and openmpi-bin");
    NEEDS_CABLE(&c);
    start_mpi_on_both(&p, &c, (const char *const[]){"collectives", NULL});
    end_in_order(&p);
    EXPECT_INT_EQ(procs_count(&p, "ok"), 3);
    const char *first = procs_line(&p, 0, "network "), *second = procs_line(&p, 1, "network ");
    const char *third = procs_line(&p, 2, "network ");
    EXPECT_TRUE(first && second && third && !strcmp(first, second) && strcmp(first, third) != 0);
    cable_remove(&c);
}

/* What machine b says comes by the same cable, so that only a's processes are heard. */
TEST(GroupNetwork, APulledCableIsNoticedByMpiToo) {
    struct cable c;
    struct procs p;
    if (!procs_has_mpi())
        SKIP("needs OpenMPI: libopenmpi-dev and openmpi-bin");
    NEEDS_CABLE(&c);
    start_mpi_on_both(&p, &c, (const char *const[]){TIMEOUT, "forever", NULL});
    EXPECT_TRUE(procs_wait_for(&p, "runs", 3, WAIT_MS));
    usleep(300000);
    int64_t pulled_us = clock_us();
    EXPECT_TRUE(cable_pull(&c));
    EXPECT_TRUE(procs_wait_for(&p, "failed at", 2, 5000));
    procs_finish(&p, 500);
    for (int32_t r = 0; r < 2; r++) {
        const char *text = procs_line(&p, r, "failed at ");
        EXPECT_TRUE(text && strstr(text, "process 2 ("));
        EXPECT_INT_LT(text ? atoll(text) - pulled_us : INT64_MAX, TIMEOUT_US);
    }
    if (shim_failed())
        FAIL("%s", p.text);
    cable_remove(&c);
}
