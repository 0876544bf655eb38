/* Kernels of several devices that wait for each other, through pinned host memory and through each
 * other's memory.
 *
 * A ring of n devices passes a number on, and each adds 1: after r rounds the first has n * r. Each
 * device is served by a host thread of its own, as the ranks of a server are: with synchronous
 * streams a launch returns only when its kernel has ended.
 */
#include <immintrin.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "tests/ptxvm/rt_fixture.h"
#include "tests/ptxvm/rt_kernels.h"

enum { MAX_RANKS = 8, BLOCKS = 3, ROUNDS = 5 };
#define SECOND 1000000000ll

/* One member of the ring. */
struct rank {
    int index, size, device;
    enum rt_mail mail;
    struct rt_box *in, *out;
    int *result; /* [BLOCKS], host */
    cudaError_t error;
    pthread_t thread;
};

static int num_devices(void) {
    int n = 0;
    EXPECT_CUDA(cudaGetDeviceCount(&n), cudaSuccess);
    return n;
}

static void *run_rank(void *arg) {
    struct rank *r = arg;
    cudaStream_t s;
    int *result;
    cudaSetDevice(r->device);
    cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    cudaMalloc((void **)&result, sizeof(int) * BLOCKS);
    r->error = rt_relay_launch(r->mail, r->in, r->out, BLOCKS, ROUNDS, r->index == 0, 60 * SECOND,
                               result, s);
    cudaMemcpyAsync(r->result, result, sizeof(int) * BLOCKS, cudaMemcpyDeviceToHost, s);
    cudaError_t e = cudaStreamSynchronize(s);
    r->error = r->error == cudaSuccess ? e : r->error;
    cudaStreamDestroy(s);
    cudaFree(result);
    return NULL;
}

/* boxes[i]: where rank i takes from. Rank i runs on device i % devices. */
static void check_ring(enum rt_mail mail, int size, int devices, struct rt_box *const *boxes) {
    struct rank ranks[MAX_RANKS];
    int results[MAX_RANKS][BLOCKS];
    memset(results, 0xff, sizeof results);
    for (int i = 0; i < size; i++) {
        ranks[i] = (struct rank){.index = i,
                                 .size = size,
                                 .device = i % devices,
                                 .mail = mail,
                                 .in = boxes[i],
                                 .out = boxes[(i + 1) % size],
                                 .result = results[i]};
        pthread_create(&ranks[i].thread, NULL, run_rank, &ranks[i]);
    }
    for (int i = 0; i < size; i++) {
        pthread_join(ranks[i].thread, NULL);
        EXPECT_CUDA(ranks[i].error, cudaSuccess);
        for (int b = 0; b < BLOCKS; b++)
            EXPECT_INT_EQ(results[i][b], i ? size * (ROUNDS - 1) + i : size * ROUNDS);
    }
}

static void check_ring_in_host_memory(enum rt_mail mail, int size, int devices) {
    struct rt_box *boxes[MAX_RANKS], *all;
    size_t bytes = sizeof *all * (size_t)(size * BLOCKS);
    ASSERT_CUDA(cudaHostAlloc((void **)&all, bytes, cudaHostAllocPortable | cudaHostAllocMapped));
    memset(all, 0, bytes);
    for (int i = 0; i < size; i++)
        boxes[i] = all + i * BLOCKS;
    check_ring(mail, size, devices, boxes);
    EXPECT_CUDA(cudaFreeHost(all), cudaSuccess);
}

/* ---- through the host ------------------------------------------------------------------------ */

TEST_IN_ALL_MODES(RtDevices, TwoTalkThroughHostMemory) {
    if (num_devices() < 2)
        SKIP("it takes two devices");
    for (int mail = 0; mail < RT_NUM_MAILS; mail++)
        check_ring_in_host_memory((enum rt_mail)mail, 2, 2);
}

TEST_IN_ALL_MODES(RtDevices, EightInARing) {
    if (num_devices() < 8)
        SKIP("it takes eight devices");
    for (int mail = 0; mail < RT_NUM_MAILS; mail++)
        check_ring_in_host_memory((enum rt_mail)mail, 8, 8);
}

TEST(RtDevices, OneThreadOfTheHostIsEnough) {
    if (!rt_with_setting("PTXVM_THREADS", "1", "RtDevices.OneThreadOfTheHostIsEnough"))
        return;
    check_ring_in_host_memory(RT_VECTOR, num_devices() < 5 ? num_devices() : 5, num_devices());
}

TEST_IN_ALL_MODES(RtDevices, TwoStreamsOfOneTalk) {
    check_ring_in_host_memory(RT_VOLATILE, 3, 1);
}

TEST(RtDevices, RacesAreNotSeenBetweenThem) {
    if (!rt_with_setting("PTXVM_RACES", "1", "RtDevices.RacesAreNotSeenBetweenThem"))
        return;
    if (num_devices() < 3)
        SKIP("it takes three devices");
    for (int mail = 0; mail < RT_NUM_MAILS; mail++)
        check_ring_in_host_memory((enum rt_mail)mail, 3, 3);
}

