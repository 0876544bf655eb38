#include <stdlib.h>
#include <string.h>

#include "host/grammar_internal.h"
#include "host/mem.h"

enum {
    OUT_OF_REACH = 1 << 20,     /* a height that no way has */
    MAX_ALL_GRAMMARS_MIB = 256, /* all that are referred to; the largest one has 2 */
};

/* Of all grammars. Requests hold theirs while they wait, so that many large ones would add up. */
static atomic_llong all_bytes;

/* ---- adding ---- */

void builder_deinit(struct builder *b) {
    free(b->edges);
    free(b->ends);
    free(b->alike);
    free(b->start);
    memset(b, 0, sizeof *b);
}

/* Room for one more in an array that doubles. */
static void *grow(void *array, int32_t num, int32_t *max, size_t size) {
    if (num < *max)
        return array;
    *max = *max ? 2 * *max : 64;
    return xrealloc(array, (size_t)*max * size);
}

int32_t add_state(struct builder *b) {
    if (b->num_states == GRAMMAR_MAX_STATES)
        b->full = true;
    if (b->full)
        return 0;
    int32_t max = b->max_states;
    b->ends = grow(b->ends, b->num_states, &max, sizeof *b->ends);
    b->alike = grow(b->alike, b->num_states, &b->max_states, sizeof *b->alike);
    b->ends[b->num_states] = false;
    b->alike[b->num_states] = -1;
    return b->num_states++;
}

static void add_edge(struct builder *b, int32_t from, const struct grammar_edge *edge) {
    if (b->num_edges == GRAMMAR_MAX_EDGES)
        b->full = true;
    if (b->full)
        return;
    b->edges = grow(b->edges, b->num_edges, &b->max_edges, sizeof *b->edges);
    b->edges[b->num_edges++] = (struct build_edge){from, *edge};
}

void add_bytes(struct builder *b, int32_t from, uint8_t low, uint8_t high, int32_t to) {
    add_edge(b, from, &(struct grammar_edge){.target = to, .kind = EDGE_BYTES, low, high});
}

void add_empty(struct builder *b, int32_t from, int32_t to) {
    add_edge(b, from, &(struct grammar_edge){.target = to, .kind = EDGE_EMPTY});
}

void add_call(struct builder *b, int32_t from, int32_t rule, int32_t to) {
    add_edge(b, from, &(struct grammar_edge){.target = to, .rule = rule, .kind = EDGE_CALL});
}

int32_t add_literal(struct builder *b, int32_t from, const char *bytes, size_t len) {
    for (size_t i = 0; i < len && !b->full; i++)
        from = add_char(b, from, bytes[i]);
    return from;
}

int32_t add_char(struct builder *b, int32_t from, char c) {
    int32_t to = add_state(b);
    add_bytes(b, from, (uint8_t)c, (uint8_t)c, to);
    return to;
}

int32_t add_char_blank(struct builder *b, int32_t from, char c) {
    int32_t next = add_char(b, from, c), to = add_char(b, next, ' ');
    add_empty(b, next, to);
    return to;
}

int32_t add_rule(struct builder *b) {
    b->start = grow(b->start, b->num_rules, &b->max_rules, sizeof *b->start);
    b->start[b->num_rules] = add_state(b);
    return b->num_rules++;
}

void set_end(struct builder *b, int32_t state) {
    if (!b->full)
        b->ends[state] = true;
}

/* ---- finishing ---- */

/* Edges by state, in the order in which they were added. */
static void sort_edges(const struct builder *b, struct grammar *g) {
    int32_t *at = xmalloc((size_t)b->num_states * sizeof *at);
    for (int32_t i = 0; i < b->num_edges; i++)
        g->first_edge[b->edges[i].from + 1]++;
    for (int32_t s = 0; s < b->num_states; s++) {
        at[s] = g->first_edge[s];
        g->first_edge[s + 1] += g->first_edge[s];
    }
    for (int32_t i = 0; i < b->num_edges; i++)
        g->edges[at[b->edges[i].from]++] = b->edges[i].edge;
    free(at);
}

/* Edges by where they lead to, and calls by their rule: lists of numbers of edges. */
struct reverse {
    int32_t *from;                    /* [num_edges] */
    int32_t *into, *first_into;       /* [num_edges], [num_states + 1] */
    int32_t *callers, *first_callers; /* [calls], [num_rules + 1] */
};

