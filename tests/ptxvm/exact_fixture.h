/* exact_fixture: floating-point arithmetic in integers, for the tests of the PTX machine.
 *
 * A number is an integer times a power of two; sums, products, quotients and roots are exact, or
 * carry a last bit that says that something lies below, so that one rounding at the end gives what
 * IEEE 754 asks for in each of its modes. Nothing here uses the processor's own arithmetic, which
 * the machine does.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct exact_format {
    int mantissa, exponent; /* bits */
};
extern const struct exact_format exact_f32, exact_f64, exact_f16, exact_bf16;
extern const struct exact_format exact_e5m2; /* with infinities; E4M3 is not such a format */

enum exact_rounding { EXACT_NEAREST, EXACT_ZERO, EXACT_DOWN, EXACT_UP };

uint64_t exact_infinity(const struct exact_format *f, bool negative);
/* The NaN that PTX instructions give: all bits but the sign. */
uint64_t exact_nan(const struct exact_format *f);
bool exact_is_nan(const struct exact_format *f, uint64_t code);
bool exact_is_subnormal(const struct exact_format *f, uint64_t code);
/* A subnormal becomes the zero of its sign. */
uint64_t exact_flush(const struct exact_format *f, uint64_t code);
/* [0, 1]; NaN becomes 0. */
uint64_t exact_saturate(const struct exact_format *f, uint64_t code);
uint64_t exact_negate(const struct exact_format *f, uint64_t code);
uint64_t exact_one(const struct exact_format *f);

/* a * b + c, a / b and sqrt(a). Not for products in float64 that something is added to. */
uint64_t exact_fma(const struct exact_format *f, enum exact_rounding mode, uint64_t a, uint64_t b,
                   uint64_t c);
uint64_t exact_add(const struct exact_format *f, enum exact_rounding mode, uint64_t a, uint64_t b);
uint64_t exact_mul(const struct exact_format *f, enum exact_rounding mode, uint64_t a, uint64_t b);
uint64_t exact_div(const struct exact_format *f, enum exact_rounding mode, uint64_t a, uint64_t b);
uint64_t exact_sqrt(const struct exact_format *f, enum exact_rounding mode, uint64_t a);

/* A code of one format in another; NaN becomes exact_nan. */
uint64_t exact_convert(const struct exact_format *to, enum exact_rounding mode,
                       const struct exact_format *from, uint64_t code);
/* magnitude * 2^exponent, with a sign. */
uint64_t exact_scale(const struct exact_format *f, enum exact_rounding mode, bool negative,
                     uint64_t magnitude, int exponent);
/* A number that is not NaN, rounded to an integer; at most 2^100 in magnitude. */
__int128 exact_integer(const struct exact_format *f, enum exact_rounding mode, uint64_t code);
