/* chat_template: a conversation as the prompt text that a model was trained on.
 *
 * Templates are built in and chosen by name (--chat-template NAME), or recognised from the
 * chat_template of tokenizer_config.json by its tell-tale strings: the Jinja text itself is not
 * executed. Message contents are encoded without parsing special tokens, so that a user cannot
 * write the start of another role. Markup that is plain text ("User: ", "<|user|>") gives no such
 * protection.
 */
#pragma once

#include "host/error.h"
#include "host/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

struct chat_template; /* static data, never freed */

struct chat_message {
    const char *role;    /* "system", "user", "assistant"; borrowed */
    const char *content; /* UTF-8; borrowed */
    size_t content_len;
};

/* By name ("chatml", "llama2", ...); NULL when unknown. chat_template_names lists them,
 * comma-separated, for messages. */
const struct chat_template *chat_template_find(const char *name);
const char *chat_template_names(void);
const char *chat_template_name(const struct chat_template *c);

/* Recognises the template of a model folder (chat_template.jinja, or chat_template in
 * tokenizer_config.json); NULL when it has none or none that we know (then *found_unknown says that
 * there was one). */
const struct chat_template *chat_template_recognise(const char *model_dir, bool *found_unknown);
/* The same for the text of a template. */
const struct chat_template *chat_template_recognise_text(const char *jinja);

/* Appends the ids of the conversation, ending where the assistant's answer begins. Unknown roles,
 * roles that the template does not allow, and an empty list are ERR_INVALID_REQUEST. */
int chat_template_encode(const struct chat_template *c, const struct tokenizer *t,
                         const struct chat_message *messages, size_t count, struct token_list *out,
                         struct error *error);

/* A prompt before it is encoded: its text (valid UTF-8), and where in it the contents are. */
struct chat_prompt {
    struct buffer text;
    struct text_span *contents; /* owned; ascending */
    size_t count, cap;
};

/* The text of the prompt, with bos and eos as the model spells them ("" for none). Start `out`
 * zeroed; deinit it also after an error. */
int chat_template_render(const struct chat_template *c, const char *bos, const char *eos,
                         const struct chat_message *messages, size_t count, struct chat_prompt *out,
                         struct error *error);
void chat_prompt_deinit(struct chat_prompt *p);

/* Strings at which an answer ends although they are not the eos token ("<|im_end|>"); NULL-ended.
 * Where a tokenizer has a token for one, decoding without special tokens does not show it:
 * chat_template_stop_ids appends the ids of those tokens. */
const char *const *chat_template_stops(const struct chat_template *c);
void chat_template_stop_ids(const struct chat_template *c, const struct tokenizer *t,
                            struct token_list *out);

#ifdef __cplusplus
}
#endif
