/* allreduce: what a block does in LINES and FLAGS (allreduce.h), and what becomes of a sum.
 *
 * Block b of every rank has the same rows, so that blocks talk to their counterparts alone:
 *   send     the columns of slice d of its part of each row to rank d
 *   reduce   its own slice from all ranks' parts, in rank order, to all
 *   collect  all slices of each row: the sum
 *
 * One set of messages suffices, without a barrier at a call's end: what a call overwrites has been
 * read.
 *   parts     Rank a overwrites its part for rank b in a later call. What b read of the old one, it
 *             read before it sent its result, and a's old call ended with that result in hand: of
 * every column of slice b, and with flags even where the slice is empty. results   Rank b
 * overwrites columns of its result when it has all ranks' parts of these columns, and each rank
 * sent its part after its call before had ended, with all its reads. So it is of no importance
 * which slices are empty, and how sizes and ways (which have memory of their own) follow each
 * other. A rank is at most one call ahead of another: to end a call takes the result of a slice
 * that is not empty, for which every rank has sent its part.
 *
 * Memory order. LINES: a line is two values of 8 bytes, {payload, number} each; 8-byte accesses are
 * not torn, so no other order is needed. FLAGS: the block meets at a barrier, then one thread for
 * each receiver stores the flag with release; a lane for each sender loads it with acquire, and the
 * block meets. Payload is stored and loaded plainly.
 *
 * Waiting. LINES are polled by the warps that want them, flags by one warp of the block; every 16
 * polls a lane looks at the abort word and the clock, and the warp sleeps for a moment.
 */
#pragma once

#include "cuda/allreduce_payload.cuh"
#include "cuda/cuda_check.h"

constexpr int LINE_BYTES = 16;
constexpr int FLAG_BYTES = ALLREDUCE_MAX_BLOCKS * 4; /* the flags of blocks, before the payload */
constexpr int POLLS = 16;                            /* between looks at the abort word */
constexpr unsigned POLL_SLEEP_NS = 200;
constexpr int ALLREDUCE_MAX_THREADS = 512; /* of a block; norm_threads says how many it has */

/* ---- waiting --------------------------------------------------------------------------------- */

DEVICE uint32_t call_number(const struct allreduce_channel &c) {
    return *c.step * ALLREDUCE_CALLS + (uint32_t)c.call + 1;
}

/* Of one block's call. */
struct waiter {
    uint64_t deadline;
    uint32_t polls;
};

DEVICE struct waiter start_waiting(const struct allreduce_channel &c) {
    return {global_timer() + (uint64_t)c.timeout_ns, 0};
}

/* The first trouble of a rank is kept: a warp that sees an abort after a timeout of its own rank
 * sees the status too. */
DEVICE void report_trouble(const struct allreduce_channel &c, enum allreduce_trouble what,
                           int who) {
    if (what == ALLREDUCE_TIMED_OUT) {
        store_relaxed_u64(c.status, allreduce_status(what, who, c.call));
        store_release(c.abort, 1);
    } else if (load_acquire(c.abort) && load_relaxed_u64(c.status) == 0) {
        store_relaxed_u64(c.status, allreduce_status(what, who, c.call));
    }
}

/* A warp has polled in vain: is it to give up? `missing` is a rank that the lane waits for, or -1.
 */
DEVICE bool give_up(const struct allreduce_channel &c, struct waiter &w, int missing) {
    if (++w.polls % POLLS)
        return false;
    unsigned waiting = __ballot_sync(ALL_LANES, missing >= 0);
    int who = __shfl_sync(ALL_LANES, missing, __ffs((int)waiting) - 1), over = 0;
    if (threadIdx.x % WARP == 0) {
        over = load_relaxed(c.abort)         ? ALLREDUCE_ABORTED
               : global_timer() > w.deadline ? ALLREDUCE_TIMED_OUT
                                             : 0;
        if (over)
            report_trouble(c, (enum allreduce_trouble)over, who);
    }
    over = __shfl_sync(ALL_LANES, over, 0);
    if (!over)
        __nanosleep(POLL_SLEEP_NS);
    return over != 0;
}

