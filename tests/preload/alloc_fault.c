/* alloc_fault: a library for LD_PRELOAD with which one allocation of a program fails.
 *
 *   ALLOC_FAULT_AT=N      the Nth from main on, counted over malloc, calloc, realloc, memalign and
 *                         mmap of all threads; 0 or unset: none
 *   ALLOC_FAULT_REPORT=F  file for how many there were, written when the program ends by itself
 *
 * What libraries allocate before main, and what libc allocates for itself, is not ours to test.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *p, size_t bytes);
extern void *__libc_memalign(size_t alignment, size_t bytes);

static atomic_long calls, fails_at;
static atomic_bool armed;
static int (*real_main)(int, char **, char **);
static void *(*real_mmap)(void *, size_t, int, int, int, off_t);

static bool fails(void) {
    if (!atomic_load(&armed) || atomic_fetch_add(&calls, 1) + 1 != atomic_load(&fails_at))
        return false;
    errno = ENOMEM;
    return true;
}

void *malloc(size_t bytes) {
    return fails() ? NULL : __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes) {
    return fails() ? NULL : __libc_calloc(count, bytes);
}

void *realloc(void *p, size_t bytes) {
    return fails() ? NULL : __libc_realloc(p, bytes);
}

void *memalign(size_t alignment, size_t bytes) {
    return fails() ? NULL : __libc_memalign(alignment, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes) {
    return memalign(alignment, bytes);
}

int posix_memalign(void **out, size_t alignment, size_t bytes) {
    void *p = memalign(alignment, bytes);
    if (!p)
        return ENOMEM;
    *out = p;
    return 0;
}

void *mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    if (!real_mmap)
        *(void **)&real_mmap = dlsym(RTLD_NEXT, "mmap");
    return fails() ? MAP_FAILED : real_mmap(at, bytes, protection, flags, fd, offset);
}

static void report(void) {
    const char *path = getenv("ALLOC_FAULT_REPORT");
    atomic_store(&armed, false);
    FILE *f = path ? fopen(path, "w") : NULL;
    if (f) {
        fprintf(f, "%ld\n", atomic_load(&calls));
        fclose(f);
    }
}

static int armed_main(int argc, char **argv, char **environment) {
    const char *at = getenv("ALLOC_FAULT_AT");
    atexit(report);
    atomic_store(&fails_at, at ? atol(at) : 0);
    atomic_store(&armed, true);
    return real_main(argc, argv, environment);
}

int __libc_start_main(int (*main_fn)(int, char **, char **), int argc, char **argv,
                      void (*init)(void), void (*fini)(void), void (*rtld_fini)(void), void *end) {
    int (*next)(int (*)(int, char **, char **), int, char **, void (*)(void), void (*)(void),
                void (*)(void), void *);
    *(void **)&next = dlsym(RTLD_NEXT, "__libc_start_main");
    real_main = main_fn;
    return next(armed_main, argc, argv, init, fini, rtld_fini, end);
}
