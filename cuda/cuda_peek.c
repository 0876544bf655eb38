/* cuda_peek: reads the device's memory from another thread than the rank's, for metrics.
 *
 * A stream of its own, so that it waits for no step and no step waits for it; the memory is pinned,
 * so that the calls return at once; and the wait has an end, as the caller serves connections. A
 * device in trouble is left to the rank's thread to find out about: here it is only a reading that
 * fails.
 */
#include <sched.h>
#include <string.h>

#include "cuda/cuda_backend.h"
#include "host/clock.h"

enum { PEEK_BYTES = 64 << 10 }; /* at once */
#define PEEK_LIMIT_US ((int64_t)20000)

void cuda_peeker_init(struct peeker *p) {
    pthread_mutex_init(&p->lock, NULL);
}

void cuda_peeker_deinit(struct peeker *p) {
    if (p->stream)
        cudaStreamDestroy(p->stream);
    cudaFreeHost(p->memory);
    pthread_mutex_destroy(&p->lock);
}

static bool start(struct peeker *p) {
    if (!p->stream && cudaStreamCreateWithFlags(&p->stream, cudaStreamNonBlocking) != cudaSuccess)
        p->stream = NULL;
    if (p->stream && !p->memory && cudaMallocHost(&p->memory, PEEK_BYTES) != cudaSuccess)
        p->memory = NULL;
    return p->memory != NULL;
}

static bool wait_for_copy(struct peeker *p, int64_t deadline_us) {
    cudaError_t rc;
    while ((rc = cudaStreamQuery(p->stream)) == cudaErrorNotReady && clock_us() < deadline_us)
        sched_yield();
    p->pending = rc == cudaErrorNotReady;
    return rc == cudaSuccess;
}

static bool copy(struct peeker *p, char *to, const char *from, size_t bytes) {
    int64_t deadline_us = clock_us() + PEEK_LIMIT_US;
    if (p->pending && !wait_for_copy(p, deadline_us))
        return false;
    for (size_t at = 0; at < bytes; at += PEEK_BYTES) {
        size_t n = bytes - at < PEEK_BYTES ? bytes - at : PEEK_BYTES;
        if (cudaMemcpyAsync(p->memory, from + at, n, cudaMemcpyDeviceToHost, p->stream) !=
                cudaSuccess ||
            !wait_for_copy(p, deadline_us))
            return false;
        memcpy(to + at, p->memory, n);
    }
    return true;
}

bool cuda_peek(struct backend *b, void *to, const void *from, size_t bytes) {
    struct peeker *p = &b->peeker;
    pthread_mutex_lock(&p->lock);
    bool ok = cudaSetDevice(b->device) == cudaSuccess && start(p) && copy(p, to, from, bytes);
    cudaGetLastError(); /* "not ready", or worse, is not an error of what this thread does next */
    pthread_mutex_unlock(&p->lock);
    return ok;
}

/* As the device says of itself: transfers on both edges of the memory's clock. */
double cuda_memory_bandwidth(struct backend *b) {
    int clock_khz = 0, bus_bits = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&clock_khz, cudaDevAttrMemoryClockRate, b->device));
    CUDA_CHECK(cudaDeviceGetAttribute(&bus_bits, cudaDevAttrGlobalMemoryBusWidth, b->device));
    return 2e3 * clock_khz * bus_bits / 8;
}
