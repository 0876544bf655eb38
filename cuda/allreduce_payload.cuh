/* allreduce_payload: how elements travel, and where in a message they lie.
 *
 * The unit of work is a granule of 4 columns, which one thread encodes or decodes:
 *
 *   BF16  8 bytes   F32  16   F64  32   F8  4, and a scale for 32 granules
 *
 * neighbouring threads side by side, so that a warp moves 128 bytes to 1 KB in one piece. The last
 * granule of a row is filled up with zeros. F8's groups of 32 granules are those of a warp: whoever
 * encodes or decodes comes with whole warps, whose lanes 0 .. 31 have granules 32k .. 32k + 31.
 */
#pragma once

#include "cuda/allreduce.h"
#include "cuda/norm.cuh"

template <int P> struct payload;
template <> struct payload<PAYLOAD_BF16> {
    typedef float type;
    static constexpr int words = 2; /* 4-byte words of a granule */
};
template <> struct payload<PAYLOAD_F32> {
    typedef float type;
    static constexpr int words = 4;
};
template <> struct payload<PAYLOAD_F64> {
    typedef double type;
    static constexpr int words = 8;
};
template <> struct payload<PAYLOAD_F8> {
    typedef float type;
    static constexpr int words = 1;
};

constexpr int GRANULE = 4;                                /* columns */
constexpr int F8_GRANULES = ALLREDUCE_F8_GROUP / GRANULE; /* with one scale */
static_assert(GRANULE == UNIT && F8_GRANULES == WARP, "a unit of the norm is a granule");

static inline __host__ __device__ int payload_words(int payload) {
    return payload == PAYLOAD_BF16  ? 2
           : payload == PAYLOAD_F32 ? 4
           : payload == PAYLOAD_F64 ? 8
                                    : 1;
}

/* ---- slices of a row ------------------------------------------------------------------------- */

/* A row in granules, and its cut into slices, which may be empty: slice s is granules
 * [begin(s), begin(s + 1)), whole groups with F8. */
struct slices {
    int granules, units, unit, num_ranks; /* a unit is what is not cut */
    __host__ __device__ slices(int payload, int row_len, int n)
        : granules((row_len + GRANULE - 1) / GRANULE),
          unit(payload == PAYLOAD_F8 ? F8_GRANULES : 1), num_ranks(n) {
        units = (granules + unit - 1) / unit;
    }
    __host__ __device__ int begin(int s) const {
        return units * s / num_ranks * unit;
    }
    /* Whose slice a granule is in. */
    __host__ __device__ int owner(int granule) const {
        return ((granule / unit + 1) * num_ranks - 1) / units;
    }
    __host__ __device__ int largest() const {
        return (units + num_ranks - 1) / num_ranks * unit;
    }
};

/* ---- encoding -------------------------------------------------------------------------------- */

/* The scale of the warp's 32 granules. */
DEVICE float f8_scale(const float v[GRANULE]) {
    float largest = 0;
#pragma unroll
    for (int j = 0; j < GRANULE; j++)
        largest = fmaxf(largest, fabsf(v[j]));
    largest = warp_max(largest);
    return largest > 0 ? largest / 448 : 1;
}

/* Words of a granule; *scale is set for F8, with whole warps. */
template <int P>
DEVICE void encode(uint32_t *w, float *scale, const typename payload<P>::type v[GRANULE]) {
    if constexpr (P == PAYLOAD_BF16) {
        w[0] = pack_bf16(v[0], v[1]);
        w[1] = pack_bf16(v[2], v[3]);
    } else if constexpr (P == PAYLOAD_F32) {
#pragma unroll
        for (int j = 0; j < GRANULE; j++)
            w[j] = __float_as_uint(v[j]);
    } else if constexpr (P == PAYLOAD_F64) {
#pragma unroll
        for (int j = 0; j < GRANULE; j++) {
            w[2 * j] = (uint32_t)__double2loint(v[j]);
            w[2 * j + 1] = (uint32_t)__double2hiint(v[j]);
        }
    } else {
        *scale = f8_scale(v);
        w[0] = 0;
#pragma unroll
        for (int j = 0; j < GRANULE; j++)
            w[0] |= (uint32_t)float_e4m3(v[j] / *scale) << 8 * j;
    }
}

