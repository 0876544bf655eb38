/* The scheduler, with a fake model (tests/fake_model.h) and time as a step counter.
 *
 * KV blocks hold 16 tokens. Token values do not matter to the scheduler; prompts made by
 * make_sequence count up from a base, so that different bases share no prefix.
 */
#include <stdlib.h>
#include <string.h>

#include "host/error.h"
#include "host/mem.h"
#include "host/scheduler.h"
#include "tests/fake_model.h"
#include "tests/shim.h"

enum { VOCAB = 97 };

struct rig {
    struct kv_cache *kv;
    struct scheduler *s;
    struct fake_model model;
    int64_t now;
};

static void rig_open(struct rig *r, int32_t num_blocks, const struct scheduler_options *o) {
    memset(r, 0, sizeof *r);
    r->kv = kv_cache_create(
        &(struct kv_cache_options){.num_blocks = num_blocks, .enable_prefix_caching = true});
    r->s = scheduler_create(o, r->kv);
    fake_model_init(&r->model, VOCAB, num_blocks, o->max_logits);
}

static void rig_close(struct rig *r) {
    EXPECT_INT_EQ(r->model.num_errors, 0);
    if (r->model.num_errors)
        FAIL("last error of the batches: %s", r->model.last_error);
    scheduler_destroy(r->s);
    kv_cache_destroy(r->kv);
    fake_model_deinit(&r->model);
}

static struct sequence *make_sequence(int32_t base, int32_t num_prompt, int32_t max_new) {
    struct sequence *seq = xcalloc(1, sizeof *seq);
    int32_t *tokens = xmalloc((size_t)num_prompt * sizeof *tokens);
    for (int32_t i = 0; i < num_prompt; i++)
        tokens[i] = (base + i) % VOCAB;
    sequence_init(seq, tokens, num_prompt, num_prompt + max_new, false);
    sequence_prepare(seq);
    return seq;
}

static void free_sequence(struct rig *r, struct sequence *seq) {
    if (seq->state != SEQUENCE_IDLE)
        scheduler_remove(r->s, seq);
    sequence_deinit(seq);
    free(seq);
}

/* One step; every sequence that samples gets the model's choice, which must be the pure function of
 * its tokens, and leaves when it is complete. Returns the step (NULL when there was nothing to do).
 */
static const struct step *run_step(struct rig *r) {
    float *logits;
    const struct step *step = scheduler_schedule(r->s, r->now++);
    scheduler_check(r->s);
    if (!step)
        return NULL;
    EXPECT_INT_EQ(fake_model_run(&r->model, &step->batch, &logits), 0);
    for (int32_t i = 0; i < step->batch.num_seqs; i++) {
        const struct step_seq *part = &step->seqs[i];
        struct sequence *seq = part->seq;
        for (int32_t j = 0; j < part->num_logits; j++) {
            bool prompt_row = j < part->num_logits - part->samples - part->checks;
            int32_t context =
                prompt_row ? part->prompt_row + j + 1 : seq->num_computed + part->num_tokens;
            EXPECT_INT_EQ(r->model.next[part->first_logit + j],
                          fake_next(seq->tokens, context, VOCAB));
        }
        int32_t token =
            part->samples ? r->model.next[part->first_logit + part->num_logits - 1] : -1;
        scheduler_commit(r->s, part, token);
        if (seq->num_tokens == seq->capacity)
            scheduler_remove(r->s, seq);
    }
    scheduler_check(r->s);
    return step;
}

static const struct step_seq *part_of(const struct step *step, const struct sequence *seq) {
    for (int32_t i = 0; i < step->batch.num_seqs; i++)
        if (step->seqs[i].seq == seq)
            return &step->seqs[i];
    return NULL;
}

static const struct scheduler_options small = {
    .max_num_seqs = 4, .max_num_batched_tokens = 8, .max_logits = 8, .max_model_len = 64};

