/* rt: the CUDA runtime over the PTX machine; what its files share.
 *
 *   rt_alloc.c   memory of the runtime itself
 *   rt_error.c   names and texts of errors, the last error of a thread, checks at each call
 *   rt_device.c  devices and their properties
 *   rt_queue.c   the engine: operations, their dependencies, who runs them when
 *   rt_stream.c  streams         rt_event.c    events
 *   rt_memory.c  allocations     rt_copy.c     copies and fills    rt_symbol.c  variables
 *   rt_module.c  fat binaries    rt_function.c attributes          rt_launch.c  kernels
 *   rt_capture.c stream capture  rt_graph.c    graphs
 *   rt_hooks.c   what cuBLAS's and NCCL's stand-ins call
 *
 * One lock (rt_lock) guards all of this state. It is not held while work runs, so streams run at
 * the same time. Functions that end in _locked, and all that take an op, need it held.
 *
 * A handle (cudaStream_t, ...) is a pointer to the object itself. Objects are on lists, and a
 * handle that is on none is answered with cudaErrorInvalidResourceHandle.
 */
#pragma once

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/ptxvm/machine.h"
#include "tests/ptxvm/rt_alloc.h"
#include "tests/ptxvm/rt_hooks.h"
#include "tests/ptxvm/settings.h"

/* ---- threads, devices, errors (rt_error.c, rt_device.c) -------------------------------------- */

struct rt_thread {
    int32_t device;
    cudaError_t last_error;
    bool in_callback; /* inside a host function of a stream, where CUDA calls are not allowed */
    enum cudaStreamCaptureMode capture_mode;
    struct CUstream_st *per_thread[VM_MAX_DEVICES]; /* cudaStreamPerThread; owned */
};
extern _Thread_local struct rt_thread rt_thread;

struct rt_device {
    cudaError_t sticky; /* of the first fault; every call returns it until cudaDeviceReset */
    struct CUstream_st *legacy;
    uint32_t peers; /* bit mask of the devices that it enabled access to */
    unsigned flags;
};
extern struct rt_device rt_devices[VM_MAX_DEVICES];

void rt_lock(void);
void rt_unlock(void);
bool rt_valid_device(int device);
const struct vm_arch *rt_arch(void);

/* Remembers an error as the thread's last one and returns it. */
cudaError_t rt_return(cudaError_t e);
/* What every call that needs a working device returns first: the error of a fault, or
 * cudaErrorNotPermitted inside a host function. */
cudaError_t rt_enter(void);
#define RT_ENTER()                                                                                 \
    do {                                                                                           \
        cudaError_t rt_entered = rt_enter();                                                       \
        if (rt_entered != cudaSuccess)                                                             \
            return rt_return(rt_entered);                                                          \
    } while (0)

/* ---- work and operations (rt_queue.c) -------------------------------------------------------- */

/* What is to be done, with its arguments; immutable, shared by a graph and all of its launches. */
struct work {
    int32_t refs;
    enum cudaGraphNodeType type;
    int32_t device;      /* that fails with it, and whose earlier failure skips it */
    bool despite_faults; /* runs on a device that has failed, too */
    cudaError_t (*run)(const void *args);
    void (*drop)(void *args);
    size_t bytes;
    _Alignas(16) unsigned char args[];
};
/* Copies the arguments (or leaves them for the caller to fill, when args is NULL). */
struct work *work_create(enum cudaGraphNodeType type, int32_t device,
                         cudaError_t (*run)(const void *args), const void *args, size_t bytes);
struct work *work_retain(struct work *w);
void work_release(struct work *w); /* NULL is allowed */

/* One execution of work in a stream. */
struct op {
    int32_t refs;
    struct work *work;          /* NULL: nothing but its place in the order */
    struct CUstream_st *stream; /* borrowed; valid until done */
    uint64_t seq;               /* in its stream, from 1 */
    struct op *next;
    struct op **deps; /* that must be done before; dropped with done */
    int32_t num_deps;
    bool polled, done;
    int64_t done_ns;
};

/* Appends work (taken over; may be NULL) to a stream, after what is already there, the deps, and
 * what the rules of the legacy stream ask for. The caller owns a reference to the result. With
 * synchronous streams it is done on return, and the lock was released meanwhile. */
struct op *queue_push_locked(struct CUstream_st *s, struct work *w, struct op *const *deps,
                             int32_t num_deps);
void op_release(struct op *op); /* NULL is allowed */
struct op *op_retain(struct op *op);
/* Lets it and all before it run, without waiting. */
void op_demand(struct op *op);
void op_wait(struct op *op);
/* Is it done? A second question about the same operation lets lazy streams run it, so that loops
 * of queries end. */
bool op_poll(struct op *op);
void stream_drain_locked(struct CUstream_st *s);
/* All streams of a device. */
void device_drain_locked(int32_t device);

/* ---- streams, events ------------------------------------------------------------------------- */

struct node_set {
    struct CUgraphNode_st **nodes;
    int32_t count;
};

struct CUstream_st {
    struct CUstream_st *next; /* in rt_streams */
    int32_t device, priority;
    unsigned flags; /* cudaStreamNonBlocking: not ordered with the legacy stream */
    bool legacy, destroyed;
    uint64_t id;
    struct op *head, *tail; /* not done yet; owned */
    struct op *last;        /* the newest, done or not; owned; NULL at first */
    uint64_t issued, wanted;
    bool running, has_worker;
    pthread_cond_t ready;
    struct capture *capture; /* borrowed; NULL when it does not capture */
    int32_t lane;            /* of the capture */
    struct node_set front;   /* what the next captured operation depends on */
};
extern struct CUstream_st *rt_streams; /* every one that exists, destroyed but unfinished too */

