/* From the C library's inner functions, which a program's own malloc does not replace. */
#include "tests/ptxvm/rt_alloc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
/* Sanitizers watch only their own. */
#define inner_calloc  calloc
#define inner_realloc realloc
#define inner_free    free
#define inner_aligned aligned_alloc
#else
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *p, size_t bytes);
void __libc_free(void *p);
void *__libc_memalign(size_t alignment, size_t bytes);
#define inner_calloc  __libc_calloc
#define inner_realloc __libc_realloc
#define inner_free    __libc_free
#define inner_aligned __libc_memalign
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

void *rt_calloc_array(size_t count, size_t bytes) {
    bytes = bytes ? bytes : 1;
    return check(inner_calloc(count ? count : 1, bytes), count * bytes);
}

void *rt_calloc_aligned(size_t bytes) {
    bytes = bytes ? (bytes + 63) & ~(size_t)63 : 64;
    return memset(check(inner_aligned(64, bytes), bytes), 0, bytes);
}

void *rt_realloc(void *p, size_t bytes) {
    return check(inner_realloc(p, bytes ? bytes : 1), bytes);
}

void rt_free(void *p) {
    inner_free(p);
}
