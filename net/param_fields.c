#include "param_fields.h"

#include <stdio.h>
#include <string.h>

#include "host/mem.h"

enum { MAX_ROLE_BYTES = 32 };

void param_defaults(struct request_params *out, const struct request_params *defaults) {
    *out = *defaults;
    out->tokens = NULL;
    out->num_tokens = out->num_stop = 0;
}

int param_read_seed(struct field_reader *r, const struct field *f, json_t *value) {
    struct request_params *out = field_at(r, f);
    if (!json_is_integer(value))
        return field_expected(r->error, f->name, "an integer");
    out->sampling.seed = (uint64_t)json_integer_value(value);
    out->has_seed = true;
    return 0;
}

int param_read_stop(struct field_reader *r, const struct field *f, json_t *value) {
    struct request_params *out = field_at(r, f);
    bool many = json_is_array(value);
    size_t count = many ? json_array_size(value) : 1;
    if ((!many && !json_is_string(value)) || count > MAX_REQUEST_STOPS) {
        char what[80];
        snprintf(what, sizeof what, "a string or an array of at most %d strings",
                 MAX_REQUEST_STOPS);
        return field_expected(r->error, f->name, what);
    }
    for (size_t i = 0; i < count; i++) {
        json_t *v = many ? json_array_get(value, i) : value;
        const char *s = json_string_value(v);
        size_t len = json_string_length(v);
        if (!s || len == 0 || len > MAX_STOP_BYTES || strlen(s) != len) {
            char param[32], what[80];
            snprintf(param, sizeof param, many ? "stop[%zu]" : "stop", i);
            snprintf(what, sizeof what, "a string of 1 to %d bytes without NUL", MAX_STOP_BYTES);
            return field_expected(r->error, param, what);
        }
        out->stop[out->num_stop++] = xstrdup(s);
    }
    return 0;
}

int param_read_ids(int32_t **ids, int32_t *num, const char *path, json_t *array, int32_t vocab_size,
                   struct field_error *error) {
    size_t count = json_array_size(array);
    *ids = xmalloc((count ? count : 1) * sizeof **ids);
    for (size_t i = 0; i < count; i++) {
        json_t *v = json_array_get(array, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 ||
            json_integer_value(v) >= vocab_size) {
            char param[80], what[64];
            snprintf(param, sizeof param, "%.48s[%zu]", path, i);
            snprintf(what, sizeof what, "a token id from 0 to %d", vocab_size - 1);
            return field_expected(error, param, what);
        }
        (*ids)[i] = (int32_t)json_integer_value(v);
    }
    *num = (int32_t)count;
    return 0;
}

int param_read_role(const char **out, const char *path, json_t *value, struct field_error *error) {
    const char *s = json_string_value(value);
    size_t len = json_string_length(value);
    if (!s || len == 0 || len > MAX_ROLE_BYTES || strlen(s) != len)
        return field_expected(error, path, "the name of a role");
    *out = s;
    return 0;
}

int param_check_lengths(struct request_params *p, json_t *doc, struct field_error *error) {
    if (p->max_tokens == 0 || p->min_tokens <= p->max_tokens)
        return 0;
    if (!json_is_integer(json_object_get(doc, "min_tokens"))) {
        p->min_tokens = p->max_tokens;
        return 0;
    }
    return field_error_set(error, ERR_INVALID_REQUEST, "min_tokens",
                           "min_tokens: %d is more than max_tokens (%d)", p->min_tokens,
                           p->max_tokens);
}
