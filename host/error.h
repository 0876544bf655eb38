/* error: result codes and the message that travels with them.
 *
 * A function that can fail returns 0 or a negative ERR_* code and, where it can say more, fills the
 * caller's struct error (NULL is allowed). The message is written once, where the problem is found,
 * and says what, how much, and which option to change; callers pass the code on without logging it.
 * Bad input is never an assert: CHECK is for broken invariants of our own only, and always on.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* X(name, value, protocol code, default text). The protocol code is what clients see. */
#define ERROR_TABLE(X)                                                                             \
    X(ERR_INVALID_JSON, -1, "invalid_json", "not valid JSON")                                      \
    X(ERR_INVALID_REQUEST, -2, "invalid_request", "invalid request")                               \
    X(ERR_CONTEXT_LENGTH, -3, "context_length_exceeded", "prompt does not fit in the context")     \
    X(ERR_OVERLOADED, -4, "overloaded", "the request queue is full")                               \
    X(ERR_DUPLICATE_ID, -5, "duplicate_id", "a request with this id is in flight")                 \
    X(ERR_NOT_FOUND, -6, "not_found", "not found")                                                 \
    X(ERR_LINE_TOO_LONG, -7, "line_too_long", "line too long")                                     \
    X(ERR_UNAUTHORIZED, -8, "unauthorized", "not authorized")                                      \
    X(ERR_SHUTTING_DOWN, -9, "shutting_down", "the server is shutting down")                       \
    X(ERR_TIMEOUT, -10, "timeout", "the request took too long")                                    \
    X(ERR_INTERNAL, -11, "internal", "internal error")                                             \
    X(ERR_IO, -12, "io", "input/output error")                                                     \
    X(ERR_BAD_FILE, -13, "bad_file", "malformed file")                                             \
    X(ERR_UNSUPPORTED, -14, "unsupported", "not supported")                                        \
    X(ERR_CONFIG, -15, "config", "invalid configuration")                                          \
    X(ERR_NO_MEMORY, -16, "no_memory", "not enough memory")                                        \
    X(ERR_LOADING, -17, "loading", "the model is being loaded")

enum error_code {
    ERR_OK = 0,
#define X(name, value, code, text) name = value,
    ERROR_TABLE(X)
#undef X
};

/* A code and its message; owned by the caller, usually on its stack. Start it zeroed. */
struct error {
    int code;        /* the first code that was set, 0 when none */
    int problems;    /* how many messages were added, also those that did not fit */
    int hidden;      /* how many did not fit: text ends in "... and N more problems" */
    char text[4096]; /* NUL-terminated; one line a problem, no final newline */
};

/* Sets code and message (replacing what was there) and returns code. e may be NULL. */
int error_set(struct error *e, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Adds one more problem on a line of its own and returns the first code. For walks that report
 * every problem at once; what does not fit whole is only counted. e may be NULL. */
int error_add(struct error *e, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* The protocol's name of a code ("invalid_json"), and its default text. Never NULL. */
const char *error_name(int code);
const char *error_text(int code);

/* Prints file, line, expression and message to stderr, then aborts. Used by CHECK. */
void check_failed(const char *file, int line, const char *expr, const char *fmt, ...)
    __attribute__((noreturn, format(printf, 4, 5)));

/* CHECK(n > 0, "n %d", n): a broken invariant of our own. Compiled in always. */
#define CHECK(cond, ...)                                                                           \
    do {                                                                                           \
        if (__builtin_expect(!(cond), 0))                                                          \
            check_failed(__FILE__, __LINE__, #cond, __VA_ARGS__);                                  \
    } while (0)

#ifdef __cplusplus
}
#endif
