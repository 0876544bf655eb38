/* What tests/bare/jansson.h declares: a recursive reader of JSON into a tree. */
#include "tests/bare/jansson.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "host/utf8.h"

enum { MAX_DEPTH = 2048 };
enum type { T_NULL, T_FALSE, T_TRUE, T_INTEGER, T_REAL, T_STRING, T_ARRAY, T_OBJECT };

struct json_value {
    enum type type;
    long long integer;
    double real;
    char *string;   /* T_STRING; owned */
    json_t **items; /* T_ARRAY, T_OBJECT; owned */
    char **names;   /* T_OBJECT, [count]; owned */
    size_t count, room;
};

/* The text being read. */
struct reader {
    const char *text, *at, *end;
    json_error_t *error;
    int depth;
};

static json_t *read_value(struct reader *r);

/* Says what is wrong here; NULL, for the caller to return. */
static void *fail(struct reader *r, const char *what) {
    int line = 1, column = 0;
    for (const char *p = r->text; p < r->at; p++) {
        column++;
        if (*p == '\n') {
            line++;
            column = 0;
        }
    }
    if (r->error->text[0] == '\0')
        *r->error = (json_error_t){.line = line, .column = column};
    snprintf(r->error->text, sizeof r->error->text, "%s", what);
    return NULL;
}

static void skip_space(struct reader *r) {
    while (r->at < r->end && memchr(" \t\r\n", *r->at, 4))
        r->at++;
}

/* The next byte that is no space, or 0 at the end. */
static char peek(struct reader *r) {
    skip_space(r);
    return r->at < r->end ? *r->at : 0;
}

static bool take(struct reader *r, char c) {
    if (peek(r) != c)
        return false;
    r->at++;
    return true;
}

static json_t *new_value(enum type type) {
    json_t *v = xcalloc(1, sizeof *v);
    v->type = type;
    return v;
}

void json_decref(json_t *v) {
    if (!v)
        return;
    for (size_t i = 0; i < v->count; i++) {
        json_decref(v->items[i]);
        if (v->names)
            free(v->names[i]);
    }
    free(v->items);
    free(v->names);
    free(v->string);
    free(v);
}

/* Adds an item, which the container owns from now on; name NULL in an array. */
static void add(json_t *container, char *name, json_t *item) {
    if (container->count == container->room) {
        container->room = container->room ? 2 * container->room : 8;
        container->items = xrealloc(container->items, container->room * sizeof(json_t *));
        if (container->type == T_OBJECT)
            container->names = xrealloc(container->names, container->room * sizeof(char *));
    }
    if (container->type == T_OBJECT)
        container->names[container->count] = name;
    container->items[container->count++] = item;
}

/* ---- strings ------------------------------------------------------------------------------------
 */

/* Four hexadecimal digits; -1 when they are not. */
static int32_t read_hex(struct reader *r) {
    int32_t v = 0;
    for (int i = 0; i < 4; i++, r->at++) {
        const char *digits = "0123456789abcdefABCDEF";
        const char *d = r->at < r->end && *r->at ? strchr(digits, *r->at) : NULL;
        if (!d)
            return -1;
        v = v * 16 + (int32_t)(d - digits < 16 ? d - digits : d - digits - 6);
    }
    return v;
}

/* What follows a backslash and 'u', as UTF-8 into out; the bytes written, 0 when it is wrong. */
static size_t read_unicode(struct reader *r, char out[4]) {
    int32_t c = read_hex(r);
    if (c >= 0xd800 && c < 0xdc00 && r->end - r->at >= 6 && r->at[0] == '\\' && r->at[1] == 'u') {
        r->at += 2;
        int32_t low = read_hex(r);
        c = low >= 0xdc00 && low < 0xe000 ? 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00) : -1;
    }
    if (c <= 0 || (c >= 0xd800 && c < 0xe000))
        return 0;
    return utf8_put(out, (uint32_t)c);
}

