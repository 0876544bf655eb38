/* grammar_merge: several schemas as one, for allOf and for what stands beside $ref and anyOf.
 *
 * Keywords of both are merged where there is one keyword that says the same; what has none is
 * refused. Merged schemas are new JSON objects that share the parts that did not change.
 */
#include <stdlib.h>
#include <string.h>

#include "host/grammar_internal.h"
#include "host/mem.h"

enum {
    MAX_REFS = 32,         /* of allOf and $ref in each other */
    MAX_WORK = 150000,     /* keywords merged and schemas compared, in one compilation */
    MAX_EXCLUDE_DEPTH = 8, /* of properties in properties */
};

static json_t *keep(struct compiler *c, json_t *made) {
    json_array_append_new(c->made, made);
    return made;
}

static bool spend(struct compiler *c, int64_t work, const struct place *at) {
    c->work += work;
    if (c->work <= MAX_WORK)
        return true;
    if (!c->error->code)
        compile_error(c, at, "allOf, anyOf and oneOf make too many combinations");
    return false;
}

/* ---- $ref ---- */

/* One step of a JSON pointer, with its escapes (~0, ~1 and, it being part of a URI, %25). */
static char *pointer_step(const char *step, size_t len) {
    char *out = xmalloc(len + 1), *p = out;
    for (size_t i = 0; i < len; i++) {
        if (step[i] == '~' && i + 1 < len && (step[i + 1] == '0' || step[i + 1] == '1')) {
            *p++ = step[++i] == '0' ? '~' : '/';
        } else if (step[i] == '%' && i + 2 < len &&
                   strspn(step + i + 1, "0123456789abcdefABCDEF") >= 2) {
            char hex[3] = {step[i + 1], step[i + 2], 0};
            *p++ = (char)strtol(hex, NULL, 16);
            i += 2;
        } else {
            *p++ = step[i];
        }
    }
    *p = 0;
    return out;
}

json_t *resolve_ref(struct compiler *c, const char *ref, const struct place *at) {
    json_t *target = c->document;
    const char *p = ref + 1;
    if (ref[0] != '#' || (ref[1] && ref[1] != '/')) {
        compile_error(c, at,
                      "$ref \"%.128s\": only places within the schema (\"#/$defs/...\") are "
                      "supported",
                      ref);
        return NULL;
    }
    while (*p == '/' && target) {
        size_t len = strcspn(p + 1, "/");
        char *step = pointer_step(p + 1, len);
        if (json_is_array(target))
            target = *step >= '0' && *step <= '9'
                         ? json_array_get(target, (size_t)strtoul(step, NULL, 10))
                         : NULL;
        else
            target = json_object_get(target, step);
        free(step);
        p += len + 1;
    }
    if (!target)
        compile_error(c, at, "$ref \"%.128s\": there is no such place", ref);
    return target;
}

static json_t *flatten(struct compiler *c, json_t *schema, const struct place *at, int32_t depth);

/* `rest` merged with each of a list of schemas. */
static json_t *merge_all(struct compiler *c, json_t *rest, json_t *list, const struct place *at,
                         int32_t depth) {
    json_t *item;
    size_t i;
    if (!json_is_array(list) || json_array_size(list) == 0) {
        compile_error(c, at, "allOf: expected an array of at least one schema");
        return NULL;
    }
    json_array_foreach(list, i, item) {
        json_t *flat = flatten(c, item, at, depth + 1);
        if (!flat || !(rest = merge_schemas(c, rest, flat, at)))
            return NULL;
    }
    return rest;
}

