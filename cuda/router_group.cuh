/* router_group: a stable counting sort of routed pairs by expert.
 *
 * A block of 8 warps takes up to GROUP_PAIRS pairs; warp w takes the w-th eighth of them, 32 at a
 * time and in order. A row of the table `at` [8, E] in shared memory belongs to each warp: first it
 * counts the warp's pairs of every expert, then it says where the warp's next pair of that expert
 * goes. Lanes with the same expert find each other by ballots over the bits of the expert's number;
 * the lowest of them adds for all. So no atomics are needed, and the order is that of the pairs.
 *
 *     pairs    e: 2 0 2 1 | 0 2 0 0        counts (e = 0, 1, 2)   warp 0: 1 1 2   warp 1: 3 0 1
 *     warp 0 --^          ^-- warp 1       at     (offsets 0 4 5) warp 0: 0 4 5   warp 1: 1 5 7
 *
 * All functions are for whole blocks of GROUP_THREADS.
 */
#pragma once

#include "cuda/device.cuh"
#include "cuda/kernels.h"

constexpr int GROUP_THREADS = 256;
constexpr int GROUP_WARPS = GROUP_THREADS / WARP;
constexpr int GROUP_PAIRS = 2048;   /* of a block */
constexpr int GROUP_EXPERTS = 1024; /* at most */
constexpr int EXPERTS_A_THREAD = GROUP_EXPERTS / GROUP_THREADS;

/* Bytes of shared memory: `at` [8, E], `base` [E] and room for 8 sums. */
static inline size_t group_shared_bytes(int num_experts) {
    return ((size_t)(GROUP_WARPS + 1) * (size_t)num_experts + GROUP_WARPS) * sizeof(int32_t);
}

/* The lanes whose expert is the same as this lane's; 0 where it is negative. */
DEVICE uint32_t same_expert(int e, int E) {
    uint32_t lanes = __ballot_sync(ALL_LANES, e >= 0);
    for (int b = 0; 1 << b < E; b++) {
        bool set = e >> b & 1;
        uint32_t with = __ballot_sync(ALL_LANES, set);
        lanes &= set ? with : ~with;
    }
    return e >= 0 ? lanes : 0;
}

/* Is this lane the lowest of some? */
DEVICE bool lowest_of(uint32_t lanes) {
    uint32_t own = 1u << threadIdx.x % WARP;
    return (lanes & own) && !(lanes & (own - 1));
}

/* at[w][e] = pairs of expert e of warp w, among pairs [first, last). Ends with a barrier. */
DEVICE void count_pairs(int32_t *at, const int32_t *ids, int first, int last, int E) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int32_t *mine = at + warp * E;
    for (int e = lane; e < E; e += WARP)
        mine[e] = 0;
    __syncwarp();
    int begin = first + warp * (GROUP_PAIRS / GROUP_WARPS);
    int end = min(last, begin + GROUP_PAIRS / GROUP_WARPS);
    for (int p0 = begin; p0 < end; p0 += WARP) {
        int e = p0 + lane < end ? ids[p0 + lane] : -1;
        uint32_t lanes = same_expert(e, E);
        if (lowest_of(lanes))
            mine[e] += __popc(lanes);
        __syncwarp();
    }
    __syncthreads();
}

/* at[w][e], counts of warp w, becomes where its first pair of expert e goes: base[e] + the counts
 * of the warps before it. Ends with a barrier. */
DEVICE void place_warps(int32_t *at, const int32_t *base, int E) {
    for (int e = threadIdx.x; e < E; e += GROUP_THREADS) {
        int next = base[e];
#pragma unroll
        for (int w = 0; w < GROUP_WARPS; w++) {
            int n = at[w * E + e];
            at[w * E + e] = next;
            next += n;
        }
    }
    __syncthreads();
}

