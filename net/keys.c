/* keys: see keys.h.
 *
 * A reload reads everything into a new list, and puts it in place of the old one only when all of
 * it is right. A key that was there before, even one that an earlier reload took away, is the same
 * object again, so that its running requests and its bucket go on. Objects are never freed before
 * their keys are: requests refer to them.
 *
 * The bucket is kept as what is missing from it: a key without a limit owes nothing, and a limit
 * that changes needs no conversion.
 */
#include "net/keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "host/file.h"
#include "host/log.h"
#include "host/mem.h"

enum {
    MAX_KEYS = 4096,
    MAX_KEY_BYTES = 512,
    MAX_NAME_BYTES = 64,
    MAX_FILE_BYTES = 4 << 20,
    MAX_REQUESTS = 1 << 20,
    BUSY_RETRY_S = 1, /* when one of a key's requests will end is not known */
};
static const int64_t MAX_TOKENS_PER_MINUTE = 1000000000000;

/* What a line says of a key; the text itself is not kept. */
struct key_line {
    unsigned char digest[SHA256_DIGEST_LENGTH];
    char name[MAX_NAME_BYTES + 1];
    int32_t line;              /* of the file, from 1; 0: this one is of --api-key */
    int32_t number;            /* among all, from 1; those of --api-key come first */
    int32_t max_requests;      /* 0: any number */
    int64_t tokens_per_minute; /* 0: any number */
};

struct api_key {
    struct key_line is;
    bool retired;           /* a reload has taken it away */
    int32_t running;        /* requests */
    double missing;         /* tokens that were taken from the bucket and have not come back */
    int64_t refilled_at_us; /* when `missing` was right */
    struct api_key *next;   /* of all that there ever were */
};

struct keys {
    char **texts; /* owned [num_texts] */
    int32_t num_texts;
    char *file; /* owned; NULL: none */
    int32_t max_requests;
    int64_t tokens_per_minute;
    struct api_key *all;     /* owned, also the retired */
    struct api_key **active; /* borrowed from `all` [num_active] */
    int32_t num_active;
};

/* What is being read. */
struct reading {
    const struct keys *keys;
    struct key_line *lines; /* owned [num_lines] */
    int32_t num_lines;
    int32_t line; /* of the file; 0: --api-key */
};

static void digest_of(const char *text, size_t len, unsigned char digest[SHA256_DIGEST_LENGTH]) {
    if (!SHA256((const unsigned char *)text, len, digest))
        mem_exhausted(0);
}

/* ---- reading ---- */

/* "FILE:3: " or "--api-key number 2: ", and never what stands there. */
static const char *place(const struct reading *r, int32_t line, int32_t number, char text[300]) {
    if (line > 0)
        snprintf(text, 300, "%.200s:%d", r->keys->file, line);
    else
        snprintf(text, 300, "--api-key number %d", number);
    return text;
}

static int bad_line(const struct reading *r, const char *what, struct error *error) {
    char where[300];
    return error_set(error, ERR_CONFIG, "%s: %s", place(r, r->line, r->num_lines + 1, where), what);
}

static bool is_name(const char *s, size_t len) {
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t good = 0;
    while (good < len && strchr(allowed, s[good]) && s[good])
        good++;
    return len >= 1 && len <= MAX_NAME_BYTES && good == len;
}

/* Digits only, at most `max`. */
static bool parse_number(const char *s, size_t len, int64_t max, int64_t *out) {
    int64_t v = 0;
    for (size_t i = 0; i < len; i++) {
        if (s[i] < '0' || s[i] > '9')
            return false;
        v = v * 10 + (s[i] - '0');
        if (v > max)
            return false;
    }
    *out = v;
    return len > 0;
}

/* What a word has behind this head; NULL when it begins otherwise. */
static const char *behind(const char *head, const char *word, size_t len) {
    size_t n = strlen(head);
    return len >= n && !memcmp(word, head, n) ? word + n : NULL;
}

static int set_property(struct reading *r, struct key_line *k, const char *word, size_t len,
                        struct error *error) {
    const char *v;
    int64_t number;
    if ((v = behind("name=", word, len))) {
        size_t n = len - (size_t)(v - word);
        if (!is_name(v, n))
            return bad_line(r, "name= takes 1 to 64 letters, digits, '.', '_' and '-'", error);
        memcpy(k->name, v, n);
        k->name[n] = '\0';
    } else if ((v = behind("max-requests=", word, len))) {
        if (!parse_number(v, len - (size_t)(v - word), MAX_REQUESTS, &number))
            return bad_line(r, "max-requests= takes 0 (any number) to 1048576", error);
        k->max_requests = (int32_t)number;
    } else if ((v = behind("tokens-per-minute=", word, len))) {
        if (!parse_number(v, len - (size_t)(v - word), MAX_TOKENS_PER_MINUTE, &number))
            return bad_line(r, "tokens-per-minute= takes 0 (any number) to 1000000000000", error);
        k->tokens_per_minute = number;
    } else {
        return bad_line(r,
                        "behind the key, only name=, max-requests= and tokens-per-minute= are "
                        "known",
                        error);
    }
    return 0;
}

