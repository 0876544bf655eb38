/* cuda_ranks: a backend among others: how it gets to know them, the end of a step that all of them
 * take part in, and what follows when that end does not come.
 */
#include <string.h>
#include <unistd.h>

#include "cuda/cuda_backend.h"
#include "host/clock.h"

static int choose_payload(const struct backend_config *c, enum allreduce_payload *out,
                          struct error *error) {
    *out = c->batch_invariant ? PAYLOAD_F64 : PAYLOAD_BF16;
    if (c->batch_invariant && strcmp(c->allreduce_dtype, "auto"))
        return error_set(error, ERR_CONFIG,
                         "--allreduce-dtype %s: with --batch-invariant sums over GPUs are float64, "
                         "so that their number does not matter; leave the option out",
                         c->allreduce_dtype);
    if (!strcmp(c->allreduce_dtype, "f32"))
        *out = PAYLOAD_F32;
    else if (!strcmp(c->allreduce_dtype, "fp8"))
        *out = PAYLOAD_F8;
    else if (strcmp(c->allreduce_dtype, "bf16") && strcmp(c->allreduce_dtype, "auto"))
        return error_set(error, ERR_CONFIG,
                         "--allreduce-dtype %s: unknown, there are auto, bf16, f32 and fp8",
                         c->allreduce_dtype);
    return 0;
}

static int choose_engine(const struct backend_config *c, enum comm_choice *out,
                         struct error *error) {
    *out = COMM_AUTO;
    if (!strcmp(c->allreduce, "staged"))
        *out = COMM_STAGED;
    else if (!strcmp(c->allreduce, "nccl"))
        *out = COMM_NCCL;
    else if (strcmp(c->allreduce, "auto"))
        return error_set(error, ERR_CONFIG,
                         "--allreduce %s: unknown, there are auto, staged and nccl", c->allreduce);
    return 0;
}

int cuda_connect(struct backend *b, struct error *error) {
    const struct backend_config *c = &b->config;
    struct comm_config config = {
        .ranks = c->ranks,
        .rank = c->rank,
        .device = b->device,
        .stream = b->stream,
        .hidden_size = c->hidden_size,
        .max_tokens = c->max_tokens,
        .max_logits = c->max_logits,
        .vocab = c->vocab,
        .step = (const void *)(b->arrays.device + ((char *)b->arrays.step - b->arrays.host)),
        .timeout_us = c->comm_timeout_us,
    };
    if (!c->ranks || ranks_world_size(c->ranks) == 1)
        return 0;
    int rc = choose_payload(c, &config.payload, error);
    if (rc == 0)
        rc = choose_engine(c, &config.choice, error);
    if (rc != 0)
        return rc;
    CUDA_CHECK(cudaSetDevice(b->device));
    CUDA_CHECK(cudaStreamSynchronize(b->stream));
    return comm_create(&config, &b->comm, error);
}

void cuda_describe_ranks(struct backend *b, struct buffer *out) {
    if (b->comm)
        comm_describe(b->comm, out);
}

/* Until the stream is idle. Kernels that wait for other ranks give up by themselves; comm says so,
 * or that NCCL does not come to an end. */
int cuda_wait_for_step(struct backend *b, struct error *error) {
    enum { SPINS = 200, SLEEP_US = 20 };
    int64_t start_us = clock_us();
    int32_t polls = 0;
    cudaError_t e;
    while ((e = comm_query(b->stream)) == cudaErrorNotReady) {
        if (++polls > SPINS)
            usleep(SLEEP_US);
        if (comm_status(b->comm, clock_us() - start_us, error) != 0)
            return ERR_INTERNAL;
    }
    CUDA_CHECK(e);
    return comm_status(b->comm, 0, error);
}

/* ---- trouble --------------------------------------------------------------------------------- */

void cuda_abort(struct backend *b) {
    if (b->comm)
        comm_abort(b->comm);
}

/* A recording that was given up in the middle. */
static void end_recording(struct backend *b) {
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    cudaGraph_t graph = NULL;
    b->recording = NULL;
    CUDA_CHECK(cudaStreamIsCapturing(b->stream, &status));
    if (status == cudaStreamCaptureStatusNone)
        return;
    if (cudaStreamEndCapture(b->stream, &graph) == cudaSuccess)
        CUDA_CHECK(cudaGraphDestroy(graph));
    cudaGetLastError(); /* of a recording that went wrong */
}

int cuda_recover(struct backend *b, struct error *error) {
    int64_t deadline_us = clock_us() + b->config.comm_timeout_us;
    cudaError_t e = cudaErrorNotReady;
    CUDA_CHECK(cudaSetDevice(b->device));
    end_recording(b);
    while ((e = comm_query(b->stream)) == cudaErrorNotReady && clock_us() < deadline_us)
        usleep(1000);
    if (e == cudaErrorNotReady)
        return error_set(error, ERR_INTERNAL, "GPU %d does not come to an end", b->device);
    if (e != cudaSuccess)
        return error_set(error, ERR_INTERNAL, "GPU %d: %s (%s)", b->device, cudaGetErrorString(e),
                         cudaGetErrorName(e));
    cuda_drop_recorded(b); /* they may hold an NCCL communicator that is gone */
    b->num_steps = 0;
    return b->comm ? comm_reset(b->comm, error) : 0;
}
