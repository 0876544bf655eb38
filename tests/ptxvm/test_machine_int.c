/* Integer and bit instructions of the PTX machine against C, value by value.
 *
 * Each row is one instruction in a kernel of its own: thread n loads a[n], b[n] and c[n], executes
 * it and stores the result. The values are all pairs of a list of edge cases with a third that
 * walks through the list; their count is no multiple of a warp, so that the last warp runs with a
 * part of its lanes.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ptxvm/machine.h"
#include "tests/shim.h"

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

/* ---- kernels --------------------------------------------------------------------------------- */

static const char *type_of(char width) {
    return width == 'h' ? "u16" : width == 'w' ? "u32" : "u64";
}

/* Appends a kernel k<n> for a row. Registers: %h %w %x 0 is the result, 1 to 3 the sources. */
static int kernel_text(char *out, size_t bytes, const struct row *r, int n) {
    int at = snprintf(out, bytes,
                      ".visible .entry k%d(.param .u64 k%d_p)\n{\n"
                      ".reg .pred %%p<2>; .reg .b16 %%h<5>; .reg .b32 %%w<9>; .reg .b64 %%x<9>;\n"
                      "ld.param.u64 %%x5, [k%d_p];\n"
                      "mov.u32 %%w5, %%ctaid.x; mov.u32 %%w6, %%ntid.x; mov.u32 %%w7, %%tid.x;\n"
                      "mad.lo.s32 %%w5, %%w5, %%w6, %%w7;\n"
                      "setp.ge.u32 %%p1, %%w5, %d;\n@%%p1 bra done;\n"
                      "mad.wide.u32 %%x6, %%w5, 32, %%x5;\n",
                      n, n, n, VALUES);
    for (int s = 1; r->widths[s]; s++)
        at += snprintf(out + at, bytes - (size_t)at, "ld.global.%s %%%c%d, [%%x6+%d];\n",
                       type_of(r->widths[s]), r->widths[s], s, 8 * s);
    at += snprintf(out + at, bytes - (size_t)at, "%s %%%c0", r->op, r->widths[0]);
    for (int s = 1; r->widths[s]; s++)
        at += snprintf(out + at, bytes - (size_t)at, ", %%%c%d", r->widths[s], s);
    if (r->last)
        at += snprintf(out + at, bytes - (size_t)at, ", %s", r->last);
    at += snprintf(out + at, bytes - (size_t)at, ";\nst.global.%s [%%x6], %%%c0;\ndone:\nret;\n}\n",
                   type_of(r->widths[0]), r->widths[0]);
    return at;
}

static struct vm_module *load_rows(void) {
    enum { TEXT = ROWS * 1024 };
    static char text[TEXT];
    char error[512];
    int at = snprintf(text, TEXT, ".version 8.0\n.target sm_80\n.address_size 64\n");
    for (int n = 0; n < ROWS; n++)
        at += kernel_text(text + at, TEXT - (size_t)at, &rows[n], n);
    struct vm_module *m = vm_module_load(text, (size_t)at, error, sizeof error);
    if (!m)
        FAIL("%s", error);
    return m;
}

static uint64_t cut(uint64_t v, char width) {
    return width == 'h' ? v & 0xffff : width == 'w' ? v & 0xffffffff : v;
}

struct item {
    uint64_t result, source[3];
};

static void check_row(const struct row *r, const struct item *items) {
    for (int n = 0; n < VALUES; n++) {
        uint64_t s[3] = {0};
        for (int k = 0; r->widths[k + 1]; k++)
            s[k] = cut(items[n].source[k], r->widths[k + 1]);
        uint64_t want = cut(r->expect(s[0], s[1], s[2]), r->widths[0]);
        uint64_t got = cut(items[n].result, r->widths[0]);
        if (got != want) {
            FAIL("%s of 0x%llx, 0x%llx, 0x%llx: 0x%llx, expected 0x%llx", r->op,
                 (unsigned long long)s[0], (unsigned long long)s[1], (unsigned long long)s[2],
                 (unsigned long long)got, (unsigned long long)want);
            return;
        }
    }
}

