/* Groups of GPUs that NCCL connects. Ranks are threads of the test, one for each device, as they
 * are in the program. Faults are those that the stand-in can be asked for. */
#include "cuda/nccl.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/dtype.h"
#include "tests/gpu_fixture.h"

enum { MOST_RANKS = 8, MAX_FLOATS = 4096 };
#define TIMEOUT_US 20000000

const char *ptxvm_last_report(void) __attribute__((weak));

struct rank {
    int32_t index, size;
    const char *id;
    int64_t timeout_us;
    struct nccl *nccl;
    cudaStream_t stream;
    float *a, *b;           /* [MAX_FLOATS] on its device */
    float host[MAX_FLOATS]; /* what came back */
    int64_t count;          /* of the test */
    enum nccl_type type;    /* of the test */
    int result;             /* of the call under test, with its error */
    struct error error;
    void (*body)(struct rank *r);
    pthread_t thread;
};

static struct rank ranks[MOST_RANKS];

/* ---- ranks ----------------------------------------------------------------------------------- */

static int32_t num_devices(void) {
    int n = 0;
    return cudaGetDeviceCount(&n) != cudaSuccess ? 0 : n < MOST_RANKS ? n : MOST_RANKS;
}

static bool is_available(int32_t devices, const char **reason) {
    static struct error error;
    if (!gpu_available(reason))
        return false;
    *reason = "it takes more GPUs";
    if (num_devices() < devices)
        return false;
    *reason = error.text;
    return nccl_open(&error) == 0;
}

#define NCCL_OR_SKIP(devices)                                                                      \
    do {                                                                                           \
        const char *nccl_reason;                                                                   \
        if (!is_available(devices, &nccl_reason))                                                  \
            SKIP(nccl_reason);                                                                     \
    } while (0)

/* Faults can be asked for on the stand-in; with synchronous streams its calls wait themselves. */
static bool can_have_faults(void) {
    const char *mode = getenv("PTXVM_STREAMS");
    return ptxvm_last_report && !(mode && !strcmp(mode, "sync"));
}

static void *run_rank(void *arg) {
    struct rank *r = arg;
    CUDA_CHECK(cudaSetDevice(r->index));
    CUDA_CHECK(cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaMalloc((void **)&r->a, sizeof(float) * MAX_FLOATS));
    CUDA_CHECK(cudaMalloc((void **)&r->b, sizeof(float) * MAX_FLOATS));
    r->result = nccl_join(&r->nccl, r->index, r->size, r->id, r->timeout_us, &r->error);
    r->body(r);
    nccl_leave(r->nccl);
    CUDA_CHECK(cudaStreamSynchronize(r->stream));
    CUDA_CHECK(cudaFree(r->a));
    CUDA_CHECK(cudaFree(r->b));
    CUDA_CHECK(cudaStreamDestroy(r->stream));
    return NULL;
}

/* Starts the first `started` ranks of a group of `size`, and waits for them. */
static void run_some(int32_t started, int32_t size, void (*body)(struct rank *r),
                     struct rank proto) {
    char id[NCCL_ID_BYTES];
    struct error error = {0};
    EXPECT_INT_EQ(nccl_new_id(id, &error), 0);
    for (int32_t i = 0; i < started; i++) {
        ranks[i] = proto;
        ranks[i].index = i;
        ranks[i].size = size;
        ranks[i].id = id;
        ranks[i].body = body;
        ranks[i].timeout_us = proto.timeout_us ? proto.timeout_us : TIMEOUT_US;
        pthread_create(&ranks[i].thread, NULL, run_rank, &ranks[i]);
    }
    for (int32_t i = 0; i < started; i++)
        pthread_join(ranks[i].thread, NULL);
}

static void run_all(int32_t size, void (*body)(struct rank *r), struct rank proto) {
    run_some(size, size, body, proto);
}

static void expect_ok(const struct rank *r, int result) {
    if (result != 0)
        FAIL("rank %d of %d: %s", r->index, r->size, r->error.text);
}

static void upload(struct rank *r, void *device, const void *host, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, r->stream));
    CUDA_CHECK(cudaStreamSynchronize(r->stream));
}

static void download(struct rank *r, const void *device) {
    CUDA_CHECK(cudaMemcpyAsync(r->host, device, sizeof r->host, cudaMemcpyDeviceToHost, r->stream));
    CUDA_CHECK(cudaStreamSynchronize(r->stream));
}

static void sleep_ms(int ms) {
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000l}, NULL);
}

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- sums ------------------------------------------------------------------------------------ */

