/* jansson, as much of it as host/ and tests/golden.c use: for machines that have no jansson, where
 * the kernel tests and benchmarks are built with BARE=1 (Makefile). Same names, same meaning; a
 * document is read-only, and its strings, numbers and nesting are as strict as jansson's.
 */
#pragma once

#include <stddef.h>

typedef struct json_value json_t; /* opaque */

typedef struct {
    int line, column;
    char text[128];
} json_error_t;

/* Flags of json_loadb and json_dumps: what host/ asks for is what these do anyway. */
enum {
    JSON_REJECT_DUPLICATES = 1,
    JSON_DECODE_ANY = 4,
    JSON_ENCODE_ANY = 8,
    JSON_ENSURE_ASCII = 16
};

/* NULL with *error when the bytes are not one JSON value. */
json_t *json_loadb(const char *text, size_t len, size_t flags, json_error_t *error);
/* Frees a document; NULL is fine. Only for what json_loadb returned. */
void json_decref(json_t *doc);
/* Text of a number, string, true, false or null, to be freed with free(); NULL for others. */
char *json_dumps(const json_t *v, size_t flags);

/* All take NULL for what is not there. */
int json_is_object(const json_t *v);
int json_is_array(const json_t *v);
int json_is_string(const json_t *v);
int json_is_integer(const json_t *v);
int json_is_number(const json_t *v);
int json_is_true(const json_t *v);
int json_is_boolean(const json_t *v);
int json_is_null(const json_t *v);

const char *json_string_value(const json_t *v); /* NULL when it is no string */
long long json_integer_value(const json_t *v);  /* 0 when it is no integer */
double json_number_value(const json_t *v);      /* 0 when it is no number */

size_t json_array_size(const json_t *v);
json_t *json_array_get(const json_t *v, size_t i);
size_t json_object_size(const json_t *v);
json_t *json_object_get(const json_t *v, const char *key);
/* Member i of an object: its name, and its value in *value; NULL past the end. */
const char *json_object_member(const json_t *v, size_t i, json_t **value);

#define json_array_foreach(array, i, value)                                                        \
    for (i = 0; i < json_array_size(array) && ((value) = json_array_get(array, i)) != NULL; i++)
#define json_object_foreach(object, key, value)                                                    \
    for (size_t json_member = 0;                                                                   \
         ((key) = json_object_member(object, json_member, &(value))) != NULL; json_member++)
