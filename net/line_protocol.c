#include "line_protocol.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/buffer.h"
#include "host/mem.h"
#include "host/nearest.h"
#include "host/utf8.h"
#include "net/param_fields.h"

struct parser {
    const struct line_context *context;
    struct line_request *out;
    struct field_error *error;
    int num_prompts; /* how many of prompt, tokens and messages were given */
};

#define IN(kind) (1u << (kind))

static const struct {
    const char *name;
    enum line_kind kind;
} ops[] = {
    {"cancel", LINE_CANCEL}, {"ping", LINE_PING},         {"stats", LINE_STATS},
    {"model", LINE_MODEL},   {"tokenize", LINE_TOKENIZE}, {"detokenize", LINE_DETOKENIZE},
    {"auth", LINE_AUTH},
};
enum { NUM_OPS = sizeof ops / sizeof *ops };

const char *line_kind_name(enum line_kind kind) {
    for (int i = 0; i < NUM_OPS; i++)
        if (ops[i].kind == kind)
            return ops[i].name;
    return "";
}

/* Counts the fields that say what to go on from: there must be exactly one. */
static void take_prompt(struct parser *p, const struct field *f) {
    p->num_prompts++;
    p->out->prompt_field = f->name;
}

/* ---- fields with a form of their own ---- */

static int read_id(struct parser *p, json_t *value) {
    struct buffer b = {0};
    if (json_is_integer(value)) {
        buffer_printf(&b, "%lld", (long long)json_integer_value(value));
    } else if (json_is_string(value) && json_string_length(value) <= LINE_MAX_ID_BYTES) {
        buffer_put_json_string(&b, json_string_value(value), json_string_length(value));
    } else {
        char what[96];
        snprintf(what, sizeof what, "an integer or a string of at most %d bytes",
                 LINE_MAX_ID_BYTES);
        return field_expected(p->error, "id", what);
    }
    buffer_putc(&b, '\0');
    p->out->id = b.data;
    return 0;
}

static int read_text(struct field_reader *r, const struct field *f, json_t *value) {
    struct parser *p = r->ctx;
    if (!json_is_string(value))
        return field_expected(p->error, f->name, "a string");
    p->out->text = json_string_value(value);
    p->out->text_len = json_string_length(value);
    take_prompt(p, f);
    return 0;
}

static int read_tokens(struct field_reader *r, const struct field *f, json_t *value) {
    struct parser *p = r->ctx;
    struct request_params *params = &p->out->params;
    if (!json_is_array(value))
        return field_expected(p->error, f->name, "an array of token ids");
    if (json_array_size(value) == 0 && p->out->kind == LINE_COMPLETION)
        return field_expected(p->error, f->name, "at least one token id");
    int rc = param_read_ids(&params->tokens, &params->num_tokens, f->name, value,
                            p->context->vocab_size, p->error);
    if (rc == 0)
        take_prompt(p, f);
    return rc;
}

/* One element of messages: exactly the strings "role" and "content". */
static int read_message(struct parser *p, size_t i, json_t *value) {
    struct chat_message *m = &p->out->messages[i];
    const char *key;
    json_t *v;
    char param[80];
    snprintf(param, sizeof param, "messages[%zu]", i);
    if (!json_is_object(value))
        return field_expected(p->error, param, "an object with role and content");
    json_object_foreach(value, key, v) {
        bool role = !strcmp(key, "role");
        if (!role && strcmp(key, "content")) {
            snprintf(param, sizeof param, "messages[%zu].%.32s", i, key);
            return field_error_set(p->error, ERR_INVALID_REQUEST, param,
                                   "%s: unknown field (a message has role and content)", param);
        }
        snprintf(param, sizeof param, "messages[%zu].%s", i, key);
        if (role) {
            int rc = param_read_role(&m->role, param, v, p->error);
            if (rc != 0)
                return rc;
            continue;
        }
        if (!json_is_string(v))
            return field_expected(p->error, param, "a string");
        m->content = json_string_value(v);
        m->content_len = json_string_length(v);
    }
    snprintf(param, sizeof param, "messages[%zu].%s", i, m->role ? "content" : "role");
    return m->role && m->content ? 0 : field_expected(p->error, param, "a string");
}

static int read_messages(struct field_reader *r, const struct field *f, json_t *value) {
    struct parser *p = r->ctx;
    size_t count = json_array_size(value); /* 0 when it is no array */
    if (count == 0 || count > PARAM_MAX_MESSAGES) {
        char what[80];
        snprintf(what, sizeof what, "an array of 1 to %d messages", PARAM_MAX_MESSAGES);
        return field_expected(p->error, f->name, what);
    }
    p->out->messages = xcalloc(count, sizeof *p->out->messages);
    p->out->num_messages = count;
    for (size_t i = 0; i < count; i++) {
        int rc = read_message(p, i, json_array_get(value, i));
        if (rc != 0)
            return rc;
    }
    take_prompt(p, f);
    return 0;
}

/* ---- the grammar ---- */

enum { ANY_KIND = ~0, ASK = IN(LINE_COMPLETION) };

#define AT(member) offsetof(struct line_request, member)

