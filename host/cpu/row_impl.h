/* row_impl: exp, norm, softmax, conversions and the ways that sums are stored. Included by each
 * kernels_<isa>.c after its vec_<isa>.h. Element-wise loops are plain C: without contraction every
 * compiler and instruction set computes the same bits. Sums run in 16 lanes, then in a fixed tree.
 */
#pragma once

#include <math.h>
#include <string.h>

#include "host/cpu/kernels.h"

/* e^x: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial in r (Cephes' expf), times 2^n. Within 2 ulp;
 * exactly 1 at 0; 0 below -87 (so of -inf), largest at 88. */
VEC v16 v16_exp(v16 x) {
    const v16 shift = v16_set1(0x1.8p23f), low = v16_set1(-87);
    v16 c = v16_min(v16_set1(88), v16_max(low, x));
    v16 n = v16_fma(c, v16_set1(1.44269504f), shift);
    v16 k = v16_sub(n, shift);
    v16 r = v16_fma(k, v16_set1(-0.693359375f), c);
    r = v16_fma(k, v16_set1(2.12194440e-4f), r);
    v16 p = v16_fma(v16_set1(1.9875691500e-4f), r, v16_set1(1.3981999507e-3f));
    p = v16_fma(p, r, v16_set1(8.3334519073e-3f));
    p = v16_fma(p, r, v16_set1(4.1665795894e-2f));
    p = v16_fma(p, r, v16_set1(1.6666665459e-1f));
    p = v16_fma(p, r, v16_set1(5.0000001201e-1f));
    p = v16_add(v16_fma(p, v16_mul(r, r), r), v16_set1(1));
    return v16_zero_below(v16_scale_by_power(p, n), x, low);
}

static inline float exp_one(float x) {
    float out[TILE_ROWS];
    v16_store(out, v16_exp(v16_set1(x)));
    return out[0];
}

