/* sample_choose: from the chunks of a row to a token and its logprobs
 *
 * Shapes   as sample.cu, of which it is the last kernel.
 * Launch   grid num_rows, block 1024, one block a row.
 * Numerics what is kept after top_k and top_p is a head of the tokens by (value descending, token
 *          ascending): a cut (key, token), up to which tokens stay. A cut is found by the histogram
 *          that weigh made of (max - x) / temperature: the bin in which the target falls is a range
 *          of keys, whose tokens are gathered and sorted, or, when they are more than 1024, looked
 * at through a histogram of that range, until they are few or have all the same key. Sums are
 *          integers, so that neither atomics nor the order of gathering matter.
 */
#include <math_constants.h>

#include "cuda/cuda_check.h"
#include "cuda/sample.cuh"

constexpr int CHOOSE_THREADS = 1024;
constexpr int CHOOSE_WARPS = CHOOSE_THREADS / WARP;
constexpr int ROW_BATCH = 4; /* loads of a thread under way */

static_assert(CHOOSE_THREADS == BINS && CHOOSE_WARPS == WARP, "a thread a bin, a lane a warp");

struct choose_shared {
    struct histogram histogram;
    u64 list[CHOOSE_THREADS];
    u64 sums[CHOOSE_WARPS];
    u64 above, value;
    uint32_t low, high, bin;
    int count;
};

/* The tokens that count, and for how much. */
struct keeping {
    const float *x; /* the row, after penalties and bans */
    struct weighing weighing;
    uint32_t
        cut_key; /* a token is kept when its key is larger, or equal with a token <= cut_token */
    int cut_token;
    bool ties; /* instead: tokens with key cut_key count 1 each */
};

DEVICE u64 amount_of(const struct keeping *k, float x, int token) {
    uint32_t key = order_key(x);
    int bin;
    if (k->ties)
        return key == k->cut_key;
    bool kept = key > k->cut_key || (key == k->cut_key && token <= k->cut_token);
    return kept ? weigh(&k->weighing, x, &bin) : 0;
}

/* ---- sums over a block -------------------------------------------------------------------------
 */

DEVICE int lowest_lane(uint32_t lanes) {
    return __popc((lanes & (~lanes + 1)) - 1);
}

/* Inclusive sum over the threads of a block; *total gets the sum of all. */
DEVICE u64 block_inclusive_sum(u64 v, u64 *total, struct choose_shared *s) {
    int warp = threadIdx.x / WARP;
    v = warp_inclusive_sum(v);
    __syncthreads(); /* nobody reads the sums of an earlier call any more */
    if (threadIdx.x % WARP == WARP - 1)
        s->sums[warp] = v;
    __syncthreads(); /* the sums of all warps are there */
    u64 warps = warp_inclusive_sum(s->sums[threadIdx.x % WARP]);
    u64 before = __shfl_sync(ALL_LANES, warps, (warp + WARP - 1) % WARP);
    *total = __shfl_sync(ALL_LANES, warps, WARP - 1);
    return warp > 0 ? before + v : v;
}

/* Descending. */
DEVICE u64 block_sort(u64 v, struct choose_shared *s) {
    int i = threadIdx.x;
    for (int size = 2; size <= CHOOSE_THREADS; size *= 2)
        for (int step = size / 2; step > 0; step /= 2) {
            u64 other;
            if (step < WARP) {
                other = __shfl_xor_sync(ALL_LANES, v, step);
            } else {
                s->list[i] = v;
                __syncthreads(); /* all values are there */
                other = s->list[i ^ step];
                __syncthreads(); /* and read */
            }
            bool lower = (i & step) == 0, descending = (i & size) == 0;
            v = (lower == descending) == (other > v) ? other : v;
        }
    return v;
}

/* ---- searching along a row ---------------------------------------------------------------------
 */

