#include "chat_template.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"
#include "json.h"
#include "mem.h"
#include "tokenizer_internal.h"
#include "utf8.h"

/* ---- building a prompt ---- */

struct prompt {
    struct chat_prompt *out;
    const char *bos, *eos;
    const struct chat_message *messages;
    size_t count;
    const char *default_system; /* of the template; NULL for none */
    struct error *error;
};

static void put(struct prompt *p, const char *markup) {
    buffer_puts(&p->out->text, markup);
}

/* Text that stays text, whatever it spells. */
static void put_content(struct prompt *p, const char *s, size_t len) {
    struct chat_prompt *out = p->out;
    size_t start = out->text.len;
    utf8_append_lossy(&out->text, s, len);
    if (out->count == out->cap) {
        out->cap = out->cap ? 2 * out->cap : 16;
        out->contents = xrealloc(out->contents, out->cap * sizeof *out->contents);
    }
    out->contents[out->count++] = (struct text_span){start, out->text.len};
}

static void put_message(struct prompt *p, const struct chat_message *m) {
    put_content(p, m->content, m->content_len);
}

static void put_stripped(struct prompt *p, const struct chat_message *m) {
    const char *s = m->content;
    size_t len = m->content_len;
    utf8_strip(&s, &len);
    put_content(p, s, len);
}

static bool is_role(const struct chat_message *m, const char *role) {
    return strcmp(m->role, role) == 0;
}

/* The leading system message of templates that know only one, or NULL; *first is the message after.
 */
static const struct chat_message *leading_system(const struct prompt *p, size_t *first) {
    *first = is_role(&p->messages[0], "system") ? 1 : 0;
    return *first ? &p->messages[0] : NULL;
}

/* From `first` on: user, assistant, user, ..., user. */
static int check_turns(const struct prompt *p, size_t first) {
    for (size_t i = first; i < p->count; i++)
        if (!is_role(&p->messages[i], (i - first) % 2 ? "assistant" : "user"))
            return error_set(
                p->error, ERR_INVALID_REQUEST,
                "messages[%zu].role: expected %s: this model's chat template wants user "
                "and assistant in turn%s",
                i, (i - first) % 2 ? "assistant" : "user",
                first ? " after the system message" : "");
    if (p->count == first || (p->count - first) % 2 == 0)
        return error_set(p->error, ERR_INVALID_REQUEST,
                         "messages: the last one must be the user's");
    return 0;
}

/* ---- the templates ---- */

static int render_raw(struct prompt *p) {
    for (size_t i = 0; i < p->count; i++) {
        if (i > 0)
            put(p, "\n");
        put_message(p, &p->messages[i]);
    }
    return 0;
}

static void put_chatml_header(struct prompt *p, const char *role) {
    put(p, "<|im_start|>");
    put(p, role);
    put(p, "\n");
}

static int render_chatml(struct prompt *p) {
    if (p->default_system && !is_role(&p->messages[0], "system")) {
        put_chatml_header(p, "system");
        put(p, p->default_system);
        put(p, "<|im_end|>\n");
    }
    for (size_t i = 0; i < p->count; i++) {
        put_chatml_header(p, p->messages[i].role);
        put_message(p, &p->messages[i]);
        put(p, "<|im_end|>\n");
    }
    put_chatml_header(p, "assistant");
    return 0;
}

static struct str trim_newlines(struct str s, bool left, bool right) {
    while (left && s.len > 0 && s.data[0] == '\n') {
        s.data++;
        s.len--;
    }
    while (right && s.len > 0 && s.data[s.len - 1] == '\n')
        s.len--;
    return s;
}

