/* Where the ranks of a clique come together.
 *
 * Collective operations meet by number: the n-th that a rank's tasks come to is the n-th of every
 * other rank. Sends and receives meet by sender and receiver, in order. A group first posts all of
 * its sends and receives and then goes through its collectives, so that none of them waits for
 * another one of the same group.
 *
 * What does not fit together, a fault of the switches, or ranks that wait for each other in a
 * circle is an asynchronous error of all ranks. From then on nothing ends, as with the real
 * library, until the communicators are aborted: then tasks end without an effect.
 */
#include <stdio.h>
#include <string.h>

#include "tests/ptxvm/nccl_vm.h"

struct nccl_meeting {
    struct nccl_meeting *next;
    uint64_t number;
    const struct nccl_op *op[NCCL_MAX_RANKS]; /* of those who have come */
    int come, left;
    bool done;
};

struct nccl_post {
    struct nccl_post *next; /* among the unmatched ones of the clique */
    const struct nccl_op *op;
    int from, to;
    bool done;
};

/* ---- what an operation is -------------------------------------------------------------------- */

const char *nccl_kind_name(enum nccl_kind kind) {
    static const char *const names[] = {[ALL_REDUCE] = "ncclAllReduce",
                                        [ALL_GATHER] = "ncclAllGather",
                                        [REDUCE_SCATTER] = "ncclReduceScatter",
                                        [BROADCAST] = "ncclBroadcast",
                                        [REDUCE] = "ncclReduce",
                                        [SEND] = "ncclSend",
                                        [RECV] = "ncclRecv"};
    return names[kind];
}

static bool has_reduction(enum nccl_kind kind) {
    return kind == ALL_REDUCE || kind == REDUCE_SCATTER || kind == REDUCE;
}

const char *nccl_describe(const struct nccl_op *op, char *out, size_t bytes) {
    char more[64] = "";
    if (has_reduction(op->kind))
        snprintf(more, sizeof more, ", %s", nccl_op_name(op->op));
    if (op->kind == SEND || op->kind == RECV)
        snprintf(more, sizeof more, op->kind == SEND ? " to rank %d" : " from rank %d", op->peer);
    else if (op->kind == BROADCAST || op->kind == REDUCE)
        snprintf(more + strlen(more), sizeof more - strlen(more), ", root %d", op->peer);
    snprintf(out, bytes, "%s of %zu %s%s", nccl_kind_name(op->kind), op->count,
             nccl_type_name(op->type), more);
    return out;
}

size_t nccl_send_bytes(const struct nccl_op *op, int rank, int size) {
    size_t bytes = op->count * nccl_type_bytes(op->type);
    if (op->kind == RECV || (op->kind == BROADCAST && rank != op->peer))
        return 0;
    return op->kind == REDUCE_SCATTER ? bytes * (size_t)size : bytes;
}

size_t nccl_recv_bytes(const struct nccl_op *op, int rank, int size) {
    size_t bytes = op->count * nccl_type_bytes(op->type);
    if (op->kind == SEND || (op->kind == REDUCE && rank != op->peer))
        return 0;
    return op->kind == ALL_GATHER ? bytes * (size_t)size : bytes;
}

/* Memory may have been freed since the call. */
static bool check_buffers(const struct ncclComm *comm, const struct nccl_op *op) {
    int size = comm->clique->size;
    size_t send = nccl_send_bytes(op, comm->rank, size);
    size_t recv = nccl_recv_bytes(op, comm->rank, size);
    char name[64];
    snprintf(name, sizeof name, "%s: sendbuff", nccl_kind_name(op->kind));
    if (send && !ptxvm_check_range(name, comm->device, op->send, send))
        return false;
    snprintf(name, sizeof name, "%s: recvbuff", nccl_kind_name(op->kind));
    return !recv || ptxvm_check_range(name, comm->device, op->recv, recv);
}

/* ---- collectives ----------------------------------------------------------------------------- */

/* The n-th part of a reduction starts at another rank for each n, as the chunks of a ring do. */
static void reduce_in_chunks(unsigned char *to, const struct nccl_meeting *m, int size) {
    const struct nccl_op *op = m->op[0];
    size_t element = nccl_type_bytes(op->type);
    for (int n = 0; n < size; n++) {
        size_t begin = op->count * (size_t)n / (size_t)size;
        size_t end = op->count * (size_t)(n + 1) / (size_t)size;
        const void *from[NCCL_MAX_RANKS];
        for (int r = 0; r < size; r++)
            from[r] = (const unsigned char *)m->op[r]->send + begin * element;
        if (end > begin)
            nccl_reduce(to + begin * element, from, size, (n + 1) % size, end - begin, op->type,
                        op->op);
    }
}

