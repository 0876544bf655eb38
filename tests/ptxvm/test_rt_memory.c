/* The runtime's memory: allocations, copies of every direction, fills, and what is refused. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/ptxvm/rt_fixture.h"
#include "tests/ptxvm/rt_kernels.h"

enum { N = 1000 };

static void count_up(int *x, int n, int from) {
    for (int i = 0; i < n; i++)
        x[i] = from + i;
}

TEST(RtMemory, AllocationsAreAlignedAndCounted) {
    size_t before, after, total;
    void *a, *b;
    ASSERT_CUDA(cudaMemGetInfo(&before, &total));
    ASSERT_CUDA(cudaMalloc(&a, 1 << 20));
    ASSERT_CUDA(cudaMalloc(&b, 1));
    ASSERT_CUDA(cudaMemGetInfo(&after, &total));
    EXPECT_TRUE((uintptr_t)a % 256 == 0 && (uintptr_t)b % 256 == 0);
    EXPECT_INT_LE(after, before - (1 << 20));
    EXPECT_INT_LE(before, total);
    EXPECT_CUDA(cudaFree(a), cudaSuccess);
    EXPECT_CUDA(cudaFree(b), cudaSuccess);
    EXPECT_CUDA(cudaFree(NULL), cudaSuccess);
    EXPECT_CUDA(cudaMalloc(NULL, 1), cudaErrorInvalidValue);
    EXPECT_CUDA(cudaMalloc(&a, (size_t)1 << 50), cudaErrorMemoryAllocation);
    EXPECT_CUDA(cudaGetLastError(), cudaErrorMemoryAllocation);
    EXPECT_CUDA(cudaGetLastError(), cudaSuccess);
}

TEST(RtMemory, FreeTakesWhatItsMallocGave) {
    char *device;
    void *pinned;
    int local;
    ASSERT_CUDA(cudaMalloc((void **)&device, 512));
    ASSERT_CUDA(cudaMallocHost(&pinned, 512));
    EXPECT_CUDA(cudaFree(device + 4), cudaErrorInvalidValue);
    EXPECT_CUDA(cudaFree(pinned), cudaErrorInvalidValue);
    EXPECT_CUDA(cudaFree(&local), cudaErrorInvalidValue);
    EXPECT_CUDA(cudaFreeHost(device), cudaErrorInvalidValue);
    EXPECT_CUDA(cudaFree(device), cudaSuccess);
    EXPECT_CUDA(cudaFree(device), cudaErrorInvalidValue);
    EXPECT_CUDA(cudaFreeHost(pinned), cudaSuccess);
    EXPECT_CUDA(cudaFreeHost(pinned), cudaErrorInvalidValue);
    EXPECT_CUDA(cudaFreeHost(NULL), cudaSuccess);
    cudaGetLastError();
}

TEST(RtMemory, PointersKnowWhereTheyLie) {
    struct cudaPointerAttributes a;
    void *device, *pinned, *mapped;
    char local[16];
    ASSERT_CUDA(cudaMalloc(&device, 64));
    ASSERT_CUDA(cudaHostAlloc(&pinned, 64, cudaHostAllocMapped));
    ASSERT_CUDA(cudaPointerGetAttributes(&a, (char *)device + 63));
    EXPECT_INT_EQ(a.type, cudaMemoryTypeDevice);
    EXPECT_INT_EQ(a.device, 0);
    ASSERT_CUDA(cudaPointerGetAttributes(&a, pinned));
    EXPECT_INT_EQ(a.type, cudaMemoryTypeHost);
    ASSERT_CUDA(cudaPointerGetAttributes(&a, local));
    EXPECT_INT_EQ(a.type, cudaMemoryTypeUnregistered);
    EXPECT_CUDA(cudaHostGetDevicePointer(&mapped, pinned, 0), cudaSuccess);
    EXPECT_TRUE(mapped == pinned);
    EXPECT_CUDA(cudaHostGetDevicePointer(&mapped, local, 0), cudaErrorInvalidValue);
    EXPECT_CUDA(cudaHostAlloc(&pinned, 64, 0x40), cudaErrorInvalidValue);
    cudaFree(device);
    cudaFreeHost(pinned);
}

TEST(RtMemory, HostMemoryIsRegisteredOnce) {
    static int buffer[2048];
    EXPECT_CUDA(cudaHostUnregister(buffer), cudaErrorHostMemoryNotRegistered);
    EXPECT_CUDA(cudaHostRegister(buffer, sizeof buffer, 0), cudaSuccess);
    EXPECT_CUDA(cudaHostRegister(buffer + 8, 64, 0), cudaErrorHostMemoryAlreadyRegistered);
    cudaGetLastError();
    EXPECT_CUDA(rt_add_launch(buffer, 2048, 3, NULL), cudaSuccess); /* zero-copy access */
    EXPECT_CUDA(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_INT_EQ(buffer[0], 3);
    EXPECT_INT_EQ(buffer[2047], 3);
    EXPECT_CUDA(cudaHostUnregister(buffer), cudaSuccess);
    EXPECT_CUDA(cudaHostRegister(NULL, 64, 0), cudaErrorInvalidValue);
    cudaGetLastError();
}

