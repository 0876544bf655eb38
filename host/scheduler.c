#include "host/scheduler.h"

#include <stdlib.h>
#include <string.h>

#include "host/error.h"
#include "host/mem.h"

struct seq_list {
    struct sequence *head, *tail;
    int32_t count;
};

/* How many tokens a running sequence computes in the step being planned. */
struct plan_entry {
    struct sequence *seq;
    int32_t num_tokens;
};

/* What is left of the step's limits while it is being planned. */
struct plan {
    int32_t tokens_left;      /* beside one for every decoding sequence */
    int32_t prompt_rows_left; /* logits rows for prompt_logits sequences */
    bool short_of_blocks;     /* somebody running did not get the blocks it wanted */
};

struct scheduler {
    struct scheduler_options options;
    struct kv_cache *kv; /* borrowed */
    struct seq_list waiting, running;
    int64_t waiting_tokens;
    struct scheduler_counters counters;
    int32_t max_blocks; /* of one sequence */

    struct plan_entry *entries; /* [max_num_seqs] in order of admission; owned, as all below */
    int32_t num_entries;
    struct step step;
    struct step_seq *seqs;                         /* [max_num_seqs] */
    int32_t *tokens, *positions, *slot_mapping;    /* [max_num_batched_tokens] */
    int32_t *cu_seqlens, *seq_lens, *block_tables; /* [S + 1], [S], [S, max_blocks] */
    int32_t *logits_rows;                          /* [max_logits] */
};

static int32_t blocks_of(int32_t num_tokens) {
    return (num_tokens + KV_BLOCK_SIZE - 1) / KV_BLOCK_SIZE;
}

static int32_t min_i32(int32_t a, int32_t b) {
    return a < b ? a : b;
}

static int32_t max_i32(int32_t a, int32_t b) {
    return a > b ? a : b;
}

static void list_push_back(struct seq_list *list, struct sequence *seq) {
    seq->prev = list->tail;
    seq->next = NULL;
    if (list->tail)
        list->tail->next = seq;
    else
        list->head = seq;
    list->tail = seq;
    list->count++;
}

static void list_push_front(struct seq_list *list, struct sequence *seq) {
    seq->prev = NULL;
    seq->next = list->head;
    if (list->head)
        list->head->prev = seq;
    else
        list->tail = seq;
    list->head = seq;
    list->count++;
}

static void list_remove(struct seq_list *list, struct sequence *seq) {
    if (seq->prev)
        seq->prev->next = seq->next;
    else
        list->head = seq->next;
    if (seq->next)
        seq->next->prev = seq->prev;
    else
        list->tail = seq->prev;
    seq->prev = seq->next = NULL;
    list->count--;
}

static int32_t *new_i32(int64_t count) {
    return xcalloc((size_t)count, sizeof(int32_t));
}

struct scheduler *scheduler_create(const struct scheduler_options *o, struct kv_cache *kv) {
    CHECK(o->max_num_seqs >= 1 && o->max_num_batched_tokens >= o->max_num_seqs &&
              o->max_logits > o->max_num_seqs,
          "max_num_seqs %d, max_num_batched_tokens %d, max_logits %d", o->max_num_seqs,
          o->max_num_batched_tokens, o->max_logits);
    CHECK(o->max_model_len >= 1 && blocks_of(o->max_model_len) <= kv_cache_num_blocks(kv),
          "max_model_len %d needs %d KV blocks, there are %d", o->max_model_len,
          blocks_of(o->max_model_len), kv_cache_num_blocks(kv));
    struct scheduler *s = xcalloc(1, sizeof *s);
    s->options = *o;
    s->kv = kv;
    s->max_blocks = blocks_of(o->max_model_len);
    s->entries = xcalloc((size_t)o->max_num_seqs, sizeof *s->entries);
    s->seqs = xcalloc((size_t)o->max_num_seqs, sizeof *s->seqs);
    s->tokens = new_i32(o->max_num_batched_tokens);
    s->positions = new_i32(o->max_num_batched_tokens);
    s->slot_mapping = new_i32(o->max_num_batched_tokens);
    s->cu_seqlens = new_i32(o->max_num_seqs + 1);
    s->seq_lens = new_i32(o->max_num_seqs);
    s->block_tables = new_i32((int64_t)o->max_num_seqs * s->max_blocks);
    s->logits_rows = new_i32(o->max_logits);
    s->step.seqs = s->seqs;
    s->step.batch = (struct batch){
        .tokens = s->tokens,
        .positions = s->positions,
        .cu_seqlens = s->cu_seqlens,
        .seq_lens = s->seq_lens,
        .block_tables = s->block_tables,
        .max_blocks = s->max_blocks,
        .slot_mapping = s->slot_mapping,
        .logits_rows = s->logits_rows,
    };
    return s;
}