/* A string behind its opening quote, to be freed; NULL after an error. */
static char *read_string(struct reader *r) {
    static const char names[] = "\"\\/bfnrt", bytes[] = "\"\\/\b\f\n\r\t";
    char *out = xmalloc((size_t)(r->end - r->at) + 1);
    size_t n = 0;
    for (;;) {
        const char *name;
        size_t wrote = 1;
        if (r->at == r->end || (unsigned char)*r->at < 0x20)
            break;
        char c = *r->at++;
        if (c == '"') {
            out[n] = '\0';
            if (utf8_valid_prefix(out, n) != n)
                break;
            return xrealloc(out, n + 1);
        }
        if (c != '\\')
            out[n] = c;
        else if (r->at < r->end && *r->at && (name = strchr(names, *r->at)))
            out[n] = bytes[name - names];
        else if (r->at == r->end || *r->at != 'u')
            break;
        if (c == '\\' && *r->at++ == 'u' && (wrote = read_unicode(r, out + n)) == 0)
            break;
        n += wrote;
    }
    free(out);
    return fail(r, "invalid string");
}

/* ---- numbers ------------------------------------------------------------------------------------
 */

static size_t count_digits(const char *p) {
    return strspn(p, "0123456789");
}

/* Length of the number at the start of text (zero-terminated), 0 when there is none; *real: has it
 * a fraction or an exponent? */
static size_t number_length(const char *text, bool *real) {
    const char *p = text + (*text == '-');
    size_t n = count_digits(p);
    if (n == 0 || (n > 1 && *p == '0'))
        return 0;
    p += n;
    *real = *p == '.' || *p == 'e' || *p == 'E';
    if (*p == '.') {
        if ((n = count_digits(++p)) == 0)
            return 0;
        p += n;
    }
    if (*p == 'e' || *p == 'E') {
        p += p[1] == '+' || p[1] == '-' ? 2 : 1;
        if ((n = count_digits(p)) == 0)
            return 0;
        p += n;
    }
    return (size_t)(p - text);
}

static json_t *read_number(struct reader *r) {
    char text[64] = "";
    size_t left = (size_t)(r->end - r->at);
    bool real = false;
    memcpy(text, r->at, left < sizeof text - 1 ? left : sizeof text - 1);
    size_t n = number_length(text, &real);
    if (n == 0 || n == sizeof text - 1)
        return fail(r, "invalid token");
    text[n] = '\0';
    errno = 0;
    json_t *v = new_value(real ? T_REAL : T_INTEGER);
    v->integer = real ? 0 : strtoll(text, NULL, 10);
    v->real = strtod(text, NULL);
    if (errno == ERANGE && (!real || isinf(v->real))) {
        json_decref(v);
        return fail(r, "number too big");
    }
    r->at += n;
    return v;
}

/* ---- values -------------------------------------------------------------------------------------
 */

static json_t *read_array(struct reader *r) {
    json_t *v = new_value(T_ARRAY), *item;
    if (take(r, ']'))
        return v;
    do {
        if (!(item = read_value(r))) {
            json_decref(v);
            return NULL;
        }
        add(v, NULL, item);
    } while (take(r, ','));
    if (take(r, ']'))
        return v;
    json_decref(v);
    return fail(r, "']' expected");
}

static json_t *read_object(struct reader *r) {
    json_t *v = new_value(T_OBJECT), *item;
    char *name = NULL;
    if (take(r, '}'))
        return v;
    do {
        if (!take(r, '"')) {
            fail(r, "string expected");
            goto fail;
        }
        if (!(name = read_string(r)))
            goto fail;
        if (json_object_get(v, name)) {
            fail(r, "duplicate object key");
            goto fail;
        }
        if (!take(r, ':')) {
            fail(r, "':' expected");
            goto fail;
        }
        if (!(item = read_value(r)))
            goto fail;
        add(v, name, item);
        name = NULL;
    } while (take(r, ','));
    if (take(r, '}'))
        return v;
    fail(r, "'}' expected");
fail:
    free(name);
    json_decref(v);
    return NULL;
}

