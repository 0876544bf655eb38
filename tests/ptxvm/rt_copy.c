/* Copies and fills.
 *
 * When the host waits, and when the source is read, follows CUDA's "API synchronization behavior":
 *
 *   pageable -> device   the source is read at the call. The bytes may arrive later, also after
 *                        cudaMemcpy: another stream that is not ordered with it must wait
 *   device -> pageable   done on return, also cudaMemcpyAsync
 *   host -> host         done on return
 *   pinned <-> device    cudaMemcpy waits; cudaMemcpyAsync does not, and reads the source later
 *   device -> device     never waits
 *   fills                wait only for pinned memory, and not when asynchronous
 *
 * Where a transfer would be split by alignment or size, this machine does the documented worst.
 */
#include "tests/ptxvm/rt.h"

#include <string.h>

/* A rectangle; a plain range is one row. */
struct copy {
    const char *call;
    unsigned char *dst;
    const unsigned char *src;
    size_t dst_pitch, src_pitch, width, height;
    bool snapshot; /* the source's rows follow, one after the other */
    _Alignas(16) unsigned char bytes[];
};

/* Bytes from the first to the last one. */
static size_t extent(size_t pitch, size_t width, size_t height) {
    return height ? pitch * (height - 1) + width : 0;
}

static cudaError_t run_copy(const void *args) {
    const struct copy *c = args;
    size_t src_extent = extent(c->src_pitch, c->width, c->height);
    if (memory_place(c->call, "the destination at", c->dst,
                     extent(c->dst_pitch, c->width, c->height), NULL) == PLACE_BAD)
        return cudaErrorIllegalAddress;
    if (!c->snapshot &&
        memory_place(c->call, "the source at", c->src, src_extent, NULL) == PLACE_BAD)
        return cudaErrorIllegalAddress;
    vm_access_begin();
    for (size_t row = 0; row < c->height; row++)
        memcpy(c->dst + row * c->dst_pitch,
               c->snapshot ? c->bytes + row * c->width : c->src + row * c->src_pitch, c->width);
    vm_access_end();
    return cudaSuccess;
}

/* Does the direction fit where the operands lie? Pinned memory is host and device memory. */
static cudaError_t check_kind(enum cudaMemcpyKind kind, enum rt_place dst, enum rt_place src) {
    bool ok;
    switch (kind) {
    case cudaMemcpyHostToHost:
        ok = dst != PLACE_DEVICE && src != PLACE_DEVICE;
        break;
    case cudaMemcpyHostToDevice:
        ok = dst != PLACE_PAGEABLE && src != PLACE_DEVICE;
        break;
    case cudaMemcpyDeviceToHost:
        ok = dst != PLACE_DEVICE && src != PLACE_PAGEABLE;
        break;
    case cudaMemcpyDeviceToDevice:
        ok = dst != PLACE_PAGEABLE && src != PLACE_PAGEABLE;
        break;
    case cudaMemcpyDefault:
        ok = true;
        break;
    default:
        return cudaErrorInvalidMemcpyDirection;
    }
    return ok ? cudaSuccess : cudaErrorInvalidValue;
}

static cudaError_t check_copy(const struct copy *c, enum cudaMemcpyKind kind, enum rt_place *dst,
                              enum rt_place *src) {
    size_t dst_bytes = extent(c->dst_pitch, c->width, c->height);
    size_t src_bytes = extent(c->src_pitch, c->width, c->height);
    if (!c->dst || !c->src)
        return cudaErrorInvalidValue;
    *dst = memory_place(c->call, "the destination at", c->dst, dst_bytes, NULL);
    *src = memory_place(c->call, "the source at", c->src, src_bytes, NULL);
    if (*dst == PLACE_BAD || *src == PLACE_BAD)
        return cudaErrorInvalidValue;
    cudaError_t e = check_kind(kind, *dst, *src);
    if (e == cudaErrorInvalidValue)
        vm_report("%s: the direction does not fit: destination %p is %s memory, source %p is %s "
                  "memory",
                  c->call, (const void *)c->dst, *dst == PLACE_DEVICE ? "device" : "host",
                  (const void *)c->src, *src == PLACE_DEVICE ? "device" : "host");
    if (e == cudaSuccess && c->height == 1 && c->dst < c->src + c->width &&
        c->src < c->dst + c->width) {
        vm_report("%s: destination %p and source %p of %zu bytes overlap", c->call,
                  (const void *)c->dst, (const void *)c->src, c->width);
        e = cudaErrorInvalidValue;
    }
    return e;
}

