/* Where the registers of a function lie in a warp's register file.
 *
 * nvcc writes PTX with a fresh register for almost every value: thousands in a large kernel, a
 * megabyte a warp, of which a few dozen hold anything at a time. Registers whose lives do not
 * overlap share a place here, which keeps a warp's file in the CPU's first caches.
 *
 * A life is the stretch of the function's text from the first to the last instruction at which the
 * register's value may still be wanted, by the usual backward data flow over basic blocks. That it
 * is one stretch, without holes, costs some room and makes the assignment one pass. Lanes that
 * have diverged stand at different instructions, but each lane writes its own element only, so
 * what holds for one thread's path holds for all.
 *
 * A destination never shares the place of a source of the same instruction, although PTX would
 * allow it: handlers may write one of several results before they read the last operand.
 */
#include "tests/ptxvm/decode.h"

#include <string.h>

#include "tests/ptxvm/rt_alloc.h"

struct block {
    int32_t first, last; /* instructions, inclusive */
    int32_t *next;       /* successors; owned */
    int32_t num_next, cap_next;
};

struct liveness {
    const struct ptx_function *f;
    int32_t *block_of; /* [num_code]: the block that starts there, -1: none */
    struct block *blocks;
    int32_t num_blocks;
    size_t words;             /* of a set of registers */
    uint64_t *in, *use, *def; /* [num_blocks][words] */
    int32_t *first, *last;    /* [num_registers]: the life; first > last: never */
};

/* ---- what an instruction reads and writes ---------------------------------------------------- */

typedef void (*visit)(struct liveness *lv, int32_t reg, void *arg);

static void each_register(struct liveness *lv, const struct ptx_operand *o, visit fn, void *arg) {
    if (o->index >= 0)
        fn(lv, o->index, arg);
    if (o->second >= 0)
        fn(lv, o->second, arg);
    for (int32_t i = 0; i < o->num_items; i++)
        each_register(lv, &o->items[i], fn, arg);
}

/* Does the opcode start with this name, alone or before a dot? */
static bool is_op(const struct ptx_instruction *in, const char *name) {
    int32_t len = (int32_t)strlen(name);
    return in->op.len >= len && !memcmp(in->op.s, name, (size_t)len) &&
           (in->op.len == len || in->op.s[len] == '.');
}

/* Whether the first operand is a result. */
static bool has_result(const struct ptx_instruction *in) {
    static const char *const without[] = {
        "st",         "red",    "nanosleep", "bra",           "brx",
        "call",       "ret",    "exit",      "trap",          "cp",
        "fence",      "membar", "stmatrix",  "prefetch",      "prefetchu",
        "pmevent",    "brkpt",  "discard",   "applypriority", "griddepcontrol",
        "setmaxnreg",
    };
    if (!in->num_operands || in->operands[0].kind == PTX_OP_ADDRESS)
        return false;
    if (is_op(in, "bar") || is_op(in, "barrier"))
        return is_op(in, "bar.red") || is_op(in, "barrier.red") || is_op(in, "barrier.cta.red");
    for (size_t i = 0; i < sizeof without / sizeof *without; i++)
        if (is_op(in, without[i]))
            return false;
    return true;
}

static void each_use(struct liveness *lv, const struct ptx_instruction *in, visit fn, void *arg) {
    if (in->guard >= 0)
        fn(lv, in->guard, arg);
    for (int32_t i = has_result(in) ? 1 : 0; i < in->num_operands; i++)
        each_register(lv, &in->operands[i], fn, arg);
}

static void each_result(struct liveness *lv, const struct ptx_instruction *in, visit fn,
                        void *arg) {
    if (has_result(in))
        each_register(lv, &in->operands[0], fn, arg);
}

/* ---- blocks ---------------------------------------------------------------------------------- */

static bool ends_block(const struct ptx_instruction *in) {
    return is_op(in, "bra") || is_op(in, "brx") || is_op(in, "ret") || is_op(in, "exit") ||
           is_op(in, "trap");
}

