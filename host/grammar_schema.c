/* grammar_schema: a JSON schema as states and edges.
 *
 * Schemas are compiled in place, from a state to a state behind them; those that are referred to,
 * and elements that are counted, become rules, which wait in a list so that nothing here goes
 * deeper than the schema is nested.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/grammar_internal.h"
#include "host/json_text.h"
#include "host/mem.h"
#include "host/utf8.h"

enum {
    MAX_PATH_BYTES = 512,
    MAX_PATTERN_WORK = 8000000,
    MIN_SHARED_VALUES = 9, /* of enum: fewer take about as many states as a call */
};

/* ---- errors and places ---- */

static void print_place(const struct place *at, struct buffer *out) {
    if (at->up) {
        print_place(at->up, out);
        if (at->key)
            buffer_printf(out, "/%.64s", at->key);
        else
            buffer_printf(out, "/%zu", at->index);
    } else {
        buffer_printf(out, "%s", at->root);
    }
}

int32_t compile_error(struct compiler *c, const struct place *at, const char *fmt, ...) {
    struct buffer path = {0}, whole = {0};
    char text[512];
    va_list args;
    if (c->error->code)
        return -1;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    print_place(at, &path);
    utf8_append_lossy(&whole, path.data, path.len < MAX_PATH_BYTES ? path.len : MAX_PATH_BYTES);
    buffer_puts(&whole, ": ");
    utf8_append_lossy(&whole, text, strlen(text)); /* which may be cut within a character */
    error_set(c->error, ERR_INVALID_REQUEST, "%.*s", (int)whole.len, whole.data);
    buffer_deinit(&path);
    buffer_deinit(&whole);
    return -1;
}

void nothing_fits(struct compiler *c, const struct place *at, const char *why) {
    struct error *error = c->error;
    c->error = &c->nothing;
    compile_error(c, at, "%s", why);
    c->error = error;
    c->b.nothing = c->nothing.text;
}

struct place place_in(const struct place *up, const char *key, size_t index) {
    return (struct place){.up = up, .key = key, .index = index, .depth = up->depth + 1};
}

/* ---- keywords ---- */

enum keyword_class { KEYWORD_CONSTRAINT, KEYWORD_ANNOTATION, KEYWORD_REFUSED };

static enum keyword_class keyword_class(const char *name) {
    static const char *const constraints[] = {
        "type",
        "enum",
        "const",
        "properties",
        "required",
        "items",
        "minItems",
        "maxItems",
        "additionalProperties",
        "prefixItems",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "anyOf",
        "oneOf",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "allOf",
        "propertyNames",
        "multipleOf",
        "$ref",
    };
    static const char *const refused[] = {
        "not",
        "if",
        "then",
        "else",
        "patternProperties",
        "minProperties",
        "maxProperties",
        "contains",
        "minContains",
        "maxContains",
        "uniqueItems",
        "dependentSchemas",
        "unevaluatedProperties",
        "dependencies",
        "unevaluatedItems",
        "dependentRequired",
        "$dynamicRef",
        "$recursiveRef",
        "additionalItems",
        "extends",
        "disallow",
        "divisibleBy",
    };
    for (size_t i = 0; i < sizeof constraints / sizeof *constraints; i++)
        if (*name == *constraints[i] && !strcmp(name, constraints[i]))
            return KEYWORD_CONSTRAINT;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (*name == *refused[i] && !strcmp(name, refused[i]))
            return KEYWORD_REFUSED;
    return KEYWORD_ANNOTATION;
}

bool is_constraint(const char *keyword) {
    return keyword_class(keyword) == KEYWORD_CONSTRAINT;
}

bool has_constraints(json_t *schema, const char *but) {
    const char *key;
    json_t *value;
    json_object_foreach(schema, key, value) {
        if (is_constraint(key) && !(but && !strcmp(key, but)))
            return true;
    }
    return false;
}

json_t *copy_constraints(json_t *schema) {
    const char *key;
    json_t *out = json_object(), *value;
    json_object_foreach(schema, key, value) {
        if (is_constraint(key))
            json_object_set(out, key, value);
    }
    return out;
}