/* The lanes as a fixed tree: i and i + 8, then + 4, + 2, + 1. */
static inline float v16_sum(v16 v) {
    float f[TILE_ROWS];
    v16_store(f, v);
    for (int half = TILE_ROWS / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            f[i] += f[i + half];
    return f[0];
}

static inline float v16_largest(v16 v) {
    float f[TILE_ROWS];
    v16_store(f, v);
    for (int half = TILE_ROWS / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            f[i] = f[i] > f[i + half] ? f[i] : f[i + half];
    return f[0];
}

/* The first n of 16 floats, `other` behind them; never reads past them. */
static inline v16 load_partial(const float *p, int32_t n, float other) {
    float f[TILE_ROWS];
    if (n >= TILE_ROWS)
        return v16_load(p);
    for (int i = 0; i < TILE_ROWS; i++)
        f[i] = i < n ? p[i] : other;
    return v16_load(f);
}

static inline void store_partial(float *p, int32_t n, v16 v) {
    float f[TILE_ROWS];
    if (n >= TILE_ROWS) {
        v16_store(p, v);
        return;
    }
    v16_store(f, v);
    memcpy(p, f, (size_t)n * sizeof *p);
}

static float row_sum_squares(const float *x, int32_t n) {
    v16 sum = v16_set1(0);
    for (int32_t i = 0; i < n; i += TILE_ROWS) {
        v16 v = load_partial(x + i, n - i, 0);
        sum = v16_fma(v, v, sum);
    }
    return v16_sum(sum);
}

static void row_add_norm(float *restrict x, float *restrict hidden, const double *partial,
                         const float *norm, float eps, int32_t n) {
    if (partial)
        for (int32_t i = 0; i < n; i++)
            hidden[i] += (float)partial[i];
    float scale = 1 / sqrtf(row_sum_squares(hidden, n) / (float)n + eps);
    for (int32_t i = 0; i < n; i++)
        x[i] = hidden[i] * scale * norm[i];
}

static void row_softmax(float *z, int32_t n) {
    v16 max = v16_set1(-INFINITY), sum = v16_set1(0);
    for (int32_t i = 0; i < n; i += TILE_ROWS)
        max = v16_max(max, load_partial(z + i, n - i, -INFINITY));
    v16 m = v16_set1(v16_largest(max));
    for (int32_t i = 0; i < n; i += TILE_ROWS) {
        v16 p = v16_exp(v16_sub(load_partial(z + i, n - i, -INFINITY), m));
        sum = v16_add(sum, p);
        store_partial(z + i, n - i, p);
    }
    float total = v16_sum(sum);
    for (int32_t i = 0; i < n; i++)
        z[i] /= total;
}

static void row_load(float *out, enum dtype dtype, const void *data, int32_t n) {
    const char *p = data;
    size_t size = dtype_bytes(dtype);
    v16 scale = v16_set1(tile_scale(dtype));
    int32_t i = 0;
    for (; i + TILE_ROWS <= n; i += TILE_ROWS) {
        v16 v;
        if (dtype == DTYPE_BF16)
            v = v16_load_dtype(DTYPE_BF16, p);
        else if (dtype == DTYPE_F16)
            v = v16_load_dtype(DTYPE_F16, p);
        else if (dtype == DTYPE_F8_E4M3)
            v = v16_load_dtype(DTYPE_F8_E4M3, p);
        else
            v = v16_load_dtype(DTYPE_F32, p);
        v16_store(out + i, v16_mul(v, scale));
        p += TILE_ROWS * size;
    }
    for (; i < n; i++, p += size) {
        uint32_t element = 0;
        memcpy(&element, p, size);
        out[i] = dtype_load(dtype, &element, 0);
    }
}

static void row_store(void *out, enum dtype dtype, const float *x, int32_t n) {
    if (dtype == DTYPE_F32)
        memcpy(out, x, (size_t)n * sizeof *x);
    else if (dtype == DTYPE_BF16)
        for (int32_t i = 0; i < n; i++)
            ((uint16_t *)out)[i] = bf16_from_f32(x[i]);
    else if (dtype == DTYPE_F16 && n == TILE_ROWS)
        v16_store_f16(out, v16_load(x));
    else
        for (int32_t i = 0; i < n; i++)
            dtype_store(dtype, out, i, x[i]);
}

static void row_norm_rotate(float *restrict x, const float *norm, float rms, float clip,
                            const float *cos_sin, int32_t D) {
    float *restrict lo = x, *restrict hi = x + D / 2;
    if (norm)
        for (int32_t d = 0; d < D; d++)
            x[d] = x[d] * rms * norm[d];
    if (clip > 0)
        for (int32_t d = 0; d < D; d++)
            x[d] = x[d] > clip ? clip : x[d] < -clip ? -clip : x[d];
    for (int32_t i = 0; i < D / 2; i++) {
        float c = cos_sin[i], s = cos_sin[D / 2 + i], x0 = lo[i], x1 = hi[i];
        lo[i] = x0 * c - x1 * s;
        hi[i] = x1 * c + x0 * s;
    }
}

static void round_to_pairs(uint32_t *pairs, const float *x, int32_t n) {
    for (int32_t i = 0; i < n / 2; i++)
        pairs[i] = (uint32_t)bf16_from_f32(x[2 * i]) | (uint32_t)bf16_from_f32(x[2 * i + 1]) << 16;
    if (n % 2)
        pairs[n / 2] = bf16_from_f32(x[n - 1]);
}

/* Element j's total scale. */
static inline void row_scales(const float *scale, float factor, int32_t count, float *out) {
    for (int32_t j = 0; j < count; j++)
        out[j] = (scale ? scale[j] : 1) * factor;
}

static void store_rows(const struct store_args *s, float *y, int64_t ldy, const float *bias) {
    float scale[TILE_GROUP_ROWS];
    row_scales(s->scale, s->factor, s->count, scale);
    for (int32_t i = 0; i < s->num_rows; i++) {
        const float *restrict sum = s->sums + (int64_t)i * TILE_GROUP_ROWS;
        float *restrict out = y + i * ldy;
        if (bias)
            for (int32_t j = 0; j < s->count; j++)
                out[j] = sum[j] * scale[j] + bias[j];
        else
            for (int32_t j = 0; j < s->count; j++)
                out[j] = sum[j] * scale[j];
    }
}

/* Four columns: t + (double)(w * (x * scale)). */
VEC __m256d add_four(__m256d t, const float *x, const float *scale, __m128 w) {
    __m128 value = _mm_mul_ps(w, _mm_mul_ps(_mm_loadu_ps(x), _mm_loadu_ps(scale)));
    return _mm256_add_pd(t, _mm256_cvtps_pd(value));
}

/* Whole tiles, whatever the count is: `total` has room for them. All units while the total is in
 * registers. */
static void add_units(const struct store_args *s, double *total, const float *weight) {
    float scale[TILE_GROUP_ROWS] = {0};
    row_scales(s->scale, s->factor, s->count, scale);
    for (int32_t i = 0; i < s->num_rows; i++)
        for (int32_t j = 0; j < s->count; j += TILE_ROWS) {
            const float *x = s->sums + (int64_t)i * TILE_GROUP_ROWS + j;
            double *out = total + (int64_t)i * TILE_GROUP_ROWS + j;
            __m128 w = _mm_set1_ps(weight ? weight[i] : 1);
            __m256d a = _mm256_loadu_pd(out), b = _mm256_loadu_pd(out + 4);
            __m256d c = _mm256_loadu_pd(out + 8), d = _mm256_loadu_pd(out + 12);
            for (int32_t u = 0; u == 0 || u < s->num_units; u++) {
                a = add_four(a, x, scale + j, w);
                b = add_four(b, x + 4, scale + j + 4, w);
                c = add_four(c, x + 8, scale + j + 8, w);
                d = add_four(d, x + 12, scale + j + 12, w);
                x += (int64_t)s->num_rows * TILE_GROUP_ROWS;
            }
            _mm256_storeu_pd(out, a);
            _mm256_storeu_pd(out + 4, b);
            _mm256_storeu_pd(out + 8, c);
            _mm256_storeu_pd(out + 12, d);
        }
}

static void add_rows(double *partial, int64_t ld, const int32_t *rows, const double *total,
                     int32_t num_rows, int32_t count) {
    for (int32_t i = 0; i < num_rows; i++) {
        double *restrict out = partial + (rows ? rows[i] : i) * ld;
        const double *restrict from = total + (int64_t)i * TILE_GROUP_ROWS;
        for (int32_t j = 0; j < count; j++)
            out[j] += from[j];
    }
}

static void silu_mul(const struct store_args *s, const float *up_scale, float up_factor, float *act,
                     int64_t ld) {
    float gate[TILE_GROUP_ROWS], up[TILE_GROUP_ROWS];
    const v16 one = v16_set1(1), zero = v16_set1(0);
    row_scales(s->scale, s->factor, s->count, gate);
    row_scales(up_scale, up_factor, s->count, up);
    for (int32_t i = 0; i < s->num_rows; i++) {
        const float *sum = s->sums + (int64_t)i * TILE_GROUP_ROWS;
        float *out = act + i * ld;
        for (int32_t j = 0; j < s->count; j += TILE_ROWS) {
            v16 g = v16_mul(v16_load(sum + j), load_partial(gate + j, s->count - j, 0));
            v16 u = v16_mul(v16_load(sum + TILE_GROUP_ROWS / 2 + j),
                            load_partial(up + j, s->count - j, 0));
            v16 silu = v16_div(g, v16_add(one, v16_exp(v16_sub(zero, g))));
            store_partial(out + j, s->count - j, v16_mul(silu, u));
        }
    }
}
