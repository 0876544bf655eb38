#include "openai_choice.h"

#include <string.h>

#include "net/json_out.h"

int32_t openai_choice_prompt(const struct openai_choice *c) {
    return c->index / c->form->request->n;
}

static bool usage_later(const struct openai_choice *c) {
    return c->form->request->include_usage;
}
static bool has_tools(const struct openai_choice *c) {
    return c->form->tool_format != TOOL_FORMAT_NONE;
}

/* ---- content and calls ----------------------------------------------------------------------- */

static void stream_content(struct openai_choice *c, const char *text, size_t len,
                           const struct openai_logprobs *logprobs) {
    openai_chunk_text(c->out, &c->form->head, c->index, text, len, logprobs, usage_later(c));
}

/* Writes the arguments of the last call, now that they are complete, as a JSON string. */
static void close_call(struct openai_choice *c) {
    if (!c->in_call)
        return;
    json_out_text(&c->calls, c->arguments.data, c->arguments.len);
    buffer_puts(&c->calls, "}}");
    buffer_clear(&c->arguments);
    c->in_call = false;
}

static void open_call(struct openai_choice *c, const struct tool_event *e) {
    close_call(c);
    if (c->calls.len)
        buffer_putc(&c->calls, ',');
    buffer_printf(&c->calls, "{\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":", e->id);
    json_out_text(&c->calls, e->name, strlen(e->name));
    buffer_puts(&c->calls, ",\"arguments\":");
    c->in_call = true;
}

/* Where only one call is wanted, those behind it are left out. */
static bool is_wanted(const struct openai_choice *c, const struct tool_event *e) {
    return c->form->request->parallel_tool_calls || e->index == 0;
}

static void on_stream(void *ctx, const struct tool_event *e) {
    struct openai_choice *c = ctx;
    const struct openai_head *head = &c->form->head;
    if (e->kind == TOOL_EVENT_CONTENT)
        stream_content(c, e->text, e->text_len, NULL);
    else if (!is_wanted(c, e))
        return;
    else if (e->kind == TOOL_EVENT_CALL)
        openai_chunk_call(c->out, head, c->index, e->index, e->id, e->name, usage_later(c));
    else
        openai_chunk_arguments(c->out, head, c->index, e->index, e->text, e->text_len,
                               usage_later(c));
}

static void on_whole(void *ctx, const struct tool_event *e) {
    struct openai_choice *c = ctx;
    if (e->kind == TOOL_EVENT_CONTENT)
        buffer_append(&c->text, e->text, e->text_len);
    else if (!is_wanted(c, e))
        return;
    else if (e->kind == TOOL_EVENT_CALL)
        open_call(c, e);
    else
        buffer_append(&c->arguments, e->text, e->text_len);
}

static void set_finish_reason(struct openai_choice *c, const struct engine_event *e) {
    bool called = has_tools(c) && tool_calls_count(&c->parser) > 0;
    enum finish_reason reason = e->finish_reason;
    if (c->form->request->no_tokens && reason == FINISH_STOP)
        reason = FINISH_LENGTH; /* the end is that of no tokens, not of the one that is not shown */
    c->finish_reason = called && reason == FINISH_STOP ? "tool_calls" : finish_reason_name(reason);
}

/* ---- life ------------------------------------------------------------------------------------ */

void openai_choice_init(struct openai_choice *c, const struct openai_form *form, int32_t index) {
    const struct openai_request *r = form->request;
    c->form = form;
    c->index = index;
    if (form->echoes)
        c->logprobs.offset = openai_text_characters(&form->echoes[openai_choice_prompt(c)]);
    if (has_tools(c)) {
        const struct tool_calls_options options = {
            .format = form->tool_format,
            .opened = r->tool_choice == TOOL_CHOICE_REQUIRED || r->tool_choice == TOOL_CHOICE_NAMED,
            .whole = !r->stream,
            .seed = form->seed + (uint64_t)index * TOOL_CALLS_MAX,
            .tools = r->tools,
            .num_tools = r->num_tools,
            .on_event = r->stream ? on_stream : on_whole,
            .ctx = c,
        };
        tool_calls_init(&c->parser, &options);
    }
}

void openai_choice_deinit(struct openai_choice *c) {
    if (c->form && has_tools(c))
        tool_calls_deinit(&c->parser);
    buffer_deinit(&c->text);
    buffer_deinit(&c->calls);
    buffer_deinit(&c->arguments);
    openai_logprobs_deinit(&c->logprobs);
    openai_logprobs_deinit(&c->prompt_logprobs);
}

/* ---- streams --------------------------------------------------------------------------------- */

/* What comes before the first token: the role, or the prompt that was asked for. */
static void begin(struct openai_choice *c) {
    const struct buffer *echo = c->form->echoes ? &c->form->echoes[openai_choice_prompt(c)] : NULL;
    c->begun = true;
    if (c->form->head.chat)
        openai_chunk_role(c->out, &c->form->head, c->index, usage_later(c));
    else if (echo)
        stream_content(c, echo->data, echo->len, NULL);
}

static void stream_text(struct openai_choice *c, const struct engine_event *e) {
    const struct openai_logprobs *logprobs = NULL;
    if (e->has_logprobs) {
        openai_logprobs_clear(&c->logprobs);
        openai_logprobs_add(&c->logprobs, &c->form->head, e->token, &e->logprobs);
        logprobs = &c->logprobs;
    }
    if (has_tools(c)) {
        if (logprobs) /* they belong to tokens, not to what those turn out to be */
            stream_content(c, "", 0, logprobs);
        tool_calls_push(&c->parser, e->text, e->text_len);
    } else if (e->text_len || logprobs) {
        stream_content(c, e->text, e->text_len, logprobs);
    }
}

void openai_choice_stream(struct openai_choice *c, const struct engine_event *e,
                          struct buffer *out) {
    c->out = out;
    if (!c->begun)
        begin(c);
    stream_text(c, e);
    if (e->kind == EVENT_DONE) {
        if (has_tools(c))
            tool_calls_finish(&c->parser);
        set_finish_reason(c, e);
        openai_chunk_end(out, &c->form->head, c->index, c->finish_reason, usage_later(c));
    }
    c->out = NULL;
}

/* ---- whole answers --------------------------------------------------------------------------- */

/* Puts the prompt before what was generated. */
static void put_echo(struct openai_choice *c, const struct engine_event *e) {
    const struct buffer *echo = &c->form->echoes[openai_choice_prompt(c)];
    struct openai_logprobs *l = &c->prompt_logprobs;
    struct buffer text = {0};
    buffer_append(&text, echo->data, echo->len);
    buffer_append(&text, c->text.data, c->text.len);
    buffer_deinit(&c->text);
    c->text = text;
    if (!e->prompt_logprobs)
        return;
    /* What encoding adds (a bos token, a space) stands at the front of the tokens. */
    int64_t of_tokens =
        openai_num_characters(&c->form->head, e->prompt_logprob_tokens, e->num_prompt_logprobs);
    int64_t of_text = openai_text_characters(echo);
    l->offset = of_text < of_tokens ? of_text - of_tokens : 0;
    l->of_prompt = true;
    for (int32_t i = 0; i < e->num_prompt_logprobs; i++)
        openai_logprobs_add(l, &c->form->head, e->prompt_logprob_tokens[i],
                            i ? &e->prompt_logprobs[i] : NULL);
}

void openai_choice_collect(struct openai_choice *c, const struct engine_event *e) {
    bool shown = !c->form->request->no_tokens;
    if (shown && has_tools(c))
        tool_calls_push(&c->parser, e->text, e->text_len);
    else if (shown)
        buffer_append(&c->text, e->text, e->text_len);
    if (shown && e->has_logprobs)
        openai_logprobs_add(&c->logprobs, &c->form->head, e->token, &e->logprobs);
    if (e->kind != EVENT_DONE)
        return;
    if (has_tools(c))
        tool_calls_finish(&c->parser);
    close_call(c);
    if (c->form->echoes)
        put_echo(c, e);
    set_finish_reason(c, e);
}

void openai_choice_put(const struct openai_choice *c, const struct openai_choice *first,
                       struct buffer *out) {
    struct openai_logprobs all = {0};
    bool logprobs = c->form->request->params.sampling.logprobs >= 0;
    openai_logprobs_join(&all, &first->prompt_logprobs);
    openai_logprobs_join(&all, &c->logprobs);
    openai_put_choice(out, &c->form->head, c->index, &c->text, &c->calls, logprobs ? &all : NULL,
                      c->finish_reason);
    openai_logprobs_deinit(&all);
}
