/* libFuzzer: bytes as a conversation with tools, as a template's Jinja text, as JSON, and as the
 * answer of a model. The first bytes choose template, tool choice and pieces; the rest is cut into
 * fields at each byte 0xFF.
 *
 * Asserts that prompts are valid UTF-8 with ascending contents; that JSON is spelled the same when
 * it is spelled again; and of answers: events do not depend on the pieces, texts are valid UTF-8,
 * without a call all is content, and the arguments of whole calls are JSON. */
#include <stdlib.h>
#include <string.h>

#include "host/chat_template.h"
#include "host/json_text.h"
#include "host/mem.h"
#include "host/tool_calls.h"
#include "host/tool_choice.h"
#include "host/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_ITEMS = 8 };

/* The rest of the input. */
struct input {
    const uint8_t *at, *end;
    char *kept[128]; /* fields that were handed out */
    int num_kept;
};

static int byte(struct input *in) {
    return in->at < in->end ? *in->at++ : 0;
}

/* The next field, NUL-terminated in memory of its own; NULL when it is empty. */
static const char *field(struct input *in, size_t *len) {
    const uint8_t *start = in->at;
    while (in->at < in->end && *in->at != 0xFF)
        in->at++;
    *len = (size_t)(in->at - start);
    in->at += in->at < in->end;
    if (*len == 0 || in->num_kept == 128)
        return NULL;
    char *s = xstrndup((const char *)start, *len);
    *len = strlen(s);
    in->kept[in->num_kept++] = s;
    return s;
}

/* ---- prompts ---- */

static void check_prompt(const struct chat_prompt *p) {
    size_t last = 0;
    CHECK(p->text.len == 0 || utf8_valid_prefix(p->text.data, p->text.len) == p->text.len,
          "a prompt is not UTF-8");
    for (size_t i = 0; i < p->count; i++) {
        CHECK(p->contents[i].start >= last && p->contents[i].end >= p->contents[i].start &&
                  p->contents[i].end <= p->text.len,
              "content %zu is out of place", i);
        last = p->contents[i].end;
    }
}

static size_t read_calls(struct input *in, struct chat_tool_call *calls) {
    size_t count = (size_t)byte(in) % 3, len;
    for (size_t i = 0; i < count; i++) {
        const char *name = field(in, &len);
        calls[i] = (struct chat_tool_call){.name = name ? name : "f", .id = field(in, &len)};
        calls[i].arguments = field(in, &calls[i].arguments_len);
    }
    return count;
}

static void fuzz_request(struct input *in) {
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool"};
    static const char *const names[] = {"chatml", "qwen2.5",    "qwen3",  "qwen3-2507", "llama3.1",
                                        "llama2", "mistral-v3", "raw",    "deepseek",   "olmoe",
                                        "llama3", "mistral",    "skywork"};
    const struct chat_template *c =
        chat_template_find(names[(size_t)byte(in) % (sizeof names / sizeof *names)]);
    struct chat_message messages[MAX_ITEMS] = {{0}};
    struct chat_tool_call calls[MAX_ITEMS][3] = {{{0}}};
    struct chat_tool tools[3] = {{0}};
    struct chat_prompt prompt = {0};
    struct error error = {0};
    size_t len;
    struct chat_request r = {.messages = messages,
                             .num_messages = (size_t)byte(in) % (MAX_ITEMS + 1),
                             .tools = tools,
                             .num_tools = (size_t)byte(in) % 4,
                             .tool_choice = (enum tool_choice)(byte(in) % 4),
                             .tool_name = "f"};
    for (size_t i = 0; i < r.num_tools; i++) {
        const char *name = field(in, &len);
        tools[i].name = name ? name : "f";
        tools[i].description = field(in, &tools[i].description_len);
        tools[i].parameters = field(in, &tools[i].parameters_len);
    }
    for (size_t i = 0; i < r.num_messages; i++) {
        struct chat_message *m = &messages[i];
        m->role = roles[byte(in) % 5];
        m->content = field(in, &m->content_len);
        m->tool_calls = calls[i];
        m->num_tool_calls = strcmp(m->role, "assistant") == 0 ? read_calls(in, calls[i]) : 0;
        m->tool_call_id = field(in, &len);
    }
    int rc = chat_template_render(c, "<s>", "</s>", &r, &prompt, &error);
    CHECK(rc == 0 || (rc == ERR_INVALID_REQUEST && error.text[0]), "code %d", rc);
    check_prompt(&prompt);
    chat_prompt_deinit(&prompt);
    json_t *schema = NULL;
    CHECK((tool_choice_schema(c, &r, &schema, &error) == 0) == (schema != NULL), "schema");
    json_decref(schema);
}

/* ---- JSON ---- */

