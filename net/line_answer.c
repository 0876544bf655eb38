#include "line_answer.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "host/utf8.h"
#include "net/json_out.h"

static void put_id(struct buffer *out, const char *id) {
    buffer_puts(out, "{\"id\":");
    buffer_puts(out, id ? id : "null");
}

static void put_ms(struct buffer *out, double ms) {
    buffer_printf(out, "%.3f", isfinite(ms) && ms > 0 ? ms : 0.0);
}

static void put_logprobs(struct buffer *out, const struct token_logprobs *l) {
    buffer_puts(out, "\"logprob\":");
    json_out_logprob(out, l->logprob);
    buffer_puts(out, ",\"top_logprobs\":[");
    for (int32_t i = 0; i < l->num_top; i++) {
        buffer_puts(out, i ? ",[" : "[");
        json_out_int(out, l->top[i].token);
        buffer_putc(out, ',');
        json_out_logprob(out, l->top[i].logprob);
        buffer_putc(out, ']');
    }
    buffer_putc(out, ']');
}

static bool is_protocol_code(int code) {
    return code <= ERR_INVALID_JSON && code >= ERR_INTERNAL;
}

void answer_error(struct buffer *out, const char *id, int code, const char *param,
                  const char *message) {
    if (!is_protocol_code(code))
        code = ERR_INTERNAL;
    if (!message || !*message)
        message = error_text(code);
    put_id(out, id);
    buffer_puts(out, ",\"error\":{\"code\":\"");
    buffer_puts(out, error_name(code));
    buffer_puts(out, "\",\"message\":");
    json_out_text(out, message, strlen(message));
    if (param && *param) {
        buffer_puts(out, ",\"param\":");
        json_out_text(out, param, strlen(param));
    }
    buffer_puts(out, "}}\n");
}

void answer_plain_error(struct buffer *out, const char *message) {
    buffer_puts(out, "error: ");
    size_t from = out->len;
    utf8_append_lossy(out, message, strlen(message));
    for (size_t i = from; i < out->len; i++)
        if (out->data[i] == '\n')
            out->data[i] = ' ';
    buffer_putc(out, '\n');
}

void answer_token(struct buffer *out, const char *id, const struct engine_event *e) {
    put_id(out, id);
    buffer_puts(out, ",\"text\":");
    json_out_text(out, e->text, e->text_len);
    buffer_puts(out, ",\"token\":");
    json_out_int(out, e->token);
    if (e->has_logprobs) {
        buffer_putc(out, ',');
        put_logprobs(out, &e->logprobs);
    }
    buffer_puts(out, "}\n");
}

void answer_held_text(struct buffer *out, const char *id, const char *text, size_t len) {
    put_id(out, id);
    buffer_puts(out, ",\"text\":");
    json_out_text(out, text, len);
    buffer_puts(out, "}\n");
}

void answer_position(struct buffer *out, int32_t token, const struct token_logprobs *l) {
    buffer_puts(out, "{\"token\":");
    json_out_int(out, token);
    buffer_putc(out, ',');
    put_logprobs(out, l);
    buffer_putc(out, '}');
}

static void put_prompt_logprobs(struct buffer *out, const struct engine_event *e) {
    buffer_puts(out, ",\"prompt_logprobs\":[");
    for (int32_t i = 0; i < e->num_prompt_logprobs; i++) {
        if (i == 0)
            buffer_puts(out, "null");
        else {
            buffer_putc(out, ',');
            answer_position(out, e->prompt_logprob_tokens[i], &e->prompt_logprobs[i]);
        }
    }
    buffer_putc(out, ']');
}

void answer_done(struct buffer *out, const char *id, const struct engine_event *e,
                 const struct buffer *text, const struct buffer *logprobs) {
    put_id(out, id);
    buffer_puts(out, ",\"done\":true,\"finish_reason\":\"");
    buffer_puts(out, finish_reason_name(e->finish_reason));
    buffer_putc(out, '"');
    if (text) {
        buffer_puts(out, ",\"text\":");
        json_out_text(out, text->data, text->len);
    }
    if (logprobs) {
        buffer_puts(out, ",\"logprobs\":[");
        buffer_append(out, logprobs->data, logprobs->len);
        buffer_putc(out, ']');
    }
    buffer_printf(out,
                  ",\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"cached_tokens\":%d}",
                  e->prompt_tokens, e->completion_tokens, e->cached_tokens);
    buffer_puts(out, ",\"timing\":{\"queue_ms\":");
    put_ms(out, e->queue_ms);
    buffer_puts(out, ",\"ttft_ms\":");
    put_ms(out, e->ttft_ms);
    buffer_puts(out, ",\"total_ms\":");
    put_ms(out, e->total_ms);
    buffer_putc(out, '}');
    if (e->prompt_logprobs)
        put_prompt_logprobs(out, e);
    buffer_puts(out, "}\n");
}

void answer_ping(struct buffer *out, const char *id) {
    put_id(out, id);
    buffer_puts(out, ",\"ok\":true}\n");
}

static void put_replicas(struct buffer *out, const struct dispatch_stats *stats) {
    buffer_puts(out, ",\"replicas\":[");
    for (int32_t i = 0; i < stats->num_replicas; i++) {
        const struct engine_stats *s = &stats->replica[i];
        buffer_printf(out, "%s{\"running\":%d,\"waiting\":%d,\"healthy\":%s}", i ? "," : "",
                      s->running, s->waiting, s->healthy ? "true" : "false");
    }
    buffer_putc(out, ']');
}

void answer_stats(struct buffer *out, const char *id, const struct dispatch_stats *stats,
                  int32_t connections) {
    const struct engine_stats *s = &stats->total;
    put_id(out, id);
    buffer_printf(out, ",\"running\":%d,\"waiting\":%d,\"connections\":%d", s->running, s->waiting,
                  connections);
    json_out_counters(out, s);
    if (stats->num_replicas > 1)
        put_replicas(out, stats);
    buffer_puts(out, "}\n");
}

void answer_model(struct buffer *out, const char *id, const struct engine_model_info *m) {
    put_id(out, id);
    buffer_puts(out, ",\"name\":");
    json_out_text(out, m->name, strlen(m->name));
    buffer_printf(out, ",\"max_model_len\":%d,\"vocab_size\":%d,\"ranks\":%d}\n", m->max_model_len,
                  m->vocab_size, m->ranks);
}

void answer_tokenize(struct buffer *out, const char *id, const int32_t *ids, size_t count) {
    put_id(out, id);
    buffer_puts(out, ",\"tokens\":[");
    for (size_t i = 0; i < count; i++) {
        if (i)
            buffer_putc(out, ',');
        json_out_int(out, ids[i]);
    }
    buffer_puts(out, "]}\n");
}

void answer_detokenize(struct buffer *out, const char *id, const char *text, size_t len) {
    put_id(out, id);
    buffer_puts(out, ",\"text\":");
    json_out_text(out, text, len);
    buffer_puts(out, "}\n");
}
