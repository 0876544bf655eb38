#include "safetensors.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem.h"

#define HEADER_MAX_BYTES 100000000u

struct safetensors {
    struct file_map map; /* empty when the bytes are the caller's */
    char *path;
    char *names; /* all decoded names, NUL-terminated */
    struct tensor_view *tensors;
    size_t count, capacity;
    size_t bytes;
};

static const struct {
    const char *name;
    unsigned bits;
} dtypes[] = {
    {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"BOOL", 8},    {"U8", 8},
    {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"I16", 16},
    {"U16", 16}, {"F16", 16},    {"BF16", 16},   {"I32", 32},    {"U32", 32},
    {"F32", 32}, {"F64", 64},    {"I64", 64},    {"U64", 64},    {"C64", 64},
};

/* 0 when unknown. */
static unsigned dtype_bits(const char *name) {
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (strcmp(dtypes[i].name, name) == 0)
            return dtypes[i].bits;
    return 0;
}

/* -------------------------------------------------------------------------------- the scanner */

/* A place in the header. Functions return 0 or an error code after reporting. */
struct scan {
    const unsigned char *p, *end, *start;
    char *names;      /* where the next string is decoded to; never longer than its source */
    const char *data; /* what follows the header */
    size_t data_bytes;
    const char *path;
    const char *tensor; /* whose value is being read; NULL between tensors */
    bool metadata_seen;
    struct error *error;
};

__attribute__((format(printf, 2, 3))) static int syntax(struct scan *s, const char *fmt, ...) {
    char text[160];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return error_set(s->error, ERR_BAD_FILE, "%s: %s%sheader byte %zu: %s", s->path,
                     s->tensor ? s->tensor : "", s->tensor ? ": " : "", (size_t)(s->p - s->start),
                     text);
}

static void skip_space(struct scan *s) {
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\r' || *s->p == '\t'))
        s->p++;
}

/* Takes c if it comes next. */
static bool accept(struct scan *s, char c) {
    skip_space(s);
    if (s->p == s->end || *s->p != (unsigned char)c)
        return false;
    s->p++;
    return true;
}

static int expect(struct scan *s, char c) {
    return accept(s, c) ? 0 : syntax(s, "expected '%c'", c);
}

/* After an element of a list or object that ends with `close`: sets *more when another follows. */
static int next_element(struct scan *s, char close, bool *more) {
    *more = accept(s, ',');
    return *more || accept(s, close) ? 0 : syntax(s, "expected ',' or '%c'", close);
}

/* Length of the valid UTF-8 sequence at p, 0 if there is none. */
static size_t utf8_sequence(const unsigned char *p, size_t left) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = p[0] < 0x80 ? 1 : p[0] >> 5 == 6 ? 2 : p[0] >> 4 == 14 ? 3 : p[0] >> 3 == 30 ? 4 : 0;
    if (n < 2 || n > left)
        return n > left ? 0 : n;
    uint32_t code = p[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if (p[i] >> 6 != 2)
            return 0;
        code = code << 6 | (p[i] & 0x3f);
    }
    bool surrogate = code >> 11 == 0xd800 >> 11;
    return code < least[n] || code > 0x10ffff || surrogate ? 0 : n;
}

static char *utf8_put(char *out, uint32_t code) {
    if (code < 0x80) {
        *out++ = (char)code;
        return out;
    }
    int tail = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    *out++ = (char)((0xf0u << (3 - tail) & 0xff) | code >> 6 * tail);
    while (tail-- > 0)
        *out++ = (char)(0x80 | (code >> 6 * tail & 0x3f));
    return out;
}

/* Four hex digits; -1 if they are not. */
static int32_t hex4(const struct scan *s) {
    int32_t v = 0;
    if (s->end - s->p < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        unsigned char c = s->p[i], lower = c | 0x20;
        if (c >= '0' && c <= '9')
            v = v << 4 | (c - '0');
        else if (lower >= 'a' && lower <= 'f')
            v = v << 4 | (lower - 'a' + 10);
        else
            return -1;
    }
    return v;
}

