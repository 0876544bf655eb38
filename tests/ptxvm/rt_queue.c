/* The engine: who runs which operation, and when.
 *
 * A stream is a queue of operations. An operation runs once the ones before it in its stream and
 * its dependencies are done. Dependencies always point to operations that were pushed earlier, so
 * there are no cycles, and waiting ends.
 *
 *   sync   the thread that pushes an operation runs it before the call returns
 *   async  a worker thread of the stream runs it as soon as it may
 *   lazy   the worker runs only what was demanded: by a wait, by a dependency of something
 *          demanded, by the second of two queries, or by a kernel that polls memory and may wait
 *          for anything that was pushed
 *
 * Kernels of several devices that wait for each other need their launches at the same time. With
 * synchronous streams that takes a host thread for each, which stays in its launch meanwhile.
 */
#include "tests/ptxvm/rt.h"

#include <string.h>
#include <time.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t op_done = PTHREAD_COND_INITIALIZER;
struct CUstream_st *rt_streams;
static uint64_t last_stream_id;

void rt_lock(void) {
    pthread_mutex_lock(&lock);
}

void rt_unlock(void) {
    pthread_mutex_unlock(&lock);
}

/* ---- work and operations --------------------------------------------------------------------- */

struct work *work_create(enum cudaGraphNodeType type, int32_t device,
                         cudaError_t (*run)(const void *args), const void *args, size_t bytes) {
    struct work *w = rt_calloc(sizeof *w + bytes);
    w->refs = 1;
    w->type = type;
    w->device = device;
    w->run = run;
    w->bytes = bytes;
    if (args && bytes)
        memcpy(w->args, args, bytes);
    return w;
}

struct work *work_retain(struct work *w) {
    if (w)
        __atomic_add_fetch(&w->refs, 1, __ATOMIC_RELAXED);
    return w;
}