/* Values with which a refused keyword says nothing. */
static bool says_nothing(const char *key, json_t *value, json_t *required) {
    if (!strcmp(key, "uniqueItems"))
        return json_is_false(value);
    if (!strncmp(key, "unevaluated", 11))
        return json_is_true(value);
    if (!strcmp(key, "minProperties")) /* of names that are required, one may stand there twice */
        return json_is_integer(value) &&
               json_integer_value(value) <= (json_array_size(required) > 0);
    return json_is_object(value) && json_object_size(value) == 0 && strcmp(key, "not") != 0 &&
           strcmp(key, "contains") != 0;
}

bool check_keywords(struct compiler *c, json_t *schema, const struct place *at) {
    const char *key;
    json_t *value;
    if (!spend_work(c, 4 + 2 * (int64_t)json_object_size(schema), at))
        return false;
    json_object_foreach(schema, key, value) {
        if (keyword_class(key) == KEYWORD_REFUSED &&
            !says_nothing(key, value, json_object_get(schema, "required")))
            return compile_error(c, at, "%s is not supported", key) >= 0;
        if (!strcmp(key, "$id") && schema != c->document)
            return compile_error(c, at, "$id is supported at the root only") >= 0;
    }
    return true;
}

/* ---- kinds ---- */

static const struct {
    const char *name;
    unsigned kind;
} kind_names[] = {
    {"null", KIND_NULL},     {"boolean", KIND_BOOLEAN}, {"integer", KIND_INTEGER},
    {"number", KIND_NUMBER}, {"string", KIND_STRING},   {"object", KIND_OBJECT},
    {"array", KIND_ARRAY},
};
enum { NUM_KINDS = sizeof kind_names / sizeof *kind_names };

static unsigned kind_of_name(json_t *name) {
    for (size_t i = 0; json_is_string(name) && i < NUM_KINDS; i++)
        if (!strcmp(json_string_value(name), kind_names[i].name))
            return kind_names[i].kind;
    return 0;
}

unsigned kind_of_value(json_t *v) {
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return KIND_OBJECT;
    case JSON_ARRAY:
        return KIND_ARRAY;
    case JSON_STRING:
        return KIND_STRING;
    case JSON_INTEGER:
        return KIND_INTEGER;
    case JSON_REAL:
        return KIND_NUMBER;
    case JSON_TRUE:
    case JSON_FALSE:
        return KIND_BOOLEAN;
    default:
        return KIND_NULL;
    }
}

/* Integers are what has no fraction: 1.0 is one. */
bool kinds_hold(unsigned kinds, json_t *value) {
    double real = json_real_value(value); /* 0 of other kinds */
    if (json_is_integer(value) || (json_is_real(value) && real == trunc(real)))
        return kinds & (KIND_INTEGER | KIND_NUMBER);
    return kinds & kind_of_value(value);
}

unsigned keyword_kind(const char *keyword) {
    static const struct {
        const char *keyword;
        unsigned kind;
    } implied[] = {
        {"properties", KIND_OBJECT},
        {"required", KIND_OBJECT},
        {"items", KIND_ARRAY},
        {"additionalProperties", KIND_OBJECT},
        {"propertyNames", KIND_OBJECT},
        {"prefixItems", KIND_ARRAY},
        {"minItems", KIND_ARRAY},
        {"maxItems", KIND_ARRAY},
        {"minLength", KIND_STRING},
        {"maxLength", KIND_STRING},
        {"pattern", KIND_STRING},
        {"format", KIND_STRING},
        {"minimum", KIND_NUMBER},
        {"maximum", KIND_NUMBER},
        {"exclusiveMinimum", KIND_NUMBER},
        {"exclusiveMaximum", KIND_NUMBER},
        {"multipleOf", KIND_NUMBER},
    };
    for (size_t i = 0; i < sizeof implied / sizeof *implied; i++)
        if (!strcmp(keyword, implied[i].keyword))
            return implied[i].kind;
    return 0;
}

/* What keywords speak of, where there is no type. */
static unsigned implied_kinds(json_t *schema) {
    const char *key;
    json_t *value;
    unsigned kinds = 0;
    json_object_foreach(schema, key, value) {
        kinds |= keyword_kind(key);
    }
    return kinds ? kinds : KIND_ALL;
}

