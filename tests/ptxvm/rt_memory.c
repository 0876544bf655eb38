/* Allocations: device memory, pinned host memory, registered host memory. */
#include "tests/ptxvm/rt.h"

#include <string.h>

/* What the program owns, so that only that is freed, each by the call that fits. */
enum owner { BY_MALLOC, BY_MALLOC_HOST, BY_REGISTER };
struct owned {
    void *p;
    int32_t device;
    enum owner how;
    unsigned flags;
};
static struct owned *owned;
static size_t num_owned, max_owned;

static void remember(void *p, enum owner how, unsigned flags) {
    if (num_owned == max_owned) {
        max_owned = max_owned ? 2 * max_owned : 64;
        owned = rt_realloc(owned, sizeof *owned * max_owned);
    }
    owned[num_owned++] = (struct owned){p, rt_thread.device, how, flags};
}

static struct owned *find(const void *p, enum owner how) {
    for (size_t i = 0; i < num_owned; i++)
        if (owned[i].p == p && owned[i].how == how)
            return &owned[i];
    return NULL;
}

static bool forget(const void *p, enum owner how) {
    struct owned *o = find(p, how);
    if (o)
        *o = owned[--num_owned];
    return o != NULL;
}

void memory_free_all_locked(int32_t device) {
    for (size_t i = num_owned; i-- > 0;) {
        if (owned[i].device != device)
            continue;
        if (owned[i].how == BY_REGISTER)
            vm_unregister_host(owned[i].p);
        else
            vm_free(owned[i].p);
        owned[i] = owned[--num_owned];
    }
}

enum rt_place memory_place(const char *call, const char *operand, const void *p, size_t bytes,
                           int32_t *device) {
    struct vm_allocation a;
    if (!vm_find(p, &a))
        return PLACE_PAGEABLE;
    if (a.freed) {
        vm_report("%s: %s %p lies in an allocation of %zu bytes that was freed", call, operand, p,
                  a.bytes);
        return PLACE_BAD;
    }
    size_t rest = a.bytes - ((uintptr_t)p - a.base);
    if (bytes > rest) {
        vm_report("%s: %s %p of %zu bytes runs %zu bytes over the end of its allocation (%zu "
                  "bytes)",
                  call, operand, p, bytes, bytes - rest, a.bytes);
        return PLACE_BAD;
    }
    if (device)
        *device = a.device;
    return a.kind == VM_PINNED ? PLACE_PINNED : PLACE_DEVICE;
}

/* ---- device memory --------------------------------------------------------------------------- */

static cudaError_t alloc_locked(void **p, size_t bytes, enum vm_memory_kind kind, enum owner how,
                                unsigned flags) {
    *p = NULL;
    if (!bytes)
        return cudaSuccess;
    *p = vm_alloc(rt_thread.device, bytes, kind,
                  kind == VM_PINNED ? "cudaMallocHost" : "cudaMalloc");
    if (!*p)
        return cudaErrorMemoryAllocation;
    remember(*p, how, flags);
    return cudaSuccess;
}

/* Zero bytes give NULL. */
cudaError_t cudaMalloc(void **p, size_t bytes) {
    RT_ENTER();
    if (!p)
        return rt_return(cudaErrorInvalidValue);
    rt_lock();
    cudaError_t e = capture_check_unsafe_locked();
    if (e == cudaSuccess)
        e = alloc_locked(p, bytes, VM_DEVICE, BY_MALLOC, 0);
    rt_unlock();
    return rt_return(e);
}

/* Frees what a call of the right kind gave, after all work of the device it was allocated for. */
static cudaError_t free_locked(const char *call, void *p, enum owner how) {
    cudaError_t e = capture_check_unsafe_locked();
    if (e != cudaSuccess)
        return e;
    struct owned *o = find(p, how);
    if (!o) {
        vm_report("%s: %p is not the start of a live allocation of that kind", call, p);
        return cudaErrorInvalidValue;
    }
    int32_t device = o->device;
    forget(p, how);
    device_drain_locked(device);
    vm_free(p);
    return rt_devices[rt_thread.device].sticky;
}

cudaError_t cudaFree(void *p) {
    RT_ENTER();
    if (!p)
        return cudaSuccess;
    rt_lock();
    cudaError_t e = free_locked("cudaFree", p, BY_MALLOC);
    rt_unlock();
    return rt_return(e);
}

/* The memory exists at once: whoever uses it before the stream gets there is not found out. */
cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t stream) {
    RT_ENTER();
    if (!p)
        return rt_return(cudaErrorInvalidValue);
    rt_lock();
    struct CUstream_st *s = stream_find_locked(stream);
    cudaError_t e = s ? cudaSuccess : cudaErrorInvalidResourceHandle;
    if (s && s->capture) {
        vm_report("cudaMallocAsync: allocations in graphs are not supported");
        capture_invalidate_locked(s->capture);
        e = cudaErrorStreamCaptureUnsupported;
    }
    if (e == cudaSuccess)
        e = alloc_locked(p, bytes, VM_DEVICE, BY_MALLOC, 0);
    rt_unlock();
    return rt_return(e);
}

static cudaError_t run_free(const void *args) {
    vm_free(*(void *const *)args);
    return cudaSuccess;
}