/* host -> device -> device -> pinned -> host, with the kind given and deduced. */
static void round_trip(bool deduce, bool async) {
    int from[N], to[N] = {0}, *a, *b, *pinned;
    enum cudaMemcpyKind h2d = deduce ? cudaMemcpyDefault : cudaMemcpyHostToDevice;
    enum cudaMemcpyKind d2d = deduce ? cudaMemcpyDefault : cudaMemcpyDeviceToDevice;
    enum cudaMemcpyKind d2h = deduce ? cudaMemcpyDefault : cudaMemcpyDeviceToHost;
    enum cudaMemcpyKind h2h = deduce ? cudaMemcpyDefault : cudaMemcpyHostToHost;
    count_up(from, N, 5);
    ASSERT_CUDA(cudaMalloc((void **)&a, sizeof from));
    ASSERT_CUDA(cudaMalloc((void **)&b, sizeof from));
    ASSERT_CUDA(cudaMallocHost((void **)&pinned, sizeof from));
    if (async) {
        EXPECT_CUDA(cudaMemcpyAsync(a, from, sizeof from, h2d, NULL), cudaSuccess);
        EXPECT_CUDA(cudaMemcpyAsync(b, a, sizeof from, d2d, NULL), cudaSuccess);
        EXPECT_CUDA(cudaMemcpyAsync(pinned, b, sizeof from, d2h, NULL), cudaSuccess);
        EXPECT_CUDA(cudaMemcpyAsync(to, pinned, sizeof from, h2h, NULL), cudaSuccess);
    } else {
        EXPECT_CUDA(cudaMemcpy(a, from, sizeof from, h2d), cudaSuccess);
        EXPECT_CUDA(cudaMemcpy(b, a, sizeof from, d2d), cudaSuccess);
        EXPECT_CUDA(cudaMemcpy(pinned, b, sizeof from, d2h), cudaSuccess);
        EXPECT_CUDA(cudaMemcpy(to, pinned, sizeof from, h2h), cudaSuccess);
    }
    EXPECT_MEM_EQ(to, from, sizeof from);
    cudaFree(a);
    cudaFree(b);
    cudaFreeHost(pinned);
}

TEST(RtMemory, CopiesGoInAllDirections) {
    for (int i = 0; i < 4; i++)
        round_trip(i & 1, i & 2);
}

