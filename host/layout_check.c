/* layout_check: is everything held as often as the table says? It counts holders element by element
 * (or column by column), and shares nothing with the code that makes layouts. */
#include <stdio.h>
#include <stdlib.h>

#include "host/layout.h"
#include "host/mem.h"

/* Holders of elements 0..total of one kind. */
struct census {
    const char *what;
    int32_t total;
    uint8_t *holders; /* [total], owned */
    struct error *error;
    bool ok;
};

static struct census census_start(const char *what, int32_t total, struct error *error) {
    return (struct census){what, total, xcalloc((size_t)total + 1, 1), error, true};
}

/* A range that a rank says it holds, cut at multiples of `unit` or at the end. */
static void census_add(struct census *c, int32_t rank, struct range r, int32_t unit) {
    int32_t end = r.first + r.count;
    if (r.count == 0)
        return;
    if (r.count < 0 || r.first < 0 || end > c->total) {
        c->ok = false;
        error_add(c->error, ERR_INTERNAL, "layout: rank %d holds %s %d..%d of %d", rank, c->what,
                  r.first, end - 1, c->total);
        return;
    }
    if (r.first % unit != 0 || (end % unit != 0 && end != c->total)) {
        c->ok = false;
        error_add(c->error, ERR_INTERNAL,
                  "layout: rank %d holds %s %d..%d, which are not whole units of %d", rank, c->what,
                  r.first, end - 1, unit);
    }
    for (int32_t i = r.first; i < end; i++)
        c->holders[i] += c->holders[i] < UINT8_MAX;
}

/* Each element must have one holder; the first that has not is named. Frees the census. */
static bool census_end(struct census *c) {
    for (int32_t i = 0; i < c->total; i++)
        if (c->holders[i] != 1) {
            c->ok = false;
            error_add(c->error, ERR_INTERNAL, "layout: %s %d is held %d times", c->what, i,
                      c->holders[i]);
            break;
        }
    free(c->holders);
    return c->ok;
}

typedef struct range range_of(const struct rank_layout *k);

static struct range q_heads_of(const struct rank_layout *k) {
    return k->q_heads;
}
static struct range kv_counted_of(const struct rank_layout *k) {
    return k->kv_counted;
}
static struct range shared_of(const struct rank_layout *k) {
    return k->shared_columns;
}
static struct range ffn_of(const struct rank_layout *k) {
    return k->ffn_columns;
}
static struct range vocab_of(const struct rank_layout *k) {
    return k->vocab;
}

static bool held_once(const struct layout *l, const char *what, range_of *of, int32_t total,
                      int32_t unit, struct error *error) {
    struct census c = census_start(what, total, error);
    for (int32_t r = 0; r < l->world_size; r++)
        census_add(&c, r, of(&l->rank[r]), unit);
    return census_end(&c);
}

/* A rank has the KV heads that its query heads read, no others, and counts only what it has. */
static bool kv_heads_match(const struct layout *l, const struct model_config *c,
                           struct error *error) {
    int32_t group = c->num_attention_heads / c->num_key_value_heads;
    bool ok = true;
    for (int32_t r = 0; r < l->world_size; r++) {
        const struct rank_layout *k = &l->rank[r];
        int32_t first = k->q_heads.first / group;
        int32_t end = (k->q_heads.first + k->q_heads.count + group - 1) / group;
        bool none = k->q_heads.count == 0;
        bool match = none ? k->kv_heads.count == 0
                          : k->kv_heads.first == first && k->kv_heads.count == end - first;
        bool counts = k->kv_counted.count == 0 || (k->kv_counted.first >= k->kv_heads.first &&
                                                   k->kv_counted.first + k->kv_counted.count <=
                                                       k->kv_heads.first + k->kv_heads.count);
        if (match && counts)
            continue;
        ok = false;
        error_add(error, ERR_INTERNAL,
                  "layout: rank %d has %d query heads from %d, %d KV heads from %d and counts %d "
                  "from %d",
                  r, k->q_heads.count, k->q_heads.first, k->kv_heads.count, k->kv_heads.first,
                  k->kv_counted.count, k->kv_counted.first);
    }
    return ok;
}