TEST(Scheduler, TheBatchDescribesEveryRow) {
    /* Step 1: prompts of 3 and 2 tokens. Step 2: both decode and a third prefills. */
    struct rig r;
    rig_open(&r, 8, &small);
    struct sequence *a = make_sequence(10, 3, 4), *b = make_sequence(20, 2, 4),
                    *c = make_sequence(30, 20, 4);
    scheduler_add(r.s, a);
    scheduler_add(r.s, b);
    const struct step *step = run_step(&r);
    const struct batch *batch = &step->batch;
    EXPECT_INT_EQ(batch->num_tokens, 5);
    EXPECT_INT_EQ(batch->num_seqs, 2);
    EXPECT_MEM_EQ(batch->tokens, ((int32_t[]){10, 11, 12, 20, 21}), 20);
    EXPECT_MEM_EQ(batch->positions, ((int32_t[]){0, 1, 2, 0, 1}), 20);
    EXPECT_MEM_EQ(batch->cu_seqlens, ((int32_t[]){0, 3, 5}), 12);
    EXPECT_MEM_EQ(batch->seq_lens, ((int32_t[]){3, 2}), 8);
    EXPECT_MEM_EQ(batch->logits_rows, ((int32_t[]){2, 4}), 8);
    EXPECT_INT_EQ(batch->max_blocks, 4);
    EXPECT_INT_EQ(batch->slot_mapping[3], b->blocks[0] * KV_BLOCK_SIZE);

    scheduler_add(r.s, c);
    step = run_step(&r);
    EXPECT_INT_EQ(batch->num_tokens, 8);
    EXPECT_MEM_EQ(batch->cu_seqlens, ((int32_t[]){0, 1, 2, 8}), 16);
    EXPECT_MEM_EQ(batch->seq_lens, ((int32_t[]){4, 3, 6}), 12);
    EXPECT_MEM_EQ(batch->logits_rows, ((int32_t[]){0, 1, 7}), 12);
    EXPECT_INT_EQ(batch->num_logits, 3); /* the last to check what c's part has computed */
    EXPECT_FALSE(part_of(step, c)->samples);
    EXPECT_TRUE(part_of(step, c)->checks);
    free_sequence(&r, a);
    free_sequence(&r, b);
    free_sequence(&r, c);
    EXPECT_TRUE(scheduler_schedule(r.s, 0) == NULL);
    rig_close(&r);
}

TEST(Scheduler, ALongPromptNeverHoldsUpDecoding) {
    struct rig r;
    rig_open(&r, 8, &small);
    struct sequence *a = make_sequence(10, 4, 20), *b = make_sequence(40, 40, 4);
    scheduler_add(r.s, a);
    run_step(&r);
    scheduler_add(r.s, b);
    for (int32_t chunk = 0; chunk < 6; chunk++) { /* 7 tokens a step: 40 in 6 */
        const struct step *step = run_step(&r);
        EXPECT_TRUE(step->seqs[0].seq == a);
        EXPECT_INT_EQ(part_of(step, b)->num_tokens, chunk < 5 ? 7 : 5);
    }
    EXPECT_INT_EQ(sequence_num_generated(a), 7);
    EXPECT_INT_EQ(sequence_num_generated(b), 1);
    free_sequence(&r, a);
    free_sequence(&r, b);
    rig_close(&r);
}

TEST(Scheduler, AHeadThatDoesNotFitHoldsBackTheSmallerOnesBehindIt) {
    struct rig r;
    rig_open(&r, 4, &small);
    struct sequence *a = make_sequence(10, 33, 8), *b = make_sequence(50, 30, 8),
                    *c = make_sequence(80, 2, 2);
    scheduler_add(r.s, a);
    scheduler_add(r.s, b);
    scheduler_add(r.s, c);
    for (int32_t i = 0; i < 8; i++)
        run_step(&r);
    EXPECT_INT_EQ(a->state, SEQUENCE_RUNNING);
    EXPECT_INT_EQ(b->state, SEQUENCE_WAITING);
    EXPECT_INT_EQ(c->state, SEQUENCE_WAITING);
    free_sequence(&r, a);
    run_step(&r);
    EXPECT_INT_EQ(b->state, SEQUENCE_RUNNING);
    free_sequence(&r, b);
    free_sequence(&r, c);
    rig_close(&r);
}

