/* Integer and bit instructions of the PTX machine against C, value by value.
 *
 * Each row is one instruction. The values are all pairs of a list of edge cases with a third that
 * walks through the list; their count is no multiple of a warp, so that the last warp runs with a
 * part of its lanes.
 */
#include <stdlib.h>

#include "tests/ptxvm/machine_fixture.h"

typedef uint64_t (*reference)(uint64_t a, uint64_t b, uint64_t c);

struct row {
    const char *op;
    const char *widths; /* of the result and the sources: h 16, w 32, x 64 bits */
    reference expect;   /* the sources are cut to their widths, the result is cut afterwards */
    const char *last;   /* operands that follow, such as the table of lop3 */
};

static const uint64_t edges[] = {
    0,
    1,
    2,
    3,
    5,
    8,
    15,
    16,
    17,
    31,
    32,
    33,
    63,
    64,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x10000,
    0x7fffffff,
    0x80000000,
    0xffffffff,
    0xfffffffe,
    0xdeadbeef,
    0x0123456789abcdef,
    0x7fffffffffffffff,
    0x8000000000000000,
    0xffffffffffffffff,
    0xfedcba9876543210,
};
enum { EDGES = sizeof edges / sizeof *edges, VALUES = EDGES * EDGES - 5 };

/* ---- references ------------------------------------------------------------------------------ */

#define REF(name, expr)                                                                            \
    static uint64_t name(uint64_t a, uint64_t b, uint64_t c) {                                     \
        (void)a;                                                                                   \
        (void)b;                                                                                   \
        (void)c;                                                                                   \
        return (uint64_t)(expr);                                                                   \
    }
#define S16(v) ((int64_t)(int16_t)(v))
#define S32(v) ((int64_t)(int32_t)(v))
#define S64(v) ((int64_t)(v))
typedef __int128 s128;
typedef unsigned __int128 u128;

REF(add, a + b)
REF(sub, a - b)
REF(mul, a *b)
REF(mad, a *b + c)
REF(neg, 0 - a)
REF(abs_16, S16(a) < 0 ? -S16(a) : S16(a))
REF(abs_32, S32(a) < 0 ? -S32(a) : S32(a))
REF(abs_64, S64(a) < 0 ? 0 - a : a)
REF(hi_s16, S16(a) * S16(b) >> 16)
REF(hi_u16, a *b >> 16)
REF(hi_s32, S32(a) * S32(b) >> 32)
REF(hi_u32, a *b >> 32)
REF(hi_s64, ((s128)S64(a) * S64(b)) >> 64)
REF(hi_u64, ((u128)a * b) >> 64)
REF(mad_hi_s32, (S32(a) * S32(b) >> 32) + S32(c))
REF(mad_hi_u64, (((u128)a * b) >> 64) + c)
REF(wide_s16, S16(a) * S16(b))
REF(wide_s32, S32(a) * S32(b))
REF(mad_wide_s32, S32(a) * S32(b) + S64(c))
REF(div_u16, b ? a / b : 0xffff)
REF(div_u32, b ? a / b : 0xffffffff)
REF(div_u64, b ? a / b : UINT64_MAX)
REF(div_s16, b ? S16(a) / S16(b) : -1)
REF(div_s32, b ? S32(a) / S32(b) : -1)
REF(div_s64, !b ? -1 : S64(b) == -1 ? S64(0 - a) : S64(a) / S64(b))
REF(rem_u, b ? a % b : a)
REF(rem_s16, b ? S16(a) % S16(b) : S16(a))
REF(rem_s32, b ? S32(a) % S32(b) : S32(a))
REF(rem_s64, !b ? S64(a) : S64(b) == -1 ? 0 : S64(a) % S64(b))
REF(min_u, a < b ? a : b)
REF(max_u, a > b ? a : b)
REF(min_s16, S16(a) < S16(b) ? a : b)
REF(max_s16, S16(a) > S16(b) ? a : b)
REF(min_s32, S32(a) < S32(b) ? a : b)
REF(max_s32, S32(a) > S32(b) ? a : b)
REF(min_s64, S64(a) < S64(b) ? a : b)
REF(max_s64, S64(a) > S64(b) ? a : b)
REF(sad_u32, c + (a > b ? a - b : b - a))
REF(sad_s32, S64(c) + llabs(S32(a) - S32(b)))
REF(add_sat, S32(a) + S32(b) > INT32_MAX   ? INT32_MAX
             : S32(a) + S32(b) < INT32_MIN ? INT32_MIN
                                           : S32(a) + S32(b))