unsigned schema_kinds(struct compiler *c, json_t *schema, const struct place *at) {
    json_t *type = json_object_get(schema, "type"), *item;
    unsigned kinds = 0;
    size_t i;
    if (!type)
        return implied_kinds(schema);
    if (!spend_work(c, 1 + (int64_t)json_array_size(type), at))
        return 0;
    if (json_is_array(type))
        json_array_foreach(type, i, item) {
            unsigned kind = kind_of_name(item);
            if (!kind) {
                kinds = 0;
                break;
            }
            kinds |= kind;
        }
    else
        kinds = kind_of_name(type);
    if (!kinds)
        compile_error(
            c, at,
            "type: expected one of null, boolean, integer, number, string, object, array, "
            "or an array of them");
    return kinds;
}

int32_t read_count(struct compiler *c, json_t *schema, const char *key, int32_t otherwise,
                   const struct place *at) {
    json_t *v = json_object_get(schema, key);
    double n = json_is_number(v) ? json_number_value(v) : -1;
    if (!v)
        return otherwise;
    if (n < 0 || n != (double)(int64_t)(n < 1e15 ? n : 1e15))
        return compile_error(c, at, "%s: expected a whole number from 0 on", key);
    if (!strncmp(key, "max", 3))
        return n < GRAMMAR_MAX_REPEATS ? (int32_t)n : GRAMMAR_MAX_REPEATS;
    if (n > GRAMMAR_MAX_REPEATS)
        return compile_error(c, at, "%s: %.0f, at most %d is supported", key, n,
                             GRAMMAR_MAX_REPEATS);
    return (int32_t)n;
}

/* ---- rules that are shared ---- */

/* The rule of what has this key; -1: there is none yet. */
static int32_t find_shared(struct compiler *c, const char *key) {
    for (int32_t i = 0; i < c->num_shared; i++)
        if (!strcmp(c->shared[i].key, key))
            return c->shared[i].rule;
    return -1;
}

static void keep_shared(struct compiler *c, const char *key, int32_t rule) {
    if (c->num_shared < MAX_SHARED_RULES)
        c->shared[c->num_shared++] = (struct shared_rule){xstrdup(key), rule};
}

/* ---- values that are given ---- */

