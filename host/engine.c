#include "host/engine.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/chat_template.h"
#include "host/clock.h"
#include "host/engine_internal.h"
#include "host/error.h"
#include "host/log.h"
#include "host/mem.h"

/* Submissions that nobody has taken up for this long, without a step going on, mean that the engine
 * thread is stuck. */
#define TAKE_UP_LIMIT_US ((int64_t)1000000)

void engine_options_default(struct engine_options *o) {
    *o = (struct engine_options){
        .device = "cpu",
        .cpu_isa = "auto",
        .load_format = "auto",
        .kv_cache_dtype = "auto",
        .activation_dtype = "bf16",
        .ranks = 1,
        .replicas = 1,
        .max_num_seqs = 64,
        .max_num_batched_tokens = 512,
        .max_queued_requests = 512,
        .max_queued_tokens = 1 << 20,
        .gpu_memory_utilization = 0.9f,
        .allreduce = "auto",
        .allreduce_dtype = "auto",
        .embedding = "device",
        .join_timeout_s = 300,
        .comm_timeout_s = 10,
        .enable_prefix_caching = true,
    };
}

const char *finish_reason_name(enum finish_reason r) {
    switch (r) {
    case FINISH_STOP:
        return "stop";
    case FINISH_LENGTH:
        return "length";
    case FINISH_CANCELLED:
        return "cancelled";
    case FINISH_NONE:
        break;
    }
    return "none";
}

/* --- the engine thread ---------------------------------------------------------------------- */

/* Under the lock. False: it is time to look after the model. */
static bool wait_for_work(struct engine *e) {
    enum { CHECK_US = 250000 };
    if (!e->model.check || e->failed)
        return pthread_cond_wait(&e->work_cond, &e->lock) == 0;
    struct timespec t = clock_deadline(CHECK_US);
    return pthread_cond_timedwait(&e->work_cond, &e->lock, &t) == 0;
}

/* Waits until there is something to do and takes what was submitted. False: stop. */
static bool take_work(struct engine *e, struct intake *in) {
    bool idle =
        scheduler_num_running(e->scheduler) == 0 && scheduler_num_waiting(e->scheduler) == 0;
    pthread_mutex_lock(&e->lock);
    while (idle && !e->stopping && !e->submitted && e->num_cancels == 0 && wait_for_work(e))
        ;
    bool go_on = !e->stopping;
    *in = (struct intake){0};
    if (go_on) {
        *in = (struct intake){e->submitted, e->cancels, e->num_cancels};
        e->num_waiting += e->num_submitted;
        e->waiting_tokens += e->submitted_tokens;
        e->submitted = NULL;
        e->submitted_end = &e->submitted;
        e->num_submitted = 0;
        e->submitted_tokens = 0;
        e->submitted_since_us = 0;
        e->cancels = NULL;
        e->num_cancels = e->max_cancels = 0;
    }
    pthread_mutex_unlock(&e->lock);
    return go_on;
}

static void *engine_main(void *arg) {
    struct engine *e = arg;
    struct intake in;
    while (take_work(e, &in)) {
        engine_take_in(e, &in);
        engine_look_after_model(e);
        engine_end_late_requests(e);
        if (e->staged.len > 0)
            engine_publish(e); /* those who cancelled do not wait for the step */
        engine_step(e);
        engine_publish(e);
        sched_yield(); /* to those who have to send the step's tokens, or to read a request */
    }
    return NULL;
}

/* --- lifecycle ------------------------------------------------------------------------------ */

static void add_eos(struct engine *e, const int32_t *ids, int32_t count) {
    for (int32_t i = 0; i < count; i++) {
        bool known = ids[i] < 0 || ids[i] >= e->model.vocab_size;
        for (int32_t j = 0; j < e->num_eos_ids; j++)
            known |= e->eos_ids[j] == ids[i];
        if (!known && e->num_eos_ids < MAX_EOS)
            e->eos_ids[e->num_eos_ids++] = ids[i];
    }
}

/* What ends a text: the model's and the tokenizer's eos tokens, and the tokens that end a turn of
 * the chat template ("<|im_end|>"), which need not be among them. */
