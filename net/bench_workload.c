#include "bench_workload.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/json.h"

enum { MAX_LENGTH = 10000000 };

/* ---- random numbers ------------------------------------------------------------------------- */

uint64_t bench_rng_next(struct bench_rng *r) {
    uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* The first outputs of neighbouring seeds are mixed well, so a stream starts at one of them. */
void bench_rng_init(struct bench_rng *r, uint64_t seed, uint64_t stream) {
    r->state = seed;
    r->state = bench_rng_next(r) + stream;
    r->state = bench_rng_next(r);
}

double bench_rng_unit(struct bench_rng *r) {
    return (double)(bench_rng_next(r) >> 11) * 0x1p-53;
}

int32_t bench_rng_range(struct bench_rng *r, int32_t min, int32_t max) {
    CHECK(min <= max, "range %d..%d", (int)min, (int)max);
    return min + (int32_t)(bench_rng_unit(r) * ((double)max - min + 1));
}

/* ---- what is sent --------------------------------------------------------------------------- */

int bench_range_parse(const char *text, int32_t least, struct bench_range *out,
                      struct error *error) {
    char *end;
    errno = 0;
    long min = strtol(text, &end, 10), max = min;
    bool ok = end != text;
    if (ok && *end == ':') {
        const char *second = end + 1;
        max = strtol(second, &end, 10);
        ok = end != second;
    }
    if (!ok || *end || errno || min < least || max < min || max > MAX_LENGTH)
        return error_set(error, ERR_CONFIG,
                         "'%s': expected a length or MIN:MAX, each from %d to %d", text, (int)least,
                         MAX_LENGTH);
    *out = (struct bench_range){(int32_t)min, (int32_t)max};
    return 0;
}

void bench_arrivals(double rate, uint64_t seed, double *arrival_s, int32_t count) {
    struct bench_rng r;
    bench_rng_init(&r, seed, 0);
    double at = 0;
    for (int32_t i = 0; i < count; i++) {
        at += isinf(rate) ? 0 : -log1p(-bench_rng_unit(&r)) / rate;
        arrival_s[i] = at;
    }
    double scale = at > 0 ? count / rate / at : 0;
    for (int32_t i = 0; i < count; i++)
        arrival_s[i] *= scale;
}

void bench_random_tokens(struct bench_rng *r, int32_t vocab_size, int32_t *tokens, int32_t count) {
    for (int32_t i = 0; i < count; i++)
        tokens[i] = bench_rng_range(r, 0, vocab_size - 1);
}

void bench_request_line(struct buffer *out, const struct bench_request *q) {
    buffer_reserve(out, 256 + (size_t)q->num_tokens * 8);
    buffer_printf(out, "{\"id\":%lld,\"max_tokens\":%d,\"temperature\":%.9g,\"ignore_eos\":%s",
                  (long long)q->id, (int)q->max_tokens, q->temperature,
                  q->ignore_eos ? "true" : "false");
    if (q->temperature > 0)
        buffer_printf(out, ",\"seed\":%llu", (unsigned long long)q->seed);
    buffer_puts(out, ",\"tokens\":[");
    for (int32_t i = 0; i < q->num_tokens; i++)
        buffer_printf(out, i ? ",%d" : "%d", (int)q->tokens[i]);
    buffer_puts(out, "]}\n");
}

/* ---- what comes back ------------------------------------------------------------------------ */

static void read_error(json_t *e, struct bench_answer *out, struct error *error) {
    out->kind = BENCH_ANSWER_ERROR;
    const char *code = json_read_string(e, "code", "", "error", error);
    const char *message = json_read_string(e, "message", "", "error", error);
    snprintf(out->error, sizeof out->error, "%s%s%s", code, *code && *message ? ": " : "", message);
}

static void read_done(json_t *doc, struct bench_answer *out, struct error *error) {
    out->kind = BENCH_ANSWER_DONE;
    json_t *usage = json_object_get(doc, "usage");
    if (!json_is_object(usage)) {
        error_add(error, ERR_INVALID_REQUEST, "done line: usage: expected an object");
        return;
    }
    out->prompt_tokens =
        (int32_t)json_read_int(usage, "prompt_tokens", 0, 0, INT32_MAX, "usage", error);
    out->completion_tokens =
        (int32_t)json_read_int(usage, "completion_tokens", 0, 0, INT32_MAX, "usage", error);
    out->cached_tokens =
        (int32_t)json_read_int(usage, "cached_tokens", 0, 0, INT32_MAX, "usage", error);
    const char *reason = json_read_string(doc, "finish_reason", "", "done line", error);
    out->cancelled = !strcmp(reason, "cancelled");
}

int bench_answer_parse(const char *line, size_t len, struct bench_answer *out,
                       struct error *error) {
    memset(out, 0, sizeof *out);
    json_t *doc = json_parse(line, len, "answer", ERR_INVALID_JSON, error);
    if (!doc)
        return ERR_INVALID_JSON;
    struct error problems = {0};
    json_t *id = json_object_get(doc, "id"), *failure = json_object_get(doc, "error");
    out->id = json_is_integer(id) ? json_integer_value(id) : -1;
    if (json_is_object(failure))
        read_error(failure, out, &problems);
    else if (json_is_true(json_object_get(doc, "done")))
        read_done(doc, out, &problems);
    else if (json_is_integer(json_object_get(doc, "token")))
        out->kind = BENCH_ANSWER_TOKEN;
    else if (json_is_string(json_object_get(doc, "text")))
        out->kind = BENCH_ANSWER_TEXT;
    else
        error_add(&problems, ERR_INVALID_REQUEST, "answer: neither token, text, done nor error");
    json_decref(doc);
    return problems.code ? error_set(error, ERR_INVALID_REQUEST, "%s", problems.text) : 0;
}
