/* Floating-point instructions of the PTX machine: sums, products, quotients and roots in every
 * rounding mode against arithmetic in integers (exact_fixture.h), bit for bit; minima and maxima;
 * and the approximations within the bounds of the PTX manual.
 *
 * The values are edges of the format (zeros, ones, ties, subnormal and largest numbers, infinities,
 * NaNs), all pairs of them with a third that walks through the list, and random numbers, of which
 * half are close to each other so that sums cancel.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/ptxvm/exact_fixture.h"
#include "tests/ptxvm/machine_fixture.h"

typedef const struct exact_format *format;

enum { EDGES = 40, RANDOM = 1800, ITEMS = EDGES * EDGES + RANDOM };

static uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

/* ---- values ---------------------------------------------------------------------------------- */

static void fill_edges(format f, uint64_t edges[EDGES]) {
    uint64_t one = exact_one(f), infinity = exact_infinity(f, false);
    uint64_t least = (uint64_t)1 << f->mantissa; /* normal number */
    const uint64_t positive[EDGES / 2] = {
        0,
        1,
        2,
        least - 1,
        least,
        least + 1,
        2 * least + 3,
        one - 1,
        one,
        one + 1,
        one + least / 2, /* 1.5 */
        one + least,     /* 2 */
        one + least + least / 2 + 1,
        one - 12 * least / 8, /* about 1 / 3 */
        exact_scale(f, EXACT_NEAREST, false, 1, f->mantissa) + 1,
        exact_scale(f, EXACT_NEAREST, false, 3, -f->mantissa - 1),
        infinity - 1,
        infinity - least,
        infinity,
        exact_nan(f),
    };
    for (int n = 0; n < EDGES / 2; n++) {
        edges[2 * n] = positive[n];
        edges[2 * n + 1] = exact_negate(f, positive[n]);
    }
}

static void fill_items(format f, struct machine_item *items) {
    uint64_t edges[EDGES], state = 88172645463325252u, mask = exact_negate(f, exact_nan(f));
    fill_edges(f, edges);
    for (int n = 0; n < EDGES * EDGES; n++)
        items[n] = (struct machine_item){
            .source = {edges[n / EDGES], edges[n % EDGES], edges[(n * 7 + n / 3) % EDGES]}};
    for (int n = EDGES * EDGES; n < ITEMS; n++) {
        uint64_t a = next_random(&state) & mask, near = (uint64_t)2 << f->mantissa;
        items[n].source[0] = a;
        for (int k = 1; k < 3; k++)
            items[n].source[k] = n % 2 ? next_random(&state) & mask
                                       : (a + next_random(&state) % near - near / 2) & mask;
        if (n % 4 == 0) /* so that the product is close to the third */
            items[n].source[1] = exact_one(f) + (items[n].source[1] & 255);
    }
}

/* ---- operations of IEEE 754 ------------------------------------------------------------------ */

enum operation { ADD, SUB, MUL, FMA, DIV, RCP, SQRT, OPERATIONS };
static const char *const operation_names[] = {"add", "sub", "mul", "fma", "div", "rcp", "sqrt"};
static const int operation_sources[] = {2, 2, 2, 3, 2, 1, 1};

struct variant {
    format f;
    const char *type; /* the number of two in a register ends in x2 */
    enum operation op;
    enum exact_rounding mode;
    bool flush, saturate, relu;
};

static uint64_t operate(const struct variant *v, const uint64_t source[3]) {
    uint64_t s[3], r = 0;
    for (int k = 0; k < 3; k++)
        s[k] = v->flush ? exact_flush(v->f, source[k]) : source[k];
    switch (v->op) {
    case ADD:
        r = exact_add(v->f, v->mode, s[0], s[1]);
        break;
    case SUB:
        r = exact_add(v->f, v->mode, s[0], exact_negate(v->f, s[1]));
        break;
    case MUL:
        r = exact_mul(v->f, v->mode, s[0], s[1]);
        break;
    case FMA:
        r = exact_fma(v->f, v->mode, s[0], s[1], s[2]);
        break;
    case DIV:
        r = exact_div(v->f, v->mode, s[0], s[1]);
        break;
    case RCP:
        r = exact_div(v->f, v->mode, exact_one(v->f), s[0]);
        break;
    default:
        r = exact_sqrt(v->f, v->mode, s[0]);
    }
    r = v->flush ? exact_flush(v->f, r) : r;
    if (v->relu && !exact_is_nan(v->f, r) && r > exact_nan(v->f))
        return 0; /* of negative numbers and -0 */
    return v->saturate ? exact_saturate(v->f, r) : r;
}

