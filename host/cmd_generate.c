/* moeserve generate: one prompt, its text on standard output as it comes, no server. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/cmd.h"
#include "host/dispatch.h"
#include "host/log.h"
#include "host/options.h"
#include "net/prompt.h"

enum { MAX_PROMPT_BYTES = 64 << 20, WAIT_MS = 1000 };

/* What the drain callback keeps. */
struct generation {
    bool ended;
    int code;           /* of an error */
    bool broken_output; /* standard output takes no more */
    struct error *error;
};

static int read_stdin(struct buffer *out, struct error *e) {
    size_t n;
    if (isatty(STDIN_FILENO))
        return error_set(e, ERR_CONFIG,
                         "no prompt: give it with -p TEXT or through standard input");
    do {
        buffer_reserve(out, 1 << 16);
        n = fread(out->data + out->len, 1, 1 << 16, stdin);
        out->len += n;
    } while (n > 0 && out->len <= MAX_PROMPT_BYTES);
    if (out->len > MAX_PROMPT_BYTES)
        return error_set(e, ERR_CONFIG, "the prompt on standard input is longer than %d bytes",
                         MAX_PROMPT_BYTES);
    /* The newline with which echo and editors end a file is not meant as part of the prompt. */
    if (out->len && out->data[out->len - 1] == '\n')
        out->len--;
    return 0;
}

static void log_summary(const struct engine_event *e) {
    double decode_ms = e->total_ms - e->ttft_ms;
    double rate = e->completion_tokens > 1 && decode_ms > 0
                      ? (e->completion_tokens - 1) * 1000.0 / decode_ms
                      : 0;
    log_info("%d prompt tokens, %d generated (%s), first after %.1f ms, all after %.1f ms, "
             "%.1f tok/s",
             e->prompt_tokens, e->completion_tokens, finish_reason_name(e->finish_reason),
             e->ttft_ms, e->total_ms, rate);
}

static void on_event(void *ctx, const struct engine_event *e) {
    struct generation *g = ctx;
    if (e->kind != EVENT_ERROR && e->text_len &&
        (fwrite(e->text, 1, e->text_len, stdout) < e->text_len || fflush(stdout) != 0))
        g->broken_output = true;
    if (e->kind == EVENT_TOKEN)
        return;
    g->ended = true;
    if (e->kind == EVENT_ERROR) {
        g->code = error_set(g->error, e->error_code, "%s",
                            e->error_text ? e->error_text : error_text(e->error_code));
        return;
    }
    if (putchar('\n') == EOF || fflush(stdout) != 0)
        g->broken_output = true;
    log_summary(e);
}

static int encode(struct options *o, struct dispatch *dispatch, const char *text, size_t len,
                  struct error *e) {
    if (!o->chat)
        return prompt_encode_text(dispatch, text, len, &o->generation, e);
    struct chat_message message = {.role = "user", .content = text, .content_len = len};
    const struct chat_request chat = {.messages = &message, .num_messages = 1};
    return prompt_encode_chat(dispatch, &chat, &o->generation, e);
}

/* What there is to do. */
struct task {
    struct options *options;
    struct buffer text;
};

static int generate(void *task, struct error *e) {
    struct task *t = task;
    struct options *o = t->options;
    struct dispatch *dispatch = NULL;
    struct generation g = {.error = e};
    uint64_t handle;
    o->engine.replicas = 1; /* one prompt, all the machine for it */
    int rc = dispatch_create(&o->engine, NULL, NULL, &dispatch, e);
    if (rc == 0)
        rc = encode(o, dispatch, t->text.data, t->text.len, e);
    if (rc == 0) {
        rc = dispatch_submit(dispatch, &o->generation, NULL, &handle, e);
        memset(&o->generation, 0, sizeof o->generation); /* the engine's now */
    }
    while (rc == 0 && !g.ended && !g.broken_output) {
        dispatch_wait(dispatch, WAIT_MS);
        dispatch_drain(dispatch, on_event, &g);
    }
    dispatch_destroy(dispatch);
    request_params_deinit(&o->generation);
    if (rc == 0 && g.broken_output)
        return error_set(e, ERR_IO, "standard output takes no more text");
    return rc != 0 ? rc : g.code;
}

int cmd_generate(int argc, char **argv) {
    struct options o;
    struct error e = {0};
    struct task task = {.options = &o};
    int status;
    if (cmd_start(&o, CMD_GENERATE, argc, argv, "generate [-p TEXT] [OPTION ...]", &status)) {
        int rc = 0;
        if (o.prompt)
            buffer_puts(&task.text, o.prompt);
        else
            rc = read_stdin(&task.text, &e);
        if (rc == 0) {
            o.engine.progress = isatty(STDERR_FILENO) && log_get_level() >= LOG_INFO &&
                                log_get_format() == LOG_TEXT;
            o.generation.has_seed = o.seed_given;
            o.generation.sampling.seed = o.engine.seed;
            rc = cmd_in_group(&o, generate, &task, &e);
        }
        status = rc == 0 ? 0 : cmd_fail(&e);
    }
    buffer_deinit(&task.text);
    options_deinit(&o);
    return status;
}
