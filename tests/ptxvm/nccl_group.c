/* Calls of NCCL's operations, groups of them, and how they get into streams.
 *
 * Outside of a group a call is a group of its own. At the end of the outermost group its operations
 * become one task for each communicator and stream. A communicator that does not block defers its
 * tasks (nccl_launch_deferred).
 */
#include <stdlib.h>
#include <string.h>

#include "tests/ptxvm/nccl_vm.h"

/* The group of a thread. */
static _Thread_local struct {
    int depth;
    ncclResult_t error; /* the first of a call inside of it */
    struct nccl_task *tasks;
    struct ncclComm *comms[NCCL_MAX_RANKS]; /* that started in it */
    int num_comms;
} group;

bool nccl_in_group(void) {
    return group.depth > 0;
}

void nccl_group_add_comm(struct ncclComm *comm) {
    if (group.num_comms < NCCL_MAX_RANKS)
        group.comms[group.num_comms++] = comm;
}

/* ---- tasks ----------------------------------------------------------------------------------- */

void nccl_task_free(struct nccl_task *t) {
    if (t->counted) {
        pthread_mutex_lock(&nccl_lock);
        t->comm->outstanding--;
        nccl_changed();
        pthread_mutex_unlock(&nccl_lock);
    }
    rt_free(t->ops);
    rt_free(t);
}

static void drop(void *args) {
    nccl_task_free(*(struct nccl_task **)args);
}

static void add_op(ncclComm_t comm, cudaStream_t stream, const struct nccl_op *op) {
    struct nccl_task **at = &group.tasks, *t;
    while (*at && ((*at)->comm != comm || (*at)->stream != stream))
        at = &(*at)->next;
    if (!*at) {
        *at = rt_calloc(sizeof **at);
        (*at)->comm = comm;
        (*at)->stream = stream;
    }
    t = *at;
    if (t->num_ops == t->cap_ops) {
        t->cap_ops = t->cap_ops ? 2 * t->cap_ops : 4;
        t->ops = rt_realloc(t->ops, sizeof *t->ops * (size_t)t->cap_ops);
    }
    t->ops[t->num_ops++] = *op;
}

/* ---- into streams ---------------------------------------------------------------------------- */

static ncclResult_t enqueue(struct nccl_task *t) {
    enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    struct ncclComm *comm = t->comm;
    cudaStream_t stream = t->stream;
    int device;
    cudaGetDevice(&device);
    cudaSetDevice(comm->device); /* whose default stream NULL is */
    cudaStreamIsCapturing(stream, &capture);
    t->counted = capture == cudaStreamCaptureStatusNone;
    if (t->counted) {
        pthread_mutex_lock(&nccl_lock);
        comm->outstanding++;
        pthread_mutex_unlock(&nccl_lock);
    }
    struct ptxvm_task task = {.run = nccl_run, .drop = drop, .args = &t, .bytes = sizeof t};
    cudaError_t e = ptxvm_enqueue(stream, &task);
    cudaSetDevice(device);
    if (e == cudaSuccess)
        return ncclSuccess;
    return nccl_misuse(comm, ncclUnhandledCudaError, "rank %d cannot enqueue: %s", comm->rank,
                       cudaGetErrorString(e));
}

struct launch {
    struct nccl_task *task;
    ncclResult_t result;
    pthread_t thread;
};

static void *launch_one(void *arg) {
    struct launch *l = arg;
    l->result = enqueue(l->task);
    return NULL;
}

static bool has_synchronous_streams(void) {
    const char *s = getenv("PTXVM_STREAMS");
    return s && !strcmp(s, "sync");
}

/* Puts a list of tasks into their streams. With synchronous streams each of them ends only when the
 * others have come, so that it takes a thread for each. */
