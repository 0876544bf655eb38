/* Logic, shifts and bit fields. */
#include "tests/ptxvm/decode.h"
#include "tests/ptxvm/exec.h"

#define WIDTH(W, U, S)                                                                             \
    VM_OP2(and_##W, U, U, U, (a & b))                                                              \
    VM_OP2(or_##W, U, U, U, a | b)                                                                 \
    VM_OP2(xor_##W, U, U, U, a ^ b)                                                                \
    VM_OP1(not_##W, U, U, ~a)                                                                      \
    VM_OP1(cnot_##W, U, U, a ? 0 : 1)                                                              \
    VM_OP2(shl_##W, U, U, uint32_t, b >= W ? (U)0 : (U)((uint64_t)a << (b & (W - 1))))             \
    VM_OP2(shr_u##W, U, U, uint32_t, b >= W ? (U)0 : (U)(a >> (b & (W - 1))))                      \
    VM_OP2(shr_s##W, S, S, uint32_t, (S)(a >> (b >= W ? W - 1 : b)))
WIDTH(16, uint16_t, int16_t)
WIDTH(32, uint32_t, int32_t)
WIDTH(64, uint64_t, int64_t)

#define PREDICATES(name, expr)                                                                     \
    static void name(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {                     \
        uint32_t a = VM_PRED(w, i->a), b = VM_PRED(w, i->b);                                       \
        (void)b;                                                                                   \
        vm_set_pred(w, i->d, m, expr);                                                             \
    }
PREDICATES(and_pred, (a & b))
PREDICATES(or_pred, a | b)
PREDICATES(xor_pred, a ^ b)
PREDICATES(not_pred, ~a)

/* ---- funnel shifts: b is the high word ------------------------------------------------------- */

#define JOINED (((uint64_t)b << 32) | a)
VM_OP3(shf_l_wrap, uint32_t, uint32_t, uint32_t, uint32_t, (JOINED << (c & 31)) >> 32)
VM_OP3(shf_r_wrap, uint32_t, uint32_t, uint32_t, uint32_t, JOINED >> (c & 31))
VM_OP3(shf_l_clamp, uint32_t, uint32_t, uint32_t, uint32_t,
       c >= 32 ? a : (JOINED << (c & 31)) >> 32)
VM_OP3(shf_r_clamp, uint32_t, uint32_t, uint32_t, uint32_t, c >= 32 ? b : JOINED >> (c & 31))

/* ---- counts ---------------------------------------------------------------------------------- */

static inline uint32_t reversed32(uint32_t v) {
    v = (v >> 1 & 0x55555555u) | (v & 0x55555555u) << 1;
    v = (v >> 2 & 0x33333333u) | (v & 0x33333333u) << 2;
    v = (v >> 4 & 0x0f0f0f0fu) | (v & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(v);
}
static inline uint64_t reversed64(uint64_t v) {
    return (uint64_t)reversed32((uint32_t)v) << 32 | reversed32((uint32_t)(v >> 32));
}
static inline uint32_t top_bit(uint64_t v) {
    return v ? 63u - (uint32_t)__builtin_clzll(v) : UINT32_MAX;
}
VM_OP1(popc_32, uint32_t, uint32_t, __builtin_popcount(a))
VM_OP1(popc_64, uint32_t, uint64_t, __builtin_popcountll(a))
VM_OP1(clz_32, uint32_t, uint32_t, a ? __builtin_clz(a) : 32)
VM_OP1(clz_64, uint32_t, uint64_t, a ? __builtin_clzll(a) : 64)
VM_OP1(brev_32, uint32_t, uint32_t, reversed32(a))
VM_OP1(brev_64, uint64_t, uint64_t, reversed64(a))
/* bfind: the highest bit that differs from the sign; shiftamt: how far to shift it to the top. */
#define SIGNLESS(T, x) ((x) < 0 ? ~(x) : (x))
VM_OP1(bfind_u32, uint32_t, uint32_t, top_bit(a))
VM_OP1(bfind_u64, uint32_t, uint64_t, top_bit(a))
VM_OP1(bfind_s32, uint32_t, int32_t, top_bit((uint32_t)SIGNLESS(int32_t, a)))
VM_OP1(bfind_s64, uint32_t, int64_t, top_bit((uint64_t)SIGNLESS(int64_t, a)))
static inline uint32_t shift_amount(uint32_t bit, uint32_t width) {
    return bit == UINT32_MAX ? bit : width - 1 - bit;
}
VM_OP1(bfind_shift_u32, uint32_t, uint32_t, shift_amount(top_bit(a), 32))
VM_OP1(bfind_shift_u64, uint32_t, uint64_t, shift_amount(top_bit(a), 64))
VM_OP1(bfind_shift_s32, uint32_t, int32_t,
       shift_amount(top_bit((uint32_t)SIGNLESS(int32_t, a)), 32))
VM_OP1(bfind_shift_s64, uint32_t, int64_t,
       shift_amount(top_bit((uint64_t)SIGNLESS(int64_t, a)), 64))

/* fns: position of the n-th set bit at or above (n > 0) or below (n < 0) the base. */
static inline uint32_t nth_set(uint32_t mask, uint32_t base, int32_t n) {
    if (base > 31)
        return UINT32_MAX;
    if (!n)
        return mask >> base & 1 ? base : UINT32_MAX;
    int32_t left = n > 0 ? n : -n;
    for (int32_t at = (int32_t)base; at >= 0 && at<32; at += n> 0 ? 1 : -1)
        if ((mask >> at & 1) && !--left)
            return (uint32_t)at;
    return UINT32_MAX;
}
VM_OP3(fns, uint32_t, uint32_t, uint32_t, int32_t, nth_set(a, b, c))

/* ---- fields ---------------------------------------------------------------------------------- */

static inline uint64_t field_mask(uint32_t len) {
    return len >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << len) - 1;
}
/* Beyond the top, a signed field continues with the sign of the value, an unsigned with zeros. */
static inline uint64_t extracted(uint64_t a, bool is_signed, uint32_t pos, uint32_t len,
                                 uint32_t width) {
    pos &= 255;
    len &= 255;
    if (!len)
        return 0;
    uint64_t v = pos >= width ? 0 : a >> pos;
    uint32_t top = pos + len - 1 < width - 1 ? pos + len - 1 : width - 1;
    uint64_t sign = is_signed ? a >> top & 1 : 0;
    uint32_t have = pos >= width ? 0 : len < width - pos ? len : width - pos;
    return (v & field_mask(have)) | (sign ? ~field_mask(have) : 0);
}
VM_OP3(bfe_u32, uint32_t, uint32_t, uint32_t, uint32_t, extracted(a, false, b, c, 32))
VM_OP3(bfe_s32, uint32_t, uint32_t, uint32_t, uint32_t, extracted(a, true, b, c, 32))
VM_OP3(bfe_u64, uint64_t, uint64_t, uint32_t, uint32_t, extracted(a, false, b, c, 64))
VM_OP3(bfe_s64, uint64_t, uint64_t, uint32_t, uint32_t, extracted(a, true, b, c, 64))

static inline uint64_t inserted(uint64_t a, uint64_t b, uint32_t pos, uint32_t len,
                                uint32_t width) {
    pos &= 255;
    len &= 255;
    if (!len || pos >= width)
        return b;
    uint64_t mask = field_mask(len) << pos;
    return (b & ~mask) | (a << pos & mask);
}
#define BFI(name, U, W)                                                                            \
    static void name(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {                     \
        U *pd = VM_REG(w, i->d, U);                                                                \
        const U *pa = VM_REG(w, i->a, U), *pb = VM_REG(w, i->b, U);                                \
        const uint32_t *pos = VM_REG(w, i->c, uint32_t), *len = VM_REG(w, i->more[0], uint32_t);   \
        VM_LANES if (m >> l & 1) pd[l] = (U)inserted(pa[l], pb[l], pos[l], len[l], W);             \
    }
BFI(vm_bfi_32, uint32_t, 32)
BFI(vm_bfi_64, uint64_t, 64)

VM_OP2(bmsk_clamp, uint32_t, uint32_t, uint32_t,
       a > 31 ? 0 : (uint32_t)(field_mask(b > 32 ? 32 : b) << (a & 31)))
VM_OP2(bmsk_wrap, uint32_t, uint32_t, uint32_t, (uint32_t)(field_mask(b & 31) << (a & 31)))
VM_OP2(szext_clamp_u32, uint32_t, uint32_t, uint32_t, b > 31 ? a : a & (uint32_t)field_mask(b))
VM_OP2(szext_clamp_s32, uint32_t, uint32_t, uint32_t,
       b > 31 ? a
       : b    ? (uint32_t)((int32_t)(a << (32 - b)) >> (32 - b))
              : 0)

/* ---- permutations of bytes, and any function of three bits ----------------------------------- */

static inline uint32_t permuted(uint32_t a, uint32_t b, uint32_t select) {
    uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t r = 0;
    for (int k = 0; k < 4; k++) {
        uint32_t s = select >> (4 * k);
        uint32_t byte = (uint32_t)(bytes >> (8 * (s & 7))) & 255;
        uint32_t sign = byte & 128 ? 255 : 0;
        r |= (s & 8 ? sign : byte) << (8 * k);
    }
    return r;
}
VM_OP3(prmt, uint32_t, uint32_t, uint32_t, uint32_t, permuted(a, b, c))
/* The modes pick bytes by the two low bits of c. */
#define PRMT_MODE(name, s0, s1, s2, s3)                                                            \
    static inline uint32_t select_##name(uint32_t c) {                                             \
        static const uint16_t selects[4] = {s0, s1, s2, s3};                                       \
        return selects[c & 3];                                                                     \
    }                                                                                              \
    VM_OP3(name, uint32_t, uint32_t, uint32_t, uint32_t, permuted(a, b, select_##name(c)))
PRMT_MODE(prmt_f4e, 0x3210, 0x4321, 0x5432, 0x6543)
PRMT_MODE(prmt_b4e, 0x5670, 0x6701, 0x7012, 0x0123)
PRMT_MODE(prmt_rc8, 0x0000, 0x1111, 0x2222, 0x3333)
PRMT_MODE(prmt_ecl, 0x3210, 0x3211, 0x3222, 0x3333)
PRMT_MODE(prmt_ecr, 0x0000, 0x1110, 0x2210, 0x3210)
PRMT_MODE(prmt_rc16, 0x1010, 0x3232, 0x1010, 0x3232)

static void lop3(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint32_t *pd = VM_REG(w, i->d, uint32_t);
    const uint32_t *pa = VM_REG(w, i->a, uint32_t), *pb = VM_REG(w, i->b, uint32_t);
    const uint32_t *pc = VM_REG(w, i->c, uint32_t);
    uint32_t lut = VM_REG(w, i->more[0], uint32_t)[0], bit[8];
    for (int k = 0; k < 8; k++)
        bit[k] = lut >> k & 1 ? VM_ALL : 0;
    VM_SIMD VM_LANES {
        uint32_t a = pa[l], b = pb[l], c = pc[l], old = pd[l];
        uint32_t r = (~a & ~b & ~c & bit[0]) | (~a & ~b & c & bit[1]) | (~a & b & ~c & bit[2]) |
                     (~a & b & c & bit[3]) | (a & ~b & ~c & bit[4]) | (a & ~b & c & bit[5]) |
                     (a & b & ~c & bit[6]) | (a & b & c & bit[7]);
        pd[l] = (m >> l & 1) ? r : old;
    }
}

#define LOGIC(op)                                                                                  \
    {#op ".b16", "hhh", op##_16}, {#op ".b32", "www", op##_32}, {#op ".b64", "xxx", op##_64}, {    \
#op ".pred", "ppp", op##_pred                                                              \
    }

const struct vm_opcode vm_bit_opcodes[] = {
    LOGIC(and),
    LOGIC(or),
    LOGIC(xor),
    {"not.b16", "hh", not_16},
    {"not.b32", "ww", not_32},
    {"not.b64", "xx", not_64},
    {"not.pred", "pp", not_pred},
    {"cnot.b16", "hh", cnot_16},
    {"cnot.b32", "ww", cnot_32},
    {"cnot.b64", "xx", cnot_64},
    {"shl.b16", "hhw", shl_16},
    {"shl.b32", "www", shl_32},
    {"shl.b64", "xxw", shl_64},
    {"shr.u16", "hhw", shr_u16},
    {"shr.b16", "hhw", shr_u16},
    {"shr.s16", "hhw", shr_s16},
    {"shr.u32", "www", shr_u32},
    {"shr.b32", "www", shr_u32},
    {"shr.s32", "www", shr_s32},
    {"shr.u64", "xxw", shr_u64},
    {"shr.b64", "xxw", shr_u64},
    {"shr.s64", "xxw", shr_s64},
    {"shf.l.wrap.b32", "wwww", shf_l_wrap},
    {"shf.r.wrap.b32", "wwww", shf_r_wrap},
    {"shf.l.clamp.b32", "wwww", shf_l_clamp},
    {"shf.r.clamp.b32", "wwww", shf_r_clamp},
    {"popc.b32", "ww", popc_32},
    {"popc.b64", "wx", popc_64},
    {"clz.b32", "ww", clz_32},
    {"clz.b64", "wx", clz_64},
    {"brev.b32", "ww", brev_32},
    {"brev.b64", "xx", brev_64},
    {"bfind.u32", "ww", bfind_u32},
    {"bfind.u64", "wx", bfind_u64},
    {"bfind.s32", "ww", bfind_s32},
    {"bfind.s64", "wx", bfind_s64},
    {"bfind.shiftamt.u32", "ww", bfind_shift_u32},
    {"bfind.shiftamt.u64", "wx", bfind_shift_u64},
    {"bfind.shiftamt.s32", "ww", bfind_shift_s32},
    {"bfind.shiftamt.s64", "wx", bfind_shift_s64},
    {"fns.b32", "wwww", fns},
    {"bfe.u32", "wwww", bfe_u32},
    {"bfe.s32", "wwww", bfe_s32},
    {"bfe.u64", "xxww", bfe_u64},
    {"bfe.s64", "xxww", bfe_s64},
    {"bfi.b32", "wwwww", vm_bfi_32},
    {"bfi.b64", "xxxww", vm_bfi_64},
    {"bmsk.clamp.b32", "www", bmsk_clamp},
    {"bmsk.wrap.b32", "www", bmsk_wrap},
    {"szext.clamp.u32", "www", szext_clamp_u32},
    {"szext.clamp.s32", "www", szext_clamp_s32},
    {"prmt.b32", "wwww", prmt},
    {"prmt.b32.f4e", "wwww", prmt_f4e},
    {"prmt.b32.b4e", "wwww", prmt_b4e},
    {"prmt.b32.rc8", "wwww", prmt_rc8},
    {"prmt.b32.ecl", "wwww", prmt_ecl},
    {"prmt.b32.ecr", "wwww", prmt_ecr},
    {"prmt.b32.rc16", "wwww", prmt_rc16},
    {"lop3.b32", "wwwww", lop3},
    {NULL, NULL, NULL},
};
