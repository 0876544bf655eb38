/* Graphs: what was captured, and its launches.
 *
 * A launch puts each node as an operation into a stream again: those of the captured origin stream
 * into the launch's stream, those of other branches into streams of the executable graph. The
 * edges become dependencies, so branches run at the same time, as they did while capturing.
 */
#include "tests/ptxvm/rt.h"

#include <string.h>

struct exec_node {
    struct work *work; /* owned */
    int32_t lane;
    int32_t *deps; /* [num_deps] indices of nodes; owned */
    int32_t num_deps;
};
struct CUgraphExec_st {
    struct CUgraphExec_st *next;
    struct exec_node *nodes;
    int32_t num_nodes, num_lanes;
    struct CUstream_st **lanes; /* [num_lanes]; 0 is the launch's own stream, NULL here */
    struct op *last;            /* of its last launch; launches of one graph do not overlap */
};

static struct CUgraph_st *graphs;
static struct CUgraphExec_st *execs;

/* ---- sets of nodes --------------------------------------------------------------------------- */

void node_set_clear(struct node_set *set) {
    rt_free(set->nodes);
    *set = (struct node_set){0};
}

void node_set_add(struct node_set *set, struct CUgraphNode_st *node) {
    for (int32_t i = 0; i < set->count; i++)
        if (set->nodes[i] == node)
            return;
    size_t bytes = sizeof(struct CUgraphNode_st *) * (size_t)(set->count + 1);
    set->nodes = rt_realloc(set->nodes, bytes);
    set->nodes[set->count++] = node;
}

void node_set_copy(struct node_set *to, const struct node_set *from) {
    node_set_clear(to);
    for (int32_t i = 0; i < from->count; i++)
        node_set_add(to, from->nodes[i]);
}

/* ---- graphs ---------------------------------------------------------------------------------- */

struct CUgraph_st *graph_create_locked(void) {
    struct CUgraph_st *g = rt_calloc(sizeof *g);
    g->next = graphs;
    graphs = g;
    return g;
}

struct CUgraphNode_st *graph_add_locked(struct CUgraph_st *g, struct work *w, int32_t lane,
                                        const struct node_set *deps) {
    struct CUgraphNode_st *node = rt_calloc(sizeof *node);
    node->graph = g;
    node->index = g->num_nodes;
    node->lane = lane;
    node->work = w;
    node_set_copy(&node->deps, deps);
    size_t bytes = sizeof(struct CUgraphNode_st *) * (size_t)(g->num_nodes + 1);
    g->nodes = rt_realloc(g->nodes, bytes);
    g->nodes[g->num_nodes++] = node;
    return node;
}

void graph_destroy_locked(struct CUgraph_st *g) {
    if (!g)
        return;
    struct CUgraph_st **at = &graphs;
    while (*at != g)
        at = &(*at)->next;
    *at = g->next;
    for (int32_t i = 0; i < g->num_nodes; i++) {
        node_set_clear(&g->nodes[i]->deps);
        work_release(g->nodes[i]->work);
        rt_free(g->nodes[i]);
    }
    rt_free(g->nodes);
    rt_free(g);
}

static struct CUgraph_st *find_graph(cudaGraph_t handle) {
    for (struct CUgraph_st *g = graphs; g; g = g->next)
        if (g == handle)
            return g;
    return NULL;
}