/* What follows a backslash, decoded to *out. */
static int scan_escape(struct scan *s, char **out) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *simple = s->p < s->end && *s->p ? strchr(from, *s->p) : NULL;
    if (simple) {
        s->p++;
        *(*out)++ = to[simple - from];
        return 0;
    }
    if (s->p == s->end || *s->p != 'u')
        return syntax(s, "bad escape in a string");
    s->p++;
    int32_t code = hex4(s);
    if (code < 0 || (code >= 0xdc00 && code < 0xe000))
        return syntax(s, "bad \\u escape in a string");
    s->p += 4;
    if (code >= 0xd800 && code < 0xdc00) { /* the first half of a pair */
        int32_t low = -1;
        if (s->end - s->p >= 6 && s->p[0] == '\\' && s->p[1] == 'u') {
            s->p += 2;
            low = hex4(s);
        }
        if (low < 0xdc00 || low >= 0xe000)
            return syntax(s, "half of a surrogate pair in a string");
        s->p += 4;
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    *out = utf8_put(*out, (uint32_t)code);
    return 0;
}

/* Decodes a string to s->names and NUL-terminates it there; *len is its length in bytes (it may
 * contain NUL). The caller advances s->names to keep it. */
static int scan_string(struct scan *s, size_t *len) {
    char *out = s->names;
    int rc = expect(s, '"');
    if (rc != 0)
        return rc;
    while (s->p < s->end && *s->p != '"') {
        if (*s->p < 0x20)
            return syntax(s, "control character in a string");
        if (*s->p == '\\') {
            s->p++;
            rc = scan_escape(s, &out);
            if (rc != 0)
                return rc;
            continue;
        }
        size_t n = utf8_sequence(s->p, (size_t)(s->end - s->p));
        if (n == 0)
            return syntax(s, "a string is not UTF-8");
        memcpy(out, s->p, n);
        out += n;
        s->p += n;
    }
    if (s->p == s->end)
        return syntax(s, "unterminated string");
    s->p++;
    *len = (size_t)(out - s->names);
    *out = 0;
    return 0;
}

/* An integer from 0 to INT64_MAX. */
static int scan_int(struct scan *s, int64_t *out) {
    int64_t v = 0;
    skip_space(s);
    const unsigned char *first = s->p;
    while (s->p < s->end && *s->p >= '0' && *s->p <= '9') {
        if (__builtin_mul_overflow(v, (int64_t)10, &v) ||
            __builtin_add_overflow(v, (int64_t)(*s->p - '0'), &v))
            return syntax(s, "number too large");
        s->p++;
    }
    if (s->p == first || (*first == '0' && s->p - first > 1))
        return syntax(s, "expected an integer of at least 0");
    *out = v;
    return 0;
}

/* ----------------------------------------------------------------------------------- elements */

/* A list of at most max integers; *n is their number. */
static int scan_ints(struct scan *s, int64_t *out, int32_t max, int32_t *n) {
    bool more;
    int rc = expect(s, '[');
    *n = 0;
    if (rc != 0 || accept(s, ']'))
        return rc;
    do {
        if (*n == max)
            return syntax(s, "a list of more than %d numbers", max);
        rc = scan_int(s, &out[(*n)++]);
        if (rc == 0)
            rc = next_element(s, ']', &more);
    } while (rc == 0 && more);
    return rc;
}

/* {"dtype": string, "shape": [..], "data_offsets": [begin, end]}, in any order. */
static int scan_info(struct scan *s, struct tensor_view *t, int64_t offsets[2]) {
    static const char *const keys[] = {"dtype", "shape", "data_offsets"};
    unsigned seen = 0;
    size_t len;
    int32_t n = 2;
    bool more;
    int rc = expect(s, '{');
    if (rc != 0)
        return rc;
    do {
        unsigned key = 0;
        rc = scan_string(s, &len);
        if (rc != 0)
            return rc;
        while (key < 3 && (len != strlen(keys[key]) || memcmp(keys[key], s->names, len) != 0))
            key++;
        if (key == 3 || seen >> key & 1)
            return syntax(s, key == 3 ? "unknown key of a tensor" : "a key stands twice");
        seen |= 1u << key;
        rc = expect(s, ':');
        if (rc == 0 && key == 0) {
            rc = scan_string(s, &len);
            if (rc == 0)
                snprintf(t->dtype_text, sizeof t->dtype_text, "%s",
                         len < sizeof t->dtype_text ? s->names : "");
        } else if (rc == 0 && key == 1) {
            rc = scan_ints(s, t->shape, TENSOR_MAX_DIMS, &t->ndim);
        } else if (rc == 0) {
            rc = scan_ints(s, offsets, 2, &n);
        }
        if (rc == 0)
            rc = next_element(s, '}', &more);
    } while (rc == 0 && more);
    if (rc == 0 && (seen != 7 || n != 2))
        rc = syntax(s, "a tensor needs dtype, shape and two data_offsets");
    return rc;
}

