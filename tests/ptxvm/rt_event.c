/* Events: a place in a stream's order that others can wait for. */
#include "tests/ptxvm/rt.h"

static struct CUevent_st *events;

static struct CUevent_st *find(cudaEvent_t handle) {
    for (struct CUevent_st *e = events; e; e = e->next)
        if (e == handle)
            return e;
    return NULL;
}

/* Forgets what was recorded. */
static void clear(struct CUevent_st *e) {
    op_release(e->op);
    e->op = NULL;
    capture_release_locked(e->capture);
    e->capture = NULL;
    node_set_clear(&e->captured);
}

static void destroy(struct CUevent_st *e) {
    struct CUevent_st **at = &events;
    while (*at != e)
        at = &(*at)->next;
    *at = e->next;
    clear(e);
    rt_free(e);
}

void event_destroy_all_locked(int32_t device) {
    for (struct CUevent_st *e = events, *next; e; e = next) {
        next = e->next;
        if (e->device == device)
            destroy(e);
    }
}

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    RT_ENTER();
    if (!event || flags > (cudaEventBlockingSync | cudaEventDisableTiming | cudaEventInterprocess))
        return rt_return(cudaErrorInvalidValue);
    if (flags & cudaEventInterprocess)
        return rt_return(flags & cudaEventDisableTiming ? cudaErrorNotSupported
                                                        : cudaErrorInvalidValue);
    struct CUevent_st *e = rt_calloc(sizeof *e);
    rt_lock();
    e->device = rt_thread.device;
    e->flags = flags;
    e->next = events;
    events = e;
    rt_unlock();
    *event = e;
    return cudaSuccess;
}

/* Work that was recorded goes on; who waits for it already goes on waiting. */
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    RT_ENTER();
    rt_lock();
    struct CUevent_st *e = find(event);
    if (e)
        destroy(e);
    rt_unlock();
    return rt_return(e ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

static cudaError_t record_locked(cudaEvent_t event, cudaStream_t stream) {
    struct CUevent_st *e = find(event);
    struct CUstream_st *s = stream_find_locked(stream);
    if (!e || !s || e->device != s->device)
        return cudaErrorInvalidResourceHandle;
    if (s->capture) {
        clear(e);
        return capture_record_locked(e, s);
    }
    cudaError_t error = s->legacy ? capture_check_legacy_locked(s->device) : cudaSuccess;
    if (error != cudaSuccess)
        return error;
    clear(e);
    struct op *op = queue_push_locked(s, NULL, NULL, 0);
    /* A synchronous push lets go of the lock: the event may be gone, or recorded anew. */
    if (find(event) == e && !e->op)
        e->op = op;
    else
        op_release(op);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    RT_ENTER();
    rt_lock();
    cudaError_t e = record_locked(event, stream);
    rt_unlock();
    return rt_return(e);
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    if (flags & ~(unsigned)cudaEventRecordExternal)
        return rt_return(cudaErrorInvalidValue);
    if (flags)
        return rt_return(cudaErrorNotSupported);
    return cudaEventRecord(event, stream);
}

static cudaError_t wait_locked(cudaStream_t stream, cudaEvent_t event) {
    struct CUevent_st *e = find(event);
    struct CUstream_st *s = stream_find_locked(stream);
    if (!e || !s)
        return cudaErrorInvalidResourceHandle;
    if (e->capture || s->capture)
        return capture_wait_locked(s, e);
    cudaError_t error = s->legacy ? capture_check_legacy_locked(s->device) : cudaSuccess;
    if (error == cudaSuccess && e->op && !e->op->done)
        op_release(queue_push_locked(s, NULL, &e->op, 1));
    return error;
}

/* An event that was never recorded is waited for by nobody. */
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    RT_ENTER();
    if (flags & ~(unsigned)cudaEventWaitExternal)
        return rt_return(cudaErrorInvalidValue);
    if (flags)
        return rt_return(cudaErrorNotSupported);
    rt_lock();
    cudaError_t e = wait_locked(stream, event);
    rt_unlock();
    return rt_return(e);
}

/* The operation of an event that the host asks about; NULL with cudaSuccess when it was never
 * recorded. The caller owns the reference. */
static cudaError_t pending_locked(cudaEvent_t event, struct op **op, int32_t *device) {
    struct CUevent_st *e = find(event);
    if (!e)
        return cudaErrorInvalidResourceHandle;
    if (e->capture) {
        if (!e->capture->ended)
            capture_invalidate_locked(e->capture);
        return cudaErrorCapturedEvent;
    }
    *device = e->device;
    cudaError_t error = capture_check_unsafe_locked();
    if (error == cudaSuccess && e->op)
        *op = op_retain(e->op);
    return error;
}

static cudaError_t ask_locked(cudaEvent_t event, bool only_query) {
    struct op *op = NULL;
    int32_t device = 0;
    cudaError_t e = pending_locked(event, &op, &device);
    if (e != cudaSuccess || !op)
        return e;
    if (!only_query)
        op_wait(op);
    e = op_poll(op) ? rt_devices[device].sticky : cudaErrorNotReady;
    op_release(op);
    return e;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    RT_ENTER();
    rt_lock();
    cudaError_t e = ask_locked(event, false);
    rt_unlock();
    return rt_return(e);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    RT_ENTER();
    rt_lock();
    cudaError_t e = ask_locked(event, true);
    rt_unlock();
    return rt_return(e);
}

static cudaError_t elapsed_locked(float *ms, cudaEvent_t start, cudaEvent_t end) {
    struct CUevent_st *a = find(start), *b = find(end);
    if (!a || !b || !a->op || !b->op || a->device != b->device ||
        ((a->flags | b->flags) & cudaEventDisableTiming))
        return cudaErrorInvalidResourceHandle;
    if (!a->op->done || !b->op->done)
        return cudaErrorNotReady;
    *ms = (float)((double)(b->op->done_ns - a->op->done_ns) * 1e-6);
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    RT_ENTER();
    if (!ms)
        return rt_return(cudaErrorInvalidValue);
    rt_lock();
    cudaError_t e = elapsed_locked(ms, start, end);
    rt_unlock();
    return rt_return(e);
}
