/* allreduce_f64: the launchers of allreduce.h for the payload F64. They are compiled by themselves,
 * in the only file whose kernels may use float64 (Makefile); allreduce.cu and allreduce_copy.cu
 * call them.
 */
#pragma once

#include "cuda/allreduce.h"

#ifdef __cplusplus
extern "C" {
#endif

void allreduce_f64_launch(const struct allreduce_channel *c, const struct allreduce_array *a,
                          enum allreduce_way way, int32_t num_blocks, cudaStream_t stream);
void allreduce_f64_pack_launch(char *packed, const struct allreduce_array *a, int32_t row0,
                               int32_t num_rows, cudaStream_t stream);
void allreduce_f64_sum_launch(char *sum, const struct allreduce_parts *parts, int32_t num_ranks,
                              int32_t num_rows, int32_t row_len, cudaStream_t stream);
void allreduce_f64_finish_launch(const struct allreduce_array *a,
                                 const struct allreduce_parts *parts, int32_t num_ranks,
                                 int32_t row0, int32_t num_rows, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