TEST(RtDevices, OrderComesThroughAnotherDevice) {
    if (!rt_with_setting("PTXVM_RACES", "1", "RtDevices.OrderComesThroughAnotherDevice"))
        return;
    if (rt_is_mode("sync") || num_devices() < 2)
        SKIP("it takes two devices and streams that do not block");
    struct rt_box *box;
    ASSERT_CUDA(cudaHostAlloc((void **)&box, 2 * sizeof *box, cudaHostAllocPortable));
    memset(box, 0, 2 * sizeof *box);
    ASSERT_CUDA(cudaSetDevice(1));
    int *passed = rt_device_ints(1, 0);
    EXPECT_CUDA(rt_relay_launch(RT_ACQUIRE, &box[0], &box[1], 1, 1, 0, 60 * SECOND, passed, NULL),
                cudaSuccess);
    ASSERT_CUDA(cudaSetDevice(0));
    int *x = rt_device_ints(1, 0), *result = rt_device_ints(1, 0);
    EXPECT_CUDA(rt_detour_launch(&box[1], &box[0], 41, x, result, NULL), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(result, 0), 41);
    cudaFree(x);
    cudaFree(result);
    ASSERT_CUDA(cudaSetDevice(1));
    EXPECT_CUDA(cudaDeviceSynchronize(), cudaSuccess);
    cudaFree(passed);
    ASSERT_CUDA(cudaSetDevice(0));
    cudaFreeHost(box);
}

/* One thread gives work to both, and asks only for the second's. */
TEST(RtDevices, WhatAKernelWaitsForIsRunToo) {
    if (!rt_in_mode("lazy", "RtDevices.WhatAKernelWaitsForIsRunToo"))
        return;
    if (num_devices() < 2)
        SKIP("it takes two devices");
    static struct rt_box box[2];
    int *result[2];
    ASSERT_CUDA(cudaHostRegister(box, sizeof box, cudaHostRegisterPortable));
    for (int i = 0; i < 2; i++) {
        ASSERT_CUDA(cudaSetDevice(i));
        result[i] = rt_device_ints(1, 0);
        EXPECT_CUDA(rt_relay_launch(RT_ACQUIRE, &box[i], &box[1 - i], 1, ROUNDS, i == 0,
                                    60 * SECOND, result[i], NULL),
                    cudaSuccess);
    }
    EXPECT_INT_EQ(rt_read_int(result[1], 0), 2 * ROUNDS - 1);
    ASSERT_CUDA(cudaSetDevice(0));
    EXPECT_INT_EQ(rt_read_int(result[0], 0), 2 * ROUNDS);
    EXPECT_CUDA(cudaHostUnregister(box), cudaSuccess);
}

struct writer {
    unsigned *x;
    _Atomic bool stop;
};

static void *write_on(void *arg) {
    struct writer *w = arg;
    for (int i = 0; !atomic_load(&w->stop); i++)
        *(volatile __m128i *)(void *)w->x = _mm_set1_epi32(i);
    return NULL;
}

/* Protocols that put a flag next to the data rely on it. */
TEST(RtDevices, VectorsArriveWhole) {
    struct writer w = {0};
    pthread_t thread;
    int *torn = rt_device_ints(1, 0);
    ASSERT_CUDA(cudaHostAlloc((void **)&w.x, 16, cudaHostAllocMapped));
    memset(w.x, 0, 16);
    pthread_create(&thread, NULL, write_on, &w);
    EXPECT_CUDA(rt_tear_launch(w.x, 5000, torn, NULL), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(torn, 0), 0);
    atomic_store(&w.stop, true);
    pthread_join(thread, NULL);
    cudaFree(torn);
    cudaFreeHost(w.x);
}

/* ---- through each other's memory ------------------------------------------------------------- */

/* The box of rank i lies on device i, and its neighbours have access to it. */
static void check_ring_of_peers(enum rt_mail mail, int size) {
    struct rt_box *boxes[MAX_RANKS];
    size_t bytes = sizeof(struct rt_box) * BLOCKS;
    for (int i = 0; i < size; i++) {
        ASSERT_CUDA(cudaSetDevice(i));
        for (int peer = 0; peer < size; peer++)
            if (peer != i)
                cudaDeviceEnablePeerAccess(peer, 0);
        cudaGetLastError(); /* it may be enabled already */
        ASSERT_CUDA(cudaMalloc((void **)&boxes[i], bytes));
        ASSERT_CUDA(cudaMemset(boxes[i], 0, bytes));
        ASSERT_CUDA(cudaDeviceSynchronize());
    }
    check_ring(mail, size, size, boxes);
    for (int i = 0; i < size; i++)
        cudaFree(boxes[i]);
    ASSERT_CUDA(cudaSetDevice(0));
}

