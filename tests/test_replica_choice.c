/* Which replica a request goes to, and the index of prefixes behind it: pure logic, no engine.
 * Prompts count up from a number, so those that begin with another one share no block. */
#include <string.h>

#include "host/batch.h"
#include "host/prefix_index.h"
#include "host/replica_choice.h"
#include "tests/fake_model.h"
#include "tests/shim.h"

enum { MEAN = 128, MAX_PROMPT = 400, NO_CACHE = 0 };

/* ---- prefix_index ---------------------------------------------------------------------------- */

TEST(PrefixIndex, AHashStandsForAllTokensBeforeIt) {
    int32_t tokens[3 * KV_BLOCK_SIZE] = {0};
    uint64_t zeros[3], changed[3];
    prefix_hashes(tokens, 3, zeros);
    EXPECT_TRUE(zeros[0] != zeros[1] && zeros[1] != zeros[2] && zeros[0] != zeros[2]);
    tokens[KV_BLOCK_SIZE] = 1;
    prefix_hashes(tokens, 3, changed);
    EXPECT_TRUE(changed[0] == zeros[0] && changed[1] != zeros[1] && changed[2] != zeros[2]);
}

TEST(PrefixIndex, MatchesUpToTheFirstUnknownBlock) {
    static const uint64_t chain[] = {11, 12, 13, 14, 15};
    struct prefix_index *x = prefix_index_create(8);
    EXPECT_INT_EQ(prefix_index_match(x, chain, 5), 0);
    prefix_index_note(x, chain, 3);
    EXPECT_INT_EQ(prefix_index_match(x, chain, 5), 3);
    EXPECT_INT_EQ(prefix_index_match(x, chain, 2), 2);
    EXPECT_INT_EQ(prefix_index_match(x, chain + 3, 2), 0);
    prefix_index_note(x, chain + 4, 1);
    EXPECT_INT_EQ(prefix_index_match(x, chain, 5), 3);
    prefix_index_destroy(x);
}

TEST(PrefixIndex, ForgetsEndsOfTheLeastRecentlyUsedFirst) {
    static const uint64_t a[] = {1, 2, 3}, b[] = {101, 102}, c[] = {201, 202};
    struct prefix_index *x = prefix_index_create(5);
    prefix_index_note(x, a, 3);
    prefix_index_note(x, b, 2);
    prefix_index_note(x, a, 1); /* its first block is in use again */
    prefix_index_note(x, c, 2); /* takes the places of a's ends */
    EXPECT_INT_EQ(prefix_index_match(x, a, 3), 1);
    EXPECT_INT_EQ(prefix_index_match(x, b, 2), 2);
    EXPECT_INT_EQ(prefix_index_match(x, c, 2), 2);
    prefix_index_destroy(x);
}

TEST(PrefixIndex, APromptLargerThanTheIndexKeepsItsBeginning) {
    uint64_t chain[9];
    struct prefix_index *x = prefix_index_create(4);
    for (int32_t i = 0; i < 9; i++)
        chain[i] = (uint64_t)i * 16; /* all in one bucket */
    prefix_index_note(x, chain, 9);
    EXPECT_INT_EQ(prefix_index_match(x, chain, 9), 4);
    prefix_index_destroy(x);
}

/* Against a list that is searched from end to end. */
TEST(PrefixIndex, IsALeastRecentlyUsedList) {
    enum { ROOM = 7, NUMBERS = 13 };
    uint64_t list[ROOM + 1], rng = 5; /* the most recently used first */
    int32_t len = 0;
    struct prefix_index *x = prefix_index_create(ROOM);
    for (int32_t round = 0; round < 5000; round++) {
        uint64_t hash = 1 + (uint64_t)fake_below(&rng, NUMBERS) * 16, present = 0;
        int32_t at = 0;
        while (at < len && list[at] != hash)
            at++;
        present = at < len;
        if (!EXPECT_INT_EQ(prefix_index_match(x, &hash, 1), present))
            break;
        if (!present)
            at = len == ROOM ? ROOM - 1 : len++;
        memmove(list + 1, list, (size_t)at * sizeof *list);
        list[0] = hash;
        prefix_index_note(x, &hash, 1);
    }
    prefix_index_destroy(x);
}

/* ---- replica_choice -------------------------------------------------------------------------- */

static int32_t prompt[MAX_PROMPT];

