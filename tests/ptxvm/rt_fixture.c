#include "tests/ptxvm/rt_fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

const char *ptxvm_last_report(void) __attribute__((weak));

/* What a failed child wrote. */
static void print_file(FILE *f) {
    char line[1024];
    rewind(f);
    while (fgets(line, sizeof line, f))
        fputs(line, stderr);
}

bool rt_with_setting(const char *variable, const char *value, const char *test) {
    const char *now = getenv(variable);
    if (now && !strcmp(now, value))
        return true;
    char filter[256];
    snprintf(filter, sizeof filter, "--gtest_filter=%s", test);
    FILE *output = tmpfile();
    if (!output) {
        FAIL("no temporary file for the output of a child process");
        return false;
    }
    pid_t child = fork();
    if (child == 0) {
        dup2(fileno(output), 1);
        dup2(fileno(output), 2);
        setenv(variable, value, 1);
        execl("/proc/self/exe", "child", filter, "--gtest_brief=1", (char *)NULL);
        _exit(127);
    }
    int status = -1;
    waitpid(child, &status, 0);
    if (status != 0) {
        print_file(output);
        FAIL("%s with %s=%s: status %d", test, variable, value, status);
    }
    fclose(output);
    return false;
}

bool rt_in_mode(const char *mode, const char *test) {
    return rt_with_setting("PTXVM_STREAMS", mode, test);
}

bool rt_is_mode(const char *mode) {
    const char *now = getenv("PTXVM_STREAMS");
    return !strcmp(now ? now : "async", mode);
}

static void wait_for_gate(void *arg) {
    struct rt_gate *g = arg;
    struct timespec pause = {.tv_nsec = 200000};
    atomic_store(&g->reached, true);
    while (!atomic_load(&g->open))
        nanosleep(&pause, NULL);
}

void rt_gate_close(struct rt_gate *g, cudaStream_t stream) {
    atomic_store(&g->open, false);
    atomic_store(&g->reached, false);
    EXPECT_CUDA(cudaLaunchHostFunc(stream, wait_for_gate, g), cudaSuccess);
}

void rt_gate_open(struct rt_gate *g) {
    atomic_store(&g->open, true);
}

bool rt_is_machine(void) {
    return ptxvm_last_report != NULL;
}

bool rt_reported(const char *text) {
    return !ptxvm_last_report || strstr(ptxvm_last_report(), text);
}

int *rt_device_ints(int n, int v) {
    int *p = NULL, *host = malloc(sizeof(int) * (size_t)n);
    for (int i = 0; i < n; i++)
        host[i] = v;
    EXPECT_CUDA(cudaMalloc((void **)&p, sizeof(int) * (size_t)n), cudaSuccess);
    EXPECT_CUDA(cudaMemcpy(p, host, sizeof(int) * (size_t)n, cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_CUDA(cudaDeviceSynchronize(), cudaSuccess);
    free(host);
    return p;
}

int rt_read_int(const int *p, int i) {
    int v = -1;
    EXPECT_CUDA(cudaMemcpy(&v, p + i, sizeof v, cudaMemcpyDeviceToHost), cudaSuccess);
    return v;
}