void scheduler_destroy(struct scheduler *s) {
    if (!s)
        return;
    free(s->entries);
    free(s->seqs);
    free(s->tokens);
    free(s->positions);
    free(s->slot_mapping);
    free(s->cu_seqlens);
    free(s->seq_lens);
    free(s->block_tables);
    free(s->logits_rows);
    free(s);
}

void scheduler_add(struct scheduler *s, struct sequence *seq) {
    CHECK(seq->state == SEQUENCE_IDLE, "sequence added twice");
    CHECK(seq->capacity <= s->options.max_model_len, "a sequence of %d tokens, max_model_len %d",
          seq->capacity, s->options.max_model_len);
    seq->state = SEQUENCE_WAITING;
    list_push_back(&s->waiting, seq);
    s->waiting_tokens += seq->num_tokens;
}

static void release_blocks(struct scheduler *s, struct sequence *seq) {
    kv_cache_release(s->kv, seq->blocks, seq->num_blocks);
    seq->num_blocks = seq->num_registered = seq->num_computed = 0;
}

void scheduler_remove(struct scheduler *s, struct sequence *seq) {
    CHECK(seq->state != SEQUENCE_IDLE, "sequence removed twice");
    if (seq->state == SEQUENCE_WAITING)
        s->waiting_tokens -= seq->num_tokens;
    list_remove(seq->state == SEQUENCE_WAITING ? &s->waiting : &s->running, seq);
    release_blocks(s, seq);
    seq->state = SEQUENCE_IDLE;
}

void scheduler_discard(struct scheduler *s, struct sequence *seq) {
    kv_cache_forget(s->kv, seq->blocks, seq->num_blocks);
    scheduler_remove(s, seq);
}

/* From running to the front of the queue. */
static void put_back(struct scheduler *s, struct sequence *seq) {
    list_remove(&s->running, seq);
    release_blocks(s, seq);
    seq->state = SEQUENCE_WAITING;
    list_push_front(&s->waiting, seq);
    s->waiting_tokens += seq->num_tokens;
}

void scheduler_restart(struct scheduler *s) {
    while (s->running.tail)
        put_back(s, s->running.tail);
}

int32_t scheduler_num_waiting(const struct scheduler *s) {
    return s->waiting.count;
}

int64_t scheduler_waiting_tokens(const struct scheduler *s) {
    return s->waiting_tokens;
}

int32_t scheduler_num_running(const struct scheduler *s) {
    return s->running.count;
}

struct sequence *scheduler_first_waiting(const struct scheduler *s) {
    return s->waiting.head;
}

struct sequence *scheduler_first_running(const struct scheduler *s) {
    return s->running.head;
}

/* --- planning ------------------------------------------------------------------------------- */

static bool decodes(const struct sequence *seq) {
    return seq->num_tokens - seq->num_computed == 1;
}

static bool prompt_rows_outstanding(const struct sequence *seq) {
    return seq->prompt_logits && seq->prompt_logits_done < seq->num_prompt - 1;
}

