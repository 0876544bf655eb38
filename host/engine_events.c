#include "host/engine_events.h"

#include <string.h>

#include "host/clock.h"
#include "host/error.h"

/* A buffer that has grown beyond this is given back once it is drained: one huge answer (logprobs
 * of a long prompt) should not occupy its memory for ever. */
#define KEEP_BYTES ((size_t)4 << 20)

/* One record: this header, then, each padded to a multiple of 8 bytes, what the event's pointers
 * refer to, in the order of record_sections. The pointers are put right when it is drained. */
struct event_record {
    size_t bytes; /* header and sections, padded */
    struct engine_event event;
};

/* What an event points to. */
struct sections {
    const void *data[6];
    size_t bytes[6];
};

enum { TEXT, TOP, PROMPT_TOKENS, PROMPT_LOGPROBS, PROMPT_TOP, ERROR_TEXT, NUM_SECTIONS };

static size_t padded(size_t n) {
    return (n + 7) & ~(size_t)7;
}

static void put_padded(struct buffer *b, const void *data, size_t bytes) {
    static const char zeros[8];
    buffer_append(b, data, bytes);
    buffer_append(b, zeros, padded(bytes) - bytes);
}

/* The tops of all prompt positions lie behind each other from the first one's on. */
static const struct logprob *first_prompt_top(const struct engine_event *e, size_t *count) {
    const struct logprob *first = NULL;
    *count = 0;
    for (int32_t i = 0; i < e->num_prompt_logprobs; i++) {
        const struct token_logprobs *l = &e->prompt_logprobs[i];
        if (l->num_top > 0 && !first)
            first = l->top;
        CHECK(l->num_top == 0 || l->top == first + *count, "scattered prompt logprobs");
        *count += (size_t)l->num_top;
    }
    return first;
}

void event_stage(struct buffer *staged, const struct engine_event *e) {
    struct event_record record = {.event = *e};
    size_t num_prompt_top, num_prompt = (size_t)e->num_prompt_logprobs;
    const struct logprob *prompt_top = first_prompt_top(e, &num_prompt_top);
    size_t error_bytes = e->error_text ? strlen(e->error_text) + 1 : 0;
    const struct sections s = {
        .data = {e->text, e->logprobs.top, e->prompt_logprob_tokens, e->prompt_logprobs, prompt_top,
                 e->error_text},
        .bytes = {e->text_len, (size_t)e->logprobs.num_top * sizeof *e->logprobs.top,
                  num_prompt * sizeof *e->prompt_logprob_tokens,
                  num_prompt * sizeof *e->prompt_logprobs, num_prompt_top * sizeof *prompt_top,
                  error_bytes},
    };
    record.bytes = padded(sizeof record);
    for (int32_t i = 0; i < NUM_SECTIONS; i++)
        record.bytes += padded(s.bytes[i]);
    buffer_reserve(staged, record.bytes);
    put_padded(staged, &record, sizeof record);
    for (int32_t i = 0; i < NUM_SECTIONS; i++)
        put_padded(staged, s.data[i], s.bytes[i]);
}

/* The next section of the record at *at; NULL when it is empty. */
static void *take(char **at, size_t bytes) {
    char *p = *at;
    *at += padded(bytes);
    return bytes ? p : NULL;
}

/* Points the event of a record at the sections behind it. */
static void link_sections(struct event_record *record) {
    struct engine_event *e = &record->event;
    char *at = (char *)record + padded(sizeof *record);
    size_t num_prompt = (size_t)e->num_prompt_logprobs;
    e->text = take(&at, e->text_len);
    e->logprobs.top = take(&at, (size_t)e->logprobs.num_top * sizeof *e->logprobs.top);
    e->prompt_logprob_tokens = take(&at, num_prompt * sizeof *e->prompt_logprob_tokens);
    struct token_logprobs *prompt = take(&at, num_prompt * sizeof *prompt);
    e->prompt_logprobs = prompt;
    for (size_t i = 0; i < num_prompt; i++) {
        size_t bytes = (size_t)prompt[i].num_top * sizeof *prompt[i].top;
        prompt[i].top = bytes ? (struct logprob *)at : NULL;
        at += bytes;
    }
    at = (char *)record + padded((size_t)(at - (char *)record));
    if (e->error_text)
        e->error_text = at;
    if (!e->text)
        e->text = "";
}

void event_queue_init(struct event_queue *q) {
    memset(q, 0, sizeof *q);
    pthread_mutex_init(&q->lock, NULL);
    clock_cond_init(&q->posted_cond);
}

void event_queue_deinit(struct event_queue *q) {
    buffer_deinit(&q->posted);
    buffer_deinit(&q->draining);
    pthread_cond_destroy(&q->posted_cond);
    pthread_mutex_destroy(&q->lock);
}

bool event_queue_post(struct event_queue *q, struct buffer *staged) {
    if (staged->len == 0)
        return false;
    pthread_mutex_lock(&q->lock);
    bool was_empty = q->posted.len == 0;
    if (was_empty) {
        struct buffer empty = q->posted;
        q->posted = *staged;
        *staged = empty;
    } else {
        buffer_append(&q->posted, staged->data, staged->len);
        buffer_clear(staged);
    }
    pthread_cond_signal(&q->posted_cond);
    pthread_mutex_unlock(&q->lock);
    return was_empty;
}

void event_queue_drain(struct event_queue *q, engine_event_fn fn, void *ctx) {
    pthread_mutex_lock(&q->lock);
    struct buffer full = q->posted;
    q->posted = q->draining;
    q->draining = full;
    pthread_mutex_unlock(&q->lock);

    for (size_t at = 0; at < full.len;) {
        struct event_record *record = (struct event_record *)(void *)(full.data + at);
        at += record->bytes;
        link_sections(record);
        fn(ctx, &record->event);
    }
    if (full.cap > KEEP_BYTES)
        buffer_deinit(&q->draining);
    buffer_clear(&q->draining);
}

void event_queue_wait(struct event_queue *q, int32_t timeout_ms) {
    struct timespec until = clock_deadline((int64_t)timeout_ms * 1000);
    pthread_mutex_lock(&q->lock);
    while (q->posted.len == 0)
        if (pthread_cond_timedwait(&q->posted_cond, &q->lock, &until) != 0)
            break;
    pthread_mutex_unlock(&q->lock);
}
