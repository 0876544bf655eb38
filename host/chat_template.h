/* chat_template: a conversation as the prompt text that a model was trained on.
 *
 * Templates are built in and chosen by name (--chat-template NAME), or recognised from the
 * chat_template of tokenizer_config.json by its tell-tale strings: the Jinja text itself is not
 * executed. Message contents are encoded without parsing special tokens, so that a user cannot
 * write the start of another role. Markup that is plain text ("User: ", "<|user|>") gives no such
 * protection.
 *
 * Some templates take tools: descriptions of functions that the model may ask to call. What a
 * model answers then is read by tool_calls.h; tool_choice.h forces it to call one.
 */
#pragma once

#include "host/error.h"
#include "host/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

struct chat_template; /* static data, never freed */

/* A call that the assistant made; all strings borrowed. */
struct chat_tool_call {
    const char *id;        /* NULL: none; only Mistral's template writes it */
    const char *name;      /* of the function */
    const char *arguments; /* a JSON object, as text; none, or an empty one, stands for {} */
    size_t arguments_len;
};

struct chat_message {
    const char *role; /* "system", "developer" (the same), "user", "assistant", "tool"; borrowed */
    const char *content; /* UTF-8; borrowed; may be NULL beside tool calls */
    size_t content_len;
    const struct chat_tool_call *tool_calls; /* of an assistant; borrowed */
    size_t num_tool_calls;
    const char *tool_call_id; /* of a tool's result: the call's id; NULL: none; borrowed */
};

/* A function that the model may call; all strings borrowed. */
struct chat_tool {
    const char *name;        /* 1 to 128 letters, digits and "_-.:/" */
    const char *description; /* UTF-8; NULL: none */
    size_t description_len;
    const char *parameters; /* a JSON schema, as text; NULL: none */
    size_t parameters_len;
};

enum tool_choice {
    TOOL_CHOICE_AUTO,     /* the model decides */
    TOOL_CHOICE_NONE,     /* the tools are not shown to it */
    TOOL_CHOICE_REQUIRED, /* the prompt ends in the beginning of a call (tool_choice.h) */
    TOOL_CHOICE_NAMED,    /* of this function */
};

/* What a prompt is made of; everything borrowed. */
struct chat_request {
    const struct chat_message *messages; /* at least one */
    size_t num_messages;
    const struct chat_tool *tools;
    size_t num_tools;
    enum tool_choice tool_choice;
    const char *tool_name; /* for TOOL_CHOICE_NAMED */
    bool no_thinking;      /* the answer begins behind empty thoughts, where a template has them */
};

/* By name ("chatml", "llama2", ...); NULL when unknown. chat_template_names lists them,
 * comma-separated, for messages. */
const struct chat_template *chat_template_find(const char *name);
const char *chat_template_names(void);
const char *chat_template_name(const struct chat_template *c);

/* Can requests have tools, and messages tool calls and their results? */
bool chat_template_has_tools(const struct chat_template *c);

/* How a model writes its calls. */
enum tool_format {
    TOOL_FORMAT_NONE,
    TOOL_FORMAT_HERMES,  /* <tool_call>{"name": ..., "arguments": ...}</tool_call>, between text */
    TOOL_FORMAT_LLAMA,   /* {"name": ..., "parameters": ...}, as the whole answer */
    TOOL_FORMAT_MISTRAL, /* [TOOL_CALLS] [{"name": ..., "arguments": ...}, ...] */
};
enum tool_format chat_template_tool_format(const struct chat_template *c);

/* The special token that begins a call in this template ("[TOOL_CALLS]"), which decoding leaves out
 * unless request_params.kept_token says otherwise. -1 where calls begin with text, or the tokenizer
 * has no such special token. */
int32_t chat_template_kept_token(const struct chat_template *c, const struct tokenizer *t);

/* Recognises the template of a model folder (chat_template.jinja, or chat_template in
 * tokenizer_config.json); NULL when it has none or none that we know (then *found_unknown says that
 * there was one). */
const struct chat_template *chat_template_recognise(const char *model_dir, bool *found_unknown);
/* The same for the text of a template. */
const struct chat_template *chat_template_recognise_text(const char *jinja);

/* Appends the ids of the conversation, ending where the assistant's answer begins. Unknown roles,
 * what the template does not allow (roles, tools), and an empty list are ERR_INVALID_REQUEST; the
 * message begins with the field ("messages[2].tool_calls[0].arguments: ..."). */
int chat_template_encode(const struct chat_template *c, const struct tokenizer *t,
                         const struct chat_request *request, struct token_list *out,
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
                         const struct chat_request *request, struct chat_prompt *out,
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
