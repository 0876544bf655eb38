/* grammar_match: the automaton of a grammar made deterministic as it is walked.
 *
 * A place is a state and a stack of the states to return to. Stacks are linked from the top down
 * and kept once each, so that they are compared by number. A position is a list of places; it is
 * kept once, too, with a row of the positions that follow it, by class of bytes. The order of
 * places in a position is that in which edges were added, so it does not depend on what was met
 * before.
 *
 * A string whose characters are counted comes to a new position with each of them. Far from its
 * bounds they all allow the same short tokens: those are looked up once, for the first position of
 * the kind, and only the few long tokens are walked each time.
 */
#include "host/grammar_match.h"

#include <stdlib.h>
#include <string.h>

#include "host/grammar_internal.h"
#include "host/mem.h"
#include "host/tokenizer_internal.h"

enum {
    MAX_PLACES = GRAMMAR_MAX_PLACES,
    MAX_KNOWN_BYTES = 2 << 20, /* of positions and stacks of one grammar, */
    MATCHER_BYTES = 512 << 10, /* and for each matcher in it, as what one forgets all must remake */
    MAX_MASK_BYTES = 2 << 20,  /* and of its masks */
    MAX_IDLE = 8,              /* grammars that are remembered without a matcher */
    MAX_ALIKE_PLACES = 512,    /* of positions that are looked up by another */
    NOWHERE = -2,              /* the position behind a byte that is not allowed */
    UNKNOWN = -1,
    SEEN_SLOTS = 4 * MAX_PLACES,
    MASK_WORK = 50000,       /* edges that a matcher may look at for each mask, */
    MAX_WORK_LEFT = 8000000, /* and those that it may have left over, and starts with */
};

struct point {
    int32_t state, stack; /* stack -1: empty */
};

struct stack_node {
    int32_t below, state, depth; /* depth: 1 for the lowest one */
};

struct position {
    int32_t first_place, num_places;
    int32_t mask;  /* number of its mask; -1: none yet */
    int32_t alike; /* the position that short tokens are looked up for, whose mask has them alone;
                      UNKNOWN until asked, NOWHERE where there is none and the mask is whole */
    bool can_end;
};

/* Keys to numbers, by open addressing; the keys lie with the numbers. */
struct index {
    int32_t *slots; /* owned; -1: empty */
    uint32_t size;  /* a power of two */
};

/* What is known of one grammar. */
struct known {
    struct known *next; /* in the pool's list, the last used first */
    struct grammar_pool *pool;
    struct grammar *grammar;          /* a reference */
    struct grammar_matcher *matchers; /* those that stand in it */
    int32_t num_matchers;
    struct stack_node *stacks; /* owned, as all below */
    struct position *positions;
    struct point *places;   /* of all positions */
    int32_t *next_by_class; /* [num_positions, num_classes] */
    int32_t num_stacks, max_stacks, num_positions, max_positions, num_places, max_places;
    struct index stack_index, position_index;
    uint32_t *masks;      /* [num_masks, words] */
    int32_t *mask_counts; /* [num_masks] */
    int32_t num_masks, max_masks;
};

struct grammar_matcher {
    struct known *known;
    struct grammar_matcher *prev, *next;
    int64_t work_left; /* edges that it may look at, from the next mask on */
    int32_t position;
};

struct grammar_pool {
    int32_t vocab_size;
    struct trie_text *texts;                     /* owned; as the trie has them */
    struct token_trie short_tokens, long_tokens; /* up to GRAMMAR_ALIKE_CHARS bytes, and longer */
    struct known *known;
    int32_t walk[TRIE_MAX_DEPTH + 1]; /* positions behind the bytes of a token under way */
    int32_t walk_depth;               /* how many of them count */
    /* A position that is being made. */
    struct point made[MAX_PLACES];
    int32_t num_made;
    bool made_can_end;
    struct point todo[MAX_PLACES]; /* places whose empty edges are still to be followed */
    uint32_t seen[SEEN_SLOTS];     /* generation in which a slot was taken */
    struct point seen_places[SEEN_SLOTS];
    uint32_t generation;
    int32_t num_seen;
    int64_t work_left; /* for the mask under way: edges that may still be looked at */
};

