/* comm: engines of a process's GPUs, how they come up, and what each call goes through (comm.h). */
#include "cuda/comm.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/comm_internal.h"
#include "cuda/cuda_check.h"
#include "host/clock.h"
#include "host/log.h"

/* ---- what the process's ranks share ---------------------------------------------------------- */

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
        .payload = c->payload,
        .hidden_size = c->hidden_size,
        .max_logits_rows = c->max_logits,
        .max_vocab_rows = most_vocab_rows(c),
        .timeout_ns = c->timeout_us * 1000,
    };
    return staged_create(&s->staged, &config, error);
}

/* One line a reason; each rank has its own. */
static void leave_out(struct comm *c, const char *engine, const struct error *why) {
    struct comm_shared *s = c->shared;
    log_warn("%s is left out: %s", engine, why->text);
    pthread_mutex_lock(&s->lock);
    buffer_printf(&s->left_out, "%s left out: %s\n", engine, why->text);
    pthread_mutex_unlock(&s->lock);
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

double comm_largest(struct comm *c, double mine) {
    double *all[MAX_RANKS], most = 0;
    bool negative = false;
    if (ranks_exchange(c->config.ranks, c->config.rank, &mine, (void **)all) != 0)
        return -1;
    for (int32_t i = 0; i < c->shared->num_ranks; i++) {
        negative |= *all[i] < 0;
        most = *all[i] > most ? *all[i] : most;
    }
    if (ranks_barrier(c->config.ranks, c->config.rank) != 0) /* before `mine` goes */
        return -1;
    return negative ? -1 : most;
}

bool comm_all_agree(struct comm *c, bool yes) {
    return comm_largest(c, yes ? 0 : -1) >= 0;
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
        tested = comm_all_agree(c, rc == 0);
    }
    if (rc != 0)
        leave_out(c, peers ? "peer access" : "the built-in all-reduce", &error);
    if (ranks_barrier(c->config.ranks, c->config.rank) != 0)
        return false;
    if (!tested && first) {
        staged_destroy(s->staged);
        s->staged = NULL;
    }
    return tested;
}

/* A GPU that several ranks of the process have, which NCCL does not take; -1: none. */
static int32_t shared_gpu(const struct comm_shared *s) {
    for (int32_t i = 0; i < s->num_ranks; i++)
        for (int32_t k = 0; k < i; k++)
            if (s->devices[k] == s->devices[i])
                return s->devices[i];
    return -1;
}

static bool try_nccl(struct comm *c) {
    struct error error = {0};
    int32_t shared = shared_gpu(c->shared);
    if (shared < 0 && comm_nccl_start(c, &error))
        return true;
    if (shared >= 0)
        error_set(&error, ERR_UNSUPPORTED, "several ranks have GPU %d", shared);
    if (shared < 0 || c->config.rank == 0) /* what all know is said once */
        leave_out(c, "NCCL", &error);
    /* Whoever tells why nothing is left tells all of it. */
    ranks_barrier(c->config.ranks, c->config.rank);
    return false;
}

static int reset_staged(struct comm *c, struct error *error) {
    if (ranks_barrier(c->config.ranks, c->config.rank) == 0 && c->config.rank == 0 &&
        c->shared->staged)
        staged_reset(c->shared->staged);
    if (ranks_barrier(c->config.ranks, c->config.rank) != 0)
        return error_set(error, ERR_INTERNAL, "the ranks did not come together");
    return 0;
}

/* Which engine for which size; where NCCL fails in trying, the built-in one for all. */
static int choose_engines(struct comm *c, struct error *error) {
    struct error why = {0};
    int rc = comm_choose(c, &why);
    if (rc == 0)
        return 0;
    if (rc == ERR_NO_MEMORY)
        return error_set(error, rc, "%s", why.text);
    leave_out(c, "NCCL", &why);
    comm_nccl_stop(c);
    for (int32_t i = 0; i < NUM_COMM_SIZES; i++)
        c->engine[i] = ENGINE_STAGED;
    return reset_staged(c, error);
}

