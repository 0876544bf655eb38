/* Arithmetic in f16 and bf16, one value or a pair in a register.
 *
 * Values are computed in f32 and rounded once to their format. Where f32 itself may have to round
 * (products and fused sums), it rounds to odd: the last bit then remembers that something was cut
 * off, and the second rounding gives what a single one would have given.
 */
#include "tests/ptxvm/decode.h"
#include "tests/ptxvm/exec_real.h"

#include <math.h>

typedef float (*half_function)(float a, float b, float c);

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* n: 32 values, or 64 of 32 pairs. */
ALWAYS_INLINE void blend(uint16_t *d, const uint16_t *r, int n, uint32_t m) {
    int shift = n > VM_WARP;
    for (int k = 0; k < n; k++)
        d[k] = (m >> (k >> shift) & 1) ? r[k] : d[k];
}

ALWAYS_INLINE void run_half(struct vm_warp *w, const struct vm_inst *i, uint32_t m, bool is_bf16,
                            int n, int inputs, half_function f) {
    float in[3][2 * VM_WARP] = {{0}}, out[2 * VM_WARP];
    uint16_t halves[2 * VM_WARP];
    const uint32_t from[3] = {i->a, i->b, i->c};
    for (int k = 0; k < inputs; k++)
        vm_load_halves(in[k], VM_REG(w, from[k], uint16_t), n, is_bf16);
    for (int k = 0; k < n; k++)
        out[k] = f(in[0][k], in[1][k], in[2][k]);
    vm_to_halves(halves, out, n, is_bf16);
    blend(VM_REG(w, i->d, uint16_t), halves, n, m);
}

/* ---- rounding to odd
 * ------------------------------------------------------------------------------ */

ALWAYS_INLINE float odd_f32(double v) {
    float f = (float)v;
    double back = (double)f;
    uint32_t u = vm_f32_bits(f);
    if (back != v && v == v && !(u & 1))
        u += (back < v) == (v > 0) ? 1u : ~0u;
    return vm_f32_from(u);
}

/* The product of two halves is exact in double precision; the error of the sum is too. */
ALWAYS_INLINE float odd_fma(float a, float b, float c) {
    double p = (double)a * b, s = p + c, t = s - p;
    double error = (p - (s - t)) + (c - t);
    uint64_t u = vm_f64_bits(s);
    if (error < 0 || error > 0) /* not when the sum is infinite: then it is NaN */
        u += u & 1 ? 0 : (error > 0) == (s > 0) ? 1 : ~(uint64_t)0;
    return odd_f32(vm_f64_from(u));
}

/* ---- operations
 * ----------------------------------------------------------------------------------- */

static inline float pick(float a, float b, bool max, bool keep_nan) {
    return vm_f32_from(vm_pick_f32(vm_f32_bits(a), vm_f32_bits(b), max, keep_nan));
}
static inline float xorsign(float a, float b, bool max, bool keep_nan) {
    uint32_t x = vm_f32_bits(a), y = vm_f32_bits(b), rest = 0x7fffffffu;
    return vm_f32_from(vm_pick_f32(x & rest, y & rest, max, keep_nan) | ((x ^ y) & ~rest));
}
/* NaN stays. */
static inline float relu(float v) {
    return v < 0 || v == 0 ? 0 : v;
}

#define HALF(name, inputs, expr)                                                                   \
    ALWAYS_INLINE float name##_of(float a, float b, float c) {                                     \
        (void)b;                                                                                   \
        (void)c;                                                                                   \
        return expr;                                                                               \
    }                                                                                              \
    static void name##_f16(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {               \
        run_half(w, i, m, false, VM_WARP, inputs, name##_of);                                      \
    }                                                                                              \
    static void name##_f16x2(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {             \
        run_half(w, i, m, false, 2 * VM_WARP, inputs, name##_of);                                  \
    }                                                                                              \
    static void name##_bf16(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {              \
        run_half(w, i, m, true, VM_WARP, inputs, name##_of);                                       \
    }                                                                                              \
    static void name##_bf16x2(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {            \
        run_half(w, i, m, true, 2 * VM_WARP, inputs, name##_of);                                   \
    }