/* ---- tables ---- */

static uint32_t mix(uint32_t h) {
    h = (h ^ (h >> 16)) * 0x7feb352du;
    h = (h ^ (h >> 15)) * 0x846ca68bu;
    return h ^ (h >> 16);
}

static uint32_t hash_stack(int32_t below, int32_t state) {
    return mix((uint32_t)below * 0x9e3779b9u + mix((uint32_t)state));
}

static uint32_t hash_places(const struct point *places, int32_t n) {
    uint32_t h = (uint32_t)n;
    for (int32_t i = 0; i < n; i++)
        h = mix(h * 31 + hash_stack(places[i].stack, places[i].state));
    return h;
}

static void index_init(struct index *x, uint32_t size) {
    x->size = size;
    x->slots = xrealloc(x->slots, size * sizeof *x->slots);
    memset(x->slots, 0xff, size * sizeof *x->slots);
}

static void index_put(struct index *x, uint32_t hash, int32_t number) {
    uint32_t slot = hash & (x->size - 1);
    while (x->slots[slot] >= 0)
        slot = (slot + 1) & (x->size - 1);
    x->slots[slot] = number;
}

static void *grow(void *array, int32_t num, int32_t *max, size_t size) {
    if (num <= *max)
        return array;
    while (*max < num)
        *max = *max ? 2 * *max : 256;
    return xrealloc(array, (size_t)*max * size);
}

/* The number of a stack; depth is below the limit. */
static int32_t push(struct known *k, int32_t below, int32_t state) {
    uint32_t hash = hash_stack(below, state), mask = k->stack_index.size - 1;
    for (uint32_t slot = hash & mask; k->stack_index.slots[slot] >= 0; slot = (slot + 1) & mask) {
        const struct stack_node *n = &k->stacks[k->stack_index.slots[slot]];
        if (n->below == below && n->state == state)
            return k->stack_index.slots[slot];
    }
    k->stacks = grow(k->stacks, k->num_stacks + 1, &k->max_stacks, sizeof *k->stacks);
    int32_t depth = below < 0 ? 0 : k->stacks[below].depth;
    k->stacks[k->num_stacks] = (struct stack_node){below, state, depth + 1};
    if (2 * (uint32_t)(k->num_stacks + 1) > k->stack_index.size) {
        index_init(&k->stack_index, 2 * k->stack_index.size);
        for (int32_t i = 0; i < k->num_stacks; i++)
            index_put(&k->stack_index, hash_stack(k->stacks[i].below, k->stacks[i].state), i);
    }
    index_put(&k->stack_index, hash, k->num_stacks);
    return k->num_stacks++;
}

static uint32_t hash_of_position(const struct known *k, int32_t i) {
    const struct position *p = &k->positions[i];
    return hash_places(k->places + p->first_place, p->num_places) + p->can_end;
}

