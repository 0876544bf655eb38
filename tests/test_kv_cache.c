/* The block manager. Fixture: tokens of a block are 16 times the same number, so block(7) is a
 * block of sevens. */
#include <stdlib.h>
#include <string.h>

#include "host/error.h"
#include "host/kv_cache.h"
#include "host/mem.h"
#include "tests/fake_model.h"
#include "tests/shim.h"

static struct kv_cache *make(int32_t num_blocks) {
    return kv_cache_create(
        &(struct kv_cache_options){.num_blocks = num_blocks, .enable_prefix_caching = true});
}

static void fill(int32_t *tokens, int32_t value) {
    for (int32_t i = 0; i < KV_BLOCK_SIZE; i++)
        tokens[i] = value;
}

/* Allocates and registers a chain of blocks with these contents. */
static void make_chain(struct kv_cache *kv, const int32_t *values, int32_t count, int32_t *blocks) {
    int32_t tokens[KV_BLOCK_SIZE];
    for (int32_t i = 0; i < count; i++) {
        fill(tokens, values[i]);
        blocks[i] = kv_cache_alloc(kv);
        blocks[i] = kv_cache_register(kv, blocks[i], i ? blocks[i - 1] : KV_NO_BLOCK, tokens);
    }
}

static int32_t match_chain(struct kv_cache *kv, const int32_t *values, int32_t count,
                           int32_t *blocks) {
    int32_t tokens[8 * KV_BLOCK_SIZE];
    for (int32_t i = 0; i < count; i++)
        fill(tokens + i * KV_BLOCK_SIZE, values[i]);
    return kv_cache_match(kv, tokens, count, blocks);
}

TEST(KvCache, BlocksRunOutAndFreedOnesAreReused) {
    struct kv_cache *kv = make(2);
    int32_t a = kv_cache_alloc(kv), b = kv_cache_alloc(kv);
    EXPECT_TRUE(a != b && a >= 0 && b >= 0);
    EXPECT_INT_EQ(kv_cache_alloc(kv), KV_NO_BLOCK);
    EXPECT_INT_EQ(kv_cache_num_used(kv), 2);
    kv_cache_release(kv, &a, 1);
    EXPECT_INT_EQ(kv_cache_num_used(kv), 1);
    EXPECT_INT_EQ(kv_cache_num_cached(kv), 0);
    EXPECT_INT_EQ(kv_cache_alloc(kv), a);
    kv_cache_destroy(kv);
}

TEST(KvCache, AReleasedPrefixIsCachedAndFoundAgain) {
    struct kv_cache *kv = make(4);
    const int32_t values[] = {1, 2, 3}, other[] = {1, 2, 4};
    int32_t blocks[3], found[3] = {-1, -1, -1};
    make_chain(kv, values, 3, blocks);
    EXPECT_INT_EQ(kv_cache_num_cached(kv), 0);
    kv_cache_release(kv, blocks, 3);
    EXPECT_INT_EQ(kv_cache_num_used(kv), 3);
    EXPECT_INT_EQ(kv_cache_num_cached(kv), 3);
    EXPECT_INT_EQ(kv_cache_num_available(kv), 4);
    EXPECT_INT_EQ(match_chain(kv, values, 3, found), 3);
    EXPECT_MEM_EQ(found, blocks, sizeof blocks);
    EXPECT_INT_EQ(kv_cache_num_cached(kv), 0);
    EXPECT_INT_EQ(match_chain(kv, other, 3, found), 2);
    kv_cache_release(kv, found, 2);
    kv_cache_release(kv, blocks, 3);
    int32_t refs[4] = {0};
    kv_cache_check(kv, refs);
    kv_cache_destroy(kv);
}

TEST(KvCache, TheSameTokensAfterAnotherPrefixAreAnotherBlock) {
    struct kv_cache *kv = make(4);
    const int32_t values[] = {1, 2}, other[] = {3, 2};
    int32_t a[2], b[2], found[2];
    make_chain(kv, values, 2, a);
    make_chain(kv, other, 2, b);
    EXPECT_INT_NE(a[1], b[1]);
    EXPECT_INT_EQ(match_chain(kv, other, 2, found), 2);
    EXPECT_MEM_EQ(found, b, sizeof b);
    kv_cache_destroy(kv);
}