REF(sub_sat, S32(a) - S32(b) > INT32_MAX   ? INT32_MAX
             : S32(a) - S32(b) < INT32_MIN ? INT32_MIN
                                           : S32(a) - S32(b))
#define LOW24(v) (S32((v) << 8) >> 8)
REF(mul24_lo_u, (a & 0xffffff) * (b & 0xffffff))
REF(mul24_hi_u, (a & 0xffffff) * (b & 0xffffff) >> 16)
REF(mul24_lo_s, LOW24(a) * LOW24(b))
REF(mad24_lo_s, LOW24(a) * LOW24(b) + S64(c))

static uint64_t dot(uint64_t a, uint64_t b, uint64_t c, bool a_signed, bool b_signed) {
    int64_t sum = (int64_t)c;
    for (int k = 0; k < 32; k += 8) {
        int64_t x = (int64_t)(a >> k & 255), y = (int64_t)(b >> k & 255);
        sum += (a_signed && x > 127 ? x - 256 : x) * (b_signed && y > 127 ? y - 256 : y);
    }
    return (uint64_t)sum;
}
REF(dp4a_ss, dot(a, b, c, true, true))
REF(dp4a_us, dot(a, b, c, false, true))
REF(dp4a_uu, dot(a, b, c, false, false))

REF(and, (a & b))
REF(or, a | b)
REF(xor, a ^ b)
REF(not, ~a)
REF(cnot, !a)
REF(shl_16, b > 15 ? 0 : a << b)
REF(shl_32, b > 31 ? 0 : a << b)
REF(shl_64, b > 63 ? 0 : a << b)
REF(shr_u16, b > 15 ? 0 : a >> b)
REF(shr_u32, b > 31 ? 0 : a >> b)
REF(shr_u64, b > 63 ? 0 : a >> b)
REF(shr_s16, S16(a) >> (b > 15 ? 15 : b))
REF(shr_s32, S32(a) >> (b > 31 ? 31 : b))
REF(shr_s64, S64(a) >> (b > 63 ? 63 : b))
REF(shf_l_wrap, (b << 32 | a) << (c % 32) >> 32)
REF(shf_r_wrap, (b << 32 | a) >> (c % 32))
REF(shf_l_clamp, c > 31 ? a : (b << 32 | a) << c >> 32)
REF(shf_r_clamp, c > 31 ? b : (b << 32 | a) >> c)

static uint64_t ones(uint64_t a) {
    uint64_t n = 0;
    for (; a; a >>= 1)
        n += a & 1;
    return n;
}
static uint64_t zeros_above(uint64_t a, uint64_t width) {
    uint64_t n = 0;
    while (n < width && !(a >> (width - 1 - n) & 1))
        n++;
    return n;
}
static uint64_t reversed(uint64_t a, int width) {
    uint64_t r = 0;
    for (int k = 0; k < width; k++)
        r |= (a >> k & 1) << (width - 1 - k);
    return r;
}
REF(popc, ones(a))
REF(clz_32, zeros_above(a, 32))
REF(clz_64, zeros_above(a, 64))
REF(brev_32, reversed(a, 32))
REF(brev_64, reversed(a, 64))

static uint64_t highest(uint64_t a, uint64_t width, bool shift) {
    uint64_t above = zeros_above(a, width);
    return above == width ? UINT32_MAX : shift ? above : width - 1 - above;
}
REF(bfind_u32, highest(a, 32, false))
REF(bfind_s32, highest(S32(a) < 0 ? ~a & 0xffffffff : a, 32, false))
REF(bfind_u64, highest(a, 64, false))
REF(bfind_shift_u32, highest(a, 32, true))
REF(bfind_shift_s64, highest(S64(a) < 0 ? ~a : a, 64, true))

/* As the PTX manual writes them, bit by bit. */
static uint64_t field(uint64_t a, uint64_t b, uint64_t c, bool is_signed, uint64_t msb) {
    uint64_t pos = b & 255, len = c & 255, d = 0;
    uint64_t top = pos + len - 1 < msb ? pos + len - 1 : msb;
    uint64_t sign = !is_signed || !len ? 0 : a >> top & 1;
    for (uint64_t k = 0; k <= msb; k++)
        d |= (k < len && pos + k <= msb ? a >> (pos + k) & 1 : sign) << k;
    return d;
}
REF(bfe_u32, field(a, b, c, false, 31))
REF(bfe_s32, field(a, b, c, true, 31))
REF(bfe_u64, field(a, b, c, false, 63))
REF(bfe_s64, field(a, b, c, true, 63))

