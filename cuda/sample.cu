/* sample: a token, and logprobs, from each row of logits
 *
 * Shapes   logits [R, V] float; rows [num_rows] say what is wanted of which row of logits.
 * Launch   scan and weigh: grid (num_rows, V / 8192 rounded up), block 256; choose: grid num_rows,
 *          block 1024. Three launches whatever the rows want, as that is known on the device only.
 * Bytes    a row is read by scan, by weigh unless it is greedy without logprobs, and by choose two
 *          to four times when something is filtered; from the L2 cache, as the logits were just
 *          made. V = 151936: scan and weigh have 19 blocks, modelled to take 2 to 4 us each for one
 *          row as for six. choose is one block: 600 KB at some 130 GB/s, 5 us a pass; greedy and
 *          unfiltered rows need no pass. So a step would cost about 4 us greedy, 8 drawn, 20 to 30
 *          with top_k and top_p, next to 600 us and more for making such logits. None is measured.
 * Numerics tokens bit for bit those of host/sampler.c (sample.cuh says how), a function of the row's
 *          own data; logprobs from float32 sums of __expf, within 1e-5.
 * Requires V <= 2^22; counts and biases of a row name a token once; logits, penalties and temperatures as
 *          host/sampling.h has them.
 */
#include <math_constants.h>

#include "cuda/cuda_check.h"
#include "cuda/sample.cuh"

constexpr int CHUNK_THREADS = 256;
constexpr int CHUNK_WARPS = CHUNK_THREADS / WARP;
constexpr int BATCH = 8; /* loads of a thread under way */

/* ---- scan --------------------------------------------------------------------------------------
 */

/* The best pair of x[first .. last); copies the values to `copy` unless that is NULL. */
DEVICE u64 scan_chunk(const float *x, float *copy, int first, int last) {
    u64 best = 0;
    for (int i0 = first + threadIdx.x; i0 < last; i0 += CHUNK_THREADS * BATCH) {
        float v[BATCH];
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            int i = i0 + j * CHUNK_THREADS;
            v[j] = i < last ? x[i] : 0;
        }
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            int i = i0 + j * CHUNK_THREADS;
            if (i < last) {
                u64 pair = make_pair(order_key(v[j]), i);
                best = pair > best ? pair : best;
                if (copy)
                    copy[i] = v[j];
            }
        }
    }
    return best;
}

/* Best of a block, in thread 0. */
DEVICE u64 block_best(u64 pair, u64 scratch[CHUNK_WARPS]) {
    pair = warp_best(pair);
    if (threadIdx.x % WARP == 0)
        scratch[threadIdx.x / WARP] = pair;
    __syncthreads(); /* the best of all warps are there */
#pragma unroll
    for (int w = 0; w < CHUNK_WARPS; w++)
        pair = scratch[w] > pair ? scratch[w] : pair;
    return pair;
}

/* host/sampler.c, as the next two. */
DEVICE float clamp_finite(float x) {
    const float largest = 3.402823466e38f;
    return x > largest ? largest : x < -largest ? -largest : x;
}
DEVICE float biased(float x, float bias) {
    return isfinite(x) ? clamp_finite(__fadd_rn(x, bias)) : x;
}
DEVICE float penalised(float x, const struct sample_row *r, int generated) {
    if (!isfinite(x))
        return x;
    x = x > 0 ? __fdiv_rn(x, r->repetition_penalty) : __fmul_rn(x, r->repetition_penalty);
    if (generated > 0)
        x = __fsub_rn(__fsub_rn(x, __fmul_rn(r->frequency_penalty, (float)generated)),
                      r->presence_penalty);
    return clamp_finite(x);
}