TEST(RtMemory, CopiesAreChecked) {
    int host[N] = {0}, other[N] = {0}, *device;
    ASSERT_CUDA(cudaMalloc((void **)&device, sizeof host));
    const struct {
        void *dst;
        const void *src;
        size_t bytes;
        int kind;
        const char *error;
    } cases[] = {
        {device, host, sizeof host, cudaMemcpyHostToDevice, "cudaSuccess"},
        {device, host, 0, cudaMemcpyHostToDevice, "cudaSuccess"},
        {NULL, NULL, 0, cudaMemcpyDefault, "cudaSuccess"},
        {NULL, host, 4, cudaMemcpyHostToDevice, "cudaErrorInvalidValue"},
        {device, NULL, 4, cudaMemcpyHostToDevice, "cudaErrorInvalidValue"},
        {host, device, 4, cudaMemcpyHostToDevice, "cudaErrorInvalidValue"},
        {device, host, 4, cudaMemcpyDeviceToHost, "cudaErrorInvalidValue"},
        {device, host, 4, cudaMemcpyDeviceToDevice, "cudaErrorInvalidValue"},
        {host, device, 4, cudaMemcpyHostToHost, "cudaErrorInvalidValue"},
        {other, host, 4, 9, "cudaErrorInvalidMemcpyDirection"},
        {device, host, sizeof host + 4, cudaMemcpyHostToDevice, "cudaErrorInvalidValue"},
        {device + N - 1, host, 8, cudaMemcpyHostToDevice, "cudaErrorInvalidValue"},
        {host, device + N - 1, 8, cudaMemcpyDeviceToHost, "cudaErrorInvalidValue"},
        {other, host, 4, cudaMemcpyHostToHost, "cudaSuccess"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum cudaMemcpyKind kind = (enum cudaMemcpyKind)cases[i].kind;
        EXPECT_STR_EQ(
            cudaGetErrorName(cudaMemcpy(cases[i].dst, cases[i].src, cases[i].bytes, kind)),
            cases[i].error);
        EXPECT_STR_EQ(cudaGetErrorName(
                          cudaMemcpyAsync(cases[i].dst, cases[i].src, cases[i].bytes, kind, NULL)),
                      cases[i].error);
    }
    cudaFree(device);
    EXPECT_CUDA(cudaMemcpy(device, host, 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    EXPECT_TRUE(rt_reported("was freed"));
    cudaGetLastError();
}

TEST(RtMemory, RectanglesKeepTheirPitch) {
    enum { ROWS = 5, WIDTH = 12, DST = 16, SRC = 20 };
    unsigned char from[ROWS * SRC], to[ROWS * DST], *device;
    for (size_t i = 0; i < sizeof from; i++)
        from[i] = (unsigned char)i;
    memset(to, 0xee, sizeof to);
    ASSERT_CUDA(cudaMalloc((void **)&device, ROWS * DST));
    EXPECT_CUDA(cudaMemset(device, 0x55, ROWS * DST), cudaSuccess);
    EXPECT_CUDA(cudaMemcpy2D(device, DST, from, SRC, WIDTH, ROWS, cudaMemcpyHostToDevice),
                cudaSuccess);
    EXPECT_CUDA(cudaMemcpy(to, device, ROWS * DST, cudaMemcpyDeviceToHost), cudaSuccess);
    for (int row = 0; row < ROWS; row++) {
        EXPECT_MEM_EQ(to + row * DST, from + row * SRC, WIDTH);
        EXPECT_INT_EQ(to[row * DST + WIDTH], 0x55);
    }
    EXPECT_CUDA(cudaMemset2D(device, DST, 7, 3, ROWS), cudaSuccess);
    EXPECT_CUDA(cudaMemcpy2D(to, DST, device, DST, WIDTH, ROWS, cudaMemcpyDeviceToHost),
                cudaSuccess);
    EXPECT_INT_EQ(to[4 * DST + 2], 7);
    EXPECT_INT_EQ(to[4 * DST + 3], from[4 * SRC + 3]);
    EXPECT_CUDA(cudaMemcpy2D(device, 8, from, SRC, WIDTH, ROWS, cudaMemcpyHostToDevice),
                cudaErrorInvalidPitchValue);
    /* The last row ends with its width, not with its pitch. */
    EXPECT_CUDA(cudaMemcpy2D(device, DST, from, SRC, DST, ROWS, cudaMemcpyHostToDevice),
                cudaSuccess);
    EXPECT_CUDA(cudaMemcpy2D(device, DST, from, SRC, DST, ROWS + 1, cudaMemcpyHostToDevice),
                cudaErrorInvalidValue);
    cudaFree(device);
}

TEST(RtMemory, FillsAreChecked) {
    int host = 1, *device = rt_device_ints(4, 0);
    EXPECT_CUDA(cudaMemset(device, 1, 16), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(device, 3), 0x01010101);
    EXPECT_CUDA(cudaMemset(device, 1, 17), cudaErrorInvalidValue);
    EXPECT_CUDA(cudaMemset(&host, 1, 4), cudaErrorInvalidValue);
    EXPECT_CUDA(cudaMemset(NULL, 1, 4), cudaErrorInvalidValue);
    EXPECT_CUDA(cudaMemset(NULL, 1, 0), cudaSuccess);
    cudaFree(device);
}

TEST(RtMemory, FreshMemoryIsNotZero) {
    int *p;
    ASSERT_CUDA(cudaMalloc((void **)&p, 64));
    EXPECT_INT_EQ(rt_read_int(p, 7), -1); /* NaN in every float format */
    cudaFree(p);
}

/* Reads a byte of device memory in a child process, which that has to end, and gives what it wrote.
 */
static void read_as_host(const char *p, char *output, size_t bytes) {
    int ends[2], status = 0;
    ssize_t n = -1;
    ASSERT_INT_EQ(pipe(ends), 0);
    pid_t child = fork();
    if (!child) {
        dup2(ends[1], 2);
        _exit(*(const volatile char *)p != 0);
    }
    close(ends[1]);
    n = read(ends[0], output, bytes - 1);
    output[n > 0 ? n : 0] = 0;
    close(ends[0]);
    ASSERT_INT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

/* With copies and kernels before and after, which have to reach it; with streams that work on their
 * own it would be in reach at times. */
TEST(RtMemory, TheHostCannotTouchDeviceMemory) {
    if (!rt_in_mode("sync", "RtMemory.TheHostCannotTouchDeviceMemory") ||
        !rt_with_setting("PTXVM_PROTECT", "1", "RtMemory.TheHostCannotTouchDeviceMemory"))
        return;
    char output[512];
    int *x = rt_device_ints(N, 5);
    EXPECT_CUDA(rt_add_launch(x, N, 2, NULL), cudaSuccess);
    read_as_host((const char *)(x + 100), output, sizeof output);
    EXPECT_TRUE(strstr(output, "the host touches device memory") != NULL);
    EXPECT_TRUE(strstr(output, "byte 400 of cudaMalloc (4000 bytes, device 0)") != NULL);
    EXPECT_CUDA(rt_add_launch(x, N, 2, NULL), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(x, N - 1), 9);
    cudaFree(x);
}

TEST(RtMemory, PeersCopyThroughTheHost) {
    int count, can, *a, *b;
    ASSERT_CUDA(cudaGetDeviceCount(&count));
    if (count < 2)
        SKIP("needs two devices");
    a = rt_device_ints(N, 1);
    ASSERT_CUDA(cudaSetDevice(1));
    b = rt_device_ints(N, 2);
    EXPECT_CUDA(cudaMemcpyPeer(b, 1, a, 0, sizeof(int) * N), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(b, N - 1), 1);
    EXPECT_CUDA(cudaMemcpyPeer(b, 0, a, 1, 4), cudaErrorInvalidValue);
    EXPECT_CUDA(cudaMemcpyPeer(b, 99, a, 0, 4), cudaErrorInvalidDevice);
    ASSERT_CUDA(cudaDeviceCanAccessPeer(&can, 1, 0));
    if (!can)
        EXPECT_CUDA(cudaDeviceEnablePeerAccess(0, 0), cudaErrorPeerAccessUnsupported);
    cudaFree(b);
    cudaSetDevice(0);
    cudaFree(a);
    cudaGetLastError();
}

TEST(RtMemory, PeerAccessIsEnabledOnce) {
    if (!rt_with_setting("PTXVM_P2P", "1", "RtMemory.PeerAccessIsEnabledOnce"))
        return;
    int can = 0, count;
    ASSERT_CUDA(cudaGetDeviceCount(&count));
    if (count < 2)
        SKIP("needs two devices");
    EXPECT_CUDA(cudaDeviceDisablePeerAccess(1), cudaErrorPeerAccessNotEnabled);
    EXPECT_CUDA(cudaDeviceCanAccessPeer(&can, 0, 1), cudaSuccess);
    EXPECT_INT_EQ(can, 1);
    EXPECT_CUDA(cudaDeviceCanAccessPeer(&can, 0, 0), cudaSuccess);
    EXPECT_INT_EQ(can, 0);
    EXPECT_CUDA(cudaDeviceEnablePeerAccess(1, 0), cudaSuccess);
    EXPECT_CUDA(cudaDeviceEnablePeerAccess(1, 0), cudaErrorPeerAccessAlreadyEnabled);
    EXPECT_CUDA(cudaDeviceEnablePeerAccess(0, 0), cudaErrorInvalidDevice);
    cudaGetLastError();
}

TEST(RtMemory, StreamOrderedAllocations) {
    cudaStream_t s;
    int *p, *q;
    ASSERT_CUDA(cudaStreamCreate(&s));
    ASSERT_CUDA(cudaMallocAsync((void **)&p, 64, s));
    EXPECT_CUDA(cudaMemsetAsync(p, 0, 64, s), cudaSuccess);
    EXPECT_CUDA(rt_add_launch(p, 16, 9, s), cudaSuccess);
    q = rt_device_ints(16, 0);
    EXPECT_CUDA(rt_move_launch(q, p, 16, s), cudaSuccess);
    EXPECT_CUDA(cudaFreeAsync(p, s), cudaSuccess);
    EXPECT_CUDA(cudaFreeAsync(p, s), cudaErrorInvalidValue);
    EXPECT_CUDA(cudaStreamSynchronize(s), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(q, 15), 9);
    cudaFree(q);
    cudaStreamDestroy(s);
    cudaGetLastError();
}