/* {string: string, ...}: checked and dropped. */
static int scan_metadata(struct scan *s) {
    size_t len;
    bool more;
    int rc = expect(s, '{');
    if (rc != 0 || accept(s, '}'))
        return rc;
    do {
        rc = scan_string(s, &len);
        if (rc == 0)
            rc = expect(s, ':');
        if (rc == 0)
            rc = scan_string(s, &len);
        if (rc == 0)
            rc = next_element(s, '}', &more);
    } while (rc == 0 && more);
    return rc;
}

/* dtype, byte count and range of one tensor; makes its data pointer. */
static int check_tensor(struct tensor_view *t, const int64_t offsets[2], const char *data,
                        size_t data_bytes, struct error *error) {
    int64_t bits = dtype_bits(t->dtype_text);
    if (bits == 0)
        return error_set(error, ERR_UNSUPPORTED, "%s: tensor %s: unknown dtype \"%s\"", t->path,
                         t->name, t->dtype_text);
    t->dtype = dtype_parse(t->dtype_text);
    /* Every product is checked, also those before a factor 0. */
    for (int32_t i = 0; i < t->ndim; i++)
        if (__builtin_mul_overflow(bits, t->shape[i], &bits))
            return error_set(error, ERR_BAD_FILE, "%s: tensor %s: its size overflows", t->path,
                             t->name);
    if (offsets[0] > offsets[1] || (uint64_t)offsets[1] > data_bytes)
        return error_set(error, ERR_BAD_FILE,
                         "%s: tensor %s: data_offsets [%lld, %lld] are outside the file's %zu "
                         "bytes of data",
                         t->path, t->name, (long long)offsets[0], (long long)offsets[1],
                         data_bytes);
    if (bits % 8 || offsets[1] - offsets[0] != bits / 8)
        return error_set(error, ERR_BAD_FILE,
                         "%s: tensor %s: shape and dtype make %lld bytes, data_offsets %lld",
                         t->path, t->name, (long long)(bits / 8 + (bits % 8 != 0)),
                         (long long)(offsets[1] - offsets[0]));
    t->data = data + offsets[0];
    t->bytes = (size_t)(bits / 8);
    return 0;
}

static int check_name(struct scan *s, size_t len) {
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)s->names[i] < 0x20 || s->names[i] == 0x7f)
            return syntax(s, "control character in a tensor's name");
    return 0;
}

/* One "name": {...} of the header. */
static int scan_entry(struct scan *s, struct safetensors *out) {
    struct tensor_view t = {.path = out->path, .name = s->names};
    int64_t offsets[2] = {0, 0};
    size_t len;
    int rc = scan_string(s, &len);
    if (rc == 0)
        rc = check_name(s, len);
    if (rc == 0)
        rc = expect(s, ':');
    if (rc != 0)
        return rc;
    if (strcmp(s->names, "__metadata__") == 0) {
        if (s->metadata_seen)
            return syntax(s, "__metadata__ stands twice");
        s->metadata_seen = true;
        return scan_metadata(s);
    }
    s->tensor = t.name;
    s->names += len + 1;
    rc = scan_info(s, &t, offsets);
    if (rc == 0)
        rc = check_tensor(&t, offsets, s->data, s->data_bytes, s->error);
    if (rc != 0)
        return rc;
    s->tensor = NULL;
    if (out->count == SAFETENSORS_MAX_TENSORS)
        return syntax(s, "more than %d tensors", SAFETENSORS_MAX_TENSORS);
    if (out->count == out->capacity) {
        out->capacity = out->capacity ? 2 * out->capacity : 64;
        out->tensors = xrealloc(out->tensors, out->capacity * sizeof *out->tensors);
    }
    out->tensors[out->count++] = t;
    return 0;
}

static int scan_header(struct scan *s, struct safetensors *out) {
    bool more = true;
    if (s->p == s->end || *s->p != '{')
        return syntax(s, "expected '{'");
    s->p++;
    if (accept(s, '}'))
        more = false;
    while (more) {
        int rc = scan_entry(s, out);
        if (rc == 0)
            rc = next_element(s, '}', &more);
        if (rc != 0)
            return rc;
    }
    skip_space(s);
    return s->p == s->end ? 0 : syntax(s, "bytes after the end of the header");
}

/* -------------------------------------------------------------------------------- whole files */