/* The result of all ranks: it is theirs, or a part of it is. Returns its bytes. */
static size_t result_bytes(const struct nccl_op *op, int size) {
    size_t bytes = op->count * nccl_type_bytes(op->type);
    return op->kind == ALL_GATHER || op->kind == REDUCE_SCATTER ? bytes * (size_t)size : bytes;
}

static void compute(unsigned char *result, const struct nccl_meeting *m, int size) {
    const struct nccl_op *op = m->op[0];
    size_t part = op->count * nccl_type_bytes(op->type);
    switch (op->kind) {
    case ALL_REDUCE:
        reduce_in_chunks(result, m, size);
        break;
    case ALL_GATHER:
        for (int r = 0; r < size; r++)
            memcpy(result + part * (size_t)r, m->op[r]->send, part);
        break;
    case BROADCAST:
        memcpy(result, m->op[op->peer]->send, part);
        break;
    default: /* REDUCE, and REDUCE_SCATTER part by part */
        for (int n = 0; n < (op->kind == REDUCE ? 1 : size); n++) {
            const void *from[NCCL_MAX_RANKS];
            for (int r = 0; r < size; r++)
                from[r] = (const unsigned char *)m->op[r]->send + part * (size_t)n;
            int last = op->kind == REDUCE ? op->peer : n;
            nccl_reduce(result + part * (size_t)n, from, size, (last + 1) % size, op->count,
                        op->type, op->op);
        }
    }
}

/* Everybody has come, with operations that fit. */
static void perform(const struct nccl_meeting *m, int size) {
    const struct nccl_op *op = m->op[0];
    unsigned char *result = rt_calloc(result_bytes(op, size));
    ptxvm_access_begin();
    compute(result, m, size);
    for (int r = 0; r < size; r++) {
        size_t bytes = nccl_recv_bytes(m->op[r], r, size);
        size_t offset = op->kind == REDUCE_SCATTER ? bytes * (size_t)r : 0;
        if (bytes)
            memcpy(m->op[r]->recv, result + offset, bytes);
    }
    ptxvm_access_end();
    rt_free(result);
}

static bool fits(const struct nccl_op *a, const struct nccl_op *b) {
    return a->kind == b->kind && a->count == b->count && a->type == b->type &&
           (!has_reduction(a->kind) || a->op == b->op) && a->peer == b->peer;
}

static bool check_fit(struct nccl_clique *c, const struct nccl_meeting *m) {
    char a[160], b[160];
    for (int r = 1; r < c->size; r++) {
        if (fits(m->op[0], m->op[r]))
            continue;
        nccl_fail_clique_locked(c, r, ncclInvalidUsage, ncclInvalidUsage,
                                "collective %llu does not fit together: rank 0 has %s, rank %d has "
                                "%s",
                                (unsigned long long)m->number, nccl_describe(m->op[0], a, sizeof a),
                                r, nccl_describe(m->op[r], b, sizeof b));
        return false;
    }
    return true;
}

static struct nccl_meeting *meeting_of(struct nccl_clique *c, uint64_t number) {
    struct nccl_meeting *m = c->meetings;
    while (m && m->number != number)
        m = m->next;
    if (m)
        return m;
    m = rt_calloc(sizeof *m);
    m->number = number;
    m->next = c->meetings;
    c->meetings = m;
    return m;
}

static void leave(struct nccl_clique *c, struct nccl_meeting *m, int rank) {
    m->op[rank] = NULL;
    if (++m->left < m->come)
        return;
    struct nccl_meeting **at = &c->meetings;
    while (*at != m)
        at = &(*at)->next;
    *at = m->next;
    rt_free(m);
}

/* ---- waiting --------------------------------------------------------------------------------- */

/* Bit mask of the ranks that a task waits for; 0: for nothing any more. */
static uint32_t missing(const struct nccl_clique *c, int rank, const struct nccl_wait *w) {
    uint32_t mask = 0;
    if (w->meeting) {
        for (int r = 0; r < c->size && !w->meeting->done; r++)
            mask |= (uint32_t)!w->meeting->op[r] << r;
        return mask;
    }
    for (int32_t n = 0; n < w->num_posts; n++) {
        const struct nccl_post *p = &w->posts[n];
        if (!p->done)
            mask |= 1u << (p->from == rank ? p->to : p->from);
    }
    return mask;
}

