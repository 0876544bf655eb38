/* tokenizer_pre: pre-tokenizers, which cut a text into pieces that no token crosses.
 *
 * Supported: Split, ByteLevel (last), Digits, Metaspace and sequences of them; they are compiled
 * into a list of three kinds of steps. A text goes through the steps depth first: each piece that a
 * step cuts off is handed to the next step at once, so no list of pieces is kept.
 */
#include "tokenizer_internal.h"

#include <string.h>

#include "mem.h"
#include "utf8.h"

/* The pattern of GPT-2, which ByteLevel uses unless told not to. */
#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

/* ---- parsing ---- */

/* NULL (an ERR_UNSUPPORTED) when there are too many. */
static struct pre_step *new_step(struct pre_tokenizer *p, enum pre_type type, const char *where,
                                 struct error *error) {
    if (p->count == TOKENIZER_MAX_STEPS) {
        error_set(error, ERR_UNSUPPORTED, "%s: more than %d pre-tokenizers", where,
                  (int)TOKENIZER_MAX_STEPS);
        return NULL;
    }
    struct pre_step *step = &p->steps[p->count++];
    step->type = type;
    return step;
}

static int add_regex(struct pre_tokenizer *p, const char *pattern, enum split_behavior behavior,
                     const char *where, struct error *error) {
    struct pre_step *step = new_step(p, PRE_SPLIT, where, error);
    if (!step)
        return ERR_UNSUPPORTED;
    step->behavior = behavior;
    return regex_compile(&step->regex, pattern, strlen(pattern), where, error);
}

static int parse_split(struct pre_tokenizer *p, json_t *spec, const char *where,
                       struct error *error) {
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *behavior = json_string_value(json_object_get(spec, "behavior"));
    struct pre_step *step = new_step(p, PRE_SPLIT, where, error);
    if (!step)
        return ERR_UNSUPPORTED;
    step->invert = json_is_true(json_object_get(spec, "invert"));
    for (int i = 0; behavior && i < 5; i++)
        if (strcmp(behavior, names[i]) == 0) {
            step->behavior = (enum split_behavior)i;
            return pattern_parse(json_object_get(spec, "pattern"), &step->needle, &step->regex,
                                 where, error);
        }
    return error_set(error, ERR_BAD_FILE,
                     "%s: Split: behavior: expected one of Isolated, Removed, "
                     "MergedWithPrevious, MergedWithNext, Contiguous",
                     where);
}

static int parse_byte_level(struct pre_tokenizer *p, json_t *spec, const char *where,
                            struct error *error) {
    p->byte_level = true;
    if (!json_is_false(json_object_get(spec, "add_prefix_space")) &&
        !new_step(p, PRE_PREFIX_SPACE, where, error))
        return ERR_UNSUPPORTED;
    if (json_is_false(json_object_get(spec, "use_regex")))
        return 0;
    return add_regex(p, GPT2_PATTERN, SPLIT_ISOLATED, where, error);
}

static int parse_metaspace(struct pre_tokenizer *p, json_t *spec, const char *where,
                           struct error *error) {
    json_t *replacement = json_object_get(spec, "replacement");
    const char *scheme = json_string_value(json_object_get(spec, "prepend_scheme"));
    struct pre_step *step = new_step(p, PRE_METASPACE, where, error);
    if (!step)
        return ERR_UNSUPPORTED;
    if (json_string_length(replacement) == 0)
        return error_set(error, ERR_BAD_FILE, "%s: Metaspace: replacement: expected a string",
                         where);
    if (json_is_false(json_object_get(spec, "add_prefix_space")))
        scheme = "never";
    if (!scheme)
        scheme = "always";
    if (strcmp(scheme, "always") != 0 && strcmp(scheme, "first") != 0 &&
        strcmp(scheme, "never") != 0)
        return error_set(error, ERR_BAD_FILE,
                         "%s: Metaspace: prepend_scheme: expected always, first or never", where);
    step->prepend = scheme[0] == 'a'   ? PREPEND_ALWAYS
                    : scheme[0] == 'f' ? PREPEND_FIRST
                                       : PREPEND_NEVER;
    buffer_puts(&step->needle, json_string_value(replacement));
    if (json_is_false(json_object_get(spec, "split")))
        return 0;
    step = new_step(p, PRE_SPLIT, where, error);
    if (!step)
        return ERR_UNSUPPORTED;
    step->behavior = SPLIT_MERGED_WITH_NEXT;
    buffer_puts(&step->needle, json_string_value(replacement));
    return 0;
}

