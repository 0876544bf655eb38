/* openai_request: the body of an OpenAI-compatible request (docs/HTTP.md).
 *
 * Parsing is a pure function of the bytes and the context; it never fails hard, so any bytes from a
 * network may be given. A field that is unknown, or whose meaning is not there, is an error that
 * names it, never ignored; but for those that change nothing in an answer ("user", "metadata").
 * Names and defaults are those of the OpenAI API reference; sampling fields beyond it (top_k,
 * min_p, repetition_penalty, min_tokens, ignore_eos) are vLLM's. null counts as not given.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/chat_template.h"
#include "host/engine.h"
#include "net/fields.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    OPENAI_MAX_CHOICES = 128, /* prompts times n */
    OPENAI_MAX_TOOLS = 128,
    OPENAI_MAX_CALLS = 4096, /* of all messages together */
};

enum openai_kind { OPENAI_COMPLETION, OPENAI_CHAT, OPENAI_TOKENIZE, OPENAI_DETOKENIZE };

/* What parsing needs to know of the server; borrowed, may be shared between threads. */
struct openai_context {
    const struct request_params *defaults; /* values of fields that a request leaves out */
    const char *model;                     /* the only one there is */
    int32_t vocab_size;                    /* token ids are below it */
};

/* Text, or token ids where the client gave them or once it has been encoded. */
struct openai_prompt {
    const char *text; /* borrowed from doc; UTF-8 that may hold NUL */
    size_t text_len;
    int32_t *tokens; /* owned */
    int32_t num_tokens;
};

/* A parsed body. Start it zeroed; openai_request_deinit in any state. */
struct openai_request {
    enum openai_kind kind;
    struct openai_prompt *prompts; /* owned; of a chat one, without text */
    int32_t num_prompts;
    struct chat_message *messages; /* owned array, borrowed strings */
    size_t num_messages;
    struct chat_tool_call *calls; /* of all messages; owned array, borrowed strings */
    size_t num_calls;
    struct chat_tool *tools; /* owned array; live until deinit, as do their strings */
    size_t num_tools;
    json_t *tools_doc; /* owned: what names and descriptions are borrowed from */
    enum tool_choice tool_choice;
    const char *tool_name;         /* of TOOL_CHOICE_NAMED: one of tools */
    bool parallel_tool_calls;      /* false: one call at most */
    struct request_params params;  /* of every choice, without tokens */
    int32_t n;                     /* choices of a prompt */
    int32_t best_of;               /* as given, -1: not */
    int32_t max_completion_tokens; /* as given, -1: not; wins over max_tokens, its old name */
    bool stream, include_usage;
    bool echo;               /* completions: the prompt before the answer */
    bool no_tokens;          /* max_tokens 0, with echo: the prompt alone */
    bool logprobs;           /* chat: wanted; then params.sampling.logprobs is top_logprobs */
    int32_t top_logprobs;    /* chat: as given, -1: not */
    bool enable_thinking;    /* chat_template_kwargs */
    bool add_special_tokens; /* tokenize */
    bool return_token_strs;  /* tokenize */
    struct buffer joined;    /* owned: contents that came in several parts */
    const char *model;       /* as given, borrowed; NULL: not */
    json_t *doc;             /* owned */
};

void openai_request_deinit(struct openai_request *r);
/* Frees the document: texts and messages are gone, the rest stays, tools too. */
void openai_request_drop_text(struct openai_request *r);

/* Parses a body. ERR_NOT_FOUND where it asks for another model. Returns 0, or error->code. */
int openai_parse(enum openai_kind kind, const char *body, size_t len,
                 const struct openai_context *context, struct openai_request *out,
                 struct field_error *error);

#ifdef __cplusplus
}
#endif