/* An answer of Qwen3: its thoughts are left out, except in an answer after the last question. */
static void put_qwen3_answer(struct prompt *p, const struct chat_message *m, bool after_question,
                             bool last) {
    static const char open[] = "<think>", close[] = "</think>";
    struct str answer = {m->content, m->content_len}, thoughts = {NULL, 0};
    const char *found = memmem(answer.data, answer.len, close, sizeof close - 1);
    if (found) {
        const char *end = m->content + m->content_len, *next;
        thoughts =
            trim_newlines((struct str){m->content, (size_t)(found - m->content)}, false, true);
        while ((next = memmem(thoughts.data, thoughts.len, open, sizeof open - 1))) {
            thoughts.len -= (size_t)(next - thoughts.data) + sizeof open - 1;
            thoughts.data = next + sizeof open - 1;
        }
        thoughts = trim_newlines(thoughts, true, true);
        do
            answer =
                (struct str){found + sizeof close - 1, (size_t)(end - found) - (sizeof close - 1)};
        while ((found = memmem(answer.data, answer.len, close, sizeof close - 1)));
        answer = trim_newlines(answer, true, false);
    }
    if (after_question && (last || thoughts.len > 0)) {
        put(p, "<think>\n");
        if (thoughts.len > 0)
            put_content(p, thoughts.data, thoughts.len);
        put(p, "\n</think>\n\n");
        answer = trim_newlines(answer, true, false);
    }
    put_content(p, answer.data, answer.len);
}

static bool is_tool_response(const struct chat_message *m) {
    static const char open[] = "<tool_response>", close[] = "</tool_response>";
    size_t a = sizeof open - 1, b = sizeof close - 1;
    return m->content_len >= b && memcmp(m->content, open, a) == 0 &&
           memcmp(m->content + m->content_len - b, close, b) == 0;
}

static int render_qwen3(struct prompt *p) {
    size_t question = p->count - 1;
    for (size_t i = p->count; i-- > 0;)
        if (is_role(&p->messages[i], "user") && !is_tool_response(&p->messages[i])) {
            question = i;
            break;
        }
    for (size_t i = 0; i < p->count; i++) {
        const struct chat_message *m = &p->messages[i];
        put_chatml_header(p, m->role);
        if (is_role(m, "assistant"))
            put_qwen3_answer(p, m, i > question, i + 1 == p->count);
        else
            put_message(p, m);
        put(p, "<|im_end|>\n");
    }
    put_chatml_header(p, "assistant");
    return 0;
}

static int render_llama2(struct prompt *p) {
    size_t first;
    const struct chat_message *system = leading_system(p, &first);
    int rc = check_turns(p, first);
    for (size_t i = first; rc == 0 && i < p->count; i++) {
        const struct chat_message *m = &p->messages[i];
        if (is_role(m, "assistant")) {
            put(p, " ");
            put_stripped(p, m);
            put(p, " ");
            put(p, p->eos);
            continue;
        }
        put(p, p->bos);
        put(p, "[INST] ");
        if (system && i == first) {
            /* The template strips system and user text as one; only their outer ends show. */
            const char *s = m->content;
            size_t len = m->content_len;
            put(p, "<<SYS>>\n");
            put_message(p, system);
            put(p, "\n<</SYS>>\n\n");
            utf8_strip(&s, &len);
            if (len > 0)
                put_content(p, m->content, (size_t)(s - m->content) + len);
            else
                p->out->text.len -= 2; /* the blank line was its end */
        } else {
            put_stripped(p, m);
        }
        put(p, " [/INST]");
    }
    return rc;
}

static void put_llama3_header(struct prompt *p, const char *role) {
    put(p, "<|start_header_id|>");
    put(p, role);
    put(p, "<|end_header_id|>\n\n");
}

static void put_llama3_messages(struct prompt *p, size_t first) {
    for (size_t i = first; i < p->count; i++) {
        put_llama3_header(p, p->messages[i].role);
        put_stripped(p, &p->messages[i]);
        put(p, "<|eot_id|>");
    }
    put_llama3_header(p, "assistant");
}

static int render_llama3(struct prompt *p) {
    put(p, p->bos);
    put_llama3_messages(p, 0);
    return 0;
}

