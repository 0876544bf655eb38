/* group_process: what one process of a group does in the tests of test_group*.c.
 *
 *   --program=group [timeout=MS] [join=MS] [delay=MS] SCENARIO [ARGUMENT...]
 *
 * Joins the group that the environment describes, plays its part and prints lines of the form
 * "RANK: text" on standard output, each in one write. Times are microseconds of the monotonic
 * clock, which all processes of a machine share. Exit status 0 unless a value is wrong.
 */
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/group.h"
#include "host/mem.h"
#include "tests/shim.h"

enum { MAX_COUNT = 400000, LATENCIES = 200 };

struct player {
    struct group *g;
    int32_t rank, size;
    const char *argument;
};

static void __attribute__((format(printf, 2, 3))) say(int32_t rank, const char *fmt, ...) {
    char line[4500];
    int n = snprintf(line, sizeof line, "%d: ", rank);
    va_list ap;
    va_start(ap, fmt);
    n += vsnprintf(line + n, sizeof line - (size_t)n - 1, fmt, ap);
    va_end(ap);
    line[n++] = '\n';
    if (write(STDOUT_FILENO, line, (size_t)n) != n)
        exit(3);
}

#define MUST(p, cond, ...)                                                                         \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            say((p)->rank, "wrong: " __VA_ARGS__);                                                 \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* ---- values that everybody can compute ------------------------------------------------------- */

static double number(int32_t rank, int64_t i, int32_t round) {
    return (double)((rank + 2) * (i % 101) + round) / 8;
}

static unsigned char byte_of(int32_t rank, int64_t i, int32_t round) {
    return (unsigned char)(rank * 31 + i * 7 + i / 251 + round);
}

static void fill(unsigned char *data, size_t bytes, int32_t rank, int32_t round) {
    for (size_t i = 0; i < bytes; i++)
        data[i] = byte_of(rank, (int64_t)i, round);
}

static void check_bytes(const struct player *p, const unsigned char *data, size_t bytes,
                        int32_t rank, int32_t round, const char *what) {
    for (size_t i = 0; i < bytes; i++)
        MUST(p, data[i] == byte_of(rank, (int64_t)i, round),
             "%s, round %d, byte %zu of %zu from %d", what, round, i, bytes, rank);
}

/* ---- one round of each call ------------------------------------------------------------------ */

static void play_all_reduce(const struct player *p, int64_t count, int32_t round) {
    static double data[MAX_COUNT + 1];
    struct error error = {0};
    for (int64_t i = 0; i < count; i++)
        data[i] = number(p->rank, i, round);
    data[count] = -1; /* stays */
    MUST(p, group_all_reduce(p->g, data, count, &error) == 0, "all-reduce: %s", error.text);
    for (int64_t i = 0; i < count; i++) {
        double want = 0;
        for (int32_t r = 0; r < p->size; r++)
            want += number(r, i, round);
        MUST(p, data[i] == want, "all-reduce, round %d: element %lld of %lld is %g, not %g", round,
             (long long)i, (long long)count, data[i], want);
    }
    MUST(p, data[count] == -1, "all-reduce, round %d, wrote past the end", round);
}

static void play_all_gather(const struct player *p, size_t bytes, int32_t round) {
    struct error error = {0};
    unsigned char *mine = xmalloc(bytes), *all = xcalloc((size_t)p->size, bytes);
    fill(mine, bytes, p->rank, round);
    MUST(p, group_all_gather(p->g, mine, all, bytes, &error) == 0, "all-gather: %s", error.text);
    for (int32_t r = 0; r < p->size; r++)
        check_bytes(p, all + (size_t)r * bytes, bytes, r, round, "all-gather");
    free(mine);
    free(all);
}

static void play_broadcast(const struct player *p, size_t bytes, int32_t round) {
    struct error error = {0};
    unsigned char *data = xmalloc(bytes);
    fill(data, bytes, p->rank, round);
    MUST(p, group_broadcast(p->g, data, bytes, &error) == 0, "broadcast: %s", error.text);
    check_bytes(p, data, bytes, 0, round, "broadcast");
    free(data);
}

/* Process r gives r + 1 times as much as process 0, and in every third round nothing. */
static size_t gather_bytes(size_t bytes, int32_t rank, int32_t round) {
    return (rank + round) % 3 == 2 ? 0 : bytes * ((size_t)rank + 1);
}