/* A warp waits until lane s's flag (NULL: none) says the number. */
DEVICE void wait_flags(const struct allreduce_channel &c, struct waiter &w, const uint32_t *flag,
                       uint32_t number) {
    for (;;) {
        bool here = !flag || load_acquire(flag) == number;
        if (__all_sync(ALL_LANES, here) || give_up(c, w, here ? -1 : (int)threadIdx.x % WARP))
            return;
    }
}

/* ---- messages -------------------------------------------------------------------------------- */

/* A call as a block sees it. */
struct exchange {
    struct slices slices;
    uint32_t number;
    int block, num_blocks;
    bool wide; /* rows are aligned to 16 bytes */
};

/* Granule k of a slice of row i in a message of WORDS * 4 bytes a granule, and its scale. */
template <int W, int WORDS> DEVICE int64_t granule_at(const struct exchange &x, int i, int k) {
    int64_t n = (int64_t)i * x.slices.largest() + k;
    return W == ALLREDUCE_LINES ? n * (WORDS / 2 * LINE_BYTES) : FLAG_BYTES + n * (WORDS * 4);
}
DEVICE int64_t scale_at(const struct exchange &x, int num_rows, int i, int k) {
    int64_t largest = x.slices.largest();
    return FLAG_BYTES + num_rows * largest * 4 + (i * largest + k) / F8_GRANULES * 4;
}

/* Writes a granule into a message. */
template <int P, int W>
DEVICE void put(char *message, const struct exchange &x, int num_rows, int i, int k,
                const uint32_t *w, float scale) {
    constexpr int WORDS = payload<P>::words;
    char *at = message + granule_at<W, WORDS>(x, i, k);
    if constexpr (W == ALLREDUCE_LINES) {
        uint64_t number = (uint64_t)x.number << 32;
#pragma unroll
        for (int l = 0; l < WORDS / 2; l++)
            store_relaxed_pair(at + l * LINE_BYTES, w[2 * l] | number, w[2 * l + 1] | number);
    } else {
        store_words<WORDS>(at, w);
        if (P == PAYLOAD_F8 && k % F8_GRANULES == 0)
            *(float *)(message + scale_at(x, num_rows, i, k)) = scale;
    }
}

/* Reads N granules of row i, granule k[j] of a message[j] of rank who[j]; zeros where it is NULL.
 * LINES are waited for. Whole warps. */
template <int P, int W, int N>
DEVICE void get(uint32_t w[][payload<P>::words], float *scale, const struct allreduce_channel &c,
                const struct exchange &x, struct waiter &waiter, int num_rows, int i,
                const char *const *message, const int *who, const int *k) {
    constexpr int WORDS = payload<P>::words;
    for (;;) {
        int missing = -1;
#pragma unroll
        for (int j = 0; j < N; j++) {
            const char *at = message[j] + granule_at<W, WORDS>(x, i, k[j]);
            scale[j] = 1;
#pragma unroll
            for (int n = 0; n < WORDS; n++)
                w[j][n] = 0;
            if (!message[j])
                continue;
            if constexpr (W == ALLREDUCE_LINES) {
#pragma unroll
                for (int l = 0; l < WORDS / 2; l++) {
                    ulonglong2 line = load_relaxed_pair(at + l * LINE_BYTES);
                    w[j][2 * l] = (uint32_t)line.x;
                    w[j][2 * l + 1] = (uint32_t)line.y;
                    if (line.x >> 32 != x.number || line.y >> 32 != x.number)
                        missing = who[j];
                }
            } else {
                load_words<WORDS>(w[j], at);
                if (P == PAYLOAD_F8)
                    scale[j] = __ldcg((const float *)(message[j] + scale_at(x, num_rows, i, k[j])));
            }
        }
        if (W != ALLREDUCE_LINES || __all_sync(ALL_LANES, missing < 0) ||
            give_up(c, waiter, missing))
            return;
    }
}