/* The same for both halves of a register. */
static uint64_t operate_pair(const struct variant *v, const uint64_t source[3]) {
    uint64_t low[3], high[3];
    for (int k = 0; k < 3; k++) {
        low[k] = source[k] & 0xffff;
        high[k] = source[k] >> 16 & 0xffff;
    }
    return operate(v, low) | operate(v, high) << 16;
}

/* Each item's codes in the low halves, those of the next in the high ones. */
static void make_pairs(struct machine_item *items) {
    for (int n = 0; n + 1 < ITEMS; n++)
        for (int k = 0; k < 3; k++)
            items[n].source[k] |= items[n + 1].source[k] << 16;
}

/* Of some instructions the manual does not say which NaN they give. */
static bool same(format f, uint64_t a, uint64_t b, bool any_nan) {
    return a == b || (any_nan && exact_is_nan(f, a) && exact_is_nan(f, b));
}

static void check_variant(const struct variant *v) {
    static const char *const rounding[] = {".rn", ".rz", ".rm", ".rp"};
    static struct machine_item items[ITEMS];
    bool pairs = strstr(v->type, "x2");
    int bits = (1 + v->f->exponent + v->f->mantissa) << pairs;
    char op[64], widths[5] = "";
    memset(widths, bits == 64 ? 'x' : bits == 32 ? 'w' : 'h', 1 + (size_t)operation_sources[v->op]);
    snprintf(op, sizeof op, "%s%s%s%s.%s", operation_names[v->op], rounding[v->mode],
             v->flush ? ".ftz" : "",
             v->saturate ? ".sat"
             : v->relu   ? ".relu"
                         : "",
             v->type);
    fill_items(v->f, items);
    if (pairs)
        make_pairs(items);
    if (!machine_execute(&(struct machine_op){op, widths, NULL}, items, ITEMS))
        return;
    for (int n = 0; n < ITEMS; n++) {
        const uint64_t *s = items[n].source;
        uint64_t want = pairs ? operate_pair(v, s) : operate(v, s);
        if (!same(v->f, items[n].result, want, v->f == &exact_f64)) {
            FAIL("%s of 0x%llx, 0x%llx, 0x%llx: 0x%llx, expected 0x%llx", op,
                 (unsigned long long)s[0], (unsigned long long)s[1], (unsigned long long)s[2],
                 (unsigned long long)items[n].result, (unsigned long long)want);
            return;
        }
    }
}

TEST(MachineFloat, Float32RoundsOnceInEveryMode) {
    for (enum operation op = ADD; op < OPERATIONS; op++)
        for (enum exact_rounding mode = EXACT_NEAREST; mode <= EXACT_UP; mode++)
            for (int flush = 0; flush < 2; flush++)
                for (int saturate = 0; saturate < (op < DIV ? 2 : 1); saturate++)
                    check_variant(
                        &(struct variant){&exact_f32, "f32", op, mode, flush, saturate, false});
}

TEST(MachineFloat, Float64RoundsOnceInEveryMode) {
    for (enum operation op = ADD; op < OPERATIONS; op++)
        for (enum exact_rounding mode = EXACT_NEAREST; op != FMA && mode <= EXACT_UP; mode++)
            check_variant(&(struct variant){&exact_f64, "f64", op, mode, false, false, false});
}

/* (2^26 + 1/2)^2 - 2^52 - 2^26 = 1/4 needs the whole product; 2^-1074 is only a direction. */
TEST(MachineFloat, Float64FmaKeepsTheWholeProduct) {
    static const struct {
        const char *op;
        double a, b, c, result;
    } rows[] = {
        {"fma.rn.f64", 0x1.0000002p26, 0x1.0000002p26, -0x1.0000004p52, 0x1p-2},
        {"fma.rn.f64", 3, 5, 7, 22},
        {"fma.rn.f64", 1, 1, 0x1p-1074, 1},
        {"fma.rp.f64", 1, 1, 0x1p-1074, 1 + 0x1p-52},
        {"fma.rm.f64", -1, 1, -0x1p-1074, -1 - 0x1p-52},
        {"fma.rz.f64", 1, 1, -0x1p-1074, 1 - 0x1p-53},
        {"fma.rm.f64", 3, 2, -6, -0.0},
    };
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
        struct machine_item item = {0};
        double got;
        memcpy(&item.source[0], &rows[n].a, 8);
        memcpy(&item.source[1], &rows[n].b, 8);
        memcpy(&item.source[2], &rows[n].c, 8);
        if (!machine_execute(&(struct machine_op){rows[n].op, "xxxx", NULL}, &item, 1))
            return;
        memcpy(&got, &item.result, 8);
        if (memcmp(&got, &rows[n].result, 8))
            FAIL("row %zu: %s gives %a, expected %a", n, rows[n].op, got, rows[n].result);
    }
}

