#include "chat_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer_internal.h"

enum { MAX_TOOL_NAME = 128 };

/* ---- the table ---- */

#define IM_END .stops = {"<|im_end|>"}
#define HERMES .tools = TOOL_FORMAT_HERMES, .call_open = "<tool_call>\n"

static const struct chat_template templates[] = {
    {.name = "raw", .render = chat_render_raw},
    {.name = "chatml", .render = chat_render_chatml, IM_END},
    {.name = "qwen1.5",
     .render = chat_render_chatml,
     .default_system = "You are a helpful assistant",
     IM_END},
    {.name = "qwen2",
     .render = chat_render_chatml,
     .default_system = "You are a helpful assistant.",
     IM_END},
    {.name = "qwen2.5",
     .render = chat_render_qwen25,
     .default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
     IM_END,
     HERMES},
    {.name = "qwen3", .render = chat_render_qwen3, IM_END, HERMES},
    {.name = "qwen3-2507", .render = chat_render_qwen25, IM_END, HERMES},
    {.name = "llama2", .render = chat_render_llama2},
    {.name = "llama3", .render = chat_render_llama3, .stops = {"<|eot_id|>"}},
    {.name = "llama3.1",
     .render = chat_render_llama31,
     .stops = {"<|eot_id|>", "<|eom_id|>"},
     .tools = TOOL_FORMAT_LLAMA,
     .call_open = "",
     .call_token = "<|python_tag|>"},
    {.name = "mistral", .render = chat_render_mistral},
    {.name = "mistral-v1", .render = chat_render_mistral_v1},
    {.name = "mistral-v3",
     .render = chat_render_mistral_v3,
     .tools = TOOL_FORMAT_MISTRAL,
     .call_open = "[TOOL_CALLS] [",
     .call_token = "[TOOL_CALLS]"},
    {.name = "deepseek", .render = chat_render_deepseek},
    {.name = "olmoe", .render = chat_render_olmoe},
    {.name = "skywork", .render = chat_render_skywork, .stops = {"[SEP]"}},
};
enum { NUM_TEMPLATES = sizeof templates / sizeof *templates };

const struct chat_template *chat_template_find(const char *name) {
    for (int i = 0; i < NUM_TEMPLATES; i++)
        if (strcmp(templates[i].name, name) == 0)
            return &templates[i];
    return NULL;
}

const char *chat_template_names(void) {
    return "raw, chatml, qwen1.5, qwen2, qwen2.5, qwen3, qwen3-2507, llama2, llama3, llama3.1, "
           "mistral, mistral-v1, mistral-v3, deepseek, olmoe, skywork";
}

const char *chat_template_name(const struct chat_template *c) {
    return c->name;
}

bool chat_template_has_tools(const struct chat_template *c) {
    return c->tools != TOOL_FORMAT_NONE;
}

