#include "host/engine_request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/error.h"
#include "host/grammar.h"
#include "host/mem.h"

/* Enough of the end of a prompt to hold a token with text before trailing special tokens. */
enum { DETOK_CONTEXT = 8 };

void request_params_default(struct request_params *p) {
    *p = (struct request_params){
        .max_tokens = 256,
        .prompt_logprobs = -1,
        .kept_token = -1,
        .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = -1},
    };
}

void request_params_deinit(struct request_params *p) {
    free(p->tokens);
    free(p->logit_bias);
    grammar_release(p->grammar);
    for (int32_t i = 0; i < p->num_stop; i++)
        free(p->stop[i]);
    memset(p, 0, sizeof *p);
}

static int check_range(const char *name, double v, double low, double high, struct error *error) {
    if (v >= low && v <= high) /* false for NaN */
        return 0;
    return error_set(error, ERR_INVALID_REQUEST, "%s: %g is not in [%g, %g]", name, v, low, high);
}

static int check_sampling(const struct sampling_params *p, struct error *error) {
    int rc;
    if ((rc = check_range("temperature", (double)p->temperature, 0, 1e6, error)) ||
        (rc = check_range("top_k", p->top_k, -1, INT32_MAX, error)) ||
        (rc = check_range("top_p", (double)p->top_p, 0, 1, error)) ||
        (rc = check_range("min_p", (double)p->min_p, 0, 1, error)) ||
        (rc = check_range("repetition_penalty", (double)p->repetition_penalty, 0, 1e6, error)) ||
        (rc = check_range("presence_penalty", (double)p->presence_penalty, -2, 2, error)) ||
        (rc = check_range("frequency_penalty", (double)p->frequency_penalty, -2, 2, error)) ||
        (rc = check_range("logprobs", p->logprobs, -1, MAX_LOGPROBS, error)))
        return rc;
    if (p->top_p <= 0)
        return error_set(error, ERR_INVALID_REQUEST, "top_p: must be above 0");
    if (p->repetition_penalty <= 0)
        return error_set(error, ERR_INVALID_REQUEST, "repetition_penalty: must be above 0");
    return 0;
}

static int check_stop(const struct request_params *p, struct error *error) {
    if (p->num_stop < 0 || p->num_stop > MAX_STOP_STRINGS)
        return error_set(error, ERR_INVALID_REQUEST, "stop: %d strings, at most %d are allowed",
                         p->num_stop, MAX_STOP_STRINGS);
    for (int32_t i = 0; i < p->num_stop; i++) {
        size_t len = strlen(p->stop[i]);
        if (len == 0 || len > MAX_STOP_BYTES)
            return error_set(error, ERR_INVALID_REQUEST, "stop: %zu bytes, 1 to %d are allowed",
                             len, MAX_STOP_BYTES);
    }
    return 0;
}

static int by_token(const void *a, const void *b) {
    int32_t p = *(const int32_t *)a, q = *(const int32_t *)b;
    return p < q ? -1 : p > q;
}

static int check_logit_bias(const struct request_params *p, int32_t vocab_size,
                            struct error *error) {
    int32_t tokens[MAX_LOGIT_BIASES], n = p->num_logit_bias;
    if (n < 0 || n > MAX_LOGIT_BIASES)
        return error_set(error, ERR_INVALID_REQUEST,
                         "logit_bias: %d tokens, at most %d are allowed", n, MAX_LOGIT_BIASES);
    for (int32_t i = 0; i < n; i++) {
        const struct logit_bias *b = &p->logit_bias[i];
        if (b->token < 0 || b->token >= vocab_size)
            return error_set(error, ERR_INVALID_REQUEST,
                             "logit_bias: token %d is not in the vocabulary [0, %d)", b->token,
                             vocab_size);
        if (!(b->bias >= -MAX_LOGIT_BIAS && b->bias <= MAX_LOGIT_BIAS))
            return error_set(error, ERR_INVALID_REQUEST,
                             "logit_bias: %g for token %d is not in [-100, 100]", (double)b->bias,
                             b->token);
        tokens[i] = b->token;
    }
    qsort(tokens, (size_t)n, sizeof *tokens, by_token);
    for (int32_t i = 1; i < n; i++)
        if (tokens[i] == tokens[i - 1])
            return error_set(error, ERR_INVALID_REQUEST, "logit_bias: token %d is given twice",
                             tokens[i]);
    return 0;
}

