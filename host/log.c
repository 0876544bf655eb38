#include "log.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "host/utf8.h"

enum {
    MAX_TEXT_BYTES = 6144, /* of a message */
    MAX_LINE_BYTES = 8192, /* with what JSON adds */
    END_BYTES = 8,         /* kept free for what ends a line that was cut */
};

static _Atomic int current_level = LOG_INFO;
static _Atomic int current_format = LOG_TEXT;
static atomic_bool requests_at_info;

/* Guards what follows, and that a line is written whole. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t lost_lines;
static bool torn; /* the last line was written in part */

void log_set_level(enum log_level level) {
    atomic_store(&current_level, (int)level);
}

enum log_level log_get_level(void) {
    return (enum log_level)atomic_load(&current_level);
}

void log_set_format(enum log_format format) {
    atomic_store(&current_format, (int)format);
}

enum log_format log_get_format(void) {
    return (enum log_format)atomic_load(&current_format);
}

const char *log_level_name(enum log_level level) {
    static const char *const names[] = {"error", "warn", "info", "debug"};
    return names[level];
}

void log_set_requests(bool on) {
    atomic_store(&requests_at_info, on);
}

/* ---- composing a line ---- */

struct line {
    size_t len;
    bool cut; /* more did not fit */
    char data[MAX_LINE_BYTES];
};

static void put_bytes(struct line *l, const char *s, size_t len) {
    size_t room = sizeof l->data - END_BYTES - l->len;
    if (l->cut || len > room) {
        l->cut = true;
        return;
    }
    memcpy(l->data + l->len, s, len);
    l->len += len;
}

static void put(struct line *l, const char *s) {
    put_bytes(l, s, strlen(s));
}

__attribute__((format(printf, 2, 3))) static void put_printf(struct line *l, const char *fmt, ...) {
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    put(l, text);
}

/* As the inside of a JSON string: valid UTF-8 without control characters, whatever s is. */
static void put_escaped(struct line *l, const char *s) {
    size_t len = strlen(s);
    while (len > 0) {
        uint32_t cp;
        size_t n = utf8_next(s, len, &cp);
        if (cp == UTF8_INVALID || cp == UTF8_INCOMPLETE)
            put(l, "\xef\xbf\xbd");
        else if (cp == '"' || cp == '\\')
            put_printf(l, "\\%c", (char)cp);
        else if (cp == '\n')
            put(l, "\\n");
        else if (cp < 0x20 || (cp >= 0x7f && cp < 0xa0))
            put_printf(l, "\\u%04x", (unsigned)cp);
        else
            put_bytes(l, s, n);
        s += n;
        len -= n;
    }
}

static void put_string(struct line *l, const char *name, const char *value) {
    put_printf(l, ",\"%s\":\"", name);
    put_escaped(l, value);
    put(l, "\"");
}

/* Ends what was cut so that a JSON line is one still. */
static void end_line(struct line *l, const char *end) {
    l->cut = false;
    memcpy(l->data + l->len, end, strlen(end));
    l->len += strlen(end);
}

static void put_time(struct line *l) {
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    put_printf(l, "{\"ts\":\"%04d-%02d-%02dT%02d:%02d:%02d.%06ldZ\"", utc.tm_year + 1900,
               utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec,
               now.tv_nsec / 1000);
}

/* id and finished may be NULL. In text, `text` says what `finished` does. */
static void compose(struct line *l, enum log_level level, const char *id, const char *text,
                    const struct log_finished *finished) {
    static const char *const prefix[] = {"error: ", "warning: ", "", "debug: "};
    l->len = 0;
    l->cut = false;
    if (log_get_format() == LOG_TEXT) {
        put_printf(l, "moeserve: %s", prefix[level]);
        if (id) {
            put(l, "[");
            put_escaped(l, id);
            put(l, "] ");
        }
        put(l, text);
        end_line(l, "\n");
        return;
    }
    put_time(l);
    put_string(l, "level", log_level_name(level));
    if (id)
        put_string(l, "request", id);
    if (finished) {
        if (finished->key)
            put_string(l, "key", finished->key);
        put_string(l, "outcome", finished->outcome);
        if (finished->status)
            put_printf(l, ",\"status\":%d", finished->status);
        put_printf(l, ",\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_ms\":%.3f",
                   (long long)finished->prompt_tokens, (long long)finished->completion_tokens,
                   finished->total_ms);
    }
    /* Last, because it may be cut. */
    put_string(l, "msg", text);
    end_line(l, l->cut ? "\"}\n" : "}\n");
}

