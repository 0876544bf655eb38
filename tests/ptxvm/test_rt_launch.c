/* Launches: parameters, limits, attributes of kernels, variables, devices, and faults. */
#include <string.h>

#include "tests/ptxvm/rt_fixture.h"
#include "tests/ptxvm/rt_kernels.h"

TEST(RtLaunch, ParametersArriveWithTheirPadding) {
    int host[3] = {1, 2, 3}, *x;
    float y[3] = {0}, *device_y;
    ASSERT_CUDA(cudaMalloc((void **)&x, sizeof host));
    ASSERT_CUDA(cudaMalloc((void **)&device_y, sizeof y));
    ASSERT_CUDA(cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice));
    ASSERT_CUDA(cudaMemset(device_y, 0, sizeof y));
    struct rt_pair pair = {10, 0.5f};
    EXPECT_CUDA(rt_pair_launch(device_y, 1, pair, x, 3, NULL), cudaSuccess);
    ASSERT_CUDA(cudaMemcpy(y, device_y, sizeof y, cudaMemcpyDeviceToHost));
    EXPECT_NEAR(y[0], 0, 0);
    EXPECT_NEAR(y[1], 6, 0);
    EXPECT_NEAR(y[2], 6.5, 0);
    cudaFree(x);
    cudaFree(device_y);
}

TEST(RtLaunch, ImpossibleGridsAreRefused) {
    int *x = rt_device_ints(64, 0), n = 64, one = 1;
    void *args[] = {&x, &n, &one};
    const struct {
        dim3 grid, block;
        const char *error;
    } cases[] = {
        {{1, 1, 1}, {64, 1, 1}, "cudaSuccess"},
        {{0, 1, 1}, {64, 1, 1}, "cudaErrorInvalidConfiguration"},
        {{1, 65536, 1}, {64, 1, 1}, "cudaErrorInvalidConfiguration"},
        {{1, 1, 65536}, {64, 1, 1}, "cudaErrorInvalidConfiguration"},
        {{1, 1, 1}, {0, 1, 1}, "cudaErrorInvalidConfiguration"},
        {{1, 1, 1}, {1025, 1, 1}, "cudaErrorInvalidConfiguration"},
        {{1, 1, 1}, {1, 1, 65}, "cudaErrorInvalidConfiguration"},
        {{1, 1, 1}, {32, 33, 1}, "cudaErrorInvalidConfiguration"},
        {{1, 1, 1}, {64, 1, 1}, "cudaSuccess"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        EXPECT_STR_EQ(cudaGetErrorName(cudaLaunchKernel(rt_add_kernel(), cases[i].grid,
                                                        cases[i].block, args, 0, NULL)),
                      cases[i].error);
    EXPECT_INT_EQ(rt_read_int(x, 63), 2);
    EXPECT_CUDA(cudaLaunchKernel(&n, cases[0].grid, cases[0].block, args, 0, NULL),
                cudaErrorInvalidDeviceFunction);
    EXPECT_TRUE(rt_bounded_launch(x, 65, NULL) != cudaSuccess); /* __launch_bounds__(64) */
    EXPECT_CUDA(rt_bounded_launch(x, 64, NULL), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(x, 63), 63);
    cudaFree(x);
    cudaGetLastError();
}

TEST(RtLaunch, ExtensibleLaunchesTakeHarmlessAttributes) {
    int *x = rt_device_ints(64, 0), n = 64, one = 1;
    void *args[] = {&x, &n, &one};
    cudaLaunchAttribute a = {.id = cudaLaunchAttributePriority};
    cudaLaunchConfig_t c = {
        .gridDim = {1, 1, 1}, .blockDim = {64, 1, 1}, .attrs = &a, .numAttrs = 1};
    EXPECT_CUDA(cudaLaunchKernelExC(&c, rt_add_kernel(), args), cudaSuccess);
    a.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    EXPECT_CUDA(cudaLaunchKernelExC(&c, rt_add_kernel(), args), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(x, 63), 2);
    EXPECT_CUDA(cudaLaunchCooperativeKernel(rt_add_kernel(), c.gridDim, c.blockDim, args, 0, NULL),
                cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(x, 0), 3);
    cudaFree(x);
}

/* The limit holds for one kernel on one device. */
TEST(RtLaunch, DynamicSharedMemoryIsOptedIntoPerDevice) {
    int count;
    enum { INTS = 13000, BYTES = 4 * INTS }; /* over 48 KiB */
    ASSERT_CUDA(cudaGetDeviceCount(&count));
    for (int d = 0; d < (count < 2 ? count : 2); d++) {
        ASSERT_CUDA(cudaSetDevice(d));
        int *x = rt_device_ints(INTS, 1), *y = rt_device_ints(1, 0);
        EXPECT_CUDA(rt_shared_launch(y, x, INTS, BYTES, NULL), cudaErrorInvalidValue);
        EXPECT_CUDA(rt_shared_launch(y, x, 100, 400, NULL), cudaSuccess);
        EXPECT_INT_EQ(rt_read_int(y, 0), 100);
        EXPECT_CUDA(cudaFuncSetAttribute(rt_shared_kernel(),
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES),
                    cudaSuccess);
        EXPECT_CUDA(rt_shared_launch(y, x, INTS, BYTES, NULL), cudaSuccess);
        EXPECT_INT_EQ(rt_read_int(y, 0), INTS);
        EXPECT_CUDA(cudaFuncSetAttribute(rt_shared_kernel(),
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, 1 << 20),
                    cudaErrorInvalidValue);
        cudaFree(x);
        cudaFree(y);
    }
    cudaSetDevice(0);
    cudaGetLastError();
}

TEST(RtLaunch, KernelsHaveAttributes) {
    struct cudaFuncAttributes a;
    int blocks = 0, host;
    ASSERT_CUDA(cudaFuncGetAttributes(&a, rt_bounded_kernel()));
    EXPECT_INT_EQ(a.sharedSizeBytes, 1024);
    EXPECT_INT_EQ(a.maxThreadsPerBlock, 64);
    EXPECT_INT_EQ(a.maxDynamicSharedSizeBytes, (48 << 10) - 1024);
    EXPECT_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, rt_bounded_kernel(), 64, 0),
                cudaSuccess);
    EXPECT_INT_GE(blocks, 8);
    EXPECT_CUDA(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, rt_shared_kernel(), 32, 40 << 10),
        cudaSuccess);
    EXPECT_INT_GE(blocks, 1);
    EXPECT_INT_LE(blocks, 5);
    EXPECT_CUDA(cudaFuncGetAttributes(&a, &host), cudaErrorInvalidDeviceFunction);
    EXPECT_CUDA(cudaFuncSetAttribute(rt_bounded_kernel(), (enum cudaFuncAttribute)3, 1),
                cudaErrorInvalidValue);
    cudaGetLastError();
}

