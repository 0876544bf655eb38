/* Matrix instructions of a warp.
 *
 * In every fragment a register is a matrix of 8 rows of 16 bytes: lane l holds bytes 4 (l % 4) of
 * row l / 4. Register r of A (16 rows) is rows 8 (r % 2) and bytes 16 (r / 2) of them; of B, column
 * l / 4 and bytes 16 r of it. Since the 32 lanes of a register lie side by side, such a matrix is
 * 128 bytes of the register file, row after row.
 */
#include "tests/ptxvm/exec_matrix.h"

#include <immintrin.h>
#include <string.h>

#include "tests/ptxvm/access.h"
#include "tests/ptxvm/settings.h"

enum { ROWS = 16, COLUMNS = 8 };

/* ---- ldmatrix and its relatives -------------------------------------------------------------- */

/* The columns of a matrix of 8 x 8 elements of 16 bits. */
static inline void transpose8(__m128i m[8]) {
    __m128i a[8], b[8];
    for (int n = 0; n < 4; n++) {
        a[2 * n] = _mm_unpacklo_epi16(m[2 * n], m[2 * n + 1]);
        a[2 * n + 1] = _mm_unpackhi_epi16(m[2 * n], m[2 * n + 1]);
    }
    for (int n = 0; n < 2; n++)
        for (int half = 0; half < 2; half++) {
            b[4 * n + 2 * half] = _mm_unpacklo_epi32(a[4 * n + half], a[4 * n + 2 + half]);
            b[4 * n + 2 * half + 1] = _mm_unpackhi_epi32(a[4 * n + half], a[4 * n + 2 + half]);
        }
    for (int n = 0; n < 4; n++) {
        m[2 * n] = _mm_unpacklo_epi64(b[n], b[4 + n]);
        m[2 * n + 1] = _mm_unpackhi_epi64(b[n], b[4 + n]);
    }
}

static inline void load_rows(__m128i m[8], const void *from) {
    for (int r = 0; r < 8; r++)
        m[r] = _mm_loadu_si128((const __m128i *)from + r);
}

static inline void store_rows(void *to, const __m128i m[8]) {
    for (int r = 0; r < 8; r++)
        _mm_storeu_si128((__m128i *)to + r, m[r]);
}

static uint32_t row_lanes(const struct vm_inst *i) {
    return i->vec == 4 ? VM_ALL : (1u << 8 * i->vec) - 1;
}

void vm_ldmatrix(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint64_t at[VM_WARP];
    __m128i rows[8];
    if (!vm_collect(w, i, &m, NULL))
        return;
    vm_addresses(w, i->a, i->wide, i->imm, at);
    vm_resolve(w, i, m & row_lanes(i), (enum ptx_space)i->space, at, 16, VM_READ);
    for (uint32_t n = 0; n < i->vec; n++) {
        for (uint32_t r = 0; r < 8; r++)
            rows[r] = _mm_loadu_si128((const __m128i *)(uintptr_t)at[8 * n + r]);
        if (i->kind)
            transpose8(rows);
        store_rows(w->r + i->more[n], rows);
    }
}

void vm_stmatrix(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint64_t at[VM_WARP];
    __m128i rows[8];
    if (!vm_collect(w, i, &m, NULL))
        return;
    vm_addresses(w, i->a, i->wide, i->imm, at);
    vm_resolve(w, i, m & row_lanes(i), (enum ptx_space)i->space, at, 16, VM_WRITE);
    for (uint32_t n = 0; n < i->vec; n++) {
        load_rows(rows, w->r + i->more[n]);
        if (i->kind)
            transpose8(rows);
        for (uint32_t r = 0; r < 8; r++)
            _mm_storeu_si128((__m128i *)(uintptr_t)at[8 * n + r], rows[r]);
    }
}

void vm_movmatrix(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    __m128i rows[8];
    if (!vm_collect(w, i, &m, NULL))
        return;
    load_rows(rows, w->r + i->a);
    transpose8(rows);
    store_rows(w->r + i->d, rows);
}