static int compare_texts(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* One way for each of the texts, which are sorted and share their beginnings. */
static void add_texts(struct builder *b, char **texts, size_t count, int32_t from, int32_t end) {
    struct buffer states = {0}; /* of the text before, by its bytes */
    const char *before = "";
    buffer_append(&states, &from, sizeof from);
    for (size_t i = 0; i < count && !b->full; i++) {
        size_t shared = 0, len = strlen(texts[i]);
        while (shared < len && before[shared] == texts[i][shared])
            shared++;
        if (i > 0 && shared == len)
            continue; /* the same text again */
        states.len = (shared + 1) * sizeof(int32_t);
        int32_t state;
        memcpy(&state, states.data + shared * sizeof state, sizeof state);
        for (size_t k = shared; k < len; k++) {
            state = add_char(b, state, texts[i][k]);
            buffer_append(&states, &state, sizeof state);
        }
        add_empty(b, state, end);
        before = texts[i];
    }
    buffer_deinit(&states);
}

/* A value as compact JSON, the caller's; NULL: it is nested too deep. Reals have the fewest digits
 * that read back the same, and one that has to be an integer is written as such. */
static char *text_of_value(json_t *value, unsigned kinds) {
    char *dump = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    struct buffer out = {0};
    bool quoted = false;
    if (dump && json_is_real(value) && !(kinds & KIND_NUMBER)) {
        buffer_printf(&out, "%.0f", json_real_value(value));
        dump[0] = 0;
    }
    for (const char *p = dump; p && *p;) {
        size_t number = quoted ? 0 : strspn(p, "+-.0123456789eE");
        bool real = number > 0 && *p != 'e' && strcspn(p, ".eE") < number;
        size_t len = number > 0 && *p != 'e' ? number : quoted && *p == '\\' ? 2 : 1;
        quoted ^= *p == '"';
        if (real)
            json_text_put_real(&out, strtod(p, NULL));
        else
            buffer_append(&out, p, len);
        p += len;
    }
    free(dump);
    if (out.len > 0)
        buffer_putc(&out, 0);
    return out.data;
}

/* The same by a call of the rule that all lists with these texts have. */
static void call_texts(struct compiler *c, char **texts, size_t count, const struct place *at,
                       int32_t from, int32_t end) {
    struct buffer key = {0};
    buffer_puts(&key, "enum");
    for (size_t i = 0; i < count; i++) {
        buffer_putc(&key, ',');
        buffer_puts(&key, texts[i]);
    }
    buffer_putc(&key, 0);
    if (spend_work(c, c->num_shared / 8, at) && spend_text(c, key.len, at)) {
        int32_t rule = find_shared(c, key.data);
        if (rule < 0) {
            rule = add_rule(&c->b);
            int32_t behind = add_state(&c->b);
            set_end(&c->b, behind);
            add_texts(&c->b, texts, count, c->b.start[rule], behind);
            keep_shared(c, key.data, rule);
        }
        add_call(&c->b, from, rule, end);
    }
    buffer_deinit(&key);
}

static int32_t compile_values(struct compiler *c, json_t *schema, json_t *values,
                              const struct place *at, int32_t from) {
    unsigned kinds = KIND_ALL;
    size_t count = 0, i;
    json_t *value;
    if (json_object_get(schema, "type") && !(kinds = schema_kinds(c, schema, at)))
        return -1;
    char **texts = xcalloc(json_array_size(values) + 1, sizeof *texts);
    json_array_foreach(values, i, value) {
        if (!spend_work(c, 8, at) || !spend_value(c, value, at))
            break;
        if (kinds_hold(kinds, value))
            texts[count++] = text_of_value(value, kinds);
    }
    for (i = 0; i < count && !c->error->code; i++)
        if (!texts[i]) {
            compile_error(c, at, "a value of enum or const is nested too deep");
        }
    int32_t end = add_state(&c->b);
    if (!c->error->code) {
        qsort(texts, count, sizeof *texts, compare_texts);
        if (count < MIN_SHARED_VALUES || c->num_shared == MAX_SHARED_RULES)
            add_texts(&c->b, texts, count, from, end);
        else
            call_texts(c, texts, count, at, from, end);
    }
    if (count == 0)
        nothing_fits(c, at,
                     "no value of enum or const is of the type, and fits the other keywords");
    for (i = 0; i < json_array_size(values); i++)
        free(texts[i]);
    free(texts);
    return c->error->code ? -1 : end;
}

static int32_t compile_enum(struct compiler *c, json_t *schema, const struct place *at,
                            int32_t from) {
    json_t *list = json_object_get(schema, "enum"), *only = json_object_get(schema, "const");
    json_t *values = json_array(), *value;
    size_t i;
    int32_t end = -1;
    if (list && (!json_is_array(list) || json_array_size(list) == 0)) {
        compile_error(c, at, "enum: expected an array of at least one value");
    } else {
        if (!list)
            json_array_append(values, only);
        json_array_foreach(list, i, value) {
            if (!only || same_value(c, only, value, at))
                json_array_append(values, value);
        }
        if (filter_values(c, schema, values, at))
            end = compile_values(c, schema, values, at, from);
    }
    json_decref(values);
    return end;
}

/* ---- strings and numbers ---- */

/* What a string or a number has to be. */
struct scalar {
    unsigned kinds;
    struct number_bounds bounds; /* numbers */
    int32_t min, max;            /* strings: characters */
};

static int32_t make_number(struct compiler *c, const struct scalar *s, const struct place *at,
                           int32_t from) {
    int32_t end = s->kinds & KIND_NUMBER ? add_number(&c->b, from, &s->bounds)
                                         : add_integer(&c->b, from, &s->bounds);
    if (end == NUMBER_TOO_LONG)
        return compile_error(c, at,
                             "a bound has too many digits: 18 are supported of integers, 15 of "
                             "numbers, those behind the point included");
    return end < 0 ? compile_error(c, at, "no number is within the bounds") : end;
}

static int32_t make_string(struct compiler *c, json_t *schema, const struct scalar *s,
                           const struct place *at, int32_t from);

/* A scalar with these keywords: a call of the rule that all with the same have. */
static int32_t add_scalar(struct compiler *c, json_t *schema, const char *name,
                          const char *const *keys, int num_keys, const struct place *at,
                          int32_t from, const struct scalar *s) {
    struct buffer key = {0};
    int32_t end = add_state(&c->b);
    if (!spend_work(c, 8 + c->num_shared / 8, at))
        return -1;
    buffer_puts(&key, name);
    for (int k = 0; k < num_keys; k++) {
        if (!spend_value(c, json_object_get(schema, keys[k]), at))
            break;
        char *text = json_dumps(json_object_get(schema, keys[k]), JSON_ENCODE_ANY);
        buffer_printf(&key, ",%s", text ? text : "");
        free(text);
    }
    buffer_putc(&key, 0);
    int32_t rule = find_shared(c, key.data);
    if (rule < 0) {
        rule = add_rule(&c->b);
        int32_t start = c->b.start[rule];
        int32_t behind = s->kinds & KIND_STRING ? make_string(c, schema, s, at, start)
                                                : make_number(c, s, at, start);
        if (behind < 0) {
            end = -1;
        } else {
            set_end(&c->b, behind);
            keep_shared(c, key.data, rule);
        }
    }
    buffer_deinit(&key);
    if (end >= 0)
        add_call(&c->b, from, rule, end);
    return end;
}

/* The same bound for integers: the nearest one that it leaves. */
static void bound_integers(struct number_bounds *v, json_t *bound, bool upper, bool exclusive) {
    static const double beyond = 2e18; /* what no integer that is written comes to */
    double x = json_number_value(bound), whole = upper ? floor(x) : ceil(x);
    int64_t n = (int64_t)(whole < -beyond ? -beyond : whole > beyond ? beyond : whole);
    if (json_is_integer(bound) && fabs(x) < beyond)
        n = json_integer_value(bound);
    if (exclusive && x == whole)
        n += upper ? -1 : 1;
    if (upper && n < v->high)
        v->high = n;
    if (!upper && n > v->low)
        v->low = n;
}

static int32_t compile_number(struct compiler *c, json_t *schema, unsigned kinds,
                              const struct place *at, int32_t from) {
    static const char *const keys[] = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
                                       "multipleOf"};
    struct number_bounds v = {.low = INT64_MIN, .high = INT64_MAX};
    for (int i = 0; i < 4; i++) {
        json_t *bound = json_object_get(schema, keys[i]);
        bool exclusive = i >= 2;
        if (!bound)
            continue;
        if (!json_is_number(bound))
            return compile_error(c, at, "%s: expected a number", keys[i]);
        double x = json_number_value(bound);
        bound_integers(&v, bound, i % 2 == 1, exclusive);
        if (i % 2 == 0 && (!v.has_min || x > v.min || (x == v.min && exclusive))) {
            v.has_min = true;
            v.min = x;
            v.min_exclusive = exclusive;
        } else if (i % 2 == 1 && (!v.has_max || x < v.max || (x == v.max && exclusive))) {
            v.has_max = true;
            v.max = x;
            v.max_exclusive = exclusive;
        }
    }
    json_t *multiple = json_object_get(schema, "multipleOf");
    double of = json_is_number(multiple) ? json_number_value(multiple) : multiple ? 0 : 1;
    if (!(of >= 1 && of <= GRAMMAR_MAX_MULTIPLE) || of != floor(of))
        return compile_error(c, at, "multipleOf: whole numbers from 1 to %d are supported",
                             GRAMMAR_MAX_MULTIPLE);
    v.multiple_of = (int32_t)of;
    if (multiple)
        kinds = KIND_INTEGER;
    return add_scalar(c, schema, kinds & KIND_NUMBER ? "number" : "integer", keys, 5, at, from,
                      &(struct scalar){.bounds = v, .kinds = kinds & (KIND_INTEGER | KIND_NUMBER)});
}

