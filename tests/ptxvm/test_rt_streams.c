/* Streams and events: order, what the host waits for, and what it must not rely on.
 *
 * Tests whose point is one way of running streams name it; the others hold for all three, and run
 * once for each.
 */
#include <pthread.h>
#include <string.h>

#include "tests/ptxvm/rt_fixture.h"
#include "tests/ptxvm/rt_kernels.h"

enum { N = 200 };

static cudaStream_t create(unsigned flags) {
    cudaStream_t s = NULL;
    EXPECT_CUDA(cudaStreamCreateWithFlags(&s, flags), cudaSuccess);
    return s;
}

/* ---- order ----------------------------------------------------------------------------------- */

TEST_IN_ALL_MODES(RtStreams, WorkOfAStreamIsInOrder) {
    cudaStream_t s = create(cudaStreamNonBlocking);
    int *x = rt_device_ints(N, 0), *pinned;
    ASSERT_CUDA(cudaMallocHost((void **)&pinned, sizeof(int) * N));
    for (int i = 0; i < 50; i++) {
        EXPECT_CUDA(rt_add_launch(x, N, 1, s), cudaSuccess);
        if (i == 24)
            EXPECT_CUDA(cudaMemcpyAsync(pinned, x, sizeof(int) * N, cudaMemcpyDeviceToHost, s),
                        cudaSuccess);
    }
    EXPECT_CUDA(cudaStreamSynchronize(s), cudaSuccess);
    EXPECT_INT_EQ(pinned[N - 1], 25);
    EXPECT_INT_EQ(rt_read_int(x, N - 1), 50);
    EXPECT_CUDA(cudaStreamDestroy(s), cudaSuccess);
    cudaFree(x);
    cudaFreeHost(pinned);
}

