#include "openai_answer.h"

#include <string.h>

#include "net/json_out.h"

/* ---- tokens as text -------------------------------------------------------------------------- */

static void token_bytes(struct buffer *out, const struct openai_head *head, int32_t token) {
    if (head->tokenizer)
        tokenizer_token_bytes(head->tokenizer, token, out);
    else
        buffer_printf(out, "token_id:%d", token);
}

int64_t openai_text_characters(const struct buffer *bytes) {
    int64_t n = 0;
    for (size_t i = 0; i < bytes->len; i++)
        n += ((unsigned char)bytes->data[i] & 0xc0) != 0x80;
    return n;
}

/* ---- logprobs -------------------------------------------------------------------------------- */

void openai_logprobs_deinit(struct openai_logprobs *l) {
    buffer_deinit(&l->tokens);
    buffer_deinit(&l->values);
    buffer_deinit(&l->top);
    buffer_deinit(&l->offsets);
}

void openai_logprobs_clear(struct openai_logprobs *l) {
    buffer_clear(&l->tokens);
    buffer_clear(&l->values);
    buffer_clear(&l->top);
    buffer_clear(&l->offsets);
}

/* "token":"...","logprob":-0.1,"bytes":[...] */
static void put_entry(struct buffer *out, const struct openai_head *head, int32_t token,
                      float logprob) {
    struct buffer bytes = {0};
    token_bytes(&bytes, head, token);
    buffer_puts(out, "\"token\":");
    json_out_text(out, bytes.data, bytes.len);
    buffer_puts(out, ",\"logprob\":");
    json_out_logprob(out, logprob);
    buffer_puts(out, ",\"bytes\":[");
    for (size_t i = 0; i < bytes.len; i++)
        buffer_printf(out, i ? ",%d" : "%d", (unsigned char)bytes.data[i]);
    buffer_putc(out, ']');
    buffer_deinit(&bytes);
}

static void add_chat(struct openai_logprobs *l, const struct openai_head *head, int32_t token,
                     const struct token_logprobs *p) {
    struct buffer *out = &l->tokens;
    buffer_puts(out, out->len ? ",{" : "{");
    put_entry(out, head, token, p->logprob);
    buffer_puts(out, ",\"top_logprobs\":[");
    for (int32_t i = 0; i < p->num_top; i++) {
        buffer_puts(out, i ? ",{" : "{");
        put_entry(out, head, p->top[i].token, p->top[i].logprob);
        buffer_putc(out, '}');
    }
    buffer_puts(out, "]}");
}

/* Members of an object that is keyed by the texts of tokens. */
struct top_names {
    struct buffer *out;
    const struct openai_head *head;
    struct buffer seen, bytes, name;
};

/* Of tokens with the same text the first stands for all: there are no two members of one name. */
static void put_top_token(struct top_names *n, int32_t token, float logprob) {
    buffer_clear(&n->bytes);
    buffer_clear(&n->name);
    token_bytes(&n->bytes, n->head, token);
    buffer_putc(&n->name, '\n'); /* which no literal holds */
    json_out_spelled(&n->name, n->bytes.data, n->bytes.len);
    buffer_putc(&n->name, '\n');
    if (n->seen.len && memmem(n->seen.data, n->seen.len, n->name.data, n->name.len))
        return;
    if (n->seen.len)
        buffer_putc(n->out, ',');
    buffer_append(&n->seen, n->name.data, n->name.len);
    buffer_append(n->out, n->name.data + 1, n->name.len - 2);
    buffer_putc(n->out, ':');
    json_out_logprob(n->out, logprob);
}

/* The top logprobs, most likely first, and the token itself where it is not among them: programs
 * look it up by its name. */
static void put_top(struct buffer *out, const struct openai_head *head, int32_t token,
                    const struct token_logprobs *p) {
    struct top_names names = {.out = out, .head = head};
    buffer_putc(out, '{');
    for (int32_t i = 0; i < p->num_top; i++)
        put_top_token(&names, p->top[i].token, p->top[i].logprob);
    put_top_token(&names, token, p->logprob);
    buffer_putc(out, '}');
    buffer_deinit(&names.seen);
    buffer_deinit(&names.bytes);
    buffer_deinit(&names.name);
}

