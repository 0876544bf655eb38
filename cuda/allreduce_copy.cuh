/* allreduce_copy: the kernels of COPIES for one payload. Nothing here waits; a block of 256
 * threads, or of norm.cu's size, has a row.
 *
 * A row as it travels: its granules, with F8 whole groups of them and then the scales; rows are
 * multiples of 16 bytes.
 */
#pragma once

#include "cuda/allreduce.cuh"

constexpr int PACK_THREADS = 256;

/* Granules of a row as it travels, and its bytes. */
template <int P> static __host__ __device__ int packed_granules(int row_len) {
    struct slices s(P, row_len, 1);
    return s.units * s.unit;
}
template <int P> static __host__ __device__ int64_t packed_bytes(int row_len) {
    int64_t granules = packed_granules<P>(row_len), bytes = granules * payload<P>::words * 4;
    if (P == PAYLOAD_F8)
        bytes += granules / F8_GRANULES * 4;
    return (bytes + 15) / 16 * 16;
}

/* Granule q of a packed row; whole warps write. */
template <int P>
DEVICE void read_packed(typename payload<P>::type v[GRANULE], const char *row, int q, int row_len) {
    constexpr int WORDS = payload<P>::words;
    uint32_t w[WORDS];
    float scale = 1;
    load_words<WORDS>(w, row + (int64_t)q * (WORDS * 4));
    if (P == PAYLOAD_F8)
        scale = __ldcg((const float *)(row + packed_granules<P>(row_len) * 4) + q / F8_GRANULES);
    decode<P>(v, w, scale);
}
template <int P>
DEVICE void write_packed(char *row, const typename payload<P>::type v[GRANULE], int q,
                         int row_len) {
    constexpr int WORDS = payload<P>::words;
    uint32_t w[WORDS];
    float scale = 1;
    encode<P>(w, &scale, v);
    if (q >= packed_granules<P>(row_len))
        return;
    store_words<WORDS>(row + (int64_t)q * (WORDS * 4), w);
    if (P == PAYLOAD_F8 && q % F8_GRANULES == 0)
        *((float *)(row + packed_granules<P>(row_len) * 4) + q / F8_GRANULES) = scale;
}

template <int P>
static __global__ void __launch_bounds__(PACK_THREADS)
    allreduce_pack_kernel(char *packed, const struct allreduce_array a, int row0) {
    typedef typename payload<P>::type T;
    int i = row0 + (int)blockIdx.x, cols = row_cols(a, i);
    const T *row = (const T *)a.partial + row_start(a, i);
    char *to = packed + (int64_t)blockIdx.x * packed_bytes<P>(a.row_len);
    int end = round_to_warp(packed_granules<P>(a.row_len));
    for (int q = threadIdx.x; q < end; q += PACK_THREADS) {
        T v[GRANULE];
        load_granule(v, row, q, cols, a.row_len % GRANULE == 0);
        write_packed<P>(to, v, q, a.row_len);
    }
}

template <int P>
static __global__ void __launch_bounds__(PACK_THREADS)
    allreduce_sum_kernel(char *sum, const __grid_constant__ struct allreduce_parts parts,
                         int num_ranks, int row_len) {
    typedef typename payload<P>::type T;
    int64_t row = (int64_t)blockIdx.x * packed_bytes<P>(row_len);
    int granules = packed_granules<P>(row_len);
    for (int q = threadIdx.x; q < round_to_warp(granules); q += PACK_THREADS) {
        T total[GRANULE] = {0, 0, 0, 0};
#pragma unroll 4
        for (int s = 0; q < granules && s < num_ranks; s++) {
            T v[GRANULE];
            read_packed<P>(v, parts.part[s] + row, q, row_len);
#pragma unroll
            for (int e = 0; e < GRANULE; e++)
                total[e] = s == 0 ? v[e] : total[e] + v[e];
        }
        write_packed<P>(sum + row, total, q, row_len);
    }
}

/* Packed row i of num_rows, which are cut over the ranks by rows. */
template <int P>
DEVICE const char *packed_row(const struct allreduce_parts &parts, int num_ranks, int num_rows,
                              int i, int row_len) {
    int s = (int)(((int64_t)(i + 1) * num_ranks - 1) / num_rows);
    int first = (int)((int64_t)num_rows * s / num_ranks);
    return parts.part[s] + (i - first) * packed_bytes<P>(row_len);
}

template <int P, bool NORM>
static __global__ void __launch_bounds__(ALLREDUCE_MAX_THREADS, 1)
    allreduce_finish_kernel(const struct allreduce_array a,
                            const __grid_constant__ struct allreduce_parts parts, int num_ranks,
                            int row0) {
    typedef typename payload<P>::type T;
    __shared__ float scratch[NORM ? NORM_SCRATCH : 1], odd_row[NORM ? ALLREDUCE_MAX_ODD_NORM : 1];
    int granules = (a.row_len + GRANULE - 1) / GRANULE, i = row0 + (int)blockIdx.x;
    bool wide = a.row_len % GRANULE == 0;
    const char *row = packed_row<P>(parts, num_ranks, (int)gridDim.x, (int)blockIdx.x, a.row_len);
    if constexpr (NORM) {
        float h[NORM_MAX_UNITS][UNIT];
#pragma unroll
        for (int u = 0; u < NORM_MAX_UNITS; u++) {
            T v[GRANULE] = {0, 0, 0, 0};
            int q = u * (int)blockDim.x + (int)threadIdx.x;
            if (q < granules)
                read_packed<P>(v, row, q, a.row_len);
#pragma unroll
            for (int e = 0; e < UNIT; e++)
                h[u][e] = (float)v[e];
        }
        norm_sum(a, i, h, {(int)blockDim.x, wide}, scratch, odd_row);
    } else {
        for (int q = threadIdx.x; q < granules; q += blockDim.x) {
            T v[GRANULE];
            read_packed<P>(v, row, q, a.row_len);
            store_sum(a, i, q, v, wide);
        }
    }
}

template <int P>
static void launch_pack(char *packed, const struct allreduce_array *a, int32_t row0,
                        int32_t num_rows, cudaStream_t stream) {
    allreduce_pack_kernel<P><<<num_rows, PACK_THREADS, 0, stream>>>(packed, *a, row0);
    LAUNCH_CHECK();
}

template <int P>
static void launch_sum(char *sum, const struct allreduce_parts *parts, int32_t num_ranks,
                       int32_t num_rows, int32_t row_len, cudaStream_t stream) {
    allreduce_sum_kernel<P><<<num_rows, PACK_THREADS, 0, stream>>>(sum, *parts, num_ranks, row_len);
    LAUNCH_CHECK();
}

template <int P>
static void launch_finish(const struct allreduce_array *a, const struct allreduce_parts *parts,
                          int32_t num_ranks, int32_t row0, int32_t num_rows, cudaStream_t stream) {
    int threads = norm_threads(min(a->row_len, (int)ALLREDUCE_MAX_NORM));
    if (a->norm.x)
        allreduce_finish_kernel<P, true>
            <<<num_rows, threads, 0, stream>>>(*a, *parts, num_ranks, row0);
    else
        allreduce_finish_kernel<P, false>
            <<<num_rows, threads, 0, stream>>>(*a, *parts, num_ranks, row0);
    LAUNCH_CHECK();
}
