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

#ifdef __cplusplus
}
#endif
