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

/* ---- kernels of several devices that wait for each other ------------------------------------- */

static __device__ __forceinline__ long long now_ns(void) {
    long long t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

/* Which round's number lies in a box, and the number. */
template <int MAIL>
static __device__ __forceinline__ int look(const struct rt_box *box, int *number) {
    int flag;
    if (MAIL == RT_VECTOR) {
        unsigned v[4];
        asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                     : "l"(box->vector[threadIdx.x])
                     : "memory");
        *number = v[0] == v[2] ? (int)v[0] : -1;
        return v[1] == v[3] ? (int)v[1] : 0;
    }
    if (MAIL == RT_VOLATILE) {
        flag = *(const volatile int *)&box->flag;
        __threadfence_system();
    } else if (MAIL == RT_ACQUIRE) {
        asm volatile("ld.acquire.sys.global.u32 %0, [%1];"
                     : "=r"(flag)
                     : "l"(&box->flag)
                     : "memory");
        __nanosleep(20);
    } else {
        flag = atomicAdd_system((int *)&box->flag, 0);
        __threadfence_system();
    }
    return flag;
}

template <int MAIL>
static __device__ __forceinline__ void put(struct rt_box *box, int round, int number) {
    if (MAIL == RT_VECTOR) {
        asm volatile(
            "st.volatile.global.v4.u32 [%0], {%1, %2, %1, %2};" ::"l"(box->vector[threadIdx.x]),
            "r"(number), "r"(round)
            : "memory");
        return;
    }
    box->number = number;
    if (MAIL == RT_VOLATILE) {
        __threadfence_system();
        *(volatile int *)&box->flag = round;
    } else if (MAIL == RT_ACQUIRE) {
        asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(&box->flag), "r"(round)
                     : "memory");
    } else {
        asm volatile("red.release.sys.global.add.u32 [%0], 1;" ::"l"(&box->flag) : "memory");
    }
}

/* Takes the number of a round; -1 when the time is over. */
template <int MAIL>
static __device__ __forceinline__ int take(const struct rt_box *box, int round,
                                           long long timeout_ns) {
    long long start = now_ns();
    int number = 0;
    while (look<MAIL>(box, &number) != round)
        if (now_ns() - start > timeout_ns)
            return -1;
    return MAIL == RT_VECTOR ? number : *(const volatile int *)&box->number;
}

template <int MAIL>
static __global__ void __launch_bounds__(32)
    relay_kernel(const struct rt_box *in, struct rt_box *out, int rounds, int first,
                 long long timeout_ns, int *result) {
    int number = 0;
    if (MAIL != RT_VECTOR && threadIdx.x)
        return;
    for (int round = 1; round <= rounds; round++) {
        if (first)
            put<MAIL>(&out[blockIdx.x], round, number);
        number = take<MAIL>(&in[blockIdx.x], round, timeout_ns);
        if (number < 0)
            break;
        number++;
        if (!first)
            put<MAIL>(&out[blockIdx.x], round, number);
    }
    int lowest = MAIL == RT_VECTOR ? __reduce_min_sync(0xffffffff, number) : number;
    if (threadIdx.x == 0)
        result[blockIdx.x] = lowest;
}

static __global__ void __launch_bounds__(32)
    detour_kernel(const struct rt_box *in, struct rt_box *out, int value, int *x, int *result) {
    if (threadIdx.x)
        return;
    if (blockIdx.x == 0) {
        x[0] = value;
        put<RT_ACQUIRE>(out, 1, 0);
    } else if (take<RT_ACQUIRE>(in, 1, 10000000000) >= 0) {
        result[0] = x[0];
    }
}

static __global__ void __launch_bounds__(32) wait_kernel(const int *flag, int value, int *seen) {
    if (threadIdx.x)
        return;
    while (*(const volatile int *)flag != value)
        ;
    seen[0] = value;
}

static __global__ void __launch_bounds__(32) tear_kernel(const unsigned *x, int n, int *torn) {
    for (int i = 0; i < n; i++) {
        unsigned v[4];
        unsigned long long w[2];
        asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                     : "l"(x)
                     : "memory");
        asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];"
                     : "=l"(w[0]), "=l"(w[1])
                     : "l"(x)
                     : "memory");
        if (v[0] != v[1] || v[0] != v[2] || v[0] != v[3])
            atomicAdd(torn, 1);
        if (w[0] != w[1] || (unsigned)w[0] != (unsigned)(w[0] >> 32))
            atomicAdd(torn, 1);
    }
}

cudaError_t rt_tear_launch(const unsigned *x, int n, int *torn, cudaStream_t stream) {
    tear_kernel<<<1, 32, 0, stream>>>(x, n, torn);
    return cudaGetLastError();
}

cudaError_t rt_wait_launch(const int *flag, int value, int *seen, cudaStream_t stream) {
    wait_kernel<<<1, 32, 0, stream>>>(flag, value, seen);
    return cudaGetLastError();
}

cudaError_t rt_relay_launch(enum rt_mail mail, const struct rt_box *in, struct rt_box *out,
                            int blocks, int rounds, int first, long long timeout_ns, int *result,
                            cudaStream_t stream) {
    auto kernel = mail == RT_VOLATILE  ? relay_kernel<RT_VOLATILE>
                  : mail == RT_ACQUIRE ? relay_kernel<RT_ACQUIRE>
                  : mail == RT_ATOMIC  ? relay_kernel<RT_ATOMIC>
                                       : relay_kernel<RT_VECTOR>;
    kernel<<<blocks, 32, 0, stream>>>(in, out, rounds, first, timeout_ns, result);
    return cudaGetLastError();
}

cudaError_t rt_detour_launch(const struct rt_box *in, struct rt_box *out, int value, int *x,
                             int *result, cudaStream_t stream) {
    detour_kernel<<<2, 32, 0, stream>>>(in, out, value, x, result);
    return cudaGetLastError();
}
