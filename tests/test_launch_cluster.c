/* scripts/launch_cluster.sh: what it prints, and runs in which a script stands in for ssh and this
 * machine for all hosts. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/clock.h"
#include "tests/procs.h"
#include "tests/shim.h"

struct launch {
    char text[16384];
    int status;
    int64_t us;
};

static struct launch run_shell(const char *command) {
    struct launch l = {.status = -1};
    int64_t from_us = clock_us();
    FILE *f = popen(command, "r");
    if (!f) {
        FAIL("popen");
        return l;
    }
    size_t n = fread(l.text, 1, sizeof l.text - 1, f);
    l.text[n] = '\0';
    l.status = WEXITSTATUS(pclose(f));
    l.us = clock_us() - from_us;
    return l;
}

/* Runs the script with these arguments, where "ssh HOST COMMAND" is COMMAND. */
static struct launch launch(const char *arguments) {
    char path[256], command[2048];
    snprintf(path, sizeof path, "%s/no-ssh", shim_scratch_dir());
    FILE *f = fopen(path, "w");
    if (!f) {
        FAIL("%s", path);
        return (struct launch){.status = -1};
    }
    fputs("#!/bin/sh\nshift\nexec \"$@\"\n", f);
    fclose(f);
    chmod(path, 0755);
    procs_clear_environment();
    snprintf(command, sizeof command, "sh scripts/launch_cluster.sh --ssh %s %s 2>&1", path,
             arguments);
    return run_shell(command);
}

static void expect_text(const struct launch *l, const char *text) {
    if (!strstr(l->text, text))
        FAIL("expected \"%s\" in:\n%s", text, l->text);
}

TEST(LaunchCluster, PrintsWhatToRun) {
    struct launch l =
        launch("--print --dir /srv/moe --port 4711 --env 'A=x y' --env B=2 me@n1 n2 -- "
               "./moeserve --model \"it's\"");
    EXPECT_INT_EQ(l.status, 0);
    expect_text(&l, "me@n1: cd '/srv/moe' && env A='x y' B='2' RANK=0 WORLD_SIZE=2 MASTER_ADDR=n1 "
                    "MASTER_PORT=4711 './moeserve' '--model' 'it'\\''s'\n");
    expect_text(&l, "n2: cd '/srv/moe' && env A='x y' B='2' RANK=1 WORLD_SIZE=2 MASTER_ADDR=n1 ");
    expect_text(&l,
                "env A='x y' B='2' mpirun --host n1:1,n2:1 -n 2 --bind-to none --wdir '/srv/moe' "
                "-x A -x B './moeserve'");
    expect_text(&l, "srun --nodelist=n1,n2 --nodes=2 --ntasks-per-node=1 --mpi=pmix "
                    "--chdir='/srv/moe' './moeserve'");
}

TEST(LaunchCluster, HostsComeFromAFile) {
    char path[256], arguments[512];
    snprintf(path, sizeof path, "%s/hosts", shim_scratch_dir());
    FILE *f = fopen(path, "w");
    ASSERT_TRUE(f != NULL);
    fputs("# the rack\nn1   # with the port\n\nn2\n", f);
    fclose(f);
    snprintf(arguments, sizeof arguments, "--print --addr 10.0.0.1 --hosts %s n3 -- c", path);
    struct launch l = launch(arguments);
    EXPECT_INT_EQ(l.status, 0);
    expect_text(&l, "--host n1:1,n2:1,n3:1 -n 3");
    expect_text(&l, "RANK=2 WORLD_SIZE=3 MASTER_ADDR=10.0.0.1");
}

TEST(LaunchCluster, WrongArgumentsAreNamed) {
    static const struct {
        const char *arguments, *text;
    } cases[] = {
        {"a b", "no command after --"},   {"-- moeserve", "no hosts"},
        {"--prot 1 a -- c", "--prot"},    {"--port x a -- c", "'x': expected a number"},
        {"--env A a -- c", "NAME=VALUE"}, {"--hosts /nowhere -- c", "/nowhere"},
        {"--port", "--port needs a"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct launch l = launch(cases[i].arguments);
        EXPECT_INT_EQ(l.status, 2);
        expect_text(&l, cases[i].text);
    }
    struct launch help = launch("--help");
    EXPECT_INT_EQ(help.status, 0);
    expect_text(&help, "--print");
}

TEST(LaunchCluster, OutputIsMarkedWithItsHost) {
    struct launch l = launch("--dir / --env 'A=\"x\" $y' n1 n2 -- sh -c 'sleep 0.$((3 * RANK)); "
                             "printf \"%s %s %s\" \"$RANK of $WORLD_SIZE\" \"$A\" \"$(pwd)\"'");
    EXPECT_INT_EQ(l.status, 0);
    expect_text(&l, "n1: 0 of 2 \"x\" $y /\n");
}

TEST(LaunchCluster, OneEndEndsAll) {
    struct launch l =
        launch("n1 n2 n3 -- sh -c '[ $RANK != 1 ] || { sleep 1; exit 7; }; "
               "trap \"kill \\$pid; echo ends; exit\" TERM; sleep 60 & pid=$!; wait'");
    EXPECT_INT_EQ(l.status, 7);
    EXPECT_INT_LT(l.us, 10000000);
    expect_text(&l, "process 1 on n2 ended with status 7");
    expect_text(&l, "n1: ends\n");
    expect_text(&l, "n3: ends\n");
}

TEST(LaunchCluster, WhoDoesNotListenIsKilled) {
    struct launch l = launch("--grace 1 n1 n2 -- sh -c '[ $RANK != 1 ] || exit 0; trap \"\" TERM; "
                             "exec sleep 60'");
    EXPECT_INT_EQ(l.status, 0);
    EXPECT_INT_LT(l.us, 10000000);
}

TEST(LaunchCluster, StartsAGroupThatSharesItsSecret) {
    char program[512], arguments[1024];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    ASSERT_INT_GT(n, 0);
    program[n] = '\0';
    snprintf(arguments, sizeof arguments,
             "--addr 127.0.0.1 --port %d n1 n2 n3 -- %s --program=group collectives",
             procs_free_port(), program);
    char command[2048];
    snprintf(
        command, sizeof command,
        "export MOESERVE_GROUP_SECRET=\"it's\"; sh scripts/launch_cluster.sh --ssh %s/no-ssh %s "
        "2>&1",
        shim_scratch_dir(), arguments);
    launch("--help"); /* writes no-ssh */
    struct launch l = run_shell(command);
    EXPECT_INT_EQ(l.status, 0);
    expect_text(&l, "n1: 0: ok 3 processes by TCP");
    expect_text(&l, "n2: 1: ok 3 processes by TCP");
    expect_text(&l, "n3: 2: ok 3 processes by TCP");
}
