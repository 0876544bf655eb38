/* Streams: creation, waiting, host functions. */
#include "tests/ptxvm/rt.h"

enum { LOWEST_PRIORITY = 0, HIGHEST_PRIORITY = -5 };

static bool is_live(const struct CUstream_st *handle) {
    for (const struct CUstream_st *s = rt_streams; s; s = s->next)
        if (s == handle)
            return !s->destroyed;
    return false;
}

struct CUstream_st *stream_find_locked(cudaStream_t handle) {
    struct rt_device *d = &rt_devices[rt_thread.device];
    if (!handle || handle == cudaStreamLegacy) {
        if (!d->legacy) {
            d->legacy = stream_create_locked(rt_thread.device, cudaStreamDefault, 0);
            if (d->legacy)
                d->legacy->legacy = true;
        }
        return d->legacy;
    }
    if (handle == cudaStreamPerThread) {
        struct CUstream_st **own = &rt_thread.per_thread[rt_thread.device];
        if (!is_live(*own)) /* not made yet, or gone with a reset of the device */
            *own = stream_create_locked(rt_thread.device, cudaStreamDefault, 0);
        return *own;
    }
    return is_live(handle) ? handle : NULL;
}

cudaError_t stream_submit_locked(struct CUstream_st *s, struct work *w) {
    if (s->capture)
        return capture_add_locked(s, w);
    cudaError_t e = s->legacy ? capture_check_legacy_locked(s->device) : cudaSuccess;
    if (e != cudaSuccess) {
        work_release(w);
        return e;
    }
    op_release(queue_push_locked(s, w, NULL, 0));
    return cudaSuccess;
}

/* ---- lifecycle ------------------------------------------------------------------------------- */

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithPriority(stream, cudaStreamDefault, 0);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

/* A priority out of range is clamped, as CUDA documents. */
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    RT_ENTER();
    if (!stream || (flags & ~(unsigned)cudaStreamNonBlocking))
        return rt_return(cudaErrorInvalidValue);
    if (priority < HIGHEST_PRIORITY)
        priority = HIGHEST_PRIORITY;
    if (priority > LOWEST_PRIORITY)
        priority = LOWEST_PRIORITY;
    rt_lock();
    *stream = stream_create_locked(rt_thread.device, flags, priority);
    rt_unlock();
    return rt_return(*stream ? cudaSuccess : cudaErrorOperatingSystem);
}

/* Returns at once; work that is still queued is done first. */
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    RT_ENTER();
    rt_lock();
    struct CUstream_st *s = stream_find_locked(stream);
    cudaError_t e = cudaSuccess;
    if (!s || s != stream) {
        e = cudaErrorInvalidResourceHandle; /* the default streams cannot be destroyed either */
    } else {
        if (s->capture) {
            capture_invalidate_locked(s->capture);
            e = cudaErrorStreamCaptureUnsupported;
        } else {
            stream_destroy_locked(s);
        }
    }
    rt_unlock();
    return rt_return(e);
}

/* ---- waiting --------------------------------------------------------------------------------- */

/* Is there work in the stream, or in those that the legacy stream stands for? */
static bool busy_locked(const struct CUstream_st *s) {
    for (const struct CUstream_st *t = rt_streams; t && s->legacy; t = t->next)
        if (t->device == s->device && !(t->flags & cudaStreamNonBlocking) && t->head)
            return true;
    return s->head != NULL;
}

