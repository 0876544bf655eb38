#include "fields.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "host/nearest.h"

enum { MAX_FIELDS = 128 };

int field_error_set(struct field_error *error, int code, const char *param, const char *fmt, ...) {
    va_list ap;
    error->code = code;
    snprintf(error->param, sizeof error->param, "%s", param ? param : "");
    va_start(ap, fmt);
    vsnprintf(error->message, sizeof error->message, fmt, ap);
    va_end(ap);
    return code;
}

int field_expected(struct field_error *error, const char *param, const char *what) {
    return field_error_set(error, ERR_INVALID_REQUEST, param, "%s: expected %s", param, what);
}

int field_take_string(const char **out, const char *param, json_t *value,
                      struct field_error *error) {
    const char *s = json_string_value(value);
    if (!s || strlen(s) != json_string_length(value))
        return field_expected(error, param, "a string without NUL");
    *out = s;
    return 0;
}

int field_error_from(struct field_error *error, int code, const struct error *e) {
    static const char *const names[] = {"prompt",     "messages", "tokens", "text",       "tools",
                                        "max_tokens", "n",        "echo",   "tool_choice"};
    char param[sizeof error->param] = "";
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t len = strlen(names[i]);
        if (!strncmp(e->text, names[i], len) && e->text[len] && strchr(":[.", e->text[len]))
            snprintf(param, sizeof param, "%.*s", (int)strcspn(e->text, ":"), e->text);
    }
    return field_error_set(error, code, param, "%s", e->text);
}

/* ---- documents ------------------------------------------------------------------------------- */

/* Does s keep to the bounds? Counts outside of strings only; what is not JSON at all is left to the
 * parser, which never recurses deeper than the brackets counted here. NULL, or what is wrong. */
static const char *check_shape(const char *s, size_t len) {
    int depth = 0, containers = 0;
    bool in_string = false;
    for (size_t i = 0; i < len; i++) {
        char c = s[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > FIELDS_MAX_DEPTH)
                return "arrays and objects are nested deeper than 64";
            if (++containers > FIELDS_MAX_CONTAINERS)
                return "there are more than 16384 arrays and objects";
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return NULL;
}
_Static_assert(FIELDS_MAX_DEPTH == 64 && FIELDS_MAX_CONTAINERS == 16384, "as check_shape says");

int fields_parse(const char *text, size_t len, json_t **doc, struct field_error *error) {
    json_error_t e;
    const char *wrong = check_shape(text, len);
    *doc = NULL;
    if (len == 0)
        return field_error_set(error, ERR_INVALID_JSON, NULL, "the body is empty");
    if (wrong)
        return field_error_set(error, ERR_INVALID_JSON, NULL, "%s", wrong);
    *doc = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    if (*doc)
        return 0;
    switch (json_error_code(&e)) {
    case json_error_duplicate_key: /* valid JSON, but not a request */
        return field_error_set(error, ERR_INVALID_REQUEST, NULL, "a field is given twice: %s",
                               e.text);
    case json_error_numeric_overflow:
        return field_error_set(error, ERR_INVALID_REQUEST, NULL,
                               "a number does not fit in 64 bits, signed, or a double (before byte "
                               "%d)",
                               e.position);
    default:
        return field_error_set(error, ERR_INVALID_JSON, NULL, "not valid JSON: %s (at byte %d)",
                               e.text, e.position);
    }
}

/* ---- tables ---------------------------------------------------------------------------------- */

const char *field_path(const struct field_reader *r, const char *name) {
    static _Thread_local char path[80];
    snprintf(path, sizeof path, "%s%.40s", r->path, name);
    return path;
}

static int unknown_name(const char *path, const char *key, const char *const *names, size_t count,
                        struct field_error *error) {
    const char *near = nearest_name(names, count, key);
    return field_error_set(error, ERR_INVALID_REQUEST, path, "%s: unknown field%s%s%s", path,
                           near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
}

int fields_check_names(json_t *object, const char *path, const char *const *names, size_t count,
                       struct field_error *error) {
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        char where[80];
        size_t i = 0;
        while (i < count && strcmp(key, names[i]))
            i++;
        snprintf(where, sizeof where, "%.38s.%.40s", path, key);
        if (i == count)
            return unknown_name(where, key, names, count, error);
    }
    return 0;
}

static int unknown_field(struct field_reader *r, const char *key, bool known_elsewhere) {
    const char *names[MAX_FIELDS];
    size_t count = 0;
    const char *path = field_path(r, key);
    if (known_elsewhere)
        return field_error_set(r->error, ERR_INVALID_REQUEST, path, "%s: not a field of %s", path,
                               r->what);
    for (int i = 0; i < r->num_fields && count < MAX_FIELDS; i++)
        if (r->table[i].kinds & r->kind)
            names[count++] = r->table[i].name;
    return unknown_name(path, key, names, count, r->error);
}

static int read_field(struct field_reader *r, const char *key, json_t *value) {
    for (int i = 0; i < r->num_fields; i++) {
        const struct field *f = &r->table[i];
        if (strcmp(f->name, key))
            continue;
        if (!(f->kinds & r->kind))
            return unknown_field(r, key, true);
        return json_is_null(value) ? 0 : f->read(r, f, value);
    }
    return unknown_field(r, key, false);
}

int fields_read(struct field_reader *r, json_t *object) {
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        int rc = read_field(r, key, value);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* ---- readers --------------------------------------------------------------------------------- */

void *field_at(const struct field_reader *r, const struct field *f) {
    return (char *)r->out + f->offset;
}

int field_read_int(struct field_reader *r, const struct field *f, json_t *value) {
    char what[96];
    if (json_is_integer(value) && (double)json_integer_value(value) >= f->min &&
        (double)json_integer_value(value) <= f->max) {
        *(int32_t *)field_at(r, f) = (int32_t)json_integer_value(value);
        return 0;
    }
    snprintf(what, sizeof what, "an integer from %.0f to %.0f", f->min, f->max);
    return field_expected(r->error, field_path(r, f->name), what);
}

int field_read_float(struct field_reader *r, const struct field *f, json_t *value) {
    char what[96];
    double d = json_number_value(value);
    float x = (float)d; /* must be in range as a float too: 1e-60 is not above 0 */
    if (json_is_number(value) && d >= f->min && d <= f->max && (!f->above_min || x > f->min)) {
        *(float *)field_at(r, f) = x;
        return 0;
    }
    snprintf(what, sizeof what,
             f->above_min ? "a number above %g and up to %g" : "a number from %g to %g", f->min,
             f->max);
    return field_expected(r->error, field_path(r, f->name), what);
}

int field_read_bool(struct field_reader *r, const struct field *f, json_t *value) {
    if (!json_is_boolean(value))
        return field_expected(r->error, field_path(r, f->name), "true or false");
    *(bool *)field_at(r, f) = json_is_true(value);
    return 0;
}

int field_read_string(struct field_reader *r, const struct field *f, json_t *value) {
    return field_take_string(field_at(r, f), field_path(r, f->name), value, r->error);
}

int field_read_nothing(struct field_reader *r, const struct field *f, json_t *value) {
    (void)r, (void)f, (void)value;
    return 0;
}