/* Of a pattern under a keyword. False after an error. */
static bool pattern_automaton(struct compiler *c, const char *key, const char *pattern, size_t len,
                              const struct place *at, struct cp_dfa *out) {
    struct error e = {0};
    if (pattern_compile(pattern, len, &c->pattern_work, out, &e))
        return compile_error(c, at, "%s: %s", key, e.text) >= 0;
    return true;
}

/* What a string may be apart from its length. False after an error. */
static bool string_automaton(struct compiler *c, json_t *schema, const struct place *at,
                             struct cp_dfa *out) {
    json_t *pattern = json_object_get(schema, "pattern");
    json_t *format = json_object_get(schema, "format");
    const char *formatted =
        json_is_string(format) ? format_pattern(json_string_value(format)) : NULL;
    struct cp_dfa one = {0}, other = {0};
    if (pattern && !json_is_string(pattern))
        return compile_error(c, at, "pattern: expected a string") >= 0;
    if (format && !json_is_string(format))
        return compile_error(c, at, "format: expected a string") >= 0;
    if (!pattern && !formatted) {
        cp_dfa_all(out);
        return true;
    }
    bool ok = !pattern || pattern_automaton(c, "pattern", json_string_value(pattern),
                                            json_string_length(pattern), at, &one);
    ok = ok &&
         (!formatted || pattern_automaton(c, "format", formatted, strlen(formatted), at, &other));
    if (ok && pattern && formatted) {
        ok = cp_dfa_both(&one, &other, &c->pattern_work, out);
        if (!ok)
            compile_error(c, at, "pattern and format together are too complex");
    } else if (ok) {
        struct cp_dfa *only = pattern ? &one : &other;
        *out = *only;
        *only = (struct cp_dfa){0};
    }
    cp_dfa_deinit(&one);
    cp_dfa_deinit(&other);
    return ok;
}