static int by_data(const void *a, const void *b) {
    const struct tensor_view *x = a, *y = b;
    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    if ((x->bytes == 0) != (y->bytes == 0)) /* an empty tensor stands before its neighbour */
        return x->bytes == 0 ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct tensor_view *)a)->name, ((const struct tensor_view *)b)->name);
}

/* Data without gaps or overlap, from the start to the end; then sorts by name and finds doubles. */
static int check_layout(struct safetensors *s, const char *data, const char *end,
                        struct error *error) {
    const char *next = data;
    if (s->count > 0) /* qsort wants no null pointer */
        qsort(s->tensors, s->count, sizeof *s->tensors, by_data);
    for (size_t i = 0; i < s->count; i++) {
        const struct tensor_view *t = &s->tensors[i];
        if (t->data != next)
            return error_set(error, ERR_BAD_FILE, "%s: tensor %s: %s before its data at %lld",
                             s->path, t->name, (const char *)t->data > next ? "gap" : "overlap",
                             (long long)((const char *)t->data - data));
        next += t->bytes;
    }
    if (next != end)
        return error_set(error, ERR_BAD_FILE, "%s: %lld bytes after the last tensor's data",
                         s->path, (long long)(end - next));
    if (s->count > 0)
        qsort(s->tensors, s->count, sizeof *s->tensors, by_name);
    for (size_t i = 1; i < s->count; i++)
        if (by_name(&s->tensors[i - 1], &s->tensors[i]) == 0)
            return error_set(error, ERR_BAD_FILE, "%s: tensor %s stands twice", s->path,
                             s->tensors[i].name);
    return 0;
}

static int read_header(struct safetensors *s, const unsigned char *data, struct error *error) {
    uint64_t length = 0;
    if (s->bytes < 8)
        return error_set(error, ERR_BAD_FILE, "%s: %zu bytes are too few for a safetensors file",
                         s->path, s->bytes);
    for (int i = 7; i >= 0; i--)
        length = length << 8 | data[i];
    if (length > HEADER_MAX_BYTES || length > s->bytes - 8)
        return error_set(error, ERR_BAD_FILE,
                         "%s: a header of %llu bytes does not fit (file %zu bytes, limit %u)",
                         s->path, (unsigned long long)length, s->bytes, HEADER_MAX_BYTES);
    s->names = xmalloc((size_t)length + 1);
    struct scan scan = {.p = data + 8,
                        .start = data + 8,
                        .end = data + 8 + length,
                        .names = s->names,
                        .data = (const char *)data + 8 + length,
                        .data_bytes = s->bytes - 8 - (size_t)length,
                        .path = s->path,
                        .error = error};
    int rc = scan_header(&scan, s);
    if (rc == 0)
        rc = check_layout(s, scan.data, scan.data + scan.data_bytes, error);
    return rc;
}

int safetensors_open_memory(const void *data, size_t size, const char *where,
                            struct safetensors **out, struct error *error) {
    struct safetensors *s = xcalloc(1, sizeof *s);
    s->path = xstrdup(where);
    s->bytes = size;
    int rc = read_header(s, data, error);
    if (rc != 0) {
        safetensors_close(s);
        s = NULL;
    }
    *out = s;
    return rc;
}

int safetensors_open(const char *path, struct safetensors **out, struct error *error) {
    struct file_map map;
    *out = NULL;
    int rc = file_map_open(&map, path, error);
    if (rc != 0)
        return rc;
    rc = safetensors_open_memory(map.data, map.size, path, out, error);
    if (rc == 0)
        (*out)->map = map;
    else
        file_map_close(&map);
    return rc;
}

void safetensors_close(struct safetensors *s) {
    if (!s)
        return;
    file_map_close(&s->map);
    free(s->path);
    free(s->names);
    free(s->tensors);
    free(s);
}

size_t safetensors_count(const struct safetensors *s) {
    return s->count;
}

const struct tensor_view *safetensors_at(const struct safetensors *s, size_t i) {
    CHECK(i < s->count, "tensor %zu of %zu", i, s->count);
    return &s->tensors[i];
}

const struct tensor_view *safetensors_find(const struct safetensors *s, const char *name) {
    struct tensor_view key = {.name = name};
    if (s->count == 0)
        return NULL;
    return bsearch(&key, s->tensors, s->count, sizeof key, by_name);
}

size_t safetensors_bytes(const struct safetensors *s) {
    return s->bytes;
}
