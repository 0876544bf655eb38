#include "json_out.h"

#include <math.h>
#include <stdio.h>

#include "host/utf8.h"

static const double LOWEST_LOGPROB = -9999.0;

void json_out_text(struct buffer *out, const char *s, size_t len) {
    if (utf8_valid_prefix(s, len) == len) {
        buffer_put_json_string(out, s, len);
        return;
    }
    struct buffer repaired = {0};
    utf8_append_lossy(&repaired, s, len);
    buffer_put_json_string(out, repaired.data, repaired.len);
    buffer_deinit(&repaired);
}

void json_out_spelled(struct buffer *out, const char *s, size_t len) {
    struct buffer text = {0};
    if (utf8_valid_prefix(s, len) == len) {
        buffer_put_json_string(out, s, len);
        return;
    }
    buffer_puts(&text, "bytes:");
    for (size_t i = 0; i < len; i++)
        buffer_printf(&text, "\\x%02x", (unsigned char)s[i]);
    buffer_put_json_string(out, text.data, text.len);
    buffer_deinit(&text);
}

void json_out_int(struct buffer *out, int64_t v) {
    char digits[24];
    int n = snprintf(digits, sizeof digits, "%lld", (long long)v);
    buffer_append(out, digits, (size_t)n);
}

void json_out_logprob(struct buffer *out, float v) {
    buffer_printf(out, "%.9g", isfinite(v) && v > LOWEST_LOGPROB ? (double)v : LOWEST_LOGPROB);
}

void json_out_counters(struct buffer *out, const struct engine_stats *s) {
    buffer_printf(out, ",\"kv_blocks_used\":%d,\"kv_blocks_cached\":%d,\"kv_blocks_total\":%d",
                  s->kv_blocks_used, s->kv_blocks_cached, s->kv_blocks_total);
    buffer_printf(out, ",\"requests_total\":%lld,\"prompt_tokens_total\":%lld",
                  (long long)s->requests_total, (long long)s->prompt_tokens_total);
    buffer_printf(out, ",\"completion_tokens_total\":%lld,\"prefix_hit_tokens_total\":%lld",
                  (long long)s->completion_tokens_total, (long long)s->prefix_hit_tokens_total);
    buffer_printf(out, ",\"preemptions_total\":%lld,\"steps_total\":%lld,\"last_step_age_ms\":",
                  (long long)s->preemptions_total, (long long)s->steps_total);
    if (s->last_step_age_us < 0)
        buffer_puts(out, "null");
    else
        buffer_printf(out, "%.3f", (double)s->last_step_age_us / 1000.0);
    buffer_printf(out, ",\"healthy\":%s", s->healthy ? "true" : "false");
}
