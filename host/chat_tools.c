/* chat_tools: the templates that know tools: Qwen2.5, Qwen3, Llama 3.1, Mistral's v3.
 *
 * What they write of a tool or a call stays text (chat_put_content): descriptions, arguments and
 * results come from clients. The JSON in prompts is what the published Jinja texts get from Python
 * (json_text.h), with the keys of a tool in the order type, function, name, description,
 * parameters.
 */
#include "chat_internal.h"

#include <stdio.h>
#include <string.h>

#include "json_text.h"
#include "tokenizer_internal.h"

/* ---- JSON of tools and calls ---- */

/* {"type": "function", "function": {...}} */
static int put_tool(struct chat_prompt_build *p, size_t i, int indent) {
    const struct chat_tool *tool = &p->tools[i];
    struct buffer flat = {0}, text = {0};
    char where[64];
    snprintf(where, sizeof where, "tools[%zu].function.parameters", i);
    buffer_puts(&flat, "{\"type\":\"function\",\"function\":{\"name\":");
    json_text_put_string(&flat, tool->name, strlen(tool->name));
    if (tool->description) {
        buffer_puts(&flat, ",\"description\":");
        json_text_put_string(&flat, tool->description, tool->description_len);
    }
    int rc = 0;
    if (tool->parameters) {
        buffer_puts(&flat, ",\"parameters\":");
        rc = json_text_format(&flat, tool->parameters, tool->parameters_len, 0, where, p->error);
    }
    buffer_puts(&flat, "}}");
    if (rc == 0)
        rc = json_text_format(&text, flat.data, flat.len, indent, where, p->error);
    if (rc == 0)
        chat_put_content(p, text.data, text.len);
    buffer_deinit(&flat);
    buffer_deinit(&text);
    return rc;
}

/* The arguments of call k of message i, as Python spells them. */
static int put_arguments(struct chat_prompt_build *p, size_t i, size_t k) {
    const struct chat_tool_call *call = &p->messages[i].tool_calls[k];
    struct str arguments = {call->arguments, call->arguments_len};
    struct buffer text = {0};
    char where[80];
    if (arguments.len == 0)
        arguments = (struct str){"{}", 2};
    snprintf(where, sizeof where, "messages[%zu].tool_calls[%zu].function.arguments", i, k);
    int rc = json_text_format(&text, arguments.data, arguments.len, 0, where, p->error);
    if (rc == 0 && text.data[0] != '{')
        rc = error_set(p->error, ERR_INVALID_REQUEST, "%s: expected the text of a JSON object",
                       where);
    if (rc == 0)
        chat_put_content(p, text.data, text.len);
    buffer_deinit(&text);
    return rc;
}

static void put_text(struct chat_prompt_build *p, const char *s) {
    chat_put_content(p, s, strlen(s));
}

/* ---- Qwen ---- */

static int put_qwen_tools(struct chat_prompt_build *p) {
    chat_put(p, "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
                "You are provided with function signatures within <tools></tools> XML tags:\n"
                "<tools>");
    for (size_t i = 0; i < p->num_tools; i++) {
        chat_put(p, "\n");
        int rc = put_tool(p, i, 0);
        if (rc != 0)
            return rc;
    }
    chat_put(p, "\n</tools>\n\nFor each function call, return a json object with function name and "
                "arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
                "{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>");
    return 0;
}

/* The first message of all, with the tools. */
static int put_qwen_system(struct chat_prompt_build *p) {
    const struct chat_message *m = &p->messages[0];
    bool given = chat_is_role(m, "system");
    int rc = 0;
    if (!given && !p->default_system && p->num_tools == 0)
        return 0;
    chat_put_chatml_header(p, "system");
    if (given)
        chat_put_message(p, m);
    else if (p->default_system)
        chat_put(p, p->default_system);
    if (p->num_tools > 0) {
        chat_put(p, given || p->default_system ? "\n\n" : "");
        rc = put_qwen_tools(p);
    }
    chat_put(p, "<|im_end|>\n");
    return rc;
}

static int put_qwen_calls(struct chat_prompt_build *p, size_t i, bool after_text) {
    const struct chat_message *m = &p->messages[i];
    for (size_t k = 0; k < m->num_tool_calls; k++) {
        chat_put(p, after_text || k > 0 ? "\n" : "");
        chat_put(p, "<tool_call>\n{\"name\": \"");
        put_text(p, m->tool_calls[k].name);
        chat_put(p, "\", \"arguments\": ");
        int rc = put_arguments(p, i, k);
        if (rc != 0)
            return rc;
        chat_put(p, "}\n</tool_call>");
    }
    return 0;
}

