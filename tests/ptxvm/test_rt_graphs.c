/* Capture and graphs: replays see new contents, branches join, and what capture forbids. */
#include <string.h>

#include "tests/ptxvm/rt_fixture.h"
#include "tests/ptxvm/rt_kernels.h"

enum { N = 100, BYTES = 4 * N };

struct rig {
    cudaStream_t a, b;
    cudaEvent_t fork, join;
    int *x, *y, *z, *pinned;
};

static void rig_init(struct rig *r) {
    ASSERT_CUDA(cudaStreamCreateWithFlags(&r->a, cudaStreamNonBlocking));
    ASSERT_CUDA(cudaStreamCreateWithFlags(&r->b, cudaStreamNonBlocking));
    ASSERT_CUDA(cudaEventCreateWithFlags(&r->fork, cudaEventDisableTiming));
    ASSERT_CUDA(cudaEventCreateWithFlags(&r->join, cudaEventDisableTiming));
    ASSERT_CUDA(cudaMallocHost((void **)&r->pinned, BYTES));
    memset(r->pinned, 0, BYTES);
    r->x = rt_device_ints(N, 0);
    r->y = rt_device_ints(N, 0);
    r->z = rt_device_ints(N, 0);
}

static void rig_deinit(struct rig *r) {
    cudaStreamDestroy(r->a);
    cudaStreamDestroy(r->b);
    cudaEventDestroy(r->fork);
    cudaEventDestroy(r->join);
    cudaFreeHost(r->pinned);
    cudaFree(r->x);
    cudaFree(r->y);
    cudaFree(r->z);
    cudaGetLastError();
}

static cudaGraphExec_t finish(struct rig *r) {
    cudaGraph_t g = NULL;
    cudaGraphExec_t x = NULL;
    EXPECT_CUDA(cudaStreamEndCapture(r->a, &g), cudaSuccess);
    EXPECT_CUDA(cudaGraphInstantiate(&x, g, 0), cudaSuccess);
    EXPECT_CUDA(cudaGraphDestroy(g), cudaSuccess);
    return x;
}

/* upload, add, download: each replay reads and writes what is there then. */
static void replay_sees_new_contents(void) {
    struct rig r;
    rig_init(&r);
    ASSERT_CUDA(cudaStreamBeginCapture(r.a, cudaStreamCaptureModeGlobal));
    EXPECT_CUDA(cudaMemcpyAsync(r.x, r.pinned, BYTES, cudaMemcpyHostToDevice, r.a), cudaSuccess);
    EXPECT_CUDA(cudaMemsetAsync(r.y, 0, BYTES, r.a), cudaSuccess);
    EXPECT_CUDA(rt_add_launch(r.x, N, 1, r.a), cudaSuccess);
    EXPECT_CUDA(rt_move_launch(r.y, r.x, N - 1, r.a), cudaSuccess);
    EXPECT_CUDA(cudaMemcpyAsync(r.pinned, r.y, BYTES, cudaMemcpyDeviceToHost, r.a), cudaSuccess);
    cudaGraphExec_t x = finish(&r);
    EXPECT_INT_EQ(rt_read_int(r.x, 0), 0); /* capturing did nothing */
    for (int i = 0; i < 5; i++) {
        r.pinned[0] = 10 * i;
        EXPECT_CUDA(cudaGraphLaunch(x, r.a), cudaSuccess);
        EXPECT_CUDA(cudaStreamSynchronize(r.a), cudaSuccess);
        EXPECT_INT_EQ(r.pinned[0], 10 * i + 1);
        EXPECT_INT_EQ(r.pinned[N - 1], 0);
    }
    EXPECT_CUDA(cudaGraphLaunch(x, r.b), cudaSuccess);
    EXPECT_CUDA(cudaGraphLaunch(x, r.a), cudaSuccess); /* waits for the launch before */
    EXPECT_CUDA(cudaGraphExecDestroy(x), cudaSuccess); /* which go on */
    EXPECT_CUDA(cudaStreamSynchronize(r.a), cudaSuccess);
    EXPECT_INT_EQ(r.pinned[0], 43);
    EXPECT_CUDA(cudaGraphLaunch(x, r.a), cudaErrorInvalidValue);
    rig_deinit(&r);
}

TEST(RtGraphs, ReplaySeesNewContentsSync) {
    if (rt_in_mode("sync", "RtGraphs.ReplaySeesNewContentsSync"))
        replay_sees_new_contents();
}

TEST(RtGraphs, ReplaySeesNewContentsAsync) {
    if (rt_in_mode("async", "RtGraphs.ReplaySeesNewContentsAsync"))
        replay_sees_new_contents();
}

