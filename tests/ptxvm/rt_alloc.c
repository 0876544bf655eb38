/* From the C library's inner functions, which a program's own malloc does not replace. */
#include "tests/ptxvm/rt_alloc.h"

#include <stdio.h>
#include <stdlib.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
/* Sanitizers watch only their own. */
#define inner_calloc  calloc
#define inner_realloc realloc
#define inner_free    free
#else
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *p, size_t bytes);
void __libc_free(void *p);
#define inner_calloc  __libc_calloc
#define inner_realloc __libc_realloc
#define inner_free    __libc_free
#endif

static void *check(void *p, size_t bytes) {
    if (!p) {
        fprintf(stderr, "ptxvm: the host has no %zu bytes left for the CUDA stand-ins\n", bytes);
        abort();
    }
    return p;
}

void *rt_calloc(size_t bytes) {
    return check(inner_calloc(1, bytes ? bytes : 1), bytes);
}

void *rt_realloc(void *p, size_t bytes) {
    return check(inner_realloc(p, bytes ? bytes : 1), bytes);
}

void rt_free(void *p) {
    inner_free(p);
}