/* The number of the position that was made. */
static int32_t keep_position(struct known *k) {
    struct grammar_pool *p = k->pool;
    uint32_t hash = hash_places(p->made, p->num_made) + p->made_can_end;
    uint32_t mask = k->position_index.size - 1;
    size_t bytes = (size_t)p->num_made * sizeof *p->made;
    if (p->num_made == 0 && !p->made_can_end)
        return NOWHERE;
    for (uint32_t slot = hash & mask; k->position_index.slots[slot] >= 0;
         slot = (slot + 1) & mask) {
        const struct position *q = &k->positions[k->position_index.slots[slot]];
        if (q->num_places == p->num_made && q->can_end == p->made_can_end &&
            !memcmp(k->places + q->first_place, p->made, bytes))
            return k->position_index.slots[slot];
    }
    int32_t number = k->num_positions, classes = k->grammar->num_classes, max = k->max_positions;
    k->positions = grow(k->positions, number + 1, &k->max_positions, sizeof *k->positions);
    if (k->max_positions > max)
        k->next_by_class = xrealloc(k->next_by_class, (size_t)k->max_positions * (size_t)classes *
                                                          sizeof *k->next_by_class);
    memset(k->next_by_class + (size_t)number * (size_t)classes, 0xff,
           (size_t)classes * sizeof *k->next_by_class);
    k->places = grow(k->places, k->num_places + p->num_made, &k->max_places, sizeof *k->places);
    if (bytes > 0)
        memcpy(k->places + k->num_places, p->made, bytes);
    k->positions[number] =
        (struct position){k->num_places, p->num_made, -1, UNKNOWN, p->made_can_end};
    k->num_places += p->num_made;
    k->num_positions++;
    if (2 * (uint32_t)k->num_positions > k->position_index.size) {
        index_init(&k->position_index, 2 * k->position_index.size);
        for (int32_t i = 0; i < number; i++)
            index_put(&k->position_index, hash_of_position(k, i), i);
    }
    index_put(&k->position_index, hash, number);
    return number;
}

/* ---- positions ---- */

static void begin_position(struct grammar_pool *p) {
    p->num_made = p->num_seen = 0;
    p->made_can_end = false;
    if (++p->generation == 0) {
        memset(p->seen, 0, sizeof p->seen);
        p->generation = 1;
    }
}

/* Marks a place; false when it was seen, or is one too many. */
static bool see(struct grammar_pool *p, struct point place) {
    uint32_t slot = hash_stack(place.stack, place.state) % SEEN_SLOTS;
    for (; p->seen[slot] == p->generation; slot = (slot + 1) % SEEN_SLOTS)
        if (p->seen_places[slot].state == place.state && p->seen_places[slot].stack == place.stack)
            return false;
    if (p->num_seen == SEEN_SLOTS / 2)
        return false;
    p->num_seen++;
    p->seen[slot] = p->generation;
    p->seen_places[slot] = place;
    return true;
}

static int32_t depth_of(const struct known *k, int32_t stack) {
    return stack < 0 ? 0 : k->stacks[stack].depth;
}

/* Can a document still come to its end, within the depth, from this state? */
static bool can_finish(const struct known *k, int32_t state, int32_t stack) {
    return depth_of(k, stack) + k->grammar->height[state] <= GRAMMAR_MAX_DEPTH;
}

/* Adds a place and those that it reaches without a byte, in the order of their edges. Only places
 * with bytes to read are kept. */
static void add_place(struct known *k, int32_t state, int32_t stack) {
    const struct grammar *g = k->grammar;
    struct grammar_pool *p = k->pool;
    int32_t num_todo = 0;
    p->todo[num_todo++] = (struct point){state, stack};
    while (num_todo > 0) {
        struct point at = p->todo[--num_todo];
        bool reads = false;
        p->work_left -= 1 + g->first_edge[at.state + 1] - g->first_edge[at.state];
        if (!can_finish(k, at.state, at.stack) || !see(p, at))
            continue;
        if (g->ends[at.state]) {
            if (at.stack < 0)
                p->made_can_end = true;
            else if (num_todo < MAX_PLACES)
                p->todo[num_todo++] =
                    (struct point){k->stacks[at.stack].state, k->stacks[at.stack].below};
        }
        /* The last edge first, so that the first one is taken from the list first. */
        for (int32_t i = g->first_edge[at.state + 1] - 1; i >= g->first_edge[at.state]; i--) {
            const struct grammar_edge *e = &g->edges[i];
            struct point next = {e->target, at.stack};
            if (e->kind == EDGE_BYTES) {
                reads = true;
                continue;
            }
            if (e->kind == EDGE_CALL) {
                if (depth_of(k, at.stack) >= GRAMMAR_MAX_DEPTH ||
                    !can_finish(k, e->target, at.stack))
                    continue;
                next = (struct point){g->start[e->rule], push(k, at.stack, e->target)};
            }
            if (num_todo < MAX_PLACES)
                p->todo[num_todo++] = next;
        }
        if (reads && p->num_made < MAX_PLACES)
            p->made[p->num_made++] = at;
    }
}

