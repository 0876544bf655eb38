#include "host/kv_cache.h"

#include <stdlib.h>
#include <string.h>

#include "host/error.h"
#include "host/mem.h"

/* Identity of the empty prefix, the parent of every first block. 0 means "not registered". */
#define ROOT_IDENTITY ((uint64_t)1)

struct kv_block {
    int32_t refs;
    int32_t prev, next;  /* in the free or the cached list */
    int32_t bucket_next; /* chain of the hash bucket, while registered */
    uint64_t identity;   /* 0: not registered */
    uint64_t parent;     /* identity of the block before it */
    int32_t tokens[KV_BLOCK_SIZE];
};

/* A doubly linked list through kv_block.prev/next; taken from at the head, added to at the tail. */
struct block_list {
    int32_t head, tail, count;
};

struct kv_cache {
    struct kv_block *blocks; /* [num_blocks], owned */
    int32_t *buckets;        /* [num_buckets] first block of each chain, owned */
    int32_t num_blocks;
    uint32_t bucket_mask;
    bool enabled;
    uint64_t last_identity;
    struct block_list free_blocks, cached_blocks;
};

static void list_push(struct kv_cache *kv, struct block_list *list, int32_t b) {
    kv->blocks[b].prev = list->tail;
    kv->blocks[b].next = KV_NO_BLOCK;
    if (list->tail == KV_NO_BLOCK)
        list->head = b;
    else
        kv->blocks[list->tail].next = b;
    list->tail = b;
    list->count++;
}

static void list_remove(struct kv_cache *kv, struct block_list *list, int32_t b) {
    struct kv_block *block = &kv->blocks[b];
    if (block->prev == KV_NO_BLOCK)
        list->head = block->next;
    else
        kv->blocks[block->prev].next = block->next;
    if (block->next == KV_NO_BLOCK)
        list->tail = block->prev;
    else
        kv->blocks[block->next].prev = block->prev;
    list->count--;
}

struct kv_cache *kv_cache_create(const struct kv_cache_options *options) {
    CHECK(options->num_blocks >= 1, "num_blocks %d", options->num_blocks);
    struct kv_cache *kv = xcalloc(1, sizeof *kv);
    uint32_t num_buckets = (uint32_t)options->num_buckets;
    if (num_buckets == 0)
        for (num_buckets = 16; num_buckets < (uint32_t)options->num_blocks;)
            num_buckets *= 2;
    CHECK((num_buckets & (num_buckets - 1)) == 0, "%u buckets", num_buckets);
    kv->num_blocks = options->num_blocks;
    kv->enabled = options->enable_prefix_caching;
    kv->last_identity = ROOT_IDENTITY;
    kv->bucket_mask = num_buckets - 1;
    kv->buckets = xmalloc((size_t)num_buckets * sizeof *kv->buckets);
    for (uint32_t i = 0; i < num_buckets; i++)
        kv->buckets[i] = KV_NO_BLOCK;
    kv->blocks = xcalloc((size_t)kv->num_blocks, sizeof *kv->blocks);
    kv->free_blocks.head = kv->free_blocks.tail = KV_NO_BLOCK;
    kv->cached_blocks = kv->free_blocks;
    for (int32_t b = 0; b < kv->num_blocks; b++)
        list_push(kv, &kv->free_blocks, b);
    return kv;
}

void kv_cache_destroy(struct kv_cache *kv) {
    if (!kv)
        return;
    free(kv->blocks);
    free(kv->buckets);
    free(kv);
}

int32_t kv_cache_num_blocks(const struct kv_cache *kv) {
    return kv->num_blocks;
}

int32_t kv_cache_num_used(const struct kv_cache *kv) {
    return kv->num_blocks - kv->free_blocks.count;
}

int32_t kv_cache_num_cached(const struct kv_cache *kv) {
    return kv->cached_blocks.count;
}

int32_t kv_cache_num_available(const struct kv_cache *kv) {
    return kv->free_blocks.count + kv->cached_blocks.count;
}

