/* tokenizer_regex: the regular expressions of tokenizer.json, written for Oniguruma, run by PCRE2.
 *
 * The two differ in ways that published patterns touch, and the pattern is rewritten for these:
 *   \s \S   Unicode White_Space there; PCRE2 adds U+180E
 *   $ ^     match at every line end and start there, so PCRE2 gets MULTILINE with LF as newline
 *   \uHHHH  written \x{HHHH} here
 *   \s+$    gets a look-behind: the same matches, but no new attempt at each space of a long run,
 *           which would be quadratic
 * Whatever else means something different (\h, \w, (?m), {2}+, nested sets, && in sets) is refused.
 */
#include "tokenizer_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem.h"

/* The members of White_Space, to stand within a set. */
#define SPACES                                                                                     \
    "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"        \
    "\\x{205f}\\x{3000}"

struct translation {
    struct buffer out;
    const char *in;
    size_t len, i;
    bool in_set;
    const char *refused; /* what PCRE2 reads differently; NULL while all is well */
};

static bool is_hex(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* Translates the escape at t->in[t->i], a backslash. */
static void translate_escape(struct translation *t) {
    if (t->i + 1 == t->len) {
        t->refused = "a final backslash";
        return;
    }
    char c = t->in[t->i + 1];
    if (c == 's' || (c == 'S' && !t->in_set)) {
        buffer_puts(&t->out, t->in_set ? SPACES : c == 's' ? "[" SPACES "]" : "[^" SPACES "]");
    } else if (c == 'u') {
        const char *hex = t->in + t->i + 2;
        if (t->len - t->i < 6 || !is_hex(hex[0]) || !is_hex(hex[1]) || !is_hex(hex[2]) ||
            !is_hex(hex[3])) {
            t->refused = "\\u without four digits";
            return;
        }
        buffer_printf(&t->out, "\\x{%.4s}", hex);
        t->i += 4;
    } else if (c == 'v') {
        buffer_puts(&t->out, "\\x0b");
    } else if ((c >= '0' && c <= '9') || strchr("hHwWCEGKLNQRSUXYgkloy", c)) {
        t->refused = "an escape that PCRE2 reads differently";
        return;
    } else {
        const char *end = memchr(t->in + t->i, '}', t->len - t->i);
        bool braced = t->i + 2 < t->len && t->in[t->i + 2] == '{' && strchr("pPx", c) && end;
        size_t n = braced ? (size_t)(end - (t->in + t->i)) + 1 : 2;
        buffer_append(&t->out, t->in + t->i, n);
        t->i += n - 2;
    }
    t->i += 2;
}

static void translate_char(struct translation *t) {
    const char *p = t->in + t->i;
    size_t left = t->len - t->i;
    bool posix = t->in_set && left >= 2 && p[0] == '[' && p[1] == ':';
    if (t->in_set && ((p[0] == '[' && !posix) || (left >= 2 && p[0] == '&' && p[1] == '&'))) {
        t->refused = "a set within a set";
    } else if (posix) {
        const char *end = memchr(p, ']', left);
        size_t n = end ? (size_t)(end - p) + 1 : left;
        buffer_append(&t->out, p, n);
        t->i += n - 1;
    } else if (!t->in_set && p[0] == '[') {
        t->in_set = true;
        buffer_putc(&t->out, '[');
        if (left >= 2 && p[1] == '^') {
            buffer_putc(&t->out, '^');
            t->i++;
        }
        if (t->i + 1 < t->len && t->in[t->i + 1] == ']')
            t->refused = "an empty set";
    } else if (!t->in_set && left >= 2 && p[0] == '(' && p[1] == '*') {
        t->refused = "(*";
    } else if (!t->in_set && left >= 2 && p[0] == '}' && p[1] == '+') {
        t->refused = "a possessive interval"; /* a repeated interval there */
    } else if (!t->in_set && left >= 3 && p[0] == '(' && p[1] == '?' && strchr("ms", p[2])) {
        t->refused = "(?m)";
    } else {
        if (p[0] == ']')
            t->in_set = false;
        buffer_putc(&t->out, p[0]);
    }
    t->i++;
}

static int translate(struct buffer *out, const char *pattern, size_t len, const char *where,
                     struct error *error) {
    struct translation t = {.in = pattern, .len = len};
    if (len == 4 && memcmp(pattern, "\\s+$", 4) == 0)
        buffer_puts(&t.out, "(?<![" SPACES "])");
    while (t.i < len && !t.refused) {
        if (pattern[t.i] == '\\')
            translate_escape(&t);
        else
            translate_char(&t);
    }
    *out = t.out;
    return t.refused ? error_set(error, ERR_UNSUPPORTED, "%s: regular expression with %s", where,
                                 t.refused)
                     : 0;
}

int regex_compile(struct regex *r, const char *pattern, size_t len, const char *where,
                  struct error *error) {
    struct buffer text = {0};
    int rc = 0, code;
    PCRE2_SIZE offset;
    memset(r, 0, sizeof *r);
    if (len > TOKENIZER_MAX_REGEX_BYTES)
        return error_set(error, ERR_UNSUPPORTED, "%s: regular expression of %zu bytes, limit %d",
                         where, len, (int)TOKENIZER_MAX_REGEX_BYTES);
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context)
        mem_exhausted(0);
    if ((rc = translate(&text, pattern, len, where, error)) != 0)
        goto out;
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    r->code = pcre2_compile((PCRE2_SPTR)(text.data ? text.data : ""), text.len,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                            &code, &offset, context);
    if (!r->code) {
        char message[256];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)message, sizeof message);
        rc = error_set(error, ERR_BAD_FILE, "%s: regular expression: %s", where, message);
        goto out;
    }
    pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE); /* without it the interpreter runs */
    r->context = pcre2_match_context_create(NULL);
    if (!r->context)
        mem_exhausted(0);
    pcre2_set_heap_limit(r->context, 256 << 10); /* KiB */
out:
    pcre2_compile_context_free(context);
    buffer_deinit(&text);
    return rc;
}

void regex_deinit(struct regex *r) {
    pcre2_code_free(r->code);
    pcre2_match_context_free(r->context);
    memset(r, 0, sizeof *r);
}

static int match_at(const struct regex_iter *it, size_t pos) {
    const struct regex *r = it->regex;
    int rc = pcre2_match(r->code, (PCRE2_SPTR)it->text, it->len, pos, PCRE2_NO_UTF_CHECK, it->data,
                         r->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(r->code, (PCRE2_SPTR)it->text, it->len, pos,
                         PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, it->data, r->context);
    return rc;
}

bool regex_next(struct regex_iter *it, struct text_span *match) {
    while (it->pos <= it->len) {
        int rc = match_at(it, it->pos);
        if (rc < 0) {
            it->failed = rc != PCRE2_ERROR_NOMATCH;
            return false;
        }
        const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(it->data);
        size_t start = ends[0], end = ends[1];
        if (start == end && end == it->last_end) {
            /* An empty match right after the last one would repeat for ever: one character on. */
            do
                it->pos++;
            while (it->pos < it->len && ((unsigned char)it->text[it->pos] & 0xC0) == 0x80);
            continue;
        }
        it->pos = it->last_end = end;
        *match = (struct text_span){start, end};
        return true;
    }
    return false;
}
