/* atom and red: a loop of compare-and-swap on the memory itself, since blocks run on several
 * threads of the host. */
#include <immintrin.h>
#include <string.h>

#include "tests/ptxvm/access.h"
#include "tests/ptxvm/decode_memory.h"

enum atomic_op { AT_AND, AT_OR, AT_XOR, AT_EXCH, AT_ADD, AT_INC, AT_DEC, AT_MIN, AT_MAX, AT_CAS };
enum atomic_type { AT_UNSIGNED, AT_SIGNED, AT_FLOAT, AT_HALF, AT_HALF2, AT_BFLOAT, AT_BFLOAT2 };

/* ---- one operation
 * -------------------------------------------------------------------------------- */

static uint64_t integer_result(const struct vm_inst *i, uint64_t old, uint64_t b, uint64_t c) {
    int shift = 64 - 8 * i->size;
    bool less = i->type == AT_SIGNED ? (int64_t)(old << shift) < (int64_t)(b << shift) : old < b;
    switch (i->op) {
    case AT_AND:
        return old & b;
    case AT_OR:
        return old | b;
    case AT_XOR:
        return old ^ b;
    case AT_ADD:
        return old + b;
    case AT_INC:
        return old >= b ? 0 : old + 1;
    case AT_DEC:
        return old == 0 || old > b ? b : old - 1;
    case AT_MIN:
        return less ? old : b;
    case AT_MAX:
        return less ? b : old;
    case AT_CAS:
        return old == b ? c : old;
    default:
        return b;
    }
}

/* Sums of two f16 or bf16 are rounded once: float32 has more than twice their bits. */
static uint16_t half_sum(uint16_t a, uint16_t b) {
    return _cvtss_sh(_cvtsh_ss(a) + _cvtsh_ss(b), _MM_FROUND_TO_NEAREST_INT);
}

static uint16_t bfloat_sum(uint16_t a, uint16_t b) {
    uint32_t ua = (uint32_t)a << 16, ub = (uint32_t)b << 16, u;
    float x, y;
    memcpy(&x, &ua, 4);
    memcpy(&y, &ub, 4);
    float sum = x + y;
    memcpy(&u, &sum, 4);
    return sum != sum ? 0x7fff : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static uint64_t real_sum(uint32_t bytes, uint64_t a, uint64_t b) {
    uint64_t out = 0;
    if (bytes == 8) {
        double x, y;
        memcpy(&x, &a, 8);
        memcpy(&y, &b, 8);
        x += y;
        memcpy(&out, &x, 8);
    } else {
        float x, y;
        memcpy(&x, &a, 4);
        memcpy(&y, &b, 4);
        x += y;
        memcpy(&out, &x, 4);
    }
    return out;
}

static uint64_t result(const struct vm_inst *i, uint64_t old, uint64_t b, uint64_t c) {
    bool real = i->op == AT_ADD && i->type >= AT_FLOAT;
    if (!real)
        return integer_result(i, old, b, c);
    if (i->type == AT_FLOAT)
        return real_sum(i->size, old, b);
    uint16_t (*sum)(uint16_t, uint16_t) = i->type <= AT_HALF2 ? half_sum : bfloat_sum;
    uint64_t low = sum((uint16_t)old, (uint16_t)b);
    return i->size == 2 ? low
                        : low | (uint64_t)sum((uint16_t)(old >> 16), (uint16_t)(b >> 16)) << 16;
}

#define UPDATE(T)                                                                                  \
    static uint64_t update_##T(const struct vm_inst *i, uint64_t at, uint64_t b, uint64_t c,       \
                               bool *changed) {                                                    \
        T *p = (T *)(uintptr_t)at, old = __atomic_load_n(p, __ATOMIC_SEQ_CST), now;                \
        do                                                                                         \
            now = (T)result(i, old, b, c);                                                         \
        while (!__atomic_compare_exchange_n(p, &old, now, false, __ATOMIC_SEQ_CST,                 \
                                            __ATOMIC_SEQ_CST));                                    \
        *changed |= old != now;                                                                    \
        return old;                                                                                \
    }
UPDATE(uint16_t)
UPDATE(uint32_t)
UPDATE(uint64_t)

static uint64_t lane_value(const struct vm_warp *w, uint32_t reg, uint32_t bytes, int l) {
    return bytes == 8   ? VM_REG(w, reg, uint64_t)[l]
           : bytes == 4 ? VM_REG(w, reg, uint32_t)[l]
                        : VM_REG(w, reg, uint16_t)[l];
}