/* ---- writing it ---- */

/* Writes what goes in at once, without waiting; the bytes written, -1 for none. A pipe that poll
 * calls writable takes PIPE_BUF bytes. */
static ssize_t write_piece(const char *data, size_t len) {
    ssize_t n = send(STDERR_FILENO, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0 || errno != ENOTSOCK)
        return n;
    struct pollfd p = {.fd = STDERR_FILENO, .events = POLLOUT};
    if (poll(&p, 1, 0) != 1 || p.revents != POLLOUT)
        return -1;
    return write(STDERR_FILENO, data, len < PIPE_BUF ? len : PIPE_BUF);
}

static bool write_whole(const char *data, size_t len) {
    size_t done = 0;
    while (done < len) {
        ssize_t n = write_piece(data + done, len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        done += (size_t)n;
    }
    if (done > 0)
        torn = done < len;
    return done == len;
}

/* Says how many lines were lost, in one of its own. */
static bool write_loss(void) {
    struct line l;
    char text[96];
    if (torn && !write_whole("\n", 1))
        return false;
    if (lost_lines == 0)
        return true;
    snprintf(text, sizeof text, "%llu log lines before this one could not be written",
             (unsigned long long)lost_lines);
    compose(&l, LOG_WARN, NULL, text, NULL);
    if (!write_whole(l.data, l.len))
        return false;
    lost_lines = 0;
    return true;
}

static void emit(enum log_level level, const char *id, const char *text,
                 const struct log_finished *finished) {
    struct line l;
    int saved = errno;
    compose(&l, level, id, text, finished);
    pthread_mutex_lock(&lock);
    if (!write_loss() || !write_whole(l.data, l.len))
        lost_lines++;
    pthread_mutex_unlock(&lock);
    errno = saved;
}

/* ---- what is logged ---- */

void log_line(enum log_level level, const char *fmt, ...) {
    char text[MAX_TEXT_BYTES];
    va_list ap;
    if ((int)level > atomic_load(&current_level))
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    emit(level, NULL, text, NULL);
}

void log_request(enum log_level level, const char *id, const char *fmt, ...) {
    char text[MAX_TEXT_BYTES];
    va_list ap;
    if ((int)level > atomic_load(&current_level))
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    emit(level, id, text, NULL);
}

void log_finished(const struct log_finished *f) {
    enum log_level level = atomic_load(&requests_at_info) ? LOG_INFO : LOG_DEBUG;
    char text[256], status[16] = "";
    if ((int)level > atomic_load(&current_level))
        return;
    if (log_get_format() == LOG_JSON) {
        emit(level, f->id, "request", f);
        return;
    }
    if (f->status)
        snprintf(status, sizeof status, "%d ", f->status);
    snprintf(text, sizeof text, "%s%s%s%s%s, %lld + %lld tokens, %.1f ms", status, f->outcome,
             f->key ? " (" : "", f->key ? f->key : "", f->key ? ")" : "",
             (long long)f->prompt_tokens, (long long)f->completion_tokens, f->total_ms);
    emit(level, f->id, text, f);
}

void log_step_level(int step, const char *why) {
    char text[96];
    int level = atomic_load(&current_level) + step;
    level = level < LOG_ERROR ? LOG_ERROR : level > LOG_DEBUG ? LOG_DEBUG : level;
    atomic_store(&current_level, level);
    snprintf(text, sizeof text, "%s: log level is now %s", why,
             log_level_name((enum log_level)level));
    emit(LOG_INFO, NULL, text, NULL);
}
