#include "host/dispatch.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/clock.h"
#include "host/mem.h"
#include "host/replica_choice.h"
#include "host/sampler.h"

struct dispatch {
    int32_t num_replicas;
    struct engine *replica[MAX_REPLICAS]; /* owned */
    struct engine *strictest;             /* the one with the shortest context; borrowed */
    struct engine_model_info model;
    int32_t max_queued_requests, max_queued_tokens;
    bool prefix_caching;
    int64_t start_us;
    uint64_t seed;
    void (*wake)(void *);
    void *wake_ctx;

    /* With one replica none of the following is used. */
    pthread_mutex_t lock;
    struct replica_choice *choice; /* under lock; owned */
    uint64_t num_accepted;         /* under lock */

    pthread_mutex_t wake_lock;
    pthread_cond_t wake_cond;
    bool woken; /* under wake_lock: events may have come since the last drain began */
};

/* ---- sharing --------------------------------------------------------------------------------- */

static int refuse_gpus(const struct engine_options *o, struct error *error) {
    struct buffer divisors = {0};
    for (int32_t n = 1; n <= o->num_gpus && n <= MAX_REPLICAS; n++)
        if (o->num_gpus % n == 0)
            buffer_printf(&divisors, "%s%d", n > 1 ? ", " : "", n);
    int rc = error_set(error, ERR_CONFIG,
                       "--replicas %d: does not divide the number of GPUs, %d (--gpus); with so "
                       "many it may be %.*s",
                       o->replicas, o->num_gpus, (int)divisors.len, divisors.data);
    buffer_deinit(&divisors);
    return rc;
}

static int check_replicas(const struct engine_options *o, struct error *error) {
    if (o->replicas < 1 || o->replicas > MAX_REPLICAS)
        return error_set(error, ERR_CONFIG, "--replicas %d: 1 to %d are possible", o->replicas,
                         MAX_REPLICAS);
    return o->num_gpus % o->replicas ? refuse_gpus(o, error) : 0;
}

int dispatch_share(const struct engine_options *o, int32_t replica, struct engine_options *out,
                   struct error *error) {
    int rc = check_replicas(o, error);
    if (rc)
        return rc;
    *out = *o;
    out->replica = replica;
    out->num_gpus = o->num_gpus / o->replicas;
    memmove(out->gpus, o->gpus + (size_t)replica * (size_t)out->num_gpus,
            (size_t)out->num_gpus * sizeof *out->gpus);
    out->progress = o->progress && replica == 0; /* there is one line for it on the terminal */
    return 0;
}

/* ---- waking ---------------------------------------------------------------------------------- */

static void on_wake(void *ctx) {
    struct dispatch *d = ctx;
    pthread_mutex_lock(&d->wake_lock);
    d->woken = true;
    pthread_cond_signal(&d->wake_cond);
    pthread_mutex_unlock(&d->wake_lock);
    if (d->wake)
        d->wake(d->wake_ctx);
}

void dispatch_wait(struct dispatch *d, int32_t timeout_ms) {
    struct timespec until;
    if (d->num_replicas == 1) {
        engine_wait(d->replica[0], timeout_ms);
        return;
    }
    until = clock_deadline((int64_t)timeout_ms * 1000);
    pthread_mutex_lock(&d->wake_lock);
    while (!d->woken)
        if (pthread_cond_timedwait(&d->wake_cond, &d->wake_lock, &until) != 0)
            break;
    pthread_mutex_unlock(&d->wake_lock);
}

/* ---- lifecycle ------------------------------------------------------------------------------- */

/* One replica being loaded. */
struct loading {
    struct engine_options options;
    dispatch_start_fn start;
    void (*wake)(void *);
    void *wake_ctx;
    struct engine **out;
    int rc;
    struct error error;
};

static void *load(void *arg) {
    struct loading *l = arg;
    l->rc = l->start(&l->options, l->wake, l->wake_ctx, l->out, &l->error);
    return NULL;
}