/* ---- what becomes of a sum ------------------------------------------------------------------- */

/* Row i's norm: h is the sum in granules, unit u of a thread being granule u * threads + its index.
 * Where rows are not aligned, it goes through `row` into the layout that norm.cu has then. */
DEVICE void norm_sum(const struct allreduce_array &a, int i, float h[NORM_MAX_UNITS][UNIT],
                     struct norm_shape shape, float *scratch, float *row) {
    float *hidden = a.norm.hidden + row_start(a, i);
    __syncthreads(); /* nobody needs the shared memory of the row before */
    if (!shape.wide) {
#pragma unroll
        for (int u = 0; u < NORM_MAX_UNITS; u++)
            store_granule(row, h[u], u * shape.threads + (int)threadIdx.x, a.row_len, false);
        __syncthreads(); /* the row is there */
#pragma unroll
        for (int u = 0; u < NORM_MAX_UNITS; u++)
            load_unit(h[u], row, shape, u, a.row_len);
    }
#pragma unroll
    for (int u = 0; u < NORM_MAX_UNITS; u++) {
        float before[UNIT];
        load_unit(before, hidden, shape, u, a.row_len);
#pragma unroll
        for (int j = 0; j < UNIT; j++)
            h[u][j] = before[j] + h[u][j];
        if (!a.rows)
            store_unit(hidden, h[u], shape, u, a.row_len);
    }
    norm_row<NORM_MAX_UNITS>(a.norm, i, h, shape, scratch);
}

/* Granule q of row i goes to `out`, added or as it is. */
template <typename T>
DEVICE void store_sum(const struct allreduce_array &a, int i, int q, const T v[GRANULE],
                      bool wide) {
    int cols = row_cols(a, i);
    int64_t to = (int64_t)i * a.row_len;
    if (a.add) {
        float before[GRANULE], sum[GRANULE];
        load_granule(before, a.add + row_start(a, i), q, cols, wide);
#pragma unroll
        for (int j = 0; j < GRANULE; j++)
            sum[j] = before[j] + (float)v[j];
        store_granule((float *)a.out + to, sum, q, cols, wide);
    } else {
        store_granule((T *)a.out + to, v, q, cols, wide);
    }
}

/* ---- the block ------------------------------------------------------------------------------- */

DEVICE uint32_t *flag_of(char *message, int block) {
    return (uint32_t *)message + block;
}

DEVICE int round_to_warp(int n) {
    return (n + WARP - 1) / WARP * WARP;
}

template <int P, int W>
DEVICE void send(const struct allreduce_channel &c, const struct allreduce_array &a,
                 const struct exchange &x) {
    typedef typename payload<P>::type T;
    for (int i = x.block; i < a.num_rows; i += x.num_blocks) {
        const T *row = (const T *)a.partial + row_start(a, i);
        int cols = row_cols(a, i), end = round_to_warp(x.slices.granules);
        for (int q = threadIdx.x; q < end; q += blockDim.x) {
            T v[GRANULE];
            uint32_t w[payload<P>::words];
            float scale = 1;
            load_granule(v, row, q, cols, x.wide);
            encode<P>(w, &scale, v);
            if (q >= x.slices.granules)
                continue;
            int d = x.slices.owner(q);
            put<P, W>(c.to[d], x, a.num_rows, i, q - x.slices.begin(d), w, scale);
        }
    }
}

/* Granules whose loads are under way at once: 64 bytes a thread of LINES. */
template <int P> struct batch {
    static constexpr int parts = P == PAYLOAD_BF16 || P == PAYLOAD_F8 ? 8
                                 : P == PAYLOAD_F32                   ? 4
                                                                      : 2;
    static constexpr int units = parts / 2;
};