TEST(KvCache, TheEndOfAPrefixIsEvictedBeforeItsBeginning) {
    struct kv_cache *kv = make(3);
    const int32_t values[] = {1, 2, 3};
    int32_t blocks[3], found[3];
    make_chain(kv, values, 3, blocks);
    kv_cache_release(kv, blocks, 3);
    EXPECT_INT_EQ(kv_cache_alloc(kv), blocks[2]);
    EXPECT_INT_EQ(match_chain(kv, values, 3, found), 2);
    kv_cache_release(kv, found, 2);
    EXPECT_INT_EQ(kv_cache_alloc(kv), blocks[1]);
    EXPECT_INT_EQ(kv_cache_alloc(kv), blocks[0]);
    EXPECT_INT_EQ(kv_cache_alloc(kv), KV_NO_BLOCK);
    kv_cache_destroy(kv);
}

TEST(KvCache, TheLeastRecentlyReleasedIsEvictedFirst) {
    struct kv_cache *kv = make(3);
    const int32_t one = 1, two = 2, three = 3;
    int32_t a, b, c, found;
    make_chain(kv, &one, 1, &a);
    make_chain(kv, &two, 1, &b);
    make_chain(kv, &three, 1, &c);
    kv_cache_release(kv, &b, 1);
    kv_cache_release(kv, &a, 1);
    EXPECT_INT_EQ(match_chain(kv, &two, 1, &found), 1);
    kv_cache_release(kv, &b, 1); /* now b is the more recent one */
    EXPECT_INT_EQ(kv_cache_alloc(kv), a);
    EXPECT_INT_EQ(kv_cache_alloc(kv), b);
    kv_cache_destroy(kv);
}

TEST(KvCache, EqualContentIsSharedWhenItIsRegistered) {
    struct kv_cache *kv = make(4);
    const int32_t values[] = {1, 2};
    int32_t a[2], b[2], refs[4] = {0};
    make_chain(kv, values, 2, a);
    make_chain(kv, values, 2, b);
    EXPECT_MEM_EQ(a, b, sizeof a);
    EXPECT_INT_EQ(kv_cache_num_used(kv), 2);
    refs[a[0]] = refs[a[1]] = 2;
    kv_cache_check(kv, refs);
    kv_cache_destroy(kv);
}

TEST(KvCache, ABlockFilledAnewIsNotTakenForItsOldSelf) {
    /* 1-2 is cached; the block of 1 is evicted and refilled with 1 after its child was taken by
     * somebody: the old child must not be found under the new parent's old name. */
    struct kv_cache *kv = make(2);
    const int32_t values[] = {1, 2}, nine = 9;
    int32_t a[2], found[2], b;
    make_chain(kv, values, 2, a);
    kv_cache_release(kv, a, 1); /* the parent alone: cached */
    b = kv_cache_alloc(kv);
    EXPECT_INT_EQ(b, a[0]);
    int32_t tokens[KV_BLOCK_SIZE];
    fill(tokens, nine);
    EXPECT_INT_EQ(kv_cache_register(kv, b, KV_NO_BLOCK, tokens), b);
    const int32_t wrong[] = {9, 2};
    EXPECT_INT_EQ(match_chain(kv, wrong, 2, found), 1);
    EXPECT_INT_EQ(match_chain(kv, values, 2, found), 0);
    kv_cache_destroy(kv);
}

TEST(KvCache, CollidingHashesAreToldApartByTheirTokens) {
    struct kv_cache *kv = kv_cache_create(&(struct kv_cache_options){
        .num_blocks = 64, .enable_prefix_caching = true, .num_buckets = 1});
    int32_t blocks[32][2], found[2];
    for (int32_t i = 0; i < 32; i++)
        make_chain(kv, (int32_t[]){i, 100}, 2, blocks[i]);
    for (int32_t i = 0; i < 32; i++) {
        EXPECT_INT_EQ(match_chain(kv, (int32_t[]){i, 100}, 2, found), 2);
        EXPECT_MEM_EQ(found, blocks[i], sizeof found);
    }
    EXPECT_INT_EQ(match_chain(kv, (int32_t[]){32, 100}, 2, found), 0);
    kv_cache_destroy(kv);
}

TEST(KvCache, ForgottenContentIsNeverFound) {
    struct kv_cache *kv = make(4);
    const int32_t values[] = {1, 2, 3};
    int32_t a[2], found[3], refs[4] = {0};
    make_chain(kv, values, 2, a);
    kv_cache_forget(kv, a, 2);
    EXPECT_INT_EQ(match_chain(kv, values, 2, found), 0);
    /* What grows on a forgotten block is not shared either. */
    int32_t c = kv_cache_alloc(kv), tokens[KV_BLOCK_SIZE];
    fill(tokens, 3);
    EXPECT_INT_EQ(kv_cache_register(kv, c, a[1], tokens), c);
    kv_cache_release(kv, &c, 1);
    kv_cache_release(kv, a, 2);
    EXPECT_INT_EQ(kv_cache_num_used(kv), 0);
    kv_cache_check(kv, refs);
    kv_cache_destroy(kv);
}

