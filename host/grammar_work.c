/* grammar_work: what a compilation may cost, and values compared at that cost.
 *
 * All that a compilation does is charged to one counter, by the sizes of what it looks at, so that
 * a schema that makes too much work is refused after a bounded time, and always at the same place.
 * The automaton has bounds of its own (grammar_build.c), and so have patterns (grammar_pattern.c).
 */
#include <string.h>

#include "host/grammar_internal.h"

enum {
    MAX_WORK = 500000, /* units of about 100 ns: 50 ms */
    TEXT_UNIT = 64,    /* bytes of a string that are one more unit */
};

bool spend_work(struct compiler *c, int64_t work, const struct place *at) {
    c->work += work;
    if (c->work <= MAX_WORK)
        return true;
    compile_error(c, at,
                  "the schema is too much work: it is too large, or allOf, anyOf, oneOf and $ref "
                  "in it multiply; make it smaller");
    return false;
}

bool spend_text(struct compiler *c, size_t bytes, const struct place *at) {
    return spend_work(c, 1 + (int64_t)(bytes / TEXT_UNIT), at);
}

bool spend_value(struct compiler *c, json_t *value, const struct place *at) {
    const char *key;
    json_t *item;
    size_t i;
    if (!spend_text(c, json_string_length(value), at))
        return false;
    json_array_foreach(value, i, item) {
        if (!spend_value(c, item, at))
            return false;
    }
    json_object_foreach(value, key, item) {
        if (!spend_text(c, strlen(key), at) || !spend_value(c, item, at))
            return false;
    }
    return true;
}

static bool same_members(struct compiler *c, json_t *a, json_t *b, const struct place *at) {
    const char *key;
    json_t *item, *other;
    bool same = json_object_size(a) == json_object_size(b);
    json_object_foreach(a, key, item) {
        if (!same)
            break;
        other = spend_text(c, strlen(key), at) ? json_object_get(b, key) : NULL;
        same = other && same_value(c, item, other, at);
    }
    return same;
}

bool same_value(struct compiler *c, json_t *a, json_t *b, const struct place *at) {
    if (a == b)
        return true;
    if (!a || !b || !spend_text(c, json_string_length(a), at))
        return false;
    if (json_is_integer(a) && json_is_integer(b))
        return json_integer_value(a) == json_integer_value(b);
    if (json_is_number(a) && json_is_number(b))
        return json_number_value(a) == json_number_value(b);
    if (json_typeof(a) != json_typeof(b))
        return false;
    if (json_is_object(a))
        return same_members(c, a, b, at);
    if (!json_is_array(a))
        return json_equal(a, b);
    bool same = json_array_size(a) == json_array_size(b);
    for (size_t i = 0; same && i < json_array_size(a); i++)
        same = same_value(c, json_array_get(a, i), json_array_get(b, i), at);
    return same;
}
