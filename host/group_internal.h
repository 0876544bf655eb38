/* group_internal: what the files of the group share. See group.h for what a group is.
 *
 *   group.c              joining, leaving, describing
 *   group_env.c          which engine, from the environment
 *   group_collectives.c  collectives and commands, made of exchanges
 *   group_life.c         signs of life, failure
 *   group_tcp.c          engine: sockets (group_tcp_join.c: how they are made)
 *   group_mpi.c          engine: MPI (group_mpi_none.c in builds without it)
 *
 * An engine moves messages between two processes on two channels that do not disturb each other:
 * data, driven by the thread that calls collectives, and life, driven by the group's own thread.
 * On both, process 0 talks with all others (its neighbours) and they with process 0 alone; with
 * `mesh` any two may exchange data.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "host/group.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { GROUP_HOST_BYTES = 64, GROUP_TEXT_BYTES = 504, GROUP_LIFE_TICK_US = 20000 };
enum { GROUP_PIECE = 32768 }; /* doubles that an all-reduce handles at a time, 256 KiB */

/* ---- environment ----------------------------------------------------------------------------- */

enum group_kind { GROUP_ALONE, GROUP_TCP, GROUP_MPI };

struct group_env {
    enum group_kind kind;
    int32_t rank, size;              /* TCP */
    const char *addr, *port;         /* TCP; owned by the environment */
    const char *secret;              /* "" if none; owned by the environment */
    char launcher[GROUP_HOST_BYTES]; /* MPI: the variable that says so */
};

int group_env_read(struct group_env *out, struct error *error);

/* ---- engines --------------------------------------------------------------------------------- */

/* Which call a message belongs to: processes that differ in the order of their calls are told. */
enum group_call {
    CALL_ALL_REDUCE = 1,
    CALL_ALL_GATHER,
    CALL_BROADCAST,
    CALL_GATHER,
    CALL_COMMAND,
};

/* One message to or from a peer; both sides state the same number of bytes. */
struct group_op {
    int32_t peer;
    bool send;
    void *data;    /* sent from or received into; borrowed */
    size_t bytes;  /* 0 is a message too */
    size_t done;   /* engine: bytes moved */
    bool complete; /* engine */
    size_t headed; /* TCP: bytes of the header moved */
};

enum group_life_kind { LIFE_ALIVE = 1, LIFE_LEAVE, LIFE_FAILED, LIFE_GONE /* never sent */ };

struct group_life {
    uint32_t kind;
    int32_t from;
    char text[GROUP_TEXT_BYTES]; /* LIFE_FAILED: why, with the name of the process at fault */
};

struct group_engine {
    const char *name;
    bool mesh;
    /* Makes the connections; fills rank and size. Blocks until deadline_us at most. */
    int (*join)(struct group *g, const struct group_env *env, int64_t deadline_us,
                struct error *error);
    /* Moves all messages, at most one each way with a peer. Fails when the group fails, when a
     * peer has left, or when nothing moves for wait_us (negative: without end). */
    int (*exchange)(struct group *g, enum group_call call, struct group_op *ops, int32_t num_ops,
                    int64_t wait_us, struct error *error);
    /* Never blocks for long; a message that cannot be sent is dropped. */
    void (*life_send)(struct group *g, int32_t to, const struct group_life *m);
    /* Waits at most GROUP_LIFE_TICK_US for a message of a neighbour. A broken connection is a
     * LIFE_GONE of that neighbour, once. */
    bool (*life_receive)(struct group *g, struct group_life *m);
    /* Ends an exchange that is in progress in another thread, after a failure. */
    void (*interrupt)(struct group *g);
    /* Releases the state. in_order: everybody that we wait for has left too. */
    void (*close)(struct group *g, bool in_order);
    bool waits_to_leave; /* close needs the others to have left */
};

const struct group_engine *group_tcp_engine(void);
const struct group_engine *group_mpi_engine(void); /* NULL in builds without MPI */

struct group {
    int32_t rank, size;
    const struct group_engine *engine; /* NULL in a group of one */
    void *state;                       /* the engine's */
    int64_t timeout_us, wait_us;
    char host[GROUP_MAX][GROUP_HOST_BYTES];
    double *stage;        /* owned; received pieces of all-reduces, [size - 1][GROUP_PIECE] */
    struct buffer agreed; /* group_agree: process 0's bytes */

    pthread_t life;
    bool life_runs;
    atomic_bool joined;          /* all are there */
    atomic_bool kept;            /* group_leave frees nothing: group_keep */
    atomic_bool stop;            /* the life thread shall end */
    int64_t heard_us[GROUP_MAX]; /* life thread: when each neighbour last gave a sign */
    atomic_bool left[GROUP_MAX]; /* has left in order */

    pthread_mutex_t lock; /* guards reason and the sending of life messages */
    atomic_bool failed;
    char reason[GROUP_TEXT_BYTES];
};

/* ---- life ------------------------------------------------------------------------------------ */

/* Starts the thread. Signs of life are sent and expected once g->joined is set. */
int group_life_start(struct group *g, struct error *error);
/* Says goodbye (unless the group has failed) and ends the thread; true when no neighbour remains
 * that has not left. */
bool group_life_end(struct group *g);

/* The first failure stays; it is told to the neighbours (process 0 tells all) and interrupts the
 * exchange in progress. Any thread. */
void group_fail(struct group *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Returns ERR_INTERNAL with the reason. The group must have failed. */
int group_failure(struct group *g, struct error *error);
/* A connection with peer has ended: waits a moment for the reason to come by the life channel, then
 * makes one up. Returns its code. */
int group_lost(struct group *g, enum group_call call, int32_t peer, struct error *error);
/* Peer has left although this call needs it. A failure of the group, except for process 0's
 * leaving while the others wait for commands. */
int group_peer_left(struct group *g, enum group_call call, int32_t peer, struct error *error);
/* Nothing has moved for wait_us: fails the group, naming the peer that ops wait for. */
int group_waited(struct group *g, enum group_call call, const struct group_op *ops, int32_t num_ops,
                 int64_t wait_us, struct error *error);

/* "process 2 (host)" */
struct group_name {
    char text[GROUP_HOST_BYTES + 32];
};
struct group_name group_name(const struct group *g, int32_t rank);
const char *group_call_name(enum group_call call);

#ifdef __cplusplus
}
#endif
