/* group_collectives: what the processes do together, made of exchanges of messages.
 *
 * Everything goes through process 0, as over TCP nobody else can be reached. Large all-reduces are
 * cut into pieces: while process 0 receives and adds one piece, the sums of the piece before are on
 * their way back, so that links are busy both ways. Where any two processes can talk (MPI), more
 * than two of them pass large all-reduces around in a ring instead, in which each sends and
 * receives 2 (n - 1) / n of the data, whatever their number n.
 */
#include <stdio.h>
#include <string.h>

#include "host/group_internal.h"

/* From this many doubles on (1 MiB) a ring's 2 (n - 1) steps cost less than its bytes save. */
enum { RING_MIN = 131072 };

#define COMMAND_MAX ((size_t)1 << 30)
#define AGREE_MAX   ((size_t)256 << 20)

static struct group_op op_send(int32_t peer, const void *data, size_t bytes) {
    return (struct group_op){.peer = peer, .send = true, .data = (void *)data, .bytes = bytes};
}

static struct group_op op_receive(int32_t peer, void *data, size_t bytes) {
    return (struct group_op){.peer = peer, .data = data, .bytes = bytes};
}

static int exchange(struct group *g, enum group_call call, struct group_op *ops, int32_t num_ops,
                    struct error *error) {
    if (num_ops == 0)
        return 0;
    /* Process 0 sees who is missing; the others give it time to say so. */
    int64_t wait_us = g->rank == 0 ? g->wait_us : g->wait_us + g->wait_us / 4;
    return g->engine->exchange(g, call, ops, num_ops, wait_us, error);
}

/* From process 0 the same bytes to all others. */
static int send_to_all(struct group *g, enum group_call call, const void *data, size_t bytes,
                       struct error *error) {
    struct group_op ops[GROUP_MAX];
    for (int32_t r = 1; r < g->size; r++)
        ops[r - 1] = op_send(r, data, bytes);
    return exchange(g, call, ops, g->size - 1, error);
}

static int send_one(struct group *g, enum group_call call, const void *data, size_t bytes,
                    struct error *error) {
    struct group_op op = op_send(0, data, bytes);
    return exchange(g, call, &op, 1, error);
}

static int receive_one(struct group *g, enum group_call call, void *data, size_t bytes,
                       struct error *error) {
    struct group_op op = op_receive(0, data, bytes);
    return exchange(g, call, &op, 1, error);
}

/* ---- all-reduce ------------------------------------------------------------------------------ */

struct piece {
    double *data;
    size_t bytes;
    int64_t count;
};

/* Piece k of data[0..count). k below 0 or past the end: none (count 0). */
static struct piece piece_of(double *data, int64_t count, int64_t k) {
    int64_t first = k * GROUP_PIECE, n = count - first;
    if (k < 0 || n <= 0)
        return (struct piece){.data = data};
    n = n < GROUP_PIECE ? n : GROUP_PIECE;
    return (struct piece){.data = data + first, .bytes = (size_t)n * sizeof *data, .count = n};
}

static int64_t num_pieces(int64_t count) {
    return (count + GROUP_PIECE - 1) / GROUP_PIECE;
}

static void add(double *restrict sum, const double *restrict x, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        sum[i] += x[i];
}

/* Process 0: receives piece k of all while the sums of piece k - 1 go out. */
static int reduce_centre(struct group *g, double *data, int64_t count, struct error *error) {
    for (int64_t k = 0; k <= num_pieces(count); k++) {
        struct piece in = piece_of(data, count, k), out = piece_of(data, count, k - 1);
        struct group_op ops[2 * GROUP_MAX];
        int32_t n = 0;
        for (int32_t r = 1; r < g->size; r++) {
            if (in.count > 0)
                ops[n++] = op_receive(r, g->stage + (int64_t)(r - 1) * GROUP_PIECE, in.bytes);
            if (out.count > 0)
                ops[n++] = op_send(r, out.data, out.bytes);
        }
        int rc = exchange(g, CALL_ALL_REDUCE, ops, n, error);
        if (rc != 0)
            return rc;
        for (int32_t r = 1; r < g->size; r++)
            add(in.data, g->stage + (int64_t)(r - 1) * GROUP_PIECE, in.count);
    }
    return 0;
}

