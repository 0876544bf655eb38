/* rope: QK norm, clipping and rotation of queries and keys; keys and values into their KV blocks
 *
 * Shapes   qkv [T, ld] bf16: Hq query, Hkv key, Hkv value heads; KV blocks
 *          [num_blocks][2][Hkv][16][D].
 * Launch   one warp a head of a token, 4 warps a block; a lane holds pairs (i, i + 1) of both
 *          halves of the head, 4 bytes a load, where D % 4 == 0, else the same elements singly.
 * Bytes    2 D (Hq + 2 Hkv) read, 2 D Hq and the KV written a token, and 4 D of the table; bound
 *          by latency for a few tokens, by bandwidth for thousands.
 * Numerics float32 throughout, one rounding at the store; sums of squares that are double are sums of
 *          a float32 for each head. NaNs pass clipping. E4M3 saturates at
 *          448, f16 overflows to infinity. A head's bits depend on its token alone.
 * Requires D even, <= 256, ld even.
 */
#include "cuda/cuda_check.h"
#include "cuda/device.cuh"
#include "cuda/kernels.h"
#include "host/batch.h"

constexpr int ROPE_WARPS = 4;
constexpr int LANE_PAIRS = 2; /* pairs of a half a lane: 32 lanes x 2 x 2 elements = 128 = D / 2 */
constexpr int MAX_ROPE_DIM = 2 * WARP * LANE_PAIRS * 2;

/* ---- a head in registers -----------------------------------------------------------------------
 */

/* Elements 2 (lane + 32 j) + c of the first half of a head, and of the second. */
struct head_elements {
    float x[2][LANE_PAIRS][2];
};

/* Index within a half; beyond D / 2 there is no such element. */
DEVICE int half_index(int j, int c) {
    return 2 * ((int)threadIdx.x % WARP + WARP * j) + c;
}

template <bool PAIRS> DEVICE void head_load(struct head_elements *h, const bf16 *row, int half) {
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
        for (int j = 0; j < LANE_PAIRS; j++) {
            int i = half_index(j, 0);
            const bf16 *p = row + s * half + i;
            uint32_t v = 0;
            if (PAIRS && i < half)
                v = *(const uint32_t *)p;
            if (!PAIRS)
                v = (i < half ? p[0] : 0) | (i + 1 < half ? (uint32_t)p[1] << 16 : 0);
            h->x[s][j][0] = bf16_low(v);
            h->x[s][j][1] = bf16_high(v);
        }
}

DEVICE float head_sum_squares(const struct head_elements &h) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < LANE_PAIRS; j++)
#pragma unroll
        for (int s = 0; s < 2; s++)
#pragma unroll
            for (int c = 0; c < 2; c++)
                sum = fmaf(h.x[s][j][c], h.x[s][j][c], sum);
    return warp_sum(sum);
}

/* x * rms * weight */
DEVICE void head_scale(struct head_elements *h, float rms, const float *weight, int half) {
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
        for (int j = 0; j < LANE_PAIRS; j++)
#pragma unroll
            for (int c = 0; c < 2; c++)
                if (half_index(j, c) < half)
                    h->x[s][j][c] *= rms * __ldg(weight + s * half + half_index(j, c));
}

/* Comparisons, so that a NaN stays one. */
DEVICE void head_clip(struct head_elements *h, float limit) {
    if (!(limit > 0))
        return;
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
        for (int j = 0; j < LANE_PAIRS; j++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                float x = h->x[s][j][c];
                h->x[s][j][c] = x > limit ? limit : x < -limit ? -limit : x;
            }
}

/* (x[i], x[i + D/2]) by the angle of frequency i. */
DEVICE void head_rotate(struct head_elements *h, const float *cos_sin, int half) {
#pragma unroll
    for (int j = 0; j < LANE_PAIRS; j++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            int i = half_index(j, c);
            if (i >= half)
                continue;
            float cosine = __ldg(cos_sin + i), sine = __ldg(cos_sin + half + i);
            float x0 = h->x[0][j][c], x1 = h->x[1][j][c];
            h->x[0][j][c] = x0 * cosine - x1 * sine;
            h->x[1][j][c] = x1 * cosine + x0 * sine;
        }
}

/* ---- storing -----------------------------------------------------------------------------------
 */