static void set_lane(struct vm_warp *w, uint32_t reg, uint32_t bytes, int l, uint64_t v) {
    if (bytes == 8)
        VM_REG(w, reg, uint64_t)[l] = v;
    else if (bytes == 4)
        VM_REG(w, reg, uint32_t)[l] = (uint32_t)v;
    else
        VM_REG(w, reg, uint16_t)[l] = (uint16_t)v;
}

/* kind: there is a register for the old value; more[0] the third operand. The release comes before
 * the update and the acquire after it. */
static void atomic(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint64_t at[VM_WARP], seen[VM_WARP];
    bool changed = false;
    enum ptx_space space = (enum ptx_space)i->space;
    vm_addresses(w, i->a, i->wide, i->imm, at);
    memcpy(seen, at, sizeof seen);
    vm_order_lanes(w, m, space, seen, i->order & VM_RELEASE);
    vm_resolve(w, i, m, space, at, i->size, VM_UPDATE);
    uint64_t (*update)(const struct vm_inst *, uint64_t, uint64_t, uint64_t, bool *) =
        i->size == 8   ? update_uint64_t
        : i->size == 4 ? update_uint32_t
                       : update_uint16_t;
    VM_LANES if (m >> l & 1) {
        uint64_t b = lane_value(w, i->b, i->size, l);
        uint64_t c = i->op == AT_CAS ? lane_value(w, i->more[0], i->size, l) : 0;
        uint64_t old = update(i, at[l], b, c, &changed);
        if (i->kind)
            set_lane(w, i->d, i->size, l, old);
    }
    vm_order_lanes(w, m, space, seen, i->order & VM_ACQUIRE);
    w->block->worker->stores += changed;
    if (i->kind)
        vm_poll(w, m);
}

/* ---- decoder
 * ---------------------------------------------------------------------------------------- */

static const char *const operations[] = {"and", "or",  "xor", "exch", "add",
                                         "inc", "dec", "min", "max",  "cas"};

static const struct {
    const char *name;
    enum atomic_type type;
    uint8_t bytes;
} types[] = {
    {"b32", AT_UNSIGNED, 4},   {"u32", AT_UNSIGNED, 4}, {"s32", AT_SIGNED, 4},
    {"b64", AT_UNSIGNED, 8},   {"u64", AT_UNSIGNED, 8}, {"s64", AT_SIGNED, 8},
    {"b16", AT_UNSIGNED, 2},   {"f32", AT_FLOAT, 4},    {"f64", AT_FLOAT, 8},
    {"f16", AT_HALF, 2},       {"f16x2", AT_HALF2, 4},  {"bf16", AT_BFLOAT, 2},
    {"bf16x2", AT_BFLOAT2, 4},
};

static bool operation_and_type(struct vm_decoder *d, struct vm_inst *i) {
    bool found = false;
    for (size_t n = 0; n < sizeof operations / sizeof *operations; n++)
        if (vm_has_part(d, operations[n])) {
            i->op = (uint8_t)n;
            found = true;
        }
    for (size_t n = 0; n < sizeof types / sizeof *types; n++)
        if (ptx_text_is(d->parts[d->num_parts - 1], types[n].name)) {
            i->type = (uint8_t)types[n].type;
            i->size = types[n].bytes;
        }
    if (!found || !i->size || vm_has_part(d, "v2") || vm_has_part(d, "v4") ||
        vm_has_part(d, "async") || (i->type >= AT_FLOAT && i->op != AT_ADD))
        return vm_refuse(d, "this atomic operation is not supported");
    return true;
}

bool vm_decode_atomic(struct vm_decoder *d, struct vm_inst *i) {
    const struct ptx_instruction *in = d->in;
    bool returns = ptx_text_is(d->parts[0], "atom");
    if (!operation_and_type(d, i))
        return false;
    int32_t at = returns, expected = at + (i->op == AT_CAS ? 3 : 2);
    if (in->num_operands != expected + vm_has_part(d, "L2::cache_hint"))
        return vm_refuse(d, "an atomic operation has another number of operands");
    const struct ptx_operand *o = in->operands;
    uint32_t *more = vm_more(d, 1);
    i->more = more;
    i->kind = returns;
    i->run = atomic;
    vm_decode_space(d, &o[at], i);
    vm_decode_order(d, true, i);
    return (!returns || vm_destination(d, &o[0], i->size, &i->d)) && vm_address(d, &o[at], i) &&
           vm_operand(d, &o[at + 1], i->size, &i->b) &&
           (i->op != AT_CAS || vm_operand(d, &o[at + 2], i->size, &more[0]));
}
