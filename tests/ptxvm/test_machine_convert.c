/* Conversions of the PTX machine.
 *
 * The narrow formats are small enough to try every code: their values are written down from their
 * definition (exact_fixture.h, and below for E4M3), and numbers between two codes, at their middle
 * and next to it, show how a conversion rounds.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ptxvm/exact_fixture.h"
#include "tests/ptxvm/machine_fixture.h"

typedef const struct exact_format *format;
typedef __int128 s128;

enum { CODES = 65536 };

static struct machine_item *new_items(size_t count) {
    struct machine_item *items = calloc(count, sizeof *items);
    if (!items)
        abort();
    return items;
}

/* ---- references of single values ------------------------------------------------------------- */

/* E4M3: no infinities; 0x7f and 0xff are NaN; the exponent's bias is 7. */
static uint32_t e4m3_f32(uint32_t code) {
    uint32_t fraction = code & 7, e = code >> 3 & 15;
    if ((code & 0x7f) == 0x7f)
        return (uint32_t)exact_nan(&exact_f32);
    return (uint32_t)exact_scale(&exact_f32, EXACT_NEAREST, code >> 7 & 1,
                                 e ? 8 + fraction : fraction, (int)(e ? e : 1) - 10);
}

/* The nearest code, found among all of them; ties go to the even one, and beyond 448 to 448. */
static uint32_t f32_e4m3(uint32_t x) {
    uint32_t magnitude = x & 0x7fffffff, sign = x >> 24 & 0x80, low = 0;
    if (exact_is_nan(&exact_f32, x))
        return 0x7f;
    if (magnitude >= e4m3_f32(0x7e))
        return sign | 0x7e;
    while (e4m3_f32(low + 1) <= magnitude) /* codes of floats order as the floats do */
        low++;
    uint64_t middle =
        exact_mul(&exact_f32, EXACT_NEAREST, exact_one(&exact_f32) - (1 << 23),
                  exact_add(&exact_f32, EXACT_NEAREST, e4m3_f32(low), e4m3_f32(low + 1)));
    bool up = magnitude > middle || (magnitude == middle && (low & 1));
    return sign | (low + up);
}

/* With saturation to the largest finite number. */
static uint32_t f32_e5m2(uint32_t x) {
    if (exact_is_nan(&exact_f32, x))
        return 0x7f;
    uint32_t code = (uint32_t)exact_convert(&exact_e5m2, EXACT_NEAREST, &exact_f32, x);
    return (code & 0x7f) == 0x7c ? code - 1 : code;
}

static uint32_t e4m3_f16(uint32_t code) {
    return (uint32_t)exact_convert(&exact_f16, EXACT_NEAREST, &exact_f32, e4m3_f32(code));
}
static uint32_t e5m2_f16(uint32_t code) {
    return (uint32_t)exact_convert(&exact_f16, EXACT_NEAREST, &exact_e5m2, code);
}
static uint32_t f16_f32(uint32_t code) {
    return (uint32_t)exact_convert(&exact_f32, EXACT_NEAREST, &exact_f16, code);
}

/* ---- checks ---------------------------------------------------------------------------------- */

typedef uint64_t (*reference)(const uint64_t source[3]);

static void check(const char *op, const char *widths, struct machine_item *items, uint32_t count,
                  reference expect) {
    if (!machine_execute(&(struct machine_op){op, widths, NULL}, items, count))
        return;
    uint64_t keep = widths[0] == 'h' ? 0xffff : widths[0] == 'w' ? 0xffffffff : UINT64_MAX;
    for (uint32_t n = 0; n < count; n++) {
        const uint64_t *s = items[n].source;
        uint64_t want = expect(s) & keep;
        if (items[n].result != want) {
            FAIL("%s of 0x%llx, 0x%llx, 0x%llx: 0x%llx, expected 0x%llx", op,
                 (unsigned long long)s[0], (unsigned long long)s[1], (unsigned long long)s[2],
                 (unsigned long long)items[n].result, (unsigned long long)want);
            return;
        }
    }
}

/* Every code of 16 bits, but those in [skip, 0x7fff] of either sign: which NaN comes out is open in
 * float64. */
