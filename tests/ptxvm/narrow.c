/* Formats as fields of bits: see narrow.h. */
#include "tests/ptxvm/narrow.h"

#include <math.h>

const struct narrow_format narrow_f32 = {23,          0,           -126,       0x7f7fffffu,
                                         0x7f800000u, 0x7fffffffu, 0x80000000u},
                           narrow_tf32 = {10,          13,          -126,       0x7f7fe000u,
                                          0x7f800000u, 0x7fffffffu, 0x80000000u},
                           narrow_f16 = {10, 0, -14, 0x7bff, 0x7c00, 0x7fff, 0x8000},
                           narrow_bf16 = {7, 0, -126, 0x7f7f, 0x7f80, 0x7fff, 0x8000},
                           narrow_e4m3 = {3, 0, -6, 0x7e, 0x7f, 0x7f, 0x80},
                           narrow_e5m2 = {2, 0, -14, 0x7b, 0x7c, 0x7f, 0x80};

double narrow_round(double v, enum narrow_round round) {
    switch (round) {
    case NARROW_ZERO:
        return trunc(v);
    case NARROW_DOWN:
        return floor(v);
    case NARROW_UP:
        return ceil(v);
    case NARROW_AWAY:
        return copysign(floor(fabs(v)) + (fabs(v) - floor(fabs(v)) >= 0.5), v);
    default:
        return rint(v);
    }
}

/* Whether numbers too large for a format become infinite. */
static bool overflows(enum narrow_round round, bool negative) {
    return round == NARROW_NEAREST || round == NARROW_AWAY ||
           round == (negative ? NARROW_DOWN : NARROW_UP);
}

uint32_t narrow_encode(const struct narrow_format *f, double v, enum narrow_round round,
                       bool satfinite) {
    if (isnan(v))
        return f->nan;
    bool negative = signbit(v);
    uint32_t sign = negative ? f->sign : 0;
    if (isinf(v))
        return sign | (satfinite ? f->largest : f->infinite);
    if (v == 0)
        return sign;
    int e = ilogb(v);
    if (e < f->min_exponent)
        e = f->min_exponent;
    /* Units of the last place; exact. A carry out of the mantissa lands in the exponent. */
    double units = fabs(narrow_round(ldexp(v, f->mantissa_bits - e), round));
    uint64_t bits = ((uint64_t)(e - f->min_exponent) << f->mantissa_bits) + (uint64_t)units;
    bits <<= f->shift;
    if (bits > f->largest)
        return sign | (satfinite || !overflows(round, negative) ? f->largest : f->infinite);
    return sign | (uint32_t)bits;
}

double narrow_decode(const struct narrow_format *f, uint32_t bits) {
    uint32_t rest = bits & (f->sign - 1);
    double sign = bits & f->sign ? -1 : 1;
    if (rest > f->largest)
        return rest == f->infinite && f->infinite != f->nan ? sign * INFINITY : NAN;
    rest >>= f->shift;
    int32_t exponent = (int32_t)(rest >> f->mantissa_bits);
    uint32_t mantissa = rest & ((1u << f->mantissa_bits) - 1);
    if (exponent)
        mantissa += 1u << f->mantissa_bits;
    else
        exponent = 1;
    return sign * ldexp(mantissa, exponent - 1 + f->min_exponent - f->mantissa_bits);
}

double narrow_from_integer(uint64_t magnitude, bool negative) {
    /* Above 53 bits, one bit stands for all that are cut off. */
    if (magnitude >> 53)
        magnitude = (magnitude & ~(uint64_t)0xfff) | (magnitude & 0xfff ? 0x800 : 0);
    return negative ? -(double)magnitude : (double)magnitude;
}

double narrow_to_double(uint64_t magnitude, bool negative, enum narrow_round round) {
    int cut = magnitude ? 11 - __builtin_clzll(magnitude) : 0;
    if (cut <= 0)
        return negative ? -(double)magnitude : (double)magnitude;
    double whole = (double)(magnitude >> cut << cut);
    uint64_t rest = magnitude & (((uint64_t)1 << cut) - 1), half = (uint64_t)1 << (cut - 1);
    bool odd = magnitude >> cut & 1;
    bool up = round == NARROW_NEAREST ? rest > half || (rest == half && odd)
                                      : rest && round == (negative ? NARROW_DOWN : NARROW_UP);
    double v = whole + (up ? ldexp(1, cut) : 0);
    return negative ? -v : v;
}
