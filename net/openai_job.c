#include "openai_job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "net/json_out.h"
#include "net/openai_format.h"
#include "net/prompt.h"

static void refuse(struct openai_job *job, int code, const struct error *e) {
    field_error_from(&job->error, code, e);
    if (!*job->error.param && code == ERR_CONTEXT_LENGTH)
        snprintf(job->error.param, sizeof job->error.param, "%s",
                 job->kind == OPENAI_CHAT ? "messages" : "prompt");
}

/* ---- prompts --------------------------------------------------------------------------------- */

/* What an answer with "echo" begins with. */
static int make_echo(struct openai_job *job, int32_t index, struct error *e) {
    const struct openai_prompt *p = &job->request.prompts[index];
    struct buffer *out = &job->echoes[index];
    if (p->text) {
        buffer_append(out, p->text, p->text_len);
        return 0;
    }
    return prompt_detokenize(job->dispatch, "prompt", p->tokens, p->num_tokens, out, e);
}

/* The tokens of a prompt; a template's stop strings become the request's. */
static int encode(struct openai_job *job, struct openai_prompt *p, struct error *e) {
    struct openai_request *r = &job->request;
    int rc = 0;
    if (p->tokens)
        return 0;
    if (r->messages) {
        const struct chat_request chat = {
            .messages = r->messages,
            .num_messages = r->num_messages,
            .tools = r->tools,
            .num_tools = r->num_tools,
            .tool_choice = r->tool_choice,
            .tool_name = r->tool_name,
            .no_thinking = !r->enable_thinking,
        };
        bool forced = r->tool_choice == TOOL_CHOICE_REQUIRED || r->tool_choice == TOOL_CHOICE_NAMED;
        rc = prompt_encode_chat(job->dispatch, &chat, &r->params, e);
        if (rc == 0 && forced)
            rc = openai_force_call(r, dispatch_chat_template(job->dispatch), &chat, e);
    } else {
        rc = prompt_encode_text(job->dispatch, p->text, p->text_len, &r->params, e);
    }
    p->tokens = r->params.tokens;
    p->num_tokens = r->params.num_tokens;
    r->params.tokens = NULL;
    r->params.num_tokens = 0;
    return rc;
}

/* Would the engine take it? What cannot run takes no memory while it waits. */
static int check(struct openai_job *job, const struct openai_prompt *p, struct error *e) {
    struct request_params params = job->request.params;
    params.tokens = p->tokens;
    params.num_tokens = p->num_tokens;
    return dispatch_check(job->dispatch, &params, e);
}

/* The prompts as a whole: what can never be queued is not told to come again, and the prompts'
 * logprobs, which every answer repeats, keep to a bound. */
static int check_together(const struct openai_job *job, struct error *e) {
    const struct openai_request *r = &job->request;
    int64_t tokens = 0, each = r->params.prompt_logprobs + 1;
    int32_t longest = 0;
    for (int32_t i = 0; i < r->num_prompts; i++) {
        tokens += r->prompts[i].num_tokens;
        longest = r->prompts[i].num_tokens > longest ? r->prompts[i].num_tokens : longest;
    }
    if (tokens * r->n * each > OPENAI_MAX_ECHOED_LOGPROBS)
        return error_set(e, ERR_INVALID_REQUEST,
                         "echo: %d answers to prompts of %lld tokens, with %lld logprobs for each "
                         "token, are more than %d in all: ask for fewer at once",
                         r->n, (long long)tokens, (long long)each, OPENAI_MAX_ECHOED_LOGPROBS);
    int rc =
        dispatch_check_together(job->dispatch, r->n * r->num_prompts, tokens * r->n, longest, e);
    if (rc != 0) {
        char text[400];
        snprintf(text, sizeof text, "%.399s", e->text);
        error_set(e, rc, "%s: %s", r->n > 1 ? "n" : "prompt", text);
    }
    return rc;
}

static void prepare_prompts(struct openai_job *job) {
    struct openai_request *r = &job->request;
    struct error e = {0};
    if (r->echo)
        job->echoes = xcalloc((size_t)r->num_prompts, sizeof *job->echoes);
    for (int32_t i = 0; i < r->num_prompts; i++) {
        struct openai_prompt *p = &r->prompts[i];
        int rc = encode(job, p, &e);
        if (rc == 0)
            rc = check(job, p, &e);
        if (rc == 0 && r->echo)
            rc = make_echo(job, i, &e);
        if (rc != 0) {
            refuse(job, rc, &e);
            return;
        }
    }
    int rc = check_together(job, &e);
    if (rc != 0)
        refuse(job, rc, &e);
}

