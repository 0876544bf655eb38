/* grammar_branches: anyOf and oneOf.
 *
 * Each branch is a way of its own through the automaton, and those that only list values are one
 * way together. Nothing counts how many branches a value fits, so the branches of oneOf have to
 * exclude each other; where they do not, a property whose values differ may narrow them.
 */
#include <stdlib.h>
#include <string.h>

#include "host/grammar_internal.h"
#include "host/mem.h"

/* ---- branches that exclude each other ---- */

/* The branches without $ref and allOf on top, the same array each time; borrowed. NULL after an
 * error. */
static json_t *flat_branches(struct compiler *c, json_t *list, const struct place *at) {
    json_t *flat, *branch, *one;
    size_t i;
    if (!spend_work(c, 1 + c->num_flat / 64, at))
        return NULL;
    for (int32_t k = 0; k < c->num_flat; k++)
        if (c->flat[k].list == list)
            return c->flat[k].made;
    flat = json_array();
    json_array_append_new(c->made, flat);
    json_array_foreach(list, i, branch) {
        struct place here = place_in(at, NULL, i);
        if (!(one = flatten_schema(c, branch, &here)))
            return NULL;
        json_array_append(flat, one);
    }
    c->flat = xrealloc(c->flat, (size_t)(c->num_flat + 1) * sizeof *c->flat);
    c->flat[c->num_flat++] = (struct tagged_list){list, flat};
    return flat;
}

static bool requires(struct compiler *c, json_t *schema, const char *key, const struct place *at) {
    json_t *required = json_object_get(schema, "required"), *item;
    size_t i;
    if (!spend_work(c, 1 + (int64_t)json_array_size(required) / 8, at))
        return false;
    json_array_foreach(required, i, item) {
        if (is_name(item) && !strcmp(json_string_value(item), key))
            return true;
    }
    return false;
}

/* The values that a branch lists for a property which it requires (NULL: for itself), as an array
 * to be released. NULL: it lists none, or may be something else than an object. That is so without
 * a type, whatever the keywords speak of: enum and anyOf beside them may allow a string. */
static json_t *tag_values(struct compiler *c, json_t *branch, const char *key,
                          const struct place *at) {
    if (!key)
        return values_of_branch(c, branch, at);
    struct place properties = place_in(at, "properties", 0), here = place_in(&properties, key, 0);
    json_t *tag = json_object_get(json_object_get(branch, "properties"), key);
    if (!tag || !json_object_get(branch, "type") || !requires(c, branch, key, at) ||
        schema_kinds(c, branch, at) != KIND_OBJECT || !(tag = flatten_schema(c, tag, &here)))
        return NULL;
    return values_of_branch(c, tag, &here);
}

/* Adds the values of branch i to those that were seen, by their texts. False: another branch has
 * one of them, or it is none whose text says what it equals, as 1.0 equals 1. */
static bool add_tags(struct compiler *c, json_t *seen, json_t *values, size_t i,
                     const struct place *at) {
    json_t *value;
    size_t k;
    json_array_foreach(values, k, value) {
        if (json_is_real(value) || json_is_array(value) || json_is_object(value) ||
            !spend_work(c, 4, at) || !spend_value(c, value, at))
            return false;
        char *text = json_dumps(value, JSON_ENCODE_ANY);
        json_t *before = json_object_get(seen, text);
        if (!before)
            json_object_set_new(seen, text, json_integer((json_int_t)i));
        free(text);
        if (before && json_integer_value(before) != (json_int_t)i)
            return false;
    }
    return true;
}

/* Do all branches list different values for a property which they require (NULL: for themselves)?
 * That takes one look at each branch, not at each pair. */
static bool tag_tells(struct compiler *c, json_t *flat, const char *key, const struct place *at) {
    json_t *seen = json_object(), *branch, *values;
    bool apart = true;
    size_t i;
    json_array_foreach(flat, i, branch) {
        struct place here = place_in(at, NULL, i);
        values = tag_values(c, branch, key, &here);
        apart = values && add_tags(c, seen, values, i, &here);
        json_decref(values);
        if (!apart)
            break;
    }
    json_decref(seen);
    return apart;
}

