/* Arithmetic in single and double precision.
 *
 * The approximations of GPUs (ex2, lg2, sin, rcp.approx, ...) are as exact here as the C library
 * makes them; a kernel must not depend on their last bits. Rounding modes other than to nearest,
 * flushing and saturation are put around a handler by vm_modified_*.
 */
#include "tests/ptxvm/decode.h"
#include "tests/ptxvm/exec.h"
#include "tests/ptxvm/exec_real.h"

#include <fenv.h>
#include <math.h>

/* ---- f32
 * ------------------------------------------------------------------------------------------ */

#define F32_1(name, expr) VM_OP1(name##_f32, float, float, vm_canonical(expr))
#define F32_2(name, expr) VM_OP2(name##_f32, float, float, float, vm_canonical(expr))
F32_2(add, a + b)
F32_2(sub, a - b)
F32_2(mul, a *b)
F32_2(div, a / b)
VM_OP3(fma_f32, float, float, float, float, vm_canonical(__builtin_fmaf(a, b, c)))
F32_1(rcp, 1.0f / a)
F32_1(sqrt, sqrtf(a))
F32_1(rsqrt, (float)(1.0 / sqrt((double)a)))
F32_1(ex2, exp2f(a))
F32_1(lg2, log2f(a))
F32_1(sin, sinf(a))
F32_1(cos, cosf(a))
F32_1(tanh, tanhf(a))

#define BITS32_1(name, expr) VM_OP1(name, uint32_t, uint32_t, expr)
#define BITS32_2(name, expr) VM_OP2(name, uint32_t, uint32_t, uint32_t, expr)
#define SIGN32               0x80000000u
#define REST32               0x7fffffffu
BITS32_1(abs_f32, a &REST32)
BITS32_1(neg_f32, a ^ SIGN32)
BITS32_2(copysign_f32, (a & SIGN32) | (b & REST32))
BITS32_2(min_f32, vm_pick_f32(a, b, false, false))
BITS32_2(max_f32, vm_pick_f32(a, b, true, false))
BITS32_2(min_nan_f32, vm_pick_f32(a, b, false, true))
BITS32_2(max_nan_f32, vm_pick_f32(a, b, true, true))
/* xorsign.abs: of the magnitudes, with the sign of the product. */
#define XORSIGN32(max, nan) (vm_pick_f32(a & REST32, b & REST32, max, nan) | ((a ^ b) & SIGN32))
BITS32_2(min_xorsign_f32, XORSIGN32(false, false))
BITS32_2(max_xorsign_f32, XORSIGN32(true, false))
BITS32_2(min_nan_xorsign_f32, XORSIGN32(false, true))
BITS32_2(max_nan_xorsign_f32, XORSIGN32(true, true))

/* Pairs in one 64-bit register. */
#define LOW(x)  vm_f32_from((uint32_t)(x))
#define HIGH(x) vm_f32_from((uint32_t)((x) >> 32))
#define PAIR(high, low)                                                                            \
    ((uint64_t)vm_f32_bits(vm_canonical(high)) << 32 | vm_f32_bits(vm_canonical(low)))
VM_OP2(add_f32x2, uint64_t, uint64_t, uint64_t, PAIR(HIGH(a) + HIGH(b), LOW(a) + LOW(b)))
VM_OP2(sub_f32x2, uint64_t, uint64_t, uint64_t, PAIR(HIGH(a) - HIGH(b), LOW(a) - LOW(b)))
VM_OP2(mul_f32x2, uint64_t, uint64_t, uint64_t, PAIR(HIGH(a) * HIGH(b), LOW(a) * LOW(b)))
VM_OP3(fma_f32x2, uint64_t, uint64_t, uint64_t, uint64_t,
       PAIR(__builtin_fmaf(HIGH(a), HIGH(b), HIGH(c)), __builtin_fmaf(LOW(a), LOW(b), LOW(c))))

/* ---- f64
 * ------------------------------------------------------------------------------------------ */

static inline uint64_t pick_f64(uint64_t x, uint64_t y, bool max) {
    double a = vm_f64_from(x), b = vm_f64_from(y);
    if (a != a || b != b)
        return a != a ? y : x;
    bool less = a < b || (a == b && x >> 63);
    return less != max ? x : y;
}
#define SIGN64 0x8000000000000000u
#define REST64 0x7fffffffffffffffu
VM_OP2(add_f64, double, double, double, a + b)
VM_OP2(sub_f64, double, double, double, a - b)
VM_OP2(mul_f64, double, double, double, a *b)
VM_OP2(div_f64, double, double, double, a / b)
VM_OP3(fma_f64, double, double, double, double, __builtin_fma(a, b, c))
VM_OP1(rcp_f64, double, double, 1.0 / a)
VM_OP1(sqrt_f64, double, double, sqrt(a))
VM_OP1(rsqrt_f64, double, double, 1.0 / sqrt(a))
VM_OP1(abs_f64, uint64_t, uint64_t, a &REST64)
VM_OP1(neg_f64, uint64_t, uint64_t, a ^ SIGN64)
VM_OP2(copysign_f64, uint64_t, uint64_t, uint64_t, (a & SIGN64) | (b & REST64))
VM_OP2(min_f64, uint64_t, uint64_t, uint64_t, pick_f64(a, b, false))
VM_OP2(max_f64, uint64_t, uint64_t, uint64_t, pick_f64(a, b, true))

/* ---- testp
 * ---------------------------------------------------------------------------------------- */