static int read_counter(void) {
    int v = -1;
    EXPECT_CUDA(cudaMemcpyFromSymbol(&v, rt_counter_symbol(), 4, 0, cudaMemcpyDeviceToHost),
                cudaSuccess);
    return v;
}

TEST(RtLaunch, VariablesOfModules) {
    int table[4] = {1, 2, 3, 4}, start = 100, count;
    size_t bytes = 0;
    ASSERT_CUDA(cudaGetSymbolSize(&bytes, rt_table_symbol()));
    EXPECT_INT_EQ(bytes, 16);
    EXPECT_CUDA(cudaMemcpyToSymbol(rt_table_symbol(), table, 16, 0, cudaMemcpyHostToDevice),
                cudaSuccess);
    EXPECT_CUDA(cudaMemcpyToSymbol(rt_table_symbol(), table, 4, 12, cudaMemcpyHostToDevice),
                cudaSuccess);
    EXPECT_CUDA(cudaMemcpyToSymbol(rt_counter_symbol(), &start, 4, 0, cudaMemcpyHostToDevice),
                cudaSuccess);
    EXPECT_CUDA(rt_count_launch(NULL), cudaSuccess);
    EXPECT_INT_EQ(read_counter(), 107); /* 100 + 1 + 2 + 3 + 1 */
    EXPECT_CUDA(cudaMemcpyToSymbol(rt_table_symbol(), table, 4, 13, cudaMemcpyHostToDevice),
                cudaErrorInvalidValue);
    EXPECT_CUDA(cudaMemcpyToSymbol(&start, table, 4, 0, cudaMemcpyHostToDevice),
                cudaErrorInvalidSymbol);
    EXPECT_CUDA(cudaMemcpyToSymbol(rt_table_symbol(), table, 4, 0, cudaMemcpyDeviceToHost),
                cudaErrorInvalidMemcpyDirection);
    ASSERT_CUDA(cudaGetDeviceCount(&count));
    if (count > 1) { /* another device has its own */
        ASSERT_CUDA(cudaSetDevice(1));
        EXPECT_INT_EQ(read_counter(), 0);
        cudaSetDevice(0);
    }
    cudaGetLastError();
}

/* ---- devices --------------------------------------------------------------------------------- */