/* -inf for what the mask of the row leaves out of a chunk. True when that hides a NaN. */
DEVICE bool mask_chunk(float *row, const uint32_t *mask, int first, int last,
                       uint32_t words[CHUNK / 32]) {
    bool hides = false;
    for (int i = threadIdx.x; i < (last - first + 31) / 32; i += CHUNK_THREADS)
        words[i] = mask[first / 32 + i];
    __syncthreads(); /* the words of the chunk are there */
    for (int i = first + threadIdx.x; i < last; i += CHUNK_THREADS) {
        bool allowed = words[(i - first) / 32] >> ((i - first) % 32) & 1;
        if (!allowed) {
            hides |= isnan(row[i]);
            row[i] = -CUDART_INF_F;
        }
    }
    return hides;
}

/* Changes the copy of a chunk. True when -inf hides a NaN. */
DEVICE bool adjust_chunk(float *row, const struct sample_launch_args *a, const struct sample_row *r,
                         int first, int last, uint32_t words[CHUNK / 32]) {
    bool hides = false;
    for (int i = threadIdx.x; i < r->biases_num; i += CHUNK_THREADS) {
        struct sample_bias b = a->biases[r->biases_first + i];
        if (b.token >= first && b.token < last)
            row[b.token] = biased(row[b.token], b.bias);
    }
    __syncthreads(); /* biases come before penalties */
    if (sample_has_penalties(r))
        for (int i = threadIdx.x; i < r->counts_num; i += CHUNK_THREADS) {
            struct sample_count c = a->counts[r->counts_first + i];
            if (c.token >= first && c.token < last)
                row[c.token] = penalised(row[c.token], r, c.generated);
        }
    __syncthreads(); /* penalties come before mask and bans, as what is -inf stays so */
    if (r->mask > 0)
        hides = mask_chunk(row, a->masks + (r->mask - 1) * (int64_t)((a->vocab_size + 31) / 32),
                           first, last, words);
    __syncthreads(); /* a ban finds what the mask has left */
    for (int i = threadIdx.x; i < r->banned_num; i += CHUNK_THREADS) {
        int token = a->banned[r->banned_first + i];
        if (token >= first && token < last) {
            hides |= isnan(row[token]);
            row[token] = -CUDART_INF_F;
        }
    }
    __syncthreads(); /* the chunk is as it will be */
    return hides;
}

/* 4 blocks an SM: left to itself the compiler counts on 8, and spills. */
__global__ __launch_bounds__(CHUNK_THREADS, 4) void sample_scan_kernel(struct sample_launch_args a) {
    __shared__ u64 scratch[2][CHUNK_WARPS];
    __shared__ uint32_t words[CHUNK / 32];
    const struct sample_row r = a.rows[blockIdx.x];
    struct sample_space space = sample_space_of(&a, blockIdx.x);
    int c = blockIdx.y, first = c * CHUNK, last = min(a.vocab_size, first + CHUNK);
    bool adjusts = sample_adjusts(&r);

    /* The logits as they came. */
    u64 raw_best = scan_chunk(raw_row(&a, &r), adjusts ? space.row : NULL, first, last);
    raw_best = block_best(raw_best, scratch[0]); /* after its barrier the copy is whole */
    u64 best = raw_best;

    /* Biases, penalties, mask and bans. */
    if (adjusts) {
        bool hides = adjust_chunk(space.row, &a, &r, first, last, words);
        best = scan_chunk(space.row, NULL, first, last);
        best = block_best(hides ? make_pair(KEY_NAN, 0) : best, scratch[1]);
    }
    if (threadIdx.x == 0) {
        space.best[c] = best;
        space.raw_best[c] = raw_best;
    }
    if (c == 0)
        for (int i = threadIdx.x; i < BINS; i += CHUNK_THREADS) {
            space.mass[i] = 0;
            space.count[i] = 0;
        }
}

/* ---- weigh -------------------------------------------------------------------------------------
 */

