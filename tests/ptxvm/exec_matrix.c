/* Matrix instructions of a warp.
 *
 * In every fragment a register is a matrix of 8 rows of 16 bytes: lane l holds bytes 4 (l % 4) of
 * row l / 4. Register r of A (16 rows) is rows 8 (r % 2) and bytes 16 (r / 2) of them; of B, column
 * l / 4 and bytes 16 r of it. Since the 32 lanes of a register lie side by side, such a matrix is
 * 128 bytes of the register file, row after row.
 */
#include "tests/ptxvm/exec_matrix.h"

#include <immintrin.h>
#include <pthread.h>
#include <string.h>

#include "tests/ptxvm/access.h"
#include "tests/ptxvm/settings.h"

enum { ROWS = 16, COLUMNS = 8 };

/* ---- ldmatrix and its relatives -----------------------------------------------------------------
 */

/* out[8][8] = in^T, 16-bit elements. */
static void transpose8(uint16_t *out, const uint16_t *in) {
    for (int r = 0; r < 8; r++)
        for (int c = 0; c < 8; c++)
            out[8 * c + r] = in[8 * r + c];
}

static uint32_t row_lanes(const struct vm_inst *i) {
    return i->vec == 4 ? VM_ALL : (1u << 8 * i->vec) - 1;
}

void vm_ldmatrix(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint64_t at[VM_WARP];
    uint16_t rows[64];
    if (!vm_collect(w, i, &m, NULL))
        return;
    vm_addresses(w, i->a, i->wide, i->imm, at);
    vm_resolve(w, i, m & row_lanes(i), (enum ptx_space)i->space, at, 16, VM_READ);
    for (uint32_t n = 0; n < i->vec; n++) {
        for (uint32_t r = 0; r < 8; r++)
            memcpy(rows + 8 * r, (const void *)(uintptr_t)at[8 * n + r], 16);
        if (i->kind)
            transpose8(VM_REG(w, i->more[n], uint16_t), rows);
        else
            memcpy(w->r + i->more[n], rows, sizeof rows);
    }
}

void vm_stmatrix(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint64_t at[VM_WARP];
    uint16_t rows[64];
    if (!vm_collect(w, i, &m, NULL))
        return;
    vm_addresses(w, i->a, i->wide, i->imm, at);
    vm_resolve(w, i, m & row_lanes(i), (enum ptx_space)i->space, at, 16, VM_WRITE);
    for (uint32_t n = 0; n < i->vec; n++) {
        if (i->kind)
            transpose8(rows, VM_REG(w, i->more[n], uint16_t));
        else
            memcpy(rows, w->r + i->more[n], sizeof rows);
        for (uint32_t r = 0; r < 8; r++)
            memcpy((void *)(uintptr_t)at[8 * n + r], rows + 8 * r, 16);
    }
}

void vm_movmatrix(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint16_t rows[64];
    if (!vm_collect(w, i, &m, NULL))
        return;
    memcpy(rows, w->r + i->a, sizeof rows);
    transpose8(VM_REG(w, i->d, uint16_t), rows);
}

/* ---- elements to float32
 * ------------------------------------------------------------------------- */

static float fp8_values[2][256]; /* e4m3, e5m2 */
static pthread_once_t fp8_once = PTHREAD_ONCE_INIT;

static float power_of_2(int e) {
    union {
        uint32_t u;
        float f;
    } v = {.u = (uint32_t)(127 + e) << 23};
    return v.f;
}

static float fp8_value(uint32_t v, int mantissa_bits, int bias) {
    uint32_t mantissa = v & ((1u << mantissa_bits) - 1), exponent = (v & 0x7f) >> mantissa_bits;
    float sign = v & 0x80 ? -1.0f : 1.0f;
    /* E4M3 has no infinities and one NaN. */
    if (mantissa_bits == 3 ? (v & 0x7f) == 0x7f : exponent == 31 && mantissa)
        return __builtin_nanf("");
    if (mantissa_bits == 2 && exponent == 31)
        return sign * __builtin_inff();
    float fraction = (float)mantissa / (float)(1 << mantissa_bits);
    return sign * (exponent ? (1 + fraction) * power_of_2((int)exponent - bias)
                            : fraction * power_of_2(1 - bias));
}

