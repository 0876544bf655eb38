/* Tokens of PTX text, and the arena that a module's structures live in. */
#include "tests/ptxvm/ptx.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ptxvm/rt_alloc.h"

struct ptx_chunk {
    struct ptx_chunk *next;
    size_t used, size;
    _Alignas(16) uint8_t bytes[];
};

void *ptx_alloc(struct ptx_arena *a, size_t bytes) {
    bytes = (bytes + 15) & ~(size_t)15;
    struct ptx_chunk *c = a->chunks;
    if (!c || c->size - c->used < bytes) {
        size_t size = bytes > 65536 ? bytes : 65536;
        c = rt_calloc(sizeof *c + size);
        c->size = size;
        c->next = a->chunks;
        a->chunks = c;
    }
    void *p = c->bytes + c->used;
    c->used += bytes;
    return p;
}

void ptx_arena_free(struct ptx_arena *a) {
    for (struct ptx_chunk *c = a->chunks, *next; c; c = next) {
        next = c->next;
        rt_free(c);
    }
    a->chunks = NULL;
}

bool ptx_text_is(struct ptx_text t, const char *s) {
    return strlen(s) == (size_t)t.len && !memcmp(t.s, s, (size_t)t.len);
}

bool ptx_text_same(struct ptx_text a, struct ptx_text b) {
    return a.len == b.len && !memcmp(a.s, b.s, (size_t)a.len);
}

char *ptx_text_copy(struct ptx_arena *a, struct ptx_text t) {
    char *s = ptx_alloc(a, (size_t)t.len + 1);
    memcpy(s, t.s, (size_t)t.len);
    return s;
}

void *ptx_grow(void *array, int32_t count, int32_t *capacity, size_t element_bytes) {
    if (count < *capacity)
        return array;
    *capacity = *capacity ? *capacity * 2 : 16;
    return rt_realloc(array, (size_t)*capacity * element_bytes);
}

void ptx_fail(struct ptx_lexer *lx, int32_t line, const char *fmt, ...) {
    int n = snprintf(lx->error, lx->error_bytes, "PTX line %d: ", line);
    va_list ap;
    va_start(ap, fmt);
    if (n > 0 && (size_t)n < lx->error_bytes)
        vsnprintf(lx->error + n, lx->error_bytes - (size_t)n, fmt, ap);
    va_end(ap);
    longjmp(*lx->fail, 1);
}

static void skip_space(struct ptx_lexer *lx) {
    while (lx->at < lx->end) {
        if (*lx->at == '\n')
            lx->line++;
        if (isspace((unsigned char)*lx->at)) {
            lx->at++;
        } else if (lx->at + 1 < lx->end && lx->at[0] == '/' && lx->at[1] == '/') {
            while (lx->at < lx->end && *lx->at != '\n')
                lx->at++;
        } else if (lx->at + 1 < lx->end && lx->at[0] == '/' && lx->at[1] == '*') {
            for (lx->at += 2; lx->at + 1 < lx->end && (lx->at[0] != '*' || lx->at[1] != '/');
                 lx->at++)
                lx->line += *lx->at == '\n';
            lx->at = lx->at + 2 < lx->end ? lx->at + 2 : lx->end;
        } else {
            return;
        }
    }
}

static bool is_name(char c) {
    return isalnum((unsigned char)c) || c == '_' || c == '$' || c == '%';
}

/* Dots belong to opcodes and special registers, but each directive stands alone (.reg.b16 is two);
 * "::" belongs to qualifiers such as .L2::128B. */
static void name_token(struct ptx_lexer *lx) {
    const char *start = lx->at;
    while (lx->at < lx->end) {
        if (is_name(*lx->at))
            lx->at++;
        else if (*lx->at == '.' && lx->at + 1 < lx->end && is_name(lx->at[1]) &&
                 (*start != '.' || lx->at == start))
            lx->at++;
        else if (*lx->at == ':' && lx->at + 2 < lx->end && lx->at[1] == ':' && is_name(lx->at[2]))
            lx->at += 2;
        else
            break;
    }
    lx->token.kind = *start == '.' ? PTX_DIRECTIVE : PTX_NAME;
    lx->token.text = (struct ptx_text){start, (int32_t)(lx->at - start)};
}

