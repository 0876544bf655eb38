/* nccl_vm: NCCL over the CUDA runtime's stand-in; what its files share.
 *
 *   nccl.c         communicators: made, asked, ended; the texts of errors
 *   nccl_group.c   calls of operations, groups of them, their way into streams
 *   nccl_meet.c    the operations themselves: ranks come together, and the last one does the work
 *   nccl_reduce.c  sums and the like over all element types
 *
 * The ranks of a communicator are one clique. An operation runs as a task of its stream, which
 * waits until the streams of all other ranks have reached theirs; whoever comes last moves the data
 * of all. So the order is that of the streams, also in graphs, and the host never waits.
 *
 * One lock guards everything here. Tasks hold it while they compute, not while they wait.
 */
#pragma once

#include <nccl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "tests/ptxvm/rt_alloc.h"
#include "tests/ptxvm/rt_hooks.h"

enum { NCCL_MAX_RANKS = 32, NCCL_TEXT = 600 };

/* ---- operations ------------------------------------------------------------------------------ */

enum nccl_kind { ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, BROADCAST, REDUCE, SEND, RECV };

struct nccl_op {
    enum nccl_kind kind;
    const void *send;
    void *recv;
    size_t count; /* as the call has it: of a rank's part for ALL_GATHER and REDUCE_SCATTER */
    ncclDataType_t type;
    ncclRedOp_t op;
    int peer; /* of SEND and RECV; the root of BROADCAST and REDUCE */
};

/* The operations of a group for one communicator and stream, which progress together. */
struct nccl_task {
    struct nccl_task *next; /* among those that a communicator has deferred */
    ncclComm_t comm;
    cudaStream_t stream;
    bool counted; /* its communicator's end waits for it; not so in graphs */
    int32_t num_ops, cap_ops;
    struct nccl_op *ops; /* owned */
};

/* ---- ranks ----------------------------------------------------------------------------------- */

enum nccl_state { NCCL_STARTING, NCCL_READY, NCCL_FINALIZED, NCCL_ABORTED, NCCL_DESTROYED };

struct nccl_meeting;
struct nccl_post;

/* What a task waits for. */
struct nccl_wait {
    const struct nccl_meeting *meeting; /* NULL: posts */
    struct nccl_post *posts;            /* [num_posts] */
    int32_t num_posts;
};

/* A handle is never used again, so that a late use can be named. */
struct ncclComm {
    struct ncclComm *next; /* of all that there ever were */
    struct nccl_clique *clique;
    int rank, device;
    bool blocking;
    enum nccl_state state;
    ncclResult_t async;           /* ncclSuccess until something goes wrong */
    char error[NCCL_TEXT];        /* of the last failure */
    uint64_t num_ops;             /* that its tasks have come to */
    uint64_t num_meetings;        /* of these, collective ones */
    int32_t outstanding, running; /* tasks: not done; inside of nccl_run */
    const struct nccl_wait *wait; /* of the task that waits; NULL: none does */
    struct nccl_task *deferred;   /* not yet in their streams: see nccl_launch_deferred */
    int32_t polls;                /* since they were deferred */
};

/* A switch such as PTXVM_NCCL_FAIL="rank=3,op=17". */
struct nccl_fault {
    bool on;
    int rank;    /* -1: every one */
    uint64_t op; /* counted from 1; 0: none in particular */
};

struct nccl_clique {
    struct nccl_clique *next;
    ncclUniqueId id;
    int size, joined;
    struct ncclComm *member[NCCL_MAX_RANKS];
    bool failed; /* no operation ends any more, but by abort */
    struct nccl_meeting *meetings;
    struct nccl_post *posts; /* unmatched, in the order they came */
    struct nccl_fault fail, hang, init_fail, init_hang;
};

extern pthread_mutex_t nccl_lock;
/* Wakes everybody who waits for another rank. The lock is held. */
void nccl_changed(void);
/* Waits for a change, at most for some milliseconds: with lazy streams it may take this thread to
 * let the others run. The lock is held, but not meanwhile. */
void nccl_pause(void);
int64_t nccl_now_us(void);
/* Microseconds after which somebody who waits says for whom: PTXVM_SPIN. */
int64_t nccl_patience_us(void);

/* Reports what a call does wrong, keeps it for ncclGetLastError and returns the code. comm may be
 * NULL. */
ncclResult_t nccl_misuse(struct ncclComm *comm, ncclResult_t result, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* The communicator of a handle that may be used; else false, after a report that names the call. */
bool nccl_usable_locked(const char *call, ncclComm_t comm);
/* All ranks get an asynchronous error, culprit (-1: none) result and the others remote, and their
 * operations do not end any more. */
void nccl_fail_clique_locked(struct nccl_clique *c, int culprit, ncclResult_t result,
                             ncclResult_t remote, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* Inside of a group a communicator is complete only at its end. */
bool nccl_in_group(void);
void nccl_group_add_comm(struct ncclComm *comm);
/* Blocks until all of them are complete, if they block at all. */
ncclResult_t nccl_await_start(struct ncclComm *comm);

/* ---- tasks ----------------------------------------------------------------------------------- */

/* Puts the deferred tasks of a communicator that does not block into their streams. The real
 * library does this on a thread of its own some time after the call: until ncclCommGetAsyncError
 * has said that nothing is in progress, they may come after what the program enqueues itself. */
ncclResult_t nccl_launch_deferred(struct ncclComm *comm);
/* What ptxvm_enqueue runs; args is a struct nccl_task **. */
cudaError_t nccl_run(const void *args);
void nccl_task_free(struct nccl_task *t);

const char *nccl_kind_name(enum nccl_kind kind);
/* "ncclAllReduce of 100 float32, sum". */
const char *nccl_describe(const struct nccl_op *op, char *out, size_t bytes);
/* Bytes that a rank of a clique sends from and receives into; 0 where it does not. */
size_t nccl_send_bytes(const struct nccl_op *op, int rank, int size);
size_t nccl_recv_bytes(const struct nccl_op *op, int rank, int size);

/* ---- arithmetic ------------------------------------------------------------------------------ */

size_t nccl_type_bytes(ncclDataType_t type); /* 0: not supported */
const char *nccl_type_name(ncclDataType_t type);
const char *nccl_op_name(ncclRedOp_t op);
/* to[i] = the reduction of from[0..size)[i], starting with rank first and going round as a ring
 * does, rounded to the type at each hop. */
void nccl_reduce(void *to, const void *const *from, int size, int first, size_t count,
                 ncclDataType_t type, ncclRedOp_t op);
