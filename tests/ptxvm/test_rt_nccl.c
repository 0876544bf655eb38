/* NCCL: collectives, sends, groups, graphs, streams, errors and aborts. Ranks are threads of the
 * test, one for each device. What only the stand-in does (its reports, its switches) is left out on
 * a real GPU. */
#include <nccl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/dtype.h"
#include "tests/ptxvm/rt_fixture.h"
#include "tests/ptxvm/rt_kernels.h"

enum { MAX_RANKS = 8, MAX_COUNT = 37 * MAX_RANKS };

#define EXPECT_NCCL(call, code) EXPECT_STR_EQ(ncclGetErrorString(call), ncclGetErrorString(code))

/* ---- ranks as threads ------------------------------------------------------------------------ */

struct rank {
    int index, size;
    ncclUniqueId id;
    ncclConfig_t *config;
    ncclComm_t comm;
    cudaStream_t stream;
    void *send, *recv; /* [MAX_COUNT] elements of 8 bytes, on its device */
    void (*body)(struct rank *r);
    int kind; /* of the test */
    pthread_t thread;
};

static void *run_rank(void *arg) {
    struct rank *r = arg;
    EXPECT_CUDA(cudaSetDevice(r->index), cudaSuccess);
    EXPECT_CUDA(cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking), cudaSuccess);
    EXPECT_CUDA(cudaMalloc(&r->send, 8 * MAX_COUNT), cudaSuccess);
    EXPECT_CUDA(cudaMalloc(&r->recv, 8 * MAX_COUNT), cudaSuccess);
    r->body(r);
    EXPECT_CUDA(cudaStreamSynchronize(r->stream), cudaSuccess);
    cudaFree(r->send);
    cudaFree(r->recv);
    cudaStreamDestroy(r->stream);
    return NULL;
}

static int num_devices(void) {
    int n = 0;
    EXPECT_CUDA(cudaGetDeviceCount(&n), cudaSuccess);
    return n < MAX_RANKS ? n : MAX_RANKS;
}

static bool have_devices(int n) {
    return num_devices() >= n;
}

/* Errors whose calls do not return with synchronous streams, and which a GPU meets with a hang. */
static bool can_go_wrong(int devices) {
    return rt_is_machine() && !rt_is_mode("sync") && have_devices(devices);
}

/* proto: what all ranks have in common. */
static void run_ranks(int size, void (*body)(struct rank *r), struct rank proto) {
    struct rank ranks[MAX_RANKS];
    EXPECT_NCCL(ncclGetUniqueId(&proto.id), ncclSuccess);
    for (int i = 0; i < size; i++) {
        ranks[i] = proto;
        ranks[i].index = i;
        ranks[i].size = size;
        ranks[i].body = body;
        pthread_create(&ranks[i].thread, NULL, run_rank, &ranks[i]);
    }
    for (int i = 0; i < size; i++)
        pthread_join(ranks[i].thread, NULL);
}

static void join(struct rank *r) {
    EXPECT_NCCL(ncclCommInitRankConfig(&r->comm, r->size, r->id, r->index, r->config), ncclSuccess);
}

static void leave(struct rank *r) {
    EXPECT_NCCL(ncclCommFinalize(r->comm), ncclSuccess);
    EXPECT_NCCL(ncclCommDestroy(r->comm), ncclSuccess);
}

static void sleep_ms(int ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l}, NULL);
}

/* The asynchronous error, once there is one; the stream does not come to its end. */
static ncclResult_t await_error(struct rank *r) {
    ncclResult_t e = ncclSuccess;
    for (int n = 0; n < 5000; n++) {
        EXPECT_CUDA(cudaStreamQuery(r->stream), cudaErrorNotReady);
        EXPECT_NCCL(ncclCommGetAsyncError(r->comm, &e), ncclSuccess);
        if (e != ncclSuccess && e != ncclInProgress)
            break;
        sleep_ms(1);
    }
    return e;
}

/* ---- elements of every type ------------------------------------------------------------------ */

static const struct {
    ncclDataType_t type;
    int bytes;
} types[] = {{ncclInt8, 1},    {ncclUint8, 1},   {ncclInt32, 4},   {ncclUint32, 4},
             {ncclInt64, 8},   {ncclUint64, 8},  {ncclFloat16, 2}, {ncclFloat32, 4},
             {ncclFloat64, 8}, {ncclBfloat16, 2}};
enum { NUM_TYPES = sizeof types / sizeof *types };