static ncclResult_t enqueue_all(struct nccl_task *tasks) {
    struct launch launches[NCCL_MAX_RANKS];
    bool threads = tasks && tasks->next && has_synchronous_streams();
    ncclResult_t e = ncclSuccess;
    int count = 0;
    for (struct nccl_task *t = tasks, *next; t; t = next) {
        next = t->next;
        ncclResult_t one = ncclSuccess;
        if (threads && count < NCCL_MAX_RANKS) {
            launches[count] = (struct launch){.task = t};
            pthread_create(&launches[count].thread, NULL, launch_one, &launches[count]);
            count++;
        } else {
            one = enqueue(t);
        }
        e = e == ncclSuccess ? one : e;
    }
    for (int n = 0; n < count; n++) {
        pthread_join(launches[n].thread, NULL);
        e = e == ncclSuccess ? launches[n].result : e;
    }
    return e;
}

ncclResult_t nccl_launch_deferred(struct ncclComm *comm) {
    pthread_mutex_lock(&nccl_lock);
    struct nccl_task *tasks = comm->deferred;
    comm->deferred = NULL;
    pthread_mutex_unlock(&nccl_lock);
    return enqueue_all(tasks);
}

/* Takes the tasks of communicators that do not block off the list. */
static bool defer(struct nccl_task **tasks) {
    bool any = false;
    pthread_mutex_lock(&nccl_lock);
    for (struct nccl_task **at = tasks; *at;) {
        struct nccl_task *t = *at;
        if (t->comm->blocking) {
            at = &t->next;
            continue;
        }
        *at = t->next;
        struct nccl_task **last = &t->comm->deferred;
        while (*last)
            last = &(*last)->next;
        t->next = NULL;
        *last = t;
        t->comm->polls = 0;
        any = true;
    }
    pthread_mutex_unlock(&nccl_lock);
    return any;
}

/* ---- groups ---------------------------------------------------------------------------------- */

ncclResult_t ncclGroupStart(void) {
    group.depth++;
    return ncclSuccess;
}

static void drop_tasks(void) {
    for (struct nccl_task *t = group.tasks, *next; t; t = next) {
        next = t->next;
        nccl_task_free(t);
    }
    group.tasks = NULL;
}