/* ---- elements to float32
 * ------------------------------------------------------------------------- */

/* E4M3: exponent and mantissa become those of a float32 that is 2^120 times too small, denormals
 * too. There are no infinities, and one NaN. */
static inline __m256 widen_e4m3(__m128i bytes) {
    __m256i v = _mm256_cvtepu8_epi32(bytes);
    __m256i magnitude = _mm256_and_si256(v, _mm256_set1_epi32(0x7f));
    __m256i sign = _mm256_slli_epi32(_mm256_xor_si256(v, magnitude), 24);
    __m256 f = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(magnitude, 20)),
                             _mm256_set1_ps(0x1p120f));
    __m256i nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
    return _mm256_or_ps(f, _mm256_castsi256_ps(_mm256_or_si256(sign, nan)));
}

/* 8 elements of 16 bits, or the low 8 of 8 bits. E5M2 is the upper half of an f16. */
static inline __m256 widen(uint32_t type, __m128i in) {
    switch (type) {
    case VM_MAT_F16:
        return _mm256_cvtph_ps(in);
    case VM_MAT_BF16:
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(in), 16));
    case VM_MAT_E4M3:
        return widen_e4m3(in);
    default:
        return _mm256_cvtph_ps(_mm_unpacklo_epi8(_mm_setzero_si128(), in));
    }
}

/* ---- mma: D = A B + C
 * ------------------------------------------------------------------------------ */

/* The low 13 bits do not take part. */
static inline __m128i cut_tf32(__m128i v) {
    return _mm_and_si128(v, _mm_set1_epi32((int)0xffffe000u));
}

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
    for (uint32_t row = 0; row < ROWS; row++) {
        uint32_t top = row / 8, lane = 4 * (row % 8);
        if (half) {
            const void *from = VM_REG(w, c[top], uint32_t) + lane;
            _mm256_storeu_ps(sums[row], _mm256_cvtph_ps(_mm_loadu_si128(from)));
        } else {
            __m128 even = _mm_loadu_ps(VM_REG(w, c[2 * top], float) + lane);
            __m128 odd = _mm_loadu_ps(VM_REG(w, c[2 * top + 1], float) + lane);
            _mm_storeu_ps(sums[row], _mm_unpacklo_ps(even, odd));
            _mm_storeu_ps(sums[row] + 4, _mm_unpackhi_ps(even, odd));
        }
    }
}

