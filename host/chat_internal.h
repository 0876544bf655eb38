/* chat_internal: what the chat_*.c files share: a prompt that is being built, and the templates.
 *
 *   chat_template.c   the table of templates, checks of a request, encoding
 *   chat_render.c     the templates without tools, and the parts of all
 *   chat_tools.c      the templates with tools
 *   chat_recognise.c  which of them a Jinja text is
 */
#pragma once

#include "host/chat_template.h"

#ifdef __cplusplus
extern "C" {
#endif

struct chat_prompt_build {
    struct chat_prompt *out;
    const char *bos, *eos;
    const struct chat_message *messages;
    size_t count;
    const struct chat_tool *tools; /* that the model may see */
    size_t num_tools;
    const char *default_system; /* of the template; NULL for none */
    bool no_thinking;
    struct error *error;
};

struct chat_template {
    const char *name;
    int (*render)(struct chat_prompt_build *p);
    const char *default_system;
    const char *stops[3]; /* NULL-ended */
    enum tool_format tools;
    const char *call_open;  /* what stands before a call, for prompts that end in one */
    const char *call_token; /* the special token among it; NULL: all of it is text */
};

/* ---- parts (chat_render.c) ---- */

void chat_put(struct chat_prompt_build *p, const char *markup);
/* Text that stays text, whatever it spells. */
void chat_put_content(struct chat_prompt_build *p, const char *s, size_t len);
void chat_put_message(struct chat_prompt_build *p, const struct chat_message *m);
void chat_put_stripped(struct chat_prompt_build *p, const struct chat_message *m);

/* "developer" is a system message. */
bool chat_is_role(const struct chat_message *m, const char *role);
/* The role as templates spell it. */
const char *chat_role(const struct chat_message *m);
/* The leading system message of templates that know only one, or NULL; *first is the message after.
 */
const struct chat_message *chat_leading_system(const struct chat_prompt_build *p, size_t *first);

void chat_put_chatml_header(struct chat_prompt_build *p, const char *role);
void chat_put_llama3_header(struct chat_prompt_build *p, const char *role);

/* ---- the templates ---- */

int chat_render_raw(struct chat_prompt_build *p);
int chat_render_chatml(struct chat_prompt_build *p);
int chat_render_llama2(struct chat_prompt_build *p);
int chat_render_llama3(struct chat_prompt_build *p);
int chat_render_mistral(struct chat_prompt_build *p);
int chat_render_mistral_v1(struct chat_prompt_build *p);
int chat_render_deepseek(struct chat_prompt_build *p);
int chat_render_olmoe(struct chat_prompt_build *p);
int chat_render_skywork(struct chat_prompt_build *p);

int chat_render_qwen25(struct chat_prompt_build *p);
int chat_render_qwen3(struct chat_prompt_build *p);
int chat_render_llama31(struct chat_prompt_build *p);
int chat_render_mistral_v3(struct chat_prompt_build *p);

#ifdef __cplusplus
}
#endif
