/* grammar_pattern: regular expressions as deterministic automata over code points.
 *
 * Parsed into a tree, copied from there into a nondeterministic automaton (a repeated part as often
 * as it is counted), made deterministic by sets of states. Each of the three has a bound, and so
 * has the work of the last, for all patterns of a schema together.
 */
#include <stdlib.h>
#include <string.h>

#include "host/grammar_internal.h"
#include "host/mem.h"
#include "host/utf8.h"

enum {
    MAX_PATTERN_BYTES = 4096,
    MAX_GROUPS = 32,       /* in each other */
    MAX_REPEAT = 1000,     /* in {} */
    MAX_NFA_STATES = 4096, /* of the nondeterministic automaton */
    MAX_NFA_EDGES = 1 << 14,
    MAX_DFA_STATES = 2048,
    MAX_HOLDS = 1 << 22, /* sets times atoms */
};

/* ---- the tree ---- */

enum node_kind { NODE_NOTHING, NODE_SET, NODE_BOTH, NODE_EITHER, NODE_REPEAT };

struct node {
    enum node_kind kind;
    int32_t left, right; /* nodes; SET: left is the set */
    int32_t min, max;    /* REPEAT; max -1: any number */
};

struct nfa_edge {
    int32_t from, to, set; /* set -1: nothing is read */
};

struct parser {
    const char *at, *end;
    struct node *nodes;  /* owned, as all below */
    struct cp_set *sets; /* normalised */
    struct nfa_edge *edges;
    int32_t num_nodes, max_nodes, num_sets, max_sets, num_edges, num_states;
    int32_t depth;
    bool too_large;
    struct error *error;
};

static int32_t fail(struct parser *p, const char *what) {
    if (!p->error->code)
        error_set(p->error, ERR_INVALID_REQUEST, "%s", what);
    return -1;
}

static int32_t add_node(struct parser *p, struct node node) {
    if (p->num_nodes == p->max_nodes) {
        p->max_nodes = p->max_nodes ? 2 * p->max_nodes : 64;
        p->nodes = xrealloc(p->nodes, (size_t)p->max_nodes * sizeof *p->nodes);
    }
    p->nodes[p->num_nodes] = node;
    return p->num_nodes++;
}

/* Takes over the set. */
static int32_t add_set_node(struct parser *p, struct cp_set *set) {
    if (p->num_sets == p->max_sets) {
        p->max_sets = p->max_sets ? 2 * p->max_sets : 32;
        p->sets = xrealloc(p->sets, (size_t)p->max_sets * sizeof *p->sets);
    }
    cp_set_normalise(set);
    p->sets[p->num_sets] = *set;
    memset(set, 0, sizeof *set);
    return add_node(p, (struct node){.kind = NODE_SET, .left = p->num_sets++});
}

static int32_t range_node(struct parser *p, uint32_t low, uint32_t high) {
    struct cp_set set = {0};
    cp_set_add(&set, low, high);
    return add_set_node(p, &set);
}

static bool looking_at(const struct parser *p, const char *s) {
    size_t n = strlen(s);
    return (size_t)(p->end - p->at) >= n && !memcmp(p->at, s, n);
}

static bool take(struct parser *p, const char *s) {
    bool there = looking_at(p, s);
    if (there)
        p->at += strlen(s);
    return there;
}

static uint32_t take_char(struct parser *p) {
    uint32_t cp;
    p->at += utf8_next(p->at, (size_t)(p->end - p->at), &cp);
    return cp;
}

/* ---- escapes and classes ---- */

/* \d, \w, \s; in upper case what is in ASCII and in nobody's \d, \w, \s. */
static bool add_class(struct cp_set *set, char name) {
    static const struct {
        char name;
        const char *ranges;
    } classes[] = {
        {'d', "09"},     {'D', "\1/:\x7f"},          {'w', "09AZ__az"},
        {'s', "\t\r  "}, {'S', "\1\b\x0e\x1b!\x7f"}, {'W', "\1/:@[^``{\x7f"},
    };
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        if (name == classes[i].name) {
            for (const char *r = classes[i].ranges; *r; r += 2)
                cp_set_add(set, (uint32_t)r[0], (uint32_t)r[1]);
            return true;
        }
    return false;
}

static bool take_hex(struct parser *p, int32_t digits, uint32_t *cp) {
    *cp = 0;
    for (int32_t i = 0; i < digits; i++) {
        const char *hex = "0123456789abcdef", *d;
        if (p->at == p->end || !*p->at || !(d = strchr(hex, *p->at | (*p->at > '9' ? 0x20 : 0))))
            return false;
        *cp = *cp * 16 + (uint32_t)(d - hex);
        p->at++;
    }
    return true;
}