static struct work *copy_work(const struct copy *c, int32_t device, bool snapshot) {
    size_t bytes = snapshot ? c->width * c->height : 0;
    struct work *w =
        work_create(cudaGraphNodeTypeMemcpy, device, run_copy, NULL, sizeof(struct copy) + bytes);
    struct copy *out = (struct copy *)w->args;
    *out = *c;
    out->snapshot = snapshot;
    for (size_t row = 0; snapshot && row < c->height; row++)
        memcpy(out->bytes + row * c->width, c->src + row * c->src_pitch, c->width);
    return w;
}

/* Pageable memory cannot be captured: its contents at the launch of the graph are not known to be
 * the program's intent. */
static cudaError_t check_capture(struct CUstream_st *s, bool pageable, bool async) {
    if (s->capture && (pageable || !async)) {
        capture_invalidate_locked(s->capture);
        return cudaErrorStreamCaptureUnsupported;
    }
    return !async ? capture_check_unsafe_locked() : cudaSuccess;
}

static cudaError_t submit_locked(const struct copy *c, enum rt_place dst, enum rt_place src,
                                 cudaStream_t stream, bool async) {
    struct CUstream_st *s = stream_find_locked(stream);
    if (!s)
        return cudaErrorInvalidResourceHandle;
    bool pageable = dst == PLACE_PAGEABLE || src == PLACE_PAGEABLE;
    cudaError_t e = check_capture(s, pageable, async);
    if (e != cudaSuccess)
        return e;
    bool upload = src == PLACE_PAGEABLE && dst == PLACE_DEVICE;
    bool wait = dst == PLACE_PAGEABLE || (dst == PLACE_PINNED && src != PLACE_DEVICE) ||
                (!async && !upload && (dst == PLACE_PINNED || src == PLACE_PINNED));
    int32_t device = s->device;
    if (upload && !async)
        stream_drain_locked(s);
    bool snapshot = upload && vm_settings()->streams != VM_STREAMS_SYNC;
    e = stream_submit_locked(s, copy_work(c, device, snapshot));
    if (e != cudaSuccess || !wait)
        return e;
    stream_drain_locked(s);
    return rt_devices[device].sticky;
}

static cudaError_t copy_rows(const struct copy *c, enum cudaMemcpyKind kind, cudaStream_t stream,
                             bool async) {
    RT_ENTER();
    if (!c->width || !c->height)
        return rt_return((unsigned)kind > cudaMemcpyDefault ? cudaErrorInvalidMemcpyDirection
                                                            : cudaSuccess);
    enum rt_place dst, src;
    cudaError_t e = check_copy(c, kind, &dst, &src);
    if (e == cudaSuccess) {
        rt_lock();
        e = submit_locked(c, dst, src, stream, async);
        rt_unlock();
    }
    return rt_return(e);
}

cudaError_t copy_submit(const char *call, void *dst, const void *src, size_t bytes,
                        enum cudaMemcpyKind kind, cudaStream_t stream, bool async) {
    struct copy c = {.call = call,
                     .dst = dst,
                     .src = src,
                     .dst_pitch = bytes,
                     .src_pitch = bytes,
                     .width = bytes,
                     .height = 1};
    return copy_rows(&c, kind, stream, async);
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind) {
    return copy_submit("cudaMemcpy", dst, src, bytes, kind, NULL, false);
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return copy_submit("cudaMemcpyAsync", dst, src, bytes, kind, stream, true);
}

static cudaError_t copy_2d(const struct copy *c, enum cudaMemcpyKind kind, cudaStream_t stream,
                           bool async) {
    if (c->width > c->dst_pitch || c->width > c->src_pitch)
        return rt_return(cudaErrorInvalidPitchValue);
    return copy_rows(c, kind, stream, async);
}

cudaError_t cudaMemcpy2D(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                         size_t width, size_t height, enum cudaMemcpyKind kind) {
    struct copy c = {"cudaMemcpy2D", dst, src, dst_pitch, src_pitch, width, height, false};
    return copy_2d(&c, kind, NULL, false);
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream) {
    struct copy c = {"cudaMemcpy2DAsync", dst, src, dst_pitch, src_pitch, width, height, false};
    return copy_2d(&c, kind, stream, true);
}

