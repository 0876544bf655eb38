/* chat_render: the templates that know no tools, and the parts of which all are made. */
#include "chat_internal.h"

#include <stdlib.h>
#include <string.h>

#include "mem.h"
#include "utf8.h"

/* ---- parts ---- */

void chat_put(struct chat_prompt_build *p, const char *markup) {
    buffer_puts(&p->out->text, markup);
}

void chat_put_content(struct chat_prompt_build *p, const char *s, size_t len) {
    struct chat_prompt *out = p->out;
    size_t start = out->text.len;
    if (len > 0)
        utf8_append_lossy(&out->text, s, len);
    if (out->count == out->cap) {
        out->cap = out->cap ? 2 * out->cap : 16;
        out->contents = xrealloc(out->contents, out->cap * sizeof *out->contents);
    }
    out->contents[out->count++] = (struct text_span){start, out->text.len};
}

void chat_put_message(struct chat_prompt_build *p, const struct chat_message *m) {
    chat_put_content(p, m->content, m->content_len);
}

void chat_put_stripped(struct chat_prompt_build *p, const struct chat_message *m) {
    const char *s = m->content;
    size_t len = m->content_len;
    utf8_strip(&s, &len);
    chat_put_content(p, s, len);
}

const char *chat_role(const struct chat_message *m) {
    return strcmp(m->role, "developer") == 0 ? "system" : m->role;
}

bool chat_is_role(const struct chat_message *m, const char *role) {
    return strcmp(chat_role(m), role) == 0;
}

const struct chat_message *chat_leading_system(const struct chat_prompt_build *p, size_t *first) {
    *first = chat_is_role(&p->messages[0], "system") ? 1 : 0;
    return *first ? &p->messages[0] : NULL;
}

