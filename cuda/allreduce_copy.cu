/* allreduce_copy: what COPIES does besides the copies: rows are packed, added, and finished like
 * those of allreduce.cu, and a warp signals and awaits what the copy engines brought
 *
 * Shapes   as in allreduce.cu; packed rows of allreduce_row_bytes.
 * Launch   a block a row; pack and sum have 256 threads, finish as many as norm.cu. The two kernels
 * of flags are a warp each; waiting takes a multiprocessor's issue slots only for a load each few
 * microseconds. Bytes    T*H*p payload: pack 4*T*H read, p written; sum p read, p / n written;
 * finish p read and what norm.cu moves without its partial. Numerics those of allreduce.cu, bit for
 * bit. Requires as allreduce.cu.
 */
#include "cuda/allreduce_copy.cuh"
#include "cuda/allreduce_f64.h"

int64_t allreduce_row_bytes(enum allreduce_payload payload, int32_t row_len) {
    switch (payload) {
    case PAYLOAD_BF16:
        return packed_bytes<PAYLOAD_BF16>(row_len);
    case PAYLOAD_F32:
        return packed_bytes<PAYLOAD_F32>(row_len);
    case PAYLOAD_F64:
        return packed_bytes<PAYLOAD_F64>(row_len);
    default:
        return packed_bytes<PAYLOAD_F8>(row_len);
    }
}

void allreduce_pack_launch(char *packed, const struct allreduce_array *a,
                           enum allreduce_payload payload, int32_t row0, int32_t num_rows,
                           cudaStream_t stream) {
    if (num_rows == 0)
        return;
    if (payload == PAYLOAD_F64)
        allreduce_f64_pack_launch(packed, a, row0, num_rows, stream);
    else if (payload == PAYLOAD_BF16)
        launch_pack<PAYLOAD_BF16>(packed, a, row0, num_rows, stream);
    else if (payload == PAYLOAD_F32)
        launch_pack<PAYLOAD_F32>(packed, a, row0, num_rows, stream);
    else
        launch_pack<PAYLOAD_F8>(packed, a, row0, num_rows, stream);
}

void allreduce_sum_launch(char *sum, const struct allreduce_parts *parts, int32_t num_ranks,
                          enum allreduce_payload payload, int32_t num_rows, int32_t row_len,
                          cudaStream_t stream) {
    if (num_rows == 0)
        return;
    if (payload == PAYLOAD_F64)
        allreduce_f64_sum_launch(sum, parts, num_ranks, num_rows, row_len, stream);
    else if (payload == PAYLOAD_BF16)
        launch_sum<PAYLOAD_BF16>(sum, parts, num_ranks, num_rows, row_len, stream);
    else if (payload == PAYLOAD_F32)
        launch_sum<PAYLOAD_F32>(sum, parts, num_ranks, num_rows, row_len, stream);
    else
        launch_sum<PAYLOAD_F8>(sum, parts, num_ranks, num_rows, row_len, stream);
}

void allreduce_finish_launch(const struct allreduce_array *a, const struct allreduce_parts *parts,
                             int32_t num_ranks, enum allreduce_payload payload, int32_t row0,
                             int32_t num_rows, cudaStream_t stream) {
    CHECK(!a->norm.x || allreduce_has_norm(a->row_len), "rows of %d columns", a->row_len);
    if (num_rows == 0)
        return;
    if (payload == PAYLOAD_F64)
        allreduce_f64_finish_launch(a, parts, num_ranks, row0, num_rows, stream);
    else if (payload == PAYLOAD_BF16)
        launch_finish<PAYLOAD_BF16>(a, parts, num_ranks, row0, num_rows, stream);
    else if (payload == PAYLOAD_F32)
        launch_finish<PAYLOAD_F32>(a, parts, num_ranks, row0, num_rows, stream);
    else
        launch_finish<PAYLOAD_F8>(a, parts, num_ranks, row0, num_rows, stream);
}