/* ---- tokenize and detokenize ----------------------------------------------------------------- */

/* {"count":...,"max_model_len":...,"tokens":[...],"token_strs":[...]} */
static void put_tokens(struct openai_job *job, const int32_t *tokens, int32_t num_tokens) {
    struct buffer *out = &job->answer, bytes = {0};
    buffer_printf(out, "{\"count\":%d,\"max_model_len\":%d,\"tokens\":[", num_tokens,
                  job->max_model_len);
    for (int32_t i = 0; i < num_tokens; i++) {
        if (i)
            buffer_putc(out, ',');
        json_out_int(out, tokens[i]);
    }
    buffer_puts(out, job->request.return_token_strs ? "],\"token_strs\":[" : "]}");
    for (int32_t i = 0; job->request.return_token_strs && i < num_tokens; i++) {
        if (i)
            buffer_putc(out, ',');
        buffer_clear(&bytes);
        tokenizer_token_bytes(dispatch_tokenizer(job->dispatch), tokens[i], &bytes);
        json_out_spelled(out, bytes.data, bytes.len);
    }
    if (job->request.return_token_strs)
        buffer_puts(out, "]}");
    buffer_deinit(&bytes);
}

static int tokenize(struct openai_job *job, struct error *e) {
    struct openai_request *r = &job->request;
    struct openai_prompt *p = &r->prompts[0];
    struct token_list list = {0};
    unsigned flags = TOKENIZER_PARSE_SPECIAL | (r->add_special_tokens ? TOKENIZER_ADD_SPECIAL : 0);
    int rc;
    if (r->messages) {
        rc = encode(job, p, e);
    } else {
        rc = prompt_tokenize(job->dispatch, "prompt", p->text, p->text_len, flags, &list, e);
        p->tokens = list.ids;
        p->num_tokens = (int32_t)list.len;
    }
    if (rc == 0)
        put_tokens(job, p->tokens, p->num_tokens);
    return rc;
}

static int detokenize(struct openai_job *job, struct error *e) {
    const struct openai_prompt *p = &job->request.prompts[0];
    struct buffer text = {0};
    int rc = prompt_detokenize(job->dispatch, "tokens", p->tokens, p->num_tokens, &text, e);
    if (rc == 0) {
        buffer_puts(&job->answer, "{\"prompt\":");
        json_out_text(&job->answer, text.data, text.len);
        buffer_putc(&job->answer, '}');
    }
    buffer_deinit(&text);
    return rc;
}

/* ---- all of it ------------------------------------------------------------------------------- */

/* Compiling a schema may take fifty times as long as the rest, however short it is. Names may be
 * written with escapes, of which one for a letter begins with \u006 or \u007. */
bool openai_job_is_short(const struct openai_job *job) {
    static const char *const words[] = {"schema", "tools", "\\u006", "\\u007"};
    if (job->body.len > PROMPT_INLINE_BYTES)
        return false;
    if (job->body.len == 0)
        return true;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (memmem(job->body.data, job->body.len, words[i], strlen(words[i])))
            return false;
    return true;
}

void openai_job_run(struct openai_job *job) {
    struct error e = {0};
    int rc = 0;
    size_t len = job->body.len;
    if (openai_parse(job->kind, job->body.data, len, job->context, &job->request, &job->error) ==
        0) {
        if (job->kind == OPENAI_TOKENIZE)
            rc = tokenize(job, &e);
        else if (job->kind == OPENAI_DETOKENIZE)
            rc = detokenize(job, &e);
        else
            prepare_prompts(job);
    }
    if (rc != 0)
        refuse(job, rc, &e);
    openai_request_drop_text(&job->request);
    buffer_deinit(&job->body);
    prompt_trim(len);
}

void openai_job_deinit(struct openai_job *job) {
    for (int32_t i = 0; job->echoes && i < job->request.num_prompts; i++)
        buffer_deinit(&job->echoes[i]);
    free(job->echoes);
    openai_request_deinit(&job->request);
    buffer_deinit(&job->body);
    buffer_deinit(&job->answer);
}