static uint64_t insert(uint64_t a, uint64_t b, uint64_t pos, uint64_t len, uint64_t msb) {
    for (uint64_t k = 0; k < len && (pos & 255) + k <= msb; k++) {
        uint64_t at = (pos & 255) + k;
        b = (b & ~((uint64_t)1 << at)) | (a >> k & 1) << at;
    }
    return b;
}
REF(bfi_32, insert(a, b, c, 7, 31))
REF(bfi_64, insert(a, b, c, 40, 63))
REF(bmsk_clamp, a > 31 ? 0 : (b > 31 ? 0xffffffff : ((uint64_t)1 << b) - 1) << a)
REF(bmsk_wrap, (((uint64_t)1 << b % 32) - 1) << a % 32)

static uint64_t permute(uint64_t a, uint64_t b, uint64_t select) {
    uint64_t bytes = b << 32 | a, d = 0;
    for (int k = 0; k < 4; k++) {
        uint64_t s = select >> 4 * k & 15, byte = bytes >> 8 * (s & 7) & 255;
        d |= (s < 8 ? byte : byte > 127 ? 255 : 0) << 8 * k;
    }
    return d;
}
REF(prmt, permute(a, b, c))
static uint64_t rc8(uint64_t a, uint64_t b, uint64_t c) {
    (void)b;
    return (a >> 8 * (c & 3) & 255) * 0x01010101;
}

static uint64_t logic3(uint64_t a, uint64_t b, uint64_t c, int table) {
    uint64_t d = 0;
    for (int k = 0; k < 32; k++) {
        int at = (int)((a >> k & 1) * 4 + (b >> k & 1) * 2 + (c >> k & 1));
        d |= (uint64_t)(table >> at & 1) << k;
    }
    return d;
}
REF(lop3_96, logic3(a, b, c, 0x96))
REF(lop3_ca, logic3(a, b, c, 0xca))
REF(lop3_1b, logic3(a, b, c, 0x1b))

static uint64_t nth(uint64_t mask, uint64_t base, uint64_t offset) {
    int64_t n = S32(offset), step = n < 0 ? -1 : 1;
    if (base > 31)
        return UINT32_MAX; /* beyond the mask: nothing is found */
    if (!n)
        return mask >> base & 1 ? base : UINT32_MAX;
    for (int64_t at = (int64_t)base; at >= 0 && at < 32; at += step)
        if ((mask >> at & 1) && !(n -= step))
            return (uint64_t)at;
    return UINT32_MAX;
}
REF(fns, nth(a, b, c))

