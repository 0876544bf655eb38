/* Blocked for AVX2: a tile of 16 x 4 results stays in registers while k runs. A's rows of a tile
 * and all of B are copied as float32 first, with zeros up to full tiles, so that each result is
 * computed in the same way wherever it stands. */
#include "tests/ptxvm/gemm.h"

#include <immintrin.h>
#include <string.h>

#include "tests/ptxvm/rt_alloc.h"

enum { MR = 16, NR = 4 };

/* ---- elements -------------------------------------------------------------------------------- */

size_t gemm_type_bytes(cudaDataType t) {
    switch (t) {
    case CUDA_R_32F:
        return 4;
    case CUDA_R_16F:
    case CUDA_R_16BF:
        return 2;
    case CUDA_R_8F_E4M3:
        return 1;
    default:
        return 0;
    }
}

size_t gemm_extent(cudaDataType t, int64_t rows, int64_t cols, int64_t ld) {
    return rows && cols ? (size_t)((cols - 1) * ld + rows) * gemm_type_bytes(t) : 0;
}

static float from_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinities, 0x7f is NaN. */
static float widen_e4m3(uint8_t v) {
    uint32_t sign = (uint32_t)(v & 0x80) << 24, exponent = (v >> 3) & 15, mantissa = v & 7;
    if (exponent == 15 && mantissa == 7)
        return from_bits(sign | 0x7fc00000);
    float magnitude =
        exponent ? from_bits((exponent + 120) << 23 | mantissa << 20) : (float)mantissa * 0x1p-9f;
    return sign ? -magnitude : magnitude;
}

/* Reads `count` neighbours as float32. */
static void widen(float *out, const void *in, cudaDataType t, int64_t count) {
    const uint16_t *half = in;
    switch (t) {
    case CUDA_R_32F:
        memcpy(out, in, sizeof(float) * (size_t)count);
        break;
    case CUDA_R_16F:
        for (int64_t i = 0; i < count; i++)
            out[i] = _cvtsh_ss(half[i]);
        break;
    case CUDA_R_16BF:
        for (int64_t i = 0; i < count; i++)
            out[i] = from_bits((uint32_t)half[i] << 16);
        break;
    default: /* CUDA_R_8F_E4M3; others are refused before */
        for (int64_t i = 0; i < count; i++)
            out[i] = widen_e4m3(((const uint8_t *)in)[i]);
        break;
    }
}

static uint16_t narrow_bf16(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return 0x7fff; /* NaN */
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static void store(void *out, cudaDataType t, int64_t i, float v) {
    if (t == CUDA_R_32F)
        ((float *)out)[i] = v;
    else if (t == CUDA_R_16F)
        ((uint16_t *)out)[i] = _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT);
    else
        ((uint16_t *)out)[i] = narrow_bf16(v);
}

static float load(const void *in, cudaDataType t, int64_t i) {
    float v;
    widen(&v, (const char *)in + (size_t)i * gemm_type_bytes(t), t, 1);
    return v;
}

/* ---- packing --------------------------------------------------------------------------------- */

/* Copies `count` lines of an operand, each of k elements, to panel[k][width], zeros beside them.
 * Line i is a row of op(A) or a column of op(B); its elements are neighbours when `along`. */
static void pack(float *panel, int64_t width, int64_t count, int64_t k, const void *x,
                 cudaDataType t, int64_t ld, bool along, float *line) {
    size_t bytes = gemm_type_bytes(t);
    memset(panel, 0, sizeof(float) * (size_t)(width * k));
    if (along) {
        for (int64_t i = 0; i < count; i++) {
            widen(line, (const char *)x + (size_t)(i * ld) * bytes, t, k);
            for (int64_t p = 0; p < k; p++)
                panel[p * width + i] = line[p];
        }
        return;
    }
    for (int64_t p = 0; p < k; p++)
        widen(panel + p * width, (const char *)x + (size_t)(p * ld) * bytes, t, count);
}

/* ---- products -------------------------------------------------------------------------------- */

/* out[NR][MR] = a[k][MR] * b[k][NR] */
static void multiply_tile(float *out, const float *a, const float *b, int64_t k) {
    __m256 sum[NR][2];
    for (int j = 0; j < NR; j++)
        sum[j][0] = sum[j][1] = _mm256_setzero_ps();
    for (int64_t p = 0; p < k; p++) {
        __m256 lo = _mm256_loadu_ps(a + p * MR), hi = _mm256_loadu_ps(a + p * MR + 8);
        for (int j = 0; j < NR; j++) {
            __m256 y = _mm256_broadcast_ss(b + p * NR + j);
            sum[j][0] = _mm256_fmadd_ps(lo, y, sum[j][0]);
            sum[j][1] = _mm256_fmadd_ps(hi, y, sum[j][1]);
        }
    }
    for (int j = 0; j < NR; j++) {
        _mm256_storeu_ps(out + j * MR, sum[j][0]);
        _mm256_storeu_ps(out + j * MR + 8, sum[j][1]);
    }
}

static void store_tile(const struct gemm *g, const float *tile, int64_t row, int64_t col) {
    for (int64_t j = col; j < col + NR && j < g->n; j++)
        for (int64_t i = row; i < row + MR && i < g->m; i++) {
            float v = g->alpha * tile[(j - col) * MR + i - row];
            if (g->beta != 0)
                v += g->beta * load(g->c, g->c_type, j * g->ldc + i);
            if (g->bias)
                v += load(g->bias, g->bias_type, i);
            if (g->relu && v < 0)
                v = 0;
            store(g->d, g->d_type, j * g->ldd + i, v);
        }
}

void gemm_run(const struct gemm *g) {
    /* Alpha 0 does not read A and B. */
    int64_t k = g->alpha == 0 ? 0 : g->k, col_tiles = (g->n + NR - 1) / NR;
    float *a = rt_calloc(sizeof(float) * (size_t)(MR * k));
    float *b = rt_calloc(sizeof(float) * (size_t)(col_tiles * NR * k));
    float *line = rt_calloc(sizeof(float) * (size_t)k), tile[NR * MR];
    for (int64_t col = 0; col < g->n && k; col += NR) {
        int64_t count = g->n - col < NR ? g->n - col : NR;
        size_t skip = (size_t)(g->trans_b ? col : col * g->ldb) * gemm_type_bytes(g->b_type);
        pack(b + col * k, NR, count, k, (const char *)g->b + skip, g->b_type, g->ldb, !g->trans_b,
             line);
    }
    for (int64_t row = 0; row < g->m; row += MR) {
        int64_t count = g->m - row < MR ? g->m - row : MR;
        size_t skip = (size_t)(g->trans_a ? row * g->lda : row) * gemm_type_bytes(g->a_type);
        if (k)
            pack(a, MR, count, k, (const char *)g->a + skip, g->a_type, g->lda, g->trans_a, line);
        for (int64_t col = 0; col < g->n; col += NR) {
            multiply_tile(tile, a, b + col * k, k);
            store_tile(g, tile, row, col);
        }
    }
    rt_free(line);
    rt_free(b);
    rt_free(a);
}
