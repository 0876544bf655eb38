/* comm: engines of a process's GPUs, how they come up, and what each call goes through (comm.h). */
#include "cuda/comm.h"

#include <stdlib.h>
#include <string.h>

#include "cuda/comm_internal.h"
#include "host/clock.h"
#include "host/log.h"

/* ---- what the process's ranks share ---------------------------------------------------------- */

static enum allreduce_payload staged_payload(enum comm_payload p) {
    static const enum allreduce_payload of[] = {
        [COMM_BF16] = PAYLOAD_BF16,
        [COMM_F32] = PAYLOAD_F32,
        [COMM_F64] = PAYLOAD_F64,
        [COMM_F8] = PAYLOAD_F8,
    };
    return of[p];
}

static int32_t most_vocab_rows(const struct comm_config *c) {
    int32_t most = 0;
    for (int32_t i = 0; i < ranks_world_size(c->ranks); i++)
        most = c->vocab[i].count > most ? c->vocab[i].count : most;
    return most;
}

static int create_staged(struct comm_shared *s, const struct comm_config *c, bool peers,
                         struct error *error) {
    const struct staged_config config = {
        .num_ranks = s->num_ranks,
        .devices = s->devices,
        .peers = peers,
        .payload = staged_payload(c->payload),
        .hidden_size = c->hidden_size,
        .max_logits_rows = c->max_logits,
        .max_vocab_rows = most_vocab_rows(c),
        .timeout_ns = c->timeout_us * 1000,
    };
    return staged_create(&s->staged, &config, error);
}

/* One line a reason. */
static void leave_out(struct comm_shared *s, const char *engine, const struct error *why) {
    log_warn("%s is left out: %s", engine, why->text);
    buffer_printf(&s->left_out, "%s left out: %s\n", engine, why->text);
}

/* By the first rank of the process; the others get to know it through comm.shared. */
static struct comm_shared *create_shared(const struct comm_config *c, void *const *comms) {
    struct comm_shared *s = xcalloc(1, sizeof *s);
    s->num_ranks = s->users = ranks_local_size(c->ranks);
    pthread_mutex_init(&s->lock, NULL);
    for (int32_t i = 0; i < s->num_ranks; i++)
        s->devices[i] = ((struct comm *)comms[i])->config.device;
    return s;
}

