/* tokenizer_added: added tokens and the search for them in a text.
 *
 * The tokens are kept sorted, so those that begin with given bytes are neighbours: a match is
 * looked for by narrowing that range byte by byte, and the shortest of a range, a prefix of the
 * others, is its first.
 */
#include "tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "mem.h"
#include "utf8.h"

static int compare_texts(const struct added_token *a, const struct added_token *b) {
    int c = memcmp(a->text, b->text, a->len < b->len ? a->len : b->len);
    return c ? c : (a->len > b->len) - (a->len < b->len);
}

static int compare_tokens(const void *a, const void *b) {
    const struct added_token *x = a, *y = b;
    int c = compare_texts(x, y);
    return c ? c : (x->order > y->order) - (x->order < y->order);
}

void added_set_put(struct added_set *s, const struct added_token *token) {
    if (s->count == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 16;
        s->tokens = xrealloc(s->tokens, s->cap * sizeof *s->tokens);
    }
    struct added_token *copy = &s->tokens[s->count];
    *copy = *token;
    copy->text = xmalloc(token->len);
    memcpy(copy->text, token->text, token->len);
    copy->order = (uint32_t)s->count++;
}

static bool same_text(const struct added_token *a, const struct added_token *b) {
    return a->len == b->len && memcmp(a->text, b->text, a->len) == 0;
}

static void index_first_bytes(struct added_set *s) {
    size_t i = 0;
    for (int b = 0; b < 256; b++) {
        s->first[b] = (uint32_t)i;
        while (i < s->count && (unsigned char)s->tokens[i].text[0] == b)
            i++;
    }
    s->first[256] = (uint32_t)i;
}

void added_set_prepare(struct added_set *s) {
    size_t kept = 0;
    if (s->count > 0)
        qsort(s->tokens, s->count, sizeof *s->tokens, compare_tokens);
    for (size_t i = 0; i < s->count; i++) {
        if (i + 1 < s->count && same_text(&s->tokens[i], &s->tokens[i + 1])) {
            free(s->tokens[i].text);
            continue;
        }
        s->tokens[kept] = s->tokens[i];
        s->tokens[kept].order = (uint32_t)kept;
        kept++;
    }
    s->count = kept;
    index_first_bytes(s);
}

struct added_token *added_set_find(const struct added_set *s, const char *text, size_t len) {
    struct added_token key = {.text = (char *)(uintptr_t)text, .len = len};
    size_t lo = 0, hi = s->count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (same_text(&s->tokens[mid], &key))
            return &s->tokens[mid];
        if (compare_texts(&s->tokens[mid], &key) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

void added_set_deinit(struct added_set *s) {
    for (size_t i = 0; i < s->count; i++)
        free(s->tokens[i].text);
    free(s->tokens);
    memset(s, 0, sizeof *s);
}

/* First token in [lo, hi), all alike up to `depth`, whose byte there is at least c. */
static size_t lower_bound(const struct added_token *tokens, size_t lo, size_t hi, size_t depth,
                          int c) {
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (tokens[mid].len <= depth || (unsigned char)tokens[mid].text[depth] < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* The longest token that text begins with, or NULL. */
static const struct added_token *longest_at(const struct added_set *s, const char *text,
                                            size_t len) {
    const struct added_token *best = NULL;
    size_t lo = s->first[(unsigned char)text[0]], hi = s->first[(unsigned char)text[0] + 1];
    for (size_t depth = 1; lo < hi; depth++) {
        if (s->tokens[lo].len == depth)
            best = &s->tokens[lo];
        if (depth == len)
            break;
        lo = lower_bound(s->tokens, lo, hi, depth, (unsigned char)text[depth]);
        hi = lower_bound(s->tokens, lo, hi, depth, (unsigned char)text[depth] + 1);
    }
    return best;
}

/* \w as Rust's regex crate has it, as near as the general category tells. */
static bool is_word(uint32_t cp) {
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return cp == 0x200C || cp == 0x200D;
    }
}

/* The character that ends at text + end. */
static uint32_t char_before(const char *text, size_t end, size_t *start) {
    uint32_t cp;
    *start = end - 1;
    while (*start > 0 && ((unsigned char)text[*start] & 0xC0) == 0x80)
        (*start)--;
    utf8_next(text + *start, end - *start, &cp);
    return cp;
}

static bool is_whole_word(const char *text, size_t len, size_t start, size_t end) {
    size_t at;
    uint32_t cp;
    if (start > 0 && is_word(char_before(text, start, &at)))
        return false;
    if (end == len)
        return true;
    utf8_next(text + end, len - end, &cp);
    return !is_word(cp);
}

static void widen(const struct added_token *token, const char *text, size_t len, size_t done,
                  struct text_span *match) {
    while (token->lstrip && match->start > done) {
        size_t at;
        if (!utf8_is_space(char_before(text, match->start, &at)))
            break;
        match->start = at;
    }
    if (match->start < done)
        match->start = done;
    while (token->rstrip && match->end < len) {
        uint32_t cp;
        size_t n = utf8_next(text + match->end, len - match->end, &cp);
        if (!utf8_is_space(cp))
            break;
        match->end += n;
    }
}

/* Where the first plain text after pos begins (at or before pos when pos is in it), or SIZE_MAX. */
static size_t plain_after(const struct added_rules *rules, size_t pos) {
    size_t lo = 0, hi = rules->num_plain;
    while (lo < hi) { /* the first span that ends after pos */
        size_t mid = lo + (hi - lo) / 2;
        if (rules->plain[mid].end <= pos)
            lo = mid + 1;
        else
            hi = mid;
    }
    while (lo < rules->num_plain && rules->plain[lo].start == rules->plain[lo].end)
        lo++; /* an empty span protects nothing */
    return lo < rules->num_plain ? rules->plain[lo].start : SIZE_MAX;
}

/* The longest token at text[i] that the rules allow: a special one stops short of plain text. */
static const struct added_token *allowed_at(const struct added_set *s, const char *text, size_t len,
                                            const struct added_rules *rules, size_t i) {
    const struct added_token *token = longest_at(s, text + i, len - i);
    if (!token || !token->special)
        return token;
    size_t plain = plain_after(rules, i);
    if (i + token->len <= plain)
        return token;
    return plain > i ? longest_at(s, text + i, plain - i) : NULL;
}

const struct added_token *added_set_next(const struct added_set *s, const char *text, size_t len,
                                         const struct added_rules *rules, size_t done, size_t *pos,
                                         struct text_span *match) {
    if (s->count == 0)
        return NULL;
    for (size_t i = *pos; i < len; i++) {
        unsigned char b = (unsigned char)text[i];
        if (s->first[b] == s->first[b + 1])
            continue;
        const struct added_token *token = allowed_at(s, text, len, rules, i);
        if (!token)
            continue;
        size_t end = i + token->len;
        if ((token->special && !rules->parse_special) ||
            (token->single_word && !is_whole_word(text, len, i, end))) {
            i = end - 1; /* as in the reference, what it covers is not searched again */
            continue;
        }
        *match = (struct text_span){i, end};
        widen(token, text, len, done, match);
        *pos = match->end;
        return token;
    }
    return NULL;
}