/* The ranks that a rank waits for, by way of others that wait too; its own bit: a circle. */
static uint32_t reachable(const struct nccl_clique *c, int rank) {
    uint32_t seen = 0, next = missing(c, rank, c->member[rank]->wait);
    while (next & ~seen) {
        int r = __builtin_ctz(next & ~seen);
        seen |= 1u << r;
        const struct ncclComm *other = c->member[r];
        if (other && other->wait)
            next |= missing(c, r, other->wait);
    }
    return seen;
}

static const char *list_ranks(uint32_t mask, char *out, size_t bytes) {
    size_t used = (size_t)snprintf(out, bytes, mask & (mask - 1) ? "ranks" : "rank");
    for (; mask && used < bytes; mask &= mask - 1)
        used += (size_t)snprintf(out + used, bytes - used, " %d", __builtin_ctz(mask));
    return out;
}

static void check_circle(struct ncclComm *comm, const struct nccl_op *op) {
    struct nccl_clique *c = comm->clique;
    char what[160], ranks[160];
    uint32_t all = reachable(c, comm->rank);
    if (!(all >> comm->rank & 1))
        return;
    nccl_fail_clique_locked(c, comm->rank, ncclInvalidUsage, ncclInvalidUsage,
                            "%s wait for each other: rank %d in %s; sends and receives that wait "
                            "for each other belong in one group",
                            list_ranks(all, ranks, sizeof ranks), comm->rank,
                            nccl_describe(op, what, sizeof what));
}

static void tell_of_wait(const struct ncclComm *comm, const struct nccl_op *op, uint32_t mask) {
    char what[160], ranks[160] = "nobody: it hangs as PTXVM_NCCL_HANG asks for";
    if (mask)
        list_ranks(mask, ranks, sizeof ranks);
    ptxvm_write_report("nccl: rank %d of %d has waited for %lld seconds in %s, operation %llu; "
                       "missing: %s",
                       comm->rank, comm->clique->size, (long long)nccl_patience_us() / 1000000,
                       nccl_describe(op, what, sizeof what), (unsigned long long)comm->num_ops,
                       ranks);
}

static bool is_done(const struct nccl_wait *w) {
    bool done = true;
    for (int32_t n = 0; n < w->num_posts; n++)
        done = done && w->posts[n].done;
    return w->meeting ? w->meeting->done : done;
}

/* Waits until it is done, or never. false: the communicator was aborted, which is what a clique
 * that failed waits for. */
static bool await(struct ncclComm *comm, const struct nccl_op *op, const struct nccl_wait *w,
                  bool never) {
    struct nccl_clique *c = comm->clique;
    int64_t since = nccl_now_us();
    bool told = false;
    comm->wait = w;
    while (comm->state != NCCL_ABORTED && (never || !is_done(w))) {
        uint32_t mask = missing(c, comm->rank, w);
        if (!c->failed)
            check_circle(comm, op);
        if (!c->failed && !told && nccl_now_us() - since > nccl_patience_us()) {
            tell_of_wait(comm, op, mask);
            told = true;
        }
        nccl_pause();
    }
    comm->wait = NULL;
    return comm->state != NCCL_ABORTED;
}

/* ---- sends and receives ---------------------------------------------------------------------- */

/* The oldest unmatched post of the other direction between the same two, taken off the list. */
static struct nccl_post *take_partner(struct nccl_clique *c, const struct nccl_post *p) {
    for (struct nccl_post **at = &c->posts; *at; at = &(*at)->next) {
        struct nccl_post *q = *at;
        if (q->from == p->from && q->to == p->to && q->op->kind != p->op->kind) {
            *at = q->next;
            return q;
        }
    }
    return NULL;
}

static void transfer(struct nccl_clique *c, struct nccl_post *a, struct nccl_post *b) {
    const struct nccl_post *send = a->op->kind == SEND ? a : b, *recv = a == send ? b : a;
    char x[160], y[160];
    if (send->op->count != recv->op->count || send->op->type != recv->op->type) {
        nccl_fail_clique_locked(c, recv->to, ncclInvalidUsage, ncclInvalidUsage,
                                "rank %d has %s, but rank %d has %s", send->from,
                                nccl_describe(send->op, x, sizeof x), recv->to,
                                nccl_describe(recv->op, y, sizeof y));
        return;
    }
    ptxvm_access_begin();
    memcpy(recv->op->recv, send->op->send, send->op->count * nccl_type_bytes(send->op->type));
    ptxvm_access_end();
    a->done = b->done = true;
    nccl_changed();
}

