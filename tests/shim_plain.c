/* The runner of shim.h without GoogleTest, for machines that have none (Makefile, BARE=1): runs the
 * registered tests in order and prints what shim.cc prints at the end.
 *
 *   --gtest_filter=A*:B.*-C*   as GoogleTest's: patterns with * and ?, behind '-' what is left out
 *   --gtest_brief=1            only tests that fail or are skipped
 *   --gtest_list_tests         names only
 */
#include "tests/shim.h"

#include <fnmatch.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/mem.h"

struct entry {
    const char *suite, *name;
    void (*fn)(void);
};

struct program {
    const char *name;
    int (*fn)(int argc, char **argv);
};

static struct entry *entries;
static int32_t num_entries;
static struct program *programs;
static int32_t num_programs;
static char running[256], scratch[] = "/tmp/moeserve-test-XXXXXX";
static bool failed, skipped; /* the running test */

/* ---- records --------------------------------------------------------------------------------- */

void shim_register(const char *suite, const char *name, const char *file, int line,
                   void (*fn)(void)) {
    (void)file;
    (void)line;
    entries = xrealloc(entries, (size_t)(num_entries + 1) * sizeof *entries);
    entries[num_entries++] = (struct entry){suite, name, fn};
}

void shim_register_program(const char *name, int (*fn)(int argc, char **argv)) {
    programs = xrealloc(programs, (size_t)(num_programs + 1) * sizeof *programs);
    programs[num_programs++] = (struct program){name, fn};
}

void shim_fail(const char *file, int line, const char *fmt, ...) {
    va_list ap;
    failed = true;
    printf("%s:%d: Failure\n", file, line);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
}

void shim_skip(const char *file, int line, const char *reason) {
    skipped = true;
    printf("%s:%d: Skipped\n%s\n", file, line, reason);
}

bool shim_failed(void) {
    return failed;
}

/* ---- checks ---------------------------------------------------------------------------------- */

bool shim_true(const char *file, int line, const char *expr, bool ok) {
    if (!ok)
        shim_fail(file, line, "expected: %s", expr);
    return ok;
}

bool shim_int(const char *file, int line, const char *a_expr, const char *b_expr, const char *op,
              int64_t a, int64_t b) {
    bool ok = !strcmp(op, "==")   ? a == b
              : !strcmp(op, "!=") ? a != b
              : !strcmp(op, "<=") ? a <= b
              : !strcmp(op, "<")  ? a < b
              : !strcmp(op, ">=") ? a >= b
                                  : a > b;
    if (!ok)
        shim_fail(file, line, "expected: %s %s %s\n    left: %lld\n   right: %lld", a_expr, op,
                  b_expr, (long long)a, (long long)b);
    return ok;
}

bool shim_str(const char *file, int line, const char *a_expr, const char *b_expr, const char *a,
              const char *b) {
    bool ok = a && b ? !strcmp(a, b) : a == b;
    if (!ok)
        shim_fail(file, line, "expected: %s == %s\n    left: \"%s\"\n   right: \"%s\"", a_expr,
                  b_expr, a ? a : "(null)", b ? b : "(null)");
    return ok;
}

bool shim_near(const char *file, int line, const char *a_expr, const char *b_expr, double a,
               double b, double tolerance) {
    double d = a > b ? a - b : b - a;
    bool ok = d <= tolerance; /* false for NaN */
    if (!ok)
        shim_fail(file, line,
                  "expected: %s near %s\n    left: %.9g\n   right: %.9g\n    diff: %.3g > %.3g",
                  a_expr, b_expr, a, b, d, tolerance);
    return ok;
}

bool shim_mem(const char *file, int line, const char *a_expr, const char *b_expr, const void *a,
              const void *b, uint64_t bytes) {
    const unsigned char *x = a, *y = b;
    for (uint64_t i = 0; i < bytes; i++)
        if (x[i] != y[i]) {
            shim_fail(file, line,
                      "expected: same bytes in %s and %s\n    first difference at byte %llu: %02x "
                      "!= %02x",
                      a_expr, b_expr, (unsigned long long)i, x[i], y[i]);
            return false;
        }
    return true;
}

/* ---- running --------------------------------------------------------------------------------- */

const char *shim_data_dir(void) {
    return "tests/data";
}

const char *shim_scratch_dir(void) {
    return scratch;
}