struct CUstream_st *stream_create_locked(int32_t device, unsigned flags, int32_t priority);
/* It goes once its work is done. */
void stream_destroy_locked(struct CUstream_st *s);
/* The stream of a handle. NULL and the special handles are streams of the current device. NULL
 * when the handle is not live. */
struct CUstream_st *stream_find_locked(cudaStream_t handle);
/* Puts work (taken over) into a stream, or into the graph that it captures. */
cudaError_t stream_submit_locked(struct CUstream_st *s, struct work *w);

struct CUevent_st {
    struct CUevent_st *next;
    int32_t device;
    unsigned flags;
    struct op *op;            /* of the last record; NULL before; owned */
    struct capture *capture;  /* when that was in a capture; owned reference */
    struct node_set captured; /* what it stands for there */
};
/* At the reset of a device. */
void event_destroy_all_locked(int32_t device);

/* ---- capture, graphs ------------------------------------------------------------------------- */

struct CUgraphNode_st {
    struct CUgraph_st *graph;
    int32_t index; /* in it; what it depends on has lower ones */
    int32_t lane;  /* the branch it was captured in; 0 is the origin stream's */
    struct work *work;
    struct node_set deps;
};
struct CUgraph_st {
    struct CUgraph_st *next;
    struct CUgraphNode_st **nodes;
    int32_t num_nodes, num_lanes;
};
struct capture {
    struct capture *next; /* active ones, in rt_captures */
    int32_t refs;
    uint64_t id;
    enum cudaStreamCaptureMode mode;
    pthread_t thread;
    struct CUstream_st *origin;
    struct CUgraph_st *graph; /* owned until the capture ends */
    bool invalid, ended;
};

void capture_invalidate_locked(struct capture *c);
void capture_release_locked(struct capture *c); /* NULL is allowed */
/* Calls that CUDA names unsafe: an error, and the end of the captures that forbid them. */
cudaError_t capture_check_unsafe_locked(void);
/* Calls that use the legacy stream of a device while one of its blocking streams captures. */
cudaError_t capture_check_legacy_locked(int32_t device);
/* Adds work (taken over; may be NULL) to what a stream captures. */
cudaError_t capture_add_locked(struct CUstream_st *s, struct work *w);
cudaError_t capture_record_locked(struct CUevent_st *e, struct CUstream_st *s);
cudaError_t capture_wait_locked(struct CUstream_st *s, struct CUevent_st *e);
/* Some stream of the device captures: it must not be waited for as a whole. */
cudaError_t capture_check_device_locked(int32_t device);

struct CUgraph_st *graph_create_locked(void);
struct CUgraphNode_st *graph_add_locked(struct CUgraph_st *g, struct work *w, int32_t lane,
                                        const struct node_set *deps);
void graph_destroy_locked(struct CUgraph_st *g); /* NULL is allowed */
/* Executable graphs with streams on a device, at its reset. */
void graph_exec_destroy_all_locked(int32_t device);
void node_set_clear(struct node_set *set);
void node_set_copy(struct node_set *to, const struct node_set *from);
void node_set_add(struct node_set *set, struct CUgraphNode_st *node);

/* ---- memory (rt_memory.c, rt_copy.c) --------------------------------------------------------- */

/* Where a range lies. */
enum rt_place { PLACE_PAGEABLE, PLACE_PINNED, PLACE_DEVICE, PLACE_BAD };
/* PLACE_BAD (with a report that names the call) when the range runs over the end of its
 * allocation, or lies in one that was freed. */
enum rt_place memory_place(const char *call, const char *operand, const void *p, size_t bytes,
                           int32_t *device);
void memory_free_all_locked(int32_t device);
/* Enqueues a copy and waits for it where CUDA documents so. */
cudaError_t copy_submit(const char *call, void *dst, const void *src, size_t bytes,
                        enum cudaMemcpyKind kind, cudaStream_t stream, bool async);

/* ---- modules, kernels (rt_module.c, rt_function.c, rt_launch.c) ------------------------------ */

struct binary; /* a registered fat binary; its PTX is parsed when it is first needed */
/* Variables of all modules get their initial values back, at the reset of a device. */
void modules_reset_locked(int32_t device);
struct function {
    struct function *next;
    const void *host; /* the stub that stands for the kernel in host code */
    const char *name; /* mangled; in the program's memory */
    struct binary *binary;
    const struct vm_kernel *kernel;        /* NULL until loaded */
    struct vm_kernel_info info;            /* valid when loaded */
    int32_t dynamic_limit[VM_MAX_DEVICES]; /* of cudaFuncSetAttribute; -1: the default */
    int32_t carveout[VM_MAX_DEVICES];
};
struct variable {
    struct variable *next;
    const void *host;
    const char *name;
    struct binary *binary;
    size_t bytes;
};
/* By the address of the host stub or a cudaKernel_t; loads its module. */
cudaError_t function_load(const void *func, struct function **out);
struct function *function_find_locked(const void *func); /* without loading; NULL when unknown */
int32_t function_ptx_sm(const struct function *f);       /* of a loaded one: what its PTX is for */
/* The address of a variable on a device. */
cudaError_t symbol_address(const void *symbol, int32_t device, void **address, size_t *bytes);
/* Dynamic shared memory that a launch on a device may ask for. */
size_t function_dynamic_limit(const struct function *f, int32_t device);
