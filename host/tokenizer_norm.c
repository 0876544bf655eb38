/* tokenizer_norm: the normalisers of tokenizer.json: NFC, NFD, NFKC, NFKD, Prepend, Replace, Strip
 * and sequences of them. utf8proc does the Unicode forms.
 */
#include "tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "mem.h"
#include "utf8.h"

/* ---- parsing ---- */

int pattern_parse(json_t *spec, struct buffer *needle, struct regex *regex, const char *where,
                  struct error *error) {
    json_t *string = json_object_get(spec, "String"), *pattern = json_object_get(spec, "Regex");
    if (json_is_string(string) && json_string_length(string) > 0) {
        buffer_append(needle, json_string_value(string), json_string_length(string));
        return 0;
    }
    if (json_is_string(pattern) && json_string_length(pattern) > 0)
        return regex_compile(regex, json_string_value(pattern), json_string_length(pattern), where,
                             error);
    return error_set(error, ERR_BAD_FILE, "%s: pattern: expected a String or a Regex", where);
}

static int form_of(const char *type) {
    static const struct {
        const char *name;
        int options;
    } forms[] = {
        {"NFC", UTF8PROC_STABLE | UTF8PROC_COMPOSE},
        {"NFD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE},
        {"NFKC", UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
        {"NFKD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT},
    };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (strcmp(type, forms[i].name) == 0)
            return forms[i].options;
    return 0;
}

static int parse_step(struct norm_step *step, json_t *spec, const char *type, const char *where,
                      struct error *error) {
    const char *text = NULL;
    step->form = form_of(type);
    if (step->form) {
        step->type = NORM_UNICODE;
    } else if (strcmp(type, "Prepend") == 0) {
        step->type = NORM_PREPEND;
        text = json_string_value(json_object_get(spec, "prepend"));
        if (!text)
            return error_set(error, ERR_BAD_FILE, "%s: Prepend: prepend: expected a string", where);
    } else if (strcmp(type, "Replace") == 0) {
        step->type = NORM_REPLACE;
        text = json_string_value(json_object_get(spec, "content"));
        if (!text)
            return error_set(error, ERR_BAD_FILE, "%s: Replace: content: expected a string", where);
        int rc = pattern_parse(json_object_get(spec, "pattern"), &step->needle, &step->regex, where,
                               error);
        if (rc != 0)
            return rc;
    } else if (strcmp(type, "Strip") == 0) {
        step->type = NORM_STRIP;
        step->left = json_is_true(json_object_get(spec, "strip_left"));
        step->right = json_is_true(json_object_get(spec, "strip_right"));
    } else {
        return error_set(error, ERR_UNSUPPORTED, "%s: normalizer of type %.64s", where, type);
    }
    if (text)
        buffer_puts(&step->text, text);
    return 0;
}

int normalizer_parse(struct normalizer *n, json_t *spec, const char *where, struct error *error) {
    if (!spec || json_is_null(spec))
        return 0;
    const char *type = json_string_value(json_object_get(spec, "type"));
    if (!type)
        return error_set(error, ERR_BAD_FILE, "%s: normalizer: expected an object with a type",
                         where);
    if (strcmp(type, "Sequence") == 0) {
        json_t *list = json_object_get(spec, "normalizers"), *item;
        size_t i;
        if (!json_is_array(list))
            return error_set(error, ERR_BAD_FILE, "%s: normalizers: expected an array", where);
        json_array_foreach(list, i, item) {
            const char *inner = json_string_value(json_object_get(item, "type"));
            if (inner && strcmp(inner, "Sequence") == 0)
                return error_set(error, ERR_UNSUPPORTED, "%s: normalizer Sequence in a Sequence",
                                 where);
            int rc = normalizer_parse(n, item, where, error);
            if (rc != 0)
                return rc;
        }
        return 0;
    }
    if (n->count == TOKENIZER_MAX_STEPS)
        return error_set(error, ERR_UNSUPPORTED, "%s: more than %d normalizers", where,
                         (int)TOKENIZER_MAX_STEPS);
    return parse_step(&n->steps[n->count++], spec, type, where, error);
}

void normalizer_deinit(struct normalizer *n) {
    for (int i = 0; i < n->count; i++) {
        buffer_deinit(&n->steps[i].text);
        buffer_deinit(&n->steps[i].needle);
        regex_deinit(&n->steps[i].regex);
    }
    memset(n, 0, sizeof *n);
}

/* ---- running ---- */

/* Appends the normal form of a chunk that nothing outside it can combine with. */
static void append_form(struct buffer *out, const char *s, size_t len, int form) {
    utf8proc_uint8_t *result = NULL;
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)len, &result,
                                      (utf8proc_option_t)form);
    if (n >= 0)
        buffer_append(out, result, (size_t)n);
    else
        buffer_append(out, s, len); /* not reached with valid UTF-8 */
    free(result);
}

/* The end of the chunk that starts at s[i]: it reaches to the next ASCII character that an ASCII
 * character follows, since those neither change nor combine. Runs of combining marks are cut after
 * 128, four times what text may hold, because ordering them is quadratic. *plain: it holds nothing
 * from U+0300 on. */
static size_t chunk_end(const char *s, size_t len, size_t i, bool *plain) {
    int marks = 0;
    *plain = true;
    while (i < len) {
        uint32_t cp;
        size_t n = utf8_next(s + i, len - i, &cp);
        if (cp < 0x80 && (i + n == len || (unsigned char)s[i + n] < 0x80))
            return i;
        *plain = *plain && cp < 0x300;
        marks = utf8proc_get_property((utf8proc_int32_t)cp)->combining_class ? marks + 1 : 0;
        i += n;
        if (marks == 128)
            return i;
    }
    return i;
}

static void append_normal_form(struct buffer *out, struct str text, int form) {
    const char *s = text.data;
    for (size_t i = 0; i < text.len;) {
        size_t start = i;
        while (i < text.len && (unsigned char)s[i] < 0x80 &&
               (i + 1 == text.len || (unsigned char)s[i + 1] < 0x80))
            i++;
        buffer_append(out, s + start, i - start);
        if (i == text.len)
            break;
        bool plain;
        size_t end = chunk_end(s, text.len, i, &plain);
        if (plain && form == (UTF8PROC_STABLE | UTF8PROC_COMPOSE))
            buffer_append(out, s + i, end - i); /* nothing below U+0300 changes in NFC */
        else
            append_form(out, s + i, end - i, form);
        i = end;
    }
}

static void append_replaced(struct buffer *out, struct str text, const struct norm_step *step,
                            pcre2_match_data *data) {
    size_t done = 0;
    if (step->regex.code) {
        struct regex_iter it = {.regex = &step->regex,
                                .data = data,
                                .text = text.data,
                                .len = text.len,
                                .last_end = SIZE_MAX};
        struct text_span match;
        while (regex_next(&it, &match)) {
            buffer_append(out, text.data + done, match.start - done);
            buffer_append(out, step->text.data, step->text.len);
            done = match.end;
        }
    } else {
        const char *found;
        while ((found = memmem(text.data + done, text.len - done, step->needle.data,
                               step->needle.len))) {
            buffer_append(out, text.data + done, (size_t)(found - text.data) - done);
            buffer_append(out, step->text.data, step->text.len);
            done = (size_t)(found - text.data) + step->needle.len;
        }
    }
    buffer_append(out, text.data + done, text.len - done);
}

static struct str strip(struct str text, bool left, bool right) {
    uint32_t cp;
    while (left && text.len > 0) {
        size_t n = utf8_next(text.data, text.len, &cp);
        if (!utf8_is_space(cp))
            break;
        text.data += n;
        text.len -= n;
    }
    while (right && text.len > 0) {
        size_t last = text.len - 1;
        while (last > 0 && ((unsigned char)text.data[last] & 0xC0) == 0x80)
            last--;
        utf8_next(text.data + last, text.len - last, &cp);
        if (!utf8_is_space(cp))
            break;
        text.len = last;
    }
    return text;
}

static bool is_ascii(struct str text) {
    for (size_t i = 0; i < text.len; i++)
        if ((unsigned char)text.data[i] >= 0x80)
            return false;
    return true;
}

struct str normalizer_run(const struct normalizer *n, struct str text, struct buffer work[2],
                          pcre2_match_data *data) {
    int next = 0; /* the buffer that does not hold text */
    for (int i = 0; i < n->count; i++) {
        const struct norm_step *step = &n->steps[i];
        struct buffer *out = &work[next];
        if (text.len == 0)
            break;
        if (step->type == NORM_STRIP) {
            text = strip(text, step->left, step->right);
            continue;
        }
        if (step->type == NORM_UNICODE && is_ascii(text))
            continue;
        buffer_clear(out);
        buffer_reserve(out, text.len);
        if (step->type == NORM_UNICODE) {
            append_normal_form(out, text, step->form);
        } else if (step->type == NORM_PREPEND) {
            buffer_append(out, step->text.data, step->text.len);
            buffer_append(out, text.data, text.len);
        } else {
            append_replaced(out, text, step, data);
        }
        text = (struct str){out->data, out->len};
        next = 1 - next;
    }
    return text;
}