enum tool_format chat_template_tool_format(const struct chat_template *c) {
    return c->tools;
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

/* "qwen2.5, qwen3, ..." */
static void put_names_with_tools(char *out, size_t size) {
    size_t len = 0;
    *out = '\0';
    for (int i = 0; i < NUM_TEMPLATES; i++)
        if (chat_template_has_tools(&templates[i]) && len < size)
            len +=
                (size_t)snprintf(out + len, size - len, "%s%s", len ? ", " : "", templates[i].name);
}

static int refuse_tools(const struct chat_template *c, const char *field, struct error *error) {
    char names[128];
    put_names_with_tools(names, sizeof names);
    return error_set(error, ERR_INVALID_REQUEST,
                     "%s: the model's chat template, %s, has no place for tools (those that have: "
                     "%s)",
                     field, c->name, names);
}

static bool is_tool_name(const char *name) {
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                  "_-.:/";
    size_t len = strspn(name, allowed);
    return len > 0 && len <= MAX_TOOL_NAME && name[len] == '\0';
}

static int check_tools(const struct chat_template *c, const struct chat_request *r,
                       struct error *error) {
    bool found = r->tool_choice != TOOL_CHOICE_NAMED;
    if (r->num_tools > 0 && !chat_template_has_tools(c) && r->tool_choice != TOOL_CHOICE_NONE)
        return refuse_tools(c, "tools", error);
    for (size_t i = 0; i < r->num_tools; i++) {
        const char *name = r->tools[i].name;
        if (!is_tool_name(name))
            return error_set(error, ERR_INVALID_REQUEST,
                             "tools[%zu].function.name: expected 1 to %d letters, digits and "
                             "\"_-.:/\"",
                             i, MAX_TOOL_NAME);
        found = found || (r->tool_name && strcmp(name, r->tool_name) == 0);
    }
    if (!found)
        return error_set(error, ERR_INVALID_REQUEST,
                         "tool_choice: %.*s is not the name of one of the %zu tools", MAX_TOOL_NAME,
                         r->tool_name ? r->tool_name : "nothing", r->num_tools);
    if (r->tool_choice == TOOL_CHOICE_REQUIRED && r->num_tools == 0)
        return error_set(error, ERR_INVALID_REQUEST,
                         "tool_choice: required, but there are no tools");
    return 0;
}

static int check_message(const struct chat_template *c, const struct chat_message *m, size_t i,
                         struct error *error) {
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    char field[64];
    bool known = false;
    for (size_t k = 0; k < sizeof roles / sizeof *roles; k++)
        known = known || chat_is_role(m, roles[k]);
    if (!known)
        return error_set(error, ERR_INVALID_REQUEST,
                         "messages[%zu].role: expected system, developer, user, assistant or tool",
                         i);
    if (chat_is_role(m, "tool") && !chat_template_has_tools(c)) {
        snprintf(field, sizeof field, "messages[%zu].role", i);
        return refuse_tools(c, field, error);
    }
    if (m->num_tool_calls > 0 && !chat_is_role(m, "assistant"))
        return error_set(error, ERR_INVALID_REQUEST,
                         "messages[%zu].tool_calls: only an assistant's message can have them", i);
    if (m->num_tool_calls > 0 && !chat_template_has_tools(c)) {
        snprintf(field, sizeof field, "messages[%zu].tool_calls", i);
        return refuse_tools(c, field, error);
    }
    if (!m->content && m->num_tool_calls == 0)
        return error_set(error, ERR_INVALID_REQUEST, "messages[%zu].content: expected a string", i);
    return 0;
}

int chat_template_render(const struct chat_template *c, const char *bos, const char *eos,
                         const struct chat_request *request, struct chat_prompt *out,
                         struct error *error) {
    bool shown = request->tool_choice != TOOL_CHOICE_NONE;
    struct chat_prompt_build p = {.out = out,
                                  .bos = bos,
                                  .eos = eos,
                                  .messages = request->messages,
                                  .count = request->num_messages,
                                  .tools = request->tools,
                                  .num_tools = shown ? request->num_tools : 0,
                                  .default_system = c->default_system,
                                  .no_thinking = request->no_thinking,
                                  .error = error};
    if (p.count == 0)
        return error_set(error, ERR_INVALID_REQUEST, "messages: expected at least one");
    for (size_t i = 0; i < p.count; i++) {
        int rc = check_message(c, &p.messages[i], i, error);
        if (rc != 0)
            return rc;
    }
    int rc = check_tools(c, request, error);
    if (rc != 0)
        return rc;
    buffer_reserve(&out->text, 1);
    rc = c->render(&p);
    if (rc == 0 &&
        (request->tool_choice == TOOL_CHOICE_REQUIRED || request->tool_choice == TOOL_CHOICE_NAMED))
        chat_put(&p, c->call_open);
    return rc;
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
                         const struct chat_request *request, struct token_list *out,
                         struct error *error) {
    struct chat_prompt prompt = {0};
    struct buffer bos = {0}, eos = {0};
    int32_t num_eos;
    const int32_t *eos_ids = tokenizer_eos(t, &num_eos);
    put_token_text(t, tokenizer_bos(t), &bos);
    put_token_text(t, num_eos > 0 ? eos_ids[0] : -1, &eos);
    int rc = chat_template_render(c, bos.data, eos.data, request, &prompt, error);
    if (rc == 0)
        tokenizer_encode_mixed(t, prompt.text.data, prompt.text.len, prompt.contents, prompt.count,
                               c->render == chat_render_raw ? TOKENIZER_ADD_SPECIAL : 0, out);
    chat_prompt_deinit(&prompt);
    buffer_deinit(&bos);
    buffer_deinit(&eos);
    return rc;
}

int32_t chat_template_kept_token(const struct chat_template *c, const struct tokenizer *t) {
    struct token_list ids = {0};
    int32_t id = -1;
    if (!c->call_token)
        return -1;
    tokenizer_encode(t, c->call_token, strlen(c->call_token), TOKENIZER_PARSE_SPECIAL, &ids);
    if (ids.len == 1 && t->decoder.tokens[ids.ids[0]].special)
        id = ids.ids[0];
    free(ids.ids);
    return id;
}
