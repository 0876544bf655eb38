/* The C++ side of shim.h: turns registered C functions into GoogleTest tests. */
#include "tests/shim.h"

#include <gtest/gtest.h>

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unistd.h>
#include <vector>

namespace {

struct Entry {
    const char *suite, *name, *file;
    int line;
    void (*fn)(void);
};

std::vector<Entry> &entries() {
    static std::vector<Entry> all;
    return all;
}

struct Program {
    const char *name;
    int (*fn)(int argc, char **argv);
};

std::vector<Program> &programs() {
    static std::vector<Program> all;
    return all;
}

/* Runs the program that the first argument names. */
int run_program(int argc, char **argv) {
    const char *name = strchr(argv[1], '=') + 1;
    signal(SIGPIPE, SIG_IGN);
    for (const Program &p : programs())
        if (!strcmp(p.name, name)) {
            argv[1] = const_cast<char *>(name);
            return p.fn(argc - 1, argv + 1);
        }
    fprintf(stderr, "there is no program %s\n", name);
    return 2;
}

char running[256];

/* Async-signal-safe: names the test that did not end, then dies so that the run fails at once. */
void on_alarm(int) {
    static const char head[] = "\ntest timed out: ";
    if (write(2, head, sizeof head - 1) < 0 || write(2, running, strlen(running)) < 0 ||
        write(2, "\n", 1) < 0)
        _exit(2);
    abort();
}

int timeout_s() {
    const char *s = getenv("TEST_TIMEOUT_S");
    return s ? atoi(s) : 120;
}

class CTest : public testing::Test {
  public:
    explicit CTest(const Entry &entry) : entry_(entry) {
    }
    void TestBody() override {
        snprintf(running, sizeof running, "%s.%s", entry_.suite, entry_.name);
        alarm((unsigned)timeout_s());
        entry_.fn();
        alarm(0);
    }

  private:
    Entry entry_;
};

void report(const char *file, int line, const std::string &text) {
    GTEST_MESSAGE_AT_(file, line, text.c_str(), testing::TestPartResult::kNonFatalFailure);
}

std::string scratch;

} // namespace

extern "C" {

void shim_register(const char *suite, const char *name, const char *file, int line,
                   void (*fn)(void)) {
    entries().push_back(Entry{suite, name, file, line, fn});
}

void shim_register_program(const char *name, int (*fn)(int argc, char **argv)) {
    programs().push_back(Program{name, fn});
}

bool shim_true(const char *file, int line, const char *expr, bool ok) {
    if (!ok)
        report(file, line, std::string("expected: ") + expr);
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
        report(file, line,
               std::string("expected: ") + a_expr + " " + op + " " + b_expr +
                   "\n    left: " + std::to_string(a) + "\n   right: " + std::to_string(b));
    return ok;
}

bool shim_str(const char *file, int line, const char *a_expr, const char *b_expr, const char *a,
              const char *b) {
    bool ok = a && b ? !strcmp(a, b) : a == b;
    if (!ok)
        report(file, line,
               std::string("expected: ") + a_expr + " == " + b_expr + "\n    left: \"" +
                   (a ? a : "(null)") + "\"\n   right: \"" + (b ? b : "(null)") + "\"");
    return ok;
}

bool shim_near(const char *file, int line, const char *a_expr, const char *b_expr, double a,
               double b, double tolerance) {
    double d = a > b ? a - b : b - a;
    bool ok = d <= tolerance; /* false for NaN */
    if (!ok) {
        char text[256];
        snprintf(text, sizeof text, "\n    left: %.9g\n   right: %.9g\n    diff: %.3g > %.3g", a, b,
                 d, tolerance);
        report(file, line, std::string("expected: ") + a_expr + " near " + b_expr + text);
    }
    return ok;
}

bool shim_mem(const char *file, int line, const char *a_expr, const char *b_expr, const void *a,
              const void *b, uint64_t bytes) {
    const unsigned char *x = (const unsigned char *)a, *y = (const unsigned char *)b;
    for (uint64_t i = 0; i < bytes; i++)
        if (x[i] != y[i]) {
            char text[128];
            snprintf(text, sizeof text, "\n    first difference at byte %llu: %02x != %02x",
                     (unsigned long long)i, x[i], y[i]);
            report(file, line,
                   std::string("expected: same bytes in ") + a_expr + " and " + b_expr + text);
            return false;
        }
    return true;
}

void shim_fail(const char *file, int line, const char *fmt, ...) {
    char text[2048];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    report(file, line, text);
}

void shim_skip(const char *file, int line, const char *reason) {
    GTEST_MESSAGE_AT_(file, line, reason, testing::TestPartResult::kSkip);
}

bool shim_failed(void) {
    return testing::Test::HasFailure();
}

const char *shim_data_dir(void) {
    return "tests/data";
}

const char *shim_scratch_dir(void) {
    return scratch.c_str();
}
}

int main(int argc, char **argv) {
    if (argc > 1 && !strncmp(argv[1], "--program=", 10))
        return run_program(argc, argv);
    testing::InitGoogleTest(&argc, argv);
    char dir[] = "/tmp/moeserve-test-XXXXXX";
    if (!mkdtemp(dir)) {
        perror("mkdtemp");
        return 1;
    }
    scratch = dir;
    signal(SIGALRM, on_alarm);
    signal(SIGPIPE, SIG_IGN);
    for (const Entry &e : entries())
        testing::RegisterTest(e.suite, e.name, nullptr, nullptr, e.file, e.line,
                              [e]() -> testing::Test * { return new CTest(e); });
    int rc = RUN_ALL_TESTS();
    const testing::UnitTest &u = *testing::UnitTest::GetInstance();
    std::string rm = "rm -rf '" + scratch + "'";
    if (system(rm.c_str()) != 0)
        fprintf(stderr, "could not remove %s\n", scratch.c_str());
    if (u.test_to_run_count() == 0) {
        fprintf(stderr, "no test was run\n");
        rc = 1;
    }
    printf("%d passed, %d failed, %d skipped\n", u.successful_test_count(), u.failed_test_count(),
           u.skipped_test_count());
    return rc;
}