static void fuzz_json(const char *s, size_t len) {
    for (int indent = 0; indent <= 4; indent += 4) {
        struct buffer once = {0}, twice = {0};
        if (json_text_format(&once, s, len, indent, "input", NULL) == 0) {
            CHECK(json_text_format(&twice, once.data, once.len, indent, "again", NULL) == 0,
                  "what was written is not JSON");
            CHECK(once.len == twice.len && memcmp(once.data, twice.data, once.len) == 0,
                  "spelled differently again");
        }
        buffer_deinit(&once);
        buffer_deinit(&twice);
    }
}

/* ---- answers ---- */

struct sink {
    struct buffer events, content, arguments;
    enum tool_event_kind last;
    bool whole;
};

/* The arguments of a call have ended. */
static void end_arguments(struct sink *s, bool complete) {
    struct buffer out = {0};
    if (complete && s->arguments.len > 0)
        CHECK(json_text_format(&out, s->arguments.data, s->arguments.len, 0, "arguments", NULL) ==
                  0,
              "arguments are not JSON");
    buffer_deinit(&out);
    buffer_clear(&s->arguments);
}

static void on_event(void *ctx, const struct tool_event *e) {
    struct sink *s = ctx;
    if (e->kind == TOOL_EVENT_CALL) {
        end_arguments(s, s->whole);
        CHECK(e->id[0] && e->name[0] &&
                  utf8_valid_prefix(e->name, strlen(e->name)) == strlen(e->name),
              "a name");
        buffer_printf(&s->events, "\1%d %s %s\2", e->index, e->id, e->name);
    } else {
        CHECK(e->text_len > 0 && utf8_valid_prefix(e->text, e->text_len) == e->text_len, "a text");
        if (e->kind != s->last)
            buffer_putc(&s->events, '\3');
        buffer_append(&s->events, e->text, e->text_len);
        buffer_append(e->kind == TOOL_EVENT_CONTENT ? &s->content : &s->arguments, e->text,
                      e->text_len);
    }
    s->last = e->kind;
}

static void parse(const struct tool_calls_options *options, const struct buffer *text, size_t piece,
                  struct sink *sink) {
    struct tool_calls p;
    struct tool_calls_options o = *options;
    o.on_event = on_event;
    o.ctx = sink;
    sink->whole = o.whole;
    tool_calls_init(&p, &o);
    for (size_t at = 0; at < text->len;) {
        size_t n = at + piece < text->len ? piece : text->len - at;
        while (at + n < text->len && ((unsigned char)text->data[at + n] & 0xC0) == 0x80)
            n++; /* whole characters */
        tool_calls_push(&p, text->data + at, n);
        at += n;
    }
    tool_calls_finish(&p);
    end_arguments(sink, tool_calls_complete(&p));
    CHECK(!o.whole || tool_calls_complete(&p), "a whole call is broken");
    if (tool_calls_count(&p) == 0)
        CHECK(sink->content.len == text->len &&
                  (text->len == 0 || !memcmp(sink->content.data, text->data, text->len)),
              "text was lost");
    tool_calls_deinit(&p);
}

static void fuzz_answer(const struct tool_calls_options *o, const char *s, size_t len,
                        size_t piece) {
    struct sink whole = {0}, pieces = {0};
    struct buffer text = {0};
    utf8_append_lossy(&text, s, len);
    parse(o, &text, text.len ? text.len : 1, &whole);
    parse(o, &text, piece, &pieces);
    CHECK(whole.events.len == pieces.events.len &&
              (whole.events.len == 0 ||
               !memcmp(whole.events.data, pieces.events.data, whole.events.len)),
          "events depend on pieces of %zu bytes", piece);
    buffer_deinit(&text);
    struct sink *sinks[] = {&whole, &pieces};
    for (int i = 0; i < 2; i++) {
        buffer_deinit(&sinks[i]->events);
        buffer_deinit(&sinks[i]->content);
        buffer_deinit(&sinks[i]->arguments);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const struct chat_tool tools[] = {{.name = "f"}, {.name = "get_weather"}};
    struct input in = {.at = data, .end = data + size};
    int choice = byte(&in), flags = byte(&in);
    const char *rest = (const char *)in.at;
    size_t len = (size_t)(in.end - in.at);
    const struct tool_calls_options options = {.format = (enum tool_format)(choice / 4 % 4),
                                               .opened = flags & 1,
                                               .whole = flags & 2,
                                               .seed = 1,
                                               .tools = tools,
                                               .num_tools = 2};
    switch (choice % 4) {
    case 0:
        fuzz_request(&in);
        break;
    case 1:
        fuzz_json(rest, len);
        break;
    case 2: {
        char *jinja = xstrndup(rest, len);
        chat_template_recognise_text(jinja);
        free(jinja);
        break;
    }
    default:
        fuzz_answer(&options, rest, len, (size_t)flags / 4 + 1);
    }
    for (int i = 0; i < in.num_kept; i++)
        free(in.kept[i]);
    return 0;
}