/* What stands behind a backslash, when it is one character. */
static bool take_escaped(struct parser *p, uint32_t *cp) {
    static const char letters[] = "nrtfv", values[] = "\n\r\t\f\v";
    if (p->at == p->end)
        return fail(p, "it ends in a backslash") >= 0;
    *cp = take_char(p);
    const char *letter = *cp < 0x80 ? strchr(letters, (int)*cp) : NULL;
    if (letter) {
        *cp = (uint32_t)values[letter - letters];
        return true;
    }
    if (*cp == 'x' || *cp == 'u') {
        if (!take_hex(p, *cp == 'x' ? 2 : 4, cp))
            return fail(p, "\\x needs two and \\u four hexadecimal digits") >= 0;
        if (*cp >= 0xd800 && *cp <= 0xdfff)
            return fail(p, "surrogates are not supported; write the character itself") >= 0;
        return true;
    }
    if (*cp >= 0x80 || *cp == '_' || (*cp >= '0' && *cp <= '9') ||
        ((*cp | 0x20) >= 'a' && (*cp | 0x20) <= 'z'))
        return fail(p, "an escape other than \\d \\w \\s \\n \\r \\t \\f \\v \\x \\u and those of "
                       "punctuation is not supported") >= 0;
    return true;
}

/* One side of a range in [], or a class; *cp is UINT32_MAX for a class. */
static bool take_item(struct parser *p, struct cp_set *set, bool *has_class, uint32_t *cp) {
    if (!take(p, "\\")) {
        *cp = take_char(p);
        return true;
    }
    if (p->at < p->end && add_class(set, *p->at)) {
        p->at++;
        *has_class = true;
        *cp = UINT32_MAX;
        return true;
    }
    if (take(p, "b")) {
        *cp = '\b';
        return true;
    }
    return take_escaped(p, cp);
}

/* Behind a '['. */
static int32_t parse_set(struct parser *p) {
    struct cp_set set = {0};
    bool negated = take(p, "^"), has_class = false, ok = true;
    if (looking_at(p, "]"))
        return fail(p, "an empty [] is not supported");
    while (ok && p->at < p->end && *p->at != ']') {
        uint32_t low, high;
        ok = take_item(p, &set, &has_class, &low);
        high = low;
        if (ok && looking_at(p, "-") && p->end - p->at > 1 && p->at[1] != ']') {
            p->at++;
            ok = take_item(p, &set, &has_class, &high);
            if (ok && (low == UINT32_MAX || high == UINT32_MAX || low > high))
                ok = fail(p, "a range in [] goes backwards or to a class") >= 0;
        }
        if (ok && low != UINT32_MAX)
            cp_set_add(&set, low, high);
    }
    if (ok && !take(p, "]"))
        ok = fail(p, "a [ has no ]") >= 0;
    if (ok && negated) {
        cp_set_normalise(&set);
        if (has_class) { /* others' classes hold more, so the complement holds less */
            cp_set_add(&set, 0x80, 0x10ffff);
            cp_set_add(&set, 0x1c, 0x1f);
        }
        cp_set_normalise(&set);
        cp_set_complement(&set);
    }
    int32_t node = ok ? add_set_node(p, &set) : -1;
    cp_set_deinit(&set);
    return node;
}

/* ---- expressions ---- */

static int32_t parse_either(struct parser *p, bool top);

static int32_t parse_group(struct parser *p) {
    if (looking_at(p, "?") && !take(p, "?:"))
        return fail(p, "of the groups that begin with (? only (?: is supported");
    if (++p->depth > MAX_GROUPS)
        return fail(p, "its groups are nested too deep");
    int32_t node = parse_either(p, false);
    p->depth--;
    if (node >= 0 && !take(p, ")"))
        return fail(p, "a ( has no )");
    return node;
}

static int32_t parse_atom(struct parser *p) {
    struct cp_set set = {0};
    uint32_t cp;
    if (take(p, "("))
        return parse_group(p);
    if (take(p, "["))
        return parse_set(p);
    if (take(p, ".")) { /* no end of line, whoever's */
        cp_set_add(&set, '\n', '\n');
        cp_set_add(&set, '\r', '\r');
        cp_set_add(&set, 0x2028, 0x2029);
        cp_set_normalise(&set);
        cp_set_complement(&set);
        return add_set_node(p, &set);
    }
    if (take(p, "\\")) {
        if (p->at < p->end && add_class(&set, *p->at)) {
            p->at++;
            return add_set_node(p, &set);
        }
        if (p->at < p->end && (*p->at | 0x20) == 'b')
            return fail(p, "\\b is not supported");
        return take_escaped(p, &cp) ? range_node(p, cp, cp) : -1;
    }
    if (strchr("^$", *p->at))
        return fail(p, "^ and $ are supported at the ends of a whole alternative only");
    if (strchr("*+?{}])", *p->at))
        return fail(p, "a * + ? { } ] or ) with nothing to belong to; write a backslash before it");
    cp = take_char(p);
    return range_node(p, cp, cp);
}

