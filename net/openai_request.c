#include "openai_request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "net/openai_format.h"
#include "net/openai_messages.h"
#include "net/openai_tools.h"
#include "net/param_fields.h"

#define IN(kind) (1u << (kind))

enum {
    TEXT = IN(OPENAI_COMPLETION),
    CHAT = IN(OPENAI_CHAT),
    ASK = TEXT | CHAT,
    TOKENIZE = IN(OPENAI_TOKENIZE),
    DETOKENIZE = IN(OPENAI_DETOKENIZE),
};

static const char *const kind_names[] = {"a completion", "a chat completion", "tokenize",
                                         "detokenize"};

static const struct openai_context *context_of(const struct field_reader *r) {
    return r->ctx;
}

/* ---- prompts --------------------------------------------------------------------------------- */

static int read_ids(struct field_reader *r, const char *path, json_t *array,
                    struct openai_prompt *out) {
    return param_read_ids(&out->tokens, &out->num_tokens, path, array, context_of(r)->vocab_size,
                          r->error);
}

static int read_one_prompt(struct field_reader *r, const char *path, json_t *value,
                           struct openai_prompt *out) {
    if (json_is_string(value)) {
        out->text = json_string_value(value);
        out->text_len = json_string_length(value);
        return 0;
    }
    if (json_is_array(value) && json_array_size(value) > 0)
        return read_ids(r, path, value, out);
    return field_expected(r->error, path, "a string or an array of token ids");
}