/* How many of the next n rows are prompt rows whose logits are still wanted. */
static int32_t prompt_rows_of(const struct sequence *seq, int32_t n) {
    if (!prompt_rows_outstanding(seq))
        return 0;
    int32_t first = max_i32(seq->num_computed, seq->prompt_logits_done);
    return max_i32(0, min_i32(seq->num_computed + n, seq->num_prompt - 1) - first);
}

/* The longest chunk of a prefill within what is left of the step. */
static int32_t chunk_of(const struct sequence *seq, const struct plan *plan) {
    int32_t n = min_i32(seq->num_tokens - seq->num_computed, plan->tokens_left);
    int32_t rows = prompt_rows_of(seq, n);
    if (rows > plan->prompt_rows_left)
        n = max_i32(seq->num_computed, seq->prompt_logits_done) + plan->prompt_rows_left -
            seq->num_computed;
    return n;
}

static void preempt(struct scheduler *s, struct sequence *seq, struct plan *plan) {
    if (decodes(seq))
        plan->tokens_left++; /* its reserved token */
    put_back(s, seq);
    s->counters.preemptions++;
}

/* Gives seq the blocks for its next n tokens, taking them from later sequences if need be. Returns
 * for how many tokens it has room. */
static int32_t make_room(struct scheduler *s, struct sequence *seq, int32_t n, struct plan *plan) {
    int32_t wanted = blocks_of(seq->num_computed + n);
    while (seq->num_blocks < wanted) {
        int32_t b = kv_cache_alloc(s->kv);
        if (b != KV_NO_BLOCK) {
            seq->blocks[seq->num_blocks++] = b;
            continue;
        }
        plan->short_of_blocks = true;
        if (s->running.tail == seq)
            return min_i32(n, seq->num_blocks * KV_BLOCK_SIZE - seq->num_computed);
        preempt(s, s->running.tail, plan);
    }
    return n;
}

static void enter(struct scheduler *s, struct sequence *seq, int32_t n, struct plan *plan) {
    plan->prompt_rows_left -= prompt_rows_of(seq, n);
    if (n > 0)
        s->entries[s->num_entries++] = (struct plan_entry){seq, n};
}

/* Running sequences, oldest first. A token for every decode is set aside before, so a prefill can
 * be served before younger decodes without taking theirs. */
static void plan_running(struct scheduler *s, struct plan *plan) {
    for (struct sequence *seq = s->running.head; seq; seq = seq->next)
        plan->tokens_left -= decodes(seq);
    for (struct sequence *seq = s->running.head; seq; seq = seq->next) {
        if (decodes(seq)) {
            int32_t n = make_room(s, seq, 1, plan);
            plan->tokens_left += 1 - n;
            enter(s, seq, n, plan);
        } else {
            int32_t n = make_room(s, seq, chunk_of(seq, plan), plan);
            plan->tokens_left -= n;
            enter(s, seq, n, plan);
        }
    }
}

/* Blocks that running sequences still need for tokens that they already have, and one for each to
 * grow into, so that an admission is not followed by a preemption at once. */
static int32_t blocks_promised(const struct scheduler *s) {
    int32_t sum = 0;
    for (struct sequence *seq = s->running.head; seq; seq = seq->next)
        sum += max_i32(0, blocks_of(seq->num_tokens) - seq->num_blocks) + 1;
    return sum;
}

