/* grammar_object: objects and arrays.
 *
 *   {  pick 0  "a" : value  behind 1  ,  pick 1  "b" : value  behind 2  ...  }
 *
 * pick i: a property from the i-th on comes next; so an optional one may be skipped there. behind
 * i: the properties before the i-th are done with, those that were written and those that were not.
 * Elements of arrays have the same two kinds of states.
 */
#include <stdlib.h>
#include <string.h>

#include "host/grammar_internal.h"
#include "host/mem.h"

enum { MAX_PROPERTIES = 1000 };

/* ---- objects ---- */

struct property {
    const char *key; /* borrowed */
    json_t *schema;  /* borrowed */
    bool required;
};

struct properties {
    struct property *list; /* owned */
    size_t count;
    json_t *required;   /* their names, owned */
    json_t *names;      /* that there may be, owned; NULL: any */
    json_t *more;       /* schema of additional ones; false: there are none */
    bool declared_only; /* `more` was not given */
};

bool is_name(json_t *value) {
    return json_is_string(value) && strlen(json_string_value(value)) == json_string_length(value);
}

/* The names in `required`, as a set to be released; NULL after an error. */
static json_t *required_names(struct compiler *c, json_t *required, const struct place *at) {
    json_t *names = json_object(), *item;
    size_t i;
    json_array_foreach(required, i, item) {
        if (!json_is_string(item))
            compile_error(c, at, "required: expected an array of strings");
        else if (!is_name(item))
            compile_error(c, at,
                          "required: \"%.64s\\u0000...\": a name with U+0000 is not supported",
                          json_string_value(item));
        else if (spend_work(c, 2, at) && spend_text(c, json_string_length(item), at))
            json_object_set(names, json_string_value(item), json_true());
        if (c->error->code) {
            json_decref(names);
            return NULL;
        }
    }
    return names;
}

/* The names that propertyNames lists, as a set to be released; NULL: it lists none, or an error. */
static json_t *listed_names(struct compiler *c, json_t *schema, const struct place *at) {
    const struct place in = {at, NULL, "propertyNames", 0, at->depth + 1};
    json_t *given = json_object_get(schema, "propertyNames"), *set, *item;
    if (!given || json_is_true(given) || !(given = flatten_schema(c, given, &in)))
        return NULL;
    json_t *list = json_object_get(given, "enum"), *only = json_object_get(given, "const");
    const char *key;
    size_t i;
    bool others = !json_is_object(given) || (list && (only || !json_is_array(list)));
    json_object_foreach(given, key, item) {
        others |= is_constraint(key) && strcmp(key, "type") != 0 && strcmp(key, "enum") != 0 &&
                  strcmp(key, "const") != 0;
    }
    if (others || !(schema_kinds(c, given, &in) & KIND_STRING)) {
        compile_error(c, &in, "only type string, and enum or const, are supported of names");
        return NULL;
    }
    if (!list && !only)
        return NULL;
    set = json_object();
    if (only && is_name(only))
        json_object_set(set, json_string_value(only), json_true());
    json_array_foreach(list, i, item) {
        if (is_name(item) && spend_work(c, 2, at) && spend_text(c, json_string_length(item), at))
            json_object_set(set, json_string_value(item), json_true());
    }
    return set;
}

/* Names that are listed but not declared, as properties that may be there. */
static void add_listed(struct properties *p, json_t *declared) {
    const char *key;
    json_t *value;
    json_object_foreach(p->names, key, value) {
        if (!json_is_false(p->more) && !json_object_get(declared, key) &&
            !json_object_get(p->required, key))
            p->list[p->count++] = (struct property){key, p->more, false};
    }
    if (p->names)
        p->more = json_false();
}

/* Required properties that are not declared are declared here. False after an error. */
static bool add_undeclared(struct compiler *c, struct properties *p, json_t *declared,
                           const struct place *at) {
    const char *key;
    json_t *value;
    json_object_foreach(p->required, key, value) {
        if (json_object_get(declared, key))
            continue;
        json_t *schema = p->declared_only ? json_true() : p->more;
        if (p->names && !json_object_get(p->names, key))
            return compile_error(c, at, "required: \"%.64s\" is not in propertyNames", key) >= 0;
        if (json_is_false(schema))
            return compile_error(c, at,
                                 "required: \"%.64s\" is not in properties, and "
                                 "additionalProperties is false",
                                 key) >= 0;
        p->list[p->count++] = (struct property){key, schema, true};
    }
    return true;
}