static void count_reverse(const struct grammar *g, struct reverse *r) {
    r->from = xmalloc((size_t)g->num_edges * sizeof *r->from);
    r->into = xmalloc((size_t)g->num_edges * sizeof *r->into);
    r->callers = xmalloc((size_t)g->num_edges * sizeof *r->callers);
    /* One more in front, which the filling moves the others up to. */
    r->first_into = xcalloc((size_t)g->num_states + 2, sizeof *r->first_into);
    r->first_callers = xcalloc((size_t)g->num_rules + 2, sizeof *r->first_callers);
    for (int32_t i = 0; i < g->num_edges; i++) {
        r->first_into[g->edges[i].target + 2]++;
        if (g->edges[i].kind == EDGE_CALL)
            r->first_callers[g->edges[i].rule + 2]++;
    }
    for (int32_t s = 0; s < g->num_states; s++)
        r->first_into[s + 2] += r->first_into[s + 1];
    for (int32_t s = 0; s < g->num_rules; s++)
        r->first_callers[s + 2] += r->first_callers[s + 1];
}

static void reverse_edges(const struct grammar *g, struct reverse *r) {
    count_reverse(g, r);
    for (int32_t s = 0; s < g->num_states; s++)
        for (int32_t i = g->first_edge[s]; i < g->first_edge[s + 1]; i++) {
            const struct grammar_edge *e = &g->edges[i];
            r->from[i] = s;
            r->into[r->first_into[e->target + 1]++] = i;
            if (e->kind == EDGE_CALL)
                r->callers[r->first_callers[e->rule + 1]++] = i;
        }
}

/* States by height, from the ends backwards: all of one height before those of the next. */
struct rising {
    struct grammar *g;
    struct reverse r;
    int32_t *queues[2]; /* of this height and of the next; a state may be in both */
    int32_t len[2];
    bool *known; /* [num_states] its height is final */
    int32_t height;
};

static void reach(struct rising *x, int32_t state, int32_t height) {
    if (height >= x->g->height[state])
        return;
    x->g->height[state] = height;
    int32_t queue = height > x->height;
    x->queues[queue][x->len[queue]++] = state;
}

/* The way over an edge is known once the heights of its target and, of a call, of the rule are. */
static void take_edge(struct rising *x, int32_t i) {
    const struct grammar_edge *e = &x->g->edges[i];
    int32_t height = x->height, start = x->g->start[e->rule];
    if (!x->known[e->target] || (e->kind == EDGE_CALL && !x->known[start]))
        return;
    if (e->kind == EDGE_CALL && x->g->height[start] + 1 > height)
        height = x->g->height[start] + 1;
    reach(x, x->r.from[i], height);
}

static void settle(struct rising *x, int32_t state, const int32_t *rule_of) {
    if (x->known[state])
        return;
    x->known[state] = true;
    for (int32_t i = x->r.first_into[state]; i < x->r.first_into[state + 1]; i++)
        take_edge(x, x->r.into[i]);
    int32_t rule = rule_of[state];
    for (int32_t i = rule < 0 ? 0 : x->r.first_callers[rule];
         rule >= 0 && i < x->r.first_callers[rule + 1]; i++)
        take_edge(x, x->r.callers[i]);
}

static void find_heights(struct grammar *g) {
    size_t n = (size_t)g->num_states;
    struct rising x = {.g = g};
    int32_t *rule_of = xmalloc(n * sizeof *rule_of);
    reverse_edges(g, &x.r);
    x.known = xcalloc(n, sizeof *x.known);
    x.queues[0] = xmalloc(2 * n * sizeof(int32_t)); /* a state comes down twice at most */
    x.queues[1] = xmalloc(2 * n * sizeof(int32_t));
    memset(rule_of, 0xff, n * sizeof *rule_of);
    for (int32_t r = g->num_rules - 1; r >= 0; r--)
        rule_of[g->start[r]] = r;
    for (size_t s = 0; s < n; s++)
        g->height[s] = OUT_OF_REACH;
    for (int32_t s = 0; s < g->num_states; s++)
        if (g->ends[s])
            reach(&x, s, 0);
    for (; x.len[0] > 0 && x.height <= GRAMMAR_MAX_DEPTH; x.height++) {
        for (int32_t at = 0; at < x.len[0]; at++)
            settle(&x, x.queues[0][at], rule_of);
        int32_t *swap = x.queues[0];
        x.queues[0] = x.queues[1];
        x.queues[1] = swap;
        x.len[0] = x.len[1];
        x.len[1] = 0;
    }
    free(x.r.from);
    free(x.r.into);
    free(x.r.first_into);
    free(x.r.callers);
    free(x.r.first_callers);
    free(x.queues[0]);
    free(x.queues[1]);
    free(x.known);
    free(rule_of);
}

static void find_classes(struct grammar *g) {
    bool begins[257] = {true};
    for (int32_t i = 0; i < g->num_edges; i++)
        if (g->edges[i].kind == EDGE_BYTES)
            begins[g->edges[i].low] = begins[g->edges[i].high + 1] = true;
    int32_t class = -1;
    for (int32_t byte = 0; byte < 256; byte++) {
        class += begins[byte];
        g->class_of[byte] = (uint8_t) class;
    }
    g->num_classes = class + 1;
}

