/* engine_failure: what becomes of the engine when a step has failed: a rank is lost or stuck, or a
 * device reports an error.
 *
 * A model that can be made ready again (model_recover) gets the running requests anew, from their
 * prompts and what was generated so far: nothing of the failed step was committed, and what a token
 * is depends on the request alone, so clients see a pause and no difference. Otherwise the engine
 * ends: every request is answered with the reason, new ones are refused, and engine_failure tells
 * the server to leave, so that a supervisor can start it again.
 */
#include <stdio.h>

#include "host/engine_internal.h"
#include "host/log.h"

/* After this many failed steps in a row the engine does not try again. */
enum { MAX_FAILED_STEPS = 3 };

static void fail_all(struct engine *e, const char *text) {
    struct sequence *seq;
    while ((seq = scheduler_first_running(e->scheduler)) ||
           (seq = scheduler_first_waiting(e->scheduler)))
        engine_fail_request(e, request_of(seq), ERR_INTERNAL, text);
}

static void end_engine(struct engine *e, const char *why) {
    log_error("the engine ends: %s", why);
    pthread_mutex_lock(&e->lock);
    snprintf(e->failure, sizeof e->failure, "the server has failed: %s", why);
    e->failed = e->refusing = true;
    pthread_mutex_unlock(&e->lock);
    fail_all(e, e->failure);
    if (e->wake)
        e->wake(e->wake_ctx); /* with no request to answer, nothing else tells the server */
}

void engine_step_failed(struct engine *e, const struct step *step, const struct error *why) {
    struct error hopeless = {0};
    log_error("a step of %d tokens of %d requests failed: %s", step->batch.num_tokens,
              step->batch.num_seqs, why->text);
    if (!e->model.recover) {
        for (int32_t i = 0; i < step->batch.num_seqs; i++)
            engine_fail_request(e, request_of(step->seqs[i].seq), ERR_INTERNAL,
                                "the computation failed");
    } else if (e->failed_steps >= MAX_FAILED_STEPS) {
        end_engine(e, why->text);
    } else if (e->model.recover(e->model.ctx, &hopeless) != 0) {
        end_engine(e, hopeless.text[0] ? hopeless.text : why->text);
    } else {
        log_warn("the ranks are ready again; %d running requests are computed anew",
                 scheduler_num_running(e->scheduler));
        scheduler_restart(e->scheduler);
    }
}

void engine_look_after_model(struct engine *e) {
    struct error error = {0};
    if (e->failed)
        fail_all(e, e->failure);
    else if (e->model.check && e->model.check(e->model.ctx, &error) != 0)
        end_engine(e, error.text);
}

bool engine_failure(struct engine *e, struct error *error) {
    pthread_mutex_lock(&e->lock);
    bool failed = e->failed;
    if (failed)
        error_set(error, ERR_INTERNAL, "%s", e->failure);
    pthread_mutex_unlock(&e->lock);
    return failed;
}