static bool list_properties(struct compiler *c, struct properties *p, json_t *declared,
                            const struct place *at) {
    const char *key;
    json_t *value;
    size_t room =
        json_object_size(declared) + json_object_size(p->required) + json_object_size(p->names);
    p->list = xcalloc(room + 1, sizeof *p->list);
    json_object_foreach(declared, key, value) {
        bool needed = json_object_get(p->required, key) != NULL;
        if (!spend_work(c, 4, at) || !spend_text(c, strlen(key), at))
            return false;
        if (p->names && !json_object_get(p->names, key))
            value = json_false();
        if (!json_is_false(value) || needed) /* one that cannot be there is not written */
            p->list[p->count++] = (struct property){key, value, needed};
    }
    if (!add_undeclared(c, p, declared, at))
        return false;
    add_listed(p, declared);
    return p->count <= MAX_PROPERTIES ||
           compile_error(c, at, "%zu properties, at most %d are supported", p->count,
                         MAX_PROPERTIES) >= 0;
}

static bool read_properties(struct compiler *c, json_t *schema, const struct place *at,
                            struct properties *p) {
    json_t *declared = json_object_get(schema, "properties");
    json_t *required = json_object_get(schema, "required");
    if (declared && !json_is_object(declared))
        return compile_error(c, at, "properties: expected an object") >= 0;
    if (required && !json_is_array(required))
        return compile_error(c, at, "required: expected an array of strings") >= 0;
    p->more = json_object_get(schema, "additionalProperties");
    p->declared_only = !p->more;
    if (!p->more)
        p->more = json_object_size(declared) > 0 ? json_false() : json_true();
    p->required = required_names(c, required, at);
    p->names = listed_names(c, schema, at);
    if (c->error->code)
        return false;
    return p->required && list_properties(c, p, declared, at);
}

/* "key": from a state to the one where its value begins. */
static int32_t add_key(struct builder *b, int32_t from, const char *key) {
    json_t *string = json_string(key);
    char *text = json_dumps(string, JSON_ENCODE_ANY);
    from = add_literal(b, from, text, strlen(text));
    free(text);
    json_decref(string);
    return add_char_blank(b, from, ':');
}

/* Additional properties: any number of them, from a pick state to the state behind. */
static bool add_more(struct compiler *c, json_t *schema, const struct properties *p,
                     const struct place *at, int32_t pick, int32_t behind) {
    const struct place in = {at, NULL, "additionalProperties", 0, at->depth + 1};
    json_t *declared = json_object_get(schema, "properties"), *value;
    const char *key;
    size_t n = 0, bytes = 0;
    int32_t end;
    /* Those that are declared as false must not come either. */
    const char **keys = xmalloc((p->count + json_object_size(declared) + 1) * sizeof *keys);
    for (size_t i = 0; i < p->count; i++)
        keys[n++] = p->list[i].key;
    json_object_foreach(declared, key, value) {
        if (json_is_false(value))
            keys[n++] = key;
    }
    for (size_t i = 0; i < n; i++)
        bytes += strlen(keys[i]) + 1;
    if (n == 0) {
        end = add_free_string(c, pick);
    } else if (!spend_work(c, 8 * (int64_t)bytes, at)) { /* a state for each */
        end = -1;
    } else {
        struct cp_dfa others = {0};
        cp_dfa_all_but(&others, keys, n);
        end = add_string(&c->b, &c->chars, pick, &others);
        cp_dfa_deinit(&others);
    }
    free(keys);
    if (end >= 0)
        end = compile_schema(c, p->more, &in, add_char_blank(&c->b, end, ':'));
    if (end < 0)
        return false;
    add_empty(&c->b, end, behind);
    return true;
}

/* The chain of pick and behind states. Returns the state behind the object, -1 after an error. */
static int32_t add_properties(struct compiler *c, json_t *schema, const struct properties *p,
                              const struct place *at, int32_t from) {
    struct builder *b = &c->b;
    const struct place in = {at, NULL, "properties", 0, at->depth + 1};
    int32_t open = add_char(b, from, '{'), end = add_state(b), pick = add_state(b), behind = -1;
    size_t last = 0; /* one past the last required property: from there on it may close */
    for (size_t i = 0; i < p->count; i++)
        if (p->list[i].required)
            last = i + 1;
    add_empty(b, open, pick);
    if (last == 0)
        add_bytes(b, open, '}', '}', end);
    for (size_t i = 0; i < p->count; i++) {
        const struct property *one = &p->list[i];
        const struct place here = {&in, NULL, one->key, 0, in.depth + 1};
        int32_t value = compile_schema(c, one->schema, &here, add_key(b, pick, one->key));
        int32_t next = add_state(b), after = add_state(b);
        if (value < 0)
            return -1;
        if (!one->required)
            add_empty(b, pick, next);
        add_empty(b, value, after);
        /* From the state behind the property before, the way is through a comma and this pick. */
        if (behind >= 0)
            add_empty(b, add_char_blank(b, behind, ','), pick);
        if (i + 1 >= last)
            add_bytes(b, after, '}', '}', end);
        behind = after;
        pick = next;
    }
    if (json_is_false(p->more))
        return end;
    int32_t after = behind >= 0 ? behind : add_state(b);
    if (behind < 0)
        add_bytes(b, after, '}', '}', end);
    if (!add_more(c, schema, p, at, pick, after))
        return -1;
    add_empty(b, add_char_blank(b, after, ','), pick);
    return end;
}

