/* Conversions: cvt of single values, of pairs, and cvt.pack.
 *
 * The frequent ones have vectorised handlers; all others take the general way: each lane's value is
 * read as an integer or a double, clamped and rounded, and written.
 */
#include "tests/ptxvm/decode.h"
#include "tests/ptxvm/exec.h"
#include "tests/ptxvm/exec_real.h"
#include "tests/ptxvm/narrow.h"

#include <math.h>
#include <pthread.h>

/* ---- types
 * ------------------------------------------------------------------------------------------ */

enum type {
    TYPE_U8,
    TYPE_S8,
    TYPE_U16,
    TYPE_S16,
    TYPE_U32,
    TYPE_S32,
    TYPE_U64,
    TYPE_S64,
    TYPE_F16,
    TYPE_BF16,
    TYPE_F32,
    TYPE_F64,
    TYPE_TF32,
    TYPE_F16X2,
    TYPE_BF16X2,
    TYPE_E4M3X2,
    TYPE_E5M2X2,
    NUM_TYPES
};

static const struct {
    const char *name;
    uint8_t bytes;
    const struct narrow_format *format; /* of an element; NULL: an integer or f64 */
} types[NUM_TYPES] = {
    [TYPE_U8] = {"u8", 1, NULL},
    [TYPE_S8] = {"s8", 1, NULL},
    [TYPE_U16] = {"u16", 2, NULL},
    [TYPE_S16] = {"s16", 2, NULL},
    [TYPE_U32] = {"u32", 4, NULL},
    [TYPE_S32] = {"s32", 4, NULL},
    [TYPE_U64] = {"u64", 8, NULL},
    [TYPE_S64] = {"s64", 8, NULL},
    [TYPE_F16] = {"f16", 2, &narrow_f16},
    [TYPE_BF16] = {"bf16", 2, &narrow_bf16},
    [TYPE_F32] = {"f32", 4, &narrow_f32},
    [TYPE_F64] = {"f64", 8, NULL},
    [TYPE_TF32] = {"tf32", 4, &narrow_tf32},
    [TYPE_F16X2] = {"f16x2", 4, &narrow_f16},
    [TYPE_BF16X2] = {"bf16x2", 4, &narrow_bf16},
    [TYPE_E4M3X2] = {"e4m3x2", 2, &narrow_e4m3},
    [TYPE_E5M2X2] = {"e5m2x2", 2, &narrow_e5m2},
};

/* What a conversion does beside rounding to its format; bits of i->space. */
enum { TO_INTEGRAL = 1, RELU = 2, SATFINITE = 4 };

static int find_type(struct ptx_text t) {
    for (int k = 0; k < NUM_TYPES; k++)
        if (ptx_text_is(t, types[k].name))
            return k;
    return NUM_TYPES;
}
static bool is_integer(int t) {
    return t <= TYPE_S64;
}
static bool is_signed(int t) {
    return t & 1; /* of integers */
}
static bool is_pair(int t) {
    return t >= TYPE_F16X2;
}

/* ---- one lane
 * -------------------------------------------------------------------------------------- */

static uint64_t load_lane(const struct vm_warp *w, uint32_t offset, uint32_t bytes, int lane) {
    switch (bytes) {
    case 1:
        return w->r[offset + (uint32_t)lane];
    case 2:
        return VM_REG(w, offset, uint16_t)[lane];
    case 4:
        return VM_REG(w, offset, uint32_t)[lane];
    default:
        return VM_REG(w, offset, uint64_t)[lane];
    }
}

static void store_lane(struct vm_warp *w, uint32_t offset, uint32_t bytes, int lane, uint64_t v) {
    switch (bytes) {
    case 1:
        w->r[offset + (uint32_t)lane] = (uint8_t)v;
        break;
    case 2:
        VM_REG(w, offset, uint16_t)[lane] = (uint16_t)v;
        break;
    case 4:
        VM_REG(w, offset, uint32_t)[lane] = (uint32_t)v;
        break;
    default:
        VM_REG(w, offset, uint64_t)[lane] = v;
    }
}