static void check_codes(const char *op, const char *widths, uint32_t skip, reference expect) {
    struct machine_item *items = new_items(CODES);
    for (uint32_t n = 0; n < CODES; n++)
        items[n].source[0] = (n & 0x7fff) < skip ? n : 0;
    check(op, widths, items, CODES, expect);
    free(items);
}

/* For every code of a 16-bit format: its value in float32, the numbers next to it, and the middle
 * of the way to the next code with the numbers next to that; both signs. `codes` below 65536 are
 * taken. The second source is the next item's first one. */
static void check_between(const char *op, const char *widths, uint32_t codes,
                          uint32_t (*value)(uint32_t code), reference expect) {
    struct machine_item *items = new_items(6 * codes);
    for (uint32_t n = 0; n < codes; n++) {
        uint32_t here = value(n), next = value((n + 1) % codes);
        /* Between two neighbours of one binade the codes of float32 are evenly spaced. */
        uint32_t middle = here + (next - here) / 2;
        const uint32_t tried[] = {here, here + 1, here - 1, middle, middle + 1, middle - 1};
        for (uint32_t k = 0; k < 6; k++)
            items[6 * n + k].source[0] = tried[k];
    }
    for (uint32_t n = 0; n < 6 * codes; n++)
        items[n].source[1] = items[(n + 7) % (6 * codes)].source[0];
    check(op, widths, items, 6 * codes, expect);
    free(items);
}

#define REF(name, expr)                                                                            \
    static uint64_t name(const uint64_t s[3]) {                                                    \
        return (uint64_t)(expr);                                                                   \
    }

/* ---- f16 and bf16 ---------------------------------------------------------------------------- */

static uint32_t bf16_f32(uint32_t code) {
    return (uint32_t)exact_convert(&exact_f32, EXACT_NEAREST, &exact_bf16, code);
}
#define TO(f, mode, x) exact_convert(&exact_##f, EXACT_##mode, &exact_f32, x)
REF(from_f16, f16_f32((uint32_t)s[0]))
REF(from_bf16, bf16_f32((uint32_t)s[0]))
REF(f16_to_f64, exact_convert(&exact_f64, EXACT_NEAREST, &exact_f16, s[0]))
REF(f16_rn, TO(f16, NEAREST, s[0]))
REF(f16_rz, TO(f16, ZERO, s[0]))
REF(f16_rm, TO(f16, DOWN, s[0]))
REF(f16_rp, TO(f16, UP, s[0]))
REF(bf16_rn, TO(bf16, NEAREST, s[0]))
REF(bf16_rz, TO(bf16, ZERO, s[0]))
REF(bf16_rp, TO(bf16, UP, s[0]))
REF(f16_sat, exact_saturate(&exact_f16, TO(f16, NEAREST, s[0])))
REF(f16_ftz, TO(f16, NEAREST, exact_flush(&exact_f32, s[0])))
REF(f16x2_rn, TO(f16, NEAREST, s[0]) << 16 | TO(f16, NEAREST, s[1]))
REF(f16x2_rz, TO(f16, ZERO, s[0]) << 16 | TO(f16, ZERO, s[1]))
REF(bf16x2_rn, TO(bf16, NEAREST, s[0]) << 16 | TO(bf16, NEAREST, s[1]))
REF(bf16x2_rz, TO(bf16, ZERO, s[0]) << 16 | TO(bf16, ZERO, s[1]))

static uint64_t relu(format f, uint64_t code) {
    return !exact_is_nan(f, code) && code > exact_nan(f) ? 0 : code;
}
REF(bf16x2_relu,
    relu(&exact_bf16, TO(bf16, NEAREST, s[0])) << 16 | relu(&exact_bf16, TO(bf16, NEAREST, s[1])))

TEST(MachineConvert, EveryHalfWidens) {
    check_codes("cvt.f32.f16", "wh", CODES, from_f16);
    check_codes("cvt.f32.bf16", "wh", CODES, from_bf16);
    check_codes("cvt.f64.f16", "xh", 0x7c01, f16_to_f64);
}

