/* group_mpi: the engine of a group over MPI.
 *
 * Data and life each have a communicator of their own. All calls are made under one lock and none
 * of them blocks, so MPI_THREAD_SERIALIZED is enough and a process that has died cannot hold the
 * others: they test their messages, and give up when the group has failed. Data goes in messages
 * of at most MESSAGE_BYTES, whose tag is the call that they belong to.
 *
 * MPI_Finalize is called only when everybody leaves in order. After a failure a process ends
 * without it, upon which mpirun ends those that are left.
 */
#include <mpi.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/clock.h"
#include "host/group_internal.h"
#include "host/mem.h"

enum { MESSAGE_BYTES = 1 << 20, LIFE_TAG = 1 };
enum { NUM_SLOTS = 4 * GROUP_MAX, FLUSH_US = 100000 };
/* How long after goodbye a message that was sent before it may still arrive. */
enum { LEFT_GRACE_US = 200000 };

struct mpi {
    pthread_mutex_t lock; /* around every call of MPI */
    MPI_Comm data, life;
    MPI_Request request[2 * GROUP_MAX]; /* of the exchange's ops */
    /* Life messages under way. */
    struct slot {
        struct group_life m;
        MPI_Request request;
    } slot[NUM_SLOTS];
};

static int mpi_error(int code, const char *what, struct error *error) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int len = 0;
    MPI_Error_string(code, text, &len);
    return error_set(error, ERR_INTERNAL, "MPI: %s: %s", what, text);
}

/* ---- data ------------------------------------------------------------------------------------ */

/* Starts the next message of an op; a call of MPI, so with the lock held. */
static int start_message(struct mpi *m, enum group_call call, const struct group_op *op,
                         MPI_Request *request) {
    size_t rest = op->bytes - op->done;
    int n = rest < MESSAGE_BYTES ? (int)rest : MESSAGE_BYTES;
    char *data = (char *)op->data + op->done;
    return op->send ? MPI_Isend(data, n, MPI_BYTE, op->peer, (int)call, m->data, request)
                    : MPI_Irecv(data, n, MPI_BYTE, op->peer, (int)call, m->data, request);
}

/* Moves one op on as far as it goes: *moved is set when it did. */
static int progress(struct mpi *m, enum group_call call, struct group_op *op, MPI_Request *request,
                    bool *moved) {
    while (!op->complete) {
        MPI_Status status;
        int done = 0, n = 0;
        int rc = MPI_Test(request, &done, &status);
        if (rc != MPI_SUCCESS || !done)
            return rc;
        *moved = true;
        size_t rest = op->bytes - op->done;
        n = rest < MESSAGE_BYTES ? (int)rest : MESSAGE_BYTES;
        if (!op->send) {
            int got = 0;
            MPI_Get_count(&status, MPI_BYTE, &got);
            if (got != n)
                return MPI_ERR_COUNT; /* the processes differ in what they do */
        }
        op->done += (size_t)n;
        op->complete = op->done == op->bytes;
        if (!op->complete && (rc = start_message(m, call, op, request)) != MPI_SUCCESS)
            return rc;
    }
    return MPI_SUCCESS;
}

/* One look at every message; returns how many are incomplete, or a negative code. */
static int progress_all(struct group *g, enum group_call call, struct group_op *ops,
                        int32_t num_ops, bool *moved, struct error *error) {
    struct mpi *m = g->state;
    int open = 0;
    *moved = false;
    for (int32_t i = 0; i < num_ops; i++) {
        if (ops[i].complete)
            continue;
        pthread_mutex_lock(&m->lock);
        int rc = progress(m, call, &ops[i], &m->request[i], moved);
        pthread_mutex_unlock(&m->lock);
        if (rc != MPI_SUCCESS) {
            struct error why;
            mpi_error(rc, group_call_name(call), &why);
            group_fail(g, "%s: %.300s", group_name(g, ops[i].peer).text, why.text);
            return group_failure(g, error);
        }
        open += !ops[i].complete;
    }
    return open;
}

