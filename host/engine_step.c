#include "host/engine_internal.h"

#include <stdio.h>
#include <stdlib.h>

#include "host/clock.h"
#include "host/log.h"
#include "host/mem.h"

/* A step is late, and the engine unhealthy, after ten times what steps of its size took at their
 * slowest, but not before a second; before the first step there is nothing to go by. A slowest step
 * is forgotten in the course of some hundred others. */
#define STEP_LIMIT_FACTOR   10
#define STEP_LIMIT_FLOOR_US ((int64_t)1000000)
#define FIRST_STEP_LIMIT_US ((int64_t)300000000)

/* --- requests by handle --------------------------------------------------------------------- */

static struct request **find_handle(struct engine *e, uint64_t handle) {
    struct request **link = &e->handles[handle % NUM_HANDLE_BUCKETS];
    while (*link && (*link)->handle != handle)
        link = &(*link)->next;
    return link;
}

static void forget(struct engine *e, struct request *r) {
    struct request **link = find_handle(e, r->handle);
    *link = r->next;
    request_destroy(r);
}

/* --- the ends of a request ------------------------------------------------------------------ */

static int64_t min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static double ms_between(int64_t from_us, int64_t to_us) {
    return to_us < 0 ? 0 : (double)(to_us - from_us) / 1000;
}

/* What every last event of a request says. */
static struct engine_event last_event(const struct request *r, enum event_kind kind,
                                      int64_t now_us) {
    const struct sequence *seq = &r->seq;
    return (struct engine_event){
        .kind = kind,
        .user = r->user,
        .request = r->handle,
        .prompt_tokens = seq->num_prompt,
        .completion_tokens = sequence_num_generated(seq),
        .cached_tokens = seq->cached_tokens,
        .queue_ms = ms_between(r->submitted_us, seq->admitted_us),
        .ttft_ms = ms_between(r->submitted_us, r->first_token_us),
        .total_ms = ms_between(r->submitted_us, now_us),
    };
}

/* Stages the DONE event with the text in e->released, and drops the request. */
static void finish(struct engine *e, struct request *r, enum finish_reason reason) {
    struct sequence *seq = &r->seq;
    int64_t now_us = clock_us();
    struct engine_event event = last_event(r, EVENT_DONE, now_us);
    event.text = e->released.data;
    event.text_len = e->released.len;
    event.finish_reason = reason;
    if (r->prompt_logprobs && seq->prompt_logits_done == seq->num_prompt - 1) {
        event.prompt_logprob_tokens = seq->tokens;
        event.prompt_logprobs = r->prompt_logprobs;
        event.num_prompt_logprobs = seq->num_prompt;
    }
    event_stage(&e->staged, &event);
    engine_count_end(e, r, reason, now_us);
    scheduler_remove(e->scheduler, seq);
    forget(e, r);
}

static void stage_error(struct engine *e, const struct request *r, int code, const char *text) {
    struct engine_event event = last_event(r, EVENT_ERROR, clock_us());
    event.error_code = code;
    event.error_text = text;
    event_stage(&e->staged, &event);
    metrics_count_failure(&e->metrics, code);
}

/* Ends a request whose computation failed; nothing that it computed is shared any more. */
void engine_fail_request(struct engine *e, struct request *r, int code, const char *text) {
    stage_error(e, r, code, text);
    scheduler_discard(e->scheduler, &r->seq);
    forget(e, r);
}

static int64_t deadline_of(const struct engine *e, const struct request *r) {
    double timeout_us = (double)e->options.request_timeout_s * 1e6;
    return timeout_us > 0 ? r->submitted_us + (int64_t)timeout_us : INT64_MAX;
}

static void end_late(struct engine *e, struct sequence *seq, int64_t now_us) {
    char text[128];
    for (struct sequence *next; seq; seq = next) {
        struct request *r = request_of(seq);
        int64_t deadline_us = deadline_of(e, r);
        next = seq->next;
        if (deadline_us > now_us) {
            e->next_deadline_us = min_i64(e->next_deadline_us, deadline_us);
            continue;
        }
        snprintf(text, sizeof text, "%d tokens were generated in %g s, which is all a request gets",
                 sequence_num_generated(seq), (double)e->options.request_timeout_s);
        stage_error(e, r, ERR_TIMEOUT, text);
        scheduler_remove(e->scheduler, seq);
        forget(e, r);
    }
}

void engine_end_late_requests(struct engine *e) {
    int64_t now_us = clock_us();
    if (now_us < e->next_deadline_us)
        return;
    e->next_deadline_us = INT64_MAX;
    end_late(e, scheduler_first_running(e->scheduler), now_us);
    end_late(e, scheduler_first_waiting(e->scheduler), now_us);
}

