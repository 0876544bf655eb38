/* Communicators of NCCL's stand-in: how they are made, asked and ended. Ranks are threads of one
 * process, or communicators of one thread; other processes are refused. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/ptxvm/nccl_vm.h"

enum { POLLS_BEFORE_LAUNCH = 2, PAUSE_US = 50000, LAZY_PAUSE_US = 1000 };

/* What an ncclUniqueId holds here. */
struct id {
    char magic[16];
    int64_t process, number;
};
static const char id_magic[16] = "ptxvm nccl id 1";

pthread_mutex_t nccl_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t change = PTHREAD_COND_INITIALIZER;
static uint64_t num_changes;
static struct ncclComm *comms;
static struct nccl_clique *cliques;
static int64_t last_id;
static _Thread_local char last_error[NCCL_TEXT];

/* ---- waiting --------------------------------------------------------------------------------- */

void nccl_changed(void) {
    num_changes++;
    pthread_cond_broadcast(&change);
}

int64_t nccl_now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

int64_t nccl_patience_us(void) {
    const char *s = getenv("PTXVM_SPIN");
    int64_t seconds = s ? atoll(s) : 0;
    return (seconds > 0 ? seconds : 10) * 1000000;
}

static bool has_lazy_streams(void) {
    const char *s = getenv("PTXVM_STREAMS");
    return s && !strcmp(s, "lazy");
}

void nccl_pause(void) {
    uint64_t before = num_changes;
    bool lazy = has_lazy_streams();
    if (lazy) { /* its lock comes before this one */
        pthread_mutex_unlock(&nccl_lock);
        ptxvm_demand_all();
        pthread_mutex_lock(&nccl_lock);
        if (num_changes != before)
            return;
    }
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    int64_t ns = t.tv_nsec + (int64_t)(lazy ? LAZY_PAUSE_US : PAUSE_US) * 1000;
    t.tv_sec += ns / 1000000000;
    t.tv_nsec = ns % 1000000000;
    pthread_cond_timedwait(&change, &nccl_lock, &t);
}

/* ---- errors ---------------------------------------------------------------------------------- */

const char *ncclGetErrorString(ncclResult_t result) {
    static const char *const texts[] = {"no error",
                                        "unhandled cuda error",
                                        "unhandled system error",
                                        "internal error",
                                        "invalid argument",
                                        "invalid usage",
                                        "remote process exited or there was a network error",
                                        "NCCL operation in progress"};
    return (size_t)result < sizeof texts / sizeof *texts ? texts[result] : "unknown result code";
}

ncclResult_t nccl_misuse(struct ncclComm *comm, ncclResult_t result, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(last_error, sizeof last_error, fmt, ap);
    va_end(ap);
    ptxvm_write_report("nccl: %s", last_error);
    if (comm)
        memcpy(comm->error, last_error, sizeof comm->error);
    return result;
}