template <int P, int W>
DEVICE void reduce(const struct allreduce_channel &c, const struct allreduce_array &a,
                   const struct exchange &x, struct waiter &waiter) {
    typedef typename payload<P>::type T;
    constexpr int N = batch<P>::parts, WORDS = payload<P>::words;
    int begin = x.slices.begin(c.rank);
    int length = min(x.slices.begin(c.rank + 1), x.slices.granules) - begin;
    int end = round_to_warp(length);
    for (int i = x.block; i < a.num_rows; i += x.num_blocks)
        for (int k = threadIdx.x; k < end; k += blockDim.x) {
            T sum[GRANULE] = {0, 0, 0, 0};
            uint32_t w[N][WORDS], result[WORDS];
            float scale[N], result_scale = 1;
            for (int first = 0; first < c.num_ranks; first += N) {
                const char *message[N];
                int who[N], ks[N];
#pragma unroll
                for (int j = 0; j < N; j++) {
                    bool wanted = first + j < c.num_ranks && k < length;
                    message[j] = wanted ? c.from[first + j] : NULL;
                    who[j] = first + j;
                    ks[j] = k;
                }
                get<P, W, N>(w, scale, c, x, waiter, a.num_rows, i, message, who, ks);
#pragma unroll
                for (int j = 0; j < N; j++) {
                    T v[GRANULE];
                    decode<P>(v, w[j], scale[j]);
#pragma unroll
                    for (int e = 0; e < GRANULE; e++)
                        if (first + j < c.num_ranks)
                            sum[e] = first + j == 0 ? v[e] : sum[e] + v[e];
                }
            }
            encode<P>(result, &result_scale, sum);
            for (int d = 0; k < length && d < c.num_out; d++)
                put<P, W>(c.out[d], x, a.num_rows, i, k, result, result_scale);
        }
}

/* Granules q[j] of the sum of row i. */
template <int P, int W, int N>
DEVICE void get_sums(typename payload<P>::type v[][GRANULE], const struct allreduce_channel &c,
                     const struct allreduce_array &a, const struct exchange &x,
                     struct waiter &waiter, int i, const int *q) {
    uint32_t w[N][payload<P>::words];
    float scale[N];
    const char *message[N];
    int who[N], k[N];
#pragma unroll
    for (int j = 0; j < N; j++) {
        bool wanted = q[j] < x.slices.granules;
        who[j] = wanted ? x.slices.owner(q[j]) : 0;
        message[j] = wanted ? c.in[who[j]] : NULL;
        k[j] = q[j] - x.slices.begin(who[j]);
    }
    get<P, W, N>(w, scale, c, x, waiter, a.num_rows, i, message, who, k);
#pragma unroll
    for (int j = 0; j < N; j++)
        decode<P>(v[j], w[j], scale[j]);
}

template <int P, int W>
DEVICE void collect(const struct allreduce_channel &c, const struct allreduce_array &a,
                    const struct exchange &x, struct waiter &waiter) {
    constexpr int N = batch<P>::units;
    for (int i = x.block; i < a.num_rows; i += x.num_blocks)
        for (int first = 0; first < x.slices.granules; first += N * (int)blockDim.x) {
            typename payload<P>::type v[N][GRANULE];
            int q[N];
#pragma unroll
            for (int j = 0; j < N; j++)
                q[j] = first + j * (int)blockDim.x + (int)threadIdx.x;
            get_sums<P, W, N>(v, c, a, x, waiter, i, q);
#pragma unroll
            for (int j = 0; j < N; j++)
                if (q[j] < x.slices.granules)
                    store_sum(a, i, q[j], v[j], x.wide);
        }
}

