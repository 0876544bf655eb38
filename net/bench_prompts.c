#include "bench_prompts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/json.h"
#include "host/mem.h"
#include "net/bench_workload.h"

/* Text is tokenised in pieces: more bytes than a piece has tokens, less than a line may hold. */
enum { BYTES_PER_TOKEN = 6, MIN_PIECE_BYTES = 256, MAX_PIECE_BYTES = 256 * 1024 };

/* Streams of random numbers: prompt i of a series has 2 + series + 2 * i. */
enum { STREAM_ARRIVALS, STREAM_PREFIX, STREAM_PROMPTS };

int bench_model_query(struct bench_client *client, struct bench_model *out, struct error *error) {
    json_t *answer;
    int rc = bench_client_call(client, "{\"id\":0,\"op\":\"model\"}\n", &answer, error);
    if (rc != 0)
        return rc;
    struct error e = {0};
    const char *name = json_read_string(answer, "name", "", "model", &e);
    memset(out, 0, sizeof *out);
    out->max_model_len =
        (int32_t)json_read_int(answer, "max_model_len", INT32_MAX, 1, INT32_MAX, "model", &e);
    out->vocab_size = (int32_t)json_read_int(answer, "vocab_size", 0, 1, INT32_MAX, "model", &e);
    if (e.code == 0 && out->vocab_size == 0)
        error_add(&e, ERR_INVALID_REQUEST, "model: vocab_size: expected in the answer");
    if (e.code == 0)
        out->name = xstrdup(name);
    json_decref(answer);
    return e.code ? error_set(error, ERR_INVALID_REQUEST, "%s", e.text) : 0;
}

/* ---- tokens --------------------------------------------------------------------------------- */

/* A growable run of token ids. */
struct tokens {
    int32_t *ids; /* owned */
    int32_t count, cap;
};

static void tokens_reserve(struct tokens *t, int32_t cap) {
    if (cap <= t->cap)
        return;
    t->ids = xrealloc(t->ids, (size_t)cap * sizeof *t->ids);
    t->cap = cap;
}

/* Appends the tokens of a text, without the first `skip` and no more than `most`. */
static int tokens_append_text(struct tokens *t, struct bench_client *client, const char *text,
                              size_t len, int32_t skip, int32_t most, struct error *error) {
    struct buffer line = {0};
    json_t *answer;
    buffer_puts(&line, "{\"id\":0,\"op\":\"tokenize\",\"text\":");
    buffer_put_json_string(&line, text, len);
    buffer_puts(&line, "}\n");
    buffer_putc(&line, '\0');
    int rc = bench_client_call(client, line.data, &answer, error);
    buffer_deinit(&line);
    if (rc != 0)
        return rc;
    json_t *ids = json_object_get(answer, "tokens");
    if (!json_is_array(ids))
        rc = error_set(error, ERR_INVALID_REQUEST, "tokenize: tokens: expected an array");
    int32_t n = (int32_t)json_array_size(ids) - skip;
    n = n < 0 ? 0 : n > most ? most : n;
    tokens_reserve(t, t->count + n);
    for (int32_t i = 0; i < n; i++)
        t->ids[t->count++] = (int32_t)json_integer_value(json_array_get(ids, (size_t)(skip + i)));
    json_decref(answer);
    return rc;
}

/* What prompts are made from. */
struct source {
    struct bench_client *client;
    const struct bench_settings *settings;
    const struct bench_model *model;
    struct tokens lead;   /* what the tokenizer puts before every text */
    struct tokens prefix; /* what all prompts begin with: at least `lead` */
};

/* Appends `count` tokens that begin with the label's. */
static int append_content(struct source *s, struct bench_rng *r, const char *label, int32_t count,
                          struct tokens *t, struct error *error) {
    int32_t end = t->count + count;
    tokens_reserve(t, end);
    if (!strcmp(s->settings->dataset, "random")) {
        bench_random_tokens(r, s->model->vocab_size, t->ids + t->count, count);
        t->count = end;
        return 0;
    }
    struct buffer text = {0};
    int rc = 0;
    while (rc == 0 && t->count < end) {
        size_t bytes = (size_t)(end - t->count) * BYTES_PER_TOKEN + MIN_PIECE_BYTES;
        int32_t before = t->count;
        buffer_clear(&text);
        bench_text(&text, r, label, bytes < MAX_PIECE_BYTES ? bytes : MAX_PIECE_BYTES);
        rc = tokens_append_text(t, s->client, text.data, text.len, s->lead.count, end - t->count,
                                error);
        if (rc == 0 && t->count == before)
            rc = error_set(error, ERR_INVALID_REQUEST, "tokenize: a text has no tokens");
        label = "";
    }
    buffer_deinit(&text);
    return rc;
}