static void add_completion(struct openai_logprobs *l, const struct openai_head *head, int32_t token,
                           const struct token_logprobs *p) {
    struct buffer bytes = {0}, *all[] = {&l->tokens, &l->values, &l->top, &l->offsets};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]->len)
            buffer_putc(all[i], ',');
    token_bytes(&bytes, head, token);
    json_out_spelled(&l->tokens, bytes.data, bytes.len);
    json_out_int(&l->offsets, l->offset > 0 ? l->offset : 0);
    if (l->of_prompt || !head->tokenizer || !tokenizer_is_special(head->tokenizer, token))
        l->offset += openai_text_characters(&bytes);
    buffer_deinit(&bytes);
    if (!p) {
        buffer_puts(&l->values, "null");
        buffer_puts(&l->top, "null");
        return;
    }
    json_out_logprob(&l->values, p->logprob);
    put_top(&l->top, head, token, p);
}

void openai_logprobs_add(struct openai_logprobs *l, const struct openai_head *head, int32_t token,
                         const struct token_logprobs *p) {
    if (!head->chat)
        add_completion(l, head, token, p);
    else if (p)
        add_chat(l, head, token, p);
}

static void join(struct buffer *a, const struct buffer *b) {
    if (a->len && b->len)
        buffer_putc(a, ',');
    buffer_append(a, b->data, b->len);
}

void openai_logprobs_join(struct openai_logprobs *a, const struct openai_logprobs *b) {
    join(&a->tokens, &b->tokens);
    join(&a->values, &b->values);
    join(&a->top, &b->top);
    join(&a->offsets, &b->offsets);
}

int64_t openai_num_characters(const struct openai_head *head, const int32_t *tokens, int32_t n) {
    struct buffer bytes = {0};
    int64_t count = 0;
    for (int32_t i = 0; i < n; i++) {
        buffer_clear(&bytes);
        token_bytes(&bytes, head, tokens[i]);
        count += openai_text_characters(&bytes);
    }
    buffer_deinit(&bytes);
    return count;
}

static void put_buffer(struct buffer *out, const char *before, const struct buffer *b) {
    buffer_puts(out, before);
    buffer_append(out, b->data, b->len);
}

/* ,"logprobs":... */
static void put_logprobs(struct buffer *out, const struct openai_head *head,
                         const struct openai_logprobs *l) {
    buffer_puts(out, ",\"logprobs\":");
    if (!l) {
        buffer_puts(out, "null");
    } else if (head->chat) {
        put_buffer(out, "{\"content\":[", &l->tokens);
        buffer_puts(out, "],\"refusal\":null}");
    } else {
        put_buffer(out, "{\"tokens\":[", &l->tokens);
        put_buffer(out, "],\"token_logprobs\":[", &l->values);
        put_buffer(out, "],\"top_logprobs\":[", &l->top);
        put_buffer(out, "],\"text_offset\":[", &l->offsets);
        buffer_puts(out, "]}");
    }
}

/* ---- whole answers --------------------------------------------------------------------------- */

static void put_head(struct buffer *out, const struct openai_head *head, const char *object) {
    buffer_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", head->id,
                  object, (long long)head->created);
    json_out_text(out, head->model, strlen(head->model));
    buffer_puts(out, ",\"choices\":[");
}

void openai_begin(struct buffer *out, const struct openai_head *head) {
    put_head(out, head, head->chat ? "chat.completion" : "text_completion");
}

static void put_finish_reason(struct buffer *out, const char *reason) {
    if (reason)
        buffer_printf(out, ",\"finish_reason\":\"%s\"}", reason);
    else
        buffer_puts(out, ",\"finish_reason\":null}");
}

/* {"role":"assistant","content":"...","refusal":null,"tool_calls":[...]}: content is null beside
 * calls alone. */
static void put_message(struct buffer *out, const struct buffer *text, const struct buffer *calls) {
    buffer_puts(out, "\"message\":{\"role\":\"assistant\",\"content\":");
    if (text->len == 0 && calls->len)
        buffer_puts(out, "null");
    else
        json_out_text(out, text->data, text->len);
    buffer_puts(out, ",\"refusal\":null");
    if (calls->len) {
        put_buffer(out, ",\"tool_calls\":[", calls);
        buffer_putc(out, ']');
    }
    buffer_putc(out, '}');
}

void openai_put_choice(struct buffer *out, const struct openai_head *head, int32_t index,
                       const struct buffer *text, const struct buffer *calls,
                       const struct openai_logprobs *logprobs, const char *finish_reason) {
    if (out->data[out->len - 1] != '[')
        buffer_putc(out, ',');
    buffer_printf(out, "{\"index\":%d,", index);
    if (head->chat) {
        put_message(out, text, calls);
    } else {
        buffer_puts(out, "\"text\":");
        json_out_text(out, text->data, text->len);
    }
    put_logprobs(out, head, logprobs);
    put_finish_reason(out, finish_reason);
}