/* The sum over tokens [first, last). Leaves in s->sums the sums of 32 equal parts, one a warp. */
DEVICE u64 sum_range(const struct keeping *k, int first, int last, struct choose_shared *s) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int part = (last - first + WARP - 1) / WARP;
    int begin = min(last, first + warp * part), end = min(last, begin + part);
    u64 sum = 0;
    for (int i0 = begin + lane; i0 < end; i0 += WARP * ROW_BATCH) {
        float v[ROW_BATCH];
#pragma unroll
        for (int j = 0; j < ROW_BATCH; j++)
            v[j] = i0 + j * WARP < end ? k->x[i0 + j * WARP] : 0;
#pragma unroll
        for (int j = 0; j < ROW_BATCH; j++)
            if (i0 + j * WARP < end)
                sum += amount_of(k, v[j], i0 + j * WARP);
    }
    sum = warp_sum_u64(sum);
    __syncthreads(); /* nobody reads earlier sums any more */
    if (lane == 0)
        s->sums[warp] = sum;
    __syncthreads(); /* the sums of all parts are there */
    return warp_sum_u64(s->sums[lane]);
}

/* The first token of [first, last) at which the running sum exceeds `target`, which is less than
 * the sum of all. Follows a call of sum_range over these tokens; every warp looks for itself which
 * of the 32 parts it is in, and all add up the parts of that one. */
DEVICE int find_in_order(const struct keeping *k, int first, int last, u64 target,
                         struct choose_shared *s) {
    for (;;) {
        int part = (last - first + WARP - 1) / WARP;
        u64 sum = s->sums[threadIdx.x % WARP], upto = warp_inclusive_sum(sum);
        int found = lowest_lane(__ballot_sync(ALL_LANES, upto > target));
        first += found * part;
        target -= __shfl_sync(ALL_LANES, upto - sum, found);
        if (part == 1)
            return first;
        last = min(last, first + part);
        sum_range(k, first, last, s);
    }
}

/* ---- cuts --------------------------------------------------------------------------------------
 */

/* The bin of a finite value, BINS for one that is certainly below the least weight. */
DEVICE int bin_of(const struct weighing *w, uint32_t key) {
    float difference = __fsub_rn(key_value(key), w->max);
    if (!(difference >= w->low))
        return BINS;
    return min(BINS - 1, (int)(__fdiv_rn(difference, w->temperature) * -BINS_A_UNIT));
}

/* The smallest key up to that of the row's largest value whose bin is at most `bin`; by one warp,
 * which tries 32 keys at a time. */
DEVICE uint32_t smallest_key(const struct weighing *w, int bin) {
    u64 first = KEY_MINUS_INFINITY + 1, last = order_key(w->max);
    for (;;) {
        u64 step = (last - first + WARP) / WARP;
        u64 key = first + (threadIdx.x % WARP + 1) * step - 1;
        bool up_to = bin_of(w, (uint32_t)(key < last ? key : last)) <= bin;
        int found = lowest_lane(__ballot_sync(ALL_LANES, up_to));
        first += found * step;
        if (step == 1)
            return (uint32_t)first;
        last = first + step - 1 < last ? first + step - 1 : last;
    }
}

/* The one thread in whose amount the running sum over the threads, from `above` on, reaches
 * `target` says so. */
DEVICE bool reaches(u64 amount, u64 upto, u64 above, u64 target) {
    return above + upto >= target && above + upto - amount < target;
}

/* Lists the pairs of all tokens that have a weight and a key in [s->low, s->high], as far as there
 * is room, and counts them in s->count; both in no certain order. */
DEVICE void gather(const struct keeping *k, int V, struct choose_shared *s) {
    int lane = threadIdx.x % WARP, bin;
    uint32_t low = s->low, high = s->high;
    if (threadIdx.x == 0)
        s->count = 0;
    __syncthreads(); /* the list is empty */
    for (int i0 = threadIdx.x - lane; i0 < V; i0 += CHOOSE_THREADS * ROW_BATCH) {
        float v[ROW_BATCH];
#pragma unroll
        for (int j = 0; j < ROW_BATCH; j++) {
            int i = i0 + j * CHOOSE_THREADS + lane;
            v[j] = i < V ? k->x[i] : -CUDART_INF_F;
        }
#pragma unroll
        for (int j = 0; j < ROW_BATCH; j++) {
            uint32_t key = order_key(v[j]);
            bool in = key >= low && key <= high && weigh(&k->weighing, v[j], &bin) > 0;
            uint32_t lanes = __ballot_sync(ALL_LANES, in);
            int at = 0;
            if (lanes && lane == 0)
                at = atomicAdd(&s->count, __popc(lanes));
            at = __shfl_sync(ALL_LANES, at, 0) + __popc(lanes & ((1u << lane) - 1));
            if (in && at < CHOOSE_THREADS)
                s->list[at] = make_pair(key, i0 + j * CHOOSE_THREADS + lane);
        }
    }
    __syncthreads(); /* the list is whole */
}