TEST(RtGraphs, ReplaySeesNewContentsLazy) {
    if (rt_in_mode("lazy", "RtGraphs.ReplaySeesNewContentsLazy"))
        replay_sees_new_contents();
}

static void capture_fork(struct rig *r) {
    EXPECT_CUDA(rt_add_launch(r->x, N, 1, r->a), cudaSuccess);
    EXPECT_CUDA(cudaEventRecord(r->fork, r->a), cudaSuccess);
    EXPECT_CUDA(cudaStreamWaitEvent(r->b, r->fork, 0), cudaSuccess);
    EXPECT_CUDA(rt_move_launch(r->y, r->x, N, r->b), cudaSuccess);
    EXPECT_CUDA(rt_move_launch(r->z, r->x, N, r->a), cudaSuccess);
}

static void capture_join(struct rig *r) {
    EXPECT_CUDA(cudaEventRecord(r->join, r->b), cudaSuccess);
    EXPECT_CUDA(cudaStreamWaitEvent(r->a, r->join, 0), cudaSuccess);
}

/* x += 1; then y = x beside z = x; then y += 100. */
TEST(RtGraphs, BranchesForkAndJoin) {
    struct rig r;
    enum cudaStreamCaptureStatus status;
    rig_init(&r);
    ASSERT_CUDA(cudaStreamBeginCapture(r.a, cudaStreamCaptureModeThreadLocal));
    capture_fork(&r);
    EXPECT_CUDA(cudaStreamIsCapturing(r.b, &status), cudaSuccess);
    EXPECT_INT_EQ(status, cudaStreamCaptureStatusActive);
    capture_join(&r);
    EXPECT_CUDA(rt_add_launch(r.y, N, 100, r.a), cudaSuccess);
    cudaGraphExec_t x = finish(&r);
    EXPECT_CUDA(cudaStreamIsCapturing(r.b, &status), cudaSuccess);
    EXPECT_INT_EQ(status, cudaStreamCaptureStatusNone);
    for (int i = 1; i <= 20; i++)
        EXPECT_CUDA(cudaGraphLaunch(x, r.a), cudaSuccess);
    EXPECT_CUDA(cudaStreamSynchronize(r.a), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(r.y, N - 1), 120);
    EXPECT_INT_EQ(rt_read_int(r.z, N - 1), 20);
    EXPECT_CUDA(cudaEventQuery(r.fork), cudaErrorCapturedEvent);
    EXPECT_CUDA(cudaEventSynchronize(r.join), cudaErrorCapturedEvent);
    cudaGraphExecDestroy(x);
    rig_deinit(&r);
}

TEST(RtGraphs, NodesHaveTypes) {
    struct rig r;
    cudaGraph_t g;
    cudaGraphNode_t nodes[8];
    enum cudaGraphNodeType type;
    size_t count = 8;
    rig_init(&r);
    ASSERT_CUDA(cudaStreamBeginCapture(r.a, cudaStreamCaptureModeRelaxed));
    EXPECT_CUDA(cudaMemsetAsync(r.x, 0, BYTES, r.a), cudaSuccess);
    EXPECT_CUDA(rt_add_launch(r.x, N, 1, r.a), cudaSuccess);
    EXPECT_CUDA(cudaMemcpyAsync(r.y, r.x, BYTES, cudaMemcpyDeviceToDevice, r.a), cudaSuccess);
    ASSERT_CUDA(cudaStreamEndCapture(r.a, &g));
    EXPECT_CUDA(cudaGraphGetNodes(g, NULL, &count), cudaSuccess);
    ASSERT_INT_EQ(count, 3);
    count = 8;
    EXPECT_CUDA(cudaGraphGetNodes(g, nodes, &count), cudaSuccess);
    ASSERT_INT_EQ(count, 3);
    const enum cudaGraphNodeType expected[] = {cudaGraphNodeTypeMemset, cudaGraphNodeTypeKernel,
                                               cudaGraphNodeTypeMemcpy};
    for (int i = 0; i < 3; i++) {
        EXPECT_CUDA(cudaGraphNodeGetType(nodes[i], &type), cudaSuccess);
        EXPECT_INT_EQ(type, expected[i]);
    }
    cudaGraphDestroy(g);
    EXPECT_CUDA(cudaGraphDestroy(g), cudaErrorInvalidValue);
    rig_deinit(&r);
}

static cudaGraph_t capture_adds(struct rig *r, int adds, int value) {
    cudaGraph_t g = NULL;
    EXPECT_CUDA(cudaStreamBeginCapture(r->a, cudaStreamCaptureModeRelaxed), cudaSuccess);
    for (int i = 0; i < adds; i++)
        EXPECT_CUDA(rt_add_launch(r->x, N, value, r->a), cudaSuccess);
    EXPECT_CUDA(cudaStreamEndCapture(r->a, &g), cudaSuccess);
    return g;
}

