#include "host/stop.h"

#include <string.h>

void stop_init(struct stop_matcher *m, char *const *strings, int32_t num_strings) {
    memset(m, 0, sizeof *m);
    m->strings = strings;
    m->num_strings = num_strings;
    for (int32_t i = 0; i < num_strings; i++)
        if (strlen(strings[i]) > m->longest)
            m->longest = strlen(strings[i]);
}

void stop_deinit(struct stop_matcher *m) {
    buffer_deinit(&m->held);
}

/* Length of the longest stop string that ends at byte `end`; 0 when none does. */
static size_t match_ending_at(const struct stop_matcher *m, const char *text, size_t end) {
    size_t best = 0;
    for (int32_t i = 0; i < m->num_strings; i++) {
        size_t n = strlen(m->strings[i]);
        if (n <= end && n > best && !memcmp(text + end - n, m->strings[i], n))
            best = n;
    }
    return best;
}

/* Does some stop string begin with text[0..len)? */
static bool may_begin(const struct stop_matcher *m, const char *text, size_t len) {
    for (int32_t i = 0; i < m->num_strings; i++)
        if (!strncmp(m->strings[i], text, len))
            return true;
    return false;
}

bool stop_push(struct stop_matcher *m, const char *text, size_t len, bool may_stop,
               struct buffer *out) {
    if (m->num_strings == 0) {
        buffer_append(out, text, len);
        return false;
    }
    struct buffer *held = &m->held;
    if (len == 0)
        return false;
    size_t seen = held->len;
    buffer_append(held, text, len);
    for (size_t end = seen + 1; may_stop && end <= held->len; end++) {
        size_t n = match_ending_at(m, held->data, end);
        if (n > 0) {
            buffer_append(out, held->data, end - n);
            buffer_clear(held);
            return true;
        }
    }
    /* Keep the longest tail that is a proper beginning of a stop string. */
    size_t keep = held->len < m->longest - 1 ? held->len : m->longest - 1;
    while (keep > 0 && !may_begin(m, held->data + held->len - keep, keep))
        keep--;
    buffer_append(out, held->data, held->len - keep);
    buffer_consume(held, held->len - keep);
    return false;
}

void stop_flush(struct stop_matcher *m, struct buffer *out) {
    buffer_append(out, m->held.data, m->held.len);
    buffer_clear(&m->held);
}