static const size_t type_bytes[] = {[NCCL_F32] = 4, [NCCL_F64] = 8, [NCCL_BF16] = 2};

/* Element i of a rank; exact in bf16. */
static float element(int32_t rank, int64_t i) {
    return (float)((rank * 29 + i * 17) % 127 - 63) / 8;
}

static void put(void *p, enum nccl_type type, int64_t i, float v) {
    if (type == NCCL_F32)
        ((float *)p)[i] = v;
    else if (type == NCCL_F64)
        ((double *)p)[i] = (double)v;
    else
        ((uint16_t *)p)[i] = bf16_from_f32(v);
}

static double get(const void *p, enum nccl_type type, int64_t i) {
    return type == NCCL_F32   ? (double)((const float *)p)[i]
           : type == NCCL_F64 ? ((const double *)p)[i]
                              : (double)bf16_to_f32(((const uint16_t *)p)[i]);
}

static void sum(struct rank *r) {
    double host[MAX_FLOATS / 2];
    expect_ok(r, r->result);
    memset(host, 0x11, sizeof host);
    for (int64_t i = 0; i < r->count; i++)
        put(host, r->type, i, element(r->index, i));
    upload(r, r->a, host, sizeof host);
    for (int n = 0; n < 2; n++) /* the first may set up connections */
        expect_ok(
            r, nccl_all_reduce(r->nccl, n ? r->a : r->b, r->count, r->type, r->stream, &r->error));
    download(r, r->a);
    expect_ok(r, nccl_error(r->nccl, &r->error));
}

static void check_sum(int32_t size, int64_t count, enum nccl_type type) {
    run_all(size, sum, (struct rank){.count = count, .type = type});
    size_t bytes = (size_t)count * type_bytes[type];
    for (int64_t i = 0; i < count; i++) {
        double exact = 0, most = 0;
        for (int32_t r = 0; r < size; r++) {
            exact += (double)element(r, i);
            most += fabs((double)element(r, i));
        }
        /* float32 and float64 hold these sums exactly; bf16 rounds at each of size - 1 sums. */
        EXPECT_NEAR(get(ranks[0].host, type, i), exact,
                    type == NCCL_BF16 ? most * (size - 1) / 256 : 0);
    }
    for (int32_t r = 0; r < size; r++) {
        EXPECT_MEM_EQ(ranks[r].host, ranks[0].host, bytes);
        EXPECT_INT_EQ(((unsigned char *)ranks[r].host)[bytes], 0x11);
    }
}

TEST(CudaNccl, SumsOverAllRanks) {
    static const int32_t sizes[] = {1, 2, 3, 5, 8};
    static const int64_t counts[] = {1, 7, 1003};
    NCCL_OR_SKIP(1);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (size_t c = 0; c < 3 && sizes[s] <= num_devices(); c++)
            for (int type = 0; type < 3; type++)
                check_sum(sizes[s], counts[c], (enum nccl_type)type);
}

/* ---- gathering ------------------------------------------------------------------------------- */

/* Uneven, and one rank has none. */
static const int32_t columns[MOST_RANKS] = {5, 3, 0, 11, 2, 7, 1, 6};

static float cell(int32_t rank, int64_t row, int32_t column) {
    return (float)(rank * 10000 + row * 100 + column);
}

/* count: rows. Rank 0's part lies in its place already when count is even. */
static void gather(struct rank *r) {
    float host[MAX_FLOATS];
    expect_ok(r, r->result);
    memset(host, 0x11, sizeof host);
    upload(r, r->b, host, sizeof host);
    for (int64_t row = 0; row < r->count; row++)
        for (int32_t c = 0; c < columns[r->index]; c++)
            host[row * columns[r->index] + c] = cell(r->index, row, c);
    float *part = r->index == 0 && r->count % 2 == 0 ? r->b : r->a;
    upload(r, part, host, sizeof *host * (size_t)(r->count * columns[r->index]));
    expect_ok(r, nccl_gather_columns(r->nccl, part, r->count, columns, r->index == 0 ? r->b : NULL,
                                     r->stream, &r->error));
    download(r, r->b);
}

static void check_gathered(int32_t size, int64_t rows) {
    const float *at = ranks[0].host;
    for (int32_t r = 0; r < size; r++)
        for (int64_t row = 0; row < rows; row++)
            for (int32_t c = 0; c < columns[r]; c++)
                if (*at++ != cell(r, row, c)) {
                    FAIL("%d ranks, %d rows: rank %d row %d column %d", size, (int)rows, r,
                         (int)row, c);
                    return;
                }
    EXPECT_INT_EQ(*(const unsigned char *)at, 0x11);
}

