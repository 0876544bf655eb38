/* router: logits of the gate, the K best experts of each token and their weights, pairs by expert
 *
 * Shapes   x [T, H] bf16, gate [E, H] bf16 ROWS, logits [T, E] float (scratch); routing as in
 *          kernels.h, P = T * K pairs. Padded rows (slot_mapping -1) are routed nowhere; what lies in
 *          the permutation behind expert_offsets[E] is not written.
 * Launch   1. logits: a block of 8 warps makes 16 experts x 8 tokens, or 32 x 32 where that fills the
 *             machine; warp w takes columns 32 w .. 32 w + 31 of every 256. Experts are the wide side
 *             of the mma, so that one token costs a tile of 8 and not of 16.
 *          2. choose: a warp a token, its logits in registers.
 *          3. group (router_group.cuh): one block up to 2048 pairs; beyond, count, scan and scatter
 *             kernels, with the counts of every 2048 pairs in the memory of the logits.
 *          Up to 8 tokens, 2 and 3 are one kernel: launches are what such a step is made of.
 * Bytes    2*E*H for every 8 (32) tokens and 2*T*H for every 16 (32) experts, out of the L2 cache: one
 *          token, E = 128, H = 2048: 8 blocks read 64 KB each, in two batches of loads. 16384 tokens:
 *          512 x 4 blocks, 550 MB. A pair costs 12 bytes of group and some 30 instructions.
 * Numerics logits are float32 sums of exact products: a warp's columns by the mma in ascending order,
 *          warps in ascending order, whatever the tile; mean, std and softmax in float32, lanes by xor
 *          shuffles; expf. A token's outcome depends on its own row alone. NaNs or a std of 0: the
 *          token goes to experts 0 .. K-1 with NaN weights, so that its result says so.
 * Requires K <= 32, K <= E <= 1024, P < 2^31. H % 8 == 0 takes 16-byte loads of x, else 2-byte ones.
 */
#include <math_constants.h>

#include "cuda/cuda_check.h"
#include "cuda/device.cuh"
#include "cuda/kernels.h"
#include "cuda/router_group.cuh"

constexpr int LOGITS_THREADS = 256;
constexpr int LOGITS_WARPS = LOGITS_THREADS / WARP;
constexpr int TILE_EXPERTS = 16, TILE_TOKENS = 8, TILE_COLS = 32;
constexpr int MAX_SMALL_BLOCKS = 256; /* more blocks than this: larger tiles */
constexpr int SCAN_DEPTH = 8;         /* loads under way of a thread that adds up parts */

/* ---- logits ------------------------------------------------------------------------------------
 */

/* Eight elements of a row from column c on, zeros beyond the end. */
template <bool WIDE> DEVICE uint4 load_x(const bf16 *row, int c, int H) {
    if (WIDE) {
        uint4 v = load_stream16(row + (c < H ? c : 0));
        return c < H ? v : make_uint4(0, 0, 0, 0);
    } else {
        uint32_t pair[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t low = c + 2 * i < H ? row[c + 2 * i] : 0;
            uint32_t high = c + 2 * i + 1 < H ? row[c + 2 * i + 1] : 0;
            pair[i] = low | high << 16;
        }
        return make_uint4(pair[0], pair[1], pair[2], pair[3]);
    }
}

/* c += 16 experts x 8 tokens over 32 columns: lane (g, t) has columns 8t .. 8t + 7 of experts g and
 * g + 8 and of token g (kernels.h, FRAGMENTS). */
DEVICE void multiply_tile(float c[4], uint4 low, uint4 high, uint4 x) {
    const uint32_t a0[4] = {low.x, high.x, low.y, high.y}, b0[2] = {x.x, x.y};
    const uint32_t a1[4] = {low.z, high.z, low.w, high.w}, b1[2] = {x.z, x.w};
    mma_bf16(c, a0, b0);
    mma_bf16(c, a1, b1);
}

/* What a warp of a block multiplies: some tiles of 32 columns of ET groups of experts and TT groups
 * of tokens. */
template <int ET, int TT, int DEPTH> struct operands { uint4 gate[DEPTH][ET][2], x[DEPTH][TT]; };

struct logits_args {
    float *logits;
    const bf16 *x, *gate;
    int T, E, H, tiles;
};