/* The low bytes as an integer of the type, extended to 64 bits. */
static uint64_t extended(uint64_t v, int type) {
    int shift = 64 - 8 * types[type].bytes;
    return is_signed(type) ? (uint64_t)((int64_t)(v << shift) >> shift) : v << shift >> shift;
}

static int64_t smallest(int type) {
    return is_signed(type) ? (int64_t)(~(uint64_t)0 << (8 * types[type].bytes - 1)) : 0;
}
static uint64_t largest(int type) {
    return ~(uint64_t)0 >> (64 - 8 * types[type].bytes + is_signed(type));
}

static uint64_t clamp_integer(uint64_t v, bool negative, int to) {
    if (negative)
        return (int64_t)v < smallest(to) ? (uint64_t)smallest(to) : v;
    return v > largest(to) ? largest(to) : v;
}

static double decode_real(uint64_t bits, int type) {
    return type == TYPE_F64 ? vm_f64_from(bits) : narrow_decode(types[type].format, (uint32_t)bits);
}

static uint64_t real_to_integer(double v, int from, int to, uint8_t round) {
    if (isnan(v)) {
        bool wide = from == TYPE_F64 || types[to].bytes == 8;
        return wide ? (uint64_t)1 << (8 * types[to].bytes - 1) : 0;
    }
    v = narrow_round(v, round);
    if (v < (double)smallest(to))
        return (uint64_t)smallest(to);
    if (v >= ldexp(1, 8 * types[to].bytes - is_signed(to)))
        return largest(to);
    return v < 0 ? (uint64_t)(int64_t)v : (uint64_t)v;
}

static uint64_t integer_to_real(uint64_t v, bool negative, const struct vm_inst *i) {
    uint64_t magnitude = negative ? 0 - v : v;
    if (i->sat)
        magnitude = v && !negative; /* all others lie outside of [0, 1] */
    negative = negative && !i->sat;
    if (i->op == TYPE_F64)
        return vm_f64_bits(narrow_to_double(magnitude, negative, i->round));
    double rounds_alike = narrow_from_integer(magnitude, negative);
    return narrow_encode(types[i->op].format, rounds_alike, i->round, i->space & SATFINITE);
}

static double shaped(double v, const struct vm_inst *i) {
    if (i->space & TO_INTEGRAL)
        v = narrow_round(v, i->round);
    if (i->sat)
        v = v > 0 ? v < 1 ? v : 1 : 0; /* NaN gives 0 */
    if (i->space & RELU)
        v = v <= 0 ? 0 : v; /* NaN stays */
    return v;
}

static uint64_t encode_real(double v, const struct vm_inst *i) {
    v = shaped(v, i);
    if (i->op == TYPE_F64)
        return vm_f64_bits(v);
    uint32_t bits = narrow_encode(types[i->op].format, v, i->round, i->space & SATFINITE);
    return i->ftz && i->op == TYPE_F32 ? vm_flush_f32(bits) : bits;
}

/* From i->type to i->op; i->size and i->vec: bytes of the source and destination registers. */
static uint64_t convert_lane(uint64_t bits, const struct vm_inst *i) {
    int from = i->type, to = i->op;
    if (is_integer(from)) {
        uint64_t v = extended(bits, from);
        bool negative = is_signed(from) && v >> 63;
        if (!is_integer(to))
            return integer_to_real(v, negative, i);
        return extended(i->sat ? clamp_integer(v, negative, to) : v, to);
    }
    if (i->ftz && from == TYPE_F32)
        bits = vm_flush_f32((uint32_t)bits);
    double v = decode_real(bits, from);
    return is_integer(to) ? real_to_integer(v, from, to, i->round) : encode_real(v, i);
}

static void convert(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    for (; m; m &= m - 1) {
        int l = vm_first(m);
        store_lane(w, i->d, i->vec, l, convert_lane(load_lane(w, i->a, i->size, l), i));
    }
}