TEST(MachineConvert, FloatsBetweenEveryTwoHalvesRound) {
    check_between("cvt.rn.f16.f32", "hw", CODES, f16_f32, f16_rn);
    check_between("cvt.rz.f16.f32", "hw", CODES, f16_f32, f16_rz);
    check_between("cvt.rm.f16.f32", "hw", CODES, f16_f32, f16_rm);
    check_between("cvt.rp.f16.f32", "hw", CODES, f16_f32, f16_rp);
    check_between("cvt.rn.sat.f16.f32", "hw", CODES, f16_f32, f16_sat);
    check_between("cvt.rn.ftz.f16.f32", "hw", CODES, f16_f32, f16_ftz);
    check_between("cvt.rn.bf16.f32", "hw", CODES, bf16_f32, bf16_rn);
    check_between("cvt.rz.bf16.f32", "hw", CODES, bf16_f32, bf16_rz);
    check_between("cvt.rp.bf16.f32", "hw", CODES, bf16_f32, bf16_rp);
}

TEST(MachineConvert, PairsOfHalvesHaveTheFirstInTheHighHalf) {
    check_between("cvt.rn.f16x2.f32", "www", CODES, f16_f32, f16x2_rn);
    check_between("cvt.rz.f16x2.f32", "www", CODES, f16_f32, f16x2_rz);
    check_between("cvt.rn.bf16x2.f32", "www", CODES, bf16_f32, bf16x2_rn);
    check_between("cvt.rz.bf16x2.f32", "www", CODES, bf16_f32, bf16x2_rz);
    check_between("cvt.rn.relu.bf16x2.f32", "www", CODES, bf16_f32, bf16x2_relu);
}

/* ---- 8 bits ---------------------------------------------------------------------------------- */

static uint32_t e5m2_f32(uint32_t code) {
    return (uint32_t)exact_convert(&exact_f32, EXACT_NEAREST, &exact_e5m2, code);
}
static uint32_t half_relu(uint32_t code) {
    return (uint32_t)relu(&exact_f16, code);
}
#define BYTE(n) ((uint32_t)s[0] >> 8 * (n)&255)
REF(e4m3x2_f16x2, e4m3_f16(BYTE(1)) << 16 | e4m3_f16(BYTE(0)))
REF(e5m2x2_f16x2, e5m2_f16(BYTE(1)) << 16 | e5m2_f16(BYTE(0)))
REF(e4m3x2_relu, half_relu(e4m3_f16(BYTE(1))) << 16 | half_relu(e4m3_f16(BYTE(0))))
REF(pack_e4m3x2, f32_e4m3((uint32_t)s[0]) << 8 | f32_e4m3((uint32_t)s[1]))
REF(pack_e5m2x2, f32_e5m2((uint32_t)s[0]) << 8 | f32_e5m2((uint32_t)s[1]))
#define HALF(n) f16_f32((uint32_t)s[0] >> 16 * (n)&0xffff)
REF(f16x2_e4m3x2, f32_e4m3(HALF(1)) << 8 | f32_e4m3(HALF(0)))
REF(f16x2_e5m2x2, f32_e5m2(HALF(1)) << 8 | f32_e5m2(HALF(0)))

TEST(MachineConvert, EveryPairOfBytesWidens) {
    check_codes("cvt.rn.f16x2.e4m3x2", "wh", CODES, e4m3x2_f16x2);
    check_codes("cvt.rn.f16x2.e5m2x2", "wh", CODES, e5m2x2_f16x2);
    check_codes("cvt.rn.relu.f16x2.e4m3x2", "wh", CODES, e4m3x2_relu);
}

TEST(MachineConvert, FloatsBetweenEveryTwoBytesRoundAndSaturate) {
    check_between("cvt.rn.satfinite.e4m3x2.f32", "hww", 256, e4m3_f32, pack_e4m3x2);
    check_between("cvt.rn.satfinite.e5m2x2.f32", "hww", 256, e5m2_f32, pack_e5m2x2);
}