static uint32_t bucket_of(const struct kv_cache *kv, uint64_t parent, const int32_t *tokens) {
    uint64_t h = parent * 0x9e3779b97f4a7c15u;
    for (int32_t i = 0; i < KV_BLOCK_SIZE; i++) {
        h = (h ^ (uint32_t)tokens[i]) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    return (uint32_t)h & kv->bucket_mask;
}

static int32_t find(const struct kv_cache *kv, uint64_t parent, const int32_t *tokens) {
    int32_t b = kv->buckets[bucket_of(kv, parent, tokens)];
    for (; b != KV_NO_BLOCK; b = kv->blocks[b].bucket_next) {
        const struct kv_block *block = &kv->blocks[b];
        if (block->parent == parent && !memcmp(block->tokens, tokens, sizeof block->tokens))
            return b;
    }
    return KV_NO_BLOCK;
}

static void unregister(struct kv_cache *kv, int32_t b) {
    struct kv_block *block = &kv->blocks[b];
    int32_t *link = &kv->buckets[bucket_of(kv, block->parent, block->tokens)];
    while (*link != b)
        link = &kv->blocks[*link].bucket_next;
    *link = block->bucket_next;
    block->identity = 0;
}

int32_t kv_cache_alloc(struct kv_cache *kv) {
    int32_t b = kv->free_blocks.head;
    if (b != KV_NO_BLOCK) {
        list_remove(kv, &kv->free_blocks, b);
    } else {
        b = kv->cached_blocks.head;
        if (b == KV_NO_BLOCK)
            return KV_NO_BLOCK;
        list_remove(kv, &kv->cached_blocks, b);
        unregister(kv, b);
    }
    kv->blocks[b].refs = 1;
    return b;
}

static void add_ref(struct kv_cache *kv, int32_t b) {
    if (kv->blocks[b].refs++ == 0)
        list_remove(kv, &kv->cached_blocks, b);
}

static void drop_ref(struct kv_cache *kv, int32_t b) {
    CHECK(b >= 0 && b < kv->num_blocks && kv->blocks[b].refs > 0, "block %d released too often", b);
    if (--kv->blocks[b].refs > 0)
        return;
    list_push(kv, kv->blocks[b].identity ? &kv->cached_blocks : &kv->free_blocks, b);
}

void kv_cache_release(struct kv_cache *kv, const int32_t *blocks, int32_t count) {
    for (int32_t i = count - 1; i >= 0; i--)
        drop_ref(kv, blocks[i]);
}

int32_t kv_cache_match(struct kv_cache *kv, const int32_t *tokens, int32_t max_blocks,
                       int32_t *blocks) {
    uint64_t parent = ROOT_IDENTITY;
    int32_t n = 0;
    for (; n < max_blocks; n++) {
        int32_t b = find(kv, parent, tokens + (int64_t)n * KV_BLOCK_SIZE);
        if (b == KV_NO_BLOCK)
            break;
        add_ref(kv, b);
        blocks[n] = b;
        parent = kv->blocks[b].identity;
    }
    return n;
}

int32_t kv_cache_peek(const struct kv_cache *kv, const int32_t *tokens, int32_t max_blocks,
                      int32_t *num_cached) {
    uint64_t parent = ROOT_IDENTITY;
    int32_t n = 0, cached = 0;
    for (; n < max_blocks; n++) {
        int32_t b = find(kv, parent, tokens + (int64_t)n * KV_BLOCK_SIZE);
        if (b == KV_NO_BLOCK)
            break;
        cached += kv->blocks[b].refs == 0;
        parent = kv->blocks[b].identity;
    }
    if (num_cached)
        *num_cached = cached;
    return n;
}

int32_t kv_cache_register(struct kv_cache *kv, int32_t b, int32_t parent, const int32_t *tokens) {
    struct kv_block *block = &kv->blocks[b];
    CHECK(block->refs > 0, "registering block %d, which nobody holds", b);
    uint64_t parent_identity = parent == KV_NO_BLOCK ? ROOT_IDENTITY : kv->blocks[parent].identity;
    if (!kv->enabled || parent_identity == 0 || block->identity != 0)
        return b;
    int32_t same = find(kv, parent_identity, tokens);
    if (same != KV_NO_BLOCK) {
        add_ref(kv, same);
        drop_ref(kv, b);
        return same;
    }
    uint32_t bucket = bucket_of(kv, parent_identity, tokens);
    block->identity = ++kv->last_identity;
    block->parent = parent_identity;
    memcpy(block->tokens, tokens, sizeof block->tokens);
    block->bucket_next = kv->buckets[bucket];
    kv->buckets[bucket] = b;
    return b;
}

void kv_cache_forget(struct kv_cache *kv, const int32_t *blocks, int32_t count) {
    for (int32_t i = 0; i < count; i++) {
        CHECK(kv->blocks[blocks[i]].refs > 0, "forgetting block %d, which nobody holds", blocks[i]);
        if (kv->blocks[blocks[i]].identity)
            unregister(kv, blocks[i]);
    }
}

/* Walks one list, CHECKs its links, and adds `mark` to state[b] for every block on it. */
static void check_list(const struct kv_cache *kv, const struct block_list *list, uint8_t mark,
                       uint8_t *state) {
    int32_t prev = KV_NO_BLOCK, n = 0;
    for (int32_t b = list->head; b != KV_NO_BLOCK; prev = b, b = kv->blocks[b].next, n++) {
        CHECK(n < kv->num_blocks, "a list of blocks runs in a circle");
        CHECK(kv->blocks[b].prev == prev, "block %d: broken back link", b);
        CHECK(state[b] == 0, "block %d is on two lists", b);
        state[b] = mark;
    }
    CHECK(list->tail == prev && list->count == n, "a list says %d blocks, has %d", list->count, n);
}

void kv_cache_check(const struct kv_cache *kv, const int32_t *refs) {
    enum { FREE = 1, CACHED = 2 };
    uint8_t *state = xcalloc((size_t)kv->num_blocks, 1);
    int32_t num_registered = 0, num_chained = 0;
    check_list(kv, &kv->free_blocks, FREE, state);
    check_list(kv, &kv->cached_blocks, CACHED, state);
    for (int32_t b = 0; b < kv->num_blocks; b++) {
        const struct kv_block *block = &kv->blocks[b];
        CHECK(block->refs == refs[b], "block %d: %d references, the sequences hold %d", b,
              block->refs, refs[b]);
        CHECK((block->refs == 0) == (state[b] != 0), "block %d: %d references, list %d", b,
              block->refs, state[b]);
        CHECK(state[b] != CACHED || block->identity, "block %d is cached without content", b);
        CHECK(state[b] != FREE || !block->identity, "block %d is free and registered", b);
        CHECK(!block->identity || find(kv, block->parent, block->tokens) == b,
              "block %d cannot be found by its content", b);
        num_registered += block->identity != 0;
    }
    for (uint32_t i = 0; i <= kv->bucket_mask; i++)
        for (int32_t b = kv->buckets[i]; b != KV_NO_BLOCK; b = kv->blocks[b].bucket_next)
            num_chained++;
    CHECK(num_chained == num_registered, "%d blocks in the hash table, %d registered", num_chained,
          num_registered);
    free(state);
}
