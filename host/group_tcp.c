/* group_tcp: the engine of a group over TCP: messages on plain sockets that never block.
 *
 * A data message has a header with its call and length, which the receiver compares with what it
 * expects: processes that differ in the order of their calls are told so at once. A failure shuts
 * the data connections down, which wakes an exchange that sleeps in poll.
 */
#include "host/group_tcp.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/mem.h"

/* How long an exchange tries before it sleeps: sleeping and waking costs about as much. */
enum { SPIN_US = 30 };

#define DATA_MAGIC 0x7065656du /* "meep" */

struct data_head {
    uint32_t magic, call;
    uint64_t bytes;
};

/* ---- data ------------------------------------------------------------------------------------ */

static bool would_block(ssize_t n) {
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
}

/* Moves what can be moved of header and message, in one system call. Returns the bytes, 0 when
 * nothing can be moved now, -1 when the connection has ended. */
static ssize_t move(int fd, struct group_op *op, struct data_head *head) {
    struct iovec parts[2] = {
        {(char *)head + op->headed, sizeof *head - op->headed},
        {(char *)op->data + op->done, op->bytes - op->done},
    };
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (op->headed == sizeof *head) {
        message.msg_iov = parts + 1;
        message.msg_iovlen = 1;
    }
    ssize_t n = op->send ? sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
                         : recvmsg(fd, &message, MSG_DONTWAIT);
    if (n <= 0)
        return would_block(n) ? 0 : -1;
    size_t moved = (size_t)n, rest = sizeof *head - op->headed;
    size_t of_head = moved < rest ? moved : rest;
    op->headed += of_head;
    op->done += moved - of_head;
    op->complete = op->headed == sizeof *head && op->done == op->bytes;
    return n;
}

static int check_head(struct group *g, enum group_call call, const struct group_op *op,
                      const struct data_head *head, struct error *error) {
    if (head->magic == DATA_MAGIC && head->call == (uint32_t)call && head->bytes == op->bytes)
        return 0;
    struct group_name peer = group_name(g, op->peer);
    if (head->magic != DATA_MAGIC)
        group_fail(g, "%s sent something that is no message", peer.text);
    else
        group_fail(g, "%s sent %llu bytes of %s where %s expects %zu bytes of %s", peer.text,
                   (unsigned long long)head->bytes, group_call_name((enum group_call)head->call),
                   group_name(g, g->rank).text, op->bytes, group_call_name(call));
    return group_failure(g, error);
}

/* One attempt at every message. Returns whether anything moved, or a negative code. */
static int move_all(struct group *g, enum group_call call, struct group_op *ops, int32_t num_ops,
                    struct data_head *heads, struct error *error) {
    const struct tcp *t = g->state;
    int moved = 0;
    for (int32_t i = 0; i < num_ops; i++) {
        struct group_op *op = &ops[i];
        if (op->complete)
            continue;
        ssize_t n = move(t->fd[CHANNEL_DATA][op->peer], op, &heads[i]);
        if (n < 0 && atomic_load(&g->failed))
            return group_failure(g, error);
        if (n < 0)
            return group_lost(g, call, op->peer, error);
        moved |= n > 0;
        if (n > 0 && !op->send && op->headed == sizeof *heads) {
            int rc = check_head(g, call, op, &heads[i], error);
            if (rc != 0)
                return rc;
        }
    }
    return moved;
}

/* Sleeps until a connection is ready for one of the messages. */
static void wait_ready(const struct tcp *t, const struct group_op *ops, int32_t num_ops,
                       int64_t wait_us) {
    struct pollfd fds[2 * GROUP_MAX];
    nfds_t n = 0;
    for (int32_t i = 0; i < num_ops; i++)
        if (!ops[i].complete)
            fds[n++] = (struct pollfd){.fd = t->fd[CHANNEL_DATA][ops[i].peer],
                                       .events = ops[i].send ? POLLOUT : POLLIN};
    int64_t ms = wait_us / 1000 + 1;
    poll(fds, n, wait_us < 0 ? -1 : ms < INT_MAX ? (int)ms : INT_MAX);
}

static bool all_complete(const struct group_op *ops, int32_t num_ops) {
    for (int32_t i = 0; i < num_ops; i++)
        if (!ops[i].complete)
            return false;
    return true;
}

