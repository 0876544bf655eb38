/* Moves: mov between registers, into and out of pieces of one, clocks; conversions of addresses. */
#include "tests/ptxvm/decode.h"
#include "tests/ptxvm/exec.h"

#include <time.h>

VM_OP1(move_16, uint16_t, uint16_t, a)
VM_OP1(move_32, uint32_t, uint32_t, a)
VM_OP1(move_64, uint64_t, uint64_t, a)

static void move_pred(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint32_t a = VM_PRED(w, i->a);
    vm_set_pred(w, i->d, m, i->negate_c ? ~a : a);
}

/* ---- pieces: the first is the lowest
 * ----------------------------------------------------------------- */

#define PIECES(N, WHOLE, PIECE, BITS)                                                              \
    static void pack_##WHOLE##_##N(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {       \
        uint##WHOLE##_t *d = VM_REG(w, i->d, uint##WHOLE##_t), r[VM_WARP] = {0};                   \
        for (int k = 0; k < N; k++) {                                                              \
            const PIECE *s = VM_REG(w, i->more[k], PIECE);                                         \
            VM_LANES r[l] = (uint##WHOLE##_t)(r[l] | (uint##WHOLE##_t)s[l] << (BITS * k));         \
        }                                                                                          \
        VM_LANES d[l] = (m >> l & 1) ? r[l] : d[l];                                                \
    }                                                                                              \
    static void unpack_##WHOLE##_##N(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {     \
        const uint##WHOLE##_t *a = VM_REG(w, i->a, uint##WHOLE##_t);                               \
        uint##WHOLE##_t v[VM_WARP];                                                                \
        VM_LANES v[l] = a[l];                                                                      \
        for (int k = 0; k < N; k++) {                                                              \
            PIECE *d = VM_REG(w, i->more[k], PIECE);                                               \
            VM_LANES d[l] = (m >> l & 1) ? (PIECE)(v[l] >> (BITS * k)) : d[l];                     \
        }                                                                                          \
    }
PIECES(2, 16, uint8_t, 8)
PIECES(2, 32, uint16_t, 16)
PIECES(4, 32, uint8_t, 8)
PIECES(2, 64, uint32_t, 32)
PIECES(4, 64, uint16_t, 16)

static const struct {
    uint32_t whole, count;
    vm_exec pack, unpack;
} pieces[] = {{2, 2, pack_16_2, unpack_16_2},
              {4, 2, pack_32_2, unpack_32_2},
              {4, 4, pack_32_4, unpack_32_4},
              {8, 2, pack_64_2, unpack_64_2},
              {8, 4, pack_64_4, unpack_64_4}};

static bool decode_pieces(struct vm_decoder *d, struct vm_inst *i, uint32_t whole) {
    const struct ptx_operand *o = d->in->operands;
    bool pack = o[1].kind == PTX_OP_LIST;
    const struct ptx_operand *list = pack ? &o[1] : &o[0];
    uint32_t count = (uint32_t)list->num_items, *more = vm_more(d, list->num_items);
    for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++)
        if (pieces[k].whole == whole && pieces[k].count == count)
            i->run = pack ? pieces[k].pack : pieces[k].unpack;
    if (!i->run)
        return vm_refuse(d, "a register cannot be put together from so many pieces");
    i->more = more;
    i->vec = (uint8_t)count;
    for (uint32_t k = 0; k < count; k++)
        if (pack ? !vm_operand(d, &list->items[k], whole / count, &more[k])
                 : !vm_destination(d, &list->items[k], whole / count, &more[k]))
            return false;
    return pack ? vm_destination(d, &o[0], whole, &i->d) : vm_operand(d, &o[1], whole, &i->a);
}

/* ---- clocks: nanoseconds
 * --------------------------------------------------------------------------- */

static uint64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A loop that looks at the clock waits for something, like one that polls, but not for ever. */
static void read_clock(struct vm_warp *w) {
    w->polled = 1;
    w->block->worker->clock_reads++;
}

static void clock_32(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint32_t *d = VM_REG(w, i->d, uint32_t), now = (uint32_t)(clock_ns() >> i->imm);
    read_clock(w);
    VM_LANES if (m >> l & 1) d[l] = now;
}
static void clock_64(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint64_t *d = VM_REG(w, i->d, uint64_t), now = clock_ns();
    read_clock(w);
    VM_LANES if (m >> l & 1) d[l] = now;
}

static bool decode_clock(struct vm_decoder *d, struct vm_inst *i, uint32_t bytes) {
    static const struct {
        const char *name;
        uint32_t bytes, shift;
    } clocks[] = {{"%clock", 4, 0},       {"%clock_hi", 4, 32},      {"%clock64", 8, 0},
                  {"%globaltimer", 8, 0}, {"%globaltimer_lo", 4, 0}, {"%globaltimer_hi", 4, 32}};
    const struct ptx_operand *o = d->in->operands;
    for (size_t k = 0; k < sizeof clocks / sizeof *clocks; k++)
        if (clocks[k].bytes == bytes && ptx_text_is(o[1].text, clocks[k].name)) {
            i->run = bytes == 8 ? clock_64 : clock_32;
            i->imm = clocks[k].shift;
            return vm_destination(d, &o[0], bytes, &i->d);
        }
    return false;
}