/* Admits the head of the queue if all its blocks are available. */
static bool admit(struct scheduler *s, struct plan *plan, int64_t now_us) {
    struct sequence *seq = s->waiting.head;
    int32_t max_hits = (seq->num_tokens - 1) / KV_BLOCK_SIZE, hits_cached;
    if (prompt_rows_outstanding(seq))
        max_hits = min_i32(max_hits, seq->prompt_logits_done / KV_BLOCK_SIZE);
    int32_t hits = kv_cache_peek(s->kv, seq->tokens, max_hits, &hits_cached);
    int32_t needed = blocks_of(seq->num_tokens) - hits + hits_cached;
    if (needed + blocks_promised(s) > kv_cache_num_available(s->kv))
        return false;

    CHECK(seq->blocks, "a sequence was not prepared before it was admitted");
    list_remove(&s->waiting, seq);
    s->waiting_tokens -= seq->num_tokens;
    list_push_back(&s->running, seq);
    seq->state = SEQUENCE_RUNNING;
    seq->num_blocks = kv_cache_match(s->kv, seq->tokens, max_hits, seq->blocks);
    seq->num_registered = seq->num_blocks;
    seq->num_computed = seq->num_blocks * KV_BLOCK_SIZE;
    if (seq->admitted_us < 0) {
        seq->admitted_us = now_us;
        seq->cached_tokens = seq->num_computed;
        s->counters.prefix_hit_tokens += seq->num_computed;
        s->counters.prompt_tokens += seq->num_prompt;
    }
    int32_t n = chunk_of(seq, plan);
    CHECK(make_room(s, seq, n, plan) == n, "blocks that were available are gone");
    plan->tokens_left -= n;
    enter(s, seq, n, plan);
    return true;
}

/* --- the batch ------------------------------------------------------------------------------ */

/* Appends a sequence's tokens to the batch. */
static void emit(struct scheduler *s, const struct plan_entry *entry) {
    struct batch *b = &s->step.batch;
    struct sequence *seq = entry->seq;
    int32_t n = entry->num_tokens, index = b->num_seqs++;
    int32_t end = seq->num_computed + n;
    struct step_seq *part = &s->seqs[index];
    *part = (struct step_seq){
        .seq = seq,
        .num_tokens = n,
        .first_logit = b->num_logits,
        .prompt_row = max_i32(seq->num_computed, seq->prompt_logits_done),
        .samples = end == seq->num_tokens,
    };
    int32_t prompt_rows = prompt_rows_of(seq, n);
    part->checks = !part->samples && (prompt_rows == 0 || part->prompt_row + prompt_rows < end);
    part->num_logits = prompt_rows + part->samples + part->checks;

    for (int32_t i = 0; i < n; i++) {
        int32_t position = seq->num_computed + i, row = b->num_tokens + i;
        s->tokens[row] = seq->tokens[position];
        s->positions[row] = position;
        s->slot_mapping[row] =
            seq->blocks[position / KV_BLOCK_SIZE] * KV_BLOCK_SIZE + position % KV_BLOCK_SIZE;
    }
    int32_t first_row = b->num_tokens;
    for (int32_t i = 0; i < prompt_rows; i++)
        s->logits_rows[b->num_logits++] = first_row + part->prompt_row + i - seq->num_computed;
    if (part->samples || part->checks)
        s->logits_rows[b->num_logits++] = first_row + n - 1;

    int32_t *table = s->block_tables + (int64_t)index * s->max_blocks;
    memcpy(table, seq->blocks, (size_t)seq->num_blocks * sizeof *table);
    s->seq_lens[index] = end;
    b->num_tokens += n;
    s->cu_seqlens[index + 1] = b->num_tokens;
}