/* Two elements side by side, in 16 bits each. PAIRS: as one store. */
template <bool PAIRS> DEVICE void store16(uint16_t *p, uint32_t pair, bool first, bool second) {
    if (PAIRS && first) {
        *(uint32_t *)p = pair;
    } else if (!PAIRS) {
        if (first)
            p[0] = (uint16_t)pair;
        if (second)
            p[1] = (uint16_t)(pair >> 16);
    }
}
template <bool PAIRS> DEVICE void store8(uint8_t *p, float2 v, bool first, bool second) {
    if (PAIRS && first) {
        *(uint16_t *)p = (uint16_t)(float_e4m3(v.x) | float_e4m3(v.y) << 8);
    } else if (!PAIRS) {
        if (first)
            p[0] = float_e4m3(v.x);
        if (second)
            p[1] = float_e4m3(v.y);
    }
}

/* A head to element `at` of an array of a type. */
template <bool PAIRS>
DEVICE void head_store(void *data, enum dtype dtype, int64_t at, const struct head_elements &h,
                       int half) {
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
        for (int j = 0; j < LANE_PAIRS; j++) {
            int i = half_index(j, 0);
            int64_t to = at + s * half + i;
            const float *x = h.x[s][j];
            bool first = i < half, second = i + 1 < half;
            if (dtype == DTYPE_BF16)
                store16<PAIRS>((uint16_t *)data + to, pack_bf16(x[0], x[1]), first, second);
            else if (dtype == DTYPE_F16)
                store16<PAIRS>((uint16_t *)data + to, pack_f16(x[0], x[1]), first, second);
            else
                store8<PAIRS>((uint8_t *)data + to, make_float2(x[0], x[1]), first, second);
        }
}

/* ---- kernels -----------------------------------------------------------------------------------
 */

/* Norm (if any) of query (which 0) or key (1) head `head` of a token. */
DEVICE void head_norm(struct head_elements *h, const struct rope_args &a, int token, int which,
                      int head, int half) {
    const float *weight = which == 0 ? a.q_norm : a.k_norm;
    if (a.norm == QK_NORM_HEAD) {
        float mean = head_sum_squares(*h) / (float)a.head_dim;
        head_scale(h, 1 / sqrtf(mean + a.eps), weight, half);
    } else if (a.norm == QK_NORM_PROJECTION) {
        float width = (float)(which == 0 ? a.q_width : a.k_width);
        int64_t at = 2 * (int64_t)token + which;
        float sum = a.sums_double ? (float)__ldg((const double *)a.sum_squares + at)
                                  : __ldg((const float *)a.sum_squares + at);
        float mean = sum / width;
        head_scale(h, 1 / sqrtf(mean + a.eps), weight + head * a.head_dim, half);
    }
}

template <bool PAIRS>
__global__ void __launch_bounds__(ROPE_WARPS *WARP) rope_kv_write_kernel(const struct rope_args a) {
    const int heads = a.num_heads + 2 * a.num_kv_heads, half = a.head_dim / 2;
    const int64_t warp = (int64_t)blockIdx.x * ROPE_WARPS + threadIdx.x / WARP;
    if (warp >= (int64_t)a.num_tokens * heads)
        return;
    const int token = (int)(warp / heads), index = (int)(warp % heads);
    const int which = index < a.num_heads ? 0 : index < a.num_heads + a.num_kv_heads ? 1 : 2;
    const int head = which == 0 ? index : (index - a.num_heads) % a.num_kv_heads;
    const int64_t at = token * a.ld + (int64_t)index * a.head_dim;
    const int slot = __ldg(a.slot_mapping + token);
    if (which != 0 && slot < 0)
        return;

    struct head_elements h;
    head_load<PAIRS>(&h, a.qkv + at, half);
    if (which != 2)
        head_norm(&h, a, token, which, head, half);
    head_clip(&h, a.clip);
    if (which != 2)
        head_rotate(&h, a.rope + (int64_t)__ldg(a.positions + token) * a.head_dim, half);

    if (which == 0) {
        head_store<PAIRS>(a.qkv, DTYPE_BF16, at, h, half);
        return;
    }
    int64_t group = ((int64_t)(slot / KV_BLOCK_SIZE) * 2 + which - 1) * a.num_kv_heads + head;
    int64_t to = (group * KV_BLOCK_SIZE + slot % KV_BLOCK_SIZE) * a.head_dim;
    head_store<PAIRS>(a.kv.data, a.kv.dtype, to, h, half);
}

constexpr int SUM_THREADS = 128;

