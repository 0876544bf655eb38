/* Memory that runs out while the server starts: for one allocation after another, the program is
 * started with that one failing (tests/preload/alloc_fault.c). It has to end by itself, with status
 * 1 and one line that says that memory is out, or to serve.
 *
 *   ALLOC_FAULT_ALL=1   every one of them, instead of the first 200 and some of the others
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/file.h"
#include "tests/program.h"
#include "tests/shim.h"

static const char *const args[] = {"-q", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", NULL};

/* The library lies beside the program. */
static bool find_library(char *path, size_t size) {
    const char *bin = getenv("MOESERVE_BIN"), *slash = bin ? strrchr(bin, '/') : NULL;
    char relative[512];
    snprintf(relative, sizeof relative, "%.*salloc_fault.so", slash ? (int)(slash - bin) + 1 : 0,
             bin ? bin : "");
    return bin && size > 4096 && realpath(relative, path);
}

static void set_number(const char *name, long value) {
    char text[24];
    snprintf(text, sizeof text, "%ld", value);
    setenv(name, text, 1);
}

static const char *scratch(const char *name, char path[256]) {
    snprintf(path, 256, "%s/%s", shim_scratch_dir(), name);
    return path;
}

/* Asks the server for a few tokens; when it ended over that, the client is just closed. */
static void ask(char *ready_line) {
    char *address = ready_line + strlen("moeserve: ready line=");
    struct net_client c;
    address[strcspn(address, " ")] = '\0';
    if (!net_client_open(&c, address, 0))
        return;
    net_client_puts(&c, "{\"id\":1,\"prompt\":\"Once\",\"max_tokens\":2}");
    while (net_client_line(&c) && !strstr(c.line.data, "\"done\":true"))
        ;
    net_client_close(&c);
}

/* How many times this stands in the file. */
static int count_in(const char *path, const char *text) {
    struct error e = {0};
    char *data;
    size_t len;
    int count = 0;
    if (file_read(path, 1 << 20, &data, &len, &e) != 0)
        return -1;
    for (const char *p = data; (p = strstr(p, text)); p++)
        count++;
    free(data);
    return count;
}

/* A thread that cannot be started is told from no memory by nobody. */
static bool says_why(const char *path) {
    return count_in(path, "emory") > 0 || count_in(path, "cannot start ") > 0;
}

static void show(const char *path) {
    struct error e = {0};
    char *data;
    size_t len;
    if (file_read(path, 1 << 20, &data, &len, &e) == 0) {
        FAIL("it says: %s", data);
        free(data);
    }
}

/* Starts the program with allocation n failing (0: none) and sees how it ends. */
static bool ends_well(const char *library, long n, bool *served) {
    struct program p;
    char line[256] = "", log_path[256];
    int log = open(scratch("fault.log", log_path), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    setenv("LD_PRELOAD", library, 1);
    set_number("ALLOC_FAULT_AT", n);
    bool ok = program_start_with(&p, args, log);
    unsetenv("LD_PRELOAD");
    unsetenv("ALLOC_FAULT_AT");
    close(log);
    if (!ok)
        return false;
    *served =
        program_read_line(&p, line, sizeof line) && !strncmp(line, "moeserve: ready line=", 21);
    if (*served) {
        ask(line);
        kill(p.pid, SIGTERM);
    }
    int status = program_wait(&p), errors = count_in(log_path, "moeserve: error: ");
    ok = status == 0 ? *served && errors == 0 : status == 1 && errors == 1 && says_why(log_path);
    if (!ok) {
        FAIL("allocation %ld fails: status %d, %d lines of error, %s", n, status, errors,
             *served ? "served" : "did not serve");
        show(log_path);
    }
    return ok;
}

static long count_allocations(const char *library) {
    char path[256], *data;
    struct error e = {0};
    size_t len;
    bool served;
    setenv("ALLOC_FAULT_REPORT", scratch("allocations", path), 1);
    bool ok = ends_well(library, 0, &served);
    unsetenv("ALLOC_FAULT_REPORT");
    if (!ok || !EXPECT_TRUE(served) || !EXPECT_INT_EQ(file_read(path, 64, &data, &len, &e), 0))
        return 0;
    long count = atol(data);
    free(data);
    return count;
}

TEST(AllocFault, AStartWithoutMemoryEndsWithOneLineOrServes) {
    NEEDS_BINARY();
    static char library[8192];
    if (!find_library(library, sizeof library))
        SKIP(
            "there is no alloc_fault.so beside MOESERVE_BIN; sanitizers have a malloc of their own");
    bool all = getenv("ALLOC_FAULT_ALL") != NULL, served;
    long total = count_allocations(library), ended = 0;
    EXPECT_INT_GT(total, 1000);
    for (long n = 1; n <= total; n += all || n < 200 ? 1 : 1 + n / 12) {
        if (!ends_well(library, n, &served))
            break;
        ended += !served;
    }
    EXPECT_INT_GT(ended, 100);
}
