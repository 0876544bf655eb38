#include "prompt.h"

#include <malloc.h>
#include <stdlib.h>

#include "host/mem.h"

enum { TRIM_BYTES = 1 << 20 };

/* Moves the ids over; the list's memory becomes the request's. */
static int take_tokens(struct token_list *list, struct request_params *p, const char *field,
                       struct error *error) {
    if (list->len == 0 || list->len > INT32_MAX) {
        free(list->ids);
        return error_set(error, ERR_INVALID_REQUEST, "%s: no text to go on from", field);
    }
    free(p->tokens);
    p->tokens = list->ids;
    p->num_tokens = (int32_t)list->len;
    return 0;
}

int prompt_need_tokenizer(const struct dispatch *d, const char *field, struct error *error) {
    if (dispatch_tokenizer(d))
        return 0;
    return error_set(error, ERR_INVALID_REQUEST,
                     "%s: the model was loaded without a tokenizer; send token ids as \"tokens\"",
                     field);
}

int prompt_encode_text(const struct dispatch *d, const char *text, size_t len,
                       struct request_params *p, struct error *error) {
    struct token_list list = {0};
    if (prompt_need_tokenizer(d, "prompt", error) != 0)
        return error->code;
    tokenizer_encode(dispatch_tokenizer(d), text, len,
                     TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL, &list);
    return take_tokens(&list, p, "prompt", error);
}

int prompt_encode_chat(const struct dispatch *d, const struct chat_request *request,
                       struct request_params *p, struct error *error) {
    const struct chat_template *c = dispatch_chat_template(d);
    struct token_list list = {0};
    if (prompt_need_tokenizer(d, "messages", error) != 0)
        return error->code;
    if (!c)
        return error_set(error, ERR_INVALID_REQUEST,
                         "messages: this model has no chat template; one can be chosen with "
                         "--chat-template (%s)",
                         chat_template_names());
    int rc = chat_template_encode(c, dispatch_tokenizer(d), request, &list, error);
    if (rc != 0) {
        free(list.ids);
        return rc;
    }
    const char *const *stops = chat_template_stops(c);
    for (; stops && *stops; stops++) {
        CHECK(p->num_stop < MAX_STOP_STRINGS, "%d stop strings", p->num_stop);
        p->stop[p->num_stop++] = xstrdup(*stops);
    }
    if (request->num_tools > 0 && request->tool_choice != TOOL_CHOICE_NONE)
        p->kept_token = chat_template_kept_token(c, dispatch_tokenizer(d));
    return take_tokens(&list, p, "messages", error);
}

int prompt_tokenize(const struct dispatch *d, const char *field, const char *text, size_t len,
                    unsigned flags, struct token_list *out, struct error *error) {
    int rc = prompt_need_tokenizer(d, field, error);
    if (rc == 0)
        tokenizer_encode(dispatch_tokenizer(d), text, len, flags, out);
    return rc;
}

int prompt_detokenize(const struct dispatch *d, const char *field, const int32_t *tokens,
                      int32_t num_tokens, struct buffer *out, struct error *error) {
    int rc = prompt_need_tokenizer(d, field, error);
    if (rc != 0)
        return rc;
    rc = tokenizer_decode(dispatch_tokenizer(d), tokens, (size_t)num_tokens, true, out);
    return rc ? error_set(error, rc, "%s: an id has no token", field) : 0;
}

void prompt_trim(size_t len) {
    if (len > TRIM_BYTES)
        malloc_trim(0);
}