/* Does a stop string that the last token completes end the text? */
static bool may_stop(const struct request *r) {
    return sequence_num_generated(&r->seq) > r->params.min_tokens;
}

/* Moves what is still held back (half a character, the beginning of a stop string) to e->released.
 * True if it turned out to hold a stop string. */
static bool release_held_text(struct engine *e, struct request *r) {
    buffer_clear(&e->text);
    buffer_clear(&e->released);
    if (!r->prepared || !e->tokenizer)
        return false;
    detok_flush(&r->detok, &e->text);
    bool found = stop_push(&r->stop, e->text.data, e->text.len, may_stop(r), &e->released);
    if (!found)
        stop_flush(&r->stop, &e->released);
    return found;
}

static void cancel(struct engine *e, uint64_t handle) {
    struct request *r = *find_handle(e, handle);
    if (!r)
        return;
    release_held_text(e, r);
    finish(e, r, FINISH_CANCELLED);
}

void engine_take_in(struct engine *e, struct intake *in) {
    while (in->requests) {
        struct request *r = in->requests;
        struct request **bucket = &e->handles[r->handle % NUM_HANDLE_BUCKETS];
        in->requests = r->next;
        r->next = *bucket;
        *bucket = r;
        scheduler_add(e->scheduler, &r->seq);
        e->requests_total++;
        e->next_deadline_us = min_i64(e->next_deadline_us, deadline_of(e, r));
    }
    for (size_t i = 0; i < in->num_handles; i++)
        cancel(e, in->handles[i]);
    free(in->handles);
}

/* --- one step ------------------------------------------------------------------------------- */

/* Whatever the step may admit has its memory before the step begins. */
static void prepare_admissions(struct engine *e) {
    int32_t room = e->options.max_num_seqs - scheduler_num_running(e->scheduler);
    struct sequence *seq = scheduler_first_waiting(e->scheduler), *next;
    for (; seq && room > 0; seq = next, room--) {
        struct request *r = request_of(seq);
        bool prepared = r->prepared;
        next = seq->next;
        request_prepare(r, e->model.vocab_size, e->tokenizer, &e->text);
        if (r->params.grammar && !prepared)
            engine_constrain(e, r);
    }
}

static int step_size(int32_t num_tokens) {
    int size = 31 - __builtin_clz((unsigned)num_tokens);
    return size < NUM_STEP_SIZES ? size : NUM_STEP_SIZES - 1;
}

/* By steps of this size, else of the next larger one, else in proportion from a smaller one. */
static int64_t step_limit_us(const struct engine *e, int32_t num_tokens) {
    int size = step_size(num_tokens), known = size;
    while (known < NUM_STEP_SIZES && e->slowest_us[known] == 0)
        known++;
    if (known == NUM_STEP_SIZES)
        for (known = size; known >= 0 && e->slowest_us[known] == 0;)
            known--;
    if (known < 0)
        return FIRST_STEP_LIMIT_US;
    int64_t slowest = e->slowest_us[known] << (known < size ? size - known : 0);
    int64_t limit = STEP_LIMIT_FACTOR * slowest;
    return limit > STEP_LIMIT_FLOOR_US ? limit : STEP_LIMIT_FLOOR_US;
}

static void note_duration(struct engine *e, int32_t num_tokens, int64_t us) {
    int64_t *slowest = &e->slowest_us[step_size(num_tokens)];
    int64_t faded = *slowest - *slowest / 64;
    *slowest = us >= faded ? us + 1 : faded;
}

/* What callers see of the engine thread's state; under the lock. */
static void refresh_stats(struct engine *e) {
    struct scheduler_counters counters;
    scheduler_counters(e->scheduler, &counters);
    e->num_waiting = scheduler_num_waiting(e->scheduler);
    e->waiting_tokens = scheduler_waiting_tokens(e->scheduler);
    e->stats = (struct engine_stats){
        .running = scheduler_num_running(e->scheduler),
        .kv_blocks_used = kv_cache_num_used(e->kv),
        .kv_blocks_cached = kv_cache_num_cached(e->kv),
        .kv_blocks_total = kv_cache_num_blocks(e->kv),
        .prompt_tokens_total = counters.prompt_tokens,
        .completion_tokens_total = e->completion_tokens_total,
        .prefix_hit_tokens_total = counters.prefix_hit_tokens,
        .preemptions_total = counters.preemptions,
        .requests_total = e->requests_total,
        .steps_total = e->steps_total,
        .healthy = e->failed_steps == 0 && !e->failed,
        .failed = e->failed,
    };
}