static int render_llama31(struct prompt *p) {
    size_t first;
    const struct chat_message *system = leading_system(p, &first);
    put(p, p->bos);
    put_llama3_header(p, "system");
    put(p, "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");
    if (system)
        put_stripped(p, system);
    put(p, "<|eot_id|>");
    put_llama3_messages(p, first);
    return 0;
}

/* Mixtral-Instruct; `space` before [INST] and the answer, and a system message, came with later
 * versions. */
static int render_mistral(struct prompt *p, bool later) {
    size_t first = 0;
    const struct chat_message *system = later ? leading_system(p, &first) : NULL;
    int rc = check_turns(p, first);
    put(p, p->bos);
    for (size_t i = first; rc == 0 && i < p->count; i++) {
        const struct chat_message *m = &p->messages[i];
        bool user = is_role(m, "user");
        put(p, later ? " " : "");
        put(p, user ? "[INST] " : "");
        if (system && i == first) {
            put_message(p, system);
            put(p, "\n\n");
        }
        put_message(p, m);
        put(p, user ? " [/INST]" : p->eos);
    }
    return rc;
}

static int render_mistral_later(struct prompt *p) {
    return render_mistral(p, true);
}

static int render_mistral_v1(struct prompt *p) {
    return render_mistral(p, false);
}

static int render_deepseek(struct prompt *p) {
    put(p, p->bos);
    for (size_t i = 0; i < p->count; i++) {
        const struct chat_message *m = &p->messages[i];
        bool answer = is_role(m, "assistant");
        put(p, answer ? "Assistant: " : is_role(m, "user") ? "User: " : "");
        put_message(p, m);
        put(p, answer ? p->eos : "\n\n");
    }
    put(p, "Assistant:");
    return 0;
}

static int render_olmoe(struct prompt *p) {
    put(p, p->bos);
    for (size_t i = 0; i < p->count; i++) {
        put(p, "<|");
        put(p, p->messages[i].role);
        put(p, "|>\n");
        put_message(p, &p->messages[i]);
        put(p, is_role(&p->messages[i], "assistant") ? p->eos : "");
        put(p, "\n");
    }
    put(p, "<|assistant|>\n");
    return 0;
}

/* Skywork-13B-Chat publishes how it encodes one question; further turns are continued in kind. */
static int render_skywork(struct prompt *p) {
    struct buffer clean = {0};
    int rc = check_turns(p, 0);
    put(p, p->eos);
    put(p, p->bos);
    for (size_t i = 0; rc == 0 && i < p->count; i++) {
        const char *s = p->messages[i].content;
        size_t len = p->messages[i].content_len;
        buffer_clear(&clean);
        utf8_strip(&s, &len);
        for (size_t k = 0; k < len; k++)
            if (s[k] != '\r')
                buffer_putc(&clean, s[k]);
        put(p, i % 2 ? "" : "[USER]");
        put_content(p, clean.data, clean.len);
        put(p, i % 2 ? "[SEP]" : "[SEP][BOT]");
    }
    buffer_deinit(&clean);
    return rc;
}

/* ---- the table ---- */

struct chat_template {
    const char *name;
    int (*render)(struct prompt *p);
    const char *default_system;
    const char *stops[3];
};

static const struct chat_template templates[] = {
    {"raw", render_raw, NULL, {NULL}},
    {"chatml", render_chatml, NULL, {"<|im_end|>", NULL}},
    {"qwen1.5", render_chatml, "You are a helpful assistant", {"<|im_end|>", NULL}},
    {"qwen2", render_chatml, "You are a helpful assistant.", {"<|im_end|>", NULL}},
    {"qwen2.5",
     render_chatml,
     "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
     {"<|im_end|>", NULL}},
    {"qwen3", render_qwen3, NULL, {"<|im_end|>", NULL}},
    {"llama2", render_llama2, NULL, {NULL}},
    {"llama3", render_llama3, NULL, {"<|eot_id|>", NULL}},
    {"llama3.1", render_llama31, NULL, {"<|eot_id|>", "<|eom_id|>", NULL}},
    {"mistral", render_mistral_later, NULL, {NULL}},
    {"mistral-v1", render_mistral_v1, NULL, {NULL}},
    {"deepseek", render_deepseek, NULL, {NULL}},
    {"olmoe", render_olmoe, NULL, {NULL}},
    {"skywork", render_skywork, NULL, {"[SEP]", NULL}},
};