static int32_t make_string(struct compiler *c, json_t *schema, const struct scalar *s,
                           const struct place *at, int32_t from) {
    struct cp_dfa all = {0}, counted = {0};
    int32_t end = -1;
    if (!string_automaton(c, schema, at, &all))
        goto out;
    int64_t layers = 1 + (int64_t)(s->max == INT32_MAX ? s->min : s->max);
    if (s->min == 0 && s->max == INT32_MAX)
        end = add_string(&c->b, &c->chars, from, &all);
    else if (!spend_work(c, layers * all.num_states / 32, at))
        end = -1;
    else if (cp_dfa_with_length(&all, s->min, s->max == INT32_MAX ? -1 : s->max, &counted))
        end = add_string(&c->b, &c->chars, from, &counted);
    else
        compile_error(c, at,
                      "pattern, minLength and maxLength together make too many states; "
                      "lower the lengths");
out:
    cp_dfa_deinit(&all);
    cp_dfa_deinit(&counted);
    return end;
}

int32_t add_free_string(struct compiler *c, int32_t from) {
    struct cp_dfa all = {0};
    cp_dfa_all(&all);
    int32_t end = add_string(&c->b, &c->chars, from, &all);
    cp_dfa_deinit(&all);
    return end;
}

static int32_t compile_string(struct compiler *c, json_t *schema, const struct place *at,
                              int32_t from) {
    static const char *const keys[] = {"pattern", "format", "minLength", "maxLength"};
    struct scalar s = {.kinds = KIND_STRING};
    s.min = read_count(c, schema, "minLength", 0, at);
    s.max = s.min < 0 ? -1 : read_count(c, schema, "maxLength", INT32_MAX, at);
    const char *format = json_string_value(json_object_get(schema, "format"));
    if (s.min < 0 || s.max < 0)
        return -1;
    if (format && format_pattern(format)) {
        int32_t most = format_max_length(format, s.min, s.max);
        if (s.min > most && s.min <= s.max)
            return compile_error(
                c, at, "minLength is more than the %d characters that format %s has", most, format);
        s.max = most;
    }
    if (s.min > s.max)
        return compile_error(c, at, "minLength is more than maxLength, or than %d",
                             GRAMMAR_MAX_REPEATS);
    if (s.min == 0 && s.max == INT32_MAX && !json_object_get(schema, "pattern") &&
        !json_object_get(schema, "format"))
        return add_free_string(c, from);
    return add_scalar(c, schema, "string", keys, 4, at, from, &s);
}