/* ---- pairs
 * ----------------------------------------------------------------------------------------- */

/* i->b has the low element where two registers are packed. */
static void pack_f32(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    const uint32_t *high = VM_REG(w, i->a, uint32_t), *low = VM_REG(w, i->b, uint32_t);
    int shift = 4 * types[i->op].bytes;
    for (; m; m &= m - 1) {
        int l = vm_first(m);
        uint64_t h = encode_real((double)vm_f32_from(high[l]), i);
        uint64_t v = encode_real((double)vm_f32_from(low[l]), i);
        store_lane(w, i->d, i->vec, l, h << shift | v);
    }
}

static void convert_pair(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    int from = 4 * types[i->type].bytes, to = 4 * types[i->op].bytes;
    uint64_t rest = ((uint64_t)1 << from) - 1;
    for (; m; m &= m - 1) {
        int l = vm_first(m);
        uint64_t bits = load_lane(w, i->a, i->size, l);
        uint64_t high = encode_real(decode_real(bits >> from & rest, i->type), i);
        uint64_t low = encode_real(decode_real(bits & rest, i->type), i);
        store_lane(w, i->d, i->vec, l, high << to | low);
    }
}

/* ---- frequent conversions, all to nearest
 * ------------------------------------------------------------ */

static inline uint32_t bf16_pair(float high, float low) {
    return (uint32_t)vm_bf16_from(high) << 16 | vm_bf16_from(low);
}
VM_OP2(pack_bf16, uint32_t, float, float, bf16_pair(a, b))
VM_OP1(bf16_f32, uint16_t, float, vm_bf16_from(a))
VM_OP1(f32_bf16, uint32_t, uint16_t,
       vm_is_nan_f32((uint32_t)a << 16) ? 0x7fffffffu : (uint32_t)a << 16)
VM_OP1(f32_s32, float, int32_t, a)
VM_OP1(f32_u32, float, uint32_t, a)
VM_OP1(integral_f32, float, float, vm_canonical(rintf(a)))
VM_OP1(saturated_f32, float, float, a > 0 ? a < 1 ? a : 1 : 0)
VM_OP1(f64_f32, double, float, a)
VM_OP1(f32_f64, float, double, vm_canonical((float)a))

static void f32_f16(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    float v[VM_WARP], *d = VM_REG(w, i->d, float);
    vm_load_halves(v, VM_REG(w, i->a, uint16_t), VM_WARP, false);
    VM_LANES
    d[l] = (m >> l & 1) ? vm_canonical(v[l]) : d[l];
}

static void f16_f32(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint16_t v[VM_WARP], *d = VM_REG(w, i->d, uint16_t);
    vm_to_halves(v, VM_REG(w, i->a, float), VM_WARP, false);
    VM_LANES
    d[l] = (m >> l & 1) ? v[l] : d[l];
}

static void pack_f16(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint16_t high[VM_WARP], low[VM_WARP];
    uint32_t *d = VM_REG(w, i->d, uint32_t);
    vm_to_halves(high, VM_REG(w, i->a, float), VM_WARP, false);
    vm_to_halves(low, VM_REG(w, i->b, float), VM_WARP, false);
    VM_LANES
    d[l] = (m >> l & 1) ? (uint32_t)high[l] << 16 | low[l] : d[l];
}

/* The f16 values of all bytes of the fp8 formats. */
static uint16_t f16_of_e4m3[256], f16_of_e5m2[256];
static pthread_once_t fp8_once = PTHREAD_ONCE_INIT;

static void fill_fp8(void) {
    for (uint32_t b = 0; b < 256; b++) {
        f16_of_e4m3[b] = (uint16_t)narrow_encode(&narrow_f16, narrow_decode(&narrow_e4m3, b),
                                                 NARROW_NEAREST, false);
        f16_of_e5m2[b] = (uint16_t)narrow_encode(&narrow_f16, narrow_decode(&narrow_e5m2, b),
                                                 NARROW_NEAREST, false);
    }
}

