/* log: lines for the operator, on stderr, one line an event. Any thread.
 *
 * Standard output belongs to results (generated text, the ready line, benchmark figures), so logs
 * never go there. A problem is logged once, where it is handled; see error.h for the rest.
 *
 * As text, "moeserve: warning: ...", or as JSON, an object a line:
 *   {"ts":"2025-01-31T09:30:00.123456Z","level":"warn","request":"...","msg":"..."}
 *
 * A line is written at once or not at all: where stderr takes no more (a pipe that nobody reads, a
 * full disk) it is dropped and counted, and the next line that gets through is preceded by how many
 * were. Nothing here allocates, so that a step may log, and one that is out of memory.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };
enum log_format { LOG_TEXT, LOG_JSON };

/* Lines above this level are dropped. The default is LOG_INFO. */
void log_set_level(enum log_level level);
enum log_level log_get_level(void);
/* The default is LOG_TEXT. */
void log_set_format(enum log_format format);
enum log_format log_get_format(void);
/* "error", "warn", "info", "debug", as --log-level has them. */
const char *log_level_name(enum log_level level);

/* One level more (step 1) or less (-1), as far as there are any, and a line that says so whatever
 * the level. `why` is what asked for it. */
void log_step_level(int step, const char *why);

/* Writes "moeserve: <text>\n" in one write. */
void log_line(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  log_line(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_line(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)

/* The same, of one request: "moeserve: [<id>] <text>\n". id is whatever a client sends. */
void log_request(enum log_level level, const char *id, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* How a request ended. Nothing of what was said in it. */
struct log_finished {
    const char *id;
    const char *key;     /* name of the API key; NULL: the server has none */
    const char *outcome; /* finish reason, or the error's protocol code */
    int32_t status;      /* of HTTP; 0: none, or another protocol */
    int64_t prompt_tokens, completion_tokens;
    double total_ms;
};

/* Whether these lines are of level info; debug is the default. */
void log_set_requests(bool on);
void log_finished(const struct log_finished *f);

#ifdef __cplusplus
}
#endif