/* All at once, the first on this thread: the weights go to different memory through different
 * links, and what the replicas read of a file is read from the disk once. */
static void load_all(struct loading *loadings, int32_t n) {
    pthread_t threads[MAX_REPLICAS];
    int32_t num_threads = 1; /* with this one */
    while (num_threads < n &&
           pthread_create(&threads[num_threads], NULL, load, &loadings[num_threads]) == 0)
        num_threads++;
    load(&loadings[0]);
    for (int32_t i = num_threads; i < n; i++)
        load(&loadings[i]); /* for want of threads one after another */
    for (int32_t i = 1; i < num_threads; i++)
        pthread_join(threads[i], NULL);
}

static int start_replicas(struct dispatch *d, const struct engine_options *o,
                          dispatch_start_fn start, struct error *error) {
    struct loading *loadings = xcalloc((size_t)d->num_replicas, sizeof *loadings);
    int rc = 0;
    for (int32_t i = 0; i < d->num_replicas && rc == 0; i++) {
        struct loading *l = &loadings[i];
        bool alone = d->num_replicas == 1;
        l->start = start;
        l->wake = alone ? d->wake : on_wake;
        l->wake_ctx = alone ? d->wake_ctx : d;
        l->out = &d->replica[i];
        rc = dispatch_share(o, i, &l->options, error);
    }
    if (rc == 0)
        load_all(loadings, d->num_replicas);
    for (int32_t i = 0; i < d->num_replicas && rc == 0; i++)
        if ((rc = loadings[i].rc))
            *error = loadings[i].error;
    free(loadings);
    return rc;
}

static struct replica_choice *create_choice(const struct dispatch *d, bool prefix_caching) {
    int32_t blocks[MAX_REPLICAS] = {0};
    for (int32_t i = 0; i < d->num_replicas && prefix_caching; i++) {
        struct engine_stats stats;
        engine_stats(d->replica[i], &stats);
        blocks[i] = stats.kv_blocks_total;
    }
    return replica_choice_create(d->num_replicas, blocks);
}

static void find_strictest(struct dispatch *d) {
    for (int32_t i = 0; i < d->num_replicas; i++) {
        struct engine_model_info model;
        engine_model_info(d->replica[i], &model);
        if (i == 0 || model.max_model_len < d->model.max_model_len) {
            d->strictest = d->replica[i];
            d->model = model;
        }
    }
}

int dispatch_create_with(const struct engine_options *o, dispatch_start_fn start,
                         void (*wake)(void *), void *wake_ctx, struct dispatch **out,
                         struct error *error) {
    int rc = check_replicas(o, error);
    if (rc)
        return rc;
    struct dispatch *d = xcalloc(1, sizeof *d);
    d->num_replicas = o->replicas;
    d->max_queued_requests = o->max_queued_requests;
    d->max_queued_tokens = o->max_queued_tokens;
    d->prefix_caching = o->enable_prefix_caching;
    d->seed = o->seed;
    d->wake = wake;
    d->wake_ctx = wake_ctx;
    pthread_mutex_init(&d->lock, NULL);
    pthread_mutex_init(&d->wake_lock, NULL);
    clock_cond_init(&d->wake_cond);
    rc = start_replicas(d, o, start, error);
    if (rc) {
        dispatch_destroy(d);
        return rc;
    }
    d->start_us = clock_us();
    find_strictest(d);
    if (d->num_replicas > 1)
        d->choice = create_choice(d, o->enable_prefix_caching);
    *out = d;
    return 0;
}

int dispatch_create(const struct engine_options *o, void (*wake)(void *), void *wake_ctx,
                    struct dispatch **out, struct error *error) {
    return dispatch_create_with(o, engine_create, wake, wake_ctx, out, error);
}