TEST(Scheduler, APreemptedSequenceContinuesWhereItWas) {
    /* 6 blocks. a and b start with 20 tokens (2 blocks each) and take a third at 33. At 49 a, the
     * older, wants a fourth: b is preempted, and stays ahead of c, which came later. */
    const struct scheduler_options o = {
        .max_num_seqs = 4, .max_num_batched_tokens = 64, .max_logits = 8, .max_model_len = 64};
    struct rig r;
    struct scheduler_counters counters;
    rig_open(&r, 6, &o);
    struct sequence *a = make_sequence(0, 20, 40), *b = make_sequence(50, 20, 40),
                    *c = make_sequence(80, 20, 10);
    scheduler_add(r.s, a);
    scheduler_add(r.s, b);
    run_step(&r);
    scheduler_add(r.s, c);
    while (b->state != SEQUENCE_WAITING)
        run_step(&r);
    int32_t b_tokens = b->num_tokens;
    EXPECT_INT_EQ(a->num_tokens, 50);
    EXPECT_INT_EQ(b_tokens, 49);
    EXPECT_INT_EQ(b->num_blocks, 0);
    EXPECT_TRUE(scheduler_first_waiting(r.s) == b && b->next == c);
    while (sequence_num_generated(a) < 40)
        run_step(&r);
    free_sequence(&r, a);
    while (sequence_num_generated(b) < 40)
        run_step(&r); /* run_step checks every token against the pure function */
    scheduler_counters(r.s, &counters);
    EXPECT_INT_EQ(counters.preemptions, 1);
    EXPECT_INT_EQ(b->num_tokens, 60);
    free_sequence(&r, b);
    free_sequence(&r, c);
    rig_close(&r);
}

TEST(Scheduler, TheMostRecentlyAdmittedIsTheOneToBePreempted) {
    /* 6 blocks: a takes 2, b and c 1 each; a a third at 33 tokens and b a second at 17. Then there
     * are none: c sits out, and when a wants a fourth at 49, c is preempted although b comes next.
     */
    const struct scheduler_options o = {
        .max_num_seqs = 4, .max_num_batched_tokens = 64, .max_logits = 8, .max_model_len = 64};
    struct rig r;
    rig_open(&r, 6, &o);
    struct sequence *a = make_sequence(0, 31, 30), *b = make_sequence(30, 10, 30),
                    *c = make_sequence(60, 10, 30);
    scheduler_add(r.s, a);
    scheduler_add(r.s, b);
    scheduler_add(r.s, c);
    while (a->num_tokens < 49) {
        run_step(&r);
        EXPECT_INT_EQ(scheduler_num_running(r.s), 3);
    }
    run_step(&r);
    EXPECT_INT_EQ(a->num_blocks, 4);
    EXPECT_INT_EQ(b->state, SEQUENCE_RUNNING);
    EXPECT_INT_EQ(b->num_blocks, 2);
    EXPECT_INT_EQ(c->state, SEQUENCE_WAITING);
    while (c->state != SEQUENCE_IDLE)
        run_step(&r);
    free_sequence(&r, a);
    free_sequence(&r, b);
    free_sequence(&r, c);
    rig_close(&r);
}