static void set(void *p, ncclDataType_t type, int i, int v) {
    switch (type) {
    case ncclInt8:
    case ncclUint8:
        ((int8_t *)p)[i] = (int8_t)v;
        break;
    case ncclInt32:
    case ncclUint32:
        ((int32_t *)p)[i] = v;
        break;
    case ncclInt64:
    case ncclUint64:
        ((int64_t *)p)[i] = v;
        break;
    case ncclFloat16:
        ((uint16_t *)p)[i] = f16_from_f32((float)v);
        break;
    case ncclBfloat16:
        ((uint16_t *)p)[i] = bf16_from_f32((float)v);
        break;
    case ncclFloat32:
        ((float *)p)[i] = (float)v;
        break;
    default:
        ((double *)p)[i] = v;
    }
}

/* Small, positive, and another one for each rank and element. */
static int value(int rank, int i) {
    return (rank * 3 + i * 2 + i / 5) % 4 + 1;
}

static int reduced(ncclRedOp_t op, int size, int i) {
    int r = value(0, i);
    for (int k = 1; k < size; k++) {
        int v = value(k, i);
        r = op == ncclProd  ? r * v
            : op == ncclMax ? (v > r ? v : r)
            : op == ncclMin ? (v < r ? v : r)
                            : r + v;
    }
    return op == ncclAvg ? r / size : r;
}

/* Averages of reals multiply by 1 / size, which is exact for powers of two. */
static bool is_exact(const struct rank *r, int t, ncclRedOp_t op, int i) {
    bool real = types[t].type >= ncclFloat16;
    return op != ncclAvg || !real ||
           (!(r->size & (r->size - 1)) && reduced(ncclSum, r->size, i) % r->size == 0);
}

static void upload(struct rank *r, ncclDataType_t type, int bytes, int count) {
    unsigned char host[8 * MAX_COUNT];
    for (int i = 0; i < count; i++)
        set(host, type, i, value(r->index, i));
    EXPECT_CUDA(cudaMemcpy(r->send, host, (size_t)(bytes * count), cudaMemcpyHostToDevice),
                cudaSuccess);
    EXPECT_CUDA(cudaMemset(r->recv, 0x55, 8 * MAX_COUNT), cudaSuccess);
    EXPECT_CUDA(cudaDeviceSynchronize(), cudaSuccess);
}

static void download(struct rank *r, void *host) {
    EXPECT_CUDA(cudaMemcpyAsync(host, r->recv, 8 * MAX_COUNT, cudaMemcpyDeviceToHost, r->stream),
                cudaSuccess);
    EXPECT_CUDA(cudaStreamSynchronize(r->stream), cudaSuccess);
}

enum { ALL_REDUCE, REDUCE_SCATTER, REDUCE, ALL_GATHER, BROADCAST, NUM_KINDS };

/* One collective of one type with `count` elements per rank's part; root: the last rank. */
static void check_collective(struct rank *r, int kind, int t, ncclRedOp_t op, int count) {
    ncclDataType_t type = types[t].type;
    int bytes = types[t].bytes, root = r->size - 1;
    unsigned char got[8 * MAX_COUNT], want[8];
    int sent = kind == REDUCE_SCATTER ? count * r->size : count;
    int received = kind == ALL_GATHER ? count * r->size : count;
    upload(r, type, bytes, sent);
    ncclResult_t e =
        kind == ALL_REDUCE
            ? ncclAllReduce(r->send, r->recv, (size_t)count, type, op, r->comm, r->stream)
        : kind == REDUCE_SCATTER
            ? ncclReduceScatter(r->send, r->recv, (size_t)count, type, op, r->comm, r->stream)
        : kind == REDUCE
            ? ncclReduce(r->send, r->recv, (size_t)count, type, op, root, r->comm, r->stream)
        : kind == ALL_GATHER
            ? ncclAllGather(r->send, r->recv, (size_t)count, type, r->comm, r->stream)
            : ncclBroadcast(r->send, r->recv, (size_t)count, type, root, r->comm, r->stream);
    EXPECT_NCCL(e, ncclSuccess);
    download(r, got);
    for (int i = 0; i < received && (kind != REDUCE || r->index == root); i++) {
        int at = kind == REDUCE_SCATTER ? r->index * count + i : i;
        if (kind <= REDUCE && !is_exact(r, t, op, at))
            continue;
        set(want, type, 0,
            kind == ALL_GATHER  ? value(i / count, i % count)
            : kind == BROADCAST ? value(root, i)
                                : reduced(op, r->size, at));
        if (memcmp(got + i * bytes, want, (size_t)bytes) != 0) {
            FAIL("rank %d of %d: kind %d type %d op %d: element %d", r->index, r->size, kind,
                 (int)type, (int)op, i);
            return;
        }
    }
    EXPECT_INT_EQ(got[received * bytes], 0x55);
}