static int32_t first_position(struct known *k) {
    begin_position(k->pool);
    add_place(k, k->grammar->start[0], -1);
    return keep_position(k);
}

/* Forgets all that is known but the places where matchers and the walk stand. */
static void forget(struct known *k);

static size_t known_bytes(const struct known *k) {
    return (size_t)k->num_positions *
               (sizeof *k->positions + (size_t)k->grammar->num_classes * sizeof(int32_t)) +
           (size_t)k->num_places * sizeof *k->places + (size_t)k->num_stacks * sizeof *k->stacks;
}

static bool knows_too_much(const struct known *k) {
    return known_bytes(k) > MAX_KNOWN_BYTES + (size_t)k->num_matchers * MATCHER_BYTES;
}

/* The position behind a byte. The numbers of positions may change, those in the pool's walk and in
 * matchers with them: `from` is the place where the number of the old one is found. */
static int32_t make_next(struct known *k, const int32_t *from, uint8_t byte) {
    const struct grammar *g = k->grammar;
    if (knows_too_much(k))
        forget(k);
    const struct position old = k->positions[*from];
    begin_position(k->pool);
    for (int32_t i = 0; i < old.num_places; i++) {
        struct point at = k->places[old.first_place + i];
        k->pool->work_left -= 1 + g->first_edge[at.state + 1] - g->first_edge[at.state];
        for (int32_t e = g->first_edge[at.state]; e < g->first_edge[at.state + 1]; e++) {
            const struct grammar_edge *edge = &g->edges[e];
            if (edge->kind == EDGE_BYTES && byte >= edge->low && byte <= edge->high)
                add_place(k, edge->target, at.stack);
        }
    }
    int32_t next = keep_position(k);
    k->next_by_class[(size_t)*from * (size_t)g->num_classes + g->class_of[byte]] = next;
    return next;
}

static inline int32_t next_position(struct known *k, const int32_t *from, uint8_t byte) {
    int32_t next = k->next_by_class[(size_t)*from * (size_t)k->grammar->num_classes +
                                    k->grammar->class_of[byte]];
    return next == UNKNOWN ? make_next(k, from, byte) : next;
}

/* ---- forgetting ---- */

/* A position outside of the tables. */
struct saved {
    int32_t *number;      /* where its number stands */
    struct buffer states; /* of each place: its state, depth, and the stack from the top */
    bool can_end;
};

static void save_position(const struct known *k, int32_t *number, struct saved *out) {
    const struct position *p = &k->positions[*number];
    *out = (struct saved){.number = number, .can_end = p->can_end};
    for (int32_t i = 0; i < p->num_places; i++) {
        struct point at = k->places[p->first_place + i];
        int32_t head[2] = {at.state, depth_of(k, at.stack)};
        buffer_append(&out->states, head, sizeof head);
        for (int32_t s = at.stack; s >= 0; s = k->stacks[s].below)
            buffer_append(&out->states, &k->stacks[s].state, sizeof(int32_t));
    }
}

static void restore_position(struct known *k, struct saved *saved) {
    struct grammar_pool *p = k->pool;
    const int32_t *at = (const int32_t *)(const void *)saved->states.data;
    const int32_t *end = at + saved->states.len / sizeof *at;
    p->num_made = 0;
    p->made_can_end = saved->can_end;
    while (at < end) {
        int32_t state = at[0], depth = at[1], stack = -1;
        for (int32_t d = depth; d > 0; d--)
            stack = push(k, stack, at[1 + d]);
        p->made[p->num_made++] = (struct point){state, stack};
        at += 2 + depth;
    }
    *saved->number = keep_position(k);
    buffer_deinit(&saved->states);
}

static void clear_tables(struct known *k) {
    k->num_stacks = k->num_positions = k->num_places = k->num_masks = 0;
    index_init(&k->stack_index, 256);
    index_init(&k->position_index, 256);
}

