/* Kernels for the tests of the CUDA runtime's stand-in (rt_kernels.h). */
#include "tests/ptxvm/rt_kernels.h"

enum { BLOCK = 64 };

static __device__ int rt_counter;
static __constant__ int rt_table[4];

static __global__ void __launch_bounds__(BLOCK) add_kernel(int *x, int n, int value) {
    int i = blockIdx.x * BLOCK + threadIdx.x;
    if (i < n)
        x[i] += value;
}

static __global__ void __launch_bounds__(BLOCK) move_kernel(int *y, const int *x, int n) {
    int i = blockIdx.x * BLOCK + threadIdx.x;
    if (i < n)
        y[i] = x[i];
}

static __global__ void __launch_bounds__(BLOCK)
    pair_kernel(float *y, char skip, struct rt_pair pair, const int *x, int n) {
    int i = blockIdx.x * BLOCK + threadIdx.x + skip;
    if (i < n)
        y[i] = (float)(x[i] + pair.add) * pair.scale;
}

static __global__ void __launch_bounds__(32) shared_kernel(int *y, const int *x, int n) {
    extern __shared__ int part[];
    for (int i = threadIdx.x; i < n; i += 32)
        part[i] = x[i];
    __syncthreads();
    if (threadIdx.x == 0) {
        int sum = 0;
        for (int i = 0; i < n; i++)
            sum += part[i];
        y[0] = sum;
    }
}

static __global__ void __launch_bounds__(BLOCK) bounded_kernel(int *y) {
    __shared__ int part[256];
    part[threadIdx.x] = threadIdx.x;
    __syncthreads();
    y[threadIdx.x] = part[threadIdx.x];
}

static __global__ void count_kernel() {
    for (int i = 0; i < 4; i++)
        rt_counter += rt_table[i];
}

cudaError_t rt_add_launch(int *x, int n, int value, cudaStream_t stream) {
    add_kernel<<<(n + BLOCK - 1) / BLOCK, BLOCK, 0, stream>>>(x, n, value);
    return cudaGetLastError();
}

const void *rt_add_kernel(void) {
    return (const void *)add_kernel;
}

cudaError_t rt_move_launch(int *y, const int *x, int n, cudaStream_t stream) {
    move_kernel<<<(n + BLOCK - 1) / BLOCK, BLOCK, 0, stream>>>(y, x, n);
    return cudaGetLastError();
}

cudaError_t rt_pair_launch(float *y, char skip, struct rt_pair pair, const int *x, int n,
                           cudaStream_t stream) {
    pair_kernel<<<(n + BLOCK - 1) / BLOCK, BLOCK, 0, stream>>>(y, skip, pair, x, n);
    return cudaGetLastError();
}

cudaError_t rt_shared_launch(int *y, const int *x, int n, size_t bytes, cudaStream_t stream) {
    shared_kernel<<<1, 32, bytes, stream>>>(y, x, n);
    return cudaGetLastError();
}

const void *rt_shared_kernel(void) {
    return (const void *)shared_kernel;
}

cudaError_t rt_bounded_launch(int *y, int threads, cudaStream_t stream) {
    bounded_kernel<<<1, threads, 0, stream>>>(y);
    return cudaGetLastError();
}

const void *rt_bounded_kernel(void) {
    return (const void *)bounded_kernel;
}

cudaError_t rt_count_launch(cudaStream_t stream) {
    count_kernel<<<1, 1, 0, stream>>>();
    return cudaGetLastError();
}

const void *rt_counter_symbol(void) {
    return &rt_counter;
}

const void *rt_table_symbol(void) {
    return rt_table;
}
