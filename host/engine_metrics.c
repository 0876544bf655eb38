/* engine_metrics: what the engine thread counts, and how callers see it (metrics.h).
 *
 * Times are those of steps: all tokens of a step have come when it ended. What is counted is copied
 * under the engine's lock after each step, some 3 KB, so that a reader never waits for a step and
 * the engine never for a reader.
 */
#include "host/clock.h"
#include "host/engine_internal.h"
#include "host/model_metrics.h"

static double seconds(int64_t from_us, int64_t to_us) {
    return to_us > from_us ? (double)(to_us - from_us) / 1e6 : 0;
}

void engine_count_step(struct engine *e, int64_t start_us, int32_t num_tokens) {
    metrics_observe(&e->metrics, HIST_STEP, seconds(start_us, e->step_end_us));
    metrics_observe(&e->metrics, HIST_ITERATION_TOKENS, num_tokens);
    throughput_count_step(&e->throughput, e->step_end_us, e->step_end_us - start_us, num_tokens);
}

void engine_count_token(struct engine *e, struct request *r) {
    int64_t now_us = e->step_end_us;
    if (r->first_token_us < 0) {
        r->first_token_us = now_us;
        metrics_observe(&e->metrics, HIST_TTFT, seconds(r->submitted_us, now_us));
    } else {
        metrics_observe(&e->metrics, HIST_ITL, seconds(r->last_token_us, now_us));
    }
    r->last_token_us = now_us;
}

void engine_count_end(struct engine *e, const struct request *r, enum finish_reason reason,
                      int64_t now_us) {
    const struct sequence *seq = &r->seq;
    struct metrics *m = &e->metrics;
    m->finished[reason]++;
    metrics_observe(m, HIST_E2E, seconds(r->submitted_us, now_us));
    metrics_observe(m, HIST_PROMPT_TOKENS, seq->num_prompt);
    metrics_observe(m, HIST_GENERATION_TOKENS, sequence_num_generated(seq));
    if (reason != FINISH_CANCELLED)
        throughput_count_end(&e->throughput, now_us);
    if (seq->admitted_us >= 0)
        metrics_observe(m, HIST_QUEUE, seconds(r->submitted_us, seq->admitted_us));
    if (r->first_token_us < 0)
        return;
    metrics_observe(m, HIST_PREFILL, seconds(seq->admitted_us, r->first_token_us));
    metrics_observe(m, HIST_DECODE, seconds(r->first_token_us, r->last_token_us));
    metrics_observe(m, HIST_INFERENCE, seconds(seq->admitted_us, r->last_token_us));
}

void engine_show_metrics(struct engine *e) {
    e->shown_metrics = e->metrics;
    e->shown_throughput = e->throughput;
}

void engine_metrics(struct engine *e, struct metrics *out) {
    pthread_mutex_lock(&e->lock);
    *out = e->shown_metrics;
    metrics_add(out, &e->refusals);
    pthread_mutex_unlock(&e->lock);
}

/* Bytes that the steps since the last look had to read, per second of them, over the limit. A
 * window in which a step runs and none has ended yet goes on until one has. */
static void look_at_bandwidth(struct engine *e, struct model_metrics *out) {
    enum { LEAST_WINDOW_US = 1000000 };
    struct bandwidth_window *w = &e->bandwidth;
    double step_s = e->shown_metrics.histogram[HIST_STEP].sum;
    double bytes = (double)(out->read_bytes - w->read_bytes), s = step_s - w->step_s;
    bool unfinished = s == 0 && e->step_deadline_us;
    int64_t now_us = clock_us();
    if (now_us - w->start_us >= LEAST_WINDOW_US && !unfinished) {
        w->utilization = s > 0 && out->bandwidth_limit > 0 ? bytes / s / out->bandwidth_limit : 0;
        w->start_us = now_us;
        w->read_bytes = out->read_bytes;
        w->step_s = step_s;
    }
    out->bandwidth_utilization = w->utilization;
}

void engine_model_metrics(struct engine *e, struct model_metrics *out) {
    if (!e->model.measure)
        return;
    e->model.measure(e->model.ctx, out);
    pthread_mutex_lock(&e->lock);
    if (out->has_bandwidth)
        look_at_bandwidth(e, out);
    pthread_mutex_unlock(&e->lock);
}

void engine_count_refusal(struct engine *e, int code) {
    pthread_mutex_lock(&e->lock);
    metrics_count_failure(&e->refusals, code);
    pthread_mutex_unlock(&e->lock);
}

int32_t engine_retry_after_s(struct engine *e) {
    int64_t now_us = clock_us();
    pthread_mutex_lock(&e->lock);
    struct throughput_rates rates = throughput_rates(&e->shown_throughput, now_us);
    struct waiting_work work = {
        .stuck = !e->stats.healthy || !engine_is_live(e, now_us),
        .requests = e->num_submitted + e->num_waiting,
        .prompt_tokens = e->submitted_tokens + e->waiting_tokens,
    };
    if (rates.tokens_per_s == 0 && !work.stuck) /* it was idle */
        rates = throughput_all_rates(&e->shown_throughput);
    const struct histogram *generated = &e->shown_metrics.histogram[HIST_GENERATION_TOKENS];
    int64_t ended = histogram_count(generated);
    if (ended > 0)
        work.mean_generated = generated->sum / (double)ended;
    pthread_mutex_unlock(&e->lock);
    return throughput_retry_after_s(&rates, &work);
}