static cudaError_t wait_locked(cudaStream_t stream, bool only_query) {
    struct CUstream_st *s = stream_find_locked(stream);
    if (!s)
        return cudaErrorInvalidResourceHandle;
    if (s->capture) {
        capture_invalidate_locked(s->capture);
        return cudaErrorStreamCaptureUnsupported;
    }
    cudaError_t e = capture_check_unsafe_locked();
    if (e == cudaSuccess && s->legacy)
        e = capture_check_legacy_locked(s->device);
    if (e != cudaSuccess)
        return e;
    int32_t device = s->device; /* the stream may be destroyed by another thread meanwhile */
    if (!busy_locked(s))
        return rt_devices[device].sticky;
    if (!s->head)
        op_release(queue_push_locked(s, NULL, NULL, 0)); /* waits for the blocking streams */
    if (!only_query)
        stream_drain_locked(s);
    else if (s->last && !op_poll(s->last))
        return cudaErrorNotReady;
    return rt_devices[device].sticky;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    RT_ENTER();
    rt_lock();
    cudaError_t e = wait_locked(stream, false);
    rt_unlock();
    return rt_return(e);
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    RT_ENTER();
    rt_lock();
    cudaError_t e = wait_locked(stream, true);
    rt_unlock();
    return rt_return(e);
}

/* ---- attributes ------------------------------------------------------------------------------ */

static cudaError_t with_stream(cudaStream_t stream, struct CUstream_st *copy) {
    RT_ENTER();
    rt_lock();
    struct CUstream_st *s = stream_find_locked(stream);
    if (s)
        *copy = *s;
    rt_unlock();
    return rt_return(s ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned *flags) {
    struct CUstream_st s;
    if (!flags)
        return rt_return(cudaErrorInvalidValue);
    cudaError_t e = with_stream(stream, &s);
    if (e == cudaSuccess)
        *flags = s.flags;
    return e;
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    struct CUstream_st s;
    if (!priority)
        return rt_return(cudaErrorInvalidValue);
    cudaError_t e = with_stream(stream, &s);
    if (e == cudaSuccess)
        *priority = s.priority;
    return e;
}

cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long *id) {
    struct CUstream_st s;
    if (!id)
        return rt_return(cudaErrorInvalidValue);
    cudaError_t e = with_stream(stream, &s);
    if (e == cudaSuccess)
        *id = s.id;
    return e;
}

cudaError_t cudaStreamGetDevice(cudaStream_t stream, int *device) {
    struct CUstream_st s;
    if (!device)
        return rt_return(cudaErrorInvalidValue);
    cudaError_t e = with_stream(stream, &s);
    if (e == cudaSuccess)
        *device = s.device;
    return e;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    RT_ENTER();
    if (least)
        *least = LOWEST_PRIORITY;
    if (greatest)
        *greatest = HIGHEST_PRIORITY;
    return cudaSuccess;
}

/* ---- host functions -------------------------------------------------------------------------- */

struct host_args {
    cudaHostFn_t fn;
    cudaStreamCallback_t callback; /* of cudaStreamAddCallback, instead of fn */
    cudaStream_t stream;
    int32_t device;
    void *data;
};

static cudaError_t run_host(const void *args) {
    const struct host_args *a = args;
    bool outer = rt_thread.in_callback;
    rt_thread.in_callback = true;
    if (a->fn) {
        a->fn(a->data);
    } else {
        rt_lock();
        cudaError_t status = rt_devices[a->device].sticky;
        rt_unlock();
        a->callback(a->stream, status, a->data);
    }
    rt_thread.in_callback = outer;
    return cudaSuccess;
}

static cudaError_t submit_host(cudaStream_t stream, struct host_args a) {
    RT_ENTER();
    if (!a.fn && !a.callback)
        return rt_return(cudaErrorInvalidValue);
    rt_lock();
    struct CUstream_st *s = stream_find_locked(stream);
    cudaError_t e = cudaErrorInvalidResourceHandle;
    if (s) {
        a.device = s->device;
        struct work *w = work_create(cudaGraphNodeTypeHost, s->device, run_host, &a, sizeof a);
        w->despite_faults = a.callback != NULL;
        e = stream_submit_locked(s, w);
    }
    rt_unlock();
    return rt_return(e);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *data) {
    return submit_host(stream, (struct host_args){.fn = fn, .data = data});
}

cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t callback, void *data,
                                  unsigned flags) {
    if (flags)
        return rt_return(cudaErrorInvalidValue);
    return submit_host(stream,
                       (struct host_args){.callback = callback, .stream = stream, .data = data});
}