static void forget(struct known *k) {
    struct grammar_pool *p = k->pool;
    int32_t count = p->walk_depth, n = 0;
    for (struct grammar_matcher *m = k->matchers; m; m = m->next)
        count++;
    struct saved *saved = xcalloc((size_t)count + 1, sizeof *saved);
    for (int32_t i = 0; i < p->walk_depth; i++)
        save_position(k, &p->walk[i], &saved[n++]);
    for (struct grammar_matcher *m = k->matchers; m; m = m->next)
        save_position(k, &m->position, &saved[n++]);
    clear_tables(k);
    for (int32_t i = 0; i < n; i++)
        restore_position(k, &saved[i]);
    free(saved);
}

/* ---- masks ---- */

static size_t words_of(const struct grammar_pool *p) {
    return grammar_mask_words(p->vocab_size);
}

/* A place with the first of the states that are alike, at the top of its stack, too, where a
 * character of several bytes is called from a string. Where calls nest as deep as they may, it
 * matters which state is how far from its end. */
static struct point alike_place(struct known *k, struct point at) {
    const int32_t *alike = k->grammar->alike;
    int32_t depth = depth_of(k, at.stack);
    if (alike[at.state] >= 0 && depth < GRAMMAR_MAX_DEPTH)
        at.state = alike[at.state];
    if (depth > 0 && alike[k->stacks[at.stack].state] >= 0)
        at.stack = push(k, k->stacks[at.stack].below, alike[k->stacks[at.stack].state]);
    return at;
}

static bool is_alike(const struct known *k, struct point at) {
    const int32_t *alike = k->grammar->alike;
    return (alike[at.state] >= 0 && depth_of(k, at.stack) < GRAMMAR_MAX_DEPTH) ||
           (at.stack >= 0 && alike[k->stacks[at.stack].state] >= 0);
}

/* The position that stands for one within a counted string; NOWHERE: it is not in one. */
static int32_t find_alike(struct known *k, const struct position *of) {
    struct grammar_pool *p = k->pool;
    bool any = false;
    if (of->num_places > MAX_ALIKE_PLACES)
        return NOWHERE;
    begin_position(p);
    p->work_left -= of->num_places;
    for (int32_t i = 0; i < of->num_places; i++) {
        struct point at = k->places[of->first_place + i], like = alike_place(k, at);
        any |= is_alike(k, at);
        if (see(p, like))
            p->made[p->num_made++] = like;
    }
    p->made_can_end = of->can_end;
    return any ? keep_position(k) : NOWHERE;
}

/* Adds what may follow the position in walk[0], from a tree of tokens; returns how many. Negative:
 * the work for this mask is used up. */
static int32_t add_tokens(struct known *k, const struct token_trie *t, uint32_t *mask) {
    struct grammar_pool *p = k->pool;
    int32_t count = 0;
    for (uint32_t i = 0; i < (uint32_t)t->num_nodes && p->work_left >= 0;) {
        const struct trie_node *node = &t->nodes[i];
        p->walk_depth = node->depth + 1;
        int32_t next = next_position(k, &p->walk[node->depth], node->byte);
        if (next == NOWHERE) {
            i = node->skip;
            continue;
        }
        p->walk[node->depth + 1] = next;
        for (uint32_t at = node->first_token; at < node[1].first_token; at++) {
            mask[t->tokens[at] / 32] |= 1u << (t->tokens[at] % 32);
            count++;
        }
        i++;
    }
    p->walk_depth = 0;
    return p->work_left >= 0 ? count : -1;
}

