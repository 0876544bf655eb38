/* mem: heap memory for small host objects, large page-aligned pools, and the step guard.
 *
 * The x-family ends the process, with a line in the log and status 1, when memory is out: small
 * objects are never worth an error path. Large pools
 * (weights, KV, activations) come from mem_pool_alloc, which returns NULL so that the caller can
 * say how many bytes were missing and which option would help.
 *
 * Nothing is allocated inside a step. The threads that run a step mark it with mem_step_begin/_end;
 * the x-family and mem_pool_alloc then CHECK. The test program also replaces malloc itself and
 * checks mem_in_step(), so that a library that allocates behind our back is found too.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

void *xmalloc(size_t bytes);               /* bytes may be 0; never NULL */
void *xcalloc(size_t count, size_t bytes); /* zeroed; the product is checked for overflow */
void *xrealloc(void *p, size_t bytes);
char *xstrdup(const char *s);
char *xstrndup(const char *s, size_t n);

/* What the x-family does then; for what a library could not allocate. bytes 0: not known. */
void mem_exhausted(size_t bytes) __attribute__((noreturn));

/* Zeroed, page-aligned memory straight from the system, advised to use huge pages when large.
 * NULL when the system has none. Freed with mem_pool_free(p, same bytes); p may be NULL. */
void *mem_pool_alloc(size_t bytes);
void mem_pool_free(void *p, size_t bytes);

/* Bytes of memory the system could hand out now (MemAvailable of /proc/meminfo, within the cgroup's
 * limit), 0 if unknown. */
size_t mem_available_bytes(void);

/* Marks the calling thread as being inside a step; calls nest. */
void mem_step_begin(void);
void mem_step_end(void);
bool mem_in_step(void);

#ifdef __cplusplus
}
#endif
