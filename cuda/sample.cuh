/* sample: what the kernels of sample.cu and sample_choose.cu share.
 *
 * A row of logits goes through three kernels. The first two cut it into chunks of CHUNK tokens, one
 * block each, so that a single row already keeps many SMs busy; the last is one block a row:
 *
 *   scan    applies biases, penalties, mask and bans (to a copy of the row), finds the largest value
 *           of a chunk
 *   weigh   weights exp((x - max) / temperature) of a chunk: their sum, or a histogram of them
 *   choose  finds the thresholds, draws the token, and makes the logprobs
 *
 * Tokens are the same as host/sampler.c's, bit for bit. So the arithmetic of a weight here is that
 * of exp_f32x4 there, operation by operation, none fused, and weights are added as fixed-point
 * numbers: exactly, in any order, by atomics too.
 *
 * A value is compared as its key, an unsigned integer that orders as floats do; a value with its
 * token as a pair (key, ~token), in which the larger is the better one: the larger value, and of
 * equals the lower token.
 */
#pragma once

#include "cuda/device.cuh"
#include "cuda/kernels.h"
#include "host/sampler.h"

constexpr int CHUNK = 8192;   /* tokens of a block of scan and weigh */
constexpr int BINS = 1024;    /* of histograms; the threads of choose */
constexpr int LIMBS = 5;      /* of a fixed-point weight in a histogram in shared memory, */
constexpr int LIMB_BITS = 10; /* so that 2^22 tokens do not overflow one */
constexpr int MAX_SAMPLE_VOCAB = 1 << (63 - SAMPLER_WEIGHT_BITS);

/* Bins of (max - x) / temperature: 28.5 is where weights end, see low_difference. */
constexpr float BINS_A_UNIT = 35;

static_assert(LIMBS * LIMB_BITS > SAMPLER_WEIGHT_BITS, "a weight of 1 fits its limbs");

typedef unsigned long long u64; /* as the atomics want it */

/* What the kernels leave for each other, for one row. */
struct sample_space {
    u64 *best;       /* [chunks] the best pair after penalties and bans */
    u64 *raw_best;   /* [chunks] the best pair of the logits as they came */
    u64 *total;      /* [chunks] sum of the weights, when nothing is filtered */
    u64 *mass;       /* [BINS] sums of the weights that min_p leaves, by bin, when something is */
    uint32_t *count; /* [BINS] and their number */
    float *raw_sum;  /* [chunks] sum of exp(x - max) of the logits as they came */
    float *row;      /* [V] the row after penalties and bans, if there are any */
};

static __host__ __device__ __forceinline__ int sample_chunks(int vocab_size) {
    return (vocab_size + CHUNK - 1) / CHUNK;
}

static __host__ __device__ __forceinline__ size_t sample_space_bytes(int vocab_size) {
    size_t chunks = (size_t)sample_chunks(vocab_size), row = ((size_t)vocab_size + 1) / 2 * 2;
    return 8 * (3 * chunks + BINS) + 4 * (BINS + (chunks + 1) / 2 * 2 + row);
}

DEVICE struct sample_space sample_space_of(const struct sample_launch_args *a, int i) {
    int chunks = sample_chunks(a->vocab_size);
    struct sample_space s;
    s.best = (u64 *)((char *)a->workspace + i * sample_space_bytes(a->vocab_size));
    s.raw_best = s.best + chunks;
    s.total = s.raw_best + chunks;
    s.mass = s.total + chunks;
    s.count = (uint32_t *)(s.mass + BINS);
    s.raw_sum = (float *)(s.count + BINS);
    s.row = s.raw_sum + (chunks + 1) / 2 * 2;
    return s;
}

/* ---- rows --------------------------------------------------------------------------------------
 */

DEVICE bool sample_has_penalties(const struct sample_row *r) {
    return r->counts_num > 0 &&
           (r->repetition_penalty != 1 || r->presence_penalty != 0 || r->frequency_penalty != 0);
}
/* Does the row need a changed copy? */
DEVICE bool sample_adjusts(const struct sample_row *r) {
    return r->token < 0 &&
           (sample_has_penalties(r) || r->banned_num > 0 || r->biases_num > 0 || r->mask > 0);
}
DEVICE bool sample_draws(const struct sample_row *r) {
    return r->token < 0 && r->temperature >= GREEDY_TEMPERATURE;
}
DEVICE bool sample_has_top_k(const struct sample_row *r, int vocab_size) {
    return r->top_k > 0 && r->top_k < vocab_size;
}
DEVICE bool sample_filters(const struct sample_row *r, int vocab_size) {
    return r->min_p > 0 || r->top_p < 1 || sample_has_top_k(r, vocab_size);
}
DEVICE bool sample_wants_logprobs(const struct sample_row *r) {
    return r->num_top >= 0;
}

DEVICE const float *raw_row(const struct sample_launch_args *a, const struct sample_row *r) {
    return a->logits + (int64_t)r->row * a->vocab_size;
}

/* ---- keys and pairs ----------------------------------------------------------------------------
 */

constexpr uint32_t KEY_MINUS_INFINITY = 0x007fffff, KEY_INFINITY = 0xff800000;
constexpr uint32_t KEY_NAN = 0xffffffff;