static void release_shared(struct comm_shared *s) {
    pthread_mutex_lock(&s->lock);
    bool last = --s->users == 0;
    pthread_mutex_unlock(&s->lock);
    if (!last)
        return;
    staged_destroy(s->staged);
    buffer_deinit(&s->left_out);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

/* ---- coming up ------------------------------------------------------------------------------- */

/* Does every rank of the process say yes? On all its threads at once. */
static bool all_agree(struct comm *c, bool yes) {
    bool votes[MAX_RANKS], *all[MAX_RANKS], agreed = true;
    votes[0] = yes;
    if (ranks_exchange(c->config.ranks, c->config.rank, votes, (void **)all) != 0)
        return false;
    for (int32_t i = 0; i < c->shared->num_ranks; i++)
        agreed &= *all[i];
    /* Nobody leaves before all have read. */
    return ranks_barrier(c->config.ranks, c->config.rank) == 0 && agreed;
}

/* Our own engine, with or without peer access; tested by all ranks. */
static bool try_staged(struct comm *c, bool peers) {
    struct comm_shared *s = c->shared;
    struct error error = {0};
    bool first = c->config.rank == 0;
    int rc = 0;
    if (first) {
        rc = create_staged(s, &c->config, peers, &error);
        s->ready = rc == 0 && (!peers || staged_uses_peers(s->staged));
    }
    if (ranks_barrier(c->config.ranks, c->config.rank) != 0)
        return false;
    bool tested = s->ready;
    if (tested) {
        rc = staged_self_test(s->staged, c->config.rank, c->config.timeout_us * 1000,
                              c->config.stream, &error);
        tested = all_agree(c, rc == 0);
    }
    if (rc != 0) { /* each rank has its own reasons */
        pthread_mutex_lock(&s->lock);
        leave_out(s, peers ? "peer access" : "the built-in all-reduce", &error);
        pthread_mutex_unlock(&s->lock);
    }
    if (ranks_barrier(c->config.ranks, c->config.rank) != 0)
        return false;
    if (!tested && first) {
        staged_destroy(s->staged);
        s->staged = NULL;
    }
    return tested;
}

static int start_engines(struct comm *c, struct error *error) {
    enum comm_choice choice = c->config.choice;
    bool alone = ranks_group(c->config.ranks) == NULL;
    bool staged = alone && choice != COMM_NCCL && (try_staged(c, true) || try_staged(c, false));
    if (!staged)
        return error_set(error, ERR_UNSUPPORTED,
                         "the GPUs do not reach each other: no engine for sums over ranks is left");
    staged_set_step(c->shared->staged, c->config.rank, c->config.step);
    return 0;
}

int comm_create(const struct comm_config *config, struct comm **out, struct error *error) {
    struct comm *c = xcalloc(1, sizeof *c);
    void *all[MAX_RANKS];
    c->config = *config;
    if (ranks_exchange(config->ranks, config->rank, c, all) == 0 && config->rank == 0)
        c->shared = create_shared(config, all);
    if (ranks_barrier(config->ranks, config->rank) != 0) {
        comm_destroy(c);
        return error_set(error, ERR_INTERNAL, "the ranks did not come together");
    }
    struct comm *first = all[0];
    c->shared = first->shared;
    for (int32_t i = 0; i < ranks_world_size(config->ranks); i++)
        c->first_column[i + 1] = c->first_column[i] + config->vocab[i].count;
    int rc = start_engines(c, error);
    if (rc == 0)
        *out = c;
    else
        comm_destroy(c);
    return rc;
}

void comm_destroy(struct comm *c) {
    if (!c)
        return;
    if (c->shared)
        release_shared(c->shared);
    free(c);
}

void comm_describe(const struct comm *c, struct buffer *out) {
    const struct comm_shared *s = c->shared;
    static const char *const payloads[] = {"bf16", "f32", "f64", "fp8"};
    buffer_printf(out, "  all-reduce  %s, %s\n",
                  staged_uses_peers(s->staged) ? "built in, between the GPUs' memories"
                                               : "built in, through pinned host memory",
                  payloads[c->config.payload]);
}

/* ---- steps ----------------------------------------------------------------------------------- */

void comm_begin_step(struct comm *c) {
    staged_begin_step(c->shared->staged, c->config.rank);
}

void comm_end_step(struct comm *c) {
    staged_end_step(c->shared->staged, c->config.rank, c->config.stream);
}

void comm_sum_norm(struct comm *c, void *partial, const struct norm_args *norm) {
    staged_allreduce_norm(c->shared->staged, c->config.rank, partial, norm, c->config.stream);
}

void comm_sum_rows(struct comm *c, float *out, const float *hidden, void *partial,
                   const int32_t *rows, int32_t num_rows) {
    staged_allreduce_rows(c->shared->staged, c->config.rank, out, hidden, partial, rows, num_rows,
                          c->config.hidden_size, c->config.stream);
}

void comm_sum(struct comm *c, void *data, int64_t count) {
    staged_allreduce(c->shared->staged, c->config.rank, data, count, c->config.stream);
}

void comm_gather_logits(struct comm *c, float *all, int32_t vocab_size, const float *mine,
                        int32_t num_rows) {
    int32_t rank = c->config.rank;
    const struct staged_gather g = {
        .logits = mine,
        .ld = c->config.vocab[rank].count,
        .out = all,
        .num_rows = num_rows,
        .vocab_size = vocab_size,
        .first = c->first_column,
    };
    staged_gather(c->shared->staged, rank, &g, c->config.stream);
}

/* ---- trouble --------------------------------------------------------------------------------- */

void comm_abort(struct comm *c) {
    staged_abort(c->shared->staged);
}

int comm_status(struct comm *c, struct error *error) {
    return staged_status(c->shared->staged, c->config.rank, error);
}

int comm_reset(struct comm *c, struct error *error) {
    if (ranks_barrier(c->config.ranks, c->config.rank) == 0 && c->config.rank == 0)
        staged_reset(c->shared->staged);
    if (ranks_barrier(c->config.ranks, c->config.rank) != 0)
        return error_set(error, ERR_INTERNAL, "the ranks did not come together");
    return 0;
}
