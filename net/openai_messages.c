#include "openai_messages.h"

#include <stdio.h>
#include <string.h>

#include "host/mem.h"

enum { MAX_ROLE_BYTES = 32 };

/* Bytes of a text part; -1: it is another kind of part, or none at all. */
static int64_t part_bytes(json_t *part) {
    const char *type = json_string_value(json_object_get(part, "type"));
    json_t *text = json_object_get(part, "text");
    if (!type || strcmp(type, "text") || !json_is_string(text))
        return -1;
    return (int64_t)json_string_length(text);
}

/* Room for all contents that come in parts, so that none of them moves. */
static void reserve_joined(struct openai_request *out, json_t *messages) {
    size_t i, k, bytes = 0;
    json_t *message, *part;
    json_array_foreach(messages, i, message) {
        json_array_foreach(json_object_get(message, "content"), k, part) {
            int64_t n = part_bytes(part);
            bytes += n > 0 ? (size_t)n : 0;
        }
    }
    buffer_reserve(&out->joined, bytes + 1);
}

static int read_parts(struct openai_request *out, struct chat_message *m, const char *path,
                      json_t *parts, struct field_error *error) {
    size_t i, from = out->joined.len;
    json_t *part;
    json_array_foreach(parts, i, part) {
        char where[80];
        json_t *text = json_object_get(part, "text");
        snprintf(where, sizeof where, "%.50s[%zu]", path, i);
        if (part_bytes(part) < 0)
            return field_expected(error, where,
                                  "a part {\"type\":\"text\",\"text\":\"...\"}: "
                                  "other kinds are not supported");
        buffer_append(&out->joined, json_string_value(text), json_string_length(text));
    }
    m->content = out->joined.data + from;
    m->content_len = out->joined.len - from;
    return 0;
}

static int read_content(struct openai_request *out, struct chat_message *m, const char *path,
                        json_t *value, struct field_error *error) {
    if (json_is_array(value))
        return read_parts(out, m, path, value, error);
    if (!json_is_string(value))
        return field_expected(error, path, "a string or an array of parts");
    m->content = json_string_value(value);
    m->content_len = json_string_length(value);
    return 0;
}

static int read_role(struct chat_message *m, const char *path, json_t *value,
                     struct field_error *error) {
    const char *s = json_string_value(value);
    size_t len = json_string_length(value);
    if (!s || len == 0 || len > MAX_ROLE_BYTES || strlen(s) != len)
        return field_expected(error, path, "the name of a role");
    m->role = s;
    return 0;
}

static int read_message(struct openai_request *out, size_t i, json_t *value,
                        struct field_error *error) {
    struct chat_message *m = &out->messages[i];
    const char *key;
    json_t *v;
    char path[80];
    int rc = 0;
    snprintf(path, sizeof path, "messages[%zu]", i);
    if (!json_is_object(value))
        return field_expected(error, path, "an object with role and content");
    json_object_foreach(value, key, v) {
        snprintf(path, sizeof path, "messages[%zu].%.32s", i, key);
        if (!strcmp(key, "role"))
            rc = read_role(m, path, v, error);
        else if (!strcmp(key, "content"))
            rc = read_content(out, m, path, v, error);
        else if (!json_is_null(v) && strcmp(key, "name"))
            rc = field_error_set(error, ERR_INVALID_REQUEST, path, "%s: unknown field", path);
        if (rc != 0)
            return rc;
    }
    snprintf(path, sizeof path, "messages[%zu].%s", i, m->role ? "content" : "role");
    return m->role && m->content ? 0 : field_expected(error, path, "a string");
}

int openai_read_messages(struct openai_request *out, json_t *value, struct field_error *error) {
    size_t count = json_array_size(value); /* 0 when it is no array */
    if (count == 0 || count > OPENAI_MAX_MESSAGES) {
        char what[80];
        snprintf(what, sizeof what, "an array of 1 to %d messages", OPENAI_MAX_MESSAGES);
        return field_expected(error, "messages", what);
    }
    out->messages = xcalloc(count, sizeof *out->messages);
    out->num_messages = count;
    reserve_joined(out, value);
    for (size_t i = 0; i < count; i++) {
        int rc = read_message(out, i, json_array_get(value, i), error);
        if (rc != 0)
            return rc;
    }
    return 0;
}