TEST(RtGraphs, UpdatesKeepTheShape) {
    struct rig r;
    cudaGraphExec_t x;
    cudaGraphExecUpdateResultInfo info;
    rig_init(&r);
    cudaGraph_t one = capture_adds(&r, 2, 1), ten = capture_adds(&r, 2, 10),
                longer = capture_adds(&r, 3, 1);
    ASSERT_CUDA(cudaGraphInstantiate(&x, one, 0));
    EXPECT_CUDA(cudaGraphLaunch(x, r.a), cudaSuccess);
    EXPECT_CUDA(cudaGraphExecUpdate(x, ten, &info), cudaSuccess);
    EXPECT_CUDA(cudaGraphLaunch(x, r.a), cudaSuccess);
    EXPECT_CUDA(cudaGraphExecUpdate(x, longer, &info), cudaErrorGraphExecUpdateFailure);
    EXPECT_INT_EQ(info.result, cudaGraphExecUpdateErrorTopologyChanged);
    EXPECT_CUDA(cudaGraphLaunch(x, r.a), cudaSuccess);
    EXPECT_CUDA(cudaStreamSynchronize(r.a), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(r.x, 0), 2 + 20 + 20);
    cudaGraphExecDestroy(x);
    cudaGraphDestroy(one);
    cudaGraphDestroy(ten);
    cudaGraphDestroy(longer);
    rig_deinit(&r);
}

/* A graph that is launched while capturing becomes part of the new graph. */
TEST(RtGraphs, GraphsAreCapturedToo) {
    struct rig r;
    cudaGraphExec_t inner;
    rig_init(&r);
    cudaGraph_t g = capture_adds(&r, 2, 1);
    ASSERT_CUDA(cudaGraphInstantiate(&inner, g, 0));
    ASSERT_CUDA(cudaStreamBeginCapture(r.a, cudaStreamCaptureModeRelaxed));
    EXPECT_CUDA(cudaMemsetAsync(r.x, 0, BYTES, r.a), cudaSuccess);
    EXPECT_CUDA(cudaGraphLaunch(inner, r.a), cudaSuccess);
    EXPECT_CUDA(rt_move_launch(r.y, r.x, N, r.a), cudaSuccess);
    cudaGraphExec_t outer = finish(&r);
    EXPECT_CUDA(cudaGraphLaunch(outer, r.a), cudaSuccess);
    EXPECT_CUDA(cudaStreamSynchronize(r.a), cudaSuccess);
    EXPECT_INT_EQ(rt_read_int(r.y, N - 1), 2);
    cudaGraphExecDestroy(outer);
    cudaGraphExecDestroy(inner);
    cudaGraphDestroy(g);
    rig_deinit(&r);
}

/* ---- what capture forbids -------------------------------------------------------------------- */

static cudaError_t call_malloc(struct rig *r) {
    void *p;
    (void)r;
    return cudaMalloc(&p, 16);
}

static cudaError_t call_stream_synchronize(struct rig *r) {
    return cudaStreamSynchronize(r->a);
}

static cudaError_t call_stream_query(struct rig *r) {
    return cudaStreamQuery(r->a);
}

static cudaError_t call_device_synchronize(struct rig *r) {
    (void)r;
    return cudaDeviceSynchronize();
}

static cudaError_t call_memcpy(struct rig *r) {
    return cudaMemcpy(r->x, r->y, BYTES, cudaMemcpyDeviceToDevice);
}

static cudaError_t call_pageable_copy(struct rig *r) {
    int host[N] = {0};
    return cudaMemcpyAsync(r->x, host, BYTES, cudaMemcpyHostToDevice, r->a);
}

static cudaError_t call_wait_for_outside_event(struct rig *r) {
    return cudaStreamWaitEvent(r->a, r->join, 0);
}

static cudaError_t call_query_captured_event(struct rig *r) {
    cudaEventRecord(r->fork, r->a);
    return cudaEventQuery(r->fork);
}

static cudaError_t call_legacy_wait(struct rig *r) {
    cudaEventRecord(r->fork, r->a);
    return cudaStreamWaitEvent(NULL, r->fork, 0);
}