static void keep_mask(struct known *k, int32_t position, const uint32_t *mask, int32_t count) {
    size_t words = words_of(k->pool), bytes = words * sizeof *mask;
    if ((size_t)k->num_masks * bytes >= MAX_MASK_BYTES) {
        for (int32_t i = 0; i < k->num_positions; i++)
            k->positions[i].mask = -1;
        k->num_masks = 0;
    }
    if (k->num_masks == k->max_masks) {
        k->max_masks = k->max_masks ? 2 * k->max_masks : 8;
        k->masks = xrealloc(k->masks, (size_t)k->max_masks * bytes);
        k->mask_counts = xrealloc(k->mask_counts, (size_t)k->max_masks * sizeof *k->mask_counts);
    }
    memcpy(k->masks + (size_t)k->num_masks * words, mask, bytes);
    k->mask_counts[k->num_masks] = count;
    k->positions[position].mask = k->num_masks++;
}

/* What is kept as the mask of a position; made, if it is not there. */
static int32_t base_mask(struct known *k, int32_t position, bool whole, uint32_t *mask) {
    struct grammar_pool *p = k->pool;
    size_t words = words_of(p), bytes = words * sizeof *mask;
    int32_t known = k->positions[position].mask;
    if (known >= 0) {
        memcpy(mask, k->masks + (size_t)known * words, bytes);
        return k->mask_counts[known];
    }
    memset(mask, 0, bytes);
    p->walk[0] = position;
    int32_t count = add_tokens(k, &p->short_tokens, mask), more = 0;
    if (count >= 0 && whole)
        more = add_tokens(k, &p->long_tokens, mask);
    if (count < 0 || more < 0)
        return -1;
    keep_mask(k, p->walk[0], mask, count + more);
    return count + more;
}

/* Within the work that the pool has left. */
static int32_t find_mask(struct grammar_matcher *m, uint32_t *mask) {
    struct known *k = m->known;
    struct position *at = &k->positions[m->position];
    int32_t alike = at->alike;
    if (alike == UNKNOWN) {
        const struct position of = *at; /* which moves as others are made */
        alike = find_alike(k, &of);
        k->positions[m->position].alike = alike;
    }
    if (alike == NOWHERE)
        return base_mask(k, m->position, true, mask);
    int32_t count = base_mask(k, alike, false, mask);
    k->pool->walk[0] = m->position;
    int32_t more = count < 0 ? -1 : add_tokens(k, &k->pool->long_tokens, mask);
    return more < 0 ? -1 : count + more;
}

int32_t grammar_matcher_mask(struct grammar_matcher *m, uint32_t *mask) {
    int64_t *left = &m->known->pool->work_left;
    *left = m->work_left + MASK_WORK < MAX_WORK_LEFT ? m->work_left + MASK_WORK : MAX_WORK_LEFT;
    int32_t count = find_mask(m, mask);
    m->work_left = *left;
    return count;
}

/* ---- pool and matchers ---- */

struct grammar_pool *grammar_pool_create_with_texts(const struct trie_text *texts,
                                                    int32_t vocab_size) {
    struct grammar_pool *p = xcalloc(1, sizeof *p);
    p->vocab_size = vocab_size;
    p->texts = xmalloc((size_t)vocab_size * sizeof *p->texts);
    memcpy(p->texts, texts, (size_t)vocab_size * sizeof *p->texts);
    struct trie_text *some = xmalloc((size_t)vocab_size * sizeof *some);
    for (int longer = 0; longer < 2; longer++) {
        for (int32_t id = 0; id < vocab_size; id++)
            some[id] =
                (texts[id].len > GRAMMAR_ALIKE_CHARS) == longer ? texts[id] : (struct trie_text){0};
        token_trie_init(longer ? &p->long_tokens : &p->short_tokens, some, vocab_size);
    }
    free(some);
    return p;
}

struct grammar_pool *grammar_pool_create(const struct tokenizer *tokenizer, int32_t vocab_size,
                                         const int32_t *banned, int32_t num_banned) {
    const struct decoder *d = &tokenizer->decoder;
    struct trie_text *texts = xcalloc((size_t)vocab_size, sizeof *texts);
    for (int32_t id = 0; id < vocab_size && id < d->vocab_size; id++)
        if (d->tokens[id].exists && !d->tokens[id].special)
            texts[id] = (struct trie_text){d->pool.data + d->tokens[id].offset, d->tokens[id].len};
    for (int32_t i = 0; i < num_banned; i++)
        if (banned[i] >= 0 && banned[i] < vocab_size)
            texts[banned[i]] = (struct trie_text){0};
    struct grammar_pool *p = grammar_pool_create_with_texts(texts, vocab_size);
    free(texts);
    return p;
}

