/* moe: the expert FFNs of a layer: choice of the kernels, and the weighted combine
 *
 *   gate_up (stream, tile) -> act -> down (stream, tile; units) -> pair_out -> combine -> partial
 *
 * With FP8 activations a kernel between them makes actq of act, for down to read.
 *
 * Choice   by each expert's own count, on the device: up to STREAM_LIMIT tokens it belongs to the
 *          streaming kernels, above to the tile kernels. The host leaves out the tile kernels when
 *          no expert can have so many (an expert has at most T tokens), and when rows of bf16 are
 *          not aligned to 16 bytes. Both give the same bits, so the choice shows in time only.
 * quantise actq[p], actq_scale[p] = act[p] as FP8 activations, with a scale for the whole row, also
 *          where weights have one for each 128 columns: E4M3 has the same relative precision over 2^15
 *          below its largest number, so that smaller groups would gain little; and one scale is
 *          applied once, behind the sum. A launch of its own, since the largest number of a row is
 *          known only when all blocks of gate_up are done with it.
 * combine  partial[t] (+)= sum over k, in order of k, of topk_weights[t, k] * pair_out[slot[t, k]],
 *          for experts held here; zeros when there are none, as in padded rows.
 * units    with `unit` another kernel makes `down`, in sums over units of columns (units.cuh), weighted;
 *          combine then adds pair_out as it is, in float64, which is exact: the same bits for any
 *          number of ranks.
 * Launch   quantise: a block of 256 threads a pair, 16 B a thread per load. combine: a block of 256
 *          threads for 1,024 columns of a token, 16 B a thread per load.
 * Bytes    quantise: 3 * I a pair, the reads from L2. combine: 4 * H * (K + 1) a token, mostly from
 *          L2. Both bandwidth-bound, for few tokens as long as their launch.
 * Numerics quantise: as quantise.cu. combine: float32, fma in order of k. Both independent of T and
 *          of the other tokens.
 * Requires FP8 has scales and BF16 has none; FP8 activations want FP8 weights and sm_89.
 */
#include <limits.h>

#include "cuda/cuda_check.h"
#include "cuda/quantise.cuh"
#include "cuda/units.cuh"

/* Tokens of an expert up to which streaming pays. The kernels read x again for every 32 weight rows,
 * from L2: with 64 tokens that is 2 bytes for each byte of weights of the same type, and 4 of FP8
 * ones with bf16 activations, which would need more than L2 has (about 5 times DRAM). To be moved
 * where a measurement says so. */
static int stream_limit(const struct moe_launch_args *a) {
    return a->dtype == DTYPE_BF16 || a->xq ? 64 : 32;
}

size_t moe_workspace_bytes(int32_t, int32_t, int32_t) {
    return 0; /* the work lists are derived, not stored: moe.cuh */
}

/* ---- quantise ---------------------------------------------------------------------------------- */

/* Pair p's row of act, if its expert is held here. */
template <bool WIDE>
__global__ void __launch_bounds__(QUANTISE_THREADS)
    quantise_act_kernel(const struct moe_args_device p) {
    int I = p.a.intermediate, id = p.r.topk_ids[blockIdx.x];
    int64_t row = p.r.slot[blockIdx.x];
    if (id < 0 || row < 0 || p.a.expert_slot[id] < 0)
        return;
    quantise_row<WIDE>(p.a.actq + row * f8_stride(I), p.a.actq_scale + row, p.a.act + row * I, I);
}

static void quantise_act_launch(const struct moe_args_device *p, cudaStream_t stream) {
    int pairs = p->a.num_tokens * p->a.num_experts_per_tok;
    if (p->a.intermediate % 8 == 0)
        quantise_act_kernel<true><<<pairs, QUANTISE_THREADS, 0, stream>>>(*p);
    else
        quantise_act_kernel<false><<<pairs, QUANTISE_THREADS, 0, stream>>>(*p);
    LAUNCH_CHECK();
}

/* ---- combine ----------------------------------------------------------------------------------- */

constexpr int COMBINE_THREADS = 256;

/* VEC columns a thread: 16 bytes, or 1 where rows are not aligned. */
template <class REAL, int VEC> struct columns {
    REAL v[VEC];
};
template <class REAL, int VEC> DEVICE struct columns<REAL, VEC> columns_load(const REAL *p) {
    struct columns<REAL, VEC> c;
    if (VEC * sizeof(REAL) == 16) {
        uint4 v = *(const uint4 *)p;
        memcpy(&c, &v, sizeof c);
    } else {
        c.v[0] = *p;
    }
    return c;
}

/* REAL is double for sums over units, which come with the weights of their pairs. */
template <class REAL, int VEC>
__global__ void __launch_bounds__(COMBINE_THREADS) combine_kernel(const struct moe_args_device p) {
    int64_t t = blockIdx.x;
    int H = p.a.hidden_size, K = p.a.num_experts_per_tok;
    int h = (blockIdx.y * COMBINE_THREADS + threadIdx.x) * VEC;
    if (h >= H)
        return;
    REAL *out = (REAL *)p.a.partial + t * H + h;
    struct columns<REAL, VEC> sum = {};
    for (int k = 0; k < K; k++) {
        int id = p.r.topk_ids[t * K + k], slot = p.r.slot[t * K + k];
        if (id < 0 || slot < 0 || p.a.expert_slot[id] < 0)
            continue;
        float weight = p.r.topk_weights[t * K + k];
        struct columns<REAL, VEC> pair =
            columns_load<REAL, VEC>((const REAL *)p.a.pair_out + (int64_t)slot * H + h);
#pragma unroll
        for (int i = 0; i < VEC; i++)
            if constexpr (sizeof(REAL) == sizeof(float))
                sum.v[i] = fmaf(weight, pair.v[i], sum.v[i]);
            else
                sum.v[i] += pair.v[i];
    }
    if (p.a.accumulate) {
        struct columns<REAL, VEC> old = columns_load<REAL, VEC>(out);
#pragma unroll
        for (int i = 0; i < VEC; i++)
            sum.v[i] = old.v[i] + sum.v[i];
    }
    if (VEC * sizeof(REAL) == 16) {
        uint4 v;
        memcpy(&v, &sum, sizeof v);
        *(uint4 *)out = v;
    } else {
        *out = sum.v[0];
    }
}

