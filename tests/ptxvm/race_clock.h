/* race_clock: what a thread of a grid knows that other threads have done.
 *
 * The accesses of a thread carry its epoch, a counter that steps whenever the thread lets others
 * know of what it did. A clock says for each thread of each block up to which epoch its accesses
 * lie before those of the clock's owner. Blocks of which nothing is known take no room; the lanes
 * of a warp, and all threads after a barrier, share one clock. Clocks do not change once they are
 * shared, and are freed with the last reference. All of a grid's belong to one thread of the host.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct race_epochs { /* of the threads of one block */
    int32_t refs;
    uint32_t at[];
};

struct race_entry {
    uint32_t block;
    struct race_epochs *epochs; /* one reference */
};

struct race_clock {
    int32_t refs;
    int32_t count;
    struct race_entry of[]; /* [count], by rising block */
};

/* A clock that knows of the start of one block. */
struct race_clock *race_clock_create(uint32_t block, uint32_t num_threads);
struct race_clock *race_clock_ref(struct race_clock *c);
/* NULL is allowed. */
void race_clock_unref(struct race_clock *c);
/* *into learns what more knows; both may be NULL, which knows nothing. */
void race_clock_join(struct race_clock **into, struct race_clock *more, uint32_t num_threads);
/* A copy of c whose epochs of a block may be changed until it is shared. */
struct race_clock *race_clock_copy(const struct race_clock *c, uint32_t block,
                                   uint32_t num_threads);
/* The epochs of a block, NULL when nothing is known of it. */
uint32_t *race_clock_find(struct race_clock *c, uint32_t block);
static inline uint32_t *race_clock_of(struct race_clock *c, uint32_t block) {
    /* Most threads know of no block but their own. */
    if (c->count == 1)
        return c->of[0].block == block ? c->of[0].epochs->at : NULL;
    return race_clock_find(c, block);
}
