/* allreduce_f64: the kernels of allreduce.cu and allreduce_copy.cu for the payload F64, whose sums
 * are float64. */
#include "cuda/allreduce_copy.cuh"
#include "cuda/allreduce_f64.h"

void allreduce_f64_launch(const struct allreduce_channel *c, const struct allreduce_array *a,
                          enum allreduce_way way, int32_t num_blocks, cudaStream_t stream) {
    if (way == ALLREDUCE_LINES)
        launch_exchange<PAYLOAD_F64, ALLREDUCE_LINES>(c, a, num_blocks, stream);
    else
        launch_exchange<PAYLOAD_F64, ALLREDUCE_FLAGS>(c, a, num_blocks, stream);
}

void allreduce_f64_pack_launch(char *packed, const struct allreduce_array *a, int32_t row0,
                               int32_t num_rows, cudaStream_t stream) {
    launch_pack<PAYLOAD_F64>(packed, a, row0, num_rows, stream);
}

void allreduce_f64_sum_launch(char *sum, const struct allreduce_parts *parts, int32_t num_ranks,
                              int32_t num_rows, int32_t row_len, cudaStream_t stream) {
    launch_sum<PAYLOAD_F64>(sum, parts, num_ranks, num_rows, row_len, stream);
}

void allreduce_f64_finish_launch(const struct allreduce_array *a,
                                 const struct allreduce_parts *parts, int32_t num_ranks,
                                 int32_t row0, int32_t num_rows, cudaStream_t stream) {
    launch_finish<PAYLOAD_F64>(a, parts, num_ranks, row0, num_rows, stream);
}