/* -0 counts as 0. */
DEVICE uint32_t order_key(float x) {
    uint32_t u = __float_as_uint(__fadd_rn(x, 0.0f));
    return x != x ? KEY_NAN : u & 0x80000000u ? ~u : u | 0x80000000u;
}
DEVICE float key_value(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

DEVICE u64 make_pair(uint32_t key, int token) {
    return (u64)key << 32 | (uint32_t)~token;
}
DEVICE uint32_t pair_key(u64 pair) {
    return (uint32_t)(pair >> 32);
}
DEVICE int pair_token(u64 pair) {
    return (int)~(uint32_t)pair;
}
/* Is the best pair of a row a finite value, and no NaN? */
DEVICE bool pair_usable(u64 best) {
    return pair_key(best) > KEY_MINUS_INFINITY && pair_key(best) < KEY_INFINITY;
}

DEVICE u64 warp_best(u64 pair) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) {
        u64 other = __shfl_xor_sync(ALL_LANES, pair, step);
        pair = other > pair ? other : pair;
    }
    return pair;
}

/* The best of the pairs of all chunks; every warp for itself. */
DEVICE u64 best_of_chunks(const u64 *best, int chunks) {
    u64 pair = 0;
    for (int c = threadIdx.x % WARP; c < chunks; c += WARP)
        pair = best[c] > pair ? best[c] : pair;
    return warp_best(pair);
}

/* ---- weights -----------------------------------------------------------------------------------
 */

/* What the weights of a row depend on. */
struct weighing {
    float max, temperature;
    float min_weight; /* less is none: min_p, or the smallest that is not 0 in fixed point */
    float low;        /* x - max below this is certainly less than min_weight */
};

DEVICE struct weighing make_weighing(const struct sample_row *r, u64 best) {
    struct weighing w;
    w.max = key_value(pair_key(best));
    w.temperature = r->temperature;
    w.min_weight = fmaxf(r->min_p, SAMPLER_MIN_WEIGHT);
    w.low = r->temperature * (logf(w.min_weight) - 0.01f);
    return w;
}

/* exp(x) for -86 <= x <= 0, the bits of exp_f32x4 in host/sampler.c. */
DEVICE float sample_exp(float x) {
    const float round_magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float shifted = __fadd_rn(__fmul_rn(x, 1.44269504088896341f), round_magic);
    float n = __fsub_rn(shifted, round_magic);
    float r = __fadd_rn(__fsub_rn(x, __fmul_rn(n, 0.693359375f)), __fmul_rn(n, 2.12194440e-4f));
    float p = __fadd_rn(__fmul_rn(r, 1.9875691500e-4f), 1.3981999507e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 8.3334519073e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 4.1665795894e-2f);
    p = __fadd_rn(__fmul_rn(p, r), 1.6666665459e-1f);
    p = __fadd_rn(__fmul_rn(p, r), 5.0000001201e-1f);
    p = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.0f);
    uint32_t exponent = (__float_as_uint(shifted) - 0x4b400000u) << 23;
    return __uint_as_float(__float_as_uint(p) + exponent);
}

/* The weight of a finite value or -inf in fixed point, 0 for less than min_weight; its bin goes to
 * *bin when it is not 0. Bins descend with x, as differences and quotients round monotonously. */
DEVICE u64 weigh(const struct weighing *w, float x, int *bin) {
    float difference = __fsub_rn(x, w->max);
    if (!(difference >= w->low))
        return 0;
    float scaled = __fdiv_rn(difference, w->temperature), weight = sample_exp(scaled);
    *bin = min(BINS - 1, (int)(scaled * -BINS_A_UNIT));
    if (!(weight >= w->min_weight))
        return 0;
    return __float2ull_rz(weight * (float)((int64_t)1 << SAMPLER_WEIGHT_BITS));
}

/* ---- histograms in shared memory ---------------------------------------------------------------
 */

/* Sums of fixed-point weights by bin. Native atomics add 32 bits: a weight is added limb by limb,
 * zero limbs, the upper ones of most weights, not at all. */
struct histogram {
    uint32_t limb[LIMBS][BINS], count[BINS];
};

template <int THREADS> DEVICE void histogram_clear(struct histogram *h) {
    for (int i = threadIdx.x; i < BINS; i += THREADS) {
#pragma unroll
        for (int l = 0; l < LIMBS; l++)
            h->limb[l][i] = 0;
        h->count[i] = 0;
    }
}

DEVICE void histogram_add(struct histogram *h, int bin, u64 weight) {
    atomicAdd(&h->count[bin], 1);
#pragma unroll
    for (int l = 0; l < LIMBS; l++) {
        uint32_t limb = (uint32_t)(weight >> l * LIMB_BITS) & ((1 << LIMB_BITS) - 1);
        if (limb > 0)
            atomicAdd(&h->limb[l][bin], limb);
    }
}

DEVICE u64 histogram_mass(const struct histogram *h, int bin) {
    u64 mass = 0;
#pragma unroll
    for (int l = 0; l < LIMBS; l++)
        mass += (u64)h->limb[l][bin] << l * LIMB_BITS;
    return mass;
}

/* ---- sums --------------------------------------------------------------------------------------
 */

DEVICE u64 warp_sum_u64(u64 v) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2)
        v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}
/* Of this lane and those below it. */
DEVICE u64 warp_inclusive_sum(u64 v) {
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
        u64 other = __shfl_up_sync(ALL_LANES, v, step);
        v += threadIdx.x % WARP >= step ? other : 0;
    }
    return v;
}

/* The last of the three kernels (sample_choose.cu). */
void sample_choose_launch(const struct sample_launch_args *a, cudaStream_t stream);