template <int P>
DEVICE void decode(typename payload<P>::type v[GRANULE], const uint32_t *w, float scale) {
    if constexpr (P == PAYLOAD_BF16) {
        v[0] = bf16_low(w[0]);
        v[1] = bf16_high(w[0]);
        v[2] = bf16_low(w[1]);
        v[3] = bf16_high(w[1]);
    } else if constexpr (P == PAYLOAD_F32) {
#pragma unroll
        for (int j = 0; j < GRANULE; j++)
            v[j] = __uint_as_float(w[j]);
    } else if constexpr (P == PAYLOAD_F64) {
#pragma unroll
        for (int j = 0; j < GRANULE; j++)
            v[j] = __hiloint2double((int)w[2 * j + 1], (int)w[2 * j]);
    } else {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t pair = e4m3_f16((uint16_t)(w[0] >> 16 * h));
            __half2 f;
            memcpy(&f, &pair, sizeof f);
            v[2 * h] = __fmul_rn(__low2float(f), scale); /* never part of an fma: all ways alike */
            v[2 * h + 1] = __fmul_rn(__high2float(f), scale);
        }
    }
}

/* ---- granules in memory ---------------------------------------------------------------------- */

/* A granule's words at p, aligned to their size or 16 bytes. Reads pass the L1 cache by. */
template <int WORDS> DEVICE void load_words(uint32_t *w, const char *p) {
    if constexpr (WORDS == 1) {
        w[0] = __ldcg((const unsigned *)p);
    } else if constexpr (WORDS == 2) {
        uint2 v = __ldcg((const uint2 *)p);
        w[0] = v.x;
        w[1] = v.y;
    } else {
#pragma unroll
        for (int i = 0; i < WORDS; i += 4) {
            uint4 v = __ldcg((const uint4 *)(p + 4 * i));
            w[i] = v.x;
            w[i + 1] = v.y;
            w[i + 2] = v.z;
            w[i + 3] = v.w;
        }
    }
}
template <int WORDS> DEVICE void store_words(char *p, const uint32_t *w) {
    if constexpr (WORDS == 1)
        *(uint32_t *)p = w[0];
    else if constexpr (WORDS == 2)
        *(uint2 *)p = make_uint2(w[0], w[1]);
    else
#pragma unroll
        for (int i = 0; i < WORDS; i += 4)
            *(uint4 *)(p + 4 * i) = make_uint4(w[i], w[i + 1], w[i + 2], w[i + 3]);
}

/* Columns 4q .. 4q + 3 of a row with `cols` of them; zeros past it. wide: the row is aligned to 16
 * bytes. */
template <typename T>
DEVICE void load_granule(T v[GRANULE], const T *row, int q, int cols, bool wide) {
    int c = q * GRANULE;
    if (wide && c + GRANULE <= cols) {
        uint32_t w[GRANULE * sizeof(T) / 4];
        load_words<GRANULE * sizeof(T) / 4>(w, (const char *)(row + c));
        memcpy(v, w, sizeof w);
        return;
    }
#pragma unroll
    for (int j = 0; j < GRANULE; j++)
        v[j] = c + j < cols ? row[c + j] : 0;
}
template <typename T>
DEVICE void store_granule(T *row, const T v[GRANULE], int q, int cols, bool wide) {
    int c = q * GRANULE;
    if (wide && c + GRANULE <= cols) {
        uint32_t w[GRANULE * sizeof(T) / 4];
        memcpy(w, v, sizeof w);
        store_words<GRANULE * sizeof(T) / 4>((char *)(row + c), w);
        return;
    }
#pragma unroll
    for (int j = 0; j < GRANULE; j++)
        if (c + j < cols)
            row[c + j] = v[j];
}

/* ---- the array ------------------------------------------------------------------------------- */

/* Row i's columns that exist, and where it begins in `partial` and `add`. */
DEVICE int row_cols(const struct allreduce_array &a, int i) {
    int64_t left = a.rows ? a.row_len : a.count - (int64_t)i * a.row_len;
    return left < a.row_len ? (int)left : a.row_len;
}
DEVICE int64_t row_start(const struct allreduce_array &a, int i) {
    return (int64_t)(a.rows ? a.rows[i] : i) * a.row_len;
}