void work_release(struct work *w) {
    if (!w || __atomic_sub_fetch(&w->refs, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    if (w->drop)
        w->drop(w->args);
    rt_free(w);
}

struct op *op_retain(struct op *op) {
    op->refs++;
    return op;
}

static void op_drop_contents(struct op *op) {
    for (int32_t i = 0; i < op->num_deps; i++)
        op_release(op->deps[i]);
    rt_free(op->deps);
    op->deps = NULL;
    op->num_deps = 0;
    work_release(op->work);
    op->work = NULL;
}

void op_release(struct op *op) {
    if (!op || --op->refs > 0)
        return;
    op_drop_contents(op);
    rt_free(op);
}

static bool deps_done(const struct op *op) {
    for (int32_t i = 0; i < op->num_deps; i++)
        if (!op->deps[i]->done)
            return false;
    return true;
}

/* Runs what an operation stands for, without the lock. A fault makes every later call on the
 * device fail, and everything that is still queued for it is skipped. */
static void run_work(struct work *w) {
    if (!w || (rt_devices[w->device].sticky != cudaSuccess && !w->despite_faults))
        return;
    rt_unlock();
    cudaError_t e = w->run(w->args);
    vm_note_progress();
    rt_lock();
    if (e != cudaSuccess && rt_devices[w->device].sticky == cudaSuccess)
        rt_devices[w->device].sticky = e;
}

static void run_head(struct CUstream_st *s) {
    struct op *op = s->head;
    s->running = true;
    run_work(op->work);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    op->done_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    op->done = true;
    s->running = false;
    s->head = op->next;
    if (!s->head)
        s->tail = NULL;
    op_drop_contents(op);
    op_release(op);
    pthread_cond_broadcast(&op_done);
}

void op_demand(struct op *op) {
    if (op->done || op->stream->wanted >= op->seq)
        return;
    op->stream->wanted = op->seq;
    pthread_cond_signal(&op->stream->ready);
}

void op_wait(struct op *op) {
    op_retain(op);
    op_demand(op);
    while (!op->done) {
        struct CUstream_st *s = op->stream;
        if (!s->has_worker && !s->running && deps_done(s->head))
            run_head(s);
        else
            pthread_cond_wait(&op_done, &lock);
    }
    op_release(op);
}

bool op_poll(struct op *op) {
    if (!op->done && op->polled)
        op_demand(op);
    op->polled = true;
    return op->done;
}

/* ---- streams --------------------------------------------------------------------------------- */

static void stream_free(struct CUstream_st *s) {
    struct CUstream_st **at = &rt_streams;
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    op_release(s->last);
    pthread_cond_destroy(&s->ready);
    node_set_clear(&s->front);
    rt_free(s);
}

static void *worker_main(void *arg) {
    struct CUstream_st *s = arg;
    bool lazy = vm_settings()->streams == VM_STREAMS_LAZY;
    rt_lock();
    while (s->head || !s->destroyed) {
        if (!s->head || (lazy && s->head->seq > s->wanted)) {
            pthread_cond_wait(&s->ready, &lock);
            continue;
        }
        for (int32_t i = 0; i < s->head->num_deps; i++)
            op_demand(s->head->deps[i]);
        if (deps_done(s->head))
            run_head(s);
        else
            pthread_cond_wait(&op_done, &lock);
    }
    stream_free(s);
    rt_unlock();
    return NULL;
}

struct CUstream_st *stream_create_locked(int32_t device, unsigned flags, int32_t priority) {
    struct CUstream_st *s = rt_calloc(sizeof *s);
    s->device = device;
    s->flags = flags;
    s->priority = priority;
    s->id = ++last_stream_id;
    pthread_cond_init(&s->ready, NULL);
    s->next = rt_streams;
    rt_streams = s;
    pthread_t thread;
    if (vm_settings()->streams != VM_STREAMS_SYNC) {
        if (vm_settings()->streams == VM_STREAMS_LAZY)
            vm_on_stall(ptxvm_demand_all);
        if (pthread_create(&thread, NULL, worker_main, s) != 0) {
            stream_free(s);
            return NULL;
        }
        pthread_detach(thread);
        s->has_worker = true;
    }
    return s;
}

void stream_destroy_locked(struct CUstream_st *s) {
    s->destroyed = true;
    s->wanted = s->issued;
    if (s->has_worker) {
        pthread_cond_signal(&s->ready);
        return;
    }
    stream_drain_locked(s); /* another thread may be running its head */
    stream_free(s);
}

/* ---- pushing and waiting --------------------------------------------------------------------- */

static void add_dep(struct op *op, struct op *dep) {
    if (!dep || dep->done || dep->stream == op->stream)
        return;
    op->deps = rt_realloc(op->deps, sizeof(*op->deps) * (size_t)(op->num_deps + 1));
    op->deps[op->num_deps++] = op_retain(dep);
}

/* The legacy stream waits for what is in the blocking streams of its device, and they for it. */
static void add_legacy_deps(struct op *op, struct CUstream_st *s) {
    if (s->flags & cudaStreamNonBlocking)
        return;
    if (!s->legacy) {
        if (rt_devices[s->device].legacy)
            add_dep(op, rt_devices[s->device].legacy->last);
        return;
    }
    for (struct CUstream_st *other = rt_streams; other; other = other->next)
        if (other->device == s->device && !(other->flags & cudaStreamNonBlocking))
            add_dep(op, other->last);
}

struct op *queue_push_locked(struct CUstream_st *s, struct work *w, struct op *const *deps,
                             int32_t num_deps) {
    struct op *op = rt_calloc(sizeof *op);
    vm_note_progress();
    op->refs = 3; /* the queue's, the stream's as its last, the caller's */
    op->work = w;
    op->stream = s;
    op->seq = ++s->issued;
    for (int32_t i = 0; i < num_deps; i++)
        add_dep(op, deps[i]);
    add_legacy_deps(op, s);
    op_release(s->last);
    s->last = op;
    if (s->tail)
        s->tail->next = op;
    else
        s->head = op;
    s->tail = op;
    if (s->has_worker)
        pthread_cond_signal(&s->ready);
    else
        op_wait(op);
    return op;
}

void stream_drain_locked(struct CUstream_st *s) {
    if (s->last)
        op_wait(s->last);
}

/* What was pushed before the call is waited for: streams may go, and new ones come, meanwhile. */
void device_drain_locked(int32_t device) {
    struct op **ops = NULL;
    size_t count = 0;
    for (struct CUstream_st *s = rt_streams; s; s = s->next) {
        if (s->device != device || !s->last || s->last->done)
            continue;
        ops = rt_realloc(ops, sizeof(struct op *) * (count + 1));
        ops[count++] = op_retain(s->last);
        op_demand(s->last);
    }
    for (size_t i = 0; i < count; i++) {
        op_wait(ops[i]);
        op_release(ops[i]);
    }
    rt_free(ops);
}
