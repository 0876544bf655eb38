/* options_value: the value of an option as text, read and written. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "host/options_internal.h"
#include "net/address.h"

static const char *keep_copy(struct options *o, const char *s) {
    char *copy = xstrdup(s);
    options_keep(o, copy);
    return copy;
}

static bool parse_bool(const char *s, bool *out) {
    bool yes = option_in_list("true yes on 1", s), no = option_in_list("false no off 0", s);
    *out = yes;
    return yes || no;
}

/* "4096", "512K", "4MiB", "1.5g": powers of 1,024. */
bool option_parse_bytes(const char *s, double *out) {
    static const char units[] = "kmgt";
    char *end;
    double v = strtod(s, &end);
    if (end == s || !isfinite(v))
        return false;
    if (*end) {
        const char *unit = strchr(units, *end | 0x20);
        if (!unit)
            return false;
        v *= (double)(1LL << (10 * (unit - units + 1)));
        end++;
        if (*end == 'i')
            end++;
        if (*end == 'B' || *end == 'b')
            end++;
    }
    *out = floor(v);
    return *end == '\0';
}

#define DIGITS  "0123456789"
#define LETTERS "abcdefghijklmnopqrstuvwxyz"

/* The length of what may be a host: a name, an address, or an IPv6 address in brackets. */
static size_t host_length(const char *s) {
    if (*s != '[')
        return strspn(s, DIGITS LETTERS "ABCDEFGHIJKLMNOPQRSTUVWXYZ-._");
    size_t len = strspn(s + 1, DIGITS "abcdefABCDEF:.");
    return len && s[len + 1] == ']' ? len + 2 : 0;
}

/* ":8443", but not the one that browsers leave out, as the scheme has it anyway. */
static bool is_port(const char *s, const char *scheme) {
    size_t digits = *s == ':' ? strspn(s + 1, DIGITS) : 0;
    bool left_out = (!strncmp(scheme, "http:", 5) && !strcmp(s, ":80")) ||
                    (!strncmp(scheme, "https:", 6) && !strcmp(s, ":443"));
    return digits > 0 && digits < 6 && s[1 + digits] == '\0' && !left_out;
}

static bool is_origin(const char *s) {
    const char *host = s + strspn(s, DIGITS LETTERS "+-.");
    if (!strcmp(s, "*") || !strcmp(s, "null"))
        return true;
    if (host == s || strncmp(host, "://", 3) != 0)
        return false;
    host += 3;
    size_t len = host_length(host);
    return len > 0 && (host[len] == '\0' || is_port(host + len, s));
}

static bool is_name(const char *s) {
    const char *at = s;
    while ((unsigned char)*at >= ' ' && *at != 0x7f)
        at++;
    return at > s && *at == '\0';
}

static int bad_value(const struct option *opt, const char *value, struct error *error) {
    switch (opt->type) {
    case OPT_BOOL:
        return error_set(error, ERR_CONFIG, "--%s %s: expected true or false", opt->name, value);
    case OPT_INT:
    case OPT_INT64:
        return error_set(error, ERR_CONFIG, "--%s %s: expected an integer from %.0f to %.0f",
                         opt->name, value, opt->min, opt->max);
    case OPT_BYTES:
        return error_set(error, ERR_CONFIG,
                         "--%s %s: expected a size from %.0f to %.0f bytes, such as 512M",
                         opt->name, value, opt->min, opt->max);
    case OPT_NUMBER:
        return error_set(error, ERR_CONFIG, "--%s %s: expected a number from %g to %g", opt->name,
                         value, opt->min, opt->max);
    case OPT_SEED:
        return error_set(error, ERR_CONFIG, "--%s %s: expected an integer from 0 to 2^64 - 1",
                         opt->name, value);
    case OPT_ORIGIN:
        return error_set(error, ERR_CONFIG,
                         "--%s %.200s: expected * or an origin as browsers send it, such as "
                         "https://chat.example or http://10.0.0.5:3000: no path, no slash at the "
                         "end, no port that is the scheme's own",
                         opt->name, value);
    case OPT_NAME:
        return error_set(error, ERR_CONFIG,
                         "--%s: expected a name: not empty, and without control characters",
                         opt->name);
    case OPT_CHOICE:
        return error_set(error, ERR_CONFIG, "--%s %s: expected one of: %s", opt->name, value,
                         opt->choices);
    default:
        return error_set(error, ERR_CONFIG, "--%s: expected a value", opt->name);
    }
}