static void fill_fp8(void) {
    for (uint32_t v = 0; v < 256; v++) {
        fp8_values[0][v] = fp8_value(v, 3, 7);
        fp8_values[1][v] = fp8_value(v, 2, 15);
    }
}

/* 16 bytes of elements. */
static inline void widen(uint32_t type, const uint8_t *in, float *out) {
    uint16_t h[8];
    uint32_t u[8];
    switch (type) {
    case VM_MAT_F16:
        _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)in)));
        break;
    case VM_MAT_BF16:
        memcpy(h, in, sizeof h);
        for (int n = 0; n < 8; n++)
            u[n] = (uint32_t)h[n] << 16;
        memcpy(out, u, sizeof u);
        break;
    case VM_MAT_TF32: /* the low 13 bits do not take part */
        memcpy(u, in, 16);
        for (int n = 0; n < 4; n++)
            u[n] &= 0xffffe000u;
        memcpy(out, u, 16);
        break;
    default:
        for (int n = 0; n < 16; n++)
            out[n] = fp8_values[type == VM_MAT_E5M2][in[n]];
    }
}

/* ---- mma: D = A B + C
 * ------------------------------------------------------------------------------ */

static inline uint32_t elements_per_row(uint32_t type) {
    return type == VM_MAT_TF32 ? 4 : type <= VM_MAT_BF16 ? 8 : 16;
}

struct fragments {
    const uint32_t *d, *a, *b, *c; /* registers */
    uint32_t num_a, num_b;
};

static struct fragments fragments_of(const struct vm_inst *i) {
    struct fragments f = {.d = i->more, .num_b = i->size / elements_per_row(i->type)};
    f.num_a = 2 * f.num_b;
    f.a = f.d + (i->kind ? 2 : 4);
    f.b = f.a + f.num_a;
    f.c = f.b + f.num_b;
    return f;
}

/* C and D: lane l holds columns 2 (l % 4), + 1 of rows l / 4 (registers 0, 1) and 8 more (2, 3);
 * of f16, both columns in one register. */
static void load_sums(const struct vm_warp *w, const uint32_t *c, bool half,
                      float sums[ROWS][COLUMNS]) {
    for (int top = 0; top < 2; top++)
        for (int l = 0; l < VM_WARP; l++) {
            float *to = &sums[8 * top + l / 4][2 * (l % 4)];
            if (half) {
                uint32_t v = VM_REG(w, c[top], uint32_t)[l];
                to[0] = _cvtsh_ss((uint16_t)v);
                to[1] = _cvtsh_ss((uint16_t)(v >> 16));
            } else {
                to[0] = VM_REG(w, c[2 * top], float)[l];
                to[1] = VM_REG(w, c[2 * top + 1], float)[l];
            }
        }
}

static void store_sums(struct vm_warp *w, const uint32_t *d, bool half, float sums[ROWS][COLUMNS]) {
    for (int top = 0; top < 2; top++)
        for (int l = 0; l < VM_WARP; l++) {
            const float *from = &sums[8 * top + l / 4][2 * (l % 4)];
            if (half) {
                VM_REG(w, d[top], uint32_t)
                [l] = (uint32_t)_cvtss_sh(from[0], _MM_FROUND_TO_NEAREST_INT) |
                      (uint32_t)_cvtss_sh(from[1], _MM_FROUND_TO_NEAREST_INT) << 16;
            } else {
                VM_REG(w, d[2 * top], float)[l] = from[0];
                VM_REG(w, d[2 * top + 1], float)[l] = from[1];
            }
        }
}