static bool have_peers(int size) {
    int can = 1;
    if (num_devices() < size)
        return false;
    for (int i = 0; i < size && can; i++)
        cudaDeviceCanAccessPeer(&can, i, (i + 1) % size);
    return can;
}

static void check_peers(const char *test) {
    if (!rt_with_setting("PTXVM_P2P", "1", test))
        return;
    if (!have_peers(3))
        SKIP("it takes three devices with access to each other");
    for (int mail = 0; mail < RT_NUM_MAILS; mail++)
        check_ring_of_peers((enum rt_mail)mail, 3);
}

TEST(RtDevices, ThreeTalkThroughTheirMemory) {
    check_peers("RtDevices.ThreeTalkThroughTheirMemory");
}

TEST(RtDevices, ThreeTalkThroughTheirMemoryLazy) {
    if (rt_in_mode("lazy", "RtDevices.ThreeTalkThroughTheirMemoryLazy"))
        check_peers("RtDevices.ThreeTalkThroughTheirMemoryLazy");
}

/* ---- waiting for somebody who does not come -------------------------------------------------- */

static int wait_alone(long long timeout_ns, cudaError_t *error) {
    struct rt_box *box;
    int *result = rt_device_ints(1, 7), value = 0;
    EXPECT_CUDA(cudaHostAlloc((void **)&box, 2 * sizeof *box, cudaHostAllocMapped), cudaSuccess);
    memset(box, 0, 2 * sizeof *box);
    EXPECT_CUDA(
        rt_relay_launch(RT_ACQUIRE, &box[0], &box[1], 1, ROUNDS, 1, timeout_ns, result, NULL),
        cudaSuccess);
    *error = cudaMemcpy(&value, result, sizeof value, cudaMemcpyDeviceToHost);
    cudaFree(result);
    cudaFreeHost(box);
    return value;
}

TEST_IN_ALL_MODES(RtDevices, AKernelGivesUpByItsOwnClock) {
    cudaError_t e;
    EXPECT_INT_EQ(wait_alone(SECOND / 20, &e), -1);
    EXPECT_CUDA(e, cudaSuccess);
}

/* Its own limit is longer than the one after which polling without a clock is a deadlock. */
TEST(RtDevices, TheClockOfAKernelIsItsOwn) {
    if (!rt_with_setting("PTXVM_SPIN", "1", "RtDevices.TheClockOfAKernelIsItsOwn"))
        return;
    cudaError_t e;
    EXPECT_INT_EQ(wait_alone(SECOND * 3 / 2, &e), -1);
    EXPECT_CUDA(e, cudaSuccess);
}

static void sleep_700_ms(void *arg) {
    (void)arg;
    nanosleep(&(struct timespec){.tv_nsec = 700000000}, NULL);
}

/* A grid without a clock waits for a device that has other things to do first, for longer than
 * PTXVM_SPIN: each of them is progress. */
TEST(RtDevices, WorkOfAnotherDeviceIsProgress) {
    if (!rt_with_setting("PTXVM_SPIN", "1", "RtDevices.WorkOfAnotherDeviceIsProgress"))
        return;
    if (rt_is_mode("sync") || num_devices() < 2)
        SKIP("it takes two devices and streams that do not block");
    int *flag, *seen = rt_device_ints(1, 0);
    ASSERT_CUDA(cudaHostAlloc((void **)&flag, sizeof *flag, cudaHostAllocPortable));
    *flag = 0;
    EXPECT_CUDA(rt_wait_launch(flag, 5, seen, NULL), cudaSuccess);
    ASSERT_CUDA(cudaSetDevice(1));
    for (int i = 0; i < 3; i++)
        EXPECT_CUDA(cudaLaunchHostFunc(NULL, sleep_700_ms, NULL), cudaSuccess);
    EXPECT_CUDA(rt_add_launch(flag, 1, 5, NULL), cudaSuccess);
    ASSERT_CUDA(cudaSetDevice(0));
    EXPECT_INT_EQ(rt_read_int(seen, 0), 5);
    cudaFree(seen);
    cudaFreeHost(flag);
}

/* A GPU would wait for ever. */
TEST(RtDevices, PollingForNobodyIsADeadlock) {
    if (!rt_is_machine() || rt_is_mode("sync"))
        SKIP("a GPU hangs, and so does a launch that blocks");
    if (!rt_with_setting("PTXVM_SPIN", "1", "RtDevices.PollingForNobodyIsADeadlock"))
        return;
    int *flag, *seen = rt_device_ints(1, 0);
    ASSERT_CUDA(cudaHostAlloc((void **)&flag, sizeof *flag, cudaHostAllocPortable));
    *flag = 0;
    EXPECT_CUDA(rt_wait_launch(flag, 5, seen, NULL), cudaSuccess);
    EXPECT_CUDA(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
    EXPECT_TRUE(rt_reported("polled memory for 1 seconds without progress of any device"));
}