static struct request_params ask(int32_t first_token, int32_t num_tokens, int32_t max_tokens) {
    struct request_params p;
    request_params_default(&p);
    for (int32_t i = 0; i < num_tokens; i++)
        prompt[i] = first_token + i;
    p.tokens = prompt;
    p.num_tokens = num_tokens;
    p.max_tokens = max_tokens;
    return p;
}

static struct replica_choice *make(int32_t num_replicas, int32_t prefix_blocks) {
    int32_t blocks[MAX_REPLICAS];
    for (int32_t i = 0; i < num_replicas; i++)
        blocks[i] = prefix_blocks;
    return replica_choice_create(num_replicas, blocks);
}

static const uint32_t ALL = 0xffff;

/* Picks and adds; returns the replica. */
static int32_t send_to(struct replica_choice *c, const struct request_params *p, uint32_t open,
                       uint64_t handle) {
    struct replica_pick pick = replica_choice_pick(c, p, open);
    replica_choice_add(c, &pick, handle);
    return pick.replica;
}

static void end(struct replica_choice *c, uint64_t handle, enum finish_reason reason,
                int32_t tokens) {
    struct engine_event e = {
        .kind = EVENT_DONE,
        .request = handle,
        .finish_reason = reason,
        .completion_tokens = tokens,
    };
    replica_choice_on_event(c, &e);
}

TEST(ReplicaChoice, EqualsTakeTurns) {
    struct replica_choice *c = make(3, NO_CACHE);
    struct request_params p = ask(0, 20, 4);
    for (uint64_t i = 0; i < 9; i++)
        EXPECT_INT_EQ(send_to(c, &p, ALL & 7, i), (int32_t)(i % 3));
    for (uint64_t i = 0; i < 9; i++)
        end(c, i, FINISH_LENGTH, 4);
    EXPECT_INT_EQ(send_to(c, &p, ALL & 7, 9), 0);
    end(c, 9, FINISH_LENGTH, 4);
    EXPECT_INT_EQ(send_to(c, &p, ALL & 7, 10), 1); /* also when nothing else runs */
    replica_choice_destroy(c);
}

TEST(ReplicaChoice, OutstandingArePromptsAndWhatIsExpectedOfAnswers) {
    struct replica_choice *c = make(2, NO_CACHE);
    struct request_params p = ask(0, 300, 1000);
    const struct engine_event token = {.kind = EVENT_TOKEN, .request = 1};
    EXPECT_INT_EQ(send_to(c, &p, 1, 1), 0);
    EXPECT_INT_EQ(replica_choice_load(c, 0), 300 + MEAN);
    replica_choice_on_event(c, &token);
    EXPECT_INT_EQ(replica_choice_load(c, 0), MEAN);
    replica_choice_on_event(c, &token);
    EXPECT_INT_EQ(replica_choice_load(c, 0), MEAN);
    p = ask(0, 50, 9);
    send_to(c, &p, 2, 2);
    EXPECT_INT_EQ(replica_choice_load(c, 1), 50 + 9);
    end(c, 2, FINISH_CANCELLED, 0); /* before its first token */
    EXPECT_INT_EQ(replica_choice_load(c, 1), 0);
    end(c, 1, FINISH_CANCELLED, 2);
    EXPECT_INT_EQ(replica_choice_load(c, 0), 0);
    end(c, 1, FINISH_LENGTH, 2); /* not known any more */
    EXPECT_INT_EQ(replica_choice_load(c, 0), 0);
    replica_choice_destroy(c);
}

TEST(ReplicaChoice, AFailedRequestCountsNoMore) {
    struct replica_choice *c = make(2, NO_CACHE);
    struct request_params p = ask(0, 30, 7);
    const struct engine_event failed = {.kind = EVENT_ERROR, .request = 5};
    send_to(c, &p, 1, 5);
    replica_choice_on_event(c, &failed);
    EXPECT_INT_EQ(replica_choice_load(c, 0), 0);
    replica_choice_destroy(c);
}

TEST(ReplicaChoice, ExpectsAnswersAsLongAsThoseOfLate) {
    struct replica_choice *c = make(1, NO_CACHE);
    struct request_params p = ask(0, 10, 5000);
    for (uint64_t i = 0; i < 300; i++) {
        send_to(c, &p, 1, i);
        end(c, i, FINISH_STOP, 1000);
    }
    struct replica_pick pick = replica_choice_pick(c, &p, 1);
    EXPECT_NEAR(pick.generated_tokens, 1000, 1);
    for (uint64_t i = 0; i < 300; i++) { /* cancelled: not as long as it would have been */
        send_to(c, &p, 1, i);
        end(c, i, FINISH_CANCELLED, 1);
    }
    EXPECT_INT_EQ(replica_choice_pick(c, &p, 1).generated_tokens, pick.generated_tokens);
    replica_choice_destroy(c);
}

