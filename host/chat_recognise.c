/* chat_recognise: which of the built-in templates a model's Jinja text is. */
#include "chat_template.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"
#include "json.h"
#include "tokenizer_internal.h"

static bool has(const char *jinja, const char *s) {
    return strstr(jinja, s) != NULL;
}

/* Does the template write words of its own, as a default system message? Looked for are two words
 * with a space between them, in its text and in the strings of its code; what raise_exception says
 * does not count, nor do comments. */
static bool writes_prose(const char *jinja) {
    const char *p = jinja;
    while (*p) {
        size_t n = 0;
        char quote = '\0';
        if (!strncmp(p, "{#", 2)) {
            const char *end = strstr(p, "#}");
            p = end ? end + 2 : p + strlen(p);
            continue;
        }
        bool code = !strncmp(p, "{%", 2) || !strncmp(p, "{{", 2);
        const char *end = code ? strstr(p, p[1] == '%' ? "%}" : "}}") : p + strcspn(p, "{");
        if (!code && *end == '{' && end == p)
            end++; /* a lone brace */
        end = end ? end : p + strlen(p);
        for (const char *q = p; q < end; q++) {
            bool counts = !code || quote;
            if (quote && *q == '\\' && q + 1 < end)
                q++;
            else if (quote && *q == quote)
                quote = '\0';
            else if (code && !quote && !strncmp(q, "raise_exception(", 16))
                q += strcspn(q, ")") - 1;
            else if (code && !quote && (*q == '\'' || *q == '"'))
                quote = *q;
            n = counts && isalpha((unsigned char)*q) ? n + 1 : 0;
            if (n >= 2 && q + 3 < end && q[1] == ' ' && isalpha((unsigned char)q[2]) &&
                isalpha((unsigned char)q[3]))
                return true;
        }
        p = code && *end ? end + 2 : end;
    }
    return false;
}

static const char *recognise_chatml(const char *jinja) {
    if (has(jinja, "assistant\\n<think>\\n' }}"))
        return NULL; /* begins the answer with a thought */
    if (has(jinja, "loop.index0 > ns.last_query_index"))
        return "qwen3";
    if (has(jinja, "<tools></tools>") && has(jinja, "{%- set content = '' %}") &&
        !has(jinja, "reasoning_content"))
        return "qwen3-2507"; /* the Instruct models, which do not think */
    if (has(jinja, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."))
        return "qwen2.5";
    if (has(jinja, "\nYou are a helpful assistant.<|im_end|>") ||
        has(jinja, "\\nYou are a helpful assistant.<|im_end|>"))
        return "qwen2";
    if (has(jinja, "\nYou are a helpful assistant<|im_end|>") ||
        has(jinja, "\\nYou are a helpful assistant<|im_end|>"))
        return "qwen1.5";
    return writes_prose(jinja) ? NULL : "chatml"; /* some other default */
}

static const char *recognise(const char *jinja) {
    if (has(jinja, "<|im_start|>"))
        return recognise_chatml(jinja);
    if (has(jinja, "<|start_header_id|>") && has(jinja, "Cutting Knowledge Date"))
        return has(jinja, "strftime_now") ? NULL : "llama3.1"; /* else the prompt holds the day */
    if (has(jinja, "<|start_header_id|>"))
        return writes_prose(jinja) ? NULL : "llama3";
    if (has(jinja, "[INST]") && has(jinja, "<<SYS>>"))
        return "llama2";
    if (has(jinja, "\"[AVAILABLE_TOOLS] [\"") && has(jinja, "\"[INST] \" + message[\"content\"]"))
        return "mistral-v3"; /* others lack the spaces */
    if (has(jinja, "' [INST] ' + message['content'] + ' [/INST]'"))
        return "mistral";
    if (has(jinja, "'[INST] ' + message['content'] + ' [/INST]'") && !has(jinja, "system_message"))
        return "mistral-v1";
    if (writes_prose(jinja))
        return NULL;
    if (has(jinja, "'User: ' + message['content']") && has(jinja, "{{ 'Assistant:' }}"))
        return "deepseek";
    if (has(jinja, "{{ bos_token }}") && (has(jinja, "'<|user|>\n' + message['content'] }}") ||
                                          has(jinja, "'<|user|>\\n' + message['content'] }}")))
        return "olmoe";
    return NULL;
}

const struct chat_template *chat_template_recognise_text(const char *jinja) {
    const char *name = recognise(jinja);
    return name ? chat_template_find(name) : NULL;
}

/* chat_template is a text, or a list of named ones of which "default" counts. */
static const char *text_of(json_t *v) {
    json_t *item;
    size_t i;
    json_array_foreach(v, i, item) {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && strcmp(name, "default") == 0)
            return json_string_value(json_object_get(item, "template"));
    }
    return json_string_value(v);
}

const struct chat_template *chat_template_recognise(const char *model_dir, bool *found_unknown) {
    const struct chat_template *c = NULL;
    struct error ignored = {0};
    char *jinja_path = path_join(model_dir, "chat_template.jinja");
    char *config_path = path_join(model_dir, "tokenizer_config.json");
    char *file = NULL;
    size_t len;
    json_t *config = NULL;
    const char *jinja = NULL;
    if (file_exists(jinja_path) && file_read(jinja_path, 1 << 20, &file, &len, &ignored) == 0) {
        jinja = file;
    } else if (file_exists(config_path)) {
        config = json_parse_file(config_path, TOKENIZER_MAX_FILE_BYTES, &ignored);
        jinja = text_of(json_object_get(config, "chat_template"));
    }
    if (jinja)
        c = chat_template_recognise_text(jinja);
    *found_unknown = jinja && !c;
    json_decref(config);
    free(file);
    free(jinja_path);
    free(config_path);
    return c;
}