/* A string, token ids, or an array of either. */
static int read_prompt(struct field_reader *r, const struct field *f, json_t *value) {
    struct openai_request *out = r->out;
    json_t *first = json_array_get(value, 0);
    bool many = json_is_array(value) && (json_is_string(first) || json_is_array(first));
    size_t count = many ? json_array_size(value) : 1;
    if (count > OPENAI_MAX_CHOICES) {
        char what[64];
        snprintf(what, sizeof what, "at most %d prompts", OPENAI_MAX_CHOICES);
        return field_expected(r->error, f->name, what);
    }
    out->prompts = xcalloc(count, sizeof *out->prompts);
    out->num_prompts = (int32_t)count;
    for (size_t i = 0; i < count; i++) {
        char path[32];
        snprintf(path, sizeof path, many ? "prompt[%zu]" : "prompt", i);
        int rc =
            read_one_prompt(r, path, many ? json_array_get(value, i) : value, &out->prompts[i]);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* Of detokenize. */
static int read_tokens(struct field_reader *r, const struct field *f, json_t *value) {
    struct openai_request *out = r->out;
    if (!json_is_array(value))
        return field_expected(r->error, f->name, "an array of token ids");
    out->prompts = xcalloc(1, sizeof *out->prompts);
    out->num_prompts = 1;
    return read_ids(r, f->name, value, &out->prompts[0]);
}

static int read_messages(struct field_reader *r, const struct field *f, json_t *value) {
    (void)f;
    return openai_read_messages(r->out, value, r->error);
}

static int read_tools(struct field_reader *r, const struct field *f, json_t *value) {
    (void)f;
    return openai_read_tools(r->out, value, r->error);
}

static int read_response_format(struct field_reader *r, const struct field *f, json_t *value) {
    (void)f;
    return openai_read_response_format(r->out, value, r->error);
}

static int read_logit_bias(struct field_reader *r, const struct field *f, json_t *value) {
    (void)f;
    return openai_read_logit_bias(r->out, value, context_of(r)->vocab_size, r->error);
}

/* ---- fields with a form of their own --------------------------------------------------------- */

static int read_model(struct field_reader *r, const struct field *f, json_t *value) {
    struct openai_request *out = r->out;
    int rc = field_read_string(r, f, value);
    if (rc != 0 || !strcmp(out->model, context_of(r)->model))
        return rc;
    return field_error_set(r->error, ERR_NOT_FOUND, "model",
                           "the model '%.80s' does not exist here; there is '%.80s'", out->model,
                           context_of(r)->model);
}

/* A number for completions; whether at all for a chat, whose number is top_logprobs. */
static int read_logprobs(struct field_reader *r, const struct field *f, json_t *value) {
    struct openai_request *out = r->out;
    if (out->kind == OPENAI_CHAT) {
        static const struct field flag = {
            "logprobs", CHAT, NULL, offsetof(struct openai_request, logprobs), 0, 0, false};
        return field_read_bool(r, &flag, value);
    }
    return field_read_int(r, f, value);
}

/* Reads the members of an object, by a table of their own. */
static int read_members(struct field_reader *r, const struct field *f, json_t *value,
                        const struct field *members, int num_members) {
    struct field_reader inner = *r;
    char path[32];
    if (!json_is_object(value))
        return field_expected(r->error, f->name, "an object");
    snprintf(path, sizeof path, "%s.", f->name);
    inner.table = members;
    inner.num_fields = num_members;
    inner.what = inner.path = path;
    return fields_read(&inner, value);
}

static int read_stream_options(struct field_reader *r, const struct field *f, json_t *value) {
    static const struct field members[] = {
        {"include_usage", ASK, field_read_bool, offsetof(struct openai_request, include_usage), 0,
         0, false},
        {"include_obfuscation", ASK, field_read_nothing, 0, 0, 0, false},
    };
    return read_members(r, f, value, members, sizeof members / sizeof *members);
}

static int read_template_kwargs(struct field_reader *r, const struct field *f, json_t *value) {
    static const struct field members[] = {
        {"enable_thinking", CHAT | TOKENIZE, field_read_bool,
         offsetof(struct openai_request, enable_thinking), 0, 0, false},
    };
    return read_members(r, f, value, members, sizeof members / sizeof *members);
}

static int read_suffix(struct field_reader *r, const struct field *f, json_t *value) {
    if (json_is_string(value) && json_string_length(value) == 0)
        return 0;
    return field_error_set(r->error, ERR_INVALID_REQUEST, f->name,
                           "%s: a text to be continued into is not supported", f->name);
}

/* What an answer consists of: text, which is all there is. */
static int read_modalities(struct field_reader *r, const struct field *f, json_t *value) {
    const char *only = json_string_value(json_array_get(value, 0));
    if (json_array_size(value) == 1 && only && !strcmp(only, "text"))
        return 0;
    return field_expected(r->error, f->name,
                          "[\"text\"]: answers of other kinds are not supported");
}

/* Prompts end where an answer begins. */
static int read_generation_prompt(struct field_reader *r, const struct field *f, json_t *value) {
    if (json_is_true(value))
        return 0;
    return field_expected(r->error, f->name, "true: every prompt ends where an answer begins");
}

/* ---- the table ------------------------------------------------------------------------------- */

#define AT(member) offsetof(struct openai_request, member)

/* clang-format off */
static const struct field table[] = {
    {"model", ASK | TOKENIZE | DETOKENIZE, read_model, AT(model), 0, 0, false},
    {"prompt", TEXT | TOKENIZE, read_prompt, 0, 0, 0, false},
    {"messages", CHAT | TOKENIZE, read_messages, 0, 0, 0, false},
    {"tokens", DETOKENIZE, read_tokens, 0, 0, 0, false},
    {"add_special_tokens", TOKENIZE, field_read_bool, AT(add_special_tokens), 0, 0, false},
    {"add_generation_prompt", TOKENIZE, read_generation_prompt, 0, 0, 0, false},
    {"return_token_strs", TOKENIZE, field_read_bool, AT(return_token_strs), 0, 0, false},
    {"n", ASK, field_read_int, AT(n), 1, OPENAI_MAX_CHOICES, false},
    {"best_of", TEXT, field_read_int, AT(best_of), 1, OPENAI_MAX_CHOICES, false},
    {"max_tokens", ASK, field_read_int, AT(params.max_tokens), 0, INT32_MAX, false},
    {"max_completion_tokens", CHAT, field_read_int, AT(max_completion_tokens), 1, INT32_MAX, false},
    {"top_p", ASK, field_read_float, AT(params.sampling.top_p), 0, 1, false},
    PARAM_FIELDS(ASK, AT(params)),
    {"echo", TEXT, field_read_bool, AT(echo), 0, 0, false},
    {"logprobs", ASK, read_logprobs, AT(params.sampling.logprobs), 0, MAX_LOGPROBS, false},
    {"top_logprobs", CHAT, field_read_int, AT(top_logprobs), 0, MAX_LOGPROBS, false},
    {"logit_bias", ASK, read_logit_bias, 0, 0, 0, false},
    {"response_format", ASK, read_response_format, 0, 0, 0, false},
    {"tools", CHAT | TOKENIZE, read_tools, 0, 0, 0, false},
    {"tool_choice", CHAT, field_read_nothing, 0, 0, 0, false}, /* openai_read_tool_choice */
    {"parallel_tool_calls", CHAT, field_read_bool, AT(parallel_tool_calls), 0, 0, false},
    {"stream", ASK, field_read_bool, AT(stream), 0, 0, false},
    {"stream_options", ASK, read_stream_options, 0, 0, 0, false},
    {"chat_template_kwargs", CHAT | TOKENIZE, read_template_kwargs, 0, 0, 0, false},
    {"suffix", TEXT, read_suffix, 0, 0, 0, false},
    {"modalities", CHAT, read_modalities, 0, 0, 0, false},
    /* These change nothing in an answer. */
    {"user", ASK, field_read_nothing, 0, 0, 0, false},
    {"metadata", ASK, field_read_nothing, 0, 0, 0, false},
    {"store", ASK, field_read_nothing, 0, 0, 0, false},
    {"service_tier", ASK, field_read_nothing, 0, 0, 0, false},
    {"safety_identifier", ASK, field_read_nothing, 0, 0, 0, false},
    {"prompt_cache_key", ASK, field_read_nothing, 0, 0, 0, false},
    {"prompt_cache_retention", ASK, field_read_nothing, 0, 0, 0, false},
};
/* clang-format on */

/* ---- what must hold between fields ----------------------------------------------------------- */

/* No token at all can be asked for only to see the prompt again: then one is made and not shown. */
static int check_max_tokens(struct openai_request *r, struct field_error *error) {
    json_t *given = json_object_get(r->doc, "max_tokens");
    if (r->max_completion_tokens >= 0)
        r->params.max_tokens = r->max_completion_tokens;
    if (!json_is_integer(given) || r->params.max_tokens > 0)
        return 0;
    if (!r->echo)
        return field_expected(error, "max_tokens",
                              r->kind == OPENAI_CHAT ? "at least 1"
                                                     : "at least 1 (0 is possible with echo)");
    if (r->stream)
        return field_error_set(error, ERR_INVALID_REQUEST, "max_tokens",
                               "max_tokens: 0 gives nothing to stream");
    r->no_tokens = true;
    return 0;
}

static int check_logprobs(struct openai_request *r, struct field_error *error) {
    if (r->kind != OPENAI_CHAT) {
        if (r->echo)
            r->params.prompt_logprobs = r->params.sampling.logprobs;
        if (r->stream && r->params.prompt_logprobs >= 0)
            return field_error_set(error, ERR_INVALID_REQUEST, "echo",
                                   "echo: with logprobs it cannot be streamed");
        return 0;
    }
    if (r->top_logprobs > 0 && !r->logprobs)
        return field_error_set(error, ERR_INVALID_REQUEST, "top_logprobs",
                               "top_logprobs: only with \"logprobs\": true");
    r->params.sampling.logprobs = !r->logprobs ? -1 : r->top_logprobs < 0 ? 0 : r->top_logprobs;
    return 0;
}

/* No probability mass at all still leaves the most likely token. */
static void settle_top_p(struct sampling_params *s) {
    if (s->top_p > 0)
        return;
    s->top_p = 1;
    s->top_k = 1;
}

static int check_choices(const struct openai_request *r, struct field_error *error) {
    if (r->best_of >= 0 && r->best_of != r->n)
        return field_error_set(error, ERR_INVALID_REQUEST, "best_of",
                               "best_of: %d is not n (%d): choosing among answers is not supported",
                               r->best_of, r->n);
    if ((int64_t)r->n * r->num_prompts > OPENAI_MAX_CHOICES)
        return field_error_set(error, ERR_INVALID_REQUEST, "n",
                               "n: %d choices for each of %d prompts are more than %d", r->n,
                               r->num_prompts, OPENAI_MAX_CHOICES);
    return 0;
}

static int check_prompts(struct openai_request *r, struct field_error *error) {
    static const char *const names[] = {"prompt", "messages", "prompt or messages", "tokens"};
    if ((r->num_prompts > 0) + (r->messages != NULL) != 1)
        return field_error_set(
            error, ERR_INVALID_REQUEST, names[r->kind], "%s: expected%s", names[r->kind],
            r->kind == OPENAI_TOKENIZE ? " exactly one of them" : ", but missing");
    if (r->kind == OPENAI_TOKENIZE && r->num_prompts && !r->prompts[0].text)
        return field_expected(error, "prompt", "a string");
    if (r->kind == OPENAI_TOKENIZE && r->num_prompts > 1)
        return field_expected(error, "prompt", "one string");
    if (r->messages) { /* one prompt, yet without its tokens */
        r->prompts = xcalloc(1, sizeof *r->prompts);
        r->num_prompts = 1;
    }
    return 0;
}

static int check_whole(struct openai_request *r, struct field_error *error) {
    int rc = check_prompts(r, error);
    if (rc == 0 && r->messages)
        rc = openai_read_tool_choice(r, json_object_get(r->doc, "tool_choice"), error);
    if (rc || r->kind == OPENAI_TOKENIZE || r->kind == OPENAI_DETOKENIZE)
        return rc;
    if ((rc = check_max_tokens(r, error)) || (rc = check_logprobs(r, error)) ||
        (rc = check_choices(r, error)))
        return rc;
    if (r->include_usage && !r->stream)
        return field_error_set(error, ERR_INVALID_REQUEST, "stream_options",
                               "stream_options: only with \"stream\": true");
    if (r->no_tokens)
        r->params.max_tokens = 1;
    settle_top_p(&r->params.sampling);
    return param_check_lengths(&r->params, r->doc, error);
}

/* ---- all of it ------------------------------------------------------------------------------- */

static void set_defaults(struct openai_request *out, enum openai_kind kind,
                         const struct openai_context *context) {
    out->kind = kind;
    param_defaults(&out->params, context->defaults);
    if (kind == OPENAI_CHAT)
        out->params.max_tokens = 0; /* what fits: as the API has it */
    out->params.sampling.logprobs = -1;
    out->params.prompt_logprobs = -1;
    out->n = 1;
    out->best_of = out->top_logprobs = out->max_completion_tokens = -1;
    out->add_special_tokens = out->parallel_tool_calls = out->enable_thinking = true;
}

int openai_parse(enum openai_kind kind, const char *body, size_t len,
                 const struct openai_context *context, struct openai_request *out,
                 struct field_error *error) {
    memset(error, 0, sizeof *error);
    set_defaults(out, kind, context);
    int rc = fields_parse(body, len, &out->doc, error);
    if (rc != 0)
        return rc;
    if (!json_is_object(out->doc))
        return field_error_set(error, ERR_INVALID_REQUEST, NULL,
                               "the body must be a JSON object, with \"%s\"",
                               kind == OPENAI_CHAT         ? "messages"
                               : kind == OPENAI_DETOKENIZE ? "tokens"
                                                           : "prompt");
    struct field_reader r = {
        .table = table,
        .num_fields = sizeof table / sizeof *table,
        .kind = IN(kind),
        .what = kind_names[kind],
        .path = "",
        .out = out,
        .error = error,
        .ctx = (void *)(uintptr_t)context,
    };
    rc = fields_read(&r, out->doc);
    return rc ? rc : check_whole(out, error);
}

void openai_request_drop_text(struct openai_request *r) {
    free(r->messages);
    free(r->calls);
    json_decref(r->doc);
    buffer_deinit(&r->joined);
    for (int32_t i = 0; i < r->num_prompts; i++)
        r->prompts[i].text = NULL;
    r->messages = NULL;
    r->calls = NULL;
    r->num_messages = r->num_calls = 0;
    r->doc = NULL;
    r->model = NULL;
}

void openai_request_deinit(struct openai_request *r) {
    openai_request_drop_text(r);
    for (int32_t i = 0; i < r->num_prompts; i++)
        free(r->prompts[i].tokens);
    free(r->prompts);
    openai_free_tools(r);
    request_params_deinit(&r->params);
    memset(r, 0, sizeof *r);
}