/* From `first` on: user, assistant, user, ..., user. */
static int check_turns(const struct chat_prompt_build *p, size_t first) {
    for (size_t i = first; i < p->count; i++)
        if (!chat_is_role(&p->messages[i], (i - first) % 2 ? "assistant" : "user"))
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

int chat_render_raw(struct chat_prompt_build *p) {
    for (size_t i = 0; i < p->count; i++) {
        if (i > 0)
            chat_put(p, "\n");
        chat_put_message(p, &p->messages[i]);
    }
    return 0;
}

void chat_put_chatml_header(struct chat_prompt_build *p, const char *role) {
    chat_put(p, "<|im_start|>");
    chat_put(p, role);
    chat_put(p, "\n");
}

int chat_render_chatml(struct chat_prompt_build *p) {
    if (p->default_system && !chat_is_role(&p->messages[0], "system")) {
        chat_put_chatml_header(p, "system");
        chat_put(p, p->default_system);
        chat_put(p, "<|im_end|>\n");
    }
    for (size_t i = 0; i < p->count; i++) {
        chat_put_chatml_header(p, chat_role(&p->messages[i]));
        chat_put_message(p, &p->messages[i]);
        chat_put(p, "<|im_end|>\n");
    }
    chat_put_chatml_header(p, "assistant");
    return 0;
}

int chat_render_llama2(struct chat_prompt_build *p) {
    size_t first;
    const struct chat_message *system = chat_leading_system(p, &first);
    int rc = check_turns(p, first);
    for (size_t i = first; rc == 0 && i < p->count; i++) {
        const struct chat_message *m = &p->messages[i];
        if (chat_is_role(m, "assistant")) {
            chat_put(p, " ");
            chat_put_stripped(p, m);
            chat_put(p, " ");
            chat_put(p, p->eos);
            continue;
        }
        chat_put(p, p->bos);
        chat_put(p, "[INST] ");
        if (system && i == first) {
            /* The template strips system and user text as one; only their outer ends show. */
            const char *s = m->content;
            size_t len = m->content_len;
            chat_put(p, "<<SYS>>\n");
            chat_put_message(p, system);
            chat_put(p, "\n<</SYS>>\n\n");
            utf8_strip(&s, &len);
            if (len > 0)
                chat_put_content(p, m->content, (size_t)(s - m->content) + len);
            else
                p->out->text.len -= 2; /* the blank line was its end */
        } else {
            chat_put_stripped(p, m);
        }
        chat_put(p, " [/INST]");
    }
    return rc;
}

void chat_put_llama3_header(struct chat_prompt_build *p, const char *role) {
    chat_put(p, "<|start_header_id|>");
    chat_put(p, role);
    chat_put(p, "<|end_header_id|>\n\n");
}

static void put_llama3_messages(struct chat_prompt_build *p, size_t first) {
    for (size_t i = first; i < p->count; i++) {
        chat_put_llama3_header(p, chat_role(&p->messages[i]));
        chat_put_stripped(p, &p->messages[i]);
        chat_put(p, "<|eot_id|>");
    }
    chat_put_llama3_header(p, "assistant");
}

int chat_render_llama3(struct chat_prompt_build *p) {
    chat_put(p, p->bos);
    put_llama3_messages(p, 0);
    return 0;
}

/* Mixtral-Instruct; `space` before [INST] and the answer, and a system message, came with later
 * versions. */
static int render_mistral(struct chat_prompt_build *p, bool later) {
    size_t first = 0;
    const struct chat_message *system = later ? chat_leading_system(p, &first) : NULL;
    int rc = check_turns(p, first);
    chat_put(p, p->bos);
    for (size_t i = first; rc == 0 && i < p->count; i++) {
        const struct chat_message *m = &p->messages[i];
        bool user = chat_is_role(m, "user");
        chat_put(p, later ? " " : "");
        chat_put(p, user ? "[INST] " : "");
        if (system && i == first) {
            chat_put_message(p, system);
            chat_put(p, "\n\n");
        }
        chat_put_message(p, m);
        chat_put(p, user ? " [/INST]" : p->eos);
    }
    return rc;
}

int chat_render_mistral(struct chat_prompt_build *p) {
    return render_mistral(p, true);
}

int chat_render_mistral_v1(struct chat_prompt_build *p) {
    return render_mistral(p, false);
}

int chat_render_deepseek(struct chat_prompt_build *p) {
    chat_put(p, p->bos);
    for (size_t i = 0; i < p->count; i++) {
        const struct chat_message *m = &p->messages[i];
        bool answer = chat_is_role(m, "assistant");
        chat_put(p, answer ? "Assistant: " : chat_is_role(m, "user") ? "User: " : "");
        chat_put_message(p, m);
        chat_put(p, answer ? p->eos : "\n\n");
    }
    chat_put(p, "Assistant:");
    return 0;
}

int chat_render_olmoe(struct chat_prompt_build *p) {
    chat_put(p, p->bos);
    for (size_t i = 0; i < p->count; i++) {
        chat_put(p, "<|");
        chat_put(p, chat_role(&p->messages[i]));
        chat_put(p, "|>\n");
        chat_put_message(p, &p->messages[i]);
        chat_put(p, chat_is_role(&p->messages[i], "assistant") ? p->eos : "");
        chat_put(p, "\n");
    }
    chat_put(p, "<|assistant|>\n");
    return 0;
}

/* Skywork-13B-Chat publishes how it encodes one question; further turns are continued in kind. */
int chat_render_skywork(struct chat_prompt_build *p) {
    struct buffer clean = {0};
    int rc = check_turns(p, 0);
    chat_put(p, p->eos);
    chat_put(p, p->bos);
    for (size_t i = 0; rc == 0 && i < p->count; i++) {
        const char *s = p->messages[i].content;
        size_t len = p->messages[i].content_len;
        buffer_clear(&clean);
        utf8_strip(&s, &len);
        for (size_t k = 0; k < len; k++)
            if (s[k] != '\r')
                buffer_putc(&clean, s[k]);
        chat_put(p, i % 2 ? "" : "[USER]");
        chat_put_content(p, clean.data, clean.len);
        chat_put(p, i % 2 ? "[SEP]" : "[SEP][BOT]");
    }
    buffer_deinit(&clean);
    return rc;
}