static void play_gather(const struct player *p, size_t bytes, int32_t round) {
    struct error error = {0};
    size_t own = gather_bytes(bytes, p->rank, round), sizes[GROUP_MAX];
    unsigned char *mine = xmalloc(own);
    void *into[GROUP_MAX] = {0};
    fill(mine, own, p->rank, round);
    for (int32_t r = 0; r < p->size && p->rank == 0; r++) {
        sizes[r] = gather_bytes(bytes, r, round);
        into[r] = xmalloc(sizes[r]);
    }
    MUST(p, group_gather(p->g, mine, own, into, sizes, &error) == 0, "gather: %s", error.text);
    for (int32_t r = 0; r < p->size && p->rank == 0; r++) {
        check_bytes(p, into[r], sizes[r], r, round, "gather");
        free(into[r]);
    }
    free(mine);
}

static void play_command(const struct player *p, size_t bytes, int32_t round) {
    static struct buffer data;
    struct error error = {0};
    if (p->rank == 0) {
        unsigned char *mine = xmalloc(bytes);
        fill(mine, bytes, 0, round);
        MUST(p, group_send(p->g, 7000u + (uint32_t)round, mine, bytes, &error) == 0, "send: %s",
             error.text);
        free(mine);
        return;
    }
    uint32_t kind = 0;
    MUST(p, group_receive(p->g, &kind, &data, &error) == 0, "receive: %s", error.text);
    MUST(p, kind == 7000u + (uint32_t)round && data.len == bytes, "command %u of %zu bytes", kind,
         data.len);
    check_bytes(p, (unsigned char *)data.data, bytes, 0, round, "command");
}

/* ---- scenarios: all is well ------------------------------------------------------------------ */

static void play_collectives(struct player *p) {
    static const int64_t counts[] = {0, 1, 3, 1009, 32767, 32768, 32769, 100003, 131073, 400000};
    static const size_t bytes[] = {0, 1, 13, 4099, 70001, 1048576, 1048577, 3000017};
    for (int i = 0; i < 10; i++)
        play_all_reduce(p, counts[i], i);
    for (int i = 0; i < 8; i++) {
        play_all_gather(p, bytes[i], i);
        play_broadcast(p, bytes[i], i);
        play_gather(p, bytes[i], i);
        play_command(p, bytes[i], i);
    }
    struct error error = {0};
    MUST(p, group_barrier(p->g, &error) == 0, "barrier: %s", error.text);
    MUST(p, group_agree(p->g, "the test", "same", 4, &error) == 0, "agree: %s", error.text);
    MUST(p, group_agree(p->g, "nothing", NULL, 0, &error) == 0, "agree: %s", error.text);
    MUST(p, !group_failed(p->g, NULL), "failed");
    struct buffer text = {0};
    group_describe(p->g, &text);
    say(p->rank, "ok %.*s", (int)text.len, text.data);
    buffer_deinit(&text);
}

/* All draw the same calls and sizes. */
static void play_mixed(struct player *p) {
    uint32_t state = 1234567;
    for (int32_t round = 0; round < 1000; round++) {
        state = state * 1664525u + 1013904223u;
        size_t size = (state >> 8) % 2000;
        switch ((state >> 24) % 5) {
        case 0:
            play_all_reduce(p, (int64_t)size * 7, round);
            break;
        case 1:
            play_all_gather(p, size, round);
            break;
        case 2:
            play_broadcast(p, size, round);
            break;
        case 3:
            play_gather(p, size, round);
            break;
        case 4:
            play_command(p, size, round);
            break;
        }
    }
    say(p->rank, "ok");
}

/* Sums that depend on the order of the additions: all must still have the same bytes. */
static void play_large(struct player *p) {
    enum { COUNT = 2000003, ROUNDS = 5 };
    double *data = xmalloc(COUNT * sizeof *data);
    struct error error = {0};
    int64_t best_us = INT64_MAX;
    uint64_t hash = 0;
    for (int32_t round = 0; round < ROUNDS; round++) {
        for (int64_t i = 0; i < COUNT; i++)
            data[i] = 1.0 / (double)(i + 1 + 17 * p->rank);
        MUST(p, group_barrier(p->g, &error) == 0, "%s", error.text);
        int64_t from_us = clock_us();
        MUST(p, group_all_reduce(p->g, data, COUNT, &error) == 0, "%s", error.text);
        int64_t us = clock_us() - from_us;
        best_us = us < best_us ? us : best_us;
    }
    for (int64_t i = 0; i < COUNT; i++) {
        uint64_t bits;
        memcpy(&bits, &data[i], sizeof bits);
        hash = (hash ^ bits) * 0x100000001b3u;
        double want = 0;
        for (int32_t r = 0; r < p->size; r++)
            want += 1.0 / (double)(i + 1 + 17 * r);
        MUST(p, data[i] > want * (1 - 1e-14) && data[i] < want * (1 + 1e-14), "element %lld",
             (long long)i);
    }
    say(p->rank, "time %lld us", (long long)best_us);
    say(p->rank, "hash %llx", (unsigned long long)hash);
    /* And one token's activations of Skywork-MoE (H = 4608), as often as a step has them. */
    enum { HIDDEN = 4608, STEPS = 500 };
    int64_t from_us = clock_us();
    for (int i = 0; i < STEPS; i++)
        MUST(p, group_all_reduce(p->g, data, HIDDEN, &error) == 0, "%s", error.text);
    say(p->rank, "small %lld us", (long long)((clock_us() - from_us) / STEPS));
    free(data);
}