/* Results that follow each other are one message of the user. */
static void put_qwen_result(struct chat_prompt_build *p, size_t i) {
    if (i == 0 || !chat_is_role(&p->messages[i - 1], "tool"))
        chat_put(p, "<|im_start|>user");
    chat_put(p, "\n<tool_response>\n");
    chat_put_message(p, &p->messages[i]);
    chat_put(p, "\n</tool_response>");
    if (i + 1 == p->count || !chat_is_role(&p->messages[i + 1], "tool"))
        chat_put(p, "<|im_end|>\n");
}

/* A message as it is. */
static void put_qwen_message(struct chat_prompt_build *p, const struct chat_message *m) {
    chat_put_chatml_header(p, chat_role(m));
    chat_put_message(p, m);
    chat_put(p, "<|im_end|>\n");
}

int chat_render_qwen25(struct chat_prompt_build *p) {
    int rc = put_qwen_system(p);
    for (size_t i = chat_is_role(&p->messages[0], "system"); rc == 0 && i < p->count; i++) {
        const struct chat_message *m = &p->messages[i];
        if (chat_is_role(m, "tool")) {
            put_qwen_result(p, i);
        } else if (m->num_tool_calls > 0) {
            chat_put(p, "<|im_start|>assistant\n");
            if (m->content_len > 0)
                chat_put_message(p, m);
            rc = put_qwen_calls(p, i, m->content_len > 0);
            chat_put(p, "<|im_end|>\n");
        } else {
            put_qwen_message(p, m);
        }
    }
    chat_put_chatml_header(p, "assistant");
    return rc;
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

/* An answer of Qwen3: its thoughts are left out, except in an answer after the last question.
 * Returns whether it has text, which a call follows on a new line. */
static bool put_qwen3_answer(struct chat_prompt_build *p, const struct chat_message *m,
                             bool after_question, bool last) {
    static const char open[] = "<think>", close[] = "</think>";
    struct str answer = {m->content, m->content_len}, thoughts = {NULL, 0};
    const char *found =
        answer.len > 0 ? memmem(answer.data, answer.len, close, sizeof close - 1) : NULL;
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
    bool text = answer.len > 0;
    if (after_question && (last || thoughts.len > 0)) {
        chat_put(p, "<think>\n");
        if (thoughts.len > 0)
            chat_put_content(p, thoughts.data, thoughts.len);
        chat_put(p, "\n</think>\n\n");
        answer = trim_newlines(answer, true, false);
    }
    chat_put_content(p, answer.data, answer.len);
    return text;
}

static bool is_tool_response(const struct chat_message *m) {
    static const char open[] = "<tool_response>", close[] = "</tool_response>";
    size_t a = sizeof open - 1, b = sizeof close - 1;
    return m->content_len >= b && memcmp(m->content, open, a) == 0 &&
           memcmp(m->content + m->content_len - b, close, b) == 0;
}

/* The message after which answers are the model's present work, and keep their thoughts. */
static size_t last_question(const struct chat_prompt_build *p) {
    for (size_t i = p->count; i-- > 0;)
        if (chat_is_role(&p->messages[i], "user") && !is_tool_response(&p->messages[i]))
            return i;
    return p->count - 1;
}

int chat_render_qwen3(struct chat_prompt_build *p) {
    size_t question = last_question(p);
    int rc = put_qwen_system(p);
    for (size_t i = chat_is_role(&p->messages[0], "system"); rc == 0 && i < p->count; i++) {
        const struct chat_message *m = &p->messages[i];
        if (chat_is_role(m, "tool")) {
            put_qwen_result(p, i);
        } else if (chat_is_role(m, "assistant")) {
            chat_put_chatml_header(p, "assistant");
            bool text = put_qwen3_answer(p, m, i > question, i + 1 == p->count);
            rc = put_qwen_calls(p, i, text);
            chat_put(p, "<|im_end|>\n");
        } else {
            put_qwen_message(p, m);
        }
    }
    chat_put_chatml_header(p, "assistant");
    chat_put(p, p->no_thinking ? "<think>\n\n</think>\n\n" : "");
    return rc;
}

/* ---- Llama 3.1 ---- */

/* The tools come with the first message after the system's, which must be the user's. */
static int put_llama31_tools(struct chat_prompt_build *p, size_t first) {
    if (first == p->count || !chat_is_role(&p->messages[first], "user"))
        return error_set(
            p->error, ERR_INVALID_REQUEST,
            first == p->count
                ? "messages: expected a user's message, with which this model's chat "
                  "template shows the tools"
                : "messages[%zu].role: expected user: this model's chat template shows "
                  "the tools with the first message after the system's",
            first);
    chat_put_llama3_header(p, "user");
    chat_put(p,
             "Given the following functions, please respond with a JSON for a function call with "
             "its proper arguments that best answers the given prompt.\n\nRespond in the format "
             "{\"name\": function name, \"parameters\": dictionary of argument name and its "
             "value}.Do not use variables.\n\n");
    for (size_t i = 0; i < p->num_tools; i++) {
        int rc = put_tool(p, i, 4);
        if (rc != 0)
            return rc;
        chat_put(p, "\n\n");
    }
    chat_put_stripped(p, &p->messages[first]);
    chat_put(p, "<|eot_id|>");
    return 0;
}

static int put_llama31_call(struct chat_prompt_build *p, size_t i) {
    const struct chat_message *m = &p->messages[i];
    if (m->num_tool_calls != 1)
        return error_set(p->error, ERR_INVALID_REQUEST,
                         "messages[%zu].tool_calls: this model's chat template takes one call in a "
                         "message, not %zu",
                         i, m->num_tool_calls);
    chat_put_llama3_header(p, "assistant");
    chat_put(p, "{\"name\": \"");
    put_text(p, m->tool_calls[0].name);
    chat_put(p, "\", \"parameters\": ");
    int rc = put_arguments(p, i, 0);
    chat_put(p, "}<|eot_id|>");
    return rc;
}

static void put_llama31_result(struct chat_prompt_build *p, const struct chat_message *m) {
    struct buffer text = {0};
    chat_put_llama3_header(p, "ipython");
    json_text_put_string(&text, m->content, m->content_len);
    chat_put_content(p, text.data, text.len);
    chat_put(p, "<|eot_id|>");
    buffer_deinit(&text);
}

int chat_render_llama31(struct chat_prompt_build *p) {
    size_t first;
    const struct chat_message *system = chat_leading_system(p, &first);
    int rc = 0;
    chat_put(p, p->bos);
    chat_put_llama3_header(p, "system");
    chat_put(p, p->num_tools > 0 ? "Environment: ipython\n" : "");
    chat_put(p, "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");
    if (system)
        chat_put_stripped(p, system);
    chat_put(p, "<|eot_id|>");
    if (p->num_tools > 0)
        rc = put_llama31_tools(p, first++);
    for (size_t i = first; rc == 0 && i < p->count; i++) {
        const struct chat_message *m = &p->messages[i];
        if (m->num_tool_calls > 0) {
            rc = put_llama31_call(p, i);
        } else if (chat_is_role(m, "tool")) {
            put_llama31_result(p, m);
        } else {
            chat_put_llama3_header(p, chat_role(m));
            chat_put_stripped(p, m);
            chat_put(p, "<|eot_id|>");
        }
    }
    chat_put_llama3_header(p, "assistant");
    return rc;
}

/* ---- Mistral ---- */

/* User and assistant in turn, calls and their results aside, up to a question or a result. */
static int check_mistral_turns(const struct chat_prompt_build *p, size_t first) {
    const struct chat_message *last = &p->messages[p->count - 1];
    size_t turn = 0;
    for (size_t i = first; i < p->count; i++) {
        const struct chat_message *m = &p->messages[i];
        if (m->num_tool_calls > 0 || chat_is_role(m, "tool"))
            continue;
        const char *expected = turn++ % 2 ? "assistant" : "user";
        if (!chat_is_role(m, expected))
            return error_set(p->error, ERR_INVALID_REQUEST,
                             "messages[%zu].role: expected %s: this model's chat template wants "
                             "user and assistant in turn, beside calls and their results",
                             i, expected);
    }
    if (p->count == first || chat_is_role(last, "assistant"))
        return error_set(p->error, ERR_INVALID_REQUEST,
                         "messages: the last one must be the user's or a tool's");
    return 0;
}

/* Mistral's ids have nine characters; the last nine of a longer one tell calls apart as well. */
static int put_mistral_id(struct chat_prompt_build *p, size_t i, const char *field,
                          const char *id) {
    enum { ID_CHARS = 9 };
    size_t len = id ? strlen(id) : 0;
    for (size_t k = 1; k <= ID_CHARS; k++)
        if (k > len ||
            !strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", id[len - k]))
            return error_set(p->error, ERR_INVALID_REQUEST,
                             "messages[%zu].%s: expected an id that ends in %d letters and digits",
                             i, field, ID_CHARS);
    put_text(p, id + len - ID_CHARS);
    return 0;
}

static int put_mistral_calls(struct chat_prompt_build *p, size_t i) {
    const struct chat_message *m = &p->messages[i];
    chat_put(p, "[TOOL_CALLS] [");
    for (size_t k = 0; k < m->num_tool_calls; k++) {
        const struct chat_tool_call *call = &m->tool_calls[k];
        struct buffer name = {0};
        char field[64];
        snprintf(field, sizeof field, "tool_calls[%zu].id", k);
        json_text_put_string(&name, call->name, strlen(call->name));
        chat_put(p, k > 0 ? ", {\"name\": " : "{\"name\": ");
        chat_put_content(p, name.data, name.len);
        buffer_deinit(&name);
        chat_put(p, ", \"arguments\": ");
        int rc = put_arguments(p, i, k);
        if (rc != 0)
            return rc;
        chat_put(p, ", \"id\": \"");
        rc = put_mistral_id(p, i, field, call->id);
        if (rc != 0)
            return rc;
        chat_put(p, "\"}");
    }
    chat_put(p, "]");
    chat_put(p, p->eos);
    return 0;
}

static int put_mistral_result(struct chat_prompt_build *p, size_t i) {
    const struct chat_message *m = &p->messages[i];
    chat_put(p, "[TOOL_RESULTS] {\"content\": ");
    chat_put_message(p, m);
    chat_put(p, ", \"call_id\": \"");
    int rc = put_mistral_id(p, i, "tool_call_id", m->tool_call_id);
    chat_put(p, "\"}[/TOOL_RESULTS]");
    return rc;
}

/* Name and description stand between quotes as they are, which is no JSON when they hold some. */
static int put_mistral_tools(struct chat_prompt_build *p) {
    chat_put(p, "[AVAILABLE_TOOLS] [");
    for (size_t i = 0; i < p->num_tools; i++) {
        const struct chat_tool *tool = &p->tools[i];
        chat_put(p, i > 0 ? ", " : "");
        chat_put(p, "{\"type\": \"function\", \"function\": {\"name\": \"");
        put_text(p, tool->name);
        chat_put(p, "\"");
        if (tool->description) {
            chat_put(p, ", \"description\": \"");
            chat_put_content(p, tool->description, tool->description_len);
            chat_put(p, "\"");
        }
        if (tool->parameters) {
            struct buffer text = {0};
            char where[64];
            snprintf(where, sizeof where, "tools[%zu].function.parameters", i);
            int rc =
                json_text_format(&text, tool->parameters, tool->parameters_len, 0, where, p->error);
            chat_put(p, ", \"parameters\": ");
            chat_put_content(p, text.data, text.len);
            buffer_deinit(&text);
            if (rc != 0)
                return rc;
        }
        chat_put(p, "}}");
    }
    chat_put(p, "][/AVAILABLE_TOOLS]");
    return 0;
}

/* The tools stand before the last question alone. The Jinja text has them before each earlier one
 * that is worded alike, too, with which a short request would be a prompt of any length. */
static int put_mistral_question(struct chat_prompt_build *p, size_t i,
                                const struct chat_message *system,
                                const struct chat_message *last) {
    const struct chat_message *m = &p->messages[i];
    int rc = 0;
    if (p->num_tools > 0 && m == last)
        rc = put_mistral_tools(p);
    chat_put(p, "[INST] ");
    if (system && i + 1 == p->count) {
        chat_put_message(p, system);
        chat_put(p, "\n\n");
    }
    chat_put_message(p, m);
    chat_put(p, "[/INST]");
    return rc;
}

int chat_render_mistral_v3(struct chat_prompt_build *p) {
    size_t first;
    const struct chat_message *system = chat_leading_system(p, &first);
    const struct chat_message *last = NULL; /* question */
    int rc = check_mistral_turns(p, first);
    for (size_t i = first; i < p->count; i++)
        if (chat_is_role(&p->messages[i], "user"))
            last = &p->messages[i];
    chat_put(p, p->bos);
    for (size_t i = first; rc == 0 && i < p->count; i++) {
        const struct chat_message *m = &p->messages[i];
        if (chat_is_role(m, "user")) {
            rc = put_mistral_question(p, i, system, last);
        } else if (m->num_tool_calls > 0) {
            rc = put_mistral_calls(p, i);
        } else if (chat_is_role(m, "tool")) {
            rc = put_mistral_result(p, i);
        } else {
            chat_put(p, " ");
            chat_put_stripped(p, m);
            chat_put(p, p->eos);
        }
    }
    return rc;
}