/* ---- any value ---- */

static int32_t make_any_rule(struct compiler *c) {
    struct builder *b = &c->b;
    int32_t rule = add_rule(b), start = b->start[rule], end = add_state(b);
    c->any_rule = rule;
    set_end(b, end);
    add_empty(b, add_any_string(b, start), end);
    add_empty(b, add_any_number(b, start), end);
    add_empty(b, add_literal(b, start, "true", 4), end);
    add_empty(b, add_literal(b, start, "false", 5), end);
    add_empty(b, add_literal(b, start, "null", 4), end);

    int32_t open = add_char(b, start, '['), element = add_state(b), behind = add_state(b);
    add_empty(b, open, element);
    add_call(b, element, rule, behind);
    add_empty(b, add_char_blank(b, behind, ','), element);
    add_bytes(b, open, ']', ']', end);
    add_bytes(b, behind, ']', ']', end);

    open = add_char(b, start, '{');
    element = add_state(b);
    behind = add_state(b);
    add_empty(b, open, element);
    add_call(b, add_char_blank(b, add_any_string(b, element), ':'), rule, behind);
    add_empty(b, add_char_blank(b, behind, ','), element);
    add_bytes(b, open, '}', '}', end);
    add_bytes(b, behind, '}', '}', end);
    return rule;
}

int32_t compile_any(struct compiler *c, int32_t from) {
    int32_t end = add_state(&c->b);
    int32_t rule = c->any_rule >= 0 ? c->any_rule : make_any_rule(c);
    add_call(&c->b, from, rule, end);
    return end;
}

/* ---- schemas ---- */

static int32_t compile_kind(struct compiler *c, json_t *schema, unsigned kind, unsigned kinds,
                            const struct place *at, int32_t from) {
    int32_t end;
    switch (kind) {
    case KIND_NULL:
        return add_literal(&c->b, from, "null", 4);
    case KIND_BOOLEAN:
        end = add_literal(&c->b, from, "true", 4);
        add_empty(&c->b, add_literal(&c->b, from, "false", 5), end);
        return end;
    case KIND_INTEGER:
    case KIND_NUMBER:
        return compile_number(c, schema, kinds, at, from);
    case KIND_STRING:
        return compile_string(c, schema, at, from);
    case KIND_OBJECT:
        return compile_object(c, schema, at, from);
    default:
        return compile_array(c, schema, at, from);
    }
}

static int32_t compile_kinds(struct compiler *c, json_t *schema, const struct place *at,
                             int32_t from) {
    unsigned kinds = schema_kinds(c, schema, at);
    int32_t end = add_state(&c->b);
    if (kinds & KIND_NUMBER)
        kinds &= ~(unsigned)KIND_INTEGER;
    for (unsigned kind = 1; kind <= KIND_ARRAY; kind *= 2) {
        if (!(kinds & kind))
            continue;
        int32_t behind = compile_kind(c, schema, kind, kinds, at, from);
        if (behind < 0)
            return -1;
        add_empty(&c->b, behind, end);
    }
    return kinds ? end : -1;
}