/* Block x, y: token x; queries (y 0) or the counted keys (1). */
__global__ void __launch_bounds__(SUM_THREADS)
    qk_sum_squares_kernel(float *sums, const struct rope_args a, int first_kv_head,
                          int num_counted) {
    __shared__ float scratch[SUM_THREADS / WARP];
    const bool keys = blockIdx.y == 1;
    const bf16 *x = a.qkv + blockIdx.x * a.ld;
    int n = (keys ? num_counted : a.num_heads) * a.head_dim;
    if (keys)
        x += (int64_t)(a.num_heads + first_kv_head) * a.head_dim;
    float sum = 0;
    for (int i = threadIdx.x * 2; i < n; i += SUM_THREADS * 2) { /* n and the offsets are even */
        uint32_t v = *(const uint32_t *)(x + i);
        sum = fmaf(bf16_low(v), bf16_low(v), sum);
        sum = fmaf(bf16_high(v), bf16_high(v), sum);
    }
    sum = block_sum<SUM_THREADS>(sum, scratch);
    if (threadIdx.x == 0)
        sums[2 * (int64_t)blockIdx.x + blockIdx.y] = sum;
}

/* The same, heads one by one: a warp takes every fourth, and what it adds in float64 is exact. */
__global__ void __launch_bounds__(SUM_THREADS)
    qk_head_squares_kernel(double *sums, const struct rope_args a, int first_kv_head,
                           int num_counted) {
    __shared__ double warp_sums[SUM_THREADS / WARP];
    const bool keys = blockIdx.y == 1;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int first = keys ? a.num_heads + first_kv_head : 0;
    const int end = first + (keys ? num_counted : a.num_heads);
    double sum = 0;
    for (int head = first + warp; head < end; head += SUM_THREADS / WARP) {
        const bf16 *x = a.qkv + blockIdx.x * a.ld + (int64_t)head * a.head_dim;
        float squares = 0;
        for (int i = lane * 2; i < a.head_dim; i += WARP * 2) { /* all even */
            uint32_t v = *(const uint32_t *)(x + i);
            squares = fmaf(bf16_low(v), bf16_low(v), squares);
            squares = fmaf(bf16_high(v), bf16_high(v), squares);
        }
        sum += (double)warp_sum(squares);
    }
    if (lane == 0)
        warp_sums[warp] = sum;
    __syncthreads(); /* the sums of all warps are there */
    if (threadIdx.x > 0)
        return;
    for (int i = 1; i < SUM_THREADS / WARP; i++)
        sum += warp_sums[i];
    sums[2 * (int64_t)blockIdx.x + blockIdx.y] = sum;
}

/* ---- launch ------------------------------------------------------------------------------------
 */

size_t gpu_kv_block_bytes(enum dtype dtype, int32_t num_kv_heads, int32_t head_dim) {
    if (dtype != DTYPE_BF16 && dtype != DTYPE_F16 && dtype != DTYPE_F8_E4M3)
        return 0;
    return (size_t)2 * KV_BLOCK_SIZE * (size_t)num_kv_heads * (size_t)head_dim * dtype_bytes(dtype);
}

static void check_shapes(const struct rope_args *a) {
    CHECK(a->head_dim > 0 && a->head_dim % 2 == 0 && a->head_dim <= MAX_ROPE_DIM, "head_dim %d",
          a->head_dim);
    CHECK(a->ld % 2 == 0, "rows of qkv are %lld elements apart", (long long)a->ld);
}

void rope_kv_write_launch(const struct rope_args *a, cudaStream_t stream) {
    int64_t warps = (int64_t)a->num_tokens * (a->num_heads + 2 * a->num_kv_heads);
    if (warps == 0)
        return;
    check_shapes(a);
    CHECK(a->kv.dtype == DTYPE_BF16 || a->kv.dtype == DTYPE_F16 || a->kv.dtype == DTYPE_F8_E4M3,
          "KV of %s", dtype_name(a->kv.dtype));
    int blocks = ceil_div(warps, ROPE_WARPS);
    if (a->head_dim % 4 == 0)
        rope_kv_write_kernel<true><<<blocks, ROPE_WARPS * WARP, 0, stream>>>(*a);
    else
        rope_kv_write_kernel<false><<<blocks, ROPE_WARPS * WARP, 0, stream>>>(*a);
    LAUNCH_CHECK();
}

void qk_sum_squares_launch(void *sums, const struct rope_args *a, int32_t first_kv_head,
                           int32_t num_counted, cudaStream_t stream) {
    if (a->num_tokens == 0)
        return;
    check_shapes(a);
    dim3 grid(a->num_tokens, 2);
    if (a->sums_double)
        qk_head_squares_kernel<<<grid, SUM_THREADS, 0, stream>>>((double *)sums, *a, first_kv_head,
                                                                 num_counted);
    else
        qk_sum_squares_kernel<<<grid, SUM_THREADS, 0, stream>>>((float *)sums, *a, first_kv_head,
                                                                num_counted);
    LAUNCH_CHECK();
}