template <int P, int W>
DEVICE void collect_norm(const struct allreduce_channel &c, const struct allreduce_array &a,
                         const struct exchange &x, struct waiter &waiter, float *scratch,
                         float *row) {
    constexpr int N = batch<P>::units;
    for (int i = x.block; i < a.num_rows; i += x.num_blocks) {
        struct norm_shape shape = {opaque((int)blockDim.x), x.wide};
        float h[NORM_MAX_UNITS][UNIT];
#pragma unroll
        for (int first = 0; first < NORM_MAX_UNITS; first += N) {
            typename payload<P>::type v[N][GRANULE];
            int q[N];
#pragma unroll
            for (int j = 0; j < N; j++)
                q[j] = (first + j) * shape.threads + (int)threadIdx.x;
            get_sums<P, W, N>(v, c, a, x, waiter, i, q);
#pragma unroll
            for (int j = 0; j < N; j++)
#pragma unroll
                for (int e = 0; e < UNIT; e++)
                    h[first + j][e] = (float)v[j][e];
        }
        norm_sum(a, i, h, shape, scratch, row);
    }
}

/* The flags of FLAGS: all that the block has written has come to those who wait for it; what it
 * waits for has come. */
DEVICE void signal_and_wait(const struct allreduce_channel &c, const struct exchange &x,
                            struct waiter &waiter, char *const *to, int num_to,
                            const char *const *from) {
    __syncthreads(); /* the block has written */
    if ((int)threadIdx.x < num_to)
        store_release(flag_of(to[threadIdx.x], x.block), x.number);
    if (threadIdx.x < WARP)
        wait_flags(c, waiter,
                   (int)threadIdx.x < c.num_ranks ? (const uint32_t *)from[threadIdx.x] + x.block
                                                  : NULL,
                   x.number);
    __syncthreads(); /* all may read */
}

template <int P, int W, bool NORM>
DEVICE void allreduce_block(const struct allreduce_channel &c, const struct allreduce_array &a,
                            int block, int num_blocks) {
    __shared__ float scratch[NORM ? NORM_SCRATCH : 1], row[NORM ? ALLREDUCE_MAX_ODD_NORM : 1];
    struct exchange x = {slices(P, a.row_len, c.num_ranks), call_number(c), block, num_blocks,
                         a.row_len % GRANULE == 0};
    struct waiter waiter = start_waiting(c);
    send<P, W>(c, a, x);
    if (W == ALLREDUCE_FLAGS)
        signal_and_wait(c, x, waiter, c.to, c.num_ranks, c.from);
    reduce<P, W>(c, a, x, waiter);
    /* A part that is missing is the fault of its rank, a result maybe that of another: who waits
     * for parts is to speak first. */
    waiter.deadline += (uint64_t)c.timeout_ns / 8;
    if (W == ALLREDUCE_FLAGS)
        signal_and_wait(c, x, waiter, c.out, c.num_out, c.in);
    if (NORM)
        collect_norm<P, W>(c, a, x, waiter, scratch, row);
    else
        collect<P, W>(c, a, x, waiter);
}

/* ---- kernels --------------------------------------------------------------------------------- */

template <int P, int W, bool NORM>
static __global__ void __launch_bounds__(ALLREDUCE_MAX_THREADS, 1)
    allreduce_kernel(const __grid_constant__ struct allreduce_channel c,
                     const __grid_constant__ struct allreduce_array a) {
    allreduce_block<P, W, NORM>(c, a, blockIdx.x, gridDim.x);
}

template <int P, int W>
static void launch_exchange(const struct allreduce_channel *c, const struct allreduce_array *a,
                            int blocks, cudaStream_t stream) {
    int threads = norm_threads(min(a->row_len, (int)ALLREDUCE_MAX_NORM));
    if (a->norm.x)
        allreduce_kernel<P, W, true><<<blocks, threads, 0, stream>>>(*c, *a);
    else
        allreduce_kernel<P, W, false><<<blocks, threads, 0, stream>>>(*c, *a);
    LAUNCH_CHECK();
}