static int tcp_exchange(struct group *g, enum group_call call, struct group_op *ops,
                        int32_t num_ops, int64_t wait_us, struct error *error) {
    struct data_head heads[2 * GROUP_MAX];
    int64_t moved_us = clock_us();
    CHECK(num_ops <= 2 * GROUP_MAX, "%d messages", num_ops);
    for (int32_t i = 0; i < num_ops; i++)
        if (ops[i].send)
            heads[i] = (struct data_head){DATA_MAGIC, (uint32_t)call, ops[i].bytes};
    for (;;) {
        int rc = move_all(g, call, ops, num_ops, heads, error);
        if (rc < 0)
            return rc;
        if (all_complete(ops, num_ops))
            return 0;
        int64_t now = clock_us();
        if (rc > 0)
            moved_us = now;
        else if (atomic_load(&g->failed))
            return group_failure(g, error);
        else if (wait_us >= 0 && now - moved_us > wait_us)
            return group_waited(g, call, ops, num_ops, wait_us, error);
        else if (now - moved_us > SPIN_US)
            wait_ready(g->state, ops, num_ops, wait_us < 0 ? -1 : moved_us + wait_us - now);
    }
}

static void tcp_interrupt(struct group *g) {
    const struct tcp *t = g->state;
    for (int32_t r = 0; r < g->size; r++)
        if (t->fd[CHANNEL_DATA][r] >= 0)
            shutdown(t->fd[CHANNEL_DATA][r], SHUT_RDWR);
}

/* ---- life ------------------------------------------------------------------------------------ */

static void tcp_life_send(struct group *g, int32_t to, const struct group_life *m) {
    const struct tcp *t = g->state;
    int fd = t->fd[CHANNEL_LIFE][to];
    ssize_t n = send(fd, m, sizeof *m, MSG_NOSIGNAL | MSG_DONTWAIT);
    /* Only a peer that has not read for a long time leaves no room. A message that is cut would
     * garble those after it. */
    if (n > 0 && (size_t)n < sizeof *m)
        shutdown(fd, SHUT_RDWR);
}

/* Reads from one neighbour; true when a message is whole or the connection has ended. */
static bool read_life(struct tcp *t, int32_t from, struct group_life *m) {
    size_t have = t->incoming[from].have;
    ssize_t n = recv(t->fd[CHANNEL_LIFE][from], t->incoming[from].bytes + have, sizeof *m - have,
                     MSG_DONTWAIT);
    if (would_block(n))
        return false;
    if (n > 0) {
        t->incoming[from].have += (size_t)n;
        if (t->incoming[from].have < sizeof *m)
            return false;
        memcpy(m, t->incoming[from].bytes, sizeof *m);
        m->text[sizeof m->text - 1] = '\0';
        t->incoming[from].have = 0;
        if (m->kind >= LIFE_ALIVE && m->kind <= LIFE_FAILED) {
            m->from = from;
            return true;
        }
    }
    shutdown(t->fd[CHANNEL_LIFE][from], SHUT_RDWR); /* others may be sending: not closed yet */
    t->incoming[from].ended = true;
    *m = (struct group_life){.kind = LIFE_GONE, .from = from};
    return true;
}

static bool tcp_life_receive(struct group *g, struct group_life *m) {
    struct tcp *t = g->state;
    struct pollfd fds[GROUP_MAX];
    for (int32_t r = 0; r < g->size; r++)
        fds[r] = (struct pollfd){.fd = t->incoming[r].ended ? -1 : t->fd[CHANNEL_LIFE][r],
                                 .events = POLLIN};
    if (poll(fds, (nfds_t)g->size, GROUP_LIFE_TICK_US / 1000) <= 0)
        return false;
    for (int32_t r = 0; r < g->size; r++)
        if (fds[r].revents && read_life(t, r, m))
            return true;
    return false;
}

/* ---- lifecycle ------------------------------------------------------------------------------- */

static void tcp_close(struct group *g, bool in_order) {
    struct tcp *t = g->state;
    (void)in_order;
    for (int c = 0; t && c < NUM_CHANNELS; c++)
        for (int32_t r = 0; r < GROUP_MAX; r++)
            if (t->fd[c][r] >= 0)
                close(t->fd[c][r]);
    free(t);
}

static int tcp_start(struct group *g, const struct group_env *env, int64_t deadline_us,
                     struct error *error) {
    struct tcp *t = xcalloc(1, sizeof *t);
    for (int c = 0; c < NUM_CHANNELS; c++)
        for (int32_t r = 0; r < GROUP_MAX; r++)
            t->fd[c][r] = -1;
    g->rank = env->rank;
    g->size = env->size;
    g->state = t;
    return tcp_join(t, g, env, deadline_us, error);
}

const struct group_engine *group_tcp_engine(void) {
    static const struct group_engine engine = {
        .name = "TCP",
        .join = tcp_start,
        .exchange = tcp_exchange,
        .life_send = tcp_life_send,
        .life_receive = tcp_life_receive,
        .interrupt = tcp_interrupt,
        .close = tcp_close,
    };
    return &engine;
}