static int start_engines(struct comm *c, struct error *error) {
    enum comm_choice choice = c->config.choice;
    bool alone = ranks_group(c->config.ranks) == NULL;
    bool staged = alone && choice != COMM_NCCL && (try_staged(c, true) || try_staged(c, false));
    bool nccl = (!alone || choice != COMM_STAGED) && try_nccl(c);
    if (!staged && !nccl)
        return error_set(
            error, ERR_UNSUPPORTED, "nothing adds up what the GPUs compute (--allreduce): %.*s",
            (int)c->shared->left_out.len, c->shared->left_out.len ? c->shared->left_out.data : "");
    for (int32_t i = 0; i < NUM_COMM_SIZES; i++)
        c->engine[i] = staged ? ENGINE_STAGED : ENGINE_NCCL;
    if (!staged)
        return 0;
    staged_set_step(c->shared->staged, c->config.rank, c->config.step);
    if (!nccl)
        return 0;
    comm_begin_step(c);
    return choose_engines(c, error);
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
    for (int32_t i = 0; i < ranks_world_size(config->ranks); i++) {
        c->columns[i] = config->vocab[i].count;
        c->first_column[i + 1] = c->first_column[i] + c->columns[i];
    }
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
    if (c->nccl)
        comm_nccl_stop(c);
    if (c->shared)
        release_shared(c->shared);
    free(c);
}

/* "1: 8.1 10.5, 4: 9.0 11.2, ..." and what of it is taken. */
static void describe_timings(const struct comm *c, struct buffer *out) {
    const struct comm_shared *s = c->shared;
    buffer_puts(out, "  timed       tokens: us built in, NCCL:");
    for (int32_t i = 0; i < s->num_timings; i++) {
        const struct comm_timing *t = &s->timing[i];
        bool nccl = c->engine[comm_size_of(t->rows)] == ENGINE_NCCL;
        buffer_printf(out, "%s %d: %s%.0f%s %s%.0f%s", i ? "," : "", t->rows, nccl ? "" : "[",
                      t->us[ENGINE_STAGED], nccl ? "" : "]", nccl ? "[" : "", t->us[ENGINE_NCCL],
                      nccl ? "]" : "");
    }
    buffer_puts(out, "; [taken]\n");
}

void comm_describe(const struct comm *c, struct buffer *out) {
    const struct comm_shared *s = c->shared;
    static const char *const payloads[] = {"bf16", "f32", "f64", "fp8"};
    buffer_puts(out, "  all-reduce  ");
    if (s->staged)
        buffer_puts(out, staged_uses_peers(s->staged) ? "built in, between the GPUs' memories"
                                                      : "built in, through pinned host memory");
    if (c->nccl)
        buffer_printf(out, "%sNCCL %s", s->staged ? "; " : "", nccl_version());
    buffer_printf(out, "; sums travel as %s\n", payloads[c->config.payload]);
    if (s->num_timings > 0)
        describe_timings(c, out);
    if (s->left_out.len > 0)
        buffer_printf(out, "  left out    %.*s", (int)s->left_out.len, s->left_out.data);
}

/* ---- steps ----------------------------------------------------------------------------------- */

void comm_begin_step(struct comm *c) {
    if (c->shared->staged)
        staged_begin_step(c->shared->staged, c->config.rank);
}

void comm_sum_by(struct comm *c, enum comm_engine engine, const struct allreduce_array *a) {
    struct staged *s = c->shared->staged;
    if (engine == ENGINE_NCCL)
        comm_nccl_sum(c, a);
    else if (a->norm.x)
        staged_allreduce_norm(s, c->config.rank, a->partial, &a->norm, c->config.stream);
    else
        staged_allreduce_rows(s, c->config.rank, a->out, a->add, a->partial, a->rows, a->num_rows,
                              a->row_len, c->config.stream);
}

