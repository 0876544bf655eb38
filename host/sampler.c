#include "host/sampler.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/dtype.h"
#include "host/error.h"
#include "host/mem.h"

enum { RADIX_BUCKETS = 2048 };

/* Four floats side by side: GCC's and Clang's vector extension, lowered to whatever there is. */
typedef float f32x4 __attribute__((vector_size(16)));
typedef uint32_t u32x4 __attribute__((vector_size(16)));
typedef double f64x4 __attribute__((vector_size(32)));

struct candidate {
    int32_t id;
    float weight; /* exp((x - max) / temperature) */
    uint32_t key; /* orders as x does */
};

struct sampler {
    int32_t vocab_size;
    float *row;                   /* [V] logits after the penalties; owned, as all below */
    float *weights;               /* [V] rounded up to a multiple of 4 */
    struct candidate *candidates; /* [V] */
    uint64_t *buckets;            /* [RADIX_BUCKETS] */
};

/* --- counts of seen tokens ------------------------------------------------------------------ */

void token_counts_init(struct token_counts *c, int32_t max_entries) {
    uint32_t num_slots = 16;
    while (num_slots < 2 * (uint32_t)max_entries)
        num_slots *= 2;
    memset(c, 0, sizeof *c);
    c->max_entries = max_entries;
    c->slot_mask = num_slots - 1;
    c->entries = xmalloc((size_t)max_entries * sizeof *c->entries);
    c->slots = xmalloc(num_slots * sizeof *c->slots);
    memset(c->slots, 0xff, num_slots * sizeof *c->slots);
}

void token_counts_deinit(struct token_counts *c) {
    free(c->entries);
    free(c->slots);
    memset(c, 0, sizeof *c);
}

void token_counts_add(struct token_counts *c, int32_t token, bool generated) {
    uint32_t slot = (uint32_t)sampler_mix64((uint32_t)token) & c->slot_mask;
    while (c->slots[slot] >= 0 && c->entries[c->slots[slot]].token != token)
        slot = (slot + 1) & c->slot_mask;
    if (c->slots[slot] < 0) {
        CHECK(c->num_entries < c->max_entries, "more than %d distinct tokens", c->max_entries);
        c->slots[slot] = c->num_entries;
        c->entries[c->num_entries++] = (struct token_count){token, 0};
    }
    c->entries[c->slots[slot]].generated += generated;
}

/* --- random numbers ------------------------------------------------------------------------- */

