#include "openai_format.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/grammar.h"
#include "host/mem.h"
#include "host/tool_choice.h"

static const char schema_path[] = "response_format.json_schema.schema";

/* {"name","description","schema","strict"}: the answer is held to the schema whether strict or not,
 * and a name is a name. */
static int read_schema(struct openai_request *out, json_t *value, struct field_error *error) {
    static const char *const names[] = {"name", "description", "schema", "strict"};
    json_t *schema = json_object_get(value, "schema");
    struct error e = {0};
    if (!json_is_object(value))
        return field_expected(error, "response_format.json_schema", "an object with a schema");
    if (fields_check_names(value, "response_format.json_schema", names,
                           sizeof names / sizeof *names, error) != 0)
        return error->code;
    if (!schema || json_is_null(schema))
        return field_expected(error, schema_path, "a JSON schema");
    int rc = grammar_create_json_schema(schema, &out->params.grammar, &e);
    return rc ? field_error_set(error, rc, schema_path, "%s: %s", schema_path, e.text) : 0;
}

int openai_read_response_format(struct openai_request *out, json_t *value,
                                struct field_error *error) {
    static const char *const names[] = {"type", "json_schema"};
    const char *type = json_string_value(json_object_get(value, "type"));
    struct error e = {0};
    if (fields_check_names(value, "response_format", names, 2, error) != 0)
        return error->code;
    if (type && !strcmp(type, "text"))
        return 0;
    if (type && !strcmp(type, "json_object")) {
        int rc = grammar_create_json_object(&out->params.grammar, &e);
        return rc ? field_error_set(error, rc, "response_format", "%s", e.text) : 0;
    }
    if (type && !strcmp(type, "json_schema"))
        return read_schema(out, json_object_get(value, "json_schema"), error);
    return field_expected(error, "response_format.type",
                          "\"text\", \"json_object\" or \"json_schema\"");
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