TEST(Machine, IntegerInstructionsGiveWhatCGives) {
    struct vm_module *m = load_rows();
    ASSERT_TRUE(m != NULL);
    struct item *items = vm_alloc(0, VALUES * sizeof *items, VM_DEVICE, "items");
    ASSERT_TRUE(items != NULL);
    void *params = items;
    for (int n = 0; n < ROWS; n++) {
        char name[16];
        snprintf(name, sizeof name, "k%d", n);
        struct vm_launch l = {.kernel = vm_module_kernel(m, name),
                              .arch = vm_arch_find(80),
                              .grid = {(VALUES + 127) / 128, 1, 1},
                              .block = {128, 1, 1},
                              .params = &params};
        ASSERT_TRUE(l.kernel != NULL);
        vm_access_begin();
        for (int v = 0; v < VALUES; v++)
            items[v] = (struct item){
                ~(uint64_t)0, {edges[v / EDGES], edges[v % EDGES], edges[(v * 7 + v / 5) % EDGES]}};
        EXPECT_INT_EQ(vm_run(&l), VM_OK);
        check_row(&rows[n], items);
        vm_access_end();
    }
    vm_free(items);
    vm_module_unload(m);
}

/* A sum and a product of 128 bits by carries. */
TEST(Machine, CarriesJoinWords) {
    static const char text[] =
        ".version 8.0\n.target sm_80\n.address_size 64\n"
        ".visible .entry k(.param .u64 p)\n{\n.reg .b64 %x<12>;\n"
        "ld.param.u64 %x0, [p];\n"
        "ld.global.v2.u64 {%x1, %x2}, [%x0];\nld.global.v2.u64 {%x3, %x4}, [%x0+16];\n"
        "add.cc.u64 %x5, %x1, %x3;\naddc.u64 %x6, %x2, %x4;\n"
        "sub.cc.u64 %x7, %x1, %x3;\nsubc.u64 %x8, %x2, %x4;\n"
        "mul.lo.u64 %x9, %x1, %x3;\nmul.hi.u64 %x10, %x1, %x3;\n"
        "mad.lo.cc.u64 %x9, %x1, %x3, %x2;\nmadc.hi.u64 %x10, %x1, %x3, 0;\n"
        "st.global.v2.u64 [%x0], {%x5, %x6};\nst.global.v2.u64 [%x0+16], {%x7, %x8};\n"
        "st.global.v2.u64 [%x0+32], {%x9, %x10};\nret;\n}\n";
    char error[512];
    struct vm_module *m = vm_module_load(text, sizeof text - 1, error, sizeof error);
    ASSERT_TRUE(m != NULL);
    u128 *v = vm_alloc(0, 3 * sizeof *v, VM_DEVICE, "words");
    void *params = v;
    struct vm_launch l = {.kernel = vm_module_kernel(m, "k"),
                          .arch = vm_arch_find(80),
                          .grid = {1, 1, 1},
                          .block = {1, 1, 1},
                          .params = &params};
    for (int a = 0; a < EDGES; a++)
        for (int b = 0; b < EDGES; b++) {
            u128 x = (u128)edges[b] << 64 | edges[a], y = (u128)edges[a] << 64 | edges[b];
            vm_access_begin();
            v[0] = x;
            v[1] = y;
            ASSERT_INT_EQ(vm_run(&l), VM_OK);
            EXPECT_TRUE(v[0] == x + y);
            EXPECT_TRUE(v[1] == x - y);
            EXPECT_TRUE(v[2] == (u128)edges[a] * edges[b] + edges[b]);
            vm_access_end();
            if (shim_failed())
                return;
        }
    vm_free(v);
    vm_module_unload(m);
}
