/* nearest: the known name that a user probably meant, for "did you mean" in messages. Pure. */
#pragma once

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Edits (one byte inserted, removed or replaced, or two neighbours swapped) that turn a into b.
 * Names longer than 63 bytes are never near: the answer is then 64. */
int edit_distance(const char *a, const char *b);

/* The name with the fewest edits from `given`, the first of equals; NULL when even that one needs
 * more than a third of its letters changed (at least one edit is always allowed). */
const char *nearest_name(const char *const *names, size_t count, const char *given);

#ifdef __cplusplus
}
#endif
