/* narrow: encodings of binary floating-point formats of up to 32 bits.
 *
 * A value is held as a double, which has every value of every format here. Encoding rounds once.
 * It is the slow and exact way: the handlers of frequent conversions have ways of their own.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum narrow_round { NARROW_NEAREST, NARROW_ZERO, NARROW_DOWN, NARROW_UP, NARROW_AWAY };

struct narrow_format {
    int8_t mantissa_bits; /* stored ones */
    int8_t shift;         /* low bits of the encoding that are always zero (tf32) */
    int16_t min_exponent; /* of normal numbers */
    uint32_t largest;     /* encoding of the largest finite number */
    uint32_t infinite;    /* its encoding; that of NaN in a format without infinity */
    uint32_t nan;         /* the canonical NaN */
    uint32_t sign;
};
extern const struct narrow_format narrow_f32, narrow_tf32, narrow_f16, narrow_bf16, narrow_e4m3,
    narrow_e5m2;

/* AWAY: to nearest, ties away from zero. satfinite: what is too large becomes the largest finite
 * number, infinities too. */
uint32_t narrow_encode(const struct narrow_format *f, double v, enum narrow_round round,
                       bool satfinite);
double narrow_decode(const struct narrow_format *f, uint32_t bits);
/* Rounds to an integer. */
double narrow_round(double v, enum narrow_round round);
/* The integer as a double that rounds to any of the formats as the integer itself would. */
double narrow_from_integer(uint64_t magnitude, bool negative);
/* The integer as a double. */
double narrow_to_double(uint64_t magnitude, bool negative, enum narrow_round round);
