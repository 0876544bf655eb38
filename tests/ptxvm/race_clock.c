/* Clocks of the race detector: sorted lists of shared vectors. */
#include "tests/ptxvm/race_clock.h"

#include <string.h>

#include "tests/ptxvm/rt_alloc.h"

static struct race_epochs *epochs_create(uint32_t num_threads) {
    struct race_epochs *e = rt_calloc(sizeof *e + num_threads * sizeof e->at[0]);
    e->refs = 1;
    return e;
}

static struct race_epochs *epochs_ref(struct race_epochs *e) {
    e->refs++;
    return e;
}

static void epochs_unref(struct race_epochs *e) {
    if (!--e->refs)
        rt_free(e);
}

static struct race_epochs *epochs_join(struct race_epochs *a, struct race_epochs *b,
                                       uint32_t num_threads) {
    if (a == b)
        return epochs_ref(a);
    struct race_epochs *e = epochs_create(num_threads);
    for (uint32_t t = 0; t < num_threads; t++)
        e->at[t] = a->at[t] > b->at[t] ? a->at[t] : b->at[t];
    return e;
}

static struct race_clock *clock_with_room(int32_t entries) {
    struct race_clock *c = rt_calloc(sizeof *c + (size_t)entries * sizeof c->of[0]);
    c->refs = 1;
    return c;
}

struct race_clock *race_clock_create(uint32_t block, uint32_t num_threads) {
    struct race_clock *c = clock_with_room(1);
    c->count = 1;
    c->of[0] = (struct race_entry){block, epochs_create(num_threads)};
    return c;
}

struct race_clock *race_clock_ref(struct race_clock *c) {
    c->refs++;
    return c;
}

void race_clock_unref(struct race_clock *c) {
    if (!c || --c->refs)
        return;
    for (int32_t n = 0; n < c->count; n++)
        epochs_unref(c->of[n].epochs);
    rt_free(c);
}

static struct race_clock *merge(const struct race_clock *a, const struct race_clock *b,
                                uint32_t num_threads) {
    struct race_clock *c = clock_with_room(a->count + b->count);
    int32_t i = 0, j = 0;
    while (i < a->count || j < b->count) {
        bool left = j == b->count || (i < a->count && a->of[i].block <= b->of[j].block);
        bool right = i == a->count || (j < b->count && b->of[j].block <= a->of[i].block);
        struct race_entry *e = &c->of[c->count++];
        e->block = left ? a->of[i].block : b->of[j].block;
        e->epochs = left && right ? epochs_join(a->of[i].epochs, b->of[j].epochs, num_threads)
                                  : epochs_ref(left ? a->of[i].epochs : b->of[j].epochs);
        i += left;
        j += right;
    }
    return c;
}

void race_clock_join(struct race_clock **into, struct race_clock *more, uint32_t num_threads) {
    if (!more || *into == more)
        return;
    struct race_clock *old = *into;
    *into = old ? merge(old, more, num_threads) : race_clock_ref(more);
    race_clock_unref(old);
}

struct race_clock *race_clock_copy(const struct race_clock *c, uint32_t block,
                                   uint32_t num_threads) {
    struct race_clock *copy = clock_with_room(c->count);
    copy->count = c->count;
    for (int32_t n = 0; n < c->count; n++) {
        copy->of[n] = (struct race_entry){c->of[n].block, epochs_ref(c->of[n].epochs)};
        if (c->of[n].block != block)
            continue;
        struct race_epochs *own = epochs_create(num_threads);
        memcpy(own->at, c->of[n].epochs->at, num_threads * sizeof own->at[0]);
        epochs_unref(copy->of[n].epochs);
        copy->of[n].epochs = own;
    }
    return copy;
}

uint32_t *race_clock_find(struct race_clock *c, uint32_t block) {
    int32_t lo = 0, hi = c->count;
    while (lo < hi) {
        int32_t mid = (lo + hi) / 2;
        if (c->of[mid].block < block)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < c->count && c->of[lo].block == block ? c->of[lo].epochs->at : NULL;
}