void nccl_fail_clique_locked(struct nccl_clique *c, int culprit, ncclResult_t result,
                             ncclResult_t remote, const char *fmt, ...) {
    char text[NCCL_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    ptxvm_write_report("nccl: %s", text);
    c->failed = true;
    for (int r = 0; r < c->size; r++) {
        struct ncclComm *comm = c->member[r];
        if (!comm || comm->async != ncclSuccess)
            continue;
        comm->async = r == culprit ? result : remote;
        memcpy(comm->error, text, sizeof text);
    }
    nccl_changed();
}

static bool is_known(const struct ncclComm *handle) {
    const struct ncclComm *c = comms;
    while (c && c != handle)
        c = c->next;
    return c != NULL;
}

bool nccl_usable_locked(const char *call, ncclComm_t comm) {
    if (!is_known(comm)) {
        nccl_misuse(NULL, ncclInvalidArgument, "%s: %p is no communicator", call, (void *)comm);
        return false;
    }
    if (comm->state == NCCL_ABORTED || comm->state == NCCL_DESTROYED) {
        nccl_misuse(NULL, ncclInvalidArgument, "%s: the communicator of rank %d was %s", call,
                    comm->rank, comm->state == NCCL_ABORTED ? "aborted" : "destroyed");
        return false;
    }
    return true;
}

/* The text may also be another thread's, where it is the communicator's. */
const char *ncclGetLastError(ncclComm_t comm) {
    static _Thread_local char text[NCCL_TEXT];
    pthread_mutex_lock(&nccl_lock);
    memcpy(text, is_known(comm) && comm->error[0] ? comm->error : last_error, sizeof text);
    pthread_mutex_unlock(&nccl_lock);
    return text;
}

ncclResult_t ncclGetVersion(int *version) {
    if (!version)
        return ncclInvalidArgument;
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

/* ---- cliques --------------------------------------------------------------------------------- */

static struct nccl_fault read_fault(const char *variable) {
    struct nccl_fault f = {.rank = -1};
    const char *s = getenv(variable), *at;
    if (!s || !*s)
        return f;
    f.on = true;
    if ((at = strstr(s, "rank=")))
        f.rank = atoi(at + 5);
    if ((at = strstr(s, "op=")))
        f.op = strtoull(at + 3, NULL, 10);
    if (!f.op) {
        fprintf(stderr, "ptxvm: %s=%s is not known; use rank=3,op=17\n", variable, s);
        exit(1);
    }
    return f;
}

/* PTXVM_NCCL_INIT=fail, hang, or one of them for a rank: fail,rank=2 */
static struct nccl_fault read_init_fault(const char *word) {
    struct nccl_fault f = {.rank = -1};
    const char *s = getenv("PTXVM_NCCL_INIT"), *at;
    f.on = s && !strncmp(s, word, strlen(word));
    if (f.on && (at = strstr(s, "rank=")))
        f.rank = atoi(at + 5);
    return f;
}

static struct nccl_clique *clique_of(const ncclUniqueId *id, int size) {
    struct nccl_clique *c = cliques;
    while (c && memcmp(&c->id, id, sizeof *id) != 0)
        c = c->next;
    if (c)
        return c;
    c = rt_calloc(sizeof *c);
    c->id = *id;
    c->size = size;
    c->fail = read_fault("PTXVM_NCCL_FAIL");
    c->hang = read_fault("PTXVM_NCCL_HANG");
    c->init_fail = read_init_fault("fail");
    c->init_hang = read_init_fault("hang");
    c->next = cliques;
    cliques = c;
    return c;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    if (!id)
        return nccl_misuse(NULL, ncclInvalidArgument, "ncclGetUniqueId: uniqueId is NULL");
    struct id own = {.process = getpid()};
    memcpy(own.magic, id_magic, sizeof own.magic);
    pthread_mutex_lock(&nccl_lock);
    own.number = ++last_id;
    pthread_mutex_unlock(&nccl_lock);
    memset(id, 0, sizeof *id);
    memcpy(id, &own, sizeof own);
    return ncclSuccess;
}

/* ---- joining --------------------------------------------------------------------------------- */

static ncclResult_t check_id(const ncclUniqueId *id) {
    struct id own;
    memcpy(&own, id, sizeof own);
    if (memcmp(own.magic, id_magic, sizeof own.magic) != 0)
        return nccl_misuse(NULL, ncclInvalidArgument,
                           "ncclCommInitRank: the id is not one of ncclGetUniqueId");
    if (own.process != getpid())
        return nccl_misuse(NULL, ncclSystemError,
                           "ncclCommInitRank: the id is of process %lld; the stand-in connects "
                           "ranks of one process only",
                           (long long)own.process);
    return ncclSuccess;
}

static ncclResult_t check_place(const struct nccl_clique *c, int size, int rank, int device) {
    if (c->size != size)
        return nccl_misuse(NULL, ncclInvalidArgument,
                           "ncclCommInitRank: rank %d says that there are %d ranks, others say %d",
                           rank, size, c->size);
    if (c->member[rank])
        return nccl_misuse(NULL, ncclInvalidUsage, "ncclCommInitRank: rank %d has joined before",
                           rank);
    for (int r = 0; r < size; r++)
        if (c->member[r] && c->member[r]->device == device)
            return nccl_misuse(NULL, ncclInvalidUsage,
                               "ncclCommInitRank: duplicate GPU: ranks %d and %d are both on "
                               "device %d",
                               r, rank, device);
    return ncclSuccess;
}

static bool of_rank(const struct nccl_fault *f, int rank) {
    return f->on && (f->rank < 0 || f->rank == rank);
}

static void add_comm(struct nccl_clique *c, struct ncclComm *comm) {
    comm->clique = c;
    comm->next = comms;
    comms = comm;
    if (of_rank(&c->init_fail, comm->rank)) {
        comm->async = ncclSystemError;
        nccl_misuse(comm, ncclSystemError, "rank %d cannot join, as PTXVM_NCCL_INIT asks for",
                    comm->rank);
    } else if (!of_rank(&c->init_hang, comm->rank)) {
        c->member[comm->rank] = comm;
        c->joined++;
        nccl_changed();
    }
}

/* Has everybody come? */
static bool has_started(struct ncclComm *comm) {
    if (comm->state == NCCL_STARTING && comm->async == ncclSuccess &&
        comm->clique->joined == comm->clique->size && comm->clique->member[comm->rank] == comm)
        comm->state = NCCL_READY;
    return comm->state != NCCL_STARTING || comm->async != ncclSuccess;
}

static void tell_who_is_missing(const struct ncclComm *comm) {
    const struct nccl_clique *c = comm->clique;
    char ranks[160] = "";
    size_t used = 0;
    for (int r = 0; r < c->size && used < sizeof ranks; r++)
        if (!c->member[r])
            used += (size_t)snprintf(ranks + used, sizeof ranks - used, " %d", r);
    ptxvm_write_report("nccl: rank %d of %d waits in ncclCommInitRank; missing ranks:%s",
                       comm->rank, c->size, ranks);
}

ncclResult_t nccl_await_start(struct ncclComm *comm) {
    if (!comm->blocking)
        return ncclInProgress;
    int64_t since = nccl_now_us();
    bool told = false;
    pthread_mutex_lock(&nccl_lock);
    while (!has_started(comm)) {
        if (!told && nccl_now_us() - since > nccl_patience_us()) {
            tell_who_is_missing(comm);
            told = true;
        }
        nccl_pause();
    }
    ncclResult_t e = comm->async;
    pthread_mutex_unlock(&nccl_lock);
    return e;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config) {
    int device;
    if (!out || size < 1 || rank < 0 || rank >= size)
        return nccl_misuse(NULL, ncclInvalidArgument, "ncclCommInitRank: rank %d of %d", rank,
                           size);
    if (size > NCCL_MAX_RANKS)
        return nccl_misuse(NULL, ncclInvalidArgument, "the stand-in has at most %d ranks, not %d",
                           NCCL_MAX_RANKS, size);
    if (config && config->magic != 0xcafebeef)
        return nccl_misuse(NULL, ncclInvalidArgument,
                           "ncclCommInitRankConfig: the config is not NCCL_CONFIG_INITIALIZER's");
    if (cudaGetDevice(&device) != cudaSuccess)
        return ncclUnhandledCudaError;
    ncclResult_t e = check_id(&id);
    if (e != ncclSuccess)
        return e;
    pthread_mutex_lock(&nccl_lock);
    struct nccl_clique *c = clique_of(&id, size);
    struct ncclComm *comm = NULL;
    e = check_place(c, size, rank, device);
    if (e == ncclSuccess) {
        comm = rt_calloc(sizeof *comm);
        comm->rank = rank;
        comm->device = device;
        comm->blocking = !config || config->blocking != 0;
        add_comm(c, comm);
    }
    pthread_mutex_unlock(&nccl_lock);
    *out = comm;
    if (e != ncclSuccess)
        return e;
    if (!nccl_in_group())
        return nccl_await_start(comm);
    nccl_group_add_comm(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t *comm, int size, ncclUniqueId id, int rank) {
    return ncclCommInitRankConfig(comm, size, id, rank, NULL);
}

ncclResult_t ncclCommInitAll(ncclComm_t *comm, int size, const int *devices) {
    ncclUniqueId id;
    int device;
    ncclResult_t e = ncclGetUniqueId(&id);
    if (!comm || size < 1 || cudaGetDevice(&device) != cudaSuccess)
        return nccl_misuse(NULL, ncclInvalidArgument, "ncclCommInitAll: %d devices", size);
    ncclGroupStart();
    for (int r = 0; r < size && e == ncclSuccess; r++)
        e = cudaSetDevice(devices ? devices[r] : r) == cudaSuccess
                ? ncclCommInitRank(&comm[r], size, id, r)
                : ncclUnhandledCudaError;
    cudaSetDevice(device);
    ncclResult_t end = ncclGroupEnd();
    return e != ncclSuccess ? e : end;
}

/* ---- asking ---------------------------------------------------------------------------------- */

/* Nothing of a communicator that does not block is done before the second question after it. */
static bool is_too_early(struct ncclComm *comm) {
    bool pending = comm->state == NCCL_STARTING || comm->deferred;
    return pending && ++comm->polls < POLLS_BEFORE_LAUNCH;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *async) {
    if (!async)
        return ncclInvalidArgument;
    pthread_mutex_lock(&nccl_lock);
    if (!nccl_usable_locked("ncclCommGetAsyncError", comm)) {
        pthread_mutex_unlock(&nccl_lock);
        return ncclInvalidArgument;
    }
    bool busy = is_too_early(comm) || !has_started(comm) ||
                (comm->state == NCCL_FINALIZED && comm->outstanding > 0);
    bool launch = !busy && comm->deferred;
    *async = comm->async != ncclSuccess ? comm->async : busy ? ncclInProgress : ncclSuccess;
    pthread_mutex_unlock(&nccl_lock);
    if (launch) {
        ncclResult_t e = nccl_launch_deferred(comm);
        *async = *async == ncclSuccess ? e : *async;
    }
    return ncclSuccess;
}

static ncclResult_t ask(const char *call, ncclComm_t comm, int *out, int (*get)(ncclComm_t comm)) {
    pthread_mutex_lock(&nccl_lock);
    bool ok = out && nccl_usable_locked(call, comm);
    if (ok)
        *out = get(comm);
    pthread_mutex_unlock(&nccl_lock);
    return ok ? ncclSuccess : ncclInvalidArgument;
}

static int get_size(ncclComm_t comm) {
    return comm->clique->size;
}

static int get_device(ncclComm_t comm) {
    return comm->device;
}

static int get_rank(ncclComm_t comm) {
    return comm->rank;
}

ncclResult_t ncclCommCount(const ncclComm_t comm, int *count) {
    return ask("ncclCommCount", comm, count, get_size);
}

ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int *device) {
    return ask("ncclCommCuDevice", comm, device, get_device);
}

ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *rank) {
    return ask("ncclCommUserRank", comm, rank, get_rank);
}

/* ---- ending ---------------------------------------------------------------------------------- */

/* Its tasks are done; those in graphs do not count. */
static void await_tasks(struct ncclComm *comm) {
    while (comm->outstanding > 0 && comm->state != NCCL_ABORTED)
        nccl_pause();
}

static ncclResult_t end(const char *call, ncclComm_t comm, enum nccl_state state, bool wait) {
    pthread_mutex_lock(&nccl_lock);
    if (!nccl_usable_locked(call, comm)) {
        pthread_mutex_unlock(&nccl_lock);
        return ncclInvalidArgument;
    }
    if (comm->state != NCCL_READY && comm->state != NCCL_FINALIZED) {
        nccl_misuse(comm, ncclInvalidUsage, "%s: rank %d is not complete yet", call, comm->rank);
        pthread_mutex_unlock(&nccl_lock);
        return ncclInvalidUsage;
    }
    if (comm->state == NCCL_READY)
        comm->state = NCCL_FINALIZED;
    if (wait)
        await_tasks(comm);
    if (comm->state == NCCL_FINALIZED)
        comm->state = state;
    ncclResult_t e = wait ? ncclSuccess : ncclInProgress;
    pthread_mutex_unlock(&nccl_lock);
    return e;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    return end("ncclCommFinalize", comm, NCCL_FINALIZED, !comm || comm->blocking);
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    return comm ? end("ncclCommDestroy", comm, NCCL_DESTROYED, true) : ncclSuccess;
}

/* Tasks that wait end without an effect, and so will those that are still in their streams. */
ncclResult_t ncclCommAbort(ncclComm_t comm) {
    if (!comm)
        return ncclSuccess;
    pthread_mutex_lock(&nccl_lock);
    if (!nccl_usable_locked("ncclCommAbort", comm)) {
        pthread_mutex_unlock(&nccl_lock);
        return ncclInvalidArgument;
    }
    comm->state = NCCL_ABORTED;
    struct nccl_task *deferred = comm->deferred;
    comm->deferred = NULL;
    nccl_changed();
    while (comm->running)
        nccl_pause();
    if (comm->clique->member[comm->rank] == comm)
        comm->clique->member[comm->rank] = NULL;
    pthread_mutex_unlock(&nccl_lock);
    for (struct nccl_task *next; deferred; deferred = next) {
        next = deferred->next;
        nccl_task_free(deferred);
    }
    return ncclSuccess;
}