/* Writes permutation and slot of pairs [first, last); `at` is as place_warps leaves it. */
DEVICE void scatter_pairs(const struct gpu_routing *out, int32_t *at, int first, int last, int E) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int32_t *mine = at + warp * E;
    int begin = first + warp * (GROUP_PAIRS / GROUP_WARPS);
    int end = min(last, begin + GROUP_PAIRS / GROUP_WARPS);
    for (int p0 = begin; p0 < end; p0 += WARP) {
        int p = p0 + lane, e = p < end ? out->topk_ids[p] : -1;
        uint32_t lanes = same_expert(e, E);
        int to = -1;
        if (e >= 0) {
            to = mine[e] + __popc(lanes & ((1u << lane) - 1));
            out->permutation[to] = p;
        }
        if (p < end)
            out->slot[p] = to;
        __syncwarp(); /* all have read */
        if (lowest_of(lanes))
            mine[e] += __popc(lanes);
        __syncwarp();
    }
}

/* Exclusive sum over the threads of a block; *total gets the sum of all. */
DEVICE int block_exclusive_sum(int v, int *total, int32_t scratch[GROUP_WARPS]) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, sum = v, before = 0;
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
        int other = __shfl_up_sync(ALL_LANES, sum, step);
        sum += lane >= step ? other : 0;
    }
    if (lane == WARP - 1)
        scratch[warp] = sum;
    __syncthreads(); /* the sums of all warps are there */
    *total = 0;
#pragma unroll
    for (int w = 0; w < GROUP_WARPS; w++) {
        before += w < warp ? scratch[w] : 0;
        *total += scratch[w];
    }
    return before + sum - v;
}

/* totals [2, E]: n more pairs of expert e, and one more step in which it has some. Nobody waits for
 * the result, so it takes no time; no other block adds at the same time. */
DEVICE void add_totals(int64_t *totals, int e, int E, int n) {
    if (totals && n > 0) {
        atomicAdd((unsigned long long *)totals + e, (unsigned long long)n);
        atomicAdd((unsigned long long *)totals + E + e, 1ull);
    }
}

/* counts[E] in shared memory: writes them and their exclusive sums out, and puts the sums in their
 * place; they are added to totals, unless that is NULL. Ends with a barrier. */
DEVICE void write_offsets(const struct gpu_routing *out, int64_t *totals, int32_t *counts, int E,
                          int32_t scratch[GROUP_WARPS]) {
    int n[EXPERTS_A_THREAD], sum = 0, total, first = threadIdx.x * EXPERTS_A_THREAD;
#pragma unroll
    for (int i = 0; i < EXPERTS_A_THREAD; i++) {
        n[i] = first + i < E ? counts[first + i] : 0;
        sum += n[i];
    }
    int next = block_exclusive_sum(sum, &total, scratch);
#pragma unroll
    for (int i = 0; i < EXPERTS_A_THREAD; i++) {
        if (first + i < E) {
            out->expert_counts[first + i] = n[i];
            add_totals(totals, first + i, E, n[i]);
            out->expert_offsets[first + i] = next;
            counts[first + i] = next;
        }
        next += n[i];
    }
    if (threadIdx.x == 0)
        out->expert_offsets[E] = total;
    __syncthreads();
}

/* Everything, for at most GROUP_PAIRS pairs, by one block. */
DEVICE void group_in_block(const struct gpu_routing *out, int64_t *totals, int32_t *shared,
                           int pairs, int E) {
    int32_t *at = shared, *base = shared + GROUP_WARPS * E;
    count_pairs(at, out->topk_ids, 0, pairs, E);
    for (int e = threadIdx.x; e < E; e += GROUP_THREADS) {
        int sum = 0;
#pragma unroll
        for (int w = 0; w < GROUP_WARPS; w++)
            sum += at[w * E + e];
        base[e] = sum;
    }
    __syncthreads(); /* base has the counts of the block */
    write_offsets(out, totals, base, E, base + E);
    place_warps(at, base, E);
    scatter_pairs(out, at, 0, pairs, E);
}