/* ---- flags ----------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(WARP)
    allreduce_signal_kernel(const __grid_constant__ struct allreduce_channel c,
                            const __grid_constant__ struct allreduce_flags flags) {
    uint32_t number = call_number(c);
    if ((int)threadIdx.x < ALLREDUCE_MAX_RANKS && flags.flag[threadIdx.x])
        store_release(flags.flag[threadIdx.x], number);
}

static __global__ void __launch_bounds__(WARP)
    allreduce_wait_kernel(const __grid_constant__ struct allreduce_channel c,
                          const __grid_constant__ struct allreduce_flags flags) {
    struct waiter waiter = start_waiting(c);
    wait_flags(c, waiter, threadIdx.x < ALLREDUCE_MAX_RANKS ? flags.flag[threadIdx.x] : NULL,
               call_number(c));
}

void allreduce_signal_launch(const struct allreduce_channel *c, const struct allreduce_flags *flags,
                             cudaStream_t stream) {
    allreduce_signal_kernel<<<1, WARP, 0, stream>>>(*c, *flags);
    LAUNCH_CHECK();
}

void allreduce_wait_launch(const struct allreduce_channel *c, const struct allreduce_flags *flags,
                           cudaStream_t stream) {
    allreduce_wait_kernel<<<1, WARP, 0, stream>>>(*c, *flags);
    LAUNCH_CHECK();
}

/* ---- a probe of all pairs -------------------------------------------------------------------- */

constexpr int PROBE_THREADS = 256;
constexpr int PROBE_WORDS = PROBE_BYTES / 4 - ALLREDUCE_MAX_BLOCKS;
constexpr uint32_t PROBE_NUMBER = 0xffffffff; /* of no call */

/* What rank `from` writes for rank `to`. */
DEVICE uint32_t probe_word(int from, int to, int i) {
    return (uint32_t)(from * ALLREDUCE_MAX_RANKS + to + 1) * 2654435761u ^ (uint32_t)i * 40503u;
}

static __global__ void __launch_bounds__(PROBE_THREADS)
    allreduce_probe_kernel(const __grid_constant__ struct allreduce_channel c, uint32_t *verdicts) {
    int peer = blockIdx.x, wrong = 0;
    uint32_t *to = (uint32_t *)(c.to[peer] + FLAG_BYTES), *flag = (uint32_t *)c.from[peer];
    const uint32_t *from = (const uint32_t *)(c.from[peer] + FLAG_BYTES);
    __shared__ int late;
    for (int i = threadIdx.x; i < PROBE_WORDS; i += PROBE_THREADS)
        to[i] = probe_word(c.rank, peer, i);
    __syncthreads(); /* the block has written */
    if (threadIdx.x == 0) {
        uint64_t deadline = global_timer() + (uint64_t)c.timeout_ns;
        store_release((uint32_t *)c.to[peer], PROBE_NUMBER);
        late = 0;
        while (load_acquire(flag) != PROBE_NUMBER && !late) {
            late = global_timer() > deadline;
            __nanosleep(POLL_SLEEP_NS);
        }
    }
    __syncthreads(); /* the peer's pattern has come, or is late */
    for (int i = threadIdx.x; i < PROBE_WORDS; i += PROBE_THREADS)
        wrong |= __ldcg(from + i) != probe_word(peer, c.rank, i);
    wrong = __syncthreads_or(wrong);
    if (threadIdx.x == 0) {
        store_release(flag, 0); /* for another probe */
        store_release(verdicts + peer, late ? PROBE_LATE : wrong ? PROBE_WRONG : PROBE_GOOD);
    }
}

void allreduce_probe_launch(const struct allreduce_channel *c, uint32_t *verdicts,
                            cudaStream_t stream) {
    allreduce_probe_kernel<<<c->num_ranks, PROBE_THREADS, 0, stream>>>(*c, verdicts);
    LAUNCH_CHECK();
}