static cudaError_t free_async_locked(void *p, cudaStream_t stream) {
    struct CUstream_st *s = stream_find_locked(stream);
    if (!s)
        return cudaErrorInvalidResourceHandle;
    if (s->capture) {
        vm_report("cudaFreeAsync: allocations in graphs are not supported");
        capture_invalidate_locked(s->capture);
        return cudaErrorStreamCaptureUnsupported;
    }
    if (!forget(p, BY_MALLOC)) {
        vm_report("cudaFreeAsync: %p is not the start of a live allocation", p);
        return cudaErrorInvalidValue;
    }
    return stream_submit_locked(
        s, work_create(cudaGraphNodeTypeMemFree, s->device, run_free, &p, sizeof p));
}

cudaError_t cudaFreeAsync(void *p, cudaStream_t stream) {
    RT_ENTER();
    if (!p)
        return cudaSuccess;
    rt_lock();
    cudaError_t e = free_async_locked(p, stream);
    rt_unlock();
    return rt_return(e);
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    RT_ENTER();
    if (!free_bytes || !total_bytes)
        return rt_return(cudaErrorInvalidValue);
    *free_bytes = vm_free_bytes(rt_thread.device);
    *total_bytes = vm_total_bytes(rt_thread.device);
    return cudaSuccess;
}

/* ---- host memory ----------------------------------------------------------------------------- */

cudaError_t cudaMallocHost(void **p, size_t bytes) {
    return cudaHostAlloc(p, bytes, cudaHostAllocDefault);
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags) {
    RT_ENTER();
    if (!p || flags > (cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined))
        return rt_return(cudaErrorInvalidValue);
    rt_lock();
    cudaError_t e = capture_check_unsafe_locked();
    if (e == cudaSuccess)
        e = alloc_locked(p, bytes, VM_PINNED, BY_MALLOC_HOST, flags);
    rt_unlock();
    return rt_return(e);
}

cudaError_t cudaFreeHost(void *p) {
    RT_ENTER();
    if (!p)
        return cudaSuccess;
    rt_lock();
    cudaError_t e = free_locked("cudaFreeHost", p, BY_MALLOC_HOST);
    rt_unlock();
    return rt_return(e);
}

static cudaError_t register_locked(void *p, size_t bytes, unsigned flags) {
    cudaError_t e = capture_check_unsafe_locked();
    if (e != cudaSuccess)
        return e;
    struct vm_allocation a;
    const char *last = (const char *)p + bytes - 1;
    if ((vm_find(p, &a) && !a.freed) || (vm_find(last, &a) && !a.freed) ||
        !vm_register_host(p, bytes))
        return cudaErrorHostMemoryAlreadyRegistered;
    remember(p, BY_REGISTER, flags);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned flags) {
    RT_ENTER();
    if (!p || !bytes || flags > 15)
        return rt_return(cudaErrorInvalidValue);
    if (flags & cudaHostRegisterIoMemory)
        return rt_return(cudaErrorNotSupported);
    rt_lock();
    cudaError_t e = register_locked(p, bytes, flags);
    rt_unlock();
    return rt_return(e);
}

cudaError_t cudaHostUnregister(void *p) {
    RT_ENTER();
    if (!p)
        return rt_return(cudaErrorInvalidValue);
    rt_lock();
    cudaError_t e = capture_check_unsafe_locked();
    const struct owned *o = find(p, BY_REGISTER);
    if (e == cudaSuccess && !o)
        e = cudaErrorHostMemoryNotRegistered;
    if (e == cudaSuccess) {
        int32_t device = o->device;
        forget(p, BY_REGISTER);
        device_drain_locked(device);
        vm_unregister_host(p);
    }
    rt_unlock();
    return rt_return(e);
}

/* Devices and the host use the same address for pinned memory. */
cudaError_t cudaHostGetDevicePointer(void **device_p, void *host_p, unsigned flags) {
    RT_ENTER();
    struct vm_allocation a;
    if (!device_p || !host_p || flags || !vm_find(host_p, &a) || a.freed || a.kind != VM_PINNED)
        return rt_return(cudaErrorInvalidValue);
    *device_p = host_p;
    return cudaSuccess;
}

cudaError_t cudaHostGetFlags(unsigned *flags, void *p) {
    RT_ENTER();
    rt_lock();
    const struct owned *o = find(p, BY_MALLOC_HOST);
    cudaError_t e = flags && o ? cudaSuccess : cudaErrorInvalidValue;
    if (e == cudaSuccess)
        *flags = o->flags;
    rt_unlock();
    return rt_return(e);
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *p) {
    RT_ENTER();
    if (!attributes)
        return rt_return(cudaErrorInvalidValue);
    struct vm_allocation a;
    memset(attributes, 0, sizeof *attributes);
    if (!vm_find(p, &a) || a.freed) {
        attributes->type = cudaMemoryTypeUnregistered;
        attributes->device = cudaInvalidDeviceId;
        attributes->hostPointer = (void *)p;
        return cudaSuccess;
    }
    bool host = a.kind == VM_PINNED;
    attributes->type = host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    attributes->device = a.device;
    attributes->devicePointer = (void *)p;
    attributes->hostPointer = host ? (void *)p : NULL;
    return cudaSuccess;
}