static const struct row rows[] = {
    {"add.s16", "hhh", add, NULL},
    {"add.u32", "www", add, NULL},
    {"add.s64", "xxx", add, NULL},
    {"sub.u16", "hhh", sub, NULL},
    {"sub.s32", "www", sub, NULL},
    {"sub.u64", "xxx", sub, NULL},
    {"mul.lo.s16", "hhh", mul, NULL},
    {"mul.lo.u32", "www", mul, NULL},
    {"mul.lo.s64", "xxx", mul, NULL},
    {"mad.lo.u16", "hhhh", mad, NULL},
    {"mad.lo.s32", "wwww", mad, NULL},
    {"mad.lo.s64", "xxxx", mad, NULL},
    {"neg.s16", "hh", neg, NULL},
    {"neg.s32", "ww", neg, NULL},
    {"neg.s64", "xx", neg, NULL},
    {"abs.s16", "hh", abs_16, NULL},
    {"abs.s32", "ww", abs_32, NULL},
    {"abs.s64", "xx", abs_64, NULL},
    {"mul.hi.s16", "hhh", hi_s16, NULL},
    {"mul.hi.u16", "hhh", hi_u16, NULL},
    {"mul.hi.s32", "www", hi_s32, NULL},
    {"mul.hi.u32", "www", hi_u32, NULL},
    {"mul.hi.s64", "xxx", hi_s64, NULL},
    {"mul.hi.u64", "xxx", hi_u64, NULL},
    {"mad.hi.s32", "wwww", mad_hi_s32, NULL},
    {"mad.hi.u64", "xxxx", mad_hi_u64, NULL},
    {"mul.wide.s16", "whh", wide_s16, NULL},
    {"mul.wide.u16", "whh", mul, NULL},
    {"mul.wide.s32", "xww", wide_s32, NULL},
    {"mul.wide.u32", "xww", mul, NULL},
    {"mad.wide.s32", "xwwx", mad_wide_s32, NULL},
    {"mad.wide.u32", "xwwx", mad, NULL},
    {"div.u16", "hhh", div_u16, NULL},
    {"div.u32", "www", div_u32, NULL},
    {"div.u64", "xxx", div_u64, NULL},
    {"div.s16", "hhh", div_s16, NULL},
    {"div.s32", "www", div_s32, NULL},
    {"div.s64", "xxx", div_s64, NULL},
    {"rem.u16", "hhh", rem_u, NULL},
    {"rem.u32", "www", rem_u, NULL},
    {"rem.u64", "xxx", rem_u, NULL},
    {"rem.s16", "hhh", rem_s16, NULL},
    {"rem.s32", "www", rem_s32, NULL},
    {"rem.s64", "xxx", rem_s64, NULL},
    {"min.u16", "hhh", min_u, NULL},
    {"max.u32", "www", max_u, NULL},
    {"min.u64", "xxx", min_u, NULL},
    {"min.s16", "hhh", min_s16, NULL},
    {"max.s16", "hhh", max_s16, NULL},
    {"min.s32", "www", min_s32, NULL},
    {"max.s32", "www", max_s32, NULL},
    {"min.s64", "xxx", min_s64, NULL},
    {"max.s64", "xxx", max_s64, NULL},
    {"sad.u32", "wwww", sad_u32, NULL},
    {"sad.s32", "wwww", sad_s32, NULL},
    {"add.sat.s32", "www", add_sat, NULL},
    {"sub.sat.s32", "www", sub_sat, NULL},
    {"mul24.lo.u32", "www", mul24_lo_u, NULL},
    {"mul24.hi.u32", "www", mul24_hi_u, NULL},
    {"mul24.lo.s32", "www", mul24_lo_s, NULL},
    {"mad24.lo.s32", "wwww", mad24_lo_s, NULL},
    {"dp4a.s32.s32", "wwww", dp4a_ss, NULL},
    {"dp4a.u32.s32", "wwww", dp4a_us, NULL},
    {"dp4a.u32.u32", "wwww", dp4a_uu, NULL},
    {"and.b16", "hhh", and, NULL},
    {"and.b32", "www", and, NULL},
    {"or.b64", "xxx", or, NULL},
    {"xor.b32", "www", xor, NULL},
    {"not.b16", "hh", not, NULL},
    {"not.b64", "xx", not, NULL},
    {"cnot.b32", "ww", cnot, NULL},
    {"shl.b16", "hhw", shl_16, NULL},
    {"shl.b32", "www", shl_32, NULL},
    {"shl.b64", "xxw", shl_64, NULL},
    {"shr.u16", "hhw", shr_u16, NULL},
    {"shr.b32", "www", shr_u32, NULL},
    {"shr.u64", "xxw", shr_u64, NULL},
    {"shr.s16", "hhw", shr_s16, NULL},
    {"shr.s32", "www", shr_s32, NULL},
    {"shr.s64", "xxw", shr_s64, NULL},
    {"shf.l.wrap.b32", "wwww", shf_l_wrap, NULL},
    {"shf.r.wrap.b32", "wwww", shf_r_wrap, NULL},
    {"shf.l.clamp.b32", "wwww", shf_l_clamp, NULL},
    {"shf.r.clamp.b32", "wwww", shf_r_clamp, NULL},
    {"popc.b32", "ww", popc, NULL},
    {"popc.b64", "wx", popc, NULL},
    {"clz.b32", "ww", clz_32, NULL},
    {"clz.b64", "wx", clz_64, NULL},
    {"brev.b32", "ww", brev_32, NULL},
    {"brev.b64", "xx", brev_64, NULL},
    {"bfind.u32", "ww", bfind_u32, NULL},
    {"bfind.s32", "ww", bfind_s32, NULL},
    {"bfind.u64", "wx", bfind_u64, NULL},
    {"bfind.shiftamt.u32", "ww", bfind_shift_u32, NULL},
    {"bfind.shiftamt.s64", "wx", bfind_shift_s64, NULL},
    {"bfe.u32", "wwww", bfe_u32, NULL},
    {"bfe.s32", "wwww", bfe_s32, NULL},
    {"bfe.u64", "xxww", bfe_u64, NULL},
    {"bfe.s64", "xxww", bfe_s64, NULL},
    {"bfi.b32", "wwww", bfi_32, "7"},
    {"bfi.b64", "xxxw", bfi_64, "40"},
    {"bmsk.clamp.b32", "www", bmsk_clamp, NULL},
    {"bmsk.wrap.b32", "www", bmsk_wrap, NULL},
    {"prmt.b32", "wwww", prmt, NULL},
    {"prmt.b32.rc8", "wwww", rc8, NULL},
    {"lop3.b32", "wwww", lop3_96, "0x96"},
    {"lop3.b32", "wwww", lop3_ca, "0xCA"},
    {"lop3.b32", "wwww", lop3_1b, "0x1B"},
    {"fns.b32", "wwww", fns, NULL},
};
enum { ROWS = sizeof rows / sizeof *rows };