TEST(Scheduler, TheMostRecentSequenceWithoutABlockSitsOutAndKeepsWhatItHas) {
    /* 4 blocks. a has 31 tokens and takes a third block at 33; b has 10 and wants a second one at
     * 17, when there is none: it waits, running, until a has finished with 43. */
    const struct scheduler_options o = {
        .max_num_seqs = 2, .max_num_batched_tokens = 64, .max_logits = 4, .max_model_len = 64};
    struct rig r;
    struct scheduler_counters counters;
    rig_open(&r, 4, &o);
    struct sequence *a = make_sequence(0, 31, 12), *b = make_sequence(50, 10, 18);
    scheduler_add(r.s, a);
    scheduler_add(r.s, b);
    while (a->state != SEQUENCE_IDLE) {
        const struct step *step = run_step(&r);
        EXPECT_TRUE(part_of(step, a) != NULL);
        EXPECT_INT_EQ(b->state, SEQUENCE_RUNNING);
        EXPECT_INT_LE(b->num_tokens, 17);
    }
    EXPECT_INT_EQ(b->num_tokens, 17);
    EXPECT_INT_EQ(b->num_blocks, 1);
    while (b->state != SEQUENCE_IDLE)
        run_step(&r);
    scheduler_counters(r.s, &counters);
    EXPECT_INT_EQ(counters.preemptions, 0);
    free_sequence(&r, a);
    free_sequence(&r, b);
    rig_close(&r);
}

TEST(Scheduler, APrefixHitLeavesAtLeastOneTokenToCompute) {
    struct rig r;
    struct scheduler_counters counters;
    rig_open(&r, 8, &small);
    struct sequence *a = make_sequence(5, 32, 2);
    scheduler_add(r.s, a);
    while (sequence_num_generated(a) < 2)
        run_step(&r);
    free_sequence(&r, a);
    EXPECT_INT_EQ(kv_cache_num_cached(r.kv), 2);
    struct sequence *same = make_sequence(5, 32, 2), *longer = make_sequence(5, 35, 2);
    scheduler_add(r.s, same);
    scheduler_add(r.s, longer);
    while (sequence_num_generated(same) < 2)
        run_step(&r);
    EXPECT_INT_EQ(same->cached_tokens, 16);
    while (sequence_num_generated(longer) < 2)
        run_step(&r);
    EXPECT_INT_EQ(longer->cached_tokens, 32);
    scheduler_counters(r.s, &counters);
    EXPECT_INT_EQ(counters.prefix_hit_tokens, 48);
    free_sequence(&r, same);
    free_sequence(&r, longer);
    rig_close(&r);
}

TEST(Scheduler, PromptLogitsAreGivenOnceForEveryRowAndBoundTheChunk) {
    /* 8 rows of logits, 4 reserved for sampling: 4 prompt rows a step. */
    struct rig r;
    rig_open(&r, 8, &small);
    struct sequence *a = make_sequence(5, 10, 2), *b = make_sequence(5, 3, 2);
    a->prompt_logits = true;
    scheduler_add(r.s, a);
    scheduler_add(r.s, b);
    const struct step *step = run_step(&r);
    EXPECT_INT_EQ(part_of(step, a)->num_tokens, 4);
    EXPECT_INT_EQ(part_of(step, b)->num_tokens, 3); /* b is not held up */
    step = run_step(&r);
    EXPECT_INT_EQ(part_of(step, a)->prompt_row, 4);
    EXPECT_INT_EQ(part_of(step, a)->num_logits, 4);
    step = run_step(&r);
    EXPECT_INT_EQ(part_of(step, a)->num_tokens, 2);
    EXPECT_INT_EQ(part_of(step, a)->num_logits, 2); /* one prompt row, one to sample from */
    EXPECT_TRUE(part_of(step, a)->samples);
    EXPECT_INT_EQ(a->prompt_logits_done, 9);
    free_sequence(&r, a);
    free_sequence(&r, b);
    rig_close(&r);
}

TEST(Scheduler, RemovalInAnyStateReturnsTheBlocks) {
    struct rig r;
    rig_open(&r, 8, &small);
    struct sequence *decoding = make_sequence(0, 4, 4), *prefilling = make_sequence(20, 40, 4),
                    *waiting = make_sequence(70, 60, 4);
    scheduler_add(r.s, decoding);
    run_step(&r);
    scheduler_add(r.s, prefilling);
    scheduler_add(r.s, waiting);
    run_step(&r);
    free_sequence(&r, waiting);
    free_sequence(&r, decoding);
    free_sequence(&r, prefilling);
    scheduler_check(r.s);
    EXPECT_INT_EQ(kv_cache_num_used(r.kv), kv_cache_num_cached(r.kv));
    EXPECT_INT_EQ(scheduler_num_running(r.s) + scheduler_num_waiting(r.s), 0);
    rig_close(&r);
}