TEST(KvCache, WithoutPrefixCachingNothingIsKept) {
    struct kv_cache *kv = kv_cache_create(&(struct kv_cache_options){.num_blocks = 4});
    const int32_t values[] = {1, 2};
    int32_t a[2], b[2], found[2];
    make_chain(kv, values, 2, a);
    make_chain(kv, values, 2, b);
    EXPECT_INT_NE(a[0], b[0]);
    kv_cache_release(kv, a, 2);
    EXPECT_INT_EQ(kv_cache_num_used(kv), 2);
    EXPECT_INT_EQ(match_chain(kv, values, 2, found), 0);
    kv_cache_destroy(kv);
}

/* Random operations against a shadow: per block, the whole content of its prefix as one number
 * sequence. A match must return blocks whose shadow is what was asked for. */
enum { BLOCKS = 24, HOLDERS = 8, DEPTH = 6, OPERATIONS = 30000 };

struct holder {
    int32_t blocks[DEPTH], values[DEPTH], count;
};

struct shadow {
    int32_t values[DEPTH], depth; /* content of the block and those before it */
};

static void check_refs(const struct kv_cache *kv, const struct holder *holders) {
    int32_t refs[BLOCKS] = {0};
    for (int32_t h = 0; h < HOLDERS; h++)
        for (int32_t i = 0; i < holders[h].count; i++)
            refs[holders[h].blocks[i]]++;
    kv_cache_check(kv, refs);
}

/* Lets a holder that has nothing take a random prefix, first from the cache, then by allocation. */
static void acquire(struct kv_cache *kv, struct holder *h, struct shadow *shadow, uint64_t *rng) {
    int32_t depth = 1 + fake_below(rng, DEPTH), tokens[DEPTH * KV_BLOCK_SIZE], peeked_cached;
    for (int32_t i = 0; i < depth; i++) {
        h->values[i] = fake_below(rng, 3);
        fill(tokens + i * KV_BLOCK_SIZE, h->values[i]);
    }
    int32_t peeked = kv_cache_peek(kv, tokens, depth, &peeked_cached);
    int32_t cached_before = kv_cache_num_cached(kv);
    h->count = kv_cache_match(kv, tokens, depth, h->blocks);
    EXPECT_INT_EQ(peeked, h->count);
    EXPECT_INT_EQ(cached_before - kv_cache_num_cached(kv), peeked_cached);
    for (int32_t i = 0; i < h->count; i++) {
        const struct shadow *s = &shadow[h->blocks[i]];
        ASSERT_INT_EQ(s->depth, i + 1);
        ASSERT_MEM_EQ(s->values, h->values, (size_t)(i + 1) * sizeof(int32_t));
    }
    while (h->count < depth) {
        int32_t i = h->count, b = kv_cache_alloc(kv);
        if (b == KV_NO_BLOCK)
            break;
        int32_t kept = kv_cache_register(kv, b, i ? h->blocks[i - 1] : KV_NO_BLOCK,
                                         tokens + i * KV_BLOCK_SIZE);
        shadow[kept].depth = i + 1;
        memcpy(shadow[kept].values, h->values, (size_t)(i + 1) * sizeof(int32_t));
        h->blocks[h->count++] = kept;
    }
}

TEST(KvCache, RandomOperationsKeepEveryBlockAccountedFor) {
    struct kv_cache *kv = make(BLOCKS);
    static struct holder holders[HOLDERS];
    static struct shadow shadow[BLOCKS];
    uint64_t rng = 1;
    memset(holders, 0, sizeof holders);
    for (int32_t n = 0; n < OPERATIONS && !shim_failed(); n++) {
        struct holder *h = &holders[fake_below(&rng, HOLDERS)];
        if (h->count == 0) {
            acquire(kv, h, shadow, &rng);
        } else {
            if (fake_below(&rng, 20) == 0)
                kv_cache_forget(kv, h->blocks, h->count);
            kv_cache_release(kv, h->blocks, h->count);
            h->count = 0;
        }
        check_refs(kv, holders);
    }
    for (int32_t i = 0; i < HOLDERS; i++)
        kv_cache_release(kv, holders[i].blocks, holders[i].count);
    EXPECT_INT_EQ(kv_cache_num_used(kv), kv_cache_num_cached(kv));
    kv_cache_destroy(kv);
}