const struct chat_template *chat_template_find(const char *name) {
    for (size_t i = 0; i < sizeof templates / sizeof *templates; i++)
        if (strcmp(templates[i].name, name) == 0)
            return &templates[i];
    return NULL;
}

const char *chat_template_names(void) {
    return "raw, chatml, qwen1.5, qwen2, qwen2.5, qwen3, llama2, llama3, llama3.1, mistral, "
           "mistral-v1, deepseek, olmoe, skywork";
}

const char *chat_template_name(const struct chat_template *c) {
    return c->name;
}

const char *const *chat_template_stops(const struct chat_template *c) {
    return c->stops;
}

void chat_template_stop_ids(const struct chat_template *c, const struct tokenizer *t,
                            struct token_list *out) {
    for (const char *const *stop = c->stops; *stop; stop++) {
        size_t before = out->len;
        tokenizer_encode(t, *stop, strlen(*stop), TOKENIZER_PARSE_SPECIAL, out);
        if (out->len != before + 1)
            out->len = before;
    }
}

/* ---- rendering and encoding ---- */

void chat_prompt_deinit(struct chat_prompt *p) {
    buffer_deinit(&p->text);
    free(p->contents);
    memset(p, 0, sizeof *p);
}

int chat_template_render(const struct chat_template *c, const char *bos, const char *eos,
                         const struct chat_message *messages, size_t count, struct chat_prompt *out,
                         struct error *error) {
    struct prompt p = {.out = out,
                       .bos = bos,
                       .eos = eos,
                       .messages = messages,
                       .count = count,
                       .default_system = c->default_system,
                       .error = error};
    if (count == 0)
        return error_set(error, ERR_INVALID_REQUEST, "messages: expected at least one");
    for (size_t i = 0; i < count; i++)
        if (!is_role(&messages[i], "system") && !is_role(&messages[i], "user") &&
            !is_role(&messages[i], "assistant"))
            return error_set(error, ERR_INVALID_REQUEST,
                             "messages[%zu].role: expected system, user or assistant", i);
    buffer_reserve(&out->text, 1);
    return c->render(&p);
}

/* The text of a special token as it stands in a prompt; "" for an id of -1. */
static void put_token_text(const struct tokenizer *t, int32_t id, struct buffer *out) {
    for (size_t i = 0; i < t->raw.count; i++)
        if (t->raw.tokens[i].id == id) {
            buffer_append(out, t->raw.tokens[i].text, t->raw.tokens[i].len);
            break;
        }
    buffer_putc(out, 0);
}

int chat_template_encode(const struct chat_template *c, const struct tokenizer *t,
                         const struct chat_message *messages, size_t count, struct token_list *out,
                         struct error *error) {
    struct chat_prompt prompt = {0};
    struct buffer bos = {0}, eos = {0};
    int32_t num_eos;
    const int32_t *eos_ids = tokenizer_eos(t, &num_eos);
    put_token_text(t, tokenizer_bos(t), &bos);
    put_token_text(t, num_eos > 0 ? eos_ids[0] : -1, &eos);
    int rc = chat_template_render(c, bos.data, eos.data, messages, count, &prompt, error);
    if (rc == 0)
        tokenizer_encode_mixed(t, prompt.text.data, prompt.text.len, prompt.contents, prompt.count,
                               c->render == render_raw ? TOKENIZER_ADD_SPECIAL : 0, out);
    chat_prompt_deinit(&prompt);
    buffer_deinit(&bos);
    buffer_deinit(&eos);
    return rc;
}

/* ---- recognising ---- */

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
    if (has(jinja, "last_query_index"))
        return "qwen3";
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