/* The others: piece k goes out while the sums of piece k - 1 come in. */
static int reduce_outside(struct group *g, double *data, int64_t count, struct error *error) {
    for (int64_t k = 0; k <= num_pieces(count); k++) {
        struct piece out = piece_of(data, count, k), in = piece_of(data, count, k - 1);
        struct group_op ops[2];
        int32_t n = 0;
        if (out.count > 0)
            ops[n++] = op_send(0, out.data, out.bytes);
        if (in.count > 0)
            ops[n++] = op_receive(0, in.data, in.bytes);
        int rc = exchange(g, CALL_ALL_REDUCE, ops, n, error);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* Each process passes one of `size` parts on to the next while it gets another from the one
 * before: size - 1 times adding what it gets (then part rank + 1 is summed here), size - 1 times
 * keeping it. Each element is summed in one place, so all have the same bytes. */
static int reduce_ring(struct group *g, double *data, int64_t count, struct error *error) {
    int32_t n = g->size, next = (g->rank + 1) % n, before = (g->rank + n - 1) % n;
    int rc = group_barrier(g, error); /* in the ring alone nobody could say who is missing */
    if (rc != 0)
        return rc;
    for (int32_t step = 0; step < 2 * (n - 1); step++) {
        bool sum = step < n - 1;
        int32_t turn = step % (n - 1) - (sum ? 0 : 1);
        int64_t out_part = (g->rank - turn + 2 * n) % n, in_part = (out_part + n - 1) % n;
        int64_t out_first = count * out_part / n, in_first = count * in_part / n;
        int64_t out_count = count * (out_part + 1) / n - out_first;
        int64_t in_count = count * (in_part + 1) / n - in_first;
        int64_t most = out_count > in_count ? out_count : in_count;
        for (int64_t k = 0; k < num_pieces(most); k++) {
            struct piece out = piece_of(data + out_first, out_count, k);
            struct piece in = piece_of(data + in_first, in_count, k);
            struct group_op ops[2];
            int32_t num_ops = 0;
            if (out.count > 0)
                ops[num_ops++] = op_send(next, out.data, out.bytes);
            if (in.count > 0)
                ops[num_ops++] = op_receive(before, sum ? g->stage : in.data, in.bytes);
            if ((rc = exchange(g, CALL_ALL_REDUCE, ops, num_ops, error)))
                return rc;
            if (sum)
                add(in.data, g->stage, in.count);
        }
    }
    return 0;
}

int group_all_reduce(struct group *g, double *data, int64_t count, struct error *error) {
    CHECK(count >= 0, "count %lld", (long long)count);
    if (group_failed(g, error))
        return ERR_INTERNAL;
    if (g->size == 1)
        return 0;
    if (g->engine->mesh && g->size > 2 && count >= RING_MIN)
        return reduce_ring(g, data, count, error);
    return g->rank == 0 ? reduce_centre(g, data, count, error)
                        : reduce_outside(g, data, count, error);
}

/* ---- the other collectives ------------------------------------------------------------------- */

int group_gather(struct group *g, const void *mine, size_t bytes, void *const *into,
                 const size_t *sizes, struct error *error) {
    if (group_failed(g, error))
        return ERR_INTERNAL;
    if (g->rank != 0)
        return send_one(g, CALL_GATHER, mine, bytes, error);
    struct group_op ops[GROUP_MAX];
    if (into[0] && into[0] != mine && bytes > 0)
        memcpy(into[0], mine, bytes);
    for (int32_t r = 1; r < g->size; r++)
        ops[r - 1] = op_receive(r, into[r], sizes[r]);
    return exchange(g, CALL_GATHER, ops, g->size - 1, error);
}

int group_all_gather(struct group *g, const void *mine, void *all, size_t bytes,
                     struct error *error) {
    struct group_op ops[GROUP_MAX];
    char *place = (char *)all + (size_t)g->rank * bytes;
    int rc;
    if (group_failed(g, error))
        return ERR_INTERNAL;
    if (mine != place && bytes > 0)
        memcpy(place, mine, bytes);
    if (g->rank != 0) {
        if ((rc = send_one(g, CALL_ALL_GATHER, place, bytes, error)))
            return rc;
        return receive_one(g, CALL_ALL_GATHER, all, bytes * (size_t)g->size, error);
    }
    for (int32_t r = 1; r < g->size; r++)
        ops[r - 1] = op_receive(r, (char *)all + (size_t)r * bytes, bytes);
    if ((rc = exchange(g, CALL_ALL_GATHER, ops, g->size - 1, error)))
        return rc;
    return send_to_all(g, CALL_ALL_GATHER, all, bytes * (size_t)g->size, error);
}

int group_broadcast(struct group *g, void *data, size_t bytes, struct error *error) {
    if (group_failed(g, error))
        return ERR_INTERNAL;
    if (g->rank != 0)
        return receive_one(g, CALL_BROADCAST, data, bytes, error);
    return send_to_all(g, CALL_BROADCAST, data, bytes, error);
}

int group_barrier(struct group *g, struct error *error) {
    char all[GROUP_MAX];
    return group_all_gather(g, "", all, 1, error);
}

/* All have said whether they have process 0's bytes: names those that have not. */
static int judge(const struct group *g, const char *what, const char *same, struct error *error) {
    char names[1024] = "";
    size_t used = 0;
    int32_t others = 0;
    for (int32_t r = 1; r < g->size; r++)
        if (!same[r] && used < sizeof names)
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%s",
                                     others++ ? ", " : "", group_name(g, r).text);
    if (others == 0)
        return 0;
    return error_set(error, ERR_CONFIG, "%s: %s not the same as in %s; all must be", names, what,
                     group_name(g, 0).text);
}

int group_agree(struct group *g, const char *what, const void *data, size_t bytes,
                struct error *error) {
    uint64_t size = bytes;
    char same[GROUP_MAX] = {0};
    CHECK(bytes <= AGREE_MAX, "%zu bytes of %s", bytes, what);
    int rc = group_broadcast(g, &size, sizeof size, error);
    if (rc != 0)
        return rc;
    if (size > AGREE_MAX) {
        group_fail(g, "%s sent a length of %llu bytes for %s", group_name(g, 0).text,
                   (unsigned long long)size, what);
        return group_failure(g, error);
    }
    struct buffer *theirs = &g->agreed;
    buffer_clear(theirs);
    buffer_reserve(theirs, (size_t)size);
    if (g->rank == 0)
        buffer_append(theirs, data, bytes);
    rc = group_broadcast(g, theirs->data, (size_t)size, error);
    char mine = size == bytes && (size == 0 || memcmp(theirs->data, data, bytes) == 0);
    if (rc == 0)
        rc = group_all_gather(g, &mine, same, 1, error);
    return rc != 0 ? rc : judge(g, what, same, error);
}

/* ---- commands -------------------------------------------------------------------------------- */

struct command_head {
    uint32_t kind, zero;
    uint64_t bytes;
};

int group_send(struct group *g, uint32_t kind, const void *data, size_t bytes,
               struct error *error) {
    struct command_head head = {.kind = kind, .bytes = bytes};
    CHECK(g->rank == 0, "process %d sends a command", g->rank);
    if (group_failed(g, error))
        return ERR_INTERNAL;
    if (bytes > COMMAND_MAX)
        return error_set(error, ERR_INTERNAL, "a command of %zu bytes, at most %zu", bytes,
                         COMMAND_MAX);
    int rc = send_to_all(g, CALL_COMMAND, &head, sizeof head, error);
    if (rc == 0 && bytes > 0)
        rc = send_to_all(g, CALL_COMMAND, data, bytes, error);
    return rc;
}

int group_receive(struct group *g, uint32_t *kind, struct buffer *data, struct error *error) {
    struct command_head head;
    struct group_op op = op_receive(0, &head, sizeof head);
    CHECK(g->rank != 0, "process 0 waits for a command");
    if (group_failed(g, error))
        return ERR_INTERNAL;
    int rc = g->engine->exchange(g, CALL_COMMAND, &op, 1, -1, error);
    if (rc != 0)
        return rc;
    if (head.bytes > COMMAND_MAX) {
        group_fail(g, "%s sent a command of %llu bytes, at most %zu", group_name(g, 0).text,
                   (unsigned long long)head.bytes, COMMAND_MAX);
        return group_failure(g, error);
    }
    *kind = head.kind;
    buffer_clear(data);
    if (head.bytes == 0)
        return 0;
    buffer_reserve(data, (size_t)head.bytes);
    rc = receive_one(g, CALL_COMMAND, data->data, (size_t)head.bytes, error);
    data->len = rc == 0 ? (size_t)head.bytes : 0;
    return rc;
}