TEST(MachineFloat, HalvesRoundOnce) {
    static const char *const types[] = {"f16", "f16x2", "bf16", "bf16x2"};
    for (int t = 0; t < 4; t++) {
        format f = t < 2 ? &exact_f16 : &exact_bf16;
        for (enum operation op = ADD; op <= FMA; op++)
            for (int k = 0; k < (t < 2 ? 4 : 1); k++)
                check_variant(
                    &(struct variant){f, types[t], op, EXACT_NEAREST, k & 1, k & 2, false});
        check_variant(&(struct variant){f, types[t], FMA, EXACT_NEAREST, false, false, true});
    }
}

/* ---- minima, maxima and signs ---------------------------------------------------------------- */

/* Ordered as integers, with -0 below +0. */
static int64_t rank(format f, uint64_t code) {
    uint64_t magnitude = code & exact_nan(f);
    return code == magnitude ? (int64_t)magnitude : -1 - (int64_t)magnitude;
}

static uint64_t pick(format f, uint64_t a, uint64_t b, bool max, bool keep_nan) {
    bool nan_a = exact_is_nan(f, a), nan_b = exact_is_nan(f, b);
    if ((nan_a && nan_b) || (keep_nan && (nan_a || nan_b)))
        return exact_nan(f);
    if (nan_a || nan_b)
        return nan_a ? b : a;
    return (rank(f, a) < rank(f, b)) != max ? a : b;
}

static uint64_t pick_magnitude(format f, uint64_t a, uint64_t b, bool max, bool keep_nan) {
    uint64_t m = exact_nan(f), sign = (a ^ b) & ~m;
    return pick(f, a & m, b & m, max, keep_nan) | sign;
}

static void check_bits(format f, const char *op, const char *widths,
                       uint64_t (*expect)(format, const uint64_t *)) {
    static struct machine_item items[ITEMS];
    fill_items(f, items);
    if (!machine_execute(&(struct machine_op){op, widths, NULL}, items, ITEMS))
        return;
    for (int n = 0; n < ITEMS && !shim_failed(); n++) {
        const uint64_t *s = items[n].source;
        uint64_t want = expect(f, s);
        if (!same(f, items[n].result, want, f == &exact_f64 || strstr(op, "xorsign")))
            FAIL("%s of 0x%llx, 0x%llx: 0x%llx, expected 0x%llx", op, (unsigned long long)s[0],
                 (unsigned long long)s[1], (unsigned long long)items[n].result,
                 (unsigned long long)want);
    }
}

#define BITS(name, expr)                                                                           \
    static uint64_t name(format f, const uint64_t *s) {                                            \
        (void)f;                                                                                   \
        return expr;                                                                               \
    }
BITS(least, pick(f, s[0], s[1], false, false))
BITS(most, pick(f, s[0], s[1], true, false))
BITS(least_nan, pick(f, s[0], s[1], false, true))
BITS(most_nan, pick(f, s[0], s[1], true, true))
BITS(least_xorsign, pick_magnitude(f, s[0], s[1], false, false))
BITS(most_xorsign, pick_magnitude(f, s[0], s[1], true, false))
BITS(least_flushed, pick(f, exact_flush(f, s[0]), exact_flush(f, s[1]), false, false))
BITS(magnitude, s[0] & exact_nan(f))
BITS(opposite, exact_negate(f, s[0]))
BITS(opposite_flushed, exact_negate(f, exact_flush(f, s[0])))
BITS(copied_sign, (s[0] & ~exact_nan(f)) | (s[1] & exact_nan(f)))