static const struct field table[] = {
    /* name, where, reader, offset, min, max */
    {"op", (unsigned)ANY_KIND, field_read_nothing, 0, 0, 0, false},
    {"id", (unsigned)ANY_KIND, field_read_nothing, 0, 0, 0, false},
    {"prompt", ASK, read_text, 0, 0, 0, false},
    {"tokens", ASK | IN(LINE_DETOKENIZE), read_tokens, 0, 0, 0, false},
    {"messages", ASK, read_messages, 0, 0, 0, false},
    {"text", IN(LINE_TOKENIZE), read_text, 0, 0, 0, false},
    {"key", IN(LINE_AUTH), read_text, 0, 0, 0, false},
    {"max_tokens", ASK, field_read_int, AT(params.max_tokens), 1, INT32_MAX, false},
    {"top_p", ASK, field_read_float, AT(params.sampling.top_p), 0, 1, true},
    PARAM_FIELDS(ASK, AT(params)),
    {"logprobs", ASK, field_read_int, AT(params.sampling.logprobs), 0, MAX_LOGPROBS, false},
    {"prompt_logprobs", ASK, field_read_int, AT(params.prompt_logprobs), 0, MAX_LOGPROBS, false},
    {"stream", ASK, field_read_bool, AT(stream), 0, 0, false},
};

static int read_op(struct parser *p, json_t *value) {
    const char *names[NUM_OPS];
    p->out->kind = LINE_COMPLETION;
    if (!value || json_is_null(value))
        return 0;
    const char *op = json_string_value(value);
    for (int i = 0; i < NUM_OPS; i++) {
        names[i] = ops[i].name;
        if (op && !strcmp(op, names[i])) {
            p->out->kind = ops[i].kind;
            return 0;
        }
    }
    const char *near = op ? nearest_name(names, NUM_OPS, op) : NULL;
    if (near)
        return field_error_set(p->error, ERR_INVALID_REQUEST, "op",
                               "op: unknown operation (did you mean %s?)", near);
    return field_expected(p->error, "op",
                          "auth, cancel, ping, stats, model, tokenize or detokenize");
}

/* What must hold between fields, once all were read. */
static int check_whole(struct parser *p) {
    struct line_request *r = p->out;
    switch (r->kind) {
    case LINE_COMPLETION:
        if (p->num_prompts != 1)
            return field_error_set(p->error, ERR_INVALID_REQUEST, "prompt",
                                   "expected exactly one of prompt, tokens and messages, got %d",
                                   p->num_prompts);
        return param_check_lengths(&r->params, r->doc, p->error);
    case LINE_CANCEL:
        return r->id ? 0 : field_expected(p->error, "id", "the id of the request to cancel");
    case LINE_TOKENIZE:
        return p->num_prompts ? 0 : field_expected(p->error, "text", "a string");
    case LINE_DETOKENIZE:
        return p->num_prompts ? 0 : field_expected(p->error, "tokens", "an array of token ids");
    case LINE_AUTH:
        return p->num_prompts ? 0 : field_expected(p->error, "key", "a string");
    default:
        return 0;
    }
}

/* ---- JSON ---- */

/* A number does not fit: reads the line with numbers as doubles, to find its id at least. */
static void recover_id(const char *line, size_t len, struct line_request *out) {
    json_t *doc = json_loadb(
        line, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, NULL);
    json_t *id = json_object_get(doc, "id");
    struct field_error ignored;
    struct parser p = {.out = out, .error = &ignored};
    json_t *whole = NULL;
    double d = json_real_value(id);
    if (json_is_real(id) && d >= -9007199254740992.0 && d <= 9007199254740992.0 &&
        (double)(json_int_t)d == d)
        whole = json_integer((json_int_t)d);
    if (whole || json_is_string(id))
        read_id(&p, whole ? whole : id);
    json_decref(whole);
    json_decref(doc);
}

/* Copies the server's defaults; they own nothing. */
static void set_defaults(struct line_request *out, const struct line_context *context) {
    param_defaults(&out->params, context->defaults);
    out->stream = true;
}

int line_parse(const char *line, size_t len, const struct line_context *context,
               struct line_request *out, struct field_error *error) {
    struct parser p = {.context = context, .out = out, .error = error};
    json_t *value;
    char what[32];
    int rc;
    memset(error, 0, sizeof *error);
    set_defaults(out, context);
    if (len == 0 || line[0] != '{') {
        out->kind = LINE_PLAIN;
        out->text = line;
        out->text_len = len;
        size_t valid = utf8_valid_prefix(line, len);
        if (valid == len)
            return 0;
        return field_error_set(error, ERR_INVALID_REQUEST, NULL,
                               "a prompt must be UTF-8, but byte %zu of this one is not", valid);
    }
    out->kind = LINE_COMPLETION;
    if ((rc = fields_parse(line, len, &out->doc, error)) != 0) {
        if (rc == ERR_INVALID_REQUEST)
            recover_id(line, len, out);
        return rc;
    }
    /* The id first, so that any error can carry it; then op, which decides the other fields. */
    value = json_object_get(out->doc, "id");
    if (value && !json_is_null(value) && (rc = read_id(&p, value)) != 0)
        return rc;
    if ((rc = read_op(&p, json_object_get(out->doc, "op"))) != 0)
        return rc;
    const char *op = line_kind_name(out->kind);
    snprintf(what, sizeof what, "%s%s", *op ? "op " : "a request without op", op);
    struct field_reader r = {
        .table = table,
        .num_fields = sizeof table / sizeof *table,
        .kind = IN(out->kind),
        .what = what,
        .path = "",
        .out = out,
        .error = error,
        .ctx = &p,
    };
    rc = fields_read(&r, out->doc);
    return rc ? rc : check_whole(&p);
}

void line_request_drop_text(struct line_request *r) {
    free(r->messages);
    json_decref(r->doc);
    r->messages = NULL;
    r->num_messages = 0;
    r->doc = NULL;
    r->text = NULL;
    r->text_len = 0;
}

void line_request_deinit(struct line_request *r) {
    line_request_drop_text(r);
    free(r->id);
    request_params_deinit(&r->params);
    memset(r, 0, sizeof *r);
}
