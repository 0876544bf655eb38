/* What the lanes of a warp do together: shfl, vote, match, redux, elect, bar.warp.sync. */
#include "tests/ptxvm/decode.h"

#include <string.h>

enum { POISON = 0xffffffffu }; /* what a lane reads from one that takes no part */

/* ---- handlers: i->c is the register with the masks of members
 * ------------------------------------ */

/* True when everybody is here; *mask are the members of each lane, the same for all that are. */
static bool gathered(struct vm_warp *w, const struct vm_inst *i, uint32_t *m,
                     const uint32_t **mask) {
    *mask = VM_REG(w, i->c, uint32_t);
    return vm_collect(w, i, m, *mask);
}

enum { SHFL_UP, SHFL_DOWN, SHFL_BFLY, SHFL_IDX };

static inline uint32_t shuffle_source(uint32_t op, uint32_t lane, uint32_t b, uint32_t c,
                                      bool *ok) {
    uint32_t seg = c >> 8 & 31, clamp = c & 31, by = b & 31;
    uint32_t last = (lane & seg) | (clamp & ~seg), first = lane & seg;
    int32_t j = op == SHFL_UP     ? (int32_t)lane - (int32_t)by
                : op == SHFL_DOWN ? (int32_t)(lane + by)
                : op == SHFL_BFLY ? (int32_t)(lane ^ by)
                                  : (int32_t)(first | (by & ~seg));
    *ok = op == SHFL_UP ? j >= (int32_t)last : j <= (int32_t)last;
    return *ok ? (uint32_t)j : lane;
}

/* The source of each lane, and which of them are in range. Called with an op that the compiler
 * knows. */
static inline uint32_t shuffle_sources(uint32_t op, const uint32_t *b, const uint32_t *c,
                                       uint32_t from[VM_WARP]) {
    uint32_t in_range[VM_WARP], valid = 0;
    VM_LANES {
        bool ok;
        from[l] = shuffle_source(op, (uint32_t)l, b[l], c[l], &ok);
        in_range[l] = ok;
    }
    VM_LANES valid |= in_range[l] << l;
    return valid;
}

/* more: the clamp. */
static void shfl(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    const uint32_t *mask;
    if (!gathered(w, i, &m, &mask))
        return;
    const uint32_t *b = VM_REG(w, i->b, uint32_t), *c = VM_REG(w, i->more[0], uint32_t);
    uint32_t a[VM_WARP], from[VM_WARP], *d = VM_REG(w, i->d, uint32_t);
    uint32_t members = m & mask[vm_first(m)];
    uint32_t valid = i->op == SHFL_UP     ? shuffle_sources(SHFL_UP, b, c, from)
                     : i->op == SHFL_DOWN ? shuffle_sources(SHFL_DOWN, b, c, from)
                     : i->op == SHFL_BFLY ? shuffle_sources(SHFL_BFLY, b, c, from)
                                          : shuffle_sources(SHFL_IDX, b, c, from);
    memcpy(a, VM_REG(w, i->a, uint32_t), sizeof a);
    VM_LANES {
        uint32_t v = members >> from[l] & 1 ? a[from[l]] : POISON;
        d[l] = (m >> l & 1) ? v : d[l];
    }
    vm_set_pred(w, i->q, m, valid);
}

enum { VOTE_ALL, VOTE_ANY, VOTE_UNI, VOTE_BALLOT };

static void vote(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    const uint32_t *mask;
    if (!gathered(w, i, &m, &mask))
        return;
    uint32_t in = VM_PRED(w, i->a) ^ (i->negate_c ? VM_ALL : 0), out = 0;
    VM_LANES if (m >> l & 1) {
        uint32_t all = mask[l] & m, set = in & all;
        if (i->op == VOTE_BALLOT)
            VM_REG(w, i->d, uint32_t)[l] = set;
        out |= (uint32_t)(i->op == VOTE_ANY   ? set != 0
                          : i->op == VOTE_UNI ? set == all || !set
                                              : set == all)
               << l;
    }
    if (i->op != VOTE_BALLOT)
        vm_set_pred(w, i->d, m, out);
}