TEST(Scheduler, ADiscardedSequenceLeavesNothingToShare) {
    struct rig r;
    rig_open(&r, 8, &small);
    struct sequence *a = make_sequence(0, 40, 4);
    scheduler_add(r.s, a);
    while (sequence_num_generated(a) == 0)
        run_step(&r);
    scheduler_discard(r.s, a);
    EXPECT_INT_EQ(kv_cache_num_used(r.kv), 0);
    free_sequence(&r, a);
    rig_close(&r);
}

/* --- ten thousand random steps -------------------------------------------------------------- */

struct sim {
    struct rig rig;
    struct scheduler_options options;
    uint64_t rng;
    struct sequence *live[64]; /* in order of arrival */
    int64_t arrival_of[64];    /* its number */
    int64_t num_arrivals;
    int32_t num_live;
    int64_t last_admission_order; /* arrival number of the latest first admission */
    int32_t finished, cancelled, sat_out, with_hits;
};

static struct sequence *random_sequence(struct sim *sim) {
    uint64_t *rng = &sim->rng;
    int32_t max_len = sim->options.max_model_len;
    int32_t num_prompt = 1 + fake_below(rng, fake_below(rng, 4) ? max_len / 2 : max_len - 1);
    int32_t max_new = 1 + fake_below(rng, max_len - num_prompt);
    struct sequence *seq = make_sequence(0, num_prompt, max_new);
    int32_t family = fake_below(rng, 3), fork = fake_below(rng, num_prompt + 1);
    for (int32_t i = 0; i < num_prompt; i++)
        seq->tokens[i] = i < fork ? (family * 31 + i) % VOCAB : fake_below(rng, VOCAB);
    seq->prompt_logits = fake_below(rng, 8) == 0;
    return seq;
}

static void drop(struct sim *sim, int32_t i) {
    free_sequence(&sim->rig, sim->live[i]);
    sim->num_live--;
    for (; i < sim->num_live; i++) {
        sim->live[i] = sim->live[i + 1];
        sim->arrival_of[i] = sim->arrival_of[i + 1];
    }
}

static void arrive_and_cancel(struct sim *sim, bool arrivals) {
    if (arrivals && sim->num_live < 20 && fake_below(&sim->rng, 6) == 0)
        for (int32_t n = 1 + fake_below(&sim->rng, 5); n > 0; n--) {
            struct sequence *seq = random_sequence(sim);
            sim->arrival_of[sim->num_live] = sim->num_arrivals++;
            sim->live[sim->num_live++] = seq;
            scheduler_add(sim->rig.s, seq);
        }
    if (sim->num_live > 0 && fake_below(&sim->rng, 40) == 0) {
        drop(sim, fake_below(&sim->rng, sim->num_live));
        sim->cancelled++;
    }
}

/* First admissions happen in the order of arrival. */
static void check_fifo(struct sim *sim) {
    int64_t now = sim->rig.now - 1;
    for (int32_t i = 0; i < sim->num_live; i++) {
        const struct sequence *seq = sim->live[i];
        if (seq->admitted_us != now)
            continue;
        EXPECT_INT_GT(sim->arrival_of[i], sim->last_admission_order);
        sim->last_admission_order = sim->arrival_of[i];
        sim->with_hits += seq->cached_tokens > 0;
    }
    for (int32_t i = 1; i < sim->num_live; i++)
        EXPECT_FALSE(sim->live[i]->admitted_us >= 0 && sim->live[i - 1]->admitted_us < 0);
}

/* Sequences that were to decode when the step was planned and still run have their token, except
 * that the most recently admitted one may have to sit out. */
