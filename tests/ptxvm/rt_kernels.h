/* rt_kernels: tiny kernels for the tests of the runtime's stand-in, and their launches. */
#pragma once

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

struct rt_pair {
    int add;
    float scale; /* a parameter with padding around it */
};

/* x[i] += value, for i < n. */
cudaError_t rt_add_launch(int *x, int n, int value, cudaStream_t stream);
const void *rt_add_kernel(void);
/* y[i] = x[i]. */
cudaError_t rt_move_launch(int *y, const int *x, int n, cudaStream_t stream);
/* y[i] = (x[i] + pair.add) * pair.scale; the pair lies between two other parameters. */
cudaError_t rt_pair_launch(float *y, char skip, struct rt_pair pair, const int *x, int n,
                           cudaStream_t stream);
/* y[0] = sum of x[0..n), through n ints of dynamic shared memory; one block of 32 threads. */
cudaError_t rt_shared_launch(int *y, const int *x, int n, size_t bytes, cudaStream_t stream);
const void *rt_shared_kernel(void);
/* Has __launch_bounds__(64) and 1024 bytes of static shared memory; y[i] = i. */
cudaError_t rt_bounded_launch(int *y, int threads, cudaStream_t stream);
const void *rt_bounded_kernel(void);
/* rt_counter += table[i] for i < 4, where both are variables of the module. */
cudaError_t rt_count_launch(cudaStream_t stream);
const void *rt_counter_symbol(void); /* int */
const void *rt_table_symbol(void);   /* int [4], constant */

/* ---- kernels of several devices that wait for each other ------------------------------------- */

/* How a number travels: a flag beside it, or inside of the same 16 bytes. */
enum rt_mail { RT_VOLATILE, RT_ACQUIRE, RT_ATOMIC, RT_VECTOR, RT_NUM_MAILS };
/* A place to leave a number for another device, in memory that both of them reach; all zeros. */
struct rt_box {
    int number, flag; /* not RT_VECTOR: the number is valid in round flag */
    int unused[2];
    unsigned vector[32][4]; /* RT_VECTOR: number and round, twice, for each lane */
};

/* Block b takes a number from in[b], adds 1 and puts it into out[b], rounds times. The first of a
 * ring starts with 0 and puts before it takes. result[b] becomes the last number it took, plus 1,
 * or -1 when nothing came for timeout_ns. Blocks of 32 threads. */
cudaError_t rt_relay_launch(enum rt_mail mail, const struct rt_box *in, struct rt_box *out,
                            int blocks, int rounds, int first, long long timeout_ns, int *result,
                            cudaStream_t stream);
/* Waits until flag[0] is value, without a limit; then seen[0] = value. */
cudaError_t rt_wait_launch(const int *flag, int value, int *seen, cudaStream_t stream);
/* Each lane loads x[0..4) at once, n times in two ways; torn[0] += how often the four were not the
 * same. */
cudaError_t rt_tear_launch(const unsigned *x, int n, int *torn, cudaStream_t stream);
/* Two blocks: the first writes x[0] = value and puts into out; the second takes from in, and writes
 * result[0] = x[0]. Only who carries the number from out to in orders the two. */
cudaError_t rt_detour_launch(const struct rt_box *in, struct rt_box *out, int value, int *x,
                             int *result, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
