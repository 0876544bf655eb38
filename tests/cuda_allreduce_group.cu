/* Ranks as groups of blocks of one grid: blockIdx.y is the rank. All of them are at once on one
 * GPU, and exchange through the memory that ranks on GPUs of their own would. */
#include "cuda/allreduce.cuh"
#include "tests/cuda_allreduce_group.h"

template <int P, int W, bool NORM>
static __global__ void __launch_bounds__(ALLREDUCE_MAX_THREADS, 1)
    allreduce_group_kernel(const struct allreduce_channel *channels,
                           const struct allreduce_array *arrays) {
    allreduce_block<P, W, NORM>(channels[blockIdx.y], arrays[blockIdx.y], blockIdx.x, gridDim.x);
}

template <int P, int W> static void launch(const struct allreduce_group *g, cudaStream_t stream) {
    int threads = norm_threads(min(g->row_len, (int)ALLREDUCE_MAX_NORM));
    int blocks = min(g->num_rows, g->num_blocks);
    if (g->norm)
        allreduce_group_kernel<P, W, true>
            <<<dim3(blocks, g->num_ranks), threads, 0, stream>>>(g->channels, g->arrays);
    else
        allreduce_group_kernel<P, W, false>
            <<<dim3(blocks, g->num_ranks), threads, 0, stream>>>(g->channels, g->arrays);
    LAUNCH_CHECK();
}

void allreduce_group_launch(const struct allreduce_group *g, cudaStream_t stream) {
    bool lines = g->way == ALLREDUCE_LINES;
    if (g->payload == PAYLOAD_BF16 && lines)
        launch<PAYLOAD_BF16, ALLREDUCE_LINES>(g, stream);
    else if (g->payload == PAYLOAD_BF16)
        launch<PAYLOAD_BF16, ALLREDUCE_FLAGS>(g, stream);
    else if (g->payload == PAYLOAD_F32 && lines)
        launch<PAYLOAD_F32, ALLREDUCE_LINES>(g, stream);
    else if (g->payload == PAYLOAD_F32)
        launch<PAYLOAD_F32, ALLREDUCE_FLAGS>(g, stream);
    else
        launch<PAYLOAD_F8, ALLREDUCE_FLAGS>(g, stream);
}

static __global__ void next_step_kernel(uint32_t *step) {
    *step = (*step + 1) % ALLREDUCE_STEPS;
}

void allreduce_group_next_step(uint32_t *step, cudaStream_t stream) {
    next_step_kernel<<<1, 1, 0, stream>>>(step);
    LAUNCH_CHECK();
}