TEST(ReplicaChoice, ALongPromptOutweighsManyShortOnes) {
    struct replica_choice *c = make(2, NO_CACHE);
    struct request_params p = ask(0, 400, 10);
    EXPECT_INT_EQ(send_to(c, &p, ALL & 3, 1), 0);
    p = ask(0, 30, 10);
    for (uint64_t i = 0; i < 10; i++) /* 10 x 40 tokens are less than 410 */
        EXPECT_INT_EQ(send_to(c, &p, ALL & 3, 2 + i), 1);
    p = ask(0, 30, 1);
    EXPECT_INT_EQ(send_to(c, &p, ALL & 3, 20), 1);
    EXPECT_INT_EQ(send_to(c, &p, ALL & 3, 21), 0);
    replica_choice_destroy(c);
}

TEST(ReplicaChoice, APrefixIsFollowedUntilTheDetourCostsMore) {
    enum { SHARED = 96, TAIL = 5, ANSWER = 3 };
    struct replica_choice *c = make(3, 64);
    struct request_params p = ask(0, SHARED, ANSWER);
    EXPECT_INT_EQ(send_to(c, &p, ALL & 2, 1), 1);
    end(c, 1, FINISH_LENGTH, ANSWER);
    for (int32_t i = 0; i < 40; i++) {
        int64_t behind = replica_choice_load(c, 1); /* the others have nothing to do */
        p = ask(0, SHARED + TAIL, ANSWER);
        for (int32_t j = 0; j < TAIL; j++)
            prompt[SHARED + j] = 1000 + i;
        struct replica_pick pick = replica_choice_pick(c, &p, ALL & 7);
        if (behind < SHARED) {
            EXPECT_INT_EQ(pick.replica, 1);
            EXPECT_INT_EQ(pick.prompt_tokens, TAIL);
            EXPECT_INT_EQ(pick.generated_tokens, ANSWER);
        } else {
            EXPECT_INT_NE(pick.replica, 1);
            EXPECT_INT_EQ(pick.prompt_tokens, SHARED + TAIL);
            EXPECT_INT_EQ(i, SHARED / (TAIL + ANSWER));
            break;
        }
        replica_choice_add(c, &pick, 100 + (uint64_t)i);
    }
    replica_choice_destroy(c);
}

TEST(ReplicaChoice, TheLastTokenIsNeverCached) {
    struct replica_choice *c = make(2, 64);
    struct request_params p = ask(0, 3 * KV_BLOCK_SIZE, 1);
    send_to(c, &p, 1, 1);
    end(c, 1, FINISH_LENGTH, 1);
    EXPECT_INT_EQ(replica_choice_pick(c, &p, 1).prompt_tokens, KV_BLOCK_SIZE);
    p.prompt_logprobs = 0; /* every row of the prompt is computed */
    EXPECT_INT_EQ(replica_choice_pick(c, &p, 1).prompt_tokens, 3 * KV_BLOCK_SIZE);
    p = ask(0, 3 * KV_BLOCK_SIZE + 1, 1);
    EXPECT_INT_EQ(replica_choice_pick(c, &p, 1).prompt_tokens, 1);
    replica_choice_destroy(c);
}

TEST(ReplicaChoice, WithoutAPrefixCacheNothingIsFollowed) {
    struct replica_choice *c = make(2, NO_CACHE);
    struct request_params p = ask(0, 200, 1);
    for (uint64_t i = 0; i < 4; i++) {
        EXPECT_INT_EQ(send_to(c, &p, ALL & 3, i), (int32_t)(i % 2));
        end(c, i, FINISH_LENGTH, 1);
    }
    replica_choice_destroy(c);
}

TEST(ReplicaChoice, OnlyOpenReplicasAreGivenAnything) {
    struct replica_choice *c = make(5, 64);
    struct request_params p = ask(0, 100, 1);
    uint64_t rng = 3;
    for (uint64_t i = 0; i < 200; i++) {
        uint32_t open = 1 + (uint32_t)fake_below(&rng, 31);
        EXPECT_TRUE(open >> send_to(c, &p, open, i) & 1);
    }
    replica_choice_destroy(c);
}