int32_t compile_object(struct compiler *c, json_t *schema, const struct place *at, int32_t from) {
    struct properties p = {0};
    int32_t end = -1;
    if (read_properties(c, schema, at, &p))
        end = add_properties(c, schema, &p, at, from);
    free(p.list);
    json_decref(p.required);
    json_decref(p.names);
    return end;
}

/* ---- arrays ---- */

struct elements {
    json_t *first;     /* prefixItems, borrowed; NULL: none */
    json_t *more;      /* of those behind them */
    int32_t min, max;  /* max INT32_MAX: any number */
    int32_t more_rule; /* of `more`; -1: it is compiled in place, once */
};

static bool read_elements(struct compiler *c, json_t *schema, const struct place *at,
                          struct elements *e) {
    e->first = json_object_get(schema, "prefixItems");
    e->more = json_object_get(schema, "items");
    if (e->first && !json_is_array(e->first))
        return compile_error(c, at, "prefixItems: expected an array of schemas") >= 0;
    if (json_is_array(e->more))
        return compile_error(c, at, "items: an array is not supported; use prefixItems") >= 0;
    if (!e->more)
        e->more = e->first ? json_false() : json_true();
    e->min = read_count(c, schema, "minItems", 0, at);
    e->max = e->min < 0 ? -1 : read_count(c, schema, "maxItems", INT32_MAX, at);
    if (e->min < 0 || e->max < 0)
        return false;
    if (json_is_false(e->more) && e->max > (int32_t)json_array_size(e->first))
        e->max = (int32_t)json_array_size(e->first);
    if (e->min > e->max)
        return compile_error(c, at,
                             "minItems is more than maxItems, than the items there are or "
                             "than %d",
                             GRAMMAR_MAX_REPEATS) >= 0;
    e->more_rule = -1;
    return true;
}

/* Element i, from a state; returns the state behind it, -1 after an error. */
static int32_t add_element(struct compiler *c, struct elements *e, int32_t i,
                           const struct place *at, int32_t from) {
    const struct place prefix = {at, NULL, "prefixItems", 0, at->depth + 1};
    const struct place one = {&prefix, NULL, NULL, (size_t)i, at->depth + 2};
    const struct place items = {at, NULL, "items", 0, at->depth + 1};
    int32_t first = (int32_t)json_array_size(e->first), end;
    if (i < first)
        return compile_schema(c, json_array_get(e->first, (size_t)i), &one, from);
    if (i == first && (e->max == INT32_MAX ? e->min <= first + 1 : e->max == first + 1))
        return compile_schema(c, e->more, &items, from);
    if (e->more_rule < 0)
        e->more_rule = rule_of_schema(c, e->more, &items);
    end = add_state(&c->b);
    add_call(&c->b, from, e->more_rule, end);
    return end;
}

int32_t compile_array(struct compiler *c, json_t *schema, const struct place *at, int32_t from) {
    struct builder *b = &c->b;
    struct elements e = {0};
    if (!read_elements(c, schema, at, &e))
        return -1;
    int32_t open = add_char(b, from, '['), end = add_state(b), pick = add_state(b);
    int32_t first = (int32_t)json_array_size(e.first);
    int32_t loop = e.min > first + 1 ? e.min - 1 : first; /* elements from here on are alike */
    add_empty(b, open, pick);
    if (e.min == 0)
        add_bytes(b, open, ']', ']', end);
    for (int32_t i = 0; i < e.max && !b->full; i++) {
        int32_t behind = add_element(c, &e, i, at, pick);
        if (behind < 0)
            return -1;
        if (i + 1 >= e.min)
            add_bytes(b, behind, ']', ']', end);
        if (e.max == INT32_MAX && i == loop) {
            add_empty(b, add_char_blank(b, behind, ','), pick);
            break;
        }
        if (i + 1 < e.max) {
            pick = add_state(b);
            add_empty(b, add_char_blank(b, behind, ','), pick);
        }
    }
    return end;
}