/* Tiles `tile`, tile + LOGITS_WARPS and so on. Rows and tiles that do not exist are loaded too, as
 * others instead: zeros in x make up for the columns, and such rows are not written. */
template <int ET, int TT, int DEPTH, bool WIDE>
DEVICE void load_operands(struct operands<ET, TT, DEPTH> *o, const struct logits_args *a,
                          int tile) {
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    int first_e = blockIdx.y * ET * TILE_EXPERTS, first_t = blockIdx.x * TT * TILE_TOKENS;
#pragma unroll
    for (int d = 0; d < DEPTH; d++) {
        int col = (tile + d * LOGITS_WARPS) * TILE_COLS + 8 * t;
        int from = min(tile + d * LOGITS_WARPS, a->tiles - 1) * TILE_COLS + 8 * t;
#pragma unroll
        for (int i = 0; i < ET * 2; i++) {
            int64_t e = min(first_e + i * 8 + g, a->E - 1);
            o->gate[d][i / 2][i % 2] = load_stream16(a->gate + e * a->tiles * TILE_COLS + from);
        }
#pragma unroll
        for (int i = 0; i < TT; i++) {
            int64_t token = min(first_t + i * TILE_TOKENS + g, a->T - 1);
            o->x[d][i] = load_x<WIDE>(a->x + token * a->H, col, a->H);
        }
    }
}

/* A block makes ET x TT tiles; each warp has the loads of DEPTH tiles of columns under way while it
 * multiplies as many. */
template <int ET, int TT, int DEPTH, bool WIDE>
__global__ __launch_bounds__(LOGITS_THREADS) void logits_kernel(struct logits_args a) {
    __shared__ float parts[LOGITS_WARPS][ET * TT * 4][WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float c[ET][TT][4] = {};

    /* Every warp its columns. */
    struct operands<ET, TT, DEPTH> now;
    load_operands<ET, TT, DEPTH, WIDE>(&now, &a, warp);
    for (int tile = warp; tile < a.tiles; tile += LOGITS_WARPS * DEPTH) {
        struct operands<ET, TT, DEPTH> next = now;
        if (tile + LOGITS_WARPS * DEPTH < a.tiles)
            load_operands<ET, TT, DEPTH, WIDE>(&next, &a, tile + LOGITS_WARPS * DEPTH);
#pragma unroll
        for (int d = 0; d < DEPTH; d++)
#pragma unroll
            for (int i = 0; i < ET; i++)
#pragma unroll
                for (int j = 0; j < TT; j++)
                    multiply_tile(c[i][j], now.gate[d][i][0], now.gate[d][i][1], now.x[d][j]);
        now = next;
    }
#pragma unroll
    for (int i = 0; i < ET * TT * 4; i++)
        parts[warp][i][lane] = c[i / 4 / TT][i / 4 % TT][i % 4];
    __syncthreads(); /* the sums of all warps are there */

    /* Their sum: element i % 4 of lane (g, t) is expert g (+ 8 for 2 and 3), token 2t (+ 1). */
    for (int i = warp; i < ET * TT * 4; i += LOGITS_WARPS) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < LOGITS_WARPS; w++)
            sum += parts[w][i][lane];
        int e = (blockIdx.y * ET + i / 4 / TT) * TILE_EXPERTS + lane / 4 + (i & 2) * 4;
        int token = (blockIdx.x * TT + i / 4 % TT) * TILE_TOKENS + 2 * (lane % 4) + (i & 1);
        if (e < a.E && token < a.T)
            a.logits[(int64_t)token * a.E + e] = sum;
    }
}

static void launch_logits(const struct router_args *a, cudaStream_t stream) {
    int32_t T = a->num_tokens, E = a->config->num_experts, H = a->hidden_size;
    const struct logits_args args = {a->logits, a->x, a->gate, T, E, H, ceil_div(H, TILE_COLS)};
    dim3 small(ceil_div(T, TILE_TOKENS), ceil_div(E, TILE_EXPERTS));
    dim3 large(ceil_div(T, 4 * TILE_TOKENS), ceil_div(E, 2 * TILE_EXPERTS));
    if (H % 8 != 0)
        logits_kernel<1, 1, 1, false><<<small, LOGITS_THREADS, 0, stream>>>(args);
    else if (small.x * small.y <= MAX_SMALL_BLOCKS)
        logits_kernel<1, 1, 4, true><<<small, LOGITS_THREADS, 0, stream>>>(args);
    else
        logits_kernel<2, 4, 1, true><<<large, LOGITS_THREADS, 0, stream>>>(args);
    LAUNCH_CHECK();
}

