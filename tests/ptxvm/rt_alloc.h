/* rt_alloc: memory of the CUDA stand-ins' and the machine's own objects.
 *
 * Not malloc of the program: a test program that forbids allocations in its own steps means itself,
 * not its CUDA driver.
 */
#pragma once

#include <stddef.h>

/* Zeroed; the process ends with a message when there is none. */
void *rt_calloc(size_t bytes);
void *rt_calloc_array(size_t count, size_t bytes);
/* Zeroed, on a boundary of 64 bytes. */
void *rt_calloc_aligned(size_t bytes);
void *rt_realloc(void *p, size_t bytes);
void rt_free(void *p); /* NULL is allowed */