TEST(CudaNccl, GathersColumns) {
    static const int32_t sizes[] = {1, 2, 3, 5, 8};
    NCCL_OR_SKIP(1);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes && sizes[s] <= num_devices(); s++)
        for (int64_t rows = 1; rows <= 33; rows = rows * 4 + 1 + rows % 4) {
            run_all(sizes[s], gather, (struct rank){.count = rows});
            check_gathered(sizes[s], rows);
        }
}

/* ---- graphs ---------------------------------------------------------------------------------- */

/* a = 1 at first; a = sum of all a, three times over; then gathered. */
static void in_a_graph(struct rank *r) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    float host[13];
    expect_ok(r, r->result);
    for (int i = 0; i < 13; i++)
        host[i] = (float)i;
    upload(r, r->a, host, sizeof host);
    CUDA_CHECK(cudaStreamBeginCapture(r->stream, cudaStreamCaptureModeThreadLocal));
    expect_ok(r, nccl_all_reduce(r->nccl, r->a, 13, NCCL_F32, r->stream, &r->error));
    expect_ok(r, nccl_gather_columns(r->nccl, r->a, 1, columns, r->b, r->stream, &r->error));
    CUDA_CHECK(cudaStreamEndCapture(r->stream, &graph));
    CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    for (int n = 0; n < 3; n++)
        CUDA_CHECK(cudaGraphLaunch(exec, r->stream));
    download(r, r->b);
    CUDA_CHECK(cudaGraphExecDestroy(exec));
    CUDA_CHECK(cudaGraphDestroy(graph));
}

TEST(CudaNccl, RunsInGraphs) {
    NCCL_OR_SKIP(2);
    int32_t size = num_devices() < 5 ? num_devices() : 5, at = 0;
    run_all(size, in_a_graph, (struct rank){0});
    for (int32_t r = 0; r < size; r++)
        for (int32_t c = 0; c < columns[r]; c++)
            EXPECT_NEAR(ranks[0].host[at++], (float)(c * size * size * size), 0);
}

/* ---- trouble --------------------------------------------------------------------------------- */

static void nothing(struct rank *r) {
    (void)r;
}

TEST(CudaNccl, JoiningAloneIsGivenUp) {
    NCCL_OR_SKIP(2);
    int64_t start = now_ms();
    run_some(1, 2, nothing, (struct rank){.timeout_us = 300000});
    EXPECT_INT_GE(now_ms() - start, 300);
    EXPECT_INT_LT(now_ms() - start, 10000);
    EXPECT_INT_EQ(ranks[0].result, ERR_INTERNAL);
    EXPECT_TRUE(strstr(ranks[0].error.text, "rank 0 of 2 on GPU 0: joining: not done after 0.3 s"));
    EXPECT_TRUE(ranks[0].nccl == NULL);
}

TEST(CudaNccl, JoiningThatHangsOrFailsIsAnErrorOfAll) {
    NCCL_OR_SKIP(3);
    if (!can_have_faults())
        SKIP("a fault cannot be asked for here");
    setenv("PTXVM_NCCL_INIT", "hang,rank=1", 1);
    run_all(3, nothing, (struct rank){.timeout_us = 200000});
    for (int r = 0; r < 3; r++)
        EXPECT_INT_EQ(ranks[r].result, ERR_INTERNAL);
    setenv("PTXVM_NCCL_INIT", "fail,rank=1", 1);
    run_all(3, nothing, (struct rank){.timeout_us = 200000});
    unsetenv("PTXVM_NCCL_INIT");
    for (int r = 0; r < 3; r++)
        EXPECT_INT_EQ(ranks[r].result, ERR_INTERNAL);
    EXPECT_TRUE(strstr(ranks[1].error.text,
                       "rank 1 of 3 on GPU 1: joining: unhandled system error: "
                       "rank 1 cannot join"));
    check_sum(3, 7, NCCL_F32);
}

/* Asks the stream too, without which lazy ones never run. */
static void await_error(struct rank *r) {
    int64_t start = now_ms();
    r->result = 0;
    while (r->result == 0 && now_ms() - start < 20000) {
        cudaStreamQuery(r->stream);
        r->result = nccl_error(r->nccl, &r->error);
        sleep_ms(1);
    }
}

