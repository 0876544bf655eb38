/* Comparisons and choices: setp, set, selp, slct.
 *
 * A handler of a comparison writes the predicates d and q: what it found, combined with the
 * predicate c by i->op, and the opposite so combined. Of a pair of halves, q is the second half.
 * set runs the same handlers on predicates of its own and turns them into values.
 */
#include "tests/ptxvm/decode.h"
#include "tests/ptxvm/exec.h"
#include "tests/ptxvm/exec_real.h"

#include <immintrin.h>
#include <stdio.h>

enum { COMBINE_AND, COMBINE_OR, COMBINE_XOR };

/* ---- handlers of comparisons
 * ------------------------------------------------------------------------ */

static uint32_t combined(const struct vm_inst *i, uint32_t found, uint32_t c) {
    return i->op == COMBINE_AND ? found & c : i->op == COMBINE_OR ? found | c : found ^ c;
}

static void finish(struct vm_warp *w, const struct vm_inst *i, uint32_t m, uint32_t first,
                   uint32_t second) {
    uint32_t c = VM_PRED(w, i->c) ^ (i->negate_c ? VM_ALL : 0);
    vm_set_pred(w, i->q, m, combined(i, second, c));
    vm_set_pred(w, i->d, m, combined(i, first, c));
}

/* A bit for each lane. */
static inline uint32_t signs_of(const int8_t values[VM_WARP]) {
    return (uint32_t)_mm256_movemask_epi8(_mm256_load_si256((const __m256i *)(const void *)values));
}

