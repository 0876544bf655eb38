#include "host/ini.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

static const char BLANKS[] = " \t\r\n";

static bool is_blank(char c) {
    return c == ' ' || c == '\t';
}

/* ---- reading ---- */

/* What one line holds, within the line itself. */
struct ini_line {
    char *name;  /* NULL: nothing, a comment or a section */
    char *value; /* unquoted */
};

static int hex_digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte that an escape stands for, *p behind its backslash and then behind it; -1: none. */
static int unescape(char **p) {
    static const char letters[] = "nrt\"\\", bytes[] = "\n\r\t\"\\";
    char c = *(*p)++;
    const char *at = c ? strchr(letters, c) : NULL;
    if (at)
        return bytes[at - letters];
    if (c != 'x' || hex_digit((*p)[0]) < 0 || hex_digit((*p)[1]) < 0)
        return -1;
    int byte = hex_digit((*p)[0]) * 16 + hex_digit((*p)[1]);
    *p += 2;
    return byte ? byte : -1;
}

/* Takes the quotes off in place; NULL on success, or what is wrong. */
static const char *unquote(char *value) {
    char *to = value, *p = value + 1;
    while (*p && *p != '"') {
        int c = (unsigned char)*p++;
        if (c == '\\' && (c = unescape(&p)) < 0)
            return "within quotes, a backslash is followed by n, r, t, \", \\ or xHH";
        *to++ = (char)c;
    }
    if (*p != '"')
        return "a quote is not closed";
    p += 1 + strspn(p + 1, BLANKS);
    *to = '\0';
    return *p == '\0' || *p == ';' ? NULL : "something follows the closing quote";
}

/* Ends the text at a comment, and before the blanks at its end. */
static void cut_comment(char *text) {
    char *p = text;
    while (*p && !(*p == ';' && p > text && is_blank(p[-1])))
        p++;
    while (p > text && strchr(BLANKS, p[-1]))
        p--;
    *p = '\0';
}

/* NULL on success, or what is wrong. */
static const char *take_apart(char *text, struct ini_line *out) {
    static const char expected[] = "expected `name = value`";
    out->name = NULL;
    text += strspn(text, BLANKS);
    if (*text == '\0' || *text == ';' || *text == '#')
        return NULL;
    if (*text == '[')
        return strchr(text, ']') ? NULL : expected;
    char *equals = text + strcspn(text, "=:");
    if (*equals == '\0' || equals == text)
        return expected;
    char *end = equals, *value = equals + 1;
    while (end > text && is_blank(end[-1]))
        end--;
    *end = '\0';
    out->name = text;
    out->value = value + strspn(value, BLANKS);
    if (*out->value == '"')
        return unquote(out->value);
    cut_comment(value); /* the blank that a comment needs may be the one behind '=' */
    out->value = value + strspn(value, BLANKS);
    return NULL;
}

static int read_line(char *text, size_t len, int32_t number, ini_fn fn, void *ctx,
                     struct error *error) {
    struct ini_line line;
    if (strlen(text) != len)
        return error_set(error, ERR_CONFIG, "a NUL byte");
    if (number == 1 && !strncmp(text, "\xef\xbb\xbf", 3))
        text += 3;
    const char *wrong = take_apart(text, &line);
    if (wrong)
        return error_set(error, ERR_CONFIG, "%s", wrong);
    return line.name ? fn(ctx, line.name, line.value, number, error) : 0;
}

int ini_read(const char *path, ini_fn fn, void *ctx, struct error *error) {
    struct error inner = {0};
    char *text = NULL;
    size_t cap = 0;
    int32_t number = 0;
    int rc = 0;
    FILE *f = fopen(path, "re");
    if (!f)
        return error_set(error, ERR_CONFIG, "%s: %s", path, strerror(errno));
    for (ssize_t len; rc == 0 && (len = getline(&text, &cap, f)) >= 0;)
        rc = read_line(text, (size_t)len, ++number, fn, ctx, &inner);
    if (rc != 0)
        rc = error_set(error, ERR_CONFIG, "%.1000s:%d: %.3000s", path, number, inner.text);
    else if (!feof(f))
        rc = error_set(error, ERR_CONFIG, "%s: %s", path, strerror(errno));
    fclose(f);
    free(text);
    return rc;
}

/* ---- writing ---- */

static bool needs_quotes(const char *s) {
    size_t len = strlen(s);
    if (len == 0 || strchr("\" ;", *s) || s[len - 1] == ' ')
        return true;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)s[i] < 0x20 || s[i] == 0x7f || (s[i] == ';' && s[i - 1] == ' '))
            return true;
    return false;
}

void ini_put_value(struct buffer *out, const char *value) {
    if (!needs_quotes(value)) {
        buffer_puts(out, value);
        return;
    }
    buffer_putc(out, '"');
    for (const char *p = value; *p; p++) {
        if (*p == '"' || *p == '\\')
            buffer_printf(out, "\\%c", *p);
        else if ((unsigned char)*p < 0x20 || *p == 0x7f)
            buffer_printf(out, "\\x%02x", (unsigned)*p);
        else
            buffer_putc(out, *p);
    }
    buffer_putc(out, '"');
}