int32_t compile_schema(struct compiler *c, json_t *schema, const struct place *at, int32_t from) {
    if (at->depth > GRAMMAR_MAX_NESTING)
        return compile_error(c, at, "the schema is nested more than %d deep", GRAMMAR_MAX_NESTING);
    if (c->b.full)
        return compile_error(c, at, GRAMMAR_FULL_TEXT, GRAMMAR_FULL_LIMITS);
    if (++c->visited > GRAMMAR_MAX_SCHEMAS)
        return compile_error(c, at,
                             "the schema has more than %d parts, or its allOf and anyOf multiply",
                             GRAMMAR_MAX_SCHEMAS);
    if (json_is_true(schema))
        return compile_any(c, from);
    if (json_is_false(schema))
        return add_state(&c->b); /* nothing leads there */
    if (!json_is_object(schema))
        return compile_error(c, at, "expected an object or a boolean");
    if (!check_keywords(c, schema, at))
        return -1;
    json_t *ref = json_object_get(schema, "$ref");
    if (ref || json_object_get(schema, "allOf")) {
        if (ref && !has_constraints(schema, "$ref")) {
            json_t *target =
                json_is_string(ref) ? resolve_ref(c, json_string_value(ref), at) : NULL;
            if (!target)
                return c->error->code ? -1 : compile_error(c, at, "$ref: expected a string");
            const struct place root = {.root = json_string_value(ref)};
            int32_t end = add_state(&c->b);
            add_call(&c->b, from, rule_of_schema(c, target, &root), end);
            return end;
        }
        json_t *flat = flatten_schema(c, schema, at);
        const struct place deeper = place_in(at, ref ? "$ref" : "allOf", 0);
        if (json_is_false(flat))
            nothing_fits(c, at,
                         "the schemas of allOf, or beside $ref, have no type or value in common");
        return flat ? compile_schema(c, flat, &deeper, from) : -1;
    }
    if (!has_constraints(schema, NULL))
        return compile_any(c, from);
    if (json_object_get(schema, "anyOf"))
        return compile_branches(c, schema, "anyOf", at, from);
    if (json_object_get(schema, "oneOf"))
        return compile_branches(c, schema, "oneOf", at, from);
    if (json_object_get(schema, "enum") || json_object_get(schema, "const"))
        return compile_enum(c, schema, at, from);
    return compile_kinds(c, schema, at, from);
}

/* ---- rules ---- */

int32_t rule_of_schema(struct compiler *c, json_t *schema, const struct place *at) {
    if (!spend_work(c, 1 + c->num_rules / 64, at))
        return 0;
    for (int32_t i = 0; i < c->num_rules; i++)
        if (c->rules[i].schema == schema)
            return c->rules[i].rule;
    if (c->num_rules == GRAMMAR_MAX_RULES)
        c->b.full = true;
    if (c->b.full)
        return 0;
    if (c->num_rules == c->max_rules) {
        c->max_rules = c->max_rules ? 2 * c->max_rules : 16;
        c->rules = xrealloc(c->rules, (size_t)c->max_rules * sizeof *c->rules);
    }
    struct buffer path = {0};
    print_place(at, &path);
    struct pending *p = &c->rules[c->num_rules++];
    *p = (struct pending){
        schema, xstrndup(path.data, path.len < MAX_PATH_BYTES ? path.len : MAX_PATH_BYTES),
        add_rule(&c->b)};
    buffer_deinit(&path);
    return p->rule;
}

static void compile_rules(struct compiler *c) {
    while (c->num_done < c->num_rules && !c->error->code) {
        struct pending p = c->rules[c->num_done++];
        const struct place at = {.root = p.path};
        int32_t end = compile_schema(c, p.schema, &at, c->b.start[p.rule]);
        if (end >= 0)
            set_end(&c->b, end);
    }
}

int grammar_create_json_schema(json_t *schema, struct grammar **out, struct error *error) {
    struct error own = {0};
    struct compiler c = {.document = schema,
                         .made = json_array(),
                         .any_rule = -1,
                         .error = &own,
                         .pattern_work = MAX_PATTERN_WORK};
    const struct place root = {.root = "#"};
    int rc;
    c.chars.any_rule = -1;
    *out = NULL;
    rule_of_schema(&c, schema, &root);
    compile_rules(&c);
    rc = own.code ? error_set(error, own.code, "%s", own.text) : builder_finish(&c.b, out, error);
    builder_deinit(&c.b);
    char_rules_deinit(&c.chars);
    for (int32_t i = 0; i < c.num_rules; i++)
        free(c.rules[i].path);
    free(c.rules);
    free(c.tagged);
    free(c.flat);
    for (int32_t i = 0; i < c.num_shared; i++)
        free(c.shared[i].key);
    /* The last ones first: they hold the others, which may be a long chain. */
    for (size_t i = json_array_size(c.made); i > 0; i--)
        json_array_remove(c.made, i - 1);
    json_decref(c.made);
    return rc;
}

int grammar_create_json_object(struct grammar **out, struct error *error) {
    json_t *schema = json_pack("{s:s}", "type", "object");
    int rc = grammar_create_json_schema(schema, out, error);
    json_decref(schema);
    return rc;
}