static bool is_property(const char *word, size_t len) {
    return behind("name=", word, len) || behind("max-requests=", word, len) ||
           behind("tokens-per-minute=", word, len);
}

/* A key's own text: its digest is all that is kept. */
static int take_key(struct reading *r, const char *text, size_t len, struct key_line *k,
                    struct error *error) {
    if (len < 1 || len > MAX_KEY_BYTES)
        return bad_line(r, "a key has 1 to 512 bytes", error);
    for (size_t i = 0; i < len; i++)
        if (text[i] < 0x21 || text[i] > 0x7e)
            return bad_line(r, "a key is of printable ASCII, without spaces", error);
    if (r->num_lines == MAX_KEYS)
        return bad_line(r, "there are more than 4096 keys", error);
    memset(k, 0, sizeof *k);
    digest_of(text, len, k->digest);
    k->max_requests = r->keys->max_requests;
    k->tokens_per_minute = r->keys->tokens_per_minute;
    k->line = r->line;
    k->number = r->num_lines + 1;
    snprintf(k->name, sizeof k->name, "key-%d", k->number);
    return 0;
}

static void add_line(struct reading *r, const struct key_line *k) {
    r->lines = xrealloc(r->lines, (size_t)(r->num_lines + 1) * sizeof *r->lines);
    r->lines[r->num_lines++] = *k;
}

static bool is_blank(char c) {
    return c == ' ' || c == '\t';
}

/* The next word of [*p, end), which a '#' at its beginning ends; its length, 0: there is none. */
static size_t next_word(const char **p, const char *end) {
    while (*p < end && is_blank(**p))
        (*p)++;
    const char *q = *p;
    if (q < end && *q == '#')
        return 0;
    while (q < end && !is_blank(*q))
        q++;
    return (size_t)(q - *p);
}

static int read_line(struct reading *r, const char *p, const char *end, struct error *error) {
    struct key_line k;
    size_t len = next_word(&p, end);
    if (len == 0)
        return 0;
    if (is_property(p, len))
        return bad_line(r, "the key comes first", error);
    int rc = take_key(r, p, len, &k, error);
    for (p += len; rc == 0 && (len = next_word(&p, end)) > 0; p += len)
        rc = set_property(r, &k, p, len, error);
    if (rc == 0)
        add_line(r, &k);
    return rc;
}

static void warn_if_others_may_read(const char *path) {
    struct stat st;
    if (stat(path, &st) == 0 && (st.st_mode & (S_IROTH | S_IWOTH)))
        log_warn("%s: every user of this machine may %s it; chmod o-rwx keeps the keys secret",
                 path, st.st_mode & S_IROTH ? "read" : "change");
}

static int read_key_file(struct reading *r, struct error *error) {
    const char *path = r->keys->file;
    struct error inner = {0};
    char *data = NULL;
    size_t len = 0;
    int rc = file_read(path, MAX_FILE_BYTES, &data, &len, &inner);
    if (rc != 0)
        return error_set(error, ERR_CONFIG, "--api-key-file %.3000s", inner.text);
    warn_if_others_may_read(path);
    const char *p = data, *end = data + len;
    while (rc == 0 && p < end) {
        const char *lf = memchr(p, '\n', (size_t)(end - p));
        const char *stop = lf ? lf : end;
        r->line++;
        rc = read_line(r, p, stop > p && stop[-1] == '\r' ? stop - 1 : stop, error);
        p = lf ? lf + 1 : end;
    }
    OPENSSL_cleanse(data, len);
    free(data);
    return rc;
}

static int by_digest(const void *a, const void *b) {
    const struct key_line *x = *(struct key_line *const *)a, *y = *(struct key_line *const *)b;
    int order = memcmp(x->digest, y->digest, sizeof x->digest);
    return order ? order : (x > y) - (x < y);
}

static int by_name(const void *a, const void *b) {
    const struct key_line *x = *(struct key_line *const *)a, *y = *(struct key_line *const *)b;
    int order = strcmp(x->name, y->name);
    return order ? order : (x > y) - (x < y);
}