static void every_collective(struct rank *r) {
    join(r);
    for (int kind = 0; kind < NUM_KINDS; kind++)
        for (int t = 0; t < NUM_TYPES; t++)
            for (int op = 0; op < (kind <= REDUCE ? 5 : 1); op++)
                if (op != ncclProd || r->size <= 3) /* 4^5 is no int8 */
                    check_collective(r, kind, t, (ncclRedOp_t)op, t % 2 ? 37 : 5);
    leave(r);
}

TEST_IN_ALL_MODES(RtNccl, EveryCollectiveTypeAndReduction) {
    for (int size = 1; size <= 5; size += size == 3 ? 2 : 1)
        if (have_devices(size))
            run_ranks(size, every_collective, (struct rank){0});
}

/* ---- numerics -------------------------------------------------------------------------------- */

static uint16_t sums[MAX_RANKS][64];

static void bf16_sum(struct rank *r) {
    uint16_t x[64];
    join(r);
    for (int i = 0; i < 64; i++)
        x[i] = bf16_from_f32((float)((r->index * 37 + i * 11) % 101) / 7);
    EXPECT_CUDA(cudaMemcpy(r->send, x, sizeof x, cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_CUDA(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_NCCL(ncclAllReduce(r->send, r->send, 64, ncclBfloat16, ncclSum, r->comm, NULL),
                ncclSuccess);
    EXPECT_CUDA(cudaMemcpy(sums[r->index], r->send, sizeof x, cudaMemcpyDeviceToHost), cudaSuccess);
    leave(r);
}

/* In place and in the default stream. Every hop rounds to 8 bits, each by at most 1/256 of a sum
 * that is no larger than the last; all ranks get the same. */
TEST(RtNccl, SumsAreRoundedAtEachHopAndTheSameEverywhere) {
    int size = num_devices(), differ = 0;
    run_ranks(size, bf16_sum, (struct rank){0});
    for (int i = 0; i < 64; i++) {
        float exact = 0;
        for (int r = 0; r < size; r++)
            exact += bf16_to_f32(bf16_from_f32((float)((r * 37 + i * 11) % 101) / 7));
        EXPECT_NEAR(bf16_to_f32(sums[0][i]), exact, exact * (float)size / 256);
        differ += sums[0][i] != bf16_from_f32(exact);
    }
    for (int r = 1; r < size; r++)
        EXPECT_MEM_EQ(sums[r], sums[0], sizeof sums[0]);
    if (size > 3)
        EXPECT_INT_GT(differ, 0);
}

/* ---- sends and receives ---------------------------------------------------------------------- */

/* Each passes two arrays to the next rank, in order; and everybody sends to rank 0, which sends to
 * itself too. */
static void ring(struct rank *r) {
    int next = (r->index + 1) % r->size, before = (r->index + r->size - 1) % r->size;
    int x[6] = {r->index, 1, 2, r->index + 100, 4, 5}, got[2 * MAX_COUNT];
    join(r);
    EXPECT_CUDA(cudaMemcpy(r->send, x, sizeof x, cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_CUDA(cudaDeviceSynchronize(), cudaSuccess);
    int *send = r->send, *recv = r->recv;
    ncclGroupStart();
    EXPECT_NCCL(ncclSend(send, 3, ncclInt32, next, r->comm, r->stream), ncclSuccess);
    EXPECT_NCCL(ncclSend(send + 3, 2, ncclInt32, next, r->comm, r->stream), ncclSuccess);
    EXPECT_NCCL(ncclRecv(recv, 3, ncclInt32, before, r->comm, r->stream), ncclSuccess);
    EXPECT_NCCL(ncclRecv(recv + 3, 2, ncclInt32, before, r->comm, r->stream), ncclSuccess);
    EXPECT_NCCL(ncclGroupEnd(), ncclSuccess);
    ncclGroupStart();
    EXPECT_NCCL(ncclSend(send, 1, ncclInt32, 0, r->comm, r->stream), ncclSuccess);
    for (int from = 0; r->index == 0 && from < r->size; from++)
        EXPECT_NCCL(ncclRecv(recv + 5 + from, 1, ncclInt32, from, r->comm, r->stream), ncclSuccess);
    EXPECT_NCCL(ncclGroupEnd(), ncclSuccess);
    download(r, got);
    EXPECT_INT_EQ(got[0], before);
    EXPECT_INT_EQ(got[2], 2);
    EXPECT_INT_EQ(got[3], before + 100);
    for (int from = 0; r->index == 0 && from < r->size; from++)
        EXPECT_INT_EQ(got[5 + from], from);
    leave(r);
}

TEST_IN_ALL_MODES(RtNccl, SendsAndReceivesOfAGroup) {
    run_ranks(num_devices(), ring, (struct rank){0});
}

static void cyclic_sends(struct rank *r) {
    join(r);
    EXPECT_NCCL(ncclSend(r->send, 3, ncclInt32, (r->index + 1) % r->size, r->comm, r->stream),
                ncclSuccess);
    EXPECT_NCCL(ncclRecv(r->recv, 3, ncclInt32, (r->index + 2) % r->size, r->comm, r->stream),
                ncclSuccess);
    EXPECT_NCCL(await_error(r), ncclInvalidUsage);
    EXPECT_TRUE(rt_reported("belong in one group"));
    EXPECT_NCCL(ncclCommAbort(r->comm), ncclSuccess);
}

TEST(RtNccl, SendsInACircleBelongInAGroup) {
    if (!can_go_wrong(3))
        SKIP("it takes three virtual devices and streams that do not block");
    run_ranks(3, cyclic_sends, (struct rank){0});
}

/* ---- graphs and streams ---------------------------------------------------------------------- */

static void graph(struct rank *r) {
    cudaGraph_t g;
    cudaGraphExec_t exec;
    int *x = r->send, got[2 * MAX_COUNT];
    join(r);
    EXPECT_CUDA(cudaMemset(x, 0, 20), cudaSuccess);
    EXPECT_CUDA(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_CUDA(cudaStreamBeginCapture(r->stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    EXPECT_CUDA(rt_add_launch(x, 5, 1, r->stream), cudaSuccess);
    EXPECT_NCCL(ncclAllReduce(x, x, 5, ncclInt32, ncclSum, r->comm, r->stream), ncclSuccess);
    EXPECT_CUDA(rt_move_launch(r->recv, x, 5, r->stream), cudaSuccess);
    EXPECT_CUDA(cudaStreamEndCapture(r->stream, &g), cudaSuccess);
    EXPECT_CUDA(cudaGraphInstantiate(&exec, g, 0), cudaSuccess);
    int want = 0;
    for (int n = 0; n < 3; n++) {
        EXPECT_CUDA(cudaGraphLaunch(exec, r->stream), cudaSuccess);
        want = (want + 1) * r->size;
    }
    download(r, got);
    EXPECT_INT_EQ(got[4], want);
    EXPECT_CUDA(cudaGraphExecDestroy(exec), cudaSuccess);
    EXPECT_CUDA(cudaGraphDestroy(g), cudaSuccess);
    leave(r);
}

TEST_IN_ALL_MODES(RtNccl, GraphsReplayCollectives) {
    run_ranks(num_devices(), graph, (struct rank){0});
}

/* One thread: rank after rank is asked without waiting for the others. */
static void check_one_thread(void) {
    ncclComm_t comms[MAX_RANKS];
    cudaStream_t streams[MAX_RANKS];
    int *x[MAX_RANKS], size = num_devices(), n;
    EXPECT_NCCL(ncclCommInitAll(comms, size, NULL), ncclSuccess);
    for (int i = 0; i < size; i++) {
        ASSERT_CUDA(cudaSetDevice(i));
        ASSERT_CUDA(cudaStreamCreateWithFlags(&streams[i], cudaStreamNonBlocking));
        x[i] = rt_device_ints(9, i + 1);
    }
    ncclGroupStart();
    for (int i = 0; i < size; i++)
        EXPECT_NCCL(ncclAllReduce(x[i], x[i], 9, ncclInt32, ncclSum, comms[i], streams[i]),
                    ncclSuccess);
    EXPECT_NCCL(ncclGroupEnd(), ncclSuccess);
    for (int i = 0; i < size; i++) {
        ASSERT_CUDA(cudaSetDevice(i));
        EXPECT_CUDA(cudaStreamSynchronize(streams[i]), cudaSuccess);
        EXPECT_INT_EQ(rt_read_int(x[i], 8), size * (size + 1) / 2);
        EXPECT_NCCL(ncclCommCount(comms[i], &n), ncclSuccess);
        EXPECT_INT_EQ(n, size);
        EXPECT_NCCL(ncclCommUserRank(comms[i], &n), ncclSuccess);
        EXPECT_INT_EQ(n, i);
        EXPECT_NCCL(ncclCommCuDevice(comms[i], &n), ncclSuccess);
        EXPECT_INT_EQ(n, i);
        cudaFree(x[i]);
        cudaStreamDestroy(streams[i]);
    }
    for (int i = 0; i < size; i++)
        EXPECT_NCCL(ncclCommDestroy(comms[i]), ncclSuccess);
    ASSERT_CUDA(cudaSetDevice(0));
}

TEST_IN_ALL_MODES(RtNccl, OneThreadServesAllRanks) {
    check_one_thread();
}

/* The call returns before the others have come, and waits for what is before it in the stream. */
static void late(struct rank *r) {
    static _Atomic int called;
    struct rt_gate gate;
    int got[2 * MAX_COUNT];
    join(r);
    EXPECT_CUDA(cudaMemset(r->send, 0, 8), cudaSuccess);
    EXPECT_CUDA(cudaDeviceSynchronize(), cudaSuccess);
    rt_gate_close(&gate, r->stream);
    EXPECT_CUDA(rt_add_launch(r->send, 1, r->index + 1, r->stream), cudaSuccess);
    EXPECT_NCCL(ncclAllReduce(r->send, r->recv, 1, ncclInt32, ncclSum, r->comm, r->stream),
                ncclSuccess);
    called++;
    while (called < r->size) /* nobody's stream goes on before all have called */
        sleep_ms(1);
    rt_gate_open(&gate);
    download(r, got);
    EXPECT_INT_EQ(got[0], r->size * (r->size + 1) / 2);
    leave(r);
}

TEST(RtNccl, CallsDoNotWait) {
    if (rt_is_mode("sync"))
        SKIP("with synchronous streams they do");
    run_ranks(num_devices(), late, (struct rank){0});
}

/* ---- communicators that do not block --------------------------------------------------------- */

static ncclResult_t settle(ncclComm_t comm) {
    ncclResult_t e = ncclInProgress;
    for (int n = 0; n < 20000 && e == ncclInProgress; n++) {
        EXPECT_NCCL(ncclCommGetAsyncError(comm, &e), ncclSuccess);
        if (e == ncclInProgress)
            sleep_ms(1);
    }
    return e;
}

static void without_blocking(struct rank *r) {
    int x[4] = {1, 2, 3, r->index}, got[2 * MAX_COUNT];
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclResult_t e = ncclCommInitRankConfig(&r->comm, r->size, r->id, r->index, &config);
    EXPECT_TRUE(e == ncclSuccess || e == ncclInProgress);
    EXPECT_NCCL(settle(r->comm), ncclSuccess);
    EXPECT_CUDA(cudaMemcpy(r->send, x, sizeof x, cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_CUDA(cudaDeviceSynchronize(), cudaSuccess);
    for (int n = 0; n < 3; n++) {
        e = ncclAllReduce(r->send, r->recv, 4, ncclInt32, ncclMax, r->comm, r->stream);
        EXPECT_TRUE(e == ncclSuccess || e == ncclInProgress);
        EXPECT_NCCL(settle(r->comm), ncclSuccess);
    }
    download(r, got);
    EXPECT_INT_EQ(got[1], 2);
    EXPECT_INT_EQ(got[3], r->size - 1);
    e = ncclCommFinalize(r->comm);
    EXPECT_TRUE(e == ncclSuccess || e == ncclInProgress);
    EXPECT_NCCL(settle(r->comm), ncclSuccess);
    EXPECT_NCCL(ncclCommDestroy(r->comm), ncclSuccess);
}

TEST_IN_ALL_MODES(RtNccl, CommunicatorsThatDoNotBlock) {
    run_ranks(num_devices(), without_blocking, (struct rank){0});
}

/* What follows an operation in the stream must wait until it is there itself. */
static void too_early(struct rank *r) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    EXPECT_NCCL(ncclCommInitRankConfig(&r->comm, r->size, r->id, r->index, &config),
                ncclInProgress);
    EXPECT_NCCL(ncclAllReduce(r->send, r->recv, 4, ncclInt32, ncclMax, r->comm, r->stream),
                ncclInvalidUsage);
    EXPECT_NCCL(settle(r->comm), ncclSuccess);
    EXPECT_NCCL(ncclAllReduce(r->send, r->recv, 4, ncclInt32, ncclMax, r->comm, r->stream),
                ncclInProgress);
    EXPECT_NCCL(ncclAllReduce(r->send, r->recv, 4, ncclInt32, ncclMax, r->comm, r->stream),
                ncclInvalidUsage);
    EXPECT_TRUE(rt_reported("nothing is in progress"));
    EXPECT_NCCL(settle(r->comm), ncclSuccess);
    EXPECT_NCCL(ncclCommDestroy(r->comm), ncclSuccess);
}

TEST(RtNccl, NothingComesBeforeTheEndOfWhatIsInProgress) {
    if (!rt_is_machine() || !have_devices(2))
        SKIP("it takes two virtual devices: a GPU may be quicker");
    run_ranks(2, too_early, (struct rank){0});
}

/* ---- misuse ---------------------------------------------------------------------------------- */

TEST(RtNccl, BadArgumentsAreRefusedInWords) {
    if (!rt_is_machine())
        SKIP("the real library checks less");
    ncclUniqueId id, other;
    ncclComm_t comm, second;
    cudaStream_t elsewhere;
    int host[4], *x = rt_device_ints(4, 0);
    memset(&other, 7, sizeof other);
    EXPECT_NCCL(ncclGetUniqueId(&id), ncclSuccess);
    EXPECT_NCCL(ncclCommInitRank(&comm, 2, id, 2), ncclInvalidArgument);
    EXPECT_NCCL(ncclCommInitRank(&comm, 1, other, 0), ncclInvalidArgument);
    EXPECT_TRUE(rt_reported("not one of ncclGetUniqueId"));
    other = id;
    other.internal[16]++; /* the process */
    EXPECT_NCCL(ncclCommInitRank(&comm, 1, other, 0), ncclSystemError);
    EXPECT_TRUE(rt_reported("connects ranks of one process only"));
    EXPECT_NCCL(ncclCommInitRank(&comm, 1, id, 0), ncclSuccess);
    EXPECT_NCCL(ncclCommInitRank(&second, 1, id, 0), ncclInvalidUsage);
    EXPECT_TRUE(rt_reported("has joined before"));
#define SUM(send, recv, count, stream)                                                             \
    ncclAllReduce(send, recv, count, ncclInt32, ncclSum, comm, stream)
    EXPECT_NCCL(SUM(x, x, 5, NULL), ncclInvalidArgument);
    EXPECT_TRUE(rt_reported("ncclAllReduce: sendbuff"));
    EXPECT_TRUE(strstr(ncclGetLastError(comm), "20 bytes") != NULL);
    EXPECT_NCCL(SUM(x, host, 4, NULL), ncclInvalidArgument);
    EXPECT_NCCL(SUM(NULL, x, 4, NULL), ncclInvalidArgument);
    if (have_devices(2)) {
        ASSERT_CUDA(cudaSetDevice(1));
        ASSERT_CUDA(cudaStreamCreate(&elsewhere));
        EXPECT_NCCL(SUM(x, x, 4, elsewhere), ncclInvalidArgument);
        EXPECT_TRUE(rt_reported("the stream is of device 1, but rank 0 is on device 0"));
        ASSERT_CUDA(cudaStreamDestroy(elsewhere));
        EXPECT_NCCL(SUM(x, x, 4, elsewhere), ncclInvalidArgument);
        ASSERT_CUDA(cudaSetDevice(0));
    }
    EXPECT_NCCL(ncclSend(x, 4, ncclInt32, 1, comm, NULL), ncclInvalidArgument);
    EXPECT_TRUE(rt_reported("there is no rank 1 of 1"));
    EXPECT_NCCL(ncclAllReduce(x, x, 4, ncclFloat8e4m3, ncclSum, comm, NULL), ncclInvalidArgument);
    EXPECT_NCCL(ncclGroupEnd(), ncclInvalidUsage);
    ncclGroupStart();
    EXPECT_NCCL(SUM(x, x, 5, NULL), ncclInvalidArgument);
    EXPECT_NCCL(ncclGroupEnd(), ncclInvalidArgument);
    EXPECT_NCCL(SUM(x, x, 0, NULL), ncclSuccess);
    EXPECT_NCCL(SUM(x, x, 4, NULL), ncclSuccess); /* a good one after all of these */
    EXPECT_INT_EQ(rt_read_int(x, 3), 0);
    EXPECT_NCCL(ncclCommDestroy(comm), ncclSuccess);
    EXPECT_NCCL(SUM(x, x, 4, NULL), ncclInvalidArgument);
    EXPECT_TRUE(rt_reported("the communicator of rank 0 was destroyed"));
    EXPECT_NCCL(ncclCommDestroy(comm), ncclInvalidArgument);
    EXPECT_NCCL(ncclAllReduce(x, x, 4, ncclInt32, ncclSum, (ncclComm_t)(void *)x, NULL),
                ncclInvalidArgument);
    cudaFree(x);
#undef SUM
}

/* Rank 1 differs; kind says by what. */
static void mismatch(struct rank *r) {
    bool odd = r->index == 1;
    join(r);
    if (odd && r->kind == 0)
        ncclAllReduce(r->send, r->recv, 6, ncclFloat32, ncclSum, r->comm, r->stream);
    else if (odd && r->kind == 1)
        ncclAllReduce(r->send, r->recv, 5, ncclInt32, ncclSum, r->comm, r->stream);
    else if (odd && r->kind == 2)
        ncclAllReduce(r->send, r->recv, 5, ncclFloat32, ncclMax, r->comm, r->stream);
    else if (odd && r->kind == 3)
        ncclAllGather(r->send, r->recv, 5, ncclFloat32, r->comm, r->stream);
    else
        ncclAllReduce(r->send, r->recv, 5, ncclFloat32, ncclSum, r->comm, r->stream);
    EXPECT_NCCL(await_error(r), ncclInvalidUsage);
    EXPECT_TRUE(strstr(ncclGetLastError(r->comm), "rank 0 has ncclAllReduce of 5 float32, sum") !=
                NULL);
    EXPECT_NCCL(ncclCommAbort(r->comm), ncclSuccess);
    EXPECT_NCCL(ncclCommAbort(r->comm), ncclInvalidArgument);
    EXPECT_TRUE(rt_reported("was aborted"));
}

TEST(RtNccl, RanksThatDifferAreTold) {
    if (!can_go_wrong(3))
        SKIP("it takes three virtual devices and streams that do not block");
    for (int kind = 0; kind < 4; kind++)
        run_ranks(3, mismatch, (struct rank){.kind = kind});
}

static void of_other_length(struct rank *r) {
    join(r);
    if (r->index == 0)
        ncclSend(r->send, 3, ncclInt32, 1, r->comm, r->stream);
    else
        ncclRecv(r->recv, 4, ncclInt32, 0, r->comm, r->stream);
    EXPECT_NCCL(await_error(r), ncclInvalidUsage);
    EXPECT_TRUE(strstr(ncclGetLastError(r->comm),
                       "rank 0 has ncclSend of 3 int32 to rank 1, but "
                       "rank 1 has ncclRecv of 4 int32 from rank 0") != NULL);
    EXPECT_NCCL(ncclCommAbort(r->comm), ncclSuccess);
}

TEST(RtNccl, ReceivesOfAnotherLengthAreTold) {
    if (!can_go_wrong(2))
        SKIP("it takes two virtual devices and streams that do not block");
    run_ranks(2, of_other_length, (struct rank){0});
}

/* ---- faults ---------------------------------------------------------------------------------- */

/* Rank 1 does not come to the second operation. Nothing ends until the abort, which frees all. */
static void stay_away(struct rank *r) {
    ncclResult_t e;
    join(r);
    EXPECT_NCCL(ncclAllReduce(r->send, r->send, 5, ncclFloat32, ncclSum, r->comm, r->stream),
                ncclSuccess);
    EXPECT_CUDA(cudaStreamSynchronize(r->stream), cudaSuccess);
    if (r->index != 1) {
        EXPECT_NCCL(ncclAllReduce(r->send, r->send, 5, ncclFloat32, ncclSum, r->comm, r->stream),
                    ncclSuccess);
        for (int n = 0; n < 13; n++) {
            EXPECT_CUDA(cudaStreamQuery(r->stream), cudaErrorNotReady);
            sleep_ms(100);
        }
        EXPECT_NCCL(ncclCommGetAsyncError(r->comm, &e), ncclSuccess);
        EXPECT_NCCL(e, ncclSuccess);
        EXPECT_TRUE(
            rt_reported("in ncclAllReduce of 5 float32, sum, operation 2; missing: rank 1"));
    }
    EXPECT_NCCL(ncclCommAbort(r->comm), ncclSuccess);
}

TEST(RtNccl, MissingRanksAreNamedAndAbortFreesTheRest) {
    if (!rt_with_setting("PTXVM_SPIN", "1", "RtNccl.MissingRanksAreNamedAndAbortFreesTheRest"))
        return;
    if (rt_is_mode("sync") || !have_devices(3))
        SKIP("it takes three devices and streams that do not block");
    run_ranks(3, stay_away, (struct rank){0});
}

/* Rank 1 comes and is aborted before rank 2 comes: nobody completes it, and nobody minds. */
static void leave_before_all_came(struct rank *r) {
    join(r);
    sleep_ms(r->index == 2 ? 150 : 0);
    EXPECT_NCCL(ncclAllReduce(r->send, r->send, 5, ncclFloat32, ncclSum, r->comm, r->stream),
                ncclSuccess);
    cudaStreamQuery(r->stream); /* lazy streams begin */
    sleep_ms(r->index == 1 ? 75 : 250);
    if (r->index != 1)
        EXPECT_CUDA(cudaStreamQuery(r->stream), cudaErrorNotReady);
    EXPECT_NCCL(ncclCommAbort(r->comm), ncclSuccess);
    EXPECT_CUDA(cudaStreamSynchronize(r->stream), cudaSuccess);
}

TEST(RtNccl, ARankMayBeAbortedWhereOthersAreStillToCome) {
    if (!can_go_wrong(3))
        SKIP("it takes three virtual devices and streams that do not block");
    run_ranks(3, leave_before_all_came, (struct rank){0});
}

static void fail_third(struct rank *r) {
    join(r);
    for (int n = 0; n < 5; n++)
        EXPECT_NCCL(ncclAllReduce(r->send, r->send, 5, ncclFloat32, ncclSum, r->comm, r->stream),
                    ncclSuccess);
    EXPECT_NCCL(await_error(r), r->index == 1 ? ncclSystemError : ncclRemoteError);
    EXPECT_TRUE(strstr(ncclGetLastError(r->comm), "rank 1 fails in") != NULL);
    EXPECT_NCCL(ncclCommAbort(r->comm), ncclSuccess);
}

TEST(RtNccl, FailuresCanBeAskedFor) {
    if (!can_go_wrong(3))
        SKIP("it takes three virtual devices and streams that do not block");
    setenv("PTXVM_NCCL_FAIL", "rank=1,op=3", 1);
    run_ranks(3, fail_third, (struct rank){0});
    unsetenv("PTXVM_NCCL_FAIL");
}

static void hang_second(struct rank *r) {
    ncclResult_t e;
    join(r);
    for (int n = 0; n < 3; n++)
        EXPECT_NCCL(ncclAllReduce(r->send, r->send, 5, ncclFloat32, ncclSum, r->comm, r->stream),
                    ncclSuccess);
    sleep_ms(100);
    EXPECT_CUDA(cudaStreamQuery(r->stream), cudaErrorNotReady);
    EXPECT_NCCL(ncclCommGetAsyncError(r->comm, &e), ncclSuccess);
    EXPECT_NCCL(e, ncclSuccess);
    EXPECT_NCCL(ncclCommAbort(r->comm), ncclSuccess);
}

TEST(RtNccl, HangsCanBeAskedFor) {
    if (!can_go_wrong(3))
        SKIP("it takes three virtual devices and streams that do not block");
    setenv("PTXVM_NCCL_HANG", "rank=2,op=2", 1);
    run_ranks(3, hang_second, (struct rank){0});
    unsetenv("PTXVM_NCCL_HANG");
}

static void start_in_vain(struct rank *r) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclResult_t e = ncclSuccess;
    config.blocking = 0;
    ncclCommInitRankConfig(&r->comm, r->size, r->id, r->index, &config);
    bool fails = r->kind == 1 && r->index == 1;
    for (int n = 0; n < 30; n++) {
        EXPECT_NCCL(ncclCommGetAsyncError(r->comm, &e), ncclSuccess);
        sleep_ms(1);
    }
    EXPECT_NCCL(e, fails ? ncclSystemError : ncclInProgress);
    EXPECT_NCCL(ncclCommAbort(r->comm), ncclSuccess);
}

TEST(RtNccl, JoiningCanFailOrHang) {
    if (!rt_is_machine() || !have_devices(3))
        SKIP("it takes three virtual devices");
    setenv("PTXVM_NCCL_INIT", "hang,rank=1", 1);
    run_ranks(3, start_in_vain, (struct rank){0});
    setenv("PTXVM_NCCL_INIT", "fail,rank=1", 1);
    run_ranks(3, start_in_vain, (struct rank){.kind = 1});
    setenv("PTXVM_NCCL_INIT", "hang", 1);
    run_ranks(2, start_in_vain, (struct rank){0});
    unsetenv("PTXVM_NCCL_INIT");
    run_ranks(2, every_collective, (struct rank){0});
}