static int parse_one(struct pre_tokenizer *p, json_t *spec, const char *type, const char *where,
                     struct error *error) {
    if (p->byte_level)
        return error_set(error, ERR_UNSUPPORTED, "%s: pre_tokenizer %.64s after ByteLevel", where,
                         type);
    if (strcmp(type, "Split") == 0)
        return parse_split(p, spec, where, error);
    if (strcmp(type, "ByteLevel") == 0)
        return parse_byte_level(p, spec, where, error);
    if (strcmp(type, "Metaspace") == 0)
        return parse_metaspace(p, spec, where, error);
    if (strcmp(type, "Digits") == 0) {
        bool each = json_is_true(json_object_get(spec, "individual_digits"));
        return add_regex(p, "\\p{N}", each ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, where, error);
    }
    return error_set(error, ERR_UNSUPPORTED, "%s: pre_tokenizer of type %.64s", where, type);
}

int pre_tokenizer_parse(struct pre_tokenizer *p, json_t *spec, const char *where,
                        struct error *error) {
    if (!spec || json_is_null(spec))
        return 0;
    const char *type = json_string_value(json_object_get(spec, "type"));
    if (!type)
        return error_set(error, ERR_BAD_FILE, "%s: pre_tokenizer: expected an object with a type",
                         where);
    if (strcmp(type, "Sequence") != 0)
        return parse_one(p, spec, type, where, error);
    json_t *list = json_object_get(spec, "pretokenizers"), *item;
    size_t i;
    if (!json_is_array(list))
        return error_set(error, ERR_BAD_FILE, "%s: pretokenizers: expected an array", where);
    json_array_foreach(list, i, item) {
        const char *inner = json_string_value(json_object_get(item, "type"));
        int rc = inner ? parse_one(p, item, inner, where, error)
                       : error_set(error, ERR_BAD_FILE,
                                   "%s: pretokenizers: expected objects with a type", where);
        if (rc != 0)
            return rc;
    }
    return 0;
}

void pre_tokenizer_deinit(struct pre_tokenizer *p) {
    for (int i = 0; i < p->count; i++) {
        regex_deinit(&p->steps[i].regex);
        buffer_deinit(&p->steps[i].needle);
    }
    memset(p, 0, sizeof *p);
}

/* ---- running ---- */

struct run {
    const struct pre_tokenizer *p;
    struct pre_scratch *scratch;
    void (*on_piece)(void *user, const char *piece, size_t len);
    void *user;
};

static void run_step(struct run *run, int i, const char *text, size_t len, bool at_start);

/* Joins the matches and gaps of a text as the behavior says; `waiting` may still grow. */
struct split {
    struct run *run;
    int step;
    const char *text;
    bool at_start;
    struct text_span waiting;
    bool waits, last_was_match;
};

static void cut(struct split *s, size_t start, size_t end) {
    run_step(s->run, s->step + 1, s->text + start, end - start, s->at_start && start == 0);
}

static void cut_waiting(struct split *s) {
    if (s->waits)
        cut(s, s->waiting.start, s->waiting.end);
    s->waits = false;
}

