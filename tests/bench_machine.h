/* bench_machine: the limits of this machine that benchmarks are measured against. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* GB/s of a plain loop that sums 256 MiB with that many threads, each reading a contiguous part;
 * the median of so many passes. The memory is kept for the next call. */
double machine_read_gbps(int32_t threads, int32_t passes);

/* GFLOP/s of independent fused multiply-adds in registers (float32, the widest vectors this CPU
 * has), with that many threads; the median of so many passes of some milliseconds. */
double machine_fma_gflops(int32_t threads, int32_t passes);

/* Median of n values; reorders them. */
double machine_median(double *values, int32_t n);

/* Limits of the first GPU: bytes read and written by a copy within its memory, and a bf16 product
 * of 8192^3 by cuBLAS (tiny: toy sizes). False when there is none, or in a build without CUDA.
 * Leaves no memory of the GPU in use. */
struct gpu_limits {
    double copy_gbps, bf16_gflops;
};
bool machine_gpu(bool tiny, struct gpu_limits *out);
