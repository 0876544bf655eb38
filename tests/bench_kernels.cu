/* bench_kernels: random data for benchmarks, and the plain copy and read that kernels are compared with
 *
 * Shapes   flat arrays of 16-byte words.
 * Launch   fill: a thread a word. copy, read: persistent, 8 blocks a multiprocessor, four words a thread
 *          in flight (64 B x 2,048 threads a multiprocessor).
 * Bytes    copy: n read + n written; read: n. Bandwidth-bound.
 */
#include "cuda/cuda_check.h"
#include "host/error.h"
#include "tests/bench_kernels.h"

constexpr int THREADS = 256, UNROLL = 4, BLOCKS_PER_SM = 8;

/* 32 well-mixed bits of a counter (the finaliser of MurmurHash3). */
static __device__ __forceinline__ uint32_t mixed(uint32_t x) {
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    return x ^ x >> 16;
}

static __device__ __forceinline__ float uniform(uint32_t bits, float amplitude) {
    return ((float)(bits >> 8) * (2.0f / (1 << 24)) - 1.0f) * amplitude;
}

/* Four bytes of the array. */
static __device__ __forceinline__ uint32_t word(enum bench_fill kind, float amplitude,
                                                uint32_t bits) {
    if (kind == FILL_FLOAT)
        return __float_as_uint(uniform(bits, amplitude));
    if (kind == FILL_BF16) /* two floats, each cut to its upper half */
        return (__float_as_uint(uniform(bits << 16, amplitude)) >> 16) |
               (__float_as_uint(uniform(bits & 0xffff0000u, amplitude)) & 0xffff0000u);
    return bits & 0xf7f7f7f7u; /* an even exponent: never a NaN */
}

__global__ void __launch_bounds__(THREADS)
    fill_kernel(uint4 *data, int64_t words, enum bench_fill kind, float amplitude, uint32_t seed) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= words)
        return;
    uint32_t c = mixed((uint32_t)i ^ seed) + (uint32_t)(i >> 32);
    data[i] = make_uint4(word(kind, amplitude, mixed(c)), word(kind, amplitude, mixed(c + 0x9e37u)),
                         word(kind, amplitude, mixed(c + 0x79b9u)),
                         word(kind, amplitude, mixed(c + 0x7f4au)));
}

void bench_fill_launch(void *data, size_t bytes, enum bench_fill kind, float amplitude,
                       uint32_t seed, cudaStream_t stream) {
    int64_t words = (int64_t)(bytes / 16);
    if (words == 0)
        return;
    fill_kernel<<<(unsigned)((words + THREADS - 1) / THREADS), THREADS, 0, stream>>>(
        (uint4 *)data, words, kind, amplitude, seed);
    LAUNCH_CHECK();
}

__global__ void __launch_bounds__(THREADS)
    copy_kernel(uint4 *to, const uint4 *from, int64_t words) {
    int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < words; i += UNROLL * step) {
        uint4 v[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            if (i + u * step < words)
                v[u] = __ldcs(from + i + u * step);
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            if (i + u * step < words)
                __stcs(to + i + u * step, v[u]);
    }
}

void bench_copy_launch(void *to, const void *from, size_t bytes, int32_t num_sms,
                       cudaStream_t stream) {
    copy_kernel<<<num_sms * BLOCKS_PER_SM, THREADS, 0, stream>>>((uint4 *)to, (const uint4 *)from,
                                                                 (int64_t)(bytes / 16));
    LAUNCH_CHECK();
}

__global__ void __launch_bounds__(THREADS)
    read_kernel(uint32_t *sink, const uint4 *from, int64_t words) {
    int64_t step = (int64_t)gridDim.x * THREADS;
    uint32_t all = 0;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < words; i += UNROLL * step) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            if (i + u * step < words) {
                uint4 v = __ldcs(from + i + u * step);
                all ^= v.x ^ v.y ^ v.z ^ v.w;
            }
    }
    if (all == 0x5eed5eedu) /* keeps the compiler from dropping the loads */
        *sink = all;
}

void bench_read_launch(uint32_t *sink, const void *from, size_t bytes, int32_t num_sms,
                       cudaStream_t stream) {
    read_kernel<<<num_sms * BLOCKS_PER_SM, THREADS, 0, stream>>>(sink, (const uint4 *)from,
                                                                 (int64_t)(bytes / 16));
    LAUNCH_CHECK();
}