int request_params_check(const struct request_params *p, const struct request_limits *limits,
                         struct error *error) {
    int rc;
    if (!p->tokens || p->num_tokens < 1)
        return error_set(error, ERR_INVALID_REQUEST, "the prompt is empty");
    if (p->num_tokens >= limits->max_model_len)
        return error_set(error, ERR_CONTEXT_LENGTH,
                         "the prompt has %d tokens, the context holds %d and one more must fit",
                         p->num_tokens, limits->max_model_len);
    for (int32_t i = 0; i < p->num_tokens; i++)
        if (p->tokens[i] < 0 || p->tokens[i] >= limits->vocab_size)
            return error_set(error, ERR_INVALID_REQUEST,
                             "token %d at index %d is not in the vocabulary [0, %d)", p->tokens[i],
                             i, limits->vocab_size);
    if ((rc = check_range("max_tokens", p->max_tokens, 0, INT32_MAX, error)) ||
        (rc = check_range("min_tokens", p->min_tokens, 0, INT32_MAX, error)) ||
        (rc = check_range("prompt_logprobs", p->prompt_logprobs, -1, MAX_LOGPROBS, error)))
        return rc;
    if (p->max_tokens > 0 && p->min_tokens > p->max_tokens)
        return error_set(error, ERR_INVALID_REQUEST, "min_tokens: %d is more than max_tokens (%d)",
                         p->min_tokens, p->max_tokens);
    if ((rc = check_sampling(&p->sampling, error)) ||
        (rc = check_logit_bias(p, limits->vocab_size, error)))
        return rc;
    if (p->grammar && !limits->has_text)
        return error_set(error, ERR_INVALID_REQUEST,
                         "a grammar needs a tokenizer, and the model was loaded without one");
    return check_stop(p, error);
}

struct request *request_create(struct request_params *p, int32_t max_model_len) {
    struct request *r = xcalloc(1, sizeof *r);
    int32_t room = max_model_len - p->num_tokens;
    int32_t new_tokens = p->max_tokens == 0 || p->max_tokens > room ? room : p->max_tokens;
    r->params = *p;
    r->first_token_us = r->last_token_us = -1;
    sequence_init(&r->seq, p->tokens, p->num_tokens, p->num_tokens + new_tokens,
                  p->prompt_logprobs >= 0);
    r->params.tokens = NULL;
    memset(p, 0, sizeof *p);
    return r;
}

void request_destroy(struct request *r) {
    if (!r)
        return;
    sequence_deinit(&r->seq);
    request_params_deinit(&r->params);
    token_counts_deinit(&r->counts);
    stop_deinit(&r->stop);
    grammar_matcher_destroy(r->matcher);
    free(r->mask);
    free(r->prompt_logprobs);
    free(r->prompt_top);
    free(r);
}

/* The generated text continues the prompt's: in tokenizers that treat the first token of a text
 * differently (SentencePiece drops its space), the first generated one is none. */
static void start_detok(struct request *r, const struct tokenizer *tokenizer,
                        struct buffer *scratch) {
    const struct sequence *seq = &r->seq;
    int32_t from = seq->num_prompt > DETOK_CONTEXT ? seq->num_prompt - DETOK_CONTEXT : 0;
    detok_init(&r->detok, tokenizer);
    buffer_clear(scratch);
    for (int32_t i = from; i < seq->num_prompt; i++)
        detok_push(&r->detok, seq->tokens[i], scratch);
    detok_flush(&r->detok, scratch);
    r->detok.kept_token = r->params.kept_token;
}

void request_prepare(struct request *r, int32_t vocab_size, const struct tokenizer *tokenizer,
                     struct buffer *scratch) {
    struct sequence *seq = &r->seq;
    if (r->prepared)
        return;
    r->prepared = true;
    sequence_prepare(seq);
    if (sampling_has_penalties(&r->params.sampling)) {
        token_counts_init(&r->counts, seq->capacity < vocab_size ? seq->capacity : vocab_size);
        for (int32_t i = 0; i < seq->num_prompt; i++)
            token_counts_add(&r->counts, seq->tokens[i], false);
    }
    if (r->params.prompt_logprobs >= 0) {
        size_t n = (size_t)seq->num_prompt, num_top = (size_t)r->params.prompt_logprobs;
        r->prompt_logprobs = xcalloc(n, sizeof *r->prompt_logprobs);
        r->prompt_top = xcalloc(n * num_top, sizeof *r->prompt_top);
    }
    stop_init(&r->stop, r->params.stop, r->params.num_stop);
    if (tokenizer)
        start_detok(r, tokenizer, scratch);
}

void request_put_prompt_logprobs(struct request *r, int32_t position, const struct sample *sample) {
    /* Position 0 is predicted by nothing, so the first tops are those of position 1. */
    struct logprob *top = r->prompt_top + (int64_t)(position - 1) * sample->num_top;
    for (int32_t i = 0; i < sample->num_top; i++)
        top[i] = (struct logprob){sample->top_tokens[i], sample->top_logprobs[i]};
    r->prompt_logprobs[position] =
        (struct token_logprobs){sample->logprob, sample->num_top, sample->num_top ? top : NULL};
}
