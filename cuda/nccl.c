/* nccl: the library's functions by name, and a lock around each communicator.
 *
 * A communicator that does not block answers most calls with "in progress": a thread of NCCL's goes
 * on with them, and neither another call nor the rank's own work may follow before that has ended
 * (settle). The lock is there for nccl_abort, which frees the communicator under whoever uses it;
 * it is never held while something is waited for.
 */
#include "cuda/nccl.h"

#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/mem.h"

_Static_assert(NCCL_ID_BYTES == NCCL_UNIQUE_ID_BYTES, "the size of an id");

enum {
    QUICK_POLLS = 200,     /* that only give way to other threads, before they pause */
    POLL_PAUSE_US = 50,    /* between the later ones */
    OLDEST_VERSION = 21400 /* 2.14, the first with communicators that do not block */
};

struct nccl {
    ncclComm_t comm; /* NULL after nccl_abort */
    pthread_mutex_t lock;
    int32_t rank, size, device;
    int64_t timeout_us;
};

/* ---- the library ----------------------------------------------------------------------------- */

#define FUNCTIONS(X)                                                                               \
    X(ncclGetVersion)                                                                              \
    X(ncclGetUniqueId)                                                                             \
    X(ncclGetErrorString)                                                                          \
    X(ncclGetLastError)                                                                            \
    X(ncclCommInitRankConfig)                                                                      \
    X(ncclCommGetAsyncError)                                                                       \
    X(ncclCommFinalize)                                                                            \
    X(ncclCommDestroy)                                                                             \
    X(ncclCommAbort)                                                                               \
    X(ncclAllReduce)                                                                               \
    X(ncclGroupStart)                                                                              \
    X(ncclGroupEnd)                                                                                \
    X(ncclSend)                                                                                    \
    X(ncclRecv)

static struct {
#define X(name) __typeof__(name) *name;
    FUNCTIONS(X)
#undef X
    struct error error; /* of opening it */
    char version[32];
} lib;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static int find_functions(void *library) {
#define X(name)                                                                                    \
    *(void **)&lib.name = dlsym(library, #name);                                                   \
    if (!lib.name)                                                                                 \
        return error_set(&lib.error, ERR_UNSUPPORTED,                                              \
                         "libnccl.so.2 has no %s: NCCL 2.14 or later is needed", #name);
    FUNCTIONS(X)
#undef X
    return 0;
}

static void open_library(void) {
    int version = 0;
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        error_set(&lib.error, ERR_UNSUPPORTED,
                  "NCCL cannot be opened: %s; install libnccl2, or set LD_LIBRARY_PATH to where it "
                  "is",
                  dlerror());
        return;
    }
    if (find_functions(library) < 0)
        return;
    lib.ncclGetVersion(&version);
    snprintf(lib.version, sizeof lib.version, "%d.%d.%d", version / 10000, version / 100 % 100,
             version % 100);
    if (version < OLDEST_VERSION)
        error_set(&lib.error, ERR_UNSUPPORTED, "NCCL %s is too old: 2.14 or later is needed",
                  lib.version);
}

int nccl_open(struct error *error) {
    pthread_once(&once, open_library);
    return lib.error.code ? error_set(error, lib.error.code, "%s", lib.error.text) : 0;
}

const char *nccl_version(void) {
    return lib.version;
}

/* ---- results --------------------------------------------------------------------------------- */

/* Says what a rank was doing and what NCCL calls that. */
static int fail(const struct nccl *n, const char *what, ncclResult_t r, struct error *error) {
    const char *more = lib.ncclGetLastError(n->comm);
    return error_set(error, ERR_INTERNAL, "NCCL %s, rank %d of %d on GPU %d: %s: %s%s%s",
                     lib.version, n->rank, n->size, n->device, what, lib.ncclGetErrorString(r),
                     more && *more ? ": " : "", more ? more : "");
}

static int fail_aborted(const struct nccl *n, const char *what, struct error *error) {
    return error_set(error, ERR_INTERNAL, "NCCL %s, rank %d of %d on GPU %d: %s: aborted",
                     lib.version, n->rank, n->size, n->device, what);
}

static int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void pause_before(int64_t poll) {
    if (poll < QUICK_POLLS)
        sched_yield();
    else
        nanosleep(&(struct timespec){.tv_nsec = POLL_PAUSE_US * 1000}, NULL);
}

/* What has become of the communicator; in progress at first. */
static int poll(struct nccl *n, const char *what, ncclResult_t *r, struct error *error) {
    int e = 0;
    pthread_mutex_lock(&n->lock);
    if (!n->comm) {
        e = fail_aborted(n, what, error);
    } else {
        ncclResult_t asked = lib.ncclCommGetAsyncError(n->comm, r);
        *r = asked != ncclSuccess ? asked : *r;
        if (*r != ncclSuccess && *r != ncclInProgress)
            e = fail(n, what, *r, error);
    }
    pthread_mutex_unlock(&n->lock);
    return e;
}

/* Waits until what a call has begun is no longer in progress. r: what the call returned. */
static int settle(struct nccl *n, const char *what, ncclResult_t r, struct error *error) {
    int64_t deadline = now_us() + n->timeout_us;
    if (r != ncclSuccess && r != ncclInProgress) {
        pthread_mutex_lock(&n->lock);
        int e = n->comm ? fail(n, what, r, error) : fail_aborted(n, what, error);
        pthread_mutex_unlock(&n->lock);
        return e;
    }
    for (int64_t polls = 0; r == ncclInProgress; polls++) {
        int e = poll(n, what, &r, error);
        if (e < 0)
            return e;
        if (r == ncclInProgress && now_us() > deadline)
            return error_set(error, ERR_INTERNAL,
                             "NCCL %s, rank %d of %d on GPU %d: %s: not done after %.1f s; another "
                             "rank has not come, or cannot be reached",
                             lib.version, n->rank, n->size, n->device, what,
                             (double)n->timeout_us * 1e-6);
        if (r == ncclInProgress)
            pause_before(polls);
    }
    return 0;
}

/* ---- joining and leaving --------------------------------------------------------------------- */

int nccl_new_id(char id[NCCL_ID_BYTES], struct error *error) {
    ncclUniqueId unique;
    ncclResult_t r = lib.ncclGetUniqueId(&unique);
    if (r != ncclSuccess)
        return error_set(error, ERR_INTERNAL, "NCCL %s: ncclGetUniqueId: %s: %s", lib.version,
                         lib.ncclGetErrorString(r), lib.ncclGetLastError(NULL));
    memcpy(id, unique.internal, NCCL_ID_BYTES);
    return 0;
}

int nccl_join(struct nccl **out, int32_t rank, int32_t size, const char id[NCCL_ID_BYTES],
              int64_t timeout_us, struct error *error) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId unique;
    int device = -1;
    config.blocking = 0;
    memcpy(unique.internal, id, NCCL_ID_BYTES);
    cudaError_t cuda = cudaGetDevice(&device);
    if (cuda != cudaSuccess)
        return error_set(error, ERR_INTERNAL, "rank %d of %d has no GPU: %s", rank, size,
                         cudaGetErrorString(cuda));
    struct nccl *n = xcalloc(1, sizeof *n);
    pthread_mutex_init(&n->lock, NULL);
    n->rank = rank;
    n->size = size;
    n->device = device;
    n->timeout_us = timeout_us;
    ncclResult_t r = lib.ncclCommInitRankConfig(&n->comm, size, unique, rank, &config);
    int e = r == ncclSuccess || r == ncclInProgress ? settle(n, "joining", r, error)
                                                    : fail(n, "joining", r, error);
    if (e < 0) {
        nccl_abort(n);
        nccl_leave(n);
        return e;
    }
    *out = n;
    return 0;
}