/* Does the name match one of the patterns in [from, to), which ':' separates? */
static bool matches_any(const char *name, const char *from, const char *to) {
    while (from < to) {
        char pattern[256];
        size_t n = strcspn(from, ":");
        n = n < (size_t)(to - from) ? n : (size_t)(to - from);
        snprintf(pattern, sizeof pattern, "%.*s", (int)n, from);
        if (fnmatch(pattern, name, FNM_NOESCAPE) == 0)
            return true;
        from += n + 1;
    }
    return false;
}

static bool selected(const struct entry *e, const char *filter) {
    char name[256];
    size_t wanted = strcspn(filter, "-");
    const char *end = filter + strlen(filter);
    snprintf(name, sizeof name, "%s.%s", e->suite, e->name);
    if (wanted > 0 && !matches_any(name, filter, filter + wanted))
        return false;
    return filter[wanted] == '\0' || !matches_any(name, filter + wanted + 1, end);
}

/* Async-signal-safe: names the test that did not end, then dies so that the run fails at once. */
static void on_alarm(int sig) {
    static const char head[] = "\ntest timed out: ";
    (void)sig;
    if (write(2, head, sizeof head - 1) < 0 || write(2, running, strlen(running)) < 0 ||
        write(2, "\n", 1) < 0)
        _exit(2);
    abort();
}

static void run_one(const struct entry *e, bool brief) {
    const char *timeout = getenv("TEST_TIMEOUT_S");
    failed = skipped = false;
    snprintf(running, sizeof running, "%s.%s", e->suite, e->name);
    if (!brief)
        printf("[ RUN      ] %s\n", running);
    fflush(stdout);
    alarm(timeout ? (unsigned)atoi(timeout) : 120);
    int64_t start = clock_us();
    e->fn();
    alarm(0);
    if (!brief || failed || skipped)
        printf("%s %s (%lld ms)\n",
               failed    ? "[  FAILED  ]"
               : skipped ? "[  SKIPPED ]"
                         : "[       OK ]",
               running, (long long)(clock_us() - start) / 1000);
    fflush(stdout);
}

static int run_program(int argc, char **argv) {
    argv[1] += sizeof "--program=" - 1;
    signal(SIGPIPE, SIG_IGN);
    for (int32_t i = 0; i < num_programs; i++)
        if (!strcmp(programs[i].name, argv[1]))
            return programs[i].fn(argc - 1, argv + 1);
    fprintf(stderr, "there is no program %s\n", argv[1]);
    return 2;
}

int main(int argc, char **argv) {
    if (argc > 1 && !strncmp(argv[1], "--program=", 10))
        return run_program(argc, argv);
    const char *filter = "";
    bool brief = false, list = false;
    int32_t passed = 0, num_failed = 0, num_skipped = 0;
    char command[64];
    for (int i = 1; i < argc; i++) {
        if (!strncmp(argv[i], "--gtest_filter=", 15))
            filter = argv[i] + 15;
        else if (!strncmp(argv[i], "--gtest_brief=", 14))
            brief = atoi(argv[i] + 14) != 0;
        else if (!strcmp(argv[i], "--gtest_list_tests"))
            list = true;
        else {
            fprintf(stderr, "usage: %s [--gtest_filter=P] [--gtest_brief=1] [--gtest_list_tests]\n",
                    argv[0]);
            return 2;
        }
    }
    if (!mkdtemp(scratch)) {
        perror("mkdtemp");
        return 1;
    }
    signal(SIGALRM, on_alarm);
    signal(SIGPIPE, SIG_IGN);
    for (int32_t i = 0; i < num_entries; i++) {
        if (!selected(&entries[i], filter))
            continue;
        if (list) {
            printf("%s.%s\n", entries[i].suite, entries[i].name);
            continue;
        }
        run_one(&entries[i], brief);
        passed += !failed && !skipped;
        num_failed += failed;
        num_skipped += skipped && !failed;
    }
    snprintf(command, sizeof command, "rm -rf '%s'", scratch);
    if (system(command) != 0)
        fprintf(stderr, "could not remove %s\n", scratch);
    free(entries);
    if (list)
        return 0;
    if (passed + num_failed + num_skipped == 0)
        fprintf(stderr, "no test was run\n");
    printf("%d passed, %d failed, %d skipped\n", passed, num_failed, num_skipped);
    return num_failed > 0 || passed + num_skipped == 0;
}
