/* param_fields: fields of a request that are read alike in every protocol, into request_params.
 *
 * Errors are ERR_INVALID_REQUEST with the field, as in fields.h. Pure functions, any thread. */
#pragma once

#include "host/engine.h"
#include "net/fields.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { PARAM_MAX_MESSAGES = 4096 };

/* The server's defaults, of which `out` owns nothing yet. */
void param_defaults(struct request_params *out, const struct request_params *defaults);

/* Readers for tables, with the offset of the request_params: an integer; a string, or an array of
 * up to MAX_REQUEST_STOPS of them, added to those that are there. */
int param_read_seed(struct field_reader *r, const struct field *f, json_t *value);
int param_read_stop(struct field_reader *r, const struct field *f, json_t *value);

/* Rows of a table: the fields that mean the same in every protocol. params: the offset of the
 * request_params in what is read. */
/* clang-format off */
#define PARAM_AT(member) offsetof(struct request_params, member)
#define PARAM_FLOAT(kinds, params, name, min, max)                                                 \
    {#name, kinds, field_read_float, (params) + PARAM_AT(sampling.name), min, max, false}
#define PARAM_FIELDS(kinds, params)                                                                \
    {"min_tokens", kinds, field_read_int, (params) + PARAM_AT(min_tokens), 0, INT32_MAX, false},   \
    {"top_k", kinds, field_read_int, (params) + PARAM_AT(sampling.top_k), -1, INT32_MAX, false},   \
    PARAM_FLOAT(kinds, params, temperature, 0, 100),                                               \
    PARAM_FLOAT(kinds, params, min_p, 0, 1),                                                       \
    PARAM_FLOAT(kinds, params, repetition_penalty, 0.01, 100),                                     \
    PARAM_FLOAT(kinds, params, presence_penalty, -2, 2),                                           \
    PARAM_FLOAT(kinds, params, frequency_penalty, -2, 2),                                          \
    {"seed", kinds, param_read_seed, params, 0, 0, false},                                         \
    {"stop", kinds, param_read_stop, params, 0, 0, false},                                         \
    {"ignore_eos", kinds, field_read_bool, (params) + PARAM_AT(ignore_eos), 0, 0, false}
/* clang-format on */

/* An array of token ids below vocab_size, whose type was looked at. *ids is the caller's to free,
 * also after an error; *num is set at the end. */
int param_read_ids(int32_t **ids, int32_t *num, const char *path, json_t *array, int32_t vocab_size,
                   struct field_error *error);
/* The name of a role: a short string, borrowed from the document. */
int param_read_role(const char **out, const char *path, json_t *value, struct field_error *error);
/* Is min_tokens within max_tokens (0: as many as fit)? One that the request `doc` does not give is
 * the server's default, and gives way. */
int param_check_lengths(struct request_params *p, json_t *doc, struct field_error *error);

#ifdef __cplusplus
}
#endif