/* The accumulator of the FP8 units keeps fewer bits of the mantissa than float32 has. */
static void cut_sums(float sums[ROWS][COLUMNS]) {
    int32_t bits = vm_settings()->fp8_bits;
    if (bits <= 0 || bits >= 23)
        return;
    uint32_t keep = ~((1u << (23 - bits)) - 1);
    for (int n = 0; n < ROWS * COLUMNS; n++) {
        uint32_t u;
        memcpy(&u, &sums[0][n], 4);
        u &= keep;
        memcpy(&sums[0][n], &u, 4);
    }
}

static void multiply(const struct vm_warp *w, const struct vm_inst *i, const struct fragments *f,
                     float sums[ROWS][COLUMNS]) {
    float a[ROWS][VM_MMA_MAX_K], b[VM_MMA_MAX_K][COLUMNS], column[16];
    uint32_t n = elements_per_row(i->type);
    for (uint32_t r = 0; r < f->num_a; r++)
        for (uint32_t g = 0; g < 8; g++)
            widen(i->type, w->r + f->a[r] + 16 * g, &a[8 * (r & 1) + g][(r >> 1) * n]);
    for (uint32_t r = 0; r < f->num_b; r++)
        for (uint32_t g = 0; g < 8; g++) {
            widen(i->op, w->r + f->b[r] + 16 * g, column);
            for (uint32_t k = 0; k < n; k++)
                b[r * n + k][g] = column[k];
        }
    for (int row = 0; row < ROWS; row++) {
        __m256 sum = _mm256_loadu_ps(sums[row]);
        for (uint32_t k = 0; k < i->size; k++)
            sum = _mm256_add_ps(
                sum, _mm256_mul_ps(_mm256_broadcast_ss(&a[row][k]), _mm256_loadu_ps(b[k])));
        _mm256_storeu_ps(sums[row], sum);
    }
}

static int32_t integer_at(uint32_t type, const uint8_t *p) {
    return type == VM_MAT_S8 ? (int8_t)*p : *p;
}

/* s8 and u8: lane l computes its own four sums. ftz stands for .satfinite. */
static void multiply_integers(struct vm_warp *w, const struct vm_inst *i,
                              const struct fragments *f) {
    int32_t out[4][VM_WARP];
    for (int n = 0; n < 4; n++)
        for (int l = 0; l < VM_WARP; l++) {
            int row = l / 4, column = 2 * (l % 4) + (n & 1);
            int64_t sum = VM_REG(w, f->c[n], int32_t)[l];
            for (uint32_t k = 0; k < i->size; k++) {
                const uint8_t *a = w->r + f->a[2 * (k / 16) + (uint32_t)(n >> 1)];
                const uint8_t *b = w->r + f->b[k / 16];
                sum += (int64_t)integer_at(i->type, a + 16 * row + k % 16) *
                       integer_at(i->op, b + 16 * column + k % 16);
            }
            if (i->ftz)
                sum = sum > INT32_MAX ? INT32_MAX : sum < INT32_MIN ? INT32_MIN : sum;
            out[n][l] = (int32_t)sum;
        }
    for (int n = 0; n < 4; n++)
        memcpy(w->r + f->d[n], out[n], sizeof out[n]);
}

void vm_mma(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    float sums[ROWS][COLUMNS];
    bool fp8 = i->type == VM_MAT_E4M3 || i->type == VM_MAT_E5M2;
    if (!vm_collect(w, i, &m, NULL))
        return;
    w->block->worker->counters.mma++;
    struct fragments f = fragments_of(i);
    if (i->type >= VM_MAT_S8) {
        multiply_integers(w, i, &f);
        return;
    }
    load_sums(w, f.c, i->sat, sums);
    if (fp8) {
        pthread_once(&fp8_once, fill_fp8);
        cut_sums(sums);
    }
    multiply(w, i, &f, sums);
    if (fp8)
        cut_sums(sums);
    store_sums(w, f.d, i->kind, sums);
}