static json_t *read_word(struct reader *r) {
    static const struct {
        const char *text;
        enum type type;
    } words[] = {{"null", T_NULL}, {"false", T_FALSE}, {"true", T_TRUE}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t n = strlen(words[i].text);
        if ((size_t)(r->end - r->at) >= n && !memcmp(r->at, words[i].text, n)) {
            r->at += n;
            return new_value(words[i].type);
        }
    }
    return fail(r, "invalid token");
}

static json_t *read_value(struct reader *r) {
    json_t *v = NULL;
    char c = peek(r);
    if (++r->depth > MAX_DEPTH)
        return fail(r, "maximum parsing depth reached");
    if (c == '{' || c == '[' || c == '"')
        r->at++;
    if (c == '{') {
        v = read_object(r);
    } else if (c == '[') {
        v = read_array(r);
    } else if (c == '"') {
        char *string = read_string(r);
        v = string ? new_value(T_STRING) : NULL;
        if (v)
            v->string = string;
    } else if (c == '-' || (c >= '0' && c <= '9')) {
        v = read_number(r);
    } else {
        v = read_word(r);
    }
    r->depth--;
    return v;
}

json_t *json_loadb(const char *text, size_t len, size_t flags, json_error_t *error) {
    struct reader r = {.text = text, .at = text, .end = text + len, .error = error};
    (void)flags;
    error->text[0] = '\0';
    json_t *v = read_value(&r);
    skip_space(&r);
    if (!v || r.at == r.end)
        return v;
    json_decref(v);
    return fail(&r, "end of file expected");
}

/* ---- reading ------------------------------------------------------------------------------------
 */

static bool is(const json_t *v, enum type type) {
    return v && v->type == type;
}

int json_is_object(const json_t *v) {
    return is(v, T_OBJECT);
}

int json_is_array(const json_t *v) {
    return is(v, T_ARRAY);
}

int json_is_string(const json_t *v) {
    return is(v, T_STRING);
}

int json_is_integer(const json_t *v) {
    return is(v, T_INTEGER);
}

int json_is_number(const json_t *v) {
    return is(v, T_INTEGER) || is(v, T_REAL);
}

int json_is_true(const json_t *v) {
    return is(v, T_TRUE);
}

int json_is_boolean(const json_t *v) {
    return is(v, T_TRUE) || is(v, T_FALSE);
}

int json_is_null(const json_t *v) {
    return is(v, T_NULL);
}

const char *json_string_value(const json_t *v) {
    return is(v, T_STRING) ? v->string : NULL;
}

long long json_integer_value(const json_t *v) {
    return is(v, T_INTEGER) ? v->integer : 0;
}

double json_number_value(const json_t *v) {
    return json_is_number(v) ? v->real : 0;
}

size_t json_array_size(const json_t *v) {
    return is(v, T_ARRAY) ? v->count : 0;
}

json_t *json_array_get(const json_t *v, size_t i) {
    return i < json_array_size(v) ? v->items[i] : NULL;
}

size_t json_object_size(const json_t *v) {
    return is(v, T_OBJECT) ? v->count : 0;
}

json_t *json_object_get(const json_t *v, const char *key) {
    for (size_t i = 0; i < json_object_size(v); i++)
        if (!strcmp(v->names[i], key))
            return v->items[i];
    return NULL;
}

const char *json_object_member(const json_t *v, size_t i, json_t **value) {
    if (i >= json_object_size(v))
        return NULL;
    *value = v->items[i];
    return v->names[i];
}

char *json_dumps(const json_t *v, size_t flags) {
    char text[256];
    (void)flags;
    if (is(v, T_STRING))
        snprintf(text, sizeof text, "\"%s\"", v->string);
    else if (is(v, T_INTEGER))
        snprintf(text, sizeof text, "%lld", v->integer);
    else if (is(v, T_REAL)) /* a real keeps its looks */
        snprintf(text, sizeof text,
                 v->real == floor(v->real) && fabs(v->real) < 1e15 ? "%.1f" : "%.17g", v->real);
    else if (v && v->type <= T_TRUE)
        snprintf(text, sizeof text, "%s",
                 v->type == T_NULL   ? "null"
                 : v->type == T_TRUE ? "true"
                                     : "false");
    else
        return NULL;
    return xstrdup(text);
}