static void hex_real(struct ptx_lexer *lx, int digits) {
    uint64_t bits = 0;
    lx->at += 2;
    for (int i = 0; i < digits; i++, lx->at++) {
        char c = lx->at < lx->end ? *lx->at : 0;
        if (!isxdigit((unsigned char)c))
            ptx_fail(lx, lx->line, "a floating-point constant of %d hex digits is cut short",
                     digits);
        bits = bits << 4 | (uint64_t)(isdigit((unsigned char)c) ? c - '0' : (c | 32) - 'a' + 10);
    }
    lx->token.kind = PTX_REAL;
    lx->token.real = bits;
    lx->token.single = digits == 8;
}

static void number_token(struct ptx_lexer *lx) {
    const char *s = lx->at;
    if (s[0] == '0' && lx->end - s > 9 && (s[1] == 'f' || s[1] == 'F')) {
        hex_real(lx, 8);
        return;
    }
    if (s[0] == '0' && lx->end - s > 17 && (s[1] == 'd' || s[1] == 'D')) {
        hex_real(lx, 16);
        return;
    }
    char *end;
    bool real = false;
    if (!(s[0] == '0' && (s[1] == 'x' || s[1] == 'X')))
        for (const char *c = s; c < lx->end && (isalnum((unsigned char)*c) || *c == '.'); c++)
            real |= *c == '.';
    if (real) {
        double v = strtod(s, &end);
        lx->token.kind = PTX_REAL;
        memcpy(&lx->token.real, &v, 8);
        lx->token.single = false;
    } else {
        bool binary = s[0] == '0' && (s[1] == 'b' || s[1] == 'B');
        lx->token.kind = PTX_NUMBER;
        lx->token.number = binary ? strtoull(s + 2, &end, 2) : strtoull(s, &end, 0);
        if (*end == 'U')
            end++;
    }
    lx->at = end;
}

static void string_token(struct ptx_lexer *lx) {
    const char *start = ++lx->at;
    while (lx->at < lx->end && *lx->at != '"' && *lx->at != '\n')
        lx->at++;
    if (lx->at >= lx->end || *lx->at != '"')
        ptx_fail(lx, lx->line, "a string does not end");
    lx->token.kind = PTX_STRING;
    lx->token.text = (struct ptx_text){start, (int32_t)(lx->at - start)};
    lx->at++;
}

void ptx_next(struct ptx_lexer *lx) {
    skip_space(lx);
    lx->token = (struct ptx_token){.line = lx->line};
    if (lx->at >= lx->end || !*lx->at) {
        lx->token.kind = PTX_END;
        return;
    }
    char c = *lx->at;
    if (isdigit((unsigned char)c)) {
        number_token(lx);
    } else if (is_name(c) || (c == '.' && lx->at + 1 < lx->end && is_name(lx->at[1]))) {
        name_token(lx);
    } else if (c == '"') {
        string_token(lx);
    } else {
        lx->token.kind = PTX_PUNCT;
        lx->token.punct = c;
        lx->token.text = (struct ptx_text){lx->at, 1};
        lx->at++;
    }
}

/* Braces in comments and strings do not count. */
void ptx_skip_body(struct ptx_lexer *lx) {
    int32_t line = lx->line;
    for (int depth = 1; depth;) {
        lx->at += strcspn(lx->at, "\n{}/\"");
        if (lx->at >= lx->end)
            ptx_fail(lx, line, "a body does not end");
        if (*lx->at == '"') {
            string_token(lx);
        } else if (*lx->at == '/' && (lx->at[1] == '/' || lx->at[1] == '*')) {
            skip_space(lx);
        } else {
            depth += (*lx->at == '{') - (*lx->at == '}');
            lx->line += *lx->at == '\n';
            lx->at++;
        }
    }
    ptx_next(lx);
}

bool ptx_accept(struct ptx_lexer *lx, char punct) {
    if (lx->token.kind != PTX_PUNCT || lx->token.punct != punct)
        return false;
    ptx_next(lx);
    return true;
}

void ptx_expect(struct ptx_lexer *lx, char punct) {
    if (!ptx_accept(lx, punct))
        ptx_fail(lx, lx->token.line, "'%c' expected before '%.*s'", punct, lx->token.text.len,
                 lx->token.text.s);
}