static void find_blocks(struct liveness *lv) {
    const struct ptx_function *f = lv->f;
    lv->block_of = rt_calloc_array((size_t)f->num_code + 1, sizeof *lv->block_of);
    bool *leader = rt_calloc_array((size_t)f->num_code + 1, sizeof *leader);
    leader[0] = true;
    for (int32_t i = 0; i < f->num_labels; i++)
        leader[f->labels[i].target] = true;
    for (int32_t i = 0; i < f->num_code; i++)
        leader[i + 1] |= ends_block(&f->code[i]);
    for (int32_t i = 0; i < f->num_code; i++)
        lv->num_blocks += leader[i];
    lv->blocks = rt_calloc_array((size_t)lv->num_blocks, sizeof *lv->blocks);
    int32_t b = -1;
    for (int32_t i = 0; i < f->num_code; i++) {
        lv->block_of[i] = leader[i] ? ++b : -1;
        if (leader[i])
            lv->blocks[b].first = i;
        lv->blocks[b].last = i;
    }
    lv->block_of[f->num_code] = -1;
    rt_free(leader);
}

static void add_successor(struct liveness *lv, struct block *b, int32_t inst) {
    if (inst >= lv->f->num_code)
        return;
    b->next = ptx_grow(b->next, b->num_next, &b->cap_next, sizeof *b->next);
    b->next[b->num_next++] = lv->block_of[inst];
}

static void add_label(struct liveness *lv, struct block *b, const struct ptx_instruction *in,
                      struct ptx_text name) {
    const struct ptx_label *l = ptx_find_label(lv->f, name, in->scope);
    if (!l)
        return; /* the decoder refuses the branch */
    if (!l->num_targets)
        add_successor(lv, b, l->target);
    for (int32_t i = 0; i < l->num_targets; i++)
        add_label(lv, b, in, l->targets[i]);
}

static void connect(struct liveness *lv) {
    for (int32_t n = 0; n < lv->num_blocks; n++) {
        struct block *b = &lv->blocks[n];
        const struct ptx_instruction *in = &lv->f->code[b->last];
        if (is_op(in, "bra") || is_op(in, "brx"))
            for (int32_t i = 0; i < in->num_operands; i++)
                if (in->operands[i].kind == PTX_OP_NAME)
                    add_label(lv, b, in, in->operands[i].text);
        if (!ends_block(in) || in->guard >= 0)
            add_successor(lv, b, b->last + 1);
    }
}

/* ---- data flow ------------------------------------------------------------------------------- */

static bool in_set(const uint64_t *set, int32_t reg) {
    return set[reg / 64] >> (reg % 64) & 1;
}

static void put(uint64_t *set, int32_t reg) {
    set[reg / 64] |= (uint64_t)1 << (reg % 64);
}

/* A use counts unless the block has set the register before. */
static void note_use(struct liveness *lv, int32_t reg, void *arg) {
    size_t at = (size_t) * (int32_t *)arg * lv->words;
    if (!in_set(lv->def + at, reg))
        put(lv->use + at, reg);
}

static void note_result(struct liveness *lv, int32_t reg, void *arg) {
    put(lv->def + (size_t) * (int32_t *)arg * lv->words, reg);
}

static void summarise(struct liveness *lv) {
    for (int32_t n = 0; n < lv->num_blocks; n++)
        for (int32_t i = lv->blocks[n].first; i <= lv->blocks[n].last; i++) {
            const struct ptx_instruction *in = &lv->f->code[i];
            each_use(lv, in, note_use, &n);
            /* Under a guard the old value may survive: the register is not set but used. */
            each_result(lv, in, in->guard >= 0 ? note_use : note_result, &n);
        }
}

static uint64_t live_out_word(const struct liveness *lv, int32_t block, size_t word) {
    uint64_t out = 0;
    for (int32_t s = 0; s < lv->blocks[block].num_next; s++)
        out |= lv->in[(size_t)lv->blocks[block].next[s] * lv->words + word];
    return out;
}

static void solve(struct liveness *lv) {
    for (bool changed = true; changed;) {
        changed = false;
        for (int32_t n = lv->num_blocks - 1; n >= 0; n--)
            for (size_t k = 0; k < lv->words; k++) {
                size_t at = (size_t)n * lv->words + k;
                uint64_t in = lv->use[at] | (live_out_word(lv, n, k) & ~lv->def[at]);
                changed |= in != lv->in[at];
                lv->in[at] = in;
            }
    }
}

/* ---- lives ----------------------------------------------------------------------------------- */

static void stretch(struct liveness *lv, int32_t reg, void *arg) {
    int32_t at = *(int32_t *)arg;
    if (at < lv->first[reg])
        lv->first[reg] = at;
    if (at > lv->last[reg])
        lv->last[reg] = at;
}

