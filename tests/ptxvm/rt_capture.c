/* Stream capture: what is put into a stream becomes nodes of a graph.
 *
 * A stream that captures has a front: the nodes that its next operation depends on. An event that
 * is recorded there keeps a copy of the front; a stream that waits for it joins the capture, or
 * adds those nodes to its own front. So fork and join with events become edges of the graph.
 *
 * A call that cannot be captured returns its error and invalidates the capture, and then every
 * call on its streams fails until it is ended.
 */
#include "tests/ptxvm/rt.h"

static struct capture *captures; /* that were begun and not ended */
static uint64_t last_capture_id;

void capture_invalidate_locked(struct capture *c) {
    c->invalid = true;
}

void capture_release_locked(struct capture *c) {
    if (c && --c->refs == 0)
        rt_free(c);
}

/* ---- what capture forbids -------------------------------------------------------------------- */

/* Modes as documented at cudaThreadExchangeStreamCaptureMode. */
static bool forbids(const struct capture *c) {
    if (rt_thread.capture_mode == cudaStreamCaptureModeRelaxed ||
        c->mode == cudaStreamCaptureModeRelaxed)
        return false;
    if (pthread_equal(c->thread, pthread_self()))
        return true;
    return rt_thread.capture_mode == cudaStreamCaptureModeGlobal &&
           c->mode == cudaStreamCaptureModeGlobal;
}

cudaError_t capture_check_unsafe_locked(void) {
    cudaError_t e = cudaSuccess;
    for (struct capture *c = captures; c; c = c->next)
        if (forbids(c)) {
            capture_invalidate_locked(c);
            e = cudaErrorStreamCaptureUnsupported;
        }
    return e;
}

static cudaError_t check_streams(int32_t device, bool blocking_only, cudaError_t error) {
    cudaError_t e = cudaSuccess;
    for (struct CUstream_st *s = rt_streams; s; s = s->next) {
        if (!s->capture || s->device != device ||
            (blocking_only && (s->flags & cudaStreamNonBlocking)))
            continue;
        capture_invalidate_locked(s->capture);
        e = error;
    }
    return e;
}

cudaError_t capture_check_legacy_locked(int32_t device) {
    return check_streams(device, true, cudaErrorStreamCaptureImplicit);
}

cudaError_t capture_check_device_locked(int32_t device) {
    cudaError_t e = check_streams(device, false, cudaErrorStreamCaptureUnsupported);
    return e != cudaSuccess ? e : capture_check_unsafe_locked();
}

/* ---- recording ------------------------------------------------------------------------------- */

static cudaError_t fail(struct capture *c, cudaError_t e) {
    capture_invalidate_locked(c);
    return e;
}

cudaError_t capture_add_locked(struct CUstream_st *s, struct work *w) {
    if (s->capture->invalid) {
        work_release(w);
        return cudaErrorStreamCaptureInvalidated;
    }
    struct CUgraphNode_st *node = graph_add_locked(s->capture->graph, w, s->lane, &s->front);
    node_set_clear(&s->front);
    node_set_add(&s->front, node);
    return cudaSuccess;
}

cudaError_t capture_record_locked(struct CUevent_st *e, struct CUstream_st *s) {
    if (s->capture->invalid)
        return cudaErrorStreamCaptureInvalidated;
    e->capture = s->capture;
    e->capture->refs++;
    node_set_copy(&e->captured, &s->front);
    return cudaSuccess;
}

static void join(struct CUstream_st *s, struct capture *c) {
    s->capture = c;
    s->lane = c->graph->num_lanes++;
}

cudaError_t capture_wait_locked(struct CUstream_st *s, struct CUevent_st *e) {
    if (!e->capture) {
        if (!e->op) /* never recorded: nothing to wait for */
            return cudaSuccess;
        return fail(s->capture, cudaErrorStreamCaptureIsolation);
    }
    if (e->capture->ended)
        return s->capture ? fail(s->capture, cudaErrorStreamCaptureIsolation)
                          : cudaErrorCapturedEvent;
    if (e->capture->invalid)
        return cudaErrorStreamCaptureInvalidated;
    if (s->capture && s->capture != e->capture) {
        capture_invalidate_locked(s->capture);
        return fail(e->capture, cudaErrorStreamCaptureMerge);
    }
    if (s->legacy)
        return fail(e->capture, cudaErrorStreamCaptureImplicit);
    if (!s->capture)
        join(s, e->capture);
    for (int32_t i = 0; i < e->captured.count; i++)
        node_set_add(&s->front, e->captured.nodes[i]);
    return cudaSuccess;
}

/* ---- begin and end --------------------------------------------------------------------------- */

static cudaError_t begin_locked(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    struct CUstream_st *s = stream_find_locked(stream);
    if (!s)
        return cudaErrorInvalidResourceHandle;
    if (s->legacy)
        return cudaErrorStreamCaptureUnsupported;
    if (s->capture)
        return cudaErrorIllegalState;
    struct capture *c = rt_calloc(sizeof *c);
    c->refs = 1;
    c->id = ++last_capture_id;
    c->mode = mode;
    c->thread = pthread_self();
    c->origin = s;
    c->graph = graph_create_locked();
    c->next = captures;
    captures = c;
    join(s, c);
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    RT_ENTER();
    if (mode != cudaStreamCaptureModeGlobal && mode != cudaStreamCaptureModeThreadLocal &&
        mode != cudaStreamCaptureModeRelaxed)
        return rt_return(cudaErrorInvalidValue);
    rt_lock();
    cudaError_t e = begin_locked(stream, mode);
    rt_unlock();
    return rt_return(e);
}