static int64_t cpu_us(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (int64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000 + u.ru_utime.tv_usec +
           u.ru_stime.tv_usec;
}

static int compare(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Commands every 3 to 12 ms that carry the time at which they are sent, then none for 2 seconds.
 * The latency is that of a quarter of them: the machine may be busy with other things. */
static void play_idle(struct player *p) {
    struct error error = {0};
    struct buffer data = {0};
    int64_t late_us[LATENCIES], now;
    uint32_t kind;
    for (int i = 0; i <= LATENCIES; i++) {
        if (p->rank == 0) {
            usleep(i < LATENCIES ? 3000 + (unsigned)(i * 7919 % 9000) : 2000000);
            now = clock_us();
            MUST(p, group_send(p->g, 1, &now, sizeof now, &error) == 0, "%s", error.text);
            continue;
        }
        int64_t from_us = clock_us(), cpu = cpu_us();
        MUST(p, group_receive(p->g, &kind, &data, &error) == 0, "%s", error.text);
        memcpy(&now, data.data, sizeof now);
        if (i < LATENCIES)
            late_us[i] = clock_us() - now;
        else
            say(p->rank, "cpu %lld of %lld us", (long long)(cpu_us() - cpu),
                (long long)(clock_us() - from_us));
    }
    if (p->rank > 0) {
        qsort(late_us, LATENCIES, sizeof *late_us, compare);
        say(p->rank, "latency %lld us", (long long)late_us[LATENCIES / 4]);
    }
    buffer_deinit(&data);
}

/* Process 0 sends three commands and leaves. */
static void play_quit(struct player *p) {
    struct error error = {0};
    struct buffer data = {0};
    uint32_t kind = 0;
    for (int i = 0; i < 3; i++)
        play_command(p, 100001, i);
    if (p->rank > 0) {
        int rc = group_receive(p->g, &kind, &data, &error);
        MUST(p, rc == ERR_SHUTTING_DOWN, "receive returns %d", rc);
        MUST(p, !group_failed(p->g, NULL), "the group has failed");
        say(p->rank, "end: %s", error.text);
    }
    buffer_deinit(&data);
}

/* Process 1 has other bytes, of the length given. */
static void play_agree(struct player *p) {
    struct error error = {0};
    const char *mine = p->rank == 1 ? p->argument : "layers 32";
    int rc = group_agree(p->g, "config.json", mine, strlen(mine), &error);
    say(p->rank, "%s", rc == ERR_CONFIG ? error.text : "agreed");
    play_all_reduce(p, 1001, 3); /* the group goes on */
}

static void play_join(struct player *p) {
    struct buffer text = {0};
    group_describe(p->g, &text);
    say(p->rank, "joined %.*s", (int)text.len, text.data);
    buffer_deinit(&text);
}

/* ---- scenarios: something goes wrong --------------------------------------------------------- */

static void say_failure(const struct player *p, const struct error *error) {
    say(p->rank, "failed at %lld: %s", (long long)clock_us(), error->text);
    struct error again = {0};
    MUST(p, group_failed(p->g, &again) && strcmp(again.text, error->text) == 0,
         "another reason later: %s", again.text);
    MUST(p, group_all_reduce(p->g, NULL, 0, &again) == ERR_INTERNAL, "goes on after a failure");
    usleep(300000); /* whoever ends first might end the others, under mpirun */
}

/* The last process ends in the way named by the argument. */
static void die(const struct player *p) {
    struct error error = {0};
    say(p->rank, "dies at %lld", (long long)clock_us());
    if (strcmp(p->argument, "kill") == 0)
        raise(SIGKILL);
    if (strcmp(p->argument, "stop") == 0)
        raise(SIGSTOP);
    if (strcmp(p->argument, "abort") == 0)
        group_abort(p->g, "out of \"memory\"");
    if (strcmp(p->argument, "leave") == 0)
        exit((group_leave(p->g), 0));
    if (group_failed(p->g, &error))
        say_failure(p, &error);
}

/* Everybody adds numbers, until the last process ends. */
static void play_die(struct player *p) {
    struct error error = {0};
    static double data[50001];
    int64_t until_us = clock_us() + 300000;
    for (;;) {
        if (p->rank == p->size - 1 && clock_us() > until_us) {
            die(p);
            return;
        }
        if (group_all_reduce(p->g, data, 50001, &error) != 0)
            break;
    }
    say_failure(p, &error);
}

/* The last process ends while process 0 is busy with other things and the others wait for
 * commands. */
static void play_die_idle(struct player *p) {
    struct error error = {0};
    struct buffer data = {0};
    uint32_t kind;
    if (p->rank == p->size - 1) {
        usleep(300000);
        die(p);
        return;
    }
    if (p->rank == 0)
        while (!group_failed(p->g, &error))
            usleep(1000);
    else
        MUST(p, group_receive(p->g, &kind, &data, &error) != 0, "a command");
    say_failure(p, &error);
}

/* Process 0 ends, the others wait for it. */
static void play_die_first(struct player *p) {
    struct error error = {0};
    struct buffer data = {0};
    uint32_t kind;
    if (p->rank == 0) {
        usleep(300000);
        die(p);
        return;
    }
    MUST(p, group_receive(p->g, &kind, &data, &error) != 0, "a command");
    say_failure(p, &error);
}

/* Everybody adds numbers until something outside of the processes ends it. */
static void play_forever(struct player *p) {
    struct error error = {0};
    static double data[50001];
    say(p->rank, "runs");
    while (group_all_reduce(p->g, data, 50001, &error) == 0)
        continue;
    say_failure(p, &error);
}

/* Process 1 lives, but does not take part. */
static void play_absent(struct player *p) {
    struct error error = {0};
    double x = 0;
    group_set_wait(p->g, 400000);
    if (p->rank == 1) {
        say(p->rank, "dies at %lld", (long long)clock_us());
        while (!group_failed(p->g, &error))
            usleep(1000);
    } else {
        MUST(p, group_all_reduce(p->g, &x, 1, &error) != 0, "all-reduce without process 1");
    }
    say_failure(p, &error);
}

/* Process 1 makes another call than the others. */
static void play_order(struct player *p) {
    struct error error = {0};
    double x[3] = {0};
    int rc = p->rank == 1 ? group_gather(p->g, x, sizeof x, NULL, NULL, &error)
                          : group_all_reduce(p->g, x, 2, &error);
    if (rc == 0) /* process 1 has sent its part */
        rc = group_barrier(p->g, &error);
    MUST(p, rc != 0, "nobody notices");
    say_failure(p, &error);
}

/* ---- main ------------------------------------------------------------------------------------ */

static const struct {
    const char *name;
    void (*play)(struct player *p);
} scenarios[] = {
    {"collectives", play_collectives},
    {"mixed", play_mixed},
    {"large", play_large},
    {"idle", play_idle},
    {"quit", play_quit},
    {"agree", play_agree},
    {"join", play_join},
    {"die", play_die},
    {"die_idle", play_die_idle},
    {"die_first", play_die_first},
    {"forever", play_forever},
    {"absent", play_absent},
    {"order", play_order},
};

/* The value in ms of an argument "name=MS", in us; skips it. */
static int64_t option_us(char ***argv, const char *name, int64_t otherwise_us) {
    size_t len = strlen(name);
    if (!**argv || strncmp(**argv, name, len) != 0)
        return otherwise_us;
    return atoll(*(*argv)++ + len) * 1000;
}

PROGRAM(group) {
    struct player p = {.rank = -1};
    struct error error = {0};
    (void)argc;
    argv++;
    int64_t timeout_us = option_us(&argv, "timeout=", 2000000);
    int64_t join_us = option_us(&argv, "join=", 20000000);
    usleep((useconds_t)option_us(&argv, "delay=", 0));
    const char *rank = getenv("RANK"), *scenario = argv[0] ? argv[0] : "";
    p.argument = argv[0] && argv[1] ? argv[1] : "";
    int64_t from_us = clock_us();
    if (group_join(join_us, timeout_us, &p.g, &error) != 0) {
        say(rank ? atoi(rank) : -1, "refused (%s) after %lld us: %s", error_name(error.code),
            (long long)(clock_us() - from_us), error.text);
        return 0;
    }
    p.rank = group_rank(p.g);
    p.size = group_size(p.g);
    say(p.rank, "pid %d", (int)getpid());
    char network[64] = "";
    if (readlink("/proc/self/ns/net", network, sizeof network - 1) > 0)
        say(p.rank, "network %s", network);
    size_t i = 0, n = sizeof scenarios / sizeof scenarios[0];
    while (i < n && strcmp(scenarios[i].name, scenario) != 0)
        i++;
    MUST(&p, i < n, "no scenario %s", scenario);
    scenarios[i].play(&p);
    group_leave(p.g);
    return 0;
}
