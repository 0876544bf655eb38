/* grammar_text: strings of code points as JSON strings of bytes.
 *
 * A set of characters becomes edges on plain ASCII bytes, and for the rest a call of a rule that
 * has the other bytes of UTF-8 and the escapes; the rules are shared by all states with the same
 * set.
 */
#include <stdlib.h>
#include <string.h>

#include "host/grammar_internal.h"
#include "host/mem.h"
#include "host/utf8.h"

enum {
    MAX_CP = 0x10ffff,
    SURROGATES = 0xd800,
    LAST_SURROGATE = 0xdfff,
    MAX_PAIRS = 1 << 18,      /* of states of two automata */
    MAX_ALIKE_WORK = 1 << 21, /* edges looked at to find states that are alike */
};

/* ---- sets ---- */

void cp_set_deinit(struct cp_set *s) {
    free(s->ranges);
    memset(s, 0, sizeof *s);
}

void cp_set_add(struct cp_set *s, uint32_t low, uint32_t high) {
    if (s->num == s->max) {
        s->max = s->max ? 2 * s->max : 8;
        s->ranges = xrealloc(s->ranges, (size_t)s->max * sizeof *s->ranges);
    }
    s->ranges[s->num++] = (struct cp_range){low, high};
}

static int by_low(const void *a, const void *b) {
    uint32_t p = ((const struct cp_range *)a)->low, q = ((const struct cp_range *)b)->low;
    return p < q ? -1 : p > q;
}

/* Appends a range without what may not be in a string. */
static void add_scalars(struct cp_set *s, uint32_t low, uint32_t high) {
    low = low < 1 ? 1 : low;
    high = high > MAX_CP ? MAX_CP : high;
    if (low < SURROGATES && low <= high)
        cp_set_add(s, low, high < SURROGATES ? high : SURROGATES - 1);
    if (high > LAST_SURROGATE && low <= high)
        cp_set_add(s, low > LAST_SURROGATE ? low : LAST_SURROGATE + 1, high);
}

void cp_set_normalise(struct cp_set *s) {
    struct cp_set clean = {0};
    int32_t n = 0;
    for (int32_t i = 0; i < s->num; i++)
        add_scalars(&clean, s->ranges[i].low, s->ranges[i].high);
    if (clean.num > 1)
        qsort(clean.ranges, (size_t)clean.num, sizeof *clean.ranges, by_low);
    for (int32_t i = 0; i < clean.num; i++) {
        struct cp_range r = clean.ranges[i];
        if (n > 0 && r.low <= clean.ranges[n - 1].high + 1) {
            if (r.high > clean.ranges[n - 1].high)
                clean.ranges[n - 1].high = r.high;
        } else {
            clean.ranges[n++] = r;
        }
    }
    clean.num = n;
    cp_set_deinit(s);
    *s = clean;
}

void cp_set_complement(struct cp_set *s) {
    struct cp_set rest = {0};
    uint32_t next = 1;
    for (int32_t i = 0; i < s->num; i++) {
        if (s->ranges[i].low > next)
            cp_set_add(&rest, next, s->ranges[i].low - 1);
        next = s->ranges[i].high + 1;
    }
    if (next <= MAX_CP)
        cp_set_add(&rest, next, MAX_CP);
    cp_set_deinit(s);
    *s = rest;
    cp_set_normalise(s);
}

static bool sets_equal(const struct cp_set *a, const struct cp_set *b) {
    return a->num == b->num && !memcmp(a->ranges, b->ranges, (size_t)a->num * sizeof *a->ranges);
}

static bool holds_all(const struct cp_set *s) {
    return s->num == 2 && s->ranges[0].low == 1 && s->ranges[0].high == SURROGATES - 1 &&
           s->ranges[1].low == LAST_SURROGATE + 1 && s->ranges[1].high == MAX_CP;
}

/* ---- automata over code points ---- */

void cp_dfa_deinit(struct cp_dfa *d) {
    free(d->edges);
    free(d->ends);
    memset(d, 0, sizeof *d);
}

int32_t cp_dfa_state(struct cp_dfa *d, bool ends) {
    if (d->num_states == d->max_states) {
        d->max_states = d->max_states ? 2 * d->max_states : 16;
        d->ends = xrealloc(d->ends, (size_t)d->max_states * sizeof *d->ends);
    }
    d->ends[d->num_states] = ends;
    return d->num_states++;
}

