#include "json_text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "utf8.h"

/* ---- scanning ---- */

enum state {
    WANT_VALUE, /* must be 0: the start */
    WANT_VALUE_OR_CLOSE,
    WANT_KEY,
    WANT_KEY_OR_CLOSE,
    WANT_COLON,
    AFTER_VALUE,
    IN_STRING,
    IN_ESCAPE,
    IN_HEX,
    IN_NUMBER,
    IN_LITERAL,
};

/* Where in a number: "-12.5e+3". */
enum number { MINUS, ZERO, INTEGER, POINT, FRACTION, E, SIGN, EXPONENT };

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static bool is_hex(char c) {
    return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static bool in_array(const struct json_scan *s) {
    return s->depth > 0 && (s->arrays >> (s->depth - 1) & 1);
}

static void end_value(struct json_scan *s) {
    s->state = AFTER_VALUE;
    s->ended = s->depth == 0;
}

static enum json_step open_container(struct json_scan *s, bool array) {
    if (s->depth == JSON_TEXT_MAX_DEPTH)
        return JSON_STEP_ERROR;
    uint64_t bit = UINT64_C(1) << s->depth++;
    s->arrays = array ? s->arrays | bit : s->arrays & ~bit;
    s->state = array ? WANT_VALUE_OR_CLOSE : WANT_KEY_OR_CLOSE;
    return JSON_STEP_OPEN;
}

static enum json_step close_container(struct json_scan *s, char c) {
    if (s->depth == 0 || c != (in_array(s) ? ']' : '}'))
        return JSON_STEP_ERROR;
    s->depth--;
    end_value(s);
    return JSON_STEP_CLOSE;
}

static enum json_step begin_string(struct json_scan *s, bool key) {
    s->key = key;
    s->state = IN_STRING;
    return JSON_STEP_STRING_BEGIN;
}

static enum json_step begin_value(struct json_scan *s, char c) {
    if (c == '{' || c == '[')
        return open_container(s, c == '[');
    if (c == '"')
        return begin_string(s, false);
    if (c == '-' || is_digit(c)) {
        s->number = c == '-' ? MINUS : c == '0' ? ZERO : INTEGER;
        s->state = IN_NUMBER;
        return JSON_STEP_SCALAR_BEGIN;
    }
    if (c != 't' && c != 'f' && c != 'n')
        return JSON_STEP_ERROR;
    s->literal = c == 't' ? "rue" : c == 'f' ? "alse" : "ull";
    s->state = IN_LITERAL;
    return JSON_STEP_SCALAR_BEGIN;
}

static enum json_step after_value(struct json_scan *s, char c) {
    if (c != ',')
        return close_container(s, c);
    if (s->depth == 0)
        return JSON_STEP_ERROR;
    s->state = in_array(s) ? WANT_VALUE : WANT_KEY;
    return JSON_STEP_COMMA;
}

static bool number_complete(uint8_t number) {
    return number == ZERO || number == INTEGER || number == FRACTION || number == EXPONENT;
}

/* A byte within a number, or the first one after it. */
static enum json_step number_byte(struct json_scan *s, char c) {
    uint8_t n = s->number;
    if (is_digit(c)) {
        if (n == ZERO)
            return JSON_STEP_ERROR;
        s->number = n == MINUS            ? (c == '0' ? ZERO : INTEGER)
                    : n == POINT          ? FRACTION
                    : n == E || n == SIGN ? EXPONENT
                                          : n;
        return JSON_STEP_SCALAR;
    }
    if (c == '.' && (n == ZERO || n == INTEGER)) {
        s->number = POINT;
        return JSON_STEP_SCALAR;
    }
    if ((c == 'e' || c == 'E') && (n == ZERO || n == INTEGER || n == FRACTION)) {
        s->number = E;
        return JSON_STEP_SCALAR;
    }
    if ((c == '+' || c == '-') && n == E) {
        s->number = SIGN;
        return JSON_STEP_SCALAR;
    }
    if (!number_complete(n))
        return JSON_STEP_ERROR;
    struct json_scan before = *s;
    end_value(s);
    enum json_step step = json_scan_byte(s, c);
    if (step == JSON_STEP_ERROR)
        *s = before;
    return step;
}

static enum json_step string_byte(struct json_scan *s, char c) {
    if (s->state == IN_HEX) {
        if (!is_hex(c))
            return JSON_STEP_ERROR;
        if (--s->hex == 0)
            s->state = IN_STRING;
    } else if (s->state == IN_ESCAPE) {
        if (!c || !strchr("\"\\/bfnrtu", c))
            return JSON_STEP_ERROR;
        s->state = c == 'u' ? IN_HEX : IN_STRING;
        s->hex = 4;
    } else if (c == '"') {
        if (s->key)
            s->state = WANT_COLON;
        else
            end_value(s);
        return JSON_STEP_STRING_END;
    } else if (c == '\\') {
        s->state = IN_ESCAPE;
    } else if ((unsigned char)c < 0x20) {
        return JSON_STEP_ERROR;
    }
    return JSON_STEP_STRING;
}

static enum json_step literal_byte(struct json_scan *s, char c) {
    if (c != *s->literal)
        return JSON_STEP_ERROR;
    if (!*++s->literal)
        end_value(s);
    return JSON_STEP_SCALAR;
}

enum json_step json_scan_byte(struct json_scan *s, char c) {
    if (s->state == IN_STRING || s->state == IN_ESCAPE || s->state == IN_HEX)
        return string_byte(s, c);
    if (s->state == IN_NUMBER)
        return number_byte(s, c);
    if (s->state == IN_LITERAL)
        return literal_byte(s, c);
    if (c == ' ' || c == '\n' || c == '\r' || c == '\t')
        return JSON_STEP_SPACE;
    switch (s->state) {
    case WANT_VALUE_OR_CLOSE:
        return c == ']' ? close_container(s, c) : begin_value(s, c);
    case WANT_KEY_OR_CLOSE:
        if (c == '}')
            return close_container(s, c);
        return c == '"' ? begin_string(s, true) : JSON_STEP_ERROR;
    case WANT_KEY:
        return c == '"' ? begin_string(s, true) : JSON_STEP_ERROR;
    case WANT_COLON:
        s->state = c == ':' ? WANT_VALUE : s->state;
        return c == ':' ? JSON_STEP_COLON : JSON_STEP_ERROR;
    case AFTER_VALUE:
        return after_value(s, c);
    default:
        return begin_value(s, c);
    }
}

bool json_scan_complete(const struct json_scan *s) {
    return s->ended || (s->depth == 0 && s->state == IN_NUMBER && number_complete(s->number));
}

/* ---- strings ---- */

static uint32_t hex4(const char *s) {
    uint32_t v = 0;
    for (int i = 0; i < 4; i++) {
        unsigned c = (unsigned char)s[i];
        v = v << 4 | (c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return v;
}

/* The character of the \u escape whose digits begin at s[0]; *used counts the bytes after "\u". */
static uint32_t unicode_escape(const char *s, size_t len, size_t *used) {
    uint32_t high = hex4(s);
    *used = 4;
    if (high < 0xD800 || high > 0xDFFF)
        return high;
    if (high < 0xDC00 && len >= 10 && s[4] == '\\' && s[5] == 'u') {
        uint32_t low = hex4(s + 6);
        if (low >= 0xDC00 && low <= 0xDFFF) {
            *used = 10;
            return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
        }
    }
    return 0xFFFD;
}

void json_text_decode(struct buffer *out, const char *s, size_t len) {
    static const char names[] = "bfnrt", bytes[] = "\b\f\n\r\t";
    for (size_t i = 0; i < len; i++) {
        if (s[i] != '\\') {
            buffer_putc(out, s[i]);
            continue;
        }
        char c = s[++i];
        if (c == 'u') {
            char utf8[4];
            size_t used;
            uint32_t cp = unicode_escape(s + i + 1, len - i - 1, &used);
            buffer_append(out, utf8, utf8_put(utf8, cp));
            i += used;
        } else {
            const char *name = strchr(names, c);
            buffer_putc(out, name ? bytes[name - names] : c);
        }
    }
}

void json_text_put_string(struct buffer *out, const char *s, size_t len) {
    static const char bytes[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt";
    buffer_putc(out, '"');
    for (size_t i = 0; i < len; i++) {
        const char *found = s[i] ? strchr(bytes, s[i]) : NULL;
        if (found) {
            buffer_putc(out, '\\');
            buffer_putc(out, names[found - bytes]);
        } else if ((unsigned char)s[i] < 0x20) {
            buffer_printf(out, "\\u%04x", (unsigned)(unsigned char)s[i]);
        } else {
            buffer_putc(out, s[i]);
        }
    }
    buffer_putc(out, '"');
}

/* ---- formatting ---- */

void json_text_put_real(struct buffer *out, double d) {
    char text[40];
    int precision = 0;
    do
        snprintf(text, sizeof text, "%.*e", precision, d);
    while (strtod(text, NULL) != d && ++precision < 17);
    char digits[20] = "";
    int count = 0, exponent = atoi(strchr(text, 'e') + 1);
    for (const char *p = text; *p != 'e'; p++)
        if (is_digit(*p))
            digits[count++] = *p;
    while (count > 1 && digits[count - 1] == '0')
        count--;
    if (signbit(d))
        buffer_putc(out, '-');
    if (exponent < -4 || exponent >= 16) {
        buffer_putc(out, digits[0]);
        if (count > 1)
            buffer_printf(out, ".%.*s", count - 1, digits + 1);
        buffer_printf(out, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
    } else if (exponent < 0) {
        buffer_printf(out, "0.%.*s%.*s", -exponent - 1, "000", count, digits);
    } else {
        for (int i = 0; i <= exponent; i++)
            buffer_putc(out, i < count ? digits[i] : '0');
        buffer_printf(out, ".%.*s", count > exponent + 1 ? count - exponent - 1 : 1,
                      count > exponent + 1 ? digits + exponent + 1 : "0");
    }
}

static void put_scalar(struct buffer *out, const char *s, size_t len) {
    char text[400];
    bool real = false;
    for (size_t i = 0; i < len; i++)
        real |= s[i] == '.' || s[i] == 'e' || s[i] == 'E';
    real = real && (*s == '-' || is_digit(*s));
    if (len == 2 && memcmp(s, "-0", 2) == 0) {
        buffer_putc(out, '0');
    } else if (real && len < sizeof text) {
        memcpy(text, s, len);
        text[len] = '\0';
        double d = strtod(text, NULL);
        if (isfinite(d))
            json_text_put_real(out, d);
        else
            buffer_append(out, s, len);
    } else {
        buffer_append(out, s, len);
    }
}

static void put_string(struct buffer *out, const char *s, size_t len) {
    struct buffer text = {0};
    json_text_decode(&text, s, len);
    json_text_put_string(out, text.data, text.len);
    buffer_deinit(&text);
}

static void new_line(struct buffer *out, int spaces) {
    buffer_putc(out, '\n');
    for (int i = 0; i < spaces; i++)
        buffer_putc(out, ' ');
}

int json_text_format(struct buffer *out, const char *s, size_t len, int indent, const char *where,
                     struct error *error) {
    struct json_scan scan = {0};
    size_t start = 0; /* of the string or scalar that is being read */
    size_t most = out->len + JSON_TEXT_MAX_GROWTH * len + 4096;
    bool opened = false, scalar = false;
    for (size_t i = 0; i < len; i++) {
        enum json_step step = json_scan_byte(&scan, s[i]);
        if (step == JSON_STEP_ERROR)
            return error_set(error, ERR_INVALID_REQUEST,
                             "%s: not valid JSON at byte %zu of %zu (of at most %d levels)", where,
                             i, len, JSON_TEXT_MAX_DEPTH);
        if (indent && out->len > most)
            return error_set(
                error, ERR_INVALID_REQUEST,
                "%s: many values are nested deep, and %d spaces a level make them more "
                "than %d times as long",
                where, indent, JSON_TEXT_MAX_GROWTH);
        if (step == JSON_STEP_SCALAR)
            continue;
        if (scalar)
            put_scalar(out, s + start, i - start);
        scalar = step == JSON_STEP_SCALAR_BEGIN;
        if (step == JSON_STEP_SPACE || step == JSON_STEP_STRING)
            continue;
        if (indent && opened != (step == JSON_STEP_CLOSE)) /* but "{}" stays together */
            new_line(out, indent * scan.depth - (step == JSON_STEP_OPEN ? indent : 0));
        opened = step == JSON_STEP_OPEN;
        if (scalar || step == JSON_STEP_STRING_BEGIN) {
            start = i;
        } else if (step == JSON_STEP_STRING_END) {
            put_string(out, s + start + 1, i - start - 1);
        } else {
            buffer_putc(out, s[i]);
            if (step == JSON_STEP_COLON || (step == JSON_STEP_COMMA && !indent))
                buffer_putc(out, ' ');
            else if (step == JSON_STEP_COMMA)
                new_line(out, indent * scan.depth);
        }
    }
    if (scalar)
        put_scalar(out, s + start, len - start);
    if (!json_scan_complete(&scan))
        return error_set(error, ERR_INVALID_REQUEST, "%s: JSON that ends within a value", where);
    return 0;
}