static void stretch_set(struct liveness *lv, size_t word, uint64_t set, int32_t at) {
    for (; set; set &= set - 1)
        stretch(lv, (int32_t)(word * 64) + __builtin_ctzll(set), &at);
}

static void find_lives(struct liveness *lv) {
    for (int32_t r = 0; r < lv->f->num_registers; r++) {
        lv->first[r] = INT32_MAX;
        lv->last[r] = -1;
    }
    for (int32_t i = 0; i < lv->f->num_code; i++) {
        each_use(lv, &lv->f->code[i], stretch, &i);
        each_result(lv, &lv->f->code[i], stretch, &i);
    }
    for (int32_t n = 0; n < lv->num_blocks; n++)
        for (size_t k = 0; k < lv->words; k++) {
            stretch_set(lv, k, lv->in[(size_t)n * lv->words + k], lv->blocks[n].first);
            stretch_set(lv, k, live_out_word(lv, n, k), lv->blocks[n].last);
        }
}

static void analyse(struct liveness *lv, const struct ptx_function *f) {
    lv->f = f;
    lv->words = ((size_t)f->num_registers + 63) / 64;
    lv->first = rt_calloc_array((size_t)f->num_registers, sizeof *lv->first);
    lv->last = rt_calloc_array((size_t)f->num_registers, sizeof *lv->last);
    find_blocks(lv);
    connect(lv);
    size_t words = (size_t)lv->num_blocks * lv->words;
    lv->in = rt_calloc_array(words, sizeof *lv->in);
    lv->use = rt_calloc_array(words, sizeof *lv->use);
    lv->def = rt_calloc_array(words, sizeof *lv->def);
    summarise(lv);
    solve(lv);
    find_lives(lv);
}

static void deinit(struct liveness *lv) {
    for (int32_t n = 0; n < lv->num_blocks; n++)
        rt_free(lv->blocks[n].next);
    rt_free(lv->blocks);
    rt_free(lv->block_of);
    rt_free(lv->in);
    rt_free(lv->use);
    rt_free(lv->def);
    rt_free(lv->first);
    rt_free(lv->last);
}

/* ---- places ---------------------------------------------------------------------------------- */

/* Registers by the instruction at which their life begins or ends: heads of linked lists. */
struct by_place {
    int32_t *head, *next;
};

static struct by_place sorted(const struct ptx_function *f, const int32_t *at,
                              const struct liveness *lv) {
    struct by_place l = {rt_calloc_array((size_t)f->num_code, sizeof(int32_t)),
                         rt_calloc_array((size_t)f->num_registers, sizeof(int32_t))};
    memset(l.head, 0xff, (size_t)f->num_code * sizeof(int32_t));
    for (int32_t r = f->num_registers - 1; r >= 0; r--)
        if (lv->first[r] <= lv->last[r]) {
            l.next[r] = l.head[at[r]];
            l.head[at[r]] = r;
        }
    return l;
}

/* Places of one width that nobody holds; the one given back last is taken first, as it is cached.
 */
struct places {
    uint32_t *offsets;
    int32_t count, cap;
};

static void assign(struct vm_decoder *d, struct vm_frame *fr, const struct liveness *lv) {
    const struct ptx_function *f = fr->f;
    struct by_place begin = sorted(f, lv->first, lv), end = sorted(f, lv->last, lv);
    struct places free_places[9] = {0}; /* by width in bytes */
    for (int32_t i = 0; i < f->num_code; i++) {
        for (int32_t r = begin.head[i]; r >= 0; r = begin.next[r]) {
            struct places *p = &free_places[f->register_bytes[r]];
            fr->registers[r] =
                p->count ? p->offsets[--p->count] : vm_take_register(d->k, f->register_bytes[r]);
        }
        for (int32_t r = end.head[i]; r >= 0; r = end.next[r]) {
            struct places *p = &free_places[f->register_bytes[r]];
            p->offsets = ptx_grow(p->offsets, p->count, &p->cap, sizeof *p->offsets);
            p->offsets[p->count++] = fr->registers[r];
        }
    }
    for (int w = 0; w < 9; w++)
        rt_free(free_places[w].offsets);
    rt_free(begin.head);
    rt_free(begin.next);
    rt_free(end.head);
    rt_free(end.next);
}

void vm_allocate_registers(struct vm_decoder *d, struct vm_frame *fr) {
    struct liveness lv = {0};
    analyse(&lv, fr->f);
    assign(d, fr, &lv);
    deinit(&lv);
}