static bool same_digest(const struct key_line *a, const struct key_line *b) {
    return !memcmp(a->digest, b->digest, sizeof a->digest);
}

static bool same_name(const struct key_line *a, const struct key_line *b) {
    return !strcmp(a->name, b->name);
}

/* Of neighbours in a sorted list: the first line that is the same as one before it, and that one;
 * NULL when there is none. */
static const struct key_line *find_twin(struct key_line *const *sorted, int32_t num,
                                        bool (*same)(const struct key_line *,
                                                     const struct key_line *),
                                        const struct key_line **earlier) {
    const struct key_line *found = NULL;
    for (int32_t i = 1; i < num; i++)
        if (same(sorted[i - 1], sorted[i]) && (!found || sorted[i] < found)) {
            found = sorted[i];
            *earlier = sorted[i - 1];
        }
    return found;
}

static int check_unique(const struct reading *r, struct error *error) {
    char one[300], other[300];
    const struct key_line *a, *b;
    struct key_line **sorted = xcalloc((size_t)r->num_lines, sizeof *sorted);
    for (int32_t i = 0; i < r->num_lines; i++)
        sorted[i] = &r->lines[i];
    qsort(sorted, (size_t)r->num_lines, sizeof *sorted, by_digest);
    bool same_key = (a = find_twin(sorted, r->num_lines, same_digest, &b)) != NULL;
    if (!same_key) {
        qsort(sorted, (size_t)r->num_lines, sizeof *sorted, by_name);
        a = find_twin(sorted, r->num_lines, same_name, &b);
    }
    free(sorted);
    if (!a)
        return 0;
    place(r, a->line, a->number, one);
    place(r, b->line, b->number, other);
    if (same_key)
        return error_set(error, ERR_CONFIG, "%s: the same key as %s", one, other);
    return error_set(error, ERR_CONFIG, "%s: its name is %s, as that of %s", one, a->name, other);
}

static int read_all(struct reading *r, struct error *error) {
    const struct keys *keys = r->keys;
    int rc = 0;
    for (int32_t i = 0; i < keys->num_texts && rc == 0; i++) {
        struct key_line k;
        rc = take_key(r, keys->texts[i], strlen(keys->texts[i]), &k, error);
        if (rc == 0)
            add_line(r, &k);
    }
    if (rc == 0 && keys->file)
        rc = read_key_file(r, error);
    if (rc == 0 && keys->file && r->num_lines == 0)
        rc = error_set(error, ERR_CONFIG,
                       "--api-key-file %s: holds no key, so that everybody could use the server",
                       keys->file);
    return rc == 0 ? check_unique(r, error) : rc;
}

/* ---- the keys ---- */

static int compare_keys(const void *a, const void *b) {
    const struct api_key *x = *(struct api_key *const *)a, *y = *(struct api_key *const *)b;
    return memcmp(x->is.digest, y->is.digest, sizeof x->is.digest);
}

/* Every key there ever was, retired from now on, in the order of their digests; the caller's. */
static struct api_key **retire_all(struct keys *k, size_t *num) {
    size_t n = 0;
    for (struct api_key *key = k->all; key; key = key->next)
        n++;
    struct api_key **sorted = xcalloc(n + 1, sizeof *sorted);
    *num = 0;
    for (struct api_key *key = k->all; key; key = key->next) {
        key->retired = true;
        sorted[(*num)++] = key;
    }
    qsort(sorted, n, sizeof *sorted, compare_keys);
    return sorted;
}

static void put_in_place(struct keys *k, const struct reading *r) {
    size_t num_known;
    struct api_key **known = retire_all(k, &num_known);
    free(k->active);
    k->active = xcalloc((size_t)r->num_lines, sizeof *k->active);
    k->num_active = r->num_lines;
    for (int32_t i = 0; i < r->num_lines; i++) {
        const struct api_key wanted = {.is = r->lines[i]};
        const struct api_key *key_of_wanted = &wanted;
        struct api_key **found =
            bsearch(&key_of_wanted, known, num_known, sizeof *known, compare_keys);
        struct api_key *key = found ? *found : NULL;
        if (!key) {
            key = xcalloc(1, sizeof *key);
            key->next = k->all;
            k->all = key;
        }
        key->is = r->lines[i];
        key->retired = false;
        k->active[i] = key;
    }
    free(known);
}

int keys_reload(struct keys *k, struct error *error) {
    struct reading r = {.keys = k};
    int rc = read_all(&r, error);
    if (rc == 0)
        put_in_place(k, &r);
    free(r.lines);
    return rc;
}