/* Every f16 in the low half, with another in the high one. */
TEST(MachineConvert, EveryHalfBecomesAByte) {
    struct machine_item *items = new_items(CODES);
    for (uint32_t n = 0; n < CODES; n++)
        items[n].source[0] = n | (n * 40503 & 0xffff) << 16;
    check("cvt.rn.satfinite.e4m3x2.f16x2", "hw", items, CODES, f16x2_e4m3x2);
    check("cvt.rn.satfinite.e5m2x2.f16x2", "hw", items, CODES, f16x2_e5m2x2);
    free(items);
}

/* ---- wider floats ---------------------------------------------------------------------------- */

/* Numbers around the ends of every integer type, and others of all magnitudes. */
static uint32_t fill_reals(format f, struct machine_item *items) {
    static const int powers[] = {-149, -127, -20, -2, -1, 0,  1,  2,  7,  8,
                                 15,   16,   23,  24, 31, 32, 52, 53, 63, 64};
    uint32_t count = 0;
    for (size_t p = 0; p < sizeof powers / sizeof *powers; p++)
        for (uint64_t m = 0; m < 16; m++) /* 1, 1.25, 1.5, 1.75 with neighbours */
            for (int sign = 0; sign < 2; sign++) {
                uint64_t code = exact_scale(f, EXACT_NEAREST, sign, 4 + m / 4, powers[p] - 2);
                items[count++].source[0] = code + m % 4 - 2;
            }
    const uint64_t special[] = {0,
                                exact_negate(f, 0),
                                exact_infinity(f, false),
                                exact_infinity(f, true),
                                exact_infinity(f, false) - 1,
                                exact_nan(f),
                                1};
    for (size_t k = 0; k < sizeof special / sizeof *special; k++)
        items[count++].source[0] = special[k];
    return count;
}
enum { REALS = 20 * 32 + 7 };

static void check_reals(const char *op, const char *widths, format f, reference expect) {
    static struct machine_item items[REALS];
    uint32_t count = fill_reals(f, items);
    check(op, widths, items, count, expect);
}

#define NARROW(mode, x) exact_convert(&exact_f32, EXACT_##mode, &exact_f64, x)
REF(f64_f32_rn, NARROW(NEAREST, s[0]))
REF(f64_f32_rz, NARROW(ZERO, s[0]))
REF(f64_f32_rm, NARROW(DOWN, s[0]))
REF(f64_f32_rp, NARROW(UP, s[0]))
REF(f64_f32_ftz, exact_flush(&exact_f32, NARROW(NEAREST, s[0])))
REF(f64_f16_rn, exact_convert(&exact_f16, EXACT_NEAREST, &exact_f64, s[0]))
REF(f64_bf16_rn, exact_convert(&exact_bf16, EXACT_NEAREST, &exact_f64, s[0]))
REF(f32_sat, exact_saturate(&exact_f32, s[0]))
REF(f32_ftz, exact_flush(&exact_f32, exact_convert(&exact_f32, EXACT_ZERO, &exact_f32, s[0])))

/* TF32 has 10 bits of mantissa; ties go away from zero. */
REF(tf32_rna, exact_is_nan(&exact_f32, s[0])      ? s[0] & 0x7fffffff
              : (s[0] & 0x7fffffff) == 0x7f800000 ? s[0]
                                                  : (s[0] + 0x1000) & 0xffffe000)

TEST(MachineConvert, DoublesRoundOnce) {
    check_reals("cvt.rn.f32.f64", "wx", &exact_f64, f64_f32_rn);
    check_reals("cvt.rz.f32.f64", "wx", &exact_f64, f64_f32_rz);
    check_reals("cvt.rm.f32.f64", "wx", &exact_f64, f64_f32_rm);
    check_reals("cvt.rp.f32.f64", "wx", &exact_f64, f64_f32_rp);
    check_reals("cvt.rn.ftz.f32.f64", "wx", &exact_f64, f64_f32_ftz);
    check_reals("cvt.rn.f16.f64", "hx", &exact_f64, f64_f16_rn);
    check_reals("cvt.rn.bf16.f64", "hx", &exact_f64, f64_bf16_rn);
}

