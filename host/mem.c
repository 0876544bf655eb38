#include "mem.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "error.h"
#include "log.h"

#define HUGE_PAGE_BYTES ((size_t)2 << 20)

static _Thread_local int step_depth;

void mem_step_begin(void) {
    step_depth++;
}

void mem_step_end(void) {
    CHECK(step_depth > 0, "mem_step_end without mem_step_begin");
    step_depth--;
}

bool mem_in_step(void) {
    return step_depth > 0;
}

/* Not by exit, which would run what other threads still use. */
void mem_exhausted(size_t bytes) {
    if (bytes > 0)
        log_error("out of memory: the system has no %zu bytes more for this process", bytes);
    else
        log_error("out of memory: the system has no more for this process");
    _exit(1);
}

static void *check_alloc(void *p, size_t bytes) {
    if (!p)
        mem_exhausted(bytes);
    return p;
}

void *xmalloc(size_t bytes) {
    CHECK(step_depth == 0, "allocation of %zu bytes inside a step", bytes);
    return check_alloc(malloc(bytes ? bytes : 1), bytes);
}

void *xcalloc(size_t count, size_t bytes) {
    CHECK(step_depth == 0, "allocation of %zu x %zu bytes inside a step", count, bytes);
    return check_alloc(calloc(count ? count : 1, bytes ? bytes : 1), bytes);
}

void *xrealloc(void *p, size_t bytes) {
    CHECK(step_depth == 0, "allocation of %zu bytes inside a step", bytes);
    return check_alloc(realloc(p, bytes ? bytes : 1), bytes);
}

char *xstrdup(const char *s) {
    return xstrndup(s, strlen(s));
}

char *xstrndup(const char *s, size_t n) {
    size_t len = strnlen(s, n);
    char *out = xmalloc(len + 1);
    memcpy(out, s, len);
    out[len] = 0;
    return out;
}

void *mem_pool_alloc(size_t bytes) {
    CHECK(step_depth == 0, "pool of %zu bytes allocated inside a step", bytes);
    if (bytes == 0)
        bytes = 1;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    if (bytes >= HUGE_PAGE_BYTES)
        madvise(p, bytes, MADV_HUGEPAGE); /* advice only: a refusal costs speed, not correctness */
    return p;
}

void mem_pool_free(void *p, size_t bytes) {
    if (p)
        munmap(p, bytes ? bytes : 1);
}

/* The number in a one-line file such as a cgroup limit; SIZE_MAX for "max" or no such file. */
static size_t read_limit(const char *path) {
    FILE *f = fopen(path, "r");
    unsigned long long v;
    size_t out = SIZE_MAX;
    if (!f)
        return out;
    if (fscanf(f, "%llu", &v) == 1)
        out = (size_t)v;
    fclose(f);
    return out;
}

size_t mem_available_bytes(void) {
    FILE *f = fopen("/proc/meminfo", "r");
    char line[256];
    size_t available = 0;
    if (!f)
        return 0;
    while (fgets(line, sizeof line, f)) {
        unsigned long long kib;
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            available = (size_t)kib * 1024;
    }
    fclose(f);
    size_t limit = read_limit("/sys/fs/cgroup/memory.max");
    size_t used = read_limit("/sys/fs/cgroup/memory.current");
    if (limit != SIZE_MAX && used != SIZE_MAX && limit > used && limit - used < available)
        available = limit - used;
    return available;
}
