/* tool_calls: the text of an answer, as it comes, taken apart into what the model says and the
 * calls of tools that it asks for. One parser an answer, one thread at a time.
 *
 * The parser is fed the answer in pieces of any size (valid UTF-8 each) and reports content, calls
 * and their arguments in order; what it reports does not depend on where the pieces are cut, but
 * for where texts are, and is valid UTF-8 again. A call is reported once its name and the beginning
 * of its arguments have been read, its arguments as they come. What begins like a call and is none,
 * an unknown function in a format without markers, and a call that ends before it can be reported,
 * is content, to the last byte. Left out are only markers, the space between calls and after the
 * last one, and the line break with which Qwen's templates begin a call.
 *
 * Formats (enum tool_format):
 *   Hermes   content may stand anywhere. No calls within <think>...</think> at the beginning. The
 *            closing marker may be missing.
 *   Llama    the answer begins with the call (with or without <|python_tag|>). One call an answer,
 *            as the template takes no more; what follows it is content.
 *   Mistral  one list of calls (or one call), content around it.
 *
 * All take "parameters" for "arguments" and the reverse, ignore other keys, and read null, and none
 * at all behind a marker, as {}. Arguments are the model's own text, checked to be JSON. Memory is
 * bounded by TOOL_CALL_MAX_BYTES, nesting by JSON_TEXT_MAX_DEPTH.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/buffer.h"
#include "host/chat_template.h"
#include "host/json_text.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    TOOL_CALL_MAX_BYTES = 1 << 20, /* of a call that is held back; beyond, it is content */
    TOOL_CALL_MAX_NAME = 256,
    TOOL_CALLS_MAX = 128,   /* calls of an answer; more are content */
    TOOL_CALL_ID_SIZE = 30, /* "call_", 24 letters and digits, NUL */
};

enum tool_event_kind {
    TOOL_EVENT_CONTENT,   /* text: more of what the model says */
    TOOL_EVENT_CALL,      /* a call begins: id and name */
    TOOL_EVENT_ARGUMENTS, /* text: more of the arguments of the last call */
};

/* Pointers are valid only inside the callback. */
struct tool_event {
    enum tool_event_kind kind;
    const char *text; /* not empty, not NUL-terminated */
    size_t text_len;
    int32_t index;    /* of the call, from 0 */
    const char *id;   /* TOOL_EVENT_CALL */
    const char *name; /* TOOL_EVENT_CALL; UTF-8 without NUL */
};

typedef void (*tool_event_fn)(void *ctx, const struct tool_event *event);

struct tool_calls_options {
    enum tool_format format; /* TOOL_FORMAT_NONE: all is content */
    bool opened; /* the prompt ends in the beginning of a call (TOOL_CHOICE_REQUIRED and _NAMED) */
    bool whole;  /* report calls when they are complete only; then a broken one is content too */
    uint64_t seed;                 /* of the ids: the same seed and index make the same id */
    const struct chat_tool *tools; /* those of the request; needed by tool_calls_init only */
    size_t num_tools;
    tool_event_fn on_event;
    void *ctx;
};

/* Private to tool_calls.c, but for what the functions below tell. */
struct tool_calls {
    struct tool_calls_options options;
    struct buffer offered; /* the names of the tools, each with its NUL */
    int state;
    bool at_start;      /* nothing but space has come */
    bool after_call;    /* space may turn out to be between calls */
    bool in_list;       /* Mistral's list of calls is open */
    bool marked;        /* the call that is being read came behind a marker */
    size_t matched;     /* bytes of a marker that the text ends in */
    struct buffer held; /* what may still turn out to be content or not */
    struct buffer out;  /* content, or arguments, that is to be reported */
    bool out_is_content;
    /* The call that is being read. */
    struct json_scan scan;
    int field;     /* the key that is being read the value of */
    unsigned seen; /* bits of fields that have come */
    char key[16];  /* the key, when it is short enough to be known */
    size_t key_len;
    struct buffer name;              /* as JSON spells it, then decoded */
    bool named;                      /* name is complete */
    size_t arguments, arguments_end; /* in held */
    bool in_arguments;
    bool reported;     /* TOOL_EVENT_CALL was given; held is empty */
    int32_t num_calls; /* reported */
    bool broken;       /* the arguments of a reported call are no JSON, or did not end */
};

/* The options are copied. */
void tool_calls_init(struct tool_calls *p, const struct tool_calls_options *options);
void tool_calls_deinit(struct tool_calls *p);

/* Takes more of the answer. */
void tool_calls_push(struct tool_calls *p, const char *text, size_t len);
/* The answer has ended: reports what was held back. */
void tool_calls_finish(struct tool_calls *p);

/* Calls that were reported. An answer that ended by itself and has some is one that ended for them
 * (finish_reason "tool_calls"). */
int32_t tool_calls_count(const struct tool_calls *p);
/* After tool_calls_finish: have the arguments of each reported call been JSON to their end? Always
 * with options.whole. */
bool tool_calls_complete(const struct tool_calls *p);

/* The id of call `index` under a seed. */
void tool_call_id(uint64_t seed, int32_t index, char out[TOOL_CALL_ID_SIZE]);

#ifdef __cplusplus
}
#endif