/* ---- tests ----------------------------------------------------------------------------------- */

static uint64_t cut(uint64_t v, char width) {
    return width == 'h' ? v & 0xffff : width == 'w' ? v & 0xffffffff : v;
}

static void check_row(const struct row *r) {
    static struct machine_item items[VALUES];
    for (int n = 0; n < VALUES; n++)
        items[n] = (struct machine_item){
            .source = {edges[n / EDGES], edges[n % EDGES], edges[(n * 7 + n / 5) % EDGES]}};
    if (!machine_execute(&(struct machine_op){r->op, r->widths, r->last}, items, VALUES))
        return;
    for (int n = 0; n < VALUES; n++) {
        uint64_t s[3] = {0};
        for (int k = 0; r->widths[k + 1]; k++)
            s[k] = cut(items[n].source[k], r->widths[k + 1]);
        uint64_t want = cut(r->expect(s[0], s[1], s[2]), r->widths[0]);
        if (items[n].result != want) {
            FAIL("%s of 0x%llx, 0x%llx, 0x%llx: 0x%llx, expected 0x%llx", r->op,
                 (unsigned long long)s[0], (unsigned long long)s[1], (unsigned long long)s[2],
                 (unsigned long long)items[n].result, (unsigned long long)want);
            return;
        }
    }
}

TEST(MachineInt, InstructionsGiveWhatCGives) {
    for (int n = 0; n < ROWS; n++)
        check_row(&rows[n]);
}

/* A sum and a product of 128 bits by carries. */
TEST(MachineInt, CarriesJoinWords) {
    enum { PAIRS = EDGES * EDGES };
    u128(*v)[3] = machine_alloc(PAIRS * sizeof *v);
    for (int n = 0; n < PAIRS; n++) {
        v[n][0] = (u128)edges[n % EDGES] << 64 | edges[n / EDGES];
        v[n][1] = (u128)edges[n / EDGES] << 64 | edges[n % EDGES];
    }
    machine_run_body(NULL,
                     "mul.wide.u32 %d2, %r2, 48;\nadd.s64 %d0, %d0, %d2;\n"
                     "ld.global.v2.u64 {%d11, %d12}, [%d0];\n"
                     "ld.global.v2.u64 {%d13, %d14}, [%d0+16];\n"
                     "add.cc.u64 %d15, %d11, %d13;\naddc.u64 %d16, %d12, %d14;\n"
                     "sub.cc.u64 %d17, %d11, %d13;\nsubc.u64 %d18, %d12, %d14;\n"
                     "mad.lo.cc.u64 %d19, %d11, %d13, %d12;\nmadc.hi.u64 %d20, %d11, %d13, 0;\n"
                     "st.global.v2.u64 [%d0], {%d15, %d16};\n"
                     "st.global.v2.u64 [%d0+16], {%d17, %d18};\n"
                     "st.global.v2.u64 [%d0+32], {%d19, %d20};\n",
                     EDGES, EDGES, v);
    for (int n = 0; n < PAIRS && !shim_failed(); n++) {
        uint64_t a = edges[n / EDGES], b = edges[n % EDGES];
        u128 x = (u128)b << 64 | a, y = (u128)a << 64 | b;
        EXPECT_TRUE(v[n][0] == x + y);
        EXPECT_TRUE(v[n][1] == x - y);
        EXPECT_TRUE(v[n][2] == (u128)a * b + b);
    }
    machine_free(v);
}
