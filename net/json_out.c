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

void json_out_int(struct buffer *out, int64_t v) {
    char digits[24];
    int n = snprintf(digits, sizeof digits, "%lld", (long long)v);
    buffer_append(out, digits, (size_t)n);
}

void json_out_logprob(struct buffer *out, float v) {
    buffer_printf(out, "%.9g", isfinite(v) && v > LOWEST_LOGPROB ? (double)v : LOWEST_LOGPROB);
}