/* A step begins: what it has admitted does not wait any more. */
static void announce_step(struct engine *e, int64_t deadline_us) {
    pthread_mutex_lock(&e->lock);
    e->step_deadline_us = deadline_us;
    refresh_stats(e);
    pthread_mutex_unlock(&e->lock);
}

static bool is_eos(const struct engine *e, int32_t token) {
    for (int32_t i = 0; i < e->num_eos_ids; i++)
        if (e->eos_ids[i] == token)
            return true;
    return false;
}

/* ---- what a step's logits are wanted for ----------------------------------------------------- */

static struct sample_job draw_job(const struct engine *e, const struct step_seq *part) {
    const struct request *r = request_of(part->seq);
    int32_t index = sequence_num_generated(part->seq);
    bool ban_eos = index < r->params.min_tokens && !r->params.ignore_eos;
    return (struct sample_job){
        .kind = SAMPLE_DRAW,
        .args = {.params = &r->params.sampling,
                 .counts = r->counts.entries ? &r->counts : NULL,
                 .biases = r->params.logit_bias,
                 .mask = r->mask,
                 .banned = e->eos_ids,
                 .num_biases = r->params.num_logit_bias,
                 .num_banned = ban_eos ? e->num_eos_ids : 0,
                 .index = index},
    };
}

/* One job for each of a sequence's rows: prompt rows first, then the one that is drawn from or, in
 * the middle of a prompt, checked. */
static void add_jobs(struct engine *e, const struct step_seq *part) {
    const struct request *r = request_of(part->seq);
    for (int32_t i = 0; i < part->num_logits; i++) {
        struct sample_job *job = &e->jobs[part->first_logit + i];
        bool last = i == part->num_logits - 1;
        if (last && part->samples)
            *job = draw_job(e, part);
        else if (last && part->checks)
            *job = (struct sample_job){.kind = SAMPLE_CHECK};
        else
            *job = (struct sample_job){.kind = SAMPLE_SCORE,
                                       .token = part->seq->tokens[part->prompt_row + i + 1],
                                       .num_top = r->params.prompt_logprobs};
        job->row = part->first_logit + i;
    }
}

/* The host's sampler does a job. */
static void run_job(struct engine *e, const float *logits, const struct sample_job *job,
                    struct sample_outcome *out) {
    struct sample_args args = job->args;
    args.logits = logits + (int64_t)job->row * e->model.vocab_size;
    if (job->kind == SAMPLE_DRAW)
        out->rc = sampler_sample(e->sampler, &args, &out->sample);
    else if (job->kind == SAMPLE_SCORE)
        out->rc = sampler_logprobs(e->sampler, args.logits, job->token, job->num_top, &out->sample);
    else
        out->rc = sampler_check(e->sampler, args.logits);
}

static int run_jobs(struct engine *e, const struct step *step, const float *logits,
                    struct error *error) {
    int32_t n = step->batch.num_logits;
    for (int32_t i = 0; i < step->batch.num_seqs; i++)
        add_jobs(e, &step->seqs[i]);
    if (e->model.sample)
        return e->model.sample(e->model.ctx, e->jobs, n, e->outcomes, error);
    for (int32_t i = 0; i < n; i++)
        run_job(e, logits, &e->jobs[i], &e->outcomes[i]);
    return 0;
}

/* Hands the outcomes to one sequence. */
static struct step_result take_outcomes(struct engine *e, const struct step_seq *part) {
    struct request *r = request_of(part->seq);
    struct step_result result = {0};
    for (int32_t i = 0; i < part->num_logits; i++) {
        const struct sample_outcome *out = &e->outcomes[part->first_logit + i];
        enum sample_kind kind = e->jobs[part->first_logit + i].kind;
        if (out->rc)
            return (struct step_result){.rc = out->rc};
        if (kind == SAMPLE_SCORE)
            request_put_prompt_logprobs(r, part->prompt_row + i + 1, &out->sample);
        else if (kind == SAMPLE_DRAW)
            result.sample = &out->sample;
    }
    if (result.sample && r->counts.entries)
        token_counts_add(&r->counts, result.sample->token, true);
    return result;
}

/* Appends the text of a new token to e->released. True when it completes a stop string. */
static bool append_text(struct engine *e, struct request *r, int32_t token) {
    buffer_clear(&e->text);
    buffer_clear(&e->released);
    if (!e->tokenizer)
        return false;
    detok_push(&r->detok, token, &e->text);
    return stop_push(&r->stop, e->text.data, e->text.len, may_stop(r), &e->released);
}

