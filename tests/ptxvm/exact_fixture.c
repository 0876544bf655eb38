#include "tests/ptxvm/exact_fixture.h"

typedef unsigned __int128 u128;

const struct exact_format exact_f32 = {23, 8}, exact_f64 = {52, 11}, exact_f16 = {10, 5};
const struct exact_format exact_bf16 = {7, 8}, exact_e5m2 = {2, 5};

/* bits * 2^exponent */
struct number {
    bool negative, infinite, nan;
    u128 bits;
    int exponent;
};

static int length(u128 bits) {
    int n = 0;
    for (; n < 128 && bits >> n; n++)
        ;
    return n;
}

/* ---- codes ----------------------------------------------------------------------------------- */

static int bias(const struct exact_format *f) {
    return (1 << (f->exponent - 1)) - 1;
}
static uint64_t sign_bit(const struct exact_format *f) {
    return (uint64_t)1 << (f->mantissa + f->exponent);
}
uint64_t exact_infinity(const struct exact_format *f, bool negative) {
    uint64_t all = ((uint64_t)1 << f->exponent) - 1;
    return all << f->mantissa | (negative ? sign_bit(f) : 0);
}
uint64_t exact_nan(const struct exact_format *f) {
    return sign_bit(f) - 1;
}
bool exact_is_nan(const struct exact_format *f, uint64_t code) {
    return (code & (sign_bit(f) - 1)) > exact_infinity(f, false);
}
bool exact_is_subnormal(const struct exact_format *f, uint64_t code) {
    uint64_t magnitude = code & (sign_bit(f) - 1);
    return magnitude && magnitude >> f->mantissa == 0;
}
uint64_t exact_flush(const struct exact_format *f, uint64_t code) {
    return exact_is_subnormal(f, code) ? code & sign_bit(f) : code;
}
uint64_t exact_one(const struct exact_format *f) {
    return (uint64_t)bias(f) << f->mantissa;
}
uint64_t exact_saturate(const struct exact_format *f, uint64_t code) {
    if (exact_is_nan(f, code) || code & sign_bit(f))
        return 0;
    return code > exact_one(f) ? exact_one(f) : code;
}
uint64_t exact_negate(const struct exact_format *f, uint64_t code) {
    return code ^ sign_bit(f);
}

static struct number decode(const struct exact_format *f, uint64_t code) {
    uint64_t fraction = code & (((uint64_t)1 << f->mantissa) - 1);
    int e = (int)(code >> f->mantissa & (((uint64_t)1 << f->exponent) - 1));
    struct number x = {.negative = code & sign_bit(f), .nan = exact_is_nan(f, code)};
    x.infinite = !x.nan && (code & (sign_bit(f) - 1)) == exact_infinity(f, false);
    x.bits = e ? fraction | (uint64_t)1 << f->mantissa : fraction;
    x.exponent = (e ? e : 1) - bias(f) - f->mantissa;
    return x;
}

/* bits / 2^shift as an integer. */
static u128 shifted(u128 bits, int shift, bool negative, enum exact_rounding mode) {
    if (shift <= 0)
        return bits << -shift;
    bool far = shift > 127;
    u128 whole = far ? 0 : bits >> shift, rest = far ? bits : bits - (whole << shift);
    bool above = !far && rest > (u128)1 << (shift - 1);
    bool middle = !far && rest == (u128)1 << (shift - 1);
    bool up = mode == EXACT_NEAREST ? above || (middle && (whole & 1))
              : mode == EXACT_ZERO  ? false
                                    : rest && negative == (mode == EXACT_DOWN);
    return whole + up;
}

static uint64_t overflow(const struct exact_format *f, bool negative, enum exact_rounding mode) {
    bool to_infinity = mode == EXACT_NEAREST || mode == (negative ? EXACT_DOWN : EXACT_UP);
    return exact_infinity(f, negative) - !to_infinity;
}

static uint64_t encode(const struct exact_format *f, enum exact_rounding mode, struct number x) {
    uint64_t sign = x.negative ? sign_bit(f) : 0;
    if (x.nan)
        return exact_nan(f);
    if (x.infinite)
        return exact_infinity(f, x.negative);
    if (!x.bits)
        return sign;
    /* The exponent of the last bit of the result. */
    int top = x.exponent + length(x.bits) - 1, least = 1 - bias(f);
    int last = (top > least ? top : least) - f->mantissa;
    u128 q = shifted(x.bits, last - x.exponent, x.negative, mode);
    if (q >> (f->mantissa + 1)) {
        q >>= 1;
        last++;
    }
    if (!(q >> f->mantissa))
        return sign | (uint64_t)q;
    int e = last + f->mantissa + bias(f);
    if (e >= (1 << f->exponent) - 1)
        return overflow(f, x.negative, mode);
    return sign | (uint64_t)e << f->mantissa | (uint64_t)(q - ((u128)1 << f->mantissa));
}

/* ---- arithmetic ------------------------------------------------------------------------------ */

