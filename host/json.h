/* json: strict parsing, and typed reads that name the path and what was expected.
 *
 * A thin layer over jansson, which rejects invalid UTF-8, duplicate keys (we ask it to), nesting
 * deeper than 2,048 and trailing bytes. All readers fill `error` with "<where>: <key>: expected
 * ..." so that a user finds the place. Objects are borrowed from the document; free the document
 * with json_decref.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "error.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Parses len bytes. `where` names the source in messages (a path). Returns NULL and sets `error`
 * (code `code`) when it is not one valid JSON value. */
json_t *json_parse(const char *text, size_t len, const char *where, int code, struct error *error);

/* Reads and parses a file of at most max_bytes; a missing file is ERR_NOT_FOUND, a malformed one
 * ERR_BAD_FILE. */
json_t *json_parse_file(const char *path, size_t max_bytes, struct error *error);

/* Typed reads from an object. A missing or null key yields the default; a wrong type or a value out
 * of [min, max] adds a problem to `error` (ERR_BAD_FILE) and yields the default. */
int64_t json_read_int(json_t *obj, const char *key, int64_t def, int64_t min, int64_t max,
                      const char *where, struct error *error);
double json_read_number(json_t *obj, const char *key, double def, double min, double max,
                        const char *where, struct error *error);
bool json_read_bool(json_t *obj, const char *key, bool def, const char *where, struct error *error);
/* Borrowed; NULL as the default is fine. */
const char *json_read_string(json_t *obj, const char *key, const char *def, const char *where,
                             struct error *error);

#ifdef __cplusplus
}
#endif