static int start_all(struct group *g, enum group_call call, struct group_op *ops, int32_t num_ops,
                     struct error *error) {
    struct mpi *m = g->state;
    int rc = MPI_SUCCESS;
    CHECK(num_ops <= 2 * GROUP_MAX, "%d messages", num_ops);
    for (int32_t i = 0; i < num_ops; i++)
        m->request[i] = MPI_REQUEST_NULL;
    pthread_mutex_lock(&m->lock);
    for (int32_t i = 0; i < num_ops && rc == MPI_SUCCESS; i++)
        rc = start_message(m, call, &ops[i], &m->request[i]);
    pthread_mutex_unlock(&m->lock);
    return rc == MPI_SUCCESS ? 0 : mpi_error(rc, group_call_name(call), error);
}

/* The longer nothing comes the less often we look: first without a pause, then with naps. A look
 * costs about 25 us, so an idle process takes less than 1 % of a core. */
static void nap(int64_t idle_us) {
    long us = idle_us < 10000 ? 100 : idle_us < 50000 ? 500 : idle_us < 500000 ? 2000 : 5000;
    if (idle_us < 2000)
        sched_yield();
    else
        nanosleep(&(struct timespec){.tv_nsec = us * 1000}, NULL);
}

/* The first op that waits for somebody who has left, or NULL. */
static const struct group_op *find_left(const struct group *g, const struct group_op *ops,
                                        int32_t num_ops) {
    for (int32_t i = 0; i < num_ops; i++)
        if (!ops[i].complete && atomic_load(&g->left[ops[i].peer]))
            return &ops[i];
    return NULL;
}

static int finish_all(struct group *g, enum group_call call, struct group_op *ops, int32_t num_ops,
                      int64_t wait_us, struct error *error) {
    int64_t moved_us = clock_us();
    bool moved;
    int rc;
    while ((rc = progress_all(g, call, ops, num_ops, &moved, error)) > 0) {
        int64_t now = clock_us(), idle_us = now - moved_us;
        const struct group_op *left = find_left(g, ops, num_ops);
        if (atomic_load(&g->failed))
            return group_failure(g, error);
        if (moved)
            moved_us = now;
        else if (left && idle_us > LEFT_GRACE_US)
            return group_peer_left(g, call, left->peer, error);
        else if (wait_us >= 0 && idle_us > wait_us)
            return group_waited(g, call, ops, num_ops, wait_us, error);
        else
            nap(idle_us);
    }
    return rc;
}

/* Takes back what has not begun to arrive. */
static void cancel_receives(struct mpi *m, struct group_op *ops, int32_t num_ops) {
    pthread_mutex_lock(&m->lock);
    for (int32_t i = 0; i < num_ops; i++)
        if (!ops[i].send && m->request[i] != MPI_REQUEST_NULL) {
            MPI_Cancel(&m->request[i]);
            MPI_Request_free(&m->request[i]);
        }
    pthread_mutex_unlock(&m->lock);
}

static int mpi_exchange(struct group *g, enum group_call call, struct group_op *ops,
                        int32_t num_ops, int64_t wait_us, struct error *error) {
    int rc = start_all(g, call, ops, num_ops, error);
    if (rc == 0)
        rc = finish_all(g, call, ops, num_ops, wait_us, error);
    if (rc != 0)
        cancel_receives(g->state, ops, num_ops);
    return rc;
}

static void mpi_interrupt(struct group *g) {
    (void)g; /* an exchange looks at g->failed itself */
}

/* ---- life ------------------------------------------------------------------------------------ */