TEST(RtDevice, PropertiesAgreeWithAttributes) {
    struct cudaDeviceProp p;
    int count, v;
    char id[16];
    ASSERT_CUDA(cudaGetDeviceCount(&count));
    ASSERT_INT_GE(count, 1);
    ASSERT_CUDA(cudaGetDeviceProperties(&p, count - 1));
    EXPECT_INT_EQ(p.warpSize, 32);
    ASSERT_CUDA(cudaDeviceGetAttribute(&v, cudaDevAttrComputeCapabilityMajor, count - 1));
    EXPECT_INT_EQ(v, p.major);
    ASSERT_CUDA(cudaDeviceGetAttribute(&v, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    EXPECT_INT_EQ(v, p.sharedMemPerBlockOptin);
    ASSERT_CUDA(cudaDeviceGetPCIBusId(id, sizeof id, count - 1));
    ASSERT_CUDA(cudaDeviceGetByPCIBusId(&v, id));
    EXPECT_INT_EQ(v, count - 1);
    ASSERT_CUDA(cudaRuntimeGetVersion(&v));
    EXPECT_INT_GE(v, 13000);
    EXPECT_CUDA(cudaGetDeviceProperties(&p, count), cudaErrorInvalidDevice);
    EXPECT_CUDA(cudaSetDevice(count), cudaErrorInvalidDevice);
    EXPECT_CUDA(cudaSetDevice(-1), cudaErrorInvalidDevice);
    EXPECT_STR_EQ(cudaGetErrorString(cudaErrorInvalidDevice), "invalid device ordinal");
    EXPECT_STR_EQ(cudaGetErrorString((cudaError_t)12345), "unrecognized error code");
    cudaGetLastError();
}

/* A fault is the answer of every call on its device until the reset; other devices go on. */
TEST(RtDevice, FaultsStick) {
    int count = 0, *x = rt_device_ints(64, 0);
    void *unused;
    cudaStream_t s;
    ASSERT_CUDA(cudaStreamCreate(&s));
    EXPECT_TRUE(rt_add_launch(x + (1 << 28), 64, 1, s) == cudaSuccess ||
                cudaPeekAtLastError() == cudaErrorIllegalAddress); /* synchronous streams */
    EXPECT_CUDA(cudaStreamSynchronize(s), cudaErrorIllegalAddress);
    EXPECT_CUDA(cudaMalloc(&unused, 64), cudaErrorIllegalAddress);
    EXPECT_CUDA(cudaMemcpy(&count, x, 4, cudaMemcpyDeviceToHost), cudaErrorIllegalAddress);
    EXPECT_CUDA(rt_add_launch(x, 64, 1, s), cudaErrorIllegalAddress);
    EXPECT_CUDA(cudaGetLastError(), cudaErrorIllegalAddress);
    EXPECT_CUDA(cudaGetLastError(), cudaErrorIllegalAddress);
    EXPECT_CUDA(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
    ASSERT_CUDA(cudaGetDeviceCount(&count));
    if (count > 1) {
        ASSERT_CUDA(cudaSetDevice(1));
        cudaGetLastError(); /* the thread's, from the other device */
        int *y = rt_device_ints(64, 5);
        EXPECT_CUDA(rt_add_launch(y, 64, 1, NULL), cudaSuccess);
        EXPECT_INT_EQ(rt_read_int(y, 63), 6);
        cudaFree(y);
        cudaSetDevice(0);
    }
    EXPECT_CUDA(cudaDeviceReset(), cudaSuccess);
    EXPECT_CUDA(cudaGetLastError(), cudaSuccess);
    x = rt_device_ints(64, 1);
    EXPECT_CUDA(rt_add_launch(x, 64, 1, NULL), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(x, 63), 2);
    cudaFree(x);
}

TEST(RtDevice, ResetFreesItsMemory) {
    size_t before, after, total;
    void *p;
    cudaStream_t s;
    ASSERT_CUDA(cudaDeviceReset());
    ASSERT_CUDA(cudaMemGetInfo(&before, &total));
    ASSERT_CUDA(cudaMalloc(&p, 1 << 20));
    ASSERT_CUDA(cudaStreamCreate(&s));
    ASSERT_CUDA(cudaDeviceReset());
    ASSERT_CUDA(cudaMemGetInfo(&after, &total));
    EXPECT_INT_EQ(after, before);
    EXPECT_CUDA(cudaFree(p), cudaErrorInvalidValue);
    EXPECT_CUDA(cudaStreamSynchronize(s), cudaErrorInvalidResourceHandle);
    cudaGetLastError();
}

/* A kernel reads the memory of another device only after peer access was enabled. */
TEST(RtDevice, PeersMustBeEnabledForKernels) {
    if (!rt_with_setting("PTXVM_P2P", "1", "RtDevice.PeersMustBeEnabledForKernels"))
        return;
    int count;
    ASSERT_CUDA(cudaGetDeviceCount(&count));
    if (count < 2)
        SKIP("needs two devices");
    int *x = rt_device_ints(64, 3);
    ASSERT_CUDA(cudaSetDevice(1));
    int *y = rt_device_ints(64, 0);
    rt_move_launch(y, x, 64, NULL);
    EXPECT_CUDA(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
    EXPECT_CUDA(cudaDeviceReset(), cudaSuccess);
    y = rt_device_ints(64, 0);
    EXPECT_CUDA(cudaDeviceEnablePeerAccess(0, 0), cudaSuccess);
    EXPECT_CUDA(rt_move_launch(y, x, 64, NULL), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(y, 63), 3);
    cudaFree(y);
    cudaSetDevice(0);
    cudaFree(x);
}
