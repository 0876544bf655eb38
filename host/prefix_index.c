#include "host/prefix_index.h"

#include <stdlib.h>

#include "host/batch.h"
#include "host/error.h"
#include "host/mem.h"

enum { NONE = -1 };

struct entry {
    uint64_t hash;
    int32_t older, newer;
    int32_t bucket_next;
};

struct prefix_index {
    struct entry *entries; /* [max_blocks], the first `count` in use; owned */
    int32_t *buckets;      /* [bucket_mask + 1] first entry of each chain, owned */
    uint32_t bucket_mask;
    int32_t max_blocks, count;
    int32_t oldest, newest;
};

struct prefix_index *prefix_index_create(int32_t max_blocks) {
    CHECK(max_blocks >= 1, "max_blocks %d", max_blocks);
    struct prefix_index *x = xcalloc(1, sizeof *x);
    uint32_t num_buckets = 16;
    while (num_buckets < (uint32_t)max_blocks)
        num_buckets *= 2;
    x->max_blocks = max_blocks;
    x->bucket_mask = num_buckets - 1;
    x->oldest = x->newest = NONE;
    x->entries = xcalloc((size_t)max_blocks, sizeof *x->entries);
    x->buckets = xmalloc((size_t)num_buckets * sizeof *x->buckets);
    for (uint32_t i = 0; i < num_buckets; i++)
        x->buckets[i] = NONE;
    return x;
}

void prefix_index_destroy(struct prefix_index *x) {
    if (!x)
        return;
    free(x->entries);
    free(x->buckets);
    free(x);
}

void prefix_hashes(const int32_t *tokens, int32_t num_blocks, uint64_t *hashes) {
    uint64_t h = 1;
    for (int32_t b = 0; b < num_blocks; b++) {
        for (int32_t i = 0; i < KV_BLOCK_SIZE; i++) {
            h = (h ^ (uint32_t)tokens[(int64_t)b * KV_BLOCK_SIZE + i]) * 0xff51afd7ed558ccdu;
            h ^= h >> 32;
        }
        hashes[b] = h;
    }
}

static int32_t find(const struct prefix_index *x, uint64_t hash) {
    int32_t i = x->buckets[(uint32_t)hash & x->bucket_mask];
    while (i != NONE && x->entries[i].hash != hash)
        i = x->entries[i].bucket_next;
    return i;
}

int32_t prefix_index_match(const struct prefix_index *x, const uint64_t *hashes, int32_t count) {
    int32_t n = 0;
    while (n < count && find(x, hashes[n]) != NONE)
        n++;
    return n;
}

/* ---- order of use ---------------------------------------------------------------------------- */

static void unlink_entry(struct prefix_index *x, int32_t i) {
    const struct entry *e = &x->entries[i];
    if (e->older == NONE)
        x->oldest = e->newer;
    else
        x->entries[e->older].newer = e->newer;
    if (e->newer == NONE)
        x->newest = e->older;
    else
        x->entries[e->newer].older = e->older;
}

static void link_newest(struct prefix_index *x, int32_t i) {
    x->entries[i].older = x->newest;
    x->entries[i].newer = NONE;
    if (x->newest == NONE)
        x->oldest = i;
    else
        x->entries[x->newest].newer = i;
    x->newest = i;
}

/* An entry that is in no list and no chain: a fresh one, else the oldest. */
static int32_t take_entry(struct prefix_index *x) {
    if (x->count < x->max_blocks)
        return x->count++;
    int32_t i = x->oldest;
    int32_t *link = &x->buckets[(uint32_t)x->entries[i].hash & x->bucket_mask];
    while (*link != i)
        link = &x->entries[*link].bucket_next;
    *link = x->entries[i].bucket_next;
    unlink_entry(x, i);
    return i;
}

void prefix_index_note(struct prefix_index *x, const uint64_t *hashes, int32_t count) {
    if (count > x->max_blocks)
        count = x->max_blocks;
    for (int32_t b = count - 1; b >= 0; b--) {
        int32_t i = find(x, hashes[b]);
        if (i != NONE) {
            unlink_entry(x, i);
        } else {
            i = take_entry(x);
            int32_t *bucket = &x->buckets[(uint32_t)hashes[b] & x->bucket_mask];
            x->entries[i].hash = hashes[b];
            x->entries[i].bucket_next = *bucket;
            *bucket = i;
        }
        link_newest(x, i);
    }
}