/* Is there such a property, or are the branches such lists? */
static bool any_tag_tells(struct compiler *c, json_t *flat, const struct place *at) {
    const char *key;
    json_t *tag;
    bool tells = tag_tells(c, flat, NULL, at);
    json_object_foreach(json_object_get(json_array_get(flat, 0), "properties"), key, tag) {
        if (tells || c->error->code)
            break;
        tells = tag_tells(c, flat, key, at);
    }
    return tells && !c->error->code;
}

/* The branches of oneOf, where they exclude each other, or as narrowed so that they do. NULL after
 * an error. */
static json_t *exclusive(struct compiler *c, json_t *list, const struct place *at) {
    size_t n = json_array_size(list);
    json_t *flat = n > 1 ? flat_branches(c, list, at) : NULL, *narrowed;
    if (n == 1 || (flat && any_tag_tells(c, flat, at)))
        return list;
    for (size_t i = 0; i < n && !c->error->code; i++)
        for (size_t j = 0; j < i; j++) {
            struct place here = place_in(at, NULL, i);
            if (schemas_exclude(c, json_array_get(flat, j), json_array_get(flat, i), &here, 0))
                continue;
            if (!c->error->code && (narrowed = require_tag(c, flat, at)))
                return narrowed;
            compile_error(c, &here,
                          "cannot tell that branches %zu and %zu of oneOf exclude each other; use "
                          "anyOf, or give them a property with different const",
                          j, i);
            return NULL;
        }
    return c->error->code ? NULL : list;
}

/* ---- their compilation ---- */

/* A branch together with what stands beside the list. */
static bool compile_branch(struct compiler *c, json_t *rest, json_t *branch, const struct place *at,
                           int32_t from, int32_t end) {
    if (has_constraints(rest, NULL) && !(branch = merge_schemas(c, rest, branch, at)))
        return false;
    if (json_is_false(branch))
        nothing_fits(c, at, "this and what stands beside it have no type or value in common");
    int32_t behind = compile_schema(c, branch, at, from);
    if (behind >= 0)
        add_empty(&c->b, behind, end);
    return behind >= 0;
}

/* Branches that were narrowed are rules, as what $ref refers to is: they may contain themselves. */
static bool compile_narrowed(struct compiler *c, json_t *rest, json_t *list, const struct place *in,
                             int32_t from, int32_t end) {
    json_t *branch;
    size_t i;
    json_array_foreach(list, i, branch) {
        struct place here = place_in(in, NULL, i);
        if (!has_constraints(rest, NULL))
            add_call(&c->b, from, rule_of_schema(c, branch, &here), end);
        else if (!compile_branch(c, rest, branch, &here, from, end))
            return false;
    }
    return !c->error->code;
}

int32_t compile_branches(struct compiler *c, json_t *schema, const char *key,
                         const struct place *at, int32_t from) {
    json_t *list = json_object_get(schema, key), *rest = copy_constraints(schema), *branch, *values;
    json_t *united = json_array(), *listed = json_pack("{s:o}", "enum", united);
    struct place in = place_in(at, key, 0);
    int32_t end = add_state(&c->b);
    size_t i;
    json_object_del(rest, key);
    json_array_append_new(c->made, rest);
    json_array_append_new(c->made, listed);
    if (!json_is_array(list) || json_array_size(list) == 0)
        return compile_error(c, at, "%s: expected an array of at least one schema", key);
    json_t *narrowed = !strcmp(key, "oneOf") ? exclusive(c, list, &in) : list;
    if (narrowed != list)
        return narrowed && compile_narrowed(c, rest, narrowed, &in, from, end) ? end : -1;
    json_array_foreach(list, i, branch) {
        struct place here = place_in(&in, NULL, i);
        if ((values = values_of_branch(c, branch, &here)))
            json_array_extend(united, values);
        else if (c->error->code || !compile_branch(c, rest, branch, &here, from, end))
            return -1;
        json_decref(values);
    }
    if (json_array_size(united) > 0 && !compile_branch(c, rest, listed, &in, from, end))
        return -1;
    return end;
}
