#include "line_job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net/line_answer.h"
#include "net/prompt.h"

static int encode_prompt(struct line_job *job, struct error *e) {
    struct line_request *r = &job->request;
    if (r->params.tokens)
        return 0;
    if (r->messages) {
        const struct chat_request chat = {.messages = r->messages, .num_messages = r->num_messages};
        return prompt_encode_chat(job->dispatch, &chat, &r->params, e);
    }
    return prompt_encode_text(job->dispatch, r->text, r->text_len, &r->params, e);
}

/* Makes the prompt's tokens and checks them: what cannot run takes no memory while it waits. */
static void prepare_prompt(struct line_job *job) {
    struct line_request *r = &job->request;
    struct error e = {0};
    int rc = encode_prompt(job, &e);
    if (rc != 0) {
        field_error_from(&job->error, rc, &e);
        return;
    }
    if ((rc = dispatch_check(job->dispatch, &r->params, &e)) == 0)
        return;
    bool tokens = rc == ERR_CONTEXT_LENGTH || !strncmp(e.text, "token ", 6);
    field_error_set(&job->error, rc, tokens ? r->prompt_field : NULL, "%s", e.text);
    free(r->params.tokens);
    r->params.tokens = NULL;
    r->params.num_tokens = 0;
}

/* Text that spells a special token becomes that token, as in a prompt, but nothing is added: the
 * tokens are those of the text itself, and detokenize gives the text back. */
static int answer_tokens(struct line_job *job, struct error *e) {
    struct line_request *r = &job->request;
    struct token_list list = {0};
    int rc = prompt_tokenize(job->dispatch, "text", r->text, r->text_len, TOKENIZER_PARSE_SPECIAL,
                             &list, e);
    if (rc != 0)
        return rc;
    answer_tokenize(&job->answer, r->id, list.ids, list.len);
    free(list.ids);
    return 0;
}

static int answer_text(struct line_job *job, struct error *e) {
    struct line_request *r = &job->request;
    struct buffer text = {0};
    int rc = prompt_detokenize(job->dispatch, "tokens", r->params.tokens, r->params.num_tokens,
                               &text, e);
    if (rc == 0)
        answer_detokenize(&job->answer, r->id, text.data, text.len);
    buffer_deinit(&text);
    return rc;
}

void line_job_run(struct line_job *job) {
    struct error e = {0};
    int rc = 0;
    if (line_parse(job->line, job->len, job->context, &job->request, &job->error) != 0)
        return;
    if (job->only_auth && job->request.kind != LINE_AUTH)
        return;
    switch (job->request.kind) {
    case LINE_PLAIN:
    case LINE_COMPLETION:
        prepare_prompt(job);
        job->request.params.arrival_us = job->arrival_us;
        break;
    case LINE_TOKENIZE:
        rc = answer_tokens(job, &e);
        break;
    case LINE_DETOKENIZE:
        rc = answer_text(job, &e);
        break;
    case LINE_AUTH: /* kept beyond the document */
        buffer_append(&job->answer, job->request.text, job->request.text_len);
        break;
    default:
        break;
    }
    if (rc != 0)
        field_error_from(&job->error, rc, &e);
    line_request_drop_text(&job->request);
    prompt_trim(job->len);
}

void line_job_deinit(struct line_job *job) {
    line_request_deinit(&job->request);
    buffer_deinit(&job->answer);
}
