#include "json.h"

#include <stdlib.h>

#include "file.h"

json_t *json_parse(const char *text, size_t len, const char *where, int code, struct error *error) {
    json_error_t e;
    json_t *doc = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
    if (!doc)
        error_set(error, code, "%s: not valid JSON: %s (line %d, column %d)", where, e.text, e.line,
                  e.column);
    return doc;
}

json_t *json_parse_file(const char *path, size_t max_bytes, struct error *error) {
    char *text;
    size_t len;
    if (file_read(path, max_bytes, &text, &len, error) != 0)
        return NULL;
    json_t *doc = json_parse(text, len, path, ERR_BAD_FILE, error);
    free(text);
    return doc;
}

static json_t *present(json_t *obj, const char *key) {
    json_t *v = json_object_get(obj, key);
    return json_is_null(v) ? NULL : v;
}

int64_t json_read_int(json_t *obj, const char *key, int64_t def, int64_t min, int64_t max,
                      const char *where, struct error *error) {
    json_t *v = present(obj, key);
    if (!v)
        return def;
    if (json_is_integer(v) && json_integer_value(v) >= min && json_integer_value(v) <= max)
        return json_integer_value(v);
    error_add(error, ERR_BAD_FILE, "%s: %s: expected an integer from %lld to %lld", where, key,
              (long long)min, (long long)max);
    return def;
}

double json_read_number(json_t *obj, const char *key, double def, double min, double max,
                        const char *where, struct error *error) {
    json_t *v = present(obj, key);
    if (!v)
        return def;
    if (json_is_number(v) && json_number_value(v) >= min && json_number_value(v) <= max)
        return json_number_value(v);
    error_add(error, ERR_BAD_FILE, "%s: %s: expected a number from %g to %g", where, key, min, max);
    return def;
}

bool json_read_bool(json_t *obj, const char *key, bool def, const char *where,
                    struct error *error) {
    json_t *v = present(obj, key);
    if (!v)
        return def;
    if (json_is_boolean(v))
        return json_is_true(v);
    error_add(error, ERR_BAD_FILE, "%s: %s: expected true or false", where, key);
    return def;
}

const char *json_read_string(json_t *obj, const char *key, const char *def, const char *where,
                             struct error *error) {
    json_t *v = present(obj, key);
    if (!v)
        return def;
    if (json_is_string(v))
        return json_string_value(v);
    error_add(error, ERR_BAD_FILE, "%s: %s: expected a string", where, key);
    return def;
}