template <class REAL> static void combine_launch(const struct moe_args_device *p, cudaStream_t stream) {
    constexpr int wide = 16 / sizeof(REAL);
    int vec = p->a.hidden_size % wide == 0 ? wide : 1;
    dim3 grid(p->a.num_tokens, ceil_div(p->a.hidden_size, COMBINE_THREADS * vec));
    if (vec == wide)
        combine_kernel<REAL, wide><<<grid, COMBINE_THREADS, 0, stream>>>(*p);
    else
        combine_kernel<REAL, 1><<<grid, COMBINE_THREADS, 0, stream>>>(*p);
    LAUNCH_CHECK();
}

static void check_args(const struct moe_launch_args *a) {
    CHECK(a->dtype == DTYPE_BF16 ? a->scale == SCALE_NONE
                                 : a->dtype == DTYPE_F8_E4M3 && a->scale != SCALE_NONE,
          "dtype %d with scale %d", a->dtype, a->scale);
    CHECK(a->hidden_size > 0 && a->intermediate > 0 && a->num_experts > 0 &&
              a->num_experts_per_tok > 0,
          "H %d I %d E %d K %d", a->hidden_size, a->intermediate, a->num_experts,
          a->num_experts_per_tok);
    CHECK(a->unit >= 0 && a->unit % FRAGMENT_COLS == 0, "a unit of %d columns", a->unit);
    CHECK(a->down_col0 >= 0 && a->down_col0 < SCALE_BLOCK_SIZE && a->down_col0 % FRAGMENT_COLS == 0,
          "down_col0 %d", a->down_col0);
    CHECK(a->num_local >= 0 && a->num_local <= a->num_experts, "%d experts of %d", a->num_local,
          a->num_experts);
    CHECK((int64_t)a->num_tokens * a->num_experts_per_tok <= INT32_MAX, "T %d K %d", a->num_tokens,
          a->num_experts_per_tok);
    int64_t widest = a->hidden_size > a->intermediate ? a->hidden_size : a->intermediate;
    CHECK((int64_t)a->num_tokens * a->num_experts_per_tok * widest / 8 <= INT32_MAX,
          "T %d K %d H %d I %d", a->num_tokens, a->num_experts_per_tok, a->hidden_size,
          a->intermediate);
    CHECK(!a->xq || (a->dtype == DTYPE_F8_E4M3 && a->gpu.sm >= MIN_F8_SM),
          "FP8 activations with dtype %d on sm_%d", a->dtype, a->gpu.sm);
}

/* May the tile kernels copy 16 bytes at a time? */
static bool is_aligned(const struct moe_launch_args *a) {
    return a->xq || (a->hidden_size % 8 == 0 && a->intermediate % 8 == 0);
}

/* down, by the experts' own counts too, with a limit of its own. `tiles`: are rows of act aligned? */
static void units_down_launch(const struct moe_args_device *p, bool tiles, cudaStream_t stream) {
    const struct moe_launch_args *a = &p->a;
    struct unit_args u = {};
    u.a.x = a->act;
    u.a.ldx = a->intermediate;
    u.a.xq = a->xq ? a->actq : nullptr;
    u.a.xq_scale = a->actq_scale;
    u.a.layout = LAYOUT_FRAGMENTS;
    u.a.dtype = a->dtype;
    u.a.scale = a->scale;
    u.a.block_col0 = a->down_col0;
    u.a.rows = a->hidden_size;
    u.a.cols = a->intermediate;
    u.a.ldy = a->hidden_size;
    u.a.num_tokens = a->num_tokens;
    u.a.gpu = a->gpu;
    u.y = (double *)a->pair_out;
    u.unit_tiles = a->unit / FRAGMENT_COLS;
    u.experts = true;
    u.moe = *p;
    tiles = tiles && a->num_tokens > UNIT_STREAM_LIMIT;
    u.moe.stream_limit = tiles ? UNIT_STREAM_LIMIT : INT_MAX;
    unit_stream_launch(&u, stream);
    if (tiles)
        unit_tile_launch(&u, stream);
}

void moe_launch(const struct moe_launch_args *a, cudaStream_t stream) {
    check_args(a);
    if (a->num_tokens <= 0)
        return;
    struct moe_args_device p = {*a, *a->routing, INT_MAX};
    bool tiles = is_aligned(a) && a->num_tokens > stream_limit(a); /* may they have work? */
    if (tiles)
        p.stream_limit = stream_limit(a);
    int average = ceil_div((int64_t)a->num_tokens * a->num_experts_per_tok, a->num_experts);
    if (a->num_local > 0) {
        moe_stream_gate_up_launch(&p, stream);
        if (tiles)
            moe_tile_gate_up_launch(&p, average, stream);
        if (a->xq)
            quantise_act_launch(&p, stream);
    }
    if (a->num_local > 0 && a->unit > 0) {
        units_down_launch(&p, is_aligned(a), stream);
    } else if (a->num_local > 0) {
        moe_stream_down_launch(&p, stream);
        if (tiles)
            moe_tile_down_launch(&p, average, stream);
    }
    if (a->unit > 0)
        combine_launch<double>(&p, stream);
    else
        combine_launch<float>(&p, stream);
}