static bool take_number(struct parser *p, int32_t *n) {
    const char *start = p->at;
    *n = 0;
    while (p->at < p->end && *p->at >= '0' && *p->at <= '9' && *n <= MAX_REPEAT)
        *n = *n * 10 + (*p->at++ - '0');
    return p->at > start && *n <= MAX_REPEAT;
}

/* A quantifier, if there is one. False after an error. */
static bool take_quantifier(struct parser *p, int32_t *min, int32_t *max, bool *there) {
    *there = true;
    *min = 0;
    *max = -1;
    if (take(p, "*")) {
    } else if (take(p, "+")) {
        *min = 1;
    } else if (take(p, "?")) {
        *max = 1;
    } else if (take(p, "{")) {
        bool ok = take_number(p, min);
        *max = *min;
        if (ok && take(p, ",") && !looking_at(p, "}"))
            ok = take_number(p, max);
        else if (ok && p->at[-1] == ',')
            *max = -1;
        if (!ok || !take(p, "}") || (*max >= 0 && *max < *min))
            return fail(p, "a {} is not {n}, {n,} or {n,m} with numbers up to 1000") >= 0;
    } else {
        *there = false;
    }
    if (*there && !take(p, "?") && looking_at(p, "+"))
        return fail(p, "possessive quantifiers are not supported") >= 0;
    return true;
}

/* A sequence up to '|', ')' or the end; at the top level with its anchors. */
static int32_t parse_sequence(struct parser *p, bool top) {
    bool from_start = top && take(p, "^"), to_end = false;
    int32_t all = add_node(p, (struct node){.kind = NODE_NOTHING});
    while (p->at < p->end && *p->at != '|' && *p->at != ')') {
        int32_t min, max;
        bool repeated = false;
        if (top && *p->at == '$' && (p->end - p->at == 1 || p->at[1] == '|')) {
            p->at++;
            to_end = true;
            break;
        }
        int32_t node = parse_atom(p);
        if (node < 0 || !take_quantifier(p, &min, &max, &repeated))
            return -1;
        if (repeated)
            node = add_node(p, (struct node){NODE_REPEAT, node, 0, min, max});
        all = add_node(p, (struct node){.kind = NODE_BOTH, .left = all, .right = node});
    }
    if (!top)
        return all;
    int32_t any = range_node(p, 1, 0x10ffff);
    any = add_node(p, (struct node){NODE_REPEAT, any, 0, 0, -1});
    if (!from_start)
        all = add_node(p, (struct node){.kind = NODE_BOTH, .left = any, .right = all});
    if (!to_end)
        all = add_node(p, (struct node){.kind = NODE_BOTH, .left = all, .right = any});
    return all;
}

static int32_t parse_either(struct parser *p, bool top) {
    int32_t all = parse_sequence(p, top);
    while (all >= 0 && take(p, "|")) {
        int32_t node = parse_sequence(p, top);
        all = node < 0
                  ? -1
                  : add_node(p, (struct node){.kind = NODE_EITHER, .left = all, .right = node});
    }
    return all;
}

/* ---- nondeterministic ---- */

static int32_t nfa_state(struct parser *p) {
    if (p->num_states == MAX_NFA_STATES)
        p->too_large = true;
    return p->too_large ? 0 : p->num_states++;
}

static void nfa_edge(struct parser *p, int32_t from, int32_t set, int32_t to) {
    if (p->num_edges == MAX_NFA_EDGES)
        p->too_large = true;
    if (!p->too_large)
        p->edges[p->num_edges++] = (struct nfa_edge){from, to, set};
}

static int32_t nfa_node(struct parser *p, int32_t n, int32_t from);

static int32_t nfa_repeat(struct parser *p, const struct node *node, int32_t from) {
    for (int32_t i = 0; i < node->min && !p->too_large; i++)
        from = nfa_node(p, node->left, from);
    int32_t end = nfa_state(p);
    nfa_edge(p, from, -1, end);
    if (node->max < 0) {
        int32_t loop = nfa_state(p);
        nfa_edge(p, end, -1, loop);
        nfa_edge(p, nfa_node(p, node->left, loop), -1, end);
    }
    for (int32_t i = node->min; i < node->max && !p->too_large; i++) {
        from = nfa_node(p, node->left, from);
        nfa_edge(p, from, -1, end);
    }
    return end;
}