/* In the third operation, as the switch says; a call may see it at once. */
static void one_fails(struct rank *r) {
    expect_ok(r, r->result);
    for (int n = 0; n < 4 && r->result == 0; n++)
        r->result = nccl_all_reduce(r->nccl, r->a, 9, NCCL_BF16, r->stream, &r->error);
    await_error(r);
    EXPECT_INT_EQ(nccl_all_reduce(r->nccl, r->a, 9, NCCL_BF16, r->stream, NULL), ERR_INTERNAL);
    nccl_abort(r->nccl);
    CUDA_CHECK(cudaStreamSynchronize(r->stream));
}

TEST(CudaNccl, AnErrorOfOneRankIsSeenByAll) {
    NCCL_OR_SKIP(3);
    if (!can_have_faults())
        SKIP("a fault cannot be asked for here");
    setenv("PTXVM_NCCL_FAIL", "rank=1,op=3", 1);
    run_all(3, one_fails, (struct rank){0});
    unsetenv("PTXVM_NCCL_FAIL");
    for (int r = 0; r < 3; r++) {
        EXPECT_INT_EQ(ranks[r].result, ERR_INTERNAL);
        EXPECT_TRUE(strstr(ranks[r].error.text, r == 1 ? "working: unhandled system error"
                                                       : "working: remote process exited"));
        EXPECT_TRUE(strstr(ranks[r].error.text, "rank 1 fails in ncclAllReduce of 9 bfloat16"));
    }
}

/* The rank's thread waits for its stream; another thread aborts. */
static void *abort_after_a_while(void *arg) {
    struct rank *r = arg;
    sleep_ms(100);
    nccl_abort(r->nccl);
    nccl_abort(r->nccl);
    return NULL;
}

static void one_hangs(struct rank *r) {
    pthread_t watchdog;
    expect_ok(r, r->result);
    for (int n = 0; n < 3; n++)
        expect_ok(r, nccl_all_reduce(r->nccl, r->a, 9, NCCL_F32, r->stream, &r->error));
    pthread_create(&watchdog, NULL, abort_after_a_while, r);
    int64_t start = now_ms();
    CUDA_CHECK(cudaStreamSynchronize(r->stream));
    EXPECT_INT_GE(now_ms() - start, 50);
    pthread_join(watchdog, NULL);
    r->result = nccl_all_reduce(r->nccl, r->a, 9, NCCL_F32, r->stream, &r->error);
    EXPECT_INT_EQ(nccl_error(r->nccl, NULL), ERR_INTERNAL);
    EXPECT_INT_EQ(nccl_gather_columns(r->nccl, r->a, 1, columns, r->b, r->stream, NULL),
                  ERR_INTERNAL);
}

TEST(CudaNccl, AbortFreesWhoWaits) {
    NCCL_OR_SKIP(3);
    if (!can_have_faults())
        SKIP("a fault cannot be asked for here");
    setenv("PTXVM_NCCL_HANG", "rank=2,op=2", 1);
    run_all(3, one_hangs, (struct rank){0});
    unsetenv("PTXVM_NCCL_HANG");
    for (int r = 0; r < 3; r++) {
        EXPECT_INT_EQ(ranks[r].result, ERR_INTERNAL);
        EXPECT_TRUE(strstr(ranks[r].error.text, "all-reduce: aborted"));
    }
}

/* Rank 1 leaves without having come; the other's limit ends its wait in nccl_leave. */
static void one_stays_away(struct rank *r) {
    expect_ok(r, r->result);
    if (r->index == 0)
        expect_ok(r, nccl_all_reduce(r->nccl, r->a, 9, NCCL_F32, r->stream, &r->error));
}

TEST(CudaNccl, LeavingDoesNotWaitForEver) {
    NCCL_OR_SKIP(2);
    if (!can_have_faults())
        SKIP("a fault cannot be asked for here");
    int64_t start = now_ms();
    run_all(2, one_stays_away, (struct rank){.timeout_us = 500000});
    EXPECT_INT_LT(now_ms() - start, 10000);
}

static void misuse(struct rank *r) {
    float host[4];
    expect_ok(r, r->result);
    r->result = nccl_all_reduce(r->nccl, host, 4, NCCL_F32, r->stream, &r->error);
}

TEST(CudaNccl, WhatNcclRefusesIsAnErrorInItsWords) {
    NCCL_OR_SKIP(1);
    if (!ptxvm_last_report)
        SKIP("a GPU faults instead");
    run_all(1, misuse, (struct rank){0});
    EXPECT_INT_EQ(ranks[0].result, ERR_INTERNAL);
    EXPECT_TRUE(strstr(ranks[0].error.text, "rank 0 of 1 on GPU 0: all-reduce: invalid argument: "
                                            "ncclAllReduce: sendbuff of rank 0"));
    EXPECT_TRUE(strstr(ranks[0].error.text, nccl_version()));
}
