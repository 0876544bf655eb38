/* fields: the body of a request, a JSON object from a client, read by a table of its fields.
 *
 * A table has a row for each field: its name, where it may stand, and the function that reads it.
 * The first thing that is wrong ends the reading, with an ERR_* of the protocols, the field that is
 * to blame and a sentence that says what was expected; a name that is not in the table is wrong
 * too, and the nearest one that is gets named. null counts as not given. Pure functions of the
 * bytes, any thread.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    FIELDS_MAX_DEPTH = 64,         /* nested arrays and objects */
    FIELDS_MAX_CONTAINERS = 16384, /* in all: an empty one takes 100 times its text */
};

/* Why a request was refused. */
struct field_error {
    int code;          /* ERR_*; 0: it was not */
    char param[80];    /* "" when no single field is to blame */
    char message[400]; /* may hold a character cut at its end; answers repair it */
};

/* Fills *error and returns code. param may be NULL. */
int field_error_set(struct field_error *error, int code, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* ERR_INVALID_REQUEST, "<param>: expected <what>". */
int field_expected(struct field_error *error, const char *param, const char *what);

/* A string without NUL, borrowed from the document. */
int field_take_string(const char **out, const char *param, json_t *value,
                      struct field_error *error);
/* Are all members of an object at `path` among these names? */
int fields_check_names(json_t *object, const char *path, const char *const *names, size_t count,
                       struct field_error *error);

/* Fills *error from an error of the tokenizer, the template or the engine, whose message names a
 * field first where it knows one ("messages[0].role: ..."). Returns code. */
int field_error_from(struct field_error *error, int code, const struct error *e);

/* Parses a document that keeps to the bounds above, without duplicate keys. Strings may hold NUL.
 * ERR_INVALID_JSON, or ERR_INVALID_REQUEST for what is JSON but can be no request. */
int fields_parse(const char *text, size_t len, json_t **doc, struct field_error *error);

struct field_reader;

struct field {
    const char *name;
    unsigned kinds; /* bits: where the field may stand */
    int (*read)(struct field_reader *r, const struct field *f, json_t *value);
    size_t offset; /* of the value in what is filled in */
    double min, max;
    bool above_min; /* min itself is not allowed */
};

struct field_reader {
    const struct field *table;
    int num_fields;
    unsigned kind;    /* the bit of what is read */
    const char *what; /* its name for messages: "a chat completion" */
    const char *path; /* of the object within the document, with a dot at its end, or "" */
    void *out;        /* what `offset` counts from */
    struct field_error *error;
    void *ctx; /* the caller's, for readers of its own */
};

/* Reads all members of an object; stops at the first that is wrong. */
int fields_read(struct field_reader *r, json_t *object);
/* "path.name" of a field, a long name cut. Valid until the next call of the same thread. */
const char *field_path(const struct field_reader *r, const char *name);

/* Where the value of a field goes. */
void *field_at(const struct field_reader *r, const struct field *f);

/* Readers: int32_t and float within [min, max], bool, const char * (borrowed from the
 * document, without NUL inside), and one that ignores what it is given. */
int field_read_int(struct field_reader *r, const struct field *f, json_t *value);
int field_read_float(struct field_reader *r, const struct field *f, json_t *value);
int field_read_bool(struct field_reader *r, const struct field *f, json_t *value);
int field_read_string(struct field_reader *r, const struct field *f, json_t *value);
int field_read_nothing(struct field_reader *r, const struct field *f, json_t *value);

#ifdef __cplusplus
}
#endif
