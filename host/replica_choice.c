#include "host/replica_choice.h"

#include <math.h>
#include <stdlib.h>

#include "host/batch.h"
#include "host/error.h"
#include "host/mem.h"
#include "host/prefix_index.h"

enum {
    NUM_BUCKETS = 1024,
    MAX_BITS = 32,
    FIRST_MEAN_TOKENS = 128, /* of an answer, before any has ended */
    MEAN_OF_ANSWERS = 32,    /* of late: the weight of one is 1 in this */
};

/* A request that a replica has. */
struct flight {
    struct flight *next; /* in its bucket */
    uint64_t handle;
    struct replica_pick cost; /* what it still counts for */
};

struct replica_choice {
    int32_t num_replicas;
    struct replica {
        struct prefix_index *prefixes; /* owned; NULL: no prefix cache */
        int64_t load;
    } replica[MAX_BITS];
    int32_t turn; /* who is next of equals */
    double mean_tokens;
    struct flight *flights[NUM_BUCKETS];
    uint64_t *hashes; /* [num_hashes] blocks of the prompt that was picked for last; owned */
    int32_t num_hashes, max_hashes;
};

struct replica_choice *replica_choice_create(int32_t num_replicas, const int32_t *prefix_blocks) {
    CHECK(num_replicas >= 1 && num_replicas <= MAX_BITS, "%d replicas", num_replicas);
    struct replica_choice *c = xcalloc(1, sizeof *c);
    c->num_replicas = num_replicas;
    c->mean_tokens = FIRST_MEAN_TOKENS;
    for (int32_t i = 0; i < num_replicas; i++)
        if (prefix_blocks[i] > 0)
            c->replica[i].prefixes = prefix_index_create(prefix_blocks[i]);
    return c;
}

void replica_choice_destroy(struct replica_choice *c) {
    if (!c)
        return;
    for (int32_t i = 0; i < c->num_replicas; i++)
        prefix_index_destroy(c->replica[i].prefixes);
    for (int32_t i = 0; i < NUM_BUCKETS; i++)
        while (c->flights[i]) {
            struct flight *f = c->flights[i];
            c->flights[i] = f->next;
            free(f);
        }
    free(c->hashes);
    free(c);
}

int64_t replica_choice_load(const struct replica_choice *c, int32_t replica) {
    return c->replica[replica].load;
}

/* ---- picking --------------------------------------------------------------------------------- */

static void hash_prompt(struct replica_choice *c, const struct request_params *p) {
    c->num_hashes = p->num_tokens / KV_BLOCK_SIZE;
    if (c->num_hashes > c->max_hashes) {
        c->max_hashes = c->num_hashes;
        c->hashes = xrealloc(c->hashes, (size_t)c->max_hashes * sizeof *c->hashes);
    }
    prefix_hashes(p->tokens, c->num_hashes, c->hashes);
}

/* Prompt tokens that the replica's prefix cache should have. One token at least is computed, and
 * all are where their logprobs are wanted. */
static int32_t cached_tokens(const struct replica_choice *c, int32_t replica,
                             const struct request_params *p) {
    const struct prefix_index *prefixes = c->replica[replica].prefixes;
    if (!prefixes || p->prompt_logprobs >= 0)
        return 0;
    int32_t most = (p->num_tokens - 1) / KV_BLOCK_SIZE;
    return prefix_index_match(prefixes, c->hashes, most) * KV_BLOCK_SIZE;
}

static int32_t expected_tokens(const struct replica_choice *c, const struct request_params *p) {
    int32_t mean = (int32_t)lround(c->mean_tokens);
    return p->max_tokens > 0 && p->max_tokens < mean ? p->max_tokens : mean;
}

struct replica_pick replica_choice_pick(struct replica_choice *c, const struct request_params *p,
                                        uint32_t open) {
    struct replica_pick best = {.replica = -1};
    int64_t lowest = INT64_MAX;
    hash_prompt(c, p);
    for (int32_t i = 0; i < c->num_replicas; i++) {
        int32_t r = (c->turn + i) % c->num_replicas;
        if (!(open >> r & 1))
            continue;
        int32_t to_compute = p->num_tokens - cached_tokens(c, r, p);
        int64_t cost = c->replica[r].load + to_compute;
        if (cost < lowest) {
            lowest = cost;
            best = (struct replica_pick){r, to_compute, expected_tokens(c, p)};
        }
    }
    CHECK(best.replica >= 0, "no replica to pick from: %x of %d", open, c->num_replicas);
    return best;
}

/* ---- what became of it ----------------------------------------------------------------------- */

static struct flight **find_flight(struct replica_choice *c, uint64_t handle) {
    struct flight **link = &c->flights[handle % NUM_BUCKETS];
    while (*link && (*link)->handle != handle)
        link = &(*link)->next;
    return link;
}

void replica_choice_add(struct replica_choice *c, const struct replica_pick *pick,
                        uint64_t handle) {
    struct replica *r = &c->replica[pick->replica];
    struct flight *f = xcalloc(1, sizeof *f);
    struct flight **bucket = &c->flights[handle % NUM_BUCKETS];
    *f = (struct flight){.next = *bucket, .handle = handle, .cost = *pick};
    *bucket = f;
    r->load += pick->prompt_tokens + pick->generated_tokens;
    if (r->prefixes)
        prefix_index_note(r->prefixes, c->hashes, c->num_hashes);
    c->turn = (pick->replica + 1) % c->num_replicas;
}

void replica_choice_on_event(struct replica_choice *c, const struct engine_event *e) {
    struct flight **link = find_flight(c, e->request), *f = *link;
    if (!f)
        return;
    c->replica[f->cost.replica].load -= f->cost.prompt_tokens;
    f->cost.prompt_tokens = 0;
    if (e->kind == EVENT_TOKEN)
        return;
    if (e->kind == EVENT_DONE && e->finish_reason != FINISH_CANCELLED)
        c->mean_tokens += (e->completion_tokens - c->mean_tokens) / MEAN_OF_ANSWERS;
    c->replica[f->cost.replica].load -= f->cost.generated_tokens;
    *link = f->next;
    free(f);
}