static void f16x2_fp8(struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                      const uint16_t *table) {
    const uint16_t *a = VM_REG(w, i->a, uint16_t);
    uint32_t *d = VM_REG(w, i->d, uint32_t);
    VM_LANES {
        uint32_t pair = (uint32_t)table[a[l] >> 8] << 16 | table[a[l] & 0xff];
        d[l] = (m >> l & 1) ? pair : d[l];
    }
}
static void f16x2_e4m3(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    f16x2_fp8(w, i, m, f16_of_e4m3);
}
static void f16x2_e5m2(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    f16x2_fp8(w, i, m, f16_of_e5m2);
}

/* An in-range value, or the nearest one; NaN gives 0. */
static inline int32_t nearest_s32(float v) {
    float r = rintf(v);
    return r >= 0x1p31f ? INT32_MAX : r >= -0x1p31f ? (int32_t)r : r < 0 ? INT32_MIN : 0;
}
static inline int32_t truncated_s32(float v) {
    return v >= 0x1p31f ? INT32_MAX : v >= -0x1p31f ? (int32_t)v : v < 0 ? INT32_MIN : 0;
}
VM_OP1(rni_s32_f32, int32_t, float, nearest_s32(a))
VM_OP1(rzi_s32_f32, int32_t, float, truncated_s32(a))