cudaError_t cudaGraphCreate(cudaGraph_t *graph, unsigned flags) {
    RT_ENTER();
    if (!graph || flags)
        return rt_return(cudaErrorInvalidValue);
    rt_lock();
    *graph = graph_create_locked();
    rt_unlock();
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    RT_ENTER();
    rt_lock();
    struct CUgraph_st *g = find_graph(graph);
    graph_destroy_locked(g);
    rt_unlock();
    return rt_return(g ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *num_nodes) {
    RT_ENTER();
    rt_lock();
    struct CUgraph_st *g = find_graph(graph);
    if (g && num_nodes) {
        size_t count = (size_t)g->num_nodes;
        for (size_t i = 0; nodes && i < *num_nodes; i++)
            nodes[i] = i < count ? g->nodes[i] : NULL;
        if (!nodes || *num_nodes > count)
            *num_nodes = count;
    }
    rt_unlock();
    return rt_return(g && num_nodes ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, enum cudaGraphNodeType *type) {
    RT_ENTER();
    if (!node || !type)
        return rt_return(cudaErrorInvalidValue);
    *type = node->work ? node->work->type : cudaGraphNodeTypeEmpty;
    return cudaSuccess;
}

/* ---- executable graphs ----------------------------------------------------------------------- */

static struct CUgraphExec_st *find_exec(cudaGraphExec_t handle) {
    for (struct CUgraphExec_st *x = execs; x; x = x->next)
        if (x == handle)
            return x;
    return NULL;
}

static void clear_nodes(struct CUgraphExec_st *x) {
    for (int32_t i = 0; i < x->num_nodes; i++) {
        work_release(x->nodes[i].work);
        rt_free(x->nodes[i].deps);
    }
    rt_free(x->nodes);
    x->nodes = NULL;
    x->num_nodes = 0;
}

static void copy_nodes(struct CUgraphExec_st *x, const struct CUgraph_st *g) {
    x->num_nodes = g->num_nodes;
    x->nodes = rt_calloc(sizeof(struct exec_node) * (size_t)g->num_nodes);
    for (int32_t i = 0; i < g->num_nodes; i++) {
        const struct CUgraphNode_st *from = g->nodes[i];
        struct exec_node *to = &x->nodes[i];
        to->work = work_retain(from->work);
        to->lane = from->lane;
        to->num_deps = from->deps.count;
        to->deps = rt_calloc(sizeof(int32_t) * (size_t)from->deps.count);
        for (int32_t d = 0; d < from->deps.count; d++)
            to->deps[d] = from->deps.nodes[d]->index;
    }
}

static int32_t lane_device(const struct CUgraphExec_st *x, int32_t lane) {
    for (int32_t i = 0; i < x->num_nodes; i++)
        if (x->nodes[i].lane == lane && x->nodes[i].work)
            return x->nodes[i].work->device;
    return rt_thread.device;
}

/* The streams of the branches, made before the first launch so that launches stay quick. */
static bool make_lanes(struct CUgraphExec_st *x, int32_t num_lanes) {
    x->lanes = rt_calloc(sizeof(struct CUstream_st *) * (size_t)num_lanes);
    x->num_lanes = num_lanes;
    for (int32_t lane = 1; lane < num_lanes; lane++) {
        x->lanes[lane] = stream_create_locked(lane_device(x, lane), cudaStreamNonBlocking, 0);
        if (!x->lanes[lane])
            return false;
    }
    return true;
}

static void exec_destroy(struct CUgraphExec_st *x) {
    struct CUgraphExec_st **at = &execs;
    while (*at != x)
        at = &(*at)->next;
    *at = x->next;
    for (int32_t lane = 1; lane < x->num_lanes; lane++)
        if (x->lanes[lane])
            stream_destroy_locked(x->lanes[lane]);
    rt_free(x->lanes);
    op_release(x->last);
    clear_nodes(x);
    rt_free(x);
}

static bool uses_device(const struct CUgraphExec_st *x, int32_t device) {
    for (int32_t lane = 1; lane < x->num_lanes; lane++)
        if (x->lanes[lane] && x->lanes[lane]->device == device)
            return true;
    return false;
}

void graph_exec_destroy_all_locked(int32_t device) {
    for (struct CUgraphExec_st *x = execs, *next; x; x = next) {
        next = x->next;
        if (uses_device(x, device))
            exec_destroy(x);
    }
}

static cudaError_t instantiate_locked(cudaGraphExec_t *exec, cudaGraph_t graph) {
    struct CUgraph_st *g = find_graph(graph);
    if (!g)
        return cudaErrorInvalidValue;
    struct CUgraphExec_st *x = rt_calloc(sizeof *x);
    x->next = execs;
    execs = x;
    copy_nodes(x, g);
    if (!make_lanes(x, g->num_lanes)) {
        exec_destroy(x);
        return cudaErrorOperatingSystem;
    }
    *exec = x;
    return cudaSuccess;
}

/* Flags that only choose how a launch is done are accepted; launches from kernels are not. */
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                 unsigned long long flags) {
    RT_ENTER();
    if (!exec || flags > 15)
        return rt_return(cudaErrorInvalidValue);
    if (flags & cudaGraphInstantiateFlagDeviceLaunch)
        return rt_return(cudaErrorNotSupported);
    rt_lock();
    cudaError_t e = instantiate_locked(exec, graph);
    rt_unlock();
    return rt_return(e);
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph,
                                          unsigned long long flags) {
    return cudaGraphInstantiate(exec, graph, flags);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    RT_ENTER();
    rt_lock();
    struct CUgraphExec_st *x = find_exec(exec);
    if (x)
        exec_destroy(x);
    rt_unlock();
    return rt_return(x ? cudaSuccess : cudaErrorInvalidValue);
}

/* ---- update ---------------------------------------------------------------------------------- */

static enum cudaGraphExecUpdateResult compare(const struct CUgraphExec_st *x,
                                              const struct CUgraph_st *g, int32_t *at) {
    *at = -1;
    if (x->num_nodes != g->num_nodes || x->num_lanes != g->num_lanes)
        return cudaGraphExecUpdateErrorTopologyChanged;
    for (int32_t i = 0; i < x->num_nodes; i++) {
        const struct exec_node *a = &x->nodes[i];
        const struct CUgraphNode_st *b = g->nodes[i];
        *at = i;
        if (a->num_deps != b->deps.count || a->lane != b->lane || !a->work != !b->work)
            return cudaGraphExecUpdateErrorTopologyChanged;
        for (int32_t d = 0; d < a->num_deps; d++)
            if (a->deps[d] != b->deps.nodes[d]->index)
                return cudaGraphExecUpdateErrorTopologyChanged;
        if (a->work && a->work->type != b->work->type)
            return cudaGraphExecUpdateErrorNodeTypeChanged;
        if (a->work && a->work->device != b->work->device)
            return cudaGraphExecUpdateErrorParametersChanged;
    }
    return cudaGraphExecUpdateSuccess;
}

/* Later launches do what the graph says, if it has the same shape; a kernel may have become
 * another one. */
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
                                cudaGraphExecUpdateResultInfo *info) {
    RT_ENTER();
    rt_lock();
    struct CUgraphExec_st *x = find_exec(exec);
    struct CUgraph_st *g = find_graph(graph);
    if (!x || !g || !info) {
        rt_unlock();
        return rt_return(cudaErrorInvalidValue);
    }
    int32_t at;
    memset(info, 0, sizeof *info);
    info->result = compare(x, g, &at);
    if (info->result == cudaGraphExecUpdateSuccess) {
        clear_nodes(x);
        copy_nodes(x, g);
    } else if (at >= 0) {
        info->errorNode = g->nodes[at];
    }
    rt_unlock();
    return rt_return(info->result == cudaGraphExecUpdateSuccess ? cudaSuccess
                                                                : cudaErrorGraphExecUpdateFailure);
}