#define COMPARE(name, T, cond)                                                                     \
    static void name(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {                     \
        const T *pa = VM_REG(w, i->a, T), *pb = VM_REG(w, i->b, T);                                \
        _Alignas(32) int8_t holds[VM_WARP];                                                        \
        VM_LANES {                                                                                 \
            T a = pa[l], b = pb[l];                                                                \
            holds[l] = (cond) ? -1 : 0;                                                            \
        }                                                                                          \
        uint32_t found = signs_of(holds);                                                          \
        finish(w, i, m, found, ~found);                                                            \
    }
#define COMPARE_HALF(name, is_bf16, cond)                                                          \
    static void name(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {                     \
        float x[VM_WARP], y[VM_WARP];                                                              \
        vm_load_halves(x, VM_REG(w, i->a, uint16_t), VM_WARP, is_bf16);                            \
        vm_load_halves(y, VM_REG(w, i->b, uint16_t), VM_WARP, is_bf16);                            \
        uint32_t found = 0;                                                                        \
        VM_LANES {                                                                                 \
            float a = x[l], b = y[l];                                                              \
            found |= (cond) ? 1u << l : 0;                                                         \
        }                                                                                          \
        finish(w, i, m, found, ~found);                                                            \
    }
#define COMPARE_PAIR(name, is_bf16, cond)                                                          \
    static void name(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {                     \
        float x[2 * VM_WARP], y[2 * VM_WARP];                                                      \
        vm_load_halves(x, VM_REG(w, i->a, uint16_t), 2 * VM_WARP, is_bf16);                        \
        vm_load_halves(y, VM_REG(w, i->b, uint16_t), 2 * VM_WARP, is_bf16);                        \
        uint32_t found[2] = {0, 0};                                                                \
        for (int k = 0; k < 2 * VM_WARP; k++) {                                                    \
            float a = x[k], b = y[k];                                                              \
            found[k & 1] |= (cond) ? 1u << (k >> 1) : 0;                                           \
        }                                                                                          \
        finish(w, i, m, found[0], found[1]);                                                       \
    }

#define WIDTH(W)                                                                                   \
    COMPARE(eq_##W, uint##W##_t, a == b)                                                           \
    COMPARE(ne_##W, uint##W##_t, a != b)                                                           \
    COMPARE(lt_u##W, uint##W##_t, a < b)                                                           \
    COMPARE(le_u##W, uint##W##_t, a <= b)                                                          \
    COMPARE(gt_u##W, uint##W##_t, a > b)                                                           \
    COMPARE(ge_u##W, uint##W##_t, a >= b)                                                          \
    COMPARE(lt_s##W, int##W##_t, a < b)                                                            \
    COMPARE(le_s##W, int##W##_t, a <= b)                                                           \
    COMPARE(gt_s##W, int##W##_t, a > b)                                                            \
    COMPARE(ge_s##W, int##W##_t, a >= b)
WIDTH(16)
WIDTH(32)
WIDTH(64)

/* A comparison with NaN fails; those with a u behind their name hold then. */
#define REAL(MAKE, suffix, T)                                                                      \
    MAKE(eq_##suffix, T, a == b)                                                                   \
    MAKE(ne_##suffix, T, a<b || a> b)                                                              \
    MAKE(lt_##suffix, T, a < b)                                                                    \
    MAKE(le_##suffix, T, a <= b)                                                                   \
    MAKE(gt_##suffix, T, a > b)                                                                    \
    MAKE(ge_##suffix, T, a >= b)                                                                   \
    MAKE(equ_##suffix, T, !(a < b || a > b))                                                       \
    MAKE(neu_##suffix, T, a != b)                                                                  \
    MAKE(ltu_##suffix, T, !(a >= b))                                                               \
    MAKE(leu_##suffix, T, !(a > b))                                                                \
    MAKE(gtu_##suffix, T, !(a <= b))                                                               \
    MAKE(geu_##suffix, T, !(a < b))                                                                \
    MAKE(num_##suffix, T, a == a && b == b)                                                        \
    MAKE(nan_##suffix, T, a != a || b != b)
REAL(COMPARE, f32, float)
REAL(COMPARE, f64, double)
REAL(COMPARE_HALF, f16, false)
REAL(COMPARE_HALF, bf16, true)
REAL(COMPARE_PAIR, f16x2, false)
REAL(COMPARE_PAIR, bf16x2, true)

#define ORDER_ROWS(T)                                                                              \
    {#T, "lt", lt_##T}, {#T, "le", le_##T}, {#T, "gt", gt_##T}, {                                  \
#T, "ge", ge_##T                                                                           \
    }
#define WIDTH_ROWS(W)                                                                              \
    {"b" #W, "eq", eq_##W}, {"b" #W, "ne", ne_##W}, {"u" #W, "eq", eq_##W},                        \
        {"u" #W, "ne", ne_##W}, {"s" #W, "eq", eq_##W}, {"s" #W, "ne", ne_##W},                    \
        {"u" #W, "lo", lt_u##W}, {"u" #W, "ls", le_u##W}, {"u" #W, "hi", gt_u##W},                 \
        {"u" #W, "hs", ge_u##W}, ORDER_ROWS(u##W), ORDER_ROWS(s##W)
#define REAL_ROWS(T)                                                                               \
    {#T, "eq", eq_##T}, {#T, "ne", ne_##T}, ORDER_ROWS(T), {#T, "equ", equ_##T},                   \
        {#T, "neu", neu_##T}, {#T, "ltu", ltu_##T}, {#T, "leu", leu_##T}, {#T, "gtu", gtu_##T},    \
        {#T, "geu", geu_##T}, {#T, "num", num_##T}, {                                              \
#T, "nan", nan_##T                                                                         \
    }

vm_exec vm_compare_handler(struct ptx_text type, struct ptx_text comparison) {
    static const struct {
        const char *type, *comparison;
        vm_exec run;
    } table[] = {
        WIDTH_ROWS(16), WIDTH_ROWS(32),  WIDTH_ROWS(64),   REAL_ROWS(f32),    REAL_ROWS(f64),
        REAL_ROWS(f16), REAL_ROWS(bf16), REAL_ROWS(f16x2), REAL_ROWS(bf16x2),
    };
    for (size_t k = 0; k < sizeof table / sizeof *table; k++)
        if (ptx_text_is(type, table[k].type) && ptx_text_is(comparison, table[k].comparison))
            return table[k].run;
    return NULL;
}

/* ---- flushed inputs
 * ----------------------------------------------------------------------------------- */

/* i->type: bytes of an input's unit, 4 or 2. */
static void flush_input(struct vm_warp *w, uint32_t from, uint32_t to, uint8_t bytes) {
    const uint32_t *in = VM_REG(w, from, uint32_t);
    uint32_t *out = VM_REG(w, to, uint32_t);
    const uint16_t *in_half = VM_REG(w, from, uint16_t);
    uint16_t *out_half = VM_REG(w, to, uint16_t);
    if (bytes == 4)
        VM_LANES
    out[l] = vm_flush_f32(in[l]);
    else for (int k = 0; k < 2 * VM_WARP;
              k++) /* a pair's registers; of a single one, half counts */
        out_half[k] = in_half[k] & 0x7c00 ? in_half[k] : in_half[k] & 0x8000;
}

static void compare_flushed(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    struct vm_inst plain = *i;
    flush_input(w, i->a, i->more[0], i->type);
    flush_input(w, i->b, i->more[1], i->type);
    plain.a = i->more[0];
    plain.b = i->more[1];
    i->base(w, &plain, m);
}

/* ---- set: the predicates more[2] and more[3] as values
 * ------------------------------------------------ */

/* i->imm is what true is, of i->size bytes; i->vec 2: a half of its own for each of a pair. */
static void run_set(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    struct vm_inst plain = *i;
    plain.d = i->more[2];
    plain.q = i->more[3];
    (i->ftz ? compare_flushed : i->base)(w, &plain, m);
    uint32_t first = VM_PRED(w, i->more[2]), second = VM_PRED(w, i->more[3]);
    uint16_t *half = VM_REG(w, i->d, uint16_t);
    uint32_t *word = VM_REG(w, i->d, uint32_t), truth = (uint32_t)i->imm;
    VM_LANES {
        if (!(m >> l & 1))
            continue;
        uint32_t one = first >> l & 1 ? truth : 0, two = second >> l & 1 ? truth : 0;
        if (i->size == 2)
            half[l] = (uint16_t)one;
        else
            word[l] = i->vec == 2 ? one | two << 16 : one;
    }
}

/* ---- selp, slct
 * ---------------------------------------------------------------------------------------- */

#define SELECT(W)                                                                                  \
    static void select_##W(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {               \
        uint##W##_t *d = VM_REG(w, i->d, uint##W##_t);                                             \
        const uint##W##_t *a = VM_REG(w, i->a, uint##W##_t), *b = VM_REG(w, i->b, uint##W##_t);    \
        uint32_t c = VM_PRED(w, i->c) ^ (i->negate_c ? VM_ALL : 0);                                \
        VM_SIMD VM_LANES {                                                                         \
            uint##W##_t r = (c >> l & 1) ? a[l] : b[l], old = d[l];                                \
            d[l] = (m >> l & 1) ? r : old;                                                         \
        }                                                                                          \
    }                                                                                              \
    VM_OP3(slct_s_##W, uint##W##_t, uint##W##_t, uint##W##_t, int32_t, c >= 0 ? a : b)             \
    VM_OP3(slct_f_##W, uint##W##_t, uint##W##_t, uint##W##_t, float, c >= 0 ? a : b)               \
    VM_OP3(slct_ftz_##W, uint##W##_t, uint##W##_t, uint##W##_t, uint32_t,                          \
           vm_f32_from(vm_flush_f32(c)) >= 0 ? a : b)
SELECT(16)
SELECT(32)
SELECT(64)

/* ---- decoding
 * ------------------------------------------------------------------------------------------- */

/* Bytes of a register of the type, 0 when it is none. */
static uint32_t type_bytes(struct ptx_text t) {
    char dotted[16];
    if (ptx_text_is(t, "f16") || ptx_text_is(t, "bf16"))
        return 2;
    if (ptx_text_is(t, "f16x2") || ptx_text_is(t, "bf16x2"))
        return 4;
    int n = snprintf(dotted, sizeof dotted, ".%.*s", t.len, t.s);
    int32_t bytes = n < (int)sizeof dotted ? ptx_type_bytes((struct ptx_text){dotted, n}) : -1;
    return bytes >= 2 && bytes <= 8 ? (uint32_t)bytes : 0;
}

static bool is_half_pair(struct ptx_text t) {
    return ptx_text_is(t, "f16x2") || ptx_text_is(t, "bf16x2");
}

static bool predicate_operand(struct vm_decoder *d, const struct ptx_operand *o,
                              struct vm_inst *i) {
    i->negate_c = o->negated;
    return vm_operand(d, o, 0, &i->c);
}

/* The comparison, its inputs and what combines it; i->base becomes the handler. num_types: how many
 * types end the opcode. */
static bool decode_comparison(struct vm_decoder *d, struct vm_inst *i, int32_t num_types) {
    struct ptx_text type = d->parts[d->num_parts - 1];
    if (d->num_parts < 2 + num_types)
        return vm_refuse(d, "the comparison or its type is missing");
    for (int32_t p = 2; p < d->num_parts - num_types; p++)
        if (ptx_text_is(d->parts[p], "and"))
            i->op = COMBINE_AND;
        else if (ptx_text_is(d->parts[p], "or"))
            i->op = COMBINE_OR;
        else if (ptx_text_is(d->parts[p], "xor"))
            i->op = COMBINE_XOR;
        else if (ptx_text_is(d->parts[p], "ftz"))
            i->ftz = 1;
        else
            return vm_refuse(d, "unknown modifier of a comparison");
    i->base = vm_compare_handler(type, d->parts[1]);
    uint32_t bytes = type_bytes(type);
    if (!i->base || !bytes)
        return vm_refuse(d, "this comparison does not exist for its type");
    const struct ptx_operand *o = d->in->operands;
    int32_t n = d->in->num_operands;
    if (n != 3 && n != 4)
        return vm_refuse(d, "a comparison has two inputs and may have a predicate");
    i->type = ptx_text_is(type, "f32") ? 4 : 2;
    return vm_operand(d, &o[1], bytes, &i->a) && vm_operand(d, &o[2], bytes, &i->b) &&
           (n == 3 || predicate_operand(d, &o[3], i));
}

static uint32_t *take_scratch(struct vm_decoder *d) {
    uint32_t *more = vm_more(d, 4);
    for (int k = 0; k < 4; k++)
        more[k] = vm_take_register(d->k, k < 2 ? 4 : 0);
    return more;
}

static bool decode_setp(struct vm_decoder *d, struct vm_inst *i) {
    if (!decode_comparison(d, i, 1))
        return false;
    const struct ptx_operand *o = &d->in->operands[0];
    struct ptx_operand second = *o;
    second.kind = PTX_OP_REGISTER;
    second.index = o->second;
    i->run = i->ftz ? compare_flushed : i->base;
    if (i->ftz)
        i->more = take_scratch(d);
    return vm_destination(d, o, 0, &i->d) &&
           (o->second < 0 || vm_destination(d, &second, 0, &i->q));
}

/* What a true comparison is worth in the type; 0 when set does not write the type. */
static uint32_t truth_of(struct ptx_text t, bool of_pair) {
    if (ptx_text_is(t, "u32") || ptx_text_is(t, "s32"))
        return of_pair ? 0xffff : UINT32_MAX;
    if (ptx_text_is(t, "u16") || ptx_text_is(t, "s16"))
        return 0xffff;
    if (ptx_text_is(t, "f32"))
        return 0x3f800000;
    if (ptx_text_is(t, "f16") || ptx_text_is(t, "f16x2"))
        return 0x3c00;
    return ptx_text_is(t, "bf16") || ptx_text_is(t, "bf16x2") ? 0x3f80 : 0;
}

static bool decode_set(struct vm_decoder *d, struct vm_inst *i) {
    if (!decode_comparison(d, i, 2))
        return false;
    struct ptx_text to = d->parts[d->num_parts - 2];
    bool of_pair = is_half_pair(d->parts[d->num_parts - 1]);
    i->imm = truth_of(to, of_pair);
    i->size = (uint8_t)type_bytes(to);
    i->vec = of_pair ? 2 : 1;
    if (!i->imm || (of_pair && i->size != 4))
        return vm_refuse(d, "set does not write this type");
    i->more = take_scratch(d);
    i->run = run_set;
    return vm_destination(d, &d->in->operands[0], i->size, &i->d);
}

static bool decode_select(struct vm_decoder *d, struct vm_inst *i) {
    static const vm_exec handlers[][4] = {{select_16, select_32, select_64},
                                          {slct_s_16, slct_s_32, slct_s_64},
                                          {slct_f_16, slct_f_32, slct_f_64},
                                          {slct_ftz_16, slct_ftz_32, slct_ftz_64}};
    const struct ptx_operand *o = d->in->operands;
    struct ptx_text last = d->parts[d->num_parts - 1];
    bool is_selp = ptx_text_is(d->parts[0], "selp");
    int32_t types = is_selp ? 1 : 2;
    uint32_t bytes = d->num_parts > types ? type_bytes(d->parts[d->num_parts - types]) : 0;
    if (!bytes || d->in->num_operands != 4)
        return vm_refuse(d, "a choice has three inputs and a type of 16, 32 or 64 bits");
    int row = is_selp ? 0 : ptx_text_is(last, "s32") ? 1 : vm_has_part(d, "ftz") ? 3 : 2;
    if (row >= 2 && !ptx_text_is(last, "f32"))
        return vm_refuse(d, "slct chooses by an s32 or an f32");
    i->run = handlers[row][bytes == 2 ? 0 : bytes == 4 ? 1 : 2];
    return vm_destination(d, &o[0], bytes, &i->d) && vm_operand(d, &o[1], bytes, &i->a) &&
           vm_operand(d, &o[2], bytes, &i->b) &&
           (is_selp ? predicate_operand(d, &o[3], i) : vm_operand(d, &o[3], 4, &i->c));
}

bool vm_decode_compare(struct vm_decoder *d, struct vm_inst *i) {
    if (ptx_text_is(d->parts[0], "setp"))
        return decode_setp(d, i);
    if (ptx_text_is(d->parts[0], "set"))
        return decode_set(d, i);
    return decode_select(d, i);
}
