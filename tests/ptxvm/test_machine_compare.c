/* Comparisons and selections of the PTX machine: setp, set, testp, selp, slct.
 *
 * All pairs of a list of values of each type, among them zeros of both signs, subnormal numbers and
 * NaNs, with what the manual says of each comparison.
 */
#include <stdio.h>
#include <string.h>

#include "tests/ptxvm/exact_fixture.h"
#include "tests/ptxvm/machine_fixture.h"

/* A comparison by the order of two values: less, equal, greater, or unordered with a NaN. */
enum order { LESS = 1, EQUAL = 2, GREATER = 4, UNORDERED = 8 };
struct comparison {
    const char *name;
    int holds; /* for which of them */
};
static const struct comparison of_integers[] = {
    {"eq", EQUAL},        {"ne", LESS | GREATER}, {"lt", LESS},
    {"le", LESS | EQUAL}, {"gt", GREATER},        {"ge", GREATER | EQUAL},
};
static const struct comparison of_unsigned[] = {
    {"lo", LESS}, {"ls", LESS | EQUAL}, {"hi", GREATER}, {"hs", GREATER | EQUAL}};
static const struct comparison of_floats[] = {
    {"eq", EQUAL},
    {"ne", LESS | GREATER},
    {"lt", LESS},
    {"le", LESS | EQUAL},
    {"gt", GREATER},
    {"ge", GREATER | EQUAL},
    {"equ", EQUAL | UNORDERED},
    {"neu", LESS | GREATER | UNORDERED},
    {"ltu", LESS | UNORDERED},
    {"leu", LESS | EQUAL | UNORDERED},
    {"gtu", GREATER | UNORDERED},
    {"geu", GREATER | EQUAL | UNORDERED},
    {"num", LESS | EQUAL | GREATER},
    {"nan", UNORDERED},
};

struct type {
    const char *name;
    char width;
    const struct exact_format *f; /* NULL: an integer */
    bool is_signed, flush;
};

enum { VALUES = 18, PAIRS = VALUES * VALUES };

static int bits_of(const struct type *t) {
    return t->width == 'h' ? 16 : t->width == 'w' ? 32 : 64;
}

/* Half of the values are negative, or large, ones of the others. */
static uint64_t value(const struct type *t, int n) {
    uint64_t top = (uint64_t)1 << (bits_of(t) - 1);
    if (!t->f) {
        const uint64_t integers[] = {0, 1, 2, 100, 255, top / 2, top - 2, top - 1, 77};
        return integers[n / 2] | (n % 2 ? top : 0);
    }
    const struct exact_format *f = t->f;
    const uint64_t floats[] = {0,
                               1,
                               ((uint64_t)1 << f->mantissa) - 1,
                               (uint64_t)1 << f->mantissa,
                               exact_one(f),
                               exact_one(f) + 1,
                               exact_infinity(f, false) - 1,
                               exact_infinity(f, false),
                               exact_nan(f) - 1};
    return floats[n / 2] | (n % 2 ? top : 0);
}

static enum order order_of(const struct type *t, uint64_t a, uint64_t b) {
    uint64_t top = (uint64_t)1 << (bits_of(t) - 1);
    if (t->f) {
        if (exact_is_nan(t->f, a) || exact_is_nan(t->f, b))
            return UNORDERED;
        a = t->flush ? exact_flush(t->f, a) : a;
        b = t->flush ? exact_flush(t->f, b) : b;
        if (!((a | b) & ~top))
            return EQUAL; /* zeros of any sign */
        /* The codes of negative numbers fall as the numbers do. */
        a = a & top ? ~a : a | top;
        b = b & top ? ~b : b | top;
        int unused = 64 - bits_of(t);
        a = a << unused;
        b = b << unused;
    } else if (t->is_signed) {
        a ^= top;
        b ^= top;
    }
    return a < b ? LESS : a > b ? GREATER : EQUAL;
}

static void check_comparison(const struct type *t, const struct comparison *c) {
    static struct machine_item items[PAIRS];
    char op[64];
    const char widths[] = {'p', t->width, t->width, 0};
    snprintf(op, sizeof op, "setp.%s%s.%s", c->name, t->flush ? ".ftz" : "", t->name);
    for (int n = 0; n < PAIRS; n++)
        items[n].source[0] = value(t, n / VALUES), items[n].source[1] = value(t, n % VALUES);
    if (!machine_execute(&(struct machine_op){op, widths, NULL}, items, PAIRS))
        return;
    for (int n = 0; n < PAIRS; n++) {
        const uint64_t *s = items[n].source;
        bool want = c->holds & order_of(t, s[0], s[1]);
        if (items[n].result != want) {
            FAIL("%s of 0x%llx, 0x%llx: %d, expected %d", op, (unsigned long long)s[0],
                 (unsigned long long)s[1], (int)items[n].result, want);
            return;
        }
    }
}

#define EACH(table, t)                                                                             \
    for (size_t n = 0; n < sizeof(table) / sizeof *(table); n++)                                   \
    check_comparison(t, &(table)[n])

TEST(MachineCompare, IntegersAreOrderedByTheirSign) {
    static const struct type types[] = {
        {"u16", 'h', NULL, false, false}, {"s16", 'h', NULL, true, false},
        {"u32", 'w', NULL, false, false}, {"s32", 'w', NULL, true, false},
        {"u64", 'x', NULL, false, false}, {"s64", 'x', NULL, true, false},
    };
    for (int k = 0; k < 6; k++) {
        EACH(of_integers, &types[k]);
        if (!types[k].is_signed)
            EACH(of_unsigned, &types[k]);
    }
}