/* For the search for rules that call themselves before any byte, and for states from which too many
 * places are reached so. */
struct search {
    const struct grammar *g;
    uint8_t *rules; /* [num_rules] 0 new, 1 being looked at, 2 done */
    int32_t *ways;  /* [num_rules] edges that are followed from its start without a byte */
    int32_t *seen;  /* [num_states] the search that reached it last */
    const char *wrong;
};

static int32_t search_rule(struct search *s, int32_t rule, int32_t depth);

/* Follows what needs no byte from a state, in the search of that number. Returns how many edges
 * that are, up to one too many; -1: rules call themselves, or calls nest too deep. */
static int32_t search_state(struct search *s, int32_t start, int32_t number, int32_t depth) {
    const struct grammar *g = s->g;
    struct buffer states = {0};
    int32_t ways = 0;
    buffer_append(&states, &start, sizeof start);
    s->seen[start] = number;
    for (size_t at = 0; ways >= 0 && at < states.len; at += sizeof(int32_t)) {
        int32_t state;
        memcpy(&state, states.data + at, sizeof state);
        for (int32_t i = g->first_edge[state]; ways >= 0 && i < g->first_edge[state + 1]; i++) {
            const struct grammar_edge *e = &g->edges[i];
            int32_t more = e->kind != EDGE_BYTES;
            if (e->kind == EDGE_CALL) {
                more = search_rule(s, e->rule, depth + 1);
            } else if (e->kind == EDGE_EMPTY && s->seen[e->target] != number) {
                s->seen[e->target] = number;
                buffer_append(&states, &e->target, sizeof e->target);
            }
            ways = more < 0 ? -1 : ways + more;
            ways = ways > GRAMMAR_MAX_PLACES ? GRAMMAR_MAX_PLACES + 1 : ways;
        }
    }
    buffer_deinit(&states);
    return ways;
}

/* The same from the start of a rule, with the call. */
static int32_t search_rule(struct search *s, int32_t rule, int32_t depth) {
    if (s->rules[rule] == 2)
        return s->ways[rule];
    if (s->rules[rule] == 1)
        s->wrong = "a $ref leads back to itself with nothing in between";
    else if (depth == GRAMMAR_MAX_DEPTH)
        s->wrong = "too many $ref lead to each other with nothing in between";
    if (s->wrong)
        return -1;
    s->rules[rule] = 1;
    s->ways[rule] = search_state(s, s->g->start[rule], rule, depth);
    s->ways[rule] += s->ways[rule] >= 0;
    s->rules[rule] = 2;
    return s->ways[rule];
}

/* Does an edge that needs no byte lead on? */
static bool leads_on(const struct grammar *g, int32_t state) {
    for (int32_t i = g->first_edge[state]; i < g->first_edge[state + 1]; i++)
        if (g->edges[i].kind != EDGE_BYTES)
            return true;
    return false;
}

/* States that a byte or a call leads to are where a position begins. */
static bool *find_landings(const struct grammar *g) {
    bool *landings = xcalloc((size_t)g->num_states, sizeof *landings);
    for (int32_t i = 0; i < g->num_edges; i++)
        if (g->edges[i].kind != EDGE_EMPTY && leads_on(g, g->edges[i].target))
            landings[g->edges[i].target] = true;
    return landings;
}

_Static_assert(GRAMMAR_MAX_PLACES == 8192, "the message below names it");

/* NULL: all is well with what is reached without a byte. Or what is wrong. */
static const char *search_wrong(const struct grammar *g) {
    struct search s = {.g = g};
    int32_t ways = 0;
    bool *landings = find_landings(g);
    s.rules = xcalloc((size_t)g->num_rules, 1);
    s.ways = xcalloc((size_t)g->num_rules, sizeof *s.ways);
    s.seen = xmalloc((size_t)g->num_states * sizeof *s.seen);
    memset(s.seen, 0xff, (size_t)g->num_states * sizeof *s.seen);
    for (int32_t r = 0; r < g->num_rules && ways >= 0 && ways <= GRAMMAR_MAX_PLACES; r++)
        ways = search_rule(&s, r, 0);
    for (int32_t i = 0; i < g->num_states && ways >= 0 && ways <= GRAMMAR_MAX_PLACES; i++)
        if (landings[i])
            ways = search_state(&s, i, g->num_rules + i, 0);
    if (ways > GRAMMAR_MAX_PLACES)
        s.wrong =
            "more than 8192 branches or optional properties may come at one point; list values "
            "in one enum, or require properties";
    free(landings);
    free(s.rules);
    free(s.ways);
    free(s.seen);
    return s.wrong;
}