static void known_destroy(struct known *k) {
    grammar_release(k->grammar);
    free(k->stacks);
    free(k->positions);
    free(k->places);
    free(k->next_by_class);
    free(k->stack_index.slots);
    free(k->position_index.slots);
    free(k->masks);
    free(k->mask_counts);
    free(k);
}

void grammar_pool_destroy(struct grammar_pool *p) {
    if (!p)
        return;
    while (p->known) {
        struct known *k = p->known;
        CHECK(!k->matchers, "a pool of grammars is destroyed before its matchers");
        p->known = k->next;
        known_destroy(k);
    }
    token_trie_deinit(&p->short_tokens);
    token_trie_deinit(&p->long_tokens);
    free(p->texts);
    free(p);
}

/* Drops the grammars that were used least recently, beyond MAX_IDLE. */
static void drop_idle(struct grammar_pool *p) {
    int32_t idle = 0;
    for (struct known **link = &p->known; *link;) {
        struct known *k = *link;
        if (k->matchers || ++idle <= MAX_IDLE) {
            link = &k->next;
        } else {
            *link = k->next;
            known_destroy(k);
        }
    }
}

/* What is known of a grammar, moved to the front. */
static struct known *known_of(struct grammar_pool *p, struct grammar *g) {
    struct known **link = &p->known, *k;
    while (*link && !grammar_equal((*link)->grammar, g))
        link = &(*link)->next;
    k = *link;
    if (k) {
        *link = k->next;
    } else {
        k = xcalloc(1, sizeof *k);
        k->pool = p;
        k->grammar = grammar_retain(g);
        clear_tables(k);
    }
    k->next = p->known;
    p->known = k;
    return k;
}

struct grammar_matcher *grammar_matcher_create(struct grammar_pool *p, struct grammar *g) {
    struct grammar_matcher *m = xcalloc(1, sizeof *m);
    struct known *k = known_of(p, g);
    m->known = k;
    m->work_left = MAX_WORK_LEFT;
    if (knows_too_much(k))
        forget(k);
    m->position = first_position(k);
    m->next = k->matchers;
    if (m->next)
        m->next->prev = m;
    k->matchers = m;
    k->num_matchers++;
    drop_idle(p);
    return m;
}

void grammar_matcher_destroy(struct grammar_matcher *m) {
    if (!m)
        return;
    if (m->prev)
        m->prev->next = m->next;
    else
        m->known->matchers = m->next;
    if (m->next)
        m->next->prev = m->prev;
    m->known->num_matchers--;
    drop_idle(m->known->pool);
    free(m);
}

bool grammar_matcher_advance(struct grammar_matcher *m, const char *bytes, size_t len) {
    struct known *k = m->known;
    struct grammar_pool *p = k->pool;
    p->walk[0] = m->position;
    p->walk_depth = 1;
    for (size_t i = 0; i < len && p->walk[0] != NOWHERE; i++)
        p->walk[0] = next_position(k, &p->walk[0], (uint8_t)bytes[i]);
    p->walk_depth = 0;
    if (p->walk[0] == NOWHERE)
        return false;
    m->position = p->walk[0];
    return true;
}

bool grammar_matcher_advance_token(struct grammar_matcher *m, int32_t token) {
    const struct grammar_pool *p = m->known->pool;
    return token >= 0 && token < p->vocab_size && p->texts[token].len > 0 &&
           grammar_matcher_advance(m, p->texts[token].data, p->texts[token].len);
}

bool grammar_matcher_can_end(const struct grammar_matcher *m) {
    return m->known->positions[m->position].can_end;
}