static void split_put(struct split *s, size_t start, size_t end, bool is_match) {
    const struct pre_step *step = &s->run->p->steps[s->step];
    bool joins = false;
    is_match ^= step->invert;
    switch (step->behavior) {
    case SPLIT_ISOLATED:
        cut(s, start, end);
        return;
    case SPLIT_REMOVED:
        if (!is_match)
            cut(s, start, end);
        return;
    case SPLIT_MERGED_WITH_PREVIOUS:
        joins = is_match && !s->last_was_match;
        break;
    case SPLIT_MERGED_WITH_NEXT:
        joins = !is_match && s->last_was_match;
        break;
    case SPLIT_CONTIGUOUS:
        joins = is_match == s->last_was_match;
        break;
    }
    if (s->waits && joins) {
        s->waiting.end = end;
    } else {
        cut_waiting(s);
        s->waiting = (struct text_span){start, end};
        s->waits = true;
    }
    s->last_was_match = is_match;
}

/* The next occurrence of a plain string. */
static bool needle_next(const struct buffer *needle, const char *text, size_t len, size_t pos,
                        struct text_span *match) {
    const char *found = memmem(text + pos, len - pos, needle->data, needle->len);
    if (!found)
        return false;
    match->start = (size_t)(found - text);
    match->end = match->start + needle->len;
    return true;
}

static void run_split(struct run *run, int i, const char *text, size_t len, bool at_start) {
    const struct pre_step *step = &run->p->steps[i];
    struct split s = {.run = run, .step = i, .text = text, .at_start = at_start};
    struct regex_iter it = {.regex = &step->regex,
                            .data = run->scratch->data,
                            .text = text,
                            .len = len,
                            .last_end = SIZE_MAX};
    struct text_span match;
    size_t done = 0;
    while (step->needle.len > 0 ? needle_next(&step->needle, text, len, done, &match)
                                : regex_next(&it, &match)) {
        if (match.start > done)
            split_put(&s, done, match.start, false);
        split_put(&s, match.start, match.end, true);
        done = match.end;
    }
    if (done < len && it.failed) { /* a limit was hit: the rest stays whole, and stays */
        cut_waiting(&s);
        cut(&s, done, len);
    } else if (done < len) {
        split_put(&s, done, len, false);
    }
    cut_waiting(&s);
}

static void run_metaspace(struct run *run, int i, const char *text, size_t len, bool at_start) {
    const struct pre_step *step = &run->p->steps[i];
    const struct buffer *mark = &step->needle;
    struct buffer *out = &run->scratch->text[i];
    bool marked = text[0] == ' ' || (len >= mark->len && memcmp(text, mark->data, mark->len) == 0);
    buffer_clear(out);
    if (!marked &&
        (step->prepend == PREPEND_ALWAYS || (step->prepend == PREPEND_FIRST && at_start)))
        buffer_append(out, mark->data, mark->len);
    for (size_t done = 0; done < len;) {
        const char *space = memchr(text + done, ' ', len - done);
        size_t end = space ? (size_t)(space - text) : len;
        buffer_append(out, text + done, end - done);
        if (space)
            buffer_append(out, mark->data, mark->len);
        done = end + 1;
    }
    run_step(run, i + 1, out->data, out->len, at_start);
}

static void run_step(struct run *run, int i, const char *text, size_t len, bool at_start) {
    if (len == 0)
        return;
    if (i == run->p->count) {
        run->on_piece(run->user, text, len);
        return;
    }
    switch (run->p->steps[i].type) {
    case PRE_SPLIT:
        run_split(run, i, text, len, at_start);
        break;
    case PRE_METASPACE:
        run_metaspace(run, i, text, len, at_start);
        break;
    case PRE_PREFIX_SPACE:
        if (text[0] != ' ') {
            struct buffer *out = &run->scratch->text[i];
            buffer_clear(out);
            buffer_putc(out, ' ');
            buffer_append(out, text, len);
            text = out->data;
            len = out->len;
        }
        run_step(run, i + 1, text, len, at_start);
        break;
    }
}

void pre_tokenizer_run(const struct pre_tokenizer *p, struct pre_scratch *scratch, const char *text,
                       size_t len, bool at_start,
                       void (*on_piece)(void *user, const char *piece, size_t len), void *user) {
    struct run run = {.p = p, .scratch = scratch, .on_piece = on_piece, .user = user};
    run_step(&run, 0, text, len, at_start);
}
