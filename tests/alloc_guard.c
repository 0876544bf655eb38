/* alloc_guard: see alloc_guard.h. mem.c checks our own allocations; this finds those of libraries
 * too. Sanitizers bring their own malloc, so the guard is left out of those builds. */
#include "tests/alloc_guard.h"

#include <stdatomic.h>
#include <stdbool.h>

static atomic_bool off;

void alloc_guard_off(void) {
    atomic_store(&off, true);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/mem.h"
#include "tests/shim.h"

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *p, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

static void check_step(void) {
    static const char text[] = "malloc called inside a step\n";
    if (!mem_in_step() || atomic_load_explicit(&off, memory_order_relaxed))
        return;
    ssize_t unused = write(2, text, sizeof text - 1);
    (void)unused;
    abort();
}

void *malloc(size_t bytes) {
    check_step();
    return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes) {
    check_step();
    return __libc_calloc(count, bytes);
}

void *realloc(void *p, size_t bytes) {
    check_step();
    return __libc_realloc(p, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes) {
    check_step();
    return __libc_memalign(alignment, bytes);
}

int posix_memalign(void **out, size_t alignment, size_t bytes) {
    check_step();
    *out = __libc_memalign(alignment, bytes);
    return *out ? 0 : ENOMEM;
}

#endif