static json_t *flatten(struct compiler *c, json_t *schema, const struct place *at, int32_t depth) {
    if (depth > MAX_REFS) {
        compile_error(c, at, "allOf and $ref lead to each other without end, or more than %d deep",
                      MAX_REFS);
        return NULL;
    }
    if (!spend(c, 1, at))
        return NULL;
    if (!json_is_object(schema) && !json_is_boolean(schema)) {
        compile_error(c, at, "expected an object or a boolean");
        return NULL;
    }
    if (!check_keywords(c, schema, at))
        return NULL;
    json_t *ref = json_object_get(schema, "$ref"), *all = json_object_get(schema, "allOf");
    if (!ref && !all)
        return schema;
    json_t *rest = keep(c, json_copy(schema));
    json_object_del(rest, "$ref");
    json_object_del(rest, "allOf");
    json_object_del(rest, "$id");
    if (all && !(rest = merge_all(c, rest, all, at, depth)))
        return NULL;
    if (!ref)
        return rest;
    if (!json_is_string(ref)) {
        compile_error(c, at, "$ref: expected a string");
        return NULL;
    }
    json_t *target = resolve_ref(c, json_string_value(ref), at);
    target = target ? flatten(c, target, at, depth + 1) : NULL;
    return target ? merge_schemas(c, target, rest, at) : NULL;
}

json_t *flatten_schema(struct compiler *c, json_t *schema, const struct place *at) {
    return flatten(c, schema, at, 0);
}

/* ---- merging keywords ---- */

static json_t *both_of(struct compiler *c, json_t *a, json_t *b) {
    if (json_is_true(a) || json_equal(a, b))
        return b;
    if (json_is_true(b))
        return a;
    if (json_is_false(a) || json_is_false(b))
        return json_false();
    return keep(c, json_pack("{s:[OO]}", "allOf", a, b));
}

static json_t *merge_types(struct compiler *c, json_t *a, json_t *b, const struct place *at) {
    const struct {
        const char *name;
        unsigned kind;
    } names[] = {{"null", KIND_NULL},       {"boolean", KIND_BOOLEAN}, {"number", KIND_NUMBER},
                 {"integer", KIND_INTEGER}, {"string", KIND_STRING},   {"object", KIND_OBJECT},
                 {"array", KIND_ARRAY}};
    json_t *left = json_pack("{s:O}", "type", a), *right = json_pack("{s:O}", "type", b);
    unsigned p = schema_kinds(c, left, at), q = p ? schema_kinds(c, right, at) : 0;
    json_decref(left);
    json_decref(right);
    if (!p || !q)
        return NULL;
    /* A number includes the integers, which a merged list must name when only they are left. */
    p |= p & KIND_NUMBER ? KIND_INTEGER : 0;
    q |= q & KIND_NUMBER ? KIND_INTEGER : 0;
    json_t *types = keep(c, json_array());
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (p & q & names[i].kind)
            json_array_append_new(types, json_string(names[i].name));
    if (json_array_size(types) == 0) {
        compile_error(c, at,
                      "the schemas of allOf (or beside $ref or anyOf) have no type in common");
        return NULL;
    }
    return types;
}

/* Properties of one side that the other does not declare are additional there. */
static void merge_one_side(struct compiler *c, json_t *out, json_t *mine, json_t *theirs,
                           json_t *their_more) {
    const char *key;
    json_t *value, *other;
    json_object_foreach(mine, key, value) {
        if ((other = json_object_get(theirs, key)))
            json_object_set(out, key, both_of(c, value, other));
        else
            json_object_set(out, key, their_more ? both_of(c, value, their_more) : value);
    }
}

static void merge_properties(struct compiler *c, json_t *a, json_t *b, json_t *out) {
    json_t *pa = json_object_get(a, "properties"), *pb = json_object_get(b, "properties");
    json_t *ma = json_object_get(a, "additionalProperties");
    json_t *mb = json_object_get(b, "additionalProperties");
    json_t *ra = json_object_get(a, "required"), *rb = json_object_get(b, "required"), *item;
    size_t i;
    if (pa || pb) {
        json_t *all = json_object();
        merge_one_side(c, all, pa, pb, mb);
        json_t *others = json_object();
        merge_one_side(c, others, pb, pa, ma);
        json_object_update_missing(all, others);
        json_decref(others);
        json_object_set_new(out, "properties", all);
    }
    if (ma && mb)
        json_object_set(out, "additionalProperties", both_of(c, ma, mb));
    if (json_is_array(ra) && json_is_array(rb)) {
        json_t *all = json_array();
        json_array_extend(all, ra);
        json_array_foreach(rb, i, item) {
            json_array_append(all, item);
        }
        json_object_set_new(out, "required", all);
    }
}