#define INTEGERS(T, name)                                                                          \
    VM_OP1(name##_16, uint16_t, T, a)                                                              \
    VM_OP1(name##_32, uint32_t, T, a)                                                              \
    VM_OP1(name##_64, uint64_t, T, a)
INTEGERS(uint16_t, from_u16)
INTEGERS(int16_t, from_s16)
INTEGERS(uint32_t, from_u32)
INTEGERS(int32_t, from_s32)
INTEGERS(uint64_t, from_u64)
INTEGERS(int64_t, from_s64)

/* By source type and destination width. */
static vm_exec fast_integer(int from, int to) {
    static const vm_exec table[][3] = {
        {from_u16_16, from_u16_32, from_u16_64}, {from_s16_16, from_s16_32, from_s16_64},
        {from_u32_16, from_u32_32, from_u32_64}, {from_s32_16, from_s32_32, from_s32_64},
        {from_u64_16, from_u64_32, from_u64_64}, {from_s64_16, from_s64_32, from_s64_64},
    };
    if (from < TYPE_U16 || to < TYPE_U16)
        return NULL;
    return table[from - TYPE_U16][(to - TYPE_U16) / 2];
}

static vm_exec fast_real(int from, int to, bool to_integral, uint8_t round) {
    static const struct {
        uint8_t from, to, to_integral, round;
        vm_exec run;
    } table[] = {
        {TYPE_F32, TYPE_BF16, 0, NARROW_NEAREST, bf16_f32},
        {TYPE_F32, TYPE_F16, 0, NARROW_NEAREST, f16_f32},
        {TYPE_BF16, TYPE_F32, 0, NARROW_NEAREST, f32_bf16},
        {TYPE_F16, TYPE_F32, 0, NARROW_NEAREST, f32_f16},
        {TYPE_S32, TYPE_F32, 0, NARROW_NEAREST, f32_s32},
        {TYPE_U32, TYPE_F32, 0, NARROW_NEAREST, f32_u32},
        {TYPE_F32, TYPE_F64, 0, NARROW_NEAREST, f64_f32},
        {TYPE_F64, TYPE_F32, 0, NARROW_NEAREST, f32_f64},
        {TYPE_F32, TYPE_F32, 1, NARROW_NEAREST, integral_f32},
        {TYPE_F32, TYPE_S32, 1, NARROW_NEAREST, rni_s32_f32},
        {TYPE_F32, TYPE_S32, 1, NARROW_ZERO, rzi_s32_f32},
        {TYPE_E4M3X2, TYPE_F16X2, 0, NARROW_NEAREST, f16x2_e4m3},
        {TYPE_E5M2X2, TYPE_F16X2, 0, NARROW_NEAREST, f16x2_e5m2},
    };
    for (size_t k = 0; k < sizeof table / sizeof *table; k++)
        if (table[k].from == from && table[k].to == to && table[k].to_integral == to_integral &&
            table[k].round == round)
            return table[k].run;
    return NULL;
}

/* ---- decoding
 * -------------------------------------------------------------------------------------- */

static bool modifier(struct vm_inst *i, struct ptx_text part) {
    static const struct {
        const char *name;
        uint8_t round, flags;
    } rounds[] = {
        {"rn", NARROW_NEAREST, 0},
        {"rz", NARROW_ZERO, 0},
        {"rm", NARROW_DOWN, 0},
        {"rp", NARROW_UP, 0},
        {"rna", NARROW_AWAY, 0},
        {"rni", NARROW_NEAREST, TO_INTEGRAL},
        {"rzi", NARROW_ZERO, TO_INTEGRAL},
        {"rmi", NARROW_DOWN, TO_INTEGRAL},
        {"rpi", NARROW_UP, TO_INTEGRAL},
        {"relu", 0, RELU},
        {"satfinite", 0, SATFINITE},
    };
    for (size_t k = 0; k < sizeof rounds / sizeof *rounds; k++)
        if (ptx_text_is(part, rounds[k].name)) {
            i->space |= rounds[k].flags;
            if (rounds[k].flags <= TO_INTEGRAL)
                i->round = rounds[k].round;
            return true;
        }
    if (ptx_text_is(part, "ftz"))
        i->ftz = 1;
    else if (ptx_text_is(part, "sat"))
        i->sat = 1;
    else
        return false;
    return true;
}

/* The register of a value: of its own width, or for an integer a wider one. */
static bool value_operand(struct vm_decoder *d, const struct ptx_operand *o, int type, bool write,
                          uint8_t *bytes, uint32_t *offset) {
    int32_t held = vm_operand_bytes(d, o);
    *bytes = types[type].bytes;
    if (is_integer(type) && held > *bytes)
        *bytes = (uint8_t)held;
    else if (*bytes == 1 && held < 0)
        *bytes = 2;
    return write ? vm_destination(d, o, *bytes, offset) : vm_operand(d, o, *bytes, offset);
}

static bool decode_packing(struct vm_decoder *d, struct vm_inst *i) {
    const struct ptx_operand *o = d->in->operands;
    if (i->type != TYPE_F32 || !is_pair(i->op))
        return vm_refuse(d, "this conversion of two values is not supported");
    i->run = pack_f32;
    if (!i->space && i->round == NARROW_NEAREST && i->op == TYPE_F16X2)
        i->run = pack_f16;
    if (!i->space && i->round == NARROW_NEAREST && i->op == TYPE_BF16X2)
        i->run = pack_bf16;
    return value_operand(d, &o[0], i->op, true, &i->vec, &i->d) && vm_operand(d, &o[1], 4, &i->a) &&
           vm_operand(d, &o[2], 4, &i->b);
}

static void choose_handler(struct vm_inst *i) {
    bool is_plain = !i->ftz && !i->sat && !(i->space & ~TO_INTEGRAL) &&
                    i->size == types[i->type].bytes && i->vec == types[i->op].bytes;
    vm_exec fast = NULL;
    if (is_plain && is_integer(i->type) && is_integer(i->op))
        fast = fast_integer(i->type, i->op);
    else if (i->type == TYPE_F32 && i->op == TYPE_F32 && i->sat && !i->ftz && !i->space)
        fast = saturated_f32;
    else if (is_plain)
        fast = fast_real(i->type, i->op, i->space & TO_INTEGRAL, i->round);
    i->run = fast ? fast : is_pair(i->op) ? convert_pair : convert;
}

/* ---- cvt.pack
 * -------------------------------------------------------------------------------------- */

/* i->op: the type of an element of i->size bits; i->type: of the inputs; i->vec: c is given. */
static void run_pack(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint32_t *d = VM_REG(w, i->d, uint32_t), bits = i->size, rest = (1u << bits) - 1;
    const uint32_t *in[2] = {VM_REG(w, i->a, uint32_t), VM_REG(w, i->b, uint32_t)};
    const uint32_t *c = VM_REG(w, i->c, uint32_t);
    bool to_signed = is_signed(i->op);
    int64_t low = to_signed ? -((int64_t)1 << (bits - 1)) : 0;
    int64_t high = to_signed ? ((int64_t)1 << (bits - 1)) - 1 : (int64_t)rest;
    for (; m; m &= m - 1) {
        int l = vm_first(m);
        uint32_t packed = i->vec ? c[l] << (2 * bits) : 0;
        for (int k = 0; k < 2; k++) {
            int64_t v = is_signed(i->type) ? (int64_t)(int32_t)in[k][l] : (int64_t)in[k][l];
            v = v < low ? low : v > high ? high : v;
            packed |= ((uint32_t)v & rest) << (k ? 0 : bits);
        }
        d[l] = packed;
    }
}

static bool decode_pack(struct vm_decoder *d, struct vm_inst *i) {
    static const struct {
        const char *name;
        uint8_t bits, type;
    } elements[] = {{"u16", 16, TYPE_U16}, {"s16", 16, TYPE_S16}, {"u8", 8, TYPE_U8},
                    {"s8", 8, TYPE_S8},    {"u4", 4, TYPE_U8},    {"s4", 4, TYPE_S8},
                    {"u2", 2, TYPE_U8},    {"s2", 2, TYPE_S8}};
    const struct ptx_operand *o = d->in->operands;
    int32_t n = d->in->num_operands;
    if (d->num_parts < 5 || !ptx_text_is(d->parts[2], "sat") || (n != 3 && n != 4))
        return vm_refuse(d, "cvt.pack is known with saturation, of two values and a rest");
    for (size_t k = 0; k < sizeof elements / sizeof *elements; k++)
        if (ptx_text_is(d->parts[3], elements[k].name)) {
            i->size = elements[k].bits;
            i->op = elements[k].type;
        }
    int from = find_type(d->parts[4]);
    if (!i->size || (from != TYPE_S32 && from != TYPE_U32) || (n == 4) != (i->size < 16))
        return vm_refuse(d, "unknown types of cvt.pack");
    i->type = (uint8_t)from;
    i->vec = n == 4;
    i->run = run_pack;
    return vm_destination(d, &o[0], 4, &i->d) && vm_operand(d, &o[1], 4, &i->a) &&
           vm_operand(d, &o[2], 4, &i->b) && (n == 3 || vm_operand(d, &o[3], 4, &i->c));
}

bool vm_decode_convert(struct vm_decoder *d, struct vm_inst *i) {
    const struct ptx_operand *o = d->in->operands;
    if (d->num_parts > 1 && ptx_text_is(d->parts[1], "pack"))
        return decode_pack(d, i);
    if (d->num_parts < 3 || d->in->num_operands < 2 || d->in->num_operands > 3)
        return vm_refuse(d, "a conversion has two types and one or two inputs");
    int to = find_type(d->parts[d->num_parts - 2]), from = find_type(d->parts[d->num_parts - 1]);
    if (to == NUM_TYPES || from == NUM_TYPES)
        return vm_refuse(d, "unknown type of a conversion");
    i->op = (uint8_t)to;
    i->type = (uint8_t)from;
    for (int32_t p = 1; p < d->num_parts - 2; p++)
        if (!modifier(i, d->parts[p]))
            return vm_refuse(d, "unknown modifier of a conversion");
    pthread_once(&fp8_once, fill_fp8);
    if (d->in->num_operands == 3)
        return decode_packing(d, i);
    if (is_pair(from) != is_pair(to))
        return vm_refuse(d, "a pair is converted to a pair");
    if (!value_operand(d, &o[0], to, true, &i->vec, &i->d) ||
        !value_operand(d, &o[1], from, false, &i->size, &i->a))
        return false;
    choose_handler(i);
    return true;
}