void cp_dfa_edge(struct cp_dfa *d, int32_t from, uint32_t low, uint32_t high, int32_t to) {
    if (d->num_edges == d->max_edges) {
        d->max_edges = d->max_edges ? 2 * d->max_edges : 32;
        d->edges = xrealloc(d->edges, (size_t)d->max_edges * sizeof *d->edges);
    }
    d->edges[d->num_edges++] = (struct cp_edge){from, to, low, high};
}

static void all_edges(struct cp_dfa *d, int32_t from, int32_t to) {
    cp_dfa_edge(d, from, 1, SURROGATES - 1, to);
    cp_dfa_edge(d, from, LAST_SURROGATE + 1, MAX_CP, to);
}

void cp_dfa_all(struct cp_dfa *d) {
    int32_t s = cp_dfa_state(d, true);
    all_edges(d, s, s);
}

/* A tree of strings under way: which of the sorted strings still match. */
static int compare_strings(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Strings first .. last - 1 agree in their first `at` bytes, which have led to `state`; UTF-8 sorts
 * as code points do. The tree is as deep as a string is long, so it is walked with a list. */
struct branch {
    size_t first, last, at;
    int32_t state;
};

static void put_branch(struct buffer *todo, size_t first, size_t last, size_t at, int32_t state) {
    const struct branch b = {first, last, at, state};
    buffer_append(todo, &b, sizeof b);
}

/* The character that a string, which does not end here, goes on with. Returns its bytes. */
static size_t next_of(const char *text, uint32_t *cp) {
    return utf8_next(text, strnlen(text, 4), cp);
}

static void grow_branch(struct cp_dfa *d, const char **strings, const struct branch *b,
                        int32_t other, struct buffer *todo) {
    struct cp_set rest = {0};
    size_t i = b->first;
    while (i < b->last && strings[i][b->at] == 0) { /* a string ends: not this one */
        d->ends[b->state] = false;
        i++;
    }
    while (i < b->last) {
        uint32_t cp, next = 0;
        size_t n = next_of(strings[i] + b->at, &cp), j = i + 1;
        while (j < b->last && strings[j][b->at] && next_of(strings[j] + b->at, &next) && next == cp)
            j++;
        int32_t to = cp_dfa_state(d, true);
        cp_dfa_edge(d, b->state, cp, cp, to);
        cp_set_add(&rest, cp, cp);
        put_branch(todo, i, j, b->at + n, to);
        i = j;
    }
    cp_set_normalise(&rest);
    cp_set_complement(&rest);
    for (int32_t r = 0; r < rest.num; r++)
        cp_dfa_edge(d, b->state, rest.ranges[r].low, rest.ranges[r].high, other);
    cp_set_deinit(&rest);
}

/* The first edge of every state in an order by states, and one past the last. */
static int32_t *first_edges(const struct cp_dfa *d) {
    int32_t *first = xcalloc((size_t)d->num_states + 1, sizeof *first);
    for (int32_t i = 0; i < d->num_edges; i++)
        first[d->edges[i].from + 1]++;
    for (int32_t s = 0; s < d->num_states; s++)
        first[s + 1] += first[s];
    return first;
}

static void sort_edges(struct cp_dfa *d) {
    int32_t *at = first_edges(d);
    struct cp_edge *sorted = xmalloc((size_t)d->num_edges * sizeof *sorted);
    for (int32_t i = 0; i < d->num_edges; i++)
        sorted[at[d->edges[i].from]++] = d->edges[i];
    free(at);
    free(d->edges);
    d->edges = sorted;
    d->max_edges = d->num_edges;
}

void cp_dfa_all_but(struct cp_dfa *d, const char *const *strings, size_t count) {
    struct buffer todo = {0};
    const char **sorted = xmalloc((count ? count : 1) * sizeof *sorted);
    for (size_t i = 0; i < count; i++)
        sorted[i] = strings[i];
    qsort(sorted, count, sizeof *sorted, compare_strings);
    int32_t start = cp_dfa_state(d, true), other = cp_dfa_state(d, true);
    all_edges(d, other, other);
    put_branch(&todo, 0, count, 0, start);
    while (todo.len > 0) {
        struct branch b;
        todo.len -= sizeof b;
        memcpy(&b, todo.data + todo.len, sizeof b);
        grow_branch(d, sorted, &b, other, &todo);
    }
    buffer_deinit(&todo);
    free(sorted);
    sort_edges(d);
}

/* States are pairs of a state and a number of characters; without max all numbers from min on are
 * one. Made layer by layer, so that only what can be reached is. */
bool cp_dfa_with_length(const struct cp_dfa *d, int32_t min, int32_t max, struct cp_dfa *out) {
    int32_t last = max >= 0 ? max : min, num = d->num_states;
    int32_t *first = first_edges(d), *now = xmalloc((size_t)num * sizeof *now);
    int32_t *next = xmalloc((size_t)num * sizeof *next);
    bool ok = true;
    for (int32_t s = 0; s < num; s++)
        now[s] = next[s] = -1;
    now[0] = cp_dfa_state(out, min == 0 && d->ends[0]);
    for (int32_t n = 0; ok && n <= last; n++) {
        bool stays = n == last;
        if (stays && max >= 0)
            break;
        int32_t *to = stays ? now : next;
        bool ends = stays || n + 1 >= min, again = true;
        while (again) { /* once, but where the layer itself is what is reached */
            again = false;
            for (int32_t s = 0; s < num; s++)
                for (int32_t i = first[s]; now[s] >= 0 && i < first[s + 1]; i++) {
                    int32_t target = d->edges[i].to;
                    if (to[target] < 0) {
                        to[target] = cp_dfa_state(out, ends && d->ends[target]);
                        again = stays;
                    }
                }
        }
        for (int32_t s = 0; s < num; s++)
            for (int32_t i = first[s]; now[s] >= 0 && i < first[s + 1]; i++)
                cp_dfa_edge(out, now[s], d->edges[i].low, d->edges[i].high, to[d->edges[i].to]);
        ok = out->num_states < GRAMMAR_MAX_STATES && out->num_edges < GRAMMAR_MAX_EDGES;
        if (!stays) {
            int32_t *swap = now;
            now = next;
            next = swap;
            for (int32_t s = 0; s < num; s++)
                next[s] = -1;
        }
    }
    free(first);
    free(now);
    free(next);
    sort_edges(out);
    return ok;
}

/* ---- two automata ---- */

struct pairs {
    const struct cp_dfa *a, *b;
    int32_t *first_a, *first_b;
    int32_t *number;       /* [states of a, states of b] -1: not reached */
    struct buffer reached; /* a's and b's state, by number */
};

static int32_t pair_of(struct pairs *p, int32_t a, int32_t b, struct cp_dfa *out) {
    int32_t *number = &p->number[(size_t)a * (size_t)p->b->num_states + (size_t)b];
    const int32_t pair[2] = {a, b};
    if (*number < 0) {
        *number = cp_dfa_state(out, p->a->ends[a] && p->b->ends[b]);
        buffer_append(&p->reached, pair, sizeof pair);
    }
    return *number;
}

/* Returns how many pairs of edges were looked at. */
static int64_t add_pair_edges(struct pairs *p, int32_t from, struct cp_dfa *out) {
    int32_t pair[2];
    memcpy(pair, p->reached.data + (size_t)from * sizeof pair, sizeof pair);
    int32_t num_a = p->first_a[pair[0] + 1] - p->first_a[pair[0]];
    int32_t num_b = p->first_b[pair[1] + 1] - p->first_b[pair[1]];
    for (int32_t i = p->first_a[pair[0]]; i < p->first_a[pair[0] + 1]; i++)
        for (int32_t k = p->first_b[pair[1]]; k < p->first_b[pair[1] + 1]; k++) {
            const struct cp_edge *e = &p->a->edges[i], *f = &p->b->edges[k];
            uint32_t low = e->low > f->low ? e->low : f->low;
            uint32_t high = e->high < f->high ? e->high : f->high;
            if (low <= high)
                cp_dfa_edge(out, from, low, high, pair_of(p, e->to, f->to, out));
        }
    return 1 + (int64_t)num_a * num_b;
}

bool cp_dfa_both(const struct cp_dfa *a, const struct cp_dfa *b, int64_t *work,
                 struct cp_dfa *out) {
    size_t n = (size_t)a->num_states * (size_t)b->num_states;
    if (n > MAX_PAIRS)
        return false;
    struct pairs p = {.a = a, .b = b, .first_a = first_edges(a), .first_b = first_edges(b)};
    p.number = xmalloc(n * sizeof *p.number);
    memset(p.number, 0xff, n * sizeof *p.number);
    pair_of(&p, 0, 0, out);
    for (int32_t s = 0; s < out->num_states && *work >= 0; s++)
        *work -= add_pair_edges(&p, s, out);
    free(p.first_a);
    free(p.first_b);
    free(p.number);
    buffer_deinit(&p.reached);
    return *work >= 0;
}

/* ---- states that are alike ---- */

struct behaviour {
    uint64_t hash; /* of what is accepted */
    int32_t state;
};

static int by_behaviour(const void *a, const void *b) {
    const struct behaviour *p = a, *q = b;
    if (p->hash != q->hash)
        return p->hash < q->hash ? -1 : 1;
    return p->state < q->state ? -1 : p->state > q->state;
}

static uint64_t mix(uint64_t h, uint64_t v) {
    h = (h ^ v) * 0x9e3779b97f4a7c15u;
    return h ^ (h >> 29);
}

/* What a state does within n + 1 characters is what it does itself, and what those that it leads to
 * do within n. A hash that two of them share by chance makes a mask wrong, not a document: the
 * matcher goes by the states. */
static void look_further(const struct cp_dfa *d, const uint64_t *now, uint64_t *next) {
    for (int32_t s = 0, i = 0; s < d->num_states; s++) {
        uint64_t h = mix(1, d->ends[s]);
        for (; i < d->num_edges && d->edges[i].from == s; i++) {
            const struct cp_edge *e = &d->edges[i];
            h = mix(mix(h, (uint64_t)e->low << 32 | e->high), now[e->to]);
        }
        next[s] = h;
    }
}

int32_t *cp_dfa_alike(const struct cp_dfa *d, int32_t chars) {
    size_t n = (size_t)d->num_states;
    int32_t *alike = xmalloc(n * sizeof *alike);
    memset(alike, 0xff, n * sizeof *alike);
    if (d->num_states <= chars || (int64_t)d->num_edges * chars > MAX_ALIKE_WORK)
        return alike;
    uint64_t *now = xcalloc(n, sizeof *now), *next = xcalloc(n, sizeof *next);
    struct behaviour *sorted = xmalloc(n * sizeof *sorted);
    for (int32_t i = 0; i <= chars; i++) {
        look_further(d, now, next);
        uint64_t *swap = now;
        now = next;
        next = swap;
    }
    for (int32_t s = 0; s < d->num_states; s++)
        sorted[s] = (struct behaviour){now[s], s};
    qsort(sorted, n, sizeof *sorted, by_behaviour);
    for (size_t i = 0, first = 0; i < n; i++) {
        if (sorted[i].hash != sorted[first].hash)
            first = i;
        if (i > first)
            alike[sorted[i].state] = alike[sorted[first].state] = sorted[first].state;
    }
    free(now);
    free(next);
    free(sorted);
    return alike;
}

/* ---- bytes ---- */

static const uint32_t length_limits[] = {0x7f, 0x7ff, 0xffff, MAX_CP};

/* The characters whose encodings have each byte between those of low and of high. */
static void add_sequence(struct builder *b, int32_t from, const char *low, const char *high,
                         size_t len, int32_t to) {
    for (size_t i = 0; i < len; i++) {
        int32_t next = i + 1 < len ? add_state(b) : to;
        add_bytes(b, from, (uint8_t)low[i], (uint8_t)high[i], next);
        from = next;
    }
}

/* A range of characters as UTF-8: cut where the length changes, and where bytes before the last
 * ones differ while those do not take every value. */
static void add_utf8(struct builder *b, int32_t from, uint32_t low, uint32_t high, int32_t to) {
    char first[4], last[4];
    while (low <= high && !b->full) {
        uint32_t end = high;
        for (int32_t i = 0; i < 4; i++)
            if (low <= length_limits[i]) {
                end = end < length_limits[i] ? end : length_limits[i];
                break;
            }
        for (int32_t bits = 6; bits <= 18; bits += 6) {
            uint32_t mask = (1u << bits) - 1;
            if ((low & ~mask) == (end & ~mask) || low <= 0x7f)
                break;
            if ((low & mask) != 0) { /* up to the next whole block */
                end = low | mask;
                break;
            }
            if ((end & mask) != mask && (end & ~mask) > low)
                end = (end & ~mask) - 1; /* whole blocks only */
        }
        size_t len = utf8_put(first, low);
        utf8_put(last, end);
        add_sequence(b, from, first, last, len, to);
        low = end + 1;
    }
}

/* ---- escapes ---- */

static int32_t add_hex(struct builder *b, int32_t from, uint32_t low, uint32_t high) {
    int32_t to = add_state(b);
    for (uint32_t v = low; v <= high; v++) {
        add_bytes(b, from, (uint8_t) "0123456789abcdef"[v], (uint8_t) "0123456789abcdef"[v], to);
        if (v > 9)
            add_bytes(b, from, (uint8_t) "ABCDEF"[v - 10], (uint8_t) "ABCDEF"[v - 10], to);
    }
    return to;
}

/* Characters behind "\u" from a state: all but U+0000 and the halves of pairs, and whole pairs. */
static void add_any_u(struct builder *b, int32_t u, int32_t to) {
    int32_t zero = add_hex(b, u, 0, 0), other = add_hex(b, u, 1, 12), e = add_hex(b, u, 14, 15);
    int32_t d = add_hex(b, u, 13, 13);
    int32_t two = add_state(b), three = add_state(b), four;
    add_empty(b, other, two);
    add_empty(b, e, two);
    add_empty(b, add_hex(b, d, 0, 7), three); /* \uD7FF is the last before the pairs */
    add_empty(b, add_hex(b, zero, 1, 15), three);
    add_empty(b, add_hex(b, two, 0, 15), three);
    four = add_hex(b, three, 0, 15);
    add_empty(b, add_hex(b, four, 0, 15), to);
    int32_t zero2 = add_hex(b, zero, 0, 0); /* \u00 */
    add_empty(b, add_hex(b, zero2, 1, 15), four);
    int32_t zero3 = add_hex(b, zero2, 0, 0); /* \u000 */
    add_empty(b, add_hex(b, zero3, 1, 15), to);
    int32_t high = add_hex(b, add_hex(b, add_hex(b, d, 8, 11), 0, 15), 0, 15);
    int32_t low = add_literal(b, high, "\\u", 2);
    low = add_hex(b, add_hex(b, add_hex(b, add_hex(b, low, 13, 13), 12, 15), 0, 15), 0, 15);
    add_empty(b, low, to);
}

/* Any character of a string that is not one plain byte. */
static void add_any_rest(struct builder *b, int32_t from, int32_t to) {
    int32_t escape = add_char(b, from, '\\');
    add_utf8(b, from, 0x80, SURROGATES - 1, to);
    add_utf8(b, from, LAST_SURROGATE + 1, MAX_CP, to);
    for (const char *c = "\"\\/bfnrt"; *c; c++)
        add_bytes(b, escape, (uint8_t)*c, (uint8_t)*c, to);
    add_any_u(b, add_char(b, escape, 'u'), to);
}

static void add_plain(struct builder *b, int32_t from, uint32_t low, uint32_t high, int32_t to) {
    if (low <= high)
        add_bytes(b, from, (uint8_t)low, (uint8_t)high, to);
}

static bool is_plain(uint32_t cp) {
    return cp >= 0x20 && cp <= 0x7f && cp != '"' && cp != '\\';
}

/* The one escape of a character that needs one. */
static void add_escape(struct builder *b, int32_t escape, uint32_t cp, int32_t to) {
    static const char from[] = "\"\\\b\f\n\r\t", as[] = "\"\\bfnrt";
    const char *p = cp < 0x80 ? strchr(from, (int)cp) : NULL;
    if (p) {
        add_bytes(b, escape, (uint8_t)as[p - from], (uint8_t)as[p - from], to);
        return;
    }
    int32_t u = add_literal(b, escape, "u00", 3);
    add_empty(b, add_hex(b, add_hex(b, u, cp >> 4, cp >> 4), cp & 15, cp & 15), to);
}

/* What a set has beside plain bytes. */
static void add_rest(struct builder *b, const struct cp_set *s, int32_t from, int32_t to) {
    int32_t escape = -1;
    for (int32_t i = 0; i < s->num; i++) {
        uint32_t low = s->ranges[i].low, high = s->ranges[i].high;
        for (uint32_t cp = low; cp <= high && cp < 0x80; cp++)
            if (!is_plain(cp)) {
                if (escape < 0)
                    escape = add_char(b, from, '\\');
                add_escape(b, escape, cp, to);
            }
        if (high >= 0x80)
            add_utf8(b, from, low < 0x80 ? 0x80 : low, high, to);
    }
}

/* ---- strings ---- */

void char_rules_deinit(struct char_rules *r) {
    for (int32_t i = 0; i < r->num; i++)
        cp_set_deinit(&r->rules[i].set);
    free(r->rules);
    memset(r, 0, sizeof *r);
}

static int32_t rest_rule(struct builder *b, struct char_rules *r, const struct cp_set *s) {
    if (holds_all(s) && r->any_rule >= 0)
        return r->any_rule;
    for (int32_t i = 0; i < r->num; i++)
        if (sets_equal(&r->rules[i].set, s))
            return r->rules[i].rule;
    int32_t rule = add_rule(b), end = add_state(b);
    set_end(b, end);
    if (holds_all(s)) {
        add_any_rest(b, b->start[rule], end);
        r->any_rule = rule;
        return rule;
    }
    add_rest(b, s, b->start[rule], end);
    if (r->num == r->max) {
        r->max = r->max ? 2 * r->max : 16;
        r->rules = xrealloc(r->rules, (size_t)r->max * sizeof *r->rules);
    }
    struct char_rule *made = &r->rules[r->num++];
    *made = (struct char_rule){.rule = rule};
    for (int32_t i = 0; i < s->num; i++)
        cp_set_add(&made->set, s->ranges[i].low, s->ranges[i].high);
    return rule;
}

/* Edges for the characters of a normalised set. */
static void add_set(struct builder *b, struct char_rules *rules, int32_t from,
                    const struct cp_set *s, int32_t to) {
    bool rest = false;
    for (int32_t i = 0; i < s->num; i++) {
        uint32_t low = s->ranges[i].low, high = s->ranges[i].high;
        for (uint32_t cp = low; cp <= high && cp < 0x80;) {
            uint32_t end = cp;
            if (!is_plain(cp)) {
                rest = true;
                cp++;
                continue;
            }
            while (end < high && is_plain(end + 1))
                end++;
            add_plain(b, from, cp, end, to);
            cp = end + 1;
        }
        rest |= high >= 0x80;
    }
    if (rest && !b->full)
        add_call(b, from, rest_rule(b, rules, s), to);
}

int32_t add_string(struct builder *b, struct char_rules *rules, int32_t from,
                   const struct cp_dfa *d) {
    int32_t end = add_state(b), i = 0;
    int32_t *state = xmalloc((size_t)d->num_states * sizeof *state);
    int32_t *alike = cp_dfa_alike(d, GRAMMAR_ALIKE_CHARS);
    bool *done = xcalloc((size_t)d->num_edges + 1, sizeof *done);
    for (int32_t s = 0; s < d->num_states; s++) {
        state[s] = add_state(b);
        if (alike[s] >= 0 && !b->full)
            b->alike[state[s]] = state[alike[s]];
    }
    add_bytes(b, from, '"', '"', state[0]);
    for (int32_t s = 0; s < d->num_states && !b->full; s++) {
        int32_t first = i;
        while (i < d->num_edges && d->edges[i].from == s)
            i++;
        for (int32_t e = first; e < i; e++) { /* all edges to one state are one set */
            struct cp_set set = {0};
            for (int32_t k = e; !done[e] && k < i; k++)
                if (d->edges[k].to == d->edges[e].to && (k == e || !done[k])) {
                    cp_set_add(&set, d->edges[k].low, d->edges[k].high);
                    done[k] = k != e;
                }
            if (set.num > 0) {
                cp_set_normalise(&set);
                add_set(b, rules, state[s], &set, state[d->edges[e].to]);
            }
            cp_set_deinit(&set);
        }
        if (d->ends[s])
            add_bytes(b, state[s], '"', '"', end);
    }
    free(state);
    free(alike);
    free(done);
    return end;
}

int32_t add_any_string(struct builder *b, int32_t from) {
    int32_t body = add_char(b, from, '"');
    add_plain(b, body, 0x20, 0x21, body);
    add_plain(b, body, 0x23, 0x5b, body);
    add_plain(b, body, 0x5d, 0x7f, body);
    int32_t end = add_char(b, body, '"');
    add_any_rest(b, body, body);
    return end;
}