static void store_sums(struct vm_warp *w, const uint32_t *d, bool half, float sums[ROWS][COLUMNS]) {
    for (uint32_t row = 0; row < ROWS; row++) {
        uint32_t top = row / 8, lane = 4 * (row % 8);
        __m128 left = _mm_loadu_ps(sums[row]), right = _mm_loadu_ps(sums[row] + 4);
        if (half) {
            void *to = VM_REG(w, d[top], uint32_t) + lane;
            __m256 all = _mm256_loadu_ps(sums[row]);
            _mm_storeu_si128(to, _mm256_cvtps_ph(all, _MM_FROUND_TO_NEAREST_INT));
        } else {
            _mm_storeu_ps(VM_REG(w, d[2 * top], float) + lane, _mm_shuffle_ps(left, right, 0x88));
            _mm_storeu_ps(VM_REG(w, d[2 * top + 1], float) + lane,
                          _mm_shuffle_ps(left, right, 0xdd));
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

/* Register r of A: rows 8 (r % 2) + 0..7, and the r / 2-th part of their elements. */
static inline void load_a(const struct vm_warp *w, const struct fragments *f, uint32_t type,
                          float a[ROWS][VM_MMA_MAX_K]) {
    __m128i rows[8];
    for (uint32_t r = 0; r < f->num_a; r++) {
        load_rows(rows, w->r + f->a[r]);
        float(*to)[VM_MMA_MAX_K] = a + 8 * (r & 1);
        uint32_t k = (r >> 1) * elements_per_row(type);
        for (int g = 0; g < 8; g++) {
            if (type == VM_MAT_TF32) {
                _mm_storeu_ps(&to[g][k], _mm_castsi128_ps(cut_tf32(rows[g])));
                continue;
            }
            _mm256_storeu_ps(&to[g][k], widen(type, rows[g]));
            if (elements_per_row(type) == 16)
                _mm256_storeu_ps(&to[g][k + 8], widen(type, _mm_srli_si128(rows[g], 8)));
        }
    }
}

/* Register r of B: the r-th part of the elements of column g; b gets a row for each k. */
static inline void load_b(const struct vm_warp *w, const struct fragments *f, uint32_t type,
                          float b[VM_MMA_MAX_K][COLUMNS]) {
    __m128i rows[8];
    for (uint32_t r = 0; r < f->num_b; r++) {
        load_rows(rows, w->r + f->b[r]);
        float(*to)[COLUMNS] = b + r * elements_per_row(type);
        if (type == VM_MAT_TF32) {
            float column[8][4];
            for (int g = 0; g < 8; g++)
                _mm_storeu_ps(column[g], _mm_castsi128_ps(cut_tf32(rows[g])));
            for (int g = 0; g < 8; g++)
                for (int k = 0; k < 4; k++)
                    to[k][g] = column[g][k];
            continue;
        }
        transpose8(rows);
        for (int n = 0; n < 8; n++) {
            if (elements_per_row(type) == 8) {
                _mm256_storeu_ps(to[n], widen(type, rows[n]));
                continue;
            }
            /* rows[n] has two elements of each column side by side. */
            __m128i even = _mm_and_si128(rows[n], _mm_set1_epi16(0xff));
            __m128i odd = _mm_srli_epi16(rows[n], 8);
            _mm256_storeu_ps(to[2 * n], widen(type, _mm_packus_epi16(even, even)));
            _mm256_storeu_ps(to[2 * n + 1], widen(type, _mm_packus_epi16(odd, odd)));
        }
    }
}

/* Sums go by rising k. A product of two elements is exact in float32, so that a fused multiply and
 * add rounds as an addition alone. */
static inline void accumulate(float a[ROWS][VM_MMA_MAX_K], float b[VM_MMA_MAX_K][COLUMNS],
                              uint32_t num_k, float sums[ROWS][COLUMNS]) {
    for (int first = 0; first < ROWS; first += 8) {
        __m256 sum[8];
        for (int r = 0; r < 8; r++)
            sum[r] = _mm256_loadu_ps(sums[first + r]);
        for (uint32_t k = 0; k < num_k; k++) {
            __m256 row = _mm256_loadu_ps(b[k]);
            for (int r = 0; r < 8; r++)
                sum[r] = _mm256_fmadd_ps(_mm256_broadcast_ss(&a[first + r][k]), row, sum[r]);
        }
        for (int r = 0; r < 8; r++)
            _mm256_storeu_ps(sums[first + r], sum[r]);
    }
}

static void multiply(const struct vm_warp *w, const struct vm_inst *i, const struct fragments *f,
                     float sums[ROWS][COLUMNS]) {
    float a[ROWS][VM_MMA_MAX_K], b[VM_MMA_MAX_K][COLUMNS];
    /* Each call with a type that the compiler knows. */
    switch (i->type == i->op ? i->type : UINT32_MAX) {
    case VM_MAT_BF16:
        load_a(w, f, VM_MAT_BF16, a);
        load_b(w, f, VM_MAT_BF16, b);
        accumulate(a, b, i->size, sums);
        break;
    case VM_MAT_E4M3:
        load_a(w, f, VM_MAT_E4M3, a);
        load_b(w, f, VM_MAT_E4M3, b);
        accumulate(a, b, i->size, sums);
        break;
    default:
        load_a(w, f, i->type, a);
        load_b(w, f, i->op, b);
        accumulate(a, b, i->size, sums);
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
    if (fp8)
        cut_sums(sums);
    multiply(w, i, &f, sums);
    if (fp8)
        cut_sums(sums);
    store_sums(w, f.d, i->kind, sums);
}