/* A keyword that both have; false after an error. NULL in *out: merge_properties does it. */
static bool merge_keyword(struct compiler *c, const char *key, json_t *a, json_t *b,
                          const struct place *at, json_t **out) {
    bool lower = !strncmp(key, "max", 3) || !strcmp(key, "exclusiveMaximum");
    bool higher = !strncmp(key, "min", 3) || !strcmp(key, "exclusiveMinimum");
    json_t *item;
    size_t i;
    *out = NULL;
    if (!strcmp(key, "properties") || !strcmp(key, "additionalProperties") ||
        !strcmp(key, "required"))
        return true;
    if (json_equal(a, b) || !is_constraint(key)) {
        *out = a;
    } else if (!strcmp(key, "type")) {
        *out = merge_types(c, a, b, at);
    } else if ((lower || higher) && json_is_number(a) && json_is_number(b)) {
        bool less = json_number_value(a) < json_number_value(b);
        *out = less == lower ? a : b;
    } else if (!strcmp(key, "items")) {
        *out = both_of(c, a, b);
    } else if (!strcmp(key, "enum") && json_is_array(a) && json_is_array(b)) {
        *out = keep(c, json_array());
        json_array_foreach(a, i, item) {
            size_t j = 0, n = json_array_size(b);
            if (!spend(c, (int64_t)n, at))
                return false;
            while (j < n && !json_equal(item, json_array_get(b, j)))
                j++;
            if (j < n)
                json_array_append(*out, item);
        }
    } else {
        compile_error(c, at,
                      "allOf, or what stands beside $ref or anyOf: two different %s cannot be "
                      "merged",
                      key);
    }
    return *out != NULL;
}

/* Would both together mean something else than each of their keywords? */
static bool check_apart(struct compiler *c, json_t *a, json_t *b, const struct place *at) {
    json_t *one = json_object_get(a, "prefixItems"), *other = json_object_get(b, "items");
    if ((one && other && !json_object_get(a, "items")) || (one && json_object_get(b, "items")))
        return compile_error(c, at,
                             "prefixItems and items of different schemas cannot be merged") >= 0;
    bool many_a = json_object_get(a, "anyOf") || json_object_get(a, "oneOf");
    bool many_b = json_object_get(b, "anyOf") || json_object_get(b, "oneOf");
    if (many_a && many_b)
        return compile_error(c, at, "two anyOf or oneOf cannot be merged") >= 0;
    return true;
}

json_t *merge_schemas(struct compiler *c, json_t *a, json_t *b, const struct place *at) {
    const char *key;
    json_t *value, *other, *merged;
    if (!(a = flatten(c, a, at, 1)) || !(b = flatten(c, b, at, 1)))
        return NULL;
    if (json_is_boolean(a) || json_is_boolean(b))
        return json_is_false(a) || json_is_false(b) ? json_false() : json_is_true(a) ? b : a;
    if (!check_apart(c, a, b, at) || !check_apart(c, b, a, at) ||
        !spend(c,
               (int64_t)(json_object_size(a) + json_object_size(b)) +
                   (int64_t)json_object_size(json_object_get(a, "properties")) +
                   (int64_t)json_object_size(json_object_get(b, "properties")),
               at))
        return NULL;
    json_t *out = keep(c, json_copy(a));
    json_object_del(out, "$id");
    json_object_foreach(b, key, value) {
        other = json_object_get(a, key);
        if (!other && is_constraint(key)) {
            json_object_set(out, key, value);
        } else if (other) {
            if (!merge_keyword(c, key, other, value, at, &merged))
                return NULL;
            if (merged)
                json_object_set(out, key, merged);
        }
    }
    merge_properties(c, a, b, out);
    return out;
}