/* ---- launch ---------------------------------------------------------------------------------- */

/* Appends the nodes to the graph that the stream captures. */
static cudaError_t launch_into_capture(struct CUgraphExec_st *x, struct CUstream_st *s) {
    if (s->capture->invalid)
        return cudaErrorStreamCaptureInvalidated;
    struct CUgraph_st *g = s->capture->graph;
    int32_t base = g->num_nodes;
    struct node_set leaves = {0};
    for (int32_t i = 0; i < x->num_nodes; i++) {
        struct node_set deps = {0};
        for (int32_t d = 0; d < x->nodes[i].num_deps; d++)
            node_set_add(&deps, g->nodes[base + x->nodes[i].deps[d]]);
        if (!deps.count)
            node_set_copy(&deps, &s->front);
        graph_add_locked(g, work_retain(x->nodes[i].work), s->lane, &deps);
        node_set_clear(&deps);
    }
    for (int32_t i = 0; i < x->num_nodes; i++) {
        bool used = false;
        for (int32_t j = i + 1; j < x->num_nodes; j++)
            for (int32_t d = 0; d < x->nodes[j].num_deps; d++)
                used = used || x->nodes[j].deps[d] == i;
        if (!used)
            node_set_add(&leaves, g->nodes[base + i]);
    }
    if (leaves.count)
        node_set_copy(&s->front, &leaves);
    node_set_clear(&leaves);
    return cudaSuccess;
}

/* What one node waits for: the nodes it depends on, or, at the start, the launch itself. */
static struct op *push_node(const struct exec_node *node, struct CUstream_st *s, struct op *start,
                            struct op *const *done) {
    struct op **deps = rt_calloc(sizeof(struct op *) * (size_t)(node->num_deps + 1));
    int32_t count = 0;
    deps[count++] = start;
    for (int32_t d = 0; d < node->num_deps; d++)
        deps[count++] = done[node->deps[d]];
    struct op *op = queue_push_locked(s, work_retain(node->work), deps, count);
    rt_free(deps);
    return op;
}

/* With synchronous streams a push lets go of the lock. The program must not touch a graph from two
 * threads at once, as CUDA documents, so the nodes stay what they are. */
static void launch_locked(struct CUgraphExec_st *x, struct CUstream_st *s) {
    int32_t count = x->num_nodes, num_lanes = x->num_lanes;
    struct op *start = queue_push_locked(s, NULL, &x->last, x->last ? 1 : 0);
    struct op **done = rt_calloc(sizeof(struct op *) * (size_t)count);
    for (int32_t i = 0; i < count; i++) {
        const struct exec_node *node = &x->nodes[i];
        done[i] = push_node(node, node->lane ? x->lanes[node->lane] : s, start, done);
    }
    struct op *end = num_lanes > 1 ? queue_push_locked(s, NULL, done, count) : op_retain(s->last);
    op_release(x->last);
    x->last = end;
    op_release(start);
    for (int32_t i = 0; i < count; i++)
        op_release(done[i]);
    rt_free(done);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    RT_ENTER();
    rt_lock();
    struct CUgraphExec_st *x = find_exec(exec);
    struct CUstream_st *s = stream_find_locked(stream);
    cudaError_t e = !x ? cudaErrorInvalidValue : !s ? cudaErrorInvalidResourceHandle : cudaSuccess;
    if (e == cudaSuccess && s->capture)
        e = launch_into_capture(x, s);
    else if (e == cudaSuccess && s->legacy)
        e = capture_check_legacy_locked(s->device);
    if (e == cudaSuccess && !s->capture)
        launch_locked(x, s);
    rt_unlock();
    return rt_return(e);
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
    RT_ENTER();
    rt_lock();
    bool known = find_exec(exec) && stream_find_locked(stream);
    rt_unlock();
    return rt_return(known ? cudaSuccess : cudaErrorInvalidValue);
}
