/* grammar_number: numbers, and those within bounds, as digits.
 *
 * A bounded number is read digit by digit beside its two bounds, written with as many digits: a
 * state knows how many digits have come, and whether all of them were those of the lower and of the
 * upper bound ("tight"). As long as one is tight, it limits the next digit.
 *
 * Bounds are compared as decimals. A double is the decimal that it is printed as, and what a client
 * reads back is rounded in the same direction as the bound, so that it never lies beyond it; where
 * the bound itself is excluded, 15 digits keep different decimals different doubles.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/grammar_internal.h"
#include "host/mem.h"

enum {
    INTEGER_DIGITS = 18,
    FRACTION_DIGITS = 17,
    BOUND_DIGITS = 15, /* of a number with bounds that may have a fraction, all told */
};

#define LARGEST_INTEGER INT64_C(999999999999999999)    /* INTEGER_DIGITS */
static const double largest_bounded = 999999999999999; /* BOUND_DIGITS */

/* ---- without bounds ---- */

/* Up to `max` more digits; returns a state reached after any number of them. */
static int32_t add_digits(struct builder *b, int32_t from, int32_t max) {
    int32_t end = add_state(b);
    add_empty(b, from, end);
    for (int32_t i = 0; i < max; i++) {
        int32_t next = add_state(b);
        add_bytes(b, from, '0', '9', next);
        add_empty(b, next, end);
        from = next;
    }
    return end;
}

int32_t add_any_integer(struct builder *b, int32_t from) {
    int32_t start = add_char(b, from, '-'), first = add_state(b), end;
    add_empty(b, from, start);
    add_bytes(b, start, '1', '9', first);
    end = add_digits(b, first, INTEGER_DIGITS - 1);
    add_bytes(b, start, '0', '0', end);
    return end;
}

int32_t add_any_number(struct builder *b, int32_t from) {
    int32_t whole = add_any_integer(b, from), point = add_char(b, whole, '.');
    int32_t first = add_state(b), mantissa, exponent, sign, end;
    add_bytes(b, point, '0', '9', first);
    mantissa = add_digits(b, first, FRACTION_DIGITS - 1);
    add_empty(b, whole, mantissa);
    exponent = add_state(b);
    add_bytes(b, mantissa, 'e', 'e', exponent);
    add_bytes(b, mantissa, 'E', 'E', exponent);
    sign = add_state(b);
    add_empty(b, exponent, sign);
    add_bytes(b, exponent, '+', '+', sign);
    add_bytes(b, exponent, '-', '-', sign);
    first = add_state(b);
    add_bytes(b, sign, '0', '9', first);
    end = add_digits(b, first, 1);
    add_empty(b, mantissa, end);
    return end;
}

/* ---- a range of magnitudes ---- */

/* A number >= 0 as digits: whole.fraction, "12" "25" for 12.25; no zeros in front ("0" is 0) and
 * none behind. */
struct decimal {
    char whole[24], fraction[24];
};

struct magnitudes {
    struct decimal low, high;
    bool low_exclusive, high_exclusive;
    int32_t max_digits; /* of a number with a fraction; 0: whole numbers only */
};

static bool zeros_only(const char *digits) {
    return digits[strspn(digits, "0")] == 0;
}

static bool is_zero(const struct decimal *d) {
    return zeros_only(d->whole) && zeros_only(d->fraction);
}

/* The i-th digit behind the point. */
static int digit_at(const char *fraction, size_t i) {
    return i < strlen(fraction) ? fraction[i] - '0' : 0;
}

/* Digits behind the point from the i-th on. `tight_low`, `tight_high`: all digits up to here are
 * the bound's. Adds the ways to end here, and to go on. */
static void add_fraction(struct builder *b, const struct magnitudes *m, int32_t from, size_t i,
                         size_t max, bool tight_low, bool tight_high, int32_t end) {
    size_t low_len = strlen(m->low.fraction), high_len = strlen(m->high.fraction);
    /* What ends here has zeros behind it. */
    bool low_ok = !tight_low || (i >= low_len && !m->low_exclusive);
    bool high_ok = !tight_high || i < high_len || !m->high_exclusive;
    if (low_ok && high_ok && i > 0)
        add_empty(b, from, end);
    if (i == max || (tight_high && i >= high_len && i > 0))
        return; /* only zeros could follow */
    int low = tight_low ? digit_at(m->low.fraction, i) : 0;
    int high = tight_high ? digit_at(m->high.fraction, i) : 9;
    int32_t inner = -1;
    for (int digit = low; digit <= high; digit++) {
        bool is_low = tight_low && digit == low, is_high = tight_high && digit == high;
        char c = (char)('0' + digit);
        if (is_low || is_high) {
            int32_t next = add_char(b, from, c);
            add_fraction(b, m, next, i + 1, max, is_low, is_high, end);
        } else {
            if (inner < 0) {
                inner = add_state(b);
                add_fraction(b, m, inner, i + 1, max, false, false, end);
            }
            add_bytes(b, from, (uint8_t)c, (uint8_t)c, inner);
        }
    }
}