/* ---- oneOf ---- */

/* Equal as JSON schema has it: 1 and 1.0 are. */
static bool same_value(json_t *a, json_t *b) {
    if (json_is_number(a) && json_is_number(b))
        return json_number_value(a) == json_number_value(b);
    return json_equal(a, b);
}

/* json_equal tells 1 and 1.0 within arrays and objects apart, so only scalars are sure to differ.
 */
static bool is_scalar(json_t *v) {
    return !json_is_object(v) && !json_is_array(v);
}

/* The values that a schema lists, as an array to be released; NULL: it lists none. */
static json_t *listed_values(json_t *schema) {
    json_t *only = json_object_get(schema, "const"), *list = json_object_get(schema, "enum");
    if (only)
        return json_pack("[O]", only);
    return json_is_array(list) ? json_incref(list) : NULL;
}

/* Do the lists, or one list and the other's type, have nothing in common? */
static bool values_exclude(struct compiler *c, json_t *a, json_t *b, const struct place *at) {
    json_t *left = listed_values(a), *right = listed_values(b), *v, *w;
    bool apart =
        left && right && spend(c, (int64_t)(json_array_size(left) * json_array_size(right)), at);
    size_t i, j;
    json_array_foreach(left, i, v) {
        json_array_foreach(right, j, w) {
            apart = apart && !same_value(v, w) && (is_scalar(v) || is_scalar(w));
        }
    }
    json_decref(left);
    json_decref(right);
    return apart;
}

static unsigned possible_kinds(struct compiler *c, json_t *schema, const struct place *at) {
    json_t *list = listed_values(schema), *v;
    unsigned kinds = KIND_ALL | KIND_INTEGER;
    size_t i;
    if (json_object_get(schema, "type"))
        kinds = schema_kinds(c, schema, at);
    if (list) {
        unsigned listed = 0;
        json_array_foreach(list, i, v) {
            listed |= kind_of_value(v);
        }
        kinds = json_object_get(schema, "type") ? kinds : listed;
    }
    json_decref(list);
    /* 1.0 is an integer, too. */
    return kinds & (KIND_NUMBER | KIND_INTEGER) ? kinds | KIND_NUMBER | KIND_INTEGER : kinds;
}

/* Objects: does one require what the other cannot have, or has a property that is required
 * different values? */
static bool objects_exclude(struct compiler *c, json_t *a, json_t *b, const struct place *at,
                            int32_t depth) {
    json_t *others = json_object_get(b, "properties"), *item;
    size_t i;
    json_array_foreach(json_object_get(a, "required"), i, item) {
        const char *key = json_is_string(item) ? json_string_value(item) : "";
        json_t *mine = json_object_get(json_object_get(a, "properties"), key);
        json_t *other = json_object_get(others, key);
        if (!other && json_is_false(json_object_get(b, "additionalProperties")))
            return true;
        if (mine && other && schemas_exclude(c, mine, other, at, depth + 1))
            return true;
    }
    return false;
}

bool schemas_exclude(struct compiler *c, json_t *a, json_t *b, const struct place *at,
                     int32_t depth) {
    if (depth > MAX_EXCLUDE_DEPTH || !spend(c, 1, at))
        return false;
    if (!(a = flatten_schema(c, a, at)) || !(b = flatten_schema(c, b, at)))
        return false;
    if (json_is_false(a) || json_is_false(b))
        return true;
    if (!json_is_object(a) || !json_is_object(b))
        return false;
    unsigned p = possible_kinds(c, a, at), q = possible_kinds(c, b, at);
    if (c->error->code)
        return false;
    if (!(p & q) || values_exclude(c, a, b, at))
        return true;
    /* Properties speak of objects only: nothing else may be in both. */
    return (p & q) == KIND_OBJECT &&
           (objects_exclude(c, a, b, at, depth) || objects_exclude(c, b, a, at, depth));
}
