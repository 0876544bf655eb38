/* comm_nccl: sums over the ranks by NCCL. Rows are packed as they travel (allreduce.h), added by
 * NCCL, and finished by the kernel that also finishes our own all-reduce, so that both engines
 * differ in the order of the sum alone. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda/comm_internal.h"
#include "cuda/cuda_check.h"
#include "host/clock.h"

/* Joining takes seconds where all is well: NCCL looks at the whole machine. */
enum { JOIN_FACTOR = 3 };

/* NCCL adds no E4M3. */
static enum allreduce_payload payload_of(const struct comm *c) {
    return c->config.payload == PAYLOAD_F8 ? PAYLOAD_BF16 : c->config.payload;
}

static enum nccl_type type_of(enum allreduce_payload payload) {
    return payload == PAYLOAD_F32 ? NCCL_F32 : payload == PAYLOAD_F64 ? NCCL_F64 : NCCL_BF16;
}

static int64_t element_bytes(enum allreduce_payload payload) {
    return payload == PAYLOAD_F32 ? 4 : payload == PAYLOAD_F64 ? 8 : 2;
}

static int32_t world_rank(const struct comm *c) {
    return ranks_first(c->config.ranks) + c->config.rank;
}

/* ---- start ----------------------------------------------------------------------------------- */

static int take_memory(struct comm *c, struct error *error) {
    const struct comm_config *o = &c->config;
    size_t rows = (size_t)(o->max_tokens > o->max_logits ? o->max_tokens : o->max_logits);
    size_t packed = rows * (size_t)allreduce_row_bytes(payload_of(c), o->hidden_size);
    size_t columns = (size_t)c->first_column[ranks_world_size(o->ranks)];
    size_t gathered = (size_t)o->max_logits * columns * sizeof *c->gathered;
    void *p = NULL, *g = NULL;
    cudaError_t e = cudaMalloc(&p, packed);
    if (e == cudaSuccess && world_rank(c) == 0)
        e = cudaMalloc(&g, gathered);
    c->packed = p;
    c->gathered = g;
    if (e == cudaSuccess)
        return 0;
    cudaGetLastError(); /* it is not an error of what follows */
    return error_set(error, ERR_NO_MEMORY,
                     "GPU %d has no %.1f MB left for what goes through NCCL; lower "
                     "--gpu-memory-utilization or --max-num-batched-tokens",
                     o->device, (double)(packed + gathered) / 1e6);
}

/* The first rank of the world names the group. A name that could not be made is all zeros. */
static int exchange_id(struct comm *c, char id[NCCL_ID_BYTES], struct error *error) {
    static const char none[NCCL_ID_BYTES];
    memset(id, 0, NCCL_ID_BYTES);
    if (world_rank(c) == 0 && nccl_new_id(id, error) != 0)
        memset(id, 0, NCCL_ID_BYTES);
    if (ranks_broadcast(c->config.ranks, c->config.rank, id, NCCL_ID_BYTES) != 0)
        return error_set(error, ERR_INTERNAL, "the ranks did not come together");
    if (memcmp(id, none, NCCL_ID_BYTES) != 0)
        return 0;
    return error->code ? error->code
                       : error_set(error, ERR_INTERNAL, "rank 0 could not start NCCL");
}

static int join(struct comm *c, struct error *error) {
    char id[NCCL_ID_BYTES];
    int rc = exchange_id(c, id, error);
    if (rc == 0)
        rc = nccl_join(&c->nccl, world_rank(c), ranks_world_size(c->config.ranks), id,
                       JOIN_FACTOR * c->config.timeout_us, error);
    return rc;
}

/* A sum of which every element is known. */
static int self_test(struct comm *c, struct error *error) {
    enum { COUNT = 1000 };
    float host[COUNT];
    int32_t n = ranks_world_size(c->config.ranks);
    void *device = NULL;
    CUDA_CHECK(cudaMalloc(&device, sizeof host));
    for (int32_t i = 0; i < COUNT; i++)
        host[i] = (float)((world_rank(c) + 1) * (i % 31));
    CUDA_CHECK(
        cudaMemcpyAsync(device, host, sizeof host, cudaMemcpyHostToDevice, c->config.stream));
    CUDA_CHECK(cudaStreamSynchronize(c->config.stream));
    int rc = nccl_all_reduce(c->nccl, device, COUNT, NCCL_F32, c->config.stream, error);
    if (rc == 0)
        rc = comm_wait(c, error);
    if (rc == 0) {
        CUDA_CHECK(
            cudaMemcpyAsync(host, device, sizeof host, cudaMemcpyDeviceToHost, c->config.stream));
        CUDA_CHECK(cudaStreamSynchronize(c->config.stream));
    }
    for (int32_t i = 0; i < COUNT && rc == 0; i++)
        if (host[i] != (float)(n * (n + 1) / 2 * (i % 31)))
            rc = error_set(error, ERR_INTERNAL, "GPU %d: NCCL's sum of a test is wrong: %g, not %d",
                           c->config.device, (double)host[i], n * (n + 1) / 2 * (i % 31));
    if (rc != 0) /* the stream must come to its end before memory is freed */
        nccl_abort(c->nccl);
    CUDA_CHECK(cudaFree(device));
    return rc;
}

