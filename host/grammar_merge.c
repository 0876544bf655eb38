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
    MAX_EXCLUDE_DEPTH = 8, /* of properties in properties */
};

static json_t *keep(struct compiler *c, json_t *made) {
    json_array_append_new(c->made, made);
    return made;
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
    if (!spend_text(c, 2 * strlen(ref), at))
        return NULL;
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
    if (!json_is_object(schema) && !json_is_boolean(schema)) {
        compile_error(c, at, "expected an object or a boolean");
        return NULL;
    }
    if (!check_keywords(c, schema, at))
        return NULL;
    json_t *ref = json_object_get(schema, "$ref"), *all = json_object_get(schema, "allOf");
    if (!ref && !all)
        return schema;
    json_t *rest = keep(c, copy_constraints(schema));
    json_object_del(rest, "$ref");
    json_object_del(rest, "allOf");
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

static json_t *both_of(struct compiler *c, json_t *a, json_t *b, const struct place *at) {
    if (json_is_true(a) || same_value(c, a, b, at))
        return b;
    if (json_is_true(b))
        return a;
    if (json_is_false(a) || json_is_false(b))
        return json_false();
    return keep(c, json_pack("{s:[OO]}", "allOf", a, b));
}

/* NULL, too, where they have none in common. */
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
    return json_array_size(types) > 0 ? types : NULL;
}

/* Properties of one side that the other does not declare are additional there. */
static bool merge_one_side(struct compiler *c, json_t *out, json_t *mine, json_t *theirs,
                           json_t *their_more, const struct place *at) {
    const char *key;
    json_t *value, *other;
    json_object_foreach(mine, key, value) {
        if (!spend_work(c, 4, at) || !spend_text(c, strlen(key), at))
            return false;
        other = json_object_get(theirs, key);
        other = other ? other : their_more;
        json_object_set(out, key, other ? both_of(c, value, other, at) : value);
    }
    return true;
}

/* The names of both, each once. */
static bool merge_required(struct compiler *c, json_t *a, json_t *b, json_t *out,
                           const struct place *at) {
    json_t *sides[] = {a, b}, *seen = json_object(), *all = json_array(), *item;
    bool ok = true;
    size_t i;
    for (int side = 0; side < 2; side++)
        json_array_foreach(sides[side], i, item) {
            ok = ok && spend_work(c, 2, at) && spend_text(c, json_string_length(item), at);
            if (!ok)
                break;
            if (is_name(item) && json_object_get(seen, json_string_value(item)))
                continue;
            if (is_name(item)) /* what is none is kept, to be refused later */
                json_object_set(seen, json_string_value(item), json_true());
            json_array_append(all, item);
        }
    json_decref(seen);
    json_object_set_new(out, "required", all);
    return ok;
}

static bool merge_properties(struct compiler *c, json_t *a, json_t *b, json_t *out,
                             const struct place *at) {
    json_t *pa = json_object_get(a, "properties"), *pb = json_object_get(b, "properties");
    json_t *ma = json_object_get(a, "additionalProperties");
    json_t *mb = json_object_get(b, "additionalProperties");
    json_t *ra = json_object_get(a, "required"), *rb = json_object_get(b, "required");
    bool ok = true;
    if (pa || pb) {
        json_t *all = json_object(), *others = json_object();
        ok = merge_one_side(c, all, pa, pb, mb, at) && merge_one_side(c, others, pb, pa, ma, at);
        json_object_update_missing(all, others);
        json_decref(others);
        json_object_set_new(out, "properties", all);
    }
    if (ma && mb)
        json_object_set(out, "additionalProperties", both_of(c, ma, mb, at));
    if (json_is_array(ra) && json_is_array(rb))
        ok = ok && merge_required(c, ra, rb, out, at);
    return ok && !c->error->code;
}