TEST(MachineConvert, FloatsAreCutToTheirRange) {
    check_reals("cvt.sat.f32.f32", "ww", &exact_f32, f32_sat);
    check_reals("cvt.ftz.f32.f32", "ww", &exact_f32, f32_ftz);
    check_reals("cvt.rna.tf32.f32", "ww", &exact_f32, tf32_rna);
}

/* ---- floats to integers ---------------------------------------------------------------------- */

/* Rounded and clamped. NaN is 0, or the sign bit alone where either side has 64 bits. */
static uint64_t integer_of(format f, enum exact_rounding mode, uint64_t code, int bits,
                           bool is_signed) {
    if (exact_is_nan(f, code))
        return f == &exact_f64 || bits == 64 ? (uint64_t)1 << (bits - 1) : 0;
    s128 low = is_signed ? -((s128)1 << (bits - 1)) : 0;
    s128 high = is_signed ? ((s128)1 << (bits - 1)) - 1 : ((s128)1 << bits) - 1;
    s128 x = exact_integer(f, mode, code);
    return (uint64_t)(x < low ? low : x > high ? high : x);
}

struct to_integer {
    const char *op, *widths;
    format f;
    enum exact_rounding mode;
    int bits;
    bool is_signed, flush;
};
static const struct to_integer *now; /* the row that is being checked */
REF(as_integer, integer_of(now->f, now->mode, now->flush ? exact_flush(now->f, s[0]) : s[0],
                           now->bits, now->is_signed))

TEST(MachineConvert, FloatsBecomeIntegersOfTheirRange) {
    static const struct to_integer rows[] = {
        {"cvt.rni.s32.f32", "ww", &exact_f32, EXACT_NEAREST, 32, true, false},
        {"cvt.rzi.s32.f32", "ww", &exact_f32, EXACT_ZERO, 32, true, false},
        {"cvt.rmi.s32.f32", "ww", &exact_f32, EXACT_DOWN, 32, true, false},
        {"cvt.rpi.s32.f32", "ww", &exact_f32, EXACT_UP, 32, true, false},
        {"cvt.rpi.ftz.s32.f32", "ww", &exact_f32, EXACT_UP, 32, true, true},
        {"cvt.rzi.u32.f32", "ww", &exact_f32, EXACT_ZERO, 32, false, false},
        {"cvt.rni.u64.f32", "xw", &exact_f32, EXACT_NEAREST, 64, false, false},
        {"cvt.rzi.s64.f32", "xw", &exact_f32, EXACT_ZERO, 64, true, false},
        {"cvt.rni.s16.f32", "hw", &exact_f32, EXACT_NEAREST, 16, true, false},
        {"cvt.rzi.u16.f32", "hw", &exact_f32, EXACT_ZERO, 16, false, false},
        {"cvt.rzi.u8.f32", "ww", &exact_f32, EXACT_ZERO, 8, false, false},
        {"cvt.rni.s8.f32", "ww", &exact_f32, EXACT_NEAREST, 8, true, false},
        {"cvt.rzi.s32.f64", "wx", &exact_f64, EXACT_ZERO, 32, true, false},
        {"cvt.rpi.u32.f64", "wx", &exact_f64, EXACT_UP, 32, false, false},
        {"cvt.rmi.s64.f64", "xx", &exact_f64, EXACT_DOWN, 64, true, false},
        {"cvt.rni.u64.f64", "xx", &exact_f64, EXACT_NEAREST, 64, false, false},
        {"cvt.rni.s32.f16", "wh", &exact_f16, EXACT_NEAREST, 32, true, false},
        {"cvt.rzi.u16.f16", "hh", &exact_f16, EXACT_ZERO, 16, false, false},
    };
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
        now = &rows[n];
        check_reals(now->op, now->widths, now->f, as_integer);
    }
}