static bool decode_mov(struct vm_decoder *d, struct vm_inst *i) {
    static const struct {
        const char *type;
        uint32_t bytes;
        vm_exec run;
    } types[] = {{"pred", 0, move_pred}, {"b16", 2, move_16}, {"u16", 2, move_16},
                 {"s16", 2, move_16},    {"f16", 2, move_16}, {"bf16", 2, move_16},
                 {"b32", 4, move_32},    {"u32", 4, move_32}, {"s32", 4, move_32},
                 {"f32", 4, move_32},    {"b64", 8, move_64}, {"u64", 8, move_64},
                 {"s64", 8, move_64},    {"f64", 8, move_64}};
    const struct ptx_operand *o = d->in->operands;
    if (d->num_parts != 2 || d->in->num_operands != 2)
        return false;
    for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
        uint32_t bytes = types[k].bytes;
        if (!ptx_text_is(d->parts[1], types[k].type))
            continue;
        if (o[0].kind == PTX_OP_LIST || o[1].kind == PTX_OP_LIST)
            return decode_pieces(d, i, bytes);
        if (o[1].kind == PTX_OP_SPECIAL && decode_clock(d, i, bytes))
            return true;
        i->run = types[k].run;
        i->negate_c = o[1].negated;
        return vm_destination(d, &o[0], bytes, &i->d) && vm_operand(d, &o[1], bytes, &i->a);
    }
    return false;
}

/* ---- address spaces
 * -------------------------------------------------------------------------------- */

static void add_window(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint64_t *d = VM_REG(w, i->d, uint64_t), window = (uint64_t)i->imm;
    const uint64_t *a = VM_REG(w, i->a, uint64_t);
    VM_LANES d[l] = (m >> l & 1) ? a[l] + window : d[l];
}

static void in_window(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    const uint64_t *a = VM_REG(w, i->a, uint64_t);
    uint32_t in = 0;
    VM_LANES in |= (uint32_t)(VM_WINDOW(a[l]) == VM_WINDOW((uint64_t)i->imm)) << l;
    vm_set_pred(w, i->d, m, in);
}

/* The window of a state space that the opcode names; false when it names none. */
static bool named_window(const struct vm_decoder *d, uint64_t *window) {
    static const struct {
        const char *space;
        uint64_t window;
    } spaces[] = {{"global", 0},
                  {"const", 0},
                  {"shared", VM_SHARED_WINDOW},
                  {"shared::cta", VM_SHARED_WINDOW},
                  {"local", VM_LOCAL_WINDOW},
                  {"param", VM_PARAM_WINDOW}};
    for (size_t k = 0; k < sizeof spaces / sizeof *spaces; k++)
        if (vm_has_part(d, spaces[k].space)) {
            *window = spaces[k].window;
            return true;
        }
    return false;
}

/* cvta{.to}.space.u64 d, a; isspacep.space p, a; */
static bool decode_space(struct vm_decoder *d, struct vm_inst *i) {
    const struct ptx_operand *o = d->in->operands;
    uint64_t window;
    bool asks = ptx_text_is(d->parts[0], "isspacep");
    if (d->in->num_operands != 2 || !named_window(d, &window))
        return false;
    if (!asks && !vm_has_part(d, "u64"))
        return vm_refuse(d, "addresses have 64 bits");
    i->run = asks ? in_window : add_window;
    i->imm = (int64_t)(vm_has_part(d, "to") ? 0 - window : window);
    return vm_destination(d, &o[0], asks ? 0 : 8, &i->d) && vm_operand(d, &o[1], 8, &i->a);
}

/* ---- the rest
 * -------------------------------------------------------------------------------------- */

static void sleep_a_while(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    (void)i, (void)m;
    w->polled = 1;
}

static bool decode_sleep(struct vm_decoder *d, struct vm_inst *i) {
    i->run = sleep_a_while;
    return d->in->num_operands == 1 && vm_operand(d, &d->in->operands[0], 4, &i->a);
}

/* A policy says how to cache, which changes no result: it is a register of zeros. */
static bool decode_policy(struct vm_decoder *d, struct vm_inst *i) {
    i->run = move_64;
    i->a = vm_constant(d, 0, NULL, 8);
    return d->in->num_operands && vm_destination(d, &d->in->operands[0], 8, &i->d);
}

bool vm_decode_move(struct vm_decoder *d, struct vm_inst *i) {
    if (ptx_text_is(d->parts[0], "mov"))
        return decode_mov(d, i);
    if (ptx_text_is(d->parts[0], "nanosleep"))
        return decode_sleep(d, i);
    if (ptx_text_is(d->parts[0], "createpolicy"))
        return decode_policy(d, i);
    return decode_space(d, i);
}
