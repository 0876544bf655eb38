/* bench_machine: the limits of this machine that benchmarks are measured against. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* GB/s of a plain loop that sums `bytes` of memory with that many threads, each reading a
 * contiguous part; the median of several passes. Take bytes well above the last-level cache. */
double machine_read_gbps(int32_t threads, size_t bytes);

/* GFLOP/s of independent fused multiply-adds in registers (float32, the widest vectors this CPU
 * has), with that many threads; the best of several runs. */
double machine_fma_gflops(int32_t threads);

/* Median of n values; reorders them. */
double machine_median(double *values, int32_t n);