const struct step *scheduler_schedule(struct scheduler *s, int64_t now_us) {
    struct plan plan = {
        .tokens_left = s->options.max_num_batched_tokens,
        .prompt_rows_left = s->options.max_logits - s->options.max_num_seqs,
    };
    struct batch *b = &s->step.batch;
    s->num_entries = 0;
    plan_running(s, &plan);
    while (s->waiting.head && !plan.short_of_blocks && plan.tokens_left > 0 &&
           s->running.count < s->options.max_num_seqs)
        if (!admit(s, &plan, now_us))
            break;

    b->num_tokens = b->num_seqs = b->num_logits = 0;
    s->cu_seqlens[0] = 0;
    for (int32_t i = 0; i < s->num_entries; i++)
        if (decodes(s->entries[i].seq))
            emit(s, &s->entries[i]);
    for (int32_t i = 0; i < s->num_entries; i++)
        if (!decodes(s->entries[i].seq))
            emit(s, &s->entries[i]);
    CHECK(b->num_tokens <= s->options.max_num_batched_tokens &&
              b->num_logits <= s->options.max_logits,
          "a step of %d tokens and %d rows of logits", b->num_tokens, b->num_logits);
    CHECK(b->num_tokens > 0 || (!s->running.head && !s->waiting.head),
          "no progress with %d running and %d waiting", s->running.count, s->waiting.count);
    return b->num_tokens > 0 ? &s->step : NULL;
}

/* --- after the step ------------------------------------------------------------------------- */

void scheduler_commit(struct scheduler *s, const struct step_seq *part, int32_t token) {
    struct sequence *seq = part->seq;
    CHECK(seq->state == SEQUENCE_RUNNING, "commit of a sequence that is not running");
    seq->num_computed += part->num_tokens;
    if (seq->prompt_logits)
        seq->prompt_logits_done =
            max_i32(seq->prompt_logits_done, min_i32(seq->num_computed, seq->num_prompt - 1));
    for (; (seq->num_registered + 1) * KV_BLOCK_SIZE <= seq->num_computed; seq->num_registered++) {
        int32_t i = seq->num_registered;
        seq->blocks[i] =
            kv_cache_register(s->kv, seq->blocks[i], i ? seq->blocks[i - 1] : KV_NO_BLOCK,
                              seq->tokens + (int64_t)i * KV_BLOCK_SIZE);
    }
    if (part->samples) {
        CHECK(seq->num_tokens < seq->capacity, "a token more than the %d announced", seq->capacity);
        seq->tokens[seq->num_tokens++] = token;
    }
}

void scheduler_counters(const struct scheduler *s, struct scheduler_counters *out) {
    *out = s->counters;
}

static void check_list(const struct seq_list *list, enum sequence_state state) {
    int32_t n = 0;
    const struct sequence *prev = NULL;
    for (const struct sequence *seq = list->head; seq; prev = seq, seq = seq->next, n++) {
        CHECK(seq->prev == prev && seq->state == state, "broken list of sequences");
        CHECK(seq->num_tokens <= seq->capacity && seq->num_computed < seq->num_tokens,
              "%d tokens of %d, %d computed", seq->num_tokens, seq->capacity, seq->num_computed);
        CHECK(seq->num_computed <= seq->num_blocks * KV_BLOCK_SIZE, "computed without blocks");
        CHECK(seq->num_registered * KV_BLOCK_SIZE <= seq->num_computed, "shared before computed");
        CHECK(state == SEQUENCE_RUNNING || seq->num_blocks == 0, "a waiting sequence has blocks");
    }
    CHECK(n == list->count && list->tail == prev, "a list says %d sequences, has %d", list->count,
          n);
}

void scheduler_check(const struct scheduler *s) {
    int32_t *refs = new_i32(kv_cache_num_blocks(s->kv));
    check_list(&s->waiting, SEQUENCE_WAITING);
    check_list(&s->running, SEQUENCE_RUNNING);
    CHECK(s->running.count <= s->options.max_num_seqs, "%d running", s->running.count);
    int64_t tokens = 0;
    for (const struct sequence *seq = s->waiting.head; seq; seq = seq->next)
        tokens += seq->num_tokens;
    CHECK(tokens == s->waiting_tokens, "%lld tokens wait, not %lld", (long long)tokens,
          (long long)s->waiting_tokens);
    for (const struct sequence *seq = s->running.head; seq; seq = seq->next)
        for (int32_t i = 0; i < seq->num_blocks; i++)
            refs[seq->blocks[i]]++;
    kv_cache_check(s->kv, refs);
    free(refs);
}