/* Narrows [s->low, s->high] to the BINS-th part of it in which the target falls, and adds to
 * s->above what lies above that part. */
DEVICE void narrow(const struct keeping *k, int V, bool by_weight, u64 target,
                   struct choose_shared *s) {
    uint32_t low = s->low, high = s->high;
    u64 above = s->above, total;
    int shift = 0, unused;
    while ((high - low) >> shift >= BINS)
        shift++;
    histogram_clear<CHOOSE_THREADS>(&s->histogram);
    __syncthreads(); /* the histogram is empty */
    for (int i = threadIdx.x; i < V; i += CHOOSE_THREADS) {
        float x = k->x[i];
        uint32_t key = order_key(x);
        if (key >= low && key <= high) {
            u64 weight = weigh(&k->weighing, x, &unused);
            if (weight > 0)
                histogram_add(&s->histogram, (high - key) >> shift, weight);
        }
    }
    __syncthreads(); /* all tokens of the range are in it */
    u64 amount =
        by_weight ? histogram_mass(&s->histogram, threadIdx.x) : s->histogram.count[threadIdx.x];
    u64 upto = block_inclusive_sum(amount, &total, s);
    if (reaches(amount, upto, above, target)) {
        s->above = above + upto - amount;
        s->high = high - (threadIdx.x << shift);
        s->low = max(low, s->high - ((1u << shift) - 1));
    }
    __syncthreads(); /* the range is the narrower one */
}

/* Cuts behind the token with which the amounts, weights or 1 each, reach `target` >= 1, which is at
 * most the amount of all. */
DEVICE void cut(struct keeping *k, const struct sample_space *space, int V, bool by_weight,
                u64 target, struct choose_shared *s) {
    u64 total, amount = by_weight ? space->mass[threadIdx.x] : space->count[threadIdx.x];
    u64 upto = block_inclusive_sum(amount, &total, s);
    if (reaches(amount, upto, 0, target)) {
        s->bin = threadIdx.x;
        s->above = upto - amount;
    }
    __syncthreads(); /* the bin is known */
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (warp == 0) {
        uint32_t low = smallest_key(&k->weighing, s->bin);
        if (lane == 0)
            s->low = low;
    } else if (warp == 1) {
        uint32_t high =
            s->bin == 0 ? order_key(k->weighing.max) : smallest_key(&k->weighing, s->bin - 1) - 1;
        if (lane == 0)
            s->high = high;
    }
    __syncthreads(); /* its range of keys as well */

    for (;;) {
        gather(k, V, s);
        if (s->count <= CHOOSE_THREADS || s->low == s->high)
            break;
        narrow(k, V, by_weight, target, s);
    }
    int unused;
    if (s->count > CHOOSE_THREADS) { /* more ties than the list has room for */
        struct keeping ties = *k;
        ties.ties = true;
        ties.cut_key = s->low;
        amount = by_weight ? weigh(&k->weighing, key_value(s->low), &unused) : 1;
        u64 wanted = (target - s->above + amount - 1) / amount;
        sum_range(&ties, 0, V, s);
        k->cut_key = ties.cut_key;
        k->cut_token = find_in_order(&ties, 0, V, wanted - 1, s);
        return;
    }
    u64 pair = (int)threadIdx.x < s->count ? s->list[threadIdx.x] : 0;
    __syncthreads(); /* the list is read */
    pair = block_sort(pair, s);
    amount = pair > 0 ? by_weight ? weigh(&k->weighing, key_value(pair_key(pair)), &unused) : 1 : 0;
    upto = block_inclusive_sum(amount, &total, s);
    if (reaches(amount, upto, s->above, target))
        s->value = pair;
    __syncthreads(); /* the last pair that stays is known */
    k->cut_key = pair_key(s->value);
    k->cut_token = pair_token(s->value);
}

