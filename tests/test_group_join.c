/* How processes find each other: variables of the environment, strangers at the door, processes
 * that are late, twice there or not of the group. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/group_internal.h"
#include "tests/procs.h"
#include "tests/shim.h"

enum { WAIT_MS = 30000 };

/* ---- the environment ------------------------------------------------------------------------- */

TEST(GroupEnv, ChoosesTheEngine) {
    static const struct {
        const char *variables[8];
        enum group_kind kind;
        int32_t rank, size;
    } cases[] = {
        {{NULL}, GROUP_ALONE, 0, 1},
        {{"RANK=2", "WORLD_SIZE=5", "MASTER_ADDR=h", "MASTER_PORT=29500"}, GROUP_TCP, 2, 5},
        {{"SLURM_PROCID=1", "SLURM_NTASKS=3", "MASTER_ADDR=h", "MASTER_PORT=1"}, GROUP_TCP, 1, 3},
        {{"SLURM_PROCID=1", "SLURM_NTASKS=3"}, GROUP_ALONE, 0, 1},
        {{"RANK=1", "WORLD_SIZE=2", "SLURM_PROCID=7", "SLURM_NTASKS=8", "MASTER_ADDR=h",
          "MASTER_PORT=9"},
         GROUP_TCP,
         1,
         2},
        {{"RANK=0", "WORLD_SIZE=1"}, GROUP_ALONE, 0, 1},
        {{"RANK=", "WORLD_SIZE="}, GROUP_ALONE, 0, 1},
        {{"OMPI_COMM_WORLD_SIZE=4"}, GROUP_MPI, 0, 1},
        {{"OMPI_COMM_WORLD_SIZE=1"}, GROUP_ALONE, 0, 1},
        {{"PMI_SIZE=2", "SLURM_PROCID=1", "SLURM_NTASKS=2"}, GROUP_MPI, 0, 1},
        {{"PMIX_RANK=0"}, GROUP_MPI, 0, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct group_env env;
        struct error error = {0};
        procs_clear_environment();
        for (int k = 0; cases[i].variables[k]; k++)
            putenv((char *)cases[i].variables[k]);
        EXPECT_INT_EQ(group_env_read(&env, &error), 0);
        EXPECT_INT_EQ(env.kind, cases[i].kind);
        EXPECT_INT_EQ(env.rank, cases[i].rank);
        EXPECT_INT_EQ(env.size, cases[i].size);
    }
    procs_clear_environment();
}

TEST(GroupEnv, NamesWhatIsWrongOrMissing) {
    static const struct {
        const char *variables[5], *text;
    } cases[] = {
        {{"RANK=0"}, "WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set"},
        {{"RANK=0", "WORLD_SIZE=2", "MASTER_PORT=1"}, "MASTER_ADDR not set"},
        {{"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=h"}, "MASTER_PORT not set"},
        {{"WORLD_SIZE=2", "MASTER_ADDR=h", "MASTER_PORT=1"}, "RANK not set"},
        {{"MASTER_ADDR=h"}, "RANK, WORLD_SIZE, MASTER_PORT not set"},
        {{"SLURM_PROCID=0", "MASTER_ADDR=h"}, "SLURM_NTASKS, MASTER_PORT not set"},
        {{"RANK=2", "WORLD_SIZE=2", "MASTER_ADDR=h", "MASTER_PORT=1"}, "RANK=2: expected a number"},
        {{"RANK=-1", "WORLD_SIZE=2", "MASTER_ADDR=h", "MASTER_PORT=1"}, "from 0 to 1"},
        {{"RANK=0", "WORLD_SIZE=65", "MASTER_ADDR=h", "MASTER_PORT=1"}, "WORLD_SIZE=65"},
        {{"RANK=0", "WORLD_SIZE=0"}, "WORLD_SIZE=0"},
        {{"RANK=0", "WORLD_SIZE=2x", "MASTER_ADDR=h", "MASTER_PORT=1"}, "WORLD_SIZE=2x"},
        {{"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=h", "MASTER_PORT=65536"}, "MASTER_PORT=65536"},
        {{"OMPI_COMM_WORLD_SIZE=many"}, "OMPI_COMM_WORLD_SIZE=many"},
        {{"OMPI_COMM_WORLD_SIZE=65"}, "OMPI_COMM_WORLD_SIZE=65"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct group *g = NULL;
        struct error error = {0};
        procs_clear_environment();
        for (int k = 0; cases[i].variables[k]; k++)
            putenv((char *)cases[i].variables[k]);
        EXPECT_INT_EQ(group_join(1000000, 1000000, &g, &error), ERR_CONFIG);
        if (!EXPECT_TRUE(strstr(error.text, cases[i].text) != NULL))
            FAIL("case %zu: %s", i, error.text);
    }
    procs_clear_environment();
}

TEST(GroupEnv, ASecretHasAnEnd) {
    struct group_env env;
    struct error error = {0};
    char secret[300];
    memset(secret, 's', sizeof secret);
    secret[256] = '\0';
    procs_clear_environment();
    setenv("RANK", "0", 1);
    setenv("WORLD_SIZE", "2", 1);
    setenv("MASTER_ADDR", "h", 1);
    setenv("MASTER_PORT", "1", 1);
    setenv("MOESERVE_GROUP_SECRET", secret, 1);
    EXPECT_INT_EQ(group_env_read(&env, &error), ERR_CONFIG);
    EXPECT_TRUE(strstr(error.text, "MOESERVE_GROUP_SECRET: 256 bytes, at most 255") != NULL);
    EXPECT_TRUE(strstr(error.text, "sss") == NULL);
    procs_clear_environment();
}

/* ---- joining --------------------------------------------------------------------------------- */

static const char *const join_now[] = {"join=10000", "join", NULL};

static void expect_joined(struct procs *p, int32_t size) {
    procs_finish(p, WAIT_MS);
    EXPECT_INT_EQ(procs_count(p, "joined"), size);
    EXPECT_FALSE(p->stragglers);
    if (shim_failed())
        FAIL("%s", p->text);
}

static void start_one(struct procs *p, int32_t rank, int32_t size, int32_t port, const char *secret,
                      const char *const *arguments) {
    char rank_text[32], size_text[32], port_text[32], secret_text[64];
    const char *variables[] = {rank_text,   size_text, port_text, "MASTER_ADDR=127.0.0.1",
                               secret_text, NULL};
    snprintf(rank_text, sizeof rank_text, "RANK=%d", rank);
    snprintf(size_text, sizeof size_text, "WORLD_SIZE=%d", size);
    snprintf(port_text, sizeof port_text, "MASTER_PORT=%d", port);
    snprintf(secret_text, sizeof secret_text, "MOESERVE_GROUP_SECRET=%s", secret);
    procs_start(p, NULL, variables, arguments);
}

TEST(GroupJoin, ProcessZeroMayBeLate) {
    struct procs p;
    int32_t port = procs_free_port();
    procs_open(&p);
    procs_start_tcp(&p, 1, 2, 3, port, join_now);
    procs_start_tcp(&p, 0, 0, 3, port, (const char *const[]){"delay=500", "join", NULL});
    expect_joined(&p, 3);
}

TEST(GroupJoin, AMissingProcessIsNamed) {
    struct procs p;
    static const char *const briefly[] = {"join=700", "join", NULL};
    int32_t port = procs_free_port();
    procs_open(&p);
    procs_start_tcp(&p, 0, 1, 4, port, briefly);
    procs_finish(&p, 5000);
    const char *zero = procs_line(&p, 0, "refused (internal)"), *one = procs_line(&p, 1, "refused");
    EXPECT_TRUE(zero && strstr(zero, "2 of 4 processes have joined in time; waited for process 2, "
                                     "3"));
    EXPECT_TRUE(one && strstr(one, "joining a group of 4 processes: 2 of 4 processes have"));
    EXPECT_FALSE(p.stragglers);
    if (shim_failed())
        FAIL("%s", p.text);
}

TEST(GroupJoin, WithoutProcessZeroTheOthersGiveUp) {
    struct procs p;
    procs_open(&p);
    procs_start_tcp(&p, 1, 1, 2, procs_free_port(),
                    (const char *const[]){"join=500", "join", NULL});
    procs_finish(&p, 5000);
    const char *text = procs_line(&p, 1, "refused (internal)");
    EXPECT_TRUE(text && strstr(text, "process 0 does not answer on MASTER_ADDR=127.0.0.1") &&
                strstr(text, "Connection refused"));
}

/* A connection from elsewhere that says this much. */
static int stranger(int32_t port, const char *text, size_t len) {
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                            .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), rc = -1;
    for (int i = 0; i < 500 && rc != 0; i++) {
        rc = connect(fd, (struct sockaddr *)&a, sizeof a);
        if (rc != 0)
            usleep(10000);
    }
    EXPECT_INT_EQ(rc, 0);
    EXPECT_INT_EQ(send(fd, text, len, MSG_NOSIGNAL), len);
    return fd;
}

TEST(GroupJoin, StrangersBlockNobody) {
    enum { STRANGERS = 80 }; /* more than are listened to at once */
    struct procs p;
    int32_t port = procs_free_port();
    int fds[STRANGERS];
    char lie[4096]; /* a hello of nonsense, and more */
    memset(lie, 0xe9, sizeof lie);
    memcpy(lie, "moegroup", 8);
    procs_open(&p);
    procs_start_tcp(&p, 0, 0, 3, port, join_now);
    for (int i = 0; i < STRANGERS; i++) {
        static const char *const says[] = {"", "GET / HTTP/1.1\r\n\r\n", "moegroup", "m"};
        fds[i] = i % 5 == 4 ? stranger(port, lie, sizeof lie)
                            : stranger(port, says[i % 4], strlen(says[i % 4]));
    }
    int64_t from_us = clock_us();
    procs_start_tcp(&p, 1, 2, 3, port, join_now);
    EXPECT_TRUE(
        procs_wait_for(&p, "joined", 3, 4000)); /* sooner than the silent ones are dropped */
    EXPECT_INT_LT(clock_us() - from_us, 4000000);
    expect_joined(&p, 3);
    for (int i = 0; i < STRANGERS; i++)
        close(fds[i]);
}

TEST(GroupJoin, NobodyListensOnceAllHaveJoined) {
    struct procs p;
    int32_t port = procs_free_port();
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                            .sin_port = htons((uint16_t)port)};
    procs_open(&p);
    procs_start_tcp(&p, 0, 1, 2, port, (const char *const[]){"timeout=1000", "forever", NULL});
    ASSERT_TRUE(procs_wait_for(&p, "runs", 2, WAIT_MS));
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    EXPECT_INT_NE(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    close(fd);
    procs_finish(&p, 0);
}

TEST(GroupJoin, AGroupOfAnotherSizeIsRefused) {
    struct procs p;
    int32_t port = procs_free_port();
    procs_open(&p);
    procs_start_tcp(&p, 0, 0, 2, port, join_now);
    procs_start_tcp(&p, 1, 1, 3, port, join_now);
    EXPECT_TRUE(procs_wait_for(&p, "refused", 1, 4000));
    const char *text = procs_line(&p, 1, "refused (config)");
    EXPECT_TRUE(text && strstr(text, "started as process 1 of 3, process 0 as one of 2"));
    procs_start_tcp(&p, 1, 1, 2, port, join_now); /* the right one is still let in */
    expect_joined(&p, 2);
}

TEST(GroupJoin, TheSameProcessTwiceIsRefused) {
    struct procs p;
    int32_t port = procs_free_port();
    procs_open(&p);
    procs_start_tcp(&p, 0, 1, 3, port, join_now);
    procs_start_tcp(&p, 1, 1, 3, port, join_now);
    EXPECT_TRUE(procs_wait_for(&p, "refused", 1, 4000));
    const char *text = procs_line(&p, 1, "refused (config)");
    EXPECT_TRUE(text && strstr(text, "process 1 has already joined from "));
    procs_start_tcp(&p, 2, 2, 3, port, join_now);
    expect_joined(&p, 3);
}

TEST(GroupJoin, AProcessThatIsStartedAgainTakesItsPlace) {
    struct procs p;
    int32_t port = procs_free_port();
    procs_open(&p);
    procs_start_tcp(&p, 0, 0, 3, port, join_now);
    procs_start_tcp(&p, 1, 1, 3, port,
                    (const char *const[]){"timeout=300", "join=300", "join", NULL});
    EXPECT_TRUE(procs_wait_for(&p, "refused", 1, 4000)); /* process 2 is not there in time */
    procs_start_tcp(&p, 1, 2, 3, port, join_now);
    expect_joined(&p, 3);
}

TEST(GroupJoin, TheSecretMustBeTheSame) {
    static const char *const wrong[] = {"", "opensesamE", "opensesame ", "xpensesame"};
    struct procs p;
    int32_t port = procs_free_port();
    procs_open(&p);
    start_one(&p, 0, 2, port, "opensesame", join_now);
    for (int i = 0; i < 4; i++) {
        start_one(&p, 1, 2, port, wrong[i], join_now);
        EXPECT_TRUE(procs_wait_for(&p, "refused (config)", i + 1, 4000));
    }
    const char *text = procs_line(&p, 1, "refused");
    EXPECT_TRUE(text && strstr(text, "MOESERVE_GROUP_SECRET is not that of process 0"));
    start_one(&p, 1, 2, port, "opensesame", join_now);
    expect_joined(&p, 2);
}

TEST(GroupJoin, AnAddressOfAnotherMachineCannotBeListenedOn) {
    struct procs p;
    const char *variables[] = {"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=192.0.2.1",
                               "MASTER_PORT=29511", NULL};
    procs_open(&p);
    procs_start(&p, NULL, variables, join_now);
    procs_finish(&p, 5000);
    const char *text = procs_line(&p, 0, "refused (config)");
    EXPECT_TRUE(text && strstr(text, "cannot listen on MASTER_ADDR=192.0.2.1") &&
                strstr(text, "must be an address of the machine of process 0"));
}

TEST(GroupJoin, AnotherServerIsNotTakenForProcessZero) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    struct procs p;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    ASSERT_INT_EQ(bind(fd, (struct sockaddr *)&a, len), 0);
    ASSERT_INT_EQ(listen(fd, 4), 0);
    getsockname(fd, (struct sockaddr *)&a, &len);
    procs_open(&p);
    procs_start_tcp(&p, 1, 1, 2, ntohs(a.sin_port),
                    (const char *const[]){"join=1500", "join", NULL});
    int client = accept(fd, NULL, NULL);
    EXPECT_INT_EQ(send(client, "220 mail.example.org ESMTP\r\n", 28, MSG_NOSIGNAL), 28);
    procs_finish(&p, 5000);
    const char *text = procs_line(&p, 1, "refused (internal)");
    EXPECT_TRUE(text && strstr(text, "answers, but not as process 0 of a group"));
    close(client);
    close(fd);
}
