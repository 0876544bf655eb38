/* Integer arithmetic: add, sub, mul, mad, div, rem, min, max, abs, neg, sad, carries, dot products.
 * Arithmetic wraps; division by zero gives all ones, as GPUs do. */
#include "tests/ptxvm/decode.h"
#include "tests/ptxvm/exec.h"

typedef __int128 s128;
typedef unsigned __int128 u128;

/* One set for each width W and its unsigned and signed types U and S. */
#define WIDTH(W, U, S)                                                                             \
    VM_OP2(add_##W, U, U, U, a + b)                                                                \
    VM_OP2(sub_##W, U, U, U, a - b)                                                                \
    VM_OP2(mul_##W, U, U, U, (U)((uint64_t)a * (uint64_t)b))                                       \
    VM_OP3(mad_##W, U, U, U, U, (U)((uint64_t)a * (uint64_t)b + c))                                \
    VM_OP2(div_u##W, U, U, U, b ? a / (b ? b : 1) : (U)-1)                                         \
    VM_OP2(rem_u##W, U, U, U, b ? a % (b ? b : 1) : a)                                             \
    VM_OP2(div_s##W, S, S, S, !b ? (S)-1 : b == -1 ? (S)(0 - (U)a) : a / (b ? b : 1))              \
    VM_OP2(rem_s##W, S, S, S, !b ? a : b == -1 ? (S)0 : a % (b ? b : 1))                           \
    VM_OP2(min_u##W, U, U, U, a < b ? a : b)                                                       \
    VM_OP2(max_u##W, U, U, U, a > b ? a : b)                                                       \
    VM_OP2(min_s##W, S, S, S, a < b ? a : b)                                                       \
    VM_OP2(max_s##W, S, S, S, a > b ? a : b)                                                       \
    VM_OP1(abs_s##W, U, S, a < 0 ? (U)(0 - (U)a) : (U)a)                                           \
    VM_OP1(neg_s##W, U, U, (U)(0 - a))                                                             \
    VM_OP3(sad_u##W, U, U, U, U, c + (a > b ? a - b : b - a))                                      \
    VM_OP3(sad_s##W, U, S, S, U, c + (a > b ? (U)a - (U)b : (U)b - (U)a))
WIDTH(16, uint16_t, int16_t)
WIDTH(32, uint32_t, int32_t)
WIDTH(64, uint64_t, int64_t)

VM_OP2(hi_u16, uint16_t, uint16_t, uint16_t, ((uint32_t)a * b) >> 16)
VM_OP2(hi_s16, int16_t, int16_t, int16_t, ((int32_t)a * b) >> 16)
VM_OP2(hi_u32, uint32_t, uint32_t, uint32_t, ((uint64_t)a * b) >> 32)
VM_OP2(hi_s32, int32_t, int32_t, int32_t, ((int64_t)a * b) >> 32)
VM_OP2(hi_u64, uint64_t, uint64_t, uint64_t, ((u128)a * b) >> 64)
VM_OP2(hi_s64, int64_t, int64_t, int64_t, ((s128)a * b) >> 64)
VM_OP3(mad_hi_u16, uint16_t, uint16_t, uint16_t, uint16_t, (((uint32_t)a * b) >> 16) + c)
VM_OP3(mad_hi_s16, int16_t, int16_t, int16_t, uint16_t, (uint32_t)(((int32_t)a * b) >> 16) + c)
VM_OP3(mad_hi_u32, uint32_t, uint32_t, uint32_t, uint32_t, (((uint64_t)a * b) >> 32) + c)
VM_OP3(mad_hi_s32, int32_t, int32_t, int32_t, uint32_t, (uint32_t)(((int64_t)a * b) >> 32) + c)
VM_OP3(mad_hi_u64, uint64_t, uint64_t, uint64_t, uint64_t, (uint64_t)(((u128)a * b) >> 64) + c)
VM_OP3(mad_hi_s64, int64_t, int64_t, int64_t, uint64_t, (uint64_t)(((s128)a * b) >> 64) + c)
VM_OP2(wide_u16, uint32_t, uint16_t, uint16_t, (b * (uint32_t)a))
VM_OP2(wide_s16, int32_t, int16_t, int16_t, (b * (int32_t)a))
VM_OP2(wide_u32, uint64_t, uint32_t, uint32_t, (b * (uint64_t)a))
VM_OP2(wide_s32, int64_t, int32_t, int32_t, (b * (int64_t)a))
VM_OP3(mad_wide_u16, uint32_t, uint16_t, uint16_t, uint32_t, (b * (uint32_t)a) + c)
VM_OP3(mad_wide_s16, uint32_t, int16_t, int16_t, uint32_t, c + (uint32_t)(b * (int32_t)a))
VM_OP3(mad_wide_u32, uint64_t, uint32_t, uint32_t, uint64_t, (b * (uint64_t)a) + c)
VM_OP3(mad_wide_s32, uint64_t, int32_t, int32_t, uint64_t, c + (uint64_t)(b * (int64_t)a))

#define LOW24U(x) ((uint64_t)((x)&0xffffff))
#define LOW24S(x) ((int64_t)((int32_t)((x) << 8) >> 8))
VM_OP2(mul24_lo_u, uint32_t, uint32_t, uint32_t, LOW24U(a) * LOW24U(b))
VM_OP2(mul24_hi_u, uint32_t, uint32_t, uint32_t, (LOW24U(a) * LOW24U(b)) >> 16)
VM_OP2(mul24_lo_s, uint32_t, uint32_t, uint32_t, LOW24S(a) * LOW24S(b))
VM_OP2(mul24_hi_s, uint32_t, uint32_t, uint32_t, (LOW24S(a) * LOW24S(b)) >> 16)
VM_OP3(mad24_lo_u, uint32_t, uint32_t, uint32_t, uint32_t, LOW24U(a) * LOW24U(b) + c)
VM_OP3(mad24_lo_s, uint32_t, uint32_t, uint32_t, uint32_t, LOW24S(a) * LOW24S(b) + c)

static inline int32_t saturated(int64_t v) {
    return v > INT32_MAX ? INT32_MAX : v < INT32_MIN ? INT32_MIN : (int32_t)v;
}
VM_OP2(add_sat_s32, int32_t, int32_t, int32_t, saturated((int64_t)a + b))
VM_OP2(sub_sat_s32, int32_t, int32_t, int32_t, saturated((int64_t)a - b))
VM_OP3(mad_hi_sat_s32, int32_t, int32_t, int32_t, int32_t, saturated((((int64_t)a * b) >> 32) + c))

/* Pairs of 16-bit values. */
#define PAIR(name, T, expr)                                                                        \
    static inline uint32_t pair_##name(uint32_t x, uint32_t y) {                                   \
        uint32_t r = 0;                                                                            \
        for (int h = 0; h < 32; h += 16) {                                                         \
            T a = (T)(x >> h), b = (T)(y >> h);                                                    \
            r |= (uint32_t)(uint16_t)(expr) << h;                                                  \
        }                                                                                          \
        return r;                                                                                  \
    }                                                                                              \
    VM_OP2(name, uint32_t, uint32_t, uint32_t, pair_##name(a, b))
PAIR(add_x2, uint16_t, a + b)
PAIR(min_u16x2, uint16_t, a < b ? a : b)
PAIR(max_u16x2, uint16_t, a > b ? a : b)
PAIR(min_s16x2, int16_t, a < b ? a : b)
PAIR(max_s16x2, int16_t, a > b ? a : b)

/* ---- carries: the flag is a predicate of the warp at i->q ------------------------------------ */

#define CARRY(name, U, wide_t, uses, sets, sub)                                                    \
    static void name(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {                     \
        U *pd = VM_REG(w, i->d, U);                                                                \
        const U *pa = VM_REG(w, i->a, U), *pb = VM_REG(w, i->b, U);                                \
        uint32_t carry = VM_PRED(w, i->q), out = 0;                                                \
        VM_LANES {                                                                                 \
            wide_t in = uses ? carry >> l & 1 : 0;                                                 \
            wide_t r = sub ? (wide_t)pa[l] - pb[l] - in : (wide_t)pa[l] + pb[l] + in;              \
            out |= (uint32_t)((r >> (8 * sizeof(U))) & 1) << l;                                    \
            if (m >> l & 1)                                                                        \
                pd[l] = (U)r;                                                                      \
        }                                                                                          \
        if (sets)                                                                                  \
            vm_set_pred(w, i->q, m, out);                                                          \
    }
CARRY(add_cc_32, uint32_t, uint64_t, 0, 1, 0)
CARRY(addc_32, uint32_t, uint64_t, 1, 0, 0)
CARRY(addc_cc_32, uint32_t, uint64_t, 1, 1, 0)
CARRY(sub_cc_32, uint32_t, uint64_t, 0, 1, 1)
CARRY(subc_32, uint32_t, uint64_t, 1, 0, 1)
CARRY(subc_cc_32, uint32_t, uint64_t, 1, 1, 1)
CARRY(add_cc_64, uint64_t, u128, 0, 1, 0)
CARRY(addc_64, uint64_t, u128, 1, 0, 0)
CARRY(addc_cc_64, uint64_t, u128, 1, 1, 0)
CARRY(sub_cc_64, uint64_t, u128, 0, 1, 1)
CARRY(subc_64, uint64_t, u128, 1, 0, 1)
CARRY(subc_cc_64, uint64_t, u128, 1, 1, 1)

#define MAD_CARRY(name, U, wide_t, product, uses, sets)                                            \
    static void name(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {                     \
        U *pd = VM_REG(w, i->d, U);                                                                \
        const U *pa = VM_REG(w, i->a, U), *pb = VM_REG(w, i->b, U), *pc = VM_REG(w, i->c, U);      \
        uint32_t carry = VM_PRED(w, i->q), out = 0;                                                \
        VM_LANES {                                                                                 \
            wide_t full = (wide_t)pa[l] * pb[l];                                                   \
            wide_t r = (wide_t)(U)(product) + pc[l] + (uses ? carry >> l & 1 : 0);                 \
            out |= (uint32_t)((r >> (8 * sizeof(U))) & 1) << l;                                    \
            if (m >> l & 1)                                                                        \
                pd[l] = (U)r;                                                                      \
        }                                                                                          \
        if (sets)                                                                                  \
            vm_set_pred(w, i->q, m, out);                                                          \
    }
MAD_CARRY(mad_lo_cc_32, uint32_t, uint64_t, full, 0, 1)
MAD_CARRY(mad_hi_cc_32, uint32_t, uint64_t, full >> 32, 0, 1)
MAD_CARRY(madc_lo_32, uint32_t, uint64_t, full, 1, 0)
MAD_CARRY(madc_hi_32, uint32_t, uint64_t, full >> 32, 1, 0)
MAD_CARRY(madc_lo_cc_32, uint32_t, uint64_t, full, 1, 1)
MAD_CARRY(madc_hi_cc_32, uint32_t, uint64_t, full >> 32, 1, 1)
MAD_CARRY(mad_lo_cc_64, uint64_t, u128, full, 0, 1)
MAD_CARRY(mad_hi_cc_64, uint64_t, u128, full >> 64, 0, 1)
MAD_CARRY(madc_lo_64, uint64_t, u128, full, 1, 0)
MAD_CARRY(madc_hi_64, uint64_t, u128, full >> 64, 1, 0)
MAD_CARRY(madc_lo_cc_64, uint64_t, u128, full, 1, 1)
MAD_CARRY(madc_hi_cc_64, uint64_t, u128, full >> 64, 1, 1)

/* ---- dot products ---------------------------------------------------------------------------- */

#define BYTE(T, x, k) ((int32_t)(T)((x) >> (8 * (k))))
#define HALF(T, x, k) ((int32_t)(T)((x) >> (16 * (k))))
#define DOT(TA, TB, A, B)                                                                          \
    VM_OP3(dp4a_##A##B, uint32_t, uint32_t, uint32_t, uint32_t,                                    \
           c + (uint32_t)(BYTE(TA, a, 0) * BYTE(TB, b, 0) + BYTE(TA, a, 1) * BYTE(TB, b, 1) +      \
                          BYTE(TA, a, 2) * BYTE(TB, b, 2) + BYTE(TA, a, 3) * BYTE(TB, b, 3)))
DOT(uint8_t, uint8_t, u, u)
DOT(uint8_t, int8_t, u, s)
DOT(int8_t, uint8_t, s, u)
DOT(int8_t, int8_t, s, s)
#define DOT2(TH, TB, A, B, half)                                                                   \
    VM_OP3(dp2a_##half##A##B, uint32_t, uint32_t, uint32_t, uint32_t,                              \
           c + (uint32_t)HALF(TH, a, 0) * (uint32_t)BYTE(TB, b, half) +                            \
               (uint32_t)HALF(TH, a, 1) * (uint32_t)BYTE(TB, b, half + 1))
DOT2(uint16_t, uint8_t, u, u, 0)
DOT2(uint16_t, int8_t, u, s, 0)
DOT2(int16_t, uint8_t, s, u, 0)
DOT2(int16_t, int8_t, s, s, 0)
DOT2(uint16_t, uint8_t, u, u, 2)
DOT2(uint16_t, int8_t, u, s, 2)
DOT2(int16_t, uint8_t, s, u, 2)
DOT2(int16_t, int8_t, s, s, 2)

/* ---- the table ------------------------------------------------------------------------------- */

#define ROWS(W, c)                                                                                 \
    {"add.s" #W, c c c, add_##W}, {"add.u" #W, c c c, add_##W}, {"sub.s" #W, c c c, sub_##W},      \
        {"sub.u" #W, c c c, sub_##W}, {"mul.lo.s" #W, c c c, mul_##W},                             \
        {"mul.lo.u" #W, c c c, mul_##W}, {"mad.lo.s" #W, c c c c, mad_##W},                        \
        {"mad.lo.u" #W, c c c c, mad_##W}, {"mul.hi.s" #W, c c c, hi_s##W},                        \
        {"mul.hi.u" #W, c c c, hi_u##W}, {"mad.hi.s" #W, c c c c, mad_hi_s##W},                    \
        {"mad.hi.u" #W, c c c c, mad_hi_u##W}, {"div.s" #W, c c c, div_s##W},                      \
        {"div.u" #W, c c c, div_u##W}, {"rem.s" #W, c c c, rem_s##W},                              \
        {"rem.u" #W, c c c, rem_u##W}, {"min.s" #W, c c c, min_s##W},                              \
        {"min.u" #W, c c c, min_u##W}, {"max.s" #W, c c c, max_s##W},                              \
        {"max.u" #W, c c c, max_u##W}, {"abs.s" #W, c c, abs_s##W}, {"neg.s" #W, c c, neg_s##W},   \
        {"sad.s" #W, c c c c, sad_s##W}, {                                                         \
        "sad.u" #W, c c c c, sad_u##W                                                              \
    }
#define CARRY_ROWS(T, W, c)                                                                        \
    {"add.cc." T, c c c "C", add_cc_##W}, {"addc." T, c c c "C", addc_##W},                        \
        {"addc.cc." T, c c c "C", addc_cc_##W}, {"sub.cc." T, c c c "C", sub_cc_##W},              \
        {"subc." T, c c c "C", subc_##W}, {"subc.cc." T, c c c "C", subc_cc_##W},                  \
        {"mad.lo.cc." T, c c c c "C", mad_lo_cc_##W}, {"madc.lo." T, c c c c "C", madc_lo_##W}, {  \
        "madc.lo.cc." T, c c c c "C", madc_lo_cc_##W                                               \
    }

const struct vm_opcode vm_int_opcodes[] = {
    ROWS(16, "h"),
    ROWS(32, "w"),
    ROWS(64, "x"),
    {"mul.wide.u16", "whh", wide_u16},
    {"mul.wide.s16", "whh", wide_s16},
    {"mul.wide.u32", "xww", wide_u32},
    {"mul.wide.s32", "xww", wide_s32},
    {"mad.wide.u16", "whhw", mad_wide_u16},
    {"mad.wide.s16", "whhw", mad_wide_s16},
    {"mad.wide.u32", "xwwx", mad_wide_u32},
    {"mad.wide.s32", "xwwx", mad_wide_s32},
    {"mul24.lo.u32", "www", mul24_lo_u},
    {"mul24.hi.u32", "www", mul24_hi_u},
    {"mul24.lo.s32", "www", mul24_lo_s},
    {"mul24.hi.s32", "www", mul24_hi_s},
    {"mad24.lo.u32", "wwww", mad24_lo_u},
    {"mad24.lo.s32", "wwww", mad24_lo_s},
    {"add.sat.s32", "www", add_sat_s32},
    {"sub.sat.s32", "www", sub_sat_s32},
    {"mad.hi.sat.s32", "wwww", mad_hi_sat_s32},
    {"add.u16x2", "www", add_x2},
    {"add.s16x2", "www", add_x2},
    {"min.u16x2", "www", min_u16x2},
    {"max.u16x2", "www", max_u16x2},
    {"min.s16x2", "www", min_s16x2},
    {"max.s16x2", "www", max_s16x2},
    CARRY_ROWS("u32", 32, "w"),
    CARRY_ROWS("s32", 32, "w"),
    CARRY_ROWS("u64", 64, "x"),
    CARRY_ROWS("s64", 64, "x"),
    {"mad.hi.cc.u32", "wwwwC", mad_hi_cc_32},
    {"madc.hi.u32", "wwwwC", madc_hi_32},
    {"madc.hi.cc.u32", "wwwwC", madc_hi_cc_32},
    {"mad.hi.cc.u64", "xxxxC", mad_hi_cc_64},
    {"madc.hi.u64", "xxxxC", madc_hi_64},
    {"madc.hi.cc.u64", "xxxxC", madc_hi_cc_64},
    {"dp4a.u32.u32", "wwww", dp4a_uu},
    {"dp4a.u32.s32", "wwww", dp4a_us},
    {"dp4a.s32.u32", "wwww", dp4a_su},
    {"dp4a.s32.s32", "wwww", dp4a_ss},
    {"dp2a.lo.u32.u32", "wwww", dp2a_0uu},
    {"dp2a.lo.u32.s32", "wwww", dp2a_0us},
    {"dp2a.lo.s32.u32", "wwww", dp2a_0su},
    {"dp2a.lo.s32.s32", "wwww", dp2a_0ss},
    {"dp2a.hi.u32.u32", "wwww", dp2a_2uu},
    {"dp2a.hi.u32.s32", "wwww", dp2a_2us},
    {"dp2a.hi.s32.u32", "wwww", dp2a_2su},
    {"dp2a.hi.s32.s32", "wwww", dp2a_2ss},
    {NULL, NULL, NULL},
};
