/* allreduce: LINES and FLAGS, with a norm behind them or without
 *
 * Shapes   partial [*, H] float (F64: double); the rest as in norm.cu, or a sum of partial's type.
 * Launch   as many blocks as there are rows, at most num_blocks, each as large as norm.cu's for the
 *          row (256 or 512 threads), so that norms have the same bits. Blocks wait for those of
 *          other ranks, so all blocks of all ranks have to be resident: grid <= multiprocessors /
 *          ranks that share the GPU; one block fits on every multiprocessor. The caller sees to
 * that. Bytes    of T*H*p payload: twice as much written (LINES: four times), of which the results
 * once, (n + 1) / n read each time; bound by the links, for few rows by their latency: 2 hops.
 * Numerics as in allreduce.h; bit-identical on all ranks, and the same in all ways. Rows do not
 * depend on each other. Requires 16-byte aligned rows of arrays; H <= ALLREDUCE_MAX_NORM with a
 * norm.
 */
#include "cuda/allreduce.cuh"
#include "cuda/allreduce_f64.h"

size_t allreduce_message_bytes(enum allreduce_way way, enum allreduce_payload payload,
                               int32_t num_rows, int32_t row_len, int32_t num_ranks) {
    struct slices s(payload, row_len, num_ranks);
    int64_t granules = (int64_t)num_rows * s.largest(), words = granules * payload_words(payload);
    if (way == ALLREDUCE_LINES)
        return (size_t)(words / 2 * LINE_BYTES);
    if (way == ALLREDUCE_FLAGS)
        return (size_t)(FLAG_BYTES + words * 4 +
                        (payload == PAYLOAD_F8 ? granules / F8_GRANULES * 4 : 0));
    return (size_t)((num_rows + num_ranks - 1) / num_ranks * allreduce_row_bytes(payload, row_len));
}

void allreduce_launch(const struct allreduce_channel *c, const struct allreduce_array *a,
                      enum allreduce_way way, enum allreduce_payload payload, int32_t num_blocks,
                      cudaStream_t stream) {
    CHECK(way != ALLREDUCE_COPIES && !(way == ALLREDUCE_LINES && payload == PAYLOAD_F8),
          "way %d, payload %d", (int)way, (int)payload);
    CHECK(num_blocks > 0 && num_blocks <= ALLREDUCE_MAX_BLOCKS && c->num_ranks > 0 &&
              c->num_ranks <= ALLREDUCE_MAX_RANKS && c->call < ALLREDUCE_CALLS,
          "%d blocks, %d ranks, call %d", num_blocks, c->num_ranks, c->call);
    CHECK(a->row_len > 0 && (!a->norm.x || allreduce_has_norm(a->row_len)), "rows of %d columns",
          a->row_len);
    if (a->num_rows == 0)
        return;
    int blocks = a->num_rows < num_blocks ? a->num_rows : num_blocks;
    bool lines = way == ALLREDUCE_LINES;
    if (payload == PAYLOAD_F64)
        allreduce_f64_launch(c, a, way, blocks, stream);
    else if (payload == PAYLOAD_F8)
        launch_exchange<PAYLOAD_F8, ALLREDUCE_FLAGS>(c, a, blocks, stream);
    else if (payload == PAYLOAD_BF16 && lines)
        launch_exchange<PAYLOAD_BF16, ALLREDUCE_LINES>(c, a, blocks, stream);
    else if (payload == PAYLOAD_BF16)
        launch_exchange<PAYLOAD_BF16, ALLREDUCE_FLAGS>(c, a, blocks, stream);
    else if (lines)
        launch_exchange<PAYLOAD_F32, ALLREDUCE_LINES>(c, a, blocks, stream);
    else
        launch_exchange<PAYLOAD_F32, ALLREDUCE_FLAGS>(c, a, blocks, stream);
}