int compare_numbers(json_t *a, json_t *b) {
    if (json_is_integer(a) && json_is_integer(b)) {
        json_int_t x = json_integer_value(a), y = json_integer_value(b);
        return (x > y) - (x < y);
    }
    double x = json_number_value(a), y = json_number_value(b);
    return (x > y) - (x < y);
}

/* A keyword that both have; false after an error, and without one where both exclude each other.
 * NULL in *out: merge_properties does it. */
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
    if (same_value(c, a, b, at)) {
        *out = a;
    } else if (!strcmp(key, "type")) {
        *out = merge_types(c, a, b, at);
    } else if ((lower || higher) && json_is_number(a) && json_is_number(b)) {
        *out = (compare_numbers(a, b) < 0) == lower ? a : b;
    } else if (!strcmp(key, "items")) {
        *out = both_of(c, a, b, at);
    } else if (!strcmp(key, "enum") && json_is_array(a) && json_is_array(b)) {
        *out = keep(c, json_array());
        json_array_foreach(a, i, item) {
            size_t j = 0, n = json_array_size(b);
            while (j < n && !same_value(c, item, json_array_get(b, j), at))
                j++;
            if (j < n)
                json_array_append(*out, item);
            if (c->error->code)
                return false;
        }
        return json_array_size(*out) > 0;
    } else if (strcmp(key, "const") != 0) {
        compile_error(c, at,
                      "allOf, or what stands beside $ref or anyOf: two different %s cannot be "
                      "merged",
                      key);
    }
    return *out != NULL && !c->error->code;
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
        !spend_work(c, 16 + (int64_t)(json_object_size(a) + json_object_size(b)), at))
        return NULL;
    json_t *out = keep(c, copy_constraints(a));
    json_object_foreach(b, key, value) {
        if (!is_constraint(key))
            continue;
        other = json_object_get(a, key);
        if (other && !merge_keyword(c, key, other, value, at, &merged))
            return c->error->code ? NULL : json_false();
        if (!other || merged)
            json_object_set(out, key, other ? merged : value);
    }
    return merge_properties(c, a, b, out, at) ? out : NULL;
}

/* ---- oneOf ---- */

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
    bool apart = left && right;
    size_t i, j;
    json_array_foreach(left, i, v) {
        json_array_foreach(right, j, w) {
            apart = apart && !same_value(c, v, w, at);
        }
        if (!apart)
            break;
    }
    json_decref(left);
    json_decref(right);
    return apart && !c->error->code;
}

static unsigned possible_kinds(struct compiler *c, json_t *schema, const struct place *at) {
    json_t *list = listed_values(schema), *v;
    unsigned kinds = KIND_ALL | KIND_INTEGER;
    size_t i;
    spend_work(c, 1 + (int64_t)json_array_size(list) / 8, at);
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
        if (!spend_work(c, 2, at) || !spend_text(c, strlen(key), at))
            return false;
        json_t *mine = json_object_get(json_object_get(a, "properties"), key);
        json_t *other = json_object_get(others, key);
        if (!other && json_is_false(json_object_get(b, "additionalProperties")))
            return true;
        if (mine && other && schemas_exclude(c, mine, other, at, depth + 1))
            return true;
    }
    return false;
}

/* Is every number that a allows below those of b? */
static bool numbers_below(json_t *a, json_t *b) {
    static const char *const tops[] = {"maximum", "exclusiveMaximum"};
    static const char *const bottoms[] = {"minimum", "exclusiveMinimum"};
    for (int i = 0; i < 4; i++) {
        json_t *top = json_object_get(a, tops[i / 2]), *bottom = json_object_get(b, bottoms[i % 2]);
        if (!json_is_number(top) || !json_is_number(bottom))
            continue;
        int order = compare_numbers(top, bottom);
        if (order < 0 || (order == 0 && i > 0))
            return true;
    }
    return false;
}

/* Is every string or array of a shorter than those of b? */
static bool shorter(json_t *a, json_t *b, const char *most, const char *least) {
    json_t *top = json_object_get(a, most), *bottom = json_object_get(b, least);
    return json_is_number(top) && json_is_number(bottom) &&
           json_number_value(top) < json_number_value(bottom);
}