/* Is the slot's message gone? */
static bool slot_free(struct mpi *m, int i) {
    int done = 1;
    pthread_mutex_lock(&m->lock);
    if (m->slot[i].request != MPI_REQUEST_NULL &&
        MPI_Test(&m->slot[i].request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS)
        done = 0;
    pthread_mutex_unlock(&m->lock);
    return done != 0;
}

static void mpi_life_send(struct group *g, int32_t to, const struct group_life *message) {
    struct mpi *m = g->state;
    int i = 0;
    while (i < NUM_SLOTS && !slot_free(m, i))
        i++;
    if (i == NUM_SLOTS)
        return; /* nobody has listened for long */
    m->slot[i].m = *message;
    pthread_mutex_lock(&m->lock);
    MPI_Isend(&m->slot[i].m, sizeof *message, MPI_BYTE, to, LIFE_TAG, m->life, &m->slot[i].request);
    pthread_mutex_unlock(&m->lock);
}

static bool mpi_life_receive(struct group *g, struct group_life *message) {
    struct mpi *m = g->state;
    MPI_Status status;
    int there = 0;
    pthread_mutex_lock(&m->lock);
    if (MPI_Iprobe(MPI_ANY_SOURCE, LIFE_TAG, m->life, &there, &status) != MPI_SUCCESS)
        there = 0;
    if (there && MPI_Recv(message, sizeof *message, MPI_BYTE, status.MPI_SOURCE, LIFE_TAG, m->life,
                          MPI_STATUS_IGNORE) != MPI_SUCCESS)
        there = 0;
    pthread_mutex_unlock(&m->lock);
    if (there) {
        message->from = status.MPI_SOURCE;
        message->text[sizeof message->text - 1] = '\0';
        return true;
    }
    nanosleep(&(struct timespec){.tv_nsec = GROUP_LIFE_TICK_US * 1000L}, NULL);
    return false;
}

/* ---- lifecycle ------------------------------------------------------------------------------- */

static int init_mpi(struct error *error) {
    int initialized = 0, finalized = 0, provided = 0;
    MPI_Initialized(&initialized);
    MPI_Finalized(&finalized);
    if (initialized || finalized)
        return error_set(error, ERR_INTERNAL, "MPI can be started once in a process only");
    int rc = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided);
    if (rc != MPI_SUCCESS)
        return mpi_error(rc, "MPI_Init_thread", error);
    if (provided < MPI_THREAD_SERIALIZED)
        return error_set(error, ERR_UNSUPPORTED,
                         "this MPI cannot be called by two threads in turn (level %d of thread "
                         "support, %d is needed)",
                         provided, MPI_THREAD_SERIALIZED);
    return 0;
}

static int mpi_join(struct group *g, const struct group_env *env, int64_t deadline_us,
                    struct error *error) {
    (void)env;
    (void)deadline_us;
    int rc = init_mpi(error), rank = 0, size = 0;
    if (rc != 0)
        return rc;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (size > GROUP_MAX)
        return error_set(error, ERR_CONFIG, "MPI has started %d processes, at most %d", size,
                         GROUP_MAX);
    struct mpi *m = xcalloc(1, sizeof *m);
    pthread_mutex_init(&m->lock, NULL);
    for (int i = 0; i < NUM_SLOTS; i++)
        m->slot[i].request = MPI_REQUEST_NULL;
    g->rank = rank;
    g->size = size;
    g->state = m;
    /* Communicators of our own take over the error handler. */
    if ((rc = MPI_Comm_dup(MPI_COMM_WORLD, &m->data)) != MPI_SUCCESS ||
        (rc = MPI_Comm_dup(MPI_COMM_WORLD, &m->life)) != MPI_SUCCESS)
        return mpi_error(rc, "MPI_Comm_dup", error);
    return 0;
}

/* A process that has failed ends soon: what it has said should be on its way by then. */
static void flush_slots(struct mpi *m) {
    int64_t until_us = clock_us() + FLUSH_US;
    for (int i = 0; i < NUM_SLOTS; i++)
        while (!slot_free(m, i) && clock_us() < until_us)
            sched_yield();
}

static void mpi_close(struct group *g, bool in_order) {
    struct mpi *m = g->state;
    if (!m)
        return;
    if (!in_order) {
        flush_slots(m);
        return; /* MPI may still look at the messages under way */
    }
    for (int i = 0; i < NUM_SLOTS; i++)
        slot_free(m, i);
    MPI_Comm_free(&m->data);
    MPI_Comm_free(&m->life);
    MPI_Finalize();
    pthread_mutex_destroy(&m->lock);
    free(m);
}

const struct group_engine *group_mpi_engine(void) {
    static const struct group_engine engine = {
        .name = "MPI",
        .mesh = true,
        .join = mpi_join,
        .exchange = mpi_exchange,
        .life_send = mpi_life_send,
        .life_receive = mpi_life_receive,
        .interrupt = mpi_interrupt,
        .close = mpi_close,
        .waits_to_leave = true,
    };
    return &engine;
}