/* Adds the chunk's weights to the row's histogram. */
DEVICE void weigh_by_bin(struct histogram *h, const struct sample_space *space, const float *x,
                         const struct weighing *w, int first, int last) {
    histogram_clear<CHUNK_THREADS>(h);
    __syncthreads(); /* the histogram is empty */
#pragma unroll 4
    for (int i = first + threadIdx.x; i < last; i += CHUNK_THREADS) {
        int bin;
        u64 weight = weigh(w, x[i], &bin);
        if (weight > 0)
            histogram_add(h, bin, weight);
    }
    __syncthreads(); /* all weights of the chunk are in it */
    for (int i = threadIdx.x; i < BINS; i += CHUNK_THREADS)
        if (h->count[i] > 0) {
            atomicAdd(&space->mass[i], histogram_mass(h, i));
            atomicAdd(&space->count[i], h->count[i]);
        }
}

/* The sum of the chunk's weights, in thread 0. */
DEVICE u64 weigh_all(u64 *scratch, const float *x, const struct weighing *w, int first, int last) {
    u64 sum = 0;
    int bin;
#pragma unroll 4
    for (int i = first + threadIdx.x; i < last; i += CHUNK_THREADS)
        sum += weigh(w, x[i], &bin);
    sum = warp_sum_u64(sum);
    if (threadIdx.x % WARP == 0)
        scratch[threadIdx.x / WARP] = sum;
    __syncthreads(); /* the sums of all warps are there */
    sum = 0;
#pragma unroll
    for (int i = 0; i < CHUNK_WARPS; i++)
        sum += scratch[i];
    return sum;
}

__global__ __launch_bounds__(CHUNK_THREADS) void sample_weigh_kernel(struct sample_launch_args a) {
    __shared__ struct histogram histogram;
    __shared__ u64 scratch[CHUNK_WARPS];
    __shared__ float sums[CHUNK_WARPS];
    const struct sample_row r = a.rows[blockIdx.x];
    struct sample_space space = sample_space_of(&a, blockIdx.x);
    int c = blockIdx.y, first = c * CHUNK, last = min(a.vocab_size, first + CHUNK);
    const float *raw = raw_row(&a, &r);

    if (sample_draws(&r)) {
        u64 best = best_of_chunks(space.best, gridDim.y);
        const struct weighing w = make_weighing(&r, best);
        const float *x = sample_adjusts(&r) ? space.row : raw;
        if (!pair_usable(best))
            return; /* the whole grid row does, and choose says why */
        if (sample_filters(&r, a.vocab_size)) {
            weigh_by_bin(&histogram, &space, x, &w, first, last);
        } else {
            u64 total = weigh_all(scratch, x, &w, first, last);
            if (threadIdx.x == 0)
                space.total[c] = total;
        }
    }
    if (sample_wants_logprobs(&r)) {
        u64 best = best_of_chunks(space.raw_best, gridDim.y);
        float max = key_value(pair_key(best)), sum = 0;
#pragma unroll 8
        for (int i = first + threadIdx.x; i < last; i += CHUNK_THREADS)
            sum += __expf(raw[i] - max);
        sum = block_sum<CHUNK_THREADS>(sum, sums);
        if (threadIdx.x == 0)
            space.raw_sum[c] = sum;
    }
}

/* ---- launcher ----------------------------------------------------------------------------------
 */

size_t sample_workspace_bytes(int32_t max_rows, int32_t vocab_size) {
    return (size_t)max_rows * sample_space_bytes(vocab_size);
}

void sample_launch(const struct sample_launch_args *a, cudaStream_t stream) {
    CHECK(a->vocab_size >= 1 && a->vocab_size <= MAX_SAMPLE_VOCAB, "vocab_size %d", a->vocab_size);
    if (a->num_rows == 0)
        return;
    dim3 grid(a->num_rows, sample_chunks(a->vocab_size));
    sample_scan_kernel<<<grid, CHUNK_THREADS, 0, stream>>>(*a);
    LAUNCH_CHECK();
    sample_weigh_kernel<<<grid, CHUNK_THREADS, 0, stream>>>(*a);
    LAUNCH_CHECK();
    sample_choose_launch(a, stream);
}
