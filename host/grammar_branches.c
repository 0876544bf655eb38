/* grammar_branches: anyOf and oneOf.
 *
 * Each branch is a way of its own through the automaton, and those that only list values are one
 * way together. Nothing counts how many branches a value fits, so the branches of oneOf have to
 * exclude each other; where they do not, a property whose values differ may narrow them.
 */
#include <string.h>

#include "host/grammar_internal.h"

/* The branches of oneOf, where they exclude each other, or as narrowed so that they do. NULL after
 * an error. */
static json_t *exclusive(struct compiler *c, json_t *list, const struct place *at) {
    for (size_t i = 0; i < json_array_size(list); i++)
        for (size_t j = 0; j < i; j++) {
            struct place here = place_in(at, NULL, i);
            json_t *one = json_array_get(list, i), *other = json_array_get(list, j), *narrowed;
            if (schemas_exclude(c, other, one, &here, 0))
                continue;
            if (!c->error->code && (narrowed = require_tag(c, list, at)))
                return narrowed;
            compile_error(c, &here,
                          "cannot tell that branches %zu and %zu of oneOf exclude each other; use "
                          "anyOf, or give them a property with different const",
                          j, i);
            return NULL;
        }
    return list;
}

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