/* A token was sampled and appended: text, event, and the end of the request if it is one. */
static void emit_token(struct engine *e, struct request *r, const struct sample *sample) {
    struct sequence *seq = &r->seq;
    struct logprob top[MAX_LOGPROBS];
    e->completion_tokens_total++;
    engine_count_token(e, r);
    bool ended = !r->params.ignore_eos && is_eos(e, sample->token);
    bool stopped = !ended && append_text(e, r, sample->token);
    if (ended)
        buffer_clear(&e->released);
    struct engine_event event = {
        .kind = EVENT_TOKEN,
        .user = r->user,
        .request = r->handle,
        .text = e->released.data,
        .text_len = e->released.len,
        .token = sample->token,
    };
    if (r->params.sampling.logprobs >= 0) {
        for (int32_t i = 0; i < sample->num_top; i++)
            top[i] = (struct logprob){sample->top_tokens[i], sample->top_logprobs[i]};
        event.has_logprobs = true;
        event.logprobs = (struct token_logprobs){sample->logprob, sample->num_top, top};
    }
    event_stage(&e->staged, &event);

    enum grammar_outlook outlook = GRAMMAR_GOES_ON;
    if (!ended && !stopped && r->matcher)
        outlook = engine_follow_grammar(e, r, sample->token);
    ended |= outlook == GRAMMAR_AT_END;
    if (stopped) {
        buffer_clear(&e->released);
        finish(e, r, FINISH_STOP);
    } else if (ended || seq->num_tokens == seq->capacity) {
        stopped = release_held_text(e, r);
        finish(e, r, ended || stopped ? FINISH_STOP : FINISH_LENGTH);
    } else if (outlook != GRAMMAR_GOES_ON) {
        engine_fail_grammar(e, r, outlook);
    }
}

/* The part of a step that allocates nothing. Returns the step, NULL when there is nothing to
 * compute; *rc is that of the model. */
static const struct step *compute(struct engine *e, int64_t now_us, int *rc, struct error *error) {
    float *logits = NULL;
    mem_step_begin();
    const struct step *step = scheduler_schedule(e->scheduler, now_us);
    if (step) {
        announce_step(e, now_us + step_limit_us(e, step->batch.num_tokens));
        *rc = e->model.run(e->model.ctx, &step->batch, &logits, error);
    }
    if (step && *rc == 0)
        *rc = run_jobs(e, step, logits, error);
    for (int32_t i = 0; step && *rc == 0 && i < step->batch.num_seqs; i++) {
        const struct step_seq *part = &step->seqs[i];
        struct step_result *result = &e->results[i];
        *result = take_outcomes(e, part);
        if (result->rc == 0)
            scheduler_commit(e->scheduler, part, result->sample ? result->sample->token : 0);
    }
    mem_step_end();
    return step;
}

void engine_step(struct engine *e) {
    int64_t start_us = clock_us();
    struct error error = {0};
    int rc = 0;
    prepare_admissions(e);
    const struct step *step = compute(e, start_us, &rc, &error);
    if (!step)
        return;
    e->step_end_us = clock_us();
    e->failed_steps = rc ? e->failed_steps + 1 : 0;
    if (rc == 0) {
        note_duration(e, step->batch.num_tokens, e->step_end_us - start_us);
        engine_count_step(e, start_us, step->batch.num_tokens);
    } else {
        engine_step_failed(e, step, &error);
    }
    for (int32_t i = 0; rc == 0 && i < step->batch.num_seqs; i++) {
        struct request *r = request_of(step->seqs[i].seq);
        const struct step_result *result = &e->results[i];
        if (result->rc) {
            log_error("a request ended: its logits are not finite");
            engine_fail_request(e, r, ERR_INTERNAL,
                                "the model produced values that are not finite");
        } else if (step->seqs[i].samples) {
            emit_token(e, r, result->sample);
        }
    }
    e->steps_total++;
    pthread_mutex_lock(&e->lock);
    e->step_deadline_us = 0;
    e->last_step_us = e->step_end_us;
    pthread_mutex_unlock(&e->lock);
}

void engine_publish(struct engine *e) {
    pthread_mutex_lock(&e->lock);
    refresh_stats(e);
    engine_show_metrics(e);
    pthread_mutex_unlock(&e->lock);
    if (event_queue_post(&e->events, &e->staged) && e->wake)
        e->wake(e->wake_ctx);
}