/* Rounded to an integer that stays a float; the sign of a zero stays as well. */
static uint64_t whole(format f, enum exact_rounding mode, uint64_t code) {
    uint64_t sign = code & ~exact_nan(f), magnitude = code ^ sign;
    if (exact_is_nan(f, code))
        return exact_nan(f);
    if (magnitude == exact_infinity(f, false) || exact_integer(f, EXACT_ZERO, magnitude) >> 62)
        return code; /* without a fraction */
    s128 x = exact_integer(f, mode, code);
    return sign | exact_scale(f, EXACT_ZERO, false, (uint64_t)(x < 0 ? -x : x), 0);
}
REF(whole_rni, whole(&exact_f32, EXACT_NEAREST, s[0]))
REF(whole_rzi, whole(&exact_f32, EXACT_ZERO, s[0]))
REF(whole_rmi, whole(&exact_f32, EXACT_DOWN, s[0]))
REF(whole_rpi, whole(&exact_f32, EXACT_UP, s[0]))
REF(whole_f64, whole(&exact_f64, EXACT_NEAREST, s[0]))

TEST(MachineConvert, FloatsRoundToWholeFloats) {
    check_reals("cvt.rni.f32.f32", "ww", &exact_f32, whole_rni);
    check_reals("cvt.rzi.f32.f32", "ww", &exact_f32, whole_rzi);
    check_reals("cvt.rmi.f32.f32", "ww", &exact_f32, whole_rmi);
    check_reals("cvt.rpi.f32.f32", "ww", &exact_f32, whole_rpi);
    struct machine_item items[REALS];
    uint32_t count = fill_reals(&exact_f64, items);
    for (uint32_t n = 0; n < count; n++) /* which NaN it gives in float64 is open */
        if (exact_is_nan(&exact_f64, items[n].source[0]))
            items[n].source[0] = 0;
    check("cvt.rni.f64.f64", "xx", items, count, whole_f64);
}

/* ---- integers to floats and integers --------------------------------------------------------- */

static const uint64_t integers[] = {0,
                                    1,
                                    2,
                                    100,
                                    127,
                                    128,
                                    129,
                                    255,
                                    256,
                                    257,
                                    2047,
                                    2049,
                                    2051,
                                    32767,
                                    32768,
                                    65535,
                                    65536,
                                    0xffffff,
                                    0x1000001,
                                    0x1000003,
                                    0x7fffffbf,
                                    0x7fffffff,
                                    0x80000000,
                                    0x80000001,
                                    0xffffff7f,
                                    0xffffff80,
                                    0xffffffff,
                                    0x100000000,
                                    0x1fffffffffffff,
                                    0x20000000000001,
                                    0x20000000000003,
                                    0x7fffffffffffffff,
                                    0x8000000000000000,
                                    0xfffffffffffff7ff,
                                    0xffffffffffffff00,
                                    0xffffffffffffff80,
                                    0xffffffffffff7fff,
                                    0xffffffffffffffff};
enum { INTEGERS = sizeof integers / sizeof *integers };

static void check_integers(const char *op, const char *widths, reference expect) {
    struct machine_item items[INTEGERS * INTEGERS];
    uint32_t count = widths[2] ? INTEGERS * INTEGERS : INTEGERS;
    for (uint32_t n = 0; n < count; n++)
        items[n] = (struct machine_item){
            .source = {integers[n % INTEGERS], integers[n / INTEGERS], integers[n * 5 % INTEGERS]}};
    check(op, widths, items, count, expect);
}

static uint64_t real_of(format f, enum exact_rounding mode, int64_t x) {
    return exact_scale(f, mode, x < 0, x < 0 ? 0 - (uint64_t)x : (uint64_t)x, 0);
}
REF(s32_f32, real_of(&exact_f32, EXACT_NEAREST, (int32_t)s[0]))
REF(s32_f32_rz, real_of(&exact_f32, EXACT_ZERO, (int32_t)s[0]))
REF(u32_f32, real_of(&exact_f32, EXACT_NEAREST, (int64_t)(uint32_t)s[0]))
REF(u32_f32_rp, real_of(&exact_f32, EXACT_UP, (int64_t)(uint32_t)s[0]))
REF(s64_f32_rm, real_of(&exact_f32, EXACT_DOWN, (int64_t)s[0]))
REF(u64_f32, exact_scale(&exact_f32, EXACT_NEAREST, false, s[0], 0))
REF(s64_f64, real_of(&exact_f64, EXACT_NEAREST, (int64_t)s[0]))
REF(u64_f64_rz, exact_scale(&exact_f64, EXACT_ZERO, false, s[0], 0))
REF(s32_f64, real_of(&exact_f64, EXACT_NEAREST, (int32_t)s[0]))
REF(s32_f16, real_of(&exact_f16, EXACT_NEAREST, (int32_t)s[0]))
REF(u16_f16, real_of(&exact_f16, EXACT_NEAREST, (uint16_t)s[0]))
REF(s8_f32, real_of(&exact_f32, EXACT_NEAREST, (int8_t)s[0]))
REF(u32_bf16, real_of(&exact_bf16, EXACT_NEAREST, (int64_t)(uint32_t)s[0]))