static bool bounds_exclude(unsigned kinds, json_t *a, json_t *b) {
    if (kinds == KIND_STRING)
        return shorter(a, b, "maxLength", "minLength");
    if (kinds == KIND_ARRAY)
        return shorter(a, b, "maxItems", "minItems");
    return !(kinds & ~(unsigned)(KIND_NUMBER | KIND_INTEGER)) && numbers_below(a, b);
}

bool schemas_exclude(struct compiler *c, json_t *a, json_t *b, const struct place *at,
                     int32_t depth) {
    json_t *v = json_object_get(a, "const"), *w = json_object_get(b, "const");
    if (v && w && !same_value(c, v, w, at))
        return !c->error->code;
    if (depth > MAX_EXCLUDE_DEPTH || !spend_work(c, 8, at))
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
    if (!(p & q) || values_exclude(c, a, b, at) || bounds_exclude(p & q, a, b) ||
        bounds_exclude(p & q, b, a))
        return true;
    /* Properties speak of objects only: nothing else may be in both. */
    return (p & q) == KIND_OBJECT &&
           (objects_exclude(c, a, b, at, depth) || objects_exclude(c, b, a, at, depth));
}

/* ---- oneOf whose branches do not require what tells them apart ---- */

/* Does a flat schema write objects and nothing else? One without a type may list other values. */
static bool writes_objects(struct compiler *c, json_t *flat, const struct place *at) {
    static const char *const others[] = {"enum", "const", "anyOf", "oneOf"};
    if (schema_kinds(c, flat, at) != KIND_OBJECT)
        return false;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (!json_object_get(flat, "type") && json_object_get(flat, others[i]))
            return false;
    return true;
}

/* Do all branches, objects, have different values for a property? */
static bool tells_apart(struct compiler *c, json_t *list, const char *key, const struct place *at) {
    size_t n = json_array_size(list), i, j;
    json_t **tags = xcalloc(n, sizeof *tags), *branch;
    bool apart = true;
    json_array_foreach(list, i, branch) {
        json_t *flat = apart ? flatten_schema(c, branch, at) : NULL;
        json_t *tag = json_object_get(json_object_get(flat, "properties"), key);
        tags[i] = tag && writes_objects(c, flat, at) ? flatten_schema(c, tag, at) : NULL;
        apart = apart && tags[i];
        for (j = 0; apart && j < i; j++)
            apart = values_exclude(c, tags[i], tags[j], at);
    }
    free(tags);
    return apart && !c->error->code;
}

static json_t *with_required(struct compiler *c, json_t *list, const char *key,
                             const struct place *at) {
    json_t *made = keep(c, json_array()), *more = keep(c, json_pack("{s:[s]}", "required", key));
    json_t *branch;
    size_t i;
    json_array_foreach(list, i, branch) {
        json_t *both = merge_schemas(c, branch, more, at);
        if (!both)
            return NULL;
        json_array_append(made, both);
    }
    return made;
}

json_t *require_tag(struct compiler *c, json_t *list, const struct place *at) {
    json_t *first, *tag, *made = NULL;
    const char *key;
    for (int32_t i = 0; i < c->num_tagged; i++)
        if (c->tagged[i].list == list)
            return c->tagged[i].made;
    if (!(first = flatten_schema(c, json_array_get(list, 0), at)))
        return NULL;
    json_object_foreach(json_object_get(first, "properties"), key, tag) {
        if (c->error->code || made)
            break;
        if (tells_apart(c, list, key, at))
            made = with_required(c, list, key, at);
    }
    if (made) {
        c->tagged = xrealloc(c->tagged, (size_t)(c->num_tagged + 1) * sizeof *c->tagged);
        c->tagged[c->num_tagged++] = (struct tagged_list){list, made};
    }
    return made;
}