/* ---- choose ------------------------------------------------------------------------------------
 */

struct choose_args {
    struct gpu_routing out;
    const float *logits;
    const int32_t *slot_mapping;
    int64_t *totals;
    int32_t T, E, K;
    float logits_std, factor;
    bool norm_topk_prob;
};

/* z /= std(z) / target, of the E logits that the warp's lanes have: expert lane + 32 i in z[i]. */
template <int PER> DEVICE void normalise_logits(float z[PER], int E, float target) {
    int lane = threadIdx.x % WARP;
    float mean = 0, var = 0;
#pragma unroll
    for (int i = 0; i < PER; i++)
        mean += lane + WARP * i < E ? z[i] : 0;
    mean = warp_sum(mean) / (float)E;
#pragma unroll
    for (int i = 0; i < PER; i++)
        var += lane + WARP * i < E ? (z[i] - mean) * (z[i] - mean) : 0;
    float divisor = sqrtf(warp_sum(var) / (float)(E - 1)) / target;
#pragma unroll
    for (int i = 0; i < PER; i++)
        z[i] /= divisor;
}

/* z becomes probabilities; returns their sum before the division: NaN when there are no such. */
template <int PER> DEVICE float softmax(float z[PER], int E) {
    int lane = threadIdx.x % WARP;
    float max = -CUDART_INF_F, sum = 0;
#pragma unroll
    for (int i = 0; i < PER; i++)
        max = lane + WARP * i < E ? fmaxf(max, z[i]) : max;
    max = warp_max(max);
#pragma unroll
    for (int i = 0; i < PER; i++) {
        z[i] = lane + WARP * i < E ? expf(z[i] - max) : 0;
        sum += z[i];
    }
    sum = warp_sum(sum);
#pragma unroll
    for (int i = 0; i < PER; i++)
        z[i] /= sum;
    return sum;
}

/* The K best experts of token t, by one warp. Probabilities are not negative, so that their bits
 * order as they do; a key is the bits + 1, 0 once the expert is taken. */
template <int PER> DEVICE void choose_experts(const struct choose_args *a, int t) {
    int lane = threadIdx.x % WARP, K = a->K, id = -1;
    float p[PER], weight = 0, sum = 0;
    uint32_t key[PER];
    if (!a->slot_mapping || a->slot_mapping[t] >= 0) {
#pragma unroll
        for (int i = 0; i < PER; i++) {
            int e = lane + WARP * i;
            p[i] = e < a->E ? a->logits[(int64_t)t * a->E + e] : 0;
        }
        if (a->logits_std > 0)
            normalise_logits<PER>(p, a->E, a->logits_std);
        bool broken = isnan(softmax<PER>(p, a->E));
#pragma unroll
        for (int i = 0; i < PER; i++)
            key[i] = lane + WARP * i < a->E ? broken ? 1 : __float_as_uint(p[i]) + 1 : 0;
        for (int k = 0; k < K; k++) {
            uint32_t best = 0;
            int at = 0;
#pragma unroll
            for (int i = 0; i < PER; i++)
                if (key[i] > best) {
                    best = key[i];
                    at = i;
                }
            uint32_t top = __reduce_max_sync(ALL_LANES, best);
            int e = (int)__reduce_min_sync(ALL_LANES,
                                           best == top ? (uint32_t)(lane + WARP * at) : UINT32_MAX);
            float w = broken ? CUDART_NAN_F : __uint_as_float(top - 1);
            sum += w;
            if (lane == k) {
                id = e;
                weight = w;
            }
#pragma unroll
            for (int i = 0; i < PER; i++)
                if (lane + WARP * i == e)
                    key[i] = 0;
        }
        weight = (a->norm_topk_prob ? weight / sum : weight) * a->factor;
    }
    if (lane < K) {
        a->out.topk_ids[(int64_t)t * K + lane] = id;
        a->out.topk_weights[(int64_t)t * K + lane] = weight;
    }
}

template <int PER>
__global__ __launch_bounds__(GROUP_THREADS) void choose_kernel(struct choose_args a) {
    int t = blockIdx.x * GROUP_WARPS + threadIdx.x / WARP;
    if (t < a.T)
        choose_experts<PER>(&a, t);
}