TEST(MachineConvert, IntegersBecomeFloatsInEveryMode) {
    check_integers("cvt.rn.f32.s32", "ww", s32_f32);
    check_integers("cvt.rz.f32.s32", "ww", s32_f32_rz);
    check_integers("cvt.rn.f32.u32", "ww", u32_f32);
    check_integers("cvt.rp.f32.u32", "ww", u32_f32_rp);
    check_integers("cvt.rm.f32.s64", "wx", s64_f32_rm);
    check_integers("cvt.rn.f32.u64", "wx", u64_f32);
    check_integers("cvt.rn.f64.s64", "xx", s64_f64);
    check_integers("cvt.rz.f64.u64", "xx", u64_f64_rz);
    check_integers("cvt.rn.f64.s32", "xw", s32_f64);
    check_integers("cvt.rn.f16.s32", "hw", s32_f16);
    check_integers("cvt.rn.f16.u16", "hh", u16_f16);
    check_integers("cvt.rn.f32.s8", "wh", s8_f32);
    check_integers("cvt.rn.bf16.u32", "hw", u32_bf16);
}

static int64_t clamp(int64_t x, int64_t low, int64_t high) {
    return x < low ? low : x > high ? high : x;
}
REF(u32_to_u64, (uint32_t)s[0])
REF(s32_to_s64, (int64_t)(int32_t)s[0])
REF(low_bits, s[0])
REF(s8_to_s32, (int32_t)(int8_t)s[0])
REF(u8_to_u32, (uint8_t)s[0])
REF(s16_to_s64, (int64_t)(int16_t)s[0])
REF(s8_sat, clamp((int32_t)s[0], -128, 127))
REF(u8_sat, clamp((int32_t)s[0], 0, 255))
REF(u16_sat, clamp((int64_t)s[0], 0, 65535))
REF(s32_sat, (uint32_t)s[0] > INT32_MAX ? INT32_MAX : (uint32_t)s[0])
REF(pack_u8, (uint64_t)clamp((int32_t)s[0], 0, 255) << 8 | (uint64_t)clamp((int32_t)s[1], 0, 255) |
                 s[2] << 16)
REF(pack_s16, ((uint64_t)clamp((int32_t)s[0], -32768, 32767) & 0xffff) << 16 |
                  ((uint64_t)clamp((int32_t)s[1], -32768, 32767) & 0xffff))

TEST(MachineConvert, IntegersExtendCutAndSaturate) {
    check_integers("cvt.u64.u32", "xw", u32_to_u64);
    check_integers("cvt.s64.s32", "xw", s32_to_s64);
    check_integers("cvt.u32.u64", "wx", low_bits);
    check_integers("cvt.u16.u32", "hw", low_bits);
    check_integers("cvt.s32.s8", "wh", s8_to_s32);
    check_integers("cvt.u32.u8", "ww", u8_to_u32);
    check_integers("cvt.s64.s16", "xh", s16_to_s64);
    check_integers("cvt.sat.s8.s32", "hw", s8_sat);
    check_integers("cvt.sat.u8.s32", "ww", u8_sat);
    check_integers("cvt.sat.u16.s64", "hx", u16_sat);
    check_integers("cvt.sat.s32.u32", "ww", s32_sat);
    check_integers("cvt.pack.sat.u8.s32.b32", "wwww", pack_u8);
    check_integers("cvt.pack.sat.s16.s32", "www", pack_s16);
}
