/* log: lines for the operator, on stderr, one line an event. Any thread.
 *
 * Standard output belongs to results (generated text, the ready line, benchmark figures), so logs
 * never go there. A problem is logged once, where it is handled; see error.h for the rest.
 */
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* Lines above this level are dropped. The default is LOG_INFO. */
void log_set_level(enum log_level level);
enum log_level log_get_level(void);

/* Writes "moeserve: <text>\n" in one write. */
void log_line(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  log_line(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_line(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)

#ifdef __cplusplus
}
#endif