static bool set_int(void *at, const struct option *opt, const char *value) {
    char *end;
    errno = 0;
    long long v = strtoll(value, &end, 10);
    if (end == value || *end || errno || (double)v < opt->min || (double)v > opt->max)
        return false;
    if (opt->type == OPT_INT64)
        *(int64_t *)at = v;
    else
        *(int32_t *)at = (int32_t)v;
    return true;
}

static bool set_bytes(void *at, const struct option *opt, const char *value) {
    double v;
    if (!option_parse_bytes(value, &v) || v < opt->min || v > opt->max)
        return false;
    *(int64_t *)at = (int64_t)v;
    return true;
}

static bool set_number(void *at, const struct option *opt, const char *value) {
    char *end;
    double v = strtod(value, &end);
    if (end == value || *end || !(v >= opt->min && v <= opt->max))
        return false;
    *(float *)at = (float)v;
    return true;
}

static bool set_seed(struct options *o, void *at, const char *value) {
    char *end;
    errno = 0;
    unsigned long long v = strtoull(value, &end, 10);
    if (*value < '0' || *value > '9' || *end || errno)
        return false;
    *(uint64_t *)at = v;
    o->seed_given = true;
    return true;
}

static bool same_source(const struct option_source *a, const struct option_source *b) {
    return a->origin == b->origin &&
           (a->name == b->name || (a->name && b->name && !strcmp(a->name, b->name)));
}

static bool add_secret(struct options *o, const struct option *opt, const char *value,
                       const struct option_source *from) {
    struct option_list *list = (struct option_list *)(void *)((char *)o + opt->offset);
    if (*value == '\0')
        return false;
    if (!same_source(option_source(o, opt), from))
        list->count = 0;
    list->items = xrealloc(list->items, (size_t)(list->count + 1) * sizeof *list->items);
    list->items[list->count++] = keep_copy(o, value);
    return true;
}

int option_set(struct options *o, const struct option *opt, const char *value,
               const struct option_source *from, struct error *error) {
    void *at = (char *)o + opt->offset;
    struct error why = {0};
    bool ok = false;
    switch (opt->type) {
    case OPT_BOOL:
        ok = parse_bool(value, at);
        break;
    case OPT_INT:
    case OPT_INT64:
        ok = set_int(at, opt, value);
        break;
    case OPT_BYTES:
        ok = set_bytes(at, opt, value);
        break;
    case OPT_NUMBER:
        ok = set_number(at, opt, value);
        break;
    case OPT_SEED:
        ok = set_seed(o, at, value);
        break;
    case OPT_SECRETS:
        ok = add_secret(o, opt, value, from);
        break;
    case OPT_LISTEN:
        if (address_check(value, &why) != 0)
            return error_set(error, ERR_CONFIG, "--%s: %s", opt->name, why.text);
        *(const char **)at = keep_copy(o, value);
        ok = true;
        break;
    case OPT_CHOICE:
    case OPT_NAME:
    case OPT_ORIGIN:
    case OPT_STRING:
        ok = opt->type == OPT_CHOICE   ? option_in_list(opt->choices, value)
             : opt->type == OPT_NAME   ? is_name(value)
             : opt->type == OPT_ORIGIN ? is_origin(value)
                                       : true;
        if (ok)
            *(const char **)at = keep_copy(o, value);
        break;
    }
    if (!ok)
        return bad_value(opt, value, error);
    *option_source(o, opt) = *from;
    option_source(o, opt)->order = ++o->num_set;
    return 0;
}

/* ---- as text ---- */

/* With as few digits as give the same float again. */
static void put_number(struct buffer *out, float v) {
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)v);
        if ((float)strtod(text, NULL) == v)
            break;
    }
    buffer_puts(out, text);
}

bool option_format(const struct options *o, const struct option *opt, struct buffer *out) {
    const void *at = (const char *)o + opt->offset;
    const char *s;
    switch (opt->type) {
    case OPT_BOOL:
        buffer_puts(out, *(const bool *)at ? "true" : "false");
        return true;
    case OPT_INT:
        buffer_printf(out, "%d", *(const int32_t *)at);
        return true;
    case OPT_INT64:
    case OPT_BYTES:
        buffer_printf(out, "%lld", (long long)*(const int64_t *)at);
        return true;
    case OPT_NUMBER:
        put_number(out, *(const float *)at);
        return true;
    case OPT_SEED:
        buffer_printf(out, "%llu", (unsigned long long)*(const uint64_t *)at);
        return true;
    case OPT_SECRETS:
        return false;
    default:
        s = *(const char *const *)at;
        if (s)
            buffer_puts(out, s);
        return s != NULL;
    }
}