/* Adds what a node reads behind a state; returns the state behind that. Sequences lean to the left,
 * as long as they are: those are walked down first. */
static int32_t nfa_node(struct parser *p, int32_t n, int32_t from) {
    const struct node node = p->nodes[n];
    int32_t to;
    if (p->too_large)
        return 0;
    switch (node.kind) {
    case NODE_NOTHING:
        return from;
    case NODE_SET:
        to = nfa_state(p);
        nfa_edge(p, from, node.left, to);
        return to;
    case NODE_BOTH:
        return nfa_node(p, node.right, nfa_node(p, node.left, from));
    case NODE_EITHER:
        to = nfa_state(p);
        nfa_edge(p, nfa_node(p, node.left, from), -1, to);
        nfa_edge(p, nfa_node(p, node.right, from), -1, to);
        return to;
    case NODE_REPEAT:
        return nfa_repeat(p, &node, from);
    }
    return from;
}

/* ---- deterministic ---- */

struct subsets {
    const struct parser *p;
    int32_t *first; /* [num_states + 1] edges by state */
    struct nfa_edge *edges;
    uint32_t *bounds; /* [num_atoms + 1] all sets treat characters in between alike */
    int32_t num_atoms;
    uint8_t *holds; /* [num_sets, num_atoms] */
    size_t words;   /* of a set of states */
    uint64_t *sets; /* [dfa states, words] */
    int32_t *table; /* hash table of dfa states, -1 empty */
    int32_t final;
    int64_t work;
};

enum { TABLE_SLOTS = 4 * MAX_DFA_STATES };

static int compare_u32(const void *a, const void *b) {
    uint32_t p = *(const uint32_t *)a, q = *(const uint32_t *)b;
    return p < q ? -1 : p > q;
}

static bool find_atoms(struct subsets *s) {
    const struct parser *p = s->p;
    size_t n = 0;
    for (int32_t i = 0; i < p->num_sets; i++)
        n += 2 * (size_t)p->sets[i].num;
    s->bounds = xmalloc((n + 1) * sizeof *s->bounds);
    n = 0;
    for (int32_t i = 0; i < p->num_sets; i++)
        for (int32_t r = 0; r < p->sets[i].num; r++) {
            s->bounds[n++] = p->sets[i].ranges[r].low;
            s->bounds[n++] = p->sets[i].ranges[r].high + 1;
        }
    qsort(s->bounds, n, sizeof *s->bounds, compare_u32);
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (kept == 0 || s->bounds[i] != s->bounds[kept - 1])
            s->bounds[kept++] = s->bounds[i];
    s->num_atoms = kept > 0 ? (int32_t)kept - 1 : 0;
    if ((int64_t)p->num_sets * s->num_atoms > MAX_HOLDS)
        return false;
    s->holds = xcalloc((size_t)p->num_sets * (size_t)s->num_atoms + 1, 1);
    for (int32_t i = 0; i < p->num_sets; i++)
        for (int32_t a = 0, r = 0; a < s->num_atoms; a++) {
            const struct cp_set *set = &p->sets[i];
            while (r < set->num && set->ranges[r].high < s->bounds[a])
                r++;
            s->holds[(size_t)i * (size_t)s->num_atoms + (size_t)a] =
                r < set->num && set->ranges[r].low <= s->bounds[a];
        }
    return true;
}

static bool has_bit(const uint64_t *set, int32_t i) {
    return set[i / 64] >> (i % 64) & 1;
}

/* Adds a state and all that is reached from it without a character. */
static void close_over(struct subsets *s, uint64_t *set, int32_t state) {
    int32_t stack[MAX_NFA_STATES], n = 0;
    if (has_bit(set, state))
        return;
    set[state / 64] |= (uint64_t)1 << (state % 64);
    stack[n++] = state;
    while (n > 0) {
        int32_t from = stack[--n];
        for (int32_t i = s->first[from]; i < s->first[from + 1]; i++, s->work++) {
            int32_t to = s->edges[i].to;
            if (s->edges[i].set < 0 && !has_bit(set, to)) {
                set[to / 64] |= (uint64_t)1 << (to % 64);
                stack[n++] = to;
            }
        }
    }
}