static struct number product(struct number a, struct number b) {
    struct number r = {.negative = a.negative != b.negative,
                       .nan = a.nan || b.nan,
                       .infinite = a.infinite || b.infinite,
                       .bits = a.bits * b.bits,
                       .exponent = a.exponent + b.exponent};
    r.nan |= (a.infinite && !b.infinite && !b.bits) || (b.infinite && !a.infinite && !a.bits);
    return r;
}

/* Of finite numbers that are not zero. Where one is too small to meet the other in 128 bits, it
 * stands as one unit of the last of them, far below what is kept. */
static struct number finite_sum(struct number a, struct number b) {
    if (a.exponent < b.exponent) {
        struct number c = a;
        a = b;
        b = c;
    }
    int room = 125 - length(a.bits), gap = a.exponent - b.exponent;
    if (gap > room) {
        a.bits <<= room;
        a.exponent -= room;
        b.bits = 1;
    } else {
        a.bits <<= gap;
        a.exponent = b.exponent;
    }
    if (a.negative == b.negative)
        a.bits += b.bits;
    else if (a.bits >= b.bits)
        a.bits -= b.bits;
    else {
        a.bits = b.bits - a.bits;
        a.negative = b.negative;
    }
    return a;
}

static struct number sum(struct number a, struct number b, enum exact_rounding mode) {
    struct number r = {.nan = a.nan || b.nan ||
                              (a.infinite && b.infinite && a.negative != b.negative)};
    if (r.nan)
        return r;
    if (a.infinite || b.infinite)
        return a.infinite ? a : b;
    if (a.bits && b.bits)
        r = finite_sum(a, b);
    else
        r = a.bits ? a : b;
    if (!r.bits) /* a zero of the sign of both, or else of the rounding */
        r.negative =
            !a.bits && !b.bits && a.negative == b.negative ? a.negative : mode == EXACT_DOWN;
    return r;
}

uint64_t exact_fma(const struct exact_format *f, enum exact_rounding mode, uint64_t a, uint64_t b,
                   uint64_t c) {
    return encode(f, mode, sum(product(decode(f, a), decode(f, b)), decode(f, c), mode));
}
uint64_t exact_add(const struct exact_format *f, enum exact_rounding mode, uint64_t a, uint64_t b) {
    return encode(f, mode, sum(decode(f, a), decode(f, b), mode));
}
uint64_t exact_mul(const struct exact_format *f, enum exact_rounding mode, uint64_t a, uint64_t b) {
    return encode(f, mode, product(decode(f, a), decode(f, b)));
}

/* Makes bits 124 long, so that a quotient or a root has more than enough of them. */
static void lengthen(struct number *x, bool even) {
    int shift = 124 - length(x->bits);
    shift -= even && ((x->exponent - shift) & 1);
    x->bits <<= shift;
    x->exponent -= shift;
}

uint64_t exact_div(const struct exact_format *f, enum exact_rounding mode, uint64_t code_a,
                   uint64_t code_b) {
    struct number a = decode(f, code_a), b = decode(f, code_b);
    bool a_zero = !a.infinite && !a.bits, b_zero = !b.infinite && !b.bits;
    struct number r = {.negative = a.negative != b.negative,
                       .nan = a.nan || b.nan || (a.infinite && b.infinite) || (a_zero && b_zero),
                       .infinite = a.infinite || b_zero};
    if (r.nan || r.infinite || a_zero || b.infinite)
        return encode(f, mode, r);
    lengthen(&a, false);
    r.bits = a.bits / b.bits << 1 | (a.bits % b.bits != 0);
    r.exponent = a.exponent - b.exponent - 1;
    return encode(f, mode, r);
}

uint64_t exact_sqrt(const struct exact_format *f, enum exact_rounding mode, uint64_t code) {
    struct number a = decode(f, code);
    if (a.nan || (a.negative && (a.infinite || a.bits)))
        return exact_nan(f);
    if (a.infinite || !a.bits)
        return encode(f, mode, a);
    lengthen(&a, true);
    u128 root = 0;
    for (int n = 63; n >= 0; n--) {
        u128 with = root | (u128)1 << n;
        if (with * with <= a.bits)
            root = with;
    }
    struct number r = {.bits = root << 1 | (root * root != a.bits), .exponent = a.exponent / 2 - 1};
    return encode(f, mode, r);
}

/* ---- conversions ----------------------------------------------------------------------------- */

uint64_t exact_convert(const struct exact_format *to, enum exact_rounding mode,
                       const struct exact_format *from, uint64_t code) {
    return encode(to, mode, decode(from, code));
}

uint64_t exact_scale(const struct exact_format *f, enum exact_rounding mode, bool negative,
                     uint64_t magnitude, int exponent) {
    return encode(f, mode,
                  (struct number){.negative = negative, .bits = magnitude, .exponent = exponent});
}

__int128 exact_integer(const struct exact_format *f, enum exact_rounding mode, uint64_t code) {
    struct number x = decode(f, code);
    const __int128 beyond = (__int128)1 << 100;
    if (x.infinite || x.exponent + length(x.bits) > 100)
        return x.negative ? -beyond : beyond;
    __int128 whole = (__int128)shifted(x.bits, -x.exponent, x.negative, mode);
    return x.negative ? -whole : whole;
}