TEST(MachineFloat, MinimaAndMaximaOrderZerosAndSkipNans) {
    check_bits(&exact_f32, "min.f32", "www", least);
    check_bits(&exact_f32, "max.f32", "www", most);
    check_bits(&exact_f32, "min.NaN.f32", "www", least_nan);
    check_bits(&exact_f32, "max.NaN.f32", "www", most_nan);
    check_bits(&exact_f32, "min.ftz.f32", "www", least_flushed);
    check_bits(&exact_f64, "min.f64", "xxx", least);
    check_bits(&exact_f64, "max.f64", "xxx", most);
    check_bits(&exact_f32, "min.xorsign.abs.f32", "www", least_xorsign);
    check_bits(&exact_f32, "max.xorsign.abs.f32", "www", most_xorsign);
    check_bits(&exact_f16, "min.f16", "hhh", least);
    check_bits(&exact_f16, "max.NaN.f16", "hhh", most_nan);
    check_bits(&exact_f16, "min.ftz.f16", "hhh", least_flushed);
    check_bits(&exact_bf16, "max.bf16", "hhh", most);
    check_bits(&exact_bf16, "min.NaN.bf16", "hhh", least_nan);
    check_bits(&exact_bf16, "max.xorsign.abs.bf16", "hhh", most_xorsign);
}

TEST(MachineFloat, SignsAreBits) {
    check_bits(&exact_f32, "abs.f32", "ww", magnitude);
    check_bits(&exact_f64, "abs.f64", "xx", magnitude);
    check_bits(&exact_f32, "neg.f32", "ww", opposite);
    check_bits(&exact_f32, "neg.ftz.f32", "ww", opposite_flushed);
    check_bits(&exact_f64, "neg.f64", "xx", opposite);
    check_bits(&exact_f32, "copysign.f32", "www", copied_sign);
    check_bits(&exact_f64, "copysign.f64", "xxx", copied_sign);
}

/* ---- approximations -------------------------------------------------------------------------- */

static float float_of(uint64_t code) {
    uint32_t u = (uint32_t)code;
    float v;
    memcpy(&v, &u, sizeof v);
    return v;
}
static uint64_t code_of(float v) {
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}

static double reciprocal(double x) {
    return 1 / x;
}
static double reciprocal_root(double x) {
    return 1 / sqrt(x);
}

/* The manual's largest errors for arguments in [low, high]: relative, or absolute. */
struct approximation {
    const char *op;
    double (*function)(double);
    double low, high, relative, absolute;
};
static const struct approximation approximations[] = {
    {"ex2.approx.f32", exp2, -126, 127, 0x1p-22, 0},
    {"ex2.approx.f32", exp2, -149, -126, 0x1p-22, 0x1p-149},
    {"ex2.approx.ftz.f32", exp2, -126, 127, 0x1p-22, 0},
    {"lg2.approx.f32", log2, 0.5, 2, 0, 0x1p-22},
    {"lg2.approx.f32", log2, 2, 1e38, 0x1p-22, 0},
    {"lg2.approx.ftz.f32", log2, 1e-37, 0.5, 0x1p-22, 0},
    {"rcp.approx.f32", reciprocal, 1e-37, 1e37, 0x1p-23, 0},
    {"rcp.approx.ftz.f32", reciprocal, -1e37, -1e-37, 0x1p-23, 0},
    {"sqrt.approx.f32", sqrt, 0, 1e38, 0x1p-23, 0},
    {"rsqrt.approx.f32", reciprocal_root, 1e-38, 1e38, 0x1.2p-23, 0},
    {"sin.approx.f32", sin, -3.14159, 3.14159, 0, 0x1p-20},
    {"cos.approx.f32", cos, -3.14159, 3.14159, 0, 0x1p-20},
    {"tanh.approx.f32", tanh, -20, 20, 0x1p-11, 0},
};

static void check_approximation(const struct approximation *a) {
    enum { STEPS = 5000 };
    static struct machine_item items[STEPS];
    bool geometric = a->low * a->high > 0 && a->high / a->low > 100;
    for (int n = 0; n < STEPS; n++) {
        double part = (n + 0.37) / STEPS;
        double x =
            geometric ? a->low * pow(a->high / a->low, part) : a->low + (a->high - a->low) * part;
        items[n].source[0] = code_of((float)x);
    }
    if (!machine_execute(&(struct machine_op){a->op, "ww", NULL}, items, STEPS))
        return;
    for (int n = 0; n < STEPS; n++) {
        double x = float_of(items[n].source[0]), want = a->function(x);
        double got = float_of(items[n].result);
        if (!(fabs(got - want) <= a->relative * fabs(want) + a->absolute)) {
            FAIL("%s of %a: %a, expected %a", a->op, x, got, want);
            return;
        }
    }
}