/* ---- drawing -----------------------------------------------------------------------------------
 */

/* sampler_uniform, in units of 2^-64: its 53 bits, and zeros. */
DEVICE u64 mix64(u64 x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}
DEVICE u64 uniform(u64 seed, int64_t index) {
    const u64 gamma = 0x9e3779b97f4a7c15u;
    u64 start = mix64(seed + gamma);
    return mix64(start + ((u64)index + 1) * gamma) & ~(u64)0x7ff;
}

/* A share, in units of 2^-64, of a total, rounded down. */
DEVICE u64 share_of(u64 share, u64 total) {
    return __umul64hi(share, total);
}

/* Nothing is filtered: the sums of the chunks say which chunk it is. */
DEVICE int draw_from_all(const struct keeping *k, const struct sample_row *r,
                         const struct sample_space *space, int V, struct choose_shared *s) {
    int lane = threadIdx.x % WARP, chunks = sample_chunks(V), chunk = 0;
    u64 total = 0;
    for (int c = lane; c < chunks; c += WARP)
        total += space->total[c];
    u64 target = share_of(uniform(r->seed, r->index), warp_sum_u64(total));
    for (;; chunk += WARP) {
        u64 sum = chunk + lane < chunks ? space->total[chunk + lane] : 0;
        u64 upto = warp_inclusive_sum(sum), all = __shfl_sync(ALL_LANES, upto, WARP - 1);
        if (all > target) {
            int found = lowest_lane(__ballot_sync(ALL_LANES, upto > target));
            chunk += found;
            target -= __shfl_sync(ALL_LANES, upto - sum, found);
            break;
        }
        target -= all;
    }
    int first = chunk * CHUNK, last = min(V, first + CHUNK);
    sum_range(k, first, last, s);
    return find_in_order(k, first, last, target, s);
}

/* Steps 5 to 8 of host/sampler.h. */
DEVICE int draw_filtered(struct keeping *k, const struct sample_row *r,
                         const struct sample_space *space, int V, struct choose_shared *s) {
    u64 total, counted;
    bool has_top_k = sample_has_top_k(r, V);
    if (has_top_k) {
        block_inclusive_sum(space->count[threadIdx.x], &counted, s);
        if ((u64)r->top_k < counted)
            cut(k, space, V, false, (u64)r->top_k, s);
    }
    if (r->top_p < 1) {
        if (has_top_k)
            total = sum_range(k, 0, V, s);
        else
            block_inclusive_sum(space->mass[threadIdx.x], &total, s);
        u64 target = share_of(__float2ull_rz(r->top_p * 0x1p64f), total);
        cut(k, space, V, true, target > 0 ? target : 1, s);
    }
    total = sum_range(k, 0, V, s);
    return find_in_order(k, 0, V, share_of(uniform(r->seed, r->index), total), s);
}

/* ---- logprobs ----------------------------------------------------------------------------------
 */

DEVICE float logprob_of(float x, float max, float log_sum) {
    return fmaxf(x - max - log_sum, LOGPROB_MIN);
}

/* The best pair of the row that is less than `below`, of the tokens that are this thread's. */
DEVICE u64 best_below(const float *x, int V, u64 below) {
    u64 best = 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < V; i += CHOOSE_THREADS) {
        u64 pair = make_pair(order_key(x[i]), i);
        best = pair < below && pair > best ? pair : best;
    }
    return best;
}

/* Lists the pairs that are at least `least`, as gather. */
DEVICE void gather_pairs(const float *x, int V, u64 least, struct choose_shared *s) {
    if (threadIdx.x == 0)
        s->count = 0;
    __syncthreads(); /* the list is empty */
#pragma unroll 4
    for (int i = threadIdx.x; i < V; i += CHOOSE_THREADS) {
        u64 pair = make_pair(order_key(x[i]), i);
        if (pair >= least) {
            int at = atomicAdd(&s->count, 1);
            if (at < CHOOSE_THREADS)
                s->list[at] = pair;
        }
    }
    __syncthreads(); /* the list is whole */
}

/* The `num` best pairs of the row, in threads 0 .. num - 1. The num-th largest of the threads' own
 * best is a bound: at least num pairs reach it, and only pairs of num threads can. They almost
 * always fit into the list; if not, they are taken one by one. */