/* Behind the last digit before the point. */
static void end_whole(struct builder *b, const struct magnitudes *m, int32_t from, size_t digits,
                      bool tight_low, bool tight_high, int32_t end) {
    bool low_ok = !tight_low || (zeros_only(m->low.fraction) && !m->low_exclusive);
    bool high_ok = !tight_high || !zeros_only(m->high.fraction) || !m->high_exclusive;
    if (low_ok && high_ok)
        add_empty(b, from, end);
    if (m->max_digits > (int32_t)digits)
        add_fraction(b, m, add_char(b, from, '.'), 0, (size_t)m->max_digits - digits, tight_low,
                     tight_high, end);
}

/* Digit i of a whole number of n digits. */
static void add_whole(struct builder *b, const struct magnitudes *m, int32_t from, size_t i,
                      size_t n, bool tight_low, bool tight_high, int32_t end) {
    if (i == n) {
        end_whole(b, m, from, n, tight_low, tight_high, end);
        return;
    }
    int least = i == 0 && n > 1 ? 1 : 0;
    int low = tight_low ? m->low.whole[i] - '0' : least;
    int high = tight_high ? m->high.whole[i] - '0' : 9;
    int32_t inner = -1;
    for (int digit = low; digit <= high; digit++) {
        bool is_low = tight_low && digit == low, is_high = tight_high && digit == high;
        char c = (char)('0' + digit);
        if (is_low || is_high) {
            add_whole(b, m, add_char(b, from, c), i + 1, n, is_low, is_high, end);
        } else {
            if (inner < 0) {
                inner = add_state(b);
                add_whole(b, m, inner, i + 1, n, false, false, end);
            }
            add_bytes(b, from, (uint8_t)c, (uint8_t)c, inner);
        }
    }
}

static void add_magnitudes(struct builder *b, int32_t from, const struct magnitudes *m,
                           int32_t end) {
    size_t low = strlen(m->low.whole), high = strlen(m->high.whole);
    for (size_t n = low; n <= high; n++)
        add_whole(b, m, from, 0, n, n == low, n == high, end);
}

/* ---- bounds as decimals ---- */

/* |v| <= largest_bounded as a decimal. False: it has more digits than are supported. */
static bool to_decimal(double v, struct decimal *d) {
    v = fabs(v);
    char text[64];
    int digits = 15;
    do
        snprintf(text, sizeof text, "%.*e", digits - 1, v);
    while (strtod(text, NULL) != v && digits++ < 17);
    char mantissa[24];
    int exponent = atoi(strchr(text, 'e') + 1), n = 0;
    for (const char *p = text; *p != 'e'; p++)
        if (*p != '.')
            mantissa[n++] = *p;
    while (n > 1 && mantissa[n - 1] == '0')
        n--;
    int whole = exponent + 1, zeros = whole < 0 ? -whole : 0;
    if (whole > INTEGER_DIGITS || zeros + n - (whole > 0 ? whole : 0) > BOUND_DIGITS)
        return false;
    memset(d, 0, sizeof *d);
    for (int i = 0; i < whole; i++)
        d->whole[i] = i < n ? mantissa[i] : '0';
    if (whole <= 0)
        d->whole[0] = '0';
    memset(d->fraction, '0', (size_t)zeros);
    for (int i = whole > 0 ? whole : 0, at = zeros; i < n; i++)
        d->fraction[at++] = mantissa[i];
    if (is_zero(d))
        *d = (struct decimal){.whole = "0"};
    return true;
}

/* Numbers from min to max, both >= 0. False: they have too many digits. */
static bool add_range(struct builder *b, int32_t from, double min, bool min_exclusive, double max,
                      bool max_exclusive, int32_t end) {
    struct magnitudes m = {.low_exclusive = min_exclusive,
                           .high_exclusive = max_exclusive,
                           .max_digits = BOUND_DIGITS};
    if (!to_decimal(min, &m.low) || !to_decimal(max, &m.high))
        return false;
    add_magnitudes(b, from, &m, end);
    return true;
}

/* Positive and negative parts of [min, max]. */
static int32_t add_bounded(struct builder *b, int32_t from, const struct number_bounds *v) {
    int32_t end = add_state(b);
    bool ok = true;
    if (v->min > v->max || (v->min == v->max && (v->min_exclusive || v->max_exclusive)))
        return NUMBER_NONE;
    if (v->max >= 0)
        ok = add_range(b, from, v->min > 0 ? v->min : 0, v->min >= 0 && v->min_exclusive, v->max,
                       v->max_exclusive, end);
    if (ok && v->min < 0)
        ok = add_range(b, add_char(b, from, '-'), v->max < 0 ? -v->max : 0,
                       v->max >= 0 || v->max_exclusive, -v->min, v->min_exclusive, end);
    return ok ? end : NUMBER_TOO_LONG;
}