/* Marks what the nodes depend on, directly or not. */
static void mark_ancestors(const struct CUgraph_st *g, bool *marked) {
    for (int32_t i = g->num_nodes - 1; i >= 0; i--)
        for (int32_t d = 0; marked[i] && d < g->nodes[i]->deps.count; d++)
            marked[g->nodes[i]->deps.nodes[d]->index] = true;
}

/* Does all that other streams captured come before the origin's last operation? */
static bool joined(const struct capture *c) {
    bool *marked = rt_calloc((size_t)c->graph->num_nodes);
    for (int32_t i = 0; i < c->origin->front.count; i++)
        marked[c->origin->front.nodes[i]->index] = true;
    mark_ancestors(c->graph, marked);
    bool all = true;
    for (const struct CUstream_st *s = rt_streams; s; s = s->next)
        for (int32_t i = 0; s->capture == c && i < s->front.count; i++)
            all = all && marked[s->front.nodes[i]->index];
    rt_free(marked);
    return all;
}

/* Takes all streams out of the capture. */
static void end(struct capture *c) {
    for (struct CUstream_st *s = rt_streams; s; s = s->next)
        if (s->capture == c) {
            s->capture = NULL;
            node_set_clear(&s->front);
        }
    struct capture **at = &captures;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    c->ended = true;
    c->graph = NULL;
    capture_release_locked(c);
}

static cudaError_t end_locked(cudaStream_t stream, cudaGraph_t *graph) {
    struct CUstream_st *s = stream_find_locked(stream);
    if (!s)
        return cudaErrorInvalidResourceHandle;
    struct capture *c = s->capture;
    if (!c)
        return cudaErrorIllegalState;
    if (c->mode != cudaStreamCaptureModeRelaxed && !pthread_equal(c->thread, pthread_self()))
        return fail(c, cudaErrorStreamCaptureWrongThread);
    if (c->origin != s)
        return fail(c, cudaErrorStreamCaptureUnmatched);
    cudaError_t e = c->invalid   ? cudaErrorStreamCaptureInvalidated
                    : !joined(c) ? cudaErrorStreamCaptureUnjoined
                                 : cudaSuccess;
    if (e == cudaSuccess)
        *graph = c->graph;
    else
        graph_destroy_locked(c->graph);
    end(c);
    return e;
}

/* Ends the capture also when it fails; then *graph is NULL. */
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    RT_ENTER();
    if (!graph)
        return rt_return(cudaErrorInvalidValue);
    *graph = NULL;
    rt_lock();
    cudaError_t e = end_locked(stream, graph);
    rt_unlock();
    return rt_return(e);
}

/* ---- questions ------------------------------------------------------------------------------- */

static enum cudaStreamCaptureStatus status_of(const struct CUstream_st *s) {
    return !s->capture           ? cudaStreamCaptureStatusNone
           : s->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                 : cudaStreamCaptureStatusActive;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    return cudaStreamGetCaptureInfo(stream, status, NULL, NULL, NULL, NULL, NULL);
}

/* Asking about the legacy stream while a blocking stream captures is an error, as documented. */
static cudaError_t info_locked(struct CUstream_st *s, enum cudaStreamCaptureStatus *status,
                               unsigned long long *id, cudaGraph_t *graph,
                               const cudaGraphNode_t **deps, size_t *num_deps) {
    if (s->legacy)
        for (const struct CUstream_st *t = rt_streams; t; t = t->next)
            if (t->capture && t->device == s->device && !(t->flags & cudaStreamNonBlocking))
                return cudaErrorStreamCaptureImplicit;
    *status = status_of(s);
    if (*status != cudaStreamCaptureStatusActive)
        return cudaSuccess;
    if (id)
        *id = s->capture->id;
    if (graph)
        *graph = s->capture->graph;
    if (deps)
        *deps = s->front.nodes;
    if (num_deps)
        *num_deps = (size_t)s->front.count;
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph,
                                     const cudaGraphNode_t **deps, const cudaGraphEdgeData **edges,
                                     size_t *num_deps) {
    RT_ENTER();
    if (!status)
        return rt_return(cudaErrorInvalidValue);
    if (edges)
        *edges = NULL; /* all edges are full dependencies */
    rt_lock();
    struct CUstream_st *s = stream_find_locked(stream);
    cudaError_t e =
        s ? info_locked(s, status, id, graph, deps, num_deps) : cudaErrorInvalidResourceHandle;
    rt_unlock();
    return rt_return(e);
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    if (!mode ||
        (*mode != cudaStreamCaptureModeGlobal && *mode != cudaStreamCaptureModeThreadLocal &&
         *mode != cudaStreamCaptureModeRelaxed))
        return rt_return(cudaErrorInvalidValue);
    enum cudaStreamCaptureMode before = rt_thread.capture_mode;
    rt_thread.capture_mode = *mode;
    *mode = before;
    return cudaSuccess;
}