/* op: 1 all, 0 any. */
static void match(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    const uint32_t *mask;
    if (!gathered(w, i, &m, &mask))
        return;
    uint64_t a[VM_WARP];
    uint32_t same[VM_WARP] = {0}, agree = 0;
    VM_LANES a[l] = i->size == 8 ? VM_REG(w, i->a, uint64_t)[l] : VM_REG(w, i->a, uint32_t)[l];
    VM_LANES if (m >> l & 1) {
        for (int k = 0; k < VM_WARP; k++)
            if ((m & mask[l]) >> k & 1 && a[k] == a[l])
                same[l] |= 1u << k;
        agree |= (uint32_t)(same[l] == (m & mask[l])) << l;
    }
    VM_LANES if (m >> l & 1) VM_REG(w, i->d, uint32_t)[l] =
        !i->op || (agree >> l & 1) ? same[l] : 0;
    vm_set_pred(w, i->q, m, agree);
}

enum {
    REDUX_ADD,
    REDUX_MIN_U,
    REDUX_MAX_U,
    REDUX_MIN_S,
    REDUX_MAX_S,
    REDUX_AND,
    REDUX_OR,
    REDUX_XOR
};

static uint32_t reduced(uint32_t op, uint32_t x, uint32_t y) {
    switch (op) {
    case REDUX_ADD:
        return x + y;
    case REDUX_MIN_U:
        return x < y ? x : y;
    case REDUX_MAX_U:
        return x > y ? x : y;
    case REDUX_MIN_S:
        return (int32_t)x < (int32_t)y ? x : y;
    case REDUX_MAX_S:
        return (int32_t)x > (int32_t)y ? x : y;
    case REDUX_AND:
        return x & y;
    case REDUX_OR:
        return x | y;
    default:
        return x ^ y;
    }
}

static void redux(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    const uint32_t *mask;
    if (!gathered(w, i, &m, &mask))
        return;
    const uint32_t *a = VM_REG(w, i->a, uint32_t);
    uint32_t *d = VM_REG(w, i->d, uint32_t), rest = m & mask[vm_first(m)];
    uint32_t r = a[vm_first(rest)];
    for (rest &= rest - 1; rest; rest &= rest - 1)
        r = reduced(i->op, r, a[vm_first(rest)]);
    VM_LANES d[l] = (m >> l & 1) ? r : d[l];
}

static void elect(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    const uint32_t *mask;
    if (!gathered(w, i, &m, &mask))
        return;
    uint32_t chosen = 0;
    VM_LANES if (m >> l & 1) {
        uint32_t leader = (uint32_t)vm_first((m & mask[l]) | 1u << l);
        VM_REG(w, i->d, uint32_t)[l] = leader;
        chosen |= (uint32_t)(leader == (uint32_t)l) << l;
    }
    vm_set_pred(w, i->q, m, chosen);
}

static void bar_warp_sync(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    const uint32_t *mask;
    if (!gathered(w, i, &m, &mask))
        return;
    for (uint32_t rest = m; w->block->grid->race && rest;) {
        uint32_t members = (mask[vm_first(rest)] & m) | 1u << vm_first(rest);
        vm_race_warp_sync(w, members);
        rest &= ~members;
    }
}

static void activemask(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    VM_LANES if (m >> l & 1) VM_REG(w, i->d, uint32_t)[l] = m;
}

/* ---- decoders
 * ---------------------------------------------------------------------------------------- */

static int32_t choose(const struct vm_decoder *d, const char *const *names) {
    for (int32_t n = 0; names[n]; n++)
        if (vm_has_part(d, names[n]))
            return n;
    return -1;
}

/* d|p: p is the second destination. */
static void second(struct vm_decoder *d, const struct ptx_operand *o, struct vm_inst *i) {
    if (o->second >= 0)
        i->q = d->frame->registers[o->second];
}