int32_t add_number(struct builder *b, int32_t from, const struct number_bounds *bounds) {
    struct number_bounds v = *bounds;
    if (!v.has_min && !v.has_max)
        return add_any_number(b, from);
    if ((v.has_min && v.min > largest_bounded) || (v.has_max && v.max < -largest_bounded))
        return NUMBER_TOO_LONG;
    if (!v.has_min || v.min < -largest_bounded) {
        v.min = -largest_bounded;
        v.min_exclusive = false;
    }
    if (!v.has_max || v.max > largest_bounded) {
        v.max = largest_bounded;
        v.max_exclusive = false;
    }
    return add_bounded(b, from, &v);
}

/* Digits of the multiples of a number: a state knows the remainder of those that have come, too. */
struct multiples {
    struct builder *b;
    const struct magnitudes *m;
    int32_t of, end;
    int32_t *free; /* [INTEGER_DIGITS + 1, of] states within no bound, by the digits that are still
                      to come and the remainder; -1: not made */
};

static int32_t free_digits(struct multiples *x, size_t left, int32_t remainder) {
    int32_t *state = &x->free[left * (size_t)x->of + (size_t)remainder];
    if (*state >= 0)
        return *state;
    *state = add_state(x->b);
    if (left == 0 && remainder == 0)
        add_empty(x->b, *state, x->end);
    for (uint8_t digit = 0; left > 0 && digit < 10; digit++)
        add_bytes(x->b, *state, '0' + digit, '0' + digit,
                  free_digits(x, left - 1, (remainder * 10 + digit) % x->of));
    return *state;
}

/* As add_whole. */
static void add_multiple(struct multiples *x, int32_t from, int32_t remainder, size_t i, size_t n,
                         bool tight_low, bool tight_high) {
    if (i == n) {
        if (remainder == 0)
            add_empty(x->b, from, x->end);
        return;
    }
    int low = tight_low ? x->m->low.whole[i] - '0' : i == 0 && n > 1;
    int high = tight_high ? x->m->high.whole[i] - '0' : 9;
    for (int digit = low; digit <= high; digit++) {
        bool is_low = tight_low && digit == low, is_high = tight_high && digit == high;
        int32_t next = (remainder * 10 + digit) % x->of;
        uint8_t c = (uint8_t)('0' + digit);
        if (is_low || is_high)
            add_multiple(x, add_char(x->b, from, (char)c), next, i + 1, n, is_low, is_high);
        else
            add_bytes(x->b, from, c, c, free_digits(x, n - i - 1, next));
    }
}

static void add_multiples(struct builder *b, int32_t from, const struct magnitudes *m, int32_t of,
                          int32_t end) {
    size_t low = strlen(m->low.whole), high = strlen(m->high.whole);
    size_t size = (INTEGER_DIGITS + 1) * (size_t)of * sizeof(int32_t);
    struct multiples x = {b, m, of, end, xmalloc(size)};
    memset(x.free, 0xff, size);
    for (size_t n = low; n <= high; n++)
        add_multiple(&x, from, 0, 0, n, n == low, n == high);
    free(x.free);
}

/* Whole numbers from min to max, both >= 0, that are multiples of one. */
static void add_whole_range(struct builder *b, int32_t from, int64_t min, int64_t max, int32_t of,
                            int32_t end) {
    struct magnitudes m = {.max_digits = 0};
    snprintf(m.low.whole, sizeof m.low.whole, "%lld", (long long)min);
    snprintf(m.high.whole, sizeof m.high.whole, "%lld", (long long)max);
    if (of > 1)
        add_multiples(b, from, &m, of, end);
    else
        add_magnitudes(b, from, &m, end);
}

int32_t add_integer(struct builder *b, int32_t from, const struct number_bounds *bounds) {
    int64_t low = bounds->low, high = bounds->high;
    if (!bounds->has_min && !bounds->has_max && bounds->multiple_of <= 1)
        return add_any_integer(b, from);
    if (low > LARGEST_INTEGER || high < -LARGEST_INTEGER)
        return NUMBER_TOO_LONG;
    if (low > high)
        return NUMBER_NONE;
    int32_t end = add_state(b);
    low = low < -LARGEST_INTEGER ? -LARGEST_INTEGER : low;
    high = high > LARGEST_INTEGER ? LARGEST_INTEGER : high;
    if (high >= 0)
        add_whole_range(b, from, low > 0 ? low : 0, high, bounds->multiple_of, end);
    if (low < 0)
        add_whole_range(b, add_char(b, from, '-'), high < 0 ? -high : 1, -low, bounds->multiple_of,
                        end);
    return end;
}