/* x is the magnitude's bits, top the first that is not finite, least the first normal one. */
#define TEST_ONE(name, U, rest, top_value, least_value, cond)                                      \
    static void name(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {                     \
        const U *pa = VM_REG(w, i->a, U), top = top_value, least = least_value;                    \
        uint32_t out = 0;                                                                          \
        (void)top;                                                                                 \
        (void)least;                                                                               \
        VM_LANES {                                                                                 \
            U x = pa[l] & rest;                                                                    \
            out |= (uint32_t)(cond) << l;                                                          \
        }                                                                                          \
        vm_set_pred(w, i->d, m, out);                                                              \
    }
#define TEST(name, cond)                                                                           \
    TEST_ONE(name##_f32, uint32_t, REST32, 0x7f800000u, 0x00800000u, cond)                         \
    TEST_ONE(name##_f64, uint64_t, REST64, 0x7ff0000000000000u, 0x0010000000000000u, cond)
TEST(finite, x < top)
TEST(infinite, x == top)
TEST(number, x <= top)
TEST(notanumber, x > top)
TEST(normal, x < top && x >= least)
TEST(subnormal, x > 0 && x < least)

/* ---- modifiers
 * ------------------------------------------------------------------------------------ */

static void set_rounding(uint8_t round) {
    static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
    fesetround(modes[round]);
}

static void run_rounded(struct vm_warp *w, const struct vm_inst *i, uint32_t m, uint8_t round) {
    if (round)
        set_rounding(round);
    i->run(w, i, m);
    if (round)
        set_rounding(VM_ROUND_NEAREST);
}

static inline uint32_t saturate_f32(uint32_t u) {
    float v = vm_f32_from(u);
    return v > 0 ? v < 1 ? u : vm_f32_bits(1) : 0; /* NaN gives 0 */
}
static inline uint64_t saturate_f64(uint64_t u) {
    double v = vm_f64_from(u);
    return v > 0 ? v < 1 ? u : vm_f64_bits(1) : 0;
}

/* i->vec inputs, i->more: registers for their flushed copies. */
#define MODIFIED(name, U, flush, saturate)                                                         \
    void name(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {                            \
        struct vm_inst plain = *i;                                                                 \
        uint32_t *from[] = {&plain.a, &plain.b, &plain.c};                                         \
        plain.run = i->base;                                                                       \
        for (int n = 0; i->ftz && n < i->vec; n++) {                                               \
            const U *in = VM_REG(w, *from[n], U);                                                  \
            U *out = VM_REG(w, i->more[n], U);                                                     \
            VM_LANES                                                                               \
            out[l] = flush(in[l]);                                                                 \
            *from[n] = i->more[n];                                                                 \
        }                                                                                          \
        run_rounded(w, &plain, m, i->round);                                                       \
        U *d = VM_REG(w, i->d, U);                                                                 \
        VM_LANES {                                                                                 \
            U r = i->ftz ? flush(d[l]) : d[l];                                                     \
            r = i->sat ? saturate(r) : r;                                                          \
            d[l] = (m >> l & 1) ? r : d[l];                                                        \
        }                                                                                          \
    }
MODIFIED(vm_modified_f32, uint32_t, vm_flush_f32, saturate_f32)
MODIFIED(vm_modified_f64, uint64_t, vm_flush_f64, saturate_f64)

/* ---- the table
 * ------------------------------------------------------------------------------------ */

#define ROWS(T, c)                                                                                 \
    {"add." #T, c c c, add_##T}, {"sub." #T, c c c, sub_##T}, {"mul." #T, c c c, mul_##T},         \
        {"div." #T, c c c, div_##T}, {"fma." #T, c c c c, fma_##T}, {"mad." #T, c c c c, fma_##T}, \
        {"rcp." #T, c c, rcp_##T}, {"sqrt." #T, c c, sqrt_##T}, {"rsqrt." #T, c c, rsqrt_##T},     \
        {"abs." #T, c c, abs_##T}, {"neg." #T, c c, neg_##T},                                      \
        {"copysign." #T, c c c, copysign_##T}, {"min." #T, c c c, min_##T},                        \
        {"max." #T, c c c, max_##T}, {"testp.finite." #T, "p" c, finite_##T},                      \
        {"testp.infinite." #T, "p" c, infinite_##T}, {"testp.number." #T, "p" c, number_##T},      \
        {"testp.notanumber." #T, "p" c, notanumber_##T}, {"testp.normal." #T, "p" c, normal_##T},  \
    {                                                                                              \
        "testp.subnormal." #T, "p" c, subnormal_##T                                                \
    }

const struct vm_opcode vm_float_opcodes[] = {
    ROWS(f32, "w"),
    ROWS(f64, "x"),
    {"ex2.f32", "ww", ex2_f32},
    {"lg2.f32", "ww", lg2_f32},
    {"sin.f32", "ww", sin_f32},
    {"cos.f32", "ww", cos_f32},
    {"tanh.f32", "ww", tanh_f32},
    {"min.NaN.f32", "www", min_nan_f32},
    {"max.NaN.f32", "www", max_nan_f32},
    {"min.xorsign.abs.f32", "www", min_xorsign_f32},
    {"max.xorsign.abs.f32", "www", max_xorsign_f32},
    {"min.NaN.xorsign.abs.f32", "www", min_nan_xorsign_f32},
    {"max.NaN.xorsign.abs.f32", "www", max_nan_xorsign_f32},
    {"add.f32x2", "xxx", add_f32x2},
    {"add.rn.f32x2", "xxx", add_f32x2},
    {"sub.f32x2", "xxx", sub_f32x2},
    {"sub.rn.f32x2", "xxx", sub_f32x2},
    {"mul.f32x2", "xxx", mul_f32x2},
    {"mul.rn.f32x2", "xxx", mul_f32x2},
    {"fma.rn.f32x2", "xxxx", fma_f32x2},
    {NULL, NULL, NULL},
};