static void collect_eos(struct engine *e) {
    struct token_list turns = {0};
    int32_t count;
    add_eos(e, e->model.eos_ids, e->model.num_eos_ids);
    if (!e->tokenizer)
        return;
    const int32_t *eos = tokenizer_eos(e->tokenizer, &count);
    add_eos(e, eos, count);
    if (e->chat_template)
        chat_template_stop_ids(e->chat_template, e->tokenizer, &turns);
    add_eos(e, turns.ids, (int32_t)turns.len);
    free(turns.ids);
}

/* The context length: what was asked for, the model allows and the KV blocks hold. */
static int resolve_max_model_len(const struct engine_options *o, const struct engine_model *model,
                                 int32_t *out, struct error *error) {
    int64_t kv_tokens = (int64_t)model->num_kv_blocks * KV_BLOCK_SIZE;
    *out = o->max_model_len > 0 ? o->max_model_len : model->max_model_len;
    if (kv_tokens >= *out)
        return 0;
    if (o->max_model_len > 0)
        return error_set(error, ERR_CONFIG,
                         "--max-model-len %d: the KV cache holds %lld tokens; lower it or raise "
                         "--kv-cache-memory-bytes, --num-kv-blocks or --gpu-memory-utilization",
                         o->max_model_len, (long long)kv_tokens);
    log_info("max_model_len is %lld, not the model's %d: that is what %d KV blocks hold",
             (long long)kv_tokens, *out, model->num_kv_blocks);
    *out = (int32_t)kv_tokens;
    return 0;
}

int engine_check_options(const struct engine_options *o, int32_t model_max_len,
                         struct error *error) {
    if (o->max_num_seqs < 1 || o->max_num_batched_tokens < 1 || o->max_queued_requests < 1)
        return error_set(
            error, ERR_CONFIG,
            "--max-num-seqs, --max-num-batched-tokens and --max-queued-requests must be "
            "at least 1 (are %d, %d and %d)",
            o->max_num_seqs, o->max_num_batched_tokens, o->max_queued_requests);
    if (o->max_num_batched_tokens < o->max_num_seqs)
        return error_set(
            error, ERR_CONFIG,
            "--max-num-batched-tokens %d is below --max-num-seqs %d: every running "
            "sequence needs a token in each step; raise the former or lower the latter",
            o->max_num_batched_tokens, o->max_num_seqs);
    if (o->max_model_len > model_max_len)
        return error_set(error, ERR_CONFIG, "--max-model-len %d: the model takes at most %d tokens",
                         o->max_model_len, model_max_len);
    return 0;
}

/* Everything that the engine thread owns. */
static void create_workers(struct engine *e) {
    e->kv = kv_cache_create(&(struct kv_cache_options){
        .num_blocks = e->model.num_kv_blocks,
        .enable_prefix_caching = e->options.enable_prefix_caching,
    });
    e->scheduler = scheduler_create(
        &(struct scheduler_options){
            .max_num_seqs = e->options.max_num_seqs,
            .max_num_batched_tokens = e->options.max_num_batched_tokens,
            .max_logits = e->model.max_logits,
            .max_model_len = e->options.max_model_len,
        },
        e->kv);
    e->sampler = sampler_create(e->model.vocab_size);
    if (e->tokenizer)
        e->grammars =
            grammar_pool_create(e->tokenizer, e->model.vocab_size, e->eos_ids, e->num_eos_ids);
    e->results = xcalloc((size_t)e->options.max_num_seqs, sizeof *e->results);
    e->jobs = xcalloc((size_t)e->model.max_logits, sizeof *e->jobs);
    e->outcomes = xcalloc((size_t)e->model.max_logits, sizeof *e->outcomes);
}

