/* The hooks for the stand-ins of other libraries (rt_hooks.h). */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "tests/ptxvm/rt.h"

struct task_args {
    cudaError_t (*run)(const void *args);
    void (*drop)(void *args);
    _Alignas(16) unsigned char args[];
};

static cudaError_t run_task(const void *args) {
    const struct task_args *a = args;
    return a->run(a->args);
}

static void drop_task(void *args) {
    struct task_args *a = args;
    if (a->drop)
        a->drop(a->args);
}

cudaError_t ptxvm_enqueue(cudaStream_t stream, const struct ptxvm_task *task) {
    RT_ENTER();
    rt_lock();
    struct CUstream_st *s = stream_find_locked(stream);
    cudaError_t e = cudaErrorInvalidResourceHandle;
    if (s) {
        struct work *w = work_create(cudaGraphNodeTypeKernel, s->device, run_task, NULL,
                                     sizeof(struct task_args) + task->bytes);
        struct task_args *a = (struct task_args *)w->args;
        a->run = task->run;
        a->drop = task->drop;
        memcpy(a->args, task->args, task->bytes);
        w->drop = drop_task;
        e = stream_submit_locked(s, w);
    }
    rt_unlock();
    return rt_return(e);
}

int ptxvm_stream_device(cudaStream_t stream) {
    rt_lock();
    struct CUstream_st *s = stream_find_locked(stream);
    int device = s ? s->device : -1;
    rt_unlock();
    return device;
}

void ptxvm_access_begin(void) {
    vm_access_begin();
}

void ptxvm_access_end(void) {
    vm_access_end();
}

void ptxvm_write_report(const char *fmt, ...) {
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    vm_report("%s", text);
}

bool ptxvm_check_range(const char *name, int device, const void *p, size_t bytes) {
    int32_t owner = device;
    enum rt_place place = memory_place(name, "the range at", p, bytes, &owner);
    if (place == PLACE_PAGEABLE)
        vm_report("%s: %p is not device memory", name, p);
    if (place == PLACE_DEVICE && owner != device && !(rt_devices[device].peers >> owner & 1)) {
        vm_report("%s: %p belongs to device %d, device %d has no peer access to it", name, p, owner,
                  device);
        return false;
    }
    return place == PLACE_DEVICE || place == PLACE_PINNED;
}

void ptxvm_demand_all(void) {
    rt_lock();
    for (struct CUstream_st *s = rt_streams; s; s = s->next)
        if (s->last)
            op_demand(s->last);
    rt_unlock();
}
