#include "openai_tools.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"

static bool is_function(json_t *value) {
    json_t *type = json_object_get(value, "type");
    const char *word = json_string_value(type);
    return (!type || json_is_null(type) || (word && !strcmp(word, "function"))) &&
           json_is_object(json_object_get(value, "function"));
}

static int read_tool(struct chat_tool *tool, const char *path, json_t *value,
                     struct field_error *error) {
    static const char *const names[] = {"name", "description", "parameters", "strict"};
    json_t *function = json_object_get(value, "function");
    json_t *description = json_object_get(function, "description");
    json_t *parameters = json_object_get(function, "parameters");
    char where[80];
    if (!is_function(value))
        return field_expected(error, path, "{\"type\":\"function\",\"function\":{\"name\":...}}");
    snprintf(where, sizeof where, "%.50s.function", path);
    if (fields_check_names(function, where, names, sizeof names / sizeof *names, error) != 0)
        return error->code;
    snprintf(where, sizeof where, "%.50s.function.name", path);
    if (field_take_string(&tool->name, where, json_object_get(function, "name"), error) != 0)
        return error->code;
    snprintf(where, sizeof where, "%.50s.function.description", path);
    if (description && !json_is_null(description) && !json_is_string(description))
        return field_expected(error, where, "a string");
    tool->description = json_string_value(description);
    tool->description_len = json_string_length(description);
    snprintf(where, sizeof where, "%.50s.function.parameters", path);
    if (!parameters || json_is_null(parameters))
        return 0;
    if (!json_is_object(parameters))
        return field_expected(error, where, "a JSON schema");
    tool->parameters = json_dumps(parameters, JSON_COMPACT);
    tool->parameters_len = strlen(tool->parameters);
    return 0;
}

int openai_read_tools(struct openai_request *out, json_t *value, struct field_error *error) {
    size_t count = json_array_size(value), i;
    json_t *tool;
    if (!json_is_array(value) || count > OPENAI_MAX_TOOLS) {
        char what[64];
        snprintf(what, sizeof what, "an array of at most %d tools", OPENAI_MAX_TOOLS);
        return field_expected(error, "tools", what);
    }
    out->tools_doc = json_incref(value);
    out->tools = xcalloc(count + 1, sizeof *out->tools);
    out->num_tools = count;
    json_array_foreach(value, i, tool) {
        char path[32];
        snprintf(path, sizeof path, "tools[%zu]", i);
        int rc = read_tool(&out->tools[i], path, tool, error);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int find_tool(struct openai_request *out, const char *name, struct field_error *error) {
    out->tool_choice = TOOL_CHOICE_NAMED;
    for (size_t i = 0; name && i < out->num_tools; i++)
        if (!strcmp(out->tools[i].name, name)) {
            out->tool_name = out->tools[i].name;
            return 0;
        }
    return field_expected(error, "tool_choice", "the name of one of the tools");
}

int openai_read_tool_choice(struct openai_request *out, json_t *value, struct field_error *error) {
    const char *word = json_string_value(value);
    out->tool_choice = out->num_tools ? TOOL_CHOICE_AUTO : TOOL_CHOICE_NONE;
    if (!value || json_is_null(value))
        return 0;
    if (is_function(value)) {
        static const char *const names[] = {"name"};
        json_t *function = json_object_get(value, "function");
        if (fields_check_names(function, "tool_choice.function", names, 1, error) != 0)
            return error->code;
        return find_tool(out, json_string_value(json_object_get(function, "name")), error);
    }
    if (word && !strcmp(word, "none"))
        out->tool_choice = TOOL_CHOICE_NONE;
    else if (word && !strcmp(word, "required") && out->num_tools)
        out->tool_choice = TOOL_CHOICE_REQUIRED;
    else if (!word || strcmp(word, "auto"))
        return field_expected(error, "tool_choice",
                              word && !strcmp(word, "required")
                                  ? "none: there are no tools to call"
                                  : "\"none\", \"auto\", \"required\" or a function's name");
    return 0;
}

void openai_free_tools(struct openai_request *out) {
    for (size_t i = 0; i < out->num_tools; i++)
        free((char *)(uintptr_t)out->tools[i].parameters); /* made by json_dumps */
    free(out->tools);
    json_decref(out->tools_doc);
    out->tools = NULL;
    out->tools_doc = NULL;
    out->num_tools = 0;
}