static void post(struct ncclComm *comm, struct nccl_post *p, const struct nccl_op *op) {
    struct nccl_clique *c = comm->clique;
    bool sends = op->kind == SEND;
    *p = (struct nccl_post){
        .op = op, .from = sends ? comm->rank : op->peer, .to = sends ? op->peer : comm->rank};
    struct nccl_post *partner = c->failed ? NULL : take_partner(c, p);
    if (partner) {
        transfer(c, p, partner);
        return;
    }
    struct nccl_post **at = &c->posts;
    while (*at)
        at = &(*at)->next;
    *at = p;
}

static void withdraw(struct nccl_clique *c, const struct nccl_post *p) {
    for (struct nccl_post **at = &c->posts; *at; at = &(*at)->next)
        if (*at == p) {
            *at = p->next;
            return;
        }
}

/* ---- tasks ----------------------------------------------------------------------------------- */

static bool meet(struct ncclComm *comm, const struct nccl_op *op) {
    struct nccl_clique *c = comm->clique;
    struct nccl_meeting *m = meeting_of(c, ++comm->num_meetings);
    m->op[comm->rank] = op;
    /* (Those who left before all had come were aborted: nobody will complete it.) */
    if (++m->come == c->size && m->left == 0 && !c->failed && check_fit(c, m)) {
        perform(m, c->size);
        m->done = true;
        nccl_changed();
    }
    struct nccl_wait w = {.meeting = m};
    bool ok = await(comm, op, &w, false);
    leave(c, m, comm->rank);
    return ok;
}

static bool strikes(const struct nccl_fault *f, const struct ncclComm *comm) {
    return f->on && (f->rank < 0 || f->rank == comm->rank) && f->op == comm->num_ops;
}

/* Faults that the switches ask for. false: the operation is not to be done. */
static bool check_faults(struct ncclComm *comm, const struct nccl_op *op) {
    struct nccl_clique *c = comm->clique;
    char what[160];
    comm->num_ops++;
    if (strikes(&c->hang, comm))
        return false;
    if (!strikes(&c->fail, comm))
        return true;
    nccl_fail_clique_locked(c, comm->rank, ncclSystemError, ncclRemoteError,
                            "rank %d fails in %s, operation %llu, as PTXVM_NCCL_FAIL asks for",
                            comm->rank, nccl_describe(op, what, sizeof what),
                            (unsigned long long)comm->num_ops);
    return false;
}

/* The posts come first, then the collectives, then the wait for the posts. */
static void run_locked(const struct nccl_task *t, struct nccl_post *posts) {
    struct ncclComm *comm = t->comm;
    struct nccl_wait w = {.posts = posts};
    bool ok = true;
    for (int32_t n = 0; n < t->num_ops && ok; n++) {
        if (!check_faults(comm, &t->ops[n]))
            ok = await(comm, &t->ops[n], &(struct nccl_wait){0}, true);
        else if (t->ops[n].kind == SEND || t->ops[n].kind == RECV)
            post(comm, &posts[w.num_posts++], &t->ops[n]);
    }
    for (int32_t n = 0; n < t->num_ops && ok; n++)
        if (t->ops[n].kind != SEND && t->ops[n].kind != RECV)
            ok = meet(comm, &t->ops[n]);
    if (ok && w.num_posts)
        await(comm, posts[0].op, &w, false);
    for (int32_t n = 0; n < w.num_posts; n++)
        withdraw(comm->clique, &posts[n]);
}

cudaError_t nccl_run(const void *args) {
    const struct nccl_task *t = *(struct nccl_task *const *)args;
    struct ncclComm *comm = t->comm;
    cudaError_t e = cudaSuccess;
    pthread_mutex_lock(&nccl_lock);
    if (comm->state == NCCL_DESTROYED) {
        nccl_misuse(comm, ncclInvalidUsage,
                    "%s runs in a stream after its communicator was destroyed",
                    nccl_kind_name(t->ops[0].kind));
        e = cudaErrorLaunchFailure;
    }
    for (int32_t n = 0; n < t->num_ops && e == cudaSuccess; n++)
        if (comm->state != NCCL_ABORTED && !check_buffers(comm, &t->ops[n])) {
            nccl_fail_clique_locked(comm->clique, comm->rank, ncclUnhandledCudaError,
                                    ncclRemoteError, "rank %d: a buffer is not what it was",
                                    comm->rank);
            e = cudaErrorIllegalAddress;
        }
    if (e == cudaSuccess && comm->state != NCCL_ABORTED) {
        struct nccl_post *posts = rt_calloc_array((size_t)t->num_ops, sizeof *posts);
        comm->running++;
        run_locked(t, posts);
        comm->running--;
        rt_free(posts);
        nccl_changed();
    }
    pthread_mutex_unlock(&nccl_lock);
    return e;
}
