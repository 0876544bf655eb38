#include "openai_messages.h"

#include <stdio.h>
#include <string.h>

#include "host/mem.h"
#include "net/param_fields.h"

/* Bytes of a text part; -1: it is another kind of part, or none at all. */
static int64_t part_bytes(json_t *part) {
    const char *type = json_string_value(json_object_get(part, "type"));
    json_t *text = json_object_get(part, "text");
    if (!type || strcmp(type, "text") || !json_is_string(text))
        return -1;
    return (int64_t)json_string_length(text);
}

/* Room for all contents that come in parts, and for all calls, so that none of them moves. */
static void reserve(struct openai_request *out, json_t *messages) {
    size_t i, k, bytes = 0, calls = 0;
    json_t *message, *part;
    json_array_foreach(messages, i, message) {
        json_array_foreach(json_object_get(message, "content"), k, part) {
            int64_t n = part_bytes(part);
            bytes += n > 0 ? (size_t)n : 0;
        }
        calls += json_array_size(json_object_get(message, "tool_calls"));
    }
    out->calls =
        xcalloc(calls < OPENAI_MAX_CALLS ? calls + 1 : OPENAI_MAX_CALLS + 1, sizeof *out->calls);
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

/* {"id":"...","type":"function","function":{"name":"...","arguments":"{...}"}} */
static int read_call(struct chat_tool_call *call, const char *path, json_t *value,
                     struct field_error *error) {
    json_t *function = json_object_get(value, "function"), *id = json_object_get(value, "id");
    json_t *type = json_object_get(value, "type");
    json_t *arguments = json_object_get(function, "arguments");
    char where[80];
    if (!json_is_object(function) ||
        (type && !json_is_null(type) && strcmp(json_string_value(type) ?: "", "function")))
        return field_expected(error, path, "{\"id\":...,\"type\":\"function\",\"function\":{...}}");
    snprintf(where, sizeof where, "%.50s.id", path);
    if (id && !json_is_null(id) && field_take_string(&call->id, where, id, error) != 0)
        return error->code;
    snprintf(where, sizeof where, "%.50s.function.name", path);
    if (field_take_string(&call->name, where, json_object_get(function, "name"), error) != 0)
        return error->code;
    snprintf(where, sizeof where, "%.50s.function.arguments", path);
    if (arguments && !json_is_null(arguments) && !json_is_string(arguments))
        return field_expected(error, where, "a JSON object as a string");
    call->arguments = json_string_value(arguments);
    call->arguments_len = json_string_length(arguments);
    return 0;
}

static int read_calls(struct openai_request *out, struct chat_message *m, const char *path,
                      json_t *value, struct field_error *error) {
    size_t i, count = json_array_size(value);
    json_t *call;
    if (!json_is_array(value) || out->num_calls + count > OPENAI_MAX_CALLS) {
        char what[80];
        snprintf(what, sizeof what, "an array, with at most %d calls in all messages",
                 OPENAI_MAX_CALLS);
        return field_expected(error, path, what);
    }
    m->tool_calls = out->calls + out->num_calls;
    m->num_tool_calls = count;
    json_array_foreach(value, i, call) {
        char where[80];
        snprintf(where, sizeof where, "%.50s[%zu]", path, i);
        int rc = read_call(&out->calls[out->num_calls++], where, call, error);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* What answers have beside what the model said, so that one can be sent back as it came. Thoughts
 * are among it: templates leave out those of earlier answers. */
static bool is_left_out(const char *key) {
    static const char *const names[] = {"name",      "refusal",           "annotations",
                                        "reasoning", "reasoning_content", "parsed"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(key, names[i]))
            return true;
    return false;
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
        if (json_is_null(v))
            continue;
        snprintf(path, sizeof path, "messages[%zu].%.32s", i, key);
        if (!strcmp(key, "role"))
            rc = param_read_role(&m->role, path, v, error);
        else if (!strcmp(key, "content"))
            rc = read_content(out, m, path, v, error);
        else if (!strcmp(key, "tool_calls"))
            rc = read_calls(out, m, path, v, error);
        else if (!strcmp(key, "tool_call_id"))
            rc = field_take_string(&m->tool_call_id, path, v, error);
        else if (!is_left_out(key))
            rc = field_error_set(error, ERR_INVALID_REQUEST, path, "%s: unknown field", path);
        if (rc != 0)
            return rc;
    }
    snprintf(path, sizeof path, "messages[%zu].%s", i, m->role ? "content" : "role");
    return m->role && (m->content || m->num_tool_calls) ? 0
                                                        : field_expected(error, path, "a string");
}

int openai_read_messages(struct openai_request *out, json_t *value, struct field_error *error) {
    size_t count = json_array_size(value); /* 0 when it is no array */
    if (count == 0 || count > PARAM_MAX_MESSAGES) {
        char what[80];
        snprintf(what, sizeof what, "an array of 1 to %d messages", PARAM_MAX_MESSAGES);
        return field_expected(error, "messages", what);
    }
    out->messages = xcalloc(count, sizeof *out->messages);
    out->num_messages = count;
    reserve(out, value);
    for (size_t i = 0; i < count; i++) {
        int rc = read_message(out, i, json_array_get(value, i), error);
        if (rc != 0)
            return rc;
    }
    return 0;
}
