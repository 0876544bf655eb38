#include "openai_format.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/grammar.h"
#include "host/mem.h"
#include "host/tool_choice.h"

/* What is read of response_format, borrowed from the document. The answer is held to the schema
 * whether strict or not, and a name is a name. */
struct response_format {
    const char *type, *name, *description;
    json_t *json_schema, *schema; /* NULL: not given */
    bool strict;
};

static int read_json(struct field_reader *r, const struct field *f, json_t *value) {
    *(json_t **)(void *)((char *)r->out + f->offset) = value;
    return 0;
}

#define AT(member) offsetof(struct response_format, member)
static const struct field format_fields[] = {
    {"type", 1, field_read_string, AT(type), 0, 0, false},
    {"json_schema", 1, read_json, AT(json_schema), 0, 0, false},
};
static const struct field schema_fields[] = {
    {"name", 1, field_read_string, AT(name), 0, 0, false},
    {"description", 1, field_read_string, AT(description), 0, 0, false},
    {"schema", 1, read_json, AT(schema), 0, 0, false},
    {"strict", 1, field_read_bool, AT(strict), 0, 0, false},
};
#undef AT

/* {"name","description","schema","strict"} */
static int read_schema(struct openai_request *out, struct response_format *format,
                       struct field_error *error) {
    static const char path[] = "response_format.json_schema.schema";
    struct field_reader r = {.table = schema_fields,
                             .num_fields = sizeof schema_fields / sizeof *schema_fields,
                             .kind = 1,
                             .what = "response_format.json_schema",
                             .path = "response_format.json_schema.",
                             .out = format,
                             .error = error};
    struct error e = {0};
    if (!json_is_object(format->json_schema))
        return field_expected(error, "response_format.json_schema", "an object with a schema");
    int rc = fields_read(&r, format->json_schema);
    if (rc != 0)
        return rc;
    if (!format->schema)
        return field_expected(error, path, "a JSON schema");
    rc = grammar_create_json_schema(format->schema, &out->params.grammar, &e);
    return rc ? field_error_set(error, rc, path, "%s: %s", path, e.text) : 0;
}

int openai_read_response_format(struct openai_request *out, json_t *value,
                                struct field_error *error) {
    static const char types[] = "\"text\", \"json_object\" or \"json_schema\"";
    struct response_format format = {.type = ""};
    struct field_reader r = {.table = format_fields,
                             .num_fields = sizeof format_fields / sizeof *format_fields,
                             .kind = 1,
                             .what = "response_format",
                             .path = "response_format.",
                             .out = &format,
                             .error = error};
    struct error e = {0};
    if (!json_is_object(value))
        return field_expected(error, "response_format.type", types);
    int rc = fields_read(&r, value);
    if (rc != 0)
        return rc;
    if (!strcmp(format.type, "json_schema"))
        return read_schema(out, &format, error);
    if (strcmp(format.type, "text") != 0 && strcmp(format.type, "json_object") != 0)
        return field_expected(error, "response_format.type", types);
    if (format.json_schema)
        return field_error_set(error, ERR_INVALID_REQUEST, "response_format.json_schema",
                               "response_format.json_schema: only with \"type\":\"json_schema\"");
    if (!strcmp(format.type, "text"))
        return 0;
    rc = grammar_create_json_object(&out->params.grammar, &e);
    return rc ? field_error_set(error, rc, "response_format", "%s", e.text) : 0;
}

int openai_read_logit_bias(struct openai_request *out, json_t *value, int32_t vocab_size,
                           struct field_error *error) {
    struct request_params *p = &out->params;
    const char *key;
    json_t *v;
    if (!json_is_object(value) || json_object_size(value) > MAX_LOGIT_BIASES) {
        char what[80];
        snprintf(what, sizeof what, "an object of at most %d token ids and biases",
                 MAX_LOGIT_BIASES);
        return field_expected(error, "logit_bias", what);
    }
    p->logit_bias = xcalloc(json_object_size(value) + 1, sizeof *p->logit_bias);
    json_object_foreach(value, key, v) {
        char path[64], what[80], *end;
        long token = strtol(key, &end, 10);
        double bias = json_number_value(v);
        snprintf(path, sizeof path, "logit_bias.%.40s", key);
        if (*key < '0' || *key > '9' || (*key == '0' && key[1]) || *end || token >= vocab_size) {
            snprintf(what, sizeof what, "the name to be a token id from 0 to %d", vocab_size - 1);
            return field_expected(error, path, what);
        }
        if (!json_is_number(v) || !(bias >= -100 && bias <= 100))
            return field_expected(error, path, "a number from -100 to 100");
        p->logit_bias[p->num_logit_bias++] = (struct logit_bias){(int32_t)token, (float)bias};
    }
    return 0;
}

int openai_force_call(struct openai_request *out, const struct chat_template *c,
                      const struct chat_request *chat, struct error *error) {
    json_t *schema = NULL;
    if (out->params.grammar)
        return error_set(error, ERR_INVALID_REQUEST,
                         "tool_choice: a call that must come leaves no room for response_format");
    int rc = tool_choice_schema(c, chat, &schema, error);
    if (rc == 0)
        rc = grammar_create_json_schema(schema, &out->params.grammar, error);
    if (rc != 0 && strncmp(error->text, "tools", 5) != 0) {
        char text[400];
        snprintf(text, sizeof text, "%.399s", error->text);
        error_set(error, rc, "tools: %s", text);
    }
    json_decref(schema);
    return rc;
}
