#include "tool_choice.h"

#include <stdio.h>
#include <string.h>

#include "buffer.h"
#include "json.h"

static bool is_one_of(const char *key, const char *const *list, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(key, list[i]) == 0)
            return true;
    return false;
}

/* Makes the references within a schema that now stands at `place` ("/properties/arguments") point
 * there. In a map of schemas, keys are names; data stays as it is. */
static void move_references(json_t *value, const char *place, bool map) {
    static const char *const maps[] = {"properties", "patternProperties", "dependentSchemas",
                                       "$defs", "definitions"};
    static const char *const data[] = {"const", "enum", "default", "examples"};
    const char *key;
    json_t *v;
    size_t i;
    json_array_foreach(value, i, v) move_references(v, place, false);
    json_object_foreach(value, key, v) {
        const char *target = map ? NULL : json_string_value(v);
        if (target && strcmp(key, "$ref") == 0 &&
            (strcmp(target, "#") == 0 || strncmp(target, "#/", 2) == 0)) {
            struct buffer moved = {0};
            buffer_printf(&moved, "#%s%s", place, target + 1);
            json_string_setn(v, moved.data, moved.len);
            buffer_deinit(&moved);
        } else if (map || !is_one_of(key, data, sizeof data / sizeof *data)) {
            move_references(v, place, !map && is_one_of(key, maps, sizeof maps / sizeof *maps));
        }
    }
}

/* The schema of the arguments of tool i. */
static json_t *arguments_schema(const struct chat_tool *tool, size_t i, const char *place,
                                struct error *error) {
    char where[64];
    json_t *schema;
    snprintf(where, sizeof where, "tools[%zu].function.parameters", i);
    if (!tool->parameters)
        return json_pack("{s:s, s:{}, s:b}", "type", "object", "properties", "additionalProperties",
                         0);
    schema = json_parse(tool->parameters, tool->parameters_len, where, ERR_INVALID_REQUEST, error);
    if (!schema)
        return NULL;
    json_t *type = json_object_get(schema, "type");
    if (!json_is_object(schema) ||
        (type && (!json_is_string(type) || strcmp(json_string_value(type), "object") != 0))) {
        error_set(error, ERR_INVALID_REQUEST, "%s: expected a JSON schema of type object", where);
        json_decref(schema);
        return NULL;
    }
    if (!type)
        json_object_set_new(schema, "type", json_string("object"));
    move_references(schema, place, false);
    return schema;
}

static json_t *call_schema(const struct chat_template *c, const struct chat_tool *tool, size_t i,
                           const char *place, struct error *error) {
    const char *key =
        chat_template_tool_format(c) == TOOL_FORMAT_LLAMA ? "parameters" : "arguments";
    char at[80];
    snprintf(at, sizeof at, "%s/properties/%s", place, key);
    json_t *arguments = arguments_schema(tool, i, at, error);
    if (!arguments)
        return NULL;
    return json_pack("{s:s, s:{s:{s:s}, s:o}, s:[s,s], s:b}", "type", "object", "properties",
                     "name", "const", tool->name, key, arguments, "required", "name", key,
                     "additionalProperties", 0);
}

int tool_choice_schema(const struct chat_template *c, const struct chat_request *request,
                       json_t **out, struct error *error) {
    bool named = request->tool_choice == TOOL_CHOICE_NAMED;
    if (!chat_template_has_tools(c) || (!named && request->tool_choice != TOOL_CHOICE_REQUIRED))
        return error_set(error, ERR_INVALID_REQUEST, "tool_choice: no call is required");
    json_t *any = json_array();
    for (size_t i = 0; i < request->num_tools; i++) {
        const struct chat_tool *tool = &request->tools[i];
        char place[32] = "";
        if (named && (!request->tool_name || strcmp(tool->name, request->tool_name) != 0))
            continue;
        if (!named && request->num_tools > 1)
            snprintf(place, sizeof place, "/anyOf/%zu", i);
        json_t *schema = call_schema(c, tool, i, place, error);
        if (!schema) {
            json_decref(any);
            return ERR_INVALID_REQUEST;
        }
        json_array_append_new(any, schema);
        if (named)
            break;
    }
    if (json_array_size(any) > 1)
        *out = json_pack("{s:o}", "anyOf", any);
    else
        *out = json_incref(json_array_get(any, 0));
    if (json_array_size(any) <= 1)
        json_decref(any);
    if (!*out)
        return error_set(error, ERR_INVALID_REQUEST, "tool_choice: none of the %zu tools",
                         request->num_tools);
    return 0;
}