/* Until all ranks of the process have tried to join, which takes longer than ranks wait for each
 * other: one of them may know at once that it cannot. */
static void await_attempts(struct comm *c, int64_t until_us) {
    uint32_t all = ++c->num_attempts * (uint32_t)c->shared->num_ranks;
    atomic_fetch_add(&c->shared->num_attempts, 1);
    while (atomic_load(&c->shared->num_attempts) < all && clock_us() < until_us &&
           !ranks_aborted(c->config.ranks))
        usleep(1000);
}

bool comm_nccl_start(struct comm *c, struct error *error) {
    int64_t until_us = clock_us() + (JOIN_FACTOR + 1) * c->config.timeout_us;
    int rc = nccl_open(error);
    if (rc == 0)
        rc = take_memory(c, error);
    if (!comm_all_agree(c, rc == 0)) {
        comm_nccl_stop(c);
        return false;
    }
    rc = join(c, error);
    if (rc == 0)
        rc = self_test(c, error);
    await_attempts(c, until_us);
    if (comm_all_agree(c, rc == 0))
        return true;
    if (rc == 0)
        error_set(error, ERR_INTERNAL, "GPU %d: another rank could not join or test NCCL",
                  c->config.device);
    comm_nccl_stop(c);
    return false;
}

void comm_nccl_stop(struct comm *c) {
    if (c->nccl && atomic_load(&c->aborted))
        nccl_abort(c->nccl);
    nccl_leave(c->nccl);
    CUDA_CHECK(cudaFree(c->packed));
    CUDA_CHECK(cudaFree(c->gathered));
    c->nccl = NULL;
    c->packed = NULL;
    c->gathered = NULL;
}

/* ---- calls ----------------------------------------------------------------------------------- */

static void all_reduce(struct comm *c, void *data, int64_t count, enum nccl_type type) {
    struct error error = {0};
    if (nccl_all_reduce(c->nccl, data, count, type, c->config.stream, &error) != 0) {
        guard_fail("%s", error.text);
        CHECK(false, "%s", error.text);
    }
}

void comm_nccl_sum(struct comm *c, const struct allreduce_array *a) {
    enum allreduce_payload payload = payload_of(c);
    int64_t row = allreduce_row_bytes(payload, a->row_len);
    const struct allreduce_parts parts = {.part = {c->packed}};
    if (a->num_rows == 0)
        return;
    allreduce_pack_launch(c->packed, a, payload, 0, a->num_rows, c->config.stream);
    all_reduce(c, c->packed, a->num_rows * row / element_bytes(payload), type_of(payload));
    allreduce_finish_launch(a, &parts, 1, payload, 0, a->num_rows, c->config.stream);
}

void comm_nccl_sum_plain(struct comm *c, void *data, int64_t count) {
    all_reduce(c, data, count, c->config.payload == PAYLOAD_F64 ? NCCL_F64 : NCCL_F32);
}

void comm_nccl_gather(struct comm *c, float *all, int32_t vocab_size, const float *mine,
                      int32_t num_rows) {
    struct error error = {0};
    int32_t n = ranks_world_size(c->config.ranks);
    if (num_rows == 0)
        return;
    if (nccl_gather_columns(c->nccl, mine, num_rows, c->columns, c->gathered, c->config.stream,
                            &error) != 0) {
        guard_fail("%s", error.text);
        CHECK(false, "%s", error.text);
    }
    for (int32_t r = 0; r < n && world_rank(c) == 0; r++) {
        size_t width = (size_t)c->columns[r] * sizeof *all;
        const float *from = c->gathered + (int64_t)num_rows * c->first_column[r];
        if (width > 0)
            CUDA_CHECK(cudaMemcpy2DAsync(all + c->first_column[r], (size_t)vocab_size * sizeof *all,
                                         from, width, width, (size_t)num_rows,
                                         cudaMemcpyDeviceToDevice, c->config.stream));
    }
}

int comm_nccl_status(struct comm *c, int64_t waited_us, struct error *error) {
    int rc = nccl_error(c->nccl, error);
    if (rc == 0 && waited_us > c->config.timeout_us)
        rc = error_set(error, ERR_INTERNAL,
                       "GPU %d has waited %.1f s for a step that goes through "
                       "NCCL; --comm-timeout is how long it may",
                       c->config.device, (double)waited_us / 1e6);
    return rc;
}