static int source_init(struct source *s, struct error *error) {
    struct bench_rng r;
    /* Random ids are sent as they are, also to a model that has no tokenizer. */
    bool text = strcmp(s->settings->dataset, "random") != 0;
    int rc = text ? tokens_append_text(&s->lead, s->client, "", 0, 0, INT32_MAX, error) : 0;
    if (rc != 0)
        return rc;
    int32_t want = s->settings->prefix_len, lead = s->lead.count < want ? s->lead.count : want;
    tokens_reserve(&s->prefix, want);
    for (int32_t i = 0; i < lead; i++)
        s->prefix.ids[s->prefix.count++] = s->lead.ids[i];
    bench_rng_init(&r, s->settings->seed, STREAM_PREFIX);
    return append_content(s, &r, "", want - lead, &s->prefix, error);
}

/* ---- requests ------------------------------------------------------------------------------- */

/* The prompt of one request: prefix (or lead), then content of its own. */
static int build_prompt(struct source *s, struct bench_rng *r, const char *label, int32_t len,
                        struct tokens *t, struct error *error) {
    const struct tokens *head = s->prefix.count ? &s->prefix : &s->lead;
    int32_t total = s->prefix.count + len, n = head->count < total ? head->count : total;
    t->count = 0;
    tokens_reserve(t, total);
    for (int32_t i = 0; i < n; i++)
        t->ids[t->count++] = head->ids[i];
    return append_content(s, r, label, total - n, t, error);
}

static int build_item(struct source *s, enum bench_series series, int32_t i, struct tokens *t,
                      struct bench_item *item, struct error *error) {
    const struct bench_settings *o = s->settings;
    struct bench_rng r;
    char label[80];
    bench_rng_init(&r, o->seed, STREAM_PROMPTS + (uint64_t)series + 2 * (uint64_t)i);
    snprintf(label, sizeof label, "%d/%llu%s: ", (int)i, (unsigned long long)o->seed,
             series == BENCH_WARMUP ? "w" : "");
    int32_t input_len = bench_rng_range(&r, o->input_len.min, o->input_len.max);
    item->max_tokens = bench_rng_range(&r, o->output_len.min, o->output_len.max);
    int rc = build_prompt(s, &r, label, input_len, t, error);
    if (rc != 0)
        return rc;
    struct buffer line = {0};
    bench_request_line(&line, &(struct bench_request){
                                  .id = i,
                                  .tokens = t->ids,
                                  .num_tokens = t->count,
                                  .max_tokens = item->max_tokens,
                                  .temperature = o->temperature,
                                  .seed = bench_rng_next(&r) >> 1,
                                  .ignore_eos = o->ignore_eos,
                              });
    item->input_len = t->count;
    item->line = line.data;
    item->len = line.len;
    return 0;
}

static void set_arrivals(const struct bench_settings *settings, struct bench_prompts *p) {
    double *arrival_s = xcalloc((size_t)p->count, sizeof *arrival_s);
    bench_arrivals(settings->request_rate, settings->seed, arrival_s, p->count);
    for (int32_t i = 0; i < p->count; i++)
        p->items[i].arrival_us = (int64_t)(arrival_s[i] * 1e6);
    free(arrival_s);
}

int bench_prompts_build(struct bench_client *client, const struct bench_settings *settings,
                        const struct bench_model *model, enum bench_series series, int32_t count,
                        struct bench_prompts *out, struct error *error) {
    struct source s = {.client = client, .settings = settings, .model = model};
    struct tokens prompt = {0};
    int64_t longest =
        (int64_t)settings->prefix_len + settings->input_len.max + settings->output_len.max;
    memset(out, 0, sizeof *out);
    if (longest > model->max_model_len)
        return error_set(error, ERR_CONFIG,
                         "prefix, input and output may take %lld tokens, the server's "
                         "--max-model-len is %d: choose shorter --random-input-len or "
                         "--random-output-len",
                         (long long)longest, (int)model->max_model_len);
    out->items = xcalloc((size_t)count, sizeof *out->items);
    out->records = xcalloc((size_t)count, sizeof *out->records);
    out->count = count;
    int rc = source_init(&s, error);
    for (int32_t i = 0; rc == 0 && i < count; i++)
        rc = build_item(&s, series, i, &prompt, &out->items[i], error);
    if (rc == 0 && series == BENCH_MEASURED)
        set_arrivals(settings, out);
    free(prompt.ids);
    free(s.lead.ids);
    free(s.prefix.ids);
    return rc;
}

void bench_prompts_deinit(struct bench_prompts *p) {
    for (int32_t i = 0; i < p->count; i++) {
        free((char *)(uintptr_t)p->items[i].line);
        bench_record_deinit(&p->records[i]);
    }
    free(p->items);
    free(p->records);
    memset(p, 0, sizeof *p);
}