TEST(MachineFloat, ApproximationsKeepTheManualsBounds) {
    for (size_t n = 0; n < sizeof approximations / sizeof *approximations; n++)
        check_approximation(&approximations[n]);
}

TEST(MachineFloat, ApproximateQuotientsAreWithinTwoUlp) {
    static struct machine_item items[ITEMS];
    static const char *const ops[] = {"div.approx.f32", "div.full.f32"};
    for (int k = 0; k < 2; k++) {
        uint64_t state = 123456789;
        for (int n = 0; n < ITEMS; n++) {
            items[n].source[0] =
                code_of(ldexpf(1 + (float)(next_random(&state) % 997) / 997, n % 60));
            items[n].source[1] =
                code_of(ldexpf(1 + (float)(next_random(&state) % 991) / 991, n % 7));
        }
        if (!machine_execute(&(struct machine_op){ops[k], "www", NULL}, items, ITEMS))
            return;
        for (int n = 0; n < ITEMS && !shim_failed(); n++) {
            uint64_t want =
                exact_div(&exact_f32, EXACT_NEAREST, items[n].source[0], items[n].source[1]);
            int64_t ulp = (int64_t)(items[n].result - want);
            EXPECT_TRUE(ulp >= -2 && ulp <= 2);
        }
    }
}

/* What the manual's tables say of arguments that are not ordinary numbers. */
TEST(MachineFloat, ApproximationsOfUnusualArguments) {
    static const struct {
        const char *op;
        float argument, result;
    } rows[] = {
        {"ex2.approx.f32", -INFINITY, 0},
        {"ex2.approx.f32", -0.0f, 1},
        {"ex2.approx.f32", 0x1p-140f, 1},
        {"ex2.approx.f32", INFINITY, INFINITY},
        {"ex2.approx.f32", 128, INFINITY},
        {"ex2.approx.f32", -127, 0x1p-127f},
        {"ex2.approx.ftz.f32", -127, 0},
        {"lg2.approx.f32", 0, -INFINITY},
        {"lg2.approx.f32", -0.0f, -INFINITY},
        {"lg2.approx.f32", INFINITY, INFINITY},
        {"lg2.approx.f32", -1, NAN},
        {"lg2.approx.f32", 0x1p-130f, -130},
        {"lg2.approx.ftz.f32", 0x1p-130f, -INFINITY},
        {"rcp.approx.f32", -INFINITY, -0.0f},
        {"rcp.approx.f32", -0.0f, -INFINITY},
        {"rcp.approx.f32", 0, INFINITY},
        {"rcp.approx.ftz.f32", 0x1p-127f, INFINITY},
        {"sqrt.approx.f32", -0.0f, -0.0f},
        {"sqrt.approx.f32", -1, NAN},
        {"sqrt.approx.ftz.f32", 0x1p-130f, 0},
        {"rsqrt.approx.f32", -0.0f, -INFINITY},
        {"rsqrt.approx.f32", 0, INFINITY},
        {"rsqrt.approx.f32", INFINITY, 0},
        {"rsqrt.approx.f32", -2, NAN},
        {"sin.approx.f32", -0.0f, -0.0f},
        {"sin.approx.f32", INFINITY, NAN},
        {"cos.approx.f32", 0, 1},
        {"cos.approx.f32", -INFINITY, NAN},
        {"tanh.approx.f32", -INFINITY, -1},
        {"tanh.approx.f32", -0.0f, -0.0f},
        {"tanh.approx.f32", NAN, NAN},
        {"ex2.approx.f32", NAN, NAN},
        {"rcp.approx.f32", NAN, NAN},
    };
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
        struct machine_item item = {.source = {code_of(rows[n].argument)}};
        uint64_t want = isnan(rows[n].result) ? exact_nan(&exact_f32) : code_of(rows[n].result);
        if (!machine_execute(&(struct machine_op){rows[n].op, "ww", NULL}, &item, 1))
            return;
        if (item.result != want)
            FAIL("%s of %a: 0x%llx, expected 0x%llx", rows[n].op, rows[n].argument,
                 (unsigned long long)item.result, (unsigned long long)want);
    }
}