TEST_IN_ALL_MODES(RtStreams, EventsOrderStreams) {
    cudaStream_t a = create(cudaStreamNonBlocking), b = create(cudaStreamNonBlocking);
    cudaEvent_t e;
    int *x = rt_device_ints(N, 0), *y = rt_device_ints(N, 0);
    ASSERT_CUDA(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    EXPECT_CUDA(cudaStreamWaitEvent(b, e, 0), cudaSuccess); /* never recorded: no wait */
    for (int i = 1; i <= 20; i++) {
        EXPECT_CUDA(rt_add_launch(x, N, 1, a), cudaSuccess);
        EXPECT_CUDA(cudaEventRecord(e, a), cudaSuccess);
        EXPECT_CUDA(cudaStreamWaitEvent(b, e, 0), cudaSuccess);
        EXPECT_CUDA(rt_move_launch(y, x, N, b), cudaSuccess);
        EXPECT_CUDA(cudaEventRecord(e, b), cudaSuccess);
        EXPECT_CUDA(cudaStreamWaitEvent(a, e, 0), cudaSuccess);
    }
    EXPECT_CUDA(cudaStreamSynchronize(b), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(y, N - 1), 20);
    EXPECT_CUDA(cudaEventDestroy(e), cudaSuccess);
    cudaStreamDestroy(a);
    cudaStreamDestroy(b);
    cudaFree(x);
    cudaFree(y);
}

/* The legacy stream waits for blocking streams and they for it; a non-blocking one does not. */
TEST_IN_ALL_MODES(RtStreams, LegacyStreamOrdersBlockingStreams) {
    cudaStream_t blocking = create(cudaStreamDefault);
    int *x = rt_device_ints(N, 0), *y = rt_device_ints(N, 0);
    for (int i = 1; i <= 10; i++) {
        EXPECT_CUDA(rt_add_launch(x, N, 1, blocking), cudaSuccess);
        EXPECT_CUDA(rt_add_launch(x, N, 1, NULL), cudaSuccess);
        EXPECT_CUDA(rt_add_launch(x, N, 1, cudaStreamPerThread), cudaSuccess);
        EXPECT_CUDA(rt_move_launch(y, x, N, cudaStreamLegacy), cudaSuccess);
    }
    EXPECT_INT_EQ(rt_read_int(y, N - 1), 30);
    EXPECT_CUDA(rt_add_launch(x, N, 1, blocking), cudaSuccess);
    EXPECT_CUDA(cudaStreamSynchronize(NULL), cudaSuccess);
    EXPECT_CUDA(cudaStreamQuery(blocking), cudaSuccess);
    cudaStreamDestroy(blocking);
    cudaFree(x);
    cudaFree(y);
}

TEST_IN_ALL_MODES(RtStreams, QueriesEnd) {
    cudaStream_t s = create(cudaStreamNonBlocking);
    cudaEvent_t e;
    int *x = rt_device_ints(N, 0);
    ASSERT_CUDA(cudaEventCreate(&e));
    EXPECT_CUDA(cudaEventQuery(e), cudaSuccess); /* never recorded */
    for (int i = 0; i < 3; i++) {
        EXPECT_CUDA(rt_add_launch(x, N, 1, i == 2 ? NULL : s), cudaSuccess);
        EXPECT_CUDA(cudaEventRecord(e, i == 2 ? NULL : s), cudaSuccess);
        cudaError_t r;
        do {
            r = i == 0 ? cudaEventQuery(e) : cudaStreamQuery(i == 2 ? NULL : s);
        } while (r == cudaErrorNotReady);
        EXPECT_CUDA(r, cudaSuccess);
        cudaGetLastError();
    }
    EXPECT_INT_EQ(rt_read_int(x, 0), 3);
    cudaEventDestroy(e);
    cudaStreamDestroy(s);
    cudaFree(x);
}

TEST_IN_ALL_MODES(RtStreams, DestroyedHandlesWithPendingWork) {
    cudaStream_t s = create(cudaStreamNonBlocking), other = create(cudaStreamNonBlocking);
    cudaEvent_t e;
    int *x = rt_device_ints(N, 0);
    ASSERT_CUDA(cudaEventCreate(&e));
    for (int i = 0; i < 20; i++)
        EXPECT_CUDA(rt_add_launch(x, N, 1, s), cudaSuccess);
    EXPECT_CUDA(cudaEventRecord(e, s), cudaSuccess);
    EXPECT_CUDA(cudaStreamWaitEvent(other, e, 0), cudaSuccess);
    EXPECT_CUDA(cudaEventDestroy(e), cudaSuccess);
    EXPECT_CUDA(cudaStreamDestroy(s), cudaSuccess);
    EXPECT_CUDA(rt_add_launch(x, N, 100, other), cudaSuccess);
    EXPECT_CUDA(cudaStreamSynchronize(other), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(x, N - 1), 120);
    EXPECT_CUDA(cudaStreamSynchronize(s), cudaErrorInvalidResourceHandle);
    EXPECT_CUDA(cudaStreamDestroy(s), cudaErrorInvalidResourceHandle);
    EXPECT_CUDA(cudaEventRecord(e, other), cudaErrorInvalidResourceHandle);
    EXPECT_CUDA(cudaStreamDestroy(NULL), cudaErrorInvalidResourceHandle);
    cudaStreamDestroy(other);
    cudaFree(x);
}

/* ---- host functions -------------------------------------------------------------------------- */

struct journal {
    int count, values[32];
    cudaError_t inner;
};

static void write_journal(void *arg) {
    struct journal *j = arg;
    int *unused;
    j->values[j->count] = j->count;
    j->count++;
    j->inner = cudaMalloc((void **)&unused, 16);
}

TEST_IN_ALL_MODES(RtStreams, HostFunctionsRunInOrder) {
    cudaStream_t s = create(cudaStreamNonBlocking);
    struct journal j = {0};
    for (int i = 0; i < 32; i++)
        EXPECT_CUDA(cudaLaunchHostFunc(s, write_journal, &j), cudaSuccess);
    EXPECT_CUDA(cudaStreamSynchronize(s), cudaSuccess);
    EXPECT_INT_EQ(j.count, 32);
    EXPECT_INT_EQ(j.values[31], 31);
    EXPECT_CUDA(j.inner, cudaErrorNotPermitted); /* no CUDA calls in there */
    EXPECT_CUDA(cudaLaunchHostFunc(s, NULL, &j), cudaErrorInvalidValue);
    cudaStreamDestroy(s);
    cudaGetLastError();
}

/* ---- what the host must wait for ------------------------------------------------------------- */

/* Without a wait the host reads what was there before, each time. */
TEST(RtStreams, LazyShowsAForgottenSynchronize) {
    if (!rt_in_mode("lazy", "RtStreams.LazyShowsAForgottenSynchronize"))
        return;
    cudaStream_t s = create(cudaStreamNonBlocking);
    int *x = rt_device_ints(N, 7), *pinned;
    ASSERT_CUDA(cudaMallocHost((void **)&pinned, sizeof(int) * N));
    pinned[0] = 42;
    EXPECT_CUDA(cudaMemcpyAsync(pinned, x, sizeof(int) * N, cudaMemcpyDeviceToHost, s),
                cudaSuccess);
    EXPECT_INT_EQ(pinned[0], 42);
    EXPECT_CUDA(cudaStreamQuery(s), cudaErrorNotReady);
    EXPECT_CUDA(cudaGetLastError(), cudaErrorNotReady);
    EXPECT_INT_EQ(pinned[0], 42);
    EXPECT_CUDA(cudaStreamSynchronize(s), cudaSuccess);
    EXPECT_INT_EQ(pinned[0], 7);
    /* The legacy stream does not wait for non-blocking ones. */
    EXPECT_CUDA(rt_add_launch(x, N, 1, s), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(x, 0), 7);
    EXPECT_CUDA(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(x, 0), 8);
    cudaStreamDestroy(s);
    cudaFree(x);
    cudaFreeHost(pinned);
}

TEST(RtStreams, LazyReadsPinnedSourcesLate) {
    if (!rt_in_mode("lazy", "RtStreams.LazyReadsPinnedSourcesLate"))
        return;
    cudaStream_t s = create(cudaStreamNonBlocking);
    int *x = rt_device_ints(2, 0), *pinned, pageable = 1;
    ASSERT_CUDA(cudaMallocHost((void **)&pinned, 4));
    *pinned = 1;
    EXPECT_CUDA(cudaMemcpyAsync(x, pinned, 4, cudaMemcpyHostToDevice, s), cudaSuccess);
    EXPECT_CUDA(cudaMemcpyAsync(x + 1, &pageable, 4, cudaMemcpyHostToDevice, s), cudaSuccess);
    *pinned = 2;
    pageable = 2;
    EXPECT_CUDA(cudaStreamSynchronize(s), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(x, 0), 2); /* the program wrote too early */
    EXPECT_INT_EQ(rt_read_int(x, 1), 1); /* staged at the call */
    cudaStreamDestroy(s);
    cudaFree(x);
    cudaFreeHost(pinned);
}

/* Device to pageable memory is there on return, without a wait. */
TEST_IN_ALL_MODES(RtStreams, PageableDownloadsAreDoneOnReturn) {
    cudaStream_t s = create(cudaStreamNonBlocking);
    int *x = rt_device_ints(N, 0), host[N] = {0};
    EXPECT_CUDA(rt_add_launch(x, N, 3, s), cudaSuccess);
    EXPECT_CUDA(cudaMemcpyAsync(host, x, sizeof host, cudaMemcpyDeviceToHost, s), cudaSuccess);
    EXPECT_INT_EQ(host[N - 1], 3);
    cudaStreamDestroy(s);
    cudaFree(x);
}

/* One stream is held up; another one goes on meanwhile. */
TEST(RtStreams, AsyncStreamsRunAtTheSameTime) {
    if (!rt_in_mode("async", "RtStreams.AsyncStreamsRunAtTheSameTime"))
        return;
    static struct rt_gate gate;
    cudaStream_t slow = create(cudaStreamNonBlocking), quick = create(cudaStreamNonBlocking);
    cudaEvent_t e;
    int *x = rt_device_ints(N, 0);
    ASSERT_CUDA(cudaEventCreate(&e));
    rt_gate_close(&gate, slow);
    EXPECT_CUDA(cudaEventRecord(e, slow), cudaSuccess);
    EXPECT_CUDA(rt_add_launch(x, N, 1, quick), cudaSuccess);
    EXPECT_CUDA(cudaStreamSynchronize(quick), cudaSuccess);
    EXPECT_CUDA(cudaEventQuery(e), cudaErrorNotReady);
    EXPECT_CUDA(cudaStreamQuery(slow), cudaErrorNotReady);
    rt_gate_open(&gate);
    EXPECT_CUDA(cudaEventSynchronize(e), cudaSuccess);
    EXPECT_CUDA(cudaStreamQuery(slow), cudaSuccess);
    cudaGetLastError();
    cudaEventDestroy(e);
    cudaStreamDestroy(slow);
    cudaStreamDestroy(quick);
    cudaFree(x);
}

/* ---- errors ---------------------------------------------------------------------------------- */

TEST(RtStreams, TimesOfEvents) {
    cudaEvent_t a, b, untimed;
    float ms = -1;
    ASSERT_CUDA(cudaEventCreate(&a));
    ASSERT_CUDA(cudaEventCreate(&b));
    ASSERT_CUDA(cudaEventCreateWithFlags(&untimed, cudaEventDisableTiming));
    EXPECT_CUDA(cudaEventElapsedTime(&ms, a, b), cudaErrorInvalidResourceHandle);
    EXPECT_CUDA(cudaEventRecord(a, NULL), cudaSuccess);
    EXPECT_CUDA(cudaEventRecord(untimed, NULL), cudaSuccess);
    EXPECT_CUDA(cudaEventRecord(b, NULL), cudaSuccess);
    EXPECT_CUDA(cudaEventSynchronize(b), cudaSuccess);
    EXPECT_CUDA(cudaEventElapsedTime(&ms, a, b), cudaSuccess);
    EXPECT_TRUE(ms >= 0 && ms < 1e4f);
    EXPECT_CUDA(cudaEventElapsedTime(&ms, untimed, b), cudaErrorInvalidResourceHandle);
    EXPECT_CUDA(cudaEventElapsedTime(NULL, a, b), cudaErrorInvalidValue);
    EXPECT_CUDA(cudaEventCreateWithFlags(&a, 0x80), cudaErrorInvalidValue);
    cudaEventDestroy(a);
    cudaEventDestroy(b);
    cudaEventDestroy(untimed);
    cudaGetLastError();
}

TEST(RtStreams, StreamsBelongToTheirDevice) {
    int count;
    ASSERT_CUDA(cudaGetDeviceCount(&count));
    if (count < 2)
        SKIP("needs two devices");
    cudaStream_t s = create(cudaStreamNonBlocking);
    cudaEvent_t e;
    int *x = rt_device_ints(N, 1);
    ASSERT_CUDA(cudaSetDevice(1));
    ASSERT_CUDA(cudaEventCreate(&e));
    EXPECT_CUDA(rt_add_launch(x, N, 1, s), cudaErrorInvalidResourceHandle);
    EXPECT_CUDA(cudaEventRecord(e, s), cudaErrorInvalidResourceHandle);
    EXPECT_CUDA(cudaStreamWaitEvent(s, e, 0), cudaSuccess);
    EXPECT_CUDA(cudaStreamSynchronize(s), cudaSuccess);
    int host = 5;
    EXPECT_CUDA(cudaMemcpyAsync(x, &host, 4, cudaMemcpyHostToDevice, s), cudaSuccess);
    EXPECT_CUDA(cudaStreamSynchronize(s), cudaSuccess);
    cudaEventDestroy(e);
    cudaSetDevice(0);
    EXPECT_INT_EQ(rt_read_int(x, 0), 5);
    cudaStreamDestroy(s);
    cudaFree(x);
    cudaGetLastError();
}

struct device_loop {
    int device, result;
};

static void *use_device(void *arg) {
    struct device_loop *l = arg;
    int current = -1;
    cudaGetDevice(&current);
    EXPECT_INT_EQ(current, 0); /* of a new thread */
    EXPECT_CUDA(cudaSetDevice(l->device), cudaSuccess);
    cudaStream_t s = create(cudaStreamNonBlocking);
    int *x = rt_device_ints(N, 0);
    for (int i = 0; i < 100; i++)
        EXPECT_CUDA(rt_add_launch(x, N, 1, s), cudaSuccess);
    EXPECT_CUDA(cudaStreamSynchronize(s), cudaSuccess);
    l->result = rt_read_int(x, N - 1);
    cudaStreamDestroy(s);
    cudaFree(x);
    return NULL;
}

TEST_IN_ALL_MODES(RtStreams, ThreadsUseTheirDevices) {
    enum { THREADS = 6 };
    pthread_t threads[THREADS];
    struct device_loop loops[THREADS];
    int count;
    ASSERT_CUDA(cudaGetDeviceCount(&count));
    for (int i = 0; i < THREADS; i++) {
        loops[i] = (struct device_loop){i % count, 0};
        ASSERT_INT_EQ(pthread_create(&threads[i], NULL, use_device, &loops[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        EXPECT_INT_EQ(loops[i].result, 100);
    }
}