DEVICE u64 top_pairs(const float *x, int V, int num, struct choose_shared *s) {
    u64 mine = block_sort(best_below(x, V, ~(u64)0), s);
    if ((int)threadIdx.x == num - 1)
        s->value = mine;
    __syncthreads(); /* the bound is known */
    gather_pairs(x, V, s->value > 0 ? s->value : 1, s);
    if (s->count <= CHOOSE_THREADS) {
        mine = (int)threadIdx.x < s->count ? s->list[threadIdx.x] : 0;
        __syncthreads(); /* the list is read */
        return block_sort(mine, s);
    }
    u64 last = ~(u64)0, found = 0;
    for (int n = 0; n < num; n++) {
        u64 best = warp_best(best_below(x, V, last));
        __syncthreads(); /* nobody reads the bests of the round before any more */
        if (threadIdx.x % WARP == 0)
            s->sums[threadIdx.x / WARP] = best;
        __syncthreads(); /* the bests of all warps are there */
        last = warp_best(s->sums[threadIdx.x % WARP]);
        found = (int)threadIdx.x == n ? last : found;
    }
    return found;
}

DEVICE void write_logprobs(struct sample_result *out, const float *raw, const struct sample_row *r,
                           const struct sample_space *space, int V, int token,
                           struct choose_shared *s) {
    int chunks = sample_chunks(V), num = min(r->num_top, min(V, (int)SAMPLE_MAX_TOP));
    float sum = 0;
    for (int c = threadIdx.x % WARP; c < chunks; c += WARP)
        sum += space->raw_sum[c];
    float max = key_value(pair_key(best_of_chunks(space->raw_best, chunks)));
    float log_sum = logf(warp_sum(sum));
    if (threadIdx.x == 0) {
        out->logprob = logprob_of(raw[token], max, log_sum);
        out->num_top = num;
    }
    if (num == 0)
        return;
    u64 pair = top_pairs(raw, V, num, s);
    if ((int)threadIdx.x < num) {
        out->top_tokens[threadIdx.x] = pair_token(pair);
        out->top_logprobs[threadIdx.x] = logprob_of(key_value(pair_key(pair)), max, log_sum);
    }
}

/* ---- kernel ------------------------------------------------------------------------------------
 */

__global__
__launch_bounds__(CHOOSE_THREADS) void sample_choose_kernel(struct sample_launch_args a) {
    __shared__ struct choose_shared shared;
    const struct sample_row r = a.rows[blockIdx.x];
    struct sample_space space = sample_space_of(&a, blockIdx.x);
    struct sample_result *out = &a.results[blockIdx.x];
    int V = a.vocab_size, chunks = sample_chunks(V), token = r.token;
    const float *raw = raw_row(&a, &r);
    u64 best = best_of_chunks(space.best, chunks);

    /* Rows that no token can be drawn from. */
    bool usable = pair_usable(best);
    if (sample_wants_logprobs(&r) || token >= 0)
        usable = usable && pair_usable(best_of_chunks(space.raw_best, chunks));
    if (!usable) {
        if (threadIdx.x == 0) {
            out->token = -1;
            out->logprob = 0;
            out->num_top = 0;
        }
        return;
    }

    if (sample_draws(&r)) {
        struct keeping k = {sample_adjusts(&r) ? space.row : raw, make_weighing(&r, best), 0,
                            INT32_MAX, false};
        token = sample_filters(&r, V) ? draw_filtered(&k, &r, &space, V, &shared)
                                      : draw_from_all(&k, &r, &space, V, &shared);
    } else if (token < 0) {
        token = pair_token(best);
    }
    if (threadIdx.x == 0)
        out->token = token;
    if (sample_wants_logprobs(&r)) {
        write_logprobs(out, raw, &r, &space, V, token, &shared);
    } else if (threadIdx.x == 0) {
        out->logprob = 0;
        out->num_top = 0;
    }
}

void sample_choose_launch(const struct sample_launch_args *a, cudaStream_t stream) {
    sample_choose_kernel<<<a->num_rows, CHOOSE_THREADS, 0, stream>>>(*a);
    LAUNCH_CHECK();
}