TEST(MachineCompare, FloatsAreOrderedUnlessOneIsNan) {
    static const struct type types[] = {
        {"f32", 'w', &exact_f32, true, false},   {"f32", 'w', &exact_f32, true, true},
        {"f64", 'x', &exact_f64, true, false},   {"f16", 'h', &exact_f16, true, false},
        {"bf16", 'h', &exact_bf16, true, false},
    };
    for (int k = 0; k < 5; k++)
        EACH(of_floats, &types[k]);
}

/* Both predicates, combined with a third, negated or not. Words: bits of p and q. */
static void check_combined(const uint32_t *data) {
    for (uint32_t t = 0; t < 32; t++) {
        bool less = t % 8 < 4, third = t % 3 == 0;
        const bool p[] = {less && third, less || !third, less != third};
        const bool q[] = {!less && third, !less || !third, !less != third};
        for (int k = 0; k < 3; k++)
            EXPECT_INT_EQ(data[t] >> 2 * k & 3, p[k] + 2 * q[k]);
    }
}

TEST(MachineCompare, PredicatesAreCombined) {
    machine_run_case(&(struct machine_case){
        .body = "and.b32 %r10, %r0, 7;\nrem.u32 %r11, %r0, 3;\nsetp.eq.u32 %p0, %r11, 0;\n"
                "setp.lt.and.s32 %p1|%p2, %r10, 4, %p0;\nsetp.lt.or.s32 %p3|%p4, %r10, 4, !%p0;\n"
                "setp.lt.xor.s32 %p5|%p6, %r10, 4, %p0;\nmov.u32 %r14, 0;\n"
                "@%p1 add.u32 %r14, %r14, 1;\n@%p2 add.u32 %r14, %r14, 2;\n"
                "@%p3 add.u32 %r14, %r14, 4;\n@%p4 add.u32 %r14, %r14, 8;\n"
                "@%p5 add.u32 %r14, %r14, 16;\n@%p6 add.u32 %r14, %r14, 32;\n"
                "st.global.u32 [%d1], %r14;\n",
        .blocks = 1,
        .threads = 32,
        .words = 32,
        .check = check_combined});
}

/* ---- one value from another ------------------------------------------------------------------ */

static void check_result(const char *op, const char *widths, uint64_t a, uint64_t b, uint64_t c,
                         uint64_t want) {
    struct machine_item item = {.source = {a, b, c}};
    if (machine_execute(&(struct machine_op){op, widths, NULL}, &item, 1) && item.result != want)
        FAIL("%s of 0x%llx, 0x%llx, 0x%llx: 0x%llx, expected 0x%llx", op, (unsigned long long)a,
             (unsigned long long)b, (unsigned long long)c, (unsigned long long)item.result,
             (unsigned long long)want);
}

TEST(MachineCompare, SetGivesOnesOrAFloat) {
    check_result("set.lt.u32.s32", "www", (uint64_t)-5, 3, 0, 0xffffffff);
    check_result("set.lt.u32.u32", "www", (uint64_t)-5, 3, 0, 0);
    check_result("set.ge.f32.s32", "www", 3, 3, 0, 0x3f800000);
    check_result("set.gt.s32.f32", "www", 0x40000000, 0x3f800000, 0, 0xffffffff);
    check_result("set.neu.u32.f32", "www", 0x7fc00000, 0x3f800000, 0, 0xffffffff);
    check_result("set.gt.f16x2.f16x2", "www", 0x40003c00, 0x3c003c00, 0, 0x3c000000);
    check_result("set.le.u32.bf16x2", "www", 0x40003f80, 0x3f803f80, 0, 0x0000ffff);
}

TEST(MachineCompare, SelectionsTakeBitsAsTheyAre) {
    check_result("selp.b16", "hhhp", 0x1234, 0x8765, 1, 0x1234);
    check_result("selp.f32", "wwwp", 0x7f800001, 3, 1, 0x7f800001); /* a NaN's payload too */
    check_result("selp.b64", "xxxp", 1, 0x8000000000000001, 0, 0x8000000000000001);
    check_result("slct.f32.s32", "wwww", 5, 6, 0, 5);
    check_result("slct.u64.s32", "xxxw", 5, 6, (uint64_t)-1, 6);
    check_result("slct.b32.f32", "wwww", 5, 6, 0x80000000, 5); /* -0 >= 0 */
    check_result("slct.b32.f32", "wwww", 5, 6, 0x7fc00000, 6);
}

TEST(MachineCompare, KindsOfFloatsAreKnown) {
    static const char *const ops[] = {"testp.finite.f32", "testp.infinite.f32",
                                      "testp.number.f32", "testp.notanumber.f32",
                                      "testp.normal.f32", "testp.subnormal.f32"};
    static const struct {
        uint32_t code;
        int kinds; /* bit n: op n holds */
    } rows[] = {{0, 5},           {0x80000000, 5},  {1, 37},         {0x807fffff, 37},
                {0x00800000, 21}, {0xc1200000, 21}, {0x7f800000, 6}, {0xff800000, 6},
                {0x7fc00000, 8},  {0xff800001, 8}};
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++)
        for (int k = 0; k < 6; k++)
            check_result(ops[k], "pw", rows[n].code, 0, 0, (uint64_t)(rows[n].kinds >> k & 1));
}
