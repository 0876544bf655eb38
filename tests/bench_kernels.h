/* bench_kernels: kernels of the benchmarks themselves: random data, and plain copies and reads as
 * ceilings. All sizes are multiples of 16 bytes. */
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum bench_fill { FILL_FLOAT, FILL_BF16, FILL_E4M3 };

/* Random elements: uniform in +-amplitude, or any finite E4M3. */
void bench_fill_launch(void *data, size_t bytes, enum bench_fill kind, float amplitude,
                       uint32_t seed, cudaStream_t stream);
/* to = from, 16 bytes a thread and load, four loads in flight. */
void bench_copy_launch(void *to, const void *from, size_t bytes, int32_t num_sms,
                       cudaStream_t stream);
/* Reads all of it; *sink is written in the rare case of one value. */
void bench_read_launch(uint32_t *sink, const void *from, size_t bytes, int32_t num_sms,
                       cudaStream_t stream);

#ifdef __cplusplus
}
#endif