static void put_usage(struct buffer *out, const struct openai_usage *u) {
    buffer_printf(out,
                  "\"usage\":{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,"
                  "\"total_tokens\":%lld,\"prompt_tokens_details\":{\"cached_tokens\":%lld}}",
                  (long long)u->prompt_tokens, (long long)u->completion_tokens,
                  (long long)(u->prompt_tokens + u->completion_tokens),
                  (long long)u->cached_tokens);
}

void openai_end(struct buffer *out, const struct openai_usage *usage) {
    buffer_puts(out, "],");
    put_usage(out, usage);
    buffer_putc(out, '}');
}

/* ---- chunks ---------------------------------------------------------------------------------- */

static void begin_chunk(struct buffer *out, const struct openai_head *head) {
    buffer_puts(out, "data: ");
    put_head(out, head, head->chat ? "chat.completion.chunk" : "text_completion");
}

static void end_chunk(struct buffer *out, bool usage_later) {
    buffer_puts(out, usage_later ? "],\"usage\":null}\n\n" : "]}\n\n");
}

void openai_chunk_role(struct buffer *out, const struct openai_head *head, int32_t index,
                       bool usage_later) {
    begin_chunk(out, head);
    buffer_printf(out,
                  "{\"index\":%d,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                  "\"logprobs\":null,\"finish_reason\":null}",
                  index);
    end_chunk(out, usage_later);
}

void openai_chunk_text(struct buffer *out, const struct openai_head *head, int32_t index,
                       const char *text, size_t len, const struct openai_logprobs *logprobs,
                       bool usage_later) {
    begin_chunk(out, head);
    buffer_printf(out, "{\"index\":%d,", index);
    buffer_puts(out, head->chat ? "\"delta\":{\"content\":" : "\"text\":");
    json_out_text(out, text, len);
    if (head->chat)
        buffer_putc(out, '}');
    put_logprobs(out, head, logprobs);
    put_finish_reason(out, NULL);
    end_chunk(out, usage_later);
}

/* {"index":0,"delta":{"tool_calls":[{"index":1, */
static void begin_call(struct buffer *out, const struct openai_head *head, int32_t index,
                       int32_t call) {
    begin_chunk(out, head);
    buffer_printf(out, "{\"index\":%d,\"delta\":{\"tool_calls\":[{\"index\":%d,", index, call);
}

static void end_call(struct buffer *out, const struct openai_head *head, bool usage_later) {
    buffer_puts(out, "}}]}");
    put_logprobs(out, head, NULL);
    put_finish_reason(out, NULL);
    end_chunk(out, usage_later);
}

void openai_chunk_call(struct buffer *out, const struct openai_head *head, int32_t index,
                       int32_t call, const char *id, const char *name, bool usage_later) {
    begin_call(out, head, index, call);
    buffer_printf(out, "\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":", id);
    json_out_text(out, name, strlen(name));
    buffer_puts(out, ",\"arguments\":\"\"");
    end_call(out, head, usage_later);
}

void openai_chunk_arguments(struct buffer *out, const struct openai_head *head, int32_t index,
                            int32_t call, const char *text, size_t len, bool usage_later) {
    begin_call(out, head, index, call);
    buffer_puts(out, "\"function\":{\"arguments\":");
    json_out_text(out, text, len);
    end_call(out, head, usage_later);
}

void openai_chunk_end(struct buffer *out, const struct openai_head *head, int32_t index,
                      const char *finish_reason, bool usage_later) {
    begin_chunk(out, head);
    buffer_printf(out, "{\"index\":%d,", index);
    buffer_puts(out, head->chat ? "\"delta\":{}" : "\"text\":\"\"");
    put_logprobs(out, head, NULL);
    put_finish_reason(out, finish_reason);
    end_chunk(out, usage_later);
}

void openai_chunk_usage(struct buffer *out, const struct openai_head *head,
                        const struct openai_usage *usage) {
    begin_chunk(out, head);
    buffer_puts(out, "],");
    put_usage(out, usage);
    buffer_puts(out, "}\n\n");
}

void openai_chunk_error(struct buffer *out, const struct buffer *envelope) {
    put_buffer(out, "data: ", envelope);
    buffer_puts(out, "\n\n");
}

void openai_chunk_done(struct buffer *out) {
    buffer_puts(out, "data: [DONE]\n\n");
}