/* Sums of halves need no odd rounding: f32 has more than twice their bits. */
HALF(add, 2, a + b)
HALF(sub, 2, a - b)
HALF(mul, 2, odd_f32((double)a *b))
HALF(fma, 3, odd_fma(a, b, c))
HALF(fma_relu, 3, relu(odd_fma(a, b, c)))
HALF(neg, 1, -a)
HALF(abs, 1, fabsf(a))
HALF(min, 2, pick(a, b, false, false))
HALF(max, 2, pick(a, b, true, false))
HALF(min_nan, 2, pick(a, b, false, true))
HALF(max_nan, 2, pick(a, b, true, true))
HALF(min_xorsign, 2, xorsign(a, b, false, false))
HALF(max_xorsign, 2, xorsign(a, b, true, false))
HALF(min_nan_xorsign, 2, xorsign(a, b, false, true))
HALF(max_nan_xorsign, 2, xorsign(a, b, true, true))
HALF(ex2, 1, exp2f(a))
HALF(tanh, 1, tanhf(a))

/* ---- modifiers
 * ------------------------------------------------------------------------------------ */

static inline uint16_t flush(uint16_t u, bool is_bf16) {
    return u & (is_bf16 ? 0x7f80 : 0x7c00) ? u : u & 0x8000;
}

static inline uint16_t saturate(uint16_t u, bool is_bf16) {
    uint16_t one = is_bf16 ? 0x3f80 : 0x3c00, infinite = is_bf16 ? 0x7f80 : 0x7c00;
    return u > infinite ? 0 : u > one ? one : u; /* negative numbers and NaN give 0 */
}

void vm_modified_half(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    struct vm_inst plain = *i;
    uint32_t *from[] = {&plain.a, &plain.b, &plain.c};
    bool is_bf16 = i->type == VM_BF16 || i->type == VM_BF16X2;
    int n = i->type == VM_F16X2 || i->type == VM_BF16X2 ? 2 * VM_WARP : VM_WARP;
    for (int k = 0; i->ftz && k < i->vec; k++) {
        const uint16_t *in = VM_REG(w, *from[k], uint16_t);
        uint16_t *out = VM_REG(w, i->more[k], uint16_t);
        for (int h = 0; h < n; h++)
            out[h] = flush(in[h], is_bf16);
        *from[k] = i->more[k];
    }
    i->base(w, &plain, m);
    uint16_t r[2 * VM_WARP], *d = VM_REG(w, i->d, uint16_t);
    for (int h = 0; h < n; h++) {
        r[h] = i->ftz ? flush(d[h], is_bf16) : d[h];
        r[h] = i->sat ? saturate(r[h], is_bf16) : r[h];
    }
    blend(d, r, n, m);
}

/* ---- the table
 * ------------------------------------------------------------------------------------ */

#define PICKS(op, T, c)                                                                            \
    {#op "." #T, c c c, op##_##T}, {#op ".NaN." #T, c c c, op##_nan_##T},                          \
        {#op ".xorsign.abs." #T, c c c, op##_xorsign_##T}, {                                       \
#op ".NaN.xorsign.abs." #T, c c c, op##_nan_xorsign_##T                                    \
    }
#define ROWS(T, c)                                                                                 \
    {"add." #T, c c c, add_##T}, {"sub." #T, c c c, sub_##T}, {"mul." #T, c c c, mul_##T},         \
        {"fma." #T, c c c c, fma_##T}, {"fma.relu." #T, c c c c, fma_relu_##T},                    \
        {"neg." #T, c c, neg_##T}, {"abs." #T, c c, abs_##T}, PICKS(min, T, c), PICKS(max, T, c),  \
        {"ex2." #T, c c, ex2_##T}, {                                                               \
        "tanh." #T, c c, tanh_##T                                                                  \
    }

const struct vm_opcode vm_half_opcodes[] = {
    ROWS(f16, "h"), ROWS(f16x2, "w"), ROWS(bf16, "h"), ROWS(bf16x2, "w"), {NULL, NULL, NULL},
};