int nccl_error(struct nccl *n, struct error *error) {
    ncclResult_t r;
    return poll(n, "working", &r, error);
}

void nccl_abort(struct nccl *n) {
    pthread_mutex_lock(&n->lock);
    if (n->comm)
        lib.ncclCommAbort(n->comm);
    n->comm = NULL;
    pthread_mutex_unlock(&n->lock);
}

void nccl_leave(struct nccl *n) {
    ncclResult_t r = ncclSuccess;
    if (!n)
        return;
    if (n->comm && poll(n, "leaving", &r, NULL) == 0 &&
        settle(n, "leaving", lib.ncclCommFinalize(n->comm), NULL) == 0) {
        lib.ncclCommDestroy(n->comm);
        n->comm = NULL;
    }
    nccl_abort(n);
    pthread_mutex_destroy(&n->lock);
    free(n);
}

/* ---- operations ------------------------------------------------------------------------------ */

int nccl_all_reduce(struct nccl *n, void *data, int64_t count, enum nccl_type type,
                    cudaStream_t stream, struct error *error) {
    static const ncclDataType_t types[] = {ncclFloat32, ncclFloat64, ncclBfloat16};
    ncclResult_t r = ncclSuccess;
    pthread_mutex_lock(&n->lock);
    bool aborted = !n->comm;
    if (!aborted)
        r = lib.ncclAllReduce(data, data, (size_t)count, types[type], ncclSum, n->comm, stream);
    pthread_mutex_unlock(&n->lock);
    return aborted ? fail_aborted(n, "all-reduce", error) : settle(n, "all-reduce", r, error);
}

/* Inside of a group, whose end reports what went wrong in it. */
static void receive_parts(struct nccl *n, int64_t rows, const int32_t *columns, float *gathered,
                          cudaStream_t stream) {
    int64_t at = rows * columns[0];
    for (int32_t r = 1; r < n->size; r++) {
        int64_t count = rows * columns[r];
        if (count)
            lib.ncclRecv(gathered + at, (size_t)count, ncclFloat32, r, n->comm, stream);
        at += count;
    }
}

int nccl_gather_columns(struct nccl *n, const float *part, int64_t rows, const int32_t *columns,
                        float *gathered, cudaStream_t stream, struct error *error) {
    size_t count = (size_t)(rows * columns[n->rank]);
    ncclResult_t r = ncclSuccess;
    if (n->rank == 0 && count && part != gathered) {
        cudaError_t cuda =
            cudaMemcpyAsync(gathered, part, count * sizeof *part, cudaMemcpyDeviceToDevice, stream);
        if (cuda != cudaSuccess)
            return error_set(error, ERR_INTERNAL, "rank 0 cannot copy its %zu floats: %s", count,
                             cudaGetErrorString(cuda));
    }
    pthread_mutex_lock(&n->lock);
    bool aborted = !n->comm;
    if (!aborted) {
        lib.ncclGroupStart();
        if (n->rank == 0)
            receive_parts(n, rows, columns, gathered, stream);
        else if (count)
            lib.ncclSend(part, count, ncclFloat32, 0, n->comm, stream);
        r = lib.ncclGroupEnd();
    }
    pthread_mutex_unlock(&n->lock);
    return aborted ? fail_aborted(n, "gather", error) : settle(n, "gather", r, error);
}