/* Works with and without peer access: without it the bytes go through the host. */
static cudaError_t copy_peer(const char *call, void *dst, int dst_device, const void *src,
                             int src_device, size_t bytes, cudaStream_t stream, bool async) {
    int32_t dst_at = dst_device, src_at = src_device;
    if (!rt_valid_device(dst_device) || !rt_valid_device(src_device))
        return rt_return(cudaErrorInvalidDevice);
    if (bytes && (memory_place(call, "the destination at", dst, bytes, &dst_at) != PLACE_DEVICE ||
                  memory_place(call, "the source at", src, bytes, &src_at) != PLACE_DEVICE ||
                  dst_at != dst_device || src_at != src_device))
        return rt_return(cudaErrorInvalidValue);
    return copy_submit(call, dst, src, bytes, cudaMemcpyDeviceToDevice, stream, async);
}

cudaError_t cudaMemcpyPeer(void *dst, int dst_device, const void *src, int src_device,
                           size_t bytes) {
    return copy_peer("cudaMemcpyPeer", dst, dst_device, src, src_device, bytes, NULL, false);
}

cudaError_t cudaMemcpyPeerAsync(void *dst, int dst_device, const void *src, int src_device,
                                size_t bytes, cudaStream_t stream) {
    return copy_peer("cudaMemcpyPeerAsync", dst, dst_device, src, src_device, bytes, stream, true);
}

/* ---- fills ----------------------------------------------------------------------------------- */

struct fill {
    const char *call;
    unsigned char *dst;
    size_t pitch, width, height;
    int value;
};

static cudaError_t run_fill(const void *args) {
    const struct fill *f = args;
    if (memory_place(f->call, "the range at", f->dst, extent(f->pitch, f->width, f->height),
                     NULL) == PLACE_BAD)
        return cudaErrorIllegalAddress;
    vm_access_begin();
    for (size_t row = 0; row < f->height; row++)
        vm_fill(f->dst + row * f->pitch, f->value, f->width);
    vm_access_end();
    return cudaSuccess;
}

static cudaError_t fill_locked(const struct fill *f, cudaStream_t stream, bool async) {
    struct CUstream_st *s = stream_find_locked(stream);
    if (!s || s->device != rt_thread.device)
        return cudaErrorInvalidResourceHandle;
    int32_t owner = s->device;
    enum rt_place place = memory_place(f->call, "the range at", f->dst,
                                       extent(f->pitch, f->width, f->height), &owner);
    if (place == PLACE_BAD || place == PLACE_PAGEABLE)
        return cudaErrorInvalidValue;
    if (place == PLACE_DEVICE && owner != s->device &&
        !(rt_devices[s->device].peers >> owner & 1)) {
        vm_report("%s: %p belongs to device %d, the stream to device %d", f->call,
                  (const void *)f->dst, owner, s->device);
        return cudaErrorInvalidValue;
    }
    cudaError_t e = check_capture(s, false, async);
    if (e != cudaSuccess)
        return e;
    int32_t device = s->device;
    e = stream_submit_locked(s,
                             work_create(cudaGraphNodeTypeMemset, device, run_fill, f, sizeof *f));
    if (e != cudaSuccess || async || place != PLACE_PINNED)
        return e;
    stream_drain_locked(s);
    return rt_devices[device].sticky;
}

static cudaError_t fill_submit(struct fill f, cudaStream_t stream, bool async) {
    RT_ENTER();
    if (!f.width || !f.height)
        return cudaSuccess;
    if (!f.dst || f.width > f.pitch)
        return rt_return(cudaErrorInvalidValue);
    rt_lock();
    cudaError_t e = fill_locked(&f, stream, async);
    rt_unlock();
    return rt_return(e);
}

cudaError_t cudaMemset(void *dst, int value, size_t bytes) {
    return fill_submit((struct fill){"cudaMemset", dst, bytes, bytes, 1, value}, NULL, false);
}

cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t stream) {
    return fill_submit((struct fill){"cudaMemsetAsync", dst, bytes, bytes, 1, value}, stream, true);
}

cudaError_t cudaMemset2D(void *dst, size_t pitch, int value, size_t width, size_t height) {
    return fill_submit((struct fill){"cudaMemset2D", dst, pitch, width, height, value}, NULL,
                       false);
}

cudaError_t cudaMemset2DAsync(void *dst, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream) {
    return fill_submit((struct fill){"cudaMemset2DAsync", dst, pitch, width, height, value}, stream,
                       true);
}