static void free_engine(struct engine *e) {
    scheduler_destroy(e->scheduler);
    kv_cache_destroy(e->kv);
    sampler_destroy(e->sampler);
    grammar_pool_destroy(e->grammars);
    free(e->results);
    free(e->jobs);
    free(e->outcomes);
    free(e->cancels);
    free(e->name);
    buffer_deinit(&e->staged);
    buffer_deinit(&e->text);
    buffer_deinit(&e->released);
    event_queue_deinit(&e->events);
    pthread_cond_destroy(&e->work_cond);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

int engine_create_with_model(const struct engine_options *o, const struct engine_model *model,
                             struct tokenizer *tokenizer, const struct chat_template *chat_template,
                             void (*wake)(void *), void *wake_ctx, struct engine **out,
                             struct error *error) {
    int32_t max_model_len;
    int rc = engine_check_options(o, model->max_model_len, error);
    if (rc == 0)
        rc = resolve_max_model_len(o, model, &max_model_len, error);
    if (rc)
        return rc;
    struct engine *e = xcalloc(1, sizeof *e);
    e->options = *o;
    e->options.max_model_len = max_model_len;
    e->model = *model;
    e->name = xstrdup(model->name ? model->name : "model");
    e->model.name = e->name;
    e->tokenizer = tokenizer;
    e->chat_template = chat_template;
    e->wake = wake;
    e->wake_ctx = wake_ctx;
    e->limits = (struct request_limits){model->vocab_size, max_model_len, tokenizer != NULL};
    collect_eos(e);
    pthread_mutex_init(&e->lock, NULL);
    clock_cond_init(&e->work_cond);
    event_queue_init(&e->events);
    e->submitted_end = &e->submitted;
    e->next_deadline_us = INT64_MAX;
    e->last_handle = (uint64_t)o->replica << HANDLE_REPLICA_SHIFT;
    create_workers(e);
    engine_publish(e);
    rc = pthread_create(&e->thread, NULL, engine_main, e);
    if (rc) {
        free_engine(e);
        return error_set(error, ERR_NO_MEMORY, "cannot start the engine thread: %s", strerror(rc));
    }
    *out = e;
    return 0;
}

void engine_destroy(struct engine *e) {
    struct sequence *seq;
    if (!e)
        return;
    pthread_mutex_lock(&e->lock);
    e->stopping = true;
    pthread_cond_signal(&e->work_cond);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);

    while ((seq = scheduler_first_running(e->scheduler)) ||
           (seq = scheduler_first_waiting(e->scheduler))) {
        scheduler_remove(e->scheduler, seq);
        request_destroy(request_of(seq));
    }
    while (e->submitted) {
        struct request *r = e->submitted;
        e->submitted = r->next;
        request_destroy(r);
    }
    if (e->model.destroy)
        e->model.destroy(e->model.ctx);
    struct tokenizer *tokenizer = e->tokenizer; /* from which others of its parts borrow */
    free_engine(e);
    tokenizer_free(tokenizer);
}

/* --- what callers do ------------------------------------------------------------------------ */

/* Why a request of so many prompt tokens cannot be queued now; under the lock. */
static int check_queue(const struct engine *e, int32_t num_tokens, struct error *error) {
    int32_t waiting = e->num_submitted + e->num_waiting;
    int64_t tokens = e->submitted_tokens + e->waiting_tokens, most = e->options.max_queued_tokens;
    if (e->failed)
        return error_set(error, ERR_INTERNAL, "%s", e->failure);
    if (e->refusing)
        return error_set(error, ERR_SHUTTING_DOWN, "%s", error_text(ERR_SHUTTING_DOWN));
    if (waiting >= e->options.max_queued_requests)
        return error_set(error, ERR_OVERLOADED, "%d requests are waiting already, the most allowed",
                         waiting);
    if (most > 0 && waiting > 0 && tokens + num_tokens > most)
        return error_set(error, ERR_OVERLOADED,
                         "prompts of %lld tokens are waiting already, %lld are allowed",
                         (long long)tokens, (long long)most);
    return 0;
}

int engine_check(const struct engine *e, const struct request_params *p, struct error *error) {
    return request_params_check(p, &e->limits, error);
}