uint64_t sampler_mix64(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

double sampler_uniform(uint64_t seed, int64_t index) {
    const uint64_t gamma = 0x9e3779b97f4a7c15u;
    uint64_t start = sampler_mix64(seed + gamma);
    return (double)(sampler_mix64(start + ((uint64_t)index + 1) * gamma) >> 11) * 0x1p-53;
}

/* --- whole rows ----------------------------------------------------------------------------- */

struct sampler *sampler_create(int32_t vocab_size) {
    CHECK(vocab_size >= 1 && vocab_size <= 1 << (63 - SAMPLER_WEIGHT_BITS), "vocab_size %d",
          vocab_size);
    size_t n = (size_t)vocab_size;
    struct sampler *s = xcalloc(1, sizeof *s);
    s->vocab_size = vocab_size;
    s->row = xmalloc(n * sizeof *s->row);
    s->weights = xmalloc((n + 3) / 4 * 4 * sizeof *s->weights);
    s->candidates = xmalloc(n * sizeof *s->candidates);
    s->buckets = xmalloc(RADIX_BUCKETS * sizeof *s->buckets);
    return s;
}

void sampler_destroy(struct sampler *s) {
    if (!s)
        return;
    free(s->row);
    free(s->weights);
    free(s->candidates);
    free(s->buckets);
    free(s);
}

/* The id of the largest value, the lowest one of several; -1 when there is a NaN or when the
 * largest is not finite. The one comparison per element that finds the maximum finds NaNs as well.
 */
static int32_t argmax(const float *x, int32_t n) {
    float best = -INFINITY;
    int32_t id = -1;
    for (int32_t i = 0; i < n; i++)
        if (!(x[i] <= best)) {
            if (isnan(x[i]))
                return -1;
            best = x[i];
            id = i;
        }
    return id >= 0 && best <= FLT_MAX ? id : -1;
}

/* exp(x) for x <= 0, within 2 ulp; 0 below -86. Cephes' expf: x = n ln 2 + r, a polynomial in r. */
static inline f32x4 exp_f32x4(f32x4 x) {
    const float round_magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    u32x4 in_range = (u32x4)(x >= -86.0f);
    f32x4 shifted = x * 1.44269504088896341f + round_magic;
    f32x4 n = shifted - round_magic;
    f32x4 r = x - n * 0.693359375f + n * 2.12194440e-4f;
    f32x4 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    u32x4 exponent = ((u32x4)shifted - 0x4b400000) << 23; /* n, in the exponent field */
    return (f32x4)(((u32x4)p + exponent) & in_range);
}

static inline f32x4 load_f32x4(const float *p) {
    f32x4 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline double sum_lanes(const f64x4 *v) {
    return ((*v)[0] + (*v)[1]) + ((*v)[2] + (*v)[3]);
}

/* weights[i] = exp((x[i] - max) / temperature), and 0 up to the next multiple of 4; returns their
 * sum in float64. The four partial sums make an order that depends on n alone. */
static double exp_row(float *weights, const float *x, int32_t n, float max, float temperature) {
    float rest[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    int32_t whole = n & ~3;
    f64x4 sum = {0};
    for (int32_t i = 0; i < whole; i += 4) {
        f32x4 v = exp_f32x4((load_f32x4(x + i) - max) / temperature);
        memcpy(weights + i, &v, sizeof v);
        sum += __builtin_convertvector(v, f64x4);
    }
    if (whole < n) {
        memcpy(rest, x + whole, (size_t)(n - whole) * sizeof *x);
        f32x4 v = exp_f32x4((load_f32x4(rest) - max) / temperature);
        memcpy(weights + whole, &v, sizeof v);
        sum += __builtin_convertvector(v, f64x4);
    }
    return sum_lanes(&sum);
}

/* A weight in units of 2^-SAMPLER_WEIGHT_BITS, rounded down. Sums of these are exact. */
static uint64_t fixed_weight(float weight) {
    return (uint64_t)(int64_t)(weight * (float)((int64_t)1 << SAMPLER_WEIGHT_BITS));
}

static float clamp_finite(float x) {
    return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : x;
}

/* x plus what is added to it, kept finite; what is not finite stays as it is. */
static float biased(float x, float bias) {
    return isfinite(x) ? clamp_finite(x + bias) : x;
}

static float penalised(float x, const struct sampling_params *p, int32_t generated) {
    if (!isfinite(x))
        return x;
    x = x > 0 ? x / p->repetition_penalty : x * p->repetition_penalty;
    if (generated > 0)
        x = x - p->frequency_penalty * (float)generated - p->presence_penalty;
    return clamp_finite(x);
}

/* -inf for what the mask leaves out. False: that hides a NaN. */
static bool apply_mask(float *row, const uint32_t *mask, int32_t n) {
    bool hides = false;
    for (int32_t i = 0; i < n; i++) {
        bool allowed = mask[i / 32] >> (i % 32) & 1;
        hides |= !allowed && isnan(row[i]);
        row[i] = allowed ? row[i] : -INFINITY;
    }
    return !hides;
}

/* Steps 1 to 3; what is -inf stays so, so that may come last. Returns the row to go on with, s->row
 * or the logits themselves; NULL for a NaN that -inf would hide. */
static const float *adjust(struct sampler *s, const struct sample_args *a) {
    const struct sampling_params *p = a->params;
    bool penalties = a->counts && sampling_has_penalties(p);
    if (!penalties && a->num_banned == 0 && a->num_biases == 0 && !a->mask)
        return a->logits;
    memcpy(s->row, a->logits, (size_t)s->vocab_size * sizeof *s->row);
    for (int32_t i = 0; i < a->num_biases; i++) {
        float *x = &s->row[a->biases[i].token];
        *x = biased(*x, a->biases[i].bias);
    }
    for (int32_t i = 0; penalties && i < a->counts->num_entries; i++) {
        const struct token_count *c = &a->counts->entries[i];
        s->row[c->token] = penalised(s->row[c->token], p, c->generated);
    }
    if (a->mask && !apply_mask(s->row, a->mask, s->vocab_size))
        return NULL;
    for (int32_t i = 0; i < a->num_banned; i++) {
        if (isnan(s->row[a->banned[i]]))
            return NULL;
        s->row[a->banned[i]] = -INFINITY;
    }
    return s->row;
}

/* --- thresholds ----------------------------------------------------------------------------- */

/* Unsigned integers that order as floats do; -0 counts as 0. */
static uint32_t order_key(float x) {
    uint32_t u = f32_bits(x + 0.0f);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

/* Lists the tokens with at least this weight, by ascending id. */
static int32_t collect(struct sampler *s, const float *x, float min_weight) {
    int32_t n = 0;
    for (int32_t i = 0; i < s->vocab_size; i++)
        if (s->weights[i] >= min_weight)
            s->candidates[n++] = (struct candidate){i, s->weights[i], order_key(x[i])};
    return n;
}

static uint64_t amount(const struct candidate *c, bool by_weight) {
    return by_weight ? fixed_weight(c->weight) : 1;
}

/* Keeps the shortest head of the candidates' order by (key descending, id ascending) whose amounts
 * (weights, or 1 each) add up to at least `target`, and returns how many those are; their order by
 * id stays. The key of the last one is found by radix selection, 11, 11 and 10 bits at a time: sum
 * the amounts by bucket, walk down from the top until the target is reached, look into that bucket.
 */
static int32_t keep_head(struct sampler *s, int32_t n, bool by_weight, uint64_t target) {
    static const struct {
        int32_t shift;
        uint32_t mask;
    } digits[] = {{21, 2047}, {10, 2047}, {0, 1023}};
    struct candidate *c = s->candidates;
    uint32_t prefix = 0, prefix_mask = 0;
    uint64_t above = 0; /* of all keys beyond the prefix */
    for (int32_t level = 0; level < 3; level++) {
        int32_t shift = digits[level].shift;
        uint32_t mask = digits[level].mask, b = mask;
        memset(s->buckets, 0, (mask + 1) * sizeof *s->buckets);
        for (int32_t i = 0; i < n; i++)
            if ((c[i].key & prefix_mask) == prefix)
                s->buckets[c[i].key >> shift & mask] += amount(&c[i], by_weight);
        while (b > 0 && above + s->buckets[b] < target)
            above += s->buckets[b--];
        prefix |= b << shift;
        prefix_mask |= mask << shift;
    }
    int32_t kept = 0;
    for (int32_t i = 0; i < n; i++) {
        bool keep = c[i].key > prefix;
        if (c[i].key == prefix && above < target) {
            above += amount(&c[i], by_weight);
            keep = true;
        }
        if (keep)
            c[kept++] = c[i];
    }
    return kept;
}

static uint64_t sum_weights(const struct candidate *c, int32_t n) {
    uint64_t sum = 0;
    for (int32_t i = 0; i < n; i++)
        sum += fixed_weight(c[i].weight);
    return sum;
}

/* A share, in units of 2^-64, of a total, rounded down. */
static uint64_t share_of(uint64_t share, uint64_t total) {
    return (uint64_t)((unsigned __int128)share * total >> 64);
}

/* What top_p < 1 wants of a total. */
static uint64_t top_p_share(const struct sampling_params *p, uint64_t total) {
    uint64_t part = share_of((uint64_t)(p->top_p * 0x1p64f), total);
    return part > 0 ? part : 1;
}

/* A weight, as large as is easily found, such that the tokens with at least this weight include all
 * that top_k (else top_p) can leave: so candidates are few. Weights are counted by their highest
 * bit. exp rounds neighbours differently, so that a slightly larger x may have a slightly smaller
 * weight: hence a little less than a power of two. *total is the sum of all weights. */
static float candidate_weight(const struct sampler *s, const struct sampling_params *p,
                              bool has_top_k, uint64_t *total) {
    uint64_t mass[SAMPLER_WEIGHT_BITS + 1] = {0}, count[SAMPLER_WEIGHT_BITS + 1] = {0}, sum = 0;
    *total = 0;
    for (int32_t i = 0; i < s->vocab_size; i++) {
        uint64_t weight = fixed_weight(s->weights[i]);
        if (weight > 0) {
            int32_t bit = 63 - __builtin_clzll(weight);
            mass[bit] += weight;
            count[bit]++;
            *total += weight;
        }
    }
    uint64_t target = has_top_k ? (uint64_t)p->top_k : top_p_share(p, *total);
    for (int32_t bit = SAMPLER_WEIGHT_BITS; bit > 0; bit--) {
        sum += has_top_k ? count[bit] : mass[bit];
        if (sum >= target)
            return ldexpf(0.999f, bit - SAMPLER_WEIGHT_BITS);
    }
    return SAMPLER_MIN_WEIGHT;
}

/* Steps 5 to 7 over s->weights. Returns how many candidates are left. */
static int32_t filter(struct sampler *s, const float *x, const struct sampling_params *p) {
    bool has_top_k = p->top_k > 0 && p->top_k < s->vocab_size;
    uint64_t total = 0;
    float min_weight = p->min_p > 0 ? p->min_p : candidate_weight(s, p, has_top_k, &total);
    int32_t n = collect(s, x, fmaxf(min_weight, SAMPLER_MIN_WEIGHT));
    if (has_top_k && p->top_k < n)
        n = keep_head(s, n, false, (uint64_t)p->top_k);
    if (has_top_k || p->min_p > 0)
        total = sum_weights(s->candidates, n);
    if (p->top_p < 1)
        n = keep_head(s, n, true, top_p_share(p, total));
    return n;
}

/* Steps 4 to 8. */
static int32_t draw(struct sampler *s, const float *x, float max, const struct sampling_params *p,
                    int64_t index) {
    uint64_t total = 0, sum = 0;
    uint64_t u = (uint64_t)(sampler_uniform(p->seed, index) * 0x1p64);
    int32_t token = -1;
    exp_row(s->weights, x, s->vocab_size, max, p->temperature);
    if (p->min_p <= 0 && p->top_p >= 1 && (p->top_k <= 0 || p->top_k >= s->vocab_size)) {
        for (int32_t i = 0; i < s->vocab_size; i++)
            total += fixed_weight(s->weights[i]);
        uint64_t target = share_of(u, total);
        for (int32_t i = 0; i < s->vocab_size && sum <= target; i++)
            if (s->weights[i] >= SAMPLER_MIN_WEIGHT) {
                sum += fixed_weight(s->weights[i]);
                token = i;
            }
        return token;
    }
    int32_t n = filter(s, x, p);
    uint64_t target = share_of(u, sum_weights(s->candidates, n));
    for (int32_t i = 0; i < n && sum <= target; i++) {
        sum += fixed_weight(s->candidates[i].weight);
        token = s->candidates[i].id;
    }
    return token;
}

/* --- the interface -------------------------------------------------------------------------- */

bool sampling_has_penalties(const struct sampling_params *p) {
    return p->repetition_penalty != 1 || p->presence_penalty != 0 || p->frequency_penalty != 0;
}

int sampler_check(const struct sampler *s, const float *logits) {
    return argmax(logits, s->vocab_size) < 0 ? ERR_INTERNAL : 0;
}

int sampler_sample(struct sampler *s, const struct sample_args *a, struct sample *out) {
    const float *x = adjust(s, a);
    int32_t best = x ? argmax(x, s->vocab_size) : -1;
    if (best < 0)
        return ERR_INTERNAL;
    out->token = a->params->temperature < GREEDY_TEMPERATURE
                     ? best
                     : draw(s, x, x[best], a->params, a->index);
    out->num_top = 0;
    if (a->params->logprobs < 0)
        return 0;
    return sampler_logprobs(s, a->logits, out->token, a->params->logprobs, out);
}

/* Inserts (token, x) into the descending list of at most num_top; of equals the earlier stays
 * first. */
static void insert_top(struct sample *out, int32_t num_top, int32_t token, float x) {
    int32_t i = out->num_top < num_top ? out->num_top++ : num_top - 1;
    for (; i > 0 && out->top_logprobs[i - 1] < x; i--) {
        out->top_logprobs[i] = out->top_logprobs[i - 1];
        out->top_tokens[i] = out->top_tokens[i - 1];
    }
    out->top_logprobs[i] = x;
    out->top_tokens[i] = token;
}

static float logprob_of(float x, double log_sum) {
    double v = (double)x - log_sum + 0.0; /* never -0 */
    return v < (double)LOGPROB_MIN ? LOGPROB_MIN : (float)v;
}

int sampler_logprobs(struct sampler *s, const float *logits, int32_t token, int32_t num_top,
                     struct sample *out) {
    int32_t best = argmax(logits, s->vocab_size);
    if (best < 0)
        return ERR_INTERNAL;
    double sum = exp_row(s->weights, logits, s->vocab_size, logits[best], 1.0f);
    double log_sum = (double)logits[best] + log(sum);
    out->token = token;
    out->logprob = logprob_of(logits[token], log_sum);
    out->num_top = 0;
    for (int32_t i = 0; num_top > 0 && i < s->vocab_size; i++)
        if (out->num_top < num_top || logits[i] > out->top_logprobs[out->num_top - 1])
            insert_top(out, num_top, i, logits[i]);
    for (int32_t i = 0; i < out->num_top; i++)
        out->top_logprobs[i] = logprob_of(out->top_logprobs[i], log_sum);
    return 0;
}