static void check_decodes(struct sim *sim, const struct step *step, struct sequence **decoding,
                          int32_t count) {
    const struct sequence *tail = NULL;
    for (struct sequence *s = scheduler_first_running(sim->rig.s); s; s = s->next)
        tail = s;
    for (int32_t i = 0; i < count; i++) {
        if (decoding[i]->state != SEQUENCE_RUNNING || part_of(step, decoding[i]))
            continue;
        EXPECT_TRUE(decoding[i] == tail);
        sim->sat_out++;
    }
    for (int32_t i = 1; i < step->batch.num_seqs; i++)
        EXPECT_FALSE(step->seqs[i].num_tokens == 1 && step->seqs[i].samples &&
                     step->seqs[i - 1].num_tokens > 1);
}

static void sim_step(struct sim *sim, bool arrivals) {
    struct sequence *decoding[64];
    int32_t num_decoding = 0;
    arrive_and_cancel(sim, arrivals);
    for (struct sequence *s = scheduler_first_running(sim->rig.s); s; s = s->next)
        if (s->num_tokens - s->num_computed == 1)
            decoding[num_decoding++] = s;
    const struct step *step = run_step(&sim->rig);
    if (!step) {
        EXPECT_INT_EQ(sim->num_live, 0);
        return;
    }
    EXPECT_INT_LE(step->batch.num_tokens, sim->options.max_num_batched_tokens);
    EXPECT_INT_LE(step->batch.num_seqs, sim->options.max_num_seqs);
    EXPECT_INT_LE(step->batch.num_logits, sim->options.max_logits);
    check_decodes(sim, step, decoding, num_decoding);
    check_fifo(sim);
    for (int32_t i = 0; i < sim->num_live; i++) {
        struct sequence *seq = sim->live[i];
        if (seq->num_tokens < seq->capacity)
            continue;
        if (seq->prompt_logits)
            EXPECT_INT_EQ(seq->prompt_logits_done, seq->num_prompt - 1);
        drop(sim, i--);
        sim->finished++;
    }
}

static void simulate(int32_t num_blocks, const struct scheduler_options *o, uint64_t seed,
                     int32_t steps) {
    struct sim sim = {.options = *o, .rng = seed, .last_admission_order = -1};
    struct scheduler_counters counters;
    rig_open(&sim.rig, num_blocks, o);
    for (int32_t i = 0; i < steps && !shim_failed(); i++)
        sim_step(&sim, true);
    for (int32_t i = 0; sim.num_live > 0 && i < 20000 && !shim_failed(); i++)
        sim_step(&sim, false);
    EXPECT_INT_EQ(sim.num_live, 0); /* nobody starves */
    EXPECT_INT_EQ(kv_cache_num_used(sim.rig.kv), kv_cache_num_cached(sim.rig.kv));
    scheduler_counters(sim.rig.s, &counters);
    EXPECT_INT_GT(sim.finished, steps / 100);
    EXPECT_INT_GT(sim.with_hits, 0);
    EXPECT_INT_GT(sim.cancelled, 0);
    if (num_blocks < 16) {
        EXPECT_INT_GT(counters.preemptions, 0);
        EXPECT_INT_GT(sim.sat_out, 0);
    }
    while (sim.num_live > 0)
        drop(&sim, 0);
    rig_close(&sim.rig);
}

TEST(Scheduler, TenThousandRandomStepsWithTooFewBlocks) {
    const struct scheduler_options o = {
        .max_num_seqs = 6, .max_num_batched_tokens = 48, .max_logits = 12, .max_model_len = 128};
    simulate(10, &o, 1, 10000);
}

TEST(Scheduler, RandomStepsWithBarelyOneSequenceOfBlocks) {
    const struct scheduler_options o = {
        .max_num_seqs = 6, .max_num_batched_tokens = 7, .max_logits = 7, .max_model_len = 64};
    simulate(4, &o, 2, 6000);
}

TEST(Scheduler, RandomStepsWithPlentyOfBlocks) {
    const struct scheduler_options o = {
        .max_num_seqs = 8, .max_num_batched_tokens = 64, .max_logits = 24, .max_model_len = 160};
    simulate(120, &o, 3, 3000);
}
