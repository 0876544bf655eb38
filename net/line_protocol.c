#include "line_protocol.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/buffer.h"
#include "host/mem.h"
#include "host/nearest.h"

struct parser {
    const struct line_context *context;
    struct line_request *out;
    struct line_error *error;
    int num_prompts; /* how many of prompt, tokens and messages were given */
};

/* One row of the request's grammar. Values of null count as not given. */
struct field {
    const char *name;
    unsigned kinds; /* bit 1 << enum line_kind: where the field may stand */
    int (*read)(struct parser *p, const struct field *f, json_t *value);
    size_t offset; /* of the value in struct line_request, for the generic readers */
    double min, max;
    bool above_min; /* min itself is not allowed */
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

int line_error_set(struct line_error *error, int code, const char *param, const char *fmt, ...) {
    va_list ap;
    error->code = code;
    snprintf(error->param, sizeof error->param, "%s", param ? param : "");
    va_start(ap, fmt);
    vsnprintf(error->message, sizeof error->message, fmt, ap);
    va_end(ap);
    return code;
}

static int expected(struct parser *p, const char *param, const char *what) {
    return line_error_set(p->error, ERR_INVALID_REQUEST, param, "%s: expected %s", param, what);
}

/* ---- generic readers ---- */

static int read_int(struct parser *p, const struct field *f, json_t *value) {
    char what[96];
    if (json_is_integer(value) && (double)json_integer_value(value) >= f->min &&
        (double)json_integer_value(value) <= f->max) {
        *(int32_t *)((char *)p->out + f->offset) = (int32_t)json_integer_value(value);
        return 0;
    }
    snprintf(what, sizeof what, "an integer from %.0f to %.0f", f->min, f->max);
    return expected(p, f->name, what);
}

static int read_float(struct parser *p, const struct field *f, json_t *value) {
    char what[96];
    double d = json_number_value(value);
    float x = (float)d; /* must be in range as a float too: 1e-60 is not above 0 */
    if (json_is_number(value) && d >= f->min && d <= f->max && (!f->above_min || x > f->min)) {
        *(float *)((char *)p->out + f->offset) = x;
        return 0;
    }
    snprintf(what, sizeof what,
             f->above_min ? "a number above %g and up to %g" : "a number from %g to %g", f->min,
             f->max);
    return expected(p, f->name, what);
}

static int read_bool(struct parser *p, const struct field *f, json_t *value) {
    if (!json_is_boolean(value))
        return expected(p, f->name, "true or false");
    *(bool *)((char *)p->out + f->offset) = json_is_true(value);
    return 0;
}

static int read_nothing(struct parser *p, const struct field *f, json_t *value) {
    (void)p, (void)f, (void)value;
    return 0;
}

/* Counts the fields that say what to go on from: there must be exactly one. */
static void take_prompt(struct parser *p, const struct field *f) {
    p->num_prompts++;
    p->out->prompt_field = f->name;
}

/* ---- fields with a form of their own ---- */

static int read_id(struct parser *p, const struct field *f, json_t *value) {
    struct buffer b = {0};
    if (json_is_integer(value)) {
        buffer_printf(&b, "%lld", (long long)json_integer_value(value));
    } else if (json_is_string(value) && json_string_length(value) <= LINE_MAX_ID_BYTES) {
        buffer_put_json_string(&b, json_string_value(value), json_string_length(value));
    } else {
        char what[96];
        snprintf(what, sizeof what, "an integer or a string of at most %d bytes",
                 LINE_MAX_ID_BYTES);
        return expected(p, f->name, what);
    }
    buffer_putc(&b, '\0');
    p->out->id = b.data;
    return 0;
}

static int read_text(struct parser *p, const struct field *f, json_t *value) {
    if (!json_is_string(value))
        return expected(p, f->name, "a string");
    p->out->text = json_string_value(value);
    p->out->text_len = json_string_length(value);
    take_prompt(p, f);
    return 0;
}

static int read_tokens(struct parser *p, const struct field *f, json_t *value) {
    if (!json_is_array(value))
        return expected(p, f->name, "an array of token ids");
    size_t count = json_array_size(value);
    if (count == 0 && p->out->kind == LINE_COMPLETION)
        return expected(p, f->name, "at least one token id");
    int32_t *ids = xmalloc((count ? count : 1) * sizeof *ids);
    p->out->params.tokens = ids;
    for (size_t i = 0; i < count; i++) {
        json_t *v = json_array_get(value, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 ||
            json_integer_value(v) >= p->context->vocab_size) {
            char param[48], what[64];
            snprintf(param, sizeof param, "tokens[%zu]", i);
            snprintf(what, sizeof what, "a token id from 0 to %d", p->context->vocab_size - 1);
            return expected(p, param, what);
        }
        ids[i] = (int32_t)json_integer_value(v);
    }
    p->out->params.num_tokens = (int32_t)count;
    take_prompt(p, f);
    return 0;
}

/* One element of messages: exactly the strings "role" and "content". */
static int read_message(struct parser *p, size_t i, json_t *value) {
    struct chat_message *m = &p->out->messages[i];
    const char *key;
    json_t *v;
    char param[80];
    snprintf(param, sizeof param, "messages[%zu]", i);
    if (!json_is_object(value))
        return expected(p, param, "an object with role and content");
    json_object_foreach(value, key, v) {
        bool role = !strcmp(key, "role");
        if (!role && strcmp(key, "content")) {
            snprintf(param, sizeof param, "messages[%zu].%.32s", i, key);
            return line_error_set(p->error, ERR_INVALID_REQUEST, param,
                                  "%s: unknown field (a message has role and content)", param);
        }
        snprintf(param, sizeof param, "messages[%zu].%s", i, key);
        if (!json_is_string(v))
            return expected(p, param, "a string");
        const char *s = json_string_value(v);
        size_t len = json_string_length(v);
        if (role && (len == 0 || len > LINE_MAX_ROLE_BYTES || strlen(s) != len))
            return expected(p, param, "the name of a role");
        if (role) {
            m->role = s;
        } else {
            m->content = s;
            m->content_len = len;
        }
    }
    snprintf(param, sizeof param, "messages[%zu].%s", i, m->role ? "content" : "role");
    return m->role && m->content ? 0 : expected(p, param, "a string");
}

static int read_messages(struct parser *p, const struct field *f, json_t *value) {
    size_t count = json_array_size(value); /* 0 when it is no array */
    if (count == 0 || count > LINE_MAX_MESSAGES) {
        char what[80];
        snprintf(what, sizeof what, "an array of 1 to %d messages", LINE_MAX_MESSAGES);
        return expected(p, f->name, what);
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

static int read_seed(struct parser *p, const struct field *f, json_t *value) {
    if (!json_is_integer(value))
        return expected(p, f->name, "an integer");
    p->out->params.sampling.seed = (uint64_t)json_integer_value(value);
    p->out->params.has_seed = true;
    return 0;
}

static int read_stop(struct parser *p, const struct field *f, json_t *value) {
    struct request_params *params = &p->out->params;
    size_t count = json_is_array(value) ? json_array_size(value) : 1;
    if (!json_is_string(value) && (!json_is_array(value) || count > MAX_REQUEST_STOPS)) {
        char what[80];
        snprintf(what, sizeof what, "a string or an array of at most %d strings",
                 MAX_REQUEST_STOPS);
        return expected(p, f->name, what);
    }
    for (size_t i = 0; i < count; i++) {
        json_t *v = json_is_array(value) ? json_array_get(value, i) : value;
        const char *s = json_string_value(v);
        size_t len = json_string_length(v);
        if (!s || len == 0 || len > MAX_STOP_BYTES || strlen(s) != len) {
            char param[32], what[80];
            snprintf(param, sizeof param, json_is_array(value) ? "stop[%zu]" : "stop", i);
            snprintf(what, sizeof what, "a string of 1 to %d bytes without NUL", MAX_STOP_BYTES);
            return expected(p, param, what);
        }
        params->stop[params->num_stop++] = xstrdup(s);
    }
    return 0;
}

/* ---- the grammar ---- */

enum { ANY_KIND = ~0, ASK = IN(LINE_COMPLETION) };

#define AT(member) offsetof(struct line_request, member)

static const struct field fields[] = {
    /* name, where, reader, offset, min, max */
    {"op", (unsigned)ANY_KIND, read_nothing, 0, 0, 0, false},
    {"id", (unsigned)ANY_KIND, read_nothing, 0, 0, 0, false},
    {"prompt", ASK, read_text, 0, 0, 0, false},
    {"tokens", ASK | IN(LINE_DETOKENIZE), read_tokens, 0, 0, 0, false},
    {"messages", ASK, read_messages, 0, 0, 0, false},
    {"text", IN(LINE_TOKENIZE), read_text, 0, 0, 0, false},
    {"key", IN(LINE_AUTH), read_text, 0, 0, 0, false},
    {"max_tokens", ASK, read_int, AT(params.max_tokens), 1, INT32_MAX, false},
    {"min_tokens", ASK, read_int, AT(params.min_tokens), 0, INT32_MAX, false},
    {"temperature", ASK, read_float, AT(params.sampling.temperature), 0, 100, false},
    {"top_k", ASK, read_int, AT(params.sampling.top_k), -1, INT32_MAX, false},
    {"top_p", ASK, read_float, AT(params.sampling.top_p), 0, 1, true},
    {"min_p", ASK, read_float, AT(params.sampling.min_p), 0, 1, false},
    {"repetition_penalty", ASK, read_float, AT(params.sampling.repetition_penalty), 0.01, 100,
     false},
    {"presence_penalty", ASK, read_float, AT(params.sampling.presence_penalty), -2, 2, false},
    {"frequency_penalty", ASK, read_float, AT(params.sampling.frequency_penalty), -2, 2, false},
    {"seed", ASK, read_seed, 0, 0, 0, false},
    {"stop", ASK, read_stop, 0, 0, 0, false},
    {"ignore_eos", ASK, read_bool, AT(params.ignore_eos), 0, 0, false},
    {"logprobs", ASK, read_int, AT(params.sampling.logprobs), 0, MAX_LOGPROBS, false},
    {"prompt_logprobs", ASK, read_int, AT(params.prompt_logprobs), 0, MAX_LOGPROBS, false},
    {"stream", ASK, read_bool, AT(stream), 0, 0, false},
};
enum { NUM_FIELDS = sizeof fields / sizeof *fields };

static int unknown_field(struct parser *p, const char *key, bool known_elsewhere) {
    const char *names[NUM_FIELDS];
    char param[64];
    size_t count = 0;
    const char *op = line_kind_name(p->out->kind);
    snprintf(param, sizeof param, "%.40s", key);
    if (known_elsewhere)
        return line_error_set(p->error, ERR_INVALID_REQUEST, param, "%s: not a field of %s%s", key,
                              *op ? "op " : "a request without op", op);
    for (int i = 0; i < NUM_FIELDS; i++)
        if (fields[i].kinds & IN(p->out->kind))
            names[count++] = fields[i].name;
    const char *near = nearest_name(names, count, key);
    return line_error_set(p->error, ERR_INVALID_REQUEST, param, "%.40s: unknown field%s%s%s", key,
                          near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
}

static int read_field(struct parser *p, const char *key, json_t *value) {
    for (int i = 0; i < NUM_FIELDS; i++) {
        if (strcmp(fields[i].name, key))
            continue;
        if (!(fields[i].kinds & IN(p->out->kind)))
            return unknown_field(p, key, true);
        return json_is_null(value) ? 0 : fields[i].read(p, &fields[i], value);
    }
    return unknown_field(p, key, false);
}

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
        return line_error_set(p->error, ERR_INVALID_REQUEST, "op",
                              "op: unknown operation (did you mean %s?)", near);
    return expected(p, "op", "auth, cancel, ping, stats, model, tokenize or detokenize");
}

/* What must hold between fields, once all were read. */
static int check_whole(struct parser *p) {
    struct line_request *r = p->out;
    switch (r->kind) {
    case LINE_COMPLETION:
        if (p->num_prompts != 1)
            return line_error_set(p->error, ERR_INVALID_REQUEST, "prompt",
                                  "expected exactly one of prompt, tokens and messages, got %d",
                                  p->num_prompts);
        if (r->params.max_tokens > 0 && r->params.min_tokens > r->params.max_tokens &&
            !json_is_integer(json_object_get(r->doc, "min_tokens")))
            r->params.min_tokens = r->params.max_tokens; /* the server's default gives way */
        if (r->params.min_tokens > r->params.max_tokens && r->params.max_tokens > 0)
            return line_error_set(p->error, ERR_INVALID_REQUEST, "min_tokens",
                                  "min_tokens: %d is more than max_tokens (%d)",
                                  r->params.min_tokens, r->params.max_tokens);
        return 0;
    case LINE_CANCEL:
        return r->id ? 0 : expected(p, "id", "the id of the request to cancel");
    case LINE_TOKENIZE:
        return p->num_prompts ? 0 : expected(p, "text", "a string");
    case LINE_DETOKENIZE:
        return p->num_prompts ? 0 : expected(p, "tokens", "an array of token ids");
    case LINE_AUTH:
        return p->num_prompts ? 0 : expected(p, "key", "a string");
    default:
        return 0;
    }
}

/* ---- JSON ---- */

/* Does s keep to LINE_MAX_DEPTH and LINE_MAX_CONTAINERS? Counts outside of strings only; what is
 * not JSON at all is left to the parser, which never recurses deeper than the brackets counted
 * here. Returns NULL, or what is wrong. */
static const char *check_shape(const char *s, size_t len) {
    int depth = 0, containers = 0;
    bool in_string = false;
    for (size_t i = 0; i < len; i++) {
        char c = s[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > LINE_MAX_DEPTH)
                return "arrays and objects are nested deeper than 64";
            if (++containers > LINE_MAX_CONTAINERS)
                return "there are more than 16384 arrays and objects";
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return NULL;
}
_Static_assert(LINE_MAX_DEPTH == 64 && LINE_MAX_CONTAINERS == 16384, "as check_shape says");

/* A number does not fit: reads the line with numbers as doubles, to find its id at least. */
static void recover_id(const char *line, size_t len, struct line_request *out) {
    json_t *doc = json_loadb(line, len, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, NULL);
    json_t *id = json_object_get(doc, "id");
    struct line_error ignored;
    struct parser p = {.out = out, .error = &ignored};
    json_t *whole = NULL;
    double d = json_real_value(id);
    if (json_is_real(id) && d >= -9007199254740992.0 && d <= 9007199254740992.0 &&
        (double)(json_int_t)d == d)
        whole = json_integer((json_int_t)d);
    if (whole || json_is_string(id))
        read_id(&p, &(struct field){.name = "id"}, whole ? whole : id);
    json_decref(whole);
    json_decref(doc);
}

static int parse_document(const char *line, size_t len, struct line_request *out,
                          struct line_error *error) {
    json_error_t e;
    const char *wrong = check_shape(line, len);
    if (wrong)
        return line_error_set(error, ERR_INVALID_JSON, NULL, "%s", wrong);
    out->doc = json_loadb(line, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    if (out->doc)
        return 0;
    switch (json_error_code(&e)) {
    case json_error_duplicate_key: /* valid JSON, but not a request */
        return line_error_set(error, ERR_INVALID_REQUEST, NULL, "a field is given twice: %s",
                              e.text);
    case json_error_numeric_overflow:
        recover_id(line, len, out);
        return line_error_set(error, ERR_INVALID_REQUEST, NULL,
                              "a number does not fit in 64 bits, signed, or a double (before byte "
                              "%d)",
                              e.position);
    default:
        return line_error_set(error, ERR_INVALID_JSON, NULL, "not valid JSON: %s (at byte %d)",
                              e.text, e.position);
    }
}

/* Copies the server's defaults; they own nothing. */
static void set_defaults(struct line_request *out, const struct line_context *context) {
    out->params = *context->defaults;
    out->params.tokens = NULL;
    out->params.num_tokens = out->params.num_stop = 0;
    out->stream = true;
}

int line_parse(const char *line, size_t len, const struct line_context *context,
               struct line_request *out, struct line_error *error) {
    struct parser p = {.context = context, .out = out, .error = error};
    const char *key;
    json_t *value;
    int rc;
    memset(error, 0, sizeof *error);
    set_defaults(out, context);
    if (len == 0 || line[0] != '{') {
        out->kind = LINE_PLAIN;
        out->text = line;
        out->text_len = len;
        return 0;
    }
    out->kind = LINE_COMPLETION;
    if ((rc = parse_document(line, len, out, error)) != 0)
        return rc;
    /* The id first, so that any error can carry it; then op, which decides the other fields. */
    value = json_object_get(out->doc, "id");
    if (value && !json_is_null(value) &&
        (rc = read_id(&p, &(struct field){.name = "id"}, value)) != 0)
        return rc;
    if ((rc = read_op(&p, json_object_get(out->doc, "op"))) != 0)
        return rc;
    json_object_foreach(out->doc, key, value) if ((rc = read_field(&p, key, value)) != 0) return rc;
    return check_whole(&p);
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
