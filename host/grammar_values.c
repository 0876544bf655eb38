/* grammar_values: which of the values of enum and const the other keywords let through, and the
 * values of several branches as one list. */
#include <string.h>

#include "host/grammar_internal.h"
#include "host/utf8.h"

static int64_t num_characters(json_t *string) {
    const char *text = json_string_value(string);
    size_t len = json_string_length(string), at = 0;
    int64_t count = 0;
    for (uint32_t cp; at < len; count++)
        at += utf8_next(text + at, len - at, &cp);
    return count;
}

/* Whether the length of a string or array, or a number, is less than, equal to or more than the
 * bound, as of compare_numbers. */
static int compare_to_bound(const char *key, json_t *value, json_t *bound) {
    bool length = strstr(key, "Length"), items = strstr(key, "Items");
    if (!length && !items)
        return compare_numbers(value, bound);
    double size = length ? (double)num_characters(value) : (double)json_array_size(value);
    return (size > json_number_value(bound)) - (size < json_number_value(bound));
}

/* Does a value keep to the bound to which it has this order? */
static bool within(const char *key, int order) {
    if (!strncmp(key, "exclusive", 9))
        return key[10] == 'a' ? order < 0 : order > 0;
    return key[1] == 'a' ? order <= 0 : order >= 0;
}

static bool matches(const struct cp_dfa *d, json_t *string) {
    const char *text = json_string_value(string);
    size_t len = json_string_length(string), at = 0;
    int32_t state = 0;
    for (uint32_t cp; at < len && state >= 0;) {
        int32_t next = -1;
        at += utf8_next(text + at, len - at, &cp);
        for (int32_t i = 0; i < d->num_edges; i++)
            if (d->edges[i].from == state && cp >= d->edges[i].low && cp <= d->edges[i].high)
                next = d->edges[i].to;
        state = next;
    }
    return state >= 0 && d->ends[state];
}

static bool has_all(json_t *object, json_t *names) {
    json_t *name;
    size_t i;
    json_array_foreach(names, i, name) {
        if (!is_name(name) || !json_object_get(object, json_string_value(name)))
            return false;
    }
    return true;
}

/* One keyword, and what it needs. */
struct filter {
    const char *key;
    json_t *bound;
    struct cp_dfa pattern;
};

static bool lets_through(const struct filter *f, json_t *value) {
    unsigned kind = kind_of_value(value);
    if (!(keyword_kind(f->key) & (kind == KIND_INTEGER ? KIND_NUMBER : kind)))
        return true; /* it speaks of others */
    if (!strcmp(f->key, "pattern"))
        return matches(&f->pattern, value);
    if (!strcmp(f->key, "required"))
        return has_all(value, f->bound);
    return within(f->key, compare_to_bound(f->key, value, f->bound));
}

static bool prepare(struct compiler *c, struct filter *f, json_t *values, const struct place *at) {
    static const char *const bounds[] = {
        "minLength", "maxLength", "minItems",         "maxItems",
        "minimum",   "maximum",   "exclusiveMinimum", "exclusiveMaximum",
    };
    struct error e = {0};
    json_t *value;
    size_t i;
    bool concerns = false;
    json_array_foreach(values, i, value) {
        unsigned kind = kind_of_value(value);
        concerns |= keyword_kind(f->key) & (kind == KIND_INTEGER ? KIND_NUMBER : kind);
        if (!spend_value(c, value, at))
            return false;
    }
    if (!concerns || (!strcmp(f->key, "required") && json_is_array(f->bound)))
        return spend_value(c, f->bound, at);
    for (i = 0; i < sizeof bounds / sizeof *bounds; i++)
        if (!strcmp(f->key, bounds[i]))
            return json_is_number(f->bound) ||
                   compile_error(c, at, "%s: expected a number", f->key) >= 0;
    if (strcmp(f->key, "pattern") != 0)
        return compile_error(c, at, "%s is not supported beside enum or const", f->key) >= 0;
    if (!json_is_string(f->bound))
        return compile_error(c, at, "pattern: expected a string") >= 0;
    if (pattern_compile(json_string_value(f->bound), json_string_length(f->bound), &c->pattern_work,
                        &f->pattern, &e))
        return compile_error(c, at, "pattern: %s", e.text) >= 0;
    return true;
}

bool filter_values(struct compiler *c, json_t *schema, json_t *values, const struct place *at) {
    const char *key;
    json_t *bound;
    bool ok = true;
    json_object_foreach(schema, key, bound) {
        struct filter f = {.key = key, .bound = bound};
        if (!is_constraint(key) || !strcmp(key, "enum") || !strcmp(key, "const") ||
            !strcmp(key, "type") || !strcmp(key, "format"))
            continue;
        ok = prepare(c, &f, values, at);
        for (size_t i = json_array_size(values); ok && i > 0; i--) {
            json_t *value = json_array_get(values, i - 1);
            ok = spend_work(c, 1 + (int64_t)json_array_size(bound), at) &&
                 spend_work(c, f.pattern.num_edges * (int64_t)json_string_length(value) / 64, at);
            if (ok && !lets_through(&f, value))
                json_array_remove(values, i - 1);
        }
        cp_dfa_deinit(&f.pattern);
        if (!ok)
            break;
    }
    return ok;
}

json_t *values_of_branch(struct compiler *c, json_t *branch, const struct place *at) {
    json_t *list = json_object_get(branch, "enum"), *only = json_object_get(branch, "const");
    json_t *out, *value;
    const char *key;
    unsigned kinds = KIND_ALL;
    size_t i;
    if (!list == !only || (list && !json_is_array(list)))
        return NULL;
    json_object_foreach(branch, key, value) {
        if (is_constraint(key) && strcmp(key, "enum") != 0 && strcmp(key, "const") != 0 &&
            strcmp(key, "type") != 0)
            return NULL;
    }
    if (!check_keywords(c, branch, at))
        return NULL;
    if (json_object_get(branch, "type") && !(kinds = schema_kinds(c, branch, at)))
        return NULL;
    out = json_array();
    if (only && kinds_hold(kinds, only))
        json_array_append(out, only);
    json_array_foreach(list, i, value) {
        if (spend_work(c, 1, at) && kinds_hold(kinds, value))
            json_array_append(out, value);
    }
    if (json_array_size(out) == 0 || c->error->code) {
        json_decref(out);
        return NULL;
    }
    return out;
}