int engine_submit(struct engine *e, struct request_params *p, void *user, uint64_t *handle,
                  struct error *error) {
    int rc = request_params_check(p, &e->limits, error);
    if (rc) {
        engine_count_refusal(e, rc);
        request_params_deinit(p);
        return rc;
    }
    struct request *r = request_create(p, e->limits.max_model_len);
    r->user = user;
    r->submitted_us = r->params.arrival_us ? r->params.arrival_us : clock_us();
    pthread_mutex_lock(&e->lock);
    rc = check_queue(e, r->seq.num_prompt, error);
    if (rc != 0)
        metrics_count_failure(&e->refusals, rc);
    if (rc == 0) {
        r->handle = *handle = ++e->last_handle;
        if (!r->params.has_seed)
            r->params.sampling.seed = sampler_mix64(e->options.seed + r->handle);
        *e->submitted_end = r;
        e->submitted_end = &r->next;
        e->submitted_tokens += r->seq.num_prompt;
        if (e->num_submitted++ == 0)
            e->submitted_since_us = clock_us();
        pthread_cond_signal(&e->work_cond);
        r = NULL;
    }
    pthread_mutex_unlock(&e->lock);
    request_destroy(r); /* refused */
    return rc;
}

void engine_cancel(struct engine *e, uint64_t handle) {
    pthread_mutex_lock(&e->lock);
    if (e->num_cancels == e->max_cancels) {
        e->max_cancels = e->max_cancels ? 2 * e->max_cancels : 16;
        e->cancels = xrealloc(e->cancels, e->max_cancels * sizeof *e->cancels);
    }
    e->cancels[e->num_cancels++] = handle;
    pthread_cond_signal(&e->work_cond);
    pthread_mutex_unlock(&e->lock);
}

void engine_stop_accepting(struct engine *e) {
    pthread_mutex_lock(&e->lock);
    e->refusing = true;
    pthread_mutex_unlock(&e->lock);
}

void engine_drain(struct engine *e, engine_event_fn fn, void *ctx) {
    event_queue_drain(&e->events, fn, ctx);
}

void engine_wait(struct engine *e, int32_t timeout_ms) {
    event_queue_wait(&e->events, timeout_ms);
}

bool engine_is_live(const struct engine *e, int64_t now_us) {
    if (e->step_deadline_us)
        return now_us <= e->step_deadline_us;
    return !e->submitted_since_us || now_us - e->submitted_since_us <= TAKE_UP_LIMIT_US;
}

void engine_stats(struct engine *e, struct engine_stats *out) {
    int64_t now_us = clock_us();
    pthread_mutex_lock(&e->lock);
    *out = e->stats;
    out->waiting = e->num_submitted + e->num_waiting;
    out->waiting_tokens = e->submitted_tokens + e->waiting_tokens;
    out->last_step_age_us = e->last_step_us ? now_us - e->last_step_us : -1;
    out->healthy = e->stats.healthy && engine_is_live(e, now_us);
    pthread_mutex_unlock(&e->lock);
}

const struct tokenizer *engine_tokenizer(const struct engine *e) {
    return e->tokenizer;
}

const struct chat_template *engine_chat_template(const struct engine *e) {
    return e->chat_template;
}

void engine_model_info(const struct engine *e, struct engine_model_info *out) {
    *out = (struct engine_model_info){
        .name = e->name,
        .max_model_len = e->limits.max_model_len,
        .vocab_size = e->limits.vocab_size,
        .ranks = e->model.ranks,
    };
}

void engine_describe(struct engine *e, struct buffer *out) {
    buffer_printf(out, "model       %s, vocabulary %d\n", e->name, e->limits.vocab_size);
    if (e->model.describe)
        e->model.describe(e->model.ctx, out);
    buffer_printf(out, "context     %d tokens, KV cache %d blocks of %d tokens%s\n",
                  e->limits.max_model_len, e->model.num_kv_blocks, KV_BLOCK_SIZE,
                  e->options.enable_prefix_caching ? ", shared prefixes" : "");
    buffer_printf(out, "chat        %s\n",
                  e->chat_template ? chat_template_name(e->chat_template)
                                   : "no template: prompts and token ids only");
    buffer_printf(out, "scheduling  %d sequences, %d tokens a step, %d waiting requests\n",
                  e->options.max_num_seqs, e->options.max_num_batched_tokens,
                  e->options.max_queued_requests);
}
