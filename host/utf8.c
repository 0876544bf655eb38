#include "utf8.h"

#include <string.h>

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

/* The well-formed sequences by lead byte: how many bytes, and the range of the second byte, which
 * alone keeps overlong forms, surrogates and values above U+10FFFF out (Unicode, table 3-7). */
static int lead_byte(unsigned char b, unsigned char *lo, unsigned char *hi) {
    *lo = b == 0xE0 ? 0xA0 : b == 0xF0 ? 0x90 : 0x80;
    *hi = b == 0xED ? 0x9F : b == 0xF4 ? 0x8F : 0xBF;
    if (b < 0x80)
        return 1;
    if (b < 0xC2 || b > 0xF4)
        return 0;
    return b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
}

size_t utf8_next(const char *s, size_t len, uint32_t *cp) {
    const unsigned char *p = (const unsigned char *)s;
    unsigned char lo, hi;
    int n = lead_byte(p[0], &lo, &hi);
    if (n <= 1) {
        *cp = n == 1 ? p[0] : UTF8_INVALID;
        return 1;
    }
    uint32_t v = p[0] & (0x7Fu >> n);
    for (int i = 1; i < n; i++) {
        if ((size_t)i == len) {
            *cp = UTF8_INCOMPLETE;
            return len;
        }
        if (p[i] < lo || p[i] > hi) {
            *cp = UTF8_INVALID;
            return (size_t)i;
        }
        v = v << 6 | (p[i] & 0x3Fu);
        lo = 0x80;
        hi = 0xBF;
    }
    *cp = v;
    return (size_t)n;
}

size_t utf8_valid_prefix(const char *s, size_t len) {
    size_t i = 0;
    while (i < len) {
        uint64_t word;
        if (len - i >= 8) {
            memcpy(&word, s + i, 8);
            if ((word & 0x8080808080808080u) == 0) {
                i += 8;
                continue;
            }
        }
        uint32_t cp;
        size_t n = utf8_next(s + i, len - i, &cp);
        if (cp >= UTF8_INCOMPLETE)
            return i;
        i += n;
    }
    return len;
}

void utf8_append_lossy(struct buffer *out, const char *s, size_t len) {
    while (len > 0) {
        size_t n = utf8_valid_prefix(s, len);
        buffer_append(out, s, n);
        s += n;
        len -= n;
        if (len > 0) {
            uint32_t cp;
            n = utf8_next(s, len, &cp);
            buffer_append(out, replacement, 3);
            s += n;
            len -= n;
        }
    }
}

size_t utf8_put(char out[4], uint32_t cp) {
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    size_t n = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, cp >>= 6)
        out[i] = (char)(0x80 | (cp & 0x3F));
    out[0] = (char)((0xF00u >> n) | cp);
    return n;
}

bool utf8_is_space(uint32_t cp) {
    if (cp < 0x80)
        return cp == ' ' || (cp >= 9 && cp <= 13);
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) ||
           cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

static bool is_stripped(uint32_t cp) {
    return utf8_is_space(cp) || (cp >= 0x1C && cp <= 0x1F);
}

void utf8_strip(const char **s, size_t *len) {
    const char *p = *s, *end = p + *len;
    uint32_t cp;
    while (p < end) {
        size_t n = utf8_next(p, (size_t)(end - p), &cp);
        if (!is_stripped(cp))
            break;
        p += n;
    }
    while (end > p) {
        const char *last = end - 1;
        while (last > p && ((unsigned char)*last & 0xC0) == 0x80)
            last--;
        if (utf8_next(last, (size_t)(end - last), &cp) != (size_t)(end - last) || !is_stripped(cp))
            break;
        end = last;
    }
    *s = p;
    *len = (size_t)(end - p);
}