ncclResult_t ncclGroupEnd(void) {
    if (!group.depth)
        return nccl_misuse(NULL, ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    if (--group.depth)
        return ncclSuccess;
    ncclResult_t e = group.error;
    group.error = ncclSuccess;
    for (int n = 0; n < group.num_comms; n++) {
        ncclResult_t one = e == ncclSuccess ? nccl_await_start(group.comms[n]) : e;
        e = one == ncclInProgress && e == ncclSuccess ? e : one;
    }
    group.num_comms = 0;
    if (e != ncclSuccess) {
        drop_tasks();
        return e;
    }
    struct nccl_task *tasks = group.tasks;
    group.tasks = NULL;
    bool deferred = defer(&tasks);
    e = enqueue_all(tasks);
    return e == ncclSuccess && deferred ? ncclInProgress : e;
}

/* ---- operations ------------------------------------------------------------------------------ */

static ncclResult_t check_buffer(ncclComm_t comm, const struct nccl_op *op, const char *name,
                                 const void *p, size_t bytes) {
    char what[64] = "";
    strncat(what, nccl_kind_name(op->kind), 30);
    strncat(strncat(what, ": ", 3), name, 20);
    if (!bytes || ptxvm_check_range(what, comm->device, p, bytes))
        return ncclSuccess;
    return nccl_misuse(comm, ncclInvalidArgument,
                       "%s of rank %d: %p, %zu bytes, is no memory of "
                       "device %d",
                       what, comm->rank, p, bytes, comm->device);
}

/* device: the stream's; -1: it is dead, -2: the default of any device. */
static ncclResult_t check_op_locked(ncclComm_t comm, int device, const struct nccl_op *op) {
    const char *name = nccl_kind_name(op->kind);
    if (!nccl_usable_locked(name, comm))
        return ncclInvalidArgument;
    if (comm->state != NCCL_READY || comm->deferred)
        return nccl_misuse(comm, ncclInvalidUsage,
                           "%s: rank %d is %s; ask ncclCommGetAsyncError until nothing is in "
                           "progress",
                           name, comm->rank,
                           comm->state == NCCL_FINALIZED ? "finalized"
                                                         : "busy with what came "
                                                           "before");
    if (!nccl_type_bytes(op->type) || (unsigned)op->op >= ncclNumOps)
        return nccl_misuse(comm, ncclInvalidArgument,
                           "%s: type %d or reduction %d is not supported", name, (int)op->type,
                           (int)op->op);
    int size = comm->clique->size;
    if (op->peer < 0 || op->peer >= size)
        return nccl_misuse(comm, ncclInvalidArgument, "%s: there is no rank %d of %d", name,
                           op->peer, size);
    if (device == -1)
        return nccl_misuse(comm, ncclInvalidArgument, "%s: the stream is not a live one", name);
    if (device >= 0 && device != comm->device)
        return nccl_misuse(comm, ncclInvalidArgument,
                           "%s: the stream is of device %d, but rank %d is on device %d", name,
                           device, comm->rank, comm->device);
    ncclResult_t e =
        check_buffer(comm, op, "sendbuff", op->send, nccl_send_bytes(op, comm->rank, size));
    if (e != ncclSuccess)
        return e;
    return check_buffer(comm, op, "recvbuff", op->recv, nccl_recv_bytes(op, comm->rank, size));
}

/* NULL as a stream is the default stream of the communicator's device. Nothing to move is nothing
 * to do, also for the other ranks. */
static ncclResult_t submit(ncclComm_t comm, cudaStream_t stream, const struct nccl_op *op) {
    /* ptxvm_stream_device takes a lock that comes before nccl_lock. */
    bool special = stream == cudaStreamLegacy || stream == cudaStreamPerThread;
    int device = stream && !special ? ptxvm_stream_device(stream) : -2;
    pthread_mutex_lock(&nccl_lock);
    ncclResult_t e = check_op_locked(comm, device, op);
    pthread_mutex_unlock(&nccl_lock);
    if (e != ncclSuccess) {
        if (group.depth && group.error == ncclSuccess)
            group.error = e;
        return e;
    }
    if (!op->count)
        return ncclSuccess;
    ncclGroupStart();
    add_op(comm, stream, op);
    return ncclGroupEnd();
}

ncclResult_t ncclAllReduce(const void *send, void *recv, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
    return submit(comm, stream, &(struct nccl_op){ALL_REDUCE, send, recv, count, type, op, 0});
}

ncclResult_t ncclAllGather(const void *send, void *recv, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
    return submit(comm, stream, &(struct nccl_op){ALL_GATHER, send, recv, count, type, ncclSum, 0});
}

ncclResult_t ncclReduceScatter(const void *send, void *recv, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
    return submit(comm, stream, &(struct nccl_op){REDUCE_SCATTER, send, recv, count, type, op, 0});
}

ncclResult_t ncclBroadcast(const void *send, void *recv, size_t count, ncclDataType_t type,
                           int root, ncclComm_t comm, cudaStream_t stream) {
    return submit(comm, stream,
                  &(struct nccl_op){BROADCAST, send, recv, count, type, ncclSum, root});
}

ncclResult_t ncclReduce(const void *send, void *recv, size_t count, ncclDataType_t type,
                        ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
    return submit(comm, stream, &(struct nccl_op){REDUCE, send, recv, count, type, op, root});
}

ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
    return submit(comm, stream, &(struct nccl_op){SEND, send, NULL, count, type, ncclSum, peer});
}

ncclResult_t ncclRecv(void *recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return submit(comm, stream, &(struct nccl_op){RECV, NULL, recv, count, type, ncclSum, peer});
}
