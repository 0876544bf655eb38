#include "tool_calls.h"

#include <string.h>

/* What the next byte is read as. */
enum state {
    IN_TEXT,    /* content, and perhaps a marker */
    IN_THOUGHT, /* content until </think> */
    WANT_CALL,  /* behind a marker: { or, in a list, [ */
    IN_CALL,    /* the JSON object */
    AFTER_CALL, /* what may follow it */
};

enum field { FIELD_OTHER, FIELD_NAME, FIELD_ARGUMENTS };

static const char thought_open[] = "<think>", thought_close[] = "</think>";

static bool is_space(char c) {
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static const char *open_marker(const struct tool_calls *p) {
    switch (p->options.format) {
    case TOOL_FORMAT_HERMES:
        return "<tool_call>";
    case TOOL_FORMAT_LLAMA:
        return p->at_start ? "<|python_tag|>" : "";
    case TOOL_FORMAT_MISTRAL:
        return "[TOOL_CALLS]";
    default:
        return "";
    }
}

static const char *close_marker(const struct tool_calls *p) {
    return p->options.format == TOOL_FORMAT_HERMES ? "</tool_call>" : "";
}

/* ---- reporting ---- */

void tool_call_id(uint64_t seed, int32_t index, char out[TOOL_CALL_ID_SIZE]) {
    static const char chars[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    uint64_t state = seed + (uint64_t)(uint32_t)index * UINT64_C(0xD1342543DE82EF95);
    memcpy(out, "call_", 5);
    for (int i = 5; i < TOOL_CALL_ID_SIZE - 1; i++) {
        /* splitmix64 */
        uint64_t z = state += UINT64_C(0x9E3779B97F4A7C15);
        z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
        out[i] = chars[(z ^ (z >> 31)) % (sizeof chars - 1)];
    }
    out[TOOL_CALL_ID_SIZE - 1] = '\0';
}

static void flush(struct tool_calls *p) {
    if (p->out.len > 0) {
        const struct tool_event event = {
            .kind = p->out_is_content ? TOOL_EVENT_CONTENT : TOOL_EVENT_ARGUMENTS,
            .text = p->out.data,
            .text_len = p->out.len,
            .index = p->num_calls - 1,
        };
        p->options.on_event(p->options.ctx, &event);
    }
    buffer_clear(&p->out);
}

static void put(struct tool_calls *p, bool content, const char *s, size_t len) {
    if (len == 0)
        return;
    if (content != p->out_is_content)
        flush(p);
    p->out_is_content = content;
    buffer_append(&p->out, s, len);
}

/* What was held back is content after all. */
static void release(struct tool_calls *p) {
    for (size_t i = 0; i < p->held.len; i++)
        p->at_start = p->at_start && is_space(p->held.data[i]);
    put(p, true, p->held.data, p->held.len);
    buffer_clear(&p->held);
    p->matched = 0;
    p->after_call = false;
}

/* Reports the call, with what has come of its arguments. */
static void report_call(struct tool_calls *p) {
    char id[TOOL_CALL_ID_SIZE];
    flush(p);
    tool_call_id(p->options.seed, p->num_calls, id);
    const struct tool_event event = {
        .kind = TOOL_EVENT_CALL,
        .index = p->num_calls++,
        .id = id,
        .name = p->name.data,
    };
    p->options.on_event(p->options.ctx, &event);
    if (p->arguments_end > p->arguments)
        put(p, false, p->held.data + p->arguments, p->arguments_end - p->arguments);
    buffer_clear(&p->held);
    p->reported = true;
}

/* ---- one call ---- */

static void start_call(struct tool_calls *p, bool marked) {
    p->state = IN_CALL;
    p->marked = marked;
    p->scan = (struct json_scan){0};
    p->field = FIELD_OTHER;
    p->seen = 0;
    p->named = p->in_arguments = p->reported = false;
    p->arguments = p->arguments_end = 0;
    buffer_clear(&p->name);
}

/* A key has ended. False when it came before. */
static bool end_key(struct tool_calls *p) {
    const char *key = p->key;
    size_t len = p->key_len;
    p->field = FIELD_OTHER;
    if (len == 4 && memcmp(key, "name", 4) == 0)
        p->field = FIELD_NAME;
    else if ((len == 9 && memcmp(key, "arguments", 9) == 0) ||
             (len == 10 && memcmp(key, "parameters", 10) == 0))
        p->field = FIELD_ARGUMENTS;
    unsigned bit = p->field == FIELD_OTHER ? 0 : 1u << p->field;
    bool again = (p->seen & bit) != 0;
    p->seen |= bit;
    return !again;
}

static bool is_offered(const struct tool_calls *p, const char *name) {
    for (size_t at = 0; at < p->offered.len; at += strlen(p->offered.data + at) + 1)
        if (strcmp(p->offered.data + at, name) == 0)
            return true;
    return false;
}

/* The name is complete. False for none that can be called. */
static bool end_name(struct tool_calls *p) {
    struct buffer text = {0};
    json_text_decode(&text, p->name.data, p->name.len);
    size_t len = text.len;
    bool valid = len > 0 && len <= TOOL_CALL_MAX_NAME && !memchr(text.data, '\0', len);
    buffer_putc(&text, '\0');
    buffer_deinit(&p->name);
    p->name = text;
    p->named = true;
    return valid && (p->marked || is_offered(p, text.data));
}

/* A byte at the level of the call's own keys, `step` being what it is. False: this is no call. */
static bool key_level_byte(struct tool_calls *p, enum json_step step, char c) {
    switch (step) {
    case JSON_STEP_STRING_BEGIN:
        p->key_len = p->scan.key ? 0 : p->key_len;
        return p->scan.key || p->field != FIELD_ARGUMENTS;
    case JSON_STEP_STRING:
        if (p->scan.key) {
            if (p->key_len < sizeof p->key)
                p->key[p->key_len++] = c;
        } else if (p->field == FIELD_NAME) {
            buffer_putc(&p->name, c);
            return p->name.len <= 6 * TOOL_CALL_MAX_NAME; /* "\u0041" is one byte */
        }
        return true;
    case JSON_STEP_STRING_END:
        if (p->scan.key)
            return end_key(p);
        return p->field != FIELD_NAME || end_name(p);
    case JSON_STEP_SCALAR_BEGIN:
        return p->field == FIELD_OTHER || (p->field == FIELD_ARGUMENTS && c == 'n');
    case JSON_STEP_OPEN:
        p->in_arguments = p->field == FIELD_ARGUMENTS;
        if (p->in_arguments)
            p->arguments = p->arguments_end = p->held.len;
        return p->field == FIELD_OTHER || (p->in_arguments && c == '{');
    default:
        return true;
    }
}

/* Was that all, and is it a call? */
static bool end_call(struct tool_calls *p) {
    if (!p->named || (!p->marked && !(p->seen & 1u << FIELD_ARGUMENTS)))
        return false;
    if (!p->reported)
        report_call(p);
    if (p->arguments_end == p->arguments)
        put(p, false, "{}", 2);
    flush(p);
    p->state = AFTER_CALL;
    p->matched = 0;
    return true;
}

/* A byte of the JSON object. False: this is no call, and the byte was not taken. */
static bool call_byte(struct tool_calls *p, char c) {
    struct json_scan before = p->scan;
    bool in_arguments = p->in_arguments;
    if (!p->reported && p->held.len == TOOL_CALL_MAX_BYTES)
        return false;
    enum json_step step = json_scan_byte(&p->scan, c);
    if (step == JSON_STEP_ERROR || (before.depth == 1 && !key_level_byte(p, step, c)))
        return false;
    in_arguments = in_arguments || p->in_arguments;
    if (p->scan.ended)
        return end_call(p);
    if (in_arguments && p->scan.depth == 1) /* its last brace */
        p->in_arguments = false;
    if (p->reported) {
        if (in_arguments)
            put(p, false, &c, 1);
        return true;
    }
    buffer_putc(&p->held, c);
    if (in_arguments)
        p->arguments_end = p->held.len;
    if (p->named && p->arguments_end > p->arguments && !p->options.whole)
        report_call(p);
    return true;
}

/* What was taken for a call is none: c comes next, in the text. */
static void give_up(struct tool_calls *p) {
    if (p->state == IN_CALL && p->reported && p->in_arguments)
        p->broken = true;
    release(p);
    p->in_list = false;
    p->state = IN_TEXT;
}

/* ---- between calls ---- */

static void push_byte(struct tool_calls *p, char c);

/* The text ends in the opening marker. */
static void end_open_marker(struct tool_calls *p) {
    p->matched = 0;
    p->at_start = p->after_call = false;
    p->state = WANT_CALL;
}

/* Does c carry on a marker whose first bytes the text ends in? At the start two are possible, which
 * differ after two bytes. */
static bool match_byte(struct tool_calls *p, const char *marker, char c) {
    bool same = p->matched == 0 ||
                strncmp(p->held.data + p->held.len - p->matched, marker, p->matched) == 0;
    return marker[0] && same && c == marker[p->matched];
}

/* May space wait for what follows it? */
static bool can_hold(const struct tool_calls *p, char c) {
    if (p->held.len >= TOOL_CALL_MAX_BYTES || !is_space(c))
        return false;
    return p->after_call || (p->options.format == TOOL_FORMAT_LLAMA && p->at_start);
}

static void text_byte(struct tool_calls *p, char c) {
    const char *marker = open_marker(p);
    bool thinks = p->options.format == TOOL_FORMAT_HERMES && p->at_start;
    bool opens = match_byte(p, marker, c);
    if (opens || (thinks && match_byte(p, thought_open, c))) {
        buffer_putc(&p->held, c);
        p->matched++;
        if (opens && p->matched == strlen(marker)) {
            end_open_marker(p);
        } else if (!opens && p->matched == sizeof thought_open - 1) {
            release(p);
            p->state = IN_THOUGHT;
        }
        return;
    }
    if (p->matched > 0) {
        release(p);
        push_byte(p, c);
        return;
    }
    if (can_hold(p, c)) {
        buffer_putc(&p->held, c);
        return;
    }
    if (c == '{' && p->options.format == TOOL_FORMAT_LLAMA && p->at_start) {
        p->at_start = false;
        start_call(p, p->options.opened);
        push_byte(p, c);
        return;
    }
    release(p);
    if (c == '\n' && p->options.format == TOOL_FORMAT_HERMES) {
        buffer_putc(&p->held, c); /* a call would begin with it */
        return;
    }
    p->at_start = p->at_start && is_space(c);
    put(p, true, &c, 1);
}

static void thought_byte(struct tool_calls *p, char c) {
    put(p, true, &c, 1);
    p->matched = c == thought_close[p->matched] ? p->matched + 1 : c == thought_close[0];
    if (p->matched == sizeof thought_close - 1) {
        p->matched = 0;
        p->state = IN_TEXT;
    }
}

/* Behind a marker, or a comma of the list. */
static void want_call_byte(struct tool_calls *p, char c) {
    bool list = c == '[' && p->options.format == TOOL_FORMAT_MISTRAL && !p->in_list;
    if (p->held.len < TOOL_CALL_MAX_BYTES && (is_space(c) || list)) {
        buffer_putc(&p->held, c);
        p->in_list = p->in_list || list;
    } else if (c == '{' && p->num_calls < TOOL_CALLS_MAX) {
        start_call(p, true);
        push_byte(p, c);
    } else {
        give_up(p);
        push_byte(p, c);
    }
}

/* Behind a call, in held only space and the beginning of the closing marker. */
static void after_call_byte(struct tool_calls *p, char c) {
    const char *marker = close_marker(p);
    if (match_byte(p, marker, c)) {
        buffer_putc(&p->held, c);
        if (!marker[++p->matched]) {
            buffer_clear(&p->held);
            p->matched = 0;
            p->after_call = true;
            p->state = IN_TEXT;
        }
    } else if (p->matched == 0 && is_space(c) && p->held.len < TOOL_CALL_MAX_BYTES) {
        buffer_putc(&p->held, c);
    } else if (p->in_list && (c == ',' || c == ']')) {
        buffer_clear(&p->held);
        p->in_list = c == ',';
        p->after_call = true;
        p->state = c == ',' ? WANT_CALL : IN_TEXT;
        if (c == ',')
            buffer_putc(&p->held, c);
    } else {
        /* No closing marker: what was taken for it may begin another call. */
        struct buffer again = p->held;
        p->held = (struct buffer){0};
        p->matched = 0;
        p->in_list = false;
        p->after_call = true;
        p->state = IN_TEXT;
        for (size_t i = 0; i < again.len; i++)
            text_byte(p, again.data[i]);
        buffer_deinit(&again);
        push_byte(p, c);
    }
}

static void push_byte(struct tool_calls *p, char c) {
    switch (p->state) {
    case IN_TEXT:
        text_byte(p, c);
        return;
    case IN_THOUGHT:
        thought_byte(p, c);
        return;
    case WANT_CALL:
        want_call_byte(p, c);
        return;
    case IN_CALL:
        if (call_byte(p, c))
            return;
        give_up(p);
        push_byte(p, c);
        return;
    default:
        after_call_byte(p, c);
    }
}

/* ---- the whole ---- */

void tool_calls_init(struct tool_calls *p, const struct tool_calls_options *options) {
    *p = (struct tool_calls){.options = *options, .at_start = true, .out_is_content = true};
    for (size_t i = 0; i < options->num_tools; i++)
        buffer_append(&p->offered, options->tools[i].name, strlen(options->tools[i].name) + 1);
    p->options.tools = NULL;
    if (options->opened && options->format != TOOL_FORMAT_LLAMA) {
        p->state = WANT_CALL;
        p->at_start = false;
        p->in_list = options->format == TOOL_FORMAT_MISTRAL;
    }
}

void tool_calls_deinit(struct tool_calls *p) {
    buffer_deinit(&p->held);
    buffer_deinit(&p->out);
    buffer_deinit(&p->name);
    buffer_deinit(&p->offered);
}

void tool_calls_push(struct tool_calls *p, const char *text, size_t len) {
    for (size_t i = 0; i < len; i++)
        push_byte(p, text[i]);
    flush(p);
}

void tool_calls_finish(struct tool_calls *p) {
    bool between = p->after_call && p->matched == 0; /* nothing but space, or a comma */
    if (p->state == IN_CALL && p->reported && p->in_arguments)
        p->broken = true;
    if (between || p->state == AFTER_CALL)
        buffer_clear(&p->held);
    release(p);
    flush(p);
    p->state = IN_TEXT;
}

int32_t tool_calls_count(const struct tool_calls *p) {
    return p->num_calls;
}

bool tool_calls_complete(const struct tool_calls *p) {
    return !p->broken;
}