void dispatch_destroy(struct dispatch *d) {
    if (!d)
        return;
    for (int32_t i = 0; i < d->num_replicas; i++)
        engine_destroy(d->replica[i]);
    replica_choice_destroy(d->choice);
    pthread_cond_destroy(&d->wake_cond);
    pthread_mutex_destroy(&d->wake_lock);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

/* ---- requests -------------------------------------------------------------------------------- */

/* One whose last step failed but that has nothing to do is given a request: only the next step
 * tells whether it is well again. */
static bool takes_requests(const struct engine_stats *s) {
    return !s->failed && (s->healthy || s->running + s->waiting == 0);
}

static bool has_room(const struct dispatch *d, const struct engine_stats *s, int32_t num_tokens) {
    bool tokens_fit = d->max_queued_tokens == 0 || s->waiting == 0 ||
                      s->waiting_tokens + num_tokens <= d->max_queued_tokens;
    return s->waiting < d->max_queued_requests && tokens_fit;
}

/* Who may be given a request of so many prompt tokens now, as bits. Nobody but dispatch_submit
 * fills the queues, under the lock, so what has room here still has it then. */
static uint32_t open_replicas(const struct dispatch *d, int32_t num_tokens) {
    uint32_t all = (1u << d->num_replicas) - 1, well = 0, room = 0;
    for (int32_t i = 0; i < d->num_replicas; i++) {
        struct engine_stats stats;
        engine_stats(d->replica[i], &stats);
        well |= (uint32_t)takes_requests(&stats) << i;
        room |= (uint32_t)has_room(d, &stats, num_tokens) << i;
    }
    uint32_t asked = well ? well : all;
    return asked & room ? asked & room : asked; /* all full: any of them says so */
}

/* What an engine alone would settle by itself must not depend on the replica: the seed, and where
 * the context ends. p has been checked. */
static void settle(const struct dispatch *d, struct request_params *p) {
    int32_t most = d->model.max_model_len - p->num_tokens;
    if (!p->has_seed)
        p->sampling.seed = sampler_mix64(d->seed + d->num_accepted + 1);
    p->has_seed = true;
    if (p->max_tokens == 0 || p->max_tokens > most)
        p->max_tokens = most;
    if (p->min_tokens > p->max_tokens)
        p->min_tokens = p->max_tokens;
}

static int submit_to_best(struct dispatch *d, struct request_params *p, void *user,
                          uint64_t *handle, struct error *error) {
    int rc = engine_check(d->strictest, p, error);
    if (rc) {
        engine_count_refusal(d->strictest, rc);
        request_params_deinit(p);
        return rc;
    }
    settle(d, p);
    struct replica_pick pick = replica_choice_pick(d->choice, p, open_replicas(d, p->num_tokens));
    rc = engine_submit(d->replica[pick.replica], p, user, handle, error);
    if (rc)
        return rc;
    d->num_accepted++;
    replica_choice_add(d->choice, &pick, *handle);
    return 0;
}

int dispatch_submit(struct dispatch *d, struct request_params *p, void *user, uint64_t *handle,
                    struct error *error) {
    if (d->num_replicas == 1)
        return engine_submit(d->replica[0], p, user, handle, error);
    /* Held until the request is known here: its events cannot be drained before. */
    pthread_mutex_lock(&d->lock);
    int rc = submit_to_best(d, p, user, handle, error);
    pthread_mutex_unlock(&d->lock);
    return rc;
}

void dispatch_cancel(struct dispatch *d, uint64_t handle) {
    uint64_t replica = handle >> HANDLE_REPLICA_SHIFT;
    if (replica < (uint64_t)d->num_replicas)
        engine_cancel(d->replica[replica], handle);
}

void dispatch_stop_accepting(struct dispatch *d) {
    for (int32_t i = 0; i < d->num_replicas; i++)
        engine_stop_accepting(d->replica[i]);
}

bool dispatch_failure(struct dispatch *d, struct error *error) {
    struct error last = {0};
    for (int32_t i = 0; i < d->num_replicas; i++)
        if (!engine_failure(d->replica[i], &last))
            return false;
    *error = last;
    return true;
}

/* ---- events ---------------------------------------------------------------------------------- */

struct draining {
    struct dispatch *dispatch;
    engine_event_fn fn;
    void *ctx;
};

static void on_event(void *ctx, const struct engine_event *e) {
    struct draining *g = ctx;
    pthread_mutex_lock(&g->dispatch->lock);
    replica_choice_on_event(g->dispatch->choice, e);
    pthread_mutex_unlock(&g->dispatch->lock);
    g->fn(g->ctx, e);
}

void dispatch_drain(struct dispatch *d, engine_event_fn fn, void *ctx) {
    struct draining draining = {d, fn, ctx};
    if (d->num_replicas == 1) {
        engine_drain(d->replica[0], fn, ctx);
        return;
    }
    /* Before the queues are looked at: what is posted behind their backs wakes again. */
    pthread_mutex_lock(&d->wake_lock);
    d->woken = false;
    pthread_mutex_unlock(&d->wake_lock);
    for (int32_t i = 0; i < d->num_replicas; i++)
        engine_drain(d->replica[i], on_event, &draining);
}

/* ---- questions ------------------------------------------------------------------------------- */

static void add_stats(struct engine_stats *sum, const struct engine_stats *s) {
    sum->running += s->running;
    sum->waiting += s->waiting;
    sum->waiting_tokens += s->waiting_tokens;
    sum->kv_blocks_used += s->kv_blocks_used;
    sum->kv_blocks_cached += s->kv_blocks_cached;
    sum->kv_blocks_total += s->kv_blocks_total;
    sum->prompt_tokens_total += s->prompt_tokens_total;
    sum->completion_tokens_total += s->completion_tokens_total;
    sum->prefix_hit_tokens_total += s->prefix_hit_tokens_total;
    sum->preemptions_total += s->preemptions_total;
    sum->requests_total += s->requests_total;
    sum->steps_total += s->steps_total;
    if (sum->last_step_age_us < 0 ||
        (s->last_step_age_us >= 0 && s->last_step_age_us < sum->last_step_age_us))
        sum->last_step_age_us = s->last_step_age_us;
    sum->healthy = sum->healthy && s->healthy;
    sum->failed = sum->failed && s->failed;
}

void dispatch_stats(struct dispatch *d, struct dispatch_stats *out) {
    out->num_replicas = d->num_replicas;
    for (int32_t i = 0; i < d->num_replicas; i++) {
        engine_stats(d->replica[i], &out->replica[i]);
        if (i == 0)
            out->total = out->replica[0];
        else
            add_stats(&out->total, &out->replica[i]);
    }
}

/* Unless a replica does not tell its own: the sum must not fall. */
static void add_up_expert_tokens(struct dispatch_metrics *out, int32_t num_replicas) {
    size_t n = (size_t)out->parts[0].num_layers * (size_t)out->parts[0].num_experts;
    for (int32_t r = 0; r < num_replicas; r++)
        if (!out->parts[r].expert_tokens)
            return;
    out->expert_tokens = xcalloc(n, sizeof *out->expert_tokens);
    for (int32_t r = 0; r < num_replicas; r++)
        for (size_t i = 0; i < n; i++)
            out->expert_tokens[i] += out->parts[r].expert_tokens[i];
}

void dispatch_metrics(struct dispatch *d, struct dispatch_metrics *out) {
    memset(out, 0, sizeof *out);
    dispatch_stats(d, &out->stats);
    dispatch_model_info(d, &out->model);
    out->prefix_caching = d->prefix_caching;
    out->uptime_us = clock_us() - d->start_us;
    for (int32_t i = 0; i < d->num_replicas; i++) {
        struct metrics m;
        engine_metrics(d->replica[i], &m);
        metrics_add(&out->total, &m);
        engine_model_metrics(d->replica[i], &out->parts[i]);
    }
    add_up_expert_tokens(out, d->num_replicas);
}

void dispatch_metrics_deinit(struct dispatch_metrics *m) {
    for (int32_t i = 0; i < MAX_REPLICAS; i++)
        model_metrics_deinit(&m->parts[i]);
    free(m->expert_tokens);
    memset(m, 0, sizeof *m);
}

int32_t dispatch_retry_after_s(struct dispatch *d) {
    int32_t of_well = INT32_MAX, of_any = INT32_MAX;
    for (int32_t i = 0; i < d->num_replicas; i++) {
        struct engine_stats stats;
        int32_t s = engine_retry_after_s(d->replica[i]);
        engine_stats(d->replica[i], &stats);
        of_any = s < of_any ? s : of_any;
        if (takes_requests(&stats))
            of_well = s < of_well ? s : of_well;
    }
    return of_well < INT32_MAX ? of_well : of_any;
}

const struct tokenizer *dispatch_tokenizer(const struct dispatch *d) {
    return engine_tokenizer(d->replica[0]);
}

const struct chat_template *dispatch_chat_template(const struct dispatch *d) {
    return engine_chat_template(d->replica[0]);
}

void dispatch_model_info(const struct dispatch *d, struct engine_model_info *out) {
    *out = d->model;
}

int dispatch_check(const struct dispatch *d, const struct request_params *p, struct error *error) {
    return engine_check(d->strictest, p, error);
}

int dispatch_check_together(const struct dispatch *d, int32_t num_requests, int64_t num_tokens,
                            int32_t longest, struct error *error) {
    int64_t requests = (int64_t)d->max_queued_requests * d->num_replicas;
    int64_t each = d->max_queued_tokens > longest ? d->max_queued_tokens : longest;
    if (num_requests > requests)
        return error_set(error, ERR_INVALID_REQUEST,
                         "%d requests at once are more than the queue holds, %lld "
                         "(--max-queued-requests)",
                         num_requests, (long long)requests);
    if (d->max_queued_tokens > 0 && num_tokens > each * d->num_replicas)
        return error_set(error, ERR_INVALID_REQUEST,
                         "%d requests at once with prompts of %lld tokens in all are more than the "
                         "queue holds, %lld tokens (--max-queued-tokens)",
                         num_requests, (long long)num_tokens, (long long)each * d->num_replicas);
    return 0;
}

static size_t line_length(const char *at, const char *end) {
    const char *newline = memchr(at, '\n', (size_t)(end - at));
    return newline ? (size_t)(newline - at) + 1 : (size_t)(end - at);
}

/* The lines of `table` that are not those of `first`, line by line. */
static void put_differences(const struct buffer *first, const struct buffer *table,
                            struct buffer *out) {
    const char *a = first->data, *a_end = a + first->len;
    const char *b = table->data, *b_end = b + table->len;
    while (b < b_end) {
        size_t a_len = line_length(a, a_end), b_len = line_length(b, b_end);
        if (a_len != b_len || memcmp(a, b, b_len))
            buffer_append(out, b, b_len);
        a += a_len;
        b += b_len;
    }
}

void dispatch_describe(struct dispatch *d, struct buffer *out) {
    struct buffer first = {0};
    engine_describe(d->replica[0], &first);
    buffer_append(out, first.data, first.len);
    if (d->num_replicas > 1)
        buffer_printf(out, "replicas    %d, all but the first as the first, except for:\n",
                      d->num_replicas);
    for (int32_t i = 1; i < d->num_replicas; i++) {
        struct buffer table = {0};
        engine_describe(d->replica[i], &table);
        buffer_printf(out, "replica %d\n", i);
        put_differences(&first, &table, out);
        buffer_deinit(&table);
    }
    buffer_deinit(&first);
}