int keys_create(const struct keys_options *o, struct keys **out, struct error *error) {
    struct keys *k = xcalloc(1, sizeof *k);
    *out = NULL;
    k->texts = xcalloc((size_t)o->num_texts, sizeof *k->texts);
    for (; k->num_texts < o->num_texts; k->num_texts++)
        k->texts[k->num_texts] = xstrdup(o->texts[k->num_texts]);
    k->file = o->file ? xstrdup(o->file) : NULL;
    k->max_requests = o->max_requests;
    k->tokens_per_minute = o->tokens_per_minute;
    int rc = keys_reload(k, error);
    if (rc != 0) {
        keys_destroy(k);
        return rc;
    }
    *out = k;
    return 0;
}

void keys_destroy(struct keys *k) {
    if (!k)
        return;
    while (k->all) {
        struct api_key *key = k->all;
        k->all = key->next;
        free(key);
    }
    for (int32_t i = 0; i < k->num_texts; i++) {
        OPENSSL_cleanse(k->texts[i], strlen(k->texts[i]));
        free(k->texts[i]);
    }
    free(k->texts);
    free(k->file);
    free(k->active);
    free(k);
}

bool keys_required(const struct keys *k) {
    return k->num_active > 0;
}

struct api_key *keys_find(struct keys *k, const char *text, size_t len) {
    unsigned char digest[SHA256_DIGEST_LENGTH];
    uint32_t found = 0; /* its place, from 1 */
    digest_of(text, len, digest);
    /* All are compared, and which one is taken without a branch. */
    for (int32_t i = 0; i < k->num_active; i++) {
        int differs = CRYPTO_memcmp(digest, k->active[i]->is.digest, sizeof digest);
        uint32_t same = (uint32_t)0 - (((uint32_t)differs - 1) >> 31);
        found |= same & (uint32_t)(i + 1);
    }
    return found ? k->active[found - 1] : NULL;
}

bool api_key_is_valid(const struct api_key *key) {
    return !key->retired;
}

const char *api_key_name(const struct api_key *key) {
    return key->is.name;
}

/* ---- limits ---- */

static void refill(struct api_key *key, int64_t now_us) {
    double rate = (double)key->is.tokens_per_minute / 60e6;
    double came = (double)(now_us - key->refilled_at_us) * rate;
    key->refilled_at_us = now_us;
    key->missing -= came > 0 ? came : 0;
    if (key->missing < 0 || rate == 0)
        key->missing = 0;
}

int api_key_begin(struct api_key *key, int32_t num_requests, int64_t prompt_tokens, int64_t now_us,
                  double *retry_s, struct error *error) {
    *retry_s = 0;
    if (!key)
        return 0;
    const struct key_line *is = &key->is;
    if (key->retired)
        return error_set(error, ERR_UNAUTHORIZED, "this API key is no longer valid");
    refill(key, now_us);
    if (is->max_requests > 0 && num_requests > is->max_requests)
        return error_set(error, ERR_INVALID_REQUEST,
                         "%d answers are asked for at once, and this API key may have %d requests "
                         "running",
                         num_requests, is->max_requests);
    if (is->max_requests > 0 && key->running > is->max_requests - num_requests) {
        *retry_s = BUSY_RETRY_S;
        return error_set(error, ERR_OVERLOADED,
                         "this API key has %d requests running, of %d that it may have",
                         key->running, is->max_requests);
    }
    if (is->tokens_per_minute > 0 && key->missing >= (double)is->tokens_per_minute) {
        double over = key->missing - (double)is->tokens_per_minute + 1;
        *retry_s = over * 60 / (double)is->tokens_per_minute;
        return error_set(error, ERR_OVERLOADED,
                         "this API key has used its %lld tokens a minute; try again in %.1f s",
                         (long long)is->tokens_per_minute, *retry_s);
    }
    key->running += num_requests;
    if (is->tokens_per_minute > 0)
        key->missing += (double)prompt_tokens;
    return 0;
}

void api_key_refund(struct api_key *key, int64_t prompt_tokens) {
    if (key && key->is.tokens_per_minute > 0)
        key->missing -= (double)prompt_tokens < key->missing ? (double)prompt_tokens : key->missing;
}

void api_key_end(struct api_key *key, int32_t num_requests, int64_t completion_tokens,
                 int64_t now_us) {
    if (!key)
        return;
    CHECK(key->running >= num_requests, "%d requests of key %s end, and %d run", num_requests,
          key->is.name, key->running);
    refill(key, now_us);
    key->running -= num_requests;
    if (key->is.tokens_per_minute > 0)
        key->missing += (double)completion_tokens;
}