TEST(RtGraphs, ForbiddenCallsInvalidateTheCapture) {
    const struct {
        cudaError_t (*call)(struct rig *r);
        const char *error;
    } cases[] = {
        {call_malloc, "cudaErrorStreamCaptureUnsupported"},
        {call_stream_synchronize, "cudaErrorStreamCaptureUnsupported"},
        {call_stream_query, "cudaErrorStreamCaptureUnsupported"},
        {call_device_synchronize, "cudaErrorStreamCaptureUnsupported"},
        {call_memcpy, "cudaErrorStreamCaptureUnsupported"},
        {call_pageable_copy, "cudaErrorStreamCaptureUnsupported"},
        {call_wait_for_outside_event, "cudaErrorStreamCaptureIsolation"},
        {call_query_captured_event, "cudaErrorCapturedEvent"},
        {call_legacy_wait, "cudaErrorStreamCaptureImplicit"},
    };
    struct rig r;
    rig_init(&r);
    ASSERT_CUDA(cudaEventRecord(r.join, r.b));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum cudaStreamCaptureStatus status;
        cudaGraph_t g = (cudaGraph_t)&r;
        ASSERT_CUDA(cudaStreamBeginCapture(r.a, cudaStreamCaptureModeGlobal));
        EXPECT_CUDA(rt_add_launch(r.x, N, 1, r.a), cudaSuccess);
        EXPECT_STR_EQ(cudaGetErrorName(cases[i].call(&r)), cases[i].error);
        EXPECT_CUDA(cudaStreamIsCapturing(r.a, &status), cudaSuccess);
        EXPECT_INT_EQ(status, cudaStreamCaptureStatusInvalidated);
        cudaGetLastError();
        EXPECT_CUDA(rt_add_launch(r.x, N, 1, r.a), cudaErrorStreamCaptureInvalidated);
        EXPECT_CUDA(cudaStreamEndCapture(r.a, &g), cudaErrorStreamCaptureInvalidated);
        EXPECT_TRUE(g == NULL);
        cudaGetLastError();
        EXPECT_CUDA(rt_add_launch(r.x, N, 1, r.a), cudaSuccess); /* the stream works again */
    }
    rig_deinit(&r);
}

TEST(RtGraphs, RelaxedCaptureAllowsAllocations) {
    struct rig r;
    void *p;
    rig_init(&r);
    ASSERT_CUDA(cudaStreamBeginCapture(r.a, cudaStreamCaptureModeRelaxed));
    EXPECT_CUDA(rt_add_launch(r.x, N, 1, r.a), cudaSuccess);
    EXPECT_CUDA(cudaMalloc(&p, 16), cudaSuccess);
    EXPECT_CUDA(cudaFree(p), cudaSuccess);
    cudaGraphExecDestroy(finish(&r));
    rig_deinit(&r);
}

TEST(RtGraphs, CaptureBeginsAndEndsInOneStream) {
    struct rig r;
    cudaGraph_t g;
    rig_init(&r);
    EXPECT_CUDA(cudaStreamEndCapture(r.a, &g), cudaErrorIllegalState);
    EXPECT_CUDA(cudaStreamBeginCapture(NULL, cudaStreamCaptureModeGlobal),
                cudaErrorStreamCaptureUnsupported);
    cudaGetLastError();
    ASSERT_CUDA(cudaStreamBeginCapture(r.a, cudaStreamCaptureModeGlobal));
    EXPECT_CUDA(cudaStreamBeginCapture(r.a, cudaStreamCaptureModeGlobal), cudaErrorIllegalState);
    cudaGetLastError();
    capture_fork(&r);
    EXPECT_CUDA(cudaStreamEndCapture(r.b, &g), cudaErrorStreamCaptureUnmatched);
    EXPECT_CUDA(cudaStreamEndCapture(r.a, &g), cudaErrorStreamCaptureInvalidated);
    cudaGetLastError();
    ASSERT_CUDA(cudaStreamBeginCapture(r.a, cudaStreamCaptureModeGlobal));
    capture_fork(&r);
    EXPECT_CUDA(cudaStreamEndCapture(r.a, &g), cudaErrorStreamCaptureUnjoined);
    EXPECT_CUDA(cudaStreamWaitEvent(r.a, r.fork, 0), cudaErrorCapturedEvent);
    rig_deinit(&r);
}

TEST(RtGraphs, TwoCapturesDoNotMix) {
    struct rig r;
    cudaGraph_t g;
    rig_init(&r);
    ASSERT_CUDA(cudaStreamBeginCapture(r.a, cudaStreamCaptureModeThreadLocal));
    ASSERT_CUDA(cudaStreamBeginCapture(r.b, cudaStreamCaptureModeThreadLocal));
    EXPECT_CUDA(cudaEventRecord(r.fork, r.a), cudaSuccess);
    EXPECT_CUDA(cudaStreamWaitEvent(r.b, r.fork, 0), cudaErrorStreamCaptureMerge);
    EXPECT_CUDA(cudaStreamEndCapture(r.a, &g), cudaErrorStreamCaptureInvalidated);
    EXPECT_CUDA(cudaStreamEndCapture(r.b, &g), cudaErrorStreamCaptureInvalidated);
    rig_deinit(&r);
}