/* Up to GROUP_WARPS tokens: choose and group. */
template <int PER>
__global__ __launch_bounds__(GROUP_THREADS) void choose_and_group_kernel(struct choose_args a) {
    extern __shared__ int32_t table[];
    int t = threadIdx.x / WARP;
    if (t < a.T)
        choose_experts<PER>(&a, t);
    __syncthreads(); /* topk_ids of all tokens are there */
    group_in_block(&a.out, a.totals, table, a.T * a.K, a.E);
}

template <int PER> static void launch_choose(const struct choose_args *a, cudaStream_t stream) {
    if (a->T <= GROUP_WARPS)
        choose_and_group_kernel<PER><<<1, GROUP_THREADS, group_shared_bytes(a->E), stream>>>(*a);
    else
        choose_kernel<PER><<<ceil_div(a->T, GROUP_WARPS), GROUP_THREADS, 0, stream>>>(*a);
    LAUNCH_CHECK();
}

/* ---- group -------------------------------------------------------------------------------------
 */

__global__ __launch_bounds__(GROUP_THREADS) void group_kernel(struct gpu_routing out,
                                                              int64_t *totals, int pairs, int E) {
    extern __shared__ int32_t table[];
    group_in_block(&out, totals, table, pairs, E);
}

/* part_counts[b][e] = pairs of expert e in the b-th GROUP_PAIRS. */
__global__ __launch_bounds__(GROUP_THREADS) void group_count_kernel(int32_t *part_counts,
                                                                    const int32_t *ids, int pairs,
                                                                    int E) {
    extern __shared__ int32_t table[];
    int first = blockIdx.x * GROUP_PAIRS;
    count_pairs(table, ids, first, min(pairs, first + GROUP_PAIRS), E);
    for (int e = threadIdx.x; e < E; e += GROUP_THREADS) {
        int sum = 0;
#pragma unroll
        for (int w = 0; w < GROUP_WARPS; w++)
            sum += table[w * E + e];
        part_counts[(int64_t)blockIdx.x * E + e] = sum;
    }
}

/* part_counts[b][e] becomes the sum of those of the parts before b; counts and offsets are written.
 */
__global__ __launch_bounds__(GROUP_THREADS) void group_scan_kernel(struct gpu_routing out,
                                                                   int64_t *totals,
                                                                   int32_t *part_counts, int parts,
                                                                   int E) {
    __shared__ int32_t counts[GROUP_EXPERTS], scratch[GROUP_WARPS];
    for (int e = threadIdx.x; e < E; e += GROUP_THREADS) {
        int sum = 0;
        for (int b0 = 0; b0 < parts; b0 += SCAN_DEPTH) {
            int n[SCAN_DEPTH];
#pragma unroll
            for (int i = 0; i < SCAN_DEPTH; i++)
                n[i] = b0 + i < parts ? part_counts[(int64_t)(b0 + i) * E + e] : 0;
#pragma unroll
            for (int i = 0; i < SCAN_DEPTH; i++) {
                if (b0 + i < parts)
                    part_counts[(int64_t)(b0 + i) * E + e] = sum;
                sum += n[i];
            }
        }
        counts[e] = sum;
    }
    __syncthreads(); /* counts of all experts are there */
    write_offsets(&out, totals, counts, E, scratch);
}

__global__ __launch_bounds__(GROUP_THREADS) void group_scatter_kernel(struct gpu_routing out,
                                                                      const int32_t *part_counts,
                                                                      int pairs, int E) {
    extern __shared__ int32_t table[];
    int32_t *at = table, *base = table + GROUP_WARPS * E;
    int first = blockIdx.x * GROUP_PAIRS, last = min(pairs, first + GROUP_PAIRS);
    for (int e = threadIdx.x; e < E; e += GROUP_THREADS)
        base[e] = out.expert_offsets[e] + part_counts[(int64_t)blockIdx.x * E + e];
    count_pairs(at, out.topk_ids, first, last, E);
    place_warps(at, base, E);
    scatter_pairs(&out, at, first, last, E);
}