void comm_sum_norm(struct comm *c, void *partial, const struct norm_args *norm) {
    const struct allreduce_array a = {
        .partial = partial,
        .num_rows = norm->num_tokens,
        .row_len = norm->hidden_size,
        .count = (int64_t)norm->num_tokens * norm->hidden_size,
        .norm = *norm,
    };
    comm_sum_by(c, c->engine[comm_size_of(norm->num_tokens)], &a);
}

void comm_sum_rows(struct comm *c, float *out, const float *hidden, void *partial,
                   const int32_t *rows, int32_t num_rows) {
    const struct allreduce_array a = {
        .partial = partial,
        .rows = rows,
        .num_rows = num_rows,
        .row_len = c->config.hidden_size,
        .out = out,
        .add = hidden,
    };
    comm_sum_by(c, c->engine[comm_size_of(num_rows)], &a);
}

void comm_sum(struct comm *c, void *data, int64_t count) {
    if (c->shared->staged)
        staged_allreduce(c->shared->staged, c->config.rank, data, count, c->config.stream);
    else
        comm_nccl_sum_plain(c, data, count);
}

void comm_gather_logits(struct comm *c, float *all, int32_t vocab_size, const float *mine,
                        int32_t num_rows) {
    int32_t rank = c->config.rank;
    if (!c->shared->staged) {
        comm_nccl_gather(c, all, vocab_size, mine, num_rows);
        return;
    }
    const struct staged_gather g = {
        .logits = mine,
        .ld = c->columns[rank],
        .out = all,
        .num_rows = num_rows,
        .vocab_size = vocab_size,
        .first = c->first_column,
    };
    staged_gather(c->shared->staged, rank, &g, c->config.stream);
}

/* ---- trouble --------------------------------------------------------------------------------- */

void comm_abort(struct comm *c) {
    if (atomic_exchange(&c->aborted, true))
        return;
    if (c->shared->staged)
        staged_abort(c->shared->staged);
    if (c->nccl)
        nccl_abort(c->nccl);
}

int comm_status(struct comm *c, int64_t waited_us, struct error *error) {
    int rc = 0;
    if (c->shared->staged)
        rc = staged_status(c->shared->staged, c->config.rank, error);
    if (rc == 0 && c->nccl)
        rc = comm_nccl_status(c, waited_us, error);
    return rc;
}

cudaError_t comm_query(cudaStream_t stream) {
    cudaError_t e = cudaStreamQuery(stream);
    if (e == cudaErrorNotReady)
        cudaGetLastError();
    return e;
}

int comm_wait(struct comm *c, struct error *error) {
    /* Less than the other ranks' patience: one of them may know at once what this one has to wait
     * for, and then waits for it to vote. */
    int64_t start_us = clock_us(), most_us = c->config.timeout_us / 4 * 3;
    cudaError_t e;
    while ((e = comm_query(c->config.stream)) == cudaErrorNotReady) {
        int64_t waited_us = clock_us() - start_us;
        if (waited_us > most_us)
            return error_set(error, ERR_INTERNAL, "GPU %d has not come to an end for %.1f s",
                             c->config.device, (double)waited_us / 1e6);
        if (comm_status(c, waited_us, error) != 0)
            return ERR_INTERNAL;
        sched_yield();
    }
    CUDA_CHECK(e);
    return comm_status(c, 0, error);
}

int comm_reset(struct comm *c, struct error *error) {
    bool aborted = atomic_load(&c->aborted);
    if (reset_staged(c, error) != 0)
        return ERR_INTERNAL;
    atomic_store(&c->aborted, false);
    if (!c->nccl || !aborted)
        return 0;
    nccl_abort(c->nccl); /* perhaps it is not what was aborted for, but it is gone */
    comm_nccl_stop(c);
    return comm_nccl_start(c, error) ? 0 : ERR_INTERNAL;
}