/* The number of a set of states, which is new at the end of s->sets or known. */
static int32_t intern(struct subsets *s, struct cp_dfa *out) {
    uint64_t *set = s->sets + (size_t)out->num_states * s->words, h = 0;
    for (size_t w = 0; w < s->words; w++)
        h = (h ^ set[w]) * 0x9e3779b97f4a7c15u, h ^= h >> 29;
    size_t slot = h % TABLE_SLOTS;
    for (; s->table[slot] >= 0; slot = (slot + 1) % TABLE_SLOTS)
        if (!memcmp(s->sets + (size_t)s->table[slot] * s->words, set, s->words * sizeof *set))
            return s->table[slot];
    s->table[slot] = out->num_states;
    return cp_dfa_state(out, has_bit(set, s->final));
}

/* Where one set of states goes on one atom; -1: nowhere. */
static int32_t move(struct subsets *s, int32_t from, int32_t atom, struct cp_dfa *out) {
    uint64_t *target = s->sets + (size_t)out->num_states * s->words;
    bool any = false;
    memset(target, 0, s->words * sizeof *target);
    for (size_t w = 0; w < s->words; w++)
        for (uint64_t bits = s->sets[(size_t)from * s->words + w]; bits; bits &= bits - 1) {
            int32_t state = (int32_t)(w * 64) + __builtin_ctzll(bits);
            for (int32_t i = s->first[state]; i < s->first[state + 1]; i++, s->work++) {
                const struct nfa_edge *e = &s->edges[i];
                if (e->set >= 0 && s->holds[(size_t)e->set * (size_t)s->num_atoms + (size_t)atom]) {
                    close_over(s, target, e->to);
                    any = true;
                }
            }
        }
    s->work += (int64_t)s->words;
    return any ? intern(s, out) : -1;
}

static void sort_nfa(struct subsets *s) {
    const struct parser *p = s->p;
    s->first = xcalloc((size_t)p->num_states + 2, sizeof *s->first);
    s->edges = xmalloc((size_t)p->num_edges * sizeof *s->edges);
    for (int32_t i = 0; i < p->num_edges; i++)
        s->first[p->edges[i].from + 2]++;
    for (int32_t i = 0; i < p->num_states; i++)
        s->first[i + 2] += s->first[i + 1];
    for (int32_t i = 0; i < p->num_edges; i++)
        s->edges[s->first[p->edges[i].from + 1]++] = p->edges[i];
}

/* False: too much work. */
static bool determinise(const struct parser *p, int32_t start, int32_t final, int64_t *work,
                        struct cp_dfa *out) {
    struct subsets s = {.p = p, .final = final, .words = ((size_t)p->num_states + 63) / 64};
    sort_nfa(&s);
    bool ok = find_atoms(&s);
    s.sets = xcalloc((MAX_DFA_STATES + 1) * s.words, sizeof *s.sets);
    s.table = xmalloc(TABLE_SLOTS * sizeof *s.table);
    memset(s.table, 0xff, TABLE_SLOTS * sizeof *s.table);
    close_over(&s, s.sets, start);
    intern(&s, out);
    for (int32_t state = 0; ok && state < out->num_states; state++)
        for (int32_t atom = 0; ok && atom < s.num_atoms; atom++) {
            int32_t to = move(&s, state, atom, out);
            if (to >= 0)
                cp_dfa_edge(out, state, s.bounds[atom], s.bounds[atom + 1] - 1, to);
            ok = s.work <= *work && out->num_states < MAX_DFA_STATES;
        }
    *work -= s.work;
    free(s.first);
    free(s.edges);
    free(s.bounds);
    free(s.holds);
    free(s.sets);
    free(s.table);
    return ok;
}

int pattern_compile(const char *pattern, size_t len, int64_t *work, struct cp_dfa *out,
                    struct error *error) {
    struct error own = {0};
    struct parser p = {.at = pattern, .end = pattern + len, .error = &own};
    if (len > MAX_PATTERN_BYTES)
        return error_set(error, ERR_INVALID_REQUEST, "it has %zu bytes, at most %d are supported",
                         len, MAX_PATTERN_BYTES);
    int32_t node = parse_either(&p, true);
    if (node >= 0 && p.at < p.end)
        node = fail(&p, "a ) has no (");
    if (node >= 0) {
        p.edges = xmalloc(MAX_NFA_EDGES * sizeof *p.edges);
        int32_t start = nfa_state(&p), final = nfa_node(&p, node, start);
        if (p.too_large || !determinise(&p, start, final, work, out))
            fail(&p,
                 "it is too complex, or all patterns together are; make it shorter, or its counts "
                 "smaller");
    }
    for (int32_t i = 0; i < p.num_sets; i++)
        cp_set_deinit(&p.sets[i]);
    free(p.sets);
    free(p.nodes);
    free(p.edges);
    return own.code ? error_set(error, own.code, "%s", own.text) : 0;
}