/* Parts need E counts for every GROUP_PAIRS pairs; `scratch` has E for every token. */
static void launch_group(const struct gpu_routing *out, int64_t *totals, int32_t *scratch,
                         int32_t pairs, int32_t E, cudaStream_t stream) {
    size_t shared = group_shared_bytes(E);
    int parts = ceil_div(pairs, GROUP_PAIRS);
    if (parts == 1) {
        group_kernel<<<1, GROUP_THREADS, shared, stream>>>(*out, totals, pairs, E);
        LAUNCH_CHECK();
        return;
    }
    group_count_kernel<<<parts, GROUP_THREADS, shared, stream>>>(scratch, out->topk_ids, pairs, E);
    LAUNCH_CHECK();
    group_scan_kernel<<<1, GROUP_THREADS, 0, stream>>>(*out, totals, scratch, parts, E);
    LAUNCH_CHECK();
    group_scatter_kernel<<<parts, GROUP_THREADS, shared, stream>>>(*out, scratch, pairs, E);
    LAUNCH_CHECK();
}

/* ---- launchers ---------------------------------------------------------------------------------
 */

/* No tokens: counts and offsets are zero all the same. */
static void route_nothing(const struct gpu_routing *out, int32_t E, cudaStream_t stream) {
    CUDA_CHECK(cudaMemsetAsync(out->expert_counts, 0, (size_t)E * sizeof(int32_t), stream));
    CUDA_CHECK(cudaMemsetAsync(out->expert_offsets, 0, (size_t)(E + 1) * sizeof(int32_t), stream));
}

void router_launch(const struct router_args *a, cudaStream_t stream) {
    const struct router_config *config = a->config;
    int32_t E = config->num_experts, K = config->num_experts_per_tok, T = a->num_tokens;
    const struct choose_args choose = {.out = a->out,
                                       .logits = a->logits,
                                       .slot_mapping = a->slot_mapping,
                                       .totals = a->expert_totals,
                                       .T = T,
                                       .E = E,
                                       .K = K,
                                       .logits_std = config->logits_std,
                                       .factor = config->routed_scaling_factor,
                                       .norm_topk_prob = config->norm_topk_prob};
    CHECK(K >= 1 && K <= WARP && K <= E && E <= GROUP_EXPERTS, "%d of %d experts", K, E);
    CHECK((int64_t)T * K < INT32_MAX, "%d tokens, %d experts each", T, K);
    if (T == 0) {
        route_nothing(&a->out, E, stream);
        return;
    }
    launch_logits(a, stream);
    if (E <= WARP)
        launch_choose<1>(&choose, stream);
    else if (E <= 4 * WARP)
        launch_choose<4>(&choose, stream);
    else if (E <= 8 * WARP)
        launch_choose<8>(&choose, stream);
    else
        launch_choose<32>(&choose, stream);
    if (T > GROUP_WARPS)
        launch_group(&a->out, a->expert_totals, (int32_t *)a->logits, T * K, E, stream);
}

/* One block walks over the tokens, GROUP_THREADS at a time, and closes the gaps of padded rows. */
__global__ __launch_bounds__(GROUP_THREADS) void route_to_one_kernel(struct gpu_routing out,
                                                                     const int32_t *slot_mapping,
                                                                     int T) {
    __shared__ int32_t scratch[2][GROUP_WARPS];
    int used = 0;
    for (int first = 0, round = 0; first < T; first += GROUP_THREADS, round ^= 1) {
        int t = first + threadIdx.x, total;
        bool there = t < T && (!slot_mapping || slot_mapping[t] >= 0);
        int to = used + block_exclusive_sum(there, &total, scratch[round]);
        used += total;
        if (t < T) {
            out.topk_ids[t] = there ? 0 : -1;
            out.topk_weights[t] = there;
            out.slot[t] = there ? to : -1;
        }
        if (there)
            out.permutation[to] = t;
    }
    if (threadIdx.x == 0) {
        out.expert_counts[0] = used;
        out.expert_offsets[0] = 0;
        out.expert_offsets[1] = used;
    }
}

void route_to_one_launch(const struct gpu_routing *out, const int32_t *slot_mapping,
                         int32_t num_tokens, cudaStream_t stream) {
    if (num_tokens == 0) {
        route_nothing(out, 1, stream);
        return;
    }
    route_to_one_kernel<<<1, GROUP_THREADS, 0, stream>>>(*out, slot_mapping, num_tokens);
    LAUNCH_CHECK();
}