static uint64_t hash_bytes(uint64_t h, const void *data, size_t len) {
    const char *p = data;
    for (; len > 0; p += 8) {
        uint64_t word = 0;
        size_t n = len < 8 ? len : 8;
        memcpy(&word, p, n);
        h = (h ^ word) * 0x9e3779b97f4a7c15u;
        h ^= h >> 32;
        len -= n;
    }
    return h;
}

static uint64_t hash_grammar(const struct grammar *g) {
    uint64_t h = 0xcbf29ce484222325u;
    h = hash_bytes(h, g->first_edge, ((size_t)g->num_states + 1) * sizeof *g->first_edge);
    h = hash_bytes(h, g->edges, (size_t)g->num_edges * sizeof *g->edges);
    h = hash_bytes(h, g->ends, (size_t)g->num_states * sizeof *g->ends);
    return hash_bytes(h, g->start, (size_t)g->num_rules * sizeof *g->start);
}

bool grammar_equal(const struct grammar *a, const struct grammar *b) {
    return a == b || (a->hash == b->hash && a->num_states == b->num_states &&
                      a->num_edges == b->num_edges && a->num_rules == b->num_rules &&
                      !memcmp(a->first_edge, b->first_edge,
                              ((size_t)a->num_states + 1) * sizeof *a->first_edge) &&
                      !memcmp(a->edges, b->edges, (size_t)a->num_edges * sizeof *a->edges) &&
                      !memcmp(a->ends, b->ends, (size_t)a->num_states * sizeof *a->ends) &&
                      !memcmp(a->start, b->start, (size_t)a->num_rules * sizeof *a->start));
}

static long long bytes_of(const struct grammar *g) {
    return (long long)sizeof *g +
           (long long)g->num_states * (long long)(sizeof *g->first_edge + sizeof *g->height +
                                                  sizeof *g->alike + sizeof *g->ends) +
           (long long)g->num_edges * (long long)sizeof *g->edges +
           (long long)g->num_rules * (long long)sizeof *g->start;
}

int builder_finish(struct builder *b, struct grammar **out, struct error *error) {
    *out = NULL;
    if (b->full)
        return error_set(error, ERR_INVALID_REQUEST, "#: " GRAMMAR_FULL_TEXT, GRAMMAR_FULL_LIMITS);
    struct grammar *g = xcalloc(1, sizeof *g);
    atomic_init(&g->refs, 1);
    g->num_states = b->num_states;
    g->num_edges = b->num_edges;
    g->num_rules = b->num_rules;
    int rc = 0;
    if (atomic_fetch_add(&all_bytes, bytes_of(g)) > (long long)MAX_ALL_GRAMMARS_MIB << 20) {
        rc = error_set(error, ERR_OVERLOADED,
                       "the schemas of the requests that run or wait take %d MiB already; try "
                       "again later, or with a smaller schema",
                       MAX_ALL_GRAMMARS_MIB);
        grammar_release(g);
        return rc;
    }
    g->first_edge = xcalloc((size_t)b->num_states + 1, sizeof *g->first_edge);
    g->edges = xcalloc((size_t)b->num_edges, sizeof *g->edges);
    g->height = xmalloc((size_t)b->num_states * sizeof *g->height);
    g->ends = b->ends;
    g->alike = b->alike;
    g->start = b->start;
    b->ends = NULL;
    b->alike = NULL;
    b->start = NULL;
    sort_edges(b, g);
    find_classes(g);
    find_heights(g);
    g->hash = hash_grammar(g);
    const char *wrong = search_wrong(g);
    if (wrong)
        rc = error_set(error, ERR_INVALID_REQUEST, "#: %s", wrong);
    else if (g->height[g->start[0]] > GRAMMAR_MAX_DEPTH)
        rc = error_set(error, ERR_INVALID_REQUEST,
                       "#: no document of finite size, or none nested at most %d deep, can "
                       "validate against the schema%s%s",
                       GRAMMAR_MAX_DEPTH, b->nothing ? "; " : "", b->nothing ? b->nothing : "");
    if (rc == 0)
        *out = g;
    else
        grammar_release(g);
    return rc;
}

struct grammar *grammar_retain(struct grammar *g) {
    if (g)
        atomic_fetch_add_explicit(&g->refs, 1, memory_order_relaxed);
    return g;
}

void grammar_release(struct grammar *g) {
    if (!g || atomic_fetch_sub_explicit(&g->refs, 1, memory_order_acq_rel) > 1)
        return;
    atomic_fetch_sub(&all_bytes, bytes_of(g));
    free(g->first_edge);
    free(g->edges);
    free(g->height);
    free(g->ends);
    free(g->alike);
    free(g->start);
    free(g);
}