static bool decode_shfl(struct vm_decoder *d, struct vm_inst *i) {
    static const char *const modes[] = {"up", "down", "bfly", "idx", NULL};
    const struct ptx_operand *o = d->in->operands;
    int32_t mode = choose(d, modes);
    uint32_t *more = vm_more(d, 1);
    if (mode < 0 || !vm_has_part(d, "sync") || d->in->num_operands != 5)
        return false;
    i->op = (uint8_t)mode;
    i->run = shfl;
    i->more = more;
    second(d, &o[0], i);
    return vm_destination(d, &o[0], 4, &i->d) && vm_operand(d, &o[1], 4, &i->a) &&
           vm_operand(d, &o[2], 4, &i->b) && vm_operand(d, &o[3], 4, &more[0]) &&
           vm_operand(d, &o[4], 4, &i->c);
}

static bool decode_vote(struct vm_decoder *d, struct vm_inst *i) {
    static const char *const modes[] = {"all", "any", "uni", "ballot", NULL};
    const struct ptx_operand *o = d->in->operands;
    int32_t mode = choose(d, modes);
    if (mode < 0 || !vm_has_part(d, "sync") || d->in->num_operands != 3)
        return false;
    i->op = (uint8_t)mode;
    i->run = vote;
    i->negate_c = o[1].negated;
    return vm_destination(d, &o[0], mode == VOTE_BALLOT ? 4 : 0, &i->d) &&
           vm_operand(d, &o[1], 0, &i->a) && vm_operand(d, &o[2], 4, &i->c);
}

static bool decode_match(struct vm_decoder *d, struct vm_inst *i) {
    const struct ptx_operand *o = d->in->operands;
    if (d->in->num_operands != 3)
        return false;
    i->op = vm_has_part(d, "all");
    i->size = vm_has_part(d, "b64") ? 8 : 4;
    i->run = match;
    second(d, &o[0], i);
    return vm_destination(d, &o[0], 4, &i->d) && vm_operand(d, &o[1], i->size, &i->a) &&
           vm_operand(d, &o[2], 4, &i->c);
}

static bool decode_redux(struct vm_decoder *d, struct vm_inst *i) {
    static const char *const modes[] = {"add", "min", "max", "", "", "and", "or", "xor", NULL};
    const struct ptx_operand *o = d->in->operands;
    int32_t mode = choose(d, modes);
    if (mode < 0 || d->in->num_operands != 3 || vm_has_part(d, "f32"))
        return false;
    if (vm_has_part(d, "s32") && (mode == REDUX_MIN_U || mode == REDUX_MAX_U))
        mode += REDUX_MIN_S - REDUX_MIN_U;
    i->op = (uint8_t)mode;
    i->run = redux;
    return vm_destination(d, &o[0], 4, &i->d) && vm_operand(d, &o[1], 4, &i->a) &&
           vm_operand(d, &o[2], 4, &i->c);
}

static bool decode_elect(struct vm_decoder *d, struct vm_inst *i) {
    const struct ptx_operand *o = d->in->operands;
    if (d->in->num_operands != 2)
        return false;
    i->run = elect;
    second(d, &o[0], i);
    return vm_destination(d, &o[0], 4, &i->d) && vm_operand(d, &o[1], 4, &i->c);
}

bool vm_decode_warp(struct vm_decoder *d, struct vm_inst *i) {
    const struct ptx_operand *o = d->in->operands;
    struct ptx_text op = d->parts[0];
    if (ptx_text_is(op, "shfl"))
        return decode_shfl(d, i);
    if (ptx_text_is(op, "vote"))
        return decode_vote(d, i);
    if (ptx_text_is(op, "match"))
        return decode_match(d, i);
    if (ptx_text_is(op, "redux"))
        return decode_redux(d, i);
    if (ptx_text_is(op, "elect"))
        return decode_elect(d, i);
    if (d->in->num_operands != 1)
        return false;
    if (ptx_text_is(op, "bar") || ptx_text_is(op, "barrier")) {
        i->run = bar_warp_sync;
        return vm_operand(d, &o[0], 4, &i->c);
    }
    i->run = activemask;
    return ptx_text_is(op, "activemask") && vm_destination(d, &o[0], 4, &i->d);
}
