/* cuda_allreduce_group: an all-reduce whose ranks are groups of blocks of one grid. */
#pragma once

#include "cuda/allreduce.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Ranks' channels and arrays [num_ranks] in device memory; num_ranks * num_blocks is at most the
 * number of multiprocessors. LINES or FLAGS; BF16, F32 or F8 (FLAGS). */
struct allreduce_group {
    const struct allreduce_channel *channels;
    const struct allreduce_array *arrays;
    int32_t num_ranks, num_rows, row_len, num_blocks;
    enum allreduce_way way;
    enum allreduce_payload payload;
    bool norm; /* the arrays have one */
};
void allreduce_group_launch(const struct allreduce_group *g, cudaStream_t stream);
/* ++*step, in device memory. */
void allreduce_group_next_step(uint32_t *step, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
