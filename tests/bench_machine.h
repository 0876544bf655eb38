/* bench_machine: the limits of this machine that benchmarks are measured against. */
#pragma once

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