/* The columns that one rank holds of a part of an expert, as home share or replica. */
static void add_shares(struct census *census, const struct layout *l, int32_t rank, int32_t expert,
                       int32_t part) {
    const struct rank_layout *k = &l->rank[rank];
    int32_t i = expert - k->experts.first;
    if (part == 0 && i >= 0 && i < k->experts.count)
        census_add(census, rank, layout_expert_share(l, rank, i).columns, l->expert_unit);
    for (i = 0; i < k->num_replicas; i++)
        if (k->replicas[i].expert == expert && k->replicas[i].part == part)
            census_add(census, rank, k->replicas[i].columns, l->expert_unit);
}

static bool part_held_once(const struct layout *l, const struct model_config *c, int32_t expert,
                           int32_t part, struct error *error) {
    char what[64];
    snprintf(what, sizeof what, "part %d of expert %d, column", part, expert);
    struct census census = census_start(what, c->moe_intermediate_size, error);
    for (int32_t r = 0; r < l->world_size; r++)
        add_shares(&census, l, r, expert, part);
    return census_end(&census);
}

/* Every share is of an expert and a part that there are, home shares alone are part 0, and all of
 * an expert say the same number of parts, which is returned in parts[expert]. */
static bool shares_are_sound(const struct layout *l, const struct model_config *c, int32_t *parts,
                             struct error *error) {
    bool ok = true;
    for (int32_t r = 0; r < l->world_size; r++)
        for (int32_t i = 0; i < layout_num_expert_shares(l, r); i++) {
            struct expert_share s = layout_expert_share(l, r, i);
            bool known = s.expert >= 0 && s.expert < c->router.num_experts;
            bool home = i < l->rank[r].experts.count;
            if (known && parts[s.expert] == 0)
                parts[s.expert] = s.parts;
            if (known && s.part >= 0 && s.part < s.parts && home == (s.part == 0) &&
                parts[s.expert] == s.parts)
                continue;
            ok = false;
            error_add(error, ERR_INTERNAL, "layout: rank %d has part %d of %d of expert %d of %d",
                      r, s.part, s.parts, s.expert, c->router.num_experts);
        }
    return ok;
}

static bool experts_are_held(const struct layout *l, const struct model_config *c,
                             struct error *error) {
    int32_t parts[MAX_EXPERTS] = {0};
    bool ok = shares_are_sound(l, c, parts, error);
    for (int32_t e = 0; e < c->router.num_experts && ok; e++)
        for (int32_t part = 0; part < parts[e] + (parts[e] == 0) && ok; part++)
            ok = part_held_once(l, c, e, part, error);
    return ok;
}

int layout_check(const struct layout *l, const struct model_config *c, struct error *error) {
    if (l->world_size < 1 || l->world_size > MAX_RANKS || l->ep_size < 1 ||
        l->ep_size * l->tp_size != l->world_size)
        return error_set(error, ERR_INTERNAL, "layout: %d ranks as %d x %d", l->world_size,
                         l->ep_size, l->tp_size);
    bool ok = held_once(l, "query head", q_heads_of, c->num_attention_heads, 1, error);
    ok &= held_once(l, "counted KV head", kv_counted_of, c->num_key_value_heads, 1, error);
    ok &= held_once(l, "dense FFN column", ffn_of, c->intermediate_size, l->ffn_unit, error);
    ok &= held_once(l, "shared expert column", shared_of, l->shared_intermediate_size,
                    l->shared_unit, error);
    ok &= held_once(l, "vocabulary row", vocab_of, c->vocab_size, 1, error);
    ok &= kv_heads_match(l, c, error);
    ok &= experts_are_held(l, c, error);
    return ok ? 0 : ERR_INTERNAL;
}
